"""At the leader: from a wish to set cluster-wide settings to an entry of the log. Pure, like the node it works on.

Checked against the table first; what concerns Postgres is then shown to the primary's Postgres by way of its parent
(`config.check`, answered by `node.checked`), and only then proposed. The entry names the one that it was checked
against (`after`), so of two at once one is void.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consensus import clusterwide, retiming
from consensus.changes import Proposal
from consensus.cluster import ClusterState, canonical
from consensus.clusterwide import (
    HBA,
    HOOKS,
    IDENT,
    ON_EVENT,
    ON_ROLE_CHANGE,
    PARAMETERS,
    PRE_PROMOTE,
    PROFILE,
    RULES,
    SLOTS,
    TABLE,
    TIMINGS,
    BadSetting,
    Value,
)
from fencing.lease import PROFILES

if TYPE_CHECKING:
    from consensus.node import Node

SLOTS_MAX = 50
UNCHECKED_MAX = 16
"""Requests that wait for the parent's word; the oldest gives way."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and who is to be told."""

    src: str
    request_id: str
    body: dict[str, Any]
    """``{set: {name: value}, unset: [name], by, dry_run}``; after, if the asker has seen what is set.
    ``unset: null``: whatever is set and not named here, but for hooks."""


Answer = tuple[bool, dict[str, Any]]
"""(ok, what to say); not ok: code, error, hint."""


def refused(code: int, error: str, hint: str, *, final: bool = True) -> Answer:
    """Not ``final``: whoever carries the request asks again by itself, for as long as the person waits."""
    return False, {"code": code, "error": error, "hint": hint} | ({} if final else {"final": False})


def ask(node: Node, asked: Asked, now_ns: int) -> Answer | None:
    """The answer; None: it comes later, from `checked`."""
    found = _considered(node, asked)
    if not isinstance(found, Considered):
        return found
    postgres = {n: new for n, (_, new) in found.changes.items() if n.startswith(PARAMETERS) or n in RULES}
    if not postgres:
        return _propose(node, asked, found, [], now_ns)
    if node.granted() is None:
        return refused(75, "there is no primary whose Postgres could be asked", "see `pgr status`; ask again")
    token = node.token()
    node.unchecked[token] = asked
    while len(node.unchecked) > UNCHECKED_MAX:
        node.unchecked.pop(next(iter(node.unchecked)))
    parameters = {n.removeprefix(PARAMETERS): v for n, v in postgres.items() if n not in RULES}
    rules = {"hba": postgres.get(HBA), "ident": postgres.get(IDENT)}
    node.tell("config.check", {"parameters": parameters} | rules, token)
    return None


def checked(node: Node, token: str, body: Mapping[str, Any], now_ns: int) -> tuple[Asked, Answer] | None:
    """The parent's word on one of them, and so the answer. None: nobody waits for it any more."""
    asked = node.unchecked.pop(token, None)
    if asked is None:
        return None
    if body["ok"] is not True:
        return asked, refused(int(body["code"]), str(body["error"]), str(body["hint"]))
    found = _considered(node, asked)  # what is set may have changed meanwhile
    if isinstance(found, Considered):
        found = _propose(node, asked, found, list(body["notes"]), now_ns)
    return asked, found


@dataclass(frozen=True, slots=True)
class Considered:
    """A request that fits."""

    changes: dict[str, tuple[Value, Value]]
    wanted: dict[str, Value]
    unset: list[str]
    notes: list[str]


def _considered(node: Node, asked: Asked) -> Answer | Considered:
    body, tip = asked.body, node.tip()
    if not isinstance(body.get("set"), dict) or not isinstance(body.get("unset", 0), list | None):
        return refused(64, "this is no request to set anything", "use a pgr of the same version")
    after = body.get("after")
    if after is not None and after != tip.config_index:
        return refused(75, "the settings have been changed meanwhile", "look at `pgr config show` and ask again")
    try:
        kept = _as_shown(tip, body["set"]) if body["unset"] is None else ()
        wanted = {str(n): clusterwide.check(str(n), v) for n, v in body["set"].items() if n not in kept}
        if body["unset"] is None:
            wanted, unset = _instead(tip.config, wanted, kept)
        else:
            unset = sorted(str(n) for n in body["unset"])
        for name in unset:
            clusterwide.setting_of(name)
    except BadSetting as bad:
        return refused(bad.code, bad.reason, bad.hint)
    both = sorted(set(wanted) & set(unset))
    if both:
        return refused(64, f"{both[0]} is to be set and unset at once", "name it once")
    changes = clusterwide.changed(tip.config, wanted, unset)
    config = canonical(clusterwide.merged(tip.config, wanted, unset))
    long = clusterwide.too_long(config)
    if long is not None:
        return refused(long.code, long.reason, long.hint)
    problem = _unfit(tip, config, changes)
    return problem if problem is not None else Considered(changes, wanted, unset, _notes(tip, config, changes))


def _as_shown(tip: ClusterState, named: Mapping[str, Any]) -> list[str]:
    """Profile and timings that are named as `GET /config` shows them, in force, whoever has asked for them."""
    timings = tip.pace.timings
    shown = {PROFILE: retiming.profile_of(timings)} | {name: getattr(timings, name) for name in TIMINGS}
    return [name for name, value in shown.items() if name in named and named[name] == value]


