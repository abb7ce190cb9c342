"""Positions and term histories (safety.md "Words", "Follow"): whose WAL contains whose. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from consensus.record import EpochStart, Position

Ancestry = tuple[EpochStart, ...]
"""The epochs a copy of the data went through, oldest first, each with the LSN at which it begins."""


@dataclass(frozen=True, slots=True)
class NoPosition:
    """This node cannot say how far its WAL goes; a promise without a position counts for nothing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Attach:
    """The node may name the primary as its upstream, once ``history`` is on disk."""

    history: Ancestry


@dataclass(frozen=True, slots=True)
class Diverged:
    """The node holds WAL that the primary does not have: it must be rewound first."""

    lsn: int
    """Where the primary's history left this node's epoch."""
    lost_bytes: int
    reason: str


def position_of(
    history: Ancestry, flushed_lsn: int, newest_timeline: int, proof: Position | None
) -> Position | NoPosition:
    """The position of a node whose WAL no longer grows.

    ``newest_timeline`` is read from the files of pg_wal; ``proof`` is what a clone must have passed.
    """
    counted = [e for e in history if e.start_lsn < flushed_lsn]
    if not counted:
        return NoPosition("the term history of this node has no entry for its WAL")
    newest = counted[-1]
    # Promoted, and killed before a byte was written on the new timeline: its first file is a copy of what came before.
    begun = any(e.start_lsn == flushed_lsn and e.timeline == newest_timeline for e in history)
    if newest.timeline != newest_timeline and not begun:
        return NoPosition(
            f"the newest WAL is on timeline {newest_timeline}, the term history says {newest.timeline} "
            f"(epoch {newest.epoch})"
        )
    position = Position(newest.epoch, flushed_lsn)
    if proof is not None and position < proof:
        return NoPosition(f"the clone of this node has not yet passed {proof.epoch}/{proof.lsn:X}")
    return position


def is_of_its_history(history: Ancestry, flushed_lsn: int, newest_timeline: int) -> bool:
    """May a clone that has not passed its proof yet, and so has no position, follow to get there? Only with WAL of the
    history that it was given: a copy of a standby that had gone another way would attach by its LSNs alone."""
    return isinstance(position_of(history, flushed_lsn, newest_timeline, None), Position)


def divergence(ancestry: Ancestry, history: Ancestry, lsn: int) -> Attach | Diverged:
    """May a node with this term history, whose WAL (flushed or replayed) ends at ``lsn``, follow ``ancestry``?

    Only if its newest epoch is in the primary's history and it has nothing beyond the point where that history left
    this epoch. Postgres itself does not refuse: it counts such a standby as having flushed (safety.md, promotion 6).
    """
    counted = [e for e in history if e.start_lsn < lsn] or list(history[:1])
    if not counted:
        return Diverged(0, 0, "this node has no term history")
    mine = counted[-1]
    if mine not in ancestry:
        return Diverged(0, 0, f"epoch {mine.epoch} (timeline {mine.timeline}) is not in the history of the primary")
    at = ancestry.index(mine)
    later = ancestry[at + 1 :]
    # The least of all: an epoch that was granted and never wrote a byte may begin after the one that replaced it.
    switch = min((e.start_lsn for e in later), default=lsn)
    if lsn > switch:
        lost = lsn - switch
        return Diverged(switch, lost, f"WAL of epoch {mine.epoch} goes on {lost} bytes after {switch:X}")
    return Attach(ancestry)
