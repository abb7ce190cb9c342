"""The parent's ends of the local bus, against a real ROUTER."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from consensus.process import bind_bus
from fencing import wire
from fencing.clock import now_ns
from fencing.lease import MS
from fencing.logs import Log
from supervisor.links import Link
from supervisor.tasks import Outcome, Runner, TaskTimeout, run_blocking

PATIENCE_MS = 10_000


class Peer:
    """What a child binds: a ROUTER, and the frames it has received."""

    def __init__(self, path: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.socket = bind_bus(self.context, path.parent)

    def receive(self) -> wire.Frame:
        assert self.socket.poll(PATIENCE_MS), "nothing came"
        identity, data = self.socket.recv_multipart()
        assert identity == b"parent"
        return wire.decode(data)

    def send(self, name: str, body: dict[str, Any] | None = None, request_id: str = "") -> None:
        self.send_raw(wire.encode(name, body or {}, request_id))

    def send_raw(self, data: bytes) -> None:
        self.socket.send_multipart([b"parent", data])

    def die(self) -> None:
        """Gone when this returns, with its socket file (which libzmq removes in the background otherwise)."""
        self.context.destroy(linger=0)


@pytest.fixture
def logged() -> Iterator[tuple[Log, Callable[[], str]]]:
    """A log, and what was written to it so far."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    written: list[str] = []

    def text() -> str:
        try:
            written.append(os.read(reading, 1 << 16).decode())
        except BlockingIOError:
            pass
        return "".join(written)

    yield Log("json", "a", "parent", fd=writing), text
    os.close(reading)
    os.close(writing)


@pytest.fixture
def link(logged: tuple[Log, Callable[[], str]], tmp_path: Path) -> Iterator[Link]:
    link = Link(tmp_path / "raft.sock", logged[0])
    yield link
    link.close()


@pytest.fixture
def peer(link: Link) -> Iterator[Peer]:
    """Listening, and it has heard the link: a ROUTER cannot reach whom it has not heard."""
    peer = Peer(link.path)
    link.tell("node.hello", {})
    assert peer.receive().name == "node.hello"
    yield peer
    peer.die()


def facts(link: Link, count: int) -> list[str]:
    """The names of the next facts, waited for."""
    names: list[str] = []
    until_ns = now_ns() + PATIENCE_MS * MS
    while len(names) < count and now_ns() < until_ns:
        link.socket.poll(100)
        names += [frame.name for frame in link.facts()]
    return names


def test_what_is_told_arrives_in_order_with_name_body_and_id(link: Link, peer: Peer) -> None:
    assert link.tell("node.propose", {"kind": "event/1"}, "x")
    assert link.tell("node.stop", {})
    assert peer.receive() == wire.Frame("node.propose", "x", {"kind": "event/1"})
    assert peer.receive() == wire.Frame("node.stop", "", {})


def test_facts_come_out_as_they_came(link: Link, peer: Peer) -> None:
    peer.send("raft.state", {"term": 5})
    peer.send("lease.changed", {"term": 5})
    peer.send("admin.answer", {"ok": True}, "cli-1")
    assert facts(link, 3) == ["raft.state", "lease.changed", "admin.answer"]
    assert list(link.facts()) == []


def test_garbage_is_logged_and_what_follows_is_not_lost(
    link: Link, peer: Peer, logged: tuple[Log, Callable[[], str]]
) -> None:
    peer.send_raw(b"\xff{")
    peer.send_raw(b'{"v":2,"name":"raft.state","id":"","body":{}}')
    peer.send("raft.state")
    assert facts(link, 1) == ["raft.state"]
    assert logged[1]().count("bus.garbage") == 2


def asked(link: Link, peer: Peer, timeout_ms: int = PATIENCE_MS) -> tuple[Runner, list[Outcome[wire.Frame]], str]:
    """A question under way: its runner, where its end will be, and its id as the peer saw it."""
    runner, ends = Runner(), list[Outcome[wire.Frame]]()
    runner.start(link.ask("deadman.arm", {"term": 5}, timeout_ms), ends.append, "ask")
    runner.run({}, now_ns())
    question = peer.receive()
    assert (question.name, question.body) == ("deadman.arm", {"term": 5})
    return runner, ends, question.id


def turn(link: Link, runner: Runner, until: Callable[[], bool]) -> list[str]:
    """The loop of the parent, reduced to one link. Returns the facts of these turns."""
    names: list[str] = []
    give_up_ns = now_ns() + PATIENCE_MS * MS
    while not until():
        assert now_ns() < give_up_ns, "it did not happen"
        link.socket.poll(50)
        names += [frame.name for frame in link.facts()]
        runner.run({}, now_ns())
    return names


