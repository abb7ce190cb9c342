"""Parent and watchdog hang together: who else knows when the lease ends acts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consensus.lastresort import AGAIN_MS, LastResort
from fencing.kill import FenceReport
from fencing.lease import MS

BOUND_MS = 250
END = 100_000 * MS


class Raft:
    def __init__(self) -> None:
        self.struck: list[tuple[Path, int]] = []
        self.logged: list[str] = []
        self.report = FenceReport(0, 3, ())
        log: Any = SimpleNamespace(warning=lambda event, **_: self.logged.append(event))
        self.it = LastResort(Path("/pgdata"), BOUND_MS, log, self._strike)

    def _strike(self, pgdata: Path, _: None, until_ns: int) -> FenceReport:
        self.struck.append((pgdata, until_ns))
        return self.report

    def says(self, role: str) -> None:
        self.it.heard("node.observed", {"role": role})


@pytest.fixture
def raft() -> Raft:
    made = Raft()
    made.says("primary")
    made.it.until_ns = END
    return made


def test_postgres_is_ended_at_the_end_of_the_lease(raft: Raft) -> None:
    """At once: lease and kill bound are all that the others wait."""
    assert raft.it.due_ns == END
    raft.it.tick(END - 1)
    assert not raft.struck
    raft.it.tick(END)
    assert raft.struck == [(Path("/pgdata"), END + BOUND_MS * MS)]
    assert raft.logged == ["raft.fenced_postgres"]
    raft.it.tick(END + 10_000 * MS)
    assert len(raft.struck) == 1, "what starts later is not a primary of that lease"
    assert raft.it.due_ns is None


@pytest.mark.parametrize("role", ["replica", "waiting", "starting"])
def test_a_parent_that_has_demoted_is_left_alone(raft: Raft, role: str) -> None:
    """It may have started Postgres again, as a standby."""
    raft.says(role)
    assert raft.it.due_ns is None
    raft.it.tick(END + 10_000 * MS)
    assert not raft.struck


def test_what_was_fenced_need_not_be_ended(raft: Raft) -> None:
    raft.it.heard("node.fenced", {"term": 1})
    raft.it.tick(END)
    assert not raft.struck


@pytest.mark.parametrize("role", ["promoting", "primary", "demoting"])
def test_whatever_may_be_writable_is_ended(raft: Raft, role: str) -> None:
    raft.says(role)
    raft.it.tick(END)
    assert len(raft.struck) == 1


def test_the_word_before_the_promotion_counts(raft: Raft) -> None:
    """The parent may hang between the promotion and its next observation."""
    raft.says("replica")
    raft.it.heard("node.writable", {"term": 7})
    raft.it.heard("node.hello", {})
    raft.it.tick(END)
    assert len(raft.struck) == 1


def test_before_the_first_word_everything_may_be_writable() -> None:
    """A Raft child that resumed while its parent hung."""
    raft = Raft()
    assert raft.it.due_ns is None, "no lease"
    raft.it.until_ns = END
    raft.it.tick(END)
    assert len(raft.struck) == 1


def test_a_lease_that_goes_on_ends_nothing(raft: Raft) -> None:
    for turn in range(100):
        raft.it.until_ns = END + (turn + 1) * 100 * MS
        raft.it.tick(END + turn * 100 * MS)
    assert not raft.struck


def test_again_until_nothing_is_left(raft: Raft) -> None:
    raft.report = FenceReport(0, 0, ("process 7 (postgres) is in state D",))
    raft.it.tick(END)
    raft.it.tick(END + AGAIN_MS * MS - 1)
    assert len(raft.struck) == 1
    raft.report = FenceReport(0, 1, ())
    raft.it.tick(END + AGAIN_MS * MS)
    raft.it.tick(END + 2 * AGAIN_MS * MS)
    assert len(raft.struck) == 2
