"""Why the cluster is in this state, who would win an election now, what could be lost, and what to do. Pure.

Everything rests on what this node knows: the log, and what the members last said. Who would win is asked of
consensus/forecast.py, which asks the rules of the promotion themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from consensus.cluster import ClusterState, Grant
from consensus.forecast import Forecast, Report, forecast, last_known, plain, reports_of
from consensus.promotion import Obstacle
from supervisor.reigns import ending
from supervisor.status import HistoryEvent, Snapshot

OPEN, OPENING, NO_PRIMARY, NO_LEADER, FOUNDING = "open", "opening", "no primary", "no leader", "founding"
TOLD_LATELY_MS = 2_000


@dataclass(frozen=True, slots=True)
class Heard:
    """What this node's Raft child last told (bus catalogue: `raft.members`), and for how long it knows of no leader."""

    members: Mapping[str, Mapping[str, Any]]
    heard: Mapping[str, int]
    """How long ago anything came from a member, in ms."""
    leaderless_ms: int = 0
    alive_ms: int = 1_000
    """Who was silent for as long does not count as connected: the election timeout."""


@dataclass(frozen=True, slots=True)
class Reign:
    """The newest grant, and how it came to be."""

    name: str
    term: int
    timeline: int
    opened: bool
    since: str
    """ISO 8601, UTC: open to clients since, else granted."""
    why: str
    """The sentence of the decision, as in the history."""
    before: tuple[str, ...]
    """What the log has between the reign before and this one, oldest first."""
    ended: str
    """Why it is over; empty while it holds."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The answer of `pgr explain`."""

    node: str
    leader: str
    term: int
    state: str
    headline: str
    source: str
    """Where this comes from and how old it is: this node may be cut off."""
    explanation: str
    """The sentence of the row or decision in force, as `pgr status` has it."""
    reign: Reign | None
    assumed_lost: str
    """The election is foretold for the case that this member is gone; empty: for things as they are."""
    election: Forecast | None
    overruled: Forecast | None
    """The same once a person accepts data loss; only where nobody can win without."""
    trouble: tuple[str, ...]
    """Members that are not as they should be, with the reason."""
    warnings: tuple[str, ...]
    hints: tuple[str, ...]
    """What to do now, the most useful first; empty: nothing."""


def findings(cluster: ClusterState | None, seen: Snapshot, told: Heard) -> Findings:
    """``seen``: the snapshot of the same moment."""
    grant = cluster.grant if cluster is not None else None
    state = _state(cluster, grant, seen)
    primary = grant.node if grant is not None and state in (OPEN, OPENING) else ""
    election = overruled = None
    if cluster is not None and cluster.system_identifier:
        reports = reports_of(cluster, told.members, _connected(cluster, seen, told), seen.term)
        election, overruled = _elections(cluster, reports, seen, primary)
    source = _source(seen, told)
    return Findings(
        node=seen.node,
        leader=seen.leader,
        term=seen.term,
        state=state,
        headline=_headline(state, grant, seen, told),
        source=source,
        explanation=seen.explanation,
        reign=_reign(grant, cluster, seen.history) if grant is not None and cluster is not None else None,
        assumed_lost=primary,
        election=election,
        overruled=overruled,
        trouble=tuple(_trouble(seen)),
        warnings=seen.warnings,
        hints=(
            *_while_paused(seen, state),
            *_hints(state, election, overruled, primary, cluster.fenced if cluster is not None else ()),
            *([_VETO_HINT] if state == NO_PRIMARY and cluster is not None and cluster.standing_vetoes else []),
        ),
    )


_VETO_HINT = (
    "mend what pre_promote looks at: each node is asked again; `pgr config unset hooks.pre_promote` goes on without it"
)


