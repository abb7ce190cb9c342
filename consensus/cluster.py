"""The replicated cluster state and the catalogue of log entries: `apply(state, entry) -> state`. Pure.

| entry | says | proposed by |
| --- | --- | --- |
| `noop/1` | the leader's own first entry | every new leader |
| `founding/1` | only this node runs initdb, with this nonce | the first leader |
| `initialized/1` | the system identifier; the data directory with this nonce is the cluster's | the founder |
| `promoted/1` | the *grant*: this node is primary of this term, on this timeline | the leader of the term, for itself |
| `switched/1` | where the WAL of the grant begins and which epochs came before: what a standby must know to follow | the primary |
| `opened/1` | a record of this epoch is flushed by k of S: clients are let in | the primary |
| `veto/1` | the pre_promote hook of this node said no: others are tried first, until a primary opens | the leader, of itself |
| `failed/1` | the grant will not be used: the promotion did not end well, or the primary is down | the leader |
| `members/1` | the whole list of members, with roles and aims: Raft's membership from the moment it is appended | the leader |
| `member/1` | a member's addresses | any node, through the leader |
| `change/1` | the sync group is to become another: from now on an election needs a read quorum of both; the reverse of an open change reverts it | the leader |
| `done/1` | the names of the new group are in force on the primary and everything acknowledged meets its rule: it alone counts | the primary |
| `wish/1` | a person asked for a switchover or failover: to whom, and whether data loss is accepted; void with the next grant | the leader |
| `fence/1` | a person keeps this node's Postgres down, or no longer does: it is not electable, and it still votes | the leader |
| `reinit/1` | a person wants this node's copy made anew | the leader |
| `rebuilt/1` | the copy that this `reinit/1` asked for is made and proven | that node, through the leader |
| `tags/1` | what a person says of a node: it never becomes primary, has no seat in the sync group, ... | that node, through the leader |
| `config/1` | cluster-wide settings are set or unset; void if another such entry came before it | the leader |
| `retime/1` | the timings are to become these: from its append on a voter is bound for the longer E of both; void while another such is open | the leader |
| `retimed/1` | the next step of that change: `switch` (L is the new one), `done` (so are E, F and the heartbeat), or `void` (given up, before the switch) | the leader |
| `restart/1` | a person wants the Postgres of these nodes restarted, one at a time; void while another such is under way | the leader |
| `turn/1` | it is this node's turn in it; of the primary also who is to be primary then (itself: in place) | the leader |
| `restarted/1` | its Postgres was started after its turn was said, and is back | that node, through the leader |
| `halt/1` | the rest of a restart is left as it is, and why | the leader |
| `schedule/1` | a switchover or a restart is to be carried out at this time; void if something is scheduled | the leader |
| `unschedule/1` | what was scheduled is begun, or will not be: cancelled, or its time has passed | the leader |
| `reload/1` | these nodes are to read their files again | the leader |
| `event/1` | something worth remembering (salvage, clone, ...) | any node, through the leader |

An entry of an unknown kind stops the node: it was written by a newer version.
"""  # noqa: E501  (a table)

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from consensus import clusterwide, operations, retiming, tags
from consensus.former import Former, burned_up_to
from consensus.history import HistoryEvent, remembered
from consensus.membership import VOTER, Member
from consensus.messages import Entry
from consensus.operations import Operations
from consensus.record import EpochStart, Position
from consensus.retiming import Pace
from consensus.tags import Tagged

REMOVED_KEPT_MAX = 100
FEATURE_LEVEL = 5
"""2: cluster-wide settings, asynchronous groups. 3: tags, vetoes, restarts, schedules. 4: former clusters. 5: timings
that change."""


class UnknownEntryError(Exception):
    """The log holds an entry this version does not know. The node must stop (exit 70) and be upgraded."""


class Seat(NamedTuple):
    """A place in the sync group. It is the incarnation's: another node of the same name does not fill it."""

    name: str
    incarnation: int


