"""The founding: how nodes that know only each other's names and addresses become one cluster, once. Pure.

Every node of `--peers`, not a majority, has to answer that it is empty, or exactly one has a data directory to adopt;
one silent peer means wait, and say who. The lowest name writes the *charter*: a random cluster id, all names,
incarnations and addresses, and who is to create the data. Each node stores it before it may vote. The charter is
repeated to whoever it names until it is acknowledged, by every node that has it; so a founder that dies half way costs
time, nothing else.
A node that is named with another incarnation has lost its state: it is told so and stops (78).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from consensus.cluster import canonical


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

    def dump(self) -> str:
        return canonical({"kind": "greeting", **{n: getattr(self, n) for n in Greeting.__slots__}})


@dataclass(frozen=True, slots=True)
class Founding:
    """Options that matter only to whoever writes the charter."""

    commit: str
    profile: str
    settings: str


def parse(data: str) -> dict[str, Any]:
    """A Hello's body. Raises ValueError if it is none."""
    body = json.loads(data)
    if not isinstance(body, dict) or body.get("kind") not in ("greeting", "charter", "stranger"):
        raise ValueError("not a hello")
    return body


def parse_greeting(body: Mapping[str, Any]) -> Greeting:
    """Raises ValueError for a malformed greeting."""
    try:
        return Greeting(
            str(body["name"]), int(body["incarnation"]), str(body["raft"]), str(body["postgres"]), str(body["http"]),
            tuple(str(p) for p in body["peers"]), str(body["adopts"]),
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"malformed greeting: {error}") from error


def charter_message(cluster_id: str, charter: str) -> str:
    return canonical({"kind": "charter", "cluster_id": cluster_id, "charter": charter})


def stranger_message(reason: str) -> str:
    """To a node that the charter does not name, or names with another incarnation."""
    return canonical({"kind": "stranger", "reason": reason})


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
    """May the cluster be founded now? Asked by the node with the lowest name only."""
    silent = tuple(p for p in mine.peers if p != mine.name and p not in heard)
    for other in heard.values():
        if other.peers != mine.peers:
            theirs, ours = ", ".join(other.peers), ", ".join(mine.peers)
            return Waiting(silent, f"{other.name} lists the peers {theirs}, this node {ours}")
    if silent:
        return Waiting(silent)
    everyone = [mine, *(heard[p] for p in mine.peers if p != mine.name)]
    adopting = [g.name for g in everyone if g.adopts]
    if len(adopting) > 1:
        names = ", ".join(adopting)
        return Waiting((), f"more than one node brings a data directory: {names}; only one can be adopted")
    members = [[g.name, g.incarnation, g.raft, g.postgres, g.http] for g in everyone]
    return Charter(
        canonical(
            {
                "members": sorted(members),
                "founder": adopting[0] if adopting else mine.name,
                "commit": options.commit,
                "profile": options.profile,
                "settings": json.loads(options.settings),
            }
        )
    )


def standing(charter: str, name: str, incarnation: int) -> str:
    """Why the node (name, incarnation) is not the one the charter names; empty if it is."""
    for member in json.loads(charter)["members"]:
        if member[0] == name:
            if member[1] == incarnation:
                return ""
            return f"{name} is a member with another incarnation: its Raft directory was wiped or replaced"
    return f"{name} is not a member of this cluster"
