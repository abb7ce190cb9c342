"""Who becomes primary: the rules of safety.md "Promotion", steps 1 to 3. Pure.

Election finds a leader; promotion finds a primary. Until its grant is committed the leader is a caretaker. `decide` is
asked again whenever something changed; it returns one decision with the sentence that the log, `pgr explain` and the
history show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from consensus.cluster import ClusterState, Grant, SyncGroup
from consensus.positions import NoPosition
from consensus.quorum import majority, read_quorum
from consensus.record import Position

GRACE_MS = 50
"""After a read quorum has promised: this much longer for the others, so that the best may win."""

LOSS_GRACE_MS = 10_000
"""With data loss accepted, a node that is still reading its WAL may hold more than the one that answered first."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the leader of ``term`` knows."""

    me: str
    term: int
    state: ClusterState
    """Up to the last entry of the leader's log, committed or not."""
    promises: Mapping[str, Position | NoPosition]
    """To exactly this term."""
    connected: frozenset[str]
    """Voters heard from in this term, itself included."""
    waited_ms: int
    """Since a read quorum first had promised."""
    maximum_lag_bytes: int = 1 << 20
    """Asynchronous mode: how far behind the last known end of the primary's WAL a new primary may be."""
    last_known: Position | None = None
    """Asynchronous mode: the newest position the leader has heard of the last primary."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet. ``missing``: whose promise is needed."""

    reason: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TakeGrant:
    """Commit `Promoted` for this node."""

    upper: Position
    timeline: int
    reason: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Transfer leadership: another node is to win."""

    to: str
    reason: str


Decision = Wait | TakeGrant | HandOver


def required(state: ClusterState) -> tuple[SyncGroup, int]:
    """The group whose promises count and how many of them are needed.

    Before clients were ever let in only the founder can hold an acknowledged commit: it is the only node that was ever
    granted anything. With the first `Opened`, which is committed after k of S have flushed, the sync group takes over.
    """
    if not state.was_opened:
        return SyncGroup((state.founder,), 1), 1
    if state.commit_mode == "async":
        return state.group, majority(len(state.members))
    return state.group, read_quorum(len(state.group.members), state.group.k)


def quorum_promised(s: Situation) -> bool:
    """Has a read quorum of promises with positions been reached? (`--accept-data-loss` waives it, not the promises.)"""
    group, needed = required(s.state)
    return len(_positions(s, group)) >= (1 if s.state.wish_loss else needed)


def decide(s: Situation) -> Decision:
    """The next step of the caretaker."""
    if not s.state.system_identifier:
        return Wait(f"{s.state.founder} is creating the cluster")
    group, needed = required(s.state)
    positions = _positions(s, group)
    if s.state.wish_loss:
        needed = 1
    if len(positions) < needed:
        return _not_enough(s, group, positions, needed)
    answered = all(name in s.promises for name in s.connected if name in group.members)
    silent = [n for n in s.connected & set(group.members) if n not in positions]
    if s.state.wish_loss and s.waited_ms < LOSS_GRACE_MS and silent:
        return Wait(
            "data loss was accepted; waiting a while for every connected node, so that as little as possible is lost"
        )
    if not answered and s.waited_ms < GRACE_MS:
        return Wait("a read quorum has promised; waiting a moment for the others")
    winner = _choose(s, positions, needed)
    if winner is None:
        return Wait("no node that may be primary holds every acknowledged commit")
    upper = max(positions.values())
    late = _too_far_behind(s, positions[winner])
    if late:
        return Wait(late)
    held = positions[winner]
    why = f"holds epoch {held.epoch} up to {held.lsn:X}, {len(positions)} of {needed} needed promises"
    if s.state.wish_loss:
        why += "; data loss was accepted"
    if winner != s.me:
        return HandOver(winner, f"{winner} {why}")
    return TakeGrant(upper, s.state.next_timeline(), why)


def _positions(s: Situation, group: SyncGroup) -> dict[str, Position]:
    return {n: p for n, p in s.promises.items() if n in group.members and isinstance(p, Position)}


def _not_enough(s: Situation, group: SyncGroup, positions: Mapping[str, Position], needed: int) -> Wait:
    missing = tuple(n for n in group.members if n not in positions)
    notes = []
    for name in missing:
        answer = s.promises.get(name)
        if isinstance(answer, NoPosition):
            notes.append(f"{name} has no position ({answer.reason})")
        else:
            notes.append(f"{name} has not answered")
    short = needed - len(positions)
    return Wait(
        f"no primary: {short} more of these {'is' if short == 1 else 'are'} needed, "
        "or an acknowledged commit could be lost: " + ", ".join(notes),
        missing,
    )


def _choose(s: Situation, positions: Mapping[str, Position], needed: int) -> str | None:
    """A node whose position is not behind any in some read quorum; better ones outside it may be ignored."""
    able = {n: p for n, p in positions.items() if sum(q <= p for q in positions.values()) >= needed}
    failed = _failed_lately(s.state.grants)
    fit = [n for n in able if n not in failed] or list(able)
    if not fit:
        return None
    best = max(able[n] for n in fit)
    # With quorum commit every fit node holds all that was acknowledged; without it only the best one may.
    wished = s.state.wish_to
    if wished in fit and (s.state.commit_mode != "async" or s.state.wish_loss or able[wished] == best):
        return wished
    return max(fit, key=lambda n: (able[n], n == s.me, n))


def _failed_lately(grants: tuple[Grant, ...]) -> frozenset[str]:
    """Nodes that were granted and did not come to open, since a grant was last opened."""
    failed: set[str] = set()
    for grant in reversed(grants):
        if grant.opened:
            break
        if grant.failed:
            failed.add(grant.node)
    return frozenset(failed)


def _too_far_behind(s: Situation, winner: Position) -> str:
    """Asynchronous mode only: why the best candidate may still not be promoted; empty if it may."""
    last = s.last_known
    if s.state.commit_mode != "async" or last is None or s.state.wish_loss or winner >= last:
        return ""
    behind = last.lsn - winner.lsn
    if winner.epoch == last.epoch and behind <= s.maximum_lag_bytes:
        return ""
    return (
        f"no primary: the best candidate is {behind} bytes behind the last primary, "
        f"more than maximum_lag_on_failover ({s.maximum_lag_bytes})"
    )
