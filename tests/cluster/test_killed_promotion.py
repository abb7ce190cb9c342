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
from collections.abc import Callable, Sequence
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


class Hold:
    """Whatever startup process the nodes have is traced; one that gets as far as ``moment`` waits there."""

    def __init__(self, moment: tuple[str, str], out: Path) -> None:
        self.moment, self.out = moment, out
        self.tracers: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        for tracer in self.tracers.values():
            tracer.terminate()
            tracer.wait()

    def trace(self, node: LocalNode) -> int:
        """Of a Postgres that was restarted meanwhile (a freeze that took too long) the new one. Its pid; 0: none."""
        pid, (path, how) = startup_of(node), self.moment
        if pid and pid not in self.tracers:
            what = ["-P", path, "-e", f"trace={how.partition(':')[0]}", "-e", f"inject={how}"]
            self.tracers[pid] = subprocess.Popen(["strace", "-qq", "-o", f"{self.out}.{pid}", *what, "-p", str(pid)])
        return pid

    def traces(self, node: LocalNode) -> bool:
        pid = self.trace(node)
        tracer = self.tracers.get(pid)
        with contextlib.suppress(OSError):
            return tracer is not None and f"TracerPid:\t{tracer.pid}" in Path(f"/proc/{pid}/status").read_text()
        return False

    def kill_whoever_is_there(self, nodes: Sequence[LocalNode]) -> None:
        """SIGKILL for the startup process that waits at the moment."""
        assert wait_for(lambda: any(self._is_there(node) for node in nodes), 20, 0.002)

    def _is_there(self, node: LocalNode) -> bool:
        pid, wal = self.trace(node), node.data / "pgdata" / "pg_wal"
        begun = any(name.startswith("00000003") and len(name) == 24 for name in os.listdir(wal))
        if not pid or not begun or (self.moment is AFTER and not (wal.parent / NEXT_HISTORY).exists()):
            return False
        os.kill(pid, signal.SIGKILL)
        return True


@MOMENTS
def test_a_lone_node_goes_on(make_world: Callable[..., World], tmp_path: Path, moment: tuple[str, str]) -> None:
    world = make_world(nodes=1)
    world.start()
    world.wait_writable()
    node = world.nodes[0]
    assert node.stop(60) == 0
    node.start()
    with Hold(moment, tmp_path / "strace") as hold:
        hold.kill_whoever_is_there([node])
    world.wait_writable()


@MOMENTS
def test_of_three_another_gets_its_turn(world: World, tmp_path: Path, moment: tuple[str, str]) -> None:
    """The primary is lost, and the Postgres that is promoted in its place is killed: two of three hold everything."""
    primary, standbys = world.primary(), world.standbys()
    assert primary is not None
    with world.writing() as writer:
        with Hold(moment, tmp_path / "strace") as hold:
            assert wait_for(lambda: all(hold.traces(node) for node in standbys), 10)
            killed_ns, _ = primary.kill_all()
            hold.kill_whoever_is_there(standbys)
        world.writes_again(writer, killed_ns)
        primary.start()
        world.wait_whole()
    world.check_no_loss(writer, everywhere=True)
