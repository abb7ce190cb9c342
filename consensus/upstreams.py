"""Standbys that stream from another standby, or replay late: when their tags are in force. Pure.

Such a node is out of the primary's sight: its flush is acknowledged to nobody, and it may be hours from being primary.
So it does either only while the log shows that no commit waits for it: without a seat in any group of which an election
needs a read quorum, and not about to get one. As long as it has a seat it follows the primary like everybody
(safety.md, "Changes of the sync group": a cascaded or delayed node can't be in S).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.membership import LEARNER
from consensus.tags import delay_ms, named_upstream, of, unseated

if TYPE_CHECKING:
    from consensus.cluster import ClusterState


def is_free(state: ClusterState, name: str) -> bool:
    """Does no commit wait for this node, now and as far as it is agreed? An asynchronous group waits for nobody."""
    member = state.member(name)
    if member is None or any(name in group.names and not group.asynchronous for group in state.groups):
        return False
    for_good = member.role == member.aim == LEARNER
    return for_good or state.commit_mode == "async" or name in unseated(state)


def upstream(state: ClusterState, name: str) -> str:
    """The standby that this one streams from, while that one is fit; empty: the primary."""
    return named_upstream(state, name) if is_free(state, name) else ""


def apply_delay_ms(state: ClusterState, name: str) -> int:
    """How much later it replays; 0: at once, which is so of whoever is (to be) primary."""
    late_ms = delay_ms(of(state, name))
    is_primary = state.grant is not None and state.grant.node == name
    return late_ms if late_ms and not is_primary and state.wish_to != name and is_free(state, name) else 0


def is_held_back(state: ClusterState, name: str) -> bool:
    """It is tagged to replay late, so it is primary only if a person asks for just this node."""
    return delay_ms(of(state, name)) > 0 and state.wish_to != name
