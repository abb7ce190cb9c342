"""The parent's ends of the local bus: one DEALER to the Raft child, one to the watchdog.

Orders that are answered carry an id; a task waits with `ask`, everything else comes out of `facts`. A child that dies
takes what was queued with it: the parent says `node.hello` (or arms again) to the next one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from fencing import wire
from fencing.clock import now_ns
from fencing.lease import MS
from fencing.logs import Log
from supervisor.tasks import Task, TaskTimeout, Wait


class Link:
    """One DEALER with the identity ``parent``."""

    def __init__(self, path: Path, log: Log) -> None:
        self.path, self.log = path, log
        self.answers: dict[str, wire.Frame] = {}
        self.asked: set[str] = set()
        self._ids = itertools.count(1)
        self.socket = self._dial()

    def _dial(self) -> zmq.Socket[bytes]:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, b"parent")
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 200)
        socket.setsockopt(zmq.RECONNECT_IVL, 5)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 20)
        socket.connect(f"ipc://{self.path}")
        return socket

    def redial(self) -> None:
        """After the other end died: whatever was queued for the dead must not reach the next one."""
        self.close()
        self.answers.clear()
        self.asked.clear()
        self.socket = self._dial()

    def close(self) -> None:
        """Gone when this returns. `Socket.close` alone leaves that to the background, where the old dial may yet reach
        the next ROUTER: that has the name then, and of 200 new dials on a busy machine 7 were never heard."""
        self._context.destroy(linger=0)

    def tell(self, name: str, body: dict[str, Any], request_id: str = "") -> bool:
        """Send without waiting for an answer. False: dropped, as the other end does not read."""
        try:
            self.socket.send(wire.encode(name, body, request_id), zmq.NOBLOCK)
        except zmq.Again:
            self.log.once_per(f"bus.{self.path.name}", 10).warning("bus.full", socket=self.path.name, dropped=name)
            return False
        return True

    def ask(self, name: str, body: dict[str, Any], timeout_ms: int) -> Task[wire.Frame]:
        """Send and wait for the answer with the same id. Raises TaskTimeout."""
        request_id = f"p{next(self._ids)}"
        until_ns = now_ns() + timeout_ms * MS
        self.asked.add(request_id)
        try:
            self.tell(name, body, request_id)
            while request_id not in self.answers:
                if now_ns() >= until_ns or request_id not in self.asked:
                    raise TaskTimeout(f"no answer to {name} within {timeout_ms} ms")
                yield Wait(until_ns=until_ns, ready=lambda: request_id in self.answers or request_id not in self.asked)
            return self.answers.pop(request_id)
        finally:
            self.asked.discard(request_id)
            self.answers.pop(request_id, None)

    def facts(self) -> Iterator[wire.Frame]:
        """What has come in and answers no question of ours; answers are put aside for `ask`."""
        while True:
            try:
                data = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                frame = wire.decode(data)
            except wire.WireError as error:
                self.log.warning("bus.garbage", socket=self.path.name, error=str(error))
                continue
            if frame.id and frame.id in self.asked:
                self.answers[frame.id] = frame
            else:
                yield frame
