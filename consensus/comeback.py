"""`on_primary_crash = "restart"`: a primary whose Postgres went down by itself is waited for. Pure.

Every start of Postgres is a standby's, and becoming writable is always a promotion (safety.md): so the node gives its
lease up as in any failover, but leads again at once, in a new term and with its own release as proof (`raft.Release`).
As caretaker it lets nobody win before its own Postgres has read all its WAL and promised; then it wins, is promoted,
and opens to clients once k of the sync group have flushed a record of the new epoch. No safety rests on the waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from consensus.cluster import ClusterState
from fencing.lease import MS

RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Comeback:
    """In memory only: another process, or another leader, waits for nobody."""

    after: int = 0
    """Term of the grant under which Postgres went down; 0: nobody is waited for."""
    until_ns: int = 0

    def left_ms(self, state: ClusterState, me: str, now_ns: int) -> int:
        """How much longer; 0: not, as the time is over, another was granted since, or a person keeps this node down."""
        if self.after == 0 or self.after != state.granted or me in state.fenced:
            return 0
        return max(0, (self.until_ns - now_ns) // MS)


NOBODY = Comeback()


def begun(state: ClusterState, body: Mapping[str, Any], now_ns: int) -> Comeback:
    """``body`` of `node.fenced`, from the parent of the primary of the newest grant. Only one that was open: of what
    does not get that far the next one is to have a try."""
    grant = state.grant
    died = body.get("died") is True
    if grant is None or not died or not grant.opened or state.setting("on_primary_crash") != RESTART:
        return NOBODY
    return Comeback(grant.term, now_ns + 1_000 * int(state.setting("primary_start_timeout")) * MS)
