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
        why = "the cluster has no leader at the moment: this node hears of 1 of 3 voters, not of a, c"
        assert refusal(cluster.ask("b", name)) == (75, why)
    dry = cluster.ask("b", "failover", dry_run="yes", accept_data_loss="yes")
    assert dry["refusal"]["code"] == 75
    assert dry["forecast"]["reason"].startswith("no leader: 1 of 3 voters are up")


def test_while_a_leader_is_elected_nobody_is_missing() -> None:
    cluster = opened("a", "b", "c")
    node = cluster.members["b"].node
    _, body = requests.without_leader(node, "failover", {}, cluster.now)
    assert body["error"].endswith("this node hears of 2 of 3 voters, not of c"), "followers hear of the leader"
    node.sightings.hear("c", cluster.now)
    _, body = requests.without_leader(node, "failover", {}, cluster.now)
    assert body["error"].endswith("this node hears of 3 of 3 voters")


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


# -- dry runs


def test_a_dry_switchover_says_who_wins_and_changes_nothing() -> None:
    cluster = opened("a", "b", "c")
    cluster.tell("a", "node.observed", {"role": "primary", "state": "running", "epoch": 1, "lsn": 170})
    node = cluster.members["a"].node
    before = node.raft.log.last_index
    dry = cluster.ask("b", "switchover", to="c", dry_run="yes")
    assert (dry["ok"], dry["dry_run"], dry["refusal"], dry["from"], dry["to"]) == (True, True, None, "a", "c")
    assert (dry["forecast"]["winners"], dry["forecast"]["lost_bytes"]) == (["c"], 0)
    assert [c["behind_bytes"] for c in dry["forecast"]["candidates"]] == [0, 20, 20], "to be received until then"
    assert cluster.ask("a", "failover", dry_run="yes")["to"] in ("b", "c"), "the one a real one would take"
    assert node.raft.log.last_index == before
    assert cluster.members["a"].state["hand_over"] is None
    assert dry["to"] == cluster.ask("b", "switchover", to="c")["to"], "and the real one does it"


def test_a_dry_run_has_the_refusal_that_would_come() -> None:
    cluster = opened("a", "b", "c")
    for to in ("a", "x"):
        code, error = refusal(cluster.ask("a", "switchover", to=to))
        found = cluster.ask("a", "switchover", to=to, dry_run="yes")["refusal"]
        assert (found["code"], found["error"]) == (code, error)
        assert found["hint"]


def test_a_dry_failover_of_a_stuck_cluster_says_what_is_missing_and_what_it_would_cost() -> None:
    cluster = stuck()
    cluster.run(200)
    leader = cluster.leader()
    dry = cluster.ask("b", "failover", dry_run="yes")
    assert dry["refusal"]["code"] == 78
    assert (dry["forecast"]["winners"], dry["forecast"]["missing"]) == ([], ["a", "c"])
    dry = cluster.ask("b", "failover", dry_run="yes", accept_data_loss="yes")
    assert dry["refusal"] is None
    assert (dry["forecast"]["winners"], dry["forecast"]["acknowledged"]) == (["b"], True)
    assert not cluster.members[leader].node.tip().wish_loss, "nobody was asked for anything"
    reasons = {c["name"]: c["why"] for c in dry["forecast"]["candidates"]}
    assert reasons["c"] == "has no position (down)", "as it has told the leader"
    assert cluster.ask("b", "switchover", dry_run="yes")["refusal"]["code"] == 75


# -- one node: kept down, copied anew


def fenced(cluster: Cluster, at: str = "b") -> list[str]:
    return list(cluster.members[at].cluster["fenced"])


def test_a_standby_is_fenced_and_let_go() -> None:
    cluster = opened("a", "b", "c", "d", "e")
    assert cluster.ask("b", "fence", name="d", by="ann@db1") == {"ok": True, "name": "d", "term": 1}
    cluster.until(lambda: fenced(cluster) == ["d"])
    assert cluster.ask("b", "fence", name="d")["ok"], "it is already"
    disk = cluster.members["d"].disk
    index = next(e.index for e in disk.entries if e.kind == "fence/1")
    cluster.until(lambda: disk.hard.commit >= index), "it starts nothing before it meets a leader again"
    code, error = refusal(cluster.ask("b", "switchover", to="d"))
    assert (code, error) == (78, "d is fenced: a person keeps its Postgres down")
    assert cluster.ask("c", "unfence", name="d")["ok"]
    cluster.until(lambda: fenced(cluster) == [])
    assert refusal(cluster.ask("c", "unfence", name="x")) == (64, "no member is named x")


def test_the_primary_is_moved_before_it_is_fenced() -> None:
    cluster = opened("a", "b", "c")
    assert cluster.ask("b", "fence", name="a")["ok"]
    assert cluster.members["a"].state["hand_over"] == "c"
    cluster.until(lambda: fenced(cluster) == ["a"])


