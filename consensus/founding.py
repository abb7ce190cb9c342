"""The founding: how nodes that know only each other's names and addresses become one cluster, once. Pure.

Every node of `--peers`, not a majority, has to answer that it is empty, or exactly one has a data directory to adopt;
one silent peer means wait, and say who. The lowest name writes the *charter*: a random cluster id, all names,
incarnations and addresses, and who is to create the data. Each node stores it before it may vote. The charter is
repeated to whoever it names until it is acknowledged, by every node that has it; so a founder that dies half way costs
time, nothing else.
A node that is named with another incarnation has lost its state: it is let in again as a learner (changes.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from consensus.cluster import canonical
from consensus.membership import VOTER, Member


@dataclass(frozen=True, slots=True)
class Greeting:
    """What an unfounded node says of itself."""

    name: str
    incarnation: int
    raft: str
    postgres: str
    http: str
    peers: tuple[str, ...]
    """Names, sorted."""
    adopts: str
    """System identifier of a data directory it wants to bring in; empty if it has none."""
    aim: str = VOTER
    """What it wants to be: voter, witness or learner."""
    joins: bool = False
    """It was told to ask a running cluster; it never founds one."""
    lost: bool = False
    """It has data of a cluster but no Raft state: it never founds, it asks to be let in again."""
    brings: str = "{}"
    """JSON {parameters: {name: value}, hba: [line], ident: [line]} that come with the data it wants to bring in: they
    fill in what the founding settings do not say."""

    def dump(self) -> str:
        return canonical({"kind": "greeting", **{n: getattr(self, n) for n in Greeting.__slots__}})


@dataclass(frozen=True, slots=True)
class Founding:
    """Options that matter only to whoever writes the charter."""

    commit: str
    profile: str
    settings: str


KINDS = ("greeting", "charter", "stranger", "elsewhere", "introduction", "rebuilt")


def parse(data: str) -> dict[str, Any]:
    """A Hello's body. Raises ValueError if it is none."""
    body = json.loads(data)
    if not isinstance(body, dict) or body.get("kind") not in KINDS:
        raise ValueError("not a hello")
    return body


def parse_greeting(body: Mapping[str, Any]) -> Greeting:
    """Raises ValueError for a malformed greeting."""
    try:
        return Greeting(
            str(body["name"]), int(body["incarnation"]), str(body["raft"]), str(body["postgres"]), str(body["http"]),
            tuple(str(p) for p in body["peers"]), str(body["adopts"]), str(body["aim"]), bool(body["joins"]),
            bool(body["lost"]), _brings(body.get("brings", "{}")),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"malformed greeting: {error}") from error


def _brings(text: Any) -> str:
    found = json.loads(text)
    names, rules = found.get("parameters", {}), [*found.get("hba", []), *found.get("ident", [])]
    if not all(isinstance(word, str) for word in (*names, *names.values(), *rules)):
        raise ValueError("malformed greeting: what it brings")
    return str(text)


def charter_message(cluster_id: str, charter: str, term: int, index: int, members: Iterable[Member]) -> str:
    """To one of ``members`` (as of ``index``; at the founding: 0, and those of the charter). ``term``: the newest the
    sender knows; whoever is let in promises nothing older."""
    rows = [list(m) for m in members]
    body = {"kind": "charter", "cluster_id": cluster_id, "charter": charter, "term": term, "index": index}
    return canonical(body | {"members": rows})


def stranger_message(reason: str, hint: str, *, final: bool) -> str:
    """To a node that is no member. ``final``: it must stop; else it goes on asking."""
    return canonical({"kind": "stranger", "reason": reason, "hint": hint, "final": final})


def removal(name: str) -> tuple[str, str]:
    """Reason and hint for a node that is no member any more."""
    hint = "to bring this host back, start it with an empty data directory and --join"
    return f"{name} was removed from the cluster", hint


def elsewhere_message(name: str, address: str) -> str:
    """To a node that wants to be let in: the leader decides, and this is where it is."""
    return canonical({"kind": "elsewhere", "name": name, "raft": address})


def introduction(address: str, index: int) -> str:
    """Within a cluster, to one that may not know us (yet, any more): where we are and how far our log is applied."""
    return canonical({"kind": "introduction", "raft": address, "index": index})


def founders(charter: str) -> tuple[Member, ...]:
    return tuple(sorted(Member(*m) for m in json.loads(charter)["members"]))


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not yet: who is silent, or what does not fit."""

    silent: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Charter:
    """To be stored under a fresh cluster id, then told to all."""

    text: str


def consider(mine: Greeting, heard: Mapping[str, Greeting], options: Founding) -> Waiting | Charter:
    """May the cluster be founded now? Only the node with the lowest name may use a charter; the others ask for what is
    in the way."""
    silent = tuple(p for p in mine.peers if p != mine.name and p not in heard)
    for other in heard.values():
        if other.peers != mine.peers:
            theirs, ours = ", ".join(other.peers), ", ".join(mine.peers)
            return Waiting(silent, f"{other.name} lists the peers {theirs}, this node {ours}")
    if silent:
        return Waiting(silent)
    everyone = [mine, *(heard[p] for p in mine.peers if p != mine.name)]
    for one in everyone:
        if one.joins or one.lost:
            why = "has lost the Raft state that belongs to its data" if one.lost else "was told to join a cluster"
            return Waiting((), f"{one.name} {why}: it does not found one")
    electable = [g.name for g in everyone if g.aim == VOTER]
    if not electable:
        return Waiting((), "no peer is to be a voter with Postgres: nobody could be primary")
    adopting = sorted(g.name for g in everyone if g.adopts)
    if adopting and adopting[0] not in electable:
        return Waiting((), f"{adopting[0]} brings a data directory, but is to be no voter: it could not be primary")
    if len(adopting) > 1:
        names = ", ".join(adopting)
        return Waiting(
            (),
            f"more than one node brings a data directory: {names}; only one can be adopted. Which one is for you to "
            "say: stop the others, move their data away (nothing is deleted here) and start them again as copies of it",
        )
    members = [list(Member(g.name, g.incarnation, g.raft, g.postgres, g.http, g.aim, g.aim)) for g in everyone]
    return Charter(
        canonical(
            {
                "members": sorted(members),
                "founder": adopting[0] if adopting else min(electable),
                "commit": options.commit,
                "profile": options.profile,
                "settings": _settings(options.settings, next((g for g in everyone if g.adopts), None)),
            }
        )
    )


def _settings(given: str, founder: Greeting | None) -> dict[str, Any]:
    """What a person gave at the founding, and of what comes with adopted data the rest. Client rules are one value.
    ``adopts``: whose data it has to be, so that nobody runs initdb instead."""
    settings: dict[str, Any] = json.loads(given)
    if founder is not None:
        found: Mapping[str, Any] = json.loads(founder.brings)
        settings["parameters"] = dict(found.get("parameters", {})) | settings.get("parameters", {})
        for name in ("hba", "ident"):
            settings[name] = settings.get(name) or list(found.get(name, []))
        settings["adopts"] = founder.adopts
    return settings