def test_the_answer_with_the_id_of_the_question_ends_it_and_is_no_fact(link: Link, peer: Peer) -> None:
    runner, ends, request_id = asked(link, peer)
    peer.send("raft.state", {"term": 5})
    peer.send("deadman.armed", {"ok": False}, "another")
    peer.send("deadman.armed", {"ok": True}, request_id)
    assert turn(link, runner, lambda: bool(ends)) == ["raft.state", "deadman.armed"]
    assert ends[0].unwrap() == wire.Frame("deadman.armed", request_id, {"ok": True})
    assert (link.answers, link.asked) == ({}, set())


def test_two_questions_at_once_get_each_its_own_answer(link: Link, peer: Peer) -> None:
    first, second = asked(link, peer), asked(link, peer)
    assert first[2] != second[2]
    peer.send("deadman.armed", {"n": 2}, second[2])
    peer.send("deadman.armed", {"n": 1}, first[2])
    turn(link, second[0], lambda: bool(second[1]))
    turn(link, first[0], lambda: bool(first[1]))
    assert [ends[0].unwrap().body["n"] for _, ends, _ in (first, second)] == [1, 2]


def test_no_answer_in_time_is_a_timeout_and_a_late_one_a_mere_fact(link: Link, peer: Peer) -> None:
    began_ns = now_ns()
    runner, ends, request_id = asked(link, peer, timeout_ms=60)
    turn(link, runner, lambda: bool(ends))
    assert isinstance(ends[0].error, TaskTimeout)
    assert now_ns() - began_ns >= 60 * MS
    peer.send("deadman.armed", {"ok": True}, request_id)
    assert facts(link, 1) == ["deadman.armed"]
    assert (link.answers, link.asked) == ({}, set()), "what nobody waits for is not kept"


def test_a_cancelled_question_leaves_nothing_behind(link: Link, peer: Peer) -> None:
    runner, ends, request_id = asked(link, peer)
    runner.cancel_all()
    peer.send("deadman.armed", {"ok": True}, request_id)
    assert facts(link, 1) == ["deadman.armed"]
    assert (ends, link.answers, link.asked) == ([], {}, set())


def test_the_death_of_the_other_end_ends_a_question_at_once(link: Link, peer: Peer) -> None:
    runner, ends, _ = asked(link, peer)
    began_ns = now_ns()
    peer.die()
    link.redial()
    turn(link, runner, lambda: bool(ends))
    assert isinstance(ends[0].error, TaskTimeout)
    assert now_ns() - began_ns < PATIENCE_MS * MS / 2


@pytest.mark.parametrize("redialed", [True, False])
def test_what_was_queued_for_the_dead_does_not_reach_the_next(link: Link, peer: Peer, redialed: bool) -> None:
    """An old `deadman.disarm` in the ears of a new watchdog would undo its arming. False: why `redial` is needed."""
    peer.die()
    link.tell("deadman.disarm", {})
    link.tell("deadman.disarm", {})
    if redialed:
        link.redial()
    following = Peer(link.path)
    try:
        link.tell("deadman.query", {})
        heard = [following.receive().name]
        while heard[-1] != "deadman.query":
            heard.append(following.receive().name)
    finally:
        following.die()
    assert heard == ["deadman.query"] if redialed else heard.count("deadman.disarm") >= 1


def test_nobody_reads_and_the_parent_does_not_wait(link: Link, logged: tuple[Log, Callable[[], str]]) -> None:
    began_ns = now_ns()
    told = [link.tell("node.observed", {"n": n}) for n in range(500)]
    assert now_ns() - began_ns < PATIENCE_MS * MS
    assert told[0]
    assert not told[-1]
    assert sum(told) < 500
    assert logged[1]().count("bus.full") == 1, "said once, not a thousand times"


def test_a_question_that_could_not_be_sent_times_out(link: Link) -> None:
    while link.tell("filler", {}):
        pass
    with pytest.raises(TaskTimeout, match=r"deadman\.arm"):
        run_blocking(link.ask("deadman.arm", {}, 30))


def test_answers_to_nobodys_question_are_not_kept(link: Link, peer: Peer) -> None:
    for n in range(50):
        peer.send("admin.answer", {}, f"p{n + 1000}")
    assert len(facts(link, 50)) == 50
    assert link.answers == {}
