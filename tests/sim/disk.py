"""The disk under the Raft store: the shipped `Store`, on a file system that keeps what was synced and perhaps the rest.

`tests.disk.Disk` is the machine's disk; here is only what a whole cluster needs of it: restart, power cut, no room.
"""

from __future__ import annotations

import sqlite3

from consensus.storage import Store, StorageFullError
from consensus.write import Stored, Write
from tests.sim.world import World


class RaftDisk:
    """Survives its processes. ``full``: nothing can be saved."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.full = False
        self.lies = world.mutant == "fsync-lies"
        self._image = b""
        """What is on disk."""
        self._older: list[bytes] = []
        self._connection: sqlite3.Connection | None = None

    def open(self) -> DiskStore:
        if self.full:
            raise StorageFullError("no room")
        connection = sqlite3.connect(":memory:", isolation_level=None)
        if self._image:
            connection.deserialize(self._image)
        self._connection = connection
        return DiskStore(self, Store(connection))

    def kill(self) -> None:
        """The process is gone; what it wrote can still be read."""
        if self._connection is not None:
            self._image = self._connection.serialize()
            self._connection.close()
            self._connection = None

    def power_cut(self) -> None:
        self.kill()
        if self.lies and self._older:
            self._image = self._older[0]

    def wipe(self) -> None:
        self.kill()
        self._image, self._older = b"", []

    def saved(self) -> None:
        if self.lies and self._connection is not None:
            self._older = [*self._older, self._connection.serialize()][-3:]


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
