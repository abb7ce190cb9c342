"""What people have asked for that takes time or has its time: rolling restarts, reloads, a schedule. Pure.

The replicated part: values in `ClusterState.ops`, and what the entries of the log make of them. Whose turn it is and
when something is due are rules of the leader (rolling.py, timetable.py); operate.py carries them out.

An entry that no longer applies changes nothing: `restart/1` while another is under way, `turn/1` of a restart that is
over, `restarted/1` of another turn, `schedule/1` while something is scheduled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from consensus.messages import Entry


def parts(version: str) -> tuple[int, ...]:
    """``18.6`` as (18, 6); of an unknown version nothing, which is less than all."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", version))


VERSION = r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}"


class Rolling(NamedTuple):
    """A restart of the Postgres of several nodes (or of one), one at a time. The newest, under way or over."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    """Of the entry that asked for it."""
    todo: tuple[str, ...]
    """Who is still to be restarted, sorted; who is first is the leader's to say."""
    in_place: bool
    """The primary stays the primary: it is restarted where it is. Else it hands over to a restarted standby first."""
    force: bool
    """Also where writes then wait for the node that is away."""
    timeout_s: int
    """For each node."""
    by: str
    done: tuple[str, ...] = ()
    """In the order of their return."""
    turn: str = ""
    """Who is being restarted."""
    turn_index: int = 0
    """Of the entry that said so: a Postgres that was started after it is a restarted one."""
    turn_term: int = 0
    to: str = ""
    """If it is the primary's turn: who is to be primary; itself: restarted in place."""
    halted: str = ""
    """Why the rest was left as it is."""

    @property
    def under_way(self) -> bool:
        return bool(self.todo) and not self.halted

    @property
    def turn_in_place(self) -> str:
        """Who is restarted as a primary and stays one; empty: nobody."""
        return self.turn if self.under_way and self.turn and self.to == self.turn else ""

    def turn_of(self, name: str) -> int:
        """Its turn, by the index of the entry that said so; 0: it is not."""
        return self.turn_index if self.under_way and self.turn == name else 0


class Scheduled(NamedTuple):
    """A switchover or a restart with its time. There is one at most."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    what: str
    """`switchover` or `restart`."""
    at: str
    """ISO 8601, UTC."""
    request: str
    """The request as it was made, canonical JSON."""
    by: str


class Reload(NamedTuple):
    """The newest order to read files again."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    nodes: tuple[str, ...]


class Operations(NamedTuple):
    """All of it; a part of the cluster's state."""

    rolling: Rolling | None = None
    scheduled: Scheduled | None = None
    reload: Reload = Reload(0, ())

    @property
    def restarting(self) -> Rolling | None:
        """The one that is under way."""
        return self.rolling if self.rolling is not None and self.rolling.under_way else None

    def reload_of(self, name: str) -> int:
        """Index of the newest order to this node; 0: none."""
        return self.reload.index if name in self.reload.nodes else 0


class Outcome(NamedTuple):
    """What an entry makes of it, and the line of the history: kind, node, text."""

    ops: Operations
    kind: str
    node: str
    text: str


def load(plain: Any) -> Operations:
    """From JSON as `clustertext.dump` writes it; None: a state from before there was any of it."""
    if plain is None:
        return Operations()
    rolling, scheduled, reload = plain
    if rolling is not None:
        index, todo, *rest = rolling
        rest[4] = tuple(rest[4])
        rolling = Rolling(index, tuple(todo), *rest)
    return Operations(
        rolling, Scheduled(*scheduled) if scheduled is not None else None, Reload(reload[0], tuple(reload[1]))
    )


def apply(ops: Operations, entry: Entry, body: Mapping[str, Any]) -> Outcome | None:
    """None: it changes nothing. ``entry.kind`` is one of `KINDS`."""
    return KINDS[entry.kind](ops, entry, body)


def _restart(ops: Operations, entry: Entry, body: Mapping[str, Any]) -> Outcome | None:
    names = tuple(sorted(str(n) for n in body["nodes"]))
    if ops.restarting is not None or not names:
        return None
    by = str(body.get("by", ""))
    rolling = Rolling(entry.index, names, bool(body["in_place"]), bool(body["force"]), int(body["timeout_s"]), by)
    text = f"of {', '.join(names)} was asked for" + (f" by {by}" if by else "")
    return Outcome(ops._replace(rolling=rolling), "restart", "", text)


def _turn(ops: Operations, entry: Entry, body: Mapping[str, Any]) -> Outcome | None:
    rolling, name = ops.restarting, str(body["node"])
    if rolling is None or rolling.index != body["index"] or rolling.turn or name not in rolling.todo:
        return None
    to = str(body["to"])
    text = "is restarted now"
    if to:
        text += ": the primary, in place" if to == name else f": the primary, {to} takes over"
    rolling = rolling._replace(turn=name, turn_index=entry.index, turn_term=entry.term, to=to)
    return Outcome(ops._replace(rolling=rolling), "restart", name, text)


def _restarted(ops: Operations, entry: Entry, body: Mapping[str, Any]) -> Outcome | None:
    rolling, name = ops.restarting, str(body["node"])
    if rolling is None or rolling.turn != name or rolling.turn_index != body["turn"]:
        return None
    todo = tuple(n for n in rolling.todo if n != name)
    rolling = rolling._replace(todo=todo, done=(*rolling.done, name), turn="", turn_index=0, turn_term=0, to="")
    return Outcome(ops._replace(rolling=rolling), "restart", name, "is restarted and back")


def _halt(ops: Operations, entry: Entry, body: Mapping[str, Any]) -> Outcome | None:
    rolling = ops.restarting
    if rolling is None or rolling.index != body["index"]:
        return None
    why = str(body["reason"])
    text = f"stops here: {why}; left as they are: {', '.join(rolling.todo)}"
    halted = rolling._replace(halted=why, turn="", turn_index=0, turn_term=0, to="")
    return Outcome(ops._replace(rolling=halted), "restart", rolling.turn, text)


def _schedule(ops: Operations, entry: Entry, body: Mapping[str, Any]) -> Outcome | None:
    if ops.scheduled is not None:
        return None
    by = str(body.get("by", ""))
    made = Scheduled(entry.index, str(body["what"]), str(body["when"]), str(body["request"]), by)
    text = f"{made.what} is scheduled for {made.at}" + (f", asked for by {by}" if by else "")
    return Outcome(ops._replace(scheduled=made), "schedule", "", text)


def _unschedule(ops: Operations, entry: Entry, body: Mapping[str, Any]) -> Outcome | None:
    made = ops.scheduled
    if made is None or made.index != body["index"]:
        return None
    text = f"{made.what} scheduled for {made.at} {body['text']}"
    return Outcome(ops._replace(scheduled=None), "schedule", "", text)


def _reload(ops: Operations, entry: Entry, body: Mapping[str, Any]) -> Outcome | None:
    names, by = tuple(sorted(str(n) for n in body["nodes"])), str(body.get("by", ""))
    text = f"of {', '.join(names)} was asked for" + (f" by {by}" if by else "")
    return Outcome(ops._replace(reload=Reload(entry.index, names)), "reload", "", text)


KINDS: Mapping[str, Callable[[Operations, Entry, Mapping[str, Any]], Outcome | None]] = {
    "restart/1": _restart,
    "turn/1": _turn,
    "restarted/1": _restarted,
    "halt/1": _halt,
    "schedule/1": _schedule,
    "unschedule/1": _unschedule,
    "reload/1": _reload,
}
