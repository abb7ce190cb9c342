"""Three `Node`s in memory: from the founding to a switchover."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from consensus import changes
from consensus.cluster import Seat, canonical
from consensus.effects import Removed, Save, Send, SendStranger, Tell
from consensus.founding import Greeting, introduction, stranger_message
from consensus.membership import WITNESS
from consensus.messages import Forward, Hello, Observation, PromiseReq, PromiseResp
from consensus.node import COMPACT_AFTER_ENTRIES
from consensus.positions import NoPosition
from consensus.raft import Campaign, Role
from consensus.record import EpochStart, NodeRecord, Position
from consensus.sightings import NOT_FENCED
from consensus.write import Write
from fencing.lease import MS
from tests.unit.nodes import Cluster, T


def test_a_lone_node_becomes_primary_by_itself() -> None:
    cluster = Cluster("a")
    assert cluster.open() == "a"
    assert cluster.members["a"].lease_ns > cluster.now


def test_founding_creates_data_once_and_opens() -> None:
    cluster = Cluster("a", "b", "c")
    name = cluster.open()
    assert name == "a", "only the founder has data"
    for m in cluster.members.values():
        assert (m.cluster["system_identifier"], m.cluster["nonce"]) == ("77", f"{1:032x}")
        assert [g[1] for g in m.cluster["grants"]] == ["a"]
    assert cluster.members["a"].lease_ns > cluster.now
    assert not cluster.members["b"].lease_ns


def test_the_next_primary_takes_over_when_the_leader_is_gone() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    lease_ns = cluster.members["a"].lease_ns
    cluster.members["a"].up = False
    took = cluster.until(lambda: cluster.primary() != "")
    assert took < T.election_ms + 2 * T.jitter_ms + 300
    assert cluster.now > lease_ns + T.kill_bound_ms * MS, "never before the old Postgres is gone"
    winner = cluster.members[cluster.primary()]
    assert winner.disk.record.promised == winner.state["term"]


def test_who_was_away_knows_the_newest_grant_before_it_says_that_it_does() -> None:
    """It hears of its leader long before it has the log: to attach to a primary of before that would be in vain."""
    cluster = Cluster("a", "b", "c")
    cluster.open()
    away = cluster.members["c"]
    away.up = False
    cluster.members["b"].position = (99, 1)  # the furthest: it is chosen next
    cluster.tell("a", "node.fenced", {"term": cluster.members["a"].state["granted"], "reason": "killed", "at": ""})
    cluster.until(lambda: cluster.primary() not in ("", "a"))
    newest = cluster.members[cluster.primary()].state["granted"]
    away = cluster.restart("c")
    assert not away.state["current"]
    early = 0
    while not away.state["current"]:
        cluster.turn()
        behind = away.cluster["grants"][-1][0] < newest
        early += away.state["leader"] == cluster.primary() and behind
        assert not (behind and away.state["current"])
    assert early, "there is such a time"
    assert away.cluster["grants"][-1][0] == newest


def campaign(cluster: Cluster, name: str) -> None:
    """As if its jitter had been the shortest."""
    node = cluster.members[name].node
    node._raft(Campaign(), cluster.now)
    cluster.carry_out(name, node.tick(cluster.now))


@pytest.mark.parametrize("first", "bc")
def test_leadership_goes_to_the_node_with_the_wal(first: str) -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    epoch, lsn = cluster.members["b"].position
    cluster.members["a"].up = False
    cluster.sleep(T.election_ms)
    best = "c" if first == "b" else "b"
    cluster.members[best].position = (epoch, lsn + 1)
    campaign(cluster, first)
    cluster.until(lambda: cluster.primary() != "")
    assert cluster.primary() == best
    assert cluster.members[first].disk.hard.released > 1, "it led, and handed over"


def test_a_leader_hands_over_only_once_its_own_parent_has_answered() -> None:
    """Either answer says that Postgres here is not writable; until then it may be."""
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.members["a"].up = False
    cluster.sleep(T.election_ms)
    cluster.hung = {"b"}
    campaign(cluster, "b")
    cluster.members["a"].up = True
    cluster.until(lambda: cluster.members["b"].state["sentence"].endswith("needed promises"))
    cluster.run(100)
    assert (cluster.leader(), cluster.primary()) == ("b", "")
    cluster.hung = set()
    cluster.members["b"].position = (-1, 0)
    cluster.until(lambda: cluster.primary() not in ("", "b"))


def test_no_promotion_without_a_read_quorum_and_the_reason_is_told() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.members["a"].up = False
    cluster.members["b"].position = (-1, 0)
    cluster.until(
        lambda: any("b has no position (down)" in m.state.get("sentence", "") for m in cluster.members.values())
    )
    for _ in range(30):
        cluster.sleep(100)
        assert cluster.primary() == ""
    cluster.members["b"].position = (1, 150)
    cluster.until(lambda: cluster.primary() != "")


def _streaming(cluster: Cluster, primary: str) -> None:
    term = cluster.members[primary].state["granted"]
    for name in cluster.names:
        if name != primary:
            seen = cluster.members[name].seen = {
                "state": "streaming",
                "epoch_of_upstream": term,
                "epoch": term,
                "lsn": 150,
            }
            cluster.tell(name, "node.observed", seen)
    cluster.until(lambda: len(cluster.members[primary].node.sightings.all(cluster.now)) >= 2)


def test_switchover_is_forwarded_fenced_first_and_ends_at_its_target() -> None:
    cluster = Cluster("a", "b", "c")
    primary = cluster.open()
    _streaming(cluster, primary)
    cluster.tell("c", "admin.request", {"name": "switchover", "body": {"to": "b"}}, "r1")
    cluster.until(lambda: bool(cluster.members["c"].answers))
    assert cluster.members["c"].answers[-1] == {"ok": True, "from": "a", "to": "b", "term": 1}
    assert cluster.members["a"].state["hand_over"] == "b"
    cluster.run(100)
    assert cluster.primary() == "a", "nothing moves before the fence"
    cluster.tell("a", "node.fenced", {"term": cluster.members["a"].state["term"], "reason": "switchover", "at": ""})
    assert cluster.members["a"].disk.hard.released == 1
    took = cluster.until(lambda: cluster.primary() == "b")
    assert took < 200, "with the release nobody waits for E"
    assert cluster.members["b"].cluster["grants"][0][6] == "", "the grant has not failed"


@pytest.mark.parametrize(("to", "code"), [("x", 64), ("a", 64), ("c", 75)])
def test_a_switchover_that_cannot_be_is_refused_with_a_hint(to: str, code: int) -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.tell("a", "admin.request", {"name": "switchover", "body": {"to": to}}, "r1")
    answer = cluster.members["a"].answers[-1]
    assert (answer["ok"], answer["code"]) == (False, code)
    assert answer["hint"]


def test_a_failed_grant_goes_to_another_node() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    term = cluster.members["a"].state["term"]
    cluster.tell("a", "node.fenced", {"term": term, "reason": "Postgres crashed", "at": ""})
    cluster.members["a"].position = (-1, 0)
    cluster.until(lambda: cluster.primary() not in ("", "a"))
    assert cluster.members[cluster.primary()].cluster["grants"][0][6] == "Postgres crashed"


def test_a_grant_is_on_disk_as_committed_before_anybody_acts_on_it() -> None:
    """Else a process that restarts then could not know that it may resume."""
    cluster = Cluster("a", "b", "c")
    cluster.until(lambda: cluster.primary() == "a")
    disk = cluster.members["a"].disk
    [index] = [e.index for e in disk.entries if e.kind == "promoted/1"]
    assert disk.hard.commit >= index


def test_a_grant_that_failed_is_none() -> None:
    cluster = Cluster("a")
    cluster.open()
    node = cluster.members["a"].node
    grant = node.granted()
    assert grant is not None
    node.cluster = replace(node.cluster, grants=(grant._replace(failed="x"),))
    assert node.granted() is None


def test_a_restarted_leader_resumes_its_term() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    old = cluster.members["a"]
    term = old.state["term"]
    again = cluster.start(old.disk, old.mine, boot=2)
    assert again.node.cluster.grant is not None, "its own disk shows the grant as committed"
    ready = again.node.raft.resume()
    cluster.carry_out("a", again.node.start(ready, cluster.now))
    assert again.lease_ns == 0
    cluster.until(lambda: again.lease_ns > 0, 2 * T.heartbeat_ms)
    assert (again.state["term"], again.state["granted"], again.node.raft.role) == (term, term, Role.LEADER)
    for m in cluster.members.values():
        assert len(m.cluster.get("grants", again.cluster["grants"])) == 1


def test_hello_of_the_parent_gets_everything_told_again() -> None:
    cluster = Cluster("a")
    cluster.open()
    m = cluster.members["a"]
    m.state, m.cluster, m.lease_ns = {}, {}, 0
    cluster.tell("a", "node.hello", {})
    assert m.state["granted"]
    assert m.cluster["system_identifier"] == "77"
    assert m.lease_ns


def test_an_isolated_leader_does_not_spin() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.members["b"].up = cluster.members["c"].up = False
    cluster.run(3 * T.election_ms)
    assert cluster.primary() == ""


# -- what else the parent says


def test_a_hung_parent_makes_a_leader_step_down_without_a_release_and_not_campaign() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.hung = {"a"}
    cluster.sleep(2900)
    cluster.until(lambda: cluster.leader() not in ("", "a"))
    a = cluster.members["a"]
    assert (a.disk.hard.released, a.state["role"]) == (0, "follower")
    assert 0 < a.lease_ns < cluster.now, "its lease is not taken back, it just ends"
    cluster.open()
    for name in "bc":
        cluster.members[name].up = False
    term = a.state["term"]
    cluster.sleep(4 * T.election_ms)
    assert a.state["term"] == term
    assert a.state["role"] == "follower"


def test_a_parent_that_was_silent_is_told_everything_again() -> None:
    """The bus may have dropped what it was told while it hung."""
    cluster = Cluster("a", "b", "c")
    cluster.open()
    b = cluster.members["b"]
    b.state, b.cluster = {}, {}
    cluster.tell("b", "node.observed", {})
    assert not b.cluster, "it has just been heard of"
    b.node.parent_heard_ns = cluster.now - 4000 * MS
    cluster.tell("b", "node.observed", {})
    assert b.cluster["system_identifier"] == "77"
    assert b.state["leader"]


def test_a_lone_node_makes_way_for_nobody() -> None:
    cluster = Cluster("a")
    cluster.open()
    cluster.hung = {"a"}
    cluster.sleep(5000)
    assert cluster.primary() == "a"


def test_a_record_is_on_disk_before_it_is_confirmed() -> None:
    cluster = Cluster("a")
    cluster.open()
    node = cluster.members["a"].node
    body = {"history": [[0, 0, 1], [1, 100, 2]], "proof": [1, 150], "marker": "clone"}
    effects = node.parent("node.record", "r1", body, cluster.now)
    record = NodeRecord(1, (EpochStart(0, 0, 1), EpochStart(1, 100, 2)), Position(1, 150), "clone")
    assert effects[:2] == [Save(Write(record=record)), Tell("record.saved", {}, "r1")]
    effects = node.parent("node.record", "r2", body | {"proof": None, "marker": ""}, cluster.now)
    assert effects[0] == Save(Write(record=record._replace(proof=None, marker="")))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("node.frozen", {"term": 0, "epoch": 1, "lsn": 1, "reason": ""}),
        ("node.frozen", {"term": 9, "epoch": 1, "lsn": 1, "reason": ""}),
        ("node.fenced", {"term": 0, "reason": "x", "at": ""}),
    ],
    ids=["older promise", "newer promise", "older fence"],
)  # fmt: skip
def test_a_parent_that_acts_on_an_old_state_is_told_the_new_one(name: str, body: dict[str, Any]) -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    m = cluster.members["a"]
    before = (m.disk.record, m.disk.hard, m.node.raft.log.last_index)
    m.state = {}
    cluster.tell("a", name, body)
    assert m.state["granted"] == 1
    assert (m.disk.record, m.disk.hard, m.node.raft.log.last_index) == before


def test_a_promise_is_asked_for_by_the_leader_of_this_term_only() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.hung = {"b"}
    node = cluster.members["b"].node
    wanted = node.wanted
    for src, term in (("a", 0), ("a", 9), ("c", 1)):
        assert not [e for e in node.peer(src, PromiseReq(term), cluster.now) if isinstance(e, Send)]
    assert node.wanted == wanted == 1
    assert Send("a", PromiseResp(1, 0, 100, "")) in node.peer("a", PromiseReq(1), cluster.now), "repeated when asked"
    node.answer = None
    assert not [e for e in node.peer("a", PromiseReq(1), cluster.now) if isinstance(e, Send)], "not before it is given"


def test_without_a_position_nothing_is_vowed() -> None:
    cluster = Cluster("a", "b", "c")
    for m in cluster.members.values():
        m.position = (-1, 0)
    cluster.until(lambda: cluster.members["b"].said[0] == 1)
    assert cluster.members["b"].disk.record.promised == 0
    assert cluster.members["b"].node.answer == PromiseResp(1, -1, 0, "down")
    asked = [m for m in cluster.mail if isinstance(m.message, PromiseReq)]
    cluster.until(lambda: any(isinstance(m.message, PromiseReq) and m not in asked for m in cluster.mail), 300)


def test_a_promise_to_another_term_counts_for_nothing() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.until(lambda: cluster.members["a"].node.notes is not None)
    node = cluster.members["a"].node
    for term in (0, 2):
        node.peer("b", PromiseResp(term, 1, 100, ""), cluster.now)
    assert node.notes is not None
    assert "b" not in node.notes.promises
    node.peer("b", PromiseResp(1, 1, 100, ""), cluster.now)
    node.peer("c", PromiseResp(1, -1, 0, "down"), cluster.now)
    assert (node.notes.promises["b"], node.notes.promises["c"]) == (Position(1, 100), NoPosition("down"))


def test_the_parent_and_the_peers_have_a_catalogue() -> None:
    cluster = Cluster("a")
    node = cluster.members["a"].node
    with pytest.raises(ValueError, match=r"node\.dance, which is not in the catalogue"):
        node.parent("node.dance", "", {}, cluster.now)
    key = node.raft.key()
    node.peer("b", Hello(9, "{}"), cluster.now)
    assert node.raft.key() == key, "a Hello has ways in of its own"


def test_the_log_is_compacted_and_one_that_was_away_gets_the_state() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.members["c"].up = False
    for n in range(COMPACT_AFTER_ENTRIES + 1):
        cluster.note("a", str(n))
        cluster.turn()
        cluster.turn()
    a, c = cluster.members["a"], cluster.members["c"]
    assert a.disk.snapshot.index > c.node.raft.log.last_index
    assert len(a.disk.entries) < COMPACT_AFTER_ENTRIES
    cluster.members["c"].up = True
    cluster.until(lambda: c.node.applied == a.node.applied)
    assert c.node.cluster == a.node.cluster
    again = cluster.restart("c")
    assert again.node.cluster.history[-1].text == str(COMPACT_AFTER_ENTRIES)


def test_in_asynchronous_mode_the_bound_on_loss_is_what_was_last_heard_of_the_primary() -> None:
    cluster = Cluster("a", "b", "c", commit="async")
    cluster.open()
    cluster.members["a"].seen = {"role": "primary", "epoch": 1, "lsn": 10_000_000}
    cluster.run(2000)
    cluster.members["a"].up = False
    cluster.until(lambda: any("maximum_lag" in m.state.get("sentence", "") for m in cluster.members.values()))
    for name in "bc":
        cluster.members[name].position = (1, 9_999_000)
    cluster.until(lambda: cluster.primary() != "")


# -- members


def opened(*names: str, witnesses: str = "") -> Cluster:
    """And everybody streams: before that a copy counts for nothing."""
    cluster = Cluster(*names, witnesses=witnesses, streams=True)
    primary = cluster.members[cluster.open()].node
    cluster.until(lambda: primary.facts(cluster.now).copied >= {*names} - {*witnesses})
    return cluster


def settle(cluster: Cluster, roles: str, seats: str, at: str = "a") -> None:
    cluster.until(lambda: cluster.roles(at) == roles and cluster.seats(at) == seats)


def test_a_node_joins_gets_a_copy_then_a_vote_then_a_seat() -> None:
    cluster = opened("a", "b", "c")
    d = cluster.join("d", by="b")
    seen: list[tuple[str, str]] = []

    def grown() -> bool:
        now = (cluster.roles("a"), cluster.seats("a"))
        if seen[-1:] != [now]:
            seen.append(now)
        return now == ("a b c d", "3 of a b c d")

    cluster.until(grown)
    assert [roles for roles, _ in seen] == ["a b c", "a b c d:learner>voter", "a b c d", "a b c d"]
    assert seen[2][1] == "2 of a b c", "the vote comes before the seat"
    assert (d.node.record.promised, d.disk.record.promised) == (1, 1), "it promises nothing older than who let it in"
    cluster.until(lambda: cluster.roles("d") == "a b c d")
    cluster.until(lambda: all("d" in m.node.book.members for m in cluster.members.values()))
    assert cluster.lose("a") in "bcd", "four voters, three left"


def hello_to(cluster: Cluster, name: str, greeting: str) -> list[str]:
    """Kinds of the answers."""
    effects = cluster.members[name].node.hello("d", Hello(0, greeting), cluster.now)
    return [json.loads(e.message.data)["kind"] for e in effects if isinstance(e, SendStranger)]


def test_who_is_answered_what() -> None:
    cluster = opened("a", "b", "c")
    greeting = Greeting("d", 1, "d:1", "d:2", "d:3", (), "", joins=True)
    assert hello_to(cluster, "a", "garbage") == []
    assert hello_to(cluster, "a", replace(greeting, name="e").dump()) == [], "it speaks for somebody else"
    assert hello_to(cluster, "b", greeting.dump()) == ["elsewhere"]
    for name in "ac":
        cluster.cut |= {(name, "b"), ("b", name)}
    cluster.until(lambda: cluster.members["b"].state["leader"] == "")
    assert hello_to(cluster, "b", greeting.dump()) == ["stranger"], "nobody knows a leader"
    assert hello_to(cluster, "a", greeting.dump()) == ["stranger"], "it is being let in"
    assert hello_to(cluster, "a", greeting.dump()) == ["stranger"], "another change is under way"
    cluster.until(lambda: cluster.members["a"].node.cluster.member("d") is not None)
    assert hello_to(cluster, "a", greeting.dump()) == ["charter"]


@pytest.mark.parametrize(
    "data", ["", "[]", '{"kind":"introduction"}', '{"kind":"introduction","raft":"x:1","index":null}']
)
def test_a_malformed_introduction_is_nothing(data: str) -> None:
    cluster = opened("a", "b", "c")
    before = cluster.members["a"].node.book.current()
    assert cluster.members["a"].node.met("b", 1, Hello(1, data), cluster.now) == []
    assert cluster.members["a"].node.book.current() == before


def test_only_a_final_word_removes() -> None:
    node = opened("a", "b", "c").members["a"].node
    assert node.met("b", 1, Hello(1, stranger_message("why", "do", final=False)), MS) == []
    assert node.met("b", 1, Hello(1, stranger_message("why", "do", final=True)), MS) == [Removed("why", "do")]


def test_a_change_that_waits_for_one_that_is_gone_is_reverted() -> None:
    cluster = opened("a", "b", "c")
    cluster.holds_changes = True
    cluster.join("d", by="a")
    cluster.until(lambda: cluster.members["a"].node.cluster.change is not None)
    cluster.members["d"].up = False
    cluster.sleep(changes.PATIENCE_MS - 100)
    change = cluster.members["a"].node.cluster.change
    assert change is not None
    assert change.old.names == ("a", "b", "c")
    cluster.until(lambda: cluster.members["a"].node.cluster.wanted_group.names == ("a", "b", "c"), 1000)
    cluster.holds_changes = False
    settle(cluster, "a b c d", "2 of a b c")


def test_the_next_primary_finishes_what_was_begun() -> None:
    cluster = opened("a", "b", "c")
    cluster.holds_changes = True
    assert cluster.ask("a", "member.remove", name="c")["ok"]
    cluster.until(lambda: all(m.node.cluster.change is not None for m in cluster.members.values()))
    assert cluster.lose("a") == "b", "c is to leave"
    back = cluster.members["b"].node.cluster.change
    assert back is not None
    assert (back.old.names, back.new.names) == (("a", "b"), ("a", "b", "c")), "2 of a b would wait for a"
    cluster.holds_changes = False
    settle(cluster, "a b c>gone", "2 of a b c", at="b")
    cluster.members["a"].up = True
    settle(cluster, "a b", "2 of a b", at="b")


def test_a_primary_that_can_not_open_under_a_change_makes_way_for_its_reverse() -> None:
    """b is promoted while a is there, and before b's epoch is proven, a is lost: 2 of a b will not flush it."""
    cluster = opened("a", "b", "c")
    cluster.holds_changes = True
    assert cluster.ask("a", "member.remove", name="c")["ok"]
    cluster.until(lambda: all(m.node.cluster.change is not None for m in cluster.members.values()))
    cluster.members["a"].up = False
    cluster.until(lambda: cluster.leader() not in ("", "a"))
    cluster.members["a"].up = True
    cluster.until(lambda: any(m.state["granted"] > 1 for m in cluster.members.values()))
    primary = next(n for n, m in cluster.members.items() if m.state["granted"] > 1)
    change = cluster.members[primary].node.cluster.change
    assert change is not None
    assert change.new.names == ("a", "b"), "with all of them there it goes on"
    assert primary in ("a", "b")
    gone = "b" if primary == "a" else "a"
    cluster.members[gone].up = False
    term = cluster.members[primary].state["term"]
    cluster.sleep(changes.PATIENCE_MS - 1000)
    assert cluster.members[primary].state["granted"] == term
    cluster.sleep(2000)
    assert cluster.members[primary].state["granted"] == term, "c is up, and has no copy: nobody could open"
    cluster.members["c"].seen = {"state": "streaming", "epoch_of_upstream": term, "proven": True, "incarnation": 1}
    cluster.until(lambda: cluster.members["c"].state["term"] > term)
    cluster.open()
    change = cluster.members[cluster.primary()].node.cluster.change
    assert change is not None
    assert change.new.names == ("a", "b", "c")


