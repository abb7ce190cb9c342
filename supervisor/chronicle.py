"""Takes note of what happens: lines of this node's log, entries of the replicated log, warnings that come and go.

Whoever asks over the admin protocol is served from the store and, following, told of what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from consensus.cluster import ClusterState
from fencing.lease import MS
from fencing.logs import cleaned, utc_now
from fencing.wire import Frame
from supervisor import events
from supervisor.admin import FORGET_MS, answer, progress
from supervisor.config import Config
from supervisor.errors import PgrError
from supervisor.events import Record
from supervisor.eventstore import EventStore
from supervisor.observe import QUARANTINED
from supervisor.status import Snapshot

LASTING_MS = 1_000
"""A warning counts once it has been there for so long: many come and go with every failover."""
AGAIN_MS = 10_000
"""The same event with the same words is told once in this time: a step that fails is tried again and again."""
ALWAYS = ("gate.open", "postgres.exited", "follow.attached")
"""But each of these, as each is another one."""
CHUNK = 100
"""Records in one frame."""
RECENT_MAX = 200

Send = Callable[[bytes, bytes, bool], None]
"""client, frame, remote"""


class Follower(NamedTuple):
    client: bytes
    remote: bool
    asked_ns: int


class Chronicle:
    def __init__(self, config: Config, store: EventStore, send: Send, version: str) -> None:
        self.config, self.store, self._send = config, store, send
        self.me = config.name
        self.on_record: Callable[[Record], None] = lambda _: None
        """Told of every record but those that were there before this process."""
        self._known = {events.identity(r) for r in store.read() if r["scope"] == "cluster"}
        self._cluster: ClusterState | None = None
        self._warned: dict[str, int] = {}
        """Warning -> since when; 0: told."""
        self._quarantined = ""
        self._recent: dict[tuple[str, str], int] = {}
        self._followers: dict[str, Follower] = {}
        self._now_ns = 0
        self.note("info", "node.started", {"version": version})

    # -- what happens ------------------------------------------------------------------------------------------------

    def note(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """A line of the log of this process (`Log.listen`)."""
        kept = cleaned(fields)
        text = events.of_log(event, kept)
        if text is None:
            return
        last_ns = self._recent.get((event, text))
        if event not in ALWAYS and last_ns is not None and self._now_ns - last_ns < AGAIN_MS * MS:
            return
        self._recent[event, text] = self._now_ns
        if len(self._recent) > RECENT_MAX:
            del self._recent[next(iter(self._recent))]
        self._add({
            "at": utc_now(), "node": self.me, "scope": "node", "event": event, "level": level, "text": text,
            "fields": kept,
        })  # fmt: skip

    def _add(self, record: Record, *, news: bool = True) -> None:
        numbered = self.store.add(record | {"by": self.me})
        if news:
            self.on_record(numbered)

    def publish(self, snapshot: Snapshot, cluster: ClusterState | None, now_ns: int) -> None:
        """A new snapshot."""
        self._now_ns = now_ns
        if cluster is not None and cluster is not self._cluster:
            # What the log had when this process first saw it happened before, or somewhere else.
            first, self._cluster = self._cluster is None, cluster
            listed = [events.of_history(e) for e in snapshot.history]
            for record in listed:
                if events.identity(record) not in self._known:
                    self._add(record, news=not first)
            self._known = {events.identity(r) for r in listed}
        self._warnings(snapshot, now_ns)
        own = snapshot.own
        if own.state == QUARANTINED and own.reason != self._quarantined:
            self.note("error", "postgres.quarantined", {"reason": own.reason})
        self._quarantined = own.reason if own.state == QUARANTINED else ""
        self.flush(now_ns)

    def _warnings(self, snapshot: Snapshot, now_ns: int) -> None:
        for text in [t for t in self._warned if t not in snapshot.warnings]:
            if self._warned.pop(text) == 0:
                self.note("info", "warning.cleared", {"text": text})
        for text in snapshot.warnings:
            since_ns = self._warned.setdefault(text, now_ns)
            if since_ns and now_ns - since_ns >= LASTING_MS * MS:
                self._warned[text] = 0
                self.note("warning", "warning.raised", {"text": text})

    def flush(self, now_ns: int) -> None:
        """Each turn: what is new is written, and whoever follows is told."""
        self._now_ns = now_ns
        new = self.store.flush(now_ns)
        for request_id, follower in list(self._followers.items()):
            if now_ns - follower.asked_ns > FORGET_MS * MS:
                del self._followers[request_id]
            elif new:
                self._tell(request_id, follower, new)

    # -- who asks ----------------------------------------------------------------------------------------------------

    def request(self, client: bytes, frame: Frame, now_ns: int, remote: bool, members: dict[str, str]) -> None:
        """``events`` of the table in admin.py."""
        body = frame.body
        after, since, last = body.get("after"), str(body.get("since") or ""), body.get("last")
        found = list(self.store.read(after if isinstance(after, int) else 0, since))
        if isinstance(last, int):
            found = found[-last:] if last > 0 else []
        follower = Follower(client, remote, now_ns)
        self._tell(frame.id, follower, found)
        if body.get("follow") is True:
            self._followers[frame.id] = follower
            self._tell(frame.id, follower, [], members)
            return
        told = {"node": self.me, "members": members, "key_file": str(self.config.key_file)}
        self._send(client, answer(frame.id, told), remote)

    def _tell(
        self, request_id: str, follower: Follower, found: list[Record], members: dict[str, str] | None = None
    ) -> None:
        """In frames of a bounded size; ``members``: an empty one that says where the others are."""
        if members is not None:
            where = {"node": self.me, "members": members, "key_file": str(self.config.key_file), "events": []}
            self._send(follower.client, progress(request_id, "events", "", where), follower.remote)
        for i in range(0, len(found), CHUNK):
            told: dict[str, Any] = {"node": self.me, "events": found[i : i + CHUNK]}
            self._send(follower.client, progress(request_id, "events", "", told), follower.remote)

    def close(self, error: PgrError) -> None:
        """The node stops."""
        self.store.flush(self._now_ns)
        for request_id, follower in self._followers.items():
            self._send(follower.client, answer(request_id, error=error), follower.remote)
        self._followers.clear()
