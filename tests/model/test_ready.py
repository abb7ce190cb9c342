"""A counterexample comes as a test: it fails while the rule is missing, and passes with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.mutants.every import EVERY
from tests.model.raftvalues import Bound, Setup
from tests.model.ready import ready_test, spelled

CONFTEST = """
import pytest
from tests.model.mutants.every import EVERY

@pytest.fixture(autouse=True)
def without_the_rule():
    with next(mutant for mutant in EVERY if mutant.rule == {rule!r}).in_force():
        yield
"""


def passes(folder: Path, checkout: Path) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(checkout / "pyproject.toml"), str(folder)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("rule", ["a majority is more than half", "a read quorum is len(S) - k + 1"])
def test_a_counterexample_is_a_ready_test(rule: str, tmp_path: Path, checkout: Path) -> None:
    mutant = next(one for one in EVERY if one.rule == rule)
    source = ready_test(mutant.world, mutant.explored(), mutant.bound)
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_found.py").write_text(source)
    (tmp_path / "without" / "conftest.py").write_text(CONFTEST.format(rule=rule))
    assert passes(tmp_path / "with", checkout)
    assert not passes(tmp_path / "without", checkout)


def test_a_value_is_spelled_without_what_is_as_by_default() -> None:
    imports: set[tuple[str, str]] = set()
    setup = Setup(Bound(2, delays=1), founders=("a",), settled=True)
    assert spelled(setup, imports) == "Setup(bound=Bound(terms=2, delays=1), founders=('a',), settled=True)"
    assert imports == {("tests.model.raftvalues", "Setup"), ("tests.model.raftvalues", "Bound")}


def test_a_counterexample_is_a_readable_story() -> None:
    mutant = next(one for one in EVERY if one.rule == "a vote only for a log that is not older")
    text = mutant.explored().report("T=2")
    assert text.startswith("VIOLATION within T=2: leader completeness")
    assert ": campaign" in text
    assert "AppendReq(term 1, after 0@0: [1@1], commit 0) arrives" in text
