"""Who is losing its authority never touches its names: the look at it and the write are one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consensus.cluster import Change, ClusterState, Grant, seat_of, sync_group
from consensus.membership import Member
from consensus.record import EpochStart, NodeRecord, Position
from fencing.clock import now_ns
from fencing.lease import MS, PROFILES
from supervisor.context import Context, StepFailed
from supervisor.regroup import Regroup
from supervisor.roles import Data, Local, Plan, Server, Situation, Step, View, plan
from supervisor.settings import PLACEHOLDER_NAMES
from supervisor.steps import Steps

MEMBERS = tuple(Member(name, 7, f"{name}:1", f"{name}:2", "") for name in "abc")
THREE = sync_group((seat_of(m) for m in MEMBERS), "quorum")
ANCESTRY = (EpochStart(0, 0, 1), EpochStart(5, 100, 2))
WANTED = Plan(Step.REGROUP, 9, "regroup")


class Primary:
    """``a``, primary of term 5 with a lease that has just been renewed, and an open change; notes what it writes."""

    def __init__(self, names: str = "ab", **seen: Any) -> None:
        new = sync_group((seat_of(m) for m in MEMBERS if m.name in names), "quorum")
        grant = Grant(5, "a", Position(0, 100), 2, ANCESTRY, opened=True)
        self.cluster = ClusterState(
            "1" * 32, MEMBERS, group=THREE, grants=(grant,), nonce="n", change=Change(9, THREE, new)
        )
        self.timings = PROFILES["default"]
        self.view = View(
            True, 7, 5, "a", "leader", granted=5, record=NodeRecord(5, ANCESTRY), cluster=self.cluster, lease_term=5,
            lease_until_ns=now_ns() + self.timings.lease_ms * MS, renewed=True,
        )  # fmt: skip
        self.view = replace(self.view, **seen)
        self.local = Local("a", Data.READY, Server.PRIMARY, epoch=5, gate_open=True)
        self.log = SimpleNamespace(info=lambda *_, **__: None)
        self.written: list[Any] = []
        self.postgres = SimpleNamespace(write_settings=lambda *settings: self.written.append(settings))

    def begin(self) -> None:
        step = Regroup(cast(Context, self), cast(Steps, None))
        next(step.regroup(WANTED))


def test_the_plan_of_this_situation_is_to_regroup() -> None:
    a = Primary()
    assert plan(Situation(a.view, a.local, a.timings, now_ns()))[0] == WANTED


@pytest.mark.parametrize(
    "seen",
    [
        {"lease_until_ns": now_ns()},
        {"lease_term": 4},
        {"granted": 0},
        {"granted": 0, "term": 6, "leader": "b"},
        {"hand_over": "b"},
        {"alive": False},
    ],
)
def test_without_authority_nothing_is_written(seen: dict[str, Any]) -> None:
    a = Primary(**seen)
    with pytest.raises(StepFailed, match="no longer"):
        a.begin()
    assert a.written == []


def test_a_change_that_was_reverted_meanwhile_is_left_alone() -> None:
    a = Primary()
    assert a.cluster.change is not None
    back = Change(11, a.cluster.change.new, THREE)
    a.cluster = replace(a.cluster, change=back)
    a.view = replace(a.view, cluster=a.cluster)
    with pytest.raises(StepFailed, match="no longer"):
        a.begin()
    assert a.written == []


def test_a_primary_without_a_seat_is_a_bug() -> None:
    a = Primary(names="bc")
    with pytest.raises(AssertionError, match="no seat"):
        a.begin()
    assert a.written == []


@pytest.mark.parametrize("mode", ["quorum", "async"])
def test_a_standby_of_one_has_names_too_as_the_group_and_the_mode_may_change(mode: str) -> None:
    alone = ClusterState(members=MEMBERS[:1], commit_mode=mode, group=sync_group([seat_of(MEMBERS[0])], mode))
    assert alone.group.k == 1
    assert Context.idle_names(cast(Context, SimpleNamespace(cluster=alone))) == PLACEHOLDER_NAMES
