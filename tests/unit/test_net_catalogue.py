"""TABLE.md of tests/net says what is there: every number of safety.md, every test by its name, every control."""

from __future__ import annotations

import re

import pytest

from tests.model.mutants.every import EVERY
from tests.net.catalogue import HERE, NUMBERS, STORIES, TABLE, elsewhere, path_of, source_of, table
from tests.sim.mutants import MUTANTS

NAMES = sorted({name for s in STORIES for name in (s.test, s.control) if name})


def test_the_table_is_what_the_catalogue_says() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "python -m tests.net table"


def test_every_interleaving_has_a_row() -> None:
    assert sorted({story.number for story in STORIES}) == list(NUMBERS)


@pytest.mark.parametrize("name", [name for name in NAMES if not elsewhere(name)[0]])
def test_every_test_named_there_exists(name: str) -> None:
    assert source_of(name), name


@pytest.mark.parametrize("name", [name for name in NAMES if elsewhere(name)[0]])
def test_every_mutant_named_there_exists(name: str) -> None:
    place, rule = elsewhere(name)
    assert rule in {"model": {mutant.rule for mutant in EVERY}, "sim": set(MUTANTS)}[place]


def test_every_test_of_an_interleaving_is_named_there() -> None:
    named = {path_of(name) for name in NAMES if not elsewhere(name)[0]}
    for path in HERE.glob("test_*.py"):
        if path.name not in ("test_network.py", "test_doctor.py"):  # of the world itself; of a command
            there = set(re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.M))
            assert {(path, name) for name in there} <= named, path.name