def test_a_fence_never_leaves_nobody_unless_by_force() -> None:
    cluster = opened("a", "b", "w", witnesses="w")
    code, error = refusal(cluster.ask("a", "fence", name="b"))
    assert (code, "b holds a copy that is needed" in error) == (78, True)
    cluster.members["b"].up = False
    cluster.sleep(T.election_ms)
    code, error = refusal(cluster.ask("w", "fence", name="a"))
    assert (code, error) == (78, "a is the primary, and nobody can take over: no other data node is connected")
    assert cluster.ask("w", "fence", name="a", force="yes")["ok"]
    cluster.until(lambda: fenced(cluster, "w") == ["a"])
    assert cluster.members["a"].state["hand_over"] is None
    for name in ("w", "x"):
        assert refusal(cluster.ask("a", "fence", name=name, force="yes"))[0] == 64


def test_without_a_primary_a_fence_takes_force() -> None:
    cluster = stuck()
    code, error = refusal(cluster.ask("b", "fence", name="c"))
    assert (code, error.startswith("there is no primary at the moment")) == (78, True)
    assert cluster.ask("b", "fence", name="c", force="yes")["ok"]
    cluster.until(lambda: fenced(cluster) == ["c"])
    assert refusal(cluster.ask("b", "reinit", name="c"))[0] == 75, "there is nobody to copy from"


def test_a_copy_is_made_anew_of_a_standby_that_can_be_spared() -> None:
    cluster = opened("a", "b", "c")
    assert refusal(cluster.ask("b", "reinit", name="a"))[0] == 78
    assert refusal(cluster.ask("b", "reinit", name="x")) == (64, "no member is named x")
    assert cluster.ask("b", "reinit", name="c") == {"ok": True, "name": "c", "term": 1}
    cluster.until(lambda: bool(cluster.members["b"].cluster["reinits"]))
    assert refusal(cluster.ask("b", "reinit", name="c")) == (75, "c is being copied anew already")
    [(_, index, source)] = cluster.members["c"].cluster["reinits"]
    assert source == ""
    cluster.tell("c", "node.propose", {"kind": "rebuilt/1", "body": {"node": "c", "index": index}})
    cluster.until(lambda: not cluster.members["b"].cluster["reinits"])
    cluster.members["c"].up = False
    cluster.sleep(T.election_ms)
    code, error = refusal(cluster.ask("a", "reinit", name="b"))
    assert (code, error.startswith("b holds a copy that is needed: without it 1 are left, and 2 must")) == (78, True)
    assert cluster.ask("a", "fence", name="b", force="yes")["ok"]
    cluster.until(lambda: fenced(cluster) == ["b"])
    assert refusal(cluster.ask("a", "reinit", name="b"))[0] == 75


def test_one_that_has_no_seat_is_always_spared() -> None:
    cluster = opened("a", "b")
    cluster.join("d", by="a", role="learner")
    cluster.until(lambda: cluster.roles("a") == "a b d:learner")
    assert cluster.ask("a", "reinit", name="d")["ok"]
    assert cluster.ask("a", "fence", name="d")["ok"]


def test_every_node_knows_the_promises_while_nobody_is_chosen() -> None:
    """For `pgr explain`: of the leader's notes, and of them no more once there is a primary."""
    cluster = stuck()
    follower = next(n for n in "bc" if n != cluster.leader())
    cluster.sleep(1_000)
    for name in "bc":
        known = cluster.members[name].node.sightings.all(cluster.now)
        assert known["c"]["promise"][1:] == [-1, 0, "down"], name
    cluster.members["c"].position = (1, 150)
    cluster.until(lambda: cluster.primary() != "")
    cluster.sleep(1_000)
    assert "promise" not in cluster.members[follower].node.sightings.all(cluster.now)["c"]


# -- who asked, and what was given up


def wish(cluster: Cluster) -> str:
    told = cluster.members[cluster.leader()].cluster["history"]
    return next(str(e[4]) for e in reversed(told) if "asked for" in e[4])


def test_the_history_says_who_asked() -> None:
    cluster = opened("a", "b", "c")
    assert cluster.ask("b", "switchover", to="c", by="eve\x1b[31m@host" + "x" * 200)["ok"]
    cluster.until(lambda: cluster.members["a"].cluster["wish_to"] == "c")
    assert wish(cluster) == ("was asked for by eve[31m@host" + "x" * 200)[: len("was asked for by ") + 100]


def test_the_history_says_what_was_given_up() -> None:
    cluster = stuck()
    cluster.run(200)
    assert cluster.ask("b", "failover", to="b", accept_data_loss="yes", by="ann@db1")["ok"]
    cluster.until(lambda: any(m.cluster.get("wish_loss") for m in cluster.members.values() if m.up))
    text = wish(cluster)
    assert text.startswith("was asked for by ann@db1, accepting data loss; given up: what only a has, nobody knows")
    assert "what only c has (0 bytes when last heard of, " in text


def test_a_loss_that_nobody_has_to_accept_gives_nothing_up() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.until(lambda: cluster.members["a"].node.notes is not None)
    assert cluster.ask("a", "failover", to="b", accept_data_loss="yes")["ok"]
    cluster.until(lambda: cluster.members["a"].cluster.get("wish_loss", False))
    assert wish(cluster).endswith("given up: nothing that is known of")


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
    answer = cluster.ask("a", "member.add", name="c", role="voter")
    assert refusal(answer) == (75, "another change is under way")
    assert answer["final"] is False, "the node that carries it asks again"


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
