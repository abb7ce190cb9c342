"""Frames between nodes: one CURVE ROUTER to listen, one DEALER for each peer, nothing that grows.

Messages go one way, from my DEALER to your ROUTER; answers travel by the other pair. A frame that cannot go out at once
is dropped: Raft repeats itself, and an old heartbeat is worth nothing (research/raft.md, section 3). libzmq keeps
redialing, except in two cases that this file takes care of: after a protocol error it gives up for good, and host
names it looks up on its only I/O thread, where one dead name would hold up the frames to all other peers. So names are
looked up on threads of our own and libzmq only ever dials numbers.
"""

from __future__ import annotations

import errno
import queue
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import zmq
from zmq.utils import z85

from consensus.keys import ClusterKey
from consensus.peerwire import FRAME_BYTES_MAX
from consensus.peerwire import MAGIC as PEER_MAGIC
from fencing.clock import now_ns

ADMIN_MAGIC = b"PGRA"
"""Before a frame of fencing/wire.py that comes from ``pgr --node``; the answer begins with it too."""
_QUEUED_MAX = 64
_BATCH = 256
_MESSAGE_BYTES_MAX = FRAME_BYTES_MAX + 1024
"""CURVE adds a few bytes to each frame."""
_RETRY_NS = 1_000_000_000
_SILENT_NS = 3_000_000_000
"""libzmq reports every attempt to dial; after this long without a word it has given up."""
_QUIET_NS = 10_000_000_000
_ZAP = "inproc://zeromq.zap.01"
_ZAP_DOMAIN = b"pgr"
_MONITOR_HEAD = struct.Struct("=HI")
_FAILED = {zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_AUTH}
_FAILED_MASK = sum(_FAILED)
_DIAL_MASK = (
    _FAILED_MASK | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_DELAYED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_CLOSED
)  # fmt: skip

Address = tuple[str, int]

# Dataclasses, because NamedTuples of two classes with the same values are equal.


@dataclass(frozen=True, slots=True)
class PeerFrame:
    """From a peer that holds the cluster key; for peerwire.decode."""

    data: bytes


@dataclass(frozen=True, slots=True)
class AdminFrame:
    """From ``pgr --node``; ``data`` is a frame of fencing/wire.py, the answer goes to ``reply(identity, ..)``."""

    identity: bytes
    data: bytes


Inbound = PeerFrame | AdminFrame


@dataclass(frozen=True, slots=True)
class PeerConnected:
    name: str


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    name: str


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """Told once per peer and reason, until a handshake with it succeeds."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class PeerUnresolved:
    """The peer's host name has no address. Told once per peer, until it has one."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class InboundRejected:
    """Somebody without the cluster key called. At most one in 10 s for each reason; ``times`` since the last."""

    address: str
    """"" where libzmq does not tell."""
    reason: str
    times: int


TransportEvent = PeerConnected | PeerDisconnected | HandshakeFailed | PeerUnresolved | InboundRejected


class ListenError(Exception):
    """The listen address cannot be used; the text says what to do."""

    exit_code = 69


class PortTakenError(ListenError):
    """Another process listens there."""


@dataclass(slots=True)
class _Peer:
    """One peer and the state of dialing it."""

    name: str
    address: Address
    dealer: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    endpoint: str = ""
    """What is being dialed; "" while the name is being looked up."""
    connected: bool = False
    heard_ns: int = 0
    """When libzmq last reported anything about the connection."""
    asked_ns: int = 0
    attempts: int = 0
    failures: int = 0
    told: set[str] = field(default_factory=set)
    """What has been reported and not changed since."""


