"""What the log keeps to be told to people: bounded, and what concerns primaries is not pushed out by the rest. Pure."""

from __future__ import annotations

from typing import NamedTuple

HISTORY_KEPT_MAX = 200
"""Of what is told of primaries, and as many of everything else."""
OF_PRIMARIES = frozenset({
    "founding", "initialized", "promoted", "opened", "closed", "failed", "vetoed", "switchover", "failover", "gap",
    "salvaged",
})  # fmt: skip


class HistoryEvent(NamedTuple):
    """One entry. ``at``: ISO 8601 UTC by the proposer's clock, for people only."""

    at: str
    kind: str
    term: int
    node: str
    text: str
    fields: str
    """Canonical JSON."""


def remembered(history: tuple[HistoryEvent, ...], event: HistoryEvent) -> tuple[HistoryEvent, ...]:
    """With one more, and without the oldest of its sort if there are too many."""
    alike = [e for e in history if (e.kind in OF_PRIMARIES) == (event.kind in OF_PRIMARIES)]
    oldest = alike[0] if len(alike) >= HISTORY_KEPT_MAX else None
    return (*(e for e in history if e is not oldest), event)
