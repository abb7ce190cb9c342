from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fencing.clock import now_ns
from supervisor.settings import own_conninfo
from supervisor.sql import (
    Row,
    Session,
    SqlConnectionLost,
    SqlError,
    SqlTimeout,
    connect,
    query_once,
    with_session,
)
from supervisor.tasks import Outcome, Runner, Task, run_blocking
from tests.pgbare import BarePostgres

S = 1_000_000_000


@pytest.fixture(scope="module")
def postgres() -> Iterator[BarePostgres]:
    with BarePostgres() as bare:
        yield bare


@pytest.fixture
def session(postgres: BarePostgres) -> Iterator[Session]:
    opened = run_blocking(connect(postgres.conninfo, soon()), soon())
    yield opened
    opened.close()


def soon(seconds: float = 30) -> int:
    return now_ns() + int(seconds * S)


def ask(session: Session, sql: str, *params: str | None) -> list[Row]:
    return run_blocking(session.query(sql, params, soon()), soon())


def test_rows_are_text_and_nulls_are_none(session: Session) -> None:
    assert ask(session, "SELECT 1, NULL, 'ä'") == [("1", None, "ä")]
    assert ask(session, "SELECT $1::int + 1, $2::text", "41", None) == [("42", None)]
    assert ask(session, "SELECT FROM generate_series(1, 2)") == [(), ()]
    assert ask(session, "SELECT 1; SELECT 2") == [("2",)]
    assert ask(session, "CHECKPOINT") == []
    assert ask(session, "") == []
    assert session.server_version >= 150000


def test_by_tcp_too(postgres: BarePostgres) -> None:
    assert run_blocking(query_once(postgres.conninfo_tcp, "SELECT 1", until_ns=soon())) == [("1",)]


def test_a_walsender_understands_it(postgres: BarePostgres) -> None:
    rows = run_blocking(query_once(f"{postgres.conninfo} replication=true", "IDENTIFY_SYSTEM", until_ns=soon()))
    assert rows[0][1] == "1"


def test_more_than_the_socket_holds_both_ways(session: Session) -> None:
    text = "x" * 8_000_000
    assert ask(session, "SELECT $1::text", text) == [(text,)]


def test_an_error_tells_and_the_session_goes_on(session: Session) -> None:
    with pytest.raises(SqlError, match="division by zero") as caught:
        ask(session, "SELECT 1/0")
    assert caught.value.sqlstate == "22012"
    assert "1/0" in caught.value.statement
    with pytest.raises(SqlError) as caught:
        ask(session, "SELECT nosuch($1)", "1")
    assert caught.value.sqlstate == "42883"
    assert caught.value.hint
    assert ask(session, "SELECT 1") == [("1",)]


def test_notices_are_kept_with_their_sqlstate(session: Session) -> None:
    ask(session, "DO $$BEGIN RAISE WARNING 'canceling wait for synchronous replication' USING ERRCODE = '01000'; END$$")
    (notice,) = session.take_notices()
    assert notice == ("01000", "WARNING", "canceling wait for synchronous replication")
    assert session.take_notices() == ()
    ask(session, "DO $$BEGIN FOR i IN 1..300 LOOP RAISE NOTICE '%', i; END LOOP; END$$")
    kept = session.take_notices()
    assert len(kept) == 100
    assert kept[-1].message == "300"


def test_a_late_answer_closes_the_session(session: Session) -> None:
    began = now_ns()
    with pytest.raises(SqlTimeout):
        run_blocking(session.query("SELECT pg_sleep(60)", until_ns=soon(0.05)), soon())
    assert now_ns() - began < 10 * S
    assert not session.open
    with pytest.raises(SqlConnectionLost, match="closed"):
        ask(session, "SELECT 1")


def test_a_killed_backend_is_a_lost_connection(postgres: BarePostgres, session: Session) -> None:
    run_blocking(query_once(postgres.conninfo, f"SELECT pg_terminate_backend({session.backend_pid}, 30000)"), soon())
    with pytest.raises(SqlConnectionLost):
        ask(session, "SELECT 1")
    assert not session.open


def test_an_idle_session_notices_the_end_by_its_descriptor(postgres: BarePostgres, session: Session) -> None:
    assert not session.gone()
    os.kill(session.backend_pid, signal.SIGTERM)
    poller = select.poll()
    poller.register(session.fileno(), select.POLLIN)
    while not session.gone():
        assert poller.poll(30_000)
    assert not session.open


