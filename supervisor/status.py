"""The state of the cluster as one node sees it: one immutable value that CLI, HTTP, metrics and SQL all render. Pure.

The parent builds a new :class:`Snapshot` whenever something changes; nobody who renders it asks anything of Postgres,
of the disk or of another node. Instants ending in ``_ns`` are CLOCK_BOOTTIME of the host that made the snapshot, so the
JSON form carries *durations* (``lease_left_ms``, ``age_ms``) and :func:`from_json` counts from the reader's own clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fencing.lease import MS, PROFILES, Timings


@dataclass(frozen=True, slots=True)
class Primary:
    """The primary entry of the log: who was appointed, not necessarily who answers."""

    name: str
    term: int
    timeline: int
    opened: bool = False
    """Its gate was opened: it may acknowledge writes."""


@dataclass(frozen=True, slots=True)
class SyncGroup:
    """S and k of safety.md: a commit is acknowledged once k of the members (the primary among them) have it."""

    members: tuple[str, ...] = ()
    k: int = 1

    def mark(self, name: str, primary: str) -> str:
        """``"sync"``: every commit waits for ``name``; ``"quorum"``: one of those that may answer; else ``""``."""
        if name == primary or name not in self.members or self.k < 2:
            return ""
        return "sync" if self.k >= len(self.members) else "quorum"


@dataclass(frozen=True, slots=True)
class Member:
    """One row of ``pgr status``. What is not known is None or ``""``, never a guess."""

    name: str
    incarnation: str = ""
    """Short form (first 8 hex digits)."""
    role: str = ""
    """primary, replica, promoting, demoting, waiting, starting, learner, witness; ``""``: never heard of."""
    state: str = ""
    """running, streaming, stopped, starting, cloning, rewinding, quarantined, unreachable, ..."""
    timeline: int = 0
    epoch: int = -1
    lsn: int | None = None
    """End of the WAL it has flushed (on the primary: written), in bytes."""
    replay_lsn: int | None = None
    lag_bytes: int | None = None
    """Of replay, behind the newest WAL position known of the primary; 0 on the primary."""
    lag_s: float | None = None
    sync: str = ""
    """As :meth:`SyncGroup.mark`."""
    host: str = ""
    """Where clients reach its Postgres; empty for a witness."""
    pg_port: int = 0
    http: str = ""
    """``HOST:PORT`` to dial, or empty."""
    version: str = ""
    """Of Postgres, ``18.6``."""
    pgr_version: str = ""
    since: str = ""
    """ISO 8601, UTC: in this role and state since."""
    pending_restart: bool = False
    reason: str = ""
    """Why it is in this state, one sentence, or empty."""
    age_ms: int | None = None
    """Age of the observation when the snapshot was taken; None: never observed."""
    connected: bool = True
    """This node (or the leader, if this is a follower's snapshot) hears of it."""
    tags: Mapping[str, str | int | bool] = field(default_factory=dict)
    member: str = "voter"
    """voter, witness or learner: its place in the cluster, whatever it does at the moment."""
    aim: str = ""
    """What it is to become, if that is something else: a role, ``gone``, or ``gone:NAME`` once NAME has replaced it."""
    raft: str = ""
    """``HOST:PORT`` of its consensus port."""
    fenced: bool = False
    """A person keeps its Postgres down."""
    pending: str = ""
    """What waits for a restart of its Postgres, in words."""
    pending_settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The same, setting by setting: ``old_value`` (in force) and ``new_value`` (empty: its default)."""
    started: str = ""
    """When its postmaster was started, as Postgres shows it, UTC."""
    replayed_at: str = ""
    """When the last transaction that it has replayed was committed, likewise."""
    replay_paused: bool = False
    https: bool = False
    """Its HTTP is TLS."""
    upstream: str = ""
    """The standby that it streams from; empty: the primary, or nobody."""
    unseated: str = ""
    """The tag that keeps it out of the sync group."""


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One change of primary, or what led to none."""

    at: str
    """ISO 8601, UTC."""
    kind: str
    """founding, failover, switchover, crash, restart, salvage, ..."""
    term: int = 0
    timeline: int = 0
    node: str = ""
    """The primary from here on (salvage: the node that was saved)."""
    reason: str = ""
    lsn: int | None = None
    """Where the timeline begins."""
    gap_ms: int | None = None
    """From the last moment writes were possible to the first they were again, as far as it was measured."""
    bytes_salvaged: int = 0
    """WAL that the old primary had and the new one had not, kept in DIR/salvage."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the log has of it: of a salvage ``first``, ``last``, ``timelines``, ``place`` and ``command``."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything there is to know about the cluster, seen from ``node`` at ``taken_ns``."""

    node: str
    cluster_id: str = ""
    system_identifier: str = ""
    term: int = 0
    leader: str = ""
    """Of Raft; empty: none known."""
    role: str = "starting"
    """Of this node, as :attr:`Member.role`."""
    state: str = "starting"
    """Of this node's Postgres, as :attr:`Member.state`."""
    lease_until_ns: int = 0
    """End of this node's own lease; 0: it holds none."""
    opened: bool = False
    """This node's gate is open."""
    primary: Primary | None = None
    members: tuple[Member, ...] = ()
    sync_group: SyncGroup = SyncGroup()
    next_group: SyncGroup | None = None
    """The sync group that this one is being changed to."""
    commit: str = "quorum"
    """quorum or async."""
    profile: str = "default"
    timings: Timings = PROFILES["default"]
    unprotected: bool = False
    """A single node, or one more failure loses acknowledged writes or the quorum."""
    degraded: str = ""
    """Not empty: fewer nodes than wanted have a commit when it is acknowledged, in words."""
    paused: bool = False
    """No automatic action is taken."""
    scheduled: Mapping[str, Any] | None = None
    """What is to be done at its time: ``what`` (switchover, restart), ``at`` (ISO 8601, UTC), ``to``, ``nodes``
    (empty: all), ``pending``, ``by``."""
    restarting: Mapping[str, Any] | None = None
    """A restart under way: ``now`` (whose turn), ``done``, ``left``, ``by``."""
    retiming: Mapping[str, Any] | None = None
    """A change of the timings under way: ``from`` and ``to`` (profile or custom), ``switched``, ``waits_for`` (voters
    that are away and have to hear of it)."""
    scheduling: Mapping[str, str] = field(default_factory=dict)
    """Process (``raft``, ``watchdog``) to what it got: ``SCHED_RR 10``, ``nice -15``, ...; and ``hardware watchdog``:
    ``off``, ``/dev/watchdog, 1 s, armed``, ``not used: ...``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Cluster-wide settings as in the log, beyond commit, profile and timings."""
    warnings: tuple[str, ...] = ()
    explanation: str = ""
    """One sentence: why the cluster is as it is."""
    history: tuple[HistoryEvent, ...] = ()
    """Oldest first."""
    pgr_version: str = ""
    taken_ns: int = 0

    def member(self, name: str) -> Member | None:
        return next((m for m in self.members if m.name == name), None)

    @property
    def own(self) -> Member:
        """This node's row; an empty one before it is known."""
        return self.member(self.node) or Member(self.node, role=self.role, state=self.state)


def lease_left_ms(snapshot: Snapshot, now_ns: int) -> int:
    """What is left of this node's own lease, rounded down; 0 if it holds none or it has ended."""
    return max(0, snapshot.lease_until_ns - now_ns) // MS


def serves_writes(snapshot: Snapshot, now_ns: int) -> bool:
    """Role, open gate and a live lease, all three: the only ground on which a load balancer may send writes here."""
    return snapshot.role == "primary" and snapshot.opened and now_ns < snapshot.lease_until_ns


def primary_lsn(snapshot: Snapshot) -> int | None:
    row = snapshot.member(snapshot.primary.name) if snapshot.primary else None
    return row.lsn if row else None


def receive_lag_bytes(snapshot: Snapshot, member: Member) -> int | None:
    """WAL of the primary that ``member`` has not flushed yet, as far as both positions are known."""
    head = primary_lsn(snapshot)
    return None if head is None or member.lsn is None else max(0, head - member.lsn)


def age_ms(snapshot: Snapshot, member: Member, now_ns: int) -> int | None:
    """Age of what we know of ``member``, now."""
    if member.name == snapshot.node:
        return 0
    return None if member.age_ms is None else member.age_ms + max(0, now_ns - snapshot.taken_ns) // MS


def lsn_text(lsn: int | None) -> str | None:
    """``X/Y`` as Postgres prints it."""
    return None if lsn is None else f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_int(text: str | None) -> int | None:
    """The reverse. ValueError if it is no ``X/Y``."""
    if text is None:
        return None
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"not a WAL position: {text!r}")
    return int(high, 16) << 32 | int(low, 16)


