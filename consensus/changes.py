"""What the leader changes next: one member, or the sync group; and whom it lets in or lets go. Pure.

Every change is one entry of the log, proposed only by a leader that is primary and open, and only when the one before
is settled. What is wanted stands in the log too (`Member.aim`), so the next leader goes on where this one stopped. The
order is that of safety.md: a copy first, then the vote, then the seat in the sync group; and backwards for leaving.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from consensus.cluster import Change, ClusterState, Grant, Seat, SyncGroup, seat_of
from consensus.former import was_left
from consensus.founding import Greeting
from consensus.membership import GONE, LEARNER, VOTER, WITNESS, Member
from consensus.promotion import is_better_turned_back
from consensus.quorum import majority
from consensus.tags import keeps_out, unseated, wanted_rule

PATIENCE_MS = 10_000
"""A change that has been open for this long is reverted if a new seat is not connected."""

DEGRADE_MS = 5_000
"""Not strict: too few of the sync group stream for this long, and it shrinks to those that do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the leader knows of the members, by name; itself included in all of them."""

    me: str
    connected: frozenset[str]
    caught_up: frozenset[str]
    """Have (nearly) the whole log and acknowledged a recent round."""
    copied: frozenset[str]
    """Stream from this leader's Postgres, and their copy has passed its proof."""
    waited_ms: int = 0
    """Since the open change of the sync group was seen first."""
    short_ms: int = 0
    """How long fewer than k of the sync group have streamed; 0: enough do."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """An entry for the log."""

    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MakeWay:
    """Give the lead up, and with it an epoch that can't open."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the asker is told. ``final``: asking again will not help."""

    code: int
    reason: str
    hint: str
    final: bool = True


def at_rest(state: ClusterState) -> bool:
    """Nothing to change, whatever the members' state. Not strict: whether enough stream is looked at all the time."""
    watched = not state.setting("strict") and state.group.k > 1
    return is_as_wanted(state) and not watched


def is_as_wanted(state: ClusterState) -> bool:
    """Everybody is what it is to be, and so is the sync group."""
    settled = state.change is None and wanted_rule(state) == state.group
    return settled and all(m.aim == m.role for m in state.members)


# -- the end of a reign ----------------------------------------------------------------------------------------------


def ended(grant: Grant, body: Mapping[str, Any], *, planned: bool) -> Proposal:
    """What the log is told of it. ``body``: of `node.fenced`. ``closed_ms``, by the clock of this host: so long before
    this entry Postgres here ceased to take writes (the history's write gap begins there)."""
    fields = {"closed_ms": int(body["closed_ms"])} if "closed_ms" in body else {}
    at, reason = str(body["at"]), str(body["reason"])
    if not planned:
        lost = body.get("lease_lost") is True
        return Proposal(
            "failed/1", {"term": grant.term, "reason": reason, "at": at, "fields": fields, "lease_lost": lost}
        )
    text = "stopped its Postgres " + ("cleanly" if body.get("clean") is True else "by force") + f" for a {reason}"
    entry = {"kind": "closed", "term": grant.term, "node": grant.node, "text": text, "at": at, "fields": fields}
    return Proposal("event/1", entry)


# -- the leader's next step ------------------------------------------------------------------------------------------


def next_change(state: ClusterState, facts: Facts) -> Proposal | None:
    """The next entry on the way to what is wanted; None: all is as it should be, or something has to happen first."""
    if state.change is not None:
        return _reverted(state, facts)
    goal = wanted_seats(state, facts)
    if goal != state.group and len(_holders(state, facts, goal)) >= goal.k:  # else commits would wait for the others
        joins = sorted(set(goal.members) - set(state.group.members))
        leaves = sorted(set(state.group.members) - set(goal.members))
        words = [f"{s.name} joins" for s in joins] + [f"{s.name} leaves" for s in leaves]
        return group_change(state.group, goal, facts.me, "sync group", f"is changed: {', '.join(words) or _k(goal)}")
    smaller = degraded(state, facts)
    if smaller is not None:
        only = f"for {DEGRADE_MS // 1000} s only {', '.join(smaller.names)} of {', '.join(state.group.names)} streamed"
        return group_change(state.group, smaller, facts.me, "sync group", f"is degraded: {only}")
    for member in state.members:
        proposal = _next_of(state, facts, member)
        if proposal is not None:
            return proposal
    return None


