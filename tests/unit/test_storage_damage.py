"""Flipped bytes, lost and emptied files, a full and a read-only disk: what was acknowledged is there, or the store is
refused. It never goes back silently."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from consensus import storage
from consensus.messages import HardState
from consensus.record import NodeRecord
from consensus.storage import StorageCorruptError, StorageError, StorageFullError, StorageNewerError, Store
from consensus.tally import Tally
from consensus.write import Write
from tests import disk as disks
from tests.disk import LOG, MAIN, NOTE, Disk
from tests.storagestory import EMPTY, STORY, LossError, Play, check, discard, log, reopen, states

EXPECTED = states(STORY)


def finished(*, closed: bool) -> Disk:
    """At the end of the story: all in the file (closed), or the newest in the write-ahead log (killed)."""
    disk = Disk()
    store = Play(disk, STORY).run()
    if closed:
        store.close()
    disk.kill()
    discard(store)
    return disk


KILLED, CLOSED = finished(closed=False), finished(closed=True)


def outcome(disk: Disk) -> str:
    """``right``, ``refused``, or ``wrong``: what must never be."""
    try:
        found = reopen(disk)
    except (StorageCorruptError, StorageNewerError):
        return "refused"
    except StorageError as error:  # one byte of the header makes a file read-only
        return "refused" if "read-only" in str(error) else str(error)
    return "right" if found == EXPECTED[-1] else "wrong"


def flipped(disk: Disk, step: int) -> Iterator[tuple[str, int, Disk]]:
    for name, content in disk.files().items():
        for offset in range(0, len(content), step):
            damaged = disk.copy()
            damaged.corrupt(name, offset, 1 << offset % 8)
            yield name, offset, damaged


# -- damage ----------------------------------------------------------------------------------------------------------


def test_both_disks_hold_what_they_should() -> None:
    assert set(KILLED.files()) == {MAIN, LOG, NOTE}
    assert set(CLOSED.files()) == {MAIN, NOTE}
    assert outcome(KILLED.copy()) == outcome(CLOSED.copy()) == "right"


@pytest.mark.parametrize("disk", [KILLED, CLOSED], ids=["killed", "closed"])
@pytest.mark.parametrize("step", [23, pytest.param(3, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_a_flipped_bit_anywhere(disk: Disk, step: int) -> None:
    found: dict[tuple[str, str], int] = {}
    for name, offset, damaged in flipped(disk, step):
        what = outcome(damaged)
        assert what in {"right", "refused"}, f"{name} at {offset}"
        found[name, what] = found.get((name, what), 0) + 1
    assert (NOTE, "refused") not in found, "damage to the note alone loses no vote"
    if disk is KILLED:  # every page of the file is in the log too
        assert found[LOG, "refused"] > 50
    else:
        assert found[MAIN, "refused"] > 10


def test_damage_to_the_structure_that_no_row_shows() -> None:
    """The number of free pages in the header: all rows can be read, and a page would be used twice later on."""
    disk = CLOSED.copy()
    disk.corrupt(MAIN, 39, 1)
    store = disk.open_store()
    with pytest.raises(StorageCorruptError, match="integrity check"):
        store.load()
    store.close()


def test_text_that_is_none() -> None:
    """apsw says so in another way than the standard library."""
    store = Disk().open_store()
    store.save(Write(entries=log(1, 3, 1)))
    store._connection.execute("UPDATE log SET data = CAST(x'ff' AS TEXT)").fetchall()
    with pytest.raises(StorageCorruptError, match="utf-8"):
        store.load()
    store.close()


def test_a_store_that_was_refused_is_refused_again() -> None:
    """Also by the next start: SQLite folds and deletes a write-ahead log even on the way out."""
    refused = 0
    for _, _, damaged in flipped(KILLED, 611):
        if outcome(damaged) == "refused":
            refused += 1
            assert outcome(damaged) == outcome(damaged) == "refused"
    assert refused > 20


def test_a_log_that_is_cut_off() -> None:
    whole = KILLED.files()[LOG]
    for size in range(0, len(whole), 241):
        disk = KILLED.copy()
        disk.put(LOG, whole[:size])
        assert outcome(disk) == "refused", size


def test_files_that_are_gone_or_empty() -> None:
    """Every combination. Only where nothing at all is left does it look like a first start."""
    seen = set()
    for main, wal, note in itertools.product(["there", "empty", "gone"], repeat=3):
        disk = KILLED.copy()
        for name, fate in ((MAIN, main), (LOG, wal), (NOTE, note)):
            if fate != "there":
                disk.put(name, b"" if fate == "empty" else None)
        if main != "there" and wal == "gone" and note != "there":
            assert reopen(disk) == EMPTY
            continue
        lost = (main, wal, note) != ("there", "there", "there")
        assert outcome(disk) == ("refused" if lost else "right"), (main, wal, note)
        seen.add((main, wal, note, lost))
    assert len(seen) == 27 - 4


@pytest.mark.parametrize("fates", [{LOG: None}, {LOG: b""}, {MAIN: b""}, {MAIN: None}, {NOTE: None}, {NOTE: b""}])
def test_what_is_refused_says_why_and_the_way_back(fates: dict[str, bytes | None]) -> None:
    disk = KILLED.copy()
    for name, content in fates.items():
        disk.put(name, content)
    files = disk.files()
    with pytest.raises(StorageCorruptError) as error:
        disk.open_store()
    assert disk.path in str(error.value)
    assert "the others go on without it" in str(error.value)
    assert "old copy" in str(error.value)
    assert "let in as a new one" in str(error.value)
    assert "move the Raft directory away" in str(error.value)
    if MAIN in fates:
        assert disk.files() == files, "SQLite must not get at the log: it would delete it"


def test_a_copy_of_the_file_alone() -> None:
    """Of a store that runs: all that was saved since the last fold is in the log."""
    for saved in range(len(EXPECTED)):
        disk = Disk()
        store = Play(disk, [step for step in STORY if isinstance(step, Write)][:saved]).run()
        copy = Disk()
        copy.put(MAIN, disk.files()[MAIN])
        with pytest.raises(StorageCorruptError, match="incomplete copy"):
            copy.open_store()
        discard(store)


def test_a_copy_of_the_file_alone_after_a_start_that_died_early() -> None:
    """The first start died between creating the schema and folding it; the second saves before it loads."""
    disk = Disk()
    disk.on_boundary = lambda now: setattr(now, "cut_at", now.boundaries if now.unsynced_in(LOG) > 12288 else None)
    with pytest.raises(StorageError):
        disk.open_store()
    disk.on_boundary = None
    disk.power_cut(disks.everything)
    assert len(disk.files()[MAIN]) == 4096, "no schema in it"
    store = disk.open_store()
    assert store._saves == 1, "it was created"
    store.save(Write(HardState(3, "a")))
    copy = Disk()
    copy.put(MAIN, disk.files()[MAIN])
    with pytest.raises(StorageCorruptError, match="incomplete copy"):
        copy.open_store()
    discard(store)


def test_a_fold_brings_the_note_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FOLD_AFTER_BYTES", 200_000)
    disk = Disk()
    store = disk.open_store()
    first = Tally(disks.Note(disk)).newest()
    for term in range(1, 30):
        store.save(Write(HardState(term)))
    assert Tally(disks.Note(disk)).newest() == (first or 0) + 29
    disk.power_cut(disks.nothing)
    discard(store)
    assert (Tally(disks.Note(disk)).newest() or 0) > (first or 0) + 10


def test_a_file_of_before_with_the_log_of_now() -> None:
    """An old copy of one file put back beside the others."""
    disk = Disk()
    store = Play(disk, STORY[:6]).run()
    store.close()
    old = disk.files()
    disk = CLOSED.copy()
    disk.put(MAIN, old[MAIN])
    assert outcome(disk) == "refused"
    disk = KILLED.copy()
    disk.put(NOTE, old[NOTE])
    assert outcome(disk) == "right"


# -- limits, as the docstrings state them ----------------------------------------------------------------------------


def test_limit_a_complete_old_copy_is_not_noticed() -> None:
    disk = Disk()
    store = Play(disk, STORY[:6]).run()
    store.close()
    assert reopen(disk) == EXPECTED[6]


def test_limit_damage_to_the_log_together_with_a_power_cut() -> None:
    """The note of the newest saves was not yet on disk. Only the loss of the whole log is noticed even so."""
    disk = Disk()
    store = disk.open_store()
    store.save(Write(HardState(5, "a")))
    store.save(Write(HardState(6, "b")))
    disk.power_cut(disks.nothing)
    discard(store)
    assert reopen(disk.copy()).hard == HardState(6, "b")
    last = len(disk.files()[LOG]) - 1
    disk.corrupt(LOG, last)
    assert reopen(disk.copy()).hard == HardState(5, "a")
    disk.put(LOG, None)
    with pytest.raises(StorageCorruptError, match="is lost or damaged"):
        reopen(disk.copy())


# -- a disk that fills up, or is read-only ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1531, pytest.param(97, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_any_point(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FOLD_AFTER_BYTES", 60_000)
    where = set()
    for room in itertools.count(0, step):
        disk = Disk(full_after_bytes=room)
        play = Play(disk, STORY)
        try:
            discard(play.run())
            break
        except StorageFullError:
            where.add(play.saved if play.store is not None else -1)
        if play.store is not None:
            assert play.store.load() == EXPECTED[play.saved]
            with pytest.raises(StorageFullError, match="no room"):
                play.run()
        disk.full_after_bytes = None
        for choose in (disks.everything, disks.nothing):
            left = disk.copy()
            left.power_cut(choose)
            check(reopen(left), play.saved, play.saving, EXPECTED)
        store = play.run()  # there is room again, and the same store goes on
        assert store.load() == EXPECTED[-1]
        store.close()
        assert reopen(disk) == EXPECTED[-1]
    assert -1 in where, "full at a first start"
    assert len(where) >= 4


def test_a_full_disk_at_a_restart_loses_nothing() -> None:
    whole = Disk()
    store = whole.open_store()
    store.save(Write(entries=log(1, 50, 1, 3000)))
    whole.kill()
    discard(store)
    refused = 0
    for room in range(0, 300_000, 10_000):
        disk = whole.copy()
        disk.full_after_bytes = room
        try:
            assert len(reopen(disk).entries) == 50
        except StorageFullError:
            refused += 1
        disk.full_after_bytes = None
        assert len(reopen(disk).entries) == 50
    assert 5 < refused < 25


def test_a_disk_that_becomes_read_only() -> None:
    for saved in range(len(EXPECTED) - 1):
        disk = Disk()
        writes = [step for step in STORY if isinstance(step, Write)]
        play = Play(disk, writes[:saved])
        store = play.run()
        disk.read_only = True
        with pytest.raises(StorageError, match="read-only") as error:
            store.save(writes[saved])
        assert not isinstance(error.value, StorageFullError | StorageCorruptError)
        with pytest.raises(StorageError, match="earlier failure"):
            store.save(writes[saved])
        assert store.load() == EXPECTED[saved]
        disk.kill()
        discard(store)
        with pytest.raises(StorageError, match="read-only") as error:
            reopen(disk)
        assert error.value.exit_code == 74
        disk.read_only = False
        assert reopen(disk) == EXPECTED[saved]


def test_a_note_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The save is on disk, its number is not: no further one, or the note would lag behind unnoticed."""
    disk = Disk()
    store = disk.open_store()

    def no_space(self: Tally, number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Tally, "note", no_space)
        with pytest.raises(StorageError, match=r"raft\.sqlite-saves: No space") as error:
            store.save(Write(HardState(1)))
    assert not isinstance(error.value, StorageFullError), "it was saved"
    with pytest.raises(StorageError, match="earlier failure"):
        store.save(Write(HardState(2)))
    disk.kill()
    discard(store)
    assert reopen(disk).hard == HardState(1)


