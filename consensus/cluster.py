"""The replicated cluster state and the catalogue of log entries: `apply(state, entry) -> state`. Pure.

| entry | says | proposed by |
| --- | --- | --- |
| `noop/1` | the leader's own first entry | every new leader |
| `founding/1` | only this node runs initdb, with this nonce | the first leader |
| `initialized/1` | the system identifier; the data directory with this nonce is the cluster's | the founder |
| `promoted/1` | the *grant*: this node is primary of this term, on this timeline | the leader of the term, for itself |
| `switched/1` | where the WAL of the grant begins and which epochs came before: what a standby must know to follow | the primary |
| `opened/1` | a record of this epoch is flushed by k of S: clients are let in | the primary |
| `failed/1` | the grant will not be used: the promotion did not end well, or the primary is down | the leader |
| `member/1` | a member's addresses | any node, through the leader |
| `wish/1` | a person asked for a switchover or failover: to whom, and whether data loss is accepted; void with the next grant | the leader |
| `event/1` | something worth remembering (salvage, clone, ...) | any node, through the leader |

An entry of an unknown kind stops the node: it was written by a newer version.
"""  # noqa: E501  (a table)

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from consensus.messages import Entry
from consensus.record import EpochStart, Position

HISTORY_KEPT_MAX = 200
FEATURE_LEVEL = 1


class UnknownEntryError(Exception):
    """The log holds an entry this version does not know. The node must stop (exit 70) and be upgraded."""


class Member(NamedTuple):
    """A founding member. Addresses are ``host:port``; they may change, the name and the incarnation do not."""

    name: str
    incarnation: int
    raft: str
    postgres: str
    http: str


class SyncGroup(NamedTuple):
    """A commit is acknowledged once ``k`` of ``members``, the primary included, have flushed it."""

    members: tuple[str, ...]
    k: int


class Grant(NamedTuple):
    """A term in which a node is (or was) primary."""

    term: int
    node: str
    upper: Position
    """No acknowledged commit lies beyond this position (safety.md: upper bound of position)."""
    timeline: int
    """Allocated here, never used again, even if the promotion fails ("burned")."""
    ancestry: tuple[EpochStart, ...] = ()
    """Own epoch last; empty until the promotion has happened."""
    opened: bool = False
    failed: str = ""
    """Why the grant ended before another one; empty while it holds."""


class HistoryEvent(NamedTuple):
    """One line of `pgr history`. ``at``: ISO 8601 UTC by the proposer's clock, for people only."""

    at: str
    kind: str
    term: int
    node: str
    text: str
    fields: str
    """Canonical JSON."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What the cluster has agreed on."""

    cluster_id: str = ""
    members: tuple[Member, ...] = ()
    commit_mode: str = "quorum"
    profile: str = "default"
    group: SyncGroup = SyncGroup((), 1)
    founder: str = ""
    nonce: str = ""
    replication_password: str = field(default="", repr=False)
    system_identifier: str = ""
    initial_timeline: int = 0
    grants: tuple[Grant, ...] = ()
    wish_to: str = ""
    """Whom a person wants as the next primary."""
    wish_loss: bool = False
    """A person accepts that the next primary may lack acknowledged commits."""
    history: tuple[HistoryEvent, ...] = ()
    settings: str = "{}"
    """Canonical JSON of the founding settings (parameters, client rules)."""

    @property
    def grant(self) -> Grant | None:
        """The newest grant, whether it still holds or not."""
        return self.grants[-1] if self.grants else None

    @property
    def was_opened(self) -> bool:
        """Has this cluster ever let clients in? Before that only the founder holds data."""
        return any(g.opened for g in self.grants)

    def member(self, name: str) -> Member | None:
        return next((m for m in self.members if m.name == name), None)

    def next_timeline(self) -> int:
        """A number no promotion has ever been given."""
        return max([self.initial_timeline, *(g.timeline for g in self.grants)]) + 1

    def burned_timelines(self, ancestry: tuple[EpochStart, ...]) -> tuple[int, ...]:
        """Numbers given out that are not in ``ancestry``."""
        ours = {e.timeline for e in ancestry}
        return tuple(g.timeline for g in self.grants if g.timeline not in ours)