def _k(goal: SyncGroup) -> str:
    return "commits wait for no standby any more" if goal.asynchronous else f"{goal.k} acknowledge a commit"


def degraded(state: ClusterState, facts: Facts) -> SyncGroup | None:
    """Not strict: those of the group that still stream, if they are too few and have been for so long."""
    if state.setting("strict") or facts.short_ms < DEGRADE_MS:
        return None
    left = _holders(state, facts, state.group)
    return state.rule(s for s in state.group.members if s.name in left) if len(left) < state.group.k else None


def _reverted(state: ClusterState, facts: Facts) -> Proposal | None:
    change = state.change
    if change is None or facts.waited_ms < PATIENCE_MS or facts.me not in state.seated(change.old):
        return None
    silent = sorted({s.name for s in set(change.new.members) - set(change.old.members)} - facts.connected)
    if silent:
        why = f"{', '.join(silent)} not connected, {PATIENCE_MS // 1000} s after it began"
        return turned_back(change, facts.me, why)
    if is_better_turned_back(state, change, facts.copied):
        return turned_back(change, facts.me, "too few of the new group stream, and enough of the old one do")
    return None


def turned_back(change: Change, me: str, why: str) -> Proposal:
    """The reverse of an open change."""
    return group_change(change.new, change.old, me, "sync group", f"is changed back: {why}")


def wanted_seats(state: ClusterState, facts: Facts) -> SyncGroup:
    """The sync group as it should be: every voter with a proven copy, and whoever sits already and is not to leave; but
    for those whose tag says that nobody waits for them (`tags.unseated`).

    The primary is in it whatever its aim, which may be older than its grant.
    """
    seats: list[Seat] = []
    for seat in state.group.members:
        member = state.member(seat.name)
        if member is None or not _is_to_sit(state, facts, member):
            continue
        lost = member.incarnation != seat.incarnation
        if (member.role == VOTER and not lost) or (lost and not _ready(state, facts, member)):
            seats.append(seat)  # of one that lost its state the place is kept until its copy is proven
    taken = {seat.name for seat in seats}
    seats += [seat_of(m) for m in state.members if m.name not in taken and _ready(state, facts, m)]
    return state.rule(seats)


def _is_to_sit(state: ClusterState, facts: Facts, member: Member) -> bool:
    if member.name == facts.me:
        return True
    return not (leaves(state, member) or member.aim in (LEARNER, WITNESS) or member.name in unseated(state))


def _ready(state: ClusterState, facts: Facts, member: Member) -> bool:
    return member.role == VOTER and _is_to_sit(state, facts, member) and member.name in facts.copied


def leaves(state: ClusterState, member: Member) -> bool:
    """Is it to be removed now? With a successor named: once that one has its vote and its seat."""
    if member.aim == GONE:
        return True
    if not member.aim.startswith(f"{GONE}:"):
        return False
    successor = state.member(member.aim.partition(":")[2])
    return successor is not None and (successor.role == WITNESS or seat_of(successor) in state.group.members)


def _next_of(state: ClusterState, facts: Facts, member: Member) -> Proposal | None:
    if member.aim != member.role and _may_lose(state, facts, member):
        return None  # others may have gone since this one was asked to
    if leaves(state, member) and seat_of(member) not in state.group.members:
        others = [m for m in state.members if m != member]
        return list_change(others, facts.me, "removed", member.name, "is no member any more")
    if member.role == LEARNER and member.aim in (VOTER, WITNESS):
        fit = member.name in facts.caught_up and (member.aim == WITNESS or member.name in facts.copied)
        if fit:
            return _becomes(state, facts, member, member.aim)
    if member.role == VOTER and member.aim == LEARNER and seat_of(member) not in state.group.members:
        return _becomes(state, facts, member, LEARNER)
    return None


