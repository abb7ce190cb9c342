"""The parent: the shipped table of steps, view, observation and task runner, around modelled steps (steps.py).

A port of supervisor/daemon.py without sockets and people: what it decides beside the table (pauses after failures,
re-arming a new watchdog, a promotion that takes too long, a silent Raft child) is as there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from consensus import retiming
from consensus.clustertext import load
from fencing import deadman as machine
from fencing.lease import MS, UNTOLD, Timings
from supervisor import observe
from supervisor.daemon import (
    FATAL_CODES,
    HAND_OVER_MS,
    HELLO_EVERY_MS,
    OBSERVE_EVERY_MS,
    RAFT_SILENT_MS,
    REARM_PAUSE_MS,
    RELEASE_MS,
    RETRY_FIRST_MS,
    RETRY_MAX_MS,
    URGENT,
    URGENT_MAX_MS,
    URGENT_PAUSE_MS,
)
from supervisor.offspring import (
    ASK_EVERY_MS,
    BACK_OFF_FIRST_MS,
    BACK_OFF_MAX_MS,
    QUICK_DEATH_MS,
    WATCHDOG_SILENT_MS,
)
from supervisor.overdue import Overdue
from supervisor.roles import Local, Plan, Server, Situation, Step, View, plan
from supervisor.tasks import NEVER, Handle, Outcome, Runner, Task
from tests.sim import steps as modelled
from tests.sim.context import Context
from tests.sim.pgdata import UNIT
from tests.sim.postgres import Postgres, State
from tests.sim.tasks import StepFailed

if TYPE_CHECKING:
    from tests.sim.host import Host

WATCH_EVERY_MS, WATCH_SOON_MS, NOT_STREAMING_MS = 1_000, 100, 1_500
DEAD_END = ("is not in this server's history", "forked from")


ASKED_AGAIN = 64
"""Every so many times a remembered plan is compared with the one of the table."""


class Planned(NamedTuple):
    """What the table says of these facts until an instant: of time it knows only whether authority has ended."""

    view: View
    local: Local
    timings: Timings
    until_ns: int
    plan: Plan
    sentence: str
    owes_no_position: bool
    act_at_ns: int
    """0: nothing here is writable."""


class Parent(Context):
    """One life of the process ``parent`` of a host."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.runner = Runner()
        self.plan, self.sentence = Plan(Step.WAIT), "starting"
        self.planned: Planned | None = None
        self.plans = 0
        self.task: Handle | None = None
        self.failures: dict[Plan, tuple[int, int]] = {}
        self.frames: deque[tuple[str, dict[str, Any]]] = deque()
        self.greeted = False
        self.hello_at = self.stop_asked_ns = self.exit_asked_ns = 0
        self.overdue, self.checkpointing = Overdue(), 0
        self.raft_heard_ns = 0
        self.raft_started_ns, self.quick_deaths = host.now(), 0
        self.observed: dict[str, Any] = {}
        self.observe_at = 0
        self.published: tuple[object, ...] = ()
        self.watch_at = self.idle_since_ns = 0
        self.asked_ns = self.ask_at_ns = 0
        self.watchdog_ready = self.removed = False
        self.steps = modelled.Steps(self)

    def begin(self) -> None:
        self.soon()

    # -- the loop ------------------------------------------------------------------------------------------------

    def hear(self, name: str, body: dict[str, Any]) -> None:
        self.frames.append((name, body))
        self.soon()

    def from_raft(self, life: int, name: str, body: dict[str, Any], request_id: str) -> None:
        if life == self.host.raft_process.life:
            self.hear(name, body | {"id": request_id})

    def _turn(self) -> None:
        self.turn_due = False
        now, process = self.now, self.process
        self._take_in(now)
        if process.alive:
            self.runner.run({}, now)
        if process.alive:
            self._replan(now)
        if process.alive:
            self._watch(now)
            self._publish(now)
            self._sleep(now)

    def _sleep(self, now: int) -> None:
        _, at = self.runner.wait_for()
        at = min(at, self.watch_at, now + (50 if self.local.stopping else 1_000) * MS)
        if self.view.alive:
            at = min(at, self.observe_at)
        if not self.greeted:
            at = min(at, self.hello_at)
        act_at_ns = self._planned(now).act_at_ns
        if act_at_ns > now:
            at = min(at, act_at_ns)
        if self.task is None and (pause := self.failures.get(self.plan)) is not None:
            at = min(at, pause[1])
        true = max(self._clock.true(at), self.world.now + 50_000)
        if self.wake_at <= self.world.now or true < self.wake_at:
            self.wake_at = true
            self.process.post_at(true, self._wake)

    def _wake(self) -> None:
        if self.world.now >= self.wake_at:
            self.wake_at = 0
            self.soon()

    def _take_in(self, now: int) -> None:
        while self.frames and self.process.alive:
            self._frame(*self.frames.popleft(), now)
        if self.view.alive and now - self.raft_heard_ns > RAFT_SILENT_MS * MS:
            self.raft_heard_ns = now
            self.world.note(self.host.name, "raft child is silent, it is killed")
            self.host.raft_ended(-9)
        self._ask_watchdog(now)
        if not self.greeted and now >= self.hello_at:
            self.hello_at = now + HELLO_EVERY_MS * MS
            self.tell_raft("node.hello", {})

    def _ask_watchdog(self, now: int) -> None:
        """A frozen one does not die by itself."""
        if not self.watchdog_ready:
            self.asked_ns = 0
        elif self.asked_ns and now - self.asked_ns > WATCHDOG_SILENT_MS * MS:
            self.asked_ns = 0
            self.world.note(self.host.name, "watchdog is silent, it is killed")
            self.host.watchdog_ended()
        elif now >= self.ask_at_ns:
            host = self.host
            host.bus(host.watchdog_process, "parent-watchdog", lambda: host.tell_parent("deadman.state", {}))
            self.asked_ns, self.ask_at_ns = self.asked_ns or now, now + ASK_EVERY_MS * MS

    def _frame(self, name: str, body: dict[str, Any], now: int) -> None:
        match name:
            case "deadman.state":
                self.asked_ns = 0
                known, bounds = self.host.watchdog.state, self.host.bounds
                there = (known.lease_ns, known.kill_bound_ns, known.at)
                if self.host.bounds_at != UNTOLD and there != (
                    bounds.lease_ms * MS, bounds.kill_bound_ms * MS, self.host.bounds_at,
                ):  # fmt: skip
                    self.host.tell_bounds()  # it has not heard
            case "deadman.killed":
                self.asked_ns = 0
            case "watchdog.ready":
                self.asked_ns, self.watchdog_ready = 0, True
                self._guard_again()
            case _:
                self.raft_heard_ns = now
                self._from_raft(name, body)

    def _from_raft(self, name: str, body: dict[str, Any]) -> None:
        match name:
            case "child.ready":
                self.greeted = True
                self.view = replace(self.view, incarnation=int(body["incarnation"]))
            case "raft.state":
                if body["sentence"] not in ("", self.view.sentence):
                    self.world.note(self.host.name, f"term {body['term']}: {body['sentence']}")
                self.view = observe.view_of(self.view, body)
                self.steps.look()
            case "raft.cluster":
                self.view = replace(self.view, cluster=load(body["state"]))
                self.timings = retiming.at_the_parent(self.cluster.pace)
                self.host.watchdog_bounds(self.cluster.pace)
                self.steps.look()
            case "lease.changed":
                self.view = replace(self.view, lease_term=body["term"], lease_until_ns=body["until_ns"], renewed=True)
            case "raft.removed":
                self.removed = True
                self.change(stopping=True, asked_to_hand_over=True)
            case "record.saved":
                if body["id"] in self.saves:
                    self.saves[body["id"]] = True
            case "admin.answer" if body["id"] == "stop" and body.get("ok") is not True:
                self.change(asked_to_hand_over=True)
            case "admin.answer":
                self.world.note(self.host.name, f"answer: {body.get('error') or body.get('to') or 'ok'}")
            case _:
                pass

    # -- children and Postgres -----------------------------------------------------------------------------------

    def child_ended(self, name: str, code: int) -> None:
        host, now = self.host, self.now
        self.world.trace(f"{host.name} {name} ended {code}")
        if name == "watchdog":
            self.watchdog_ready = False
            if not self.local.unguarded_since_ns:
                self.change(unguarded_since_ns=now)
            self.process.post(self.world.between(1_000, 40_000), self._start_watchdog)
        else:
            self.frames = deque(f for f in self.frames if f[0] in ("deadman.killed", "deadman.state", "watchdog.ready"))
            self.saves.clear()
            self.view = replace(self.view, alive=False, renewed=False, met=False)
            self.change(frozen=0, said_no_position=0)
            self.greeted, self.hello_at = False, now
            if code in FATAL_CODES and not self.local.stopping:
                self._stop_at_once(code)
                return
            quick = now - self.raft_started_ns < QUICK_DEATH_MS * MS
            self.quick_deaths = self.quick_deaths + 1 if quick else 0
            pause_ms = min(BACK_OFF_MAX_MS, BACK_OFF_FIRST_MS << min(self.quick_deaths, 8)) if quick else 0
            self.process.post(pause_ms * MS + self.world.between(1_000, 40_000), self._start_raft)
        self.soon()

    def _start_raft(self) -> None:
        if not self.host.raft_process.alive:
            self.raft_started_ns = self.now
            self.host.start_raft()

    def _start_watchdog(self) -> None:
        if not self.host.watchdog_process.alive:
            self.host.start_watchdog()

    def _guard_again(self) -> None:
        if self.server is None:
            self.change(unguarded_since_ns=0)
        elif self._situation(self.now).writable:
            self.runner.start(self._rearm(self.local.epoch), self._rearmed, "rearm")
        else:
            self.tell_watchdog(machine.Watch(self.steps.pid, 1))
            self.change(unguarded_since_ns=0)

    def _rearm(self, epoch: int) -> Task[bool]:
        server, view = self.server, self.view
        if server is None or view.lease_term != epoch or not self._situation(self.now).writable:
            return False
        ok = yield from self.ask_watchdog(machine.Arm(epoch, self.steps.pid, 1, view.lease_until_ns), 200)
        if not ok:
            yield from self.steps.sleep(REARM_PAUSE_MS)
        return ok

    def _rearmed(self, outcome: Outcome[bool]) -> None:
        if not self._situation(self.now).writable:
            return
        if outcome.error is None and outcome.value:
            self.change(unguarded_since_ns=0)
        else:
            self._guard_again()

    def postgres_exited(self, postgres: Postgres) -> None:
        if self.server is not postgres:
            return
        stopping = self.plan.step in (Step.FENCE, Step.HAND_OVER, Step.STOP, Step.REWIND, Step.CLONE)
        awaited = self.local.server is Server.STOPPING or self.plan.step is Step.FENCE
        if not (self.task is not None and stopping and awaited):
            self.world.note(self.host.name, f"Postgres ended, epoch {self.local.epoch}")
            self.change(died=self.local.epoch > 0)
            self.steps.bury("postmaster ended")
        self.soon()

    # -- steps ---------------------------------------------------------------------------------------------------

    def _situation(self, now: int) -> Situation:
        return Situation(self.view, self.local, self.timings, now)

    def _planned(self, now: int) -> Planned:
        known, view, local = self.planned, self.view, self.local
        if (
            known is not None and now < known.until_ns
            and view is known.view and local is known.local and self.timings is known.timings
        ):  # fmt: skip
            self.plans += 1
            if self.plans % ASKED_AGAIN == 0 and plan(self._situation(now))[0] != known.plan:
                raise AssertionError(f"the plan depends on the time in another way: {known.plan}")
            return known
        situation = self._situation(now)
        until_ns, act_at_ns = NEVER, situation.act_at_ns
        if situation.authority:
            unguarded_ns = local.unguarded_since_ns
            until_ns = min(act_at_ns, unguarded_ns + self.timings.demote_ms * MS if unguarded_ns else NEVER)
        self.planned = Planned(
            view, local, self.timings, until_ns, *plan(situation), situation.owes_no_position,
            act_at_ns if situation.writable else 0,
        )  # fmt: skip
        return self.planned

    def _replan(self, now: int) -> None:
        for _ in range(10):
            if self.local.stopping:
                self._ask_successor(now)
            self._watch_promotion(now)
            if self._planned(now).owes_no_position:
                self.steps.say_no_position(self.view.wanted)
            found = self._planned(now)
            wanted, self.sentence = found.plan, found.sentence
            if wanted is not self.plan and wanted != self.plan:
                if wanted.rule != self.plan.rule:
                    self.world.note(self.host.name, f"plan {wanted.rule} {wanted.term or ''}")
                if self.task is not None:
                    self.task.cancel()
                    self.task = None
            self.plan = wanted
            if self.task is not None or wanted.step is Step.WAIT:
                return
            if wanted.step is Step.EXIT:
                self._leave(now)
                return
            if now < self.failures.get(wanted, (0, 0))[1]:
                return
            self.task = self.runner.start(self.steps.of(wanted), self._finisher(wanted), wanted.step)
            self.runner.run({}, now)

    def _ask_successor(self, now: int) -> None:
        if not self.local.stopping or self.local.asked_to_hand_over or not self._situation(now).writable:
            return
        if self.view.cluster is None or len(self.view.cluster.members) < 2:
            self.change(asked_to_hand_over=True)
        elif not self.stop_asked_ns:
            self.stop_asked_ns = now
            self.tell_raft("admin.request", {"name": "switchover", "body": {}}, "stop")
        elif now - self.stop_asked_ns > HAND_OVER_MS * MS:
            self.change(asked_to_hand_over=True)

    def _watch_promotion(self, now: int) -> None:
        term = self.overdue.failed(self.view, self.local, self.facts.answered_ns, now)
        if term:
            self.change(failed_promotion=term)

    def _finisher(self, done: Plan) -> Callable[[Outcome[Any]], None]:
        return lambda outcome: self._done(done, outcome)

    def _done(self, done: Plan, outcome: Outcome[Any]) -> None:
        self.task = None
        if outcome.error is None:
            pause_ms = URGENT_PAUSE_MS if done.step in URGENT else RETRY_FIRST_MS
            self.failures[done] = (0, self.now + pause_ms * MS)
            if done.step is Step.PROMOTE and self.local.server is Server.PRIMARY and self.checkpointing != done.term:
                self.checkpointing = done.term
                self.runner.start(self.steps.checkpoint(done.term), ignore, "checkpoint")
            return
        if not isinstance(outcome.error, StepFailed | TimeoutError):
            raise outcome.error
        count = self.failures.get(done, (0, 0))[0] + 1
        first_ms, most_ms = (URGENT_PAUSE_MS, URGENT_MAX_MS) if done.step in URGENT else (RETRY_FIRST_MS, RETRY_MAX_MS)
        pause_ms = URGENT_PAUSE_MS if done.step is Step.FENCE else min(most_ms, first_ms << min(count - 1, 10))
        self.failures[done] = (count, self.now + pause_ms * MS)
        self.world.trace(f"{self.host.name} {done.step} failed: {outcome.error}")

    # -- looking and telling -------------------------------------------------------------------------------------

    def _watch(self, now: int) -> None:
        """supervisor/watch.py, without its session: informs, never decides."""
        if now < self.watch_at:
            return
        server = self.server
        settled = self.local.server is Server.PRIMARY or self.facts.streaming or not self.local.upstream
        self.watch_at = now + (WATCH_EVERY_MS if settled else WATCH_SOON_MS) * MS
        if server is None or server.process.frozen or server.state in (State.STARTING, State.GONE):
            return
        primary = server.state is State.PRIMARY
        end = server.directory.flushed if primary else max(server.received, server.replayed)
        self.facts = replace(
            self.facts, lsn=end * UNIT, replay_lsn=(end if primary else server.replayed) * UNIT,
            streaming=server.receiver is not None and not server.receiver.forks and not primary, answered_ns=now,
        )  # fmt: skip
        if self.local.server is not Server.STANDBY or not self.local.upstream or self.facts.streaming:
            self.idle_since_ns = 0
            return
        self.idle_since_ns = self.idle_since_ns or now
        if now - self.idle_since_ns >= NOT_STREAMING_MS * MS and any(t in self.host.last_refusal for t in DEAD_END):
            self.change(diverged=self.local.upstream)

    def _publish(self, now: int) -> None:
        seen_of = (self.view, self.local, self.facts, self.plan)
        if not self.view.alive or (seen_of == self.published and now < self.observe_at):
            return
        self.published = seen_of
        waits = self.view.sentence if self.view.role == "leader" and not self.view.granted else ""
        facts = replace(self.facts, progress=waits) if waits != self.facts.progress else self.facts
        seen = observe.observation(self.view, self.local, facts, self.plan.step, self.sentence, "sim")
        if seen != self.observed or now >= self.observe_at:
            self.tell_raft("node.observed", seen)
            self.observed, self.observe_at = seen, now + OBSERVE_EVERY_MS * MS

    # -- the end -------------------------------------------------------------------------------------------------

    def _stop_at_once(self, code: int) -> None:
        if self.task is not None:
            self.task.cancel()
        if self.server is not None:
            self.steps.bury("the node stops at once")
        self.host.leave(code)

    def _leave(self, now: int) -> None:
        self.exit_asked_ns = self.exit_asked_ns or now
        handed = self.view.leader not in ("", self.host.name) or not self.view.alive
        alone = self.view.cluster is None or len(self.view.cluster.members) < 2
        if handed or alone or self.removed or now - self.exit_asked_ns > RELEASE_MS * MS:
            self.host.leave(0)

    def stop(self) -> None:
        """SIGTERM."""
        self.change(stopping=True)
        self.soon()


def ignore(outcome: Outcome[Any]) -> None:
    if outcome.error is not None and not isinstance(outcome.error, StepFailed | TimeoutError):
        raise outcome.error
