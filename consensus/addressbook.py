"""Who is where, and whose word counts for what: the envelope's check, apart from the sockets. Pure.

The members as this node has applied them may be behind: the leader or the only possible one may be a node that was let
in, or let in again, while this one was away (thesis 4.1: requests are answered whoever asks). Such a node introduces
itself. That is enough for what it asks, a vote too: that one is this node's own. What it grants (votes,
acknowledgements, promises) counts only once the log here says who it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from consensus.membership import Member
from consensus.messages import (
    AppendReq,
    ForwardResp,
    Observation,
    PeerMessage,
    PreVoteReq,
    PromiseReq,
    SnapshotReq,
    VoteReq,
)

INTRODUCED_MAX = 32
REQUESTS = (AppendReq, SnapshotReq, PreVoteReq, VoteReq, PromiseReq, Observation, ForwardResp)
"""What may come from a node that has only introduced itself: what it asks, never what it grants."""


class Entry(NamedTuple):
    """``address``: ``host:port``. ``index``: how far the introducer had applied its log; 0: a member."""

    incarnation: int
    address: str
    index: int = 0  # type: ignore[assignment]  # shadows tuple.index, which nobody calls


class AddressBook:
    """Members overlaid with newer introductions."""

    def __init__(self) -> None:
        self.members: dict[str, Entry] = {}
        self.introduced: dict[str, Entry] = {}

    def list_members(self, members: Iterable[Member], applied: int) -> None:
        """What the log says, as of index ``applied``; older introductions are overtaken by it."""
        self.members = {m.name: Entry(m.incarnation, m.raft) for m in members}
        self.introduced = {
            name: entry
            for name, entry in self.introduced.items()
            if (entry.index > applied or self._moved(name, entry)) and self.members.get(name) != entry._replace(index=0)
        }

    def introduce(self, name: str, entry: Entry, applied: int) -> bool:
        """Believe who says that it knows more than this node has applied; and whoever is known, on where it is now.

        True: something new was learnt.
        """
        known = self.introduced.get(name) or self.members.get(name)
        if known is not None and known.incarnation == entry.incarnation:
            # One that moved is behind, for nobody can reach it; a late word of the old place is mended by its next one.
            if known.address == entry.address:
                return False
            if self.members.get(name) == entry._replace(index=0):
                del self.introduced[name]  # it has moved back
                return True
        elif entry.index <= applied or (known is not None and known.index > entry.index):
            return False
        if len(self.introduced) >= INTRODUCED_MAX and name not in self.introduced:
            return False
        self.introduced[name] = entry
        return True

    def _moved(self, name: str, entry: Entry) -> bool:
        """Is it a member that gives (perhaps) another address?"""
        member = self.members.get(name)
        return member is not None and member.incarnation == entry.incarnation

    def current(self) -> dict[str, Entry]:
        """Whom to dial and how to address it."""
        return self.members | self.introduced

    def problem(self, name: str, incarnation: int, message: PeerMessage) -> str:
        """Why a message from (name, incarnation) is not to be taken in; empty if it is."""
        member = self.members.get(name)
        if member is not None and member.incarnation == incarnation:
            return ""
        introduced = self.introduced.get(name)
        if introduced is not None and introduced.incarnation == incarnation and isinstance(message, REQUESTS):
            return ""
        return "unknown incarnation"
