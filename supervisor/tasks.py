"""Generator tasks for a single-threaded poll loop.

A task is a generator that yields what it waits for and is resumed with what happened; ``yield from`` composes tasks,
``return`` gives the result, an exception the failure, ``finally`` the clean-up (also when the task is cancelled).
Deadlines are instants of ``fencing.clock.now_ns()``. A task must stand being woken for nothing: after a descriptor
was closed its number may already belong to someone else, so it looks again before it acts.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from fencing.clock import now_ns

NEVER = (1 << 63) - 1
"""The instant that never comes."""
READ, WRITE = 1, 2
"""Event bits; the values are those of zmq.POLLIN and zmq.POLLOUT, so a zmq.Poller takes them as they are."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """What a task waits for: whichever comes first of a descriptor's events, a condition and an instant.

    Several descriptors at once: wait for reading on a ``select.epoll`` that holds them.
    """

    fd: int = -1
    read: bool = False
    write: bool = False
    until_ns: int = NEVER
    ready: Callable[[], bool] | None = None
    """Asked on every turn of the loop, so it must be cheap, and something in the loop must make it true."""


@dataclass(frozen=True, slots=True)
class Woken:
    """Why a task was resumed. All three false: its ``ready`` said so."""

    timed_out: bool = False
    readable: bool = False
    writable: bool = False


Task: TypeAlias = Generator[Wait, Woken, T]


class TaskTimeout(TimeoutError):
    """A task did not end by the instant its caller set; it has been closed."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """How a task ended: ``error`` is None and ``value`` its result, or ``error`` is what it raised."""

    value: T | None = None
    error: Exception | None = None

    def unwrap(self) -> T:
        """The result; raises what the task raised."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # None only where T is


def sleep(ns: int) -> Task[None]:
    """A pause between attempts. Never a way to wait for something that could tell."""
    until = now_ns() + ns
    while now_ns() < until:
        yield Wait(until_ns=until)


def within(task: Task[T], until_ns: int) -> Task[T]:
    """Run a task with an upper bound on all its waiting; at ``until_ns`` it is closed and TaskTimeout raised."""
    try:
        wait = next(task)
        while True:
            woken = yield Wait(wait.fd, wait.read, wait.write, min(wait.until_ns, until_ns), wait.ready)
            if woken.timed_out and now_ns() >= until_ns:
                raise TaskTimeout("deadline passed")
            wait = task.send(woken)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # StopIteration is not generic
    finally:
        task.close()


class Handle:
    """A task in the care of a Runner."""

    __slots__ = ("_on_done", "_running", "_state", "_task", "_wait", "name")

    def __init__(self, task: Task[Any], on_done: Callable[[Outcome[Any]], None], name: str) -> None:
        self.name = name
        self._task = task
        self._on_done = on_done
        self._wait: Wait | None = None  # None: not started yet
        self._state = "running"
        self._running = False

    @property
    def done(self) -> bool:
        """Ended by itself or cancelled."""
        return self._state != "running"

    def cancel(self) -> None:
        """Close the task now (its finally blocks run before this returns); ``on_done`` will not be called. Idempotent.

        A task that cancels itself goes on to its next yield and is closed there.
        """
        if self.done:
            return
        self._state = "cancelled"
        if not self._running:
            self._task.close()

    def _step(self, woken: Woken) -> None:
        """Resume until the next yield; on the end tell ``on_done``, whose own exceptions are the caller's to see."""
        self._running = True
        outcome: Outcome[Any] | None = None
        try:
            wait = next(self._task) if self._wait is None else self._task.send(woken)
            if wait.ready is None and wait.until_ns == NEVER and not (wait.fd >= 0 and (wait.read or wait.write)):
                self._task.close()
                raise ValueError(f"task {self.name} waits for nothing: {wait}")
            self._wait = wait
        except StopIteration as stop:
            outcome = Outcome(stop.value)
        except Exception as error:  # the owner of the task gets it
            outcome = Outcome(error=error)
        finally:
            self._running = False
        if self._state == "cancelled":
            self._task.close()
        elif outcome is not None:
            self._state = "done"
            self._on_done(outcome)


