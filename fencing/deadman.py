"""The deadman machine: what is told to the watchdog, and when Postgres dies (safety.md, "Lease", "Fencing ladder").

Pure: ``step(state, event, now_ns)`` gives the next state and what the shell must do. All instants are absolute
nanoseconds of this host's CLOCK_BOOTTIME: there is no "pet", so a message that was late, repeated or reordered can
never lengthen a deadline beyond what was earned. ``python -m fencing.deadman`` prints the rules, the first that
applies wins; each rule's sentence is also the reason given in answers and logs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

from fencing.lease import MS, UNTOLD, Timings


class Phase(Enum):
    """What the watchdog is doing about Postgres."""

    IDLE = "idle"
    """It knows of none."""
    WATCHING = "watching"
    """One runs that cannot accept writes: it dies only with the parent."""
    ARMED = "armed"
    """One may accept writes: it dies at the deadline."""
    KILLING = "killing"
    """Dead or dying; goes on until nothing is left."""


@dataclass(frozen=True, slots=True)
class Deadman:
    """The whole memory of the watchdog. A term or pid of 0 means none."""

    lease_ns: int
    """L: no honest deadline is further away."""
    kill_bound_ns: int
    """F: what a kill may take; nobody is armed with less to go."""
    at: int = UNTOLD
    """Index of the entry of the cluster's log that says so, or `UNTOLD`."""
    phase: Phase = Phase.IDLE
    pid: int = 0
    start_ticks: int = 0
    term: int = 0
    """Of the armed or killed lease; 0 while unarmed."""
    until_ns: int = 0
    """The armed deadline."""
    lease_term: int = 0
    """The newest term heard of."""
    lease_until_ns: int = 0
    """The last deadline the raft child itself told for lease_term (0: none yet)."""
    lease_spent: bool = False
    """Given up, gone backwards or absurd: no deadline of lease_term is believed any more."""
    killed_term: int = 0
    reason: str = ""
    """Why the last kill happened."""
    parent_gone: bool = False


class LeaseChanged(NamedTuple):
    """From the raft child. ``until_ns`` 0: given up (or unreadable)."""

    term: int
    until_ns: int


class Arm(NamedTuple):
    """From the parent, before it promotes. ``until_ns``: what the raft child last told the parent, 0 if nothing."""

    term: int
    pid: int
    start_ticks: int
    until_ns: int


class Disarm(NamedTuple):
    """From the parent: Postgres is verified gone, or cannot accept writes any more."""


class Watch(NamedTuple):
    """From the parent: this Postgres runs and cannot accept writes."""

    pid: int
    start_ticks: int


class Leave(NamedTuple):
    """From the parent: end, you are not needed."""


class Bounds(NamedTuple):
    """From the parent: the timings of the cluster are others now."""

    lease_ns: int
    kill_bound_ns: int
    at: int
    """Index of the entry of the log that says so."""


class ParentGone(NamedTuple):
    """Its pidfd became readable, or it was gone before that could be opened."""


class ClockJumped(NamedTuple):
    """CLOCK_REALTIME minus CLOCK_BOOTTIME changed by this much."""

    by_ns: int


class Tick(NamedTuple):
    """Time may have passed."""


class FenceDone(NamedTuple):
    """The Kill was carried out; ``survivors`` counts what is still there."""

    survivors: int


class Armed(NamedTuple):
    ok: bool
    reason: str
    until_ns: int


class Disarmed(NamedTuple):
    ok: bool
    reason: str


class Watching(NamedTuple):
    ok: bool
    reason: str


class Leaving(NamedTuple):
    ok: bool
    reason: str


class Kill(NamedTuple):
    """Fence now, give up the attempt at ``until_ns`` and report FenceDone."""

    reason: str
    until_ns: int


class Killed(NamedTuple):
    """Tell the parent."""

    term: int
    reason: str
    survivors: int


class Exit(NamedTuple):
    code: int


Event = LeaseChanged | Arm | Disarm | Watch | Leave | Bounds | ParentGone | ClockJumped | Tick | FenceDone
Action = Armed | Disarmed | Watching | Leaving | Kill | Killed | Exit
Outcome = tuple[Deadman, tuple[Action, ...]]


class Rule(NamedTuple):
    """One row: the first row of an event whose guard holds decides."""

    event: type
    when: str
    guard: Callable[[Deadman, Any, int], bool]
    then: str
    effect: Callable[[Deadman, Any, int, str], Outcome]
    why: str


def deadman(timings: Timings, at: int = UNTOLD) -> Deadman:
    """The machine at start: nothing known, nothing armed. ``at``: see `Deadman`."""
    return Deadman(timings.lease_ms * MS, timings.kill_bound_ms * MS, at)


