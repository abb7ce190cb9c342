"""Lists of rules or bugs, each with the tests that cover it; and whether there is such a test."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def named_tests(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Of ``text``: the lines that are not indented, each with what is listed below it, one to a line.

    What is listed is ``module::function`` of tests/unit, or ``n/a: why``.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    for line in text.strip().splitlines():
        if line.startswith(" "):
            head, listed = found.pop()
            found.append((head, (*listed, line.strip())))
        else:
            found.append((line.strip(), ()))
    return found


def is_a_test(name: str) -> bool:
    """``module`` is relative to tests/unit: ``../process/test_x`` is another folder's."""
    module, _, function = name.partition("::")
    return function in _functions(module)


@lru_cache
def _functions(module: str) -> frozenset[str]:
    path = TESTS / "unit" / f"{module}.py"
    return frozenset(re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE))
