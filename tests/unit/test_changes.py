"""What the leader changes next: every row, every refusal; and that from anywhere it comes to rest as it is wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import changes
from consensus.changes import (
    DEGRADE_MS,
    PATIENCE_MS,
    Facts,
    Proposal,
    Refusal,
    admit,
    aim_at,
    at_rest,
    leaves,
    list_change,
    next_change,
    remove,
    settled,
    unblocks,
    wanted_seats,
)
from consensus.cluster import Change, ClusterState, Grant, Seat, SyncGroup, apply, canonical, seat_of, sync_group
from consensus.founding import Greeting
from consensus.membership import GONE, LEARNER, VOTER, WITNESS, Member, is_one_step, membership
from consensus.messages import Entry
from consensus.record import Position

OPEN = Grant(1, "a", Position(0, 0), 1, (), opened=True)


def member(name: str, role: str = VOTER, aim: str = "", life: int = 1) -> Member:
    postgres = "" if WITNESS in (role, aim) else f"{name}:2"
    return Member(name, life, f"{name}:1", postgres, f"{name}:3", role, aim or role)


def state(*members: Member, seats: str | None = None, mode: str = "quorum", grant: Grant = OPEN) -> ClusterState:
    """``seats``: names, of the first life; None: every voter's own."""
    if seats is None:
        group = sync_group((seat_of(m) for m in members if m.role == VOTER), mode)
    else:
        group = sync_group((Seat(n, 1) for n in seats), mode)
    return ClusterState("00", tuple(sorted(members)), mode, group=group, founder="a", nonce="n", grants=(grant,))


def open_change(old: str, new: str, **members: Member) -> ClusterState:
    """Both of the default size."""
    groups = (sync_group((Seat(n, 1) for n in names), "quorum") for names in (old, new))
    return replace(three(**members), change=Change(7, *groups))


def three(**changes: Member) -> ClusterState:
    return state(*({n: member(n) for n in "abc"} | changes).values(), seats="abc")


def facts(names: str = "abcde", *, copied: str | None = None, caught_up: str | None = None, waited: int = 0) -> Facts:
    """``names``: connected, and, if nothing else is said, caught up and with a proven copy."""
    return Facts(
        "a", frozenset(names), frozenset(names if caught_up is None else caught_up),
        frozenset(names if copied is None else copied), waited,
    )  # fmt: skip


def after(state: ClusterState, step: Proposal | Refusal | None, index: int = 9) -> ClusterState:
    assert isinstance(step, Proposal), step
    return apply(state, Entry(index, 1, step.kind, canonical(step.body)))


def done(state: ClusterState) -> ClusterState:
    """The parent has put the names of the new group in force."""
    assert state.change is not None
    return apply(state, Entry(10, 1, "done/1", canonical({"index": state.change.index, "node": "a"})))


def told(step: Proposal | None) -> str:
    """``kind node: text`` of the entry, as the history shows it; empty if there is none."""
    return "" if step is None else f"{step.body['kind']} {step.body['node']}: {step.body['text']}"


# -- the leader's next step, row by row


def test_a_cluster_at_rest_stays_as_it_is() -> None:
    assert at_rest(three())
    assert next_change(three(), facts()) is None
    with_all = state(*(member(n) for n in "abc"), member("d", LEARNER), member("w", WITNESS))
    assert at_rest(with_all)
    assert next_change(with_all, facts("abcdw")) is None


def test_copy_then_vote_then_seat() -> None:
    now = three(d=member("d", LEARNER, VOTER))
    assert not at_rest(now)
    assert next_change(now, facts("abcd", copied="abc")) is None, "no copy yet"
    assert next_change(now, facts("abcd", caught_up="abc")) is None, "it has not the whole log"
    step = next_change(now, facts("abcd"))
    assert told(step) == "voter d: is a voter now"
    now = after(now, step)
    assert not at_rest(now)
    step = next_change(now, facts("abcd"))
    assert told(step) == "sync group a: is changed: d joins"
    now = after(now, step)
    assert now.change is not None
    assert not at_rest(now)
    assert next_change(now, facts("abcd")) is None, "until the parent has put the names in force"
    now = done(now)
    assert now.group == sync_group((Seat(n, 1) for n in "abcd"), "quorum")
    assert at_rest(now)


def test_a_new_voter_whose_copy_is_lost_again_gets_no_seat() -> None:
    now = state(*(member(n) for n in "abcd"), seats="abc")
    assert next_change(now, facts("abcd", copied="abc")) is None
    assert not at_rest(now)