_LSN_FIELDS = ("lsn", "replay_lsn")


def _plain(value: Any) -> dict[str, Any]:
    """A flat dataclass as a dict; WAL positions as text, mappings and tuples as JSON knows them."""
    out: dict[str, Any] = {}
    for f in fields(value):
        item = getattr(value, f.name)
        if f.name in _LSN_FIELDS:
            item = lsn_text(item)
        elif isinstance(item, Mapping):
            item = dict(item)
        elif isinstance(item, tuple):
            item = list(item)
        out[f.name] = item
    return out


def event_json(event: HistoryEvent) -> dict[str, Any]:
    return _plain(event)


def to_json(snapshot: Snapshot, now_ns: int) -> dict[str, Any]:
    """The JSON of ``pgr status --json``: names as above, ``lease_left_ms`` for ``lease_until_ns``, no instants."""
    out = _plain(snapshot)
    for name in ("lease_until_ns", "taken_ns"):
        del out[name]
    out["lease_left_ms"] = lease_left_ms(snapshot, now_ns)
    out["writable"] = serves_writes(snapshot, now_ns)
    out["primary"] = _plain(snapshot.primary) if snapshot.primary else None
    out["sync_group"] = _plain(snapshot.sync_group)
    out["next_group"] = _plain(snapshot.next_group) if snapshot.next_group else None
    out["timings"] = _plain(snapshot.timings)
    out["history"] = [_plain(event) for event in snapshot.history]
    out["members"] = member_documents(snapshot, now_ns)
    return out


