"""Who may take over from this primary, and who of them does. Pure, like the node it looks at.

For a planned change, and for speed after an unplanned one: whoever leads next decides by its own rules (promotion.py).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from consensus.membership import VOTER, Member
from consensus.tags import delay_ms, of, priority_of

if TYPE_CHECKING:
    from consensus.node import Node


def seated(node: Node) -> frozenset[str]:
    """Who has a seat in the sync group as it is to be."""
    return node.cluster.seated(node.cluster.wanted_group)


def electable(node: Node, to: str = "") -> list[Member]:
    """The others whom nothing in the log keeps from being primary. ``to``: whom a person asks for."""
    state, seats = node.cluster, seated(node)
    return [
        m for m in state.members
        if m.role == VOTER and m.name != node.me and m.name in seats and m.name not in state.fenced
        and priority_of(state, m.name) and (m.name == to or not delay_ms(of(state, m.name)))
    ]  # fmt: skip


def successor(node: Node, to: str, now_ns: int, among: Collection[str] | None = None) -> tuple[str, str]:
    """Who is to take over from this primary, and what speaks against it; an empty string: nothing. ``among``: only of
    these."""
    term, able = node.raft.term, [m for m in electable(node, to) if among is None or m.name in among]
    fit = {m: priority_of(node.cluster, m.name) for m in able if not node.sightings.unfit(m.name, term, now_ns)}
    # Having streamed to the end of a clean stop they all hold the same.
    first = [m for m, priority in fit.items() if priority == max(fit.values())]
    target = to or node.sightings.furthest(first or able, now_ns)
    kept_out = sorted({m.name for m in node.cluster.members if m.role == VOTER} - {m.name for m in able} - {node.me})
    if not target and kept_out:
        why = "fenced, tagged, or without a seat in the sync group"
        return "", f"nobody else may be primary: {', '.join(kept_out)} {why}"
    return target, node.sightings.unfit(target, term, now_ns)


def heir(node: Node, now_ns: int) -> str:
    """To whom a primary that is gone gives its lease."""
    return node.sightings.furthest(electable(node) or node.cluster.members, now_ns)
