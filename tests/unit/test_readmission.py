"""A voter that lost its state is let in again as a learner of the same name: what its earlier life had is forgotten."""

from __future__ import annotations

from consensus.changes import list_change
from consensus.cluster import canonical
from consensus.membership import LEARNER, VOTER, Member
from consensus.messages import AppendResp, HardState, PreVoteResp, RaftMessage, VoteResp
from consensus.raft import Log, Propose, Raft, RaftConfig, Received, Role, Tick
from fencing.lease import MS

H, E, L = 100, 1000, 700


def members(incarnation_of_b: int, role: str) -> str:
    lives = {"a": 1, "b": incarnation_of_b, "c": 3}
    rows = [Member(n, i, f"{n}:1", f"{n}:2", "", role if n == "b" else VOTER) for n, i in lives.items()]
    return canonical(list_change(rows, "a", "joined", "b", "").body)


class Led:
    """``a`` leads term 1; ``b`` had the whole log, then lost it."""

    def __init__(self) -> None:
        config = RaftConfig("a", ("a", "b", "c"), H * MS, E * MS, 300 * MS, L * MS)
        self.raft, self.now = Raft(config, HardState(), Log(), boot=7, seed=1, now_ns=0, fresh=True), 1
        self.raft.step(Tick(), MS)
        for message in (PreVoteResp(0, 1, granted=True), VoteResp(1, granted=True)):
            self.hear("b", message)
        for _ in range(5):
            self.raft.step(Propose("event/1", "{}"), MS)
        for name in "bc":
            self.hear(name, AppendResp(1, 7, self.raft.round, ok=True, match=6))
        assert (self.raft.role, self.raft.commit) == (Role.LEADER, 6)

    def hear(self, src: str, message: RaftMessage) -> list[RaftMessage]:
        """What the leader sends back to ``src``."""
        ready = self.raft.step(Received(src, message), self.now * MS)
        return [m for dst, m in ready.after if dst == src]

    def reaches(self, name: str) -> bool:
        """In a conversation that begins with a heartbeat: does this empty log get all that is committed?"""
        empty = Raft(RaftConfig(name, (), H * MS, E * MS), HardState(), Log(), boot=9, seed=2, now_ns=0, fresh=True)
        self.now += H
        said = [m for dst, m in self.raft.step(Tick(), self.now * MS).after if dst == name]
        for _ in range(50):
            answers = [m for one in said for _, m in empty.step(Received("a", one), self.now * MS).after]
            said = [m for one in answers for m in self.hear(name, one)]
        return empty.log.last_index == self.raft.commit == self.raft.acknowledged(name)[0]


def test_a_new_life_of_a_voter_is_sent_the_log_from_its_beginning() -> None:
    led = Led()
    assert led.raft.step(Propose("members/1", members(20, LEARNER)), led.now * MS).proposed == 7
    assert led.raft.acknowledged("b") == (0, 0)
    assert led.reaches("b")


def test_a_late_answer_of_the_earlier_life_counts_for_nothing() -> None:
    """It passes the envelope's check until the entry that lets the new life in is applied."""
    led = Led()
    led.raft.step(Propose("members/1", members(20, LEARNER)), led.now * MS)
    led.hear("b", AppendResp(1, 7, led.raft.round, ok=True, match=6))
    led.hear("c", AppendResp(1, 7, led.raft.round, ok=True, match=7))
    assert led.raft.commit == 7
    assert led.raft.acknowledged("b") == (0, 0)
    assert led.reaches("b")


def test_a_learner_that_loses_its_state_starts_again_as_well() -> None:
    led = Led()
    led.raft.step(Propose("members/1", members(20, LEARNER)), led.now * MS)
    led.hear("c", AppendResp(1, 7, led.raft.round, ok=True, match=7))
    led.hear("b", AppendResp(1, 7, led.raft.round, ok=True, match=7))
    assert led.raft.acknowledged("b")[0] == 7
    led.raft.step(Propose("members/1", members(30, LEARNER)), led.now * MS)
    assert led.reaches("b")


def test_a_voter_keeps_what_it_has_acknowledged() -> None:
    led = Led()
    led.raft.step(Propose("members/1", members(2, VOTER)), led.now * MS)
    assert led.raft.acknowledged("b")[0] == 6
