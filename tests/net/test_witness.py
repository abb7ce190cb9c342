"""Interleaving 10: two data nodes and a witness, every order of losing two of the three."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND
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
