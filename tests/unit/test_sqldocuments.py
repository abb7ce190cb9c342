"""What `pg_replica` shows of a snapshot."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from consensus.cluster import ClusterState
from supervisor.explain import Heard
from supervisor.observe import Facts, observation
from supervisor.roles import Step, View
from supervisor.sqlcatalog import CONFIG, HISTORY, STATUS
from supervisor.sqldocuments import documents, urgent
from supervisor.sqlrequests import dump
from supervisor.status import Snapshot
from tests.unit.test_explain import EVENTS, NEXT, told
from tests.unit.test_observe import GRANT, agreed, picture, primary, standby

HEARD = Heard({n: told(n, 100) for n in "abc"}, {"b": 100, "c": 100})


def seen(me: str = "a", leader: str = "a", **changes: Any) -> Snapshot:
    local = primary() if me == "a" else standby(me=me)
    role = "leader" if leader == me else "follower"
    return replace(picture(local, agreed(history=EVENTS), HEARD.members, leader=leader, term=5, role=role), **changes)


def shown(snapshot: Snapshot, cluster: Any = None) -> dict[str, Any]:
    return contents(cluster or agreed(history=EVENTS), snapshot)[STATUS]


def contents(cluster: ClusterState | None, snapshot: Snapshot, told: Heard = HEARD) -> dict[str, dict[str, Any]]:
    return {document.name: document.content() for document in documents(cluster, snapshot, told, 0)}


def test_the_documents_of_a_cluster() -> None:
    cluster = agreed(history=EVENTS)
    assert {d.name: d.source for d in documents(cluster, seen(), HEARD, 0)} == {
        HISTORY: cluster, CONFIG: cluster, STATUS: None,
    }  # fmt: skip
    found = contents(cluster, seen())
    assert list(found)[-1] == STATUS, "the one that tells the age is written last"
    assert [e["kind"] for e in found[HISTORY]["history"]] == ["founding", "promoted", "opened"]
    assert "strict" in {row["name"] for row in found[CONFIG]["settings"]}
    status = found[STATUS]
    assert [m["name"] for m in status["members"]] == ["a", "b", "c"]
    assert status["explain"].startswith("a of term 5 is primary and open to clients")
    assert not status["explain"].endswith("\n")
    for body in found.values():
        assert json.loads(dump(body))["format"] == 1


@pytest.mark.parametrize("me", ["a", "b"])
def test_the_primary_is_known_everywhere(me: str) -> None:
    found = shown(seen(me))
    assert found["node"] == me
    assert found["primary"]["name"] == "a"
    assert (found["primary"]["term"], found["primary"]["timeline"]) == (GRANT.term, GRANT.timeline)
    assert isinstance(found["primary"]["port"], int)


def test_no_primary_is_named_that_may_not_be_one() -> None:
    """safety.md, promotion 5: `pg_replica.primary()` turns positive only after the gate is open."""
    assert shown(seen(opened=False))["primary"] is None, "its own gate is closed"
    assert shown(seen("b"))["primary"] is not None
    assert shown(seen("b", leader=""))["primary"] is None, "cut off: nobody knows whether it still is"
    not_open = agreed(grants=(GRANT._replace(opened=False),))
    assert shown(seen("b"), not_open)["primary"] is None
    assert shown(replace(seen("b"), term=6))["primary"] is None, "another term has begun"
    failed = agreed(grants=(GRANT._replace(failed="it crashed"),))
    assert shown(seen("b"), failed)["primary"] is None
    assert shown(seen("b"), agreed(grants=(GRANT, NEXT._replace(opened=False))))["primary"] is None


def test_before_anything_is_known() -> None:
    found = contents(None, Snapshot("a"), Heard({}, {}))
    assert found[STATUS]["members"] == []
    assert found[STATUS]["primary"] is None
    assert found[CONFIG]["settings"] == []


def test_what_is_told_at_once() -> None:
    now = seen()
    assert urgent(now) == urgent(replace(now, taken_ns=5, lease_until_ns=7))
    for changes in ({"opened": False}, {"leader": ""}, {"role": "demoting"}, {"history": ()}, {"primary": None}):
        assert urgent(now) != urgent(replace(now, **changes))


def test_what_cannot_be_asked_by_sql_is_a_warning_on_every_node() -> None:
    problem = "in database app: no plpgsql"
    said = observation(View(True), standby(), Facts(sql_problem=problem), Step.WAIT, "", "0.1.0")
    members = {n: told(n) for n in "abc"}
    members["c"] = {"seen": said, "age_ms": 0}
    shot = picture(primary(), agreed(), members, leader="a", term=5, role="leader")
    assert f"pg_replica on c: {problem}" in shot.warnings
    assert not any("pg_replica" in text for text in seen().warnings)
