"""The network itself: what a cut stops, that healing takes everything back, and that nothing is left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fencing.clock import now_ns
from fencing.lease import MS
from supervisor.localcluster import wait_for
from tests.net.network import CLIENT, CONSENSUS, HTTP, ROOT, Link, Network, both, missing

pytestmark = [pytest.mark.quick, pytest.mark.timeout(60)]

ANSWER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    caller, _ = server.accept()
    caller.sendall(caller.recv(10))
    caller.close()
"""


@pytest.fixture
def network() -> Iterator[Network]:
    if why := missing():
        pytest.skip(why)
    made = Network(["a", "b"])
    servers = []
    for port in (CONSENSUS, HTTP):
        words = [*made.enter("a"), sys.executable, "-c", ANSWER, made.addresses["a"], str(port)]
        servers.append(subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT))
    for server in servers:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
    yield made
    for server in servers:
        server.kill()
        server.communicate()
    made.close()


def answers(network: Network, port: int = HTTP) -> bool:
    """Does ``a`` answer us within half a second?"""
    try:
        with socket.create_connection((network.addresses["a"], port), timeout=0.5) as call:
            call.sendall(b"x")
            return call.recv(10) == b"x"
    except OSError:
        return False


def reaches(network: Network, name: str) -> bool:
    """Does this node get a connection to ``a``?"""
    call = f"import socket; socket.create_connection(({network.addresses['a']!r}, {HTTP}), timeout=0.5)"
    words = [*network.enter(name), sys.executable, "-c", call]
    return subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("link", [Link(CLIENT, "a"), Link("a", CLIENT)])
def test_one_way_is_enough_to_cut_and_healing_mends_it(network: Network, link: Link) -> None:
    assert answers(network)
    network.cut([link])
    assert not answers(network)
    network.heal()
    assert answers(network)


def test_a_port_is_cut_and_the_others_stay_open(network: Network) -> None:
    network.cut(both(CLIENT, "a", CONSENSUS))
    assert not answers(network, CONSENSUS)
    assert answers(network, HTTP)
    network.mend(both(CLIENT, "a", CONSENSUS))
    assert answers(network, CONSENSUS)


def test_others_are_not_cut(network: Network) -> None:
    network.cut(both("a", "b"))
    assert answers(network)
    assert not reaches(network, "b")
    network.heal()
    assert reaches(network, "b")


def test_loss(network: Network) -> None:
    network.lose(999, both("a", CLIENT))
    assert not answers(network)
    network.heal()
    assert answers(network)


def test_latency(network: Network) -> None:
    network.delay("a", 60)
    begun_ns = now_ns()
    assert answers(network)
    assert now_ns() - begun_ns >= 4 * 60 * MS, "there and back for the connection, and again for the answer"
    network.heal()
    assert answers(network)


def test_a_big_transfer_survives_the_delay(network: Network) -> None:
    """The kernel hands over what it would have cut up and summed later."""
    network.delay("a", 5)
    sink = socket.create_server((network.addresses[CLIENT], 0))
    send = f"import socket; socket.create_connection({sink.getsockname()!r}).sendall(bytes(3 << 20))"
    with subprocess.Popen([*network.enter("a"), sys.executable, "-c", send]), sink.accept()[0] as call:
        total = 0
        while data := call.recv(1 << 16):
            total += len(data)
    sink.close()
    assert total == 3 << 20


def test_what_a_killed_run_left_is_removed_by_the_next_one() -> None:
    if why := missing():
        pytest.skip(why)
    make = "from tests.net.network import Network; import os; print(Network(['a'])._run, flush=True); os._exit(9)"
    made = subprocess.run([sys.executable, "-c", make], cwd=ROOT, capture_output=True, text=True, check=False)
    left = f"/run/netns/{made.stdout.strip()}-hub"
    assert os.path.exists(left)
    Network(["a"]).close()
    assert wait_for(lambda: not os.path.exists(left), 5)
