"""The arithmetic of majorities against its definitions, counted out by hand."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from consensus.quorum import has_majority, majority, reached_by_majority, read_quorum

NAMES = "abcdefg"


def test_any_two_majorities_meet_and_nothing_smaller_does() -> None:
    for n in range(1, 8):
        voters, m = NAMES[:n], majority(n)
        assert all(set(x) & set(y) for x in combinations(voters, m) for y in combinations(voters, m))
        if m > 1:
            fewer = list(combinations(voters, m - 1))
            assert any(not set(x) & set(y) for x in fewer for y in fewer)


def test_a_read_quorum_meets_every_acknowledgement_and_nothing_smaller_does() -> None:
    for n in range(1, 8):
        for k in range(1, n + 1):
            r = read_quorum(n, k)
            acks = [set(x) for x in combinations(range(n), k)]
            assert all(set(x) & y for x in combinations(range(n), r) for y in acks)
            assert any(not set(x) & y for x in combinations(range(n), r - 1) for y in acks)


@given(st.lists(st.sampled_from("abcxyz")), st.sets(st.sampled_from("abcde"), min_size=1))
def test_has_majority_counts_each_voter_once_and_nobody_else(yes: list[str], voters: set[str]) -> None:
    count = sum(1 for v in voters if v in yes)
    assert has_majority(yes, voters) == (2 * count > len(voters))


@given(st.integers(1, 7), st.data())
def test_reached_by_majority_is_the_largest_such_value(voters: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 20), max_size=voters))
    full = values + [0] * (voters - len(values))
    assert reached_by_majority(values, voters) == max(v for v in range(21) if 2 * sum(x >= v for x in full) > voters)
