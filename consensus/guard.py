"""How far away a deadline may be for this node's watchdog: what it said, and what it may have been told since. Pure.

The parent tells the watchdog of another L, the Raft child gives leases of it, and two sockets have no order. A lease
that is further away than the watchdog's L counts as expired, and a healthy primary would die of it. So none is given
that is longer than the shortest L that the watchdog may go by now: what it said itself, with the index of the entry
of the log that it has that from, and those of all paces that this node has been in after that entry, since the parent
tells the watchdog of some of them, in that order, at any time.
"""

from __future__ import annotations

from consensus.retiming import Pace, at_the_watchdog
from fencing.lease import MS, UNTOLD
from fencing.wire import Frame

ASK_EVERY_MS = 50


class Guard:
    """A witness has no watchdog: nothing is ever heard of one, and nothing is capped."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        """In which this node is."""
        self.lease_ms = 0
        """The watchdog's L as it said it last; 0: it has said nothing."""
        self.at = UNTOLD
        """The entry that it had that from."""
        self.paces = [(pace.at, at_the_watchdog(pace).lease_ms)]
        """Index and L of those that the watchdog may be told of yet, oldest first; one with no less L than a later one
        makes no difference."""
        self.asked_of, self.ask_at_ns = UNTOLD, 0

    def meet(self, pace: Pace) -> None:
        """This node is in this pace now."""
        if pace is self.pace:
            return
        self.pace, lease_ms = pace, at_the_watchdog(pace).lease_ms
        while self.paces and self.paces[-1][1] >= lease_ms:
            self.paces.pop()
        self.paces.append((pace.at, lease_ms))

    def heard(self, lease_ms: int, at: int) -> None:
        """The watchdog has said its L, and by which entry."""
        self.lease_ms, self.at = lease_ms, at
        if at <= self.pace.at:  # else it is ahead: of a log that this node has lost, or has not read again yet
            self.paces = [known for known in self.paces if known[0] > at]

    def takes_ms(self) -> int:
        """A lease of this length it surely takes; 0: nothing is known of it."""
        return min([self.lease_ms, *(known for _, known in self.paces)]) if self.lease_ms else 0

    @property
    def is_behind(self) -> bool:
        """Is the watchdog not known to go by the pace in which this node is?"""
        return self.at != self.pace.at or bool(self.paces)

    def asks(self, now_ns: int) -> bool:
        """Is `deadman.query` due? For each pace at once, then again until the watchdog has heard of it."""
        is_new = self.asked_of != self.pace.at
        if not is_new and (now_ns < self.ask_at_ns or not self.is_behind):
            return False
        self.asked_of, self.ask_at_ns = self.pace.at, now_ns + ASK_EVERY_MS * MS
        return True

    def confirms(self, frame: Frame | None, term: int, now_ns: int) -> int | None:
        """At the start: until when the lease of ``term`` runs with which a restarted child may go on as leader
        (safety.md "Resume"); 0: there is none; None: that is no answer to it. What the watchdog takes counts from the
        first lease on, since a Postgres rests on it already."""
        known = said(frame)
        if frame is None or known is None:
            return None
        self.heard(*known)
        until_ns = frame.body.get("until_ns")
        armed = frame.body.get("armed") is True and frame.body.get("term") == term
        return until_ns if armed and isinstance(until_ns, int) and until_ns > now_ns else 0


def said(frame: Frame | None) -> tuple[int, int] | None:
    """Of a `deadman.state`: L and the entry that the watchdog has it from; None: it is none."""
    if frame is None or frame.name != "deadman.state":
        return None
    lease_ms, at = frame.body.get("lease_ms"), frame.body.get("at")
    return (lease_ms, at) if isinstance(lease_ms, int) and isinstance(at, int) and lease_ms > 0 else None
