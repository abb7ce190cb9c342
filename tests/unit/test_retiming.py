"""Timings of a running cluster: entries, what is in force where, the leader's next step; and whole nodes."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consensus import pacing, retiming
from consensus.cluster import ClusterState, apply, canonical
from consensus.clustertext import dump, load
from consensus.messages import AppendResp, Entry, HardState, Snapshot
from consensus.raft import Log, Raft, RaftConfig, Received, Release, Tick
from consensus.retiming import DONE, RETIME, RETIMED, SWITCH, VOID, Pace, Retiming, Seen
from consensus.write import Stored
from fencing.lease import MS, PROFILES, Timings
from tests.unit.nodes import Cluster
from tests.unit.test_requests import opened

FAST, DEFAULT, CLOUD = (PROFILES[name] for name in ("fast", "default", "cloud"))
OPEN = Pace(DEFAULT, Retiming(7, CLOUD))
SWITCHED = Pace(DEFAULT, Retiming(7, CLOUD, True))


def begun(index: int, to: Timings) -> Entry:
    return Entry(index, 1, RETIME, canonical({"timings": list(astuple(to)), "node": "a", "text": "begins"}))


def step(index: int, of: int, name: str) -> Entry:
    return Entry(index, 1, RETIMED, canonical({"index": of, "step": name}))


# -- entries ---------------------------------------------------------------------------------------------------------


def test_a_change_goes_through_its_steps() -> None:
    log = [begun(7, CLOUD), step(8, 7, SWITCH), step(9, 7, DONE)]
    found = retiming.paces(Pace(DEFAULT), log)
    assert [pace._replace(at=0) for pace in found] == [Pace(DEFAULT), OPEN, SWITCHED, Pace(CLOUD)]
    assert [pace.at for pace in found] == [0, 7, 8, 9]


@pytest.mark.parametrize(
    ("pace", "late"),
    [
        (OPEN, begun(9, FAST)), (Pace(DEFAULT), begun(9, DEFAULT)), (Pace(DEFAULT), step(9, 7, SWITCH)),
        (OPEN, step(9, 6, SWITCH)), (OPEN, step(9, 7, DONE)), (SWITCHED, step(9, 7, SWITCH)),
        (SWITCHED, step(9, 7, VOID)),
    ],
)  # fmt: skip
def test_what_does_not_apply_changes_nothing(pace: Pace, late: Entry) -> None:
    assert retiming.paces(pace, [late])[-1] is pace
    state = ClusterState(pace=pace)
    assert apply(state, late) is state, "nor does the history tell of it"


def test_before_the_switch_it_can_be_given_up() -> None:
    assert retiming.paces(OPEN, [step(9, 7, VOID)])[-1] == Pace(DEFAULT, None, 9)


@pytest.mark.parametrize("pace", [Pace(FAST), OPEN, SWITCHED, Pace(CLOUD, None, 9)])
def test_the_state_is_the_same_after_a_snapshot(pace: Pace) -> None:
    assert load(dump(ClusterState(pace=pace))).pace == pace


def test_a_snapshot_of_an_older_version_has_the_profile_of_the_founding() -> None:
    assert retiming.load(None, "cloud") == Pace(CLOUD)


# -- in force --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(DEFAULT, CLOUD), (CLOUD, FAST), (FAST, CLOUD)])
def test_whatever_is_known_of_a_change_the_inequality_holds_across_all_nodes(old: Timings, new: Timings) -> None:
    """Every leader that the log allows against every voter that it allows: the leases of the one fit under the other.

    A voter has any part of the log; a leader that gives leases of the new L has the switch committed, and then every
    voter has the first step, committed or not; once the last is committed, no lease of the old L is left.
    """
    log = [begun(1, new), step(2, 1, SWITCH), step(3, 1, DONE)]
    voters = [
        (have, knows, retiming.after_restart(Pace(old), log[:have], knows))
        for have in range(4)
        for knows in range(have + 1)
    ]
    leaders = voters
    for have, knows, leads in leaders:
        for has, known, bound in voters:
            if knows >= 2 and has < 1:
                continue  # the switch waited for every voter
            if known >= 3 and have < 2:
                continue  # the last step waited for the end of such leases, and such a leader is not elected any more
            assert not replace(leads, election_ms=bound.election_ms).problems(), (have, knows, has, known)


@st.composite
def safe_timings(draw: st.DrawFn) -> Timings:
    """Any set that is not refused."""
    heartbeat = draw(st.integers(1, 300))
    demote = draw(st.integers(2 * heartbeat + 1, 2 * heartbeat + 2_000))
    lease = draw(st.integers(demote + 1, demote + 2_000))
    kill = draw(st.integers(1, lease - 2 * heartbeat - 1))
    least = -((lease * 100 + kill * 98) * 102 // -9_800)
    return Timings(heartbeat, demote, lease, kill, draw(st.integers(least, least + 2_000)), 0)


@given(safe_timings(), safe_timings())
@example(Timings(100, 500, 700, 250, 1000, 300), Timings(100, 428, 600, 350, 1000, 300))
def test_between_any_two_sets_no_lease_of_either_length_outlasts_a_voters_promise(old: Timings, new: Timings) -> None:
    """L and F grow and shrink as they like. By what is committed: the leases that may be running, the voters' E, and
    what the watchdogs were told, whose parents may be a step behind."""
    assert not old.problems()
    assert not new.problems()
    before, opened, after = Pace(old), Pace(old, Retiming(7, new)), Pace(new)
    switched = Pace(old, Retiming(7, new, True))
    for running, bound, told in (
        ({old.lease_ms}, old.election_ms, (before,)),
        ({old.lease_ms}, old.election_ms, (before, opened)),
        ({old.lease_ms, new.lease_ms}, retiming.binding_ms(switched), (opened, switched)),
        ({new.lease_ms}, new.election_ms, (switched, after)),
    ):
        for lease_ms in running:
            for pace in told:
                found = retiming.at_the_watchdog(pace)
                assert lease_ms <= found.lease_ms, "it takes it"
                whole = replace(new, lease_ms=lease_ms, kill_bound_ms=found.kill_bound_ms, election_ms=bound)
                assert not [text for text in whole.problems() if "do not fit" in text], (lease_ms, pace)


@given(safe_timings(), safe_timings())
def test_between_any_two_sets_the_parent_demotes_before_the_end_and_no_earlier_than_it_must(
    old: Timings, new: Timings
) -> None:
    """Two heartbeats may be lost at any step, and what is left at the demotion is what the tighter set leaves."""
    for pace in (Pace(old), Pace(old, Retiming(7, new)), Pace(old, Retiming(7, new, True)), Pace(new)):
        found = retiming.at_the_parent(pace)
        assert found.problems() == ()
        sets = (pace.timings, *((pace.change.new,) if pace.change else ()))
        assert found.lease_ms - found.demote_ms == min(t.lease_ms - t.demote_ms for t in sets)


def test_a_voter_is_bound_by_what_is_appended_and_a_leader_goes_by_what_is_committed() -> None:
    assert retiming.in_force(Pace(DEFAULT), [begun(7, CLOUD)]).election_ms == CLOUD.election_ms
    assert retiming.in_force(OPEN, [step(8, 7, SWITCH)]).lease_ms == DEFAULT.lease_ms
    assert retiming.in_force(SWITCHED, []) == replace(CLOUD, kill_bound_ms=250, heartbeat_ms=100)
    assert retiming.in_force(Pace(CLOUD), []) == CLOUD


def test_a_shorter_lease_counts_at_once_and_a_shorter_election_timeout_once_it_is_committed() -> None:
    down = Pace(CLOUD, Retiming(7, FAST))
    found = retiming.in_force(down, [step(8, 7, SWITCH), step(9, 7, DONE)])
    assert (found.lease_ms, found.heartbeat_ms, found.election_ms) == (300, 50, CLOUD.election_ms)
    assert found.jitter_ms == CLOUD.jitter_ms
    assert retiming.in_force(Pace(FAST), []) == FAST


def test_a_restarted_voter_goes_by_its_whole_log() -> None:
    log = [begun(7, CLOUD), step(8, 7, VOID)]
    assert retiming.after_restart(Pace(DEFAULT), log, 6).election_ms == CLOUD.election_ms
    assert retiming.after_restart(Pace(DEFAULT), log, 8) == DEFAULT


def test_the_parent_demotes_in_time_for_leases_of_either_length() -> None:
    for pace in (Pace(CLOUD), Pace(FAST)):
        assert retiming.at_the_parent(pace) == pace.timings
    for switched in (False, True):
        found = retiming.at_the_parent(Pace(FAST, Retiming(7, CLOUD, switched)))
        assert (found.lease_ms, found.lease_ms - found.demote_ms) == (1400 if switched else 300, 80)
        assert found.election_ms == CLOUD.election_ms


def test_the_watchdog_takes_leases_of_either_length_while_a_change_is_open() -> None:
    assert [retiming.at_the_watchdog(p).lease_ms for p in (Pace(DEFAULT), OPEN, SWITCHED, Pace(CLOUD))] == [
        700, 1400, 1400, 1400
    ]  # fmt: skip
    assert [retiming.at_the_watchdog(p).kill_bound_ms for p in (OPEN, SWITCHED, Pace(CLOUD))] == [250, 250, 500]


# -- what is wanted --------------------------------------------------------------------------------------------------


def test_the_settings_say_what_is_wanted() -> None:
    assert retiming.wanted("{}", "fast") == FAST
    assert retiming.wanted('{"profile":"cloud"}', "fast") == CLOUD
    slower = retiming.wanted('{"election_ms":2000,"lease_ms":1400}', "default")
    assert slower == Timings(100, 1000, 1400, 250, 2000, 600)
    assert [retiming.profile_of(t) for t in (FAST, slower)] == ["fast", "custom"]


# -- the leader's next step ------------------------------------------------------------------------------------------


def name_of(found: retiming.Step | None) -> str:
    return "" if found is None else str(found.body.get("step", "begin"))


def test_the_leader_begins_what_is_wanted_and_nothing_unsafe() -> None:
    assert name_of(retiming.next_step(Pace(DEFAULT), Seen(CLOUD))) == "begin"
    assert retiming.next_step(Pace(DEFAULT), Seen(DEFAULT)) is None
    assert retiming.next_step(Pace(DEFAULT), Seen(replace(DEFAULT, lease_ms=900))) is None


def test_the_switch_waits_for_every_voter_and_says_for_whom() -> None:
    waiting = Seen(CLOUD, ("b", "c"), committed=True)
    assert retiming.next_step(OPEN, waiting) is None
    assert "waits for b, c" in retiming.waits_for(OPEN, waiting)
    assert retiming.next_step(OPEN, Seen(CLOUD)) is None, "not committed"
    assert name_of(retiming.next_step(OPEN, Seen(CLOUD, committed=True))) == SWITCH
    assert retiming.waits_for(OPEN, Seen(CLOUD)) == retiming.waits_for(SWITCHED, waiting) == ""
    assert retiming.waits_for(Pace(DEFAULT), waiting) == ""


def test_another_wish_gives_it_up_before_the_switch_and_waits_for_its_end_after_it() -> None:
    assert name_of(retiming.next_step(OPEN, Seen(DEFAULT, ("b",)))) == VOID
    assert retiming.next_step(SWITCHED, Seen(DEFAULT, committed=True)) is None


@pytest.mark.parametrize(("ms", "capped", "found"), [(1999, False, ""), (2000, False, DONE), (9000, True, "")])
def test_the_end_waits_for_the_longer_e_and_for_its_own_watchdog(ms: int, capped: bool, found: str) -> None:
    seen = Seen(CLOUD, ("b",), committed=True, capped=capped, switched_ms=ms)
    assert name_of(retiming.next_step(SWITCHED, seen)) == found


# -- whole nodes -----------------------------------------------------------------------------------------------------


def put(cluster: Cluster, at: str, **values: object) -> dict[str, Any]:
    return cluster.ask(at, "config.set", set=values, unset=[])


def pace(cluster: Cluster, name: str) -> Pace:
    """Whatever the entry."""
    return cluster.members[name].node.cluster.pace._replace(at=0)


def test_from_one_profile_to_another_and_back_under_one_leader() -> None:
    cluster = opened("a", "b", "c")
    for name, profile in (("b", CLOUD), ("c", FAST), ("a", DEFAULT)):
        asked = next(n for n, t in PROFILES.items() if t == profile)
        assert put(cluster, name, profile=asked)["ok"]
        cluster.until(lambda p=profile: all(pace(cluster, n) == Pace(p) for n in "abc"), limit_ms=20_000)  # type: ignore[misc]
        cluster.run(200)
        for one in "abc":
            node = cluster.members[one].node
            assert node.timings == profile
            assert (node.raft.config.lease_ns, node.raft.config.election_ns) == (
                profile.lease_ms * MS, profile.election_ms * MS
            )  # fmt: skip
    assert cluster.members["a"].node.granted() is not None, "nobody had to be elected"
    told = [event[4] for event in cluster.members["b"].cluster["history"] if event[1] == "timings"]
    assert len(told) == 9


def test_a_voter_that_is_down_is_waited_for_and_named_and_the_wait_can_be_ended() -> None:
    cluster = opened("a", "b", "c")
    cluster.members["c"].up = False
    assert put(cluster, "a", profile="cloud")["ok"]
    cluster.until(lambda: pace(cluster, "b").change is not None)
    cluster.run(3_000)
    node = cluster.members["a"].node
    assert (node.timings.lease_ms, node.timings.election_ms) == (DEFAULT.lease_ms, CLOUD.election_ms)
    assert "waits for c: every voter has to hear of it" in cluster.members["a"].state["sentence"]
    assert put(cluster, "a", profile="default")["ok"]
    cluster.until(lambda: pace(cluster, "b") == Pace(DEFAULT))
    cluster.run(500)
    assert node.timings == DEFAULT
    assert "waits" not in cluster.members["a"].state["sentence"]


def test_while_there_is_no_open_primary_its_leader_says_why_and_not_what_the_timings_wait_for() -> None:
    cluster = opened("a", "b", "c")
    cluster.members["c"].up = False
    put(cluster, "a", profile="cloud")
    node = cluster.members["a"].node
    cluster.until(lambda: "waits for c" in cluster.members["a"].state["sentence"], 10_000)
    assert node.cluster.grant is not None
    node.cluster = replace(node.cluster, grants=(node.cluster.grant._replace(opened=False),))
    cluster.until(lambda: "waits for c" not in cluster.members["a"].state["sentence"])


def on_the_way_without_c(*names: str) -> Cluster:
    """From default to cloud; c, which is away, has to hear of it."""
    cluster = opened(*names)
    cluster.members["c"].up = False
    put(cluster, "a", profile="cloud")
    cluster.until(lambda: pace(cluster, "b").change is not None)
    return cluster


def test_it_goes_on_when_the_voter_is_back() -> None:
    cluster = on_the_way_without_c("a", "b", "c")
    cluster.members["c"].up = True
    cluster.until(lambda: all(pace(cluster, n) == Pace(CLOUD) for n in "abc"), 20_000)


def test_it_goes_on_when_the_voter_is_removed_and_a_new_one_has_all_of_it() -> None:
    cluster = on_the_way_without_c("a", "b", "c", "d")
    cluster.join("e", "a")
    cluster.until(lambda: voter(cluster, "e"), 20_000)
    assert retiming.binding_ms(pace(cluster, "e")) == CLOUD.election_ms, "from its first vote on"
    cluster.run(3_000)
    assert not is_switched(cluster)
    assert cluster.ask("a", "member.remove", name="c")["ok"]
    cluster.until(lambda: all(pace(cluster, n) == Pace(CLOUD) for n in "abde"), 20_000)


def test_who_is_about_to_be_removed_is_waited_for_until_that_is_committed() -> None:
    """Until then it may be one of those who elect another leader."""
    cluster = on_the_way_without_c("a", "b", "c", "d")
    assert cluster.ask("a", "member.remove", name="c")["ok"]
    raft = cluster.members["a"].node.raft
    cluster.until(lambda: "c" not in raft.members.voters and "c" in raft.settled.voters, 20_000)
    for name in "bd":
        cluster.members[name].up = False
    cluster.run(CLOUD.election_ms // 2)
    assert cluster.members["a"].node.leads()
    assert "c" in raft.settled.voters
    change = cluster.members["a"].node.tip().pace.change
    assert change is not None
    assert not change.switched
    for name in "bd":
        cluster.members[name].up = True
    cluster.until(lambda: all(pace(cluster, n) == Pace(CLOUD) for n in "abd"), 20_000)


def voter(cluster: Cluster, name: str) -> bool:
    member = cluster.members["a"].node.cluster.member(name)
    return member is not None and member.votes


def test_the_next_leader_goes_on_with_it() -> None:
    cluster = on_the_way_without_c("a", "b", "c")
    cluster.members["a"].up = False
    cluster.members["c"].up = True
    cluster.until(lambda: any(cluster.members[n].node.leads() for n in "bc"), 20_000)
    assert all(pace(cluster, n).timings == DEFAULT for n in "bc")
    cluster.members["a"].up = True
    cluster.until(lambda: all(pace(cluster, n) == Pace(CLOUD) for n in "abc"), 30_000)


@pytest.mark.parametrize("lost", [False, True])
def test_a_shorter_e_waits_for_the_longer_one_under_each_leader(lost: bool) -> None:
    """Whoever leads can't know when the last lease of the old L was given by another."""
    cluster = opened("a", "b", "c")
    put(cluster, "a", profile="cloud")
    cluster.until(lambda: all(pace(cluster, n) == Pace(CLOUD) for n in "abc"), 20_000)
    put(cluster, "a", profile="fast")
    cluster.until(lambda: is_switched(cluster), 20_000)
    if lost:
        cluster.members["a"].up = False
        cluster.until(lambda: any(cluster.members[n].node.leads() for n in "bc"), 20_000)
    began = cluster.now
    up = [m for m in cluster.members.values() if m.up]
    cluster.until(lambda: any(m.node.timings.election_ms == FAST.election_ms for m in up), 20_000)
    assert cluster.now - began >= (CLOUD.election_ms - 20) * MS, "until's own steps apart"


