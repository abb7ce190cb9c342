"""Liveness of the layer above Raft, as a static check per state.

Whenever a majority of the voters is up, with a read quorum of each group in force that have a position, one of them can
be elected and then either takes the grant itself or hands over to one that can. Nobody else is needed, and whoever
is missing can come back at any time without making things worse.
"""

from __future__ import annotations

from itertools import combinations

from consensus.positions import NoPosition
from consensus.promotion import GRACE_MS, HandOver, Situation, TakeGrant, Wait, decide, required
from consensus.quorum import has_majority
from consensus.record import Position
from tests.model.explore import Interner, State, ViolationError
from tests.model.groupworld import GroupWorld
from tests.model.promisevalues import Log, Setup, newness
from tests.model.promiseworld import PromiseWorld

Standing = tuple[int, Log, Position | None, int]
"""Slot, log, position once frozen, incarnation."""


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
            known = self.standing[i, host] = self.standings((i, it.log, position, it.incarnation))
        return known

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
