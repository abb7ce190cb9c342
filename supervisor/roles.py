"""What this node does next: a table of rules, first match wins. Pure; `python -m supervisor.roles` prints it.

Level-triggered: the rules look at what the cluster has agreed (`View`) and at what is true here (`Local`) and name one
step. The daemon runs one step at a time; when the answer changes, the step that runs is cancelled and the new one
begins. So every step can be interrupted anywhere and the next one starts from what is really there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from consensus.cluster import ClusterState, Grant
from consensus.hold import PAUSE
from consensus.record import NodeRecord
from fencing.lease import MS, Timings

LAST_MOMENT_MS = 20
"""With the Raft child away: this long before the end of the lease the parent stops Postgres itself."""


class Server(StrEnum):
    """What is known of the local Postgres."""

    DOWN = "down"
    STARTING = "starting"
    STANDBY = "standby"
    PROMOTING = "promoting"
    """From the moment the promotion signal may have been given."""
    PRIMARY = "primary"
    STOPPING = "stopping"


class Data(StrEnum):
    """What PGDATA is."""

    UNKNOWN = "unknown"
    """Not looked at yet: that takes what the log and this node's record say."""
    ABSENT = "absent"
    READY = "ready"
    BROKEN = "broken"
    """A rewind or a clone was interrupted: only good for being cloned over."""


@dataclass(frozen=True, slots=True)
class View:
    """What the Raft child last said. `alive` is False while it is being restarted; the rest is then a memory."""

    alive: bool = False
    incarnation: int = 0
    term: int = 0
    leader: str = ""
    role: str = "follower"
    wanted: int = 0
    """A promise to this term is wanted; 0: none."""
    granted: int = 0
    """This node leads this term and its grant of it is committed; 0: no such grant."""
    hand_over: str | None = None
    """The leader (this node) has accepted a switchover to this node."""
    sentence: str = ""
    pre_promote: tuple[int, int] = (0, 0)
    """Term and number of the run of that hook which is wanted; zeros: none."""
    old_primary: tuple[int, int] = (0, 0)
    """With a grant: the term of the primary before, and when the Raft child last heard of it as leader."""
    record: NodeRecord = NodeRecord()
    cluster: ClusterState | None = None
    lease_term: int = 0
    lease_until_ns: int = 0
    renewed: bool = False
    """The Raft child of now has renewed the lease; False right after it was restarted."""
    met: bool = False
    """The Raft child of now has caught up with a leader. Before that it knows what was agreed before it last stopped,
    and maybe a part of what came after: a primary that has been replaced looks like the newest one."""


@dataclass(frozen=True, slots=True)
class Local:
    """What is true of this node."""

    me: str
    data: Data = Data.UNKNOWN
    server: Server = Server.DOWN
    clean: bool = True
    """No process of Postgres is left, verified, while the server is down."""
    epoch: int = 0
    """The grant under which the server is primary or promoting."""
    upstream: int = 0
    """The grant whose primary is named as upstream, or a standby of it; 0: none."""
    upstream_node: str = ""
    """Whom that is."""
    may_receive: bool = False
    """A WAL receiver may exist or come back: from the moment an upstream is written until it is proven to be gone."""
    said_no_position: int = 0
    """The term to whose leader it was said that there is no position yet."""
    unguarded_since_ns: int = 0
    """The watchdog is gone since; 0: it guards."""
    frozen: int = 0
    """The term for which the promise has been answered with what the server is now; 0: none."""
    vowed: int = 0
    """The highest term this process has promised to, whether the Raft child has said that it is on disk or not."""
    rebuilding: int = 0
    """A rewind under this grant has begun to write: it goes on, whatever else is wanted."""
    diverged: int = 0
    """The grant that this node cannot follow without a rewind."""
    needs_clone: int = 0
    """The grant that this node can only follow after a clone."""
    rebuilt: int = 0
    """Index of the newest `reinit/1` that the copy here was made for."""
    restarted: int = 0
    """Index of the newest `turn/1` of this node that this Postgres was started after."""
    left_down: bool = False
    """Postgres went down although nothing of pgr ended it: it crashed, or a person stopped it."""
    gate_open: bool = False
    witness: bool = False
    """It votes and has no Postgres."""
    stopping: bool = False
    """Asked to stop for good."""
    asked_to_hand_over: bool = False
    """While stopping: a switchover was refused or took too long; stop without."""
    failed_promotion: int = 0
    """The term of a grant that this node could not carry out."""
    crashed: str = ""
    """Why the server is down although it was primary under `epoch`; empty: it is not, or that was reported."""
    died: bool = False
    """It went down by itself then, nobody stopped it (`on_primary_crash`)."""