def step(state: Deadman, event: Event, now_ns: int) -> Outcome:
    """The next state and the actions, in order. Total: every event has a rule in every state."""
    for rule in RULES:
        if type(event) is rule.event and rule.guard(state, event, now_ns):
            return rule.effect(state, event, now_ns, rule.why)
    raise AssertionError(f"no rule for {event!r}")


def wakeup_ns(state: Deadman) -> int | None:
    """When the next Tick is due: an instant (maybe past), or None if only an event can change anything."""
    match state.phase:
        case Phase.ARMED:
            return state.until_ns
        case Phase.KILLING:
            return 0
        case _:
            return None


def _kill(state: Deadman, now_ns: int, why: str) -> Outcome:
    after = replace(state, phase=Phase.KILLING, reason=why, killed_term=max(state.killed_term, state.term))
    return after, (Kill(why, now_ns + state.kill_bound_ns),)


def _armed_in(state: Deadman, term: int) -> bool:
    return state.phase is Phase.ARMED and state.term == term


def _deadline_ns(state: Deadman, event: Arm) -> int:
    """The latest deadline known for exactly this term, whoever told it."""
    heard_ns = state.lease_until_ns if state.lease_term == event.term else 0
    return max(heard_ns, event.until_ns)


# Effects. Each takes the rule's sentence, which is the reason it hands on.


def _nothing(state: Deadman, event: Any, now_ns: int, why: str) -> Outcome:
    return state, ()


def _fence(state: Deadman, event: Any, now_ns: int, why: str) -> Outcome:
    return _kill(state, now_ns, why)


def _kill_again(state: Deadman, event: Any, now_ns: int, why: str) -> Outcome:
    return state, (Kill(state.reason, now_ns + state.kill_bound_ns),)


def _new_term(state: Deadman, event: LeaseChanged, now_ns: int, why: str) -> Outcome:
    absurd = not 0 <= event.until_ns <= now_ns + state.lease_ns
    until_ns = 0 if absurd else event.until_ns
    return replace(state, lease_term=event.term, lease_until_ns=until_ns, lease_spent=absurd), ()


def _spend(state: Deadman, event: LeaseChanged, now_ns: int, why: str) -> Outcome:
    after = replace(state, lease_until_ns=0, lease_spent=True)
    return _kill(after, now_ns, why) if _armed_in(state, event.term) else (after, ())


def _extend(state: Deadman, event: LeaseChanged, now_ns: int, why: str) -> Outcome:
    after = replace(state, lease_until_ns=event.until_ns)
    if _armed_in(state, event.term):
        after = replace(after, until_ns=max(state.until_ns, event.until_ns))
    return after, ()


def _arm(state: Deadman, event: Arm, now_ns: int, why: str) -> Outcome:
    until_ns = _deadline_ns(state, event)
    after = replace(
        state, phase=Phase.ARMED, term=event.term, pid=event.pid, start_ticks=event.start_ticks, until_ns=until_ns,
        killed_term=0, reason="",
    )  # fmt: skip
    if event.term > state.lease_term:
        after = replace(after, lease_term=event.term, lease_until_ns=0, lease_spent=False)
    return after, (Armed(True, "", until_ns),)


def _arm_again(state: Deadman, event: Arm, now_ns: int, why: str) -> Outcome:
    return state, (Armed(True, "", state.until_ns),)


def _refuse_arm(state: Deadman, event: Arm, now_ns: int, why: str) -> Outcome:
    return state, (Armed(False, why, state.until_ns if state.phase is Phase.ARMED else 0),)


def _disarm(state: Deadman, event: Disarm, now_ns: int, why: str) -> Outcome:
    phase = Phase.WATCHING if state.pid else Phase.IDLE
    return replace(state, phase=phase, term=0, until_ns=0, killed_term=0, reason=""), (Disarmed(True, ""),)


def _refuse_disarm(state: Deadman, event: Disarm, now_ns: int, why: str) -> Outcome:
    return state, (Disarmed(False, why),)


def _watch(state: Deadman, event: Watch, now_ns: int, why: str) -> Outcome:
    return replace(state, phase=Phase.WATCHING, pid=event.pid, start_ticks=event.start_ticks), (Watching(True, ""),)


def _refuse_watch(state: Deadman, event: Watch, now_ns: int, why: str) -> Outcome:
    return state, (Watching(False, why),)


def _leave(state: Deadman, event: Leave, now_ns: int, why: str) -> Outcome:
    return state, (Leaving(True, ""), Exit(0))


def _refuse_leave(state: Deadman, event: Leave, now_ns: int, why: str) -> Outcome:
    return state, (Leaving(False, why),)


