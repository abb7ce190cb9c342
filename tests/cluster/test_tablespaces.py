"""Tablespaces: the same path on every node, outside PGDATA, so each node here sees a directory of its own there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from supervisor.localcluster import LocalNode, own
from tests.cluster.world import World, rare

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.root,  # mounts
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare: apt-get install util-linux"),
]


class Mounted(LocalNode):
    """Below ``shared`` it has its own file system."""

    shared: Path

    @property
    def own_place(self) -> Path:
        return self.data.parent / f"{self.name}-space"

    def command(self) -> list[str]:
        mount = f'mount --bind {self.own_place} {self.shared} && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", *super().command()]


@pytest.fixture
def spaced(make_world: Callable[..., World]) -> World:
    world = make_world(nodes=2)
    shared = world.home / "space"
    shared.mkdir()
    own(shared)
    for node in world.nodes:
        node.__class__ = Mounted
        assert isinstance(node, Mounted)
        node.shared = shared
        (node.own_place / "fast").mkdir(parents=True)
        own(node.own_place)
        own(node.own_place / "fast")
    return world


def content(node: LocalNode) -> list[str]:
    assert isinstance(node, Mounted)
    return sorted(entry.name for entry in (node.own_place / "fast").iterdir())


@pytest.mark.slow
def test_a_copy_brings_its_tablespaces_and_the_old_ones_are_kept(spaced: World) -> None:
    world = spaced
    world.start()
    primary = world.wait_writable(standbys=1)
    place = world.home / "space" / "fast"
    with psycopg.connect(world.node_uri(primary), autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE fast LOCATION '{place}'".encode())
        connection.execute("CREATE TABLE far (id int) TABLESPACE fast")
        connection.execute("INSERT INTO far SELECT generate_series(1, 1000)")
    (standby,) = world.standbys()
    world.wait_replayed(standby)
    standby.kill_all()
    mark = standby.data / "pgdata" / "global" / "pg_control"
    mark.write_bytes(bytes(8192))  # nothing that could be started, or rewound
    standby.start()
    world.settles(lambda: bool(world.logged(standby, "clone.end")[1:]), "it is copied again")
    world.wait_streaming(standby)
    assert world.query(standby, "SELECT count(*), max(id) FROM far") == [(1000, 1000)]
    assert world.query(standby, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'") == [
        (str(place),)
    ]
    kept = content(standby)
    assert [name for name in kept if name.startswith("PG_")], kept
    assert [name for name in kept if name.startswith("pgr.replaced-")], "the old files are moved aside, not deleted"
    assert "pgr.new" not in kept
    (old,) = [path for path in (standby.data / "salvage").iterdir() if path.name.endswith("pgdata-replaced")]
    (link,) = [str(entry.readlink()) for entry in (old / "pg_tblspc").iterdir()]
    assert link.startswith(f"{place}/pgr.replaced-"), "the old copy still has its own"
    assert world.pgr("switchover", node=standby).returncode == 0
    world.wait_whole()
    assert world.query(primary, "SELECT count(*) FROM far") == [(1000,)]


@rare
def test_files_of_somebody_else_are_left_alone_and_named(spaced: World) -> None:
    """As on one machine for two nodes: what is there may be the data of a Postgres that runs."""
    world = spaced
    world.start()
    primary = world.wait_writable(standbys=1)
    (standby,) = world.standbys()
    assert isinstance(standby, Mounted)
    place = world.home / "space" / "fast"
    with psycopg.connect(world.node_uri(primary), autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE fast LOCATION '{place}'".encode())
    world.wait_replayed(standby)
    assert standby.stop(60) == 0
    (foreign,) = (standby.own_place / "fast").iterdir()
    shutil.rmtree(standby.data / "pgdata")  # nothing of this node says any more that it is its own
    standby.start()
    refused = f"the tablespace directory {place} holds files"
    world.settles(
        lambda: any(refused in str(e["fields"].get("error")) for e in world.logged(standby, "step.failed")),
        "it is refused, and says why",
    )
    assert foreign.exists()
    shutil.rmtree(foreign)
    world.wait_streaming(standby)
