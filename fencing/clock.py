"""The only reader of the clock: everything else is told what time it is."""

from __future__ import annotations

import time


def now_ns() -> int:
    """Nanoseconds of CLOCK_BOOTTIME: monotonic, counts the time a machine was suspended, means nothing elsewhere."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
