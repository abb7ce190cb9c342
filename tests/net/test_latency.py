"""Interleaving 16, latency: slower than a lease would like, and quick enough for one."""

from __future__ import annotations

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND
from tests.net.world import NetWorld

pytestmark = pytest.mark.cluster


def test_a_slow_link_costs_no_write(net: NetWorld) -> None:
    """100 to 140 ms there and back, where a heartbeat is sent every 100 ms."""
    world, old = net, net.wait_writable()
    with world.working() as load:
        timeline = world.timeline(load)
        world.network.delay(old.name, 50, jitter_ms=20)
        slow_ns = now_ns()
        world.settles(lambda: now_ns() - slow_ns > 5 * SECOND, "five seconds")
        world.goes_on(load, now_ns())
        world.heal()
        world.wait_whole()
    assert world.timeline(load) == timeline
    assert not any(writer.failures for writer in load.writers), "not one failed write"
    world.check(load)


def test_a_link_slower_than_a_lease_loses_nothing(net: NetWorld) -> None:
    """1.2 seconds there and back for one node after the other: whoever it is cannot be primary, nor be in the way."""
    world = net
    with world.working() as load:
        for node in world.nodes:
            world.network.delay(node.name, 600)
            slow_ns = now_ns()
            world.settles(lambda s=slow_ns: now_ns() - s > 4 * SECOND, "four seconds")  # type: ignore[misc]  # bound now
            world.heal()
            world.goes_on(load, now_ns())
        world.wait_whole()
    world.check(load)
