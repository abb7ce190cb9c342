"""A dead node's place is taken by a new machine, under its name or another one; a copy is made of a standby."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from supervisor.localcluster import LocalNode, node_environment
from tests.cluster.world import World, rare

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def calm(make_world: Callable[..., World]) -> World:
    """Three nodes whose lease stands a busy machine: here a failed write is an error, not an accident."""
    world = make_world(profile="cloud")
    world.start()
    world.wait_writable(standbys=2)
    return world


@contextmanager
def begun(world: World, node: LocalNode, *words: str) -> Iterator[subprocess.Popen[str]]:
    program = "import sys; from pgr_supervise import admin; sys.exit(admin())"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program, *words, "--data", str(node.data)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=node_environment(), cwd="/",
    ) as asked:  # fmt: skip
        try:
            yield asked
        finally:
            asked.kill()


def told(asked: subprocess.Popen[str], text: str) -> str:
    """The line on stderr that has it."""
    assert asked.stderr is not None
    for line in asked.stderr:
        if text in line:
            return line
    raise AssertionError(f"it ended with {asked.wait(10)} before it said {text!r}")


@pytest.mark.parametrize(
    "new", [pytest.param("d", marks=rare, id="another name"), pytest.param("", id="the same name")]
)
def test_a_dead_node_is_replaced_under_load(calm: World, new: str) -> None:
    world, dead = calm, calm.standbys()[0]
    name = new or dead.name
    with world.writing() as writer:
        dead.kill_all()
        other = next(node for node in world.standbys() if node is not dead)
        world.settles(lambda: not connected(other, dead.name), f"{dead.name} is missed")
        if not new:  # the machine is gone, with its ports
            world.nodes.remove(dead)
            world.extra.append(dead)
        with begun(world, other, "member", "replace", dead.name, *(["--by", new] if new else [])) as asked:
            start = told(asked, "start the new node")
            assert f"--name {name} --listen" in start
            node = world.add(name, at=other)
            if not new:
                node.data = world.home / f"{name}-new"
                node.log = world.home / f"{name}-new.log"
                node.flags["data"] = str(node.data)
            assert "--join 127.0.0.1:" in start
            node.start()
            out, err = asked.communicate(timeout=180)
        assert asked.returncode == 0, err
        assert out == (f"{dead.name}: no member any more\n" if new else f"{name}: replaced\n")
        names = " ".join(sorted({"a", "b", "c", name} - ({dead.name} if new else set())))
        world.wait_members(names, f"2 of {names}")
        world.wait_streaming(node)
        if new:
            code, stderr = world.run_node(dead)
            assert code == 78, stderr
            assert f"{dead.name} was removed" in stderr
    assert not writer.failures
    world.check_no_loss(writer, everywhere=True)


def connected(asked: LocalNode, name: str) -> bool:
    seen = asked.status()
    row = seen.member(name) if seen is not None else None
    return row is not None and row.connected


def copies(node: LocalNode) -> list[str]:
    return [str(event["fields"]["source"]) for event in node.events() if event["event"] == "clone.end"]


def test_a_copy_is_made_of_a_standby_and_if_it_fails_of_the_primary(world: World) -> None:
    primary = world.wait_writable()
    made, source = world.standbys()
    before = len(copies(made))
    with world.writing() as writer:
        done = world.pgr("reinit", made.name, "--from", source.name, "--yes", made.name, timeout_s=120)
        assert (done.returncode, done.stdout) == (0, f"{made.name}: has its new copy\n"), done.stderr
        world.wait_streaming(made)
        assert copies(made)[before:] == [source.name]
        for name, code in ((made.name, 64), ("x", 64)):
            refused = world.pgr("reinit", made.name, "--from", name)
            assert (refused.returncode, refused.stdout) == (code, ""), refused.stderr
        with begun(world, primary, "reinit", made.name, "--from", source.name) as asked:
            told(asked, "is to get a new copy")
            source.kill_all()  # at whatever point of it: it is of no use any more, or it is copied already
            assert asked.wait(120) == 0
        assert copies(made)[before + 1 :] in ([primary.name], [source.name])
        source.start()
        world.wait_streaming(made, source)
    world.check_no_loss(writer, everywhere=True)
