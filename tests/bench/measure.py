"""The benches. Each starts its own cluster, repeats one thing, and counts what was acknowledged and what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode, private_home, processes, wait_for
from supervisor.localwriter import Writer
from tests.bench.bare import BareCluster
from tests.bench.figures import Figure, Report, cpu_s, load, memory_kb
from tests.cluster.world import Gone, World, postgres_pids
from tests.pgbare import pg_bin

SETTLE_S = 0.5
"""Writes go on for so long between two faults."""
IDLE_S = 20.0
PGBENCH_S = 8
CLIENTS = 8


class Options(NamedTuple):
    runs: int
    profile: str
    bare: bool


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def cluster(options: Options) -> Iterator[World]:
    world = World(profile=options.profile, home=private_home(f"pgr-b{os.getpid()}-"))
    try:
        world.start()
        world.wait_writable(standbys=2)
        yield world
    finally:
        world.close()


@contextmanager
def client(uri: str) -> Iterator[Writer]:
    writer = Writer(uri)
    writer.start()
    try:
        if not wait_for(lambda: bool(writer.acked), 30):
            raise RuntimeError(f"the client can't write: {writer.failures[-1:]}")
        yield writer
    finally:
        writer.stop(30)


def gap_of(writer: Writer, since_ns: int, over_ns: int = 0) -> float:
    """The longest time without an acknowledged write since then, once one was sent after ``over_ns`` (when what makes
    the gap has certainly begun; by default: then) and acknowledged."""
    if not wait_for(lambda: writer.acked_since(over_ns or since_ns) > 0, 120, 0.005):
        raise RuntimeError(f"no write within 120 s: {writer.failures[-3:]}")
    return writer.gap(since_ns).seconds


def let_write(writer: Writer) -> None:
    since_ns = now_ns()
    wait_for(lambda: now_ns() - since_ns > SETTLE_S * SECOND and writer.acked_since(since_ns) > 20, 30)


def the_primary(world: World) -> LocalNode:
    return world.wait_writable(standbys=2)


def report_of(name: str, options: Options, figures: list[Figure], *writers: tuple[Writer, str]) -> Report:
    """With the count of every row that a client was told is there."""
    report = Report(name, options.profile, figures, load())
    for writer, uri in writers:
        audit = writer.audit(uri)
        report.acknowledged += audit.acknowledged
        report.lost += len(audit.lost)
    return report


def failover(options: Options) -> Report:
    gap = Figure("write gap, node lost", "s", [], goal={"fast": 0.8}.get(options.profile, 1.4))
    back = Figure("return of the lost node", "s", [], goal=1.5)
    with cluster(options) as world, client(world.uri()) as writer:
        for run in range(options.runs):
            primary = the_primary(world)
            let_write(writer)
            killed_ns, _ = primary.kill_all()
            gap.values.append(gap_of(writer, killed_ns))
            started_ns = now_ns()
            primary.start()
            world.wait_streaming(primary)
            back.values.append((now_ns() - started_ns) / 1e9)
            say(f"{run + 1}/{options.runs}: gap {gap.values[-1]:.3f} s, back {back.values[-1]:.3f} s, load {load()}")
        writer.stop(30)
        the_primary(world)
        report = report_of("failover", options, [gap, back], (writer, world.uri()))
    if options.bare:
        with BareCluster() as bare:
            bare.create()
            with client(bare.uri()) as writer:
                for _ in range(options.runs):
                    let_write(writer)
                    lost = bare.primary
                    killed_ns = bare.lose_primary()
                    gap.bare.append(gap_of(writer, killed_ns))
                    started_ns = now_ns()
                    bare.rejoin(lost)
                    bare.wait_streaming()
                    back.bare.append((now_ns() - started_ns) / 1e9)
    return report


def postmaster(options: Options) -> Report:
    gap = Figure("write gap, postmaster killed", "s", [], goal=0.4)
    with cluster(options) as world, client(world.uri()) as writer:
        for run in range(options.runs):
            primary = the_primary(world)
            let_write(writer)
            gone = Gone(postgres_pids(primary))
            os.kill(primary.pid_of("postmaster"), signal.SIGKILL)
            gone.join(30)  # until then its backends may still acknowledge
            gap.values.append(gap_of(writer, gone.at_ns))
            say(f"{run + 1}/{options.runs}: gap {gap.values[-1]:.3f} s, load {load()}")
        writer.stop(30)
        the_primary(world)
        return report_of("postmaster", options, [gap], (writer, world.uri()))


def switchover(options: Options) -> Report:
    gap = Figure("write gap, switchover", "s", [], goal=0.3)
    with cluster(options) as world, client(world.uri()) as writer:
        for run in range(options.runs):
            the_primary(world)
            let_write(writer)
            asked_ns = now_ns()
            done = world.pgr("switchover", "--json")
            if done.returncode:
                raise RuntimeError(f"switchover refused: {done.stderr}")
            gap.values.append(gap_of(writer, asked_ns, now_ns()))
            say(f"{run + 1}/{options.runs}: gap {gap.values[-1]:.3f} s, load {load()}")
        writer.stop(30)
        the_primary(world)
        report = report_of("switchover", options, [gap], (writer, world.uri()))
    if options.bare:
        with BareCluster() as bare:
            bare.create()
            with client(bare.uri()) as writer:
                for _ in range(options.runs):
                    let_write(writer)
                    gap.bare.append(gap_of(writer, bare.switch_over()))
                    bare.wait_streaming()
    return report


def throughput(options: Options) -> Report:
    """Both clusters are up and take turns, so that noise hits both."""
    rate = Figure(f"commits, {CLIENTS} clients", "1/s", [], goal=0.97, more_is_better=True, goal_is_ratio=True)
    with cluster(options) as world, BareCluster() as bare:
        bare.create()
        primary = the_primary(world)
        for uri in (world.node_uri(primary), bare.uri()):
            with psycopg.connect(uri, autocommit=True) as connection:
                connection.execute("create table load (id bigserial primary key, filler text)")
        for run in range(options.runs):
            # Who goes first changes, since the second finds a warmer or a busier machine.
            turns: list[Callable[[], None]] = [
                lambda: rate.values.append(pgbench(world.home, primary.pg_port, world.password)),
                lambda: rate.bare.append(pgbench(world.home, bare.nodes[bare.primary].port, "")),
            ]
            for turn in turns if run % 2 == 0 else reversed(turns):
                turn()
            say(f"{run + 1}/{options.runs}: {rate.values[-1]:.0f}/s, bare {rate.bare[-1]:.0f}/s, load {load()}")
    return report_of("throughput", options, [rate])


def pgbench(home: Path, port: int, password: str) -> float:
    script = home / "insert.sql"
    script.write_text(
        "insert into load (filler) values ('0123456789012345678901234567890123456789');\n", encoding="ascii"
    )
    done = subprocess.run(
        [
            pg_bin() / "pgbench", "-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2", "-T", str(PGBENCH_S),
            "-f", script, "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "postgres",
        ],
        env=os.environ | {"PGPASSWORD": password}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    if done.returncode or not found:
        raise RuntimeError(f"pgbench: {done.stderr}")
    return float(found[1])


def footprint(options: Options) -> Report:
    """Each node is one value; everything below the parent that is not Postgres counts."""
    pss = Figure("memory of a node, PSS", "MB", [], goal=30)
    uss = Figure("memory of a node, USS", "MB", [], goal=20)
    lead = Figure("idle CPU, primary", "% of a core", [], goal=1.0)
    follow = Figure("idle CPU, standby", "% of a core", [], goal=0.5)
    notes: list[str] = []
    with cluster(options) as world:
        primary = the_primary(world)
        for _ in range(options.runs):
            before = {pid: cpu_s(pid) for node in world.nodes for pid in own_pids(node)}
            began_ns = now_ns()
            wait_for(lambda began_ns=began_ns: now_ns() - began_ns > IDLE_S * SECOND, 2 * IDLE_S, 0.5)  # type: ignore[misc]  # bound now
            took_s = (now_ns() - began_ns) / 1e9
            for node in world.nodes:
                pids = own_pids(node)
                memory = {pid: memory_kb(pid) for pid in pids}
                pss.values.append(sum(kb for kb, _ in memory.values()) / 1024)
                uss.values.append(sum(kb for _, kb in memory.values()) / 1024)
                used = sum(cpu_s(pid) - before.get(pid, 0) for pid in pids) / took_s * 100
                (lead if node is primary else follow).values.append(used)
                table = processes()
                parts = ", ".join(
                    f"{table[pid].comm} {kb[0] / 1024:.1f}/{kb[1] / 1024:.1f}" for pid, kb in memory.items()
                )
                notes.append(f"{node.name}: {parts} MB PSS/USS")
    report = report_of("footprint", options, [pss, uss, lead, follow])
    report.notes = notes
    return report


def own_pids(node: LocalNode) -> list[int]:
    table = processes()
    return [pid for pid in node.pids() if pid in table and table[pid].comm != "postgres"]


def coldstart(options: Options) -> Report:
    start = Figure("empty to writable, 2 streaming", "s", [], goal=4)
    for run in range(options.runs):
        world = World(profile=options.profile, home=private_home(f"pgr-b{os.getpid()}-"))
        try:
            began_ns = now_ns()
            world.start()
            world.wait_writable(standbys=2)
            start.values.append((now_ns() - began_ns) / 1e9)
        finally:
            world.close()
        if options.bare:
            with BareCluster() as bare:
                began_ns = now_ns()
                bare.create()
                start.bare.append((now_ns() - began_ns) / 1e9)
        took = [round(values[-1], 2) for values in (start.values, start.bare) if values]
        say(f"{run + 1}/{options.runs}: {took} s, load {load()}")
    return report_of("coldstart", options, [start])