def test_a_second_opener() -> None:
    disk = KILLED.copy()
    store = disk.open_store()
    with pytest.raises(storage.StorageBusyError):
        disk.open_store()
    store.save(Write(HardState(9, "z", 42, 3)))
    disk.kill()
    discard(store)
    assert reopen(disk).hard.term == 9


def test_a_promise_is_never_taken_back() -> None:
    store = Disk().open_store()
    store.save(Write(record=NodeRecord(7)))
    for write in (Write(record=NodeRecord(6)), Write(identity=EXPECTED[-1].identity, record=NodeRecord(6))):
        with pytest.raises(ValueError, match="promise 7 cannot become 6"):
            store.save(write)
    store.close()


# -- controls: what slips through without each of the protections ----------------------------------------------------


def test_control_without_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    for hashed in (True, False):
        with monkeypatch.context() as patch:
            if not hashed:
                patch.setattr(storage, "_hash", lambda name, plain: b"")
            disk = finished(closed=True)
            at = disk.files()[MAIN].index(b'"term":6')
            disk.corrupt(MAIN, at + 7, 1)
            if hashed:
                assert outcome(disk) == "refused"
            else:
                assert reopen(disk).hard.term == 7


def test_control_without_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tally, "newest", lambda self: 0)
    assert sum(outcome(damaged) == "wrong" for _, _, damaged in flipped(KILLED, 211)) > 5
    disk = KILLED.copy()
    disk.put(LOG, None)
    assert outcome(disk) == "wrong"