def _state(cluster: ClusterState | None, grant: Grant | None, seen: Snapshot) -> str:
    if cluster is None or not cluster.system_identifier:
        return FOUNDING
    if not seen.leader:
        return NO_LEADER
    # A grant is for one term: under a later leader it is over, whether the log says so or not.
    if grant is None or grant.failed or grant.term != seen.term:
        return NO_PRIMARY
    return OPEN if grant.opened else OPENING


def _headline(state: str, grant: Grant | None, seen: Snapshot, told: Heard) -> str:
    last = f"{grant.node} of term {grant.term}" if grant is not None else "nobody"
    match state:
        case "open":
            return f"{last} is primary and open to clients"
        case "opening":
            return f"{last} is to be primary and not open to clients yet"
        case "no primary":
            leads = f"{seen.leader} leads term {seen.term} and decides who is next"
            return f"there is no primary: {leads}; the last was {last}"
        case "no leader":
            since = f" for {told.leaderless_ms / 1000:.0f} s" if told.leaderless_ms >= 1000 else ""
            return f"this node has known of no leader{since}; the last primary it knows of was {last}"
        case _:
            return "the cluster is being founded"


def _source(seen: Snapshot, told: Heard) -> str:
    if seen.leader == seen.node:
        return f"{seen.node} leads: what the others last said, it has from themselves"
    if seen.leader:
        age_ms = told.heard.get(seen.leader)
        ago = f", {age_ms / 1000:.1f} s ago" if age_ms is not None else ""
        return f"as the leader {seen.leader} told {seen.node}{ago}"
    heard = sorted(name for name, age_ms in told.heard.items() if age_ms < told.alive_ms)
    who = f"it hears of {', '.join(heard)}" if heard else "it hears of nobody"
    return f"as {seen.node} last knew; {who}, and others may know more"


def _connected(cluster: ClusterState, seen: Snapshot, told: Heard) -> frozenset[str]:
    """A leader goes by what it hears itself; a follower hears mostly of the leader, and believes it about the rest."""
    up = {name for name, age_ms in told.heard.items() if age_ms < told.alive_ms}
    if seen.leader not in ("", seen.node):
        up |= {name for name, known in told.members.items() if known["age_ms"] < TOLD_LATELY_MS}
    return frozenset(up | {seen.node}) & {m.name for m in cluster.members}


def _elections(
    cluster: ClusterState, reports: Mapping[str, Report], seen: Snapshot, primary: str
) -> tuple[Forecast, Forecast | None]:
    """As things are, or without the primary there is; and, if nobody wins, with data loss accepted."""
    lost = frozenset({primary} - {""})
    leaders = [seen.leader] if seen.leader and not primary else []
    end = last_known(cluster.grant, reports)
    plainly = replace(cluster, wish_loss=False) if primary else cluster
    found = forecast(plainly, reports, term=seen.term, lost=lost, leaders=leaders, last_known=end)
    if found.winners or found.voters_up < found.voters_needed:
        return found, None
    accepted = replace(cluster, wish_loss=True)
    return found, forecast(accepted, reports, term=seen.term, lost=lost, leaders=leaders, last_known=end)


def _reign(grant: Grant, cluster: ClusterState, history: tuple[HistoryEvent, ...]) -> Reign:
    events = [e for e in history if e.term == grant.term]
    opened = next((e.at for e in events if e.kind == "opened"), "")
    granted = next((e for e in events if e.kind == "promoted"), None)
    return Reign(
        grant.node, grant.term, grant.timeline, grant.opened, opened or (granted.at if granted else ""),
        granted.reason if granted is not None else "", _before(grant, cluster, history), grant.failed,
    )  # fmt: skip


def _before(grant: Grant, cluster: ClusterState, history: tuple[HistoryEvent, ...]) -> tuple[str, ...]:
    """What ended the reign before, as far as the log has it: a switchover that was asked for, a failure, or nothing."""
    earlier = [g for g in cluster.grants if g.term < grant.term]
    if not earlier:
        return ("it created the cluster",) if grant.node == cluster.founder else ()
    last = earlier[-1]
    at = next((i for i, e in enumerate(history) if e.kind == "promoted" and e.term == grant.term), len(history))
    begun = next((i for i, e in enumerate(history) if e.kind == "promoted" and e.term == last.term), -1)
    return ending(history[begun + 1 : at], last.node, last.term, dated=True)


