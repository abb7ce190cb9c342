"""What this node has heard of the others: when, and what they say of themselves. Decides nothing. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from consensus.cluster import Grant, canonical
from consensus.membership import VOTER, Member
from consensus.messages import AppendReq, PeerMessage
from consensus.record import Position
from fencing.lease import MS

NOT_FENCED = "not fenced"
"""State of an observation: Postgres is to be gone, and something of it is left that does not die."""


class Sightings:
    """``alive_ms``: one that has been silent for so long does not count as connected."""

    def __init__(self, me: str, alive_ms: int) -> None:
        self.me, self.alive_ms = me, alive_ms
        self._heard: dict[str, int] = {}
        self._said: dict[str, tuple[str, int]] = {}
        self._reached: dict[str, tuple[int, int]] = {}
        """The newest epoch in which a node was primary, and how far its WAL was then known to go."""
        self.promised: dict[str, tuple[int, int, int, str]] = {}
        """To the leader, while it has not decided: ``(term, epoch, lsn, reason)``; epoch -1: no position."""
        self.old_primary = (0, 0)
        """Term of the newest primary that was open, and when it was last heard here as leader of that term."""
        self._unfenced_since_ns = 0

    def hear(self, name: str, now_ns: int) -> None:
        self._heard[name] = now_ns

    def hear_primary(self, grant: Grant | None, src: str, message: PeerMessage, now_ns: int) -> None:
        """Any message may be one of it."""
        reign = (grant.node, grant.term) if grant is not None and grant.opened else None
        if isinstance(message, AppendReq) and reign == (src, message.term):
            self.old_primary = (message.term, now_ns)

    def is_connected(self, name: str, now_ns: int) -> bool:
        """This node itself always is."""
        return name == self.me or (name in self._heard and now_ns - self._heard[name] < self.alive_ms * MS)

    def of(self, name: str) -> dict[str, Any]:
        """The last observation of a node (bus catalogue: `node.observed`); empty if there is none."""
        found: dict[str, Any] = json.loads(self._said.get(name, ("{}", 0))[0])
        return found

    def own(self) -> str:
        """As JSON, to be sent on; empty if there is none yet."""
        return self._said.get(self.me, ("", 0))[0]

    def say(self, data: str, now_ns: int) -> bool:
        """This node's own observation. True: it has changed."""
        changed = self.own() != data
        self._keep(self.me, data, now_ns)
        return changed

    def unfenced_ms(self, now_ns: int) -> int:
        """For how long this node's parent has not got rid of its Postgres; 0: nothing is left that should not be."""
        return (now_ns - self._unfenced_since_ns) // MS if self._unfenced_since_ns else 0

    def take_in(self, name: str, data: str, now_ns: int) -> None:
        """What a member says of itself to the leader."""
        self._keep(name, data, now_ns)

    def _keep(self, name: str, data: str, at_ns: int) -> None:
        self._said[name] = (data, at_ns)
        seen = json.loads(data)
        if name == self.me:
            self._unfenced_since_ns = (self._unfenced_since_ns or at_ns) if seen.get("state") == NOT_FENCED else 0
        if seen.get("role") == "primary":
            reached = (int(seen.get("epoch", -1)), int(seen.get("lsn", 0)))
            self._reached[name] = max(reached, self._reached.get(name, (-1, 0)))

    def take_in_all(self, data: str, now_ns: int) -> None:
        """What the leader tells of everybody."""
        told = json.loads(data)
        self.promised = {name: tuple(one["promise"]) for name, one in told.items() if "promise" in one}
        for name, one in told.items():
            if name != self.me:
                self._keep(name, canonical(one["seen"]), now_ns - int(one["age_ms"]) * MS)

    def all(self, now_ns: int) -> dict[str, Any]:
        """``{name: {seen, age_ms}}``, with ``promise`` if there is one (`promised`)."""
        return {
            name: {"seen": json.loads(data), "age_ms": 0 if name == self.me else (now_ns - at) // MS}
            | ({"promise": list(self.promised[name])} if name in self.promised else {})
            for name, (data, at) in sorted(self._said.items())
        }

    def heard(self, now_ns: int) -> dict[str, int]:
        """How long ago, in ms, by name."""
        return {name: (now_ns - at) // MS for name, at in sorted(self._heard.items())}

    def last_known(self, grant: Grant | None) -> Position | None:
        """The newest position heard of the primary of ``grant`` as such (asynchronous mode's bound on loss)."""
        epoch, lsn = self._reached.get(grant.node, (-1, 0)) if grant is not None else (-1, 0)
        return Position(epoch, lsn) if grant is not None and epoch == grant.term else None

    def furthest(self, members: Iterable[Member], now_ns: int) -> str:
        """The connected voter whose data was furthest when last heard; "" if there is none. For speed only."""
        best = (False, -2, 0, "")
        for member in members:
            if member.votes and member.name != self.me and self.is_connected(member.name, now_ns):
                seen = self.of(member.name)
                rank = (member.role == VOTER, int(seen.get("epoch", -1)), int(seen.get("lsn", 0)), member.name)
                best = max(best, rank)
        return best[3]

    def unfit(self, target: str, term: int, now_ns: int) -> str:
        """Why ``target`` can not take over from the primary of ``term`` without a long gap; empty if it can."""
        if not target:
            return "no other data node is connected"
        if not self.is_connected(target, now_ns):
            return f"{target} is not connected"
        seen = self.of(target)
        if seen.get("state") != "streaming" or seen.get("epoch_of_upstream") != term:
            return f"{target} does not stream from the primary (it is {seen.get('state', 'unknown')})"
        if seen.get("upstream_node", "") not in ("", self.me):
            return f"{target} streams from {seen['upstream_node']}, not from the primary"
        return ""