def test_a_witness_needs_the_log_but_no_copy_and_gets_no_seat() -> None:
    now = three(w=member("w", LEARNER, WITNESS))
    assert next_change(now, facts("abcw", copied="abc", caught_up="abc")) is None
    step = next_change(now, facts("abcw", copied="abc"))
    assert told(step) == "witness w: is a witness now"
    now = after(now, step)
    assert at_rest(now)
    assert next_change(now, facts("abcw", copied="abcw")) is None


def test_seat_then_vote_then_gone() -> None:
    now = three(c=member("c", aim=GONE))
    assert not at_rest(now)
    step = next_change(now, facts())
    assert told(step) == "sync group a: is changed: c leaves"
    now = after(now, step)
    assert next_change(now, facts()) is None, "one thing at a time"
    step = next_change(done(now), facts())
    assert told(step) == "removed c: is no member any more"
    now = after(done(now), step)
    assert ([m.name for m in now.members], now.removed) == (["a", "b"], (Seat("c", 1),))
    assert at_rest(now)


def test_seat_then_vote_of_one_that_is_to_be_a_learner() -> None:
    now = three(c=member("c", aim=LEARNER))
    step = next_change(now, facts())
    assert told(step) == "sync group a: is changed: c leaves"
    step = next_change(done(after(now, step)), facts())
    assert told(step) == "learner c: is a learner now"
    assert at_rest(after(done(after(now, next_change(now, facts()))), step))


def test_a_learner_and_a_witness_leave_at_once() -> None:
    for one in (member("d", LEARNER, GONE), member("d", WITNESS, GONE)):
        step = next_change(three(d=one), facts("abc"))
        assert told(step) == "removed d: is no member any more"


def test_nobody_leaves_or_loses_its_vote_while_it_has_a_seat() -> None:
    """Nor would its turn come: its seat is wanted back before."""
    for aim in (GONE, LEARNER):
        leaving = member("c", aim=aim)
        assert changes._next_of(three(c=leaving), facts(), leaving) is None
        assert changes._next_of(state(member("a"), member("b"), leaving, seats="ab"), facts(), leaving) is not None


def test_a_vote_is_not_given_up_while_the_rest_has_no_live_majority() -> None:
    """What was checked when it was asked for may have changed since."""
    for aim in (GONE, LEARNER):
        now = state(member("a"), member("b"), member("c", aim=aim), seats="ab")
        assert next_change(now, facts("ac")) is None
        assert next_change(now, facts("abc")) is not None


def test_replaced_only_once_the_successor_has_vote_and_seat() -> None:
    now = three(c=member("c", aim="gone:d"), d=member("d", LEARNER, VOTER))
    seen = []
    while not at_rest(now):
        step = next_change(now, facts("abcd"))
        seen.append(told(step))
        now = after(now, step)
        now = done(now) if now.change else now
    assert seen == [
        "voter d: is a voter now", "sync group a: is changed: d joins", "sync group a: is changed: c leaves",
        "removed c: is no member any more",
    ]  # fmt: skip
    assert now.group.names == ("a", "b", "d")


def test_a_group_that_could_not_acknowledge_is_not_begun() -> None:
    """b went away after the removal of c was asked for: with b and c commits go on, without c they would wait for b."""
    now = state(member("a"), member("b"), member("c", aim=GONE), member("v", WITNESS), member("w", WITNESS))
    assert next_change(now, facts("acvw")) is None
    assert next_change(now, facts("abcvw")) is not None


@pytest.mark.parametrize(
    ("successor", "seats", "gone"),
    [
        (None, "abc", False), (member("d", LEARNER, VOTER), "abc", False), (member("d"), "abc", False),
        (member("d"), "abcd", True), (member("d", WITNESS), "abc", True), (member("d", life=2), "abcd", False),
    ],
)  # fmt: skip
def test_when_a_replaced_member_leaves(successor: Member | None, seats: str, gone: bool) -> None:
    leaving = member("c", aim="gone:d")
    others = (successor,) if successor else ()
    now = state(member("a"), member("b"), leaving, *others, seats=seats)
    assert leaves(now, leaving) is gone
    assert leaves(now, member("a")) is False


