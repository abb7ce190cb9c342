"""What each step of roles.py does, as generator tasks. They hold no rules: who may write is decided elsewhere.

Every step may be cancelled at any `yield`; the next plan starts from what is then true (`Context.local`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from consensus.cluster import Grant
from consensus.positions import Attach, Diverged, NoPosition, divergence, is_of_its_history, position_of
from consensus.record import EpochStart, Position
from fencing.clock import now_ns
from fencing.kill import fence
from fencing.lease import MS
from fencing.logs import utc_now
from supervisor import sql, timelines, upstream
from supervisor.context import Context, StepFailed
from supervisor.postgres import StopMode
from supervisor.receivers import receivers, terminate, too_young
from supervisor.roles import Data, Plan, Server
from supervisor.tasks import Task, TaskTimeout, Wait, sleep
from supervisor.torn import blank, torn_record

FREEZE_MS = 200
"""The WAL receiver must be gone within this; else Postgres is restarted without upstream (safety.md, promotion 1)."""
HAND_OVER_CHECKPOINT_MS = 5_000
FAST_STOP_MS = 10_000
STOP_MS = 60_000
IMMEDIATE_MS = 150
QUERY_MS = 2_000
CALM_MS = 5
"""Between two looks that show no WAL receiver: longer than a fork that startup has asked for can take."""
STARTUP_WAITS = "SELECT (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup')"
SLOW_POSITION_MS = 300
HUNG_MS = 2_000
"""A Postgres that answers nothing for this long while a promise is wanted is killed."""
STARTUP_IDLE = ("RecoveryWalStream", "RecoveryRetrieveRetryInterval")
STARTUP_DELAYS = "RecoveryApplyDelay"
LATE_MS = 250
"""One that replays late has WAL to read for as long as that takes: how often it is asked."""


class Steps:
    """One method a step; each returns a task."""

    def __init__(self, context: Context) -> None:
        self.c = context

    # -- starting and stopping -----------------------------------------------------------------------------------

    def session(self) -> Task[sql.Session]:
        """The session of the steps; a new one if it was lost, timed out, or cut off by a cancelled step."""
        c = self.c
        if c.session is None or not c.session.open:
            c.session = yield from sql.connect(c.own_conninfo(), now_ns() + QUERY_MS * MS)
        return c.session

    def attach(self, grant: Grant) -> None:
        c = self.c
        c.change(may_receive=True)
        c.freeze_failing_ns = 0
        node = self.chosen(grant)
        conninfo = c.followed_conninfo(grant, node)
        owned = c.write_settings(conninfo=conninfo, slot=f"pgr_{c.local.me}", names=c.idle_names())
        c.postgres.write_settings(owned, c.hba(), c.ident())
        c.change(upstream=grant.term, upstream_node=node, frozen=0)
        c.attach_offset = c.config.postgres_log.stat().st_size
        c.need_postmaster().reload()
        c.log.info("follow.attached", primary=grant.node, term=grant.term, upstream=node)

    def chosen(self, grant: Grant) -> str:
        """Whom to stream from now; a Postgres that is not consistent yet from the primary, which has all there is."""
        c = self.c
        if c.local.server is not Server.STANDBY:
            return grant.node
        c.choice = upstream.turn(
            c.choice, c.cluster, grant, c.local.me, c.seen, led=bool(c.view.leader),
            attached=c.local.upstream == grant.term and c.local.upstream_node == (c.choice.node or grant.node),
            # One that replays late asks for WAL only when it has replayed what it has.
            streaming=c.facts.streaming or c.delay_ms > 0, now_ns=now_ns(),
        )  # fmt: skip
        return c.choice.node or grant.node

    def notice_moved_upstream(self) -> None:
        """Who this standby follows has another address now, or is to be another: it is followed there."""
        c = self.c
        grant = c.view.cluster.grant if c.view.cluster is not None else None
        if grant is None or grant.term != c.local.upstream or c.cluster.member(grant.node) is None:
            return
        if c.local.server is Server.STANDBY:
            node = self.chosen(grant)
            if c.conf["conninfo"] != c.followed_conninfo(grant, node):
                c.log.info("follow.moved", upstream=node, before=c.local.upstream_node)
                c.change(upstream=0)

    def stop(self, _: Plan) -> Task[None]:
        """Fast stop, for a standby or for good."""
        yield from self._stop_cleanly(STOP_MS)

    def _stop_cleanly(self, within_ms: int) -> Task[bool]:
        """Fast stop and verified fence. True: it ended in time by itself; False: it had to be killed."""
        c = self.c
        postmaster = c.need_postmaster()
        c.change(server=Server.STOPPING)
        c.log.info("postgres.stopping", mode="fast")
        postmaster.stop(StopMode.FAST)
        clean = True
        try:
            yield from c.postgres.wait_gone(postmaster, now_ns() + within_ms * MS)
        except TimeoutError:
            c.log.warning("postgres.stop_slow", after_ms=within_ms)
            clean = False
        self._bury("")
        return clean

    def fence(self, plan: Plan) -> Task[None]:
        """Immediate stop, then whatever is left is killed and it is verified that nothing is."""
        c = self.c
        began = now_ns()
        c.log.warning("fence.begin", rule=plan.rule, epoch=c.local.epoch)
        if c.postmaster is not None and c.postmaster.alive():
            c.postmaster.stop(StopMode.IMMEDIATE)
            try:
                yield from c.postgres.wait_gone(c.postmaster, now_ns() + IMMEDIATE_MS * MS)
            except TimeoutError:
                c.log.warning("fence.immediate_stop_slow", after_ms=IMMEDIATE_MS)
        self._bury(f"fenced: {plan.rule}")
        c.log.info("fence.end", took_ms=(now_ns() - began) // MS, clean=c.local.clean)

    def _bury(self, crashed: str) -> None:
        """After the postmaster's end (or instead of waiting for it): kill the rest, verify, note it."""
        c = self.c
        report = fence(c.config.pgdata, c.process, now_ns() + c.timings.kill_bound_ms * MS)
        clean = not report.survivors
        if not clean:
            c.log.error("fence.survivors", survivors=list(report.survivors))
        if c.session is not None:
            c.session.close()
            c.session = None
        if c.postmaster is not None and clean:
            c.postmaster.close()
            c.postmaster = None
        if clean:
            c.watchdog.tell("deadman.disarm", {})
        writable = c.local.epoch > 0
        c.facts = replace(c.facts, streaming=False, checkpointed=0)
        c.freeze_failing_ns = 0
        c.change(
            server=Server.DOWN, clean=clean, upstream=0, frozen=0, gate_open=False, unguarded_since_ns=0,
            crashed=(crashed or "stopped") if writable else "",
        )  # fmt: skip

    def postmaster_ended(self, why: str, *, died: bool = False) -> None:
        """Called by the loop the moment the postmaster's pidfd says so, outside any step that stops it. ``died``: by
        itself; else the node has to end at once."""
        c = self.c
        c.log.warning("postgres.exited", expected=False, reason=why, epoch=c.local.epoch)
        ran = c.local.server in (Server.STANDBY, Server.PROMOTING, Server.PRIMARY)
        # Of a kill by the watchdog the end is often seen before its word.
        fenced = c.local.epoch > 0 and c.view.lease_until_ns <= now_ns()
        left = ran and not fenced and c.postmaster is not None and not c.postmaster.told_to_stop
        c.change(died=died and left and c.local.epoch > 0, left_down=left)
        self._bury(why)

    def ended_by_pgr(self) -> None:
        """The watchdog has killed Postgres: whether its end is known here already or not, nobody wanted it down."""
        self.c.change(left_down=False)
        if self.c.postmaster is not None:
            self.c.postmaster.told_to_stop = True

    def hand_over(self, plan: Plan) -> Task[None]:
        """A planned change: as little as possible left to flush, then a clean stop that standbys receive to the end."""
        c = self.c
        try:
            session = yield from self.session()
            yield from session.query("CHECKPOINT", until_ns=now_ns() + HAND_OVER_CHECKPOINT_MS * MS)
        except sql.SqlFailure as error:  # only makes the stop longer
            c.log.warning("handover.no_checkpoint", error=str(error))
        clean = yield from self._stop_cleanly(FAST_STOP_MS)
        if c.local.clean:
            # `crashed` stays: reported like any other end until the Raft child has taken it in. Until then the grant
            # looks as if it could still be used, and a standby that is up by then would be promoted once more.
            why = "switchover" if c.view.hand_over is not None else "a person keeps its Postgres down"
            body = {"term": plan.term, "reason": why, "clean": clean, "at": utc_now()}
            c.raft.tell("node.fenced", body | c.closed_ms(plan.term))

    def report_fenced(self, plan: Plan) -> Task[None]:
        c = self.c
        kept_down = c.local.me in c.cluster.fenced and not c.local.failed_promotion
        reason = "a person keeps its Postgres down" if kept_down else c.local.crashed or "the promotion failed"
        otherwise = kept_down or c.local.left_down or c.local.failed_promotion or c.local.stopping
        body = {"term": plan.term, "reason": reason, "clean": False, "at": utc_now(), "lease_lost": not otherwise}
        body |= {"died": c.local.died and not c.local.stopping and not kept_down}
        c.raft.tell("node.fenced", body | c.closed_ms(plan.term))
        until_ns = now_ns() + 100 * MS
        yield Wait(until_ns=until_ns, ready=lambda: c.view.granted != plan.term)

    # -- promises ------------------------------------------------------------------------------------------------

    def say_no_position(self, term: int, reason: str = "") -> None:
        """Not a vow: only that nothing here is writable and that nobody need wait for an answer."""
        c = self.c
        server, data = c.local.server, c.local.data
        why = f"Postgres is {server.value}" if data is Data.READY else f"its data is {data.value}"
        why = c.facts.problem or why
        body = {"term": term, "epoch": -1, "lsn": 0, "reason": reason or why, "gave_up": bool(c.facts.problem)}
        if c.raft.tell("node.frozen", body):
            c.change(said_no_position=term)

    def detach(self, _: Plan) -> Task[None]:
        """A standby whose upstream a promise forbids."""
        began = now_ns()
        try:
            yield from self._detach()
        except (sql.SqlFailure, StepFailed, TimeoutError):
            self._kill_if_hung(began)
            raise
        self.c.freeze_failing_ns = 0

    def freeze(self, plan: Plan) -> Task[None]:
        """The vow of safety.md: no more WAL is received or acknowledged, and this is how far it goes."""
        c = self.c
        began = now_ns()
        try:
            yield from self._detach()
            found = yield from self._position(plan.term)
        except (sql.SqlFailure, StepFailed, OSError) as error:  # TimeoutError is one, so is a full disk
            disk = isinstance(error, OSError) and not isinstance(error, TimeoutError)
            # Nobody need wait for this node; its own leadership must not either.
            if c.local.said_no_position != plan.term:
                self.say_no_position(plan.term, str(error) if disk else f"Postgres does not answer: {error}")
            if not disk:  # it would not start again either
                self._kill_if_hung(began)
            raise
        c.freeze_failing_ns = 0
        body: dict[str, Any] = {"term": plan.term, "reason": ""}
        if isinstance(found, NoPosition):
            body |= {"epoch": -1, "lsn": 0, "reason": found.reason}
        else:
            body |= {"epoch": found.epoch, "lsn": found.lsn}
            c.change(vowed=max(c.local.vowed, plan.term))
        if not c.raft.tell("node.frozen", body):
            raise StepFailed("the Raft child does not take the answer")
        c.change(frozen=plan.term)
        c.log.info("promise.given", took_ms=(now_ns() - began) // MS, **body)

    def _kill_if_hung(self, began: int) -> None:
        """Its WAL receiver may be well and go on acknowledging."""
        c = self.c
        c.freeze_failing_ns = c.freeze_failing_ns or began
        if now_ns() - c.freeze_failing_ns > HUNG_MS * MS and c.postmaster is not None:
            c.log.error("postgres.hung", hint="it is killed and started again")
            self._bury("hung")

    def _detach(self) -> Task[None]:
        """Empty primary_conninfo, and evidence that no WAL receiver is left or can come back."""
        c = self.c
        session, postmaster = (yield from self.session()), c.need_postmaster()
        until_ns = now_ns() + FREEZE_MS * MS
        c.change(upstream=0)
        if not c.local.may_receive and not receivers(c):
            return
        c.change(may_receive=True)
        try:
            owned = c.write_settings(names=c.idle_names())
            c.postgres.write_settings(owned, c.hba(), c.ident())
            postmaster.reload()
            yield from self.reloaded("primary_conninfo", "", until_ns)
            yield from session.query(
                "SELECT pg_wal_replay_resume() FROM (SELECT pg_is_wal_replay_paused() AS p) AS x WHERE p",
                until_ns=until_ns,
            )
            calm = 0
            while calm < 2:
                for pid in receivers(c):
                    yield from terminate(pid, until_ns)
                # A startup process that has just asked for a receiver, with the old conninfo, waits for its stream.
                rows = yield from session.query(STARTUP_WAITS, until_ns=until_ns)
                restless = rows[0][0] == "RecoveryWalStream" or bool(receivers(c)) or too_young(c)
                calm = 0 if restless else calm + 1
                if now_ns() >= until_ns:
                    raise TaskTimeout("the WAL receiver is not gone")
                if calm < 2:
                    yield from sleep(CALM_MS * MS)
            c.change(may_receive=False)
        except (TimeoutError, sql.SqlTimeout) as error:
            c.log.warning("freeze.slow", after_ms=FREEZE_MS, error=str(error))
            postmaster.stop(StopMode.IMMEDIATE)
            raise StepFailed("the WAL receiver did not stop in time: Postgres is restarted without upstream") from error
        c.facts = replace(c.facts, streaming=False)

    def reloaded(self, name: str, value: str, until_ns: int) -> Task[None]:
        """Until our own session has the new value: then the postmaster has signalled all of its children."""
        session = yield from self.session()
        while True:
            rows = yield from session.query("SELECT current_setting($1)", (name,), until_ns=until_ns)
            if rows[0][0] == value:
                return
            if now_ns() >= until_ns:
                raise TaskTimeout(f"{name} is not in force")
            yield from sleep(1 * MS)

    def _position(self, asked_term: int = 0) -> Task[Position | NoPosition]:
        """Where the flushed WAL ends, once everything in pg_wal has been read (safety.md, promotion 1).

        ``asked_term``: whose leader is told that it takes long, if it does.
        """
        began, before = now_ns(), (-1, -1)
        while True:
            received, replayed, event = yield from self._lsns()
            waits = event in STARTUP_IDLE
            if received or (waits and (received, replayed) == before):
                break
            before = (received, replayed) if waits else (-1, -1)
            slow = now_ns() - began > SLOW_POSITION_MS * MS
            if asked_term and slow and self.c.local.said_no_position != asked_term:
                self.say_no_position(asked_term, "still reading the WAL it has")
            yield from sleep((LATE_MS if event == STARTUP_DELAYS else 3) * MS)
        return (yield from self._position_at(max(received, replayed)))

    def _lsns(self) -> Task[tuple[int, int, str]]:
        """(received and flushed, replayed, what startup waits for); 0 where Postgres says NULL."""
        session = yield from self.session()
        rows = yield from session.query(
            "SELECT pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), pg_is_in_recovery(),"
            " (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup')",
            until_ns=now_ns() + QUERY_MS * MS,
        )
        received, replayed, recovering, event = rows[0]
        if recovering != "t":
            raise AssertionError("Postgres left recovery without being promoted by pgr")
        return (
            timelines.parse_lsn(received) if received else 0,
            timelines.parse_lsn(replayed) if replayed else 0,
            event or "",
        )

    def _position_at(self, lsn: int) -> Task[Position | NoPosition]:
        c = self.c
        timeline = self._newest_timeline(lsn)
        if timeline is None:
            return NoPosition(f"there is no WAL file that holds {timelines.format_lsn(lsn)}")
        yield from self._complete_own_history(timeline)
        found = position_of(c.record.history, lsn, timeline, c.record.proof)
        if isinstance(found, Position) and c.record.proof is not None:
            yield from c.save_record(proof=None)  # passed
        return found

    def _is_of_its_history(self, lsn: int) -> bool:
        timeline = self._newest_timeline(lsn)
        return timeline is not None and is_of_its_history(self.c.record.history, lsn, timeline)

    def _newest_timeline(self, lsn: int) -> int | None:
        names = os.listdir(self.c.postgres.wal_dir)
        return timelines.newest_wal_timeline(names, lsn, self.c.wal_segment_bytes, self._never_used())

    def _never_used(self) -> frozenset[int]:
        """Timelines of promotions of this node that were killed after the first file was there (a copy of the last one
        before) and ahead of the history file, without which Postgres writes nothing on them."""
        c = self.c
        known = {e.timeline for e in c.record.history}
        own = {g.timeline for g in c.cluster.grants if g.node == c.local.me}
        return frozenset(t for t in own - known if switch_lsn(c, t) is None)

    def _complete_own_history(self, timeline: int) -> Task[None]:
        """This node promoted to ``timeline`` by its own grant and went down before that was written: its history
        file, which only it can have made, says where. Or the standby it streamed from was promoted meanwhile."""
        c = self.c
        known = {e.timeline for e in c.record.history}
        if timeline in known:
            return
        grant = next((g for g in c.cluster.grants if g.timeline == timeline and g.node == c.local.me), None)
        if grant is None:
            through = carried_on(c.cluster.grants, c.record.history, timeline, switch_lsn(c, timeline))
            if through is not None and c.local.upstream_node:
                yield from c.save_record(through)
            return
        start = switch_lsn(c, timeline)
        if start is not None and c.record.history and grant.term > c.record.history[-1].epoch:
            # As in `promote`: one that it attached to and never received from is not its ancestor.
            older = (e for e in c.record.history if e.start_lsn < start)
            yield from c.save_record((*older, EpochStart(grant.term, start, timeline)))

    # -- the log -------------------------------------------------------------------------------------------------

    def _propose(self, kind: str, body: dict[str, Any]) -> None:
        self.c.raft.tell("node.propose", {"kind": kind, "body": body | {"at": utc_now()}})

    def until_logged(self, kind: str, body: dict[str, Any], done: Any) -> Task[None]:
        """Propose until it is in the committed log (a proposal may be lost with a leader; entries are idempotent)."""
        while not done():
            self._propose(kind, body)
            yield Wait(until_ns=now_ns() + 1_000 * MS, ready=done)

    # -- following -----------------------------------------------------------------------------------------------

    def follow(self, plan: Plan) -> Task[None]:
        """safety.md, promotion 6: only with a history that is part of the primary's, and nothing beyond it."""
        c = self.c
        grant = c.cluster.grant
        if grant is None or grant.term != plan.term:
            raise StepFailed("there is a newer grant")
        yield from self._detach()
        made = c.record.proof is None or c.record.proof.epoch == grant.term  # a copy of this very grant
        if c.delay_ms and made and c.record.history == grant.ancestry:
            # All it has came from this very grant, or was checked when it first followed it; how far that goes Postgres
            # tells only once it has replayed it, which is late on purpose.
            self.attach(grant)
            return
        found = yield from self._position()
        received, replayed, _ = yield from self._lsns()
        end = max(received, replayed)
        if isinstance(found, NoPosition) and not (c.record.proof is not None and self._is_of_its_history(end)):
            c.log.warning("follow.no_position", reason=found.reason)
            c.change(needs_clone=plan.term)
            return
        match divergence(grant.ancestry, c.record.history, end):
            case Diverged(lsn, lost, reason):
                c.facts = replace(c.facts, lsn=end)  # how far what is to be saved goes
                c.log.warning("follow.diverged", at=timelines.format_lsn(lsn), lost_bytes=lost, reason=reason)
                c.change(diverged=plan.term)
            case Attach(history):
                self._forget_torn_record(grant, replayed)
                yield from c.save_record(history)
                self.attach(grant)

    def _forget_torn_record(self, grant: Grant, end: int) -> None:
        """Or Postgres would ask the primary for what comes after it, and wait for that (torn.py)."""
        c = self.c
        mine = self._newest_timeline(end) or grant.timeline
        left_at = min((e.start_lsn for e in grant.ancestry if e.timeline > mine), default=None)
        if left_at is None or end < left_at:
            return  # what comes is the rest of it
        found = torn_record(c.postgres.wal_dir, mine, end, c.wal_segment_bytes)
        if found is not None:
            c.log.warning("follow.torn_record", at=timelines.format_lsn(end), segment=found[0].name)
            blank(*found)
            c.need_postmaster().stop(StopMode.FAST)
            raise StepFailed("the last record here was torn: Postgres is restarted without it")


def carried_on(
    grants: Sequence[Grant], history: Sequence[EpochStart], timeline: int, switched: int | None
) -> tuple[EpochStart, ...] | None:
    """The history of a node that streamed from a standby while that became primary on ``timeline``, which begins at
    ``switched`` by the file that came with the stream: that of the grant, up to there, if what it had goes before it.
    None: it does not fit, or nobody here knows it. Pure."""
    for grant in reversed(grants):
        for number, epoch in enumerate(grant.ancestry):
            if epoch.timeline == timeline and epoch.start_lsn == switched:
                before = grant.ancestry[:number]
                had = [e for e in history if e.start_lsn < epoch.start_lsn]
                return grant.ancestry[: number + 1] if had and had == list(before[: len(had)]) else None
    return None


def switch_lsn(c: Context, timeline: int) -> int | None:
    """Where ``timeline`` begins, from its history file; None if this node has no real one."""
    try:
        text = (c.postgres.wal_dir / timelines.history_name(timeline)).read_text(encoding="ascii")
        switches = timelines.parse_history(text)
    except (FileNotFoundError, ValueError):  # torn by a crash: Postgres had not begun to use it
        return None
    return switches[-1].lsn if switches else None
