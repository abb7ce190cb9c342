"""The inequality that makes failover safe: every profile keeps it, and it is the real one."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencing.deadman import Arm, Armed, LeaseChanged, deadman, step
from fencing.lease import MS as NS
from fencing.lease import PROFILES, RHO_PERCENT, Timings

MS = st.integers(1, 5000)


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_are_safe(name: str) -> None:
    assert PROFILES[name].problems() == ()


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_with_a_lease_as_long_as_the_election_is_refused(name: str) -> None:
    timings = PROFILES[name]
    assert replace(timings, lease_ms=timings.election_ms).problems()


@given(MS, MS, MS)
def test_it_is_the_inequality_of_the_safety_contract(lease_ms: int, kill_bound_ms: int, election_ms: int) -> None:
    rho = Fraction(RHO_PERCENT, 100)
    safe = Fraction(lease_ms) / (1 - rho) + kill_bound_ms <= Fraction(election_ms) / (1 + rho)
    problems = Timings(1, 3, lease_ms, kill_bound_ms, election_ms, 0).problems()
    assert safe == (not any("do not fit" in problem for problem in problems))


DRIFT_PERCENT = st.integers(-RHO_PERCENT, RHO_PERCENT)


@given(st.tuples(MS, MS, MS), st.integers(0, 2000), DRIFT_PERCENT, DRIFT_PERCENT)
def test_with_clocks_within_the_drift_nobody_is_elected_before_the_kill_is_complete(
    durations_ms: tuple[int, int, int], delay_ms: int, leader_drift: int, follower_drift: int
) -> None:
    """Real time from the send of a round: the leader's Postgres is gone before the follower may vote again."""
    lease_ms, kill_bound_ms, election_ms = durations_ms
    timings = Timings(1, 3, lease_ms, kill_bound_ms, election_ms, 0)
    if any("do not fit" in problem for problem in timings.problems()):
        return
    gone = Fraction(lease_ms) / (1 + Fraction(leader_drift, 100)) + kill_bound_ms
    free = delay_ms + Fraction(election_ms) / (1 + Fraction(follower_drift, 100))
    assert gone <= free


@pytest.mark.parametrize("field", ["heartbeat_ms", "demote_ms", "lease_ms", "kill_bound_ms", "election_ms"])
def test_durations_must_be_positive(field: str) -> None:
    assert "positive" in " ".join(replace(PROFILES["default"], **{field: 0}).problems())


@pytest.mark.parametrize("demote_ms", [200, 700, 900])
def test_demotion_lies_between_two_heartbeats_and_the_lease(demote_ms: int) -> None:
    assert any("demote_ms" in problem for problem in replace(PROFILES["default"], demote_ms=demote_ms).problems())


@pytest.mark.parametrize("name", PROFILES)
def test_a_lease_that_is_two_heartbeats_old_can_be_armed_under_any_set_that_is_taken(name: str) -> None:
    """Else the running primary would go on, and after it nobody could become one."""
    taken = PROFILES[name]
    long_kill = replace(taken, kill_bound_ms=taken.lease_ms - 2 * taken.heartbeat_ms, election_ms=9_000)
    assert [sentence for sentence in long_kill.problems() if "armed" in sentence]
    for timings, armed in ((taken, True), (long_kill, False)):
        until_ns = (timings.lease_ms - 2 * timings.heartbeat_ms) * NS
        state, _ = step(deadman(timings), LeaseChanged(5, until_ns), 0)
        _, [answer] = step(state, Arm(5, 7, 7, until_ns), 1)
        assert isinstance(answer, Armed)
        assert answer.ok is armed
