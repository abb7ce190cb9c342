"""The shared memory that killed Postgres leaves: one small segment each, of which a machine has 4096 by default.

Nobody but the next start in that data directory removes one, so who removes the directory has to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

_IPC_RMID = 0


def remove(home: Path) -> None:
    """Those that data directories below ``home`` name and nobody is attached to."""
    named = set(_named(home))
    try:
        rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text(encoding="ascii").splitlines()[1:]]
    except FileNotFoundError:  # a kernel without them
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for key, shmid, *_ in (row for row in rows if row[6] == "0"):
        if (int(key) % (1 << 32), int(shmid)) in named:
            libc.shmctl(int(shmid), _IPC_RMID, None)  # not ours to remove, or gone by now: then it stays


def _named(home: Path) -> Iterator[tuple[int, int]]:
    """Key and id, from line 7 of each postmaster.pid."""
    for path in home.rglob("postmaster.pid"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        words = lines[6].split() if len(lines) > 6 else []
        if len(words) == 2 and all(map(str.isdigit, words)):
            yield int(words[0]) % (1 << 32), int(words[1])
