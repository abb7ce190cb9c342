"""Bad input and trouble that only a running cluster shows: a clear error with a hint, its exit code, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from consensus.keys import new_key
from fencing.clock import now_ns
from supervisor.localcluster import LocalNode, write_secret
from tests.cluster.world import World

pytestmark = pytest.mark.cluster


def mentions(world: World, node: LocalNode, *words: str) -> bool:
    """Is there one event in the log of ``node`` that has all these words?"""
    return any(all(word in text for word in words) for text in map(json.dumps, node.events()))


def test_a_silent_founding_peer_is_waited_for_and_named(make_world: Callable[..., World]) -> None:
    world = make_world()
    a, b, c = world.nodes
    a.start()
    b.start()
    for node in (a, b):
        world.settles(lambda node=node: mentions(world, node, "founding", '"c"'), f"{node.name} names c")  # type: ignore[misc]  # bound now
    assert world.primary() is None
    assert not (a.data / "pgdata" / "PG_VERSION").exists()
    assert not (b.data / "pgdata" / "PG_VERSION").exists()
    c.start()
    world.wait_writable(standbys=2)


def test_a_node_with_another_cluster_key_stays_outside(shared_world: World) -> None:
    """Also where its own disk says who the primary was: nobody has confirmed that to it."""
    world = shared_world
    node = world.standbys()[0]
    assert node.stop(60) == 0
    world.settles(lambda: not world.streams(node), f"{node.name} is gone")
    right = node.flags["cluster-key"]
    node.flags["cluster-key"] = str(write_secret(world.home / "other.key", new_key()))
    attached = len(world.logged(node, "follow.attached"))
    with world.writing() as writer:
        node.start()
        others = [other for other in world.nodes if other is not node]
        world.settles(lambda: mentions(world, node, "key"), f"{node.name} says that its key is another")
        for other in others:
            world.settles(lambda other=other: mentions(world, other, "key", f'"{node.name}"'), f"{other.name} names it")  # type: ignore[misc]  # bound now
        at_ns = now_ns()
        world.settles(lambda: writer.acked_since(at_ns) > 50, "writes go on")
        assert not world.streams(node)
        assert len(world.logged(node, "follow.attached")) == attached
        node.stop(60)
        node.flags["cluster-key"] = right
        node.start()
        world.wait_streaming(node)
    assert not writer.failures
    world.check_no_loss(writer, everywhere=True)


def test_a_data_directory_of_another_cluster_is_refused(shared_world: World, make_world: Callable[..., World]) -> None:
    world = shared_world
    other = make_world(nodes=1)
    other.start()
    other.wait_writable()
    other.nodes[0].stop(60)
    node = world.standbys()[0]
    assert node.stop(60) == 0
    shutil.move(node.data / "pgdata", world.home / "aside")
    shutil.move(other.nodes[0].data / "pgdata", node.data / "pgdata")
    code, stderr = world.run_node(node)
    assert code == 78, stderr
    assert "hint" in stderr
    assert (node.data / "pgdata" / "PG_VERSION").exists(), "nothing was removed"
    shutil.rmtree(node.data / "pgdata")
    shutil.move(world.home / "aside", node.data / "pgdata")
    node.start()
    world.wait_streaming(node)


def test_a_second_supervisor_on_the_same_data_is_refused(shared_world: World) -> None:
    world = shared_world
    node = world.standbys()[0]
    code, stderr = world.run_node(node)
    assert code == 78, stderr
    assert str(node.pid) in stderr, "the first one is named"
    assert world.streams(node)
