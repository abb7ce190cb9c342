"""How a lost node finds its place again: by following, by rewind, by a new base backup."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode, own
from supervisor.timelines import parse_lsn as lsn_int
from tests.cluster.world import World, postgres_pids
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
    primary, standby = world.wait_writable(), world.standbys()[0]
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
    primary = world.wait_writable()
    assert world.pgr("config", "set", "salvage_keep=0").returncode == 64
    assert world.pgr("config", "set", "salvage_keep=2").returncode == 0
    for day in (1, 2, 3):
        (primary.data / "salvage" / f"2001010{day}T000000000Z-wal").mkdir(parents=True)
    own(primary.data / "salvage")
    with world.writing() as writer:
        standbys = world.standbys()
        # Their Raft children live, so the primary keeps its lease however long this takes on a busy machine.
        for pid in [pid for standby in standbys for pid in postgres_pids(standby)]:
            os.kill(pid, signal.SIGSTOP)
        # Nobody receives this any more; a transaction that does not wait for anyone may still write it.
        run(world, primary, "SET synchronous_commit = local", "SELECT pg_logical_emit_message(true, 'alone', 'x')")
        for node in world.nodes:
            node.kill_all()
        for standby in standbys:
            standby.start()
        world.settles(lambda: world.primary() is not None, "a new primary")
        primary.start()
        world.settles(lambda: "rewind.end" in kinds(world, primary.name), "it is rewound")
        world.wait_streaming(primary)
    older, newest = sorted(p.name for p in (primary.data / "salvage").iterdir() if p.name.endswith("-wal"))
    assert (older, newest > older) == ("20010103T000000000Z-wal", True), "two are kept"
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


@pytest.mark.slow
def test_what_other_tools_leave_behind_misleads_no_start(world: World) -> None:
    primary, standby = world.wait_writable(), world.standbys()[0]
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
    """Obeyed, it would send the start back to a checkpoint whose WAL is gone, and have pg_control wait for ever for the
    end of that backup: it is not obeyed, and the node is copied again."""
    standby = world.standbys()[0]
    with world.writing() as writer:
        standby.kill_all()
        label = (
            "START WAL LOCATION: 0/100028 (file 000000010000000000000000)\nCHECKPOINT LOCATION: 0/100060\n"
            "BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIMELINE: 1\n"
        )
        (standby.data / "pgdata" / "backup_label").write_text(label, encoding="utf-8")
        before = (standby.data / "pgdata" / "global" / "pg_control").read_bytes()
        standby.start()
        world.wait_streaming(standby)
    (kept,) = [p for p in (standby.data / "salvage").iterdir() if "replaced" in p.name]
    assert (kept / "global" / "pg_control").read_bytes() == before, "as it was: a person could still use it"
    assert world.logged(standby, "start.stray_label")
    world.check_no_loss(writer, everywhere=True)


@pytest.mark.slow
def test_the_only_copy_is_not_spoilt_by_a_backup_label_that_somebody_left(make_world: Callable[..., World]) -> None:
    world = make_world(nodes=1)
    world.start()
    world.wait_writable()
    (node,) = world.nodes
    with world.writing() as writer:
        node.kill_all()
        stray = node.data / "pgdata" / "backup_label"
        stray.write_text("START WAL LOCATION: 0/1000028 (file 000000010000000000000001)\n", encoding="utf-8")
        before = (node.data / "pgdata" / "global" / "pg_control").read_bytes()
        node.start()
        world.settles(lambda: f"{stray} says that" in str(node.status()), "it says what is wrong and what to do")
        told = world.asked_status()
        assert told["members"][0]["state"] == "quarantined"
        assert "move it away" in told["members"][0]["reason"]
        assert (node.data / "pgdata" / "global" / "pg_control").read_bytes() == before
        moved_ns = now_ns()
        stray.rename(node.data / "backup_label")
        world.writes_again(writer, moved_ns)
    world.check_no_loss(writer)
