"""Power cuts, kills and failing syncs at every write of a store's life: nothing that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Sequence

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import storage
from consensus.messages import HardState, Snapshot
from consensus.record import EpochStart, NodeRecord
from consensus.storage import StorageError, Store
from consensus.tally import Tally
from consensus.write import Stored, Write
from tests import disk as disks
from tests.disk import Disk, Survivors
from tests.storagestory import (
    STORY,
    LossError,
    Moment,
    Play,
    Reopen,
    Step,
    check,
    discard,
    log,
    moments,
    reopen,
    states,
    survive,
)

EXPECTED = states(STORY)
CHOICES: dict[str, Survivors] = {
    "nothing": disks.nothing, "everything": disks.everything, "only the last": disks.only_last,
    "all but the last": disks.all_but_last, "all but the first": disks.all_but_first,
    "every second": disks.every_second, "a torn last one": disks.torn_last, "only names": disks.only_names,
    "only the log": disks.only_in("-wal"), "only the file": disks.only_in(".sqlite"),
    "all but the note": lambda pieces: [piece for piece in pieces if piece.name != disks.NOTE],
    "only the note": disks.only_in(disks.NOTE),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fold_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short story folds its write-ahead log more than once."""
    monkeypatch.setattr(storage, "FOLD_AFTER_BYTES", 100_000)


@pytest.fixture(scope="module")
def story() -> list[Moment]:
    before, storage.FOLD_AFTER_BYTES = storage.FOLD_AFTER_BYTES, 100_000
    try:
        return moments(STORY)
    finally:
        storage.FOLD_AFTER_BYTES = before


def losses(story: Sequence[Moment], choices: Sequence[Survivors]) -> int:
    """After how many power cuts something is missing or refused. The control of the controls: 0 with the real store."""
    found = 0
    for moment in story:
        for choose in choices:
            try:
                survive(moment, choose, EXPECTED)
            except (LossError, StorageError):
                found += 1
    return found


def test_the_story_is_worth_telling(story: list[Moment]) -> None:
    """It has all that a test below wants to cut: folds, new and deleted files, unsynced writes of every file."""
    assert len(story) > 150
    assert {piece.name for moment in story for piece in moment.disk.unsynced()} >= {
        disks.MAIN, disks.LOG, disks.NOTE, "raft.sqlite-journal",
    }  # fmt: skip
    folds = [m for m in story if m.saving and any(p.name == disks.MAIN for p in m.disk.unsynced())]
    assert len({moment.saved for moment in folds}) >= 2
    assert story[-1].saved == len(EXPECTED) - 1 == sum(isinstance(step, Write) for step in STORY)
    assert reopen(story[-1].disk.copy()) == EXPECTED[-1]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_power_cut_at_every_write(choice: str, story: list[Moment]) -> None:
    for moment in story:
        survive(moment, CHOICES[choice], EXPECTED)


def test_a_power_cut_that_keeps_a_random_part(story: list[Moment]) -> None:
    for number, moment in enumerate(story):
        for seed in range(4):
            survive(moment, disks.at_random(4 * number + seed), EXPECTED)


def test_a_second_power_cut_while_it_starts_again(story: list[Moment]) -> None:
    dice = random.Random(2)
    for moment in dice.sample(story, 60):
        disk = moment.disk.copy()
        disk.power_cut(disks.at_random(dice.randrange(1000)))
        found: list[Moment] = []
        disk.on_boundary = functools.partial(picture, found, moment)
        reopen(disk)
        assert found
        for again in found:
            survive(again, disks.at_random(dice.randrange(1000)), EXPECTED)


def picture(found: list[Moment], at: Moment, disk: Disk) -> None:
    found.append(Moment(disk.copy(), at.saved, at.saving))


@pytest.mark.slow
def test_many_random_parts(story: list[Moment]) -> None:
    for number, moment in enumerate(story):
        for seed in range(100):
            survive(moment, disks.at_random(1000 * number + seed), EXPECTED)


def test_a_store_that_survived_goes_on(story: list[Moment]) -> None:
    for number, moment in enumerate(story):
        disk = moment.disk.copy()
        disk.power_cut(disks.at_random(number))
        store = disk.open_store()
        state = store.load()
        term = state.hard.term + 1
        store.save(Write(HardState(term, "z", state.hard.commit, state.hard.released)))
        disk.power_cut(disks.nothing)
        discard(store)
        assert reopen(disk).hard.term == term


