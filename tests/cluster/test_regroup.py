"""A change of the sync group is done when its rule is in force, not when its names are written (safety.md "Changes").

Each story is told twice: by the shipped code, and with step (3) left out, when commits must be seen to pass that the
new group does not have.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode, processes, wait_for
from tests.cluster.test_quorum_promises import mutate
from tests.cluster.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

WITHOUT_STEP_3 = """
import supervisor.regroup as regroup
from supervisor import sql
from supervisor.tasks import Task

def nothing(self, session):
    return 0
    yield

def own_session(self, names):
    return (yield from self.steps.session())

regroup.Regroup._session_after_reload = own_session
regroup.Regroup._end_old_walsenders = nothing
regroup.Regroup._until_met = nothing
"""
WITHOUT_CHECKPOINT = """
import supervisor.context as context

class Always:
    def __get__(self, c, kind):
        return True

    def __set__(self, c, value):
        pass

context.Context.commits_wait = Always()
"""
"""On top of what the names say, it is believed that they are in force."""


class Held:
    """What ends with the test: processes that were stopped, sessions that were opened."""

    def __init__(self) -> None:
        self.stopped: list[int] = []
        self.sessions: list[psycopg.Connection[tuple[object, ...]]] = []

    def freeze(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self.stopped.append(pid)

    def connect(self, uri: str) -> psycopg.Connection[tuple[object, ...]]:
        self.sessions.append(psycopg.connect(uri, autocommit=True))
        return self.sessions[-1]


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    for pid in made.stopped:
        thaw(pid)
    for session in made.sessions:
        session.close()


def thaw(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def child_of_postgres(node: LocalNode, title: str) -> int:
    """Its pid, once there is one: a WAL receiver is started anew after each end of its walsender."""
    found: list[int] = []

    def look() -> bool:
        postmaster = node.pid_of("postmaster")
        for pid, process in processes().items():
            if process.parent == postmaster:
                with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as line:
                    if title.encode() in line.read():
                        found.append(pid)
        return bool(found)

    assert wait_for(look, 30), f"{node.name} has no {title}"
    return found[0]


def group(node: LocalNode) -> tuple[str, str]:
    """The sync group that counts, and the one it is being changed to."""
    seen = node.status()
    assert seen is not None
    new = seen.next_group
    return " ".join(seen.sync_group.members), " ".join(new.members) if new is not None else ""


class Story:
    """a, b, c; c is to lose its seat, so that only b counts; b receives nothing, and a's postmaster does not reload."""

    def __init__(self, world: World, held: Held) -> None:
        self.world = world
        world.start()
        self.a = world.wait_writable(standbys=2)
        self.b, self.c = world.standbys()
        names = " ".join(sorted(node.name for node in world.nodes))
        world.wait_members(names, f"2 of {names}")
        self.session = held.connect(world.node_uri(self.a))
        self.session.execute("create table told (id bigint primary key)")
        world.wait_replayed(self.b)  # by now its copy is known to be proven: c can be spared
        self.receiver = child_of_postgres(self.b, "walreceiver")
        self.postmaster = self.a.pid_of("postmaster")
        for pid in (self.receiver, self.postmaster):
            held.freeze(pid)
        asked = world.pgr("member", "add", self.c.name, "--role", "learner", "--timeout", "1", node=self.b)
        assert "is to be a learner" in asked.stderr, asked.stderr

    def has(self, node: LocalNode) -> bool:
        return bool(self.world.query(node, "select 1 from told"))


def test_names_that_are_not_in_force_keep_the_change_open(make_world: Callable[..., World], held: Held) -> None:
    told = Story(make_world(profile="cloud"), held)
    world, a, b, c = told.world, told.a, told.b, told.c
    both = (f"{a.name} {b.name} {c.name}".split(), f"{a.name} {b.name}".split())
    wanted = tuple(" ".join(sorted(names)) for names in both)
    world.settles(lambda: group(a) == wanted, "the change is open", lambda: str(group(a)))
    told.session.execute("insert into told values (1)")  # by the old rule: an election still asks both groups
    assert told.has(c)
    still_ns = now_ns()
    world.settles(lambda: now_ns() - still_ns > 4 * SECOND, "four seconds")
    assert group(a) == wanted
    thaw(told.postmaster)
    still_ns = now_ns()
    world.settles(lambda: now_ns() - still_ns > 4 * SECOND, "four seconds")
    assert group(a) == wanted, "in force by now, but b lacks what was acknowledged before"
    thaw(told.receiver)
    world.settles(lambda: group(a) == (wanted[1], ""), "the change is done", lambda: str(group(a)))
    assert told.has(b)
    world.wait_members(" ".join(sorted((a.name, b.name, f"{c.name}:learner"))), f"2 of {wanted[1]}")


def test_control_without_step_3_commits_pass_that_the_group_lacks(make_world: Callable[..., World], held: Held) -> None:
    world = make_world(profile="cloud")
    for node in world.nodes:
        mutate(world, node, WITHOUT_STEP_3)
    told = Story(world, held)
    alone = " ".join(sorted((told.a.name, told.b.name)))
    world.settles(lambda: group(told.a) == (alone, ""), "the change is believed to be done", lambda: str(group(told.a)))
    told.session.execute("insert into told values (1)")
    assert told.has(told.c), "acknowledged by whom nobody asks"
    assert not told.has(told.b), "and every election is content with b"


class Second:
    """A node on its own, whose commits wait for nobody, gets a second one; its checkpointer does not take part."""

    def __init__(self, world: World, held: Held) -> None:
        self.world = world
        world.start()
        self.a = world.wait_writable()
        self.session = held.connect(world.node_uri(self.a))
        self.session.execute("create table told (id bigint primary key)")
        self.checkpointer = child_of_postgres(self.a, "checkpointer")
        self.b = world.add("b")
        self.b.start()
        # A base backup needs a checkpoint; from here on there is none.
        world.settles(lambda: bool(world.logged(self.b, "clone.end")), "b has a copy")
        held.freeze(self.checkpointer)


def test_the_first_standby_counts_once_commits_do_wait_for_it(make_world: Callable[..., World], held: Held) -> None:
    second = Second(make_world(nodes=1, profile="cloud"), held)
    world, a, b = second.world, second.a, second.b
    world.settles(lambda: group(a) == ("a", "a b"), "the change is open", lambda: str(group(a)))
    still_ns = now_ns()
    world.settles(lambda: now_ns() - still_ns > 4 * SECOND, "four seconds")
    assert group(a) == ("a", "a b")
    thaw(second.checkpointer)
    world.wait_members("a b", "2 of a b")
    held.freeze(child_of_postgres(b, "walreceiver"))
    second.session.pgconn.send_query(b"insert into told values (1)")
    waiting = "select 1 from pg_stat_activity where wait_event = 'SyncRep'"
    world.settles(lambda: bool(world.query(a, waiting)), "the commit waits for b")


def test_control_without_the_checkpoint_commits_wait_for_nobody(make_world: Callable[..., World], held: Held) -> None:
    world = make_world(nodes=1, profile="cloud")
    mutate(world, world.nodes[0], WITHOUT_CHECKPOINT)
    second = Second(world, held)
    world.settles(lambda: group(second.a) == ("a b", ""), "it is believed to be done", lambda: str(group(second.a)))
    held.freeze(child_of_postgres(second.b, "walreceiver"))
    second.session.execute("insert into told values (1)")
    assert not world.query(second.b, "select 1 from told"), "acknowledged, and the second of two does not have it"
