"""The functions of `pg_replica` on a real Postgres: who may call them, and that nobody can make them do anything else.

Behind them is not pgr-supervise but this test: it writes what they read, and answers what they ask for.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg import errors, sql

from fencing.clock import now_ns, uptime_ms
from supervisor import files, sqlcatalog, sqlrequests
from supervisor.localcluster import wait_for
from supervisor.settings import own_conninfo
from supervisor.sql import SqlError, connect
from supervisor.sqlcatalog import FUNCTIONS, SCHEMA, install
from supervisor.sqlsurface import put
from supervisor.tasks import run_blocking
from tests.pgbare import BarePostgres, run

pytestmark = pytest.mark.slow

Another: TypeAlias = Callable[[], psycopg.Connection[Any]]
ODD_ROLE = """o'b"b\\x\ny; --"""
STATUS: dict[str, Any] = {
    "node": "a", "explain": "all is well\nhint: none",
    "members": [
        {"name": "a", "role": "primary", "lsn": "0/3000060", "timeline": 1, "age_ms": 0, "tags": {}, "reason": "größe"},
        {"name": "b", "role": "replica", "lsn": "0/3000000", "timeline": 1, "age_ms": 120, "tags": {"nosync": True}},
    ],
    "primary": {"name": "a", "host": "10.0.0.1", "port": 5432, "term": 7, "timeline": 3},
}  # fmt: skip
EVENT = {"at": "2026-01-02T03:04:05Z", "kind": "opened", "term": 7, "timeline": 3, "node": "a", "reason": "is open"}


class Bench(BarePostgres):
    """A Postgres with the functions and the roles, and their files."""

    def __init__(self) -> None:
        super().__init__()
        self.files = self.pgdata / sqlcatalog.DIRECTORY
        self.asked: list[bytes] = []

    def start(self, wait: bool = True) -> Bench:
        super().start(wait)
        with self.connect() as admin:
            admin.execute("CREATE ROLE pgr SUPERUSER LOGIN")
            admin.pgconn.exec_(sqlcatalog.ROLES.encode())
            groups = {"nobody": "", "watcher": "pgr_monitor", "boss": "pgr_admin", ODD_ROLE: "pgr_admin"}
            for name, group in groups.items():
                role = sql.Identifier(name)
                admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
                if group:
                    admin.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), role))
            admin.execute("CREATE DATABASE mine OWNER nobody")
        for database in ("postgres", "mine"):
            self.put(database)
        for place in (self.files, self.files / "answers", self.files / "requests"):
            place.mkdir()
            place.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(self.files / "requests", "postgres")
        self.write(sqlcatalog.HISTORY, {"history": [EVENT]})
        self.write(
            sqlcatalog.CONFIG, {"settings": [{"name": "strict", "value": True}, {"name": "h", "value": ["x", "y"]}]}
        )
        self.tell()
        return self

    def put(self, database: str = "postgres") -> bool:
        """As the supervisor does."""
        conninfo = own_conninfo(str(self.socket_dir), self.port, database)
        session = run_blocking(connect(conninfo), now_ns() + 30_000_000_000)
        try:
            return run_blocking(put(session), now_ns() + 30_000_000_000)
        finally:
            session.close()

    def write(self, name: str, body: dict[str, Any]) -> None:
        files.write_atomically(self.files / name, sqlrequests.dump(body), 0o644, durable=False)

    def tell(self, **changes: Any) -> None:
        """What the supervisor writes each second."""
        self.write(sqlcatalog.STATUS, STATUS | {"uptime_ms": uptime_ms()} | changes)

    def as_role(self, role: str, database: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.socket_dir), port=self.port, user=role, dbname=database, autocommit=True, **options
        )

    @contextmanager
    def answering(self, *answers: dict[str, Any]) -> Iterator[None]:
        """Takes requests as the supervisor does, and gives each these answers, one after the other."""
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                for path in (self.files / "requests").iterdir():
                    data = path.read_bytes()
                    if not data.endswith(b"\n"):
                        continue  # it is being written
                    self.asked.append(data)
                    path.unlink()
                    for answer in answers:
                        self.write(f"answers/{path.name}", answer)
                wait_for(ended.is_set, 0.01, 0.005)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def tree(self) -> set[str]:
        """Every file that a function could have made, but for what Postgres makes by itself."""
        own = ("base", "pg_", "global", "postmaster", "postgresql.auto.conf.tmp")
        paths = (p.relative_to(self.home).as_posix() for p in self.home.rglob("*"))
        mine = (p.removeprefix("pgdata/") for p in paths)
        return {p for p in mine if not p.startswith((*own, "sql/answers/"))}


