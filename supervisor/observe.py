"""What a node says of itself to the others, and the `Snapshot` made of what all of them said. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from consensus import clusterwide, tags, upstreams
from consensus.cluster import ClusterState
from consensus.hold import PAUSE
from consensus.membership import GONE, LEARNER, VOTER, WITNESS
from consensus.membership import Member as LogMember
from consensus.record import EpochStart, NodeRecord, Position
from consensus.retiming import profile_of
from consensus.sightings import NOT_FENCED
from consensus.tags import Tag
from fencing.lease import MS, Timings
from supervisor import configview, operating, timingview
from supervisor.roles import Data, Local, Server, Step, View
from supervisor.settings import FLOORED
from supervisor.status import HistoryEvent, Member, Primary, Snapshot, SyncGroup

QUARANTINED = "quarantined"
STALE_AFTER_MS = 2_000
"""Four observations missed."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the last look at Postgres showed."""

    lsn: int = 0
    """End of the flushed WAL; on the primary, of the WAL it has flushed itself."""
    replay_lsn: int = 0
    streaming: bool = False
    checkpointed: int = 0
    """The epoch of which this primary has completed a checkpoint."""
    version: str = ""
    since: str = ""
    progress: str = ""
    """Of a clone or rewind, for people."""
    problem: str = ""
    """Why Postgres has failed to start several times, for people; empty: it has not."""
    lag_s: float | None = None
    """Of replay, by the time of the last replayed commit; 0: all that was received is replayed."""
    started: str = ""
    replayed_at: str = ""
    replay_paused: bool = False
    https: bool = False
    """This node's HTTP is TLS."""
    answered_ns: int = 0
    """When Postgres last answered."""
    pending: Mapping[str, str] = field(default_factory=dict)
    """Settings that wait for a restart, with what is in force."""
    missing_hooks: tuple[str, ...] = ()
    """Commands of hooks that this node can't execute (`hooks.pre_promote: /etc/pgr/fence`)."""
    reloaded: int = 0
    """Index of the newest `reload/1` after which ``pending`` was looked at."""
    overrides: tuple[str, ...] = ()
    """On the primary: who has set synchronous_commit lower (`role app: off`)."""
    config_problem: str = ""
    """Why the configuration file as it is was not taken; empty: it was."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """On the primary: permanent physical slots, and from where on they keep WAL."""
    slot_problems: tuple[str, ...] = ()
    sql_problem: str = ""
    """Why something can't be asked by SQL here; empty: everything can."""


def view_of(view: View, body: Mapping[str, Any]) -> View:
    """The view after a `raft.state` (bus catalogue in DESIGN.md)."""
    record = body["record"]
    proof = Position(*record["proof"]) if record["proof"] is not None else None
    history = tuple(EpochStart(*e) for e in record["history"])
    return replace(
        view,
        alive=True,
        met=view.met or bool(body["current"]),
        term=body["term"],
        leader=body["leader"],
        role=body["role"],
        wanted=body["wanted"],
        granted=body["granted"],
        hand_over=body["hand_over"],
        sentence=body["sentence"],
        pre_promote=tuple(body["pre_promote"]),
        old_primary=tuple(body["old_primary"]),
        record=NodeRecord(body["promised"], history, proof, record["marker"]),
    )


def role_of(local: Local) -> str:
    """The word for `pgr status`."""
    if local.witness:
        return WITNESS
    match local.server:
        case Server.PRIMARY:
            return "primary"
        case Server.PROMOTING:
            return "promoting"
        case Server.STOPPING:
            return "demoting" if local.epoch else "replica"
        case Server.STANDBY:
            return "replica"
        case _:
            return "starting" if local.server is Server.STARTING else "waiting"


def leader_says(view: View, me: str, members: Mapping[str, Any]) -> str:
    """On a follower: the leader's sentence, as it last told; empty: it told none, or this node leads."""
    known = members.get(view.leader) if view.leader != me else None
    return str(known["seen"].get("reason", "")) if known is not None else ""


