"""Worlds in network namespaces; where there can be none, the tests are skipped and say why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import FAILED
from tests.net.network import missing
from tests.net.world import NetWorld

HERE = os.path.dirname(__file__)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    everything = os.environ.get("PGR_TEST_LEVEL", "quick") == "all"
    for item in items:
        if not str(item.path).startswith(HERE):
            continue
        if not everything and not item.get_closest_marker("quick"):
            item.add_marker(pytest.mark.skip(reason="not of the quick part: make net"))
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


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
