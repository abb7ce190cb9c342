"""The shipped Raft core, exhaustively within a small bound; and mutants of it, which must be caught."""

from __future__ import annotations

import os

import pytest

from consensus import raft as raft_module
from consensus.messages import Entry, HardState
from consensus.quorum import reached_by_majority
from consensus.raft import Log, Raft
from tests.model.explore import Outcome, State, explore
from tests.model.raftworld import Bound, Disk, RaftWorld

STATES_MAX = 700_000

SHIPPED = [Bound(2, proposals=1, restarts=1), Bound(2, delays=1), Bound(2, releases=1), Bound(2, compactions=1)]
"""Restart and resume; reordering; handing over; snapshots."""
if os.environ.get("PGR_TEST_LEVEL", "quick") != "quick":
    SHIPPED += [Bound(2, releases=1, restarts=1), Bound(2, restarts=1, compactions=1), Bound(3)]


def run(world: RaftWorld, start: State | None = None) -> Outcome:
    return explore(start or world.start(), world.successors, world.tell, states_max=STATES_MAX)


@pytest.mark.parametrize("bound", SHIPPED, ids=lambda b: "-".join(map(str, b)))
def test_shipped(bound: Bound, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(RaftWorld(bound))
    with capsys.disabled():
        print("\nRaft model:", outcome.report(str(bound)))
    assert not outcome.violation, outcome.report(str(bound))


class VotesForAnyLog(Raft):
    __slots__ = ()

    def _up_to_date(self, last_index: int, last_term: int) -> bool:
        return True


class ClearsVoteInItsTerm(Raft):
    """CCF #8094."""

    __slots__ = ()

    def _follow(self, term: int, leader: str) -> None:
        super()._follow(term, leader)
        self.vote = "" if leader else self.vote


class CommitsOldTermsByCounting(Raft):
    """Figure 8 of the paper."""

    __slots__ = ()

    def _advance_commit(self) -> None:
        matches = [self.log.last_index, *(p.match for _, p in self.progress)]
        self.commit = max(self.commit, reached_by_majority(matches, len(self.config.voters)))


class NeverSavesItsVote(Raft):
    __slots__ = ()

    @property
    def hard_state(self) -> HardState:
        return super().hard_state._replace(vote="")


def test_a_vote_forgotten_on_restart_is_caught() -> None:
    assert "vote durability" in run(RaftWorld(Bound(2, restarts=1), forget_vote=True)).violation


def test_a_vote_never_saved_is_caught() -> None:
    assert run(RaftWorld(Bound(2, restarts=1), NeverSavesItsVote)).violation


def test_votes_without_a_look_at_the_log_are_caught() -> None:
    assert "leader completeness" in run(RaftWorld(Bound(2), VotesForAnyLog)).violation


def test_a_vote_cleared_within_its_term_is_caught() -> None:
    assert run(RaftWorld(Bound(2, delays=1), ClearsVoteInItsTerm)).violation


def test_a_majority_one_short_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft_module, "has_majority", lambda yes, voters: len(set(yes)) >= len(voters) // 2)
    assert "one leader per term" in run(RaftWorld(Bound(1))).violation


def _figure_8(core: type[Raft]) -> Outcome:
    """a led term 1 and b led term 2, each alone with its own entry; what can terms 3 and 4 make of that?"""
    world = RaftWorld(Bound(4), core)
    _, _, c, *rest = world.start()
    nodes = []
    for at, (name, term) in enumerate((("a", 1), ("b", 2))):
        disk = Disk(HardState(2, "b", 0, 0), Log(entries=(Entry(1, term, "noop/1", ""),)))
        assert world.configs[at].me == name
        raft = core(world.configs[at], disk.hard, disk.log, boot=1, seed=1, now_ns=0, fresh=False)
        nodes.append(world._local(at, raft, disk))
    disk = Disk(HardState(2, "b", 0, 0))
    c = world._local(2, core(world.configs[2], disk.hard, disk.log, boot=1, seed=1, now_ns=0, fresh=False), disk)
    return run(world, (*nodes, c, *rest))


def test_committing_an_older_term_by_counting_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft_module, "ENTRIES_PER_MESSAGE_MAX", 1)
    assert "leader completeness" in _figure_8(CommitsOldTermsByCounting).violation


def test_a_counterexample_is_a_readable_story() -> None:
    outcome = run(RaftWorld(Bound(2), VotesForAnyLog))
    text = outcome.report("T=2")
    assert text.startswith("VIOLATION within T=2: leader completeness")
    assert "a: campaign" in text
    assert "AppendReq(term 1, after 0@0: [1@1], commit 0) arrives" in text
