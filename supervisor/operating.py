"""Pause, restarts, reloads and the schedule: what the surfaces show of them, and when what was asked for is done. Pure.

The leader decides (consensus/operate.py); here is what a node makes of what the log and the members then say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from consensus.cluster import ClusterState
from consensus.hold import PAUSE
from supervisor import timingview
from supervisor.errors import PgrError, TryAgainError
from supervisor.status import Member, Snapshot

ACTIONS = ("pause", "resume", "restart", "reload", "schedule.cancel")
PAUSED = "paused: no automatic failover, restart or copy until `pgr resume`"
RUNS = ("running", "streaming")


def scheduled(cluster: ClusterState) -> dict[str, Any] | None:
    """`Snapshot.scheduled`."""
    made = cluster.ops.scheduled
    if made is None:
        return None
    asked = json.loads(made.request)
    return {
        "what": made.what, "at": made.at, "to": str(asked.get("to") or ""), "nodes": list(asked.get("nodes") or ()),
        "pending": bool(asked.get("pending")), "by": made.by,
    }  # fmt: skip


def restarting(cluster: ClusterState) -> dict[str, Any] | None:
    """`Snapshot.restarting`."""
    running = cluster.ops.restarting
    if running is None:
        return None
    left = [name for name in running.todo if name != running.turn]
    return {"now": running.turn, "done": list(running.done), "left": left, "by": running.by}


def urgent(snapshot: Snapshot) -> tuple[str, ...]:
    """What people should see whatever they ask for."""
    return tuple(text for text in (PAUSED if snapshot.paused else "", snapshot.degraded) if text)


def lines(snapshot: Snapshot) -> list[str]:
    """For the page of `pgr status`: what is scheduled and what is under way."""
    found = [text for text in (timingview.line(snapshot.retiming),) if text]
    if snapshot.scheduled is not None:
        found.append(f"scheduled: {plan_words(snapshot.scheduled)}")
    return [*found, under_way(snapshot)] if snapshot.restarting is not None else found


def under_way(snapshot: Snapshot) -> str:
    """``restarting: b now; done: c; left: a``; empty: nothing is."""
    running = snapshot.restarting
    if running is None:
        return ""
    now = f"{running['now']} now" if running["now"] else "waiting"
    rest = [f"{word}: {', '.join(running[word])}" for word in ("done", "left") if running[word]]
    return f"restarting: {'; '.join([now, *rest])}"


def plan_words(plan: Mapping[str, Any]) -> str:
    """``switchover to b at 2030-01-31T02:00:00Z (by ops@host)``."""
    whom = f" to {plan['to']}" if plan["to"] else ""
    if plan["what"] == "restart":
        whom = f" of {', '.join(plan['nodes']) or 'all'}" + (", where pending" if plan["pending"] else "")
    return f"{plan['what']}{whom} at {plan['at']}" + (f" (by {plan['by']})" if plan["by"] else "")


def accepted(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """What of the leader's answer is kept until it is done."""
    return {k: v for k, v in body.items() if k not in ("ok", "term")}


def done(
    name: str, asked: Mapping[str, Any], said: Mapping[str, Any], cluster: ClusterState, *, seen: Snapshot,
    told: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any] | PgrError | None:  # fmt: skip
    """The result of an action, or why there is none; None: it goes on. ``asked``: the request; ``said``: `accepted`;
    ``told``: what the members last said of themselves (`raft.members`)."""
    match name:
        case "pause" | "resume":
            waits = seen.members if asked.get("wait") else ()
            behind = _behind(waits, seen.node, int(said["index"]), told)
            return None if behind else _paused(name == "pause", said, cluster)
        case "restart" if "scheduled" not in said:
            return _restarted(said, cluster)
        case "reload":
            return _reloaded(said, cluster, seen, told)
        case "schedule.cancel":
            return {"cancelled": said["cancelled"]}
        case _:  # a restart or a switchover that was scheduled
            return _scheduled(said, cluster)


def _behind(
    members: Iterable[Member], me: str, index: int, told: Mapping[str, Mapping[str, Any]]
) -> list[str]:  # fmt: skip
    """Who is up and has not told that it has the settings of ``index``."""
    others = [m.name for m in members if m.connected and m.name != me]
    return [n for n in others if int(told.get(n, {}).get("seen", {}).get("config", 0)) < index]


def _paused(on: bool, said: Mapping[str, Any], cluster: ClusterState) -> dict[str, Any] | PgrError | None:
    """Done when the log here has it."""
    index, after = int(said["index"]), int(said["after"])
    if cluster.config_index < index:
        return None
    if bool(cluster.setting(PAUSE)) is not on:
        return TryAgainError("another request has changed it since", "look at `pgr status`")
    return {"paused": on, "changed": index != after}


def _restarted(said: Mapping[str, Any], cluster: ClusterState) -> dict[str, Any] | PgrError | None:
    rolling, index = cluster.ops.rolling, int(said["index"])
    if not index:
        return {"restarted": []}
    if rolling is None or rolling.index < index:
        return None
    if rolling.index > index:
        return TryAgainError("another restart has begun since", "look at `pgr history`")
    if rolling.halted:
        back = f"restarted: {', '.join(rolling.done) or 'none'}; left as they are: {', '.join(rolling.todo)}"
        hint = "see `pgr status` and the log of that node; then ask for the rest again"
        return TryAgainError(f"the restart stops: {rolling.halted}; {back}", hint)
    return None if rolling.under_way else {"restarted": list(rolling.done)}


def _reloaded(
    said: Mapping[str, Any], cluster: ClusterState, seen: Snapshot, told: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Done when everybody whose Postgres runs has looked again. Of the others: why not."""
    index = int(said["index"])
    if cluster.ops.reload.index < index:
        return None
    nodes: dict[str, str] = {}
    for name in said["nodes"]:
        row = seen.member(name)
        known = told.get(name, {}).get("seen", {})
        if row is None or row.state not in RUNS:
            nodes[name] = f"not reloaded: it is {row.state if row is not None and row.state else 'silent'}"
        elif int(known.get("reloaded", 0)) < index:
            return None
        else:
            nodes[name] = f"waits for a restart: {row.pending}" if row.pending else ""
    return {"nodes": nodes}


def _scheduled(said: Mapping[str, Any], cluster: ClusterState) -> dict[str, Any] | None:
    """Done when the log here has it: it may have been carried out or cancelled since."""
    made = cluster.ops.scheduled
    here = made is not None and made.index >= int(said["index"])
    return {"scheduled": said["scheduled"], "at": said["at"]} if here else None
