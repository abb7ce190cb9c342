"""Pause, restarts, reloads and the schedule at the leader: each asked of a whole cluster in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from consensus import operate, requests, rolling, timetable
from consensus.forecast import forecast
from consensus.operations import Scheduled
from fencing.lease import MS
from tests.unit import test_requests
from tests.unit.nodes import Cluster, T
from tests.unit.test_requests import refusal

PENDING = {"max_connections": "100"}


class Clock:
    """The wall clock of every node of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.at = datetime(2030, 1, 1, tzinfo=UTC)
        for machine in cluster.members.values():
            machine.node.wall_clock = self.text

    def text(self) -> str:
        return timetable.written(self.at)

    def go(self, **step: int) -> None:
        self.at += timedelta(**step)


def ops(cluster: Cluster, name: str = "a") -> Any:
    return cluster.members[name].node.cluster.ops


def lines(cluster: Cluster, kind: str, name: str = "a") -> list[tuple[str, str]]:
    return [(e.node, e.text) for e in cluster.members[name].node.cluster.history if e.kind == kind]


def says(cluster: Cluster, name: str, **seen: Any) -> None:
    """What ``name`` observes of itself is this much different, and its leader knows it."""
    machine = cluster.members[name]
    machine.seen = dict(machine.seen) | seen
    cluster.tell(name, "node.observed", machine.seen)
    leader = machine.node.raft.leader
    cluster.until(lambda: cluster.members[leader].node.sightings.of(name).items() >= seen.items())


def back(cluster: Cluster, name: str) -> None:
    """Its Postgres has been restarted: its parent says so."""
    cluster.until(lambda: ops(cluster, name).rolling.turn == name)
    turn = ops(cluster, name).rolling.turn_index
    cluster.tell(name, "node.propose", {"kind": "restarted/1", "body": {"node": name, "turn": turn}})


def turn(cluster: Cluster) -> str:
    running = ops(cluster).restarting
    return running.turn if running is not None else ""


def fenced(cluster: Cluster, name: str) -> None:
    """Its parent has stopped Postgres cleanly, as it was asked to."""
    machine = cluster.members[name]
    body = {"term": machine.state["granted"], "reason": "switchover", "clean": True, "at": ""}
    cluster.tell(name, "node.fenced", body)


def opened(*names: str, witnesses: str = "") -> Cluster:
    cluster = test_requests.opened(*names, witnesses=witnesses)
    says(cluster, "a", state="running")
    return cluster


# -- restart


def test_standbys_are_restarted_one_at_a_time_and_the_primary_hands_over_last() -> None:
    cluster = opened("a", "b", "c")
    answer = cluster.ask("b", "restart", by="ops@host")
    assert (answer["ok"], answer["nodes"]) == (True, ["a", "b", "c"])
    cluster.until(lambda: turn(cluster) == "b")
    cluster.sleep(2000)
    assert turn(cluster) == "b", "c waits for b"
    back(cluster, "b")
    cluster.until(lambda: turn(cluster) == "c")
    assert cluster.members["a"].state["hand_over"] is None
    back(cluster, "c")
    cluster.until(lambda: turn(cluster) == "a")
    to = ops(cluster).rolling.to
    assert to in ("b", "c")
    cluster.until(lambda: cluster.members["a"].state["hand_over"] == to)
    fenced(cluster, "a")
    assert cluster.open() == to
    assert turn(cluster) == "a", "not before its Postgres is back"
    back(cluster, "a")
    cluster.until(lambda: ops(cluster).restarting is None)
    assert ops(cluster).rolling.done == ("b", "c", "a")
    assert lines(cluster, "restart") == [
        ("", "of a, b, c was asked for by ops@host"),
        ("b", "is restarted now"), ("b", "is restarted and back"),
        ("c", "is restarted now"), ("c", "is restarted and back"),
        ("a", f"is restarted now: the primary, {to} takes over"), ("a", "is restarted and back"),
    ]  # fmt: skip


