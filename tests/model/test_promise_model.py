"""The layer above Raft, on its own: promises, read quorum, grants, WAL by epoch, acknowledgement by k of S, restarts.

The decisions are those of the shipped `promotion.decide`, `positions.position_of`, `positions.divergence` and
`cluster.apply`; around them an abstract Raft (a leader needs a majority with no newer log), disks and Postgres.
There is no clock: a deposed leader may act at any later time. Property: every WAL that was ever acknowledged (by a
primary of epoch e to a client) is part of every later primary's, whichever of the two came first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from typing import NamedTuple

import pytest

from consensus import positions, promotion
from consensus.cluster import ClusterState, Seat, SyncGroup, apply, canonical
from consensus.membership import Member
from consensus.messages import Entry
from consensus.positions import Attach, Diverged, NoPosition
from consensus.promotion import GRACE_MS, Situation, TakeGrant, decide
from consensus.record import EpochStart, Position
from tests.model.explore import Interner, Label, Move, Outcome, State, ViolationError, explore

NAMES = ("a", "b", "c")
PERMUTATIONS = tuple(permutations(range(3)))
Wal = tuple[int, ...]
"""The epoch of each record. An epoch has one writer, so equal prefixes of this are equal WAL."""


class Host(NamedTuple):
    """One node; ``term``, ``log``, ``promised``, ``history`` and ``wal`` survive a restart."""

    term: int
    log: tuple[int, ...]
    """Terms of the grants in its Raft log."""
    promised: int
    history: tuple[EpochStart, ...]
    wal: Wal
    leads: int = 0
    """The term it believes to lead."""
    committed: bool = False
    """As leader: its grant is known to be committed."""
    primary: int = 0
    """Epoch under which its Postgres accepts writes."""
    upstream: int = 0
    """Epoch of the primary its WAL receiver is attached to."""


class Ghost(NamedTuple):
    acked: tuple[tuple[int, Wal], ...] = ()
    """By epoch: the longest WAL acknowledged."""
    started: tuple[tuple[int, Wal], ...] = ()
    """By epoch: the WAL its primary started from."""


@dataclass(frozen=True)
class Rules:
    """What may be switched off, to see that the checker would notice."""

    promise_stops_wal: bool = True
    promise_is_durable: bool = True
    check_divergence: bool = True
    own_epoch_gate: bool = True
    old_epochs_refused: bool = True
    unused_epochs_dropped: bool = True


class World:
    """Node a is primary of term 1 and open; ``terms``, ``records`` and ``restarts`` bound what follows."""

    def __init__(self, terms: int, records: int, restarts: int, rules: Rules, *, symmetric: bool) -> None:
        self.terms, self.records, self.restarts, self.rules = terms, records, restarts, rules
        self.symmetric = symmetric
        self.renamed: dict[tuple[int, tuple[int, ...]], int] = {}
        self.hosts: Interner[Host] = Interner()
        self.ghosts: Interner[Ghost] = Interner()
        self.promises: Interner[tuple[tuple[int, int, Position | None, bool], ...]] = Interner()
        """(term, node, position, arrived at the leader)."""
        self.labels: Interner[str] = Interner()
        self.states: dict[tuple[int, ...], ClusterState] = {}
        self.decisions: dict[tuple[object, ...], bool] = {}

    def start(self) -> State:
        first = EpochStart(1, 0, 2)
        host = Host(1, (1,), 1, (first,), (1,))
        hosts = [
            host._replace(leads=1, committed=True, primary=1),
            host._replace(upstream=1),
            host._replace(upstream=1),
        ]
        ghost = Ghost(((1, (1,)),), ((1, ()),))
        return (*(self.hosts(h) for h in hosts), self.promises(()), self.ghosts(ghost), self.restarts)

    def inspect(self, state: State) -> None:
        """Everything is checked where it happens."""

    def canon(self, state: State) -> State:
        return state

    def tell(self, label: Label) -> str:
        return self.labels.values[label[0]]

    # -- the code under test -------------------------------------------------------------------------------------

    def cluster(self, log: tuple[int, ...]) -> ClusterState:
        known = self.states.get(log)
        if known is None:
            members = tuple(Member(n, i, "", "", "") for i, n in enumerate(NAMES, 1))
            group = SyncGroup(tuple(Seat(m.name, m.incarnation) for m in members), 2)
            known = ClusterState(
                "00", members, group=group, founder="a", system_identifier="1", initial_timeline=1
            )
            for at, term in enumerate(log):
                body = {"term": term, "node": "a", "upper": [0, 0], "timeline": known.next_timeline(), "reason": ""}
                known = apply(known, Entry(2 * at + 1, term, "promoted/1", canonical(body)))
                if at == 0:
                    known = apply(known, Entry(2, term, "opened/1", canonical({"term": term})))
            self.states[log] = known
        return known

    def timeline(self, log: tuple[int, ...], epoch: int) -> int:
        return next(g.timeline for g in self.cluster(log).grants if g.term == epoch)

    def takes_grant(self, me: int, term: int, log: tuple[int, ...], answers: dict[str, Position | NoPosition]) -> bool:
        key = (me, term, log, tuple(sorted(answers.items(), key=lambda item: item[0])))
        if key not in self.decisions:
            situation = Situation(NAMES[me], term, self.cluster(log), answers, frozenset({NAMES[me]}), GRACE_MS)
            decision = decide(situation)
            if isinstance(decision, TakeGrant) and decision.timeline in {g.timeline for g in self.cluster(log).grants}:
                raise ViolationError(f"timeline {decision.timeline} was given out before")
            self.decisions[key] = isinstance(decision, TakeGrant)
        return self.decisions[key]

    # -- successors ----------------------------------------------------------------------------------------------

    def successors(self, state: State) -> Iterator[Move]:
        hosts = [self.hosts.values[n] for n in state[:3]]
        given, ghost, restarts = self.promises.values[state[3]], self.ghosts.values[state[4]], state[5]
        for i, host in enumerate(hosts):
            yield from self._elections(i, hosts, given, ghost, restarts)
            if host.leads:
                yield from self._leading(i, hosts, given, ghost, restarts)
            if host.primary and len(host.wal) < self.records:
                yield self._to(
                    f"{NAMES[i]} writes under epoch {host.primary}",
                    hosts,
                    {i: host._replace(wal=(*host.wal, host.primary))},
                    given,
                    ghost,
                    restarts,
                )
            if not host.primary:
                yield from self._following(i, hosts, given, ghost, restarts)
            if restarts:
                yield self._restart(i, hosts, given, ghost, restarts)

    def _to(  # noqa: PLR0917
        self, story: str, hosts: list[Host], changed: dict[int, Host],
        given: tuple[tuple[int, int, Position | None, bool], ...], ghost: Ghost, restarts: int,
    ) -> Move:  # fmt: skip
        new = [self.hosts(changed.get(i, h)) for i, h in enumerate(hosts)]
        promises, seen = self.promises(tuple(sorted(given))), self.ghosts(ghost)
        label = self.labels(story)
        if not self.symmetric:
            return Move((label,), (*new, promises, seen, restarts))
        # Nothing here knows a name except to tell it from another: of six states that differ in names only, one is kept.  # noqa: E501
        best = min((new[x], new[y], new[z], self._renamed(promises, (x, y, z))) for x, y, z in PERMUTATIONS)
        return Move((label,), (*best, seen, restarts))

    def _renamed(self, promises: int, order: tuple[int, int, int]) -> int:
        known = self.renamed.get((promises, order))
        if known is None:
            given = self.promises.values[promises]
            known = self.promises(tuple(sorted((t, order.index(n), p, arrived) for t, n, p, arrived in given)))
            self.renamed[promises, order] = known
        return known

    def _elections(
        self,
        i: int,
        hosts: list[Host],
        given: tuple[tuple[int, int, Position | None, bool], ...],
        ghost: Ghost,
        restarts: int,
    ) -> Iterator[Move]:
        term = max(h.term for h in hosts) + 1
        if term > self.terms:
            return
        for j, other in enumerate(hosts):
            if j != i and hosts[i].log >= other.log:
                yield self._to(
                    f"{NAMES[i]} is elected in term {term} by {NAMES[j]}",
                    hosts,
                    {
                        i: hosts[i]._replace(term=term, leads=term, committed=False),
                        j: other._replace(term=term, leads=0),
                    },
                    given,
                    ghost,
                    restarts,
                )

    def _leading(
        self,
        i: int,
        hosts: list[Host],
        given: tuple[tuple[int, int, Position | None, bool], ...],
        ghost: Ghost,
        restarts: int,
    ) -> Iterator[Move]:
        me, term = hosts[i], hosts[i].leads
        granted = bool(me.log) and me.log[-1] == term
        for j, host in enumerate(hosts):
            if granted and j != i and not me.committed and host.term <= term:
                yield self._to(
                    f"{NAMES[i]} commits its grant of term {term} with {NAMES[j]}",
                    hosts,
                    {i: me._replace(committed=True), j: host._replace(term=term, log=me.log, leads=0)},
                    given,
                    ghost,
                    restarts,
                )
            if granted and j != i and me.committed and host.term <= term and host.log != me.log:
                yield self._to(
                    f"{NAMES[j]} learns of the grant of term {term}",
                    hosts,
                    {j: host._replace(term=term, log=me.log, leads=0)},
                    given,
                    ghost,
                    restarts,
                )
            if not granted and host.term <= term and not any(p[:2] == (term, j) for p in given):
                yield self._promise(i, j, term, hosts, given, ghost, restarts)
        for promise in given:
            if promise[0] == term and not promise[3] and not granted:
                arrived = (*(p for p in given if p != promise), (*promise[:3], True))
                yield self._to(
                    f"{NAMES[i]} hears that {NAMES[promise[1]]} promised {promise[2]}",
                    hosts,
                    {},
                    arrived,
                    ghost,
                    restarts,
                )
        answers = {NAMES[j]: p or NoPosition("") for t, j, p, arrived in given if t == term and arrived}
        if not granted and me.term == term and answers and self.takes_grant(i, term, me.log, answers):
            yield self._to(
                f"{NAMES[i]} appends its grant of term {term}",
                hosts,
                {i: me._replace(log=(*me.log, term))},
                given,
                ghost,
                restarts,
            )
        if me.committed and not me.primary and me.promised <= term:
            yield self._promotion(i, hosts, given, ghost, restarts)

    def _promise(  # noqa: PLR0917
        self,
        i: int,
        j: int,
        term: int,
        hosts: list[Host],
        given: tuple[tuple[int, int, Position | None, bool], ...],
        ghost: Ghost,
        restarts: int,
    ) -> Move:
        host = hosts[j]
        newest = self.timeline_of_wal(host)
        answer = positions.position_of(host.history, len(host.wal), newest, None)
        position = answer if isinstance(answer, Position) else None
        leads = host.leads if j == i else 0
        frozen = host._replace(term=term, leads=leads, committed=host.committed and j == i, promised=term)
        if self.rules.promise_stops_wal:
            frozen = frozen._replace(primary=0, upstream=0)
        # The leader's own answer needs no network; one that is lost is one that never arrives.
        promise = (term, j, position, j == i)
        return self._to(
            f"{NAMES[j]} promises to {NAMES[i]}, term {term}: {position}",
            hosts,
            {j: frozen},
            (*given, promise),
            ghost,
            restarts,
        )

    def timeline_of_wal(self, host: Host) -> int:
        return next((e.timeline for e in host.history if e.epoch == host.wal[-1]), 0) if host.wal else 0

    def _promotion(
        self,
        i: int,
        hosts: list[Host],
        given: tuple[tuple[int, int, Position | None, bool], ...],
        ghost: Ghost,
        restarts: int,
    ) -> Move:
        me, term = hosts[i], hosts[i].leads
        story = f"{NAMES[i]} promotes under epoch {term} with WAL {me.wal}"
        for epoch, acked in ghost.acked:
            if epoch < term and me.wal[: len(acked)] != acked:
                raise ViolationError(
                    f"the primary of epoch {term} lacks {acked}, acknowledged under epoch {epoch}",
                    (self.labels(story),),
                )
        start = EpochStart(term, len(me.wal), self.timeline(me.log, term))
        # An epoch of which it holds no byte is not part of its past.
        past = (
            tuple(e for e in me.history if e.start_lsn < len(me.wal))
            if self.rules.unused_epochs_dropped
            else me.history
        )
        ghost = ghost._replace(started=tuple(sorted((*ghost.started, (term, me.wal)))))
        return self._to(
            story, hosts, {i: me._replace(primary=term, upstream=0, history=(*past, start))}, given, ghost, restarts
        )

    def _following(
        self,
        i: int,
        hosts: list[Host],
        given: tuple[tuple[int, int, Position | None, bool], ...],
        ghost: Ghost,
        restarts: int,
    ) -> Iterator[Move]:
        me = hosts[i]
        for p, primary in enumerate(hosts):
            epoch = primary.primary
            if not epoch or p == i:
                continue
            allowed = me.promised <= epoch or not self.rules.old_epochs_refused
            if me.upstream != epoch and me.log and me.log[-1] == epoch and allowed and not me.leads:
                attached = self._attached(me, primary)
                story = f"{NAMES[i]} attaches to {NAMES[p]} (epoch {epoch}) with WAL {attached.wal}"
                acked = self._acknowledged(ghost, primary, attached.wal, story)
                yield self._to(story, hosts, {i: attached}, given, acked, restarts)
            if me.upstream == epoch and len(me.wal) < len(primary.wal):
                grown = me._replace(wal=(*me.wal, primary.wal[len(me.wal)]))
                story = f"{NAMES[i]} flushes record {len(grown.wal)} of epoch {grown.wal[-1]} from {NAMES[p]}"
                acked = self._acknowledged(ghost, primary, grown.wal, story)
                yield self._to(story, hosts, {i: grown}, given, acked, restarts)

    def _attached(self, me: Host, primary: Host) -> Host:
        """Follow at once, or after a rewind to where the histories part."""
        wal = me.wal
        if self.rules.check_divergence and not isinstance(
            positions.divergence(primary.history, me.history, len(wal)), Attach
        ):
            same = next(
                (n for n, (x, y) in enumerate(zip(wal, primary.wal, strict=False)) if x != y),
                min(len(wal), len(primary.wal)),
            )
            wal = wal[:same]
        return me._replace(wal=wal, history=primary.history, upstream=primary.primary)

    def _acknowledged(self, ghost: Ghost, primary: Host, flushed: Wal, story: str) -> Ghost:
        """What the primary tells its clients once one standby (k = 2) has flushed that much. Postgres compares LSNs."""
        done, epoch = primary.wal[: len(flushed)], primary.primary
        if flushed[: len(done)] != done:
            raise ViolationError(f"{flushed} is counted as {done}", (self.labels(story),))
        if not done or (self.rules.own_epoch_gate and done[-1] != epoch):
            return ghost
        known = dict(ghost.acked)
        if len(known.get(epoch, ())) >= len(done):
            return ghost
        for later, started in ghost.started:
            if later > epoch and started[: len(done)] != done:
                raise ViolationError(
                    f"{done} is acknowledged under epoch {epoch}, but the primary of epoch {later} started from {started}",  # noqa: E501
                    (self.labels(story),),
                )
        known[epoch] = done
        return ghost._replace(acked=tuple(sorted(known.items())))

    def _restart(
        self,
        i: int,
        hosts: list[Host],
        given: tuple[tuple[int, int, Position | None, bool], ...],
        ghost: Ghost,
        restarts: int,
    ) -> Move:
        me = hosts[i]
        promised = me.promised if self.rules.promise_is_durable else 0
        again = me._replace(leads=0, committed=False, primary=0, upstream=0, promised=promised)
        kept = tuple(p for p in given if p[0] != me.leads)  # its notes are gone, and answers to it are void
        return self._to(f"{NAMES[i]} restarts", hosts, {i: again}, kept if me.leads else given, ghost, restarts - 1)


def run(terms: int, records: int, restarts: int, rules: Rules | None = None, start: State | None = None) -> Outcome:
    world = World(terms, records, restarts, rules or Rules(), symmetric=True)
    return explore(world, start=start, states_max=400_000)


def run_from(
    hosts: tuple[Host, Host, Host], ghost: Ghost, terms: int, records: int, rules: Rules | None = None
) -> Outcome:
    world = World(terms, records, 0, rules or Rules(), symmetric=True)
    start = (*(world.hosts(h) for h in hosts), world.promises(()), world.ghosts(ghost), 0)
    return explore(world, start=start, states_max=400_000)


def story(terms: int, records: int, restarts: int) -> str:
    """A counterexample told with names that stay the same from step to step."""
    world = World(terms, records, restarts, Rules(), symmetric=False)
    outcome = explore(world, states_max=5_000_000)
    return outcome.report(f"T={terms}, {records} records, R={restarts}")


FIRST, SECOND = EpochStart(1, 0, 2), EpochStart(2, 1, 3)
LEFT_BEHIND = Host(1, (1,), 1, (FIRST,), (1, 1, 1))
"""Was primary of epoch 1 and wrote more than anybody else has."""
SUCCESSOR = Host(2, (1, 2), 2, (FIRST, SECOND), (1, 2), leads=2, committed=True, primary=2)


@pytest.mark.parametrize(("terms", "records", "restarts"), [(3, 2, 0), (2, 4, 1)])
def test_acknowledged_wal_is_in_every_later_primary(
    terms: int, records: int, restarts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(terms, records, restarts)
    with capsys.disabled():
        print("\npromise model:", outcome.report(f"N=3, k=2, T={terms}, {records} WAL records, R={restarts} restarts"))
    assert not outcome.violation, story(terms, records, restarts)


@pytest.mark.parametrize(
    ("broken", "terms", "records", "restarts"),
    [
        ("promise_stops_wal", 2, 2, 0),
        ("promise_is_durable", 2, 2, 1),
        ("old_epochs_refused", 2, 2, 0),
        ("check_divergence", 2, 2, 0),
    ],
)
def test_every_rule_is_needed(broken: str, terms: int, records: int, restarts: int) -> None:
    outcome = run(terms, records, restarts, replace(Rules(), **{broken: False}))
    assert outcome.violation, f"nothing goes wrong without {broken}"


def test_a_read_quorum_one_short_loses_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "read_quorum", lambda members, acks: members - acks)
    assert "lacks" in run(2, 2, 0).violation


def _after_one_failover() -> tuple[tuple[Host, Host, Host], Ghost]:
    standby = SUCCESSOR._replace(leads=0, committed=False, primary=0, upstream=2)
    acked = ((1, (1,)), (2, (1, 2)))
    return (LEFT_BEHIND, SUCCESSOR, standby), Ghost(acked, ((1, ()), (2, (1,))))


def test_the_longer_wal_of_an_older_epoch_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, ghost = _after_one_failover()
    assert not run_from(hosts, ghost, 3, 3).violation
    real = promotion._positions
    monkeypatch.setattr(promotion, "_positions", lambda s, g: {n: Position(0, p.lsn) for n, p in real(s, g).items()})
    assert "lacks" in run_from(hosts, ghost, 3, 3).violation


def test_inherited_wal_is_not_acknowledged_before_own_wal() -> None:
    """Figure 8 of the Raft paper, on WAL."""
    left = LEFT_BEHIND._replace(wal=(1, 1), log=(1, 2), term=2)
    standby = Host(2, (1, 2), 2, (FIRST,), (1,))
    ghost = Ghost(((1, (1,)),), ((1, ()), (2, (1,))))
    hosts = (left, SUCCESSOR._replace(leads=0, committed=False, primary=0), standby)
    assert run_from(hosts, ghost, 4, 2, replace(Rules(), own_epoch_gate=False)).violation


def test_an_epoch_that_wrote_nothing_hides_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left in the term history by a primary, it begins after the epoch that replaced it (found by this model)."""
    rules = replace(Rules(), unused_epochs_dropped=False)
    monkeypatch.setattr(positions, "divergence", _divergence_from_the_next_epoch)
    assert "is counted as" in run(3, 2, 0, rules).violation


def _divergence_from_the_next_epoch(
    ancestry: positions.Ancestry, history: positions.Ancestry, lsn: int
) -> Attach | Diverged:
    mine = [e for e in history if e.start_lsn < lsn][-1]
    later = ancestry[ancestry.index(mine) + 1 :] if mine in ancestry else ()
    gone = mine not in ancestry or (later and lsn > later[0].start_lsn)
    return Diverged(0, 0, "") if gone else Attach(ancestry)
