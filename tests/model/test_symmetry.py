"""States that differ in the names of nodes only are one: nothing is lost by that."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import permutations

import pytest

from consensus.cluster import ClusterState, Grant, Seat, SyncGroup
from consensus.membership import Member
from consensus.positions import NoPosition
from consensus.promotion import LAST_PRIMARY_GRACE_MS, Situation, TakeGrant, decide
from consensus.record import Position
from tests.model.explore import Label, Move, State, World, explore
from tests.model.leaseworld import LeaseSetup, LeaseWorld
from tests.model.livepromises import LivePromiseWorld
from tests.model.mutants.every import EVERY
from tests.model.promisevalues import Setup as Promises
from tests.model.raftlive import LiveRaftWorld
from tests.model.raftvalues import Bound, Setup
from tests.model.raftworld import RaftWorld

STATES_MAX = 400_000
DELAYED = Setup(Bound(2, delays=1))
LOST = Setup(Bound(3, changes=2, wipes=1), settled=True, steps=("readmit", "vote"))
JOINING = Setup(Bound(2, changes=2), extra=("d",), settled=True, steps=("learn", "vote"))


class Named:
    """A world whose nodes keep their names: every state is another one."""

    def __init__(self, world: World) -> None:
        self.world = world

    def start(self) -> State:
        return self.world.start()

    def successors(self, state: State) -> Iterable[Move]:
        return self.world.successors(state)

    def inspect(self, state: State) -> None:
        self.world.inspect(state)

    def canon(self, state: State) -> State:
        return state

    def tell(self, label: Label) -> str:
        return self.world.tell(label)


def reached(world: World) -> set[State]:
    """As `explore`, without its book-keeping; raises `ViolationError`."""
    first = world.canon(world.start())
    known, frontier = {first}, [first]
    while frontier:
        state = frontier.pop()
        world.inspect(state)
        for move in world.successors(state):
            to = world.canon(move.to)
            if to not in known:
                known.add(to)
                frontier.append(to)
    return known


WORLDS: dict[str, Callable[[], World]] = {
    "core": lambda: LiveRaftWorld(Setup(Bound(2))),
    "lost disk": lambda: LiveRaftWorld(Setup(Bound(2, changes=1, wipes=1), settled=True, steps=("readmit",))),
    "members": lambda: LiveRaftWorld(Setup(Bound(2, changes=1), settled=True, steps=("remove", "unvote"))),
    "lease": lambda: LeaseWorld(LeaseSetup(Bound(2), settled=True)),
    "promises": lambda: LivePromiseWorld(Promises(2, 2)),
}


@pytest.mark.parametrize("name", WORLDS)
def test_without_it_the_same_states_are_found(name: str) -> None:
    world = WORLDS[name]()
    every = reached(Named(world))
    few = reached(world)
    assert {world.canon(state) for state in every} == few
    assert len(few) < len(every)


def test_without_it_there_are_as_many_states_as_there_are_names() -> None:
    """At the beginning all three are the same, so whatever is reached is reached under all names."""
    world = RaftWorld(Setup(Bound(2)))
    orders = [world.orders(order) for order in permutations(range(3))]
    assert reached(Named(world)) == {world.reordered(state, order) for state in reached(world) for order in orders}


RULES = ["one vote in a term", "a restarted node knows its term", "a restarted voter waits E", "a promise is on disk"]


@pytest.mark.parametrize("rule", RULES)
def test_a_mutant_dies_with_it_and_without(rule: str) -> None:
    mutant = next(one for one in EVERY if one.rule == rule)
    assert mutant.start is None
    with mutant.in_force():
        few = explore(mutant.world(), states_max=STATES_MAX)
        every = explore(Named(mutant.world()), states_max=STATES_MAX)
    assert few.violation.startswith(mutant.dies_of)
    assert every.violation.startswith(mutant.dies_of)
    assert (few.depth, len(few.story)) == (every.depth, len(every.story))
    assert few.states < every.states


@pytest.mark.parametrize("setup", [DELAYED, LOST, JOINING], ids=str)
def test_wherever_a_walk_leads(setup: Setup) -> None:
    """Called otherwise, a state has the same mirror image, and as many steps."""
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


def test_names_do_not_decide_who_may_take_the_grant() -> None:
    """What makes it sound to sort the hosts of `PromiseWorld`: the decision looks at names only to tell them apart, and
    to know who was the last primary (which goes with the host there)."""
    chance = random.Random(5)
    names = ("a", "b", "c", "d", "e")
    members = tuple(Member(name, 1, "", "", "") for name in names)
    state = ClusterState(
        "00", members, group=SyncGroup(tuple(Seat(n, 1) for n in names), 3), founder="a", system_identifier="1",
    )  # fmt: skip
    taken = 0
    for _ in range(300):
        answers = [
            chance.choice((None, NoPosition(""), Position(1, chance.randrange(1, 3)), Position(2, 3))) for _ in names
        ]
        decisions = set()
        for order in chance.sample(list(permutations(names)), 12):
            promises = {name: p for name, p in zip(order, answers, strict=True) if p is not None}
            called = replace(state, grants=(Grant(1, order[2], Position(0, 0), 2, opened=True),))
            situation = Situation(order[0], 3, called, promises, frozenset(promises), LAST_PRIMARY_GRACE_MS)
            decisions.add(isinstance(decide(situation), TakeGrant))
        assert len(decisions) == 1
        taken += decisions == {True}
    assert 0 < taken < 300
