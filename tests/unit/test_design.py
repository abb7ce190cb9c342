"""The design documents say what the code says: log entries, files, messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from consensus import cluster, operations, retiming
from consensus.messages import type_names, upper_type_names

ROOT = Path(__file__).resolve().parents[2]
CONSENSUS = (ROOT / "consensus" / "DESIGN.md").read_text(encoding="utf-8")
FENCING = (ROOT / "fencing" / "DESIGN.md").read_text(encoding="utf-8")
SENDERS = (
    "consensus/node.py", "consensus/process.py", "consensus/founder.py",
    "consensus/reconfigure.py", "supervisor/adminserver.py", "supervisor/configcheck.py", "supervisor/context.py",
    "supervisor/daemon.py", "supervisor/hooks.py", "supervisor/promote.py", "supervisor/rebuild.py",
    "supervisor/steps.py",
)  # fmt: skip
"""Who says something on the bus between the parent and its children."""


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_table_of_log_entries_is_that_of_cluster_py() -> None:
    between = CONSENSUS.partition("<!-- entries: begin -->\n")[2].partition("<!-- entries: end -->")[0]
    rows = table_rows(cluster.__doc__ or "")
    assert len(rows) > 2
    assert between.splitlines() == rows, "copy the table of consensus/cluster.py into consensus/DESIGN.md"


def test_the_table_of_log_entries_has_every_kind_that_is_applied() -> None:
    source = "".join(Path(str(m.__file__)).read_text(encoding="utf-8") for m in (cluster, operations, retiming))
    listed = {row.split("`")[1] for row in table_rows(cluster.__doc__ or "") if "`" in row}
    assert set(re.findall(r'"([a-z]+/\d+)"', source)) == listed


def names_said() -> Iterator[str]:
    """First arguments of ``tell``, ``ask`` and what else puts a frame on the bus."""
    for path in SENDERS:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            func, first = node.func, node.args[0]
            called = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
            said = isinstance(first, ast.Constant) and isinstance(first.value, str) and "." in first.value
            if called in ("tell", "ask", "_tell", "Tell", "encode") and said:
                assert isinstance(first, ast.Constant)
                yield str(first.value)


def catalogue(design: str) -> set[str]:
    """Names in the table of the bus: first column, and what the last one says comes back."""
    rows = [row for row in table_rows(design) if re.match(r"\| `[a-z]+\.(?!py`)[a-z_]+` \|", row)]
    names = {row.split("`")[1] for row in rows}
    return names | {n for row in rows for n in re.findall(r"`([a-z]+\.[a-z_]+)[ `{]", row.rsplit(" | ", 1)[1])}


def test_every_message_on_the_bus_is_in_a_catalogue_and_the_other_way_round() -> None:
    said = set(names_said())
    assert said >= {"node.frozen", "raft.state", "record.saved", "lease.changed", "remote.answer"}, "the search works"
    assert said - catalogue(CONSENSUS) - catalogue(FENCING) == set()
    assert catalogue(CONSENSUS) - said == set()


def test_every_peer_message_is_in_the_table() -> None:
    rows = "".join(row.split("|")[1] for row in table_rows(CONSENSUS))
    assert [t.__name__ for t in (*type_names, *upper_type_names) if f"`{t.__name__}`" not in rows] == []
