"""Logical slots that are to outlive a failover do (Postgres 17 and newer, `failover = true`)."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from supervisor.localcluster import LocalNode
from tests.cluster.world import World

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
            world.query(writer_of(world), READ)  # a slot that moves on is what a copy can catch up with
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


def writer_of(world: World) -> LocalNode:
    primary = world.primary()
    assert primary is not None
    return primary
