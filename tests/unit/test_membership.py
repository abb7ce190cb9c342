"""Who takes part: what a list of members says, and the rules for a change of it in the Raft core."""

from __future__ import annotations

import pytest

from consensus.cluster import canonical
from consensus.membership import (
    GONE,
    LEARNER,
    MEMBERS,
    VOTER,
    WITNESS,
    Member,
    Membership,
    is_one_step,
    membership,
    membership_in,
)
from consensus.messages import (
    AppendReq,
    AppendResp,
    Entry,
    HardState,
    PreVoteReq,
    PreVoteResp,
    Snapshot,
    SnapshotReq,
    TimeoutNow,
    VoteReq,
    VoteResp,
)
from consensus.raft import Beat, Campaign, Compact, Log, Propose, Raft, RaftBugError, Release, Role, Tick
from fencing.lease import MS
from tests.unit.test_raft import NOOP, E, L, append, led, node, receive, sent


def listed(voters: str, learners: str = "", witnesses: str = "") -> str:
    """The data of a `members/1` entry."""
    rows = [Member(n, 1, "", "", "", VOTER, VOTER) for n in voters]
    rows += [Member(n, 1, "", "", "", LEARNER, VOTER) for n in learners]
    rows += [Member(n, 1, "", "", "", WITNESS, WITNESS) for n in witnesses]
    return canonical({"members": [list(row) for row in rows]})


def members_entry(index: int, term: int, voters: str, learners: str = "") -> Entry:
    return Entry(index, term, MEMBERS, listed(voters, learners))


def role(raft: Raft) -> Role:
    """A call, because an assertion about an attribute is all mypy believes of it from there on."""
    return raft.role


def voters_of(raft: Raft) -> str:
    return "".join(raft.members.voters)


def change(raft: Raft, voters: str, learners: str = "", at: int = 20) -> int:
    return raft.step(Propose(MEMBERS, listed(voters, learners)), at * MS).proposed


def acknowledge(raft: Raft, src: str, at: int = 21, match: int | None = None) -> None:
    """``src`` has everything (or as far as ``match``) and answers the newest round."""
    reached = raft.log.last_index if match is None else match
    receive(raft, src, AppendResp(raft.term, 7, raft.round, ok=True, match=reached), at)


def committed(raft: Raft, voters: str, learners: str = "", by: str = "bc") -> Raft:
    """``raft``, a leader, after the change to these members is committed and told."""
    assert change(raft, voters, learners)
    for src in by:
        acknowledge(raft, src, 22)
    assert raft.settled == Membership(tuple(voters), tuple(learners))
    raft.step(Beat(), 23 * MS)
    return raft


# -- lists of members


def test_a_list_is_sorted_and_divided_by_the_vote() -> None:
    rows = [Member("d", 4, "", "", "", LEARNER), Member("c", 3, "", "", "", WITNESS), Member("b", 2, "", "", "")]
    assert membership(rows) == Membership(("b", "c"), ("d",))
    assert membership_in(listed("ba", "d", "c")) == Membership(("a", "b", "c"), ("d",))


@pytest.mark.parametrize(
    ("role", "aim", "votes", "has_data"),
    [
        (VOTER, VOTER, True, True), (VOTER, GONE, True, True), (WITNESS, WITNESS, True, False),
        (LEARNER, WITNESS, False, False), (LEARNER, VOTER, False, True), (WITNESS, GONE, True, False),
    ],
)  # fmt: skip
def test_what_a_role_means(role: str, aim: str, votes: bool, has_data: bool) -> None:
    member = Member("a", 1, "", "", "", role, aim)
    assert (member.votes, member.has_data) == (votes, has_data)


@pytest.mark.parametrize(
    ("old", "new", "one"),
    [("abc", "abcd", True), ("abc", "ab", True), ("abc", "abc", True), ("abc", "abd", False), ("abc", "abcde", False)],
)
def test_one_step_is_one_voter(old: str, new: str, one: bool) -> None:
    """4.1. Replacing one is two: the majorities {a, c} and {b, d} of abc and abd do not meet."""
    assert is_one_step(Membership(tuple(old)), Membership(tuple(new))) is one
    assert is_one_step(Membership(tuple(old), ("x", "y")), Membership(tuple(old), ("z",))), "learners do not count"


# -- when a change may begin


