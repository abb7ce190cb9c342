"""python -m tests.bench BENCH [--runs N] [--profile P] [--json FILE]: what it costs, and how long it takes.

Figures stand beside bare PostgreSQL of the same run, and the load of the machine is printed: an idle machine is no
excuse, a loaded one no alibi.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from supervisor.errors import PgrError
from tests.bench import measure
from tests.bench.figures import Report, load

BENCHES: dict[str, tuple[Callable[[measure.Options], Report], int, str]] = {
    "failover": (measure.failover, 20, "SIGKILL of every process of the primary node: write gap; its return by rewind"),
    "postmaster": (measure.postmaster, 20, "SIGKILL of the postmaster alone: write gap"),
    "switchover": (measure.switchover, 20, "planned, under load: write gap"),
    "throughput": (measure.throughput, 5, "pgbench, 8 clients, one INSERT each"),
    "footprint": (measure.footprint, 1, "memory and idle CPU of everything that is not Postgres, per node"),
    "coldstart": (measure.coldstart, 5, "three empty directories to writable with two streaming standbys"),
}


def main() -> int:
    listed = "\n".join(f"  {name:<11} {what} (--runs {runs})" for name, (_, runs, what) in BENCHES.items())
    parser = argparse.ArgumentParser(
        "python -m tests.bench", description=f"benches:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="how often (default: see above)")
    parser.add_argument("--profile", default="default", choices=["fast", "default", "cloud"])
    parser.add_argument("--no-bare", action="store_true", help="without bare Postgres: quicker, no ratios")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there")
    given = parser.parse_args()
    bench, runs, _ = BENCHES[given.bench]
    before = load()
    try:
        report = bench(measure.Options(given.runs or runs, given.profile, not given.no_bare))
    except PgrError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return int(error.exit_code)
    report.load_before, report.load_after = before, load()
    print(report.text())
    if given.json:
        report.write(given.json)
    return 1 if report.lost else 0


sys.exit(main())
