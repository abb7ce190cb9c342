"""The replication network of a `World`, for a test to cut: every node advertises its Postgres through a small proxy.

Only what nodes say to each other's Postgres passes here; consensus and the tests' own clients do not. So "the data
plane is cut and the control plane is open" is one call.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

from supervisor.localcluster import LocalNode

_CHUNK_BYTES = 1 << 16


class Proxy:
    """In front of one node's Postgres. A startup packet tells who calls: application_name names it."""

    def __init__(self, node: LocalNode, callers: list[str]) -> None:
        self.name, self.port_of_postgres, self.callers = node.name, node.pg_port, callers
        self.refused: set[str] = set()
        self._lock = threading.Lock()
        self._open: list[tuple[str, socket.socket, socket.socket]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        node.flags["pg-advertise"] = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._begin(self._accept)

    def refuse(self, *names: str) -> None:
        """From now on these nodes cannot reach this Postgres; what they have open is torn down at once."""
        with self._lock:
            self.refused |= set(names)
            for caller, *ends in self._open:
                if caller in self.refused:
                    _reset(*ends)
            self._open = [each for each in self._open if each[0] not in self.refused]

    def allow(self, *names: str) -> None:
        with self._lock:
            self.refused -= set(names)

    def close(self) -> None:
        self.refuse(*self.callers, "")
        _reset(self._server)

    def _begin(self, what: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=what, args=arguments, name=f"proxy-{self.name}", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                client, _ = self._server.accept()
                self._begin(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            packet = _startup_packet(client)
            caller = _caller(packet, self.callers)
            with self._lock:
                if caller in self.refused:
                    raise ConnectionError(f"{caller} is cut off")
                server = socket.create_connection(("127.0.0.1", self.port_of_postgres), timeout=5)
                server.settimeout(None)
                server.sendall(packet)
                self._open.append((caller, client, server))
        except OSError:
            _reset(client)  # the caller sees a lost connection, as with a real cut
            return
        self._begin(_pass_on, server, client)
        _pass_on(client, server)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _reset(*ends: socket.socket) -> None:
    """Whoever waits in recv is woken, and what is sent from now on goes nowhere."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def _startup_packet(client: socket.socket) -> bytes:
    """The first packet that is not a question for encryption; those are answered with "no"."""
    while True:
        head = _exactly(client, 8)
        length, code = struct.unpack("!II", head)
        if code not in (80877103, 80877104):
            return head + _exactly(client, length - 8)
        client.sendall(b"N")


def _exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = client.recv(count - len(data))
        if not more:
            raise ConnectionError("closed within the startup packet")
        data += more
    return data


def _caller(packet: bytes, names: list[str]) -> str:
    fields = packet[8:].split(b"\0")
    told = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"application_name", b"").decode()
    helper = told.rpartition("_")[2] if told.startswith("pgr_") else ""  # pgr_clone_NAME, pgr_rewind_NAME, ...
    return next((name for name in names if told.startswith(f"{name}.") or helper == name), "")
