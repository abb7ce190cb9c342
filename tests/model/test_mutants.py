"""Every protecting rule is needed: without it, something goes wrong within a small bound, and the checker sees it."""

from __future__ import annotations

import os

import pytest

from tests.model import tables
from tests.model.mutants.every import ASKED_FOR, EVERY
from tests.model.mutants.mutant import Mutant
from tests.model.tables import MUTANTS_TABLE

CHOSEN = tuple(m for m in EVERY if m.quick or os.environ.get("PGR_TEST_LEVEL") == "all")
FOR_CI = (
    "no walsender is left that knows the old names", "a walsender that was told to go is waited for",
    "what was acknowledged before meets the new rule", "an epoch without WAL hides no divergence (twice guarded)",
    "the log says done after the names are in force", "the checkpointer has seen the names before they count",
    "a longer L waits for every voter, not for a majority",
)  # fmt: skip
"""Five seconds and more; the others of this kind stay."""


@pytest.mark.parametrize(
    "mutant", [pytest.param(m, id=str(m.rule), marks=[pytest.mark.slow] * (str(m.rule) in FOR_CI)) for m in CHOSEN]
)
def test_is_killed(mutant: Mutant) -> None:
    outcome = mutant.explored()
    assert outcome.violation.startswith(mutant.dies_of), outcome.report(mutant.bound)
    tables.check_row(MUTANTS_TABLE, tables.mutant_row(mutant, outcome))


def test_every_mutant_lacks_another_rule() -> None:
    rules = {mutant.rule for mutant in EVERY}
    assert len(rules) == len(EVERY)
    assert not set(ASKED_FOR.values()) - rules


def test_the_table_lists_every_mutant() -> None:
    tables.check_keys(MUTANTS_TABLE, map(tables.mutant_key, EVERY))