def test_a_resumed_leader_with_a_shorter_l_takes_nothing_back() -> None:
    """A deadline that lies before the last one would count as a lease that went wrong."""
    cluster = opened("a", "b", "c")
    put(cluster, "a", profile="cloud")
    cluster.until(lambda: all(pace(cluster, n) == Pace(CLOUD) for n in "abc"), 20_000)
    put(cluster, "a", profile="fast")
    cluster.until(lambda: is_switched(cluster), 20_000)
    node = cluster.restart("a").node
    until_ns = cluster.now + 1_200 * MS
    node.start(node.raft.resume(until_ns), cluster.now)
    cluster.until(lambda: node.raft.lease_from_ns > 0)
    assert node.raft.lease_until_ns == until_ns
    cluster.until(lambda: node.raft.lease_until_ns > until_ns, 2_000)
    assert node.raft.lease_until_ns - node.raft.lease_from_ns == FAST.lease_ms * MS


def test_a_lease_never_goes_backwards_when_it_becomes_shorter() -> None:
    cluster = opened("a", "b", "c")
    put(cluster, "a", profile="fast")
    told = 0
    for _ in range(3_000):
        cluster.run(1)
        assert cluster.members["a"].lease_ns >= told
        told = cluster.members["a"].lease_ns
    assert pace(cluster, "a") == Pace(FAST)
    assert cluster.members["a"].node.granted() is not None


