"""A Postgres, faithful where it matters: recovery, receivers, names in force, acknowledgement, promotion, its ends.

What is not obvious was seen on PostgreSQL 18.6 (safety.md): a standby reports its own replay LSN as soon as a stream
begins, whatever it holds; the checkpointer alone sets the flag without which no commit waits; a walsender goes by the
names it has read itself; the receive LSN is NULL after a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fencing.lease import MS
from supervisor import timelines
from tests.sim.pgdata import SEGMENT_BYTES, UNIT, Directory
from tests.sim.process import Process
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.replication import Stream

__all__ = ["SEGMENT_BYTES", "UNIT", "Conf", "Names", "Postgres", "State", "Upstream"]


class State(StrEnum):
    STARTING = "starting"
    STANDBY = "standby"
    PROMOTING = "promoting"
    PRIMARY = "primary"
    STOPPING = "stopping"
    GONE = "gone"


class Names(NamedTuple):
    """synchronous_standby_names: ``ANY needed (stamps)``; 0: empty."""

    needed: int
    stamps: tuple[str, ...] = ()


class Upstream(NamedTuple):
    """primary_conninfo."""

    node: str
    stamp: str


@dataclass(frozen=True, slots=True)
class Conf:
    upstream: Upstream | None
    names: Names
    gate: bool = True


class Session(Protocol):
    """A client's connection."""

    overrides: bool

    def answered(self, record: int, how: str) -> None:
        """``ok``, ``fail`` (nothing was written) or ``unknown``."""


class Observer(Protocol):
    """Who is told what this Postgres does: the host (its parent's eyes) and the checker."""

    def exited(self, postgres: Postgres) -> None: ...

    def became_primary(self, postgres: Postgres) -> None: ...

    def acknowledged(self, postgres: Postgres, index: int, record: int) -> None: ...

    def record_made(self, postgres: Postgres) -> int: ...

    def no_room(self, records: int) -> bool:
        """For so many more; and now there is less."""

    def connect(self, postgres: Postgres, upstream: Upstream) -> Stream | None:
        """Try to start streaming; None: refused or not reached."""


class Waiting(NamedTuple):
    end: int
    """Index."""
    record: int
    session: Session | None
    done: Callable[[], None] | None


