"""How a lost node finds its place again: by following, by rewind, by a new base backup."""

from __future__ import annotations

import os
import subprocess

import psycopg
import pytest

from supervisor.localcluster import LocalNode
from supervisor.timelines import parse_lsn as lsn_int
from tests.cluster.world import World
from tests.pgbare import pg_bin

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
    history = world.asked_status()["history"]
    (saved,) = [e for e in history if e["kind"] == "salvaged"]
    told = saved["details"]
    assert saved["bytes_salvaged"] == lsn_int(told["last"]) - lsn_int(told["first"]) > 0
    assert saved["node"] == primary.name
    assert history.index(saved) < next(i for i, e in enumerate(history) if e["kind"] == "rewound"), "first saved"
    assert told["command"] in saved["reason"], "a person sees it in `pgr history`"
    path = {"PATH": f"{pg_bin()}:{os.environ['PATH']}"}
    shown = subprocess.run(told["command"], shell=True, capture_output=True, text=True, check=False, env=path)
    assert shown.returncode == 0, shown.stderr
    records = shown.stdout.splitlines()
    assert any("LogicalMessage" in line and 'prefix "alone"' in line for line in records), shown.stdout
    assert "desc: COMMIT" in records[-1], "to its very end"
    world.check_no_loss(writer, everywhere=True)


LEFT = {
    "recovery.signal": "",
    "promote": "",
    "fallback_promote": "",
    "backup_label.old": "START WAL LOCATION: 0/1 (file 000000010000000000000000)\n",
    "postgresql.auto.conf": (
        "primary_conninfo = 'host=192.0.2.1'\nrestore_command = 'false'\nrecovery_target = 'immediate'\n"
        "recovery_target_action = 'promote'\npromote_trigger_file = 'x'\nsynchronous_standby_names = ''\n"
        "hot_standby = off\nfsync = off\nsynchronous_commit = off\nrestart_after_crash = on\n"
        "recovery_min_apply_delay = '1d'\n"
    ),
}
"""Of other tools, of backups, of the hand of a person: each would make a start promote, stop early, wait or lie."""


def test_what_other_tools_leave_behind_misleads_no_start(world: World) -> None:
    primary, standby = world.primary(), world.standbys()[0]
    assert primary is not None
    with world.writing() as writer:
        for node in (standby, primary):
            node.kill_all()
            for name, text in LEFT.items():
                with (node.data / "pgdata" / name).open("a", encoding="utf-8") as file:
                    file.write(text)
            node.start()
            world.wait_whole()
    for node in (standby, primary):
        (row,) = world.query(
            node,
            "SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('hot_standby'),"
            " current_setting('recovery_target'), current_setting('restart_after_crash')",
        )
        assert row == ("on", "on", "on", "", "off")
        (gone,) = [e["fields"] for e in world.logged(node, "settings.removed")][-1:]
        assert any("recovery_target" in line for line in gone["lines"]), "a person is told"
    world.check_no_loss(writer, everywhere=True)


@pytest.mark.slow
def test_a_backup_label_that_somebody_left_does_not_keep_a_node_away(world: World) -> None:
    """It sends a start back to a checkpoint whose WAL is gone: of three starts none succeeds, then it is copied."""
    standby = world.standbys()[0]
    with world.writing() as writer:
        standby.kill_all()
        label = (
            "START WAL LOCATION: 0/100028 (file 000000010000000000000000)\nCHECKPOINT LOCATION: 0/100060\n"
            "BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIMELINE: 1\n"
        )
        (standby.data / "pgdata" / "backup_label").write_text(label, encoding="utf-8")
        standby.start()
        world.wait_streaming(standby)
    kept = [p.name for p in (standby.data / "salvage").iterdir()]
    assert any("replaced" in name for name in kept)
    world.check_no_loss(writer, everywhere=True)
