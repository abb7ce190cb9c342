"""`pgr pause`: nothing is done that nobody asked for, and never are two writable; what a person asks for is done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode
from tests.cluster.world import World

pytestmark = pytest.mark.cluster
HELD = "paused: nobody is made primary"


def explains(world: World, node: LocalNode, text: str) -> None:
    def told() -> bool:
        seen = node.status()
        return seen is not None and text in f"{seen.explanation} {[m.reason for m in seen.members]}"

    world.settles(told, text, lambda: str(node.status()))


def test_in_pause_a_lost_primary_is_not_replaced_until_somebody_says_so(world: World) -> None:
    primary = world.wait_writable()
    b, c = world.standbys()
    done = world.pgr("pause", "--wait", node=c)
    assert (done.returncode, done.stdout) == (0, "paused\n"), done.stderr
    assert all(node_status.paused for node in world.nodes if (node_status := node.status()) is not None)
    with world.writing() as writer:
        done = world.pgr("switchover", "--to", b.name, node=c)
        assert done.returncode == 0, f"what is asked for is done: {done.stderr}"
        assert "warning: paused: " in done.stderr
        world.wait_streaming(primary, c)
        killed_ns, _ = b.kill_all()
        explains(world, c, HELD)
        explains(world, primary, HELD)
        assert world.primary() is None
        assert not writer.acked_since(killed_ns + 5 * 10**9)
        page = world.pgr("explain", node=c).stdout
        assert "hint: `pgr resume`" in page
        done = world.pgr("resume", node=c)
        assert (done.returncode, done.stdout) == (0, "resumed\n"), done.stderr
        world.writes_again(writer, killed_ns)
    assert world.primary() in (primary, c)
    world.check_no_loss(writer)


@pytest.mark.slow
def test_in_pause_postgres_that_a_person_stops_stays_down_and_a_lost_lease_moves_nothing(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.start()
    world.wait_writable(standbys=2)
    primary = world.wait_writable()
    standby, other = world.standbys()
    assert world.pgr("pause", "--wait").returncode == 0
    # -- a standby that is stopped by hand
    os.kill(standby.pid_of("postmaster"), signal.SIGINT)
    explains(world, standby, "stays down")
    assert standby.pid_of("postmaster") == 0
    with world.writing() as writer:
        # -- the control plane of the primary is frozen until its lease is over: fenced in pause as ever, and given back
        frozen = [pid for name in ("parent", "raft") if (pid := primary.pid_of(name))]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        frozen_ns = now_ns()
        world.settles(lambda: primary.pid_of("postmaster") == 0, "Postgres is gone")
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        world.writes_again(writer, frozen_ns + 2 * 10**9)
        assert world.primary() is primary
        terms = [e for e in world.asked_status()["history"] if e["kind"] == "promoted"]
        assert {e["node"] for e in terms} == {primary.name}
    # -- asked for, it is started
    done = world.pgr("restart", standby.name, "--force", node=other)
    assert (done.returncode, done.stdout) == (0, f"restarted: {standby.name}\n"), done.stderr
    world.wait_streaming(standby)
    # -- the primary's Postgres is stopped by hand: nobody takes over, nobody starts it
    os.kill(primary.pid_of("postmaster"), signal.SIGINT)
    explains(world, other, HELD)
    assert world.primary() is None
    assert primary.pid_of("postmaster") == 0
    done = world.pgr("failover", "--to", standby.name, node=other)
    assert done.returncode == 0, done.stderr
    assert world.primary() is standby
    assert primary.pid_of("postmaster") == 0
    assert world.pgr("resume", "--wait").returncode == 0
    world.wait_whole()
    world.check_no_loss(writer, everywhere=True)
