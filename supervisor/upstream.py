"""From whom a standby streams, and of whom a copy is made: the primary, or a standby that a tag names. Pure.

A node whose tag is in force (consensus/upstreams.py) streams from that standby while it streams itself from the primary
of the same grant, else from the primary; and goes back once that one has been fit for a while. What that standby has is
a part of what the primary of the grant wrote, so the check before any upstream is named (steps.follow) is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from consensus.cluster import ClusterState, Grant
from consensus.tags import CLONE_FROM, delay_ms, of
from consensus.upstreams import upstream
from fencing.lease import MS

HEARD_MS = 3_000
"""Who was not heard of for so long, by a leader that is there, is not streamed from."""
IDLE_MS = 3_000
"""No stream from it for so long, although it says that it is well: the primary instead."""
BACK_MS = 5_000
"""It has been fit for so long: back to it."""
AVOID_MS = 30_000
"""Not again before this after it was of no use."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What this node remembers of its upstream. Instants are 0 while it is not so."""

    node: str = ""
    """The standby that is streamed from; empty: the primary."""
    fit_since_ns: int = 0
    """The one that the tag names could be streamed from, and is not."""
    idle_since_ns: int = 0
    """Nothing has come from ``node`` since."""
    avoid_until_ns: int = 0


def is_fit(cluster: ClusterState, grant: Grant, name: str, seen: Mapping[str, Any]) -> bool:
    """Does this member stream from the primary of ``grant``, be it through others? ``seen``: `raft.members`."""
    member, known = cluster.member(name), seen.get(name)
    if member is None or known is None or int(known["age_ms"]) > HEARD_MS:
        return False
    said = known["seen"]
    streams = said.get("state") == "streaming" and said.get("epoch_of_upstream") == grant.term
    # It has WAL of that very epoch: all that it has is what its primary wrote, or had before.
    there = said.get("epoch") == grant.term and said.get("proven") is True
    return streams and there and said.get("incarnation") == member.incarnation


def turn(
    choice: Choice, cluster: ClusterState, grant: Grant, me: str, seen: Mapping[str, Any], *,
    led: bool, attached: bool, streaming: bool, now_ns: int,
) -> Choice:  # fmt: skip
    """The choice from now on. ``led``: a leader is known, so ``seen`` is news; ``attached``: to what ``choice`` says,
    under ``grant``; ``streaming``: and WAL comes."""
    named = upstream(cluster, me)
    if not named or (choice.node and choice.node != named):
        return Choice()
    if not led:
        return choice
    # One that streams from here has not heard of the newest tags yet, which lead round in no circle.
    fit = is_fit(cluster, grant, named, seen) and seen[named]["seen"].get("upstream_node") != me
    if choice.node:
        if not fit:
            return Choice()
        idle_ns = (choice.idle_since_ns or now_ns) if attached and not streaming else 0
        if idle_ns and now_ns - idle_ns >= IDLE_MS * MS:
            return avoided(now_ns)
        return replace(choice, idle_since_ns=idle_ns)
    if not fit or now_ns < choice.avoid_until_ns:
        return replace(choice, fit_since_ns=0)
    since_ns = choice.fit_since_ns or now_ns
    if attached and now_ns - since_ns < BACK_MS * MS:
        return replace(choice, fit_since_ns=since_ns)
    return Choice(named)


def avoided(now_ns: int) -> Choice:
    """The standby was of no use (it lacks WAL that the primary may have): the primary, for a while."""
    return Choice(avoid_until_ns=now_ns + AVOID_MS * MS)


def copy_sources(
    cluster: ClusterState, grant: Grant, me: str, seen: Mapping[str, Any], avoid: Iterable[str] = ()
) -> list[str]:  # fmt: skip
    """Of whom a new copy for ``me`` is made, the best first; the primary is always the last.

    A copy goes as far as its source has replayed. From one that replays late it would begin with WAL of long ago, which
    nobody may have any more, and be made again, and again.
    """
    fit = [
        m.name for m in cluster.members
        if m.name not in (me, grant.node, *avoid) and of(cluster, m.name).get(CLONE_FROM) is True
        and not delay_ms(of(cluster, m.name)) and is_fit(cluster, grant, m.name, seen)
    ]  # fmt: skip
    furthest = sorted(fit, key=lambda name: (-int(seen[name]["seen"].get("lsn", 0)), name))
    return [*furthest, grant.node]
