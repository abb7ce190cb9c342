"""Liveness of the Raft core as a static check per state: nothing is stuck, whatever has been lost or delayed.

Not "will happen", which needs fairness, but "can": from every reachable state, with a quiet network from here on,
(1) the leader of the newest term brings every member that is up to its own log, a learner to what is committed; (2)
whenever the voters that are up are a majority in the view of each of them, one of them can be elected and commit, with
the terms and votes as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from consensus.quorum import has_majority
from consensus.raft import Beat, Campaign, Raft, Role
from tests.model.explore import State, ViolationError
from tests.model.raftlogs import rows_of
from tests.model.raftvalues import Disk, Setup, Step
from tests.model.raftworld import RaftWorld

ROUNDS = 4
CAMPAIGNS = 3
DELIVERIES_MAX = 500


class Standing(NamedTuple):
    """What of a node matters for the next election. Also its term and vote: may who can win learn what to ask for?"""

    slot: int
    incarnation: int
    disk: Disk


class LiveRaftWorld(RaftWorld):
    """Checks liveness in every state."""

    def __init__(self, setup: Setup, core: type[Raft] = Raft, down_max: int = 1) -> None:
        super().__init__(setup, core)
        self.down_max = down_max
        self.standings: dict[int, Standing] = {}

    def inspect(self, state: State) -> None:
        nodes = state[: self.n]
        newest = max(self.rafts[local].term for local in nodes)
        for i, local in enumerate(nodes):
            raft = self.rafts[local]
            if raft.role is Role.LEADER and raft.term == newest:
                for name, _ in raft.progress:
                    self._follower(i, self.slot[name], local, nodes[self.slot[name]])
        key = (-1, *(self.shapes((self._standing(local),)) for local in nodes))
        if key not in self.cache.live:
            for up in self._majorities(nodes):
                self._electable(up)
            self.cache.live.add(key)

    def _follower(self, i: int, j: int, leader: int, follower: int) -> None:
        me, it = self.names[i], self.names[j]
        known = self.books[leader].get(it) == self.locals.values[follower].incarnation and me in self.books[follower]
        if not known or (leader, follower) in self.cache.live:
            return
        pair = (leader, follower)
        for _ in range(ROUNDS):
            step = self._cached(leader, ("beat", i), Beat())
            leader, src, dst, batch = step.local, i, j, dict(step.out).get(j, 0)
            for _ in range(DELIVERIES_MAX):
                if not batch:
                    break
                answer, _ = self._deliver(src, dst, follower if dst == j else leader, batch)
                leader, follower = (leader, answer.local) if dst == j else (answer.local, follower)
                src, dst, batch = dst, src, dict(answer.out).get(src, 0)
            else:
                raise ViolationError(f"liveness: {me} and {it} talk for ever")
        mine, its = self.rafts[leader], self.rafts[follower]
        upto = mine.log.last_index if it in mine.members.voters else mine.commit
        if its.log.last_index < upto or its.log.term_at(upto) not in (mine.log.term_at(upto), -1):
            raise ViolationError(f"liveness: {me} leads term {mine.term} and can't bring {it} up to date: {its.log}")
        self.cache.live.add(pair)

    def _standing(self, local: int) -> Standing:
        known = self.standings.get(local)
        if known is None:
            slot, incarnation, _, disk, *_ = self.locals.values[local]
            known = self.standings[local] = Standing(slot, incarnation, disk)
        return known

    def _majorities(self, nodes: State) -> Iterator[list[Standing]]:
        """Sets of nodes that are up and, each by its own log, have a majority of the voters among them."""
        everybody = [self._standing(local) for local in nodes]
        for down in range(self.down_max + 1):
            for up in combinations(everybody, self.n - down):
                if all(has_majority(self._valid_voters(one, up), self._voters(one)) for one in up):
                    yield list(up)

    def _voters(self, one: Standing) -> tuple[str, ...]:
        rows = rows_of(one.disk.log, one.disk.log.last_index)
        return tuple(m.name for m in rows if m.votes) or self.config(one.slot, one.incarnation).voters

    def _valid_voters(self, one: Standing, up: tuple[Standing, ...]) -> list[str]:
        rows = rows_of(one.disk.log, one.disk.log.last_index)
        incarnations = {m.name: m.incarnation for m in rows} or dict.fromkeys(self.setup.founders, 1)
        here = {self.names[s.slot]: s.incarnation for s in up}
        return [n for n in self._voters(one) if n in here and here[n] == incarnations.get(n)]

    def _electable(self, up: list[Standing]) -> None:
        locals_ = {s.slot: self.started(s.slot, s.incarnation, s.disk) for s in up}
        if not any(self._comes_to_lead(slot, dict(locals_)) for slot in locals_):
            logs = {self.names[s.slot]: s.disk.log for s in up}
            raise ViolationError(f"liveness: nobody of {', '.join(logs)} can be elected and commit: {logs}")

    def _comes_to_lead(self, i: int, nodes: dict[int, int]) -> bool:
        """A first campaign may only tell it the newest term."""
        return any(self._leads_after_a_campaign(i, nodes) for _ in range(CAMPAIGNS))

    def _leads_after_a_campaign(self, i: int, nodes: dict[int, int]) -> bool:
        queue = deque([(i, self._cached(nodes[i], ("campaign", i), Campaign()))])
        for _ in range(DELIVERIES_MAX):
            if not queue:
                raft = self.rafts[nodes[i]]
                return raft.role is Role.LEADER and raft.commit == raft.log.last_index
            src, step = queue.popleft()
            nodes[src] = step.local
            for dst, batch in step.out:
                if dst in nodes:
                    answer, _ = self._deliver(src, dst, nodes[dst], batch)
                    nodes[dst] = answer.local
                    queue.append((dst, answer))
        raise ViolationError(f"liveness: the election of {self.names[i]} is talked about for ever")

    def _cached(self, local: int, words: tuple[object, ...], event: Beat | Campaign) -> Step:
        label = self.labels(words)
        known = self.cache.steps.get((local, label))
        if known is None:
            known = self.cache.steps[local, label] = self.stepped(local, (event,), label)
        return known