def state_of(local: Local, facts: Facts, running: Step) -> str:
    """The word for what Postgres does."""
    if local.witness:
        return "voting"
    match running:
        case Step.CLONE:
            return "cloning"
        case Step.REWIND:
            return "rewinding"
        case Step.CREATE:
            return "creating"
        case _:
            pass
    if local.server is Server.DOWN and not local.clean:
        return NOT_FENCED
    if facts.problem and local.server in (Server.DOWN, Server.STARTING):
        return QUARANTINED
    if local.server is Server.STANDBY:
        return "streaming" if facts.streaming and local.upstream else "running"
    if local.server in (Server.PRIMARY, Server.PROMOTING):
        return "running"
    if local.data is not Data.READY:
        return "no data"
    return {Server.DOWN: "stopped", Server.STARTING: "starting", Server.STOPPING: "stopping"}[local.server]


def observation(
    view: View, local: Local, facts: Facts, running: Step, sentence: str, pgr_version: str
) -> dict[str, Any]:
    """The body of `node.observed`."""
    primary = local.server is Server.PRIMARY
    epoch = local.epoch if primary else _held_epoch(view.record, facts)
    timeline = next((e.timeline for e in reversed(view.record.history) if e.epoch == epoch), 0)
    state = state_of(local, facts, running)
    reason = facts.problem if state == QUARANTINED else facts.progress or sentence
    return {
        "role": role_of(local), "state": state, "epoch": epoch, "timeline": timeline,
        "lsn": facts.lsn, "replay_lsn": facts.replay_lsn, "epoch_of_upstream": local.upstream,
        "upstream_node": local.upstream_node if local.upstream else "",
        "sql_problem": facts.sql_problem, "config_problem": facts.config_problem,
        "slots": dict(facts.slots), "slot_problems": list(facts.slot_problems),
        "checkpointed": facts.checkpointed, "version": facts.version, "since": facts.since,
        "reason": reason, "pgr_version": pgr_version, "incarnation": view.incarnation,
        "proven": proven(view.record, facts), "pending": dict(facts.pending), "overrides": list(facts.overrides),
        "missing_hooks": list(facts.missing_hooks),
        "standbys_first": sorted(set(facts.pending) & set(FLOORED)), "reloaded": facts.reloaded,
        "config": view.cluster.config_index if view.cluster is not None else 0,
        "lag_s": facts.lag_s, "started": facts.started, "replayed_at": facts.replayed_at,
        "replay_paused": facts.replay_paused, "https": facts.https,
    }  # fmt: skip


def _held_epoch(record: NodeRecord, facts: Facts) -> int:
    """The newest epoch of which it has flushed a byte; -1: of none."""
    return max((e.epoch for e in record.history if e.start_lsn < facts.lsn), default=-1)


def proven(record: NodeRecord, facts: Facts) -> bool:
    """Has its copy replayed as far as it must have before it counts?"""
    return record.proof is None or Position(_held_epoch(record, facts), facts.replay_lsn) >= record.proof


