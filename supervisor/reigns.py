"""Every change of primary, as `pgr history` tells it: who, why, after what, how long no write was possible. Pure.

The write gap is measured by the new primary, on one clock (CLOCK_BOOTTIME of its host). It ends when the gate is open.
It begins when the old primary could acknowledge for the last time, as far as that can be known:

* it was primary itself before: when its Postgres began to stop, or was verified to be gone;
* else when its Raft process last heard the old primary as the leader, less what the old one said, in the log, to have
  been closed by then (``closed_ms``, of its own clock: since it began to stop, or since it was verified to be gone).

So it is too long by up to one heartbeat where the old primary died without a word, and too short by the delay of one
message where it said goodbye. What clients see is more: they have to notice and to connect again. It is not known where
nobody was there to measure: the new primary was started after the loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consensus.cluster import ClusterState
from fencing.lease import MS
from supervisor.status import HistoryEvent

ASKED, OVER = ("switchover", "failover", "fenced"), ("closed", "failed", "recovered")
"""Kinds of events: what a person asked for, and what says that a primary is one no more."""


def gap_ms(
    cluster: ClusterState, term: int, closed: tuple[int, int], heard: tuple[int, int], now_ns: int
) -> int | None:
    """None: not known, or there was no open primary before the grant of ``term``.

    ``closed``: epoch and instant, of this node's own Postgres; ``heard``: term and instant, of the old primary.
    """
    if closed[0] == term:  # started again in place
        return max(0, now_ns - closed[1]) // MS
    before = [g for g in cluster.grants if g.opened and g.term < term]
    if not before:
        return None
    last = before[-1]
    if closed[0] == last.term:
        return max(0, now_ns - closed[1]) // MS
    if heard[0] != last.term:
        return None
    told = [e.fields for e in cluster.history if e.term == last.term and e.kind in ("closed", "failed")]
    closed_ms = int(json.loads(told[-1]).get("closed_ms", 0)) if told else 0
    return max(0, now_ns - heard[1]) // MS + closed_ms


def gap_event(term: int, node: str, gap: int) -> dict[str, Any]:
    """The body of the `event/1`; the caller adds the time."""
    text = f"takes writes: none were possible for {gap} ms"
    return {"kind": "gap", "term": term, "node": node, "text": text, "fields": {"gap_ms": gap}}


@dataclass(frozen=True, slots=True)
class Reign:
    """One primary, from its grant on."""

    at: str
    """When it was open; if it never was, when it was chosen."""
    node: str
    term: int
    timeline: int
    opened: bool
    why: str
    """Why this node: the sentence of the decision."""
    before: tuple[str, ...]
    """What ended the one before, or failed meanwhile."""
    gap_ms: int | None
    salvaged: tuple[str, ...]
    """WAL that was saved before a rewind to this primary, each with the command that shows it."""
    bytes_salvaged: int


def reigns(events: Sequence[HistoryEvent]) -> list[Reign]:
    """Oldest first. ``events``: of the log, in its order."""
    begun = [i for i, e in enumerate(events) if e.kind == "promoted"]
    found = []
    for n, i in enumerate(begun):
        grant = events[i]
        since = begun[n - 1] + 1 if n else 0
        mine = [e for e in events[i + 1 :] if e.term == grant.term]
        opened = next((e for e in mine if e.kind == "opened"), None)
        saved = [e for e in mine if e.kind == "salvaged"]
        found.append(Reign(
            (opened or grant).at, grant.node, grant.term, grant.timeline, opened is not None, grant.reason,
            ending(events[since:i], events[since - 1].node, events[since - 1].term) if n else _first(events[:i]),
            next((e.gap_ms for e in mine if e.gap_ms is not None), None),
            tuple(f"{e.node} {e.reason}" for e in saved), sum(e.bytes_salvaged for e in saved),
        ))  # fmt: skip
    return found


def ending(events: Sequence[HistoryEvent], last: str, term: int, *, dated: bool = False) -> tuple[str, ...]:
    """What ended the reign of ``last`` in ``term``, and what failed meanwhile. ``events``: from its grant to the next.

    What was asked for may be long over and have come to nothing, so alone it does not say why another one came.
    """
    ours = [e for e in events if e.kind in (*ASKED, *OVER) and (e.kind != "fenced" or e.node == last)]
    over = any(e.kind in OVER and (e.term == term or e.kind == "recovered") for e in ours)
    lost = f"{last}, primary of term {term}, was lost: nothing in the log says that it ended"
    told = [_line(e, dated=dated) for e in ours] + [lost] * (not over)
    return (*told, *(_line(e, dated=dated) for e in events if e.kind == "vetoed"))


def _first(events: Sequence[HistoryEvent]) -> tuple[str, ...]:
    """Before the first grant that is remembered: older ones may be forgotten, so nobody is said to be lost."""
    return tuple(_line(e, dated=False) for e in events if e.kind in (*ASKED, *OVER, "vetoed"))


def _line(event: HistoryEvent, *, dated: bool) -> str:
    words = (f"{event.kind}:", event.node, event.reason, f"({event.at})" if dated else "")
    return " ".join(word for word in words if word)


def page(events: Sequence[HistoryEvent]) -> str:
    """The page of ``pgr history``: a line for each change of primary and below it why; newest last."""
    found = reigns(events)
    if not found:
        return "nobody has been primary yet\n"
    blocks = []
    for r in found:
        gap = "" if r.gap_ms is None else f"  write gap {r.gap_ms} ms"
        lines = [f"{r.at}  {r.node}  term {r.term}  timeline {r.timeline}{gap}" + ("" if r.opened else "  never open")]
        lines += [f"  why: {r.why}"] * bool(r.why)
        lines += [f"  before: {line}" for line in r.before]
        lines += [f"  salvage: {line}" for line in r.salvaged]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)
