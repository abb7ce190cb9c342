"""Being on time: scheduling class, locked memory, no garbage collector pauses (research/limits.md, "Wake-up lateness").

Each process calls these for itself (none of it passes through fork). Where root is dropped first, whoever drops it
calls ``permit`` before: the limits it raises are inherited and let an ordinary user do the rest.
"""

from __future__ import annotations

import gc
import os
import resource

RR_PRIORITY = 1
"""The lowest of SCHED_RR is already above every ordinary process."""
NICE = (-20, -10, -5)
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4


def permit() -> tuple[str, ...]:
    """Raise the limits that raise_priority and lock_memory need; the names of those that could be raised (by root)."""
    raised = []
    limits = {"RLIMIT_RTPRIO": RR_PRIORITY, "RLIMIT_NICE": 30, "RLIMIT_MEMLOCK": resource.RLIM_INFINITY}
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
            raised.append(name)
        except (ValueError, OSError):
            continue  # the answer says so
    return tuple(raised)


def raise_priority() -> str:
    """Take the best scheduling class on offer and say which it is: "SCHED_RR", "nice -10" or "normal".

    SCHED_RR is refused without CAP_SYS_NICE (or RLIMIT_RTPRIO) and in cgroups with rt_runtime_us = 0. It is taken with
    SCHED_RESET_ON_FORK, so nothing we might start inherits it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(RR_PRIORITY))
        return "SCHED_RR"
    except OSError:
        pass  # the answer says so: the next best thing follows
    for nice in NICE:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
            return f"nice {nice}"
        except OSError:
            continue  # a weaker one may be allowed (RLIMIT_NICE)
    return scheduling()


def scheduling() -> str:
    """What this process has now, in the words of raise_priority."""
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR:
        return "SCHED_RR"
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    return f"nice {nice}" if nice < 0 else "normal"


def lock_memory() -> bool:
    """Keep our pages from being swapped out; True if that is in force.

    Only with an unlimited RLIMIT_MEMLOCK: under a smaller one MCL_FUTURE makes later allocations fail, which would
    kill the watchdog instead of helping it. MCL_ONFAULT because locking everything at once costs 24 MB.
    """
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
            return False
    import ctypes  # 0.5 MB, so only here

    return bool(ctypes.CDLL(None).mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0)


def spare_from_oom() -> bool:
    """Ask the kernel to kill others first when memory runs out; True if it agreed (takes CAP_SYS_RESOURCE)."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-1000")
    except OSError:
        return False
    return True


def quiet_gc() -> None:
    """No collection pauses from here on; for a process that makes no reference cycles in its loop."""
    compact()
    gc.freeze()
    gc.disable()


def compact() -> None:
    """Give the kernel back what imports and a start leave unused, about 1 MB; takes some 10 ms."""
    gc.collect()
    import ctypes  # 0.5 MB, so only here

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
    if trim is not None:
        trim(0)
