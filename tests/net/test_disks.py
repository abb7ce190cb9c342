"""Interleaving 19: disks that are full, disks that are slow, under each part of a primary and of a standby.

Whoever cannot write steps aside or tells its clients; nobody else minds, nothing is lost, and with room it is back.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode
from tests.cluster.world import postgres_pids
from tests.conftest import FAILED
from tests.net import disks
from tests.net.disks import Disk, Disks, slow, traced
from tests.net.world import NetWorld, Workload

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

MEGABYTE = "select pg_logical_emit_message(true, 'fill', repeat('x', 1000000))"
BIG = "create table if not exists big (t text); alter table big alter t set storage external"
ROW = "insert into big values (repeat('x', 1000000))"
NO_ROOM = "53100"
FULL_NS = 3 * SECOND

Disked = tuple[NetWorld, Disks]


@pytest.fixture
def disked(make_net: Callable[..., NetWorld], request: pytest.FixtureRequest) -> Iterator[Disked]:
    """Three nodes, not started yet."""
    world = make_net()
    made = Disks(world)
    yield world, made
    made.close(request.node.stash.get(FAILED, False))


def chosen(world: NetWorld, role: str) -> LocalNode:
    return world.wait_writable() if role == "primary" else world.standbys()[0]


def writes_until_refused(world: NetWorld, node: LocalNode, statement: str) -> str:
    """Over and over on ``node``, without waiting for anybody; SQLSTATE of the end, empty if the session broke."""
    with psycopg.connect(world.node_uri(node), autocommit=True) as session:
        session.execute("set synchronous_commit = local")
        for _ in range(2000):
            try:
                session.execute(statement.encode())
            except psycopg.Error as error:
                return "" if session.broken or session.closed else error.sqlstate or ""
    raise AssertionError(f"{node.name} still has room")


def comes_back(world: NetWorld, load: Workload, node: LocalNode, disk: Disk) -> None:
    """There is room again; one that has ended is started, as its service manager would."""
    disk.drain()
    if not node.alive():
        assert node.wait(1) == 74
        node.start()
    world.wait_whole()
    world.goes_on(load, now_ns())


def while_full(world: NetWorld, load: Workload) -> None:
    full_ns = now_ns()
    world.settles(lambda: now_ns() - full_ns > FULL_NS, "a while")
    world.goes_on(load, full_ns)


# --- full -------------------------------------------------------------------------------------------------------------


def gives_up(world: NetWorld, load: Workload, node: LocalNode, disk: Disk) -> None:
    """Its pg_wal is full, so Postgres ends in the middle of a record that has no room in the next segment."""
    timeline = world.timeline(load)
    disk.fill()
    writes_until_refused(world, node, MEGABYTE)
    world.moves_on(load, timeline)
    world.settles(lambda: world.primary() not in (None, node), "another one is open", world.describe)
    while_full(world, load)
    comes_back(world, load, node, disk)


def with_a_small_pg_wal(world: NetWorld, made: Disks) -> tuple[LocalNode, Disk]:
    """The primary."""
    node = world.begin()
    disk = made.wal(node)
    if world.wait_writable() is not node:
        assert world.pgr("switchover", "--to", node.name).returncode == 0
        world.settles(lambda: world.primary() is node, "it is primary again", world.describe)
        world.wait_whole()
    return node, disk


def test_a_full_pg_wal_of_the_primary_makes_way(disked: Disked) -> None:
    world, made = disked
    node, disk = with_a_small_pg_wal(world, made)
    with world.working() as load:
        gives_up(world, load, node, disk)
    world.check(load)
    # Its last record is torn, as this is about; or it was whole and nobody had all of it, then it has been rewound.
    assert world.logged(node, "follow.torn_record") or world.logged(node, "rewind.end")


def test_a_full_pg_wal_of_a_standby_costs_no_write(disked: Disked) -> None:
    world, made = disked
    primary = world.begin()
    node = world.others(primary)[0]
    disk = made.wal(node)
    with world.working() as load:
        timeline = world.timeline(load)
        disk.fill()
        with psycopg.connect(world.node_uri(primary), autocommit=True) as session:
            for _ in range(60):
                session.execute(MEGABYTE.encode())
        world.settles(lambda: not world.streams(node), "it cannot go on")
        while_full(world, load)
        comes_back(world, load, node, disk)
        assert not any(writer.failures for writer in load.writers), "not one failed write"
        assert world.timeline(load) == timeline
    world.check(load)


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_a_full_pgdata(disked: Disked, role: str) -> None:
    """WAL and Raft log have room. A primary refuses what needs more and stays; a standby stops, and costs no write."""
    world, made = disked
    made_of = {node.name: made.all_but_raft(node) for node in world.nodes}
    world.begin()
    for node in world.nodes:
        made.wal_elsewhere(node)
    primary, node = world.wait_writable(), chosen(world, role)
    with world.working() as load:
        timeline = world.timeline(load)
        with psycopg.connect(world.node_uri(primary), autocommit=True) as session:
            session.execute(BIG.encode())
        made_of[node.name].fill()
        if role == "primary":
            assert writes_until_refused(world, node, ROW) == NO_ROOM
        else:
            with psycopg.connect(world.node_uri(primary), autocommit=True) as session:
                for _ in range(20):
                    session.execute(ROW.encode())
            world.settles(lambda: not world.streams(node), "it cannot go on")
            while_full(world, load)
        comes_back(world, load, node, made_of[node.name])
        if role == "standby":
            assert not any(writer.failures for writer in load.writers), "not one failed write"
        assert (world.wait_writable(), world.timeline(load)) == (primary, timeline)
    world.check(load)


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_one_disk_for_everything_is_full(disked: Disked, role: str) -> None:
    """As most people have it: WAL, data and Raft log end together, and again once it has been primary elsewhere."""
    world, made = disked
    made_of = {node.name: made.everything(node) for node in world.nodes}
    world.begin()
    with world.working() as load:
        node, timeline = chosen(world, role), world.timeline(load)
        made_of[node.name].fill()
        if role == "primary":
            writes_until_refused(world, node, MEGABYTE)
            world.moves_on(load, timeline)
            world.settles(lambda: world.primary() not in (None, node), "another one is open", world.describe)
        else:
            with psycopg.connect(world.node_uri(world.wait_writable()), autocommit=True) as session:
                for _ in range(60):
                    session.execute(MEGABYTE.encode())
            world.settles(lambda: not world.streams(node), "it cannot go on")
        while_full(world, load)
        comes_back(world, load, node, made_of[node.name])
    world.check(load)


# --- slow -------------------------------------------------------------------------------------------------------------


def raft_of(node: LocalNode) -> list[int]:
    return [node.pid_of("raft")]


@pytest.mark.skipif(bool(disks.missing()), reason=disks.missing())
@pytest.mark.parametrize("pids_of", [raft_of, postgres_pids], ids=["Raft log", "WAL"])
def test_slow_disks_cost_no_write(net: NetWorld, pids_of: Callable[[LocalNode], list[int]]) -> None:
    """On every node, as of a disk that turns: writes take longer, and nobody loses its place."""
    world, primary = net, net.wait_writable()
    with world.working() as load:
        timeline = world.timeline(load)
        pids = [pid for node in world.nodes for pid in pids_of(node)]
        with slow(pids, 20):
            world.settles(lambda: traced(pids), "every fsync is slow")
            done = world.pgr("config", "set", "maximum_lag_on_failover=1000000")
            assert done.returncode == 0, done.stderr
            while_full(world, load)
        world.goes_on(load, now_ns())
        assert not any(writer.failures for writer in load.writers), "not one failed write"
        assert (world.wait_writable(), world.timeline(load)) == (primary, timeline)
    world.check(load)


@pytest.mark.skipif(bool(disks.missing()), reason=disks.missing())
@pytest.mark.parametrize("pids_of", [raft_of, postgres_pids], ids=["Raft log", "WAL"])
def test_a_disk_slower_than_a_lease_loses_nothing(net: NetWorld, pids_of: Callable[[LocalNode], list[int]]) -> None:
    """1.5 s for each fsync on the primary: it may keep its place or lose it."""
    world, primary = net, net.wait_writable()
    with world.working() as load:
        pids = pids_of(primary)
        with slow(pids, 1500):
            world.settles(lambda: traced(pids), "every fsync is slow")
            with contextlib.suppress(subprocess.TimeoutExpired):  # an entry for its log: who asks may wait for long
                world.pgr("config", "set", "maximum_lag_on_failover=1000000", node=primary, timeout_s=10)
            slow_ns = now_ns()
            world.goes_on(load, slow_ns)
        world.wait_whole()
        world.goes_on(load, now_ns())
    world.check(load)
