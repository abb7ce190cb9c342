"""Timers as file descriptors that notice a suspended machine and a clock that was set (timerfd_create(2)).

A poll timeout stops while the machine is suspended: a deadline that passed meanwhile would be noticed late by all that
was left of it. A timerfd on CLOCK_BOOTTIME is readable at once after the resume.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

CLOCK_REALTIME, CLOCK_BOOTTIME = 0, 7
TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2
FAR_S = 1 << 33
"""An instant of CLOCK_REALTIME nobody will see (the year 2242)."""


class _Spec(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns"))


def _create(clock: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.timerfd_create(clock, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    return fd


def _set(fd: int, flags: int, at_s: int, at_ns: int) -> None:
    spec = _Spec(0, 0, at_s, at_ns)
    libc = ctypes.CDLL(None, use_errno=True)
    # ECANCELED: the clock was set since the last time; this call says so, and has set the timer all the same.
    if libc.timerfd_settime(fd, flags, ctypes.byref(spec), None) < 0 and ctypes.get_errno() != errno.ECANCELED:
        raise OSError(ctypes.get_errno(), "timerfd_settime")


class Alarm:
    """Readable from an instant of CLOCK_BOOTTIME on, until set anew."""

    def __init__(self) -> None:
        self.fd = _create(CLOCK_BOOTTIME)
        self._at_ns: int | None = None

    def set(self, at_ns: int | None) -> None:
        """``at_ns`` in the past: at once. None: never."""
        if at_ns != self._at_ns:
            wanted_ns = 0 if at_ns is None else max(1, at_ns)  # 0 would disarm it
            _set(self.fd, TFD_TIMER_ABSTIME, *divmod(wanted_ns, 1_000_000_000))
            self._at_ns = at_ns

    def close(self) -> None:
        os.close(self.fd)


class ClockWatch:
    """Readable when somebody set CLOCK_REALTIME (or the machine was resumed)."""

    def __init__(self) -> None:
        self.fd = _create(CLOCK_REALTIME)
        self._offset_ns = self._measure()

    def _measure(self) -> int:
        _set(self.fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, FAR_S, 0)
        return time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def jumped_ns(self) -> int:
        """How far CLOCK_REALTIME minus CLOCK_BOOTTIME moved since the last call."""
        before_ns, self._offset_ns = self._offset_ns, self._measure()
        return self._offset_ns - before_ns

    def close(self) -> None:
        os.close(self.fd)
