"""Hooks on real nodes: a no makes another node primary, roles are told in order, and nothing waits for a hook."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode, node_environment
from tests.cluster.test_config import config
from tests.cluster.world import World

pytestmark = pytest.mark.cluster

ROLE = """#!/bin/sh
{ printf '%s|%s|%s|' "$1" "$2" "$PGR_PREVIOUS_ROLE"; cat; } >> "$PGR_DATA/roles"
echo "is told: $2"
"""
FIRST_SAYS_NO = """#!/bin/sh
cat > /dev/null
mkdir '{mark}' 2> /dev/null || exit 0
echo "$PGR_MEMBER can't fence"
exit 7
"""
SAYS_NO = """#!/bin/sh
echo "the answer is no"
exit 1
"""
HANGS = """#!/bin/sh
echo $$ >> "$PGR_DATA/hung"
sleep 7777 &
echo $! >> "$PGR_DATA/hung"
trap '' TERM
while :; do sleep 7777; done
"""


def script(world: World, name: str, text: str) -> str:
    """Written where the nodes' user can read it, and nobody writes it while it is started."""
    path = world.home / name
    path.write_text(text.replace("{mark}", str(world.home / "asked")), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def told(node: LocalNode) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(action, role, previous role, JSON) of each call of on_role_change, in order."""
    path = node.data / "roles"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    found = (line.split("|", 3) for line in lines if line.endswith("\n"))  # else it is being written
    return [(action.split()[0], role, before, json.loads(body)) for action, role, before, body in found]


def roles(node: LocalNode) -> list[tuple[str, str]]:
    return [(before, role) for _, role, before, _ in told(node)]


@contextmanager
def following(world: World, node: LocalNode, *words: str) -> Iterator[Path]:
    """`pgr events --follow` at ``node``, for as long as the block lasts; where its lines go."""
    path = world.home / f"followed-{node.name}"
    program = "import sys; from pgr_supervise import admin; sys.exit(admin())"
    argv = [sys.executable, "-P", "-c", program, "events", "--follow", "--json", *words, "--data", str(node.data)]
    with path.open("wb") as out, path.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(argv, stdout=out, stderr=err, cwd="/", env=node_environment())
        try:
            yield path
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130, path.with_suffix(".err").read_text()
        finally:
            process.kill()
            process.wait()


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def test_a_failover_with_hooks(world: World) -> None:
    """The first that is asked says no, the other one becomes primary (or, if that lacks a commit, the same one when it
    is asked again); all are told of their roles; whoever follows the events sees it, and the history has it."""
    old = world.wait_writable()
    on_role_change = script(world, "role", ROLE)
    config(world, "set", f"hooks.on_role_change={on_role_change}")
    for node in world.nodes:
        world.settles(lambda node=node: len(roles(node)) == 1, f"{node.name} is told of its role")  # type: ignore[misc]  # bound now
        assert roles(node) == [("", "primary" if node is old else "replica")]
    config(world, "set", f"hooks.pre_promote={script(world, 'first', FIRST_SAYS_NO)}")
    standby = world.standbys()[0]
    with following(world, standby, "--all") as path, world.writing() as writer:
        world.settles(lambda: {e["by"] for e in events(path)} == set("abc"), "the events of all three")
        killed_ns, _ = old.kill_all()
        world.writes_again(writer, killed_ns)
        new = world.wait_writable()
        noes = [e for e in world.asked_status(new)["history"] if e["kind"] == "vetoed"]
        (vetoed,) = [world[e["node"]] for e in noes]
        world.settles(lambda: any(e["event"] == "gap" for e in events(path)), "the write gap among the events")
        seen = [(e["event"], e["node"]) for e in events(path)]
        for event in ("promoted", "gate.open", "opened"):
            assert (event, new.name) in seen
        assert seen.count(("vetoed", vetoed.name)) == 1, "an entry of the log is told once, whoever recorded it"
        world.settles(lambda: roles(new)[1:] == [("replica", "primary")], "the new primary is told")
    world.check_no_loss(writer)
    action, role, _, body = told(new)[-1]
    assert (action, role) == ("on_role_change", "primary")
    assert (body["member"], body["role"], body["previous_role"]) == (new.name, "primary", "replica")
    assert (body["primary"], body["hook"]) == (new.name, "on_role_change")
    if vetoed is not new:
        assert roles(vetoed) == [("", "replica")], "it never was primary"
    no = f"vetoed: {vetoed.name} its pre_promote hook said no: ended with 7: {vetoed.name} can't fence"
    history = world.pgr("history", node=standby).stdout
    assert no in history
    shown = history.rstrip().splitlines()
    head = next(line for line in reversed(shown) if not line.startswith(" "))
    assert f"  {new.name}  term " in head
    gap_ms = int(head.partition("write gap ")[2].split()[0])
    assert 500 < gap_ms <= writer.gap(killed_ns).seconds * 1000 + 200, "less than clients see, more than an election"
    assert no in world.pgr("explain", node=standby).stdout
    kept = world.pgr("events", "--since", "1h", node=vetoed).stdout
    assert "WARNING: hook.failed: pre_promote ended with 7 after" in kept
    said = [e["fields"]["text"] for e in world.logged(new, "hook.says") if e["fields"]["hook"] == "on_role_change"]
    assert said == ["is told: replica", "is told: primary"]


@pytest.mark.slow
def test_every_change_of_role_is_told_once_and_in_order(world: World) -> None:
    config(world, "set", f"hooks.on_role_change={script(world, 'role', ROLE)}")
    for node in world.nodes:
        world.settles(lambda node=node: len(roles(node)) == 1, f"{node.name} is told of its role")  # type: ignore[misc]  # bound now
    first = world.wait_writable()
    second = world.standbys()[0]
    done = world.pgr("switchover", "--to", second.name, "--json")
    assert done.returncode == 0, done.stderr
    world.settles(lambda: roles(first) == [("", "primary"), ("primary", "replica")], "the old primary is told")
    world.settles(lambda: roles(second) == [("", "replica"), ("replica", "primary")], "the new one is told")
    world.wait_streaming(first)
    # Postgres dies, its control plane lives.
    os.kill(second.pid_of("postmaster"), signal.SIGKILL)
    world.settles(lambda: roles(second)[2:3] == [("primary", "replica")], "it is primary no more")
    world.settles(
        lambda: (now := world.primary()) is not None and roles(now)[-1] == ("replica", "primary"),
        "whoever took over is told",
    )
    third = world.wait_whole()
    # Started again it is told what it is now; a stop as asked for tells it before it ends.
    third.kill_all()
    world.settles(lambda: world.primary() not in (None, third), "another primary")
    third.start()
    world.settles(lambda: roles(third)[-1] == ("", "replica"), "told anew")
    last = world.wait_whole()
    count = len(roles(last))
    assert last.stop(60) == 0
    assert roles(last)[count:] == [("primary", "replica")]
    for node in world.nodes:
        calls = roles(node)
        assert all(later[0] in ("", role) for (_, role), later in pairwise(calls)), f"none is lost: {calls}"


@pytest.mark.slow
def test_with_a_no_everywhere_there_is_no_primary_and_it_is_said(world: World) -> None:
    config(world, "set", f"hooks.pre_promote={script(world, 'no', SAYS_NO)}")
    old = world.wait_writable()
    left = world.standbys()
    schema = "SELECT 1 FROM pg_namespace WHERE nspname = 'pg_replica'"
    world.settles(lambda: world.query(old, schema) != [], "what pgr itself writes is written")
    for node in left:
        world.wait_replayed(node)  # else only the other one could win, and be asked
    old.kill_all()

    def explained() -> str:
        return world.pgr("explain", node=left[0]).stdout

    for node in left:
        words = f"the pre_promote hook of {node.name} said no (ended with 1: the answer is no)"
        world.settles(lambda words=words: words in explained(), words, explained)  # type: ignore[misc]  # bound now
        world.settles(
            lambda node=node, words=words: words in world.pgr("status", node=node).stdout, f"the same at {node.name}"  # type: ignore[misc]  # bound now
        )
    assert world.primary() is None
    assert "no primary: " in explained()
    assert "hint: mend what pre_promote looks at" in explained()
    seen = world.asked_status(left[0])
    assert [e["node"] for e in seen["history"] if e["kind"] == "vetoed"] == [n.name for n in left] or [
        e["node"] for e in seen["history"] if e["kind"] == "vetoed"
    ] == [n.name for n in reversed(left)]
    done = world.pgr("config", "unset", "hooks.pre_promote", node=left[0])
    assert done.returncode == 0, done.stderr
    world.settles(lambda: world.primary() in left, "a primary, once there is no hook any more")


@pytest.mark.slow
def test_a_hanging_hook_holds_nothing_up_and_is_killed_with_all_it_started(world: World) -> None:
    hangs = script(world, "hangs", HANGS)
    config(world, "set", f"hooks.on_role_change={hangs}", f"hooks.on_event={hangs}")
    for node in world.nodes:
        world.settles(lambda node=node: len(hung(node)) >= 4, f"hooks hang on {node.name}")  # type: ignore[misc]  # bound now
    old = world.wait_writable()
    with world.writing() as writer:
        os.kill(old.pid_of("postmaster"), signal.SIGKILL)
        killed_ns = now_ns()
        world.writes_again(writer, killed_ns)
        # The new session may be answered by Postgres a moment before its node says so over HTTP.
        world.settles(lambda: world.primary() not in (None, old), "another primary is seen")
        new = world.wait_writable()
        for holder in (old, new):
            assert not world.logged(holder, "hook.killed"), "the failover is over while the hooks still hang"
    world.check_no_loss(writer)
    started = hung(new)
    assert all(Path(f"/proc/{pid}").exists() for pid in started)
    # The time of a call is what was set when it began: let these end, and the next ones soon.
    config(world, "set", "hooks.on_role_change_timeout=1", "hooks.on_event_timeout=1")
    os.kill(new.pid, signal.SIGKILL)  # the parent: what hangs dies with it, and what it had started with the next one
    assert new.process is not None
    new.process.wait(30)
    world.settles(lambda: not new.alive() and not new.pid_of("postmaster"), "its Postgres is gone")
    new.start()
    world.settles(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), "none of them is left")
    assert world.logged(new, "hook.leftover_ended")
    world.settles(lambda: world.logged(new, "hook.killed") != [], "a hook that hangs is killed")
    again = [pid for pid in hung(new) if pid not in started]
    first = again[:2]
    world.settles(lambda: not any(Path(f"/proc/{pid}").exists() for pid in first), "with its children")


def hung(node: LocalNode) -> list[int]:
    path = node.data / "hung"
    return [int(line) for line in path.read_text().split()] if path.exists() else []
