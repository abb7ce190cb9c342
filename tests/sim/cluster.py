"""One run: a cluster of a shape that the seed chooses, clients, faults for a while; then progress is demanded."""

from __future__ import annotations

import gc
import random
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from consensus import changes
from consensus.membership import VOTER, WITNESS
from fencing.lease import MS
from tests.sim.check import Checks, Crash, Stuck, Violation
from tests.sim.client import Client
from tests.sim.clock import DRIFT_PPM_MAX, Clock
from tests.sim.faults import Faults
from tests.sim.host import Host
from tests.sim.minority import leave_out, refuses_rightly
from tests.sim.mutants import MUTANTS
from tests.sim.network import Network
from tests.sim.postgres import State
from tests.sim.world import World

SECOND = 1_000 * MS
OPEN_WITHIN_S = 30
PROGRESS_WITHIN_S = 90
"""After the faults have ended; a promotion that hangs is given up after 30 s, a silent new seat after 10."""
PATIENCE_S = 40
COLLECT_EVERY = 8
"""Runs: what one leaves behind is little, and to look for it takes as long as a twentieth of a run."""


@dataclass(frozen=True, slots=True)
class Shape:
    names: tuple[str, ...]
    witnesses: int
    profile: str
    commit: str
    fault_seconds: int


def shape_of(dice: random.Random, nodes: int) -> Shape:
    kind = dice.choices(("3", "2+1", "5"), (65, 20, 15))[0] if not nodes else str(nodes)
    names = ("a", "b", "c", "d", "e")[: 5 if kind == "5" else 3]
    profile = dice.choices(("default", "cloud", "fast"), (45, 40, 15))[0]
    commit = "async" if dice.random() < 0.08 else "quorum"
    return Shape(names, 1 if kind == "2+1" else 0, profile, commit, dice.randrange(12, 32))


