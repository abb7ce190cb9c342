"""pgr-supervise as PID 1 of a container, here of a PID namespace: nobody else is there to reap or to clean up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.localcluster import LocalNode, processes
from tests.cluster.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.root]

NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
ORPHANS = 1000
# Half of them end before their parent does, half are handed to PID 1 while they live.
MAKE_ORPHANS = f"""
import os, sys
hold, go = os.pipe()
for number in range({ORPHANS}):
    if os.fork() == 0:
        os.close(go)
        if number % 2:
            os.read(hold, 1)
        os._exit(number % 5)
os.close(hold)
print("left to PID 1", flush=True)
os._exit(0)
"""


class Contained(LocalNode):
    """A node that is PID 1 in a PID namespace of its own; `pid` is then that of the `unshare` in front of it."""

    def command(self) -> list[str]:
        return [*NAMESPACE, *super().command()]

    @property
    def init(self) -> int:
        """PID 1 of the namespace, as it is called out here; 0 once it is gone."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        return int(children[0]) if children else 0

    def inside(self) -> set[int]:
        """Everything in the namespace, zombies included."""
        space = Path(f"/proc/{self.init}/ns/pid").readlink()
        found = set()
        for pid in processes():
            try:
                if Path(f"/proc/{pid}/ns/pid").readlink() == space:
                    found.add(pid)
            except OSError:
                continue  # it ended meanwhile
        return found

    def zombies(self) -> list[int]:
        return [p.pid for p in processes().values() if p.parent == self.init and p.state == "Z"]


@pytest.fixture
def contained(make_world: Callable[..., World]) -> tuple[World, Contained]:
    """Three nodes, whole, node a in a namespace and primary."""
    if not all(map(shutil.which, ("unshare", "nsenter"))):
        pytest.skip("needs unshare and nsenter (util-linux)")
    probe = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no PID namespace here: {probe.stderr.strip()}")
    world = make_world()
    plain = world.nodes[0]
    node = Contained(world.home, plain.name, (plain.listen_port, plain.pg_port, plain.http_port))
    node.flags, node.env = plain.flags, plain.env
    world.nodes[0] = node
    world.start()
    if world.wait_writable(standbys=2) is not node:
        done = world.pgr("switchover", "--to", node.name, node=world.nodes[1])
        assert done.returncode == 0, done.stderr
        world.settles(lambda: world.primary() is node, "a is primary")
        world.wait_whole()
    said = Path(f"/proc/{node.init}/status").read_text(encoding="utf-8")
    assert said.partition("NSpid:")[2].split("\n")[0].split()[-1] == "1"
    return world, node


def test_a_thousand_orphans_leave_no_zombie(contained: tuple[World, Contained]) -> None:
    world, node = contained
    with world.writing() as writer:
        before = node.inside()
        enter = ["nsenter", "-t", str(node.init), "--pid", "--mount"]
        done = subprocess.run(
            [*enter, sys.executable, "-c", MAKE_ORPHANS], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stdout == "left to PID 1\n", done.stderr
        world.settles(lambda: not node.zombies(), "no zombie", lambda: f"{len(node.zombies())} zombies")
        world.settles(lambda: len(node.inside()) <= len(before) + 5, "no orphan", lambda: f"{len(node.inside())} left")
        assert world.primary() is node, "and nothing else was disturbed"
    assert not writer.failures
    world.check_no_loss(writer)


def test_term_hands_over_and_leaves_nothing(contained: tuple[World, Contained]) -> None:
    world, node = contained
    with world.writing() as writer:
        watched = {pid: os.pidfd_open(pid) for pid in node.inside()}
        init = node.init
        os.kill(init, signal.SIGTERM)
        assert node.wait(60) == 0, "the exit code of PID 1, passed on by unshare"
        for pid, fd in watched.items():
            with pytest.raises(ProcessLookupError):
                signal.pidfd_send_signal(fd, 0)
            os.close(fd)
            assert pid not in processes() or processes()[pid].state == "Z"
        assert not node.pids()
        world.settles(lambda: world.primary() in world.nodes[1:], "another is primary")
        world.writes_again(writer, 0)
        assert writer.gap().seconds < 10
    # The kernel kills what is left when PID 1 ends; these say that there was nothing left to kill.
    assert not (node.data / "pgdata" / "postmaster.pid").exists(), "Postgres was stopped by us, not by the kernel"
    last = (node.data / "log" / "postgres.log").read_text(encoding="utf-8", errors="replace").splitlines()[-1]
    assert "database system is shut down" in last
    ended = next(event for event in reversed(list(node.events())) if event["event"] == "node.stopped")
    assert ended["fields"]["exit_code"] == 0
    handed = [event for event in node.events() if event["event"] == "plan" and event["fields"]["rule"] == "hand-over"]
    assert handed, "TERM on a primary asks another to take over"
    world.check_no_loss(writer)
    node.start()
    world.wait_streaming(node)
