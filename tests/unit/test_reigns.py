"""Every change of primary as `pgr history` tells it, and where its write gap begins and ends."""

from __future__ import annotations

import pytest

from consensus.cluster import ClusterState, Grant, canonical
from consensus.history import HistoryEvent as Logged
from consensus.record import Position
from fencing.lease import MS
from supervisor.reigns import gap_event, gap_ms, page, reigns
from supervisor.status import HistoryEvent

NOW = 10_000 * MS
FIRST = Grant(3, "a", Position(0, 0), 2, (), opened=True)
NEW = Grant(6, "b", Position(3, 9), 4, (), opened=True)


def cluster(*between: Grant, told: tuple[Logged, ...] = ()) -> ClusterState:
    return ClusterState(grants=(FIRST, *between, NEW), history=told)


def said(kind: str, term: int, **fields: int) -> Logged:
    return Logged("t", kind, term, "a", "", canonical(fields))


def test_from_the_last_that_was_heard_of_the_old_primary_to_the_open_gate() -> None:
    assert gap_ms(cluster(), 6, (0, 0), (3, NOW - 640 * MS), NOW) == 640


def test_what_it_said_to_have_been_closed_before_comes_on_top() -> None:
    for kind in ("closed", "failed"):
        known = cluster(told=(said(kind, 2, closed_ms=5), said(kind, 3, closed_ms=80)))
        assert gap_ms(known, 6, (0, 0), (3, NOW - 640 * MS), NOW) == 720
    quiet = cluster(told=(said("failed", 3), said("salvaged", 3, closed_ms=80)))
    assert gap_ms(quiet, 6, (0, 0), (3, NOW - 640 * MS), NOW) == 640


def test_of_its_own_reign_it_knows_the_end_itself() -> None:
    assert gap_ms(cluster(), 6, (3, NOW - 900 * MS), (3, NOW - 640 * MS), NOW) == 900


def test_one_that_was_started_again_in_place_counts_from_its_own_end() -> None:
    assert gap_ms(cluster(), 6, (6, NOW - 300 * MS), (3, NOW - 90_000 * MS), NOW) == 300


def test_a_grant_that_was_never_open_is_no_reign() -> None:
    failed = Grant(5, "c", Position(3, 9), 3, (), failed="x")
    assert gap_ms(cluster(failed), 6, (0, 0), (3, NOW - 640 * MS), NOW) == 640
    assert gap_ms(cluster(failed), 6, (5, NOW), (5, NOW), NOW) is None, "of that one nobody asks"


@pytest.mark.parametrize("heard", [(0, 0), (2, NOW - MS)], ids=["started after the loss", "heard an older one only"])
def test_what_nobody_measured_is_not_known(heard: tuple[int, int]) -> None:
    assert gap_ms(cluster(), 6, (0, 0), heard, NOW) is None


def test_the_first_primary_has_no_gap() -> None:
    assert gap_ms(ClusterState(grants=(FIRST,)), 3, (0, 0), (0, 0), NOW) is None


def test_the_entry_says_it_in_words_and_as_a_number() -> None:
    found = gap_event(6, "b", 640)
    assert (found["kind"], found["node"], found["text"]) == ("gap", "b", "takes writes: none were possible for 640 ms")
    assert found["fields"] == {"gap_ms": 640}


def event(at: int, kind: str, term: int, node: str, reason: str = "", **more: int) -> HistoryEvent:
    return HistoryEvent(f"2026-11-22T20:00:{at:02}.000Z", kind, term, term - 1, node, reason, **more)  # type: ignore[arg-type]  # a gap or bytes


EVENTS = (
    event(0, "founding", 0, "a", "is chosen to create the cluster"),
    event(1, "promoted", 3, "a", "holds epoch 0 up to 2000000, 1 of 1 needed promises"),
    event(2, "opened", 3, "a", "is open to clients"),
    event(3, "config", 3, "a", "eve@host: strict: true -> false"),
    event(10, "promoted", 5, "b", "holds epoch 3 up to 3000148, 2 of 2 needed promises"),
    event(11, "opened", 5, "b", "is open to clients"),
    event(11, "gap", 5, "b", "takes writes: none were possible for 640 ms", gap_ms=640),
    event(12, "salvaged", 5, "a", "saved 8192 bytes of WAL; read them with: pg_waldump x", bytes_salvaged=8192),
    event(20, "switchover", 5, "c", "was asked for by eve@host"),
    event(20, "closed", 5, "b", "stopped its Postgres cleanly for a switchover"),
    event(21, "vetoed", 6, "c", "its pre_promote hook said no: ended with 1"),
    event(22, "promoted", 7, "b", "holds epoch 5 up to 3000148, 3 of 2 needed promises"),
    event(30, "failed", 7, "b", "Postgres was killed"),
)


