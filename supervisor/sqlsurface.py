"""`pg_replica` as the daemon has it: the functions put into each database of an open primary, and the desk behind them.

Functions are put there after the gate is open, in the background, and never in the way of anything: each database is a
transaction that waits for no standby and for no lock longer than two seconds; one that fails is a warning in the status
and is tried again. They reach standbys as WAL, and new databases by template1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import settings, sql, sqlcatalog, sqldocuments
from supervisor.adminserver import AdminServer
from supervisor.context import Context
from supervisor.roles import Server
from supervisor.sqlcatalog import DIRECTORY
from supervisor.sqldesk import Desk
from supervisor.status import Snapshot
from supervisor.tasks import Handle, Runner, Task, Wait, sleep

SETTLE_MS = 1_000
"""After the opening: clients come first."""
EVERY_MS = 10_000
"""Databases that were made from template0 in the meantime, or could not be reached before."""
QUERY_MS = 20_000
SESSION = "SET lock_timeout = 2000; SET statement_timeout = 15000; SET synchronous_commit = local"
DATABASES = (
    "SELECT datname, oid::text FROM pg_database WHERE datallowconn AND datconnlimit <> -2 AND datname <> 'template0'"
    " ORDER BY datname <> 'postgres', datname"
)
ANOTHER_RESULT = "42P13"
"""cannot change return type of existing function, among others."""


class Surface:
    """``publish`` and ``close`` are the daemon's."""

    def __init__(self, context: Context, admin: AdminServer) -> None:
        self.c, self.admin = context, admin
        config = context.config
        self.desk = Desk(config.run / DIRECTORY, config.name, config.admin_socket, context.log)
        self.installer: Handle | None = None
        self.current: dict[str, str] = {}
        """OID of a database whose functions are these -> its name; of this time as primary."""
        self.problems: dict[str, str] = {}
        """Database -> why it has not got them."""

    def publish(self, snapshot: Snapshot, now_ns: int, runner: Runner) -> None:
        """With each new snapshot; also keeps the installer running while this is an open primary."""
        shown = sqldocuments.documents(self.c.view.cluster, snapshot, self.admin.heard(now_ns), now_ns)
        self.desk.publish(shown, sqldocuments.urgent(snapshot), now_ns)
        self._note()
        if self._primary() and (self.installer is None or self.installer.done):
            self.installer = runner.start(self._install(), lambda outcome: outcome.unwrap(), "sql.install")

    def close(self) -> None:
        self.desk.close()

    def _note(self) -> None:
        """For the status of every node."""
        found = [f"in database {name}: {why}" for name, why in sorted(self.problems.items())]
        text = "; ".join([self.desk.problem] * bool(self.desk.problem) + found[:3])
        if text != self.c.facts.sql_problem:
            self.c.facts = replace(self.c.facts, sql_problem=text)

    # -- the functions -------------------------------------------------------------------------------------------

    def _primary(self) -> bool:
        return self.c.local.server is Server.PRIMARY and self.c.local.gate_open

    def _install(self) -> Task[None]:
        epoch, self.current = self.c.local.epoch, {}

        def over() -> bool:
            return not self._primary() or self.c.local.epoch != epoch

        yield from sleep(SETTLE_MS * MS)
        while not over():
            try:
                yield from self._everywhere(over)
            except Exception as error:  # whatever it is: the node goes on, and says that it goes on without
                self._failed("postgres", error)
            yield Wait(until_ns=now_ns() + EVERY_MS * MS, ready=over)
        self.problems = {}

    def _everywhere(self, over: Callable[[], bool]) -> Task[None]:
        until_ns = now_ns() + QUERY_MS * MS
        session = yield from self._session("postgres")
        try:
            if (yield from session.query(sqlcatalog.LACKS_ROLES, until_ns=until_ns)) != [("f",)]:
                yield from session.query(sqlcatalog.ROLES, until_ns=until_ns)
            rows = yield from session.query(DATABASES, until_ns=until_ns)
        finally:
            session.close()
        there = {str(oid): str(name) for name, oid in rows}
        left = {*there.values()} - {*self.current.values()}
        self.problems = {name: why for name, why in self.problems.items() if name in left}
        for oid, name in there.items():
            if over():
                return
            if oid not in self.current:
                yield from self._one(oid, name)

    def _one(self, oid: str, name: str) -> Task[None]:
        try:
            session = yield from self._session(name)
            try:
                changed = yield from put(session)
            finally:
                session.close()
        except (sql.SqlFailure, OSError) as error:
            self._failed(name, error)
            return
        self.problems.pop(name, None)
        self.current[oid] = name
        if changed:
            self.c.log.info("sql.installed", database=name, functions=sqlcatalog.MARK)

    def _failed(self, name: str, error: Exception) -> None:
        self.problems[name] = str(error) or type(error).__name__
        hint = f"it is tried again every {EVERY_MS // 1000} s"
        quiet = self.c.log.once_per(f"sql.not_installed.{name}", 600)
        quiet.warning("sql.not_installed", database=name, error=self.problems[name], hint=hint)

    def _session(self, database: str) -> Task[sql.Session]:
        c, until_ns = self.c, now_ns() + QUERY_MS * MS
        place = str(c.postgres.socket_dir)
        session = yield from sql.connect(
            settings.own_conninfo(place, c.config.pg_port, database, application_name="pgr_sql"), until_ns
        )
        try:
            yield from session.query(SESSION, until_ns=until_ns)
            if session.server_version >= 170000:  # another's trigger is not part of this
                yield from session.query("SET event_triggers = off", until_ns=until_ns)
        except BaseException:
            session.close()
            raise
        return session


def put(session: sql.Session) -> Task[bool]:
    """The functions into the database of this session. True: they were not there, or others were."""
    until_ns = now_ns() + QUERY_MS * MS
    rows = yield from session.query(sqlcatalog.LOOK, until_ns=until_ns)
    mark, count, former = rows[0] if rows else (None, "0", "")
    if sqlcatalog.is_current(mark, int(count or 0)):
        return False
    try:
        yield from session.query(sqlcatalog.install(former or ""), until_ns=until_ns)
    except sql.SqlError as error:
        if error.sqlstate != ANOTHER_RESULT:
            raise
        yield from session.query("ROLLBACK", until_ns=until_ns)
        yield from session.query(sqlcatalog.install(former or "", anew=True), until_ns=until_ns)
    return True
