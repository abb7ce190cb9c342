"""Trouble in a running cluster: whoever is in trouble says so and steps aside; nothing that was acknowledged is lost.

test_refusals.py has the wrong starts of a member; here are full disks, noise on the wire and lost directories.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode, run_user
from tests.cluster.world import World
from tests.pgbare import as_postgres, pg_bin

pytestmark = pytest.mark.cluster


# --- noise on the consensus port --------------------------------------------------------------------------------------


def noise(rng: random.Random) -> bytes:
    """Something that is no frame of ours: garbage, a broken greeting, a frame of absurd length, another protocol."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    return rng.choice(
        [
            rng.randbytes(rng.randrange(1, 3000)),
            greeting + b"\x06" + struct.pack("!Q", 1 << 62) + rng.randbytes(200),
            greeting + b"\x04\xc8\x05HELLO" + rng.randbytes(194),
            greeting[: rng.randrange(1, len(greeting))],
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            struct.pack("!II", 8, 80877103),
            b"\xff" + struct.pack("!Q", (1 << 63) + 5) + b"\x01" + rng.randbytes(50),
        ]
    )


def test_noise_on_the_consensus_ports_costs_no_write(shared_world: World) -> None:
    world = shared_world
    rng = random.Random(11)
    primary = world.wait_writable()
    before = {node.name: node.pid_of("raft") for node in world.nodes}
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with contextlib.ExitStack() as left_open, world.writing() as writer:
        for number in range(300):
            node = world.nodes[number % 3]
            caller = socket.create_connection(("127.0.0.1", node.listen_port), timeout=5)
            with contextlib.suppress(ConnectionError):
                caller.sendall(noise(rng))
            if number % 2:
                left_open.callback(caller.close)
            else:
                caller.close()
        for node in world.nodes:
            # Well-formed ZMTP without the key, and frames as large as they come.
            stranger = context.socket(zmq.DEALER)
            left_open.callback(stranger.close, 0)
            stranger.setsockopt(zmq.SNDTIMEO, 2_000)
            stranger.connect(f"tcp://127.0.0.1:{node.listen_port}")
            with contextlib.suppress(zmq.Again):  # turned away before it could say anything: libzmq then gives up
                stranger.send(b"PGR1" + rng.randbytes(5 << 20))
        for node in world.nodes:
            world.settles(lambda node=node: bool(world.logged(node, "peer.rejected")), f"{node.name} tells of it")  # type: ignore[misc]  # bound now
        at_ns = now_ns()
        world.settles(lambda: writer.acked_since(at_ns) > 200, "writes go on")
    context.term()
    assert not writer.failures, "not one failed write"
    assert world.primary() is primary
    assert {node.name: node.pid_of("raft") for node in world.nodes} == before, "nobody fell over it"
    assert all(len(world.logged(node, "peer.rejected")) < 60 for node in world.nodes), "nor filled the log with it"
    world.check_no_loss(writer, everywhere=True)


# --- a full disk below raft/ ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disks(make_world: Callable[..., World]) -> Iterator[World]:
    """Three nodes; each has its raft/ on a small file system of its own."""
    world = make_world()
    mounted: list[Path] = []
    user = run_user()
    try:
        for node in world.nodes:
            raft = node.data / "raft"
            raft.mkdir(parents=True)
            owner = f",uid={user.pw_uid},gid={user.pw_gid}" if user else ""
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size=4m,mode=700{owner}", "pgr-test", raft],
                check=False, capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
            mounted.append(raft)
            if user:
                os.chown(node.data, user.pw_uid, user.pw_gid)
        world.start()
        world.wait_writable(standbys=2)
        yield world
    finally:
        for node in world.nodes:
            if node.process is not None:
                node.kill_all()
        for raft in mounted:
            subprocess.run(["umount", raft], check=True)


def fill(node: LocalNode) -> Path:
    ballast = node.data / "raft" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


def until_it_writes(world: World, victim: LocalNode) -> None:
    """Entries for everybody's log, until the one whose disk is full has to write and cannot."""
    others = [node for node in world.nodes if node is not victim]
    for number in range(40):
        if not victim.alive():
            return
        # A name that is nobody's is refused before the log; a member is not: the two others take turns.
        world.pgr("switchover", "--to", others[number % 2].name, node=others[(number + 1) % 2])
    world.settles(lambda: not victim.alive(), f"{victim.name} ends")


@pytest.mark.root
@pytest.mark.parametrize("role", [pytest.param("standby", marks=pytest.mark.slow), "primary"])
def test_a_full_raft_disk_stops_that_node_and_nothing_else(small_disks: World, role: str) -> None:
    world = small_disks
    primary = world.wait_writable()
    victim = primary if role == "primary" else world.standbys()[0]
    with world.writing() as writer:
        ballast = fill(victim)
        until_it_writes(world, victim)
        assert victim.wait(30) == 74
        failed = world.logged(victim, "raft.storage_failed")
        assert failed
        assert str(victim.data / "raft") in str(failed[-1])
        assert failed[-1]["fields"]["hint"]
        assert not victim.pids(), "nothing of it is left, Postgres least of all"
        world.settles(lambda: world.primary() not in (None, victim), "another is primary")
        world.writes_again(writer, now_ns())
        ballast.unlink()
        victim.start()
        world.wait_streaming(victim)
    world.check_no_loss(writer, everywhere=True)


# --- directories that are gone, or not ours ---------------------------------------------------------------------------


