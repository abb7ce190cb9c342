"""Mutants of the layer above Raft: of the shipped decisions, and of the host that has a part in the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from consensus import positions, promotion
from consensus.cluster import ClusterState, Seat, SyncGroup
from consensus.positions import Ancestry, Attach, Diverged, NoPosition
from consensus.promotion import Decision, HandOver, Quorum, Situation, TakeGrant, decide
from consensus.record import EpochStart, Position
from tests.model import promiseworld
from tests.model.explore import Move, State
from tests.model.groupworld import GroupWorld
from tests.model.livepromises import FailingWorld, LiveGroupWorld, LivePromiseWorld
from tests.model.mutants.mutant import Mutant
from tests.model.promisevalues import FIRST_TIMELINE, Ghost, Host, Item, Log, Reply, Setup, View
from tests.model.promiseworld import PromiseWorld

# -- the host's part -------------------------------------------------------------------------------------------------


class ReceiverGoesOn(PromiseWorld):
    def frozen(self, host: Host, term: int) -> Host:
        return host._replace(primary=0)


class PrimaryGoesOn(PromiseWorld):
    def frozen(self, host: Host, term: int) -> Host:
        return self.detached(host)


class ForgetsItsPromise(PromiseWorld):
    def restarted(self, host: Host) -> Host:
        return super().restarted(host)._replace(promised=0)


class AttachesToOlderEpochs(PromiseWorld):
    def may_attach(self, me: Host, epoch: int) -> bool:
        return super().may_attach(me._replace(promised=0), epoch)


class FollowsWithoutLooking(PromiseWorld):
    def follows(self, primary: Host, me: Host) -> bool:
        return True


class NoGate(PromiseWorld):
    def gate(self) -> bool:
        return False


class AnswersBeforeItHasRead(PromiseWorld):
    """Right after a start the LSN that Postgres gives is where replay stands."""

    def position(self, host: Host) -> Position | None:
        if host.reading and host.wal:
            return super().position(host._replace(reading=False, wal=host.wal[:1]))
        return super().position(host)


class RemembersAPosition(PromiseWorld):
    """Postgres is down, so the answer is what was last known: here, from when it attached."""

    def attached(self, me: Host, primary: Host) -> Host:
        new = super().attached(me, primary)
        return new._replace(proof=Position(new.wal[-1], len(new.wal)) if new.wal else None)

    def position(self, host: Host) -> Position | None:
        then = host.proof or Position(1, 1)
        return then if host.reading else super().position(host)


class PromotesBeforeTheCommit(PromiseWorld):
    def may_promote(self, me: Host) -> bool:
        return super().may_promote(me._replace(committed=len(me.log)))


class ActsOnAnOldGrant(PromiseWorld):
    """After a restart, or without the lead: the newest grant in the log is its own, so it promotes."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.named = True

    def successors(self, state: State) -> Iterator[Move]:
        yield from super().successors(state)
        view = self.view(state)
        for i, host in enumerate(view.hosts):
            grants = [item for item in host.log if item.kind == "promoted/1"]
            if not host.leads and not host.primary and grants and grants[-1].data.partition(" ")[0] == self.names[i]:
                own = host._replace(leads=grants[-1].term, committed=len(host.log))
                yield self._promotion(view._replace(hosts=[own if h is host else h for h in view.hosts]), i)


class CountsPromisesOfOtherTerms(PromiseWorld):
    def answers(self, view: View, me: Host) -> dict[str, Position | NoPosition]:
        found = super().answers(view, me)
        for name, host in zip(self.names, view.hosts, strict=True):
            for _, position in host.vows:
                found.setdefault(name, position or NoPosition(""))
        return found


class AsksOneLess(PromiseWorld):
    """One name too few in synchronous_standby_names: k - 2 standbys instead of k - 1."""

    def released(self, hosts: list[Host], reply: Reply, label: tuple[object, ...]) -> tuple[int, ...]:
        return hosts[reply.primary].wal if self.setup.k == 2 else super().released(hosts, reply, label)


class KeepsEmptyEpochs(PromiseWorld):
    def past(self, me: Host) -> tuple[EpochStart, ...]:
        return me.history


# -- changes of the sync group ---------------------------------------------------------------------------------------