def _bound(state: Deadman, event: Bounds, now_ns: int, why: str) -> Outcome:
    return replace(state, lease_ns=event.lease_ns, kill_bound_ns=event.kill_bound_ns, at=event.at), ()


def _bound_anew(state: Deadman, event: Bounds, now_ns: int, why: str) -> Outcome:
    after, _ = _bound(state, event, now_ns, why)
    return replace(after, lease_until_ns=0, lease_spent=False), ()


def _orphaned(state: Deadman, event: ParentGone, now_ns: int, why: str) -> Outcome:
    return _kill(replace(state, parent_gone=True), now_ns, why)


def _survived(state: Deadman, event: FenceDone, now_ns: int, why: str) -> Outcome:
    return state, (Killed(state.term, state.reason, event.survivors),)


def _all_dead(state: Deadman, event: FenceDone, now_ns: int, why: str) -> Outcome:
    after = replace(state, phase=Phase.IDLE, pid=0, start_ticks=0, term=0, until_ns=0)
    return after, (Killed(state.term, state.reason, 0),)


def _all_dead_exit(state: Deadman, event: FenceDone, now_ns: int, why: str) -> Outcome:
    after, actions = _all_dead(state, event, now_ns, why)
    return after, (*actions, Exit(0))


def _always(state: Deadman, event: Any, now_ns: int) -> bool:
    return True


def _killing(state: Deadman, event: Any, now_ns: int) -> bool:
    return state.phase is Phase.KILLING


def _armed(state: Deadman, event: Any, now_ns: int) -> bool:
    return state.phase is Phase.ARMED


