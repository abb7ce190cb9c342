"""What people ask of the leader: switchover, failover, members, settings. Answers are the body of `admin.answer`.

Pure, like the node it works on: a request is checked against what is agreed and known, and becomes an entry of the log.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from consensus import changes, operate, reconfigure, recovery
from consensus.changes import Refusal
from consensus.cluster import ClusterState, canonical
from consensus.effects import Send
from consensus.forecast import (
    Forecast,
    Report,
    after_a_clean_stop,
    bytes_lacking,
    forecast,
    last_known,
    plain,
    reports_of,
)
from consensus.membership import VOTER
from consensus.messages import ForwardResp
from consensus.operate import who
from consensus.promotion import Decision, Obstacle, Wait, decide
from consensus.reconfigure import Answer, Asked, refused
from consensus.record import Position
from consensus.succession import seated, successor
from consensus.tags import keeps_out, priority_of, unseated

if TYPE_CHECKING:
    from consensus.node import Node


def handle(node: Node, src: str, request_id: str, name: str, body: dict[str, Any], now_ns: int) -> None:
    """At the leader, for the node ``src``: the answer now, or once the parent has given its word."""
    if name in ("config.set", "pause", "resume"):
        body = body if name == "config.set" else operate.pausing(name, body)
        answer = reconfigure.ask(node, Asked(src, request_id, body), now_ns)
    elif name == "recover" and src == node.me:  # of this very node: nobody may ask it from elsewhere
        answer = recovery.request(node, body, now_ns)
    else:
        answer = carry_out(node, name, body, now_ns)
    if answer is not None:
        _reply(node, src, request_id, answer)

MOVES = ("switchover", "failover")


def checked(node: Node, token: str, body: dict[str, Any], now_ns: int) -> None:
    """What the primary's Postgres says to settings that are to be set."""
    found = reconfigure.checked(node, token, body, now_ns)
    if found is not None:
        asked, answer = found
        _reply(node, asked.src, asked.request_id, answer)


def _reply(node: Node, src: str, request_id: str, answer: Answer) -> None:
    ok, body = answer
    if src == node.me:
        node.tell("admin.answer", {"ok": ok, **body}, request_id)
    else:
        node.effects.append(Send(src, ForwardResp(node.raft.term, request_id, ok, canonical(body))))


def carry_out(node: Node, name: str, body: dict[str, Any], now_ns: int) -> Answer:
    match name:
        case "propose":
            node.propose_or_forward(str(body["kind"]), body["body"], now_ns)
            return True, {}
        case "switchover" if body.get("at") and not body.get("dry_run"):
            ok, answer = _move(node, name, body, now_ns, act=False)
            return operate.schedule(node, name, body, now_ns) if ok else (ok, answer)
        case "switchover" | "failover":
            return _dry(node, name, body, now_ns) if body.get("dry_run") else _move(node, name, body, now_ns, act=True)
        case "member.add" | "member.remove" | "member.replace":
            return _member(node, name, body, now_ns)
        case "fence":
            return _fence(node, body, now_ns)
        case "unfence":
            return _unfence(node, body, now_ns)
        case "reinit":
            return _reinit(node, body, now_ns)
        case name if name in operate.REQUESTS:
            return operate.request(node, name, body, now_ns)
        case _:
            return refused(64, f"unknown request {name}", "use a pgr of the same version")


def without_leader(node: Node, name: str, body: dict[str, Any], now_ns: int) -> Answer:
    """At a node that knows of no leader: nothing can be decided without a majority, and who is missing is said."""
    voters = [m.name for m in node.cluster.members if m.votes]
    silent = [v for v in voters if not node.sightings.is_connected(v, now_ns)]
    seen = f"this node hears of {len(voters) - len(silent)} of {len(voters)} voters"
    error = "the cluster has no leader at the moment: " + seen + (f", not of {', '.join(silent)}" if silent else "")
    hint = "see `pgr explain`; a majority of the voters must be up and reach each other, or nothing can be decided"
    refusal = refused(75, error, hint)
    return _foretold(node, name, body, refusal, now_ns) if name in MOVES and body.get("dry_run") else refusal


def _dry(node: Node, name: str, body: dict[str, Any], now_ns: int) -> Answer:
    """What would come of it: the same way to the same answer, and nothing is done."""
    return _foretold(node, name, body, _move(node, name, body, now_ns, act=False), now_ns)


def _foretold(node: Node, name: str, body: dict[str, Any], answer: Answer, now_ns: int) -> Answer:
    ok, said = answer
    found = _outcome(node, name, body, now_ns)
    grant = node.granted()
    move = {"from": grant.node if grant is not None else "", "to": str(body.get("to") or said.get("to") or "")}
    return True, {"dry_run": True, **move, "refusal": None if ok else said, "forecast": plain(found)}


