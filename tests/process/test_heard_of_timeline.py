"""What Postgres writes when it is promoted and has heard of a timeline that it has not reached (seen on 15 and 18).

b attaches to c, the primary of timeline 2, fetches its history file, and c is lost before b comes to where 2 begins. So
b's startup process has 2 as its target, and b is promoted, to 3, *before* the beginning of 2. Its history file copies
that of 2: `1 <beginning of 2>`, `2 <where b was>`. It claims WAL of timeline 1 that b never had, so pg_rewind says "no
rewind required" for a node that has some of it, and that node keeps its rows.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from supervisor.timelines import parse_history, parse_lsn
from tests.pgbare import BarePostgres, as_postgres, run


def until(what: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def lsn(of: BarePostgres) -> int:
    with of.connect() as session:
        rows = session.execute(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END"
        ).fetchall()
    return parse_lsn(rows[0][0])


def follow(who: BarePostgres, whom: BarePostgres | None, slot: str = "") -> None:
    with who.connect() as session:
        where = whom.conninfo_tcp if whom is not None else ""
        session.execute(f"ALTER SYSTEM SET primary_conninfo = '{where}'")
        session.execute(f"ALTER SYSTEM SET primary_slot_name = '{slot}'")
        session.execute("SELECT pg_reload_conf()")


@pytest.fixture
def four(tmp_path: Path) -> Iterator[dict[str, BarePostgres]]:
    settings = {"wal_log_hints": "on", "wal_keep_size": "256MB", "autovacuum": "off"}
    with ExitStack() as stack:
        nodes = {"p": stack.enter_context(BarePostgres(tmp_path, settings))}
        with nodes["p"].connect() as session:
            session.execute("CREATE TABLE t (who text)")
        for name in "bcd":
            one = BarePostgres(tmp_path, settings, initdb=False)
            stack.callback(one.close)
            run("pg_basebackup", "-d", nodes["p"].conninfo_tcp, "-D", one.pgdata, "-X", "stream", "-c", "fast", "-R")
            nodes[name] = one.start()
        yield nodes


def test_a_promotion_after_hearing_of_a_later_timeline_hides_a_divergence(four: dict[str, BarePostgres]) -> None:
    p, b, c, d = (four[name] for name in "pbcd")

    def write(who: str, at: BarePostgres) -> None:
        with at.connect() as session:
            session.execute("INSERT INTO t SELECT %s FROM generate_series(1, 200)", (who,))

    write("old", p)
    for one in (b, c, d):
        until(lambda one=one: lsn(one) >= lsn(p))  # type: ignore[misc]
    follow(b, None)
    until(lambda: "walreceiver" not in processes(b))
    behind = lsn(b)
    write("phantom", p)
    until(lambda: min(lsn(c), lsn(d)) >= lsn(p))
    d.stop()
    write("more", p)
    until(lambda: lsn(c) >= lsn(p))
    p.kill()
    with c.connect() as session:
        session.execute("SELECT pg_promote()")
    follow(b, c, slot="none")  # it hears of timeline 2, and receives nothing
    until((b.pgdata / "pg_wal/00000002.history").exists)
    until(lambda: "new target timeline is 2" in b.log.read_text(), 60)
    c.kill()
    follow(b, None)
    assert lsn(b) == behind
    with b.connect() as session:
        session.execute("SELECT pg_promote()")
        session.execute("CHECKPOINT")
    first, second = parse_history((b.pgdata / "pg_wal/00000003.history").read_text())
    assert (first.timeline, second.timeline, second.lsn) == (1, 2, behind)
    assert first.lsn > behind, "it claims to have left timeline 1 where it never was"
    said = run("pg_rewind", "-D", d.pgdata, "--source-server", b.conninfo_tcp)
    assert "no rewind required" in said.stdout + said.stderr, "d has rows that b never had"


def processes(of: BarePostgres) -> str:
    words = ["ps", "-o", "args", "--ppid", str(of.pid)]
    return str(subprocess.run(words, check=False, capture_output=True, text=True, **as_postgres()).stdout)
