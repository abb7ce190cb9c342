"""The bugs of other implementations, and the test that shows that ours does not have it.

The numbers, with the sources, are those of the research that came before this code (known bugs of etcd, hashicorp/raft,
openraft, PySyncObj and others). A bug that can't apply says why.
"""

from __future__ import annotations

import re

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
from consensus.raft import Campaign, Log, Raft, Received, Role, StepDown, Tick
from fencing.lease import MS
from tests.unit.listed import is_a_test, named_tests
from tests.unit.test_membership import role
from tests.unit.test_raft import NOOP, E, append, led, node, receive, sent

BUGS = """
1. Two changes of members, of two terms, both under way: quorums that do not meet
    test_membership::test_no_change_before_the_leaders_own_no_op_is_committed
    test_membership::test_one_change_at_a_time
2. A change counts only when applied, elections go by the log; a learner that refuses to vote
    test_membership::test_a_change_counts_from_its_append_at_a_follower
    test_membership::test_a_learner_answers_for_others_may_know_it_as_a_voter
3. A recovered joint configuration is left before it is committed
    n/a: members change one at a time, there is no joint configuration of Raft; of the sync group there is:
    test_cluster::test_a_change_of_the_sync_group_opens_and_ends
4. Stuck in a joint configuration when the leader steps down
    test_node::test_the_next_primary_finishes_what_was_begun
    test_node::test_a_change_that_waits_for_one_that_is_gone_is_reverted
5. Removing the leader of two loses the cluster
    test_membership::test_a_leader_does_not_remove_itself
    test_changes::test_the_primary_is_moved_before_it_goes
6. An uncommitted change lost, or rolled back wrongly, over a restart or a snapshot
    test_membership::test_a_change_counts_after_a_restart
    test_membership::test_an_entry_that_is_overwritten_counts_no_more
7. Membership missing from a snapshot, or taken from a log that was overwritten
    test_membership::test_a_snapshot_carries_the_members_as_of_its_index
    test_membership::test_members_are_taken_from_a_snapshot_that_is_sent
8. Term and vote are not saved
    test_raft::test_one_vote_per_term_is_saved_before_the_answer
    test_thesis::test_3_8_what_was_saved_binds_after_a_restart
    test_storage::test_everything_comes_back
9. Term and vote are saved in two writes
    test_thesis::test_3_4_a_candidate_votes_for_itself_in_a_new_term
    test_storage::test_a_torn_last_write_is_as_if_it_had_not_been
10. A vote is cleared without a new term
    test_known_bugs::test_10_a_vote_stays_until_the_term_ends
11. A member counts twice under a new address
    test_thesis::test_3_4_a_candidate_wins_with_a_majority_of_all_voters
    test_addressbook::test_an_introduction_overlays_the_member
12. The same id with an empty disk
    test_node::test_a_node_that_lost_its_disk_is_let_in_again_and_counts_only_with_a_new_copy
    test_promotion::test_the_promise_of_another_incarnation_fills_no_seat
13. Commit or match index goes backwards
    test_raft::test_progress_never_goes_backwards
    test_thesis::test_3_5_a_follower_applies_what_the_leader_says_is_committed
14. An entry of an older term is committed by counting
    test_raft::test_an_older_term_commits_only_along_with_an_own_entry
15. A lease of up to two election timeouts; a lease during a transfer
    test_raft::test_the_lease_counts_from_the_send_of_an_acknowledged_round
    test_raft::test_release_is_durable_before_timeout_now_and_ends_the_lease_for_the_term
16. A delayed TimeoutNow breaks the lease
    test_raft::test_a_late_timeout_now_is_void
    test_known_bugs::test_16_a_timeout_now_of_a_leader_that_was_replaced_in_its_term_is_void
17. A lease by ticks or by the wall clock
    n/a: the core counts nanoseconds it is given; the only reader of a clock, CLOCK_BOOTTIME, is held by
    test_tidy::test_the_clock_has_one_reader_and_nothing_waits_by_sleeping
18. "Is leader" taken for "has a lease"
    test_thesis::test_6_4_1_a_new_leader_has_no_lease_before_a_majority_has_answered
    test_raft::test_resume_leads_the_same_term_and_is_refused_after_a_release
19. PreVote refuses the known leader itself
    test_raft::test_pre_vote_for_the_leader_itself_is_granted
20. A pre-vote that is granted counts as contact with a leader
    test_thesis::test_9_6_a_pre_vote_that_was_given_binds_nobody
21. A heartbeat during a transfer undoes the campaign
    test_thesis::test_3_10_a_late_heartbeat_does_not_undo_the_campaign
22. PreVote and CheckQuorum: one stuck with a higher term
    test_known_bugs::test_22_one_stuck_with_a_higher_term_is_freed
23. One that rejoins, or was removed, disrupts
    test_raft::test_an_acknowledged_round_binds_for_e_from_its_receipt
    test_node::test_a_node_that_was_away_while_it_was_removed_is_told_by_a_stranger
    test_thesis::test_9_6_a_node_that_is_cut_off_comes_back_with_the_term_it_had
24. A snapshot keeps an entry that conflicts with it
    test_raft::test_a_snapshot_drops_a_log_that_conflicts_and_keeps_one_that_agrees
25. A snapshot takes newer entries with it
    test_raft::test_a_snapshot_drops_a_log_that_conflicts_and_keeps_one_that_agrees
    test_raft::test_an_old_snapshot_changes_nothing
26. One that waits for a snapshot campaigns and refuses it
    test_known_bugs::test_26_one_that_campaigns_takes_a_snapshot
27. AppendEntries cuts the log although nothing conflicts
    test_raft::test_an_old_append_never_cuts_the_log
28. (term, index) compared field by field
    test_raft::test_vote_only_for_a_log_that_is_not_older
29. A wrong majority, or one that counts others
    test_quorum::test_any_two_majorities_meet_and_nothing_smaller_does
    test_quorum::test_has_majority_counts_each_voter_once_and_nobody_else
    test_membership::test_a_learner_gets_the_log_and_counts_nowhere
30. An append that completes late marks other entries as saved
    n/a: a save has returned before the next event; the order of effects is checked in every turn of
    test_node::test_founding_creates_data_once_and_opens
31. The window of messages in flight is full, all are lost, nothing goes on
    test_thesis::test_3_5_the_leader_sends_again_for_ever
32. A stale index after a read was asked for again
    n/a: nothing is read through the log; who may write is a lease
33. Proposals during a transfer
    test_raft::test_release_is_durable_before_timeout_now_and_ends_the_lease_for_the_term
    test_membership::test_only_a_leader_that_holds_its_lease_changes_members
34. 21 findings of Jepsen in a fresh implementation
    n/a: a collection; its kinds (split brain, lost data after failover, loops) are rows of this table
35. 23 findings of SandTable
    n/a: a collection too; its method, running the code itself in a model, is tests/model
36. Two promotions with one timeline; a stale primary gets its lock again
    test_promotion::test_a_grant_gets_a_fresh_timeline_and_the_upper_bound
    test_cluster::test_what_concerns_an_older_grant_or_term_changes_nothing
37. A whole quorum removed at once
    test_membership::test_two_voters_at_once_are_a_bug
    test_changes::test_never_below_a_live_majority
"""


