"""Interleaving 4: of the two that are left one has more of the Raft log and the other more WAL.

Neither can do it alone: votes go by the log, promotions by the WAL, so the one leads until the other has caught up.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode
from tests.cluster.test_quorum_promises import mutate
from tests.net.mutants import NOBODY_HANDS_OVER, WHO_LEADS_IS_PROMOTED
from tests.net.network import CONSENSUS, POSTGRES, between
from tests.net.world import NetWorld, Workload

pytestmark = pytest.mark.cluster

LAG_BYTES = 7 << 20
"""Of maximum_lag_on_failover: a mark in the log, without effect with quorum commit."""


def knows(node: LocalNode) -> bool:
    """Has it applied the mark?"""
    code, body = node.get("/config")
    return code == 200 and json.loads(body)["maximum_lag_on_failover"] == LAG_BYTES


def parted(world: NetWorld, load: Workload) -> tuple[LocalNode, LocalNode]:
    """(more log and less WAL; more WAL and less log); the primary is off, and both are alone for now."""
    old = world.wait_writable()
    more_log, more_wal = world.others(old)
    rest = [old.name, more_log.name]
    cut = world.cut(between([more_log.name], [old.name, more_wal.name], POSTGRES))
    world.cut(between([more_wal.name], rest, CONSENSUS))
    done = world.pgr("config", "set", f"maximum_lag_on_failover={LAG_BYTES}", node=old)
    assert done.returncode == 0, done.stderr
    world.settles(lambda: knows(more_log), "one has the entry")
    world.settles(lambda: load.acked_since(cut.end_ns) > 100, "commits that only the other one has")
    assert not knows(more_wal)
    world.power_cut(old)
    return more_log, more_wal


def meet(world: NetWorld, more_log: LocalNode, more_wal: LocalNode) -> None:
    """These two; what the kernel of the third one still has to send is lost, as it would be without power."""
    for port in (POSTGRES, CONSENSUS):
        world.network.mend(between([more_log.name], [more_wal.name], port))


def promotions(world: NetWorld, node: LocalNode) -> int:
    return len(world.granted(node.name))


@pytest.mark.parametrize("begins", ["more log", "more WAL"])
def test_one_has_more_of_the_log_and_the_other_more_wal(net: NetWorld, begins: str) -> None:
    """``begins``: who is there first, and campaigns as long as nobody answers."""
    world = net
    with world.working() as load:
        old, timeline = world.wait_writable(), world.timeline(load)
        more_log, more_wal = parted(world, load)
        before = promotions(world, more_log)
        late = more_wal if begins == "more log" else more_log
        world.freeze(late)
        meet(world, more_log, more_wal)
        met_ns = now_ns()
        world.settles(lambda: now_ns() - met_ns > 3 * SECOND, "three seconds: two elections")
        world.thaw(late)
        world.moves_on(load, timeline)
        world.settles(lambda: world.primary() is more_wal, "the one with more WAL is open", world.describe)
        assert promotions(world, more_log) == before, "the other one only led"
        assert knows(more_wal), "it has caught up with the log"
        world.heal()
        old.start()
        world.wait_whole()
        world.goes_on(load, now_ns())
    world.check(load)


@pytest.mark.slow
def test_control_where_the_log_alone_decides_acknowledged_rows_are_lost(make_net: Callable[..., NetWorld]) -> None:
    world = make_net()
    for node in world.nodes:
        mutate(world, node, WHO_LEADS_IS_PROMOTED)
    world.begin()
    with world.working() as load:
        more_log, more_wal = parted(world, load)
        meet(world, more_log, more_wal)
        world.settles(lambda: world.primary() is more_log, "the log decides", world.describe)
    world.wait_whole()
    assert world.tally(load).lost


@pytest.mark.slow
def test_control_where_both_are_asked_of_one_node_a_live_majority_has_no_primary(
    make_net: Callable[..., NetWorld],
) -> None:
    world = make_net()
    for node in world.nodes:
        mutate(world, node, NOBODY_HANDS_OVER)
    world.begin()
    with world.working() as load:
        more_log, more_wal = parted(world, load)
        meet(world, more_log, more_wal)
        waits = f"only {more_wal.name} may lead"
        world.settles(lambda: waits in world.describe(), "the leader waits for who cannot lead", world.describe)
        stuck_ns = now_ns()
        world.settles(lambda: now_ns() - stuck_ns > 10 * SECOND, "ten seconds: several elections")
        assert world.primary() is None
        assert waits in world.describe()
