"""Many faults of one kind, one after the other, under load; one JSON line for each, so a run can be taken up again.

A line says what was done to whom, what the clients were told and what was there afterwards. A fault after which nobody
wrote within a minute is a line with ``error``, and the next one begins with a new cluster. Nothing is tried twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fencing.clock import now_ns
from fencing.lease import MS
from supervisor.localcluster import SECOND, LocalNode
from tests.net.network import CLIENT, CONSENSUS, Link, between
from tests.net.sampler import doubles
from tests.net.world import NetWorld, Tally, Workload

ROOT = Path(__file__).resolve().parents[2]
PER_WORLD = 25
"""Faults for one cluster; then its whole history is checked once more and the next one is founded."""
LONG_NS = 2 * SECOND
"""A fault that moves nobody lasts so long: two elections of the default profile."""

COUNTED = ("ok", "unknown", "lost", "phantoms", "doubles")


@dataclass(frozen=True, slots=True)
class Line:
    """One fault; times in ms, rows in numbers."""

    commit: str
    kind: str
    number: int
    fault: str
    """What was done, to whom, and whether that was the primary."""
    ok: int = 0
    unknown: int = 0
    lost: int = 0
    phantoms: int = 0
    doubles: int = 0
    """Acknowledged under an older grant after an acknowledgement under a newer one."""
    writable_twice: int = 0
    """The same of writes that waited for nobody; where the control plane stood still this may be."""
    gap_ms: float = 0
    """The longest time without an acknowledgement for any client."""
    last_ms: float | None = None
    """Of partitions: from the cut to the answer to the last write that the old primary accepted."""
    sent_ms: float | None = None
    """The same until that write was sent: what L + F bounds."""
    bound_ms: float = 0
    """L + F."""
    load: float = 0
    error: str = ""

    @property
    def bad(self) -> bool:
        late = self.sent_ms is not None and self.sent_ms > self.bound_ms
        return bool(self.lost or self.phantoms or self.doubles or self.error or late)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done at once, and what takes it back."""

    name: str
    nodes: tuple[LocalNode, ...]
    begin: Callable[[], object]
    end: Callable[[], object]


# --- the faults -------------------------------------------------------------------------------------------------------


def kill(world: NetWorld, node: LocalNode, _: random.Random) -> Fault:
    return Fault("power cut", (node,), node.kill_all, node.start)


def freeze(world: NetWorld, node: LocalNode, rng: random.Random) -> Fault:
    """Thawed Postgres first, and in half of the cases that alone for a while."""
    if rng.random() < 0.5:
        return Fault("freeze, thaw", (node,), lambda: world.freeze(node), lambda: world.thaw(node))

    def thaw_postgres_first() -> None:
        at_ns = world.thaw(node, control=False)
        world.settles(lambda: now_ns() - at_ns > LONG_NS, "a while")
        world.thaw(node)

    return Fault("freeze, thaw Postgres first", (node,), lambda: world.freeze(node), thaw_postgres_first)


def partition(world: NetWorld, node: LocalNode, rng: random.Random) -> Fault:
    others = [other.name for other in world.others(node)]
    out = [Link(node.name, other) for other in others]
    name, links = rng.choice(
        [
            ("isolated", between([node.name], others)),
            ("isolated, from clients too", between([node.name], [*others, CLIENT])),
            ("not heard", out),
            ("hears nothing", [Link(link.target, link.source) for link in out]),
            ("consensus cut", between([node.name], others, CONSENSUS)),
        ]
    )
    return Fault(name, (node,), lambda: world.cut(links), world.heal)


ONE = {"kills": kill, "freezes": freeze, "partitions": partition}


def single(kind: str) -> Callable[[NetWorld, LocalNode, random.Random], Fault]:
    """Three times of four to the primary."""

    def make(world: NetWorld, primary: LocalNode, rng: random.Random) -> Fault:
        victim = primary if rng.random() < 0.75 else rng.choice(world.others(primary))
        return ONE[kind](world, victim, rng)

    return make


def double(world: NetWorld, primary: LocalNode, rng: random.Random) -> Fault:
    """Two different nodes, each with a fault of its own, the primary mostly among them."""
    first = primary if rng.random() < 0.75 else rng.choice(world.others(primary))
    two = [ONE[rng.choice(list(ONE))](world, node, rng) for node in (first, rng.choice(world.others(first)))]
    rng.shuffle(two)

    def each(what: Callable[[Fault], object]) -> None:
        for fault in two:
            what(fault)

    return Fault(
        " + ".join(fault.name for fault in two), tuple(node for fault in two for node in fault.nodes),
        lambda: each(lambda fault: fault.begin()), lambda: each(lambda fault: fault.end()),
    )  # fmt: skip


KINDS: dict[str, tuple[int, Callable[[NetWorld, LocalNode, random.Random], Fault]]] = {
    "kills": (3, single("kills")),
    "freezes": (3, single("freezes")),
    "partitions": (3, single("partitions")),
    "double": (5, double),
}
"""Number of nodes, and how a fault is chosen."""


# --- one fault --------------------------------------------------------------------------------------------------------