ELSE = pytest.param("c", marks=pytest.mark.slow, id="another")


@pytest.mark.parametrize("name", [pytest.param("a", id="who wrote the charter"), ELSE])
def test_a_node_that_lost_everything_founds_nothing_and_is_let_in_again(world: World, name: str) -> None:
    node, before = world[name], world.asked_status()["cluster_id"]
    with world.writing() as writer:
        before_ns = now_ns()
        assert node.stop(60) == 0
        world.settles(lambda: world.primary() not in (None, node), "a primary")
        world.writes_again(writer, before_ns)
        created = len(world.logged(node, "postgres.initdb"))
        for each in ("raft", "pgdata", "salvage"):
            shutil.rmtree(node.data / each, ignore_errors=True)
        node.start()
        world.wait_members("a b c", "2 of a b c")
        world.wait_streaming(node)
        assert len(world.logged(node, "postgres.initdb")) == created, "no second cluster"
        assert world.asked_status(node)["cluster_id"] == before
        world.writes_again(writer, now_ns())
    world.check_no_loss(writer, everywhere=True)


def test_data_of_another_system_identifier_is_refused_and_kept(
    shared_world: World, make_world: Callable[..., World]
) -> None:
    """As if someone had restored the wrong backup: no mark of ours in it, only the identifier tells."""
    world = shared_world
    other = make_world(nodes=1)
    other.start()
    other.wait_writable()
    foreign = str(other.query(other.nodes[0], "select system_identifier from pg_control_system()")[0][0])
    ours = str(world.query(world.nodes[0], "select system_identifier from pg_control_system()")[0][0])
    assert other.nodes[0].stop(60) == 0
    node = world.standbys()[0]
    assert node.stop(60) == 0
    shutil.move(node.data / "pgdata", world.home / "aside")
    shutil.move(other.nodes[0].data / "pgdata", node.data / "pgdata")
    (node.data / "pgdata" / "pgr_node.json").unlink()
    code, stderr = world.run_node(node)
    assert code == 78, stderr
    assert foreign in stderr
    assert ours in stderr
    assert "\nhint: move it away" in stderr
    assert (node.data / "pgdata" / "PG_VERSION").exists(), "nothing was removed"
    shutil.rmtree(node.data / "pgdata")
    shutil.move(world.home / "aside", node.data / "pgdata")
    node.start()
    world.wait_streaming(node)


@pytest.mark.slow
def test_a_node_whose_postgres_never_starts_says_why_and_goes_on_once_it_can(make_world: Callable[..., World]) -> None:
    """There is nobody to be copied from: a person has to act, and finds the reason in the status of the node."""
    world = make_world(nodes=1)
    world.start()
    node = world.wait_writable()
    assert node.stop(60) == 0
    config = node.data / "pgdata" / "postgresql.conf"
    whole = config.read_text(encoding="utf-8")
    config.write_text(f"{whole}\nno_such_setting = 1\n", encoding="utf-8")
    node.start()

    def quarantined() -> bool:
        seen = node.status()
        row = seen.member(node.name) if seen is not None else None
        return row is not None and row.state == "quarantined" and "no_such_setting" in row.reason

    world.settles(quarantined, "it is quarantined", lambda: str(node.status()))
    config.write_text(whole, encoding="utf-8")
    world.wait_writable()
    world.settles(lambda: not quarantined(), "it is not any more")


def test_another_name_for_a_member_is_refused(shared_world: World) -> None:
    world = shared_world
    node = world.standbys()[0]
    assert node.stop(60) == 0
    taken = next(other for other in world.nodes if other is not node)
    right = node.flags["name"]
    node.flags["name"] = taken.name
    code, stderr = world.run_node(node)
    assert code == 78, stderr
    assert f"--name {right}" in stderr
    assert "hint" in stderr
    node.flags["name"] = right
    node.start()
    world.wait_streaming(node)


def test_a_data_directory_that_runs_already_is_not_started_twice(shared_world: World) -> None:
    """A Postgres that someone started by hand in a stopped node's directory is not ours to kill unasked."""
    world = shared_world
    node = world.standbys()[0]
    assert node.stop(60) == 0
    user = run_user()
    mark = node.data / "pgdata" / "pgr_node.json"
    mark.rename(node.data / "aside.json")
    (node.data / "pgdata" / "standby.signal").touch()
    if user:
        os.chown(node.data / "pgdata" / "standby.signal", user.pw_uid, user.pw_gid)
    words = [str(pg_bin() / "postgres"), "-D", str(node.data / "pgdata"), "-c", "primary_conninfo="]
    postgres = subprocess.Popen(words, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_postgres())
    try:
        lock = node.data / "pgdata" / "postmaster.pid"
        world.settles(lambda: lock.exists() and b"ready" in lock.read_bytes(), "it runs")
        # Its port would be the first thing in the way.
        right = node.flags["pg-port"]
        node.flags["pg-port"] = str(node.pg_port + 1) if node.pg_port % 2 else str(node.pg_port - 1)
        code, stderr = world.run_node(node)
        assert code == 78, stderr
        assert f"pg_ctl -D {node.data / 'pgdata'} stop" in stderr
        assert postgres.poll() is None, "it was left alone"
    finally:
        postgres.terminate()
        postgres.wait(30)
    node.flags["pg-port"] = right
    (node.data / "aside.json").rename(mark)
    node.start()
    world.wait_streaming(node)