def test_one_that_lost_its_state_keeps_its_place_until_its_copy_is_proven() -> None:
    """So S does not shrink by itself; and nobody fills the place meanwhile."""
    now = three(c=member("c", LEARNER, VOTER, life=2))
    assert wanted_seats(now, facts("abc", copied="ab")) == now.group
    assert next_change(now, facts("abc", copied="ab")) is None
    assert now.seated(now.group) == {"a", "b"}
    now = after(now, next_change(now, facts()))
    assert now.member("c") == member("c", life=2)
    assert next_change(now, facts("abc", copied="ab")) is None, "a voter, but its copy is lost again"
    step = next_change(now, facts())
    assert told(step) == "sync group a: is changed: c joins, c leaves"
    now = done(after(now, step))
    assert now.group == SyncGroup((Seat("a", 1), Seat("b", 1), Seat("c", 2)), 2)
    assert at_rest(now)


@pytest.mark.parametrize("aim", [LEARNER, GONE])
def test_the_place_of_one_that_lost_its_state_and_does_not_come_back_is_given_up(aim: str) -> None:
    now = three(c=member("c", LEARNER, aim, life=2))
    assert wanted_seats(now, facts()).names == ("a", "b")


def test_the_place_of_one_that_is_no_member_or_a_learner_is_given_up() -> None:
    assert wanted_seats(state(member("a"), member("b"), seats="abc"), facts()).names == ("a", "b")
    assert wanted_seats(three(c=member("c", LEARNER, VOTER)), facts()).names == ("a", "b")


def test_the_primary_keeps_its_seat_and_its_vote_whatever_its_aim() -> None:
    """safety.md: a primary is always in S. It may have become primary after its removal was asked for."""
    for aim in (GONE, LEARNER, "gone:b"):
        now = three(a=member("a", aim=aim))
        assert next_change(now, facts()) is None
        assert not at_rest(now), "it waits for the primary to move"
        assert next_change(now, replace(facts(), me="b")) is not None


def test_k_follows_the_mode() -> None:
    now = state(*(member(n) for n in "abc"), seats="ab", mode="async")
    step = next_change(now, facts())
    assert step is not None
    assert step.body["new"][1] == 1
    now = replace(three(), group=three().group._replace(k=3))
    assert told(next_change(now, facts())) == "sync group a: is changed: 2 acknowledge a commit"
    assert not at_rest(after(now, next_change(now, facts()))), "the seats are the same, and yet"


def test_k_and_the_mode_follow_the_settings() -> None:
    for config, text, k in (
        ('{"sync_acks":2}', "3 acknowledge a commit", 3),
        ('{"sync_acks":1}', "", 2),
        ('{"sync_acks":3}', "", 2),  # strict: more than there are is not begun
        ('{"strict":false,"sync_acks":3}', "3 acknowledge a commit", 3),
    ):
        step = next_change(replace(three(), config=config), facts())
        assert told(step) == (text and f"sync group a: is changed: {text}")
        assert step is None or step.body["new"][1:] == [k, False]
    step = next_change(replace(three(), commit_mode="async"), facts("a"))
    assert told(step) == "sync group a: is changed: commits wait for no standby any more"
    now = done(after(three(), step))
    assert (now.group.k, now.group.asynchronous, now.asynchronous) == (1, True, True)
    assert not at_rest(now), "what is in force is not what is wanted"
    assert at_rest(replace(now, commit_mode="async"))
    assert next_change(now, facts("a")) is None, "nobody else could acknowledge"
    assert told(next_change(now, facts("ab"))) == "sync group a: is changed: 2 acknowledge a commit"


LOOSE = replace(three(), config='{"strict":false}')


def test_not_strict_shrinks_the_group_after_a_while_and_grows_it_again() -> None:
    assert next_change(three(), replace(facts("a"), short_ms=99_000)) is None, "strict: writes wait"
    assert not at_rest(LOOSE), "it is watched"
    assert next_change(LOOSE, replace(facts("a"), short_ms=DEGRADE_MS - 1)) is None
    step = next_change(LOOSE, replace(facts("abc", copied="a"), short_ms=DEGRADE_MS))
    assert told(step) == "sync group a: is degraded: for 5 s only a of a, b, c streamed"
    now = after(LOOSE, step)
    assert now.groups == (LOOSE.group, SyncGroup((Seat("a", 1),), 1)), "until it is done an election respects both"
    now = done(now)
    assert not at_rest(now)
    assert next_change(now, replace(facts("a"), short_ms=DEGRADE_MS)) is None
    for back, k in (("ab", 2), ("abc", 2)):
        step = next_change(now, facts(back))
        assert told(step) == f"sync group a: is changed: {back[-1]} joins"
        now = done(after(now, step))
        assert (now.group.names, now.group.k) == (tuple(back), k)