class NamesBeforeTheLog(GroupWorld):
    """Loosened too early: the names are set as soon as the change is appended."""

    def wanted(self, me: Host) -> SyncGroup:
        return self.cluster(me.log).wanted_group


class DoneBeforeTheNames(GroupWorld):
    """Tightened too late."""

    def in_force(self, view: View, me: Host) -> bool:
        return True

    def is_met(self, view: View, i: int) -> bool:
        return True


class LeavesOldWalsenders(GroupWorld):
    def in_force(self, view: View, me: Host) -> bool:
        return me.defined


class DoesNotWaitForOldWalsenders(GroupWorld):
    """They were told to go; that they are gone is not looked at."""

    def in_force(self, view: View, me: Host) -> bool:
        return me.defined and all(h.rule == me.rule for h in view.hosts if h.upstream == me.primary)


class NoCheckpoint(GroupWorld):
    def in_force(self, view: View, me: Host) -> bool:
        return super().in_force(view, me._replace(defined=True))


class NoLsn(GroupWorld):
    def is_met(self, view: View, i: int) -> bool:
        return bool(view.hosts[i].proving)


class DecidesOnWhatIsCommitted(GroupWorld):
    """Not on the last entry of its log."""

    def decision(
        self, me: int, term: int, log: Log, answers: dict[str, Position | NoPosition], last: str = ""
    ) -> Decision:
        old = tuple(item for item in log if item.kind not in ("change/1", "done/1") or item.term == term)
        return super().decision(me, term, old, answers, last)


class CountsAnyCopy(PromiseWorld):
    """A position before the copy is proven complete."""

    def position(self, host: Host) -> Position | None:
        return super().position(host._replace(proof=None))


class TakesAnyCopy(GroupWorld):
    """Takes its seat before its copy is proven complete."""

    def is_proven(self, host: Host) -> bool:
        return True

    def position(self, host: Host) -> Position | None:
        return super().position(host._replace(proof=None))


def _old_only(state: ClusterState) -> tuple[SyncGroup, ...]:
    return (state.group,)


def _new_only(state: ClusterState) -> tuple[SyncGroup, ...]:
    return (state.wanted_group,)


def _seated_by_name(state: ClusterState, group: SyncGroup) -> frozenset[str]:
    return frozenset(group.names)


# -- the shipped decisions -------------------------------------------------------------------------------------------


def _without_epochs(s: Situation, quorum: Quorum) -> dict[str, Position]:
    return {n: Position(0, p.lsn) for n, p in s.promises.items() if n in quorum.seated and isinstance(p, Position)}


def _without_lsn(s: Situation, quorum: Quorum) -> dict[str, Position]:
    return {n: Position(p.epoch, 0) for n, p in s.promises.items() if n in quorum.seated and isinstance(p, Position)}


def _first_come(s: Situation) -> str | None:
    """Whoever leads wins."""
    return s.me if isinstance(s.promises.get(s.me), Position) else None


def _outside_too(s: Situation) -> Decision:
    """Whoever holds as much as the best of S wins, with or without a seat."""
    decision, mine = decide(s), s.promises.get(s.me)
    held = [p for p in s.promises.values() if isinstance(p, Position)]
    if isinstance(decision, HandOver) and isinstance(mine, Position) and mine == max(held):
        return TakeGrant(mine, s.state.next_timeline(), "")
    return decision


def _newest_epoch(s: Situation) -> Position | None:
    """Whoever has WAL of the newest grant, its primary or not."""
    held = [p for p in s.promises.values() if isinstance(p, Position)]
    return max((p for p in held if s.state.grant is not None and p.epoch == s.state.grant.term), default=None)


def _with_wal_of_it(s: Situation) -> Position | None:
    """Only who has WAL of the newest grant."""
    last = _LAST_PRIMARY(s)
    return last if last is not None and s.state.grant is not None and last.epoch == s.state.grant.term else None


_LAST_PRIMARY = promotion._last_primary


def _highest_heard_of(state: ClusterState) -> int:
    """As Postgres does it: of the timelines that came into use."""
    return max([state.initial_timeline, *(g.timeline for g in state.grants if g.opened)]) + 1


