"""Non-blocking Postgres sessions as tasks, over psycopg's libpq wrapper.

It costs memory, so it is imported with the first connection, and not all of psycopg (libpq.py). libpq resolves host
names while it blocks: give ``hostaddr`` for anything but a socket directory or an address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fencing.clock import now_ns
from supervisor import libpq
from supervisor.tasks import NEVER, Task, Wait

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

Row = tuple[str | None, ...]
_NOTICES_KEPT = 100


class Notice(NamedTuple):
    """A notice or warning of the server. 01000 "canceling wait for synchronous replication" makes a commit unknown."""

    sqlstate: str
    severity: str
    message: str


@dataclass(eq=False)
class SqlFailure(Exception):
    """Base of everything that can go wrong with a session. ``sqlstate`` is "" where the server gave none."""

    message: str
    sqlstate: str = ""
    detail: str = ""
    hint: str = ""
    statement: str = ""

    def __str__(self) -> str:
        code = f" (SQLSTATE {self.sqlstate})" if self.sqlstate else ""
        more = "".join(f"; {part}" for part in (self.detail, self.hint) if part)
        return f"{self.message}{code}{more}"


class SqlError(SqlFailure):
    """The server refused the statement; the session can go on."""


class SqlTimeout(SqlFailure):
    """No answer in time. The session is closed, as the answer might still come; what the server did is unknown."""


class SqlConnectionLost(SqlFailure):
    """Not connected, or no longer: what the server did with the statement is unknown. The session is closed.

    libpq often keeps the server's last words in ``message`` only, so ``sqlstate`` may be "" where there was one.
    """


def preload() -> None:
    """Import psycopg now (0.1 s of CPU), at a moment when nobody waits, e.g. while Postgres starts."""
    libpq.load()


def connect(conninfo: str, until_ns: int = NEVER) -> Task[Session]:
    """Open a session. ``conninfo`` in keyword form (``settings.conninfo``); raises SqlConnectionLost or SqlTimeout.

    A server that is starting up or shutting down refuses with SqlConnectionLost and says so in ``message``.
    """
    preload()
    from psycopg import pq

    conn = pq.PGconn.connect_start(f"{conninfo} client_encoding='UTF8'".encode())
    try:
        state: int = pq.PollingStatus.WRITING if conn.status != pq.ConnStatus.BAD else pq.PollingStatus.FAILED
        while state != pq.PollingStatus.OK:
            if state == pq.PollingStatus.FAILED:
                raise _lost(conn)
            reading = state == pq.PollingStatus.READING
            # The socket may be another one after each call: libpq goes through hosts and addresses.
            yield from _ready(conn, until_ns, "connecting", read=reading, write=not reading)
            state = conn.connect_poll()
        conn.nonblocking = 1
        return Session(conn)
    except BaseException:
        conn.finish()
        raise


class Session:
    """One connection, one statement at a time. Closing is immediate: an open transaction rolls back."""

    def __init__(self, conn: PGconn) -> None:
        self._conn = conn
        self._busy = False
        self._open = True
        self._notices: list[Notice] = []
        conn.notice_handler = self._notice

    @property
    def open(self) -> bool:
        """False once closed, timed out, cancelled in a statement, or lost."""
        return self._open

    @property
    def backend_pid(self) -> int:
        """Of the backend that serves this session."""
        return self._conn.backend_pid

    @property
    def server_version(self) -> int:
        """As libpq gives it: 180006 = 18.6."""
        return self._conn.server_version

    def fileno(self) -> int:
        """The socket. While no statement runs, readable means the server hung up or has something to say."""
        return self._conn.socket

    def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            self._conn.finish()

    def take_notices(self) -> tuple[Notice, ...]:
        """What the server remarked since the last call, the newest 100."""
        taken = tuple(self._notices)
        self._notices.clear()
        return taken

    def gone(self) -> bool:
        """Whether the server has hung up (ask when ``fileno`` is readable; never blocks); closes if so."""
        if self._open:
            try:
                self._conn.consume_input()
            except _libpq_error():
                self.close()
        return not self._open

    def query(self, sql: str, params: Sequence[str | None] = (), until_ns: int = NEVER) -> Task[list[Row]]:
        """Run a statement; rows as text. With parameters ($1 ...) it must be a single one; without, the text goes by
        the simple protocol: several statements are one transaction with the last one's rows, and walsenders listen.

        Raises SqlError, SqlTimeout, SqlConnectionLost. Cancelling the task within a statement closes the session.
        """
        if not self._open:
            raise SqlConnectionLost("the session is closed", statement=sql)
        if self._busy:
            raise RuntimeError("a session runs one statement at a time")
        self._busy = True
        clean = False
        try:
            results = yield from self._exchange(sql, params, until_ns)
            rows = self._rows(results, sql)
            clean = True
            return rows
        except SqlError:
            clean = True
            raise
        except _libpq_error() as error:
            raise _lost(self._conn, sql) from error
        finally:
            self._busy = False
            if not clean:
                self.close()

    def _exchange(self, sql: str, params: Sequence[str | None], until_ns: int) -> Task[list[PGresult]]:
        """Send, flush and collect every result up to the end of the statement."""
        conn = self._conn
        if params:
            conn.send_query_params(sql.encode(), [None if param is None else param.encode() for param in params])
        else:
            conn.send_query(sql.encode())
        # While the server can't take more it may be waiting for us to read: both directions, or a deadlock.
        while conn.flush():
            yield from _ready(conn, until_ns, sql, read=True, write=True)
            conn.consume_input()
        results: list[PGresult] = []
        while True:
            while conn.is_busy():
                yield from _ready(conn, until_ns, sql, read=True)
                conn.consume_input()
            result = conn.get_result()
            if result is None:
                return results
            results.append(result)
            if result.status in _copy_states():
                raise SqlConnectionLost("COPY is not spoken here; the session is closed", statement=sql)

    def _rows(self, results: list[PGresult], sql: str) -> list[Row]:
        from psycopg import pq

        for result in results:
            if result.status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE, pq.ExecStatus.NONFATAL_ERROR):
                kind = SqlConnectionLost if self._conn.status == pq.ConnStatus.BAD else SqlError
                raise _failure(kind, result, sql)
        if not results:
            return []
        last = results[-1]
        columns = range(last.nfields)
        return [tuple(_text(last.get_value(row, column)) for column in columns) for row in range(last.ntuples)]

    def _notice(self, result: PGresult) -> None:
        from psycopg import pq

        field = pq.DiagnosticField
        severity = _field(result, field.SEVERITY_NONLOCALIZED) or _field(result, field.SEVERITY)
        self._notices.append(Notice(_field(result, field.SQLSTATE), severity, _field(result, field.MESSAGE_PRIMARY)))
        del self._notices[:-_NOTICES_KEPT]


def with_session(conninfo: str, use: Callable[[Session], Task[list[Row]]], until_ns: int = NEVER) -> Task[list[Row]]:
    """Connect, use, close."""
    session = yield from connect(conninfo, until_ns)
    try:
        return (yield from use(session))
    finally:
        session.close()


def query_once(conninfo: str, sql: str, params: Sequence[str | None] = (), until_ns: int = NEVER) -> Task[list[Row]]:
    """One statement in a session of its own."""
    return with_session(conninfo, lambda session: session.query(sql, params, until_ns), until_ns)


def _ready(conn: PGconn, until_ns: int, doing: str, read: bool = False, write: bool = False) -> Task[None]:
    woken = yield Wait(conn.socket, read, write, until_ns)
    if woken.timed_out and now_ns() >= until_ns:
        raise SqlTimeout("no answer from Postgres in time", statement=doing)


def _lost(conn: PGconn, sql: str = "") -> SqlConnectionLost:
    return SqlConnectionLost(conn.get_error_message().strip() or "the connection is lost", statement=sql)


def _failure(kind: type[SqlFailure], result: PGresult, sql: str) -> SqlFailure:
    from psycopg import pq

    return kind(
        _field(result, pq.DiagnosticField.MESSAGE_PRIMARY) or result.get_error_message().strip(),
        _field(result, pq.DiagnosticField.SQLSTATE),
        _field(result, pq.DiagnosticField.MESSAGE_DETAIL),
        _field(result, pq.DiagnosticField.MESSAGE_HINT),
        sql,
    )


def _field(result: PGresult, field: int) -> str:
    return (result.error_field(field) or b"").decode(errors="replace")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


def _libpq_error() -> type[Exception]:
    from psycopg.errors import OperationalError

    return OperationalError


def _copy_states() -> tuple[int, ...]:
    from psycopg.pq import ExecStatus

    return ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH
