"""The health server: a strict, bounded HTTP/1 responder that lives in the parent's poll loop.

A thread pool with http.server would cost 10 MB, and a snapshot that is one attribute needs no thread to be read. It
never waits for Postgres, a peer or a client: sockets do not block, at most 64 are open (the oldest gives way), a
request has 8 KiB and five seconds, and every answer ends its connection.
"""

from __future__ import annotations

import errno
import select
import socket
from typing import NamedTuple

from fencing.lease import MS
from supervisor.health import JSON, Answer, answer, error
from supervisor.status import Snapshot

MAX_CONNECTIONS = 64
MAX_REQUEST_BYTES = 8192
DEADLINE_NS = 5_000 * MS
"""From the accept until the answer is out."""
LINGER_NS = 1_000 * MS
"""How long we read on after the answer, so that unread input does not turn our close into a reset that eats it."""

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
           431: "Request Header Fields Too Large", 501: "Not Implemented", 503: "Service Unavailable"}  # fmt: skip


class Request(NamedTuple):
    method: str
    path: str
    query: str


def parse_request(data: bytes) -> Request | int | None:
    """The request at the head of ``data``; None: not complete yet; a number: refuse with that status.

    Everything behind the first empty line is ignored: bodies have no meaning here and a pipelined request is one that
    its sender must repeat, as HTTP lets us close after any answer.
    """
    ends = [at for at in (data.find(b"\r\n\r\n"), data.find(b"\n\n")) if at >= 0]
    if not ends:
        line, newline, _ = data.partition(b"\n")
        # Who does not speak HTTP is told at once instead of being given five seconds.
        if newline and _parse_line(line) is None:
            return 400
        return 431 if len(data) >= MAX_REQUEST_BYTES else None
    head = data[: min(ends)]
    if len(head) > MAX_REQUEST_BYTES:
        return 431
    request = _parse_line(head.partition(b"\n")[0])
    if request is None or b"\x00" in head:
        return 400
    match request.method:
        case "GET" | "HEAD" | "OPTIONS":
            return request
        case "POST" | "PUT" | "PATCH" | "DELETE":
            return 405
        case _:
            return 501


def _parse_line(line: bytes) -> Request | None:
    """``METHOD TARGET HTTP/1.x``, printable ASCII, one space between; None if it is anything else."""
    parts = line.removesuffix(b"\r").split(b" ")
    printable = all(33 <= c < 127 for part in parts for c in part)
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.0", b"HTTP/1.1") or not printable:
        return None
    method, target = parts[0].decode(), parts[1].decode()
    if not method.isalpha() or not method.isupper() or not target.startswith(("/", "*")):
        return None
    path, _, query = target.partition("?")
    return Request(method, path if len(path) == 1 else path.rstrip("/") or "/", query)


def respond(snapshot: Snapshot, request: Request | int, now_ns: int) -> bytes:
    """The whole answer on the wire. HEAD and OPTIONS: the status line and headers alone."""
    method = ""
    if isinstance(request, int):
        a = error(request, REASONS[request])
    else:
        method = request.method
        a = Answer(200, JSON, b"") if request.path == "*" else answer(snapshot, request.path, request.query, now_ns)
    allow = "Allow: GET, HEAD, OPTIONS\r\n" if a.status == 405 or method == "OPTIONS" else ""
    length = 0 if method == "OPTIONS" else len(a.body)
    head = (
        f"HTTP/1.1 {a.status} {REASONS[a.status]}\r\nServer: pgr\r\n{allow}Content-Type: {a.content_type}\r\n"
        f"Content-Length: {length}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method in ("HEAD", "OPTIONS") else a.body)


class Current:
    """Holds the newest snapshot. The parent replaces the attribute; readers take it once per request."""

    __slots__ = ("snapshot",)

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot


class _Connection:
    __slots__ = ("deadline_ns", "inbox", "outbox", "sock", "state")

    def __init__(self, sock: socket.socket, deadline_ns: int) -> None:
        self.sock = sock
        self.deadline_ns = deadline_ns
        self.inbox = b""
        self.outbox = memoryview(b"")
        self.state = "read"
        """read -> write -> linger -> closed"""


class HealthServer:
    """One descriptor for the parent's poll loop (an epoll set of its own): when readable, call :meth:`handle`.

    >>> server = HealthServer(current, "127.0.0.1", 8008)      # OSError: address in use, no such address, ...
    >>> poller.register(server.fileno(), zmq.POLLIN)           # then server.handle(now_ns()) when it fires,
    >>> server.deadline_ns()                                   # or when this instant has come
    """

    def __init__(self, current: Current, host: str, port: int) -> None:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._current = current
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
        return min(waits + [self._deaf_until_ns] * bool(self._deaf_until_ns), default=None)

    def handle(self, now_ns: int) -> None:
        """Do what can be done without waiting, at most 32 events of it: what is left fires again."""
        for fd, _ in self._epoll.poll(0, 32):
            if fd == self._listener.fileno():
                self._accept(now_ns)
            elif connection := self._connections.get(fd):
                try:
                    self._step(connection, now_ns)
                except OSError:  # reset by the client: its affair
                    self._close(connection)
        for connection in [c for c in self._connections.values() if c.deadline_ns <= now_ns]:
            self._close(connection)
        if self._deaf_until_ns and self._deaf_until_ns <= now_ns:
            self._deaf_until_ns = 0
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def _accept(self, now_ns: int) -> None:
        for _ in range(16):
            try:
                sock, _peer = self._listener.accept()
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
            if len(self._connections) >= MAX_CONNECTIONS:
                # Dicts keep insertion order: the oldest gives way, so slow clients never keep a check out.
                self._close(next(iter(self._connections.values())))
            sock.setblocking(False)
            connection = self._connections[sock.fileno()] = _Connection(sock, now_ns + DEADLINE_NS)
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            try:
                self._step(connection, now_ns)  # the request is usually there already
            except OSError:
                self._close(connection)

    def _step(self, c: _Connection, now_ns: int) -> None:
        if c.state != "write":
            try:
                data = c.sock.recv(MAX_REQUEST_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._close(c)
                return
            if c.state == "linger":
                return
            c.inbox += data
            request = parse_request(c.inbox)
            if request is None:
                return
            c.inbox = b""
            c.outbox = memoryview(respond(self._current.snapshot, request, now_ns))
            c.state = "write"
        try:
            c.outbox = c.outbox[c.sock.send(c.outbox) :]
        except BlockingIOError:
            pass  # epoll tells when there is room
        if c.outbox:
            self._epoll.modify(c.sock.fileno(), select.EPOLLOUT)
            return
        c.state = "linger"
        c.deadline_ns = min(c.deadline_ns, now_ns + LINGER_NS)
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
