"""At the leader: pause, restarts, reloads and the schedule, from what people ask to entries and acts. Pure, like the
node it works on.

A schedule is carried out at most once: that it is begun is committed before anything is done, and whoever committed
that does it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from consensus import rolling, timetable
from consensus.changes import Proposal, spare
from consensus.cluster import ClusterState, canonical
from consensus.hold import PAUSE
from consensus.operations import VERSION, Rolling, Scheduled, parts
from consensus.reconfigure import Answer, refused
from consensus.succession import successor
from consensus.timetable import BadTime
from fencing.lease import MS

if TYPE_CHECKING:
    from consensus.campaign import Campaigning
    from consensus.node import Node

    CarryOut = Callable[[Node, str, dict[str, Any], int], Answer]

REQUESTS = ("restart", "reload", "schedule.cancel")
TIMEOUT_S = 300
FIT = ("running", "streaming", "starting", rolling.STOPPED, rolling.QUARANTINED)
"""What a node's Postgres may be doing when it is to be restarted; else there is no Postgres there to restart."""
TIMEOUT_MAX_S = 86_400
WHO_MAX = 100


def who(body: dict[str, Any]) -> str:
    """Who asked, as far as their `pgr` knew; printable, and not longer than a line."""
    return "".join(ch for ch in str(body.get("by") or "") if ch.isprintable())[:WHO_MAX]


def request(node: Node, name: str, body: dict[str, Any], now_ns: int) -> Answer:
    """``name`` is one of `REQUESTS`."""
    match name:
        case "restart":
            return restart(node, body, now_ns)
        case "reload":
            return _reload(node, body, now_ns)
        case _:
            return _cancel(node, body, now_ns)