class Runner:
    """Owns running tasks; the loop around it owns the poller.

    One turn: ``fds, until = runner.wait_for()``; poll these (with others) until then; ``runner.run(events, now_ns())``.
    """

    def __init__(self) -> None:
        self._handles: list[Handle] = []

    def __len__(self) -> int:
        return sum(not handle.done for handle in self._handles)

    def names(self) -> list[str]:
        """Names of the running tasks, oldest first."""
        return [handle.name for handle in self._handles if not handle.done]

    def start(self, task: Task[T], on_done: Callable[[Outcome[T]], None], name: str) -> Handle:
        """Take a task on. It takes its first step in the next ``run``, and ``wait_for`` says "at once" until then."""
        handle = Handle(task, on_done, name)
        self._handles.append(handle)
        return handle

    def cancel_all(self) -> None:
        """Cancel every task, youngest first."""
        for handle in reversed(self._handles):
            handle.cancel()
        self._handles.clear()

    def wait_for(self) -> tuple[dict[int, int], int]:
        """Descriptors with their events (READ | WRITE) and the instant by which ``run`` must be called; 0 = at once."""
        self._handles = [handle for handle in self._handles if not handle.done]
        fds: dict[int, int] = {}
        until_ns = NEVER
        for handle in self._handles:
            wait = handle._wait
            if wait is None or (wait.ready is not None and wait.ready()):
                until_ns = 0
                continue
            until_ns = min(until_ns, wait.until_ns)
            if wait.fd >= 0 and (events := READ * wait.read | WRITE * wait.write):
                fds[wait.fd] = fds.get(wait.fd, 0) | events
        return fds, until_ns

    def run(self, ready_fds: Mapping[int, int], now_ns: int) -> None:
        """Resume every task that has something to resume for.

        ``ready_fds`` as zmq.Poller gives it; any bit besides READ and WRITE (hang-up, error) counts as both. Tasks
        started meanwhile (by ``on_done``) wait for the next turn. What an ``on_done`` raises is raised here.
        """
        for handle in tuple(self._handles):
            if handle.done:
                continue
            woken = Woken() if handle._wait is None else _woken(handle._wait, ready_fds, now_ns)
            if woken is not None:
                handle._step(woken)


def _woken(wait: Wait, ready_fds: Mapping[int, int], now_ns: int) -> Woken | None:
    bits = ready_fds.get(wait.fd, 0) if wait.fd >= 0 else 0
    broken = bool(bits & ~(READ | WRITE))
    readable, writable = wait.read and bool(bits & READ or broken), wait.write and bool(bits & WRITE or broken)
    if readable or writable:
        return Woken(readable=readable, writable=writable)
    if wait.ready is not None and wait.ready():
        return Woken()
    return Woken(timed_out=True) if now_ns >= wait.until_ns else None


def run_blocking(task: Task[T], until_ns: int = NEVER, turn: Callable[[], object] | None = None) -> T:
    """Drive one task to its end with select.poll, for start-up code, the CLI and tests.

    ``turn`` is called after every wake-up (and at least every 50 ms), for a task whose ``ready`` needs someone to
    make it true. Raises what the task raises, or TaskTimeout.
    """
    results: list[Outcome[T]] = []
    runner = Runner()
    handle = runner.start(within(task, until_ns), results.append, "blocking")
    try:
        runner.run({}, now_ns())
        while not results:
            fds, until = runner.wait_for()
            poller = select.poll()
            for fd, events in fds.items():
                poller.register(fd, select.POLLIN * bool(events & READ) | select.POLLOUT * bool(events & WRITE))
            # Rounded up: waking early would spin until the instant has come.
            timeout_ms = None if until == NEVER else max(0, -(-(until - now_ns()) // 1_000_000))
            if turn is not None:
                timeout_ms = 50 if timeout_ms is None else min(50, timeout_ms)
            ready = poller.poll(timeout_ms)
            if turn is not None:
                turn()
            runner.run({fd: _bits(events) for fd, events in ready}, now_ns())
    finally:
        handle.cancel()
    return results[0].unwrap()


def _bits(events: int) -> int:
    other = events & ~(select.POLLIN | select.POLLOUT)
    return READ * bool(events & select.POLLIN) | WRITE * bool(events & select.POLLOUT) | (4 if other else 0)
