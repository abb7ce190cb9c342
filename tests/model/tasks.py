"""One run or one mutant, for a process that knows it by its number: a world can't be sent there."""

from __future__ import annotations

import traceback
from typing import NamedTuple

from tests.model import tables
from tests.model.explore import NotExhaustedError
from tests.model.mutants.every import EVERY
from tests.model.ready import told
from tests.model.runs import RUNS
from tests.model.tables import Row


class Task(NamedTuple):
    kind: str
    number: int


class Result(NamedTuple):
    ok: bool
    text: str
    seconds: float
    row: Row = ()


def run(number: int) -> Result:
    one = RUNS[number]
    outcome = one.explored()
    text = f"{one.dimension}: {told(one.world, outcome, one.bound)}"
    if outcome.violation:
        return Result(False, text, outcome.seconds)
    return Result(True, text, outcome.seconds, tables.run_row(one, outcome))


def mutant(number: int) -> Result:
    one = EVERY[number]
    outcome = one.explored()
    row = tables.mutant_row(one, outcome)
    if outcome.violation.startswith(one.dies_of):
        size = f"{outcome.states} states, depth {outcome.depth}, {outcome.seconds:.1f} s"
        return Result(True, f"mutant: without '{one.rule}': {row[-1]} within {one.bound}: {size}", outcome.seconds, row)
    what = "dies of something else" if outcome.violation else "SURVIVES"
    text = f"mutant: without '{one.rule}' {what}, not of '{one.dies_of}'\n{outcome.report(one.bound)}"
    return Result(False, text, outcome.seconds)


def work(task: Task) -> Result:
    name = RUNS[task.number].dimension if task.kind == "run" else EVERY[task.number].rule
    try:
        return run(task.number) if task.kind == "run" else mutant(task.number)
    except NotExhaustedError as error:
        return Result(False, f"{task.kind} {name}: CUT SHORT: {error}", 0)
    except Exception:
        return Result(False, f"{task.kind} {name}: {traceback.format_exc()}", 0)
