"""The HTTP server: a strict, bounded responder that lives in the parent's poll loop.

A thread pool with http.server would cost 10 MB, and a snapshot that is one attribute needs no thread to be read. It
never waits for Postgres, a peer or a client: sockets do not block, at most 64 are open (of the address that holds most
of them the oldest gives way), a request has 8 KiB, its body 64 KiB, both of them and the handshake five seconds, and
every answer ends its connection. A change waits for its end in the log, and is then answered; a few at a time.
"""

from __future__ import annotations

import errno
import select
import socket
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from fencing.lease import MS
from supervisor.health import answer
from supervisor.httpaccess import Peer
from supervisor.httpwire import (
    GO_ON,
    JSON,
    MAX_BODY_BYTES,
    MAX_REQUEST_BYTES,
    READS,
    REASONS,
    Answer,
    Request,
    error,
    parse_request,
    wire,
)
from supervisor.status import Snapshot

if TYPE_CHECKING:
    import ssl

MAX_CONNECTIONS = 64
MAX_WAITING = 8
"""Changes under way: their connections are kept, and are not among those that give way."""
EVENTS_A_TURN = 32
TLS_EVENTS_A_TURN = 8
"""A handshake takes about a millisecond of a loop that has more to do."""
DEADLINE_NS = 5_000 * MS
"""From the accept until the answer is out."""
LINGER_NS = 1_000 * MS
"""How long we read on after the answer, so that unread input does not turn our close into a reset that eats it."""


class Current:
    """Holds the newest snapshot. The parent replaces the attribute; readers take it once per request."""

    __slots__ = ("snapshot",)

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot


class Changes(Protocol):
    """What takes requests for a change (httpgate.py)."""

    def refuse(self, request: Request, peer: Peer) -> Answer | None:
        """Before the body is read: why not."""

    def begin(self, request: Request, peer: Peer, reply: Callable[[Answer], None], now_ns: int) -> int:
        """Until when (an instant) ``reply`` will have been called; perhaps it has been already."""


class NoChanges:
    """Nothing can be changed over HTTP."""

    def refuse(self, request: Request, peer: Peer) -> Answer | None:
        return error(405, f"{request.method} is not known here")._replace(headers=(("Allow", ", ".join(READS)),))

    def begin(self, request: Request, peer: Peer, reply: Callable[[Answer], None], now_ns: int) -> int:
        raise AssertionError("refused before")


def respond(snapshot: Snapshot, request: Request | int, now_ns: int) -> bytes:
    """The whole answer to a read, or to what is no request, on the wire."""
    if isinstance(request, int):
        return wire(error(request, REASONS[request]))
    if request.path == "*":
        return wire(Answer(200, JSON, b""), request.method)
    return wire(answer(snapshot, request.path, request.query, now_ns), request.method)


class _Connection:
    __slots__ = ("address", "deadline_ns", "inbox", "outbox", "sock", "state")

    def __init__(self, sock: socket.socket, address: str, deadline_ns: int, state: str) -> None:
        self.sock, self.address = sock, address
        self.deadline_ns = deadline_ns
        self.inbox = b""
        self.outbox = memoryview(b"")
        self.state = state
        """(shake ->) read (-> wait) -> write -> linger -> closed"""


