"""Commands of people (`hooks.*`), run by a node when something happens. Nothing here waits for them.

| hook | when | waited for by |
| --- | --- | --- |
| `pre_promote` | this node is to become primary, before its grant is proposed | the grant; not 0 in time is a no, and another node is tried |
| `on_role_change` | it has become primary (its gate is open) or is so no longer; and anew, with the role of now, when the supervisor starts and when the setting changes | nobody |
| `on_event` | an event of this node was recorded; of the replicated log only on the leader | nobody |

Each has a lane of its own: in order, one at a time, each call bounded by its time limit, then its process group gets
SIGTERM and, after KILL_MS, SIGKILL. A command is started by the launcher, as the user that Postgres runs as, in a
session of its own, with a clean environment and JSON on standard input; what it says is in the log of the node. It dies
with the supervisor. None is started while Postgres is being stopped or promoted (HOLD_MS at most).
"""  # noqa: E501  (a table)

from __future__ import annotations

import json
import os
import pwd
import select
import signal
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consensus.clusterwide import ON_EVENT, ON_ROLE_CHANGE, PRE_PROMOTE
from fencing.clock import now_ns
from fencing.lease import MS
from fencing.logs import utc_now
from supervisor import files
from supervisor.children import UNKNOWN
from supervisor.context import Context
from supervisor.errors import PgrError
from supervisor.events import Record
from supervisor.launcher import POSTGRES, Launcher
from supervisor.roles import Local, Server, Step
from supervisor.tasks import Handle, Outcome, Runner, Task, Wait

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KILL_MS = 2_000
"""From SIGTERM to SIGKILL."""
GIVE_UP_MS = 5_000
"""From SIGKILL on: then it hangs in the kernel, and the next call does not wait for it."""
WAITING_MAX = 1_000
"""Calls of one lane; beyond that the oldest is given up, with a word in the log."""
HOLD_MS = 3_000
EXIT_MS = 10_000
"""A node that stops waits so long for what is still to be told of its role."""
SAY_AGAIN_MS = 1_000
LOOK_EVERY_MS = 5_000
LINES_MAX, LINE_MAX = 200, 2_000
"""Of what one call says, into the log."""
BUSY = (
    Step.FENCE, Step.HAND_OVER, Step.STOP, Step.REPORT_FENCED, Step.FREEZE, Step.DETACH, Step.PROMOTE, Step.OPEN,
    Step.OPEN_GATE,
)  # fmt: skip
"""Steps that a fork beside them would only slow down."""