def canonical(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sync_group(names: tuple[str, ...], commit_mode: str) -> SyncGroup:
    """The default group: all data nodes, k a majority of them; asynchronous: the primary alone decides."""
    return SyncGroup(names, 1 if commit_mode == "async" else len(names) // 2 + 1)


def found(charter: str, cluster_id: str) -> ClusterState:
    """The state every founding member starts from (consensus/founding.py)."""
    body: dict[str, Any] = json.loads(charter)
    members = tuple(Member(*m) for m in body["members"])
    mode = str(body["commit"])
    return ClusterState(
        cluster_id=cluster_id,
        members=members,
        commit_mode=mode,
        profile=str(body["profile"]),
        group=sync_group(tuple(m.name for m in members), mode),
        founder=str(body["founder"]),
        settings=canonical(body["settings"]),
    )


def apply(state: ClusterState, entry: Entry) -> ClusterState:
    """The state after ``entry``. Entries that no longer apply (an old nonce, an old grant) change nothing.

    Raises `UnknownEntryError` for a kind of a newer version.
    """
    if entry.kind == "noop/1":
        return state
    body: dict[str, Any] = json.loads(entry.data)
    match entry.kind:
        case "founding/1":
            return _founding(state, body)
        case "initialized/1":
            return _initialized(state, body)
        case "promoted/1":
            return _promoted(state, entry, body)
        case "switched/1":
            ancestry = tuple(EpochStart(*e) for e in body["ancestry"])
            return _change_grant(state, body, ancestry=ancestry)
        case "opened/1":
            return _opened(state, body)
        case "failed/1":
            grant = state.grant
            if grant is None or grant.term != body["term"] or grant.failed:
                return state
            state = _change_grant(state, body, failed=str(body["reason"]))
            return _remember(state, body, "failed", grant.term, grant.node, str(body["reason"]))
        case "member/1":
            new = Member(*body["member"])
            members = tuple(new if (m.name, m.incarnation) == (new.name, new.incarnation) else m for m in state.members)
            return replace(state, members=members)
        case "wish/1":
            return _wish(state, entry, body)
        case "event/1":
            return _remember(state, body, str(body["kind"]), int(body["term"]), str(body["node"]), str(body["text"]))
        case _:
            raise UnknownEntryError(f"log entry {entry.index} has the unknown kind {entry.kind!r}")


def _founding(state: ClusterState, body: dict[str, Any]) -> ClusterState:
    if state.system_identifier or state.nonce:
        return state
    state = replace(
        state, founder=str(body["node"]), nonce=str(body["nonce"]),
        replication_password=str(body["replication_password"]),
    )  # fmt: skip
    return _remember(state, body, "founding", 0, str(body["node"]), "is chosen to create the cluster")


def _initialized(state: ClusterState, body: dict[str, Any]) -> ClusterState:
    if state.system_identifier or body["nonce"] != state.nonce:
        return state
    state = replace(
        state, system_identifier=str(body["system_identifier"]), initial_timeline=int(body["timeline"])
    )
    return _remember(state, body, "initialized", 0, state.founder, "created the data directory of the cluster")


def _promoted(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    newest = state.grant
    if body["term"] != entry.term or (newest is not None and newest.term >= entry.term):
        return state
    grant = Grant(entry.term, str(body["node"]), Position(*body["upper"]), int(body["timeline"]))
    state = replace(state, grants=(*state.grants, grant), wish_to="", wish_loss=False)
    return _remember(state, body, "promoted", grant.term, grant.node, str(body["reason"]))


def _opened(state: ClusterState, body: dict[str, Any]) -> ClusterState:
    grant = state.grant
    if grant is None or grant.term != body["term"] or grant.opened:
        return state
    state = _change_grant(state, body, opened=True)
    return _remember(state, body, "opened", grant.term, grant.node, "is open to clients")


def _wish(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    newest = state.grant.term if state.grant is not None else 0
    if body.get("after", newest) != newest:
        return state  # overtaken by a grant: it must not wait for the next loss of a primary
    state = replace(state, wish_to=str(body["to"]), wish_loss=bool(body["accept_data_loss"]))
    text = f"was asked for{', accepting data loss' if state.wish_loss else ''}"
    return _remember(state, body, str(body["kind"]), entry.term, state.wish_to, text)


def _change_grant(state: ClusterState, body: dict[str, Any], **change: Any) -> ClusterState:
    """Change the newest grant, if it is the one the entry speaks of."""
    grant = state.grant
    if grant is None or grant.term != body["term"]:
        return state
    return replace(state, grants=(*state.grants[:-1], grant._replace(**change)))


def _remember(state: ClusterState, body: dict[str, Any], kind: str, term: int, node: str, text: str) -> ClusterState:
    event = HistoryEvent(str(body.get("at", "")), kind, term, node, text, canonical(body.get("fields", {})))
    return replace(state, history=(*state.history, event)[-HISTORY_KEPT_MAX:])


def dump(state: ClusterState) -> str:
    """Canonical JSON, for snapshots and for the bus."""
    return canonical({name: getattr(state, name) for name in ClusterState.__slots__} | {"level": FEATURE_LEVEL})


def load(data: str) -> ClusterState:
    """Inverse of `dump`. Raises `UnknownEntryError` for a state of a newer version."""
    body: dict[str, Any] = json.loads(data)
    if body.pop("level") > FEATURE_LEVEL:
        raise UnknownEntryError("the cluster state was written by a newer version")
    body["members"] = tuple(Member(*m) for m in body["members"])
    body["group"] = SyncGroup(tuple(body["group"][0]), body["group"][1])
    body["grants"] = tuple(
        Grant(g[0], g[1], Position(*g[2]), g[3], tuple(EpochStart(*e) for e in g[4]), g[5], g[6])
        for g in body["grants"]
    )
    body["history"] = tuple(HistoryEvent(*h) for h in body["history"])
    return ClusterState(**body)
