"""`python -m tests.model`: every exhaustive run and every mutant, in two processes, the dearest first.

Ends with 1 if the shipped code violates a property, if a mutant survives or dies of something else, or if a search is
cut short: what is not exhausted is not proven; or if it was not found as the tables of consensus/DESIGN.md say, which
``--write`` writes anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tests.model import tables
from tests.model.mutants.every import EVERY
from tests.model.runs import RUNS
from tests.model.tables import DESIGN, MUTANTS_TABLE, RUNS_TABLE
from tests.model.tasks import Result, Task, work


def chosen_tasks(*, quick: bool, only: str, missing: bool) -> list[Task]:
    """The dearest first, as far as the tables know (by transitions); what is not known yet before all."""
    text = DESIGN.read_text(encoding="utf-8")
    runs, mutants = RUNS_TABLE.read(text), MUTANTS_TABLE.read(text)
    found: list[tuple[float, Task]] = []
    for number, one in enumerate(RUNS):
        if (one.quick or not quick) and only in f"{one.dimension} {one.bound}":
            row = runs.get(tables.run_key(one))
            found.append((float(row[3]) if row else float("inf"), Task("run", number)))
    for number, it in enumerate(EVERY):
        if (it.quick or not quick) and only in f"mutant {it.rule}":
            row = mutants.get(tables.mutant_key(it))
            found.append((4 * float(row[3]) if row else float("inf"), Task("mutant", number)))
    return [task for cost, task in sorted(found, key=lambda pair: -pair[0]) if not missing or cost == float("inf")]


def with_rows(text: str, results: dict[Task, Result]) -> str:
    """DESIGN.md with what was found in the place of what it says."""
    found = {t: r.row for t, r in results.items() if r.row}
    runs = {row[:2]: row for task, row in found.items() if task.kind == "run"}
    mutants = {row[:1]: row for task, row in found.items() if task.kind == "mutant"}
    text = tables.rewritten(text, RUNS_TABLE, map(tables.run_key, RUNS), runs)
    return tables.rewritten(text, MUTANTS_TABLE, map(tables.mutant_key, EVERY), mutants)


def differing(results: dict[Task, Result]) -> str:
    """Says what the tables say otherwise, or not at all."""
    text = DESIGN.read_text(encoding="utf-8")
    said = {*text.splitlines()}
    other = [line for line in with_rows(text, results).splitlines() if line not in said]
    heading = "the tables of consensus/DESIGN.md are not what was found (bin/model --write): "
    return heading + "\n".join(other) if other else ""


def write(results: dict[Task, Result]) -> str:
    """Says what is still missing in the tables."""
    text = with_rows(DESIGN.read_text(encoding="utf-8"), results)
    DESIGN.write_text(text, encoding="utf-8")
    known = {*RUNS_TABLE.read(text), *MUTANTS_TABLE.read(text)}
    missing = [key[0] for key in (*map(tables.run_key, RUNS), *map(tables.mutant_key, EVERY)) if key not in known]
    return f"still missing in the tables: {', '.join(missing)}" if missing else ""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only what is part of bin/test model")
    parser.add_argument("--write", action="store_true", help="write the tables of consensus/DESIGN.md")
    parser.add_argument("--only", default="", help="only what has this text in its name")
    parser.add_argument("--missing", action="store_true", help="only what is not in the tables yet")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args(arguments)
    began = time.perf_counter()
    results: dict[Task, Result] = {}
    missing = ""
    tasks = chosen_tasks(quick=chosen.quick, only=chosen.only, missing=chosen.missing)
    with ProcessPoolExecutor(chosen.jobs, get_context("spawn")) as pool:
        waiting = {pool.submit(work, t): t for t in tasks}
        for done in as_completed(waiting):
            result = results[waiting[done]] = done.result()
            print(result.text, flush=True)
            missing = write(results) if chosen.write else ""
    if not chosen.write:
        missing = differing(results)
    failed = [result for result in results.values() if not result.ok]
    runs = sum(task.kind == "run" for task in results)
    busy = sum(result.seconds for result in results.values())
    print(f"{runs} runs, {len(results) - runs} mutants: {time.perf_counter() - began:.0f} s, {busy:.0f} s of computing")
    for result in failed:
        print(f"FAILED: {result.text}")
    print(missing, end="\n" if missing else "")
    return bool(failed or missing or not (results or chosen.missing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
