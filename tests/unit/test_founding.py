"""One cluster from nodes that know only names: everybody answers, or nothing happens and it is said who is silent."""

from __future__ import annotations

import json

import pytest

from consensus.cluster import found
from consensus.founding import (
    Charter,
    Founding,
    Greeting,
    Waiting,
    charter_message,
    consider,
    parse,
    parse_greeting,
    standing,
    stranger_message,
)

PEERS = ("a", "b", "c")
OPTIONS = Founding("quorum", "default", '{"parameters":{}}')


def greeting(name: str, adopts: str = "", peers: tuple[str, ...] = PEERS) -> Greeting:
    return Greeting(name, ord(name), f"{name}:1", f"{name}:2", f"{name}:3", peers, adopts)


def heard(*greetings: Greeting) -> dict[str, Greeting]:
    return {g.name: g for g in greetings}


def test_a_majority_is_not_enough() -> None:
    assert consider(greeting("a"), heard(greeting("b")), OPTIONS) == Waiting(("c",))
    assert consider(greeting("a"), {}, OPTIONS) == Waiting(("b", "c"))


def test_different_lists_are_named() -> None:
    answer = consider(greeting("a"), heard(greeting("b", peers=("a", "b")), greeting("c")), OPTIONS)
    assert isinstance(answer, Waiting)
    assert "b lists the peers a, b, this node a, b, c" in answer.problem


def test_the_charter_names_all_with_their_incarnations() -> None:
    charter = consider(greeting("a"), heard(greeting("c"), greeting("b")), OPTIONS)
    assert isinstance(charter, Charter)
    state = found(charter.text, "0f")
    assert [(m.name, m.incarnation, m.raft) for m in state.members] == [(n, ord(n), f"{n}:1") for n in PEERS]
    assert (state.founder, state.commit_mode, state.profile) == ("a", "quorum", "default")


def test_whoever_brings_data_is_the_founder_and_only_one_may() -> None:
    charter = consider(greeting("a"), heard(greeting("b", "77"), greeting("c")), OPTIONS)
    assert isinstance(charter, Charter)
    assert json.loads(charter.text)["founder"] == "b"
    answer = consider(greeting("a", "76"), heard(greeting("b", "77"), greeting("c")), OPTIONS)
    assert isinstance(answer, Waiting)
    assert "only one can be adopted" in answer.problem


def test_one_node_alone_is_its_own_majority() -> None:
    assert isinstance(consider(greeting("a", peers=("a",)), {}, OPTIONS), Charter)


def test_standing() -> None:
    charter = consider(greeting("a"), heard(greeting("c"), greeting("b")), OPTIONS)
    assert isinstance(charter, Charter)
    assert standing(charter.text, "b", ord("b")) == ""
    assert "another incarnation" in standing(charter.text, "b", 5)
    assert "not a member" in standing(charter.text, "x", 5)


def test_messages_round_trip() -> None:
    assert parse_greeting(parse(greeting("b", "77").dump())) == greeting("b", "77")
    assert parse(charter_message("0f", "{}")) == {"kind": "charter", "cluster_id": "0f", "charter": "{}"}
    assert parse(stranger_message("why"))["reason"] == "why"


@pytest.mark.parametrize("data", ["", "[]", "1", "null", '{"kind":"x"}', "{}"])
def test_what_is_no_hello(data: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse(data)


@pytest.mark.parametrize("broken", [{"name": "a"}, {"incarnation": None}, {"peers": 1}])
def test_a_malformed_greeting(broken: dict[str, object]) -> None:
    body = json.loads(greeting("a").dump()) | broken
    if broken == {"name": "a"}:
        del body["raft"]
    with pytest.raises(ValueError, match="malformed greeting"):
        parse_greeting(body)