def test_not_strict_with_enough_of_the_group_changes_nothing() -> None:
    assert next_change(LOOSE, replace(facts("ab"), short_ms=DEGRADE_MS)) is None, "the facts of a moment ago"
    under_way = replace(LOOSE, change=Change(7, LOOSE.group, SyncGroup((Seat("a", 1), Seat("b", 1)), 2)))
    assert next_change(under_way, replace(facts("a"), short_ms=DEGRADE_MS)) is None, "one change at a time"


def test_not_strict_wants_no_more_acknowledgements_than_there_are_nodes() -> None:
    alone = replace(LOOSE, config='{"strict":false,"sync_acks":2}', group=SyncGroup((Seat("a", 1),), 1))
    step = next_change(alone, facts("ab"))
    assert step is not None
    assert step.body["new"][1] == 2, "else it would stay alone until all three are there"
    assert told(next_change(replace(alone, config='{"sync_acks":2}'), facts("ab"))) == ""
    assert told(next_change(replace(alone, config='{"sync_acks":2}'), facts("abc"))) == (
        "sync group a: is changed: b joins, c joins"
    )


def test_nobody_leaves_that_the_number_of_acknowledgements_needs() -> None:
    now = replace(three(), group=three().group._replace(k=3), config='{"sync_acks":2}')
    found = remove(now, facts(), "c")
    assert isinstance(found, Refusal)
    assert found.code == 78
    assert "without it 2 are left, and 3 must" in found.reason


def test_what_can_not_be_done_yet_does_not_stop_what_can() -> None:
    now = state(member("a"), member("b"), member("c", aim=GONE), member("w", LEARNER, WITNESS))
    assert told(next_change(now, facts("acw"))) == "witness w: is a witness now"


# -- patience


def test_a_change_whose_new_seat_is_silent_for_too_long_is_reverted() -> None:
    now = state(*(member(n) for n in "abcd"), seats="abc")
    open_ = after(now, next_change(now, facts("abcd")))
    assert next_change(open_, facts("abc", waited=PATIENCE_MS - 1)) is None
    assert next_change(open_, facts("abcd", waited=PATIENCE_MS)) is None, "it is there, only slow"
    step = next_change(open_, facts("abc", waited=PATIENCE_MS))
    assert told(step) == "sync group a: is changed back: d not connected, 10 s after it began"
    back = after(open_, step, 11)
    assert back.change is not None
    assert open_.change is not None
    assert (back.change.old, back.change.new) == (open_.change.new, now.group)
    assert done(back).group == now.group
    assert next_change(done(back), facts("abc")) is None, "it is not tried again while d is away"


def test_a_change_that_only_takes_away_is_never_reverted() -> None:
    now = three(c=member("c", aim=GONE))
    open_ = after(now, next_change(now, facts()))
    assert next_change(open_, facts("a", waited=10 * PATIENCE_MS)) is None


# -- who is let in


def greeting(name: str, life: int = 2, aim: str = VOTER, *, joins: bool = True, adopts: str = "") -> Greeting:
    return Greeting(name, life, f"{name}:7", f"{name}:8", f"{name}:9", (), adopts, aim, joins)


@pytest.mark.parametrize("aim", [VOTER, LEARNER, WITNESS])
def test_a_new_node_is_let_in_as_a_learner_with_an_aim(aim: str) -> None:
    step = admit(three(), facts(), greeting("d", aim=aim))
    assert told(step if isinstance(step, Proposal) else None) == "joined d: is let in"
    assert after(three(), step).member("d") == Member("d", 2, "d:7", "d:8", "d:9", LEARNER, aim)


def test_one_that_lost_its_state_is_let_in_again_with_its_own_aim() -> None:
    now = three()
    step = admit(now, facts("ab"), greeting("c", aim=LEARNER, joins=False))
    assert told(step if isinstance(step, Proposal) else None) == "joined c: has lost its state and is let in again"
    now = after(now, step)
    assert now.member("c") == Member("c", 2, "c:7", "c:8", "c:9", LEARNER, VOTER)
    assert now.removed == (Seat("c", 1),)
    assert now.group == three().group


@pytest.mark.parametrize("aim", [GONE, "gone:b"])
def test_one_that_was_to_be_removed_comes_back_as_what_it_wants_to_be(aim: str) -> None:
    now = after(three(), admit(three(c=member("c", aim=aim)), facts("ab"), greeting("c", aim=LEARNER)))
    assert now.member("c") == Member("c", 2, "c:7", "c:8", "c:9", LEARNER, LEARNER)


