"""The transport over real sockets: who gets in, who does not, and that nothing waits or grows."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from consensus import transport as module
from consensus.keys import ClusterKey, new_key, parse_key
from consensus.peerwire import FRAME_BYTES_MAX
from consensus.transport import (
    AdminClient,
    AdminError,
    AdminFrame,
    HandshakeFailed,
    InboundRejected,
    ListenError,
    PeerConnected,
    PeerDisconnected,
    PeerFrame,
    PeerUnresolved,
    PortTakenError,
    Transport,
    TransportEvent,
)
from fencing.clock import now_ns

ROOT = Path(__file__).parents[2]
HERE = ("127.0.0.1", 0)
KEY = parse_key(new_key())
OTHER = parse_key(new_key())
PATIENCE_S = 20


class Node:
    """A transport with everything it has seen."""

    def __init__(self, name: str, key: ClusterKey = KEY, listen: tuple[str, int] = HERE) -> None:
        self.transport = Transport(name, listen, key, {})
        self.frames: list[PeerFrame | AdminFrame] = []
        self.events: list[TransportEvent] = []

    def turn(self) -> None:
        self.frames.extend(self.transport.receive())
        self.events.extend(self.transport.events())


@pytest.fixture
def make() -> Iterator[Callable[..., Node]]:
    with contextlib.ExitStack() as stack:

        def made(name: str, **more: object) -> Node:
            node = Node(name, **more)  # type: ignore[arg-type]
            stack.callback(node.transport.close)
            return node

        yield made


def until(condition: Callable[[], object], *nodes: Node, patience_s: float = PATIENCE_S) -> None:
    deadline_ns = now_ns() + int(patience_s * 1e9)
    while not condition():
        assert now_ns() < deadline_ns, [node.events for node in nodes]
        zmq.select([each for node in nodes for each in node.transport.sockets()], [], [], 0.02)
        for node in nodes:
            node.turn()


def pair(make: Callable[..., Node]) -> tuple[Node, Node]:
    a, b = make("a"), make("b")
    a.transport.set_peers({"b": b.transport.address})
    b.transport.set_peers({"a": a.transport.address})
    until(lambda: PeerConnected("b") in a.events and PeerConnected("a") in b.events, a, b)
    return a, b


def test_two_nodes_talk(make: Callable[..., Node]) -> None:
    a, b = pair(make)
    assert a.transport.send("b", b"PGR1 to b")
    assert b.transport.send("a", b"PGR1 to a")
    until(lambda: a.frames and b.frames, a, b)
    assert (a.frames, b.frames) == ([PeerFrame(b"PGR1 to a")], [PeerFrame(b"PGR1 to b")])
    largest = b"PGR1" + os.urandom(FRAME_BYTES_MAX - 4)
    assert a.transport.send("b", largest)
    until(lambda: len(b.frames) == 2, a, b)
    assert b.frames[1] == PeerFrame(largest)
    with pytest.raises(ValueError, match="at most"):
        a.transport.send("b", largest + b"!")
    assert not a.transport.send("nobody", b"PGR1")
    assert a.events == [PeerConnected("b")]


def test_ipv6_and_host_names(make: Callable[..., Node]) -> None:
    try:
        a = make("a", listen=("::1", 0))
    except ListenError:
        pytest.skip("no IPv6 loopback here")
    b = make("b", listen=("localhost", 0))
    b.transport.set_peers({"a": a.transport.address})
    a.transport.set_peers({"b": ("localhost", b.transport.address[1])})
    until(lambda: PeerConnected("b") in a.events and PeerConnected("a") in b.events, a, b)
    assert a.transport.send("b", b"PGR1")
    assert b.transport.send("a", b"PGR1")
    until(lambda: a.frames and b.frames, a, b)


def test_a_dead_name_holds_up_nobody(make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair(make)
    release, real = threading.Event(), module._resolve

    def slow(host: str, port: int, flags: int = 0) -> list[str]:
        if host == "gone.invalid" and not flags:
            release.wait(PATIENCE_S)
            raise socket.gaierror(-2, "Name or service not known")
        return real(host, port, flags)

    monkeypatch.setattr(module, "_resolve", slow)
    a.transport.set_peers({"b": b.transport.address, "c": ("gone.invalid", 7400)})
    assert a.transport.send("b", b"PGR1")
    until(lambda: b.frames, a, b)
    assert not a.transport.send("c", b"PGR1")
    release.set()
    until(lambda: any(isinstance(event, PeerUnresolved) for event in a.events), a, b)
    monkeypatch.setattr(
        module, "_resolve", lambda host, port, flags=0: real("127.0.0.1" if not flags else host, port, flags)
    )
    c = make("c")
    a.transport.set_peers({"b": b.transport.address, "c": ("gone.invalid", c.transport.address[1])})
    until(lambda: PeerConnected("c") in a.events, a, b, c)


def test_a_wrong_key_is_named_on_both_sides(make: Callable[..., Node]) -> None:
    a, b, stranger = make("a"), make("b"), make("x", key=OTHER)
    a.transport.set_peers({"b": b.transport.address, "x": stranger.transport.address})
    b.transport.set_peers({"a": a.transport.address})
    stranger.transport.set_peers({"a": a.transport.address})

    def told(node: Node, name: str) -> list[TransportEvent]:
        return [event for event in node.events if isinstance(event, HandshakeFailed) and event.name == name]

    until(lambda: told(a, "x") and told(stranger, "a"), a, b, stranger)
    sent = [a.transport.send("x", b"PGR1"), stranger.transport.send("a", b"PGR1")]
    until(lambda: PeerConnected("b") in a.events and a.transport.send("b", b"PGR1"), a, b, stranger)
    until(lambda: b.frames, a, b, stranger)
    assert sent == [False, False]
    assert (a.frames, stranger.frames) == ([], [])
    assert "key" in repr(told(a, "x")[0])
    assert (len(told(a, "x")), len(told(stranger, "a"))) == (1, 1)
    assert any(isinstance(event, InboundRejected) and "key" in event.reason for event in a.events)


def test_the_public_half_alone_opens_nothing(make: Callable[..., Node]) -> None:
    """Only ZAP stands in the way of one who knows the public key."""
    a, b = pair(make)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.linger = 0
    stranger.curve_secretkey, stranger.curve_publickey = OTHER.secret, OTHER.public
    stranger.curve_serverkey = KEY.public
    stranger.connect(f"tcp://127.0.0.1:{a.transport.address[1]}")
    stranger.send(b"PGR1 let me in")
    try:
        until(
            lambda: any(isinstance(event, InboundRejected) and event.address == "127.0.0.1" for event in a.events), a, b
        )
        assert b.transport.send("a", b"PGR1")
        until(lambda: a.frames, a, b)
        assert a.frames == [PeerFrame(b"PGR1")]
    finally:
        context.destroy(linger=0)


def test_a_restarted_peer_is_back_soon(make: Callable[..., Node]) -> None:
    a, b = pair(make)
    address = b.transport.address
    b.transport.close()
    until(lambda: PeerDisconnected("b") in a.events, a)
    # libzmq tells of the end a moment before it lets go of the pipe; what goes into it then is lost as well.
    until(lambda: not a.transport.send("b", b"PGR1 lost"), a)
    again = make("b", listen=address)
    a.events.clear()
    started_ns = now_ns()
    until(lambda: PeerConnected("b") in a.events, a, again)
    assert now_ns() - started_ns < 1_500_000_000
    assert a.transport.send("b", b"PGR1")
    until(lambda: again.frames, a, again)
    assert again.frames == [PeerFrame(b"PGR1")]


def test_peers_come_go_and_move(make: Callable[..., Node]) -> None:
    a, b = pair(make)
    moved = make("b")
    a.events.clear()
    a.transport.set_peers({"b": moved.transport.address, "a": a.transport.address})
    until(lambda: PeerConnected("b") in a.events, a, b, moved)
    assert a.events == [PeerDisconnected("b"), PeerConnected("b")]
    assert a.transport.send("b", b"PGR1")
    until(lambda: moved.frames, a, b, moved)
    assert not b.frames
    watched = len(a.transport.sockets())
    a.transport.set_peers({})
    assert len(a.transport.sockets()) == watched - 1
    assert not a.transport.send("b", b"PGR1")
    a.transport.set_peers({"b": b.transport.address})
    until(lambda: a.transport.send("b", b"PGR1 again"), a, b, moved)
    until(lambda: b.frames, a, b, moved)


def test_a_port_that_is_taken(make: Callable[..., Node]) -> None:
    a = make("a")
    host, port = a.transport.address
    with pytest.raises(PortTakenError, match=f"{host}:{port} is in use") as error:
        Transport("b", (host, port), KEY, {})
    assert error.value.exit_code == 69
    with pytest.raises(ListenError, match="address of this host"):
        Transport("b", ("192.0.2.1", 0), KEY, {})
    with pytest.raises(ListenError, match=r"no\.such\.host\.invalid"):
        Transport("b", ("no.such.host.invalid", 0), KEY, {})


def test_admin(make: Callable[..., Node]) -> None:
    a, b = pair(make)
    answers: list[bytes] = []

    def ask() -> None:
        client = AdminClient(a.transport.address, KEY)
        answers.append(client.request(b"status", 10_000))
        for answer in client.stream(b"switchover", 10_000):
            answers.append(answer)
            if answer == b"done":
                break
        client.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        until(lambda: a.frames, a, b)
        first = a.frames.pop()
        assert isinstance(first, AdminFrame)
        assert first.data == b"status"
        assert a.transport.reply(first.identity, b"fine")
        until(lambda: a.frames, a, b)
        second = a.frames.pop()
        assert isinstance(second, AdminFrame)
        for answer in (b"step 1", b"step 2", b"done"):
            assert a.transport.reply(second.identity, answer)
    finally:
        thread.join(PATIENCE_S)
    assert answers == [b"fine", b"step 1", b"step 2", b"done"]
    assert b.transport.send("a", b"nonsense")
    until(lambda: a.transport.dropped_frames == 1, a, b)
    assert not a.transport.reply(b"nobody", b"x")


def test_admin_without_an_answer(make: Callable[..., Node]) -> None:
    a = make("a")
    host, port = a.transport.address
    client = AdminClient((host, port), KEY)
    with pytest.raises(AdminError, match=f"{host}:{port}"):  # nobody turns the node's loop
        client.request(b"status", 100)
    client.close()
    wrong = AdminClient((host, port), OTHER)
    with pytest.raises(AdminError, match="cluster key is another"):
        wrong.request(b"status", 1000)
    wrong.close()


STILL = """
import sys
import zmq
from consensus.keys import parse_key
from consensus.transport import Transport
node = Transport("b", ("127.0.0.1", 0), parse_key(sys.argv[1]), {})
print(node.address[1], flush=True)
while True:
    zmq.select([*node.sockets(), 0], [], [])
    for frame in node.receive():
        print(len(frame.data), flush=True)
    for event in node.events():
        pass
