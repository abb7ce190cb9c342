"""Bad input and trouble that only a running cluster shows: a clear error with a hint, its exit code, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from consensus.keys import new_key
from fencing.clock import now_ns
from supervisor import cli
from supervisor.localcluster import LocalNode, write_secret
from tests.cluster.world import World

pytestmark = pytest.mark.cluster


def mentions(world: World, node: LocalNode, *words: str) -> bool:
    """Is there one event in the log of ``node`` that has all these words?"""
    return any(all(word in text for word in words) for text in map(json.dumps, node.events()))


def test_a_silent_founding_peer_is_waited_for_and_named(make_world: Callable[..., World]) -> None:
    world = make_world()
    a, b, c = world.nodes
    a.start()
    b.start()
    for node in (a, b):
        world.settles(lambda node=node: mentions(world, node, "founding", '"c"'), f"{node.name} names c")  # type: ignore[misc]  # bound now
    assert world.primary() is None
    assert not (a.data / "pgdata" / "PG_VERSION").exists()
    assert not (b.data / "pgdata" / "PG_VERSION").exists()
    c.start()
    world.wait_writable(standbys=2)


WRONG = """
64 switchover --to nobody
64 switchover --at yesterday
64 switchover --at 2001-01-31T02:00:00+00:00
64 switchover --cancel
64 failover --to nobody
64 restart
64 restart nobody
64 restart a --all
64 restart --cancel
64 reload nobody
64 reinit nobody
64 fence nobody
64 unfence nobody
64 member add nobody
64 member add a --role chief
64 member remove nobody
64 member replace nobody
64 config get nosuch
64 config unset nosuch
64 config set strict
64 config set strict=true strict=false
64 config set commit=some
64 config set sync_acks=none
64 config set strict=perhaps
64 config set maximum_lag_on_failover=far
64 config set primary_start_timeout=1
64 config set on_primary_crash=panic
64 config set slots.pgr_x=physical
64 config set slots.x=nonsense
64 config set postgres.parameters=8MB
64 config set hooks.pre_promote=fence
64 config set hooks.on_role_change=
64 config set hooks.on_event_timeout=0
64 uri --read-only --read-write
64 events --since yesterday
64 status --json=yes
64 explain nothing
64 history --follow
64 pause nobody
64 resume --wait=no
64 doctor --listen 127.0.0.1:1
69 status --data /nonexistent
78 reinit {primary}
75 recover --yes a
"""
"""Exit codes of interfaces.md; {primary}: whoever it is."""


@pytest.mark.slow
def test_what_is_asked_wrongly_changes_nothing_and_says_what_to_do(
    shared_world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world = shared_world
    primary = world.primary()
    assert primary is not None
    before = world.asked_status()
    wrong = []
    for line in WRONG.strip().splitlines():
        code, *words = line.format(primary=primary.name).split()
        found = cli.main([*words, *([] if "--data" in words else ["--data", str(world.nodes[0].data)])])
        out, err = capsys.readouterr()
        if (found, out, "hint: " in err) != (int(code), "", True):
            wrong.append((line, found, out, err))
    assert not wrong, "\n".join(map(str, wrong))
    after = world.asked_status()
    assert [after[what] for what in ("history", "primary", "config", "scheduled")] == [
        before[what] for what in ("history", "primary", "config", "scheduled")
    ]


def test_a_node_with_another_cluster_key_stays_outside(shared_world: World) -> None:
    """Also where its own disk says who the primary was: nobody has confirmed that to it."""
    world = shared_world
    node = world.standbys()[0]
    assert node.stop(60) == 0
    world.settles(lambda: not world.streams(node), f"{node.name} is gone")
    right = node.flags["cluster-key"]
    node.flags["cluster-key"] = str(write_secret(world.home / "other.key", new_key()))
    attached = len(world.logged(node, "follow.attached"))
    with world.writing() as writer:
        node.start()
        others = [other for other in world.nodes if other is not node]
        world.settles(lambda: mentions(world, node, "key"), f"{node.name} says that its key is another")
        for other in others:
            world.settles(lambda other=other: mentions(world, other, "key", f'"{node.name}"'), f"{other.name} names it")  # type: ignore[misc]  # bound now
        at_ns = now_ns()
        world.settles(lambda: writer.acked_since(at_ns) > 50, "writes go on")
        assert not world.streams(node)
        assert len(world.logged(node, "follow.attached")) == attached
        node.stop(60)
        node.flags["cluster-key"] = right
        node.start()
        world.wait_streaming(node)
    assert not writer.failures
    world.check_no_loss(writer, everywhere=True)


def test_a_data_directory_of_another_cluster_is_refused(shared_world: World, make_world: Callable[..., World]) -> None:
    world = shared_world
    other = make_world(nodes=1)
    other.start()
    other.wait_writable()
    other.nodes[0].stop(60)
    node = world.standbys()[0]
    assert node.stop(60) == 0
    shutil.move(node.data / "pgdata", world.home / "aside")
    shutil.move(other.nodes[0].data / "pgdata", node.data / "pgdata")
    code, stderr = world.run_node(node)
    assert code == 78, stderr
    assert "hint" in stderr
    assert (node.data / "pgdata" / "PG_VERSION").exists(), "nothing was removed"
    shutil.rmtree(node.data / "pgdata")
    shutil.move(world.home / "aside", node.data / "pgdata")
    node.start()
    world.wait_streaming(node)


def test_a_second_supervisor_on_the_same_data_is_refused(shared_world: World) -> None:
    world = shared_world
    node = world.standbys()[0]
    code, stderr = world.run_node(node)
    assert code == 78, stderr
    assert str(node.pid) in stderr, "the first one is named"
    assert world.streams(node)
