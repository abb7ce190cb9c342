"""Members come and go while clients write: a copy first, then the vote, then the seat; and backwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from supervisor.localcluster import own
from tests.cluster.world import World

pytestmark = pytest.mark.cluster

SLOTS = "select 1 from pg_replication_slots where slot_name = 'pgr_{}'"


@pytest.fixture
def calm(make_world: Callable[..., World]) -> World:
    """Three nodes whose lease stands a busy machine: here a failed write is an error, not an accident."""
    world = make_world(profile="cloud")
    world.start()
    world.wait_writable(standbys=2)
    return world


def test_a_fourth_node_joins_under_load(calm: World) -> None:
    world, node = calm, calm.add("d")
    with world.writing() as writer:
        node.start()
        world.wait_members("a b c d", "3 of a b c d")
    assert not writer.failures
    world.check_no_loss(writer, everywhere=True)


@pytest.mark.parametrize("lost", ["raft", "everything"])
def test_a_node_that_lost_its_state_comes_back_as_a_new_one(calm: World, lost: str) -> None:
    """It has no vote and no seat until it has a new copy; what it had is kept, and never started."""
    world, node, before = calm, calm.standbys()[0], calm.asked_status()
    with world.writing() as writer:
        assert node.stop(60) == 0
        shutil.rmtree(node.data / "raft" if lost == "raft" else node.data)
        if lost == "everything":
            node.data.mkdir(mode=0o700)
            own(node.data)
        node.start()
        world.settles(lambda: bool(world.logged(node, "clone.begin")[-1:]), "it is copied anew")
        world.wait_members("a b c", "2 of a b c")
        world.wait_streaming(node)
    starts = [e["event"] for e in world.logged(node, "") if e["event"] in ("postgres.starting", "clone.end")]
    assert starts[-2:] == ["clone.end", "postgres.starting"]
    now = world.asked_status()
    incarnations = [{m["name"]: m["incarnation"] for m in seen["members"]} for seen in (before, now)]
    assert {name for name, one in incarnations[0].items() if incarnations[1][name] != one} == {node.name}
    if lost == "raft":
        assert world.logged(node, "data.of_another_life")
        assert any(p.name.endswith("pgdata-replaced") for p in (node.data / "salvage").iterdir()), "moved aside, kept"
    assert not writer.failures
    world.check_no_loss(writer, everywhere=True)


def test_a_removed_node_stops_and_stays_quiet(calm: World) -> None:
    world, node = calm, calm.add("d")
    node.start()
    world.wait_members("a b c d", "3 of a b c d")
    with world.writing() as writer:
        done = world.pgr("member", "remove", "d")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "d: no member any more\n"
        assert "is to be removed" in done.stderr
        assert node.wait(30) == 0, "an end as asked for"
        world.wait_members("a b c", "2 of a b c")
        primary = world.primary()
        assert primary is not None
        world.settles(lambda: not world.query(primary, SLOTS.format("d")), "its slot holds no WAL")
        code, stderr = world.run_node(node)
        assert code == 78, stderr
        assert "d was removed" in stderr
        assert "hint" in stderr
    assert not writer.failures
    world.check_no_loss(writer)
