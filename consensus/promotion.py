"""Who becomes primary: the rules of safety.md "Promotion", steps 1 to 3. Pure.

Election finds a leader; promotion finds a primary. Until its grant is committed the leader is a caretaker. `decide` is
asked again whenever something changed; it returns one decision with the sentence that the log, `pgr explain` and the
history show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from consensus import hold
from consensus.cluster import Change, ClusterState, Grant, SyncGroup, Veto, seat_of
from consensus.membership import VOTER, WITNESS, Member
from consensus.positions import NoPosition
from consensus.quorum import majority, read_quorum
from consensus.record import Position
from consensus.tags import priority_of
from consensus.upstreams import is_held_back

GRACE_MS = 50
"""After a read quorum has promised: this much longer for the others, so that the best may win."""

LOSS_GRACE_MS = 10_000
"""With data loss accepted, a node that is still reading its WAL may hold more than the one that answered first."""

LAST_PRIMARY_GRACE_MS = 10_000
"""With nobody's promise but the last primary's: so long for those who are connected and have no position yet."""

ABSENT_GRACE_MS = 1_000
SILENT_GRACE_MS = 10_000
"""Not strict, and too few could flush: so long before the sync group shrinks to them. The others are not connected
(their leases have ended already), or they are and have no position yet: restarting, being copied."""

VETO_PAUSE_MS = 10_000
"""Every pre_promote hook that could be asked has said no: so long before the next one is asked again."""


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
    """Members heard from lately, itself included."""
    waited_ms: int
    """Since a read quorum first had promised."""
    last_known: Position | None = None
    """Asynchronous mode: the newest position the leader has heard of the last primary."""
    in_vain: frozenset[str] = frozenset()
    """Whom this node has handed over to since the newest grant, and here it leads again."""
    cleared: bool = True
    """There is no pre_promote hook, or it has let this node pass in this term."""
    vetoed_ms: int | None = None
    """Since the hook said no here, in this term; None: it has not."""
    comeback_ms: int = 0
    """This leader was the last primary, its Postgres went down, and it is to come back itself: so long it is waited for
    (comeback.py); 0: it is not."""


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


@dataclass(frozen=True, slots=True)
class TurnBack:
    """Let the open change of the sync group go the other way, then decide again."""

    change: Change
    reason: str


@dataclass(frozen=True, slots=True)
class Degrade:
    """Not strict: begin a change of the sync group to those who are there, then decide again."""

    new: SyncGroup
    reason: str


@dataclass(frozen=True, slots=True)
class AskHook:
    """This node is to win: its parent runs the pre_promote hook first, then decide again."""

    reason: str


Decision = Wait | TakeGrant | HandOver | TurnBack | Degrade | AskHook


@dataclass(frozen=True, slots=True)
class Quorum:
    """So many promises with a position, from the seats of one group."""

    group: SyncGroup
    seated: frozenset[str]
    """Who fills a seat of it: the promise of another incarnation does not count."""
    needed: int


def required(state: ClusterState) -> tuple[Quorum, ...]:
    """The promises without which nobody may be promoted; of two groups while the sync group is being changed.

    Before clients were ever let in only the founder can hold an acknowledged commit: it is the only node that was ever
    granted anything. With the first `Opened`, which is committed after k of S have flushed, the sync group takes over.
    """
    if not state.was_opened:
        group = SyncGroup(tuple(seat_of(m) for m in state.members if m.name == state.founder), 1)
        return (Quorum(group, state.seated(group), 1),)
    return tuple(Quorum(group, state.seated(group), _needed(state, group)) for group in state.groups)


def _needed(state: ClusterState, group: SyncGroup) -> int:
    every = read_quorum(len(group.members), group.k)
    if not group.asynchronous:
        return every
    # A witness has promised by having no Postgres.
    witnesses = sum(m.role == WITNESS for m in state.members)
    return min(every, max(1, majority(sum(m.votes for m in state.members)) - witnesses))


def quorum_promised(s: Situation) -> bool:
    """Is every acknowledged commit on a node that has promised? (`--accept-data-loss` waives the number of promises,
    not the promises.)"""
    return _last_primary(s) is not None or _have_promised(s, required(s.state))


def _have_promised(s: Situation, quorums: tuple[Quorum, ...]) -> bool:
    if s.state.wish_loss:
        return bool(_held(s, quorums))
    return all(len(_positions(s, q)) >= q.needed for q in quorums)


def _last_primary(s: Situation) -> Position | None:
    """The promise of the primary of the newest grant, with WAL of that grant: it makes up for a read quorum.

    Its own flush was part of every acknowledgement under that grant, and when it was promoted it held all those before.
    Without this, once two of three have begun to be rewound or copied to follow it, nobody could ever win again. WAL of
    that grant shows that its data is what it was then (the model finds nothing without, but it knows of no backups); if
    it never wrote any, the grant's upper bound does.
    """
    grant = s.state.grant
    if grant is None or not any(grant.node in q.seated for q in required(s.state)):
        return None
    promise = s.promises.get(grant.node)
    if not isinstance(promise, Position):
        return None
    # Granted anew and nothing written yet: it has what it was chosen for, and nobody else may have written since.
    unused = not grant.opened and promise >= grant.upper
    return promise if promise.epoch == grant.term or unused else None


def decide(s: Situation) -> Decision:
    """The next step of the caretaker."""
    if not s.state.system_identifier:
        return _to_be_created(s)
    again = hold.stays(s.state)
    if again:
        s = replace(s, state=replace(s.state, wish_to=again))
    quorums = required(s.state)
    if not quorum_promised(s):
        return _not_enough(s, quorums)
    if s.comeback_ms > 0 and not isinstance(s.promises.get(s.me), Position):
        return Wait(f"the Postgres of {s.me} went down and is started again in place (on_primary_crash = restart)")
    seated = frozenset[str]().union(*(q.seated for q in quorums))
    positions = _held(s, quorums)
    silent = [n for n in s.connected & seated if n not in positions]
    if s.state.wish_loss and s.waited_ms < LOSS_GRACE_MS and silent:
        return Wait(
            "data loss was accepted; waiting a while for every connected node, so that as little as possible is lost"
        )
    if s.waited_ms < GRACE_MS and not all(name in s.promises for name in s.connected & seated):
        return Wait("a read quorum has promised; waiting a moment for the others")
    if s.waited_ms < LAST_PRIMARY_GRACE_MS and silent and not _have_promised(s, quorums):
        # Its data may have been put back from a backup. Who still reads its WAL could tell.
        return Wait(f"only the last primary has promised; waiting a while for {', '.join(sorted(silent))}")
    change = s.state.change
    if change is not None and is_better_turned_back(s.state, change, _can_flush(s), lambda turned: _wins(s, turned)):
        if s.waited_ms < GRACE_MS:
            return Wait("waiting a moment for the others, else the change of the sync group is turned back")
        return TurnBack(change, "those who are up can do without the change, and not with it")
    restarts = hold.waits_for(s.state)
    if restarts and not isinstance(s.promises.get(restarts), Position):
        return Wait(f"{restarts} is being restarted in place and is waited for")
    winner = _choose(s)
    if winner is None:
        return Wait(f"no node that may be primary holds every acknowledged commit{_but_for_their_tag(s)}")
    held = hold.held(s.state, winner)
    return Wait(held) if held else _won(s, winner, silent)


def _won(s: Situation, winner: str, silent: list[str]) -> Decision:
    """``silent``: seated, connected and without a position."""
    quorums = required(s.state)
    positions = _held(s, quorums)
    late = _too_far_behind(s, positions[winner])
    if late:
        return Wait(late)
    why = f"holds epoch {positions[winner].epoch} up to {positions[winner].lsn:X}, {_promised(s, quorums)}"
    if s.state.wish_loss:
        without = sorted({seat.name for q in quorums for seat in q.group.members} - positions.keys())
        why += "; data loss was accepted" + (f": without the promise of {', '.join(without)}" if without else "")
    vetoes = s.state.standing_vetoes
    if winner in vetoes and s.vetoed_ms is not None and s.vetoed_ms < VETO_PAUSE_MS:
        return Wait(f"no primary: {_vetoed(vetoes)}; {winner} is tried again {VETO_PAUSE_MS // 1000} s after the last")
    if vetoes:
        why += f"; before that {_vetoed(vetoes)}"
    if winner != s.me:
        return HandOver(winner, f"{winner} {why}")
    if not s.cleared:  # before the group shrinks to a node that may be told no
        return AskHook(f"the pre_promote hook of {s.me} is asked; it {why}")
    smaller = _degraded(s)
    if smaller is not None:
        return _smaller_first(s, smaller, bool(silent))
    return TakeGrant(max(positions.values()), s.state.next_timeline(), why)


def _vetoed(vetoes: Mapping[str, Veto]) -> str:
    return ", ".join(f"the pre_promote hook of {name} said no ({veto.reason})" for name, veto in vetoes.items())


def _degraded(s: Situation) -> SyncGroup | None:
    """Not strict: who of the group would be left, if that is too few to let clients in."""
    state = s.state
    if state.setting("strict") or state.change is not None or not state.was_opened:
        return None
    seated = state.seated(state.group)
    able = {name for name in seated if isinstance(s.promises.get(name), Position)}
    smaller = state.rule(seat for seat in state.group.members if seat.name in able)
    return smaller if len(able) < state.group.k else None


def _smaller_first(s: Situation, smaller: SyncGroup, silent: bool) -> Wait | Degrade:
    """``silent``: some of the others are connected."""
    there = f"only {', '.join(smaller.names)} of {', '.join(s.state.group.names)} can flush commits"
    if s.waited_ms < (SILENT_GRACE_MS if silent else ABSENT_GRACE_MS):
        return Wait(f"{there}; waiting a while for the others, else the sync group shrinks")
    return Degrade(smaller, f"is degraded: {there}, and the cluster is not strict")


def _to_be_created(s: Situation) -> Wait:
    founder = s.state.founder
    if founder == s.me or founder in s.connected:
        return Wait(f"{founder} is creating the cluster")
    return Wait(
        f"no primary: {founder}, which was to create the cluster's data, is not connected: bring it back, or begin "
        "anew with empty data directories"
    )


def is_better_turned_back(
    state: ClusterState, change: Change, up: frozenset[str],
    has_winner: Callable[[ClusterState], bool] = lambda state: True,
) -> bool:  # fmt: skip
    """Would the reverse of the open change let somebody win, or open, where the change itself does not?

    While it is open an election respects both groups, and it may go on in either direction without losing anything. It
    matters who can be primary (only who has a seat in the group that is to come) and whose flush is waited for.
    """
    back = replace(state, change=Change(change.index, change.new, change.old))

    def prospects(state: ClusterState) -> tuple[bool, bool]:
        group = state.wanted_group
        return has_winner(state), len(state.seated(group) & up) >= group.k

    return prospects(back) > prospects(state)


def _can_flush(s: Situation) -> frozenset[str]:
    """Connected is not enough: who has said that it has no position flushes nothing for anybody yet."""
    return frozenset(n for n in s.connected if not isinstance(s.promises.get(n), NoPosition))


def _wins(s: Situation, state: ClusterState) -> bool:
    """Would anybody win if this were the state?"""
    return _choose(replace(s, state=state)) is not None


def _promised(s: Situation, quorums: tuple[Quorum, ...]) -> str:
    counts = [(len(_positions(s, q)), q.needed) for q in quorums]
    if s.state.grant is not None and not s.state.wish_loss and any(here < needed for here, needed in counts):
        return f"{s.state.grant.node}, the last primary, has promised"
    return " and ".join(f"{here} of {needed}" for here, needed in counts) + " needed promises"


def _held(s: Situation, quorums: tuple[Quorum, ...]) -> dict[str, Position]:
    return {name: p for q in quorums for name, p in _positions(s, q).items()}


def _positions(s: Situation, quorum: Quorum) -> dict[str, Position]:
    return {n: p for n, p in s.promises.items() if n in quorum.seated and isinstance(p, Position)}


def _not_enough(s: Situation, quorums: tuple[Quorum, ...]) -> Wait:
    seats = sorted({seat for q in quorums for seat in q.group.members})
    short = max(q.needed - len(_positions(s, q)) for q in quorums)
    last = s.state.grant.node if s.state.grant is not None else ""
    missing, notes = [], []
    for name, incarnation in seats:
        answer = s.promises.get(name)
        member = s.state.member(name)
        if member is None or member.incarnation != incarnation:
            notes.append(f"{name} has lost its state, its place waits for the copy it makes")
        elif isinstance(answer, NoPosition):
            notes.append(f"{name} has no position ({answer.reason})")
        elif answer is None:
            notes.append(f"{name} has not answered")
        else:
            continue
        if name == last and short > 1:
            notes[-1] += " (the last primary: its promise alone would do)"
        missing.append(name)
    return Wait(
        f"no primary: {short} more of these {'is' if short == 1 else 'are'} needed, "
        "or an acknowledged commit could be lost: " + ", ".join(notes),
        tuple(missing),
    )


class Obstacle(StrEnum):
    """What keeps a member from being primary."""

    WITNESS = "is a witness: it has no Postgres"
    LEARNER = "is a learner: it has no vote, and a primary has to lead"
    NO_SEAT = "has no seat in the sync group that counts"
    FENCED = "is fenced: a person keeps its Postgres down"
    NOFAILOVER = "is tagged `nofailover` (or `priority` 0): it never becomes primary"
    DELAYED = "replays late (`recovery_min_apply_delay`): it becomes primary only by `--to`"
    TOO_EARLY = "counts only once the cluster was open for the first time"
    SILENT = "has not answered"
    NO_POSITION = "has no position"
    BEHIND = "may lack commits that were acknowledged"


def obstacles(s: Situation) -> dict[str, Obstacle | None]:
    """Of every member: why it can't be primary now; None: it can.

    Only a voter, because it has to lead, and only one with a seat in the group whose names it would put in force: a
    primary is always in S. Its position must not be behind any in some read quorum of each group; better ones outside
    may be ignored.
    """
    quorums = required(s.state)
    positions, seats = _held(s, quorums), s.state.seated(s.state.wanted_group)

    def of(member: Member) -> Obstacle | None:
        if member.role != VOTER:
            return Obstacle.WITNESS if member.role == WITNESS else Obstacle.LEARNER
        if member.name not in seats:
            return Obstacle.NO_SEAT
        if member.name in s.state.fenced:
            return Obstacle.FENCED
        position = positions.get(member.name)
        if position is None:
            promise = s.promises.get(member.name)
            if promise is None:
                return Obstacle.SILENT
            return Obstacle.TOO_EARLY if isinstance(promise, Position) else Obstacle.NO_POSITION
        if not _holds_all(s, quorums, position):
            return Obstacle.BEHIND
        # Whoever creates the cluster has to open it, too: until then nobody else has data.
        if not s.state.was_opened:
            return None
        if is_held_back(s.state, member.name):
            return Obstacle.DELAYED
        return None if priority_of(s.state, member.name) else Obstacle.NOFAILOVER

    return {member.name: of(member) for member in s.state.members}


def _but_for_their_tag(s: Situation) -> str:
    found = obstacles(s).items()
    able = [name for name, obstacle in found if obstacle is Obstacle.NOFAILOVER]
    late = [name for name, obstacle in found if obstacle is Obstacle.DELAYED]
    words = [f"; {', '.join(able)} would do, but for the tag `nofailover`"] * bool(able)
    return "".join([*words, *[f"; {name} replays late: `pgr failover --to {name}` would do" for name in late]])


def _choose(s: Situation) -> str | None:
    """Of those that nothing keeps from it (`obstacles`) the one with the newest WAL."""
    positions = _held(s, required(s.state))
    able = {name: positions[name] for name, obstacle in obstacles(s).items() if obstacle is None}
    fit = _least_refused(s.state, list(able))
    if not s.state.asynchronous:
        fit = [n for n in fit if n not in s.in_vain] or fit
    if not fit:
        return None
    best = max(able[n] for n in fit)
    # With quorum commit every fit node holds all that was acknowledged; without it only the best one may.
    wished = s.state.wish_to or (s.me if s.comeback_ms > 0 else "")
    if wished in fit and (not s.state.asynchronous or s.state.wish_loss or able[wished] == best):
        return wished
    leaving = {m.name for m in s.state.members if m.aim != m.role}
    return max(fit, key=lambda n: (able[n], n not in leaving, priority_of(s.state, n), n == s.me, n))


def _least_refused(state: ClusterState, able: list[str]) -> list[str]:
    """Who neither failed with a grant nor was vetoed since a primary was last open. If nobody: with no veto among them
    all, else who was refused least often, so that each gets its turn."""
    failed, vetoes = failed_lately(state.grants), state.standing_vetoes
    fit = [n for n in able if n not in failed and n not in vetoes]
    if fit or not any(n in vetoes for n in able):
        return fit or able
    times = {n: failed.count(n) + (vetoes[n].times if n in vetoes else 0) for n in able}
    return [n for n in able if times[n] == min(times.values())]


def _holds_all(s: Situation, quorums: tuple[Quorum, ...], position: Position) -> bool:
    last = _last_primary(s)
    if s.state.wish_loss or (last is not None and position >= last):
        return True
    behind = [sum(other <= position for other in _positions(s, q).values()) for q in quorums]
    return all(n >= q.needed for n, q in zip(behind, quorums, strict=True))


def failed_lately(grants: tuple[Grant, ...]) -> list[str]:
    """Nodes that were granted and did not come to open, since a grant was last opened; one for each time."""
    failed: list[str] = []
    for grant in reversed(grants):
        if grant.opened:
            break
        if grant.failed:
            failed.append(grant.node)
    return failed


def _led_to(grant: Grant | None, position: Position) -> bool:
    """Is it a point of the history on which this grant's primary went on?"""
    ancestry = grant.ancestry if grant is not None else ()
    later = [e.start_lsn for e in ancestry if e.epoch > position.epoch]
    return any(e.epoch == position.epoch for e in ancestry) and bool(later) and position.lsn <= min(later)


def _too_far_behind(s: Situation, winner: Position) -> str:
    """Asynchronous mode only: why the best candidate may still not be promoted; empty if it may."""
    last = s.last_known
    if not s.state.asynchronous or last is None or s.state.wish_loss or winner >= last:
        return ""
    behind, most = last.lsn - winner.lsn, s.state.setting("maximum_lag_on_failover")
    if (winner.epoch == last.epoch or _led_to(s.state.grant, winner)) and behind <= most:
        return ""
    return (
        f"no primary: the best candidate is {behind} bytes behind the last primary, "
        f"more than maximum_lag_on_failover ({most})"
    )