def test_nothing_changes_before_a_switchover_has_ended_in_an_opening() -> None:
    cluster = opened("a", "b", "c")
    cluster.until(lambda: len(cluster.members["a"].node.sightings.all(cluster.now)) == 3)
    assert cluster.ask("a", "switchover", to="b")["ok"]
    assert cluster.ask("a", "member.remove", name="c")["ok"]
    cluster.run(500)
    assert (cluster.roles("a"), cluster.members["a"].cluster["change"]) == ("a b c>gone", None)
    cluster.tell("a", "node.fenced", {"term": 1, "reason": "switchover", "at": ""})
    cluster.until(lambda: cluster.primary() == "b")
    cluster.run(500)
    assert (cluster.roles("b"), cluster.members["b"].cluster["change"]) == ("a b c>gone", None)
    cluster.open()
    settle(cluster, "a b", "2 of a b", at="b")


def test_the_next_step_is_looked_for_once_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = opened("a", "b", "c")
    cluster.holds_changes = True
    cluster.ask("a", "member.remove", name="c")
    cluster.until(lambda: cluster.members["a"].cluster["change"] is not None)
    calls: list[int] = []
    monkeypatch.setattr(changes, "next_change", lambda *_: calls.append(cluster.now))
    cluster.run(10 * T.heartbeat_ms)
    assert 9 <= len(calls) <= 11