def test_who_why_after_what_and_what_was_saved() -> None:
    first, second, third = reigns(EVENTS)
    assert (first.node, first.term, first.timeline, first.opened, first.before) == ("a", 3, 2, True, ())
    assert first.gap_ms is None
    lost = "a, primary of term 3, was lost: nothing in the log says that it ended"
    assert (second.node, second.before, second.gap_ms, second.bytes_salvaged) == ("b", (lost,), 640, 8192)
    assert second.at.endswith(":11.000Z"), "when it was open"
    assert third.before == (
        "switchover: c was asked for by eve@host", "closed: b stopped its Postgres cleanly for a switchover",
        "vetoed: c its pre_promote hook said no: ended with 1",
    )  # fmt: skip
    assert (third.opened, third.at[-7:]) == (False, "22.000Z")


PAGE = """\
2026-11-22T20:00:02.000Z  a  term 3  timeline 2
  why: holds epoch 0 up to 2000000, 1 of 1 needed promises

2026-11-22T20:00:11.000Z  b  term 5  timeline 4  write gap 640 ms
  why: holds epoch 3 up to 3000148, 2 of 2 needed promises
  before: a, primary of term 3, was lost: nothing in the log says that it ended
  salvage: a saved 8192 bytes of WAL; read them with: pg_waldump x

2026-11-22T20:00:22.000Z  b  term 7  timeline 6  never open
  why: holds epoch 5 up to 3000148, 3 of 2 needed promises
  before: switchover: c was asked for by eve@host
  before: closed: b stopped its Postgres cleanly for a switchover
  before: vetoed: c its pre_promote hook said no: ended with 1
"""


def test_the_page() -> None:
    assert page(EVENTS) == PAGE
    assert max(map(len, PAGE.splitlines())) <= 80
    assert page(()) == "nobody has been primary yet\n"


def test_what_came_to_nothing_before_does_not_hide_that_the_primary_was_lost() -> None:
    told = [
        *EVENTS[:3], event(4, "fenced", 3, "c", "is fenced"), event(5, "unfenced", 3, "c", "is fenced no more"),
        event(6, "switchover", 3, "b", "was asked for"), event(9, "vetoed", 4, "c", "said no"), *EVENTS[4:6],
    ]  # fmt: skip
    lost = "a, primary of term 3, was lost: nothing in the log says that it ended"
    assert reigns(told)[-1].before == ("switchover: b was asked for", lost, "vetoed: c said no")
    told[3] = event(4, "fenced", 3, "a", "is fenced")
    assert reigns(told)[-1].before[:1] == ("fenced: a is fenced",)
    told[5] = event(8, "failed", 3, "a", "Postgres was killed")
    assert reigns(told)[-1].before == ("fenced: a is fenced", "failed: a Postgres was killed", "vetoed: c said no")


def test_what_is_told_late_of_an_earlier_primary_says_nothing_of_the_last_one() -> None:
    told = [*EVENTS[:3], EVENTS[4], event(12, "failed", 3, "a", "Postgres was killed"), EVENTS[11]]
    lost = "b, primary of term 5, was lost: nothing in the log says that it ended"
    assert reigns(told)[-1].before == ("failed: a Postgres was killed", lost)


def test_a_cluster_that_was_rebuilt_says_so_before_its_first_primary() -> None:
    told = [
        HistoryEvent("t1", "promoted", 3, 2, "a", "x"), HistoryEvent("t2", "opened", 3, 2, "a", "is open"),
        HistoryEvent("t3", "recovered", 9, 0, "c", "has rebuilt the cluster"),
        HistoryEvent("t4", "promoted", 10, 40, "c", "y"), HistoryEvent("t5", "opened", 10, 40, "c", "is open"),
    ]  # fmt: skip
    assert reigns(told)[-1].before == ("recovered: c has rebuilt the cluster",)
    assert reigns(told[2:])[0].before == ("recovered: c has rebuilt the cluster",), "what was before it is forgotten"
