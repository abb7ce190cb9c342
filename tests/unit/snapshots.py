"""A cluster of three as its three nodes see it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fencing.lease import MS
from supervisor.status import HistoryEvent, Member, Primary, Snapshot, SyncGroup

NOW = 1_000_000 * MS

A = Member(
    "a", "00112233", "primary", "running", 2, 7, 0x3000148, None, 0, 0.0, "", "10.0.0.1", 5432, "10.0.0.1:8008", "18.6",
    "0.1.0", "2026-11-22T20:00:00Z", False, "", 0,
)  # fmt: skip
B = Member(
    "b", "44556677", "replica", "streaming", 2, 7, 0x3000148, 0x3000060, 232, 0.25, "quorum", "10.0.0.2", 5432,
    "10.0.0.2:8008", "18.6", "0.1.0", "2026-11-22T20:00:00Z", True, "", 40, tags={"zone": "x", "nofailover": True},
)  # fmt: skip
C = Member("c", "8899aabb", "", "unreachable", connected=False, reason="c has not been heard of for 3 s", age_ms=3000)

HISTORY = (
    HistoryEvent("2026-11-22T19:00:00Z", "founding", 1, 1, "b", "founded"),
    HistoryEvent("2026-11-22T20:00:00Z", "failover", 7, 2, "a", "b was lost", 0x3000000, 640, 8192),
)


def snapshot(node: str = "a", **changes: Any) -> Snapshot:
    base = Snapshot(
        node, "3f2a9c01" + "0" * 24, "7300000000000000001", 7, "a", "primary", "running", NOW + 623 * MS, True,
        Primary("a", 7, 2, True), (A, B, C), SyncGroup(("a", "b", "c"), 2), scheduling={"raft": "SCHED_RR 10"},
        config={"maximum_lag_on_failover": 1048576}, warnings=("one more failure stops all writes",),
        explanation="a is primary of term 7", history=HISTORY, pgr_version="0.1.0", taken_ns=NOW,
    )  # fmt: skip
    if node != "a":
        rows = tuple(replace(m, age_ms=0) if m.name == node else m for m in base.members)
        base = replace(base, members=rows, role="replica", state="streaming", lease_until_ns=0, opened=False)
    return replace(base, **changes)
