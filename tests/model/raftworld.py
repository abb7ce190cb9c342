"""Real Raft cores, their disks and a small network, as states for `explore`.

The network is a rendezvous (research/raft.md 3.3): what a node sets off of itself (a campaign, a heartbeat, ...)
reaches one peer; the two answer each other until a message is lost or nothing is left to say; the rest is lost. A
candidate's request may reach each of the others at any later time while it still is one. K messages (one at a time)
may be set aside and arrive at any later time, after newer ones too. A restart keeps what `Ready` told the host to
persist and nothing else, so a crash between save and send is a restart with the messages of that step never delivered.
A node that is wiped comes back with an empty disk and another incarnation. Time stands still: promises never bind,
safety must not need them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator

from consensus.addressbook import AddressBook
from consensus.addressbook import Entry as Address
from consensus.cluster import canonical
from consensus.membership import LEARNER, MEMBERS, VOTER, Member
from consensus.messages import PreVoteReq, RaftMessage, VoteReq
from consensus.raft import (
    Beat,
    Campaign,
    Compact,
    Event,
    Log,
    Propose,
    Raft,
    RaftConfig,
    Ready,
    Received,
    Release,
    Role,
)
from tests.model.explore import Interner, Label, Move, State, ViolationError, reorderings
from tests.model.raftchecks import (
    Ghost,
    check_log,
    check_log_matching,
    check_membership,
    checked_ghost,
    checked_step,
)
from tests.model.raftlogs import GRANT, commands, dumped, rows_of
from tests.model.raftnames import Names, renamed_data, renamed_log, renamed_message, renamed_raft, signature
from tests.model.raftvalues import (
    CHANGES,
    COMPACTIONS,
    DELAYS,
    PROPOSALS,
    RELEASES,
    RESTARTS,
    WIPES,
    Batch,
    Caches,
    Disk,
    Local,
    Setup,
    Step,
    member_list,
    short,
)


class RaftWorld:
    """``core`` is the shipped Raft or a mutant of it. State: a local per slot, the message set aside, ghost, budget."""

    now = 0
    """Of every node, always: whatever is timed is kept relative to it."""

    def __init__(self, setup: Setup, core: type[Raft] = Raft) -> None:
        self.setup, self.bound, self.core = setup, setup.bound, core
        self.names = (*setup.founders, *setup.extra)
        self.n = n = len(self.names)
        self.delayed, self.ghost, self.budget = n, n + 1, n + 2
        self.slot = {name: at for at, name in enumerate(self.names)}
        self.locals: Interner[Local] = Interner()
        self.rafts: list[Raft] = []
        self.signatures: list[int] = []
        self.books: list[dict[str, int]] = []
        self.shapes: Interner[tuple[object, ...]] = Interner()
        self.batches: Interner[Batch] = Interner()
        self.batches(Batch(0, 0, 0, ()))  # 0: none
        self.ghosts: Interner[Ghost] = Interner()
        self.budgets: Interner[tuple[int, ...]] = Interner()
        self.labels: Interner[tuple[object, ...]] = Interner()
        self.orders: Interner[tuple[int, ...]] = Interner()
        self.cache = Caches()
        self.counts_incarnations = bool(self.bound.changes or self.bound.wipes)
        self.classes = tuple(c for c in (tuple(range(len(setup.founders))), tuple(range(len(setup.founders), n))) if c)

    # -- the code under test -------------------------------------------------------------------------------------

    def start(self) -> State:
        nodes = [self.started(i, 1, Disk(), fresh=True) for i in range(self.n)]
        ghost = self.ghosts(Ghost((-1,) * (self.bound.terms + 1)))
        state = (*nodes, 0, ghost, self.budgets(tuple(self.bound)[1:]))
        return self.settle(state, 0) if self.setup.settled else state

    def settle(self, state: State, i: int) -> State:
        """Node i campaigns, and everything that is said arrives; as one would on a quiet day."""
        label = self.labels(("campaign", i))
        state = self._say(state, i, self.stepped(state[i], (Campaign(),), label), label)
        beat = self.labels(("beat", i))
        return self._say(state, i, self.stepped(state[i], (Beat(),), beat), beat)

    def _say(
        self, state: State, i: int, first: Step, label: int, deaf: tuple[int, ...] = (), *, once: bool = False
    ) -> State:
        """Node i takes a step; then every message of everybody arrives in order, but to the ``deaf``; or (``once``)
        only what this step says and the answers to it."""
        queue = deque([(i, first, label)])
        while queue:
            src, step, why = queue.popleft()
            after = self._stepped_to(state, src, why, step, state[self.budget])
            assert after is not None, "a quiet day needs one term"
            state = after
            for dst, batch in step.out:
                if dst in deaf or (once and src == i and step is not first):
                    continue
                answer, delivery = self._deliver(src, dst, state[dst], batch)
                queue.append((dst, answer, delivery))
                state = (*state[:dst], answer.local, *state[dst + 1 :])
        return state

    def config(self, i: int, incarnation: int) -> RaftConfig:
        """As `process._raft_config`: one that was let in later is not the founding member whose name it has."""
        me = self.names[i]
        voters = tuple(v for v in self.setup.founders if v != me or incarnation == 1)
        return RaftConfig(me, voters, pre_vote=self.setup.pre_vote)

    def started(self, i: int, incarnation: int, disk: Disk, *, fresh: bool = False) -> int:
        config = self.config(i, incarnation)
        raft = self.core(config, disk.hard, disk.log, boot=1, seed=1, now_ns=self.now, fresh=fresh)
        return self.local(i, incarnation, raft, disk)

    def key(self, raft: Raft) -> tuple[object, ...]:
        return raft.key()

    def local(
        self, i: int, incarnation: int, raft: Raft, disk: Disk, *, older: Disk | None = None, beside: Hashable = ()
    ) -> int:
        known = self.locals(Local(i, incarnation, self.key(raft), disk, older, beside))
        if known == len(self.rafts):
            self.rafts.append(raft)
            self.signatures.append(self.shapes(signature(raft, incarnation)))
            self.books.append(self._incarnations(raft))
            check_log(raft)
            check_membership(raft)
        return known

    def _incarnations(self, raft: Raft) -> dict[str, int]:
        """Of the members as this node has applied them."""
        rows = rows_of(raft.log, raft.commit)
        return {m.name: m.incarnation for m in rows} if rows else dict.fromkeys(self.setup.founders, 1)

    def carried_out(self, disk: Disk, raft: Raft, ready: Ready) -> Disk:
        """What a host would have on disk now. It must be what the core believes, or a restart would differ."""
        entries = disk.log.entries
        if ready.truncate_from is not None:
            entries = tuple(e for e in entries if e.index < ready.truncate_from)
        entries += ready.entries
        snapshot = ready.snapshot or disk.log.snapshot
        hard = ready.hard or disk.hard
        if any(e.kind == GRANT for e in ready.committed):
            hard = raft.hard_state  # consensus/node.py: a grant is on disk as committed before anybody acts on it
        new = Disk(hard, Log(snapshot, tuple(e for e in entries if e.index > snapshot.index)))
        if new.log != raft.log or new.hard._replace(commit=0) != raft.hard_state._replace(commit=0):
            raise ViolationError(
                f"the disk of {raft.config.me} would hold {new}, the core believes {raft.log} {raft.hard_state}"
            )
        return new

    def step(self, local: int, events: tuple[Event, ...]) -> Step:
        before = self.locals.values[local]
        raft, disk = self.woken(self.rafts[local].clone()), before.disk
        out: dict[int, list[RaftMessage]] = {}
        for event in events:
            ready = raft.step(event, self.now)
            disk = self.carried_out(disk, raft, ready)
            for name, message in (*ready.now, *ready.after):
                out.setdefault(self.slot[name], []).append(message)
        checked_step(self.rafts[local], raft)
        check_membership(raft)  # here: what is derived from the log is not in the key
        after = self.local(before.slot, before.incarnation, raft, disk, beside=self.beside(before, raft))
        return Step(after, tuple((dst, self._enveloped(after, dst, tuple(m))) for dst, m in out.items()))

    def woken(self, raft: Raft) -> Raft:
        """As it is when a step begins."""
        return raft

    def beside(self, before: Local, raft: Raft) -> Hashable:
        """What is beside the core after a step of it."""
        return before.beside

    def _enveloped(self, local: int, dst: int, messages: tuple[RaftMessage, ...]) -> int:
        if not self.counts_incarnations:
            return self.batches(Batch(1, 1, 0, messages))
        src_incarnation = self.locals.values[local].incarnation
        known = self.books[local].get(self.names[dst], 0)
        return self.batches(Batch(src_incarnation, known, self.rafts[local].commit, messages))

    def restarted(self, local: int) -> list[int]:
        """What a node may be after a crash and a start."""
        slot, incarnation, _, disk, *_ = self.locals.values[local]
        return [self.started(slot, incarnation, disk)]

    def resumed(self, local: int) -> int:
        slot, incarnation, _, disk, *_ = self.locals.values[local]
        raft = self.rafts[self.started(slot, incarnation, disk)].clone()
        raft.resume()
        return self.local(slot, incarnation, raft, disk)

    def may_resume(self, local: int) -> bool:
        """As the host decides: the disk shows this node's own grant of the newest term as committed, and no release."""
        slot, _, _, (hard, log), *_ = self.locals.values[local]
        name = self.names[slot]
        if hard.vote != name or hard.released >= hard.term:
            return False
        grants = (e for e in log.between(1, hard.commit) if e.kind == GRANT and e.term == hard.term)
        return any(f'"{name}"' in e.data for e in grants)

    # -- successors ----------------------------------------------------------------------------------------------

    def successors(self, state: State) -> Iterator[Move]:
        for i in range(self.n):
            for label, step, budget in self._own_moves(i, state):
                yield from self._exchange(state, i, label, step, budget)
        if state[self.delayed]:
            batch, pair = divmod(state[self.delayed], self.n * self.n)
            src, dst = divmod(pair, self.n)
            freed = (*state[: self.delayed], 0, *state[self.delayed + 1 :])
            step, label = self._deliver(src, dst, state[dst], batch)
            yield from self._exchange(freed, dst, label, step, state[self.budget])

    def inspect(self, state: State) -> None:
        """Overridden by runs that check more."""

    def _exchange(self, state: State, i: int, label: int, first: Step, budget: int) -> Iterator[Move]:
        """Node i takes a step; then with each of the others in turn, a conversation cut off after any message."""
        begun = self._stepped_to(state, i, label, first, budget)
        if begun is None:
            return
        yield Move((label,), begun)
        may_delay = self.budgets.values[begun[self.budget]][DELAYS] and not begun[self.delayed]
        for peer, first_batch in first.out:
            now, src, dst, batch = begun, i, peer, first_batch
            story: Label = (label,)
            said: set[tuple[State, int, int]] = set()
            while batch:
                if may_delay:
                    pair = batch * self.n * self.n + src * self.n + dst
                    spent = self._spent(now[self.budget], DELAYS)
                    aside = (*now[: self.delayed], pair, now[self.ghost], spent)
                    yield Move((*story, self.labels(("delay", src, dst, batch))), aside)
                try:
                    step, delivery = self._deliver(src, dst, now[dst], batch)
                    new = self._stepped_to(now, dst, delivery, step, now[self.budget])
                except ViolationError as error:
                    raise ViolationError(error.text, (*story, *error.label)) from None
                if new is None or (new == now and not step.out):
                    break
                story = (*story, delivery)
                if (new, src, batch) in said:
                    raise ViolationError("endless talk: the same words lead to the same state for ever", story)
                said.add((new, src, batch))
                yield Move(story, new)
                now, batch = new, dict(step.out).get(src, 0)
                src, dst = dst, src

    def _deliver(self, src: int, dst: int, local: int, batch: int) -> tuple[Step, int]:
        label = self.labels(("deliver", src, dst, batch))
        known = self.cache.steps.get((local, label))
        if known is None:
            sent = self.batches.values[batch]
            heard = [m for m in sent.messages if self.lets_in(local, src, sent, m)]
            events = tuple(Received(self.names[src], m) for m in heard)
            known = self.cache.steps[local, label] = self.stepped(local, events, label) if heard else Step(local, ())
        return known, label

    def lets_in(self, local: int, src: int, sent: Batch, message: RaftMessage) -> bool:
        """The envelope's check of consensus/process.py. Whoever knows more than the other has introduced itself."""
        if not self.counts_incarnations:
            return True
        mine, applied = self.locals.values[local].incarnation, self.rafts[local].commit
        if sent.dst_incarnation not in (0, mine) and applied <= sent.applied:
            return False
        book = AddressBook()
        book.list_members((Member(n, i, "", "", "") for n, i in self.books[local].items()), applied)
        book.introduce(self.names[src], Address(sent.src_incarnation, "", sent.applied), applied)
        return not book.problem(self.names[src], sent.src_incarnation, message)

    def stepped(self, local: int, events: tuple[Event, ...], label: int) -> Step:
        try:
            return self.step(local, events)
        except ViolationError as error:
            raise ViolationError(error.text, (label,)) from None
        except AssertionError as error:
            raise ViolationError(f"the core itself refuses: {error}", (label,)) from error

    def _spent(self, budget: int, which: int) -> int:
        left = self.budgets.values[budget]
        return self.budgets((*left[:which], left[which] - 1, *left[which + 1 :]))

    def _own_moves(self, i: int, state: State) -> list[tuple[int, Step, int]]:
        """What node i may do of itself. Cached: it depends on its own state, the budget and who lost a disk."""
        local, budget = state[i], state[self.budget]
        lost = tuple(self.locals.values[state[j]].incarnation for j in range(self.n)) if self.bound.wipes else ()
        known = self.cache.moves.get((local, budget, lost))
        if known is None:
            known = self.cache.moves[local, budget, lost] = list(self._found_moves(i, local, budget, lost))
        return known

    def _found_moves(self, i: int, local: int, budget: int, lost: tuple[int, ...]) -> Iterator[tuple[int, Step, int]]:
        raft, left = self.rafts[local], self.budgets.values[budget]

        def does(label: tuple[object, ...], event: Event, spent: int = -1) -> Iterator[tuple[int, Step, int]]:
            number = self.labels(label)
            step = self.stepped(local, (event,), number)
            if step.local != local or step.out:
                yield number, step, budget if spent < 0 else self._spent(budget, spent)

        if raft.role in (Role.CANDIDATE, Role.PRECANDIDATE):
            yield from self._late_requests(i, local, budget)
        if raft.role is not Role.LEADER and raft.term < self.bound.terms:
            yield from does(("campaign", i), Campaign())
        if raft.role is Role.LEADER:
            yield from does(("beat", i), Beat())
            if left[PROPOSALS]:
                data = canonical({"node": self.names[i], "nr": left[PROPOSALS]})
                yield from does(("propose", i), Propose(GRANT, data), PROPOSALS)
            for rows in self._reforms(raft, lost) if left[CHANGES] else ():
                what = ", ".join(f"{m.name}.{m.incarnation} {m.role}" for m in rows)
                yield from does(("members", i, what), Propose(MEMBERS, member_list(rows)), CHANGES)
            if left[RELEASES] and raft.released < raft.term:
                for name in (*self.names[:i], *self.names[i + 1 :]):
                    yield from does(("release", i, self.slot[name]), Release(name), RELEASES)
        if left[COMPACTIONS] and raft.commit > raft.log.snapshot.index:
            data = dumped(commands(raft.log)[: raft.commit])
            yield from does(("compact", i), Compact(raft.commit, data), COMPACTIONS)
        yield from self._crashes(i, local, budget)

    def _late_requests(self, i: int, local: int, budget: int) -> Iterator[tuple[int, Step, int]]:
        raft = self.rafts[local]
        request: RaftMessage = VoteReq(raft.term, raft.log.last_index, raft.log.last_term, "", 0)
        if raft.role is Role.PRECANDIDATE:
            request = PreVoteReq(raft.term + 1, raft.log.last_index, raft.log.last_term)
        for name in raft.members.voters:
            if name not in raft.votes and name != raft.config.me:
                out = ((self.slot[name], self._enveloped(local, self.slot[name], (request,))),)
                yield self.labels(("late", i, self.slot[name])), Step(local, out), budget

    def _crashes(self, i: int, local: int, budget: int) -> Iterator[tuple[int, Step, int]]:
        left = self.budgets.values[budget]
        if left[RESTARTS]:
            for again in self.restarted(local):
                yield self.labels(("restart", i)), Step(again, ()), self._spent(budget, RESTARTS)
            if self.may_resume(local):
                yield self.labels(("resume", i)), Step(self.resumed(local), ()), self._spent(budget, RESTARTS)
        incarnation = self.locals.values[local].incarnation
        if left[WIPES] and self.rafts[local].term:
            empty = self.started(i, incarnation + 1, Disk())
            yield self.labels(("wipe", i)), Step(empty, ()), self._spent(budget, WIPES)

    def _reforms(self, raft: Raft, lost: tuple[int, ...]) -> Iterator[tuple[Member, ...]]:
        """Every list of members that is one change away, of the kinds that the setup allows."""
        rows = rows_of(raft.log, raft.log.last_index) or tuple(
            Member(name, 1, "", "", "") for name in self.setup.founders
        )
        steps = self.setup.steps
        for name in self.names:
            member = next((m for m in rows if m.name == name), None)
            rest = tuple(m for m in rows if m.name != name)
            real = lost[self.slot[name]] if lost else 1
            new: list[Member] = []
            if member is None:
                new += [Member(name, real, "", "", "", LEARNER)] if "learn" in steps else []
            elif member.incarnation != real:
                new += [member._replace(incarnation=real, role=LEARNER)] if "readmit" in steps else []
            elif member.role == LEARNER:
                new += [member._replace(role=VOTER)] if "vote" in steps else []
            elif "unvote" in steps and name != raft.config.me:
                new += [member._replace(role=LEARNER)]
            for one in new:
                yield tuple(sorted((*rest, one)))
            if member is not None and name != raft.config.me and "remove" in steps and rest:
                yield rest

    def _stepped_to(self, state: State, i: int, label: int, step: Step, budget: int) -> State | None:
        """The state after it, its properties checked; None beyond the bound."""
        if self.rafts[step.local].term > self.bound.terms:
            return None
        new = list(state)
        new[i], new[self.budget] = step.local, budget
        if step.local != state[i]:
            try:
                new[self.ghost] = self._ghost_after(state[self.ghost], step.local)
                for j in range(self.n):
                    if j != i:
                        self._match(step.local, new[j])
            except ViolationError as error:
                raise ViolationError(error.text, (label,)) from None
        return tuple(new)

    def _ghost_after(self, ghost: int, local: int) -> int:
        known = self.cache.ghosts.get((ghost, local))
        if known is None:
            slot = self.locals.values[local].slot
            known = self.ghosts(checked_ghost(self.ghosts.values[ghost], slot, self.rafts[local]))
            self.cache.ghosts[ghost, local] = known
        return known

    def _match(self, left: int, right: int) -> None:
        pair = (left, right) if left < right else (right, left)
        if pair not in self.cache.matching:
            check_log_matching(self.rafts[left].log, self.rafts[right].log)
            self.cache.matching.add(pair)

    # -- symmetry ------------------------------------------------------------------------------------------------

    def canon(self, state: State) -> State:
        ranks = tuple([self.signatures[local] for local in state[: self.n]])
        orders = self.cache.orders.get(ranks)
        if orders is None:
            orders = tuple(self.orders(o) for o in reorderings(ranks, self.classes))
            self.cache.orders[ranks] = orders
        if len(orders) == 1:
            return self.reordered(state, orders[0])
        return min([self.reordered(state, order) for order in orders])

    def reordered(self, state: State, order: int) -> State:
        """The same state with the node of slot s called as that of slot order[s]."""
        to = self.orders.values[order]
        if to == tuple(range(self.n)):
            return state
        new = list(state)
        for slot, local in enumerate(state[: self.n]):
            new[to[slot]] = self._renamed(local, order)
        if state[self.delayed]:
            batch, pair = divmod(state[self.delayed], self.n * self.n)
            src, dst = divmod(pair, self.n)
            new[self.delayed] = self._renamed(-1 - batch, order) * self.n * self.n + to[src] * self.n + to[dst]
        new[self.ghost] = self._renamed(-(1 << 40) - state[self.ghost], order)
        return tuple(new)

    def _renamed(self, value: int, order: int) -> int:
        """Of a local; of a batch (as -1 - it); of a ghost (further down)."""
        known = self.cache.renamed.get((value, order))
        if known is not None:
            return known
        to = self.orders.values[order]
        names = tuple((old, self.names[to[slot]]) for slot, old in enumerate(self.names))
        if value >= 0:
            known = self._renamed_local(self.locals.values[value], self.rafts[value], to, names)
        elif value > -(1 << 40):
            batch = self.batches.values[-1 - value]
            known = self.batches(batch._replace(messages=tuple(renamed_message(m, names) for m in batch.messages)))
        else:
            known = self.ghosts(self._renamed_ghost(self.ghosts.values[-(1 << 40) - value], to, names))
        self.cache.renamed[value, order] = known
        return known

    def _renamed_local(self, local: Local, raft: Raft, to: tuple[int, ...], names: Names) -> int:
        slot = to[local.slot]
        disk, older = (_renamed_disk(d, names) if d is not None else None for d in (local.disk, local.older))
        assert disk is not None
        other = renamed_raft(raft, names, self.config(slot, local.incarnation))
        return self.local(slot, local.incarnation, other, disk, older=older, beside=local.beside)

    def _renamed_ghost(self, ghost: Ghost, to: tuple[int, ...], names: Names) -> Ghost:
        leaders = tuple(to[slot] if slot >= 0 else slot for slot in ghost.leaders)
        done = tuple(((term, kind, renamed_data(data, names)), at) for (term, kind, data), at in ghost.committed)
        return Ghost(leaders, done)

    # -- the story -----------------------------------------------------------------------------------------------

    def tell(self, label: Label) -> str:
        return "\n     ".join(self._tell(part) for part in label)

    def _tell(self, label: int) -> str:
        what, *who = self.labels.values[label]
        names = [self.names[n] for n in who[:2] if isinstance(n, int)]
        match what:
            case "deliver" | "delay":
                messages = " and ".join(short(m) for m in self.batches.values[int(str(who[2]))].messages)
                verb = "arrives" if what == "deliver" else "is delayed"
                return f"{names[0]} -> {names[1]}: {messages} {verb}"
            case "release":
                return f"{names[0]} releases its lease to {names[1]}"
            case "late":
                return f"the request of {names[0]} reaches {names[1]} now"
            case "members":
                return f"{names[0]} proposes the members {who[1]}"
            case "wipe":
                return f"{names[0]} loses its disk and comes back as another incarnation"
            case _:
                return f"{names[0]}: {what}"


def _renamed_disk(disk: Disk, names: Names) -> Disk:
    vote = dict(names).get(disk.hard.vote, "")
    return Disk(disk.hard._replace(vote=vote), renamed_log(disk.log, names))
