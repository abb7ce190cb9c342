"""A node's side of `pgr doctor`: it has itself and its way to the others measured, and adds what it knows anyway.

The measuring is done by a process (doctorprobes.py) whose end SIGCHLD tells; one at a time. Who asks meanwhile waits
for the next one: what is answered was measured after it was asked for. `clock` is answered at once: it is what others
measure the way to this node, and its clocks, with.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fencing.clock import now_ns
from fencing.lease import MS
from supervisor.addresses import is_loopback
from supervisor.admin import answer
from supervisor.errors import REPORT, BugError, ExitCode, PgrError, TryAgainError
from supervisor.roles import Server
from supervisor.status import Snapshot

if TYPE_CHECKING:
    import subprocess

    from supervisor.adminserver import Known

MEASURED_MS = 9_000
"""The process ends by itself sooner; after this it is killed, and who asked is told so."""
_OUTPUT_BYTES_MAX = 1 << 20


def clock() -> dict[str, int]:
    """This node's clocks, now."""
    return {"realtime_ns": time.time_ns(), "boottime_ns": now_ns()}


def program() -> list[str]:
    """What to run: this interpreter, with the path of this one, wherever pgr is installed."""
    boot = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from supervisor.doctorprobes import main; main()"
    return [sys.executable, "-P", "-c", boot, json.dumps([str(Path(entry).absolute()) for entry in sys.path])]


def start(order: Mapping[str, Any], output: int) -> subprocess.Popen[bytes]:
    """The process that measures, with what it finds going to the descriptor ``output``. OSError if it can't start."""
    import subprocess

    question = os.memfd_create("pgr-doctor", os.MFD_CLOEXEC)
    try:
        os.write(question, json.dumps({**order, "parent": os.getpid()}).encode())
        os.lseek(question, 0, os.SEEK_SET)
        return subprocess.Popen(
            program(), stdin=question, stdout=output, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True
        )
    finally:
        os.close(question)


def findings(output: int, ended: bool) -> dict[str, Any]:
    """What the process has written there. Raises TryAgainError if it had no time for it, BugError if it failed."""
    try:
        found: dict[str, Any] = json.loads(os.pread(output, _OUTPUT_BYTES_MAX, 0))
    except ValueError:
        if ended:
            raise BugError("the program that measures has ended without a word", REPORT) from None
        hint = "look at the load and the disks of that machine, then try again"
        raise TryAgainError("the machine could not be measured in time", hint) from None
    if "failed" in found:
        raise BugError(f"the program that measures failed: {found['failed']}", REPORT)
    return found


class Desk:
    """``send``: a frame to a client, as in `AdminServer`."""

    def __init__(self, c: Known, send: Callable[[bytes, bytes, bool], None]) -> None:
        self.c, self._send = c, send
        self.asking: list[tuple[str, bytes, bool]] = []
        """For whom it measures now: ``(request, client, remote)``."""
        self.waiting: list[tuple[str, bytes, bool]] = []
        """Who has asked since."""
        self.process: subprocess.Popen[bytes] | None = None
        self.pidfd = self.output = -1
        self.until_ns = 0

    def request(self, client: bytes, request_id: str, remote: bool, now_ns: int) -> None:
        self.waiting.append((request_id, client, remote))
        if self.process is None:
            self._begin(now_ns)

    def _begin(self, now_ns: int) -> None:
        self.asking, self.waiting = self.waiting, []
        self.output = os.memfd_create("pgr-doctor", os.MFD_CLOEXEC)
        try:
            self.process = start(order(self.c), self.output)
            self.pidfd = os.pidfd_open(self.process.pid)
        except OSError as error:
            hint = "the machine may be out of memory or processes"
            self._end(None, TryAgainError(f"nothing can be measured: {error.strerror}", hint))
            return
        self.until_ns = now_ns + MEASURED_MS * MS

    def turn(self, snapshot: Snapshot, known: Mapping[str, Any], now_ns: int) -> None:
        """Each turn of the loop: has it ended, or is its time over?"""
        if self.process is None:
            return
        ended = bool(select.select([self.pidfd], [], [], 0)[0])
        if not ended and now_ns < self.until_ns:
            return
        try:
            measured = findings(self.output, ended)
        except PgrError as error:
            self._end(None, error)
        else:
            self._end(whole(measured, said(self.c, snapshot, known), known), None)
        if self.waiting:
            self._begin(now_ns)

    def close(self, error: PgrError) -> None:
        self.asking += self.waiting
        self.waiting = []
        self._end(None, error)

    def _end(self, result: dict[str, Any] | None, error: PgrError | None) -> None:
        if self.process is not None:
            if not select.select([self.pidfd], [], [], 0)[0]:
                self.process.kill()
            self.process.returncode = 0  # it is reaped by the loop, like every child
            self.process = None
        for fd in (self.pidfd, self.output):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.output = -1
        asking, self.asking = self.asking, []
        for request_id, client, remote in asking:
            self._send(client, answer(request_id, result, error), remote)