def _instead(config: str, wanted: Mapping[str, Value], kept: Collection[str]) -> tuple[dict[str, Value], list[str]]:
    """What has to be set and unset for ``wanted`` to be all that is set, but for ``kept`` and hooks.

    A default that nobody has set is not set by being named: whoever brings back what was shown to him changes nothing.
    """
    now = clusterwide.read(config)
    new = {n: v for n, v in wanted.items() if n in now or n not in TABLE or v != TABLE[n].default}
    return new, sorted(n for n in now if n not in new and n not in kept and not n.startswith(HOOKS))


def _unfit(tip: ClusterState, config: str, changes: Mapping[str, object]) -> Answer | None:
    """Right in itself, and yet not for this cluster."""
    acks, seats = clusterwide.value_of(config, "sync_acks"), len(tip.wanted_group.members)
    touched = {"sync_acks", "strict", "commit"} & set(changes)
    counted = clusterwide.value_of(config, "strict") and clusterwide.value_of(config, "commit") == "quorum"
    if touched and counted and acks is not None and acks >= seats:
        error = f"sync_acks = {acks} needs {acks + 1} nodes in the sync group, there are {seats}"
        return refused(78, f"{error}: every write would wait", "add members first, or set a smaller number")
    if {PROFILE, *TIMINGS} & set(changes):
        problems = retiming.wanted(config, tip.profile).problems()
        if problems:
            named = [name for name in TIMINGS if name in clusterwide.read(config)]
            single = f", without {' and '.join(named)} (`pgr config unset`)" if named else ""
            return refused(78, "; ".join(problems), f"`pgr config set profile=...`: {', '.join(PROFILES)}{single}")
    logical = sorted(name for name, slot in clusterwide.slots(config).items() if slot[0] == "logical")
    level = f"{PARAMETERS}wal_level"
    if logical and clusterwide.parameters(config).get("wal_level") != "logical":
        error = f"the slot {logical[0]} is logical, and so wal_level has to be"
        return refused(78, error, f"set {level}=logical first, or with it, then `pgr restart --pending`")
    if len(clusterwide.slots(config)) > SLOTS_MAX:
        return refused(64, f"{len(clusterwide.slots(config))} permanent slots", f"not more than {SLOTS_MAX}")
    return None


def _notes(tip: ClusterState, config: str, changes: Mapping[str, tuple[Value, Value]]) -> list[str]:
    """What the asker should know. ``config``: with the changes."""
    notes = [f"{n}: takes effect with a {TABLE[n].needs}" for n in changes if n in TABLE and TABLE[n].needs == "reload"]
    if changes.get("commit", (None, None))[1] == "async":
        notes.append("asynchronous: a failover may lose acknowledged commits")
    if {PROFILE, *TIMINGS} & set(changes):
        notes.append("the timings change in steps, and every voter has to hear of the first: `pgr status` says of whom")
    kept = [name for name in TIMINGS if name in clusterwide.read(config) and name not in changes]
    if PROFILE in changes and kept:
        notes.append(f"{', '.join(kept)}: set by itself, not by the profile (`pgr config unset`)")
    for name, (_, command) in changes.items():
        if name in (PRE_PROMOTE, ON_ROLE_CHANGE, ON_EVENT) and isinstance(command, list):
            notes.append(f"{name}: every node runs its own {command[0]}, as the user that its Postgres runs as")
    if changes.get("strict", (None, None))[1] is False:
        notes.append("not strict: with too few standbys writes go on, and only the nodes that have them can take over")
    for name, (_, slot) in changes.items():
        if name.startswith(SLOTS) and isinstance(slot, list) and slot[0] == "logical":
            notes.append(f"{name}: outlives a failover from Postgres 17 on; before, the next primary makes it anew")
    acks = changes.get("sync_acks", (None, None))[1]
    if isinstance(acks, int):
        seats = len(tip.wanted_group.members)
        if acks < seats // 2:
            notes.append(f"a failover needs {seats - acks} of the {seats} nodes of the sync group")
    return notes


def _propose(node: Node, asked: Asked, found: Considered, notes: list[str], now_ns: int) -> Answer:
    tip, by = node.tip(), str(asked.body.get("by") or "somebody")
    told = {
        "changes": {n: list(values) for n, values in found.changes.items()}, "notes": [*found.notes, *notes],
        "after": tip.config_index, "index": tip.config_index,
    }  # fmt: skip
    if asked.body.get("dry_run") or not found.changes:
        return True, told
    entry = {
        "set": found.wanted, "unset": found.unset, "after": tip.config_index, "node": node.me,
        "text": f"{by}: {clusterwide.sentence(found.changes)}",
        "fields": {"by": by, "changes": {n: list(values) for n, values in found.changes.items()}},
    }  # fmt: skip
    index = node.propose_change(Proposal("config/1", entry), now_ns)
    if not index:
        return refused(75, "this node leads no more", "ask again in a moment")
    return True, told | {"index": index}
