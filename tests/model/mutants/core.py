"""Mutants of the Raft core and of the disk under it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from consensus import raft as raft_module
from consensus.membership import MEMBERS, Membership
from consensus.messages import AppendReq, AppendResp, Entry, HardState, SnapshotReq, VoteReq, VoteResp
from consensus.quorum import majority, reached_by_majority
from consensus.raft import Event, Log, Progress, Raft, Role
from tests.model.explore import State
from tests.model.mutants.mutant import Mutant
from tests.model.raftlive import LiveRaftWorld
from tests.model.raftlogs import GRANT
from tests.model.raftvalues import Batch, Bound, Disk, Setup, Step
from tests.model.raftworld import RaftWorld

# -- elections -------------------------------------------------------------------------------------------------------


class VotesForAnyLog(Raft):
    __slots__ = ()

    def _up_to_date(self, last_index: int, last_term: int) -> bool:
        return True


class ComparesLengthFirst(Raft):
    __slots__ = ()

    def _up_to_date(self, last_index: int, last_term: int) -> bool:
        return (last_index, last_term) >= (self.log.last_index, self.log.last_term)


class ComparesFieldByField(Raft):
    __slots__ = ()

    def _up_to_date(self, last_index: int, last_term: int) -> bool:
        return last_term >= self.log.last_term and last_index >= self.log.last_index


class ClearsVoteInItsTerm(Raft):
    __slots__ = ()

    def _follow(self, term: int, leader: str) -> None:
        super()._follow(term, leader)
        self.vote = "" if leader else self.vote


class VotesTwice(Raft):
    __slots__ = ()

    def _on_vote_req(self, src: str, m: VoteReq) -> None:
        if m.term == self.term:
            self.vote = ""
        super()._on_vote_req(src, m)


class CountsLateVotes(Raft):
    """An answer to the campaign of an older term."""

    __slots__ = ()

    def _on_vote_resp(self, src: str, m: VoteResp) -> None:
        super()._on_vote_resp(src, m._replace(term=max(m.term, self.term)))


class NeverSavesItsVote(Raft):
    __slots__ = ()

    @property
    def hard_state(self) -> HardState:
        return super().hard_state._replace(vote="")


class ForgetsTheVote(RaftWorld):
    def started(self, i: int, incarnation: int, disk: Disk, *, fresh: bool = False) -> int:
        return super().started(i, incarnation, disk._replace(hard=disk.hard._replace(vote="")), fresh=fresh)


class ForgetsTheTerm(RaftWorld):
    def started(self, i: int, incarnation: int, disk: Disk, *, fresh: bool = False) -> int:
        old = HardState(disk.log.last_term, "", disk.hard.commit)
        return super().started(i, incarnation, disk._replace(hard=old), fresh=fresh)


class SendsBeforeItSaves(RaftWorld):
    """A crash may fall between the answer and the write that it speaks of."""

    def step(self, local: int, events: tuple[Event, ...]) -> Step:
        local_after, out = super().step(local, events)
        after, before = self.locals.values[local_after], self.locals.values[local].disk
        older = before if out and before != after.disk else None
        raft = self.rafts[local_after]
        return Step(self.local(after.slot, after.incarnation, raft, after.disk, older=older), out)

    def restarted(self, local: int) -> list[int]:
        slot, incarnation, _, _, older, _ = self.locals.values[local]
        found = super().restarted(local)
        return found if older is None else [*found, self.started(slot, incarnation, older)]


# -- replication -----------------------------------------------------------------------------------------------------


class AlwaysTruncates(Raft):
    __slots__ = ()

    def _on_append(self, m: AppendReq) -> tuple[bool, int]:
        end = m.prev_index + len(m.entries)
        if m.prev_index > self.commit and self.log.term_at(m.prev_index) != m.prev_term:
            return False, self._retry_from(m.prev_index)
        kept = self.log.truncate_from(max(m.prev_index, self.log.snapshot.index) + 1)
        self.log = kept.append(tuple(e for e in m.entries if e.index > kept.last_index))
        return True, max(end, 0)


class NeverTruncates(Raft):
    __slots__ = ()

    def _on_append(self, m: AppendReq) -> tuple[bool, int]:
        more = tuple(e for e in m.entries if e.index > self.log.last_index)
        return super()._on_append(m._replace(entries=more))


class TakesAnyPredecessor(Raft):
    """No look at the entry before: the log may have a hole, or another history under the new entries."""

    __slots__ = ()

    def _on_append(self, m: AppendReq) -> tuple[bool, int]:
        if m.prev_index > self.log.last_index:
            return super()._on_append(m)
        return super()._on_append(m._replace(prev_term=self.log.term_at(m.prev_index)))


class BelievesOlderLeaders(Raft):
    __slots__ = ()

    def _on_leader(self, src: str, m: AppendReq | SnapshotReq) -> None:
        super()._on_leader(src, m._replace(term=max(m.term, self.term)) if self.role is not Role.LEADER else m)


class BelievesOlderAnswers(Raft):
    __slots__ = ()

    def _on_append_resp(self, src: str, m: AppendResp) -> None:
        super()._on_append_resp(src, m._replace(term=max(m.term, self.term)))


class CommitsOldTermsByCounting(Raft):
    __slots__ = ()

    def _advance_commit(self) -> None:
        matches = [self.log.last_index, *(p.match for _, p in self.progress)]
        self.commit = max(self.commit, reached_by_majority(matches, len(self.members.voters)))


class CommitsWithOneLess(Raft):
    __slots__ = ()

    def _advance_commit(self) -> None:
        matches = sorted([self.log.last_index, *(p.match for _, p in self.progress)], reverse=True)
        index = matches[majority(len(matches)) - 2]
        if index > self.commit and self.log.term_at(index) == self.term:
            self.commit = index


class CommitsWhatItHasNotCompared(Raft):
    __slots__ = ()

    def _on_leader(self, src: str, m: AppendReq | SnapshotReq) -> None:
        super()._on_leader(src, m)
        if m.term == self.term and self.leader == src:
            self.commit = max(self.commit, min(m.commit, self.log.last_index))


class ForgetsProgress(Raft):
    """What a peer has goes back with a message that was overtaken; then what is committed follows."""

    __slots__ = ()

    def _on_append_resp(self, src: str, m: AppendResp) -> None:
        super()._on_append_resp(src, m)
        if self.role is Role.LEADER and not m.ok and m.term == self.term:
            self._set_progress(src, Progress(m.match + 1, m.match))
            self.commit = min(self.commit, max(m.match, self.log.snapshot.index))


class AcknowledgesBeforeItSaves(RaftWorld):
    """The newest entry of a follower is still in the page cache when the machine stops."""

    def restarted(self, local: int) -> list[int]:
        slot, incarnation, _, (hard, log), *_ = self.locals.values[local]
        shorter = Disk(hard._replace(commit=0), log.truncate_from(max(log.last_index, log.snapshot.index + 1)))
        return [*super().restarted(local), self.started(slot, incarnation, shorter)]


class SnapshotCutsTheLog(Raft):
    """Entries after the snapshot are dropped, whether they agree with it or not."""

    __slots__ = ()

    def _on_snapshot(self, m: SnapshotReq) -> tuple[bool, int]:
        snapshot = m.snapshot
        if snapshot.index <= self.log.snapshot.index:
            return True, self.commit
        self.log = Log(snapshot, ())
        self.commit, self.was_restored = snapshot.index, True
        return True, snapshot.index


class SnapshotKeepsAnyLog(Raft):
    __slots__ = ()

    def _on_snapshot(self, m: SnapshotReq) -> tuple[bool, int]:
        rest = self.log.between(m.snapshot.index + 1, self.log.last_index)
        ok = super()._on_snapshot(m)
        if self.was_restored:
            self.log = Log(m.snapshot, rest)
        return ok


class CompactsTheUncommitted(Raft):
    __slots__ = ()

    def _compact(self, index: int, data: str) -> None:
        self.commit = self.log.last_index
        super()._compact(index, data)


# -- membership ------------------------------------------------------------------------------------------------------


class ChangesBeforeTheNoop(Raft):
    __slots__ = ()

    def _may_change(self, new: Membership) -> bool:
        return self.changed_at <= self.commit and self.config.me in new.voters


class ChangesTwoAtOnce(Raft):
    __slots__ = ()

    def _may_change(self, new: Membership) -> bool:
        return self.log.term_at(self.commit) == self.term and self.config.me in new.voters


class CountsEverybody(Raft):
    """Learners and the removed count towards a commit."""

    __slots__ = ()

    def _advance_commit(self) -> None:
        matches = [self.log.last_index, *(p.match for _, p in self.progress)]
        index = reached_by_majority(matches, len(self.members.voters))
        if index > self.commit and self.log.term_at(index) == self.term:
            self.commit = index
            self._look_for_members()

    def _last_for(self, peer: str) -> int:
        return self.log.last_index


class GoesByCommittedMembers(Raft):
    """In force when committed, not when appended."""

    __slots__ = ()

    def _look_for_members(self) -> None:
        super()._look_for_members()
        self.members = self.settled


class KeepsTruncatedMembers(Raft):
    """A change that was overwritten stays in force."""

    __slots__ = ()

    def _look_for_members(self) -> None:
        before = self.members
        super()._look_for_members()
        if before.voters and not any(e.kind == MEMBERS for e in self.log.entries):
            self.members = before


class SnapshotWithoutMembers(Raft):
    __slots__ = ()

    def _compact(self, index: int, data: str) -> None:
        super()._compact(index, data)
        self.log = Log(self.log.snapshot._replace(membership=Membership()), self.log.entries)


class LearnersCampaign(Raft):
    __slots__ = ()

    def _may_campaign(self) -> bool:
        return True

    def _count_votes(self) -> None:
        if len(self.votes) >= majority(len(self.members.voters)):
            self._lead()
            self._append(raft_module.NOOP, "")
            self._broadcast()


class RemembersTheLostNode(Raft):
    """Found by this checker in the shipped core."""

    __slots__ = ()

    def _meet_the_added(self) -> None:
        known = dict(self.progress)
        names = sorted({*self.members.voters, *self.members.learners, *known} - {self.config.me})
        self.progress = tuple((n, known.get(n, Progress(self.log.last_index + 1))) for n in names)


class LearnersGetEverything(Raft):
    """Found by this checker in the shipped core."""

    __slots__ = ()

    def _last_for(self, peer: str) -> int:
        return self.log.last_index


class AmnesiacVoter(RaftWorld):
    """One that lost its disk is taken for who it was."""

    def started(self, i: int, incarnation: int, disk: Disk, *, fresh: bool = False) -> int:
        return super().started(i, 1, disk, fresh=fresh)


# -- where they die --------------------------------------------------------------------------------------------------


def dies(
    core: type[Raft] | type[RaftWorld], rule: str, source: str, setup: Setup, dies_of: str, *,
    quick: bool = True, live: bool = False, start: Callable[[RaftWorld], State] | None = None,
    patches: tuple[tuple[object, str, object], ...] = (),
) -> Mutant:  # fmt: skip
    world: Callable[[], RaftWorld]
    if issubclass(core, RaftWorld):
        world = partial(core, setup)
    else:
        world = partial(LiveRaftWorld if live else RaftWorld, setup, core)
    return Mutant(rule, source, str(setup), world, dies_of, patches, quick, start)


def _figure_8(world: RaftWorld) -> State:
    """a led term 1 and b led term 2, each alone with its own entry; what can terms 3 and 4 make of that?"""
    _, _, _, *rest = world.start()
    logs = [Log(entries=(Entry(1, 1, raft_module.NOOP, ""),)), Log(entries=(Entry(1, 2, raft_module.NOOP, ""),)), Log()]
    disks = [Disk(HardState(2, "b"), log) for log in logs]
    return (*(world.started(i, 1, disk) for i, disk in enumerate(disks)), *rest)


def _one_less(yes: set[str], voters: tuple[str, ...]) -> bool:
    return len(set(yes) & set(voters)) >= len(voters) // 2


def _late_answer(world: RaftWorld) -> State:
    """Of five: a led term 1, and b's acknowledgement of its three entries is still on the way; c led term 2 and has cut
    a's log."""
    old = tuple(Entry(i, 1, raft_module.NOOP if i == 1 else GRANT, "") for i in (1, 2, 3))
    new = (Entry(1, 2, raft_module.NOOP, ""),)
    hard = HardState(2, "c")
    disks = [Disk(hard, Log(entries=e)) for e in (new, old, new, (), ())]
    nodes = [world.started(i, 1, disk) for i, disk in enumerate(disks)]
    _, ghost, budget = world.start()[world.n :]
    batch = world.batches(Batch(1, 1, 0, (AppendResp(1, 1, 0, ok=True, match=3),)))
    return (*nodes, batch * 25 + 1 * 5 + 0, ghost, budget)


