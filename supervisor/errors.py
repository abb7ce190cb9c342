"""Every error a user can meet, drawn by who must act; exit codes as in interfaces.md.

    PgrError
    ├── UsageError     64  whoever typed the command or wrote the configuration
    ├── MissingError   69  whoever set the machine up: a program, a port, a permission is not there
    ├── DiskError      74  whoever owns the disk: full, read-only, failing
    ├── TryAgainError  75  nobody: the same thing later may work
    ├── RefusedError   78  the operator must decide: going on could cost data
    └── BugError       70  us

`message` says what is wrong in one sentence, `hint` what to do about it.
"""

from __future__ import annotations

import enum
import errno
from typing import ClassVar, NamedTuple


class ExitCode(enum.IntEnum):
    """What the process ends with; 128 + n is the shell's way of saying "by signal n"."""

    STOPPED = 0
    USAGE = 64
    MISSING = 69
    BUG = 70
    DISK = 74
    TRY_AGAIN = 75
    REFUSED = 78


class PgrError(Exception):
    """Base of all errors that are explained, never shown as a traceback."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PgrError):
    """Wrong flag, environment variable or configuration file."""

    exit_code = ExitCode.USAGE


class MissingError(PgrError):
    """A needed thing is missing: binaries, a port, a permission."""

    exit_code = ExitCode.MISSING


class DiskError(PgrError):
    """The disk is full, read-only or returns errors."""

    exit_code = ExitCode.DISK


class TryAgainError(PgrError):
    """Nothing is wrong that time does not mend."""

    exit_code = ExitCode.TRY_AGAIN


class RefusedError(PgrError):
    """Safety forbids it: foreign system id, second process on the data directory, wiped identity."""

    exit_code = ExitCode.REFUSED


class BugError(PgrError):
    """Something we hold to be impossible has happened."""

    exit_code = ExitCode.BUG


class Explained(NamedTuple):
    """What `exit_for` makes of an exception."""

    code: ExitCode
    message: str
    hint: str


REPORT = "this is a bug in pgr: please report it with the lines above"

# The lower packages have exceptions of their own and may not know ours. By name, so that explaining an error
# imports nothing (sqlite3 and zmq stay out of processes that do not need them).
_LOWER: dict[str, tuple[ExitCode, str]] = {
    "consensus.storage.StorageFullError": (
        ExitCode.DISK,
        "free space on the file system that holds the raft directory, then start again",
    ),
    "consensus.storage.StorageCorruptError": (
        ExitCode.DISK,
        "keep the raft directory for inspection; with it moved aside this node joins again as a new one",
    ),
    "consensus.storage.StorageBusyError": (
        ExitCode.REFUSED,
        "another process has the raft directory open: stop it, or give this node a --data directory of its own",
    ),
    "consensus.transport.PortTakenError": (
        ExitCode.MISSING,
        "stop what listens there (ss -ltnp shows it) or choose another --listen",
    ),
    "consensus.keys.KeyFileError": (
        ExitCode.USAGE,
        "give --cluster-key the key file that all members share, readable by this user alone (chmod 600)",
    ),
}
_DISK_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_MISSING_ERRNO = frozenset({errno.EACCES, errno.EPERM, errno.EADDRINUSE, errno.EADDRNOTAVAIL})
_AGAIN_ERRNO = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


def exit_for(exc: BaseException) -> Explained:
    """Exit code, message and hint for any exception; what nobody foresaw is our bug (70)."""
    if isinstance(exc, PgrError):
        return Explained(exc.exit_code, exc.message, exc.hint)
    for cls in type(exc).__mro__:
        known = _LOWER.get(f"{cls.__module__}.{cls.__qualname__}")
        own_code = getattr(exc, "exit_code", None) if cls.__module__.startswith(("consensus.", "fencing.")) else None
        if known is not None or own_code is not None:
            code, hint = known or (ExitCode.BUG, "")
            try:
                code = ExitCode(own_code) if own_code is not None else code
            except ValueError:
                code = ExitCode.BUG
            return Explained(code, str(exc) or cls.__name__, str(getattr(exc, "hint", "")) or hint)
    if isinstance(exc, OSError):
        if exc.errno in _DISK_ERRNO:
            return Explained(
                ExitCode.DISK, str(exc), "free space, or repair or remount the file system, then start again"
            )
        if exc.errno in _MISSING_ERRNO:
            return Explained(ExitCode.MISSING, str(exc), "grant this user what it needs there, or choose another place")
        if exc.errno in _AGAIN_ERRNO:
            return Explained(
                ExitCode.TRY_AGAIN, str(exc), "the machine is out of memory, processes or descriptors: try again"
            )
    return Explained(ExitCode.BUG, f"{type(exc).__name__}: {exc}", REPORT)


def explain(message: str, hint: str) -> str:
    """The text a person sees on stderr."""
    return f"error: {message}\n" + (f"\nhint: {hint}\n" if hint else "")