class Step(StrEnum):
    """What the daemon can be busy with."""

    WAIT = "wait"
    FENCE = "fence"
    HAND_OVER = "hand-over"
    REPORT_FENCED = "report-fenced"
    STOP = "stop"
    EXIT = "exit"
    CREATE = "create"
    CLONE = "clone"
    REWIND = "rewind"
    START = "start"
    FREEZE = "freeze"
    PROMOTE = "promote"
    OPEN = "open"
    OPEN_GATE = "open-gate"
    REGROUP = "regroup"
    FOLLOW = "follow"
    DETACH = "detach"


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. Equal plans are the same step: the daemon goes on with what runs."""

    step: Step
    term: int = 0
    """The grant, the promise or (regroup) the index of the change that the step is about."""
    rule: str = ""
    """Name of the rule that decided."""


@dataclass(frozen=True, slots=True)
class Situation:
    view: View
    local: Local
    timings: Timings
    now_ns: int

    @property
    def writable(self) -> bool:
        """May Postgres here accept a write? One that is stopping may, until it is gone."""
        local = self.local
        stopping = local.server is Server.STOPPING and local.epoch > 0
        return stopping or local.server in (Server.PROMOTING, Server.PRIMARY)

    @property
    def grant(self) -> Grant | None:
        return self.view.cluster.grant if self.view.cluster is not None else None

    @property
    def owes_no_position(self) -> bool:
        """A promise is wanted; there is nothing to freeze yet, and its leader should not wait for an answer."""
        local = self.local
        waiting = self.wanted not in (0, local.frozen, local.said_no_position)
        gone = local.server is not Server.DOWN or local.clean
        return self.view.alive and waiting and gone and local.server is not Server.STANDBY and not self.writable

    @property
    def wanted(self) -> int:
        """The promise that is still wanted: once the grant of its term is committed, nobody waits for it any more."""
        granted = self.grant.term if self.grant is not None else 0
        return self.view.wanted if self.view.wanted > granted else 0

    @property
    def demote_at_ns(self) -> int:
        """Orderly demotion begins here, well before the watchdog's deadline."""
        return self.view.lease_until_ns - (self.timings.lease_ms - self.timings.demote_ms) * MS

    @property
    def authority(self) -> bool:
        """Does this node still hold the grant under which its Postgres is writable, and the lease that goes with it?"""
        unguarded = self.local.unguarded_since_ns
        if unguarded and self.now_ns - unguarded >= self.timings.demote_ms * MS:
            return False
        if self.view.lease_term != self.local.epoch or (self.view.alive and self.view.granted != self.local.epoch):
            return False
        return self.now_ns < self.act_at_ns

    @property
    def act_at_ns(self) -> int:
        """When the parent demotes. A Raft child that is being restarted gets the whole lease, less a last moment."""
        if self.view.alive and self.view.renewed:
            return self.demote_at_ns
        return self.view.lease_until_ns - LAST_MOMENT_MS * MS

    @property
    def follows(self) -> Grant | None:
        """The grant of another node that this one may and should follow."""
        return followable(self.view, self.local)


