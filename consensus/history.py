"""What the log keeps to be told to people: bounded, and what concerns primaries is not pushed out by the rest. Pure."""

from __future__ import annotations

from typing import NamedTuple

HISTORY_KEPT_MAX = 200
"""Of what is told of primaries, and as many of everything else."""
CHARS_MAX, TEXT_CHARS_MAX = 60_000, 6_000
"""Of each of the two sorts, and of one entry: the state has to fit into a frame however long the settings are."""
OF_PRIMARIES = frozenset({
    "founding", "initialized", "promoted", "opened", "closed", "failed", "vetoed", "switchover", "failover", "gap",
    "salvaged", "recovered",
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
    if len(event.text) > TEXT_CHARS_MAX:
        event = event._replace(text=f"{event.text[:TEXT_CHARS_MAX]} ...")
    alike = [i for i, e in enumerate(history) if (e.kind in OF_PRIMARIES) == (event.kind in OF_PRIMARIES)]
    chars = _chars(event) + sum(_chars(history[i]) for i in alike)
    while alike and (len(alike) >= HISTORY_KEPT_MAX or chars > CHARS_MAX):
        chars -= _chars(history[alike[0]])
        history, alike = history[: alike[0]] + history[alike[0] + 1 :], [i - 1 for i in alike[1:]]
    return (*history, event)


def _chars(event: HistoryEvent) -> int:
    return len(event.text) + len(event.fields)
