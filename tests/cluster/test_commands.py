"""`pgr failover` and asynchronous commit: where a person decides, and what is then not promised."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fencing.clock import now_ns
from supervisor import admin
from tests.cluster.world import World

pytestmark = pytest.mark.cluster


def test_without_a_read_quorum_there_is_no_primary_until_loss_is_accepted(world: World) -> None:
    """Two lost, the third may lack acknowledged commits: it refuses, says why, and is overruled only in words."""
    primary = world.wait_writable()
    last, other = world.standbys()
    other.kill_all()
    primary.kill_all()
    other_data = other.data / "pgdata"
    other_data.rename(other.data / "pgdata.lost")  # it comes back as a voter without data: a majority, no read quorum
    other.start()
    world.settles(lambda: "has no position" in _explanation(world, last.name), "it says whose promise is missing")
    assert world.primary() is None
    asked = world.pgr("failover", "--to", last.name, node=last)
    assert asked.returncode == 78, "without the words nothing is lost"
    assert "--accept-data-loss" in asked.stderr
    assert world.primary() is None
    done = world.pgr("failover", "--to", last.name, "--accept-data-loss", node=last, timeout_s=120)
    # The gate waits for the other node's copy, which is being made; accepted is accepted.
    assert done.returncode in (0, 75), done.stderr
    world.settles(lambda: world.primary() is last, "the last copy is primary")
    world.wait_streaming(other)
    history = world.asked_status(last)["history"]
    (wish,) = [e for e in history if e["kind"] == "failover"]
    assert wish["reason"].startswith(f"was asked for by {admin.who()}, accepting data loss; given up: what only ")
    assert f"what only {primary.name} has" in wish["reason"], "and how much, if the leader ever heard of it"
    promoted = [e for e in history if e["kind"] == "promoted"][-1]
    assert "data loss was accepted: without the promise of " in promoted["reason"]
    page = world.pgr("explain", node=last).stdout
    assert f"before: failover: {last.name} was asked for by {admin.who()}" in page


def _explanation(world: World, name: str) -> str:
    seen = world[name].status()
    return seen.explanation if seen is not None else ""


@pytest.mark.slow
def test_asynchronous_commit_fails_over_too(make_world: Callable[..., World]) -> None:
    world = make_world(commit="async")
    world.start()
    world.wait_writable(standbys=2)
    primary = world.wait_writable()
    assert world.query(primary, "SHOW synchronous_standby_names") == [("",)]
    for node in world.standbys():
        world.wait_replayed(node)  # else their copies may be without the end that proves them
    with world.writing() as writer:
        killed_ns, _ = primary.kill_all()
        world.writes_again(writer, killed_ns)
        primary.start()
        world.wait_streaming(primary)
    assert now_ns() > killed_ns
    assert "asynchronous" in " ".join(world.asked_status()["warnings"])
