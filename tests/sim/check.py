"""What must be true at every instant (safety.md, "Invariants"). Sees everything, as nobody in the cluster can.

No clock of a node is trusted: what is said of time is said in true time, with the contract's own exceptions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from consensus.campaign import Campaigning
from consensus.cluster import SyncGroup
from consensus.messages import AppendReq, VoteResp
from consensus.node import Node
from consensus.promotion import required
from consensus.raft import Role
from consensus.record import Identity, Position
from consensus.write import Stored, Write
from fencing.lease import MS
from tests.sim.postgres import Postgres, State

if TYPE_CHECKING:
    from tests.sim.cluster import Simulation
    from tests.sim.host import Host
    from tests.sim.pgdata import Directory


class Violation(AssertionError):  # it is what is reported, not an error of the simulator
    """Something that safety.md rules out has happened."""


class Stuck(Violation):
    """Nothing is lost, and nothing moves."""


class Crash(Violation):
    """Something was raised that nobody expects."""


class Reign(NamedTuple):
    node: str
    timeline: int
    wal: tuple[int, ...]
    """When it was promoted."""
    groups: tuple[SyncGroup, ...]
    """In force at its grant."""
    answered: dict[int, frozenset[str]]
    """By term of a grant, its own or one before it, whose data loss was accepted: of what these hold nothing may be
    lost, the others were named as missing."""


class Commit(NamedTuple):
    record: int
    end: int
    """Index after it."""
    epoch: int
    asynchronous: bool
    """Acknowledged while the log of its node said that commits may be lost."""


class Checks:
    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.leaders: dict[int, tuple[str, int]] = {}
        self.votes: dict[tuple[str, int, int], str] = {}
        self.durable: dict[tuple[str, int], tuple[int, str, int]] = {}
        """By node: term, vote and promise as saved."""
        self.committed: dict[int, tuple[int, str, str]] = {}
        self.applied: dict[str, tuple[int, int]] = {}
        self.reigns: dict[int, Reign] = {}
        self.timelines: dict[int, int] = {}
        self.commits: list[Commit] = []
        self.gone: list[tuple[str, Directory]] = []
        """Copies that were wiped, and whose."""
        self.lost: set[int] = set()
        self.records = 0
        self.leases: dict[str, tuple[int, int, int]] = {}
        """Term, end by the clock of its node, true end with the time to kill."""
        self.chosen = 0
        self.answered: dict[int, frozenset[str]] = {}
        """By term in which somebody was chosen with data loss accepted: whose positions were known."""
        self.groups: dict[str, tuple[SyncGroup, ...]] = {}
        """By node: those of its log as far as it is committed there."""
        self.granted: dict[str, frozenset[int]] = {}
        """By node: terms of the grants in that log."""

    def fail(self, what: str) -> None:
        self.world.note("CHECK", what)
        raise Violation(what)

    # -- Raft ----------------------------------------------------------------------------------------------------

    def raft_started(self, host: Host, stored: Stored) -> None:
        """Term, vote and promise never go back on disk."""
        if stored.identity is None:
            return
        before = self.durable.get((stored.identity.name, stored.identity.incarnation))
        if before is None:
            return
        term, vote, promised = before
        hard = stored.hard
        if hard.term < term or (hard.term == term and vote and hard.vote != vote) or stored.record.promised < promised:
            self.fail(
                f"{host.name} had term {term}, vote {vote!r}, promise {promised} on disk and now has {stored.hard}"
            )

    def saved(self, host: Host, identity: Identity, write: Write) -> None:
        key = (identity.name, identity.incarnation)
        term, vote, promised = self.durable.get(key, (0, "", 0))
        if write.hard is not None:
            if (write.hard.term, bool(write.hard.vote)) < (term, bool(vote)):
                self.fail(f"{host.name} saves {write.hard} after term {term}, vote {vote!r}")
            term, vote = write.hard.term, write.hard.vote
        if write.record is not None:
            if write.record.promised < promised:
                self.fail(f"{host.name} saves promise {write.record.promised} after {promised}")
            promised = write.record.promised
        self.durable[key] = term, vote, promised

    def said(self, host: Host, dst: str, message: VoteResp | AppendReq) -> None:
        if isinstance(message, VoteResp):
            if not message.granted:
                return
            key = (host.name, host.raft.identity.incarnation, message.term)
            if self.votes.setdefault(key, dst) != dst:
                self.fail(f"{host.name} votes for {self.votes[key]} and {dst} in term {message.term}")

    def raft_turned(self, host: Host, node: Node) -> None:
        raft = node.raft
        if raft.role is Role.LEADER:
            me = (host.name, node.identity.incarnation)
            if self.leaders.setdefault(raft.term, me) != me:
                self.fail(f"term {raft.term} has the leaders {self.leaders[raft.term][0]} and {host.name}")
            if raft.released >= raft.term:
                self.leases.pop(host.name, None)  # Postgres is gone, verified
            elif raft.lease_until_ns:
                self._leased(host, raft.term, raft.lease_until_ns)
            if node.notes is not None and node.notes.granted_index and raft.term > self.chosen:
                self._chosen(node, node.notes)
        self.groups[host.name] = node.cluster.groups
        self.granted[host.name] = frozenset(grant.term for grant in node.cluster.grants)
        boot, applied = self.applied.get(host.name, (0, 0))
        if boot == raft.boot and applied == node.applied:
            return
        first = applied + 1 if boot == raft.boot else node.applied + 1
        for entry in raft.log.between(first, node.applied):
            mine = (entry.term, entry.kind, entry.data)
            if self.committed.setdefault(entry.index, mine) != mine:
                self.fail(f"entry {entry.index} is {self.committed[entry.index][:2]} and, on {host.name}, {mine[:2]}")
        self.applied[host.name] = raft.boot, node.applied

    def _chosen(self, node: Node, notes: Campaigning) -> None:
        self.chosen = notes.term
        entry = node.raft.log.between(notes.granted_index, notes.granted_index)
        if entry and "data loss was accepted" in entry[0].data:
            seated = frozenset[str]().union(*(q.seated for q in required(node.cluster)))
            known = frozenset(n for n, p in notes.promises.items() if isinstance(p, Position) and n in seated)
            self.answered[notes.term] = known
            self.world.note("CHECK", f"data loss accepted in term {notes.term}, known: {', '.join(sorted(known))}")

    def _leased(self, host: Host, term: int, until_ns: int) -> None:
        """The first lease of a term: no other may be running, nor its time to kill."""
        kill_ns = host.watchdog.state.kill_bound_ns
        is_first = self.leases.get(host.name, (0, 0, 0))[0] != term
        self.leases[host.name] = term, until_ns, host.clock.true(until_ns + kill_ns)
        for name, (_, _, gone_true_ns) in self.leases.items() if is_first else ():
            other = self.world.hosts[name]
            left_ms = (gone_true_ns - self.world.now) / MS
            exempt = self._exempt(other) or self._exempt(host)
            if other is not host and left_ms > 0 and not exempt:
                self.fail(f"{host.name} has a lease of term {term}, {left_ms:.0f} ms before that of {name} is over")

    # -- WAL -----------------------------------------------------------------------------------------------------

    def old_record(self) -> int:
        self.records += 1
        return self.records

    def record_made(self, host: Host, postgres: Postgres) -> int:
        """A Postgres accepts a write: nobody else may, and the lease must not be over by more than the kill bound."""
        self.one_writer(host)
        self.lease_holds(host, postgres)
        self.records += 1
        return self.records

    def _exempt(self, host: Host) -> bool:
        """May this machine break invariants 1 and 3 now?"""
        if host.is_helpless:
            host.outside_bounds_until = max(host.outside_bounds_until, self.world.now + 1_000 * MS)
        return host.outside_bounds_until >= self.world.now

    def one_writer(self, host: Host) -> None:
        for other in self.world.hosts.values():
            found = other.postgres
            if other is host or found is None or not found.accepts:
                continue
            if not self._exempt(other) and not self._exempt(host):
                self.fail(f"{other.name} and {host.name} both accept writes")

    def lease_holds(self, host: Host, postgres: Postgres) -> None:
        term, until_ns, _ = self.leases.get(host.name, (0, 0, 0))
        late_ns = host.now() - until_ns - host.watchdog.state.kill_bound_ns
        if (term != postgres.epoch or late_ns > 0) and not self._exempt(host):
            if term > postgres.epoch:
                return  # the leader of a newer term looks at its own, older lease: below, by the clock of the others
            self.fail(
                f"{host.name} accepts a write of epoch {postgres.epoch}, {late_ns / MS:.0f} ms after L + F of {term}"
            )

    def promoted(self, host: Host, postgres: Postgres, epoch: int) -> None:
        directory = postgres.directory
        postgres.epoch = epoch
        self.world.counts["promotions"] += 1
        self.world.note(
            host.name, f"Postgres is primary: epoch {epoch}, timeline {directory.timeline}, at {directory.end}"
        )
        if self.timelines.setdefault(directory.timeline, epoch) != epoch:
            self.fail(f"timeline {directory.timeline} of epoch {self.timelines[directory.timeline]} is used by {epoch}")
        if epoch in self.reigns:
            self.fail(f"epoch {epoch} begins twice, on {self.reigns[epoch].node} and on {host.name}")
        # A grant with accepted loss counts also where it was not used: those after it start from what it left.
        answered = {term: known for term, known in self.answered.items() if term in self.granted[host.name]}
        reign = Reign(host.name, directory.timeline, tuple(directory.wal), self.groups[host.name], answered)
        self.reigns[epoch] = reign
        for commit in self.commits:
            if commit.epoch < epoch:
                self._contained(commit, epoch, reign)
        self.one_writer(host)

    def _contained(self, commit: Commit, epoch: int, reign: Reign) -> None:
        held = len(reign.wal) >= commit.end and reign.wal[commit.end - 1] == commit.record
        if held or commit.record in self.lost:
            return
        # While the mode changes, what was acknowledged by the group of quorum commit is still not to be lost.
        if any(g.asynchronous and (commit.asynchronous or len(reign.groups) == 1) for g in reign.groups):
            self.lost.add(commit.record)
            return
        told = (known for term, known in reign.answered.items() if term > commit.epoch)
        if any(not any(self._holds(name, commit) for name in known) for known in told):
            self.lost.add(commit.record)
            self.world.counts["commits lost as told"] += 1
            return
        self.fail(
            f"commit {commit.record}, acknowledged in epoch {commit.epoch}, is missing from epoch {epoch}, {reign.node}"
        )

    def _holds(self, name: str, commit: Commit) -> bool:
        directory = self.world.hosts[name].directory
        if directory is None or not directory.whole or directory.flushed < commit.end:
            return False
        return directory.wal[commit.end - 1] == commit.record

    def acknowledged(self, host: Host, postgres: Postgres, index: int, record: int) -> None:
        asynchronous = any(group.asynchronous for group in self.groups[postgres.node])
        commit = Commit(record, index, postgres.epoch, asynchronous)
        self.commits.append(commit)
        self.world.counts["commits"] += 1
        for epoch, reign in self.reigns.items():
            if epoch > commit.epoch:
                self._contained(commit, epoch, reign)
        if not asynchronous and not self._held_by_enough(postgres, index, record):
            self.fail(f"{host.name} acknowledges {record} at {index} of epoch {postgres.epoch}: too few have it")

    def _held_by_enough(self, postgres: Postgres, index: int, record: int) -> bool:
        """By a group of the log as it stands on that node; only the incarnation that a seat is for fills it."""
        holders = set()
        here = ((host.name, host.directory) for host in self.world.hosts.values())
        for name, directory in (*here, *self.gone):
            if directory is None or directory.mark is None or not directory.whole:
                continue
            if directory.flushed >= index and directory.wal[index - 1] == record:
                holders.add((name, directory.mark[0]))
        groups = self.groups[postgres.node]
        return any(sum(tuple(seat) in holders for seat in group.members) >= group.k for group in groups)

    def ended(self, host: Host, postgres: Postgres) -> None:
        if postgres.epoch:
            self.world.note(host.name, f"Postgres of epoch {postgres.epoch} is gone")

    # -- the end -------------------------------------------------------------------------------------------------

    def everything_is_there(self) -> None:
        """Once a primary is open and all is quiet."""
        primaries = [
            h for h in self.world.hosts.values() if h.postgres is not None and h.postgres.state is State.PRIMARY
        ]
        for host in primaries:
            assert host.postgres is not None
            wal = host.postgres.directory.wal
            for commit in self.commits:
                if commit.record not in self.lost and (len(wal) < commit.end or wal[commit.end - 1] != commit.record):
                    self.fail(f"commit {commit.record} is not on the last primary, {host.name}")
