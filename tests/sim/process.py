"""A process as the others see it: it gets its messages in order, unless it is frozen, busy or dead."""

from __future__ import annotations

from collections import deque
from functools import partial

from tests.sim.world import Act, World


class Process:
    """``life`` counts its starts and ends: what was meant for an earlier life never arrives."""

    __slots__ = ("_inbox", "alive", "busy", "frozen", "life", "name", "world")

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.alive = self.frozen = self.busy = False
        self.life = 0
        self._inbox: deque[Act] = deque()

    def start(self) -> None:
        self.life += 1
        self.alive, self.frozen, self.busy = True, False, False
        self._inbox.clear()

    def end(self) -> None:
        self.life += 1
        self.alive = False
        self._inbox.clear()

    def post(self, after_ns: int, act: Act) -> None:
        """A message, a signal or a timer for this life of the process."""
        self.world.after(after_ns, partial(self._arrive, self.life, act))

    def post_at(self, true_ns: int, act: Act) -> None:
        self.world.at(true_ns, partial(self._arrive, self.life, act))

    def _arrive(self, life: int, act: Act) -> None:
        if life != self.life or not self.alive:
            return
        if self.frozen or self.busy:
            self._inbox.append(act)
        else:
            act()

    def start_up(self, after_ns: int, act: Act) -> None:
        """From its start until ``act`` is done it hears nobody."""
        self.start()
        self.busy = True
        life = self.life

        def begin() -> None:
            if life == self.life and self.frozen:
                self.world.after(5_000_000, begin)
            elif life == self.life:
                act()
                self.done()

        self.world.after(after_ns, begin)

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        self._go_on()

    def done(self) -> None:
        """Not busy any more."""
        self.busy = False
        self._go_on()

    def _go_on(self) -> None:
        while self._inbox and self.alive and not self.frozen and not self.busy:
            self._inbox.popleft()()
