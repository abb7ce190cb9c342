"""Three real Raft cores, their disks and a small network, as states for `explore`.

The network is a rendezvous (research/raft.md 3.3): what a node sets off of itself (a campaign, a heartbeat, ...)
reaches one peer; the two answer each other until a message is lost or nothing is left to say; the rest is lost. K
messages (one at a time) may be set aside instead and arrive at any later time, after newer ones too. A restart keeps
what `Ready` told the host to persist and nothing else, so a crash between save and send is a restart with the messages
of that step never delivered. Time stands still: promises never bind, safety must not need them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from consensus.messages import (
    AppendReq,
    AppendResp,
    HardState,
    RaftMessage,
    VoteReq,
)
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
from tests.model.explore import Interner, Move, State, ViolationError

NAMES = ("a", "b", "c")
DELAYED, GHOST, BUDGET = 3, 4, 5
GRANT = "promoted/1"

Batch = tuple[RaftMessage, ...]
Command = tuple[int, str]
"""(term, data) of an entry; its index is its place."""


class Bound(NamedTuple):
    """How far a run looks."""

    terms: int
    proposals: int = 0
    restarts: int = 0
    delays: int = 0
    releases: int = 0
    compactions: int = 0

    def __str__(self) -> str:
        return (
            f"N=3, T={self.terms}, L={self.proposals} (and each leader's own entry), R={self.restarts} restarts, "
            f"K={self.delays} delayed, {self.releases} releases, {self.compactions} compactions"
        )


class Disk(NamedTuple):
    hard: HardState = HardState()
    log: Log = Log()


class Local(NamedTuple):
    """Key of one node: everything that can influence a later step."""

    raft: tuple[object, ...]
    disk: Disk


class Ghost(NamedTuple):
    """What has ever happened, for the properties."""

    leaders: tuple[int, ...]
    """By term: the node that led it, or -1."""
    votes: tuple[tuple[str, ...], ...]
    """By node, by term."""
    committed: tuple[tuple[Command, int], ...] = ()
    """What some node held for committed, and the term in which it was first."""


@dataclass(frozen=True)
class Step:
    """What the code answered: the local state after it, and batches by destination."""

    local: int
    out: tuple[tuple[int, int], ...]


def commands(log: Log) -> tuple[Command, ...]:
    """The whole log; a snapshot's data spells out the commands it stands for."""
    old = tuple((int(t), d) for t, _, d in (part.partition(":") for part in log.snapshot.data.split(",") if part))
    return old + tuple((e.term, e.data) for e in log.entries)