def _trouble(seen: Snapshot) -> list[str]:
    led = any(m.role == "primary" for m in seen.members)
    rows = [m for m in seen.members if m.state not in ("streaming", "voting")]
    odd = [m for m in rows if m.state != "running" or (led and m.role != "primary")]
    return [f"{m.name} is {m.state or 'silent'}: {m.reason or 'no reason is known'}" for m in odd]


def _while_paused(seen: Snapshot, state: str) -> list[str]:
    if not seen.paused:
        return []
    if state in (OPEN, OPENING):
        return ["`pgr resume` once the work is done: until then nothing takes over if the primary is lost"]
    return ["`pgr resume`, or `pgr failover`: the cluster is paused, and nobody is made primary by itself"]


TRY_IT = "try it with --dry-run first"


def _hints(
    state: str, election: Forecast | None, overruled: Forecast | None, primary: str, fenced: tuple[str, ...]
) -> list[str]:  # fmt: skip
    if election is None or election.winners or election.reason.startswith("paused: "):
        return []
    if fenced and state in (NO_PRIMARY, OPEN, OPENING):
        return [f"`pgr unfence {name}`: a person keeps its Postgres down" for name in fenced]
    tagged = [c.name for c in election.candidates if c.up and c.why == Obstacle.NOFAILOVER]
    if tagged and not election.missing:
        out = f"take the tag `nofailover` out of the pgr.toml of {' or '.join(tagged)} and reload it (SIGHUP)"
        return [f"{out}, or have another node up"]
    late = [c.name for c in election.candidates if c.up and c.why == Obstacle.DELAYED]
    if late and not election.missing:
        return [f"`pgr failover --to {late[0]}`: it replays late, and is made primary only when asked for by name"]
    others = [name for name in election.missing if name != primary]
    if election.voters_up < election.voters_needed:
        names = " or ".join(others) or "another voter"
        if state == NO_LEADER:
            mend = f"start {names} again, or mend the network: a majority of the voters must reach each other"
            lost = f"{names} {'is' if len(others) < 2 else 'are'} lost for good"
            return [mend, f"only if {lost}: `pgr recover`; {TRY_IT}"]
        return [f"have {names} up: if the primary is lost now, nothing takes over"]
    if state in (OPEN, OPENING):
        names = " or ".join(others) or "another copy"
        return [f"have {names} up and streaming: if the primary is lost now, nobody may follow it"]
    up = {c.name for c in election.candidates if c.up}
    silent, waiting = ([n for n in election.missing if (n in up) is here] for here in (False, True))
    found = [f"start {' or '.join(silent)} again: what they hold is then known"] if silent else []
    found += [f"wait for {' or '.join(waiting)}; `pgr status` and the log of that node tell why"] if waiting else []
    if overruled is not None and overruled.winners:
        give_up = f"pgr failover --to {overruled.winners[0]} --accept-data-loss"
        found.append(f"`{give_up}` goes on without, and gives up what only they hold; {TRY_IT}")
    return found


def to_json(found: Findings) -> dict[str, Any]:
    """The JSON of ``pgr explain --json``: names as above, positions as in `forecast.plain`."""
    out = {name: getattr(found, name) for name in Findings.__slots__}
    out["reign"] = asdict(found.reign) | {"before": list(found.reign.before)} if found.reign is not None else None
    out["election"] = plain(found.election) if found.election is not None else None
    out["overruled"] = plain(found.overruled) if found.overruled is not None else None
    for name in ("trouble", "warnings", "hints"):
        out[name] = list(out[name])
    return out
