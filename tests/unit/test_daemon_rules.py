"""The rules that the daemon itself holds: a grant that does not become a primary in time has failed; what lies in the
socket is read before a primary is fenced; nobody arms the watchdog for a Postgres that is gone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consensus.cluster import ClusterState, Grant
from consensus.membership import Member
from consensus.record import EpochStart, Position
from fencing import wire
from fencing.clock import now_ns
from fencing.kill import ProcessId
from fencing.lease import MS, PROFILES
from supervisor.daemon import Daemon
from supervisor.observe import Facts
from supervisor.overdue import Overdue
from supervisor.roles import Data, Local, Plan, Server, Step, View
from supervisor.tasks import Runner, Task, run_blocking

PRIMARY_START_TIMEOUT_MS = 1000 * ClusterState().setting("primary_start_timeout")
TIMEOUT = PRIMARY_START_TIMEOUT_MS * MS
BEGAN = 1_000 * MS


class Node:
    """As much of a daemon as the rule looks at; the clock is moved by hand."""

    def __init__(self, granted: int = 7) -> None:
        self.now = BEGAN
        self.logged: list[tuple[str, dict[str, Any]]] = []
        log = SimpleNamespace(error=lambda event, **fields: self.logged.append((event, fields)))
        self.c = SimpleNamespace(
            view=View(alive=True, granted=granted), local=Local("a"), change=self._change, facts=Facts()
        )
        self.stub = SimpleNamespace(c=self.c, log=log, overdue=Overdue())

    def _change(self, **facts: Any) -> None:
        self.c.local = replace(self.c.local, **facts)

    def turn(self, after_ns: int = 0, *, alive: bool = True, granted: int | None = None, **local: Any) -> int:
        """One turn of the loop so much later: the term that is now held to have failed, 0 for none."""
        self.now += after_ns
        self.c.view = replace(self.c.view, alive=alive, granted=self.c.view.granted if granted is None else granted)
        self._change(**local)
        Daemon._watch_promotion(cast(Daemon, self.stub), self.now)
        return int(self.c.local.failed_promotion)


@pytest.mark.parametrize("server", [Server.DOWN, Server.STARTING, Server.STANDBY, Server.PROMOTING])
def test_a_grant_that_never_becomes_a_primary_fails_after_the_timeout(server: Server) -> None:
    node = Node()
    assert node.turn(server=server, epoch=7 if server is Server.PROMOTING else 0) == 0
    assert node.turn(TIMEOUT) == 0, "not before"
    assert node.turn(1) == 7
    assert node.logged == [("promotion.failed", {"term": 7, "after_ms": PRIMARY_START_TIMEOUT_MS})]
    assert node.turn(TIMEOUT) == 7
    assert len(node.logged) == 1, "said once"


def test_the_time_counts_from_the_grant_and_not_from_an_earlier_one() -> None:
    node = Node(granted=5)
    node.turn(server=Server.STANDBY)
    assert node.turn(TIMEOUT - 1) == 0
    assert node.turn(granted=7) == 0
    assert node.turn(TIMEOUT) == 0, "the new grant has all of its time"
    assert node.turn(1) == 7


@pytest.mark.parametrize("server", [Server.STOPPING, Server.DOWN])
def test_a_primary_that_hands_over_much_later_has_not_failed(server: Server) -> None:
    """It still holds its grant then, and is no primary any more."""
    node = Node()
    node.turn(server=Server.PROMOTING, epoch=7)
    node.turn(5_000 * MS, server=Server.PRIMARY, gate_open=True)
    node.c.facts = Facts(answered_ns=node.now + 10 * TIMEOUT)
    assert node.turn(10 * TIMEOUT) == 0, "as a primary that answers neither"
    assert node.turn(1, server=server) == 0
    assert node.turn(10 * TIMEOUT) == 0
    assert node.logged == []


def test_a_primary_that_waits_for_its_standbys_has_not_failed_and_one_that_hangs_has() -> None:
    """Strict means closed until they have it; but the next candidate gets its turn if it is Postgres that is silent."""
    node = Node()
    node.turn(server=Server.PROMOTING, epoch=7)
    node.turn(5_000 * MS, server=Server.PRIMARY)
    for _ in range(100):
        node.c.facts = Facts(answered_ns=node.now)
        assert node.turn(1_000 * MS) == 0
    node.c.facts = Facts(answered_ns=node.now)
    assert node.turn(TIMEOUT) == 0
    assert node.turn(1) == 7


def test_an_open_primary_that_answers_nothing_for_as_long_has_failed() -> None:
    """Its processes live and its lease goes on: nobody else would notice."""
    node = Node()
    node.turn(server=Server.PRIMARY, epoch=7, gate_open=True)
    node.c.facts = Facts(answered_ns=node.now)
    assert node.turn(TIMEOUT) == 0
    assert node.turn(1) == 7


def test_to_have_been_primary_of_an_earlier_grant_excuses_nothing() -> None:
    node = Node(granted=5)
    node.turn(server=Server.PRIMARY, epoch=5)
    node.turn(1, granted=7, server=Server.STANDBY, epoch=0)
    assert node.turn(TIMEOUT + 1) == 7
    other = Node(granted=7)
    other.turn(server=Server.PRIMARY, epoch=5)
    assert other.turn(TIMEOUT + 1) == 7, "nor has a server that is primary under another grant begun this one"


def test_while_the_raft_child_is_away_nothing_is_known_to_have_failed() -> None:
    node = Node()
    node.turn(server=Server.STANDBY)
    assert node.turn(TIMEOUT + 1, alive=False) == 0
    assert node.turn(1, alive=True) == 7


def test_without_a_grant_nothing_fails() -> None:
    node = Node(granted=5)
    node.turn(server=Server.PRIMARY, epoch=5, failed_promotion=3)
    node.turn(1, granted=0, server=Server.STANDBY, epoch=0)
    assert node.turn(10 * TIMEOUT) == 3, "what failed before is not forgotten either"
    assert node.logged == []


# -- a renewal that lies in the socket -------------------------------------------------------------------------------

LEASE = PROFILES["default"].lease_ms * MS
EPOCH = 7


class Link:
    """What the Raft child, or the watchdog, has sent; and what it is told."""

    def __init__(self, *unread: wire.Frame) -> None:
        self.unread = list(unread)
        self.told: list[str] = []

    def facts(self) -> list[wire.Frame]:
        taken, self.unread = self.unread, []
        return taken

    def tell(self, name: str, body: dict[str, Any], request_id: str = "") -> bool:
        self.told.append(name)
        return True

    def ask(self, name: str, body: dict[str, Any], timeout_ms: int) -> Task[wire.Frame]:
        self.told.append(name)
        return wire.Frame("deadman.armed", "", {"ok": True})
        yield


def primary(*unread: wire.Frame, lease_until_ns: int) -> Daemon:
    """A daemon on a primary of term 7 with this lease, right after a turn that took long."""
    grant = Grant(EPOCH, "a", Position(0, 0), 2, (EpochStart(EPOCH, 100, 2),), opened=True)
    cluster = ClusterState(members=tuple(Member(n, 1, "", "", "") for n in "abc"), nonce="n", grants=(grant,))
    view = View(
        True, 1, EPOCH, "a", "leader", granted=EPOCH, cluster=cluster, lease_term=EPOCH, lease_until_ns=lease_until_ns,
        renewed=True, met=True,
    )  # fmt: skip
    local = Local("a", Data.READY, Server.PRIMARY, epoch=EPOCH, frozen=EPOCH, gate_open=True)
    daemon = Daemon.__new__(Daemon)
    c: Any = SimpleNamespace(
        facts=Facts(answered_ns=now_ns()),
        view=view, local=local, timings=PROFILES["default"], raft=Link(*unread), watchdog=Link(),
        process=ProcessId(9, 9), apply_settings=lambda: None,
    )  # fmt: skip
    daemon.c, daemon.runner = c, Runner()
    daemon.log = cast(Any, SimpleNamespace(info=lambda *_, **__: None))
    daemon.plan, daemon.sentence, daemon.task, daemon.failures = Plan(Step.WAIT, 0, "serving"), "", None, {}
    daemon.watcher = cast(Any, SimpleNamespace(done=False))
    daemon.overdue, daemon.snapshot_at_ns = Overdue(), 0
    daemon.overdue.granted, daemon.overdue.promoted = (EPOCH, 0), EPOCH
    daemon.fenced = []  # type: ignore[attr-defined]
    daemon.actions = {Step.FENCE: lambda plan: _fence(daemon, plan)}
    return daemon


def _fence(daemon: Any, plan: Plan) -> Task[None]:
    daemon.fenced.append(plan.term)
    return
    yield


def renewal(until_ns: int, term: int = EPOCH) -> wire.Frame:
    return wire.Frame("lease.changed", "", {"term": term, "until_ns": until_ns})


def test_a_renewal_that_was_not_read_yet_keeps_a_primary() -> None:
    now = now_ns()
    daemon = primary(renewal(now + LEASE), lease_until_ns=now)
    daemon._replan()
    assert (daemon.plan.rule, daemon.fenced) == ("serving", [])  # type: ignore[attr-defined]
    assert daemon.c.view.lease_until_ns == now + LEASE


@pytest.mark.parametrize("what", ["nothing", "one that is over as well", "one of another term"])
def test_what_renews_nothing_does_not(what: str) -> None:
    now = now_ns()
    unread = {
        "nothing": [], "one that is over as well": [renewal(now + 1)], "one of another term": [renewal(now + LEASE, 8)],
    }[what]  # fmt: skip
    daemon = primary(*unread, lease_until_ns=now)
    daemon._replan()
    assert (daemon.plan.rule, daemon.fenced) == ("authority-lost", [EPOCH])  # type: ignore[attr-defined]


# -- a watchdog that was replaced ------------------------------------------------------------------------------------


def test_a_new_watchdog_is_armed_for_a_postgres_that_lives() -> None:
    daemon = primary(lease_until_ns=now_ns() + LEASE)
    assert run_blocking(daemon._rearm(EPOCH)) is True
    assert cast(Any, daemon.c.watchdog).told == ["deadman.arm"]


def test_a_new_watchdog_is_not_armed_for_a_postgres_that_ended_in_the_same_turn() -> None:
    """Armed with it, it would take the next Postgres, a standby, for the primary, and kill it at the lease's end."""
    daemon = primary(lease_until_ns=now_ns() + LEASE)
    daemon.c.local = replace(daemon.c.local, server=Server.DOWN, crashed="killed")
    assert run_blocking(daemon._rearm(EPOCH)) is False
    assert cast(Any, daemon.c.watchdog).told == []


def test_the_end_of_the_authority_wakes_the_loop_once_and_does_not_make_it_spin() -> None:
    """While the fence that it asks for runs, that time is past."""
    now = now_ns()
    daemon = primary(lease_until_ns=now + 3_600_000 * MS)
    daemon.c.view = replace(daemon.c.view, lease_until_ns=now)
    daemon.http, daemon.greeted, daemon.snapshot_at_ns = None, True, now + 3_600_000 * MS
    daemon.offspring = cast(Any, SimpleNamespace(wakeup_ns=lambda: now + 3_600_000 * MS))
    daemon.files = cast(Any, SimpleNamespace(deadline_ns=lambda: None))
    assert daemon._next_deadline_ns() <= now_ns()
    daemon.plan = Plan(Step.FENCE, EPOCH, "authority-lost")
    assert daemon._next_deadline_ns() > now_ns()
