"""`pgr pause`, `resume`, `restart`, `reload`, what is scheduled: exit code, stdout and stderr, whole; and when a node
takes what was asked for as done."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consensus.cluster import ClusterState
from consensus.history import HistoryEvent
from consensus.keys import new_key, read_key
from consensus.operations import Operations, Reload, Rolling, Scheduled
from fencing import wire
from fencing.lease import PROFILES
from fencing.wire import Frame
from supervisor import admin, cli, health, observe, operating, render
from supervisor.config import Facts as Machine
from supervisor.config import load
from supervisor.errors import PgrError, RefusedError, TryAgainError, UsageError
from supervisor.roles import Local, View
from supervisor.status import from_json, to_json
from tests.unit.snapshots import NOW, snapshot
from tests.unit.test_cli import Node
from tests.unit.test_member_surfaces import Asked, agreed, ended, listed

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("PGR_DATA", "PGR_CLUSTER_KEY_FILE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    made = Path(tempfile.mkdtemp(prefix="pgr-ops-"))  # the name of tmp_path may be too long for a socket
    yield made
    shutil.rmtree(made)


@pytest.fixture
def asked(data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[tuple[int, str, str], list[Frame]]]:
    """Run ``pgr`` with these words against a node that answers so."""

    def ask(
        words: str, result: dict[str, Any] | PgrError, steps: tuple[str, ...] = ()
    ) -> tuple[tuple[int, str, str], list[Frame]]:  # fmt: skip
        def handler(frame: Frame) -> list[bytes]:
            error = result if isinstance(result, PgrError) else None
            told = [admin.progress(frame.id, "restart", step) for step in steps]
            return [*told, admin.answer(frame.id, None if isinstance(result, PgrError) else result, error)]

        node = Node(data, handler)
        try:
            code = cli.main([*words.split(), "--data", str(data)])
            return (code, *capsys.readouterr()), node.requests
        finally:
            node.close()

    return ask


RESTARTED = {"restarted": ["b", "c", "a"]}
SCHEDULED = {"scheduled": "restart", "at": "2030-01-01T00:05:00Z"}
HALT = TryAgainError("the restart stops: b does not start: FATAL; restarted: none; left as they are: a, b", "see b")

CALLS: tuple[tuple[str, dict[str, Any] | PgrError, tuple[int, str, str], str, dict[str, Any]], ...] = (
    # words, what the node answers, (exit code, stdout, stderr), request, what of its body
    ("pause", {"paused": True, "changed": True}, (0, "paused\n", ""), "pause", {"wait": False, "timeout_ms": 60_000}),
    ("pause --wait --timeout 5", {"paused": True, "changed": False}, (0, "paused already\n", ""), "pause",
     {"wait": True, "timeout_ms": 5_000}),
    ("resume", {"paused": False, "changed": True}, (0, "resumed\n", ""), "resume", {"wait": False}),
    ("resume", {"paused": False, "changed": False}, (0, "not paused\n", ""), "resume", {}),
    ("restart --all", RESTARTED, (0, "restarted: b, c, a\n", ""), "restart",
     {"nodes": None, "pending": False, "force": False, "timeout_s": 300}),
    ("restart b c --force --timeout 9", RESTARTED, (0, "restarted: b, c, a\n", ""), "restart",
     {"nodes": ["b", "c"], "force": True, "timeout_s": 9}),
    ("restart --pending", {"restarted": []}, (0, "nothing waits for a restart\n", ""), "restart", {"pending": True}),
    ("restart --role replica --pg-version 18.6", RESTARTED, (0, "restarted: b, c, a\n", ""), "restart",
     {"nodes": None, "pending": False, "role": "replica", "pg_version": "18.6"}),
    ("restart --all --role primary", {"restarted": []}, (0, "no node is such, none was restarted\n", ""), "restart",
     {"nodes": None, "role": "primary"}),
    ("restart b c --pending --pg-version 18", {"restarted": []}, (0, "no node is such, none was restarted\n", ""),
     "restart", {"nodes": ["b", "c"], "pending": True, "pg_version": "18"}),
    ("restart b --at +5m", SCHEDULED, (0, "scheduled: restart at 2030-01-01T00:05:00Z\n", ""), "restart",
     {"nodes": ["b"], "at": "+5m"}),
    ("restart --all", HALT, (75, "", f"error: {HALT.message}\n\nhint: see b\n"), "restart", {}),
    ("restart --cancel", {"cancelled": "the restart of a"}, (0, "cancelled: the restart of a\n", ""),
     "schedule.cancel", {"what": "restart"}),
    ("switchover --cancel", UsageError("no switchover is scheduled or under way", "see `pgr status`"),
     (64, "", "error: no switchover is scheduled or under way\n\nhint: see `pgr status`\n"), "schedule.cancel",
     {"what": "switchover"}),
    ("switchover --to b --at +5m", {"scheduled": "switchover", "at": "2030-01-01T00:05:00Z"},
     (0, "scheduled: switchover at 2030-01-01T00:05:00Z\n", ""), "switchover", {"to": "b", "at": "+5m"}),
    ("switchover --at +5m", RefusedError("the cluster is paused", "first `pgr resume`"),
     (78, "", "error: the cluster is paused\n\nhint: first `pgr resume`\n"), "switchover", {"to": None}),
    ("reload", {"nodes": {"a": "", "b": "waits for a restart: x is 1, set to 2"}},
     (0, "a: reloaded\nb: reloaded; waits for a restart: x is 1, set to 2\n", ""), "reload", {"nodes": None}),
    ("reload c", {"nodes": {"c": "not reloaded: it is unreachable"}},
     (75, "c: not reloaded: it is unreachable\n",
      "error: c: not reloaded\n\nhint: see `pgr status`; a start reads the files anyway\n"), "reload",
     {"nodes": ["c"]}),
)  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=[f"{n} {c[0]}" for n, c in enumerate(CALLS)])
def test_what_is_asked_and_what_is_shown(asked: Any, call: tuple[Any, ...]) -> None:
    words, result, shown, name, body = call
    found, (request,) = asked(words, result)
    assert found == shown
    assert request.name == name
    assert request.body.items() >= (body | {"by": admin.who()}).items()


def test_steps_are_told_as_they_come_and_json_stays_json(asked: Any) -> None:
    steps = ("restart: b is restarted now", "restart: b is restarted and back")
    (code, out, err), _ = asked("restart b --json", {"restarted": ["b"]}, steps)
    assert (code, json.loads(out), err) == (0, {"restarted": ["b"]}, "".join(f"{step}\n" for step in steps))


@pytest.mark.parametrize("words", ["restart", "restart --all b"])
def test_whom_to_restart_has_to_be_said_once(data: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert cli.main([*words.split(), "--data", str(data)]) == 64
    out, err = capsys.readouterr()
    assert (out, err.count("hint: name a node, or `--all`, or `--pending`")) == ("", 1)


@pytest.mark.parametrize("remote", [False, True])
def test_a_node_that_ends_meanwhile_ends_the_wait_at_once(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:  # fmt: skip
    """Not after 30 s: whoever waits for a switchover of the very node it asked would otherwise sit there."""
    nodes: list[Node] = []
    heard = threading.Event()
    read = admin._progress

    def reading(frame: Frame) -> admin.Progress:
        heard.set()
        return read(frame)

    monkeypatch.setattr(admin, "_progress", reading)

    def handler(frame: Frame) -> list[bytes]:
        return [admin.progress(frame.id, "accepted", "switchover accepted: from a to b")]

    key = data / "cluster.key"
    key.touch(mode=0o600)
    key.write_text(new_key())
    nodes.append(Node(data, handler, key=read_key(key) if remote else None))
    where = ["--node", f"127.0.0.1:{nodes[0].port}", "--cluster-key", str(key)] if remote else ["--data", str(data)]

    def close() -> None:
        assert heard.wait(30)  # what libzmq holds is lost with the connection
        nodes[0]._stop.send(b"")
        nodes[0]._thread.join(10)
        nodes[0]._context.destroy(linger=200)

    closing = threading.Thread(target=close)
    closing.start()
    try:
        assert cli.main(["switchover", *where]) == 75
    finally:
        closing.join()
    out, err = capsys.readouterr()
    assert out == ""
    what = f"127.0.0.1:{nodes[0].port}: the connection" if remote else "the node"
    assert f"error: {what} has ended meanwhile; the last that is known: switchover accepted: from a to b\n" in err
    assert "hint: look at `pgr status`, of any node, before trying again" in err


# -- when it is done


def state(**ops: Any) -> ClusterState:
    return ClusterState(ops=Operations(**ops))


def done(
    name: str, said: dict[str, Any], cluster: ClusterState, asked: dict[str, Any] | None = None, **told: Any
) -> Any:  # fmt: skip
    members = {n: {"seen": seen} for n, seen in told.items()}
    return operating.done(name, asked or {}, said, cluster, seen=snapshot(), told=members)


def test_a_pause_is_done_when_the_log_here_has_it() -> None:
    said = {"index": 9, "after": 3}
    before, after = ClusterState(config_index=3), ClusterState(config='{"pause":true}', config_index=9)
    assert done("pause", said, before) is None
    assert done("pause", said, after) == {"paused": True, "changed": True}
    assert done("pause", {"index": 9, "after": 9}, after) == {"paused": True, "changed": False}
    assert isinstance(done("pause", said, ClusterState(config_index=10)), TryAgainError)


def test_a_pause_that_waits_is_done_when_everybody_who_is_up_has_it() -> None:
    said, after = {"index": 9, "after": 3}, ClusterState(config='{"pause":true}', config_index=9)
    assert done("pause", said, after, {"wait": True}, b={"config": 8}) is None
    assert done("pause", said, after, {"wait": True}, b={"config": 9}) is not None, "c is unreachable"


def test_a_restart_is_done_when_all_are_back_or_it_has_stopped() -> None:
    running = Rolling(7, ("b", "c"), False, False, 300, "me")
    assert done("restart", {"index": 7}, state()) is None, "the log here is behind"
    assert done("restart", {"index": 7}, state(rolling=running)) is None
    over = running._replace(todo=(), done=("c", "b"))
    assert done("restart", {"index": 7}, state(rolling=over)) == {"restarted": ["c", "b"]}
    stopped = done("restart", {"index": 7}, state(rolling=running._replace(todo=("b",), done=("c",), halted="why")))
    assert isinstance(stopped, TryAgainError)
    assert stopped.message == "the restart stops: why; restarted: c; left as they are: b"
    assert isinstance(done("restart", {"index": 7}, state(rolling=running._replace(index=9))), TryAgainError)
    assert done("restart", {"index": 0}, state()) == {"restarted": []}


def test_a_reload_is_done_when_all_that_run_have_looked_again() -> None:
    said = {"index": 5, "nodes": ["a", "b", "c"]}
    ordered = state(reload=Reload(5, ("a", "b", "c")))
    assert done("reload", said, state(), a={"reloaded": 5}, b={"reloaded": 5}) is None
    assert done("reload", said, ordered, a={"reloaded": 5}, b={"reloaded": 4}) is None
    assert done("reload", said, ordered, a={"reloaded": 6}, b={"reloaded": 5}) == {
        "nodes": {"a": "", "b": "", "c": "not reloaded: it is unreachable"}
    }


def test_what_is_scheduled_is_done_when_the_log_here_has_it() -> None:
    said = {"scheduled": "restart", "at": "x", "index": 5}
    assert done("restart", said, state()) is None
    made = Scheduled(5, "restart", "x", "{}", "me")
    assert done("restart", said, state(scheduled=made)) == {"scheduled": "restart", "at": "x"}


# -- what is shown of it

PAGE = """\
cluster 3f2a9c01   term 7   leader a   commit quorum 2 of a, b, c   profile default

