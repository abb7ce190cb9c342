"""From a grant to an open primary: promote, prove, open the gate (safety.md "Promotion", 4 and 5).

Every step may be cancelled at any `yield`; the next plan starts from what is then true (`Context.local`).
"""

from __future__ import annotations

from consensus.cluster import Grant
from consensus.record import EpochStart
from fencing.clock import now_ns
from fencing.lease import MS
from fencing.logs import utc_now
from supervisor import reigns, sql, timelines
from supervisor.context import Context, StepFailed
from supervisor.firstrun import first_run
from supervisor.receivers import receivers
from supervisor.regroup import make_commits_wait
from supervisor.roles import Plan, Server
from supervisor.steps import QUERY_MS, Steps, switch_lsn
from supervisor.tasks import Task, sleep


class Promotion:
    """One method a step; each returns a task."""

    def __init__(self, context: Context, steps: Steps) -> None:
        self.c, self.steps = context, steps

    def promote(self, plan: Plan) -> Task[None]:
        """safety.md, promotion 4: names in force and watchdog armed before, `pg_promote(false)`, switch LSN after."""
        c = self.c
        began = now_ns()
        grant = self._own_grant(plan.term)
        session = yield from self.steps.session()
        if c.local.server is Server.STANDBY:
            yield from self._promote_now(grant, began)
        while True:
            rows = yield from session.query("SELECT pg_is_in_recovery()", until_ns=now_ns() + QUERY_MS * MS)
            if rows[0][0] == "f":
                break
            yield from sleep(3 * MS)
        start = switch_lsn(c, grant.timeline)
        if start is None:
            c.change(failed_promotion=plan.term)
            raise StepFailed(f"Postgres was promoted, but not to timeline {grant.timeline}")
        # Only epochs of which this node holds WAL: one it attached to and never received from is not its ancestor.
        older = (e for e in c.record.history if e.timeline < grant.timeline and e.start_lsn < start)
        ancestry = (*older, EpochStart(grant.term, start, grant.timeline))
        took_ms = (now_ns() - began) // MS
        c.log.info("postgres.promoted", timeline=grant.timeline, lsn=timelines.format_lsn(start), took_ms=took_ms)
        c.postgres.correct_history(grant.timeline, ancestry)
        yield from c.save_record(ancestry, proof=None)
        yield from self._create_slots(session)
        c.change(server=Server.PRIMARY)

    def _promote_now(self, grant: Grant, began: int) -> Task[None]:
        c = self.c
        session, postmaster = (yield from self.steps.session()), c.need_postmaster()
        if c.process is None or c.local.upstream or c.local.may_receive or receivers(c):
            raise StepFailed("not frozen")
        body = {
            "term": grant.term, "pid": c.process.pid, "start_ticks": c.process.start_ticks,
            "until_ns": c.view.lease_until_ns if c.view.lease_term == grant.term else 0,
        }  # fmt: skip
        answer = yield from c.watchdog.ask("deadman.arm", body, 500)
        if answer.body.get("ok") is not True:
            raise StepFailed(f"the watchdog is not armed: {answer.body.get('reason')}")
        c.change(unguarded_since_ns=0)
        names = c.primary_names(grant.term)
        owned = c.write_settings(names=names)
        c.postgres.write_settings(owned, c.hba(), c.ident())
        postmaster.reload()
        yield from self.steps.reloaded("synchronous_standby_names", names, now_ns() + QUERY_MS * MS)
        own = max([e.timeline for e in c.record.history], default=1)
        c.postgres.install_histories(timelines.install_list(c.record.history, own, grant.timeline))
        # Still leader of this term, with enough of the lease left to finish what is about to begin?
        left_ms = (c.view.lease_until_ns - now_ns()) // MS
        if c.local.unguarded_since_ns:
            raise StepFailed("the watchdog has just gone")
        if c.view.granted != grant.term or c.view.lease_term != grant.term or left_ms < c.timings.heartbeat_ms:
            raise StepFailed(f"the lease is too short to promote ({left_ms} ms left)")
        # Before the act: whoever ends a Postgres that nobody else can end any more has to know that it may be writable.
        if not c.raft.tell("node.writable", {"term": grant.term}):
            raise StepFailed("the Raft child does not take the word that this node is to be writable")
        c.change(server=Server.PROMOTING, epoch=grant.term)
        c.log.info("postgres.promoting", term=grant.term, timeline=grant.timeline, prepared_ms=(now_ns() - began) // MS)
        yield from session.query("SELECT pg_promote(false)", until_ns=now_ns() + QUERY_MS * MS)

    def _own_grant(self, term: int) -> Grant:
        grant = self.c.cluster.grant
        if grant is None or grant.term != term or grant.node != self.c.local.me:
            raise StepFailed("the grant is not this node's any more")
        return grant

    def prove(self, plan: Plan) -> Task[None]:
        """safety.md, promotion 5: a record of this epoch flushed by k of S, then `Opened`."""
        c = self.c
        yield from first_run(c)
        ancestry = [list(e) for e in c.record.history]
        body = {"term": plan.term, "timeline": ancestry[-1][2], "ancestry": ancestry}
        # The others may follow only once they know where this epoch begins.
        yield from self.steps.until_logged(
            "switched/1", body, lambda: c.cluster.grant is not None and bool(c.cluster.grant.ancestry)
        )
        session = yield from sql.connect(c.own_conninfo(), now_ns() + QUERY_MS * MS)
        try:
            yield from make_commits_wait(c, session)
            # Waits until k of the group have it: Postgres itself counts. No deadline: strict means closed until then.
            yield from session.query("SELECT pg_logical_emit_message(true, 'pgr', 'opened')")
            cancelled = [n.message for n in session.take_notices() if n.sqlstate.startswith("01")]
            if cancelled:
                raise StepFailed(f"the proof was not acknowledged: {cancelled[0]}")
        finally:
            session.close()
        c.log.info("epoch.proven", term=plan.term)
        yield from self.steps.until_logged(
            "opened/1", {"term": plan.term}, lambda: c.cluster.grant is not None and c.cluster.grant.opened
        )

    def open_gate(self, plan: Plan) -> Task[None]:
        c = self.c
        session = yield from self.steps.session()
        loaded = yield from session.query("SELECT pg_conf_load_time()", until_ns=now_ns() + QUERY_MS * MS)
        # The names that are in force, not those that the log has by now: this comes after a `yield` and looks at no
        # authority again, and who is losing it never touches its names.
        owned = c.write_settings(names=c.conf["names"], gate=False)
        c.postgres.write_settings(owned, c.hba(), c.ident())
        c.need_postmaster().reload()
        # Our own sessions override the gate, so it is the reload itself that is waited for.
        while (yield from session.query("SELECT pg_conf_load_time()", until_ns=now_ns() + QUERY_MS * MS)) == loaded:
            yield from sleep(1 * MS)
        c.change(gate_open=True)
        gap_ms = reigns.gap_ms(c.cluster, plan.term, c.closed, c.view.old_primary, now_ns())
        c.log.info("gate.open", term=plan.term, gap_ms=gap_ms)
        if gap_ms is not None:
            body = reigns.gap_event(plan.term, c.local.me, gap_ms) | {"at": utc_now()}
            c.raft.tell("node.propose", {"kind": "event/1", "body": body})

    def _create_slots(self, session: sql.Session) -> Task[None]:
        for name in self.c.slots():
            yield from session.query(
                "SELECT pg_create_physical_replication_slot($1, true)"
                " WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)",
                (name,),
                until_ns=now_ns() + QUERY_MS * MS,
            )