def _outcome(node: Node, name: str, body: dict[str, Any], now_ns: int) -> Forecast:
    """Of a switchover everybody takes part, the primary after a clean stop; else whoever is up, as in any election."""
    state, reports = _known(node, now_ns)
    to, accept_loss = str(body.get("to") or ""), bool(body.get("accept_data_loss"))
    state = replace(state, wish_to=to, wish_loss=name == "failover" and accept_loss, wished=True)
    leaders = [node.me] if node.notes is not None and node.granted() is None else []
    primary = node.granted()
    if primary is not None:
        target, _ = successor(node, to, now_ns)
        state, leaders = replace(state, wish_to=target, wish_loss=False), []
        reports = after_a_clean_stop(reports, primary.node)
    return forecast(
        state, reports, term=node.raft.term, leaders=leaders, last_known=last_known(state.grant, reports)
    )  # fmt: skip


def _known(node: Node, now_ns: int) -> tuple[ClusterState, dict[str, Report]]:
    state = node.tip()
    up = frozenset(m.name for m in state.members if node.sightings.is_connected(m.name, now_ns))
    known = node.sightings.all(now_ns)
    # As primary what was promised is from before the grant.
    told = node.notes.told() if node.notes is not None and node.granted() is None else {}
    for name, promise in told.items():
        known.setdefault(name, {"seen": {}, "age_ms": 0})["promise"] = list(promise)
    return state, reports_of(state, known, up, node.raft.term)


def _move(node: Node, name: str, body: dict[str, Any], now_ns: int, *, act: bool) -> Answer:
    to, accept_loss = str(body.get("to") or ""), bool(body.get("accept_data_loss"))
    notes, grant, member = node.notes, node.granted(), node.cluster.member(to)
    if to and (member is None or member.role != VOTER):
        names = ", ".join(m.name for m in node.cluster.members if m.role == VOTER)
        what = f"no member is named {to}" if member is None else f"{to} is a {member.role}"
        return refused(64, what, f"those who can be primary: {names}")
    if to and not priority_of(node.cluster, to):
        hint = "name another, or take the tag out of its pgr.toml and reload it (SIGHUP)"
        return refused(78, f"{to} {Obstacle.NOFAILOVER}", hint)
    if notes is None or grant is None or not grant.opened:
        if name == "switchover" or notes is None or grant is not None:
            sentence = notes.sentence if notes is not None else ""
            error = f"there is no primary to move away from: {sentence or 'not open yet'}"
            return refused(75, error, "see `pgr explain`; `pgr failover` acts without a primary")
        return _failover(node, to, body, now_ns, act=act, accept_loss=accept_loss)
    if to == node.me:
        return refused(64, f"{to} is the primary already", "name another member")
    if to in node.cluster.fenced:
        return refused(78, f"{to} is fenced: a person keeps its Postgres down", f"first `pgr unfence {to}`")
    if to and to not in seated(node):
        tagged = to in unseated(node.cluster)
        why = f"its tag `{keeps_out(node.cluster, to)}` keeps it out" if tagged else "its copy is not proven yet"
        hint = "name another, or take the tag out of its pgr.toml" if tagged else "see `pgr status`; ask again then"
        return refused(78 if tagged else 75, f"{to} has no seat in the sync group: {why}", hint)
    target, problem = successor(node, to, now_ns)
    if problem:
        return refused(75, problem, "see `pgr status`; wait until the standby streams again")
    if act:
        node.wish(name, target, now_ns, accept_loss=False, by=who(body))
        notes.handing_over_to = target
    return True, {"from": node.me, "to": target, "term": node.raft.term}


def _failover(node: Node, to: str, body: dict[str, Any], now_ns: int, *, act: bool, accept_loss: bool) -> Answer:
    """There is no primary, and this leader has not chosen one yet."""
    notes = node.notes
    if notes is None or notes.granted_index:
        return refused(75, "a new primary has just been chosen", "see `pgr status`; ask again if need be")
    if to in unseated(node.cluster) - seated(node):
        why = f"its tag `{keeps_out(node.cluster, to)}` keeps it out, and it gets one from a primary only"
        return refused(78, f"{to} has no seat in the sync group: {why}", "name another, or nobody")
    decision = decide(node.situation(notes, now_ns))
    stuck = isinstance(decision, Wait) and bool(decision.missing)
    if stuck and not accept_loss:
        hint = "bring them back; `--accept-data-loss` goes on without, and what only they hold is then lost"
        return refused(78, decision.reason, hint)
    if act:
        given_up = _given_up(node, decision, to, now_ns) if accept_loss else ""
        node.wish("failover", to, now_ns, accept_loss=accept_loss, by=who(body), given_up=given_up)
    return True, {"from": "", "to": to, "term": node.raft.term}