def member_documents(snapshot: Snapshot, now_ns: int) -> list[dict[str, Any]]:
    """``members`` of :func:`to_json`."""
    return [_plain(m) | {"age_ms": age_ms(snapshot, m, now_ns)} for m in snapshot.members]


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``data`` that ``cls`` has: a newer node may send more, an older one less."""
    out = {f.name: data[f.name] for f in fields(cls) if f.name in data}
    for name in _LSN_FIELDS:
        if name in out:
            out[name] = lsn_int(out[name])
    return out


def event_from_json(data: Mapping[str, Any]) -> HistoryEvent:
    return HistoryEvent(**_known(HistoryEvent, data))


def from_json(data: Mapping[str, Any], now_ns: int = 0) -> Snapshot:
    """The reverse of :func:`to_json`, to the millisecond, with instants on the reader's clock.

    KeyError, TypeError or ValueError if ``data`` is no status.
    """
    known = _known(Snapshot, data)
    return Snapshot(
        **known
        | {
            "primary": Primary(**_known(Primary, data["primary"])) if data.get("primary") else None,
            "members": tuple(Member(**_known(Member, row)) for row in data.get("members", ())),
            "sync_group": _group(data.get("sync_group") or {}),
            "next_group": _group(data["next_group"]) if data.get("next_group") else None,
            "timings": Timings(**_known(Timings, data["timings"])) if data.get("timings") else PROFILES["default"],
            "warnings": tuple(data.get("warnings", ())),
            "history": tuple(event_from_json(row) for row in data.get("history", ())),
            "lease_until_ns": now_ns + data["lease_left_ms"] * MS if data.get("lease_left_ms") else 0,
            "taken_ns": now_ns,
        }
    )


def member_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """What ``pgr member list --json`` prints."""
    return [
        {
            "name": m.name, "role": m.member, "aim": m.aim, "seat": m.name in snapshot.sync_group.members,
            "incarnation": m.incarnation, "state": m.state, "raft": m.raft,
            "postgres": f"{m.host}:{m.pg_port}" if m.host else "", "http": m.http,
        }
        for m in snapshot.members
    ]  # fmt: skip


def _group(data: Mapping[str, Any]) -> SyncGroup:
    return SyncGroup(tuple(data.get("members", ())), int(data.get("k", 1)))


def uris(snapshot: Snapshot, dbname: str = "postgres", user: str = "") -> dict[str, str]:
    """``read_write`` and ``read_only``: multi-host connection strings of every member with Postgres, the primary first.

    ValueError if no member has an address that clients can dial. ``connect_timeout`` is there because libpq tries hosts
    in turn and a host that is gone without a word would otherwise hold it for minutes.
    """
    first = snapshot.primary.name if snapshot.primary else ""
    rows = sorted((m for m in snapshot.members if m.host and m.pg_port), key=lambda m: (m.name != first, m.name))
    if not rows:
        raise ValueError("no member has told where its Postgres can be reached")
    hosts = ",".join(f"[{m.host}]:{m.pg_port}" if ":" in m.host else f"{m.host}:{m.pg_port}" for m in rows)
    who = f"{_escape(user)}@" if user else ""
    base = f"postgresql://{who}{hosts}/{_escape(dbname)}?connect_timeout=3&target_session_attrs="
    return {"read_write": base + "read-write", "read_only": base + "prefer-standby"}


def _escape(text: str) -> str:
    """Percent-encode all but RFC 3986's unreserved characters."""
    return "".join(chr(b) if (chr(b).isalnum() and b < 128) or chr(b) in "-._~" else f"%{b:02X}" for b in text.encode())
