"""The primary's part of a change of the sync group (safety.md "Changes of the sync group", steps 2 to 4).

The change is in the log before this begins and stays open until `done/1`: an election respects both groups all the
while, so the step may be cancelled anywhere and begun anew, by this primary or the next one.
"""

from __future__ import annotations

from consensus.cluster import Change
from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import sql
from supervisor.context import CLONE, Context, StepFailed
from supervisor.roles import Plan, Situation, plan
from supervisor.steps import Steps
from supervisor.tasks import Task, sleep

QUERY_MS = 2_000
IN_FORCE_MS = 5_000
LOOK_EVERY_MS = 2
SAY_WHO_IS_LEFT_MS = 5_000

_OLD_WALSENDERS = (
    "SELECT pid::text, backend_start::text, application_name FROM pg_stat_activity"
    " WHERE backend_type = 'walsender' AND backend_start <= $1::timestamptz AND NOT starts_with(application_name, $2)"
)
"""Base backups may go on for hours: the name of none is ever in a list, so none of them can count."""
_MY_START = "SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_NAMES = "SELECT current_setting('synchronous_standby_names')"


def make_commits_wait(c: Context, session: sql.Session) -> Task[None]:
    """With names in force commits wait for somebody only once the checkpointer has seen that there are any; it has when
    a checkpoint that was asked for after the reload is over."""
    while c.conf["names"] and not c.commits_wait:
        c.commits_wait = True  # unless somebody finds meanwhile that they were emptied
        try:
            yield from session.query("CHECKPOINT")
        except BaseException:
            c.commits_wait = False
            raise


class Regroup:
    """One step; a task."""

    def __init__(self, context: Context, steps: Steps) -> None:
        self.c, self.steps = context, steps

    def regroup(self, wanted: Plan) -> Task[None]:
        """Names of the new group in force, proven; everything acknowledged meets its rule; then `done/1`."""
        c, began = self.c, now_ns()
        change = self._change(wanted)
        c.log.info("regroup.begin", index=change.index, group=list(change.new.names), k=change.new.k)
        yield from self._look_at_names()
        self._write_names(wanted)
        session = yield from self._session_after_reload(c.conf["names"])
        try:
            ended = yield from self._end_old_walsenders(session)
            yield from make_commits_wait(c, session)
            yield from self._until_met(session)
        finally:
            session.close()
        self._change(wanted)
        took_ms = (now_ns() - began) // MS
        c.log.info("regroup.proven", index=change.index, k=change.new.k, walsenders_ended=ended, took_ms=took_ms)
        body = {"index": change.index, "node": c.local.me}
        yield from self.steps.until_logged(
            "done/1", body, lambda: c.cluster.change is None or c.cluster.change.index != change.index
        )

    def _change(self, wanted: Plan) -> Change:
        """The change this is about. What came in this turn may already have overtaken the plan: looked at anew."""
        c = self.c
        change = c.cluster.change
        now, _ = plan(Situation(c.view, c.local, c.timings, now_ns()))
        if change is None or now != wanted:
            raise StepFailed("this node is no longer to change the sync group")
        if c.local.me not in change.new.names:
            raise AssertionError(f"the primary {c.local.me} has no seat in the group {change.new}")
        return change

    def _look_at_names(self) -> Task[None]:
        """Has somebody emptied them a moment ago (ALTER SYSTEM)? The watcher may not have seen it, and what is written
        next hides it."""
        c, session = self.c, (yield from self.steps.session())
        rows = yield from session.query(_NAMES, until_ns=now_ns() + QUERY_MS * MS)
        if rows[0][0] != c.conf["names"]:
            c.commits_wait = False

    def _write_names(self, wanted: Plan) -> None:
        """No `yield` between the look at the authority and the reload: who is losing it never touches its names."""
        c = self.c
        self._change(wanted)
        names = c.primary_names(c.local.epoch)
        owned = c.write_settings(names=names, gate=False)
        c.postgres.write_settings(owned, c.hba(), c.ident())
        c.need_postmaster().reload()

    def _session_after_reload(self, names: str) -> Task[sql.Session]:
        """A new session that has the value: whatever the postmaster starts from now on has it from its beginning."""
        c, until_ns = self.c, now_ns() + IN_FORCE_MS * MS
        while True:
            session = yield from sql.connect(c.own_conninfo(), now_ns() + QUERY_MS * MS)
            try:
                rows = yield from session.query(_NAMES, until_ns=now_ns() + QUERY_MS * MS)
            except BaseException:
                session.close()
                raise
            if rows[0][0] == names:
                return session
            session.close()
            if now_ns() >= until_ns:
                raise StepFailed(f"synchronous_standby_names is {rows[0][0]!r} and not what was written: {names!r}")
            yield from sleep(LOOK_EVERY_MS * MS)

    def _end_old_walsenders(self, session: sql.Session) -> Task[int]:
        """Those that may still count by the old names: until they are gone. How many there were.

        One that was forked before the reload and is not in the view yet has the signal pending: it reads the new names
        before its first answer.
        """
        c, began, seen = self.c, now_ns(), set[tuple[str | None, ...]]()
        mine = (yield from session.query(_MY_START, until_ns=now_ns() + QUERY_MS * MS))[0][0]
        while True:
            rows = yield from session.query(_OLD_WALSENDERS, (mine, CLONE), until_ns=now_ns() + QUERY_MS * MS)
            if not rows:
                return len(seen)
            for row in rows:
                if row[:2] not in seen:
                    seen.add(row[:2])
                    terminate = "SELECT pg_terminate_backend($1::integer)"
                    yield from session.query(terminate, (row[0],), until_ns=now_ns() + QUERY_MS * MS)
            if now_ns() - began > SAY_WHO_IS_LEFT_MS * MS:
                left = [name for _, _, name in rows]
                c.log.once_per("regroup.walsenders", 10).warning("regroup.walsenders_left", left=left)
            yield from sleep(LOOK_EVERY_MS * MS)

    def _until_met(self, session: sql.Session) -> Task[None]:
        """A record of our own behind everything acknowledged so far: Postgres itself counts, by the new names.

        No deadline: strict means that commits wait until the new group has them. The leader reverts it if the new
        member goes away.
        """
        yield from session.query("SELECT pg_logical_emit_message(true, 'pgr', 'regroup')")
        cancelled = [n.message for n in session.take_notices() if n.sqlstate.startswith("01")]
        if cancelled:
            raise StepFailed(f"the proof was not acknowledged: {cancelled[0]}")
