"""The founding: real `Founder`s and, once there is a charter, real `Node`s that answer greetings; letters between them.

A greeting may be held up and arrive at any later time, but not after a vote between the same two: what is under way
from one process to another keeps its order. A charter may arrive at any time, any number of times. A restart forgets
who was heard; a disk may be lost, or the Raft state alone (then there is evidence of a cluster). A cluster has *formed*
once a majority of its founders have exchanged votes: then it may have acknowledged something.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple, cast
from unittest.mock import patch

from consensus.cluster import found
from consensus.effects import SendStranger
from consensus.founder import Founder
from consensus.founding import Greeting, founders
from consensus.membership import VOTER, Member
from consensus.messages import HardState, Hello, Snapshot
from consensus.node import Node
from consensus.peerwire import NO_CLUSTER, Envelope
from consensus.process import Host, _raft_config
from consensus.quorum import has_majority
from consensus.raft import Log, Raft
from consensus.record import Identity, NodeRecord
from consensus.write import Stored, Write
from fencing.lease import PROFILES
from tests.model.explore import Interner, Label, Move, State, ViolationError
from tests.model.raftvalues import plural

NAMES = ("a", "b", "c", "d", "e")
LOSSES, RAFT_LOSSES, DELAYS = range(3)
"""Places in a budget."""
ROUNDS = 3


class FoundingSetup(NamedTuple):
    """How much may be lost or held up."""

    nodes: int = 3
    losses: int = 0
    raft_losses: int = 0
    delays: int = 0

    def __str__(self) -> str:
        words = ((self.losses, "{} lost disk"), (self.raft_losses, "{} lost Raft state"), (self.delays, "K={}"))
        return plural(", ".join([f"N={self.nodes}", *(text.format(count) for count, text in words if count)]))


class Starter(NamedTuple):
    """A node; ``disk`` and ``lost`` survive."""

    disk: Identity
    running: Identity
    heard: tuple[Greeting, ...] = ()
    lost: bool = False
    """There is data of a cluster on its disk, and no Raft state."""


class Letter(NamedTuple):
    """A Hello under way."""

    src: int
    src_incarnation: int
    dst: int
    dst_incarnation: int
    data: str


class Ghost(NamedTuple):
    """What has ever happened."""

    charters: tuple[str, ...] = ()
    """By cluster id, which is 1 + the place here."""
    stored: tuple[str, ...] = ()
    """Cluster ids that somebody has stored."""
    votes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """By cluster id: the founders that have exchanged votes."""
    lost: int = 0
    """Disks that are gone."""
    lost_charter: bool = False
    """With a charter on it."""


class Step(NamedTuple):
    node: int
    letters: tuple[int, ...]


class Silent:
    """A log that nobody reads."""

    def once_per(self, *_: object) -> Silent:
        return self

    def info(self, *_: object, **__: object) -> None: ...

    warning = info


@dataclass
class Desk:
    """What a `Founder` does to its host."""

    node: Starter
    sent: list[tuple[str, int, Hello]]

    def save(self, write: Write) -> None:
        assert write.identity is not None
        self.node = self.node._replace(disk=write.identity)


class FoundingWorld:
    """State: a node per slot, letters under way, ghost, budget."""

    def __init__(self, setup: FoundingSetup, core: type[Founder] = Founder) -> None:
        self.setup, self.n, self.core = setup, setup.nodes, core
        self.names = NAMES[: self.n]
        self.nodes: Interner[Starter] = Interner()
        self.letters: Interner[Letter] = Interner()
        self.posts: Interner[tuple[int, ...]] = Interner()
        self.ghosts: Interner[Ghost] = Interner()
        self.budgets: Interner[tuple[int, ...]] = Interner()
        self.labels: Interner[tuple[object, ...]] = Interner()
        self.steps: dict[tuple[int, ...], Step] = {}

    def start(self) -> State:
        nodes = [self.nodes(self.born(i, 1)) for i in range(self.n)]
        budget = (self.setup.losses, self.setup.raft_losses, self.setup.delays)
        return (*nodes, self.posts(()), self.ghosts(Ghost()), self.budgets(budget))

    def born(self, i: int, incarnation: int, *, lost: bool = False) -> Starter:
        identity = Identity(self.names[i], incarnation)
        return Starter(identity, identity, lost=lost)

    def canon(self, state: State) -> State:
        return state  # the lowest name is somebody special

    # -- the code under test -------------------------------------------------------------------------------------

    def greeting(self, node: Starter) -> Greeting:
        name, incarnation = node.running.name, node.running.incarnation
        return Greeting(
            name, incarnation, f"{name}:1", f"{name}:2", f"{name}:3", self.names, "", VOTER, lost=node.lost
        )  # fmt: skip

    def desk(self, node: Starter) -> tuple[Founder, Desk]:
        desk = Desk(node, [])
        child = SimpleNamespace(
            name=node.running.name, peers=dict.fromkeys(self.names), commit="quorum", profile="default",
            settings='{"parameters":{}}',
        )  # fmt: skip
        host = SimpleNamespace(
            identity=node.running, child=child, log=Silent(), store=desk, tell=lambda *_: None, ready_body=dict,
            stored=Stored(node.disk, HardState(), None, (), NodeRecord()), introduced=((), 0),
            envelope=lambda letter: letter,
            send=lambda name, hello, _cluster, incarnation=0: desk.sent.append((name, incarnation, hello)),
        )  # fmt: skip
        founder = self.core(cast(Host, host))
        founder.heard = {g.name: g for g in node.heard}
        return founder, desk

    def left(self, founder: Founder, desk: Desk) -> Step:
        """What a founder leaves behind when its turn is over."""
        heard = tuple(sorted(founder.heard.values(), key=lambda g: g.name))
        node = desk.node._replace(running=founder.host.identity, heard=heard)
        node = node._replace(heard=()) if node.running.cluster_id else node
        return Step(self.nodes(node), self.written(node, desk.sent))

    def written(self, node: Starter, sent: list[tuple[str, int, Hello]]) -> tuple[int, ...]:
        src = self.names.index(node.running.name)
        return tuple(
            self.letters(Letter(src, node.running.incarnation, self.names.index(to), incarnation, hello.data))
            for to, incarnation, hello in sent
        )

    def considered(self, node: int, number: int) -> Step:
        founder, desk = self.desk(self.nodes.values[node])
        with patch("consensus.founder.os.urandom", return_value=number.to_bytes(16)):
            founder._consider(self.greeting(self.nodes.values[node]))
        return self.left(founder, desk)

    def heard(self, node: int, letter: Letter) -> Step:
        it = self.nodes.values[node]
        hello = Hello(0, letter.data)
        if it.running.cluster_id:
            return Step(node, self.written(it, list(self.answered(it, self.names[letter.src], hello))))
        founder, desk = self.desk(it)
        src = self.names[letter.src]
        envelope = Envelope(
            NO_CLUSTER, src, letter.src_incarnation, 1, it.running.name, letter.dst_incarnation, hello
        )
        founder._greeted(cast(bytes, envelope))
        return self.left(founder, desk)

    def answered(self, node: Starter, src: str, hello: Hello) -> Iterator[tuple[str, int, Hello]]:
        """By one that has a charter and no leader yet: later, it is for a leader to let somebody in."""
        state = found(node.running.charter, node.running.cluster_id)
        timings = PROFILES[state.profile]
        config = _raft_config(node.running, state, timings)
        raft = Raft(config, HardState(), Log(Snapshot(0, 0, ""), ()), boot=1, seed=1, now_ns=0, fresh=True)
        mine = Member(node.running.name, node.running.incarnation, "", "", "")
        one = Node(node.running, NodeRecord(), raft, timings, lambda: "", lambda: "", mine)
        for effect in one.hello(src, hello, 0):
            if isinstance(effect, SendStranger) and '"charter"' in effect.message.data:
                yield effect.dst, effect.incarnation, effect.message

    # -- successors ----------------------------------------------------------------------------------------------

    def successors(self, state: State) -> Iterator[Move]:
        left = self.budgets.values[state[-1]]
        for i in range(self.n):
            node = self.nodes.values[state[i]]
            if not node.running.cluster_id:
                yield from self._unfounded(state, i, node, left)
            again = node._replace(running=node.disk, heard=())
            if again != node:
                yield self._to(state, ("restarts", i), i, Step(self.nodes(again), ()))
            for which, what in ((LOSSES, "loses its disk"), (RAFT_LOSSES, "loses its Raft state")):
                if left[which]:
                    yield self._loss(state, i, node, which, what)
        for number in self.posts.values[state[self.n]]:
            letter = self.letters.values[number]
            yield self._to(state, ("arrives", number), letter.dst, self._heard(state[letter.dst], number))
        yield from self._votes(state)

    def _unfounded(self, state: State, i: int, node: Starter, left: tuple[int, ...]) -> Iterator[Move]:
        for j in range(self.n):
            if j != i:
                letter = self.letters(Letter(i, node.running.incarnation, j, 0, self.greeting(node).dump()))
                yield self._to(state, ("greets", i, j), j, self._heard(state[j], letter))
                if left[DELAYS] and letter not in self.posts.values[state[self.n]]:
                    yield self._to(state, ("held up", i, j), i, Step(state[i], (letter,)), spent=DELAYS)
        if self.may_write(i):
            number = len(self.ghosts.values[state[-2]].charters) + 1
            yield self._to(state, ("considers", i), i, self._considered(state[i], number))

    def may_write(self, i: int) -> bool:
        """The lowest name, as in `Founder.run`."""
        return i == 0

    def _heard(self, node: int, letter: int) -> Step:
        known = self.steps.get((node, letter))
        if known is None:
            known = self.steps[node, letter] = self.heard(node, self.letters.values[letter])
        return known

    def _considered(self, node: int, number: int) -> Step:
        known = self.steps.get((node, -1, number))
        if known is None:
            known = self.steps[node, -1, number] = self.considered(node, number)
        return known

    def _loss(self, state: State, i: int, node: Starter, which: int, what: str) -> Move:
        evidence = which == RAFT_LOSSES and bool(node.disk.cluster_id or node.lost)
        new = self.born(i, node.disk.incarnation + 1, lost=evidence)
        ghost = self.ghosts.values[state[-2]]
        ghost = ghost._replace(lost=ghost.lost + 1, lost_charter=ghost.lost_charter or bool(node.disk.cluster_id))
        return self._to(state, (what, i), i, Step(self.nodes(new), ()), ghost=ghost, spent=which)

    def _votes(self, state: State) -> Iterator[Move]:
        nodes = [self.nodes.values[number].running for number in state[: self.n]]
        ghost = self.ghosts.values[state[-2]]
        for i, j in itertools.combinations(range(self.n), 2):
            one, two = nodes[i], nodes[j]
            if not one.cluster_id or one.cluster_id != two.cluster_id:
                continue
            known = dict(ghost.votes).get(one.cluster_id, ())
            both = {_seat(one), _seat(two)}
            named = {f"{m.name}.{m.incarnation}" for m in founders(one.charter)}
            if both <= named and not both <= set(known):
                votes = dict(ghost.votes) | {one.cluster_id: tuple(sorted(both | set(known)))}
                new = ghost._replace(votes=tuple(sorted(votes.items())))
                post = tuple(n for n in self.posts.values[state[self.n]] if not self._is_greeting(n, i, j))
                base = (*state[: self.n], self.posts(post), *state[self.n + 1 :])
                yield self._to(base, ("vote", i, j), i, Step(state[i], ()), ghost=new)

    def _is_greeting(self, number: int, i: int, j: int) -> bool:
        letter = self.letters.values[number]
        return {letter.src, letter.dst} == {i, j} and '"greeting"' in letter.data

    def _to(
        self, state: State, words: tuple[object, ...], i: int, step: Step, *,
        ghost: Ghost | None = None, spent: int = -1,
    ) -> Move:  # fmt: skip
        label = (self.labels(words),)
        old = self.ghosts.values[state[-2]]
        after, before = self.nodes.values[step.node], self.nodes.values[state[i]]
        new = ghost or old
        if after.running.cluster_id and after.running != before.running:
            new = self._joined(state, new, after.running, label)
        if new.votes != old.votes:
            _check_formed(new, label)
        post, left = self.posts.values[state[self.n]], self.budgets.values[state[-1]]
        if step.letters:
            post = tuple(sorted({*post, *step.letters}))
        budget = state[-1] if spent < 0 else self.budgets((*left[:spent], left[spent] - 1, *left[spent + 1 :]))
        return Move(
            label, (*state[:i], step.node, *state[i + 1 : self.n], self.posts(post), self.ghosts(new), budget)
        )

    def _joined(self, state: State, ghost: Ghost, me: Identity, label: Label) -> Ghost:
        """A node has a charter now."""
        named = {(m.name, m.incarnation) for m in founders(me.charter)}
        if (me.name, me.incarnation) not in named:
            raise ViolationError(f"a founder is an incarnation: {_seat(me)} has a charter for {sorted(named)}", label)
        number = int(me.cluster_id, 16)
        if number > len(ghost.charters):
            ghost = ghost._replace(charters=(*ghost.charters, me.charter))
            for one in (self.nodes.values[n] for n in state[: self.n]):
                if one.lost and (one.running.name, one.running.incarnation) in named:
                    raise ViolationError(f"evidence: {_seat(one.running)} has data of a cluster and founds one", label)
        ghost = ghost._replace(stored=tuple(sorted({*ghost.stored, me.cluster_id})))
        if len(ghost.stored) > 1 and not ghost.lost:
            raise ViolationError("one charter: there are two, and no disk was lost", label)
        return ghost

    def inspect(self, state: State) -> None:
        """Overridden by runs that check more."""

    # -- the story -----------------------------------------------------------------------------------------------

    def tell(self, label: Label) -> str:
        what, *who = cast(tuple[str, *tuple[int, ...]], self.labels.values[label[0]])
        if what == "arrives":
            letter = self.letters.values[who[0]]
            kind = "greeting" if '"greeting"' in letter.data else "charter"
            return f"the {kind} of {self.names[letter.src]}.{letter.src_incarnation} reaches {self.names[letter.dst]}"
        names = [self.names[i] for i in who]
        return STORIES.get(what, "{0} " + what).format(*names)


class LiveFoundingWorld(FoundingWorld):
    """Checks liveness in every state."""

    def __init__(self, setup: FoundingSetup, core: type[Founder] = Founder) -> None:
        super().__init__(setup, core)
        self.live: set[State] = set()

    def inspect(self, state: State) -> None:
        """If all greet each other from here on, a majority of founders gets the same charter; unless the disk with a
        charter, or most disks, were lost."""
        nodes = state[: self.n]
        ghost = self.ghosts.values[state[-2]]
        if ghost.lost_charter or ghost.lost > (self.n - 1) // 2 or nodes in self.live:
            return
        now = list(nodes)
        for _ in range(ROUNDS):
            self._quiet_round(now, len(ghost.charters) + 1)
        after = [self.nodes.values[n].running for n in now]
        charters = {one.charter for one in after if one.cluster_id}
        here = {(one.name, one.incarnation): one.charter for one in after}
        for charter in charters:
            named = founders(charter)
            ready = [m.name for m in named if here.get((m.name, m.incarnation)) == charter]
            if has_majority(ready, [m.name for m in named]):
                self.live.add(nodes)
                return
        raise ViolationError(f"liveness: nothing is founded by {', '.join(_seat(one) for one in after)}")

    def _quiet_round(self, now: list[int], number: int) -> None:
        letters: list[int] = []
        for i in range(self.n):
            node = self.nodes.values[now[i]]
            if node.running.cluster_id:
                continue
            for j in range(self.n):
                letter = self.letters(Letter(i, node.running.incarnation, j, 0, self.greeting(node).dump()))
                if j != i:
                    now[j], more = self._heard(now[j], letter)
                    letters += more
            if self.may_write(i):
                now[i], more = self._considered(now[i], number)
                letters += more
        for one in letters:
            dst = self.letters.values[one].dst
            now[dst], _ = self._heard(now[dst], one)


STORIES = {
    "greets": "{0} greets {1}",
    "held up": "a greeting of {0} to {1} is held up",
    "considers": "{0} considers whom it has heard",
    "vote": "{0} and {1} exchange votes",
}


def _seat(one: Identity) -> str:
    return f"{one.name}.{one.incarnation}"


def _check_formed(ghost: Ghost, label: Label) -> None:
    formed = []
    for cluster_id, voted in ghost.votes:
        named = [_named(m) for m in founders(ghost.charters[int(cluster_id, 16) - 1])]
        if has_majority(list(voted), named):
            formed.append(", ".join(voted))
    if len(formed) > 1:
        raise ViolationError(f"one cluster: of {' and of '.join(formed)} from the same list of peers", label)


def _named(member: Member) -> str:
    return f"{member.name}.{member.incarnation}"
