"""The pre_promote hook, at a leader that is to become primary: its parent runs it, and a no goes into the log. Pure.

It runs before the grant is proposed: no timeline is burned by a no, nothing here is writable, and no lease rests on it
(the leader is a caretaker, the Raft process goes on with its heartbeats while the parent waits for the hook).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from consensus.campaign import Campaigning
from consensus.changes import Proposal
from consensus.clusterwide import PRE_PROMOTE

if TYPE_CHECKING:
    from consensus.node import Node

REASON_MAX = 300


def cleared(node: Node, notes: Campaigning) -> bool:
    """May this leader go on without asking?"""
    return notes.hook_passed or not node.tip().setting(PRE_PROMOTE)


def answered(node: Node, body: Mapping[str, Any], now_ns: int) -> None:
    """How a run ended: ``{run: [term, number], ok, reason}``. Of an older run it says nothing."""
    notes = node.notes
    if notes is None or not notes.hook_asked or list(body["run"]) != notes.hook_wanted():
        return
    notes.ask_hook(False)
    if body["ok"] is True:
        notes.hook_passed = True
        return
    notes.vetoed_at_ns = now_ns
    reason = str(body["reason"])[:REASON_MAX]
    node.propose_change(Proposal("veto/1", {"node": node.me, "term": notes.term, "reason": reason}), now_ns)
