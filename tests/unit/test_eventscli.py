"""`pgr events` and `pgr history` against nodes that answer as they do: exit code, stdout and stderr, whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consensus.cluster import ClusterState, Grant, canonical
from consensus.history import HistoryEvent as Logged
from consensus.keys import new_key, read_key
from consensus.record import Position
from fencing.wire import Frame
from supervisor import admin, eventscli
from supervisor.errors import TryAgainError
from supervisor.status import event_json
from tests.unit.test_cli import Node, Run, data, no_environment, pgr  # noqa: F401  (fixtures)
from tests.unit.test_events import record
from tests.unit.test_member_surfaces import FOUR, Asked, asked, ended  # noqa: F401  (a fixture)
from tests.unit.test_reigns import EVENTS, PAGE

OPENED = record(
    2, node="b", scope="cluster", event="opened", text="is open to clients", at="2026-11-22T20:00:02.500Z", fields={}
)
FENCED = record(
    3, event="fence.begin", level="warning", fields={"rule": "authority-lost"},
    text="stops Postgres at once: the lease or the grant of this primary is gone: stop Postgres at once",
)  # fmt: skip
MINE = [record(1), OPENED, FENCED]
OTHERS = [
    record(7, at="2026-11-22T20:00:02.000Z", node="b", by="b", text="is open to clients"),
    OPENED | {"seq": 8, "by": "b"},
]
TEXT = """\
2026-11-22T20:00:01.000Z  a  gate.open: is open to clients
2026-11-22T20:00:02.500Z  b  opened: is open to clients
2026-11-22T20:00:03.000Z  a  WARNING: fence.begin: stops Postgres at once: the lease or the grant of this primary is gone: stop Postgres at once
"""  # noqa: E501  # as it is where nothing is wrapped
NARROW = """\
2026-11-22T20:00:01.000Z  a  gate.open: is open to clients
2026-11-22T20:00:02.500Z  b  opened: is open to clients
2026-11-22T20:00:03.000Z  a  WARNING: fence.begin: stops Postgres at once: the
                             lease or the grant of this primary is gone: stop
                             Postgres at once
