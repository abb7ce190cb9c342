"""Numbers and what surrounds them: percentiles, load, memory and CPU of processes, a table and JSON."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from supervisor import render


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: a value that was measured, never one between two."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


def load() -> str:
    return " ".join(Path("/proc/loadavg").read_text(encoding="ascii").split()[:3])


@dataclass
class Figure:
    """One measure of pgr, the same of bare Postgres if there is one, and the goal."""

    name: str
    unit: str
    values: list[float]
    bare: list[float] = field(default_factory=list)
    goal: float | None = None
    """Of the median: at most this, or at least, if ``more_is_better``. None: for information."""
    more_is_better: bool = False
    goal_is_ratio: bool = False
    """The goal is one for the ratio to bare Postgres."""

    @property
    def median(self) -> float:
        return percentile(self.values, 50)

    @property
    def ratio(self) -> float | None:
        floor = percentile(self.bare, 50)
        return self.median / floor if self.bare and floor else None

    @property
    def reached(self) -> bool | None:
        judged = self.ratio if self.goal_is_ratio else self.median
        if self.goal is None or judged is None:
            return None
        return judged >= self.goal if self.more_is_better else judged <= self.goal

    def row(self) -> list[str]:
        def shown(value: float | None) -> str:
            return "" if value is None or math.isnan(value) else f"{value:.3f}" if value < 100 else f"{value:.0f}"

        sign = "" if self.goal is None else ">= " if self.more_is_better else "<= "
        goal = f"{sign}{shown(self.goal)}{' x bare' if self.goal_is_ratio else ''}" if self.goal is not None else ""
        verdict = {True: "yes", False: "NO", None: ""}[self.reached]
        values = [self.median, percentile(self.values, 99), min(self.values), max(self.values)]
        bare = percentile(self.bare, 50) if self.bare else None
        return [
            f"{self.name} [{self.unit}]", str(len(self.values)), *map(shown, values), shown(bare), shown(self.ratio),
            goal, verdict,
        ]  # fmt: skip


HEADER = ["measure", "n", "p50", "p99", "min", "max", "bare p50", "ratio", "goal of p50", "reached"]


@dataclass
class Report:
    bench: str
    profile: str
    figures: list[Figure]
    load_before: str
    load_after: str = ""
    acknowledged: int = 0
    lost: int = 0
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = render.table(HEADER, [figure.row() for figure in self.figures], right=range(1, 8))
        few = {figure.name for figure in self.figures if len(figure.values) < 20}
        if few:
            lines.append(f"fewer than 20 measured ({', '.join(sorted(few))}): p50 is a hint; p99 wants 200")
        if self.acknowledged:
            lines.append(f"acknowledged {self.acknowledged}, lost {self.lost}")
        lines += self.notes
        lines.append(
            f"profile {self.profile}; {os.cpu_count()} cpus; load before {self.load_before}, after {self.load_after}"
        )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        figures = [
            asdict(figure) | {"p50": figure.median, "p99": percentile(figure.values, 99), "ratio": figure.ratio}
            for figure in self.figures
        ]
        machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
        return asdict(self) | {"figures": figures, "machine": machine}

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")


def memory_kb(pid: int) -> tuple[int, int]:
    """PSS and USS (private clean + dirty) of a process, from the kernel's own sum."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0])
    return found["Pss"], found["Private_Clean"] + found["Private_Dirty"]


def cpu_s(pid: int) -> float:
    """CPU time used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
