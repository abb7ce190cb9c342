"""From whom a standby streams, turn by turn, and of whom a copy is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consensus.cluster import ClusterState, Grant
from consensus.record import EpochStart, NodeRecord, Position
from fencing.lease import MS
from supervisor import steps
from supervisor.context import Context
from supervisor.observe import Facts
from supervisor.roles import Data, Local, Plan, Server, Step
from supervisor.slots import Slots
from supervisor.steps import Steps, carried_on
from supervisor.tasks import Task, run_blocking
from supervisor.upstream import AVOID_MS, BACK_MS, HEARD_MS, IDLE_MS, Choice, avoided, copy_sources, is_fit, turn
from tests.unit import test_changes
from tests.unit.test_changes import member
from tests.unit.test_tags import tagged

GRANT = Grant(5, "a", Position(0, 0), 2, (EpochStart(0, 0, 1), EpochStart(5, 100, 2)), opened=True)
SECOND = 1_000_000_000


def state(**tags: dict[str, Any]) -> ClusterState:
    found = test_changes.state(*map(member, "abcd"), seats="ab")
    return replace(tagged(found, **tags), grants=(GRANT,))


THROUGH_B = state(c={"replicate_from": "b"}, d={"nosync": True})


def said(**changes: Any) -> dict[str, Any]:
    seen = {
        "state": "streaming", "epoch_of_upstream": 5, "epoch": 5, "lsn": 300, "proven": True, "incarnation": 1,
        "upstream_node": "a",
    }  # fmt: skip
    return {"seen": seen | changes, "age_ms": 100}


def test_who_can_be_streamed_from() -> None:
    assert is_fit(THROUGH_B, GRANT, "b", {"b": said()})
    for changes in (
        {"state": "running"}, {"epoch_of_upstream": 4}, {"epoch": 4}, {"proven": False}, {"incarnation": 2},
    ):  # fmt: skip
        assert not is_fit(THROUGH_B, GRANT, "b", {"b": said(**changes)}), changes
    assert not is_fit(THROUGH_B, GRANT, "b", {})
    assert not is_fit(THROUGH_B, GRANT, "b", {"b": said() | {"age_ms": HEARD_MS + 1}})
    assert not is_fit(THROUGH_B, GRANT, "x", {"x": said()}), "no member"


class Standby:
    """``c``, which its tag has stream from ``b``; it is attached to whom it chose the turn before."""

    def __init__(self, cluster: ClusterState = THROUGH_B) -> None:
        self.cluster, self.choice, self.now = cluster, Choice(), 100 * SECOND
        self.seen: dict[str, Any] = {"b": said()}
        self.attached = self.streaming = self.led = True

    def after(self, ms: int = 0) -> str:
        self.now += ms * MS
        self.choice = turn(
            self.choice, self.cluster, GRANT, "c", self.seen, led=self.led, attached=self.attached,
            streaming=self.streaming, now_ns=self.now,
        )  # fmt: skip
        return self.choice.node


def test_at_first_it_goes_where_it_can_and_from_the_primary_once_the_other_has_been_fit_for_a_while() -> None:
    fresh = Standby()
    fresh.attached = False
    assert fresh.after() == "b", "nothing is interrupted"
    running = Standby()
    assert running.after() == ""
    assert running.after(BACK_MS - 1) == ""
    assert running.after(1) == "b"


def test_one_that_comes_and_goes_is_not_gone_back_to() -> None:
    standby = Standby()
    standby.after()
    standby.seen = {"b": said(state="running")}
    assert standby.after(BACK_MS) == ""
    standby.seen = {"b": said()}
    assert standby.after(1) == ""
    assert standby.after(BACK_MS - 1) == ""
    assert standby.after(1) == "b"


@pytest.mark.parametrize(
    "gone",
    [
        {}, {"b": said(state="running")}, {"b": said() | {"age_ms": 60_000}}, {"b": said(upstream_node="c")},
    ],
)  # fmt: skip
def test_it_falls_back_to_the_primary_and_returns(gone: dict[str, Any]) -> None:
    standby = Standby()
    standby.choice = Choice("b")
    assert standby.after(60_000) == "b"
    standby.seen = gone
    assert standby.after() == ""
    standby.seen = {"b": said()}
    standby.after()
    assert standby.after(BACK_MS) == "b"


def test_without_a_leader_nothing_is_known_and_nothing_changes() -> None:
    for before in (Choice("b"), Choice()):
        standby = Standby()
        standby.choice, standby.led, standby.seen = before, False, {}
        assert standby.after(60_000) == before.node


def test_a_stream_that_does_not_come_is_left_for_a_while() -> None:
    """It says that it streams, and this node does not reach it."""
    standby = Standby()
    standby.choice, standby.streaming = Choice("b"), False
    assert standby.after() == "b"
    assert standby.after(IDLE_MS - 1) == "b"
    assert standby.after(1) == ""
    standby.streaming = True
    assert standby.after(BACK_MS) == ""
    assert standby.after(AVOID_MS - BACK_MS - 1) == ""
    assert (standby.after(1), standby.after(BACK_MS)) == ("", "b")
    assert standby.choice.idle_since_ns == 0
    standby.streaming = False
    standby.after()
    standby.streaming = True
    standby.after(1)
    standby.streaming = False
    assert standby.after(IDLE_MS) == "b", "from the last that came on"


@pytest.mark.parametrize("cluster", [state(), state(c={"replicate_from": "a"}), state(c={"replicate_from": "d"})])
def test_another_tag_or_none(cluster: ClusterState) -> None:
    standby = Standby(cluster)
    standby.choice = Choice("b")
    assert standby.after() == ""


def test_one_that_lacks_wal_is_left_for_a_while_too() -> None:
    assert avoided(7) == Choice(avoid_until_ns=7 + AVOID_MS * MS)


def test_of_whom_a_copy_is_made() -> None:
    cluster = state(b={"clone_from": True}, c={"clone_from": True}, d={"clone_from": False}, a={"clone_from": True})
    seen = {name: said() for name in "abcd"}
    assert copy_sources(cluster, GRANT, "d", seen) == ["b", "c", "a"]
    assert copy_sources(cluster, GRANT, "d", seen | {"c": said(lsn=400)}) == ["c", "b", "a"], "the furthest first"
    assert copy_sources(cluster, GRANT, "b", seen) == ["c", "a"], "not of itself"
    assert copy_sources(cluster, GRANT, "d", seen, {"b"}) == ["c", "a"], "of which it failed"
    assert copy_sources(cluster, GRANT, "d", seen | {"b": said(state="running")}) == ["c", "a"]
    assert copy_sources(cluster, GRANT, "d", {}) == ["a"]
    assert copy_sources(state(), GRANT, "d", seen) == ["a"], "nobody is tagged"
    late = state(b={"clone_from": True, "recovery_min_apply_delay": "1h"}, c={"clone_from": True})
    assert copy_sources(late, GRANT, "d", seen) == ["c", "a"], "its copy would need WAL of an hour ago"


# -- a standby that was promoted under whoever streamed from it


NEXT = Grant(7, "b", Position(5, 300), 3, (*GRANT.ancestry, EpochStart(7, 320, 3)), opened=True)


def test_the_history_goes_on_as_the_streamed_one_does() -> None:
    assert carried_on((GRANT, NEXT), GRANT.ancestry, 3, 320) == NEXT.ancestry
    assert carried_on((GRANT, NEXT), GRANT.ancestry, 3, 300) is None, "another file"
    assert carried_on((GRANT, NEXT), GRANT.ancestry, 3, None) is None, "no file"
    assert carried_on((GRANT,), GRANT.ancestry, 3, 320) is None, "not known here yet"
    other = (EpochStart(0, 0, 1), EpochStart(6, 100, 4))
    assert carried_on((GRANT, NEXT), other, 3, 320) is None, "it had something else before"
    assert carried_on((GRANT, NEXT), (), 3, 320) is None, "nothing is known of what it had"
    late = (*GRANT.ancestry, EpochStart(6, 320, 4))
    assert carried_on((GRANT, NEXT), late, 3, 320) == NEXT.ancestry, "an epoch of which it has no byte"
    after = Grant(9, "b", Position(7, 400), 4, (*NEXT.ancestry, EpochStart(9, 500, 4)))
    assert carried_on((GRANT, NEXT._replace(ancestry=()), after), GRANT.ancestry, 3, 320) == NEXT.ancestry


@pytest.mark.parametrize(("through", "saved"), [("b", True), ("", False)])
def test_only_who_streamed_from_a_standby_can_have_been_carried_on(
    monkeypatch: pytest.MonkeyPatch, through: str, saved: bool
) -> None:
    kept: list[Any] = []

    def save(history: Any) -> Task[None]:
        kept.append(history)
        return
        yield

    c: Any = SimpleNamespace(
        cluster=ClusterState(grants=(GRANT, NEXT)), record=NodeRecord(5, GRANT.ancestry), save_record=save,
        local=Local("c", Data.READY, Server.STANDBY, upstream_node=through),
    )  # fmt: skip
    monkeypatch.setattr(steps, "switch_lsn", lambda *_: 320)
    run_blocking(Steps(c)._complete_own_history(3))
    assert kept == [NEXT.ancestry] * saved


# -- what follows from the choice


class Attached:
    """As much of a context as `notice_moved_upstream` looks at."""

    def __init__(self, cluster: ClusterState) -> None:
        self.view: Any = SimpleNamespace(cluster=cluster, leader="a")
        self.cluster, self.choice, self.seen = cluster, Choice(), {"b": said()}
        self.local = Local("c", Data.READY, Server.STANDBY, upstream=5, upstream_node="a")
        self.facts, self.conf, self.delay_ms = Facts(streaming=True), {"conninfo": "a"}, 0
        self.log: Any = SimpleNamespace(info=lambda *_, **__: None, warning=lambda *_, **__: None)

    def followed_conninfo(self, grant: Grant, node: str) -> str:
        return node

    def change(self, **facts: Any) -> None:
        self.local = replace(self.local, **facts)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    now = [100 * SECOND]
    monkeypatch.setattr(steps, "now_ns", lambda: now[0])

    def on(ms: int) -> None:
        now[0] += ms * MS

    return on


def test_a_standby_lets_go_of_its_upstream_when_it_is_to_be_another(clock: Callable[[int], None]) -> None:
    c = Attached(THROUGH_B)
    made = Steps(cast(Context, c))
    made.notice_moved_upstream()
    assert c.local.upstream == 5
    clock(BACK_MS)
    made.notice_moved_upstream()
    assert c.local.upstream == 0, "the plan is to follow, with all its checks"
    assert made.chosen(GRANT) == "b"
    c.change(server=Server.STARTING)
    assert made.chosen(GRANT) == "a", "one that is not consistent yet gets what it lacks from the primary"


def test_before_anything_is_known_nothing_is_noticed() -> None:
    c = Attached(THROUGH_B)
    c.view.cluster = None
    Steps(cast(Context, c)).notice_moved_upstream()
    assert c.local.upstream == 5


# -- slots


def needed(server: Server, **changes: Any) -> int:
    c = SimpleNamespace(
        local=Local("a", Data.READY, server, epoch=5), facts=Facts(lsn=500, replay_lsn=450),
        seen={"c": said(upstream_node="b", **changes)},
    )  # fmt: skip
    return Slots(cast(Context, c)).needed_from("c")


def test_the_primary_keeps_no_wal_for_whoever_has_it_from_a_standby() -> None:
    assert needed(Server.PRIMARY) == 300
    assert needed(Server.PRIMARY, lsn=600) == 500, "no further than there is"
    assert needed(Server.PRIMARY, epoch=4) == 0, "of another history"
    assert needed(Server.STANDBY) == 450
    direct = SimpleNamespace(
        local=Local("a", Data.READY, Server.PRIMARY, epoch=5), facts=Facts(lsn=500), seen={"c": said()}
    )
    assert Slots(cast(Context, direct)).needed_from("c") == 0, "it may need all of it"
    assert Slots(cast(Context, direct)).needed_from("x") == 0


# -- one that replays late


@pytest.mark.parametrize(
    ("changes", "attached"),
    [
        ({}, True), ({"delay_ms": 0}, False), ({"history": GRANT.ancestry[:1]}, False), ({"proof": 4}, False),
        ({"proof": 5}, True),
    ],
)  # fmt: skip
def test_under_the_grant_it_followed_before_it_is_attached_without_a_position(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], attached: bool
) -> None:
    """After a start nobody knows where its WAL ends before it is replayed, which is hours away."""
    proof = Position(changes["proof"], 300) if "proof" in changes else None  # 5: it was made of this very grant
    c: Any = SimpleNamespace(
        cluster=THROUGH_B, delay_ms=changes.get("delay_ms", 3_600_000),
        record=NodeRecord(5, changes.get("history", GRANT.ancestry), proof),
    )  # fmt: skip
    made = Steps(c)
    done: list[str] = []

    class Asked(Exception):
        pass

    def nothing() -> Task[None]:
        return
        yield

    def position() -> Task[Any]:
        raise Asked
        yield

    monkeypatch.setattr(made, "_detach", nothing)
    monkeypatch.setattr(made, "_position", position)
    monkeypatch.setattr(made, "attach", lambda grant: done.append(grant.node))
    try:
        run_blocking(made.follow(Plan(Step.FOLLOW, 5)))
    except Asked:
        done.append("asked")
    assert done == (["a"] if attached else ["asked"])
