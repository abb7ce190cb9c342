"""At the node: the timings that are in force here, and at the leader the next step of a change. Pure, like the node."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from consensus import retiming
from consensus.changes import Proposal
from consensus.cluster import found
from consensus.clustertext import load
from consensus.raft import Role
from consensus.record import Identity
from consensus.write import Stored
from fencing.lease import MS, Timings

if TYPE_CHECKING:
    from consensus.campaign import Campaigning
    from consensus.node import Node


def at_start(identity: Identity, stored: Stored) -> Timings:
    """What binds a node that starts, by what is on its disk; above all E, which it waits for."""
    kept = stored.snapshot
    with_pace = load(kept.data) if kept is not None and kept.index else found(identity.charter, identity.cluster_id)
    return retiming.after_restart(with_pace.pace, stored.entries, stored.hard.commit)


def keep(node: Node) -> None:
    """After every step of the core, before anything that it said leaves."""
    raft, pace = node.raft, node.cluster.pace
    node.guard.meet(pace)
    tail = [e for e in raft.log.between(node.applied + 1, raft.log.last_index) if e.kind in retiming.KINDS]
    takes_ms = node.guard.takes_ms()
    known = (pace, takes_ms, *tail)
    if known == node.paced:
        return
    node.paced, timings = known, retiming.in_force(pace, tail)
    node.capped = 0 < takes_ms < timings.lease_ms
    if node.capped:
        timings = replace(timings, lease_ms=takes_ms)
    if timings == node.timings:
        return
    node.timings = timings
    node.sightings.alive_ms = timings.election_ms
    raft.use(
        heartbeat_ns=timings.heartbeat_ms * MS, election_ns=timings.election_ms * MS,
        jitter_ns=timings.jitter_ms * MS, lease_ns=timings.lease_ms * MS,
    )  # fmt: skip


def conduct(node: Node, notes: Campaigning, now_ns: int) -> None:
    """Each turn of a leader whose own no-op is committed, as primary or as caretaker."""
    pace, raft = node.tip().pace, node.raft
    change = pace.change
    if change is None or not change.switched:
        notes.switched_at_ns = 0
    elif not notes.switched_at_ns:
        notes.switched_at_ns = now_ns
    lacking: tuple[str, ...] = ()
    if change is not None:
        voters = {*raft.members.voters, *raft.settled.voters} - {node.me}
        lacking = tuple(sorted(name for name in voters if raft.acknowledged(name)[0] < change.index))
    seen = retiming.Seen(
        retiming.wanted(node.cluster.config, node.cluster.profile), lacking,
        change is not None and change.index <= raft.commit, node.capped,
        (now_ns - notes.switched_at_ns) // MS if notes.switched_at_ns else 0,
    )  # fmt: skip
    notes.lacking_since_ns = (notes.lacking_since_ns or now_ns) if lacking else 0
    grant = node.granted()
    serves = grant is not None and grant.opened  # else there is something more important to be said
    late = serves and bool(lacking) and now_ns - notes.lacking_since_ns > node.timings.election_ms * MS
    notes.retiming = retiming.waits_for(pace, seen) if late else ""
    if pace != node.cluster.pace and not (change is not None and change.index > raft.commit):
        return  # a step of it is not committed yet
    step = retiming.next_step(pace, seen)
    if step is not None and raft.role is Role.LEADER:
        body = step.body | {"node": node.me, "text": step.text}
        node.propose_change(Proposal(step.kind, body), now_ns)
