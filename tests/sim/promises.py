"""Promises: no more WAL is received, and this is how far it goes (supervisor/steps.py, "promises")."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from consensus.positions import NoPosition, is_of_its_history, position_of
from consensus.record import EpochStart, Position
from fencing.lease import MS
from supervisor import timelines
from supervisor.roles import Plan
from supervisor.steps import (
    CALM_MS,
    FREEZE_MS,
    HUNG_MS,
    SLOW_POSITION_MS,
)
from supervisor.tasks import Task
from tests.sim.basics import Basics
from tests.sim.pgdata import SEGMENT_BYTES, UNIT
from tests.sim.postgres import Conf
from tests.sim.tasks import StepFailed, until

if TYPE_CHECKING:
    pass

T = TypeVar("T")


class Promises(Basics):
    def say_no_position(self, term: int, reason: str = "") -> None:
        why = reason or f"Postgres is {self.p.local.server.value}, its data is {self.p.local.data.value}"
        self.p.tell_raft("node.frozen", {"term": term, "epoch": -1, "lsn": 0, "reason": why})
        self.p.change(said_no_position=term)

    def detach(self, _: Plan) -> Task[None]:
        if self.world.mutant in ("promise-without-freeze", "no-watchdog-no-promise"):
            yield from self.sleep(1_000)
            return
        began = self.p.now
        try:
            yield from self._detach()
        except (StepFailed, TimeoutError):
            self._kill_if_hung(began)
            raise
        self.p.freeze_failing_ns = 0

    def _kill_if_hung(self, began: int) -> None:
        p = self.p
        p.freeze_failing_ns = p.freeze_failing_ns or began
        if p.now - p.freeze_failing_ns > HUNG_MS * MS and p.server is not None:
            self.world.note(self.host.name, "Postgres hangs, it is killed")
            self.bury("hung")

    def freeze(self, plan: Plan) -> Task[None]:
        p, began = self.p, self.p.now
        try:
            if self.world.mutant not in ("promise-without-freeze", "no-watchdog-no-promise"):
                yield from self._detach()
            found = yield from self._position(plan.term)
        except (StepFailed, TimeoutError) as error:
            if p.local.said_no_position != plan.term:
                self.say_no_position(plan.term, f"Postgres does not answer: {error}")
            self._kill_if_hung(began)
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
        if not p.local.may_receive and server.receiver is None:
            return
        p.change(may_receive=True)
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
            p.change(may_receive=False)
        except TimeoutError as error:
            self.world.note(self.host.name, "the WAL receiver does not stop: Postgres is stopped")
            server.stop_immediately()
            raise StepFailed("the WAL receiver did not stop in time") from error
        p.facts = replace(p.facts, streaming=False)

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
            yield from self.pause(began)
        return (yield from self._position_at(max(received, replayed)))

    def _lsns(self) -> Task[tuple[int, int, bool]]:
        return (
            yield from self.query(lambda pg: (pg.received * UNIT, pg.replayed * UNIT, pg.is_through and not pg.paused))
        )

    def _newest_timeline(self, lsn: int) -> int | None:
        p, directory = self.p, self.need_server().directory
        own = {g.timeline for g in p.cluster.grants if g.node == p.local.me}
        unused = own - {e.timeline for e in p.view.record.history}
        unused = {t for t in unused if self._switch_lsn(t) is None}
        return timelines.newest_wal_timeline(directory.segments, lsn, SEGMENT_BYTES, frozenset(unused))

    def _is_of_its_history(self, lsn: int) -> bool:
        timeline = self._newest_timeline(lsn)
        return timeline is not None and is_of_its_history(self.p.view.record.history, lsn, timeline)

    def _position_at(self, lsn: int) -> Task[Position | NoPosition]:
        p = self.p
        timeline = self._newest_timeline(lsn)
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
            older = (e for e in history if e.start_lsn < start)
            yield from p.save_record((*older, EpochStart(grant.term, start, timeline)))
