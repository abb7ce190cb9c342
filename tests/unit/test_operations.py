"""The replicated part of restarts, reloads and the schedule: what an entry of the log makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consensus.cluster import ClusterState, apply, canonical, dump, load
from consensus.messages import Entry
from consensus.operations import Operations, Reload, Rolling

ASK = {"nodes": ["c", "a", "b"], "in_place": False, "force": True, "timeout_s": 60, "by": "me"}
PLAN = {"what": "switchover", "when": "2030-01-01T00:00:00Z", "request": "{}", "by": "me"}


def after(*entries: tuple[str, dict[str, Any]], state: ClusterState | None = None) -> ClusterState:
    state = state or ClusterState()
    for index, (kind, body) in enumerate(entries, 1):
        state = apply(state, Entry(index, 5, kind, canonical(body)))
    return state


TURN = ("turn/1", {"index": 1, "node": "b", "to": ""})


def test_a_restart_goes_from_turn_to_turn() -> None:
    asked = after(("restart/1", ASK))
    assert asked.ops.restarting == Rolling(1, ("a", "b", "c"), False, True, 60, "me")
    begun = after(("restart/1", ASK), TURN)
    assert begun.ops.restarting == Rolling(
        1, ("a", "b", "c"), False, True, 60, "me", turn="b", turn_index=2, turn_term=5
    )  # fmt: skip
    back = after(("restart/1", ASK), TURN, ("restarted/1", {"node": "b", "turn": 2}))
    assert back.ops.restarting == Rolling(1, ("a", "c"), False, True, 60, "me", done=("b",))
    done = after(("restart/1", ASK | {"nodes": ["b"]}), TURN, ("restarted/1", {"node": "b", "turn": 2}))
    assert done.ops.restarting is None
    assert done.ops.rolling == Rolling(1, (), False, True, 60, "me", done=("b",))


def test_whose_turn_it_is_is_asked_by_name() -> None:
    running = Rolling(1, ("a", "b"), False, False, 60, "", turn="b", turn_index=2)
    assert (running.turn_of("b"), running.turn_of("a")) == (2, 0)
    assert running._replace(halted="x").turn_of("b") == 0
    assert running.turn_in_place == ""
    assert running._replace(to="b").turn_in_place == "b"
    assert running._replace(to="a").turn_in_place == ""


IGNORED: tuple[tuple[tuple[str, dict[str, Any]], ...], ...] = (
    (("restart/1", ASK), ("restart/1", ASK | {"nodes": ["a"]})),
    (("restart/1", ASK | {"nodes": []}),),
    (TURN,),
    (("restart/1", ASK), ("turn/1", {"index": 7, "node": "b", "to": ""})),
    (("restart/1", ASK), ("turn/1", {"index": 1, "node": "x", "to": ""})),
    (("restart/1", ASK), TURN, ("turn/1", {"index": 1, "node": "c", "to": ""})),
    (("restart/1", ASK), ("restarted/1", {"node": "b", "turn": 2})),
    (("restart/1", ASK), TURN, ("restarted/1", {"node": "b", "turn": 1})),
    (("restart/1", ASK), TURN, ("restarted/1", {"node": "c", "turn": 2})),
    (("restart/1", ASK), ("halt/1", {"index": 7, "reason": "x"})),
    (("halt/1", {"index": 1, "reason": "x"}),),
    (("schedule/1", PLAN), ("schedule/1", PLAN | {"what": "restart"})),
    (("schedule/1", PLAN), ("unschedule/1", {"index": 7, "text": "x"})),
    (("unschedule/1", {"index": 1, "text": "x"}),),
)


@pytest.mark.parametrize("entries", IGNORED, ids=[f"{n} {e[-1][0]}" for n, e in enumerate(IGNORED)])
def test_an_entry_that_no_longer_applies_changes_nothing(entries: tuple[tuple[str, dict[str, Any]], ...]) -> None:
    assert after(*entries) == after(*entries[:-1])


def test_a_restart_that_was_halted_makes_room_for_another() -> None:
    halted = after(("restart/1", ASK), TURN, ("halt/1", {"index": 1, "reason": "b is gone"}))
    assert halted.ops.restarting is None
    assert halted.ops.rolling is not None
    assert (halted.ops.rolling.halted, halted.ops.rolling.turn) == ("b is gone", "")
    again = after(("restart/1", ASK), ("halt/1", {"index": 1, "reason": "x"}), ("restart/1", ASK | {"nodes": ["b"]}))
    assert again.ops.restarting is not None
    assert (again.ops.restarting.index, again.ops.restarting.todo) == (3, ("b",))


def test_what_happens_is_remembered_with_who_asked() -> None:
    entries = (
        ("restart/1", ASK), ("turn/1", {"index": 1, "node": "a", "to": "a"}), ("restarted/1", {"node": "a", "turn": 2}),
        ("turn/1", {"index": 1, "node": "b", "to": "c"}), ("halt/1", {"index": 1, "reason": "it was cancelled"}),
        ("schedule/1", PLAN), ("unschedule/1", {"index": 6, "text": "begins"}),
        ("reload/1", {"nodes": ["b", "a"], "by": ""}),
    )  # fmt: skip
    assert [(e.kind, e.node, e.text) for e in after(*entries).history] == [
        ("restart", "", "of a, b, c was asked for by me"),
        ("restart", "a", "is restarted now: the primary, in place"),
        ("restart", "a", "is restarted and back"),
        ("restart", "b", "is restarted now: the primary, c takes over"),
        ("restart", "b", "stops here: it was cancelled; left as they are: b, c"),
        ("schedule", "", "switchover is scheduled for 2030-01-01T00:00:00Z, asked for by me"),
        ("schedule", "", "switchover scheduled for 2030-01-01T00:00:00Z begins"),
        ("reload", "", "of a, b was asked for"),
    ]


def test_all_of_it_survives_a_snapshot_and_an_older_one_has_none() -> None:
    full = after(("restart/1", ASK), TURN, ("schedule/1", PLAN), ("reload/1", {"nodes": ["b"], "by": "me"}))
    assert full.ops.reload == Reload(4, ("b",))
    assert (full.ops.reload_of("b"), full.ops.reload_of("a")) == (4, 0)
    assert load(dump(full)) == full
    done = after(("restarted/1", {"node": "b", "turn": 2}), state=replace(full, history=()))
    assert load(dump(done)) == done
    assert load(dump(ClusterState())) == ClusterState()
    text = dump(ClusterState()).replace('"ops":[null,null,[0,[]]],', "")
    assert "ops" not in text
    assert load(text).ops == Operations()