def test_what_binds_a_node_that_starts_is_all_that_is_on_its_disk() -> None:
    cluster = opened("a", "b", "c")
    disk = cluster.members["b"].disk
    last = disk.entries[-1]

    def at_start(kept: Snapshot | None, *more: Entry, commit: int = 0) -> Timings:
        entries = (*disk.entries, *more) if kept is None or not kept.index else more
        stored = Stored(disk.identity, HardState(commit=commit), kept, entries, disk.record)
        return pacing.at_start(disk.identity, stored)

    assert at_start(None) == at_start(Snapshot(0, 0, "")) == DEFAULT, "of the founding"
    assert at_start(None, begun(last.index + 1, CLOUD)).election_ms == CLOUD.election_ms
    kept = Snapshot(last.index, last.term, dump(replace(cluster.members["a"].node.cluster, pace=OPEN)))
    assert at_start(kept).election_ms == CLOUD.election_ms
    back = step(last.index + 1, 7, VOID)
    assert at_start(kept, back).election_ms == CLOUD.election_ms
    assert at_start(kept, back, commit=last.index + 1) == DEFAULT


def test_a_restarted_voter_waits_for_the_longer_e_that_nobody_has_committed() -> None:
    cluster = opened("a", "b", "c")
    machine = cluster.members["b"]
    last = machine.disk.entries[-1]
    machine.disk.entries += (Entry(last.index + 1, last.term, RETIME, begun(1, CLOUD).data),)
    raft = cluster.restart("b").node.raft
    assert raft.hold_until_ns - cluster.now == CLOUD.election_ms * MS
    assert raft.config.election_ns == CLOUD.election_ms * MS


