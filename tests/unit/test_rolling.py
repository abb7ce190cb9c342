"""Whose turn it is in a restart, and when it stops: the rules by themselves."""

from __future__ import annotations

from typing import Any

import pytest

from consensus.changes import Facts, Proposal
from consensus.cluster import ClusterState, seat_of, sync_group
from consensus.membership import VOTER, Member
from consensus.operations import Operations, Rolling
from consensus.rolling import PATIENCE_MS, Seen, next_step

MEMBERS = tuple(Member(name, 1, "", "", "", VOTER, VOTER) for name in "abc")
ALL = frozenset("abc")


def asked(**changes: Any) -> Rolling:
    return Rolling(7, ("a", "b", "c"), False, False, 300, "")._replace(**changes)


def step(
    rolling: Rolling | None, *, primary: str = "a", waited_ms: int = 0, copied: frozenset[str] = ALL,
    states: dict[str, tuple[str, str]] | None = None, successor: str = "b", members: tuple[Member, ...] = MEMBERS,
) -> Proposal | None:  # fmt: skip
    group = sync_group((seat_of(m) for m in MEMBERS), "quorum")
    state = ClusterState(members=members, group=group, ops=Operations(rolling))
    seen = Seen(primary, waited_ms, states or {}, successor)
    return next_step(state, Facts("a", ALL, ALL, copied), seen)


def turn(node: str, to: str = "") -> Proposal:
    return Proposal("turn/1", {"index": 7, "node": node, "to": to})


@pytest.mark.parametrize(
    ("rolling", "more", "then"),
    [
        (None, {}, None),
        (asked(), {}, turn("b")),
        (asked(todo=("a", "c"), done=("b",)), {}, turn("c")),
        (asked(todo=("a",), done=("b", "c")), {}, turn("a", "b")),
        (asked(todo=("a",), done=("b", "c")), {"successor": ""}, turn("a", "a")),
        (asked(todo=("a",), in_place=True), {}, turn("a", "a")),
        (asked(todo=("a", "c"), done=("b",)), {"copied": frozenset("ac")}, None),
        (asked(), {"copied": frozenset("ab")}, None),
        (asked(force=True), {"copied": frozenset("ab")}, turn("b")),
        (asked(turn="b", turn_index=9), {}, None),
        (asked(halted="x"), {}, None),
        (asked(todo=("b",)), {"primary": ""}, None),
        (asked(todo=("b",)), {"primary": "", "states": {"b": ("stopped", "")}}, turn("b")),
    ],
)
def test_who_is_next(rolling: Rolling | None, more: dict[str, Any], then: Proposal | None) -> None:
    assert step(rolling, **more) == then


@pytest.mark.parametrize(
    ("rolling", "more", "why"),
    [
        (asked(), {"members": MEMBERS[:2]}, "c is no member any more"),
        (asked(todo=("b",)), {"primary": "", "waited_ms": PATIENCE_MS + 1}, "there is no primary"),
        (asked(todo=("b",)), {"waited_ms": PATIENCE_MS + 1}, "it does not go on"),
        (asked(turn="b"), {"waited_ms": 300_001}, "b was not back after 300 s (it is silent)"),
        (asked(turn="b"), {"waited_ms": 300_001, "states": {"b": ("starting", "")}},
         "b was not back after 300 s (starting)"),
        (asked(turn="b"), {"states": {"b": ("cloning", "")}}, "b did not start, and is copied again"),
    ],
)  # fmt: skip
def test_why_it_stops(rolling: Rolling, more: dict[str, Any], why: str) -> None:
    assert step(rolling, **more) == Proposal("halt/1", {"index": 7, "reason": why})
