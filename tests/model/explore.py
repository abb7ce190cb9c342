"""The engine of the model tests: breadth-first over states made of small ints, around the shipped code.

A *world* turns values (nodes, messages, ghosts) into ints once (`Interner`), remembers what the real code answered for
them, and yields successors. So millions of transitions cost a few thousand calls of the code under test. Breadth-first
with parent links: the first violation found has a shortest story, and it is printed as one.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

State = tuple[int, ...]
V = TypeVar("V", bound=Hashable)


class ViolationError(Exception):
    """A property does not hold in the state that a step leads to."""


class Interner(Generic[V]):
    """Values to small ints and back. Equal values get equal ints, so comparing states compares ints."""

    def __init__(self) -> None:
        self.ids: dict[V, int] = {}
        self.values: list[V] = []

    def __call__(self, value: V) -> int:
        known = self.ids.get(value)
        if known is None:
            known = self.ids[value] = len(self.values)
            self.values.append(value)
        return known


class Move(NamedTuple):
    """One step: what happened (for the story) and where it leads."""

    label: int
    to: State


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an exploration has seen."""

    states: int
    transitions: int
    depth: int
    seconds: float
    violation: str
    story: tuple[str, ...]
    """The steps of a shortest counterexample; empty if there is no violation."""

    def report(self, bound: str) -> str:
        size = f"{self.states} states, {self.transitions} transitions, depth {self.depth}, {self.seconds:.1f} s"
        if not self.violation:
            return f"exhaustive within {bound}: {size}"
        lines = [f"VIOLATION within {bound}: {self.violation}", f"found after {size}"]
        return "\n".join([*lines, *(f"{n:3d}. {step}" for n, step in enumerate(self.story, 1))])


def explore(
    start: State,
    successors: Callable[[State], Iterable[Move]],
    tell: Callable[[int], str],
    *,
    states_max: int,
) -> Outcome:
    """Every state that can be reached from ``start``. ``successors`` raises `ViolationError(text, step)`.

    Raises AssertionError if ``states_max`` does not suffice: a search that was cut short proves nothing.
    """
    began = time.perf_counter()
    seen: dict[State, int] = {start: 0}
    parent, label = array("q", [-1]), array("q", [-1])
    frontier, transitions, depth = [start], 0, 0

    def outcome(violation: str, at: int, last: int) -> Outcome:
        steps = [tell(last)] if last >= 0 else []
        while at > 0:
            steps.append(tell(label[at]))
            at = parent[at]
        return Outcome(len(seen), transitions, depth, time.perf_counter() - began, violation, tuple(reversed(steps)))

    while frontier:
        found: list[State] = []
        for state in frontier:
            here = seen[state]
            try:
                for move in successors(state):
                    transitions += 1
                    if move.to not in seen:
                        seen[move.to] = len(parent)
                        parent.append(here)
                        label.append(move.label)
                        found.append(move.to)
            except ViolationError as error:
                message, last = error.args
                return outcome(message, here, last)
        assert len(seen) <= states_max, f"more than {states_max} states at depth {depth}: not exhausted"
        frontier = found
        depth += bool(found)
    return outcome("", 0, -1)