class Postgres:
    """One life of a server."""

    def __init__(
        self, world: World, node: str, directory: Directory, conf: Conf, *, process: Process, observer: Observer
    ) -> None:
        self.world, self.node, self.directory, self.conf = world, node, directory, conf
        self.process, self.observer = process, observer
        self.state = State.STARTING
        self.seen = conf
        """What a session of ours sees, once the postmaster has signalled everybody."""
        self.upstream: Upstream | None = None
        """What the startup process goes by."""
        self.defined = conf.names.needed > 0
        self.loads = 0
        """pg_conf_load_time."""
        self.started_index = directory.checkpoint
        self.replayed = directory.checkpoint
        self.reading = True
        """Not yet through with pg_wal."""
        self.paused = False
        self.received = 0
        """Index; 0: NULL, as long as no stream has brought anything."""
        self.receiver: Stream | None = None
        self.asking = False
        """The startup process has asked for a receiver, which is being started."""
        self.senders: list[Stream] = []
        self.sessions: list[Session] = []
        self.waiting: list[Waiting] = []
        self.reading_slowly = world.chance(0.5 if world.mutant == "position-before-all-is-read" else 0.12)
        self.hangs_in_promotion = False
        self.epoch = 0
        """Of the grant under which it was promoted."""
        process.start()
        self.pid = process.life
        process.post(world.between(30_000, 200_000), self._reach_consistency)

    # -- recovery ------------------------------------------------------------------------------------------------

    def _reach_consistency(self) -> None:
        world, directory = self.world, self.directory
        if self.panics(0):
            return
        # Recovery begins by syncing the whole directory.
        directory.flushed = directory.end
        mine = max(directory.timeline, directory.control_timeline)
        burned = [n for n in directory.numbers() if n > mine and directory.is_burned(n)]
        if burned and burned[0] == directory.timeline + 1:
            return  # it waits for WAL of that timeline, for ever
        low = max(self.replayed, min(directory.consistent_at, directory.end))
        self.replayed = world.dice.randrange(low, directory.end + 1)
        if directory.consistent_at <= self.replayed:
            self.state = State.STANDBY
        slow = world.between(200_000, 3_000_000) if self.reading_slowly else world.between(500, 20_000)
        self.process.post(slow, self._read_all)

    def _read_all(self) -> None:
        self.replayed, self.reading = self.directory.end, False
        if self.state is State.STARTING and self.directory.consistent_at <= self.replayed:
            self.state = State.STANDBY
        self._want_receiver()

    @property
    def is_through(self) -> bool:
        """The startup process waits for more WAL than there is."""
        return not self.reading

    @property
    def waits_for_stream(self) -> bool:
        """Wait event RecoveryWalStream."""
        return self.upstream is not None and not self.reading and not self.paused

    # -- settings ------------------------------------------------------------------------------------------------

    def reload(self, conf: Conf) -> None:
        """SIGHUP: the postmaster passes it on, and everybody reads the file when it gets to it."""
        self.conf = conf
        self.process.post(self.world.between(100, 2_000), self._pass_on)

    def _pass_on(self) -> None:
        world, post = self.world, self.process.post
        self.seen = self.conf
        self.loads += 1
        post(world.between(100, 9_000), self._startup_reads)
        busy = world.between(300_000, 2_000_000) if world.chance(0.05) else world.between(100, 20_000)
        post(busy, self._checkpointer_reads)
        for stream in self.senders:
            slow = world.between(50_000, 900_000) if world.chance(0.03) else world.between(100, 8_000)
            post(slow, lambda stream=stream: self._sender_reads(stream))  # type: ignore[misc]

    def _startup_reads(self) -> None:
        if self.paused or self.state not in (State.STARTING, State.STANDBY):
            return  # after the pause it reads before it does anything else: see `resume`
        before, self.upstream = self.upstream, self.conf.upstream
        if self.receiver is not None and before != self.upstream:
            self.receiver.end_target()
        self._want_receiver()

    def _checkpointer_reads(self) -> None:
        self.defined = self.conf.names.needed > 0
        if not self.defined:  # everybody who waits is let go
            self.release(self.directory.end)

    def _sender_reads(self, stream: Stream) -> None:
        stream.names = self.conf.names

    def resume(self) -> None:
        """pg_wal_replay_resume."""
        if self.paused:
            self.paused = False
            self._catch_up()
            self._startup_reads()

    # -- receiving -----------------------------------------------------------------------------------------------

    def _want_receiver(self) -> None:
        if self.state not in (State.STARTING, State.STANDBY) or self.reading or self.asking or self.paused:
            return
        if self.upstream is not None and self.receiver is None:
            self.asking = True
            self.process.post(self.world.between(500, 4_000), self._fork_receiver)

    def _fork_receiver(self) -> None:
        self.asking = False
        if self.upstream is None or self.receiver is not None or self.state not in (State.STARTING, State.STANDBY):
            return
        self.receiver = self.observer.connect(self, self.upstream)
        if self.receiver is None:
            self.try_again()

    def try_again(self) -> None:
        """wal_retrieve_retry_interval."""
        self.process.post(1_000 * MS, self._want_receiver)

    def terminate_receiver(self) -> None:
        """SIGTERM by pid."""
        if self.receiver is not None:
            self.process.post(self.world.between(200, 5_000), self.receiver.end_target)

    def received_to(self, index: int) -> None:
        """The receiver has flushed."""
        self.directory.flushed = max(self.directory.flushed, index)
        self.received = max(self.received, index)
        self._catch_up()

    def _catch_up(self) -> None:
        if not self.paused and not self.reading:
            self.replayed = max(self.replayed, self.received)
        if self.state is State.STARTING and not self.reading and self.directory.consistent_at <= self.replayed:
            self.state = State.STANDBY

    # -- writing -------------------------------------------------------------------------------------------------

    @property
    def accepts(self) -> bool:
        """Can it take a write this very moment?"""
        return self.state is State.PRIMARY and self.process.alive and not self.process.frozen

    def insert(self, session: Session | None, done: Callable[[], None] | None = None) -> None:
        """A commit of one row (without a session: of our own, whose end ``done`` hears)."""
        refuses = session is not None and self.seen.gate and not session.overrides
        if self.state is not State.PRIMARY or refuses:
            if session is not None:
                session.answered(0, "fail")
            return
        if self.panics(1):
            return
        record = self.observer.record_made(self)
        self.directory.append([record], self.directory.timeline)
        self.waiting.append(Waiting(self.directory.end, record, session, done))
        self.process.post(self.world.between(100, 3_000), lambda index=self.directory.end: self._flush(index))  # type: ignore[misc]

    def _flush(self, index: int) -> None:
        self.directory.flushed = max(self.directory.flushed, index)
        for stream in self.senders:
            stream.kick()
        if not self.defined:
            self.release(self.directory.flushed)
        else:
            self.settle()

    def settle(self, by: Stream | None = None) -> None:
        """A walsender looks whom to let go, by the names it goes by itself."""
        for sender in (by,) if by is not None else tuple(self.senders):
            names = sender.names
            if sender.stamp not in names.stamps or not names.needed:
                continue
            counted = sorted((s.reported for s in self.senders if s.stamp in names.stamps), reverse=True)
            if len(counted) >= names.needed:
                self.release(min(counted[names.needed - 1], self.directory.flushed))

    def release(self, upto: int) -> None:
        while self.waiting and self.waiting[0].end <= min(upto, self.directory.flushed):
            index, record, session, done = self.waiting.pop(0)
            self.observer.acknowledged(self, index, record)
            if session is not None:
                session.answered(record, "ok")
            if done is not None:
                done()

    def checkpoint(self, done: Callable[[], None]) -> None:
        def complete() -> None:
            directory = self.directory
            if self.state is State.PRIMARY:
                self._own_record()
            if self.state is State.GONE:
                return
            directory.checkpoint = min(
                self.replayed if self.state is State.STANDBY else directory.flushed, directory.end
            )
            directory.control_timeline = directory.timeline
            self._checkpointer_reads()
            done()

        self.process.post(self.world.between(5_000, 150_000), complete)

    def write(self) -> None:
        """Something that nobody waits for."""
        if self.state is State.PRIMARY:
            self._own_record()

    def _own_record(self) -> None:
        if self.panics(1):
            return
        directory = self.directory
        directory.append([self.observer.record_made(self)], directory.timeline)
        self._flush(directory.end)

    def panics(self, records: int) -> bool:
        """Is this the end, for want of room?"""
        if self.observer.no_room(records):
            self.end()
        return self.state is State.GONE

    # -- promotion -----------------------------------------------------------------------------------------------

    def promote(self) -> None:
        """pg_promote(false): the highest number it has heard of, plus one."""
        if self.state is not State.STANDBY:
            return
        self.state = State.PROMOTING
        if not self.hangs_in_promotion:
            self.process.post(self.world.between(3_000, 60_000), self._choose_timeline)

    def _choose_timeline(self) -> None:
        directory = self.directory
        if self.panics(0):
            return
        if self.receiver is not None:
            self.receiver.end_target()
        directory.flushed = directory.end
        number = directory.timeline + 1
        while timelines.history_name(number) in directory.histories:
            number += 1
        own = directory.histories.get(timelines.history_name(directory.timeline), "")
        line = f"{directory.timeline}\t{timelines.format_lsn(directory.end * UNIT)}\tno recovery target specified\n"
        directory.histories[timelines.history_name(number)] = own + line
        self.process.post(self.world.between(500, 20_000), lambda: self._begin(number))

    def _begin(self, number: int) -> None:
        directory = self.directory
        directory.timeline = number
        directory.consistent_at = 0
        self.state = State.PRIMARY
        self.observer.became_primary(self)
        self._own_record()

    # -- the end -------------------------------------------------------------------------------------------------

    def stop_fast(self) -> None:
        self.process.post(self.world.between(100, 2_000), self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        if self.state in (State.STOPPING, State.GONE):
            return
        was_primary = self.state is State.PRIMARY
        self.state = State.STOPPING
        self._cut_sessions()
        if self.receiver is not None:
            self.receiver.end_target()
        if was_primary:
            self._own_record()
        self.process.post(self.world.between(2_000, 30_000), lambda: self._try_to_stop(was_primary))

    def _try_to_stop(self, was_primary: bool) -> None:
        """As a primary only once every standby that is connected has all of it."""
        if was_primary and any(s.reported < self.directory.end for s in self.senders):
            self.process.post(20 * MS, lambda: self._try_to_stop(was_primary))
            return
        directory = self.directory
        directory.clean = True
        directory.checkpoint = directory.end if was_primary else min(self.replayed, directory.end)
        directory.control_timeline = directory.timeline
        self.end()

    def stop_immediately(self) -> None:
        self.process.post(self.world.between(500, 30_000), self.end)

    def end(self, *, unheard: bool = False) -> None:
        """Every process of it is gone: a crash, unless `directory.clean` was set before. ``unheard``: so is the
        machine, and nobody tells the others."""
        if self.state is State.GONE:
            return
        self.state = State.GONE
        self.process.end()
        self._cut_sessions()
        if self.receiver is not None:
            self.receiver.end_target(unheard=unheard)
        for stream in tuple(self.senders):
            stream.end_source(unheard=unheard)
        self.observer.exited(self)

    def _cut_sessions(self) -> None:
        waiting, self.waiting = self.waiting, []
        for _, record, session, _ in waiting:
            if session is not None:
                session.answered(record, "unknown")

    def changed(self, **changes: object) -> Conf:
        return replace(self.conf, **changes)  # type: ignore[arg-type]
