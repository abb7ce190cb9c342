"""What `pg_replica` reads: the documents of one snapshot. Pure."""

from __future__ import annotations

from typing import Any

from consensus.cluster import ClusterState
from supervisor import configview, explain, render, status
from supervisor.explain import Heard
from supervisor.sqlcatalog import CONFIG, HISTORY, STATUS
from supervisor.status import Snapshot

FORMAT = 1


def documents(cluster: ClusterState | None, seen: Snapshot, told: Heard, now_ns: int) -> dict[str, dict[str, Any]]:
    """File name -> content, but for the instant, which the writer adds. Sizes: about 1 kB a member; the history up to
    200 events. ``seen``: the snapshot of now."""
    found = explain.findings(cluster, seen, told)
    whole = status.to_json(seen, now_ns)
    return {
        # The status last: it tells how old all of them are.
        HISTORY: {"format": FORMAT, "history": whole["history"]},
        CONFIG: {"format": FORMAT, "settings": configview.rows(cluster, seen.timings) if cluster is not None else []},
        STATUS: {
            "format": FORMAT,
            "node": seen.node,
            "members": whole["members"],
            "primary": _primary(seen) if found.state == explain.OPEN else None,
            "explain": render.explanation(explain.to_json(found)).rstrip("\n"),
        },
    }


def _primary(seen: Snapshot) -> dict[str, Any] | None:
    """The one that is open to clients; where it is this node, its gate has to be open as well."""
    grant = seen.primary
    row = seen.member(grant.name) if grant is not None else None
    if grant is None or row is None or (grant.name == seen.node and not seen.opened):
        return None
    return {
        "name": grant.name, "term": grant.term, "timeline": grant.timeline, "host": row.host, "port": row.pg_port,
    }  # fmt: skip


def urgent(seen: Snapshot) -> tuple[object, ...]:
    """What is written at once when it changes; everything else within a second."""
    return seen.role, seen.state, seen.opened, seen.leader, seen.primary, seen.term, len(seen.history), seen.paused
