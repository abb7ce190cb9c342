"""Interleavings 11, 14 and 15: each process of a node killed and frozen, power cuts, transfers that meet a death."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode
from tests.cluster.test_quorum_promises import mutate
from tests.net.mutants import HANDS_OVER_RUNNING
from tests.net.sampler import doubles
from tests.net.world import NetWorld, Workload, send

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

PROCESSES = ("raft", "watchdog", "parent", "postmaster")


def strike(world: NetWorld, load: Workload, node: LocalNode, role: str, number: signal.Signals) -> None:
    """The fault, two seconds of it, and back to a whole cluster with writers at work."""
    pid, begun_ns = node.pid_of(role), now_ns()
    send(pid, number)
    world.settles(lambda: now_ns() - begun_ns > 2 * SECOND, "two seconds: an election")
    if number is signal.SIGSTOP:
        send(pid, signal.SIGCONT)  # if it is still there: whoever hangs may have been replaced
    elif role == "parent":
        assert node.process is not None
        node.process.wait(10)
        world.settles(lambda: not node.pids(), "the rest of the node ends")
        node.start()
    world.wait_whole()
    world.goes_on(load, now_ns())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_each_process_of_a_primary_and_of_a_standby(net: NetWorld, number: signal.Signals) -> None:
    world = net
    with world.working() as load:
        for role in PROCESSES:
            strike(world, load, world.standbys()[0], role, number)
            strike(world, load, world.wait_writable(), role, number)
    world.check(load)


def test_power_cuts_of_one_of_two_and_of_all(net: NetWorld) -> None:
    world, rng = net, random.Random(11)
    with world.working() as load:
        for count in (1, 2, 3, 2, 3):
            primary = world.wait_writable()
            nodes = [primary, *rng.sample(world.others(primary), count - 1)]
            world.power_cut(*nodes)
            for node in rng.sample(nodes, count):
                node.start()
            world.wait_whole()
            world.goes_on(load, now_ns())
    world.check(load)


@pytest.mark.parametrize("victim", ["target", "old primary"])
def test_a_switchover_that_meets_a_death(net: NetWorld, victim: str) -> None:
    """At several moments: before, within and after the transfer."""
    world, asked = net, list[threading.Thread]()
    with world.working() as load:
        for after_ms in (0, 60, 120, 250, 400):
            old, target = world.wait_writable(), world.standbys()[0]
            begun = threading.Event()
            asking = threading.Thread(target=ask, args=(world, old, target, begun))
            before = hand_overs(world, old)
            asking.start()
            world.settles(lambda o=old, b=before: hand_overs(world, o) > b, "it begins", seconds=20)  # type: ignore[misc]  # bound now
            begun.set()
            begun_ns = now_ns()
            world.settles(lambda b=begun_ns, ms=after_ms: now_ns() - b >= ms * 1_000_000, "the moment")  # type: ignore[misc]  # bound now
            dies = target if victim == "target" else old
            dies.kill_all()
            dies.start()
            asked.append(asking)
            world.wait_whole()
            world.goes_on(load, now_ns())
    for asking in asked:  # whose node died is told so at the end of its patience
        asking.join(90)
    world.check(load)


@pytest.mark.slow
def test_control_a_lease_given_up_before_postgres_is_stopped_makes_two_writers(
    make_net: Callable[..., NetWorld],
) -> None:
    world = make_net()
    for node in world.nodes:
        mutate(world, node, HANDS_OVER_RUNNING)
    old = world.begin()
    with world.working() as load:
        target, begun = world.standbys()[0], threading.Event()
        asking = threading.Thread(target=ask, args=(world, old, target, begun))
        asking.start()
        world.settles(lambda: bool(doubles(load.sampler.accepted())), "two nodes accept writes", world.describe)
        begun.set()
        old.kill_all()
    asking.join(90)


def ask(world: NetWorld, old: LocalNode, target: LocalNode, begun: threading.Event) -> None:
    """Until it is taken: one that has just begun to stream may not be known to (75, try again)."""
    while world.pgr("switchover", "--to", target.name, node=old).returncode == 75 and not begun.is_set():
        pass


def hand_overs(world: NetWorld, node: LocalNode) -> int:
    """How often it has begun one."""
    return sum(event["fields"].get("rule") == "hand-over" for event in world.logged(node, "plan"))


def test_a_majority_is_frozen_and_thawed_in_turn(make_net: Callable[..., NetWorld]) -> None:
    world = make_net()
    world.begin()
    with world.working() as load:
        for order in ((0, 1), (1, 0)):
            primary = world.wait_writable()
            two = [primary, world.others(primary)[0]]
            for node in two:
                world.freeze(node)
            frozen_ns = now_ns()
            world.settles(lambda f=frozen_ns: now_ns() - f > 2 * SECOND, "two seconds")  # type: ignore[misc]  # bound now
            for index in order:
                world.thaw(two[index])
            world.wait_whole()
            world.goes_on(load, now_ns())
    world.check(load, promised_only=True)
