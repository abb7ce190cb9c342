"""What a node does of pause, restart and reload: what it leaves alone, and when it says that it is back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consensus.cluster import ClusterState
from consensus.operations import Operations, Reload, Rolling
from consensus.record import NodeRecord
from fencing.clock import now_ns
from fencing.lease import MS, PROFILES
from supervisor import watch
from supervisor.context import Context
from supervisor.daemon import Daemon
from supervisor.observe import Facts
from supervisor.overdue import Overdue
from supervisor.postgres import Postmaster, StopMode
from supervisor.roles import Data, Local, Plan, Server, Step, View
from supervisor.slots import Slots
from supervisor.steps import Steps
from supervisor.tasks import Task, run_blocking
from supervisor.watch import Watcher
from tests.unit.test_settings_applied import Node as SettingsNode
from tests.unit.test_steps_rules import GRANT

PAUSED = '{"pause":true}'


class Node:
    """As much of a context as is looked at; it keeps what it is told to tell."""

    def __init__(self, server: Server = Server.STANDBY, config: str = "{}", **local: Any) -> None:
        rolling = Rolling(8, ("a", "b"), False, False, 300, "me", turn="b", turn_index=9, turn_term=5)
        cluster = ClusterState(grants=(GRANT,), config=config, ops=Operations(rolling))
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.logged: list[str] = []
        self.view = View(True, 1, 5, "a", cluster=cluster, met=True, record=NodeRecord(5))
        self.local = replace(Local("b", Data.READY, server), **local)
        self.facts = Facts(lsn=200, replay_lsn=200, streaming=True)
        self.postmaster: Any = SimpleNamespace(stop=self._stop, told_to_stop=False, close=lambda: None)
        self.stopped: list[StopMode] = []
        self.raft = SimpleNamespace(tell=self._tell)
        self.watchdog = SimpleNamespace(tell=lambda *_: True)
        self.log: Any = SimpleNamespace(
            warning=lambda event, **_: self.logged.append(event), once_per=lambda *_: self.log,
            error=lambda *_, **__: None, info=lambda *_, **__: None,
        )  # fmt: skip
        self.postgres = SimpleNamespace(log_tail=lambda *_: ["hot standby is not possible: " + watch.INSUFFICIENT])
        self.session, self.process, self.timings = None, None, PROFILES["default"]
        self.config = SimpleNamespace(pgdata="/nowhere")
        self.freeze_failing_ns = 0
        self.delay_ms = 0

    def closed_ms(self, epoch: int) -> dict[str, int]:
        return {"closed_ms": 40}

    @property
    def cluster(self) -> ClusterState:
        assert self.view.cluster is not None
        return self.view.cluster

    @property
    def record(self) -> NodeRecord:
        return self.view.record

    @property
    def followed(self) -> Any:
        return Context.followed.fget(cast(Context, self))  # type: ignore[attr-defined]  # of a property

    def change(self, **facts: Any) -> None:
        self.local = replace(self.local, **facts)

    def restarts(self, **changes: Any) -> None:
        rolling = self.cluster.ops.rolling
        assert rolling is not None
        ops = Operations(rolling._replace(**changes))
        self.view = replace(self.view, cluster=replace(self.cluster, ops=ops))

    def _tell(self, name: str, body: dict[str, Any]) -> bool:
        self.told.append((name, body))
        return True

    def _stop(self, mode: StopMode) -> None:
        self.stopped.append(mode)

    def is_back(self) -> bool:
        self.told = []
        Watcher(cast(Context, self))._tell_of_restart()
        return [(name, body["kind"], body["body"]["turn"]) for name, body in self.told] == [
            ("node.propose", "restarted/1", 9)
        ]


# -- restart


def test_a_standby_is_back_when_it_was_started_since_and_streams() -> None:
    node = Node(restarted=9, upstream=5)
    assert node.is_back()
    assert not Node(restarted=8, upstream=5).is_back(), "it was not restarted"
    node.facts = replace(node.facts, streaming=False)
    assert not node.is_back()
    node.delay_ms = 3_600_000
    assert node.is_back(), "one that replays late streams again only when it has replayed what it has"
    assert not Node(restarted=9, upstream=4).is_back()
    node = Node(restarted=9, upstream=5)
    node.restarts(turn="a")
    assert not node.is_back(), "it is not its turn"


def test_a_standby_without_a_primary_is_back_when_it_runs() -> None:
    node = Node(restarted=9)
    node.view = replace(node.view, cluster=replace(node.cluster, grants=(GRANT._replace(failed="x"),)))
    node.facts = replace(node.facts, streaming=False)
    assert node.is_back()


def test_a_primary_in_place_is_back_when_its_gate_is_open() -> None:
    node = Node(restarted=9)
    grants = (GRANT._replace(node="b"),)
    node.view = replace(node.view, cluster=replace(node.cluster, grants=grants))
    node.restarts(to="b")
    node.facts = replace(node.facts, streaming=False)
    assert not node.is_back(), "a standby that is to be promoted again"
    node.change(server=Server.PRIMARY, epoch=6)
    assert not node.is_back(), "not open yet"
    node.change(gate_open=True)
    assert node.is_back()


# -- pause


@pytest.fixture
def bury(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "_bury", lambda self, why: self.c.change(server=Server.DOWN, crashed=why))


@pytest.mark.usefixtures("bury")
def test_postgres_that_ends_by_itself_is_told_from_one_that_pgr_ended() -> None:
    for server, told, left_down in (
        (Server.STANDBY, False, True), (Server.PRIMARY, False, True), (Server.STANDBY, True, False),
        (Server.STARTING, False, False),  # that one is tried again, and quarantined
    ):  # fmt: skip
        node = Node(server)
        node.postmaster.told_to_stop = told
        Steps(cast(Context, node)).postmaster_ended("ended")
        assert node.local.left_down is left_down, (server, told)


@pytest.mark.usefixtures("bury")
@pytest.mark.parametrize("word_first", [True, False])
def test_what_the_watchdog_killed_is_no_end_of_its_own(word_first: bool) -> None:
    node = Node(Server.PRIMARY)
    made = Steps(cast(Context, node))
    for act in (made.ended_by_pgr, lambda: made.postmaster_ended("ended"))[:: 1 if word_first else -1]:
        act()
    assert not node.local.left_down


@pytest.mark.usefixtures("bury")
@pytest.mark.parametrize("left_ms", [60_000, -1])
def test_nor_is_what_ends_after_the_lease(left_ms: int) -> None:
    """It is reported before the watchdog, which still looks for what is left, has a word for it."""
    node = Node(Server.PRIMARY, epoch=5)
    node.view = replace(node.view, lease_term=5, lease_until_ns=now_ns() + left_ms * MS)
    Steps(cast(Context, node)).postmaster_ended("ended", died=True)
    assert (node.local.left_down, node.local.died) == (left_ms > 0, left_ms > 0)


def test_to_stop_a_postmaster_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Postmaster, "send", lambda *_: True)
    made = Postmaster(1, 1, 0)
    assert not made.told_to_stop
    made.stop(StopMode.FAST)
    assert made.told_to_stop


@pytest.mark.parametrize(
    ("facts", "lease_lost"),
    [({}, True), ({"left_down": True}, False), ({"stopping": True}, False), ({"failed_promotion": 5}, False)],
)
def test_why_a_reign_ended_is_told_with_it(facts: dict[str, Any], lease_lost: bool) -> None:
    node = Node(Server.DOWN, epoch=5, crashed="fenced: authority-lost", **facts)
    node.view = replace(node.view, granted=5)
    next(iter(Steps(cast(Context, node)).report_fenced(Plan(Step.REPORT_FENCED, 5))))
    assert [body["lease_lost"] for _, body in node.told] == [lease_lost]


def test_a_silent_primary_is_left_alone_in_pause() -> None:
    """A person may have stopped it on purpose. A promotion that was asked for has its time as ever."""
    late, now = 60_000 * MS, 1_000 * MS
    for config, failed in (("{}", 7), (PAUSED, 0)):
        rule, view = Overdue(), View(alive=True, granted=7, cluster=ClusterState(config=config))
        primary = Local("a", server=Server.PRIMARY, epoch=7, gate_open=True)
        rule.failed(view, primary, now, now)
        assert rule.failed(view, primary, now, now + late) == failed
    rule, view = Overdue(), View(alive=True, granted=7, cluster=ClusterState(config=PAUSED))
    rule.failed(view, Local("a", server=Server.STANDBY), now, now)
    assert rule.failed(view, Local("a", server=Server.STANDBY), now, now + late) == 7


class Session:
    def __init__(self, answer: list[tuple[str, ...]]) -> None:
        self.answer, self.asked = answer, list[str]()

    def query(self, sql: str, *_: Any, **__: Any) -> Task[Any]:
        self.asked.append(sql)
        return self.answer
        yield


@pytest.mark.parametrize(("config", "stopped"), [("{}", [StopMode.FAST]), (PAUSED, [])])
def test_a_standby_that_lacks_settings_is_restarted_but_not_in_pause(config: str, stopped: list[StopMode]) -> None:
    node = Node(config=config)
    run_blocking(Watcher(cast(Context, node))._paused(cast(Any, Session([("paused",)])), 0))
    assert node.stopped == stopped
    assert node.logged == ["postgres.insufficient"]


@pytest.mark.parametrize(("config", "dropped"), [("{}", True), (PAUSED, False)])
def test_slots_of_former_members_stay_in_pause(config: str, dropped: bool) -> None:
    node: Any = Node(config=config)
    node.slots, node.binaries, node.seen = list[str], SimpleNamespace(major=18), {}
    node.syncs_slots = lambda: False
    node.config.data = Path("/nowhere")
    session = Session([("pgr_x", "physical", "f", "reserved", "0/0", "", "", "", "false", "false")])
    run_blocking(Slots(node).round(cast(Any, session)))
    assert any("pg_drop_replication_slot" in sql for sql in session.asked) is dropped


@pytest.mark.parametrize(("config", "asked"), [("{}", True), (PAUSED, False)])
def test_a_stopping_primary_looks_for_no_successor_in_pause(config: str, asked: bool) -> None:
    node = Node(Server.PRIMARY, config, stopping=True, epoch=5)
    members = tuple(SimpleNamespace(name=n) for n in "ab")
    node.view = replace(node.view, cluster=replace(node.cluster, members=cast(Any, members)))
    stub: Any = SimpleNamespace(c=node, stop_asked_ns=0, _situation=lambda _: SimpleNamespace(writable=True))
    node.raft.tell = lambda name, body, _id: node._tell(name, body)
    Daemon._ask_successor(stub, 1_000)
    assert bool(node.told) is asked
    assert node.local.asked_to_hand_over is not asked


# -- reload


def test_an_order_to_read_files_again_is_followed_once() -> None:
    node: Any = SettingsNode()
    node.apply_settings()
    assert node.reloads == 1, "new settings"
    node.apply_settings()
    assert node.reloads == 1
    node.cluster = replace(node.cluster, ops=Operations(reload=Reload(20, ("a", "c"))))
    node.apply_settings()
    node.apply_settings()
    assert (node.reloads, node.reloaded) == (2, 20)
    node.cluster = replace(node.cluster, ops=Operations(reload=Reload(21, ("c",))))
    node.apply_settings()
    assert node.reloads == 2, "another node's"
