"""The disk of the primary's Postgres hangs, that of its control plane does not: killed backends stay, in state D."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor import segments
from supervisor.localcluster import own
from tests.cluster.world import World, rare
from tests.hangingdisk import HangingDisk, state

pytestmark = [pytest.mark.cluster, rare, pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture
def disks(make_world: Callable[..., World]) -> Iterator[tuple[World, dict[str, HangingDisk]]]:
    """Three nodes, PGDATA of each on a disk of its own; not started."""
    world = make_world()
    made: dict[str, HangingDisk] = {}
    try:
        for node in world.nodes:
            place = world.home / f"{node.name}-disk"
            place.mkdir()
            own(place)
            made[node.name] = HangingDisk(place)
            node.flags["pgdata"] = str(place / "pgdata")
        yield world, made
    finally:
        for disk in made.values():
            disk.go_on()
        for node in world.nodes:
            if node.process is not None:
                node.kill_all()
        segments.remove(world.home)
        for disk in made.values():
            disk.close()


def working_in(pgdata: Path) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd") == str(pgdata):
                found.append(int(entry))
        except OSError:
            continue  # it ended
    return found


def test_another_takes_over_and_nothing_is_started_beside_what_is_left(
    disks: tuple[World, dict[str, HangingDisk]],
) -> None:
    world, made = disks
    world.start()
    primary = world.wait_writable(standbys=2)
    disk, pgdata = made[primary.name], Path(primary.flags["pgdata"])
    with world.writing() as writer:
        postmaster = int((pgdata / "postmaster.pid").read_text(encoding="utf-8").partition("\n")[0])
        disk.hang()
        world.settles(lambda: "D" in map(state, working_in(pgdata)), "a backend is stuck in its write")
        killed_ns = now_ns()
        os.kill(postmaster, signal.SIGKILL)

        def reported() -> bool:
            seen = primary.status()
            row = seen.member(primary.name) if seen else None
            return row is not None and row.state == "not fenced"

        world.settles(reported, "fenced: not yet")
        world.settles(lambda: world.primary() not in (None, primary), "another is primary")
        took_s = (now_ns() - killed_ns) / 1e9
        print(f"another is primary, the first not fenced: after {took_s:.2f} s, load {os.getloadavg()[0]:.1f}")
        # Not the client above: its connection is open as long as its backend is there.
        new = world.wait_writable()
        with psycopg.connect(world.node_uri(new), autocommit=True) as session:
            session.execute("CREATE TABLE meanwhile (a int)")
        stuck = working_in(pgdata)
        assert stuck, "it still hangs"
        assert reported(), "nothing is started beside it"
        disk.go_on()
        world.writes_again(writer, now_ns())
        world.wait_streaming(primary)
        assert not set(stuck) & set(working_in(pgdata))
    world.check_no_loss(writer, everywhere=True)
