"""Small durable file operations."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Replace a file: readers see the old or the new content; if ``durable``, so does a machine that loses power."""
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file that somebody else wrote durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make renames and removals in it durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def relink(link: Path, target: str) -> None:
    """Let a symlink lead to another place."""
    made = link.with_name(link.name + ".pgr")
    made.unlink(missing_ok=True)
    made.symlink_to(target)
    made.rename(link)
    sync_directory(link.parent)


def read_optional(path: Path) -> bytes | None:
    """None if it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def tail(path: Path, offset: int, lines: int) -> tuple[str, ...]:
    """The last lines that were written after ``offset`` (from the start if the file has become shorter)."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(offset if offset <= size else 0, size - 65536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ()
    return tuple(text.splitlines()[-lines:])