def test_no_change_before_the_leaders_own_no_op_is_committed() -> None:
    """raft-dev 2015: changes of two terms, both uncommitted, have majorities that do not meet. An entry of an older
    term that is committed says nothing about who else is under way."""
    raft = node("a", HardState(1, "", 1), Log(entries=(NOOP,)))
    raft.step(Tick(), 0)
    receive(raft, "b", PreVoteResp(1, 2, granted=True), 1)
    receive(raft, "b", VoteResp(2, granted=True), 2)
    assert (raft.role, raft.commit, raft.log.last_index) == (Role.LEADER, 1, 2)
    assert change(raft, "abcd") == 0
    acknowledge(raft, "b")
    assert change(raft, "abcd") == 3


def test_one_change_at_a_time() -> None:
    raft = led()
    assert change(raft, "abcd") == 2
    assert change(raft, "abcd", "e") == 0, "not even one that touches no vote"
    assert raft.step(Propose("x/1", ""), 20 * MS).proposed == 3, "everything else goes on"
    for src in "bc":
        acknowledge(raft, src, match=2)
    assert change(raft, "abcd", "e") == 4


@pytest.mark.parametrize("voters", ["abcde", "a", "abd"])
def test_two_voters_at_once_are_a_bug(voters: str) -> None:
    with pytest.raises(RaftBugError, match="cannot become"):
        change(led(), voters)


def test_no_voter_at_all_is_a_bug() -> None:
    raft = node(voters=("a",))
    raft.step(Tick(), MS)
    with pytest.raises(RaftBugError, match="cannot become"):
        change(raft, "", "a")


def test_a_leader_does_not_remove_itself() -> None:
    raft = led()
    assert change(raft, "bc") == 0
    assert voters_of(raft) == "abc"


def test_only_a_leader_that_holds_its_lease_changes_members() -> None:
    assert change(node("b"), "abcd") == 0
    raft = led()
    raft.step(Release("b"), 10 * MS)
    assert change(raft, "abcd") == 0


# -- from when on it counts


def test_a_change_counts_from_its_append_at_the_leader() -> None:
    raft = led()
    change(raft, "abcd")
    acknowledge(raft, "b")
    assert raft.commit == 1, "2 of 4"
    acknowledge(raft, "d")
    assert raft.commit == 2


def test_a_change_counts_from_its_append_at_a_follower() -> None:
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP, members_entry(2, 1, "abcd"))), 10)
    assert raft.commit == 0
    ready = raft.step(Tick(), raft.election_at_ns)
    assert sent(ready, "d") == [PreVoteReq(2, 2, 1)]
    at = raft.election_at_ns // MS + 1
    receive(raft, "d", PreVoteResp(1, 2, granted=True), at)
    assert role(raft) is Role.PRECANDIDATE, "2 of 4"
    receive(raft, "a", PreVoteResp(1, 2, granted=True), at)
    assert role(raft) is Role.CANDIDATE


def test_an_entry_that_is_overwritten_counts_no_more() -> None:
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP, members_entry(2, 1, "abcd"))), 10)
    assert (voters_of(raft), raft.changed_at) == ("abcd", 2)
    receive(raft, "c", append(2, (1, 1), (Entry(2, 2, "noop/1", ""),)), 11)
    assert (voters_of(raft), raft.changed_at) == ("abc", 0)


@pytest.mark.parametrize(("commit", "settled"), [(1, "abc"), (2, "abcd")])
def test_a_change_counts_after_a_restart(commit: int, settled: str) -> None:
    """Committed or not; only what is known to be committed is settled."""
    raft = node("b", HardState(1, "", commit), Log(entries=(NOOP, members_entry(2, 1, "abcd"))), fresh=False)
    assert (raft.members.voters, raft.settled.voters) == (tuple("abcd"), tuple(settled))


def test_the_newest_of_several_counts() -> None:
    log = Log(entries=(NOOP, members_entry(2, 1, "abcd"), members_entry(3, 1, "abcd", "e"), Entry(4, 1, "x/1", "")))
    raft = node("b", HardState(1, "", 2), log)
    assert raft.members == Membership(tuple("abcd"), ("e",))
    assert (raft.settled, raft.changed_at) == (Membership(tuple("abcd")), 3)


def test_a_follower_learns_what_is_settled_from_the_commit_index() -> None:
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP, members_entry(2, 1, "abcd"))), 10)
    assert raft.settled == Membership(("a", "b", "c"))
    receive(raft, "a", append(1, (2, 1), (), commit=2), 11)
    assert raft.settled == raft.members == Membership(("a", "b", "c", "d"))


# -- snapshots


