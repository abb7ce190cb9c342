"""Worlds in network namespaces; where there can be none, the tests are skipped and say why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import FAILED
from tests.net.network import missing
from tests.net.world import NetWorld

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of these tests only the quick part, unless everything is asked for (make net)."""
    if os.environ.get("PGR_TEST_LEVEL", "quick") == "all":
        return
    left_out = [item for item in items if HERE in item.path.parents and not item.get_closest_marker("quick")]
    items[:] = [item for item in items if item not in left_out]
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def make_net(request: pytest.FixtureRequest) -> Iterator[Callable[..., NetWorld]]:
    """``make_net(nodes=3, profile="default", commit="quorum")``: see `NetWorld`; not started yet."""
    if why := missing():
        pytest.skip(why)
    worlds: list[NetWorld] = []

    def make(**options: object) -> NetWorld:
        worlds.append(NetWorld(**options))  # type: ignore[arg-type]  # passed on as they are
        return worlds[-1]

    yield make
    for world in worlds:
        world.close(failed=request.node.stash.get(FAILED, False))


@pytest.fixture
def net(make_net: Callable[..., NetWorld]) -> NetWorld:
    """Three nodes, writable, both standbys streaming."""
    world = make_net()
    world.begin()
    return world
