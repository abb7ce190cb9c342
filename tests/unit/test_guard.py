"""What the own watchdog takes: what the Raft child knows of it, and no lease that it does not take, whoever is slow."""

from __future__ import annotations

from typing import Any

import pytest

from consensus import retiming
from consensus.guard import ASK_EVERY_MS, Guard, said
from consensus.node import Node
from consensus.retiming import Pace, Retiming
from fencing import deadman
from fencing.deadman import Arm, Armed, Bounds, Kill, LeaseChanged, Phase, Tick
from fencing.lease import MS, PROFILES, UNTOLD
from fencing.wire import Frame
from tests.unit.nodes import Cluster
from tests.unit.test_requests import opened

FAST, DEFAULT, CLOUD = (PROFILES[name] for name in ("fast", "default", "cloud"))
FOUNDED = Pace(DEFAULT)
OPEN = Pace(DEFAULT, Retiming(7, CLOUD), 7)
THERE = Pace(CLOUD, None, 9)
BACK = Pace(DEFAULT, None, 19)


def state(**body: object) -> Frame:
    return Frame("deadman.state", "", body)


# -- what is known of it ---------------------------------------------------------------------------------------------


def test_who_has_not_heard_of_a_watchdog_gives_the_leases_of_the_log() -> None:
    """A witness, whose leases nobody rests on."""
    assert Guard(FOUNDED).takes_ms() == 0


def test_one_that_was_started_with_something_else_may_be_told_of_the_log_at_any_time() -> None:
    guard = Guard(FOUNDED)
    guard.heard(CLOUD.lease_ms, UNTOLD)
    assert guard.takes_ms() == 700
    guard.meet(THERE)
    assert guard.takes_ms() == 700, "the word of the founding may be on its way yet"
    guard.heard(CLOUD.lease_ms, 9)
    assert guard.takes_ms() == 1400


def test_what_it_took_before_it_was_told_of_a_shorter_one_is_no_leave_for_the_next_longer_one() -> None:
    guard = Guard(THERE)
    guard.heard(CLOUD.lease_ms, 9)
    guard.meet(BACK)
    guard.heard(CLOUD.lease_ms, 9)  # asked before its parent told it
    assert guard.is_behind
    guard.meet(Pace(CLOUD, None, 29))
    assert guard.takes_ms() == 700
    guard.heard(DEFAULT.lease_ms, 19)
    assert guard.takes_ms() == 700
    guard.heard(CLOUD.lease_ms, 29)
    assert (guard.takes_ms(), guard.is_behind) == (1400, False)


def test_however_many_changes_it_has_missed_no_more_is_kept_than_can_make_a_difference() -> None:
    guard = Guard(FOUNDED)
    for n in range(100):
        guard.meet(Pace((FAST, CLOUD, DEFAULT)[n % 3], None, n + 1))
    assert guard.paces == [(100, 300)]
    guard.meet(Pace(CLOUD, None, 101))
    guard.meet(Pace(DEFAULT, None, 102))
    assert guard.paces == [(100, 300), (102, 700)]
    guard.meet(guard.pace)
    assert guard.paces == [(100, 300), (102, 700)]


def test_one_that_is_ahead_goes_by_a_log_that_is_not_this_ones() -> None:
    """Of a cluster that this one was rebuilt from, or of entries that this child has not read again yet."""
    guard = Guard(BACK)
    guard.heard(CLOUD.lease_ms, 29)
    assert (guard.takes_ms(), guard.is_behind) == (700, True)
    guard.heard(DEFAULT.lease_ms, 19)
    assert (guard.takes_ms(), guard.is_behind) == (700, False)