@pytest.mark.parametrize(("fit", "to"), [(True, "b"), (False, "c")])
def test_the_primary_hands_over_to_one_that_was_restarted_if_it_can(fit: bool, to: str) -> None:
    cluster = opened("a", "b", "c")
    cluster.ask("a", "restart", nodes=["a", "b"])
    cluster.until(lambda: turn(cluster) == "b")
    cluster.streams = False
    says(cluster, "c", lsn=151)  # further, and not restarted
    if not fit:
        cluster.ask("a", "fence", name="b", force=True)
        cluster.until(lambda: cluster.members["a"].node.cluster.fenced == ("b",))
    back(cluster, "b")
    cluster.until(lambda: turn(cluster) == "a")
    assert ops(cluster).rolling.to == to


def test_the_next_node_is_stopped_only_when_the_one_before_streams_again() -> None:
    cluster = opened("a", "b", "c")
    cluster.ask("a", "restart", nodes=["b", "c"])
    cluster.until(lambda: turn(cluster) == "b")
    cluster.streams = False
    says(cluster, "b", state="running")
    back(cluster, "b")
    cluster.sleep(3000)
    assert turn(cluster) == ""
    says(cluster, "b", state="streaming")
    cluster.until(lambda: turn(cluster) == "c")


def test_it_stops_at_the_first_that_does_not_start_and_says_so() -> None:
    cluster = opened("a", "b", "c")
    cluster.ask("a", "restart")
    cluster.until(lambda: turn(cluster) == "b")
    cluster.streams = False
    says(cluster, "b", state="quarantined", reason="FATAL: could not map memory")
    cluster.until(lambda: ops(cluster).restarting is None)
    assert ops(cluster).rolling.halted == "b does not start: FATAL: could not map memory"
    text = "stops here: b does not start: FATAL: could not map memory; left as they are: a, b, c"
    assert lines(cluster, "restart")[-1] == ("b", text)
    cluster.sleep(2000)
    assert turn(cluster) == ""
    assert cluster.ask("a", "restart", nodes=["b"])["ok"], "it may be tried again"


def test_one_that_is_copied_instead_of_started_ends_it() -> None:
    cluster = opened("a", "b", "c")
    cluster.ask("a", "restart")
    cluster.until(lambda: turn(cluster) == "b")
    cluster.streams = False
    says(cluster, "b", state="cloning")
    cluster.until(lambda: ops(cluster).restarting is None)
    assert ops(cluster).rolling.halted == "b did not start, and is copied again"


def test_one_that_is_not_back_in_time_ends_it() -> None:
    cluster = opened("a", "b", "c")
    cluster.ask("a", "restart", nodes=["b", "c"], timeout_s=4)
    cluster.until(lambda: turn(cluster) == "b")
    cluster.sleep(3_000)
    assert turn(cluster) == "b"
    cluster.sleep(1_500)
    assert ops(cluster).rolling.halted.startswith("b was not back after 4 s")


def test_a_restart_never_takes_what_the_sync_group_needs_unless_by_force() -> None:
    cluster = opened("a", "b", "c")
    cluster.streams = False
    says(cluster, "c", state="stopped")
    code, error = refusal(cluster.ask("a", "restart", nodes=["b"]))
    assert code == 78
    assert "b holds a copy that is needed" in error
    assert cluster.ask("a", "restart", nodes=["b"], force=True)["ok"]
    cluster.until(lambda: turn(cluster) == "b")


def test_a_copy_that_is_needed_by_the_time_of_its_turn_is_left_alone() -> None:
    cluster = opened("a", "b", "c", "d", "e")
    cluster.ask("a", "restart", nodes=["b", "c"])
    cluster.until(lambda: turn(cluster) == "b")
    cluster.members["d"].up = cluster.members["e"].up = False
    cluster.sleep(T.election_ms)
    back(cluster, "b")
    cluster.sleep(3000)
    assert turn(cluster) == "", "a, b and c are what is left, and three must have every commit"
    cluster.members["d"].up = True
    cluster.until(lambda: turn(cluster) == "c")


