"""Clients: sessions on every node that write whenever they are let, some of which ignore the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fencing.lease import MS
from tests.sim.postgres import Postgres, State

if TYPE_CHECKING:
    from tests.sim.cluster import Simulation
    from tests.sim.host import Host

GIVE_UP_MS = 2_000


class Client:
    """One client of one node: a long-open session, or a fresh one for each write (``fresh``)."""

    def __init__(self, world: Simulation, host: Host, *, overrides: bool, fresh: bool, every_ms: int) -> None:
        self.world, self.host = world, host
        self.overrides, self.fresh, self.every_ms = overrides, fresh, every_ms
        self.server: Postgres | None = None
        self.asked_at = 0
        """0: nothing is under way."""
        self.ok = 0
        self._again(world.dice.randrange(1_000))

    def _again(self, ms: int) -> None:
        self.world.after(ms * MS, self._turn)

    def _turn(self) -> None:
        world = self.world
        self._again(world.dice.randrange(self.every_ms // 2, self.every_ms * 3 // 2))
        server = self.host.postgres
        if self.asked_at:
            if self.server is server and world.now - self.asked_at < GIVE_UP_MS * MS:
                return
            self.asked_at = 0  # the connection is gone, or it has lost its patience
        if server is None or server.state is State.STARTING:
            return
        if server is not self.server or self.fresh:
            self.server = server
        self.asked_at = world.now
        server.process.post(world.between(50, 2_000), lambda: server.insert(self))

    def answered(self, record: int, how: str) -> None:
        self.asked_at = 0
        self.world.counts[f"client {how}"] += 1
        if how == "ok":
            self.ok += 1
            self.world.last_ok = self.world.now
