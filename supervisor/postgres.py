"""The Postgres of this node: its files before a start, its processes, and nothing of who may write.

Every start is as a standby (safety.md, "Every start"). The procedures made of these operations are elsewhere.
"""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from consensus.record import EpochStart
from fencing.clock import now_ns
from supervisor import files
from supervisor.binaries import Binaries
from supervisor.children import ChildTable
from supervisor.errors import RefusedError
from supervisor.jobs import clean_env
from supervisor.preflight import works_in
from supervisor.settings import auto_conf
from supervisor.tasks import NEVER, Task, Wait
from supervisor.timelines import history_name, history_numbers, history_text, parse_history

Spawn = Callable[[Sequence[str], Mapping[str, str], Path], int]
"""(argv, env, log_path) -> pid of the postmaster, a child of ours (directly or as an adopted orphan)."""

_LEFTOVERS = ("recovery.signal", "promote", "fallback_promote", "backup_label.old", "tablespace_map.old")
"""Would make a start something else than a standby's, promote it at once (hazard 82), or are of no use. backup_label
itself stays: without it a copy that is not yet consistent would pass for one that is."""
_FIRST_PAUSE_NS, _PAUSE_NS, _FIRST_NS = 5_000_000, 25_000_000, 1_000_000_000
TAIL_LINES = 20
_TITLE = "postgres: "
_RECEIVER = re.compile(r"(?:^|: )walreceiver(?: (?:idle|streaming|restarting|waiting)\b.*)?$")


class StopMode(Enum):
    """Smart is left out on purpose: it waits for clients, for ever if need be."""

    FAST = signal.SIGINT
    IMMEDIATE = signal.SIGQUIT


class OccupiedError(RefusedError):
    """Another Postgres is alive in this data directory."""


class StartFailed(Exception):
    """The postmaster ended or did not get ready; ``tail`` are the last lines it logged since its start."""

    def __init__(self, message: str, tail: tuple[str, ...], code: int | None) -> None:
        fatal = next((n for n, line in enumerate(tail) if re.search(r"\b(FATAL|PANIC): ", line)), None)
        # With its detail and hint; what is wrong in a configuration file is said before.
        first = fatal - 1 if fatal and "contains errors" in tail[fatal] else fatal
        reason = tail[-5:] if first is None or fatal is None else tail[first : fatal + 3]
        super().__init__(f"{message}: {' | '.join(reason) or 'nothing in its log'}")
        self.tail, self.code = tail, code


class Child(NamedTuple):
    """A child of the postmaster, from /proc."""

    pid: int
    title: str
    """``walreceiver``, ``startup recovering 0000...``, ``checkpointer``, with ``cluster_name: `` before it if there is
    one; "" = too young to have a title, so look again."""

    @property
    def receiver(self) -> bool:
        """A WAL receiver."""
        return _RECEIVER.search(self.title) is not None


class LockFile(NamedTuple):
    """postmaster.pid. Negative pid: a single-user backend (hazard 4)."""

    pid: int
    status: str
    """``starting``, ``ready`` (also a standby that takes connections), ``standby`` (that does not), ``stopping``."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What ``prepare`` changed that people should hear of."""

    removed_lines: tuple[str, ...]
    removed_histories: tuple[int, ...]