def test_a_group_that_loses_a_copy_meanwhile_is_waited_for_and_then_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rolling, "PATIENCE_MS", 4_000)
    cluster = opened("a", "b", "c")
    cluster.ask("a", "restart", nodes=["b", "c"])
    cluster.until(lambda: turn(cluster) == "b")
    cluster.streams = False
    says(cluster, "b", state="running")
    back(cluster, "b")
    cluster.until(lambda: turn(cluster) == "")
    cluster.sleep(rolling.PATIENCE_MS - 1000)
    assert ops(cluster).restarting is not None
    cluster.sleep(2000)
    assert ops(cluster).rolling.halted == "b does not stream again"


def test_the_primary_alone_is_restarted_in_place_and_leads_again() -> None:
    cluster = opened("a", "b", "c")
    assert cluster.ask("c", "restart", nodes=["a"])["ok"]
    cluster.until(lambda: cluster.members["a"].state["hand_over"] == "a")
    cluster.members["a"].position = (-1, 0)  # down, and then starting
    fenced(cluster, "a")
    cluster.until(lambda: cluster.members["a"].state["term"] == 2)
    cluster.sleep(3000)
    assert cluster.primary() == "", "its Postgres is waited for, although the others could take over"
    assert "a is being restarted in place" in cluster.members["a"].state["sentence"]
    cluster.members["a"].position = (1, 160)
    assert cluster.open() == "a"
    assert cluster.members["a"].state["hand_over"] is None, "once is enough"
    back(cluster, "a")
    cluster.until(lambda: ops(cluster).restarting is None)
    assert cluster.members["a"].state["term"] == 2
    assert [e.text for e in cluster.members["a"].node.cluster.history if e.kind == "failed"] == []


@pytest.mark.parametrize("trouble", ["quarantined", "late", "lost"])
def test_a_primary_that_does_not_come_back_in_place_is_replaced(trouble: str) -> None:
    cluster = opened("a", "b", "c")
    cluster.ask("a", "config.set", set={"primary_start_timeout": 5}, unset=[])
    cluster.ask("a", "restart", nodes=["a"])
    cluster.until(lambda: cluster.members["a"].state["hand_over"] == "a")
    cluster.members["a"].position = (-1, 0)
    fenced(cluster, "a")
    cluster.until(lambda: cluster.members["a"].state["term"] == 2)
    if trouble == "lost":
        cluster.members["a"].up = False
    elif trouble == "quarantined":
        cluster.members["a"].seen = {"state": "quarantined", "reason": "FATAL: no memory"}
        cluster.tell("a", "node.observed", cluster.members["a"].seen)
    if trouble == "late":
        cluster.sleep(4_000)
        assert cluster.primary() == ""
    cluster.until(lambda: cluster.primary() in ("b", "c"))
    halted = ops(cluster, cluster.primary()).rolling.halted
    words = {"quarantined": "does not start", "late": "was not back after 5 s", "lost": "was lost while"}
    assert words[trouble] in halted


def test_a_new_leader_goes_on_with_a_restart() -> None:
    cluster = opened("a", "b", "c")
    cluster.ask("a", "restart", nodes=["b", "c"])
    cluster.until(lambda: turn(cluster) == "b")
    cluster.members["a"].up = False
    primary = cluster.open()
    other = "c" if primary == "b" else "b"
    cluster.members["a"].up = True
    cluster.until(lambda: cluster.members[primary].node.sightings.of("a").get("state") == "streaming")
    back(cluster, "b")
    cluster.until(lambda: ops(cluster, primary).rolling.turn == "c")
    back(cluster, "c")
    cluster.until(lambda: ops(cluster, other).restarting is None)


def test_one_restart_at_a_time_and_it_can_be_cancelled() -> None:
    cluster = opened("a", "b", "c")
    cluster.ask("a", "restart")
    cluster.until(lambda: turn(cluster) == "b")
    code, error = refusal(cluster.ask("a", "restart", nodes=["c"]))
    assert (code, error) == (75, "a restart is under way: a, b, c are left")
    assert cluster.ask("b", "schedule.cancel", what="restart", by="me")["cancelled"] == "the restart of a, b, c"
    cluster.until(lambda: ops(cluster).restarting is None)
    assert ops(cluster).rolling.halted == "it was cancelled by me"
    assert refusal(cluster.ask("a", "schedule.cancel", what="restart")) == (64, "no restart is scheduled or under way")


