"""Logical slots that are to outlive a failover do (Postgres 17 and newer, `failover = true`)."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from supervisor.localcluster import LocalNode
from tests.cluster.world import World, rare

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

CREATE = "SELECT pg_create_logical_replication_slot('cdc', 'pgoutput', failover => true)"
READ = (
    "SELECT count(*) FROM pg_logical_slot_get_binary_changes("
    "'cdc', NULL, NULL, 'proto_version', '1', 'publication_names', 'all_tables')"
)


def is_copied(world: World, node: LocalNode) -> bool:
    ready = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'cdc' AND synced AND NOT temporary"
    return bool(world.query(node, ready))


def test_a_failover_slot_outlives_its_primary_and_comes_back_with_it(make_world: Callable[..., World]) -> None:
    world = make_world()
    for node in world.nodes:
        config = world.home / f"{node.name}.toml"
        config.write_text('[postgres.parameters]\nwal_level = "logical"\n', encoding="utf-8")
        config.chmod(0o644)
        node.flags["config"] = str(config)
    world.start()
    primary = world.wait_writable(standbys=2)
    with psycopg.connect(world.node_uri(primary), autocommit=True) as connection:
        connection.execute("CREATE PUBLICATION all_tables FOR ALL TABLES")
        connection.execute(CREATE)
    with world.writing(pause_s=0.02) as writer:

        def copied(nodes: list[LocalNode]) -> bool:
            world.query(world.wait_writable(), READ)  # a slot that moves on is what a copy can catch up with
            return all(is_copied(world, node) for node in nodes)

        standbys = world.standbys()
        world.settles(lambda: copied(standbys), "both standbys have a copy of the slot")
        killed_ns, _ = primary.kill_all()
        world.writes_again(writer, killed_ns)
        after = world.wait_writable()
        assert world.query(after, READ)[0][0] > 0, "it goes on on the new primary"
        primary.start()
        world.wait_streaming(primary)
        world.settles(lambda: copied([primary]), "the old primary has a copy, in place of what was its own")
        done = world.pgr("switchover", "--to", primary.name, node=primary)
        assert done.returncode == 0, done.stderr
        world.settles(lambda: copied([after]), "after a clean hand-over too")
    world.check_no_loss(writer, everywhere=True)


@rare
def test_permanent_slots_are_on_every_node_and_go_with_the_setting(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.start()
    primary = world.wait_writable(standbys=2)

    def config(*words: str) -> None:
        done = world.pgr("config", *words, node=primary)
        assert done.returncode == 0, done.stderr

    def has(node: LocalNode, name: str, what: str = "true") -> bool:
        slots = f"pg_replication_slots WHERE slot_name = '{name}' AND NOT temporary"
        return world.query(node, f"SELECT {what} FROM {slots}") == [(True,)]

    config("set", "slots.archive=physical")
    for node in world.nodes:
        world.settles(lambda node=node: has(node, "archive"), f"archive on {node.name}")  # type: ignore[misc]
    # Its consumer moves the primary's; the others follow, never beyond it.
    execute(world, primary, "CREATE TABLE t AS SELECT generate_series(1, 1000)")
    ((lsn,),) = world.query(primary, "SELECT pg_current_wal_flush_lsn()::text")
    world.query(primary, f"SELECT pg_replication_slot_advance('archive', '{lsn}')")
    moved = f"restart_lsn = '{lsn}'"
    for node in world.standbys():
        world.settles(lambda node=node: has(node, "archive", moved), f"archive moves on {node.name}")  # type: ignore[misc]

    refused = world.pgr("config", "set", "slots.cdc=logical postgres pgoutput")
    assert (refused.returncode, "wal_level" in refused.stderr) == (78, True)
    config("set", "postgres.parameters.wal_level=logical", "slots.cdc=logical postgres pgoutput")
    world.settles(lambda: any("cdc" in w for w in world.asked_status()["warnings"]), "it says why there is none yet")
    assert world.pgr("restart", "--pending").returncode == 0
    primary = world.wait_whole()
    world.settles(lambda: has(primary, "cdc", "failover"), "cdc on the primary")
    with world.writing(pause_s=0.02) as writer:
        execute(world, primary, "CREATE PUBLICATION all_tables FOR ALL TABLES")

        def copied() -> bool:
            world.query(primary, READ)
            return all(has(node, "cdc", "synced") for node in world.standbys())

        world.settles(copied, "cdc is copied")
        ((guards,),) = world.query(primary, "SHOW synchronized_standby_slots")
        assert guards in {f"pgr_{node.name}" for node in world.standbys()}, "as many as a commit waits for"
        guard = world[str(guards).removeprefix("pgr_")]
        guard.kill_all()
        world.settles(lambda: world.query(primary, "SHOW synchronized_standby_slots") != [(guards,)], "another guards")
        assert world.query(primary, READ)[0][0] >= 0, "one that is gone does not hold up consumers"
        guard.start()
        world.wait_whole()
        world.settles(copied, "cdc is copied to it, too")
        killed_ns, _ = primary.kill_all()
        world.writes_again(writer, killed_ns)
        after = world.wait_writable()
        assert world.query(after, READ)[0][0] > 0, "it goes on on the new primary"
        assert has(after, "archive")
        primary.start()
        world.wait_streaming(primary)
        primary = after
    world.query(primary, "SELECT pg_create_physical_replication_slot('mine', true)")
    config("unset", "slots.archive", "slots.cdc")
    for node in world.nodes:
        gone = lambda node=node: not has(node, "archive") and not has(node, "cdc")  # noqa: E731
        world.settles(gone, f"both are gone on {node.name}")
    assert has(primary, "mine"), "nobody else's is touched"
    world.check_no_loss(writer, everywhere=True)


@rare
def test_before_17_a_permanent_logical_slot_is_made_anew_and_that_is_said(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.start()
    primary = world.wait_writable(standbys=2)
    with psycopg.connect(world.node_uri(primary)) as connection:
        if connection.info.server_version >= 170000:
            pytest.skip("this Postgres copies logical slots")
    done = world.pgr("config", "set", "postgres.parameters.wal_level=logical", "slots.cdc=logical postgres pgoutput")
    assert done.returncode == 0, done.stderr
    assert world.pgr("restart", "--pending").returncode == 0
    primary = world.wait_whole()
    there = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'cdc'"
    world.settles(lambda: world.query(primary, there) == [(1,)], "it is made on the primary")
    said = "cdc does not outlive a failover with Postgres"
    world.settles(lambda: any(said in w for w in world.asked_status()["warnings"]), "the status says so")
    after = world.standbys()[0]
    assert world.query(after, there) == [(0,)]
    assert world.pgr("switchover", "--to", after.name).returncode == 0
    world.settles(lambda: world.query(after, there) == [(1,)], "the next primary makes it anew")
    world.wait_streaming(primary)
    world.settles(lambda: world.query(primary, there) == [(0,)], "where it is of no use it holds no WAL")


def execute(world: World, node: LocalNode, statement: str) -> None:
    with psycopg.connect(world.node_uri(node), autocommit=True) as connection:
        connection.execute(statement.encode())


