"""Events: what counts, what it is called, in which order it is told; and a store that stays small and survives."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consensus.cluster import ClusterState
from fencing import wire
from fencing.lease import MS
from fencing.logs import Log, cleaned
from supervisor import events, eventstore
from supervisor.admin import FORGET_MS
from supervisor.chronicle import CHUNK, LASTING_MS, Chronicle
from supervisor.config import Config
from supervisor.errors import TryAgainError
from supervisor.eventstore import MAX_BYTES, WAITING_MAX, EventStore
from supervisor.status import HistoryEvent
from tests.unit.snapshots import NOW, snapshot

ROOT = Path(__file__).resolve().parents[2]
QUIET = Log("json", "a", "test", fd=os.open(os.devnull, os.O_WRONLY))


def record(seq: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "seq": seq, "at": f"2026-11-22T20:00:{seq % 60:02}.000Z", "node": "a", "by": "a", "scope": "node",
        "event": "gate.open", "level": "info", "text": "is open to clients", "fields": {},
    } | more  # fmt: skip


# -- what counts


def test_lines_of_the_log_become_sentences() -> None:
    found = events.of_log("fence.begin", {"rule": "authority-lost", "epoch": 3})
    assert found == "stops Postgres at once: authority-lost"
    assert events.of_log("bus.full", {}) is None
    assert events.of_log("child.ended", {"expected": True, "child": "raft", "code": 0}) is None
    assert events.of_log("raft.role", {"term": 3, "leader": "", "role": "follower"}) == "knows no leader, term 3"


def test_positions_and_settings_are_written_as_people_know_them() -> None:
    fields = {"term": 2, "epoch": 1, "lsn": 0x502F788, "reason": ""}
    assert events.of_log("promise.given", fields) == "promised to term 2: epoch 1 up to 0/502F788"
    raised = events.of_log("settings.raised", {"values": {"max_connections": 100, "max_wal_senders": 20}})
    assert raised is not None
    assert raised.endswith("with less: max_connections = 100, max_wal_senders = 20")


def test_a_line_that_lacks_a_field_or_has_a_strange_one_is_no_reason_to_fail() -> None:
    assert events.of_log("clone.begin", {}) == "copies ?"
    fields = cleaned({"bytes": None, "place": Path("/x{y}"), "more": {"a": {1}}})
    assert events.of_log("salvage.saved", fields) == "saved bytes of WAL to /x{y}"
    assert json.dumps(fields) == '{"bytes": null, "place": "/x{y}", "more": {"a": [1]}}'


def logged() -> dict[str, set[str]]:
    """Every event of the log of the parent, with the fields it has somewhere."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "supervisor").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                name = node.args[1] if node.func.attr == "note" and len(node.args) > 1 else node.args[0]
                known = node.func.attr in ("info", "warning", "error", "note", "_warn", "_copy_again")
                if known and isinstance(name, ast.Constant) and isinstance(name.value, str):
                    fields = found.setdefault(name.value, set())
                    fields |= {k.arg or "*" for k in node.keywords}
                    for d in node.args[1:]:
                        if isinstance(d, ast.Dict):
                            fields |= {str(k.value) for k in d.keys if isinstance(k, ast.Constant)}
    return found


def test_every_event_in_the_table_is_a_line_of_the_log_with_the_fields_of_its_sentence() -> None:
    known = logged()
    assert set(events.TEXTS) - set(known) == set()
    for name, form in events.TEXTS.items():
        wanted = set(re.findall(r"\{(\w+)\}", form))
        assert "*" in known[name] or name == "start.inconsistent" or wanted <= known[name], name


def test_an_entry_of_the_log_as_a_record() -> None:
    entry = HistoryEvent("t", "failed", 7, 3, "b", "Postgres was killed", details={"closed_ms": 5}, bytes_salvaged=4)
    assert events.of_history(entry) == {
        "at": "t", "node": "b", "scope": "cluster", "event": "failed", "level": "warning",
        "text": "Postgres was killed",
        "fields": {"term": 7, "closed_ms": 5, "bytes_salvaged": 4},
    }  # fmt: skip


