"""The store: what is saved comes back, what must not be is refused, what was changed behind its back is noticed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from consensus.messages import Entry, HardState, Snapshot
from consensus.record import EpochStart, Identity, NodeRecord, Position
from consensus.storage import (
    FOLD_AFTER_BYTES,
    StorageBusyError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
    StorageNewerError,
    Store,
    open_store,
)
from consensus.tally import PlainFile, Tally
from consensus.write import Stored, Write

ME = Identity("a", 77)


def entries(first: int, last: int, term: int = 1) -> tuple[Entry, ...]:
    return tuple(Entry(index, term, "noop/1", f'{{"n":{index}}}') for index in range(first, last + 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "raft" / "raft.sqlite"


def save(path: Path, *writes: Write) -> None:
    store = open_store(path)
    try:
        for write in writes:
            store.save(write)
    finally:
        store.close()


def load(path: Path) -> Stored:
    store = open_store(path)
    try:
        return store.load()
    finally:
        store.close()


def test_empty(path: Path) -> None:
    assert load(path) == Stored(None, HardState(), None, (), NodeRecord())


def test_everything_comes_back(path: Path) -> None:
    hard = HardState(3, "b", 2, 1)
    record = NodeRecord(3, (EpochStart(0, 0, 1), EpochStart(3, 1 << 40, 2)), Position(3, 1 << 41), "clone")
    identity = Identity("a", (1 << 63) - 1, "ab" * 16, '{"é":"\\u0000"}')
    save(path, Write(hard, None, entries(1, 5), None, record, identity))
    assert load(path) == Stored(identity, hard, None, entries(1, 5), record)
    save(path, Write())
    assert load(path) == Stored(identity, hard, None, entries(1, 5), record)


def test_truncate_and_append_in_one(path: Path) -> None:
    save(path, Write(entries=entries(1, 5)), Write(truncate_from=3, entries=entries(3, 4, term=2)))
    assert load(path).entries == entries(1, 2) + entries(3, 4, term=2)


def test_snapshot_replaces_the_beginning(path: Path) -> None:
    snapshot = Snapshot(3, 1, "{}")
    save(path, Write(entries=entries(1, 5)), Write(snapshot=snapshot))
    assert (load(path).snapshot, load(path).entries) == (snapshot, entries(4, 5))
    save(path, Write(entries=entries(6, 7), snapshot=Snapshot(6, 1, "[]")))
    assert (load(path).snapshot, load(path).entries) == (Snapshot(6, 1, "[]"), entries(7, 7))


def test_snapshot_from_a_leader_beyond_the_log(path: Path) -> None:
    save(path, Write(entries=entries(1, 5)))
    save(path, Write(HardState(2, "", 101), snapshot=Snapshot(100, 2, "{}"), entries=entries(101, 101, 2)))
    assert load(path).entries == entries(101, 101, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        Write(entries=entries(7, 7)), Write(entries=entries(5, 5)), Write(entries=entries(6, 6) + entries(8, 8)),
        Write(truncate_from=2), Write(truncate_from=5, entries=entries(6, 6)), Write(HardState(1)),
        Write(HardState(2, "c")),
        Write(HardState(2)), Write(HardState(3, "b", 6)), Write(HardState(3, "b", 3, 0)), Write(record=NodeRecord(1)),
        # Each wrong in nothing else, so that no other check can step in.
        Write(HardState(1, "b", 2, 1)), Write(HardState(2, "c", 2, 1)), Write(HardState(2, "", 2, 1)),
        Write(HardState(3, "b", 6, 1)), Write(HardState(3, "b", 2, 0)), Write(HardState(1 << 63, "b", 2, 1)),
        Write(HardState(3), entries=(Entry(6, 1, "x", 5),)),  # type: ignore[arg-type]
        Write(HardState(3), entries=(Entry(True, 1, "x", ""),)), Write(HardState(1 << 63)),
    ],
)  # fmt: skip
def test_what_no_correct_core_asks_for(wrong: Write, path: Path) -> None:
    save(path, Write(HardState(2, "b", 2, 1), entries=entries(1, 5), record=NodeRecord(2)))
    before = load(path)
    with pytest.raises(ValueError):  # noqa: PT011
        save(path, wrong)
    assert load(path) == before


def test_an_older_snapshot(path: Path) -> None:
    save(path, Write(snapshot=Snapshot(5, 1, "{}")))
    with pytest.raises(ValueError, match="older"):
        save(path, Write(snapshot=Snapshot(4, 1, "{}")))


def test_modes(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    store = open_store(path)
    store.save(Write(identity=ME))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
    names = sorted(each.name for each in path.parent.iterdir())
    assert names == ["raft.sqlite", "raft.sqlite-saves", "raft.sqlite-wal"]  # no -shm
    store.close()
    path.chmod(0o644)
    open_store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_settings(path: Path) -> None:
    store = open_store(path)
    ask = store._connection.execute
    assert ask("PRAGMA synchronous").fetchone() == (2,)
    assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ask("PRAGMA locking_mode").fetchone() == ("exclusive",)
    assert ask("PRAGMA wal_autocheckpoint").fetchone() == (0,)
    assert ask("PRAGMA journal_size_limit").fetchone() == (FOLD_AFTER_BYTES,)
    assert ask("PRAGMA cell_size_check").fetchone() == (1,)
    store.close()


def test_a_connection_that_cannot_be_durable() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with pytest.raises(StorageError, match="no write-ahead log here") as error:
        Store(connection, Tally(PlainFile(Path("/nowhere/raft.sqlite-saves"))))
    assert error.value.exit_code == 74
    connection.close()


def test_a_log_that_ends_before_the_commit_index(path: Path) -> None:
    """As a mistake of ours would leave it, sealed and all."""
    store = open_store(path)
    store.save(Write(HardState(2, "b", 5), entries=entries(1, 5)))
    store._connection.execute('DELETE FROM log WHERE "index" = 5').fetchall()
    store.save(Write())
    store.close()
    with pytest.raises(StorageCorruptError, match="before the commit index 5"):
        load(path)


def test_the_newest_entries_are_missed_before_they_are_committed(path: Path) -> None:
    """The leader has been told that they are here, and may count on them."""
    save(path, Write(HardState(2, "b", 3), entries=entries(1, 6)))
    change(path, 'DELETE FROM log WHERE "index" = 6')
    with pytest.raises(StorageCorruptError, match="not what save"):
        load(path)


def test_a_log_that_cannot_be_folded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says so in a row, not as an error."""

    class Cursor:
        def fetchall(self) -> list[tuple[int, int, int]]:
            return [(1, 5, 0)]

    class Connection:
        in_transaction = False

        def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> Cursor:
            assert "wal_checkpoint" in sql
            return Cursor()

    store = open_store(path)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_connection", Connection())
        patch.setattr(store, "_unfolded_bytes", FOLD_AFTER_BYTES)
        with pytest.raises(StorageError, match="cannot be folded"):
            store.save(Write(HardState(1)))
    store.close()
    assert load(path).hard == HardState()


