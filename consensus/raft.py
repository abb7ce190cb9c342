"""The Raft core: events and ``now_ns`` in, a `Ready` out. No clock, no I/O, no randomness of its own.

Plain Raft (Ongaro's thesis: election 3.4, replication 3.5, commit 3.6, leadership transfer 3.10, membership 4.1 and
4.2, compaction 5, leader stickiness and leases 6.4, PreVote 9.6) with the lease of safety.md. The host's duties, in
this order and with no exception: persist what `Ready` says, send `Ready.after` (`Ready.now` may leave before), apply
`Ready.committed`.

What differs from the textbook, and why (see DESIGN.md):

* The leader appends to its own disk before it sends. So everything a leader ever said was on disk first, and a leader
  whose process restarts within its lease may go on in the same term (`Raft.resume`).
* Acknowledgements name a round and a boot id; a lease counts from the *send* of the newest round that a majority has
  acknowledged. While a follower's acknowledgement binds its vote, it does not even adopt the term of another candidate.
* A leader that gives its lease up (`Release`) does so for the rest of the term, durably.
* Membership changes by one voter at a time, and only once the leader's own no-op and the change before are committed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple, Self

from consensus.membership import MEMBERS, Membership, is_one_step, membership_in
from consensus.messages import (
    AppendReq,
    AppendResp,
    Entry,
    HardState,
    PreVoteReq,
    PreVoteResp,
    RaftMessage,
    Snapshot,
    SnapshotReq,
    TimeoutNow,
    VoteReq,
    VoteResp,
)
from consensus.quorum import has_majority, reached_by_majority

NOOP = "noop/1"
ENTRIES_PER_MESSAGE_MAX = 64
CHARS_PER_MESSAGE_MAX = 1 << 20
"""Of the data of all entries but the first; a frame holds four times as much (peerwire.FRAME_BYTES_MAX)."""
ROUNDS_KEPT_MAX = 64
"""A round acknowledged later than this many rounds after its send earns no lease any more."""


class Role(StrEnum):
    FOLLOWER = "follower"
    PRECANDIDATE = "precandidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class RaftBugError(AssertionError):
    """An invariant of Raft does not hold. The process must stop; the watchdog makes that safe."""


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """Durations in nanoseconds. All zero (the untimed model): promises never bind, rounds are not numbered."""

    me: str
    voters: tuple[str, ...]
    """The founding voters: in force as long as neither log nor snapshot says otherwise."""
    heartbeat_ns: int = 0
    election_ns: int = 0
    jitter_ns: int = 0
    lease_ns: int = 0
    pre_vote: bool = True


# Events. A peer's message arrives as Received.


class Received(NamedTuple):
    src: str
    message: RaftMessage


class Tick(NamedTuple):
    """Time has passed: do what is due at ``now_ns``."""


class Campaign(NamedTuple):
    """The election timer fired (the model's oracle; `Tick` does it by the clock)."""


class Beat(NamedTuple):
    """Send a round now."""


class Propose(NamedTuple):
    kind: str
    data: str


class Release(NamedTuple):
    """The host has verified that this leader's Postgres can accept no write: give the lease up and hand over.

    ``to`` empty: nobody to hand over to; step down and campaign in a new term at once.
    """

    to: str


class StepDown(NamedTuple):
    """This leader can do nothing for the cluster: make way, without a release (the others wait out its lease)."""


class Compact(NamedTuple):
    """The host's state machine at the applied index, as canonical JSON: replaces the log up to there."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    data: str


Event = Received | Tick | Campaign | Beat | Propose | Release | StepDown | Compact


@dataclass(frozen=True, slots=True)
class Ready:
    """What the host must do, in the order of the fields."""

    hard: HardState | None
    truncate_from: int | None
    entries: tuple[Entry, ...]
    snapshot: Snapshot | None
    now: tuple[tuple[str, RaftMessage], ...]
    """May leave before anything is on disk: they assert nothing that is not there already."""
    after: tuple[tuple[str, RaftMessage], ...]
    """Must not leave before hard, truncate_from, entries and snapshot are on disk."""
    restored: bool
    """The snapshot came from a peer: the state machine starts again from it."""
    committed: tuple[Entry, ...]
    proposed: int
    """Index given to a proposal of this step; 0: this node is not the leader, has released its lease, or the proposal
    changes the membership and may not yet."""


class Log(NamedTuple):
    """The entries after a snapshot. Immutable, so that a clone is a reference."""

    snapshot: Snapshot = Snapshot(0, 0, "")
    entries: tuple[Entry, ...] = ()

    @property
    def last_index(self) -> int:
        return self.entries[-1].index if self.entries else self.snapshot.index

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.snapshot.term

    def term_at(self, index: int) -> int:
        """Term of the entry at ``index``; -1 if it is not here (compacted, or beyond the end)."""
        if index == self.snapshot.index:
            return self.snapshot.term
        at = index - self.snapshot.index - 1
        return self.entries[at].term if 0 <= at < len(self.entries) else -1

    def between(self, first: int, last: int) -> tuple[Entry, ...]:
        """Entries first..last, both inclusive, as far as they are here."""
        base = self.snapshot.index
        return self.entries[max(0, first - base - 1) : max(0, last - base)]

    def append(self, more: tuple[Entry, ...]) -> Log:
        return self._replace(entries=self.entries + more)

    def truncate_from(self, index: int) -> Log:
        return self._replace(entries=self.entries[: index - self.snapshot.index - 1])


class Progress(NamedTuple):
    """What the leader knows of one peer."""

    next: int
    match: int = 0
    acked_round: int = 0


class Raft:
    """One node's Raft. `step` is the only way in; `clone` and `key` serve the model checker."""

    __slots__ = (
        "boot", "changed_at", "commit", "config", "election_at_ns", "heartbeat_at_ns", "hold_leader", "hold_term",
        "hold_until_ns", "leader", "lease_from_ns", "lease_least_ns", "log", "members", "now_ns", "out_after",
        "out_now", "progress", "quorum_at_ns", "released", "role", "round", "rounds", "saved", "saved_log", "seed",
        "settled", "term", "transfer_to", "transfer_until_ns", "vote", "votes", "was_restored",
    )  # fmt: skip

    def __init__(
        self, config: RaftConfig, hard: HardState, log: Log, *, boot: int, seed: int, now_ns: int, fresh: bool
    ) -> None:
        """A node as it starts. ``fresh``: it never acknowledged anything to anybody, so it need not wait for E."""
        self.config = config
        self.term, self.vote, self.commit, self.released = hard
        self.commit = max(self.commit, log.snapshot.index)
        self.log = log
        self.boot, self.seed = boot, seed
        self.role, self.leader = Role.FOLLOWER, ""
        self.votes: tuple[str, ...] = ()
        self.progress: tuple[tuple[str, Progress], ...] = ()
        self.members = self.settled = Membership()
        """In force here: that of the newest entry, and that of the newest committed one."""
        self.changed_at = 0
        """Index of the entry that ``members`` comes from; 0: snapshot or founding."""
        self._look_for_members()
        self.round = 0
        self.rounds: tuple[tuple[int, int], ...] = ()
        self.lease_from_ns = self.lease_least_ns = 0
        self.quorum_at_ns = now_ns
        self.transfer_to, self.transfer_until_ns = "", 0
        self.now_ns = now_ns
        # A restarted voter cannot know whom it promised to: it waits E (section 6.4.1; safety.md "Lease").
        # A lone voter can only have promised to itself.
        wait_ns = 0 if fresh or self._alone() else config.election_ns
        self.hold_leader, self.hold_term, self.hold_until_ns = "", self.term, now_ns + wait_ns
        first = fresh and config.me == min(config.voters, default="")
        first_ns = 0 if first else config.election_ns if fresh else wait_ns
        self.heartbeat_at_ns = 0
        self.election_at_ns = now_ns + first_ns + (self._jitter() if first_ns else 0)
        self._begin()

    def resume(self, until_ns: int = 0) -> Ready:
        """Go on as leader of the current term after a restart of this process within its lease (safety.md "Resume"),
        which ends at ``until_ns``: with a shorter L now, no lease may end before it.

        What is checked here is necessary, not sufficient: a candidate that lost has voted for itself too. The host must
        know that this node *won* the term, from its own committed grant of it.
        """
        if self.released >= self.term or self.vote != self.config.me:
            raise RaftBugError(f"cannot resume: released {self.released}, vote {self.vote!r}, term {self.term}")
        self._begin()
        self._lead()
        self.lease_least_ns = until_ns
        return self._ready(0)

    def use(self, *, heartbeat_ns: int, election_ns: int, jitter_ns: int, lease_ns: int) -> None:
        """Other durations from now on (retiming.py), before anything that the last step said leaves this host.

        A lease that was told stays what it was. A longer E counts for the promise of this very step, too; a shorter one
        for the next.
        """
        longer_ns = election_ns - self.config.election_ns
        self.lease_least_ns = max(self.lease_least_ns, self.lease_until_ns)
        self.config = replace(
            self.config, heartbeat_ns=heartbeat_ns, election_ns=election_ns, jitter_ns=jitter_ns, lease_ns=lease_ns
        )
        if longer_ns > 0 and self.hold_until_ns > self.now_ns:
            self.hold_until_ns += longer_ns
            self.election_at_ns += longer_ns

    # -- the only way in -----------------------------------------------------------------------------------------

    def step(self, event: Event, now_ns: int) -> Ready:
        """Apply one event. ``now_ns`` must not go backwards."""
        self.now_ns = now_ns
        self._begin()
        proposed = 0
        match event:
            case Received(src, message):
                self._receive(src, message)
            case Tick():
                self._tick()
            case Campaign():
                if self.role is not Role.LEADER and self._may_campaign():
                    self._start_election()
            case Beat():
                if self.role is Role.LEADER:
                    self._broadcast()
            case Propose(kind, data):
                proposed = self._propose(kind, data)
            case Release(to):
                self._release(to)
            case StepDown():
                if self.role is Role.LEADER:
                    self._follow(self.term, "")
            case Compact(index, data):  # pragma: no branch  # mypy knows that there is no other event
                self._compact(index, data)
        return self._ready(proposed)

    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.commit, self.released)

    @property
    def lease_until_ns(self) -> int:
        """Until when this node's Postgres may be writable; 0: not at all."""
        if self.role is not Role.LEADER or self.released >= self.term or not self.lease_from_ns:
            return 0
        return max(self.lease_from_ns + self.config.lease_ns, self.lease_least_ns)

    @property
    def wakeup_ns(self) -> int:
        """When the next `Tick` is due."""
        if self.role is not Role.LEADER:
            return self.election_at_ns
        times = [self.heartbeat_at_ns, self.quorum_at_ns + self.config.election_ns]
        if self.transfer_until_ns:
            times.append(self.transfer_until_ns)
        return min(times)

    def clone(self) -> Self:
        """An independent copy; cheap, because all history is immutable."""
        other = object.__new__(type(self))
        for name in Raft.__slots__:
            setattr(other, name, getattr(self, name))
        other.out_now, other.out_after = [], []
        return other

    def key(self) -> tuple[object, ...]:
        """Everything that can influence a later step of the untimed model, canonical and hashable."""
        return (
            self.term, self.vote, self.commit, self.released, self.log, self.role.value, self.leader, self.votes,
            self.progress, self.transfer_to, self.boot, self.round,
        )  # fmt: skip

    def acknowledged(self, peer: str) -> tuple[int, int]:
        """Of a leader: (index up to which ``peer`` is known to have the log, when the round was sent that it last
        acknowledged); (0, 0) if nothing is known."""
        known = dict(self.progress).get(peer)
        return (0, 0) if known is None else (known.match, dict(self.rounds).get(known.acked_round, 0))

    # -- bookkeeping of one step ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.role is Role.LEADER:
            self._let_go()
        self.saved = self.hard_state
        self.saved_log = self.log
        self.out_now: list[tuple[str, RaftMessage]] = []
        self.out_after: list[tuple[str, RaftMessage]] = []
        self.was_restored = False

    def _ready(self, proposed: int) -> Ready:
        hard = self.hard_state
        old, new = self.saved_log, self.log
        snapshot = new.snapshot if new.snapshot.index != old.snapshot.index else None
        first_new, truncate_from = _difference(old, new)
        entries = new.between(first_new, new.last_index)
        committed = () if self.was_restored else new.between(self.saved.commit + 1, self.commit)
        # A higher commit alone is only a hint on disk: it is saved with whatever is saved next.
        was = self.saved
        facts_changed = (hard.term, hard.vote, hard.released) != (was.term, was.vote, was.released)
        must_save = facts_changed or entries or truncate_from or snapshot
        ready = Ready(
            hard if must_save else None, truncate_from, entries, snapshot,
            tuple(self.out_now), tuple(self.out_after), self.was_restored, committed, proposed,
        )  # fmt: skip
        self.out_now, self.out_after = [], []
        return ready

    def _jitter(self) -> int:
        if not self.config.jitter_ns:
            return 0
        self.seed = (self.seed * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        # Never quite zero: the voters' own promises end a message delay later than the candidate's.
        least = self.config.jitter_ns // 8
        return least + (self.seed >> 33) % (self.config.jitter_ns - least)

    # -- membership ----------------------------------------------------------------------------------------------

    def _look_for_members(self) -> None:
        """After a change of the log or of the commit index: which membership is in force (4.1)."""
        base = self.log.snapshot.membership
        self.members = self.settled = base if base.voters else Membership(self.config.voters)
        self.changed_at = 0
        for entry in self.log.entries:
            if entry.kind == MEMBERS:
                self.members, self.changed_at = membership_in(entry.data), entry.index
                if entry.index <= self.commit:
                    self.settled = self.members

    def _peers(self) -> tuple[str, ...]:
        return tuple(v for v in self.members.voters if v != self.config.me)

    def _alone(self) -> bool:
        return self.members.voters == (self.config.me,)

    def _may_campaign(self) -> bool:
        """A voter; also one whose removal is not known to be committed: it may hold what the others need (4.2.2)."""
        return self.config.me in self.members.voters or self.config.me in self.settled.voters

    def _may_change(self, new: Membership) -> bool:
        """One change at a time, none before this leader's own no-op is committed (raft-dev 2015: two leaders' changes
        could otherwise both pass), and no leader removes itself."""
        if not is_one_step(self.members, new) or not new.voters:
            raise RaftBugError(f"{self.members} cannot become {new} in one step")
        own = self.log.term_at(self.commit) == self.term
        return own and self.changed_at <= self.commit and self.config.me in new.voters

    def _meet_the_added(self) -> None:
        """Of a learner nothing is believed from before: it may be a new life of one that had the log and lost it."""
        known = {name: p for name, p in self.progress if name not in self.members.learners}
        names = sorted({*self.members.voters, *self.members.learners, *known} - {self.config.me})
        self.progress = tuple((name, known.get(name, Progress(self.log.last_index + 1))) for name in names)

    def _let_go(self) -> None:
        """What the last step has committed, and told: the removed are left alone; one that led only to see its own
        removal committed makes way (4.2.2)."""
        if self.config.me not in (*self.members.voters, *self.settled.voters):
            self._follow(self.term, "")
        known = {*self.members.voters, *self.members.learners, *self.settled.voters, *self.settled.learners}
        if not {name for name, _ in self.progress} <= known:
            self.progress = tuple((name, p) for name, p in self.progress if name in known)

    # -- time ----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self.now_ns
        if self.role is not Role.LEADER:
            if now >= self.election_at_ns and self._may_campaign():
                self._start_election()
            elif now >= self.election_at_ns:
                # A learner does not campaign. But it must notice that nobody leads it any more: it may be out.
                self._follow(self.term, "")
                self.election_at_ns = now + self.config.election_ns
            return
        if self.transfer_until_ns and now >= self.transfer_until_ns:
            self._campaign_released()
        elif now >= self.quorum_at_ns + self.config.election_ns:
            # CheckQuorum (6.2): a leader that cannot reach a majority makes way; its fence is the lease's business.
            self._follow(self.term, "")
            self.election_at_ns = now + self.config.heartbeat_ns + self._jitter()
        elif now >= self.heartbeat_at_ns:
            self._broadcast()

    # -- elections -----------------------------------------------------------------------------------------------

    def _bound(self, candidate: str, released_leader: str, released_term: int) -> bool:
        """Does a promise to another leader forbid a vote for ``candidate`` now? (6.4.1, safety.md "Lease")"""
        if self.role is Role.LEADER and self.released < self.term and self.lease_from_ns:
            # The leader acknowledged its own rounds: it is bound to itself as long as those who earned it the lease.
            return self.now_ns < self.lease_from_ns + self.config.election_ns
        if self.now_ns >= self.hold_until_ns or candidate == self.hold_leader:
            return False
        released = released_term > 0 and released_term == self.hold_term
        return not (released and self.hold_leader in ("", released_leader))

    def _start_election(self) -> None:
        if self._bound(self.config.me, "", 0):
            self.election_at_ns = self.hold_until_ns + self._jitter()
            return
        if not self.config.pre_vote or self._alone():
            self._campaign("", 0)
            return
        self.role, self.leader, self.votes = Role.PRECANDIDATE, "", (self.config.me,)
        self.election_at_ns = self.now_ns + self._jitter()
        request = PreVoteReq(self.term + 1, self.log.last_index, self.log.last_term)
        self.out_now.extend((peer, request) for peer in self._peers())

    def _campaign(self, released_leader: str, released_term: int) -> None:
        self.term, self.vote = self.term + 1, self.config.me
        self.role, self.leader, self.votes = Role.CANDIDATE, "", (self.config.me,)
        self.election_at_ns = self.now_ns + self._jitter()  # a failed campaign retries after jitter alone
        request = VoteReq(self.term, self.log.last_index, self.log.last_term, released_leader, released_term)
        self.out_after.extend((peer, request) for peer in self._peers())
        self._count_votes()

    def _campaign_released(self) -> None:
        """This node led, has released its lease, and nobody took over: campaign again with its own release as proof."""
        term = self.term
        self._follow(term, "")
        self._campaign(self.config.me, term)

    def _count_votes(self) -> None:
        if not has_majority(self.votes, self.members.voters):
            return
        if self.role is Role.PRECANDIDATE:
            self._campaign("", 0)
            return
        self._lead()
        self._append(NOOP, "")
        self._broadcast()

    def _lead(self) -> None:
        self.role, self.leader, self.votes = Role.LEADER, self.config.me, ()
        self.progress = ()
        self._meet_the_added()
        self.rounds, self.lease_from_ns, self.lease_least_ns = (), 0, 0
        self.quorum_at_ns = self.heartbeat_at_ns = self.now_ns
        self.transfer_to, self.transfer_until_ns = "", 0

    def _follow(self, term: int, leader: str) -> None:
        """Become (or stay) a follower of ``term``; a promise made as leader to itself goes on binding."""
        if self.role is Role.LEADER:
            if self.released >= self.term:
                self.hold_until_ns = 0
            elif self.lease_from_ns:
                self.hold_leader, self.hold_term = self.config.me, self.term
                self.hold_until_ns = self.lease_from_ns + self.config.election_ns
            # else: a leader that resumed and has earned nothing yet goes on waiting like any restarted voter
            self.progress, self.rounds, self.lease_from_ns = (), (), 0
            self.transfer_to, self.transfer_until_ns = "", 0
            self.election_at_ns = self.now_ns + self.config.election_ns + self._jitter()
        if term > self.term:
            self.term, self.vote = term, ""
        self.role, self.leader, self.votes = Role.FOLLOWER, leader, ()

    def _up_to_date(self, last_index: int, last_term: int) -> bool:
        return (last_term, last_index) >= (self.log.last_term, self.log.last_index)

    # -- messages ------------------------------------------------------------------------------------------------

    def _receive(self, src: str, message: RaftMessage) -> None:
        """Requests are answered whoever asks: the sender may know a newer membership (4.1). The host has checked who it
        is; what is *counted* are answers of the voters of the membership in force here."""
        match message:
            case PreVoteReq():
                self._on_pre_vote_req(src, message)
            case PreVoteResp():
                self._on_pre_vote_resp(src, message)
            case VoteReq():
                self._on_vote_req(src, message)
            case VoteResp():
                self._on_vote_resp(src, message)
            case AppendReq() | SnapshotReq():
                self._on_leader(src, message)
            case AppendResp():
                self._on_append_resp(src, message)
            case TimeoutNow():  # pragma: no branch  # nor another message
                self._on_timeout_now(src, message)

    def _on_pre_vote_req(self, src: str, m: PreVoteReq) -> None:
        free = m.term > self.term or (m.term == self.term and self.vote in ("", src))
        granted = free and not self._bound(src, "", 0) and self._up_to_date(m.last_index, m.last_term)
        self.out_after.append((src, PreVoteResp(self.term, m.term, granted)))

    def _on_pre_vote_resp(self, src: str, m: PreVoteResp) -> None:
        if m.term > self.term:
            self._follow(m.term, "")  # otherwise this node would ask for a term the others are past, for ever
        elif m.granted and self.role is Role.PRECANDIDATE and m.asked_term == self.term + 1:
            self.votes = tuple(sorted({*self.votes, src}))
            self._count_votes()

    def _on_vote_req(self, src: str, m: VoteReq) -> None:
        granted = False
        if m.term >= self.term and not self._bound(src, m.released_leader, m.released_term):
            if m.term > self.term:
                self._follow(m.term, "")
            granted = self.vote in ("", src) and self._up_to_date(m.last_index, m.last_term)
            if granted:
                self.vote = src
                self.election_at_ns = self.now_ns + self.config.election_ns + self._jitter()
        self.out_after.append((src, VoteResp(self.term, granted)))

    def _on_vote_resp(self, src: str, m: VoteResp) -> None:
        if m.term > self.term:
            self._follow(m.term, "")
        elif m.granted and m.term == self.term and self.role is Role.CANDIDATE:
            self.votes = tuple(sorted({*self.votes, src}))
            self._count_votes()

    def _on_timeout_now(self, src: str, m: TimeoutNow) -> None:
        # A late one, of another term, is void: whoever sent it has long been replaced.
        if m.term == self.term and self.role is Role.FOLLOWER and self.leader in ("", src) and self._may_campaign():
            self.hold_until_ns = 0
            self._campaign(src, m.term)

    def _on_leader(self, src: str, m: AppendReq | SnapshotReq) -> None:
        if m.term < self.term:
            self.out_after.append((src, AppendResp(self.term, m.boot, m.round, ok=False, match=0)))
            return
        if m.term == self.term and self.role is Role.LEADER:
            raise RaftBugError(f"two leaders of term {m.term}: {self.config.me} and {src}")
        self._follow(m.term, src)
        self.hold_leader, self.hold_term = src, m.term
        self.hold_until_ns = self.now_ns + self.config.election_ns
        self.election_at_ns = self.hold_until_ns + self._jitter()
        log, commit = self.log, self.commit
        ok, match = self._on_append(m) if isinstance(m, AppendReq) else self._on_snapshot(m)
        if ok:
            self.commit = max(self.commit, min(m.commit, match))
        if self.log is not log or self.commit > commit:
            self._look_for_members()
        self.out_after.append((src, AppendResp(self.term, m.boot, m.round, ok, match)))

    # -- replication: follower -----------------------------------------------------------------------------------

    def _on_append(self, m: AppendReq) -> tuple[bool, int]:
        """Returns (accepted, match): what is known to equal the leader's log, or where the leader should try."""
        end = m.prev_index + len(m.entries)
        entries = tuple(e for e in m.entries if e.index > self.commit)
        # What is committed here equals the leader's log (leader completeness); only what comes after is compared.
        if m.prev_index > self.commit and self.log.term_at(m.prev_index) != m.prev_term:
            return False, self._retry_from(m.prev_index)
        for at, entry in enumerate(entries):
            mine = self.log.term_at(entry.index)
            if mine == entry.term:
                continue
            if mine >= 0:
                self.log = self.log.truncate_from(entry.index)
            self.log = self.log.append(entries[at:])
            break
        return True, max(end, 0)

    def _retry_from(self, prev_index: int) -> int:
        """Skip back over a whole conflicting term at once, never below what is committed (5.3 of the paper)."""
        index = min(prev_index - 1, self.log.last_index)
        conflicting = self.log.term_at(prev_index)
        while index > self.commit and conflicting >= 0 and self.log.term_at(index) == conflicting:
            index -= 1
        return index

    def _on_snapshot(self, m: SnapshotReq) -> tuple[bool, int]:
        snapshot = m.snapshot
        if snapshot.index <= self.commit:
            return True, self.commit
        keep = self.log.term_at(snapshot.index) == snapshot.term
        rest = self.log.between(snapshot.index + 1, self.log.last_index) if keep else ()
        self.log = Log(snapshot, rest)
        self.commit = snapshot.index
        self.was_restored = True
        return True, snapshot.index

    # -- replication: leader -------------------------------------------------------------------------------------

    def _propose(self, kind: str, data: str) -> int:
        if self.role is not Role.LEADER or self.released >= self.term:
            return 0
        if kind == MEMBERS and not self._may_change(membership_in(data)):
            return 0
        index = self._append(kind, data)
        self._broadcast()
        return index

    def _append(self, kind: str, data: str) -> int:
        entry = Entry(self.log.last_index + 1, self.term, kind, data)
        self.log = self.log.append((entry,))
        if kind == MEMBERS:
            self._look_for_members()
            self._meet_the_added()
        self._advance_commit()
        return entry.index

    def _broadcast(self) -> None:
        if self.config.lease_ns:
            self.round += 1
            self.rounds = (*self.rounds, (self.round, self.now_ns))[-ROUNDS_KEPT_MAX:]
        self.heartbeat_at_ns = self.now_ns + self.config.heartbeat_ns
        for peer, progress in self.progress:
            self._send_append(peer, progress)
        self._earn_lease()

    def _send_append(self, peer: str, progress: Progress) -> None:
        prev = progress.next - 1
        prev_term = self.log.term_at(prev)
        request: AppendReq | SnapshotReq
        if prev_term < 0:
            request = SnapshotReq(self.term, self.boot, self.round, self.log.snapshot, self.commit)
            sent_up_to = self.log.snapshot.index
        else:
            last = min(self._last_for(peer), progress.next + ENTRIES_PER_MESSAGE_MAX - 1)
            entries = _fitting(self.log.between(progress.next, last))
            request = AppendReq(self.term, self.boot, self.round, prev, prev_term, entries, self.commit)
            sent_up_to = prev + len(entries)
        # Optimistic: a lost message shows as a refusal of the next one.
        self._set_progress(peer, progress._replace(next=sent_up_to + 1))
        self.out_after.append((peer, request))
        if self.transfer_to == peer and progress.match == self.log.last_index:
            self.out_after.append((peer, TimeoutNow(self.term)))

    def _last_for(self, peer: str) -> int:
        """Who has no vote gets what is committed and no more. The log of a learner is then never newer than that of all
        voters who are left: it could not campaign with it, and would refuse its vote where its vote is needed."""
        return self.log.last_index if peer in self.members.voters else self.commit

    def _set_progress(self, peer: str, progress: Progress) -> None:
        self.progress = tuple((name, progress if name == peer else old) for name, old in self.progress)

    def _on_append_resp(self, src: str, m: AppendResp) -> None:
        if m.term > self.term:
            self._follow(m.term, "")
            return
        known = dict(self.progress).get(src)
        if self.role is not Role.LEADER or m.term < self.term or m.boot != self.boot or known is None:
            return
        acked = max(known.acked_round, m.round)
        if m.ok:
            match = max(known.match, m.match)
            known = Progress(max(known.next, match + 1), match, acked)
        else:
            known = Progress(max(known.match, min(known.next - 1, m.match)) + 1, known.match, acked)
        self._set_progress(src, known)
        self._earn_lease()
        before = self.commit
        self._advance_commit()
        if self.commit > before:
            self._broadcast()  # followers act on what is committed: they should not wait for the next heartbeat
        elif not m.ok or known.next <= self._last_for(src) or src == self.transfer_to:
            self._send_append(src, known)

    def _advance_commit(self) -> None:
        matches = {self.config.me: self.log.last_index} | {name: p.match for name, p in self.progress}
        index = _reached(matches, self.members.voters)
        # Only an entry of this term commits by counting; older ones follow along (3.6.2, figure 3.7).
        if index > self.commit and self.log.term_at(index) == self.term:
            self.commit = index
            if self.settled is not self.members:
                self._look_for_members()
                self._meet_the_added()  # its earlier life may have answered until now

    def _earn_lease(self) -> None:
        """By a majority of every membership in force (safety.md, "Lease")."""
        acked = {self.config.me: self.round} | {name: p.acked_round for name, p in self.progress}
        newest = min(_reached(acked, self.members.voters), _reached(acked, self.settled.voters))
        sent_ns = dict(self.rounds).get(newest, 0)
        if sent_ns > self.lease_from_ns:
            self.lease_from_ns = self.quorum_at_ns = sent_ns

    # -- handing over --------------------------------------------------------------------------------------------

    def _release(self, to: str) -> None:
        """3.10, with the lease: given up durably before TimeoutNow leaves, and for the rest of the term."""
        if self.role is not Role.LEADER:
            return
        self.released = self.term
        self.lease_from_ns = 0
        known = dict(self.progress).get(to)
        if known is None or to not in self.members.voters:
            self._campaign_released()
            return
        self.transfer_to = to
        self.transfer_until_ns = self.now_ns + self.config.election_ns // 2
        self._send_append(to, known)

    def _compact(self, index: int, data: str) -> None:
        term = self.log.term_at(index)
        if index <= self.log.snapshot.index or index > self.commit or term < 0:
            raise RaftBugError(f"cannot compact at {index}: snapshot {self.log.snapshot.index}, commit {self.commit}")
        base = self.log.snapshot.membership
        for entry in self.log.between(1, index):
            base = membership_in(entry.data) if entry.kind == MEMBERS else base
        self.log = Log(Snapshot(index, term, data, base), self.log.between(index + 1, self.log.last_index))


def _reached(values: dict[str, int], voters: tuple[str, ...]) -> int:
    """What a majority of ``voters`` has reached; nobody else counts."""
    return reached_by_majority([values.get(name, 0) for name in voters], len(voters))


def _fitting(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """As many of them, the first at least, as fit into one message; what is left goes with the next."""
    chars = 0
    for index, entry in enumerate(entries):
        chars += len(entry.data)
        if index and chars > CHARS_PER_MESSAGE_MAX:
            return entries[:index]
    return entries


def _difference(old: Log, new: Log) -> tuple[int, int | None]:
    """First index of ``new`` that is not on disk yet, and from where the disk must be truncated first (or None)."""
    first = max(new.snapshot.index, old.snapshot.index) + 1
    index = first
    last = min(old.last_index, new.last_index)
    if old.entries is new.entries:
        return new.last_index + 1, None
    # The tails differ only from some index on: everything before shares its term (log matching).
    low, high = first, last + 1
    while low < high:
        index = (low + high) // 2
        if old.term_at(index) == new.term_at(index):
            low = index + 1
        else:
            high = index
    return low, (low if low <= old.last_index else None)