class Transport:
    """The sockets of one node. One thread; ``sockets()`` is polled for reading, then ``receive()`` and ``events()`` are
    drained. Call ``events()`` at least once a second as well: it looks after peers that libzmq has given up.

    ListenError (PortTakenError) if ``listen`` cannot be bound; port 0 takes any, see ``address``.
    """

    def __init__(self, me: str, listen: Address, key: ClusterKey, peers: Mapping[str, Address]) -> None:
        self.me = me
        self.dropped_frames = 0
        """Came in and were neither of a peer nor of an admin."""
        self.unsent_frames = 0
        """Should have gone out, but there was no connection or its queue was full."""
        self._key = key
        self._peers: dict[str, _Peer] = {}
        self._answers: queue.SimpleQueue[tuple[str, Address, list[str], str]] = queue.SimpleQueue()
        self._rejected: dict[tuple[str, str], tuple[int, int]] = {}
        self._pending: list[TransportEvent] = []
        self._serial = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            # Before the ROUTER: without a handler libzmq would let everybody in who knows the public key.
            self._zap = self._socket(zmq.REP)
            self._zap.bind(_ZAP)
            self._router = self._listener()
            self._monitor = self._watch(self._router, _FAILED_MASK)
            self.address = self._bind(listen)
            self.set_peers(peers)
        except BaseException:
            self._context.destroy(linger=0)
            raise

    def sockets(self) -> list[zmq.Socket[bytes]]:
        """Everything to poll for reading; ask again after set_peers."""
        return [self._zap, self._router, self._monitor, *(peer.monitor for peer in self._peers.values())]

    def send(self, dst: str, data: bytes) -> bool:
        """Never blocks; False if the frame was dropped: unknown peer, no connection, or a full queue."""
        if len(data) > FRAME_BYTES_MAX:
            raise ValueError(f"frame of {len(data)} bytes, at most {FRAME_BYTES_MAX} are allowed")
        peer = self._peers.get(dst)
        return peer is not None and self._out(peer.dealer, [data])

    def reply(self, identity: bytes, data: bytes) -> bool:
        """Answers an AdminFrame; False if that client is gone or does not read."""
        return self._out(self._router, [identity, ADMIN_MAGIC + data])

    def receive(self) -> Iterator[Inbound]:
        """What has come in, at most 256 frames at a time (level-triggered: poll again for the rest)."""
        self._answer_zap()
        for _ in range(_BATCH):
            try:
                parts = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            match parts:
                case [_, data] if data.startswith(PEER_MAGIC):
                    yield PeerFrame(data)
                case [identity, data] if data.startswith(ADMIN_MAGIC):
                    yield AdminFrame(identity, data[len(ADMIN_MAGIC) :])
                case _:
                    self.dropped_frames += 1

    def events(self) -> Iterator[TransportEvent]:
        """What happened to connections since the last call."""
        self._answer_zap()
        at_ns = now_ns()
        for event, value in _drain(self._monitor):
            if event in _FAILED:
                self._reject("", _reason(event, value), at_ns)
        self._take_answers(at_ns)
        for peer in self._peers.values():
            for event, value in _drain(peer.monitor):
                peer.heard_ns = at_ns
                self._note(peer, event, value)
            self._tend(peer, at_ns)
        pending, self._pending = self._pending, []
        yield from pending

    def set_peers(self, peers: Mapping[str, Address]) -> None:
        """Dials those who are new, hangs up on those who are gone, redials those whose address has changed."""
        for name in set(self._peers) - set(peers):
            peer = self._peers.pop(name)
            _close(peer.dealer, peer.monitor)
        for name, address in peers.items():
            if name == self.me:
                continue
            found = self._peers.get(name)
            if found is not None and found.address == address:
                continue
            if found is not None:
                self._hang_up(found)
                self._lose(found)
                found.address, found.attempts, found.told, found.failures = address, 0, set(), 0
            else:
                dealer = self._dialer()
                found = self._peers[name] = _Peer(name, address, dealer, self._watch(dealer, _DIAL_MASK))
            self._look_up(found, now_ns())

    def close(self) -> None:
        """Drops what is queued and closes everything; a second call does nothing."""
        if self._context.closed:
            return
        _close(self._router, self._monitor)
        for peer in self._peers.values():
            _close(peer.dealer, peer.monitor)
        self._zap.close(0)
        self._context.destroy(linger=0)

    # Sockets.

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        made.linger = 0
        made.maxmsgsize = _MESSAGE_BYTES_MAX
        made.sndhwm = made.rcvhwm = _QUEUED_MAX
        return made

    def _listener(self) -> zmq.Socket[bytes]:
        router = self._socket(zmq.ROUTER)
        _harden(router)
        router.curve_server = True
        router.curve_secretkey = self._key.secret
        router.zap_domain = _ZAP_DOMAIN
        router.router_mandatory = True
        return router

    def _dialer(self) -> zmq.Socket[bytes]:
        dealer = self._socket(zmq.DEALER)
        _harden(dealer)
        _use_key(dealer, self._key)
        dealer.immediate = 1
        dealer.rcvhwm = 1  # nobody ever sends there
        return dealer

    def _watch(self, watched: zmq.Socket[bytes], mask: int) -> zmq.Socket[bytes]:
        self._serial += 1
        return _monitor_of(self._context, watched, mask, self._serial)

    def _bind(self, listen: Address) -> Address:
        host, port = listen
        where = f"{host}:{port}"
        try:
            numeric = "0.0.0.0" if host in {"", "*"} else _resolve(host, port)[0]  # noqa: S104 (as the user asked)
            self._router.ipv6 = ":" in numeric
            self._router.bind(_endpoint(numeric, port))
        except OSError as error:
            raise ListenError(f"cannot listen on {where}: {error.strerror}: name an address of this host") from error
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise PortTakenError(
                    f"{where} is in use by another process: stop that one, or choose another port with --listen"
                ) from error
            raise ListenError(f"cannot listen on {where}: {error}: name an address of this host") from error
        return numeric, _port(self._router)

    def _out(self, out: zmq.Socket[bytes], parts: list[bytes]) -> bool:
        try:
            out.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in {zmq.EAGAIN, zmq.EHOSTUNREACH}:
                raise
            self.unsent_frames += 1
            return False
        return True

    # Who may come in.

    def _answer_zap(self) -> None:
        for _ in range(_BATCH):
            try:
                version, request, domain, address, _, mechanism, *credentials = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            good = (domain, mechanism, credentials) == (_ZAP_DOMAIN, b"CURVE", [z85.decode(self._key.public)])
            if not good:
                self._reject(address.decode("ascii", "replace"), "another key than the cluster's", now_ns())
            code, text = (b"200", b"OK") if good else (b"400", b"not a member")
            self._zap.send_multipart([version, request, code, text, b"", b""])

    def _reject(self, address: str, reason: str, at_ns: int) -> None:
        since_ns, count = self._rejected.get((address, reason), (0, 0))
        if at_ns - since_ns < _QUIET_NS and since_ns:
            self._rejected[address, reason] = since_ns, count + 1
            return
        if len(self._rejected) >= _BATCH:
            self._rejected.clear()
        self._rejected[address, reason] = at_ns, 0
        self._pending.append(InboundRejected(address, reason, count + 1))

    # Dialing.

    def _note(self, peer: _Peer, event: int, value: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            peer.connected, peer.failures = True, 0
            peer.told.clear()
            self._pending.append(PeerConnected(peer.name))
        elif event == zmq.EVENT_DISCONNECTED:
            self._lose(peer)
        elif event in _FAILED:
            self._lose(peer)
            peer.failures += 1
            # One that is closed without a word may be a peer that was just stopped.
            if peer.failures > 1 or event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                reason = _reason(event, value)
                self._tell(peer, reason, HandshakeFailed(peer.name, reason))

    def _lose(self, peer: _Peer) -> None:
        if peer.connected:
            peer.connected = False
            self._pending.append(PeerDisconnected(peer.name))

    def _tell(self, peer: _Peer, topic: str, event: TransportEvent) -> None:
        if topic not in peer.told:
            peer.told.add(topic)
            self._pending.append(event)

    def _tend(self, peer: _Peer, at_ns: int) -> None:
        """Redials a peer that libzmq has given up, and asks again for the address of a name that does not answer."""
        if peer.connected:
            return
        if peer.endpoint and at_ns - peer.heard_ns > _SILENT_NS:
            self._dial(peer, peer.endpoint, at_ns)
        if at_ns - peer.asked_ns > _RETRY_NS and _numeric(peer.address) is None:
            self._look_up(peer, at_ns)

    def _look_up(self, peer: _Peer, at_ns: int) -> None:
        numeric = _numeric(peer.address)
        if numeric is not None:
            self._dial(peer, _endpoint(numeric, peer.address[1]), at_ns)
            return
        peer.asked_ns = at_ns + (1 << 62)  # one thread at a time; the answer resets it
        name, address, answers = peer.name, peer.address, self._answers

        def look_up() -> None:
            try:
                answers.put((name, address, _resolve(*address), ""))
            except OSError as error:
                answers.put((name, address, [], error.strerror or str(error)))

        threading.Thread(target=look_up, name=f"look up {address[0]}", daemon=True).start()

    def _take_answers(self, at_ns: int) -> None:
        while not self._answers.empty():
            name, address, found, error = self._answers.get()
            peer = self._peers.get(name)
            if peer is None or peer.address != address:
                continue
            peer.asked_ns = at_ns
            if not found:
                self._tell(peer, "unresolved", PeerUnresolved(name, f"{address[0]}: {error}"))
            elif not peer.connected:
                peer.told.discard("unresolved")
                endpoint = _endpoint(found[peer.attempts % len(found)], address[1])
                peer.attempts += 1
                if endpoint != peer.endpoint:
                    self._dial(peer, endpoint, at_ns)

    def _dial(self, peer: _Peer, endpoint: str, at_ns: int) -> None:
        self._hang_up(peer)
        peer.endpoint, peer.heard_ns = endpoint, at_ns
        peer.dealer.ipv6 = "[" in endpoint
        peer.dealer.connect(endpoint)

    def _hang_up(self, peer: _Peer) -> None:
        if peer.endpoint:
            try:
                peer.dealer.disconnect(peer.endpoint)
            except zmq.ZMQError as error:
                if error.errno != errno.ENOENT:  # libzmq gave it up before we did
                    raise
            peer.endpoint = ""


class AdminError(Exception):
    """The node gave no answer; the text says why as far as can be told."""

    exit_code = 75


class AdminClient:
    """Blocking client of a node's consensus port, for ``pgr --node HOST:PORT --cluster-key FILE``. One thread."""

    def __init__(self, address: Address, key: ClusterKey) -> None:
        """AdminError if the host name has no address."""
        self._where = f"{address[0]}:{address[1]}"
        self._refused = ""
        try:
            found = _resolve(*address)
        except OSError as error:
            raise AdminError(f"{self._where}: {error.strerror}: check the name") from error
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            self._dealer = self._context.socket(zmq.DEALER)
            self._dealer.linger = 0
            self._dealer.maxmsgsize = _MESSAGE_BYTES_MAX
            self._dealer.ipv6 = any(":" in each for each in found)
            _harden(self._dealer)
            _use_key(self._dealer, key)
            self._monitor = _monitor_of(self._context, self._dealer, _FAILED_MASK | zmq.EVENT_DISCONNECTED, 0)
            self._dealer.immediate = 1  # with several addresses the request waits for the one that answers
            for numeric in found:
                self._dealer.connect(_endpoint(numeric, address[1]))
        except BaseException:
            self._context.destroy(linger=0)
            raise

    def request(self, data: bytes, timeout_ms: int) -> bytes:
        """The (first) answer to a frame of fencing/wire.py; AdminError if none comes in time."""
        return next(self.stream(data, timeout_ms))

    def stream(self, data: bytes, timeout_ms: int) -> Iterator[bytes]:
        """Every answer as it comes, without end: stop when you have seen the last. AdminError when silent too long."""
        until_ns = now_ns() + timeout_ms * 1_000_000
        self._wait(zmq.POLLOUT, until_ns)
        self._dealer.send(ADMIN_MAGIC + data, zmq.NOBLOCK)
        while True:
            self._wait(zmq.POLLIN, until_ns)
            answer = self._dealer.recv(zmq.NOBLOCK)
            until_ns = now_ns() + timeout_ms * 1_000_000
            if answer.startswith(ADMIN_MAGIC):
                yield answer[len(ADMIN_MAGIC) :]

    def close(self) -> None:
        _close(self._dealer, self._monitor)
        self._context.destroy(linger=0)

    def _wait(self, what: int, until_ns: int) -> None:
        poller = zmq.Poller()
        poller.register(self._dealer, what)
        poller.register(self._monitor, zmq.POLLIN)
        while True:
            left_ms = (until_ns - now_ns()) // 1_000_000
            ready = dict(poller.poll(max(left_ms, 0)))
            if self._dealer in ready:
                return
            for event, value in _drain(self._monitor):
                if event != zmq.EVENT_DISCONNECTED:
                    self._refused = _reason(event, value)
                elif what == zmq.POLLIN:
                    raise AdminError(f"{self._where}: the connection has ended meanwhile")
            if left_ms <= 0:
                why = self._refused or "is it running, and can it be reached from here?"
                raise AdminError(f"no answer from {self._where}: {why}")


def _harden(made: zmq.Socket[bytes]) -> None:
    """Dead connections are noticed in seconds, half-open ones sooner, and all are redialed quickly."""
    made.handshake_ivl = 1000
    made.heartbeat_ivl = 1000
    made.heartbeat_timeout = 3000
    made.tcp_keepalive = 1
    made.tcp_keepalive_idle = 5
    made.tcp_keepalive_intvl = 2
    made.tcp_keepalive_cnt = 3
    made.connect_timeout = 1000
    made.reconnect_ivl = 50
    made.reconnect_ivl_max = 200


def _use_key(made: zmq.Socket[bytes], key: ClusterKey) -> None:
    made.curve_secretkey = key.secret
    made.curve_publickey = key.public
    made.curve_serverkey = key.public


def _monitor_of(
    context: zmq.Context[zmq.Socket[bytes]], watched: zmq.Socket[bytes], mask: int, serial: int
) -> zmq.Socket[bytes]:
    """Without a limit on its queue: libzmq's I/O thread would block on a full one."""
    where = f"inproc://monitor.{serial}"
    watched.monitor(where, mask)
    monitor = context.socket(zmq.PAIR)
    monitor.linger = 0
    monitor.rcvhwm = 0
    monitor.connect(where)
    return monitor


def _drain(monitor: zmq.Socket[bytes]) -> Iterator[tuple[int, int]]:
    """Event and value of what has been reported."""
    for _ in range(_BATCH):
        try:
            head, _endpoint_text = monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield _MONITOR_HEAD.unpack(head)


def _close(watched: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
    watched.monitor(None, 0)
    monitor.close(0)
    watched.close(0)


def _reason(event: int, value: int) -> str:
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        if value in {errno.EPIPE, errno.ECONNRESET}:
            return (
                "the other end closed the connection during the handshake: most likely its cluster key is another one"
            )
        return "connected, but no answer in time: the other process hangs, is stopped, or is no pgr"
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return f"the other end refused our cluster key (status {value})"
    if value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
        return "the other end has another cluster key"
    return f"the other end does not speak our protocol (0x{value:x})"


def split(address: str) -> Address:
    """``host:port`` in two; ValueError if it is none."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _endpoint(numeric: str, port: int) -> str:
    return f"tcp://[{numeric}]:{port}" if ":" in numeric else f"tcp://{numeric}:{port}"


def _port(bound: zmq.Socket[bytes]) -> int:
    endpoint = bound.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rpartition(b":")[2])


def _resolve(host: str, port: int, flags: int = 0) -> list[str]:
    """Numeric addresses of a host, in the order the system prefers; OSError if there are none."""
    bare = host.removeprefix("[").removesuffix("]")
    found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _numeric(address: Address) -> str | None:
    """The host if it is an address already; asks nobody."""
    try:
        return _resolve(*address, flags=socket.AI_NUMERICHOST)[0]
    except OSError:
        return None