@pytest.mark.parametrize(("bug", "listed"), named_tests(BUGS), ids=lambda x: x if isinstance(x, str) else "")
def test_every_bug_has_a_test_or_a_reason(bug: str, listed: tuple[str, ...]) -> None:
    assert listed, bug
    for line in listed:
        assert line.startswith("n/a: ") or is_a_test(line), line


def test_the_table_is_whole() -> None:
    assert [int(bug.partition(".")[0]) for bug, _ in named_tests(BUGS)] == list(range(1, 38))
    assert not is_a_test("test_raft::test_that_is_not_there")
    assert named_tests("1. a\n  x::y\n  n/a: z\n2. b\n") == [("1. a", ("x::y", "n/a: z")), ("2. b", ())]
    assert set(re.findall(r"test_(\d+)_", BUGS)) >= {"10", "16", "22", "26"}


def test_10_a_vote_stays_until_the_term_ends() -> None:
    """camunda #5356, CCF #8094, canonical/raft #196: whatever else happens in the term."""
    for event in (
        Received("c", append(3)), Received("c", PreVoteReq(4, 9, 9)), Received("c", PreVoteResp(3, 4, granted=True)),
        Received("c", VoteReq(3, 9, 9, "", 0)), Received("c", VoteResp(3, granted=True)), Tick(), Campaign(),
        StepDown(), Received("c", SnapshotReq(3, 9, 1, Snapshot(4, 2, "s"), 4)),
    ):  # fmt: skip
        raft = node("b", HardState(3, "a"))
        raft.step(event, 2 * E * MS)
        assert (raft.term, raft.vote) == (3, "a"), event
    raft = led()
    raft.step(StepDown(), 10 * MS)
    assert (raft.term, raft.vote) == (1, "a")


