"""Mutants of the lease: of the core, of the watchdog, and of the host between them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from consensus.messages import AppendResp, TimeoutNow
from consensus.quorum import reached_by_majority
from consensus.raft import Raft, Role
from fencing import deadman
from fencing.deadman import Deadman, LeaseChanged, Phase
from tests.model.leaseworld import NOW, Beside, Clocks, LeaseSetup, LeaseWorld
from tests.model.mutants.mutant import Mutant
from tests.model.raftvalues import Bound, Disk


class LeaseFromTheReply(Raft):
    __slots__ = ()

    def _earn_lease(self) -> None:
        before = self.lease_from_ns
        super()._earn_lease()
        if self.lease_from_ns != before:
            self.lease_from_ns = self.now_ns


class EverybodyEarns(Raft):
    """Learners too."""

    __slots__ = ()

    def _earn_lease(self) -> None:
        rounds = [self.round, *(p.acked_round for _, p in self.progress)]
        sent_ns = dict(self.rounds).get(reached_by_majority(rounds, len(self.members.voters)), 0)
        if sent_ns > self.lease_from_ns:
            self.lease_from_ns = self.quorum_at_ns = sent_ns


class NobodyIsBound(Raft):
    __slots__ = ()

    def _bound(self, candidate: str, released_leader: str, released_term: int) -> bool:
        return False


class LeaderIsNotBound(Raft):
    """To its own rounds: it votes for another while its lease runs."""

    __slots__ = ()

    def _bound(self, candidate: str, released_leader: str, released_term: int) -> bool:
        return self.role is not Role.LEADER and super()._bound(candidate, released_leader, released_term)

    def _follow(self, term: int, leader: str) -> None:
        led = self.role is Role.LEADER
        super()._follow(term, leader)
        if led:
            self.hold_until_ns = 0


class DroppedOnStepDown(Raft):
    """One that stops leading forgets that it acknowledged its own rounds."""

    __slots__ = ()

    def _follow(self, term: int, leader: str) -> None:
        led = self.role is Role.LEADER
        super()._follow(term, leader)
        if led:
            self.hold_until_ns = 0


class LateTimeoutNow(Raft):
    """One of an older term is obeyed."""

    __slots__ = ()

    def _on_timeout_now(self, src: str, m: TimeoutNow) -> None:
        if self.role is Role.FOLLOWER and self._may_campaign():
            self.hold_until_ns = 0
            self._campaign(src, max(m.term, self.term))


class LeaseAfterRelease(Raft):
    """Rounds that are acknowledged while the other one takes over earn a lease again."""

    __slots__ = ()

    @property
    def lease_until_ns(self) -> int:
        until = self.lease_from_ns + self.config.lease_ns
        return until if self.role is Role.LEADER and self.lease_from_ns else 0


class ReleaseIsNotSaved(Raft):
    __slots__ = ()

    def _release(self, to: str) -> None:
        super()._release(to)
        self.released = 0 if self.role is Role.LEADER else self.released


class AnswersOfAnEarlierLife(Raft):
    __slots__ = ()

    def _on_append_resp(self, src: str, m: AppendResp) -> None:
        super()._on_append_resp(src, m._replace(boot=self.boot))


class ResumedWithItsRounds(Raft):
    """A resumed leader counts on from the lease it had."""

    __slots__ = ()

    def _lead(self) -> None:
        super()._lead()
        self.lease_from_ns = self.now_ns


class RestartedVoterVotes(LeaseWorld):
    def again(self, i: int, disk: Disk, boot: int, beside: Beside, *, fresh: bool = False) -> int:
        return super().again(i, disk, boot, beside, fresh=True)


class ReleasesWithoutAFence(LeaseWorld):
    def fenced(self, local: int) -> int | None:
        return local


class ResumesUnasked(LeaseWorld):
    """It has won the term, but nobody confirms that the lease still runs."""

    def may_resume(self, local: int) -> bool:
        hard = self.locals.values[local].disk.hard
        return self.rafts[local].role is Role.LEADER and hard.released < hard.term


class Pet(LeaseWorld):
    """The watchdog restarts a timer when it hears something."""

    def watch(self, watchdog: Deadman, event: deadman.Event) -> deadman.Outcome:
        if isinstance(event, LeaseChanged) and event.until_ns > 1:
            event = event._replace(until_ns=NOW + self.clocks.lease)
        return super().watch(watchdog, event)


class WatchdogWaitsForNothing(LeaseWorld):
    """Armed once, it never kills by the clock."""

    def watch(self, watchdog: Deadman, event: deadman.Event) -> deadman.Outcome:
        if watchdog.phase is Phase.ARMED and isinstance(event, deadman.Tick):
            return watchdog, ()
        return super().watch(watchdog, event)


class ArmsWithNothingLeft(LeaseWorld):
    def watch(self, watchdog: Deadman, event: deadman.Event) -> deadman.Outcome:
        if isinstance(event, deadman.Arm):
            return super().watch(replace(watchdog, kill_bound_ns=-(self.clocks.election)), event)
        after, actions = super().watch(watchdog, event)
        return after, actions


ALONE = LeaseSetup(Bound(2))
SETTLED = LeaseSetup(Bound(2), beats=1, settled=True)
LATE = LeaseSetup(Bound(2, delays=1))
HANDS_OVER = LeaseSetup(Bound(2, releases=1))
LATE_HANDOVER = LeaseSetup(Bound(3, releases=1, delays=1), settled=True)
RESTART = LeaseSetup(Bound(2, restarts=1))
RESTART_LATE = LeaseSetup(Bound(2, restarts=1, delays=1), settled=True, beats=1)
RELEASE_RESTART = LeaseSetup(Bound(2, restarts=1, releases=1, delays=1), settled=True, beats=1)
STOPPED = LeaseSetup(Bound(2), late_tells=1)
LEARNER = LeaseSetup(
    Bound(2, changes=1), Clocks(rates=(2, 3, 3, 3)), settled=True, joins=1, steps=("learn",), beats=1
)
LONGER = LeaseSetup(Bound(2), Clocks(lease=9))
SHORTER = LeaseSetup(Bound(2), Clocks(election=12))
SLOWER_KILL = LeaseSetup(Bound(2), Clocks(kill=2))


def dies(
    mutant: type[Raft] | type[LeaseWorld], rule: str, source: str, setup: LeaseSetup, *, core: type[Raft] = Raft
) -> Mutant:
    made = partial(mutant, setup, core) if issubclass(mutant, LeaseWorld) else partial(LeaseWorld, setup, mutant)
    return Mutant(rule, source, str(setup), made, "one writer")


RESUME = LeaseSetup(Bound(2, restarts=1), settled=True)

LEASE = (
    dies(LeaseWorld, "a lease is as short as E allows", "safety.md, lease", LONGER),
    dies(LeaseWorld, "E is as long as L and F ask for", "safety.md, lease", SHORTER),
    dies(LeaseWorld, "the kill bound is part of the sum", "safety.md, lease", SLOWER_KILL),
    dies(NobodyIsBound, "an acknowledged round binds the vote for E", "6.4.1", ALONE),
    dies(LeaseFromTheReply, "a lease counts from the send of a round", "bug 15, hashicorp", LATE),
    dies(EverybodyEarns, "a lease is earned from voters only", "safety.md, lease", LEARNER),
    dies(LeaderIsNotBound, "a leader is bound to its own rounds", "safety.md, lease", SETTLED),
    dies(DroppedOnStepDown, "a leader that steps down stays bound", "safety.md, lease", SETTLED),
    dies(RestartedVoterVotes, "a restarted voter waits E", "braft; raft.md 4.1", RESTART),
    dies(LeaseAfterRelease, "no lease after a release in that term", "bug 15, etcd #12704", HANDS_OVER),
    dies(ReleasesWithoutAFence, "the fence comes before the release", "safety.md, lease", HANDS_OVER),
    dies(LateTimeoutNow, "a TimeoutNow of an older term is void", "bug 16", LATE_HANDOVER),
    dies(ResumesUnasked, "no resume after a release (twice guarded: nor without the watchdog's word)",
         "safety.md, resume", RELEASE_RESTART, core=ReleaseIsNotSaved),
    dies(ResumedWithItsRounds, "a resumed leader earns its lease anew", "safety.md, resume", RESUME),
    dies(AnswersOfAnEarlierLife, "acknowledgements of an earlier life earn nothing", "safety.md, resume", RESTART_LATE),
    dies(Pet, "the watchdog is told a deadline, no pet restarts a timer", "safety.md, lease", STOPPED),
    dies(WatchdogWaitsForNothing, "the watchdog kills at the deadline", "invariant 3", ALONE),
    dies(ArmsWithNothingLeft, "nobody is armed with less than F to go", "deadman.py", LATE),
)  # fmt: skip
