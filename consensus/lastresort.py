"""What the Raft child does when both others hang: it ends Postgres itself (safety.md, invariant 3).

The parent and the watchdog frozen together leave nobody who would act at the end of the lease. This process knows when
that is, and that its parent is silent; fencing what is gone already does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fencing.kill import FenceReport, fence
from fencing.lease import MS
from fencing.logs import Log

AGAIN_MS = 50


class LastResort:
    """Told the lease and every word of the parent; asked each turn."""

    def __init__(
        self, pgdata: Path, silent_ms: int, kill_bound_ms: int, log: Log,
        strike: Callable[[Path, None, int], FenceReport] = fence,
    ) -> None:  # fmt: skip
        self.pgdata, self.silent_ns, self.bound_ns = pgdata, silent_ms * MS, kill_bound_ms * MS
        self.log, self.strike = log, strike
        self.until_ns = 0
        """End of the newest lease that was told; 0: none, or the parent has been heard since it ended."""
        self.heard_ns = 0
        self.not_before_ns = 0

    def heard(self, now_ns: int) -> None:
        """The parent said something. One that lives after the end of a lease has acted on it by itself."""
        self.heard_ns = now_ns
        if now_ns >= self.until_ns:
            self.until_ns = 0

    @property
    def due_ns(self) -> int | None:
        """When `tick` has something to do, if the parent stays silent."""
        if not self.until_ns:
            return None
        return max(self.until_ns, self.heard_ns + self.silent_ns, self.not_before_ns)

    def tick(self, now_ns: int) -> None:
        due = self.due_ns
        if due is None or now_ns < due:
            return
        report = self.strike(self.pgdata, None, now_ns + self.bound_ns)
        if report.killed or report.survivors:
            self.log.warning(
                "raft.fenced_postgres", expected=False, killed=report.killed, survivors=list(report.survivors),
                reason="the lease has ended, the parent is silent, and the watchdog has not acted",
            )  # fmt: skip
        self.not_before_ns = now_ns + AGAIN_MS * MS
        if not report.survivors:
            self.until_ns = 0