def test_a_log_whose_terms_go_down(path: Path) -> None:
    save(path, Write(entries=(*entries(1, 2, term=3), *entries(3, 3, term=2))))
    with pytest.raises(StorageCorruptError, match="lower term"):
        load(path)


def test_an_orphaned_log_is_left_alone(path: Path) -> None:
    """SQLite would delete it."""
    store = open_store(path)
    store.save(Write(HardState(4, "a")))
    log = path.with_name("raft.sqlite-wal")
    whole = log.read_bytes()
    store.close()
    for leave in (True, False):
        path.write_bytes(b"")
        if not leave:
            path.unlink()
        path.with_name("raft.sqlite-saves").unlink(missing_ok=True)
        log.write_bytes(whole)
        with pytest.raises(StorageCorruptError, match="its write-ahead log is there"):
            open_store(path)
        assert log.read_bytes() == whole


def test_new_names_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again at each start, because the one before may have died in between."""
    path = tmp_path / "one" / "two" / "raft.sqlite"
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    open_store(path).close()
    note = str(path.with_name("raft.sqlite-saves"))
    assert set(synced) == {str(tmp_path), str(tmp_path / "one"), str(tmp_path / "one" / "two"), note}
    assert synced.count(str(path.parent)) >= 3, "after the file was made, and each time the note is synced"
    synced.clear()
    store = open_store(path)
    assert set(synced) == {str(tmp_path / "one"), str(tmp_path / "one" / "two")}
    store.load()
    assert note in synced
    store.close()


def test_no_room_for_the_note(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(self: Tally) -> None:
        raise OSError(28, "No space left on device", "the-note")

    monkeypatch.setattr(Tally, "sync", no_space)
    with pytest.raises(StorageFullError, match="the-note: no room"):
        open_store(path)


def test_a_log_that_has_lost_its_beginning(path: Path) -> None:
    store = open_store(path)
    store.save(Write(entries=entries(1, 6), snapshot=Snapshot(3, 1, "{}")))
    store._connection.execute('DELETE FROM log WHERE "index" = 4').fetchall()
    with pytest.raises(ValueError, match="would begin at 5 after a snapshot at 3"):
        store.save(Write(entries=entries(7, 7)))
    store.close()


def test_damage_found_by_a_save_ends_it(path: Path) -> None:
    store = open_store(path)
    store.save(Write(HardState(2, "b")))
    store._connection.execute("UPDATE facts SET json = replace(json, '2', '1') WHERE name = 'hard'").fetchall()
    with pytest.raises(StorageCorruptError):
        store.save(Write(HardState(3)))
    with pytest.raises(StorageError, match="earlier failure"):
        store.save(Write(identity=ME))
    store.close()


def test_second_opener_in_one_process(path: Path) -> None:
    store = open_store(path)
    with pytest.raises(StorageBusyError, match="another process"):
        open_store(path)
    store.save(Write(identity=ME))
    store.close()
    assert load(path).identity == ME


@pytest.mark.parametrize(
    "statement", ["PRAGMA user_version = 220", "PRAGMA user_version = 0", "ALTER TABLE log RENAME COLUMN data TO dat"]
)  # fmt: skip
def test_what_no_version_of_pgr_writes_is_damage(path: Path, statement: str) -> None:
    """Flipped bits in the header or in the schema; found by tests/sim, seeds 10227, 12051 and 4788."""
    save(path, Write(identity=ME))
    change(path, statement)
    with pytest.raises(StorageCorruptError, match="is damaged"):
        load(path)


def test_newer_and_foreign_files(path: Path) -> None:
    save(path, Write(identity=ME))
    store = open_store(path)
    with store._numbered():
        store._put("schema", "2")
    store.close()
    change(path, "PRAGMA user_version = 2")
    with pytest.raises(StorageNewerError, match="newer"):
        open_store(path)
    change(path, "PRAGMA application_id = 5")
    with pytest.raises(StorageCorruptError, match="other program"):
        open_store(path)


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement).fetchall()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        'DELETE FROM log WHERE "index" = 5', 'DELETE FROM log WHERE "index" = 4',
        'UPDATE log SET term = 9 WHERE "index" = 5',
        "UPDATE log SET data = data || ' '", "UPDATE log SET kind = x'00'", "UPDATE log SET data = CAST(x'ff' AS TEXT)",
        "UPDATE facts SET json = replace(json, '2', '1') WHERE name = 'hard'",
        "UPDATE facts SET json = '{' WHERE name = 'record'", "UPDATE facts SET hash = x'' WHERE name = 'identity'",
        "UPDATE facts SET json = CAST(json AS BLOB) WHERE name = 'hard'",
        "DELETE FROM facts WHERE name = 'hard'", "DELETE FROM facts WHERE name = 'record'",
        "DELETE FROM facts WHERE name = 'identity'", "DELETE FROM facts WHERE name = 'saves'",
        'DELETE FROM log WHERE "index" >= 4', "UPDATE facts SET hash = 5 WHERE name = 'hard'",
        "DELETE FROM facts WHERE name = 'snapshot'", "UPDATE facts SET json = '2' WHERE name = 'snapshot.index'",
        "UPDATE log SET \"index\" = 60 WHERE \"index\" = 6",
    ],
)  # fmt: skip
def test_changes_behind_its_back(statement: str, path: Path) -> None:
    save(path, Write(HardState(2, "b", 6), None, entries(1, 6), Snapshot(3, 1, "{}"), NodeRecord(2), ME))
    assert load(path).entries == entries(4, 6)
    change(path, statement)
    with pytest.raises(StorageCorruptError) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "the others go on without it" in str(error.value)
    assert error.value.exit_code == 74


def test_damaged_pages(path: Path, tmp_path: Path) -> None:
    long = tuple(Entry(index, 1, "x/1", "y" * 500) for index in range(1, 60))
    save(path, Write(HardState(2, "b", 6), None, long, None, NodeRecord(2), ME))
    whole = path.read_bytes()
    pages = len(whole) // 4096
    for page in range(pages):
        damaged = bytearray(whole)
        damaged[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
        path.write_bytes(damaged)
        with pytest.raises(StorageCorruptError, match="damaged"):
            load(path)
    path.write_bytes(whole[: 4096 * (pages - 1)])
    with pytest.raises(StorageCorruptError):
        load(path)
    path.write_bytes(whole)
    assert load(path).entries == long


def test_a_torn_last_write_is_as_if_it_had_not_been(path: Path, tmp_path: Path) -> None:
    """Power cut: the write-ahead log ends anywhere within the last transaction."""
    store = open_store(path)
    store.save(Write(entries=entries(1, 3)))
    wal = path.with_name("raft.sqlite-wal")
    size, note = wal.stat().st_size, path.with_name("raft.sqlite-saves").read_bytes()
    store.save(Write(HardState(5, "b"), entries=entries(4, 6)))
    image, whole = path.read_bytes(), wal.read_bytes()
    store.close()
    assert len(whole) > size
    for end in range(size, len(whole), 977):
        copy = tmp_path / str(end) / "raft.sqlite"
        copy.parent.mkdir()
        copy.write_bytes(image)
        copy.with_name("raft.sqlite-wal").write_bytes(whole[:end] + b"\x5a" * (len(whole) - end))
        copy.with_name("raft.sqlite-saves").write_bytes(note)
        assert load(copy) == Stored(None, HardState(), None, entries(1, 3), NodeRecord())
        shutil.rmtree(copy.parent)


def test_the_write_ahead_log_stays_small(path: Path) -> None:
    store = open_store(path)
    for number in range(1, 300):
        store.save(
            Write(entries=(Entry(number, 1, "x/1", "y" * 50_000),), snapshot=Snapshot(number - 1, 1, "z" * 50_000))
        )
    assert path.with_name("raft.sqlite-wal").stat().st_size < 12 << 20
    store.close()
    assert path.stat().st_size < 4 << 20


def test_not_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        open_store(tmp_path / "file" / "raft.sqlite")
