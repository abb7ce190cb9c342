"""How a lost node finds its place again: by following, by rewind, by a new base backup."""

from __future__ import annotations

import psycopg
import pytest

from supervisor.localcluster import LocalNode
from tests.cluster.world import World

pytestmark = pytest.mark.cluster

FILL = "SELECT count(pg_logical_emit_message(false, 'fill', repeat('x', 1000000))) FROM generate_series(1, 300)"
"""300 MB of WAL, more than wal_keep_size."""


def run(world: World, node: LocalNode, *statements: str) -> None:
    with psycopg.connect(world.node_uri(node), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def kinds(world: World, name: str) -> list[str]:
    node = world[name]
    return [str(event["event"]) for event in world.logged(node, "")]


@pytest.mark.timeout(300)
def test_a_standby_whose_wal_is_gone_is_copied_again(world: World) -> None:
    primary, standby = world.primary(), world.standbys()[0]
    assert primary is not None
    clones = kinds(world, standby.name).count("clone.end")
    with world.writing() as writer:
        standby.kill_all()
        # Without its slot nothing holds the WAL back; the supervisor makes a new one, from the last checkpoint on.
        slot = f"pgr_{standby.name}"
        held = f"SELECT 1 FROM pg_replication_slots WHERE active AND slot_name = '{slot}'"
        world.settles(lambda: not world.query(primary, held), "the slot is free")
        drop = f"SELECT pg_drop_replication_slot('{slot}')"
        run(world, primary, FILL, "SELECT pg_switch_wal()", "CHECKPOINT", drop, "CHECKPOINT")
        standby.start()
        world.wait_streaming(standby)
    assert kinds(world, standby.name).count("clone.end") == clones + 1
    kept = list((standby.data / "salvage").iterdir())
    assert any("replaced" in p.name for p in kept), "the old copy is moved aside, not deleted"
    world.check_no_loss(writer, everywhere=True)


def test_a_primary_with_wal_of_its_own_is_rewound_and_that_wal_is_kept(world: World) -> None:
    primary = world.primary()
    assert primary is not None
    with world.writing() as writer:
        for standby in world.standbys():
            standby.kill_all()
        # Nobody receives this any more; a transaction that does not wait for anyone may still write it.
        run(world, primary, "SET synchronous_commit = local", "SELECT pg_logical_emit_message(true, 'alone', 'x')")
        primary.kill_all()
        for standby in [n for n in world.nodes if n is not primary]:
            standby.start()
        world.settles(lambda: world.primary() is not None, "a new primary")
        primary.start()
        world.wait_streaming(primary)
    assert "rewind.end" in kinds(world, primary.name)
    assert any(p.name.endswith("-wal") for p in (primary.data / "salvage").iterdir())
    history = world.asked_status()["history"]
    assert any(e["kind"] == "rewound" and e["bytes_salvaged"] > 0 for e in history)
    world.check_no_loss(writer, everywhere=True)
