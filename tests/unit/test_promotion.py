"""Who becomes primary: the situations of safety.md, and that no choice can lose an acknowledged commit."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.cluster import ClusterState, Grant, Seat, SyncGroup
from consensus.membership import Member
from consensus.positions import NoPosition
from consensus.promotion import GRACE_MS, LOSS_GRACE_MS, HandOver, Situation, TakeGrant, Wait, decide, quorum_promised
from consensus.record import Position

ABC = ("a", "b", "c")
OPENED = Grant(3, "a", Position(0, 0), 2, (), opened=True)


def state(
    names: tuple[str, ...] = ABC, k: int = 2, grants: tuple[Grant, ...] = (OPENED,), mode: str = "quorum"
) -> ClusterState:
    members = tuple(Member(n, 1, "", "", "") for n in names)
    return ClusterState(
        "00", members, mode, group=SyncGroup(tuple(Seat(n, 1) for n in names), k), founder="a", nonce="n", system_identifier="7", initial_timeline=1, grants=grants  # noqa: E501
    )  # fmt: skip


def ask(
    promises: dict[str, tuple[int, int] | None], *, me: str = "b", waited: int = GRACE_MS, **more: Any
) -> TakeGrant | HandOver | Wait:
    known = {n: Position(*p) if p else NoPosition("down") for n, p in promises.items()}
    wish = {"wish_to": more.pop("preferred", ""), "wish_loss": more.pop("accept_data_loss", False)}
    wished = replace(more.pop("state", state()), **wish)
    situation = Situation(me, 9, wished, known, frozenset(more.pop("connected", ABC)), waited, **more)
    return decide(situation)


@pytest.mark.parametrize(
    ("promises", "winner"),
    [
        ({"b": (3, 50), "c": (3, 50)}, "b"),  # a tie goes to the leader
        ({"b": (3, 50), "c": (3, 60)}, "c"),
        ({"a": (2, 999), "b": (3, 50)}, "b"),  # 5: a higher LSN of an older epoch
        ({"b": (3, 50)}, None),  # 9: the only second copy is down
        ({"b": (3, 50), "c": None}, None),  # 9: no position until it is through
        ({"a": (3, 70), "b": (3, 50), "c": (3, 60)}, "a"),
        ({}, None),
    ],
)
def test_situations(promises: dict[str, tuple[int, int] | None], winner: str | None) -> None:
    match ask(promises):
        case TakeGrant():
            assert winner == "b"
        case HandOver(to):
            assert winner == to
        case Wait(reason):
            assert winner is None, reason


def test_a_wait_names_whose_promise_is_missing() -> None:
    decision = ask({"b": (3, 50), "c": None})
    assert isinstance(decision, Wait)
    assert decision.missing == ("a", "c")
    assert "c has no position (down)" in decision.reason
    assert "a has not answered" in decision.reason
    assert "1 more of these is needed" in decision.reason


def test_the_rest_gets_a_moment_if_it_is_connected() -> None:
    two: dict[str, tuple[int, int] | None] = {"b": (3, 50), "c": (3, 50)}
    assert isinstance(ask(two, waited=GRACE_MS - 1), Wait)
    assert isinstance(ask(two, waited=GRACE_MS - 1, connected=("b", "c")), TakeGrant)
    assert isinstance(ask(two, waited=GRACE_MS), TakeGrant)


def test_before_the_first_opening_only_the_founder_counts() -> None:
    young = state(grants=(OPENED._replace(opened=False),))
    assert isinstance(ask({"b": (3, 50), "c": (3, 50)}, state=young), Wait)
    assert ask({"a": (3, 10), "b": (3, 50)}, state=young) == HandOver(
        "a", "a holds epoch 3 up to A, 1 of 1 needed promises"
    )


def test_nothing_before_there_is_data() -> None:
    empty = ClusterState(founder="a")
    assert ask({}, state=empty) == Wait("a is creating the cluster")


def test_a_grant_gets_a_fresh_timeline_and_the_upper_bound() -> None:
    burned = state(grants=(OPENED, Grant(5, "c", Position(3, 1), 7, failed="x")))
    decision = ask({"b": (3, 60), "c": (3, 50)}, state=burned)
    assert isinstance(decision, TakeGrant)
    assert (decision.timeline, decision.upper) == (8, Position(3, 60))


def test_a_node_that_failed_waits_for_the_others_but_is_better_than_none() -> None:
    failed = state(grants=(OPENED, Grant(5, "b", Position(3, 1), 3, failed="x")))
    assert isinstance(ask({"b": (3, 50), "c": (3, 50)}, state=failed), HandOver)
    assert isinstance(ask({"b": (3, 60), "c": (3, 50)}, state=failed), TakeGrant)
    again = state(grants=(*failed.grants, Grant(7, "c", Position(3, 1), 4, opened=True)))
    assert isinstance(ask({"b": (3, 50), "c": (3, 50)}, state=again), TakeGrant)


def test_a_switchover_target_wins_only_if_it_holds_every_commit() -> None:
    assert ask({"a": (3, 60), "b": (3, 60), "c": (3, 60)}, preferred="c") == HandOver(
        "c", "c holds epoch 3 up to 3C, 3 of 2 needed promises"
    )
    assert isinstance(ask({"a": (3, 60), "b": (3, 60), "c": (3, 50)}, preferred="c"), TakeGrant)


def test_data_loss_is_accepted_only_in_so_many_words() -> None:
    assert isinstance(ask({"b": (3, 50), "c": None}), Wait)
    early = ask({"b": (3, 50), "c": None}, accept_data_loss=True)
    assert isinstance(early, Wait), "c may hold more, and is still reading"
    decision = ask({"b": (3, 50), "c": None}, accept_data_loss=True, waited=LOSS_GRACE_MS)
    assert isinstance(decision, TakeGrant)
    assert "data loss was accepted" in decision.reason
    assert isinstance(ask({"c": None}, accept_data_loss=True), Wait), "somebody must have a position"


@pytest.mark.parametrize(("lsn", "epoch", "promoted"), [(100, 3, True), (50, 3, False), (200, 2, False)])
def test_asynchronous_mode_bounds_the_loss(lsn: int, epoch: int, promoted: bool) -> None:
    decision = ask(
        {"b": (epoch, lsn), "c": (epoch, lsn)}, state=state(k=1, mode="async"), last_known=Position(3, 110), maximum_lag_bytes=10  # noqa: E501
    )  # fmt: skip
    assert isinstance(decision, TakeGrant) == promoted
    if not promoted:
        assert "maximum_lag_on_failover" in str(decision)


positions_ = st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 4)))


@given(st.integers(1, 5), st.data())
def test_a_winner_holds_whatever_k_of_s_could_have_acknowledged(n: int, data: st.DataObject) -> None:
    names = tuple("abcde"[:n])
    k = data.draw(st.integers(1, n))
    truth = {name: data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4))) for name in names}
    promised = data.draw(st.sets(st.sampled_from(names)))
    mode = state(names, k)
    decision = ask(
        {m: truth[m] for m in promised},
        me=names[0],
        state=mode,
        connected=names,
        preferred=data.draw(st.sampled_from(names)),
    )
    known = {m: Position(*truth[m]) for m in promised}
    situation = Situation(names[0], 9, mode, known, frozenset(names), 0)
    assert quorum_promised(situation) == (len(promised) >= n - k + 1)
    if isinstance(decision, Wait):
        assert len(promised) < n - k + 1, "a read quorum always has a winner"
        return
    winner = decision.to if isinstance(decision, HandOver) else names[0]
    assert winner in promised
    # A commit at some position is acknowledged if k nodes have reached it: the winner must have reached it too.
    for holders in combinations(names, k):
        assert truth[winner] >= min(truth[m] for m in holders)
