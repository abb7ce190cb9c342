"""The shipped Raft core, exhaustively within a small bound; and what the tools that say so can be trusted with."""

from __future__ import annotations

import random

import pytest

from consensus.raft import Raft
from tests.model.explore import Outcome, State, explore
from tests.model.raftlive import LiveRaftWorld
from tests.model.raftworld import Bound, RaftWorld, Setup

STATES_MAX = 700_000
D = ("d",)

SHIPPED = [
    Setup(Bound(2, proposals=1, restarts=1)), Setup(Bound(2, delays=1)), Setup(Bound(2, releases=1)),
    Setup(Bound(2, compactions=1)),
    Setup(Bound(3, changes=2, wipes=1), settled=True, steps=("readmit", "vote")),
    Setup(Bound(2, changes=2), extra=D, settled=True, steps=("learn", "vote")),
    Setup(Bound(2, changes=2, restarts=1), settled=True, steps=("remove", "learn", "vote")),
]  # fmt: skip


def run(world: RaftWorld, start: State | None = None) -> Outcome:
    return explore(world, states_max=STATES_MAX, start=start)


@pytest.mark.parametrize("setup", SHIPPED, ids=str)
def test_shipped(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(LiveRaftWorld(setup))
    with capsys.disabled():
        print("\nRaft model:", outcome.report(str(setup)))
    assert not outcome.violation, outcome.report(str(setup))


@pytest.mark.parametrize("setup", [SHIPPED[1], SHIPPED[4], SHIPPED[5]], ids=str)
def test_states_that_differ_in_names_only_are_one(setup: Setup) -> None:
    """Wherever a walk leads: called otherwise, a state has the same mirror image, and as many steps."""
    world, chance = RaftWorld(setup), random.Random(7)
    orders = [world.orders((1, 0, *range(2, world.n))), world.orders((2, 0, 1, *range(3, world.n)))]
    for _ in range(40):
        state = world.start()
        for _ in range(chance.randrange(1, 9)):
            moves = list(world.successors(state))
            state = chance.choice(moves).to if moves else state
            there = {world.canon(move.to) for move in world.successors(state)}
            for order in orders:
                other = world.reordered(state, order)
                assert world.canon(other) == world.canon(state)
                assert {world.canon(move.to) for move in world.successors(other)} == there


class VotesForAnyLog(Raft):
    __slots__ = ()

    def _up_to_date(self, last_index: int, last_term: int) -> bool:
        return True


def test_a_counterexample_is_a_readable_story() -> None:
    outcome = run(RaftWorld(Setup(Bound(2)), VotesForAnyLog))
    text = outcome.report("T=2")
    assert text.startswith("VIOLATION within T=2: leader completeness")
    assert ": campaign" in text
    assert "AppendReq(term 1, after 0@0: [1@1], commit 0) arrives" in text
