"""Negative controls: the cluster with one protecting step switched off. Each must be found within a few seeds.

Some are switches in the model (search for the name), those of shipped code are variants of it, here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from consensus.campaign import Campaigning
from consensus.node import Node
from consensus.promotion import Situation
from consensus.raft import Raft
from consensus.record import Position
from fencing.lease import MS, PROFILES
from tests.sim.network import Weather

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.world import World


class Mutant(NamedTuple):
    text: str
    kinds: tuple[str, ...]
    """Faults under which it shows; others would only make it take longer."""
    weather: Weather = Weather()
    """From the beginning."""
    nodes: int = 0
    """As many as it takes to show; 0: any number."""
    within: int = 60
    """It is found by one of so many seeds, from 1 on."""
    slow: bool = False
    """That takes its time."""


FROZEN = ("freeze-control", "pause-vm", "isolate")
MUTANTS: dict[str, Mutant] = {
    "promise-without-freeze": Mutant("a promise is given, and the WAL receiver goes on", FROZEN),
    "no-watchdog-no-promise": Mutant("the watchdog never acts, and a promise does not stop WAL", FROZEN),
    "no-watchdog": Mutant("the watchdog never acts", ("freeze",), slow=True),
    "lease-from-the-reply": Mutant(
        "a lease counts from when the acknowledgement came in",
        ("asleep-and-cut-off", "drift"),
        Weather(slow=0.2, slow_ms=700),
    ),
    "no-wait-at-restart": Mutant("a restarted voter votes at once", ("kill-raft", "bridge"), slow=True),
    "names-without-epoch": Mutant(
        "application names do not carry the epoch", ("ghost",), nodes=5, within=100, slow=True
    ),
    "divergence-unchecked": Mutant("a standby attaches whatever WAL it holds", ("divergence", "isolate"), slow=True),
    "amnesiac-counted": Mutant(
        "a node without its Raft state comes back as who it was", ("wipe-raft", "kill-node", "partition")
    ),
    "fsync-lies": Mutant("the disk says that it has synced, and has not", ("power-cut", "power-cut-all")),
    "names-unproven": Mutant("the sync group changes before its names are in force", ("join", "remove", "lag")),
    "lsn-without-epoch": Mutant("positions are compared by LSN alone", ("leapfrog",)),
    "position-before-all-is-read": Mutant("a restarted standby says how far it has replayed", ("lag", "power-cut-all")),
    "worst-of-the-known": Mutant(
        "once data loss is accepted, anybody whose position is known will do", ("told-loss", "lag"), nodes=5
    ),
    "e-follows-l": Mutant(
        "a voter is bound for the E that goes with the L in force: a shorter one at once", ("timings", "isolate")
    ),
    "no-slots": Mutant(
        "nothing keeps a standby from being counted twice", ("lag", "power-cut-standby"), nodes=5, slow=True
    ),
}


class _LeaseFromTheReply(Raft):
    __slots__ = ()

    def _earn_lease(self) -> None:
        before = self.lease_from_ns
        super()._earn_lease()
        if self.lease_from_ns != before:
            self.lease_from_ns = self.now_ns


class _EFollowsL(Raft):
    __slots__ = ()

    def use(self, *, heartbeat_ns: int, election_ns: int, jitter_ns: int, lease_ns: int) -> None:
        alone_ns = next((t.election_ms * MS for t in PROFILES.values() if t.lease_ms * MS == lease_ns), election_ns)
        super().use(heartbeat_ns=heartbeat_ns, election_ns=alone_ns, jitter_ns=jitter_ns, lease_ns=lease_ns)


class _WorstOfTheKnown(Node):
    def situation(self, notes: Campaigning, now_ns: int) -> Situation:
        found = super().situation(notes, now_ns)
        known = {p: n for n, p in found.promises.items() if isinstance(p, Position)}
        if not found.state.wish_loss or not known:
            return found
        least = min(known)
        return replace(found, promises={known[least]: least}, connected=frozenset())


class _LsnWithoutEpoch(Node):
    def situation(self, notes: Campaigning, now_ns: int) -> Situation:
        found = super().situation(notes, now_ns)
        flat = {n: Position(0, p.lsn) if isinstance(p, Position) else p for n, p in found.promises.items()}
        return replace(found, promises=flat)


def core(world: World) -> type[Raft]:
    return {"lease-from-the-reply": _LeaseFromTheReply, "e-follows-l": _EFollowsL}.get(world.mutant, Raft)


def node(world: World) -> type[Node]:
    variants = {"lsn-without-epoch": _LsnWithoutEpoch, "worst-of-the-known": _WorstOfTheKnown}
    return variants.get(world.mutant, Node)


def incarnation(world: World, host: Host) -> int:
    fresh = world.dice.randrange(1, 1 << 62)
    if world.mutant == "amnesiac-counted":
        return sum(ord(c) << 8 * i for i, c in enumerate(host.name))
    return fresh
