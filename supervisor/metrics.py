"""Prometheus text (exposition format 0.0.4) of a Snapshot. Pure.

The catalogue is a table: name, type, help and a function that yields ``(labels, value)``. A value that is not known is
left out, never shown as 0. REFERENCE.md is generated from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from consensus.tags import priority
from supervisor.status import Member, Snapshot, age_ms, lease_left_ms, receive_lag_bytes, serves_writes

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Value = float | int | bool | None
Samples = Iterable[tuple[dict[str, str], Value]]


class Metric(NamedTuple):
    name: str
    type: str
    help: str
    samples: Callable[[Snapshot, int], Samples]


def _one(value: Callable[[Snapshot], Value]) -> Callable[[Snapshot, int], Samples]:
    return lambda s, _: [({}, value(s))]


def _now(value: Callable[[Snapshot, int], Value]) -> Callable[[Snapshot, int], Samples]:
    return lambda s, now_ns: [({}, value(s, now_ns))]


def _each(value: Callable[[Member], Value]) -> Callable[[Snapshot, int], Samples]:
    return lambda s, _: [({"member": m.name}, value(m)) for m in s.members]


def _info(s: Snapshot, _: int) -> Samples:
    labels = {"node": s.node, "cluster_id": s.cluster_id, "system_identifier": s.system_identifier}
    labels |= {"version": s.pgr_version, "postgres_version": s.own.version, "profile": s.profile, "commit": s.commit}
    return [(labels, 1)]


def _role(s: Snapshot, _: int) -> Samples:
    return [({"role": s.role, "state": s.state}, 1)]


def _member_role(s: Snapshot, _: int) -> Samples:
    return [({"member": m.name, "role": m.role or "unknown", "state": m.state or "unknown"}, 1) for m in s.members]


def _receive_lag(s: Snapshot, _: int) -> Samples:
    return [({"member": m.name}, receive_lag_bytes(s, m)) for m in s.members]


def _member_age(s: Snapshot, now_ns: int) -> Samples:
    ages = [(m.name, age_ms(s, m, now_ns)) for m in s.members]
    return [({"member": name}, None if age is None else age / 1000) for name, age in ages]


def _changes(s: Snapshot, _: int) -> Samples:
    return [({"kind": kind}, n) for kind, n in sorted(Counter(e.kind for e in s.history).items())]


def _last_gap(s: Snapshot) -> float | None:
    gaps = [e.gap_ms for e in s.history if e.gap_ms is not None]
    return gaps[-1] / 1000 if gaps else None


def _duration(name: str) -> Callable[[Snapshot, int], Samples]:
    return _one(lambda s: getattr(s.timings, name) / 1000)


METRICS: tuple[Metric, ...] = (
    Metric("pgr_info", "gauge", "Names and versions as labels, always 1.", _info),
    Metric("pgr_role", "gauge", "Role and state of this node as labels, always 1.", _role),
    Metric("pgr_primary", "gauge", "1 if writes may be sent here: primary, gate open, lease live.",
           _now(serves_writes)),
    Metric("pgr_replica", "gauge", "1 if this node is a running replica.",
           _one(lambda s: s.role in ("replica", "learner") and s.state in ("running", "streaming"))),
    Metric("pgr_postgres_running", "gauge", "1 if Postgres runs here.",
           _one(lambda s: s.state in ("running", "streaming"))),
    Metric("pgr_gate_open", "gauge", "1 if the gate of this node's Postgres is open.", _one(lambda s: s.opened)),
    Metric("pgr_lease_left_seconds", "gauge", "What is left of this node's lease, 0 without one.",
           _now(lambda s, n: lease_left_ms(s, n) / 1000)),
    Metric("pgr_term", "gauge", "Raft term; it only grows.", _one(lambda s: s.term)),
    Metric("pgr_raft_leader", "gauge", "1 if this node leads the Raft group.", _one(lambda s: s.leader == s.node)),
    Metric("pgr_has_leader", "gauge", "1 if this node knows a Raft leader.", _one(lambda s: bool(s.leader))),
    Metric("pgr_has_primary", "gauge", "1 if a primary is appointed and opened.",
           _one(lambda s: bool(s.primary and s.primary.opened))),
    Metric("pgr_timeline", "gauge", "Timeline of this node's WAL.", _one(lambda s: s.own.timeline or None)),
    Metric("pgr_members", "gauge", "Members of the cluster.", _one(lambda s: len(s.members))),
    Metric("pgr_sync_group_members", "gauge", "Members of the sync group, the primary included.",
           _one(lambda s: len(s.sync_group.members))),
    Metric("pgr_sync_group_k", "gauge", "How many of them must have a commit before it is acknowledged.",
           _one(lambda s: s.sync_group.k)),
    Metric("pgr_degraded", "gauge", "1 if fewer nodes than wanted have a commit when it is acknowledged.",
           _one(lambda s: bool(s.degraded))),
    Metric("pgr_unprotected", "gauge", "1 if one more failure may cost writes or the quorum.",
           _one(lambda s: s.unprotected)),
    Metric("pgr_paused", "gauge", "1 if no automatic action is taken.", _one(lambda s: s.paused)),
    Metric("pgr_scheduled", "gauge", "1 if a switchover or a restart is scheduled.", _one(lambda s: bool(s.scheduled))),
    Metric("pgr_restarting", "gauge", "1 if a restart of one or more nodes is under way.",
           _one(lambda s: bool(s.restarting))),
    Metric("pgr_retiming", "gauge", "1 if a change of the timings is under way.", _one(lambda s: bool(s.retiming))),
    Metric("pgr_pending_restart", "gauge", "1 if a setting waits for a restart of this node's Postgres.",
           _one(lambda s: s.own.pending_restart)),
    Metric("pgr_priority", "gauge", "Tag `priority` of this node; 0: it never becomes primary.",
           _one(lambda s: priority(s.own.tags))),
    Metric("pgr_replay_paused", "gauge", "1 if this standby's replay is paused.", _one(lambda s: s.own.replay_paused)),
    Metric("pgr_warnings", "gauge", "Warnings that `pgr status` shows.", _one(lambda s: len(s.warnings))),
    Metric("pgr_member_role", "gauge", "Role and state of each member as labels, always 1.", _member_role),
    Metric("pgr_member_connected", "gauge", "1 if the member is heard of.", _each(lambda m: m.connected)),
    Metric("pgr_member_sync", "gauge", "1 if the member counts towards the commit quorum.",
           _each(lambda m: bool(m.sync))),
    Metric("pgr_member_wal_position_bytes", "gauge", "End of the WAL the member has flushed.",
           _each(lambda m: m.lsn)),
    Metric("pgr_member_replay_position_bytes", "gauge", "End of the WAL the member has replayed.",
           _each(lambda m: m.replay_lsn)),
    Metric("pgr_member_receive_lag_bytes", "gauge", "WAL of the primary that the member has not flushed.",
           _receive_lag),
    Metric("pgr_member_replay_lag_bytes", "gauge", "WAL of the primary that the member has not replayed.",
           _each(lambda m: m.lag_bytes)),
    Metric("pgr_member_replay_lag_seconds", "gauge", "The same in time.", _each(lambda m: m.lag_s)),
    Metric("pgr_member_observation_age_seconds", "gauge", "Age of what this node knows of the member.",
           _member_age),
    Metric("pgr_history_events", "gauge", "Events of the history that is kept (the newest 200), by kind.", _changes),
    Metric("pgr_last_write_gap_seconds", "gauge", "Write gap of the newest change of primary that measured one.",
           _one(_last_gap)),
    Metric("pgr_salvaged_bytes", "gauge", "WAL of former primaries that the kept history says was saved to salvage.",
           _one(lambda s: sum(e.bytes_salvaged for e in s.history))),
    Metric("pgr_lease_seconds", "gauge", "Length of a lease.", _duration("lease_ms")),
    Metric("pgr_kill_bound_seconds", "gauge", "Bound from lease end until Postgres is gone.",
           _duration("kill_bound_ms")),
    Metric("pgr_election_seconds", "gauge", "How long an acknowledged heartbeat binds a vote.",
           _duration("election_ms")),
)  # fmt: skip


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(snapshot: Snapshot, now_ns: int) -> str:
    """The page a scrape gets; metrics without a known value do not appear."""
    lines: list[str] = []
    for metric in METRICS:
        rows = [(labels, value) for labels, value in metric.samples(snapshot, now_ns) if value is not None]
        if rows:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.type}"]
        for labels, value in rows:
            text = ",".join(f'{name}="{_label(content)}"' for name, content in labels.items())
            lines.append(f"{metric.name}{'{' + text + '}' if text else ''} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float | int | bool) -> str:
    return str(int(value)) if isinstance(value, bool | int) else repr(value)