def pausing(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """`pause` and `resume` as the request to set the setting that they are."""
    return {"set": {PAUSE: name == "pause"}, "unset": [], "by": who(body), "after": None}


# -- requests ----------------------------------------------------------------------------------------------------------


def restart(node: Node, body: dict[str, Any], now_ns: int) -> Answer:
    """``{nodes: [name] or null (all), pending, role, pg_version, force, timeout_s, at, by}``."""
    tip = node.tip()
    wanted = _meant(tip, body.get("nodes"))
    if not isinstance(wanted, list):
        return wanted
    timeout_s = body.get("timeout_s") or TIMEOUT_S
    if not isinstance(timeout_s, int) or not 1 <= timeout_s <= TIMEOUT_MAX_S:
        return refused(64, f"a timeout can't be {timeout_s!r} s", f"between 1 and {TIMEOUT_MAX_S}")
    problem = _no_condition(body)
    if problem is not None:
        return problem
    if body.get("at"):
        return schedule(node, "restart", body, now_ns)
    if tip.ops.restarting is not None:
        left = ", ".join(tip.ops.restarting.todo)
        return refused(75, f"a restart is under way: {left} are left", "wait for it, or `pgr restart --cancel`")
    wanted = [n for n in wanted if _meets(node, n, body)]
    if not wanted:
        return True, {"nodes": [], "index": 0, "term": node.raft.term}
    problem = _unfit_to_restart(node, tip, wanted, bool(body.get("force")), now_ns)
    if problem is not None:
        return problem
    if body.get("dry_run"):
        return True, {"nodes": wanted, "index": 0, "term": node.raft.term}
    primary = node.granted()
    entry = {
        "nodes": wanted, "in_place": primary is not None and wanted == [primary.node],
        "force": bool(body.get("force")), "timeout_s": timeout_s, "by": who(body),
    }  # fmt: skip
    index = node.propose_change(Proposal("restart/1", entry), now_ns)
    if not index:
        return refused(75, "this node leads no more", "ask again in a moment")
    return True, {"nodes": wanted, "index": index, "term": node.raft.term}


def _no_condition(body: dict[str, Any]) -> Answer | None:
    """Why ``role`` and ``pg_version`` can't be looked at."""
    role, version = body.get("role"), body.get("pg_version")
    if role not in (None, "primary", "replica"):
        return refused(64, f"a role is not {role!r:.60}", "primary, or replica")
    if version is not None and not (isinstance(version, str) and re.fullmatch(VERSION, version)):
        return refused(64, f"a version of Postgres is not {version!r:.60}", "for example 18.6")
    if body.get("at") and (role or version):
        return refused(64, "role and version are looked at now, and do not go with a time", "name the nodes")
    return None


def _meets(node: Node, name: str, body: dict[str, Any]) -> bool:
    """Is it to be restarted, by all that was said? An unknown version counts as an older one."""
    seen, grant = node.sightings.of(name), node.granted()
    role, version = body.get("role"), body.get("pg_version")
    return (
        (not body.get("pending") or bool(seen.get("pending")))
        and (role is None or (role == "primary") is (grant is not None and grant.node == name))
        and (version is None or parts(str(seen.get("version", ""))) < parts(version))
    )


def _meant(tip: ClusterState, names: Any) -> list[str] | Answer:
    """The nodes that a request names, sorted; all with a Postgres if it names none."""
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        return refused(64, f"{names!r} is no list of names", "leave it out to mean all")
    able = [m.name for m in tip.members if m.has_data]
    strange = [n for n in names or () if n not in able]
    if strange:
        what = f"no member is named {strange[0]}" if tip.member(strange[0]) is None else f"{strange[0]} has no Postgres"
        return refused(64, what, f"those with a Postgres: {', '.join(able)}")
    return sorted(set(names or able))


def _unfit_to_restart(node: Node, tip: ClusterState, names: list[str], force: bool, now_ns: int) -> Answer | None:
    """Why none of it is begun. A group that has what it needs is waited for later; here is said what waiting can't
    mend."""
    grant = node.granted()
    down = all(_state_of(node, n)[0] == rolling.STOPPED for n in names)
    if (grant is None or not grant.opened) and not down:
        return refused(75, "there is no primary at the moment", "see `pgr explain`; restart when there is one")
    fenced = [n for n in names if n in tip.fenced]
    if fenced:
        return refused(78, f"{fenced[0]} is fenced: its Postgres is kept down", f"`pgr unfence {fenced[0]}` starts it")
    facts = node.facts(now_ns)
    silent = [n for n in names if n not in facts.connected]
    if silent:
        return refused(75, f"{silent[0]} is not connected", "see `pgr status`; bring it back, or leave it out")
    busy = [(n, at) for n in names if (at := _state_of(node, n)[0]) not in FIT and n in facts.connected]
    if busy:
        return refused(75, f"{busy[0][0]} is {busy[0][1] or 'not heard of'}", "wait until it runs, or leave it out")
    if force or grant is None:
        return None
    for name in names:
        member = tip.member(name)
        refusal = spare(tip, facts, member) if member is not None and name != grant.node else None
        if refusal is not None:
            hint = "bring the others back first; `--force` does it nevertheless, and writes then wait for it"
            return refused(refusal.code, refusal.reason, hint)
    return _primary_before_standbys(node, tip, names, grant.node)


def _primary_before_standbys(node: Node, tip: ClusterState, names: list[str], primary: str) -> Answer | None:
    if names != [primary]:
        return None
    others = [m.name for m in tip.members if m.has_data and m.name != primary]
    for setting in node.sightings.of(primary).get("standbys_first", []):
        behind = [n for n in others if setting in node.sightings.of(n).get("standbys_first", [])]
        if behind:
            why = f"{setting} waits for a restart, and a standby must not have less of it than the primary: "
            hint = "`pgr restart --pending` takes the standbys first, the primary last"
            return refused(78, f"{why}{behind[0]} would stop replaying", hint)
    return None


def _reload(node: Node, body: dict[str, Any], now_ns: int) -> Answer:
    """``{nodes: [name] or null (all), by}``."""
    wanted = _meant(node.tip(), body.get("nodes"))
    if not isinstance(wanted, list):
        return wanted
    index = node.propose_change(Proposal("reload/1", {"nodes": wanted, "by": who(body)}), now_ns)
    if not index:
        return refused(75, "this node leads no more", "ask again in a moment")
    return True, {"nodes": wanted, "index": index, "term": node.raft.term}


def schedule(node: Node, what: str, body: dict[str, Any], now_ns: int) -> Answer:
    """A switchover or a restart, at ``body["at"]``."""
    tip = node.tip()
    if tip.setting(PAUSE):
        return refused(78, "the cluster is paused: nothing is carried out by itself", "first `pgr resume`")
    made = tip.ops.scheduled
    if made is not None:
        hint = f"`pgr {made.what} --cancel` first: one at a time"
        return refused(75, f"a {made.what} is scheduled already, for {made.at}", hint)
    try:
        at = timetable.written(timetable.parse(str(body["at"]), _now(node)))
    except BadTime as bad:
        return refused(64, bad.reason, bad.hint)
    own = ("to", "by") if what == "switchover" else ("nodes", "pending", "force", "timeout_s", "by")
    kept = {k: v for k, v in body.items() if k in own}
    entry = {"what": what, "when": at, "request": canonical(kept), "by": who(body)}
    index = node.propose_change(Proposal("schedule/1", entry), now_ns)
    if not index:
        return refused(75, "this node leads no more", "ask again in a moment")
    return True, {"scheduled": what, "at": at, "index": index, "term": node.raft.term}


def _cancel(node: Node, body: dict[str, Any], now_ns: int) -> Answer:
    """``{what: switchover or restart, by}``: what is scheduled, and a restart that is under way."""
    what, by, tip = str(body.get("what")), who(body), node.tip()
    made, running = tip.ops.scheduled, tip.ops.restarting
    cancelled = []
    if made is not None and made.what == what:
        text = "is cancelled" + (f" by {by}" if by else "")
        node.propose_change(Proposal("unschedule/1", {"index": made.index, "text": text}), now_ns)
        cancelled.append(f"the {what} scheduled for {made.at}")
    if what == "restart" and running is not None:
        node.propose_change(rolling.halt(running, "it was cancelled" + (f" by {by}" if by else "")), now_ns)
        cancelled.append(f"the restart of {', '.join(running.todo)}")
    if not cancelled:
        return refused(64, f"no {what} is scheduled or under way", "see `pgr status`")
    return True, {"cancelled": " and ".join(cancelled), "term": node.raft.term}


# -- what goes on by itself --------------------------------------------------------------------------------------------


def conduct(node: Node, notes: Campaigning, now_ns: int, carry_out: CarryOut) -> None:
    """Each turn of a leader whose own no-op is committed, as primary or as caretaker. ``carry_out``: of a request."""
    _timetable(node, notes, now_ns, carry_out)
    if notes.handing_over_to is not None or notes.handed_over or node.cluster.ops.restarting is None:
        return
    _go_on(node, notes, now_ns)
    running = node.tip().ops.restarting
    if running is None or running != node.cluster.ops.restarting:  # halted, or not committed yet
        return
    # Said in this very term: in a later one its Postgres was started anew, and is the restarted one.
    if running.turn == node.me and running.to and running.turn_term == node.raft.term and _open(node):
        _stop_primary(node, notes, running, now_ns)


def _open(node: Node) -> bool:
    grant = node.granted()
    return grant is not None and grant.opened


def _go_on(node: Node, notes: Campaigning, now_ns: int) -> None:
    tip = node.tip()
    running = tip.ops.restarting
    if running is None:
        return
    at = (running.index, len(running.done), running.turn_index)
    if notes.turn_seen[0] != at:
        notes.turn_seen = (at, now_ns)
    waited_ms = (now_ns - notes.turn_seen[1]) // MS
    primary = node.me if _open(node) else ""
    target, problem = successor(node, "", now_ns, running.done) if primary else ("", "")
    if problem:  # of those that were restarted nobody can
        target, problem = successor(node, "", now_ns)
    states = {m.name: _state_of(node, m.name) for m in tip.members}
    seen = rolling.Seen(primary, waited_ms, states, "" if problem else target)
    step = rolling.next_step(tip, node.facts(now_ns), seen)
    if step is not None:
        node.propose_change(step, now_ns)


def _state_of(node: Node, name: str) -> tuple[str, str]:
    seen = node.sightings.of(name)
    return str(seen.get("state", "")), str(seen.get("reason", ""))


def _stop_primary(node: Node, notes: Campaigning, running: Rolling, now_ns: int) -> None:
    """This primary's turn. In place it releases to itself: it leads again at once, and its Postgres is waited for."""
    if running.to != node.me:
        _, problem = successor(node, running.to, now_ns)
        if problem:
            node.propose_change(rolling.halt(running, problem), now_ns)
            return
        node.wish("switchover", running.to, now_ns, accept_loss=False, by="a rolling restart")
    notes.handing_over_to = running.to


def _timetable(node: Node, notes: Campaigning, now_ns: int, carry_out: CarryOut) -> None:
    if notes.begun is not None:
        if node.applied >= notes.begun[0]:
            (_, due), notes.begun = notes.begun, None
            _begin(node, due, now_ns, carry_out)
        return
    made = node.cluster.ops.scheduled
    if made is None or made != node.tip().ops.scheduled:
        return  # nothing, or its end is not committed yet
    begin, dropped = timetable.verdict(
        made.at, _now(node), paused=bool(node.cluster.setting(PAUSE)), open_primary=_open(node)
    )
    if not begin and not dropped:
        return
    problem = _speaks_against(node, made, now_ns, carry_out) if _open(node) else None
    if begin and problem is not None:
        if problem["code"] == 75:
            return  # later it may work, until it is too late
        begin, dropped = False, f"is not done: {problem['error']}"
    elif problem is not None:
        dropped += f": {problem['error']}"
    index = node.propose_change(Proposal("unschedule/1", {"index": made.index, "text": dropped or "begins"}), now_ns)
    if begin and index:
        notes.begun = (index, made)


def _speaks_against(node: Node, made: Scheduled, now_ns: int, carry_out: CarryOut) -> dict[str, Any] | None:
    ok, said = carry_out(node, made.what, json.loads(made.request) | {"dry_run": True}, now_ns)
    found: dict[str, Any] | None = said.get("refusal") if ok else said
    return found


def _begin(node: Node, made: Scheduled, now_ns: int, carry_out: CarryOut) -> None:
    ok, said = carry_out(node, made.what, json.loads(made.request), now_ns)
    if not ok:
        text = f"{made.what} that was scheduled for {made.at} is not done: {said['error']}"
        entry = {"kind": "schedule", "term": node.raft.term, "node": "", "text": text, "fields": {}}
        node.propose_change(Proposal("event/1", entry), now_ns)


def _now(node: Node) -> datetime:
    return datetime.fromisoformat(node.wall_clock())
