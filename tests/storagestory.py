"""What the store should hold: a model of it, a story of saves, and the check of what a disaster has left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from consensus.messages import Entry, HardState, Snapshot
from consensus.record import EpochStart, Identity, NodeRecord, Position
from consensus.storage import StorageError, Store
from consensus.write import Stored, Write
from tests.disk import Disk, Survivors

EMPTY = Stored(None, HardState(), None, (), NodeRecord())


class Reopen(NamedTuple):
    """The process ends, or is killed, and is started again."""

    killed: bool


Step = Write | Reopen


def after(state: Stored, write: Write) -> Stored:
    """The model: what `Store.load` gives when ``write`` has been saved on top of ``state``."""
    entries, snapshot = state.entries, write.snapshot or state.snapshot
    if write.truncate_from is not None:
        entries = tuple(entry for entry in entries if entry.index < write.truncate_from)
    base = snapshot.index if snapshot else 0
    entries = tuple(entry for entry in (*entries, *write.entries) if entry.index > base)
    return Stored(
        write.identity or state.identity, write.hard or state.hard, snapshot, entries, write.record or state.record
    )


def states(story: Sequence[Step]) -> list[Stored]:
    """What is stored after 0, 1, 2, ... saves of the story."""
    found = [EMPTY]
    for step in story:
        if isinstance(step, Write):
            found.append(after(found[-1], step))
    return found


def log(first: int, last: int, term: int, size: int = 20) -> tuple[Entry, ...]:
    return tuple(Entry(index, term, "x/1", f"{term}." * (size // 2)) for index in range(first, last + 1))


STORY: tuple[Step, ...] = (
    Write(identity=Identity("a", 77)),
    Write(identity=Identity("a", 77, "ab" * 16, '{"members":["a","b","c"]}')),
    Write(HardState(1, "a")),
    Write(HardState(1, "a"), entries=log(1, 1, 1)),
    Write(HardState(1, "a", 1), entries=log(2, 9, 1, 900)),
    Write(HardState(2, "")),
    Write(HardState(2, "b")),
    Write(record=NodeRecord(2, (EpochStart(0, 0, 1),))),
    Reopen(killed=True),
    Write(HardState(2, "b", 4), truncate_from=6, entries=log(6, 7, 2)),
    Write(HardState(3, "a", 7), entries=log(8, 8, 3)),
    Write(HardState(3, "a", 8, 3), record=NodeRecord(3, (EpochStart(0, 0, 1),), Position(0, 1 << 33), "clone")),
    Reopen(killed=False),
    Write(HardState(4, "c", 8, 3)),
    Write(HardState(4, "c", 8, 3), snapshot=Snapshot(8, 3, '{"applied":8}' * 400)),
    Write(HardState(4, "c", 9, 3), entries=log(9, 20, 4, 300)),
    Write(HardState(4, "c", 20, 3), snapshot=Snapshot(18, 4, '{"applied":18}' * 30), entries=log(21, 22, 4)),
    Write(HardState(5, "b", 40, 3), snapshot=Snapshot(40, 5, '{"applied":40}'), entries=log(41, 42, 5)),
    Write(record=NodeRecord(5, (EpochStart(0, 0, 1), EpochStart(5, 1 << 34, 2)))),
    Write(HardState(6, "", 42, 3)),
)
"""Everything a node saves in its life, from its first start on."""


class LossError(AssertionError):
    """What the store must never do: forget, go back, mix."""


@dataclass(frozen=True)
class Moment:
    """The disk at one write boundary, how many saves had returned, and whether another one was under way."""

    disk: Disk
    saved: int
    saving: bool


def as_it_is(store: Store) -> None:
    """Changes nothing about a store that was just opened; others sabotage it."""
    del store


class Play:
    """Carries a story out on a disk; errors as Store."""

    def __init__(self, disk: Disk, story: Sequence[Step], sabotage: Callable[[Store], None] = as_it_is) -> None:
        self.disk, self.story, self.sabotage = disk, story, sabotage
        self.saved = 0
        """How many saves have returned."""
        self.saving = False
        """One has been called and has not returned."""
        self.store: Store | None = None

    def run(self) -> Store:
        """From where it stopped (by an error) to the end; the store is still open then."""
        store = self.store or self._open()
        done = 0
        for step in self.story:
            if isinstance(step, Write):
                done += 1
                if done > self.saved:
                    self.saving = True
                    store.save(step)
                    self.saved, self.saving = done, False
            elif done == self.saved:
                if step.killed:
                    self.disk.kill()
                discard(store)
                store = self._open()
        return store

    def _open(self) -> Store:
        self.store = None
        store = self.disk.open_store()
        try:
            self.sabotage(store)
            store.load()
        except StorageError:
            discard(store)
            raise
        self.store = store
        return store


def discard(store: Store) -> None:
    """Of a process that has died: what closing it says is of no interest."""
    with contextlib.suppress(StorageError):
        store.close()


def moments(
    story: Sequence[Step], disk: Disk | None = None, sabotage: Callable[[Store], None] = as_it_is
) -> list[Moment]:
    """Every write boundary of the story, and its end, before anything is closed."""
    disk = disk or Disk()
    play = Play(disk, story, sabotage)
    found: list[Moment] = []
    disk.on_boundary = lambda now: found.append(Moment(now.copy(), play.saved, play.saving))
    store = play.run()
    disk.on_boundary = None
    found.append(Moment(disk.copy(), play.saved, play.saving))
    discard(store)
    return found


def reopen(disk: Disk) -> Stored:
    """What a start finds. Errors as Store."""
    store = disk.open_store()
    try:
        return store.load()
    finally:
        discard(store)


def check(found: Stored, saved: int, saving: bool, expected: Sequence[Stored]) -> None:
    """LossError unless ``found`` is all that was acknowledged, and of the save under way all or nothing."""
    if found != expected[saved] and not (saving and found == expected[saved + 1]):
        raise LossError(f"after {saved} saves{' and a part of one' if saving else ''}: {describe(found)}")


def describe(state: Stored) -> str:
    shown = replace(state, snapshot=state.snapshot and state.snapshot._replace(data="..."), entries=state.entries[-2:])
    return f"{shown}, {len(state.entries)} entries"


def survive(moment: Moment, choose: Survivors, expected: Sequence[Stored]) -> Disk:
    """The disk after a power cut at that moment; LossError if a start does not find what it must."""
    disk = moment.disk.copy()
    disk.power_cut(choose)
    left = disk.copy()
    check(reopen(disk), moment.saved, moment.saving, expected)
    return left
