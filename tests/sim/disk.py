"""The disk under the Raft store: the shipped `Store` on a file system that keeps what was synced, and any of the rest.

`tests.disk.Disk` is that file system; here is only what a whole cluster asks of it.
"""

from __future__ import annotations

import apsw

from consensus.storage import StorageError, Store
from tests.disk import LOG, MAIN, NOTE, Disk, at_random
from tests.sim.world import World

BOUNDARIES_OF_A_SAVE = 14
"""About so many times a save writes or syncs."""


class RaftDisk:
    """Survives its processes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._disk = self._new()
        self.damaged, self.cuts = False, 0
        self._older: list[Disk] = []
        """With a disk that lies so well that nobody can tell: all of it is as it was some saves ago."""

    def _new(self) -> Disk:
        return Disk()

    def open(self) -> Store:
        """Raises StorageError."""
        try:
            return self._disk.open_store()
        except apsw.IOError as error:  # the power goes before there is a store that could say so
            raise StorageError(str(error)) from error

    @property
    def full(self) -> bool:
        return self._disk.full_after_bytes is not None

    def fill(self) -> None:
        self._disk.full_after_bytes = self.world.dice.randrange(20_000)

    def make_room(self) -> None:
        self._disk.full_after_bytes = None

    def fail_within_a_save(self) -> None:
        """The power goes at one of the next write boundaries: see `is_off`."""
        self._disk.cut_at = self._disk.boundaries + self.world.dice.randrange(1, BOUNDARIES_OF_A_SAVE)

    @property
    def is_off(self) -> bool:
        return self._disk.off

    def kill(self) -> None:
        """Its process is gone; what it wrote can still be read."""
        self._disk.kill()

    def saved(self) -> None:
        if self.world.mutant == "fsync-lies":
            self._older = [*self._older, self._disk.copy()][-3:]

    def power_cut(self) -> None:
        self.cuts += 1
        if self._older:
            self._disk, self._older = self._older[0], []
        self._disk.power_cut(at_random(self.world.dice.getrandbits(32)))

    def damage(self) -> str:
        """A few bytes of one file are not what they were; says where. All of it has been written back before: damage
        together with a power cut is beyond what the store can notice (consensus/tally.py)."""
        dice = self.world.dice
        files = {name: data for name, data in self._disk.files().items() if data and name in (MAIN, LOG, NOTE)}
        if not files:
            return "nothing there yet"
        self.damaged = True
        for name, data in files.items():
            self._disk.put(name, data)
        name = dice.choice(sorted(files))
        places = [dice.randrange(len(files[name])) for _ in range(dice.choice((1, 8, 64)))]
        for place in places:
            self._disk.corrupt(name, place, dice.randrange(1, 256))
        return f"{len(places)} bytes of {name}"

    @property
    def is_sound(self) -> bool:
        """Something is there, and it is what was saved."""
        return self._disk.exists(MAIN) and not self.damaged

    def wipe(self) -> None:
        self._disk, self.damaged = self._new(), False
