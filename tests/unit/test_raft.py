"""One test per rule of the Raft core; durations in milliseconds of the default profile."""

from __future__ import annotations

import pytest

from consensus.cluster import canonical
from consensus.membership import LEARNER, VOTER, Member
from consensus.messages import (
    AppendReq,
    AppendResp,
    Entry,
    HardState,
    PreVoteReq,
    PreVoteResp,
    RaftMessage,
    Snapshot,
    SnapshotReq,
    TimeoutNow,
    VoteReq,
    VoteResp,
)
from consensus.raft import (
    CHARS_PER_MESSAGE_MAX,
    Beat,
    Campaign,
    Compact,
    Log,
    Propose,
    Raft,
    RaftBugError,
    RaftConfig,
    Ready,
    Received,
    Release,
    Role,
    StepDown,
    Tick,
)
from fencing.lease import MS

VOTERS = ("a", "b", "c")
E, L, H = 1000, 700, 100
NOOP = Entry(1, 1, "noop/1", "")


def config(me: str = "a", voters: tuple[str, ...] = VOTERS) -> RaftConfig:
    return RaftConfig(me, voters, H * MS, E * MS, 300 * MS, L * MS)


def node(
    me: str = "a", hard: HardState = HardState(), log: Log = Log(), *, now: int = 0, fresh: bool = True, voters: tuple[str, ...] = VOTERS,  # noqa: B008, E501
) -> Raft:  # fmt: skip
    return Raft(config(me, voters), hard, log, boot=7, seed=1, now_ns=now * MS, fresh=fresh)


def receive(raft: Raft, src: str, message: RaftMessage, now: int) -> Ready:
    return raft.step(Received(src, message), now * MS)


def sent(ready: Ready, dst: str) -> list[RaftMessage]:
    return [m for name, m in (*ready.now, *ready.after) if name == dst]


def append(
    term: int = 1, prev: tuple[int, int] = (0, 0), entries: tuple[Entry, ...] = (), commit: int = 0, nr: int = 1
) -> AppendReq:
    return AppendReq(term, 9, nr, prev[0], prev[1], entries, commit)


def led(now: int = 1) -> Raft:
    """a leads term 1; b has acknowledged the round sent at ``now``."""
    raft = node(now=now)
    raft.step(Tick(), now * MS)
    receive(raft, "b", PreVoteResp(0, 1, granted=True), now)
    receive(raft, "b", VoteResp(1, granted=True), now)
    receive(raft, "b", AppendResp(1, 7, raft.round, ok=True, match=1), now + 5)
    assert raft.role is Role.LEADER
    assert raft.commit == 1
    return raft


# -- elections


def test_pre_vote_comes_first_and_changes_nothing() -> None:
    raft = node()
    ready = raft.step(Tick(), 0)
    assert raft.role is Role.PRECANDIDATE
    assert raft.term == 0
    assert ready.hard is None
    assert sent(ready, "b") == [PreVoteReq(1, 0, 0)]


def test_campaign_only_after_a_majority_of_pre_votes() -> None:
    raft = node()
    raft.step(Tick(), 0)
    assert not sent(receive(raft, "b", PreVoteResp(0, 1, granted=False), 1), "c")
    ready = receive(raft, "c", PreVoteResp(0, 1, granted=True), 2)
    assert sent(ready, "b") == [VoteReq(1, 0, 0, "", 0)]
    assert ready.hard == HardState(1, "a", 0, 0), "vote and term are saved in one"


def test_one_vote_per_term_is_saved_before_the_answer() -> None:
    raft = node("c", fresh=True)
    ready = receive(raft, "a", VoteReq(1, 0, 0, "", 0), 1)
    assert ready.after == (("a", VoteResp(1, granted=True)),)
    assert ready.hard == HardState(1, "a", 0, 0)
    assert sent(receive(raft, "b", VoteReq(1, 5, 1, "", 0), 2), "b") == [VoteResp(1, granted=False)]
    assert sent(receive(raft, "a", VoteReq(1, 0, 0, "", 0), 3), "a") == [VoteResp(1, granted=True)], (
        "a repeated question"
    )