"""


def memory_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_a_stopped_peer_costs_no_memory(make: Callable[..., Node]) -> None:
    a = make("a")
    child = subprocess.Popen(
        [sys.executable, "-c", STILL, f"pgr1:{KEY.secret.decode()}"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        a.transport.set_peers({"b": ("127.0.0.1", int(child.stdout.readline()))})
        until(lambda: PeerConnected("b") in a.events, a)
        data = b"PGR1" + bytes(100_000)
        assert a.transport.send("b", data)
        assert child.stdout.readline() == b"100004\n"
        child.send_signal(signal.SIGSTOP)
        before_kib = memory_kib()
        sent = [a.transport.send("b", data) for _ in range(3000)]
        assert sent.count(True) < 200
        assert a.transport.unsent_frames == sent.count(False)
        assert memory_kib() - before_kib < 40_000
        until(lambda: PeerDisconnected("b") in a.events, a)  # found by ZMTP heartbeats, nobody closed anything
        # The kernel takes the next connection for the stopped process: what a queue then takes is bounded as before.
        assert sum(a.transport.send("b", data) for _ in range(1000)) < 200
        a.events.clear()
        child.send_signal(signal.SIGCONT)
        until(lambda: PeerConnected("b") in a.events, a)
        assert a.transport.send("b", b"PGR1 awake")
        until(lambda: child.stdout is not None and child.stdout.readline() == b"10\n", a)
    finally:
        child.kill()
        child.communicate(timeout=20)


def garbage(rng: random.Random) -> bytes:
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01"
    return rng.choice(
        [
            rng.randbytes(rng.randrange(1, 400)),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            greeting + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\x19\x05READY",
            greeting
            + b"CURVE".ljust(20, b"\0")
            + bytes(32)
            + b"\x06"
            + struct.pack("!Q", 1 << 62)
            + rng.randbytes(200),
            greeting + b"CURVE".ljust(20, b"\0") + bytes(32) + b"\x04\xc8\x05HELLO" + rng.randbytes(194),
            b"\xff" + struct.pack("!Q", (1 << 63) + 5) + b"\x01" + rng.randbytes(50),
            greeting[: rng.randrange(1, 12)],
        ]
    )


def test_garbage_does_no_harm(make: Callable[..., Node]) -> None:
    a, b = pair(make)
    rng = random.Random(5)
    before_kib = memory_kib()
    open_ones: list[socket.socket] = []
    try:
        for number in range(150):
            caller = socket.create_connection(a.transport.address)
            open_ones.append(caller)
            caller.sendall(garbage(rng))
            if rng.random() < 0.5:
                open_ones.pop().close()
            count = len(a.frames)
            assert b.transport.send("a", b"PGR1 %d" % number)
            until(lambda count=count: len(a.frames) > count, a, b)  # type: ignore[misc]
    finally:
        for each in open_ones:
            each.close()
    assert a.frames == [PeerFrame(b"PGR1 %d" % number) for number in range(150)]
    assert PeerDisconnected("a") not in b.events
    assert memory_kib() - before_kib < 30_000
    rejected = [event for event in a.events if isinstance(event, InboundRejected)]
    assert 1 <= len(rejected) < 30


def test_plain_zmtp_is_not_let_in(make: Callable[..., Node]) -> None:
    a, b = pair(make)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    plain = context.socket(zmq.DEALER)
    plain.linger = 0
    plain.connect(f"tcp://127.0.0.1:{a.transport.address[1]}")
    plain.send(b"PGR1 hello")
    try:
        until(lambda: any(isinstance(event, InboundRejected) for event in a.events), a, b)
        assert b.transport.send("a", b"PGR1")
        until(lambda: a.frames, a, b)
        assert a.frames == [PeerFrame(b"PGR1")]
    finally:
        context.destroy(linger=0)


def test_a_peer_that_hangs_is_not_called_a_stranger(make: Callable[..., Node]) -> None:
    a = make("a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        a.transport.set_peers({"b": server.getsockname()[:2]})
        until(lambda: any(isinstance(event, HandshakeFailed) for event in a.events), a)
    assert "no answer in time" in repr(a.events)
    assert "key" not in repr(a.events)


def test_a_peer_that_spoke_nonsense_is_redialed(make: Callable[..., Node]) -> None:
    """libzmq gives up for good after a protocol error; another program may have had the port for a while."""
    a = make("a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()[:2]
        a.transport.set_peers({"b": address})
        caller, _ = server.accept()
        with caller:
            caller.sendall(
                b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32) + b"HTTP/1.1 400"
            )
            until(lambda: any(isinstance(event, HandshakeFailed) for event in a.events), a)
    b = make("b", listen=address)
    until(lambda: PeerConnected("b") in a.events, a, b)
