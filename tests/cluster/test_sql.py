"""`pg_replica` on real nodes: reads on primary and standbys, actions on either, and both after a failover."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import psycopg
import pytest

from supervisor.localcluster import LocalNode
from supervisor.settings import conninfo
from supervisor.sqlcatalog import LOOK, MARK
from tests.cluster.world import World, rare

pytestmark = pytest.mark.cluster
PASSWORD = "sql"


def session(node: LocalNode, role: str = "boss", database: str = "postgres") -> psycopg.Connection[Any]:
    where = conninfo(host=node.host, port=node.pg_port, user=role, password=PASSWORD, dbname=database)
    return psycopg.connect(where, autocommit=True)


def ask(node: LocalNode, query: str, role: str = "boss", database: str = "postgres") -> list[tuple[Any, ...]]:
    with session(node, role, database) as connection:
        return connection.execute(query.encode()).fetchall()


def do(world: World, node: LocalNode, statement: str, database: str = "postgres") -> None:
    """As superuser."""
    uri = world.node_uri(node).replace("/postgres?", f"/{database}?")
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(statement.encode())


def refused(node: LocalNode, query: str, role: str = "boss") -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        ask(node, query, role)
    return caught.value


def everywhere(world: World, query: str, expected: list[tuple[Any, ...]], database: str = "postgres") -> None:
    for node in world.nodes:
        last: list[object] = []

        def same(node: LocalNode = node, last: list[object] = last) -> bool:
            try:
                last[:] = ask(node, query, "watcher", database)
            except psycopg.Error as error:
                last[:] = [error]
            return last == expected

        world.settles(same, f"{query} on {node.name} is {expected}", lambda last=last: str(last))  # type: ignore[misc]  # bound now


def with_roles(world: World) -> LocalNode:
    """Two roles of users, and the functions on every node."""
    primary = world.wait_writable()
    everywhere_there(world)
    for role, group in (("boss", "pgr_admin"), ("watcher", "pgr_monitor")):
        if world.query(primary, f"SELECT to_regrole('{role}') IS NULL") == [(True,)]:
            do(world, primary, f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' IN ROLE {group}")
    # Also once its parent has come to write: on this file system the rename of a small file has been seen to take 3 s.
    everywhere(world, "SELECT (pg_replica._document() ->> 'fresh')::boolean", [(True,)])
    return primary


def everywhere_there(world: World) -> None:
    for node in world.nodes:
        world.settles(
            lambda node=node: any(row[0] == MARK for row in world.query(node, LOOK)),  # type: ignore[misc]  # bound now
            f"the functions are on {node.name}",
        )


def asked_for(world: World) -> list[tuple[Any, ...]]:
    primary = world.wait_whole()
    return ask(primary, "SELECT at FROM pg_replica.history() WHERE kind = 'switchover'")


def primary_is(world: World, name: str) -> None:
    everywhere(world, "SELECT name FROM pg_replica.primary()", [(name,)])


def test_by_sql_on_primary_and_standbys(shared_world: World) -> None:
    world = shared_world
    first = with_roles(world)
    second = world.standbys()[0]

    # Reads, the same on every node.
    primary_is(world, first.name)
    everywhere(world, "SELECT name FROM pg_replica.primary() WHERE port > 0 AND host <> ''", [(first.name,)])
    roles = sorted((n.name, "primary" if n is first else "replica") for n in world.nodes)
    everywhere(world, "SELECT name, role FROM pg_replica.status() ORDER BY name", roles)
    for node in world.nodes:
        assert ask(node, "SELECT name FROM pg_replica.status() WHERE here", "watcher") == [(node.name,)]
        assert ask(node, "SELECT kind FROM pg_replica.history()", "watcher")[0] == ("founding",)
        assert ask(node, "SELECT value FROM pg_replica.config() WHERE name = 'strict'", "watcher") == [("true",)]
        page = "\n".join(line for (line,) in ask(node, "SELECT * FROM pg_replica.explain()", "watcher"))
        assert f"{first.name} of term" in page
        assert refused(node, "SELECT pg_replica.switchover()", "watcher").sqlstate == "42501"
        assert refused(node, "SELECT pg_replica.switchover('nosuch')").sqlstate == "PGR64"
        assert refused(node, "SELECT pg_replica.failover('nosuch')").sqlstate == "PGR64"
        assert refused(node, "SELECT pg_replica.pause()", "watcher").sqlstate == "42501"
        assert refused(node, f"SELECT pg_replica.reinit('{first.name}')").sqlstate in ("PGR64", "PGR78")
    do(world, first, "CREATE DATABASE app")
    everywhere(world, "SELECT name FROM pg_replica.primary()", [(first.name,)], "app")

    # Junk in the directory of requests changes nothing, and a request still gets through.
    place = second.data / "run" / "sql" / "requests"
    for name in ("x.json", "01234567-89ab-4def-8123-456789abcdef.json"):
        (place / name).write_text('{"action": "failover"}')
    (place / "link.json").symlink_to(second.data / "cluster.key")

    # A standby is asked, and moves the primary to itself, by name; the session there lives on.
    with session(second) as asking:
        ((forecast,),) = asking.execute("SELECT pg_replica.switchover(dry_run => true)").fetchall()
        assert forecast["refusal"] is None
        ((done,),) = asking.execute(f"SELECT pg_replica.switchover('{second.name}')".encode()).fetchall()
        assert (done["from"], done["to"]) == (first.name, second.name)
        assert asking.execute("SELECT pg_is_in_recovery()").fetchall() == [(False,)]
    primary_is(world, second.name)
    everywhere(
        world,
        "SELECT 'was asked for by boss@127.0.0.1 (SQL)' IN (SELECT reason FROM pg_replica.history() "
        "WHERE kind = 'switchover')",
        [(True,)],
    )
    world.settles(lambda: os.listdir(place) == [], "junk is removed")
    world.wait_whole()


@pytest.mark.slow
def test_the_primary_is_asked_to_go_and_is_lost(shared_world: World) -> None:
    world = shared_world
    second = with_roles(world)
    first, third = world.standbys()

    # It says so, if the stop does not end this session before.
    with contextlib.suppress(psycopg.errors.AdminShutdown):
        assert ask(second, f"SELECT pg_replica.switchover('{third.name}')") == [
            ({"from": second.name, "to": third.name, "accepted": True},)
        ]
    primary_is(world, third.name)

    # And after the loss of a primary.
    third.kill_all()
    world.settles(lambda: world.primary() in (first, second), "another primary")
    primary = world.wait_writable()
    third.start()
    primary_is(world, primary.name)
    world.wait_whole()


@pytest.mark.slow
def test_a_supervisor_that_hangs_is_told_and_nothing_is_asked_of_it(shared_world: World) -> None:
    world = shared_world
    with_roles(world)
    node = world.standbys()[0]
    before = asked_for(world)
    node.send(signal.SIGSTOP)
    noted: list[str] = []
    try:
        with session(node) as asking:
            asking.add_notice_handler(lambda n: noted.append(n.message_primary or ""))

            def stale() -> bool:
                return asking.execute("SELECT name FROM pg_replica.primary()").fetchall() == []

            world.settles(stale, "no primary is named any more")
            assert asking.execute("SELECT min(age_ms) > 3000, count(*) FROM pg_replica.status()").fetchall() == [
                (True, 3)
            ]
            assert any(text.startswith("pgr-supervise has not written for") for text in noted)
            with pytest.raises(psycopg.Error, match="nothing was asked for") as caught:
                asking.execute("SELECT pg_replica.switchover()")
            assert caught.value.sqlstate == "PGR75"
    finally:
        node.send(signal.SIGCONT)
    world.wait_whole()
    with_roles(world)
    assert asked_for(world) == before


@rare
def test_functions_come_back_and_reach_databases_of_any_make(world: World) -> None:
    first = with_roles(world)
    second, third = world.standbys()
    do(world, first, "CREATE DATABASE plain TEMPLATE template0")
    do(world, first, "DROP SCHEMA pg_replica CASCADE")
    world.wait_replayed(third)
    assert refused(third, "SELECT pg_replica.switchover()").sqlstate == "3F000"
    done = world.pgr("switchover", "--to", second.name)
    assert done.returncode == 0, done.stderr
    primary_is(world, second.name)
    everywhere(world, "SELECT name FROM pg_replica.primary()", [(second.name,)], "plain")

    # What can't be put there is a warning on every node, and in the way of nothing.
    world.wait_whole()
    do(world, second, "CREATE DATABASE broken TEMPLATE template0")
    do(world, second, "DROP EXTENSION plpgsql", "broken")
    done = world.pgr("switchover", "--to", third.name)
    assert done.returncode == 0, done.stderr
    world.settles(
        lambda: all("pg_replica on" in " ".join(s.warnings) for n in world.nodes if (s := n.status())),
        "a warning everywhere",
    )
    (warning,) = [w for w in world.asked_status()["warnings"] if w.startswith("pg_replica on")]
    assert warning.startswith(f"pg_replica on {third.name}: in database broken: ")
    with world.writing():
        primary_is(world, third.name)
    do(world, third, "DROP DATABASE broken")
    world.settles(lambda: not any("pg_replica on" in w for w in world.asked_status()["warnings"]), "it is over")


@pytest.mark.slow
def test_a_copy_is_made_anew_by_sql(shared_world: World) -> None:
    world = shared_world
    with_roles(world)
    asked, made = world.standbys()
    ((before,),) = ask(made, "SELECT count(*)::int FROM pg_replica.history() WHERE kind = 'cloned'")
    with session(asked) as asking:
        said: list[str] = []
        asking.add_notice_handler(lambda n: said.append(n.message_primary or ""))
        ((done,),) = asking.execute(f"SELECT pg_replica.reinit('{made.name}')".encode()).fetchall()
    assert done == {"name": made.name}
    assert said
    assert [p.name for p in (made.data / "salvage").iterdir() if "replaced" in p.name]
    everywhere(world, "SELECT count(*)::int FROM pg_replica.history() WHERE kind = 'cloned'", [(before + 1,)])


@pytest.mark.slow
def test_paused_resumed_and_restarted_by_sql(shared_world: World) -> None:
    world = shared_world
    primary = with_roles(world)
    asked, restarted = world.standbys()
    assert ask(asked, "SELECT pg_replica.pause() ->> 'paused'") == [("true",)]
    world.settles(lambda: world.asked_status()["paused"], "paused")
    assert ask(primary, "SELECT pg_replica.resume() ->> 'paused'") == [("false",)]
    began = ask(restarted, "SELECT pg_postmaster_start_time()")
    assert ask(asked, f"SELECT pg_replica.restart('{restarted.name}')") == [({"restarted": [restarted.name]},)]
    assert ask(restarted, "SELECT pg_postmaster_start_time()") > began
    assert refused(asked, "SELECT pg_replica.restart('nosuch')").sqlstate == "PGR64"
    world.wait_whole()
    ((done,),) = ask(asked, f"SELECT pg_replica.failover('{asked.name}')")
    assert (done["from"], done["to"]) == (primary.name, asked.name)
    primary_is(world, asked.name)
    world.wait_whole()
