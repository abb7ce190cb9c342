"""Interleavings 2 and 15: machines and control planes that stand still and go on later, when others have taken over.

Nobody is left here who could fence in time, as with the watchdog switched off: quorum commit alone has to be enough.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode
from tests.net.sampler import Sample, doubles
from tests.net.world import NetWorld, Workload

pytestmark = pytest.mark.cluster


def on(load: Workload, node: LocalNode, timeline: int, since_ns: int, *, quorum: bool) -> list[Sample]:
    """Writes that ``node`` accepted on that timeline and that were sent after that instant."""
    accepted = load.sampler.accepted(node.name, quorum=quorum)
    return [sample for sample in accepted if sample.timeline == timeline and sample.begin_ns > since_ns]


@pytest.mark.quick
def test_a_frozen_primary_that_thaws_without_its_control_plane_acknowledges_nothing(net: NetWorld) -> None:
    """Its Postgres alone goes on, in sessions from before, and does accept writes: only no commit gets through."""
    world, old = net, net.wait_writable()
    with world.working() as load:
        timeline = world.timeline(load)
        world.freeze(old)
        world.moves_on(load, timeline)
        thawed_ns = world.thaw(old, control=False)
        world.settles(
            lambda: len(on(load, old, timeline, thawed_ns, quorum=False)) > 20,
            "it accepts what waits for nobody: it is writable, and nobody stops it",
        )
        world.settles(lambda: now_ns() - thawed_ns > 3 * SECOND, "three seconds")
        world.thaw(old)
        world.wait_whole()
        world.goes_on(load, now_ns())
    assert not on(load, old, timeline, thawed_ns, quorum=True)
    world.check(load, promised_only=True)


def test_a_frozen_primary_that_thaws_whole_is_fenced_and_comes_back(net: NetWorld) -> None:
    world, old = net, net.wait_writable()
    with world.working() as load:
        timeline = world.timeline(load)
        world.freeze(old)
        world.moves_on(load, timeline)
        thawed_ns = world.thaw(old)
        world.wait_whole()
        world.goes_on(load, now_ns())
    assert not on(load, old, timeline, thawed_ns, quorum=True)
    world.check(load, promised_only=True)


def test_a_frozen_control_plane_with_a_running_postgres_loses_nothing(net: NetWorld) -> None:
    world, old = net, net.wait_writable()
    with world.working(writers=4) as load:
        timeline = world.timeline(load)
        world.freeze_control(old)
        world.moves_on(load, timeline)
        moved_ns = now_ns()
        world.settles(
            lambda: len(on(load, old, timeline, moved_ns, quorum=False)) > 20, "the old one is writable all the same"
        )
        world.thaw(old)
        world.wait_whole()
        world.goes_on(load, now_ns())
    assert not on(load, old, timeline, moved_ns, quorum=True)
    world.check(load, promised_only=True)


@pytest.mark.slow
def test_control_without_quorum_commit_a_frozen_control_plane_loses_rows(make_net: Callable[..., NetWorld]) -> None:
    world = make_net(commit="async")
    old = world.begin()
    with world.working(writers=4) as load:
        timeline = world.timeline(load)
        world.freeze_control(old)
        world.moves_on(load, timeline)
        world.settles(lambda: bool(doubles(load.sampler.accepted(quorum=True))), "two nodes acknowledge")
        old.kill_all()
    world.wait_whole()
    assert world.tally(load).lost


def test_a_frozen_standby_costs_no_write(net: NetWorld) -> None:
    world = net
    standby = world.standbys()[0]
    with world.working() as load:
        frozen_ns = world.freeze(standby)
        world.settles(lambda: now_ns() - frozen_ns > 3 * SECOND, "three seconds")
        world.goes_on(load, now_ns())
        world.thaw(standby)
        world.wait_whole()
    assert not any(writer.failures for writer in load.writers), "not one failed write"
    world.check(load)