class RaftWorld:
    """``core`` is the shipped Raft or a mutant of it."""

    def __init__(self, bound: Bound, core: type[Raft] = Raft, *, forget_vote: bool = False) -> None:
        self.bound, self.core, self.forget_vote = bound, core, forget_vote
        self.configs = [RaftConfig(name, NAMES, pre_vote=False) for name in NAMES]
        self.locals: Interner[tuple[int, Local]] = Interner()  # each with the node it belongs to
        self.rafts: dict[int, Raft] = {}
        self.batches: Interner[Batch] = Interner()
        self.batches(())  # 0: none
        self.ghosts: Interner[Ghost] = Interner()
        self.budgets: Interner[tuple[int, ...]] = Interner()
        self.labels: Interner[tuple[object, ...]] = Interner()
        self.steps: dict[tuple[object, ...], Step] = {}
        self.checked: dict[tuple[int, int, int], int] = {}
        self.matching: set[tuple[int, int]] = set()
        self.unused: State = ()
        self.moves: dict[tuple[int, int], list[tuple[int, Step, int]]] = {}

    # -- the code under test -------------------------------------------------------------------------------------

    def start(self) -> State:
        nodes = []
        for i in range(3):
            raft = self.core(self.configs[i], HardState(), Log(), boot=1, seed=1, now_ns=0, fresh=True)
            nodes.append(self._local(i, raft, Disk()))
        self.unused = tuple(nodes)
        none = ("",) * (self.bound.terms + 1)
        ghost = self.ghosts(Ghost((-1,) * (self.bound.terms + 1), (none, none, none)))
        budget = self.budgets(tuple(self.bound)[1:])
        return (*nodes, 0, ghost, budget)

    def _local(self, i: int, raft: Raft, disk: Disk) -> int:
        known = self.locals((i, Local(raft.key(), disk)))
        self.rafts.setdefault(known, raft)
        return known

    def _carried_out(self, disk: Disk, raft: Raft, ready: Ready) -> Disk:
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

    def _step(self, local: int, events: tuple[Event, ...]) -> Step:
        i, (_, disk) = self.locals.values[local]
        raft = self.rafts[local].clone()
        out: dict[int, list[RaftMessage]] = {}
        for event in events:
            ready = raft.step(event, 0)
            disk = self._carried_out(disk, raft, ready)
            for name, message in (*ready.now, *ready.after):
                out.setdefault(NAMES.index(name), []).append(message)
        batches = tuple((dst, self.batches(tuple(messages))) for dst, messages in out.items())
        return Step(self._local(i, raft, disk), batches)

    def restart(self, local: int, *, resume: bool) -> Step:
        key = (local, "resume" if resume else "restart")
        if key not in self.steps:
            i, (_, disk) = self.locals.values[local]
            hard = disk.hard._replace(vote="") if self.forget_vote else disk.hard
            raft = self.core(self.configs[i], hard, disk.log, boot=1, seed=1, now_ns=0, fresh=False)
            if resume:
                raft.resume()
            self.steps[key] = Step(self._local(i, raft, disk), ())
        return self.steps[key]

    def may_resume(self, local: int) -> bool:
        """As the host decides: the disk shows this node's own grant of the newest term as committed, and no release."""
        i, (_, (hard, log)) = self.locals.values[local]
        if hard.vote != NAMES[i] or hard.released >= hard.term:
            return False
        grants = (e for e in log.between(1, hard.commit) if e.kind == GRANT and e.term == hard.term)
        return any(e.data.startswith(NAMES[i]) for e in grants)

    # -- successors ----------------------------------------------------------------------------------------------

    def successors(self, state: State) -> Iterator[Move]:
        # The code only ever asks whether two names are equal, so the first node to do anything may be called a.
        for i in range(1 if state[:3] == self.unused else 3):
            for label, step, budget in self._own_moves(i, state):
                yield from self._exchange(state, i, label, step, budget)
        if state[DELAYED]:
            batch, pair = divmod(state[DELAYED], 9)
            src, dst = divmod(pair, 3)
            step, label = self._deliver(src, dst, state[dst], batch)
            freed = (*state[:DELAYED], 0, *state[DELAYED + 1 :])
            yield from self._exchange(freed, dst, label, step, state[BUDGET])

    def _exchange(self, state: State, i: int, label: int, first: Step, budget: int) -> Iterator[Move]:
        """Node i takes a step; then with each of the two others in turn, a conversation cut off after any message."""
        begun = self._stepped_to(state, i, label, first, budget)
        if begun is None:
            return
        yield Move(label, begun)
        for peer, first_batch in first.out:
            now, src, dst, batch = begun, i, peer, first_batch
            story: tuple[int, ...] = (label,)
            while batch:
                if self.budgets.values[now[BUDGET]][2] and not now[DELAYED]:
                    aside = (*now[:DELAYED], batch * 9 + src * 3 + dst, now[GHOST], self._spent(now[BUDGET], 2))
                    yield Move(self.labels(("all", *story, self.labels(("delay", src, dst, batch)))), aside)
                try:
                    step, delivery = self._deliver(src, dst, now[dst], batch)
                    new = self._stepped_to(now, dst, delivery, step, now[BUDGET])
                except ViolationError as error:
                    raise ViolationError(error.args[0], self.labels(("all", *story, error.args[1]))) from None
                if new is None or (new == now and not step.out):
                    break
                story = (*story, delivery)
                yield Move(self.labels(("all", *story)), new)
                now, batch = new, dict(step.out).get(src, 0)
                src, dst = dst, src

    def _deliver(self, src: int, dst: int, local: int, batch: int) -> tuple[Step, int]:
        label = self.labels(("deliver", src, dst, batch))
        known = self.steps.get((local, label))
        if known is None:
            events = tuple(Received(NAMES[src], m) for m in self.batches.values[batch])
            known = self.steps[local, label] = self._stepped(local, events, label)
        return known, label

    def _stepped(self, local: int, events: tuple[Event, ...], label: int) -> Step:
        try:
            return self._step(local, events)
        except ViolationError as error:
            raise ViolationError(error.args[0], label) from None
        except AssertionError as error:
            raise ViolationError(f"the core itself refuses: {error}", label) from error

    def _spent(self, budget: int, which: int) -> int:
        left = self.budgets.values[budget]
        return self.budgets((*left[:which], left[which] - 1, *left[which + 1 :]))

    def _own_moves(self, i: int, state: State) -> list[tuple[int, Step, int]]:
        """What node i may do of itself. Cached: it depends on its own state and the budget only."""
        local, budget = state[i], state[BUDGET]
        known = self.moves.get((local, budget))
        if known is not None:
            return known
        raft, left = self.rafts[local], self.budgets.values[budget]
        found: list[tuple[int, Step, int]] = []

        def add(label: tuple[object, ...], events: tuple[Event, ...], spent: int = -1) -> None:
            number = self.labels(label)
            step = self._stepped(local, events, number)
            if step.local != local or step.out:
                found.append((number, step, budget if spent < 0 else self._spent(budget, spent)))

        if raft.role is not Role.LEADER and raft.term < self.bound.terms:
            add(("campaign", i), (Campaign(),))
        if raft.role is Role.LEADER:
            add(("beat", i), (Beat(),))
            if left[0]:
                add(("propose", i), (Propose(GRANT, f"{NAMES[i]}{left[0]}"),), 0)
            if left[3] and raft.released < raft.term:
                for j in range(3):
                    if j != i:
                        add(("release", i, j), (Release(NAMES[j]),), 3)
        if left[4] and raft.commit > raft.log.snapshot.index:
            data = ",".join(f"{t}:{d}" for t, d in commands(raft.log)[: raft.commit])
            add(("compact", i), (Compact(raft.commit, data),), 4)
        if left[1]:
            found.append((self.labels(("restart", i)), self.restart(local, resume=False), self._spent(budget, 1)))
            if self.may_resume(local):
                found.append((self.labels(("resume", i)), self.restart(local, resume=True), self._spent(budget, 1)))
        self.moves[local, budget] = found
        return found

    def _stepped_to(self, state: State, i: int, label: int, step: Step, budget: int) -> State | None:
        """The state after it, its properties checked; None beyond the bound."""
        if self.rafts[step.local].term > self.bound.terms:
            return None
        new = list(state)
        new[i], new[BUDGET] = step.local, budget
        if step.local != state[i]:
            new[GHOST] = self._check(state[GHOST], i, step.local, label)
            for j in range(3):
                if j != i:
                    self._log_matching(step.local, new[j], label)
        return tuple(new)

    # -- properties ----------------------------------------------------------------------------------------------

    def _check(self, ghost: int, i: int, local: int, label: int) -> int:
        known = self.checked.get((ghost, i, local))
        if known is None:
            try:
                known = self.ghosts(self._checked(self.ghosts.values[ghost], i, self.rafts[local]))
            except ViolationError as error:
                raise ViolationError(error.args[0], label) from None
            self.checked[ghost, i, local] = known
        return known

    def _checked(self, ghost: Ghost, i: int, raft: Raft) -> Ghost:
        name, term = NAMES[i], raft.term
        if raft.vote:
            before = ghost.votes[i][term]
            if before not in ("", raft.vote):
                raise ViolationError(f"vote durability: {name} votes for {before} and for {raft.vote} in term {term}")
            mine = (*ghost.votes[i][:term], raft.vote, *ghost.votes[i][term + 1 :])
            ghost = ghost._replace(votes=(*ghost.votes[:i], mine, *ghost.votes[i + 1 :]))
        log = commands(raft.log)
        if raft.role is Role.LEADER and ghost.leaders[term] != i:
            if ghost.leaders[term] >= 0:
                raise ViolationError(f"one leader per term: {NAMES[ghost.leaders[term]]} and {name} lead term {term}")
            for index, (command, at_term) in enumerate(ghost.committed):
                if at_term < term and (index >= len(log) or log[index] != command):
                    raise ViolationError(
                        f"leader completeness: {name} leads term {term} without entry {index + 1} {command}, "
                        f"committed in term {at_term}; it has {log}"
                    )
            ghost = ghost._replace(leaders=(*ghost.leaders[:term], i, *ghost.leaders[term + 1 :]))
        done = log[: raft.commit]
        if len(done) < raft.commit:
            raise ViolationError(f"{name} holds {raft.commit} entries for committed and has {len(log)}")
        for index, (mine_, (theirs, _)) in enumerate(zip(done, ghost.committed, strict=False)):
            if mine_ != theirs:
                raise ViolationError(
                    f"state machine safety: {name} commits {mine_} at {index + 1}, {theirs} was committed"
                )
        more = tuple((command, term) for command in done[len(ghost.committed) :])
        return ghost._replace(committed=ghost.committed + more)

    def _log_matching(self, left: int, right: int, label: int) -> None:
        pair = (left, right) if left < right else (right, left)
        if pair in self.matching:
            return
        one, two = commands(self.rafts[left].log), commands(self.rafts[right].log)
        for index in range(min(len(one), len(two)) - 1, -1, -1):
            if one[index][0] == two[index][0]:
                if one[: index + 1] != two[: index + 1]:
                    raise ViolationError(f"log matching: {one} and {two} agree on the term of entry {index + 1}", label)
                break
        self.matching.add(pair)

    # -- the story -----------------------------------------------------------------------------------------------

    def tell(self, label: int) -> str:
        what, *who = self.labels.values[label]
        if what == "all":
            return "\n     ".join(self.tell(int(str(part))) for part in who)
        names = [NAMES[n] for n in who[:2] if isinstance(n, int)]
        match what:
            case "deliver" | "delay":
                messages = " and ".join(_short(m) for m in self.batches.values[int(str(who[2]))])
                verb = "arrives" if what == "deliver" else "is delayed"
                return f"{names[0]} -> {names[1]}: {messages} {verb}"
            case "release":
                return f"{names[0]} releases its lease to {names[1]}"
            case _:
                return f"{names[0]}: {what}"


def _short(message: RaftMessage) -> str:
    match message:
        case VoteReq(term, index, last_term):
            return f"VoteReq(term {term}, last {index}@{last_term})"
        case AppendReq(term, _, _, prev, prev_term, entries, commit):
            what = ",".join(f"{e.index}@{e.term}" for e in entries)
            return f"AppendReq(term {term}, after {prev}@{prev_term}: [{what}], commit {commit})"
        case AppendResp(term, _, _, ok, match):
            return f"AppendResp(term {term}, {'ok' if ok else 'refused'}, {match})"
        case _:
            return f"{type(message).__name__}(term {message.term})"
