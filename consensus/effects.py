"""What a node wants done, in this order: values that the host carries out and decides nothing about."""

from __future__ import annotations

from typing import Any, NamedTuple

from consensus.messages import Hello, PeerMessage
from consensus.write import Write


class Send(NamedTuple):
    dst: str
    message: PeerMessage


class SendStranger(NamedTuple):
    """An answer to a node that is not a member (yet, any more): to the incarnation and the address it gave."""

    dst: str
    incarnation: int
    address: str
    message: Hello
    cluster_id: str = ""
    """Of a former cluster, which it is of; empty: of this one, or of none (`Host.send_guest`)."""


class Save(NamedTuple):
    """Durable before the next effect."""

    write: Write


class Removed(NamedTuple):
    """This node is no member any more, for good: the process ends."""

    reason: str
    hint: str


class Reborn(NamedTuple):
    """What was saved is another cluster's state: nothing after this is carried out, the process begins anew."""


class Tell(NamedTuple):
    """A fact or an answer for the parent, over the local bus."""

    name: str
    body: dict[str, Any]
    id: str = ""


class TellLease(NamedTuple):
    """For the watchdog and the parent: until when Postgres may be writable in this term."""

    term: int
    until_ns: int


Effect = Send | SendStranger | Save | Removed | Reborn | Tell | TellLease
