"""`pgr doctor` where the network is not whole: who does not reach whom is named, by those who do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from supervisor.localcluster import LocalNode
from tests.net import clocks
from tests.net.clocks import Clocks
from tests.net.network import Link, between, both
from tests.net.world import NetWorld

pytestmark = pytest.mark.cluster


def doctor(world: NetWorld, node: LocalNode) -> tuple[int, dict[str, Any]]:
    done = world.pgr("doctor", "--json", node=node)
    assert done.stdout, done.stderr
    body: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, body


def said(body: dict[str, Any], check: str, severity: str) -> list[str]:
    wanted = (check, severity)
    return [f"{f['node']}: {f['what']}" for f in body["findings"] if (f["check"], f["severity"]) == wanted]


def wrong(body: dict[str, Any]) -> dict[str, list[str]]:
    """Whose errors, by check."""
    found: dict[str, list[str]] = {}
    for f in body["findings"]:
        if f["severity"] == "error":
            found.setdefault(f["check"], []).append(f["node"])
    return {check: sorted(set(nodes)) for check, nodes in found.items()}


def test_two_members_that_do_not_reach_each_other(net: NetWorld) -> None:
    """A bridge: the primary sees both, and nothing stops. Off loopback the binaries of the package are warned about."""
    world, primary = net, net.wait_writable()
    left, right = world.others(primary)
    code, body = doctor(world, primary)
    assert (code, wrong(body)) == (0, {}), body
    assert len(said(body, "binaries", "warning")) == 3
    world.cut(both(left.name, right.name))
    code, body = doctor(world, primary)
    assert code == 75
    two = sorted((left.name, right.name))
    assert wrong(body) == {"control plane": two, "data plane": two}
    told = said(body, "control plane", "error")
    assert any(text.startswith(f"{left.name}: can't reach {right.name} at") for text in told)
    for plane in ("control_plane_ms", "data_plane_ms"):
        assert body[plane][left.name][right.name] is None
        assert body[plane][left.name][primary.name] > 0
    world.heal()


def test_a_member_that_is_cut_off_and_one_whose_postgres_is(net: NetWorld) -> None:
    """Of the first everybody says that nobody reaches it; of the other that its Postgres is not reached."""
    world, primary = net, net.wait_writable()
    left, right = world.others(primary)
    world.isolate(right, client=True)
    code, body = doctor(world, primary)
    assert code == 75
    assert wrong(body) == {"members": [right.name]}
    (text,) = said(body, "members", "error")
    assert f"{primary.name}: no answer within 1.5 s; {left.name}: no answer within 1.5 s" in text or (
        f"{left.name}: no answer within 1.5 s; {primary.name}: no answer within 1.5 s" in text
    )
    world.heal()
    world.wait_whole()

    primary = world.wait_writable()
    left, right = world.others(primary)
    world.cut(between([left.name, primary.name], [right.name], right.pg_port))  # the same port everywhere
    code, body = doctor(world, primary)
    assert code == 75
    assert wrong(body) == {"data plane": ["a", "b", "c"]}
    told = said(body, "data plane", "error")
    assert len(told) == 4, told
    assert not any(f"{left.name} at" in text and text.startswith(primary.name) for text in told)
    world.heal()


def test_one_direction_is_enough(net: NetWorld) -> None:
    world, primary = net, net.wait_writable()
    left, right = world.others(primary)
    world.cut([Link(left.name, right.name, right.listen_port)])
    code, body = doctor(world, primary)
    assert code == 75
    assert left.name in wrong(body)["control plane"]
    world.heal()


def test_a_network_that_is_too_slow_for_the_timings(net: NetWorld) -> None:
    """130 ms there and back, with a round each 100 ms."""
    world = net
    for node in world.nodes:
        world.network.delay(node.name, 33)
    _, body = doctor(world, world.nodes[0])
    found = [f for f in body["findings"] if f["check"] == "lease" and f["severity"] != "ok"]
    assert {f["node"] for f in found} == {"a", "b", "c"}
    assert all("rounds overlap (heartbeat 100 ms)" in f["what"] for f in found if f["severity"] == "warning")
    world.heal()


@pytest.fixture
def clocked(make_net: Callable[..., NetWorld]) -> Iterator[tuple[NetWorld, Clocks]]:
    if why := clocks.missing():
        pytest.skip(why)
    world = make_net()
    made = Clocks(world)
    world.begin()
    yield world, made
    for node in world.nodes:
        if node.process is not None:
            node.kill_all()
    made.close()


def test_a_clock_that_is_wrong(clocked: tuple[NetWorld, Clocks]) -> None:
    world, made = clocked
    code, body = doctor(world, world.nodes[0])
    assert said(body, "clocks", "warning") == []
    made.set(world["b"], realtime_s=30)
    code, body = doctor(world, world.nodes[0])
    assert code == 0, "no safety rests on it"
    assert "b: its clock is 30.0 s ahead of that of a" in said(body, "clocks", "warning")
