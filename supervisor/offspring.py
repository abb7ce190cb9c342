"""The parent's two children, Raft and watchdog: started through the launcher, noticed when they end, started again."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from consensus import retiming
from consensus.lastwords import FAILED as RAFT_FAILED
from consensus.retiming import Pace
from fencing.clock import now_ns
from fencing.lease import MS, PROFILES, UNTOLD, Timings
from fencing.logs import Log
from supervisor import files
from supervisor.children import ChildTable
from supervisor.config import Config
from supervisor.errors import DiskError, MissingError, PgrError, RefusedError, UsageError
from supervisor.launcher import Launcher
from supervisor.links import Link
from supervisor.tasks import NEVER

QUICK_DEATH_MS = 2_000
ASK_EVERY_MS = 1_000
WATCHDOG_SILENT_MS = 2_000
"""A watchdog that leaves a question unanswered for this long is frozen, which its pidfd does not tell."""
BACK_OFF_FIRST_MS, BACK_OFF_MAX_MS = 50, 5_000


class Child:
    """One of them, over all its lives."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.name, self.arguments = name, arguments
        self.pid = 0
        self.pidfd = -1
        self.started_ns = 0
        self.quick_deaths = 0
        self.start_at_ns = NEVER
        self.ready = False
        """The one of now has said something."""