@pytest.mark.parametrize(
    ("index", "term", "granted"), [(2, 1, True), (3, 1, True), (1, 2, True), (1, 1, False), (9, 0, False)]
)
def test_vote_only_for_a_log_that_is_not_older(index: int, term: int, granted: bool) -> None:
    log = Log(entries=(NOOP, Entry(2, 1, "x/1", "")))
    raft = node("c", HardState(1), log)
    assert sent(receive(raft, "a", VoteReq(2, index, term, "", 0), 1), "a") == [VoteResp(2, granted)]


def test_pre_vote_for_the_leader_itself_is_granted() -> None:
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP,)), 10)
    assert sent(receive(raft, "c", PreVoteReq(2, 9, 9), 20), "c") == [PreVoteResp(1, 2, granted=False)]
    assert sent(receive(raft, "a", PreVoteReq(2, 1, 1), 20), "a") == [PreVoteResp(1, 2, granted=True)]


def test_a_stranger_is_answered_and_its_answers_never_count() -> None:
    """It may know a newer membership (4.1); who it is has been checked by the host."""
    assert sent(receive(node("b"), "x", VoteReq(9, 9, 9, "", 0), 1), "x") == [VoteResp(9, granted=True)]
    raft = node()
    raft.step(Tick(), 0)
    receive(raft, "x", PreVoteResp(0, 1, granted=True), 1)
    assert raft.term == 0
    receive(raft, "b", PreVoteResp(0, 1, granted=True), 1)
    receive(raft, "x", VoteResp(1, granted=True), 2)
    assert (raft.term, raft.progress) == (1, ())
    receive(raft, "b", VoteResp(1, granted=True), 2)
    receive(raft, "x", AppendResp(1, 7, raft.round, ok=True, match=1), 3)
    assert (raft.role, raft.commit, raft.lease_until_ns) == (Role.LEADER, 0, 0)


def test_two_leaders_of_one_term_stop_the_process() -> None:
    with pytest.raises(RaftBugError, match="two leaders of term 1"):
        receive(led(), "b", append(1), 10)


def test_jitter_is_spread_and_never_near_zero() -> None:
    """The others' promises end a message delay after the candidate's own."""
    waits = []
    for seed in range(500):
        raft = Raft(config("b"), HardState(), Log(), boot=7, seed=seed, now_ns=0, fresh=True)
        waits.append(raft.election_at_ns - E * MS)
    assert 300 * MS // 8 <= min(waits) < 60 * MS
    assert 280 * MS < max(waits) < 300 * MS


# -- holding to a promise


def test_an_acknowledged_round_binds_for_e_from_its_receipt() -> None:
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP,)), 10)
    ready = receive(raft, "c", VoteReq(5, 9, 9, "", 0), 10 + E - 1)
    assert sent(ready, "c") == [VoteResp(1, granted=False)]
    assert raft.term == 1, "while bound it does not even adopt the term"
    assert sent(receive(raft, "c", VoteReq(5, 9, 9, "", 0), 10 + E), "c") == [VoteResp(5, granted=True)]


def test_a_restarted_voter_waits_e() -> None:
    raft = node("b", HardState(3, "a"), now=50, fresh=False)
    assert sent(receive(raft, "c", VoteReq(4, 9, 9, "", 0), 50 + E - 1), "c") == [VoteResp(3, granted=False)]
    assert not sent(raft.step(Tick(), (50 + E - 1) * MS), "a"), "nor does it campaign"
    assert sent(receive(raft, "c", VoteReq(4, 9, 9, "", 0), 50 + E), "c") == [VoteResp(4, granted=True)]


def test_a_release_frees_whoever_promised_to_this_leader_in_this_term() -> None:
    for proof, granted in ((("a", 1), True), (("a", 2), False), (("c", 1), False), (("", 0), False)):
        raft = node("b")
        receive(raft, "a", append(entries=(NOOP,)), 10)
        assert sent(receive(raft, "c", VoteReq(2, 9, 9, *proof), 20), "c")[0] == VoteResp(2 if granted else 1, granted)


