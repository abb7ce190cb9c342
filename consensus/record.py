"""What a node keeps on disk beside Raft's own state: who it is, what it promised, which WAL it holds."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """End of the WAL a node has flushed, compared as a pair (safety.md). Never compare bare LSNs."""

    epoch: int
    lsn: int
    """Byte position in the WAL as an integer (``X/Y`` = X << 32 | Y)."""


class EpochStart(NamedTuple):
    """One entry of a term history: the WAL of ``epoch`` begins at ``start_lsn`` on ``timeline``."""

    epoch: int
    start_lsn: int
    """The switch LSN in the timeline history file; 0 for epoch 0, the WAL that initdb wrote."""
    timeline: int


class NodeRecord(NamedTuple):
    """Durable facts about this node's data directory."""

    promised: int = 0
    """The highest term this node has promised to."""
    history: tuple[EpochStart, ...] = ()
    """Oldest first. An entry counts only once more than its start_lsn is flushed."""
    proof: Position | None = None
    """After a clone or rewind: no position until it has flushed past this one (read on the primary after it began)."""
    marker: str = ""
    """``rewind`` or ``clone`` while one is running or was interrupted: the data directory must be cloned again."""


class Identity(NamedTuple):
    """Who this node is, for ever. Written at the first start, completed at the founding."""

    name: str
    incarnation: int
    """Random, 1 .. 2**63 - 1; also written into PGDATA."""
    cluster_id: str = ""
    """32 hex digits; empty until the founding."""
    charter: str = ""
    """Canonical JSON of the founding members, their incarnations and addresses; empty until the founding."""
