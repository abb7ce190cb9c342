"""Tags as a node puts them into the log and as people see them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consensus.cluster import ClusterState, Seat, canonical
from consensus.tags import Tag, Tagged
from fencing.lease import PROFILES
from supervisor import observe, render
from supervisor.config import Config, Facts, load
from supervisor.health import answer
from supervisor.member import announce_tags
from supervisor.observe import observation, snapshot
from supervisor.roles import Local, Step, View
from supervisor.status import Snapshot
from tests.unit import test_observe
from tests.unit.test_observe import NOW, agreed, primary, standby

LIFE = 0x1122334455667788


def with_tags(**tags: dict[str, Tag]) -> ClusterState:
    return agreed(tagged=tuple(Tagged(Seat(name, LIFE), canonical(found)) for name, found in sorted(tags.items())))


def picture(
    cluster: ClusterState, local: Local | None = None, own_tags: dict[str, Tag] | None = None, **seen: Any
) -> Snapshot:
    view = View(True, LIFE, 5, "a", cluster=cluster)
    facts = observe.Facts(1000, 1000, **seen)
    here = local or primary()
    members = {
        name: {"seen": observation(view, of, facts, Step.WAIT, "", "0.1.0"), "age_ms": 0}
        for name, of in (("a", primary()), ("b", standby()))
    }
    return snapshot(
        view, here, facts, members, PROFILES["default"], state="running", sentence="", now_ns=NOW, scheduling={},
        pgr_version="0.1.0", own_tags=own_tags,
    )  # fmt: skip


def test_of_the_others_the_log_tells_and_of_itself_the_configuration() -> None:
    log = with_tags(a={"zone": "x"}, b={"noloadbalance": True})
    made = picture(log, own_tags={"zone": "y"})
    assert [dict(m.tags) for m in made.members] == [{"zone": "y"}, {"noloadbalance": True}, {}]
    assert next(dict(m.tags) for m in picture(log).members) == {"zone": "x"}
    assert picture(log, standby(), {}).own.tags == {}


@pytest.mark.parametrize(
    ("tags", "warning"),
    [
        ({"a": {"nofailover": True}}, "a is tagged nofailover and is the primary"),
        ({"b": {"nofailover": True}, "c": {"priority": 0}}, "nothing takes over when the primary is lost"),
        ({"b": {"nosync": True}, "c": {"nosync": True}}, "b, c is tagged nosync and keeps its seat"),
        ({"b": {"nosync": True}}, "b is tagged nosync and keeps its seat"),
    ],
)
def test_tags_that_cost_protection_are_warned_of(tags: dict[str, dict[str, Tag]], warning: str) -> None:
    found = picture(with_tags(**tags)).warnings
    assert any(text.startswith(warning) for text in found), found


@pytest.mark.parametrize("tags", [{}, {"b": {"nofailover": True}}, {"a": {"nosync": True}}, {"b": {"priority": 2}}])
def test_tags_that_do_not_are_not(tags: dict[str, dict[str, Tag]]) -> None:
    assert not [text for text in picture(with_tags(**tags)).warnings if "tagged" in text]


def test_once_its_seat_is_given_up_only_the_rest_can_take_over() -> None:
    cluster = with_tags(b={"nosync": True})
    group = cluster.group._replace(members=(cluster.group.members[0], cluster.group.members[2]))
    assert not [text for text in picture(replace(cluster, group=group)).warnings if "tagged" in text]
    both = with_tags(b={"nosync": True}, c={"nofailover": True})
    assert "nothing takes over when the primary is lost: every other node with a seat is tagged nofailover" in picture(
        replace(both, group=group)
    ).warnings


def test_one_without_a_seat_for_its_tag_is_no_degradation() -> None:
    cluster = with_tags(c={"nosync": True})
    smaller = cluster.group._replace(members=cluster.group.members[:2])
    assert observe.degraded_words(replace(cluster, group=smaller)) == ""
    assert observe.degraded_words(replace(cluster, group=smaller._replace(k=1))).startswith("degraded: 1 of a, b")


def test_what_postgres_tells_of_a_standby() -> None:
    made = picture(agreed(), standby(), lag_s=1.5, started="then", replayed_at="later", replay_paused=True, https=True)
    b = made.member("b")
    assert b is not None
    assert (b.lag_s, b.started, b.replayed_at, b.replay_paused, b.https) == (1.5, "then", "later", True, True)
    a = made.member("a")
    assert a is not None
    assert a.lag_s is None, "a primary replays nothing"


# -- into the log


def config(tmp_path: Path, tags: str) -> Config:
    return load({"data": str(tmp_path), "name": "b", "tags": tags}, {}, None, None, Facts("host", "/"))


def told(view: View, made: Config) -> list[tuple[str, dict[str, Any]]]:
    said: list[tuple[str, dict[str, Any]]] = []
    announce_tags(view, made, lambda name, body: said.append((name, body)))
    return said


def test_a_node_tells_until_the_log_has_it(tmp_path: Path) -> None:
    made = config(tmp_path, "zone=x")
    ((name, order),) = told(View(True, LIFE, 5, "a", cluster=agreed()), made)
    assert (name, order["kind"]) == ("node.propose", "tags/1")
    assert (order["body"]["node"], order["body"]["incarnation"], order["body"]["tags"]) == ("b", LIFE, {"zone": "x"})
    assert told(View(True, LIFE, 5, "a", cluster=with_tags(b={"zone": "x"})), made) == []
    ((_, order),) = told(View(True, LIFE, 5, "a", cluster=with_tags(b={"zone": "x"})), config(tmp_path, ""))
    assert order["body"]["tags"] == {}, "taken out again"
    ((_, order),) = told(View(True, LIFE, 5, "a", cluster=with_tags(b={"ssd": 1})), config(tmp_path, "ssd=true"))
    assert order["body"]["tags"] == {"ssd": True}, "which 1 is not, to whoever asks for it"


def test_a_life_that_the_log_does_not_know_tells_nothing(tmp_path: Path) -> None:
    made = config(tmp_path, "zone=x")
    assert told(View(True, 7, 5, "a", cluster=agreed()), made) == []
    assert told(View(True, LIFE, 5, "a", cluster=agreed("ac")), made) == []
    assert told(View(True, LIFE), made) == []


# -- from whom one streams, what keeps it out, what is wrong


def cascaded(tags: dict[str, Tag], through: str = "b", *, failed: str = "", **changes: Any) -> Snapshot:
    """``c`` of three, which has no seat."""
    log = with_tags(c=tags)
    group = log.group._replace(members=tuple(seat for seat in log.group.members if seat.name != "c"))
    log = replace(log, group=group, grants=(log.grants[0]._replace(failed=failed),))
    seen = {
        "a": test_observe.told("a"), "b": test_observe.told("b", upstream_node="a"),
        "c": test_observe.told("c", upstream_node=through, **changes),
    }  # fmt: skip
    return test_observe.picture(cluster=log, members=seen)


def test_who_streams_from_a_standby_and_has_no_seat_is_shown() -> None:
    made = cascaded({"replicate_from": "b"})
    row = made.member("c")
    assert row is not None
    assert (row.upstream, row.unseated) == ("b", "replicate_from")
    assert [m.upstream for m in made.members[:2]] == ["", ""]
    page = render.status(made, 0)
    assert "streams from b" in page
    assert "c: no seat in the sync group: `replicate_from`" in page
    assert not [text for text in made.warnings if "replicate_from" in text]
    assert [r["application_name"] for r in _replication(made)] == ["b"], "the primary has no other walsender"


def _replication(made: Snapshot) -> list[dict[str, Any]]:
    body = json.loads(answer(replace(made, lease_until_ns=NOW + 10**9, opened=True), "/patroni", "", NOW).body)
    found: list[dict[str, Any]] = body["replication"]
    return found


@pytest.mark.parametrize(
    ("tags", "through", "words"),
    [
        ({"replicate_from": "b"}, "a", "which does not stream or came back just now"),
        ({"replicate_from": "x"}, "a", "which is no standby of this cluster"),
        ({"replicate_from": "c"}, "a", "the tags lead round in a circle"),
        ({"replicate_from": "a"}, "a", ""),
        ({}, "a", ""),
    ],
)
def test_a_tag_that_does_not_do_what_it_says_is_warned_of(tags: dict[str, Tag], through: str, words: str) -> None:
    found = [text for text in cascaded(tags, through).warnings if "replicate_from" in text]
    assert [words in text for text in found] == [True] * bool(words), found


def test_without_a_primary_nobody_is_said_to_follow_it() -> None:
    made = cascaded({"replicate_from": "a"}, "", failed="gone")
    assert not [text for text in made.warnings if "replicate_from" in text]


def test_a_bad_file_and_a_slot_that_is_not_as_it_should_be_are_warned_of() -> None:
    made = cascaded({}, "a", config_problem="pgr.toml: no TOML", slot_problems=["cdc: no such database"])
    assert "c goes on with its old configuration: pgr.toml: no TOML" in made.warnings
    assert "slot on c: cdc: no such database" in made.warnings
