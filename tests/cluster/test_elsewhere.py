"""Data on another file system than DIR, and WAL on a third: rewound and copied anew like any other."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from supervisor import segments
from supervisor.localcluster import LocalNode, own
from tests.cluster.world import World, rare

SHM = "/dev/shm"  # what is made there is a directory of its own

pytestmark = [
    pytest.mark.cluster,
    rare,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.access(SHM, os.W_OK), reason=f"needs a second file system: {SHM}"),
]


@pytest.fixture
def apart(make_world: Callable[..., World]) -> Iterator[tuple[World, Path]]:
    """Three nodes with PGDATA below the path; not started."""
    place = Path(tempfile.mkdtemp(prefix="pgr-w", dir=SHM))  # it is a directory of its own
    own(place)
    world = make_world()
    for node in world.nodes:
        node.flags["pgdata"] = str(place / node.name / "pgdata")
        (place / node.name).mkdir()
        own(place / node.name)
    try:
        assert place.stat().st_dev != world.home.stat().st_dev
        yield world, place
    finally:
        for node in world.nodes:
            if node.process is not None:
                node.kill_all()
        segments.remove(place)
        shutil.rmtree(place)


def pgdata(node: LocalNode) -> Path:
    return Path(node.flags["pgdata"])


def wal_of(node: LocalNode) -> Path:
    return node.data / "wal"


def move_wal(node: LocalNode) -> None:
    """As people do it, Postgres being down."""
    subprocess.run(["cp", "-a", pgdata(node) / "pg_wal", wal_of(node)], check=True)
    shutil.rmtree(pgdata(node) / "pg_wal")
    (pgdata(node) / "pg_wal").symlink_to(wal_of(node))


def logged(world: World, node: LocalNode, event: str) -> int:
    return sum(e["event"] == event for e in world.logged(node, event))


def test_wal_on_a_disk_of_its_own_stays_there(apart: tuple[World, Path]) -> None:
    world, place = apart
    world.start()
    world.wait_writable(standbys=2)
    for node in world.nodes:
        assert node.stop(60) == 0
        move_wal(node)
    world.start()
    primary = world.wait_writable(standbys=2)
    with world.writing() as writer:
        # A deposed primary with WAL of its own is rewound.
        for standby in world.standbys():
            standby.kill_all()
        with psycopg.connect(world.node_uri(primary), autocommit=True) as alone:
            alone.execute("SET synchronous_commit = local")
            alone.execute("SELECT pg_logical_emit_message(true, 'alone', 'x')")
        primary.kill_all()
        others = [n for n in world.nodes if n is not primary]
        for standby in others:
            standby.start()
        world.settles(lambda: world.primary() is not None, "a new primary")
        primary.start()
        world.settles(lambda: logged(world, primary, "rewind.end") == 1, "it is rewound")
        world.wait_streaming(primary)
        assert (pgdata(primary) / "pg_wal").readlink() == wal_of(primary)
        assert any(p.name.endswith("-wal") for p in (primary.data / "salvage").iterdir())

        # A standby that is good for nothing is copied anew.
        standby = next(n for n in world.standbys() if n is not primary)
        clones = logged(world, standby, "clone.end")
        standby.kill_all()
        (pgdata(standby) / "global" / "pg_control").write_bytes(bytes(8192))
        standby.start()
        world.settles(lambda: logged(world, standby, "clone.end") > clones, "it is copied again")
        world.wait_streaming(standby)
    assert (pgdata(standby) / "pg_wal").readlink() == wal_of(standby), "where it was"
    there = {entry.name for entry in wal_of(standby).iterdir()}
    assert "pgr.new" not in there
    (aside,) = [wal_of(standby) / name for name in there if name.startswith("pgr.replaced-")]
    (replaced,) = (place / standby.name).glob("*-pgdata-replaced")
    assert (replaced / "pg_wal").readlink() == aside, "the old copy still has its own"
    assert [p.name for p in aside.iterdir() if len(p.name) == 24], "nothing of it is deleted"
    moved = [e["fields"]["target"] for e in world.logged(standby, "data.moved_aside")]
    assert str(replaced) in moved, "a person is told where"
    world.check_no_loss(writer, everywhere=True)


def test_a_wal_disk_that_is_not_mounted_is_waited_for(apart: tuple[World, Path]) -> None:
    """Its content may be the only copy of something; and elsewhere there may be no room for WAL."""
    world, _ = apart
    world.start()
    world.wait_writable(standbys=2)
    standby = world.standbys()[0]
    assert standby.stop(60) == 0
    move_wal(standby)
    (pgdata(standby) / "global" / "pg_control").write_bytes(bytes(8192))
    gone = wal_of(standby).rename(standby.data / "unmounted")
    standby.start()
    said = f"leads to {wal_of(standby)}, which is not there"
    world.settles(lambda: any(said in str(e["fields"]) for e in world.logged(standby, "step.failed")), "it says so")
    gone.rename(wal_of(standby))
    world.wait_streaming(standby)
    assert (pgdata(standby) / "pg_wal").readlink() == wal_of(standby)