def test_a_snapshot_carries_the_members_as_of_its_index() -> None:
    raft = committed(led(), "abcd", by="bd")
    change(raft, "abcd", "e", at=30)
    ready = raft.step(Compact(1, "s"), 31 * MS)
    assert ready.snapshot == Snapshot(1, 1, "s"), "before any change: those of the founding"
    ready = raft.step(Compact(2, "s"), 31 * MS)
    assert ready.snapshot == Snapshot(2, 1, "s", Membership(tuple("abcd")))
    assert raft.members == Membership(tuple("abcd"), ("e",)), "what is in force is not what was compacted"
    for src in "bd":
        acknowledge(raft, src, 32)
    ready = raft.step(Compact(3, "s"), 33 * MS)
    assert ready.snapshot == Snapshot(3, 1, "s", Membership(tuple("abcd"), ("e",)))
    raft.step(Propose("x/1", ""), 34 * MS)
    for src in "bd":
        acknowledge(raft, src, 35)
    ready = raft.step(Compact(4, "s"), 36 * MS)
    assert ready.snapshot == Snapshot(4, 1, "s", Membership(tuple("abcd"), ("e",))), "from the snapshot before"


def test_members_are_read_from_a_snapshot_after_a_restart() -> None:
    snapshot = Snapshot(5, 1, "s", Membership(tuple("ab"), ("d",)))
    raft = node("b", HardState(1, "", 5), Log(snapshot), fresh=False)
    assert raft.members == raft.settled == snapshot.membership
    later = Log(snapshot, (members_entry(6, 1, "abd"),))
    assert node("b", HardState(1, "", 5), later, fresh=False).members.voters == ("a", "b", "d")


def test_members_are_taken_from_a_snapshot_that_is_sent() -> None:
    """RATIS-1128. What the follower's log said before is overtaken, what it says after stays."""
    conflicting = Log(entries=(NOOP, members_entry(2, 1, "abcx")))
    raft = node("b", HardState(1), conflicting)
    assert "x" in raft.members.voters
    receive(raft, "a", SnapshotReq(3, 9, 1, Snapshot(2, 2, "s", Membership(tuple("abcd"))), 2), 1)
    assert raft.members == raft.settled == Membership(tuple("abcd"))
    agreeing = Log(entries=(NOOP, Entry(2, 1, "x/1", ""), members_entry(3, 1, "abcd")))
    raft = node("b", HardState(1), agreeing)
    receive(raft, "a", SnapshotReq(3, 9, 1, Snapshot(2, 1, "s"), 2), 1)
    assert (raft.members, raft.settled) == (Membership(tuple("abcd")), Membership(tuple("abc")))


# -- learners


def test_a_learner_gets_the_log_and_counts_nowhere() -> None:
    """4.2.1."""
    raft = committed(led(), "abc", "d", by="b")
    ready = raft.step(Propose("x/1", "1"), 30 * MS)
    request = sent(ready, "d")[-1]
    assert isinstance(request, AppendReq)
    lease_ns = raft.lease_until_ns
    acknowledge(raft, "d", 31)
    assert raft.commit == 2, "it takes no part in a commit"
    assert raft.lease_until_ns == lease_ns, "nor in a lease"
    acknowledge(raft, "b", 32)
    assert (raft.commit, raft.lease_until_ns) == (3, (30 + L) * MS)


def test_a_learner_is_not_asked_for_its_vote_and_its_vote_does_not_count() -> None:
    raft = node("b", HardState(1, "", 2), Log(entries=(NOOP, members_entry(2, 1, "abc", "d"))))
    ready = raft.step(Campaign(), 0)
    assert [dst for dst, _ in ready.now] == ["a", "c"]
    receive(raft, "d", PreVoteResp(1, 2, granted=True), 1)
    assert role(raft) is Role.PRECANDIDATE
    ready = receive(raft, "a", PreVoteResp(1, 2, granted=True), 2)
    assert [dst for dst, _ in ready.after] == ["a", "c"]
    receive(raft, "d", VoteResp(2, granted=True), 3)
    assert role(raft) is Role.CANDIDATE
    receive(raft, "a", VoteResp(2, granted=True), 4)
    assert role(raft) is Role.LEADER


def test_a_learner_answers_for_others_may_know_it_as_a_voter() -> None:
    """etcd #7625: its own log may be behind the change that made it one."""
    raft = node("d", HardState(1, "", 2), Log(entries=(NOOP, members_entry(2, 1, "abc", "d"))))
    assert sent(receive(raft, "b", VoteReq(2, 3, 1, "", 0), 1), "b") == [VoteResp(2, granted=True)]


