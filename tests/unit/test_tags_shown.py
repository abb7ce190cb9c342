"""Tags as a node puts them into the log and as people see them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consensus.cluster import ClusterState, Seat, canonical
from consensus.tags import Tag, Tagged
from fencing.lease import PROFILES
from supervisor import observe
from supervisor.config import Config, Facts, load
from supervisor.member import announce_tags
from supervisor.observe import observation, snapshot
from supervisor.roles import Local, Step, View
from supervisor.status import Snapshot
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
