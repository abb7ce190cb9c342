"""A Raft value with other names in it: what symmetry needs. The core only ever asks whether two names are equal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from consensus.cluster import canonical
from consensus.membership import Membership
from consensus.messages import AppendReq, Entry, RaftMessage, Snapshot, SnapshotReq, VoteReq
from consensus.raft import Log, Raft, RaftConfig, Role

Names = tuple[tuple[str, str], ...]
"""Old name, new name."""


@lru_cache(maxsize=1 << 16)
def renamed_data(data: str, names: Names) -> str:
    """JSON: every string that is a name; the list of members stays sorted."""
    return canonical(_renamed(json.loads(data), dict(names))) if data else ""


def _renamed(value: Any, to: Mapping[str, str]) -> Any:
    match value:
        case str():
            return to.get(value, value)
        case list():
            return [_renamed(v, to) for v in value]
        case dict():
            return {k: sorted(_renamed(v, to)) if k == "members" else _renamed(v, to) for k, v in value.items()}
        case _:
            return value


def _membership(value: Membership, to: Mapping[str, str]) -> Membership:
    return Membership(tuple(sorted(to[n] for n in value.voters)), tuple(sorted(to[n] for n in value.learners)))


def _snapshot(value: Snapshot, names: Names) -> Snapshot:
    return value._replace(
        data=renamed_data(value.data, names), membership=_membership(value.membership, dict(names))
    )


def _entries(entries: tuple[Entry, ...], names: Names) -> tuple[Entry, ...]:
    return tuple(e._replace(data=renamed_data(e.data, names)) for e in entries)


def renamed_log(log: Log, names: Names) -> Log:
    return Log(_snapshot(log.snapshot, names), _entries(log.entries, names))


def renamed_message(message: RaftMessage, names: Names) -> RaftMessage:
    match message:
        case VoteReq():
            return message._replace(released_leader=dict(names).get(message.released_leader, ""))
        case AppendReq():
            return message._replace(entries=_entries(message.entries, names))
        case SnapshotReq():
            return message._replace(snapshot=_snapshot(message.snapshot, names))
        case _:
            return message


def renamed_raft(raft: Raft, names: Names, config: RaftConfig) -> Raft:
    to = dict(names) | {"": ""}
    other = raft.clone()
    other.config = config
    other.vote, other.leader, other.hold_leader = to[raft.vote], to[raft.leader], to[raft.hold_leader]
    other.transfer_to = to[raft.transfer_to]
    other.votes = tuple(sorted(to[v] for v in raft.votes))
    other.progress = tuple(sorted((to[name], p) for name, p in raft.progress))
    other.log = renamed_log(raft.log, names)
    other._look_for_members()
    return other


def signature(raft: Raft, incarnation: int) -> tuple[object, ...]:
    """The same for all nodes that differ in names only: what tells most nodes apart without looking at a name."""
    me = raft.config.me
    vote = "me" if raft.vote == me else "other" if raft.vote else ""
    log = tuple((e.term, e.kind) for e in raft.log.entries)
    known = tuple(sorted(p for _, p in raft.progress))
    hard = (raft.term, raft.commit, raft.released, raft.log.snapshot.index, raft.boot, raft.round)
    led = raft.role is Role.LEADER or raft.leader == ""
    return (incarnation, raft.role.value, vote, led, hard, log, known, len(raft.votes), raft.vote == raft.leader)
