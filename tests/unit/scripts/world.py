"""Real Raft cores, their disks, a network that does what it is told, and time that passes when it is told to.

What is said of every step: who changes its role or its term, what is committed, what is cut from a log. Safety is
checked all the time: one leader a term, and what is committed is committed alike everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from unittest.mock import patch

from consensus import raft
from consensus.cluster import canonical
from consensus.membership import LEARNER, MEMBERS, VOTER, Member, membership_in
from consensus.messages import (
    AppendReq,
    AppendResp,
    Entry,
    HardState,
    PreVoteReq,
    PreVoteResp,
    RaftMessage,
    Snapshot,
    SnapshotReq,
    TimeoutNow,
    VoteReq,
    VoteResp,
)
from consensus.raft import (
    Beat,
    Campaign,
    Compact,
    Event,
    Log,
    Propose,
    Raft,
    RaftBugError,
    RaftConfig,
    Ready,
    Received,
    Release,
    Role,
    StepDown,
    Tick,
)
from fencing.lease import MS, PROFILES

T = PROFILES["default"]


class ScriptError(Exception):
    """The script asks for something that can't be."""


@dataclass
class Machine:
    config: RaftConfig
    raft: Raft
    hard: HardState
    log: Log
    up: bool = True
    boot: int = 1


@dataclass(frozen=True)
class Mail:
    src: str
    dst: str
    message: RaftMessage

    def __str__(self) -> str:
        return f"{self.src}->{self.dst} {words_of(self.message)}"


def kind_of(message: RaftMessage) -> str:
    return type(message).__name__


def entry_words(entry: Entry) -> str:
    if entry.kind == MEMBERS:
        members = membership_in(entry.data)
        text = f"members {' '.join(members.voters)}"
        text += f" learners {' '.join(members.learners)}" if members.learners else ""
    else:
        text = entry.data or entry.kind.partition("/")[0]
    return f"{entry.index}@{entry.term} {text}"


def words_of(m: RaftMessage) -> str:
    return f"{kind_of(m)}: {_said_by(m)}"


def _said_by(m: RaftMessage) -> str:
    match m:
        case PreVoteReq():
            return f"asks for a term {m.term}, log ends {m.last_index}@{m.last_term}"
        case PreVoteResp():
            return f"{'would' if m.granted else 'would not'} in {m.asked_term}, is in {m.term}"
        case VoteReq():
            proof = f", {m.released_leader} released {m.released_term}" if m.released_term else ""
            return f"term {m.term}, log ends {m.last_index}@{m.last_term}{proof}"
        case VoteResp():
            return f"term {m.term}, {'yes' if m.granted else 'no'}"
        case AppendReq():
            what = ", ".join(map(entry_words, m.entries)) or "nothing"
            return f"term {m.term}, after {m.prev_index}@{m.prev_term}: {what}; commit {m.commit}"
        case AppendResp():
            return f"term {m.term}, {'has' if m.ok else 'refuses, try'} {m.match}"
        case SnapshotReq():
            return f"term {m.term}, up to {m.snapshot.index}@{m.snapshot.term}"
        case TimeoutNow():
            return f"term {m.term}"


