"""What the Raft child does when both others hang: it ends Postgres itself (safety.md, invariant 3).

The parent and the watchdog frozen together leave nobody who would act at the end of the lease. This process knows when
that is, and what its parent said last; fencing what is gone already does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fencing.kill import FenceReport, fence
from fencing.lease import MS
from fencing.logs import Log

AGAIN_MS = 50
WRITABLE_ROLES = ("primary", "promoting", "demoting")
"""Of an observation (supervisor/observe.py)."""


class LastResort:
    """Told the lease and what the parent says of its Postgres; asked each turn.

    No grace, and no waiting for the parent to be silent for long: another node may be primary as soon as lease and kill
    bound are over (found by tests/sim). A parent that lives has demoted before, and has said so.
    """

    def __init__(
        self, pgdata: Path, kill_bound_ms: int, log: Log, strike: Callable[[Path, None, int], FenceReport] = fence
    ) -> None:
        self.pgdata, self.bound_ns, self.log, self.strike = pgdata, kill_bound_ms * MS, log, strike
        self.until_ns = 0
        """End of the newest lease that was told; 0: none, or it was acted upon."""
        self.writable = True
        """May the Postgres here be writable, for all the parent has said? Before its first word: yes."""
        self.not_before_ns = 0

    def heard(self, name: str, body: Mapping[str, Any]) -> None:
        """A frame from the parent."""
        match name:
            case "node.writable":
                self.writable = True
            case "node.observed":
                self.writable = body["role"] in WRITABLE_ROLES
            case "node.fenced":
                self.writable = False
            case _:
                pass

    @property
    def due_ns(self) -> int | None:
        """When `tick` has something to do, if nothing is told before."""
        return max(self.until_ns, self.not_before_ns) if self.until_ns and self.writable else None

    def tick(self, now_ns: int) -> None:
        due = self.due_ns
        if due is None or now_ns < due:
            return
        report = self.strike(self.pgdata, None, now_ns + self.bound_ns)
        if report.killed or report.survivors:
            self.log.warning(
                "raft.fenced_postgres", expected=False, killed=report.killed, survivors=list(report.survivors),
                reason="the lease has ended, and neither the parent nor the watchdog has acted",
            )  # fmt: skip
        self.not_before_ns = now_ns + AGAIN_MS * MS
        if not report.survivors:
            self.until_ns = 0
