"""A stand-alone Postgres becomes a cluster, and a cluster a stand-alone Postgres again: with everything in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from supervisor.localcluster import LocalNode, node_environment, own
from tests.cluster.world import World
from tests.pgbare import BarePostgres, as_postgres, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROWS = "SELECT count(*) FROM kept"


def stand_alone(world: World, node: LocalNode, *initdb: str) -> BarePostgres:
    """A Postgres with a life of its own, which ``node`` is to take over once it is stopped."""
    place = world.home / f"{node.name}-postgresql"
    place.mkdir()
    own(place)
    postgres = BarePostgres(initdb=False)
    postgres.pgdata = place / "main"
    run("initdb", "-D", postgres.pgdata, "-A", "trust", "--no-sync", "--no-instructions", *initdb)
    node.flags["pgdata"] = str(postgres.pgdata)
    return postgres


def configure(pgdata: Path, **settings: str) -> None:
    with (pgdata / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())


def identifier(pgdata: Path) -> str:
    said = run("pg_controldata", "-D", pgdata).stdout
    return next(line for line in said.splitlines() if "system identifier" in line).split()[-1]


@pytest.mark.slow
def test_a_stand_alone_postgres_becomes_the_first_copy(make_world: Callable[..., World]) -> None:
    """Without checksums, crashed, on its second timeline, with slots, rules and settings; and its
    node has not the lowest name, which writes the charter."""
    world = make_world()
    node = world["b"]
    old = stand_alone(world, node, "-U", "postgres", "--locale=C", "-E", "UTF8", *no_checksums())
    configure(old.pgdata, work_mem="7MB", port="1", synchronous_standby_names="*", wal_level="logical")
    hba = old.pgdata / "pg_hba.conf"
    rules = "local all all trust\nhost app app 127.0.0.1/32 trust # the application\nhost all all all scram-sha-256\n"
    hba.write_text(rules, encoding="utf-8")
    old.settings |= {"wal_level": "logical", "synchronous_standby_names": "", "max_connections": "100"}
    (old.pgdata / "standby.signal").touch()
    own(old.pgdata / "standby.signal")
    with old:
        run("pg_ctl", "-D", old.pgdata, "promote", "-w")
        with psycopg.connect(old.conninfo, autocommit=True) as session:
            session.execute(f"ALTER ROLE postgres PASSWORD '{world.password}'".encode())
            session.execute("CREATE ROLE app LOGIN")
            session.execute("CREATE DATABASE app OWNER app")
            session.execute("CREATE TABLE kept AS SELECT generate_series(1, 10000) AS i")
            session.execute("SELECT pg_create_physical_replication_slot('former_standby')")
            session.execute("SELECT pg_create_logical_replication_slot('events', 'test_decoding')")
            session.execute("CHECKPOINT")
            session.execute("INSERT INTO kept SELECT generate_series(1, 5000)")
        old.kill()
        mine = identifier(old.pgdata)

        # Which of two is meant is not for a program to say: every node names them, and waits.
        other = world["c"]
        second = stand_alone(world, other, "-U", "postgres")
        world.start()
        for each in world.nodes:
            world.settles(lambda each=each: says_two(world, each), f"{each.name} says so")  # type: ignore[misc]  # bound now
        assert other.stop(60) == 0
        assert second.pgdata.is_dir()
        second.pgdata.rename(second.pgdata.with_name("second"))
        other.start()
        primary = world.wait_writable(standbys=2)
        assert primary is node, "nobody else has anything"
        for each in world.nodes:
            world.settles(lambda each=each: world.query(each, ROWS) == [(15000,)], f"all of it on {each.name}")  # type: ignore[misc]  # bound now
            assert world.query(each, "SELECT system_identifier::text FROM pg_control_system()") == [(mine,)]
            assert world.query(each, "SHOW work_mem") == [("7MB",)], "copies have its postgresql.conf"
            with psycopg.connect(f"host=127.0.0.1 port={each.pg_port} user=app dbname=app") as application:
                assert application.execute("SELECT 1").fetchone() == (1,), "its rules hold on every node"
        slots = "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name NOT LIKE 'pgr%' ORDER BY 1"
        assert world.query(primary, slots) == [("events",), ("former_standby",)]
        (told,) = world.logged(node, "data.adopted")
        assert "former_standby (physical)" in told["fields"]["text"]
        assert "no data checksums" in told["fields"]["text"]
        assert any(word.startswith("synchronous_standby_names (") for word in told["fields"]["overruled"])
        history = json.loads(world.pgr("history", "--json").stdout)
        assert ["brought in the data directory" in str(event) for event in history].count(True) == 1

        # It is one cluster: the first primary is lost with a record that nobody else has, and is rewound.
        world.query(primary, "SELECT pg_drop_replication_slot('former_standby')")
        with world.writing() as writer:
            diverges(world, primary)
            world.settles(lambda: bool(world.logged(node, "rewind.end")), "it is rewound: wal_log_hints did it")
            world.wait_streaming(node)
        world.check_no_loss(writer, everywhere=True)


def says_two(world: World, node: LocalNode) -> bool:
    said = "more than one node brings a data directory: b, c; only one can be adopted"
    return any(said in str(event["fields"].get("problem")) for event in world.logged(node, "founding.waiting"))


def no_checksums() -> list[str]:
    """From 18 on they are the default."""
    said = run("initdb", "--help").stdout
    return ["--no-data-checksums"] if "--no-data-checksums" in said else []


def diverges(world: World, primary: LocalNode) -> None:
    """It writes alone, is lost, and comes back when another is primary."""
    others = [node for node in world.nodes if node is not primary]
    with psycopg.connect(world.node_uri(primary), autocommit=True) as alone:
        alone.execute("SET synchronous_commit = local")
        for other in others:
            other.kill_all()
        alone.execute("SELECT pg_logical_emit_message(true, 'alone', 'x')")
    primary.kill_all()
    for other in others:
        other.start()
    world.settles(lambda: world.primary() is not None, "a new primary")
    primary.start()


# -- and back ----------------------------------------------------------------------------------------------------------


def leave(world: World, node: LocalNode, *more: str) -> subprocess.CompletedProcess[str]:
    """`pgr leave`, as the owner of the data directory."""
    program = "import sys; from pgr_supervise import admin; sys.exit(admin())"
    words = [sys.executable, "-P", "-c", program, "leave", "--data", str(node.data), "--json", *more]
    return subprocess.run(
        words, capture_output=True, text=True, check=False, cwd="/", timeout=120, env=node_environment(),
        **as_postgres(),
    )  # fmt: skip


@pytest.mark.slow
def test_pgr_is_left_and_a_plain_postgres_stays(make_world: Callable[..., World]) -> None:
    world = make_world(nodes=2)
    world.start()
    primary = world.wait_writable(standbys=1)
    (standby,) = world.standbys()
    pgdata = primary.data / "pgdata"
    rules = (
        '["local all postgres peer map=pgr_owner", "local all all trust", "host all all 127.0.0.1/32 scram-sha-256"]'
    )
    for setting in ("postgres.parameters.work_mem=9MB", f"postgres.hba={rules}"):
        assert world.pgr("config", "set", setting).returncode == 0
    schema = "SELECT 1 FROM pg_namespace WHERE nspname = 'pg_replica'"
    world.settles(lambda: world.query(primary, schema) == [(1,)], "the functions are there")
    with psycopg.connect(world.node_uri(primary)) as session:
        session.execute('CREATE ROLE "Ann" IN ROLE pgr_admin')
    with world.writing() as writer:
        world.settles(lambda: len(writer.acked) > 100, "rows")

    refused = leave(world, primary)
    assert (refused.returncode, "another supervisor" in refused.stderr) == (78, True), refused.stderr
    for node in (standby, primary):
        assert node.stop(60) == 0
    refused = leave(world, primary)
    assert refused.returncode == 78
    assert f"one may have been primary since: {standby.name}" in refused.stderr
    assert f"hint: start this node, {primary.name}, again" in refused.stderr
    assert (pgdata / "pgr_node.json").exists()

    # As the hint says.
    world.start()
    world.wait_writable(standbys=1)
    if world.primary() is not primary:
        assert world.pgr("switchover", "--to", primary.name).returncode == 0
        world.wait_whole()
    assert world.pgr("member", "remove", standby.name, node=primary).returncode == 0
    assert standby.wait(60) == 0
    assert primary.stop(60) == 0
    done = leave(world, primary)
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)
    assert (left["kept"], left["grants"]) == ([], ['GRANT pgr_admin TO "Ann"'])

    settings = (pgdata / "postgresql.auto.conf").read_text(encoding="utf-8")
    assert "pgr" not in settings
    assert not [path for path in pgdata.iterdir() if path.name.startswith("pgr_") or path.name == "standby.signal"]
    run("pg_ctl", "-D", pgdata, "-l", primary.data / "plain.log", "-w", "start")
    try:
        with psycopg.connect(world.node_uri(primary), autocommit=True) as session:  # where it was, as who one was
            ids = {row[0] for row in session.execute("SELECT id FROM pgr_writes")}
            assert {ack.id for ack in writer.acked} <= ids
            session.execute("CREATE TABLE after_pgr AS SELECT 1 AS i")  # nothing waits for a standby
            names = ("work_mem", "synchronous_standby_names", "default_transaction_read_only", "restart_after_crash")
            shown = [session.execute(f"SHOW {name}".encode()).fetchone() for name in names]
            assert shown == [("9MB",), ("",), ("off",), ("on",)]
            assert session.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'pgr%'").fetchall() == []
            assert session.execute(schema.encode()).fetchall() == []
            assert session.execute("SELECT slot_name FROM pg_replication_slots").fetchall() == []
        assert (pgdata / "pg_hba.conf").read_text(encoding="utf-8").splitlines() == json.loads(rules)
    finally:
        run("pg_ctl", "-D", pgdata, "-w", "-m", "fast", "stop")

    # What is left of pgr there does not take it back by itself; a new home does.
    code, said = world.run_node(primary)
    assert (code, "nobody knows what it has promised" in said) == (78, True), said
    again = world.add("n", pgdata=str(pgdata))
    del again.flags["join"]
    again.start()
    world.settles(again.is_primary, "adopted")
    assert world.query(again, "SELECT i FROM after_pgr") == [(1,)]
    assert json.loads(world.pgr("config", "get", "postgres.hba", "--json", node=again).stdout) == json.loads(rules)