class World:
    def __init__(self) -> None:
        self.now = 1000
        """Milliseconds. Not 0: that is "never" in the core."""
        self.machines: dict[str, Machine] = {}
        self.mail: list[Mail] = []
        self.kept: list[Mail] = []
        self.cut: set[tuple[str, str]] = set()
        self.said: list[str] = []
        self.leaders: dict[int, str] = {}
        self.committed: dict[int, Entry] = {}
        self.trace = False
        self.batch = raft.ENTRIES_PER_MESSAGE_MAX

    # -- machines ------------------------------------------------------------------------------------------------

    def add(self, name: str, voters: tuple[str, ...], log: Log, hard: HardState, *, fresh: bool) -> None:
        config = RaftConfig(
            name, voters, T.heartbeat_ms * MS, T.election_ms * MS, T.jitter_ms * MS, T.lease_ms * MS
        )  # fmt: skip
        self.machines[name] = Machine(config, self._core(config, hard, log, 1, fresh=fresh), hard, log)

    def _core(self, config: RaftConfig, hard: HardState, log: Log, boot: int, *, fresh: bool) -> Raft:
        seed = sum(map(ord, config.me)) * 1000 + boot
        return Raft(config, hard, log, boot=boot, seed=seed, now_ns=self.now * MS, fresh=fresh)

    def machine(self, name: str) -> Machine:
        if name not in self.machines:
            raise ScriptError(f"there is no node {name}")
        return self.machines[name]

    def crash(self, name: str) -> None:
        self.machine(name).up = False
        self.mail = [m for m in self.mail if name not in (m.src, m.dst)]

    def restart(self, name: str, *, resume: bool = False, wipe: bool = False) -> None:
        """With what is on its disk; ``wipe``: nothing is, and it is no voter of the founding any more."""
        m = self.machine(name)
        if m.up:
            self.crash(name)
        if wipe:
            m.hard, m.log = HardState(), Log()
            voters = tuple(v for v in m.config.voters if v != name)
            m.config = replace(m.config, voters=voters)
        m.up, m.boot = True, m.boot + 1
        m.raft = self._core(m.config, m.hard, m.log, m.boot, fresh=wipe)
        if resume:
            before = m.raft.clone()
            self._carry_out(name, m, self._safely(name, m, m.raft.resume), before)

    # -- events --------------------------------------------------------------------------------------------------

    def step(self, name: str, event: Event) -> Ready:
        m = self.machine(name)
        if not m.up:
            raise ScriptError(f"{name} is down")
        before = m.raft.clone()
        with patch.object(raft, "ENTRIES_PER_MESSAGE_MAX", self.batch):
            ready = self._safely(name, m, lambda: m.raft.step(event, self.now * MS))
        self._carry_out(name, m, ready, before)
        return ready

    def _safely(self, name: str, m: Machine, do: Callable[[], Ready]) -> Ready:
        try:
            return do()
        except RaftBugError as error:
            m.up = False
            raise ScriptError(f"{name} stops: {error}") from error

    def _carry_out(self, name: str, m: Machine, ready: Ready, before: Raft) -> None:
        core = m.raft
        self._save(m, ready)
        if (core.role, core.term) != (before.role, before.term):
            self.say(f"{name} {before.role} of {before.term} -> {core.role} of {core.term}")
        if ready.truncate_from is not None and not ready.restored:
            gone = before.log.between(ready.truncate_from, before.log.last_index)
            self.say(f"{name} drops {', '.join(map(entry_words, gone))}")
        if ready.restored:
            self.say(f"{name} starts from the snapshot at {core.log.snapshot.index}@{core.log.snapshot.term}")
        if ready.committed:
            self.say(f"{name} commits {', '.join(map(entry_words, ready.committed))}")
        for dst, message in (*ready.now, *ready.after):
            self.mail.append(Mail(name, dst, message))
        self._check(name, m, ready)

    def _save(self, m: Machine, ready: Ready) -> None:
        entries = m.log.entries
        if ready.truncate_from is not None:
            entries = tuple(e for e in entries if e.index < ready.truncate_from)
        snapshot = ready.snapshot or m.log.snapshot
        entries = tuple(e for e in (*entries, *ready.entries) if e.index > snapshot.index)
        m.hard, m.log = ready.hard or m.hard, Log(snapshot, entries)
        if m.log != m.raft.log:
            raise ScriptError(f"what {m.config.me} was told to save is not what it believes")

    def _check(self, name: str, m: Machine, ready: Ready) -> None:
        if m.raft.role is Role.LEADER and self.leaders.setdefault(m.raft.term, name) != name:
            raise ScriptError(f"two leaders of term {m.raft.term}: {self.leaders[m.raft.term]} and {name}")
        for entry in ready.committed:
            if self.committed.setdefault(entry.index, entry) != entry:
                raise ScriptError(f"{name} commits {entry}, but {self.committed[entry.index]} was committed")

    # -- network and time ----------------------------------------------------------------------------------------

    def passes(self, mail: Mail) -> bool:
        return (mail.src, mail.dst) not in self.cut and mail.dst in self.machines and self.machines[mail.dst].up

    def deliver(self, wanted: Callable[[Mail], bool], *, show: bool) -> int:
        """Once what is on its way and wanted; returns how much that was."""
        now = [m for m in self.mail if wanted(m)]
        self.mail = [m for m in self.mail if not wanted(m)]
        for mail in now:
            if not self.passes(mail):
                if show:
                    self.say(f"{mail} -- lost")
                continue
            if show or self.trace:
                self.say(str(mail))
            self.step(mail.dst, Received(mail.src, mail.message))
        return len(now)

    def settle(self) -> None:
        """Until nobody has anything more to say."""
        for _ in range(100):
            if not self.deliver(lambda _: True, show=False):
                return
        raise ScriptError("it never ends")

    def run(self, ms: int, *, deliver: bool) -> None:
        for _ in range(ms):
            self.now += 1
            if deliver:
                self.deliver(lambda _: True, show=False)
            for name, m in self.machines.items():
                if m.up and self.now * MS >= m.raft.wakeup_ns:
                    self.step(name, Tick())

    def say(self, line: str) -> None:
        self.said.append(line)

    # -- what a script can ask -----------------------------------------------------------------------------------

    def status(self, names: Iterable[str]) -> None:
        for name in names:
            m = self.machine(name)
            if not m.up:
                self.say(f"{name} down")
                continue
            core = m.raft
            left = core.lease_until_ns // MS - self.now
            lease = f", lease {left} ms" if left > 0 else ""
            released = f", released {core.released}" if core.released else ""
            follows = f" of {core.leader}" if core.leader and core.role is Role.FOLLOWER else ""
            members = " ".join(core.members.voters)
            learners = f" learners {' '.join(core.members.learners)}" if core.members.learners else ""
            self.say(
                f"{name} {core.role}{follows}, term {core.term}, vote {core.vote or '-'}, log {core.log.last_index}"
                f"@{core.log.last_term}, commit {core.commit}, members {members}{learners}{released}{lease}"
            )

    def log_of(self, name: str) -> None:
        m = self.machine(name)
        base = m.log.snapshot
        start = [f"snapshot {base.index}@{base.term}"] if base.index else []
        self.say(f"{name}: {', '.join([*start, *map(entry_words, m.log.entries)]) or 'empty'}")


def members_data(voters: Iterable[str], learners: Iterable[str]) -> str:
    rows = [Member(n, 1, "", "", "", VOTER, VOTER) for n in voters]
    rows += [Member(n, 1, "", "", "", LEARNER, VOTER) for n in learners]
    return canonical({"members": [list(row) for row in sorted(rows)]})


__all__ = [
    "Beat", "Campaign", "Compact", "Entry", "HardState", "Log", "Mail", "Propose", "Release", "ScriptError", "Snapshot",
    "StepDown", "World", "kind_of", "members_data",
]  # fmt: skip
