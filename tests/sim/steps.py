"""What each step of supervisor/roles.py does to the modelled Postgres: a port of supervisor/steps.py and rebuild.py.

As there, every step is a generator that may be cancelled at any `yield`. Positions, divergence, histories and the
choice of files to install before a promotion are the shipped functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from consensus.cluster import Grant
from consensus.positions import Attach, Diverged, NoPosition, divergence
from consensus.record import EpochStart
from fencing import deadman as machine
from fencing.lease import MS
from supervisor import timelines
from supervisor.roles import Data, Plan, Server, Step, is_founder
from supervisor.starts import CONSISTENCY_MS, COPY_AGAIN_MS, STARVED_MS
from supervisor.steps import FAST_STOP_MS, HAND_OVER_CHECKPOINT_MS, IMMEDIATE_MS, QUERY_MS, STOP_MS
from supervisor.tasks import Task, Wait
from tests.sim.pgdata import UNIT, Directory
from tests.sim.postgres import Conf, Postgres, State
from tests.sim.promises import Promises
from tests.sim.rebuild import Rebuild
from tests.sim.regroup import regroup
from tests.sim.tasks import Lost, StepFailed, until

if TYPE_CHECKING:
    from tests.sim.parent import Parent

T = TypeVar("T")


class Steps(Promises):
    """One method a step."""

    def __init__(self, parent: Parent) -> None:
        super().__init__(parent)
        self.rebuild = Rebuild(parent, self)

    def of(self, plan: Plan) -> Task[Any]:
        actions: dict[Step, Callable[[Plan], Task[Any]]] = {
            Step.FENCE: self.fence, Step.HAND_OVER: self.hand_over, Step.STOP: self.stop,
            Step.REPORT_FENCED: self.report_fenced, Step.CREATE: self.rebuild.create, Step.CLONE: self.rebuild.clone,
            Step.REWIND: self.rebuild.rewind, Step.START: self.start, Step.FREEZE: self.freeze,
            Step.DETACH: self.detach, Step.PROMOTE: self.promote, Step.OPEN: self.prove,
            Step.OPEN_GATE: self.open_gate, Step.REGROUP: self.regroup, Step.FOLLOW: self.follow,
        }  # fmt: skip
        return actions[plan.step](plan)

    def look(self) -> None:
        """supervisor/datadir.py: what PGDATA is, once the log and the record are known."""
        p, directory = self.p, self.host.directory
        if p.local.data is not Data.UNKNOWN or not p.view.alive or p.view.cluster is None:
            return
        cluster, record = p.cluster, p.view.record
        mark = directory.mark if directory is not None else None
        own = is_founder(p.view, p.local) and not record.history
        if directory is None:
            p.change(data=Data.ABSENT)
        elif not cluster.system_identifier:
            if own and mark == (p.view.incarnation, cluster.nonce):
                p.change(data=Data.ABSENT)
        elif record.marker or mark is None or mark[0] != p.view.incarnation:
            p.change(data=Data.BROKEN)
        elif own and mark[1] == cluster.nonce:
            p.change(data=Data.BROKEN if cluster.grants else Data.ABSENT)
        else:
            p.change(data=Data.READY if record.history else Data.BROKEN)

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
            directory.clean = False
            p.server = host.start_postgres(Conf(None, p.idle_names()))
            p.commits_wait = True
            p.change(
                server=Server.STARTING, epoch=0, upstream=0, may_receive=False, frozen=0, gate_open=False, crashed="",
                clean=True, failed_promotion=0, died=False,
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
        p.change(may_receive=True)
        p.freeze_failing_ns = 0
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

    def hand_over(self, plan: Plan) -> Task[None]:
        p = self.p
        try:
            yield from self.have_checkpoint(HAND_OVER_CHECKPOINT_MS)
        except (StepFailed, TimeoutError):
            pass  # only makes the stop longer
        clean = yield from self._stop_cleanly(FAST_STOP_MS)
        # `crashed` stays: reported like any other end until the Raft child has taken it in.
        p.tell_raft("node.fenced", {"term": plan.term, "reason": "switchover", "clean": clean, "at": "-"})

    def report_fenced(self, plan: Plan) -> Task[None]:
        p = self.p
        reason = p.local.crashed or "the promotion failed"
        body = {"term": plan.term, "reason": reason, "clean": False, "at": "-"}
        p.tell_raft("node.fenced", body | {"died": p.local.died and not p.local.stopping})
        yield Wait(until_ns=p.now + 100 * MS, ready=lambda: p.view.granted != plan.term)

    # -- promotion -----------------------------------------------------------------------------------------------

    def promote(self, plan: Plan) -> Task[None]:
        p = self.p
        grant = self._own_grant(plan.term)
        if p.local.server is Server.STANDBY:
            yield from self._promote_now(grant)
        began = p.now
        while not (yield from self.query(lambda pg: pg.state is State.PRIMARY)):
            yield from self.pause(began)
        start = self._switch_lsn(grant.timeline)
        if start is None:
            p.change(failed_promotion=plan.term)
            raise StepFailed(f"Postgres was promoted, but not to timeline {grant.timeline}")
        older = (e for e in p.view.record.history if e.timeline < grant.timeline and e.start_lsn < start)
        yield from p.save_record((*older, EpochStart(grant.term, start, grant.timeline)), proof=None)
        before = p.cluster.grants[-2] if len(p.cluster.grants) > 1 else None
        if before is not None and before.node == p.local.me and before.failed:
            self.world.counts["a primary promoted anew where it crashed"] += 1
        p.change(server=Server.PRIMARY)

    def _promote_now(self, grant: Grant) -> Task[None]:
        p, server = self.p, self.need_server()
        frozen = self.world.mutant in ("promise-without-freeze", "no-watchdog-no-promise")
        if not frozen and (p.local.upstream or p.local.may_receive or server.receiver is not None):
            raise StepFailed("not frozen")
        until_ns = p.view.lease_until_ns if p.view.lease_term == grant.term else 0
        if not (yield from p.ask_watchdog(machine.Arm(grant.term, self.pid, 1, until_ns), 500)):
            raise StepFailed("the watchdog is not armed")
        p.change(unguarded_since_ns=0)
        names = p.primary_names(grant.term)
        p.commits_wait = p.commits_wait and names.needed > 0
        server.reload(Conf(None, names))
        yield from self._reloaded(server, p.now + QUERY_MS * MS)
        history = p.view.record.history
        own = max([e.timeline for e in history], default=1)
        server.directory.histories |= timelines.install_list(history, own, grant.timeline)
        left_ms = (p.view.lease_until_ns - p.now) // MS
        if p.local.unguarded_since_ns:
            raise StepFailed("the watchdog has just gone")
        if p.view.granted != grant.term or p.view.lease_term != grant.term or left_ms < p.timings.heartbeat_ms:
            raise StepFailed(f"the lease is too short to promote ({left_ms} ms left)")
        p.tell_raft("node.writable", {"term": grant.term})
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
        server.reload(server.changed(gate=False))
        yield from self._reloaded(server, self.p.now + QUERY_MS * MS)
        self.p.change(gate_open=True)
        self.world.note(self.host.name, f"gate open, term {plan.term}")

    def checkpoint(self, epoch: int) -> Task[None]:
        yield from self.have_checkpoint(60_000)
        if self.p.local.epoch == epoch:
            self.p.facts = replace(self.p.facts, checkpointed=epoch)

    def regroup(self, plan: Plan) -> Task[None]:
        yield from regroup(self, plan)

    # -- following -----------------------------------------------------------------------------------------------

    def follow(self, plan: Plan) -> Task[None]:
        p = self.p
        grant = p.cluster.grant
        if grant is None or grant.term != plan.term:
            raise StepFailed("there is a newer grant")
        yield from self._detach()
        found = yield from self._position()
        received, replayed, _ = yield from self._lsns()
        unproven = p.view.record.proof is not None
        if isinstance(found, NoPosition) and not (unproven and self._is_of_its_history(max(received, replayed))):
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
