"""The Raft child: one poll loop around `Node`, and the only place that carries its effects out.

Persist, then send, then tell: `Host.carry_out` goes through the effects in the order they come and does nothing else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from consensus import addressbook, lastwords, pacing
from consensus.cluster import ClusterState, found
from consensus.effects import Effect, Reborn, Removed, Save, Send, SendStranger, Tell, TellLease
from consensus.founder import Founder, RefusedToStartError
from consensus.guard import said
from consensus.keys import ClusterKey, derived_key, founding_seed, read_key
from consensus.lastresort import LastResort
from consensus.membership import WITNESS, Member
from consensus.messages import Hello, PeerMessage, Snapshot
from consensus.node import Node
from consensus.peerwire import NO_CLUSTER, Envelope, PeerWireError, decode, encode
from consensus.raft import Log, Raft, RaftConfig, Ready
from consensus.record import Identity
from consensus.storage import Store, open_store
from consensus.transport import (
    Address,
    AdminFrame,
    HandshakeFailed,
    InboundRejected,
    PeerConnected,
    PeerDisconnected,
    PeerFrame,
    PeerUnresolved,
    Transport,
    split,
)
from consensus.write import Stored, Write
from fencing import logs, realtime, wire
from fencing.clock import now_ns
from fencing.lease import MS, PROFILES, Timings

GUESTS_MAX = 16
_GUEST = "?"
"""Before the name of one who is dialed without being a member; no node name begins so."""
RESUME_ANSWER_MS = 150
"""How long the watchdog may take to confirm a running lease before a restarted child gives up resuming."""

EXIT_OK = 0


def bind_bus(context: zmq.Context[zmq.Socket[bytes]], run_dir: Path) -> zmq.Socket[bytes]:
    """Where the parent dials in."""
    path = run_dir / "raft.sock"
    path.unlink(missing_ok=True)
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 1000)
    socket.bind(f"ipc://{path}")
    return socket


@dataclass(frozen=True, slots=True)
class RaftChild:
    """What the parent tells the Raft child at its start; plain JSON values, because it travels to the launcher."""

    raft_dir: str
    run_dir: str
    name: str
    listen: tuple[str, int]
    raft_address: str
    postgres_address: str
    http_address: str
    peers: dict[str, tuple[str, int]]
    """Founding members, this node included."""
    join: tuple[str, int] | None
    """Address of a member of the cluster that this node is to join; never founds."""
    role: str
    """voter, witness or learner: what it is to be."""
    key_file: str
    """Empty: all on loopback without a key file."""
    profile: str
    commit: str
    settings: str
    """Canonical JSON of the founding section of the configuration."""
    data_incarnation: int
    """Found in PGDATA; 0: none."""
    adopts: str
    """System identifier of a data directory to bring in at the founding."""
    brings: str
    """JSON of what comes with it: parameters and client rules (founding.Greeting)."""
    unfit: tuple[int, str, str] | None
    """Why it cannot be brought in: exit code, reason, hint. No matter once this node has a cluster."""
    pgdata: str
    salvage: bool
    """There is salvaged WAL of an earlier life."""
    log_format: str


def run(config: Mapping[str, Any]) -> int:
    """The whole life of the child; ``config`` has the fields of `RaftChild`. Returns the exit code."""
    child = RaftChild(**config)
    log = logs.Log(logs.as_format(child.log_format), child.name, "raft")
    try:
        return Host(child, log).run()
    except lastwords.REASONS as error:
        return lastwords.say(error, Path(child.raft_dir), Path(child.run_dir), log)


class BeginAnewError(Exception):
    """The store holds the state of another cluster now: this process ends, the next one reads it."""


class Host:
    """Sockets, disk and clock of the Raft child."""

    def __init__(self, child: RaftChild, log: logs.Log) -> None:
        self.child, self.log = child, log
        self.boot = _random(62) + 1
        self.store: Store = open_store(Path(child.raft_dir) / "raft.sqlite")
        self.stored: Stored = self.store.load()
        self.identity = self._identity()
        self.lost = bool(child.data_incarnation or child.salvage) and not self.identity.cluster_id
        """There is data of a cluster, but no Raft state: never founds (safety.md, "Founding")."""
        self.introduced: tuple[tuple[Member, ...], int] = ((), 0)
        """The members as they were told to a node that was let in, and as of which index of the log."""
        self.guests: dict[str, Address] = {}
        self.unsent: dict[str, SendStranger] = {}
        """Answers to guests that were not connected yet: they may not ask again for long."""
        self.book: dict[str, addressbook.Entry] = {}
        """As last dialed."""
        self.scheduling = realtime.raise_priority()
        realtime.quiet_gc()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.bus = self._bind_bus()
        self.watchdog = self._dial_watchdog() if child.role != WITNESS else None
        self.transport = Transport(child.name, (str(child.listen[0]), int(child.listen[1])), self._key(), {})
        self.poller = zmq.Poller()
        self._register()
        kill_bound_ms = PROFILES[child.profile].kill_bound_ms
        self.last_resort = LastResort(Path(child.pgdata), kill_bound_ms, log)
        self.stopping = False

    # -- start ---------------------------------------------------------------------------------------------------

    def _identity(self) -> Identity:
        """Who this node is; made at the very first start, and never again (safety.md "Identity")."""
        child, known = self.child, self.stored.identity
        if known is None:
            known = Identity(child.name, _random(62) + 1)
            self.store.save(Write(identity=known))
        if known.name != child.name:
            raise RefusedToStartError(
                f"this data directory belongs to node {known.name!r}, not {child.name!r}",
                f"start it with --name {known.name}",
            )
        return known

    def _key(self) -> ClusterKey:
        if self.child.key_file:
            return read_key(Path(self.child.key_file))
        return derived_key(founding_seed(self.child.peers))

    def _bind_bus(self) -> zmq.Socket[bytes]:
        return bind_bus(self.context, Path(self.child.run_dir))

    def _dial_watchdog(self) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, b"raft")
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 64)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 50)
        socket.connect(f"ipc://{self.child.run_dir}/watchdog.sock")
        return socket

    def _register(self) -> None:
        self.poller = zmq.Poller()
        for socket in (*self.transport.sockets(), self.bus, *([self.watchdog] if self.watchdog else ())):
            self.poller.register(socket, zmq.POLLIN)

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        self.log.info("raft.started", incarnation=self.identity.incarnation, boot=self.boot, scheduling=self.scheduling)
        try:
            if not self.identity.cluster_id and not Founder(self).run():
                return EXIT_OK
            node = self._start_node()
            while not self.stopping:
                self._turn(node)
            return EXIT_OK
        except BeginAnewError:
            return EXIT_OK
        finally:
            self.close()

    def close(self) -> None:
        self.transport.close()
        self.context.destroy(linger=0)
        self.store.close()

    def _start_node(self) -> Node:
        stored, now = self.stored, now_ns()
        state = found(self.identity.charter, self.identity.cluster_id)
        log = Log(stored.snapshot or Snapshot(0, 0, ""), stored.entries)
        timings = pacing.at_start(self.identity, stored)
        fresh = stored.hard.term == 0 and stored.record.promised == 0
        raft = Raft(
            _raft_config(self.identity, state, timings), stored.hard, log,
            boot=self.boot, seed=_random(63), now_ns=now, fresh=fresh,
        )  # fmt: skip
        mine = Member(
            self.child.name, self.identity.incarnation, self.child.raft_address, self.child.postgres_address,
            self.child.http_address, self.child.role, self.child.role,
        )  # fmt: skip
        node = Node(self.identity, stored.record, raft, timings, lambda: os.urandom(16).hex(), logs.utc_now, mine)
        ready = self._resume(node)
        members, index = self.introduced
        for member in members:
            node.book.introduce(member.name, addressbook.Entry(member.incarnation, member.raft, index), node.applied)
        self.guests = self._hints(node)
        self._readdress(node)
        self.carry_out(node.start(ready, now_ns()))
        return node

    def _hints(self, node: Node) -> dict[str, Address]:
        """Where --peers says that members are, if the log says otherwise: they may all have moved while down."""
        known = {name: split(entry.address) for name, entry in node.book.current().items()}
        given = {name: (str(host), int(port)) for name, (host, port) in self.child.peers.items()}
        return {name: there for name, there in given.items() if known.get(name, there) != there}

    def _resume(self, node: Node) -> Ready | None:
        """safety.md "Resume": same term, own committed grant, no release, and a lease the watchdog still counts on."""
        raft, grant = node.raft, node.cluster.grant
        mine = grant is not None and grant.node == self.child.name and grant.term == raft.term and not grant.failed
        if self.watchdog is None or not mine or raft.released >= raft.term or raft.vote != self.child.name:
            return None
        self.watchdog.send(wire.encode("deadman.query", {}))
        give_up_ns = now_ns() + RESUME_ANSWER_MS * MS
        while (left_ns := give_up_ns - now_ns()) > 0:
            if not self.watchdog.poll(max(1, left_ns // MS)):
                continue
            until_ns = node.guard.confirms(self._frame(self.watchdog.recv()), raft.term, now_ns())
            if until_ns:
                self.log.info("raft.resumed", term=raft.term, lease_left_ms=(until_ns - now_ns()) // MS)
                return raft.resume(until_ns)
            if until_ns == 0:
                break
        self.log.warning("raft.not_resumed", term=raft.term, expected=False)
        return None

    def _turn(self, node: Node) -> None:
        timeout_ns = min(node.wakeup_ns, self.last_resort.due_ns or node.wakeup_ns) - now_ns()
        events = dict(self.poller.poll(max(0, min(timeout_ns, 1_000 * MS) + MS - 1) // MS))
        if self.bus in events:  # first: whether the parent is silent is judged on every message
            self.read_bus(node)
        for item in self.transport.receive():
            match item:
                case PeerFrame(data):
                    self._peer(node, data)
                case AdminFrame(identity, data):
                    self._remote(identity, data)
        self.log_transport()
        heard = self.watchdog is not None and self.watchdog in events
        if self.watchdog is not None and heard and (known := said(self._frame(self.watchdog.recv()))) is not None:
            self.carry_out(node.guarded(*known, now_ns()))
        self.carry_out(node.tick(now_ns()))
        if self.watchdog is not None and node.guard.asks(now_ns()):
            with contextlib.suppress(zmq.Again):  # it is away; asked again
                self.watchdog.send(wire.encode("deadman.query", {}), zmq.NOBLOCK)
        self.last_resort.bound_ns = node.timings.kill_bound_ms * MS
        self.last_resort.tick(now_ns())
        if node.book.current() != self.book:
            self._readdress(node)

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """In order: what is saved before something is sent is on disk before it is sent."""
        for effect in effects:
            match effect:
                case Save(write):
                    self.store.save(write)
                case Send(dst, message):
                    self.send(dst, message)
                case SendStranger():
                    self._answer_stranger(effect)
                case Reborn():
                    self.log.warning("raft.begins_anew")
                    raise BeginAnewError
                case Removed(reason, hint):
                    self.log.once_per("raft.removed", 10).warning("raft.removed", reason=reason, hint=hint)
                    self.tell("raft.removed", {"reason": reason, "hint": hint}, "")
                case Tell(name, body, request_id):
                    self.tell(name, body, request_id)
                case TellLease(term, until_ns):
                    self._tell_lease(term, until_ns)

    def send(self, dst: str, message: PeerMessage, cluster_id: str = "", incarnation: int = 0) -> None:
        known = self.book.get(dst)
        incarnation = incarnation or (known.incarnation if known else 0)
        self._send_to(dst, dst, incarnation, message, cluster_id)
        if isinstance(message, Hello) and dst in self.guests and not cluster_id:
            self.send_guest(dst, dst, incarnation, message)

    def send_guest(self, guest: str, dst: str, incarnation: int, hello: Hello) -> None:
        """To somebody who is dialed by an address of its own: see `dial`. Without a cluster id unless it names a term,
        which only one who was a member understands."""
        self._send_to(_GUEST + guest, dst, incarnation, hello, "" if hello.term else NO_CLUSTER)

    def _send_to(self, peer: str, dst: str, incarnation: int, message: PeerMessage, cluster_id: str) -> bool:
        envelope = Envelope(
            cluster_id or self.identity.cluster_id, self.child.name, self.identity.incarnation, self.boot,
            dst, incarnation, message,
        )  # fmt: skip
        return self.transport.send(peer, encode(envelope))

    def _answer_stranger(self, s: SendStranger) -> None:
        """It is no member: dialed beside the members, and forgotten when others come."""
        self.dial(dict([*self.guests.items(), (s.dst, split(s.address))][-GUESTS_MAX:]))
        cluster_id = s.cluster_id or ("" if s.message.term else NO_CLUSTER)
        if not self._send_to(_GUEST + s.dst, s.dst, s.incarnation, s.message, cluster_id):
            self.unsent = {_GUEST + s.dst: s} | self.unsent if len(self.unsent) < GUESTS_MAX else {}

    def dial(self, guests: Mapping[str, Address]) -> None:
        """Beside the members, these."""
        self.guests = dict(guests)
        peers = {name: split(entry.address) for name, entry in self.book.items()}
        if not self.identity.cluster_id:
            peers = {name: (str(address[0]), int(address[1])) for name, address in self.child.peers.items()}
        peers |= {_GUEST + name: address for name, address in guests.items()}
        self.transport.set_peers({name: address for name, address in peers.items() if name != self.child.name})
        self._register()

    def tell(self, name: str, body: dict[str, Any], request_id: str) -> None:
        try:
            self.bus.send_multipart([b"parent", wire.encode(name, body, request_id)], zmq.NOBLOCK)
        except zmq.Again:
            # The parent does not read: it is told everything anew when it says hello.
            self.log.once_per("bus.full", 10).warning("bus.full", dropped=name)

    def _tell_lease(self, term: int, until_ns: int) -> None:
        if self.watchdog is None:
            return
        self.last_resort.until_ns = until_ns
        try:
            self.watchdog.send(wire.encode("lease.changed", {"term": term, "until_ns": until_ns}), zmq.NOBLOCK)
        except zmq.Again:
            self.log.once_per("watchdog.full", 10).warning("watchdog.away", term=term)
        self.tell("lease.changed", {"term": term, "until_ns": until_ns}, "")

    # -- what comes in -------------------------------------------------------------------------------------------

    def _peer(self, node: Node, data: bytes) -> None:
        envelope = self.envelope(data)
        if envelope is None:
            return
        message, now = envelope.message, now_ns()
        if envelope.cluster_id == NO_CLUSTER:
            if isinstance(message, Hello):
                self.carry_out(node.hello(envelope.src, message, now))
            return
        quiet = self.log.once_per(f"peer.{envelope.src}", 30)
        if envelope.cluster_id != self.identity.cluster_id:
            quiet.warning("peer.foreign_cluster", peer=envelope.src, cluster_id=envelope.cluster_id)
            self.carry_out(node.foreign(envelope.cluster_id, envelope.src, envelope.src_incarnation, message, now))
        elif envelope.dst != self.child.name or envelope.dst_incarnation not in (0, self.identity.incarnation):
            quiet.warning("peer.not_for_us", peer=envelope.src, dst=envelope.dst)
        elif isinstance(message, Hello):
            self.carry_out(node.met(envelope.src, envelope.src_incarnation, message, now))
        elif problem := node.book.problem(envelope.src, envelope.src_incarnation, message):
            quiet.warning("peer.rejected_message", peer=envelope.src, incarnation=envelope.src_incarnation, why=problem)
        else:
            self.carry_out(node.peer(envelope.src, message, now))

    def envelope(self, data: bytes) -> Envelope | None:
        try:
            return decode(data)
        except PeerWireError as error:
            self.log.once_per("peer.garbage", 10).warning("peer.garbage", error=str(error), bytes=len(data))
            return None

    def _frame(self, data: bytes) -> wire.Frame | None:
        try:
            return wire.decode(data)
        except wire.WireError as error:
            self.log.warning("bus.garbage", error=str(error))
            return None

    def read_bus(self, node: Node | None) -> None:
        """Orders and facts from the parent; before the founding only hello and stop mean something."""
        while self.bus.poll(0):
            _, data = self.bus.recv_multipart()
            frame = self._frame(data)
            if frame is None:
                continue
            self.last_resort.heard(frame.name, frame.body)
            match frame.name:
                case "node.writable":
                    pass
                case "node.stop":
                    self.stopping = True
                case "remote.answer":
                    self.transport.reply(bytes.fromhex(str(frame.body["client"])), str(frame.body["frame"]).encode())
                case _ if node is not None:
                    if frame.name == "node.hello":
                        self.tell("child.ready", self.ready_body(), "")
                    self.carry_out(node.parent(frame.name, frame.id, frame.body, now_ns()))
                case "node.hello":
                    self.tell("child.ready", self.ready_body(), "")
                case _:
                    self.log.warning("bus.too_early", name=frame.name)

    def ready_body(self) -> dict[str, Any]:
        return {
            "name": self.child.name, "incarnation": self.identity.incarnation, "boot": self.boot,
            "cluster_id": self.identity.cluster_id, "scheduling": self.scheduling,
        }  # fmt: skip

    def _remote(self, client: bytes, data: bytes) -> None:
        """`pgr --node`: the parent answers, this process only carries."""
        self.tell("remote.request", {"client": client.hex(), "frame": data.decode("utf-8", "replace")}, "")

    def log_transport(self) -> None:
        for event in self.transport.events():
            match event:
                case PeerConnected(name):
                    self.log.info("peer.connected", peer=name)
                    if late := self.unsent.pop(name, None):
                        self._answer_stranger(late)
                case PeerDisconnected(name):
                    self.log.info("peer.disconnected", peer=name)
                case HandshakeFailed(name, reason):
                    hint = "do both have the same cluster key?"
                    self.log.warning("peer.handshake_failed", peer=name, reason=reason, hint=hint)
                case PeerUnresolved(name, reason):
                    self.log.warning("peer.unresolved", peer=name, reason=reason)
                case InboundRejected(address, reason, times):
                    self.log.warning("peer.rejected", address=address, reason=reason, times=times)

    def _readdress(self, node: Node) -> None:
        self.book = node.book.current()
        self.dial(self.guests)


def _raft_config(me: Identity, state: ClusterState, timings: Timings) -> RaftConfig:
    """``state``: as founded. One that was let in later is not the founding member whose name it has."""
    voters = (m for m in state.members if m.votes and (m.name != me.name or m.incarnation == me.incarnation))
    return RaftConfig(
        me.name, tuple(sorted(m.name for m in voters)),
        timings.heartbeat_ms * MS, timings.election_ms * MS, timings.jitter_ms * MS, timings.lease_ms * MS,
    )  # fmt: skip


def _random(bits: int) -> int:
    return int.from_bytes(os.urandom(8)) >> (64 - bits)
