"""Faults that only mean something together, and what all faults are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fencing.lease import MS
from tests.sim.network import CONTROL, DATA
from tests.sim.process import Process

if TYPE_CHECKING:
    from tests.sim.cluster import Simulation
    from tests.sim.host import Host

SECOND = 1_000 * MS
Kind = Callable[[], None]

AIMED = ("ghost", "leapfrog", "asleep-and-cut-off")
"""Whole stories, for mutants that nothing else finds. Several sleepers at once can leave too few who know their
position: safe, and stuck until a person accepts loss."""


class Trouble:
    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.on = False

    def did(self, kind: str, what: str) -> None:
        self.world.counts[f"fault {kind}"] += 1
        self.world.note("FAULT", f"{kind}: {what}")

    def _any(self) -> Host:
        return self.world.dice.choice(list(self.world.hosts.values()))

    def _likely_primary(self) -> Host:
        found = self.world.primary()
        return found if found is not None and self.world.chance(0.6) else self._any()

    def _ms(self, low: int, high: int) -> int:
        return self.world.dice.randrange(low, high)

    def _cut(self, planes: tuple[str, ...], pairs: list[tuple[str, str]], ms: int) -> None:
        network, world = self.world.network, self.world
        for plane in planes:
            for src, dst in pairs:
                network.cut(plane, src, dst)

        def heal() -> None:
            for plane in planes:
                for src, dst in pairs:
                    network.cuts.pop((plane, src, dst), None)

        world.after(ms * MS, heal)

    def _freeze_these(self, kind: str, host: Host, which: tuple[Process, ...], ms: int) -> None:
        self.did(kind, f"{', '.join(p.name for p in which)} of {host.name} for {ms} ms")
        host.freeze(which, ms * MS)
        if all(p.frozen for p in (host.parent_process, host.raft_process, host.watchdog_process)):
            host.outside_bounds_until = max(host.outside_bounds_until, self.world.now + (ms + 1_000) * MS)

    def _planes(self) -> tuple[str, ...]:
        return self.world.dice.choice(((CONTROL, DATA), (CONTROL, DATA), (CONTROL,), (DATA,)))

    def _ask(self, name: str, body: dict[str, Any]) -> None:
        host = self._any()
        if host.parent_process.alive:
            self.did(name, f"{body} at {host.name}")
            request = {"name": name, "body": body}
            host.parent_process.post(0, lambda: host.parent.tell_raft("admin.request", request, "person"))


class Stories(Trouble):
    def _divergence(self) -> None:
        """A primary that goes on writing what nobody gets, and is then replaced."""
        host = self.world.primary()
        if host is None:
            return
        others = [n for n in self.world.hosts if n != host.name]
        ms = self._ms(300, 1_500)
        self.did("divergence", f"nobody hears the WAL of {host.name} for {ms} ms, then it is cut off")
        self._cut((DATA,), [(host.name, n) for n in others], ms)
        pairs = [p for n in others for p in ((n, host.name), (host.name, n))]
        self.world.after(
            (ms - 100) * MS, lambda: self._cut((CONTROL, DATA), pairs, self._ms(2_000, 6_000)) if self.on else None
        )

    def _lag(self) -> None:
        """Some standbys do not get the WAL of the primary for a while."""
        host = self.world.primary()
        if host is None:
            return
        others = [n for n in self.world.hosts if n != host.name]
        some = self.world.dice.sample(others, self.world.dice.randrange(1, len(others) + 1))
        ms = self._ms(500, 6_000)
        self.did("lag", f"{', '.join(some)} behind {host.name} for {ms} ms")
        self._cut((DATA,), [(host.name, n) for n in some], ms)

    def _write_much(self, host: Host) -> None:
        """As a large transaction does, long before its commit."""
        server = host.postgres
        if server is not None:
            for _ in range(self._ms(1, 80)):
                server.process.post(self._ms(1, 600) * MS, server.write)

    def _ghost(self) -> None:
        """One standby gets WAL that nobody else has, and its parent sleeps while the primary is replaced and comes
        back: its WAL receiver goes on asking the same node."""
        host = self.world.primary()
        behind = [h for h in self.world.standbys() if h is not host]
        if host is None or len(behind) < 4 or any(h.parent_process.frozen for h in self.world.hosts.values()):
            return
        ghost = self.world.dice.choice(behind)
        others = [n for n in self.world.hosts if n not in (host.name, ghost.name)]
        self.did("ghost", f"{ghost.name} alone hears the WAL of {host.name}, and sleeps")
        self._cut((DATA,), [(host.name, n) for n in others], 900)
        self._write_much(host)
        self.world.after(200 * MS, lambda: ghost.freeze((ghost.parent_process, ghost.raft_process), 20 * SECOND))
        pairs = [p for n in others for p in ((n, host.name), (host.name, n))]
        self.world.after(700 * MS, lambda: self._cut((CONTROL, DATA), pairs, 3_000) if self.on else None)
        for later in (6, 8, 10):
            self.world.after(later * SECOND, lambda: self._ask("switchover", {"to": host.name}) if self.on else None)

    def _leapfrog(self) -> None:
        """A primary that wrote much which nobody got comes back just as the next one is lost."""
        host = self.world.primary()
        if host is None:
            return
        others = [n for n in self.world.hosts if n != host.name]
        self.did("leapfrog", host.name)
        self._cut((DATA,), [(host.name, n) for n in others], 1_000)
        for _ in range(4):
            self._write_much(host)
        pairs = [p for n in others for p in ((n, host.name), (host.name, n))]

        def strike() -> None:
            found = self.world.primary()
            if self.on and found is not None and found is not host:
                found.power_cut(back_after_ns=5_000 * MS)

        self.world.after(900 * MS, lambda: self._cut((CONTROL, DATA), pairs, 4_000))
        self.world.after(4_850 * MS, strike)

    def _asleep_and_cut_off(self) -> None:
        """Its lease hangs on one other node, it is cut off, and nobody demotes in an orderly way: what is left is the
        watchdog, at the very end of the lease."""
        host, world = self.world.primary(), self.world
        if host is None or host.parent_process.frozen:
            return
        others = [n for n in world.hosts if n != host.name]
        last = world.dice.choice(others)
        pairs = [p for n in others for p in ((n, host.name), (host.name, n))]
        self._cut((CONTROL,), [p for p in pairs if last not in p], 5_000)

        def cut_off() -> None:
            self._freeze_these("asleep-and-cut-off", host, (host.parent_process,), 2_500)
            self._cut((CONTROL, DATA), pairs, 3_000)

        world.after(self._ms(200, 1_500) * MS, cut_off)
