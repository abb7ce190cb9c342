"""`pgr doctor` of a cluster: whom it asks, and what it makes of members that are away, old or odd."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from consensus.keys import new_key, read_key
from fencing.wire import Frame
from supervisor import admin, cli, doctorcli
from supervisor.doctorfacts import to_json
from supervisor.errors import UsageError
from tests.unit.test_cli import Node as Fake
from tests.unit.test_doctor import node

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGR_DATA", "PGR_CLUSTER_KEY_FILE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctorcli, "REACH_IDLE_MS", 300)
    monkeypatch.setattr(doctorcli, "ANSWER_IDLE_MS", 500)


@pytest.fixture
def pgr(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> tuple[int, str, str]:
        code = cli.main(argv)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def home() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="pgr-cli-"))
    yield made
    shutil.rmtree(made)


class Cluster:
    """a, on its admin socket, and b, on its consensus port; c is whatever ``third`` is the address of."""

    def __init__(self, home: Path, third: str, b: Callable[[Frame], list[bytes]] | None = None) -> None:
        self.key = home / "key"
        self.key.unlink(missing_ok=True)
        self.key.touch(0o600)
        self.key.write_text(new_key())
        self.b = Fake(home, b or (lambda frame: [admin.answer(frame.id, told("b"))]), key=read_key(self.key))
        self.members = {"a": "127.0.0.1:1", "b": f"127.0.0.1:{self.b.port}", "c": third}
        self.a = Fake(home, self._a)

    def _a(self, frame: Frame) -> list[bytes]:
        where = {"node": "a", "members": self.members, "key_file": str(self.key)}
        return [admin.answer(frame.id, where if frame.name == "events" else told("a"))]

    def close(self) -> None:
        self.a.close()
        self.b.close()


def told(name: str, **changes: Any) -> dict[str, Any]:
    return to_json(node(name, **changes)) | {"members": ["a", "b", "c"]}


@pytest.fixture
def nobody() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_every_member_is_asked_and_one_that_is_away_is_a_finding(pgr: Run, home: Path, nobody: str) -> None:
    cluster = Cluster(home, nobody)
    try:
        code, out, err = pgr("doctor", "--json", "--data", str(home))
    finally:
        cluster.close()
    body = json.loads(out)
    assert (code, err) == (75, "")
    assert [f.name for f in cluster.a.requests] == ["events", "doctor"]
    assert [f.name for f in cluster.b.requests] == ["clock", "doctor"]
    (error,) = [f for f in body["findings"] if f["severity"] == "error"]
    assert (error["check"], error["node"]) == ("members", "c")
    assert nobody in error["what"]
    assert "it is up: a, b reach it" in error["hint"], "they said so"


def test_a_member_of_an_older_version_says_that_it_can_not(pgr: Run, home: Path, nobody: str) -> None:
    old = UsageError("this node knows no request 'doctor'", "use a pgr of the node's version")
    cluster = Cluster(home, nobody, lambda frame: [admin.answer(frame.id, error=old)])
    try:
        body = json.loads(pgr("doctor", "--json", "--data", str(home))[1])
    finally:
        cluster.close()
    assert [f["what"] for f in body["findings"] if f["node"] == "b"] == [
        "gave no answer to this command: this node knows no request 'doctor'"
    ]


def test_a_member_that_says_nothing_is_not_waited_for(pgr: Run, home: Path, nobody: str) -> None:
    for silent in (lambda _: [], lambda f: [admin.answer(f.id, {})] if f.name == "clock" else []):
        cluster = Cluster(home, nobody, silent)
        try:
            code, out, _ = pgr("doctor", "--data", str(home))
        finally:
            cluster.close()
        assert code == 75
        assert "error: members: b: gave no answer" in out


def test_measurements_that_are_none_are_told_of_who_sent_them(pgr: Run, home: Path, nobody: str) -> None:
    cluster = Cluster(home, nobody, lambda frame: [admin.answer(frame.id, {"links": 3})])
    try:
        code, out, _ = pgr("doctor", "--json", "--data", str(home))
    finally:
        cluster.close()
    assert code == 75
    assert any("sent measurements that this pgr can't read" in f["what"] for f in json.loads(out)["findings"])
    junk = {"node": "a", "members": {}, "key_file": "k", "links": 3}
    alone = Fake(home, lambda frame: [admin.answer(frame.id, junk)])
    try:
        code, out, err = pgr("doctor", "--data", str(home))
    finally:
        alone.close()
    assert (code, out) == (70, "")
    assert "can't read" in err


def test_flags_of_a_node_that_is_to_be_started_do_not_go_with_one_that_runs(pgr: Run, home: Path, nobody: str) -> None:
    cluster = Cluster(home, nobody)
    try:
        code, out, err = pgr("doctor", "--data", str(home), "--listen", "127.0.0.1:7400")
    finally:
        cluster.close()
    assert (code, out) == (64, "")
    assert "takes no --listen" in err
    assert "hint: leave them out" in err


def test_a_member_elsewhere_needs_the_key(pgr: Run, nobody: str) -> None:
    code, out, err = pgr("doctor", "--node", nobody)
    assert (code, out) == (64, "")
    assert "`--node` needs `--cluster-key`" in err
