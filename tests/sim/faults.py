"""What goes wrong: one line of chance per kind, each of which ends by itself. The seed chooses kinds and pace."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from consensus.membership import LEARNER, VOTER, WITNESS
from fencing import deadman as machine
from fencing.lease import MS
from tests.sim.clock import DRIFT_PPM_MAX
from tests.sim.harm import HARMS, SHARE
from tests.sim.mutants import MUTANTS
from tests.sim.network import CONTROL, DATA, Weather
from tests.sim.postgres import State
from tests.sim.settings import Settings, kinds, restarts, retimes
from tests.sim.stories import AIMED

if TYPE_CHECKING:
    from tests.sim.cluster import Simulation

SECOND = 1_000 * MS
Kind = Callable[[], None]


APART = ("settings", "timings", "starve", "crash")
"""Of settings.py."""


class Faults(Settings):
    def __init__(self, world: Simulation) -> None:
        super().__init__(world)
        self.kinds: list[str] = []
        self.pace_ms = 1_000
        self.harms = random.Random(f"{world.seed} harms")
        self.all: dict[str, Kind] = {
            "kill": self._kill,
            "kill-raft": lambda: self._kill("raft"),
            "kill-node": self._kill_node,
            "freeze": self._freeze,
            "freeze-control": self._freeze_control,
            "freeze-machine": self._freeze_machine,
            "freeze-postgres": self._freeze_postgres,
            "pause-vm": self._pause_vm,
            "partition": self._partition,
            "isolate": self._isolate,
            "one-way": self._one_way,
            "bridge": self._bridge,
            "flap": self._flap,
            "weather": self._weather,
            "drift": self._drift,
            "wall-clock": self._wall_clock,
            "power-cut": self._power_cut,
            "power-cut-all": self._power_cut_all,
            "power-cut-in-save": self._power_cut_in_save,
            "power-cut-standby": self._power_cut_standby,
            "lag": self._lag,
            "ghost": self._ghost,
            "leapfrog": self._leapfrog,
            "asleep-and-cut-off": self._asleep_and_cut_off,
            "disk-full": self._disk_full,
            "wipe": self._wipe,
            "wipe-raft": lambda: self._wipe("raft"),
            "divergence": self._divergence,
            "pause-replay": self._pause_replay,
            "restart": self._restart,
            "switchover": self._switchover,
            "failover": self._failover,
            "join": self._join,
            "remove": self._remove,
            "replace": self._replace,
            "hang-promotion": self._hang_promotion,
            "crash-after-save": self._crash_after_save,
            "pgdata-full": self._pgdata_full,
            "damage-raft": self._damage_raft,
            "move": self._move,
            "told-loss": self._told_loss,
            "settings": self._settings,
            "timings": self._timings,
            "starve": self._starve,
            "crash": self._crash,
        }

    def begin(self) -> None:
        dice = self.world.dice
        self.on = True
        names = sorted(name for name in self.all if name not in (*AIMED, *HARMS, *APART))
        self.kinds = dice.sample(names, dice.choice((1, 2, 3, 5, 8, 12)))
        self.pace_ms = dice.choice((400, 1_000, 2_500, 5_000))
        if self.world.mutant:
            mutant = MUTANTS[self.world.mutant]
            self.kinds, self.pace_ms = list(mutant.kinds), min(self.pace_ms, 1_500)
            self.world.network.weather = mutant.weather
        elif self.harms.random() < SHARE:
            self.kinds += self.harms.sample(HARMS, self.harms.choice((1, 1, 2, 4)))
        if not self.world.mutant:
            self.kinds = kinds(self.world.seed, self.kinds)
            if retimes(self.world.seed):
                self.kinds += ["timings"] * (1 + len(self.kinds) // 4)
            if restarts(self.world.seed):
                self.kinds += ["crash"] * (1 + len(self.kinds) // 2)
                self._restart_in_place()
        self.world.note("world", f"faults: {', '.join(self.kinds)}; every {self.pace_ms} ms")
        self._next()

    def _next(self) -> None:
        world = self.world
        world.after(world.dice.randrange(self.pace_ms // 3, self.pace_ms * 2) * MS, self._one)

    def _one(self) -> None:
        if not self.on:
            return
        kind = self.world.dice.choice(self.kinds)
        self.all[kind]()
        self._next()

    def end(self) -> None:
        """Everything heals; what was down comes up."""
        world = self.world
        self.on = False
        world.network.heal()
        for host in world.hosts.values():
            host.raft_disk.make_room()
            host.make_room_for_pgdata()
            self.mend_raft(host)
            host.crash_after_save = False
            host.clock.go_on(world.now) if host.clock.stopped else None
            for process in host.processes:
                if process.alive and process.frozen:
                    process.thaw()
            if host.postgres is not None:
                host.postgres.hangs_in_promotion = False
                if host.postgres.paused:
                    host.postgres.process.post(0, host.postgres.resume)
            world.after(world.between(1_000, 500_000), host.start)

    # -- processes -----------------------------------------------------------------------------------------------

    def _kill(self, which: str = "") -> None:
        host = self._likely_primary()
        which = which or self.world.dice.choice(("raft", "raft", "watchdog", "postgres", "parent", "both children"))
        self.did("kill", f"{which} of {host.name}")
        if which == "parent":
            host.parent_ended()
        if which in ("raft", "both children"):
            host.raft_ended(-9)
        if which in ("watchdog", "both children") and host.watchdog_process.alive:
            host.watchdog_ended()
        if which == "postgres" and host.postgres is not None:
            host.postgres.end()

    def _kill_node(self) -> None:
        host = self._likely_primary()
        self.did("kill-node", host.name)
        host.watchdog_process.end()
        if host.postgres is not None:
            host.postgres.end()
        host.parent_ended()

    def _freeze(self) -> None:
        host, dice = self._likely_primary(), self.world.dice
        three = (host.parent_process, host.raft_process, host.watchdog_process)
        which = tuple(dice.sample(three, dice.choices((1, 2, 3), (5, 3, 3))[0]))
        self._freeze_these("freeze", host, which, self._ms(50, 6_000))

    def _freeze_control(self) -> None:
        """All three; Postgres goes on. Then only the quorum protects (invariant 2)."""
        host = self._likely_primary()
        three = (host.parent_process, host.raft_process, host.watchdog_process)
        self._freeze_these("freeze-control", host, three, self._ms(1_000, 9_000))

    def _freeze_machine(self) -> None:
        host = self._likely_primary()
        self._freeze_these("freeze-machine", host, host.processes, self._ms(50, 6_000))

    def _freeze_postgres(self) -> None:
        host = self._any()
        self._freeze_these("freeze-postgres", host, (host.postgres_process,), self._ms(50, 6_000))

    def _pause_vm(self) -> None:
        """Its clock does not know."""
        host, ms = self._likely_primary(), self._ms(50, 6_000)
        if host.clock.stopped:
            return
        self.did("pause-vm", f"{host.name} for {ms} ms")
        host.clock.stop(self.world.now)
        host.freeze(host.processes, ms * MS + 1)
        host.outside_bounds_until = max(host.outside_bounds_until, self.world.now + (ms + 4_000) * MS)
        self.world.after(ms * MS, lambda: host.clock.go_on(self.world.now) if host.clock.stopped else None)

    def _crash_after_save(self) -> None:
        host = self._any()
        self.did("crash-after-save", host.name)
        host.crash_after_save = True

    def _restart(self) -> None:
        """SIGTERM to the parent: it hands over, stops cleanly, and is started again."""
        host = self._likely_primary()
        self.did("restart", host.name)
        if host.parent_process.alive:
            host.parent_process.post(0, host.parent.stop)

    # -- network -------------------------------------------------------------------------------------------------

    def _partition(self) -> None:
        names, dice = list(self.world.hosts), self.world.dice
        dice.shuffle(names)
        at = dice.randrange(1, len(names))
        left, right = names[:at], names[at:]
        ms, planes = self._ms(200, 8_000), self._planes()
        self.did("partition", f"{left} | {right}, {'+'.join(planes)} for {ms} ms")
        self._cut(planes, [p for a in left for b in right for p in ((a, b), (b, a))], ms)

    def _isolate(self) -> None:
        host, ms, planes = self._likely_primary(), self._ms(200, 8_000), self._planes()
        self.did("isolate", f"{host.name}, {'+'.join(planes)} for {ms} ms")
        others = [n for n in self.world.hosts if n != host.name]
        self._cut(planes, [p for n in others for p in ((n, host.name), (host.name, n))], ms)

    def _one_way(self) -> None:
        src, dst = self.world.dice.sample(list(self.world.hosts), 2)
        ms, planes = self._ms(200, 8_000), self._planes()
        self.did("one-way", f"{src} -> {dst}, {'+'.join(planes)} for {ms} ms")
        self._cut(planes, [(src, dst)], ms)

    def _bridge(self) -> None:
        """One node sees everybody, the others do not see each other."""
        bridge, ms, planes = self._any().name, self._ms(500, 8_000), self._planes()
        others = [n for n in self.world.hosts if n != bridge]
        self.did("bridge", f"only {bridge} sees all, {'+'.join(planes)} for {ms} ms")
        self._cut(planes, [(a, b) for a in others for b in others if a != b], ms)

    def _flap(self) -> None:
        host = self._any()
        self.did("flap", host.name)
        others = [n for n in self.world.hosts if n != host.name]
        pairs = [p for n in others for p in ((n, host.name), (host.name, n))]
        at = 0
        for _ in range(self._ms(2, 7)):
            at += self._ms(100, 1_200)
            self.world.after(at * MS, lambda: self._cut((CONTROL, DATA), pairs, self._ms(50, 900)) if self.on else None)

    def _weather(self) -> None:
        dice, ms = self.world.dice, self._ms(500, 8_000)
        weather = Weather(
            dice.choice((0.0, 0.02, 0.1, 0.3)), dice.choice((0.0, 0.1, 0.3)), dice.choice((0.0, 0.1, 0.5)),
            dice.choice((20, 100, 500)),
        )  # fmt: skip
        self.did("weather", f"{weather} for {ms} ms")
        self.world.network.weather = weather
        self.world.after(ms * MS, lambda: setattr(self.world.network, "weather", Weather()))

    # -- clocks --------------------------------------------------------------------------------------------------

    def _drift(self) -> None:
        host, dice = self._any(), self.world.dice
        ppm = dice.choice((-DRIFT_PPM_MAX, DRIFT_PPM_MAX, dice.randrange(-DRIFT_PPM_MAX, DRIFT_PPM_MAX)))
        self.did("drift", f"{host.name} {ppm} ppm")
        if not host.clock.stopped:
            host.clock.drift(self.world.now, ppm)

    def _wall_clock(self) -> None:
        host, by_s = self._any(), self.world.dice.choice((-3600, 3600, 1))
        self.did("wall-clock", f"{host.name} by {by_s} s")
        host.watchdog_process.post(0, lambda: host.watchdog.hear(machine.ClockJumped(by_s * SECOND)))

    # -- disks ---------------------------------------------------------------------------------------------------

    def _power_cut(self) -> None:
        host, ms = self._likely_primary(), self._ms(100, 6_000)
        self.did("power-cut", f"{host.name} for {ms} ms")
        host.power_cut(back_after_ns=ms * MS)

    def _power_cut_standby(self) -> None:
        standbys = self.world.standbys()
        if standbys:
            host, ms = self.world.dice.choice(standbys), self._ms(50, 1_500)
            self.did("power-cut-standby", f"{host.name} for {ms} ms")
            host.power_cut(back_after_ns=ms * MS)

    def _power_cut_all(self) -> None:
        hosts = list(self.world.hosts.values())
        share = self.world.dice.choice((0.6, 1.0))
        self.did("power-cut-all", f"{share:.0%}")
        for host in hosts:
            if self.world.chance(share):
                host.power_cut(back_after_ns=self._ms(100, 3_000) * MS)

    def _power_cut_in_save(self) -> None:
        host = self._likely_primary()
        self.did("power-cut-in-save", host.name)
        host.raft_disk.fail_within_a_save()

    def _disk_full(self) -> None:
        host, ms = self._likely_primary(), self._ms(200, 5_000)
        self.did("disk-full", f"{host.name} for {ms} ms")
        host.raft_disk.fill()
        self.world.after(ms * MS, host.raft_disk.make_room)

    def _wipe(self, what: str = "") -> None:
        """One at a time: two wiped copies may be all that held a commit."""
        host = self._any()
        what = what or self.world.dice.choice(("raft", "data", "both"))
        if not self.may_wipe(host):
            return
        self.did("wipe", f"{what} of {host.name}")
        back = self._ms(200, 4_000) * MS
        host.power_cut(back_after_ns=back)
        if what in ("data", "both"):
            host.lose_copy()
        if what in ("raft", "both"):
            host.raft_disk.wipe()

    # -- Postgres ------------------------------------------------------------------------------------------------

    def _pause_replay(self) -> None:
        standbys, ms = self.world.standbys(), self._ms(500, 6_000)
        if not standbys:
            return
        host = self.world.dice.choice(standbys)
        server = host.postgres
        if server is None or server.state is not State.STANDBY:
            return
        self.did("pause-replay", f"{host.name} for {ms} ms")
        server.paused = True
        server.process.post(ms * MS, server.resume)

    def _hang_promotion(self) -> None:
        for host in self.world.standbys():
            if host.postgres is not None and self.world.chance(0.4):
                self.did("hang-promotion", host.name)
                host.postgres.hangs_in_promotion = True

    # -- people --------------------------------------------------------------------------------------------------

    def _switchover(self) -> None:
        to = self._any().name if self.world.chance(0.5) else ""
        self._ask("switchover", {"to": to} if to else {})

    def _failover(self) -> None:
        self._ask("failover", {"to": self._any().name} if self.world.chance(0.5) else {})

    def _join(self) -> None:
        world = self.world
        free = [n for n in ("f", "g") if n not in world.hosts]
        if not free:
            return
        role = world.dice.choice((VOTER, VOTER, LEARNER, WITNESS))
        self.did("join", f"{free[0]} as {role}")
        world.add_host(free[0], role, (), f"{self._any().name}:0")

    def _remove(self) -> None:
        if len([h for h in self.world.hosts.values() if not h.removed]) > 3 or self.world.chance(0.1):
            self._ask("member.remove", {"name": self._any().name})

    def _replace(self) -> None:
        joined = [h.name for h in self.world.hosts.values() if h.join and not h.removed]
        if joined:
            self._ask("member.replace", {"name": self._any().name, "by": self.world.dice.choice(joined)})
