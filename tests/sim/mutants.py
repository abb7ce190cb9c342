"""Negative controls: the cluster with one protecting step switched off. Each must be found within a few seeds.

Some are switches in the model (search for the name), those of shipped code are variants of it, here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from consensus.node import Campaigning, Node
from consensus.promotion import Situation
from consensus.raft import Raft
from consensus.record import Position
from consensus.write import Write

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.world import World

MUTANTS: dict[str, str] = {
    "promise-without-freeze": "a promise is given while the WAL receiver goes on",
    "vote-not-persisted": "term and vote are not on disk before they are told",
    "lease-from-the-reply": "a lease counts from when the acknowledgement came in",
    "no-wait-at-restart": "a restarted voter votes at once",
    "names-without-epoch": "application names do not carry the epoch",
    "divergence-unchecked": "a standby attaches whatever WAL it holds",
    "no-watchdog": "the watchdog never acts",
    "no-watchdog-no-promise": "the watchdog never acts, and a promise does not stop WAL",
    "amnesiac-counted": "a node without its Raft state comes back as who it was",
    "fsync-lies": "the disk says that it has synced, and has not",
    "names-unproven": "a change of the sync group is done before the names are in force",
    "lsn-without-epoch": "positions are compared by LSN alone",
    "position-before-all-is-read": "a restarted standby says how far it has replayed so far",
    "no-slots": "nothing keeps a standby from being counted twice",
}


class _LeaseFromTheReply(Raft):
    __slots__ = ()

    def _earn_lease(self) -> None:
        before = self.lease_from_ns
        super()._earn_lease()
        if self.lease_from_ns != before:
            self.lease_from_ns = self.now_ns


class _LsnWithoutEpoch(Node):
    def situation(self, notes: Campaigning, now_ns: int) -> Situation:
        found = super().situation(notes, now_ns)
        flat = {n: Position(0, p.lsn) if isinstance(p, Position) else p for n, p in found.promises.items()}
        return replace(found, promises=flat)


def core(world: World) -> type[Raft]:
    return _LeaseFromTheReply if world.mutant == "lease-from-the-reply" else Raft


def node(world: World) -> type[Node]:
    return _LsnWithoutEpoch if world.mutant == "lsn-without-epoch" else Node


def drops(world: World, write: Write) -> bool:
    """Is this not written?"""
    return world.mutant == "vote-not-persisted" and write.hard is not None and not (write.entries or write.snapshot)


def incarnation(world: World, host: Host) -> int:
    fresh = world.dice.randrange(1, 1 << 62)
    if world.mutant == "amnesiac-counted":
        return sum(ord(c) << 8 * i for i, c in enumerate(host.name))
    return fresh
