"""What lies between machines: a control plane of single frames, and a data plane of connections that stall.

Frames get lost, delayed, overtaken, repeated; a link can be cut in one direction and in one plane alone. Clients sit on
the machine they talk to: a partition never protects a stale primary from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fencing.lease import MS
from tests.sim.world import World

CONTROL, DATA = "control", "data"


@dataclass(frozen=True, slots=True)
class Weather:
    """Of the whole network; the faults change it."""

    loss: float = 0.0
    twice: float = 0.0
    slow: float = 0.0
    """Share of frames that take up to ``slow_ms``."""
    slow_ms: int = 50


class Network:
    def __init__(self, world: World) -> None:
        self.world = world
        self.weather = Weather()
        self.cuts: dict[tuple[str, str, str], int] = {}
        """(plane, from, to): since when nothing gets through."""
        self.outside: frozenset[str] = frozenset()
        """Cut off for good."""

    def cut(self, plane: str, src: str, dst: str) -> None:
        self.cuts.setdefault((plane, src, dst), self.world.now)

    def heal(self) -> None:
        self.cuts.clear()
        self.weather = Weather()

    def is_open(self, plane: str, src: str, dst: str) -> bool:
        if src == dst:
            return True
        return (plane, src, dst) not in self.cuts and src not in self.outside and dst not in self.outside

    def both_ways(self, src: str, dst: str) -> bool:
        """May there be a connection of the data plane?"""
        return self.is_open(DATA, src, dst) and self.is_open(DATA, dst, src)

    def delay(self) -> int:
        world, weather = self.world, self.weather
        if weather.slow and world.dice.random() < weather.slow:
            return world.below(weather.slow_ms * MS)
        return 100_000 + world.below(1_200_000)

    def frame(self, src: str, dst: str, deliver: Callable[[], None]) -> None:
        """One frame of the control plane."""
        world, weather = self.world, self.weather
        if (self.cuts or self.outside) and not self.is_open(CONTROL, src, dst):
            return
        if weather.loss and world.dice.random() < weather.loss:
            return
        world.after(self.delay(), deliver)
        if weather.twice and world.dice.random() < weather.twice:
            world.after(self.delay(), deliver)
