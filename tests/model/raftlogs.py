"""What stands in a Raft log, compacted or not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache

from consensus.cluster import canonical
from consensus.membership import MEMBERS, Member
from consensus.raft import Log

GRANT = "promoted/1"

Command = tuple[int, str, str]
"""(term, kind, data) of an entry; its index is its place."""


def dumped(done: Iterable[Command]) -> str:
    """The data of a snapshot in these models: the commands it stands for, spelled out."""
    return canonical([[term, kind, json.loads(data) if data else None] for term, kind, data in done])


@lru_cache(maxsize=1 << 14)
def _loaded(data: str) -> tuple[Command, ...]:
    rows = json.loads(data) if data else []
    return tuple((term, kind, "" if body is None else canonical(body)) for term, kind, body in rows)


@lru_cache(maxsize=1 << 16)
def commands(log: Log) -> tuple[Command, ...]:
    """The whole log from index 1."""
    return _loaded(log.snapshot.data) + tuple((e.term, e.kind, e.data) for e in log.entries)


@lru_cache(maxsize=1 << 14)
def _rows(data: str) -> tuple[Member, ...]:
    return tuple(Member(*row) for row in json.loads(data)["members"])


def rows_of(log: Log, upto: int) -> tuple[Member, ...]:
    """The newest list of members among the first ``upto`` entries; nobody: that of the founding."""
    newest = next((data for _, kind, data in reversed(commands(log)[:upto]) if kind == MEMBERS), "")
    return _rows(newest) if newest else ()


def lists_of(log: Log) -> tuple[tuple[int, tuple[Member, ...]], ...]:
    """Index and list of every entry that changes the members."""
    return tuple((at, _rows(data)) for at, (_, kind, data) in enumerate(commands(log), 1) if kind == MEMBERS)