def test_a_restarted_voter_believes_a_release_of_its_own_term_only() -> None:
    for term, granted in ((3, True), (2, False)):
        raft = node("b", HardState(3, "a"), fresh=False)
        assert sent(receive(raft, "c", VoteReq(4, 9, 9, "a", term), 20), "c")[0] == VoteResp(
            4 if granted else 3, granted
        )


def test_a_leader_is_bound_to_itself() -> None:
    raft = led()
    assert sent(receive(raft, "c", VoteReq(9, 9, 9, "", 0), E), "c") == [VoteResp(1, granted=False)]
    assert raft.role is Role.LEADER


def test_a_leader_that_steps_down_stays_bound_until_its_lease_is_over_everywhere() -> None:
    raft = led()
    receive(raft, "c", AppendResp(4, 7, 1, ok=False, match=0), 100)
    assert raft.role is Role.FOLLOWER
    assert sent(receive(raft, "c", VoteReq(5, 9, 9, "", 0), E), "c") == [VoteResp(4, granted=False)]
    assert sent(receive(raft, "c", VoteReq(5, 9, 9, "", 0), 1 + E), "c") == [VoteResp(5, granted=True)]


def test_a_resumed_leader_that_steps_down_at_once_waits_like_any_restarted_voter() -> None:
    """Its earlier life may have a lease; found by review: the promise was dropped, as this life had earned none."""
    raft = node("a", HardState(1, "a", 1), Log(entries=(NOOP,)), now=200, fresh=False)
    raft.resume()
    receive(raft, "c", AppendResp(4, 7, 0, ok=False, match=0), 201)
    assert raft.role is Role.FOLLOWER
    assert sent(receive(raft, "c", VoteReq(5, 9, 9, "", 0), 202), "c") == [VoteResp(4, granted=False)]


@pytest.mark.parametrize(
    "answer", [PreVoteResp(7, 1, granted=False), VoteResp(7, granted=False), AppendResp(7, 7, 1, ok=False, match=0)]
)
def test_an_answer_of_a_higher_term_is_adopted(answer: PreVoteResp | VoteResp | AppendResp) -> None:
    """3.3; and 22 of the known bugs: or it would ask for a term the others are past, for ever."""
    raft = node()
    raft.step(Tick(), 0)
    ready = receive(raft, "b", answer, 1)
    assert (raft.term, raft.vote, raft.role) == (7, "", Role.FOLLOWER)
    assert ready.hard == HardState(7)


def test_one_that_is_bound_does_not_campaign_before_it_is_free() -> None:
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP,)), 10)
    ready = raft.step(Campaign(), 20 * MS)
    assert (ready.now, ready.after, raft.role) == ((), (), Role.FOLLOWER)
    assert raft.election_at_ns > (10 + E) * MS


def test_a_leader_that_makes_way_releases_nothing() -> None:
    raft = led()
    raft.step(StepDown(), 20 * MS)
    assert (raft.role, raft.released, raft.lease_until_ns) == (Role.FOLLOWER, 0, 0)
    assert sent(receive(raft, "c", VoteReq(5, 9, 9, "", 0), E), "c") == [VoteResp(1, granted=False)], "still bound"
    assert raft.step(StepDown(), 2 * E * MS).hard is None, "only a leader makes way"


@pytest.mark.parametrize(
    "event", [Beat(), Release("b"), StepDown(), Propose("x/1", "")], ids=lambda e: type(e).__name__
)
def test_what_only_a_leader_does_is_nothing_for_others(event: Beat | Release | StepDown | Propose) -> None:
    raft = node("b")
    key = raft.key()
    ready = raft.step(event, MS)
    assert (ready.hard, ready.now, ready.after, ready.proposed, raft.key()) == (None, (), (), 0, key)


