"""Looking at the running Postgres: position, streaming, slots; and the checkpoint after a promotion.

Decides nothing; others decide by what it saw, and by whether it saw anything (overdue.py).
"""

from __future__ import annotations

from dataclasses import replace

from consensus.membership import Member
from fencing.clock import now_ns
from fencing.lease import MS
from fencing.logs import utc_now
from supervisor import files, settings, sql, timelines
from supervisor.context import Context
from supervisor.observe import proven
from supervisor.postgres import StopMode
from supervisor.roles import Server, is_paused
from supervisor.slots import Slots
from supervisor.tasks import Task, Wait
from supervisor.upstream import avoided

EVERY_MS = 1_000
SOON_MS = 50
SLOTS_EVERY_MS = 5_000
NOT_STREAMING_MS = 1_500
CONNECT_EVERY_MS = 5_000
"""Old sessions go on answering when the postmaster hangs: who can't be connected to counts as silent."""
QUERY_MS = 2_000

_TIME = "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00:00')"
_STARTED = _TIME.format("pg_postmaster_start_time()")
_PRIMARY = (
    f"SELECT pg_current_wal_flush_lsn(), pg_current_wal_flush_lsn(), 'f', 'f', {_STARTED}, NULL, 'f', NULL,"
    " pg_conf_load_time()"
)
_STANDBY = "SELECT " + ", ".join((  # noqa: S608  # nothing in it comes from outside
    "greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())", "pg_last_wal_replay_lsn()",
    "EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')", "pg_is_in_recovery()",
    _STARTED, _TIME.format("pg_last_xact_replay_timestamp()"),
    "CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() = 'paused' ELSE false END",
    "CASE WHEN pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() THEN 0"
    " ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END",
    "pg_conf_load_time()",
))  # fmt: skip
_FILES = (
    "SELECT DISTINCT ON (1) lower(name), encode(convert_to(setting, getdatabaseencoding()), 'hex')"
    " FROM pg_file_settings WHERE name IS NOT NULL ORDER BY 1, seqno DESC"
)
"""As Postgres reads its files: the last line of a name counts. The bytes as they are there, whatever the encoding of
this database: what looks altered is written anew, and loaded, after which it is looked at again."""
_PENDING = "SELECT name, setting FROM pg_settings WHERE pending_restart"
PENDING_EVERY_MS = 5_000
PENDING_SOON_MS = 300
"""After new settings: until the reload has reached the session that is asked."""
_OVERRIDES = (
    "SELECT coalesce('database ' || d.datname, ''), coalesce('role ' || r.rolname, ''), split_part(c, '=', 2)"
    " FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase"
    " LEFT JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) c"
    " WHERE c ~ '^synchronous_commit=(off|local|remote_write|false|no|0)$' ORDER BY 1, 2"
)
ALTERED_HINT = "`pgr config set postgres.parameters.NAME=VALUE` sets what is not pgr's to decide, on every node"
INSUFFICIENT = "insufficient parameter settings"
"""What Postgres logs when it stops replaying, as the primary has been restarted with more of something."""
WAL_GONE = "has already been removed"
OTHER_HISTORY = (
    "is not in this server's history", "is not a child of this server's history", "forked off current database system",
)  # fmt: skip