def is_switched(cluster: Cluster) -> bool:
    change = pace(cluster, "a").change
    return change is not None and change.switched


@pytest.mark.parametrize(
    ("values", "sentence", "hint"),
    [
        ({"lease_ms": 900}, "lease_ms 900 and kill_bound_ms 250 do not fit under election", "profile="),
        ({"heartbeat_ms": 300}, "demote_ms must lie between two heartbeats and lease_ms", "profile=..."),
        ({"lease_ms": 900, "election_ms": 1100}, "under election_ms 1100", "without lease_ms and election_ms"),
    ],
)
def test_timings_that_do_not_fit_together_never_enter_the_log(
    values: dict[str, Any], sentence: str, hint: str
) -> None:
    cluster = opened("a", "b", "c")
    before = cluster.members["a"].node.raft.log.last_index
    answer = put(cluster, "b", **values)
    assert (answer["ok"], answer["code"]) == (False, 78)
    assert sentence in answer["error"]
    assert hint in answer["hint"]
    assert cluster.members["a"].node.raft.log.last_index == before


def test_several_at_once_are_looked_at_together() -> None:
    cluster = opened("a", "b", "c")
    answer = put(cluster, "b", lease_ms="900ms", election_ms="2s")
    assert answer["ok"]
    assert "every voter has to hear of the first" in answer["notes"][0]
    assert put(cluster, "b", profile="cloud", lease_ms=1000)["notes"][1:] == [
        "election_ms: set by itself, not by the profile (`pgr config unset`)"
    ]
    assert put(cluster, "b", profile="default", lease_ms=900)["ok"]
    cluster.until(lambda: pace(cluster, "c").timings.lease_ms == 900, 20_000)
    assert pace(cluster, "c").timings == Timings(100, 642, 900, 250, 2000, 600)


