"""Quorum lost for good: the cluster is rebuilt around one node that is left, as another cluster (`pgr recover`). Pure.

This is the only thing that is done without a majority, so it is done to a cluster that nobody else is in: under a new
cluster id, with this node alone as its member. What is left of the former cluster can't be part of it: its frames are
foreign ones. It can't count for it either: terms, and with them epochs, and timelines go on far above all that it may
still give out. And when it comes back it is told to stop (`superseded`), and the history says so. DESIGN.md has the
reasoning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from consensus.changes import Refusal
from consensus.cluster import ClusterState, SyncGroup, canonical, seat_of
from consensus.clustertext import dump
from consensus.effects import Effect, Reborn, Save, SendStranger
from consensus.forecast import Report, bytes_lacking, reports_of
from consensus.former import KEPT_MAX, Former, Left
from consensus.founding import parse, stranger_message
from consensus.history import HistoryEvent, remembered
from consensus.membership import VOTER, Member, membership
from consensus.messages import HardState, Hello, PeerMessage, Snapshot
from consensus.operate import who
from consensus.operations import Operations
from consensus.positions import NoPosition
from consensus.promotion import Situation, quorum_promised, required
from consensus.quorum import majority
from consensus.reconfigure import Answer, refused
from consensus.record import Identity, NodeRecord, Position
from consensus.tags import priority_of
from consensus.write import Write
from fencing.lease import MS

if TYPE_CHECKING:
    from consensus.node import Node

TERM_GAP = 1 << 20
"""The former cluster would need so many elections to come to a term (an epoch) of the new one."""
TIMELINE_GAP = 32
"""And more promotions than this to come to a timeline of it. Each number skipped is a file in pg_wal at a promotion, so
it can't be as many as of terms. Beside it up to as many again by chance: a second node that is recovered by mistake is
to have other numbers too."""
TELL_AGAIN_MS = 1_000
REBUILT = "rebuilt"
CALL_EVERY_MS = 2_000
"""One of those who were given up is called on so often, in turn."""
NAME_DIGITS = 8


def name_of(cluster_id: str) -> str:
    """What `pgr status` calls a cluster, and what a person types to confirm."""
    return cluster_id[:NAME_DIGITS]


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A member that will be none any more, and what only it may have."""

    member: Member
    is_up: bool
    """It is a survivor too, and has nothing that this node lacks."""
    seen: Position | None
    """How far its WAL went when it was last heard of."""
    age_ms: int | None
    more_bytes: int | None
    """WAL that it had then and this node has not; None: not known."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What would come of it."""

    cluster_id: str
    survivor: str
    position: Position | None
    """LSN 0: only the epoch is known, as Postgres is not running."""
    given_up: tuple[GivenUp, ...]
    kept: bool
    """As far as this node's log tells, it has every acknowledged commit."""
    sentences: tuple[str, ...]


def foresee(
    state: ClusterState, cluster_id: str, me: str, reports: Mapping[str, Report], position: Position | None,
    survivors: Iterable[str], end: tuple[int, int],
) -> Outlook:  # fmt: skip
    """``state``: up to the last entry of the log here; ``survivors``: others that are up, none of them ahead of this
    node; ``end``: term and index of that entry."""
    up = frozenset(survivors) - {me}
    given_up = tuple(
        _given_up(state, m, reports.get(m.name, Report()), position, m.name in up)
        for m in state.members
        if m.name != me
    )
    promises: dict[str, Position | NoPosition] = {} if position is None else dict.fromkeys({me, *up}, position)
    asked = Situation(me, 0, replace(state, wish_loss=False), promises, up, 0)
    kept = not state.asynchronous and quorum_promised(asked)
    said = [_of_commits(state, me, up, kept), *map(_of_member, given_up), _of_the_unknown(state, end)]
    if me in state.fenced:
        said.insert(0, f"a person has fenced {me}; that is over then, and its Postgres is started")
    if position is None:
        said.insert(0, f"the Postgres of {me} can't say how far its WAL goes: see `pgr status`, and wait if it starts")
    return Outlook(cluster_id, me, position, given_up, kept, tuple(s for s in said if s))


def _given_up(state: ClusterState, member: Member, known: Report, mine: Position | None, is_up: bool) -> GivenUp:
    more = None
    if known.seen is not None and mine is not None and mine.lsn:
        more = bytes_lacking(known.seen, mine, state.grants)
    return GivenUp(member, is_up, known.seen, known.age_ms, more)