class Watcher:
    """One task for as long as a Postgres runs; the daemon starts it anew with each server."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.slots_at_ns, self.slots = 0, Slots(context)
        self.idle_since_ns = 0
        self.pending_at_ns = 0
        self.applied = ("", 0)
        self.loaded: str | None = None
        self.altered: tuple[str, ...] = ()

    def run(self) -> Task[None]:
        c = self.c
        try:
            yield from self._run()
        except sql.SqlTimeout:
            # One that does not answer flushes nothing either, whatever it said last.
            c.facts = replace(c.facts, streaming=False)
            raise

    def _run(self) -> Task[None]:
        c = self.c
        session = yield from sql.connect(c.own_conninfo(), now_ns() + 5_000 * MS)
        connected_ns = now_ns()
        try:
            while c.local.server in (Server.STANDBY, Server.PROMOTING, Server.PRIMARY):
                if now_ns() - connected_ns > CONNECT_EVERY_MS * MS:
                    session, connected_ns = (yield from self._renewed(session)), now_ns()
                yield from self._look(session)
                due = c.view.cluster is not None and c.local.server in (Server.STANDBY, Server.PRIMARY)
                if due and (now_ns() >= self.slots_at_ns or self.slots.wants() != self.slots.wanted):
                    self.slots_at_ns = now_ns() + SLOTS_EVERY_MS * MS
                    yield from self.slots.round(session)
                yield from self._settings(session)
                follows = c.facts.streaming and c.local.upstream and proven(c.record, c.facts)
                settled = c.local.server is Server.PRIMARY or follows
                before = (c.local.server, c.local.upstream, c.members, c.applied, c.reloaded)
                calm = settled or not c.local.upstream or c.delay_ms > 0
                until_ns = now_ns() + (EVERY_MS if calm else SOON_MS) * MS
                until_ns = min(until_ns, max(self.pending_at_ns, now_ns() + SOON_MS * MS))

                def changed(before: tuple[Server, int, tuple[Member, ...], str, int] = before) -> bool:
                    return (c.local.server, c.local.upstream, c.members, c.applied, c.reloaded) != before

                yield Wait(until_ns=until_ns, ready=changed)
        finally:
            session.close()

    def _renewed(self, session: sql.Session) -> Task[sql.Session]:
        """A new session in place of an old one. Refused (too many clients) is an answer too: then the old one stays."""
        try:
            new = yield from sql.connect(self.c.own_conninfo(), now_ns() + 5_000 * MS)
        except sql.SqlConnectionLost:
            return session
        session.close()
        return new

    def _look(self, session: sql.Session) -> Task[None]:
        c = self.c
        primary = c.local.server is Server.PRIMARY
        rows = yield from session.query(_PRIMARY if primary else _STANDBY, until_ns=now_ns() + QUERY_MS * MS)
        lsn, replayed, streaming, recovering, started, replayed_at, paused, lag, loaded = rows[0]
        if c.local.server is Server.STANDBY and not primary and recovering == "f":
            c.log.error("postgres.promoted_by_a_stranger", hint="only pgr may promote: this Postgres is stopped")
            c.change(server=Server.PRIMARY, epoch=0)
            return
        c.facts = replace(
            c.facts,
            lsn=timelines.parse_lsn(lsn) if lsn else 0,
            replay_lsn=timelines.parse_lsn(replayed) if replayed else 0,
            streaming=streaming == "t" and not primary,
            started=started or "",
            replayed_at=replayed_at or "",
            replay_paused=paused == "t",
            lag_s=None if lag is None or primary else round(max(0.0, float(lag)), 3),
            answered_ns=now_ns(),
        )
        self._notice_dead_end()
        self._tell_of_new_copy()
        self._tell_of_restart()
        if loaded != self.loaded and c.owned:
            yield from self._overrule(session, loaded)

    def _overrule(self, session: sql.Session, loaded: str | None) -> Task[None]:
        """Somebody had the files read again: do they still say what pgr wrote (ALTER SYSTEM, an editor)? Without names
        commits are acknowledged that a failover loses, and nothing else would say so before the next start.

        It is put back by `Context.apply_settings`, whose caller looks at the authority. Until it is loaded it does no
        harm, and whatever pgr does next writes the file anew.
        """
        c, owned = self.c, self.c.owned
        rows = yield from session.query(_FILES, until_ns=now_ns() + QUERY_MS * MS)
        found = {str(name): bytes.fromhex(value or "").decode(errors="replace") for name, value in rows}
        altered = settings.altered(found, owned)
        if any(line.startswith("synchronous_standby_names") for line in altered):
            c.commits_wait = False  # they may have been empty
        if c.owned is not owned:
            return  # written anew meanwhile: the next look compares with that
        self.loaded, before, self.altered = loaded, self.altered, altered
        c.altered = c.altered or bool(altered)
        if altered and altered != before:
            c.log.warning("settings.altered", lines=list(altered), hint=ALTERED_HINT)

    def _tell_of_new_copy(self) -> None:
        """That a person asked for: done once it is proven. Told until the log has it."""
        c = self.c
        asked = c.cluster.reinit_of(c.local.me) if c.view.cluster is not None else None
        if asked is None or asked.index > c.local.rebuilt or not c.facts.streaming or not proven(c.record, c.facts):
            return
        body = {"node": c.local.me, "index": asked.index, "at": utc_now()}
        c.raft.tell("node.propose", {"kind": "rebuilt/1", "body": body})

    def _tell_of_restart(self) -> None:
        """That a person asked for: done once it serves as what it is. Told until the log has it."""
        c = self.c
        running = c.view.cluster.ops.restarting if c.view.cluster is not None else None
        turn = running.turn_of(c.local.me) if running is not None else 0
        if running is None or not turn or c.local.restarted < turn:
            return
        # One that replays late streams again when it has replayed what it has, which is not waited for.
        follows = c.followed is not None and c.local.upstream == c.followed.term
        follows = follows and (c.facts.streaming or c.delay_ms > 0)
        alone = c.followed is None and not c.local.epoch and running.turn_in_place != c.local.me
        if c.local.gate_open or ((follows or alone) and proven(c.record, c.facts)):
            body = {"node": c.local.me, "turn": turn, "at": utc_now()}
            c.raft.tell("node.propose", {"kind": "restarted/1", "body": body})

    def _settings(self, session: sql.Session) -> Task[None]:
        """What waits for a restart; on the primary also who has set synchronous_commit lower."""
        c = self.c
        if (c.applied, c.reloaded) != self.applied:
            self.applied, self.pending_at_ns = (c.applied, c.reloaded), now_ns() + PENDING_SOON_MS * MS
        if now_ns() < self.pending_at_ns:
            return
        self.pending_at_ns = now_ns() + PENDING_EVERY_MS * MS
        until_ns = now_ns() + QUERY_MS * MS
        rows = yield from session.query(_PENDING, until_ns=until_ns)
        pending = {str(name): str(setting) for name, setting in rows}
        overrides: tuple[str, ...] = ()
        if c.local.server is Server.PRIMARY:
            found = yield from session.query(_OVERRIDES, until_ns=until_ns)
            overrides = tuple(f"{' in '.join(w for w in (role, base) if w) or 'all'}: {v}" for base, role, v in found)
        elif c.local.server is Server.STANDBY:
            yield from self._paused(session, until_ns)
        c.facts = replace(c.facts, pending=pending, overrides=overrides, reloaded=self.applied[1])

    def _paused(self, session: sql.Session, until_ns: int) -> Task[None]:
        """The primary has more of something than this standby runs with, and Postgres has stopped replaying: only a
        restart helps, and it takes what pg_control says by then."""
        c = self.c
        rows = yield from session.query("SELECT pg_get_wal_replay_pause_state()", until_ns=until_ns)
        if rows[0][0] != "paused" or c.postmaster is None:
            return
        if not any(INSUFFICIENT in line for line in c.postgres.log_tail(c.postmaster, 1000)):
            return
        if is_paused(c.view):
            hint = f"paused, so it is left as it is: `pgr restart {c.local.me}`, or `pgr resume`"
            c.log.once_per("postgres.insufficient", 60).warning("postgres.insufficient", hint=hint)
        else:
            c.log.warning("postgres.insufficient", hint="the primary was restarted with more: this standby is too")
            c.postmaster.stop(StopMode.FAST)

    def _notice_dead_end(self) -> None:
        """A standby that can't stream because the primary lacks the WAL it needs says so only in its log."""
        c = self.c
        now = now_ns()
        if c.local.server is not Server.STANDBY or not c.local.upstream or c.facts.streaming or c.postmaster is None:
            self.idle_since_ns = 0
            return
        self.idle_since_ns = self.idle_since_ns or now
        if now - self.idle_since_ns < NOT_STREAMING_MS * MS:
            return
        tail = "\n".join(files.tail(c.config.postgres_log, c.attach_offset, 1000))
        if c.choice.node and (WAL_GONE in tail or any(text in tail for text in OTHER_HISTORY)):
            c.log.warning("follow.standby_lacks", upstream=c.choice.node, hint="the primary is followed for a while")
            c.choice = avoided(now)
        elif WAL_GONE in tail:
            hint = "the primary no longer has the WAL this node needs: it is cloned again"
            c.log.warning("follow.wal_gone", hint=hint)
            c.change(needs_clone=c.local.upstream)
        elif any(text in tail for text in OTHER_HISTORY):
            c.log.warning("follow.other_history", upstream=c.local.upstream)
            c.change(diverged=c.local.upstream)
        else:
            self.idle_since_ns = now


def checkpoint(c: Context, epoch: int) -> Task[None]:
    """After a promotion, in the background: rewinds of the others need the new timeline in the control file."""
    session = yield from sql.connect(c.own_conninfo(), now_ns() + 5_000 * MS)
    try:
        yield from session.query("CHECKPOINT")
    finally:
        session.close()
    if c.local.epoch == epoch:
        c.facts = replace(c.facts, checkpointed=epoch)
        c.log.info("checkpoint.done", epoch=epoch)
