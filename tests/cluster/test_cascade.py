"""Standbys that stream from a standby, copies that are made of one, and one that replays late; on a real cluster, under
a client that writes, and with files that are only edited: no signal tells a node to read them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode
from tests.cluster.test_http import configured
from tests.cluster.test_slots import execute
from tests.cluster.world import SETTLE_S, START_S, World, rare

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]

STREAMS = "SELECT split_part(application_name, '.', 1) FROM pg_stat_replication WHERE state = 'streaming' ORDER BY 1"
RECEIVED = "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::bigint"


def streams(world: World, node: LocalNode) -> list[str]:
    """Who streams from this node."""
    return [name for (name,) in world.query(node, STREAMS)]


class Tagged:
    """Three nodes, each with a file of its own."""

    def __init__(self, make_world: Callable[..., World]) -> None:
        self.world = make_world()
        self.files: dict[str, Path] = {node.name: configured(self.world, node, "") for node in self.world.nodes}
        self.world.start()
        self.primary = self.world.wait_writable(standbys=2)
        self.standby, self.third = sorted(self.world.standbys(), key=lambda node: node.name)

    def tag(self, node: LocalNode, **tags: object) -> None:
        """In its file, and nothing else; until the log has them."""
        lines = [f"{name} = {json.dumps(value)}" for name, value in tags.items()]
        self.files[node.name].write_text("\n".join(["[tags]", *lines, ""]), encoding="utf-8")

        def known() -> bool:
            seen = self.world.status()
            row = seen.member(node.name) if seen else None
            return row is not None and row.tags == tags

        self.world.settles(known, f"the tags of {node.name} are known")

    def wait_group(self, *nodes: LocalNode) -> None:
        names = " ".join(sorted(node.name for node in nodes))
        self.world.wait_members("a b c", f"2 of {names}")

    def wait_streams(self, node: LocalNode, *others: LocalNode, seconds: float = SETTLE_S) -> None:
        expected = sorted(other.name for other in others)
        self.world.settles(lambda: streams(self.world, node) == expected, f"{expected} stream from {node.name}",
                           lambda: str(streams(self.world, node)), seconds)  # fmt: skip

    def row(self, node: LocalNode) -> Any:
        seen = self.world.status()
        assert seen is not None
        return seen.member(node.name)


def test_a_standby_streams_from_another_and_is_counted_by_nobody(make_world: Callable[..., World]) -> None:
    t = Tagged(make_world)
    world, primary, standby, third = t.world, t.primary, t.standby, t.third
    with world.writing() as writer:
        t.tag(third, replicate_from=standby.name)
        t.wait_group(primary, standby)
        t.wait_streams(standby, third)
        t.wait_streams(primary, standby)
        known = (standby.name, "replicate_from")
        world.settles(lambda: (t.row(third).upstream, t.row(third).unseated) == known, "it is shown")
        shown = world.pgr("status").stdout
        assert f"streams from {standby.name}" in shown
        assert f"{third.name}: no seat in the sync group: `replicate_from`" in shown

        # The primary keeps no WAL for it beyond what it has not flushed.
        ((here,),) = world.query(primary, "SELECT pg_current_wal_flush_lsn()::text")
        moved = f"SELECT restart_lsn >= '{here}' FROM pg_replication_slots WHERE slot_name = 'pgr_{third.name}'"
        world.settles(lambda: world.query(primary, moved) == [(True,)], "its slot on the primary moves on")

        # With its upstream gone it follows the primary, and no commit is acknowledged for what it has.
        killed_ns, _ = standby.kill_all()
        t.wait_streams(primary, third)
        waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        world.settles(lambda: world.query(primary, waiting) == [(True,)], "a commit waits")
        ((written,),) = world.query(primary, "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint")
        world.settles(lambda: world.query(third, RECEIVED)[0][0] >= written, f"{third.name} has it")
        assert writer.acked_since(killed_ns + SECOND) == 0, "one copy is not two, whoever streams"
        assert world.query(primary, waiting) == [(True,)]
        world.settles(lambda: "which does not stream" in world.pgr("status").stdout, "the status says for whom")
        standby.start()
        world.writes_again(writer, now_ns())
        t.wait_streams(standby, third)
        t.wait_streams(primary, standby)

        # Its upstream is promoted: now it is a standby like any other, and without it nothing can be acknowledged. It
        # gets a seat for the next epoch, as nobody touches the names of one that is not open; either may win that.
        killed_ns, _ = primary.kill_all()
        world.writes_again(writer, killed_ns, seconds=120)
        world.settles(lambda: third.name in seated(world), f"{third.name} has its seat")
        primary.start()
        world.wait_streaming(*world.standbys())
    world.check_no_loss(writer, everywhere=True)


def seated(world: World) -> tuple[str, ...]:
    seen = world.status()
    return seen.sync_group.members if seen is not None else ()


@rare
def test_who_streamed_from_a_standby_that_was_promoted_goes_on_without_a_copy(make_world: Callable[..., World]) -> None:
    """It did not hear of the election, so it never let go: its WAL goes on on the new timeline under its feet."""
    t = Tagged(make_world)
    world, primary, standby, third = t.world, t.primary, t.standby, t.third
    t.tag(third, replicate_from=standby.name)
    t.wait_group(primary, standby)
    t.wait_streams(standby, third)
    with world.writing() as writer:
        raft = third.pid_of("raft")
        os.kill(raft, signal.SIGSTOP)
        done = world.pgr("switchover", "--to", standby.name, node=primary)
        assert done.returncode == 0, done.stderr
        world.settles(standby.is_primary, f"{standby.name} is the primary")
        world.writes_again(writer, now_ns())
        with suppress(ProcessLookupError):  # its parent may have taken it for hung
            os.kill(raft, signal.SIGCONT)
        world.wait_streaming(third, primary)
        assert not world.logged(third, "clone.begin")[1:], "the copy of the beginning is the only one"
        assert not world.logged(third, "rewind.begin")
    world.check_no_loss(writer, everywhere=True)


@rare
def test_a_copy_is_made_of_the_standby_that_is_tagged_for_it(make_world: Callable[..., World]) -> None:
    t = Tagged(make_world)
    world, standby, third = t.world, t.standby, t.third
    t.tag(standby, clone_from=True)
    with world.writing() as writer:
        done = world.pgr("reinit", third.name, "--timeout", str(START_S))
        assert done.returncode == 0, done.stderr
        assert [event["fields"]["source"] for event in world.logged(third, "clone.end")][-1] == standby.name
        world.wait_streaming(third)
        assert streams(world, t.primary) == sorted([standby.name, third.name])
    world.check_no_loss(writer, everywhere=True)


@rare
def test_one_that_replays_late_keeps_the_past_over_a_change_of_primary(make_world: Callable[..., World]) -> None:
    t = Tagged(make_world)
    world, primary, standby, third = t.world, t.primary, t.standby, t.third
    t.tag(third, recovery_min_apply_delay="1h")
    t.wait_group(primary, standby)
    world.settles(lambda: world.query(third, "SHOW recovery_min_apply_delay") == [("1h",)], "it is in force")
    with world.writing(pause_s=0.02) as writer:
        execute(world, primary, "CREATE TABLE later AS SELECT 1 AS x")
        ((flushed,),) = world.query(primary, "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint")
        world.settles(lambda: world.query(third, RECEIVED)[0][0] >= flushed, "it has the WAL")
        there = "SELECT to_regclass('later') IS NOT NULL"
        assert world.query(third, there) == [(False,)]
        assert "behind" not in " ".join(world.asked_status()["warnings"])

        refused = world.pgr("switchover", "--to", third.name)
        assert (refused.returncode, "recovery_min_apply_delay" in refused.stderr) == (78, True)
        before = len(world.logged(third, "follow.attached"))
        done = world.pgr("switchover", "--to", standby.name)
        assert done.returncode == 0, done.stderr
        world.writes_again(writer, now_ns(), seconds=120)
        world.settles(lambda: len(world.logged(third, "follow.attached")) > before, f"{third.name} follows")
        assert world.query(third, there) == [(False,)], "neither the promise nor the new upstream has it replay"

        # Nor has a start of its Postgres.
        assert world.pgr("restart", third.name).returncode == 0
        assert world.query(third, there) == [(False,)]
        assert world.query(third, "SHOW recovery_min_apply_delay") == [("1h",)]

        t.tag(third)
        t.wait_group(*world.nodes)
        assert world.query(third, there) == [(True,)]
    world.check_no_loss(writer, everywhere=True)
