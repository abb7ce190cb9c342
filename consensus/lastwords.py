"""Why a Raft child ends for good, and what a person can do about it: an exit code, a line in the log, a file in RUN."""

from __future__ import annotations

import contextlib
from pathlib import Path

from consensus.cluster import canonical
from consensus.founder import RefusedToStartError
from consensus.keys import KeyFileError
from consensus.storage import (
    StorageBusyError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
    StorageNewerError,
)
from consensus.transport import ListenError
from fencing import logs

FAILED = "raft.failed"
"""In RUN: the last words of a Raft child that must not be started again, for the parent to tell a person."""
REASONS = (RefusedToStartError, StorageError, ListenError, KeyFileError)


def say(
    error: RefusedToStartError | StorageError | ListenError | KeyFileError, raft_dir: Path, run_dir: Path, log: logs.Log
) -> int:
    """The exit code. ``error``: one of `REASONS`."""
    match error:
        case RefusedToStartError():
            event, hint = "raft.refused", error.hint
        case StorageError():
            event, hint = "raft.storage_failed", _about_the_disk(error, raft_dir)
        case ListenError():
            event, hint = "raft.cannot_listen", "stop what listens there, or give --listen"
        case _:
            event, hint = "raft.bad_key", "every member needs the same key file (mode 0600)"
    log.error(event, error=str(error), hint=hint)
    with contextlib.suppress(OSError):  # the disk may be what failed; the exit code says as much
        (run_dir / FAILED).write_text(canonical({"error": str(error), "hint": hint}), encoding="utf-8")
    return error.exit_code


def _about_the_disk(error: StorageError, raft_dir: Path) -> str:
    match error:
        case StorageFullError():
            return f"make room for {raft_dir}, then start this node again: nothing is lost"
        case StorageCorruptError():
            return "keep this node stopped (the others go on) and its disk as it is"
        case StorageBusyError():
            return "stop the other pgr-supervise of this data directory first"
        case StorageNewerError():
            return "start this node with the newer version of pgr"
        case _:
            return f"look after the disk under {raft_dir}, then start this node again"
