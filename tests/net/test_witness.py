"""Interleaving 10: two data nodes and a witness, every order of losing two of the three."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND
from tests.cluster.test_quorum_promises import mutate
from tests.net.mutants import COMMITS_WAIT_FOR_NOBODY
from tests.net.world import NetWorld

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]


def test_every_order_of_losing_two_of_two_data_nodes_and_a_witness(make_net: Callable[..., NetWorld]) -> None:
    """Both data nodes have to have every commit: whoever comes back alone, with the witness, can be promoted."""
    world = make_net()
    world["c"].flags["witness"] = ""
    world.begin()
    with world.working() as load:
        for first, second in itertools.permutations(world.nodes, 2):
            world.power_cut(first)
            lost_ns = now_ns()
            world.settles(lambda since=lost_ns: now_ns() - since > 2 * SECOND, "two seconds: an election")  # type: ignore[misc]  # bound now
            world.power_cut(second)
            second.start()
            back_ns = now_ns()
            world.settles(lambda since=back_ns: now_ns() - since > 2 * SECOND, "two seconds: an election")  # type: ignore[misc]  # bound now
            first.start()
            world.wait_whole()
            world.goes_on(load, now_ns())
    world.check(load)


@pytest.mark.slow
def test_control_where_commits_wait_for_nobody_the_witness_helps_to_lose_them(
    make_net: Callable[..., NetWorld],
) -> None:
    world = make_net()
    world["c"].flags["witness"] = ""
    for node in world.nodes:
        mutate(world, node, COMMITS_WAIT_FOR_NOBODY)
    old = world.begin()
    with world.working() as load:
        (standby,) = [node for node in world.data_nodes if node is not old]
        alone_ns = world.power_cut(standby)
        world.settles(lambda: load.acked_since(alone_ns) > 100, "acknowledged though nobody else has it")
        world.power_cut(old)
        standby.start()
        world.settles(lambda: world.primary() is standby, "it is promoted", world.describe)
    assert world.tally(load).lost