DONE = {"state": "done", "progress": ["accepted"], "ok": True, "result": {"to": "b"}, "warnings": ["mind this"]}
REFUSED = {
    "state": "done",
    "progress": [],
    "ok": False,
    "code": "78",
    "error": "no: 100 % of it",
    "hint": "wait",
    "warnings": [],
}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    with bench:
        yield bench


@pytest.fixture(autouse=True)
def fresh(bench: Bench) -> None:
    bench.tell()
    bench.asked.clear()


def calls() -> list[tuple[str, bool]]:
    """(SELECT of each function with NULL for each argument, is it an action)"""
    found = []
    for f in FUNCTIONS:
        nulls = ", ".join(f"NULL::{t}" for t in f.types.split(", ") if t)
        found.append((f"SELECT * FROM {SCHEMA}.{f.name}({nulls})", f.grantee == sqlcatalog.ADMIN))
    return found


def outcome(connection: psycopg.Connection[Any], query: str, params: Sequence[Any] = ()) -> str:
    """SQLSTATE; 00000: done."""
    try:
        connection.execute(query.encode(), params).fetchall()
    except psycopg.Error as error:
        return error.sqlstate or "?"
    return "00000"


def test_reads_are_rows(bench: Bench) -> None:
    with bench.as_role("watcher") as c:

        def ask(columns: str, function: str) -> list[tuple[Any, ...]]:
            return c.execute(f"SELECT {columns} FROM pg_replica.{function}()".encode()).fetchall()

        assert ask("name, role, lsn::text, here, tags, reason", "status") == [
            ("a", "primary", "0/3000060", True, {}, "größe"),
            ("b", "replica", "0/3000000", False, {"nosync": True}, None),
        ]
        assert ask("name, host, port, term, timeline, here", "primary") == [("a", "10.0.0.1", 5432, 7, 3, True)]
        assert ask("at AT TIME ZONE 'UTC' = '2026-01-02 03:04:05', node", "history") == [(True, "a")]
        assert ask("*", "explain") == [("all is well",), ("hint: none",)]
        assert ask("name, value", "config") == [("strict", "true"), ("h", '["x", "y"]')]


def test_each_answer_carries_its_age_and_an_old_one_names_no_primary(bench: Bench) -> None:
    with bench.as_role("watcher") as c:
        noted: list[str] = []
        c.add_notice_handler(lambda n: noted.append(n.message_primary or ""))
        bench.tell(uptime_ms=uptime_ms() - 1_000)
        ((age, seen),) = c.execute("SELECT age_ms, seen_ms FROM pg_replica.status() WHERE name = 'b'").fetchall()
        assert 1_000 <= age < 60_000
        assert seen == age + 120
        assert not noted
        bench.tell(uptime_ms=uptime_ms() - 60_000)
        assert len(c.execute("SELECT FROM pg_replica.status()").fetchall()) == 2
        assert c.execute("SELECT FROM pg_replica.primary()").fetchall() == []
        assert {n[:36] for n in noted} == {"pgr-supervise has not written for 60"}
        bench.tell(uptime_ms=uptime_ms() + 60_000)  # of another boot of this machine
        assert c.execute("SELECT FROM pg_replica.primary()").fetchall() == []
        (bench.files / sqlcatalog.STATUS).unlink()
        for query in ("SELECT * FROM pg_replica.status()", "SELECT * FROM pg_replica.history()"):
            with pytest.raises(psycopg.Error, match="no pgr-supervise runs this Postgres") as caught:
                c.execute(query.encode())
            assert caught.value.sqlstate == "PGR75"