def test_only_those_that_wait_for_a_restart() -> None:
    cluster = opened("a", "b", "c")
    assert cluster.ask("a", "restart", pending=True)["nodes"] == []
    cluster.streams = False
    says(cluster, "c", pending=PENDING)
    assert cluster.ask("a", "restart", pending=True)["nodes"] == ["c"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"role": "primary"}, "a"),
        ({"role": "replica"}, "bc"),
        ({"role": "replica", "nodes": ["a", "b"]}, "b"),
        ({"pg_version": "18.10"}, "abc"),
        ({"pg_version": "18.9"}, "bc"),
        ({"pg_version": "18.6"}, "c"),
        ({"pg_version": "18"}, "c"),
        ({"pg_version": "17.9"}, "c"),
        ({"pg_version": "18.9", "role": "primary"}, ""),
        ({"pg_version": "18.10", "pending": True}, "b"),
        ({"pg_version": "18.6", "pending": True}, ""),
    ],
)
def test_only_those_of_a_role_and_of_an_older_version(asked: dict[str, Any], expected: str) -> None:
    cluster = opened("a", "b", "c")
    cluster.streams = False
    says(cluster, "a", version="18.9")
    says(cluster, "b", version="18.6", pending=PENDING)
    says(cluster, "c", version="")
    assert cluster.ask("b", "restart", dry_run=True, **asked)["nodes"] == list(expected)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"role": "chief"}, "a role is not 'chief'"),
        ({"role": ["primary"]}, "a role is not ['primary']"),
        ({"pg_version": "18.x"}, "a version of Postgres is not '18.x'"),
        ({"pg_version": 18}, "a version of Postgres is not 18"),
        ({"role": "replica", "at": "+5m"}, "role and version are looked at now, and do not go with a time"),
        ({"pg_version": "18", "at": "+5m"}, "role and version are looked at now, and do not go with a time"),
    ],
)
def test_conditions_that_can_not_be_looked_at_are_refused(asked: dict[str, Any], why: str) -> None:
    assert refusal(opened("a", "b").ask("b", "restart", **asked)) == (64, why)


def test_a_primary_that_would_have_more_than_its_standbys_is_not_restarted_before_them() -> None:
    cluster = opened("a", "b", "c")
    cluster.streams = False
    for name in "abc":
        says(cluster, name, pending=PENDING, standbys_first=["max_connections"])
    code, error = refusal(cluster.ask("a", "restart", nodes=["a"]))
    assert code == 78
    assert "b would stop replaying" in error
    assert cluster.ask("a", "restart", pending=True)["nodes"] == ["a", "b", "c"]


def test_what_can_not_be_restarted_is_refused() -> None:
    cluster = opened("a", "b", "w", witnesses="w")
    assert refusal(cluster.ask("a", "restart", nodes=["x"])) == (64, "no member is named x")
    assert refusal(cluster.ask("a", "restart", nodes=["w"])) == (64, "w has no Postgres")
    assert refusal(cluster.ask("a", "restart", nodes=["a"], timeout_s=0.5))[0] == 64
    cluster.ask("a", "fence", name="b", force=True)
    assert refusal(cluster.ask("a", "restart", nodes=["b"])) == (78, "b is fenced: its Postgres is kept down")
    cluster.members["b"].up = False
    cluster.ask("a", "unfence", name="b")
    cluster.sleep(T.election_ms)
    assert refusal(cluster.ask("a", "restart", nodes=["b"])) == (75, "b is not connected")


def test_a_node_that_is_being_copied_has_no_postgres_to_restart() -> None:
    cluster = opened("a", "b", "c")
    cluster.streams = False
    says(cluster, "c", state="cloning")
    assert refusal(cluster.ask("a", "restart")) == (75, "c is cloning")


# -- pause


