"""What people ask of the leader: switchover, failover, members, settings. Answers are the body of `admin.answer`.

Pure, like the node it works on: a request is checked against what is agreed and known, and becomes an entry of the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consensus import changes, reconfigure
from consensus.changes import Refusal
from consensus.cluster import canonical
from consensus.effects import Send
from consensus.membership import VOTER
from consensus.messages import ForwardResp
from consensus.promotion import Wait, decide
from consensus.reconfigure import Answer, Asked, refused

if TYPE_CHECKING:
    from consensus.node import Node


def handle(node: Node, src: str, request_id: str, name: str, body: dict[str, Any], now_ns: int) -> None:
    """At the leader, for the node ``src``: the answer now, or once the parent has given its word."""
    if name == "config.set":
        answer = reconfigure.ask(node, Asked(src, request_id, body), now_ns)
    else:
        answer = carry_out(node, name, body, now_ns)
    if answer is not None:
        _reply(node, src, request_id, answer)


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
        case "switchover" | "failover":
            return _move(node, name, str(body.get("to") or ""), now_ns, accept_loss=bool(body.get("accept_data_loss")))
        case "member.add" | "member.remove" | "member.replace":
            return _member(node, name, body, now_ns)
        case _:
            return refused(64, f"unknown request {name}", "use a pgr of the same version")


def _move(node: Node, name: str, to: str, now_ns: int, *, accept_loss: bool) -> Answer:
    notes, grant, member = node.notes, node.granted(), node.cluster.member(to)
    if to and (member is None or member.role != VOTER):
        names = ", ".join(m.name for m in node.cluster.members if m.role == VOTER)
        what = f"no member is named {to}" if member is None else f"{to} is a {member.role}"
        return refused(64, what, f"those who can be primary: {names}")
    if notes is None or grant is None or not grant.opened:
        if name == "switchover" or notes is None or grant is not None:
            sentence = notes.sentence if notes is not None else ""
            error = f"there is no primary to move away from: {sentence or 'not open yet'}"
            return refused(75, error, "see `pgr status`; `pgr failover` acts without a primary")
        return _failover(node, to, now_ns, accept_loss=accept_loss)
    if to == node.me:
        return refused(64, f"{to} is the primary already", "name another member")
    target = to or node.sightings.furthest((m for m in node.cluster.members if m.role == VOTER), now_ns)
    problem = node.sightings.unfit(target, node.raft.term, now_ns)
    if problem:
        return refused(75, problem, "see `pgr status`; wait until the standby streams again")
    node.wish(name, target, now_ns, accept_loss=False)
    notes.handing_over_to = target
    return True, {"from": node.me, "to": target, "term": node.raft.term}


def _failover(node: Node, to: str, now_ns: int, *, accept_loss: bool) -> Answer:
    """There is no primary, and this leader has not chosen one yet."""
    notes = node.notes
    if notes is None or notes.granted_index:
        return refused(75, "a new primary has just been chosen", "see `pgr status`; ask again if need be")
    decision = decide(node.situation(notes, now_ns))
    if isinstance(decision, Wait) and decision.missing and not accept_loss:
        hint = "bring them back; `--accept-data-loss` goes on without, and what only they hold is then lost"
        return refused(78, decision.reason, hint)
    node.wish("failover", to, now_ns, accept_loss=accept_loss)
    return True, {"from": "", "to": to, "term": node.raft.term}


def _member(node: Node, name: str, body: dict[str, Any], now_ns: int) -> Answer:
    if node.granted() is None:
        hint = "see `pgr status`; members change only while there is a primary"
        return refused(75, "there is no primary at the moment", hint)
    tip, facts, who = node.tip(), node.facts(now_ns), str(body["name"])
    if name == "member.add":
        answer = changes.aim_at(tip, facts, who, str(body["role"]))
    else:
        answer = changes.remove(tip, facts, who, str(body.get("by") or ""))
    if isinstance(answer, Refusal):
        return refused(answer.code, answer.reason, answer.hint)
    if not node.propose_change(answer, now_ns):
        return refused(75, "another change is under way", "ask again in a moment")
    return True, {"name": who, "term": node.raft.term}