def test_caught_up_is_who_has_the_log_and_still_answers() -> None:
    cluster = opened("a", "b", "c")
    node = cluster.members["a"].node
    cluster.run(2 * T.heartbeat_ms)
    assert node.facts(cluster.now).caught_up == {"a", "b", "c"}
    cluster.cut = {("a", "c")}
    cluster.note("a", "one more")
    cluster.run(10)
    assert node.facts(cluster.now).connected == {"a", "b", "c"}
    assert node.facts(cluster.now).caught_up == {"a", "b"}, "it lacks an entry"
    cluster.cut = set()
    cluster.run(2 * T.heartbeat_ms)
    assert node.facts(cluster.now).caught_up == {"a", "b", "c"}
    cluster.cut = {("a", "c")}
    cluster.run(T.election_ms + 300)
    assert node.facts(cluster.now).connected == {"a", "b", "c"}, "it asks to be elected"
    assert node.facts(cluster.now).caught_up == {"a", "b"}, "it answers no round"


@pytest.mark.parametrize(
    ("change", "copied"),
    [
        ({}, True), ({"state": "catching up"}, False), ({"epoch_of_upstream": 0}, False), ({"proven": False}, False),
        ({"incarnation": 9}, False),
    ],
    ids=["right", "state", "upstream", "proof", "life"],
)  # fmt: skip
def test_a_copy_is_proven_streams_and_is_of_this_life(change: dict[str, Any], copied: bool) -> None:
    cluster = opened("a", "b", "c")
    cluster.run(T.heartbeat_ms)
    node = cluster.members["a"].node
    node.sightings.take_in("b", canonical(cluster.members["b"].seen | change), cluster.now)
    assert ("b" in node.facts(cluster.now).copied) is copied


