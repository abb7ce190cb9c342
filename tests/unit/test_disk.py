"""The simulated disk loses and keeps exactly what it says."""

from __future__ import annotations

import apsw
import pytest

from tests import disk as disks
from tests.disk import NOTE, Disk, Piece


def disk_with(content: bytes) -> Disk:
    """One file, synced."""
    disk = Disk()
    disk.sync("f", disk.make("f"), directory=True)
    change(disk, content)
    inode = disk.inode("f")
    assert inode is not None
    disk.sync("f", inode, directory=False)
    return disk


def change(disk: Disk, data: bytes, offset: int = 0) -> None:
    inode = disk.inode("f")
    assert inode is not None
    disk.write("f", inode, data, offset)


def left(disk: Disk, choose: disks.Survivors) -> bytes | None:
    after = disk.copy()
    after.power_cut(choose)
    return after.read("f")


def test_what_is_synced_stays_and_the_rest_is_chosen() -> None:
    disk = disk_with(b"a" * 1200)
    change(disk, b"b" * 1200)
    assert disk.read("f") == b"b" * 1200
    assert [len(piece.data) for piece in disk.unsynced()] == [512, 512, 176]
    assert left(disk, disks.nothing) == b"a" * 1200
    assert left(disk, disks.everything) == b"b" * 1200
    assert left(disk, disks.only_last) == b"a" * 1024 + b"b" * 176
    assert left(disk, disks.all_but_last) == b"b" * 1024 + b"a" * 176
    assert left(disk, disks.every_second) == b"b" * 512 + b"a" * 512 + b"b" * 176
    assert left(disk, disks.torn_last) == b"b" * (1024 + 117) + b"a" * 59
    assert disk.read("f") == b"b" * 1200, "a copy was cut, not this one"


def test_lengths_survive_or_not() -> None:
    disk = disk_with(b"abc")
    inode = disk.inode("f")
    assert inode is not None
    disk.truncate("f", inode, 1)
    assert disk.read("f") == b"a"
    assert left(disk, disks.nothing) == b"abc"
    assert left(disk, disks.everything) == b"a"
    change(disk, b"z", 4)
    assert left(disk, disks.only_last) == b"abc\0z"
    assert left(disk, disks.everything) == b"a\0\0\0z"


def test_names_survive_or_not() -> None:
    disk = Disk()
    disk.write("f", disk.make("f"), b"x", 0)
    assert left(disk, disks.nothing) is None
    assert left(disk, disks.only_names) == b""
    assert left(disk, disks.everything) == b"x"
    assert left(disk, lambda pieces: [piece for piece in pieces if piece.kind != "name"]) is None
    disk = disk_with(b"x")
    disk.delete("f")
    assert disk.read("f") is None
    assert left(disk, disks.nothing) == b"x"
    assert left(disk, disks.everything) is None
    disk.sync_directory()
    assert left(disk, disks.nothing) is None


def test_a_sync_that_fails_forgets() -> None:
    disk = disk_with(b"a")
    change(disk, b"b")
    disk.failing_syncs.append("f")
    inode = disk.inode("f")
    assert inode is not None
    with pytest.raises(apsw.IOError):
        disk.sync("f", inode, directory=False)
    disk.sync("f", inode, directory=False)
    assert disk.read("f") == b"b"
    assert left(disk, disks.everything) == b"a"


def test_a_sync_that_lies() -> None:
    disk = disk_with(b"a")
    disk.lies = True
    change(disk, b"b")
    inode = disk.inode("f")
    assert inode is not None
    disk.sync("f", inode, directory=True)
    assert left(disk, disks.nothing) == b"a"


def test_room_is_counted() -> None:
    disk = disk_with(b"abc")
    disk.full_after_bytes = 2
    change(disk, b"ABC")
    with pytest.raises(apsw.FullError):
        change(disk, b"12345", 1)
    assert disk.read("f") == b"A1234"
    inode = disk.inode("f")
    assert inode is not None
    disk.truncate("f", inode, 4)
    assert disk.full_after_bytes == 1


def test_the_power_goes_at_a_boundary() -> None:
    disk = disk_with(b"a")
    disk.cut_at = disk.boundaries + 2
    change(disk, b"b")
    with pytest.raises(apsw.IOError):
        change(disk, b"c", 1)
    with pytest.raises(OSError, match="error"):
        disks.Note(disk).write(b"")
    assert left(disk, disks.everything) == b"bc"
    disk.power_cut(disks.all_but_last)
    assert disk.read("f") == b"b"
    assert not disk.off


def test_every_boundary_is_reported() -> None:
    seen: list[int] = []
    disk = Disk(on_boundary=lambda now: seen.append(now.boundaries))
    disk.open_store().close()
    assert seen == list(range(1, disk.boundaries + 1))
    assert len(seen) > 20


def test_bits_flip_for_good() -> None:
    disk = disk_with(b"a")
    disk.corrupt("f", 0, 2)
    assert disk.read("f") == left(disk, disks.nothing) == b"c"


def test_what_an_earlier_process_held_is_dead() -> None:
    disk = Disk()
    store, note = disk.open_store(), disks.Note(disk)
    disk.kill()
    with pytest.raises(OSError, match="error"):
        note.write(b"x")
    before = disk.files()
    with pytest.raises(Exception, match="simulated"):
        store.close()
    assert disk.files() == before


def test_a_random_choice_is_the_same_each_time() -> None:
    pieces = [Piece(number, NOTE, "write", 1, 512 * number, bytes(512)) for number in range(40)]
    assert disks.at_random(5)(pieces) == disks.at_random(5)(pieces)
    assert len({tuple(disks.at_random(seed)(pieces)) for seed in range(20)}) > 15
