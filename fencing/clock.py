"""The only reader of the clock: everything else is told what time it is."""

from __future__ import annotations

import time


def now_ns() -> int:
    """Nanoseconds of CLOCK_BOOTTIME: monotonic, counts the time a machine was suspended, means nothing elsewhere."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def uptime_ms() -> int:
    """What /proc/uptime says: the same clock, as far as programs can read it that have only files (SQL). Where a
    container is shown an uptime of its own, it differs from :func:`now_ns`."""
    with open("/proc/uptime", encoding="ascii") as file:
        whole, _, part = file.read().split(maxsplit=1)[0].partition(".")
    return int(whole) * 1000 + int(part.ljust(3, "0")[:3])
