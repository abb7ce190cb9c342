"""How far away a deadline may be for this node's watchdog: what it has said, and when to ask it. Pure.

The parent tells the watchdog of another L, the Raft child gives leases of it, and two sockets have no order. A lease
that is further away than the watchdog's L counts as expired: none is given before the watchdog says that it takes it.
"""

from __future__ import annotations

from consensus import pacing
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

    def heard(self, node: Node, frame: Frame | None, now_ns: int) -> list[Effect]:
        """Anything from the watchdog."""
        lease_ms = frame.body.get("lease_ms") if frame is not None and frame.name == "deadman.state" else None
        return node.guarded(lease_ms, now_ns) if isinstance(lease_ms, int) and lease_ms > 0 else []

    def asks(self, node: Node, now_ns: int) -> bool:
        """Is `deadman.query` due? At the start, after each step of a change, and each heartbeat until the watchdog
        takes leases of the L that is in force."""
        pace = node.cluster.pace
        if (node.guard_ms and pace is self.pace and not pacing.is_capped(node)) or now_ns < self.ask_at_ns:
            return False
        self.pace, self.ask_at_ns = pace, now_ns + node.timings.heartbeat_ms * MS
        return True