def test_terminated_within_a_statement(postgres: BarePostgres, session: Session) -> None:
    outcomes: list[Outcome[list[Row]]] = []
    runner = Runner()
    runner.start(session.query("SELECT pg_sleep(60)", until_ns=soon()), outcomes.append, "sleep")
    turn(runner, lambda: session._busy)
    os.kill(session.backend_pid, signal.SIGTERM)
    turn(runner, lambda: bool(outcomes))
    error = outcomes[0].error
    assert isinstance(error, SqlConnectionLost)
    assert "administrator command" in error.message
    assert not session.open


def test_cancelling_a_statement_closes_the_session(session: Session) -> None:
    runner = Runner()
    handle = runner.start(session.query("SELECT pg_sleep(60)"), lambda _: None, "sleep")
    turn(runner, lambda: session._busy)
    with pytest.raises(RuntimeError, match="one statement at a time"):
        ask(session, "SELECT 1")
    assert session.open  # the refusal did not touch the statement that runs
    handle.cancel()
    assert not session.open


def test_nobody_listens() -> None:
    with pytest.raises(SqlConnectionLost, match="No such file"):
        run_blocking(connect("host=/nonexistent port=1 user=x dbname=x", soon()), soon())
    with pytest.raises(SqlConnectionLost):
        run_blocking(connect("nonsense", soon()), soon())


def test_a_listener_that_says_nothing_is_a_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = f"hostaddr=127.0.0.1 port={silent.getsockname()[1]} user=x dbname=x sslmode=disable"
        with pytest.raises(SqlTimeout):
            run_blocking(connect(where, soon(0.05)), soon())


def test_a_refusal_of_the_server_says_why(postgres: BarePostgres) -> None:
    with pytest.raises(SqlConnectionLost, match="nosuch"):
        run_blocking(connect(f"{postgres.conninfo} dbname=nosuch", soon()), soon())


def test_two_sessions_share_one_loop(postgres: BarePostgres) -> None:
    def slow(session: Session) -> Task[list[Row]]:
        return session.query("SELECT pg_sleep(0.3)", until_ns=soon())

    done: list[str] = []
    runner = Runner()
    runner.start(with_session(postgres.conninfo, slow, soon()), lambda _: done.append("slow"), "slow")
    runner.start(query_once(postgres.conninfo, "SELECT 1", until_ns=soon()), lambda _: done.append("fast"), "fast")
    turn(runner, lambda: len(done) == 2)
    assert done == ["fast", "slow"]


def turn(runner: Runner, until: Callable[[], bool]) -> None:
    """The loop of the daemon in small."""
    deadline = soon()
    while not until():
        fds, until_ns = runner.wait_for()
        poller = select.poll()
        for fd, events in fds.items():
            poller.register(fd, (select.POLLIN if events & 1 else 0) | (select.POLLOUT if events & 2 else 0))
        wait_ms = max(0, min(until_ns - now_ns(), 20_000_000)) // 1_000_000
        ready = {
            fd: (1 if e & select.POLLIN else 0) | (2 if e & select.POLLOUT else 0) for fd, e in poller.poll(wait_ms)
        }
        runner.run(ready, now_ns())
        assert now_ns() < deadline


def test_our_own_commits_wait_for_the_standbys_whatever_users_have_set(tmp_path: Path) -> None:
    """The proof of an epoch, or of a new sync group, rests on it: Postgres would say at once that it is done."""
    with BarePostgres(tmp_path) as bare, bare.connect() as admin:
        for statement in (
            "CREATE ROLE pgr SUPERUSER LOGIN",
            "ALTER ROLE pgr SET synchronous_commit = local",
            "ALTER DATABASE postgres SET synchronous_commit = off",
            "ALTER SYSTEM SET synchronous_commit = off",
            "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
            "SELECT pg_reload_conf()",
            "CHECKPOINT",
        ):
            admin.execute(statement.encode())
        own = run_blocking(connect(own_conninfo(str(bare.socket_dir), bare.port), soon()), soon())
        emit = "SELECT pg_logical_emit_message(true, 'pgr', 'proof')"
        with pytest.raises(SqlTimeout):
            run_blocking(own.query(emit, until_ns=soon(0.5)), soon())
        waits = "SELECT wait_event FROM pg_stat_activity WHERE usename = 'pgr' AND backend_type = 'client backend'"
        assert admin.execute(waits).fetchall() == [("SyncRep",)]
        own.close()
