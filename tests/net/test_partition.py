"""Interleavings 1 and 16: whole nodes cut off, both ways and one way."""

from __future__ import annotations

import pytest

from fencing.clock import now_ns
from fencing.lease import MS
from tests.net.world import NetWorld

pytestmark = pytest.mark.cluster


@pytest.mark.quick
def test_an_isolated_primary_accepts_nothing_after_its_lease(net: NetWorld) -> None:
    """Interleaving 1. Sessions on it stay open, and clients still reach it: only the fence stops them."""
    world, old = net, net.primary()
    assert old is not None
    seen = old.status()
    assert seen is not None
    with world.working() as load:
        timeline = load.sampler.accepted(old.name)[-1].timeline
        cut = world.isolate(old)
        world.settles(lambda: any(s.timeline > timeline for s in load.sampler.accepted()), "another accepts writes")
        world.goes_on(load, now_ns())
        world.heal()
        world.wait_whole()
    last = load.sampler.last(old.name, timeline)
    bound_ms = seen.timings.lease_ms + seen.timings.kill_bound_ms
    print(f"last accepted write {(last.end_ns - cut.begin_ns) / MS:.0f} of {bound_ms} ms after the cut")
    assert (last.begin_ns - cut.end_ns) / MS <= bound_ms
    world.check(load)
