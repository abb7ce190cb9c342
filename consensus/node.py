"""One member of the cluster: Raft, the replicated state, promises and the way to a primary, put together. Pure.

Events in, an ordered list of effects out; the host (consensus/process.py) carries them out in exactly that order and
decides nothing. Layers: `raft.py` finds a leader; `promotion.py` says who becomes primary; this file keeps the leader's
notes of a term (who promised what), turns decisions into log entries, and tells the parent what is wanted of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from consensus.cluster import ClusterState, Grant, Member, apply, canonical, dump, found, load
from consensus.founding import charter_message, parse, parse_greeting, standing, stranger_message
from consensus.messages import (
    Forward,
    ForwardResp,
    Hello,
    Observation,
    PeerMessage,
    PromiseReq,
    PromiseResp,
    Snapshot,
)
from consensus.positions import NoPosition
from consensus.promotion import GRACE_MS, Decision, HandOver, Situation, TakeGrant, Wait, decide, quorum_promised
from consensus.raft import (
    Compact,
    Event,
    Propose,
    Raft,
    Ready,
    Received,
    Release,
    Role,
    StepDown,
    Tick,
)
from consensus.record import EpochStart, Identity, NodeRecord, Position
from consensus.write import Write
from fencing.lease import MS, Timings

COMPACT_AFTER_ENTRIES = 256
OBSERVE_EVERY_MS = 500
PARENT_SILENT_MS = 3_000
"""A parent that has said nothing for this long is hung: this node does not campaign, and makes way if it only is a
caretaker."""


class Send(NamedTuple):
    dst: str
    message: PeerMessage


class SendStranger(NamedTuple):
    """An answer to a node that is not a member (yet): addressed by the incarnation it gave."""

    dst: str
    incarnation: int
    message: Hello


class Save(NamedTuple):
    """Durable before the next effect."""

    write: Write


class Tell(NamedTuple):
    """A fact or an answer for the parent, over the local bus."""

    name: str
    body: dict[str, Any]
    id: str = ""


class TellLease(NamedTuple):
    """For the watchdog and the parent: until when Postgres may be writable in this term."""

    term: int
    until_ns: int


Effect = Send | SendStranger | Save | Tell | TellLease


@dataclass(slots=True)
class Campaigning:
    """The leader's notes of one term. Thrown away with the term."""

    term: int
    promises: dict[str, Position | NoPosition] = field(default_factory=dict)
    quorum_at_ns: int = 0
    ask_at_ns: int = 0
    granted_index: int = 0
    """Index of this node's `Promoted`, once proposed."""
    handing_over_to: str | None = None
    """Set while the parent is asked to stop Postgres for a switchover."""
    handed_over: bool = False
    sentence: str = ""