def test_it_is_asked_of_each_pace_at_once_and_again_until_it_has_heard() -> None:
    guard, now = Guard(FOUNDED), 10**12
    assert guard.asks(now)
    assert not guard.asks(now + ASK_EVERY_MS * MS - 1), "the answer is on its way"
    assert guard.asks(now + ASK_EVERY_MS * MS), "or lost"
    guard.heard(700, 0)
    assert not guard.asks(now + 10 * ASK_EVERY_MS * MS)
    guard.meet(OPEN)
    assert guard.asks(now + 10 * ASK_EVERY_MS * MS)
    guard.meet(THERE)
    assert guard.asks(now + 10 * ASK_EVERY_MS * MS), "whenever it was asked last"
    guard.heard(1400, 7)
    assert guard.asks(now + 11 * ASK_EVERY_MS * MS)
    guard.heard(1400, 9)
    assert not guard.asks(now + 12 * ASK_EVERY_MS * MS)


@pytest.mark.parametrize(
    "frame",
    [
        None, Frame("deadman.armed", "", {"lease_ms": 700, "at": 0}), state(lease_ms=0, at=0),
        state(lease_ms="700", at=0), state(lease_ms=700), state(at=0),
    ],
)  # fmt: skip
def test_what_says_nothing_of_it_is_not_believed(frame: Frame | None) -> None:
    guard = Guard(FOUNDED)
    assert said(frame) is None
    assert guard.confirms(frame, 3, 500) is None
    assert guard.lease_ms == 0


@pytest.mark.parametrize(
    ("changes", "until_ns"),
    [
        ({}, 600), ({"armed": False}, 0), ({"armed": 1}, 0), ({"term": 4}, 0), ({"until_ns": 500}, 0),
        ({"until_ns": None}, 0),
    ],
)  # fmt: skip
def test_a_restarted_child_goes_on_with_the_lease_that_its_watchdog_has_armed(
    changes: dict[str, Any], until_ns: int
) -> None:
    guard = Guard(FOUNDED)
    body = {"armed": True, "term": 3, "until_ns": 600, "lease_ms": 300, "at": 0} | changes
    assert guard.confirms(state(**body), 3, 500) == until_ns
    assert guard.takes_ms() == 300


# -- at a node -------------------------------------------------------------------------------------------------------


def is_switched(node: Node) -> bool:
    change = node.cluster.pace.change
    return change is not None and change.switched


def put(cluster: Cluster, **values: object) -> None:
    assert cluster.ask("a", "config.set", set=values, unset=[])["ok"]


def test_a_resumed_leader_gives_no_lease_that_its_watchdog_does_not_take() -> None:
    """It died between the switch and the watchdog's word."""
    cluster = opened("a", "b", "c")
    put(cluster, profile="cloud")
    cluster.until(lambda: is_switched(cluster.members["a"].node), 20_000)
    node = cluster.restart("a").node
    until_ns = cluster.now + 400 * MS
    frame = state(armed=True, term=node.raft.term, until_ns=until_ns, lease_ms=700, at=0)
    assert node.guard.confirms(frame, node.raft.term, cluster.now) == until_ns
    node.start(node.raft.resume(until_ns), cluster.now)
    cluster.until(lambda: node.raft.lease_until_ns > until_ns)
    assert is_switched(node)
    assert node.raft.lease_until_ns - node.raft.lease_from_ns == 700 * MS


def test_no_lease_is_longer_than_the_own_watchdog_takes_and_the_change_does_not_end_before() -> None:
    cluster = opened("a", "b", "c")
    node = cluster.members["a"].node
    node.guarded(DEFAULT.lease_ms, 0, cluster.now)
    put(cluster, profile="cloud")
    cluster.until(lambda: is_switched(node), 20_000)
    cluster.run(5_000)
    assert node.raft.config.lease_ns == DEFAULT.lease_ms * MS
    assert is_switched(node)
    node.guarded(CLOUD.lease_ms, node.cluster.pace.at, cluster.now)
    assert node.raft.config.lease_ns == CLOUD.lease_ms * MS
    cluster.until(lambda: node.cluster.pace.change is None, 20_000)
    assert node.cluster.pace.timings == CLOUD


# -- beside a watchdog whose parent takes its time -------------------------------------------------------------------