def _of_commits(state: ClusterState, me: str, up: frozenset[str], kept: bool) -> str:
    if state.asynchronous:
        return "acknowledged commits may be lost: the cluster is asynchronous, the primary alone acknowledged them"
    counts = []
    for q in required(state):
        here = sorted((up | {me}) & q.seated)
        counts.append(f"{q.group.k} of {', '.join(q.group.names)} acknowledged each, so {q.needed} of them have all; "
                      f"here {'are' if len(here) > 1 else 'is'} {', '.join(here) or 'none of them'}")  # fmt: skip
    words = "; ".join(counts)
    if not kept:
        return f"acknowledged commits may be lost: {words}"
    grant = state.grant
    if grant is not None and grant.node == me:
        return f"no acknowledged commit is lost that this node knows of: {me} was the last primary"
    return f"no acknowledged commit is lost that this node knows of: {words}"


def _of_member(one: GivenUp) -> str:
    name = one.member.name
    if not one.member.has_data:
        return ""
    if one.is_up:
        return f"{name} is up and has nothing that is not here; it is to be let in anew"
    heard = "" if one.age_ms is None else f" when last heard of, {one.age_ms / 1000:.0f} s ago"
    if one.seen is None:
        return f"how far the WAL of {name} went is not known"
    at = f"epoch {one.seen.epoch} up to {one.seen.lsn >> 32:X}/{one.seen.lsn & 0xFFFFFFFF:X}"
    more = "" if one.more_bytes is None else f", {one.more_bytes} bytes more than are here"
    return f"{name} had {at}{more}{heard}; what it wrote after that is lost, nobody here knows how much"


def _of_the_unknown(state: ClusterState, end: tuple[int, int]) -> str:
    grant = state.grant
    last = f"the last primary it tells of is {grant.node}, of term {grant.term}" if grant else "it tells of no primary"
    return (
        f"the log of this node ends with entry {end[1]} of term {end[0]}; {last}. A primary that the others had after "
        "that is not known here, and all that was committed under it is lost"
    )


def plain(outlook: Outlook) -> dict[str, Any]:
    """As JSON; positions as ``[epoch, lsn]``."""
    rows = [
        {
            "name": g.member.name, "role": g.member.role, "up": g.is_up, "raft": g.member.raft,
            "postgres": g.member.postgres, "http": g.member.http, "age_ms": g.age_ms, "more_bytes": g.more_bytes,
            "seen": list(g.seen) if g.seen is not None else None,
        }
        for g in outlook.given_up
    ]  # fmt: skip
    return {
        "cluster": name_of(outlook.cluster_id), "cluster_id": outlook.cluster_id, "survivor": outlook.survivor,
        "position": list(outlook.position) if outlook.position is not None else None,
        "kept": outlook.kept, "given_up": rows, "sentences": list(outlook.sentences),
    }  # fmt: skip


# -- may it be done? ---------------------------------------------------------------------------------------------------


def unfit(state: ClusterState, identity: Identity, record: NodeRecord) -> Refusal | None:
    """Why no cluster can be rebuilt around this node; None: it can."""
    me = state.member(identity.name)
    if me is None or me.incarnation != identity.incarnation:
        return Refusal(78, f"{identity.name} is no member of the cluster", "run it on a member that is left")
    if not me.has_data:
        return Refusal(78, f"{me.name} is a witness: it has no data", "run it on a member with a Postgres")
    if not state.was_opened:
        reason = "the cluster was never open: there is nothing in it"
        return Refusal(78, reason, "begin anew with empty data directories")
    if record.marker or not record.history:
        reason = f"the data directory of {me.name} is of no use: a {record.marker or 'copy'} was under way in it"
        return Refusal(78, reason, "run it on another member; if there is none, restore a backup into a new cluster")
    if not priority_of(state, me.name):
        reason = f"{me.name} is tagged `nofailover` (or `priority` 0): it would never be primary"
        return Refusal(78, reason, "take the tag out of its pgr.toml, have it noted while there is a leader, or run it "
                       "on another member")  # fmt: skip
    return None


def not_lost(state: ClusterState, me: str, leader: str, connected: frozenset[str]) -> Refusal | None:
    """Why the quorum is not lost; None: it is, as far as can be seen from here."""
    if leader:
        return Refusal(75, f"the cluster has a leader, {leader}: no quorum is lost", "see `pgr explain`")
    voters = {m.name for m in state.members if m.votes}
    up, needed = voters & (connected | {me}), majority(len(voters))
    if len(up) >= needed:
        reason = f"{len(up)} of {len(voters)} voters are up ({', '.join(sorted(up))}): no quorum is lost"
        return Refusal(75, reason, "see `pgr explain` for what is missing; `pgr failover` may help")
    return None