def test_the_second_change_of_one_reign_waits_as_long_as_the_first() -> None:
    cluster = opened("a", "b", "c")
    for profile in ("cloud", "fast"):
        assert put(cluster, "a", profile=profile)["ok"]
        cluster.until(lambda: (change := pace(cluster, "a").change) is not None and change.switched)
        assert cluster.until(lambda: pace(cluster, "a").change is None) >= CLOUD.election_ms - 5


def test_a_voter_that_lacks_nothing_but_the_first_step_is_waited_for() -> None:
    cluster = opened("a", "b", "c")
    raft = cluster.members["a"].node.raft
    cluster.tell("a", "admin.request", {"name": "config.set", "body": {"set": {"profile": "cloud"}, "unset": []}}, "r")
    while raft.log.entries[-1].kind != RETIME:
        cluster.turn()
    cluster.cut.add(("a", "c"))
    index = raft.log.last_index
    cluster.until(lambda: raft.commit >= index and raft.acknowledged("c")[0] >= index - 1)
    cluster.run(2_000)
    assert raft.acknowledged("c")[0] == index - 1
    change = pace(cluster, "a").change
    assert change is not None
    assert not change.switched


def test_the_end_waits_for_the_longer_e_where_it_becomes_shorter() -> None:
    switched = Pace(CLOUD, Retiming(7, FAST, True))
    for ms, done in ((500, False), (1_999, False), (2_000, True)):
        assert (retiming.next_step(switched, Seen(FAST, committed=True, switched_ms=ms)) is not None) == done