RULES: tuple[Rule, ...] = (
    Rule(
        LeaseChanged, "of a term older than the newest heard of", lambda s, e, now: e.term < s.lease_term,
        "ignored", _nothing, "a lease of an older term says nothing about the present",
    ),
    Rule(
        LeaseChanged, "of a newer term", lambda s, e, now: e.term > s.lease_term,
        "remembered; an armed deadline stays as it is", _new_term,
        "a newer term starts afresh and never lengthens what an older one was armed with",
    ),
    Rule(
        LeaseChanged, "of a term that is spent", lambda s, e, now: s.lease_spent,
        "ignored", _nothing, "a lease that was given up or went wrong does not come back in its term",
    ),
    Rule(
        LeaseChanged, "0, before this term had a deadline",
        lambda s, e, now: e.until_ns == 0 and s.lease_until_ns == 0 and not _armed_in(s, e.term),
        "ignored", _nothing, "no lease was earned in this term so far",
    ),
    Rule(
        LeaseChanged, "0 or unreadable", lambda s, e, now: e.until_ns <= 0,
        "term spent; if armed in it: kill", _spend, "the lease was given up",
    ),
    Rule(
        LeaseChanged, "earlier than the one before", lambda s, e, now: e.until_ns < s.lease_until_ns,
        "term spent; if armed in it: kill", _spend, "the deadline of the lease went backwards, so it counts as expired",
    ),
    Rule(
        LeaseChanged, "further away than L", lambda s, e, now: e.until_ns > now + s.lease_ns,
        "term spent; if armed in it: kill", _spend,
        "the deadline lies further away than a lease lasts, so it counts as expired",
    ),
    Rule(
        LeaseChanged, "otherwise", _always,
        "the armed deadline of this term moves there, never back", _extend,
        "a majority acknowledged a newer round; being absolute, the deadline is true however late it arrives",
    ),
    Rule(
        Arm, "while killing", _killing, "refused", _refuse_arm, "a kill is under way and something is still alive",
    ),
    Rule(
        Arm, "same term, same process, while armed",
        lambda s, e, now: _armed_in(s, e.term) and (s.pid, s.start_ticks) == (e.pid, e.start_ticks),
        "confirmed, nothing changes", _arm_again, "a repeated question gets the same answer and no new deadline",
    ),
    Rule(
        Arm, "anything else while armed", _armed, "refused", _refuse_arm,
        "another Postgres or term is armed: disarm that first",
    ),
    Rule(
        Arm, "no term or no process", lambda s, e, now: e.term <= 0 or e.pid <= 0 or e.start_ticks <= 0,
        "refused", _refuse_arm, "arming takes a term and a process",
    ),
    Rule(
        Arm, "of a term that was killed, or an older one", lambda s, e, now: e.term <= s.killed_term,
        "refused", _refuse_arm, "Postgres was killed in this term: disarm, or come with a higher term",
    ),
    Rule(
        Arm, "of a term older than the newest heard of", lambda s, e, now: e.term < s.lease_term,
        "refused", _refuse_arm, "the raft child has told of a newer term",
    ),
    Rule(
        Arm, "of a term that is spent", lambda s, e, now: e.term == s.lease_term and s.lease_spent,
        "refused", _refuse_arm, "the lease of this term was given up or went wrong",
    ),
    Rule(
        Arm, "with a deadline further away than L", lambda s, e, now: e.until_ns > now + s.lease_ns,
        "refused", _refuse_arm, "the deadline lies further away than a lease lasts",
    ),
    Rule(
        Arm, "without any deadline of this term", lambda s, e, now: _deadline_ns(s, e) <= 0,
        "refused", _refuse_arm, "no lease of this term is known",
    ),
    Rule(
        Arm, "with less than F to go", lambda s, e, now: _deadline_ns(s, e) - now < s.kill_bound_ns,
        "refused", _refuse_arm, "less than the kill bound is left of the lease",
    ),
    Rule(
        Arm, "otherwise", _always, "armed with the latest deadline known of this term", _arm,
        "from here on this Postgres lives until the deadline and no longer",
    ),
    Rule(
        Disarm, "while killing", _killing, "refused", _refuse_disarm,
        "a kill is under way and something is still alive",
    ),
    Rule(
        Disarm, "otherwise", _always, "unarmed; a kill is forgotten; a known process stays watched", _disarm,
        "the parent has verified that Postgres is gone or cannot accept writes",
    ),
    Rule(
        Watch, "while killing", _killing, "refused", _refuse_watch, "a kill is under way and something is still alive",
    ),
    Rule(
        Watch, "while armed", _armed, "refused", _refuse_watch, "a Postgres is armed: disarm it first",
    ),
    Rule(
        Watch, "otherwise", _always, "watched", _watch,
        "a Postgres that cannot accept writes dies only with the parent",
    ),
    Rule(
        Leave, "while armed or killing", lambda s, e, now: s.phase in (Phase.ARMED, Phase.KILLING),
        "refused", _refuse_leave, "a Postgres is armed or dying: the watchdog stays",
    ),
    Rule(
        Leave, "otherwise", _always, "exit 0", _leave, "nothing that could accept writes is running",
    ),
    Rule(
        Bounds, "while armed or killing", lambda s, e, now: s.phase in (Phase.ARMED, Phase.KILLING),
        "L and F are these; an armed deadline stays as it is", _bound,
        "a Postgres that may accept writes is never left without its deadline",
    ),
    Rule(
        Bounds, "otherwise", _always,
        "L and F are these; what was heard of the lease is forgotten, as by a watchdog that starts", _bound_anew,
        "what looked too far away by the old L may have been true",
    ),
    Rule(
        ParentGone, "in any state", _always, "kill, whatever runs, and exit when nothing is left", _orphaned,
        "the parent is gone, and only the parent may run a Postgres",
    ),
    Rule(
        ClockJumped, "by more than F, while armed",
        lambda s, e, now: s.phase is Phase.ARMED and abs(e.by_ns) > s.kill_bound_ns,
        "kill", _fence, "the clocks of this machine jumped, as after a pause that CLOCK_BOOTTIME did not count",
    ),
    Rule(
        ClockJumped, "otherwise", _always, "ignored", _nothing, "nothing that depends on a clock is running",
    ),
    Rule(
        Tick, "at or after the armed deadline", lambda s, e, now: s.phase is Phase.ARMED and now >= s.until_ns,
        "kill", _fence, "the lease has ended",
    ),
    Rule(
        Tick, "while killing", _killing, "kill again", _kill_again, "something survived the kill before",
    ),
    Rule(
        Tick, "otherwise", _always, "nothing", _nothing, "no deadline has passed",
    ),
    Rule(
        FenceDone, "unasked", lambda s, e, now: s.phase is not Phase.KILLING, "ignored", _nothing,
        "no kill was asked for",
    ),
    Rule(
        FenceDone, "with survivors", lambda s, e, now: e.survivors > 0,
        "reported; the next tick kills again", _survived,
        "a kill is over when nothing is left, not before",
    ),
    Rule(
        FenceDone, "nothing left, parent gone", lambda s, e, now: s.parent_gone, "reported; exit 0", _all_dead_exit,
        "nothing is left to guard and nobody to report to",
    ),
    Rule(
        FenceDone, "nothing left", _always, "reported; the term stays killed until disarmed", _all_dead,
        "every process is gone and no shared memory is attached",
    ),
)  # fmt: skip
"""The machine. Order matters within one event."""


def table() -> str:
    """The rules as a Markdown table (DESIGN.md carries a copy, a test keeps it fresh)."""
    lines = ["| event | when | then | because |", "| --- | --- | --- | --- |"]
    lines += [f"| `{rule.event.__name__}` | {rule.when} | {rule.then} | {rule.why} |" for rule in RULES]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
