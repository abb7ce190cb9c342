"""What people ask of the leader, and what they are told. Each request is made of a whole cluster in memory."""

from __future__ import annotations

from typing import Any

from consensus import requests
from consensus.messages import ForwardResp
from consensus.promotion import LOSS_GRACE_MS
from fencing.lease import MS
from tests.unit.nodes import Cluster, T


def opened(*names: str, witnesses: str = "") -> Cluster:
    cluster = Cluster(*names, witnesses=witnesses, streams=True)
    cluster.open()
    cluster.until(lambda: len(cluster.members["a"].node.sightings.all(cluster.now)) == len(names) - len(witnesses))
    cluster.members["a"].seen = {"role": "primary"}
    return cluster


def refusal(answer: dict[str, Any]) -> tuple[int, str]:
    assert not answer["ok"], answer
    assert "hint" in answer
    return answer["code"], answer["error"]


# -- switchover


def test_a_switchover_without_a_target_goes_to_the_furthest_standby() -> None:
    cluster = opened("a", "b", "c")
    further = dict(cluster.members["c"].seen) | {"lsn": 151}
    cluster.streams = False
    cluster.tell("c", "node.observed", further)
    cluster.until(lambda: cluster.members["a"].node.sightings.of("c") == further)
    assert cluster.ask("a", "switchover") == {"ok": True, "from": "a", "to": "c", "term": 1}
    assert cluster.members["a"].state["hand_over"] == "c"
    cluster.until(lambda: cluster.members["b"].cluster["wish_to"] == "c")


def test_a_switchover_never_goes_to_a_witness() -> None:
    cluster = opened("a", "b", "w", witnesses="w")
    assert refusal(cluster.ask("a", "switchover", to="w")) == (64, "w is a witness")
    cluster.members["b"].up = False
    cluster.sleep(T.election_ms)
    assert refusal(cluster.ask("a", "switchover")) == (75, "no other data node is connected")


def test_a_switchover_before_the_opening_is_refused() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.until(lambda: cluster.primary() == "a")
    code, error = refusal(cluster.ask("a", "switchover", to="b"))
    assert code == 75
    assert error.startswith("there is no primary to move away from: a holds epoch 0")
    assert refusal(cluster.ask("a", "failover")) == (75, error), "nor is there anything to do but to wait"


def test_a_switchover_to_the_primary_or_to_nobody_known_is_refused() -> None:
    cluster = opened("a", "b", "c")
    assert refusal(cluster.ask("a", "switchover", to="a")) == (64, "a is the primary already")
    assert refusal(cluster.ask("a", "switchover", to="x")) == (64, "no member is named x")


# -- failover


def stuck() -> Cluster:
    """a is gone, b leads, and c, whose promise is needed, has no position."""
    cluster = opened("a", "b", "c")
    cluster.streams = False
    cluster.members["a"].up = False
    cluster.members["c"].position = (-1, 0)
    cluster.until(
        lambda: any("c has no position (down)" in cluster.members[n].state.get("sentence", "") for n in "bc"), 20_000
    )
    return cluster


def test_a_failover_that_may_lose_something_is_refused_until_that_is_accepted() -> None:
    cluster = stuck()
    code, error = refusal(cluster.ask("b", "failover"))
    assert code == 78
    assert error.startswith("no primary: ")
    assert "a has not answered" in error
    assert refusal(cluster.ask("b", "switchover"))[0] == 75
    assert cluster.ask(cluster.leader(), "failover", to="b", accept_data_loss="yes")["ok"]
    cluster.sleep(LOSS_GRACE_MS - 100)
    assert cluster.primary() == "", "c might still have more"
    cluster.sleep(LOSS_GRACE_MS + 2000)  # if c leads it hands over to b, which asks everybody anew
    assert cluster.primary() == "b"


def test_a_failover_without_a_leader_is_answered_at_once() -> None:
    cluster = opened("a", "b", "c")
    for name in "ac":
        cluster.members[name].up = False
    cluster.until(lambda: cluster.members["b"].state["leader"] == "")
    for name in ("failover", "switchover", "member.remove"):
        assert refusal(cluster.ask("b", name)) == (75, "the cluster has no leader at the moment")


def test_a_failover_after_the_choice_is_refused() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.until(lambda: cluster.members["a"].node.notes is not None)
    notes = cluster.members["a"].node.notes
    assert notes is not None
    notes.granted_index = 5
    assert refusal(cluster.ask("a", "failover")) == (75, "a new primary has just been chosen")


def test_a_failover_that_needs_no_loss_is_a_wish() -> None:
    """A leader that has not asked anybody yet may be told whom to prefer."""
    cluster = Cluster("a", "b", "c")
    cluster.until(lambda: cluster.members["a"].node.notes is not None)
    assert cluster.ask("a", "failover", to="b") == {"ok": True, "from": "", "to": "b", "term": 1}


# -- members


def test_members_change_only_under_a_primary() -> None:
    cluster = stuck()
    for name in ("member.add", "member.remove", "member.replace"):
        code, error = refusal(cluster.ask("b", name, name="c", role="voter", by="b"))
        assert (code, error) == (75, "there is no primary at the moment")


def test_a_member_is_added_removed_replaced() -> None:
    cluster = opened("a", "b", "c")
    cluster.join("d", by="a", role="learner")
    cluster.until(lambda: cluster.roles("a") == "a b c d:learner")
    cluster.run(500)
    assert cluster.ask("c", "member.add", name="d", role="voter") == {"ok": True, "name": "d", "term": 1}
    cluster.until(lambda: cluster.seats("a") == "3 of a b c d")
    assert cluster.ask("b", "member.replace", name="c", by="d")["ok"]
    cluster.until(lambda: cluster.roles("a") == "a b d")
    cluster.until(lambda: cluster.members["a"].node.cluster.change is None)
    assert cluster.ask("d", "member.remove", name="b")["ok"]
    cluster.until(lambda: cluster.roles("a") == "a d")


def test_what_changes_refuses_is_told() -> None:
    cluster = opened("a", "b", "c")
    assert refusal(cluster.ask("b", "member.add", name="x", role="voter")) == (64, "no member is named x")
    assert refusal(cluster.ask("b", "member.remove", name="a")) == (75, "a is the primary")


def test_a_second_request_waits_for_the_first() -> None:
    cluster = opened("a", "b", "c")
    for name in "bc":
        cluster.cut |= {("a", name), (name, "a")}
    assert cluster.ask("a", "member.remove", name="c")["ok"]
    assert refusal(cluster.ask("a", "member.add", name="c", role="voter")) == (75, "another change is under way")


def test_an_unknown_request_is_refused() -> None:
    assert refusal(opened("a").ask("a", "teleport")) == (64, "unknown request teleport")


def test_a_forwarded_proposal_is_answered_and_passed_on() -> None:
    cluster = opened("a", "b", "c")
    body = {"kind": "salvage", "term": 1, "node": "b", "text": "saved", "fields": {}}
    node = cluster.members["a"].node
    before = node.raft.log.last_index
    assert requests.carry_out(node, "propose", {"kind": "event/1", "body": body}, cluster.now) == (True, {})
    assert node.raft.log.last_index == before + 1


def test_an_answer_that_was_forwarded_keeps_its_number() -> None:
    cluster = opened("a", "b", "c")
    [effect] = cluster.members["b"].node.peer("a", ForwardResp(1, "r7", ok=True, data='{"x":1}'), cluster.now + MS)[:1]
    assert effect == ("admin.answer", {"ok": True, "x": 1}, "r7")
