"""The pre_promote hook at the leader: asked before the grant; a no makes another node primary, and is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from consensus.changes import ended
from consensus.cluster import ClusterState, Grant, Seat, Veto, apply, canonical
from consensus.clustertext import dump, load
from consensus.messages import AppendReq, Entry
from consensus.promotion import VETO_PAUSE_MS, AskHook, Degrade, HandOver, TakeGrant, Wait
from consensus.record import Position
from fencing.lease import MS
from tests.unit.nodes import Cluster
from tests.unit.test_promotion import OPENED, ask, state
from tests.unit.test_reconfigure import put
from tests.unit.test_requests import opened

HOOKED = '{"hooks.pre_promote":["/h"]}'


@dataclass
class Parents:
    """What the hook of each node says, by name; nobody: it never ends."""

    cluster: Cluster
    says: dict[str, bool]
    asked: list[tuple[str, list[int]]] = field(default_factory=list)

    def until(self, what: Callable[[], bool], limit_ms: int = 10_000) -> None:
        def step() -> bool:
            self.answer()
            return what()

        self.cluster.until(step, limit_ms)

    def answer(self) -> None:
        for name, m in self.cluster.members.items():
            run = m.state.get("pre_promote", [0, 0])
            if not m.up or run == [0, 0] or (name, run) in self.asked:
                continue
            self.asked.append((name, run))
            if name in self.says:
                body = {"run": run, "ok": self.says[name], "reason": "" if self.says[name] else f"not {name}"}
                self.cluster.tell(name, "node.hooked", body)


def hooked(**says: bool) -> tuple[Cluster, Parents]:
    """Three nodes with a primary and a hook; the primary is lost."""
    cluster = opened("a", "b", "c")
    assert put(cluster, "a", hooks__pre_promote="/h")["ok"]
    cluster.until(lambda: all("/h" in m.cluster["config"] for m in cluster.members.values()))
    cluster.members[cluster.primary()].up = False
    return cluster, Parents(cluster, says)


def kinds(cluster: Cluster, name: str) -> list[list[str]]:
    return [e[1:5] for e in cluster.members[name].cluster["history"]]


def test_a_yes_lets_the_leader_take_its_grant() -> None:
    cluster, parents = hooked(a=True, b=True, c=True)
    parents.until(lambda: cluster.primary() != "")
    assert [name for name, _ in parents.asked] == [cluster.primary()]
    assert cluster.members[cluster.primary()].state["pre_promote"] == [0, 0], "it is asked no more"


def test_nothing_is_granted_while_the_hook_runs_and_an_old_answer_counts_for_nothing() -> None:
    cluster, parents = hooked()
    parents.until(lambda: parents.asked != [])
    name, run = parents.asked[0]
    before = cluster.members[name].cluster["grants"]
    cluster.run(500)
    assert cluster.leader() == name
    assert cluster.members[name].cluster["grants"] == before
    assert "pre_promote hook of" in cluster.members[name].state["sentence"]
    for other in ([run[0], run[1] + 1], [run[0] - 1, run[1]], [0, 0]):
        cluster.tell(name, "node.hooked", {"run": other, "ok": True, "reason": ""})
    cluster.run(100)
    assert cluster.primary() == ""
    cluster.tell(name, "node.hooked", {"run": run, "ok": True, "reason": ""})
    cluster.until(lambda: cluster.primary() == name)


def test_an_answer_that_nobody_waits_for_changes_nothing() -> None:
    cluster = opened("a", "b", "c")
    follower = next(n for n in "abc" if n != cluster.leader())
    for name in (follower, cluster.leader()):
        cluster.tell(name, "node.hooked", {"run": [1, 1], "ok": False, "reason": "x"})
    assert not any(m.cluster["vetoes"] for m in cluster.members.values())


def test_a_no_makes_another_node_primary() -> None:
    cluster, parents = hooked()
    parents.until(lambda: parents.asked != [])
    no, run = parents.asked[0]
    yes = next(n for n in "bc" if n != no)
    parents.says = {yes: True}
    cluster.tell(no, "node.hooked", {"run": run, "ok": False, "reason": "ended with 1: fence device away"})
    parents.until(lambda: cluster.primary() == yes)
    told = kinds(cluster, yes)
    assert ["vetoed", run[0], no, "its pre_promote hook said no: ended with 1: fence device away"] in told
    reasons = [text for kind, _, node, text in told if kind == "promoted" and node == yes]
    assert f"the pre_promote hook of {no} said no (ended with 1: fence device away)" in reasons[-1]
    assert cluster.members[yes].cluster["vetoes"] != []
    cluster.open()
    cluster.until(lambda: cluster.members[yes].cluster["vetoes"] == [])


def test_with_a_no_everywhere_there_is_no_primary_and_that_is_said() -> None:
    cluster, parents = hooked(b=False, c=False)
    parents.until(lambda: len(parents.asked) == 2)
    cluster.run(1000)
    leader = cluster.leader()
    sentence = cluster.members[leader].state["sentence"]
    assert sentence.startswith("no primary: the pre_promote hook of ")
    assert "of b said no (not b)" in sentence
    assert "of c said no (not c)" in sentence
    assert "is tried again 10 s after the last" in sentence
    # Each in turn, so that one that has come to its senses gets its chance, and not in a hurry.
    began = cluster.now
    cluster.turn_ms = 10
    parents.until(lambda: len(parents.asked) == 6, limit_ms=60_000)
    assert [name for name, _ in parents.asked] in (list("bcbcbc"), list("bccbbc"), list("cbcbcb"), list("cbbccb"))
    assert (cluster.now - began) // MS >= 3 * VETO_PAUSE_MS
    vetoed = [e for e in kinds(cluster, leader) if e[0] == "vetoed"]
    assert len(vetoed) == 2, "a line each, not one each time"
    assert cluster.members[leader].cluster["grants"][-1][1] == "a", "no timeline is burned"
    parents.says = {"b": False, "c": True}
    parents.until(lambda: cluster.primary() == "c", limit_ms=60_000)


def test_without_the_hook_a_no_counts_no_more() -> None:
    cluster, parents = hooked(b=False, c=False)
    parents.until(lambda: len(parents.asked) == 2)
    cluster.run(500)
    assert put(cluster, cluster.leader(), ("hooks.pre_promote",))["ok"], "settings change without a primary"
    parents.until(lambda: cluster.primary() != "")
    assert cluster.members[cluster.primary()].cluster["vetoes"] == []


# -- the decision


def asked(promises: dict[str, tuple[int, int] | None], vetoes: tuple[Veto, ...] = (), **more: Any) -> Any:
    more.setdefault("cleared", False)
    known = replace(more.pop("of", state()), config=HOOKED, vetoes=vetoes)
    return ask(promises, state=known, **more)


def veto(name: str, times: int = 1) -> Veto:
    return Veto(Seat(name, 1), times, "r")


BC: dict[str, tuple[int, int] | None] = {"b": (3, 50), "c": (3, 50)}


def test_the_group_does_not_shrink_to_a_node_before_its_hook_has_said_yes() -> None:
    loose = '{"hooks.pre_promote":["/h"],"strict":false}'

    def alone(*, cleared: bool) -> Any:
        known = replace(state(), config=loose)
        return ask({"a": (3, 50)}, state=known, me="a", cleared=cleared, connected=frozenset("a"), waited=20_000)

    assert isinstance(alone(cleared=False), AskHook)
    assert isinstance(alone(cleared=True), Degrade)


def test_who_was_not_vetoed_goes_first_then_who_was_least_often() -> None:
    assert isinstance(asked(BC), AskHook)
    assert isinstance(asked(BC, cleared=True), TakeGrant)
    assert asked(BC, (veto("b"),)).to == "c"
    assert asked(BC, (veto("b", 2), veto("c", 1))).to == "c"
    assert isinstance(asked(BC, (veto("b", 1), veto("c", 1))), AskHook)
    failed = Grant(4, "c", Position(3, 50), 3, failed="x")
    assert isinstance(asked(BC, (veto("b"),), of=state(grants=(OPENED, failed))), AskHook), "a failed grant counts too"
    twice = (OPENED, failed._replace(term=3), failed)
    assert isinstance(asked(BC, (veto("b"),), of=state(grants=twice)), AskHook)
    assert asked(BC, (veto("b", 3),), of=state(grants=twice)).to == "c"


def test_a_pause_comes_before_somebody_is_asked_anew() -> None:
    both = (veto("b", 1), veto("c", 1))
    assert isinstance(asked(BC, both, vetoed_ms=VETO_PAUSE_MS - 1), Wait)
    assert isinstance(asked(BC, both, vetoed_ms=VETO_PAUSE_MS), AskHook)
    assert isinstance(asked(BC, (veto("b"),), vetoed_ms=0), HandOver), "and none before somebody who was not asked yet"


# -- the entry


def entry(of: int, **body: Any) -> Entry:
    return Entry(9, of, "veto/1", canonical({"node": "b", "term": of, "reason": "r"} | body))


def test_the_entry_counts_in_its_own_term_and_for_members() -> None:
    one = apply(state(), entry(4))
    assert one.vetoes == (Veto(Seat("b", 1), 1, "r"),)
    assert one.history[-1].kind == "vetoed"
    two = apply(one, entry(5))
    assert two.vetoes[0].times == 2
    assert two.history == one.history
    assert apply(two, entry(6, reason="else")).history[-1].text.endswith("else")
    assert apply(state(), entry(4, term=3)) == state()
    assert apply(state(), entry(4, node="x")) == state()
    assert load(dump(two)) == two
    old = json.loads(dump(state()))
    del old["vetoes"]
    assert load(canonical(old)) == state()
    left = apply(two, Entry(10, 6, "members/1", canonical({
        "members": [list(m) for m in two.members if m.name != "b"], "kind": "left", "node": "b", "text": "",
    })))  # fmt: skip
    assert left.vetoes == ()


@pytest.mark.parametrize(("kind", "other"), [("salvaged", "config"), ("config", "salvaged")])
def test_what_is_told_of_primaries_is_not_pushed_out_by_the_rest(kind: str, other: str) -> None:
    known = ClusterState()
    body = {"term": 1, "node": "a", "text": "", "fields": {}}
    known = apply(known, Entry(1, 1, "event/1", canonical(body | {"kind": kind})))
    for i in range(201):
        known = apply(known, Entry(2 + i, 1, "event/1", canonical(body | {"kind": other, "text": str(i)})))
    assert [e.kind for e in known.history].count(kind) == 1
    assert [e.text for e in known.history if e.kind == other] == [str(i) for i in range(1, 201)]


# -- when the old primary was last heard


def test_the_parent_of_a_primary_knows_when_the_old_one_was_heard_last() -> None:
    cluster = opened("a", "b", "c")
    old, term = cluster.primary(), cluster.members[cluster.primary()].state["granted"]
    cluster.run(1000)
    assert cluster.members["b"].state["old_primary"] == [0, 0], "it is no news while that one lives"
    cluster.members[old].up = False
    lost_ns = cluster.now
    cluster.until(lambda: cluster.primary() not in ("", old))
    told = cluster.members[cluster.primary()].state["old_primary"]
    assert told[0] == term
    assert lost_ns - 100 * MS - 5 * MS <= told[1] <= lost_ns + 5 * MS
    assert cluster.now - told[1] > 500 * MS


def test_a_leader_that_was_never_open_is_no_old_primary() -> None:
    cluster = opened("a", "b", "c")
    sightings = cluster.members["b"].node.sightings
    before = sightings.old_primary
    closed = Grant(7, "c", Position(0, 0), 2)
    beat = AppendReq(7, 1, 1, 0, 0, (), 0)
    for grant, src in ((None, "c"), (closed, "c"), (closed._replace(opened=True), "a")):
        sightings.hear_primary(grant, src, beat, 5)
    assert sightings.old_primary == before
    sightings.hear_primary(closed._replace(opened=True), "c", beat, 5)
    assert sightings.old_primary == (7, 5)


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ({"clean": True, "closed_ms": 80}, "event/1", "stopped its Postgres cleanly for a switchover"),
        ({"clean": False}, "event/1", "stopped its Postgres by force for a switchover"),
        ({"clean": False, "closed_ms": 80}, "failed/1", ""),
    ],
)
def test_the_end_of_a_reign_says_since_when_no_write_was_possible(body: dict[str, Any], kind: str, text: str) -> None:
    found = ended(OPENED, body | {"at": "", "reason": "switchover"}, planned=kind == "event/1")
    assert (found.kind, found.body.get("text", "")) == (kind, text)
    assert found.body["fields"] == ({"closed_ms": 80} if "closed_ms" in body else {})
