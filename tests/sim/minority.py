"""Only a majority heals. It has to go on alone, or to say whose promise or copy it is that it cannot go on without."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from consensus.membership import GONE
from consensus.positions import NoPosition
from consensus.promotion import required
from consensus.quorum import majority

if TYPE_CHECKING:
    from consensus.membership import Member
    from consensus.node import Node
    from tests.sim.cluster import Simulation
    from tests.sim.host import Host

SHARE = 0.2
"""Of the seeds."""


def leave_out(world: Simulation) -> tuple[str, ...]:
    """At the end of the faults: who stays down, or cut off, for good. Its chance is its own: other seeds stay as they
    are."""
    dice = random.Random(f"{world.seed} minority")
    if world.mutant or dice.random() >= SHARE:
        return ()
    known = [h.raft.node for h in world.hosts.values() if h.boots and h.raft.node]
    if not known:
        return ()
    newest = max(known, key=lambda n: n.applied)
    # Who is to leave may be gone with the next message; then the majority is that of the others.
    staying = [m for m in newest.cluster.members if m.votes and not m.aim.startswith(GONE)]
    voters = [m.name for m in staying]
    most = (len(voters) - 1) // 2
    if not most:
        return ()
    out = tuple(sorted(dice.sample(voters, dice.randrange(1, most + 1))))
    voting = [m for m in staying if m.name not in out and _is_itself(world.hosts[m.name], m)]
    if len(voting) < majority(len(voters)):
        return ()
    how = dice.choice(("down", "cut off"))
    for name in out if how == "down" else ():
        world.hosts[name].wanted_up = False
        world.hosts[name].power_cut(back_after_ns=0)
    if how != "down":
        world.network.outside = frozenset(out)
    world.faults.did("minority", f"{', '.join(out)} stay {how}")
    return out


def _is_itself(host: Host, member: Member) -> bool:
    """It still has the Raft state of the one that was let in."""
    return host.raft_disk.is_sound and host.incarnation == member.incarnation


def refuses_rightly(world: Simulation) -> bool:
    """There is no primary, there can be none, and the leader names those who are missing."""
    healed = (h for h in world.hosts.values() if h.name not in world.out and h.raft_process.alive)
    leader = next((h for h in healed if h.raft.leads), None)
    node = leader.raft.node if leader is not None else None
    if node is None or node.notes is None:
        return False
    if not node.cluster.system_identifier and node.cluster.founder in world.out:
        world.counts["a majority waits for its founder"] += 1
        return f"{node.cluster.founder}, which was to create" in node.notes.sentence
    if node.granted() is not None:
        return _too_few_copies(world, node)
    for quorum in required(node.tip()):
        able = {n for n in quorum.seated if n not in world.out and _has_position(world, world.hosts[n], node)}
        short = quorum.needed - len(able)
        unsaid = [n for n in world.out if n in quorum.group.names and n not in node.notes.sentence]
        if short > 0 and "could be lost" in node.notes.sentence and not unsaid:
            world.counts["a majority refuses, and says why"] += 1
            world.note("world", f"refused: {node.notes.sentence}")
            return True
    return False


def _has_position(world: Simulation, host: Host, node: Node) -> bool:
    """Does it hold a complete copy of its own, as who it is in the log?"""
    member, directory, record = node.cluster.member(host.name), host.directory, host.parent.view.record
    if member is None or directory is None or directory.mark is None or not directory.whole:
        return False
    answer = node.notes.promises.get(host.name) if node.notes is not None else None
    if isinstance(answer, NoPosition) and "the term history says" in answer.reason:
        # Its receiver went on to a new epoch of the same node while its Raft child was away: rightly, by safety.md.
        world.counts["a copy on a timeline that its history does not name"] += 1
        return False
    mine = directory.mark[0] == member.incarnation
    return mine and bool(record.history) and not record.marker and record.proof is None


def _too_few_copies(world: Simulation, node: Node) -> bool:
    """Strict: it stays closed (or its commits wait) as long as fewer than k of the group live."""
    for group in node.cluster.groups:
        here = [n for n in node.cluster.seated(group) if n not in world.out]
        if len(here) < group.k:
            world.counts["a majority waits for copies"] += 1
            world.note("world", f"too few copies: {len(here)} of {group.k}: {node.notes and node.notes.sentence}")
            return True
    return False
