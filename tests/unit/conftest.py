"""Coverage is taken where the pure files of consensus are tested on purpose.

Elsewhere the tracer only costs time, and a line that is passed by chance is not tested.
"""

from __future__ import annotations

import pytest

COVERING = (
    "addressbook", "changes", "cluster", "clusterwide", "comeback", "forecast", "founding", "guard", "hook",
    "known_bugs", "membership", "never_stuck", "node", "operate", "operations", "peerwire", "positions",
    "promotion", "quorum", "raft", "reconfigure", "recovery", "recovery_returns", "requests", "retiming", "rolling",
    "sightings", "tags", "thesis", "upstreams",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") not in COVERING:
            item.add_marker("no_cover")
