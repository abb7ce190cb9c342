"""The duties of an init: adopt orphans, reap the dead, take signals as data; and prctl(2), which Python lacks.

Works as PID 1 (where a signal without a handler is ignored) and below another init (as a child subreaper).
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from typing import Final

from supervisor.errors import MissingError

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
PR_GET_CHILD_SUBREAPER: Final = 37

HANDLED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGUSR1,
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one number; raises `OSError`."""
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}, {argument}): {os.strerror(error)}")


def adopt_orphans() -> None:
    """Make every orphan below us our child, instead of that of PID 1. Raises `MissingError`."""
    try:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    except OSError as exc:
        if os.getpid() != 1:
            raise MissingError(
                f"this process is neither PID 1 nor allowed to be a subreaper ({exc})",
                "allow prctl(PR_SET_CHILD_SUBREAPER) in the seccomp profile, or run pgr-supervise as PID 1",
            ) from None


def adopts_orphans() -> bool:
    """Whether orphans become ours: PID 1 of its namespace, or a subreaper."""
    flag = ctypes.c_int(0)
    return os.getpid() == 1 or (
        _libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.addressof(flag), 0, 0, 0) == 0 and flag.value == 1
    )


def reap() -> list[tuple[int, int]]:
    """(pid, wait status) of every child that has ended; empty if none has, or if there is no child at all."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, status))


def die_with_parent(parent_pid: int, signum: int) -> bool:
    """Ask the kernel for `signum` when our parent dies; False if `parent_pid` is no longer our parent.

    Holds for this thread's life until a change of credentials, and is sent again on every change of parent: call it
    after the adoption, from the main thread, after setuid.
    """
    prctl(PR_SET_PDEATHSIG, signum)
    return os.getppid() == parent_pid


def set_title(title: str) -> None:
    """What ps and top show, both the 15 bytes of comm and the command line (which keeps its original length)."""
    name = ctypes.create_string_buffer(title.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(name))
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end: fields 48 and 49 of proc(5)
    if start and end - start > len(title):
        ctypes.memmove(start, title.encode().ljust(end - start, b"\0"), end - start)


def hold_signals() -> None:
    """Keep our signals pending until `Signals` exists: none is lost, or kills us, while we start."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def default_signals(keep_ignored: Iterable[int] = ()) -> None:
    """Default dispositions, an empty mask and no wakeup descriptor: what a new program expects to find."""
    signal.set_wakeup_fd(-1)
    ignored = frozenset(keep_ignored)
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signum, signal.SIG_IGN if signum in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Signals:
    """Signals as data: `fileno()` is readable when `read()` has something; the handlers themselves do nothing.

    Only one may exist, in the main thread. SIGPIPE is ignored. exec resets handlers, so children that are exec'ed start
    with the default dispositions.
    """

    def __init__(self, handled: Iterable[signal.Signals] = HANDLED) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._handled = frozenset(handled)
        for signum in self._handled:
            signal.signal(signum, _nothing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handled)

    def fileno(self) -> int:
        return self._reader

    def read(self) -> list[signal.Signals]:
        """What has arrived since the last call, each signal once, in the order of arrival. Never blocks."""
        arrived: dict[signal.Signals, None] = {}
        while True:
            try:
                data = os.read(self._reader, 4096)
            except BlockingIOError:
                return list(arrived)
            for number in data:
                if number in self._handled:
                    arrived[signal.Signals(number)] = None

    def close(self) -> None:
        """Back to the default dispositions."""
        signal.set_wakeup_fd(-1)
        for signum in self._handled:
            signal.signal(signum, signal.SIG_DFL)
        os.close(self._reader)
        os.close(self._writer)


def _nothing(_signum: int, _frame: object) -> None:
    """The byte in the pipe is all we want; without a handler the kernel would act on its own."""
