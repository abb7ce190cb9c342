"""This machine's own CLOCK_REALTIME, set by so little that nobody minds, to see who is told that it was set."""

from __future__ import annotations

import ctypes
import os
import time

_ADJ_SETOFFSET = 0x0100


class _Timex(ctypes.Structure):
    """adjtimex(2); only what is before ``rest`` is used."""

    _fields_ = (
        ("modes", ctypes.c_uint), *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int), *((name, ctypes.c_long) for name in ("constant", "precision", "tolerance")),
        ("seconds", ctypes.c_long), ("microseconds", ctypes.c_long), ("rest", ctypes.c_long * 24),
    )  # fmt: skip


def set_on(microseconds: int) -> None:
    """Moved by so much; timerfds that asked for it are told, those of everybody. OSError if that is forbidden."""
    libc = ctypes.CDLL(None, use_errno=True)
    seconds, part = divmod(microseconds, 1_000_000)
    asked = _Timex(modes=_ADJ_SETOFFSET, seconds=seconds, microseconds=part)
    if libc.clock_adjtime(time.CLOCK_REALTIME, ctypes.byref(asked)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
