"""One machine: its clock, its disks, its four processes, and who notices when one of them ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consensus import retiming
from consensus.membership import WITNESS, Member
from consensus.record import Identity
from consensus.retiming import Pace
from fencing import deadman as machine
from fencing.lease import MS, PROFILES, UNTOLD
from supervisor.errors import ExitCode
from tests.sim import replication
from tests.sim.disk import RaftDisk
from tests.sim.parent import Parent
from tests.sim.pgdata import Directory
from tests.sim.postgres import Conf, Postgres, State, Upstream
from tests.sim.process import Process
from tests.sim.raftchild import RaftChild
from tests.sim.watchdog import Watchdog
from tests.sim.world import Act

if TYPE_CHECKING:
    from tests.sim.clock import Clock
    from tests.sim.cluster import Simulation


PAUSED_NS = 20_000_000
"""Nothing runs on a machine that is paused: so long until it is looked at again."""


class Host:
    """``role``: voter or witness. ``join``: address of a member, for one that does not found."""

    def __init__(
        self, world: Simulation, name: str, clock: Clock, *, role: str, peers: tuple[str, ...], join: str
    ) -> None:
        self.world, self.network, self.name, self.clock = world, world.network, name, clock
        self.role, self.peers, self.join = role, peers, join
        self.raft_disk = RaftDisk(world)
        self.directory: Directory | None = None
        self.new_directory: Directory | None = None
        """What a founder or a clone makes beside the old one."""
        self.postgres: Postgres | None = None
        self.parent_process, self.raft_process = Process(world, "parent"), Process(world, "raft")
        self.watchdog_process, self.postgres_process = Process(world, "watchdog"), Process(world, "postgres")
        self.wanted_up = True
        """What looks after services starts it again when it ends."""
        self.removed = False
        self.crash_after_save = False
        self.outside_bounds_until = 0
        """True time until which this machine may break invariants 1 and 3 (safety.md names the exceptions)."""
        self.last_refusal = ""
        self.incarnation = 0
        """As its Raft child last knew it."""
        self.refused_damage = False
        """Its Raft child has ended for a store that cannot be trusted."""
        self.moves = 0
        self.room: int | None = None
        """For WAL; None: plenty."""
        self.boots = 0
        self.bounds, self.bounds_at = PROFILES[world.profile], UNTOLD
        """What its parent has last told the watchdog, and by which entry of the log."""
        self._bus_at: dict[str, int] = {}

    @property
    def processes(self) -> tuple[Process, ...]:
        return self.parent_process, self.raft_process, self.watchdog_process, self.postgres_process

    @property
    def raft_address(self) -> str:
        """Where it is now; a name in ``--peers`` is looked up (port 0) and always leads there."""
        return f"{self.name}:{self.moves * 10 + 1}"

    @property
    def postgres_address(self) -> str:
        return "" if self.role == WITNESS else f"{self.name}:2"

    def member(self, identity: Identity) -> Member:
        return Member(
            self.name, identity.incarnation, self.raft_address, self.postgres_address, f"{self.name}:3", self.role,
            self.role,
        )  # fmt: skip

    def now(self) -> int:
        return self.clock.local(self.world.now)

    def bus(self, to: Process, channel: str, act: Act) -> None:
        """A frame on the local bus: in order on each channel."""
        world = self.world
        at = max(world.now + 20_000 + world.below(380_000), self._bus_at.get(channel, 0) + 1)
        self._bus_at[channel] = at
        to.post_at(at, act)

    # -- processes -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The whole node, as a service manager does it."""
        if self.parent_process.alive or not self.wanted_up:
            return
        if self.clock.stopped:
            self.world.after(PAUSED_NS, self.start)
            return
        self.boots += 1
        self._end_children()
        if self.postgres is not None:
            self.postgres.end()  # left by a parent that died with its watchdog
        self.world.note(self.name, "node starts")
        self.parent_process.start()
        self.parent = Parent(self)
        self.bounds, self.bounds_at = self.parent.timings, UNTOLD
        self.start_watchdog()
        self.start_raft()
        self.parent.begin()

    def start_watchdog(self) -> None:
        self.watchdog_process.start()
        self.watchdog = Watchdog(self, self.bounds, self.bounds_at)
        self.watchdog_process.post(self.world.between(10_000, 80_000), lambda: self.tell_parent("watchdog.ready", {}))

    def start_raft(self) -> None:
        self.raft = RaftChild(self)
        self.raft_process.start_up(self.world.between(20_000, 120_000), self.raft.start)

    def tell_parent(self, name: str, body: dict[str, Any]) -> None:
        self.bus(self.parent_process, "watchdog-parent", lambda: self.parent.hear(name, body))

    def lease_told(self, term: int, until_ns: int) -> None:
        self.watchdog.lease(term, until_ns)

    def raft_ended(self, code: int) -> None:
        """By itself or killed."""
        if not self.raft_process.alive:
            return
        self.raft_process.end()
        self.raft_disk.kill()
        self.parent_process.post(self.world.between(100, 3_000), lambda: self.parent.child_ended("raft", code))

    def watchdog_ended(self) -> None:
        self.watchdog_process.end()
        self.parent_process.post(self.world.between(100, 3_000), lambda: self.parent.child_ended("watchdog", -9))

    def parent_ended(self) -> None:
        """The watchdog hears of it by pidfd, the postmaster by PDEATHSIG; the Raft child ends with its launcher."""
        if not self.parent_process.alive:
            return
        self.parent_process.end()
        self.watchdog_process.post(self.world.between(100, 3_000), lambda: self.watchdog.hear(machine.ParentGone()))
        if self.postgres is not None:
            self.postgres.stop_immediately()
        life = self.raft_process.life
        self.world.after(self.world.between(500, 20_000), lambda: self._end_orphan(life))
        self.world.after(self.world.between(300_000, 3_000_000), self.start)

    def _end_orphan(self, life: int) -> None:
        if self.raft_process.life == life and self.raft_process.alive:
            self.raft_process.end()
            self.raft_disk.kill()

    def leave(self, code: int) -> None:
        """The parent's orderly end: Postgres is down, the children are told to go."""
        self.world.note(self.name, f"node ends with {code}")
        self.parent_process.end()
        self._end_children()
        if code == ExitCode.REFUSED or self.removed:
            self.wanted_up = False
        again = self.world.between(500_000, 3_000_000)
        self.world.after(again, self.start)

    def _end_children(self) -> None:
        self.raft_process.end()
        self.raft_disk.kill()
        self.watchdog_process.end()

    def power_cut(self, *, back_after_ns: int) -> None:
        if self.parent_process.alive:
            self.parent_process.end()
        self._end_children()
        if self.postgres is not None:
            self.postgres.end(unheard=True)
        self.raft_disk.power_cut()
        for directory in (self.directory, self.new_directory):
            if directory is not None:
                directory.power_cut(self.world)
        self.clock.reboot(self.world.now, self.world.between(1_000_000, 30_000_000))
        self.world.after(back_after_ns, self.start)

    def fill_pgdata(self, records: int) -> None:
        """So many more fit into what is there."""
        self.room = records

    def make_room_for_pgdata(self) -> None:
        self.room = None

    @property
    def is_helpless(self) -> bool:
        """The parent hangs, and both of the others hang or are gone: nobody is left to act (safety.md exempts it)."""
        others = (self.raft_process, self.watchdog_process)
        parent = self.parent_process
        return parent.alive and parent.frozen and all(p.frozen or not p.alive for p in others)

    def lose_copy(self) -> None:
        """Its PGDATA is gone; what it had flushed may have been counted, and the word of that be under way."""
        if self.directory is not None:
            self.world.checks.gone.append((self.name, self.directory))
        self.directory = self.new_directory = None

    def was_removed(self, reason: str) -> None:
        if not self.removed:
            self.world.note(self.name, f"is told: {reason}")
        self.removed = True

    # -- Postgres ------------------------------------------------------------------------------------------------

    def start_postgres(self, conf: Conf) -> Postgres:
        directory = self.directory
        if directory is None or not directory.whole:
            raise AssertionError("Postgres is started on what a rewind or a clone has left")
        self.postgres = Postgres(self.world, self.name, directory, conf, process=self.postgres_process, observer=self)
        return self.postgres

    def exited(self, postgres: Postgres) -> None:
        self.world.checks.ended(self, postgres)
        if self.postgres is postgres:
            self.postgres = None
        self.parent_process.post(self.world.between(50, 2_000), lambda: self.parent.postgres_exited(postgres))

    def became_primary(self, postgres: Postgres) -> None:
        self.world.checks.promoted(self, postgres, self.parent.local.epoch)

    def acknowledged(self, postgres: Postgres, index: int, record: int) -> None:
        self.world.checks.acknowledged(self, postgres, index, record)

    def record_made(self, postgres: Postgres) -> int:
        return self.world.checks.record_made(self, postgres)

    def no_room(self, records: int) -> bool:
        """Nor for what a checkpoint or a promotion writes (0), once there is none for WAL."""
        if self.room is None:
            return False
        self.room = max(0, self.room - records)
        if not self.room:
            self.world.counts["stopped by a full PGDATA"] += 1
            self.world.note(self.name, "PANIC: no room in PGDATA")
        return not self.room

    def connect(self, postgres: Postgres, upstream: Upstream) -> replication.Stream | None:
        source_host = self.world.hosts.get(upstream.node)
        source = source_host.postgres if source_host is not None else None
        if source is None or source_host is None or not self.network.both_ways(self.name, upstream.node):
            return None
        if not source.process.alive or source.process.frozen:
            return None
        self.last_refusal = replication.refused(source, postgres)
        if self.last_refusal:
            self.world.trace(f"{self.name} refused by {upstream.node}: {self.last_refusal}")
            return None
        stream = replication.Stream(self.world, self.network, source, postgres, upstream.stamp)
        postgres.process.post(self.world.between(1_000, 8_000), stream.begin)
        return stream

    def primary_elsewhere(self, node: str) -> Postgres | None:
        """The running primary of another machine, if it can be reached now."""
        other = self.world.hosts.get(node)
        found = other.postgres if other is not None else None
        if found is None or found.state is not State.PRIMARY or not self.network.both_ways(self.name, node):
            return None
        return found if found.process.alive and not found.process.frozen else None

    def watchdog_bounds(self, pace: Pace) -> None:
        """The log's timings, if they are not those it was told last."""
        if self.bounds_at != pace.at:
            self.bounds, self.bounds_at = retiming.at_the_watchdog(pace), pace.at
            self.tell_bounds()

    def tell_bounds(self) -> None:
        bounds = machine.Bounds(self.bounds.lease_ms * MS, self.bounds.kill_bound_ms * MS, self.bounds_at)
        self.bus(self.watchdog_process, "parent-watchdog", lambda: self.watchdog.hear(bounds))

    def freeze(self, which: tuple[Process, ...], for_ns: int) -> None:
        """SIGSTOP, and SIGCONT later."""
        for process in which:
            process.freeze()
            life = process.life

            def thaw(process: Process = process, life: int = life) -> None:
                if process.life != life or not process.alive:
                    return
                if self.clock.stopped:
                    self.world.after(PAUSED_NS, thaw)
                else:
                    process.thaw()

            self.world.after(for_ns, thaw)
