"""Mutants of a change of the timings: of its steps at the leader, and of what is in force at a voter."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from consensus import retiming
from consensus.messages import HardState
from consensus.raft import Log, RaftConfig
from consensus.retiming import Seen
from fencing.lease import Timings
from tests.model.leaseworld import Clocks
from tests.model.mutants.mutant import Mutant
from tests.model.raftvalues import Bound
from tests.model.timingworld import QUIET, SCALE, TimedRaft, TimingSetup, TimingWorld


class SwitchesOnceCommitted(TimedRaft):
    """L before every voter has acknowledged E."""

    __slots__ = ()

    def seen(self, wanted: Timings) -> Seen:
        return super().seen(wanted)._replace(lacking=())


class DoneAtOnce(TimedRaft):
    """E is lowered before the leases of the old L have ended."""

    __slots__ = ()

    def seen(self, wanted: Timings) -> Seen:
        return super().seen(wanted)._replace(switched_ms=1 << 30)


class WaitsForTheCommitted(TimedRaft):
    """A restarted voter waits only for the E that its disk shows as committed."""

    __slots__ = ()

    def __init__(
        self, config: RaftConfig, hard: HardState, log: Log, *, boot: int, seed: int, now_ns: int, fresh: bool
    ) -> None:
        super().__init__(config, hard, log, boot=boot, seed=seed, now_ns=now_ns, fresh=fresh)
        if self.hold_until_ns > now_ns:
            found = retiming.after_restart(self.base, log.between(1, hard.commit), hard.commit)
            self.hold_until_ns = now_ns + found.election_ms // SCALE


class InForceWhenCommitted(TimedRaft):
    """At a voter."""

    __slots__ = ()

    def in_force(self) -> Timings:
        return replace(super().in_force(), election_ms=retiming.in_force(self.committed, ()).election_ms)


class SwitchesF(TimedRaft):
    """A longer F counts as soon as the shorter L does."""

    __slots__ = ()

    def at_the_watchdog(self) -> Timings:
        found, change = super().at_the_watchdog(), self.committed.change
        return replace(found, kill_bound_ms=change.new.kill_bound_ms) if change and change.switched else found


ONE = (1, 1, 1)
SHORT, LONG, SLOW_KILL = Clocks(3, 2, 1, ONE), Clocks(5, 4, 1, ONE), Clocks(5, 3, 2, ONE)


def larger(*heard: str, restarts: int = 0, steps: int = 1, beats: int = 0) -> TimingSetup:
    return TimingSetup(
        Bound(2, restarts=restarts), SHORT, beats, settled=True, to=LONG, steps_of=steps, heard=heard
    )  # fmt: skip


def smaller(*heard: str, restarts: int = 0, steps: int = 1, beats: int = 0) -> TimingSetup:
    return TimingSetup(
        Bound(2, restarts=restarts), LONG, beats, settled=True, to=SHORT, steps_of=steps, heard=heard
    )  # fmt: skip


def traded(*heard: str, restarts: int = 0, steps: int = 1, beats: int = 0) -> TimingSetup:
    """A shorter L for a longer F under the same E."""
    return TimingSetup(
        Bound(2, restarts=restarts), LONG, beats, settled=True, to=SLOW_KILL, steps_of=steps, heard=heard
    )  # fmt: skip


def dies(core: type[TimedRaft], rule: str, setup: TimingSetup) -> Mutant:
    return Mutant(rule, "safety.md, lease", str(setup), partial(TimingWorld, setup, core), "one writer")


TIMING = (
    dies(SwitchesOnceCommitted, "a longer L waits for every voter, not for a majority", larger("b", beats=1)),
    dies(DoneAtOnce, "a shorter E waits for the end of the leases of the old L",
         smaller("bc", "bc", "bc", QUIET, steps=0)),
    dies(SwitchesF, "a longer F waits for the end of the leases of the old L", traded("bc")),
    dies(InForceWhenCommitted, "a longer E is in force at a voter once it is appended", larger("bc?", beats=1)),
    dies(WaitsForTheCommitted, "a restarted voter waits for the longest E of its log, committed or not",
         larger("bc?", "b", restarts=1, steps=0, beats=1)),
)  # fmt: skip