def refusal(answer: Proposal | Refusal) -> tuple[int, str, bool]:
    assert isinstance(answer, Refusal), answer
    return answer.code, answer.reason, answer.final


def test_who_is_not_let_in() -> None:
    was_here = replace(three(), removed=(Seat("d", 2),))
    assert refusal(admit(was_here, facts(), greeting("d"))) == (78, "d was removed from the cluster", True)
    assert isinstance(admit(was_here, facts(), greeting("d", 3)), Proposal), "with an empty directory it may"
    assert refusal(admit(three(), facts(), greeting("d", joins=False))) == (
        78, "d is not a member of this cluster", True,
    )  # fmt: skip
    assert refusal(admit(three(), facts(), greeting("c"))) == (75, "another node named c is up and is a member", False)
    code, reason, final = refusal(admit(three(), facts(), greeting("d", adopts="77")))
    assert (code, final) == (78, True)
    assert "brings a Postgres of its own" in reason


CLOSED = replace(three(), grants=(OPEN, OPEN._replace(term=2, opened=False)))
"""It was open before, and the newest epoch is not yet."""


def test_while_the_newest_epoch_waits_for_copies_a_node_is_let_in_and_nothing_else_begins() -> None:
    assert isinstance(admit(CLOSED, facts("ab"), greeting("c", joins=False)), Proposal)
    for answer in (aim_at(CLOSED, facts(), "b", LEARNER), remove(CLOSED, facts(), "b")):
        assert refusal(answer) == (75, "the cluster has something to finish first", False)


def test_the_sync_group_is_changed_for_the_next_epoch_only_if_this_one_can_not_open() -> None:
    back = replace(CLOSED, members=three(c=member("c", life=2)).members)
    assert told(unblocks(back, facts("ac"))) == "sync group a: is changed: c joins, c leaves"
    assert unblocks(back, facts("abc", copied="ab")) is None, "a and b can open it"
    assert unblocks(back, facts("ac", copied="a")) is None, "with c's copy unproven nothing is better"
    assert unblocks(replace(back, grants=(OPEN._replace(opened=False),)), facts("ac")) is None, "the founding"
    assert unblocks(replace(back, grants=(OPEN, OPEN._replace(term=2, failed="x"))), facts("ac")) is None


UNSETTLED = [
    three(), replace(three(), grants=()), replace(three(), grants=(OPEN._replace(opened=False),)),
    replace(three(), grants=(OPEN._replace(failed="x"),)),
    after(three(c=member("c", aim=GONE)), next_change(three(c=member("c", aim=GONE)), facts())),
]  # fmt: skip


@pytest.mark.parametrize("n", range(5))
def test_nothing_begins_before_the_cluster_is_settled(n: int) -> None:
    """Before the first opening the sync group does not count yet; a change under way is finished first."""
    now = UNSETTLED[n]
    assert settled(now) is (n == 0)
    answers = [
        admit(now, facts(), greeting("d")), aim_at(now, facts(), "b", LEARNER), remove(now, facts(), "b")
    ]  # fmt: skip
    for answer in answers:
        if n == 0:
            assert isinstance(answer, Proposal)
        else:
            assert refusal(answer) == (75, "the cluster has something to finish first", False)


# -- aims


def test_an_aim_is_set_in_the_log_and_nothing_else_changes() -> None:
    now = three(d=member("d", LEARNER))
    step = aim_at(now, facts(), "d", VOTER)
    assert told(step if isinstance(step, Proposal) else None) == "member d: is to be a voter"
    assert after(now, step).members == tuple(m._replace(aim=VOTER) for m in now.members)
    step = remove(now, facts(), "c")
    assert told(step if isinstance(step, Proposal) else None) == "member c: is to be removed"
    assert after(now, step).member("c") == member("c", aim=GONE)
    now = three(d=member("d", LEARNER, VOTER))
    step = remove(now, facts(), "c", "d")
    assert told(step if isinstance(step, Proposal) else None) == "member c: is to be replaced by d"
    assert after(now, step).member("c") == member("c", aim="gone:d")