def role_of(local: Local) -> str:
    """``primary`` while clients may write here, else ``replica``, whatever its Postgres does."""
    return "primary" if local.server is Server.PRIMARY and local.gate_open else "replica"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call went. ``code``: None: it was not started, or killed after its time."""

    code: int | None
    said: str
    """Its last line, or why it has none."""

    @property
    def reason(self) -> str:
        """For a no."""
        how = "" if self.code is None else f"ended with {self.code}" if self.code >= 0 else f"signal {-self.code}"
        return ": ".join(part for part in (how, self.said) if part)


class Lane:
    """The calls of one hook."""

    def __init__(self, hooks: Hooks, setting: str) -> None:
        self.hooks, self.c, self.setting = hooks, hooks.c, setting
        self.name = setting.removeprefix("hooks.")
        self.waiting: deque[dict[str, Any]] = deque()
        self.lost = 0
        self.running = False
        self.fd = -1
        run = self.c.config.run
        self.pipe, self.stdin, self.mark = (run / f"hook-{self.name}{end}" for end in ("", ".json", ".pid"))

    def add(self, body: dict[str, Any]) -> None:
        self.waiting.append(body)
        if len(self.waiting) > WAITING_MAX:
            self.waiting.popleft()
            self.lost += 1

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def serve(self) -> Task[None]:
        """For ever: one call after the other."""
        while True:
            yield Wait(ready=lambda: bool(self.waiting) and self.hooks.free())
            if self.lost:
                self.c.log.warning("hook.lost", hook=self.name, lost=self.lost)
                self.lost = 0
            body = self.waiting.popleft()
            self.running = True
            try:
                yield from self.call(body)
            finally:
                self.running = False

    def call(self, body: dict[str, Any]) -> Task[Ended]:
        """Run it once, with what the settings are now. A cancelled call is killed at once."""
        c, argv = self.c, self.hooks.command(self.setting)
        if argv is None:
            return Ended(0, "there is no such hook any more")
        timeout_ms = 1000 * int(c.cluster.setting(f"{self.setting}_timeout"))
        if self.setting == ON_ROLE_CHANGE:
            # As Patroni calls its callbacks: ACTION ROLE CLUSTER.
            argv = [*argv, self.name, str(body["role"]), str(body["cluster"])]
        try:
            pid = self._start(argv, body)
        except (PgrError, OSError) as error:
            said = error.message if isinstance(error, PgrError) else str(error)
            c.log.warning("hook.not_started", hook=self.name, error=said)
            return Ended(None, f"it can't be started: {said}")
        began = now_ns()
        c.log.info("hook.begin", hook=self.name, pid=pid)
        code, said = yield from self._wait(pid, began + timeout_ms * MS)
        took_ms = (now_ns() - began) // MS
        if code is None:
            c.log.warning("hook.killed", hook=self.name, after_ms=timeout_ms, said=said)
            return Ended(None, f"killed after {timeout_ms // 1000} s" + (f", it had said: {said}" if said else ""))
        if code:
            c.log.warning("hook.failed", hook=self.name, code=code, took_ms=took_ms, said=said)
        else:
            c.log.info("hook.end", hook=self.name, code=code, took_ms=took_ms)
        return Ended(code, said)

    def _start(self, argv: list[str], body: dict[str, Any]) -> int:
        if self.fd < 0:
            self.pipe.unlink(missing_ok=True)
            os.mkfifo(self.pipe, 0o600)
            # Its writers come and go; with one of its own at this end it never is at its end.
            self.fd = os.open(self.pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.stdin.write_text(json.dumps(body) + "\n", encoding="utf-8")
        pid = self.hooks.launcher.spawn(
            POSTGRES, argv=argv, env=self.hooks.environment(self.name, body), cwd="/", log_path=str(self.pipe),
            stdin_path=str(self.stdin), death_signal=signal.SIGKILL,
        )  # fmt: skip
        self.c.children.expect(pid)
        self.mark.write_text(str(pid))
        return pid

    def _wait(self, pid: int, until_ns: int) -> Task[tuple[int | None, str]]:
        """(status, or None if it had to be killed; its last line)."""
        said = _Said(self.c, self.name)
        code: int | None = None
        killed = False
        signals = [(signal.SIGTERM, KILL_MS), (signal.SIGKILL, GIVE_UP_MS)]
        pidfd = os.pidfd_open(pid)
        try:
            with select.epoll() as both:
                for fd in (self.fd, pidfd):
                    both.register(fd, select.EPOLLIN)
                while code is None:
                    yield Wait(both.fileno(), read=True, until_ns=until_ns)
                    said.take(self._read())
                    code = self.c.children.poll(pid)
                    if code is None and now_ns() >= until_ns:
                        if not signals:
                            code = UNKNOWN
                            break
                        number, patience_ms = signals.pop(0)
                        killed, until_ns = True, now_ns() + patience_ms * MS
                        if not _signal_group(pid, number):
                            hint = "it runs as another user, who has to end it"
                            self.c.log.warning("hook.not_killed", hook=self.name, pid=pid, hint=hint)
        finally:
            os.close(pidfd)
            if code is None or killed:
                _signal_group(pid, signal.SIGKILL)
            self.c.children.forget(pid)
            self.mark.unlink(missing_ok=True)
        said.take(self._read())
        return None if killed else code, said.end()

    def _read(self) -> bytes:
        """What it has said since; no more than a pipe holds, so that a loud one does not hold up the loop."""
        try:
            return os.read(self.fd, 65536)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Said:
    """Output, line by line, into the log."""

    def __init__(self, c: Context, name: str) -> None:
        self.c, self.name = c, name
        self.partial, self.last, self.count = b"", "", 0

    def take(self, data: bytes) -> None:
        *whole, self.partial = (self.partial + data).split(b"\n")
        for line in whole:
            self._line(line)
        if len(self.partial) > LINE_MAX:
            self._line(self.partial)
            self.partial = b""

    def _line(self, raw: bytes) -> None:
        text = raw[:LINE_MAX].decode(errors="replace").strip()
        if not text:
            return
        self.last = text
        self.count += 1
        if self.count <= LINES_MAX:
            self.c.log.info("hook.says", hook=self.name, text=text)

    def end(self) -> str:
        self._line(self.partial)
        if self.count > LINES_MAX:
            self.c.log.info("hook.says_more", hook=self.name, lines=self.count - LINES_MAX)
        return self.last


def _signal_group(group: int, number: signal.Signals) -> bool:
    """False: there is somebody, and none of it is ours to end (sudo)."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass  # all of it has ended
    except PermissionError:
        return False
    return True


