"""Interleaving 13: a node has voted, promised or taken a grant into its log, and its power is cut in that moment.

What it has said it must still know: then it meets the other side, which would be glad of another answer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode
from tests.cluster.test_quorum_promises import mutate
from tests.net.mutants import FORGETS
from tests.net.network import between
from tests.net.sampler import shared_timelines
from tests.net.world import NetWorld, Workload

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

MOMENTS = ("vote", "promise", "grant")


def leads_after(node: LocalNode, term: int) -> bool:
    seen = node.status()
    return seen is not None and seen.term > term and seen.leader == node.name


def promised_after(world: NetWorld, node: LocalNode, term: int) -> bool:
    return any(event["fields"]["term"] > term for event in world.logged(node, "promise.given"))


def writes_after(load: Workload, node: LocalNode, timeline: int) -> bool:
    return any(sample.timeline > timeline for sample in load.sampler.accepted(node.name))


def answers_and_dies(world: NetWorld, load: Workload, moment: str) -> tuple[LocalNode, LocalNode, LocalNode]:
    """(deposed primary, its successor, who has helped it to that). The helper was cut off its power in that moment,
    and the two others are alone."""
    old, timeline = world.wait_writable(), world.timeline(load)
    seen = old.status()
    assert seen is not None
    pair, term = world.others(old), seen.term
    world.isolate(old)

    def happened() -> list[LocalNode]:
        """Who has won by it."""
        winners = [node for node in pair if leads_after(node, term)]
        if not winners or moment == "vote":
            return winners
        (helper,) = [node for node in pair if node is not winners[0]]
        if moment == "promise":
            return winners if promised_after(world, helper, term) else []
        return [node for node in pair if writes_after(load, node, timeline)]

    world.settles(lambda: bool(happened()), moment, world.describe)
    (winner,) = happened()
    (helper,) = [node for node in pair if node is not winner]
    world.power_cut(helper)
    world.isolate(winner)
    return old, winner, helper


def meets_the_other_side(world: NetWorld, old: LocalNode, helper: LocalNode) -> None:
    world.network.mend(between([old.name], [helper.name]))
    helper.start()


def test_who_has_answered_and_dies_never_answers_otherwise(net: NetWorld) -> None:
    world = net
    with world.working() as load:
        for moment in MOMENTS:
            old, winner, helper = answers_and_dies(world, load, moment)
            meets_the_other_side(world, old, helper)
            begun_ns = now_ns()
            world.settles(
                lambda b=begun_ns, w=winner: any(  # type: ignore[misc]  # bound now
                    s.begin_ns > b and s.node != w.name for s in load.sampler.accepted(quorum=True)
                ),
                f"they have a primary of their own after the {moment}",
                world.describe,
            )
            world.heal()
            world.wait_whole()
            world.goes_on(load, now_ns())
    world.check(load)


@pytest.mark.slow
def test_control_a_vote_that_is_forgotten_makes_two_primaries_of_one_term(make_net: Callable[..., NetWorld]) -> None:
    """Their grants are of one term, and so of one timeline."""
    world = make_net()
    for node in world.nodes:
        mutate(world, node, FORGETS.format(marker=str(forgets(world, node))))
    old = world.begin()
    with world.working() as load:
        timeline = world.timeline(load)
        for node in world.others(old):
            forgets(world, node).touch()
        _, winner, helper = answers_and_dies(world, load, "grant")
        forgets(world, helper).unlink()
        meets_the_other_side(world, old, helper)
        world.settles(
            lambda: any(s.timeline > timeline and s.node != winner.name for s in load.sampler.accepted()),
            "the others have a primary too",
            world.describe,
        )
        for node in (old, winner, helper):
            node.kill_all()
    assert shared_timelines(load.sampler.accepted())


def forgets(world: NetWorld, node: LocalNode) -> Path:
    """While this file is there, nothing that the node says is on its disk."""
    return world.home / f"forgets-{node.name}"
