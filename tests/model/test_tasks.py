"""`python -m tests.model` fails for the right reasons."""

from __future__ import annotations

from functools import partial

import pytest

from tests.model import runs, tasks
from tests.model.explore import NotExhaustedError, World, explore
from tests.model.mutants.core import VotesForAnyLog
from tests.model.mutants.mutant import Mutant
from tests.model.raftvalues import Bound, Setup
from tests.model.raftworld import RaftWorld
from tests.model.runs import Run
from tests.model.tables import Table
from tests.model.tasks import Task, work

SMALL = Setup(Bound(1))
SHIPPED = partial(RaftWorld, SMALL)
BROKEN = partial(RaftWorld, Setup(Bound(2)), VotesForAnyLog)


def mutant(world: partial[RaftWorld], dies_of: str) -> Mutant:
    return Mutant("a rule", "here", "T=2", world, dies_of)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "RUNS", (Run("shipped", "T=1", SHIPPED), Run("broken", "T=2", BROKEN)))
    complete = "leader completeness"
    monkeypatch.setattr(
        tasks, "EVERY", (mutant(BROKEN, complete), mutant(SHIPPED, complete), mutant(BROKEN, "one writer"))
    )


@pytest.mark.usefixtures("small")
def test_a_violation_is_told_and_comes_as_a_test() -> None:
    good, bad = work(Task("run", 0)), work(Task("run", 1))
    assert (good.ok, good.row[:2]) == (True, ("shipped", "T=1"))
    assert not bad.ok
    assert not bad.row
    assert "broken: VIOLATION within T=2: leader completeness" in bad.text
    assert "world = RaftWorld(Setup(bound=Bound(terms=2)), VotesForAnyLog)" in bad.text


@pytest.mark.usefixtures("small")
def test_a_mutant_has_to_die_of_what_it_lacks() -> None:
    killed, survives, other = (work(Task("mutant", number)) for number in range(3))
    assert (killed.ok, killed.row[0], killed.row[-1]) == (True, "a rule", "leader completeness")
    assert (survives.ok, "SURVIVES" in survives.text) == (False, True)
    assert (other.ok, "dies of something else" in other.text) == (False, True)


@pytest.mark.usefixtures("small")
def test_a_search_that_is_cut_short_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotExhaustedError):
        explore(SHIPPED(), states_max=5)
    monkeypatch.setattr(runs, "STATES_MAX", 5)
    assert (work(Task("run", 0)).ok, "CUT SHORT" in work(Task("run", 0)).text) == (False, True)


@pytest.mark.usefixtures("small")
def test_whatever_else_goes_wrong_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_world() -> World:
        raise RuntimeError("nothing there")

    monkeypatch.setattr(tasks, "RUNS", (Run("none", "T=1", no_world),))
    assert (work(Task("run", 0)).ok, "nothing there" in work(Task("run", 0)).text) == (False, True)


def test_a_table_is_written_and_read() -> None:
    table = Table("x", ("a", "b"), 1)
    text = table.written("before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter", [("1", "2"), ("3", "4 5")])
    assert table.read(text) == {("1",): ("1", "2"), ("3",): ("3", "4 5")}
    assert table.written(text, []).count("\n") == 5
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