class Node:
    """Not a value: a machine with one way in (`peer`, `parent`, `tick`) and effects out."""

    def __init__(
        self, identity: Identity, record: NodeRecord, raft: Raft, timings: Timings, token: Callable[[], str],
        wall_clock: Callable[[], str], mine: Member,
    ) -> None:
        """``raft`` is constructed; ``token`` gives 32 random hex digits, ``wall_clock`` the time for people (ISO 8601,
        UTC); ``mine``: the addresses of this start."""
        self.identity, self.record, self.raft, self.timings = identity, record, raft, timings
        self.token, self.wall_clock = token, wall_clock
        self.me, self.mine = identity.name, mine
        self.cluster = _initial_state(identity, raft.log.snapshot)
        self.applied = raft.log.snapshot.index
        self.notes: Campaigning | None = None
        self.wanted = 0
        self.answer: PromiseResp | None = None
        """What the parent last said for ``wanted``."""
        self.heard: dict[str, int] = {}
        self.observations: dict[str, tuple[str, int]] = {}
        self.observe_at_ns = 0
        self.turned_at_ns = 0
        self.parent_heard_ns = raft.now_ns
        self.effects: list[Effect] = []
        self.told: dict[str, Any] = {}
        self.told_cluster: ClusterState | None = None
        self.told_lease = TellLease(0, 0)
        for entry in raft.log.between(self.applied + 1, raft.commit):
            self.cluster = apply(self.cluster, entry)
        self.applied = max(self.applied, raft.commit)

    # -- ways in -------------------------------------------------------------------------------------------------

    def start(self, ready: Ready | None, now_ns: int) -> list[Effect]:
        """First effects: those of a resumed Raft, and the state for the parent."""
        if ready is not None:
            self._carry_out(ready)
        return self._finish(now_ns)

    def tick(self, now_ns: int) -> list[Effect]:
        if now_ns >= self.raft.wakeup_ns:
            leads = self.raft.role is Role.LEADER
            if leads or not self._parent_silent(now_ns):
                self._raft(Tick(), now_ns)
        return self._finish(now_ns)

    def _parent_silent(self, now_ns: int) -> bool:
        """Only among several: a lone node has nobody to make way for."""
        return len(self.cluster.members) > 1 and now_ns - self.parent_heard_ns > PARENT_SILENT_MS * MS

    def peer(self, src: str, message: PeerMessage, now_ns: int) -> list[Effect]:
        """A message from a member; the host has checked cluster id, incarnation and addressee."""
        self.heard[src] = now_ns
        match message:
            case PromiseReq(term):
                if term == self.raft.term and src == self.raft.leader:
                    self._promise_wanted(term)
            case PromiseResp(term, epoch, lsn, reason):
                if self.notes is not None and term == self.notes.term == self.raft.term:
                    self.notes.promises[src] = Position(epoch, lsn) if epoch >= 0 else NoPosition(reason)
            case Observation(_, data):
                self._observed(src, data, now_ns)
            case Forward(_, request_id, name, data):
                ok, answer = self._request(name, json.loads(data), now_ns)
                self.effects.append(Send(src, ForwardResp(self.raft.term, request_id, ok, canonical(answer))))
            case ForwardResp(_, request_id, ok, data):
                self._tell("admin.answer", {"ok": ok, **json.loads(data)}, request_id)
            case Hello():
                pass
            case _:
                self._raft(Received(src, message), now_ns)
        return self._finish(now_ns)

    def hello(self, src: str, message: Hello, now_ns: int) -> list[Effect]:
        """A node without a cluster id greets: give it the charter if it is in it, else send it away."""
        try:
            greeting = parse_greeting(parse(message.data))
        except ValueError:
            return []
        if greeting.name != src:
            return []
        reason = standing(self.identity.charter, greeting.name, greeting.incarnation)
        text = stranger_message(reason) if reason else charter_message(self.identity.cluster_id, self.identity.charter)
        return [SendStranger(src, greeting.incarnation, Hello(0, text)), *self._finish(now_ns)]

    def parent(self, name: str, request_id: str, body: dict[str, Any], now_ns: int) -> list[Effect]:
        """An order or a fact from the parent over the local bus (catalogue in DESIGN.md)."""
        self.parent_heard_ns = now_ns
        match name:
            case "node.hello":
                self.told, self.told_cluster = {}, None
                self.told_lease = TellLease(0, 0)
            case "node.observed":
                self._observed(self.me, canonical(body), now_ns)
            case "node.frozen":
                self._frozen(body)
            case "node.record":
                self._record(request_id, body)
            case "node.propose":
                self._propose_or_forward(str(body["kind"]), body["body"], now_ns)
            case "node.fenced":
                self._fenced(body, now_ns)
            case "admin.request":
                self._admin(request_id, str(body["name"]), body["body"], now_ns)
            case _:
                raise ValueError(f"the parent sent {name}, which is not in the catalogue")
        return self._finish(now_ns)

    @property
    def wakeup_ns(self) -> int:
        """When `tick` is due next."""
        silent = self.raft.role is not Role.LEADER and self._parent_silent(self.turned_at_ns)
        times = [self.observe_at_ns] if silent else [self.raft.wakeup_ns, self.observe_at_ns]
        notes = self.notes
        # Only what `_conduct` will act on, and move on: a time that stays in the past would make the host spin.
        if notes is not None and notes.term == self.raft.term and self._undecided(notes):
            times.append(notes.ask_at_ns)
            graced_ns = notes.quorum_at_ns + GRACE_MS * MS
            if notes.quorum_at_ns and graced_ns > self.turned_at_ns:
                times.append(graced_ns)
        return min(times)

    def _undecided(self, notes: Campaigning) -> bool:
        """Does this leader still have to find out who is to be primary of its term?"""
        grant = self.cluster.grant
        settled = bool(notes.granted_index or notes.handed_over or (grant is not None and grant.term == self.raft.term))
        return self._leads() and not settled and self.cluster.nonce != ""

    # -- Raft ----------------------------------------------------------------------------------------------------

    def _raft(self, event: Event, now_ns: int) -> int:
        ready = self.raft.step(event, now_ns)
        self._carry_out(ready)
        return ready.proposed

    def _carry_out(self, ready: Ready) -> None:
        """Persist, send, apply: the order is the contract."""
        self.effects.extend(Send(dst, message) for dst, message in ready.now)
        if ready.hard is not None:
            self.effects.append(Save(Write(ready.hard, ready.truncate_from, ready.entries, ready.snapshot)))
        self.effects.extend(Send(dst, message) for dst, message in ready.after)
        if ready.restored:
            self.cluster = load(self.raft.log.snapshot.data)
            self.applied = self.raft.log.snapshot.index
        for entry in ready.committed:
            self.cluster = apply(self.cluster, entry)
            self.applied = entry.index
            if entry.kind == "promoted/1":
                # A restarted process may resume only on a grant that its own disk shows as committed.
                self.effects.append(Save(Write(hard=self.raft.hard_state)))

    def _tip(self) -> ClusterState:
        """The state as of the last entry of the log, committed or not: what an election has to respect."""
        state = self.cluster
        for entry in self.raft.log.between(self.applied + 1, self.raft.log.last_index):
            state = apply(state, entry)
        return state

    def _leads(self) -> bool:
        """Leader whose own no-op is committed (and which has not given its lease up)."""
        raft = self.raft
        return (
            raft.role is Role.LEADER and raft.released < raft.term and raft.log.term_at(raft.commit) == raft.term
        )

    def _granted(self) -> Grant | None:
        """This node's grant of the current term, if it is committed and may be used."""
        grant = self.cluster.grant
        if grant is None or grant.node != self.me or grant.term != self.raft.term or grant.failed or not self._leads():
            return None
        return grant

    # -- the way to a primary ------------------------------------------------------------------------------------

    def _finish(self, now_ns: int) -> list[Effect]:
        """What follows from the new state, whatever the event was; then all effects of this turn."""
        self.turned_at_ns = now_ns
        if self.raft.role is not Role.LEADER:
            self.notes = None
        elif self.notes is None or self.notes.term != self.raft.term:
            self.notes = Campaigning(self.raft.term)
            self._promise_wanted(self.raft.term)
        if self.notes is not None and self._leads():
            self._conduct(self.notes, now_ns)
        if len(self.raft.log.entries) > COMPACT_AFTER_ENTRIES and self.applied > self.raft.log.snapshot.index:
            self._raft(Compact(self.applied, dump(self.cluster)), now_ns)
        if now_ns >= self.observe_at_ns and self.cluster.member(self.me) not in (self.mine, None):
            self._propose_or_forward("member/1", {"member": list(self.mine)}, now_ns)
        self._observe(now_ns)
        self._tell_state()
        effects, self.effects = self.effects, []
        return effects

    def _conduct(self, notes: Campaigning, now_ns: int) -> None:
        if self._parent_silent(now_ns):
            # Also as primary: a frozen parent cannot demote, so the lease has to end and the watchdog to act.
            self._raft(StepDown(), now_ns)
            return
        if self._granted() is not None or notes.handed_over:
            return
        if not self.cluster.nonce:
            if self._tip().nonce == "":
                body = {"node": self.cluster.founder, "nonce": self.token(), "replication_password": self.token()}
                body["at"] = self.wall_clock()
                self._raft(Propose("founding/1", canonical(body)), now_ns)
            notes.sentence = f"{self.cluster.founder} is to create the cluster"
            return
        if notes.granted_index or (self.cluster.grant is not None and self.cluster.grant.term == self.raft.term):
            return
        situation = self._situation(notes, now_ns)
        if not notes.quorum_at_ns and quorum_promised(situation):
            notes.quorum_at_ns = now_ns
        decision = decide(situation)
        if now_ns >= notes.ask_at_ns:
            self._ask(notes, now_ns)
        self._act(notes, decision, now_ns)

    def _situation(self, notes: Campaigning, now_ns: int) -> Situation:
        waited_ms = (now_ns - notes.quorum_at_ns) // MS if notes.quorum_at_ns else 0
        alive_ns = self.timings.election_ms * MS
        connected = {self.me} | {n for n, at in self.heard.items() if now_ns - at < alive_ns}
        return Situation(
            self.me, notes.term, self._tip(), notes.promises, frozenset(connected), waited_ms,
            last_known=self._last_known(),
        )  # fmt: skip

    def _last_known(self) -> Position | None:
        """The newest position heard of the last primary (asynchronous mode's bound on loss)."""
        grant = self.cluster.grant
        known = self.observations.get(grant.node) if grant is not None else None
        if grant is None or known is None:
            return None
        seen = json.loads(known[0])
        if seen.get("role") != "primary" or seen.get("epoch") != grant.term:
            return None
        return Position(grant.term, int(seen.get("lsn", 0)))

    def _act(self, notes: Campaigning, decision: Decision, now_ns: int) -> None:
        match decision:
            case Wait(reason):
                notes.sentence = reason
            case TakeGrant(upper, timeline, reason):
                notes.sentence = f"{self.me} {reason}"
                body = {
                    "term": notes.term, "node": self.me, "upper": list(upper), "timeline": timeline, "reason": reason,
                    "at": self.wall_clock(),
                }  # fmt: skip
                notes.granted_index = self._raft(Propose("promoted/1", canonical(body)), now_ns)
            case HandOver(to, reason):
                notes.sentence = reason
                # Only when the parent has said for this very term that Postgres here is not writable.
                if self.me in notes.promises:
                    notes.handed_over = True
                    self._raft(Release(to), now_ns)

    def _ask(self, notes: Campaigning, now_ns: int) -> None:
        notes.ask_at_ns = now_ns + self.timings.heartbeat_ms * MS
        for member in self.cluster.members:
            if member.name != self.me and not isinstance(notes.promises.get(member.name), Position):
                self.effects.append(Send(member.name, PromiseReq(notes.term)))

    # -- promises ------------------------------------------------------------------------------------------------

    def _promise_wanted(self, term: int) -> None:
        if self.wanted != term:
            self.wanted, self.answer = term, None
        elif self.answer is not None and self.raft.leader != self.me:
            self.effects.append(Send(self.raft.leader, self.answer))

    def _frozen(self, body: dict[str, Any]) -> None:
        """The parent says: nothing here is writable, no WAL comes in under an older grant, and this is the position."""
        term, epoch = int(body["term"]), int(body["epoch"])
        if term != self.wanted or term != self.raft.term:
            self.told = {}  # the parent acts on an old state: it is told anew
            return
        if epoch >= 0 and self.record.promised < term:
            self.record = self.record._replace(promised=term)
            self.effects.append(Save(Write(record=self.record)))
        self.answer = PromiseResp(term, epoch, int(body["lsn"]), str(body["reason"]))
        if self.raft.role is Role.LEADER and self.notes is not None:
            known = Position(epoch, self.answer.lsn) if epoch >= 0 else NoPosition(self.answer.reason)
            self.notes.promises[self.me] = known
        elif self.raft.leader:
            self.effects.append(Send(self.raft.leader, self.answer))

    def _record(self, request_id: str, body: dict[str, Any]) -> None:
        """Term history, proof and marker are the parent's knowledge; they live on this disk. `promised` is ours."""
        proof = body["proof"]
        self.record = self.record._replace(
            history=tuple(EpochStart(*e) for e in body["history"]),
            proof=Position(*proof) if proof is not None else None,
            marker=str(body["marker"]),
        )
        self.effects.append(Save(Write(record=self.record)))
        self._tell("record.saved", {}, request_id)

    # -- the end of a reign --------------------------------------------------------------------------------------

    def _fenced(self, body: dict[str, Any], now_ns: int) -> None:
        """The parent has verified that Postgres here can accept no write, while this node held this term's grant."""
        notes = self.notes
        grant = self._granted()
        if notes is None or grant is None or int(body["term"]) != self.raft.term or notes.handed_over:
            self.told = {}
            return
        planned = notes.handing_over_to
        if planned is None:
            failed = {"term": self.raft.term, "reason": str(body["reason"]), "at": str(body["at"])}
            self._raft(Propose("failed/1", canonical(failed)), now_ns)
        notes.handed_over = True
        notes.handing_over_to = None
        self._raft(Release(planned or self._best_follower(now_ns)), now_ns)

    def _best_follower(self, now_ns: int) -> str:
        """The connected data node that was furthest when last heard; only for speed, promotion decides for safety."""
        alive_ns = self.timings.election_ms * MS
        best: tuple[int, int, str] | None = None
        for member in self.cluster.members:
            at = self.heard.get(member.name, 0)
            if member.name == self.me or now_ns - at >= alive_ns or not at:
                continue
            seen = json.loads(self.observations.get(member.name, ("{}", 0))[0])
            rank = (int(seen.get("epoch", -1)), int(seen.get("lsn", 0)), member.name)
            best = max(best, rank) if best else rank
        return best[2] if best else ""

    # -- requests ------------------------------------------------------------------------------------------------

    def _propose_or_forward(self, kind: str, body: dict[str, Any], now_ns: int) -> None:
        if self.raft.role is Role.LEADER:
            self._raft(Propose(kind, canonical(body)), now_ns)
        elif self.raft.leader:
            data = canonical({"kind": kind, "body": body})
            self.effects.append(Send(self.raft.leader, Forward(self.raft.term, "", "propose", data)))

    def _admin(self, request_id: str, name: str, body: dict[str, Any], now_ns: int) -> None:
        if self.raft.role is Role.LEADER or (name == "failover" and not self.raft.leader):
            ok, answer = self._request(name, body, now_ns)
            self._tell("admin.answer", {"ok": ok, **answer}, request_id)
        elif self.raft.leader:
            message = Forward(self.raft.term, request_id, name, canonical(body))
            self.effects.append(Send(self.raft.leader, message))
        else:
            error = "the cluster has no leader at the moment"
            hint = "see `pgr status`; a majority of the nodes must be up and reach each other"
            self._tell("admin.answer", {"ok": False, "code": 75, "error": error, "hint": hint}, request_id)

    def _request(self, name: str, body: dict[str, Any], now_ns: int) -> tuple[bool, dict[str, Any]]:
        """Carry out a request at the leader. Returns (ok, answer)."""
        if name == "propose":
            self._propose_or_forward(str(body["kind"]), body["body"], now_ns)
            return True, {}
        if name in ("switchover", "failover"):
            return self._move(name, str(body.get("to") or ""), bool(body.get("accept_data_loss")), now_ns)
        return False, {"code": 64, "error": f"unknown request {name}", "hint": "use a pgr of the same version"}

    def _move(self, name: str, to: str, accept_loss: bool, now_ns: int) -> tuple[bool, dict[str, Any]]:
        notes, grant = self.notes, self._granted()
        if to and self.cluster.member(to) is None:
            names = ", ".join(m.name for m in self.cluster.members)
            return False, {"code": 64, "error": f"no member is named {to}", "hint": f"members: {names}"}
        if notes is None or grant is None or not grant.opened:
            if name == "switchover" or notes is None or grant is not None:
                sentence = notes.sentence if notes is not None else ""
                return False, {
                    "code": 75, "error": f"there is no primary to move away from: {sentence or 'not open yet'}",
                    "hint": "see `pgr status`; `pgr failover` acts without a primary",
                }  # fmt: skip
            if notes.granted_index:
                error, hint = "a new primary has just been chosen", "see `pgr status`; ask again if need be"
                return False, {"code": 75, "error": error, "hint": hint}
            decision = decide(self._situation(notes, now_ns))
            if isinstance(decision, Wait) and decision.missing and not accept_loss:
                hint = "bring them back; `--accept-data-loss` goes on without, and what only they hold is then lost"
                return False, {"code": 78, "error": decision.reason, "hint": hint}
            self._wish(name, to, accept_loss, now_ns)
            return True, {"from": "", "to": to, "term": self.raft.term}
        if to == self.me:
            return False, {"code": 64, "error": f"{to} is the primary already", "hint": "name another member"}
        target = to or self._best_follower(now_ns)
        problem = self._unfit(target, now_ns)
        if problem:
            hint = "see `pgr status`; wait until the standby streams again"
            return False, {"code": 75, "error": problem, "hint": hint}
        self._wish(name, target, False, now_ns)
        notes.handing_over_to = target
        return True, {"from": self.me, "to": target, "term": self.raft.term}

    def _wish(self, kind: str, to: str, accept_loss: bool, now_ns: int) -> None:
        """In the log, so that whoever leads next knows it too."""
        after = self.cluster.grant.term if self.cluster.grant is not None else 0
        body = {"kind": kind, "to": to, "accept_data_loss": accept_loss, "after": after, "at": self.wall_clock()}
        self._raft(Propose("wish/1", canonical(body)), now_ns)

    def _unfit(self, target: str, now_ns: int) -> str:
        """Why ``target`` cannot take over without loss or a long gap; empty if it can."""
        if not target:
            return "no other data node is connected"
        if now_ns - self.heard.get(target, 0) >= self.timings.election_ms * MS or target not in self.heard:
            return f"{target} is not connected"
        seen = json.loads(self.observations.get(target, ("{}", 0))[0])
        if seen.get("state") != "streaming" or seen.get("epoch_of_upstream") != self.raft.term:
            return f"{target} does not stream from the primary (it is {seen.get('state', 'unknown')})"
        return ""

    # -- observations --------------------------------------------------------------------------------------------

    def _observed(self, src: str, data: str, now_ns: int) -> None:
        """From ourselves: one NodeStatus. From a member: one, or, if it leads, those of all."""
        if src == self.me:
            changed = self.observations.get(src, ("", 0))[0] != data
            self.observations[src] = (data, now_ns)
            if changed:
                self.observe_at_ns = now_ns
        elif self.raft.role is Role.LEADER:
            self.observations[src] = (data, now_ns)
        elif src == self.raft.leader:
            for name, one in json.loads(data).items():
                if name != self.me:
                    self.observations[name] = (canonical(one["seen"]), now_ns - int(one["age_ms"]) * MS)

    def _observe(self, now_ns: int) -> None:
        if now_ns < self.observe_at_ns:
            return
        self.observe_at_ns = now_ns + OBSERVE_EVERY_MS * MS
        if self.raft.role is Role.LEADER:
            data = canonical(self._seen(now_ns))
            others = [m.name for m in self.cluster.members if m.name != self.me]
            self.effects.extend(Send(name, Observation(self.raft.term, data)) for name in others)
        elif self.raft.leader and self.me in self.observations:
            self.effects.append(Send(self.raft.leader, Observation(self.raft.term, self.observations[self.me][0])))
        self._tell("raft.members", {"members": self._seen(now_ns)})

    def _seen(self, now_ns: int) -> dict[str, Any]:
        return {
            name: {"seen": json.loads(data), "age_ms": 0 if name == self.me else (now_ns - at) // MS}
            for name, (data, at) in sorted(self.observations.items())
        }

    # -- telling the parent --------------------------------------------------------------------------------------

    def _tell(self, name: str, body: dict[str, Any], request_id: str = "") -> None:
        self.effects.append(Tell(name, body, request_id))

    def _tell_state(self) -> None:
        """Facts are told whole and only when they change; a lost one is made good by the next, or by `node.hello`."""
        raft, grant = self.raft, self._granted()
        if self.cluster is not self.told_cluster:
            self.told_cluster = self.cluster
            self._tell("raft.cluster", {"index": self.applied, "state": dump(self.cluster)})
        state = {
            "boot": raft.boot, "term": raft.term, "role": raft.role.value, "leader": raft.leader,
            # What is committed here reaches into the leader's term, so whatever was agreed before it is known.
            "current": raft.leader != "" and raft.log.term_at(raft.commit) == raft.term,
            "wanted": self.wanted if self.wanted == raft.term else 0,
            "promised": self.record.promised, "granted": grant.term if grant is not None else 0,
            "hand_over": self.notes.handing_over_to if self.notes is not None else None,
            "sentence": self.notes.sentence if self.notes is not None else "",
            "record": {
                "history": [list(e) for e in self.record.history],
                "proof": list(self.record.proof) if self.record.proof is not None else None,
                "marker": self.record.marker,
            },
        }  # fmt: skip
        if state != self.told:
            self.told = state
            self._tell("raft.state", state)
        lease = TellLease(raft.term, raft.lease_until_ns)
        if lease.until_ns and lease != self.told_lease:
            self.told_lease = lease
            self.effects.append(lease)


def _initial_state(identity: Identity, snapshot: Snapshot) -> ClusterState:
    return load(snapshot.data) if snapshot.index else found(identity.charter, identity.cluster_id)