class HealthServer:
    """One descriptor for the parent's poll loop (an epoll set of its own): when readable, call :meth:`handle`.

    >>> server = HealthServer(current, "127.0.0.1", 8008)      # OSError: address in use, no such address, ...
    >>> poller.register(server.fileno(), zmq.POLLIN)           # then server.handle(now_ns()) when it fires,
    >>> server.deadline_ns()                                   # or when this instant has come
    """

    def __init__(
        self, current: Current, host: str, port: int, tls: ssl.SSLContext | None = None, changes: Changes | None = None
    ) -> None:
        """``tls`` may be replaced at any time; connections that there are keep what they have."""
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._current, self.tls, self._changes = current, tls, changes or NoChanges()
        self._listener = socket.socket(family, kind, proto)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.setblocking(False)
            self._listener.bind(address)
            self._listener.listen(128)
        except OSError:
            self._listener.close()
            raise
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        self._answered: list[tuple[_Connection, Answer]] = []
        """Changes that have come to an end since the last turn."""
        self._deaf_until_ns = 0
        """Out of descriptors: the listener is out of the set until then, or we would spin on it."""

    @property
    def address(self) -> tuple[str, int]:
        name = self._listener.getsockname()
        return name[0], name[1]

    def fileno(self) -> int:
        return self._epoll.fileno()

    def __len__(self) -> int:
        return len(self._connections)

    def deadline_ns(self) -> int | None:
        """When :meth:`handle` wants to be called even if nothing is readable; None: never."""
        waits = [c.deadline_ns for c in self._connections.values()]
        waits += [self._deaf_until_ns] * bool(self._deaf_until_ns) + [1] * bool(self._answered)
        return min(waits, default=None)

    def handle(self, now_ns: int) -> None:
        """Do what can be done without waiting, a few events of it: what is left fires again."""
        answered, self._answered = self._answered, []
        for waiter, found in answered:
            if waiter.state == "wait" and waiter.sock.fileno() >= 0:  # else it has left
                waiter.deadline_ns = now_ns + DEADLINE_NS
                self._try(lambda c=waiter, a=found: self._send(c, wire(a), now_ns), waiter)  # type: ignore[misc]  # called at once
        for fd, event in self._epoll.poll(0, EVENTS_A_TURN if self.tls is None else TLS_EVENTS_A_TURN):
            if fd == self._listener.fileno():
                self._accept(now_ns)
            elif connection := self._connections.get(fd):
                if connection.state == "wait" and event & (select.EPOLLHUP | select.EPOLLERR):
                    self._close(connection)  # nobody waits any more; what was begun goes on
                else:
                    self._try(lambda c=connection: self._step(c, now_ns), connection)  # type: ignore[misc]  # called at once
        for connection in [c for c in self._connections.values() if c.deadline_ns <= now_ns]:
            self._close(connection)
        if self._deaf_until_ns and self._deaf_until_ns <= now_ns:
            self._deaf_until_ns = 0
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def _try(self, step: Callable[[], None], connection: _Connection) -> None:
        try:
            step()
        except OSError:  # reset by the client, or no TLS: its affair (ssl.SSLError is one, too)
            self._close(connection)

    def _accept(self, now_ns: int) -> None:
        for _ in range(16 if self.tls is None else 4):
            try:
                sock, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as failure:
                if failure.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    if self._connections:
                        self._close(next(iter(self._connections.values())))
                    self._epoll.unregister(self._listener.fileno())
                    self._deaf_until_ns = now_ns + 100 * MS
                    return
                continue  # the client left before we came to it (accept(2): ECONNABORTED and network errors)
            self._make_room()
            sock.setblocking(False)
            if self.tls is not None:
                try:
                    sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                except OSError:  # it left before we came to it
                    sock.close()
                    continue
            state = "read" if self.tls is None else "shake"
            connection = _Connection(sock, str(peer[0]), now_ns + DEADLINE_NS, state)
            self._connections[sock.fileno()] = connection
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            self._try(lambda c=connection: self._step(c, now_ns), connection)  # type: ignore[misc]  # called at once; the request is often there

    def _make_room(self) -> None:
        """Slow clients never keep a check out: whoever has most of the places gives one."""
        held = [c for c in self._connections.values() if c.state != "wait"]
        if len(held) >= MAX_CONNECTIONS:
            most, _ = Counter(c.address for c in held).most_common(1)[0]
            self._close(next(c for c in held if c.address == most))  # dicts keep insertion order: the oldest

    def _step(self, c: _Connection, now_ns: int) -> None:
        if c.state == "shake" and not self._shaken(c):
            return
        if c.state in ("read", "linger"):
            self._read(c, now_ns)
        elif c.state == "write":
            self._send(c, c.outbox, now_ns)

    def _shaken(self, c: _Connection) -> bool:
        import ssl

        try:
            c.sock.do_handshake()  # type: ignore[attr-defined]  # an SSLSocket in this state
        except ssl.SSLWantReadError:
            self._epoll.modify(c.sock.fileno(), select.EPOLLIN)
            return False
        except ssl.SSLWantWriteError:
            self._epoll.modify(c.sock.fileno(), select.EPOLLOUT)
            return False
        self._epoll.modify(c.sock.fileno(), select.EPOLLIN)
        c.state = "read"
        return True

    def _read(self, c: _Connection, now_ns: int) -> None:
        more = True
        while more:  # of TLS more may have been decrypted than was asked for, of which epoll knows nothing
            try:
                data = c.sock.recv(MAX_REQUEST_BYTES)
            except OSError as failure:
                if _must_wait(failure):
                    return
                raise
            if not data:
                self._close(c)
                return
            if c.state == "linger":
                return
            c.inbox += data
            more = len(c.inbox) < MAX_REQUEST_BYTES + MAX_BODY_BYTES and bool(getattr(c.sock, "pending", int)())
        request = parse_request(c.inbox)
        if request is None:
            return
        if isinstance(request, int) or request.method in READS:
            self._send(c, respond(self._current.snapshot, request, now_ns), now_ns)
        else:
            self._change(c, request, now_ns)

    def _change(self, c: _Connection, request: Request, now_ns: int) -> None:
        peer = self._peer(c)
        refusal = self._changes.refuse(request, peer)
        if refusal is None and not request.complete:
            if "100-continue" in request.headers.get("expect", "").lower() and not request.body:
                c.sock.send(GO_ON)  # a new connection has room for that
            return
        waiting = sum(other.state == "wait" for other in self._connections.values())
        if refusal is None and waiting >= MAX_WAITING:
            refusal = error(503, f"{waiting} requests are under way", "ask again when they are done")
        if refusal is not None:
            self._send(c, wire(refusal), now_ns)
            return
        c.inbox, c.state = b"", "wait"
        self._epoll.modify(c.sock.fileno(), 0)
        until_ns = self._changes.begin(request, peer, lambda found: self._answered.append((c, found)), now_ns)
        c.deadline_ns = until_ns + DEADLINE_NS

    def _peer(self, c: _Connection) -> Peer:
        if self.tls is None or not hasattr(c.sock, "getpeercert"):
            return Peer(c.address)
        from supervisor.httptls import common_name

        certificate = c.sock.getpeercert()
        return Peer(c.address, common_name(certificate), bool(certificate))

    def _send(self, c: _Connection, data: bytes | memoryview, now_ns: int) -> None:
        c.inbox, c.outbox, c.state = b"", memoryview(data), "write"
        try:
            while c.outbox:
                c.outbox = c.outbox[c.sock.send(c.outbox) :]
        except OSError as failure:
            if not _must_wait(failure):
                raise
            self._epoll.modify(c.sock.fileno(), select.EPOLLOUT)  # it tells when there is room
            return
        c.state = "linger"
        c.deadline_ns = min(c.deadline_ns, now_ns + LINGER_NS)
        if hasattr(c.sock, "unwrap"):
            try:
                c.sock.unwrap()  # says that this was all; the other end's word for it is not waited for
            except OSError as failure:
                if not _must_wait(failure):
                    raise
        c.sock.shutdown(socket.SHUT_WR)
        self._epoll.modify(c.sock.fileno(), select.EPOLLIN)

    def _close(self, c: _Connection) -> None:
        del self._connections[c.sock.fileno()]
        self._epoll.unregister(c.sock.fileno())
        c.sock.close()

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._close(connection)
        self._epoll.close()
        self._listener.close()


def _must_wait(failure: OSError) -> bool:
    """Of a socket that does not block, TLS or not (SSLWantReadError, SSLWantWriteError: no import for most nodes)."""
    return isinstance(failure, BlockingIOError) or type(failure).__name__ in ("SSLWantReadError", "SSLWantWriteError")
