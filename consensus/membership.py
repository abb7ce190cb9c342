"""Who takes part: the members of the cluster, and what of them Raft has to know (thesis, chapter 4). Pure.

Membership changes one voter at a time, by a `members/1` entry that holds the whole list. The newest such entry of a
node's log is in force there, committed or not; no other kind of entry does the Raft core look into.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

MEMBERS = "members/1"

VOTER, WITNESS, LEARNER = "voter", "witness", "learner"
"""Roles (safety.md, "Words"): votes and has Postgres / votes, has no Postgres / has Postgres, no vote."""

GONE = "gone"
"""An aim: this member is to be removed. ``gone:NAME``: once NAME has taken its place."""


class Member(NamedTuple):
    """Addresses are ``host:port``; they may change, the name and the incarnation do not."""

    name: str
    incarnation: int
    raft: str
    postgres: str
    """Empty for a witness."""
    http: str
    role: str = VOTER
    aim: str = VOTER
    """What it is to become: a role, or `GONE`."""

    @property
    def votes(self) -> bool:
        return self.role in (VOTER, WITNESS)

    @property
    def has_data(self) -> bool:
        """Does it run a Postgres? A learner that is to be a witness has none either."""
        return WITNESS not in {self.role, self.aim}


class Membership(NamedTuple):
    """The names Raft counts, sorted."""

    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()


def membership(members: Iterable[Member]) -> Membership:
    listed = sorted(members)
    return Membership(
        tuple(m.name for m in listed if m.votes), tuple(m.name for m in listed if not m.votes)
    )


@lru_cache(maxsize=256)
def membership_in(data: str) -> Membership:
    """What a `members/1` entry with this ``data`` says."""
    return membership(Member(*row) for row in json.loads(data)["members"])


def is_one_step(old: Membership, new: Membership) -> bool:
    """At most one voter more or less: any two majorities then have a voter in common (4.1)."""
    return len(set(old.voters) ^ set(new.voters)) <= 1
