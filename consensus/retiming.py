"""The timings of a running cluster: what is agreed on, what is in force where, the way from one set to another. Pure.

What a person sets (`profile`, `lease_ms`, ...) is a wish, like `commit`. In force is what a change of its own has made
so, in three steps of the log, each proposed by whoever leads (DESIGN.md, "Changing timings"):

1. `retime/1`: from its append on a voter is bound for the longer E of the two sets.
2. `retimed/1 switch`, once every voter has the first in its log: L and demotion are those of the new set.
3. `retimed/1 done`, once every lease of the old L is over: so are E, F and the heartbeat.

Before the second step a change can be given up (`retimed/1 void`), and whoever is waited for can be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, replace
from functools import lru_cache
from typing import Any, NamedTuple

from consensus.clusterwide import PROFILE, TIMINGS, read
from consensus.messages import Entry
from fencing.lease import PROFILES, Timings

RETIME, RETIMED = KINDS = ("retime/1", "retimed/1")
SWITCH, DONE, VOID = "switch", "done", "void"


class Retiming(NamedTuple):
    """A change of the timings under way."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    """Of its `retime/1`; `retimed/1` names it."""
    new: Timings
    switched: bool = False
    """L is that of `new`."""


class Pace(NamedTuple):
    """What is agreed on."""

    timings: Timings = PROFILES["default"]
    """While a change is open: the old ones."""
    change: Retiming | None = None
    at: int = 0
    """Index of the entry that made it so; 0: the founding."""


def of_profile(name: str) -> Pace:
    return Pace(PROFILES[name])


def apply(pace: Pace, entry: Entry, body: Mapping[str, Any]) -> Pace:
    """The pace after an entry of `KINDS`; the same object if it does not count (any more)."""
    change = pace.change
    if entry.kind == RETIME:
        new = Timings(*body["timings"])
        fits = change is None and new != pace.timings
        return Pace(pace.timings, Retiming(entry.index, new), entry.index) if fits else pace
    if change is None or change.index != body["index"]:
        return pace
    match body["step"], change.switched:
        case "switch", False:
            return Pace(pace.timings, change._replace(switched=True), entry.index)
        case "done", True:
            return Pace(change.new, None, entry.index)
        case "void", False:
            return Pace(pace.timings, None, entry.index)
        case _:
            return pace


def paces(pace: Pace, tail: Iterable[Entry]) -> list[Pace]:
    """``pace``, and what it becomes with each entry of ``tail`` that changes it."""
    found = [pace]
    for entry in tail:
        if entry.kind in KINDS:
            found.append(apply(found[-1], entry, json.loads(entry.data)))
    return found


# -- what is in force ------------------------------------------------------------------------------------------------


def binding_ms(pace: Pace) -> int:
    """E: the longer of two sets, until every lease of the old L is over."""
    return max(t.election_ms for t in _both(pace))


def _both(pace: Pace) -> tuple[Timings, ...]:
    return (pace.timings,) if pace.change is None else (pace.timings, pace.change.new)


def _leading(pace: Pace) -> Timings:
    """Whose L counts. Of two F always the shorter one: a longer one, set together with a shorter L, would come on top
    of a lease of the old L that still runs. Of two heartbeats, too: a lease of the shorter L has to be renewed in time.
    """
    found = pace.change.new if pace.change is not None and pace.change.switched else pace.timings
    return replace(
        found, kill_bound_ms=min(t.kill_bound_ms for t in _both(pace)),
        heartbeat_ms=min(t.heartbeat_ms for t in _both(pace)),
    )  # fmt: skip


def in_force(pace: Pace, tail: Iterable[Entry]) -> Timings:
    """For the Raft core. ``pace``: as committed, as far as this node knows; ``tail``: what its log has beyond that.

    E is the longest of them all and L the shortest: what is not known to be committed may be, or may never be.
    """
    known = paces(pace, tail)
    leading = [_leading(p) for p in known]
    return replace(
        min(leading, key=lambda t: t.lease_ms), heartbeat_ms=min(t.heartbeat_ms for t in leading),
        kill_bound_ms=min(t.kill_bound_ms for t in leading), election_ms=max(map(binding_ms, known)),
        jitter_ms=max(t.jitter_ms for pace in known for t in _both(pace)),
    )  # fmt: skip


def after_restart(pace: Pace, entries: Iterable[Entry], commit: int) -> Timings:
    """`in_force` from a snapshot's ``pace``, the entries after it and the commit index that the disk knows of."""
    entries = tuple(entries)
    known = paces(pace, (e for e in entries if e.index <= commit))[-1]
    return in_force(known, (e for e in entries if e.index > commit))


