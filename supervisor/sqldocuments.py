"""What `pg_replica` reads: the documents of one snapshot. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from consensus.cluster import ClusterState
from supervisor import configview, explain, render, status
from supervisor.explain import Heard
from supervisor.sqlcatalog import CONFIG, HISTORY, STATUS
from supervisor.status import Snapshot

FORMAT = 1


class Document(NamedTuple):
    """One file: its name, its content once that is asked for, and what the content rests on: the same object, the same
    content. None: it is another each time."""

    name: str
    content: Callable[[], dict[str, Any]]
    source: object = None


def documents(cluster: ClusterState | None, seen: Snapshot, told: Heard, now_ns: int) -> tuple[Document, ...]:
    """Sizes: about 1 kB a member, the history up to 200 events. ``seen``: the snapshot of ``now_ns``. The status is the
    last, as it tells how old all of them are; the writer adds the instant."""

    def history() -> dict[str, Any]:
        return {"format": FORMAT, "history": [status.event_json(event) for event in seen.history]}

    def config() -> dict[str, Any]:
        return {"format": FORMAT, "settings": configview.rows(cluster, seen.timings) if cluster is not None else []}

    return (
        Document(HISTORY, history, cluster),
        Document(CONFIG, config, cluster),
        Document(STATUS, lambda: _status(cluster, seen, told, now_ns)),
    )


def _status(cluster: ClusterState | None, seen: Snapshot, told: Heard, now_ns: int) -> dict[str, Any]:
    found = explain.findings(cluster, seen, told)
    return {
        "format": FORMAT,
        "node": seen.node,
        "members": status.member_documents(seen, now_ns),
        "primary": _primary(seen) if found.state == explain.OPEN else None,
        "explain": render.explanation(explain.to_json(found)).rstrip("\n"),
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
