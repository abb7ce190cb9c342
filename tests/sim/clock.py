"""The clock of one machine: its own rate and start, seen from the world's true time."""

from __future__ import annotations

MILLION = 1_000_000
DRIFT_PPM_MAX = 20_000
"""rho of safety.md: 2 %."""


class Clock:
    """CLOCK_BOOTTIME of one machine. Integers only, so that a replay is exact."""

    __slots__ = ("_local", "_rate", "_true", "stopped")

    def __init__(self, drift_ppm: int, offset_ns: int) -> None:
        self._true, self._local = 0, offset_ns
        self._rate = MILLION + drift_ppm
        self.stopped = False
        """A virtual machine that is paused without noticing."""

    def local(self, true_ns: int) -> int:
        if self.stopped:
            return self._local
        return self._local + (true_ns - self._true) * self._rate // MILLION

    def true(self, local_ns: int) -> int:
        """The first true instant at which this clock shows at least ``local_ns``; of a stopped one: never mind."""
        return self._true - (-(local_ns - self._local) * MILLION // self._rate)

    def drift(self, true_ns: int, drift_ppm: int) -> None:
        self._local, self._true = self.local(true_ns), true_ns
        self._rate = MILLION + drift_ppm

    def stop(self, true_ns: int) -> None:
        self._local, self._true = self.local(true_ns), true_ns
        self.stopped = True

    def reboot(self, true_ns: int, uptime_ns: int) -> None:
        """CLOCK_BOOTTIME begins anew."""
        self._local, self._true, self.stopped = uptime_ns, true_ns, False

    def go_on(self, true_ns: int) -> None:
        self._true, self.stopped = true_ns, False
