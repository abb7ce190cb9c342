"""The chapters of the Raft thesis that are used here (3, 4, 5, 6.2, 6.4, 9.6), rule by rule, with their sections.

Rules that have a test elsewhere are listed in `ELSEWHERE`, and that test is named. "Ours" marks where this core does
more or less than the thesis says; why is in consensus/DESIGN.md.
"""

from __future__ import annotations

import pytest

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
from consensus.raft import Beat, Campaign, Log, Propose, Raft, RaftConfig, Release, Role, Tick
from fencing.lease import MS
from tests.unit.listed import is_a_test, named_tests
from tests.unit.nodes import Cluster
from tests.unit.test_membership import members_entry, role
from tests.unit.test_raft import NOOP, E, H, append, led, node, receive, sent

ELSEWHERE = """
3.3: a stale request is refused with the newer term
    test_raft::test_a_message_of_an_older_term_is_answered_with_ours
3.3: whoever learns of a higher term follows
    test_raft::test_an_answer_of_a_higher_term_is_adopted
3.4: one vote a term, first come first served
    test_raft::test_one_vote_per_term_is_saved_before_the_answer
3.4: election safety
    test_raft::test_two_leaders_of_one_term_stop_the_process
3.5: the leader finds where logs agree, and overwrites
    test_raft::test_a_conflict_skips_a_whole_term_and_is_overwritten
3.6.1: a vote only for a log that is as new
    test_raft::test_vote_only_for_a_log_that_is_not_older
3.6.2: no commit of an older term by counting
    test_raft::test_an_older_term_commits_only_along_with_an_own_entry
3.7: a repeated request changes nothing
    test_raft::test_an_old_append_never_cuts_the_log
3.10: no proposals during a transfer
    test_raft::test_release_is_durable_before_timeout_now_and_ends_the_lease_for_the_term
3.10: the target has the whole log first
    test_raft::test_the_target_must_have_the_whole_log_first
3.10: the target campaigns at once
    test_raft::test_timeout_now_starts_a_campaign_with_the_proof
3.10: a transfer that fails is given up
    test_raft::test_a_target_that_never_takes_over_is_overtaken
4.1: one server at a time
    test_membership::test_two_voters_at_once_are_a_bug
4.1: no change before the one before is committed
    test_membership::test_one_change_at_a_time
4.1, raft-dev 2015: nor before the leader's own no-op
    test_membership::test_no_change_before_the_leaders_own_no_op_is_committed
4.1: in force from the append, leader
    test_membership::test_a_change_counts_from_its_append_at_the_leader
4.1: in force from the append, follower
    test_membership::test_a_change_counts_from_its_append_at_a_follower
4.1: a follower may have to go back
    test_membership::test_an_entry_that_is_overwritten_counts_no_more
4.2.1: a new server is caught up without a vote
    test_membership::test_a_learner_gets_the_log_and_counts_nowhere
4.2.1: a vote only for one that has caught up
    test_changes::test_copy_then_vote_then_seat
4.2.2: a leader that is removed makes way
    test_membership::test_one_whose_removal_is_not_committed_may_still_lead_and_makes_way_once_it_is
4.2.2: it counts itself in no majority
    test_membership::test_one_whose_removal_is_not_committed_may_still_lead_and_makes_way_once_it_is
4.2.3: removed servers do not disturb
    test_node::test_a_node_that_was_away_while_it_was_removed_is_told_by_a_stranger
5.1: a snapshot replaces the log
    test_raft::test_compaction_replaces_the_log_and_a_laggard_gets_the_snapshot
5.1: only what is committed
    test_raft::test_only_what_is_committed_can_be_compacted
5.1: a snapshot has the membership of its index
    test_membership::test_a_snapshot_carries_the_members_as_of_its_index
5.1: what conflicts goes, what follows stays
    test_raft::test_a_snapshot_drops_a_log_that_conflicts_and_keeps_one_that_agrees
5.1: an old snapshot is nothing
    test_raft::test_an_old_snapshot_changes_nothing
6.2: a leader without a majority makes way
    test_raft::test_without_a_majority_for_e_a_leader_steps_down
6.4.1: a lease counts from the send
    test_raft::test_the_lease_counts_from_the_send_of_an_acknowledged_round
6.4.1: nobody votes while it follows a leader
    test_raft::test_an_acknowledged_round_binds_for_e_from_its_receipt
6.4.1: nor after a restart
    test_raft::test_a_restarted_voter_waits_e
6.4.1: a transfer ends the lease first
    test_raft::test_a_release_frees_whoever_promised_to_this_leader_in_this_term
9.6: a pre-vote comes first and changes nothing
    test_raft::test_pre_vote_comes_first_and_changes_nothing
9.6: a campaign takes a majority of pre-votes
    test_raft::test_campaign_only_after_a_majority_of_pre_votes
"""