def _any_timeline(
    history: Ancestry, flushed_lsn: int, newest_timeline: int, proof: Position | None
) -> Position | NoPosition:
    newest = history[-1] if history else None
    return NoPosition("") if newest is None else Position(newest.epoch, flushed_lsn)


def _divergence_from_the_next_epoch(ancestry: Ancestry, history: Ancestry, lsn: int) -> Attach | Diverged:
    mine = [e for e in history if e.start_lsn < lsn][-1]
    later = ancestry[ancestry.index(mine) + 1 :] if mine in ancestry else ()
    gone = mine not in ancestry or (later and lsn > later[0].start_lsn)
    return Diverged(0, 0, "") if gone else Attach(ancestry)


def group(names: str, k: int) -> SyncGroup:
    return SyncGroup(tuple(Seat(name, 1) for name in names), k)


def _figure_8_on_wal(world: PromiseWorld) -> State:
    """a, primary of epoch 1, wrote a second record that nobody has; so did b, primary of epoch 2; c has the first."""
    first, second = EpochStart(1, 0, FIRST_TIMELINE), EpochStart(2, 1, FIRST_TIMELINE + 1)
    log = (Item(1, "promoted/1"), Item(1, "opened/1"), Item(2, "noop/1"), Item(2, "promoted/1"))
    hosts = (
        Host(2, log, 1, (first,), (1, 1)), Host(2, log, 2, (first, second), (1, 2)), Host(2, log, 2, (first,), (1,)),
    )  # fmt: skip
    ghost = Ghost(((1, (1,)),), ((1, FIRST_TIMELINE, ()), (2, FIRST_TIMELINE + 1, (1,))))
    return (*(world.hosts(h) for h in hosts), world.ghosts(ghost), world.start()[world.n + 1])


def dies(
    world: type[PromiseWorld], rule: str, source: str, setup: Setup, *patches: tuple[object, str, object],
    dies_of: str = "acknowledged WAL", quick: bool = True, start: Callable[[Any], State] | None = None,
) -> Mutant:  # fmt: skip
    return Mutant(rule, source, str(setup), partial(world, setup), dies_of, patches, quick, start)


TWO, RESTART, THREE = Setup(2, 2), Setup(2, 2, 1), Setup(3, 2)
READING = Setup(2, 2, 1, reads=True)
SHRINKS = Setup(2, 2, changes=1, targets=(group("ab", 2),))
GROWS = Setup(2, 2, seated=2, changes=1, targets=(group("abc", 2),))
FROM_ONE = Setup(2, 2, seated=1, k=1, changes=1, targets=(group("ab", 2),))
LOST_DISK = Setup(2, 2, wipes=1, changes=1)
MORE = Setup(2, 2, changes=1, targets=(group("abc", 3),))
ONE_TIMELINE = "one timeline per term"