@pytest.mark.parametrize(("voters", "learners"), [("abc", "d"), ("abc", "")], ids=["learner", "removed"])
def test_one_without_a_vote_never_campaigns(voters: str, learners: str) -> None:
    raft = node("d", HardState(1, "", 2), Log(entries=(NOOP, members_entry(2, 1, voters, learners))))
    for at in (0, 1, 3):
        ready = raft.step(Tick(), at * E * MS)
        assert (ready.now, ready.after, raft.term) == ((), (), 1)
        assert raft.wakeup_ns > at * E * MS, "nor does it spin"
    ready = raft.step(Campaign(), 4 * E * MS)
    assert (ready.now, ready.after, raft.role) == ((), (), Role.FOLLOWER)


def test_one_that_joins_with_an_empty_log_never_campaigns() -> None:
    """Its charter names others only; it is one of them from the moment its log says so."""
    raft = node("d")
    for at in (0, 2, 4):
        ready = raft.step(Tick(), at * E * MS)
        assert (ready.now, ready.after, raft.term) == ((), (), 0)
    receive(raft, "a", append(entries=(NOOP, members_entry(2, 1, "abcd"))), 5 * E)
    raft.step(Tick(), 7 * E * MS)
    assert role(raft) is Role.PRECANDIDATE


def test_timeout_now_is_nothing_for_a_learner() -> None:
    raft = node("d", HardState(1), Log(entries=(NOOP, members_entry(2, 1, "abc", "d"))))
    receive(raft, "a", append(1, (2, 1)), 1)
    ready = receive(raft, "a", TimeoutNow(1), 2)
    assert (raft.role, raft.term, ready.after) == (Role.FOLLOWER, 1, ())


def test_a_release_never_goes_to_a_learner() -> None:
    raft = committed(led(), "abc", "d", by="b")
    acknowledge(raft, "d", 24)
    ready = raft.step(Release("d"), 30 * MS)
    assert (raft.role, raft.term) == (Role.CANDIDATE, 2)
    assert sent(ready, "d") == []
    assert sent(ready, "b") == [VoteReq(2, 2, 1, "a", 1)]


def test_one_that_is_let_in_is_sent_the_whole_log() -> None:
    raft = committed(led(), "abc", "d", by="b")
    ready = receive(raft, "d", AppendResp(1, 7, raft.round, ok=False, match=0), 24)
    [request] = sent(ready, "d")
    assert isinstance(request, AppendReq)
    assert [e.index for e in request.entries] == [1, 2]


def test_one_that_lost_its_log_and_is_let_in_again_is_sent_all_of_it() -> None:
    """The name is the same, so the leader may think it knows how far that log goes."""
    raft = led()
    raft.step(Propose("x/1", ""), 10 * MS)
    for src in "bc":
        acknowledge(raft, src, 11)
    committed(raft, "ab", "c", by="b")
    assert raft.acknowledged("c")[0] == 0, "of the life before nothing is believed"
    ready = receive(raft, "c", AppendResp(1, 7, raft.round, ok=False, match=0), 24)
    [request] = sent(ready, "c")
    assert isinstance(request, AppendReq)
    assert [e.index for e in request.entries] == [1, 2, 3]
    assert raft.acknowledged("c")[0] == 0


# -- the lease


def test_a_lease_needs_a_majority_of_both_memberships() -> None:
    """Old and new: whoever could be elected by the old one must be bound as well."""
    raft = committed(led(), "abcd", by="bd")
    lease_ns = raft.lease_until_ns
    change(raft, "abc", at=100)
    acknowledge(raft, "b", 101, match=2)
    assert raft.lease_until_ns == lease_ns, "2 of abc, but 2 of abcd as well"
    acknowledge(raft, "c", 102, match=2)
    assert raft.lease_until_ns == (100 + L) * MS
    raft = led()
    lease_ns = raft.lease_until_ns
    change(raft, "abcd", at=100)
    acknowledge(raft, "b", 101)
    assert raft.lease_until_ns == lease_ns, "2 of abc, but 2 of abcd as well"
    acknowledge(raft, "d", 102)
    assert raft.lease_until_ns == (100 + L) * MS


