"""Seeds of every shape, the seeds that once found something, replay, and the negative controls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.check import Crash, Stuck
from tests.sim.cluster import play
from tests.sim.mutants import MUTANTS
from tests.sim.report import story

CHUNK = 10
SEEDS = range(1, 201)
KEPT = sorted((Path(__file__).parent / "seeds").glob("*.txt"))


def runs_clean(seed: int) -> None:
    simulation, violation = play(seed)
    assert violation is None, story(simulation, violation, 40)


@pytest.mark.parametrize("first", SEEDS[::CHUNK])
def test_seeds(first: int) -> None:
    for seed in range(first, first + CHUNK):
        runs_clean(seed)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_seeds_that_found_something(path: Path) -> None:
    for seed in re.findall(r"^seed (\d+)", path.read_text(encoding="utf-8"), re.MULTILINE):
        runs_clean(int(seed))


def found_by(name: str, within: int) -> int:
    """The first seed that breaks a promise under this mutant; 0 if none does."""
    for seed in range(1, within + 1):
        _, violation = play(seed, name)
        if violation is not None and not isinstance(violation, Stuck | Crash):
            return seed
    return 0


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if not mutant.slow])
def test_a_protecting_step_is_missed_at_once(name: str) -> None:
    assert found_by(name, MUTANTS[name].within)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.slow])
def test_a_protecting_step_is_missed(name: str) -> None:
    assert found_by(name, MUTANTS[name].within)


def test_a_seed_replays_exactly() -> None:
    """In another process, with another order of sets."""
    found = [
        subprocess.run(
            [sys.executable, "-m", "tests.sim", "7", "--events", "1"], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1]
    assert re.search(r"trace [0-9a-f]{32}", found[0])


def test_different_seeds_are_different_runs() -> None:
    assert play(7)[0].digest != play(8)[0].digest
