"""The clocks of one node, as its processes read them: CLOCK_REALTIME jumps, CLOCK_BOOTTIME did not count a pause.

The machine's own clock is left alone, as everybody on it would be told. pgr's processes get what they read from a patch
of `time`, Postgres from libfaketime (CLOCK_REALTIME alone; it is preloaded into nothing else, as it takes over waiting
too). That a clock was *set* the kernel tells by a timerfd (tests/process/test_fencing.py); here it is a named pipe.
"""

from __future__ import annotations

import os
from pathlib import Path

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode, own
from tests.cluster.test_quorum_promises import mutate
from tests.net.network import Instant
from tests.net.world import NetWorld

PATCH = """
import os
import time
import fencing.timer
import supervisor.jobs
import supervisor.postgres

def shifts():
    with open({shifts!r}) as file:
        return [int(word) for word in file.read().split()]

plain, alarm, environment = time.clock_gettime_ns, fencing.timer.Alarm.set, supervisor.jobs.clean_env

def clock_gettime_ns(which):
    realtime, boottime = shifts()
    return plain(which) + {{time.CLOCK_REALTIME: realtime, time.CLOCK_BOOTTIME: boottime}}.get(which, 0)

def watch(self):
    self.fd = os.open({told!r}, os.O_RDWR | os.O_NONBLOCK)
    self._offset_ns = self._measure()

def measure(self):
    try:
        os.read(self.fd, 4096)
    except BlockingIOError:
        pass
    return clock_gettime_ns(time.CLOCK_REALTIME) - clock_gettime_ns(time.CLOCK_BOOTTIME)

time.clock_gettime_ns = clock_gettime_ns
time.time_ns = lambda: clock_gettime_ns(time.CLOCK_REALTIME)
fencing.timer.Alarm.set = lambda self, at_ns: alarm(self, None if at_ns is None else at_ns - shifts()[1])
fencing.timer.ClockWatch.__init__, fencing.timer.ClockWatch._measure = watch, measure
supervisor.postgres.clean_env = lambda env: environment(env) | {postgres!r}
"""
_LEFT = ("faketime_shm_{}", "sem.faketime_sem_{}")


def library() -> str:
    """libfaketime; empty: there is none."""
    found = sorted(Path("/usr").glob("lib*/**/faketime/libfaketime.so.1"))
    return str(found[0]) if found else ""


def missing() -> str:
    """Why no clock can be changed here; empty: it can."""
    return "" if library() else "needs libfaketime: apt-get install libfaketime"


class Clocks:
    """Those of each node of a world; made before it is started. `close` when its processes are gone."""

    def __init__(self, world: NetWorld, patch: str = "") -> None:
        """``patch``: what else is changed in the nodes."""
        self.world = world
        for node in world.nodes:
            self.set(node)
            os.mkfifo(self._file(node, "told"))
            own(self._file(node, "told"))
            postgres = {
                "LD_PRELOAD": library(),
                "FAKETIME_TIMESTAMP_FILE": str(self._file(node, "postgres")),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            }
            shifts, told = (str(self._file(node, what)) for what in ("pgr", "told"))
            mutate(world, node, PATCH.format(shifts=shifts, told=told, postgres=postgres) + patch)

    def _file(self, node: LocalNode, what: str) -> Path:
        return self.world.home / f"clock-{node.name}-{what}"

    def set(self, node: LocalNode, realtime_s: float = 0, boottime_s: float = 0) -> None:
        """From now on the node's clocks are so far from those of the machine."""
        texts = {
            "postgres": f"{realtime_s:+.3f}s\n",
            "pgr": f"{int(realtime_s * SECOND)} {int(boottime_s * SECOND)}\n",
        }
        for who, text in texts.items():
            new = self._file(node, f"{who}.new")
            new.write_text(text, encoding="utf-8")
            new.chmod(0o644)
            new.rename(self._file(node, who))

    def tell(self, node: LocalNode) -> Instant:
        """As the kernel does when the clock was set: the node compares what it reads with what it has read before."""
        begin_ns = now_ns()
        fd = os.open(self._file(node, "told"), os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b".")
        os.close(fd)
        return Instant(begin_ns, now_ns())

    def jump(self, node: LocalNode, realtime_s: float) -> Instant:
        self.set(node, realtime_s)
        return self.tell(node)

    def close(self) -> None:
        """What libfaketime leaves of a Postgres that was killed."""
        for node in self.world.nodes:
            for event in self.world.logged(node, "postgres.starting"):
                for name in _LEFT:
                    Path("/dev/shm", name.format(event["fields"]["pid"])).unlink(missing_ok=True)


def other_times(days: int) -> tuple[str, ...]:
    """Words before a command that is to run with CLOCK_BOOTTIME and CLOCK_MONOTONIC so many days ahead."""
    ahead = str(days * 86_400)
    return ("unshare", "--time", "--boottime", ahead, "--monotonic", ahead, "--")


def no_other_times() -> str:
    """Why there are none; empty: there are."""
    return "" if Path("/proc/self/ns/time").exists() else "needs a kernel with time namespaces"
