"""How long a fence takes: 100 busy backends on a real PostgreSQL. `python -m tests.process.killtime` writes what it
measured into fencing/DESIGN.md, with the load beside it; as root, so that the killer is scheduled like the watchdog."""

from __future__ import annotations

import os
import re
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import psycopg

from fencing.clock import now_ns
from fencing.kill import FenceReport, fence, process_id
from fencing.lease import MS
from fencing.realtime import raise_priority
from tests.pgbare import BarePostgres

DESIGN = Path(__file__).resolve().parents[2] / "fencing" / "DESIGN.md"
BEGIN, END = "<!-- kill time: begin -->", "<!-- kill time: end -->"
BACKENDS = 100
ROUNDS = 20
BUSY = "SELECT count(*) FROM generate_series(1, 100000000000)"
GIVE_UP_NS = 10_000 * MS
"""Long beyond any kill bound: what is measured is the whole of it."""


class Stated(NamedTuple):
    """What fencing/DESIGN.md says."""

    backends: int
    rounds: int
    median_ms: int
    most_ms: int


class Busy:
    """So many sessions, each of them in a query that never ends."""

    def __init__(self, postgres: BarePostgres, sessions: int = BACKENDS) -> None:
        self.connections = [psycopg.connect(postgres.conninfo) for _ in range(sessions)]
        for connection in self.connections:
            connection.pgconn.send_query(BUSY.encode())

    def close(self) -> None:
        for connection in self.connections:
            connection.close()


def busy_postgres(tmp_path: Path | None = None) -> BarePostgres:
    return BarePostgres(tmp_path, {"max_connections": str(BACKENDS + 20)})


def kill_once(tmp_path: Path | None = None) -> FenceReport:
    """One fence of a Postgres with `BACKENDS` busy backends."""
    with busy_postgres(tmp_path) as postgres:
        busy = Busy(postgres)
        try:
            report = fence(postgres.pgdata, process_id(postgres.pid), now_ns() + GIVE_UP_NS)
            if not report.survivors and postgres.pids():
                raise AssertionError(f"it says that all are gone, and there are {postgres.pids()}")
            return report
        finally:
            busy.close()


def stated() -> Stated:
    line = DESIGN.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    found = re.search(r"With (\d+) backends busy, (\d+) times .*: median (\d+) ms, at most (\d+) ms", line)
    if found is None:
        raise ValueError(f"there are no figures in {DESIGN}")
    return Stated(*map(int, found.groups()))


def main() -> None:
    took_ms, load, killer = [], os.getloadavg()[0], raise_priority()
    for _ in range(ROUNDS):
        report = kill_once()
        if report.survivors:
            raise SystemExit(f"not fenced: {report.survivors}")
        took_ms.append(-(-report.took_ns // MS))
        print(f"{took_ms[-1]} ms, {report.killed} processes, load {os.getloadavg()[0]:.1f}")
    line = (
        f"With {BACKENDS} backends busy, {ROUNDS} times on {os.cpu_count()} cores, load {load:.0f} before, the killer"
        f" {killer}: median"
        f" {round(statistics.median(took_ms))} ms, at most {max(took_ms)} ms from the first signal until everything is"
        " verified to be gone."
    )
    text = DESIGN.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    DESIGN.write_text(f"{head}{BEGIN}\n{line}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
