"""What each step of supervisor/roles.py does to the modelled Postgres: a port of supervisor/steps.py and rebuild.py.

As there, every step is a generator that may be cancelled at any `yield`. Positions, divergence, histories and the
choice of files to install before a promotion are the shipped functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from consensus.cluster import Grant
from consensus.positions import Attach, Diverged, NoPosition, divergence, position_of
from consensus.record import EpochStart, Position
from fencing import deadman as machine
from fencing.lease import MS
from supervisor import timelines
from supervisor.roles import Data, Plan, Server, Step
from supervisor.steps import (
    CALM_MS,
    CONSISTENCY_MS,
    COPY_AGAIN_MS,
    FAST_STOP_MS,
    FREEZE_MS,
    HAND_OVER_CHECKPOINT_MS,
    HUNG_MS,
    IMMEDIATE_MS,
    QUERY_MS,
    SLOW_POSITION_MS,
    STARVED_MS,
    STOP_MS,
)
from supervisor.tasks import Task, Wait
from tests.sim import tasks
from tests.sim.group import change_group
from tests.sim.pgdata import SEGMENT_BYTES, UNIT, Directory
from tests.sim.postgres import Conf, Postgres, State
from tests.sim.rebuild import Rebuild
from tests.sim.tasks import Lost, StepFailed, until

if TYPE_CHECKING:
    from tests.sim.parent import Parent

T = TypeVar("T")


class Steps:
    """One method a step."""

    def __init__(self, parent: Parent) -> None:
        self.p, self.host, self.world = parent, parent.host, parent.world
        self.rebuild = Rebuild(parent, self)

    def of(self, plan: Plan) -> Task[Any]:
        actions: dict[Step, Callable[[Plan], Task[Any]]] = {
            Step.FENCE: self.fence, Step.HAND_OVER: self.hand_over, Step.STOP: self.stop,
            Step.REPORT_FENCED: self.report_fenced, Step.CREATE: self.rebuild.create, Step.CLONE: self.rebuild.clone,
            Step.REWIND: self.rebuild.rewind, Step.START: self.start, Step.FREEZE: self.freeze,
            Step.DETACH: self.detach, Step.PROMOTE: self.promote, Step.OPEN: self.prove,
            Step.OPEN_GATE: self.open_gate, Step.FOLLOW: self.follow,
        }  # fmt: skip
        return actions[plan.step](plan)

    # -- helpers -------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.need_server().pid

    def sleep(self, ms: float) -> Task[None]:
        yield from tasks.sleep(self.p, int(ms * MS))

    def need_server(self) -> Postgres:
        if self.p.server is None:
            raise StepFailed("Postgres is not running")
        return self.p.server

    def query(self, ask: Callable[[Postgres], T], within_ms: float = QUERY_MS) -> Task[T]:
        """One question in a session of ours."""
        p, server, cell = self.p, self.need_server(), list[T]()

        def answer() -> None:
            if server.state not in (State.STARTING, State.STOPPING):
                cell.append(ask(server))
            p.process.post(self.world.between(50, 600), p.soon)

        server.process.post(self.world.between(50, 600), answer)
        yield from until(
            p, lambda: bool(cell) or server.state in (State.GONE, State.STARTING, State.STOPPING), int(within_ms)
        )
        if not cell:
            raise Lost("the session was lost")
        return cell[0]

    def look(self) -> None:
        """supervisor/datadir.py: what PGDATA is, once the log and the record are known."""
        p, directory = self.p, self.host.directory
        if p.local.data is not Data.UNKNOWN or not p.view.alive or p.view.cluster is None:
            return
        cluster, record = p.cluster, p.view.record
        mine = directory is not None and directory.mark is not None and directory.mark[1] == cluster.nonce
        creates = cluster.founder == p.local.me and not record.history and mine
        if directory is None:
            p.change(data=Data.ABSENT)
        elif not cluster.system_identifier:
            if creates:
                p.change(data=Data.ABSENT)
        elif record.marker:
            p.change(data=Data.BROKEN)
        elif creates:
            p.change(data=Data.BROKEN if cluster.grants else Data.ABSENT)
        else:
            p.change(data=Data.READY if record.history else Data.BROKEN)

    # -- starting and stopping -----------------------------------------------------------------------------------

    def start(self, _: Plan) -> Task[None]:
        p, host = self.p, self.host
        if p.local.server is Server.DOWN:
            yield from self.sleep(self.world.dice.randrange(1, 40))
            if p.view.record.marker:
                yield from p.save_record(marker="")
            directory = host.directory
            if directory is None:
                raise AssertionError("READY without a directory")
            newest = self._newest_own_timeline(directory)
            for number in directory.numbers():
                if number > newest:
                    del directory.histories[timelines.history_name(number)]
            p.may_receive = False
            directory.clean = False
            p.server = host.start_postgres(Conf(None, p.idle_names()))
            p.change(
                server=Server.STARTING, epoch=0, upstream=0, frozen=0, gate_open=False, crashed="", clean=True,
                failed_promotion=0,
            )  # fmt: skip
            p.tell_watchdog(machine.Watch(self.pid, 1))
        server, began = self.need_server(), p.now
        while server.state is State.STARTING:
            yield Wait(until_ns=p.now + 20 * MS)
            if p.now - began > CONSISTENCY_MS * MS:
                self._help_to_consistency(server, p.now - began)
        if server.state is State.GONE:
            raise StepFailed("it ended while starting")
        p.start_failures = 0
        p.facts = replace(p.facts, streaming=False)
        p.change(server=Server.STANDBY)

    def _newest_own_timeline(self, directory: Directory) -> int:
        p = self.p
        own = [g.timeline for g in p.cluster.grants if g.node == p.local.me]
        prefix = [t for t in own if any(name.startswith(f"{t:08X}") for name in directory.segments)]
        real = [t for t in prefix if self._switch_lsn(t) is not None]
        return max([e.timeline for e in p.view.record.history] + real + [1])

    def _help_to_consistency(self, server: Postgres, waited_ns: int) -> None:
        p = self.p
        record, grant = p.view.record, p.followed
        if grant is None:
            return
        fresh = record.proof is not None and record.proof.epoch == grant.term and record.history == grant.ancestry
        if fresh and p.local.upstream != grant.term:
            self.attach(grant)
            return
        starved = server.receiver is None and server.is_through and waited_ns > STARVED_MS * MS
        if starved and (p.now >= p.copy_again_ns or p.local.needs_clone):
            p.copy_again_ns = p.now + COPY_AGAIN_MS * MS
            p.change(needs_clone=grant.term)

    def attach(self, grant: Grant) -> None:
        p, server = self.p, self.need_server()
        p.may_receive = True
        server.reload(Conf(p.upstream(grant), p.idle_names()))
        self.host.last_refusal = ""
        p.change(upstream=grant.term, frozen=0)

    def stop(self, _: Plan) -> Task[None]:
        yield from self._stop_cleanly(STOP_MS)

    def _stop_cleanly(self, within_ms: int) -> Task[bool]:
        p, server = self.p, self.need_server()
        p.change(server=Server.STOPPING)
        server.stop_fast()
        clean = True
        try:
            yield from until(p, lambda: server.state is State.GONE, within_ms)
        except TimeoutError:
            clean = False
        self.bury("")
        return clean

    def fence(self, plan: Plan) -> Task[None]:
        p = self.p
        server = p.server
        self.world.note(self.host.name, f"fence: {plan.rule}, epoch {p.local.epoch}")
        if server is not None and server.state is not State.GONE:
            server.stop_immediately()
            try:
                yield from until(p, lambda: server.state is State.GONE, IMMEDIATE_MS)
            except TimeoutError:
                pass
        self.bury(f"fenced: {plan.rule}")

    def bury(self, crashed: str) -> None:
        p = self.p
        if p.server is not None:
            p.server.end()
            p.server = None
        p.tell_watchdog(machine.Disarm())
        p.facts = replace(p.facts, streaming=False, checkpointed=0)
        writable = p.local.epoch > 0
        p.change(
            server=Server.DOWN, clean=True, upstream=0, frozen=0, gate_open=False, unguarded_since_ns=0,
            crashed=(crashed or "stopped") if writable else "",
        )  # fmt: skip

    def hand_over(self, plan: Plan) -> Task[None]:
        p = self.p
        try:
            yield from self.have_checkpoint(HAND_OVER_CHECKPOINT_MS)
        except (StepFailed, TimeoutError):
            pass  # only makes the stop longer
        clean = yield from self._stop_cleanly(FAST_STOP_MS)
        p.tell_raft("node.fenced", {"term": plan.term, "reason": "switchover", "clean": clean, "at": "-"})
        p.change(crashed="")

    def report_fenced(self, plan: Plan) -> Task[None]:
        p = self.p
        reason = p.local.crashed or "the promotion failed"
        p.tell_raft("node.fenced", {"term": plan.term, "reason": reason, "clean": False, "at": "-"})
        yield Wait(until_ns=p.now + 100 * MS, ready=lambda: p.view.granted != plan.term)

    # -- promises ------------------------------------------------------------------------------------------------

    def say_no_position(self, term: int, reason: str = "") -> None:
        why = reason or f"Postgres is {self.p.local.server.value}, its data is {self.p.local.data.value}"
        self.p.tell_raft("node.frozen", {"term": term, "epoch": -1, "lsn": 0, "reason": why})
        self.p.change(said_no_position=term)

    def detach(self, _: Plan) -> Task[None]:
        yield from self._detach()

    def freeze(self, plan: Plan) -> Task[None]:
        p, began = self.p, self.p.now
        try:
            if self.world.mutant not in ("promise-without-freeze", "no-watchdog-no-promise"):
                yield from self._detach()
            found = yield from self._position(plan.term)
        except (StepFailed, TimeoutError) as error:
            if p.local.said_no_position != plan.term:
                self.say_no_position(plan.term, f"Postgres does not answer: {error}")
            p.freeze_failing_ns = p.freeze_failing_ns or began
            if p.now - p.freeze_failing_ns > HUNG_MS * MS and p.server is not None:
                self.world.note(self.host.name, "Postgres hangs, it is killed")
                self.bury("hung")
            raise
        p.freeze_failing_ns = 0
        body: dict[str, Any] = {"term": plan.term, "reason": ""}
        if isinstance(found, NoPosition):
            body |= {"epoch": -1, "lsn": 0, "reason": found.reason}
        else:
            body |= {"epoch": found.epoch, "lsn": found.lsn}
            p.change(vowed=max(p.local.vowed, plan.term))
        p.tell_raft("node.frozen", body)
        p.change(frozen=plan.term)
        self.world.note(self.host.name, f"answers {plan.term}: {body['epoch']}/{body['lsn'] // UNIT} {body['reason']}")

    def _detach(self) -> Task[None]:
        p, server = self.p, self.need_server()
        until_ns = p.now + FREEZE_MS * MS
        p.change(upstream=0)
        if not p.may_receive and server.receiver is None:
            return
        p.may_receive = True
        try:
            server.reload(Conf(None, p.idle_names()))
            yield from self._reloaded(server, until_ns)
            yield from self.query(lambda pg: pg.resume(), self._left_ms(until_ns))
            calm = 0
            while calm < 2:
                server.terminate_receiver()
                yield from until(p, lambda: server.receiver is None, self._left_ms(until_ns))
                waits = yield from self.query(lambda pg: pg.waits_for_stream, self._left_ms(until_ns))
                restless = waits or server.receiver is not None or server.asking
                calm = 0 if restless else calm + 1
                if p.now >= until_ns:
                    raise TimeoutError("the WAL receiver is not gone")
                if calm < 2:
                    yield from self.sleep(CALM_MS)
            p.may_receive = False
        except TimeoutError as error:
            self.world.note(self.host.name, "the WAL receiver does not stop: Postgres is stopped")
            server.stop_immediately()
            raise StepFailed("the WAL receiver did not stop in time") from error
        p.facts = replace(p.facts, streaming=False)

    def _left_ms(self, until_ns: int) -> int:
        return max(0, (until_ns - self.p.now) // MS)

    def _reloaded(self, server: Postgres, until_ns: int) -> Task[None]:
        """Until a session of ours sees what was written."""
        while not (yield from self.query(lambda pg: pg.seen == server.conf, self._left_ms(until_ns))):
            yield from self.sleep(1)

    def _position(self, asked_term: int = 0) -> Task[Position | NoPosition]:
        p, began, before = self.p, self.p.now, (-1, -1)
        while True:
            received, replayed, waits = yield from self._lsns()
            if self.world.mutant == "position-before-all-is-read":
                break
            if received or (waits and (received, replayed) == before):
                break
            before = (received, replayed) if waits else (-1, -1)
            if asked_term and p.now - began > SLOW_POSITION_MS * MS and p.local.said_no_position != asked_term:
                self.say_no_position(asked_term, "still reading the WAL it has")
            yield from self.sleep(3)
        return (yield from self._position_at(max(received, replayed)))

    def _lsns(self) -> Task[tuple[int, int, bool]]:
        return (
            yield from self.query(lambda pg: (pg.received * UNIT, pg.replayed * UNIT, pg.is_through and not pg.paused))
        )

    def _position_at(self, lsn: int) -> Task[Position | NoPosition]:
        p, directory = self.p, self.need_server().directory
        timeline = timelines.newest_wal_timeline(directory.segments, lsn, SEGMENT_BYTES)
        if timeline is None:
            return NoPosition(f"there is no WAL file that holds {lsn}")
        yield from self._complete_own_history(timeline)
        record = p.view.record
        found = position_of(record.history, lsn, timeline, record.proof)
        if isinstance(found, Position) and record.proof is not None:
            yield from p.save_record(proof=None)
        return found

    def _complete_own_history(self, timeline: int) -> Task[None]:
        p = self.p
        history = p.view.record.history
        grant = next((g for g in p.cluster.grants if g.timeline == timeline and g.node == p.local.me), None)
        if timeline in {e.timeline for e in history} or grant is None:
            return
        start = self._switch_lsn(timeline)
        if start is not None and history and grant.term > history[-1].epoch:
            yield from p.save_record((*history, EpochStart(grant.term, start, timeline)))

    def _switch_lsn(self, timeline: int) -> int | None:
        directory = self.host.directory
        text = directory.histories.get(timelines.history_name(timeline)) if directory is not None else None
        switches = timelines.parse_history(text) if text is not None else ()
        return switches[-1].lsn if switches else None

    # -- promotion -----------------------------------------------------------------------------------------------

    def promote(self, plan: Plan) -> Task[None]:
        p = self.p
        grant = self._own_grant(plan.term)
        if p.local.server is Server.STANDBY:
            yield from self._promote_now(grant)
        while not (yield from self.query(lambda pg: pg.state is State.PRIMARY)):
            yield from self.sleep(3)
        start = self._switch_lsn(grant.timeline)
        if start is None:
            p.change(failed_promotion=plan.term)
            raise StepFailed(f"Postgres was promoted, but not to timeline {grant.timeline}")
        older = (e for e in p.view.record.history if e.timeline < grant.timeline and e.start_lsn < start)
        yield from p.save_record((*older, EpochStart(grant.term, start, grant.timeline)), proof=None)
        p.change(server=Server.PRIMARY)

    def _promote_now(self, grant: Grant) -> Task[None]:
        p, server = self.p, self.need_server()
        frozen = self.world.mutant in ("promise-without-freeze", "no-watchdog-no-promise")
        if not frozen and (p.local.upstream or p.may_receive or server.receiver is not None):
            raise StepFailed("not frozen")
        until_ns = p.view.lease_until_ns if p.view.lease_term == grant.term else 0
        if not (yield from p.ask_watchdog(machine.Arm(grant.term, self.pid, 1, until_ns), 500)):
            raise StepFailed("the watchdog is not armed")
        p.change(unguarded_since_ns=0)
        server.reload(Conf(None, p.primary_names(grant.term)))
        yield from self._reloaded(server, p.now + QUERY_MS * MS)
        history = p.view.record.history
        own = max([e.timeline for e in history], default=1)
        server.directory.histories |= timelines.install_list(history, own, grant.timeline)
        left_ms = (p.view.lease_until_ns - p.now) // MS
        if p.local.unguarded_since_ns:
            raise StepFailed("the watchdog has just gone")
        if p.view.granted != grant.term or p.view.lease_term != grant.term or left_ms < p.timings.heartbeat_ms:
            raise StepFailed(f"the lease is too short to promote ({left_ms} ms left)")
        p.change(server=Server.PROMOTING, epoch=grant.term)
        yield from self.query(lambda pg: pg.promote())

    def _own_grant(self, term: int) -> Grant:
        grant = self.p.cluster.grant
        if grant is None or grant.term != term or grant.node != self.p.local.me:
            raise StepFailed("the grant is not this node's any more")
        return grant

    def prove(self, plan: Plan) -> Task[None]:
        p = self.p
        ancestry = [list(e) for e in p.view.record.history]
        body = {"term": plan.term, "timeline": ancestry[-1][2], "ancestry": ancestry}
        yield from self.until_logged(
            "switched/1", body, lambda: p.cluster.grant is not None and bool(p.cluster.grant.ancestry)
        )
        proven: list[bool] = []
        server = self.need_server()
        server.process.post(self.world.between(500, 4_000), lambda: server.insert(None, lambda: proven.append(True)))
        while not proven:
            if server.state is not State.PRIMARY:
                raise Lost("the session was lost")
            yield Wait(until_ns=p.now + 20 * MS)
        yield from self.until_logged(
            "opened/1", {"term": plan.term}, lambda: p.cluster.grant is not None and p.cluster.grant.opened
        )

    def open_gate(self, plan: Plan) -> Task[None]:
        server = self.need_server()
        server.reload(server.changed(names=self.p.primary_names(plan.term), gate=False))
        yield from self._reloaded(server, self.p.now + QUERY_MS * MS)
        self.p.change(gate_open=True)
        self.world.note(self.host.name, f"gate open, term {plan.term}")

    def until_logged(self, kind: str, body: dict[str, Any], done: Callable[[], bool]) -> Task[None]:
        while not done():
            self.p.tell_raft("node.propose", {"kind": kind, "body": body | {"at": "-"}})
            yield Wait(until_ns=self.p.now + 1_000 * MS, ready=done)

    def checkpoint(self, epoch: int) -> Task[None]:
        yield from self.have_checkpoint(60_000)
        if self.p.local.epoch == epoch:
            self.p.facts = replace(self.p.facts, checkpointed=epoch)

    def have_checkpoint(self, within_ms: int) -> Task[None]:
        done: list[bool] = []
        server = self.need_server()
        yield from self.query(lambda pg: pg.checkpoint(lambda: done.append(True)))
        until_ns = self.p.now + within_ms * MS
        while not done:
            if server.state is State.GONE or self.p.now > until_ns:
                raise Lost("no checkpoint")
            yield Wait(until_ns=self.p.now + 20 * MS)

    def change_group(self) -> Task[None]:
        yield from change_group(self)

    # -- following -----------------------------------------------------------------------------------------------

    def follow(self, plan: Plan) -> Task[None]:
        p = self.p
        grant = p.cluster.grant
        if grant is None or grant.term != plan.term:
            raise StepFailed("there is a newer grant")
        yield from self._detach()
        found = yield from self._position()
        received, replayed, _ = yield from self._lsns()
        if isinstance(found, NoPosition) and p.view.record.proof is None:
            self.world.note(self.host.name, f"no position: {found.reason}")
            p.change(needs_clone=plan.term)
            return
        verdict = divergence(grant.ancestry, p.view.record.history, max(received, replayed))
        if self.world.mutant == "divergence-unchecked":
            verdict = Attach(grant.ancestry)
        match verdict:
            case Diverged(_, lost, reason):
                self.world.note(self.host.name, f"diverged, {lost // UNIT} records: {reason}")
                p.change(diverged=plan.term)
            case Attach(history):
                yield from p.save_record(history)
                self.attach(grant)
