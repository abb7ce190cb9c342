"""What of its WAL a rewound node would lose, and how it is kept: exactly that, complete or not at all, once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.cluster import ClusterState, canonical
from consensus.history import HistoryEvent
from consensus.positions import Ancestry
from consensus.record import EpochStart, NodeRecord
from fencing.lease import MS
from supervisor import jobs, salvage
from supervisor.context import Context
from supervisor.salvage import Piece, command, describe, fork, pieces, to_keep, too_many
from supervisor.tasks import Task

ZERO, ONE, THREE = EpochStart(0, 0, 1), EpochStart(1, 100, 2), EpochStart(3, 200, 4)
PRIMARY = (ZERO, ONE, THREE)


@pytest.mark.parametrize(
    ("history", "end", "lost"),
    [
        ((ZERO, ONE), 250, [(2, 200, 250)]),
        ((ZERO, ONE), 200, []),
        ((ZERO,), 150, [(1, 100, 150)]),
        ((ZERO, EpochStart(2, 90, 3)), 130, [(3, 90, 130)]),  # it left the common WAL before the primary did
        ((ZERO, EpochStart(2, 120, 3)), 130, [(1, 100, 120), (3, 120, 130)]),
        ((ZERO, EpochStart(2, 120, 3), EpochStart(4, 110, 5)), 130, [(1, 100, 110), (5, 110, 130)]),  # 2 never wrote
        ((EpochStart(0, 0, 9),), 50, [(9, 0, 50)]),  # nothing in common
        (PRIMARY, 250, [(4, 200, 250)]),  # Postgres says they part, and nobody knows where
        ((), 50, []),
    ],
)
def test_what_the_primary_does_not_have(history: Ancestry, end: int, lost: list[tuple[int, int, int]]) -> None:
    assert pieces(PRIMARY, history, end) == tuple(Piece(*p) for p in lost)


def spelled(history: Ancestry, end: int) -> list[int]:
    """Timeline of each byte of WAL."""
    out = [0] * end
    for epoch in history:
        out[epoch.start_lsn :] = [epoch.timeline] * max(0, end - epoch.start_lsn)
    return out


@st.composite
def histories(draw: st.DrawFn) -> tuple[Ancestry, Ancestry, int]:
    """Two that part somewhere (timelines are given out once), and how far the second one's WAL goes."""
    shared = [ZERO]
    for epoch in range(1, draw(st.integers(1, 3))):
        shared.append(EpochStart(epoch, shared[-1].start_lsn + draw(st.integers(1, 5)), epoch + 1))
    sides: list[list[EpochStart]] = [[], []]
    for side, number in ((0, 10), (1, 20)):
        at = shared[-1].start_lsn
        for i in range(draw(st.integers(0, 2))):
            at += draw(st.integers(1, 5))
            sides[side].append(EpochStart(number + i, at, number + i))
    return (*shared, *sides[0]), (*shared, *sides[1]), draw(st.integers(0, 30))


@given(histories())
def test_it_is_what_a_comparison_byte_by_byte_shows(made: tuple[Ancestry, Ancestry, int]) -> None:
    ancestry, history, end = made
    mine, theirs = spelled(history, end), spelled(ancestry, 40)
    parts = pieces(ancestry, history, end)
    got = [lsn for p in parts for lsn in range(p.start_lsn, p.end_lsn)]
    differs = [lsn for lsn in range(end) if mine[lsn] != theirs[lsn]]
    own = history[-1] not in ancestry or ancestry[-1] != history[-1]
    if own:
        assert set(differs) <= set(got), "not one byte that the primary lacks is forgotten"
    assert all(mine[p.start_lsn] == p.timeline for p in parts), "and each is found where it is said to be"
    at, _ = fork(ancestry, history)
    assert not [lsn for lsn in got if lsn < at]


SEGMENT = 16 << 20
NAMES = ["000000010000000000000001", "000000010000000000000002", "000000020000000000000002", "00000002.history", "x"]


@pytest.mark.parametrize(
    ("at", "timeline", "kept"),
    [
        (2 * SEGMENT, 1, NAMES[1:3]),
        (2 * SEGMENT - 1, 1, NAMES[:3]),
        (2 * SEGMENT + 5, 2, NAMES[2:3]),
        (3 * SEGMENT, 1, []),
        (0, 0, NAMES[:3]),
    ],
)
def test_the_segments_that_hold_any_of_it(at: int, timeline: int, kept: list[str]) -> None:
    assert to_keep(list(reversed(NAMES)), at, timeline, SEGMENT) == kept


def test_the_command_shows_all_pieces_of_any_path() -> None:
    shown = command(Path("/a b/x"), [Piece(1, 100, 120), Piece(3, 120, 130)])
    assert shown == (
        "pg_waldump --path='/a b/x' --timeline=1 --start=0/64 --end=0/78"
        " && pg_waldump --path='/a b/x' --timeline=3 --start=0/78 --end=0/82"
    )
    assert command(Path("/x"), []).startswith("pg_waldump --path=/x")


def test_the_line_of_the_history() -> None:
    said = describe("b", "t", "a", Path("/s"), (Piece(2, 200, 250),))
    assert (said.bytes_salvaged, said.first, said.last, said.timelines) == (50, "0/C8", "0/FA", (2,))
    assert said.text == (
        "saved 50 bytes of WAL that a does not have, 0/C8 to 0/FA on timeline 2, before they go; "
        "read them with: pg_waldump --path=/s --timeline=2 --start=0/C8 --end=0/FA"
    )
    assert "0 bytes" in describe("b", "t", "a", Path("/s"), ()).text


