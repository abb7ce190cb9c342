"""Whole `Node`s in memory, a virtual clock, and a scripted parent beside each: a cluster without sockets and disks.

What the host adds (consensus/process.py) is done here as it does it: a message goes to the address that the sender last
dialed, names the incarnation it knows, and is checked by cluster id, addressee and incarnation. A node that has no
cluster id yet is the real `Founder`. Every turn is checked: what is sent was saved before, and nobody spins.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from consensus import addressbook
from consensus.cluster import canonical, found
from consensus.effects import Effect, Reborn, Removed, Save, Send, SendStranger, Tell, TellLease
from consensus.founder import Founder, RefusedToStartError
from consensus.founding import Greeting
from consensus.membership import VOTER, WITNESS, Member
from consensus.messages import (
    AppendResp,
    Entry,
    HardState,
    Hello,
    PeerMessage,
    PreVoteReq,
    PromiseResp,
    Snapshot,
    VoteResp,
)
from consensus.node import Node
from consensus.peerwire import NO_CLUSTER, Envelope, decode, encode
from consensus.process import Host, _raft_config
from consensus.raft import Log, Raft
from consensus.record import Identity, NodeRecord
from consensus.transport import Address
from consensus.write import Stored, Write
from fencing.lease import MS, PROFILES

T = PROFILES["default"]
CLUSTER_ID = "ab" * 16
GREET_EVERY_MS = 100


@dataclass
class Disk:
    """What survives a restart. Saved to by `Save` effects and, while it joins, by the `Founder`."""

    identity: Identity
    hard: HardState = HardState()  # noqa: RUF009
    snapshot: Snapshot = Snapshot(0, 0, "")  # noqa: RUF009
    entries: tuple[Entry, ...] = ()
    record: NodeRecord = NodeRecord()  # noqa: RUF009

    def save(self, w: Write) -> None:
        self.hard = w.hard or self.hard
        if w.truncate_from is not None:
            self.entries = tuple(e for e in self.entries if e.index < w.truncate_from)
        self.entries += w.entries
        self.snapshot = w.snapshot or self.snapshot
        self.entries = tuple(e for e in self.entries if e.index > self.snapshot.index)
        self.record = w.record or self.record
        self.identity = w.identity or self.identity


@dataclass
class Machine:
    """One node, its disk, and what its parent was told. It listens at ``mine.raft``."""

    disk: Disk
    mine: Member
    running: Node | None = None
    joining: Founder | None = None
    dialed: dict[str, addressbook.Entry] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    checks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """What its parent was asked to show to Postgres: token and body."""
    refused: tuple[str, str] = ("", "")
    """Why it stopped, and what a person may do: `Removed`, or never let in."""
    lease_ns: int = 0
    position: tuple[int, int] = (0, 100)
    up: bool = True
    said: tuple[int, int, int] = (0, 0, 0)
    seen: dict[str, Any] = field(default_factory=dict)
    next_ns: int = 0
    """When it says something again: its parent to it, or it, while it is let in, to the others."""

    @property
    def node(self) -> Node:
        assert self.running is not None, "it is not a member yet"
        return self.running


class Mail(NamedTuple):
    sender: Machine
    src: str
    incarnation: int
    dst: str
    dst_incarnation: int
    address: str
    message: PeerMessage
    inside: bool
    """With the cluster id."""
    cluster_id: str = ""
    """Of that; empty: of the first one."""


class Cluster:
    def __init__(
        self, *names: str, witnesses: str = "", streams: bool = False, commit: str = "quorum"
    ) -> None:  # fmt: skip
        """``streams``: standbys follow an open primary, and its parent puts changes of the sync group in force."""
        self.now, self.turn_ms = MS, 1
        self.names, self.streams = names, streams
        self.tokens = 0
        self.lives = dict.fromkeys(names, 1)
        self.mail: list[Mail] = []
        self.cut: set[tuple[str, str]] = set()
        """Pairs (src, dst) that nothing passes between."""
        self.hung: set[str] = set()
        """Whose parent says nothing any more."""
        self.holds_changes = False
        """The primary's parent does not get a change of the sync group into force."""
        rows = [member_of(n, 1, f"{n}:1", WITNESS if n in witnesses else VOTER) for n in names]
        self.charter = canonical({
            "members": [list(row) for row in rows], "founder": names[0],
            "commit": commit, "profile": "default", "settings": {},
        })  # fmt: skip
        self.members: dict[str, Machine] = {}
        for row in rows:
            self.start(Disk(Identity(row.name, 1, CLUSTER_ID, self.charter)), row, fresh=True)
            self.go(row.name)

    def node(
        self, disk: Disk, mine: Member, *, boot: int, fresh: bool, told: tuple[tuple[Member, ...], int] = ((), 0)
    ) -> Node:
        """One that has a cluster id; as `Host._start_node` makes it."""
        config = _raft_config(disk.identity, found(disk.identity.charter, disk.identity.cluster_id), T)
        log = Log(disk.snapshot, disk.entries)
        raft = Raft(config, disk.hard, log, boot=boot, seed=ord(mine.name[0]), now_ns=self.now, fresh=fresh)
        node = Node(disk.identity, disk.record, raft, T, self.token, lambda: "2026-01-01T00:00:00Z", mine)
        for one in told[0]:
            node.book.introduce(one.name, addressbook.Entry(one.incarnation, one.raft, told[1]), node.applied)
        return node

    def start(self, disk: Disk, mine: Member, *, boot: int = 1, fresh: bool = False) -> Machine:
        before = self.members.get(mine.name)
        node = self.node(disk, mine, boot=boot, fresh=fresh)
        machine = Machine(disk, mine, node, dialed=node.book.current())
        if before is not None:
            machine.position, machine.answers = before.position, before.answers
        self.members[mine.name] = machine
        return machine

    def go(self, name: str) -> None:
        self.carry_out(name, self.members[name].node.start(None, self.now))

    def restart(self, name: str, address: str = "", *, boot: int = 2) -> Machine:
        """The process, perhaps at another address; what was in memory is gone."""
        old = self.members[name]
        mine = old.mine._replace(raft=address or old.mine.raft)
        machine = self.start(old.disk, mine, boot=boot)
        self.go(name)
        return machine

    def join(self, name: str, by: str = "", role: str = VOTER) -> Machine:
        """A node with an empty disk: told to ask ``by``; or, with none named, started with the founders as peers."""
        self.lives[name] = self.lives.get(name, 0) + 1
        life = self.lives[name]
        disk = Disk(Identity(name, life))
        mine = member_of(name, life, f"{name}:{life}", role)
        machine = Machine(disk, mine)
        asked = (by, int(self.members[by].mine.raft.partition(":")[2])) if by else None
        machine.joining = Founder(cast(Host, self._host(machine, asked)))
        if asked:
            machine.joining.asked["join"] = asked
        self.members[name] = machine
        return machine

    def _host(self, machine: Machine, asked: Address | None) -> SimpleNamespace:
        """As much of `Host` as a `Founder` touches."""
        name, mine = machine.mine.name, machine.mine
        host = SimpleNamespace(identity=machine.disk.identity, introduced=((), 0), stopping=False, lost=False)
        host.child = SimpleNamespace(
            name=name, join=asked, peers={n: (n, 1) for n in self.names}, role=mine.role, adopts="",
            raft_address=mine.raft, postgres_address=mine.postgres, http_address=mine.http,
            brings="{}", unfit=None, commit="quorum", profile="default", settings="{}",
        )  # fmt: skip
        host.stored = Stored(machine.disk.identity, HardState(), None, (), NodeRecord())
        host.store = machine.disk
        host.log = SimpleNamespace(info=lambda *_, **__: None, once_per=lambda *_: host.log)
        host.tell, host.ready_body, host.envelope = (lambda *_: None), dict, decode
        host.dial = lambda _: None

        def post(dst: str, address: str, message: Hello) -> None:
            self.mail.append(Mail(machine, name, mine.incarnation, dst, 0, address, message, inside=False))

        def post_guest(guest: str, dst: str, _: int, message: Hello) -> None:
            assert machine.joining is not None
            host_name, port = machine.joining.asked[guest]
            post(dst, f"{host_name}:{port}", message)

        host.send = lambda dst, message, *_: post(dst, f"{dst}:1", message)
        host.send_guest = post_guest
        return host

    def token(self) -> str:
        self.tokens += 1
        return f"{self.tokens:032x}"

    def carry_out(self, name: str, effects: list[Effect]) -> None:
        m = self.members[name]
        for effect in effects:
            match effect:
                case Save(write):
                    m.disk.save(write)
                case Send(dst, message):
                    self.durable_before(m, message)
                    assert dst != m.mine.name
                    if dst in m.dialed:
                        life, address, _ = m.dialed[dst]
                        its = m.disk.identity.cluster_id
                        self.mail.append(Mail(m, *m.mine[:2], dst, life, address, message, inside=True, cluster_id=its))
                case SendStranger(dst, incarnation, address, hello, former):
                    inside, its = bool(hello.term), former or m.disk.identity.cluster_id
                    self.mail.append(Mail(m, *m.mine[:2], dst, incarnation, address, hello, inside, its))
                case Reborn():
                    self.restart(name)
                    return
                case Removed(reason, hint):
                    m.refused = (reason, hint)
                case Tell("raft.state", body):
                    m.state = body
                case Tell("raft.cluster", body):
                    m.cluster = json.loads(body["state"])
                case Tell("admin.answer", body):
                    m.answers.append(body)
                case Tell("config.check", body, token):
                    m.checks.append((token, body))
                case TellLease(_, until_ns):
                    m.lease_ns = until_ns
                case Tell():
                    pass

    def durable_before(self, m: Machine, message: PeerMessage) -> None:
        """safety.md, invariant 6."""
        disk = m.disk
        last = disk.entries[-1].index if disk.entries else disk.snapshot.index
        if not isinstance(message, PreVoteReq):
            assert disk.hard.term >= message.term, f"{message} left before its term was on disk"
        match message:
            case VoteResp(term, granted) if granted:
                assert (disk.hard.term, bool(disk.hard.vote)) == (term, True)
            case AppendResp(_, _, _, ok, match) if ok:
                assert last >= match, "acknowledged entries that are not on disk"
            case PromiseResp(term, epoch) if epoch >= 0:
                assert disk.record.promised >= term, "a promise left before it was on disk"
            case _:
                pass

    def deliver(self, mail: Mail) -> None:
        """As `Host._peer` and `Founder._greeted` take it in."""
        for name, m in self.members.items():
            if not m.up or m.mine.raft != mail.address or (mail.src, name) in self.cut:
                continue
            if m.joining is not None:
                cluster = (mail.cluster_id or CLUSTER_ID) if mail.inside else NO_CLUSTER
                frame = Envelope(cluster, mail.src, mail.incarnation, 1, mail.dst, mail.dst_incarnation, mail.message)
                self.answered(name, m, encode(frame))
            elif not mail.inside:
                assert isinstance(mail.message, Hello)
                self.carry_out(name, m.node.hello(mail.src, mail.message, self.now))
            elif (mail.cluster_id or CLUSTER_ID) != m.disk.identity.cluster_id:
                foreign = (mail.cluster_id or CLUSTER_ID, mail.src, mail.incarnation, mail.message)
                self.carry_out(name, m.node.foreign(*foreign, self.now))
            elif mail.dst != m.mine.name or mail.dst_incarnation not in (0, m.mine.incarnation):
                pass
            elif isinstance(mail.message, Hello):
                self.carry_out(name, m.node.met(mail.src, mail.incarnation, mail.message, self.now))
            elif not m.node.book.problem(mail.src, mail.incarnation, mail.message):
                self.carry_out(name, m.node.peer(mail.src, mail.message, self.now))

    def answered(self, name: str, m: Machine, data: bytes) -> None:
        assert m.joining is not None
        try:
            m.joining._greeted(data)
        except RefusedToStartError as error:
            m.refused, m.up = (str(error), error.hint), False
            return
        host = m.joining.host
        if host.identity.cluster_id:
            fresh = m.disk.record.promised == 0
            m.running, m.joining = self.node(m.disk, m.mine, boot=1, fresh=fresh, told=host.introduced), None
            m.dialed = m.node.book.current()
            self.go(name)

    def parents(self) -> None:
        """What every parent does at once: freeze when wanted, create the cluster when chosen, stop when removed."""
        for name, m in self.members.items():
            if m.refused[0]:
                m.up = False
            if not m.up or m.running is None or name in self.hung:
                continue
            if self.streams:
                self.follow(name, m)
            if self.now >= m.next_ns:  # a parent that says nothing is taken for hung
                m.next_ns = self.now + 1000 * MS
                self.tell(name, "node.observed", m.seen)
            wanted = m.state.get("wanted", 0)
            # Never frozen under its own grant; that is what the switchover and the fence are for.
            if wanted and not m.state["granted"] and m.said != (wanted, *m.position):
                m.said = (wanted, *m.position)
                epoch, lsn = m.position
                self.tell(
                    name,
                    "node.frozen",
                    {"term": wanted, "epoch": epoch, "lsn": lsn, "reason": "" if epoch >= 0 else "down"},
                )
            if m.cluster.get("nonce") and not m.cluster["system_identifier"] and m.cluster["founder"] == name:
                body = {"nonce": m.cluster["nonce"], "system_identifier": "77", "timeline": 1, "at": ""}
                self.tell(name, "node.propose", {"kind": "initialized/1", "body": body})

    def follow(self, name: str, m: Machine) -> None:
        grant = m.cluster["grants"][-1] if m.cluster.get("grants") else None
        if grant is None or not grant[5]:
            return
        if grant[1] != name and m.mine.role != WITNESS:
            m.position = (grant[0], 150)
            seen = {
                "state": "streaming", "epoch_of_upstream": grant[0], "epoch": grant[0], "lsn": 150, "proven": True,
                "incarnation": m.mine.incarnation,
            }  # fmt: skip
            if seen != m.seen:
                m.seen = seen
                self.tell(name, "node.observed", seen)
        change = m.cluster["change"]
        if m.state.get("granted") and change is not None and not self.holds_changes:
            body = {"index": change[0], "node": name}
            self.tell(name, "node.propose", {"kind": "done/1", "body": body})

    def tell(self, name: str, what: str, body: dict[str, Any], request: str = "") -> None:
        self.carry_out(name, self.members[name].node.parent(what, request, body, self.now))

    def note(self, name: str, text: str) -> None:
        """One more entry of the log."""
        body = {"kind": "note", "term": 0, "node": name, "text": text, "fields": {}, "at": ""}
        self.tell(name, "node.propose", {"kind": "event/1", "body": body})

    def ask(self, name: str, what: str, /, **body: Any) -> dict[str, Any]:
        """An admin request at ``name``, and its answer."""
        answers = self.members[name].answers
        before = len(answers)
        self.tell(name, "admin.request", {"name": what, "body": body}, "r")
        self.until(lambda: len(answers) > before)
        return answers[-1]

    def turn(self) -> None:
        self.now += self.turn_ms * MS
        mail, self.mail = self.mail, []
        for one in mail:
            if one.sender.up:
                self.deliver(one)
        for name, m in list(self.members.items()):
            if not m.up:
                continue
            if m.running is None:
                if m.joining is not None and self.now >= m.next_ns:
                    m.next_ns = self.now + GREET_EVERY_MS * MS
                    self.greet(m, m.joining)
                continue
            self.carry_out(name, m.node.tick(self.now))
            self.carry_out(name, m.node.tick(self.now))
            assert m.node.wakeup_ns > self.now, f"{name} would spin"
            m.dialed = m.node.book.current()
        self.parents()

    def greet(self, m: Machine, founder: Founder) -> None:
        mine, child = m.mine, founder.host.child
        greeting = Greeting(
            mine.name, mine.incarnation, mine.raft, mine.postgres, mine.http, self.names, "", mine.aim, bool(child.join)
        )
        founder._greet(greeting, self.names)

    def until(self, what: Callable[[], bool], limit_ms: int = 10_000) -> int:
        """Milliseconds until ``what``."""
        began = self.now
        while not what():
            self.turn()
            assert self.now - began < limit_ms * MS, {
                n: (m.state, m.cluster.get("members"), m.cluster.get("group")) for n, m in self.members.items()
            }
        return (self.now - began) // MS

    def run(self, ms: int) -> None:
        for _ in range(0, ms, self.turn_ms):
            self.turn()

    def sleep(self, ms: int) -> None:
        """As `run`, where nothing depends on how long a message takes: every turn is longer, and there are fewer."""
        self.turn_ms = 10
        self.run(ms)
        self.turn_ms = 1

    def primary(self) -> str:
        return next((n for n, m in self.members.items() if m.up and m.state.get("granted")), "")

    def open(self) -> str:
        """Until a primary has its grant; then its parent promotes and opens. Returns its name."""
        self.until(lambda: self.primary() != "")
        name = self.primary()
        term, at = self.promote(name)
        self.until(
            lambda: all(x.cluster["grants"][-1][5] for x in self.members.values() if x.up and x.cluster.get("grants"))
        )
        for other in self.members.values():
            if other.up:
                other.position = (term, at + 50)
        return name

    def promote(self, name: str) -> tuple[int, int]:
        """What the parent of one that has its grant does: its Postgres is through, and open. Returns term and LSN."""
        m = self.members[name]
        term, at, timeline = m.state["granted"], m.position[1], m.cluster["grants"][-1][3]
        ancestry = [[0, 0, 1], [term, at, timeline]]
        self.tell(name, "node.propose", {"kind": "switched/1", "body": {"term": term, "ancestry": ancestry}})
        self.tell(name, "node.propose", {"kind": "opened/1", "body": {"term": term}})
        return term, at

    def leader(self) -> str:
        return next((n for n, m in self.members.items() if m.up and m.state.get("role") == "leader"), "")

    def lose(self, name: str) -> str:
        """This primary's host; returns the next one, open."""
        self.members[name].up = False
        return self.open()

    def roles(self, at: str) -> str:
        """The members as ``at`` has applied them: ``a b c:learner``, and an aim that is not reached yet."""
        words = []
        for row in self.members[at].cluster["members"]:
            m = Member(*row)
            words.append(m.name + (f":{m.role}" if m.role != VOTER else "") + (f">{m.aim}" if m.aim != m.role else ""))
        return " ".join(words)

    def seats(self, at: str) -> str:
        members, k, _ = self.members[at].cluster["group"]
        return f"{k} of {' '.join(name + (str(life) if life != 1 else '') for name, life in members)}"


def member_of(name: str, incarnation: int, address: str, role: str) -> Member:
    return Member(name, incarnation, address, "" if role == WITNESS else f"{name}:2", f"{name}:3", role, role)
