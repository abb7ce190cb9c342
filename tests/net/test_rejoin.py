"""Interleaving 20: the copy of a returning node is half made when the node dies, or the one it copies from."""

from __future__ import annotations

import shutil
import signal

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode, processes
from tests.net.network import POSTGRES
from tests.net.world import NetWorld, Workload, send

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

FILL = "select pg_logical_emit_message(true, 'test', repeat('x', 1000000)) from generate_series(1, 40)"
"""40 MB, so that there is something to do."""


def a_lost_primary(world: NetWorld, load: Workload, program: str) -> LocalNode:
    """It has WAL of its own (pg_rewind) or no data at all (pg_basebackup), and is down; another one is primary."""
    old, timeline = world.wait_writable(), world.timeline(load)
    world.isolate(old, port=POSTGRES)
    with psycopg.connect(world.node_uri(old), autocommit=True) as session:
        session.execute("set synchronous_commit = local")
        session.execute(FILL)
    world.power_cut(old)
    world.heal()
    if program == "pg_basebackup":
        shutil.move(old.data / "pgdata", world.home / "lost-disk")
    world.moves_on(load, timeline)
    return old


def held(world: NetWorld, node: LocalNode, program: str) -> set[int]:
    """The processes of this program of the node, stopped as soon as they are seen."""
    found: set[int] = set()

    def there() -> bool:
        table, pids = processes(), node.pids()
        found.update(pid for pid in pids if pid in table and table[pid].comm == program)
        for pid in found:
            send(pid, signal.SIGSTOP)
        return bool(found)

    world.settles(there, f"{program} on {node.name}")
    return found


@pytest.mark.parametrize("program", ["pg_rewind", "pg_basebackup"])
@pytest.mark.parametrize("dies", ["the node", "the program", "the source"])
def test_a_copy_half_made(net: NetWorld, program: str, dies: str) -> None:
    world = net
    with world.working() as load:
        old = a_lost_primary(world, load, program)
        old.start()
        pids = held(world, old, program)
        match dies:
            case "the node":
                world.power_cut(old)
                old.start()
            case "the program":
                for pid in pids:
                    send(pid, signal.SIGKILL)
            case _:
                source = world.wait_writable()
                world.power_cut(source)
                for pid in pids:
                    send(pid, signal.SIGCONT)
                source.start()
        world.wait_whole()
        world.goes_on(load, now_ns())
    world.check(load)
