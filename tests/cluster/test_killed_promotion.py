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
from tests.cluster.test_quorum_promises import mutate
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
FIRST, SECOND = (f"rename:delay_exit={HELD_S}s:when={nth}" for nth in (1, 2))
"""A promotion's renames: the first file of the timeline's WAL, then its history. By number: strace's own match of a
path (-P) misses some."""
WAITS = """
from pathlib import Path
from supervisor.promote import Promotion
from supervisor.tasks import sleep

shipped = Promotion._promote_now

def once_traced(self, grant, began):
    while Path({hold!r}).exists():
        Path({begins!r}).touch()
        yield from sleep(3_000_000)
    yield from shipped(self, grant, began)

Promotion._promote_now = once_traced
"""
"""A promotion goes on when the file ``hold`` is gone: by then its startup process is traced."""
ALL_FILES_COUNT = """
from supervisor.steps import Steps

Steps._never_used = lambda self: frozenset()
"""
"""The file of a promotion that was killed counts as WAL of its timeline, though nothing was written to it."""
MOMENTS = pytest.mark.parametrize("moment", [FIRST, SECOND], ids=["before its history file", "after it"])


def startup_of(node: LocalNode) -> int:
    """Its Postgres's startup process; 0: there is none."""
    for one in processes().values():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{one.pid}/cmdline").read_bytes()
            if b"startup" in line and os.readlink(f"/proc/{one.pid}/cwd") == str(node.data / "pgdata"):
                return one.pid
    return 0


class Hold:
    """A promotion begins when its startup process is traced, gets as far as ``moment``, waits there and is killed."""

    def __init__(self, moment: str, home: Path) -> None:
        self.moment, self.home = moment, home
        self.hold, self.begins = home / "hold", home / "begins"
        self.tracers: dict[int, subprocess.Popen[bytes]] = {}

    def teach(self, world: World, node: LocalNode, patch: str = "") -> None:
        """From its next start on, ``node`` waits for the tracing; ``patch``: what else is changed in it."""
        self.home.mkdir(exist_ok=True)
        self.home.chmod(0o777)
        mutate(world, node, WAITS.format(hold=str(self.hold), begins=str(self.begins)) + patch)

    def __enter__(self) -> Hold:
        self.hold.touch()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.unlink(missing_ok=True)
        for tracer in self.tracers.values():
            tracer.terminate()
            tracer.wait()

    def trace(self, node: LocalNode) -> int:
        """Of a Postgres that was restarted meanwhile (a freeze that took too long) the new one. Its pid; 0: none."""
        pid = startup_of(node)
        if pid and pid not in self.tracers:
            out = str(self.home / f"strace.{pid}")
            what = ["-e", "trace=rename", "-e", f"inject={self.moment}"]
            self.tracers[pid] = subprocess.Popen(["strace", "-qq", "-o", out, *what, "-p", str(pid)])
        return pid

    def traces(self, node: LocalNode) -> bool:
        pid = self.trace(node)
        tracer = self.tracers.get(pid)
        with contextlib.suppress(OSError):
            return tracer is not None and f"TracerPid:\t{tracer.pid}" in Path(f"/proc/{pid}/status").read_text()
        return False

    def kill_whoever_is_there(self, nodes: Sequence[LocalNode]) -> None:
        """SIGKILL for the startup process that waits at the moment."""
        assert wait_for(self.begins.exists, 30), "nobody begins a promotion"
        assert wait_for(lambda: all(self.traces(node) for node in nodes), 10)
        self.hold.unlink()
        assert wait_for(lambda: any(self._is_there(node) for node in nodes), 20, 0.002)

    def _is_there(self, node: LocalNode) -> bool:
        pid, wal = startup_of(node), node.data / "pgdata" / "pg_wal"
        begun = any(name.startswith("00000003") and len(name) == 24 for name in os.listdir(wal))
        if not pid or not begun or (self.moment is SECOND and not (wal.parent / NEXT_HISTORY).exists()):
            return False
        os.kill(pid, signal.SIGKILL)
        return True


@MOMENTS
def test_a_lone_node_goes_on(make_world: Callable[..., World], moment: str) -> None:
    world = make_world(nodes=1)
    world.start()
    world.wait_writable()
    node = world.nodes[0]
    assert node.stop(60) == 0
    hold = Hold(moment, world.home / "held")
    hold.teach(world, node)
    with hold:
        node.start()
        hold.kill_whoever_is_there([node])
    world.wait_writable()


@MOMENTS
def test_of_three_another_gets_its_turn(make_world: Callable[..., World], moment: str) -> None:
    """The primary is lost, and the Postgres that is promoted in its place is killed: two of three hold everything."""
    world = make_world()
    hold = Hold(moment, world.home / "held")
    for node in world.nodes:
        hold.teach(world, node)
    world.start()
    world.wait_writable(standbys=2)
    primary, standbys = world.wait_writable(), world.standbys()
    with world.writing() as writer:
        with hold:
            killed_ns, _ = primary.kill_all()
            hold.kill_whoever_is_there(standbys)
        world.writes_again(writer, killed_ns)
        primary.start()
        world.wait_whole()
    world.check_no_loss(writer, everywhere=True)


def test_control_a_file_nobody_wrote_to_taken_for_wal_leaves_no_primary(make_world: Callable[..., World]) -> None:
    """The killed one has no position for ever, and with the old primary gone there is no read quorum."""
    world = make_world()
    hold = Hold(FIRST, world.home / "held")
    for node in world.nodes:
        hold.teach(world, node, ALL_FILES_COUNT)
    world.start()
    world.wait_writable(standbys=2)
    primary, standbys = world.wait_writable(), world.standbys()
    with hold:
        primary.kill_all()
        hold.kill_whoever_is_there(standbys)
    says = "the newest WAL is on timeline 3, the term history says 2"
    world.settles(lambda: says in world.describe(), "one of them has no position", world.describe)
    assert not wait_for(lambda: world.primary() is not None, 10)
    assert says in world.describe()
