"""Positions and divergence: the table, and a dumb check against WAL spelled out record by record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.positions import Attach, Diverged, NoPosition, divergence, is_of_its_history, position_of
from consensus.record import EpochStart, Position

ZERO, ONE, THREE = EpochStart(0, 0, 1), EpochStart(1, 100, 2), EpochStart(3, 200, 4)


@pytest.mark.parametrize(
    ("history", "flushed", "timeline", "expected"),
    [
        ((ZERO,), 50, 1, Position(0, 50)),
        ((ZERO, ONE), 150, 2, Position(1, 150)),
        ((ZERO, ONE), 100, 1, Position(0, 100)),  # not a byte of epoch 1 yet
        ((ZERO, ONE, THREE), 201, 4, Position(3, 201)),
        ((ZERO, ONE), 150, 1, None),  # WAL of another timeline than the history says
        ((), 50, 1, None),
        ((ZERO,), 0, 1, None),
    ],
)
def test_position(history: tuple[EpochStart, ...], flushed: int, timeline: int, expected: Position | None) -> None:
    answer = position_of(history, flushed, timeline, None)
    assert isinstance(answer, NoPosition) if expected is None else answer == expected


def test_a_clone_has_no_position_before_its_proof() -> None:
    proof = Position(1, 150)
    assert isinstance(position_of((ZERO, ONE), 149, 2, proof), NoPosition)
    assert isinstance(position_of((ZERO,), 999, 1, proof), NoPosition), "an older epoch never passes a newer one"
    assert position_of((ZERO, ONE), 150, 2, proof) == Position(1, 150)


@pytest.mark.parametrize(
    ("history", "lsn", "switch"),
    [
        ((ZERO, ONE), 150, None),
        ((ZERO,), 100, None),  # exactly at the switch
        ((ZERO,), 101, 100),
        ((ZERO, ONE), 200, None),
        ((ZERO, ONE), 230, 200),
        ((ZERO, EpochStart(2, 120, 3)), 130, 0),  # an epoch the primary never had
        ((ZERO, EpochStart(1, 100, 3)), 130, 0),  # the same epoch on another timeline
        ((ZERO, EpochStart(2, 120, 3)), 90, None),  # it never wrote a byte of it
        ((), 10, 0),
    ],
)
def test_divergence(history: tuple[EpochStart, ...], lsn: int, switch: int | None) -> None:
    answer = divergence((ZERO, ONE, THREE), history, lsn)
    if switch is None:
        assert answer == Attach((ZERO, ONE, THREE))
    else:
        assert isinstance(answer, Diverged)
        assert answer.lsn == switch


def test_an_epoch_without_a_byte_in_the_ancestry_hides_nothing() -> None:
    """Epoch 1 was to begin at 100 and wrote nothing; epoch 3 then began at 80. Found by the model."""
    answer = divergence((ZERO, ONE, EpochStart(3, 80, 4)), (ZERO,), 90)
    assert isinstance(answer, Diverged)
    assert (answer.lsn, answer.lost_bytes) == (80, 10)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), max_size=5), st.integers(0, 5), st.integers(1, 30))
def test_divergence_is_what_record_by_record_comparison_says(
    steps: list[tuple[int, int]], owner: int, lsn: int
) -> None:
    """A family of epochs that each start from some point of the one before; the node stopped in one of them."""
    wal: list[int] = [0] * 10
    history: list[EpochStart] = [ZERO]
    past: list[tuple[list[int], list[EpochStart]]] = [(wal, history)]
    for epoch, (cut, more) in enumerate(steps, 1):
        wal = wal[: max(1, min(cut, len(wal)))]
        history = [*(e for e in history if e.start_lsn < len(wal)), EpochStart(epoch, len(wal), epoch + 1)]
        wal = wal + [epoch] * more
        past.append((wal, history))
    old_wal, old_history = past[min(owner, len(past) - 1)]
    mine = old_wal[:lsn]
    follows = mine == wal[: len(mine)]
    assert isinstance(divergence(tuple(history), tuple(old_history), len(mine)), Attach) == follows


def test_a_promotion_that_was_killed_before_its_first_record_costs_no_position() -> None:
    """The first file of the new timeline is a copy of the last one before (found by a review, on a real Postgres)."""
    history = (EpochStart(0, 0, 1), EpochStart(3, 100, 2), EpochStart(5, 150, 3))
    assert position_of(history, 150, 3, None) == Position(3, 150)
    assert position_of(history, 150, 2, None) == Position(3, 150)
    assert position_of(history, 151, 3, None) == Position(5, 151)
    assert isinstance(position_of(history, 149, 3, None), NoPosition), "WAL of 3 ends before 3 begins"
    assert isinstance(position_of(history, 151, 2, None), NoPosition)


def test_a_clone_without_proof_follows_only_with_wal_of_the_history_it_was_given() -> None:
    """It was made of a standby that had gone another way: that is seen by the timeline, its LSNs would attach."""
    ancestry = (EpochStart(0, 0, 1), EpochStart(4, 100, 2), EpochStart(7, 1000, 3))
    assert isinstance(divergence(ancestry, ancestry, 5000), Attach)
    assert not is_of_its_history(ancestry, 5000, 2)
    assert is_of_its_history(ancestry, 5000, 3)
    assert is_of_its_history(ancestry, 900, 2), "all of it from before the newest epoch"