@pytest.mark.parametrize("database", ["postgres", "mine"])
def test_who_was_granted_nothing_can_do_nothing(bench: Bench, database: str) -> None:
    """The owner of a database neither."""
    with bench.as_role("nobody", database) as c:
        for query, _ in calls():
            assert outcome(c, query) == errors.InsufficientPrivilege.sqlstate, query
        for query in (
            "CREATE FUNCTION pg_replica.status(a text) RETURNS text LANGUAGE sql AS 'SELECT a'",
            "CREATE OR REPLACE FUNCTION pg_replica._request(action text, arguments jsonb, timeout interval)"
            " RETURNS jsonb LANGUAGE sql AS 'SELECT arguments'",
            "ALTER FUNCTION pg_replica.status() RESET search_path",
            "DROP SCHEMA pg_replica CASCADE",
            "GRANT pgr_admin TO nobody",
            "ALTER SCHEMA pg_replica RENAME TO other",
            "CREATE SCHEMA pg_replicas",
            "CREATE TABLE pg_replica.t()",
        ):
            assert outcome(c, query) in ("42501", "42939"), query


def test_reads_are_for_monitors_and_actions_for_admins(bench: Bench) -> None:
    with bench.answering(REFUSED), bench.as_role("watcher") as watcher, bench.as_role("boss") as boss:
        for query, acts in calls():
            assert outcome(watcher, query) == ("42501" if acts else "00000"), query
            assert outcome(boss, query) == ("PGR64" if acts else "00000"), query
        assert bench.asked == []
        assert outcome(watcher, "SELECT pg_replica.switchover('b')") == "42501"
        assert outcome(boss, "SELECT pg_replica.switchover('b')") == "PGR78"
    for role in ("watcher", "boss"):
        with bench.as_role(role) as c:
            for query in (
                "SELECT pg_read_file('PG_VERSION')", "COPY (SELECT 1) TO '/tmp/pgr-x'", "SHOW hba_file",
                "CREATE FUNCTION pg_replica.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            ):  # fmt: skip
                assert outcome(c, query) == "42501", (role, query)


def test_an_action_is_a_file_and_its_answer_too(bench: Bench) -> None:
    with bench.answering({"state": "taken", "progress": []}, DONE), bench.as_role(ODD_ROLE) as c:
        noted: list[tuple[str, str]] = []
        c.add_notice_handler(lambda n: noted.append((n.severity or "", n.message_primary or "")))
        assert c.execute("SELECT pg_replica.switchover('b', timeout => '90 s')").fetchall() == [({"to": "b"},)]
    assert noted == [("NOTICE", "accepted"), ("WARNING", "mind this")]
    (data,) = bench.asked
    request = sqlrequests.read(data)
    assert (request.name, request.timeout_ms) == ("switchover", 90_000)
    assert request.body == {"to": "b", "dry_run": False, "by": f"{ODD_ROLE}@local (SQL)", "timeout_ms": 90_000}
    assert 0 < request.until_ms - uptime_ms() <= sqlcatalog.TAKE_MS


def test_who_asks_cannot_be_made_up(bench: Bench) -> None:
    conninfo = f"host=127.0.0.1 port={bench.port} user=boss dbname=postgres application_name=someone"
    with bench.answering(DONE), psycopg.connect(conninfo, autocommit=True) as c:
        c.execute("SET ROLE pgr_admin")
        c.execute("SET pgr.request = 'something else'")
        c.execute("SELECT pg_replica.failover('b', accept_data_loss => true)")
        c.execute("SELECT pg_replica.reinit('c')")
        assert c.execute("SHOW pgr.request").fetchall() == [("something else",)], "and nothing is left behind"
    bodies = [sqlrequests.read(data).body for data in bench.asked]
    by = {"by": "boss@127.0.0.1 (SQL)"}
    assert bodies == [
        {"to": "b", "accept_data_loss": True, "dry_run": False, "timeout_ms": 60_000} | by,
        {"name": "c", "timeout_ms": 3_600_000} | by,
    ]


def test_a_refusal_is_an_error_with_a_hint(bench: Bench) -> None:
    with bench.answering(REFUSED), bench.as_role("boss") as c, pytest.raises(psycopg.Error) as caught:
        c.execute("SELECT pg_replica.reinit('a')")
    assert (caught.value.sqlstate, caught.value.diag.message_primary) == ("PGR78", "no: 100 % of it")
    assert caught.value.diag.message_hint == "wait"


def test_nobody_takes_it(bench: Bench) -> None:
    """Two different cases: it is known that there is nobody; or nobody comes in time, and then nobody will."""
    with bench.as_role("boss") as c:
        bench.tell(uptime_ms=uptime_ms() - 60_000)
        assert outcome(c, "SELECT pg_replica.switchover()") == "PGR75"
        assert list((bench.files / "requests").iterdir()) == []
        bench.tell()
        with pytest.raises(psycopg.Error, match="has not taken the request, and will not any more"):
            c.execute("SELECT pg_replica.switchover()")
        (path,) = (bench.files / "requests").iterdir()
        assert sqlrequests.read(path.read_bytes()).until_ms < uptime_ms(), "who takes it now knows that it is void"
        path.unlink()


HOSTILE = [
    "../../x", "/etc/passwd", "'; DROP SCHEMA pg_replica CASCADE; --", "a'b\"c\\d", "\\.", "\\\\", "\\N", "a\nb",
    "$pgr$", "%s%L%n", "b\tb", "E'\\'", "\x01", "ä€𝄞", "{}", "null", "", " ", "x" * 1900,
]  # fmt: skip


def test_arguments_are_content_and_nothing_else(bench: Bench) -> None:
    before = bench.tree()
    with bench.answering(REFUSED), bench.as_role("boss") as c:
        for conforming in ("on", "off"):
            c.execute(f"SET standard_conforming_strings = {conforming}".encode())
            for text in HOSTILE:
                for query in ("SELECT pg_replica.switchover(%s)", "SELECT pg_replica.reinit(%s)"):
                    assert outcome(c, query, [text]) == "PGR78", text
                asked = [json.loads(data.decode().replace("\\\\", "\\")) for data in bench.asked]
                assert [a["arguments"] for a in asked] == [{"to": text, "dry_run": False}, {"node": text}]
                bench.asked.clear()
            for text in HOSTILE:
                request = "SELECT pg_replica._request(%s, jsonb_build_object(%s::text, %s::text), '1 min')"
                assert outcome(c, request, [text[:40], text, text]) in ("PGR78", "PGR64")
            assert bench.asked
            for data in bench.asked:
                with pytest.raises(sqlrequests.Malformed):
                    sqlrequests.read(data)
            bench.asked.clear()
    assert bench.tree() == before


def test_what_is_too_large_is_never_written(bench: Bench) -> None:
    with bench.as_role("boss") as c:
        for query in (
            "SELECT pg_replica.switchover(repeat('x', 3000))", "SELECT pg_replica.switchover(repeat('x', 100000000))",
            "SELECT pg_replica._request(repeat('x', 41), '{}', '1 s')", "SELECT pg_replica.reinit(repeat('\\', 1999))",
            "SELECT pg_replica.reinit('a', '-1 s')", "SELECT pg_replica.reinit('a', '10 years')",
        ):  # fmt: skip
            assert outcome(c, query) == "PGR64", query
        assert outcome(c, """SELECT pg_replica._request('x', '{"to": "\\u0000"}', '1 s')""") == "22P05"
    assert list((bench.files / "requests").iterdir()) == []


CAPTURES = """
CREATE SCHEMA trap;
CREATE FUNCTION trap.caught() RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'caught as %', current_user
  USING ERRCODE = 'TRAPS'; END$$;
CREATE FUNCTION trap.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE FUNCTION trap.regexp_replace(text, text, text) RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE FUNCTION trap.pg_read_file(text, int, int, boolean) RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE FUNCTION trap.pg_read_file(text, bigint, bigint, boolean) RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE FUNCTION trap.split_part(text, text, int) RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE FUNCTION trap.gen_random_uuid() RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE FUNCTION trap.format(text, text, text, text) RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE FUNCTION trap.getdatabaseencoding() RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE FUNCTION trap.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE FUNCTION trap.joined(text, text) RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE FUNCTION trap.taken(jsonb, text) RETURNS text LANGUAGE sql AS 'SELECT trap.caught()';
CREATE OPERATOR trap.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.joined);
CREATE OPERATOR trap.->> (LEFTARG = jsonb, RIGHTARG = text, FUNCTION = trap.taken);
CREATE DOMAIN trap.jsonb AS text CHECK (trap.caught() IS NULL);
CREATE DOMAIN trap.bigint AS text CHECK (trap.caught() IS NULL);
"""
LURES = ("SET search_path = trap, pg_catalog", "SET search_path = pg_temp, trap, public, pg_catalog")


def lured(c: psycopg.Connection[Any]) -> list[str]:
    """What each call comes to in a session that has prepared for it."""
    found = []
    c.execute("CREATE TEMP TABLE pg_proc (a text)")
    c.execute("CREATE FUNCTION pg_temp.host(inet) RETURNS text LANGUAGE sql AS 'SELECT trap.caught()'")
    c.execute("CREATE DOMAIN pg_temp.jsonb AS text CHECK (trap.caught() IS NULL)")
    for lure in LURES:
        c.execute(lure.encode())
        found += [outcome(c, query) for query, acts in calls() if not acts]
        found.append(outcome(c, "SELECT pg_replica.switchover('b')"))
    return found


@pytest.fixture
def trapped(bench: Bench) -> Iterator[str]:
    """A database of an unprivileged role, full of traps."""
    with bench.connect() as admin:
        admin.execute("CREATE DATABASE trapped OWNER boss TEMPLATE mine")
    with bench.as_role("boss", "trapped") as owner:
        owner.pgconn.exec_(CAPTURES.encode())
        made = "SELECT count(*) FROM pg_operator WHERE oprnamespace = 'trap'::regnamespace"
        assert owner.execute(made).fetchone() == (2,)
    yield "trapped"
    with bench.connect() as admin:
        admin.execute("DROP DATABASE trapped")


def test_no_search_path_leads_into_a_trap(bench: Bench, trapped: str) -> None:
    with bench.answering(DONE), bench.as_role("boss", trapped) as c:
        assert set(lured(c)) == {"00000"}


def test_without_the_pinned_search_path_it_would(bench: Bench, trapped: str) -> None:
    """The control: the traps are real, and one of them would run as a superuser."""
    with psycopg.connect(bench.conninfo.replace("dbname=postgres", f"dbname={trapped}"), autocommit=True) as admin:
        admin.pgconn.exec_(install().replace("SET search_path = pg_catalog, pg_temp ", "").encode())
    with bench.answering(DONE), bench.as_role("boss", trapped) as c:
        assert "TRAPS" in set(lured(c))
        c.execute(LURES[0].encode())
        with pytest.raises(psycopg.Error, match="caught as pgr"):
            c.execute("SELECT pg_replica._document()")


def test_where_the_files_lie_is_not_for_sessions_to_say(bench: Bench) -> None:
    with bench.as_role("boss") as c:
        for query in (
            "SET hba_file = '/tmp/x'", "SELECT set_config('hba_file', '/tmp/x', false)",
            "ALTER ROLE boss SET hba_file = '/tmp/x'",
            "SET data_directory = '/tmp/x'",
        ):  # fmt: skip
            assert outcome(c, query) == "55P02", query
        with pytest.raises(psycopg.OperationalError, match="cannot be changed"):
            bench.as_role("boss", options="-c hba_file=/tmp/x")


def test_names_are_not_to_be_foreseen(bench: Bench) -> None:
    for old in (bench.files / "answers").iterdir():
        old.unlink()
    with bench.answering(DONE), bench.as_role("boss") as c:
        for _ in range(3):
            c.execute("SELECT setseed(0.5)")
            c.execute("SELECT pg_replica.switchover('b')")
    names = {path.name for path in (bench.files / "answers").iterdir()}
    assert len(names) == 3
    assert all(sqlrequests.NAME.fullmatch(name) for name in names)


# -- putting them there ------------------------------------------------------------------------------------------------


@pytest.fixture
def another(bench: Bench) -> Iterator[Another]:
    """A database without the functions; call it for a session of a superuser."""
    with bench.connect() as admin:
        admin.execute("CREATE DATABASE another TEMPLATE template0")
    opened: list[psycopg.Connection[Any]] = []

    def connected() -> psycopg.Connection[Any]:
        opened.append(psycopg.connect(bench.conninfo.replace("dbname=postgres", "dbname=another"), autocommit=True))
        return opened[-1]

    yield connected
    for connection in opened:
        connection.close()
    with bench.connect() as admin:
        admin.execute("DROP DATABASE another")


def mark(c: psycopg.Connection[Any]) -> tuple[Any, ...] | None:
    return c.execute(sqlcatalog.LOOK.encode()).fetchone()


def test_they_are_put_there_once_and_mended(bench: Bench, another: Another) -> None:
    c = another()
    assert mark(c) is None
    assert bench.put("another")
    assert not bench.put("another")
    there = mark(c)
    assert there is not None
    assert there[:2] == (sqlcatalog.MARK, str(len(FUNCTIONS)))
    c.execute("GRANT EXECUTE ON FUNCTION pg_replica.status() TO PUBLIC")
    c.execute("DROP FUNCTION pg_replica.reinit")
    assert bench.put("another")
    assert mark(c) == there or (mark(c) or ())[:2] == there[:2]
    acl = "SELECT bool_or(a.grantee = 0) FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a"
    assert c.execute(f"{acl} WHERE p.pronamespace = 'pg_replica'::regnamespace".encode()).fetchall() == [(False,)]


def test_older_ones_are_replaced_and_newer_ones_stay(bench: Bench, another: Another) -> None:
    c = another()
    assert bench.put("another")
    c.execute("COMMENT ON SCHEMA pg_replica IS 'pgr functions 0 abc'")
    c.execute("DROP FUNCTION pg_replica.primary()")
    for f in ("primary() RETURNS int", "former(a text) RETURNS int"):  # returns something else; is no more
        c.execute(f"CREATE FUNCTION pg_replica.{f} LANGUAGE sql AS 'SELECT 1'".encode())
    c.execute("ALTER FUNCTION pg_replica.former(text) OWNER TO pgr")
    c.execute("ALTER FUNCTION pg_replica.primary() OWNER TO pgr")
    c.execute("CREATE FUNCTION pg_replica.of_a_person() RETURNS int LANGUAGE sql AS 'SELECT 2'")
    assert bench.put("another")
    assert (mark(c) or ())[:2] == (sqlcatalog.MARK, str(len(FUNCTIONS)))
    assert c.execute("SELECT name FROM pg_replica.primary()").fetchall() == [("a",)]
    assert c.execute("SELECT to_regproc('pg_replica.former') IS NULL").fetchall() == [(True,)]
    assert c.execute("SELECT pg_replica.of_a_person()").fetchall() == [(2,)]
    newer = f"pgr functions {sqlcatalog.VERSION + 1} abc"
    c.execute(f"COMMENT ON SCHEMA pg_replica IS '{newer}'".encode())
    assert not bench.put("another")
    assert (mark(c) or ("",))[0] == newer


def test_what_others_built_on_them_is_never_dropped(bench: Bench, another: Another) -> None:
    c = another()
    assert bench.put("another")
    c.execute("CREATE VIEW mine AS SELECT name FROM pg_replica.status()")
    c.execute("COMMENT ON SCHEMA pg_replica IS 'pgr functions 0 abc'")
    assert bench.put("another"), "the same columns: replaced under the view"
    c.execute("DROP VIEW mine")
    c.execute("DROP FUNCTION pg_replica.status()")
    c.execute("CREATE FUNCTION pg_replica.status() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    c.execute("ALTER FUNCTION pg_replica.status() OWNER TO pgr")
    c.execute("CREATE VIEW mine AS SELECT pg_replica.status()")
    c.execute("COMMENT ON SCHEMA pg_replica IS 'pgr functions 0 abc'")
    with pytest.raises(SqlError, match="other objects depend on it"):
        bench.put("another")
    assert c.execute("SELECT * FROM mine").fetchall() == [(1,)]


def test_a_dump_leaves_them_out(bench: Bench, another: Another) -> None:
    assert bench.put("another")
    another().execute("CREATE TABLE t (a int)")
    dumped = run("pg_dump", "-h", bench.socket_dir, "-p", str(bench.port), "-U", "postgres", "another").stdout
    assert "CREATE TABLE public.t" in dumped
    assert SCHEMA not in dumped
    assert "pgr_" not in dumped


def test_every_encoding_can_read_them(bench: Bench) -> None:
    for encoding, reason in (("LATIN1", "gr??e"), ("SQL_ASCII", "gr??e")):
        with bench.connect() as admin:
            admin.execute(f"CREATE DATABASE odd ENCODING {encoding} TEMPLATE template0".encode())
        bench.put("odd")
        with bench.answering(DONE), bench.as_role("boss", "odd") as c:
            for setting in ("client_encoding = 'UTF8'", "standard_conforming_strings = off"):
                c.execute(f"SET {setting}".encode())
                rows = c.execute("SELECT reason::bytea FROM pg_replica.status() WHERE here").fetchall()
                assert rows == [(reason.encode(),)]
            c.execute("SELECT pg_replica.switchover('b')")
        with bench.connect() as admin:
            admin.execute("DROP DATABASE odd")
    assert len(bench.asked) == 2