NAME  ROLE     STATE        TL        LSN            LAG  SYNC     LEASE  NOTES
a     primary  running       2  0/3000148              -  -       623 ms  -
b     replica  streaming     2  0/3000148  232 B, 250 ms  quorum       -  pending restart, zone=x, nofailover
c     -        unreachable   -          -              -  -            -  not heard of

c: c has not been heard of for 3 s

scheduled: switchover to b at 2030-01-01T00:05:00Z (by ops@host)
restarting: b now; done: c; left: a

warning: paused: no automatic failover, restart or copy until `pgr resume`
warning: one more failure stops all writes

a: a is primary of term 7
"""


def test_the_page_shows_what_is_to_come_what_is_under_way_and_the_pause() -> None:
    made = Scheduled(5, "switchover", "2030-01-01T00:05:00Z", '{"to":"b"}', "ops@host")
    rolling = Rolling(7, ("a", "b"), False, False, 300, "me", done=("c",), turn="b", turn_index=8)
    cluster = state(scheduled=made, rolling=rolling)
    shown = snapshot(
        paused=True, scheduled=operating.scheduled(cluster), restarting=operating.restarting(cluster),
        warnings=(operating.PAUSED, "one more failure stops all writes"),
    )  # fmt: skip
    assert render.status(shown, 623) == PAGE
    assert render.status(from_json(to_json(shown, NOW), NOW), 623) == PAGE
    assert health._cluster(shown, NOW)["scheduled_switchover"] == {
        "at": "2030-01-01T00:05:00Z", "from": "a", "to": "b",
    }  # fmt: skip
    assert health._cluster(shown, NOW)["pause"] is True
    assert health._patroni(shown, NOW)["pause"] is True


def test_a_scheduled_restart_is_shown_where_patroni_shows_it() -> None:
    made = Scheduled(5, "restart", "2030-01-01T00:05:00Z", '{"nodes":["b"],"pending":true}', "")
    shown = snapshot(scheduled=operating.scheduled(state(scheduled=made)))
    assert "scheduled_restart" not in health._patroni(shown, NOW)
    assert health._patroni(replace(shown, node="b"), NOW)["scheduled_restart"] == {
        "schedule": "2030-01-01T00:05:00Z", "restart_pending": True,
    }  # fmt: skip
    assert operating.lines(shown) == ["scheduled: restart of b, where pending at 2030-01-01T00:05:00Z"]
    assert operating.lines(snapshot()) == []


def test_no_line_of_the_help_is_wider_than_a_terminal(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    for name in ("pause", "resume", "restart", "reload", "switchover"):
        assert cli.main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert max(len(line) for line in out.splitlines()) <= 80
        assert "\x1b" not in out


def test_a_pause_is_the_first_warning_whatever_is_asked_for(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = observe.snapshot(
        View(cluster=ClusterState(config='{"pause":true}')), Local("a"), observe.Facts(), {}, PROFILES["default"],
        state="running", sentence="", now_ns=NOW, scheduling={}, pgr_version="",
    )  # fmt: skip
    assert (seen.paused, seen.warnings[0]) == (True, operating.PAUSED)
    assert f"warning: {operating.PAUSED}\n" in render.status(seen, 0)
    assert operating.urgent(replace(seen, degraded="degraded: x")) == (operating.PAUSED, "degraded: x")
    node = Node(data, lambda frame: [admin.answer(frame.id, to_json(seen, NOW))])
    try:
        assert cli.main(["member", "list", "--data", str(data)]) == 0
    finally:
        node.close()
    assert capsys.readouterr().err == f"warning: {operating.PAUSED}\n"


# -- through the node's own end of the admin protocol


@pytest.fixture
def server(data: Path) -> Iterator[Asked]:
    (data / "run").mkdir()
    made = Asked(load({"data": str(data), "name": "b"}, {}, None, None, Machine("host", "/")))
    yield made
    made.close()


MEMBERS = (listed("a"), listed("b"), listed("c"))


def test_a_restart_is_followed_to_its_end(server: Asked) -> None:
    server.ask("restart", nodes=None, timeout_ms=600_000)
    assert [(o.name, o.body["name"]) for o in server.c.raft.orders] == [("admin.request", "restart")]
    server.said()
    server.agrees(nodes=["b", "c"], index=7, term=5)
    running = Rolling(7, ("b", "c"), False, False, 300, "me", turn="b", turn_index=8)
    event = HistoryEvent("t", "restart", 5, "b", "is restarted now", "{}")
    server.log(agreed(*MEMBERS, ops=Operations(running), history=(event,)))
    assert server.said() == [("restart", "restart: b is restarted now")]
    server.log(agreed(*MEMBERS, ops=Operations(running), history=(event,)), later_ms=5_001)
    assert server.said() == [("waiting", "restarting: b now; left: c")]
    over = running._replace(todo=(), done=("b", "c"), turn="")
    server.log(agreed(*MEMBERS, ops=Operations(over), history=(event,)))
    assert ended(server.said())["result"] == {"restarted": ["b", "c"]}


def test_a_switchover_with_a_time_ends_when_it_is_noted(server: Asked) -> None:
    server.ask("switchover", to="c", at="+5m")
    server.said()
    server.agrees(scheduled="switchover", at="2030-01-01T00:05:00Z", index=7, term=5)
    assert server.said() == []
    made = Scheduled(7, "switchover", "2030-01-01T00:05:00Z", "{}", "me")
    server.log(agreed(*MEMBERS, ops=Operations(scheduled=made)))
    assert ended(server.said())["result"] == {"scheduled": "switchover", "at": "2030-01-01T00:05:00Z"}


def test_a_pause_ends_with_what_it_changed_and_warns_of_itself(server: Asked) -> None:
    server.ask("pause", wait=False)
    server.said()
    server.agrees(changes={"pause": [False, True]}, notes=[], after=0, index=7)
    server.log(agreed(*MEMBERS, config='{"pause":true}', config_index=7))
    body = ended(server.said())
    assert (body["result"], body["warnings"]) == ({"paused": True, "changed": True}, [operating.PAUSED])


def test_a_refusal_ends_it_at_once(server: Asked) -> None:
    server.ask("schedule.cancel", what="restart")
    server.said()
    server.server.answered(wire.Frame("admin.answer", "r1", {"ok": False, "code": 64, "error": "no", "hint": "h"}))
    assert (ended(server.said())["code"], server.server.actions) == (64, {})