@pytest.mark.parametrize(("rule", "tests"), named_tests(ELSEWHERE), ids=lambda x: x if isinstance(x, str) else "")
def test_every_rule_that_is_tested_elsewhere_is(rule: str, tests: tuple[str, ...]) -> None:
    assert rule
    assert [name for name in tests if not is_a_test(name)] == []
    assert tests


# -- 3.3 and 3.4: terms and elections


def test_3_3_a_request_of_a_higher_term_is_adopted_by_anybody() -> None:
    """3.3: "if one server's current term is smaller than the other's, then it updates"; a leader reverts to follower.

    Ours: not while a promise binds (6.4.1)."""
    for raft in (node("b"), candidate(), led()):
        receive(raft, "c", VoteReq(9, 9, 9, "", 0), 3 * E)
        assert (raft.term, raft.vote, raft.role) == (9, "c", Role.FOLLOWER)
    raft = led()
    receive(raft, "c", append(9), 10)
    assert (raft.term, raft.leader, raft.role) == (9, "c", Role.FOLLOWER)


def test_3_3_a_vote_of_a_smaller_term_is_refused() -> None:
    """3.3: "a server receives a request with a stale term number, it rejects the request"."""
    raft = node("b", HardState(5))
    assert sent(receive(raft, "a", VoteReq(4, 9, 4, "", 0), 1), "a") == [VoteResp(5, granted=False)]
    assert (raft.term, raft.vote) == (5, "")


def test_3_3_a_stale_answer_is_nothing() -> None:
    """3.3: a candidate and a leader count only what was said in their own term."""
    raft = candidate(term=2)
    receive(raft, "b", VoteResp(1, granted=True), 3)
    receive(raft, "b", PreVoteResp(1, 2, granted=True), 3)
    assert role(raft) is Role.CANDIDATE
    raft = led()
    lease_ns, progress = raft.lease_until_ns, raft.progress
    receive(raft, "c", AppendResp(0, 7, 99, ok=True, match=99), 10)
    assert (raft.lease_until_ns, raft.progress, raft.commit) == (lease_ns, progress, 1)


def candidate(term: int = 1) -> Raft:
    """a, asking b and c for their votes."""
    raft = node("a", HardState(term - 1))
    raft.step(Tick(), 0)
    receive(raft, "b", PreVoteResp(term - 1, term, granted=True), 1)
    assert (raft.role, raft.term) == (Role.CANDIDATE, term)
    return raft


def test_3_4_servers_start_as_followers() -> None:
    """3.4."""
    for fresh in (True, False):
        raft = node("b", HardState(4, "b", 0), fresh=fresh)
        assert (raft.role, raft.leader, raft.lease_until_ns) == (Role.FOLLOWER, "", 0)


