"""HAProxy (the Debian package) in front of a cluster: it follows a failover, with our file and with Patroni's."""

from __future__ import annotations

import csv
import io
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode, free_ports, release_ports, wait_for
from supervisor.localwriter import Writer
from tests.cluster.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

OURS = Path(__file__).resolve().parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
PATRONIS = """
listen batman
    bind 127.0.0.1:{port}
    option httpchk
    http-check expect status 200
    default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions
{servers}
"""
"""The section of Patroni's documentation (haproxy.cfg there): OPTIONS / is asked for."""


class Proxy:
    """One HAProxy for a world; ``ports``: ours for writes, ours for reads, Patroni's."""

    def __init__(self, world: World, home: Path) -> None:
        self.nodes = world.nodes
        self.writes, self.reads, self.patronis, _ = self.ports = free_ports(4)
        self.stats = home / "stats.sock"
        text = OURS.read_text(encoding="utf-8")
        for node in self.nodes:
            address = rf"\1 {node.host}:{node.pg_port} \2 port {node.http_port}"
            text, found = re.subn(rf"(server {node.name}) \S+ (.*) port \d+", address, text)
            assert found == 2, f"our file has no server {node.name} in both lists"
        text = text.replace("bind *:5000", f"bind 127.0.0.1:{self.writes}")
        text = text.replace("bind *:5001", f"bind 127.0.0.1:{self.reads}")
        text = text.replace("bind 127.0.0.1:7000", f"bind 127.0.0.1:{self.ports[3]}")
        text = text.replace("global\n", f"global\n    stats socket {self.stats} level user\n", 1)
        servers = (f"    server {n.name} {n.host}:{n.pg_port} maxconn 100 check port {n.http_port}" for n in self.nodes)
        text += PATRONIS.format(port=self.patronis, servers="\n".join(servers))
        self.file = home / "haproxy.cfg"
        self.file.write_text(text, encoding="utf-8")
        self.log = (home / "haproxy.log").open("wb")
        checked = subprocess.run(["haproxy", "-c", "-f", str(self.file)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "WARNING" not in checked.stderr.upper(), checked.stderr
        self.process = subprocess.Popen(["haproxy", "-db", "-f", str(self.file)], stdout=self.log, stderr=self.log)

    def up(self, section: str) -> list[str]:
        """Servers that get connections there."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self.stats))
                client.sendall(b"show stat\n")
                page = b"".join(iter(lambda: client.recv(65536), b""))
        except OSError:
            return []
        rows = csv.DictReader(io.StringIO(page.decode().removeprefix("# ")))
        names = {node.name for node in self.nodes}
        here = (row for row in rows if row["pxname"] == section and row["svname"] in names)
        return sorted(row["svname"] for row in here if row["status"].startswith("UP"))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.log.close()
        release_ports(self.ports)


@pytest.fixture
def proxy(world: World, tmp_path: Path) -> Iterator[Proxy]:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    made = Proxy(world, tmp_path)
    yield made
    made.close()


def via(world: World, port: int) -> str:
    return f"postgresql://postgres:{world.password}@127.0.0.1:{port}/postgres?connect_timeout=2"


def reached(world: World, port: int) -> LocalNode | None:
    """Where a connection to ``port`` ends."""
    try:
        with psycopg.connect(via(world, port), autocommit=True) as connection:
            ((found,),) = connection.execute("SHOW port").fetchall()
    except psycopg.OperationalError:
        return None
    return next(node for node in world.nodes if node.pg_port == int(found))


@pytest.mark.timeout(300)
def test_it_follows_a_failover(world: World, proxy: Proxy) -> None:
    first = world.wait_writable()
    for section in ("primary", "batman"):
        world.settles(lambda section=section: proxy.up(section) == [first.name], f"{section} knows it")  # type: ignore[misc]  # bound now
    standbys = sorted(node.name for node in world.standbys())
    world.settles(lambda: proxy.up("replicas") == standbys, "reads go to the standbys")
    assert reached(world, proxy.writes) is reached(world, proxy.patronis) is first
    assert reached(world, proxy.reads) is not first

    writer = Writer(via(world, proxy.writes))
    world.writers.append(writer)
    writer.start()
    try:
        assert wait_for(lambda: bool(writer.acked), 30), writer.failures[-1:]
        open_session = psycopg.connect(via(world, proxy.writes), autocommit=True)
        killed_ns, _ = first.kill_all()
        world.writes_again(writer, killed_ns)
        gap = writer.gap(killed_ns)
        second = world.wait_writable()
        assert second is not first
        assert reached(world, proxy.writes) is second
        assert proxy.up("primary") == [second.name]
        with pytest.raises(psycopg.OperationalError):
            open_session.execute("SELECT 1")
        open_session.close()

        # A switchover: the old primary lives on, and what was connected to it is cut off.
        first.start()
        world.wait_streaming(first)
        open_session = psycopg.connect(via(world, proxy.writes), autocommit=True)
        done = world.pgr("switchover", "--to", first.name, node=second)
        assert done.returncode == 0, done.stderr
        world.writes_again(writer, now_ns())
        world.settles(lambda: reached(world, proxy.writes) is first, "writes reach the new primary")
        with pytest.raises(psycopg.OperationalError):
            open_session.execute("SELECT 1")
        open_session.close()
    finally:
        writer.stop(30)
    print(f"write gap through HAProxy after kill -9 of the primary node: {gap.seconds:.2f} s")
    assert gap.seconds < 15
    world.settles(lambda: proxy.up("batman") == [first.name], "Patroni's section follows, in its own time")
    assert reached(world, proxy.patronis) is first
    world.check_no_loss(writer)
