"""A mutant: the shipped code, or the modelled host around it, without one protecting rule; and where it must die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from tests.model.explore import Outcome, State, World, explore

STATES_MAX = 2_000_000


@dataclass(frozen=True)
class Mutant:
    """``world`` is made while ``patches`` are in force."""

    rule: str
    """The rule that is missing, as a sentence."""
    source: str
    """Where the rule comes from: thesis section, safety.md, number of a known bug in research/raft.md 6."""
    bound: str
    world: Callable[[], World]
    dies_of: str
    """How the violation begins."""
    patches: tuple[tuple[Any, str, Any], ...] = ()
    """(object, attribute, what it is to be)."""
    quick: bool = True
    start: Callable[[Any], State] | None = None

    @contextmanager
    def in_force(self) -> Iterator[None]:
        undo = [patch.object(*one) for one in self.patches]
        for one in undo:
            one.start()
        try:
            yield
        finally:
            for one in reversed(undo):
                one.stop()

    def explored(self) -> Outcome:
        with self.in_force():
            world = self.world()
            start = self.start(world) if self.start is not None else None
            return explore(world, states_max=STATES_MAX, start=start)
