"""The hardware watchdog of this machine (/dev/watchdog), the last rung of the fencing ladder (safety.md).

It resets the machine when nobody has told it for a while that all is well: what is left for the case that every
process of this node is frozen, or that killed processes do not end (a disk that hangs). It runs while Postgres is
armed, is told so only when a majority has renewed the lease, and is stopped once nothing of Postgres can be writable.
With this process gone for good, or a kill that does not end, the machine is reset.

The kernel counts in whole seconds from the last word (it knows no absolute deadline), so the time it gets is the least
number of them that lease and kill bound fit into. Source: Documentation/watchdog/watchdog-api.rst of the kernel.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path

from fencing.lease import Timings

OFF, AUTOMATIC, REQUIRED = MODES = ("off", "automatic", "required")
DEVICE = "/dev/watchdog"
_ALL_IS_WELL, _STOP = b"1", b"V"
"""Anything counts as well; V right before the close stops it ("magic close")."""

Ioctl = Callable[[int, int, bytes], bytes]


class HardwareError(Exception):
    """Why the device can not be used: one sentence, and what to do about it."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def timeout_s(timings: Timings) -> int:
    """What the device is asked for: the least number of seconds that is not below L + F."""
    return _seconds(timings.lease_ms + timings.kill_bound_ms)


def _seconds(ms: int) -> int:
    return -(-ms // 1000)


class Hardware:
    """One device, open only while it runs. ``state``: for people, one line."""

    def __init__(self, device: str, mode: str, timings: Timings, call: Ioctl | None = None) -> None:
        self.device, self.mode, self.wanted_s = device, mode, timeout_s(timings)
        self.call: Ioctl = call or ioctl
        self.fd = -1
        self.problem: HardwareError | None = None
        """Why it could not be used last."""

    @property
    def state(self) -> str:
        if self.mode == OFF:
            return "off"
        if self.problem is not None:
            return f"not used: {self.problem}"
        return f"{self.device}, {self.wanted_s} s, {'armed' if self.fd >= 0 else 'ready'}"

    @property
    def missing(self) -> bool:
        """It is required and can not be used: nothing may be armed."""
        return self.mode == REQUIRED and self.problem is not None

    def probe(self) -> None:
        """Can it be used? Also stops one that a process before this one has left running."""
        self.start()
        self.stop()

    def start(self) -> None:
        """Let it run, unless it does already. What is wrong with it stands in ``problem`` then."""
        if self.mode == OFF or self.fd >= 0:
            return
        self.problem = None
        try:
            self.fd = self._opened()
            self._set_timeout()
        except HardwareError as error:
            self.problem = error
            self.stop()
        else:
            self.pet()

    def retime(self, ms: int) -> None:
        """L + F are this much now. One that runs goes on with it; if it can't, it is stopped: it might reset a machine
        whose lease is well."""
        wanted_s, self.wanted_s = self.wanted_s, _seconds(ms)
        if self.fd < 0 or wanted_s == self.wanted_s:
            return
        try:
            self._set_timeout()
        except HardwareError as error:
            self.problem = error
            self.stop()

    def pet(self) -> None:
        """The lease was renewed."""
        if self.fd >= 0:
            with suppress(OSError):  # then the machine is reset, which is what a device that fails is for
                os.write(self.fd, _ALL_IS_WELL)

    def stop(self) -> None:
        """Nothing of Postgres can be writable any more."""
        if self.fd >= 0:
            with suppress(OSError):
                os.write(self.fd, _STOP)
            self.abandon()

    def abandon(self) -> None:
        """Closed without the word that stops it: the machine is reset when its time is over."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _opened(self) -> int:
        if _cannot_be_stopped(self.device):
            raise HardwareError(
                f"{self.device} can not be stopped any more once it runs (nowayout)",
                "load its driver with nowayout=0, or run with --watchdog off",
            )
        try:
            return os.open(self.device, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise HardwareError(
                f"{self.device} can not be opened: {os.strerror(error.errno or 0)}", _remedy(self.device, error.errno)
            ) from error

    def _set_timeout(self) -> None:
        try:
            self.call(self.fd, _SETTIMEOUT, self.wanted_s.to_bytes(4, sys.byteorder))
            found_s = int.from_bytes(self.call(self.fd, _GETTIMEOUT, bytes(4)), sys.byteorder)
        except OSError as error:
            raise HardwareError(
                f"{self.device} does not take a timeout of {self.wanted_s} s: {os.strerror(error.errno or 0)}", _SLOWER
            ) from error
        if not 0 < found_s <= self.wanted_s:
            raise HardwareError(
                f"{self.device} is to reset the machine after {self.wanted_s} s and takes no less than {found_s} s",
                _SLOWER,
            )


_SLOWER = "give the cluster a slower profile (pgr config set), use another device, or run with --watchdog off"


def _remedy(device: str, code: int | None) -> str:
    match code:
        case errno.EACCES | errno.EPERM:
            return f"let the user that pgr runs as write to {device} (a udev rule), or run with --watchdog off"
        case errno.EBUSY:
            return "another program has it (systemd's RuntimeWatchdogSec?): stop that, or run with --watchdog off"
        case _:
            return "load a driver (without hardware: modprobe softdog), or run with --watchdog off"


def _cannot_be_stopped(device: str) -> bool:
    """By sysfs, without opening it, which would let it run. Unknown counts as no: closing shows it."""
    name = os.path.basename(device)  # noqa: PTH119  # no Path objects where every MB counts
    number = name.removeprefix("watchdog") or "0"
    try:
        return Path(f"/sys/class/watchdog/watchdog{number}/nowayout").read_text(encoding="ascii").strip() == "1"
    except (OSError, ValueError):
        return False


def _request(*, writes: bool, number: int) -> int:
    """ioctl request number of WDIOC_*: an int of 4 bytes that is read back (`_IOR`), or written and read (`_IOWR`)."""
    if os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha")):
        read, write, shift = 2, 4, 29
    else:
        read, write, shift = 2, 1, 30
    return (read | (write if writes else 0)) << shift | 4 << 16 | ord("W") << 8 | number


_SETTIMEOUT, _GETTIMEOUT = _request(writes=True, number=6), _request(writes=False, number=7)
