"""The values that `promiseworld.py` makes states of: logs, hosts, what has happened, how far a run looks."""

from __future__ import annotations

from typing import NamedTuple

from consensus.cluster import SyncGroup
from consensus.record import EpochStart, Position
from tests.model.explore import State

NAMES = ("a", "b", "c", "d", "e")
RESTARTS, CHANGES, WIPES, CLONES = range(4)
"""Places in a budget."""
FIRST_TIMELINE = 2
Wal = tuple[int, ...]
"""The epoch of each record. An epoch has one writer, so equal prefixes of this are equal WAL."""


class Item(NamedTuple):
    """An entry of the abstract log; its index is its place."""

    term: int
    kind: str
    data: str = ""


Log = tuple[Item, ...]
"""Begins with the grant of term 1 to a, opened and committed everywhere."""


class Lingering(NamedTuple):
    """A walsender of a standby that has gone: what it last heard may still be counted, by the rule that it knows."""

    epoch: int
    flushed: int
    rule: int


class Host(NamedTuple):
    """One node; ``term``, ``log``, ``promised``, ``history``, ``wal``, ``proof`` and ``incarnation`` are on disk."""

    term: int
    log: Log
    promised: int
    history: tuple[EpochStart, ...]
    wal: Wal
    leads: int = 0
    """The term it believes to lead."""
    committed: int = 0
    """As leader: so many entries of its log are known to be committed."""
    primary: int = 0
    """Epoch under which its Postgres accepts writes."""
    upstream: int = 0
    """Epoch of the primary that its WAL receiver is attached to."""
    vows: tuple[tuple[int, Position | None], ...] = ()
    """Promises that were given and heard: (term, position)."""
    acks: tuple[tuple[int, int], ...] = ()
    """(term, length of the log) acknowledged to leaders."""
    rule: int = 0
    """Of a primary: the names that are set. Of a standby: those that its walsender knows."""
    defined: bool = True
    """Of a primary: its checkpointer knows that there are names."""
    proving: int = 0
    """Of a primary: 1 + the insert LSN that has to meet the new rule; 0: not read."""
    left: tuple[Lingering, ...] = ()
    reading: bool = False
    """Restarted, and not yet through its WAL."""
    incarnation: int = 1
    proof: Position | None = None
    applied: int = 0
    """So many entries are known to be committed; kept only where nodes can lose their disk."""
    reigned: int = 0
    """The epoch of which it was primary, until it follows a newer one; only where the log does not name it."""


class Ghost(NamedTuple):
    """What has ever happened, by epoch."""

    acked: tuple[tuple[int, Wal], ...] = ()
    """The longest WAL that a client was told is committed."""
    started: tuple[tuple[int, int, Wal], ...] = ()
    """Timeline, and the WAL its primary started from."""


class Setup(NamedTuple):
    """How far a run looks; k of ``data`` nodes, the others are witnesses."""

    terms: int
    records: int
    restarts: int = 0
    nodes: int = 3
    data: int = 3
    k: int = 2
    seated: int = 0
    """So many of the data nodes are in S; 0: all."""
    reads: bool = False
    """A restarted Postgres has to read its WAL first."""
    changes: int = 0
    targets: tuple[SyncGroup, ...] = ()
    wipes: int = 0
    wish: str = ""
    """Whom a person has asked for as the next primary."""
    clones: int = 0
    """So many data directories are lost and cloned anew; the Raft state stays."""

    blocked: bool = False
    """Members and the sync group may also be changed while the newest epoch is not open."""

    def __str__(self) -> str:
        witness = f", {self.nodes - self.data} witness" if self.nodes > self.data else ""
        outside = f", {self.data - self.seated} outside S" if self.seated else ""
        words = (
            (self.restarts, f"R={self.restarts}"), (self.reads, "WAL is read after a restart"),
            (self.changes, f"{self.changes} change{'s' * (self.changes > 1)} of S"),
            (self.wipes, f"{self.wipes} lost disk"),
            (self.wish, f"{self.wish} is wished for"),
            (self.blocked, "before the opening too"),
            (self.clones, f"{self.clones} data director{'y' if self.clones == 1 else 'ies'} lost"),
        )  # fmt: skip
        more = "".join(f", {text}" for count, text in words if count)
        return f"N={self.nodes}{witness}{outside}, k={self.k}, T={self.terms}, {self.records} WAL records{more}"


class Reply(NamedTuple):
    """What makes a primary tell its clients something: a walsender of ``by`` has heard that more WAL is flushed (-1:
    something else happened). ``rule``: the names that this walsender knows, if not those of its standby."""

    primary: int
    by: int = -1
    rule: int = -1


class View(NamedTuple):
    """A state, taken apart."""

    hosts: list[Host]
    ids: State
    """Of the hosts."""
    ghost: int
    budget: int


def newness(log: Log) -> tuple[int, int]:
    """A log is compared by this (consensus/raft.py, `_up_to_date`)."""
    return (log[-1].term if log else 0, len(log))


def forgotten(host: Host, terms: set[int], epochs: set[int]) -> Host:
    """Without what was said to leaders and primaries that are none any more: nobody will ask for it."""
    vows = tuple(v for v in host.vows if v[0] in terms)
    acks = tuple(a for a in host.acks if a[0] in terms)
    left = tuple(x for x in host.left if x.epoch in epochs)
    if (vows, acks, left) == (host.vows, host.acks, host.left):
        return host
    return host._replace(vows=vows, acks=acks, left=left)


STORIES = {
    "elected": "{0} is elected in term {raw[1]}",
    "sends": "{0} sends its log to {1}",
    "acknowledges": "{0} acknowledges the log of {1}",
    "grant": "{0} appends its grant",
    "turns back": "{0} lets the open change go the other way",
    "promises": "{0} promises to {1}: {raw[2]}",
    "promotes": "{0} promotes under epoch {raw[1]} with WAL {raw[2]}",
    "writes": "{0} writes under epoch {raw[1]}",
    "flushes": "{0} flushes from {1}: {raw[2]}",
    "attaches": "{0} attaches to {1} with WAL {raw[2]}",
    "fenced": "{0} is fenced",
    "restarts": "{0} restarts",
    "reads": "{0} has read all of its WAL",
    "opens": "{0} is open to clients",
    "changes": "{0} appends {raw[1]}",
    "names": "{0} sets the names of {raw[1]}",
    "checkpoint": "the checkpointer of {0} has seen the names",
    "reload": "the walsender of {0} at {1} reads the names",
    "reconnects": "{0} connects to {1} anew; the old walsender is still there",
    "late": "a walsender that {0} left at {1} counts what it heard last",
    "gone": "that walsender of {0} at {1} is gone",
    "lsn": "{0} reads its insert LSN",
    "data lost": "{0} loses its data directory, and keeps its Raft state",
    "wipe": "{0} loses its disk and comes back as another incarnation",
    "admits": "{0} lets {1} in",
}