"""
MERGED = """\
2026-11-22T20:00:01.000Z  a  gate.open: is open to clients
2026-11-22T20:00:02.000Z  b  gate.open: is open to clients
2026-11-22T20:00:02.500Z  b  opened: is open to clients
2026-11-22T20:00:03.000Z  a  WARNING: fence.begin: stops Postgres at once: the lease or the grant of this primary is gone: stop Postgres at once
"""  # noqa: E501  # likewise


def told(frame: Frame, found: list[dict[str, Any]], **more: Any) -> bytes:
    return admin.progress(frame.id, "events", "", {"node": "a", "events": found} | more)


def answering(found: list[dict[str, Any]], me: str, members: dict[str, str], key: str = "") -> Any:
    """A node that has these records; followed, it says that it stops after the last."""

    def handler(frame: Frame) -> list[bytes]:
        if frame.name == "history":
            return [admin.answer(frame.id, {"history": [event_json(e) for e in EVENTS]})]
        body = frame.body
        chosen = [r for r in found if r["seq"] > body.get("after", 0) and r["at"] >= body.get("since", "")]
        chosen = chosen[-body["last"] :] if body.get("last") else [] if body.get("last") == 0 else chosen
        where = {"node": me, "members": members, "key_file": key}
        if body.get("follow"):
            end = admin.answer(frame.id, error=TryAgainError("this node is stopping", "ask another member"))
            # The last one twice, as when asked anew while it was on its way.
            batches = [chosen[:1], chosen[1:], chosen[-1:]]
            return [told(frame, [], **where), *(told(frame, batch) for batch in batches), end]
        return [told(frame, chosen[:2]), told(frame, chosen[2:]), admin.answer(frame.id, where)]

    return handler


@pytest.fixture
def node(data: Path) -> Iterator[Node]:  # noqa: F811
    made = Node(data, answering(MINE, "a", {"a": "127.0.0.1:1"}))
    yield made
    made.close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(eventscli, "on_terminal", lambda: True)


def test_events(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    assert pgr("events", "--data", str(data)) == (0, TEXT, "")
    assert node.requests[-1].body == {"since": "", "last": 50}


def test_events_in_80_columns(pgr: Run, node: Node, data: Path, terminal: None) -> None:  # noqa: F811
    assert pgr("events", "--data", str(data)) == (0, NARROW, "")
    assert max(map(len, NARROW.splitlines())) <= 80


def test_events_as_json_are_a_line_each(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    code, out, err = pgr("events", "--json", "--data", str(data))
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == MINE


def test_the_last_ones_and_those_since(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    assert pgr("events", "-n", "1", "--data", str(data)) == (0, TEXT.splitlines(True)[2], "")
    assert pgr("events", "-n", "0", "--data", str(data)) == (0, "", "")
    later = "".join(TEXT.splitlines(True)[1:])
    assert pgr("events", "--since", "2026-11-22T20:00:02.1Z", "--data", str(data))[1] == later
    assert node.requests[-1].body == {"since": "2026-11-22T20:00:02.100Z", "last": None}
    assert pgr("events", "--since", "1h", "--data", str(data)) == (0, "", "")


def test_what_is_no_time_is_refused(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    code, out, err = pgr("events", "--since", "yesterday", "--data", str(data))
    assert (code, out) == (64, "")
    assert err == (
        "error: `--since yesterday` is no time\n\n"
        "hint: for example 10min, 2h, 1d, or 2026-11-26T03:00 (local time), 2026-11-26T03:00Z\n"
    )
    assert node.requests == []


def test_followed_until_the_node_stops(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    code, out, err = pgr("events", "--follow", "--data", str(data))
    assert (code, out) == (75, TEXT), "each once"
    assert err == "error: this node is stopping\n\nhint: ask another member\n"


def test_asked_anew_it_says_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch, pgr: Run, data: Path) -> None:  # noqa: F811
    monkeypatch.setattr(admin, "RENEW_MS", 50)
    monkeypatch.setattr(admin, "FORGET_MS", 300)
    made = Node(data, lambda f: [told(f, MINE)] if "after" not in f.body else [])
    try:
        assert pgr("events", "-f", "--data", str(data))[:2] == (75, TEXT)
        assert [r.body for r in made.requests[:2]] == [
            {"follow": True, "since": "", "last": 50}, {"follow": True, "after": 3},
        ]  # fmt: skip
    finally:
        made.close()


def test_everywhere_an_entry_of_the_log_is_told_once_and_who_is_silent_is_named(
    pgr: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    monkeypatch.setattr(eventscli, "OTHERS_IDLE_MS", 500)
    key = tmp_path / "key"
    admin.write_private(key, new_key())
    remote = Node(tmp_path, answering(OTHERS, "b", {}), key=read_key(key))
    members = {"a": "127.0.0.1:1", "b": f"127.0.0.1:{remote.port}", "c": "127.0.0.1:1"}
    made = Node(data, answering(MINE, "a", members, str(key)))
    try:
        code, out, err = pgr("events", "--all", "--data", str(data))
        assert (code, out) == (0, MERGED)
        assert err.startswith("warning: c could not be asked: ")
        assert err.count("\n") == 1
        assert pgr("events", "--all", "-n", "2", "--data", str(data))[1] == "".join(MERGED.splitlines(True)[2:])
    finally:
        made.close()
        remote.close()


def test_an_old_node_knows_no_events(pgr: Run, data: Path) -> None:  # noqa: F811
    made = Node(data, lambda f: [admin.answer(f.id, error=TryAgainError("unknown", "use its pgr"))])
    try:
        assert pgr("events", "--data", str(data)) == (75, "", "error: unknown\n\nhint: use its pgr\n")
    finally:
        made.close()


def test_history(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    assert pgr("history", "--data", str(data)) == (0, PAGE, "")


def test_history_as_json_is_what_the_log_has(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    code, out, err = pgr("history", "--json", "--data", str(data))
    assert (code, json.loads(out), err) == (0, [event_json(e) for e in EVENTS], "")


def reigning(term: int, *, opened: bool, gap_ms: int | None = None) -> ClusterState:
    grants = tuple(Grant(t, n, Position(0, 0), t, (), opened=True) for t, n in ((5, "a"),))
    if term > 5:
        grants += (Grant(term, "b", Position(5, 9), term, (), opened=opened),)
    told_ = () if gap_ms is None else (Logged("t", "gap", term, "b", "", canonical({"gap_ms": gap_ms})),)
    return replace(FOUR, grants=grants, history=told_)


@pytest.mark.parametrize(("told_", "shown"), [(765, 765), (None, 100)], ids=["measured", "nobody measured it"])
def test_a_switchover_answers_with_the_gap_that_the_new_primary_measured(
    asked: Asked, told_: int | None, shown: int  # noqa: F811
) -> None:
    asked.log(reigning(5, opened=True))
    asked.ask("switchover", to="b")
    asked.agrees(**{"from": "a", "to": "b"})
    asked.log(reigning(6, opened=False))
    asked.log(reigning(6, opened=True))
    assert not any(event == "answer" for event, _ in asked.said()), "it is about to say so"
    asked.log(reigning(6, opened=True, gap_ms=told_), later_ms=100 if told_ else 600)
    assert ended(asked.said())["result"]["gap_ms"] == shown