def test_16_a_timeout_now_of_a_leader_that_was_replaced_in_its_term_is_void() -> None:
    """raft-rs #234. Only the leader that is followed can hand over."""
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP,)), 10)
    assert receive(raft, "c", TimeoutNow(1), 20).after == ()
    assert raft.role is Role.FOLLOWER
    again = node("b", HardState(1, "a"), Log(entries=(NOOP,)), fresh=False)
    receive(again, "a", TimeoutNow(1), 20)
    assert again.role is Role.CANDIDATE, "one that has just restarted follows nobody yet"


def test_22_one_stuck_with_a_higher_term_is_freed() -> None:
    """etcd, TestFreeStuckCandidateWithCheckQuorum: nobody grants it a pre-vote, and it accepts no leader of a lower
    term. Its refusal names its term: the leader makes way, and the next one is elected above it."""
    stuck = node("c", HardState(5, "c"))
    leader = led()
    [request] = sent(leader.step(Tick(), leader.wakeup_ns), "c")
    assert isinstance(request, AppendReq)
    [refusal] = sent(receive(stuck, "a", request, 200), "a")
    assert refusal == AppendResp(5, 7, request.round, ok=False, match=0)
    receive(leader, "c", refusal, 201)
    assert (leader.role, leader.term) == (Role.FOLLOWER, 5)
    at = leader.election_at_ns // MS + 1
    leader.step(Tick(), at * MS)
    receive(leader, "b", PreVoteResp(1, 6, granted=True), at)
    [vote] = sent(receive(leader, "b", VoteResp(6, granted=True), at), "c")
    assert sent(receive(stuck, "a", vote, at), "a")[0].term == 6


def test_26_one_that_campaigns_takes_a_snapshot() -> None:
    """nebula #1769. With PreVote it has not even raised its term; a candidate of the same term gives way."""
    waiting = node("b", HardState(1))
    waiting.step(Tick(), waiting.election_at_ns)
    losing = Raft(waiting.config, HardState(1), Log(), boot=7, seed=1, now_ns=0, fresh=True)
    losing.step(Tick(), losing.election_at_ns)
    receive(losing, "c", PreVoteResp(1, 2, granted=True), 2 * E)
    for raft, term in ((waiting, 1), (losing, 2)):
        assert role(raft) in {Role.PRECANDIDATE, Role.CANDIDATE}
        request = SnapshotReq(term, 9, 1, Snapshot(7, 1, "s"), 7)
        assert sent(receive(raft, "a", request, 2 * E + 1), "a") == [AppendResp(term, 9, 1, ok=True, match=7)]
        assert (role(raft), raft.log.last_index) == (Role.FOLLOWER, 7)
        raft.step(Received("a", append(term, (7, 1), (Entry(8, term, "x/1", ""),))), (2 * E + 2) * MS)
        assert raft.log.last_index == 8