def test_what_a_start_has_read_is_on_disk(story: list[Moment]) -> None:
    """A process killed between write and fsync leaves a save that its successor reads, and acts upon without saving it
    again (a vote that is asked for twice). It must not be lost afterwards."""
    for moment in story:
        disk = moment.disk.copy()
        disk.kill()
        found = reopen_and_cut(disk)
        check(found, moment.saved, moment.saving, EXPECTED)


def reopen_and_cut(disk: Disk) -> Stored:
    """A start, then a power cut with the store open: LossError unless the second start reads the same."""
    store = disk.open_store()
    found = store.load()
    disk.power_cut(disks.nothing)
    discard(store)
    if reopen(disk) != found:
        raise LossError("what was read has gone")
    return found


@pytest.fixture(scope="module")
def failed_syncs() -> list[Moment]:
    before, storage.FOLD_AFTER_BYTES = storage.FOLD_AFTER_BYTES, 100_000
    try:
        return after_a_failing_sync()
    finally:
        storage.FOLD_AFTER_BYTES = before


def after_a_failing_sync() -> list[Moment]:
    """fsync fails once, and what it should have synced never arrives, as on Linux; each sync of the story in turn. What
    the process has left, after it has noticed. (Not when it was closing, where nobody is hurt: the log just stays.)"""
    whole = Disk()
    discard(Play(whole, STORY).run())
    found = []
    for number in range(whole.syncs):
        disk = Disk()
        disk.on_boundary = functools.partial(fail_sync, number)
        play = Play(disk, STORY)
        try:
            play.run()
        except StorageError:
            disk.on_boundary = None
            found.append(Moment(disk.copy(), play.saved, play.saving))  # before closing the store folds the log
            if play.store is not None:
                with pytest.raises(StorageError, match="earlier failure"):
                    play.store.save(Write())
    assert 40 < whole.syncs - 6 < len(found)
    return found


def fail_sync(number: int, disk: Disk) -> None:
    if disk.syncs == number:
        disk.failing_syncs[:] = [""]


def test_a_failing_sync_ends_it_and_loses_nothing(failed_syncs: list[Moment]) -> None:
    for number, moment in enumerate(failed_syncs):
        for choose in (disks.nothing, disks.everything, disks.at_random(number)):
            survive(moment, choose, EXPECTED)


def test_a_start_after_a_failed_sync_reads_only_what_is_on_disk(failed_syncs: list[Moment]) -> None:
    """The next process reads what never got to disk, and believes it; so it has to get it there."""
    for moment in failed_syncs:
        disk = moment.disk.copy()
        disk.kill()
        check(reopen_and_cut(disk), moment.saved, moment.saving, EXPECTED)


def test_the_power_goes_and_the_process_notices() -> None:
    """Not a picture of the disk: the very process that is cut off, at every boundary."""
    for number in range(1, 400):
        disk = Disk(cut_at=number)
        play = Play(disk, STORY)
        try:
            discard(play.run())
        except StorageError:
            assert disk.off
        except apsw.Error:  # before there was a store
            assert play.store is None
        if not disk.off:
            return
        if play.store is not None:
            discard(play.store)
        disk.power_cut(disks.at_random(number))
        check(reopen(disk), play.saved, play.saving, EXPECTED)
    raise AssertionError("the story has no end")


# -- controls: the same checks find what a worse store, or a worse disk, would lose ---------------------------------

FEW = (disks.nothing, disks.only_in("-wal"), disks.only_in(".sqlite"), disks.only_last)


def test_control_nothing_is_lost(story: list[Moment]) -> None:
    assert losses(story, FEW) == 0


def test_control_without_synchronous() -> None:
    def sabotage(store: Store) -> None:
        store._connection.execute("PRAGMA synchronous = OFF").fetchall()

    assert losses(moments(STORY, sabotage=sabotage), FEW) > 50


def test_control_synchronous_normal() -> None:
    """What some builds of SQLite do for WAL by themselves: syncs only when the log is folded."""

    def sabotage(store: Store) -> None:
        store._connection.execute("PRAGMA synchronous = NORMAL").fetchall()

    assert losses(moments(STORY, sabotage=sabotage), FEW) > 50


def test_control_a_disk_that_lies_about_syncs() -> None:
    assert losses(moments(STORY, Disk(lies=True)), FEW) > 50


def test_control_two_transactions_for_one_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "_transaction", contextlib.nullcontext)
    assert losses(moments(STORY), FEW) > 10


