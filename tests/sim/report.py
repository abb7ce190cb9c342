"""A run as a story for people, and many runs as figures in a file."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from pathlib import Path

from fencing.lease import MS
from tests.sim.check import Violation
from tests.sim.cluster import Simulation, play


def story(simulation: Simulation, violation: Violation | None, events: int) -> str:
    lines = [f"{at / MS:10.1f} ms  {who:6} {text}" for at, who, text in list(simulation.story)[-events:]]
    mutant = f" --mutant {simulation.mutant}" if simulation.mutant else ""
    lines.append(f"replay: python -m tests.sim {simulation.seed}{mutant}   trace {simulation.digest}")
    lines.append(f"found: {violation}" if violation else "nothing found")
    return "\n".join(lines)


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def batch(first: int, count: int, out: str, mutant: str = "", every: int = 20) -> int:
    """Seeds first .. first + count - 1, going on after the last one in ``out``. One JSON line for ``every`` seeds."""
    path = Path(out)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    seed = max([first, *(line["to"] + 1 for line in done)])
    failures = sum(len(line["failures"]) for line in done)
    while seed < first + count:
        last = min(seed + every, first + count) - 1
        began, figures, failed = time.perf_counter(), Counter[str](), {}
        for one in range(seed, last + 1):
            simulation, violation = play(one, mutant)
            figures.update(simulation.counts)
            figures["events"] += simulation.events
            figures["simulated ms"] += simulation.now // MS
            if violation is not None:
                failed[one] = str(violation)
                print(story(simulation, violation, 40), flush=True)
        line = {"from": seed, "to": last, "commit": commit(), "seconds": round(time.perf_counter() - began, 1)}
        with path.open("a") as file:
            file.write(json.dumps(line | {"failures": failed, "figures": dict(sorted(figures.items()))}) + "\n")
        failures += len(failed)
        seed = last + 1
    return failures > 0
