"""Who becomes primary: the situations of safety.md, and that no choice can lose an acknowledged commit."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.cluster import Change, ClusterState, Grant, Seat, SyncGroup
from consensus.membership import LEARNER, VOTER, WITNESS, Member
from consensus.positions import NoPosition
from consensus.promotion import (
    ABSENT_GRACE_MS,
    GRACE_MS,
    LAST_PRIMARY_GRACE_MS,
    LOSS_GRACE_MS,
    SILENT_GRACE_MS,
    AskHook,
    Decision,
    Degrade,
    HandOver,
    Situation,
    TakeGrant,
    TurnBack,
    Wait,
    decide,
    quorum_promised,
    required,
)
from consensus.record import Position

ABC = ("a", "b", "c")
OPENED = Grant(3, "a", Position(0, 0), 2, (), opened=True)


def state(
    names: tuple[str, ...] = ABC, k: int = 2, grants: tuple[Grant, ...] = (OPENED,), mode: str = "quorum"
) -> ClusterState:
    members = tuple(Member(n, 1, "", "", "") for n in names)
    return ClusterState(
        "00", members, mode, group=SyncGroup(tuple(Seat(n, 1) for n in names), k, mode == "async"), founder="a",
        nonce="n", system_identifier="7", initial_timeline=1, grants=grants,
    )  # fmt: skip


def ask(
    promises: dict[str, tuple[int, int] | None], *, me: str = "b", waited: int = GRACE_MS, **more: Any
) -> Decision:
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
        case TurnBack() | Degrade() | AskHook():
            raise AssertionError("no change is open, none is wanted, and there is no hook")


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
    away = ask({}, state=ClusterState(founder="c"), connected=("a",))
    assert isinstance(away, Wait)
    assert away.reason.startswith("no primary: c, which was to create the cluster's data, is not connected")


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
        {"b": (epoch, lsn), "c": (epoch, lsn)}, last_known=Position(3, 110),
        state=replace(state(k=1, mode="async"), config='{"maximum_lag_on_failover":10}'),
    )  # fmt: skip
    assert isinstance(decision, TakeGrant) == promoted
    if not promoted:
        assert "maximum_lag_on_failover" in str(decision)


# -- seats, and a change under way


def changing(old: str, old_k: int, new: str, new_k: int, members: str = "abcd") -> ClusterState:
    group, other = (SyncGroup(tuple(Seat(n, 1) for n in names), k) for names, k in ((old, old_k), (new, new_k)))
    return replace(state(tuple(members)), group=group, change=Change(9, group, other))


def test_the_promise_of_another_incarnation_fills_no_seat() -> None:
    """c lost its disk: its new life may promise, but what the old one acknowledged is not with it."""
    reborn = replace(state(), members=tuple(Member(n, 2 if n == "c" else 1, "", "", "") for n in ABC))
    decision = ask({"b": (3, 50), "c": (3, 50)}, state=reborn)
    assert isinstance(decision, Wait)
    assert decision.missing == ("a", "c")
    assert "c has lost its state, its place waits for the copy it makes" in decision.reason
    assert isinstance(ask({"a": (3, 50), "b": (3, 50)}, state=reborn), TakeGrant)
    assert isinstance(ask({"a": (2, 50), "c": (3, 90)}, state=reborn, me="a"), Wait)


def test_the_place_of_one_that_is_no_member_is_filled_by_nobody() -> None:
    gone = replace(state(), members=tuple(Member(n, 1, "", "", "") for n in "ab"))
    decision = ask({"b": (3, 50), "c": (3, 60)}, state=gone)
    assert isinstance(decision, Wait)
    assert "c has lost its state" in decision.reason


def test_during_a_change_a_read_quorum_of_both_groups_is_needed() -> None:
    wide = changing("ab", 1, "abcd", 3)
    assert [q.needed for q in required(wide)] == [2, 2]
    assert isinstance(ask({"b": (3, 50), "c": (3, 50), "d": (3, 50)}, state=wide), Wait), "1 of the old group"
    assert isinstance(ask({"a": (3, 50), "b": (3, 50)}, state=wide), TakeGrant)
    narrow = changing("abcd", 3, "ab", 1)
    assert isinstance(ask({"b": (3, 50), "c": (3, 50), "d": (3, 50)}, state=narrow), Wait), "1 of the new one"


def test_during_a_change_the_winner_has_a_seat_in_the_group_to_come() -> None:
    """It is the one whose names it puts in force: a primary is always in S."""
    moved = changing("abc", 2, "abd", 2)
    promises: dict[str, tuple[int, int] | None] = {"b": (3, 50), "d": (3, 90)}
    assert isinstance(ask(promises, state=moved), Wait), "b is behind, and of abc only b has promised"
    assert ask({**promises, "c": (3, 80)}, state=moved) == HandOver(
        "d", "d holds epoch 3 up to 5A, 2 of 2 and 2 of 2 needed promises"
    )
    assert isinstance(ask({**promises, "b": (3, 90), "c": (3, 90)}, state=moved), TakeGrant)


def test_a_change_is_turned_back_if_only_one_that_leaves_can_win() -> None:
    """a is lost in the middle of abc -> ab: of those who are left only c has the newest commit (found by the model)."""
    shrinking = changing("abc", 2, "ab", 2, "abc")
    promises: dict[str, tuple[int, int] | None] = {"b": (3, 50), "c": (3, 90)}
    decision = ask(promises, state=shrinking, connected=("b", "c"))
    assert shrinking.change is not None
    assert decision == TurnBack(shrinking.change, "those who are up can do without the change, and not with it")
    early = ask(promises, state=shrinking, connected=("b", "c"), waited=GRACE_MS - 1)
    assert isinstance(early, Wait), "a may be heard of any moment: it is there, too"
    back = replace(shrinking, change=Change(10, shrinking.change.new, shrinking.change.old))
    assert isinstance(ask(promises, state=back, connected=("b", "c")), HandOver)


def test_a_change_is_turned_back_if_nobody_is_there_to_flush_for_the_new_group() -> None:
    shrinking = changing("abc", 2, "ab", 2, "abc")
    promises: dict[str, tuple[int, int] | None] = {"b": (3, 90), "c": (3, 90)}
    assert isinstance(ask(promises, state=shrinking, connected=("b", "c")), TurnBack), "b would never open"
    assert isinstance(ask({**promises, "a": (3, 90)}, state=shrinking, connected=("a", "b", "c")), TakeGrant)
    growing = changing("ab", 2, "abc", 3, "abc")
    assert isinstance(ask({"a": (3, 90), "b": (3, 90)}, state=growing, connected=("a", "b")), TurnBack)
    nobody = changing("ab", 2, "cd", 2)
    assert isinstance(ask({"b": (3, 90), "d": (3, 90)}, state=nobody, connected=("b", "d")), Wait | HandOver)


# -- the last primary


def test_the_last_primary_makes_up_for_a_read_quorum() -> None:
    """Nothing was acknowledged without its flush. The others may have begun to be rewound to it, both at once."""
    alone: dict[str, tuple[int, int] | None] = {"a": (3, 50), "b": None, "c": None}
    decision = ask(alone, me="a", waited=LAST_PRIMARY_GRACE_MS - 1)
    assert isinstance(decision, Wait), "its data may be from a backup, and those who are still reading could tell"
    assert "waiting a while for b, c" in decision.reason
    assert isinstance(ask(alone, me="a", connected=("a",)), TakeGrant), "nobody else is there"
    decision = ask(alone, me="a", waited=LAST_PRIMARY_GRACE_MS)
    assert decision == TakeGrant(Position(3, 50), 3, "holds epoch 3 up to 32, a, the last primary, has promised")
    assert isinstance(ask({"a": (3, 50), "b": (3, 50)}), TakeGrant), "who has all that it has will do as well"
    assert ask({"a": (3, 50), "b": (3, 40)}) == HandOver("a", "a holds epoch 3 up to 32, 2 of 2 needed promises")


@pytest.mark.parametrize(
    ("promises", "more"),
    [
        ({"a": (2, 50)}, {}),  # promoted, and it has lost every byte of that epoch: nobody knows what else
        ({"a": None}, {}),
        ({"b": (3, 50)}, {}),  # it followed that primary
        ({"a": (3, 50)}, {"grants": (OPENED, Grant(4, "b", Position(3, 1), 3))}),  # b may have accepted commits
        ({"a": (3, 50)}, {"members": tuple(Member(n, 2 if n == "a" else 1, "", "", "") for n in ABC)}),  # another life
    ],
)  # fmt: skip
def test_nobody_else_does(promises: dict[str, tuple[int, int] | None], more: dict[str, Any]) -> None:
    assert isinstance(ask(promises, me="a", state=replace(state(), **more)), Wait)


def test_the_last_primary_is_named_where_its_word_alone_would_do() -> None:
    both = ask({"b": None, "c": None})
    assert isinstance(both, Wait)
    assert "a has not answered (the last primary: its promise alone would do)" in both.reason
    one = ask({"b": (3, 50)})
    assert isinstance(one, Wait)
    assert "alone would do" not in one.reason, "each of the others would do as well"


def test_asynchronous_mode_needs_nobody_but_the_last_primary_before_the_first_copy() -> None:
    """Its standbys had no data yet when it was lost: it comes back, and they are nodes without a position."""
    young = state(k=1, mode="async")
    held: dict[str, tuple[int, int] | None] = {"a": (3, 50), "b": None, "c": None}
    assert isinstance(ask(held, me="a", state=young, waited=LAST_PRIMARY_GRACE_MS), TakeGrant)


def test_one_that_is_fenced_never_wins_and_its_promise_counts() -> None:
    kept_down = replace(state(), fenced=("c",))
    alike: dict[str, tuple[int, int] | None] = {"b": (3, 60), "c": (3, 60)}
    assert isinstance(ask(alike, me="a", state=state()), HandOver)
    assert ask(alike, me="a", state=kept_down) == HandOver("b", "b holds epoch 3 up to 3C, 2 of 2 needed promises")
    assert isinstance(ask({"b": (3, 50), "c": (3, 60)}, state=kept_down), Wait), "b may lack what c has"


def test_during_a_change_the_winner_is_ahead_of_a_read_quorum_of_both() -> None:
    moved = changing("abc", 2, "ab", 1)
    assert isinstance(ask({"a": (3, 60), "b": (3, 50)}, state=moved, me="b"), HandOver)
    wide = changing("ab", 2, "abcd", 3)
    ahead: dict[str, tuple[int, int] | None] = {"b": (3, 50), "c": (3, 90), "d": (3, 90)}
    assert ask(ahead, state=wide) == HandOver("d", "d holds epoch 3 up to 5A, 1 of 1 and 3 of 2 needed promises"), (
        "b holds all of the old group, two of abcd are ahead of it"
    )


def test_a_learner_or_a_witness_never_wins() -> None:
    for role in (LEARNER, WITNESS):
        members = tuple(Member(n, 1, "", "", "", role if n == "c" else VOTER) for n in ABC)
        assert isinstance(ask({"b": (3, 50), "c": (3, 90)}, state=replace(state(), members=members)), Wait)


def test_asynchronous_mode_counts_voters_and_a_witness_as_promised() -> None:
    members = (*(Member(n, 1, "", "", "") for n in ABC), Member("w", 1, "", "", "", WITNESS, WITNESS))
    mode = replace(state(k=1, mode="async"), members=members)
    assert [q.needed for q in required(mode)] == [2], "3 of 4 voters, one of which has nothing to promise"
    alone = replace(mode, members=(members[0], *(m._replace(role=WITNESS) for m in members[1:])))
    assert [q.needed for q in required(alone)] == [1], "somebody must have a position"
    assert [q.needed for q in required(replace(mode, members=members[:3]))] == [2]


def test_a_loss_that_is_accepted_waives_the_number_of_both_groups() -> None:
    moved = changing("abc", 2, "abd", 2)
    decision = ask({"b": (3, 50)}, state=moved, accept_data_loss=True, waited=LOSS_GRACE_MS)
    assert isinstance(decision, TakeGrant)
    one: dict[str, tuple[int, int] | None] = {"c": (3, 50)}
    decision = ask(one, state=moved, accept_data_loss=True, waited=LOSS_GRACE_MS)
    assert isinstance(decision, TurnBack), "c has no seat of the new one, and nobody of it will ever promise"


positions_ = st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 4)))


@given(st.integers(1, 5), st.data())
def test_a_winner_holds_whatever_k_of_s_could_have_acknowledged(n: int, data: st.DataObject) -> None:
    names = tuple("abcde"[:n])
    k = data.draw(st.integers(1, n))
    last = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    # Nobody has WAL of the newest grant but what its primary (a, of grant 3) has flushed.
    below = st.tuples(st.integers(1, 3), st.integers(1, 4)).filter(lambda p: p[0] < OPENED.term or p <= last)
    truth = {name: last if name == OPENED.node else data.draw(below) for name in names}
    promised = data.draw(st.sets(st.sampled_from(names)))
    mode = state(names, k)
    decision = ask(
        {m: truth[m] for m in promised},
        me=names[0],
        state=mode,
        connected=names,
        waited=LAST_PRIMARY_GRACE_MS,
        preferred=data.draw(st.sampled_from(names)),
    )
    known = {m: Position(*truth[m]) for m in promised}
    situation = Situation(names[0], 9, mode, known, frozenset(names), 0)
    enough = len(promised) >= n - k + 1 or ("a" in promised and last[0] == OPENED.term)
    assert quorum_promised(situation) == enough
    if isinstance(decision, Wait):
        assert not enough, "a read quorum always has a winner"
        return
    winner = decision.to if isinstance(decision, HandOver) else names[0]
    assert winner in promised
    # A commit at some position is acknowledged if k nodes have reached it: the winner must have reached it too.
    for holders in combinations(names, k):
        assert truth[winner] >= min(truth[m] for m in holders)


# -- settings that change while it runs


def test_while_commits_become_asynchronous_a_majority_of_promises_will_do() -> None:
    """Those acknowledged before are in a read quorum of the old group; those after may be lost, as was asked for."""
    old, new = state().group, state(k=1, mode="async").group
    for change in (Change(9, old, new), Change(9, new, old)):
        now = replace(state(), change=change)
        assert [q.needed for q in required(now)] == [2, 2]
        assert isinstance(ask({"b": (3, 50), "c": (3, 50)}, state=now), TakeGrant)
        assert isinstance(ask({"b": (3, 50)}, state=now), Wait)
    alone = SyncGroup(new.members, 1)
    assert [q.needed for q in required(replace(state(), change=Change(9, old, alone)))] == [2, 3]


def test_an_asynchronous_group_of_one_needs_no_more_promises_than_it_has_seats() -> None:
    """It was degraded to the primary, which was granted and failed before it wrote anything."""
    grants = (OPENED, Grant(5, "b", Position(3, 50), 3))
    now = replace(state(mode="async", grants=grants), group=SyncGroup((Seat("b", 1),), 1, True))
    assert isinstance(ask({"b": (3, 50)}, state=now), TakeGrant)


LOOSE = replace(state(("a", "b"), 2), config='{"strict":false}')
"""Two with a Postgres; the witness that makes the majority has no part here."""


def test_strict_stays_closed_and_not_strict_shrinks_the_group_first() -> None:
    alone: dict[str, tuple[int, int] | None] = {"b": (3, 50)}
    assert isinstance(ask(alone, state=replace(LOOSE, config="{}"), waited=99_000, connected="b"), TakeGrant)
    soon = ask(alone, state=LOOSE, waited=ABSENT_GRACE_MS - 1, connected="b")
    assert isinstance(soon, Wait)
    assert "only b of a, b can flush commits" in soon.reason
    found = ask(alone, state=LOOSE, waited=ABSENT_GRACE_MS, connected="b")
    assert isinstance(found, Degrade)
    assert found.new == SyncGroup((Seat("b", 1),), 1)
    assert found.reason == "is degraded: only b of a, b can flush commits, and the cluster is not strict"


def test_one_that_is_there_and_has_no_position_yet_is_waited_for_longer() -> None:
    answers: dict[str, tuple[int, int] | None] = {"a": None, "b": (3, 50)}
    assert isinstance(ask(answers, state=LOOSE, waited=SILENT_GRACE_MS - 1, connected="ab"), Wait)
    assert isinstance(ask(answers, state=LOOSE, waited=SILENT_GRACE_MS, connected="ab"), Degrade)


def test_the_group_does_not_shrink_for_nothing() -> None:
    both: dict[str, tuple[int, int] | None] = {"a": (3, 50), "b": (3, 50)}
    assert isinstance(ask(both, state=LOOSE, waited=99_000, connected="ab"), TakeGrant), "enough are there"
    under_way = replace(LOOSE, change=Change(9, LOOSE.group, SyncGroup((Seat("b", 1),), 1)))
    assert isinstance(ask({"b": (3, 50)}, state=under_way, waited=99_000, connected="b"), TakeGrant), "one at a time"
    founded = replace(LOOSE, grants=(), founder="b")
    assert isinstance(ask({"b": (3, 50)}, state=founded, waited=99_000, connected="b"), TakeGrant), "never opened"


def test_it_shrinks_to_those_who_fill_their_seat_and_to_a_majority_of_them() -> None:
    five = replace(state(tuple("abcde"), 4), config='{"strict":false}')
    there: dict[str, tuple[int, int] | None] = {"b": (3, 50), "c": (3, 50), "d": (3, 50)}
    found = ask(there, state=five, waited=99_000, connected="bcd")
    assert isinstance(found, Degrade)
    assert found.new == SyncGroup((Seat("b", 1), Seat("c", 1), Seat("d", 1)), 2)
    lost = replace(five, group=five.group._replace(members=tuple(Seat(n, 2 if n == "d" else 1) for n in "abcde")))
    found = ask(there, state=lost, waited=99_000, connected="bcd")
    assert isinstance(found, Degrade)
    assert found.new.names == ("b", "c"), "d has another life"
