"""The clusters that this one was rebuilt from (recovery.py): nothing of them is to go on beside this one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

KEPT_MAX = 8


class Left(NamedTuple):
    """A member that was given up."""

    name: str
    incarnation: int
    raft: str
    """Where it was, ``host:port``."""


class Former(NamedTuple):
    """One of them."""

    cluster_id: str
    left: tuple[Left, ...]
    timeline: int
    """The highest number that it may have given out to others without our knowing; ours are above."""
    term: int = 0
    """Likewise of terms: grants above are of the cluster that came after it."""


def burned_up_to(formers: Iterable[Former]) -> int:
    """0: nothing was ever rebuilt."""
    return max((f.timeline for f in formers), default=0)


def was_left(formers: Iterable[Former], name: str) -> bool:
    """Has a node of this name been given up? It is let in again without being told to join."""
    return any(one.name == name for former in formers for one in former.left)