def request(node: Node, body: dict[str, Any], now_ns: int) -> Answer:
    """``{dry_run, confirm, survivors: [name], by}``, of this node itself: there is nobody to forward it to. Done when
    the process has begun anew; that is never answered."""
    state, raft = node.tip(), node.raft
    connected = frozenset(m.name for m in state.members if node.sightings.is_connected(m.name, now_ns))
    reports = reports_of(state, node.sightings.all(now_ns), connected, raft.term)
    mine = reports.get(node.me, Report()).promise
    position = mine if isinstance(mine, Position) else None
    survivors = [str(name) for name in body.get("survivors") or ()]
    end = (raft.log.last_term, raft.log.last_index)
    outlook = foresee(state, node.identity.cluster_id, node.me, reports, position, survivors, end)
    no = not_lost(state, node.me, raft.leader, connected | frozenset(survivors))  # whom `pgr` reaches is up, too
    no = no or unfit(state, node.identity, node.record)
    if no is None and now_ns < raft.hold_until_ns:
        no = Refusal(75, "a lease that this node has acknowledged may still run", "ask again in a moment", final=False)
    refusal = None if no is None else refused(no.code, no.reason, no.hint, final=no.final)
    if body.get("dry_run"):
        said = None if refusal is None else refusal[1]
        shown = plain(outlook) | {"leader": raft.leader}
        return True, {"dry_run": True, "from": "", "to": node.me, "refusal": said, "outlook": shown}
    if refusal is not None:
        return refusal
    if str(body.get("confirm")) != name_of(node.identity.cluster_id):
        hint = f"the name of this cluster is {name_of(node.identity.cluster_id)}"
        return refused(64, f"{body.get('confirm')!r} is not the cluster's name", hint)
    write = rebuild(
        node.identity, raft.hard_state, node.record, end[1], state, outlook,
        cluster_id=node.token(), chance=int(node.token()[:8], 16), at=node.wall_clock(), by=who(body),
    )  # fmt: skip
    node.effects.extend((Save(write), Reborn()))
    return True, {"name": node.me, "term": raft.term}


# -- done --------------------------------------------------------------------------------------------------------------


def rebuild(
    identity: Identity, hard: HardState, record: NodeRecord, last_index: int, state: ClusterState, outlook: Outlook, *,
    cluster_id: str, chance: int, at: str, by: str,
) -> Write:  # fmt: skip
    """All of it in one save: before it this node is of the former cluster, after it of the new one. ``state``: up to
    ``last_index``, committed or not, as it may have been committed by those who are gone; ``chance``: any number."""
    listed = state.member(identity.name)
    if listed is None:
        raise ValueError(f"{identity.name} is no member")  # `unfit` has said so
    me = listed._replace(role=VOTER, aim=VOTER)
    others = [m for m in state.members if m.name != me.name]
    term = max(hard.term, record.promised, state.granted) + TERM_GAP
    timeline = state.next_timeline() - 1 + TIMELINE_GAP + chance % TIMELINE_GAP
    former = Former(identity.cluster_id, tuple(Left(m.name, m.incarnation, m.raft) for m in others), timeline, term)
    new = replace(
        state, cluster_id=cluster_id, members=(me,), group=SyncGroup((seat_of(me),), 1), change=None,
        removed=(*state.removed, *(seat_of(m) for m in others)), wish_to="", wish_loss=False,
        wished=True,  # a person asked for it: in pause too
        fenced=(), reinits=(), vetoes=(), tagged=tuple(t for t in state.tagged if t.seat == seat_of(me)),
        ops=Operations(), former=(*state.former, former)[-KEPT_MAX:],
        grants=(*state.grants[:-1], *(g._replace(failed=g.failed or "the quorum was lost") for g in state.grants[-1:])),
        history=remembered(state.history, _told(outlook, cluster_id, term, at, by)),
    )  # fmt: skip
    charter = canonical({
        "members": [list(me)], "founder": me.name, "commit": state.commit_mode, "profile": state.profile,
        "settings": json.loads(state.settings),
    })  # fmt: skip
    index = last_index + 1
    return Write(
        hard=HardState(term, "", index, hard.released),
        snapshot=Snapshot(index, term, dump(new), membership(new.members)),
        # What a copy had to be proven by is gone. Postgres itself lets nobody in before the copy is consistent.
        record=record._replace(proof=None),
        identity=identity._replace(cluster_id=cluster_id, charter=charter),
    )


def _told(outlook: Outlook, cluster_id: str, term: int, at: str, by: str) -> HistoryEvent:
    names = ", ".join(g.member.name for g in outlook.given_up) or "nobody"
    asked = f", asked for by {by}" if by else ""
    text = (
        f"has rebuilt the cluster {name_of(outlook.cluster_id)} as {name_of(cluster_id)}{asked}; given up: {names}; "
        + "; ".join(outlook.sentences)
    )
    fields = {"by": by, "former": outlook.cluster_id, "kept": outlook.kept, "given_up": names}
    return HistoryEvent(at, "recovered", term, outlook.survivor, text, canonical(fields))


