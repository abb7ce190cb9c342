"""Fixtures that start things: everything that was started is ended by pid, also when the test fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.cluster.world import World

settings.register_profile("dev", max_examples=50, deadline=None, database=None)
settings.register_profile("ci", max_examples=300, deadline=None, database=None)
settings.load_profile("dev" if os.environ.get("PGR_TEST_LEVEL", "quick") == "quick" else "ci")

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for node in (item, item.getparent(pytest.Module)):
        if node is not None:
            node.stash[FAILED] = node.stash.get(FAILED, False) or report.failed
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    quick = os.environ.get("PGR_TEST_LEVEL", "quick") == "quick"
    for item in items:
        if quick and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: bin/test --ci or --all"))
        if item.get_closest_marker("cluster") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(240))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def make_world(request: pytest.FixtureRequest) -> Iterator[Callable[..., World]]:
    """``make_world(nodes=3, profile="default", ...)``: see `World`; not started yet."""
    worlds: list[World] = []

    def make(**options: object) -> World:
        worlds.append(World(**options))  # type: ignore[arg-type]  # passed on as they are
        return worlds[-1]

    yield make
    for world in worlds:
        world.close(failed=request.node.stash.get(FAILED, False))


@pytest.fixture(scope="module")
def shared_world(request: pytest.FixtureRequest) -> Iterator[World]:
    """One `world` for all tests of a file that leave it as they found it; to found one takes longer than they do."""
    world = World()
    try:
        world.start()
        world.wait_writable(standbys=2)
        yield world
    finally:
        world.close(failed=request.node.stash.get(FAILED, False))


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """Three nodes with the default profile, writable, both standbys streaming."""
    world = make_world()
    world.start()
    world.wait_writable(standbys=2)
    return world


@pytest.fixture(scope="session")
def checkout() -> Path:
    return Path(__file__).resolve().parents[1]
