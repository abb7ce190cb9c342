"""The engine of the model tests: breadth-first over states made of small ints, around the shipped code.

A *world* turns values (nodes, messages, ghosts) into ints once (`Interner`), remembers what the real code answered for
them, and yields successors. So millions of transitions cost a few thousand calls of the code under test. Breadth-first
with parent links: the first violation found has a shortest story. States that differ only in the names of nodes are one
(`World.canon`); the story is found by going the way once more, with names that stay the same from step to step.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations, product
from typing import Generic, NamedTuple, Protocol, TypeVar

State = tuple[int, ...]
Label = tuple[int, ...]
"""What happened in one step; only its world can read it."""
V = TypeVar("V", bound=Hashable)


class ViolationError(Exception):
    """A property does not hold in the state that a step (``label``; empty: no step, the state itself) leads to."""

    def __init__(self, text: str, label: Label = ()) -> None:
        super().__init__(text)
        self.text, self.label = text, label


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

    label: Label
    to: State


class World(Protocol):
    """What `explore` explores."""

    def start(self) -> State: ...

    def successors(self, state: State) -> Iterable[Move]:
        """Raises `ViolationError` where a property of a step, or of the state after it, does not hold."""

    def inspect(self, state: State) -> None:
        """Raises `ViolationError` if something is wrong with this state, whatever led to it."""

    def canon(self, state: State) -> State:
        """The one state that stands for all that differ from this one in names only."""

    def tell(self, label: Label) -> str: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an exploration has seen."""

    states: int
    transitions: int
    depth: int
    seconds: float
    """Of computing."""
    violation: str = ""
    story: tuple[str, ...] = ()
    """The steps of a shortest counterexample; empty if there is no violation."""
    labels: tuple[Label, ...] = ()
    """The same, for the world to make a test of."""

    def report(self, bound: str) -> str:
        size = f"{self.states} states, {self.transitions} transitions, depth {self.depth}, {self.seconds:.1f} s"
        if not self.violation:
            return f"exhaustive within {bound}: {size}"
        lines = [f"VIOLATION within {bound}: {self.violation}", f"found after {size}"]
        return "\n".join([*lines, *(f"{n:3d}. {step}" for n, step in enumerate(self.story, 1))])


class NotExhaustedError(Exception):
    """The search was cut short, so it proves nothing."""


@contextmanager
def no_collector() -> Iterator[None]:
    """States are tuples without cycles: looking for some costs a tenth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def explore(world: World, *, states_max: int, start: State | None = None) -> Outcome:
    """Every state that can be reached from ``start`` (else from the world's own).

    Raises `NotExhaustedError` if ``states_max`` does not suffice.
    """
    with no_collector():
        return _explored(world, states_max, world.start() if start is None else start)


def _explored(world: World, states_max: int, first: State) -> Outcome:
    began = time.process_time()
    canon, successors, inspect = world.canon, world.successors, world.inspect
    index: dict[State, int] = {canon(first): 0}
    parent = array("q", [-1])
    frontier, transitions, depth = list(index), 0, 0
    found: list[State] = []

    def outcome(error: ViolationError | None, at: int) -> Outcome:
        seconds = time.process_time() - began
        if error is None:
            return Outcome(len(index), transitions, depth, seconds)
        labels, text = _trace(world, first, _path(list(index), parent, at), error)
        story = tuple(world.tell(label) for label in labels)
        return Outcome(len(index), transitions, depth, seconds, text, story, labels)

    at = 0
    try:
        inspect(frontier[0])
        while frontier:
            for state in frontier:
                at = index[state]
                for move in successors(state):
                    transitions += 1
                    to = canon(move.to)
                    if to not in index:
                        at_new = index[to] = len(parent)
                        parent.append(at)
                        found.append(to)
                        at, at_old = at_new, at
                        inspect(to)
                        at = at_old
            if len(index) > states_max:
                raise NotExhaustedError(f"more than {states_max} states at depth {depth}")
            frontier, found = found, []
            depth += bool(frontier)
    except ViolationError as error:
        return outcome(error, at)
    return outcome(None, 0)


def _path(states: list[State], parent: array[int], at: int) -> list[State]:
    path = [states[at]]
    while at > 0:
        at = parent[at]
        path.append(states[at])
    return path[::-1]


def _trace(world: World, first: State, path: list[State], error: ViolationError) -> tuple[tuple[Label, ...], str]:
    """Goes from ``first`` along states that stand for those of ``path``: the steps, with names that stay the same, and
    what is wrong then."""
    labels: list[Label] = []
    state = first
    for target in path[1:]:
        move = next((m for m in world.successors(state) if world.canon(m.to) == target), None)
        assert move is not None, "the symmetry is not sound: a step of a state is no step of its mirror image"
        labels.append(move.label)
        state = move.to
    try:
        if not error.label:
            world.inspect(state)
        for _ in world.successors(state):
            pass
    except ViolationError as again:
        return (*labels, again.label) if again.label else tuple(labels), again.text
    raise AssertionError("the symmetry is not sound: a violation is gone in the mirror image")


def reorderings(ranks: tuple[int, ...], classes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Ways to rename slots (slot -> slot) so that within each class ranks ascend; more than one only if ranks tie."""
    choices = []
    for slots in classes:
        by_rank: dict[int, list[int]] = {}
        for slot in slots:
            by_rank.setdefault(ranks[slot], []).append(slot)
        tied = [permutations(by_rank[rank]) for rank in sorted(by_rank)]
        choices.append([tuple(slot for group in one for slot in group) for one in product(*tied)])
    found = []
    for orders in product(*choices):
        to = list(range(len(ranks)))
        for slots, order in zip(classes, orders, strict=True):
            for new, old in zip(slots, order, strict=True):
                to[old] = new
        found.append(tuple(to))
    return tuple(found)
