"""What only some seeds have, by a chance of its own, so that the others stay as they are: a full PGDATA, a damaged Raft
store, a node that moves, and people who accept the loss that they were told of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus import changes
from consensus.membership import WITNESS
from fencing.lease import MS
from tests.sim.network import DATA
from tests.sim.stories import Stories

if TYPE_CHECKING:
    from tests.sim.host import Host

SECOND = 1_000 * MS
HARMS = ("pgdata-full", "damage-raft", "move", "told-loss")
SHARE = 0.4
"""Of the seeds."""


class Harm(Stories):
    def _pgdata_full(self) -> None:
        """Postgres panics once it needs a new segment, and hardly starts."""
        host, ms = self._likely_primary(), self._ms(200, 6_000)
        self.did("pgdata-full", f"{host.name} for {ms} ms")
        host.fill_pgdata(self.world.dice.randrange(12))
        self.world.after(ms * MS, host.make_room_for_pgdata)

    def _damage_raft(self) -> None:
        """Bits flip in the Raft store while the node is down. It refuses to start, until a person moves it away."""
        host = self._any()
        if not self.may_wipe(host):
            return
        host.watchdog_process.end()
        if host.postgres is not None:
            host.postgres.end()
        host.parent_ended()
        cuts = host.raft_disk.cuts

        def flip() -> None:
            if not host.raft_process.alive and host.raft_disk.cuts == cuts:
                self.did("damage-raft", f"{host.name}: {host.raft_disk.damage()}")

        self.world.after(100 * MS, flip)
        self.world.after(self._ms(2_000, 8_000) * MS, lambda: self.mend_raft(host))

    def mend_raft(self, host: Host) -> None:
        if host.refused_damage:
            host.refused_damage = False
            self.world.counts["damaged store moved away"] += 1
            self.world.note("world", f"a person moves the Raft store of {host.name} away")
            host.power_cut(back_after_ns=500 * MS)
            host.raft_disk.wipe()

    def may_wipe(self, host: Host) -> bool:
        """One at a time: two wiped copies may be all that held a commit."""
        world = self.world
        primary = world.primary()
        if primary is None or primary.raft.node is None or host.removed:
            return False
        cluster = primary.raft.node.cluster
        grant = cluster.grant
        if cluster.member(host.name) is None or grant is None or not changes.at_rest(cluster):
            return False
        if len([m for m in cluster.members if m.has_data]) < 3:
            return False
        return all(self._is_whole(world.hosts[m.name], m.incarnation, primary, grant.term) for m in cluster.members)

    def _is_whole(self, host: Host, incarnation: int, primary: Host, epoch: int) -> bool:
        """It is who the log says, and has a copy that counts: not one whose receiver went on to a new epoch of the same
        primary while its control plane was away, so that its term history does not name the timeline."""
        up = host.raft_process.alive and host.parent_process.alive and host.raft.node is not None
        if not up or host.raft.identity.incarnation != incarnation:
            return False
        if host is primary or host.role == WITNESS:
            return True
        server = host.postgres
        streams = server is not None and server.receiver is not None and not server.receiver.forks
        return streams and host.parent.view.record.proof is None and host.parent.local.upstream == epoch

    def _move(self) -> None:
        """It comes back at another address. One at a time: two may have nobody left who knows where they are."""
        host, primary = self._any(), self.world.primary()
        if primary is None or primary.raft.node is None or host.removed:
            return
        members = primary.raft.node.cluster.members
        known = all(m.raft == self.world.hosts[m.name].raft_address for m in members)
        if not known or host.name not in {m.name for m in members}:
            return
        host.moves += 1
        back = self._ms(100, 3_000)
        self.did("move", f"{host.name} to {host.raft_address}, back in {back} ms")
        host.power_cut(back_after_ns=back * MS)

    def _told_loss(self) -> None:
        """The primary is lost while a standby has just lost its copy: too few know their position, and a person, who
        was told whose is missing, goes on without."""
        world, host = self.world, self.world.primary()
        if host is None or world.commit != "quorum" or not self.may_wipe(host):
            return
        others = [h for h in world.standbys() if h is not host]
        some = world.dice.sample(others, len(others) // 2)
        away, rest = self._ms(9_000, 25_000), [h.name for h in others if h not in some]
        self.did("told-loss", f"{host.name} is lost for {away} ms, so are copies: {', '.join(h.name for h in some)}")
        self._cut((DATA,), [(host.name, n) for n in rest], 1_000)
        world.after(900 * MS, lambda: self._lose(host, some, away) if self.on and world.primary() is host else None)

    def _lose(self, host: Host, some: list[Host], away: int) -> None:
        world = self.world
        for number, other in enumerate(some):
            other.power_cut(back_after_ns=self._ms(100, 600) * MS if not number else away * MS)
            if not number:
                other.lose_copy()
        host.power_cut(back_after_ns=away * MS)
        asked = self._ms(3_000, 5_000) * MS
        world.after(asked, lambda: self._fail_over(accepts=False))
        world.after(asked + 2 * SECOND, lambda: self._fail_over(accepts=True))

    def _fail_over(self, *, accepts: bool) -> None:
        leader = next((h for h in self.world.hosts.values() if h.raft_process.alive and h.raft.leads), None)
        if self.on and leader is not None and self.world.primary() is None and leader.parent_process.alive:
            self.did("failover", f"at {leader.name}, {'data loss accepted' if accepts else 'no data loss accepted'}")
            request = {"name": "failover", "body": {"accept_data_loss": accepts}}
            leader.parent.tell_raft("admin.request", request, "person")