class Simulation(World):
    def __init__(self, seed: int, mutant: str = "") -> None:
        super().__init__(seed, mutant)
        self.shape = shape_of(self.dice, MUTANTS[mutant].nodes if mutant else 0)
        self.profile, self.commit = self.shape.profile, self.shape.commit
        self.network = Network(self)
        self.checks = Checks(self)
        self.hosts: dict[str, Host] = {}
        self.healed_at = 0
        self.out: tuple[str, ...] = ()
        """Who stays out when the others heal (minority.py)."""
        self.last_ok = 0
        self.clients: list[Client] = []
        self.faults = Faults(self)
        s = self.shape
        self.note("world", f"seed {seed}: {len(s.names)} nodes, {s.witnesses} witnesses, {s.profile}, {s.commit}")
        for number, name in enumerate(s.names):
            self.add_host(name, WITNESS if number >= len(s.names) - s.witnesses else VOTER, s.names, "")

    def add_host(self, name: str, role: str, peers: tuple[str, ...], join: str) -> Host:
        drift = self.dice.choice((-DRIFT_PPM_MAX, 0, DRIFT_PPM_MAX, self.dice.randrange(-DRIFT_PPM_MAX, DRIFT_PPM_MAX)))
        clock = Clock(drift, self.dice.randrange(10**15))
        host = self.hosts[name] = Host(self, name, clock, role=role, peers=peers, join=join)
        self.after(self.between(0, 1_500_000), host.start)
        if role != WITNESS:
            for overrides, fresh in ((True, False), (False, True)):
                client = Client(
                    self, host, overrides=overrides, fresh=fresh, every_ms=self.dice.choice((150, 400, 900))
                )
                self.clients.append(client)
        return host

    # -- the run -------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Raises Violation."""
        if self.chance(0.85) and not self.run(OPEN_WITHIN_S * SECOND, done=self.is_open):
            self.stuck(f"not open {OPEN_WITHIN_S} s after the first start")
        self.faults.begin()
        self.run(self.now + self.shape.fault_seconds * SECOND)
        self.faults.end()
        self.note("world", "the faults have ended")
        self.healed_at = self.now
        self.out = leave_out(self)
        self._name_another_address()
        if self.commit == "async" or "settings" in self.faults.kinds:
            self.after(PATIENCE_S * SECOND, self._accept_loss)
        if not self.run(self.now + PROGRESS_WITHIN_S * SECOND, done=lambda: not self.missing()):
            if self.out and refuses_rightly(self):
                return
            self.stuck(f"no progress {PROGRESS_WITHIN_S} s after the last fault: {self.missing()}")
        self.counts["healed in ms"] += (self.now - self.healed_at) // MS
        self.run(self.now + SECOND)
        self.checks.everything_is_there()

    def stuck(self, what: str) -> None:
        self.note("CHECK", what)
        raise Stuck(what)

    def _name_another_address(self) -> None:
        """A person's: the member that a new node was told to ask may have been removed meanwhile."""
        left = [h for h in self.hosts.values() if not h.removed and h.name not in self.out]
        there = min(left, key=lambda h: h.join != "").name  # a founder, if one is left
        for host in self.hosts.values():
            if host.join:
                host.join = f"{there}:0"
                if host.raft_process.alive:
                    host.raft.asked["join"] = host.join

    def _accept_loss(self) -> None:
        """A person's last word. Needed where commits are asynchronous: before the first copy is made, nobody but the
        first primary has any data, and a majority of positions is asked for."""
        leader = next((h for h in self.hosts.values() if h.raft_process.alive and h.raft.leads), None)
        if self.missing().startswith("no primary") and leader is not None and leader.parent_process.alive:
            self.counts["data loss accepted"] += 1
            self.note("world", f"a person accepts data loss, at {leader.name}")
            request = {"name": "failover", "body": {"accept_data_loss": True}}
            leader.parent.tell_raft("admin.request", request, "person")

    def is_open(self) -> bool:
        return self.primary() is not None

    def primary(self) -> Host | None:
        """The one that is open to clients and not overtaken, seen from outside."""
        best: Host | None = None
        for host in self.hosts.values():
            server = host.postgres
            if server is None or not server.accepts or not host.parent_process.alive or not host.parent.local.gate_open:
                continue
            if best is None or best.postgres is None or server.epoch > best.postgres.epoch:
                best = host
        return best

    def missing(self) -> str:
        """What is not yet as it should be; empty: all is well."""
        primary = self.primary()
        if primary is None or primary.postgres is None or primary.raft.node is None:
            return f"no primary ({self._explanations()})"
        server, cluster = primary.postgres, primary.raft.node.cluster
        if cluster.grant is None or cluster.grant.term != server.epoch or not cluster.grant.opened:
            return f"{primary.name} is not the primary of the newest grant"
        if self.last_ok < self.healed_at:
            return "no commit"
        # One that is to leave and has become the primary since stays until a person moves it: the status says so.
        stays = tuple(m._replace(aim=m.role) if m.name == primary.name else m for m in cluster.members)
        if not changes.is_as_wanted(replace(cluster, members=stays)) and not self.out:
            return f"the membership is not at rest: {cluster.members} {cluster.group} {cluster.change}"
        if cluster.pace.change is not None and not self.out:
            return f"the timings still change: {cluster.pace}"
        members = {m.name for m in cluster.members}
        for host in self.hosts.values():
            if host.join and not host.removed and host.wanted_up and host.name not in members and not self.out:
                return f"{host.name} is not let in"
        for member in cluster.members:
            host = self.hosts[member.name]
            if member.name in self.out:
                continue
            if not host.parent_process.alive or not host.raft_process.alive:
                return f"{member.name} is down"
            streams = any(s.target.node == member.name and not s.forks and s.source_open for s in server.senders)
            if member.has_data and host is not primary and not streams:
                return f"{member.name} does not stream: {host.parent.plan.rule}, {host.last_refusal}"
        return ""

    def _explanations(self) -> str:
        said = []
        for host in self.hosts.values():
            if host.parent_process.alive:
                said.append(f"{host.name}: {host.parent.plan.rule} {host.parent.view.sentence}")
            else:
                said.append(f"{host.name}: down")
        return "; ".join(said)

    def standbys(self) -> list[Host]:
        return [h for h in self.hosts.values() if h.postgres is not None and h.postgres.state is State.STANDBY]


def play(seed: int, mutant: str = "") -> tuple[Simulation, Violation | None]:
    """The run of a seed, and what it found."""
    simulation = Simulation(seed, mutant)
    if not seed % COLLECT_EVERY:
        gc.collect()
    gc.disable()  # a run is short and makes few circles
    try:
        simulation.play()
    except Violation as violation:
        return simulation, violation
    except Exception as error:  # of the shipped code or of the model: a find either way
        where = traceback.extract_tb(error.__traceback__)[-1]
        crash = Crash(f"{error!r} in {Path(where.filename).name}:{where.lineno}")
        crash.__cause__ = error
        simulation.note("CHECK", str(crash))
        return simulation, crash
    finally:
        gc.enable()
    return simulation, None