class Hooks:
    """All lanes of a node, and what they are to be told."""

    def __init__(self, context: Context, launcher: Launcher, runner: Runner) -> None:
        self.c, self.launcher, self.runner = context, launcher, runner
        self.pre_promote, self.role_change, self.event = (
            Lane(self, setting) for setting in (PRE_PROMOTE, ON_ROLE_CHANGE, ON_EVENT)
        )
        self.lanes = (self.pre_promote, self.role_change, self.event)
        for lane in self.lanes:
            self._end_leftover(lane)
        self.handles = [runner.start(lane.serve(), _served, lane.name) for lane in (self.role_change, self.event)]
        self.role = role_of(context.local)
        self.told: list[str] | None = None
        """The on_role_change that was told of the role."""
        self.asked = (0, 0)
        """The run of pre_promote that is under way or done."""
        self.check: Handle | None = None
        self.verdict: dict[str, Any] | None = None
        self.say_again_ns = 0
        self.busy_since_ns = self.look_ns = 0

    # -- what happens ------------------------------------------------------------------------------------------------

    def turn(self, step: Step, now: int) -> None:
        """Each turn of the loop, after what is to be done is planned."""
        self.busy_since_ns = (self.busy_since_ns or now) if step in BUSY else 0
        self._notice_role()
        self._check(now)
        if now >= self.look_ns:
            self.look_ns = now + LOOK_EVERY_MS * MS
            self._look()

    def _look(self) -> None:
        """Is everything there that may be called? Found out at a promotion it would be too late."""
        commands = {lane.setting: self.command(lane.setting) for lane in self.lanes}
        missing = tuple(f"{n}: {c[0]}" for n, c in commands.items() if c is not None and not os.access(c[0], os.X_OK))
        if missing != self.c.facts.missing_hooks:
            self.c.facts = replace(self.c.facts, missing_hooks=missing)

    def free(self) -> bool:
        """May a hook that nobody waits for be started now?"""
        busy = self.busy_since_ns
        return self.c.view.cluster is not None and (not busy or now_ns() - busy > HOLD_MS * MS)

    def _notice_role(self) -> None:
        before, self.role = self.role, role_of(self.c.local)
        command = self.command(ON_ROLE_CHANGE)
        if command is not None and self.told is not None and before != self.role:
            self.role_change.add(self._body(self.role_change.name, previous_role=before))
        elif command is not None and command != self.told:
            self.role_change.add(self._body(self.role_change.name, previous_role=""))
        if self.c.view.cluster is not None:
            self.told = command

    def record(self, record: Record) -> None:
        """A new event (`Chronicle.on_record`). Of the replicated log the leader tells; of this hook nobody."""
        if self.command(ON_EVENT) is None or record["fields"].get("hook") == self.event.name:
            return
        if record["scope"] == "cluster" and self.c.view.leader != self.c.local.me:
            return
        self.event.add(self._body(self.event.name) | {"event": record})

    def _check(self, now: int) -> None:
        """The Raft child wants a run of pre_promote, or no longer."""
        wanted = self.c.view.pre_promote if self.c.view.alive else (0, 0)
        if wanted != self.asked:
            self.asked, self.verdict = wanted, None
            if self.check is not None:
                self.check.cancel()
                self.check = None
            if wanted != (0, 0):
                body = self._body(self.pre_promote.name, term=wanted[0], run=wanted[1])
                self.check = self.runner.start(self.pre_promote.call(body), self._checked, self.pre_promote.name)
        elif self.verdict is not None and now >= self.say_again_ns:
            self._say(now)

    def _checked(self, outcome: Outcome[Ended]) -> None:
        ended = outcome.unwrap()
        self.check = None
        self.verdict = {"run": list(self.asked), "ok": ended.code == 0, "reason": ended.reason}
        self._say(now_ns())

    def _say(self, now: int) -> None:
        self.say_again_ns = now + SAY_AGAIN_MS * MS
        self.c.raft.tell("node.hooked", self.verdict or {})

    # -- what they are told ------------------------------------------------------------------------------------------

    def command(self, setting: str) -> list[str] | None:
        """The argument list; None: not set, or not known yet."""
        cluster = self.c.view.cluster
        found = cluster.setting(setting) if cluster is not None else None
        return list(found) if found else None

    def _body(self, hook: str, **more: Any) -> dict[str, Any]:
        c = self.c
        cluster = c.view.cluster
        grant = cluster.grant if cluster is not None else None
        return {
            "hook": hook, "at": utc_now(), "member": c.local.me,
            "cluster": cluster.cluster_id if cluster is not None else "", "term": grant.term if grant else 0,
            "primary": grant.node if grant is not None and not grant.failed else "", "role": self.role,
            "postgres": str(c.config.pg_advertise),
        } | more  # fmt: skip

    def environment(self, hook: str, body: Mapping[str, Any]) -> dict[str, str]:
        """All of it: nothing is inherited."""
        user = self.c.os_user
        try:
            home = pwd.getpwnam(user).pw_dir
        except KeyError:
            home = "/"
        found = {
            "PATH": PATH, "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8", "PGR_HOOK": hook,
            "PGR_MEMBER": str(body["member"]), "PGR_CLUSTER": str(body["cluster"]), "PGR_TERM": str(body["term"]),
            "PGR_ROLE": str(body["role"]), "PGR_DATA": str(self.c.config.data),
        }  # fmt: skip
        return found | ({"PGR_PREVIOUS_ROLE": str(body["previous_role"])} if "previous_role" in body else {})

    # -- the end -----------------------------------------------------------------------------------------------------

    @property
    def owed(self) -> bool:
        """Has the end of a role still to be told?"""
        return not self.role_change.idle

    def close(self) -> None:
        """Whatever still runs is killed."""
        for handle in (*self.handles, *([self.check] if self.check is not None else [])):
            handle.cancel()
        for lane in self.lanes:
            lane.close()

    def _end_leftover(self, lane: Lane) -> None:
        """A supervisor that was killed leaves what its hook had started: nobody may go on acting for the role of then.
        What made itself a session of its own (a daemon) is not touched."""
        try:
            group = int(lane.mark.read_text())
        except (OSError, ValueError):
            return
        marked = f"PGR_HOOK={lane.name}".encode()
        ended = [pid for pid in _members(group) if marked in _environment(pid) and _kill(pid)]
        lane.mark.unlink(missing_ok=True)
        if ended:
            self.c.log.warning("hook.leftover_ended", hook=lane.name, pids=ended)


def _served(outcome: Outcome[None]) -> None:
    """A lane ends by a bug only."""
    outcome.unwrap()


def _members(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == group:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def _environment(pid: int) -> list[bytes]:
    try:
        return (files.read_optional(Path(f"/proc/{pid}/environ")) or b"").split(b"\0")
    except OSError:
        return []  # somebody else's


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