def paused(*names: str) -> Cluster:
    cluster = opened(*names)
    assert cluster.ask("a", "pause", by="me")["ok"]
    cluster.until(lambda: all(m.node.cluster.setting("pause") for m in cluster.members.values()))
    return cluster


def test_in_pause_nobody_takes_over_until_somebody_says_so() -> None:
    cluster = paused("a", "b", "c")
    cluster.members["a"].up = False
    cluster.until(lambda: any("paused: nobody" in m.state.get("sentence", "") for m in cluster.members.values()))
    cluster.sleep(5000)
    assert cluster.primary() == ""
    leader = next(n for n in "bc" if cluster.members[n].state["role"] == "leader")
    state, reports = requests._known(cluster.members[leader].node, cluster.now)
    foretold = forecast(state, reports, term=cluster.members[leader].node.raft.term, leaders=[leader])
    assert (foretold.winners, foretold.reason.startswith("paused: nobody is made primary; ")) == ((), True)
    whys = {c.name: c.why for c in foretold.candidates}
    assert whys[leader] == "could be primary, but the cluster is paused"
    assert cluster.ask(leader, "resume")["ok"]
    cluster.until(lambda: cluster.primary() in ("b", "c"))


def test_in_pause_a_failover_that_is_asked_for_is_made() -> None:
    cluster = paused("a", "b", "c")
    cluster.members["a"].up = False
    cluster.until(lambda: any("paused: nobody" in m.state.get("sentence", "") for m in cluster.members.values()))
    leader = next(n for n in "bc" if cluster.members[n].state["role"] == "leader")
    other = "c" if leader == "b" else "b"
    dry = cluster.ask(leader, "failover", to=other, dry_run=True)
    assert dry["forecast"]["winners"] == [other]
    assert cluster.ask(leader, "failover", to=other)["ok"]
    cluster.until(lambda: cluster.primary() == other)


def test_in_pause_a_switchover_that_is_asked_for_is_made() -> None:
    cluster = paused("a", "b", "c")
    assert cluster.ask("a", "switchover", to="c")["ok"]
    cluster.until(lambda: cluster.members["a"].state["hand_over"] == "c")
    fenced(cluster, "a")
    assert cluster.open() == "c"
    cluster.members["c"].up = False  # and that was all that was asked for
    cluster.until(lambda: any("paused: nobody" in cluster.members[n].state["sentence"] for n in "ab"))
    cluster.sleep(3000)
    assert cluster.primary() == ""


def test_in_pause_a_primary_that_only_lost_its_lease_is_primary_again() -> None:
    cluster = paused("a", "b", "c")
    cluster.cut = {(x, y) for x in "abc" for y in "abc" if "a" in (x, y)}
    cluster.until(lambda: any("paused: nobody" in cluster.members[n].state["sentence"] for n in "bc"), 20_000)
    cluster.cut = set()
    cluster.members["a"].position = (1, 150)
    cluster.until(lambda: cluster.primary() == "a", 20_000)


def test_in_pause_a_primary_whose_postgres_went_down_is_not() -> None:
    cluster = paused("a", "b", "c")
    ended(cluster, lease_lost=False)
    cluster.sleep(5000)
    assert cluster.primary() == ""


def ended(cluster: Cluster, *, lease_lost: bool) -> None:
    """The parent of a tells that its Postgres is gone, before others have noticed anything; it is up again soon."""
    body = {"term": cluster.members["a"].state["granted"], "reason": "gone", "clean": False, "at": ""}
    cluster.members["a"].position = (1, 160)
    cluster.tell("a", "node.fenced", body | {"lease_lost": lease_lost})


def test_in_pause_a_primary_whose_lease_was_too_short_for_once_is_primary_again() -> None:
    cluster = paused("a", "b", "c")
    ended(cluster, lease_lost=True)
    cluster.until(lambda: cluster.primary() == "a" and cluster.members["a"].state["granted"] > 1)


def test_pausing_twice_changes_nothing() -> None:
    cluster = paused("a", "b", "c")
    assert cluster.ask("b", "pause")["changes"] == {}
    assert cluster.ask("b", "resume")["changes"] == {"pause": [True, False]}


