"""A node and a witness as services of systemd's ``Type=notify``."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from supervisor.localcluster import LocalNode
from tests.cluster.world import START_S, World

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


class Systemd:
    """What a node tells, read as it comes: the queue of such a socket is short."""

    def __init__(self, node: LocalNode) -> None:
        path = node.data.parent / f"notify-{node.name}"
        self._bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bound.bind(str(path))
        path.chmod(0o777)
        node.env["NOTIFY_SOCKET"] = str(path)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while data := self._bound.recv(4096):
            self.lines += data.decode().splitlines()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self._bound.getsockname())
        self._reader.join(START_S)
        self._bound.close()


def test_it_is_told_of_the_start_of_what_goes_on_and_of_the_stop(make_world: Callable[..., World]) -> None:
    world = make_world()
    world["c"].flags["witness"] = ""
    told = {name: Systemd(world[name]) for name in "ac"}
    try:
        world.start()
        primary = world.wait_writable(standbys=1)
        sentence = "primary, open to clients" if primary is world["a"] else "standby of the primary"
        world.settles(lambda: f"STATUS={sentence}" in told["a"].lines, "its status is told")
        for name, systemd in told.items():
            assert (systemd.lines[0], systemd.lines.count("READY=1")) == ("READY=1", 1), name
            assert "STOPPING=1" not in systemd.lines
            world[name].stop()
            world.settles(lambda systemd=systemd: "STOPPING=1" in systemd.lines, f"the stop of {name} is told")  # type: ignore[misc]  # bound now
        assert not (world["c"].data / "run" / "raft.sock").exists(), "nobody would read it"
    finally:
        for systemd in told.values():
            systemd.close()
