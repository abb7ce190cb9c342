"""A record that was being written when Postgres died, and that reaches into the next WAL segment.

Startup has read the part that is there and waits for the rest, at the beginning of the next segment. That is where it
has the WAL receiver begin, be it on another timeline, on which the segment before differs (seen on 18.6, after a full
disk): the standby lacks what lies between and replays nothing, while what it receives counts as flushed, up to its end
(tests/net/test_disks.py). So before it follows a timeline that begins where such a record does, that is made no record:
then the segment is asked for from its beginning.
"""

from __future__ import annotations

import os
from pathlib import Path

from supervisor import timelines

PAGE_BYTES, HEADER_BYTES = 8192, 24
"""Of WAL; each page has a header. Where pages are larger a few records more count as torn, which does no harm."""
BLANK = bytes(8)
"""A record begins with its length, at a multiple of 8."""


def reaches_beyond(length: int, lsn: int, wal_segment_bytes: int) -> bool:
    """Does a record of ``length`` bytes that begins at ``lsn`` (or after the page header there) end in a later segment,
    or closer to it than a page? Pure."""
    left = wal_segment_bytes - lsn % wal_segment_bytes
    headers = (length // (PAGE_BYTES - HEADER_BYTES) + 1) * HEADER_BYTES
    return length > 0 and length + headers + PAGE_BYTES > left


def torn_record(wal_dir: Path, timeline: int, lsn: int, wal_segment_bytes: int) -> tuple[Path, int] | None:
    """Segment and offset of what lies at ``lsn``, the end of what could be replayed, if it may be such a record;
    ``timeline``: of the WAL before it. OSError."""
    offset = lsn % wal_segment_bytes
    if not offset:
        return None
    if not lsn % PAGE_BYTES:
        offset += HEADER_BYTES
    path = wal_dir / timelines.segment_name(timeline, lsn, wal_segment_bytes)
    with path.open("rb") as file:
        length = int.from_bytes(os.pread(file.fileno(), 4, offset), "little")
    return (path, offset) if reaches_beyond(length, lsn, wal_segment_bytes) else None


def blank(path: Path, offset: int) -> None:
    """From its next start on, Postgres takes ``offset`` for the end of WAL. On disk when it returns. OSError."""
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), BLANK, offset)
        os.fsync(file.fileno())
