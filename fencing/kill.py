"""Fencing: find every process of a data directory, kill it in the right order, verify that nothing is left.

Killing the postmaster alone leaves its backends alive and acknowledging, and so does its process group, since each
backend has a session of its own (research/limits.md, "Killing Postgres"). So: stop the postmaster (it can neither fork
nor restart anything), kill its descendants and whatever else works in PGDATA, kill the postmaster, look again.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fencing.clock import now_ns

ROUND_MS = 25
"""How long one round waits for its victims to exit before it looks for others."""


class ProcessId(NamedTuple):
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    start_ticks: int
    """Field 22 of /proc/PID/stat: clock ticks since boot."""


class FenceReport(NamedTuple):
    """What a fence did. It succeeded if and only if ``survivors`` is empty."""

    took_ns: int
    killed: int
    survivors: tuple[str, ...]
    """One sentence for each thing that is left."""


class _Stat(NamedTuple):
    pid: int
    name: str
    state: str
    parent: int
    start_ticks: int


class _Segment(NamedTuple):
    """The System V segment by which Postgres locks its data directory; every backend is attached to it."""

    key: int
    shmid: int


def process_id(pid: int) -> ProcessId:
    """The identity of a process; ProcessLookupError if there is none (a zombie still has one)."""
    stat = _stat(pid)
    if stat is None:
        raise ProcessLookupError(f"there is no process {pid}")
    return ProcessId(pid, stat.start_ticks)


def alive(process: ProcessId) -> bool:
    """Whether exactly this process runs; a zombie does not."""
    stat = _stat(process.pid)
    return stat is not None and stat.start_ticks == process.start_ticks and stat.state not in "ZX"


def members(pgdata: Path, postmaster: ProcessId | None) -> frozenset[ProcessId]:
    """Every live process of the cluster: the postmaster and its descendants, whatever has PGDATA as its working
    directory (so does every backend, also one without a parent), and whoever is attached to its shared memory. Never
    this process or its ancestors. Processes that may not be inspected (another user's) are found by descent only.
    """
    table = {stat.pid: stat for stat in _all_processes()}
    spared = _ancestors(table)
    found: set[int] = set()
    homes = {os.path.realpath(pgdata)}
    if postmaster is not None and postmaster.pid in table and _same(table[postmaster.pid], postmaster):
        found |= _descendants(table, postmaster.pid)
        if home := _working_directory(postmaster.pid):
            homes.add(home)
    homes |= {f"{home} (deleted)" for home in homes}
    found |= {pid for pid in table if pid not in spared and _working_directory(pid) in homes}
    live = {pid for pid in found - spared if table[pid].state not in "ZX"}
    with suppress(OSError):  # a PGDATA that cannot be read must not stop the killing; verify tells of it
        segment = _segment(pgdata)
        if segment is not None and not live and _attached(segment):
            live = {pid for pid in table if pid not in spared and _maps(pid, segment)}
    return frozenset(ProcessId(pid, table[pid].start_ticks) for pid in live)


def verify(pgdata: Path, postmaster: ProcessId | None) -> tuple[str, ...]:
    """What is left of the cluster, one sentence each; empty: it is gone. What cannot be known counts as left."""
    left = []
    for process in sorted(members(pgdata, postmaster)):
        stat = _stat(process.pid)
        if stat is not None and _same(stat, process) and stat.state not in "ZX":
            left.append(f"process {stat.pid} ({stat.name}) is in state {stat.state}")
    try:
        segment = _segment(pgdata)
    except OSError as error:
        return (*left, f"whether its shared memory is attached cannot be known: {error}")
    if segment is not None and (count := _attached(segment)):
        left.append(f"shared memory segment {segment.shmid} is attached by {count}")
    return tuple(left)


def fence(pgdata: Path, postmaster: ProcessId | None, until_ns: int, cgroup: Path | None = None) -> FenceReport:
    """Kill the whole cluster and verify it, in rounds until nothing is left or ``until_ns`` (CLOCK_BOOTTIME) passed.

    At least one full round is made, however late it is. ``cgroup``: a v2 group that holds this Postgres and nothing
    else; used only if the kernel offers cgroup.kill and we are not in it.
    """
    begun_ns = now_ns()
    struck: set[ProcessId] = set()
    if cgroup is not None:
        _kill_cgroup(cgroup)
    # First strike: what the kernel lists as children, before anything that depends on how many processes this host has.
    if postmaster is not None:
        _signal(postmaster, signal.SIGSTOP)
        struck |= _kill_and_wait(_children(postmaster), 0)
    while True:
        if postmaster is not None:
            _signal(postmaster, signal.SIGSTOP)
        found = members(pgdata, postmaster)
        left_ms = max(0, (until_ns - now_ns()) // 1_000_000)
        # Whoever has no parent among them may be a postmaster that nobody told us of: stopped first, killed last.
        roots = _roots(found)
        for process in roots - {postmaster}:
            _signal(process, signal.SIGSTOP)
        ordered = sorted(found, key=lambda process: (process == postmaster, process in roots))
        killed = _kill_and_wait(ordered, min(ROUND_MS, left_ms))
        struck |= killed
        left = verify(pgdata, postmaster)
        if not left or now_ns() >= until_ns:
            return FenceReport(now_ns() - begun_ns, len(struck), left)
        if not killed:  # nothing of it can be signalled or waited for: nobody will tell when to look again
            select.poll().poll(ROUND_MS)


def end(pids: Iterable[int], wait_ms: int) -> list[int]:
    """SIGKILL these processes, whatever they are; those that are still there after ``wait_ms``."""
    found = {stat.pid: ProcessId(stat.pid, stat.start_ticks) for pid in pids if (stat := _stat(pid)) is not None}
    _kill_and_wait(found.values(), wait_ms)
    return [pid for pid, process in found.items() if alive(process)]


def _kill_and_wait(processes: Iterable[ProcessId], wait_ms: int) -> set[ProcessId]:
    """SIGKILL each, then wait until all have exited (a pidfd becomes readable) or ``wait_ms`` are over."""
    poller, opened, struck = select.poll(), set[int](), set[ProcessId]()
    try:
        for process in processes:
            if (pidfd := _signal(process, signal.SIGKILL, keep=True)) is not None:
                struck.add(process)
                opened.add(pidfd)
                poller.register(pidfd, select.POLLIN)
        give_up_ns = now_ns() + wait_ms * 1_000_000
        waiting = set(opened)
        while waiting and (left_ns := give_up_ns - now_ns()) > 0:
            for pidfd, _ in poller.poll(-(-left_ns // 1_000_000)):
                poller.unregister(pidfd)
                waiting.discard(pidfd)
        return struck
    finally:
        for pidfd in opened:
            os.close(pidfd)


def _signal(process: ProcessId, number: signal.Signals, keep: bool = False) -> int | None:
    """Send to exactly this process. With ``keep`` its open pidfd (the caller closes it); None if there is no such
    process any more or we may not signal it, which verify will tell."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return None
    kept = False
    try:
        stat = _stat(process.pid)  # after opening: the pid cannot change hands under an open pidfd unnoticed
        if stat is None or not _same(stat, process):
            return None
        signal.pidfd_send_signal(pidfd, number)
        kept = keep
        return pidfd if keep else None
    except OSError:
        return None
    finally:
        if not kept:
            os.close(pidfd)


def _kill_cgroup(cgroup: Path) -> None:
    groups = (cgroup, *(path for path in cgroup.rglob("*") if path.is_dir()))
    us = {os.getpid(), os.getppid()}
    with suppress(OSError):  # no cgroup v2, no cgroup.kill, not ours: the signals below do the work
        inside = {int(line) for group in groups for line in (group / "cgroup.procs").read_text().split()}
        if not us & inside:
            (cgroup / "cgroup.kill").write_text("1")


def _children(process: ProcessId) -> list[ProcessId]:
    """All descendants by /proc/PID/task/PID/children; empty where the kernel has no such file (members finds them)."""
    found: list[ProcessId] = []
    queue = [process.pid]
    while queue:
        pid = queue.pop()
        with suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            for child in map(int, file.read().split()):
                stat = _stat(child)
                if stat is not None and stat.parent == pid and (pid != process.pid or alive(process)):
                    found.append(ProcessId(child, stat.start_ticks))
                    queue.append(child)
    return found


def _all_processes() -> Iterator[_Stat]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))) is not None:
            yield stat


