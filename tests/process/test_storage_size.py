"""The store stays small and starts fast, however long the log has been: snapshots bound it."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest

from consensus import storage
from consensus.messages import Entry, HardState, Snapshot
from consensus.node import COMPACT_AFTER_ENTRIES
from consensus.storage import open_store
from consensus.write import Write

BYTES_MAX = 8 << 20
START_MAX_S = 1.0
ENTRY_BYTES, SNAPSHOT_BYTES = 300, 20_000


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


@pytest.mark.parametrize("total", [20_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_long_log(total: int, tmp_path: Path) -> None:
    path = tmp_path / "raft" / "raft.sqlite"
    store = open_store(path)
    largest, last = 0, 0
    while last < total:
        entries = tuple(
            Entry(index, 1, "event/1", "x" * ENTRY_BYTES)
            for index in range(last + 1, last + 1 + COMPACT_AFTER_ENTRIES + 1)
        )
        last = entries[-1].index
        store.save(Write(HardState(1, "a", last - 3), entries=entries))
        store.save(Write(snapshot=Snapshot(last - 3, 1, "s" * SNAPSHOT_BYTES)))
        largest = max(largest, size(path.parent))
    assert BYTES_MAX // 4 < largest < BYTES_MAX

    took = []
    for number in range(3):  # as a kill leaves it; the best, since others use this machine too
        copy = tmp_path / str(number) / "raft.sqlite"
        shutil.copytree(path.parent, copy.parent)
        begin = time.perf_counter()
        again = open_store(copy)
        stored = again.load()
        took.append(time.perf_counter() - begin)
        again.close()
        assert [entry.index for entry in stored.entries] == [last - 2, last - 1, last]
        assert size(copy.parent) < BYTES_MAX // 8, "nearly all of it is log"
    print(f"{total} entries: at most {largest} bytes; starts took {took} s")
    assert min(took) < START_MAX_S
    store.close()


def test_the_docstring_says_so() -> None:
    text = " ".join((storage.__doc__ or "").split())
    said = re.search(r"After a million entries of (\d+) bytes, .*? the store is below (\d+) MiB", text)
    assert said is not None
    assert (int(said[1]), int(said[2]) << 20) == (ENTRY_BYTES, BYTES_MAX)
    assert "a start takes less than a second" in text
    assert START_MAX_S == 1
