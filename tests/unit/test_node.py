"""Three `Node`s in memory, a virtual clock, and a scripted parent beside each: from the founding to a switchover.

Every turn is checked: what is sent was saved before, and nobody is asked to wake up in the past for ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from consensus.cluster import canonical
from consensus.effects import Effect, Save, Send, Tell, TellLease
from consensus.membership import Member
from consensus.messages import (
    AppendResp,
    Entry,
    HardState,
    Observation,
    PreVoteReq,
    PromiseResp,
    Snapshot,
    VoteResp,
)
from consensus.node import Node
from consensus.raft import Log, Raft, RaftConfig, Role
from consensus.record import Identity, NodeRecord
from fencing.lease import MS, PROFILES

T = PROFILES["default"]


@dataclass
class Disk:
    hard: HardState = HardState()  # noqa: RUF009
    snapshot: Snapshot = Snapshot(0, 0, "")  # noqa: RUF009
    entries: tuple[Entry, ...] = ()
    record: NodeRecord = NodeRecord()  # noqa: RUF009

    def save(self, effect: Save) -> None:
        w = effect.write
        self.hard = w.hard or self.hard
        if w.truncate_from is not None:
            self.entries = tuple(e for e in self.entries if e.index < w.truncate_from)
        self.entries += w.entries
        self.snapshot = w.snapshot or self.snapshot
        self.entries = tuple(e for e in self.entries if e.index > self.snapshot.index)
        self.record = w.record or self.record


@dataclass
class Member_:
    """One node, its disk, and what its parent was told."""

    node: Node
    disk: Disk
    state: dict[str, Any] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    lease_ns: int = 0
    position: tuple[int, int] = (0, 100)
    up: bool = True
    said: tuple[int, int, int] = (0, 0, 0)
    seen: dict[str, Any] = field(default_factory=dict)


class Cluster:
    def __init__(self, *names: str) -> None:
        self.now, self.names = MS, names
        self.tokens = 0
        self.mail: list[tuple[str, Send]] = []
        self.charter = canonical({
            "members": [[n, 1, f"{n}:1", f"{n}:2", f"{n}:3"] for n in names], "founder": names[0],
            "commit": "quorum", "profile": "default", "settings": {},
        })  # fmt: skip
        self.members = {n: self.make(n, Disk(), boot=1, fresh=True) for n in names}
        for name, m in self.members.items():
            self.carry_out(name, m.node.start(None, self.now))

    def make(self, name: str, disk: Disk, *, boot: int, fresh: bool) -> Member_:
        config = RaftConfig(
            name, self.names, T.heartbeat_ms * MS, T.election_ms * MS, T.jitter_ms * MS, T.lease_ms * MS
        )  # fmt: skip
        raft = Raft(
            config, disk.hard, Log(disk.snapshot, disk.entries), boot=boot, seed=ord(name), now_ns=self.now, fresh=fresh
        )
        mine = Member(name, 1, f"{name}:1", f"{name}:2", f"{name}:3")
        return Member_(
            Node(
                Identity(name, 1, "00", self.charter),
                disk.record,
                raft,
                T,
                self.token,
                lambda: "2026-01-01T00:00:00Z",
                mine,
            ),
            disk,
        )

    def token(self) -> str:
        self.tokens += 1
        return f"{self.tokens:032x}"

    def carry_out(self, name: str, effects: list[Effect]) -> None:
        m = self.members[name]
        for at, effect in enumerate(effects):
            match effect:
                case Save():
                    m.disk.save(effect)
                case Send(_, message):
                    self.durable_before(m, message)
                    assert effect.dst != name
                    self.mail.append((name, effect))
                case Tell("raft.state", body):
                    m.state = body
                case Tell("raft.cluster", body):
                    m.cluster = json.loads(body["state"])
                case Tell("admin.answer", body):
                    m.answers.append(body)
                case TellLease(_, until_ns):
                    m.lease_ns = until_ns
                case _:
                    pass
            assert at < 10_000

    def durable_before(self, m: Member_, message: object) -> None:
        """safety.md, invariant 6."""
        disk = m.disk
        last = disk.entries[-1].index if disk.entries else disk.snapshot.index
        if not isinstance(message, PreVoteReq):
            assert disk.hard.term >= message.term, f"{message} left before its term was on disk"  # type: ignore[attr-defined]
        match message:
            case VoteResp(term, granted) if granted:
                assert (disk.hard.term, bool(disk.hard.vote)) == (term, True)
            case AppendResp(_, _, _, ok, match) if ok:
                assert last >= match, "acknowledged entries that are not on disk"
            case PromiseResp(term, epoch) if epoch >= 0:
                assert disk.record.promised >= term, "a promise left before it was on disk"

    def parents(self) -> None:
        """What every parent does at once: freeze when wanted, create the cluster when chosen."""
        for name, m in self.members.items():
            if not m.up:
                continue
            if self.now // MS % 1000 == 0:  # a parent that says nothing is taken for hung
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

    def tell(self, name: str, what: str, body: dict[str, Any], request: str = "") -> None:
        self.carry_out(name, self.members[name].node.parent(what, request, body, self.now))

    def turn(self) -> None:
        self.now += MS
        mail, self.mail = self.mail, []
        for src, (dst, message) in mail:
            if self.members[dst].up and self.members[src].up:
                self.carry_out(dst, self.members[dst].node.peer(src, message, self.now))
        for name, m in self.members.items():
            if m.up:
                self.carry_out(name, m.node.tick(self.now))
                self.carry_out(name, m.node.tick(self.now))
                assert m.node.wakeup_ns > self.now, f"{name} would spin"
        self.parents()

    def until(self, what: Callable[[], bool], limit_ms: int = 10_000) -> int:
        """Milliseconds until ``what``."""
        began = self.now
        while not what():
            self.turn()
            assert self.now - began < limit_ms * MS, {
                n: (m.state, m.cluster.get("grants")) for n, m in self.members.items()
            }
        return (self.now - began) // MS

    def primary(self) -> str:
        return next((n for n, m in self.members.items() if m.up and m.state.get("granted")), "")

    def open(self) -> str:
        """Until a primary has its grant; then its parent promotes and opens. Returns its name."""
        self.until(lambda: self.primary() != "")
        name = self.primary()
        m = self.members[name]
        term = m.state["granted"]
        at = m.position[1]
        timeline = m.cluster["grants"][-1][3]
        self.tell(
            name,
            "node.propose",
            {"kind": "switched/1", "body": {"term": term, "ancestry": [[0, 0, 1], [term, at, timeline]]}},
        )
        self.tell(name, "node.propose", {"kind": "opened/1", "body": {"term": term}})
        self.until(lambda: all(x.cluster["grants"][-1][5] for x in self.members.values() if x.up))
        for other in self.members.values():
            if other.up:
                other.position = (term, at + 50)
        return name


def test_a_lone_node_becomes_primary_by_itself() -> None:
    cluster = Cluster("a")
    assert cluster.open() == "a"
    assert cluster.members["a"].lease_ns > cluster.now


def test_founding_creates_data_once_and_opens() -> None:
    cluster = Cluster("a", "b", "c")
    name = cluster.open()
    assert name == "a", "only the founder has data"
    for m in cluster.members.values():
        assert (m.cluster["system_identifier"], m.cluster["nonce"]) == ("77", f"{1:032x}")
        assert [g[1] for g in m.cluster["grants"]] == ["a"]
    assert cluster.members["a"].lease_ns > cluster.now
    assert not cluster.members["b"].lease_ns


def test_the_next_primary_takes_over_when_the_leader_is_gone() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    lease_ns = cluster.members["a"].lease_ns
    cluster.members["a"].up = False
    took = cluster.until(lambda: cluster.primary() != "")
    assert took < T.election_ms + 2 * T.jitter_ms + 300
    assert cluster.now > lease_ns + T.kill_bound_ms * MS, "never before the old Postgres is gone"
    winner = cluster.members[cluster.primary()]
    assert winner.disk.record.promised == winner.state["term"]


def test_leadership_goes_to_the_node_with_the_wal() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    epoch, lsn = cluster.members["b"].position
    cluster.members["a"].up = False
    for best in ("b", "c"):
        cluster.members[best].position = (epoch, lsn + 1 if best == "c" else lsn)
    cluster.until(lambda: cluster.primary() != "")
    assert cluster.primary() == "c"


def test_no_promotion_without_a_read_quorum_and_the_reason_is_told() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.members["a"].up = False
    cluster.members["b"].position = (-1, 0)
    cluster.until(
        lambda: any("b has no position (down)" in m.state.get("sentence", "") for m in cluster.members.values())
    )
    for _ in range(3000):
        cluster.turn()
        assert cluster.primary() == ""
    cluster.members["b"].position = (1, 150)
    cluster.until(lambda: cluster.primary() != "")


def _streaming(cluster: Cluster, primary: str) -> None:
    term = cluster.members[primary].state["granted"]
    for name in cluster.names:
        if name != primary:
            seen = cluster.members[name].seen = {
                "state": "streaming",
                "epoch_of_upstream": term,
                "epoch": term,
                "lsn": 150,
            }
            cluster.tell(name, "node.observed", seen)
    cluster.until(lambda: len(cluster.members[primary].node.sightings.all(cluster.now)) >= 2)


def test_switchover_is_forwarded_fenced_first_and_ends_at_its_target() -> None:
    cluster = Cluster("a", "b", "c")
    primary = cluster.open()
    _streaming(cluster, primary)
    cluster.tell("c", "admin.request", {"name": "switchover", "body": {"to": "b"}}, "r1")
    cluster.until(lambda: bool(cluster.members["c"].answers))
    assert cluster.members["c"].answers[-1] == {"ok": True, "from": "a", "to": "b", "term": 1}
    assert cluster.members["a"].state["hand_over"] == "b"
    for _ in range(100):
        cluster.turn()
    assert cluster.primary() == "a", "nothing moves before the fence"
    cluster.tell("a", "node.fenced", {"term": cluster.members["a"].state["term"], "reason": "switchover", "at": ""})
    assert cluster.members["a"].disk.hard.released == 1
    took = cluster.until(lambda: cluster.primary() == "b")
    assert took < 200, "with the release nobody waits for E"


@pytest.mark.parametrize(("to", "code"), [("x", 64), ("a", 64), ("c", 75)])
def test_a_switchover_that_cannot_be_is_refused_with_a_hint(to: str, code: int) -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.tell("a", "admin.request", {"name": "switchover", "body": {"to": to}}, "r1")
    answer = cluster.members["a"].answers[-1]
    assert (answer["ok"], answer["code"]) == (False, code)
    assert answer["hint"]


def test_a_failed_grant_goes_to_another_node() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    term = cluster.members["a"].state["term"]
    cluster.tell("a", "node.fenced", {"term": term, "reason": "Postgres crashed", "at": ""})
    cluster.members["a"].position = (-1, 0)
    cluster.until(lambda: cluster.primary() not in ("", "a"))
    assert cluster.members[cluster.primary()].cluster["grants"][0][6] == "Postgres crashed"


def test_a_restarted_leader_resumes_its_term() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    old = cluster.members["a"]
    term = old.state["term"]
    again = cluster.members["a"] = cluster.make("a", old.disk, boot=2, fresh=False)
    again.position, again.lease_ns = old.position, 0
    assert again.node.cluster.grant is not None, "its own disk shows the grant as committed"
    ready = again.node.raft.resume()
    cluster.carry_out("a", again.node.start(ready, cluster.now))
    assert again.lease_ns == 0
    cluster.until(lambda: again.lease_ns > 0, 2 * T.heartbeat_ms)
    assert (again.state["term"], again.state["granted"], again.node.raft.role) == (term, term, Role.LEADER)
    for m in cluster.members.values():
        assert len(m.cluster.get("grants", again.cluster["grants"])) == 1


def test_hello_of_the_parent_gets_everything_told_again() -> None:
    cluster = Cluster("a")
    cluster.open()
    m = cluster.members["a"]
    m.state, m.cluster, m.lease_ns = {}, {}, 0
    cluster.tell("a", "node.hello", {})
    assert m.state["granted"]
    assert m.cluster["system_identifier"] == "77"
    assert m.lease_ns


def test_an_isolated_leader_does_not_spin() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.members["b"].up = cluster.members["c"].up = False
    for _ in range(3 * T.election_ms):
        cluster.turn()
    assert cluster.primary() == ""


def test_what_a_follower_said_does_not_count_once_it_leads() -> None:
    """Of a follower it is one observation, of a leader those of all; found by tests/sim."""
    cluster = Cluster("a", "b", "c")
    leader = cluster.open()
    follower = next(n for n in "abc" if n != leader)
    node = cluster.members[follower].node
    before = node.sightings.all(cluster.now)
    late = Observation(node.raft.term - 1, canonical({"role": "replica"}))
    assert node.peer(leader, late, cluster.now) == []
    assert node.sightings.all(cluster.now) == before


def test_a_node_that_lost_its_state_is_sent_the_whole_log() -> None:
    """What its former life had acknowledged says nothing of the new one; found by tests/sim."""
    cluster = Cluster("a", "b", "c")
    leader = cluster.open()
    node = cluster.members[leader].node
    lost = next(n for n in "abc" if n != leader)
    assert node.raft.acknowledged(lost)[0] > 0
    members = [m._replace(incarnation=2, role="learner") if m.name == lost else m for m in node.cluster.members]
    body = {"members": [list(m) for m in members], "kind": "joined", "node": lost, "text": "", "at": ""}
    cluster.members[lost].up = False
    cluster.tell(leader, "node.propose", {"kind": "members/1", "body": body})
    cluster.until(lambda: node.cluster.member(lost) == members["abc".index(lost)])
    assert node.raft.acknowledged(lost) == (0, 0)
