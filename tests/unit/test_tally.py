"""The number of the newest save, in a file of its own."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from consensus.tally import FILE_BYTES, PlainFile, Tally


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "raft.sqlite-saves"


def newest(path: Path) -> int | None:
    tally = Tally(PlainFile(path))
    try:
        return tally.newest()
    finally:
        tally.close()


def note(path: Path, *numbers: int) -> None:
    tally = Tally(PlainFile(path))
    for number in numbers:
        tally.note(number)
        assert tally.newest() == number
    tally.sync()
    tally.close()


def test_what_is_noted_is_found(path: Path) -> None:
    assert newest(path) is None
    note(path, 0, 9, 10, (1 << 63) - 1, 7)
    assert newest(path) == 7
    assert path.stat().st_size == FILE_BYTES < 512, "less than a sector"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_oldest_and_the_largest_number_look_alike(path: Path) -> None:
    for number in (0, (1 << 63) - 1):
        note(path, number)
        assert path.stat().st_size == FILE_BYTES
        assert newest(path) == number


def test_a_damaged_note_says_nothing(path: Path) -> None:
    note(path, 123)
    whole = path.read_bytes()
    for at in range(FILE_BYTES):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert newest(path) == 0
    path.write_bytes(whole + b"x")
    assert newest(path) == 0


def test_a_note_that_was_cut_off_is_no_note(path: Path) -> None:
    note(path, 123)
    whole = path.read_bytes()
    for end in range(FILE_BYTES):
        path.write_bytes(whole[:end])
        assert newest(path) is None


def test_a_torn_note_never_says_more_than_was_noted(path: Path) -> None:
    """A power cut in the middle of the one sector: 0x or 1x, never a number that nobody has noted."""
    note(path, 99)
    old = path.read_bytes()
    note(path, 100)
    new = path.read_bytes()
    for at in range(FILE_BYTES + 1):
        path.write_bytes(new[:at] + old[at:])
        assert newest(path) in {0, 99, 100}
    assert newest(path) == 100


def test_errors_come_through(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        newest(tmp_path)
    with pytest.raises(FileNotFoundError):
        note(tmp_path / "nowhere" / "file", 1)
