"""What the launcher's children are told, from JSON to the types of the lower packages (which know no launcher)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fencing.process
from fencing.lease import Timings


def run_watchdog(args: Mapping[str, Any]) -> int:
    """`fencing.process.run` from {run_dir, pgdata, parent_pid, timings {..._ms}, device, mode, parent_start_ticks?,
    cgroup?}."""
    return fencing.process.run(
        fencing.process.WatchdogConfig(
            run_dir=Path(args["run_dir"]),
            pgdata=Path(args["pgdata"]),
            parent_pid=int(args["parent_pid"]),
            timings=Timings(**args["timings"]),
            parent_start_ticks=int(args.get("parent_start_ticks", 0)),
            cgroup=Path(args["cgroup"]) if args.get("cgroup") else None,
            device=str(args["device"]),
            mode=str(args["mode"]),
        )
    )
