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
        slot = f"pgr_{standby.name}"
        held = f"SELECT 1 FROM pg_replication_slots WHERE active AND slot_name = '{slot}'"
        world.settles(lambda: not world.query(primary, held), "the slot is free")
        needed = world.query(primary, "SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0]
        run(world, primary, FILL, "SELECT pg_switch_wal()")

        def removed() -> bool:
            # The supervisor makes the slot anew, from the last checkpoint; the other standby holds WAL until it has it.
            drop = f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}'"
            run(world, primary, "CHECKPOINT", drop, "CHECKPOINT")
            return not world.query(primary, f"SELECT 1 FROM pg_ls_waldir() WHERE name = '{needed}'")

        world.settles(removed, "the WAL that the standby needs is removed")
        standby.start()
        world.settles(lambda: kinds(world, standby.name).count("clone.end") == clones + 1, "it is copied again")
        world.wait_streaming(standby)
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
        world.settles(lambda: "rewind.end" in kinds(world, primary.name), "it is rewound")
        world.wait_streaming(primary)
    assert any(p.name.endswith("-wal") for p in (primary.data / "salvage").iterdir())
    world.settles(
        lambda: any(e["kind"] == "rewound" and e["bytes_salvaged"] > 0 for e in world.asked_status()["history"]),
        "the history tells of the WAL that was saved",
    )
    world.check_no_loss(writer, everywhere=True)
