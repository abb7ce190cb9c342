"""WAL receivers as processes: who they are, and ending them. Evidence is from /proc, not from Postgres."""

from __future__ import annotations

import os
import signal

from supervisor.context import Context
from supervisor.tasks import Task, TaskTimeout, Wait


def receivers(c: Context) -> list[int]:
    """WAL receivers among the postmaster's children."""
    children = c.postmaster.children() if c.postmaster is not None else ()
    return [child.pid for child in children if child.receiver]


def too_young(c: Context) -> bool:
    """Is there a child that has no title yet? It may become a WAL receiver."""
    children = c.postmaster.children() if c.postmaster is not None else ()
    return any(not child.title for child in children)


def terminate(pid: int, until_ns: int) -> Task[None]:
    """SIGTERM by pidfd, then until it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        woken = yield Wait(fd, read=True, until_ns=until_ns)
        if woken.timed_out:
            raise TaskTimeout("the WAL receiver does not end")
    except ProcessLookupError:
        return
    finally:
        os.close(fd)
