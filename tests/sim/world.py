"""True time, one queue of events, one source of chance, and the story of what happened. Nothing else is shared.

Whatever happens is an event in the queue: same seed, same queue, same story. Nothing here or above may depend on the
order of a set, on `id`, or on any clock but `World.now`.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable

from fencing.lease import MS

STORY_KEPT = 400
Act = Callable[[], None]


class World:
    """``mutant``: name of the protecting step that is switched off (mutants.py); empty: none."""

    def __init__(self, seed: int, mutant: str = "") -> None:
        self.seed, self.mutant = seed, mutant
        self.dice = random.Random(seed)
        self.now = 0
        self.counts: Counter[str] = Counter()
        self.events = 0
        self.story: deque[tuple[int, str, str]] = deque(maxlen=STORY_KEPT)
        self._queue: list[tuple[int, int, Act]] = []
        self._number = 0
        self._trace = hashlib.blake2b(digest_size=16)

    def at(self, true_ns: int, act: Act) -> None:
        self._number += 1
        heapq.heappush(self._queue, (max(true_ns, self.now), self._number, act))

    def after(self, ns: int, act: Act) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now + ns, self._number, act))

    def run(self, until_ns: int, *, done: Callable[[], bool] | None = None) -> bool:
        """Until ``until_ns``, or until ``done`` (looked at every 50 ms of true time). True: it was done."""
        look_at = self.now
        queue = self._queue
        while queue and queue[0][0] <= until_ns:
            self.now, _, act = heapq.heappop(queue)
            self.events += 1
            act()
            if done is not None and self.now >= look_at:
                look_at = self.now + 50 * MS
                if done():
                    return True
        self.now = max(self.now, until_ns)
        return False

    def note(self, who: str, text: str) -> None:
        """Into the story and into the hash of the run."""
        self.story.append((self.now, who, text))
        self._trace.update(f"{self.now} {who} {text}\n".encode())

    def trace(self, text: str) -> None:
        """Into the hash alone: too much for people."""
        self._trace.update(f"{self.now} {text}\n".encode())

    @property
    def digest(self) -> str:
        return self._trace.hexdigest()

    def between(self, low_us: int, high_us: int) -> int:
        """A random duration in nanoseconds."""
        return (low_us + self.below(high_us - low_us)) * 1_000

    def below(self, limit: int) -> int:
        """What `randrange` gives, without its questions."""
        bits, draw = limit.bit_length(), self.dice.getrandbits
        found = draw(bits)
        while found >= limit:
            found = draw(bits)
        return found

    def chance(self, share: float) -> bool:
        return self.dice.random() < share
