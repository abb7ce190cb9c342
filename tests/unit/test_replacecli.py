"""`pgr member replace`, against a node that answers as one does: it waits for a machine and says how to start it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fencing.wire import Frame
from supervisor import admin, replacecli
from supervisor.status import Member, Snapshot, to_json
from tests.unit.snapshots import NOW, C, snapshot
from tests.unit.test_cli import Node, Run, data, no_environment, pgr  # noqa: F401  (fixtures)

NEW = Member("d", "0000000d", "learner", "streaming", member="learner", aim="voter", raft="10.0.0.4:7400")
UP = replace(C, connected=True, state="streaming", role="replica")
REBORN = replace(UP, incarnation="000000cc", member="learner", aim="voter")


def rows(*members: Member) -> Snapshot:
    listed = {m.name: m for m in (*snapshot().members, *members)}
    named = (replace(m, raft=m.raft or f"10.0.0.{n}:7400") for n, m in enumerate(listed.values(), 1))
    return snapshot(members=tuple(named))


@pytest.fixture
def answering(data: Path) -> Iterator[Callable[..., Node]]:  # noqa: F811
    """``first``: when it is asked; ``then``: what a watcher is told."""
    made: list[Node] = []

    def make(first: Snapshot, *then: Snapshot) -> Node:
        def handler(frame: Frame) -> list[bytes]:
            id = frame.id
            if frame.name == "status" and frame.body.get("watch"):
                return [admin.progress(id, "status.changed", "", to_json(s, NOW)) for s in then]
            if frame.name == "status":
                return [admin.answer(id, to_json(first, NOW))]
            role = frame.body.get("role", "gone")
            step = admin.progress(id, "member", "member: on its way")
            return [step, admin.answer(id, {"name": frame.body["name"], "role": role})]

        made.append(Node(data, handler))
        return made[-1]

    yield make
    for node in made:
        node.close()


def last(node: Node) -> tuple[str, dict[str, Any]]:
    body = dict(node.requests[-1].body)
    assert 1000 <= body.pop("timeout_ms") <= 600_000
    return node.requests[-1].name, body


def test_another_name_that_is_not_there_yet(
    pgr: Run, data: Path, answering: Callable[..., Node]  # noqa: F811
) -> None:  # fmt: skip
    node = answering(rows(), rows(), rows(NEW))
    code, out, err = pgr("member", "replace", "c", "--by", "d", "--data", str(data))
    assert (code, out) == (0, "c: no member any more\n")
    start = "pgr-supervise --data DIR --name d --listen HOST:PORT --join 10.0.0.1:7400 --cluster-key FILE"
    assert err == f"start the new node, with an empty data directory: {start}\nd is let in\nmember: on its way\n"
    assert last(node) == ("member.replace", {"name": "c", "by": "d"})


def test_another_name_that_is_a_member_already(
    pgr: Run, data: Path, answering: Callable[..., Node]  # noqa: F811
) -> None:  # fmt: skip
    node = answering(rows(NEW))
    assert pgr("member", "replace", "c", "--by", "d", "--json", "--data", str(data))[0] == 0
    assert last(node) == ("member.replace", {"name": "c", "by": "d"})


def test_the_same_name_in_another_life(
    pgr: Run, data: Path, answering: Callable[..., Node]  # noqa: F811
) -> None:  # fmt: skip
    node = answering(rows(), rows(), rows(REBORN))
    code, out, err = pgr("member", "replace", "c", "--data", str(data))
    assert (code, out) == (0, "c: replaced\n")
    assert "--name c --listen" in err
    assert "c is let in" in err
    assert last(node) == ("member.add", {"name": "c", "role": "voter"})


def test_a_witness_is_replaced_by_one(
    pgr: Run, data: Path, answering: Callable[..., Node]  # noqa: F811
) -> None:  # fmt: skip
    witness = replace(C, member="witness")
    node = answering(rows(witness), rows(replace(witness, incarnation="000000cc")))
    _, _, err = pgr("member", "replace", "c", "--data", str(data))
    assert "--name c --witness --listen" in err
    assert last(node)[1]["role"] == "witness"


def test_who_is_up_is_not_replaced_under_its_own_name(
    pgr: Run, data: Path, answering: Callable[..., Node]  # noqa: F811
) -> None:  # fmt: skip
    node = answering(rows(UP))
    code, out, err = pgr("member", "replace", "c", "--data", str(data))
    assert (code, out) == (75, "")
    assert "c is up" in err
    assert [frame.name for frame in node.requests] == ["status"]
    code, _, err = pgr("member", "replace", "x", "--data", str(data))
    assert (code, "no member is named x" in err, "members: a, b, c" in err) == (64, True, True)


def test_one_that_never_comes_is_given_up(
    pgr: Run, data: Path, answering: Callable[..., Node], monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(replacecli, "SECOND", 0)
    node = answering(rows(), rows(), rows())
    code, out, err = pgr("member", "replace", "c", "--by", "d", "--data", str(data))
    assert (code, out) == (75, "")
    assert "d has not asked to be let in" in err
    assert {frame.name for frame in node.requests} == {"status"}, "nothing was changed"


def test_where_nobody_is_up_the_address_is_left_open() -> None:
    status = {"members": [{"name": "c", "connected": False, "role": "", "raft": "x:1"}]}
    assert "--join HOST:PORT " in replacecli.start_of(status, "c", "voter")