def test_aims_that_are_refused() -> None:
    now = three(w=member("w", WITNESS))
    assert refusal(aim_at(now, facts(), "x", VOTER)) == (64, "no member is named x", True)
    assert refusal(aim_at(now, facts(), "b", "king")) == (64, "there is no role king", True)
    assert refusal(aim_at(now, facts(), "b", WITNESS)) == (78, "b has a Postgres: it can't become a witness", True)
    assert refusal(aim_at(now, facts("abcw"), "w", VOTER)) == (78, "w has no Postgres: it can't become a voter", True)
    assert refusal(remove(now, facts(), "x")) == (64, "no member is named x", True)
    assert refusal(remove(now, facts(), "b", "x")) == (64, "x is no other member", True)
    assert refusal(remove(now, facts(), "b", "b")) == (64, "b is no other member", True)
    code, reason, _ = refusal(remove(now, facts(), "b", "w"))
    assert (code, reason) == (78, "w can't take the place of b: only one of them is a witness")


@pytest.mark.parametrize("aim", [LEARNER, GONE, "gone:a"])
def test_a_successor_is_one_that_is_to_have_a_vote(aim: str) -> None:
    """Else the one that is to be replaced would wait for ever."""
    code, reason, _ = refusal(remove(three(d=member("d", LEARNER, aim)), facts(), "c", "d"))
    assert (code, reason) == (78, "d can't take the place of c: it is not to have a vote")
    witnesses = three(v=member("v", WITNESS), w=member("w", LEARNER, WITNESS))
    assert isinstance(remove(witnesses, facts(), "v", "w"), Proposal)


def test_the_primary_is_moved_before_it_goes() -> None:
    assert refusal(remove(three(), facts(), "a")) == (75, "a is the primary", True)
    assert refusal(remove(three(d=member("d")), facts(), "a", "d")) == (75, "a is the primary", True)
    assert refusal(aim_at(three(), facts(), "a", LEARNER)) == (75, "a is the primary", True)
    assert isinstance(aim_at(three(a=member("a", aim=GONE)), facts(), "a", VOTER), Proposal), "it may stay"


@pytest.mark.parametrize(
    "ask", [lambda s, f: remove(s, f, "c"), lambda s, f: aim_at(s, f, "c", LEARNER)], ids=["remove", "learner"]
)
def test_never_below_a_live_majority(ask: Any) -> None:
    code, reason, _ = refusal(ask(three(), facts("ac")))
    assert (code, reason) == (78, "without c 1 of 2 voters are up, 2 are needed")
    assert isinstance(ask(three(), facts("ab")), Proposal), "c itself may be down"
    four = state(*(member(n) for n in "abc"), member("w", WITNESS))
    assert isinstance(ask(four, facts("aw")), Refusal)


def test_never_the_last_holder_of_a_needed_copy() -> None:
    now = state(member("a"), member("b"), member("c"), member("v", WITNESS), member("w", WITNESS))
    code, reason, _ = refusal(remove(now, facts("acvw"), "c"))
    assert code == 78
    assert reason == ("c holds a copy that is needed: without it 1 are left, and 2 must have every commit")
    assert isinstance(remove(now, facts("abvw"), "c"), Proposal)
    lost = state(member("a"), member("b", LEARNER, VOTER, life=2), member("c"), member("w", WITNESS), seats="abc")
    assert isinstance(remove(lost, facts("abcw"), "c"), Refusal), "the new life of b holds nothing of the old one's"
    assert isinstance(remove(now, facts("acvw"), "v"), Proposal), "a witness holds none"
    alone = state(*(member(n) for n in "abc"), mode="async")
    assert isinstance(remove(alone, facts("ab"), "c"), Proposal)


def test_a_learner_may_always_go() -> None:
    """It counts nowhere, so it does not matter who else is up."""
    assert isinstance(remove(three(d=member("d", LEARNER)), facts("a"), "d"), Proposal)


def test_with_a_successor_nothing_is_lost_at_once() -> None:
    assert isinstance(remove(three(d=member("d", LEARNER, VOTER)), facts("ac"), "c", "d"), Proposal)


# -- from anywhere


