"""WAL receivers as processes: who they are, and ending them. Evidence is from /proc, not from Postgres."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from supervisor.context import Context
from supervisor.postgres import title_of
from supervisor.tasks import Task, TaskTimeout, Wait


def receivers(c: Context) -> list[int]:
    """WAL receivers among the postmaster's children."""
    children = c.postmaster.children() if c.postmaster is not None else ()
    return [child.pid for child in children if child.receiver]


def too_young(c: Context) -> bool:
    """Is there a child that has no title yet and is nobody's backend? It may become a WAL receiver."""
    postmaster = c.postmaster
    if postmaster is None:
        return False
    untitled = [child.pid for child in postmaster.children() if not child.title]
    return any(not serves_client(pid, postmaster.pid) for pid in untitled)


def serves_client(pid: int, postmaster: int) -> bool:
    """Does this child without a title hold a connection? Then it is a backend: one whose client says nothing stays
    without a title, for a minute if need be (authentication_timeout).

    The postmaster accepts, forks, and closes its copy before it forks anything else: what any other child is born with
    the postmaster has too, and a WAL receiver opens nothing before it has its title. So a socket that the postmaster
    does not have tells. No look at /proc/net: with thousands of connections that takes longer than a promise may.
    """
    try:
        own = _sockets(pid)
        untitled = not title_of(pid)  # after the look: what it had then it had without one
        return untitled and not own <= _sockets(postmaster)
    except OSError:
        return False  # it has ended meanwhile, or cannot be looked at: the next look decides


def _sockets(pid: int) -> set[str]:
    found: set[str] = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = str(entry.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
        if name.startswith("socket:"):
            found.add(name)
    return found


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
