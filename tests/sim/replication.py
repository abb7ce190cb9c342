"""One replication connection: a walsender, a WAL receiver, and the data plane between them."""

from __future__ import annotations

from fencing.lease import MS
from supervisor import timelines
from tests.sim.network import DATA, Network
from tests.sim.pgdata import SEGMENT_BYTES, UNIT
from tests.sim.postgres import Postgres, State
from tests.sim.world import Act, World

TIMEOUT_MS = 3_000
"""wal_sender_timeout and wal_receiver_timeout."""
LOOK_EVERY_MS = 250


class Stream:
    """Both ends know of each other's end only if the network tells them, or after the timeout."""

    def __init__(self, world: World, network: Network, source: Postgres, target: Postgres, stamp: str) -> None:
        self.world, self.network, self.source, self.target, self.stamp = world, network, source, target, stamp
        self.names = source.seen.names
        self.reported = 0
        self.sent = target.directory.end
        self.in_flight = False
        self.source_open = self.target_open = True
        self.forks = False
        """The target holds WAL beyond the point where the source's history left its timeline: it never gets a row."""
        self.bad_since = 0
        self.unheard_until = 0
        """One end is gone with its machine; the other does not know before its timeout, or before that one is back."""
        self.last_at: dict[str, int] = {}
        self.stalled: dict[str, list[Act]] = {}
        """By receiver: what waits for the network."""
        self.began = world.now
        source.senders.append(self)
        self._later(LOOK_EVERY_MS * MS)

    # -- the beginning -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The receiver's first word is what the startup process has replayed: it is counted at once."""
        at = self.target.replayed
        self._to_source(lambda: self._hear(at))
        mine, theirs = self.target.directory, self.source.directory
        left_at = theirs.switches().get(mine.timeline)
        self.forks = mine.timeline != theirs.timeline and left_at is not None and mine.end > left_at
        if self.forks:
            # "new timeline forked off before current recovery point": the receiver ends, and comes back.
            self.target.process.post(self.world.between(5_000, 30_000), self.end_target)
        else:
            self.kick()

    # -- source to target ----------------------------------------------------------------------------------------

    def kick(self) -> None:
        """More to send?"""
        directory = self.source.directory
        if self.in_flight or not self.source_open or self.forks or self.source.process.frozen:
            return
        if self.sent >= directory.flushed or not self.source.process.alive:
            return
        self.in_flight = True
        first, records = self.sent, directory.wal[self.sent : directory.flushed]
        self.sent += len(records)
        timeline = directory.timeline
        self._deliver(self.source.node, self.target.node, lambda: self._arrive(first, records, timeline))

    def _deliver(self, src: str, dst: str, act: Act) -> None:
        """In order and complete, however long it takes, as long as both ends want it."""

        def attempt() -> None:
            if not self.source_open and not self.target_open:
                return
            stalled = self.stalled.setdefault(dst, [])
            stalled.append(act)
            if not self.network.is_open(DATA, src, dst):
                return
            receiver = self.target if dst == self.target.node else self.source
            for each in stalled:
                receiver.process.post(0, each)
            stalled.clear()

        self.last_at[dst] = max(self.world.now + self.network.delay(), self.last_at.get(dst, 0) + 1)
        self.world.at(self.last_at[dst], attempt)

    def _arrive(self, first: int, records: list[int], timeline: int) -> None:
        directory = self.target.directory
        if not self.target_open or first > directory.end:
            return
        fresh = records[directory.end - first :]
        if fresh and self.target.panics(len(fresh)):
            return
        if timeline > directory.timeline:
            self._fetch_histories(timeline)
        directory.append(fresh, timeline)
        index = first + len(records)
        slow = self.world.between(20_000, 200_000) if self.world.chance(0.02) else self.world.between(100, 3_000)
        self.target.process.post(slow, lambda: self._flushed(index))

    def _fetch_histories(self, timeline: int) -> None:
        mine, theirs = self.target.directory, self.source.directory
        for number in range(mine.timeline + 1, timeline + 1):
            name = timelines.history_name(number)
            if name in theirs.histories:
                mine.histories[name] = theirs.histories[name]

    def _flushed(self, index: int) -> None:
        if self.target_open:
            self.target.received_to(index)
            self._to_source(lambda: self._hear(index))

    # -- target to source ----------------------------------------------------------------------------------------

    def _to_source(self, act: Act) -> None:
        self._deliver(self.target.node, self.source.node, act)

    def _hear(self, index: int) -> None:
        if not self.source_open:
            return
        self.reported = max(self.reported, index)
        self.in_flight = False
        if self.source.defined:
            self.source.settle(self)
        self.kick()

    # -- the end -------------------------------------------------------------------------------------------------

    def _later(self, ns: int) -> None:
        self.world.after(ns, self._look)

    def _look(self) -> None:
        """Keepalives, timeouts, and news of the other end."""
        if not self.source_open and not self.target_open:
            return
        silent = (
            self.world.now < self.unheard_until
            or not self.network.both_ways(self.source.node, self.target.node)
            or self.source.process.frozen or self.target.process.frozen
        )  # fmt: skip
        gone = not self.source_open or not self.target_open
        self.bad_since = (self.bad_since or self.world.now) if silent else 0
        if (silent and self.world.now - self.bad_since > TIMEOUT_MS * MS) or (gone and not silent):
            if not self.source.process.frozen:
                self.end_source()
            if not self.target.process.frozen:
                self.end_target()
        else:
            self._retransmit()
            self.kick()
        self._later(LOOK_EVERY_MS * MS)

    def _retransmit(self) -> None:
        for one, other in ((self.source, self.target), (self.target, self.source)):
            stalled = self.stalled.get(other.node, [])
            if stalled and self.network.is_open(DATA, one.node, other.node):
                for each in stalled:
                    other.process.post(0, each)
                stalled.clear()

    def end_source(self, *, unheard: bool = False) -> None:
        if self.source_open:
            self.source_open = False
            self.source.senders.remove(self)
            self._die_unheard(unheard=unheard)
            if not unheard and self.network.is_open(DATA, self.source.node, self.target.node):
                self.target.process.post(self.network.delay(), self.end_target)

    def _die_unheard(self, *, unheard: bool) -> None:
        if unheard:
            self.unheard_until = self.world.now + self.world.dice.randrange(TIMEOUT_MS) * MS

    def end_target(self, *, unheard: bool = False) -> None:
        if not self.target_open:
            return
        self.target_open = False
        target = self.target
        if target.receiver is self:
            target.receiver = None
            if target.state is not State.GONE:
                target.try_again()
        self._die_unheard(unheard=unheard)
        if not unheard and self.network.is_open(DATA, self.target.node, self.source.node):
            self.source.process.post(self.network.delay(), self.end_source)


def refused(source: Postgres, target: Postgres) -> str:
    """Why the walsender turns the receiver away; empty if it does not."""
    mine, theirs = target.directory, source.directory
    if source.state is not State.PRIMARY and source.state is not State.STOPPING:
        return "it is no primary"
    if mine.system_identifier != theirs.system_identifier:
        return "another system identifier"
    if source.world.mutant != "no-slots" and any(s.target.node == target.node for s in source.senders):
        return "replication slot is active"
    start = (target.replayed * UNIT) // SEGMENT_BYTES * SEGMENT_BYTES // UNIT
    if start > theirs.flushed:
        return "ahead of the flush position"
    if mine.timeline == theirs.timeline:
        return ""
    left_at = theirs.switches().get(mine.timeline)
    if left_at is None:
        return "requested timeline is not in this server's history"
    if start > left_at:
        return "this server's history forked from the requested timeline before that"
    wanted = range(mine.timeline + 1, theirs.timeline + 1)
    if any(timelines.history_name(n) not in theirs.histories for n in wanted):
        return "a history file is missing"
    return ""