# -- what comes back ---------------------------------------------------------------------------------------------------


def superseded(
    node: Node, cluster_id: str, src: str, incarnation: int, message: PeerMessage, now_ns: int
) -> list[Effect]:  # fmt: skip
    """A frame with a foreign cluster id. Of a former cluster of this one: whoever sent it is told to stop, in the name
    of that cluster, and the history says that it is there. Not before this cluster was open: one that never comes to
    write must not end those who could."""
    former = next((f for f in node.cluster.former if f.cluster_id == cluster_id), None)
    if former is None or src == node.me:
        return []
    said = _hello(message)
    if said.get("kind") in ("stranger", REBUILT):
        rival(node, src, cluster_id, now_ns)
        return []
    left = next((one for one in former.left if (one.name, one.incarnation) == (src, incarnation)), None)
    address = str(said.get("raft", "")) or (left.raft if left is not None else "")
    due_ns, _ = node.superseded.get(("superseded", src), (0, False))
    if not address or now_ns < due_ns or not _was_open(node):
        return []
    words = f"of the former cluster {name_of(cluster_id)} is up, and is told to stop"
    _note(node, "superseded", src, cluster_id, words, now_ns)
    return [_end_of(node, former, src, incarnation, address, message.term)]


def call_on(node: Node, now_ns: int) -> list[Effect]:
    """Of the leader, now and then: one of those who were given up is told what has become of its cluster. It may not
    know of this node any more (removed there), or have rebuilt the cluster too, and then would never come by itself.
    Only told, not stopped: this node may be the copy of one whose cluster is well."""
    here = {m.raft for m in node.cluster.members}
    left = [(f, one) for f in node.cluster.former for one in f.left if one.raft not in here and one.name != node.me]
    if not left or now_ns < node.call_at_ns or not node.leads() or not _was_open(node):
        return []
    node.call_at_ns = now_ns + CALL_EVERY_MS * MS
    node.calls += 1
    former, one = left[node.calls % len(left)]
    text = canonical({"kind": REBUILT, "as": node.identity.cluster_id})
    return [SendStranger(one.name, 0, one.raft, Hello(node.raft.term, text), former.cluster_id)]  # 0: any life of it


def rival(node: Node, src: str, cluster_id: str, now_ns: int) -> None:
    """``src`` says that it goes on with the data of ``cluster_id``, this cluster or a former one of it, elsewhere."""
    words = f"has rebuilt the cluster {name_of(cluster_id)} too: there are two clusters now; stop one of them"
    _note(node, "rival", src, cluster_id, words, now_ns)


def _was_open(node: Node) -> bool:
    """Has this cluster let clients in since it was rebuilt?"""
    return any(g.opened and g.term > node.cluster.former[-1].term for g in node.cluster.grants)


def _end_of(node: Node, former: Former, name: str, incarnation: int, address: str, term: int) -> Effect:
    text = stranger_message(*_given_up_words(node, former, name), final=True)
    return SendStranger(name, incarnation, address, Hello(max(1, term), text), former.cluster_id)


def _note(node: Node, kind: str, src: str, cluster_id: str, words: str, now_ns: int) -> None:
    """Once of each, in the history."""
    due_ns, noted = node.superseded.get((kind, src), (0, False))
    if not noted and node.raft.leader and now_ns >= due_ns:
        note = {"kind": kind, "term": node.raft.term, "node": src, "text": words, "at": node.wall_clock()}
        node.propose_or_forward("event/1", note | {"fields": {"former": cluster_id}}, now_ns)
        noted = True
    node.superseded[kind, src] = (now_ns + TELL_AGAIN_MS * MS, noted)


def _given_up_words(node: Node, former: Former, name: str) -> tuple[str, str]:
    """Reason and hint for one that is told to stop."""
    old, new = name_of(former.cluster_id), name_of(node.identity.cluster_id)
    return (
        f"the quorum of {old} was lost for good, and {node.me} has rebuilt it as {new}, without {name}",
        f"its data is untouched; to have it in {new}: move DIR/raft away and start it again (it is copied anew, what "
        "it has now is kept in DIR/salvage)",
    )


def _hello(message: PeerMessage) -> dict[str, Any]:
    """What a Hello says; of anything else, or garbage, nothing."""
    if not isinstance(message, Hello):
        return {}
    try:
        return dict(parse(message.data))
    except ValueError:
        return {}