# -- what is scheduled


def test_a_switchover_is_made_at_its_time_and_once() -> None:
    cluster = opened("a", "b", "c")
    clock = Clock(cluster)
    answer = cluster.ask("b", "switchover", to="c", at="+10m", by="me")
    assert (answer["scheduled"], answer["at"]) == ("switchover", "2030-01-01T00:10:00Z")
    clock.go(minutes=9)
    cluster.sleep(2000)
    assert cluster.members["a"].state["hand_over"] is None
    clock.go(minutes=1)
    cluster.until(lambda: cluster.members["a"].state["hand_over"] == "c")
    fenced(cluster, "a")
    assert cluster.open() == "c"
    cluster.sleep(2000)
    assert cluster.primary() == "c"
    assert ops(cluster).scheduled is None
    assert [text for _, text in lines(cluster, "schedule")] == [
        "switchover is scheduled for 2030-01-01T00:10:00Z, asked for by me",
        "switchover scheduled for 2030-01-01T00:10:00Z begins",
    ]


def test_the_next_leader_carries_out_what_is_scheduled() -> None:
    cluster = opened("a", "b", "c")
    clock = Clock(cluster)
    cluster.ask("a", "restart", nodes=["c"], at="2030-01-01T01:30+01:00")
    cluster.until(lambda: all(ops(cluster, n).scheduled for n in "abc"))
    cluster.members["a"].up = False
    primary = cluster.open()
    cluster.members["a"].up = True
    cluster.until(lambda: cluster.members[primary].node.sightings.of("a").get("state") == "streaming")
    clock.go(minutes=30)
    if primary == "b":
        cluster.until(lambda: ops(cluster, "b").rolling is not None and ops(cluster, "b").rolling.todo == ("c",))
    else:
        cluster.until(lambda: ops(cluster, "c").rolling is not None and ops(cluster, "c").rolling.in_place)
    assert ops(cluster, primary).scheduled is None


def test_nothing_is_done_before_its_begin_is_committed_so_it_is_done_once() -> None:
    cluster = opened("a", "b", "c")
    clock = Clock(cluster)
    cluster.ask("a", "switchover", at="+1m")
    cluster.until(lambda: all(ops(cluster, n).scheduled for n in "abc"))
    cluster.cut = {(x, y) for x in "abc" for y in "abc" if "a" in (x, y)}
    clock.go(minutes=1)
    cluster.run(400)
    assert cluster.members["a"].state["role"] == "leader"
    assert cluster.members["a"].state["hand_over"] is None, "its leader may be another one already"
    cluster.members["a"].up = False
    primary = cluster.open()
    other = "c" if primary == "b" else "b"
    cluster.until(lambda: cluster.members[primary].state["hand_over"] == other)
    assert sum(text.endswith("begins") for _, text in lines(cluster, "schedule", primary)) == 1


def test_a_time_that_passed_while_nobody_led_is_dropped_and_that_is_said() -> None:
    cluster = opened("a", "b", "c")
    clock = Clock(cluster)
    cluster.ask("a", "switchover", at="+1m")
    cluster.until(lambda: all(ops(cluster, n).scheduled for n in "abc"))
    for name in "bc":
        cluster.cut |= {(name, x) for x in "abc"}
    cluster.sleep(3000)
    clock.go(minutes=2)
    cluster.cut = set()
    cluster.until(lambda: ops(cluster).scheduled is None, 30_000)
    assert "is dropped: its time passed 60 s ago" in lines(cluster, "schedule")[-1][1]
    assert lines(cluster, "switchover") == []


def test_nothing_is_scheduled_in_pause_and_what_was_is_dropped_at_its_time() -> None:
    cluster = opened("a", "b", "c")
    clock = Clock(cluster)
    cluster.ask("a", "switchover", at="+1m")
    cluster.ask("a", "pause")
    cluster.until(lambda: cluster.members["a"].node.cluster.setting("pause"))
    assert refusal(cluster.ask("a", "restart", at="+1m"))[0] == 78
    clock.go(minutes=1)
    cluster.until(lambda: ops(cluster).scheduled is None)
    assert lines(cluster, "schedule")[-1][1].endswith("is dropped: the cluster is paused")
    assert cluster.members["a"].state["hand_over"] is None


