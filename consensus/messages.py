"""What Raft peers say to each other and what the host says to the core: frozen values, ints and strings only.

Every peer message carries the sender's term. A *round* numbers a heartbeat of one life (``boot``) of a leader, so that
acknowledgements of an earlier life never count towards a lease.
"""

from __future__ import annotations

from typing import NamedTuple

from consensus.membership import Membership


class Entry(NamedTuple):
    """One entry of the replicated log. The core looks into the ``data`` of a `members/1` only."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    term: int
    kind: str
    """``name/version``, see consensus/cluster.py for the catalogue; ``noop/1`` is the leader's own first entry."""
    data: str
    """Canonical JSON (sorted keys, no spaces)."""


class Snapshot(NamedTuple):
    """The state up to and including ``index``; replaces the log before it."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    term: int
    data: str
    """Canonical JSON of the whole ClusterState."""
    membership: Membership = Membership()
    """As of ``index``; nobody: that of the founding."""


class HardState(NamedTuple):
    """Must be on disk before anyone hears of it."""

    term: int = 0
    vote: str = ""
    commit: int = 0
    """A lower bound of what is committed (saved along with whatever is saved next)."""
    released: int = 0
    """The newest term in which this node, as leader, gave its lease up for good."""


class PreVoteReq(NamedTuple):
    term: int
    """The term the sender would campaign in; nobody adopts it."""
    last_index: int
    last_term: int


class PreVoteResp(NamedTuple):
    term: int
    """The responder's own term."""
    asked_term: int
    granted: bool


class VoteReq(NamedTuple):
    term: int
    last_index: int
    last_term: int
    released_leader: str
    """Set by a TimeoutNow: this leader ..."""
    released_term: int
    """... gave up its lease of this term, so promises made to it no longer bind."""


class VoteResp(NamedTuple):
    term: int
    granted: bool


class AppendReq(NamedTuple):
    """A heartbeat and, with entries, replication."""

    term: int
    boot: int
    round: int
    prev_index: int
    prev_term: int
    entries: tuple[Entry, ...]
    commit: int


class AppendResp(NamedTuple):
    term: int
    boot: int
    round: int
    ok: bool
    match: int
    """ok: the responder's log equals the leader's up to here. Not ok: the leader should try from here."""


class SnapshotReq(NamedTuple):
    term: int
    boot: int
    round: int
    snapshot: Snapshot
    commit: int


class TimeoutNow(NamedTuple):
    """The leader of ``term`` has fenced its Postgres, given up its lease, and asks the receiver to campaign at once."""

    term: int


type_names = (
    PreVoteReq, PreVoteResp, VoteReq, VoteResp, AppendReq, AppendResp, SnapshotReq, TimeoutNow,
)  # fmt: skip
"""The catalogue of Raft peer messages; the codec knows each by its class name."""

RaftMessage = PreVoteReq | PreVoteResp | VoteReq | VoteResp | AppendReq | AppendResp | SnapshotReq | TimeoutNow


# The layer above Raft: promises, observations, and requests on their way to the leader.


class PromiseReq(NamedTuple):
    """The leader of ``term`` asks for the vow of safety.md ("promise")."""

    term: int


class PromiseResp(NamedTuple):
    """The vow, given: the responder's promise to ``term`` is on disk and its WAL no longer grows."""

    term: int
    epoch: int
    """Of the position; -1: this node has no position (``reason`` says why)."""
    lsn: int
    reason: str


class Observation(NamedTuple):
    """What a node says of itself; rides to the leader, and from the leader to everybody. Nothing is
    acknowledged or promoted on its word alone."""

    term: int
    data: str
    """JSON: on the way to the leader one NodeStatus; from the leader ``{name: NodeStatus}`` of all."""


class Forward(NamedTuple):
    """A request (an admin command, or a proposal of a follower) on its way to the leader; answered with ForwardResp."""

    term: int
    id: str
    name: str
    data: str


class ForwardResp(NamedTuple):
    term: int
    id: str
    ok: bool
    data: str


class Hello(NamedTuple):
    """The only message allowed with cluster id 0, and the answer to it: see consensus/founding.py."""

    term: int
    data: str


upper_type_names = (PromiseReq, PromiseResp, Observation, Forward, ForwardResp, Hello)

PeerMessage = RaftMessage | PromiseReq | PromiseResp | Observation | Forward | ForwardResp | Hello