class World:
    """A cluster as its log says, and what happens to it."""

    def __init__(self, founders: str, witnesses: str, mode: str) -> None:
        members = [member(n) for n in founders] + [member(n, WITNESS) for n in witnesses]
        self.primary = founders[0]
        self.state = state(*members, mode=mode, grant=OPEN._replace(node=self.primary))
        self.index, self.lives = 9, 1

    def carry_out(self, step: Proposal) -> None:
        """With the checks of those who have to live with it."""
        old = self.state
        self.index += 1
        self.state = apply(old, Entry(self.index, 1, step.kind, canonical(step.body)))
        assert self.state != old, f"{step} does nothing"
        before, now = membership(old.members), membership(self.state.members)
        assert is_one_step(before, now), "Raft would stop the process"
        assert self.primary in now.voters, "Raft would refuse it"
        for group in self.state.groups:
            assert self.primary in self.state.seated(group), "a primary is always in S"
            assert group.k == sync_group(group.members, old.commit_mode).k
        for m in self.state.members:
            if m.role == VOTER and old.member(m.name) not in (None, m):
                assert m.incarnation == old.member(m.name).incarnation  # type: ignore[union-attr]  # it is not None
        gone = {seat_of(m) for m in old.members} - {seat_of(m) for m in self.state.members}
        for name, _ in gone & set(old.group.members):
            assert self.state.member(name) is not None, "a seat is given up before the membership"

    def facts(self, away: frozenset[str] = frozenset(), waited: int = 0) -> Facts:
        names = frozenset(m.name for m in self.state.members if m.name not in away) | {self.primary}
        return Facts(self.primary, names, names, names, waited)

    def step(self, facts: Facts) -> bool:
        """One step of the leader; False: there is nothing to do."""
        proposal = next_change(self.state, facts)
        if at_rest(self.state):
            assert proposal is None, "at rest there is nothing to do"
        if proposal is not None:
            self.carry_out(proposal)
        return proposal is not None

    def finish(self) -> bool:
        """The parent puts an open change in force."""
        if self.state.change is None:
            return False
        self.index += 1
        body = {"index": self.state.change.index, "node": self.primary}
        self.state = apply(self.state, Entry(self.index, 1, "done/1", canonical(body)))
        assert self.state.change is None
        return True

    def electable(self) -> list[str]:
        seated = [self.state.seated(group) for group in self.state.groups]
        return [m.name for m in self.state.members if m.role == VOTER and all(m.name in s for s in seated)]

    def lose(self, name: str) -> None:
        """Its disk; it greets with another life."""
        self.lives += 1
        known = self.state.member(name)
        aim = WITNESS if known is not None and not known.has_data else VOTER
        everybody_else = self.facts(frozenset({name}))
        answer = admit(self.state, everybody_else, greeting(name, self.lives, aim))
        if isinstance(answer, Proposal):
            self.carry_out(answer)

    def ask(self, answer: Proposal | Refusal) -> None:
        if isinstance(answer, Proposal) and after(self.state, answer).members != self.state.members:
            self.carry_out(answer)

    def happen(self, what: tuple[str, str, str]) -> None:
        event, name, other = what
        away = frozenset({other}) - {self.primary}
        match event:
            case "lose" if name != self.primary:
                self.lose(name)
            case "remove":
                self.ask(remove(self.state, self.facts(away), name))
            case "replace":
                self.ask(remove(self.state, self.facts(away), name, other))
            case "learner" | "voter" | "witness":
                self.ask(aim_at(self.state, self.facts(away), name, event))
            case "step":
                self.step(self.facts(away))
            case "wait":
                self.step(self.facts(away, PATIENCE_MS))
            case "finish":
                self.finish()
            case "move" if name in self.electable():
                self.primary = name
            case _:
                pass

    def come_to_rest(self) -> None:
        """Everybody healthy; if it is the primary that is to go, a person moves it."""
        for _ in range(60):
            if self.step(self.facts()) or self.finish():
                continue
            mine = self.state.member(self.primary)
            assert mine is not None
            others = [n for n in self.electable() if (m := self.state.member(n)) is not None and m.aim == VOTER]
            if mine.aim == VOTER or not others:
                return
            self.primary = others[0]
        raise AssertionError(f"never at rest: {self.state}")


EVENTS = ("lose", "remove", "replace", "learner", "voter", "witness", "step", "step", "finish", "wait", "move")
names_ = st.sampled_from("abcdew")


