"""From three empty directories to one writable Postgres with two streaming standbys, and how it looks from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from supervisor.localcluster import node_environment, processes
from tests.cluster.world import World

pytestmark = pytest.mark.cluster


def test_three_empty_nodes_become_a_cluster(shared_world: World) -> None:
    world = shared_world
    primary = world.wait_writable()
    with world.writing() as writer:
        world.settles(lambda: len(writer.acked) > 50, "fifty rows")
    world.check_no_loss(writer, everywhere=True)
    assert not writer.failures

    identifiers = {world.query(node, "select system_identifier from pg_control_system()")[0][0] for node in world.nodes}
    assert len(identifiers) == 1, "one initdb for the whole cluster"
    assert [world.query(node, "show data_checksums")[0][0] for node in world.nodes] == ["on"] * 3
    recovering = {node.name: world.query(node, "select pg_is_in_recovery()")[0][0] for node in world.nodes}
    assert recovering == {node.name: node is not primary for node in world.nodes}


def test_every_node_tells_the_same_story(shared_world: World) -> None:
    world = shared_world
    primary = world.wait_writable()
    for node in world.nodes:
        seen = world.asked_status(node)
        assert seen["node"] == node.name
        assert seen["primary"]["name"] == primary.name
        assert sorted(member["name"] for member in seen["members"]) == ["a", "b", "c"]
        codes = {path: node.get(path)[0] for path in ("/primary", "/replica", "/read-only", "/health", "/liveness")}
        leads = node is primary
        assert codes == {
            "/primary": 200 if leads else 503, "/replica": 503 if leads else 200,
            "/read-only": 200, "/health": 200, "/liveness": 200,
        }  # fmt: skip
        roles = [member["role"] for member in json.loads(node.get("/cluster")[1])["members"]]
        assert roles.count("leader") == 1
    program = "import sys; from pgr_supervise import admin; sys.exit(admin())"
    words = [sys.executable, "-P", "-c", program, "status", "--watch", "--json", "--data", str(world.nodes[0].data)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd="/", env=node_environment()) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["primary"]["name"] == primary.name
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 130
    versions = [line.split() for line in world.pgr("version", "--all").stdout.splitlines()[2:]]
    assert [(row[0], row[1:] == versions[1][1:]) for row in versions[1:]] == [("a", True), ("b", True), ("c", True)]
    assert versions[1][2].partition(".")[0] in ("15", "16", "17", "18")
    uri = world.pgr("uri", "--read-write").stdout
    assert all(f"127.0.0.1:{node.pg_port}" in uri for node in world.nodes)
    assert "target_session_attrs=read-write" in uri


def test_a_node_is_three_processes_and_postgres(shared_world: World) -> None:
    world = shared_world
    node = world.nodes[0]
    table = processes()
    own = sorted(table[pid].comm for pid in node.pids() if pid in table and table[pid].comm.startswith("pgr-"))
    assert own[:3] == ["pgr-launcher", "pgr-raft", "pgr-supervise"]
    assert "pgr-watchdog" in own
    assert node.pid_of("postmaster")
    assert (node.data / "run").stat().st_mode & 0o777 == 0o700
    assert (node.data / "raft").stat().st_mode & 0o777 == 0o700


def test_asked_to_stop_every_node_ends_with_0_and_leaves_nothing(shared_world: World) -> None:
    world = shared_world
    for node in [*world.standbys(), world.primary()]:
        assert node is not None
        assert node.stop(60) == 0
        assert node.pids() == []
    world.start()
    world.wait_writable(standbys=2)


def test_one_node_alone_works(make_world: Callable[..., World]) -> None:
    world = make_world(nodes=1)
    world.start()
    world.wait_writable()
    with world.writing() as writer:
        world.settles(lambda: len(writer.acked) > 20, "twenty rows")
    world.check_no_loss(writer)
    assert world.nodes[0].stop() == 0
