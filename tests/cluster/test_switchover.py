"""A planned change of primary under load."""

from __future__ import annotations

import json

import pytest

from fencing.clock import now_ns
from tests.cluster.world import World

pytestmark = pytest.mark.cluster


def test_switchover_to_each_node_in_turn(shared_world: World) -> None:
    world = shared_world
    with world.writing() as writer:
        for target in ("b", "c", "a"):
            before = world.wait_writable()
            to = target if target != before.name else next(node.name for node in world.nodes if node is not before)
            asked_ns = now_ns()
            done = world.pgr("switchover", "--to", to, "--json", node=world.standbys()[0])
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout)
            assert (answer["from"], answer["to"]) == (before.name, to)
            world.writes_again(writer, asked_ns)
            world.settles(lambda to=to: world[to].is_primary(), f"{to} is the primary")  # type: ignore[misc]  # bound now
            world.wait_streaming(before)
    world.check_no_loss(writer, everywhere=True)
    reconnects = [failure for failure in writer.failures if failure.id]
    assert len(reconnects) <= 3, f"no error but the reconnect, once per switchover: {reconnects}"
    history = json.loads(world.pgr("history", "--json").stdout)
    assert [event["kind"] for event in history].count("switchover") == 3


def test_switchover_to_nobody_is_refused(shared_world: World) -> None:
    world = shared_world
    primary = world.wait_writable()
    for to in ("nobody", primary.name):
        done = world.pgr("switchover", "--to", to)
        assert done.returncode in (64, 78)
        assert "hint:" in done.stderr
    assert world.primary() is primary


def test_a_primary_that_is_stopped_hands_over_first(world: World) -> None:
    primary = world.wait_writable()
    with world.writing() as writer:
        asked_ns = now_ns()
        assert primary.stop(60) == 0
        world.writes_again(writer, asked_ns)
        primary.start()
        world.wait_streaming(primary)
    world.check_no_loss(writer, everywhere=True)
    assert writer.gap(asked_ns).seconds < 10
