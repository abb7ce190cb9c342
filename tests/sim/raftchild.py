"""The Raft child: the shipped `Node`, `Raft` and `Store`, and a stand-in for the sockets of consensus/process.py.

What is written anew here is what consensus/process.py and consensus/founder.py do with sockets; the rules they apply
(who is listened to, when a cluster is founded, when a leader may resume) are theirs, line by line.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from consensus import addressbook, pacing
from consensus.cluster import found
from consensus.effects import Effect, Reborn, Removed, Save, Send, SendStranger, Tell, TellLease
from consensus.founding import (
    Charter,
    Founding,
    Greeting,
    charter_message,
    consider,
    founders,
    parse,
    parse_greeting,
)
from consensus.lastresort import LastResort
from consensus.membership import Member
from consensus.messages import AppendReq, Hello, PeerMessage, Snapshot, VoteResp
from consensus.node import Node
from consensus.peerwire import NO_CLUSTER, Envelope, decode, encode
from consensus.process import _raft_config
from consensus.raft import Log as RaftLog
from consensus.raft import Raft, Ready, Role
from consensus.record import Identity
from consensus.storage import StorageCorruptError, StorageError, Store
from consensus.write import Stored, Write
from fencing.deadman import Deadman, Phase
from fencing.kill import FenceReport
from fencing.lease import MS, PROFILES
from fencing.logs import Log
from fencing.wire import Frame
from tests.sim import mutants

if TYPE_CHECKING:
    from tests.sim.host import Host

CODED_SHARE = 0.03
"""Of all frames: through the shipped codec and back."""
GREET_EVERY_MS = 100
RESUME_ANSWER_MS = 150
EXIT_DISK, EXIT_REFUSED = 74, 78


class RaftChild:
    """One life of the process ``raft`` of a host."""

    def __init__(self, host: Host) -> None:
        self.host, self.world, self.process = host, host.world, host.raft_process
        self.boot = self.world.dice.randrange(1, 1 << 62)
        self.node: Node | None = None
        self.heard: dict[str, Greeting] = {}
        self.asked: dict[str, str] = {"join": host.join} if host.join else {}
        self.guests: dict[str, str] = {}
        self.hints: set[str] = set()
        """Members of whom ``--peers`` says at the start that they are not where the log says."""
        self.book: dict[str, addressbook.Entry] = {}
        self.introduced: tuple[tuple[Member, ...], int] = ((), 0)
        self.wake_at = 0
        quiet = cast(Log, SimpleNamespace(warning=lambda *_, **__: None))
        kill_bound_ms = PROFILES[self.world.profile].kill_bound_ms
        self.last_resort = LastResort(Path(), kill_bound_ms, quiet, self._strike)
        self.turn_due = False
        self.orders: deque[tuple[str, str, dict[str, Any]]] = deque()
        self.peers: deque[Envelope] = deque()
        self.early: list[tuple[str, str, dict[str, Any]]] = []
        """Of the parent, before there is a node."""

    # -- start ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        host = self.host
        try:
            self.store: Store = host.raft_disk.open()
            self.stored: Stored = self.store.load()
            known = self.stored.identity
            if known is None:
                known = Identity(host.name, mutants.incarnation(self.world, host))
                self.store.save(Write(identity=known))
        except StorageError as error:
            if host.raft_disk.is_off:
                host.power_cut(back_after_ns=self.world.between(100_000, 3_000_000))
            else:
                if isinstance(error, StorageCorruptError):
                    if not host.refused_damage and not self.world.faults.on:
                        self.world.after(1_000 * MS, lambda: self.world.faults.mend_raft(host))
                    host.refused_damage = True
                    self.world.counts["damaged store refused"] += 1
                self._fail(EXIT_DISK, str(error))
            return
        self.identity, host.incarnation = known, known.incarnation
        self.lost = host.directory is not None and host.directory.mark is not None and not known.cluster_id
        self.world.checks.raft_started(host, self.stored)
        self._tell("child.ready", self._ready_body(), "")
        if known.cluster_id:
            self._start_node()
        else:
            self._greet()

    def _fail(self, code: int, why: str) -> None:
        self.world.note(self.host.name, f"raft child ends: {why}")
        self.host.raft_ended(code)

    def _ready_body(self) -> dict[str, Any]:
        return {"incarnation": self.identity.incarnation, "cluster_id": self.identity.cluster_id}

    def _start_node(self) -> None:
        stored, world, host = self.stored, self.world, self.host
        state = found(self.identity.charter, self.identity.cluster_id)
        log = RaftLog(stored.snapshot or Snapshot(0, 0, ""), stored.entries)
        fresh = stored.hard.term == 0 and stored.record.promised == 0
        core = mutants.core(world)
        timings = pacing.at_start(self.identity, stored)
        raft: Raft = core(
            _raft_config(self.identity, state, timings), stored.hard, log, boot=self.boot,
            seed=world.dice.randrange(1 << 63), now_ns=host.now(), fresh=fresh or world.mutant == "no-wait-at-restart",
        )  # fmt: skip
        node = mutants.node(world)(
            self.identity, stored.record, raft, timings,
            lambda: f"{world.dice.getrandbits(128):032x}", lambda: f"{world.now // MS}ms", host.member(self.identity),
        )  # fmt: skip
        mine = (
            raft.term
            and (grant := node.cluster.grant) is not None
            and (grant.node, grant.term) == (host.name, raft.term)
        )
        if mine and not grant.failed and raft.released < raft.term and raft.vote == host.name:  # type: ignore[union-attr]
            self._ask_watchdog(node)
        else:
            self._go(node, None)

    def _ask_bounds(self) -> None:
        """`deadman.query`, only for how far away a deadline may be."""
        state = self.host.watchdog.state

        def answer() -> None:
            if self.node is not None:
                self._carry_out(self.node.guarded(state.lease_ns // MS, state.at, self.host.now()))
                self._soon()

        self.host.bus(self.process, "watchdog-raft", answer)

    def _ask_watchdog(self, node: Node) -> None:
        """safety.md "Resume"."""
        answered: list[bool] = []

        def answer(state: Deadman) -> None:
            if not answered:
                answered.append(True)
                armed, term = state.phase is Phase.ARMED, state.term
                body = {
                    "armed": armed, "term": term, "until_ns": state.until_ns, "lease_ms": state.lease_ns // MS,
                    "at": state.at,
                }  # fmt: skip
                until_ns = node.guard.confirms(Frame("deadman.state", "", body), node.raft.term, self.host.now())
                self.world.note(self.host.name, f"raft {'resumes' if until_ns else 'does not resume'} term {term}")
                self._go(node, node.raft.resume(until_ns) if until_ns else None)

        def give_up() -> None:
            if not answered:
                answered.append(True)
                self._go(node, None)

        def ask() -> None:
            state = self.host.watchdog.state
            self.host.bus(self.process, "watchdog-raft", lambda: answer(state))

        self.host.bus(self.host.watchdog_process, "raft-watchdog", ask)
        self.process.post(RESUME_ANSWER_MS * MS, give_up)

    def _go(self, node: Node, ready: Ready | None) -> None:
        members, index = self.introduced
        for member in members:
            node.book.introduce(member.name, addressbook.Entry(member.incarnation, member.raft, index), node.applied)
        self.node = node
        self.book = node.book.current()
        there = {name: self.world.hosts[name].raft_address for name in self.host.peers}
        self.hints = {n for n, entry in self.book.items() if there.get(n, entry.address) != entry.address}
        self._carry_out(node.start(ready, self.host.now()))
        self.orders.extendleft(reversed(self.early))
        self._soon()

    def _strike(self, pgdata: Path, postmaster: None, until_ns: int) -> FenceReport:
        """Both others hang."""
        server = self.host.postgres
        if server is not None:
            self.world.note(self.host.name, "the Raft child ends Postgres")
            server.end()
        return FenceReport(0, int(server is not None), ())

    # -- turns ---------------------------------------------------------------------------------------------------

    def hear(self, envelope: Envelope) -> None:
        self.peers.append(envelope)
        self._soon()

    def order(self, name: str, request_id: str, body: dict[str, Any]) -> None:
        self.orders.append((name, request_id, body))
        self._soon()

    def _soon(self) -> None:
        if not self.turn_due:
            self.turn_due = True
            self.process.post(10_000, self._turn)

    def _turn(self) -> None:
        """What the parent says comes first, then the peers, then the clock."""
        self.turn_due = False
        while self.orders and self.process.alive:
            name, request_id, body = self.orders.popleft()
            self.last_resort.heard(name, body)
            if name != "node.writable":
                self._from_parent(name, request_id, body)
        while self.peers and self.process.alive:
            self._receive(self.peers.popleft())
        node = self.node
        if node is None or not self.process.alive:
            return
        now = self.host.now()
        wakeup_ns = node.wakeup_ns
        if wakeup_ns <= now:
            self._carry_out(node.tick(now))
            if not self.process.alive:
                return
            wakeup_ns = node.wakeup_ns
        if node.guard.asks(now):
            self.host.bus(self.host.watchdog_process, "raft-watchdog", self._ask_bounds)
        self.last_resort.bound_ns = node.timings.kill_bound_ms * MS
        self.last_resort.tick(now)
        if (book := node.book.current()) != self.book:
            self.book = book
        wakeup_ns = min(wakeup_ns, self.last_resort.due_ns or wakeup_ns)
        wake_at = max(self.host.clock.true(wakeup_ns), self.world.now + 100_000)
        if self.wake_at <= self.world.now or wake_at < self.wake_at:
            self.wake_at = wake_at
            self.process.post_at(wake_at, self._wake)

    def _wake(self) -> None:
        if self.world.now >= self.wake_at:
            self.wake_at = 0
            self._soon()

    def _from_parent(self, name: str, request_id: str, body: dict[str, Any]) -> None:
        if name == "node.stop":
            self.host.raft_ended(0)
            return
        if name == "node.hello":
            self._tell("child.ready", self._ready_body(), "")
        if self.node is None:
            if name != "node.hello":
                self.early.append((name, request_id, body))
            return
        self._carry_out(self.node.parent(name, request_id, body, self.host.now()))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if not self.process.alive:
                return
            match effect:
                case Save(write):
                    self._save(write)
                case Send(dst, message):
                    self._send(dst, message)
                case SendStranger(dst, incarnation, address, hello):
                    self.guests[dst] = address
                    self._send_to(address, dst, incarnation, hello, "" if hello.term else NO_CLUSTER)
                case Removed(reason, _):
                    self.host.was_removed(reason)
                    self._tell("raft.removed", {"reason": reason}, "")
                case Reborn():
                    raise AssertionError("`pgr recover` is no part of the simulation")
                case Tell(name, body, request_id):
                    self._tell(name, body, request_id)
                case TellLease(term, until_ns):
                    host = self.host
                    lease = partial(self.host.lease_told, term, until_ns)
                    self.last_resort.until_ns = until_ns
                    host.bus(host.watchdog_process, "raft-watchdog", lease)
                    self._tell("lease.changed", {"term": term, "until_ns": until_ns}, "")
        node = self.node
        if node is not None:
            self.world.checks.raft_turned(self.host, node)

    def _save(self, write: Write) -> None:
        try:
            self.store.save(write)
        except StorageError as error:
            if self.host.raft_disk.is_off:
                self.world.note(self.host.name, "the power goes within a save")
                self.host.power_cut(back_after_ns=self.world.between(100_000, 3_000_000))
            else:
                self._fail(EXIT_DISK, str(error))
            return
        self.host.raft_disk.saved()
        self.world.checks.saved(self.host, self.identity, write)
        if self.host.crash_after_save and self.world.chance(0.3):
            self.host.crash_after_save = False
            self.world.note(self.host.name, "raft child is killed between saving and sending")
            self.host.raft_ended(-9)

    def _tell(self, name: str, body: dict[str, Any], request_id: str) -> None:
        host, life = self.host, self.process.life
        tell = partial(host.parent.from_raft, life, name, body, request_id)
        host.bus(host.parent_process, "raft-parent", tell)

    # -- peers ---------------------------------------------------------------------------------------------------

    def _send(self, dst: str, message: PeerMessage) -> None:
        known = self.book.get(dst)
        if known is not None:
            self._send_to(known.address, dst, known.incarnation, message, self.identity.cluster_id)
            if dst in self.hints and isinstance(message, Hello):
                self._send_to(f"{dst}:0", dst, known.incarnation, message, "" if message.term else NO_CLUSTER)
        if isinstance(message, VoteResp | AppendReq):
            self.world.checks.said(self.host, dst, message)

    def _send_to(self, address: str, dst: str, incarnation: int, message: PeerMessage, cluster_id: str) -> None:
        host, world = self.host, self.world
        envelope = Envelope(
            cluster_id or self.identity.cluster_id, host.name, self.identity.incarnation, self.boot, dst, incarnation,
            message,
        )  # fmt: skip
        if world.dice.random() < CODED_SHARE:
            decoded = decode(encode(envelope))
            if decoded != envelope:
                raise AssertionError(f"the codec changes {envelope} to {decoded}")
            envelope = decoded
        to = world.hosts.get(address.partition(":")[0])
        if to is not None and not address.endswith(":0") and address != to.raft_address:
            world.counts["frames to an old address"] += 1
        elif to is not None:
            process = to.raft_process
            host.network.frame(host.name, to.name, lambda: process.post(0, lambda: to.raft.hear(envelope)))

    def _receive(self, envelope: Envelope) -> None:
        if self.node is None:
            self._greeted(envelope)
            return
        node, message, now = self.node, envelope.message, self.host.now()
        if envelope.cluster_id == NO_CLUSTER:
            if isinstance(message, Hello):
                self._carry_out(node.hello(envelope.src, message, now))
        elif (
            envelope.cluster_id != self.identity.cluster_id
            or envelope.dst != self.host.name
            or envelope.dst_incarnation not in (0, self.identity.incarnation)
        ):
            return
        elif isinstance(message, Hello):
            self._carry_out(node.met(envelope.src, envelope.src_incarnation, message, now))
        elif node.book.problem(envelope.src, envelope.src_incarnation, message):
            return
        else:
            self._carry_out(node.peer(envelope.src, message, now))

    # -- founding ------------------------------------------------------------------------------------------------

    def _mine(self) -> Greeting:
        host = self.host
        return Greeting(
            host.name, self.identity.incarnation, host.raft_address, host.postgres_address, f"{host.name}:3",
            host.peers, "", host.role, bool(host.join), self.lost,
        )  # fmt: skip

    def _greet(self) -> None:
        if self.node is not None:
            return
        mine, host = self._mine(), self.host
        hello = Hello(0, mine.dump())
        for name in host.peers if not mine.joins else ():
            if name != host.name:
                self._send_to(f"{name}:0", name, 0, hello, NO_CLUSTER)
        for address in self.asked.values():
            self._send_to(address, "", 0, hello, NO_CLUSTER)
        self._consider(mine)
        if self.node is None:
            self.process.post(GREET_EVERY_MS * MS, self._greet)

    def _consider(self, mine: Greeting) -> None:
        host = self.host
        if mine.joins or host.name != host.peers[0]:
            return
        match consider(mine, self.heard, Founding(self.world.commit, self.world.profile, "{}")):
            case Charter(text):
                cluster_id = f"{self.world.dice.getrandbits(128):032x}"
                self._accept(cluster_id, text, 0)
                for name, greeting in self.heard.items() if self.process.alive else ():
                    message = Hello(0, charter_message(cluster_id, text, 0, 0, founders(text)))
                    self._send_to(f"{name}:0", name, greeting.incarnation, message, NO_CLUSTER)
            case _:
                pass

    def _greeted(self, envelope: Envelope) -> None:
        if envelope.cluster_id != NO_CLUSTER or not isinstance(envelope.message, Hello) or self.identity.cluster_id:
            return
        body = parse(envelope.message.data)
        if body["kind"] == "greeting":
            greeting = parse_greeting(body)
            if greeting.name == envelope.src and greeting.name in self.host.peers:
                self.heard[greeting.name] = greeting
        elif envelope.dst_incarnation == self.identity.incarnation:
            self._answered(envelope.src, body)

    def _answered(self, src: str, body: dict[str, Any]) -> None:
        match body["kind"]:
            case "stranger" if body["final"]:
                self._fail(EXIT_REFUSED, f"{src} says: {body['reason']}")
            case "elsewhere":
                self.asked["leader"] = str(body["raft"])
            case "charter":
                members = tuple(Member(*row) for row in body["members"])
                if (self.host.name, self.identity.incarnation) in {(m.name, m.incarnation) for m in members}:
                    self.introduced = (members, int(body["index"]))
                    self._accept(str(body["cluster_id"]), str(body["charter"]), int(body["term"]))
            case _:
                pass

    def _accept(self, cluster_id: str, charter: str, term: int) -> None:
        self.identity = self.identity._replace(cluster_id=cluster_id, charter=charter)
        record = self.stored.record._replace(promised=max(term, self.stored.record.promised))
        self._save(Write(identity=self.identity, record=record))
        if self.process.alive:
            self.stored = replace(self.stored, identity=self.identity, record=record)
            self.world.note(self.host.name, f"founding done, {'joined' if term else 'founded'}")
            self._tell("child.ready", self._ready_body(), "")
            self._start_node()

    @property
    def leads(self) -> bool:
        return self.node is not None and self.node.raft.role is Role.LEADER