def source(view: View, local: Local) -> Grant | None:
    """The newest grant, if it is another node's, still holds, and its history is known: whom a copy may be made of.

    Only what a leader has confirmed to this process: one that the others no longer let in (another key, replaced) must
    not find its way to the primary by what it remembers.
    """
    grant = view.cluster.grant if view.cluster is not None else None
    if not view.met or grant is None or grant.node == local.me or grant.failed or not grant.ancestry:
        return None
    return grant


def followable(view: View, local: Local) -> Grant | None:
    """The grant whose primary may be named as upstream: no promise, given or wanted, forbids it."""
    grant = source(view, local)
    if grant is None or grant.term < max(view.record.promised, view.wanted, local.vowed):
        return None
    return grant


@dataclass(frozen=True, slots=True)
class Rule:
    """One row. `sentence` is what the log, the status and the docs show."""

    name: str
    step: Step
    sentence: str
    when: Callable[[Situation], bool]
    term: Callable[[Situation], int] = lambda s: 0


def _own_epoch(s: Situation) -> Grant | None:
    """The grant under which Postgres here is primary, if it is still the newest one."""
    return s.grant if s.grant is not None and s.grant.term == s.local.epoch else None


def _grant_term(s: Situation) -> int:
    return s.grant.term if s.grant is not None else 0


def is_founder(view: View, local: Local) -> bool:
    """Is it to create the cluster's data, and in the life that was named then? A later one of that name never is."""
    cluster = view.cluster
    if cluster is None or not cluster.nonce or cluster.founder != local.me:
        return False
    member = cluster.member(local.me)
    return member is not None and member.incarnation == view.incarnation


def _fenced(s: Situation) -> bool:
    """Does a person keep this node's Postgres down?"""
    return s.view.cluster is not None and s.local.me in s.view.cluster.fenced


def copy_asked_for(view: View, local: Local) -> int:
    """Index of the `reinit/1` that asks this node for a new copy, while it has none made for it; else 0."""
    asked = view.cluster.reinit_of(local.me) if view.cluster is not None else None
    mine = asked is not None and asked.seat.incarnation == view.incarnation
    return asked.index if asked is not None and mine and asked.index > local.rebuilt else 0


def _wants_copy(s: Situation) -> bool:
    return s.local.data is Data.READY and copy_asked_for(s.view, s.local) > 0


def is_paused(view: View) -> bool:
    """Nothing is done here that no person has asked for, but what safety asks."""
    return view.cluster is not None and bool(view.cluster.setting(PAUSE))


def restart_due(view: View, local: Local) -> int:
    """Index of the `turn/1` that asks for a restart of this Postgres, while it was not started since; else 0."""
    running = view.cluster.ops.restarting if view.cluster is not None else None
    turn = running.turn_of(local.me) if running is not None else 0
    return turn if turn > local.restarted else 0


def _left_down(s: Situation) -> bool:
    down = s.local.left_down and s.local.server is Server.DOWN
    return down and is_paused(s.view) and not restart_due(s.view, s.local)


def _copy_held(s: Situation) -> bool:
    """Only another copy (or a rewind) would help, and in pause nothing that is there is replaced."""
    local, term = s.local, _grant_term(s)
    called_for = local.data is Data.BROKEN or term in (local.needs_clone, local.diverged)
    wanted = called_for and term > 0 and not local.rebuilding
    return is_paused(s.view) and wanted and source(s.view, local) is not None and not _wants_copy(s)


def _needs_clone(s: Situation) -> bool:
    return s.local.needs_clone == _grant_term(s) > 0 and not _copy_held(s)


def _change_index(s: Situation) -> int:
    change = s.view.cluster.change if s.view.cluster is not None else None
    return change.index if change is not None else 0


