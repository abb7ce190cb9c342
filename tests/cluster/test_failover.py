"""The main job: the primary is lost, another takes over, no acknowledged row is gone, the lost node comes back."""

from __future__ import annotations

import os
import signal

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND
from tests.cluster.world import Gone, World, postgres_pids

pytestmark = pytest.mark.cluster

KILLS = {"quick": 2, "ci": 4, "all": 10}[os.environ.get("PGR_TEST_LEVEL", "quick")]


@pytest.mark.timeout(120 + 60 * KILLS)
def test_the_primary_is_lost_and_comes_back(world: World) -> None:
    with world.writing() as writer:
        for _ in range(KILLS):
            primary = world.wait_writable()
            killed_ns, _ = primary.kill_all()
            world.writes_again(writer, killed_ns)
            assert writer.gap(killed_ns).seconds < 15, "a primary within a bound, even on a busy machine"
            primary.start()
            world.wait_streaming(primary)
    world.check_no_loss(writer, everywhere=True)


def test_a_standby_is_lost_without_a_failed_write(world: World) -> None:
    standby = world.standbys()[0]
    with world.writing() as writer:
        killed_ns, _ = standby.kill_all()
        world.settles(lambda: writer.acked_since(killed_ns) > 50, "writes go on")
        standby.start()
        world.wait_streaming(standby)
    assert not writer.failures
    world.check_no_loss(writer, everywhere=True)


def test_all_three_are_lost_at_once_and_nothing_is_missing(world: World) -> None:
    with world.writing() as writer:
        killed_ns = now_ns()
        for node in world.nodes:
            node.kill_all()
        world.start()
        world.writes_again(writer, killed_ns, seconds=120)
    world.wait_whole()
    world.check_no_loss(writer, everywhere=True)


@pytest.mark.parametrize("child", ["raft", "watchdog"])
def test_a_killed_child_of_the_primary_costs_no_write(world: World, child: str) -> None:
    primary = world.wait_writable()
    postmaster = primary.pid_of("postmaster")
    with world.writing() as writer:
        for _ in range(3):
            before = primary.pid_of(child)
            at_ns = now_ns()
            os.kill(before, signal.SIGKILL)
            world.settles(lambda before=before: primary.pid_of(child) not in (0, before), f"a new {child} child")  # type: ignore[misc]  # bound now
            # Longer than the lease: whoever was not taken up again would have been fenced by then.
            world.settles(lambda at_ns=at_ns: now_ns() - at_ns > 2 * SECOND, "two seconds")  # type: ignore[misc]  # bound now
            assert primary.is_primary()
    assert not writer.failures, "not one failed write"
    assert primary.pid_of("postmaster") == postmaster
    world.check_no_loss(writer, everywhere=True)


def test_a_frozen_raft_child_has_no_postgres_before_another_accepts_a_write(world: World) -> None:
    primary = world.wait_writable()
    seen = primary.status()
    assert seen is not None
    with world.writing() as writer:
        raft = primary.pid_of("raft")
        gone = Gone(postgres_pids(primary))
        frozen_ns = now_ns()
        os.kill(raft, signal.SIGSTOP)
        try:
            gone.join(30)
            assert gone.at_ns, "Postgres of the frozen node is still there"
            bound_ms = seen.timings.lease_ms + seen.timings.kill_bound_ms
            assert (gone.at_ns - frozen_ns) / 1e6 <= bound_ms
            # A session that was already past the gate may still hand out an answer it had: nothing later than the end.
            world.writes_again(writer, gone.at_ns)
            late = [ack for ack in writer.acked if ack.sent_ns > frozen_ns]
            gap = writer.gap(frozen_ns)
            assert gap.start_ns <= gone.at_ns <= gap.end_ns, "one stopped before the other began"
            assert late
            assert world.primary() is not primary
        finally:
            if raft == primary.pid_of("raft"):
                os.kill(raft, signal.SIGCONT)
        world.wait_streaming(primary)
    world.check_no_loss(writer, everywhere=True)


def test_a_killed_parent_leaves_no_postgres(world: World) -> None:
    primary = world.wait_writable()
    seen = primary.status()
    assert seen is not None
    with world.writing() as writer:
        gone = Gone(postgres_pids(primary))
        killed_ns = now_ns()
        os.kill(primary.pid, signal.SIGKILL)
        gone.join(30)
        assert gone.at_ns, "Postgres outlived its supervisor"
        assert (gone.at_ns - killed_ns) / 1e6 <= seen.timings.lease_ms + seen.timings.kill_bound_ms
        world.writes_again(writer, gone.at_ns)
        world.settles(lambda: not primary.pids(), "the watchdog ended as well")
        assert primary.process is not None
        primary.process.wait(10)
        primary.start()
        world.wait_streaming(primary)
    world.check_no_loss(writer, everywhere=True)


def test_a_killed_postmaster_is_noticed_at_once(world: World) -> None:
    primary = world.wait_writable()
    with world.writing() as writer:
        gone = Gone(postgres_pids(primary))
        killed_ns = now_ns()
        os.kill(primary.pid_of("postmaster"), signal.SIGKILL)
        # Its backends outlive it and may even acknowledge; the supervisor ends them.
        gone.join(30)
        assert 0 < gone.at_ns - killed_ns < SECOND, "the orphaned backends are still there"
        world.writes_again(writer, gone.at_ns)
        assert world.primary() is not primary, "handed over (on_primary_crash = failover)"
        gap = writer.gap(gone.at_ns).seconds
        print(f"handed over: write gap {gap:.2f} s, load {os.getloadavg()[0]:.1f}")
        assert gap < 10
        world.wait_whole()
    world.check_no_loss(writer, everywhere=True)
