"""The values that `raftworld.py` makes states of: bounds, disks, nodes, messages under way, steps."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from consensus.cluster import canonical
from consensus.membership import Member
from consensus.messages import Entry, HardState, RaftMessage
from consensus.raft import Log

RESTARTS, PROPOSALS, DELAYS, RELEASES, COMPACTIONS, CHANGES, WIPES = range(7)
"""Places in a budget."""


def plural(text: str) -> str:
    """Of what can be counted in a bound."""
    return re.sub(r"\b([2-9]) ([\w ]*?)(change|disk|state)\b", r"\1 \2\3s", text)


class Bound(NamedTuple):
    """How far a run looks."""

    terms: int
    restarts: int = 0
    proposals: int = 0
    delays: int = 0
    releases: int = 0
    compactions: int = 0
    changes: int = 0
    wipes: int = 0

    def __str__(self) -> str:
        words = (
            (self.proposals, "L={} and each leader's own entry"), (self.restarts, "R={}"), (self.delays, "K={}"),
            (self.releases, "{} release"), (self.compactions, "{} compaction"), (self.changes, "{} change of members"),
            (self.wipes, "{} lost disk"),
        )  # fmt: skip
        said = [text.format(count) for count, text in words if count]
        return plural(", ".join([f"T={self.terms}", *said]))


@dataclass(frozen=True)
class Setup:
    """Who is there at the beginning. ``extra``: nodes that run but are no members yet."""

    bound: Bound
    founders: tuple[str, ...] = ("a", "b", "c")
    extra: tuple[str, ...] = ()
    settled: bool = False
    """Begin with a as leader of term 1, its own entry committed and known to all; else with nothing."""
    steps: tuple[str, ...] = ("learn", "vote", "unvote", "remove", "readmit")
    """What may be proposed of members (`_reforms`)."""
    pre_vote: bool = False

    def __str__(self) -> str:
        start = f", from a settled leader of {len(self.founders)}" if self.settled else ""
        asked = ", with PreVote" if self.pre_vote else ""
        return f"N={len(self.founders) + len(self.extra)}, {self.bound}{start}{asked}"


class Disk(NamedTuple):
    hard: HardState = HardState()
    log: Log = Log()


class Local(NamedTuple):
    """One node: everything that can influence a later step."""

    slot: int
    incarnation: int
    raft: tuple[object, ...]
    disk: Disk
    older: Disk | None = None
    """What a crash may go back to; only in a host that sends before it saves."""
    beside: Hashable = ()
    """What a world keeps beside the core (`leaseworld.py`: the watchdog)."""


class Batch(NamedTuple):
    """Messages of one step to one peer, with what the envelope and an introduction say."""

    src_incarnation: int
    dst_incarnation: int
    applied: int
    messages: tuple[RaftMessage, ...]


class Step(NamedTuple):
    """What the code answered: the local state after it, and batches by destination."""

    local: int
    out: tuple[tuple[int, int], ...]


@dataclass
class Caches:
    """What the code under test answered once."""

    steps: dict[tuple[int, int], Step] = field(default_factory=dict)
    moves: dict[tuple[int, int, tuple[int, ...]], list[tuple[int, Step, int]]] = field(default_factory=dict)
    ghosts: dict[tuple[int, int], int] = field(default_factory=dict)
    matching: set[tuple[int, int]] = field(default_factory=set)
    renamed: dict[tuple[int, int], int] = field(default_factory=dict)
    orders: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    live: set[tuple[int, ...]] = field(default_factory=set)


def member_list(rows: tuple[Member, ...]) -> str:
    """The data of an entry."""
    return canonical({"members": [list(m) for m in rows]})


def short(message: RaftMessage) -> str:
    """For people."""
    fields = message._asdict()
    entries: tuple[Entry, ...] = fields.get("entries", ())
    what = " ".join(f"{e.index}@{e.term}" for e in entries)
    match type(message).__name__, fields:
        case "VoteReq", {"term": term, "last_index": index, "last_term": last_term}:
            return f"VoteReq(term {term}, last {index}@{last_term})"
        case "AppendReq", {"term": term, "prev_index": prev, "prev_term": prev_term, "commit": commit}:
            return f"AppendReq(term {term}, after {prev}@{prev_term}: [{what}], commit {commit})"
        case "AppendResp", {"term": term, "ok": ok, "match": match}:
            return f"AppendResp(term {term}, {'ok' if ok else 'refused'}, {match})"
        case name, _:
            return f"{name}(term {message.term})"