def at_the_parent(pace: Pace) -> Timings:
    """For who demotes in time: while a change is open it begins as late before the end of a lease as in the tighter
    of the two sets, since a lease may be of either L."""
    now = _leading(pace)
    if pace.change is None:
        return now
    margin_ms = min(t.lease_ms - t.demote_ms for t in _both(pace))
    return replace(now, demote_ms=now.lease_ms - margin_ms, election_ms=binding_ms(pace))


def at_the_watchdog(pace: Pace) -> Timings:
    """``lease_ms``: no honest deadline is further away; ``kill_bound_ms``: F."""
    return replace(_leading(pace), lease_ms=max(t.lease_ms for t in _both(pace)))


# -- what is wanted --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def wanted(config: str, founded: str) -> Timings:
    """What the settings ask for. ``founded``: the profile of the founding.

    Demotion and jitter can't be set: they are to L and E as in the profile.
    """
    found = read(config)
    base = PROFILES[str(found.get(PROFILE, founded))]
    named = replace(base, **{name: int(found[name]) for name in TIMINGS if name in found})
    return replace(
        named, demote_ms=base.demote_ms * named.lease_ms // base.lease_ms,
        jitter_ms=base.jitter_ms * named.election_ms // base.election_ms,
    )  # fmt: skip


def profile_of(timings: Timings) -> str:
    """For people."""
    return next((name for name, t in PROFILES.items() if t == timings), "custom")


# -- the leader's next step ------------------------------------------------------------------------------------------


class Step(NamedTuple):
    kind: str
    body: dict[str, Any]
    text: str


class Seen(NamedTuple):
    """What the leader knows."""

    wanted: Timings
    lacking: tuple[str, ...] = ()
    """Voters of every membership in force who are not known to have the open change in their log; sorted."""
    committed: bool = False
    """Is that entry committed?"""
    capped: bool = False
    """Its own watchdog does not take a lease of the new L yet."""
    switched_ms: int = 0
    """For so long this leader has led with the second step in its log, and no new lease of the old L was given."""


def next_step(pace: Pace, seen: Seen) -> Step | None:
    """What to propose now; None: nothing, or something has to happen first (`waits_for`). ``pace``: with every entry
    of the log."""
    change = pace.change
    if change is None:
        if seen.wanted == pace.timings or seen.wanted.problems():
            return None
        text = f"from {profile_of(pace.timings)} to {profile_of(seen.wanted)}: every voter is bound for the longer E"
        return Step(RETIME, {"timings": list(astuple(seen.wanted))}, text)
    if not change.switched:
        if seen.wanted != change.new:
            return _step(change, VOID, f"the change to {profile_of(change.new)} is given up")
        if seen.lacking or not seen.committed:
            return None
        return _step(change, SWITCH, f"every voter has it: leases are those of {profile_of(change.new)}")
    # E on any clock is longer than an old lease and its kill on any other: that is the inequality.
    if seen.capped or seen.switched_ms < binding_ms(pace):
        return None
    return _step(change, DONE, f"are those of {profile_of(change.new)}")


def _step(change: Retiming, step: str, text: str) -> Step:
    return Step(RETIMED, {"index": change.index, "step": step}, text)


def waits_for(pace: Pace, seen: Seen) -> str:
    """For people: what a change waits for that may take long; empty: nothing."""
    change = pace.change
    if change is None or change.switched or not seen.lacking:
        return ""
    names = ", ".join(seen.lacking)
    return f"the change of the timings to {profile_of(change.new)} waits for {names}: every voter has to hear of it"


# -- as JSON ---------------------------------------------------------------------------------------------------------


def plain(pace: Pace) -> list[Any]:
    change = pace.change
    opened = None if change is None else [change.index, list(astuple(change.new)), change.switched]
    return [list(astuple(pace.timings)), opened, pace.at]


def load(body: list[Any] | None, founded: str) -> Pace:
    """``body``: None in a state that is older than this."""
    if body is None:
        return of_profile(founded)
    timings, opened, at = body
    change = None if opened is None else Retiming(opened[0], Timings(*opened[1]), opened[2])
    return Pace(Timings(*timings), change, at)