def snapshot(
    view: View,
    local: Local,
    facts: Facts,
    members: Mapping[str, Mapping[str, Any]],
    timings: Timings,
    *,
    state: str,
    sentence: str,
    now_ns: int,
    scheduling: Mapping[str, str],
    pgr_version: str,
    own_tags: Mapping[str, Tag] | None = None,
) -> Snapshot:
    """Everything the surfaces render. ``members``: name -> {seen, age_ms}, as the leader last told. ``own_tags``: as
    this node was told; a load balancer is to see them also while there is no leader to put them into the log."""
    cluster = view.cluster or ClusterState()
    grant = cluster.grant
    holds = grant is not None and not grant.failed
    primary = Primary(grant.node, grant.term, grant.timeline, grant.opened) if grant is not None and holds else None
    group = SyncGroup(cluster.group.names, cluster.group.k)
    newest = max((int(m["seen"].get("lsn", 0)) for m in members.values()), default=0)
    parameters, out = clusterwide.parameters(cluster.config), tags.unseated(cluster)
    rows = tuple(
        _member(
            m, members.get(m.name), group, primary, newest, local.me, parameters, fenced=m.name in cluster.fenced,
            tagged=tags.of(cluster, m.name) if m.name != local.me or own_tags is None else own_tags,
            unseated=tags.keeps_out(cluster, m.name) if m.name in out else "",
        )
        for m in cluster.members
    )
    change = SyncGroup(cluster.change.new.names, cluster.change.new.k) if cluster.change is not None else None
    own = cluster.member(local.me)
    role = role_of(local)
    if own is not None and own.role == LEARNER and role == "replica":
        role = LEARNER
    degraded, retiming = degraded_words(cluster), timingview.retiming(cluster, rows)
    warnings = (
        *_warnings(cluster, rows, primary), *_overrides(members, primary), *_sql_problems(members),
        *_missing_hooks(members), *_config_problems(members),
        *_slot_problems(members), *filter(None, [timingview.warning(retiming)]),
    )  # fmt: skip
    paused = bool(cluster.setting(PAUSE))
    urgent = [text for text in (operating.PAUSED if paused else "", degraded) if text]
    return Snapshot(
        node=local.me,
        cluster_id=cluster.cluster_id,
        system_identifier=cluster.system_identifier,
        term=view.term,
        leader=view.leader,
        role=role,
        state=state,
        lease_until_ns=view.lease_until_ns if local.server is Server.PRIMARY and view.lease_term == local.epoch else 0,
        opened=local.gate_open,
        primary=primary,
        members=rows,
        sync_group=group,
        next_group=change,
        commit="async" if cluster.asynchronous else "quorum",
        profile=profile_of(cluster.pace.timings),
        timings=timings,
        unprotected=sum(m.votes for m in cluster.members) < 3 or group.k < 2,
        scheduling=dict(scheduling),
        warnings=(*urgent, *warnings),
        degraded=degraded,
        paused=paused,
        scheduled=operating.scheduled(cluster),
        restarting=operating.restarting(cluster),
        retiming=retiming,
        config=configview.document(cluster.config),
        explanation=sentence,
        history=tuple(_event(e, cluster) for e in cluster.history),
        pgr_version=pgr_version,
    )


def _member(
    member: LogMember,
    known: Mapping[str, Any] | None,
    group: SyncGroup,
    primary: Primary | None,
    newest: int,
    me: str,
    parameters: Mapping[str, str],
    *,
    fenced: bool,
    tagged: Mapping[str, Tag],
    unseated: str,
) -> Member:
    host, _, port = member.postgres.rpartition(":")
    seen = known["seen"] if known is not None else {}
    age_ms = int(known["age_ms"]) if known is not None else None
    fresh = member.name == me or (age_ms is not None and age_ms < STALE_AFTER_MS)
    lsn = int(seen.get("lsn", 0)) or None
    replayed = int(seen.get("replay_lsn", 0)) or None
    behind = max(0, newest - (replayed or lsn or 0)) if seen and (replayed or lsn) else None
    role, reason = str(seen.get("role", "")), str(seen.get("reason", ""))
    if member.role == LEARNER and role == "replica":
        role = LEARNER
    if role == "primary" and primary is not None and primary.name != member.name:
        # What it last said of itself is overtaken by the log: a table never shows two primaries.
        role, reason, fresh = "replica", f"was the primary before {primary.name}; not heard of since", False
    elif reason and not fresh:
        reason = f"not heard of; its last words: {reason}"
    return Member(
        name=member.name,
        incarnation=f"{member.incarnation & 0xFFFFFFFF:08x}",
        role=role,
        state=str(seen.get("state", "")) if fresh else "unreachable",
        timeline=int(seen.get("timeline", 0)),
        epoch=int(seen.get("epoch", -1)),
        lsn=lsn,
        replay_lsn=replayed,
        lag_bytes=0 if primary is not None and primary.name == member.name else behind,
        sync=group.mark(member.name, primary.name if primary is not None else ""),
        host=host.strip("[]"),
        pg_port=int(port or 0),
        http=member.http,
        raft=member.raft,
        version=str(seen.get("version", "")),
        pgr_version=str(seen.get("pgr_version", "")),
        since=str(seen.get("since", "")),
        reason=reason,
        age_ms=age_ms,
        connected=fresh,
        member=member.role,
        aim=member.aim if member.aim != member.role else "",
        fenced=fenced,
        pending_restart=bool(seen.get("pending")),
        lag_s=None if role == "primary" or not fresh else seen.get("lag_s"),
        tags=tagged,
        started=str(seen.get("started", "")),
        replayed_at=str(seen.get("replayed_at", "")),
        replay_paused=bool(seen.get("replay_paused")),
        https=bool(seen.get("https")),
        pending=_pending(seen.get("pending", {}), parameters, role == "primary"),
        pending_settings={
            name: {"old_value": now, "new_value": parameters.get(name, "")}
            for name, now in sorted(seen.get("pending", {}).items())
        },
        upstream=_through(str(seen.get("upstream_node", "")), primary) if fresh else "",
        unseated=unseated,
    )


