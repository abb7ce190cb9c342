"""The layer above Raft: promises, read quorums, grants, WAL by epoch, acknowledgement by k of S, restarts, lost disks.

The decisions are those of the shipped `promotion.decide`, `positions.position_of`, `positions.divergence`,
`cluster.apply`, `changes.next_change` and `changes.admit`; around them an abstract Raft (a leader needs a majority with
no newer log, and appends an entry of its own), disks and Postgres. There is no clock: a deposed leader or primary may
act at any later time. Changes of the sync group are in `groupworld.py`.

A leader's notes are kept with those who made the promise or gave the acknowledgement, so that no host contains the name
of another: states are sorted, and all that differ in names only are one. (A world whose log names nodes is not sorted.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from consensus import positions
from consensus.changes import turned_back
from consensus.cluster import ClusterState, SyncGroup, apply, canonical, seat_of
from consensus.membership import VOTER, WITNESS, Member
from consensus.messages import Entry
from consensus.positions import Attach, NoPosition
from consensus.promotion import LAST_PRIMARY_GRACE_MS, Decision, Situation, TakeGrant, TurnBack, decide
from consensus.quorum import has_majority
from consensus.record import EpochStart, Position
from tests.model.explore import Interner, Label, Move, State, ViolationError
from tests.model.promisevalues import (
    CLONES,
    FIRST_TIMELINE,
    NAMES,
    RESTARTS,
    STORIES,
    Ghost,
    Host,
    Item,
    Lingering,
    Log,
    Reply,
    Setup,
    View,
    Wal,
    forgotten,
    newness,
)


class PromiseWorld:
    """Node a is primary of term 1 and open."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.n = setup, setup.nodes
        self.named = bool(setup.changes or setup.wipes or setup.data < setup.nodes or setup.seated or setup.wish)
        """Hosts are not interchangeable."""
        self.names = NAMES[: self.n]
        self.hosts: Interner[Host] = Interner()
        self.ghosts: Interner[Ghost] = Interner()
        self.budgets: Interner[tuple[int, ...]] = Interner()
        self.rules: Interner[SyncGroup] = Interner()
        self.labels: Interner[tuple[object, ...]] = Interner()
        self.states: dict[Log, ClusterState] = {}
        self.decisions: dict[tuple[object, ...], Decision] = {}
        self.kept: dict[tuple[int, tuple[int, ...]], int] = {}
        self.founded = self._founded()
        self.rules(self.founded.group)
        self.seats = [self.rules.values[0].k]

    def _founded(self) -> ClusterState:
        setup = self.setup
        members = tuple(
            Member(name, 1, "", "", "", *((VOTER, VOTER) if at < setup.data else (WITNESS, WITNESS)))
            for at, name in enumerate(self.names)
        )
        seats = tuple(seat_of(m) for m in members[: setup.seated or setup.data])
        return ClusterState(
            "00", members, group=SyncGroup(seats, setup.k), founder="a", system_identifier="1", initial_timeline=1,
        )  # fmt: skip

    def start(self) -> State:
        log: Log = (Item(1, "promoted/1"), Item(1, "opened/1"))
        if self.setup.wish:
            wish = {"kind": "switchover", "to": self.setup.wish, "accept_data_loss": False, "after": 1}
            log = (*log, Item(1, "wish/1", canonical(wish)))
        first = EpochStart(1, 0, FIRST_TIMELINE)
        host = Host(1, log, 1, (first,), (1,))
        hosts = [host._replace(upstream=1) for _ in range(self.setup.data)]
        hosts += [Host(1, log, 1, (), ()) for _ in range(self.n - self.setup.data)]
        hosts[0] = host._replace(leads=1, committed=len(log), primary=1, reigned=0 if self.named else 1)
        ghost = Ghost(((1, (1,)),), ((1, FIRST_TIMELINE, ()),))
        budget = (self.setup.restarts, self.setup.changes, self.setup.wipes, self.setup.clones)
        return (*(self.hosts(h) for h in hosts), self.ghosts(ghost), self.budgets(budget))

    def canon(self, state: State) -> State:
        return state if self.named else (*sorted(state[: self.n]), *state[self.n :])

    def inspect(self, state: State) -> None:
        """Overridden by runs that check more."""

    # -- the code under test -------------------------------------------------------------------------------------

    def cluster(self, log: Log) -> ClusterState:
        known = self.states.get(log)
        if known is None:
            known = self.states[log] = self.applied(log) if log else self.founded
        return known

    def applied(self, log: Log) -> ClusterState:
        """The state after the last entry of ``log``."""
        before, (term, kind, data) = self.cluster(log[:-1]), log[-1]
        if kind == "promoted/1":
            node, _, upper = data.partition(" ")
            bound = [int(x) for x in (upper or "0,0").split(",")]
            body = {"term": term, "node": node or "a", "upper": bound, "reason": ""}
            data = canonical(body | {"timeline": before.next_timeline()})
        elif kind == "opened/1":
            data = canonical({"term": term})
        return apply(before, Entry(len(log), term, kind, data))

    def decision(
        self, me: int, term: int, log: Log, answers: dict[str, Position | NoPosition], last: str = ""
    ) -> Decision:
        """``last``: the primary of the newest grant, if the log does not name it."""
        key = (me, term, log, tuple(answers.items()), last)
        known = self.decisions.get(key)
        if known is None:
            state = self.cluster(log)
            if not self.named and state.grant is not None:
                state = replace(state, grants=(*state.grants[:-1], state.grant._replace(node=last)))
            situation = Situation(self.names[me], term, state, answers, frozenset(answers), LAST_PRIMARY_GRACE_MS)
            known = self.decisions[key] = decide(situation)
        return known

    def last_primary(self, hosts: list[Host], log: Log) -> str:
        grant = self.cluster(log).grant
        if self.named or grant is None:
            return ""
        return next((n for n, h in zip(self.names, hosts, strict=True) if h.reigned == grant.term), "")

    def position(self, host: Host) -> Position | None:
        """What a host that is frozen says of itself."""
        if host.reading:
            return None
        newest = next((e.timeline for e in host.history if e.epoch == host.wal[-1]), 0) if host.wal else 0
        answer = positions.position_of(host.history, len(host.wal), newest, host.proof)
        return answer if isinstance(answer, Position) else None

    # -- successors ----------------------------------------------------------------------------------------------

    def view(self, state: State) -> View:
        ids = state[: self.n]
        return View([self.hosts.values[n] for n in ids], ids, state[self.n], state[self.n + 1])

    def successors(self, state: State) -> Iterator[Move]:
        view = self.view(state)
        left = self.budgets.values[view.budget]
        for i, host in enumerate(view.hosts):
            yield from self._elections(view, i)
            if host.leads:
                yield from self.leading(view, i)
            if host.primary:
                yield from self.reigning(view, i)
                if host.leads != host.primary:
                    yield self.to(view, ("fenced", i), {i: host._replace(primary=0, rule=0, proving=0)})
            if host.reading:
                yield self.to(view, ("reads", i), {i: host._replace(reading=False)})
            if left[RESTARTS]:
                again = self.restarted(host)
                yield self.to(view, ("restarts", i), {i: again}, spent=RESTARTS)
            if left[CLONES] and host.wal and not host.primary:
                empty = self.detached(host)._replace(history=(), wal=(), reading=False)
                yield self.to(view, ("data lost", i), {i: empty}, spent=CLONES)

    def to(
        self, view: View, label: tuple[object, ...], changed: dict[int, Host], *, ghost: int = -1, spent: int = -1
    ) -> Move:
        hosts = [changed.get(i, host) for i, host in enumerate(view.hosts)]
        alive = (*[h.leads for h in hosts], *[h.primary for h in hosts])
        new = [self._kept(self.hosts(changed[i]) if i in changed else known, alive) for i, known in enumerate(view.ids)]
        budget = view.budget
        if spent >= 0:
            left = list(self.budgets.values[budget])
            left[spent] -= 1
            budget = self.budgets(tuple(left))
        return Move((self.labels(label),), (*new, view.ghost if ghost < 0 else ghost, budget))

    def _kept(self, host: int, alive: tuple[int, ...]) -> int:
        """What is left of a host when the leaders and primaries are those of ``alive``."""
        known = self.kept.get((host, alive))
        if known is None:
            new = forgotten(self.hosts.values[host], set(alive[: self.n]), set(alive[self.n :]))
            known = self.kept[host, alive] = self.hosts(new)
        return known

    # -- Raft, in the abstract -----------------------------------------------------------------------------------

    def _voters(self, view: View, log: Log) -> tuple[list[int], list[str]]:
        """Who is there of the voters that ``log`` knows; and all their names."""
        voters = [m for m in self.cluster(log).members if m.votes]
        slots = [self.names.index(m.name) for m in voters]
        here = [s for s, m in zip(slots, voters, strict=True) if view.hosts[s].incarnation == m.incarnation]
        return here, [m.name for m in voters]

    def _elections(self, view: View, i: int) -> Iterator[Move]:
        me = view.hosts[i]
        term = max(h.term for h in view.hosts) + 1
        if term > self.setup.terms or not me.log:
            return
        here, names = self._voters(view, me.log)
        if i not in here:
            return
        willing = [j for j in here if j != i and newness(view.hosts[j].log) <= newness(me.log)]
        needed = next(n for n in range(len(names) + 1) if has_majority(names[:n], names)) - 1
        for others in combinations(willing, needed):
            changed = {j: view.hosts[j]._replace(term=term, leads=0, committed=0, proving=0) for j in others}
            log = (*me.log, Item(term, "noop/1"))
            changed[i] = me._replace(term=term, leads=term, committed=0, log=log, proving=0)
            yield self.to(view, ("elected", i, term, *others), changed)

    def leading(self, view: View, i: int) -> Iterator[Move]:
        me = view.hosts[i]
        for j, other in enumerate(view.hosts):
            if j != i and other.term <= me.leads and self.knows(me, j, other):
                yield from self._replication(view, i, j)
        granted = any(item.kind == "promoted/1" and item.term == me.leads for item in me.log)
        if not granted and me.committed:
            for j, other in enumerate(view.hosts):
                heard = any(term == me.leads for term, _ in other.vows)
                if other.term <= me.leads and not heard and self.knows(me, j, other):
                    yield self._promise(view, i, j)
            answers = self.answers(view, me)
            if answers:
                yield from self._deciding(view, i, answers)
        if self.may_promote(me) and not me.primary:
            yield self._promotion(view, i)

    def _deciding(self, view: View, i: int, answers: dict[str, Position | NoPosition]) -> Iterator[Move]:
        me = view.hosts[i]
        decision = self.decision(i, me.leads, me.log, answers, self.last_primary(view.hosts, me.log))
        if isinstance(decision, TakeGrant):
            node, upper = self.names[i] if self.named else "", decision.upper
            item = Item(me.leads, "promoted/1", f"{node} {upper.epoch},{upper.lsn}")
            yield self.to(view, ("grant", i), {i: me._replace(log=(*me.log, item))})
        elif isinstance(decision, TurnBack):
            item = Item(me.leads, "change/1", canonical(turned_back(decision.change, "", "").body))
            yield self.to(view, ("turns back", i), {i: me._replace(log=(*me.log, item))})

    def knows(self, me: Host, j: int, other: Host) -> bool:
        """The envelope's check: is that node the member of this name, as far as the log is applied?"""
        if not self.setup.wipes:
            return True
        member = self.cluster(me.log[: max(me.applied, me.committed)]).member(self.names[j])
        return member is not None and member.incarnation == other.incarnation

    def _replication(self, view: View, i: int, j: int) -> Iterator[Move]:
        me, other = view.hosts[i], view.hosts[j]
        if other.log != me.log or other.term < me.term:
            first = me.term if other.incarnation > 1 and not other.promised else other.promised
            applied = max(other.applied, me.applied, me.committed) if self.setup.wipes else 0
            got = other._replace(
                term=me.term, log=me.log, leads=0, committed=0, proving=0, promised=first, applied=applied
            )
            yield self.to(view, ("sends", i, j), {j: got})
        elif me.committed < len(me.log) and (me.term, len(me.log)) not in other.acks:
            acks = (*(a for a in other.acks if a[0] != me.term), (me.term, len(me.log)))
            acked = other._replace(acks=tuple(sorted(acks)))
            here, names = self._voters(view, me.log)
            have = [self.names[s] for s in here if s in (i, j) or (me.term, len(me.log)) in view.hosts[s].acks]
            done = {i: me._replace(committed=len(me.log))} if has_majority(have, names) else {}
            yield self.to(view, ("acknowledges", j, i, len(done)), {j: acked, **done})

    # -- the way to a primary ------------------------------------------------------------------------------------

    def _promise(self, view: View, i: int, j: int) -> Move:
        term = view.hosts[i].leads
        frozen = self.frozen(view.hosts[j], term)
        position = self.position(frozen)
        promised = term if position is not None else frozen.promised
        vows = tuple(sorted((*frozen.vows, (term, position)), key=lambda vow: vow[0]))
        leads, committed = (term, frozen.committed) if i == j else (0, 0)
        promised_host = frozen._replace(
            term=term, leads=leads, committed=committed, promised=promised, vows=vows, proving=0
        )
        return self.to(view, ("promises", j, i, position), {j: promised_host})

    def frozen(self, host: Host, term: int) -> Host:
        """Nothing is writable, and nothing comes in under an older grant."""
        return self.detached(host)._replace(primary=0)

    def detached(self, host: Host) -> Host:
        """Its WAL receiver has gone; the walsender of the other end may not know yet."""
        if not host.upstream:
            return host
        left = (*host.left, Lingering(host.upstream, len(host.wal), host.rule)) if self.lingers() else host.left
        return host._replace(upstream=0, left=tuple(sorted(set(left))), rule=0)

    def lingers(self) -> bool:
        """Does it matter what is left of a standby that has gone? Only if two have to answer, or rules change."""
        return self.setup.k > 2 or bool(self.setup.changes or self.setup.wipes)

    def answers(self, view: View, me: Host) -> dict[str, Position | NoPosition]:
        found: dict[str, Position | NoPosition] = {}
        for j, host in enumerate(view.hosts):
            for term, position in host.vows:
                if term == me.leads and self.knows(me, j, host):
                    found[self.names[j]] = position or NoPosition("")
        return found

    def may_promote(self, me: Host) -> bool:
        """`Node.granted`: leader of the term of its own committed grant, promised to nothing newer; and with data."""
        granted = any(i.kind == "promoted/1" and i.term == me.leads for i in me.log[: me.committed])
        return bool(me.leads and me.history) and granted and me.promised <= me.leads

    def _promotion(self, view: View, i: int) -> Move:
        me = view.hosts[i]
        term = me.leads
        timeline = next(g.timeline for g in self.cluster(me.log).grants if g.term == term)
        history = (*self.past(me), EpochStart(term, len(me.wal), timeline))
        rule = self.rules(self.cluster(me.log[: me.committed]).wanted_group)
        now = me._replace(
            primary=term, upstream=0, history=history, rule=rule, defined=True, proving=0,
            reigned=0 if self.named else term,
        )  # fmt: skip
        label = ("promotes", i, term, me.wal)
        return self.to(view, label, {i: now}, ghost=self._started(view.ghost, term, timeline, me.wal, label))

    def past(self, me: Host) -> tuple[EpochStart, ...]:
        """An epoch of which it holds no byte is not part of its past."""
        return tuple(e for e in me.history if e.start_lsn < len(me.wal))

    def _started(self, ghost: int, term: int, timeline: int, wal: Wal, label: tuple[object, ...]) -> int:
        known = self.ghosts.values[ghost]
        for epoch, acked in known.acked:
            if epoch < term and wal[: len(acked)] != acked:
                text = f"acknowledged WAL: the primary of epoch {term} lacks {acked}, acknowledged under epoch {epoch}"
                raise ViolationError(text, (self.labels(label),))
        for epoch, number, before in known.started:
            if epoch == term and before != wal:
                text = f"one primary per term: {term} starts from {before} and {wal}"
                raise ViolationError(text, (self.labels(label),))
            if epoch != term and number == timeline:
                text = f"one timeline per term: {timeline} is that of epoch {epoch} and of {term}"
                raise ViolationError(text, (self.labels(label),))
        return self.ghosts(known._replace(started=tuple(sorted({*known.started, (term, timeline, wal)}))))

    # -- Postgres ------------------------------------------------------------------------------------------------

    def reigning(self, view: View, p: int) -> Iterator[Move]:
        me = view.hosts[p]
        if len(me.wal) < self.setup.records:
            grown = me._replace(wal=(*me.wal, me.primary))
            yield self.acknowledged(view, ("writes", p, me.primary), {p: grown}, Reply(p))
        for j, other in enumerate(view.hosts):
            if j != p and not other.primary and not other.reading and self.has_postgres(j):
                yield from self._following(view, p, j)

    def has_postgres(self, j: int) -> bool:
        return j < self.setup.data

    def _following(self, view: View, p: int, j: int) -> Iterator[Move]:
        primary, me = view.hosts[p], view.hosts[j]
        epoch = primary.primary
        if me.upstream == epoch:
            if len(me.wal) < len(primary.wal):
                grown = me._replace(wal=(*me.wal, primary.wal[len(me.wal)]))
                yield self.acknowledged(view, ("flushes", j, p, grown.wal), {j: grown}, Reply(p, j))
        elif self.may_attach(me, epoch):
            attached = self.attached(self.detached(me), primary)
            yield self.acknowledged(view, ("attaches", j, p, attached.wal), {j: attached}, Reply(p, j))

    def may_attach(self, me: Host, epoch: int) -> bool:
        """Only to the primary of the newest grant it knows, and to none older than what it has promised."""
        grants = [item.term for item in me.log if item.kind == "promoted/1"]
        return bool(grants) and grants[-1] == epoch and me.promised <= epoch and not me.leads

    def attached(self, me: Host, primary: Host) -> Host:
        """Follow at once, or after a rewind to where the histories part; one without data has cloned."""
        wal, proof = me.wal, me.proof
        if not me.history:
            wal, proof = (), Position(primary.primary, len(primary.wal))
        elif not self.follows(primary, me):
            pairs = zip(wal, primary.wal, strict=False)
            wal = wal[: next((n for n, (x, y) in enumerate(pairs) if x != y), min(len(wal), len(primary.wal)))]
        return me._replace(
            wal=wal, history=primary.history, upstream=primary.primary, rule=primary.rule, proof=proof, reigned=0
        )

    def follows(self, primary: Host, me: Host) -> bool:
        return isinstance(positions.divergence(primary.history, me.history, len(me.wal)), Attach)

    def acknowledged(self, view: View, label: tuple[object, ...], changed: dict[int, Host], reply: Reply) -> Move:
        """What the primary tells its clients now: by the rule that this walsender knows or, if nobody has to answer, by
        its own."""
        hosts = [changed.get(i, host) for i, host in enumerate(view.hosts)]
        epoch = hosts[reply.primary].primary
        done = self.released(hosts, reply, label)
        ghost = view.ghost
        if done and (done[-1] == epoch or not self.gate()):
            ghost = self._acked(ghost, epoch, done, label)
        return self.to(view, label, changed, ghost=ghost)

    def gate(self) -> bool:
        """Nobody is let in, and sees nothing, before a record of the primary's own epoch is safe."""
        return True

    def released(self, hosts: list[Host], reply: Reply, label: tuple[object, ...]) -> Wal:
        """How much of its WAL Postgres takes for committed. It compares LSNs and nothing else."""
        primary, by = hosts[reply.primary], reply.by
        if self.rules.values[primary.rule].k == 1 or not primary.defined:
            return primary.wal
        if by < 0:
            return ()
        group = self.rules.values[hosts[by].rule if reply.rule < 0 else reply.rule]
        if self.named and self.names[by] not in group.names:
            return ()
        reached = []
        for j, host in enumerate(hosts):
            if j != reply.primary and (not self.named or self.names[j] in group.names):
                reached.append(self._heard(primary, host, label))
        reached.sort(reverse=True)
        enough = reached[group.k - 2] if len(reached) >= group.k - 1 else 0
        return primary.wal[:enough]

    def _heard(self, primary: Host, host: Host, label: tuple[object, ...]) -> int:
        """How far a standby has flushed, as its walsenders know."""
        lengths = [left.flushed for left in host.left if left.epoch == primary.primary]
        if host.upstream == primary.primary:
            counted = primary.wal[: len(host.wal)]
            if host.wal[: len(primary.wal)] != counted:
                raise ViolationError(f"followed: {host.wal} is counted as {counted}", (self.labels(label),))
            lengths.append(len(host.wal))
        return max(lengths, default=0)

    def _acked(self, ghost: int, epoch: int, done: Wal, label: tuple[object, ...]) -> int:
        known = self.ghosts.values[ghost]
        acked = dict(known.acked)
        if len(acked.get(epoch, ())) >= len(done):
            return ghost
        for later, _, started in known.started:
            if later > epoch and started[: len(done)] != done:
                raise ViolationError(
                    f"acknowledged WAL: {done} is acknowledged under epoch {epoch}, "
                    f"but the primary of epoch {later} started from {started}",
                    (self.labels(label),),
                )
        acked[epoch] = done
        return self.ghosts(known._replace(acked=tuple(sorted(acked.items()))))

    def restarted(self, host: Host) -> Host:
        """Postgres starts as a standby without upstream; the leader's notes are gone."""
        gone = self.detached(host)
        return gone._replace(
            leads=0, committed=0, primary=0, rule=0, defined=True, proving=0, reading=self.setup.reads
        )

    # -- the story -----------------------------------------------------------------------------------------------

    def tell(self, label: Label) -> str:
        what, *who = self.labels.values[label[0]]
        names = [self.names[n] if isinstance(n, int) and n < self.n else str(n) for n in who]
        return STORIES[str(what)].format(*names, raw=who)
