"""The parent: one poll loop over signals, process ends, the bus, Postgres sessions, HTTP and admin clients.

Every turn: take in what happened, ask roles.py for the next step, run it as a task. No rule is held here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from consensus.clustertext import load
from fencing import wire
from fencing.clock import now_ns
from fencing.lease import MS, PROFILES
from fencing.logs import Log
from supervisor import binaries as find_binaries
from supervisor import configcheck, datadir, filewatch, hooks, httpgate, member, observe, preflight, privileges, watch
from supervisor.adminserver import AdminServer
from supervisor.children import ChildTable
from supervisor.config import Config
from supervisor.context import Context, StepFailed
from supervisor.controldata import ControlDataError
from supervisor.errors import ExitCode, PgrError, RefusedError
from supervisor.healthserver import Current
from supervisor.init import Signals
from supervisor.jobs import JobFailed
from supervisor.launcher import Launcher
from supervisor.links import Link
from supervisor.offspring import Offspring, last_words, without_hardware
from supervisor.overdue import Overdue, limit_ms
from supervisor.postgres import OccupiedError, Postgres
from supervisor.promote import Promotion
from supervisor.rebuild import Rebuild
from supervisor.regroup import Regroup
from supervisor.roles import Local, Plan, Server, Situation, Step, View, is_paused, plan
from supervisor.sql import SqlFailure
from supervisor.sqlsurface import Surface
from supervisor.starts import Start
from supervisor.steps import Steps
from supervisor.systemd import Service
from supervisor.tasks import NEVER, Handle, Outcome, Runner, Task, TaskTimeout, sleep

SNAPSHOT_EVERY_MS = 1_000
HELLO_EVERY_MS = 20
RETRY_FIRST_MS, RETRY_MAX_MS = 100, 5_000
HAND_OVER_MS = 15_000
"""A stopping primary waits this long for another to take over, then stops without."""
RELEASE_MS = 1_500
"""After a hand-over the Raft child stays this long for the successor to be elected."""
STOP_CHILDREN_MS = 1_000
OBSERVE_EVERY_MS = 1_000
"""Also when nothing changed: the Raft child takes a silent parent for a hung one."""
REARM_PAUSE_MS = 20
RAFT_SILENT_MS = 5_000
"""The Raft child tells something twice a second; one that says nothing for this long is hung and is replaced."""
URGENT = (Step.FENCE, Step.FREEZE, Step.DETACH, Step.PROMOTE, Step.REPORT_FENCED, Step.OPEN, Step.OPEN_GATE)
URGENT_PAUSE_MS = 20
URGENT_MAX_MS = 1_000
"""Steps on the way to safety or to a primary are tried again soon; a fence at once, always."""
FATAL_CODES = (ExitCode.USAGE, ExitCode.MISSING, ExitCode.DISK, ExitCode.REFUSED)


def run(config: Config, launcher: Launcher, log: Log) -> int:
    """The node's life, from the first child to the exit code."""
    os.chdir("/")  # the fence kills whatever has PGDATA as its working directory
    daemon = Daemon(config, launcher, log)
    try:
        code = daemon.loop()
        if daemon.failure is not None:
            raise daemon.failure
        return code
    finally:
        daemon.close()


