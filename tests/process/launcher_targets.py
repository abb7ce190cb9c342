"""What the launcher's test children run: imported in the launcher before it forks."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

started = "imported once, before the fork"


def report(args: Mapping[str, Any]) -> int:
    """Write what this child is to `path` (atomically), then wait for a signal unless `exit` is given."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    descriptors = {}
    for fd in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            descriptors[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
    target = Path(args["path"])
    partial = target.with_suffix(".part")
    partial.write_text(
        json.dumps(
            {
                "at_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                "pid": os.getpid(),
                "ppid": os.getppid(),
                "sid": os.getsid(0),
                "fds": descriptors,
                "comm": status["Name"],
                "cmdline": Path("/proc/self/cmdline").read_text(encoding="utf-8").split("\0")[0],
                "blocked": status["SigBlk"],
                "ignored": status["SigIgn"],
                "caught": status["SigCgt"],
                "threads": threading.active_count(),
                "modules": sorted(name for name in sys.modules if "." not in name),
                "args": dict(args),
            }
        ),
        encoding="utf-8",
    )
    partial.rename(target)
    if "exit" in args:
        return int(args["exit"])
    if "raise" in args:
        raise RuntimeError(args["raise"])
    signal.pause()
    return 0
