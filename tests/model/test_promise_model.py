"""The layer above Raft, exhaustively within a small bound: every acknowledged WAL is in every later primary."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from consensus.cluster import ClusterState, Grant, Seat, SyncGroup
from consensus.membership import Member
from consensus.positions import NoPosition
from consensus.promotion import GRACE_MS, Situation, TakeGrant, decide
from consensus.record import Position
from tests.model.explore import explore
from tests.model.groupworld import GroupWorld
from tests.model.mutants.upper import group
from tests.model.promiseworld import PromiseWorld, Setup

STATES_MAX = 400_000
SHIPPED: list[tuple[type[PromiseWorld], Setup]] = [
    (PromiseWorld, Setup(3, 2)), (PromiseWorld, Setup(2, 3, 1, reads=True)),
    (GroupWorld, Setup(2, 2, changes=1, targets=(group("ab", 2),))),
    (GroupWorld, Setup(2, 2, seated=2, changes=1, targets=(group("abc", 2),))),
]  # fmt: skip


@pytest.mark.parametrize(("world", "setup"), SHIPPED, ids=lambda v: str(v) if isinstance(v, Setup) else v.__name__)
def test_acknowledged_wal_is_in_every_later_primary(
    world: type[PromiseWorld], setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = explore(world(setup), states_max=STATES_MAX)
    with capsys.disabled():
        print("\npromise model:", outcome.report(str(setup)))
    assert not outcome.violation, outcome.report(str(setup))


def test_names_do_not_decide_who_may_take_the_grant() -> None:
    """What makes it sound to sort the hosts of `PromiseWorld`: the decision looks at names only to tell them apart."""
    chance = random.Random(5)
    names = ("a", "b", "c", "d", "e")
    members = tuple(Member(name, 1, "", "", "") for name in names)
    state = ClusterState(
        "00", members, group=SyncGroup(tuple(Seat(n, 1) for n in names), 3), founder="a", system_identifier="1",
        grants=(Grant(1, "a", Position(0, 0), 2, opened=True),),
    )  # fmt: skip
    taken = 0
    for _ in range(300):
        answers = [
            chance.choice((None, NoPosition(""), Position(1, chance.randrange(1, 3)), Position(2, 3))) for _ in names
        ]
        decisions = set()
        for order in chance.sample(list(permutations(names)), 12):
            promises = {name: p for name, p in zip(order, answers, strict=True) if p is not None}
            situation = Situation(order[0], 3, state, promises, frozenset(promises), GRACE_MS)
            decisions.add(isinstance(decide(situation), TakeGrant))
        assert len(decisions) == 1
        taken += decisions == {True}
    assert 0 < taken < 300
