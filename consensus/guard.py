"""How far away a deadline may be for this node's watchdog: what it has said, and when to ask it. Pure.

The parent tells the watchdog of another L, the Raft child gives leases of it, and two sockets have no order. A lease
that is further away than the watchdog's L counts as expired: none is given before the watchdog says that it takes it.
"""

from __future__ import annotations

from consensus.effects import Effect
from consensus.node import Node
from consensus.retiming import Pace
from fencing.lease import MS
from fencing.wire import Frame


class Guard:
    def __init__(self) -> None:
        self.pace: Pace | None = None
        """The one in which it was asked last."""
        self.ask_at_ns = 0

    def confirms(self, node: Node, frame: Frame | None, now_ns: int) -> int | None:
        """At the start: until when the lease runs with which a restarted child may go on as leader (safety.md
        "Resume"); 0: there is none; None: that is no answer to it. What the watchdog takes counts from the first
        lease on, since a Postgres rests on it already."""
        if frame is None or frame.name != "deadman.state":
            return None
        node.guard_ms = _takes_ms(frame)
        until_ns = frame.body.get("until_ns")
        armed = frame.body.get("armed") is True and frame.body.get("term") == node.raft.term
        return until_ns if armed and isinstance(until_ns, int) and until_ns > now_ns else 0

    def heard(self, node: Node, frame: Frame | None, now_ns: int) -> list[Effect]:
        """Anything from the watchdog."""
        lease_ms = _takes_ms(frame)
        return node.guarded(lease_ms, now_ns) if lease_ms else []

    def asks(self, node: Node, now_ns: int) -> bool:
        """Is `deadman.query` due? At the start, after each step of a change, and each heartbeat until the watchdog
        takes leases of the L that is in force."""
        pace = node.cluster.pace
        if (node.guard_ms and pace is self.pace and not node.capped) or now_ns < self.ask_at_ns:
            return False
        self.pace, self.ask_at_ns = pace, now_ns + node.timings.heartbeat_ms * MS
        return True


def _takes_ms(frame: Frame | None) -> int:
    """0: the frame does not say so."""
    lease_ms = frame.body.get("lease_ms") if frame is not None and frame.name == "deadman.state" else None
    return max(0, lease_ms) if isinstance(lease_ms, int) else 0
