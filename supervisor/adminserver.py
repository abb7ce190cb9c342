"""The node's side of the admin protocol (table in admin.py): answers from the snapshot, actions through the leader.

Nothing here waits: a switchover is accepted by the leader, and what the log then shows is passed on as progress.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import zmq

from consensus.cluster import seat_of
from consensus.membership import GONE, VOTER, Member
from fencing import wire
from fencing.lease import MS
from fencing.logs import Log
from supervisor import configview, doctordesk, explain, operating, status
from supervisor.admin import FORGET_MS, answer, progress
from supervisor.chronicle import Chronicle
from supervisor.config import Config
from supervisor.entry import version
from supervisor.errors import BugError, PgrError, RefusedError, TryAgainError, UsageError
from supervisor.eventstore import EventStore
from supervisor.roles import Local, View

ACTION_TIMEOUT_MS = 60_000
SAY_SOMETHING_MS = 5_000
GAP_TOLD_MS = 500
MEMBER_ACTIONS = ("member.add", "member.remove", "member.replace")
NODE_ACTIONS = ("fence", "unfence", "reinit")
ACTIONS = ("switchover", "failover", "recover", "config.set", *MEMBER_ACTIONS, *NODE_ACTIONS, *operating.ACTIONS)

_ERRORS: dict[int, type[PgrError]] = {64: UsageError, 70: BugError, 75: TryAgainError, 78: RefusedError}


@dataclass(slots=True)
class Action:
    """A switchover, a failover or a change of the members under way, for one client."""

    client: bytes
    remote: bool
    name: str
    since_ns: int
    events_seen: int
    term: int
    """Of the grant when it was asked for; the new one is above."""
    body: dict[str, Any]
    """What was asked for."""
    incarnation: int = 0
    """Of the member it is about."""
    aimed: bool = False
    """The log here has what was asked of that member."""
    timeout_ms: int = ACTION_TIMEOUT_MS
    accepted: dict[str, Any] | None = None
    stopped_ns: int = 0
    """When the old primary was seen to be gone."""
    opened_ns: int = 0
    """When the new one was seen to be open."""
    said_ns: int = 0
    put_off: str = ""
    """Why the leader cannot take it just now: it is asked again with the next news."""


class Teller(Protocol):
    """The way to the Raft child, or to what stands for it."""

    def tell(self, name: str, body: dict[str, Any], request_id: str = "") -> bool: ...


class Known(Protocol):
    """What is looked at here; `Context` is one."""

    @property
    def config(self) -> Config: ...
    @property
    def log(self) -> Log: ...
    @property
    def raft(self) -> Teller: ...
    @property
    def view(self) -> View: ...
    @property
    def local(self) -> Local: ...
    @property
    def members(self) -> tuple[Member, ...]: ...


class AdminServer:
    """Requests over RUN/admin.sock, and those that the Raft child carries in from afar."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], c: Known) -> None:
        self.c = c
        path = c.config.admin_socket
        path.unlink(missing_ok=True)
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.SNDHWM, 1000)
        self.socket.setsockopt(zmq.MAXMSGSIZE, wire.FRAME_BYTES_MAX)
        self.socket.bind(f"ipc://{path}")
        self.watchers: dict[str, tuple[bytes, bool, int]] = {}
        self.actions: dict[str, Action] = {}
        self.inside: dict[bytes, Callable[[bytes], None]] = {}
        """Clients in this process, by name: what takes the frames that are meant for them."""
        self.snapshot = status.Snapshot(node=c.local.me)
        store = EventStore(c.config.log_dir / "events.jsonl", c.log)
        self.chronicle = Chronicle(c.config, store, self._send, version())
        c.log.listen(self.chronicle.note)
        self.doctor = doctordesk.Desk(c, self._send)
        self.known: dict[str, Any] = {}
        """The newest `raft.members`."""
        self.led_ns = 0
        """When a leader was last known, or (of nobody yet) since when there is a snapshot."""

    # -- what comes in -------------------------------------------------------------------------------------------

    def receive(self, now_ns: int) -> None:
        self.chronicle.flush(now_ns)
        self.doctor.turn(self.snapshot, self.known, now_ns)
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) == 2:
                self.request(parts[0], parts[1], now_ns, remote=False)

    def request(self, client: bytes, data: bytes, now_ns: int, *, remote: bool) -> None:
        try:
            frame = wire.decode(data)
        except wire.WireError as error:
            self.c.log.once_per("admin.garbage", 10).warning("admin.garbage", error=str(error))
            return
        match frame.name:
            case "status" if frame.body.get("watch") is True:
                self.watchers[frame.id] = (client, remote, now_ns)
                self._send(client, self._changed(frame.id, now_ns), remote)
            case "status":
                self._send(client, answer(frame.id, status.to_json(self.snapshot, now_ns)), remote)
            case "history":
                events = [status.event_json(e) for e in self.snapshot.history]
                self._send(client, answer(frame.id, {"history": events}, warnings=self._warnings()), remote)
            case "events":
                members = {m.name: m.raft for m in self.c.members}
                self.chronicle.request(client, frame, now_ns, remote, members)
            case "config.show":
                self._send(client, self._settings(frame), remote)
            case "uri":
                self._send(client, self._uri(frame), remote)
            case "explain":
                self._send(client, answer(frame.id, self._explain(now_ns)), remote)
            case "clock":
                self._send(client, answer(frame.id, doctordesk.clock()), remote)
            case "doctor":
                self.doctor.request(client, frame.id, remote, now_ns)
            case name if name in ACTIONS:
                self._act(client, frame, now_ns, remote)
            case _:
                unknown = UsageError(f"this node knows no request {frame.name!r}", "use a pgr of the node's version")
                self._send(client, answer(frame.id, error=unknown), remote)

    def _uri(self, frame: wire.Frame) -> bytes:
        try:
            dbname, user = str(frame.body.get("dbname") or "postgres"), str(frame.body.get("user") or "")
            uris = status.uris(self.snapshot, dbname, user)
        except ValueError as error:
            return answer(frame.id, error=TryAgainError(str(error), "see `pgr status`"))
        return answer(frame.id, uris, warnings=self._warnings())

    def _settings(self, frame: wire.Frame) -> bytes:
        cluster = self.c.view.cluster
        if cluster is None:
            error = TryAgainError("this node does not know the cluster yet", "see `pgr status`")
            return answer(frame.id, error=error)
        found = configview.rows(cluster, self.snapshot.timings)
        return answer(frame.id, {"index": cluster.config_index, "settings": found}, warnings=self._warnings())

    def _warnings(self) -> tuple[str, ...]:
        """What people should see whatever they ask for."""
        return operating.urgent(self.snapshot)

    def _explain(self, now_ns: int) -> dict[str, Any]:
        return explain.to_json(explain.findings(self.c.view.cluster, self.snapshot, self.heard(now_ns)))

    def heard(self, now_ns: int) -> explain.Heard:
        leaderless_ms = (now_ns - self.led_ns) // MS if self.led_ns and not self.snapshot.leader else 0
        return explain.Heard(
            self.known.get("members", {}), self.known.get("heard", {}), leaderless_ms, self.snapshot.timings.election_ms
        )  # fmt: skip

    def _act(self, client: bytes, frame: wire.Frame, now_ns: int, remote: bool) -> None:
        grant = self.c.view.cluster.grant if self.c.view.cluster is not None else None
        events = len(self.snapshot.history)
        term = grant.term if grant else 0
        member = next((m for m in self.c.members if m.name == frame.body.get("name")), None)
        timeout_ms = frame.body.get("timeout_ms")
        self.actions[frame.id] = Action(
            client, remote, frame.name, now_ns, events, term, frame.body, said_ns=now_ns,
            incarnation=member.incarnation if member is not None else 0,
            timeout_ms=timeout_ms if isinstance(timeout_ms, int) and timeout_ms > 0 else ACTION_TIMEOUT_MS,
        )  # fmt: skip
        if not self.c.view.alive:
            self._end(frame.id, error=TryAgainError("the control plane of this node is being restarted", "try again"))
            return
        self.c.raft.tell("admin.request", {"name": frame.name, "body": frame.body}, frame.id)

    def answered(self, frame: wire.Frame) -> bool:
        """The leader's word on a request of ours. False: it is not about one."""
        action = self.actions.get(frame.id)
        if action is None:
            return False
        if frame.body.get("final") is False:
            action.put_off = str(frame.body.get("error"))
            return True
        if frame.body.get("ok") is not True:
            kind = _ERRORS.get(int(frame.body.get("code", 75)), TryAgainError)
            self._end(frame.id, error=kind(str(frame.body.get("error")), str(frame.body.get("hint"))))
            return True
        if action.name == "config.set":
            action.accepted = {k: frame.body.get(k) for k in ("changes", "notes", "after", "index")}
            self._advance_config(frame.id, action)
            return True
        if frame.body.get("dry_run") is True:
            shown = ("from", "to", "refusal", "forecast", "outlook")
            self._end(frame.id, result={k: frame.body[k] for k in shown if k in frame.body})
            return True
        if action.name in operating.ACTIONS or "scheduled" in frame.body:
            action.accepted = operating.accepted(action.name, frame.body)
            self._advance_operation(frame.id, action)
            return True
        if action.name in (*MEMBER_ACTIONS, *NODE_ACTIONS):
            action.accepted = {"name": frame.body.get("name")}
            text = f"{action.name} accepted: {action.accepted['name']}"
        else:
            action.accepted = {k: frame.body.get(k) for k in ("from", "to")}
            old, new = action.accepted["from"] or "nobody", action.accepted["to"] or "the best"
            text = f"{action.name} accepted: from {old} to {new}"
        self._send(action.client, progress(frame.id, "accepted", text, action.accepted), action.remote)
        return True

    # -- what changes --------------------------------------------------------------------------------------------

    def publish(self, snapshot: status.Snapshot, now_ns: int) -> None:
        """A new snapshot: watchers see it, actions move on."""
        self.snapshot = snapshot
        self.chronicle.publish(snapshot, self.c.view.cluster, now_ns)
        if snapshot.leader or not self.led_ns:
            self.led_ns = now_ns
        for request_id, (client, remote, asked_ns) in list(self.watchers.items()):
            if now_ns - asked_ns > FORGET_MS * MS:
                del self.watchers[request_id]
            else:
                self._send(client, self._changed(request_id, now_ns), remote)
        for request_id, action in list(self.actions.items()):
            self._advance(request_id, action, now_ns)

    def _advance(self, request_id: str, action: Action, now_ns: int) -> None:
        for event in self.snapshot.history[action.events_seen :]:
            text = f"{event.kind}: {f'{event.node} ' * bool(event.node)}{event.reason}"
            self._send(action.client, progress(request_id, event.kind, text, status.event_json(event)), action.remote)
            action.said_ns = now_ns
        action.events_seen = len(self.snapshot.history)
        if action.name in MEMBER_ACTIONS:
            self._advance_member(request_id, action)
        elif action.name in NODE_ACTIONS:
            self._advance_node(request_id, action)
        elif action.name == "config.set":
            self._advance_config(request_id, action)
        elif action.name in operating.ACTIONS or (action.accepted is not None and "scheduled" in action.accepted):
            self._advance_operation(request_id, action)
        else:
            self._advance_move(request_id, action, now_ns)
        if request_id not in self.actions:
            return
        if now_ns - action.since_ns > action.timeout_ms * MS:
            text = f"not done after {action.timeout_ms // 1000} s: {action.put_off or self.snapshot.explanation}"
            hint = "nothing was begun: ask again" if action.put_off else "it goes on by itself if it can"
            self._end(request_id, error=TryAgainError(text, f"see `pgr status`; {hint}"))
            return
        if now_ns - action.said_ns > SAY_SOMETHING_MS * MS:
            action.said_ns = now_ns
            row = self.snapshot.member(str(action.body.get("name")))
            otherwise = action.put_off or operating.under_way(self.snapshot) or self.snapshot.explanation
            text = f"{row.name}: {row.reason}" if row is not None and row.reason else otherwise
            self._send(action.client, progress(request_id, "waiting", text), action.remote)
        if action.put_off and self.c.view.alive:
            action.put_off = ""
            self.c.raft.tell("admin.request", {"name": action.name, "body": action.body}, request_id)

    def _advance_node(self, request_id: str, action: Action) -> None:
        """Done when the log says so and, of a fence, when Postgres there is seen to be down."""
        cluster = self.c.view.cluster
        if action.accepted is None or cluster is None:
            return
        name = str(action.body["name"])
        row = self.snapshot.member(name)
        if cluster.member(name) is None or row is None:
            self._end(request_id, error=TryAgainError(f"{name} is no member any more", "see `pgr history`"))
            return
        wanted = name in cluster.fenced if action.name == "fence" else cluster.reinit_of(name) is not None
        action.aimed = action.aimed or wanted
        match action.name:
            case "fence":
                done = wanted and row.state not in ("running", "streaming", "starting", "stopping")
            case "unfence":
                done = name not in cluster.fenced
            case _:
                done = action.aimed and not wanted
        if done:
            self._end(request_id, result={"name": name})

    def _advance_member(self, request_id: str, action: Action) -> None:
        """Done when the log says so: the role and, for a voter, the seat; or that it is gone."""
        if action.accepted is None or self.c.view.cluster is None:
            return
        name, cluster = str(action.body["name"]), self.c.view.cluster
        member = cluster.member(name)
        here = member is not None and member.incarnation == action.incarnation
        aim = str(action.body["role"]) if action.name == "member.add" else GONE
        if member is None or not here:
            if aim == GONE:
                self._end(request_id, result={"name": name, "role": aim})
            else:
                self._end(request_id, error=TryAgainError(f"{name} is no member any more", "see `pgr history`"))
        elif not member.aim.startswith(aim):
            if action.aimed:  # else the log here is still behind
                why = f"another request was made meanwhile: {name} is to be {member.aim} now"
                self._end(request_id, error=TryAgainError(why, "see `pgr history`"))
        else:
            action.aimed = True
            seated = aim != VOTER or seat_of(member) in cluster.group.members
            if member.role == aim and seated and cluster.change is None:
                self._end(request_id, result={"name": name, "role": aim})

    def _advance_config(self, request_id: str, action: Action) -> None:
        """Done when the log here has it. An entry that is overwritten with a lost leader never comes."""
        cluster = self.c.view.cluster
        if action.accepted is None or cluster is None:
            return
        index, after = int(action.accepted["index"]), int(action.accepted["after"])
        if index in (cluster.config_index, after):  # the second: nothing to change, or a dry run
            self._end(request_id, result=action.accepted)
        elif cluster.config_index > after:
            error = TryAgainError("the settings were changed by another request first", "look at `pgr config history`")
            self._end(request_id, error=error)

    def _advance_operation(self, request_id: str, action: Action) -> None:
        cluster = self.c.view.cluster
        if action.accepted is None or cluster is None:
            return
        told = self.known.get("members", {})
        asked, said = action.body, action.accepted
        found = operating.done(action.name, asked, said, cluster, seen=self.snapshot, told=told)
        if isinstance(found, PgrError):
            self._end(request_id, error=found)
        elif found is not None:
            self._end(request_id, result=found)

    def _advance_move(self, request_id: str, action: Action, now_ns: int) -> None:
        grant = self.c.view.cluster.grant if self.c.view.cluster is not None else None
        old = self.c.local.epoch == action.term and self.c.local.server.value in ("stopping", "down")
        if not action.stopped_ns and (old or (grant is not None and grant.term > action.term)):
            action.stopped_ns = now_ns
        if grant is not None and grant.term > action.term and grant.opened:
            action.opened_ns = action.opened_ns or now_ns
            told = [e.gap_ms for e in self.snapshot.history if e.term == grant.term and e.gap_ms is not None]
            if not told and now_ns - action.opened_ns < GAP_TOLD_MS * MS:
                return  # the new primary has measured it, and is about to say so
            gap_ms = told[0] if told else (action.opened_ns - action.stopped_ns) // MS
            accepted = action.accepted or {}
            result = {
                "from": accepted.get("from", ""), "to": grant.node, "term": grant.term, "timeline": grant.timeline,
                "gap_ms": gap_ms,
            }  # fmt: skip
            self._end(request_id, result=result)

    def close(self) -> None:
        hint = "ask another member: pgr --node HOST:PORT --cluster-key FILE ..."
        error = TryAgainError("this node is stopping", hint)
        for request_id in list(self.actions):
            self._end(request_id, error=error)
        for request_id, (client, remote, _) in self.watchers.items():
            self._send(client, answer(request_id, error=error), remote)
        self.doctor.close(error)
        self.chronicle.close(error)
        self.socket.close(200)

    # -- what goes out -------------------------------------------------------------------------------------------

    def _end(self, request_id: str, result: dict[str, Any] | None = None, error: PgrError | None = None) -> None:
        action = self.actions.pop(request_id)
        self._send(action.client, answer(request_id, result, error, self._warnings()), action.remote)

    def _changed(self, request_id: str, now_ns: int) -> bytes:
        return progress(request_id, "status.changed", "", status.to_json(self.snapshot, now_ns))

    def _send(self, client: bytes, data: bytes, remote: bool) -> None:
        if (take := self.inside.get(client)) is not None:
            take(data)
            return
        if remote:
            self.c.raft.tell("remote.answer", {"client": client.hex(), "frame": data.decode()})
            return
        try:
            self.socket.send_multipart([client, data], zmq.NOBLOCK)
        except zmq.Again:
            self.c.log.once_per("admin.full", 10).warning("admin.client_slow")
