"""Parts of the control plane lost or overridden, one at a time: each was once seen to stop or endanger a cluster."""

from __future__ import annotations

import os
import signal

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode
from tests.cluster.world import Gone, World, postgres_pids

pytestmark = pytest.mark.cluster


def test_sessions_of_the_supervisor_are_cut_and_the_primary_is_lost(world: World) -> None:
    """Whoever ends pgr's own sessions (an administrator, a timeout) must not take the failover away."""
    primary = world.wait_writable()
    with world.writing() as writer:
        for node in world.nodes:
            cut = world.query(node, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'pgr'")
            assert cut, f"{node.name} has sessions of its supervisor"
        killed_ns, _ = primary.kill_all()
        world.writes_again(writer, killed_ns)
        primary.start()
        world.wait_streaming(primary)
    world.check_no_loss(writer, everywhere=True)


@pytest.mark.parametrize("also", [pytest.param("", marks=pytest.mark.slow), "watchdog"])
def test_a_frozen_parent_of_the_primary_does_not_keep_it_writable(world: World, also: str) -> None:
    """Invariant 3: a hang of any one of the three processes, or of the parent and one child. Nobody but the parent can
    demote in an orderly way, so its Raft child makes way, the lease ends, and the watchdog acts, or else that child."""
    primary = world.wait_writable()
    with world.writing() as writer:
        gone = Gone(postgres_pids(primary))
        frozen_ns = now_ns()
        frozen = [primary.pid_of(also)] if also else []
        for pid in (*frozen, primary.pid):
            os.kill(pid, signal.SIGSTOP)
        try:
            gone.join(30)
            assert gone.at_ns, "Postgres under a frozen parent is still there"
            world.writes_again(writer, gone.at_ns)
            gap = writer.gap(frozen_ns)
            assert gap.end_ns >= gone.at_ns, "the new primary accepted nothing before the old one was gone"
            assert world.primary() is not primary
        finally:
            for pid in (*frozen, primary.pid):
                os.kill(pid, signal.SIGCONT)
        world.wait_streaming(primary)
    world.check_no_loss(writer, everywhere=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_primary_whose_postmaster_hangs_makes_way(world: World) -> None:
    """Sessions that are open go on, the lease is renewed, all processes live: but nobody can connect any more."""
    primary = world.wait_writable()
    with world.writing() as writer:
        postmaster = primary.pid_of("postmaster")
        os.kill(postmaster, signal.SIGSTOP)
        world.settles(lambda: bool(world.logged(primary, "promotion.failed")), "it is noticed")
        noticed_ns = now_ns()
        world.settles(lambda: world.primary() not in (None, primary), "another is primary")
        world.writes_again(writer, noticed_ns)
        world.wait_streaming(primary)
    world.check_no_loss(writer, everywhere=True)


def test_a_frozen_watchdog_is_replaced_and_costs_no_write(world: World) -> None:
    """Else nobody would be left to act when the parent hangs as well."""
    primary = world.wait_writable()
    before = primary.pid_of("watchdog")
    with world.writing() as writer:
        os.kill(before, signal.SIGSTOP)
        world.settles(lambda: bool(world.logged(primary, "watchdog.rearmed")), "the next watchdog is armed")
        assert primary.pid_of("watchdog") != before
        at_ns = now_ns()
        world.settles(lambda: writer.acked_since(at_ns) > 100, "writes go on")
    assert not writer.failures, "not one failed write"
    assert world.primary() is primary
    world.check_no_loss(writer)


def promote_by_hand(world: World, node: LocalNode) -> None:
    with psycopg.connect(world.node_uri(node), autocommit=True) as connection:
        connection.execute("SELECT pg_promote(false)")


@pytest.mark.slow
def test_a_standby_promoted_by_a_stranger_is_stopped_and_comes_back(world: World) -> None:
    standby = world.standbys()[0]
    with world.writing() as writer:
        gone = Gone([standby.pid_of("postmaster")])
        promote_by_hand(world, standby)
        gone.join(30)
        assert gone.at_ns, "a Postgres that pgr did not promote is still running"
        world.wait_streaming(standby)
    assert not writer.failures, "the primary was not disturbed"
    world.check_no_loss(writer, everywhere=True)
