"""`on_primary_crash`: who is primary after the primary's Postgres alone went down."""

from __future__ import annotations

from typing import Any

import pytest

from consensus.comeback import NOBODY, Comeback, begun
from consensus.promotion import TakeGrant, Wait
from fencing.lease import MS
from tests.unit.nodes import Cluster, T
from tests.unit.test_promotion import ask, state
from tests.unit.test_reconfigure import put
from tests.unit.test_requests import opened

TIMEOUT_S = 8


def crashed(*, wanted: str = "restart", died: bool = True) -> tuple[Cluster, int, int]:
    """The primary a of three, fenced a moment ago: the cluster, the term that was, and when it happened."""
    cluster = opened("a", "b", "c")
    assert put(cluster, "a", on_primary_crash=wanted, primary_start_timeout=TIMEOUT_S)["ok"]
    cluster.until(lambda: '"primary_start_timeout"' in str(cluster.members["b"].cluster["config"]))
    a = cluster.members["a"]
    term = a.state["term"]
    a.position = (-1, 0)
    cluster.tell("a", "node.fenced", {"term": term, "reason": "postmaster ended", "died": died, "at": ""})
    return cluster, term, cluster.now


def comes_back(cluster: Cluster, term: int) -> None:
    cluster.members["a"].position = (term, 150)


def sentence(cluster: Cluster) -> str:
    return str(cluster.members["a"].state["sentence"])


def test_it_is_waited_for_and_wins_in_a_term_of_its_own() -> None:
    cluster, term, _ = crashed()
    cluster.until(lambda: "is started again in place" in sentence(cluster))
    cluster.sleep(3 * T.election_ms)
    assert (cluster.primary(), cluster.leader()) == ("", "a"), "the others have promised, and have all there is"
    comes_back(cluster, term)
    cluster.until(lambda: cluster.primary() != "", 10 * T.heartbeat_ms)
    assert cluster.open() == "a"
    first, second = cluster.members["b"].cluster["grants"][-2:]
    assert first[6] == "postmaster ended", "that grant is over"
    assert (second[1], second[0] > term, second[3] > first[3]) == ("a", True, True), "a term and a timeline of its own"


def test_nobody_waits_for_a_lease_to_end() -> None:
    cluster, term, at_ns = crashed()
    comes_back(cluster, term)
    cluster.until(lambda: cluster.primary() == "a")
    assert cluster.now - at_ns < T.election_ms // 2 * MS


def test_it_wins_over_one_that_has_the_beginning_of_one_more_record() -> None:
    """Postgres sends whole pages: a standby may have a part of a record that the primary never finished."""
    cluster, term, _ = crashed()
    cluster.members["b"].position = (term, 160)
    comes_back(cluster, term)
    cluster.until(lambda: cluster.primary() != "")
    assert cluster.primary() == "a"


def test_the_time_it_has_is_bounded_and_another_takes_over() -> None:
    cluster, term, at_ns = crashed()
    cluster.sleep(TIMEOUT_S * 1000 - 500)
    assert cluster.primary() == ""
    cluster.until(lambda: cluster.primary() not in ("", "a"))
    assert 0 <= (cluster.now - at_ns) // MS - TIMEOUT_S * 1000 < T.election_ms // 2, "and nobody waits out a lease"
    comes_back(cluster, term)
    assert cluster.open() != "a"


@pytest.mark.parametrize("how", ["failover", "not by itself", "given up", "a person", "a named one", "fenced"])
def test_another_takes_over_at_once(how: str) -> None:
    wanted = "failover" if how == "failover" else "restart"
    cluster, _, at_ns = crashed(wanted=wanted, died=how != "not by itself")
    if how not in ("failover", "not by itself"):
        cluster.until(lambda: "is started again in place" in sentence(cluster))
    match how:
        case "given up":
            term = cluster.members["a"].state["term"]
            body = {"term": term, "epoch": -1, "lsn": 0, "reason": "PANIC", "gave_up": True}
            cluster.tell("a", "node.frozen", body)
        case "a person" | "a named one":
            body = {"to": "c"} if how == "a named one" else {}
            assert cluster.ask("b", "failover", **body)["ok"]
        case "fenced":
            assert cluster.ask("b", "fence", name="a", force=True)["ok"]
        case _:
            pass
    cluster.until(lambda: cluster.primary() not in ("", "a"))
    assert (cluster.now - at_ns) // MS < T.election_ms, "no lease is waited for"
    assert cluster.primary() == "c" or how != "a named one"


def test_one_that_never_opened_gives_the_next_one_a_try() -> None:
    cluster, _, _ = crashed(wanted="failover")
    cluster.until(lambda: cluster.primary() not in ("", "a"))
    name = cluster.primary()
    assert put(cluster, name, on_primary_crash="restart")["ok"]
    cluster.until(lambda: '"restart"' in str(cluster.members[name].cluster["config"]))
    cluster.members[name].position = (-1, 0)
    failed = {"term": cluster.members[name].state["term"], "reason": "x", "died": True, "at": ""}
    cluster.members["a"].position = (1, 150)
    cluster.tell(name, "node.fenced", failed)
    cluster.until(lambda: cluster.primary() not in ("", name), 3 * T.election_ms)


def test_nobody_else_waits_for_it() -> None:
    """Another leader may be here because that node is gone as a whole."""
    cluster, _, _ = crashed()
    cluster.until(lambda: "is started again in place" in sentence(cluster))
    cluster.members["a"].up = False
    cluster.until(lambda: cluster.primary() != "", 3 * T.election_ms)


def test_a_grant_that_came_since_ends_it() -> None:
    granted = state()
    waits = Comeback(granted.granted, 10 * MS)
    assert waits.left_ms(granted, "a", 0) == 10
    assert waits.left_ms(granted, "a", 11 * MS) == 0
    assert Comeback(granted.granted - 1, 10 * MS).left_ms(granted, "a", 0) == 0
    assert NOBODY.left_ms(state(grants=()), "a", 0) == 0


def test_without_a_grant_there_is_nothing_to_come_back_to() -> None:
    assert begun(state(grants=()), {"died": True}, 0) == NOBODY


THERE: dict[str, Any] = {"a": (3, 60), "b": (3, 70), "c": (3, 50)}


def test_of_those_who_hold_everything_the_one_that_comes_back_is_preferred() -> None:
    assert isinstance(ask(THERE, me="a", comeback_ms=1), TakeGrant)
    assert not isinstance(ask(THERE, me="a"), TakeGrant), "else the one with the newest WAL"
    assert not isinstance(ask(THERE, me="a", comeback_ms=1, preferred="c"), TakeGrant), "a person comes first"


def test_asynchronous_commit_prefers_nobody_to_the_newest_wal() -> None:
    loose = state(k=1, mode="async")
    assert not isinstance(ask(THERE, me="a", comeback_ms=1, state=loose), TakeGrant)


def test_whose_promise_is_missing_is_said_first() -> None:
    waits = ask({"b": (3, 50), "a": None}, me="a", comeback_ms=1)
    assert isinstance(waits, Wait)
    assert waits.missing == ("a", "c")
