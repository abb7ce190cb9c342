"""Liveness of the layer above Raft, as a static check per state.

Whenever a majority of the voters is up, with a read quorum of each group in force that have a position, one of them can
be elected and then either takes the grant itself or hands over to one that can. Nobody else is needed, and whoever
is missing can come back at any time without making things worse. Every node with a whole copy of the data, once frozen
and through its WAL, has a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from consensus.cluster import canonical
from consensus.positions import NoPosition
from consensus.promotion import GRACE_MS, HandOver, Situation, TakeGrant, Wait, decide, required
from consensus.quorum import has_majority
from consensus.record import Position
from tests.model.explore import Move, State, ViolationError
from tests.model.groupworld import GroupWorld
from tests.model.promiseworld import Host, Item, Log, PromiseWorld, Setup, View, newness

Standing = tuple[int, Log, Position | None, int]
"""Slot, log, position once frozen, incarnation."""


class LivePromiseWorld(PromiseWorld):
    """Checks liveness in every state."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.live: set[tuple[Standing, ...]] = set()

    def inspect(self, state: State) -> None:
        hosts = [self.hosts.values[local] for local in state[: self.n]]
        standings = tuple(self._standing(i, host) for i, host in enumerate(hosts))
        if standings not in self.live:
            for size in range(self.n // 2 + 1, self.n + 1):
                for up in combinations(standings, size):
                    self._check(up)
            self.live.add(standings)

    def _standing(self, i: int, host: Host) -> Standing:
        frozen = self.detached(host)._replace(primary=0, reading=False)
        position = self.position(frozen) if self.has_postgres(i) else None
        whole = host.proof is None or (bool(host.wal) and Position(host.wal[-1], len(host.wal)) >= host.proof)
        if position is None and host.wal and whole:
            raise ViolationError(f"liveness: {self.names[i]} has a whole copy of the data, and no position: {host}")
        return (i, host.log, position, host.incarnation)

    def _check(self, up: tuple[Standing, ...]) -> None:
        """The one with the newest log is elected and brings the others up to it; then who can win is asked."""
        here = {self.names[slot]: incarnation for slot, _, _, incarnation in up}
        newest = max((log for _, log, _, _ in up), key=newness)
        state = self.cluster(newest)
        valid = {m.name for m in state.members if here.get(m.name) == m.incarnation}
        voters = [m.name for m in state.members if m.votes]
        leaders = [self.names[s] for s, log, *_ in up if log == newest and self.names[s] in valid & set(voters)]
        if not has_majority(valid, voters) or not leaders:
            return
        answers = {self.names[s]: p or NoPosition("") for s, _, p, _ in up if self.names[s] in valid}
        held = [{n for n in q.seated if isinstance(answers.get(n), Position)} for q in required(state)]
        quorum = all(len(h) >= q.needed for h, q in zip(held, required(state), strict=True))
        if not quorum or not self._is_electable(answers, held):
            return
        for leader in leaders:
            decision = decide(Situation(leader, self.setup.terms + 1, state, answers, frozenset(answers), GRACE_MS))
            if isinstance(decision, HandOver):  # it has the same log by now, and wins next
                again = Situation(decision.to, self.setup.terms + 2, state, answers, frozenset(answers), GRACE_MS)
                decision = decide(again)
            if not isinstance(decision, TakeGrant):
                why = decision.reason if isinstance(decision, Wait) else f"{leader} and another hand over in a circle"
                raise ViolationError(f"liveness: {', '.join(here)} are up and there is no primary: {why}")


    def _is_electable(self, answers: dict[str, Position | NoPosition], held: list[set[str]]) -> bool:
        """Is one of the best there in every group in force? While a change is open the best may be about to leave; then
        nobody can be primary until another one comes back (a limit that this check found, see DESIGN.md)."""
        known = {n: p for n, p in answers.items() if isinstance(p, Position)}
        best = max(known[n] for n in set.union(*held))
        return any(known[n] == best for n in set.intersection(*held))


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
