"""Disks of nodes that are full or slow: small file systems below their directories, fsync that takes its time."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from supervisor.localcluster import LocalNode, own, processes
from tests.net.world import NetWorld

BLOCK_BYTES = 1 << 16
SYNCS = "fsync,fdatasync"


def missing() -> str:
    """Why fsync can't be made slow here; empty: it can."""
    return "" if shutil.which("strace") else "needs strace: apt-get install strace"


class Disk:
    """A small file system, mounted on ``place``, which the nodes' user owns."""

    def __init__(self, place: Path, megabytes: int) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "pgr-test", place], check=True)
        own(place)

    @property
    def _ballast(self) -> Path:
        return self.place / "ballast"

    def fill(self) -> None:
        """Not a byte is left."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (BLOCK_BYTES, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def drain(self) -> None:
        """There is room again. In pg_wal a rewind has removed what the source does not have: this, too."""
        self._ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.place], check=True)


class Disks:
    """Those of a world's nodes. `close` when their processes are gone, and before their directories are removed."""

    def __init__(self, world: NetWorld) -> None:
        self.world = world
        self._made: list[Disk] = []
        self._bound: list[Path] = []

    def _disk(self, place: Path, megabytes: int) -> Disk:
        self._made.append(Disk(place, megabytes))
        return self._made[-1]

    def everything(self, node: LocalNode, megabytes: int = 700) -> Disk:
        """All of DIR; before its first start."""
        return self._disk(node.data, megabytes)

    def all_but_raft(self, node: LocalNode, megabytes: int = 700) -> Disk:
        """DIR but DIR/raft; before its first start."""
        disk = self.everything(node, megabytes)
        elsewhere, raft = self.world.home / f"raft-{node.name}", node.data / "raft"
        for path in (elsewhere, raft):
            path.mkdir(mode=0o700)
            own(path)
        subprocess.run(["mount", "--bind", elsewhere, raft], check=True)
        self._bound.append(raft)
        return disk

    def wal(self, node: LocalNode, megabytes: int = 500) -> Disk:
        """Its pg_wal becomes a link to this; the node is down meanwhile."""
        disk = self._disk(self.world.home / f"wal-{node.name}", megabytes)
        self._move(node, disk.place)
        return disk

    def wal_elsewhere(self, node: LocalNode) -> None:
        """Its pg_wal is on none of the small file systems; the node is down meanwhile."""
        place = self.world.home / f"wal-{node.name}"
        place.mkdir(mode=0o700)
        own(place)
        self._move(node, place)

    def _move(self, node: LocalNode, place: Path) -> None:
        wal = node.data / "pgdata" / "pg_wal"
        node.kill_all()
        subprocess.run(["cp", "-a", f"{wal}/.", place], check=True)
        shutil.rmtree(wal)
        wal.symlink_to(place)
        os.lchown(wal, place.stat().st_uid, place.stat().st_gid)
        node.start()
        self.world.wait_whole()

    def close(self, failed: bool) -> None:
        for node in self.world.nodes:
            if node.process is not None:
                node.kill_all()
        if failed:
            self.world.print_logs()
        for raft in self._bound:
            subprocess.run(["umount", raft], check=True)
        for disk in reversed(self._made):
            disk.unmount()


@contextlib.contextmanager
def slow(pids: Sequence[int], delay_ms: int) -> Iterator[None]:
    """Each fsync of these processes, and of those they start, takes so much longer."""
    inject = f"inject={SYNCS}:delay_enter={delay_ms}ms"
    words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={SYNCS}", "-e", inject]
    tracer = subprocess.Popen([*words, *(word for pid in pids for word in ("-p", str(pid)))])
    # All of them stop at each system call until it has looked; that it has to wait for its turn is no slow disk.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(tracer.pid, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        tracer.terminate()  # it lets them go
        tracer.wait(30)


def traced(pids: Sequence[int]) -> bool:
    """Is each of them (that is still there) traced?"""
    table = processes()
    texts = [Path(f"/proc/{pid}/status") for pid in pids if pid in table]
    return all("TracerPid:\t0" not in text.read_text() for text in texts if text.exists())
