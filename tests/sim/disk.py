"""The disk under the Raft store: the shipped `Store`, on a file system that keeps what was synced and perhaps the rest.

`tests.disk.Disk` is the machine's disk; here is only what a whole cluster needs of it: restart, power cut, no room.
"""

from __future__ import annotations

import sqlite3

from consensus.storage import StorageFullError, Store
from consensus.write import Stored, Write
from tests.sim.world import World


class RaftDisk:
    """Survives its processes. ``full``: nothing can be saved."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.full = False
        self.lies = world.mutant == "fsync-lies"
        self._content = _memory()
        self._older: list[sqlite3.Connection] = []

    def open(self) -> DiskStore:
        if self.full:
            raise StorageFullError("no room")
        return DiskStore(self, Store(self._content))

    def power_cut(self) -> None:
        if self.lies and self._older:
            self._content, self._older = self._older[0], []

    def wipe(self) -> None:
        self._content, self._older = _memory(), []

    def saved(self) -> None:
        if self.lies:
            copy = _memory()
            self._content.backup(copy)
            self._older = [*self._older, copy][-3:]


class DiskStore:
    """A `Store` whose disk can be full."""

    def __init__(self, disk: RaftDisk, store: Store) -> None:
        self.disk, self.store = disk, store

    def load(self) -> Stored:
        return self.store.load()

    def save(self, write: Write) -> None:
        if self.disk.full:
            raise StorageFullError("no room")
        self.store.save(write)
        self.disk.saved()


def _memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)