UPPER = (
    dies(ReceiverGoesOn, "a promise stops the WAL receiver", "safety.md, promotion 1", TWO),
    dies(PrimaryGoesOn, "a promise fences the node's own Postgres", "safety.md, promise", TWO),
    dies(ForgetsItsPromise, "a promise is on disk", "invariant 6", RESTART),
    dies(AttachesToOlderEpochs, "nobody attaches to an epoch older than its promise", "safety.md, promise", TWO),
    dies(PromiseWorld, "a read quorum of promises comes before a promotion", "safety.md, promotion 1", TWO,
         (promotion, "read_quorum", lambda members, acks: 1)),
    dies(PromiseWorld, "a read quorum is len(S) - k + 1", "safety.md, words", TWO,
         (promotion, "read_quorum", lambda members, acks: members - acks)),
    dies(CountsPromisesOfOtherTerms, "a promise counts for its own term only", "safety.md, promise", THREE),
    dies(AnswersBeforeItHasRead, "no position before all of pg_wal is read", "safety.md, promotion 1", READING),
    dies(RemembersAPosition, "no position of a Postgres that is down", "safety.md, promotion 1", READING),
    dies(PromiseWorld, "positions are compared by epoch first", "safety.md, words", THREE,
         (promotion, "_positions", _without_epochs)),
    dies(PromiseWorld, "within an epoch the LSN decides", "safety.md, words", TWO,
         (promotion, "_positions", _without_lsn)),
    dies(PromiseWorld, "the newest WAL must be on the timeline of the term history", "safety.md, words", THREE,
         (positions, "position_of", _any_timeline)),
    dies(PromiseWorld, "the one with the newest WAL wins, not the one that leads", "safety.md, promotion 2", TWO,
         (promotion, "_choose", _first_come)),
    dies(PromiseWorld, "who was wished for wins only if it holds what a read quorum holds", "safety.md, promotion 2",
         Setup(2, 2, wish="b"), (promotion, "_holds_all", lambda s, quorums, position: True)),
    dies(PromiseWorld, "the winner has a seat in S", "safety.md, promotion 2", Setup(3, 2, seated=2),
         (promiseworld, "decide", _outside_too), quick=False),
    dies(PromiseWorld, "only the last primary makes up for a read quorum", "promotion.py", TWO,
         (promotion, "_last_primary", _newest_epoch)),
    dies(LiveGroupWorld, "a change is turned back if nobody can win with it", "safety.md, promotion 2", SHRINKS,
         (promotion, "is_better_turned_back", lambda state, change, up, wins: False), dies_of="liveness"),
    dies(LivePromiseWorld, "the last primary makes up for a read quorum", "found by the simulation (seed 165)",
         Setup(2, 2, clones=2), (promotion, "_last_primary", lambda s: None), dies_of="liveness"),
    dies(FailingWorld, "a grant of which nothing was written keeps what it was given for", "found by a review",
         Setup(2, 1, clones=2), (promotion, "_last_primary", _with_wal_of_it), dies_of="liveness"),
    dies(PromiseWorld, "a number of a timeline is given out once", "invariant 4", THREE,
         (ClusterState, "next_timeline", _highest_heard_of), dies_of=ONE_TIMELINE),
    dies(PromotesBeforeTheCommit, "no promotion before the grant is committed", "safety.md, promotion 3", THREE,
         dies_of=ONE_TIMELINE),
    dies(ActsOnAnOldGrant, "nobody acts on a grant after a restart", "interleaving 20 of raft.md 5.5", RESTART,
         dies_of="one primary per term"),
    dies(FollowsWithoutLooking, "a standby that diverged is rewound first", "safety.md, promotion 6", TWO,
         dies_of="followed"),
    dies(KeepsEmptyEpochs, "an epoch without WAL hides no divergence (twice guarded)", "found by this model", THREE,
         (positions, "divergence", _divergence_from_the_next_epoch), dies_of="followed"),
    dies(NoGate, "nothing is shown before a record of the own epoch is safe", "safety.md, promotion 5", Setup(4, 2),
         start=_figure_8_on_wal),
    dies(AsksOneLess, "k of S, the primary included, acknowledge", "safety.md, sync group", TWO),
    dies(GroupWorld, "an election respects the old group until the change is done", "changes (1)", SHRINKS,
         (ClusterState, "groups", property(_new_only))),
    dies(GroupWorld, "an election respects the new group once the change is appended", "changes (1)", GROWS,
         (ClusterState, "groups", property(_old_only))),
    dies(DecidesOnWhatIsCommitted, "the last entry of the log counts, committed or not", "changes (1)", GROWS),
    dies(NamesBeforeTheLog, "names are set after the log says so", "changes (2)", GROWS),
    dies(DoneBeforeTheNames, "the log says done after the names are in force", "changes (4)", SHRINKS),
    dies(LeavesOldWalsenders, "no walsender is left that knows the old names", "changes (3)", SHRINKS),
    dies(DoesNotWaitForOldWalsenders, "a walsender that was told to go is waited for", "changes (3)", SHRINKS),
    dies(NoCheckpoint, "the checkpointer has seen the names before they count", "promotion 4", FROM_ONE),
    dies(NoLsn, "what was acknowledged before meets the new rule", "changes (3)", SHRINKS),
    dies(CountsAnyCopy, "a copy is proven before it has a position", "safety.md, identity", Setup(2, 2, clones=1)),
    dies(TakesAnyCopy, "a seat is that of an incarnation (twice guarded: nor has its copy a position)",
         "safety.md, identity", LOST_DISK, (ClusterState, "seated", _seated_by_name), quick=False),
)  # fmt: skip
