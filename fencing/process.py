"""The watchdog child: a single-threaded poll loop around the deadman machine (DESIGN.md has the bus).

It outlives its parent just long enough to leave no Postgres behind, and holds no rules of its own. Nothing here is done
at import, so a launcher may fork it: the ZeroMQ context is made in ``run``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq

from fencing import deadman as machine
from fencing import realtime
from fencing.clock import now_ns
from fencing.deadman import Phase
from fencing.hardware import DEVICE, MODES, OFF, Hardware
from fencing.kill import FenceReport, ProcessId, alive, fence
from fencing.lease import MS, PROFILES, UNTOLD, Timings
from fencing.timer import Alarm, ClockWatch
from fencing.wire import FRAME_BYTES_MAX, Frame, WireError, decode, encode

NAME = "pgr-watchdog"
SOCKET = "watchdog.sock"
PARENT, RAFT = b"parent", b"raft"
BUG, CANNOT_START = 70, 69
DRAIN = 64
"""At most this many frames are read before the clock is looked at again."""
BOUND_MS_MAX = 3_600_000
LAST_STAND_BOUNDS = 10
"""After a bug: how many kill bounds to go on fencing before leaving that to the parent."""
IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGPIPE")
"""What a terminal or a service manager sends to all: only the parent stops the watchdog, by a frame or SIGKILL."""


@dataclass(frozen=True)
class WatchdogConfig:
    """What a watchdog is told once."""

    run_dir: Path
    pgdata: Path
    parent_pid: int
    timings: Timings
    at: int = UNTOLD
    """The entry of the cluster's log that the timings are of."""
    parent_start_ticks: int = 0
    """Guards against a recycled parent_pid; 0 leaves that out."""
    cgroup: Path | None = None
    """A v2 group that holds Postgres and nothing else."""
    device: str = DEVICE
    """Of the hardware watchdog."""
    mode: str = OFF
    """Whether it is used: see `fencing.hardware.MODES`."""


class BadBody(ValueError):
    """A frame of ours with a body that is not."""


def run(config: WatchdogConfig) -> int:
    """Guard until the parent says so or is gone; the exit code: 0; 70 after a bug (everything fenced
    first); 69 if it could not start (its socket, its timers), with the reason in the log."""
    _become_watchdog()
    config = replace(config, run_dir=config.run_dir.absolute(), pgdata=config.pgdata.absolute())
    os.chdir("/")  # or we might have PGDATA as our working directory, which is for Postgres
    try:
        watchdog = Watchdog(config)
    except (OSError, zmq.ZMQError) as error:
        # Nobody was told that we guard anything, so a living parent decides; a dead one cannot.
        log("watchdog.cannot_start", reason=str(error))
        if not Path(f"/proc/{config.parent_pid}").exists():
            _last_stand(config, None, config.timings.kill_bound_ms * MS)
        return CANNOT_START
    try:
        return watchdog.loop()
    except BaseException:
        log("watchdog.bug", traceback=traceback.format_exc())
        if _last_stand(config, watchdog.postmaster(), watchdog.state.kill_bound_ns):
            watchdog.hardware.stop()
        return BUG
    finally:
        watchdog.close()


