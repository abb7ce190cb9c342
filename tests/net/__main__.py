"""python -m tests.net batch --kind kills|freezes|partitions|double --count N: many faults, a line for each.
python -m tests.net summary: what these lines say together.
python -m tests.net table: writes TABLE.md anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from supervisor.errors import PgrError
from tests.net import batch, catalogue
from tests.net.network import missing


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.net", description=__doc__)
    asked = parser.add_subparsers(dest="what", required=True)
    asked.add_parser("table")
    many = asked.add_parser("batch")
    many.add_argument("--kind", choices=batch.KINDS, required=True)
    many.add_argument(
        "--count", type=int, required=True, metavar="N", help="faults 0 to N-1; those in FILE are not repeated"
    )
    many.add_argument("--writers", type=int, default=8, metavar="N")
    many.add_argument("--profile", default="default", choices=["fast", "default", "cloud"])
    many.add_argument("--out", type=Path, metavar="FILE", help="default: net-results/COMMIT.jsonl")
    told = asked.add_parser("summary")
    told.add_argument("--out", type=Path, metavar="FILE", help="default: net-results/COMMIT.jsonl")
    given = parser.parse_args()
    if given.what == "table":
        catalogue.TABLE.write_text(catalogue.table(), encoding="utf-8")
        return 0
    out = given.out or batch.results()
    if given.what == "summary":
        lines = batch.read(out)
        print(batch.summaries(lines) or f"there is nothing in {out} yet")
        return int(any(line.bad for line in lines))
    if why := missing():
        print(f"error: {why}", file=sys.stderr)
        return 69
    try:
        return batch.batch(given.kind, given.count, out, given.writers, given.profile)
    except PgrError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return int(error.exit_code)


sys.exit(main())
