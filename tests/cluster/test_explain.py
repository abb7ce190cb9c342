"""`pgr explain`, dry runs and what a person decides with them, on real clusters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.localcluster import LocalNode
from tests.cluster.world import World

pytestmark = pytest.mark.cluster


def explained(world: World, node: LocalNode) -> dict[str, Any]:
    done = world.pgr("explain", "--json", node=node)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def why(election: dict[str, Any], name: str) -> str:
    return next(str(row["why"]) for row in election["candidates"] if row["name"] == name)


def wait_explained(
    world: World, node: LocalNode, condition: Callable[[dict[str, Any]], bool], what: str, seconds: float = 60
) -> dict[str, Any]:
    """What `pgr explain` says there, once it is that."""
    found: list[dict[str, Any]] = []

    def reached() -> bool:
        found.append(explained(world, node))
        return condition(found[-1])

    world.settles(reached, f"{node.name}: {what}", lambda: str(found[-1]), seconds)
    return found[-1]


def dry(world: World, node: LocalNode, *words: str) -> tuple[int, dict[str, Any]]:
    done = world.pgr(*words, "--dry-run", "--json", node=node)
    found: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) is (found["refusal"] is None)
    assert ("hint:" in done.stderr) is (found["refusal"] is not None)
    return done.returncode, found


def _stuck(found: dict[str, Any]) -> bool:
    missing = found["election"] and len(found["election"]["missing"]) == 2
    return found["state"] == "no primary" and bool(missing and found["overruled"])


@pytest.mark.slow
def test_explain_and_dry_runs_from_health_to_the_last_copy(world: World) -> None:
    """All is well; then two of three are lost, in an order that leaves a majority without a read quorum."""
    primary = world.wait_writable()
    last, other = world.standbys()
    both = sorted((last.name, other.name))
    for node in world.nodes:
        found = wait_explained(world, node, lambda f: bool(f["election"]["winners"] == both), f"{both} would win")
        assert found["state"] == "open"
        assert found["assumed_lost"] == primary.name
        assert found["election"]["acknowledged"] is False
        assert found["reign"]["why"].endswith("needed promises")
    page = world.pgr("explain", node=other)
    assert page.stdout.startswith(f"{primary.name} of term "), page.stderr
    assert f"if {primary.name} were lost now" in page.stdout

    code, found = dry(world, last, "switchover", "--to", other.name)
    assert (code, found["forecast"]["winners"], found["forecast"]["lost_bytes"]) == (0, [other.name], 0)
    assert dry(world, last, "switchover", "--to", primary.name)[0] == 64
    assert world.primary() is primary, "nothing was done"
    assert "switchover" not in [e["kind"] for e in world.asked_status(primary)["history"]]

    other.kill_all()
    primary.kill_all()
    alone = wait_explained(world, last, lambda f: f["state"] == "no leader", "it is alone")
    assert alone["source"].startswith(f"as {last.name} last knew; ")
    found = wait_explained(world, last, lambda f: f["election"]["voters_up"] == 1, "and knows it")
    assert {primary.name, other.name} == set(found["election"]["missing"])
    assert "start " in found["hints"][0]
    code, told = dry(world, last, "failover", "--accept-data-loss")
    assert (code, told["forecast"]["winners"]) == (75, []), "nobody can decide anything without a majority"
    asked = world.pgr("failover", "--accept-data-loss", node=last)
    assert asked.returncode == 75
    assert f"hears of 1 of 3 voters, not of {', '.join(sorted((primary.name, other.name)))}" in asked.stderr

    (other.data / "pgdata").rename(other.data / "pgdata.lost")  # a voter without data: a majority, no read quorum
    other.start()
    for node in (last, other):
        found = wait_explained(world, node, _stuck, "it is stuck", seconds=90)
        assert "no position" in why(found["election"], other.name)
        assert found["election"]["winners"] == []
        assert set(found["election"]["missing"]) == {primary.name, other.name}
        assert found["overruled"]["winners"] == [last.name]
        assert found["overruled"]["acknowledged"] is True
        assert any(f"pgr failover --to {last.name} --accept-data-loss" in hint for hint in found["hints"])
    code, found = dry(world, other, "failover")
    assert (code, found["forecast"]["missing"]) == (78, sorted([primary.name, other.name]))
    code, found = dry(world, other, "failover", "--accept-data-loss")
    assert (code, found["forecast"]["winners"]) == (0, [last.name])
    assert world.primary() is None
