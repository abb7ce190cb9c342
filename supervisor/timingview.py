"""A change of the timings under way, as the surfaces show it. Pure; who decides is consensus/retiming.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from consensus.cluster import ClusterState
from consensus.retiming import profile_of
from supervisor.status import Member


def retiming(cluster: ClusterState, rows: Iterable[Member]) -> dict[str, Any] | None:
    """`Snapshot.retiming`. A node that does not lead can't know whose log has what, but only a voter that is away keeps
    the first step waiting for long."""
    pace = cluster.pace
    if pace.change is None:
        return None
    voters = {member.name for member in cluster.members if member.votes}
    away = [row.name for row in rows if row.name in voters and not row.connected]
    return {
        "from": profile_of(pace.timings), "to": profile_of(pace.change.new), "switched": pace.change.switched,
        "waits_for": [] if pace.change.switched else away,
    }  # fmt: skip


def line(change: Mapping[str, Any] | None) -> str:
    """For the page of `pgr status`; empty: the timings do not change."""
    if change is None:
        return ""
    step = "the last leases of the old length run out" if change["switched"] else "every voter is told"
    return f"timings: from {change['from']} to {change['to']}: {step}"


def warning(change: Mapping[str, Any] | None) -> str:
    """Empty: nothing for a person to do."""
    if change is None or not change["waits_for"]:
        return ""
    names = ", ".join(change["waits_for"])
    return (
        f"the change of the timings from {change['from']} to {change['to']} waits for {names}: every voter has to hear "
        "of it; start or remove who is away, or set the timings back"
    )