def _through(upstream: str, primary: Primary | None) -> str:
    return upstream if primary is not None and upstream != primary.name else ""


def _pending(running: Mapping[str, str], parameters: Mapping[str, str], primary: bool) -> str:
    """What waits for a restart, and in which order."""
    words = [f"{name} is {now}, set to {parameters.get(name, 'its default')}" for name, now in sorted(running.items())]
    last = primary and any(name in FLOORED for name in running)
    return "; ".join(words) + (" (restart the standbys first)" if last else "")


def degraded_words(cluster: ClusterState) -> str:
    """Fewer nodes have a commit when it is acknowledged than the settings want; empty: as many."""
    wanted = tags.wanted_rule(cluster)
    group = cluster.wanted_group
    if group.asynchronous or group.k >= wanted.k:
        return ""
    who = ", ".join(group.names)
    text = f"degraded: {group.k} of {who} acknowledge{'s' if group.k == 1 else ''} a commit, and {wanted.k} are wanted"
    return text + ("" if group.k > 1 else f"; only {who} can be primary until the others are back")


def _overrides(members: Mapping[str, Mapping[str, Any]], primary: Primary | None) -> list[str]:
    seen = members.get(primary.name, {"seen": {}})["seen"] if primary is not None else {}
    found = seen.get("overrides", [])
    what = "their commits are acknowledged before the sync group has them"
    return [f"synchronous_commit is set lower: {', '.join(found)}; {what}"] if found else []


