"""`pgr explain`: from what a node knows to findings, a page and JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from consensus.cluster import ClusterState, Grant, Veto, seat_of
from consensus.history import HistoryEvent
from consensus.promotion import Obstacle
from consensus.record import EpochStart, Position
from consensus.tags import Tagged
from supervisor import render
from supervisor.explain import (
    FOUNDING,
    NO_LEADER,
    NO_PRIMARY,
    OPEN,
    OPENING,
    TOLD_LATELY_MS,
    Findings,
    Heard,
    findings,
    to_json,
)
from supervisor.roles import Local
from tests.unit import test_observe
from tests.unit.test_observe import ANCESTRY, GRANT, agreed, picture, primary, standby

EVENTS = (
    HistoryEvent("t0", "founding", 0, "a", "is chosen", "{}"),
    HistoryEvent("t1", "promoted", 5, "a", "holds epoch 0 up to 64, 2 of 2 needed promises", "{}"),
    HistoryEvent("t2", "opened", 5, "a", "is open to clients", "{}"),
)
MOVED = (
    *EVENTS,
    HistoryEvent("t3", "switchover", 5, "b", "was asked for by ann@db1", "{}"),
    HistoryEvent("t3", "closed", 5, "a", "stopped its Postgres cleanly for a switchover", "{}"),
    HistoryEvent("t4", "sync group", 5, "b", "something else", "{}"),
    HistoryEvent("t5", "promoted", 6, "b", "holds epoch 5 up to C8, 3 of 2 needed promises", "{}"),
)
NEXT = Grant(6, "b", Position(5, 200), 3, (*ANCESTRY, EpochStart(6, 200, 3)), opened=True)


def told(name: str, age_ms: int = 0) -> dict[str, Any]:
    return test_observe.told(name, age_ms, incarnation=agreed().members[0].incarnation)


def ask(  # what a leader a hears, unless said otherwise
    cluster: ClusterState | None = None, *, me: str = "a", silent: str = "", seen: dict[str, Any] | None = None,
    leader: str = "a", leaderless_ms: int = 0, term: int = 5, promises: dict[str, list[Any]] | None = None,
) -> Findings:  # fmt: skip
    known = {n: told(n, age_ms=7000 if n in silent else 100) for n in "abc"}
    for name, changes in (seen or {}).items():
        known[name]["seen"] |= changes
    for name, promise in (promises or {}).items():
        known[name]["promise"] = promise
    state = cluster or agreed(history=EVENTS)
    local: Local = primary() if me == "a" else standby(me=me)
    shot = picture(local, state, known, leader=leader, term=term, role="leader" if leader == me else "follower")
    heard = {n: 7000 if n in silent else 100 for n in "abc" if n != me and (leader in (me, n) or not leader)}
    return findings(state, shot, Heard(known, heard, leaderless_ms))


def page(found: Findings) -> str:
    return render.explanation(json.loads(json.dumps(to_json(found))))


def test_all_is_well() -> None:
    found = ask()
    assert (found.state, found.assumed_lost, found.hints, found.trouble) == (OPEN, "a", (), ())
    assert found.election is not None
    assert found.election.winners == ("b", "c")
    assert found.overruled is None
    assert found.reign is not None
    assert (found.reign.since, found.reign.why) == ("t2", "holds epoch 0 up to 64, 2 of 2 needed promises")
    assert found.reign.before == ("it created the cluster",)
    assert page(found) == """\
a of term 5 is primary and open to clients
since t2: a holds epoch 0 up to 64, 2 of 2 needed promises
before: it created the cluster
(a leads: what the others last said, it has from themselves)

a: fine

