"""TABLE.md of tests/net says what is there: every number of safety.md, every test by its name, every control."""

from __future__ import annotations

import re

import pytest

from tests.net.catalogue import HERE, NUMBERS, STORIES, TABLE, path_of, source_of, table


def test_the_table_is_what_the_catalogue_says() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "python -m tests.net table"


def test_every_interleaving_has_a_row() -> None:
    assert sorted({story.number for story in STORIES}) == list(NUMBERS)


@pytest.mark.parametrize("name", sorted({name for s in STORIES for name in (s.test, s.control) if name}))
def test_every_test_named_there_exists(name: str) -> None:
    assert source_of(name), name


def test_every_test_of_an_interleaving_is_named_there() -> None:
    named = {path_of(name) for s in STORIES for name in (s.test, s.control) if name}
    for path in HERE.glob("test_*.py"):
        if path.name != "test_network.py":  # of the world itself
            there = set(re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.M))
            assert {(path, name) for name in there} <= named, path.name