def _missing_hooks(members: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """By node: none of them can do what it is told to do there, and pre_promote says no."""
    found = ((name, list(m["seen"].get("missing_hooks", []))) for name, m in sorted(members.items()))
    return [f"{name} can't execute {', '.join(missing)}" for name, missing in found if missing]


def _slot_problems(members: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = ((name, list(m["seen"].get("slot_problems", []))) for name, m in sorted(members.items()))
    return [f"slot on {name}: {text}" for name, texts in found for text in texts]


def _config_problems(members: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = {name: str(m["seen"].get("config_problem", "")) for name, m in members.items()}
    return [f"{name} goes on with its old configuration: {text}" for name, text in sorted(found.items()) if text]


def _sql_problems(members: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = {name: str(m["seen"].get("sql_problem", "")) for name, m in members.items()}
    return [f"pg_replica on {name}: {text}" for name, text in sorted(found.items()) if text]


def _warnings(cluster: ClusterState, rows: tuple[Member, ...], primary: Primary | None) -> list[str]:
    found: list[str] = []
    voters = sum(m.votes for m in cluster.members)
    if voters == 1:
        what = "node" if len(cluster.members) == 1 else "voter"
        found.append(f"a single {what}: nothing takes over when it fails")
    elif voters and voters % 2 == 0:
        found.append(f"{voters} voters survive no more failures than {voters - 1} would")
    if cluster.asynchronous:
        found.append("asynchronous: a failover may lose acknowledged commits")
    missing = [r.name for r in rows if r.state == "unreachable"]
    if missing:
        found.append(f"unreachable: {', '.join(missing)}")
    if cluster.fenced:
        found.append(f"fenced, Postgres is kept down until `pgr unfence`: {', '.join(cluster.fenced)}")
    found += _tag_warnings(cluster, rows, primary)
    leaving = [m.name for m in cluster.members if m.aim.startswith(GONE) and primary and m.name == primary.name]
    if leaving:
        found.append(f"{leaving[0]} is to be removed and has become the primary since: it goes after `pgr switchover`")
    if cluster.group.k > 1 and primary is not None:
        group = [r for r in rows if r.name in cluster.group.names]
        live = [r for r in group if r.state == "streaming" or r.name == primary.name]
        if len(live) < cluster.group.k:
            others = ", ".join(sorted({*cluster.group.names} - {r.name for r in live}))
            needed = f"writes wait: {cluster.group.k} of the sync group must flush them"
            found.append(f"{needed}, {len(live)} can, not {others}")
        elif len(live) == cluster.group.k:
            found.append("no spare standby: writes wait if one more node is lost")
    return found


def _tag_warnings(cluster: ClusterState, rows: tuple[Member, ...], primary: Primary | None) -> list[str]:
    found: list[str] = []
    leads = primary.name if primary is not None else ""
    never = [m.name for m in cluster.members if m.role == VOTER and not tags.priority_of(cluster, m.name)]
    if leads in never:
        found.append(f"{leads} is tagged nofailover and is the primary: it stays so until it is moved or lost")
    able = [n for n in cluster.wanted_group.names if n not in never]
    if never and leads and not [n for n in able if n != leads]:
        found.append("nothing takes over when the primary is lost: every other node with a seat is tagged nofailover")
    sitting = [n for n in cluster.wanted_group.names if n != leads] if cluster.commit_mode != "async" else []
    for tag in (tags.NOSYNC, tags.REPLICATE_FROM, tags.APPLY_DELAY):
        unwilling = [n for n in sitting if tags.keeps_out(cluster, n) == tag]
        if unwilling:
            needed = "without it too few would have a second copy"
            found.append(f"{', '.join(unwilling)} is tagged {tag} and keeps its seat in the sync group: {needed}")
    return [*found, *(_upstream_warnings(cluster, rows, leads) if leads else [])]


def _upstream_warnings(cluster: ClusterState, rows: tuple[Member, ...], leads: str) -> list[str]:
    """Tags that say from whom to stream and do not do it."""
    found: list[str] = []
    for row in rows:
        wish = str(tags.of(cluster, row.name).get(tags.REPLICATE_FROM, ""))
        if not wish or leads in (wish, row.name):
            continue
        what = f"{row.name} is tagged replicate_from {wish}"
        other = cluster.member(wish)
        if other is None or not other.has_data:
            found.append(f"{what}, which is no standby of this cluster: it follows the primary")
        elif not tags.named_upstream(cluster, row.name) and row.aim == "":
            found.append(f"{what}, and the tags lead round in a circle: it follows the primary")
        elif row.state == "streaming" and row.upstream == "" and upstreams.upstream(cluster, row.name):
            found.append(f"{what}, which does not stream or came back just now: it follows the primary meanwhile")
    return found


def began(cluster: ClusterState, term: int) -> int | None:
    """Where the WAL of this epoch begins, by the newest ancestry that has it; None: it is in none (any more)."""
    found = (e.start_lsn for g in reversed(cluster.grants) for e in g.ancestry if e.epoch == term)
    return next(found, None)


def _event(event: Any, cluster: ClusterState) -> HistoryEvent:
    fields = json.loads(event.fields)
    grant = next((g for g in cluster.grants if g.term == event.term), None)
    start = began(cluster, event.term) if grant is not None else None
    return HistoryEvent(
        at=event.at,
        kind=event.kind,
        term=event.term,
        timeline=grant.timeline if grant is not None else 0,
        node=event.node,
        reason=event.text,
        lsn=start,
        gap_ms=fields.get("gap_ms"),
        bytes_salvaged=int(fields.get("bytes_salvaged", 0)),
        details={name: value for name, value in fields.items() if name not in ("gap_ms", "bytes_salvaged")},
    )


def lease_left_ms(view: View, now_ns: int) -> int:
    return max(0, (view.lease_until_ns - now_ns) // MS)