def test_control_without_the_check_for_an_orphaned_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "refuse_orphaned_log", lambda *_, **__: None)
    disk = KILLED.copy()
    disk.put(MAIN, b"")
    disk.put(NOTE, None)
    assert reopen(disk) == EMPTY


def test_control_without_the_fold_of_a_first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema is only in the log then, and a copy of the file alone looks like a new store."""
    monkeypatch.setattr(Store, "_fold", lambda *_: None)
    disk = Disk()
    store = Play(disk, STORY[:6]).run()
    copy = Disk()
    copy.put(MAIN, disk.files()[MAIN])
    assert reopen(copy) == EMPTY
    discard(store)


def test_control_without_the_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_term = "DELETE FROM facts WHERE name = 'hard'"
    for sealed in (True, False):
        disk = Disk()
        with monkeypatch.context() as patch:
            if not sealed:
                patch.setattr(Store, "_seal", lambda self, saves: f"{saves}")
            store = Play(disk, STORY[:4]).run()
            store._connection.execute(forget_term).fetchall()
            store.close()
            if sealed:
                with pytest.raises(StorageCorruptError, match="not what save"):
                    disk.open_store()
            else:
                assert reopen(disk).hard == HardState()


def test_control_the_check_itself() -> None:
    with pytest.raises(LossError):
        check(EXPECTED[4], 5, True, EXPECTED)
    with pytest.raises(LossError):
        check(EXPECTED[6], 5, False, EXPECTED)
    check(EXPECTED[6], 5, True, EXPECTED)