class Beside:
    """Watchdog (the shipped machine) and parent of one node. The parent tells the watchdog ``slow_ms`` after the Raft
    child told it, an answer of the watchdog takes a millisecond."""

    def __init__(self, cluster: Cluster, slow_ms: int, started: str = "default") -> None:
        self.cluster, self.slow_ms = cluster, slow_ms
        self.watchdog = deadman.deadman(PROFILES[started])
        self.orders: list[tuple[int, Bounds]] = []
        self.answers: list[tuple[int, int, int]] = []
        self.told: Pace | None = None
        self.killed = ""
        self.lease_ns = 0

    @property
    def node(self) -> Node:
        return self.cluster.members["a"].node

    def feed(self, event: deadman.Event) -> tuple[deadman.Action, ...]:
        self.watchdog, actions = deadman.step(self.watchdog, event, self.cluster.now)
        for action in actions:
            if isinstance(action, Kill):
                self.killed = self.killed or action.reason
        return actions

    def turn(self) -> None:
        now, node = self.cluster.now, self.node
        while self.orders and self.orders[0][0] <= now:
            self.feed(self.orders.pop(0)[1])
        while self.answers and self.answers[0][0] <= now:
            self.cluster.carry_out("a", node.guarded(*self.answers.pop(0)[1:], now))
        if node.raft.lease_until_ns not in (0, self.lease_ns):
            self.lease_ns = node.raft.lease_until_ns
            self.feed(LeaseChanged(node.raft.term, self.lease_ns))
        if node.cluster.pace is not self.told:
            self.told = node.cluster.pace
            found = retiming.at_the_watchdog(self.told)
            bounds = Bounds(found.lease_ms * MS, found.kill_bound_ms * MS, self.told.at)
            self.orders.append((now + self.slow_ms * MS, bounds))
        if node.guard.asks(now):
            self.answers.append((now + MS, self.watchdog.lease_ns // MS, self.watchdog.at))
        self.feed(Tick())

    def run(self, ms: int) -> None:
        for _ in range(ms):
            self.cluster.turn()
            self.turn()

    def arm(self) -> None:
        self.run(300)
        [armed] = self.feed(Arm(self.node.raft.term, 7, 7, self.node.raft.lease_until_ns))
        assert isinstance(armed, Armed)
        assert (armed.ok, self.watchdog.phase) == (True, Phase.ARMED)

    def put(self, **values: object) -> None:
        """Asked and not waited for: nothing of the clock passes before `turn` sees it."""
        machine = self.cluster.members["a"]
        before = len(machine.answers)
        self.cluster.tell("a", "admin.request", {"name": "config.set", "body": {"set": values, "unset": []}}, "r")
        self.turn()
        assert machine.answers[before]["ok"]

    def settle(self, profile: str) -> None:
        for _ in range(20_000):
            if self.node.cluster.pace._replace(at=0) == retiming.of_profile(profile):
                break
            self.run(1)
        self.run(300)
        assert self.node.cluster.pace._replace(at=0) == retiming.of_profile(profile)
        assert not self.killed, f"on the way to {profile}: {self.killed}"


@pytest.mark.parametrize("names", ["a", "abc"])
@pytest.mark.parametrize("slow_ms", [0, 3, 50, pytest.param(2_500, marks=pytest.mark.slow)])
def test_there_and_back_and_there_again(names: str, slow_ms: int) -> None:
    """Alone, all steps are committed before any other process runs."""
    beside = Beside(opened(*names), slow_ms)
    beside.arm()
    for profile in ("cloud", "default", "cloud", "fast", "cloud"):
        beside.put(profile=profile)
        beside.settle(profile)


@pytest.mark.parametrize("names", ["a", "abc"])
@pytest.mark.parametrize("slow_ms", [3, pytest.param(2_500, marks=pytest.mark.slow)])
def test_a_node_that_was_started_with_a_longer_profile_than_the_clusters(names: str, slow_ms: int) -> None:
    beside = Beside(opened(*names), slow_ms, started="cloud")
    beside.arm()
    beside.put(profile="cloud")
    beside.settle("cloud")


@pytest.mark.parametrize("names", ["a", "abc"])
@pytest.mark.parametrize("slow_ms", [0, 10, 150])
def test_a_heartbeat_that_is_longer_than_the_lease_before(names: str, slow_ms: int) -> None:
    beside = Beside(opened(*names), slow_ms)
    beside.arm()
    beside.put(heartbeat_ms=800, lease_ms=4000, election_ms=6000)
    beside.run(9_000)
    assert not beside.killed
    assert beside.node.cluster.pace.change is None


def on_the_way_without_c(slow_ms: int) -> Beside:
    """From default to cloud; c, which is away, has to hear of it."""
    beside = Beside(opened("a", "b", "c"), slow_ms)
    beside.arm()
    beside.cluster.members["c"].up = False
    beside.put(profile="cloud")
    beside.run(400)
    change = beside.node.cluster.pace.change
    assert change is not None
    assert not change.switched
    return beside


def test_a_change_of_mind_and_back_within_a_heartbeat() -> None:
    """c is away while cloud is begun and given up, and is there when it is asked for again 20 ms later."""
    beside = on_the_way_without_c(5)
    cluster = beside.cluster
    cluster.members["c"].up = True
    cluster.cut |= {("a", "c"), ("c", "a")}
    beside.put(profile="default")
    beside.run(20)
    assert beside.node.cluster.pace.change is None
    cluster.cut.clear()
    beside.put(profile="cloud")
    beside.settle("cloud")


def resume(beside: Beside) -> None:
    """The Raft child dies and goes on within its lease, as `Host._start_node` does it."""
    cluster = beside.cluster
    machine = cluster.members["a"]
    node = cluster.start(machine.disk, machine.mine, boot=7).node
    dog = beside.watchdog
    assert dog.phase is Phase.ARMED
    frame = state(armed=True, term=dog.term, until_ns=dog.until_ns, lease_ms=dog.lease_ns // MS, at=dog.at)
    until_ns = node.guard.confirms(frame, node.raft.term, cluster.now)
    assert until_ns
    cluster.carry_out("a", node.start(node.raft.resume(until_ns), cluster.now))
    beside.lease_ns = 0
    cluster.tell("a", "node.hello", {})


@pytest.mark.parametrize("slow_ms", [310, 360, 390])
def test_the_child_restarts_while_the_change_waits_for_a_voter_that_is_back_then(slow_ms: int) -> None:
    """A child whose disk did not know that `retime/1` is committed would tell its parent the pace before, and that
    the watchdog, late: by then the child would have heard 1400 by the very entry that it has committed again."""
    beside = on_the_way_without_c(3)
    cluster, at = beside.cluster, beside.node.cluster.pace.at
    assert (beside.watchdog.lease_ns, beside.watchdog.at) == (1400 * MS, at)
    beside.slow_ms = slow_ms
    resume(beside)
    cluster.members["c"].up = True
    cluster.cut |= {("a", "b"), ("a", "c")}  # until its peers have dialed again
    beside.run(300)
    cluster.cut.clear()
    for _ in range(200):
        if beside.watchdog.at != at:
            break
        beside.run(1)
    # Any entry makes a round; a heartbeat does as well, if it falls into this window.
    beside.node.propose_or_forward("rebuilt/1", {"node": "b", "index": 0, "at": ""}, cluster.now)
    beside.run(3)
    assert not beside.killed


def test_one_that_was_ahead_is_asked_until_it_has_answered_for_the_pace_that_came_after() -> None:
    guard = Guard(Pace(DEFAULT))
    guard.heard(1400, 9)
    now = 10**12
    assert guard.asks(now)
    guard.meet(Pace(CLOUD, None, 9))
    assert guard.asks(now + 10**9)  # lost: zmq.Again, or its watchdog died
    assert guard.takes_ms() == 700
    assert guard.asks(now + 2 * 10**9), "capped, and never asked again"