RULES: tuple[Rule, ...] = (
    Rule(
        "authority-lost", Step.FENCE, "the lease or the grant of this primary is gone: stop Postgres at once",
        lambda s: s.writable and not s.authority, lambda s: s.local.epoch,
    ),
    Rule(
        "leftovers", Step.FENCE, "Postgres went down and not all of it is known to be gone: kill the rest",
        lambda s: s.local.server is Server.DOWN and not s.local.clean, lambda s: s.local.epoch,
    ),
    Rule(
        "grant-unused", Step.REPORT_FENCED,
        "this node holds the grant but Postgres is down, verified: give the lease up",
        lambda s: s.view.alive and s.local.server is Server.DOWN and s.view.granted > 0
        and ((bool(s.local.crashed) and s.view.granted == s.local.epoch) or s.view.granted == s.local.failed_promotion
             or _fenced(s)),
        lambda s: s.view.granted,
    ),
    Rule(
        "promotion-failed", Step.FENCE, "the promotion did not end well: stop Postgres and hand over",
        lambda s: s.local.failed_promotion > 0 and s.local.failed_promotion == s.view.granted
        and s.local.server is not Server.DOWN,
        lambda s: s.local.failed_promotion,
    ),
    Rule(
        "hand-over", Step.HAND_OVER, "a switchover was asked for: checkpoint, stop Postgres cleanly, give the lease up",
        lambda s: s.writable and s.view.alive and s.view.hand_over is not None, lambda s: s.local.epoch,
    ),
    Rule(
        "fenced-primary", Step.HAND_OVER,
        "a person keeps this node's Postgres down: checkpoint, stop it cleanly, give the lease up",
        lambda s: s.writable and s.view.alive and _fenced(s), lambda s: s.local.epoch,
    ),
    Rule(
        "stopping-primary", Step.WAIT, "this node is stopping: another member is asked to take over first",
        lambda s: s.local.stopping and s.writable and not s.local.asked_to_hand_over,
    ),
    Rule(
        "stopping", Step.STOP, "this node is stopping: fast stop of Postgres",
        lambda s: s.local.stopping and s.local.server is not Server.DOWN,
    ),
    Rule("stopped", Step.EXIT, "Postgres is down and this node was asked to stop", lambda s: s.local.stopping),
    Rule(
        "control-away", Step.WAIT,
        "the Raft child is being restarted; Postgres keeps its role until the lease runs low",
        lambda s: not s.view.alive or s.view.cluster is None,
    ),
    Rule("witness", Step.WAIT, "witness: it votes and has no Postgres", lambda s: s.local.witness),
    Rule(
        "fenced", Step.STOP, "a person keeps this node's Postgres down: fast stop",
        lambda s: _fenced(s) and s.local.server is not Server.DOWN,
    ),
    Rule(
        "kept-down", Step.WAIT, "a person keeps this node's Postgres down, until `pgr unfence`",
        lambda s: _fenced(s) and not s.local.rebuilding,
    ),
    Rule(
        "left-down", Step.WAIT,
        "paused: Postgres crashed or was stopped by hand and stays down, until `pgr restart` of it or `pgr resume`",
        _left_down,
    ),
    Rule(
        "create", Step.CREATE, "this node is to create the cluster's data directory",
        lambda s: s.view.cluster is not None and is_founder(s.view, s.local) and not s.view.cluster.grants
        and s.local.data is Data.ABSENT and s.local.server is Server.DOWN,
    ),
    Rule(
        "promise", Step.FREEZE,
        "a promise is wanted: receive no more WAL under an older grant, then say how far it goes",
        lambda s: s.wanted > 0 and s.local.frozen != s.wanted and s.local.server is Server.STANDBY,
        lambda s: s.wanted,
    ),
    Rule(
        "promote", Step.PROMOTE, "the grant of this node is committed: arm the watchdog, then promote",
        lambda s: s.view.granted > 0 and s.local.server in (Server.STANDBY, Server.PROMOTING), lambda s: s.view.granted,
    ),
    Rule(
        "prove", Step.OPEN, "promoted: have a record of this epoch flushed by k of the sync group",
        lambda s: s.local.server is Server.PRIMARY and (g := _own_epoch(s)) is not None and not g.opened,
        _grant_term,
    ),
    Rule(
        "open-gate", Step.OPEN_GATE, "the epoch is proven and recorded: let clients in",
        lambda s: s.local.server is Server.PRIMARY and not s.local.gate_open
        and (g := _own_epoch(s)) is not None and g.opened,
        _grant_term,
    ),
    Rule(
        "regroup", Step.REGROUP, "the sync group changes: put its names in force, prove that, and tell the log",
        lambda s: s.local.server is Server.PRIMARY and s.local.gate_open and _own_epoch(s) is not None
        and _change_index(s) > 0,
        _change_index,
    ),
    Rule("serving", Step.WAIT, "primary, open to clients", lambda s: s.local.server is Server.PRIMARY),
    Rule(
        "restart", Step.STOP, "a restart was asked for: fast stop of this standby, which is started again at once",
        lambda s: s.local.server in (Server.STANDBY, Server.STOPPING) and not s.local.epoch
        and restart_due(s.view, s.local) > 0,
        lambda s: restart_due(s.view, s.local),
    ),
    Rule(
        "clone",
        Step.CLONE,
        "there is no usable data directory, or a person wants a new one: copy the primary's",
        lambda s: (
            source(s.view, s.local) is not None
            and s.local.data in (Data.ABSENT, Data.BROKEN)
            and not s.local.rebuilding
            and not _copy_held(s)
        )
        or (s.follows is not None and (_needs_clone(s) or _wants_copy(s))),
        _grant_term,
    ),
    Rule(
        "rewind",
        Step.REWIND,
        "this node holds WAL that the primary does not have: save it, then rewind",
        lambda s: (s.follows is not None and s.local.diverged == _grant_term(s) > 0 and not _copy_held(s))
        or s.local.rebuilding == _grant_term(s) > 0,
        _grant_term,
    ),
    Rule(
        "start", Step.START, "start Postgres as a standby without upstream",
        lambda s: s.local.data is Data.READY and s.local.server in (Server.DOWN, Server.STARTING),
    ),
    Rule(
        "copy-held", Step.WAIT,
        "paused: this node needs a rewind or a new copy, which it gets by `pgr reinit` or after `pgr resume`",
        _copy_held,
    ),
    Rule(
        "follow", Step.FOLLOW, "follow the primary, if this node's history is part of the primary's",
        lambda s: s.follows is not None and s.local.server is Server.STANDBY and s.local.upstream != _grant_term(s),
        _grant_term,
    ),
    Rule(
        "vow-forbids",
        Step.DETACH,
        "a promise forbids the upstream of this standby: receive no more from it",
        # Not `upstream` alone: that ends before the receiver does, and the step must not end with it.
        lambda s: s.local.server is Server.STANDBY and s.local.may_receive
        and s.local.upstream < max(s.view.record.promised, s.local.vowed),
    ),
    Rule(
        "cascading", Step.WAIT, "standby of a standby, which its tag `replicate_from` names",
        lambda s: s.local.server is Server.STANDBY and s.local.upstream > 0 and s.grant is not None
        and s.local.upstream_node not in ("", s.grant.node),
    ),
    Rule(
        "streaming", Step.WAIT, "standby of the primary",
        lambda s: s.local.server is Server.STANDBY and s.local.upstream > 0,
    ),
    Rule("waiting", Step.WAIT, "waiting for the cluster to have a primary that this node may follow", lambda s: True),
)  # fmt: skip
"""Safety first: a writable Postgres without authority comes before everything else."""


def plan(situation: Situation) -> tuple[Plan, str]:
    """The next step and the sentence that explains it."""
    for rule in RULES:
        if rule.when(situation):
            return Plan(rule.step, rule.term(situation), rule.name), rule.sentence
    raise AssertionError("the last rule matches always")


def markdown() -> str:
    """The table for DESIGN.md."""
    rows = [f"| {n} | {r.name} | {r.step.value} | {r.sentence} |" for n, r in enumerate(RULES, 1)]
    return "\n".join(["| # | rule | step | what it means |", "| --- | --- | --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201  # this is its output