def _becomes(state: ClusterState, facts: Facts, member: Member, role: str) -> Proposal:
    changed = [m._replace(role=role) if m == member else m for m in state.members]
    return list_change(changed, facts.me, role, member.name, f"is a {role} now")


# -- requests --------------------------------------------------------------------------------------------------------


def admit(state: ClusterState, facts: Facts, greeting: Greeting) -> Proposal | Refusal:
    """May this node in? As a learner; a vote and a seat come later. A lost incarnation gives way to the new one."""
    name = greeting.name
    seat, known = Seat(name, greeting.incarnation), state.member(name)
    if seat in state.removed:
        hint = "to bring this host back, start it with an empty data directory and --join"
        return Refusal(78, f"{name} was removed from the cluster", hint)
    if known is None and not greeting.joins and not was_left(state.former, name):
        hint = "start it with --join HOST:PORT of a member if it is to become one"
        return Refusal(78, f"{name} is not a member of this cluster", hint)
    if known is not None and name in facts.connected:
        # Not final: one that was killed a moment ago still counts as connected.
        hint = "give this one another --name, or stop the other one"
        return Refusal(75, f"another node named {name} is up and is a member", hint, final=False)
    if greeting.adopts:
        hint = "move its data directory away: it gets a copy of the primary's"
        return Refusal(78, f"{name} brings a Postgres of its own, which can not become part of this cluster", hint)
    if not _may_admit(state):
        return Refusal(75, "the cluster has something to finish first", "it is asked again", final=False)
    aim = greeting.aim if known is None or known.aim.startswith(GONE) else known.aim
    new = Member(name, greeting.incarnation, greeting.raft, greeting.postgres, greeting.http, LEARNER, aim)
    members = [*(m for m in state.members if m.name != name), new]
    text = "is let in" if known is None else "has lost its state and is let in again"
    return list_change(members, facts.me, "joined", name, text)


def settled(state: ClusterState) -> bool:
    """May a change begin? Never before clients were let in for the first time: until then only the founder counts."""
    grant = state.grant
    return state.change is None and grant is not None and grant.opened and not grant.failed


def _may_admit(state: ClusterState) -> bool:
    """Also while the newest epoch is not open yet: it may be just this node's copy that it waits for."""
    grant = state.grant
    return state.was_opened and state.change is None and grant is not None and not grant.failed


def while_closed(
    state: ClusterState, facts: Facts, granted_index: int, commit: int, closed_ms: int
) -> Proposal | MakeWay | None:
    """Its epoch may not be able to open, and nobody may touch the names of one that is not proven: the sync group is
    changed (back) for the next one, and this one makes way. ``granted_index``: of its grant; ``commit``: of the log."""
    change = state.change
    if change is None:
        return unblocks(state, facts) if closed_ms >= PATIENCE_MS else None
    for_the_next = granted_index < change.index <= commit
    if for_the_next or (facts.waited_ms >= PATIENCE_MS and is_better_turned_back(state, change, facts.copied)):
        return MakeWay("makes way: too few of the sync group can flush, and for the next primary it is another")
    return None


def unblocks(state: ClusterState, facts: Facts) -> Proposal | None:
    """The newest epoch can't open, as too few of the sync group can flush: what lets the next one.

    A group of two, one of them has lost its state, and the primary was started anew meanwhile: without this the copy
    that could take the lost place has to wait for the opening, and the opening for the copy (found by tests/sim).
    """
    if not _may_admit(state) or len(_holders(state, facts, state.group)) >= state.group.k:
        return None
    return next_change(state, facts)


