"""One member of the cluster: Raft, the replicated state, promises and the way to a primary, put together. Pure.

Events in, an ordered list of effects out; the host (consensus/process.py) carries them out in exactly that order and
decides nothing. Layers: `raft.py` finds a leader; `promotion.py` says who becomes primary; this file keeps the leader's
notes of a term (who promised what), turns decisions into log entries, and tells the parent what is wanted of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from consensus import changes, hook, operate, pacing, recovery, requests, strangers, succession
from consensus.addressbook import AddressBook
from consensus.campaign import Campaigning
from consensus.changes import Facts, MakeWay, Proposal
from consensus.cluster import ClusterState, Grant, Seat, apply, canonical, found, seat_of
from consensus.clustertext import dump, load
from consensus.comeback import NOBODY, begun
from consensus.effects import Effect, Removed, Save, Send, Tell, TellLease
from consensus.founding import introduction, removal
from consensus.guard import Guard
from consensus.membership import Member
from consensus.messages import Forward, ForwardResp, Hello, Observation, PeerMessage, PromiseReq, PromiseResp
from consensus.positions import NoPosition
from consensus.promotion import (
    GRACE_MS,
    AskHook,
    Decision,
    Degrade,
    HandOver,
    Situation,
    TakeGrant,
    TurnBack,
    Wait,
    decide,
    quorum_promised,
)
from consensus.raft import Compact, Event, Propose, Raft, Ready, Received, Release, Role, StepDown, Tick
from consensus.reconfigure import Asked
from consensus.record import EpochStart, Identity, NodeRecord, Position
from consensus.retiming import KINDS
from consensus.sightings import Sightings
from consensus.write import Write
from fencing.lease import MS, Timings

COMPACT_AFTER_ENTRIES = 256
OBSERVE_EVERY_MS = 500
PARENT_SILENT_MS = 3_000
"""A parent that has said nothing for this long is hung: this node does not campaign, and makes way if it only is a
caretaker."""


class Node:
    """Not a value: a machine with one way in (`peer`, `parent`, `tick`) and effects out."""

    def __init__(
        self, identity: Identity, record: NodeRecord, raft: Raft, timings: Timings, token: Callable[[], str],
        wall_clock: Callable[[], str], mine: Member,
    ) -> None:
        """``raft`` is constructed with these ``timings``; ``token`` gives 32 random hex digits, ``wall_clock`` the time
        for people (ISO 8601, UTC); ``mine``: the addresses of this start."""
        self.identity, self.record, self.raft, self.timings = identity, record, raft, timings
        self.token, self.wall_clock = token, wall_clock
        self.me, self.mine = identity.name, mine
        kept = raft.log.snapshot
        self.cluster = load(kept.data) if kept.index else found(identity.charter, identity.cluster_id)
        self.applied = kept.index
        self.notes: Campaigning | None = None
        self.wanted = 0
        self.answer: PromiseResp | None = None
        """What the parent last said for ``wanted``."""
        self.sightings = Sightings(self.me, timings.election_ms)
        self.observe_at_ns = 0
        self.turned_at_ns = 0
        self.parent_heard_ns = raft.now_ns
        self.effects: list[Effect] = []
        self.told: dict[str, Any] = {}
        self.told_cluster: ClusterState | None = None
        self.told_lease = TellLease(0, 0)
        self.unchecked: dict[str, Asked] = {}
        self.book = AddressBook()
        self.handed_to: dict[str, int] = {}
        """Whom this node gave way to so that they take the grant, and after which grant that was."""
        self.comeback = NOBODY
        self.superseded: dict[tuple[str, str], tuple[int, bool]] = {}
        """Of a former cluster: when each may be told again that it is to stop; is it in the history?"""
        self.call_at_ns = self.calls = 0
        """When the next of those who were given up is called on, and how many were."""
        for entry in raft.log.between(self.applied + 1, raft.commit):
            self.cluster = apply(self.cluster, entry)
        self.applied = max(self.applied, raft.commit)
        self.book.list_members(self.cluster.members, self.applied)
        self.guard = Guard(self.cluster.pace)
        self.capped = False
        """Its watchdog does not take leases of the L that is in force, as far as is known here."""
        self.paced: tuple[object, ...] = ()
        """Of what the timings that are in force were made (pacing.py)."""
        pacing.keep(self)

    # -- ways in -------------------------------------------------------------------------------------------------

    def start(self, ready: Ready | None, now_ns: int) -> list[Effect]:
        """First effects: those of a resumed Raft, and the state for the parent."""
        if ready is not None:
            self._carry_out(ready)
        if Seat(self.me, self.identity.incarnation) in self.cluster.removed:
            self.effects.append(Removed(*removal(self.me)))
        return self._finish(now_ns)

    def tick(self, now_ns: int) -> list[Effect]:
        if now_ns >= self.raft.wakeup_ns:
            leads = self.raft.role is Role.LEADER
            if leads or not self._unfit(now_ns):
                self._raft(Tick(), now_ns)
        return self._finish(now_ns)

    def _parent_silent(self, now_ns: int) -> bool:
        """Only among several: a lone node has nobody to make way for."""
        return len(self.cluster.members) > 1 and now_ns - self.parent_heard_ns > PARENT_SILENT_MS * MS

    def _unfit(self, now_ns: int) -> bool:
        """May it neither campaign nor, for long, lead? With its parent silent, or something of Postgres left that does
        not die (a disk that hangs): it could neither promise nor give its lease up before that is gone."""
        stuck = self.sightings.unfenced_ms(now_ns) > self.timings.election_ms and len(self.cluster.members) > 1
        return stuck or self._parent_silent(now_ns)

    def peer(self, src: str, message: PeerMessage, now_ns: int) -> list[Effect]:
        """A message from a member; the host has checked cluster id, incarnation and addressee."""
        self.sightings.hear(src, now_ns)
        self.sightings.hear_primary(self.cluster.grant, src, message, now_ns)
        match message:
            case PromiseReq(term):
                if term == self.raft.term and src == self.raft.leader:
                    self._promise_wanted(term)
            case PromiseResp():
                self._promised(src, message)
            case Observation(term, data):
                self._observed(src, term, data, now_ns)
            case Forward(_, request_id, name, data):
                requests.handle(self, src, request_id, name, json.loads(data), now_ns)
            case ForwardResp(_, request_id, ok, data):
                self.tell("admin.answer", {"ok": ok, **json.loads(data)}, request_id)
            case Hello():
                pass
            case _:
                self._raft(Received(src, message), now_ns)
        return self._finish(now_ns)

    def hello(self, src: str, message: Hello, now_ns: int) -> list[Effect]:
        """A node without a cluster id greets: give it the charter if it is a member, else see whether it may be one."""
        effects = strangers.greeted(self, src, message, now_ns)
        return [*effects, *self._finish(now_ns)] if effects else []

    def met(self, src: str, incarnation: int, message: Hello, now_ns: int) -> list[Effect]:
        """A Hello from within the cluster: somebody introduces itself, or tells this node that it is out."""
        effects = strangers.met(self, src, incarnation, message, now_ns)
        return self._finish(now_ns) if effects is None else effects

    def foreign(
        self, cluster_id: str, src: str, incarnation: int, message: PeerMessage, now_ns: int
    ) -> list[Effect]:  # fmt: skip
        """A frame of another cluster: of one that this cluster was rebuilt from?"""
        effects = recovery.superseded(self, cluster_id, src, incarnation, message, now_ns)
        return [*effects, *self._finish(now_ns)] if effects else []

    def parent(self, name: str, request_id: str, body: dict[str, Any], now_ns: int) -> list[Effect]:
        """An order or a fact from the parent over the local bus (catalogue in DESIGN.md)."""
        silent = self._parent_silent(now_ns)  # what it was told meanwhile may have been dropped
        self.parent_heard_ns = now_ns
        if silent or name == "node.hello":
            self.told, self.told_cluster = {}, None
            self.told_lease = TellLease(0, 0)
        match name:
            case "node.hello":
                pass
            case "node.observed":
                self._observed(self.me, self.raft.term, canonical(body), now_ns)
            case "node.frozen":
                self._frozen(body)
            case "node.record":
                self._record(request_id, body)
            case "node.propose":
                self.propose_or_forward(str(body["kind"]), body["body"], now_ns)
            case "node.fenced":
                self._fenced(body, now_ns)
            case "node.hooked":
                hook.answered(self, body, now_ns)
            case "node.checked":
                requests.checked(self, request_id, body, now_ns)
            case "admin.request":
                self._admin(request_id, str(body["name"]), body["body"], now_ns)
            case _:
                raise ValueError(f"the parent sent {name}, which is not in the catalogue")
        return self._finish(now_ns)

    def guarded(self, lease_ms: int, at: int, now_ns: int) -> list[Effect]:
        """This node's watchdog says how far away a deadline may be, by the pace of the entry ``at`` (-1: of none)."""
        self.guard.heard(lease_ms, at)
        pacing.keep(self)
        return self._finish(now_ns)

    @property
    def wakeup_ns(self) -> int:
        """When `tick` is due next."""
        unfit = self.raft.role is not Role.LEADER and self._unfit(self.turned_at_ns)
        times = [self.observe_at_ns] if unfit else [self.raft.wakeup_ns, self.observe_at_ns]
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
        return self.leads() and not settled and self.cluster.nonce != ""

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
            if entry.kind in ("promoted/1", "fence/1", "config/1", *KINDS):
                # A restarted process may resume only on a grant that its own disk shows as committed; a Postgres that
                # is to stay down must not start before a leader is met; one that starts has the newest settings; and
                # who was told of timings is not told of those before them (guard.py).
                self.effects.append(Save(Write(hard=self.raft.hard_state)))
        pacing.keep(self)
        if ready.restored or ready.committed:
            self.book.list_members(self.cluster.members, self.applied)
            if Seat(self.me, self.identity.incarnation) in self.cluster.removed:
                self.effects.append(Removed(*removal(self.me)))

    def tip(self) -> ClusterState:
        """The state as of the last entry of the log, committed or not: what an election has to respect."""
        state = self.cluster
        for entry in self.raft.log.between(self.applied + 1, self.raft.log.last_index):
            state = apply(state, entry)
        return state

    def leads(self) -> bool:
        """Leader whose own no-op is committed (and which has not given its lease up)."""
        raft = self.raft
        return (
            raft.role is Role.LEADER and raft.released < raft.term and raft.log.term_at(raft.commit) == raft.term
        )

    def granted(self) -> Grant | None:
        """This node's grant of the current term, if it is committed and may be used."""
        grant = self.cluster.grant
        if grant is None or grant.node != self.me or grant.term != self.raft.term or grant.failed or not self.leads():
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
        if self.notes is not None and self.leads():
            self._conduct(self.notes, now_ns)
        if len(self.raft.log.entries) > COMPACT_AFTER_ENTRIES and self.applied > self.raft.log.snapshot.index:
            self._raft(Compact(self.applied, dump(self.cluster)), now_ns)
        if now_ns >= self.observe_at_ns:
            self._announce_move(now_ns)
            self._observe(now_ns)
        self._tell_state()
        effects, self.effects = self.effects, []
        return effects

    def _conduct(self, notes: Campaigning, now_ns: int) -> None:
        if self._unfit(now_ns):
            # Also as primary: a frozen parent cannot demote, so the lease has to end and the watchdog to act.
            self._raft(StepDown(), now_ns)
            return
        pacing.conduct(self, notes, now_ns)
        operate.conduct(self, notes, now_ns, requests.carry_out)
        if self.granted() is not None and not notes.handed_over and notes.handing_over_to is None:
            self._reform(notes, now_ns)
        if self.granted() is not None or notes.handed_over:
            return
        if not self.cluster.nonce:
            if self.tip().nonce == "":
                body = {"node": self.cluster.founder, "nonce": self.token(), "replication_password": self.token()}
                body["at"] = self.wall_clock()
                self._raft(Propose("founding/1", canonical(body)), now_ns)
            notes.sentence = f"{self.cluster.founder} is to create the cluster"
            return
        if notes.granted_index or (self.cluster.grant is not None and self.cluster.grant.term == self.raft.term):
            return
        situation = self.situation(notes, now_ns)
        if not notes.quorum_at_ns and quorum_promised(situation):
            notes.quorum_at_ns = now_ns
        decision = decide(situation)
        if now_ns >= notes.ask_at_ns:
            self._ask(notes, now_ns)
        self._act(notes, decision, now_ns)

    def _reform(self, notes: Campaigning, now_ns: int) -> None:
        """As primary: one more step towards the members and the sync group that are wanted."""
        tip, grant = self.tip(), self.cluster.grant
        if changes.at_rest(tip) or now_ns < notes.reform_at_ns:
            return
        notes.reform_at_ns = now_ns + self.timings.heartbeat_ms * MS
        if tip.change is not None and tip.change.index != notes.change_seen[0]:
            notes.change_seen = (tip.change.index, now_ns)
        facts = self.facts(now_ns)
        short = len(tip.seated(tip.group) & facts.copied) < tip.group.k
        notes.short_since_ns = (notes.short_since_ns or now_ns) if short else 0
        if grant is None or not grant.opened:
            found = changes.while_closed(tip, facts, notes.granted_index, self.raft.commit, notes.closed_ms(now_ns))
            if isinstance(found, MakeWay):
                notes.sentence = found.sentence
                self._raft(StepDown(), now_ns)
            elif found is not None:
                self.propose_change(found, now_ns)
            return
        if self.raft.changed_at > self.raft.commit:
            return
        step = changes.next_change(tip, facts)
        if step is not None:
            self.propose_change(step, now_ns)

    def propose_change(self, proposal: Proposal, now_ns: int) -> int:
        """Its index; 0: not now (the core has something to commit first)."""
        return self._raft(Propose(proposal.kind, canonical(proposal.body | {"at": self.wall_clock()})), now_ns)

    def facts(self, now_ns: int) -> Facts:
        connected, caught_up, copied = {self.me}, {self.me}, {self.me}
        for member in self.cluster.members:
            name = member.name
            if name == self.me or not self.sightings.is_connected(name, now_ns):
                continue
            connected.add(name)
            match, sent_ns = self.raft.acknowledged(name)
            if now_ns - sent_ns < self.timings.election_ms * MS and match >= self.raft.commit:
                caught_up.add(name)
            seen = self.sightings.of(name)
            streams = seen.get("state") == "streaming" and seen.get("epoch_of_upstream") == self.raft.term
            # Through another standby it is out of this primary's sight; asynchronous nobody's flush counts anyway.
            direct = seen.get("upstream_node", "") in ("", self.me) or self.cluster.commit_mode == "async"
            if streams and direct and seen.get("proven") is True and seen.get("incarnation") == member.incarnation:
                copied.add(name)
        since_ns = self.notes.change_seen[1] if self.notes is not None and self.cluster.change is not None else now_ns
        waited_ms = (now_ns - since_ns) // MS if since_ns else 0
        short_ms = self.notes.short_ms(now_ns) if self.notes is not None else 0
        return Facts(self.me, frozenset(connected), frozenset(caught_up), frozenset(copied), waited_ms, short_ms)

    def situation(self, notes: Campaigning, now_ns: int) -> Situation:
        waited_ms = (now_ns - notes.quorum_at_ns) // MS if notes.quorum_at_ns else 0
        connected = frozenset(m.name for m in self.cluster.members if self.sightings.is_connected(m.name, now_ns))
        in_vain = frozenset(name for name, grant in self.handed_to.items() if grant == self.cluster.granted)
        return Situation(
            self.me, notes.term, self.tip(), notes.promises, connected, waited_ms,
            last_known=self.sightings.last_known(self.cluster.grant), in_vain=in_vain,
            cleared=hook.cleared(self, notes), vetoed_ms=notes.vetoed_ms(now_ns),
            comeback_ms=self.comeback.left_ms(self.cluster, self.me, now_ns),
        )  # fmt: skip

    def _act(self, notes: Campaigning, decision: Decision, now_ns: int) -> None:
        notes.ask_hook(isinstance(decision, AskHook))
        match decision:
            case Wait(reason) | AskHook(reason):
                notes.sentence = reason
            case TakeGrant(upper, timeline, reason):
                notes.sentence = f"{self.me} {reason}"
                body = {
                    "term": notes.term, "node": self.me, "upper": list(upper), "timeline": timeline, "reason": reason,
                    "at": self.wall_clock(),
                }  # fmt: skip
                notes.granted_index = self._raft(Propose("promoted/1", canonical(body)), now_ns)
                notes.granted_at_ns = now_ns
            case TurnBack(change, reason):
                notes.sentence = reason
                self.propose_change(changes.turned_back(change, self.me, reason), now_ns)
            case Degrade(new, reason):
                notes.sentence = reason
                self.propose_change(changes.group_change(self.tip().group, new, self.me, "sync group", reason), now_ns)
            case HandOver(to, reason):  # pragma: no branch  # mypy knows that there is no other decision
                notes.sentence = reason
                # Only when the parent has said for this very term that Postgres here is not writable.
                if self.me in notes.promises:
                    notes.handed_over = True
                    self.handed_to[to] = self.cluster.granted
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

    def _promised(self, src: str, m: PromiseResp) -> None:
        """To the leader; counts for its own term only."""
        if self.notes is not None and m.term == self.notes.term:
            self.notes.promises[src] = Position(m.epoch, m.lsn) if m.epoch >= 0 else NoPosition(m.reason)

    def _frozen(self, body: dict[str, Any]) -> None:
        """The parent says: nothing here is writable, no WAL comes in under an older grant, and this is the position."""
        term, epoch = int(body["term"]), int(body["epoch"])
        if term != self.wanted or term != self.raft.term:
            self.told = {}  # the parent acts on an old state: it is told anew
            return
        if epoch >= 0 and self.record.promised < term:
            self.record = self.record._replace(promised=term)
            self.effects.append(Save(Write(record=self.record)))
        if body.get("gave_up") is True:
            self.comeback = NOBODY
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
        self.tell("record.saved", {}, request_id)

    # -- the end of a reign --------------------------------------------------------------------------------------

    def _fenced(self, body: dict[str, Any], now_ns: int) -> None:
        """The parent has verified that Postgres here can accept no write, while this node held this term's grant."""
        notes = self.notes
        grant = self.granted()
        if notes is None or grant is None or int(body["term"]) != self.raft.term or notes.handed_over:
            self.told = {}
            return
        planned = notes.handing_over_to
        last = changes.ended(grant, body, planned=planned is not None)
        self._raft(Propose(last.kind, canonical(last.body)), now_ns)
        notes.handed_over = True
        notes.handing_over_to = None
        self.comeback = begun(self.cluster, body, now_ns) if planned is None else NOBODY
        furthest = "" if self.comeback.after else succession.heir(self, now_ns)
        self._raft(Release(planned or furthest), now_ns)

    # -- requests ------------------------------------------------------------------------------------------------

    def propose_or_forward(self, kind: str, body: dict[str, Any], now_ns: int) -> None:
        if self.raft.role is Role.LEADER:
            self._raft(Propose(kind, canonical(body)), now_ns)
        elif self.raft.leader:
            data = canonical({"kind": kind, "body": body})
            self.effects.append(Send(self.raft.leader, Forward(self.raft.term, "", "propose", data)))

    def _admin(self, request_id: str, name: str, body: dict[str, Any], now_ns: int) -> None:
        if self.raft.role is Role.LEADER or name == "recover":
            requests.handle(self, self.me, request_id, name, body, now_ns)
        elif self.raft.leader:
            message = Forward(self.raft.term, request_id, name, canonical(body))
            self.effects.append(Send(self.raft.leader, message))
        else:
            ok, answer = requests.without_leader(self, name, body, now_ns)
            self.tell("admin.answer", {"ok": ok, **answer}, request_id)

    def wish(self, kind: str, to: str, now_ns: int, *, accept_loss: bool, **more: Any) -> None:
        """In the log, so that whoever leads next knows it too. ``more``: who asked, and what is given up."""
        self.comeback = NOBODY
        after = self.cluster.grant.term if self.cluster.grant is not None else 0
        body = {"kind": kind, "to": to, "accept_data_loss": accept_loss, "after": after, "at": self.wall_clock()}
        self._raft(Propose("wish/1", canonical(body | more)), now_ns)

    # -- observations --------------------------------------------------------------------------------------------

    def _observed(self, src: str, term: int, data: str, now_ns: int) -> None:
        """From ourselves: one NodeStatus. From a member: one, or, if it leads this term, those of all. What it said as
        a follower of an earlier term may come late."""
        if src == self.me:
            if self.sightings.say(data, now_ns):
                self.observe_at_ns = now_ns
        elif self.raft.role is Role.LEADER:
            self.sightings.take_in(src, data, now_ns)
        elif src == self.raft.leader and term == self.raft.term:
            self.sightings.take_in_all(data, now_ns)

    def _announce_move(self, now_ns: int) -> None:
        """A member whose addresses are not those in the log."""
        listed = self.tip().member(self.me)  # not again while it is under way
        if listed is not None and seat_of(listed) == seat_of(self.mine) and listed[:5] != self.mine[:5]:
            self.propose_or_forward("member/1", {"member": list(self.mine)}, now_ns)

    def _observe(self, now_ns: int) -> None:
        self.observe_at_ns = now_ns + OBSERVE_EVERY_MS * MS
        self._introduce(now_ns)
        self.effects.extend(recovery.call_on(self, now_ns))
        if self.notes is not None:
            self.sightings.promised = self.notes.told() if self._undecided(self.notes) else {}
        seen = self.sightings.all(now_ns)
        if self.raft.role is Role.LEADER:
            message = Observation(self.raft.term, canonical(seen))
            self.effects.extend(Send(m.name, message) for m in self.cluster.members if m.name != self.me)
        elif self.raft.leader and self.sightings.own():
            self.effects.append(Send(self.raft.leader, Observation(self.raft.term, self.sightings.own())))
        self.tell("raft.members", {"members": seen, "heard": self.sightings.heard(now_ns)})

    def _introduce(self, now_ns: int) -> None:
        """To those who are silent, perhaps for not knowing this node (any more): as leader, or for want of one."""
        if self.raft.leader not in ("", self.me):
            return
        hello = Hello(self.raft.term, introduction(self.mine.raft, self.applied))
        silent = (n for n in self.book.current() if not self.sightings.is_connected(n, now_ns))
        self.effects.extend(Send(name, hello) for name in silent)

    # -- telling the parent --------------------------------------------------------------------------------------

    def tell(self, name: str, body: dict[str, Any], request_id: str = "") -> None:
        self.effects.append(Tell(name, body, request_id))

    def _tell_state(self) -> None:
        """Facts are told whole and only when they change; a lost one is made good by the next, or by `node.hello`."""
        raft, grant = self.raft, self.granted()
        if self.cluster is not self.told_cluster:
            self.told_cluster = self.cluster
            self.tell("raft.cluster", {"index": self.applied, "state": dump(self.cluster)})
        state = {
            "boot": raft.boot, "term": raft.term, "role": raft.role.value, "leader": raft.leader,
            # What is committed here reaches into the leader's term, so whatever was agreed before it is known.
            "current": raft.leader != "" and raft.log.term_at(raft.commit) == raft.term,
            "wanted": self.wanted if self.wanted == raft.term else 0,
            "promised": self.record.promised, "granted": grant.term if grant is not None else 0,
            "hand_over": self.notes.handing_over_to if self.notes is not None else None,
            "sentence": self.notes.told_sentence() if self.notes is not None else "",
            "pre_promote": self.notes.hook_wanted() if self.notes is not None else [0, 0],
            "old_primary": list(self.sightings.old_primary) if grant is not None else [0, 0],
            "record": {
                "history": [list(e) for e in self.record.history],
                "proof": list(self.record.proof) if self.record.proof is not None else None,
                "marker": self.record.marker,
            },
        }  # fmt: skip
        if state != self.told:
            self.told = state
            self.tell("raft.state", state)
        lease = TellLease(raft.term, raft.lease_until_ns)
        if lease.until_ns and lease != self.told_lease:
            self.told_lease = lease
            self.effects.append(lease)
