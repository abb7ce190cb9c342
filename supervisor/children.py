"""Exit statuses of child processes in a process that reaps every orphan.

The parent is a subreaper whose loop calls ``waitpid(-1)``; whoever reaps first would steal the status from
``Popen.wait``. So nobody waits for a child by himself: the loop hands what it reaps to this table, and those who
care ask the table.
"""

from __future__ import annotations

import os
from collections import OrderedDict

UNKNOWN = -256
"""Stands for the status of a process that is gone and was reaped where nobody took note."""

_REMEMBERED = 256


class ChildTable:
    """pid -> return code (exit status, or minus the signal's number)."""

    def __init__(self) -> None:
        self._expected: set[int] = set()
        self._codes: OrderedDict[int, int] = OrderedDict()

    def expect(self, pid: int) -> None:
        """A child was just started here: forget an earlier process of that number, keep the status until ``forget``."""
        self._codes.pop(pid, None)
        self._expected.add(pid)

    def reap(self, pid: int, status: int) -> None:
        """Take a raw wait status from the loop's ``waitpid(-1)``. Strangers' are kept too, the last 256 of them."""
        self._codes[pid] = os.waitstatus_to_exitcode(status)
        self._codes.move_to_end(pid)
        strangers = [known for known in self._codes if known not in self._expected]
        for known in strangers[:-_REMEMBERED]:
            del self._codes[known]

    def reap_all(self) -> list[int]:
        """Reap every child that has ended; the pids. What the loop calls on SIGCHLD."""
        pids: list[int] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return pids
            if pid == 0:
                return pids
            self.reap(pid, status)
            pids.append(pid)

    def poll(self, pid: int) -> int | None:
        """The return code once the process has ended; None while it runs; UNKNOWN: not our child, and not alive."""
        if pid not in self._codes:
            try:
                reaped, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                return None if _alive(pid) else UNKNOWN
            if reaped == 0:
                return None
            self.reap(pid, status)
        return self._codes[pid]

    def forget(self, pid: int) -> None:
        """Nobody will ask for this one again."""
        self._expected.discard(pid)
        self._codes.pop(pid, None)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process: it is there
    return True
