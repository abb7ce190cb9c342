"""A data directory: WAL, timeline history files, what pg_control says. Survives its Postgres.

WAL is a list of record numbers that are unique in the whole run, so two nodes hold the same WAL up to an index if and
only if they hold the same number before it. An LSN is an index times `UNIT`; segments and histories have real names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor import timelines
from tests.sim.world import World

UNIT = 8192
SEGMENT_BYTES = 64 * UNIT


@dataclass(slots=True)
class Directory:
    system_identifier: str
    wal: list[int] = field(default_factory=list)
    flushed: int = 0
    """Index: what a power cut can not take."""
    timeline: int = 1
    """Of the newest WAL."""
    control_timeline: int = 1
    """Of the last checkpoint, as pg_rewind reads it."""
    checkpoint: int = 0
    """Index from which recovery reads."""
    consistent_at: int = 0
    """Before this index a copy does not let anybody in."""
    clean: bool = False
    """pg_control says: shut down cleanly."""
    whole: bool = True
    """False while a rewind writes into it, and after one that did not end."""
    histories: dict[str, str] = field(default_factory=dict)
    segments: dict[str, None] = field(default_factory=dict)
    mark: tuple[int, str] | None = None
    """(incarnation, nonce): whose copy it is."""

    @property
    def end(self) -> int:
        return len(self.wal)

    def append(self, records: list[int], timeline: int) -> None:
        self.timeline = max(self.timeline, timeline)
        first = len(self.wal) * UNIT
        self.wal.extend(records)
        self.touch(timeline, first, len(self.wal) * UNIT)

    def touch(self, timeline: int, first_lsn: int, end_lsn: int) -> None:
        lsn = first_lsn - first_lsn % SEGMENT_BYTES
        while True:
            self.segments[timelines.segment_name(timeline, lsn, SEGMENT_BYTES)] = None
            lsn += SEGMENT_BYTES
            if lsn >= end_lsn:
                return

    def power_cut(self, world: World) -> None:
        """What was not flushed may be gone, from somewhere on."""
        if self.flushed < self.end:
            del self.wal[world.dice.randrange(self.flushed, self.end + 1) :]

    def switches(self) -> dict[int, int]:
        """Of this directory's history: timeline -> index at which it was left."""
        if self.timeline == 1:
            return {}
        text = self.histories.get(timelines.history_name(self.timeline))
        if text is None:
            return {}
        return {s.timeline: s.lsn // UNIT for s in timelines.parse_history(text)}

    def numbers(self) -> tuple[int, ...]:
        return timelines.history_numbers(self.histories)

    def is_burned(self, number: int) -> bool:
        """Its history has no parents."""
        return not timelines.parse_history(self.histories[timelines.history_name(number)])

    def copy(self) -> Directory:
        """What a base backup brings: of the histories the newest alone."""
        newest = timelines.history_name(self.timeline)
        new = Directory(self.system_identifier, self.wal[: self.flushed], self.flushed, self.timeline)
        new.control_timeline, new.checkpoint = self.control_timeline, self.checkpoint
        new.histories = {newest: self.histories[newest]} if newest in self.histories else {}
        new.segments = dict(self.segments)
        new.mark = self.mark
        return new
