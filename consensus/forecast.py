"""Who would win an election now, why each other member would not, and what would be lost. Pure.

It decides nothing and has no rules of its own: it asks those of promotion.py, for every voter that could come to lead,
about the promises that the members would give by what they last said of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from consensus import hold
from consensus.cluster import Change, ClusterState, Grant
from consensus.membership import WITNESS, Member
from consensus.positions import NoPosition
from consensus.promotion import (
    LAST_PRIMARY_GRACE_MS,
    LOSS_GRACE_MS,
    Decision,
    Degrade,
    HandOver,
    Obstacle,
    Situation,
    TakeGrant,
    TurnBack,
    Wait,
    decide,
    failed_lately,
    obstacles,
    quorum_promised,
    required,
)
from consensus.quorum import majority
from consensus.record import Position
from consensus.tags import keeps_out, priority_of, unseated

PATIENT_MS = max(LAST_PRIMARY_GRACE_MS, LOSS_GRACE_MS)
"""What comes out once everybody who is up had the time to answer."""
ANSWERS = ("running", "streaming")
"""States of an observation (supervisor/observe.py) in which a node can say how far its WAL goes."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of one member."""

    connected: bool = False
    age_ms: int | None = None
    """Of what it last said of itself; None: it never did."""
    state: str = ""
    seen: Position | None = None
    """How far its WAL went then."""
    promise: Position | NoPosition | None = None
    """What it has answered the leader, or would answer by what it last said; None: nothing."""
    streams: bool = False
    """From the primary of the newest grant."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One member in an election."""

    name: str
    wins: bool
    why: str
    """Why it would win, or would not: one sentence without its name."""
    position: Position | None = None
    """As last known."""
    age_ms: int | None = None
    behind_bytes: int | None = None
    """WAL that somebody is known to have and this one lacks; None: one of the two positions is not known."""
    up: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would come out of an election."""

    winners: tuple[str, ...]
    """More than one: whoever of them comes to lead."""
    reason: str
    missing: tuple[str, ...]
    """Whose promise is needed, where nobody can win for want of one."""
    candidates: tuple[Candidate, ...]
    lost_bytes: int | None
    """WAL that somebody is known to have and a winner lacks; None: nobody would win."""
    acknowledged: bool
    """May there be acknowledged commits in it, or in what nobody here knows of?"""
    voters_up: int
    voters_needed: int


def reports_of(
    state: ClusterState, known: Mapping[str, Mapping[str, Any]], connected: frozenset[str], term: int
) -> dict[str, Report]:
    """Of every member. ``known``: `Sightings.all`; ``term``: of the leader whose promises count."""
    return {m.name: _report(m, known.get(m.name), m.name in connected, state.grant, term) for m in state.members}


def _report(
    member: Member, known: Mapping[str, Any] | None, connected: bool, grant: Grant | None, term: int
) -> Report:  # fmt: skip
    if known is None:
        return Report(connected, promise=NoPosition("it is a witness") if member.role == WITNESS else None)
    seen = known["seen"]
    same = seen.get("incarnation", member.incarnation) == member.incarnation
    epoch, lsn, state = int(seen.get("epoch", -1)), int(seen.get("lsn", 0)), str(seen.get("state", ""))
    position = Position(epoch, lsn) if same and epoch >= 0 and lsn > 0 else None
    streams = connected and same and state == "streaming" and grant is not None
    streams = streams and seen.get("epoch_of_upstream") == (grant.term if grant is not None else 0)
    promise = _promise(member, known, position, term, can_answer=connected and same)
    return Report(connected, int(known["age_ms"]), state, position, promise, streams)


def _promise(
    member: Member, known: Mapping[str, Any], position: Position | None, term: int, *, can_answer: bool
) -> Position | NoPosition | None:  # fmt: skip
    """What it has promised the leader of ``term``, else what it would promise by what it last said."""
    seen, given = known["seen"], known.get("promise")
    if given is not None and given[0] == term:
        return Position(given[1], given[2]) if given[1] >= 0 else NoPosition(str(given[3]))
    if not can_answer:
        return None
    if member.role == WITNESS:
        return NoPosition("it is a witness")
    state = str(seen.get("state", ""))
    if state not in ANSWERS:
        return NoPosition(f"its Postgres: {state or 'nothing is known of it yet'}")
    if seen.get("proven") is False:
        return NoPosition("its copy has not yet passed its proof")
    return position or NoPosition("it has told no position yet")


def forecast(
    state: ClusterState, reports: Mapping[str, Report], *, term: int, lost: frozenset[str] = frozenset(),
    leaders: Iterable[str] = (), last_known: Position | None = None,
) -> Forecast:  # fmt: skip
    """``lost``: members that are assumed to be down; ``leaders``: who may lead, else any voter that is up."""
    up = frozenset(name for name, r in reports.items() if r.connected and name not in lost)
    voters = {m.name for m in state.members if m.votes}
    needed = majority(len(voters))
    promises = {n: r.promise for n, r in reports.items() if n not in lost and r.promise is not None}
    situations = [
        _settled(Situation(me, term, state, promises, up, PATIENT_MS, last_known=last_known))
        for me in sorted(leaders or voters & up)
    ]
    decisions = [(s, decide(s)) for s in situations]
    winners = sorted({_winner(s, d) for s, d in decisions} - {""})
    waits = [d for _, d in decisions if isinstance(d, Wait)]
    missing: tuple[str, ...] = waits[0].missing if waits else ()
    reason = waits[0].reason if waits else "; ".join(sorted({_sentence(s, d) for s, d in decisions}))
    situation = situations[0] if situations else Situation("", term, state, promises, up, PATIENT_MS)
    if len(voters & up) < needed:
        silent = ", ".join(sorted(voters - up))
        reason = f"no leader: {len(voters & up)} of {len(voters)} voters are up, {needed} are needed; not {silent}"
        winners, missing = [], tuple(sorted(voters - up))
    newest = max((r.seen for r in reports.values() if r.seen is not None), default=None)
    candidates = tuple(_candidate(situation, m, reports, winners, newest, lost) for m in state.members)
    held = [p for n, p in promises.items() if n in winners and isinstance(p, Position)]
    lacks = [bytes_lacking(newest, p, state.grants) for p in held] if newest is not None else []
    kept = quorum_promised(replace(situation, state=replace(situation.state, wish_loss=False)))
    return Forecast(
        tuple(winners), reason, missing, candidates, max(lacks, default=None), state.asynchronous or not kept,
        len(voters & up), needed,
    )  # fmt: skip


def last_known(grant: Grant | None, reports: Mapping[str, Report]) -> Position | None:
    """Asynchronous mode: how far the last primary is known to have come, by what it last said."""
    seen = reports[grant.node].seen if grant is not None and grant.node in reports else None
    return seen if seen is not None and grant is not None and seen.epoch == grant.term else None


def after_a_clean_stop(reports: Mapping[str, Report], primary: str) -> dict[str, Report]:
    """In a switchover the primary delivers all it has to those who stream from it before it is gone: at least what the
    newest of their words says, whoever said it."""
    said = [r.promise for name, r in reports.items() if name == primary or r.streams]
    end = max((p for p in said if isinstance(p, Position)), default=reports[primary].promise)
    return {n: replace(r, promise=end) if r.streams else r for n, r in reports.items()}


def bytes_lacking(newest: Position, held: Position, grants: tuple[Grant, ...]) -> int:
    """How much of the WAL up to ``newest`` is not part of what is held up to ``held``.

    What the two have in common ends where ``held`` ends, or where the first epoch begins that came after its own.
    """
    ancestry = next((g.ancestry for g in reversed(grants) if any(e.epoch == newest.epoch for e in g.ancestry)), ())
    later = [e.start_lsn for e in ancestry if held.epoch < e.epoch <= newest.epoch]
    return max(0, newest.lsn - min([held.lsn, *later]))


def plain(f: Forecast) -> dict[str, Any]:
    """As JSON; positions as ``{"epoch", "lsn": "X/Y"}``."""
    rows = [
        {
            "name": c.name, "wins": c.wins, "why": c.why, "up": c.up, "age_ms": c.age_ms,
            "behind_bytes": c.behind_bytes, "position": _position_json(c.position),
        }
        for c in f.candidates
    ]  # fmt: skip
    return {
        "winners": list(f.winners), "reason": f.reason, "missing": list(f.missing), "candidates": rows,
        "lost_bytes": f.lost_bytes, "acknowledged": f.acknowledged, "voters_up": f.voters_up,
        "voters_needed": f.voters_needed,
    }  # fmt: skip


def _position_json(p: Position | None) -> dict[str, Any] | None:
    return {"epoch": p.epoch, "lsn": f"{p.lsn >> 32:X}/{p.lsn & 0xFFFFFFFF:X}"} if p is not None else None


def _settled(s: Situation) -> Situation:
    """With the sync group changed (back), if that is what the leader would do first."""
    match decide(s):
        case TurnBack(change):
            return replace(s, state=replace(s.state, change=Change(change.index, change.new, change.old)))
        case Degrade(new):
            return replace(s, state=replace(s.state, change=Change(0, s.state.group, new)))
        case _:
            return s


def _winner(s: Situation, decision: Decision) -> str:
    match decision:
        case TakeGrant():
            return s.me
        case HandOver(to):
            return to
        case _:
            return ""


def _sentence(s: Situation, decision: Decision) -> str:
    return f"{s.me} {decision.reason}" if isinstance(decision, TakeGrant) else decision.reason


def _candidate(
    s: Situation, member: Member, reports: Mapping[str, Report], winners: list[str], newest: Position | None,
    lost: frozenset[str],
) -> Candidate:  # fmt: skip
    name, known = member.name, reports.get(member.name, Report())
    wins = name in winners
    seen, behind = known.seen, None
    if newest is not None and seen is not None:
        behind = bytes_lacking(newest, seen, s.state.grants)
    why = _why(s, member, known, wins, winners) if name not in lost else "is taken to be lost"
    return Candidate(name, wins, why, known.seen, known.age_ms, behind, known.connected and name not in lost)


def _why(s: Situation, member: Member, known: Report, wins: bool, winners: list[str]) -> str:
    found = obstacles(s)
    if not known.connected and member.name not in s.promises:
        return "is not heard of" if known.age_ms is None else f"is not heard of (last {known.age_ms / 1000:.0f} s ago)"
    match found[member.name]:
        case None:
            pass
        case Obstacle.NO_SEAT if member.name in unseated(s.state):
            return f"is tagged `{keeps_out(s.state, member.name)}`: it has no seat in the sync group"
        case Obstacle.NO_SEAT if any(n == member.name for g in s.state.groups for n in g.names):
            return "has lost its state: its seat waits for the copy it makes"
        case Obstacle.NO_POSITION:
            answer = s.promises[member.name]
            return f"{Obstacle.NO_POSITION} ({answer.reason})" if isinstance(answer, NoPosition) else str(answer)
        case obstacle:
            return str(obstacle)
    if wins:
        return _why_it_wins(s, member.name, winners)
    return _why_another(s, member, winners)


def _why_another(s: Situation, member: Member, winners: list[str]) -> str:
    """Nothing is in its way, and it would not win."""
    held = {n: s.promises[n] for n, obstacle in obstacles(s).items() if obstacle is None}
    mine, best = held[member.name], max(p for p in held.values() if isinstance(p, Position))
    if not winners and hold.held(s.state, member.name):
        return "could be primary, but the cluster is paused"
    if not winners:
        return "could be primary, if what is missing were not"
    if s.state.wish_to in winners:
        return f"could be primary, but {s.state.wish_to} was asked for"
    if member.name in s.state.standing_vetoes:
        return f"could be primary, but its pre_promote hook said no ({s.state.standing_vetoes[member.name].reason})"
    if member.name in failed_lately(s.state.grants):
        return "could be primary, but did not come to open when it was last chosen"
    if mine != best:
        return f"holds all that was acknowledged, but {' or '.join(winners)} has more WAL"
    if priority_of(s.state, member.name) < max(priority_of(s.state, w) for w in winners):
        return "could be primary, but the tag `priority` of another is higher"
    return "could be primary, but the leader or the later name goes first"


def _why_it_wins(s: Situation, name: str, winners: list[str]) -> str:
    if s.state.wish_loss and not quorum_promised(replace(s, state=replace(s.state, wish_loss=False))):
        return "would be primary: data loss is accepted"
    counts = [f"{q.needed} of {len(q.group.members)}" for q in required(s.state)]
    why = f"holds all that was acknowledged ({' and '.join(counts)} of the sync group decide that)"
    others = [w for w in winners if w != name]
    return f"{why}; so does {', '.join(others)}: who comes to lead wins" if others else why
