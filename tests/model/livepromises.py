"""Liveness of the layer above Raft, as a static check per state.

Whenever a majority of the voters is up, with a read quorum of each group in force that have a position, or with the
last primary, one of them can be elected and then either takes the grant itself or hands over to one that can, perhaps
after it has turned back a change. Nobody else is needed, and who is missing can come back at any time without harm.
Every node with a whole copy of the data, once frozen and through its WAL, has a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from consensus.changes import turned_back
from consensus.cluster import ClusterState, apply, canonical
from consensus.messages import Entry
from consensus.positions import NoPosition
from consensus.promotion import (
    LAST_PRIMARY_GRACE_MS,
    AskHook,
    Degrade,
    HandOver,
    Situation,
    TakeGrant,
    TurnBack,
    Wait,
    decide,
    quorum_promised,
)
from consensus.quorum import has_majority
from consensus.record import Position
from tests.model.explore import Interner, Move, State, ViolationError
from tests.model.groupworld import GroupWorld
from tests.model.promisevalues import Host, Item, Log, Setup, View, newness
from tests.model.promiseworld import PromiseWorld

Standing = tuple[int, Log, Position | None, int, int]
"""Slot, log, position once frozen, incarnation, epoch of which it was the last primary."""


class LivePromiseWorld(PromiseWorld):
    """Checks liveness in every state."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.standings: Interner[Standing] = Interner()
        self.standing: dict[tuple[int, int], int] = {}
        self.live: set[tuple[int, ...]] = set()

    def inspect(self, state: State) -> None:
        standings = tuple([self._standing(i, host) for i, host in enumerate(state[: self.n])])
        if standings not in self.live:
            those = [self.standings.values[one] for one in standings]
            for size in range(self.n // 2 + 1, self.n + 1):
                for up in combinations(those, size):
                    self._check(up)
            self.live.add(standings)

    def _standing(self, i: int, host: int) -> int:
        known = self.standing.get((i, host))
        if known is None:
            it = self.hosts.values[host]
            frozen = self.detached(it)._replace(primary=0, reading=False)
            position = self.position(frozen) if self.has_postgres(i) else None
            whole = it.proof is None or (bool(it.wal) and Position(it.wal[-1], len(it.wal)) >= it.proof)
            if position is None and it.wal and whole:
                raise ViolationError(f"liveness: {self.names[i]} has a whole copy of the data, and no position: {it}")
            known = self.standing[i, host] = self.standings((i, it.log, position, it.incarnation, it.reigned))
        return known

    def _check(self, up: tuple[Standing, ...]) -> None:
        """The one with the newest log is elected and brings the others up to it; then who can win is asked."""
        here = {self.names[slot]: incarnation for slot, _, _, incarnation, _ in up}
        newest = max((log for _, log, *_ in up), key=newness)
        state = self.cluster(newest)
        if not self.named and state.grant is not None:
            last = next((self.names[slot] for slot, *_, reigned in up if reigned == state.grant.term), "")
            state = replace(state, grants=(*state.grants[:-1], state.grant._replace(node=last)))
        valid = {m.name for m in state.members if here.get(m.name) == m.incarnation}
        voters = [m.name for m in state.members if m.votes]
        leaders = [self.names[s] for s, log, *_ in up if log == newest and self.names[s] in valid & set(voters)]
        if not has_majority(valid, voters) or not leaders:
            return
        answers = {self.names[s]: p or NoPosition("") for s, _, p, *_ in up if self.names[s] in valid}
        if not self._last_has_all(state, answers) and not quorum_promised(self._situation("", state, answers)):
            return
        for leader in leaders:
            self._wins(leader, state, answers, ", ".join(here))

    @staticmethod
    def _last_has_all(state: ClusterState, answers: dict[str, Position | NoPosition]) -> bool:
        """Whom the newest grant was given to has WAL of it, or has written none and still has what it was given for."""
        grant = state.grant
        told = answers.get(grant.node) if grant is not None else None
        if grant is None or not isinstance(told, Position):
            return False
        return told.epoch == grant.term or (not grant.opened and told >= grant.upper)

    def _wins(self, leader: str, state: ClusterState, answers: dict[str, Position | NoPosition], here: str) -> None:
        for _ in range(3):  # turned back, handed over to one that has the same log by now and wins next
            match decide(self._situation(leader, state, answers)):
                case TakeGrant():
                    return
                case HandOver(to):
                    leader = to
                case TurnBack(change):
                    body = canonical(turned_back(change, "", "").body)
                    state = apply(state, Entry(99, self.setup.terms + 1, "change/1", body))
                case Degrade() | AskHook():
                    raise AssertionError("the worlds of the model are strict and have no hook")
                case Wait(reason):
                    raise ViolationError(f"liveness: {here} are up and there is no primary: {reason}")
        raise ViolationError(f"liveness: {here} are up and hand over in a circle")

    def _situation(self, me: str, state: ClusterState, answers: dict[str, Position | NoPosition]) -> Situation:
        return Situation(me, self.setup.terms + 1, state, answers, frozenset(answers), LAST_PRIMARY_GRACE_MS)


class LiveGroupWorld(LivePromiseWorld, GroupWorld):
    """The same with changes of the sync group."""


class FailingWorld(LivePromiseWorld):
    """A primary may give its grant up, whatever became of its promotion."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.named = True

    def may_promote(self, me: Host) -> bool:
        return super().may_promote(me) and not any(i.kind == "failed/1" and i.term == me.leads for i in me.log)

    def leading(self, view: View, i: int) -> Iterator[Move]:
        yield from super().leading(view, i)
        me = view.hosts[i]
        if me.leads > 1 and self.may_promote(me):
            body = canonical({"term": me.leads, "reason": "it did not end well"})
            item = Item(me.leads, "failed/1", body)
            yield self.to(view, ("changes", i, "failed/1"), {i: me._replace(log=(*me.log, item), primary=0, rule=0)})
