"""What was heard of the others: it informs and never decides, but it has to be right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from consensus.cluster import Grant
from consensus.membership import LEARNER, VOTER, WITNESS, Member
from consensus.record import Position
from consensus.sightings import Sightings
from fencing.lease import MS

ALIVE = 1000


def sightings() -> Sightings:
    return Sightings("a", ALIVE)


def streaming(lsn: int = 100, epoch: int = 3, upstream: int = 3) -> dict[str, Any]:
    return {"state": "streaming", "epoch": epoch, "lsn": lsn, "epoch_of_upstream": upstream}


def heard(told: dict[str, dict[str, Any]], at_ms: int = 0) -> Sightings:
    made = sightings()
    for name, seen in told.items():
        made.hear(name, at_ms * MS)
        made.take_in(name, json.dumps(seen), at_ms * MS)
    return made


def test_connected_is_who_was_heard_of_lately() -> None:
    made = sightings()
    made.hear("b", 5 * MS)
    assert made.is_connected("b", (5 + ALIVE) * MS - 1)
    assert not made.is_connected("b", (5 + ALIVE) * MS)
    assert not made.is_connected("c", 5 * MS)
    assert made.is_connected("a", 10 * ALIVE * MS), "oneself always is"


def test_ones_own_observation() -> None:
    made = sightings()
    assert made.own() == ""
    assert made.say('{"x":1}', 1)
    assert not made.say('{"x":1}', 2)
    assert made.say('{"x":2}', 3)
    assert made.own() == '{"x":2}'
    assert made.of("a") == {"x": 2}
    assert made.of("b") == {}


def test_all_with_their_age() -> None:
    made = heard({"c": {"n": 3}, "b": {"n": 2}}, 10)
    made.say('{"n":1}', 10 * MS)
    assert made.all(35 * MS) == {
        "a": {"seen": {"n": 1}, "age_ms": 0}, "b": {"seen": {"n": 2}, "age_ms": 25},
        "c": {"seen": {"n": 3}, "age_ms": 25},
    }  # fmt: skip
    assert list(made.all(35 * MS)) == ["a", "b", "c"]


def test_what_the_leader_tells_of_all_but_oneself() -> None:
    made = sightings()
    made.say('{"n":1}', 0)
    told = {"a": {"seen": {"n": 9}, "age_ms": 0}, "b": {"seen": {"n": 2}, "age_ms": 30}}
    made.take_in_all(json.dumps(told), 100 * MS)
    assert made.all(110 * MS) == {"a": {"seen": {"n": 1}, "age_ms": 0}, "b": {"seen": {"n": 2}, "age_ms": 40}}
    assert not made.is_connected("b", 110 * MS), "hearsay is no connection"


def test_promises_are_passed_on_and_replaced_as_a_whole() -> None:
    made = sightings()
    told = {"b": {"seen": {}, "age_ms": 0, "promise": [9, -1, 0, "down"]}, "c": {"seen": {}, "age_ms": 0}}
    made.take_in_all(json.dumps(told), 0)
    assert made.all(0)["b"]["promise"] == [9, -1, 0, "down"]
    assert "promise" not in made.all(0)["c"]
    made.take_in_all(json.dumps({"b": {"seen": {}, "age_ms": 0}}), 0)
    assert "promise" not in made.all(0)["b"], "the leader has decided"


def test_how_long_ago_anything_came() -> None:
    made = heard({"c": {}, "b": {}}, 10)
    assert made.heard(35 * MS) == {"b": 25, "c": 25}


def test_the_furthest_is_a_connected_voter_with_data_if_there_is_one() -> None:
    members = [Member(n, 1, "", "", "") for n in "abcd"]
    told = {"a": streaming(999), "b": streaming(100), "c": streaming(200), "d": streaming(300, epoch=2)}
    made = heard(told)
    assert made.furthest(members, 1) == "c", "the pair counts, not the bare LSN; and not oneself"
    made.hear("c", -ALIVE * MS)
    assert made.furthest(members, 1) == "b", "c is silent"
    assert made.furthest(members, ALIVE * MS) == ""
    assert sightings().furthest(members, 1) == ""


def test_a_witness_is_better_than_nobody_and_a_learner_is_not() -> None:
    witness, voter = Member("w", 1, "", "", "", WITNESS, WITNESS), Member("b", 1, "", "", "", VOTER, VOTER)
    learner = Member("d", 1, "", "", "", LEARNER, VOTER)
    made = heard({"w": {}, "d": streaming(500), "b": {}})
    assert made.furthest([witness, learner], 1) == "w"
    assert made.furthest([learner], 1) == ""
    assert made.furthest([witness, voter, learner], 1) == "b", "even before it has said anything of itself"


@pytest.mark.parametrize(
    ("target", "seen", "now_ms", "why"),
    [
        ("", streaming(), 1, "no other data node is connected"),
        ("b", streaming(), ALIVE, "b is not connected"),
        ("b", streaming() | {"state": "catching up"}, 1, "b does not stream from the primary (it is catching up)"),
        ("b", streaming(upstream=2), 1, "b does not stream from the primary (it is streaming)"),
        ("b", {}, 1, "b does not stream from the primary (it is unknown)"),
        ("b", streaming(), 1, ""),
    ],
)  # fmt: skip
def test_who_can_take_over_without_a_gap(target: str, seen: dict[str, Any], now_ms: int, why: str) -> None:
    assert heard({"b": seen}).unfit(target, 3, now_ms * MS) == why


def test_how_far_a_primary_was_is_not_forgotten_when_it_speaks_again() -> None:
    """Asynchronous mode bounds the loss by it: its Postgres crashes, and its parent says that it is starting."""
    grant, made = Grant(3, "b", Position(2, 1), 2, opened=True), sightings()
    assert made.last_known(grant) is None
    made.take_in("b", json.dumps({"role": "primary", "epoch": 3, "lsn": 500}), 1)
    made.take_in("b", json.dumps({"role": "replica", "epoch": 3, "lsn": 400}), 2)
    made.take_in("b", json.dumps({"role": "primary", "epoch": 2, "lsn": 900}), 3)
    assert made.last_known(grant) == Position(3, 500)
    assert made.last_known(grant._replace(term=4)) is None
    assert made.last_known(grant._replace(node="c")) is None
    assert made.last_known(None) is None