def test_without_time_nothing_is_numbered_and_nothing_binds() -> None:
    """What the model checker explores."""
    raft = Raft(RaftConfig("a", ("a",)), HardState(), Log(), boot=7, seed=1, now_ns=0, fresh=True)
    raft.step(Campaign(), 0)
    raft.step(Beat(), 0)
    assert (raft.role, raft.round, raft.lease_until_ns, raft.heartbeat_at_ns) == (Role.LEADER, 0, 0, 0)


# -- the lease


def test_the_lease_counts_from_the_send_of_an_acknowledged_round() -> None:
    raft = led(now=1)
    raft.step(Tick(), 150 * MS)
    nr = raft.round
    assert raft.lease_until_ns == (1 + L) * MS
    receive(raft, "c", AppendResp(1, 7, nr, ok=True, match=1), 230)
    assert raft.lease_until_ns == (150 + L) * MS


def test_acknowledgements_of_an_earlier_life_never_count() -> None:
    raft = led(now=1)
    raft.step(Tick(), (1 + H) * MS)
    receive(raft, "c", AppendResp(1, 6, raft.round, ok=True, match=1), 150)
    assert raft.lease_until_ns == (1 + L) * MS


def test_without_a_majority_for_e_a_leader_steps_down() -> None:
    raft = led(now=1)
    assert raft.wakeup_ns <= (1 + E) * MS
    raft.step(Tick(), (1 + E) * MS)
    assert raft.role is Role.FOLLOWER
    assert raft.lease_until_ns == 0


def test_a_lone_voter_leads_and_commits_at_once() -> None:
    raft = node(voters=("a",))
    ready = raft.step(Tick(), MS)
    assert raft.role is Role.LEADER
    assert [e.kind for e in ready.committed] == ["noop/1"]
    assert ready.entries == ready.committed
    assert raft.lease_until_ns == (1 + L) * MS
    assert raft.step(Propose("x/1", "1"), 2 * MS).committed[0].data == "1"


def test_a_lone_voter_does_not_wait_after_a_restart() -> None:
    raft = node(voters=("a",), hard=HardState(3, "a", 1), log=Log(entries=(NOOP,)), now=5, fresh=False)
    raft.step(Tick(), 5 * MS)
    assert raft.term == 4
    assert raft.role is Role.LEADER


# -- handing over


def test_release_is_durable_before_timeout_now_and_ends_the_lease_for_the_term() -> None:
    raft = led()
    ready = raft.step(Release("b"), 50 * MS)
    assert ready.hard == HardState(1, "a", 1, 1)
    assert TimeoutNow(1) in [m for _, m in ready.after]
    assert TimeoutNow(1) not in [m for _, m in ready.now]
    receive(raft, "c", AppendResp(1, 7, raft.round, ok=True, match=1), 60)
    assert raft.lease_until_ns == 0
    assert raft.step(Propose("x/1", ""), 61 * MS).proposed == 0


def test_the_target_must_have_the_whole_log_first() -> None:
    raft = led()
    assert TimeoutNow(1) not in sent(raft.step(Release("c"), 50 * MS), "c")
    ready = receive(raft, "c", AppendResp(1, 7, raft.round, ok=True, match=1), 60)
    assert TimeoutNow(1) in sent(ready, "c")


def test_timeout_now_starts_a_campaign_with_the_proof() -> None:
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP,)), 10)
    ready = receive(raft, "a", TimeoutNow(1), 20)
    assert sent(ready, "c") == [VoteReq(2, 1, 1, "a", 1)]
    assert ready.hard is not None


@pytest.mark.parametrize("term", [0, 1, 3])
def test_a_late_timeout_now_is_void(term: int) -> None:
    raft = node("b", HardState(1))
    receive(raft, "c", append(2, entries=(Entry(1, 2, "noop/1", ""),)), 10)
    ready = receive(raft, "a", TimeoutNow(term), 20)
    assert (raft.term, raft.role, ready.after) == (2, Role.FOLLOWER, ())