def aim_at(state: ClusterState, facts: Facts, name: str, aim: str) -> Proposal | Refusal:
    """`pgr member add`: let a member that is here become a voter (witness), or keep it a learner."""
    member = state.member(name)
    if member is None:
        hint = f"start it first: pgr-supervise --name {name} --join HOST:PORT of a member"
        return Refusal(64, f"no member is named {name}", hint)
    if aim not in (VOTER, LEARNER, WITNESS):
        return Refusal(64, f"there is no role {aim}", f"one of {VOTER}, {WITNESS}, {LEARNER}")
    if member.has_data is (aim == WITNESS):
        what = "has a Postgres" if member.has_data else "has no Postgres"
        hint = "remove it and start it anew, with or without --witness"
        return Refusal(78, f"{name} {what}: it can't become a {aim}", hint)
    if aim == LEARNER and (refusal := _is_primary(facts, name) or _may_lose(state, facts, member)):
        return refusal
    return _aims(state, facts, member, aim, f"is to be a {aim}")


def remove(state: ClusterState, facts: Facts, name: str, successor: str = "") -> Proposal | Refusal:
    """`pgr member remove`, and `replace` with a successor that is a member already."""
    member = state.member(name)
    names = ", ".join(m.name for m in state.members)
    if member is None:
        return Refusal(64, f"no member is named {name}", f"members: {names}")
    if successor:
        other = state.member(successor)
        if other is None or successor == name:
            hint = f"start it first: pgr-supervise --name {successor} --join HOST:PORT of a member"
            return Refusal(64, f"{successor} is no other member", hint)
        if other.has_data is not member.has_data:
            hint = "name a member of the same kind"
            return Refusal(78, f"{successor} can't take the place of {name}: only one of them is a witness", hint)
        if other.name in unseated(state):
            tag = keeps_out(state, successor)
            reason = f"{successor} can't take the place of {name}: its tag `{tag}` keeps it out of the sync group"
            return Refusal(78, reason, "take the tag out of its pgr.toml first, or name another")
        if other.aim not in (VOTER, WITNESS):
            reason = f"{successor} can't take the place of {name}: it is not to have a vote"
            return Refusal(78, reason, f"first let it become one: pgr member add {successor}")
    if refusal := _is_primary(facts, name) or (_may_lose(state, facts, member) if not successor else None):
        return refusal
    aim = f"{GONE}:{successor}" if successor else GONE
    text = f"is to be replaced by {successor}" if successor else "is to be removed"
    return _aims(state, facts, member, aim, text)


def _is_primary(facts: Facts, name: str) -> Refusal | None:
    return Refusal(75, f"{name} is the primary", "first move it: `pgr switchover`") if name == facts.me else None


def _may_lose(state: ClusterState, facts: Facts, member: Member) -> Refusal | None:
    """Why the cluster can't do without this vote or this copy now; None if it can."""
    voters = [m for m in state.members if m.votes and m != member]
    live = [m.name for m in voters if m.name in facts.connected]
    if member.votes and len(live) < majority(len(voters)):
        hint = "bring the others back first"
        reason = f"without {member.name} {len(live)} of {len(voters)} voters are up, {majority(len(voters))} are needed"
        return Refusal(78, reason, hint)
    if seat_of(member) in state.group.members:
        rest = state.rule(s for s in state.group.members if s != seat_of(member))
        return _needed(member, len(_holders(state, facts, rest)), rest.k)
    return None


def _needed(member: Member, left: int, k: int) -> Refusal | None:
    if left >= k:
        return None
    reason = f"{member.name} holds a copy that is needed: without it {left} are left, and {k} must"
    return Refusal(78, f"{reason} have every commit", "bring the others back first")