ABCDE = ("a", "b", "c", "d", "e")
THREE, DELAYED = Setup(Bound(2)), Setup(Bound(2, delays=1))
RESTART = Setup(Bound(2, restarts=1))
LONGER = Setup(Bound(3, proposals=1))
TWO_REMOVED = Setup(Bound(3, changes=2), founders=("a", "b", "c", "d"), settled=True, steps=("remove",))
JOINING = Setup(Bound(2, changes=2), extra=("d",), settled=True, steps=("learn", "vote"))
LEARNING = Setup(Bound(2, proposals=1, changes=1), extra=("d",), settled=True, steps=("learn",))
LOST_DISK = Setup(Bound(2, changes=2, wipes=1), settled=True, steps=("readmit", "vote"))
LEAVING = Setup(Bound(2, changes=2), settled=True, steps=("remove", "unvote"))
COMPACTED = Setup(Bound(2, changes=1, compactions=1), settled=True, steps=("remove",))

COMPLETE, ONE_LEADER, SAFE = "leader completeness", "one leader per term", "state machine safety"
ONE_VOTE, ENDLESS = "one vote per term", "endless talk"
IN_FORCE, LIVE = "the newest list is in force", "liveness"

CORE = (
    dies(VotesForAnyLog, "a vote only for a log that is not older", "3.6.1", THREE, COMPLETE),
    dies(ComparesLengthFirst, "of two logs the newer term wins, not the greater length", "3.6.1", LONGER, COMPLETE),
    dies(ComparesFieldByField, "logs are compared as a pair, or nobody may win", "bug 28", LONGER, LIVE, live=True),
    dies(ClearsVoteInItsTerm, "the vote stays when a leader of the same term is met", "bug 10", THREE, ONE_VOTE),
    dies(VotesTwice, "one vote in a term", "3.4", THREE, ONE_VOTE),
    dies(CountsLateVotes, "a vote counts in its own term only", "3.4", DELAYED, ONE_LEADER),
    dies(RaftWorld, "a majority is more than half", "bug 29", Setup(Bound(1), founders=ABCDE), ONE_LEADER,
         patches=((raft_module, "has_majority", _one_less),)),
    dies(NeverSavesItsVote, "the vote is on disk", "bug 8", RESTART, ONE_LEADER),
    dies(ForgetsTheVote, "a restarted node knows whom it voted for", "bug 8", RESTART, ONE_LEADER),
    dies(ForgetsTheTerm, "a restarted node knows its term", "bug 8", RESTART, ONE_LEADER),
    dies(SendsBeforeItSaves, "on disk first, then said (a vote before fsync)", "bug 9", RESTART, ONE_LEADER),
    dies(AmnesiacVoter, "a node that lost its disk is another node", "bug 12", Setup(Bound(2, wipes=1)), ONE_LEADER),
    dies(AcknowledgesBeforeItSaves, "entries are on disk before they are acknowledged", "bug 30", RESTART, ENDLESS),
    dies(AlwaysTruncates, "only what conflicts is cut off", "bug 27", Setup(Bound(2, proposals=1, delays=1)), SAFE),
    dies(NeverTruncates, "what conflicts is cut off", "3.5", THREE, LIVE, live=True),
    dies(TakesAnyPredecessor, "the entry before must agree", "3.5", THREE, SAFE),
    dies(BelievesOlderLeaders, "a leader of an older term is refused", "3.3", DELAYED, ENDLESS),
    dies(BelievesOlderAnswers, "an acknowledgement counts in its own term only", "bug 13",
         Setup(Bound(4, delays=1), founders=ABCDE), COMPLETE, start=_late_answer, quick=False),
    dies(CommitsOldTermsByCounting, "an entry of an older term commits along with one of this term", "3.6.2, bug 14",
         Setup(Bound(4)), COMPLETE, start=_figure_8, patches=((raft_module, "ENTRIES_PER_MESSAGE_MAX", 1),)),
    dies(CommitsWithOneLess, "committed is what a majority has", "3.6", THREE, COMPLETE),
    dies(CommitsWhatItHasNotCompared, "a follower commits what equals the leader's log", "3.5", THREE, SAFE),
    dies(ForgetsProgress, "what a peer has, and the commit index, never go back", "bug 13", THREE, SAFE),
    dies(SnapshotCutsTheLog, "a snapshot takes nothing away that comes after it", "bug 25",
         Setup(Bound(2, compactions=1, delays=1)), SAFE, quick=False),
    dies(SnapshotKeepsAnyLog, "what follows a snapshot must agree with it", "bug 24",
         Setup(Bound(2, proposals=1, compactions=1)), "terms only grow"),
    dies(CompactsTheUncommitted, "only what is committed is compacted", "5.1",
         Setup(Bound(2, compactions=1, proposals=1)), LIVE, live=True),
    dies(ChangesBeforeTheNoop, "no change of members before the leader's own entry is committed", "bug 1", TWO_REMOVED,
         COMPLETE),
    dies(ChangesTwoAtOnce, "one change of members at a time", "4.1", TWO_REMOVED, "one change at a time"),
    dies(CountsEverybody, "learners do not count", "4.2.1, bug 29", LEARNING, SAFE),
    dies(LearnersCampaign, "who has no vote neither campaigns nor counts its own", "bug 23", LEAVING, COMPLETE),
    dies(GoesByCommittedMembers, "a change of members is in force once appended", "4.1, bug 2", LEAVING, IN_FORCE),
    dies(KeepsTruncatedMembers, "a change that is overwritten is not in force", "bug 6", LEAVING, IN_FORCE),
    dies(SnapshotWithoutMembers, "a snapshot says who the members are", "bug 7", COMPACTED, IN_FORCE),
    dies(RemembersTheLostNode, "what a lost incarnation had counts for nothing", "found here", LOST_DISK, LIVE,
         live=True),
    dies(LearnersGetEverything, "a learner gets what is committed only", "found here", JOINING, LIVE, live=True),
)  # fmt: skip
