"""Mutants written from Ongaro's thesis and the known bugs of research/raft.md 6.

Eleven were written down before this checker was read (commit 78ecdac); six came while it was read: `NeverGoesBack`,
`OlderSnapshotIsTaken`, `SnapshotOfTheNewestMembers`, `TakesItsLeaseBack`, and those of `change/1`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from consensus import cluster, positions
from consensus import raft as raft_module
from consensus.changes import group_change
from consensus.cluster import Change, ClusterState, _done
from consensus.membership import Membership
from consensus.messages import (
    AppendReq,
    AppendResp,
    Entry,
    HardState,
    PreVoteResp,
    Snapshot,
    SnapshotReq,
    VoteReq,
)
from consensus.positions import Ancestry, NoPosition
from consensus.quorum import has_majority
from consensus.raft import Log, Raft, RaftConfig, Ready, Role
from consensus.record import Position
from tests.model.explore import State
from tests.model.groupworld import GroupWorld, LateDone
from tests.model.leaseworld import LeaseSetup
from tests.model.livepromises import FailingWorld, LivePromiseWorld
from tests.model.mutants import core, lease, upper
from tests.model.mutants.core import (
    COMPACTED,
    COMPLETE,
    ENDLESS,
    IN_FORCE,
    LEAVING,
    LIVE,
    RESTART,
    SAFE,
    THREE,
    TWO_REMOVED,
)
from tests.model.mutants.upper import group
from tests.model.promisevalues import Item
from tests.model.promisevalues import Setup as Promises
from tests.model.promiseworld import PromiseWorld
from tests.model.raftchecks import Ghost
from tests.model.raftlogs import GRANT, commands, dumped
from tests.model.raftvalues import Batch, Bound, Disk, Setup
from tests.model.raftworld import RaftWorld

# -- the core --------------------------------------------------------------------------------------------------------


class AcknowledgesItsWholeLog(Raft):
    """Also what the message said nothing of."""

    __slots__ = ()

    def _on_append(self, m: AppendReq) -> tuple[bool, int]:
        ok, match = super()._on_append(m)
        return ok, self.log.last_index if ok else match


class SavesNoVoteOfAKnownTerm(Raft):
    __slots__ = ()

    def _ready(self, proposed: int) -> Ready:
        before = self.saved
        ready = super()._ready(proposed)
        known = ready.hard is not None and ready.hard._replace(vote="", commit=0) == before._replace(vote="", commit=0)
        more = ready.entries or ready.truncate_from or ready.snapshot
        return replace(ready, hard=None) if known and not more else ready


class StaysBehindItsPeers(Raft):
    """#22: the answer to a PreVote tells of a newer term, and nobody listens."""

    __slots__ = ()

    def _on_pre_vote_resp(self, src: str, m: PreVoteResp) -> None:
        if m.term <= self.term:
            super()._on_pre_vote_resp(src, m)


class RefusesWithoutAVote(Raft):
    """#2: who has no vote as far as its own log knows."""

    __slots__ = ()

    def _on_vote_req(self, src: str, m: VoteReq) -> None:
        if self.config.me in self.members.voters:
            super()._on_vote_req(src, m)


class SnapshotDropsTheRest(Raft):
    """Although the log agrees with it."""

    __slots__ = ()

    def _on_snapshot(self, m: SnapshotReq) -> tuple[bool, int]:
        ok = super()._on_snapshot(m)
        if self.was_restored:
            self.log = Log(self.log.snapshot, ())
        return ok


class OlderSnapshotIsTaken(Raft):
    """One that comes after newer entries are committed."""

    __slots__ = ()

    def _on_snapshot(self, m: SnapshotReq) -> tuple[bool, int]:
        if self.log.snapshot.index < m.snapshot.index:
            self.commit = self.log.snapshot.index
        return super()._on_snapshot(m)


class ElectsByCommittedMembers(Raft):
    """And commits by the newest."""

    __slots__ = ()

    def _peers(self) -> tuple[str, ...]:
        return tuple(v for v in self.settled.voters if v != self.config.me)

    def _count_votes(self) -> None:
        if not has_majority(self.votes, self.settled.voters):
            return
        if self.role is Role.PRECANDIDATE:
            self._campaign("", 0)
            return
        self._lead()
        self._append(raft_module.NOOP, "")
        self._broadcast()


class NoopNeedNotBeCommitted(Raft):
    __slots__ = ()

    def _may_change(self, new: Membership) -> bool:
        own = self.log.last_term == self.term
        return own and self.changed_at <= self.commit and self.config.me in new.voters


