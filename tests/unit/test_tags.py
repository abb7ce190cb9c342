"""Tags: what they may be, who keeps them, and what elections, the sync group and requests make of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.changes import Refusal, at_rest, next_change, remove
from consensus.cluster import FEATURE_LEVEL, ClusterState, Seat, apply, canonical, seat_of
from consensus.clustertext import dump, load
from consensus.membership import GONE, WITNESS
from consensus.messages import Entry
from consensus.promotion import HandOver, Obstacle, TakeGrant, Wait
from consensus.tags import (
    TABLE,
    TAGS_MAX,
    BadTag,
    Tag,
    Tagged,
    checked,
    of,
    priority,
    priority_of,
    read,
    shown,
    unseated,
)
from tests.unit import test_changes, test_forecast, test_promotion
from tests.unit.nodes import Cluster
from tests.unit.test_changes import done, facts, member, three
from tests.unit.test_requests import opened, refusal


def tagged(state: ClusterState, **tags: dict[str, Tag]) -> ClusterState:
    for index, (name, found) in enumerate(tags.items(), 50):
        body = {"node": name, "incarnation": 1, "tags": found}
        state = apply(state, Entry(index, 1, "tags/1", canonical(body)))
    return state


NOFAILOVER: dict[str, Tag] = {"nofailover": True}
NOSYNC: dict[str, Tag] = {"nosync": True}

# -- what they may be


def test_good_tags() -> None:
    given: dict[str, Tag] = {"clone_from": True, "replicate_from": "b", "recovery_min_apply_delay": "1h", "zone": "x"}
    given |= {"nosync": False, "nofailover": True, "priority": 0, "rack": 7, "big": True}
    assert list(checked(given)) == sorted(given)
    assert checked(given) == given
    assert checked({}) == {}


@pytest.mark.parametrize(
    "bad",
    [
        {"nofailover": "true"}, {"nofailover": 1}, {"priority": True}, {"priority": -1}, {"priority": 1001},
        {"priority": "2"}, {"": 1}, {"a b": 1}, {"1a": 1}, {"a" * 64: 1}, {"x": None}, {"x": 1.5}, {"x": [1]},
        {"x": "a\n"}, {"x": "a" * 201}, {"x": 1 << 53}, {"failover_priority": 0}, {"clonefrom": True},
        {"clone_from": "b"}, {"replicate_from": True}, {"replicate_from": "B"}, {"replicatefrom": "b"},
        {"recovery_min_apply_delay": True}, {"recovery_min_apply_delay": "1 fortnight"},
        {"recovery_min_apply_delay": -1}, {"recovery_min_apply_delay": "25d"},
        {f"t{i}": i for i in range(TAGS_MAX + 1)},
    ],
)  # fmt: skip
def test_bad_tags(bad: dict[str, object]) -> None:
    with pytest.raises(BadTag) as found:
        checked(bad)
    assert found.value.reason
    assert found.value.hint


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.booleans() | st.none()))
def test_what_is_taken_comes_back_from_the_log(given: dict[str, object]) -> None:
    try:
        found = checked(given)
    except BadTag:
        return
    assert read(canonical(found)) == found == given


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, 1), ({"priority": 0}, 0), ({"priority": 7}, 7), (NOFAILOVER, 0), ({"nofailover": False, "priority": 0}, 1),
        ({"nofailover": True, "priority": 9}, 0), ({"nofailover": False, "priority": 9}, 9), ({"nofailover": False}, 1),
    ],
)  # fmt: skip
def test_a_priority_of_nothing_is_nofailover_and_the_word_counts_before_the_number(
    tags: dict[str, Tag], expected: int
) -> None:
    assert priority(tags) == expected


def test_for_people() -> None:
    assert shown({}) == "none"
    assert shown({"zone": "x", "nofailover": True, "n": 3}) == "n=3 nofailover=true zone=x"
    assert all(known.sentence for known in TABLE)


# -- the log


def test_the_log_keeps_them_by_life() -> None:
    state = tagged(three(), b=NOFAILOVER)
    assert of(state, "b") == NOFAILOVER
    assert (priority_of(state, "a"), priority_of(state, "b"), priority_of(state, "x")) == (1, 0, 1)
    assert state.history[-1].text == "has the tags: nofailover=true"
    assert load(dump(state)) == state
    assert tagged(state, b=NOFAILOVER) is state, "the same again is no news"
    assert of(tagged(state, b={}), "b") == {}
    another = replace(state, members=tuple(replace_life(m) if m.name == "b" else m for m in state.members))
    assert of(another, "b") == {}, "a lost life took its tags along"
    assert tagged(state, x=NOSYNC) is state, "of nobody who is a member"


def replace_life(old: Any) -> Any:
    return old._replace(incarnation=2)


def test_whoever_leaves_takes_its_tags_along() -> None:
    state = tagged(three(), b=NOFAILOVER, c=NOSYNC)
    rows = [list(m) for m in state.members if m.name != "b"]
    body = {"members": rows, "kind": "removed", "node": "b", "text": "is no member any more"}
    left = apply(state, Entry(60, 1, "members/1", canonical(body)))
    assert [t.seat.name for t in left.tagged] == ["c"]


def test_a_snapshot_of_an_older_version_has_none() -> None:
    import json

    body = json.loads(dump(three()))
    del body["tagged"]
    assert load(json.dumps(body | {"level": FEATURE_LEVEL - 1})).tagged == ()


def test_a_node_tells_the_log() -> None:
    cluster = opened("a", "b", "c")
    life = cluster.members["b"].node.identity.incarnation
    cluster.tell("b", "node.propose", {"kind": "tags/1", "body": {"node": "b", "incarnation": life, "tags": NOSYNC}})
    cluster.until(lambda: bool(cluster.members["c"].cluster["tagged"]))
    assert of(cluster.members["a"].node.cluster, "b") == NOSYNC


# -- who becomes primary


def test_one_that_never_is_primary_votes_and_its_promise_counts() -> None:
    state = tagged(test_promotion.state(), c=NOFAILOVER)
    match test_promotion.ask({"b": (3, 50), "c": (3, 50)}, state=state):
        case TakeGrant(upper, _, reason):
            assert (upper.lsn, reason.endswith("2 of 2 needed promises")) == (50, True)
        case other:
            raise AssertionError(other)
    assert isinstance(test_promotion.ask({"b": (3, 50), "c": (3, 50)}, state=state, me="c"), HandOver), "as a caretaker"
    assert isinstance(test_promotion.ask({"b": (3, 50), "c": (3, 50)}, state=state, preferred="c"), TakeGrant)


@pytest.mark.parametrize("loss", [False, True])
def test_if_nobody_else_holds_what_it_holds_there_is_no_primary_and_why(loss: bool) -> None:
    state = tagged(test_promotion.state(), c=NOFAILOVER)
    found = test_promotion.ask({"b": (3, 50), "c": (3, 60)}, state=state, accept_data_loss=loss, waited=20_000)
    if loss:
        assert isinstance(found, TakeGrant), "a person has given up what only c holds"
    else:
        assert isinstance(found, Wait)
        assert found.reason.endswith("acknowledged commit; c would do, but for the tag `nofailover`")


def test_alone_it_does_not_become_primary_again() -> None:
    state = tagged(test_promotion.state(("a",), 1), a=NOFAILOVER)
    found = test_promotion.ask({"a": (3, 50)}, me="a", state=state, connected="a")
    assert isinstance(found, Wait)


def test_whoever_creates_the_cluster_opens_it() -> None:
    state = tagged(test_promotion.state(grants=()), a=NOFAILOVER)
    assert isinstance(test_promotion.ask({"a": (0, 50)}, me="a", state=state), TakeGrant)


def test_of_equals_the_highest_priority_wins_and_never_a_lower_position() -> None:
    state = tagged(test_promotion.state(), c={"priority": 2})
    equal: dict[str, tuple[int, int] | None] = {"b": (3, 50), "c": (3, 50)}
    assert isinstance(test_promotion.ask(equal), TakeGrant), "else the leader"
    match test_promotion.ask(equal, state=state):
        case HandOver(to):
            assert to == "c"
        case other:
            raise AssertionError(other)
    assert isinstance(test_promotion.ask({"b": (3, 60), "c": (3, 50)}, state=state), TakeGrant)


def test_the_forecast_says_so() -> None:
    reports = {"a": test_forecast.said(90), "b": test_forecast.said(90), "c": test_forecast.said(90)}
    found = test_forecast.foretell(reports, at=tagged(test_promotion.state(), b=NOFAILOVER, c={"priority": 2}))
    assert found.winners == ("c",)
    assert test_forecast.why(found)["b"] == Obstacle.NOFAILOVER
    assert test_forecast.why(found)["a"] == "could be primary, but the tag `priority` of another is higher"
    seated = replace(tagged(test_promotion.state(), c=NOSYNC), group=test_promotion.state(("a", "b")).group)
    assert test_forecast.why(test_forecast.foretell(reports, at=seated))["c"].startswith("is tagged `nosync`")


# -- the sync group


def test_nosync_leaves_the_sync_group_by_a_change_like_any_other() -> None:
    state = tagged(three(), c=NOSYNC)
    assert not at_rest(state)
    step = next_change(state, facts())
    assert test_changes.told(step) == "sync group a: is changed: c leaves"
    changed = done(test_changes.after(state, step))
    assert changed.group.names == ("a", "b")
    assert changed.group.k == 2
    assert at_rest(changed)
    back = next_change(tagged(changed, c={}), facts())
    assert test_changes.told(back) == "sync group a: is changed: c joins"


def test_a_copy_that_is_needed_keeps_its_seat() -> None:
    state = tagged(three(), c=NOSYNC)
    assert next_change(state, facts("ac")) is None, "b is down: without c a commit would be on a alone"
    only = tagged(three(), b=NOSYNC, c=NOSYNC)
    assert unseated(only) == frozenset()
    assert at_rest(only), "nobody else could have a second copy"


def test_one_that_is_to_leave_is_no_second_copy() -> None:
    state = tagged(test_changes.state(*map(member, "abc"), seats="ab"), c=NOSYNC)
    assert unseated(state) == {"c"}
    leaving = replace(state, members=tuple(m._replace(aim=GONE) if m.name == "b" else m for m in state.members))
    assert unseated(leaving) == frozenset(), "b goes once c has its seat"
    only = tagged(test_changes.state(*map(member, "abc"), seats="ac"), c=NOSYNC)
    assert unseated(only) == frozenset(), "b has no copy"


def test_nobody_is_replaced_by_one_that_gets_no_seat() -> None:
    state = tagged(test_changes.state(*map(member, "abcd"), seats="abc"), d=NOSYNC)
    answer = remove(state, facts(), "b", "d")
    assert isinstance(answer, Refusal)
    assert answer.code == 78
    assert "`nosync`" in answer.reason


def test_the_primary_sits_whatever_its_tags() -> None:
    state = tagged(three(), a=NOSYNC)
    assert unseated(state) == frozenset()
    assert at_rest(state)


def test_asynchronous_nobody_is_waited_for_and_a_seat_says_who_may_be_primary() -> None:
    state = tagged(test_changes.state(*map(member, "abc"), mode="async"), c=NOSYNC)
    assert unseated(state) == frozenset()
    assert at_rest(state)


def test_a_new_voter_with_the_tag_gets_no_seat() -> None:
    four = test_changes.state(*map(member, "abcd"), seats="abc")
    assert "d joins" in test_changes.told(next_change(four, facts()))
    assert next_change(tagged(four, d=NOSYNC), facts()) is None
    witness = test_changes.state(*map(member, "abc"), member("w", WITNESS), seats="abc")
    assert unseated(tagged(witness, w=NOSYNC)) == frozenset()


@given(st.dictionaries(st.sampled_from("abcde"), st.sampled_from([NOSYNC, NOFAILOVER, {}]), max_size=5),
       st.sets(st.sampled_from("bcde")))  # fmt: skip
def test_no_tag_takes_the_second_copy_of_a_commit(tags: dict[str, dict[str, Tag]], up: set[str]) -> None:
    """Whoever is up, and whatever is tagged: the group that is gone to has k members that can flush, two at least."""
    state = tagged(test_changes.state(*map(member, "abcde")), **tags)
    for _ in range(4):
        known = facts("a" + "".join(sorted(up)))
        step = next_change(state, known)
        if step is None:
            return
        state = done(test_changes.after(state, step))
        assert state.group.k >= 2
        assert len(state.seated(state.group) & known.copied) >= state.group.k
        assert seat_of(member("a")) in state.group.members
    raise AssertionError("it does not come to rest")


# -- requests


def with_tags(cluster: Cluster, **tags: dict[str, Tag]) -> Cluster:
    for name, found in tags.items():
        life = cluster.members[name].node.identity.incarnation
        body = {"node": name, "incarnation": life, "tags": found}
        cluster.tell(name, "node.propose", {"kind": "tags/1", "body": body})
        cluster.until(lambda name=name, found=found: of(cluster.members["a"].node.cluster, name) == found)  # type: ignore[misc]
    return cluster


def test_a_switchover_never_goes_to_one_that_is_tagged() -> None:
    cluster = with_tags(opened("a", "b", "c"), b=NOFAILOVER)
    assert refusal(cluster.ask("a", "switchover", to="b")) == (78, f"b {Obstacle.NOFAILOVER}")
    cluster.tell("a", "node.observed", {"role": "primary", "state": "running", "epoch": 1, "lsn": 170})
    dry = cluster.ask("a", "switchover", dry_run="yes")
    assert (dry["to"], dry["forecast"]["winners"]) == ("c", ["c"])
    cluster = with_tags(cluster, c=NOFAILOVER)
    code, error = refusal(cluster.ask("a", "switchover"))
    assert (code, error.partition(":")[0]) == (75, "nobody else may be primary")


def test_nor_does_a_failover() -> None:
    cluster = with_tags(opened("a", "b", "c"), b=NOFAILOVER)
    cluster.members["a"].up = False
    cluster.until(lambda: cluster.members["c"].state["leader"] in ("b", "c"))
    assert refusal(cluster.ask("c", "failover", to="b")) == (78, f"b {Obstacle.NOFAILOVER}")


def test_a_switchover_goes_to_the_highest_priority_that_streams() -> None:
    cluster = with_tags(opened("a", "b", "c"), b={"priority": 3})
    further = dict(cluster.members["c"].seen) | {"lsn": 151}
    cluster.streams = False
    cluster.tell("c", "node.observed", further)
    cluster.until(lambda: cluster.members["a"].node.sightings.of("c") == further)
    assert cluster.ask("a", "switchover", dry_run="yes")["to"] == "b", "having streamed to the end it holds the same"
    cluster.tell("b", "node.observed", dict(cluster.members["b"].seen) | {"state": "starting"})
    cluster.until(lambda: cluster.members["a"].node.sightings.of("b").get("state") == "starting")
    assert cluster.ask("a", "switchover")["to"] == "c"


def test_whoever_has_no_seat_is_not_handed_over_to() -> None:
    cluster = with_tags(opened("a", "b", "c"), c=NOSYNC)
    node = cluster.members["a"].node
    seats = tuple(seat for seat in node.cluster.group.members if seat.name != "c")
    node.cluster = replace(node.cluster, group=node.cluster.group._replace(members=seats))
    code, error = refusal(cluster.ask("a", "switchover", to="c"))
    assert (code, error) == (78, "c has no seat in the sync group: its tag `nosync` keeps it out")
    node.cluster = replace(node.cluster, tagged=())
    assert refusal(cluster.ask("a", "switchover", to="c"))[0] == 75


def test_a_lease_is_not_given_to_one_that_may_not_use_it() -> None:
    cluster = with_tags(opened("a", "b", "c"), c=NOFAILOVER)
    further = dict(cluster.members["c"].seen) | {"lsn": 999}
    cluster.streams = False
    cluster.tell("c", "node.observed", further)
    cluster.until(lambda: cluster.members["a"].node.sightings.of("c") == further)
    from consensus.succession import heir

    node = cluster.members["a"].node
    assert heir(node, cluster.now) == "b"
    node.cluster = replace(node.cluster, tagged=())
    assert heir(node, cluster.now) == "c"
    every = tuple(Tagged(Seat(m.name, m.incarnation), canonical(NOFAILOVER)) for m in node.cluster.members)
    node.cluster = replace(node.cluster, tagged=every)
    assert heir(node, cluster.now) == "c", "somebody has to lead"