def order(c: Known) -> dict[str, Any]:
    """What is to be measured here (`doctorprobes.measure`)."""
    config = c.config
    data = not config.witness
    asked: dict[str, Any] = {
        "places": {"raft": str(config.raft_dir)},
        "peers": _peers(c),
        "key_file": str(config.key_file) if config.key_file.exists() else "",
        "own": "",
    }
    if data:
        from supervisor import settings

        asked["places"] |= {"pg_wal": str(config.pgdata / "pg_wal"), "pgdata": str(config.pgdata)}
        asked["pg_bin"] = str(config.pg_bin) if config.pg_bin is not None else None
        if c.local.server in (Server.STANDBY, Server.PROMOTING, Server.PRIMARY):
            asked["own"] = settings.own_conninfo(str(config.pg_socket_dir), config.pg_port)
    return asked


def _peers(c: Known) -> dict[str, dict[str, str]]:
    """By the log; before it is known, by the configuration."""
    if not c.members:
        named = ((peer.name, str(peer.address)) for peer in c.config.peers if peer.name != c.config.name)
        return {name: {"raft": address} for name, address in named}
    found: dict[str, dict[str, str]] = {}
    for member in c.members:
        if member.name == c.config.name:
            continue
        found[member.name] = {"raft": member.raft}
        if member.has_data:
            found[member.name]["postgres"] = member.postgres
            if not c.config.witness:
                found[member.name] |= _sessions(c, member.postgres)
    return found


def _sessions(c: Known, address: str) -> dict[str, str]:
    from supervisor import settings

    host, _, port = address.rpartition(":")
    common: dict[str, str | int] = {
        "host": host.strip("[]"), "port": int(port), "user": settings.REPLICATION_ROLE, "connect_timeout": 3,
        "passfile": str(c.config.run / "pgpass"), "application_name": "pgr_doctor",
    }  # fmt: skip
    return {
        "replication": settings.conninfo(**common, replication="true"),
        "rewind": settings.conninfo(**common, dbname="postgres"),
    }


def said(c: Known, snapshot: Snapshot, known: Mapping[str, Any]) -> dict[str, Any]:
    """What this node knows without measuring: the other fields of a `Node`. ``known``: the newest `raft.members`."""
    config = c.config
    own = known.get("members", {}).get(config.name, {}).get("seen", {})
    runs = c.local.server in (Server.STANDBY, Server.PROMOTING, Server.PRIMARY)
    return {
        "name": config.name, "running": True, "witness": config.witness, "role": snapshot.role,
        "state": snapshot.state, "leader": snapshot.leader,
        "loopback": config.pg_advertise.is_loopback and is_loopback(config.pg_listen),
        "pgr_version": snapshot.pgr_version, "timings": asdict(snapshot.timings),
        "scheduling": dict(snapshot.scheduling), "watchdog_mode": config.watchdog,
        "guarded": not c.local.unguarded_since_ns if runs else None,
        "system_identifier": snapshot.system_identifier, "has_data": bool(snapshot.system_identifier),
        "overrides": list(own.get("overrides", [])), "warnings": list(snapshot.warnings),
        "members": [m.name for m in c.members] or [peer.name for peer in config.peers],
        "voters": [m.name for m in c.members if m.votes] or [peer.name for peer in config.peers],
    }  # fmt: skip


def whole(measured: dict[str, Any], known: dict[str, Any], members: Mapping[str, Any]) -> dict[str, Any]:
    """A `Node` as JSON, of both; ``members`` says too when each other one was last heard."""
    heard = members.get("heard", {})
    links = [link | {"heard_ms": heard.get(link["to"])} for link in measured.get("links", [])]
    found = measured | known | {"links": links}
    if (server := measured.get("server")) is not None:
        names = {"checksums": "data_checksums", "wal_log_hints": "wal_log_hints"}
        found["rewindable"] = [word for word, name in names.items() if server["settings"].get(name) == "on"]
    return found | {"failures": missing_programs(measured)}


def missing_programs(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Why there are no binaries that will do, as a `Failure`."""
    problem = measured.get("programs_problem")
    if not problem:
        return []
    what, _, hint = str(problem).partition("\n")
    return [{"check": "binaries", "what": what, "hint": hint, "code": int(ExitCode.MISSING)}]
