"""The timings of a running cluster change: `leaseworld.py` with a second set of E and L, to which the leader goes over.

The rules are the shipped ones: `retiming.in_force` after every step of a core, `after_restart`, `next_step` of a leader
whose own entry is committed, `at_the_watchdog` by what is committed at a node. A step is proposed at any time at which
it may be, or never. Durations are units of a node's clock, as those of `Clocks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

from consensus import retiming
from consensus.cluster import canonical
from consensus.messages import Entry, HardState
from consensus.raft import Beat, Event, Log, Propose, Raft, RaftConfig, Ready, Role
from consensus.retiming import Pace, Seen
from fencing.deadman import Bounds, Deadman
from fencing.lease import Timings
from tests.model.explore import State
from tests.model.leaseworld import NOW, Beside, Clocks, LeaseSetup, LeaseWorld
from tests.model.raftvalues import Local, Step

QUIET = "~"
STEPS, VOIDS = -4, -3
"""Places in a budget, from its end."""


SCALE = 4
"""Milliseconds that a unit stands for: a lease of one unit has room for two heartbeats and a demotion."""


def timings(clocks: Clocks) -> Timings:
    """E with what makes the inequality hold for the drift that the product assumes; less than a unit."""
    return Timings(1, 3, clocks.lease * SCALE, clocks.kill * SCALE, (clocks.election + 1) * SCALE - 1, 0)


@lru_cache(maxsize=1 << 16)
def paces(base: Pace, entries: tuple[Entry, ...]) -> tuple[Pace, ...]:
    return tuple(retiming.paces(base, entries))


class TimedRaft(Raft):
    """The core, and what consensus/pacing.py does after each of its steps."""

    __slots__ = ("switched_ns",)
    base: ClassVar[Pace] = Pace()
    """As founded."""

    def __init__(
        self, config: RaftConfig, hard: HardState, log: Log, *, boot: int, seed: int, now_ns: int, fresh: bool
    ) -> None:
        self.switched_ns = 0
        """Since when it has led with the switch in its log; 0: it does not."""
        found = self.after_restart(log, hard.commit)
        config = replace(config, election_ns=found.election_ms // SCALE, lease_ns=found.lease_ms // SCALE)
        super().__init__(config, hard, log, boot=boot, seed=seed, now_ns=now_ns, fresh=fresh)
        self.keep()

    def after_restart(self, log: Log, commit: int) -> Timings:
        return retiming.after_restart(self.base, log.entries, commit)

    def in_force(self) -> Timings:
        return retiming.in_force(self.committed, self.log.between(self.commit + 1, self.log.last_index))

    @property
    def committed(self) -> Pace:
        return paces(self.base, self.log.between(1, self.commit))[-1]

    @property
    def tip(self) -> Pace:
        return paces(self.base, self.log.entries)[-1]

    def at_the_watchdog(self) -> Timings:
        return retiming.at_the_watchdog(self.committed)

    def units(self) -> tuple[int, int]:
        """E and L that are in force."""
        found = self.in_force()
        return found.election_ms // SCALE, found.lease_ms // SCALE

    def keep(self) -> None:
        election, lease = self.units()
        if (election, lease) != (self.config.election_ns, self.config.lease_ns):
            self.use(heartbeat_ns=1, election_ns=election, jitter_ns=0, lease_ns=lease)
        change = self.tip.change
        if self.role is not Role.LEADER or change is None or not change.switched:
            self.switched_ns = 0
        else:
            self.switched_ns = self.switched_ns or self.now_ns

    def seen(self, wanted: Timings) -> Seen:
        """As consensus/pacing.py tells it."""
        change = self.tip.change
        index = change.index if change is not None else 0
        voters = {*self.members.voters, *self.settled.voters} - {self.config.me}
        lacking = tuple(sorted(name for name in voters if self.acknowledged(name)[0] < index))
        switched = (self.now_ns - self.switched_ns) * SCALE if self.switched_ns else 0
        return Seen(wanted, lacking, change is not None and index <= self.commit, switched_ms=switched)

    def step(self, event: Event, now_ns: int) -> Ready:
        ready = super().step(event, now_ns)
        self.keep()
        return ready

    def resume(self, until_ns: int = 0) -> Ready:
        ready = super().resume(until_ns)
        self.keep()
        return ready

    def clone(self) -> Self:
        other = super().clone()
        other.switched_ns = self.switched_ns
        return other


@dataclass(frozen=True)
class TimingSetup(LeaseSetup):
    to: Clocks = Clocks()  # noqa: RUF009
    """Same rates."""
    steps_of: int = 1
    """So many steps of the change may be proposed, by anybody."""
    heard: tuple[str, ...] = ()
    """What happened before. By whom, besides a, a step was heard: "bc" by all, "b" by b alone; "b?": it does not know
    that it is committed. `QUIET`: a tick, and a heartbeat that all acknowledge."""
    voids: int = 0
    """So often a person changes their mind before the switch."""

    def __str__(self) -> str:
        steps = [who for who in self.heard if who != QUIET]
        before = [
            f"{word} in the logs of {' '.join('a' + who.rstrip('?'))}{' as uncommitted' if '?' in who else ''}"
            for word, who in zip(("retime", "switch", "done"), steps, strict=False)
        ]
        quiet = self.heard.count(QUIET)
        before += [f"{quiet} quiet ticks"] if quiet else []
        before += [f"{self.steps_of} step{'s' * (self.steps_of > 1)} more"] if self.steps_of else []
        back = [f"{self.voids} change of mind"] if self.voids else []
        to = f"to E={self.to.election}, L={self.to.lease}, F={self.to.kill}"
        return ", ".join([super().__str__(), to, *before, *back])


class TimingWorld(LeaseWorld):
    def __init__(self, setup: TimingSetup, core: type[TimedRaft] = TimedRaft) -> None:
        self.old, self.new = timings(setup.clocks), timings(setup.to)
        self.longest = max(setup.clocks.election, setup.to.election)
        based = type(core.__name__, (core,), {"__slots__": (), "base": Pace(self.old)})
        self.timing_setup = setup
        super().__init__(setup, based)
        assert set(setup.clocks.rates) == {1}
        assert setup.clocks.are_safe()
        assert setup.to.are_safe()

    def start(self) -> State:
        state = super().start()
        for who in self.timing_setup.heard:
            state = self._quiet(state) if who == QUIET else self._heard(state, who)
        *rest, beats, late = self.budgets.values[state[self.budget]]
        setup = self.timing_setup
        return (*state[: self.budget], self.budgets((*rest, setup.steps_of, setup.voids, beats, late)))

    def _heard(self, state: State, who: str) -> State:
        """The next step of the change, by a."""
        raft = self.rafts[state[0]]
        assert isinstance(raft, TimedRaft)
        [(label, step, _)] = self._retimes(0, state[0], raft, self.new, state[self.budget])
        deaf = tuple(i for i in range(1, self.n) if self.names[i] not in who)
        return self._say(state, 0, step, label, deaf, once="?" in who)

    def _quiet(self, state: State) -> State:
        later = tuple(self._tick(local) for local in state[: self.n])
        beat = self.labels(("beat", 0))
        return self._say((*later, *state[self.n :]), 0, self.stepped(later[0], (Beat(),), beat), beat)

    # -- what is timed -------------------------------------------------------------------------------------------

    def key(self, raft: Raft) -> tuple[object, ...]:
        assert isinstance(raft, TimedRaft)
        election, lease = raft.units()  # renamed: as in its log, not as in the configuration of another slot
        raft.config = replace(raft.config, election_ns=election, lease_ns=lease)
        raft.lease_least_ns = raft.lease_least_ns if raft.lease_least_ns > NOW else 0
        if raft.switched_ns:
            raft.switched_ns = max(raft.switched_ns, NOW - self.longest - 1)
        return (*super().key(raft), raft.lease_least_ns, raft.switched_ns)

    def forgets_after(self) -> int:
        return self.longest

    def aged(self, raft: Raft, rate: int) -> None:
        assert isinstance(raft, TimedRaft)
        super().aged(raft, rate)
        raft.lease_least_ns -= rate if raft.lease_least_ns else 0
        raft.switched_ns -= rate if raft.switched_ns else 0

    def beside(self, before: Local, raft: Raft) -> Beside:
        """The parent tells the watchdog what is committed: of a longer L in time, since the Raft child waits for that
        (guard.py), of a shorter one late, here never."""
        assert isinstance(raft, TimedRaft)
        assert isinstance(before.beside, Beside)
        found = raft.at_the_watchdog()
        lease, kill = found.lease_ms // SCALE, found.kill_bound_ms // SCALE * self.clocks.rates[before.slot]
        watchdog = before.beside.watchdog
        lease = max(lease, watchdog.lease_ns)
        if (watchdog.lease_ns, watchdog.kill_bound_ns) != (lease, kill):
            watchdog, _ = self.watch(watchdog, Bounds(lease, kill, 0))
        return super().beside(before._replace(beside=before.beside._replace(watchdog=watchdog)), raft)

    def kill_ticks(self, watchdog: Deadman) -> int:
        """As long as it was told that one may take; the clocks here have the same rate."""
        return watchdog.kill_bound_ns

    def resumes(self, raft: Raft, beside: Beside) -> None:
        raft.resume(beside.watchdog.until_ns)

    # -- successors ----------------------------------------------------------------------------------------------

    def _found_moves(self, i: int, local: int, budget: int, lost: tuple[int, ...]) -> Iterator[tuple[int, Step, int]]:
        yield from super()._found_moves(i, local, budget, lost)
        raft = self.rafts[local]
        beside = self.locals.values[local].beside
        assert isinstance(raft, TimedRaft)
        assert isinstance(beside, Beside)
        if beside.told[1] or raft.role is not Role.LEADER or raft.released >= raft.term:
            return
        if raft.log.term_at(raft.commit) != raft.term:
            return
        left = self.budgets.values[budget]
        if left[STEPS]:
            yield from self._retimes(i, local, raft, self.new, self._spent(budget, len(left) + STEPS))
        if left[VOIDS]:
            yield from self._retimes(i, local, raft, self.old, self._spent(budget, len(left) + VOIDS))

    def _retimes(
        self, i: int, local: int, raft: TimedRaft, wanted: Timings, budget: int
    ) -> Iterator[tuple[int, Step, int]]:
        tip, committed = raft.tip, raft.committed
        if tip != committed and not (tip.change is not None and tip.change.index > raft.commit):
            return
        step = retiming.next_step(tip, raft.seen(wanted))
        if step is not None:
            what = str(step.body.get("step", "begin"))
            label = self.labels(("retime", i, what))
            after = self.stepped(local, (Propose(step.kind, canonical(step.body)),), label)
            yield label, after, budget

    def _tell(self, label: int) -> str:
        what, *who = self.labels.values[label]
        if what == "retime":
            return f"{self.names[int(str(who[0]))]} proposes the timings' {who[1]}"
        return super()._tell(label)
