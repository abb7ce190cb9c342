"""The watchdog: the shipped deadman machine; what it does to Postgres takes up to the kill bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fencing import deadman as machine
from fencing.deadman import Phase
from fencing.lease import MS, Timings
from tests.sim.check import Violation

if TYPE_CHECKING:
    from tests.sim.host import Host


class Watchdog:
    """One life of the process ``watchdog`` of a host."""

    def __init__(self, host: Host, timings: Timings, at: int) -> None:
        self.host, self.world, self.process = host, host.world, host.watchdog_process
        self.state = machine.deadman(timings, at)
        self.tick_at = 0

    def lease(self, term: int, until_ns: int) -> None:
        self.feed(machine.LeaseChanged(term, until_ns))

    def hear(self, event: machine.Event) -> None:
        self.feed(event)

    def feed(self, event: machine.Event) -> tuple[machine.Action, ...]:
        now = self.host.now()
        before, was_spent = self.state.phase, self.state.lease_spent
        self.state, actions = machine.step(self.state, event, now)
        if isinstance(event, machine.LeaseChanged) and event.until_ns and self.state.lease_spent > was_spent:
            away_ms, lease_ms = (event.until_ns - now) // MS, self.state.lease_ns // MS
            raise Violation(f"{self.host.name} refuses an honest deadline {away_ms} ms away, L is {lease_ms} ms")
        if self.state.phase is not before and Phase.KILLING in (before, self.state.phase):
            self.world.note(self.host.name, f"watchdog {before.value} -> {self.state.phase.value} {self.state.reason}")
        for action in actions:
            match action:
                case machine.Kill():
                    self._kill()
                case machine.Killed(term, reason, _):
                    self.host.tell_parent("deadman.killed", {"term": term, "reason": reason})
                case machine.Exit():
                    self.process.end()
                case _:
                    pass
        self._set_alarm()
        return actions

    def _set_alarm(self) -> None:
        at = machine.wakeup_ns(self.state)
        if at is None or self.state.phase is not Phase.ARMED:
            return
        true = max(self.host.clock.true(at), self.world.now + 50_000)
        if self.tick_at <= self.world.now or true < self.tick_at:
            self.tick_at = true
            self.process.post_at(true, self._tick)

    def _tick(self) -> None:
        self.tick_at = 0
        if self.world.mutant not in ("no-watchdog", "no-watchdog-no-promise"):
            self.feed(machine.Tick())
        elif self.state.phase is Phase.ARMED:
            self.tick_at = self.world.now + 1_000 * MS
            self.process.post_at(self.tick_at, self._tick)

    def _kill(self) -> None:
        world, life = self.world, self.process.life
        bound_us = self.state.kill_bound_ns * 9 // 10_000
        took = world.between(3_000, bound_us) if world.chance(0.1) else world.between(3_000, 60_000)
        self.process.busy = True
        target = self.host.postgres

        def finish() -> None:
            if self.process.life != life or not self.process.alive:
                return
            if self.process.frozen:
                world.after(5 * MS, finish)
                return
            if target is not None:
                target.end()
            self.process.busy = False
            self.feed(machine.FenceDone(0))
            self.process.done()

        world.after(took, finish)
