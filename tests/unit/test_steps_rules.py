"""Rules that the steps themselves hold: a copy that does not start is made again once in a while, not in a loop; a
grant that was handed over is over."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consensus.cluster import ClusterState, Grant
from consensus.membership import Member
from consensus.record import EpochStart, NodeRecord, Position
from fencing.kill import FenceReport
from fencing.lease import MS, PROFILES
from supervisor import starts, steps
from supervisor.context import Context, StepFailed
from supervisor.observe import Facts
from supervisor.postgres import StartFailed
from supervisor.roles import Data, Local, Plan, Server, Situation, Step, View, followable, plan
from supervisor.sql import SqlConnectionLost
from supervisor.starts import COPY_AGAIN_MS, START_FAILURES_MAX, Start
from supervisor.steps import Steps
from supervisor.tasks import Task, TaskTimeout, run_blocking

GRANT = Grant(5, "a", Position(0, 0), 2, (EpochStart(0, 0, 1), EpochStart(5, 100, 2)), opened=True)


class Copy:
    """A standby whose Postgres ends whenever it is started; the clock is moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000 * MS
        monkeypatch.setattr(starts, "now_ns", lambda: self.now)
        self.logged: list[tuple[str, dict[str, Any]]] = []
        log: Any = SimpleNamespace(
            warning=lambda event, **fields: self.logged.append((event, fields)),
            error=lambda event, **fields: self.logged.append((event, fields)), once_per=lambda *_: log,
        )  # fmt: skip
        members = tuple(Member(name, 1, "", "", "") for name in "ab")
        cluster = ClusterState(members=members, grants=(GRANT,))
        view = View(True, 1, 5, "a", record=NodeRecord(5), cluster=cluster, met=True)
        c: Any = SimpleNamespace(
            view=view, local=Local("b", Data.READY, Server.STARTING), log=log, start_failures=0, copy_again_ns=0,
            facts=Facts(), need_postmaster=lambda: None, change=self._change,
            postgres=SimpleNamespace(wait_ready=self._ends),
        )  # fmt: skip
        self.c, self.start = c, Start(c, Steps(c))

    def _change(self, **facts: Any) -> None:
        self.c.local = replace(self.c.local, **facts)

    def _ends(self, *_: Any) -> Task[str]:
        raise StartFailed("Postgres ended while it started", ("FATAL:  could not create any TCP/IP sockets",), 1)
        yield

    def starts(self, times: int, after_ms: int = 0) -> bool:
        """So much later, so often: is it to be cloned again?"""
        self.now += after_ms * MS
        self.c.followed = followable(self.c.view, self.c.local)
        for _ in range(times):
            with pytest.raises(StepFailed, match="TCP/IP"):
                run_blocking(self.start.start(Plan(Step.START)))
        return bool(self.c.local.needs_clone == 5)

    def cloned(self) -> None:
        """As rebuild.clone ends."""
        Context.started(self.c)
        assert self.c.facts.problem == ""
        self._change(needs_clone=0)


def test_a_copy_that_never_starts_is_made_again_but_not_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not be to blame: a port that is taken, a parameter, a full disk."""
    copy = Copy(monkeypatch)
    assert not copy.starts(START_FAILURES_MAX - 1)
    assert copy.c.facts.problem == ""
    assert copy.starts(1)
    assert "TCP/IP" in copy.c.facts.problem, "people are told in the status"
    copy.cloned()
    assert not copy.starts(3 * START_FAILURES_MAX, 1_000)
    assert not copy.starts(1, COPY_AGAIN_MS - 1_001), "not within ten minutes of the first"
    assert copy.logged[-1][0] == "start.hopeless"
    assert "TCP/IP" in copy.logged[-1][1]["reason"]
    assert "postgres.log" in copy.logged[-1][1]["hint"], "a person has to look"
    assert copy.starts(1, 1)


def test_nothing_is_copied_from_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Copy(monkeypatch)
    copy.c.view = replace(copy.c.view, wanted=6)
    assert not copy.starts(START_FAILURES_MAX), "a promise is wanted: the primary of now may not be followed"
    copy.c.view = replace(copy.c.view, wanted=0)
    assert copy.starts(1), "that was no copy, so it has not to wait for ten minutes"


# -- a grant that was handed over ------------------------------------------------------------------------------------


def test_a_grant_that_was_handed_over_is_not_used_again_by_a_raft_child_that_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A standby is up within 100 ms; the Raft child may wait longer than that for a disk, its lease still running."""
    told: list[str] = []
    view = View(
        True, 1, 5, "b", "leader", granted=5, hand_over="a", record=NodeRecord(5), met=True, renewed=True,
        cluster=ClusterState(nonce="n", grants=(GRANT._replace(node="b"),)), lease_term=5, lease_until_ns=1 << 62,
    )  # fmt: skip
    c: Any = SimpleNamespace(
        local=Local("b", Data.READY, Server.PRIMARY, epoch=5, gate_open=True), view=view, postmaster=None, session=None,
        process=None, timings=PROFILES["default"], config=SimpleNamespace(pgdata=Path("/nowhere")), facts=Facts(),
        log=SimpleNamespace(info=lambda *_, **__: None, warning=lambda *_, **__: None), freeze_failing_ns=0,
        raft=SimpleNamespace(tell=lambda name, _: told.append(name)),
        watchdog=SimpleNamespace(tell=lambda *_: True), closed_ms=lambda _: {},
    )  # fmt: skip
    c.change = lambda **facts: setattr(c, "local", replace(c.local, **facts))
    monkeypatch.setattr(steps, "fence", lambda *_: FenceReport(0, 0, ()))
    run = Steps(c)

    def stops(within_ms: int) -> Task[bool]:
        run._bury("")
        return True
        yield

    def no_session() -> Task[Any]:
        raise SqlConnectionLost("gone")
        yield

    monkeypatch.setattr(run, "_stop_cleanly", stops)
    monkeypatch.setattr(run, "session", no_session)
    run_blocking(run.hand_over(Plan(Step.HAND_OVER, 5)))
    assert told == ["node.fenced"]
    assert plan(Situation(c.view, c.local, c.timings, 0))[0].step is Step.REPORT_FENCED, "no start before it is heard"
    c.view = replace(c.view, granted=0, hand_over=None)
    assert plan(Situation(c.view, c.local, c.timings, 0))[0].step is Step.START