@pytest.mark.parametrize(
    ("seen", "known"),
    [
        ({"role": "primary", "epoch": 1, "lsn": 7}, Position(1, 7)), ({"role": "replica", "epoch": 1, "lsn": 7}, None),
        ({"role": "primary", "epoch": 0, "lsn": 7}, None), ({}, None),
    ],
    ids=["primary", "replica", "older", "nothing"],
)  # fmt: skip
def test_the_last_known_position_is_that_of_the_last_primary(seen: dict[str, Any], known: Position | None) -> None:
    cluster = opened("a", "b", "c")
    node = cluster.members["b"].node
    node.sightings.take_in("a", canonical(seen), cluster.now)
    assert node.sightings.last_known(node.cluster.grant) == known


def test_only_a_leader_and_who_has_none_introduce_themselves_to_the_silent() -> None:
    cluster = opened("a", "b", "c")
    cluster.members["c"].up = False
    cluster.sleep(T.election_ms)
    said: set[str] = set()
    for _ in range(600):
        cluster.turn()
        said |= {m.src for m in cluster.mail if isinstance(m.message, Hello)}
    assert said == {"a"}
    cluster.members["a"].up = False
    cluster.until(lambda: cluster.members["b"].state["leader"] == "")
    cluster.until(lambda: any(m.src == "b" for m in cluster.mail if isinstance(m.message, Hello)), 600)