class Offspring:
    """Both children. A death costs nothing by itself: the lease bridges the time until the next one is there."""

    def __init__(self, config: Config, launcher: Launcher, table: ChildTable, log: Log) -> None:
        from supervisor.entry import version

        self.launcher, self.table, self.log = launcher, table, log
        self.version = version()
        watchdog = {
            "run_dir": str(config.run), "pgdata": str(config.pgdata), "parent_pid": os.getpid(),
            "timings": asdict(PROFILES[config.profile]), "at": UNTOLD,
            "device": str(config.watchdog_device), "mode": config.watchdog,
        }  # fmt: skip
        self.watchdog = Child("watchdog", watchdog)
        self.raft = Child("raft", {})
        self.stopping = False
        self.asked_ns = self.ask_at_ns = 0
        """The oldest question that the watchdog of now has not answered, and when to ask again."""

    def describe(self, raft_arguments: dict[str, Any]) -> None:
        self.raft.arguments = raft_arguments

    def use_pace(self, pace: Pace, link: Link) -> Timings:
        """The timings of the log: the watchdog is told; returned is what the parent goes by."""
        watchdog, before = self.watchdog, self._bounds()
        watchdog.arguments |= {"timings": asdict(retiming.at_the_watchdog(pace)), "at": pace.at}  # also of the next one
        if watchdog.ready and self._bounds() != before:  # not started anew for that: a Postgres may rest on it
            link.tell("deadman.bounds", self._bounds())
        return retiming.at_the_parent(pace)

    def _bounds(self) -> dict[str, int]:
        """Body of `deadman.bounds`."""
        timings = self.watchdog.arguments["timings"]
        return {
            "lease_ms": timings["lease_ms"], "kill_bound_ms": timings["kill_bound_ms"],
            "at": self.watchdog.arguments["at"],
        }  # fmt: skip

    def watchdog_said(self, state: Mapping[str, Any], link: Link) -> None:
        """`deadman.state`: it is told again if it has not heard, or was started while the log said something else."""
        bounds = self._bounds()
        if bounds["at"] != UNTOLD and {name: state.get(name) for name in bounds} != bounds:
            link.tell("deadman.bounds", bounds)

    def start_all(self) -> None:
        for child in (self.watchdog, self.raft):
            self._start(child)

    def _start(self, child: Child) -> None:
        child.pid = self.launcher.spawn(child.name, **child.arguments)
        self.table.expect(child.pid)
        child.pidfd = os.pidfd_open(child.pid)
        child.started_ns, child.start_at_ns, child.ready = now_ns(), NEVER, False
        self.log.info("child.started", child=child.name, pid=child.pid)

    def ready(self, name: str) -> None:
        self._child(name).ready = True
        self.log.info("child.ready", child=name, after_ms=(now_ns() - self._child(name).started_ns) // MS)

    def _child(self, name: str) -> Child:
        return self.raft if name == "raft" else self.watchdog

    def fds(self) -> list[int]:
        """pidfds: readable once the child is dead."""
        found = [child.pidfd for child in (self.watchdog, self.raft) if child.pidfd >= 0]
        return [*found, self.launcher.fileno()] if self.launcher.fileno() >= 0 else found

    def wakeup_ns(self) -> int:
        return min(self.watchdog.start_at_ns, self.raft.start_at_ns)

    def ended(self, now: int) -> list[tuple[str, int]]:
        """Which have ended, with their return codes; each is started again, at once at first, then with a pause."""
        if self.launcher.fileno() >= 0 and _dead(self.launcher.fileno()):
            self.log.warning("launcher.ended", expected=False)
            self.launcher.restart()
        found: list[tuple[str, int]] = []
        for child in (self.watchdog, self.raft):
            if child.pidfd >= 0 and _dead(child.pidfd):
                os.close(child.pidfd)
                child.pidfd, child.ready = -1, False
                code = self.table.poll(child.pid)
                self.table.forget(child.pid)
                quick = now - child.started_ns < QUICK_DEATH_MS * MS
                child.quick_deaths = child.quick_deaths + 1 if quick else 0
                pause_ms = min(BACK_OFF_MAX_MS, BACK_OFF_FIRST_MS << min(child.quick_deaths, 8)) if quick else 0
                child.start_at_ns = now + pause_ms * MS
                self.log.warning("child.ended", child=child.name, pid=child.pid, code=code, expected=self.stopping)
                found.append((child.name, code if code is not None else -1))
        return found

    def start_due(self, now: int) -> None:
        """After what a death means has been noted: starting may take a while."""
        for child in (self.watchdog, self.raft):
            if child.pidfd < 0 and now >= child.start_at_ns and not self.stopping:
                self._start(child)

    def ask_watchdog(self, now: int, link: Link) -> None:
        """Each turn, after its answers have been read: a stall of our own makes nobody silent."""
        if not self.watchdog.ready:
            self.asked_ns = 0
        elif self.asked_ns and now - self.asked_ns > WATCHDOG_SILENT_MS * MS:
            self.log.warning("watchdog.silent", expected=False, after_ms=(now - self.asked_ns) // MS)
            self.asked_ns = 0
            self.kill("watchdog")
        elif now >= self.ask_at_ns and link.tell("deadman.query", {}):
            self.asked_ns, self.ask_at_ns = self.asked_ns or now, now + ASK_EVERY_MS * MS

    def kill(self, name: str) -> None:
        """End a child that hangs; the next one is started when it is gone."""
        child = self._child(name)
        if child.pidfd >= 0:
            _kill(child.pidfd)

    def stop_all(self, within_ms: int) -> None:
        """They were told to exit; who has not done so in time is killed."""
        self.stopping = True
        for child in (self.raft, self.watchdog):
            if child.pidfd < 0:
                continue
            poller = select.poll()
            poller.register(child.pidfd, select.POLLIN)
            if not poller.poll(within_ms):
                self.log.warning("child.killed", child=child.name, pid=child.pid)
                _kill(child.pidfd)
                poller.poll(within_ms)
            self.table.poll(child.pid)
            os.close(child.pidfd)
            child.pidfd = -1


def _kill(pidfd: int) -> None:
    """Its end may have been reaped already, in this very turn; then `ended` finds it."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # dead is what it was to be


def _dead(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def without_hardware(ready: Mapping[str, Any]) -> PgrError | None:
    """What `child.ready` of the watchdog says of a hardware watchdog that is required."""
    if not ready.get("hint"):
        return None
    return MissingError(f"a hardware watchdog is required, and it is {ready['hardware']}", str(ready["hint"]))


def last_words(config: Config, code: int) -> PgrError | None:
    """What the Raft child said before it gave up."""
    data = files.read_optional(config.run / RAFT_FAILED)
    kind = {64: UsageError, 69: MissingError, 74: DiskError, 78: RefusedError}.get(code)
    if data is None or kind is None:
        return None
    try:
        said = json.loads(data)
        return kind(str(said["error"]), str(said["hint"]))
    except (ValueError, KeyError):  # written to a full disk
        return None