def raft_of(*voters: str, term: int) -> Raft:
    config = RaftConfig("a", voters, 50 * MS, 2_000 * MS, 0, 1_400 * MS)
    return Raft(config, HardState(term, "a" if term else "", 0, 0), Log(), boot=2, seed=1, now_ns=MS, fresh=not term)


def test_a_resumed_leader_gives_no_lease_that_ends_before_the_confirmed_one() -> None:
    raft = raft_of("a", "b", "c", term=3)
    raft.resume(1_500 * MS)
    raft.step(Tick(), MS)
    raft.step(Received("b", AppendResp(3, 2, raft.round, ok=True, match=0)), 2 * MS)
    assert raft.config.lease_ns == 1_400 * MS
    assert raft.lease_until_ns == 1_500 * MS


def test_a_lease_of_an_earlier_term_does_not_lengthen_those_of_the_next() -> None:
    raft = raft_of("a", term=0)
    for at_ms in (1, 60):
        raft.step(Tick(), at_ms * MS)
    raft.use(heartbeat_ns=50 * MS, election_ns=500 * MS, jitter_ns=0, lease_ns=300 * MS)
    assert raft.lease_until_ns - raft.lease_from_ns == 1_400 * MS, "what was told stays told"
    before = raft.term
    raft.step(Release(""), 70 * MS)
    raft.step(Tick(), 130 * MS)
    assert raft.term > before
    assert raft.lease_until_ns - raft.lease_from_ns == 300 * MS