def test_a_leader_without_a_majority_of_both_steps_down() -> None:
    raft = committed(led(), "abcd", by="bd")
    change(raft, "abc", at=100)
    acknowledge(raft, "b", 101, match=2)
    assert raft.quorum_at_ns < 100 * MS
    raft.step(Tick(), raft.quorum_at_ns + E * MS)
    assert role(raft) is Role.FOLLOWER


# -- leaving


def test_a_removed_node_is_told_and_then_left_alone() -> None:
    raft = led()
    change(raft, "ab", at=20)
    assert sent(raft.step(Beat(), 21 * MS), "c"), "until that is committed it is sent everything"
    ready = receive(raft, "b", AppendResp(1, 7, raft.round, ok=True, match=2), 22)
    [request] = sent(ready, "c")
    assert isinstance(request, AppendReq)
    assert request.commit == 2, "told that it is out"
    assert sent(raft.step(Beat(), 23 * MS), "c") == []
    receive(raft, "c", AppendResp(1, 7, raft.round, ok=True, match=2), 24)
    assert dict(raft.progress).keys() == {"b"}


def test_a_removed_voter_counts_no_more() -> None:
    raft = committed(led(), "ab", by="b")
    assert raft.step(Propose("x/1", ""), 30 * MS).proposed == 3
    receive(raft, "c", AppendResp(1, 7, raft.round, ok=True, match=3), 31)
    assert raft.commit == 2


def test_one_whose_removal_is_not_committed_may_still_lead_and_makes_way_once_it_is() -> None:
    """4.2.2: the others may need it, for it may have what they lack. It counts itself in no majority."""
    raft = node("c", HardState(1, "", 1), Log(entries=(NOOP, members_entry(2, 1, "ab"))))
    ready = raft.step(Campaign(), 0)
    assert [dst for dst, _ in ready.now] == ["a", "b"]
    receive(raft, "a", PreVoteResp(1, 2, granted=True), 1)
    assert role(raft) is Role.PRECANDIDATE, "one of ab: its own does not count"
    receive(raft, "b", PreVoteResp(1, 2, granted=True), 2)
    receive(raft, "a", VoteResp(2, granted=True), 3)
    assert role(raft) is Role.CANDIDATE
    receive(raft, "b", VoteResp(2, granted=True), 4)
    assert role(raft) is Role.LEADER
    acknowledge(raft, "a", 5)
    assert (raft.role, raft.commit) == (Role.LEADER, 1), "one of ab"
    assert raft.lease_until_ns == 0
    ready = receive(raft, "b", AppendResp(2, 7, raft.round, ok=True, match=3), 6)
    assert raft.commit == 3
    assert {m.commit for _, m in ready.after if isinstance(m, AppendReq)} == {3}, "it tells the others first"
    ready = raft.step(Beat(), 7 * MS)
    assert (raft.role, raft.leader, ready.after) == (Role.FOLLOWER, "", ())
    assert raft.step(Campaign(), 3 * E * MS).now == ()


def test_one_whose_removal_is_committed_is_no_target_of_a_release() -> None:
    raft = committed(led(), "ab", by="b")
    ready = raft.step(Release("c"), 30 * MS)
    assert (raft.role, sent(ready, "c")) == (Role.CANDIDATE, [])


# -- alone


def test_alone_is_who_the_log_says_is_alone() -> None:
    """Not the charter: a cluster that shrank to one waits for nobody, one that grew from one does."""
    shrunk = Log(entries=(NOOP, members_entry(2, 1, "a")))
    raft = node("a", HardState(1, "a", 2), shrunk, now=5, fresh=False)
    raft.step(Tick(), 5 * MS)
    assert (raft.role, raft.term) == (Role.LEADER, 2)
    grown = Log(entries=(NOOP, members_entry(2, 1, "ab")))
    raft = node("a", HardState(1, "a", 2), grown, now=5, fresh=False, voters=("a",))
    raft.step(Tick(), 5 * MS)
    assert (raft.role, raft.term) == (Role.FOLLOWER, 1)
    ready = raft.step(Tick(), raft.election_at_ns)
    assert sent(ready, "b") == [PreVoteReq(2, 2, 1)]


def test_from_one_to_two_and_back() -> None:
    raft = node(voters=("a",))
    raft.step(Tick(), MS)
    assert change(raft, "a", "b", at=2) == 2
    assert raft.commit == 2
    assert change(raft, "ab", at=3) == 3
    assert raft.commit == 2, "now it takes two"
    acknowledge(raft, "b", 4)
    assert raft.commit == 3
    assert change(raft, "a", at=5) == 4
    assert raft.commit == 4
