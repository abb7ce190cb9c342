"""Every exhaustive run: its dimension, its bound, and what it may cost. `python -m tests.model` runs them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.model.explore import Outcome, World, explore
from tests.model.foundingworld import FoundingSetup, LiveFoundingWorld
from tests.model.groupworld import LateDone
from tests.model.leaseworld import Clocks, LeaseSetup, LeaseWorld
from tests.model.livepromises import FailingWorld, LiveGroupWorld, LivePromiseWorld
from tests.model.mutants.timing import larger, smaller, traded
from tests.model.mutants.upper import group
from tests.model.promisevalues import Setup as Promises
from tests.model.promiseworld import PromiseWorld
from tests.model.raftlive import LiveRaftWorld
from tests.model.raftvalues import Bound, Setup
from tests.model.timingworld import QUIET, TimingSetup, TimingWorld

STATES_MAX = 3_000_000
FIVE = ("a", "b", "c", "d", "e")
D = ("d",)
LATER = (QUIET,) * 6
"""So long that the last step may come."""
FOURTH = Clocks(rates=(2, 3, 3, 3))


@dataclass(frozen=True)
class Run:
    dimension: str
    bound: str
    world: Callable[[], World]
    """A partial: its parts are what a ready test is made of."""
    quick: bool = False
    """Part of `bin/test model`; the others are in `make model` only."""

    def explored(self) -> Outcome:
        return explore(self.world(), states_max=STATES_MAX)


def core(dimension: str, setup: Setup, *, quick: bool = False, down_max: int = 1) -> Run:
    return Run(f"core: {dimension}", str(setup), partial(LiveRaftWorld, setup, down_max=down_max), quick)


def upper(
    dimension: str, setup: Promises, world: type[PromiseWorld] = LivePromiseWorld, *, quick: bool = False
) -> Run:
    return Run(f"promises: {dimension}", str(setup), partial(world, setup), quick)


def lease(dimension: str, setup: LeaseSetup, *, quick: bool = False) -> Run:
    return Run(f"lease: {dimension}", str(setup), partial(LeaseWorld, setup), quick)


def retimed(dimension: str, setup: TimingSetup, *, quick: bool = False) -> Run:
    return Run(f"timings: {dimension}", str(setup), partial(TimingWorld, setup), quick)


def founding(dimension: str, setup: FoundingSetup, *, quick: bool = False) -> Run:
    return Run(f"founding: {dimension}", str(setup), partial(LiveFoundingWorld, setup), quick)


def change(old: str, k: int, new: str, new_k: int, **more: int) -> Promises:
    """From k of ``old`` to new_k of ``new``; all three nodes have data."""
    return Promises(2, 2, k=k, seated=len(old) % 3, **{"changes": 1, **more}, targets=(group(new, new_k),))  # type: ignore[arg-type]


RUNS = (
    core("elections, replication", Setup(Bound(2)), quick=True),
    core("elections, replication", Setup(Bound(4))),
    core("elections, replication", Setup(Bound(3, proposals=1))),
    core("PreVote", Setup(Bound(2), pre_vote=True), quick=True),
    core("delay and reordering", Setup(Bound(2, delays=1)), quick=True),
    core("delay and reordering", Setup(Bound(2, proposals=1, delays=1))),
    core("restart and resume", Setup(Bound(2, proposals=1, restarts=1)), quick=True),
    core("restart and resume", Setup(Bound(2, restarts=2))),
    core("compaction and snapshots", Setup(Bound(2, compactions=1)), quick=True),
    core("compaction x delay", Setup(Bound(2, compactions=1, delays=1))),
    core("release and transfer", Setup(Bound(2, releases=1)), quick=True),
    core("restart x delay", Setup(Bound(2, restarts=1, delays=1))),
    core("restart x release", Setup(Bound(2, restarts=1, releases=1))),
    core("members: 3 to 4", Setup(Bound(2, changes=2), extra=D, settled=True, steps=("learn", "vote"))),
    core("members: 3 to 4 to 3", Setup(Bound(2, changes=3), extra=D, settled=True, steps=("learn", "vote", "remove"))),
    core("members: 4 to 2 by two leaders",
         Setup(Bound(3, changes=2), founders=("a", "b", "c", "d"), settled=True, steps=("remove",))),
    core("members: 3 to 2, to a learner, and back",
         Setup(Bound(3, changes=2), settled=True, steps=("remove", "unvote", "learn", "vote"))),
    core("members: a lost incarnation",
         Setup(Bound(3, changes=2, wipes=1), settled=True, steps=("readmit", "vote")), quick=True),
    core("members x restart", Setup(Bound(2, changes=2, restarts=1), settled=True, steps=("remove", "learn", "vote")),
         quick=True),
    core("members x delay", Setup(Bound(2, changes=2, delays=1), settled=True, steps=("remove", "learn", "vote"))),
    core("members x compaction",
         Setup(Bound(2, changes=2, compactions=1), settled=True, steps=("remove", "learn", "vote")), quick=True),
    core("five nodes", Setup(Bound(1), FIVE), quick=True, down_max=2),
    core("five nodes", Setup(Bound(2), FIVE, settled=True), down_max=2),
    upper("failovers", Promises(2, 2), quick=True),
    upper("failovers", Promises(3, 3)),
    upper("restart", Promises(2, 3, 1, reads=True), quick=True),
    upper("restart", Promises(3, 2, 1)),
    upper("a lost data directory", Promises(2, 2, clones=1), quick=True),
    upper("two lost data directories", Promises(2, 2, clones=2)),
    upper("a grant fails", Promises(3, 1), FailingWorld),
    upper("a grant fails x two lost data directories", Promises(2, 1, clones=2), FailingWorld),
    upper("a switchover was wished for", Promises(2, 2, 1, wish="b"), quick=True),
    upper("witness", Promises(2, 2, 1, data=2), quick=True),
    upper("witness", Promises(3, 2, data=2)),
    upper("a data node outside S", Promises(2, 2, 1, seated=2), quick=True),
    upper("five nodes", Promises(2, 1, nodes=5, data=5, k=3), quick=True),
    upper("five nodes", Promises(2, 2, nodes=5, data=5, k=3)),
    upper("S shrinks", change("abc", 2, "ab", 2), LiveGroupWorld, quick=True),
    upper("S grows", change("ab", 2, "abc", 2), LiveGroupWorld),
    upper("k grows", change("abc", 2, "abc", 3), LiveGroupWorld),
    upper("k shrinks", change("abc", 3, "abc", 2), LiveGroupWorld),
    upper("S and k: to the primary alone", change("ab", 2, "a", 1), LiveGroupWorld),
    upper("S and k: from the primary alone", change("a", 1, "ab", 2), LiveGroupWorld),
    upper("a seat changes hands", change("ab", 2, "ac", 2), LiveGroupWorld),
    upper("S change and its revert", change("abc", 2, "ab", 2, changes=2), LiveGroupWorld),
    upper("done comes late", Promises(2, 1, changes=2, targets=(group("a", 1),)), LateDone),
    upper("S change x restart", change("abc", 2, "ab", 2, restarts=1), LiveGroupWorld),
    upper("S change x witness", Promises(2, 2, data=2, seated=1, k=1, changes=1, targets=(group("ab", 2),)),
          LiveGroupWorld, quick=True),
    upper("a lost incarnation on its way back into S", Promises(2, 2, wipes=1, changes=1), LiveGroupWorld),
    upper("a lost place in a group of two", Promises(3, 1, data=2, wipes=1, changes=1, blocked=True), LiveGroupWorld),
    lease("elections", LeaseSetup(Bound(2)), quick=True),
    lease("elections, the leader's clock is fast", LeaseSetup(Bound(2), Clocks(rates=(3, 2, 2)))),
    lease("heartbeats", LeaseSetup(Bound(2), beats=2, settled=True)),
    lease("delay", LeaseSetup(Bound(2, delays=1))),
    lease("restart and resume", LeaseSetup(Bound(2, restarts=1))),
    lease("release and transfer", LeaseSetup(Bound(2, releases=1))),
    lease("restart x release", LeaseSetup(Bound(2, restarts=1, releases=1), settled=True)),
    lease("restart x delay", LeaseSetup(Bound(2, restarts=1, delays=1), settled=True)),
    lease("release x delay", LeaseSetup(Bound(2, releases=1, delays=1), settled=True)),
    lease("a late word to the watchdog", LeaseSetup(Bound(2), late_tells=1)),
    lease("members: one leaves or loses its vote",
          LeaseSetup(Bound(2, changes=1), settled=True, steps=("remove", "unvote")), quick=True),
    lease("members: 3 to 2, and back",
          LeaseSetup(Bound(2, changes=2), settled=True, steps=("remove", "learn", "vote"))),
    lease("members: a learner comes",
          LeaseSetup(Bound(2, changes=1), FOURTH, settled=True, joins=1, steps=("learn",)), quick=True),
    retimed("larger, the first step", larger(), quick=True),
    retimed("larger, the switch", larger("bc?"), quick=True),
    retimed("larger, the switch, and one voter has not heard", larger("b", beats=1)),
    retimed("larger, the switch x restart", larger("bc?", restarts=1)),
    retimed("larger, done", larger("bc", "bc?", *LATER), quick=True),
    retimed("larger, done x restart", larger("bc", "bc?", *LATER, restarts=1)),
    retimed("smaller, the first step", smaller(), quick=True),
    retimed("smaller, the switch, and one voter has not heard", smaller("b", beats=1)),
    retimed("smaller, the switch x restart", smaller("bc?", restarts=1)),
    retimed("smaller, done", smaller("bc", "bc?", *LATER), quick=True),
    retimed("smaller, done x heartbeat", smaller("bc", "bc", *LATER, beats=1)),
    retimed("smaller, done x restart", smaller("bc", "bc?", *LATER, restarts=1)),
    retimed("a shorter L for a longer F, the switch", traded("bc?"), quick=True),
    retimed("a shorter L for a longer F, done", traded("bc", "bc?", *LATER), quick=True),
    founding("restarts", FoundingSetup(), quick=True),
    founding("a lost disk x delay", FoundingSetup(losses=1, delays=1), quick=True),
    founding("a lost disk x delay", FoundingSetup(losses=1, delays=2)),
    founding("a lost Raft state x delay", FoundingSetup(raft_losses=1, delays=1), quick=True),
    founding("all Raft states are lost", FoundingSetup(raft_losses=3)),
)  # fmt: skip
