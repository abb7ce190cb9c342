"""To another major version of Postgres, step by step as deploy/UPGRADE.md says: leave, `pg_upgrade`, bring in again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor.binaries import DEBIAN, OLDEST, find
from supervisor.localcluster import LocalNode, own
from supervisor.sqlcatalog import LOOK, MARK
from tests.cluster.test_adopt import leave
from tests.cluster.world import World
from tests.pgbare import as_postgres, pg_bin

NEW = find(pg_bin())


def older() -> Path | None:
    """The programs of an older major version than the one that tests use: the newest there is."""
    found = [int(place.name) for place in DEBIAN.glob("*") if place.name.isdigit() and (place / "bin/initdb").exists()]
    majors = [major for major in found if OLDEST <= major < NEW.major]
    return DEBIAN / str(max(majors)) / "bin" if majors else None


OLD = older()
INITDB = ("-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-k")
UPGRADE = ("-U", "postgres", "--link")
ASIDE = ("raft", "pgdata", "salvage")
FILES = ("postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf")
NOT_GRANTED = "42501"
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(OLD is None, reason=f"no Postgres older than {NEW.major} here: apt install postgresql-15"),
]


def run(tool: Path, *words: str | Path, cwd: Path, **env: str) -> None:
    """As the Postgres user, the way the page does it."""
    done = subprocess.run(
        [tool, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=cwd, timeout=600,
        env={"PATH": "/usr/bin:/bin"} | env, **as_postgres(),
    )  # fmt: skip
    assert done.returncode == 0, f"{tool.name}: {done.stdout}{done.stderr}"


def do(world: World, node: LocalNode, *statements: str, database: str = "postgres") -> None:
    with psycopg.connect(world.node_uri(node).replace("/postgres?", f"/{database}?"), autocommit=True) as session:
        for statement in statements:
            session.execute(statement.encode())


def asked(node: LocalNode, query: str, role: str, database: str = "app") -> list[tuple[Any, ...]]:
    uri = f"postgresql://{role}:{role}@127.0.0.1:{node.pg_port}/{database}?connect_timeout=2"
    with psycopg.connect(uri, autocommit=True) as session:
        return session.execute(query.encode()).fetchall()


def refused(node: LocalNode, query: str, role: str) -> str | None:
    with pytest.raises(psycopg.Error) as caught:
        asked(node, query, role)
    return caught.value.sqlstate


def majors(world: World) -> set[int]:
    return {int(world.query(node, "SHOW server_version_num")[0][0]) // 10000 for node in world.nodes}


def functions_everywhere(world: World) -> None:
    for node in world.nodes:
        world.settles(
            lambda node=node: any(row[0] == MARK for row in world.query(node, LOOK)),  # type: ignore[misc]  # bound now
            f"the functions are on {node.name}",
        )


def filled(world: World, primary: LocalNode) -> None:
    """With what users have: roles that may see and do, a database of their own, things of every kind in it."""
    do(
        world, primary,
        "CREATE ROLE boss LOGIN PASSWORD 'boss' IN ROLE pgr_admin",
        "CREATE ROLE watcher LOGIN PASSWORD 'watcher' IN ROLE pgr_monitor",
        "CREATE ROLE ann LOGIN PASSWORD 'ann'",
        "CREATE DATABASE app OWNER ann",
    )  # fmt: skip
    do(
        world, primary,
        "CREATE TABLE kept AS SELECT i, md5(i::text) AS t FROM generate_series(1, 10000) AS i",
        "CREATE UNIQUE INDEX ON kept (i)",
        "ALTER TABLE kept OWNER TO ann",
        "CREATE VIEW counted AS SELECT count(*) AS n FROM kept",
        "CREATE FUNCTION twice(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 2 * $1'",
        "GRANT SELECT ON counted TO watcher",
        database="app",
    )  # fmt: skip
    assert world.pgr("config", "set", "slots.cdc=physical", "salvage_keep=3").returncode == 0
    assert world.pgr("config", "set", "postgres.parameters.work_mem=9MB").returncode == 0
    world.settles(lambda: world.query(primary, "SHOW work_mem") == [("9MB",)], "it is in force")


def test_a_cluster_goes_to_another_major_version(make_world: Callable[..., World]) -> None:
    assert OLD is not None
    old_major, new_bin = int(OLD.parent.name), NEW.bin_dir
    world = make_world()
    for node in world.nodes:
        node.env["PGR_PG_BIN"] = str(OLD)
    world.start()
    primary = world.wait_writable(standbys=2)
    assert majors(world) == {old_major}
    functions_everywhere(world)
    filled(world, primary)
    assert asked(primary, "SELECT name FROM pg_replica.primary()", "watcher") == [(primary.name,)]

    # 1: one member is left, and pgr is left there.
    for node in world.nodes:
        if node is not primary:
            assert world.pgr("member", "remove", node.name, node=primary).returncode == 0
            assert node.wait(60) == 0
    assert primary.stop(60) == 0
    done = leave(world, primary, "--pg-bin", str(OLD))
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)
    assert (left["kept"], left["grants"]) == ([], ["GRANT pgr_admin TO boss", "GRANT pgr_monitor TO watcher"])

    # 2: aside with what there was, on every host.
    for node in world.nodes:
        aside = node.data / "before"
        aside.mkdir()
        own(aside)
        for name in ASIDE:
            if (node.data / name).exists():
                (node.data / name).rename(aside / name)

    # 3: pg_upgrade on that host.
    aside, new = primary.data / "before", primary.data / "pgdata"
    old = aside / "pgdata"
    run(new_bin / "initdb", "-D", new, *INITDB, cwd=aside)
    run(new_bin / "pg_upgrade", "-b", OLD, "-B", new_bin, "-d", old, "-D", new, *UPGRADE, cwd=aside)
    run(Path("/bin/cp"), "-p", *(old / name for name in FILES), new, cwd=aside)

    # 4: a cluster is founded over it, with the flags of the first one.
    for node in world.nodes:
        node.env["PGR_PG_BIN"] = str(new_bin)
    world.start()
    assert world.wait_writable(standbys=2) is primary
    assert majors(world) == {NEW.major}
    functions_everywhere(world)
    assert json.loads(world.pgr("history", "--json").stdout)[0]["kind"] == "founding"
    where = ["-h", "127.0.0.1", "-p", str(primary.pg_port), "-U", "postgres"]
    run(new_bin / "vacuumdb", *where, "--all", "--analyze-in-stages", cwd=aside, PGPASSWORD=world.password)

    # 5: what was granted with pgr's roles, and pgr's settings, anew; those of Postgres and the rules came along.
    assert refused(primary, "SELECT name FROM pg_replica.primary()", "watcher") == NOT_GRANTED
    do(world, primary, *left["grants"])
    settings = json.loads(primary.get("/config")[1])
    assert (settings["salvage_keep"], settings["slots"]) == (10, {})
    assert settings["postgres"]["hba"][0] == 'local all "postgres" peer map=pgr_owner'
    held = "SELECT slot_name FROM pg_replication_slots WHERE slot_name NOT LIKE 'pgr%'"
    assert world.query(primary, held) == []
    assert world.pgr("config", "set", "slots.cdc=physical", "salvage_keep=3", node=primary).returncode == 0
    world.settles(lambda: world.query(primary, held) == [("cdc",)], "the slot is made anew")

    # It is what it was: data, objects, passwords and rights on every node, and pgr's functions for whom they are.
    for node in world.nodes:
        if node is not primary:
            world.wait_replayed(node)
        assert world.query(node, "SHOW work_mem") == [("9MB",)]
        assert asked(node, "SELECT n, twice(n) FROM counted", "watcher") == [(10000, 20000)]
        assert asked(node, "SELECT t = md5('77') FROM kept WHERE i = 77", "ann") == [(True,)]
        assert refused(node, "SELECT * FROM kept", "watcher") == NOT_GRANTED
        assert asked(node, "SELECT name FROM pg_replica.primary()", "watcher") == [(primary.name,)]
        assert refused(node, "SELECT pg_replica.switchover()", "watcher") == NOT_GRANTED
        assert refused(node, "SELECT name FROM pg_replica.primary()", "ann") == NOT_GRANTED
    second, _ = world.standbys()
    ((moved,),) = asked(second, f"SELECT pg_replica.switchover('{second.name}')", "boss")
    assert moved["to"] == second.name
    world.wait_whole()
    with world.writing() as writer:
        killed_ns, _ = second.kill_all()
        world.writes_again(writer, killed_ns)
        second.start()
        world.wait_streaming(second)
    world.check_no_loss(writer, everywhere=True)


def test_the_page_says_what_was_done() -> None:
    page = " ".join((Path(__file__).parents[2] / "deploy" / "UPGRADE.md").read_text(encoding="utf-8").split())
    for words in (INITDB, UPGRADE):
        assert " ".join(words) in page
    for name in (*ASIDE, *FILES):
        assert f" {name}" in page
