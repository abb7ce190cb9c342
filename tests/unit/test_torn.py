"""A torn record that reaches into the next segment is made no record before another timeline is followed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consensus.cluster import Grant
from consensus.positions import Ancestry
from consensus.record import EpochStart, Position
from supervisor.context import StepFailed
from supervisor.postgres import StopMode
from supervisor.steps import Steps
from supervisor.torn import HEADER_BYTES, PAGE_BYTES, blank, reaches_beyond, torn_record

SEGMENT = 16 << 20
END = 5 * SEGMENT + 0xFA58B8
NAME = "000000040000000000000005"


@pytest.mark.parametrize(
    ("length", "offset", "beyond"),
    [
        (0, SEGMENT - 8, False),
        (60, 0x1000, False),
        (1_000_100, 0xFA58B8, True),
        (SEGMENT, 0x1000, True),
        (60, SEGMENT - 56, True),
        (300_000, SEGMENT - 300_500, True),
        (300_000, SEGMENT - 320_000, False),
    ],
)
def test_what_reaches_into_the_next_segment(length: int, offset: int, beyond: bool) -> None:
    assert reaches_beyond(length, 7 * SEGMENT + offset, SEGMENT) is beyond


def segment(tmp_path: Path, lsn: int, length: int) -> Path:
    path = tmp_path / NAME
    with path.open("wb") as file:
        file.truncate(SEGMENT)
        os.pwrite(file.fileno(), length.to_bytes(4, "little") + b"rest", lsn % SEGMENT)
    return path


def test_it_is_found_and_then_is_not_there_any_more(tmp_path: Path) -> None:
    path = segment(tmp_path, END, 1_000_100)
    found = torn_record(tmp_path, 4, END, SEGMENT)
    assert found == (path, END % SEGMENT)
    blank(*found)
    assert torn_record(tmp_path, 4, END, SEGMENT) is None
    assert path.stat().st_size == SEGMENT


def test_at_the_beginning_of_a_page_it_comes_after_the_header(tmp_path: Path) -> None:
    lsn = 5 * SEGMENT + SEGMENT - 2 * PAGE_BYTES
    path = segment(tmp_path, lsn + HEADER_BYTES, 100_000)
    assert torn_record(tmp_path, 4, lsn, SEGMENT) == (path, lsn % SEGMENT + HEADER_BYTES)


def test_where_a_segment_ends_nothing_is_torn(tmp_path: Path) -> None:
    segment(tmp_path, END, 1_000_100)
    assert torn_record(tmp_path, 4, 6 * SEGMENT, SEGMENT) is None


ON_4, ON_5 = EpochStart(2, 4 * SEGMENT, 4), EpochStart(3, END, 5)


@pytest.mark.parametrize(
    ("ancestry", "restarted"),
    [
        ((ON_4, ON_5), True),
        ((ON_4, ON_5._replace(start_lsn=END + 8)), False),
        ((ON_4,), False),
    ],
    ids=["it begins where the next timeline does", "both have it", "there is only this timeline"],
)
def test_who_is_restarted_before_it_follows(tmp_path: Path, ancestry: Ancestry, restarted: bool) -> None:
    segment(tmp_path, END, 1_000_100)
    stopped: list[StopMode] = []
    context: Any = SimpleNamespace(
        postgres=SimpleNamespace(wal_dir=tmp_path), wal_segment_bytes=SEGMENT,
        record=SimpleNamespace(history=()), cluster=SimpleNamespace(grants=()), local=SimpleNamespace(me="a"),
        log=SimpleNamespace(warning=lambda *_, **__: None),
        need_postmaster=lambda: SimpleNamespace(stop=stopped.append),
    )  # fmt: skip
    steps, grant = Steps(context), Grant(4, "c", Position(3, END), ancestry[-1].timeline, ancestry)
    with pytest.raises(StepFailed, match="torn") if restarted else contextlib.nullcontext():
        steps._forget_torn_record(grant, END)
    assert stopped == [StopMode.FAST] * restarted
    if restarted:
        steps._forget_torn_record(grant, END)
        assert len(stopped) == 1, "once"
