"""``python -m tests.sim 17 [--mutant NAME]`` replays a seed; ``batch`` runs many and can be stopped and continued."""

from __future__ import annotations

import argparse
import sys

from tests.sim.cluster import play
from tests.sim.mutants import MUTANTS
from tests.sim.report import batch, story


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("what", help="a seed, or: batch")
    parser.add_argument("--from", dest="first", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--out", default="sim-batch.jsonl")
    parser.add_argument("--mutant", default="", choices=["", *MUTANTS])
    parser.add_argument("--events", type=int, default=60, help="how much of the story is shown")
    chosen = parser.parse_args(arguments)
    if chosen.what == "batch":
        return batch(chosen.first, chosen.count, chosen.out, chosen.mutant)
    simulation, violation = play(int(chosen.what), chosen.mutant)
    print(story(simulation, violation, chosen.events))
    return violation is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
