"""Tables in consensus/DESIGN.md: `python -m tests.model --write` makes them, tests hold them against what they find.

A row is what was found. No seconds: they vary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.model.explore import Outcome
from tests.model.mutants.mutant import Mutant
from tests.model.runs import Run

DESIGN = Path(__file__).resolve().parents[2] / "consensus" / "DESIGN.md"
HINT = "consensus/DESIGN.md says otherwise; if that is as it should be: `make model MODEL=--write`"

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Between ``<!-- name: begin -->`` and ``<!-- name: end -->``."""

    name: str
    head: Row
    keys: int
    """So many columns tell a row from all others."""

    def read(self, text: str) -> dict[Row, Row]:
        lines = text.partition(f"<!-- {self.name}: begin -->\n")[2].partition(f"<!-- {self.name}: end -->")[0]
        rows = [tuple(line[2:-2].split(" | ")) for line in lines.splitlines() if line.startswith("| ")]
        return {row[: self.keys]: row for row in rows[2:]}

    def written(self, text: str, rows: Iterable[Row]) -> str:
        """``text`` with these rows in it."""
        before, begin, rest = text.partition(f"<!-- {self.name}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {self.name}: end -->")
        assert begin, f"no place for the table of {self.name}"
        assert end, f"no place for the table of {self.name}"
        lines = [self.head, ("---",) * len(self.head), *rows]
        return before + begin + "".join(f"| {' | '.join(line)} |\n" for line in lines) + end + after


RUNS_TABLE = Table("model runs", ("dimension", "bound", "states", "transitions", "depth"), 2)
MUTANTS_TABLE = Table("mutants", ("rule that is missing", "source", "bound", "states", "dies of"), 1)


def run_key(run: Run) -> Row:
    return (run.dimension, run.bound)


def run_row(run: Run, outcome: Outcome) -> Row:
    return (*run_key(run), str(outcome.states), str(outcome.transitions), str(outcome.depth))


def mutant_key(mutant: Mutant) -> Row:
    return (mutant.rule,)


def mutant_row(mutant: Mutant, outcome: Outcome) -> Row:
    died_of = outcome.violation.partition(":")[0]
    return (*mutant_key(mutant), mutant.source, mutant.bound, str(outcome.states), died_of)


def check_row(table: Table, row: Row) -> None:
    """Raises AssertionError if the document says something else."""
    there = table.read(DESIGN.read_text(encoding="utf-8")).get(row[: table.keys])
    assert there == row, HINT


def check_keys(table: Table, keys: Iterable[Row]) -> None:
    assert list(table.read(DESIGN.read_text(encoding="utf-8"))) == list(keys), HINT


def rewritten(text: str, table: Table, keys: Iterable[Row], found: Mapping[Row, Row]) -> str:
    """What was found now, and what is known from before of the rest."""
    known = {**table.read(text), **found}
    return table.written(text, [known[key] for key in keys if key in known])


