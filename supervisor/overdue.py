"""Has the promotion of this node failed? Pure.

A grant that does not become a primary in time has failed; so has a primary whose Postgres answers nothing for as long,
open or not. One that answers and is not open waits for its standbys, for as long as it takes.
"""

from __future__ import annotations

from consensus.cluster import ClusterState
from fencing.lease import MS
from supervisor.roles import Local, Server, View, is_paused


def limit_ms(view: View) -> int:
    """`primary_start_timeout`: from a grant to a promoted Postgres, and from one answer of it to the next; then it is
    given up and handed over (safety.md, promotion 5)."""
    return 1000 * int((view.cluster or ClusterState()).setting("primary_start_timeout"))


class Overdue:
    """What has to be remembered for it from one turn to the next."""

    def __init__(self) -> None:
        self.granted = (0, 0)
        """The grant this node holds, and since when."""
        self.promoted = 0
        """The newest grant under which Postgres here was promoted."""

    def failed(self, view: View, local: Local, answered_ns: int, now_ns: int) -> int:
        """The term whose promotion has just failed; 0: none. ``answered_ns``: when Postgres last answered."""
        if view.granted != self.granted[0]:
            self.granted = (view.granted, now_ns)
        term, since_ns = self.granted
        if term > 0 and local.server is Server.PRIMARY and local.epoch == term:
            self.promoted = term
        promoted = self.promoted == term
        waiting = not promoted or local.server is Server.PRIMARY
        began_ns = max(since_ns, answered_ns) if promoted else since_ns
        if promoted and is_paused(view):
            return 0  # a person may have stopped it on purpose
        late = term > 0 and waiting and now_ns - began_ns > limit_ms(view) * MS
        return term if late and view.alive and local.failed_promotion != term else 0
