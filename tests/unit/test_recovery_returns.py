"""What a rebuilt cluster does with those who come back, and with another that was rebuilt from the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from consensus import recovery
from consensus.effects import Effect, SendStranger
from consensus.former import Former, Left
from consensus.messages import AppendReq, Hello, PreVoteReq
from fencing.lease import MS
from tests.unit.nodes import CLUSTER_ID, Cluster, member_of
from tests.unit.test_recovery import has_data, left_alone, recover

OTHER_ID = "ef" * 16


def open_beside(c: Cluster, name: str) -> None:
    """Until this one is primary and open, whoever else is elsewhere."""
    m = c.members[name]
    c.until(lambda: bool(m.state.get("granted")), 20_000)
    term, at = c.promote(name)
    c.until(lambda: bool(m.cluster["grants"][-1][5]))
    m.position = (term, at + 50)


def told(c: Cluster, at: str, kind: str) -> list[str]:
    """Of whom the history of ``at`` has an entry of this kind."""
    return [h[3] for h in c.members[at].cluster["history"] if h[1] == kind]


def granted(c: Cluster) -> set[str]:
    return {n for n, m in c.members.items() if m.up and m.state.get("granted")}


def rebuilt_alone(names: str = "a b c") -> tuple[Cluster, str, list[str]]:
    """Rebuilt around one, who has no grant yet; and the others, who are down."""
    c, me = left_alone(names)
    c.run(2500)
    assert recover(c, me, confirm=CLUSTER_ID[:8]) == {}
    return c, me, [n for n in c.members if n != me]


def test_those_who_come_back_are_told_to_stop_and_the_history_tells_of_it() -> None:
    c, me, old = rebuilt_alone()
    c.open()
    for name in old:
        c.restart(name)
    c.until(lambda: all(not c.members[n].up for n in old), 20_000)
    for name in old:
        assert "has rebuilt it as" in c.members[name].refused[0]
        assert "DIR/raft" in c.members[name].refused[1]
    c.run(1500)
    assert sorted(told(c, me, "superseded")) == old, "each once"
    assert c.primary() == me


def test_without_being_told_the_old_majority_would_be_a_second_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(recovery, "superseded", lambda *_: [])
    monkeypatch.setattr(recovery, "call_on", lambda *_: [])
    c, _, old = rebuilt_alone()
    c.open()
    for name in old:
        c.restart(name)
    c.until(lambda: len(granted(c)) == 2, 20_000)


def test_one_of_a_former_cluster_is_let_in_anew_and_nobody_else_of_that_name_needs_to_be_told() -> None:
    c, me, (other, _) = rebuilt_alone()
    c.open()
    c.join(other)  # an empty disk, its --peers as ever
    c.until(lambda: c.roles(me) == " ".join(sorted((me, other))) and c.seats(me).startswith("2 of"), 30_000)
    stranger = c.join("z")
    c.until(lambda: stranger.refused != ("", ""), 20_000)
    assert "not a member" in stranger.refused[0]


def test_only_frames_of_a_former_cluster_are_answered_and_not_each_of_them() -> None:
    c, me = left_alone()
    node = c.members[me].node
    node.cluster = replace(node.cluster, former=(Former(OTHER_ID, (Left("a", 1, "a:1"), Left(me, 1, "x:1")), 3),))
    beat = AppendReq(5, 1, 1, 0, 0, (), 0)

    def answered(cluster_id: str, src: str, incarnation: int = 1, message: Any = beat, after_ms: int = 0) -> int:
        later_ns = c.now + after_ms * 10**6
        return len(recovery.superseded(node, cluster_id, src, incarnation, message, later_ns))

    assert answered("12" * 16, "a") == 0, "of some other cluster"
    assert answered(OTHER_ID, me) == 0, "of ourselves"
    assert answered(OTHER_ID, "a") == 1
    assert answered(OTHER_ID, "a") == 0, "just told"
    assert answered(OTHER_ID, "a", after_ms=recovery.TELL_AGAIN_MS) == 1
    assert answered(OTHER_ID, "q", message=PreVoteReq(3, 1, 1)) == 0, "where it is nobody knows"
    assert answered(OTHER_ID, "q", message=Hello(3, '{"kind": "introduction", "raft": "q:9"}')) == 1
    assert answered(OTHER_ID, "r", message=Hello(3, "[]")) == 0


# -- not before it was open --------------------------------------------------------------------------------------------


def test_a_cluster_that_never_opens_ends_nobody_who_could_go_on() -> None:
    """The Postgres of the survivor does not start; the majority comes back with all its data."""
    c, me, old = rebuilt_alone()
    c.streams = False  # nobody makes a position up
    c.members[me].position = (-1, 0)
    for name in old:
        c.restart(name)
    c.until(lambda: bool(granted(c) & set(old)), 30_000)
    c.sleep(10_000)
    assert [c.members[n].refused for n in old] == [("", "")] * 2
    assert told(c, me, "superseded") == []
    c.members[me].position = (4, 150)
    open_beside(c, me)
    c.until(lambda: not any(c.members[n].up for n in old), 20_000)
    c.until(lambda: sorted(told(c, me, "superseded")) == old)
    assert granted(c) == {me}


@pytest.mark.parametrize("back_ms", [-1500, -1100, -900, -300, -50, 0, 5, 50, 300])
def test_whenever_the_majority_comes_back_one_cluster_goes_on(back_ms: int) -> None:
    """Before the request, or after the new cluster was open; 0: between the two."""
    c, me = left_alone()
    c.run(2500)
    old = [n for n in c.members if n != me]

    def back() -> None:
        for name in old:
            c.restart(name)

    if back_ms < 0:
        back()
        c.run(1500 + back_ms)
    refusal = recover(c, me, confirm=CLUSTER_ID[:8])
    if refusal:
        assert "no quorum is lost" in refusal["error"]
        c.until(lambda: len(granted(c)) == 1, 20_000)
        assert {m.disk.identity.cluster_id for m in c.members.values()} == {CLUSTER_ID}
        return
    if back_ms == 0:
        back()
    open_beside(c, me)
    if back_ms > 0:
        c.run(back_ms)
        back()
    c.until(lambda: not any(c.members[n].up for n in old), 20_000)
    c.run(2500)
    assert granted(c) == {me}


# -- undone ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved_away", [True, False])
def test_a_recovery_that_was_a_mistake_is_undone_without_the_raft_state_of_that_node(*, moved_away: bool) -> None:
    """Started with it, it goes on as the new cluster, and ends the others: the control."""
    c, me, old = rebuilt_alone()
    c.open()
    c.members[me].up = False
    for name in old:
        c.restart(name)
    c.until(lambda: bool(granted(c)), 20_000)
    (primary,) = granted(c)
    open_beside(c, primary)
    if moved_away:
        c.join(me)
        seated = f"2 of {' '.join(sorted((me + '2', *old)))}"
        c.until(lambda: c.roles(primary) == " ".join(sorted((me, *old))) and c.seats(primary) == seated, 30_000)
        assert granted(c) == {primary}
        assert all(m.refused == ("", "") and m.disk.identity.cluster_id == CLUSTER_ID for m in c.members.values())
    else:
        c.restart(me)
        c.until(lambda: not any(c.members[n].up for n in old), 20_000)


# -- two at once -------------------------------------------------------------------------------------------------------


def test_a_majority_that_has_removed_the_survivor_learns_that_it_goes_on_alone() -> None:
    """It was only unreachable. Nobody there would ever speak to it again; so it speaks to them, and nobody is ended."""
    c = Cluster("a", "b", "c", streams=True)
    first = c.open()
    c.until(lambda: all(m.position[0] == c.members[first].state["term"] for m in c.members.values()))
    me = next(n for n in "cba" if n != first)
    others = [n for n in c.members if n != me]
    has_data(c, me)
    c.cut = {pair for n in others for pair in ((me, n), (n, me))}
    c.run(2500)
    c.ask(first, "member.remove", name=me)
    c.until(lambda: me not in c.roles(first), 30_000)
    assert recover(c, me, confirm=CLUSTER_ID[:8]) == {}
    open_beside(c, me)
    c.cut.clear()
    c.until(lambda: all(me in told(c, n, "rival") for n in others), 30_000)
    assert granted(c) == {first, me}, "which of them is to go on a person decides"
    (words,) = {h[4] for h in c.members[first].cluster["history"] if h[1] == "rival"}
    assert words == f"has rebuilt the cluster {CLUSTER_ID[:8]} too: there are two clusters now; stop one of them"


def test_two_that_were_rebuilt_from_the_same_cluster_tell_of_each_other() -> None:
    c, x = left_alone("a b c d e")
    y = next(n for n in c.members if n not in (x, c.members[x].cluster["grants"][-1][1]))
    c.members[y].up = True
    has_data(c, y)
    c.run(3000)
    assert recover(c, x, confirm=CLUSTER_ID[:8], survivors=[y]) == {}
    assert recover(c, y, confirm=CLUSTER_ID[:8], survivors=[x]) == {}
    open_beside(c, x)
    open_beside(c, y)
    c.until(lambda: (told(c, x, "rival"), told(c, y, "rival")) == ([y], [x]), 30_000)
    c.sleep(10_000)
    assert (told(c, x, "rival"), told(c, y, "rival")) == ([y], [x]), "each once"
    assert granted(c) == {x, y}


def test_the_word_of_another_that_was_rebuilt_ends_nobody() -> None:
    c, me, _ = rebuilt_alone()
    c.open()
    m = c.members[me]
    for number, kind in enumerate(("stranger", recovery.REBUILT)):
        body = {"kind": kind, "reason": "", "hint": "", "final": True}
        hello = Hello(1, json.dumps(body | {"raft": "q:1"}))
        effects = recovery.superseded(m.node, CLUSTER_ID, f"q{number}", 1, hello, c.now)
        assert effects == [], "it is not of the former cluster, and is not told to stop"
    c.until(lambda: sorted(told(c, me, "rival")) == ["q0", "q1"])
    assert (m.up, m.refused) == (True, ("", ""))


def test_those_who_were_given_up_are_called_on_in_turn_by_a_leader_that_is_open(
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    c, me, old = rebuilt_alone("a b c d")
    node, later_ns = c.members[me].node, 0

    def called() -> list[str]:
        nonlocal later_ns
        later_ns = max(later_ns, c.now) + recovery.CALL_EVERY_MS * MS  # it has called by itself, just now at the latest
        effects: list[Effect] = recovery.call_on(node, later_ns)
        assert recovery.call_on(node, later_ns) == [], "not so soon"
        for effect in effects:
            assert isinstance(effect, SendStranger)
            assert json.loads(effect.message.data) == {"kind": recovery.REBUILT, "as": node.identity.cluster_id}
            assert (effect.incarnation, effect.cluster_id) == (0, CLUSTER_ID), "any life of it, in the old name"
        return [effect.dst for effect in effects if isinstance(effect, SendStranger)]

    c.run(1500)
    assert node.leads()
    assert called() == [], "it is not open"
    c.open()
    assert sorted(one for _ in old for one in called()) == old
    cluster = node.cluster
    node.cluster = replace(cluster, members=(*cluster.members, member_of(old[0], 2, f"{old[0]}:1", "voter")))
    assert {one for _ in old for one in called()} == set(old[1:]), "who is in it again is not called on"
    itself = cluster.former[-1]._replace(left=(Left(me, 1, "before:1"),))
    node.cluster = replace(cluster, former=(itself,))
    assert called() == []
    node.cluster = cluster
    monkeypatch.setattr(node, "leads", lambda: False)
    assert called() == [], "one speaks for all"