def test_one_that_another_life_has_replaced_tells_nobody_its_address() -> None:
    cluster = opened("a", "b", "c")
    node = cluster.members["b"].node
    rows = (m._replace(incarnation=9) if m.name == "b" else m for m in node.cluster.members)
    node.cluster = replace(node.cluster, members=tuple(rows))
    effects = node.tick(cluster.now + T.election_ms // 2 * MS)
    assert [e for e in effects if isinstance(e, Send) and isinstance(e.message, Forward)] == []


def test_nothing_changes_before_the_opening() -> None:
    cluster = Cluster("a", "b", "c", streams=True)
    cluster.until(lambda: cluster.primary() == "a")
    cluster.join("d", by="a")
    cluster.run(500)
    assert cluster.roles("a") == "a b c"
    cluster.open()
    cluster.until(lambda: cluster.roles("a") == "a b c d")


def test_one_that_asks_a_follower_is_sent_to_the_leader() -> None:
    cluster = opened("a", "b", "c")
    joining = cluster.join("d", by="c").joining
    cluster.until(lambda: cluster.roles("a") == "a b c d:learner>voter")
    assert joining is not None
    assert joining.asked == {"join": ("c", 1), "leader": ("a", 1)}


def test_a_witness_joins_without_a_copy() -> None:
    cluster = opened("a", "b", "c")
    cluster.join("w", by="a", role=WITNESS)
    settle(cluster, "a b c w:witness", "2 of a b c")
    cluster.until(lambda: cluster.roles("w") == "a b c w:witness")


def test_a_node_that_lost_its_disk_is_let_in_again_and_counts_only_with_a_new_copy() -> None:
    cluster = opened("a", "b", "c")
    c = cluster.join("c")  # at once: its earlier life was heard of a moment ago
    c.seen = {"state": "cloning"}
    cluster.until(lambda: cluster.roles("a") == "a b c:learner>voter")
    assert cluster.seats("a") == "2 of a b c", "the place of its earlier life"
    settle(cluster, "a b c", "2 of a b c2")
    cluster.until(lambda: c.node.raft.members.voters == ("a", "b", "c"))
    assert cluster.members["a"].node.cluster.removed == (Seat("c", 1),)
    assert c.node.raft.log.last_index == cluster.members["a"].node.raft.log.last_index
    assert cluster.lose("a") in "bc"


def test_the_earlier_life_of_a_node_is_told_that_it_is_out() -> None:
    cluster = opened("a", "b", "c")
    old = cluster.members["c"]
    old.up = False
    cluster.sleep(T.election_ms)
    cluster.join("c")
    settle(cluster, "a b c", "2 of a b c2")
    back = cluster.members["x"] = old  # its disk turns up again, at its old address
    old.up = True
    cluster.until(lambda: not back.up)
    assert back.refused[0] == "c was removed from the cluster"
    assert (cluster.primary(), cluster.members["a"].state["term"]) == ("a", 1)


def test_a_removed_node_is_told_by_the_log_and_stops() -> None:
    cluster = opened("a", "b", "c")
    assert cluster.ask("b", "member.remove", name="c")["ok"]
    settle(cluster, "a b", "2 of a b")
    cluster.until(lambda: not cluster.members["c"].up, 20)  # a stranger's word would take longer
    reason, hint = cluster.members["c"].refused
    assert reason == "c was removed from the cluster"
    assert "--join" in hint
    cluster.sleep(2 * T.election_ms)
    assert (cluster.primary(), cluster.members["a"].state["term"]) == ("a", 1), "it disturbed nobody"


def test_a_node_that_was_away_while_it_was_removed_is_told_by_a_stranger() -> None:
    cluster = opened("a", "b", "c")
    cluster.members["c"].up = False
    cluster.sleep(T.election_ms)
    assert cluster.ask("a", "member.remove", name="c")["ok"]
    settle(cluster, "a b", "2 of a b")
    cluster.members["c"].up = True
    cluster.until(lambda: not cluster.members["c"].up)
    assert cluster.members["c"].refused[0] == "c was removed from the cluster"
    assert (cluster.primary(), cluster.members["a"].state["term"]) == ("a", 1), "it disturbed nobody"


def test_one_that_was_removed_and_asks_to_be_let_in_with_an_empty_disk_is() -> None:
    cluster = opened("a", "b", "c")
    cluster.ask("a", "member.remove", name="c")
    settle(cluster, "a b", "2 of a b")
    cluster.until(lambda: not cluster.members["c"].up)
    cluster.join("c", by="a")
    settle(cluster, "a b c", "2 of a b c2")


def test_one_that_is_no_member_and_was_not_told_to_join_stops() -> None:
    cluster = opened("a", "b", "c")
    d = cluster.join("d")
    cluster.until(lambda: not d.up)
    assert d.refused[0].endswith("says: d is not a member of this cluster")


def test_a_node_that_was_away_follows_a_leader_it_never_heard_of() -> None:
    """c is away while b is replaced by d; then d leads. d introduces itself, and c believes one that knows more."""
    cluster = opened("a", "b", "c")
    cluster.join("d", by="a")
    settle(cluster, "a b c d", "3 of a b c d")
    cluster.until(lambda: cluster.roles("d") == "a b c d")
    cluster.members["c"].up = False
    assert cluster.ask("a", "member.replace", name="b", by="d")["ok"]
    settle(cluster, "a c d", "2 of a c d")
    for name in "ab":
        cluster.members[name].up = False
    cluster.members["c"].up = True
    assert cluster.open() == "d"
    cluster.until(lambda: cluster.roles("c") == "a c d")


def test_a_node_that_moved_is_found_again() -> None:
    """It alone knows its new address; the others dial the old one, and so it hears of no leader either."""
    cluster = opened("a", "b", "c")
    cluster.members["c"].up = False
    cluster.run(100)
    cluster.restart("c", "c:9")
    cluster.until(lambda: cluster.members["a"].node.book.current()["c"].address == "c:9")
    cluster.until(lambda: cluster.members["c"].state["leader"] == "a")
    cluster.until(lambda: cluster.members["b"].node.book.members["c"].address == "c:9")


def test_a_leader_and_another_that_moved_at_once_find_each_other() -> None:
    """c knows the leader's old address and the leader knows that of c: b, which both find, says it to the log."""
    cluster = opened("a", "b", "c")
    cluster.members["c"].up = False
    leads_at_another_address(cluster, "a", "a:9")
    cluster.restart("c", "c:9")
    assert cluster.members["c"].node.book.members["a"].address == "a:1"
    cluster.until(lambda: cluster.members["c"].state["leader"] == "a")
    cluster.until(lambda: cluster.members["b"].node.book.members["c"].address == "c:9")


def leads_at_another_address(cluster: Cluster, name: str, address: str) -> None:
    """b is there and has heard of it."""
    cluster.restart(name, address)
    cluster.until(lambda: cluster.members["b"].node.book.members[name].address == address)
    cluster.until(lambda: cluster.primary() != "")
    cluster.open()
    if cluster.primary() != name:
        cluster.run(500)
        assert cluster.ask("b", "switchover", to=name)["ok"]
        term = cluster.members["b"].state["term"]
        cluster.tell("b", "node.fenced", {"term": term, "reason": "", "at": ""})
        assert cluster.open() == name


def test_a_leader_that_moved_is_found_by_one_that_was_away() -> None:
    cluster = opened("a", "b", "c")
    cluster.members["c"].up = False
    leads_at_another_address(cluster, "a", "a:9")
    assert cluster.members["c"].node.book.members["a"].address == "a:1"
    cluster.members["b"].up = False
    cluster.members["c"].up = True
    cluster.until(lambda: cluster.members["c"].state["leader"] == "a")
    cluster.until(lambda: cluster.members["c"].node.book.members["a"].address == "a:9")


def test_what_a_follower_said_does_not_count_once_it_leads() -> None:
    """Of a follower it is one observation, of a leader those of all; found by tests/sim."""
    cluster = Cluster("a", "b", "c")
    leader = cluster.open()
    follower = next(n for n in "abc" if n != leader)
    node = cluster.members[follower].node
    before = node.sightings.all(cluster.now)
    late = Observation(node.raft.term - 1, canonical({"role": "replica"}))
    assert node.peer(leader, late, cluster.now) == []
    assert node.sightings.all(cluster.now) == before


def test_a_node_that_lost_its_state_is_sent_the_whole_log() -> None:
    """What its former life had acknowledged says nothing of the new one; found by tests/sim."""
    cluster = Cluster("a", "b", "c")
    leader = cluster.open()
    node = cluster.members[leader].node
    lost = next(n for n in "abc" if n != leader)
    assert node.raft.acknowledged(lost)[0] > 0
    members = [m._replace(incarnation=2, role="learner") if m.name == lost else m for m in node.cluster.members]
    body = {"members": [list(m) for m in members], "kind": "joined", "node": lost, "text": "", "at": ""}
    cluster.members[lost].up = False
    cluster.tell(leader, "node.propose", {"kind": "members/1", "body": body})
    cluster.until(lambda: node.cluster.member(lost) == members["abc".index(lost)])
    assert node.raft.acknowledged(lost) == (0, 0)


def test_nobody_introduces_itself_to_itself() -> None:
    """Another node that has taken our name: what it may be is for the log to say."""
    cluster = Cluster("a", "b", "c")
    cluster.open()
    node = cluster.members["b"].node
    before = node.book.current()
    assert node.met("b", 9, Hello(1, introduction("elsewhere:1", 10**6)), cluster.now) == []
    assert node.book.current() == before


def test_one_that_was_removed_while_it_was_down_knows_it_from_its_own_log() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    machine = cluster.members["b"]
    machine.node.cluster = replace(machine.node.cluster, removed=(Seat("b", 1),))
    assert isinstance(machine.node.start(None, cluster.now)[0], Removed)


def test_a_primary_whose_postgres_does_not_die_makes_way_without_a_release() -> None:
    """A disk that hangs: killed backends stay. Nobody may be told that they are gone, and others need not wait."""
    cluster = Cluster("a", "b", "c")
    cluster.open()
    a = cluster.members["a"]
    a.seen, a.position = {"state": NOT_FENCED}, (-1, 0)
    cluster.tell("a", "node.observed", a.seen)
    cluster.sleep(T.election_ms - 100)
    assert cluster.primary() == "a", "it may take a moment"
    cluster.until(lambda: cluster.leader() not in ("", "a"), 4 * T.election_ms)
    assert a.disk.hard.released == 0, "its Postgres is not known to be gone"
    assert cluster.open() != "a"
    term = a.state["term"]
    for name in "bc":
        cluster.members[name].up = False
    cluster.sleep(4 * T.election_ms)
    assert (a.state["term"], a.state["role"]) == (term, "follower"), "nor does it campaign"
    a.seen = {"state": "stopped"}
    cluster.tell("a", "node.observed", a.seen)
    cluster.until(lambda: a.state["role"] != "follower", 4 * T.election_ms)


def test_alone_it_stays_the_leader() -> None:
    cluster = Cluster("a")
    cluster.open()
    cluster.members["a"].seen = {"state": NOT_FENCED}
    cluster.tell("a", "node.observed", {"state": NOT_FENCED})
    cluster.sleep(4 * T.election_ms)
    assert cluster.primary() == "a"