def test_a_timeout_now_of_an_earlier_term_is_void_even_from_the_leader() -> None:
    """It released then, not now."""
    raft = node("b")
    receive(raft, "a", append(2, entries=(Entry(1, 2, "noop/1", ""),)), 10)
    assert receive(raft, "a", TimeoutNow(1), 20).after == ()
    assert raft.role is Role.FOLLOWER


def test_a_target_whose_campaign_fails_tries_again_after_jitter_alone() -> None:
    """The promise that bound it was to the leader that has released."""
    raft = node("b")
    receive(raft, "a", append(entries=(NOOP,)), 10)
    receive(raft, "a", TimeoutNow(1), 20)
    raft.step(Tick(), raft.election_at_ns)
    assert raft.role is Role.PRECANDIDATE
    assert raft.now_ns < (20 + 300) * MS


def test_a_leader_that_resumed_and_released_does_not_wait_for_itself() -> None:
    raft = node("a", HardState(1, "a", 1), Log(entries=(NOOP,)), now=10, fresh=False)
    raft.resume()
    receive(raft, "b", AppendResp(1, 7, raft.round, ok=True, match=1), 11)
    raft.step(Release("b"), 12 * MS)
    raft.step(Tick(), raft.wakeup_ns)
    raft.step(Tick(), raft.transfer_until_ns)
    assert raft.term == 2
    raft.step(Tick(), raft.election_at_ns)
    assert raft.role is Role.PRECANDIDATE
    assert raft.now_ns < (10 + E) * MS


