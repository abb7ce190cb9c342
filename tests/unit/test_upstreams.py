"""When a standby streams from another one, and when it replays late: without a seat, and never in a circle."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.changes import next_change
from consensus.cluster import ClusterState, Grant, SyncGroup, seat_of
from consensus.membership import GONE, LEARNER, VOTER, WITNESS
from consensus.promotion import HandOver, Obstacle, TakeGrant, Wait
from consensus.record import Position
from consensus.succession import electable
from consensus.tags import Tag, delay_ms, keeps_out, named_upstream, unseated
from consensus.upstreams import apply_delay_ms, is_free, is_held_back, upstream
from tests.unit import test_changes, test_promotion
from tests.unit.test_changes import done, facts, member, three
from tests.unit.test_requests import opened, refusal
from tests.unit.test_tags import tagged, with_tags

LATE: dict[str, Tag] = {"recovery_min_apply_delay": "1h"}


def via(name: str) -> dict[str, Tag]:
    return {"replicate_from": name}


def settled(state: ClusterState, up: str = "abcde") -> ClusterState:
    """After every change that is wanted."""
    for _ in range(6):
        step = next_change(state, facts("".join(m.name for m in state.members if m.name in up)))
        if step is None:
            return state
        state = done(test_changes.after(state, step))
    raise AssertionError("it does not come to rest")


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("1h", 3_600_000), ("30min", 1_800_000), ("90 s", 90_000), ("5ms", 5), (250, 250), ("0", 0),
        ("24d", 2_073_600_000),
    ],
)  # fmt: skip
def test_a_delay_as_postgres_writes_it(value: Tag, ms: int) -> None:
    assert delay_ms({"recovery_min_apply_delay": value}) == ms


def test_whoever_has_a_seat_follows_the_primary_until_it_has_none() -> None:
    state = tagged(three(), c=via("b"))
    assert named_upstream(state, "c") == "b"
    assert upstream(state, "c") == "", "a commit may wait for it still"
    step = next_change(state, facts())
    assert test_changes.told(step) == "sync group a: is changed: c leaves"
    changing = test_changes.after(state, step)
    assert upstream(changing, "c") == "", "an election needs both groups"
    after = done(changing)
    assert (after.group.names, after.group.k) == (("a", "b"), 2)
    assert upstream(after, "c") == "b"
    back = test_changes.after(tagged(after, c={}), next_change(tagged(after, c={}), facts()))
    assert upstream(back, "c") == "", "from the moment it is to have one again"


def test_its_seat_comes_back_while_it_follows_the_primary_itself() -> None:
    """The tag names the primary, be it after a failover: then the node is its standby like any other."""
    state = settled(tagged(three(), c=via("b")))
    assert state.group.names == ("a", "b")
    moved = replace(state, grants=(Grant(7, "b", Position(0, 0), 3, opened=True),))
    assert upstream(moved, "c") == ""
    assert keeps_out(moved, "c") == ""
    step = next_change(moved, replace(facts("abc"), me="b"))
    assert "c joins" in test_changes.told(step)


@pytest.mark.parametrize(
    "tags",
    [
        {"b": via("c"), "c": via("b")}, {"b": via("b")}, {"b": via("c"), "c": via("d"), "d": via("b")}, {"b": via("a")},
        {"b": via("x")}, {"a": via("b")},
    ],
)  # fmt: skip
def test_tags_that_lead_nowhere_do_not_count(tags: dict[str, dict[str, Tag]]) -> None:
    state = tagged(test_changes.state(*map(member, "abcd")), **tags)
    assert [named_upstream(state, name) for name in "abcd"] == [""] * 4
    assert unseated(state) == frozenset()


def test_who_points_into_a_circle_keeps_its_upstream() -> None:
    state = tagged(test_changes.state(*map(member, "abcd")), b=via("c"), c=via("b"), d=via("c"))
    assert [named_upstream(state, name) for name in "bcd"] == ["", "", "c"]


@given(st.dictionaries(st.sampled_from("abcde"), st.sampled_from("abcdex").map(via), max_size=5))
def test_every_way_ends_at_the_primary(tags: dict[str, dict[str, Tag]]) -> None:
    state = tagged(test_changes.state(*map(member, "abcde")), **tags)
    for name in "abcde":
        at, steps = name, 0
        while at:
            at, steps = named_upstream(state, at), steps + 1
            assert steps <= 5, "a circle"


@given(st.dictionaries(st.sampled_from("abcde"), st.sampled_from([LATE, via("b"), via("c"), {"nosync": True}, {}])))
def test_nobody_without_the_primarys_sight_has_a_seat_that_counts(tags: dict[str, dict[str, Tag]]) -> None:
    state = settled(tagged(test_changes.state(*map(member, "abcde")), **tags))
    assert state.group.k >= 2
    for name in "abcde":
        if upstream(state, name) or apply_delay_ms(state, name):
            assert name not in state.group.names


def test_a_copy_that_is_needed_is_neither_late_nor_out_of_sight() -> None:
    state = tagged(test_changes.state(*map(member, "ab")), b=LATE)
    assert unseated(state) == frozenset()
    assert apply_delay_ms(state, "b") == 0
    free = settled(tagged(three(), b=LATE))
    assert apply_delay_ms(free, "b") == 3_600_000


def test_members_that_are_to_become_something_else_follow_the_primary() -> None:
    learner = member("d", LEARNER)._replace(aim=VOTER)
    four = test_changes.state(*map(member, "abc"), learner, seats="abc")
    state = tagged(four, d=via("b"))
    assert (upstream(state, "d"), is_free(state, "d")) == ("", False), "its copy is to be seen by the primary"
    for_good = replace(four, members=(*four.members[:3], learner._replace(aim=LEARNER)))
    state = tagged(for_good, d={**via("b"), **LATE})
    assert upstream(state, "d") == "b"
    assert apply_delay_ms(state, "d") == 3_600_000
    leaving = replace(state, members=(*state.members[:3], state.members[3]._replace(aim=GONE)))
    assert named_upstream(leaving, "d") == ""
    assert upstream(state, "x") == "", "nobody of that name"


def test_nobody_streams_from_a_witness() -> None:
    state = tagged(test_changes.state(*map(member, "abc"), member("w", WITNESS), seats="abc"), b=via("w"), w=via("b"))
    assert (named_upstream(state, "b"), named_upstream(state, "w")) == ("", "")


def test_asynchronous_nobody_is_waited_for() -> None:
    state = tagged(test_changes.state(*map(member, "abc"), mode="async"), c={**via("b"), **LATE})
    assert state.group.asynchronous
    assert unseated(state) == frozenset(), "a seat says who may be primary, and whose promise counts"
    assert (upstream(state, "c"), apply_delay_ms(state, "c")) == ("b", 3_600_000)
    assert apply_delay_ms(replace(state, wish_to="c"), "c") == 0, "asked for, it replays all it has"
    quorum = replace(state, commit_mode="quorum")
    assert upstream(quorum, "c") == "b", "and it leaves with the change of the group"
    group = SyncGroup((state.group.members[0], state.group.members[2]), 1, True)
    both = replace(quorum, group=group, members=tuple(m for m in state.members if m.name != "b"))
    assert upstream(both, "c") == "", "needed as the second copy, it comes into sight"


def test_the_primary_is_never_late() -> None:
    state = tagged(test_changes.state(*map(member, "abc"), mode="async"), a=LATE)
    assert apply_delay_ms(state, "a") == 0


# -- who becomes primary


def test_one_that_replays_late_is_primary_only_if_it_is_asked_for() -> None:
    state = tagged(test_promotion.state(), c=LATE)
    promises: dict[str, tuple[int, int] | None] = {"b": (3, 50), "c": (3, 60)}
    assert is_held_back(state, "c")
    found = test_promotion.ask(promises, state=state, waited=20_000)
    assert isinstance(found, Wait)
    assert found.reason.endswith("c replays late: `pgr failover --to c` would do")
    asked = test_promotion.ask(promises, state=state, preferred="c", waited=20_000)
    assert isinstance(asked, HandOver)
    assert asked.to == "c"
    equal = test_promotion.ask({"b": (3, 50), "c": (3, 50)}, state=state, me="c")
    assert isinstance(equal, HandOver), "as a caretaker it hands over"
    assert isinstance(test_promotion.ask({"a": (0, 50)}, me="a", state=tagged(test_promotion.state(grants=()), a=LATE)),
                      TakeGrant), "whoever creates the cluster opens it"  # fmt: skip
    assert Obstacle.DELAYED.value.endswith("`--to`")


def test_a_switchover_does_not_go_there_by_itself() -> None:
    cluster = with_tags(opened("a", "b", "c"), c={**LATE, "priority": 9})
    cluster.tell("a", "node.observed", {"role": "primary", "state": "running", "epoch": 1, "lsn": 170})
    assert cluster.ask("a", "switchover", dry_run="yes")["to"] == "b"
    node = cluster.members["a"].node
    seats = SyncGroup(tuple(seat_of(m) for m in node.cluster.members), 1, True)
    node.cluster = replace(node.cluster, commit_mode="async", group=seats, change=None)
    assert [m.name for m in electable(node)] == ["b"]
    assert [m.name for m in electable(node, "c")] == ["b", "c"], "but if it is asked for"


def test_what_keeps_it_out_is_named() -> None:
    cluster = with_tags(opened("a", "b", "c"), c=LATE)
    node = cluster.members["a"].node
    seats = tuple(seat for seat in node.cluster.group.members if seat.name != "c")
    node.cluster = replace(node.cluster, group=node.cluster.group._replace(members=seats))
    code, error = refusal(cluster.ask("a", "switchover", to="c"))
    assert (code, error) == (78, "c has no seat in the sync group: its tag `recovery_min_apply_delay` keeps it out")


def test_a_failover_does_not_go_where_it_cannot() -> None:
    """Without a word it would go to another, and with the others gone to nobody."""
    cluster = with_tags(opened("a", "b", "c"), c=LATE)
    cluster.until(lambda: cluster.members["a"].node.cluster.group.names == ("a", "b"))
    cluster.members["a"].up = False
    cluster.until(lambda: cluster.members["c"].state["leader"] in ("b", "c"))
    code, error = refusal(cluster.ask("c", "failover", to="c"))
    assert (code, error.partition(":")[0]) == (78, "c has no seat in the sync group")


def test_a_copy_that_the_primary_does_not_see_is_no_copy_that_counts() -> None:
    cluster = opened("a", "b", "c")
    node = cluster.members["a"].node
    now = cluster.now
    assert node.facts(now).copied == {"a", "b", "c"}
    cluster.streams = False
    through = dict(cluster.members["c"].seen) | {"upstream_node": "b"}
    cluster.tell("c", "node.observed", through)
    cluster.until(lambda: node.sightings.of("c") == through)
    now = cluster.now
    assert node.facts(now).copied == {"a", "b"}
    assert node.sightings.unfit("c", node.raft.term, now) == "c streams from b, not from the primary"
    node.cluster = replace(node.cluster, commit_mode="async")
    assert node.facts(now).copied == {"a", "b", "c"}, "a seat in an asynchronous group waits for nobody"