class SyncGroup(NamedTuple):
    """A commit is acknowledged once ``k`` of ``members``, the primary included, have flushed it."""

    members: tuple[Seat, ...]
    """Sorted."""
    k: int
    asynchronous: bool = False
    """k is 1 and a failover may lose what only the primary has. A group of k = 1 without that loses nothing: all of it
    must promise."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(seat.name for seat in self.members)


class Change(NamedTuple):
    """A change of the sync group under way. While it is open, an election has to respect both."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    """Of the entry that opened it; `done/1` names it."""
    old: SyncGroup
    new: SyncGroup


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
    lease_lost: bool = False
    """It failed for want of a lease and nothing else: pgr ended a Postgres that was well."""


class Veto(NamedTuple):
    """The pre_promote hook of a node said no, and no primary has opened since."""

    seat: Seat
    times: int
    reason: str
    """The last time."""


class Reinit(NamedTuple):
    """A copy that is to be made anew."""

    seat: Seat
    """Of that life only: a lost one gets a new copy anyway."""
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    """Of the entry that asked for it; `rebuilt/1` names it."""
    source: str = ""
    """Whom to copy; empty: the primary."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What the cluster has agreed on."""

    cluster_id: str = ""
    members: tuple[Member, ...] = ()
    commit_mode: str = "quorum"
    """What is wanted. In force is what `SyncGroup.asynchronous` says."""
    profile: str = "default"
    """Of the founding."""
    pace: Pace = Pace()
    """The timings, and a change of them under way."""
    group: SyncGroup = SyncGroup((), 1)
    change: Change | None = None
    removed: tuple[Seat, ...] = ()
    """Former members; none of them comes back as who it was."""
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
    wished: bool = False
    """A person asked for a switchover or failover since the newest grant."""
    fenced: tuple[str, ...] = ()
    """Whose Postgres a person keeps down; sorted."""
    reinits: tuple[Reinit, ...] = ()
    vetoes: tuple[Veto, ...] = ()
    """Since a primary last opened."""
    tagged: tuple[Tagged, ...] = ()
    history: tuple[HistoryEvent, ...] = ()
    settings: str = "{}"
    """Canonical JSON of the founding settings (parameters, client rules). What is in force stands in ``config``."""
    config: str = "{}"
    """Cluster-wide settings that are set (clusterwide.py), canonical JSON; what is absent has its default."""
    config_index: int = 0
    """Of the newest `config/1` entry that counted; 0: as founded."""
    ops: Operations = Operations()
    former: tuple[Former, ...] = ()
    """Clusters that this one was rebuilt from, oldest first."""

    @property
    def granted(self) -> int:
        """Term of the newest grant; 0: there was none."""
        return self.grant.term if self.grant is not None else 0

    @property
    def grant(self) -> Grant | None:
        """The newest grant, whether it still holds or not."""
        return self.grants[-1] if self.grants else None

    @property
    def was_opened(self) -> bool:
        """Has this cluster ever let clients in? Before that only the founder holds data."""
        return any(g.opened for g in self.grants)

    @property
    def groups(self) -> tuple[SyncGroup, ...]:
        """The sync groups of which an election needs a read quorum."""
        return (self.group,) if self.change is None else (self.change.old, self.change.new)

    @property
    def wanted_group(self) -> SyncGroup:
        """The one whose names a primary puts in force."""
        return self.group if self.change is None else self.change.new

    @property
    def asynchronous(self) -> bool:
        """May the next primary lack commits that were acknowledged?"""
        return any(group.asynchronous for group in self.groups)

    def setting(self, name: str) -> Any:
        """A cluster-wide setting that has a row in the table."""
        return clusterwide.value_of(self.config, name)

    def rule(self, seats: Iterable[Seat]) -> SyncGroup:
        """The sync group of these nodes, as the settings want it. Strict: k may be more than there are."""
        group = sync_group(seats, self.commit_mode, self.setting("sync_acks"))
        return group if self.setting("strict") else group._replace(k=min(group.k, max(1, len(group.members))))

    def member(self, name: str) -> Member | None:
        return next((m for m in self.members if m.name == name), None)

    def seated(self, group: SyncGroup) -> frozenset[str]:
        """Names of those who fill their seat of ``group`` with the incarnation that it is for."""
        here = {(m.name, m.incarnation) for m in self.members}
        return frozenset(seat.name for seat in group.members if seat in here)

    def reinit_of(self, name: str) -> Reinit | None:
        """The newest that is not done yet, of the life that is a member now."""
        member = self.member(name)
        found = (r for r in reversed(self.reinits) if member is not None and r.seat == seat_of(member))
        return next(found, None)

    @property
    def standing_vetoes(self) -> dict[str, Veto]:
        """By name; nobody's once there is no such hook any more."""
        if not self.vetoes or not self.setting(clusterwide.PRE_PROMOTE):
            return {}
        return {v.seat.name: v for v in self.vetoes}

    def next_timeline(self) -> int:
        """A number no promotion has ever been given."""
        return max([self.initial_timeline, burned_up_to(self.former), *(g.timeline for g in self.grants)]) + 1


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, no NaN."""
    return _ENCODER.encode(value)


def sync_group(seats: Iterable[Seat], commit_mode: str, sync_acks: int | None = None) -> SyncGroup:
    """The group of these nodes: k a majority of them, if nothing else is said; asynchronous: the primary alone
    decides."""
    ordered = tuple(sorted(seats))
    if commit_mode == "async":
        return SyncGroup(ordered, 1, True)
    return SyncGroup(ordered, len(ordered) // 2 + 1 if sync_acks is None else sync_acks + 1)


def seat_of(member: Member) -> Seat:
    return Seat(member.name, member.incarnation)


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
        pace=retiming.of_profile(str(body["profile"])),
        group=sync_group((seat_of(m) for m in members if m.role == VOTER), mode),
        founder=str(body["founder"]),
        settings=canonical(body["settings"]),
        config=canonical(clusterwide.founded(mode, body["settings"])),
    )


def apply(state: ClusterState, entry: Entry) -> ClusterState:
    """The state after ``entry``. Entries that no longer apply (an old nonce, an old grant) change nothing.

    Raises `UnknownEntryError` for a kind of a newer version.
    """
    if entry.kind == "noop/1":
        return state
    carry_out = _KINDS.get(entry.kind)
    if carry_out is None:
        raise UnknownEntryError(f"log entry {entry.index} has the unknown kind {entry.kind!r}")
    return carry_out(state, entry, json.loads(entry.data))


def _event(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    return _remember(state, body, str(body["kind"]), int(body["term"]), str(body["node"]), str(body["text"]))


def _founding(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    if state.system_identifier or state.nonce:
        return state
    state = replace(
        state, founder=str(body["node"]), nonce=str(body["nonce"]),
        replication_password=str(body["replication_password"]),
    )  # fmt: skip
    return _remember(state, body, "founding", 0, str(body["node"]), "is chosen to create the cluster")


def _initialized(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    if state.system_identifier or body["nonce"] != state.nonce:
        return state
    identifier, timeline = str(body["system_identifier"]), int(body["timeline"])
    state = replace(state, system_identifier=identifier, initial_timeline=timeline)
    return _remember(state, body, "initialized", 0, state.founder, "created the data directory of the cluster")


def _promoted(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    newest = state.grant
    if body["term"] != entry.term or (newest is not None and newest.term >= entry.term):
        return state
    grant = Grant(entry.term, str(body["node"]), Position(*body["upper"]), int(body["timeline"]))
    state = replace(state, grants=(*state.grants, grant), wish_to="", wish_loss=False, wished=False)
    return _remember(state, body, "promoted", grant.term, grant.node, str(body["reason"]))


def _switched(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    state = _change_grant(state, body, ancestry=tuple(EpochStart(*e) for e in body["ancestry"]))
    kept = [g.term for g in state.grants if g.ancestry][-2:]  # each has all before it: the state would grow as n * n
    return replace(state, grants=tuple(g if g.term in kept else g._replace(ancestry=()) for g in state.grants))


def _failed(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    grant = state.grant
    if grant is None or grant.term != body["term"] or grant.failed:
        return state
    state = _change_grant(state, body, failed=str(body["reason"]), lease_lost=body.get("lease_lost") is True)
    return _remember(state, body, "failed", grant.term, grant.node, str(body["reason"]))


def _veto(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    member = state.member(str(body["node"]))
    if member is None or body["term"] != entry.term:
        return state
    before = next((v for v in state.vetoes if v.seat == seat_of(member)), Veto(seat_of(member), 0, ""))
    veto = Veto(before.seat, before.times + 1, str(body["reason"]))
    state = replace(state, vetoes=(*(v for v in state.vetoes if v.seat != veto.seat), veto))
    if veto.reason == before.reason:
        return state  # a line for each would push out what matters
    return _remember(state, body, "vetoed", entry.term, member.name, f"its pre_promote hook said no: {veto.reason}")


def _opened(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    grant = state.grant
    if grant is None or grant.term != body["term"] or grant.opened:
        return state
    state = replace(_change_grant(state, body, opened=True), vetoes=())
    return _remember(state, body, "opened", grant.term, grant.node, "is open to clients")


def _members(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    """Without conditions: Raft goes by the newest list of the log, and so must everybody else."""
    members = tuple(sorted(Member(*m) for m in body["members"]))
    left = {seat_of(m) for m in state.members} - {seat_of(m) for m in members}
    state = replace(
        state, members=members, removed=(*state.removed, *sorted(left))[-REMOVED_KEPT_MAX:],
        fenced=tuple(n for n in state.fenced if any(m.name == n for m in members)),
        reinits=tuple(r for r in state.reinits if r.seat not in left),
        vetoes=tuple(v for v in state.vetoes if v.seat not in left),
        tagged=tuple(t for t in state.tagged if t.seat not in left),
    )  # fmt: skip
    return _remember(state, body, str(body["kind"]), entry.term, str(body["node"]), str(body["text"]))


def _member(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    new = Member(*body["member"])
    changed = (new._replace(role=m.role, aim=m.aim) if seat_of(m) == seat_of(new) else m for m in state.members)
    return replace(state, members=tuple(changed))


def _change(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    old, new = group_from(body["old"], state.commit_mode), group_from(body["new"], state.commit_mode)
    under_way = state.change
    begins = under_way is None and old == state.group
    reverts = under_way is not None and (old, new) == (under_way.new, under_way.old)
    if not (begins or reverts) or old == new or not 1 <= new.k <= len(new.members):
        return state
    state = replace(state, change=Change(entry.index, old, new))
    return _remember(state, body, str(body["kind"]), entry.term, str(body["node"]), str(body["text"]))


def _done(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    change = state.change
    if change is None or change.index != body["index"]:
        return state
    state = replace(state, group=change.new, change=None)
    text = f"{change.new.k} of {', '.join(change.new.names)} acknowledge a commit"
    return _remember(state, body, "sync group", entry.term, str(body["node"]), text)


def group_from(plain: Any, commit_mode: str) -> SyncGroup:
    """From JSON: [[[name, incarnation], ...], k, asynchronous]. In an entry older than cluster-wide settings the last
    is missing: then it is what the charter says, ``commit_mode``."""
    asynchronous = plain[2] if len(plain) > 2 else commit_mode == "async"
    return SyncGroup(tuple(Seat(*seat) for seat in plain[0]), plain[1], asynchronous)


def _config(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    if body["after"] != state.config_index:
        return state  # what it was checked against is no longer what is set
    config = canonical(clusterwide.merged(state.config, body["set"], body["unset"]))
    same_hook = clusterwide.value_of(config, clusterwide.PRE_PROMOTE) == state.setting(clusterwide.PRE_PROMOTE)
    state = replace(
        state, config=config, config_index=entry.index, commit_mode=clusterwide.value_of(config, "commit"),
        vetoes=state.vetoes if same_hook else (),
    )  # fmt: skip
    return _remember(state, body, "config", entry.term, str(body["node"]), str(body["text"]))


def _timings(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    pace = retiming.apply(state.pace, entry, body)
    if pace is state.pace:
        return state
    return _remember(replace(state, pace=pace), body, "timings", entry.term, str(body["node"]), str(body["text"]))


def _wish(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    newest = state.grant.term if state.grant is not None else 0
    if body.get("after", newest) != newest:
        return state  # overtaken by a grant: it must not wait for the next loss of a primary
    state = replace(state, wish_to=str(body["to"]), wish_loss=bool(body["accept_data_loss"]), wished=True)
    who, given_up = str(body.get("by", "")), str(body.get("given_up", ""))
    text = "was asked for" + (f" by {who}" if who else "")
    text += (", accepting data loss" if state.wish_loss else "") + (f"; given up: {given_up}" if given_up else "")
    return _remember(state, body, str(body["kind"]), entry.term, state.wish_to, text)


def _fence(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    name, down = str(body["node"]), bool(body["down"])
    if state.member(name) is None or (name in state.fenced) == down:
        return state
    state = replace(state, fenced=tuple(sorted({*state.fenced, name} if down else {*state.fenced} - {name})))
    text = "is fenced: its Postgres is kept down" if down else "is fenced no more"
    return _remember(state, body, "fenced" if down else "unfenced", entry.term, name, text + _asked_by(body))


def _reinit(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    seat = Seat(str(body["node"]), int(body["incarnation"]))
    if state.reinit_of(seat.name) is not None or seat not in {seat_of(m) for m in state.members}:
        return state
    state = replace(state, reinits=(*state.reinits, Reinit(seat, entry.index, str(body.get("source", "")))))
    text = "is to get a new copy" + (f" of {body['source']}" if body.get("source") else "") + _asked_by(body)
    return _remember(state, body, "reinit", entry.term, seat.name, text)


def _rebuilt(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    left = tuple(r for r in state.reinits if r.index != body["index"])
    if left == state.reinits:
        return state
    return _remember(replace(state, reinits=left), body, "reinit", entry.term, str(body["node"]), "has its new copy")


def _operation(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    found = operations.apply(state.ops, entry, body)
    if found is None:
        return state
    return _remember(replace(state, ops=found.ops), body, found.kind, entry.term, found.node, found.text)


def _tags(state: ClusterState, entry: Entry, body: dict[str, Any]) -> ClusterState:
    seat, found = Seat(str(body["node"]), int(body["incarnation"])), canonical(body["tags"])
    if seat not in {seat_of(m) for m in state.members} or tags.read(found) == tags.of(state, seat.name):
        return state
    others = (t for t in state.tagged if t.seat.name != seat.name)
    state = replace(state, tagged=tuple(sorted((*others, Tagged(seat, found)))))
    return _remember(state, body, "tags", entry.term, seat.name, f"has the tags: {tags.shown(body['tags'])}")


def _asked_by(body: dict[str, Any]) -> str:
    return f" (asked for by {body['by']})" if body.get("by") else ""


def _change_grant(state: ClusterState, body: dict[str, Any], **change: Any) -> ClusterState:
    """Change the newest grant, if it is the one the entry speaks of."""
    grant = state.grant
    if grant is None or grant.term != body["term"]:
        return state
    return replace(state, grants=(*state.grants[:-1], grant._replace(**change)))


def _remember(state: ClusterState, body: dict[str, Any], kind: str, term: int, node: str, text: str) -> ClusterState:
    event = HistoryEvent(str(body.get("at", "")), kind, term, node, text, canonical(body.get("fields", {})))
    return replace(state, history=remembered(state.history, event))


_KINDS: dict[str, Callable[[ClusterState, Entry, dict[str, Any]], ClusterState]] = {
    "founding/1": _founding,
    "initialized/1": _initialized,
    "promoted/1": _promoted,
    "switched/1": _switched,
    "opened/1": _opened,
    "veto/1": _veto,
    "failed/1": _failed,
    "members/1": _members,
    "member/1": _member,
    "change/1": _change,
    "done/1": _done,
    "wish/1": _wish,
    "fence/1": _fence,
    "reinit/1": _reinit,
    "rebuilt/1": _rebuilt,
    "tags/1": _tags,
    "config/1": _config,
    "event/1": _event,
    **dict.fromkeys(retiming.KINDS, _timings),
    **dict.fromkeys(operations.KINDS, _operation),
}