def test_a_target_that_never_takes_over_is_overtaken() -> None:
    raft = led()
    raft.step(Release("b"), 50 * MS)
    raft.step(Tick(), 100 * MS)
    ready = raft.step(Tick(), (50 + E // 2) * MS)
    assert raft.role is Role.CANDIDATE
    assert VoteReq(2, 1, 1, "a", 1) in sent(ready, "c")


def test_resume_leads_the_same_term_and_is_refused_after_a_release() -> None:
    log = Log(entries=(NOOP,))
    raft = node("a", HardState(1, "a", 1), log, now=10, fresh=False)
    ready = raft.resume()
    assert (raft.role, raft.term, ready.hard, ready.after) == (Role.LEADER, 1, None, ())
    assert raft.lease_until_ns == 0, "a lease is earned anew"
    for hard in (HardState(1, "a", 1, 1), HardState(1, "b", 1)):
        with pytest.raises(RaftBugError, match="cannot resume"):
            node("a", hard, log, fresh=False).resume()


# -- replication


def test_a_conflict_skips_a_whole_term_and_is_overwritten() -> None:
    old = (NOOP, *(Entry(i, 2, "x/1", "old") for i in range(2, 6)))
    raft = node("b", HardState(2), Log(entries=old))
    refused = sent(receive(raft, "a", append(4, (5, 3)), 1), "a")[0]
    assert isinstance(refused, AppendResp)
    assert (refused.ok, refused.match) == (False, 1)
    new = tuple(Entry(i, 3, "x/1", "new") for i in (2, 3))
    ready = receive(raft, "a", append(4, (1, 1), new, commit=3), 2)
    assert (ready.truncate_from, ready.entries, raft.log.last_index) == (2, new, 3)
    assert ready.committed == (NOOP, *new)


def test_an_old_append_never_cuts_the_log() -> None:
    two = (NOOP, Entry(2, 1, "x/1", ""))
    raft = node("b")
    receive(raft, "a", append(1, entries=two), 1)
    ready = receive(raft, "a", append(1, entries=two[:1]), 2)
    assert (ready.truncate_from, ready.entries, raft.log.last_index) == (None, (), 2)
    assert sent(ready, "a")[0] == AppendResp(1, 9, 1, ok=True, match=1), "only what was compared is confirmed"


def test_a_follower_commits_only_what_it_has_compared() -> None:
    raft = node("b", HardState(1), Log(entries=(NOOP, Entry(2, 1, "x/1", "mine"))))
    receive(raft, "a", append(2, (1, 1), (), commit=5), 1)
    assert raft.commit == 1


def test_an_older_term_commits_only_along_with_an_own_entry() -> None:
    raft = node("a", HardState(1), Log(entries=(NOOP,)))
    raft.step(Tick(), 0)
    receive(raft, "b", PreVoteResp(1, 2, granted=True), 1)
    receive(raft, "b", VoteResp(2, granted=True), 2)
    receive(raft, "b", AppendResp(2, 7, raft.round, ok=True, match=1), 3)
    assert raft.commit == 0
    receive(raft, "b", AppendResp(2, 7, raft.round, ok=True, match=2), 4)
    assert raft.commit == 2


def test_progress_never_goes_backwards() -> None:
    raft = led()
    receive(raft, "b", AppendResp(1, 7, 1, ok=False, match=0), 10)
    assert dict(raft.progress)["b"].match == 1


def test_an_answer_that_comes_late_takes_nothing_back() -> None:
    five = ("a", "b", "c", "d", "e")
    raft = node(voters=five)
    raft.step(Tick(), 0)
    for name in "bc":
        receive(raft, name, PreVoteResp(0, 1, granted=True), 1)
    for name in "bc":
        receive(raft, name, VoteResp(1, granted=True), 2)
    first = raft.round
    raft.step(Propose("x/1", ""), 50 * MS)
    second = raft.round
    receive(raft, "b", AppendResp(1, 7, second, ok=True, match=2), 51)
    receive(raft, "b", AppendResp(1, 7, first, ok=True, match=1), 52)
    assert raft.acknowledged("b") == (2, 50 * MS)
    assert raft.acknowledged("x") == (0, 0)
    receive(raft, "c", AppendResp(1, 7, second, ok=True, match=2), 53)
    assert (raft.commit, raft.lease_until_ns) == (2, (50 + L) * MS)


def test_followers_are_told_of_a_commit_at_once() -> None:
    raft = led()
    raft.step(Propose("x/1", ""), 10 * MS)
    ready = receive(raft, "b", AppendResp(1, 7, raft.round, ok=True, match=2), 11)
    for peer in "bc":
        [request] = sent(ready, peer)
        assert isinstance(request, AppendReq)
        assert request.commit == 2


def test_a_shorter_log_is_tried_at_its_end() -> None:
    raft = node("b", HardState(3), Log(entries=(NOOP, Entry(2, 1, "x/1", ""))))
    assert sent(receive(raft, "a", append(3, (9, 3)), 1), "a") == [AppendResp(3, 9, 1, ok=False, match=2)]


def test_a_learner_gets_what_is_committed_and_no_more() -> None:
    """Found by the model: a learner with the newest entry of a lost leader refused its vote to the only one who could
    win, and could not campaign itself."""
    raft = led()
    rows = [list(Member(name, 1, "", "", "", LEARNER if name == "c" else VOTER)) for name in VOTERS]
    ready = raft.step(Propose("members/1", canonical({"members": rows})), 20 * MS)
    assert [m.entries for m in sent(ready, "c") if isinstance(m, AppendReq)] == [()]
    receive(raft, "b", AppendResp(1, 7, raft.round, ok=True, match=2), 30)
    raft.step(Propose("x/1", ""), 40 * MS)
    ready = receive(raft, "c", AppendResp(1, 7, raft.round, ok=False, match=1), 50)
    [request] = sent(ready, "c")
    assert isinstance(request, AppendReq)
    assert ([e.index for e in request.entries], request.commit) == ([2], 2)
    ready = receive(raft, "c", AppendResp(1, 7, raft.round, ok=True, match=2), 60)
    assert sent(ready, "c") == [], "it has all that is for it"
    ready = receive(raft, "b", AppendResp(1, 7, raft.round, ok=True, match=3), 70)
    assert [[e.index for e in m.entries] for m in sent(ready, "c") if isinstance(m, AppendReq)] == [[3]]


def test_a_message_of_an_older_term_is_answered_with_ours() -> None:
    raft = node("b", HardState(5))
    assert sent(receive(raft, "a", append(4), 1), "a") == [AppendResp(5, 9, 1, ok=False, match=0)]


# -- snapshots


def test_compaction_replaces_the_log_and_a_laggard_gets_the_snapshot() -> None:
    raft = led()
    ready = raft.step(Compact(1, "state"), 20 * MS)
    assert ready.snapshot == Snapshot(1, 1, "state")
    assert (raft.log.entries, raft.log.last_index) == ((), 1)
    ready = receive(raft, "c", AppendResp(1, 7, raft.round, ok=False, match=0), 30)
    [request] = sent(ready, "c")
    assert isinstance(request, SnapshotReq)
    assert request.snapshot == Snapshot(1, 1, "state")


@pytest.mark.parametrize("index", [0, 2])
def test_only_what_is_committed_can_be_compacted(index: int) -> None:
    raft = led()
    with pytest.raises(RaftBugError, match="cannot compact"):
        raft.step(Compact(index, ""), 20 * MS)


def test_a_snapshot_drops_a_log_that_conflicts_and_keeps_one_that_agrees() -> None:
    log = Log(entries=(NOOP, Entry(2, 1, "x/1", ""), Entry(3, 1, "x/1", "")))
    for term, last in ((2, 2), (1, 3)):
        raft = node("b", HardState(2), log)
        snapshot = Snapshot(2, term, "s")
        ready = receive(raft, "a", SnapshotReq(3, 9, 1, snapshot, 2), 1)
        assert (ready.snapshot, ready.restored, raft.log.last_index, raft.commit) == (snapshot, True, last, 2)
        assert ready.truncate_from == (3 if last == 2 else None)
        assert sent(ready, "a") == [AppendResp(3, 9, 1, ok=True, match=2)]


def test_what_a_snapshot_covers_is_committed_whatever_the_hint_says() -> None:
    raft = node("b", HardState(3, "", 2), Log(Snapshot(5, 3, "s")), fresh=False)
    assert raft.commit == 5


def test_an_old_snapshot_changes_nothing() -> None:
    raft = node("b")
    receive(raft, "a", append(1, entries=(NOOP, Entry(2, 1, "x/1", "")), commit=2), 1)
    ready = receive(raft, "a", SnapshotReq(1, 9, 2, Snapshot(1, 1, "s"), 2), 2)
    assert (ready.snapshot, ready.restored, raft.log.last_index) == (None, False, 2)


def test_a_clone_is_independent() -> None:
    raft = led()
    other = raft.clone()
    other.step(Propose("x/1", ""), 20 * MS)
    assert raft.log.last_index == 1
    assert raft.key() != other.key()


def test_a_learner_notices_that_nobody_leads_it() -> None:
    """It does not campaign; but one that was removed while it was away has to find out (found by tests/sim)."""
    learner = node("d")
    receive(learner, "a", append(entries=(NOOP,)), 10)
    assert learner.leader == "a"
    learner.step(Tick(), learner.wakeup_ns)
    assert (learner.role, learner.leader, learner.term) == (Role.FOLLOWER, "", 1)


def test_long_entries_go_in_several_messages_and_one_always_goes() -> None:
    raft = led()
    for _ in range(4):
        raft.step(Propose("config/1", "x" * (CHARS_PER_MESSAGE_MAX // 2)), 10 * MS)
    raft.step(Propose("config/1", "x" * (CHARS_PER_MESSAGE_MAX + 1)), 10 * MS)
    have, sizes = 0, []
    ready = receive(raft, "c", AppendResp(1, 7, 0, ok=False, match=0), 20)
    while have < raft.log.last_index:
        (request,) = sent(ready, "c")
        assert isinstance(request, AppendReq)
        sizes.append(len(request.entries))
        have = request.prev_index + len(request.entries)
        ready = receive(raft, "c", AppendResp(1, 7, request.round, ok=True, match=have), 20)
    assert sizes == [3, 2, 1], "the no-op and two halves; two halves; one that is too long by itself"
