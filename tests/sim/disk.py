"""The disk under the Raft store: the shipped `Store` on `tests.disk.Disk`, which loses what was not synced."""

from __future__ import annotations

from collections.abc import Sequence

from consensus.storage import StorageFullError, Store
from consensus.write import Stored, Write
from tests.disk import Disk, Piece
from tests.sim.world import World


class RaftDisk:
    """Survives its processes. ``full``: nothing can be saved."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.full = False
        self.lies = world.mutant == "fsync-lies"
        self._disk = Disk()
        self._older: list[Disk] = []

    def open(self) -> DiskStore:
        if self.full:
            raise StorageFullError("no room")
        self._disk.kill()  # whoever had it open before is dead
        return DiskStore(self, self._disk.open_store())

    def power_cut(self) -> None:
        if self.lies and self._older:
            self._disk, self._older = self._older[0], []
        self._disk.power_cut(self._survivors)

    def _survivors(self, unsynced: Sequence[Piece]) -> list[Piece]:
        """Any part of it, each write whole or not at all, in whatever order the disk had got to them."""
        share = self.world.dice.choice((0.0, 0.5, 1.0))
        return [piece for piece in unsynced if self.world.dice.random() < share]

    def wipe(self) -> None:
        self._disk = Disk()

    def saved(self) -> None:
        if self.lies:
            self._older = [*self._older, self._disk.copy()][-3:]


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