if a were lost now b or c would win an election: b holds epoch 5 up to 3E8, 2 of 2 needed promises; \
c holds epoch 5 up to 3E8, 2 of 2 needed promises
NAME  EPOCH:LSN  BEHIND  HEARD       VERDICT
a     5:0/3E8       0 B  100 ms ago  is taken to be lost
b     5:0/3E8       0 B  -           holds all that was acknowledged (2 of 3 of the sync group decide that); \
so does c: who comes to lead wins
c     5:0/3E8       0 B  -           holds all that was acknowledged (2 of 3 of the sync group decide that); \
so does b: who comes to lead wins
nothing is lost that is known of, and no acknowledged commit
"""


def test_why_this_one_is_primary_is_what_the_log_says() -> None:
    asked = ask(agreed(grants=(GRANT, NEXT), history=MOVED), me="c", leader="b", term=6)
    assert asked.reign is not None
    closed = "closed: a stopped its Postgres cleanly for a switchover (t3)"
    assert asked.reign.before == ("switchover: b was asked for by ann@db1 (t3)", closed)
    assert asked.reign.since == "t5", "it has no line about its opening"
    assert asked.source == "as the leader b told c, 0.1 s ago"
    earlier, later = HistoryEvent("t0", "failed", 3, "c", "x", "{}"), HistoryEvent("t6", "vetoed", 7, "c", "y", "{}")
    around = (earlier, *MOVED, later)
    assert ask(agreed(grants=(GRANT, NEXT), history=around), me="c", leader="b", term=6).reign == asked.reign
    lost = ask(agreed(grants=(GRANT, NEXT), history=(*EVENTS, MOVED[-1])), me="c", leader="b", term=6)
    assert lost.reign is not None
    assert lost.reign.before == ("a, primary of term 5, was lost: nothing in the log says that it ended",)
    forgotten = ask(agreed(history=()), me="b")
    assert forgotten.reign is not None
    assert (forgotten.reign.since, forgotten.reign.why) == ("", "")
    assert ask(agreed(founder="c")).reign.before == ()  # type: ignore[union-attr]  # there is a grant


def test_without_a_read_quorum_it_says_whose_promise_is_missing_and_what_it_costs() -> None:
    over = agreed(grants=(GRANT._replace(failed="killed"),), history=EVENTS)
    promises = {"b": [7, 5, 900, ""], "c": [7, -1, 0, "Postgres is down"]}
    found = ask(over, me="b", leader="b", silent="a", term=7, promises=promises, seen={"b": {"lsn": 900}})
    assert (found.state, found.assumed_lost) == (NO_PRIMARY, "")
    assert found.headline == "there is no primary: b leads term 7 and decides who is next; the last was a of term 5"
    assert found.election is not None
    assert found.election.missing == ("a", "c")
    assert found.overruled is not None
    assert (found.overruled.winners, found.overruled.lost_bytes) == (("b",), 100)
    assert found.hints == (
        "start a again: what they hold is then known",
        "wait for c; `pgr status` and the log of that node tell why",
        "`pgr failover --to b --accept-data-loss` goes on without, and gives up what only they hold; "
        "try it with --dry-run first",
    )
    shown = page(found)
    assert "it ended: killed\n" in shown
    assert "has no position (Postgres is down)" in shown
    assert "with data loss accepted b would win; acknowledged commits may be lost: 100 B of WAL that is known" in shown
    assert "a is unreachable: " in shown


def test_a_primary_that_would_have_no_successor_is_a_reason_to_act() -> None:
    found = ask(seen={"c": {"state": "no data", "epoch": -1, "lsn": 0}})
    assert found.election is not None
    assert (found.election.winners, found.election.missing) == ((), ("a", "c"))
    assert found.hints == (
        "have c up and streaming: if the primary is lost now, nobody may follow it",
    )  # fmt: skip
    alone = ask(silent="bc")
    assert alone.hints == ("have b or c up: if the primary is lost now, nothing takes over",)
    assert ask(agreed("a")).hints == ("have another voter up: if the primary is lost now, nothing takes over",)
    assert alone.overruled is None, "without a majority nobody can accept anything"


def test_one_that_is_fenced_is_named_and_so_is_the_way_back() -> None:
    kept_down = agreed(history=EVENTS, fenced=("c",))
    found = ask(kept_down, seen={"c": {"state": "stopped"}})
    assert found.election is not None
    assert {c.name: c.why for c in found.election.candidates}["c"] == "is fenced: a person keeps its Postgres down"
    assert found.hints == ("`pgr unfence c`: a person keeps its Postgres down",)
    assert ask(kept_down).hints == (), "b can do without"


def test_a_no_of_pre_promote_is_named_and_so_is_the_way_on() -> None:
    vetoes = (Veto(seat_of(agreed().members[0]), 1, "ended with 1"), Veto(seat_of(agreed().members[2]), 1, "x"))
    state = agreed(history=EVENTS, config='{"hooks.pre_promote":["/h"]}', vetoes=vetoes)
    found = ask(state, term=6, silent="b")
    assert found.state == NO_PRIMARY
    assert found.hints[-1].startswith("mend what pre_promote looks at")
    assert found.election is not None
    whys = {c.name: c.why for c in found.election.candidates}
    assert "its pre_promote hook said no (" in " ".join(whys.values())
    assert ask(agreed(history=EVENTS), term=6, silent="b").hints == ()


def test_one_that_never_is_primary_is_named_and_so_is_the_way_out() -> None:
    def tagged(*names: str) -> ClusterState:
        members = [m for m in agreed(history=EVENTS).members if m.name in names]
        return agreed(history=EVENTS, tagged=tuple(Tagged(seat_of(m), '{"nofailover":true}') for m in members))

    found = ask(tagged("b", "c"))
    assert found.election is not None
    assert found.election.winners == ()
    assert {c.name: c.why for c in found.election.candidates}["c"] == Obstacle.NOFAILOVER
    (hint,) = found.hints
    assert hint.startswith("take the tag `nofailover` out of the pgr.toml of b or c and reload it")
    assert ask(tagged("c")).hints == (), "b can do without"


def test_without_a_leader_it_says_what_it_knows_and_since_when() -> None:
    found = ask(me="b", leader="", silent="ac", leaderless_ms=12_300)
    assert found.state == NO_LEADER
    assert found.headline == "this node has known of no leader for 12 s; the last primary it knows of was a of term 5"
    assert found.source == "as b last knew; it hears of nobody, and others may know more"
    assert found.election is not None
    assert found.election.reason == "no leader: 1 of 3 voters are up, 2 are needed; not a, c"
    assert found.hints == (
        "start a or c again, or mend the network: a majority of the voters must reach each other",
        "only if a or c are lost for good: `pgr recover`; try it with --dry-run first",
    )  # fmt: skip
    assert "a     5:0/3E8       0 B  7000 ms ago  is not heard of (last 7 s ago)" in page(found)
    elected_soon = ask(me="b", leader="", silent="a")
    assert elected_soon.source.startswith("as b last knew; it hears of c,")
    assert elected_soon.headline.startswith("this node has known of no leader; ")
    assert elected_soon.election is not None
    assert elected_soon.election.winners == ("b", "c")


def test_a_follower_believes_its_leader_about_the_rest() -> None:
    assert ask(me="b").election == ask().election
    late = {n: told(n, age_ms=1_400) for n in "abc"}
    for leader in ("a", ""):
        shot = picture(primary(), agreed(), late, leader=leader, term=5)
        found = findings(agreed(), shot, Heard(late, {"b": 1_400, "c": 100}))
        assert found.election is not None
        up = {row.name for row in found.election.candidates if row.up}
        assert up == ({"c"} if leader else {"a", "c"}), "a leader, or one without, goes by what it hears itself"
    old = {n: told(n, age_ms=TOLD_LATELY_MS if n == "c" else 0) for n in "abc"}
    shot = picture(standby(), agreed(), old, leader="a", term=5)
    found = findings(agreed(), shot, Heard(old, {"a": 10}))
    assert found.election is not None
    assert [c.name for c in found.election.candidates if c.up] == ["b"]


def test_an_opening_and_a_founding_have_their_own_words() -> None:
    opening = ask(agreed(grants=(GRANT._replace(opened=False),)))
    assert (opening.state, opening.assumed_lost) == (OPENING, "a")
    assert "not open to clients yet" in opening.headline
    founding = ask(agreed(grants=(), system_identifier=""))
    assert (founding.state, founding.election, founding.reign) == (FOUNDING, None, None)
    shot = picture(standby(), agreed(), {})
    nothing = findings(None, replace(shot, node="x", leader=""), Heard({}, {}))
    assert nothing.headline == "the cluster is being founded"
    assert page(nothing).startswith("the cluster is being founded\n(as x last knew; it hears of nobody")


def test_a_later_term_ends_a_reign_whatever_the_log_says() -> None:
    assert ask(me="b", leader="c", term=6).state == NO_PRIMARY
    never = ask(agreed(grants=()), me="b", leader="c", term=6)
    assert never.headline.endswith("the last was nobody")


def test_a_standby_that_does_not_stream_is_trouble_under_a_primary_only() -> None:
    found = ask(seen={"c": {"state": "running", "reason": "waiting for a slot"}})
    assert found.trouble == ("c is running: waiting for a slot",)
    seen = {"c": {"state": "running"}, "a": {"role": "replica", "state": "running"}}
    assert ask(seen=seen, me="b", leader="b", term=6).trouble == ()


@pytest.mark.parametrize(
    ("lost", "acknowledged", "said"),
    [
        (0, False, "nothing is lost that is known of, and no acknowledged commit"),
        (2048, False, "no acknowledged commit is lost; 2.0 kB of WAL that nobody was told to be committed is"),
        (0, True, "acknowledged commits may be lost: 0 B of WAL that is known of, and whatever nobody here knows of"),
    ],
)
def test_what_is_lost_in_words(lost: int, acknowledged: bool, said: str) -> None:
    election = to_json(ask())["election"] | {"lost_bytes": lost, "acknowledged": acknowledged}
    body = {"from": "a", "to": "b", "refusal": None, "forecast": election}
    assert render.dry_run("switchover", body).splitlines()[-1] == said


def test_the_page_of_a_dry_run() -> None:
    election = to_json(ask())["election"]
    body = {"from": "", "to": "", "refusal": None, "forecast": election}
    assert render.dry_run("failover", body).startswith(
        "failover would move the primary from nobody to the best; nothing was changed\n\nas things are b or c would"
    )
    refusal = {"code": 78, "error": "no", "hint": "wait"}
    shown = render.dry_run("failover", body | {"refusal": refusal, "forecast": election | {"winners": []}})
    assert shown.startswith("failover would be refused; nothing was changed\n\nas things are nobody would win")
    assert "lost" not in shown.splitlines()[-1], "nobody wins, so nothing is said to be lost"