@dataclass(slots=True)
class Postmaster:
    """A started postmaster. ``close`` when it is gone."""

    pid: int
    pidfd: int
    log_offset: int
    told_to_stop: bool = False
    """By pgr: its end is no surprise then."""

    def send(self, signum: int) -> bool:
        """By pidfd, so never to a stranger; False if it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            return False
        return True

    def stop(self, mode: StopMode) -> bool:
        """Ask it to stop; False if it has ended. Wait with ``Postgres.wait_gone``; that its children are gone too is
        the fence's to verify."""
        self.told_to_stop = True
        return self.send(mode.value)

    def reload(self) -> bool:
        """SIGHUP. A connection opened afterwards that sees a new value proves that every child has been signalled."""
        return self.send(signal.SIGHUP)

    def alive(self) -> bool:
        """Not ended (a zombie has)."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return not poller.poll(0)

    def children(self) -> tuple[Child, ...]:
        """Its direct children, from /proc, without asking Postgres."""
        return children_of(self.pid)

    def close(self) -> None:
        os.close(self.pidfd)


@dataclass(frozen=True, slots=True)
class Postgres:
    """One data directory and the places that belong to it."""

    binaries: Binaries
    pgdata: Path
    run_dir: Path
    """RUN; the socket lies in ``pg`` below it, hba and ident in it."""
    log_path: Path
    spawn: Spawn
    child_table: ChildTable

    @property
    def socket_dir(self) -> Path:
        return self.run_dir / "pg"

    @property
    def hba_file(self) -> Path:
        return self.run_dir / "pg_hba.conf"

    @property
    def ident_file(self) -> Path:
        return self.run_dir / "pg_ident.conf"

    @property
    def wal_dir(self) -> Path:
        return self.pgdata / "pg_wal"

    def prepare(self, owned: Mapping[str, str], hba: str, ident: str, newest_timeline: int) -> Prepared:
        """Make the data directory ready for a start as a standby.

        ``owned`` from settings.owned_settings (with_floors); ``newest_timeline``: of this node's own history, history
        files above it are removed (burned ones are FATAL at a start). Raises OccupiedError, OSError.
        """
        self.refuse_if_occupied()
        self.socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.socket_dir.chmod(0o700)
        for name in _LEFTOVERS:
            (self.pgdata / name).unlink(missing_ok=True)
        above = [number for number in history_numbers(os.listdir(self.wal_dir)) if number > newest_timeline]
        for number in above:
            (self.wal_dir / history_name(number)).unlink()
        files.sync_directory(self.wal_dir)
        removed = self.write_settings(owned, hba, ident)
        files.write_atomically(self.pgdata / "standby.signal", b"")
        return Prepared(removed, tuple(above))

    def write_settings(self, owned: Mapping[str, str], hba: str, ident: str) -> tuple[str, ...]:
        """Before a start or a reload. Returns the foreign lines removed from postgresql.auto.conf; unchanged files are
        not touched."""
        path = self.pgdata / "postgresql.auto.conf"
        text, removed = auto_conf((files.read_optional(path) or b"").decode(errors="surrogateescape"), owned)
        for target, content in ((path, text), (self.hba_file, hba), (self.ident_file, ident)):
            data = content.encode(errors="surrogateescape")
            if files.read_optional(target) != data:
                files.write_atomically(target, data, _mode_of(target))
        return removed

    def install_histories(self, texts: Mapping[str, str]) -> None:
        """Write history files (timelines.install_list) into pg_wal, durably, right before a promotion. A real one that
        is there stays (Postgres words its reasons otherwise); a burned one gives way to a real one."""
        for name, text in texts.items():
            there = files.read_optional(self.wal_dir / name)
            if there is None or (there.startswith(b"#") and there != text.encode()):
                files.write_atomically(self.wal_dir / name, text.encode(), _mode_of(self.pgdata / "PG_VERSION"))

    def correct_history(self, timeline: int, ancestry: Sequence[EpochStart]) -> None:
        """After a promotion to ``timeline``, before anybody may follow. Postgres copies the history of the newest
        timeline that it has *heard* of; if it had not come to where that one begins, the file claims WAL that was
        never here, and a rewind of others stops short (tests/process/test_heard_of_timeline.py)."""
        path = self.wal_dir / history_name(timeline)
        said = parse_history((files.read_optional(path) or b"").decode(errors="replace"))
        if any(switch.lsn > said[-1].lsn for switch in said):
            files.write_atomically(path, history_text(ancestry, timeline).encode(), _mode_of(path))

    def refuse_if_occupied(self) -> None:
        """Raise OccupiedError if a Postgres (a postmaster, a single-user one) lives in this data directory."""
        lock = self.lock_file()
        pid = abs(lock.pid) if lock else 0
        if pid and works_in(pid, self.pgdata):
            raise OccupiedError(
                f"another Postgres, process {pid}, runs in {self.pgdata}",
                f"stop it first (pg_ctl -D {self.pgdata} stop), or give this node a data directory of its own",
            )

    def start(self) -> Postmaster:
        """Start the postmaster (after ``prepare``); it is not ready yet. Raises what ``spawn`` raises."""
        offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        env = clean_env(os.environ)
        lock = self.lock_file()
        if lock is not None and lock.pid > 0:
            # Stale, but its number may be alive as someone else: Postgres lets it pass as its grandparent. Removing
            # the file instead would race with a postmaster that starts by other means (hazard 3).
            env["PG_GRANDPARENT_PID"] = str(lock.pid)
        # postgresql.conf may have a data_directory (Debian's has): of another place, or of the node it was copied from.
        place = ["-D", str(self.pgdata), "-c", f"data_directory={self.pgdata}"]
        pid = self.spawn([self.binaries.path("postgres"), *place], env, self.log_path)
        return Postmaster(pid, os.pidfd_open(pid), offset)

    def wait_ready(self, postmaster: Postmaster, until_ns: int = NEVER) -> Task[str]:
        """Until connections are accepted: ``ready``. Raises StartFailed if it ends first, TimeoutError at ``until_ns``
        (it may just have much to replay; it goes on).

        The pid file tells, and nothing tells of the pid file: looked at every 5 ms, after a second every 25.
        """
        began = now_ns()
        while True:
            lock = self.lock_file()
            if lock is not None and lock.pid == postmaster.pid and lock.status == "ready":
                return lock.status
            now = now_ns()
            if now >= until_ns:
                raise TimeoutError(f"Postgres is still starting: {' | '.join(self.log_tail(postmaster)[-2:])}")
            pause = _FIRST_PAUSE_NS if now - began < _FIRST_NS else _PAUSE_NS
            woken = yield Wait(postmaster.pidfd, read=True, until_ns=min(until_ns, now + pause))
            if woken.readable and not postmaster.alive():
                code = self.child_table.poll(postmaster.pid)
                raise StartFailed("Postgres ended while it started", self.log_tail(postmaster), code)

    def wait_gone(self, postmaster: Postmaster, until_ns: int = NEVER) -> Task[int | None]:
        """Until the postmaster has ended; its return code (UNKNOWN if someone else reaped it). TimeoutError."""
        while postmaster.alive():
            if now_ns() >= until_ns:
                raise TimeoutError("Postgres is still stopping")
            yield Wait(postmaster.pidfd, read=True, until_ns=until_ns)
        return self.child_table.poll(postmaster.pid)

    def lock_file(self) -> LockFile | None:
        """postmaster.pid; None if there is none, or it is not completely written yet."""
        lines = (files.read_optional(self.pgdata / "postmaster.pid") or b"").decode(errors="replace").splitlines()
        try:
            return LockFile(int(lines[0]), lines[7].strip() if len(lines) > 7 else "")
        except (IndexError, ValueError):
            return None

    def log_tail(self, postmaster: Postmaster, lines: int = TAIL_LINES) -> tuple[str, ...]:
        """The last lines it logged."""
        return files.tail(self.log_path, postmaster.log_offset, lines)


def children_of(pid: int) -> tuple[Child, ...]:
    """Direct children with their titles. A child is born with its parent's command line: then its title is ""."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            pids = [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return ()
    found: list[Child] = []
    for child in pids:
        try:
            found.append(Child(child, title_of(child)))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return tuple(found)


def title_of(pid: int) -> str:
    """``[cluster_name: ]walreceiver streaming 0/3000148``; "" before the process has set its title. OSError."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        line = file.read().rstrip(b"\0 ").decode(errors="replace")
    return line.removeprefix(_TITLE) if line.startswith(_TITLE) else ""


def _mode_of(path: Path) -> int:
    """Data directories may be group readable (hazard 83): what we write is like what is there."""
    try:
        return path.stat().st_mode & 0o666
    except FileNotFoundError:
        return 0o600