def test_one_thing_is_scheduled_at_a_time_and_can_be_cancelled() -> None:
    cluster = opened("a", "b", "c")
    Clock(cluster)
    cluster.ask("a", "switchover", at="+1m")
    assert refusal(cluster.ask("b", "restart", at="+5m"))[0] == 75
    assert refusal(cluster.ask("b", "schedule.cancel", what="restart"))[0] == 64
    answer = cluster.ask("b", "schedule.cancel", what="switchover", by="me")
    assert answer["cancelled"] == "the switchover scheduled for 2030-01-01T00:01:00Z"
    cluster.until(lambda: ops(cluster).scheduled is None)
    assert cluster.ask("b", "restart", at="+5m")["ok"]


def test_what_can_not_be_done_at_its_time_is_told() -> None:
    cluster = opened("a", "b", "c")
    clock = Clock(cluster)
    cluster.ask("a", "switchover", to="c", at="+1m")
    cluster.members["c"].up = False
    cluster.sleep(2000)
    clock.go(minutes=1)
    cluster.sleep(2000)
    assert ops(cluster).scheduled is not None, "it may come back in time"
    clock.go(seconds=16)
    cluster.until(lambda: ops(cluster).scheduled is None)
    said = lines(cluster, "schedule")[-1][1]
    assert "is dropped: its time passed 16 s ago, when it could not be begun: c is not" in said


def test_what_never_can_be_done_is_dropped_at_once() -> None:
    cluster = opened("a", "b", "c")
    clock = Clock(cluster)
    cluster.ask("a", "restart", nodes=["c"], at="+1m")
    cluster.until(lambda: ops(cluster).scheduled)
    cluster.ask("a", "fence", name="c")
    clock.go(minutes=1)
    cluster.until(lambda: ops(cluster).scheduled is None)
    assert "is not done: c is fenced" in lines(cluster, "schedule")[-1][1]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2030-01-01T03:00+01:00", "2030-01-01T02:00:00Z"), ("2030-01-01T02:00:00Z", "2030-01-01T02:00:00Z"),
        ("+5m", "2030-01-01T00:05:00Z"), ("+1h30m", "2030-01-01T01:30:00Z"), (" +1d ", "2030-01-02T00:00:00Z"),
    ],
)  # fmt: skip
def test_times_that_are_understood(text: str, at: str) -> None:
    assert timetable.written(timetable.parse(text, datetime(2030, 1, 1, tzinfo=UTC))) == at


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2030-01-01T03:00", "has no time zone"), ("tomorrow", "is no time"), ("+5", "from now"), ("+m5", "from now"),
        ("2029-12-31T23:59Z", "has passed: it is 2030-01-01T00:00:00Z"), ("+400d", "a year"), ("+0s", "passed"),
        ("9999-12-31T23:59-12:00", "calendar"), ("+999999d999999d999999d", "calendar"),
    ],
)  # fmt: skip
def test_times_that_are_not(text: str, why: str) -> None:
    with pytest.raises(timetable.BadTime) as bad:
        timetable.parse(text, datetime(2030, 1, 1, tzinfo=UTC))
    assert why in bad.value.reason


@pytest.mark.parametrize("nodes", [5, True, "b", {"b": 1}, [1], {}])
@pytest.mark.parametrize("more", [{}, {"at": "+1h"}])
@pytest.mark.parametrize("what", ["restart", "reload"])
def test_what_is_no_list_of_names_is_refused_and_nothing_of_it_enters_the_log(
    what: str, more: dict[str, Any], nodes: Any
) -> None:
    cluster = opened("a", "b", "c")
    Clock(cluster)
    assert refusal(cluster.ask("a", what, nodes=nodes, **more))[0] == 64
    assert (ops(cluster).scheduled, ops(cluster).restarting) == (None, None)