@given(
    st.sampled_from([("a", ""), ("ab", ""), ("ab", "w"), ("abc", ""), ("abcd", ""), ("abcde", "")]),
    st.sampled_from(["quorum", "async"]),
    st.lists(st.tuples(st.sampled_from(EVENTS), names_, names_), max_size=40),
)
def test_from_anywhere_it_comes_to_rest_with_every_aim_reached(
    founders: tuple[str, str], mode: str, story: list[tuple[str, str, str]]
) -> None:
    world = World(*founders, mode)
    for what in story:
        world.happen(what)
    world.come_to_rest()
    now = world.state
    assert now.change is None
    mine = now.member(world.primary)
    assert mine is not None
    if mine.aim != VOTER:
        return  # nobody else can be primary, and a primary does not remove itself
    assert {m.role for m in now.members} <= {VOTER, LEARNER, WITNESS}
    for m in now.members:
        if m.aim.startswith("gone:"):
            successor = now.member(m.aim.partition(":")[2])
            assert successor is None or not successor.votes, "replaced by one that has no vote: it waits"
        else:
            assert m.aim == m.role, f"{m.name} never became what it is to be"
    voters = {seat_of(m) for m in now.members if m.role == VOTER}
    assert set(now.group.members) == voters
    assert next_change(now, world.facts()) is None


def test_a_leader_says_who_it_was() -> None:
    assert list_change([], "a", "k", "b", "t").body["fields"] == {"by": "a"}


# -- up is not enough


def test_a_change_does_not_begin_while_its_group_could_not_flush() -> None:
    """b is up and is being copied anew: for hours commits would wait for it (found by a review, on real nodes)."""
    leaving = three(c=member("c", aim=GONE))
    assert next_change(leaving, facts("abc", copied="ac")) is None
    begun = next_change(leaving, facts("abc"))
    assert begun is not None
    assert begun.kind == "change/1"


def test_who_is_needed_for_every_commit_is_not_removed_while_the_others_do_not_stream() -> None:
    answer = remove(three(), facts("abc", copied="ac"), "c")
    assert isinstance(answer, Refusal)
    assert "c holds a copy that is needed" in answer.reason
    assert isinstance(remove(three(), facts("abc"), "c"), Proposal)


def test_an_open_primary_turns_back_a_change_that_stops_the_commits() -> None:
    """abc -> ab, and b is lost before it is done: c is there, and streams."""
    stuck = open_change("abc", "ab", c=member("c", aim=GONE))
    assert next_change(stuck, facts("ac", waited=PATIENCE_MS - 1)) is None
    back = next_change(stuck, facts("ac", waited=PATIENCE_MS))
    assert back is not None
    assert (back.body["old"][1], [seat[0] for seat in back.body["new"][0]]) == (2, ["a", "b", "c"])
    assert "too few of the new group stream" in back.body["text"]
    assert next_change(stuck, facts("abc", waited=PATIENCE_MS)) is None, "it only takes its time"
    assert next_change(stuck, facts("a", waited=PATIENCE_MS)) is None, "it would not help"


def test_a_primary_without_a_seat_in_the_old_group_goes_on_with_the_change() -> None:
    """In the group that was it could not be primary at all, however many of that one stream."""
    moved = open_change("cd", "ab", d=member("d"))
    assert next_change(moved, facts("acd", waited=PATIENCE_MS)) is None
    assert next_change(open_change("acd", "ab", d=member("d")), facts("acd", waited=PATIENCE_MS)) is not None


# -- a copy made anew --------------------------------------------------------------------------------------------------


def test_a_copy_may_be_made_of_a_standby_that_streams() -> None:
    def asked(source: str, up: str = "abce") -> Proposal | Refusal:
        return changes.reinit(state(*map(member, "abcde")), facts("abcde", copied=up), "c", source)

    assert asked("") == Proposal("reinit/1", {"node": "c", "incarnation": 1})
    assert asked("b") == Proposal("reinit/1", {"node": "c", "incarnation": 1, "source": "b"})
    made = after(state(*map(member, "abcde")), asked("b")).reinit_of("c")
    assert made is not None
    assert made.source == "b"
    for source, code in (("c", 64), ("x", 64), ("d", 75)):
        refusal = asked(source)
        assert isinstance(refusal, Refusal), source
        assert refusal.code == code, source
    witness = state(*map(member, "abc"), member("w", WITNESS))
    refusal = changes.reinit(witness, facts("abcw"), "c", "w")
    assert isinstance(refusal, Refusal)
    assert "w has no Postgres" in refusal.reason


def test_a_node_of_a_former_cluster_is_let_in_without_being_told_to_join() -> None:
    from consensus.former import Former, Left

    greeting = Greeting("z", 9, "z:1", "z:2", "z:3", ("a", "z"), "", VOTER)
    assert isinstance(admit(three(), facts("abc"), greeting), Refusal)
    known = replace(three(), former=(Former("ab", (Left("z", 4, "z:1"),), 3),))
    assert isinstance(admit(known, facts("abc"), greeting), Proposal)