class Watchdog:
    """The shell around the machine: frames, a timer and the parent's pidfd in; kills, answers and an exit out."""

    def __init__(self, config: WatchdogConfig) -> None:
        self.config = config
        self.state = machine.deadman(config.timings, config.at)
        self.exit_code: int | None = None
        self.greeted = False
        self.report: FenceReport | None = None
        self.scheduling = realtime.raise_priority()
        locked, spared = realtime.lock_memory(), realtime.spare_from_oom()
        self.alarm, self.clocks = Alarm(), ClockWatch()
        self.path = config.run_dir / SOCKET
        os.umask(0o077)
        self.path.unlink(missing_ok=True)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a restarted raft child is `raft` at once
        self.socket.bind(f"ipc://{self.path}")
        self.parent_fd = self._open_parent()
        self.hardware = Hardware(config.device, config.mode, config.timings)
        self.hardware.probe()
        log(
            "watchdog.started", scheduling=self.scheduling, memory_locked=locked, oom_spared=spared,
            hardware=self.hardware.state, lease_ms=config.timings.lease_ms, kill_bound_ms=config.timings.kill_bound_ms,
        )  # fmt: skip
        realtime.quiet_gc()

    def _open_parent(self) -> int | None:
        """A pidfd of the parent; None if it is gone already."""
        pid, ticks = self.config.parent_pid, self.config.parent_start_ticks
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if ticks and not alive(ProcessId(pid, ticks)):
            os.close(pidfd)
            return None
        return pidfd

    def loop(self) -> int:
        poller = zmq.Poller()
        for source in (self.socket, self.alarm.fd, self.clocks.fd):
            poller.register(source, zmq.POLLIN)
        if self.parent_fd is None:
            self.feed(machine.ParentGone())
        else:
            poller.register(self.parent_fd, zmq.POLLIN)
        while self.exit_code is None:
            self.alarm.set(machine.wakeup_ns(self.state))
            ready = dict(poller.poll())
            if self.socket in ready:
                self._drain()
            if self.parent_fd in ready:
                poller.unregister(self.parent_fd)
                self.feed(machine.ParentGone())
            if self.clocks.fd in ready:
                self.feed(machine.ClockJumped(self.clocks.jumped_ns()))
            self.feed(machine.Tick())
        return self.exit_code

    def _drain(self) -> None:
        """Frames first, the clock after them: a renewal that waited in the socket is as true as when it was sent."""
        for _ in range(DRAIN):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if len(parts) != 2:
                    raise WireError(f"message of {len(parts)} parts instead of identity and frame")
                self._receive(parts[0], decode(parts[1]))
            except (WireError, BadBody) as error:
                log("watchdog.dropped", sender=parts[0].decode(errors="replace"), reason=str(error))

    def _receive(self, sender: bytes, frame: Frame) -> None:
        if sender == PARENT and not self.greeted:
            self.greeted = True
            self._send(PARENT, "child.ready", {"scheduling": self.scheduling} | self._hardware())
        if frame.name == "deadman.query":
            self._send(sender, "deadman.state", self.describe(), frame.id)
            return
        event = event_of(sender, frame)
        if isinstance(event, machine.Arm) and self.state.phase in (Phase.IDLE, Phase.WATCHING):
            self.hardware.start()
            if self.hardware.missing:
                reason = f"the hardware watchdog is required and is {self.hardware.state}"
                log("watchdog.refused", reason=reason)
                self._send(sender, "deadman.armed", {"ok": False, "until_ns": 0, "reason": reason}, frame.id)
                return
        self.feed(event, sender, frame.id)
        if isinstance(event, machine.Bounds):
            self.hardware.retime(event.lease_ns // MS + event.kill_bound_ns // MS)
            log("watchdog.bounds", lease_ms=event.lease_ns // MS, kill_bound_ms=event.kill_bound_ns // MS)

    def _hardware(self) -> dict[str, Any]:
        """For the parent, to be shown; ``hint`` only if the device is required and can not be used."""
        hardware = self.hardware
        missing = hardware.problem.hint if hardware.missing and hardware.problem is not None else ""
        return {"hardware": hardware.state, "hint": missing}

    def describe(self) -> dict[str, Any]:
        """The body of deadman.state. ``term``, ``until_ns`` are 0 unless armed."""
        state, armed = self.state, self.state.phase is Phase.ARMED
        return {
            "armed": armed,
            "term": state.term if armed else 0,
            "until_ns": state.until_ns if armed else 0,
            "pid": state.pid,
            "scheduling": self.scheduling,
            "hardware": self.hardware.state,
            "phase": state.phase.value,
            "lease_term": state.lease_term,
            "lease_until_ns": state.lease_until_ns,
            "lease_ms": state.lease_ns // MS,
            "kill_bound_ms": state.kill_bound_ns // MS,
            "at": state.at,
            "killed_term": state.killed_term,
            "reason": state.reason,
        }

    def feed(self, event: machine.Event, sender: bytes = PARENT, id: str = "") -> None:
        """One step of the machine, and everything it asks for."""
        before = self.state
        self.state, actions = machine.step(self.state, event, now_ns())
        if self.state.phase is not before.phase:
            log("watchdog.phase", phase=self.state.phase.value, term=self.state.term, pid=self.state.pid)
        for action in actions:
            self._perform(action, sender, id)
        self._tend_hardware(before)

    def _tend_hardware(self, before: machine.Deadman) -> None:
        """It follows the machine: told of each renewal and of nothing else, stopped when nothing can be writable."""
        if self.state.phase is Phase.ARMED and self.state.until_ns > before.until_ns:
            self.hardware.pet()
        elif self.state.phase in (Phase.IDLE, Phase.WATCHING):
            self.hardware.stop()

    def _perform(self, action: machine.Action, sender: bytes, id: str) -> None:
        match action:
            case machine.Kill(reason, until_ns):
                self.report = fence(self.config.pgdata, self.postmaster(), until_ns, self.config.cgroup)
                took_ms, left = self.report.took_ns // MS, list(self.report.survivors)
                log("watchdog.killed", reason=reason, took_ms=took_ms, killed=self.report.killed, survivors=left)
                self.feed(machine.FenceDone(len(left)))
            case machine.Killed(term, reason, survivors):
                body: dict[str, Any] = {"term": term, "reason": reason, "survivors": survivors}
                if self.report is not None:
                    body |= {"took_ms": self.report.took_ns // MS, "left": list(self.report.survivors)}
                self._send(PARENT, "deadman.killed", body)
            case machine.Exit(code):
                self.exit_code = code
            case machine.Armed(ok, reason, until_ns):
                log("watchdog.armed" if ok else "watchdog.refused", reason=reason, until_ns=until_ns)
                self._send(sender, "deadman.armed", {"ok": ok, "until_ns": until_ns, "reason": reason}, id)
            case machine.Disarmed(ok, reason):
                self._send(sender, "deadman.disarmed", {"ok": ok, "reason": reason}, id)
            case machine.Watching(ok, reason):
                self._send(sender, "deadman.watching", {"ok": ok, "reason": reason}, id)
            case machine.Leaving(ok, reason):
                self._send(sender, "deadman.exiting", {"ok": ok, "reason": reason}, id)

    def postmaster(self) -> ProcessId | None:
        return ProcessId(self.state.pid, self.state.start_ticks) if self.state.pid else None

    def _send(self, to: bytes, name: str, body: dict[str, Any], id: str = "") -> None:
        """Never blocks: a ROUTER drops what is for somebody who is not there or does not read."""
        with suppress(zmq.Again, zmq.ZMQError):
            self.socket.send_multipart([to, encode(name, body, id)], zmq.NOBLOCK)

    def close(self) -> None:
        self.hardware.abandon()  # stopped already, unless something of Postgres is left: then the machine is reset
        self.socket.close(linger=200)
        self.context.term()
        self.path.unlink(missing_ok=True)
        self.alarm.close()
        self.clocks.close()
        if self.parent_fd is not None:
            os.close(self.parent_fd)


def event_of(sender: bytes, frame: Frame) -> machine.Event:
    """The event a frame means; BadBody if it means none, or comes from someone who has no say in it."""
    body = frame.body
    if frame.name == "lease.changed":
        _only(sender, RAFT, frame)
        until = body.get("until_ns")
        return machine.LeaseChanged(_number(body, "term"), until if type(until) is int else 0)  # unreadable = expired
    _only(sender, PARENT, frame)
    match frame.name:
        case "deadman.arm":
            return machine.Arm(*(_number(body, key) for key in ("term", "pid", "start_ticks", "until_ns")))
        case "deadman.disarm":
            return machine.Disarm()
        case "deadman.watch":
            return machine.Watch(_number(body, "pid"), _number(body, "start_ticks"))
        case "deadman.exit":
            return machine.Leave()
        case "deadman.bounds":
            lease_ms, kill_bound_ms = _some_ms(body, "lease_ms"), _some_ms(body, "kill_bound_ms")
            return machine.Bounds(lease_ms * MS, kill_bound_ms * MS, _number(body, "at"))
        case _:
            raise BadBody(f"no such message: {frame.name!r}")


def _only(sender: bytes, allowed: bytes, frame: Frame) -> None:
    if sender != allowed:
        raise BadBody(f"{frame.name} may come from {allowed.decode()} alone")


def _number(body: dict[str, Any], key: str) -> int:
    value = body.get(key)
    if type(value) is not int or value < 0:
        raise BadBody(f"{key} must be a whole number, not {value!r}")
    return value


def _some_ms(body: dict[str, Any], key: str) -> int:
    if not 0 < (value := _number(body, key)) <= BOUND_MS_MAX:
        raise BadBody(f"{key} must be more than 0 and at most {BOUND_MS_MAX}, not {value}")
    return value


def log(event: str, **fields: Any) -> None:
    """One JSON line on stderr, dropped rather than waited for: a reader that stalls must not stall the watchdog."""
    line = json.dumps({"event": event, **fields}, default=str).encode()[: select.PIPE_BUF - 1] + b"\n"
    with suppress(OSError):  # nobody reads: that must not keep anyone from killing
        poller = select.poll()
        poller.register(2, select.POLLOUT)
        if poller.poll(0):
            os.write(2, line)


def _become_watchdog() -> None:
    for name in IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:  # prctl(PR_SET_NAME), for ps
        file.write(NAME)


def _last_stand(config: WatchdogConfig, postmaster: ProcessId | None, bound_ns: int) -> bool:
    """Fence without the machine; is nothing left? Bounded: the parent notices our end and fences too (safety.md,
    fencing ladder (c))."""
    give_up_ns = now_ns() + LAST_STAND_BOUNDS * bound_ns
    while now_ns() < give_up_ns:
        try:
            report = fence(config.pgdata, postmaster, now_ns() + bound_ns, config.cgroup)
            log("watchdog.last_stand", took_ms=report.took_ns // MS, survivors=list(report.survivors))
            if not report.survivors:
                return True
        except Exception:
            log("watchdog.last_stand", traceback=traceback.format_exc())
            select.poll().poll(25)  # nothing can tell when it will work
    return False


def main(arguments: list[str]) -> int:
    """For tests and for trying it by hand: --run DIR --pgdata DIR --parent PID --profile NAME --watchdog MODE."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m fencing.process", description=run.__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--pgdata", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="default")
    parser.add_argument("--cgroup", type=Path)
    parser.add_argument("--watchdog", choices=MODES, default=OFF)
    parser.add_argument("--watchdog-device", default=DEVICE)
    chosen = parser.parse_args(arguments)
    timings = PROFILES[chosen.profile]
    config = WatchdogConfig(chosen.run, chosen.pgdata, chosen.parent, timings, cgroup=chosen.cgroup)
    return run(replace(config, device=chosen.watchdog_device, mode=chosen.watchdog))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
