"""Members come and go while clients write: a copy first, then the vote, then the seat; and backwards."""

from __future__ import annotations

import pytest

from tests.cluster.world import World

pytestmark = pytest.mark.cluster


def test_a_fourth_node_joins_under_load(world: World) -> None:
    node = world.add("d")
    with world.writing() as writer:
        node.start()
        world.wait_members("a b c d", "3 of a b c d")
    assert not writer.failures
    world.check_no_loss(writer, everywhere=True)