class SnapshotOfTheNewestMembers(Raft):
    """#7: committed or not."""

    __slots__ = ()

    def _compact(self, index: int, data: str) -> None:
        newest = self.members
        super()._compact(index, data)
        self.log = Log(self.log.snapshot._replace(membership=newest), self.log.entries)


class NeverGoesBack(Raft):
    """#31: a refusal moves nothing."""

    __slots__ = ()

    def _on_append_resp(self, src: str, m: AppendResp) -> None:
        before = dict(self.progress).get(src)
        if m.ok or before is None or self.role is not Role.LEADER:
            super()._on_append_resp(src, m)
        elif m.term > self.term:
            self._follow(m.term, "")
        elif m.term == self.term:
            self._set_progress(src, before._replace(acked_round=max(before.acked_round, m.round)))


# -- the lease -------------------------------------------------------------------------------------------------------


class WaitsForTheLeaseAlone(Raft):
    """A restarted voter: for L, and not for E."""

    __slots__ = ()

    def __init__(
        self, config: RaftConfig, hard: HardState, log: Log, *, boot: int, seed: int, now_ns: int, fresh: bool
    ) -> None:
        super().__init__(config, hard, log, boot=boot, seed=seed, now_ns=now_ns, fresh=fresh)
        self.hold_until_ns = min(self.hold_until_ns, now_ns + config.lease_ns)


class TakesItsLeaseBack(Raft):
    """3.10 as the thesis has it: nobody took over in time, so the leader goes on."""

    __slots__ = ()

    def _campaign_released(self) -> None:
        self.released = 0
        self.transfer_to, self.transfer_until_ns = "", 0
        self._broadcast()


# -- promotion and the sync group ------------------------------------------------------------------------------------


