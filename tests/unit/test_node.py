"""Three `Node`s in memory: from the founding to a switchover."""

from __future__ import annotations

import pytest

from consensus.cluster import Seat
from consensus.membership import WITNESS
from consensus.raft import Role
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


def test_leadership_goes_to_the_node_with_the_wal() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    epoch, lsn = cluster.members["b"].position
    cluster.members["a"].up = False
    for best in ("b", "c"):
        cluster.members[best].position = (epoch, lsn + 1 if best == "c" else lsn)
    cluster.until(lambda: cluster.primary() != "")
    assert cluster.primary() == "c"


def test_no_promotion_without_a_read_quorum_and_the_reason_is_told() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.members["a"].up = False
    cluster.members["b"].position = (-1, 0)
    cluster.until(
        lambda: any("b has no position (down)" in m.state.get("sentence", "") for m in cluster.members.values())
    )
    for _ in range(3000):
        cluster.turn()
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
    for _ in range(100):
        cluster.turn()
    assert cluster.primary() == "a", "nothing moves before the fence"
    cluster.tell("a", "node.fenced", {"term": cluster.members["a"].state["term"], "reason": "switchover", "at": ""})
    assert cluster.members["a"].disk.hard.released == 1
    took = cluster.until(lambda: cluster.primary() == "b")
    assert took < 200, "with the release nobody waits for E"


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
    for _ in range(3 * T.election_ms):
        cluster.turn()
    assert cluster.primary() == ""


# -- members


def opened(*names: str, witnesses: str = "") -> Cluster:
    cluster = Cluster(*names, witnesses=witnesses, streams=True)
    cluster.open()
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
    cluster.run(T.election_ms)
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
    cluster.until(lambda: not cluster.members["c"].up)
    reason, hint = cluster.members["c"].refused
    assert reason == "c was removed from the cluster"
    assert "--join" in hint
    cluster.run(2 * T.election_ms)
    assert (cluster.primary(), cluster.members["a"].state["term"]) == ("a", 1), "it disturbed nobody"


def test_a_node_that_was_away_while_it_was_removed_is_told_by_a_stranger() -> None:
    cluster = opened("a", "b", "c")
    cluster.members["c"].up = False
    cluster.run(T.election_ms)
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


def test_a_leader_that_moved_is_found_by_one_that_was_away() -> None:
    cluster = opened("a", "b", "c")
    cluster.members["c"].up = False
    cluster.restart("a", "a:9")
    cluster.until(lambda: cluster.members["b"].node.book.members["a"].address == "a:9")
    cluster.until(lambda: cluster.primary() != "")
    cluster.open()
    if cluster.primary() != "a":
        cluster.run(500)
        assert cluster.ask("b", "switchover", to="a")["ok"]
        term = cluster.members["b"].state["term"]
        cluster.tell("b", "node.fenced", {"term": term, "reason": "", "at": ""})
        assert cluster.open() == "a"
    assert cluster.members["c"].node.book.members["a"].address == "a:1"
    cluster.members["b"].up = False
    cluster.members["c"].up = True
    cluster.until(lambda: cluster.members["c"].state["leader"] == "a")
    cluster.until(lambda: cluster.members["c"].node.book.members["a"].address == "a:9")
