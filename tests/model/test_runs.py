"""The shipped code, exhaustively within a small bound: the quick part of `make model`."""

from __future__ import annotations

import os

import pytest

from tests.model import tables
from tests.model.ready import told
from tests.model.runs import RUNS, Run
from tests.model.tables import RUNS_TABLE

CHOSEN = [run for run in RUNS if run.quick or os.environ.get("PGR_TEST_LEVEL") == "all"]
FOR_CI = ("promises: S shrinks", "core: members: a lost incarnation")
"""Ten seconds and more."""


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(run, id=f"{run.dimension}: {run.bound}", marks=[pytest.mark.slow] * (run.dimension in FOR_CI))
        for run in CHOSEN
    ],
)
def test_nothing_goes_wrong(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run.explored()
    with capsys.disabled():
        print(f"\n{run.dimension}: {outcome.report(run.bound)}")
    assert not outcome.violation, told(run.world, outcome, run.bound)
    tables.check_row(RUNS_TABLE, tables.run_row(run, outcome))


def test_the_table_lists_every_run() -> None:
    keys = [tables.run_key(run) for run in RUNS]
    assert len(set(keys)) == len(keys)
    tables.check_keys(RUNS_TABLE, keys)


@pytest.mark.parametrize("what", ["delay", "restart", "members", "S ", "witness", "lease"])
def test_every_dimension_is_there_for_three_nodes(what: str) -> None:
    assert [run for run in RUNS if what in run.dimension and "N=3" in run.bound]


def test_core_and_upper_layer_are_there_for_five_nodes() -> None:
    five = {run.dimension.partition(":")[0] for run in RUNS if "N=5" in run.bound}
    assert {"core", "promises"} <= five
