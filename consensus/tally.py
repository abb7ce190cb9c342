"""How many saves the store has seen, noted in a small file beside it: by this a lost write-ahead log is noticed.

SQLite reads a write-ahead log as far as its checksums hold and is silent about the rest. A log that was deleted, cut
off or has one flipped byte, and a copy of the main file alone, therefore look like a sound store of an earlier time:
votes and promises would go back. The note is written after each save and says that there was more.

It is not synced with each save (that would double the cost of a save), only when the store is opened or its log
folded, and never runs ahead of the store. Hence the limit: damage to the log together with a power cut can hide what
was saved within the kernel's writeback time (30 s by default) before the cut. And a complete old copy of the directory
has an old note, too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from consensus.digest import blake2b

_DIGITS = 19
"""Of 2**63 - 1."""
FILE_BYTES = _DIGITS + 1 + 32 + 1


class SmallFile(Protocol):
    """A file of less than one disk sector. All raise OSError."""

    def read(self) -> bytes | None:
        """The whole content; None: there is no such file."""

    def write(self, data: bytes) -> None:
        """From the beginning on; makes the file if need be. Not synced."""

    def sync(self) -> None:
        """Content and directory entry are on disk."""

    def close(self) -> None: ...


class Tally:
    """Not a value: owner of the file. One thread, and only the one that holds the store's lock may note."""

    def __init__(self, file: SmallFile) -> None:
        self._file = file

    def newest(self) -> int | None:
        """The highest number noted; None: the file is gone, or cut off as no crash leaves it; 0: it says nothing (a
        power cut tore it). OSError."""
        data = self._file.read()
        if data is None or len(data) < FILE_BYTES:
            return None
        digits = data[:_DIGITS]
        return int(digits) if data == _line(digits) and digits.isdigit() else 0

    def note(self, number: int) -> None:
        """``number`` saves are on disk. OSError."""
        self._file.write(_line(b"%0*d" % (_DIGITS, number)))

    def sync(self) -> None:
        """OSError."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def _line(digits: bytes) -> bytes:
    return b"%s %s\n" % (digits, blake2b(digits, digest_size=16).hexdigest().encode())


class PlainFile:
    """A `SmallFile` at ``path``, mode 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def read(self) -> bytes | None:
        try:
            return os.pread(self._open(os.O_RDWR), 4096, 0)
        except FileNotFoundError:
            return None

    def write(self, data: bytes) -> None:
        descriptor, done = self._open(os.O_RDWR | os.O_CREAT), 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], done)

    def sync(self) -> None:
        os.fsync(self._open(os.O_RDWR))
        sync_directory(self._path.parent)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self, flags: int) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
        return self._descriptor


def sync_directory(directory: Path) -> None:
    """What was made or renamed in it is on disk. OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
