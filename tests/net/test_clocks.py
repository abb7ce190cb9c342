"""Interleaving 18: clocks jump, by an hour or a little, on any node; machines whose time stood still.

Every rule goes by CLOCK_BOOTTIME. That CLOCK_REALTIME moves against it may mean that the machine was paused and that
CLOCK_BOOTTIME has not counted it: so a primary fences first. On any other node it means nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from fencing.clock import now_ns
from fencing.lease import MS
from supervisor.localcluster import SECOND, LocalNode
from tests.net import clocks
from tests.net.clocks import Clocks
from tests.net.test_partition import ends_within_the_lease
from tests.net.world import NetWorld, Workload, send

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

HOUR_S = 3600
SMALL_S = 0.2
"""Less than F: nothing that matters can have happened in a pause so short."""
LONGER_NS = 4 * SECOND
"""Than any time limit of replication (settings.py): they go by the clock that jumps."""
IGNORES_JUMPS = """
import fencing.deadman as deadman

def step(state, event, now_ns, shipped=deadman.step):
    return (state, ()) if isinstance(event, deadman.ClockJumped) else shipped(state, event, now_ns)

deadman.step = step
"""

Clocked = Callable[..., tuple[NetWorld, Clocks]]


@pytest.fixture
def make_clocked(make_net: Callable[..., NetWorld]) -> Iterator[Clocked]:
    """``make_clocked(patch="")``: three nodes, writable, whose clocks can be changed."""
    if why := clocks.missing():
        pytest.skip(why)
    made: list[Clocks] = []

    def make(patch: str = "") -> tuple[NetWorld, Clocks]:
        world = make_net()
        made.append(Clocks(world, patch))
        world.begin()
        return world, made[-1]

    yield make
    for each in made:
        for node in each.world.nodes:
            if node.process is not None:
                node.kill_all()
        each.close()


def kill_bound_ns(world: NetWorld) -> int:
    return next(seen.timings.kill_bound_ms for node in world.nodes if (seen := node.status())) * MS


def fenced_for_jumps(world: NetWorld, node: LocalNode) -> int:
    said = [event["reason"] for event in world.logged(node, "watchdog.killed") if "reason" in event]
    return sum("clocks of this machine jumped" in reason for reason in said)


def works_on(world: NetWorld, load: Workload) -> None:
    jumped_ns = now_ns()
    world.settles(lambda: now_ns() - jumped_ns > LONGER_NS, "longer than the time limits of replication")
    world.goes_on(load, now_ns())


def stays(world: NetWorld, load: Workload, primary: LocalNode, timeline: int) -> None:
    assert not [failure for writer in load.writers for failure in writer.failures], "not one failed write"
    assert (world.wait_writable(), world.timeline(load)) == (primary, timeline), "nor another primary"
    assert not any(fenced_for_jumps(world, node) for node in world.nodes)


def test_jumps_of_the_standbys_cost_no_write(make_clocked: Clocked) -> None:
    """By an hour, forwards, backwards, to and fro; the kernel tells of each."""
    world, times = make_clocked()
    primary = world.wait_writable()
    left, right = world.others(primary)
    with world.working() as load:
        timeline = world.timeline(load)
        for one_s, other_s in ((HOUR_S, -HOUR_S), (-HOUR_S, -300), (300, HOUR_S), (0, 0)):
            times.jump(left, one_s)
            times.jump(right, other_s)
            works_on(world, load)
        world.wait_whole()
        stays(world, load, primary, timeline)
    world.check(load)


def test_a_small_step_of_the_primary_costs_no_write(make_clocked: Clocked) -> None:
    world, times = make_clocked()
    primary = world.wait_writable()
    with world.working() as load:
        timeline = world.timeline(load)
        for offset_s in (SMALL_S, 0, -SMALL_S):
            times.jump(primary, offset_s)
            works_on(world, load)
        stays(world, load, primary, timeline)
    world.check(load)


def test_nothing_but_the_watchdog_looks_at_a_clock_that_jumps(make_clocked: Clocked) -> None:
    """The primary's goes to and fro by an hour and nobody is told: no lease, no election and no time limit goes by it
    but those of Postgres, which connects anew."""
    world, times = make_clocked()
    primary = world.wait_writable()
    with world.working() as load:
        timeline = world.timeline(load)
        for offset_s in (HOUR_S, -HOUR_S, 0):
            times.set(primary, offset_s)
            works_on(world, load)
        world.wait_whole()
        stays(world, load, primary, timeline)
    world.check(load)


def test_a_primary_whose_clock_jumps_is_fenced_first(make_clocked: Clocked) -> None:
    world, times = make_clocked()
    with world.working() as load:
        for offset_s in (HOUR_S, -HOUR_S, 300):
            old, timeline = world.wait_writable(), world.timeline(load)
            before = fenced_for_jumps(world, old)
            jump = times.jump(old, offset_s)
            world.moves_on(load, timeline)
            assert fenced_for_jumps(world, old) == before + 1
            last = load.sampler.last(old.name, timeline)
            print(f"last accepted write {(last.end_ns - jump.begin_ns) / MS:.0f} ms after the jump")
            assert last.begin_ns - jump.end_ns <= kill_bound_ns(world)
            world.wait_whole()
            world.goes_on(load, now_ns())
            times.jump(old, 0)
    world.check(load)


# --- a machine that was paused, and whose time stood still ------------------------------------------------------------


def paused_and_resumed(world: NetWorld, times: Clocks, load: Workload) -> tuple[LocalNode, int, int]:
    """The primary stood still until another one wrote, and its CLOCK_BOOTTIME with it: by that its lease goes on, and
    nobody reaches it to say otherwise. The node, its timeline and the instant it went on."""
    old, timeline = world.wait_writable(), world.timeline(load)
    pids = old.pids()  # looked up before: it is a matter of milliseconds
    world.isolate(old)
    for pid in pids:
        send(pid, signal.SIGSTOP)
    frozen_ns = now_ns()
    world.freeze(old)
    world.moves_on(load, timeline)
    pids = old.pids()
    thawed_ns = now_ns()
    times.set(old, boottime_s=-(thawed_ns - frozen_ns) / SECOND)
    for pid in pids:
        send(pid, signal.SIGCONT)
    times.tell(old)
    world.settles(lambda: now_ns() - thawed_ns > 3 * SECOND, "three seconds")
    return old, timeline, thawed_ns


def later(world: NetWorld, load: Workload, old: LocalNode, timeline: int, thawed_ns: int) -> int:
    """How many writes it accepted that were sent later than F after it went on."""
    since_ns = thawed_ns + kill_bound_ns(world)
    return sum(s.timeline == timeline and s.begin_ns > since_ns for s in load.sampler.accepted(old.name))


def test_a_machine_whose_time_stood_still_is_fenced_as_it_goes_on(make_clocked: Clocked) -> None:
    world, times = make_clocked()
    with world.working() as load:
        old, timeline, thawed_ns = paused_and_resumed(world, times, load)
        assert fenced_for_jumps(world, old) == 1
        assert not later(world, load, old, timeline, thawed_ns)
        world.heal()
        world.wait_whole()
        world.goes_on(load, now_ns())
    world.check(load, promised_only=True)


@pytest.mark.slow
def test_control_without_a_look_at_the_clocks_it_writes_until_its_lease_ends(make_clocked: Clocked) -> None:
    world, times = make_clocked(IGNORES_JUMPS)
    with world.working() as load:
        old, timeline, thawed_ns = paused_and_resumed(world, times, load)
        assert later(world, load, old, timeline, thawed_ns)
        world.heal()
        world.wait_whole()
    world.check(load, promised_only=True)


# --- clocks that have nothing in common -------------------------------------------------------------------------------


def test_nodes_whose_clocks_differ_by_days(make_net: Callable[..., NetWorld]) -> None:
    """CLOCK_BOOTTIME means nothing elsewhere: time namespaces, one 10 days ahead, one 1000."""
    if why := clocks.no_other_times():
        pytest.skip(why)
    world = make_net(inside={"b": clocks.other_times(10), "c": clocks.other_times(1000)})
    world.begin()
    with world.working() as load:
        for _ in world.nodes:
            old, timeline = world.wait_writable(), world.timeline(load)
            cut = world.isolate(old)
            world.moves_on(load, timeline)
            world.heal()
            world.wait_whole()
            world.goes_on(load, now_ns())
            ends_within_the_lease(world, load, old, timeline, cut)
    world.check(load)
