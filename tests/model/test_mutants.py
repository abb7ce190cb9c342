"""Every protecting rule is needed: without it, something goes wrong within a small bound, and the checker sees it."""

from __future__ import annotations

import os

import pytest

from tests.model.mutants.core import CORE
from tests.model.mutants.lease import LEASE
from tests.model.mutants.mutant import Mutant
from tests.model.mutants.outsider import OUTSIDER
from tests.model.mutants.upper import UPPER

EVERY = (*CORE, *UPPER, *LEASE, *OUTSIDER)
QUICK = tuple(m for m in EVERY if m.quick or os.environ.get("PGR_TEST_LEVEL") == "all")


@pytest.mark.parametrize("mutant", QUICK, ids=lambda m: str(m.rule))
def test_is_killed(mutant: Mutant) -> None:
    outcome = mutant.explored()
    assert outcome.violation.startswith(mutant.dies_of), outcome.report(mutant.bound)


def test_every_mutant_lacks_another_rule() -> None:
    assert len({m.rule for m in EVERY}) == len(EVERY)
