"""Leases by the clock: three Rafts whose clocks drift within 2 %, random delays, losses, freezes, restarts, hand-overs.

Never may two nodes hold [now, lease end + kill bound] at once. All in one process and in real (simulated) nanoseconds.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest

from consensus.messages import HardState, RaftMessage
from consensus.raft import Log, Raft, RaftConfig, Ready, Received, Release, Role, Tick
from fencing.lease import MS, PROFILES

NAMES = ("a", "b", "c")
TIMINGS = PROFILES["default"]


class LeaseFromTheReply(Raft):
    """Counts from when the answer came in, and so promises itself more than the followers did."""

    __slots__ = ()

    def _earn_lease(self) -> None:
        before = self.lease_from_ns
        super()._earn_lease()
        if self.lease_from_ns != before:
            self.lease_from_ns = self.now_ns


@dataclass
class Machine:
    raft: Raft
    rate: float
    offset_ns: int
    hard: HardState = HardState()  # noqa: RUF009
    log: Log = field(default_factory=Log)
    frozen_until: int = 0
    lease_until: int = 0
    """Of the newest lease it ever had, by the true clock."""

    def local(self, true_ns: int) -> int:
        return self.offset_ns + int(true_ns * self.rate)

    def true(self, local_ns: int) -> int:
        return int((local_ns - self.offset_ns) / self.rate)


class Simulation:
    def __init__(self, seed: int, core: type[Raft] = Raft, *, restart_waits: bool = True) -> None:
        self.random, self.core, self.restart_waits = random.Random(seed), core, restart_waits
        t = TIMINGS
        self.configs = [
            RaftConfig(n, NAMES, t.heartbeat_ms * MS, t.election_ms * MS, t.jitter_ms * MS, t.lease_ms * MS)
            for n in NAMES
        ]
        self.now, self.count = 0, 0
        self.mail: list[tuple[int, int, int, str, RaftMessage]] = []
        self.machines: list[Machine] = []
        for i, config in enumerate(self.configs):
            offset = self.random.randrange(10**12)
            raft = core(config, HardState(), Log(), boot=1, seed=seed + i, now_ns=offset, fresh=True)
            self.machines.append(Machine(raft, self.random.choice((0.98, 0.99, 1.0, 1.01, 1.02)), offset))
        self.loss = self.random.choice((0.0, 0.1, 0.3))
        self.delay_max = self.random.choice((5, 50, 400)) * MS
        self.leases = 0

    def carry_out(self, i: int, ready: Ready) -> None:
        machine = self.machines[i]
        machine.hard, machine.log = ready.hard or machine.hard, machine.raft.log
        for name, message in (*ready.now, *ready.after):
            if self.random.random() >= self.loss:
                self.count += 1
                at = self.now + self.random.randrange(MS, self.delay_max)
                heapq.heappush(self.mail, (at, self.count, NAMES.index(name), NAMES[i], message))
        self.watch(i)

    def watch(self, i: int) -> None:
        """One writer: nobody gets a lease while another's lease, and the kill bound after it, is not over."""
        machine = self.machines[i]
        until_ns = machine.raft.lease_until_ns
        if not until_ns:
            return
        until = machine.true(until_ns)
        if until <= max(self.now, machine.lease_until):
            return
        machine.lease_until = until
        self.leases += 1
        for j, other in enumerate(self.machines):
            if j != i and other.lease_until:
                gone = other.lease_until + int(TIMINGS.kill_bound_ms * MS / other.rate)
                assert gone <= self.now, (
                    f"{NAMES[i]} has a lease at {self.now / MS:.1f} ms, Postgres of {NAMES[j]} may write until {gone / MS:.1f}"  # noqa: E501
                )

    def restart(self, i: int) -> None:
        old = self.machines[i]
        # A real restart of a leader fences, unless it resumes; here the old lease simply stays in force until it ends.
        self.machines[i].raft = self.core(
            self.configs[i], old.hard, old.log, boot=old.raft.boot + 1, seed=self.random.randrange(1 << 60),
            now_ns=old.local(self.now), fresh=not self.restart_waits,
        )  # fmt: skip
        may = old.raft.role is Role.LEADER and old.lease_until > self.now and old.hard.released < old.hard.term
        if may and self.random.random() < 0.7:
            self.carry_out(i, self.machines[i].raft.resume())

    def disturb(self) -> None:
        i = self.random.randrange(3)
        machine = self.machines[i]
        match self.random.choice(("freeze", "restart", "restart", "hand over", "nothing")):
            case "freeze":
                machine.frozen_until = self.now + self.random.randrange(2_000) * MS
            case "restart":
                self.restart(i)
            case "hand over" if machine.raft.lease_until_ns:
                machine.lease_until = 0  # fenced and verified, which is what allows a release
                to = self.random.choice([n for n in NAMES if n != NAMES[i]])
                self.carry_out(i, machine.raft.step(Release(to), machine.local(self.now)))

    def run(self, seconds: int) -> int:
        """Returns how many leases were given."""
        disturb_at = 1_000 * MS
        end = seconds * 1_000 * MS
        while self.now < end:
            due = [
                (max(m.true(m.raft.wakeup_ns) + 1, m.frozen_until, self.now), i) for i, m in enumerate(self.machines)
            ]
            at, i = min(due)
            mail_at = self.mail[0][0] if self.mail else end
            self.now = min(at, mail_at, disturb_at)
            if self.now == disturb_at:
                disturb_at += self.random.randrange(100, 1_500) * MS
                self.disturb()
            elif self.mail and self.now == mail_at:
                _, _, dst, src, message = heapq.heappop(self.mail)
                machine = self.machines[dst]
                if machine.frozen_until > self.now:  # it stays in the socket
                    self.count += 1
                    heapq.heappush(self.mail, (machine.frozen_until, self.count, dst, src, message))
                else:
                    self.carry_out(dst, machine.raft.step(Received(src, message), machine.local(self.now)))
            else:
                machine = self.machines[i]
                self.carry_out(i, machine.raft.step(Tick(), machine.local(self.now)))
        return self.leases


def test_leases_never_overlap() -> None:
    leases = sum(Simulation(seed).run(20) for seed in range(150))
    assert leases > 5_000, "the simulation hardly ever has a leader: it shows nothing"


def _breaks(core: type[Raft], *, restart_waits: bool) -> bool:
    for seed in range(150):
        try:
            Simulation(seed, core, restart_waits=restart_waits).run(20)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize(
    ("core", "waits"), [(LeaseFromTheReply, True), (Raft, False)], ids=["from the reply", "no wait"]
)
def test_the_simulation_notices(core: type[Raft], waits: bool) -> None:
    assert _breaks(core, restart_waits=waits)