def test_3_4_a_follower_stays_one_while_it_hears_a_leader() -> None:
    """3.4: "a server remains in follower state as long as it receives valid RPCs from a leader or candidate"."""
    raft = node("b")
    for at in range(0, 10 * E, E // 2):
        receive(raft, "a", append(1), at)
        raft.step(Tick(), (at + E // 2 - 1) * MS)
        assert (raft.role, raft.leader) == (Role.FOLLOWER, "a")
    raft.step(Tick(), raft.election_at_ns)
    assert raft.role is Role.PRECANDIDATE


def test_3_4_a_vote_that_was_given_puts_off_the_own_campaign() -> None:
    """3.4: "... or candidate"; one that was refused does not."""
    raft = node("b")
    before = raft.election_at_ns
    receive(raft, "a", VoteReq(1, 0, 0, "", 0), E // 2)
    assert before < (E // 2 + E) * MS <= raft.election_at_ns
    at = raft.election_at_ns
    receive(raft, "c", VoteReq(1, 0, 0, "", 0), E // 2 + 1)
    assert raft.election_at_ns == at


def test_3_4_a_candidate_votes_for_itself_in_a_new_term() -> None:
    """3.4: "increments its current term ... votes for itself"; both on disk before it asks (3.8)."""
    raft = node("a", HardState(4, "b"))
    raft.step(Tick(), 0)
    ready = receive(raft, "b", PreVoteResp(4, 5, granted=True), 1)
    assert ready.hard == HardState(5, "a")
    assert [dst for dst, _ in ready.after] == ["b", "c"]
    assert ready.now == ()


def test_3_4_a_candidate_wins_with_a_majority_of_all_voters() -> None:
    """3.4: of the full cluster, not of those who answered; and each voter counts once."""
    five = node("a", voters=("a", "b", "c", "d", "e"))
    five.step(Tick(), 0)
    for _ in range(2):
        receive(five, "b", PreVoteResp(0, 1, granted=True), 1)
    assert role(five) is Role.PRECANDIDATE
    receive(five, "c", PreVoteResp(0, 1, granted=True), 1)
    for _ in range(2):
        receive(five, "b", VoteResp(1, granted=True), 2)
    assert role(five) is Role.CANDIDATE
    receive(five, "d", VoteResp(1, granted=False), 3)
    assert role(five) is Role.CANDIDATE
    receive(five, "e", VoteResp(1, granted=True), 3)
    assert role(five) is Role.LEADER


def test_3_4_a_new_leader_says_so_at_once() -> None:
    """3.4: "it then sends heartbeat messages to all of the other servers"."""
    ready = receive(candidate(), "b", VoteResp(1, granted=True), 2)
    for peer in "bc":
        [request] = sent(ready, peer)
        assert isinstance(request, AppendReq)
        assert [e.kind for e in request.entries] == ["noop/1"]


def test_3_4_a_candidate_gives_way_to_a_leader_of_its_term() -> None:
    """3.4: "if the leader's term is at least as large as the candidate's"; else it goes on."""
    raft = candidate(term=2)
    receive(raft, "b", append(1), 3)
    assert role(raft) is Role.CANDIDATE
    receive(raft, "b", append(2), 4)
    assert (role(raft), raft.leader, raft.vote) == (Role.FOLLOWER, "b", "a")


def test_3_4_a_split_vote_is_followed_by_a_new_term_after_a_random_time() -> None:
    """3.4: "randomized election timeouts". Ours: a failed campaign is repeated after the jitter alone."""
    raft = candidate()
    for name in "bc":
        receive(raft, name, VoteResp(1, granted=False), 2)
    waits = set()
    for term in (2, 3, 4):
        began = raft.now_ns
        waits.add(raft.election_at_ns - began)
        assert 0 < raft.election_at_ns - began <= 300 * MS
        raft.step(Tick(), raft.election_at_ns)
        receive(raft, "b", PreVoteResp(term - 1, term, granted=True), raft.now_ns // MS + 1)
        assert (raft.role, raft.term) == (Role.CANDIDATE, term)
    assert len(waits) == 3
    others = [Raft(raft.config, HardState(), Log(), boot=1, seed=s, now_ns=0, fresh=False) for s in range(9)]
    assert len({other.election_at_ns for other in others}) == 9


# -- 3.5 to 3.8: the log


def test_3_5_a_proposal_goes_to_all_and_commits_with_a_majority() -> None:
    """3.5: "issues AppendEntries RPCs in parallel to each of the other servers"."""
    raft = led()
    receive(raft, "c", AppendResp(1, 7, raft.round, ok=True, match=1), 10)
    ready = raft.step(Propose("x/1", "1"), 20 * MS)
    entry = Entry(2, 1, "x/1", "1")
    for peer in "bc":
        [request] = sent(ready, peer)
        assert isinstance(request, AppendReq)
        assert (request.prev_index, request.prev_term, request.entries, request.commit) == (1, 1, (entry,), 1)
    assert ready.entries == (entry,)
    assert ready.committed == ()
    ready = receive(raft, "c", AppendResp(1, 7, raft.round, ok=True, match=2), 30)
    assert ready.committed == (entry,)


def test_3_5_a_commit_commits_everything_before_it() -> None:
    """3.5: "this also commits all preceding entries", in log order, each once."""
    old = tuple(Entry(i, 1, "x/1", str(i)) for i in range(1, 4))
    raft = node("a", HardState(1, "", 1), Log(entries=old))
    raft.step(Tick(), 0)
    receive(raft, "b", PreVoteResp(1, 2, granted=True), 1)
    receive(raft, "b", VoteResp(2, granted=True), 2)
    ready = receive(raft, "b", AppendResp(2, 7, raft.round, ok=True, match=4), 3)
    assert [e.index for e in ready.committed] == [2, 3, 4]
    assert receive(raft, "c", AppendResp(2, 7, raft.round, ok=True, match=4), 4).committed == ()


def test_3_5_a_follower_applies_what_the_leader_says_is_committed() -> None:
    """3.5; never beyond what it has compared, and the index never goes back."""
    raft = node("b")
    two = (NOOP, Entry(2, 1, "x/1", ""))
    assert receive(raft, "a", append(entries=two), 1).committed == ()
    assert receive(raft, "a", append(1, (2, 1), commit=2), 2).committed == two
    assert receive(raft, "a", append(1, (2, 1), commit=1), 3).committed == ()
    assert raft.commit == 2


def test_3_5_the_leader_sends_again_for_ever() -> None:
    """3.5: "the leader retries AppendEntries RPCs indefinitely", to one that lost some and to one that is silent."""
    raft = led()
    for n in range(3):
        raft.step(Propose("x/1", str(n)), (20 + n) * MS)
    for beat in range(1, 5):
        [request] = sent(raft.step(Tick(), raft.wakeup_ns), "c")
        assert isinstance(request, AppendReq)
        assert request.prev_index == 4, "it supposes that what it sent has arrived"
        ready = receive(raft, "c", AppendResp(1, 7, raft.round, ok=False, match=0), beat * H + 30)
        [again] = sent(ready, "c")
        assert isinstance(again, AppendReq)
        assert [e.index for e in again.entries] == [1, 2, 3, 4]
        receive(raft, "b", AppendResp(1, 7, raft.round, ok=True, match=4), beat * H + 31)


def test_3_5_log_matching_is_checked_at_the_entry_before() -> None:
    """3.5: "if the follower does not find an entry in its log with the same index and term, then it refuses"."""
    log = Log(entries=(NOOP, Entry(2, 1, "x/1", "")))
    for prev, ok in (((2, 1), True), ((2, 2), False), ((3, 1), False), ((1, 1), True), ((0, 0), True)):
        raft = node("b", HardState(2), log)
        [answer] = sent(receive(raft, "a", append(2, prev), 1), "a")
        assert isinstance(answer, AppendResp)
        assert answer.ok is ok, prev
        assert raft.log == log


def test_3_5_a_leader_never_changes_its_own_log() -> None:
    """3.5, figure 3.2: Leader Append-Only."""
    raft = led()
    before = raft.log.entries
    raft.step(Propose("x/1", ""), 10 * MS)
    for message in (AppendResp(1, 7, 1, ok=False, match=0), AppendResp(1, 7, 1, ok=True, match=1)):
        assert receive(raft, "c", message, 20).truncate_from is None
    assert raft.log.entries[: len(before)] == before


def test_3_5_a_leader_starts_right_after_its_own_log() -> None:
    """3.5: "when a leader first comes to power, it initializes all nextIndex values to" the one after its last."""
    raft = node("a", HardState(1), Log(entries=(NOOP, Entry(2, 1, "x/1", ""))))
    raft.step(Tick(), 0)
    receive(raft, "b", PreVoteResp(1, 2, granted=True), 1)
    ready = receive(raft, "b", VoteResp(2, granted=True), 2)
    [request] = sent(ready, "c")
    assert isinstance(request, AppendReq)
    assert (request.prev_index, request.prev_term, [e.index for e in request.entries]) == (2, 1, [3])


def test_3_8_what_was_saved_binds_after_a_restart() -> None:
    """3.8: term, vote and log survive; a second vote in the same term is refused."""
    raft = node("b")
    hard = receive(raft, "a", VoteReq(3, 0, 0, "", 0), 1).hard
    assert hard == HardState(3, "a")
    again = node("b", hard, fresh=False)
    assert sent(receive(again, "c", VoteReq(3, 9, 9, "", 0), 3 * E), "c") == [VoteResp(3, granted=False)]
    assert sent(receive(again, "a", VoteReq(3, 0, 0, "", 0), 3 * E), "a") == [VoteResp(3, granted=True)]


def test_3_8_everything_that_asserts_something_leaves_after_the_save() -> None:
    """3.8: "each server persists its current term and vote ... and each new log entry ... before" it answers."""
    log = Log(entries=(NOOP,))
    steps = [
        node("b").step(Campaign(), 0),
        receive(node("b", HardState(1), log), "a", append(2, (1, 1), (Entry(2, 2, "x/1", ""),)), 1),
        receive(node("b", HardState(1), log), "a", VoteReq(2, 9, 9, "", 0), 1),
        receive(node("b", HardState(1), log), "a", SnapshotReq(2, 9, 1, Snapshot(9, 2, "s"), 9), 1),
        led().step(Propose("x/1", ""), 10 * MS),
        led().step(Release("b"), 10 * MS),
    ]
    for ready in steps:
        assert all(isinstance(m, PreVoteReq) for _, m in ready.now)


# -- 3.10: leadership transfer


def test_3_10_the_target_asks_for_no_pre_vote() -> None:
    """3.10: "the target server times out at once", and 9.6 would have it refused by those who hear the old leader."""
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP,)), 10)
    ready = receive(raft, "a", TimeoutNow(1), 20)
    assert (raft.role, raft.term) == (Role.CANDIDATE, 2)
    assert {type(m) for _, m in (*ready.now, *ready.after)} == {VoteReq}


def test_3_10_a_late_heartbeat_does_not_undo_the_campaign() -> None:
    """The old leader's last round may arrive after its TimeoutNow."""
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP,)), 10)
    receive(raft, "a", TimeoutNow(1), 20)
    receive(raft, "a", append(1, (1, 1), nr=2), 21)
    assert (raft.role, raft.term) == (Role.CANDIDATE, 2)


# -- 4.1: whoever asks


def test_4_1_a_leader_or_a_candidate_outside_the_own_membership_is_answered() -> None:
    """4.1: "a server accepts AppendEntries requests from a leader that is not part of" its latest configuration,
    and grants its vote to such a candidate; else nobody could ever be added."""
    raft = node("b")
    entries = (NOOP, members_entry(2, 1, "abcx"))
    assert sent(receive(raft, "x", append(1, entries=entries), 1), "x") == [AppendResp(1, 9, 1, ok=True, match=2)]
    raft = node("b")
    assert sent(receive(raft, "y", PreVoteReq(1, 0, 0), 1), "y") == [PreVoteResp(0, 1, granted=True)]
    assert sent(receive(raft, "y", VoteReq(1, 0, 0, "", 0), 1), "y") == [VoteResp(1, granted=True)]


# -- 5: snapshots


def test_5_1_the_consistency_check_knows_the_last_entry_of_a_snapshot() -> None:
    """5.1: they are kept "to support the AppendEntries consistency check for the first" entry after it."""
    log = Log(Snapshot(5, 3, "s"))
    for prev, ok in (((5, 3), True), ((6, 3), False)):
        raft = node("b", HardState(3, "", 5), log)
        [answer] = sent(receive(raft, "a", append(4, prev, (Entry(prev[0] + 1, 4, "x/1", ""),)), 1), "a")
        assert isinstance(answer, AppendResp)
        assert answer.ok is ok
    assert log.last_term == 3, "the election restriction as well (3.6.1)"
    raft = node("b", HardState(3, "", 5), log)
    assert sent(receive(raft, "a", VoteReq(4, 9, 2, "", 0), 1), "a") == [VoteResp(4, granted=False)]


def test_5_1_a_leader_sends_a_snapshot_when_it_has_discarded_the_next_entry() -> None:
    """5.1, and goes on with the entries after it."""
    log = Log(Snapshot(5, 1, "s"), (Entry(6, 1, "x/1", ""),))
    raft = node("a", HardState(1, "", 6), log)
    raft.step(Tick(), 0)
    receive(raft, "b", PreVoteResp(1, 2, granted=True), 1)
    receive(raft, "b", VoteResp(2, granted=True), 2)
    for match, kind in ((5, AppendReq), (4, SnapshotReq)):
        [request] = sent(receive(raft, "c", AppendResp(2, 7, raft.round, ok=False, match=match), 3), "c")
        assert type(request) is kind
    [request] = sent(receive(raft, "c", AppendResp(2, 7, raft.round, ok=True, match=5), 4), "c")
    assert isinstance(request, AppendReq)
    assert [e.index for e in request.entries] == [6, 7]


def test_5_1_a_snapshot_is_applied_whole_and_the_log_goes_on_after_it() -> None:
    """5.1: "replaces the entire state machine"; what is committed after it comes as entries."""
    raft = node("b", HardState(1), Log(entries=(NOOP, *(Entry(i, 1, "x/1", "") for i in (2, 3)))))
    ready = receive(raft, "a", SnapshotReq(1, 9, 1, Snapshot(2, 1, "s"), 3), 1)
    assert (ready.restored, ready.snapshot) == (True, Snapshot(2, 1, "s"))
    assert ready.committed == (), "only what was compared: up to the snapshot"
    ready = receive(raft, "a", append(1, (3, 1), commit=3), 2)
    assert [e.index for e in ready.committed] == [3]


# -- 6: leases


def test_6_4_a_new_leader_does_nothing_before_its_own_entry_is_committed() -> None:
    """6.4, step 1: until then it does not know what is committed. Here: it takes no decision about who is primary."""
    cluster = Cluster("a", "b", "c")
    cluster.open()
    cluster.members["a"].up = False
    cluster.until(lambda: cluster.leader() in ("b", "c"))
    leader = cluster.members[cluster.leader()].node
    assert leader.raft.log.term_at(leader.raft.commit) < leader.raft.term
    assert not leader.leads()
    for name in "bc":
        cluster.members[name].up = name == leader.me
    cluster.run(H)
    notes = leader.notes
    assert notes is not None
    assert (notes.ask_at_ns, notes.granted_index) == (0, 0)


def test_6_4_1_a_new_leader_has_no_lease_before_a_majority_has_answered() -> None:
    """6.4.1: that it leads is not enough: votes are older than the rounds a lease counts from."""
    raft = candidate()
    receive(raft, "b", VoteResp(1, granted=True), 2)
    assert (raft.role, raft.lease_until_ns) == (Role.LEADER, 0)


# -- 9.6: pre-vote


@pytest.mark.parametrize(
    ("request_", "granted"),
    [
        (PreVoteReq(3, 2, 2), True), (PreVoteReq(3, 1, 2), False), (PreVoteReq(3, 9, 1), False),
        (PreVoteReq(2, 9, 9), False), (PreVoteReq(1, 9, 9), False),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, tuple) else str(x),
)  # fmt: skip
def test_9_6_a_pre_vote_is_given_when_a_vote_would_be(request_: PreVoteReq, granted: bool) -> None:
    """9.6: log up to date, and the term would be new (it has voted in its own)."""
    raft = node("b", HardState(2, "c"), Log(entries=(NOOP, Entry(2, 2, "x/1", ""))))
    assert sent(receive(raft, "a", request_, 1), "a") == [PreVoteResp(2, request_.term, granted)]


@pytest.mark.parametrize(("vote", "granted"), [("", True), ("a", True), ("c", False)])
def test_9_6_a_pre_vote_for_the_own_term_is_given_while_the_vote_could_be(vote: str, granted: bool) -> None:
    """9.6: who asks may be a term behind."""
    raft = node("b", HardState(2, vote))
    assert sent(receive(raft, "a", PreVoteReq(2, 0, 0), 1), "a") == [PreVoteResp(2, 2, granted)]


def test_9_6_an_answer_to_an_earlier_question_does_not_count() -> None:
    raft = node("a", HardState(1))
    raft.step(Tick(), 0)
    receive(raft, "b", PreVoteResp(0, 1, granted=True), 1)
    assert role(raft) is Role.PRECANDIDATE
    receive(raft, "b", PreVoteResp(1, 2, granted=True), 1)
    assert role(raft) is Role.CANDIDATE


def test_9_6_a_pre_vote_that_was_given_binds_nobody() -> None:
    """9.6: it is no vote. Nothing is saved, another may have one too, and the own campaign is not put off."""
    raft = node("b")
    at, key = raft.election_at_ns, raft.key()
    for name in "ac":
        ready = receive(raft, name, PreVoteReq(1, 0, 0), 1)
        assert sent(ready, name) == [PreVoteResp(0, 1, granted=True)]
        assert ready.hard is None
    assert (raft.election_at_ns, raft.key()) == (at, key)


def test_9_6_a_node_that_is_cut_off_comes_back_with_the_term_it_had() -> None:
    """9.6: "when the partition heals, ... it will not disrupt"."""
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP,)), 10)
    for _ in range(20):
        raft.step(Tick(), raft.election_at_ns)
    assert (raft.role, raft.term) == (Role.PRECANDIDATE, 1)
    receive(raft, "a", append(1, (1, 1), nr=2), raft.now_ns // MS + 1)
    assert (role(raft), raft.leader) == (Role.FOLLOWER, "a")


def test_9_6_it_can_be_left_out() -> None:
    """For the model, where it only multiplies states."""
    without = RaftConfig("a", ("a", "b", "c"), pre_vote=False)
    raft = Raft(without, HardState(), Log(), boot=1, seed=1, now_ns=0, fresh=True)
    ready = raft.step(Campaign(), 0)
    assert {type(m) for _, m in ready.after} == {VoteReq}
    assert raft.step(Beat(), 0).after == ()
