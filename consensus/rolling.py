"""Restarts of Postgres, one node at a time: whose turn is next, and when the rest is left as it is. Pure.

The order is that of interfaces.md: standbys first, each back and streaming before the next, the primary last. It hands
over to a restarted standby (the shorter gap), or is restarted in place if only it was named or nobody can take over:
its Postgres is stopped cleanly, started as a standby like every other, and promoted in a new term. That order is also
the one that parameters need which a standby must not have lower than its primary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from consensus.changes import Facts, Proposal, spare
from consensus.cluster import ClusterState
from consensus.operations import Rolling

PATIENCE_MS = 30_000
"""So long for the others to stream before the next node is stopped."""
QUARANTINED, STOPPED, CLONING = "quarantined", "stopped", "cloning"
"""States of a node's Postgres, as it says itself (supervisor/observe.py)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the leader knows beyond `Facts`."""

    primary: str
    """Itself, with an open grant; empty: there is none (it is a caretaker, or not open yet)."""
    waited_ms: int
    """Since it has known of this turn, or of the last one's end."""
    states: Mapping[str, tuple[str, str]]
    """State and reason of each node, as it last said."""
    successor: str
    """Who could take over from this primary now; empty: nobody."""


def next_step(state: ClusterState, facts: Facts, seen: Seen) -> Proposal | None:
    """``state``: as of the last entry. None: nothing is to be restarted, or something has to happen first."""
    rolling = state.ops.restarting
    if rolling is None:
        return None
    why = _failed(state, rolling, facts, seen)
    if why:
        return halt(rolling, why)
    return _next_turn(state, rolling, facts, seen) if not rolling.turn else None


def halt(rolling: Rolling, why: str) -> Proposal:
    return Proposal("halt/1", {"index": rolling.index, "reason": why})


def _failed(state: ClusterState, rolling: Rolling, facts: Facts, seen: Seen) -> str:
    """Why it stops; empty: it goes on."""
    gone = [name for name in rolling.todo if state.member(name) is None]
    if gone:
        return f"{gone[0]} is no member any more"
    if not rolling.turn:
        return _stuck(state, rolling, facts, seen) if seen.waited_ms > PATIENCE_MS else ""
    what, reason = seen.states.get(rolling.turn, ("", ""))
    if what == QUARANTINED:
        return f"{rolling.turn} does not start: {reason}"
    if what == CLONING:
        return f"{rolling.turn} did not start, and is copied again"
    in_place = rolling.turn_in_place
    if in_place and in_place not in facts.connected:
        return f"{in_place} was lost while it was being restarted in place"
    limit_s = rolling.timeout_s
    if in_place:  # nobody can write meanwhile
        limit_s = min(limit_s, int(state.setting("primary_start_timeout")))
    if seen.waited_ms > limit_s * 1000:
        return f"{rolling.turn} was not back after {limit_s} s ({reason or what or 'it is silent'})"
    return ""


def _stuck(state: ClusterState, rolling: Rolling, facts: Facts, seen: Seen) -> str:
    """Nothing has moved for a while: what is waited for."""
    return _not_now(state, rolling, facts, seen) or "it does not go on"


def _next_turn(state: ClusterState, rolling: Rolling, facts: Facts, seen: Seen) -> Proposal | None:
    if _not_now(state, rolling, facts, seen):
        return None
    name = _next(rolling, seen.primary)
    to = ""
    if name == seen.primary:
        to = name if rolling.in_place or not seen.successor else seen.successor
    return Proposal("turn/1", {"index": rolling.index, "node": name, "to": to})


def _next(rolling: Rolling, primary: str) -> str:
    return next((name for name in rolling.todo if name != primary), primary)


def _not_now(state: ClusterState, rolling: Rolling, facts: Facts, seen: Seen) -> str:
    """Why the next one is not stopped yet; empty: it is."""
    if not seen.primary:  # then only what is down anyway is started
        name = _next(rolling, "")
        return "" if seen.states.get(name, ("", ""))[0] == STOPPED else "there is no primary"
    away = [name for name in rolling.done if name != seen.primary and name not in facts.copied]
    if away:
        return f"{away[0]} does not stream again"
    member = state.member(_next(rolling, seen.primary))
    if rolling.force or member is None or member.name == seen.primary:
        return ""
    refusal = spare(state, facts, member)
    return refusal.reason if refusal is not None else ""
