"""What a process does for itself at its start; in one of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOLES = """
import gc, sys
sys.path.insert(0, sys.argv[1])
from fencing.realtime import compact
def rss_kb():
    return int(open("/proc/self/statm").read().split()[1]) * 4
blocks = [bytes(2000) for _ in range(20_000)]
del blocks[:-1]  # the last one keeps the heap from shrinking by itself
full_kb = rss_kb()
compact()
print(full_kb - rss_kb())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="musl has no malloc_trim: nothing to see")
def test_compact_gives_back_what_lies_unused_between_what_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", HOLES, str(ROOT)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) > 20_000
