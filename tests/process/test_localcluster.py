"""The ports of local clusters: given to one cluster only, also while its node is down, and still free for that node."""

from __future__ import annotations

import socket

import pytest

from supervisor import localcluster
from supervisor.localcluster import free_ports, release_ports


def bound(port: int, *, as_servers_do: bool) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(as_servers_do))
    try:
        found.bind(("127.0.0.1", port))
    except OSError:
        found.close()
        raise
    return found


def test_a_held_port_is_for_its_server_and_for_nobody_who_looks_for_a_free_one() -> None:
    [port] = free_ports(1)
    for _ in range(2):  # a node is started, ended, and started again
        with pytest.raises(OSError, match="in use"):
            bound(port, as_servers_do=False)
        with bound(port, as_servers_do=True) as server:
            server.listen(1)
            with socket.create_connection(("127.0.0.1", port)):
                server.accept()[0].close()
    release_ports([port])
    assert port not in localcluster._held


def test_ports_are_different_and_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen from so few that every choice would soon be one that is held."""
    [first] = free_ports(1)
    monkeypatch.setattr(localcluster, "_PORTS", (first, first + 8))
    found = free_ports(4)
    assert len(set(found)) == 4
    assert first not in found
    release_ports([first, *found])
