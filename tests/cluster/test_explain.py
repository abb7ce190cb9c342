"""`pgr explain`, dry runs and what a person decides with them, on real clusters."""

from __future__ import annotations

import json
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


def wait_foretold(world: World, node: LocalNode, *winners: str) -> None:
    """Until this node knows positions by which these would win."""

    def known() -> bool:
        return bool(explained(world, node)["election"]["winners"] == sorted(winners))

    world.settles(known, f"{winners} would win", lambda: str(explained(world, node)), seconds=20)


def dry(world: World, node: LocalNode, *words: str) -> tuple[int, dict[str, Any]]:
    done = world.pgr(*words, "--dry-run", "--json", node=node)
    found: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) is (found["refusal"] is None)
    assert ("hint:" in done.stderr) is (found["refusal"] is not None)
    return done.returncode, found


def test_explain_and_dry_runs_from_health_to_the_last_copy(world: World) -> None:
    """All is well; then two of three are lost, in an order that leaves a majority without a read quorum."""
    primary = world.primary()
    assert primary is not None
    last, other = world.standbys()
    for node in world.nodes:
        world.settles(lambda node=node: explained(world, node)["state"] == "open", f"{node.name} knows it")  # type: ignore[misc]  # bound now
        wait_foretold(world, node, last.name, other.name)
        found = explained(world, node)
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
    world.settles(lambda: explained(world, last)["state"] == "no leader", "the last one is alone")
    found = explained(world, last)
    assert found["election"]["voters_up"] == 1
    assert {primary.name, other.name} == set(found["election"]["missing"])
    assert "start " in found["hints"][0]
    code, told = dry(world, last, "failover", "--accept-data-loss")
    assert (code, told["forecast"]["winners"]) == (75, []), "nobody can decide anything without a majority"
    asked = world.pgr("failover", "--accept-data-loss", node=last)
    assert asked.returncode == 75
    assert f"hears of 1 of 3 voters, not of {', '.join(sorted((primary.name, other.name)))}" in asked.stderr

    (other.data / "pgdata").rename(other.data / "pgdata.lost")  # a voter without data: a majority, no read quorum
    other.start()
    world.settles(lambda: explained(world, last)["state"] == "no primary", "there is a leader", seconds=90)
    world.settles(lambda: "no position" in why(explained(world, last)["election"], other.name), "it has told")
    for node in (last, other):
        world.settles(lambda node=node: bool(explained(world, node)["overruled"]), f"{node.name} knows")  # type: ignore[misc]  # bound now
        found = explained(world, node)
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
