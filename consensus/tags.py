"""Tags: what a person says of one node, for elections, the sync group and load balancers. Pure.

A node reads its own (pgr.toml, environment, flag) and puts them into the log (`tags/1`), so that every leader decides
by the same ones. Unknown names are a person's own: load balancers ask for them with ``tag_NAME=VALUE``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from consensus.membership import VOTER

if TYPE_CHECKING:
    from consensus.cluster import ClusterState, Seat, SyncGroup

Tag = str | int | bool

TAGS_MAX: Final = 50
TEXT_MAX: Final = 200
PRIORITY_MAX: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")

NOFAILOVER, NOSYNC, NOLOADBALANCE, PRIORITY = "nofailover", "nosync", "noloadbalance", "priority"
CLONE_FROM, REPLICATE_FROM, APPLY_DELAY = "clone_from", "replicate_from", "recovery_min_apply_delay"
_MEMBER: Final = re.compile(r"[a-z][a-z0-9_]{0,40}")
"""A node's name, as supervisor/addresses.py has it."""
_DELAY: Final = re.compile(r"(\d{1,10})\s*(ms|s|min|h|d|)")
_DELAY_UNITS_MS: Final = {"": 1, "ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_DELAY_MAX_MS: Final = (1 << 31) - 1
"""Postgres's own."""


class Known(NamedTuple):
    """A tag that pgr acts on."""

    name: str
    kind: tuple[type, ...]
    sentence: str


TABLE: Final = (
    Known(NOFAILOVER, (bool,), "never becomes primary; it votes and counts in the sync group like any other"),
    Known(NOSYNC, (bool,), "has no seat in the sync group, so no commit waits for it and it cannot become primary "
          "either; does not count with `commit = async`, nor while fewer than two would be left"),
    Known(NOLOADBALANCE, (bool,), "`/replica` and what follows from it answer 503"),
    Known(PRIORITY, (int,), f"0 to {PRIORITY_MAX}, 1 if absent: of nodes that hold the same WAL the highest becomes "
          "primary; 0 is `nofailover`"),
    Known(CLONE_FROM, (bool,), "while it is a standby that streams, new copies of others are made from it, which "
          "spares the primary"),
    Known(REPLICATE_FROM, (str,), "the name of a standby: streams from that one while it streams itself, else from the "
          "primary. No seat in the sync group, as with `nosync`, as the primary does not see what it has"),
    Known(APPLY_DELAY, (str, int), "replays each commit so much later (`1h`, `30min`; a number: ms), to have the "
          "data before a mistake. No seat in the sync group, as with `nosync`; becomes primary only by `--to`"),
)  # fmt: skip
_KNOWN: Final = {known.name: known for known in TABLE}
_ELSEWHERE: Final = {
    "failover_priority": PRIORITY, "clonefrom": "clone_from", "replicatefrom": "replicate_from",
    "sync_priority": NOSYNC, "nostream": "nothing: every standby streams",
}  # fmt: skip
"""Patroni's names: as somebody's own tag they would do nothing without a word."""


class BadTag(ValueError):
    """``hint``: what to write instead."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint


def checked(given: Mapping[str, object]) -> dict[str, Tag]:
    """These tags, sorted by name. Raises BadTag."""
    if len(given) > TAGS_MAX:
        raise BadTag(f"{len(given)} tags", f"not more than {TAGS_MAX}")
    return {name: _checked(name, given[name]) for name in sorted(given)}


def _checked(name: str, value: object) -> Tag:
    if not _NAME.fullmatch(name):
        raise BadTag(f"{name!r} is no name of a tag", "a letter, then letters, digits, `_`, `.` and `-`, 63 at most")
    if name in _ELSEWHERE:
        raise BadTag(f"the tag {name} is not known here", f"the name for it is {_ELSEWHERE[name]}")
    if name in _KNOWN:
        kinds = _KNOWN[name].kind
        if type(value) not in kinds:
            raise BadTag(f"{name} = {value!r}", _HINTS.get(name, "write true or false"))
        if name == PRIORITY and not (isinstance(value, int) and 0 <= value <= PRIORITY_MAX):
            raise BadTag(f"{name} = {value!r}", f"0 to {PRIORITY_MAX}")
        if name == REPLICATE_FROM and not _MEMBER.fullmatch(str(value)):
            raise BadTag(f"{name} = {value!r}", _HINTS[name])
        if name == APPLY_DELAY and _delay_ms(value) is None:
            raise BadTag(f"{name} = {value!r}", f"{_HINTS[name]}, {_DELAY_MAX_MS // 86_400_000} days at most")
    if isinstance(value, str) and (len(value) > TEXT_MAX or not value.isprintable()):
        raise BadTag(f"{name} = {value!r}", f"printable, {TEXT_MAX} characters at most")
    if isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 1 << 53):
        return value
    raise BadTag(f"{name} = {value!r}", "text, a whole number, true or false")


_HINTS: Final = {
    PRIORITY: "write a whole number", REPLICATE_FROM: "write the name of a member",
    APPLY_DELAY: 'write a time as Postgres does, "1h" or "30min"',
}  # fmt: skip


def _delay_ms(value: object) -> int | None:
    found = _DELAY.fullmatch(str(value))
    delay_ms = int(found[1]) * _DELAY_UNITS_MS[found[2]] if found is not None else -1
    return delay_ms if 0 <= delay_ms <= _DELAY_MAX_MS else None


def delay_ms(tags: Mapping[str, Tag]) -> int:
    """By how much later it is to replay; 0: at once."""
    return _delay_ms(tags.get(APPLY_DELAY, 0)) or 0


@lru_cache(maxsize=64)
def read(text: str) -> Mapping[str, Tag]:
    """Tags as the log has them (canonical JSON)."""
    found: dict[str, Tag] = json.loads(text)
    return MappingProxyType(found)


def priority(tags: Mapping[str, Tag]) -> int:
    """0: it never becomes primary. `nofailover` counts before a number, as with Patroni."""
    if NOFAILOVER in tags:
        return 0 if tags[NOFAILOVER] is True else max(1, int(tags.get(PRIORITY, 1)))
    return int(tags.get(PRIORITY, 1))


class Tagged(NamedTuple):
    """The tags of one life of a node, as the log has them."""

    seat: Seat
    tags: str
    """Canonical JSON."""


def of(state: ClusterState, name: str) -> Mapping[str, Tag]:
    """Of the life that is a member now."""
    member = state.member(name)
    found = (t.tags for t in state.tagged if member is not None and t.seat == (member.name, member.incarnation))
    return read(next(found, "{}"))


def priority_of(state: ClusterState, name: str) -> int:
    """0: it never becomes primary."""
    return priority(of(state, name))


def named_upstream(state: ClusterState, name: str) -> str:
    """From which standby this one is to stream; empty: from the primary.

    The tag does not count where it names the primary (it is followed anyway), nobody with a Postgres, or the node
    itself; nor of the primary, nor of a member that is to become something else first. Of tags that lead round in a
    circle none does that is on it, so every node's way ends at the primary.
    """
    seen, at = [name], _tagged_upstream(state, name)
    first = at
    while at and at not in seen:
        seen.append(at)
        at = _tagged_upstream(state, at)
    return "" if at == name else first


def _tagged_upstream(state: ClusterState, name: str) -> str:
    member, to = state.member(name), str(of(state, name).get(REPLICATE_FROM, ""))
    other = state.member(to)
    primary = state.grant.node if state.grant is not None else ""
    if member is None or other is None or member.aim != member.role or primary in (name, to):
        return ""
    return to if member.has_data and other.has_data else ""


def keeps_out(state: ClusterState, name: str) -> str:
    """The tag for which a node is to have no seat in the sync group; empty: none."""
    tags = of(state, name)
    if tags.get(NOSYNC) is True:
        return NOSYNC
    if named_upstream(state, name):
        return REPLICATE_FROM
    return APPLY_DELAY if delay_ms(tags) else ""


def unseated(state: ClusterState) -> frozenset[str]:
    """Who is to have no seat in the sync group, for a tag. While fewer than two seats would be left such a tag does not
    count: it must not take the only second copy of a commit. Nor does it with ``commit = async``, where nobody is
    waited for and a seat only says who may be primary. A primary sits whatever its tags."""
    if state.commit_mode == "async" or not state.tagged:
        return frozenset()
    voters = {m.name for m in state.members if m.role == VOTER}
    without = {name for name in voters if keeps_out(state, name)}
    without -= {state.grant.node} if state.grant is not None else set()
    # Of those who sit now and stay: a voter without a copy, or one that is to leave, is no second copy.
    seated = {m.name for m in state.members if m.aim == VOTER} & set(state.group.names)
    return frozenset(without) if len(seated - without) > 1 else frozenset()


def wanted_rule(state: ClusterState) -> SyncGroup:
    """The sync group if everybody had a copy: of every voter that is to have a seat."""
    left_out = unseated(state)
    from consensus.cluster import seat_of  # which keeps tags

    return state.rule(seat_of(m) for m in state.members if m.role == VOTER and m.name not in left_out)


def shown(tags: Mapping[str, Tag]) -> str:
    """``nofailover=true zone=x``."""
    words = (f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in sorted(tags.items()))
    return " ".join(words) or "none"