# -- in which order


def test_of_several_nodes_an_entry_of_the_log_is_told_once() -> None:
    opened = record(9, at="t2", node="b", scope="cluster", event="opened")
    mine, other = record(3, at="t1"), record(3, at="t1", by="b", node="b")
    merged = events.merged([opened, mine, other, opened | {"seq": 4, "by": "c"}])
    assert merged == [mine, other, opened | {"seq": 9}]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90s", "2026-11-22T19:58:30.000Z"),
        ("10min", "2026-11-22T19:50:00.000Z"),
        ("10m", "2026-11-22T19:50:00.000Z"),
        (" 2 h", "2026-11-22T18:00:00.000Z"),
        ("1d", "2026-11-21T20:00:00.000Z"),
        ("2026-11-22T03:00Z", "2026-11-22T03:00:00.000Z"),
        ("2026-11-22T03:00+02:00", "2026-11-22T01:00:00.000Z"),
    ],
)
def test_since(text: str, at: str) -> None:
    assert events.since(text, datetime(2026, 11, 22, 20, tzinfo=UTC)) == at


@pytest.mark.parametrize("text", ["", "yesterday", "10", "h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the message is Python's
        events.since(text, datetime(2026, 11, 22, 20, tzinfo=UTC))


# -- the store


def test_what_was_written_is_there_after_a_restart_and_the_numbers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    store = EventStore(path, QUIET)
    first = store.add({k: v for k, v in record().items() if k != "seq"})
    assert list(store.read()) == [first], "also before it is written"
    assert store.flush(NOW) == [first]
    assert store.flush(NOW) == []
    again = EventStore(path, QUIET)
    assert list(again.read()) == [first]
    assert again.add(first)["seq"] == 2
    assert [r["seq"] for r in again.read(after=1)] == [2]
    assert list(again.read(since="2027")) == []


def test_it_never_takes_more_than_twice_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventstore, "MAX_BYTES", 5_000)
    path = tmp_path / "events.jsonl"
    store = EventStore(path, QUIET)
    for i in range(200):
        store.add(record(text=f"event {i}"))
        store.flush(NOW)
        assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 10_000
    kept = [r["seq"] for r in store.read()]
    assert kept == list(range(kept[0], 201))
    assert len(kept) > 20
    assert MAX_BYTES == 1 << 20


def test_a_line_that_was_cut_off_costs_that_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    store = EventStore(path, QUIET)
    store.add(record())
    store.flush(NOW)
    with path.open("ab") as file:
        file.write(b'{"seq":2,"at":"20')
    store = EventStore(path, QUIET)
    store.add(record(text="after"))
    store.flush(NOW)
    odd = (json.dumps(record() | change) for change in ({"seq": "two"}, {"seq": None}, {"at": 5}))
    path.write_bytes(path.read_bytes() + b"[1]\n\xff\n" + "\n".join(odd).encode())
    assert [r["text"] for r in EventStore(path, QUIET).read()] == ["is open to clients", "after"]


def test_a_long_record_loses_its_fields_and_its_end(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.jsonl", QUIET)
    kept = store.add(record(text="x" * 20_000, fields={"y": "z"}))
    assert (len(kept["text"]), kept["fields"]) == (1_000, {})


def test_on_a_full_disk_it_waits_and_loses_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EventStore(tmp_path / "events.jsonl", QUIET)
    real = os.write
    full = True

    def write(fd: int, data: bytes) -> int:
        return real(fd, data[:10]) if full and bytes(data).startswith(b'{"seq"') else real(fd, data)

    monkeypatch.setattr(os, "write", write)
    for i in range(WAITING_MAX + 5):
        store.add(record(text=str(i)))
    assert store.flush(NOW) == []
    assert store.lost == 5
    assert (tmp_path / "events.jsonl").read_bytes() == b"", "half a record is taken back"
    full = False
    assert store.flush(NOW + 1) == [], "not at once again"
    assert len(store.flush(NOW + 1_000 * MS)) == WAITING_MAX
    assert store.lost == 0



# -- taking note


class Desk:
    """A chronicle, the frames it sends, and what it tells the hooks."""

    def __init__(self, path: Path) -> None:
        self.sent: list[tuple[bytes, wire.Frame]] = []
        config = cast(Config, SimpleNamespace(name="a", key_file=Path("/key")))
        store = EventStore(path / "events.jsonl", QUIET)
        self.chronicle = Chronicle(config, store, lambda c, data, _: self.sent.append((c, wire.decode(data))), "0.1")
        self.news: list[str] = []
        self.chronicle.on_record = lambda r: self.news.append(str(r["event"]))

    def ask(self, now_ns: int = NOW, id: str = "r", **body: Any) -> list[dict[str, Any]]:
        """The records that come back."""
        self.sent.clear()
        self.chronicle.request(b"c", wire.Frame("events", id, body), now_ns, False, {"a": "h:1", "b": "h:2"})
        return self.told()

    def told(self) -> list[dict[str, Any]]:
        return [r for _, f in self.sent if f.name == "admin.progress" for r in f.body["fields"]["events"]]

    def publish(self, now_ns: int = NOW, cluster: ClusterState | None = None, **changes: Any) -> None:
        self.chronicle.publish(snapshot(**changes), cluster, now_ns)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def names(found: list[dict[str, Any]]) -> list[str]:
    return [str(r["event"]) for r in found]


def test_no_password_is_kept(desk: Desk) -> None:
    fields = {"error": "host=b password=hush", "more": ["password='a b'"]}
    desk.chronicle.note("warning", "rewind.failed", fields)
    found = desk.ask()[-1]
    assert "hush" not in str(found)
    assert "a b" not in str(found)
    assert "password=***" in found["text"]


def test_whoever_asks_gets_the_last_ones_and_where_the_others_are(desk: Desk) -> None:
    for i in range(250):
        desk.chronicle.note("info", "clone.begin", {"source": str(i)})
    assert len(desk.ask()) == 251
    frames = [f for _, f in desk.sent]
    assert [len(f.body["fields"]["events"]) for f in frames[:-1]] == [CHUNK, CHUNK, 51]
    assert frames[-1].body["result"] == {"node": "a", "members": {"a": "h:1", "b": "h:2"}, "key_file": "/key"}
    assert names(desk.ask(last=1)) == ["clone.begin"]
    assert desk.ask(last=0) == []
    assert desk.ask(since="9") == []
    assert [r["seq"] for r in desk.ask(after=250)] == [251]


def test_a_hundred_of_the_longest_fit_into_a_frame_within_a_frame(desk: Desk) -> None:
    for i in range(CHUNK):
        desk.chronicle.note("info", "promotion.state", {"text": f"{i}" + '"' * 1_900})
    desk.ask()
    for _, sent in desk.sent:
        data = wire.encode(sent.name, sent.body, sent.id)
        assert wire.encode("remote.answer", {"client": "00", "frame": data.decode()})


def test_whoever_follows_is_told_of_each_until_it_is_forgotten(desk: Desk) -> None:
    assert names(desk.ask(follow=True)) == ["node.started"]
    desk.sent.clear()
    desk.chronicle.note("info", "gate.open", {})
    desk.chronicle.flush(NOW + MS)
    assert [r["seq"] for r in desk.told()][-1] == 2
    desk.sent.clear()
    desk.chronicle.note("info", "clone.begin", {"source": "b"})
    desk.chronicle.flush(NOW + FORGET_MS * MS + MS)
    assert desk.sent == []
    assert names(desk.ask(follow=True, after=2, now_ns=NOW + FORGET_MS * MS)) == ["clone.begin"], "nothing is left out"
    desk.chronicle.close(TryAgainError("this node is stopping", "ask another one"))
    assert desk.sent[-1][1].body["error"] == "this node is stopping"


def test_the_log_of_before_is_no_news_and_each_entry_is_recorded_once(desk: Desk, tmp_path: Path) -> None:
    entries = snapshot().history
    state = ClusterState()
    desk.publish(cluster=state)
    assert names(desk.ask()) == ["node.started", "founding", "failover"]
    assert desk.news == [], "what happened before this process is told to no hook"
    more = (*entries, HistoryEvent("t", "opened", 8, 3, "a", "is open to clients"))
    desk.publish(cluster=replace(state), history=more)
    desk.publish(cluster=replace(state), history=more)
    assert desk.news == ["opened"]
    assert names(desk.ask()).count("opened") == 1
    again = Desk(tmp_path)
    again.publish(cluster=state, history=more)
    assert names(again.ask()) == ["node.started", "founding", "failover", "opened", "node.started"]


def test_a_warning_that_stays_is_raised_and_then_cleared(desk: Desk) -> None:
    desk.publish(NOW, warnings=("x", "brief"))
    desk.publish(NOW + 500 * MS, warnings=("x",))
    desk.publish(NOW + LASTING_MS * MS, warnings=("x",))
    desk.publish(NOW + 2 * LASTING_MS * MS, warnings=("x",))
    desk.publish(NOW + 3 * LASTING_MS * MS, warnings=())
    found = [(r["event"], r["level"], r["text"]) for r in desk.ask()[1:]]
    assert found == [("warning.raised", "warning", "x"), ("warning.cleared", "info", "no longer: x")]


def test_a_postgres_that_does_not_start_is_told_once_for_each_reason(desk: Desk) -> None:
    def quarantined(reason: str) -> None:
        base = snapshot()
        rows = tuple(replace(m, state="quarantined", reason=reason) if m.name == "a" else m for m in base.members)
        desk.publish(members=rows)

    for reason in ("FATAL: x", "FATAL: x", "FATAL: y"):
        quarantined(reason)
    found = [r["text"] for r in desk.ask() if r["event"] == "postgres.quarantined"]
    assert found == ["Postgres does not start: FATAL: x", "Postgres does not start: FATAL: y"]


def test_the_same_again_and_again_is_told_now_and_then(desk: Desk) -> None:
    at: Callable[[int], None] = lambda ms: desk.chronicle.flush(NOW + ms * MS)  # noqa: E731  # short
    for ms in (0, 5_000, 9_999, 10_000):
        at(ms)
        desk.chronicle.note("info", "node.reloaded", {})
        desk.chronicle.note("info", "gate.open", {})
    assert names(desk.ask()).count("node.reloaded") == 2
    assert names(desk.ask()).count("gate.open") == 4


def test_the_log_tells_whoever_listens(desk: Desk) -> None:
    log = Log("json", "a", "parent", fd=os.open(os.devnull, os.O_WRONLY))
    log.listen(desk.chronicle.note)
    log.info("gate.open", term=3)
    log.once_per("k", 10).warning("fence.begin", rule="r", epoch=1)
    log.once_per("k", 10).warning("fence.begin", rule="s", epoch=1)
    log.info("bus.full")
    assert names(desk.ask()) == ["node.started", "gate.open", "fence.begin"]


def test_what_somebody_must_notice_is_a_warning() -> None:
    for kind in ("failed", "vetoed", "recovered", "superseded", "rival"):
        assert events.of_history(HistoryEvent("t", kind, 7, 3, "b", "x"))["level"] == "warning", kind
    assert events.of_history(HistoryEvent("t", "opened", 7, 3, "b", "x"))["level"] == "info"
