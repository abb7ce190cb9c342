"""Who would win, why the others would not, what would be lost: the same answers as the promotion's, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consensus.cluster import Change, ClusterState, Grant, Seat, Veto
from consensus.forecast import (
    PATIENT_MS,
    Forecast,
    Report,
    after_a_clean_stop,
    bytes_lacking,
    forecast,
    last_known,
    plain,
    reports_of,
)
from consensus.membership import LEARNER, WITNESS, Member
from consensus.positions import NoPosition
from consensus.promotion import HandOver, Obstacle, Situation, TakeGrant, Wait, decide, obstacles
from consensus.record import EpochStart, Position
from tests.unit.test_promotion import ABC, OPENED, changing, state

STARTS = (EpochStart(0, 0, 1), EpochStart(3, 40, 2))


def said(lsn: int, epoch: int = 3, word: str = "streaming", age_ms: int = 100, **more: Any) -> dict[str, Any]:
    promise = {"promise": more.pop("promise")} if "promise" in more else {}
    seen = {"epoch": epoch, "lsn": lsn, "state": word, "epoch_of_upstream": 3, "proven": True, "incarnation": 1} | more
    return {"seen": seen, "age_ms": age_ms} | promise


def foretell(
    known: dict[str, dict[str, Any]], up: str = "abc", at: ClusterState | None = None, **more: Any
) -> Forecast:  # fmt: skip
    agreed = at or state()
    return forecast(agreed, reports_of(agreed, known, frozenset(up), 9), term=9, **more)


def why(found: Forecast) -> dict[str, str]:
    return {c.name: c.why for c in found.candidates}


ALL = {"a": said(100, word="running"), "b": said(90), "c": said(80)}


def test_if_the_primary_were_lost_the_furthest_of_a_read_quorum_wins() -> None:
    found = foretell(ALL, lost=frozenset("a"))
    assert found.winners == ("b",)
    assert found.reason == "b holds epoch 3 up to 5A, 2 of 2 needed promises"
    assert why(found) == {
        "a": "is taken to be lost",
        "b": "holds all that was acknowledged (2 of 3 of the sync group decide that)",
        "c": "may lack commits that were acknowledged",
    }
    assert [c.behind_bytes for c in found.candidates] == [0, 10, 20]
    assert [c.up for c in found.candidates] == [False, True, True]
    assert found.lost_bytes == 10
    assert not found.acknowledged, "only what nobody was told to be committed"
    assert (found.voters_up, found.voters_needed) == (2, 2)


def test_of_two_alike_whoever_leads_wins() -> None:
    found = foretell({"b": said(90), "c": said(90)}, "bc")
    assert found.winners == ("b", "c")
    assert why(found)["b"].endswith("so does c: who comes to lead wins")
    assert found.missing == ()
    led = foretell({"b": said(90), "c": said(90)}, "bc", leaders=["b"])
    assert led.winners == ("b",)
    assert why(led)["c"] == "could be primary, but the leader or the later name goes first"


def test_one_whose_hook_said_no_is_not_the_next_and_it_says_why() -> None:
    vetoed = replace(state(), config='{"hooks.pre_promote":["/h"]}', vetoes=(Veto(Seat("c", 1), 1, "ended with 1"),))
    found = foretell({"b": said(90), "c": said(90)}, "bc", vetoed)
    assert found.winners == ("b",)
    assert why(found)["c"] == "could be primary, but its pre_promote hook said no (ended with 1)"


def test_it_says_what_the_promotion_would() -> None:
    """Not alike by chance: any promises, every leader."""
    answers = [None, NoPosition("down"), Position(2, 90), Position(3, 50), Position(3, 60)]
    for a in answers:
        for b in answers:
            for c in answers:
                promises = {n: p for n, p in zip(ABC, (a, b, c), strict=True) if p is not None}
                reports = {n: Report(connected=True, promise=promises.get(n)) for n in ABC}
                found = forecast(state(), reports, term=9, leaders="b")
                match decide(Situation("b", 9, state(), promises, frozenset(ABC), PATIENT_MS)):
                    case TakeGrant():
                        assert found.winners == ("b",)
                    case HandOver(to):
                        assert found.winners == (to,)
                    case decision:
                        assert isinstance(decision, Wait)
                        assert (found.winners, found.reason) == ((), decision.reason)
                        assert found.missing == decision.missing
                assert {c.name for c in found.candidates if c.wins} == set(found.winners)


def test_without_a_read_quorum_it_says_whose_promise_is_missing() -> None:
    found = foretell({"a": said(100, age_ms=7000), "b": said(90), "c": said(0, -1, "no data")}, "bc")
    assert (found.winners, found.missing, found.lost_bytes) == ((), ("a", "c"), None)
    assert found.reason.startswith("no primary: 1 more of these is needed")
    assert why(found) == {
        "a": "is not heard of (last 7 s ago)",
        "b": "may lack commits that were acknowledged",
        "c": "has no position (its Postgres: no data)",
    }
    assert found.acknowledged


def test_a_loss_that_is_accepted_is_counted() -> None:
    at = replace(state(), wish_loss=True)
    found = foretell({"a": said(100, age_ms=7000), "b": said(90), "c": said(0, -1, "no data")}, "bc", at)
    assert (found.winners, found.lost_bytes, found.acknowledged) == (("b",), 10, True)
    assert why(found)["b"] == "would be primary: data loss is accepted"
    assert "data loss was accepted: without the promise of a, c" in found.reason


def test_without_a_majority_of_voters_there_is_no_leader_to_choose() -> None:
    found = foretell({"c": said(80)}, "c")
    assert found.reason == "no leader: 1 of 3 voters are up, 2 are needed; not a, b"
    assert (found.winners, found.missing) == ((), ("a", "b"))
    assert why(found)["a"] == "is not heard of"
    nobody = foretell({}, "")
    assert nobody.voters_up == 0
    assert nobody.lost_bytes is None


def test_a_promise_that_was_given_goes_before_what_was_last_said() -> None:
    """c runs, and tells the leader that it is still reading its WAL; a promised and vanished."""
    c = said(80, promise=[9, -1, 0, "still reading"])
    found = foretell({"a": said(100, promise=[9, 3, 101, ""]), "b": said(90), "c": c}, "bc")
    assert found.winners == ("a",), "it has promised, so its WAL is known to be there"
    assert why(found)["c"] == "has no position (still reading)"
    older = foretell({"b": said(90), "c": said(80, promise=[8, -1, 0, "still reading"])}, "bc")
    assert older.winners == ("b",), "to another leader"


def test_what_a_node_can_not_promise() -> None:
    at = replace(state(), members=(*state().members, Member("w", 1, "", "", "", WITNESS, WITNESS)))
    known = {
        "a": said(100, proven=False), "b": said(0, -1), "c": said(80, word=""), "w": said(0, -1, "voting"),
    }  # fmt: skip
    reports = reports_of(at, known, frozenset("abcw"), 9)
    assert {n: r.promise for n, r in reports.items()} == {
        "a": NoPosition("its copy has not yet passed its proof"),
        "b": NoPosition("it has told no position yet"),
        "c": NoPosition("its Postgres: nothing is known of it yet"),
        "w": NoPosition("it is a witness"),
    }
    assert reports_of(at, {}, frozenset("w"), 9)["w"].promise == NoPosition("it is a witness")
    assert reports_of(at, {}, frozenset("a"), 9)["a"] == Report(connected=True)
    other = reports_of(at, {"a": said(100, incarnation=2)}, frozenset("a"), 9)["a"]
    assert (other.promise, other.seen) == (None, None), "another life's words"


def test_whoever_can_not_be_primary_is_told_why() -> None:
    members = (
        *state().members[:2], Member("c", 2, "", "", ""), Member("d", 1, "", "", "", LEARNER),
        Member("e", 1, "", "", ""), Member("w", 1, "", "", "", WITNESS, WITNESS),
    )  # fmt: skip
    at = replace(state(), members=members)
    known = {n: said(90) for n in "abde"} | {"c": said(90, incarnation=2), "w": said(0, -1, "voting")}
    found = why(foretell(known, "abcdew", at))
    assert found["c"] == "has lost its state: its seat waits for the copy it makes"
    assert found["d"] == str(Obstacle.LEARNER)
    assert found["e"] == str(Obstacle.NO_SEAT)
    assert found["w"] == str(Obstacle.WITNESS)
    young = state(grants=(OPENED._replace(opened=False),))
    assert why(foretell(ALL, at=young))["b"] == str(Obstacle.TOO_EARLY)


def test_whoever_could_and_would_not_is_told_why() -> None:
    b_failed = state(grants=(OPENED, Grant(5, "b", Position(3, 1), 3, failed="x")))
    found = foretell({"b": said(90), "c": said(90)}, "bc", b_failed)
    assert found.winners == ("c",)
    assert why(found)["b"] == "could be primary, but did not come to open when it was last chosen"
    wished = foretell(ALL, at=replace(state(), wish_to="b"))
    assert wished.winners == ("b",)
    assert why(wished)["a"] == "could be primary, but b was asked for"
    assert why(foretell(ALL))["b"] == "holds all that was acknowledged, but a has more WAL"


def test_asynchronous_mode_says_that_acknowledged_commits_may_be_lost() -> None:
    mode = state(k=1, mode="async")
    found = foretell({"b": said(90), "c": said(90)}, "bc", mode)
    assert found.acknowledged
    far = foretell({"b": said(90), "c": said(90)}, "bc", mode, last_known=Position(3, 90 + (2 << 20)))
    assert far.winners == ()
    assert "maximum_lag_on_failover" in far.reason
    assert why(far)["b"] == "could be primary, if what is missing were not"


def test_the_end_of_the_last_primary_is_what_it_last_said_as_such() -> None:
    reports = reports_of(state(), ALL, frozenset("abc"), 9)
    assert last_known(OPENED, reports) == Position(3, 100)
    assert last_known(None, reports) is None
    assert last_known(OPENED._replace(node="x"), reports) is None
    assert last_known(OPENED._replace(term=4), reports) is None


def test_a_change_that_would_be_turned_back_is_taken_so() -> None:
    """abc -> ab with a gone: b and c can go on with abc, which c, who has the newest WAL, is a part of."""
    at = changing("abc", 2, "ab", 2, "abc")
    found = foretell({"b": said(80), "c": said(90)}, "bc", at)
    assert found.winners == ("c",)
    assert isinstance(at.change, Change)


def test_a_group_that_would_shrink_first_is_taken_so() -> None:
    """Not strict: only b is there, and it would go on alone."""
    loose = replace(state(k=3), config='{"strict":false}')
    found = foretell({"b": said(50), "c": said(0, -1, "starting")}, up="bc", at=loose, leaders=("b",))
    assert found.winners == ("b",), found.reason


def test_after_a_clean_stop_those_who_stream_have_everything() -> None:
    reports = reports_of(state(), ALL | {"c": said(80, word="running")}, frozenset("abc"), 9)
    ended = after_a_clean_stop(reports, "a")
    assert [ended[n].promise for n in ABC] == [Position(3, 100), Position(3, 100), Position(3, 80)]
    found = forecast(replace(state(), wish_to="b"), ended, term=9)
    assert (found.winners, found.lost_bytes) == (("b",), 0)


def test_a_standby_whose_word_is_newer_than_the_primarys_makes_no_other_lose_anything() -> None:
    reports = reports_of(state(), ALL | {"c": said(170)}, frozenset("abc"), 9)
    found = forecast(replace(state(), wish_to="b"), after_a_clean_stop(reports, "a"), term=9)
    assert (found.winners, found.lost_bytes) == (("b",), 0)


def test_no_grant_no_stream() -> None:
    assert not reports_of(state(grants=()), ALL, frozenset("abc"), 9)["b"].streams
    assert reports_of(state(), ALL, frozenset("abc"), 9)["b"].streams
    assert not reports_of(state(), ALL, frozenset("ac"), 9)["b"].streams


@pytest.mark.parametrize(
    ("newest", "held", "lacks"),
    [
        (Position(3, 100), Position(3, 90), 10),
        (Position(3, 100), Position(0, 30), 70),
        (Position(3, 100), Position(0, 90), 60),  # what it has beyond the switch at 40 is another WAL
        (Position(3, 100), Position(3, 120), 0),
        (Position(7, 100), Position(3, 90), 10),  # a grant that is forgotten
    ],
)
def test_bytes_are_counted_from_where_the_histories_part(newest: Position, held: Position, lacks: int) -> None:
    assert bytes_lacking(newest, held, (OPENED._replace(ancestry=STARTS),)) == lacks


def test_as_json() -> None:
    found = plain(foretell({"a": said(0x1_0000_0100, word="running"), "b": said(90), "c": said(80)}))
    assert found["winners"] == ["a"]
    assert found["candidates"][0] == {
        "name": "a", "wins": True, "why": "holds all that was acknowledged (2 of 3 of the sync group decide that)",
        "up": True, "age_ms": 100, "behind_bytes": 0, "position": {"epoch": 3, "lsn": "1/100"},
    }  # fmt: skip
    assert plain(foretell({}, "b"))["candidates"][1]["position"] is None


def test_obstacles_are_what_the_choice_goes_by() -> None:
    s = Situation("b", 9, state(), {"b": Position(3, 50), "c": Position(3, 60)}, frozenset(ABC), PATIENT_MS)
    assert obstacles(s) == {"a": Obstacle.SILENT, "b": Obstacle.BEHIND, "c": None}
