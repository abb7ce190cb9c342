"""Majorities: the arithmetic everything else rests on."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def majority(voters: int) -> int:
    """The fewest of ``voters`` that any other majority must meet."""
    return voters // 2 + 1


def has_majority(yes: Iterable[str], voters: Collection[str]) -> bool:
    """True if the voters among ``yes``, each counted once, are a majority of ``voters``."""
    return len(set(yes) & set(voters)) >= majority(len(voters))


def reached_by_majority(values: Collection[int], voters: int) -> int:
    """The largest value that a majority of ``voters`` has reached; voters without a value count as 0."""
    ordered = sorted(values, reverse=True)
    needed = majority(voters)
    return ordered[needed - 1] if len(ordered) >= needed else 0


def read_quorum(members: int, acks: int) -> int:
    """Promises from a sync group of ``members`` that must contain every commit flushed by ``acks`` of them."""
    return members - acks + 1
