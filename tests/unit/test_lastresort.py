"""Parent and watchdog hang together: who else knows when the lease ends acts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consensus.lastresort import AGAIN_MS, LastResort
from fencing.kill import FenceReport
from fencing.lease import MS

SILENT_MS, BOUND_MS = 3_000, 250
END = 100_000 * MS
HEARD = END - 50 * MS
"""The parent's last word, shortly before the end of the lease."""
DUE = HEARD + SILENT_MS * MS


class Raft:
    def __init__(self) -> None:
        self.struck: list[tuple[Path, int]] = []
        self.logged: list[str] = []
        self.report = FenceReport(0, 3, ())
        log: Any = SimpleNamespace(warning=lambda event, **_: self.logged.append(event))
        self.it = LastResort(Path("/pgdata"), SILENT_MS, BOUND_MS, log, self._strike)

    def _strike(self, pgdata: Path, _: None, until_ns: int) -> FenceReport:
        self.struck.append((pgdata, until_ns))
        return self.report


@pytest.fixture
def raft() -> Raft:
    made = Raft()
    made.it.heard(HEARD)
    made.it.until_ns = END
    return made


def test_postgres_is_ended_once_the_lease_is_over_and_the_parent_silent(raft: Raft) -> None:
    assert raft.it.due_ns == DUE
    raft.it.tick(DUE - 1)
    assert not raft.struck
    raft.it.tick(DUE)
    assert raft.struck == [(Path("/pgdata"), DUE + BOUND_MS * MS)]
    assert raft.logged == ["raft.fenced_postgres"]
    raft.it.tick(DUE + 10_000 * MS)
    assert len(raft.struck) == 1, "what starts later is not a primary of that lease"
    assert raft.it.due_ns is None


def test_at_the_very_end_of_the_lease_if_the_parent_is_silent_already(raft: Raft) -> None:
    raft.it.until_ns = DUE + 500 * MS
    raft.it.tick(DUE + 500 * MS - 1)
    assert not raft.struck
    raft.it.tick(DUE + 500 * MS)
    assert len(raft.struck) == 1


def test_a_parent_that_lives_acts_by_itself(raft: Raft) -> None:
    raft.it.heard(END)
    raft.it.tick(END + 10 * SILENT_MS * MS)
    assert not raft.struck


def test_a_lease_that_goes_on_ends_nothing(raft: Raft) -> None:
    raft.it.heard(END - 1)
    assert raft.it.due_ns is not None, "that was before the end"
    for turn in range(100):
        raft.it.until_ns = END + (turn + 1) * 100 * MS
        raft.it.tick(END + turn * 100 * MS)
    assert not raft.struck


def test_again_until_nothing_is_left(raft: Raft) -> None:
    raft.report = FenceReport(0, 0, ("process 7 (postgres) is in state D",))
    raft.it.tick(DUE)
    raft.it.tick(DUE + AGAIN_MS * MS - 1)
    assert len(raft.struck) == 1
    raft.report = FenceReport(0, 1, ())
    raft.it.tick(DUE + AGAIN_MS * MS)
    raft.it.tick(DUE + 2 * AGAIN_MS * MS)
    assert len(raft.struck) == 2
