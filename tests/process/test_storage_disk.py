"""The store against real disks and real deaths: SIGKILL, a full file system, a file size limit, a second process."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.messages import Entry, HardState
from consensus.record import Identity
from consensus.storage import StorageBusyError, StorageCorruptError, StorageError, StorageFullError, open_store
from consensus.write import Stored, Write

ROOT = Path(__file__).parents[2]
SAVE_AND_SAY = """
import os, sys
from pathlib import Path
from consensus.messages import Entry, HardState
from consensus.storage import Write, open_store
store = open_store(Path(sys.argv[1]))
base = len(store.load().entries)
for number in range(base + 1, 1_000_000):
    store.save(Write(HardState(number, "b", number - 1), entries=(Entry(number, number, "x/1", "y" * 200),)))
    os.write(1, b"%d\\n" % number)
"""
HOLD = """
import sys
from pathlib import Path
from consensus.storage import open_store
store = open_store(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def child(program: str, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def load(path: Path) -> Stored:
    store = open_store(path)
    try:
        return store.load()
    finally:
        store.close()


def end(process: subprocess.Popen[bytes]) -> bytes:
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=20)
    return rest


def test_what_was_reported_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "raft" / "raft.sqlite"
    reported = 0
    for lines in (1, 40, 7, 400):
        process = child(SAVE_AND_SAY, path)
        try:
            assert process.stdout is not None
            for _ in range(lines):
                reported = int(process.stdout.readline())
        finally:
            numbers = [int(line) for line in end(process).splitlines() if line]
        reported = max([reported, *numbers])
        store = open_store(path)  # the lock of a killed process is gone at once
        stored = store.load()
        store.close()
        assert len(stored.entries) >= reported
        assert stored.hard == HardState(len(stored.entries), "b", len(stored.entries) - 1)


def test_a_second_process_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "raft" / "raft.sqlite"
    process = child(HOLD, path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(StorageBusyError, match="second pgr-supervise") as error:
            open_store(path)
        assert error.value.exit_code == 78
        assert str(path) in str(error.value)
    finally:
        end(process)
    store = open_store(path)
    store.save(Write(identity=Identity("a", 1)))
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "pgr-test", mount], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "raft" / "raft.sqlite"
    store = open_store(path)
    saved: list[Entry] = []

    def fill() -> None:
        with pytest.raises(StorageFullError, match="no room") as error:  # noqa: PT012
            while True:
                entry = Entry(len(saved) + 1, 1, "x/1", "y" * 3000)
                store.save(Write(HardState(len(saved) + 1), entries=(entry._replace(term=1),)))
                saved.append(entry)
        assert str(path) in str(error.value)
        assert error.value.exit_code == 74

    def check() -> None:
        stored = store.load()
        assert stored.entries == tuple(saved)
        assert stored.hard == HardState(len(saved))

    (small_disk / "more").write_bytes(bytes(300_000))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    fill()
    assert saved
    check()
    fill()  # and again
    check()
    ballast.unlink()
    before = len(saved)
    fill()  # there is room again, and the same store goes on
    assert len(saved) > before
    check()
    store.close()
    with pytest.raises(StorageFullError):  # the log has to be folded into the file at a start, which needs room
        load(path)
    (small_disk / "more").unlink()
    store = open_store(path)
    check()
    store.close()


def remount(mount: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", mount], check=True)


def test_a_file_system_that_becomes_read_only(small_disk: Path) -> None:
    """As ext4 does after an error. The kernel refuses while a file is open for writing, so the process is gone here."""
    path = small_disk / "raft" / "raft.sqlite"
    process = child(SAVE_AND_SAY, path)
    try:
        assert process.stdout is not None
        reported = int(process.stdout.readline())
    finally:
        numbers = [int(line) for line in end(process).splitlines() if line]
    reported = max([reported, *numbers])
    remount(small_disk, "ro")
    with pytest.raises(StorageError, match="read-only") as error:
        load(path)
    assert error.value.exit_code == 74
    assert "must own it" not in str(error.value)
    with pytest.raises(StorageError, match="read-only"):
        load(small_disk / "other" / "raft.sqlite")
    remount(small_disk, "rw")
    assert load(path).hard.term >= reported


@pytest.mark.parametrize("damage", ["log gone", "log empty", "file gone", "file empty", "note gone", "file alone"])
def test_files_that_are_taken_away_after_a_kill(damage: str, tmp_path: Path) -> None:
    """The newest saves are only in the write-ahead log then."""
    path = tmp_path / "raft" / "raft.sqlite"
    log, note = path.with_name("raft.sqlite-wal"), path.with_name("raft.sqlite-saves")
    process = child(SAVE_AND_SAY, path)
    try:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
    finally:
        end(process)
    assert log.stat().st_size > 4096
    match damage:
        case "log gone":
            log.unlink()
        case "log empty":
            os.truncate(log, 0)
        case "file gone":
            path.unlink()
        case "file empty":
            os.truncate(path, 0)
        case "note gone":
            note.unlink()
        case _:
            log.unlink()
            note.unlink()
    for _ in range(2):
        with pytest.raises(StorageCorruptError, match="old copy") as error:
            load(path)
        assert str(path) in str(error.value)
        assert error.value.exit_code == 74


def test_a_start_that_died_before_it_made_the_file(tmp_path: Path) -> None:
    path = tmp_path / "raft" / "raft.sqlite"
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    assert load(path).identity is None


def test_no_room_at_the_first_start(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(bytes(2_000_000))
    with pytest.raises(StorageError) as error:
        open_store(small_disk / "raft" / "raft.sqlite")
    assert error.value.exit_code == 74
    (small_disk / "ballast").unlink()
    open_store(small_disk / "raft" / "raft.sqlite").close()


def test_a_file_size_limit(tmp_path: Path) -> None:
    """What ordinary users can do instead of filling a disk. The kernel says EFBIG, SQLite "disk I/O error"."""
    path = tmp_path / "raft" / "raft.sqlite"
    store = open_store(path)
    number = 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(StorageError, match="file size limit") as error:  # noqa: PT012
            while True:
                store.save(Write(HardState(number + 1), entries=(Entry(number + 1, 1, "x/1", "y" * 3000),)))
                number += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(path) in str(error.value)
    with pytest.raises(StorageError, match="earlier failure"):
        store.save(Write(HardState(999)))
    store.close()
    store = open_store(path)
    assert len(store.load().entries) == store.load().hard.term == number > 10
    store.close()
