"""Leases by small clocks: real Raft cores with E and L set, real deadman machines, clocks of different rates.

One tick of the true clock moves the clock of each node by its rate. E, L are durations by the node's own clock; a kill
takes F true ticks. Everything timed is kept relative to the node's own now and forgotten once it lies in the past for
good, so time may go on for ever. Messages as in `raftworld.py`; one may be set aside for any time. What the Raft child
tells the watchdog may be late by any time too (it was stopped between the two), as long as it does nothing else.

Never may Postgres of two nodes be writable at once: armed, or being killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from consensus.membership import MEMBERS
from consensus.messages import RaftMessage
from consensus.raft import Beat, Campaign, Event, Propose, Raft, RaftConfig, Release, Role, StepDown
from consensus.raft import Tick as RaftTick
from fencing import deadman
from fencing.deadman import Arm, Deadman, Disarm, FenceDone, LeaseChanged, Phase
from fencing.deadman import Tick as WatchdogTick
from tests.model.explore import Move, State, ViolationError
from tests.model.raftvalues import CHANGES, RELEASES, Batch, Bound, Disk, Local, Setup, Step, member_list
from tests.model.raftworld import RaftWorld

NOW = 1000


class Clocks(NamedTuple):
    """E, L in units of a node's clock, F in ticks of the true one; ``rates``: units a tick, by node."""

    election: int = 15
    lease: int = 8
    kill: int = 1
    rates: tuple[int, ...] = (2, 3, 3)

    def are_safe(self) -> bool:
        """`L / slowest + F <= E / fastest`, the inequality of safety.md with these rates."""
        slow, fast = min(self.rates), max(self.rates)
        return self.lease * fast + self.kill * slow * fast <= self.election * slow

    def __str__(self) -> str:
        return f"E={self.election}, L={self.lease}, F={self.kill}, clock rates {':'.join(map(str, self.rates))}"


class Beside(NamedTuple):
    """The watchdog, and what is between it and the Raft child."""

    watchdog: Deadman
    dying: int = 0
    """So many true ticks until everything is dead."""
    told: tuple[int, int] = (0, 0)
    """(term, until) that the Raft child has computed, and that has not arrived: it was stopped just then."""
    mute: bool = False
    """It will be stopped before its next word to the watchdog leaves."""


@dataclass(frozen=True)
class LeaseSetup:
    bound: Bound
    clocks: Clocks = Clocks()  # noqa: RUF009
    beats: int = 0
    late_tells: int = 0
    settled: bool = False
    """Begin with a as leader of term 1, its lease just earned from everybody."""
    joins: int = 0
    """So many of the nodes, the last, are no members yet."""
    steps: tuple[str, ...] = ()
    """What may be proposed of members."""

    def __str__(self) -> str:
        start = ", from a settled leader" if self.settled else ""
        late = f", {self.late_tells} word to the watchdog late" if self.late_tells else ""
        beats = f", {self.beats} more heartbeats" if self.beats else ""
        return f"N={len(self.clocks.rates)}, {self.bound}{beats}{late}, {self.clocks}{start}"