def test_the_oldest_beyond_the_bound_go_and_never_the_last_one() -> None:
    names = ["3-wal", "1-wal", "2-wal", "0-pgdata-replaced", "0-wal.part"]
    assert too_many(names, 2) == ["1-wal"]
    assert too_many(names, 3) == []


# -- on a disk ---------------------------------------------------------------------------------------------------------


class Here:
    """As much of a Context as a salvage touches; what is said to the Raft child is kept."""

    def __init__(self, home: Path) -> None:
        self.told: list[dict[str, Any]] = []
        self.removed: list[str] = []
        wal = home / "pg_wal"
        wal.mkdir()
        for number, name in enumerate(NAMES[:3]):
            (wal / name).write_bytes(bytes([number]) * 100)
        self.c = SimpleNamespace(
            config=SimpleNamespace(salvage_dir=home / "salvage"), postgres=SimpleNamespace(wal_dir=wal),
            record=NodeRecord(5, (ZERO, EpochStart(1, 2 * SEGMENT, 2))), facts=SimpleNamespace(lsn=2 * SEGMENT + 100),
            local=SimpleNamespace(me="b"), view=SimpleNamespace(term=7), wal_segment_bytes=SEGMENT, children=None,
            cluster=ClusterState(), log=SimpleNamespace(info=lambda *_, **__: None, warning=lambda *_, **__: None),
            raft=SimpleNamespace(tell=lambda _, body: self.told.append(body["body"])),
        )  # fmt: skip

    @property
    def context(self) -> Context:
        return cast(Context, self.c)

    def save(self) -> salvage.Salvage:
        ancestry = (ZERO, EpochStart(2, 2 * SEGMENT, 3))
        return cast(salvage.Salvage, through(salvage.save_wal(self.context, ancestry, "a")))


def through(task: Task[Any]) -> Any:
    try:
        while True:
            next(task)
    except StopIteration as end:
        return end.value


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    made = Here(tmp_path)

    def run_job(argv: list[str], _: object) -> Task[None]:
        assert argv[:2] == ["rm", "-rf"]
        made.removed.append(Path(argv[2]).name)
        shutil.rmtree(argv[2])
        return
        yield

    monkeypatch.setattr(jobs, "run_job", run_job)
    return made


def test_what_is_saved_says_what_it_is(here: Here) -> None:
    saved = here.save()
    place = Path(saved.place)
    assert saved.bytes_salvaged == 100
    assert sorted(p.name for p in place.iterdir()) == [*NAMES[1:3], "salvage.json"]
    assert (place / NAMES[2]).read_bytes() == bytes([2]) * 100
    body = json.loads((place / "salvage.json").read_text())
    assert (body["node"], body["primary"], body["command"]) == ("b", "a", saved.command)
    assert not list(place.parent.glob("*.part"))


def test_a_second_attempt_at_the_same_rewind_finds_it(here: Here) -> None:
    first = here.save()
    assert here.save() == first
    here.c.facts = SimpleNamespace(lsn=2 * SEGMENT + 120)
    assert here.save() != first, "there is more now"
    (Path(first.place) / "salvage.json").write_text("{")
    assert here.save() != first


def test_what_an_attempt_left_unfinished_is_made_anew(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copy2", full)
        with pytest.raises(OSError, match="No space"):
            here.save()
    assert [p.name for p in here.c.config.salvage_dir.iterdir() if not p.name.endswith(".part")] == []
    here.save()
    assert len(here.removed) == 1
    assert here.removed[0].endswith("-wal.part")


@pytest.mark.parametrize(("config", "count", "removed"), [({}, 10, 1), ({}, 9, 0), ({"salvage_keep": 3}, 6, 4)])
def test_only_so_many_are_kept(here: Here, config: dict[str, Any], count: int, removed: int) -> None:
    here.c.cluster = replace(ClusterState(), config=canonical(config))
    kept = here.c.config.salvage_dir
    kept.mkdir()
    for number in range(count):
        (kept / f"2000010{number}T000000Z-wal").mkdir()
    (kept / "20000101T000000Z-pgdata-replaced").mkdir()
    saved = here.save()
    assert here.removed == [f"2000010{number}T000000Z-wal" for number in range(removed)]
    assert Path(saved.place).exists()
    assert (kept / "20000101T000000Z-pgdata-replaced").exists()


def test_the_newest_stays_though_the_clock_has_stepped_back(here: Here) -> None:
    here.c.cluster = replace(ClusterState(), config=canonical({"salvage_keep": 1}))
    kept = here.c.config.salvage_dir
    kept.mkdir()
    (kept / "29990101T000000Z-wal").mkdir()
    saved = here.save()
    assert here.removed == ["29990101T000000Z-wal"]
    assert Path(saved.place).exists()


def test_the_history_is_told_until_it_has_the_line(here: Here) -> None:
    saved = here.save()
    task = salvage.tell(here.context, saved)
    next(task)
    assert here.told[0]["kind"] == "salvaged"
    assert here.told[0]["fields"]["command"] == saved.command
    event = HistoryEvent("t", "salvaged", 7, "b", saved.text, canonical(here.told[0]["fields"]))
    here.c.cluster = replace(ClusterState(), history=(event,))
    through(task)
    assert len(here.told) == 1
    through(salvage.tell(here.context, saved))
    assert len(here.told) == 1, "not a second time"


def test_without_a_leader_the_line_is_not_waited_for_for_ever(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    clock: list[int] = [0]
    now: Callable[[], int] = lambda: clock[0]  # noqa: E731  # it is patched in
    monkeypatch.setattr(salvage, "now_ns", now)
    task = salvage.tell(here.context, here.save())
    for _ in task:
        clock[0] += salvage.ANEW_MS * MS
    assert len(here.told) == salvage.TELL_MS // salvage.ANEW_MS