# -- a promise that a full disk keeps a node from giving ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason", "killed"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device", False),
        (TaskTimeout("the session"), "Postgres does not answer: the session", True),
    ],
    ids=["a full disk", "it hangs"],
)
def test_who_can_give_no_promise_says_why_and_only_one_that_hangs_is_killed(
    monkeypatch: pytest.MonkeyPatch, error: OSError, reason: str, killed: bool
) -> None:
    """Its settings can't be written, so its receiver goes on: under no vow, and it would not start again either."""
    told: list[dict[str, Any]] = []
    buried: list[str] = []
    c: Any = SimpleNamespace(
        local=Local("b", Data.READY, Server.STANDBY), facts=Facts(), freeze_failing_ns=1, postmaster=object(),
        log=SimpleNamespace(error=lambda *_, **__: None),
    )  # fmt: skip
    c.change = lambda **facts: setattr(c, "local", replace(c.local, **facts))
    run = Steps(c)

    def tell(_: str, body: dict[str, Any]) -> bool:
        told.append(body)
        return True

    def detach() -> Task[None]:
        raise error
        yield

    c.raft = SimpleNamespace(tell=tell)
    monkeypatch.setattr(run, "_detach", detach)
    monkeypatch.setattr(run, "_bury", buried.append)
    with pytest.raises(type(error)):
        run_blocking(run.freeze(Plan(Step.FREEZE, 7)))
    assert [(body["term"], body["epoch"]) for body in told] == [(7, -1)]
    assert reason in told[0]["reason"]
    assert bool(buried) is killed
    assert c.local.vowed == 0


# -- a copy that has not passed its proof ------------------------------------------------------------------------------


@pytest.mark.parametrize(("timeline", "attached"), [(2, True), (1, False), (0, False)])
def test_a_copy_without_proof_follows_with_wal_of_the_history_it_was_given_and_else_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeline: int, attached: bool
) -> None:
    """A copy of a standby that had gone another way ends on the timeline of that; its LSN alone would let it attach."""
    if timeline:
        (tmp_path / f"{timeline:08X}{0:016X}").touch()
    record = NodeRecord(5, GRANT.ancestry, Position(5, 900))
    c: Any = SimpleNamespace(
        local=Local("b", Data.READY, Server.STANDBY), record=record, cluster=ClusterState(grants=(GRANT,)), delay_ms=0,
        postgres=SimpleNamespace(wal_dir=tmp_path), wal_segment_bytes=1 << 24,
        log=SimpleNamespace(warning=lambda *_, **__: None),
    )  # fmt: skip
    c.change = lambda **facts: setattr(c, "local", replace(c.local, **facts))
    run, followed = Steps(c), list[Grant]()

    def ends(result: Any) -> Task[Any]:
        return result
        yield

    monkeypatch.setattr(c, "save_record", lambda *_, **__: ends(None), raising=False)
    monkeypatch.setattr(run, "_detach", lambda: ends(None))
    monkeypatch.setattr(run, "_lsns", lambda: ends((500, 400, "")))
    monkeypatch.setattr(run, "_position", lambda: run._position_at(500))
    monkeypatch.setattr(run, "_forget_torn_record", lambda *_: None)
    monkeypatch.setattr(run, "attach", followed.append)
    run_blocking(run.follow(Plan(Step.FOLLOW, 5)))
    assert (followed == [GRANT], c.local.needs_clone) == (attached, 0 if attached else 5)
