"""A node and a witness as services of systemd's ``Type=notify``."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from supervisor.localcluster import LocalNode
from tests.cluster.world import START_S, World

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@contextmanager
def listening(node: LocalNode) -> Iterator[socket.socket]:
    node.data.mkdir(exist_ok=True)
    path = node.data.parent / f"notify-{node.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(path))
        path.chmod(0o777)
        bound.settimeout(START_S)
        node.env["NOTIFY_SOCKET"] = str(path)
        yield bound


def heard(bound: socket.socket, until: str) -> list[str]:
    lines: list[str] = []
    while until not in lines:
        lines += bound.recv(4096).decode().splitlines()
    return lines


def test_it_is_told_of_the_start_of_what_goes_on_and_of_the_stop(make_world: Callable[..., World]) -> None:
    world = make_world()
    world["c"].flags["witness"] = ""
    with listening(world["a"]) as a, listening(world["c"]) as witness:
        world.start()
        assert heard(a, "READY=1")[0] == "READY=1"
        primary = world.wait_writable(standbys=1)
        sentence = "primary, open to clients" if primary is world["a"] else "standby of the primary"
        assert "READY=1" not in heard(a, f"STATUS={sentence}"), "once"
        assert heard(witness, "READY=1")[0] == "READY=1"
        for bound, node in ((a, world["a"]), (witness, world["c"])):
            node.stop()
            assert "STOPPING=1" in heard(bound, "STOPPING=1")
