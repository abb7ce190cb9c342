"""Waiting on a simulated clock: the shipped task runner with the clock of a host instead of the machine's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fencing.lease import MS
from supervisor.tasks import Task, Wait


class StepFailed(Exception):
    """As in supervisor/context.py: tried again after a pause."""


class Lost(StepFailed):
    """Whom we asked is gone."""


class Clocked(Protocol):
    @property
    def now(self) -> int: ...


def sleep(clock: Clocked, ns: int) -> Task[None]:
    until_ns = clock.now + ns
    while clock.now < until_ns:
        yield Wait(until_ns=until_ns)


def until(clock: Clocked, ready: Callable[[], bool], within_ms: int) -> Task[None]:
    """Until it is so; TimeoutError."""
    until_ns = clock.now + within_ms * MS
    while not ready():
        if clock.now >= until_ns:
            raise TimeoutError(f"not within {within_ms} ms")
        yield Wait(until_ns=until_ns, ready=ready)
