"""One transaction of the store, as a value: what must be on disk before the next word leaves this node."""

from __future__ import annotations

from dataclasses import dataclass

from consensus.messages import Entry, HardState, Snapshot
from consensus.record import Identity, NodeRecord


@dataclass(frozen=True, slots=True)
class Write:
    """None or empty: unchanged. Carried out in the order of the fields."""

    hard: HardState | None = None
    truncate_from: int | None = None
    """Forget the entries from this index on, before ``entries`` are appended."""
    entries: tuple[Entry, ...] = ()
    snapshot: Snapshot | None = None
    """Replaces the stored one; entries up to its index are forgotten."""
    record: NodeRecord | None = None
    identity: Identity | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store holds."""

    identity: Identity | None
    hard: HardState
    snapshot: Snapshot | None
    entries: tuple[Entry, ...]
    """Contiguous, beginning right after the snapshot."""
    record: NodeRecord