class LeaseWorld(RaftWorld):
    now = NOW

    def __init__(self, setup: LeaseSetup, core: type[Raft] = Raft) -> None:
        self.lease_setup, self.clocks = setup, setup.clocks
        names = ("a", "b", "c", "d", "e")[: len(setup.clocks.rates)]
        founders = names[: len(names) - setup.joins]
        extra = names[len(founders) :]
        super().__init__(Setup(setup.bound, founders, extra, settled=setup.settled, steps=setup.steps), core)
        kinds = [(rate, name in extra) for rate, name in zip(self.clocks.rates, names, strict=True)]
        self.classes = tuple(tuple(i for i, k in enumerate(kinds) if k == kind) for kind in sorted(set(kinds)))
        self.ticked: dict[int, int] = {}

    def start(self) -> State:
        state = super().start()
        budget = (*self.budgets.values[state[self.budget]], self.lease_setup.beats, self.lease_setup.late_tells)
        return (*state[: self.budget], self.budgets(budget))

    def config(self, i: int, incarnation: int) -> RaftConfig:
        clocks = self.clocks
        return RaftConfig(
            self.names[i], self.setup.founders, heartbeat_ns=1, election_ns=clocks.election, lease_ns=clocks.lease,
            pre_vote=False,
        )  # fmt: skip

    # -- what is timed -------------------------------------------------------------------------------------------

    def key(self, raft: Raft) -> tuple[object, ...]:
        _settle(raft, self.forgets_after())
        timed = (raft.hold_leader, raft.hold_term, raft.hold_until_ns, raft.lease_from_ns, raft.rounds)
        return (*raft.key(), *timed, raft.transfer_until_ns > 0)

    def forgets_after(self) -> int:
        """What lies so far back matters no more."""
        return self.clocks.election

    def started(self, i: int, incarnation: int, disk: Disk, *, fresh: bool = False) -> int:
        watchdog = Deadman(lease_ns=self.clocks.lease, kill_bound_ns=self.clocks.kill * self.clocks.rates[i])
        return self.again(i, disk, 1, Beside(watchdog), fresh=fresh)

    def again(self, i: int, disk: Disk, boot: int, beside: Beside, *, fresh: bool = False) -> int:
        config = self.config(i, 1)
        raft = self.core(config, disk.hard, disk.log, boot=boot, seed=1, now_ns=NOW, fresh=fresh)
        return self.local(i, 1, raft, disk, beside=beside)

    def beside(self, before: Local, raft: Raft) -> Beside:
        """The Raft child tells the watchdog at once; whether that arrives now or later is a move of its own."""
        assert isinstance(before.beside, Beside)
        beside = before.beside._replace(told=(raft.term, raft.lease_until_ns))
        stops = beside.mute and raft.lease_until_ns > beside.watchdog.lease_until_ns
        return beside._replace(mute=False) if stops else self.arrived(beside)

    def arrived(self, beside: Beside) -> Beside:
        """The word reaches the watchdog; the parent arms it whenever it may."""
        term, until = beside.told
        watchdog = beside.watchdog
        if until:
            watchdog, _ = self.watch(watchdog, LeaseChanged(term, until))
            if watchdog.phase is not Phase.ARMED:
                watchdog, _ = self.watch(watchdog, Arm(term, 1, 1, until))
            watchdog, _ = self.watch(watchdog, WatchdogTick())
        dying = self.kill_ticks(watchdog) if watchdog.phase is Phase.KILLING and not beside.dying else beside.dying
        return Beside(_aged(watchdog, 0), dying, mute=beside.mute)

    def kill_ticks(self, watchdog: Deadman) -> int:
        """A kill takes as long as it may."""
        return self.clocks.kill

    def watch(self, watchdog: Deadman, event: deadman.Event) -> deadman.Outcome:
        return deadman.step(watchdog, event, NOW)

    def is_writable(self, local: int) -> bool:
        beside = self.locals.values[local].beside
        assert isinstance(beside, Beside)
        return beside.watchdog.phase in (Phase.ARMED, Phase.KILLING)

    def lets_in(self, local: int, src: int, sent: Batch, message: RaftMessage) -> bool:
        """Not while it is stopped."""
        beside = self.locals.values[local].beside
        assert isinstance(beside, Beside)
        return not beside.told[1]

    # -- successors ----------------------------------------------------------------------------------------------

    def successors(self, state: State) -> Iterator[Move]:
        yield from super().successors(state)
        later = tuple(self._tick(local) for local in state[: self.n])
        yield Move((self.labels(("tick",)),), (*later, *state[self.n :]))

    def inspect(self, state: State) -> None:
        writable = [self.names[i] for i, local in enumerate(state[: self.n]) if self.is_writable(local)]
        if len(writable) > 1:
            raise ViolationError(f"one writer: Postgres of {' and of '.join(writable)} is writable")

    def _tick(self, local: int) -> int:
        known = self.ticked.get(local)
        if known is None:
            slot, incarnation, _, disk, _, beside = self.locals.values[local]
            assert isinstance(beside, Beside)
            rate = self.clocks.rates[slot]
            raft = self.rafts[local].clone()
            self.aged(raft, rate)
            known = self.local(slot, incarnation, raft, disk, beside=self._older(beside, rate))
            self.ticked[local] = known
        return known

    def aged(self, raft: Raft, rate: int) -> None:
        """Of all that is timed."""
        raft.hold_until_ns -= rate
        raft.lease_from_ns -= rate if raft.lease_from_ns else 0
        raft.rounds = tuple((number, sent - rate) for number, sent in raft.rounds)

    def _older(self, beside: Beside, rate: int) -> Beside:
        watchdog, dying = _aged(beside.watchdog, rate), beside.dying
        if dying == 1:
            watchdog, _ = self.watch(watchdog, FenceDone(0))
        elif not dying:
            watchdog, _ = self.watch(watchdog, WatchdogTick())
            dying = self.kill_ticks(watchdog) + 1 if watchdog.phase is Phase.KILLING else 0
        term, until = beside.told
        told = (term, max(NOW - self.clocks.lease, until - rate)) if until else (0, 0)
        return Beside(watchdog, max(0, dying - 1), told, beside.mute)

    def _found_moves(self, i: int, local: int, budget: int, lost: tuple[int, ...]) -> Iterator[tuple[int, Step, int]]:
        raft, left = self.rafts[local], self.budgets.values[budget]
        beside = self.locals.values[local].beside
        assert isinstance(beside, Beside)

        def does(words: tuple[object, ...], event: Event, spent: int = -1) -> Iterator[tuple[int, Step, int]]:
            label = self.labels(words)
            step = self.stepped(local, (event,), label)
            if step.local != local or step.out:
                yield label, step, budget if spent < 0 else self._spent(budget, spent)

        if beside.told[1]:  # stopped between the word and its arrival
            slot, incarnation, _, disk, *_ = self.locals.values[local]
            after = self.local(slot, incarnation, raft.clone(), disk, beside=self.arrived(beside))
            yield self.labels(("told", i)), Step(after, ()), budget
            return
        if left[-1] and not beside.mute:
            slot, incarnation, _, disk, *_ = self.locals.values[local]
            muted = self.local(slot, incarnation, raft.clone(), disk, beside=beside._replace(mute=True))
            yield self.labels(("mute", i)), Step(muted, ()), self._spent(budget, len(left) - 1)
        if raft.role is not Role.LEADER and raft.term < self.bound.terms:
            yield from does(("campaign", i), Campaign())
        if raft.role is Role.LEADER:
            if left[-2]:
                yield from does(("beat", i), Beat(), len(left) - 2)
            yield from does(("step down", i), StepDown())
            for rows in self._reforms(raft, lost) if left[CHANGES] else ():
                what = ", ".join(f"{m.name} {m.role}" for m in rows)
                yield from does(("members", i, what), Propose(MEMBERS, member_list(rows)), CHANGES)
            if left[RELEASES] and raft.released < raft.term:
                yield from self._releases(i, local, budget)
            if raft.transfer_until_ns:
                yield from self._gives_up(i, local, budget)
        yield from self._crashes(i, local, budget)

    def _releases(self, i: int, local: int, budget: int) -> Iterator[tuple[int, Step, int]]:
        """The fence is verified first: the watchdog is disarmed because nothing is left that could be killed."""
        fenced = self.fenced(local)
        if fenced is None:
            return
        for name in (*self.names[:i], *self.names[i + 1 :]):
            label = self.labels(("release", i, self.slot[name]))
            yield label, self.stepped(fenced, (Release(name),), label), self._spent(budget, RELEASES)

    def fenced(self, local: int) -> int | None:
        slot, incarnation, _, disk, _, beside = self.locals.values[local]
        assert isinstance(beside, Beside)
        if beside.watchdog.phase is Phase.KILLING:
            return None
        watchdog, _ = self.watch(beside.watchdog, Disarm())
        raft = self.rafts[local].clone()
        return self.local(slot, incarnation, raft, disk, beside=beside._replace(watchdog=watchdog))

    def _gives_up(self, i: int, local: int, budget: int) -> Iterator[tuple[int, Step, int]]:
        """Nobody has taken over in time: it campaigns itself, with its own release as proof."""
        label = self.labels(("nobody took over", i))
        if self.rafts[local].term < self.bound.terms:
            yield label, self.stepped(local, (RaftTick(),), label), budget

    def woken(self, raft: Raft) -> Raft:
        """A `Tick` finds the time of a hand-over to be up, and nothing else due."""
        raft.transfer_until_ns = NOW if raft.transfer_until_ns else 0
        return raft

    def restarted(self, local: int) -> list[int]:
        slot, _, _, disk, _, beside = self.locals.values[local]
        assert isinstance(beside, Beside)
        return [self.again(slot, disk, self.rafts[local].boot + 1, beside._replace(told=(0, 0)))]

    def resumed(self, local: int) -> int:
        [again] = self.restarted(local)
        before = self.locals.values[again]
        assert isinstance(before.beside, Beside)
        raft = self.rafts[again].clone()
        self.resumes(raft, before.beside)
        return self.local(before.slot, before.incarnation, raft, before.disk, beside=self.beside(before, raft))

    def resumes(self, raft: Raft, beside: Beside) -> None:
        raft.resume()

    def may_resume(self, local: int) -> bool:
        """The disk shows its vote and no release; the watchdog confirms a lease of this term that has not ended."""
        slot, _, _, (hard, _), _, beside = self.locals.values[local]
        assert isinstance(beside, Beside)
        watchdog = beside.watchdog
        armed = watchdog.phase is Phase.ARMED and watchdog.term == hard.term and watchdog.until_ns > NOW
        return hard.vote == self.names[slot] and hard.released < hard.term and armed

    # -- the story -----------------------------------------------------------------------------------------------

    def _tell(self, label: int) -> str:
        what, *who = self.labels.values[label]
        if what == "tick":
            return "a tick"
        if what == "mute":
            return f"{self.names[int(str(who[0]))]} is to be stopped before its next word to the watchdog"
        if what == "told":
            return f"the watchdog of {self.names[int(str(who[0]))]} hears of the lease"
        return super()._tell(label)


def _settle(raft: Raft, election: int) -> None:
    """What lies in the past and cannot matter any more is forgotten; what only drives `Tick` is not looked at."""
    raft.now_ns = NOW
    if raft.hold_until_ns <= NOW:
        raft.hold_leader, raft.hold_term, raft.hold_until_ns = "", 0, 0
    oldest = NOW - election
    raft.lease_from_ns = max(raft.lease_from_ns, oldest) if raft.lease_from_ns else 0
    raft.rounds = tuple((number, max(sent, oldest)) for number, sent in raft.rounds)
    raft.quorum_at_ns = raft.heartbeat_at_ns = raft.election_at_ns = NOW
    raft.transfer_until_ns = NOW + 1 if raft.transfer_until_ns else 0


def _aged(watchdog: Deadman, by: int) -> Deadman:
    """Later by this much. A deadline in the past is as good as another one there."""
    long_ago = NOW - watchdog.lease_ns
    until = max(long_ago, watchdog.until_ns - by) if watchdog.until_ns else 0
    lease = max(long_ago, watchdog.lease_until_ns - by) if watchdog.lease_until_ns else 0
    return replace(watchdog, until_ns=until, lease_until_ns=lease, reason="")