class Daemon:
    """Wires everything to one loop."""

    def __init__(self, config: Config, launcher: Launcher, log: Log) -> None:
        self.config, self.launcher, self.log = config, launcher, log
        self.binaries = find_binaries.find(config.pg_bin)
        if preflight.has_postgres(config.pgdata):
            preflight.check_major(config.pgdata, self.binaries.major, self.binaries.bin_dir)
        self.signals = Signals()
        self.children = ChildTable()
        self.zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.c = self._context()
        self.steps = Steps(self.c)
        promotion = Promotion(self.c, self.steps)
        self.rebuild = Rebuild(self.c, self.steps)
        self.actions: dict[Step, Callable[[Plan], Task[Any]]] = {
            Step.FENCE: self.steps.fence, Step.HAND_OVER: self.steps.hand_over, Step.STOP: self.steps.stop,
            Step.REPORT_FENCED: self.steps.report_fenced, Step.CREATE: self.rebuild.create,
            Step.CLONE: self.rebuild.clone, Step.REWIND: self.rebuild.rewind,
            Step.START: Start(self.c, self.steps).start, Step.FREEZE: self.steps.freeze, Step.DETACH: self.steps.detach,
            Step.PROMOTE: promotion.promote, Step.OPEN: promotion.prove, Step.OPEN_GATE: promotion.open_gate,
            Step.REGROUP: Regroup(self.c, self.steps).regroup, Step.FOLLOW: self.steps.follow,
        }  # fmt: skip
        self.runner = Runner()
        self.plan = Plan(Step.WAIT)
        self.sentence = "starting"
        self.task: Handle | None = None
        self.failures: dict[Plan, tuple[int, int]] = {}
        """Plan -> (failures in a row, not before)."""
        self.watcher: Handle | None = None
        self.members: dict[str, Any] = {}
        self.scheduling: dict[str, str] = {}
        self.founding_sentence = ""
        self.offspring = Offspring(config, launcher, self.children, log)
        self.admin = AdminServer(self.zmq, self.c)
        self.sql = Surface(self.c, self.admin)
        self.hooks = hooks.Hooks(self.c, launcher, self.runner)
        self.admin.chronicle.on_record = self.hooks.record
        self.current = Current(self.admin.snapshot)
        self.https = httpgate.make(config, self.current, self.admin, log)
        self.http = self.https.server if self.https is not None else None
        self.files = filewatch.Files(config, log)
        self.service = Service(log)
        self.exit_code: int | None = None
        self.failure: PgrError | None = None
        """Why the node cannot go on, for a person."""
        self.hello_at_ns = self.snapshot_at_ns = 0
        self.greeted = False
        """The Raft child of now has said hello."""
        self.stop_asked_ns = self.exit_asked_ns = 0
        self.observed: dict[str, Any] = {}
        self.observe_at_ns = 0
        self.overdue = Overdue()
        self.was_member = self.removed = False
        """A leader of now has known this node as a member; it is one no longer."""
        self.raft_heard_ns = 0
        self.checkpointing = 0

    def _context(self) -> Context:
        config = self.config
        postgres = Postgres(
            self.binaries, config.pgdata, config.run, config.postgres_log, self._spawn_postgres, self.children
        )
        datadir.clear_up(config, self.log)
        try:
            postgres.refuse_if_occupied()
        except OccupiedError:
            datadir.end_leftover(config, postgres, self.log)
        return Context(
            config, self.log, privileges.current().name, self.binaries, self.children,
            Link(config.raft_socket, self.log), Link(config.watchdog_socket, self.log), postgres,
            PROFILES[config.profile], View(), Local(config.name),
        )  # fmt: skip

    def _spawn_postgres(self, argv: Sequence[str], env: Mapping[str, str], log_path: Path) -> int:
        pid = self.launcher.spawn("postgres", argv=list(argv), env=dict(env), log_path=str(log_path))
        self.children.expect(pid)
        return pid

    # -- the loop ------------------------------------------------------------------------------------------------

    def loop(self) -> int:
        self.offspring.describe(datadir.raft_arguments(self.c))
        self.offspring.start_all()
        self.c.watchdog.tell("deadman.query", {})
        while self.exit_code is None:
            self._turn()
        return self.exit_code

    def _turn(self) -> None:
        task_fds, until_ns = self.runner.wait_for()
        poller = zmq.Poller()
        for socket in (self.c.raft.socket, self.c.watchdog.socket, self.admin.socket):
            poller.register(socket, zmq.POLLIN)
        postmaster = (self.c.postmaster.pidfd,) if self.c.postmaster is not None else ()
        for fd in (self.signals.fileno(), self.files.fileno(), *self.offspring.fds(), *postmaster):
            poller.register(fd, zmq.POLLIN)
        if self.http is not None:
            poller.register(self.http.fileno(), zmq.POLLIN)
        for fd, events in task_fds.items():
            poller.register(fd, events)
        timeout_ns = min(until_ns, self._next_deadline_ns()) - now_ns()
        ready = dict(poller.poll(max(0, -(-timeout_ns // MS))))
        self._take_in()
        self.runner.run({fd: ready[fd] for fd in task_fds if fd in ready}, now_ns())
        self._replan()
        self.hooks.turn(self.plan.step, now_ns())
        self._publish()

    def _next_deadline_ns(self) -> int:
        now = now_ns()
        deadlines = [self.snapshot_at_ns, self.offspring.wakeup_ns(), self.files.deadline_ns() or NEVER]
        if self.http is not None:
            deadlines.append(self.http.deadline_ns() or NEVER)
        if not self.greeted:
            deadlines.append(self.hello_at_ns)
        situation = self._situation(now)
        if situation.writable and self.plan.step is not Step.FENCE:  # else it is past, and the loop would spin
            deadlines.append(situation.act_at_ns)
        pause = self.failures.get(self.plan)
        if pause is not None and self.task is None:
            deadlines.append(pause[1])
        if self.c.local.stopping:
            deadlines.append(now + 50 * MS)
        return max(now, min(deadlines))

    def _take_in(self) -> None:
        now = now_ns()
        for number in self.signals.read():
            self._signal(number)
        self.children.reap_all()
        for frame in self.c.raft.facts():
            self.raft_heard_ns = now_ns()  # not `now`: this process may have stood still since
            self._from_raft(frame)
        if self.c.view.alive and now - self.raft_heard_ns > RAFT_SILENT_MS * MS:
            self.log.warning("raft.silent", expected=False, after_ms=RAFT_SILENT_MS)
            self.raft_heard_ns = now
            self.offspring.kill("raft")
        for frame in self.c.watchdog.facts():
            self.offspring.asked_ns = 0
            self._from_watchdog(frame)
        self.offspring.ask_watchdog(now, self.c.watchdog)
        for name, code in self.offspring.ended(now):
            self._child_ended(name, code)
        self.offspring.start_due(now)
        self._look_after_postmaster()
        datadir.look_again(self.c)
        self.admin.receive(now)
        if self.files.changed(now):
            filewatch.take(self.c, self.https, self.files, "a file has changed")
        if self.http is not None:
            self.http.handle(now)
        if not self.greeted and now >= self.hello_at_ns:
            self.hello_at_ns = now + HELLO_EVERY_MS * MS
            self.c.raft.tell("node.hello", {})

    # -- children ------------------------------------------------------------------------------------------------

    def _child_ended(self, name: str, code: int) -> None:
        now = now_ns()
        if name == "raft":
            self.c.view = replace(self.c.view, alive=False, renewed=False, met=False)
            self.c.change(frozen=0, said_no_position=0)  # the next one has to be told
            self.c.raft.redial()
            self.greeted, self.hello_at_ns = False, now
            if code in FATAL_CODES and not self.c.local.stopping:
                self.log.error("node.cannot_go_on", child=name, exit_code=code)
                self.failure = last_words(self.config, code)
                self._stop_at_once(code)
        elif name == "watchdog":
            self.c.watchdog.redial()
            if not self.c.local.unguarded_since_ns:
                self.c.change(unguarded_since_ns=now)
            self.c.watchdog.tell("deadman.query", {})

    def _from_watchdog(self, frame: wire.Frame) -> None:
        match frame.name:
            case "child.ready":
                self.scheduling["watchdog"] = str(frame.body.get("scheduling", ""))
                self.offspring.ready("watchdog")
                missing = without_hardware(frame.body) if self.c.postmaster is None else None
                if missing is not None:
                    self.failure = missing
                    self._stop_at_once(missing.exit_code)
                self._guard_again()
            case "deadman.state":
                self.scheduling["hardware watchdog"] = str(frame.body.get("hardware", ""))
                self.offspring.watchdog_said(frame.body, self.c.watchdog)
            case "deadman.killed":
                self.log.warning("watchdog.killed_postgres", expected=False, **frame.body)
                self.steps.ended_by_pgr()
            case _:
                pass  # late answers to questions that were given up

    def _guard_again(self) -> None:
        """A new watchdog knows nothing: arm it with the lease that runs, or have it watch the standby."""
        process, local = self.c.process, self.c.local
        if self.c.postmaster is None or process is None:
            self.c.change(unguarded_since_ns=0)
            return
        if self._situation(now_ns()).writable:
            self.runner.start(self._rearm(local.epoch), self._rearmed, "rearm")
        else:
            self.c.watchdog.tell("deadman.watch", {"pid": process.pid, "start_ticks": process.start_ticks})
            self.c.change(unguarded_since_ns=0)

    def _rearm(self, epoch: int) -> Task[bool]:
        process, view = self.c.process, self.c.view
        if process is None or view.lease_term != epoch or not self._situation(now_ns()).writable:
            return False
        body = {"term": epoch, "pid": process.pid, "start_ticks": process.start_ticks, "until_ns": view.lease_until_ns}
        answer = yield from self.c.watchdog.ask("deadman.arm", body, 200)
        if answer.body.get("ok") is not True:
            yield from sleep(REARM_PAUSE_MS * MS)
            return False
        return True

    def _rearmed(self, outcome: Outcome[bool]) -> None:
        if not self._situation(now_ns()).writable:
            return
        if outcome.error is None and outcome.value:
            self.c.change(unguarded_since_ns=0)
            self.log.info("watchdog.rearmed")
        elif isinstance(outcome.error, TaskTimeout) or outcome.error is None:
            self.log.warning("watchdog.not_rearmed", expected=False)
            self._guard_again()
        else:
            raise outcome.error

    def _look_after_postmaster(self) -> None:
        postmaster = self.c.postmaster
        if postmaster is None or postmaster.alive() or self.c.local.server is Server.DOWN:
            return  # down and not clean: the plan is to fence what is left
        stopping = self.plan.step in (Step.FENCE, Step.HAND_OVER, Step.STOP, Step.REWIND, Step.CLONE)
        awaited = self.c.local.server is Server.STOPPING or self.plan.step is Step.FENCE
        if self.task is not None and stopping and awaited:
            return  # that step waits for it
        code = self.children.poll(postmaster.pid)
        self.steps.postmaster_ended(f"postmaster ended with {code}", died=True)

    # -- the Raft child ------------------------------------------------------------------------------------------

    def _from_raft(self, frame: wire.Frame) -> None:  # noqa: C901  # one case for each message
        c, body = self.c, frame.body
        match frame.name:
            case "child.ready":
                self.scheduling["raft"] = str(body["scheduling"])
                if not self.greeted:
                    self.offspring.ready("raft")
                self.greeted = True
                c.view = replace(c.view, incarnation=int(body["incarnation"]))
                if body["cluster_id"]:
                    member.keep_derived_key(self.config)
                member.refuse_another_role(c.view, c.local)
                datadir.look(c)
            case "raft.state":
                if (body["term"], body["leader"], body["role"]) != (c.view.term, c.view.leader, c.view.role):
                    self.log.info("raft.role", term=body["term"], role=body["role"], leader=body["leader"])
                if body["sentence"] not in ("", c.view.sentence):
                    self.log.info("promotion.state", term=body["term"], text=body["sentence"])
                c.view = observe.view_of(c.view, body)
                self.was_member = self.was_member or member.is_member(c.view, c.local)
                datadir.look(c)
            case "raft.cluster":
                c.view = replace(c.view, cluster=load(body["state"]))
                self.was_member = self.was_member or member.is_member(c.view, c.local)
                self.steps.notice_moved_upstream()
                c.timings = self.offspring.use_pace(c.cluster.pace, c.watchdog)
                self.founding_sentence = ""
                member.refuse_another_role(c.view, c.local)
                datadir.write_passfile(c)
                datadir.look(c)
                self.snapshot_at_ns = 0
            case "lease.changed":
                c.view = replace(c.view, lease_term=body["term"], lease_until_ns=body["until_ns"], renewed=True)
            case "raft.members":
                self.members = c.seen = body["members"]
                self.admin.known, self.snapshot_at_ns = body, 0
                self.steps.notice_moved_upstream()
            case "raft.removed":
                self._removed(str(body["reason"]), str(body["hint"]))
            case "raft.founding":
                self.founding_sentence = str(body["sentence"])
                self.snapshot_at_ns = 0
            case "admin.answer":
                if not self.admin.answered(frame) and frame.id == "stop" and body.get("ok") is not True:
                    self.log.info("stop.no_successor", reason=body.get("error"))
                    c.change(asked_to_hand_over=True)
            case "config.check":
                self.runner.start(configcheck.check(c, frame.id, body), configcheck.done, "config.check")
            case "remote.request":
                client, data = bytes.fromhex(body["client"]), body["frame"].encode()
                self.admin.request(client, data, now_ns(), remote=True)
            case _:
                pass  # late answers to questions that were given up

    def _removed(self, reason: str, hint: str) -> None:
        """No member any more, for good: an end as asked for, unless somebody starts it again afterwards."""
        if self.removed:
            return
        self.removed = True
        if not self.was_member:
            self.failure = RefusedError(reason, hint)
        self.log.warning("node.removed", expected=self.was_member, reason=reason, hint=hint)
        self.c.change(stopping=True, asked_to_hand_over=True)

    # -- signals -------------------------------------------------------------------------------------------------

    def _signal(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGTERM:
                self.log.info("node.stopping", signal="TERM")
                self.c.change(stopping=True)
            case signal.SIGINT:
                self.log.info("node.stopping", signal="INT")
                self.c.change(stopping=True, asked_to_hand_over=True)
            case signal.SIGQUIT:
                self.log.warning("node.stopping", signal="QUIT")
                self._stop_at_once(128 + signal.SIGQUIT)
            case signal.SIGHUP:
                self.c.altered = True  # perhaps: Postgres's files are written anew before they are read again
                filewatch.take(self.c, self.https, self.files, "SIGHUP")
            case _:
                pass

    def _stop_at_once(self, code: int) -> None:
        if self.task is not None:
            self.task.cancel()
            self.task = None
        if self.c.postmaster is not None:
            self.steps.postmaster_ended("the node stops at once")
        self.exit_code = code

    def _ask_successor(self, now: int) -> None:
        """A stopping primary asks for a switchover once, and waits a bounded time."""
        c = self.c
        if not c.local.stopping or c.local.asked_to_hand_over or not self._situation(now).writable:
            return
        others = c.view.cluster is not None and len(c.view.cluster.members) > 1
        if not others or is_paused(c.view):
            c.change(asked_to_hand_over=True)
        elif not self.stop_asked_ns:
            self.stop_asked_ns = now
            c.raft.tell("admin.request", {"name": "switchover", "body": {}}, "stop")
        elif now - self.stop_asked_ns > HAND_OVER_MS * MS:
            self.log.warning("stop.hand_over_slow", after_ms=HAND_OVER_MS)
            c.change(asked_to_hand_over=True)

    # -- steps ---------------------------------------------------------------------------------------------------

    def _situation(self, now: int) -> Situation:
        return Situation(self.c.view, self.c.local, self.c.timings, now)

    def _replan(self) -> None:
        """Ask for the next step until the answer is to wait or to go on with what runs."""
        drained = False
        for _ in range(10):
            now = now_ns()
            self._ask_successor(now)
            self._watch_promotion(now)
            if self._situation(now).owes_no_position:
                self.steps.say_no_position(self.c.view.wanted)
            wanted, sentence = plan(self._situation(now))
            if wanted.rule == "authority-lost" and wanted != self.plan and not drained:
                # This turn may have been slow: a renewal may lie in the socket unread. Deadlines are absolute.
                drained = True
                for frame in self.c.raft.facts():
                    self._from_raft(frame)
                continue
            if wanted != self.plan or sentence != self.sentence:
                if wanted.rule != self.plan.rule:
                    self.log.info("plan", rule=wanted.rule, step=wanted.step.value, term=wanted.term, text=sentence)
                self.sentence = sentence
                self.snapshot_at_ns = 0
            if wanted != self.plan and self.task is not None:
                self.task.cancel()
                self.task = None
            self.plan = wanted
            self._tend_watcher()
            self._apply_settings(now)
            if self.task is not None or wanted.step is Step.WAIT:
                return
            if wanted.step is Step.EXIT:
                self._leave(now)
                return
            if now < self.failures.get(wanted, (0, 0))[1]:
                return
            self.task = self.runner.start(self.actions[wanted.step](wanted), self._finisher(wanted), wanted.step)
            self.runner.run({}, now_ns())

    def _apply_settings(self, now: int) -> None:
        """Cluster-wide settings that came with the log. Whoever is losing its authority touches nothing."""
        if self.c.local.server is Server.STANDBY or (
            self.c.local.server is Server.PRIMARY and self._situation(now).authority
        ):
            self.c.apply_settings()

    def _watch_promotion(self, now: int) -> None:
        c = self.c
        term = self.overdue.failed(c.view, c.local, c.facts.answered_ns, now)
        if term:
            self.log.error("promotion.failed", term=term, after_ms=limit_ms(c.view))
            c.change(failed_promotion=term)

    def _finisher(self, done: Plan) -> Callable[[Outcome[Any]], None]:
        return lambda outcome: self._done(done, outcome)

    def _done(self, done: Plan, outcome: Outcome[Any]) -> None:
        self.task = None
        error = outcome.error
        if error is None:
            # The same answer again at once means the step did not change what it should: not faster than this.
            pause_ms = URGENT_PAUSE_MS if done.step in URGENT else RETRY_FIRST_MS
            self.failures[done] = (0, now_ns() + pause_ms * MS)
            if len(self.failures) > 100:
                self.failures.clear()
            if done.step is Step.PROMOTE and self.c.local.server is Server.PRIMARY and self.checkpointing != done.term:
                self.checkpointing = done.term
                self.runner.start(watch.checkpoint(self.c, done.term), self._informing("checkpoint"), "checkpoint")
            return
        if not isinstance(error, EXPECTED):
            raise error
        if isinstance(error, PgrError) and error.exit_code in FATAL_CODES:
            raise error
        count = self.failures.get(done, (0, 0))[0] + 1
        first_ms, most_ms = (URGENT_PAUSE_MS, URGENT_MAX_MS) if done.step in URGENT else (RETRY_FIRST_MS, RETRY_MAX_MS)
        pause_ms = URGENT_PAUSE_MS if done.step is Step.FENCE else min(most_ms, first_ms << min(count - 1, 10))
        self.failures[done] = (count, now_ns() + pause_ms * MS)
        quiet = self.log.once_per(f"step.{done}", 1) if done.step in URGENT else self.log
        quiet.warning("step.failed", step=done.step.value, error=str(error), failures=count, again_in_ms=pause_ms)

    def _informing(self, name: str) -> Callable[[Outcome[Any]], None]:
        """For work that informs only: a failure is logged and the next opportunity tries again."""

        def done(outcome: Outcome[Any]) -> None:
            if outcome.error is not None:
                if not isinstance(outcome.error, SqlFailure | TaskTimeout | OSError):
                    raise outcome.error
                self.log.once_per(name, 10).info(f"{name}.failed", error=str(outcome.error))

        return done

    def _tend_watcher(self) -> None:
        running = self.c.local.server in (Server.STANDBY, Server.PROMOTING, Server.PRIMARY)
        if self.watcher is not None and self.watcher.done:
            self.watcher = None
        if running and self.watcher is None and now_ns() >= self.failures.get(WATCH, (0, 0))[1]:
            self.failures[WATCH] = (0, now_ns() + 500 * MS)
            self.watcher = self.runner.start(watch.Watcher(self.c).run(), self._informing("watch"), "watch")

    # -- what others see -----------------------------------------------------------------------------------------

    def _publish(self) -> None:
        c, now = self.c, now_ns()
        self.service.turn(self.sentence, stopping=c.local.stopping)
        # A leader that is not primary says what it waits for; the others show that as the reason why there is none.
        waits = c.view.sentence if c.view.role == "leader" and not c.view.granted else ""
        c.facts = replace(c.facts, progress=c.cloning or waits, https=c.config.http_tls_cert is not None)
        seen = observe.observation(c.view, c.local, c.facts, self.plan.step, self.sentence, self.offspring.version)
        due = seen != self.observed or now >= self.observe_at_ns
        if c.view.alive and due and c.raft.tell("node.observed", seen):
            self.observed, self.observe_at_ns = seen, now + OBSERVE_EVERY_MS * MS
            self.snapshot_at_ns = 0
            member.announce_tags(c.view, c.config, c.raft.tell)
        if now < self.snapshot_at_ns:
            return
        self.snapshot_at_ns = now + SNAPSHOT_EVERY_MS * MS
        waits_for = observe.leader_says(c.view, self.config.name, self.members) if self.plan.rule == "waiting" else ""
        sentence = c.view.sentence or self.founding_sentence or waits_for or self.sentence
        members = self.members | {self.config.name: {"seen": seen, "age_ms": 0}}
        state = observe.state_of(c.local, c.facts, self.plan.step)
        snapshot = observe.snapshot(
            c.view, c.local, c.facts, members, c.timings, state=state, sentence=sentence, now_ns=now,
            scheduling=self.scheduling, pgr_version=self.offspring.version, own_tags=c.config.tags,
        )  # fmt: skip
        self.current.snapshot = snapshot
        self.admin.publish(snapshot, now)
        self.sql.publish(snapshot, now, self.runner)

    # -- the end -------------------------------------------------------------------------------------------------

    def _leave(self, now: int) -> None:
        """Postgres is down. After a hand-over, stay until the successor is elected, or for a bounded time."""
        if not self.exit_asked_ns:
            self.exit_asked_ns = now
        if self.hooks.owed and now - self.exit_asked_ns < hooks.EXIT_MS * MS:
            return
        view = self.c.view
        handed = view.leader not in ("", self.config.name) or not view.alive
        alone = view.cluster is None or len(view.cluster.members) < 2
        if handed or alone or self.removed or now - self.exit_asked_ns > RELEASE_MS * MS:
            self.exit_code = ExitCode.STOPPED

    def close(self) -> None:
        """Whatever happened: Postgres down and verified, then the children, then everything else."""
        if self.task is not None:
            self.task.cancel()
        if self.c.postmaster is not None:
            self.steps.postmaster_ended("the parent ends")
        self.hooks.close()
        self.admin.close()
        self.sql.close()
        self.files.close()
        self.c.raft.tell("node.stop", {})
        self.c.watchdog.tell("deadman.exit", {})
        self.offspring.stop_all(STOP_CHILDREN_MS)
        if self.http is not None:
            self.http.close()
        self.c.raft.close()
        self.c.watchdog.close()
        self.zmq.destroy(linger=200)
        self.log.info("node.stopped", exit_code=self.exit_code)


EXPECTED = (StepFailed, SqlFailure, TaskTimeout, PgrError, JobFailed, OSError, ControlDataError)
"""What can go wrong in a step without being a bug."""
WATCH = Plan(Step.WAIT, 0, "watch")