def _stat(pid: int) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    head, _, tail = text.rpartition(")")  # the name may contain anything, parentheses too
    fields = tail.split()
    return _Stat(pid, head.partition("(")[2], fields[0], int(fields[1]), int(fields[19])) if len(fields) > 19 else None


def _same(stat: _Stat, process: ProcessId) -> bool:
    return (stat.pid, stat.start_ticks) == process


def _ancestors(table: dict[int, _Stat]) -> set[int]:
    """This process and all above it."""
    found, pid = set[int](), os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        pid = table[pid].parent if pid in table else 0
    return found


def _roots(processes: Iterable[ProcessId]) -> set[ProcessId]:
    """Those whose parent is not one of them."""
    pids = {process.pid for process in processes}
    stats = ((process, _stat(process.pid)) for process in processes)
    return {process for process, stat in stats if stat is not None and stat.parent not in pids}


def _descendants(table: dict[int, _Stat], root: int) -> set[int]:
    """``root`` and everything below it."""
    below: dict[int, list[int]] = {}
    for stat in table.values():
        below.setdefault(stat.parent, []).append(stat.pid)
    found, queue = set[int](), [root]
    while queue:
        pid = queue.pop()
        if pid not in found:
            found.add(pid)
            queue += below.get(pid, [])
    return found


def _working_directory(pid: int) -> str:
    """"" for kernel threads, zombies and processes that are not ours to inspect."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 (no Path objects where every millisecond counts)
    except OSError:
        return ""


def _segment(pgdata: Path) -> _Segment | None:
    """From line 7 of postmaster.pid; None if there is no such file or line (nothing was started, or it ended well)."""
    try:
        lines = (pgdata / "postmaster.pid").read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    words = lines[6].split() if len(lines) > 6 else []
    return _Segment(int(words[0]), int(words[1])) if len(words) == 2 and all(map(str.isdigit, words)) else None


def _attached(segment: _Segment) -> int:
    """How many processes are attached to the segment; 0 if it does not exist (or the kernel has no System V memory)."""
    try:
        with open("/proc/sysvipc/shm", encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
    except FileNotFoundError:
        return 0
    # key is printed signed, postmaster.pid has it unsigned
    matches = (row for row in rows if (int(row[0]) - segment.key) % (1 << 32) == 0 and int(row[1]) == segment.shmid)
    return sum(int(row[6]) for row in matches)


def _maps(pid: int, segment: _Segment) -> bool:
    """Whether a process has the segment mapped: the way to one that has left PGDATA and lost its parent."""
    name, inode = f"/SYSV{segment.key:08x}", f" {segment.shmid} "
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            return any(name in line and inode in line for line in file)
    except OSError:
        return False
