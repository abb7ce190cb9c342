"""A watchdog that is frozen: its pidfd does not tell, so it is asked, and replaced if it leaves that unanswered."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from consensus.retiming import Pace, Retiming
from fencing.lease import MS, PROFILES, UNTOLD
from supervisor.offspring import ASK_EVERY_MS, WATCHDOG_SILENT_MS, Child, Offspring


class Parent:
    """As much of one as asks; the clock is moved by hand."""

    def __init__(self) -> None:
        self.now, self.asked = 1_000 * MS, 0
        self.bounds: list[tuple[int, int, int]] = []
        self.killed: list[int] = []
        """When."""
        self.offspring = Offspring.__new__(Offspring)
        self.offspring.watchdog, self.offspring.asked_ns, self.offspring.ask_at_ns = Child("watchdog", {}), 0, 0
        log: Any = SimpleNamespace(warning=lambda *_, **__: None, info=lambda *_, **__: None)
        self.offspring.log = log
        self.link: Any = SimpleNamespace(tell=self._tell)
        self.offspring.kill = self._kill  # type: ignore[method-assign]

    def _tell(self, name: str, body: dict[str, Any]) -> bool:
        if name == "deadman.bounds":
            self.bounds.append((body["lease_ms"], body["kill_bound_ms"], body["at"]))
            return True
        assert name == "deadman.query"
        self.asked += 1
        return True

    def _kill(self, name: str) -> None:
        assert name == "watchdog"
        self.killed.append(self.now)

    def turn(self, after_ms: int, *, answered: bool = True) -> None:
        self.now += after_ms * MS
        if answered:  # as the daemon does with what it reads
            self.offspring.asked_ns = 0
        self.offspring.ask_watchdog(self.now, self.link)


@pytest.fixture
def parent() -> Parent:
    made = Parent()
    made.offspring.ready("watchdog")
    return made


def test_it_is_asked_once_in_a_while_and_left_alone_while_it_answers(parent: Parent) -> None:
    for _ in range(100):
        parent.turn(100)
    assert parent.asked == 100 * 100 // ASK_EVERY_MS
    assert not parent.killed


def test_one_that_does_not_answer_is_replaced_once(parent: Parent) -> None:
    parent.turn(0)
    parent.turn(WATCHDOG_SILENT_MS, answered=False)
    assert not parent.killed, "not before"
    parent.turn(1, answered=False)
    assert len(parent.killed) == 1
    parent.offspring.watchdog.ready = False  # as its end is noted
    for _ in range(100):
        parent.turn(100, answered=False)
    assert len(parent.killed) == 1, "the next one has all the time it needs to start"
    asked = parent.asked
    parent.offspring.ready("watchdog")
    parent.turn(ASK_EVERY_MS, answered=False)
    assert parent.asked == asked + 1


def test_a_stall_of_the_parent_is_none_of_the_watchdog(parent: Parent) -> None:
    parent.turn(0)
    parent.turn(10 * WATCHDOG_SILENT_MS)
    parent.turn(1, answered=False)
    assert not parent.killed


def test_one_that_was_reaped_in_this_very_turn_can_be_ended_all_the_same() -> None:
    """Seen after a thaw: the Raft child was dead and reaped, still thought silent, and the parent fell over it."""
    offspring = Offspring.__new__(Offspring)
    offspring.raft, offspring.watchdog = Child("raft", {}), Child("watchdog", {})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    offspring.raft.pidfd = os.pidfd_open(gone.pid)
    gone.wait()
    try:
        offspring.kill("raft")
    finally:
        os.close(offspring.raft.pidfd)


def test_a_running_watchdog_is_told_of_other_timings_and_never_started_anew_for_them(parent: Parent) -> None:
    """A Postgres may rest on it."""
    offspring = parent.offspring
    offspring.watchdog.arguments |= {"timings": asdict(PROFILES["default"]), "at": 0}
    offspring.use_pace(Pace(PROFILES["default"]), parent.link)
    assert parent.bounds == []
    offspring.use_pace(Pace(PROFILES["cloud"], None, 9), parent.link)
    assert parent.bounds == [(1400, 500, 9)]
    assert offspring.watchdog.arguments["timings"] == asdict(PROFILES["cloud"]), "the next one begins with them"
    offspring.watchdog_said({"lease_ms": 1400, "kill_bound_ms": 500, "at": 9}, parent.link)
    assert len(parent.bounds) == 1
    offspring.watchdog_said({"lease_ms": 700, "kill_bound_ms": 250, "at": 0}, parent.link)
    offspring.watchdog_said({"lease_ms": 1400, "kill_bound_ms": 500, "at": 7}, parent.link)
    assert parent.bounds == [(1400, 500, 9)] * 3, "it had not heard"
    assert not parent.killed


def test_the_timings_of_the_log_reach_the_watchdog_before_a_longer_lease_and_the_parent_with_it(
    parent: Parent,
) -> None:
    offspring, default, cloud = parent.offspring, PROFILES["default"], PROFILES["cloud"]
    offspring.watchdog.arguments |= {"timings": asdict(default), "at": UNTOLD}
    assert offspring.use_pace(Pace(default), parent.link) == default
    assert parent.bounds == [(700, 250, 0)], "that this is of the log is new to it"
    opened, switched = Pace(default, Retiming(7, cloud), 7), Pace(default, Retiming(7, cloud, True), 8)
    assert offspring.use_pace(opened, parent.link).lease_ms == 700
    assert parent.bounds[1:] == [(1400, 250, 7)]
    assert offspring.use_pace(switched, parent.link).lease_ms == 1400
    assert offspring.use_pace(switched, parent.link).lease_ms == 1400
    assert parent.bounds[2:] == [(1400, 250, 8)], "once, and though only the step is new: the Raft child asks"
    assert offspring.use_pace(Pace(cloud, None, 9), parent.link) == cloud
    assert parent.bounds[3:] == [(1400, 500, 9)]


def test_one_that_has_not_said_anything_yet_is_told_when_it_does(parent: Parent) -> None:
    offspring = parent.offspring
    offspring.watchdog.arguments |= {"timings": asdict(PROFILES["default"]), "at": UNTOLD}
    offspring.watchdog.ready = False
    offspring.watchdog_said({"lease_ms": 700, "kill_bound_ms": 250, "at": UNTOLD}, parent.link)
    offspring.use_pace(Pace(PROFILES["fast"]), parent.link)
    assert parent.bounds == []
    offspring.watchdog_said({"lease_ms": 700, "kill_bound_ms": 250, "at": UNTOLD}, parent.link)
    assert parent.bounds == [(300, 180, 0)]
