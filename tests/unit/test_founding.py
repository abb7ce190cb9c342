"""One cluster from nodes that know only names: everybody answers, or nothing happens and it is said who is silent."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from consensus.cluster import found
from consensus.founding import (
    Charter,
    Founding,
    Greeting,
    Waiting,
    charter_message,
    consider,
    founders,
    parse,
    parse_greeting,
    stranger_message,
)
from consensus.membership import LEARNER, VOTER, WITNESS, Member, Membership, membership

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


def test_what_comes_with_adopted_data_fills_in_what_the_founding_does_not_say() -> None:
    brings = '{"hba":["local all all peer"],"ident":["m a b"],"parameters":{"wal_level":"logical","work_mem":"1MB"}}'
    others = heard(replace(greeting("b", "77"), brings=brings), greeting("c"))
    charter = consider(greeting("a"), others, OPTIONS)
    assert isinstance(charter, Charter)
    brought = {"hba": ["local all all peer"], "parameters": {"wal_level": "logical", "work_mem": "1MB"}}
    assert json.loads(charter.text)["settings"] == brought | {"ident": ["m a b"], "adopts": "77"}
    assert json.loads(found(charter.text, "0f").config) == {
        "postgres.hba": ["local all all peer"],
        "postgres.ident": ["m a b"],
        "postgres.parameters.wal_level": "logical",
        "postgres.parameters.work_mem": "1MB",
    }
    given = Founding("quorum", "default", '{"hba":["local all all trust"],"parameters":{"work_mem":"2MB"}}')
    charter = consider(greeting("a"), others, given)
    assert isinstance(charter, Charter)
    assert json.loads(charter.text)["settings"] == {
        "hba": ["local all all trust"], "parameters": {"wal_level": "logical", "work_mem": "2MB"},
        "ident": ["m a b"], "adopts": "77",
    }  # fmt: skip
    # What an empty node says of itself changes nothing.
    charter = consider(greeting("a"), heard(replace(greeting("b"), brings=brings), greeting("c")), OPTIONS)
    assert isinstance(charter, Charter)
    assert json.loads(charter.text)["settings"] == {"parameters": {}}


@pytest.mark.parametrize("brings", ['{"hba":[7]}', '{"parameters":{"a":1}}', "[]", "8", "{", 7])
def test_a_greeting_that_brings_nonsense_is_malformed(brings: object) -> None:
    body = parse(greeting("b").dump()) | {"brings": brings}
    with pytest.raises(ValueError, match=r"malformed greeting|Expecting"):
        parse_greeting(body)
    del body["brings"]
    assert parse_greeting(body).brings == "{}", "of a node of an earlier version"


def test_one_node_alone_is_its_own_majority() -> None:
    assert isinstance(consider(greeting("a", peers=("a",)), {}, OPTIONS), Charter)


def test_the_founders_stand_in_the_charter() -> None:
    charter = consider(greeting("a"), heard(greeting("c"), greeting("b")), OPTIONS)
    assert isinstance(charter, Charter)
    assert [(m.name, m.incarnation, m.role, m.aim) for m in founders(charter.text)] == [
        (name, ord(name), VOTER, VOTER) for name in "abc"
    ]


@pytest.mark.parametrize("change", [{"joins": True}, {"lost": True}])
def test_one_that_joins_or_has_lost_its_state_never_founds(change: dict[str, bool]) -> None:
    answer = consider(greeting("a"), heard(replace(greeting("b"), **change), greeting("c")), OPTIONS)  # type: ignore[arg-type]
    assert isinstance(answer, Waiting)
    assert answer.problem.startswith("b ")
    assert isinstance(consider(replace(greeting("a"), **change), heard(greeting("b"), greeting("c")), OPTIONS), Waiting)  # type: ignore[arg-type]


def test_a_witness_creates_nothing() -> None:
    witness = replace(greeting("a"), aim=WITNESS)
    charter = consider(witness, heard(greeting("b"), greeting("c")), OPTIONS)
    assert isinstance(charter, Charter)
    assert json.loads(charter.text)["founder"] == "b"
    state = found(charter.text, "00")
    assert (state.group.names, state.group.k) == (("b", "c"), 2)
    assert membership(state.members).voters == ("a", "b", "c")


def test_a_learner_founds_with_the_others_but_is_neither_founder_nor_in_the_sync_group() -> None:
    """It can't be primary, and before the first opening nobody but the founder can."""
    learner = replace(greeting("a"), aim=LEARNER)
    charter = consider(learner, heard(greeting("b"), greeting("c")), OPTIONS)
    assert isinstance(charter, Charter)
    state = found(charter.text, "00")
    assert (state.founder, state.group.names, state.group.k) == ("b", ("b", "c"), 2)
    assert membership(state.members) == Membership(("b", "c"), ("a",))


@pytest.mark.parametrize("aim", [WITNESS, LEARNER])
def test_somebody_has_to_be_able_to_be_primary(aim: str) -> None:
    nobody = [replace(greeting(n), aim=aim) for n in PEERS]
    answer = consider(nobody[0], heard(*nobody[1:]), OPTIONS)
    assert isinstance(answer, Waiting)
    assert answer.problem == "no peer is to be a voter with Postgres: nobody could be primary"
    answer = consider(greeting("a"), heard(replace(greeting("b", "77"), aim=aim), greeting("c")), OPTIONS)
    assert isinstance(answer, Waiting)
    assert answer.problem == "b brings a data directory, but is to be no voter: it could not be primary"


def test_messages_round_trip() -> None:
    assert parse_greeting(parse(greeting("b", "77").dump())) == greeting("b", "77")
    member = Member("a", 1, "a:1", "a:2", "")
    assert parse(charter_message("0f", "{}", 7, 9, [member])) == {
        "kind": "charter", "cluster_id": "0f", "charter": "{}", "term": 7, "index": 9, "members": [list(member)],
    }  # fmt: skip
    assert parse(stranger_message("why", "do", final=True))["reason"] == "why"


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