def _any_done(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    return _done(state, entry, body | {"index": state.change.index if state.change is not None else 0})


def _change_at_once(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    after = cluster._change(state, entry, body)
    return after if after.change is None else replace(after, group=after.change.new, change=None)


def _revert_at_once(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    after = cluster._change(state, entry, body)
    reverts = isinstance(state.change, Change) and after.change != state.change
    return replace(after, change=None) if reverts else after


def _with(kind: str, carry_out: Any) -> tuple[object, str, object]:
    return (cluster, "_KINDS", cluster._KINDS | {kind: carry_out})


def _unless_failed(state: ClusterState) -> int:
    return max([state.initial_timeline, *(g.timeline for g in state.grants if not g.failed)]) + 1


def _empty_epochs_count(
    history: Ancestry, flushed_lsn: int, newest_timeline: int, proof: Position | None
) -> Position | NoPosition:
    counted = [e for e in history if e.start_lsn <= flushed_lsn]
    if not counted or counted[-1].timeline != newest_timeline:
        return NoPosition("another timeline")
    return Position(counted[-1].epoch, flushed_lsn)


def _long_tail(world: RaftWorld) -> State:
    """a led term 1 and wrote three entries, b has the first and led term 2; what can b make of it in term 3?"""
    one = [Entry(i, 1, raft_module.NOOP if i == 1 else GRANT, "") for i in (1, 2, 3)]
    logs = [Log(entries=tuple(one)), Log(entries=(one[0], Entry(2, 2, raft_module.NOOP, ""))), Log()]
    nodes = [world.started(i, 1, Disk(HardState(2, "b"), log)) for i, log in enumerate(logs)]
    return (*nodes, *world.start()[world.n :])


def _late_snapshot(world: RaftWorld) -> State:
    """a led term 1 and has committed three entries with c, whose acknowledgement came after a had sent it a snapshot of
    two, which is still on its way."""
    entries = tuple(Entry(i, 1, raft_module.NOOP if i == 1 else GRANT, "{}") for i in (1, 2, 3))
    done = commands(Log(entries=entries))
    snapshot = Snapshot(2, 1, dumped(done[:2]))
    disks = [
        Disk(HardState(1, "a", 3), Log(snapshot, entries[2:])), Disk(HardState(1, "a", 2), Log(entries=entries[:2])),
        Disk(HardState(1, "a", 1), Log(entries=entries)),
    ]  # fmt: skip
    nodes = [world.started(i, 1, disk) for i, disk in enumerate(disks)]
    batch = world.batches(Batch(1, 1, 0, (SnapshotReq(1, 1, 0, snapshot, 2),)))
    ghost = world.ghosts(Ghost((-1, 0, -1), tuple((command, 1) for command in done)))
    return (*nodes, batch * 9 + 0 * 3 + 2, ghost, world.start()[world.budget])


def _to_one_in_force(world: PromiseWorld) -> State:
    """S is on its way from 2 of a, b, c to a alone: committed everywhere, its names in force and proven."""
    start = world.start()
    hosts = [world.hosts.values[local] for local in start[: world.n]]
    change = group_change(world.founded.group, group("a", 1), "", "sync group", "is changed")
    log = (*hosts[0].log, Item(1, change.kind, cluster.canonical(change.body)))
    rule = world.rules(group("a", 1))
    hosts = [h._replace(log=log, rule=rule) for h in hosts]
    hosts[0] = hosts[0]._replace(committed=len(log), proving=2)
    return (*(world.hosts(h) for h in hosts), *start[world.n :])


# -- where they die --------------------------------------------------------------------------------------------------

JOINS = Setup(Bound(2, changes=2), extra=("d",), settled=True, steps=("learn", "vote"))
LATE_SNAPSHOT = Setup(Bound(2, compactions=1, delays=1))
TO_ONE = Promises(2, 2, changes=2, targets=(group("a", 1),))
LATE_HANDOVER = LeaseSetup(Bound(2, releases=1, delays=1), settled=True)
ONE_AT_A_TIME = ((raft_module, "ENTRIES_PER_MESSAGE_MAX", 1),)

OUTSIDER = (
    core.dies(AcknowledgesItsWholeLog, "acknowledged is what the message covers", "3.5", Setup(Bound(3)), ENDLESS,
              start=_long_tail, patches=ONE_AT_A_TIME),
    core.dies(NeverGoesBack, "a leader tries again from where it was refused", "bug 31", THREE, LIVE, live=True),
    core.dies(SavesNoVoteOfAKnownTerm, "a vote alone is saved too", "3.8, bug 9", RESTART, "the disk of"),
    core.dies(StaysBehindItsPeers, "the answer to a PreVote tells of a newer term", "9.6, bug 22",
              Setup(Bound(2), pre_vote=True), LIVE, live=True),
    core.dies(RefusesWithoutAVote, "one that does not know yet of its vote gives it", "4.1, bug 2", JOINS, LIVE,
              live=True),
    core.dies(SnapshotDropsTheRest, "entries after a snapshot that the log agrees with stay", "5.3, bug 25",
              Setup(Bound(2)), COMPLETE, start=_late_snapshot),
    core.dies(OlderSnapshotIsTaken, "a snapshot of what is committed here already changes nothing", "bug 25",
              LATE_SNAPSHOT, SAFE, quick=False),
    core.dies(SnapshotOfTheNewestMembers, "a snapshot has the members as of its index", "bug 7", COMPACTED, IN_FORCE),
    core.dies(ElectsByCommittedMembers, "votes are counted by the newest members", "4.1, bug 2", LEAVING, COMPLETE),
    core.dies(NoopNeedNotBeCommitted, "the leader's own entry is committed, not only appended, before a change",
              "raft-dev 2015, bug 1", TWO_REMOVED, COMPLETE),
    lease.dies(WaitsForTheLeaseAlone, "a restarted voter waits for E, L is not enough", "6.4.1", lease.RESTART),
    lease.dies(TakesItsLeaseBack, "a leader whose hand-over fails does not go on in its term", "3.10, bug 15",
               LATE_HANDOVER),
    upper.dies(LivePromiseWorld, "an epoch without WAL is no part of a position", "raft.md 5.1", upper.TWO,
               (positions, "position_of", _empty_epochs_count), dies_of=LIVE),
    upper.dies(FailingWorld, "the timeline of a failed grant is not given out again", "bug 36", Promises(3, 1),
               (ClusterState, "next_timeline", _unless_failed), dies_of=upper.ONE_TIMELINE, quick=False),
    upper.dies(GroupWorld, "a change of S is open until it is done", "raft.md 5.2", upper.SHRINKS,
               _with("change/1", _change_at_once)),
    upper.dies(GroupWorld, "a revert is a change like any other", "raft.md 5.2", TO_ONE,
               _with("change/1", _revert_at_once), quick=False, start=_to_one_in_force),
    upper.dies(LateDone, "done closes the change it names", "raft.md 5.2", TO_ONE, _with("done/1", _any_done),
               quick=False, start=_to_one_in_force),
)  # fmt: skip
