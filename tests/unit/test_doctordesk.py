"""A node's side of `pgr doctor`: one measurement at a time, whoever asks, and never longer than it may take."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fencing.clock import now_ns
from fencing.lease import MS
from fencing.wire import decode
from supervisor import doctordesk
from supervisor.adminserver import Known
from supervisor.doctordesk import MEASURED_MS, Desk, whole
from supervisor.errors import TryAgainError
from supervisor.localcluster import wait_for
from supervisor.status import Snapshot

NOW = 1_000 * MS
SNAPSHOT = Snapshot("a")


class World:
    """A desk whose process is `cat`, which ends when it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[bytes, str, dict[str, Any]]] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self.output = -1
        self.desk = Desk(cast(Known, SimpleNamespace(config=SimpleNamespace(name="a"))), self._send)
        monkeypatch.setattr(doctordesk, "order", lambda _: {})
        monkeypatch.setattr(doctordesk, "said", lambda *_: {"name": "a"})
        monkeypatch.setattr(doctordesk, "start", self._start)

    def _start(self, order: Mapping[str, Any], output: int) -> subprocess.Popen[bytes]:
        if self.output >= 0:
            os.close(self.output)
        self.output = os.dup(output)
        self.started.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
        return self.started[-1]

    def _send(self, client: bytes, data: bytes, remote: bool) -> None:
        frame = decode(data)
        self.sent.append((client, frame.id, frame.body))

    def ends(self, text: str) -> None:
        os.pwrite(self.output, text.encode(), 0)
        process = self.started[-1]
        assert process.stdin is not None
        process.stdin.close()
        pidfd = self.desk.pidfd
        assert wait_for(lambda: bool(select.select([pidfd], [], [], 0)[0]), 10)

    def close(self) -> None:
        for process in self.started:
            process.returncode = None  # the desk leaves reaping to the loop of a node
            process.kill()
            process.communicate()
        if self.output >= 0:
            os.close(self.output)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    made.close()


def test_who_asks_while_it_measures_gets_what_is_measured_after_that(world: World) -> None:
    world.desk.request(b"x", "1", False, NOW)
    world.desk.turn(SNAPSHOT, {}, NOW)
    world.desk.request(b"y", "2", True, NOW)
    world.desk.request(b"z", "3", True, NOW)
    assert (len(world.started), world.sent) == (1, []), "one at a time"
    world.ends(json.dumps({"links": [{"to": "b"}]}))
    world.desk.turn(SNAPSHOT, {"heard": {"b": 40}}, NOW)
    assert [(client, id) for client, id, _ in world.sent] == [(b"x", "1")]
    result = world.sent[0][2]["result"]
    assert (result["name"], result["links"]) == ("a", [{"to": "b", "heard_ms": 40}])
    assert len(world.started) == 2
    world.ends("{}")
    world.desk.turn(SNAPSHOT, {}, NOW)
    assert [(client, id) for client, id, _ in world.sent[1:]] == [(b"y", "2"), (b"z", "3")]
    assert len(world.started) == 2, "both of the others at once"


def test_a_measurement_that_hangs_is_given_up_and_its_process_killed(world: World) -> None:
    world.desk.request(b"x", "1", False, NOW)
    world.desk.turn(SNAPSHOT, {}, NOW + MEASURED_MS * MS - 1)
    assert world.sent == []
    pidfd = os.pidfd_open(world.started[0].pid)
    world.desk.turn(SNAPSHOT, {}, NOW + MEASURED_MS * MS)
    ((_, _, body),) = world.sent
    assert (body["code"], body["error"]) == (75, "the machine could not be measured in time")
    assert wait_for(lambda: bool(select.select([pidfd], [], [], 0)[0]), 10)
    os.close(pidfd)


def test_what_was_written_before_it_hung_counts(world: World) -> None:
    """A process that waits for a disk can't end; what it has found is there."""
    world.desk.request(b"x", "1", False, NOW)
    os.pwrite(world.output, b'{"unmeasured": ["places raft: no answer in time"]}', 0)
    world.desk.turn(SNAPSHOT, {}, NOW + MEASURED_MS * MS)
    assert world.sent[0][2]["result"]["unmeasured"] == ["places raft: no answer in time"]


def test_a_program_that_fails_is_a_bug_and_is_told(world: World) -> None:
    world.desk.request(b"x", "1", False, NOW)
    world.ends("")
    world.desk.turn(SNAPSHOT, {}, NOW)
    assert (world.sent[0][2]["code"], world.desk.process) == (70, None)


def test_where_nothing_can_be_started_that_is_the_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(order: Mapping[str, Any], output: int) -> subprocess.Popen[bytes]:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(doctordesk, "start", refuse)
    world.desk.request(b"x", "1", False, NOW)
    assert world.sent[0][2]["error"] == "nothing can be measured: Resource temporarily unavailable"
    assert world.desk.asking == world.desk.waiting == []


def test_a_node_that_stops_says_so_and_leaves_nothing(world: World) -> None:
    world.desk.close(TryAgainError("this node is stopping", "ask another"))
    world.desk.request(b"x", "1", False, NOW)
    world.desk.request(b"y", "2", False, NOW)
    pidfd = os.pidfd_open(world.started[0].pid)
    world.desk.close(TryAgainError("this node is stopping", "ask another"))
    assert [body["error"] for _, _, body in world.sent] == ["this node is stopping"] * 2
    assert wait_for(lambda: bool(select.select([pidfd], [], [], 0)[0]), 10)
    os.close(pidfd)
    world.desk.turn(SNAPSHOT, {}, NOW)


def test_what_was_measured_and_what_is_known_are_one_node() -> None:
    server = {"settings": {"data_checksums": "off", "wal_log_hints": "on"}}
    found = whole({"server": server, "programs_problem": "none\nget some"}, {"name": "a"}, {})
    assert found["rewindable"] == ["wal_log_hints"]
    assert found["failures"] == [{"check": "binaries", "what": "none", "hint": "get some", "code": 69}]
    assert "rewindable" not in whole({}, {"name": "a"}, {})


def test_the_clocks_are_those_of_now() -> None:
    before = now_ns()
    found = doctordesk.clock()
    assert before <= found["boottime_ns"] <= now_ns()
    assert found["realtime_ns"] > 1_700_000_000 * 10**9