def lost_by_starts(story: Sequence[Moment]) -> int:
    """At how many moments a killed process is followed by one that reads what a power cut then takes away."""
    lost = 0
    for moment in story:
        disk = moment.disk.copy()
        disk.kill()
        try:
            check(reopen_and_cut(disk), moment.saved, moment.saving, EXPECTED)
        except (LossError, StorageError):
            lost += 1
    return lost


def test_control_a_start_that_only_reads(story: list[Moment], monkeypatch: pytest.MonkeyPatch) -> None:
    assert lost_by_starts(story) == 0
    monkeypatch.setattr(Store, "_fold", lambda *_: None)
    monkeypatch.setattr(Store, "_numbered", contextlib.nullcontext)
    assert lost_by_starts(story) > 3


def test_control_a_start_that_does_not_fold(failed_syncs: list[Moment], monkeypatch: pytest.MonkeyPatch) -> None:
    assert lost_by_starts(failed_syncs) == 0
    monkeypatch.setattr(Store, "_fold", lambda *_: None)
    assert lost_by_starts(failed_syncs) > 3


def test_control_a_start_that_does_not_begin_the_log_anew(
    failed_syncs: list[Moment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "_numbered", contextlib.nullcontext)
    assert lost_by_starts(failed_syncs) > 3


def test_control_a_note_that_runs_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The note is written after the save: before it, a crash between them would leave a sound store that is refused."""
    seal = Store._seal

    def early(self: Store, saves: int) -> str:
        self._tally.note(saves)
        return seal(self, saves)

    monkeypatch.setattr(Store, "_seal", early)
    assert losses(moments(STORY), (disks.everything,)) > 10


def test_control_a_note_that_is_made_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing note means an incomplete copy, so it has to be on disk before the schema is."""
    note, sync = Tally.note, Tally.sync
    monkeypatch.setattr(Tally, "note", lambda self, number: note(self, number) if number else None)
    monkeypatch.setattr(Tally, "sync", lambda self: sync(self) if self.newest() else None)
    assert losses(moments(STORY[:1]), (disks.everything,)) > 0


# -- random lives --------------------------------------------------------------------------------------------------


def next_step(state: Stored, kind: int, number: int) -> Step:
    """One of what a Raft core may ask for next, made from two numbers."""
    hard, record = state.hard, state.record
    base = state.snapshot.index if state.snapshot else 0
    last = base + len(state.entries)
    last_term = state.entries[-1].term if state.entries else state.snapshot.term if state.snapshot else 0
    match kind:
        case 0:
            return Write(HardState(hard.term + 1 + number % 3, "abc"[number % 3], hard.commit, hard.released))
        case 1:
            term = max(hard.term, last_term, 1)
            return Write(hard._replace(term=term, vote=hard.vote if hard.term == term else ""),
                         entries=log(last + 1, last + 1 + number % 9, term, 10 * number))  # fmt: skip
        case 2 if last > hard.commit:
            cut = hard.commit + 1 + number % (last - hard.commit)
            term = max(hard.term, last_term) + 1
            return Write(HardState(term, "", hard.commit, hard.released), cut, log(cut, cut + number % 3, term))
        case 3 if last > hard.commit:
            return Write(hard._replace(commit=last - number % (last - hard.commit)))
        case 4 if hard.commit > base:
            index = base + 1 + number % (hard.commit - base)
            return Write(snapshot=Snapshot(index, state.entries[index - base - 1].term, "s" * (30 * number)))
        case 5:
            index, term = last + 1 + number, max(hard.term, last_term) + 1
            return Write(HardState(term, "b", index, hard.released), snapshot=Snapshot(index, term, "{}"),
                         entries=log(index + 1, index + number % 3, term))  # fmt: skip
        case 6:
            history = (EpochStart(0, 0, 1), EpochStart(number + 1, number << 30, 2))
            return Write(record=NodeRecord(max(record.promised, hard.term), history[: number % 3], None, ""))
        case 7:
            return Write(hard._replace(released=hard.term))
        case _:
            pass
    return Reopen(killed=number % 2 == 0)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 99)), min_size=1, max_size=25), st.integers(0, 1 << 30))
def test_random_lives_and_cuts(steps: list[tuple[int, int]], seed: int) -> None:
    life: list[Step] = []
    for kind, number in steps:
        life.append(next_step(states(life)[-1], kind, number))
    expected, dice = states(life), random.Random(seed)
    found = moments(life)
    assert found[-1].saved == len(expected) - 1
    for moment in dice.sample(found, min(12, len(found))):
        left = survive(moment, disks.at_random(dice.randrange(1 << 30)), expected)
        check(reopen_and_cut(left), moment.saved, moment.saving, expected)
