"""Who is no member, or was not heard of at this address before: what a node does with a Hello. Pure, like the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus import changes, recovery
from consensus.addressbook import Entry as Address
from consensus.changes import Proposal, Refusal
from consensus.cluster import Seat
from consensus.effects import Effect, Removed, SendStranger
from consensus.founding import (
    Greeting,
    charter_message,
    elsewhere_message,
    parse,
    parse_greeting,
    removal,
    stranger_message,
)
from consensus.messages import Hello

if TYPE_CHECKING:
    from consensus.node import Node


def greeted(node: Node, src: str, message: Hello, now_ns: int) -> list[Effect]:
    """A node without a cluster id greets. Nothing, if it is no greeting of the one that sent it."""
    try:
        greeting = parse_greeting(parse(message.data))
    except ValueError:
        return []
    if greeting.name != src:
        return []
    member = node.cluster.member(src)
    if member is not None and member.incarnation == greeting.incarnation:
        text = charter_message(
            node.identity.cluster_id, node.identity.charter, node.raft.term, node.applied, node.cluster.members
        )
    elif node.leads():
        text = _admitted(node, greeting, now_ns)
    elif node.raft.leader in node.book.current():
        text = elsewhere_message(node.raft.leader, node.book.current()[node.raft.leader].address)
    else:
        text = stranger_message("the cluster has no leader at the moment", "it is asked again", final=False)
    return [SendStranger(src, greeting.incarnation, greeting.raft, Hello(0, text))]


def _admitted(node: Node, greeting: Greeting, now_ns: int) -> str:
    """The answer to a node that asks to be let in, and the entry that does it."""
    answer: Proposal | Refusal = changes.admit(node.tip(), node.facts(now_ns), greeting)
    if isinstance(answer, Proposal) and node.propose_change(answer, now_ns):
        return stranger_message("it is being let in", "it is asked again", final=False)
    if isinstance(answer, Refusal):
        return stranger_message(answer.reason, answer.hint, final=answer.final)
    return stranger_message("another change is under way", "it is asked again", final=False)


def met(node: Node, src: str, incarnation: int, message: Hello, now_ns: int) -> list[Effect] | None:
    """A Hello from within the cluster. None: it was taken in; else all that is to be done."""
    try:
        body = parse(message.data)
        if body["kind"] == "stranger" and body["final"]:
            return [Removed(str(body["reason"]), str(body["hint"]))]
        if body["kind"] == recovery.REBUILT:
            recovery.rival(node, src, node.identity.cluster_id, now_ns)
            return None
        address, index = str(body["raft"]), int(body["index"])
    except (ValueError, KeyError, TypeError):
        return []
    if src == node.me:
        return []
    if Seat(src, incarnation) in node.cluster.removed:
        out = stranger_message(*removal(src), final=True)
        return [SendStranger(src, incarnation, address, Hello(node.raft.term, out))]
    node.book.introduce(src, Address(incarnation, address, index), node.applied)
    listed = node.tip().member(src)  # once it is in the log there is nothing to propose any more
    moved = listed is not None and listed.incarnation == incarnation and listed.raft != address
    if listed is not None and moved and node.raft.leader not in ("", node.me):
        # If the leader has moved too, neither of them finds the other; this node is heard by both.
        node.propose_or_forward("member/1", {"member": list(listed._replace(raft=address))}, now_ns)
    return None
