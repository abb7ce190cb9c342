"""The timings of a running cluster change: on real nodes, under load, with a voter away, with a primary killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby

import pytest

from fencing.clock import now_ns
from fencing.lease import PROFILES, Timings
from supervisor.localcluster import LocalNode
from tests.cluster.test_config import config, refused
from tests.cluster.world import World, rare

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

FAST, DEFAULT, CLOUD = (PROFILES[name] for name in ("fast", "default", "cloud"))
SHORTER = Timings(100, 642, 900, 400, 1500, 450)
"""cloud with `SINGLE`: L, E, F and the heartbeat are all less."""
SINGLE = ("lease_ms=900", "election_ms=1500ms", "kill_bound_ms=400", "heartbeat_ms=100")


def bounds(node: LocalNode) -> list[tuple[int, int]]:
    """L and F of this node's watchdogs, as started and as told. A repeat counts once: one that did not seem to have
    heard is told again."""
    words = [e for e in node.events() if e["event"] in ("watchdog.started", "watchdog.bounds")]
    return [pair for pair, _ in groupby((int(e["lease_ms"]), int(e["kill_bound_ms"])) for e in words)]


def wait_for_timings(world: World, name: str, timings: Timings) -> None:
    """On every node that runs: in its status, in its settings, and at its watchdog."""
    keys = ("heartbeat_ms", "lease_ms", "kill_bound_ms", "election_ms")

    def reached(node: LocalNode) -> bool:
        seen = node.status()
        if seen is None or seen.retiming is not None or (seen.profile, seen.timings) != (name, timings):
            return False
        shown = json.loads(node.get("/config")[1])
        same = all(shown[key] == getattr(timings, key) for key in keys)
        return same and bounds(node)[-1:] == [(timings.lease_ms, timings.kill_bound_ms)]

    for node in world.nodes:
        if node.alive():
            world.settles(lambda node=node: reached(node), f"{name} on {node.name}", lambda: str(world.status()))  # type: ignore[misc]  # bound now


def warnings(node: LocalNode) -> tuple[str, ...]:
    seen = node.status()
    return seen.warnings if seen is not None else ()


def term(world: World) -> tuple[str, int]:
    seen = world.status()
    assert seen is not None
    return seen.leader, seen.term


def test_they_change_under_load_and_then_a_primary_is_lost(world: World) -> None:
    primary = world.primary()
    assert primary is not None
    before = term(world)
    with world.writing() as writer:
        assert "do not fit under election_ms 1100" in refused(world, 78, "set", "lease_ms=900", "election_ms=1100")
        assert "two heartbeats" in refused(world, 78, "set", "heartbeat_ms=300")
        refused(world, 64, "set", "profile=slow")
        assert json.loads(config(world, "history", "--json")) == [], "nothing has changed"
        config(world, "set", "profile=cloud", node=world.standbys()[0])
        wait_for_timings(world, "cloud", CLOUD)
        for node in world.nodes:
            assert bounds(node) == [(700, 250), (1400, 250), (1400, 500)], "the longer L first, the longer F last"
        assert "do not fit" in refused(world, 78, "set", "lease_ms=1800")
        config(world, "set", *SINGLE)
        wait_for_timings(world, "custom", SHORTER)
        for node in world.nodes:
            assert bounds(node)[3:] == [(1400, 400), (900, 400)], "the shorter L last"
        lease = next(row for row in json.loads(config(world, "show", "--json")) if row["name"] == "lease_ms")
        assert (lease["value"], lease["default"], lease["source"]) == (900, 1400, "set")
        config(world, "unset", *(each.partition("=")[0] for each in SINGLE), "profile")
        wait_for_timings(world, "default", DEFAULT)
        assert (term(world), writer.failures) == (before, []), "nobody had to be elected, not one write failed"

        config(world, "set", "profile=fast")  # whose lease a busy machine may well lose
        wait_for_timings(world, "fast", FAST)
        primary = world.wait_whole()
        killed_ns, _ = primary.kill_all()
        world.writes_again(writer, killed_ns)
        primary.flags["profile"] = "cloud"  # of the founding, if at all
        primary.start()
        world.wait_streaming(primary)
        wait_for_timings(world, "fast", FAST)
    world.check_no_loss(writer, everywhere=True)


def test_a_voter_that_is_away_is_waited_for_and_named(make_world: Callable[..., World]) -> None:
    world = make_world()
    for name, profile in zip("abc", ("default", "cloud", "fast"), strict=True):
        world[name].flags["profile"] = profile  # the founding took those of a, and so does everybody
    world.start()
    world.wait_writable(standbys=2)
    wait_for_timings(world, "default", DEFAULT)
    primary, (b, c) = world.primary(), world.standbys()
    assert primary is not None
    before = term(world)

    def waits(change: str) -> None:
        warning = f"the change of the timings from {change} waits for {c.name}: every voter has to hear of it"
        for node in (primary, b):
            world.settles(lambda node=node: any(warning in w for w in warnings(node)), f"{node.name} warns")  # type: ignore[misc]  # bound now
            assert b"pgr_retiming 1" in node.get("/metrics")[1]
        page = world.pgr("status", node=b).stdout
        assert f"timings: from {change}: every voter is told" in page
        assert warning in page

    with world.writing() as writer:
        assert c.stop() == 0
        config(world, "set", "profile=cloud")
        waits("default to cloud")
        # By now it would long have been in force: E of the longer set has passed.
        at_ns = now_ns()
        world.settles(lambda: now_ns() > at_ns + 2 * CLOUD.election_ms * 1_000_000, "time has passed")
        seen = primary.status()
        assert seen is not None
        assert (seen.timings.lease_ms, seen.timings.election_ms) == (DEFAULT.lease_ms, CLOUD.election_ms)
        assert f"waits for {c.name}" in seen.explanation
        c.start()
        wait_for_timings(world, "cloud", CLOUD)
        assert bounds(c)[-3:] == [(700, 250), (1400, 250), (1400, 500)]
        world.wait_streaming(c)
        assert not any("timings" in w for w in warnings(b))

        c.kill_all()
        config(world, "set", "profile=default")
        waits("cloud to default")
        config(world, "set", "profile=cloud")
        wait_for_timings(world, "cloud", CLOUD)
        assert bounds(primary)[-4:] == [(1400, 250), (1400, 500)] * 2, "given up"
        c.start()
        world.wait_streaming(c)
        assert term(world) == before
        assert not writer.failures
    world.check_no_loss(writer, everywhere=True)


@rare
@pytest.mark.timeout(600)
def test_a_primary_killed_at_each_step_of_each_change(make_world: Callable[..., World]) -> None:
    """Whoever leads then goes on with it. In between a node joins whose own flag says something else."""
    world = make_world(profile="fast")
    world.start()
    world.wait_writable(standbys=2)
    d = world.add("d", profile="fast")  # so that the writer knows its address
    with world.writing() as writer:
        for number, name in enumerate(("cloud", "fast", "default", "cloud", "default", "fast")):
            primary = world.wait_whole()
            world.settles(lambda: whole(world), "the sync group is whole", seconds=120)
            told = len(bounds(primary))
            config(world, "set", f"profile={name}")
            if number % 2:  # after the first step, else after the switch, whose lines may be the same at the watchdog
                world.settles(lambda: len(bounds(primary)) > told, "the first step")  # noqa: B023  # used now
            else:
                world.settles(lambda: switched(primary), "the switch")  # noqa: B023  # used now
            killed_ns, _ = primary.kill_all()
            world.writes_again(writer, killed_ns)
            primary.start()
            wait_for_timings(world, name, PROFILES[name])
            if number == 0:
                d.start()
                world.wait_members("a b c d", "3 of a b c d")
                wait_for_timings(world, name, PROFILES[name])
    world.check_no_loss(writer, everywhere=True)


def whole(world: World) -> bool:
    seen = world.status()
    return seen is not None and seen.next_group is None and len(seen.sync_group.members) == len(seen.members)


def switched(node: LocalNode) -> bool:
    seen = node.status()
    return seen is not None and (seen.retiming is None or bool(seen.retiming["switched"]))