def _given_up(node: Node, decision: Decision, to: str, now_ns: int) -> str:
    """What the history keeps of a loss that a person accepts: whose promise is missing, and how far they were ahead."""
    if not isinstance(decision, Wait) or not decision.missing:
        return "nothing that is known of"
    state, reports = _known(node, now_ns)
    rest = [r.promise for n, r in reports.items() if to in ("", n)]
    best = max((p for p in rest if isinstance(p, Position)), default=None)
    words = []
    for name in decision.missing:
        of = reports.get(name, Report())
        seen, age_ms = of.seen, of.age_ms
        if seen is None or best is None or age_ms is None:
            words.append(f"what only {name} has, nobody knows how much")
        else:
            more = bytes_lacking(seen, best, state.grants)
            words.append(f"what only {name} has ({more} bytes when last heard of, {age_ms / 1000:.0f} s before)")
    return "; ".join(words)


def _member(node: Node, name: str, body: dict[str, Any], now_ns: int) -> Answer:
    if node.granted() is None:
        hint = "see `pgr status`; members change only while there is a primary"
        return refused(75, "there is no primary at the moment", hint)
    tip, facts, whom = node.tip(), node.facts(now_ns), str(body["name"])
    if name == "member.add":
        answer = changes.aim_at(tip, facts, whom, str(body["role"]))
    else:
        answer = changes.remove(tip, facts, whom, str(body.get("by") or ""))
    if isinstance(answer, Refusal):
        return refused(answer.code, answer.reason, answer.hint, final=answer.final)
    if not node.propose_change(answer, now_ns):
        return refused(75, "another change is under way", "see `pgr status`; ask again in a moment", final=False)
    return True, {"name": whom, "term": node.raft.term}


# -- a node's Postgres kept down, a copy made anew ---------------------------------------------------------------------


def _fence(node: Node, body: dict[str, Any], now_ns: int) -> Answer:
    """The primary is moved first; a standby that is needed is fenced by force only."""
    name, force, notes = str(body["name"]), bool(body.get("force")), node.notes
    tip = node.tip()
    if name in tip.fenced:
        return True, {"name": name, "term": node.raft.term}
    grant, target, problem = node.granted(), "", ""
    if notes is None or grant is None or not grant.opened:
        problem = "there is no primary at the moment, and without this node there may be none to come"
    elif name == node.me:
        target, problem = successor(node, "", now_ns)
        problem = problem and f"{name} is the primary, and nobody can take over: {problem}"
    if problem and not force:
        return refused(78, problem, "bring another one up first; `--force` does it nevertheless: no node may be left")
    answer = changes.fence(tip, node.facts(now_ns), name, force=force)
    if isinstance(answer, Refusal):
        return refused(answer.code, answer.reason, answer.hint)
    _propose(node, answer, body, now_ns)
    if notes is not None and target and not problem:
        node.wish("switchover", target, now_ns, accept_loss=False, by=who(body))
        notes.handing_over_to = target
    return True, {"name": name, "term": node.raft.term}


def _unfence(node: Node, body: dict[str, Any], now_ns: int) -> Answer:
    name = str(body["name"])
    if node.tip().member(name) is None:
        return refused(64, f"no member is named {name}", f"fenced: {', '.join(node.tip().fenced) or 'nobody'}")
    _propose(node, changes.Proposal("fence/1", {"node": name, "down": False}), body, now_ns)
    return True, {"name": name, "term": node.raft.term}


def _reinit(node: Node, body: dict[str, Any], now_ns: int) -> Answer:
    name, grant = str(body["name"]), node.granted()
    if grant is None or not grant.opened:
        return refused(75, "there is no primary to copy from at the moment", "see `pgr explain`; ask again then")
    answer = changes.reinit(node.tip(), node.facts(now_ns), name, str(body.get("from") or ""))
    if isinstance(answer, Refusal):
        return refused(answer.code, answer.reason, answer.hint)
    _propose(node, answer, body, now_ns)
    return True, {"name": name, "term": node.raft.term}


def _propose(node: Node, proposal: changes.Proposal, body: dict[str, Any], now_ns: int) -> None:
    node.propose_or_forward(proposal.kind, proposal.body | {"by": who(body), "at": node.wall_clock()}, now_ns)