def strike(world: NetWorld, kind: str, number: int, writers: int) -> Line:
    """One fault under load, from a whole cluster to a whole cluster."""
    rng = random.Random(f"{kind} {number}")
    primary = world.wait_whole()
    with world.working(writers=writers) as load:
        timeline = world.timeline(load)
        fault = KINDS[kind][1](world, primary, rng)
        begun_ns = now_ns()
        fault.begin()
        cut_ns = now_ns()
        moved = primary in fault.nodes
        if moved:
            world.moves_on(load, timeline)
        world.settles(lambda: now_ns() - begun_ns > LONG_NS, "a while")
        fault.end()
        world.goes_on(load, now_ns())
        world.wait_whole()
    names = ", ".join(f"{node.name}{' (primary)' if node is primary else ''}" for node in fault.nodes)
    line = Line(commit(), kind, number, f"{fault.name}: {names}")
    if moved and kind == "partitions":
        last = load.sampler.last(primary.name, timeline)
        timings = next(seen.timings for node in world.nodes if (seen := node.status()))
        line = replace(
            line, last_ms=(last.end_ns - begun_ns) / MS, sent_ms=(last.begin_ns - cut_ns) / MS,
            bound_ms=timings.lease_ms + timings.kill_bound_ms,
        )  # fmt: skip
    return judged(line, world.tally(load), load, begun_ns)


def judged(line: Line, found: Tally, load: Workload, begun_ns: int) -> Line:
    twice = len(doubles(load.sampler.accepted(quorum=True)))
    return replace(
        line, ok=found.ok, unknown=found.unknown, lost=found.lost, phantoms=found.phantoms, doubles=twice,
        writable_twice=len(found.doubles), gap_ms=load.gap_ms(begun_ns), load=os.getloadavg()[0],
    )  # fmt: skip


# --- the batch --------------------------------------------------------------------------------------------------------


def commit() -> str:
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def results() -> Path:
    """Where the lines of this commit go, if nothing else is asked for."""
    return ROOT / "net-results" / f"{commit()}.jsonl"


def read(out: Path) -> list[Line]:
    return [Line(**json.loads(text)) for text in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []


def done_so_far(out: Path, kind: str) -> list[Line]:
    """Lines of this commit and kind that are in the file already."""
    return [line for line in read(out) if (line.commit, line.kind) == (commit(), kind)]


@contextlib.contextmanager
def a_world(kind: str, profile: str) -> Iterator[NetWorld]:
    world = NetWorld(nodes=KINDS[kind][0], profile=profile)
    try:
        world.begin()
        yield world
    finally:
        world.close()


def in_one_world(kind: str, numbers: list[int], writers: int, profile: str) -> Iterator[Line]:
    """Until an error: what comes after it needs another world."""
    with a_world(kind, profile) as world:
        for number in numbers:
            try:
                yield strike(world, kind, number, writers)
            except (AssertionError, RuntimeError) as error:
                yield Line(commit(), kind, number, "", load=os.getloadavg()[0], error=str(error)[:2000])
                return
        # What one fault left whole a later one may have lost.
        for number, load in zip(numbers, world.loads, strict=True):
            if lost := world.tally(load).lost:
                yield Line(commit(), kind, number, "lost by a later fault", lost=lost)


def batch(kind: str, count: int, out: Path, writers: int = 8, profile: str = "default") -> int:
    """Exit code 0 if every fault of this commit, earlier ones included, was without a loss, a double or an error."""
    lines = done_so_far(out, kind)
    left = [number for number in range(count) if number not in {line.number for line in lines}]
    while left:
        for line in in_one_world(kind, left[:PER_WORLD], writers, profile):
            lines.append(line)
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(line)) + "\n")
            print(f"{line.number:4} {line.fault}: {line.ok} ok, {line.lost} lost, {line.doubles} double, "
                  f"gap {line.gap_ms:.0f} ms {line.error}", flush=True)  # fmt: skip
            left = [number for number in left if number != line.number]
    print(summary(lines))
    return int(any(line.bad for line in lines))


def summaries(lines: list[Line]) -> str:
    """A line for each commit and kind."""
    kinds = sorted({(line.commit, line.kind) for line in lines})
    return "\n".join(
        f"{which} {kind}: {summary([line for line in lines if (line.commit, line.kind) == (which, kind)])}"
        for which, kind in kinds
    )


def summary(lines: list[Line]) -> str:
    gaps = sorted(line.gap_ms for line in lines if "(primary)" in line.fault) or [0.0]
    parts = (
        f"{len({line.number for line in lines})} faults",
        *(f"{sum(getattr(line, what) for line in lines)} {what}" for what in COUNTED),
        f"{sum(bool(line.error) for line in lines)} errors",
        f"gap of faults of the primary: median {gaps[len(gaps) // 2]:.0f} ms, max {gaps[-1]:.0f} ms",
    )
    cuts = [line for line in lines if line.sent_ms is not None and line.last_ms is not None]
    if not cuts:
        return "; ".join(parts)
    last = max(cuts, key=lambda line: line.sent_ms or 0)
    return "; ".join(parts) + (
        f"; of {len(cuts)} cuts of a primary the last write it accepted was sent {last.sent_ms:.0f} ms after the cut"
        f" at most, L + F is {last.bound_ms:.0f} ms (answered: {max(line.last_ms or 0 for line in cuts):.0f} ms)"
    )