def spare(state: ClusterState, facts: Facts, member: Member) -> Refusal | None:
    """Why writes would wait while this copy is away for a time, its seat kept; None: they would not."""
    if seat_of(member) not in state.group.members:
        return None
    return _needed(member, len(_holders(state, facts, state.group) - {member.name}), state.group.k)


def reinit(state: ClusterState, facts: Facts, name: str, source: str = "") -> Proposal | Refusal:
    """`pgr reinit`: a standby's copy is made anew; ``source``: of this one, else of the primary."""
    member = state.member(name)
    if member is None or not member.has_data:
        return _without_postgres(state, name)
    if name == facts.me:
        return Refusal(78, f"{name} is the primary: its copy is the one that counts", "first move it: `pgr switchover`")
    if name in state.fenced:
        return Refusal(75, f"{name} is fenced: it would not start its new copy", f"first `pgr unfence {name}`")
    if state.reinit_of(name) is not None:
        return Refusal(75, f"{name} is being copied anew already", "see `pgr status`")
    if refusal := spare(state, facts, member):
        return refusal
    body = {"node": name, "incarnation": member.incarnation}
    if not source:
        return Proposal("reinit/1", body)
    return _unfit_source(state, facts, name, source) or Proposal("reinit/1", body | {"source": source})


def _unfit_source(state: ClusterState, facts: Facts, name: str, source: str) -> Refusal | None:
    other = state.member(source)
    if other is None or not other.has_data:
        return _without_postgres(state, source)
    if source == name:
        return Refusal(64, f"{name} can't be copied from itself", "name another, or nobody: the primary's is taken")
    if source not in facts.copied:
        hint = "name one that streams, or nobody: the primary's is taken"
        return Refusal(75, f"{source} does not stream from the primary, or its copy is not proven yet", hint)
    return None


def fence(state: ClusterState, facts: Facts, name: str, *, force: bool) -> Proposal | Refusal:
    """`pgr fence` of a standby, or (``force``) of whatever it is."""
    member = state.member(name)
    if member is None or not member.has_data:
        return _without_postgres(state, name)
    refusal = None if force else spare(state, facts, member)
    if refusal is not None:
        hint = f"{refusal.hint}; `--force` does it nevertheless, and writes then wait for the others"
        return Refusal(refusal.code, refusal.reason, hint)
    return Proposal("fence/1", {"node": name, "down": True})


def _without_postgres(state: ClusterState, name: str) -> Refusal:
    what = f"no member is named {name}" if state.member(name) is None else f"{name} has no Postgres"
    return Refusal(64, what, f"those with a Postgres: {', '.join(m.name for m in state.members if m.has_data)}")


def _holders(state: ClusterState, facts: Facts, group: SyncGroup) -> frozenset[str]:
    """Those who fill their seat of ``group`` and can flush a commit now: up is not enough."""
    return state.seated(group) & facts.copied


def _aims(state: ClusterState, facts: Facts, member: Member, aim: str, text: str) -> Proposal | Refusal:
    if not settled(state):
        return Refusal(75, "the cluster has something to finish first", "see `pgr status`; ask again", final=False)
    changed = [m._replace(aim=aim) if m == member else m for m in state.members]
    return list_change(changed, facts.me, "member", member.name, text)


# -- entries ---------------------------------------------------------------------------------------------------------


def list_change(members: Iterable[Member], me: str, kind: str, node: str, text: str) -> Proposal:
    """``me`` is unused by the state; it tells people who decided."""
    rows = [list(m) for m in sorted(members)]
    return Proposal("members/1", {"members": rows, "kind": kind, "node": node, "text": text, "fields": {"by": me}})


def group_change(old: SyncGroup, new: SyncGroup, me: str, kind: str, text: str) -> Proposal:
    def plain(group: SyncGroup) -> list[Any]:
        return [[list(seat) for seat in group.members], group.k, group.asynchronous]

    return Proposal("change/1", {"old": plain(old), "new": plain(new), "kind": kind, "node": me, "text": text})
