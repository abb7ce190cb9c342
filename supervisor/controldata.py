"""What pg_control says, through pg_controldata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.binaries import Binaries
from supervisor.children import ChildTable
from supervisor.jobs import JobFailed, run_job
from supervisor.settings import FLOORED
from supervisor.tasks import Task
from supervisor.timelines import parse_lsn

SHUT_DOWN = ("shut down", "shut down in recovery")
_CHECKPOINT_BYTES = 114
"""Length of a checkpoint record, 15 to 18: header 24, data header 2, CheckPoint 88 (seen with pg_waldump)."""
_PAGE, _SHORT_HEADER, _LONG_HEADER, _ALIGN = 8192, 24, 40, 8
_WALDUMP = re.compile(r"len \(rec/tot\):\s*\d+/\s*(\d+),.*lsn: ([0-9A-F/]+),.*desc: (\w+)")


class ControlDataError(Exception):
    """pg_control can't be read: absent, damaged, or of another major version."""


@dataclass(frozen=True, slots=True)
class ControlData:
    """LSNs as integers; 0 where Postgres has 0/0."""

    system_identifier: int
    state: str
    """``in production``, ``shut down``, ``shut down in recovery``, ``in archive recovery``, ``in crash recovery``..."""
    timeline: int
    """Of the latest checkpoint."""
    checkpoint_lsn: int
    redo_lsn: int
    min_recovery_end_lsn: int
    min_recovery_timeline: int
    wal_segment_bytes: int
    checksums: bool
    wal_level: str
    wal_log_hints: bool
    pg_control_version: int
    catalog_version: int
    floors: Mapping[str, int] = field(default_factory=dict)
    """Setting name -> the least a standby must have (hazard 76); see ``settings.with_floors``."""

    @property
    def clean(self) -> bool:
        """Shut down cleanly, as a primary or as a standby."""
        return self.state in SHUT_DOWN

    @property
    def was_primary(self) -> bool:
        """The last to run here was no standby (hazard 52): all its WAL counts, not only up to min_recovery_end_lsn."""
        return self.state in ("shut down", "in production", "in crash recovery", "shutting down")


def parse(text: str) -> ControlData:
    """The output of pg_controldata with LANG=C. Raises ControlDataError."""
    values = {
        name.removeprefix("Current ").strip(): value.strip()
        for name, colon, value in (line.partition(":") for line in text.splitlines())
        if colon
    }
    try:
        return ControlData(
            system_identifier=int(values["Database system identifier"]),
            state=values["Database cluster state"],
            timeline=int(values["Latest checkpoint's TimeLineID"]),
            checkpoint_lsn=parse_lsn(values["Latest checkpoint location"]),
            redo_lsn=parse_lsn(values["Latest checkpoint's REDO location"]),
            min_recovery_end_lsn=parse_lsn(values["Minimum recovery ending location"]),
            min_recovery_timeline=int(values["Min recovery ending loc's timeline"]),
            wal_segment_bytes=int(values["Bytes per WAL segment"]),
            checksums=values["Data page checksum version"] != "0",
            wal_level=values["wal_level setting"],
            wal_log_hints=values["wal_log_hints setting"] == "on",
            pg_control_version=int(values["pg_control version number"]),
            catalog_version=int(values["Catalog version number"]),
            floors={name: int(values[label]) for name, label in FLOORED.items()},
        )
    except (KeyError, ValueError) as error:
        raise ControlDataError(f"pg_controldata gave no usable answer: {error}") from error


def read(binaries: Binaries, pgdata: Path, children: ChildTable) -> Task[ControlData]:
    """Of a data directory whose Postgres may run or not. Raises ControlDataError, also for a damaged file."""
    try:
        result = yield from run_job([binaries.path("pg_controldata"), "-D", str(pgdata)], children)
    except JobFailed as error:
        raise ControlDataError(str(error)) from error
    # It warns and goes on: about a CRC that is wrong, and about a file of another version.
    warning = next((line for line in (*result.output.splitlines(), *result.tail) if "WARNING" in line.upper()), "")
    if warning:
        raise ControlDataError(f"{pgdata}/global/pg_control: {warning}")
    return parse(result.output)


def major_of(pgdata: Path) -> int:
    """The major version that made this data directory (PG_VERSION). Raises ControlDataError."""
    try:
        text = (pgdata / "PG_VERSION").read_text().strip()
        return int(text)
    except (OSError, ValueError) as error:
        raise ControlDataError(f"{pgdata} is no data directory of PostgreSQL 10 or newer: {error}") from error


def end_of_shutdown_checkpoint(
    binaries: Binaries, pgdata: Path, control: ControlData, children: ChildTable
) -> Task[int | None]:
    """The LSN right after the shutdown checkpoint of a primary that was shut down cleanly: the position of an
    ex-primary (hazard 55). None if pg_control says otherwise, or the record is not what it says.

    pg_waldump, where there is one, confirms that the record is there and how long it is; else its length is a constant.
    """
    if control.state != "shut down":
        return None
    length = _CHECKPOINT_BYTES
    if binaries.has("pg_waldump"):
        at = f"{control.checkpoint_lsn >> 32:X}/{control.checkpoint_lsn & 0xFFFFFFFF:X}"
        argv = [
            binaries.path("pg_waldump"),
            "-p",
            str(pgdata / "pg_wal"),
            "-t",
            str(control.timeline),
            "-s",
            at,
            "-n",
            "1",
        ]
        try:
            result = yield from run_job(argv, children)
        except JobFailed:
            return None  # the record can't be read: there is no position to tell
        match = _WALDUMP.search(result.output)
        if match is None or parse_lsn(match[2]) != control.checkpoint_lsn or match[3] != "CHECKPOINT_SHUTDOWN":
            return None
        length = int(match[1])
    return record_end(control.checkpoint_lsn, length, control.wal_segment_bytes)


def record_end(lsn: int, length: int, wal_segment_bytes: int) -> int:
    """Where a WAL record of ``length`` bytes that starts at ``lsn`` ends: page headers on its way added, aligned."""
    position, left = lsn, length
    while True:
        room = _PAGE - position % _PAGE
        if left <= room:
            return (position + left + _ALIGN - 1) // _ALIGN * _ALIGN
        position, left = position + room, left - room
        position += _LONG_HEADER if position % wal_segment_bytes == 0 else _SHORT_HEADER