def test_of_a_request_only_what_belongs_to_it_is_kept() -> None:
    cluster = opened("a", "b", "c")
    Clock(cluster)
    assert cluster.ask("a", "switchover", at="+1h", nodes=5)["ok"]
    cluster.until(lambda: ops(cluster).scheduled is not None)
    assert "nodes" not in ops(cluster).scheduled.request


# -- reload


def test_an_order_to_read_files_again_is_in_the_log() -> None:
    cluster = opened("a", "b", "c")
    answer = cluster.ask("b", "reload", nodes=["c", "a"])
    cluster.until(lambda: ops(cluster, "c").reload_of("c") == answer["index"] > 0)
    assert ops(cluster, "c").reload_of("b") == 0
    assert refusal(cluster.ask("b", "reload", nodes=["x"]))[0] == 64
    assert cluster.ask("b", "reload")["nodes"] == ["a", "b", "c"]


def test_time_is_only_looked_at_where_it_may_be_due(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = opened("a", "b", "c")
    monkeypatch.setattr(cluster.members["a"].node, "wall_clock", lambda: "no time")
    cluster.now += MS
    cluster.turn()


# -- the rest


def test_without_a_primary_only_what_is_down_is_started() -> None:
    cluster = paused("a", "b", "c")
    ended(cluster, lease_lost=False)
    cluster.sleep(2000)
    leader = next(n for n, m in cluster.members.items() if m.state["role"] == "leader")
    cluster.streams = False
    other = "c" if leader == "b" else "b"
    says(cluster, other, state="running")
    assert refusal(cluster.ask(leader, "restart", nodes=[other]))[1] == "there is no primary at the moment"
    says(cluster, other, state="stopped")
    assert cluster.ask(leader, "restart", nodes=[other])["ok"]
    cluster.until(lambda: ops(cluster, leader).rolling is not None and ops(cluster, leader).rolling.turn == other)


def test_a_leader_that_can_propose_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = opened("a", "b", "c")
    Clock(cluster)
    monkeypatch.setattr(cluster.members["a"].node, "propose_change", lambda *_: 0)
    for name, body in (("restart", {}), ("reload", {}), ("restart", {"at": "+1h"})):
        assert refusal(cluster.ask("a", name, **body)) == (75, "this node leads no more")


def test_a_time_that_makes_no_sense_is_refused() -> None:
    cluster = opened("a", "b", "c")
    Clock(cluster)
    assert refusal(cluster.ask("a", "switchover", at="soon")) == (64, "'soon' is no time")


def test_a_primary_whose_standbys_have_more_already_is_restarted() -> None:
    cluster = opened("a", "b", "c")
    cluster.streams = False
    says(cluster, "a", pending=PENDING, standbys_first=["max_connections"])
    assert cluster.ask("a", "restart", nodes=["a"])["ok"]


def test_a_successor_that_is_gone_by_the_turn_of_the_primary_ends_it() -> None:
    cluster = opened("a", "b", "c")
    cluster.streams = False
    says(cluster, "c", state="running")
    body = {"nodes": ["a"], "in_place": False, "force": False, "timeout_s": 300}
    cluster.tell("a", "node.propose", {"kind": "restart/1", "body": body})
    index = cluster.members["a"].node.raft.log.last_index
    turn = {"index": index, "node": "a", "to": "c"}
    cluster.tell("a", "node.propose", {"kind": "turn/1", "body": turn})
    cluster.until(lambda: ops(cluster).rolling is not None and ops(cluster).rolling.halted != "")
    assert ops(cluster).rolling.halted == "c does not stream from the primary (it is running)"
    assert cluster.members["a"].state["hand_over"] is None


def test_what_is_refused_after_it_was_begun_is_told() -> None:
    cluster = opened("a", "b", "c")
    made = Scheduled(1, "restart", "2030-01-01T00:00:00Z", "{}", "")
    operate._begin(cluster.members["a"].node, made, cluster.now, lambda *_: (False, {"error": "no"}))
    cluster.sleep(500)
    text = "restart that was scheduled for 2030-01-01T00:00:00Z is not done: no"
    assert lines(cluster, "schedule") == [("", text)]
