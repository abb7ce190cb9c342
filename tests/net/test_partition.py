"""Interleavings 1 and 16: whole nodes cut off, both ways and one way, planes cut apart, a bridge node, a flapping link.

What is asserted of time is safety.md's own bound; how soon another node writes is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fencing.clock import now_ns
from fencing.lease import MS, PROFILES
from supervisor.localcluster import SECOND, LocalNode
from tests.cluster.test_quorum_promises import mutate
from tests.net.mutants import NO_FENCE
from tests.net.network import CONSENSUS, POSTGRES, Instant, Link, between, both
from tests.net.sampler import doubles
from tests.net.world import NetWorld, Workload

pytestmark = pytest.mark.cluster


def ends_within_the_lease(world: NetWorld, load: Workload, old: LocalNode, timeline: int, cut: Instant) -> None:
    """The last write that ``old`` accepted under its old grant was sent at most L + F after the cut."""
    last = load.sampler.last(old.name, timeline)
    timings = next(seen.timings for node in world.nodes if (seen := node.status()))
    bound_ms = timings.lease_ms + timings.kill_bound_ms
    print(f"last accepted write {(last.end_ns - cut.begin_ns) / MS:.0f} of {bound_ms} ms after the cut")
    assert (last.begin_ns - cut.end_ns) / MS <= bound_ms


@pytest.mark.quick
def test_an_isolated_primary_accepts_nothing_after_its_lease(net: NetWorld) -> None:
    """Sessions on it stay open, and clients still reach it: only the fence stops them."""
    world, old = net, net.wait_writable()
    with world.working() as load:
        timeline = world.timeline(load)
        cut = world.isolate(old)
        world.moves_on(load, timeline)
        world.heal()
        world.wait_whole()
        world.goes_on(load, now_ns())
    ends_within_the_lease(world, load, old, timeline, cut)
    world.check(load)


@pytest.mark.slow
def test_control_without_a_fence_both_accept_and_quorum_commit_alone_loses_nothing(
    make_net: Callable[..., NetWorld],
) -> None:
    world = make_net()
    for node in world.nodes:
        mutate(world, node, NO_FENCE)
    old = world.begin()
    with world.working() as load:
        timeline = world.timeline(load)
        world.isolate(old)
        world.moves_on(load, timeline)
        world.settles(lambda: bool(doubles(load.sampler.accepted())), "two nodes accept writes")
        old.kill_all()
        world.heal()
        old.start()
        world.wait_whole()
    world.check(load, promised_only=True)


@pytest.mark.slow
def test_control_without_a_fence_and_without_quorum_commit_acknowledged_rows_are_lost(
    make_net: Callable[..., NetWorld],
) -> None:
    world = make_net(commit="async")
    for node in world.nodes:
        mutate(world, node, NO_FENCE)
    old = world.begin()
    with world.working() as load:
        timeline = world.timeline(load)
        world.isolate(old)
        world.moves_on(load, timeline)
        world.settles(lambda: bool(doubles(load.sampler.accepted(quorum=True))), "two nodes acknowledge")
        old.kill_all()
        world.heal()
    world.wait_whole()
    assert world.tally(load).lost


@pytest.mark.parametrize("way", ["it is not heard", "it hears nothing"])
def test_a_one_way_cut_of_the_primary(net: NetWorld, way: str) -> None:
    world, old = net, net.wait_writable()
    with world.working() as load:
        timeline = world.timeline(load)
        others = [node.name for node in world.others(old)]
        out = [Link(old.name, other) for other in others]
        cut = world.cut(out if way == "it is not heard" else [Link(link.target, link.source) for link in out])
        world.moves_on(load, timeline)
        world.heal()
        world.wait_whole()
        world.goes_on(load, now_ns())
    ends_within_the_lease(world, load, old, timeline, cut)
    world.check(load)


@pytest.mark.parametrize(("old", "new"), [("fast", "cloud"), ("cloud", "fast")])
def test_a_primary_is_isolated_while_the_timings_change(make_net: Callable[..., NetWorld], old: str, new: str) -> None:
    """Half way: leases of either length may run, and whoever leads next goes on with it."""
    world = make_net(profile=old)
    primary = world.begin()
    with world.working() as load:
        timeline = world.timeline(load)
        done = world.pgr("config", "set", f"profile={new}", node=primary)
        assert done.returncode == 0, done.stderr
        world.settles(lambda: switched(primary), "the switch")
        cut = world.isolate(primary)
        world.moves_on(load, timeline)
        world.heal()
        world.wait_whole()
        world.goes_on(load, now_ns())
        for node in world.nodes:
            world.settles(lambda node=node: profile(node) == new, f"{new} on {node.name}")  # type: ignore[misc]  # bound now
    last, longer = load.sampler.last(primary.name, timeline), PROFILES["cloud"]
    assert (last.begin_ns - cut.end_ns) / MS <= longer.lease_ms + longer.kill_bound_ms
    world.check(load)


def switched(node: LocalNode) -> bool:
    seen = node.status()
    return seen is not None and seen.retiming is not None and bool(seen.retiming["switched"])


def profile(node: LocalNode) -> str:
    seen = node.status()
    return seen.profile if seen is not None and seen.retiming is None else ""


@pytest.mark.quick
def test_a_primary_without_control_plane_whose_standbys_still_reach_it(net: NetWorld) -> None:
    """Also interleaving 3: they promise while its WAL still comes, and could go on acknowledging."""
    world, old = net, net.wait_writable()
    with world.working(writers=4) as load:
        timeline = world.timeline(load)
        cut = world.isolate(old, port=CONSENSUS)
        world.moves_on(load, timeline)
        world.heal()
        world.wait_whole()
        world.goes_on(load, now_ns())
    ends_within_the_lease(world, load, old, timeline, cut)
    world.check(load)


def test_a_data_plane_that_is_cut_holds_every_commit_until_it_is_back(net: NetWorld) -> None:
    """Nothing is wrong with the votes; nobody has what the primary writes, so nobody is told that it is safe."""
    world, old = net, net.wait_writable()
    with world.working() as load:
        timeline = world.timeline(load)
        cut = world.isolate(old, port=POSTGRES)
        world.settles(lambda: now_ns() - cut.end_ns > 6 * SECOND, "six seconds")  # replication's own timeouts are over
        healed = world.heal()
        world.goes_on(load, healed.end_ns)
    told = [s for s in load.sampler.accepted(quorum=True) if s.begin_ns > cut.end_ns and s.end_ns < healed.begin_ns]
    assert not told, "acknowledged while nobody else could have it"
    assert world.timeline(load) == timeline, "and no reason for another primary"
    world.check(load)


def test_a_bridge_node_that_sees_both_halves_keeps_the_primary_where_it_is(net: NetWorld) -> None:
    """The two ends do not see each other; one is primary, and with the bridge node it has a majority."""
    world, old = net, net.wait_writable()
    end, bridge = world.others(old)
    with world.working() as load:
        timeline = world.timeline(load)
        cut = world.cut(both(old.name, end.name))
        world.settles(lambda: now_ns() - cut.end_ns > 5 * SECOND, "five seconds: several elections")
        assert bridge.alive()
        world.goes_on(load, now_ns())
        world.heal()
        world.wait_whole()
    assert world.timeline(load) == timeline, "the one that hears only the bridge node did not disturb"
    assert not any(writer.failures for writer in load.writers), "not one failed write"
    world.check(load)


def test_a_flapping_link_of_the_primary_loses_nothing(net: NetWorld) -> None:
    world, old = net, net.wait_writable()
    with world.working() as load:
        for down_ms, up_ms in ((300, 300), (700, 200), (1200, 400), (500, 100)) * 2:
            cut = world.isolate(old)
            world.settles(lambda c=cut, ms=down_ms: now_ns() - c.end_ns > ms * MS, "down")  # type: ignore[misc]  # bound now
            up = world.heal()
            world.settles(lambda u=up, ms=up_ms: now_ns() - u.end_ns > ms * MS, "up")  # type: ignore[misc]  # bound now
        world.wait_whole()
        world.goes_on(load, now_ns())
    world.check(load)


def test_a_lossy_network_loses_nothing(net: NetWorld) -> None:
    """One packet in ten, in every direction. Whoever is primary, and however often that changes."""
    world = net
    with world.working() as load:
        names = [node.name for node in world.nodes]
        begun = world.network.lose(100, [link for one in names for link in between([one], set(names) - {one})])
        world.settles(lambda: now_ns() - begun.end_ns > 10 * SECOND, "ten seconds")
        world.heal()
        world.wait_whole()
        world.goes_on(load, now_ns())
    world.check(load)


def test_nobody_writes_while_all_three_are_apart(net: NetWorld) -> None:
    world, old = net, net.wait_writable()
    with world.working() as load:
        timeline = world.timeline(load)
        a, b, c = (node.name for node in world.nodes)
        cut = world.cut(both(a, b) + both(b, c) + both(a, c))
        world.settles(lambda: now_ns() - cut.end_ns > 5 * SECOND, "five seconds: several elections")
        healed = world.heal()
        world.moves_on(load, timeline)
        world.wait_whole()
    told = [s for s in load.sampler.accepted(quorum=True) if s.begin_ns > cut.end_ns and s.end_ns < healed.begin_ns]
    assert not told
    ends_within_the_lease(world, load, old, timeline, cut)
    world.check(load)


@pytest.mark.timeout(400)
def test_five_nodes_the_primary_in_the_minority_and_out_of_sight_of_clients(make_net: Callable[..., NetWorld]) -> None:
    world = make_net(nodes=5)
    old = world.begin()
    with world.working() as load:
        timeline = world.timeline(load)
        cut = world.isolate(old, world.others(old)[0], client=True)
        world.moves_on(load, timeline)
        world.heal()
        world.wait_whole()
        world.goes_on(load, now_ns())
    ends_within_the_lease(world, load, old, timeline, cut)
    world.check(load)
