"""WAL receivers as processes: who they are, and ending them. Evidence is from /proc, not from Postgres."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from supervisor.context import Context
from supervisor.tasks import Task, TaskTimeout, Wait

_LISTENS = "0A"
"""State in /proc/net/tcp: TCP_LISTEN (include/net/tcp_states.h)."""
_CONNECTED = "03"
"""State in /proc/net/unix: SS_CONNECTED (include/uapi/linux/net.h)."""


def receivers(c: Context) -> list[int]:
    """WAL receivers among the postmaster's children."""
    children = c.postmaster.children() if c.postmaster is not None else ()
    return [child.pid for child in children if child.receiver]


def too_young(c: Context) -> bool:
    """Is there a child that has no title yet and is nobody's backend? It may become a WAL receiver."""
    children = c.postmaster.children() if c.postmaster is not None else ()
    untitled = [child.pid for child in children if not child.title]
    return any(not serves_client(pid, c.config.pg_port, c.postgres.socket_dir) for pid in untitled)


def serves_client(pid: int, port: int, socket_dir: Path) -> bool:
    """Does this child of the postmaster hold a connection that came in at our port? Then it is a backend: one whose
    client says nothing has no title, for a minute if need be (authentication_timeout).

    The postmaster accepts, forks and closes its copy before it forks anything else, so no other child inherits one.
    """
    try:
        links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
        return bool(inodes) and not inodes.isdisjoint(_connections(pid, port, f"{socket_dir}/.s.PGSQL.{port}"))
    except OSError:
        return False  # it has ended meanwhile, or cannot be looked at: the next look decides


def _connections(pid: int, port: int, path: str) -> set[str]:
    """Inodes of the sockets that were accepted at our port and our path, as this process's network shows them."""
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in file]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        found |= {r[9] for r in rows[1:] if int(r[1].rpartition(":")[2], 16) == port and r[3] != _LISTENS}
    with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="replace") as file:
        rows = [line.split(maxsplit=7) for line in file]
    return found | {r[6] for r in rows[1:] if len(r) == 8 and r[7].rstrip() == path and r[5] == _CONNECTED}


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
