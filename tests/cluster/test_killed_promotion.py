"""Postgres is killed inside its promotion: the first file of the new timeline is there, and nothing is written on it.

strace holds the startup process at a chosen file, and there it is killed. What must not happen (seen): the node has no
position for ever, and with it a cluster of which everything acknowledged is there has no primary.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.localcluster import LocalNode, processes, wait_for
from tests.cluster.world import World

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt-get install strace"),
    pytest.mark.root,  # an ordinary user may be forbidden to trace
]
HELD_S = 30
NEXT_HISTORY = "pg_wal/00000003.history"
"""Of the first promotion after the founding."""
BEFORE = ("standby.signal", f"unlink:delay_enter={HELD_S}s")
AFTER = (NEXT_HISTORY, f"rename:delay_exit={HELD_S}s")
MOMENTS = pytest.mark.parametrize("moment", [BEFORE, AFTER], ids=["before its history file", "after it"])


def startup_of(node: LocalNode) -> int:
    """Its Postgres's startup process; 0: there is none."""
    for one in processes().values():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{one.pid}/cmdline").read_bytes()
            if b"startup" in line and os.readlink(f"/proc/{one.pid}/cwd") == str(node.data / "pgdata"):
                return one.pid
    return 0


@contextlib.contextmanager
def held_at(pid: int, moment: tuple[str, str], out: Path) -> Iterator[None]:
    path, how = moment
    call = how.partition(":")[0]
    words = ["strace", "-qq", "-o", str(out), "-P", path, "-e", f"trace={call}", "-e", f"inject={how}", "-p", str(pid)]
    with subprocess.Popen(words) as tracer:
        try:
            traced = Path(f"/proc/{pid}/status")
            assert wait_for(lambda: f"TracerPid:\t{tracer.pid}" in traced.read_text(encoding="utf-8"), 10)
            yield
        finally:
            tracer.terminate()


def killed_when_held(pids: dict[str, int], node: Callable[[str], LocalNode], moment: tuple[str, str]) -> str:
    """The name of the node whose startup process got as far as ``moment``, and was killed there."""
    found: list[str] = []

    def is_there() -> bool:
        for name in pids:
            data = node(name).data / "pgdata"
            segments = [n for n in os.listdir(data / "pg_wal") if n.startswith("00000003") and len(n) == 24]
            if segments and (moment is BEFORE or (data / NEXT_HISTORY).exists()):
                found.append(name)
        return bool(found)

    assert wait_for(is_there, 20, 0.002)
    os.kill(pids[found[0]], signal.SIGKILL)
    return found[0]


@MOMENTS
def test_a_lone_node_goes_on(make_world: Callable[..., World], tmp_path: Path, moment: tuple[str, str]) -> None:
    world = make_world(nodes=1)
    world.start()
    world.wait_writable()
    node = world.nodes[0]
    assert node.stop(60) == 0
    node.start()
    assert wait_for(lambda: startup_of(node) > 0, 20, 0.001)
    pid = startup_of(node)
    with held_at(pid, moment, tmp_path / "strace"):
        killed_when_held({"a": pid}, lambda _: node, moment)
    world.wait_writable()


@MOMENTS
def test_of_three_another_gets_its_turn(world: World, tmp_path: Path, moment: tuple[str, str]) -> None:
    """The primary is lost, and the Postgres that is promoted in its place is killed: two of three hold everything."""
    primary, (one, two) = world.primary(), world.standbys()
    assert primary is not None
    with world.writing() as writer:
        pids = {node.name: startup_of(node) for node in (one, two)}
        with (
            held_at(pids[one.name], moment, tmp_path / "one"),
            held_at(pids[two.name], moment, tmp_path / "two"),
        ):
            killed_ns, _ = primary.kill_all()
            killed_when_held(pids, world.__getitem__, moment)
        world.writes_again(writer, killed_ns)
        primary.start()
        world.wait_whole()
    world.check_no_loss(writer, everywhere=True)
