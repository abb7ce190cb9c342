"""The table of a node's next steps: every row decides somewhere, and what no row may ever do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.cluster import Change, ClusterState, Grant, Reinit, Seat, seat_of, sync_group
from consensus.membership import Member
from consensus.operations import Operations, Rolling
from consensus.record import EpochStart, NodeRecord, Position
from fencing.lease import MS, PROFILES
from supervisor import roles
from supervisor.roles import RULES, Data, Local, Plan, Rule, Server, Situation, Step, View, plan

TIMINGS = PROFILES["default"]
NOW = 1_000_000 * MS
FIRST = EpochStart(0, 0, 1)
MEMBERS = tuple(Member(name, 7, f"{name}:1", f"{name}:2", "") for name in "abc")
REBORN = tuple(m._replace(incarnation=8) for m in MEMBERS)
"""Of the same names as those here, in another life."""
FRESH = NOW + TIMINGS.lease_ms * MS
"""A lease that was earned this instant."""
DEMOTED = (TIMINGS.lease_ms - TIMINGS.demote_ms) * MS
"""What is left of a lease when orderly demotion begins."""


def granted(term: int, node: str, **changes: Any) -> Grant:
    grant = Grant(term, node, Position(0, 100), 2, (FIRST, EpochStart(term, 100, 2)), opened=True)
    return grant._replace(**changes)


def agreed(*grants: Grant, **changes: Any) -> ClusterState:
    group = sync_group((seat_of(m) for m in MEMBERS), "quorum")
    state = ClusterState("1" * 32, MEMBERS, group=group, founder="a", nonce="n", system_identifier="7", grants=grants)
    return replace(state, **changes)


def serving(*, view: dict[str, Any] | None = None, local: dict[str, Any] | None = None) -> Situation:
    """``a`` is primary of term 5, open, with a fresh lease; and what differs from that."""
    seen = View(
        True, 7, 5, "a", "leader", wanted=5, granted=5, record=NodeRecord(5), cluster=agreed(granted(5, "a")),
        lease_term=5, lease_until_ns=FRESH, renewed=True,
    )  # fmt: skip
    here = Local("a", Data.READY, Server.PRIMARY, epoch=5, frozen=5, gate_open=True)
    return Situation(replace(seen, **view or {}), replace(here, **local or {}), TIMINGS, NOW)


def streaming(*, view: dict[str, Any] | None = None, local: dict[str, Any] | None = None) -> Situation:
    """``b`` streams from ``a``, the primary of term 5."""
    seen = View(True, 7, 5, "a", wanted=5, record=NodeRecord(5), cluster=agreed(granted(5, "a")), met=True)
    here = Local("b", Data.READY, Server.STANDBY, upstream=5, may_receive=True)
    return Situation(replace(seen, **view or {}), replace(here, **local or {}), TIMINGS, NOW)


def decided(situation: Situation) -> Plan:
    return plan(situation)[0]


SITUATIONS_TRIED = 4_000

DOWN: dict[str, Any] = {"server": Server.DOWN, "upstream": 0, "may_receive": False}
DETACHED: dict[str, Any] = {"upstream": 0, "may_receive": False}
FOUNDING: dict[str, Any] = {"cluster": agreed(system_identifier=""), "wanted": 1, "record": NodeRecord()}
UNOPENED = agreed(granted(5, "a", opened=False))
SMALLER = sync_group((seat_of(m) for m in MEMBERS[:2]), "quorum")
CHANGING = agreed(granted(5, "a"), change=Change(9, agreed().group, SMALLER))
KEPT_DOWN = agreed(granted(5, "a"), fenced=("a", "b"))
PAUSED: dict[str, Any] = {"config": '{"pause":true}'}
PAUSE = agreed(granted(5, "a"), **PAUSED)


def turn_of(name: str, **changes: Any) -> ClusterState:
    """``name`` is being restarted, by the word of entry 9."""
    rolling = Rolling(8, ("a", "b"), False, False, 300, "ops@host", turn=name, turn_index=9, turn_term=5)
    return agreed(granted(5, "a"), ops=Operations(rolling), **changes)


ASKED = agreed(granted(5, "a"), reinits=(Reinit(Seat("b", 7), 9),))

DECIDES: tuple[tuple[str, int, Situation], ...] = (
    # rule, term of the plan, situation
    ("authority-lost", 5, serving(view={"lease_until_ns": NOW + DEMOTED})),
    ("authority-lost", 5, serving(view={"granted": 0})),
    ("authority-lost", 5, serving(view={"granted": 6})),
    ("authority-lost", 5, serving(view={"lease_term": 6})),
    ("authority-lost", 5, serving(view={"lease_until_ns": 0}, local={"server": Server.PROMOTING})),
    ("authority-lost", 5, serving(view={"alive": False, "lease_until_ns": NOW + roles.LAST_MOMENT_MS * MS})),
    ("authority-lost", 5, serving(local={"unguarded_since_ns": NOW - TIMINGS.demote_ms * MS})),
    ("authority-lost", 5, serving(view={"granted": 0}, local={"stopping": True})),
    ("authority-lost", 5, serving(view={"granted": 0}, local={"server": Server.STOPPING})),
    ("authority-lost", 5, serving(view={"granted": 0, "hand_over": "b"})),
    ("leftovers", 0, streaming(local={**DOWN, "clean": False})),
    ("leftovers", 5, serving(local={"server": Server.DOWN, "clean": False, "crashed": "killed"})),
    ("leftovers", 0, streaming(local={**DOWN, "clean": False, "stopping": True})),
    ("leftovers", 0, streaming(view={"alive": False}, local={**DOWN, "clean": False})),
    ("grant-unused", 5, serving(local={"server": Server.DOWN, "crashed": "killed"})),
    ("grant-unused", 5, serving(local={"server": Server.DOWN, "crashed": "killed", "stopping": True})),
    ("promotion-failed", 5, serving(local={"server": Server.PROMOTING, "failed_promotion": 5})),
    ("promotion-failed", 5, serving(local={"server": Server.STANDBY, "failed_promotion": 5})),
    ("hand-over", 5, serving(view={"hand_over": "b"})),
    ("hand-over", 5, serving(view={"hand_over": "b"}, local={"server": Server.STOPPING})),
    ("hand-over", 5, serving(view={"hand_over": "b"}, local={"stopping": True})),
    ("stopping-primary", 0, serving(local={"stopping": True})),
    ("stopping", 0, streaming(local={"stopping": True})),
    ("stopping", 0, serving(local={"stopping": True, "asked_to_hand_over": True})),
    ("stopped", 0, streaming(local={**DOWN, "stopping": True})),
    ("control-away", 0, streaming(view={"alive": False})),
    ("control-away", 0, streaming(view={"cluster": None})),
    ("control-away", 0, serving(view={"alive": False, "lease_until_ns": NOW + DEMOTED - 1})),
    ("grant-unused", 5, serving(view={"cluster": KEPT_DOWN}, local=DOWN)),
    ("fenced-primary", 5, serving(view={"cluster": KEPT_DOWN})),
    ("fenced-primary", 5, serving(view={"cluster": KEPT_DOWN}, local={"server": Server.STOPPING})),
    ("hand-over", 5, serving(view={"cluster": KEPT_DOWN, "hand_over": "b"})),
    ("fenced", 0, streaming(view={"cluster": KEPT_DOWN})),
    ("fenced", 0, streaming(view={"cluster": KEPT_DOWN, "wanted": 6}, local={"server": Server.STARTING})),
    ("fenced", 0, streaming(view={"cluster": KEPT_DOWN}, local={"server": Server.STOPPING})),
    ("kept-down", 0, streaming(view={"cluster": KEPT_DOWN}, local=DOWN)),
    ("kept-down", 0, streaming(view={"cluster": KEPT_DOWN}, local={**DOWN, "data": Data.BROKEN})),
    ("kept-down", 0, streaming(view={"cluster": KEPT_DOWN, "met": False, "leader": ""}, local=DOWN)),
    ("rewind", 5, streaming(view={"cluster": KEPT_DOWN}, local={**DOWN, "rebuilding": 5})),
    ("stopping", 0, streaming(view={"cluster": KEPT_DOWN}, local={"stopping": True})),
    ("control-away", 0, streaming(view={"cluster": KEPT_DOWN, "alive": False})),
    ("create", 0, serving(view=FOUNDING, local={"data": Data.ABSENT, **DOWN, "epoch": 0})),
    ("promise", 6, streaming(view={"wanted": 6})),
    ("promise", 6, streaming(view={"wanted": 6}, local={"upstream": 0, "diverged": 5, "frozen": 4})),
    ("promote", 5, serving(local={"server": Server.STANDBY, "epoch": 0, "gate_open": False})),
    ("promote", 5, serving(local={"server": Server.PROMOTING, "gate_open": False})),
    ("prove", 5, serving(view={"cluster": UNOPENED}, local={"gate_open": False})),
    ("open-gate", 5, serving(local={"gate_open": False})),
    ("regroup", 9, serving(view={"cluster": CHANGING})),
    ("restart", 9, streaming(view={"cluster": turn_of("b")})),
    ("restart", 9, streaming(view={"cluster": turn_of("b")}, local={"server": Server.STOPPING})),
    ("restart", 9, streaming(view={"cluster": turn_of("b", **PAUSED)})),
    ("cascading", 0, streaming(local={"upstream_node": "c"})),
    ("streaming", 0, streaming(local={"upstream_node": "a"})),
    ("streaming", 0, streaming(view={"cluster": turn_of("b")}, local={"restarted": 9})),
    ("streaming", 0, streaming(view={"cluster": turn_of("a")})),
    ("start", 0, streaming(view={"cluster": turn_of("b")}, local=DOWN)),
    ("promise", 6, streaming(view={"cluster": turn_of("b"), "wanted": 6})),
    ("serving", 0, serving(view={"cluster": turn_of("a")})),
    ("left-down", 0, streaming(view={"cluster": PAUSE}, local={**DOWN, "left_down": True})),
    ("left-down", 0, streaming(view={"cluster": PAUSE, "met": False}, local={**DOWN, "left_down": True})),
    ("start", 0, streaming(local={**DOWN, "left_down": True})),
    ("start", 0, streaming(view={"cluster": PAUSE}, local=DOWN)),
    ("start", 0, streaming(view={"cluster": turn_of("b", **PAUSED)}, local={**DOWN, "left_down": True})),
    ("copy-held", 0, streaming(view={"cluster": PAUSE}, local={**DOWN, "data": Data.BROKEN})),
    ("copy-held", 0, streaming(view={"cluster": PAUSE}, local={"needs_clone": 5})),
    ("start", 0, streaming(view={"cluster": PAUSE}, local={**DOWN, "needs_clone": 5})),
    ("start", 0, streaming(view={"cluster": PAUSE}, local={**DOWN, "diverged": 5})),
    ("copy-held", 0, streaming(view={"cluster": PAUSE}, local={**DETACHED, "diverged": 5})),
    ("clone", 5, streaming(view={"cluster": PAUSE}, local={**DOWN, "data": Data.ABSENT})),
    ("clone", 5, streaming(view={"cluster": replace(ASKED, **PAUSED)}, local={"needs_clone": 5})),
    ("rewind", 5, streaming(view={"cluster": PAUSE}, local={**DOWN, "rebuilding": 5})),
    ("authority-lost", 5, serving(view={"cluster": PAUSE, "lease_until_ns": NOW + DEMOTED})),
    ("grant-unused", 5, serving(view={"cluster": PAUSE}, local={**DOWN, "crashed": "killed", "left_down": True})),
    ("serving", 0, serving()),
    ("clone", 5, streaming(local={**DOWN, "data": Data.ABSENT})),
    ("clone", 5, streaming(local={**DOWN, "data": Data.BROKEN})),
    ("clone", 5, streaming(view={"wanted": 6}, local={**DOWN, "data": Data.ABSENT, "vowed": 6})),
    ("clone", 5, streaming(local={"needs_clone": 5})),
    ("clone", 5, streaming(view={"cluster": ASKED})),
    ("clone", 5, streaming(view={"cluster": ASKED}, local={**DOWN, "rebuilt": 8})),
    ("waiting", 0, streaming(view={"cluster": ASKED}, local={**DOWN, "data": Data.UNKNOWN})),
    ("streaming", 0, streaming(view={"cluster": ASKED}, local={"rebuilt": 9})),
    ("streaming", 0, streaming(view={"cluster": ASKED, "incarnation": 6})),
    ("start", 0, streaming(view={"cluster": ASKED, "met": False}, local=DOWN)),
    ("promise", 6, streaming(view={"cluster": ASKED, "wanted": 6})),
    ("serving", 0, serving(view={"cluster": agreed(granted(5, "a"), reinits=(Reinit(Seat("a", 7), 9),))})),
    ("rewind", 5, streaming(local={"upstream": 0, "diverged": 5})),
    ("rewind", 5, streaming(local={**DOWN, "diverged": 5})),
    ("rewind", 5, streaming(view={"wanted": 6}, local={**DOWN, "rebuilding": 5})),
    ("rewind", 5, streaming(local={**DOWN, "rebuilding": 5, "data": Data.BROKEN})),
    ("witness", 0, streaming(local={**DOWN, "data": Data.ABSENT, "witness": True})),
    ("start", 0, streaming(local=DOWN)),
    ("start", 0, streaming(local={**DOWN, "server": Server.STARTING})),
    ("start", 0, streaming(local={**DOWN, "diverged": 4, "needs_clone": 3})),
    ("start", 0, streaming(view={"wanted": 6}, local={**DOWN, "diverged": 5, "needs_clone": 5})),
    ("follow", 5, streaming(local={"upstream": 0})),
    ("follow", 5, streaming(local={"upstream": 4})),
    ("vow-forbids", 0, streaming(view={"record": NodeRecord(6)})),
    ("vow-forbids", 0, streaming(local={"vowed": 6})),
    ("vow-forbids", 0, streaming(local={"vowed": 6, "upstream": 0})),
    ("streaming", 0, streaming()),
    ("waiting", 0, streaming(view={"cluster": agreed()}, local={**DETACHED, "frozen": 5})),
    ("waiting", 0, streaming(view={"cluster": agreed(granted(5, "a", ancestry=()))}, local=DETACHED)),
    ("waiting", 0, streaming(view={"cluster": agreed(granted(5, "a", failed="killed"))}, local=DETACHED)),
    ("waiting", 0, streaming(view={"record": NodeRecord(6)}, local=DETACHED)),
    ("waiting", 0, streaming(view={"wanted": 6}, local={**DETACHED, "frozen": 6})),
    ("waiting", 0, streaming(view={"met": False, "leader": ""}, local=DETACHED)),
    ("waiting", 0, streaming(view={"met": False, "leader": ""}, local={**DOWN, "data": Data.ABSENT})),
    ("waiting", 0, streaming(local={**DETACHED, "vowed": 6})),
    ("waiting", 0, streaming(local={**DOWN, "data": Data.UNKNOWN})),
)

IDS = [f"{name}-{at}" for at, (name, _, _) in enumerate(DECIDES)]


@pytest.mark.parametrize(("name", "term", "situation"), DECIDES, ids=IDS)
def test_the_row_decides(name: str, term: int, situation: Situation) -> None:
    rule = next(rule for rule in RULES if rule.name == name)
    assert plan(situation) == (Plan(rule.step, term, name), rule.sentence)


def test_every_row_decides_somewhere() -> None:
    assert {name for name, _, _ in DECIDES} == {rule.name for rule in RULES}
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("name", [rule.name for rule in RULES[:-1]])
def test_without_the_row_something_else_would_happen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "RULES", tuple(rule for rule in RULES if rule.name != name))
    others = [decided(situation) for known, _, situation in DECIDES if known == name]
    mine = next(rule.step for rule in RULES if rule.name == name)
    words_only = {"control-away", "serving", "cascading", "streaming"}  # waiting either way; the row gives the sentence
    assert any(other.step is not mine for other in others) or name in words_only


def test_the_lease_of_a_primary_ends_its_authority_at_the_instant_of_demotion() -> None:
    assert decided(serving(view={"lease_until_ns": NOW + DEMOTED + 1})).rule == "serving"
    assert decided(serving(view={"lease_until_ns": NOW + DEMOTED})).rule == "authority-lost"


@pytest.mark.parametrize(
    ("away", "rule"),
    [({"alive": False, "granted": 0, "renewed": False}, "control-away"), ({"renewed": False}, "serving")],
)
def test_a_child_that_is_being_restarted_gets_the_whole_lease(away: dict[str, Any], rule: str) -> None:
    last = NOW + roles.LAST_MOMENT_MS * MS
    assert decided(serving(view={**away, "lease_until_ns": last + 1})).rule == rule
    assert decided(serving(view={**away, "lease_until_ns": last})).rule == "authority-lost"


@pytest.mark.parametrize(
    ("situation", "owed"),
    [
        (streaming(view={"wanted": 6}, local=DOWN), True),
        (streaming(view={"wanted": 6}, local={"server": Server.STARTING, "upstream": 0}), True),
        (streaming(view={"wanted": 6}, local={**DOWN, "said_no_position": 6}), False),
        (streaming(view={"wanted": 6}), False),
        (streaming(local=DOWN), False),
        (streaming(view={"wanted": 6}, local={**DOWN, "clean": False}), False),
        (streaming(view={"wanted": 6, "alive": False}, local=DOWN), False),
        (serving(view={"wanted": 6}), False),
        (serving(view={"wanted": 6}, local={"server": Server.STOPPING}), False),
    ],
)
def test_no_position_is_said_once_and_only_when_nothing_is_writable(situation: Situation, owed: bool) -> None:
    assert situation.owes_no_position is owed


def test_a_step_that_ends_an_upstream_does_not_cancel_itself() -> None:
    """`steps._detach` sets `upstream` to 0 long before the receiver is gone; another plan would cancel it there."""
    begun = decided(streaming(local={"vowed": 6}))
    assert decided(streaming(local={"vowed": 6, "upstream": 0})) == begun
    assert decided(streaming(local={"vowed": 6, **DETACHED})).step is Step.WAIT


# What must hold in every situation


TERMS = (0, 4, 5, 6, 7)
LEASES = (0, NOW - 1, NOW + 10 * MS, NOW + DEMOTED, NOW + DEMOTED + 1, FRESH, FRESH)
UNGUARDED = (0, 0, NOW, NOW - TIMINGS.demote_ms * MS)
Choose = Callable[[Sequence[Any]], Any]
"""One of several: drawn by hypothesis, or by a seeded generator where speed counts."""


def some_grants(one: Choose, term: int) -> tuple[Grant, ...]:
    """None, one or two, ascending; with and without a known beginning, open or not, failed or not."""
    terms = one([(), (term,), (4, term + 1), (term - 1,)])
    return tuple(
        granted(
            term, one("abc"), opened=one([True, False]), failed=one(["", "", "x"]),
            ancestry=one([(FIRST, EpochStart(5, 100, 2)), ()]),
        )
        for term in terms
    )  # fmt: skip


def some_situation(one: Choose) -> Situation:
    """Any combination of what is agreed and what is here, likely or not."""
    no, yes = [False, True]
    term = one([5, 6])
    terms = (term, term, term, *TERMS)  # what is likely often enough, and everything else
    members = one([MEMBERS, MEMBERS, REBORN])
    change = one([None, None, CHANGING.change])
    fenced = one([(), (), (), ("a", "b")])
    known = agreed(*some_grants(one, term), nonce=one(["", "n"]), change=change, members=members, fenced=fenced)
    cluster = None if one([no, no, no, yes]) else known
    view = View(
        alive=one([yes, yes, no]), incarnation=7, term=one(terms), leader=one(["", "a", "b"]), wanted=one(terms),
        granted=one(terms), hand_over=one([None, None, "b"]), record=NodeRecord(one(terms)), cluster=cluster,
        lease_term=one(terms), lease_until_ns=one(LEASES), renewed=one([yes, yes, no]), met=one([yes, yes, yes, no]),
    )  # fmt: skip
    server = one(list(Server))
    writable = server in (Server.PRIMARY, Server.PROMOTING)
    local = Local(
        me=one("ab"), data=one(list(Data)), server=server, clean=one([yes, no]),
        epoch=one([term, term, 4, 5] if writable else terms),  # set by the same change as PROMOTING, see steps.py
        upstream=one(terms), may_receive=one([yes, yes, no]), said_no_position=one(terms),
        unguarded_since_ns=one(UNGUARDED), frozen=one(terms), vowed=one(TERMS),
        rebuilding=one([0, 0, *TERMS]), diverged=one(terms), needs_clone=one(terms), gate_open=one([no, yes]),
        stopping=one([no, no, yes]), asked_to_hand_over=one([no, yes]), failed_promotion=one(TERMS),
        crashed=one(["", "killed"]),
    )  # fmt: skip
    return Situation(view, local, TIMINGS, NOW)


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    return some_situation(lambda options: draw(st.sampled_from(options)))


@pytest.mark.parametrize(
    ("cluster", "gate_open"),
    [
        (agreed(granted(6, "b", opened=False)), False),
        (agreed(granted(6, "b")), False),
        (agreed(granted(6, "b"), change=Change(9, agreed().group, SMALLER)), True),
    ],
    ids=["prove", "open-gate", "regroup"],
)
def test_nobody_proves_opens_or_regroups_under_the_grant_of_another(cluster: ClusterState, gate_open: bool) -> None:
    """The log was told before the loss of the grant was: else the history of this node would be that of the next."""
    assert decided(serving(view={"cluster": cluster}, local={"gate_open": gate_open})).rule == "serving"


def may_write(s: Situation) -> bool:
    """The authority to be writable, told once more and independently of roles.py."""
    guarded = s.local.unguarded_since_ns in (0, NOW)
    granted_here = s.view.granted == s.local.epoch or not s.view.alive
    spare_ns = DEMOTED if s.view.alive and s.view.renewed else roles.LAST_MOMENT_MS * MS
    in_time = s.view.lease_until_ns > NOW + spare_ns
    return s.view.lease_term == s.local.epoch and guarded and granted_here and in_time


def writable_without_authority_is_fenced(s: Situation) -> bool:
    running = s.local.server in (Server.PRIMARY, Server.PROMOTING)
    ending = s.local.server is Server.STOPPING and s.local.epoch > 0
    return not (running or ending) or may_write(s) or decided(s).step is Step.FENCE


def promotion_takes_a_committed_grant(s: Situation) -> bool:
    wanted = decided(s)
    return wanted.step is not Step.PROMOTE or (wanted.term == s.view.granted > 0 and s.view.alive)


def nothing_older_than_the_promise_is_followed(s: Situation) -> bool:
    """Copies excepted that can't be anybody's evidence: into an empty or broken place, or a rewind that has begun."""
    wanted = decided(s)
    unusable = s.local.data in (Data.ABSENT, Data.BROKEN)
    begun = wanted.step is Step.REWIND and s.local.rebuilding == wanted.term
    if wanted.step not in (Step.FOLLOW, Step.CLONE, Step.REWIND) or begun:
        return True
    grant = s.view.cluster.grant if s.view.cluster is not None else None
    floor = max(s.view.record.promised, s.view.wanted, s.local.vowed)
    allowed = wanted.term >= floor or (wanted.step is Step.CLONE and unusable)
    usable = grant is not None and grant.node != s.local.me and bool(grant.ancestry) and not grant.failed
    return s.view.met and allowed and usable and grant is not None and wanted.term == grant.term


def no_upstream_outlives_a_newer_promise(s: Situation) -> bool:
    forbidden = s.local.may_receive and s.local.upstream < max(s.view.record.promised, s.local.vowed)
    settled = decided(s).rule in ("streaming", "waiting")
    return not (s.local.server is Server.STANDBY and forbidden and settled)


def nothing_starts_beside_what_is_left(s: Situation) -> bool:
    left = s.local.server is Server.DOWN and not s.local.clean
    return not left or decided(s).step is Step.FENCE


def a_primary_is_left_alone_or_stopped(s: Situation) -> bool:
    """No step that expects a standby, or an empty place, ever meets a writable Postgres."""
    standing = {Step.WAIT, Step.FENCE, Step.HAND_OVER, Step.STOP}
    allowed = standing | {Step.PROMOTE, Step.OPEN, Step.OPEN_GATE, Step.REGROUP}
    running = s.local.server in (Server.PRIMARY, Server.PROMOTING)
    return not running or decided(s).step in allowed


def the_gate_opens_only_for_a_proven_epoch(s: Situation) -> bool:
    if decided(s).step is not Step.OPEN_GATE:
        return True
    grant = s.view.cluster.grant if s.view.cluster is not None else None
    return grant is not None and grant.opened and s.local.server is Server.PRIMARY and may_write(s)


def nothing_is_created_where_something_was(s: Situation) -> bool:
    """initdb: only the founder in the life that was named, only without data, only before the first grant."""
    cluster = s.view.cluster
    if decided(s).step is not Step.CREATE:
        return True
    here = cluster is not None and cluster.founder == s.local.me and (s.local.me, 7) in {m[:2] for m in cluster.members}
    return here and cluster is not None and not cluster.grants and s.local.data is Data.ABSENT


def names_are_changed_only_with_authority_and_for_a_change(s: Situation) -> bool:
    if decided(s).step is not Step.REGROUP:
        return True
    change = s.view.cluster.change if s.view.cluster is not None else None
    return change is not None and decided(s).term == change.index and s.local.server is Server.PRIMARY and may_write(s)


def nothing_runs_where_a_person_keeps_it_down(s: Situation) -> bool:
    """It is stopped, or left down; only a rewind that has begun to write goes on."""
    cluster = s.view.cluster
    if not s.view.alive or cluster is None or s.local.me not in cluster.fenced or s.local.rebuilding:
        return True
    ends = {Step.FENCE, Step.HAND_OVER, Step.STOP, Step.REPORT_FENCED, Step.EXIT}
    step = decided(s).step
    stays = s.local.server is Server.DOWN or s.local.stopping or s.local.witness
    return step in ends or (step is Step.WAIT and stays)


PROPERTIES: tuple[Callable[[Situation], bool], ...] = (
    writable_without_authority_is_fenced,
    promotion_takes_a_committed_grant,
    nothing_older_than_the_promise_is_followed,
    no_upstream_outlives_a_newer_promise,
    nothing_starts_beside_what_is_left,
    a_primary_is_left_alone_or_stopped,
    the_gate_opens_only_for_a_proven_epoch,
    nothing_is_created_where_something_was,
    names_are_changed_only_with_authority_and_for_a_change,
    nothing_runs_where_a_person_keeps_it_down,
)


@settings(max_examples=300)
@given(situations())
def test_the_safety_properties_hold_everywhere(situation: Situation) -> None:
    assert [p.__name__ for p in PROPERTIES if not p(situation)] == []


def test_and_in_many_more_situations_than_hypothesis_has_time_for() -> None:
    assert {p.__name__: violation(p) for p in PROPERTIES} == {p.__name__: None for p in PROPERTIES}


# Their negative controls: the same table, disturbed


def last(name: str) -> tuple[Rule, ...]:
    """The table with this row just before the one that always matches."""
    moved = next(rule for rule in RULES if rule.name == name)
    return (*(rule for rule in RULES[:-1] if rule is not moved), moved, RULES[-1])


def first(name: str) -> tuple[Rule, ...]:
    moved = next(rule for rule in RULES if rule.name == name)
    return (moved, *(rule for rule in RULES if rule is not moved))


def always(name: str, when: Callable[[Situation], bool]) -> tuple[Rule, ...]:
    """The table with another condition in this row."""
    return tuple(replace(rule, when=when) if rule.name == name else rule for rule in RULES)


def _newest_grant(s: Situation) -> Grant | None:
    return s.grant


CONTROLS: tuple[tuple[Callable[[Situation], bool], tuple[Rule, ...]], ...] = (
    (writable_without_authority_is_fenced, last("authority-lost")),
    (nothing_starts_beside_what_is_left, last("leftovers")),
    (no_upstream_outlives_a_newer_promise, last("vow-forbids")),
    (a_primary_is_left_alone_or_stopped, first("clone")),
    (promotion_takes_a_committed_grant, always("promote", lambda s: s.local.server is Server.STANDBY)),
    (promotion_takes_a_committed_grant, last("control-away")),
    (the_gate_opens_only_for_a_proven_epoch, always("open-gate", lambda s: s.local.server is Server.PRIMARY)),
    (nothing_is_created_where_something_was, always("create", lambda s: s.local.data is Data.ABSENT)),
    (names_are_changed_only_with_authority_and_for_a_change, first("regroup")),
    (nothing_runs_where_a_person_keeps_it_down, last("kept-down")),
    (nothing_runs_where_a_person_keeps_it_down, last("fenced")),
)


@pytest.mark.parametrize(("holds", "table"), CONTROLS, ids=[f"{p.__name__}-{at}" for at, (p, _) in enumerate(CONTROLS)])
def test_a_disturbed_table_is_caught(
    holds: Callable[[Situation], bool], table: tuple[Rule, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "RULES", table)
    assert violation(holds) is not None


def test_following_whatever_is_newest_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Situation, "follows", property(_newest_grant))
    assert violation(nothing_older_than_the_promise_is_followed) is not None


def violation(holds: Callable[[Situation], bool]) -> Situation | None:
    """The first of many random situations, always the same ones, in which the property does not hold."""
    one = Random(1).choice
    return next((s for s in (some_situation(one) for _ in range(SITUATIONS_TRIED)) if not holds(s)), None)


def test_the_table_in_the_design_document_is_this_one() -> None:
    design = Path(roles.__file__).with_name("DESIGN.md").read_text(encoding="utf-8")
    between = design.partition("<!-- roles: begin -->\n")[2].partition("<!-- roles: end -->")[0]
    assert between == roles.markdown(), "run: python -m supervisor.roles, and put its output into supervisor/DESIGN.md"
