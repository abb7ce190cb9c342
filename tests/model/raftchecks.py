"""The properties of Raft (thesis, figure 3.2 and 4.1), as checks of a node, of a step, of two nodes, of a history."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import NamedTuple

from consensus.membership import Membership, membership
from consensus.quorum import has_majority
from consensus.raft import Log, Raft, Role
from tests.model.explore import ViolationError
from tests.model.raftlogs import Command, commands, lists_of


class Ghost(NamedTuple):
    """What has ever happened."""

    leaders: tuple[int, ...]
    """By term: the slot of the node that led it, or -1."""
    committed: tuple[tuple[Command, int], ...] = ()
    """What some node held for committed, and the term in which it was first."""


def checked_step(before: Raft, after: Raft) -> None:
    """Of one life of a node: its term never goes back, in a term it votes once, what is committed stays committed."""
    name = after.config.me
    if after.term < before.term:
        raise ViolationError(f"terms only grow: {name} goes from term {before.term} back to {after.term}")
    if after.term == before.term and before.vote not in ("", after.vote):
        raise ViolationError(f"one vote per term: {name} voted {before.vote}, and now {after.vote!r}, in {after.term}")
    if after.commit < before.commit:
        raise ViolationError(f"state machine safety: {name} no longer holds entry {before.commit} for committed")


def check_membership(raft: Raft) -> None:
    """One change of members at a time: in any log only the newest may not be known to be committed, and any majority
    of one list shares a voter with any of the next."""
    lists = lists_of(raft.log)
    name = raft.config.me
    for (index, old), (_, new) in pairwise(lists):
        if index > raft.commit:
            raise ViolationError(f"one change at a time: the log of {name} has another one after {index}, uncommitted")
        check_overlap(membership(old).voters, membership(new).voters, name)
    again = raft.clone()
    again._look_for_members()  # what a restart would make of it
    newest = membership(lists[-1][1]) if lists else Membership(raft.config.voters)
    if not raft.members == again.members == newest or raft.settled != again.settled:
        raise ViolationError(f"the newest list is in force: {name} goes by {raft.members}, it should be {newest}")


def check_log(raft: Raft) -> None:
    """Terms never go down along a log (3.4: a leader appends in its own, which is the newest)."""
    terms = [term for term, _, _ in commands(raft.log)]
    if terms != sorted(terms):
        raise ViolationError(f"terms only grow: the log of {raft.config.me} has entries of the terms {terms}")


def check_overlap(old: tuple[str, ...], new: tuple[str, ...], name: str) -> None:
    for left in majorities(old):
        if any(not set(left) & set(right) for right in majorities(new)):
            raise ViolationError(f"majorities overlap: in the log of {name} {old} is followed by {new}")


def majorities(voters: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [c for n in range(1, len(voters) + 1) for c in combinations(voters, n) if has_majority(c, voters)]


def checked_ghost(ghost: Ghost, slot: int, raft: Raft) -> Ghost:
    """One leader per term, leader completeness, state machine safety; and what is to be remembered."""
    name, term = raft.config.me, raft.term
    log = commands(raft.log)
    if raft.role is Role.LEADER and ghost.leaders[term] != slot:
        if ghost.leaders[term] >= 0:
            raise ViolationError(f"one leader per term: a second one, {name}, leads term {term}")
        check_completeness(ghost, name, term, log)
        ghost = ghost._replace(leaders=(*ghost.leaders[:term], slot, *ghost.leaders[term + 1 :]))
    done = log[: raft.commit]
    if len(done) < raft.commit:
        raise ViolationError(f"state machine safety: {name} holds {raft.commit} entries for committed, of {len(log)}")
    for index, (mine, (theirs, _)) in enumerate(zip(done, ghost.committed, strict=False), 1):
        if mine != theirs:
            raise ViolationError(f"state machine safety: {name} commits {mine} at {index}, {theirs} was committed")
    more = tuple((command, term) for command in done[len(ghost.committed) :])
    return ghost._replace(committed=ghost.committed + more)


def check_completeness(ghost: Ghost, name: str, term: int, log: tuple[Command, ...]) -> None:
    """Only for terms after that of the commit: a winner that comes late is legal, and can do no harm."""
    for index, (command, at_term) in enumerate(ghost.committed, 1):
        if at_term < term and (index > len(log) or log[index - 1] != command):
            raise ViolationError(
                f"leader completeness: {name} leads term {term} without entry {index} {command}, "
                f"committed in term {at_term}; it has {log}"
            )


def check_log_matching(left: Log, right: Log) -> None:
    one, two = commands(left), commands(right)
    for index in range(min(len(one), len(two)), 0, -1):
        if one[index - 1][0] == two[index - 1][0]:
            if one[:index] != two[:index]:
                raise ViolationError(f"log matching: {one} and {two} agree on the term of entry {index}")
            return
