"""Timeline history files and WAL file names (pure).

Postgres takes "highest number I have heard of + 1", found by counting up from its own until a history file is missing.
So the log allocates numbers, and right before a promotion every number between the node's own and the new one has a
file: the real history of an epoch of ours, or a *burned* one (safety.md, "Timelines").
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from consensus.record import EpochStart

_HISTORY_NAME = re.compile(r"([0-9A-F]{8})\.history")
_SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")


class Switch(NamedTuple):
    """One line of a history file: ``timeline`` was left at ``lsn``."""

    timeline: int
    lsn: int


def parse_lsn(text: str) -> int:
    """``X/Y`` as an integer; ValueError for anything else."""
    high, slash, low = text.partition("/")
    if not slash or not re.fullmatch("[0-9A-Fa-f]{1,8}", high) or not re.fullmatch("[0-9A-Fa-f]{1,8}", low):
        raise ValueError(f"not an LSN: {text!r}")
    return int(high, 16) << 32 | int(low, 16)


def format_lsn(lsn: int) -> str:
    """As Postgres prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def history_name(timeline: int) -> str:
    """``0000000A.history``."""
    return f"{timeline:08X}.history"


def history_numbers(names: Iterable[str]) -> tuple[int, ...]:
    """The timelines that have a history file among these names of pg_wal, ascending."""
    return tuple(sorted(int(match[1], 16) for name in names if (match := _HISTORY_NAME.fullmatch(name))))


def parse_history(text: str) -> tuple[Switch, ...]:
    """A history file, oldest first; empty for a burned one. ValueError where Postgres would be FATAL too."""
    switches: list[Switch] = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or not words[0].isdigit():
            raise ValueError(f"not a line of a timeline history: {line!r}")
        switch = Switch(int(words[0]), parse_lsn(words[1]))
        if switches and switch.timeline <= switches[-1].timeline:
            raise ValueError(f"timelines of a history must ascend: {line!r}")
        switches.append(switch)
    return tuple(switches)


def history_text(ancestry: Sequence[EpochStart], timeline: int) -> str:
    """The real history file of ``timeline``, of an ancestry given oldest first. ValueError if it is not in there,
    is the first (which has no file), or if timelines do not ascend.
    """
    lines: list[str] = []
    for parent, child in itertools.pairwise(ancestry):
        if child.timeline <= parent.timeline or child.start_lsn < parent.start_lsn:
            raise ValueError(f"no ancestry: {parent} then {child}")
        lines.append(f"{parent.timeline}\t{format_lsn(child.start_lsn)}\tepoch {child.epoch}\n")
        if child.timeline == timeline:
            return "".join(lines)
    raise ValueError(f"timeline {timeline} is no descendant in {[start.timeline for start in ancestry]}")


def burned_text(timeline: int) -> str:
    """The file for a number nobody may use: a history without a parent.

    Tried on 15 and 18.6: Postgres skips the number as it promotes, standbys read past it ("not a child of database
    system timeline"), and a node that is left on this number is refused by our walsender and can be rewound. Left at
    a start it makes Postgres wait for WAL of that timeline for ever, so starts remove it. A parent of any number
    would be a claim about WAL; no line claims nothing, and fits 2, below which there is only ours.
    """
    return f"# timeline {timeline} was burned by pgr: nothing was ever committed on it\n"


def install_list(ancestry: Sequence[EpochStart], own: int, new: int) -> dict[str, str]:
    """Every history file, real and burned, that must lie in pg_wal right before a promotion from ``own`` to ``new``:
    name to text. Numbers up to ``own`` get their real file if they are ancestors, so that receivers that ask for every
    number in between are served; numbers between get a burned one.
    """
    if not own < new:
        raise ValueError(f"a promotion leads to a higher timeline: {own} to {new}")
    real = {start.timeline for start in ancestry[1:] if start.timeline <= own}
    return {
        history_name(number): history_text(ancestry, number) if number in real else burned_text(number)
        for number in range(2, new)
        if number != own or number in real
    }


def newest_wal_timeline(
    names: Iterable[str], lsn: int, wal_segment_bytes: int, unused: frozenset[int] = frozenset()
) -> int | None:
    """The highest timeline that has the WAL segment holding the byte before ``lsn``; None if there is none.

    ``unused``: timelines that Postgres was to switch to and that it never came to use.
    """
    suffix = segment_name(0, max(lsn - 1, 0), wal_segment_bytes)[8:]
    found = (int(name[:8], 16) for name in names if _SEGMENT_NAME.fullmatch(name) and name[8:] == suffix)
    return max((timeline for timeline in found if timeline not in unused), default=None)


def segment_name(timeline: int, lsn: int, wal_segment_bytes: int) -> str:
    """The file that holds the byte at ``lsn``."""
    number, per_log = lsn // wal_segment_bytes, (1 << 32) // wal_segment_bytes
    return f"{timeline:08X}{number // per_log:08X}{number % per_log:08X}"


def segment_start(name: str, wal_segment_bytes: int) -> int:
    """The LSN of a segment file's first byte; ValueError if it is no segment's name."""
    if not _SEGMENT_NAME.fullmatch(name):
        raise ValueError(f"not a WAL segment: {name!r}")
    return (int(name[8:16], 16) << 32) + int(name[16:24], 16) * wal_segment_bytes
