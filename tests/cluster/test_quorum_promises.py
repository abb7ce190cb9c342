"""What plain PostgreSQL 18.6 does and must not happen here: an acknowledgement by a standby that does not have the row.

Each test has its negative control: the same story with the protecting step taken out must show the loss.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode, processes, wait_for
from tests.cluster.datapath import Proxy
from tests.cluster.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
EXTRA_BYTES = 4 << 20
"""WAL that only the lost primary has: more than the new one writes, and less than what is left of a segment."""

ALWAYS_ATTACHES = """
import consensus.positions as positions
positions.divergence = lambda ancestry, history, lsn: positions.Attach(ancestry)
import supervisor.watch as watch

watch.OTHER_HISTORY = ()  # nor is it noticed afterwards, from what Postgres logs
"""
NO_IDLE_NAMES = """
import supervisor.settings as settings
settings.PLACEHOLDER_NAMES = ""
"""


def mutate(world: World, node: LocalNode, patch: str) -> None:
    """From its next start on the node runs with ``patch`` applied before anything else is imported."""
    place = world.home / f"mutant-{node.name}"
    place.mkdir(mode=0o755, exist_ok=True)
    place.chmod(0o755)
    said = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{patch}"
    (place / "sitecustomize.py").write_text(said, encoding="utf-8")
    (place / "sitecustomize.py").chmod(0o644)
    node.env["PYTHONPATH"] = f"{place}:{ROOT / 'bin'}"


@pytest.fixture
def cut(make_world: Callable[..., World]) -> Iterator[Cut]:
    world = make_world()
    made = Cut(world)
    yield made
    for proxy in made.proxies.values():
        proxy.close()


class Cut:
    """A cluster whose replication connections a test can cut, node by node."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.names = [node.name for node in world.nodes]
        self.proxies = {node.name: Proxy(node, self.names) for node in world.nodes}

    def refuse(self, *names: str) -> None:
        """Nobody's Postgres is reached by these nodes any more."""
        for proxy in self.proxies.values():
            proxy.refuse(*names)

    def allow(self, *names: str) -> None:
        for proxy in self.proxies.values():
            proxy.allow(*names)

    def begin(self) -> LocalNode:
        self.world.start()
        primary = self.world.wait_writable(standbys=2)
        with psycopg.connect(self.world.node_uri(primary), autocommit=True) as connection:
            connection.execute("create table promised (id bigint primary key)")
        return primary


class Commit(threading.Thread):
    """One row in a session that overrides the gate; says when the commit was acknowledged."""

    def __init__(self, uri: str, row: int) -> None:
        super().__init__(daemon=True)
        self.uri, self.row = uri, row
        self.acked_ns = 0
        self.error = ""
        self.start()

    def run(self) -> None:
        notices: list[str] = []
        try:
            with psycopg.connect(self.uri, autocommit=True, application_name="promised") as connection:
                connection.add_notice_handler(lambda told: notices.append(told.message_primary or ""))
                connection.execute("set default_transaction_read_only = off")
                connection.execute("insert into promised values (%s)", (self.row,))
                if notices:
                    self.error = notices[0]  # "canceling wait ...": not acknowledged, and said so
                else:
                    self.acked_ns = now_ns()
        except psycopg.Error as error:
            self.error = str(error)

    def waits(self, world: World, node: LocalNode) -> bool:
        """Is it in its commit, waiting for standbys?"""
        asked = "select count(*) from pg_stat_activity where application_name = 'promised' and wait_event = 'SyncRep'"
        return not self.acked_ns and world.query(node, asked)[0][0] == 1


def has_row(world: World, node: LocalNode, row: int) -> bool:
    try:
        return bool(world.query(node, f"select 1 from promised where id = {row}"))
    except psycopg.Error:
        return False


def times_logged(node: LocalNode, event: str) -> int:
    """How often it was logged so far."""
    return sum(each["event"] == event for each in node.events())


def a_lost_primary_with_wal_of_its_own(cut: Cut) -> tuple[LocalNode, LocalNode, LocalNode]:
    """(lost, new primary, the other): the lost node has megabytes beyond the switch point, the other one is cut off."""
    world = cut.world
    lost = cut.begin()
    # A whole segment ahead, and the switch point within it: a stream that begins at the switch point says nothing.
    world.query(lost, "select pg_switch_wal()")
    world.query(lost, "insert into promised values (0) returning id")
    world.settles(lambda: _behind(world, lost) == 0, "both standbys have everything")
    others = [node for node in world.nodes if node is not lost]
    cut.refuse(*(node.name for node in others))
    with psycopg.connect(world.node_uri(lost), autocommit=True) as connection:
        connection.execute("set synchronous_commit = local")
        connection.execute("select pg_logical_emit_message(true, 'test', repeat('x', %s))", (EXTRA_BYTES,))
        connection.execute("insert into promised values (-1)")
    lost.kill_all()
    cut.allow(*(node.name for node in others))
    new = world.wait_writable(standbys=1)
    (other,) = [node for node in others if node is not new]
    cut.refuse(other.name)
    world.settles(lambda: not world.query(new, "select 1 from pg_stat_replication"), "nobody streams")
    return lost, new, other


def _behind(world: World, primary: LocalNode) -> int:
    """Bytes of the standby that is furthest behind; all of it while one is missing."""
    asked = (
        "select case when count(*) < 2 then 1 else coalesce(max(pg_current_wal_flush_lsn() - flush_lsn), 1) end::bigint"
        " from pg_stat_replication where state = 'streaming'"
    )
    return int(world.query(primary, asked)[0][0])


def test_a_standby_beyond_the_switch_point_acknowledges_nothing_until_it_is_rewound(cut: Cut) -> None:
    world = cut.world
    lost, new, other = a_lost_primary_with_wal_of_its_own(cut)
    commit = Commit(world.node_uri(new), 1)
    world.settles(lambda: commit.waits(world, new), "the commit waits for a standby", lambda: commit.error)

    def rewound() -> bool:
        acked = commit.acked_ns  # before the log is read: what was acknowledged by then has no excuse
        done = times_logged(lost, "rewind.end") > 0
        assert done or not acked, "acknowledged by a node whose WAL is not the primary's"
        return done

    lost.start()
    world.settles(rewound, "rewound", lambda: commit.error)
    assert times_logged(lost, "follow.diverged") > 0
    world.settles(lambda: bool(commit.acked_ns), "the commit is acknowledged after the rewind", lambda: commit.error)
    world.settles(lambda: has_row(world, lost, 1), "whoever acknowledged it has it", seconds=20)
    assert not has_row(world, lost, -1), "what was never promised to anybody is gone"
    assert any((lost.data / "salvage").iterdir()), "and was saved before"
    cut.allow(other.name)
    world.wait_streaming(*(node for node in world.nodes if node is not new))
    world.settles(lambda: has_row(world, other, 1), "on the third as well")


@pytest.mark.slow
def test_control_a_node_that_attaches_unchecked_acknowledges_what_it_does_not_have(cut: Cut) -> None:
    world = cut.world
    lost, new, _ = a_lost_primary_with_wal_of_its_own(cut)
    commit = Commit(world.node_uri(new), 1)
    world.settles(lambda: commit.waits(world, new), "the commit waits for a standby", lambda: commit.error)
    mutate(world, lost, ALWAYS_ATTACHES)
    lost.start()
    world.settles(lambda: bool(commit.acked_ns), "the false acknowledgement", lambda: commit.error)
    assert times_logged(lost, "rewind.end") == 0
    assert not wait_for(lambda: has_row(world, lost, 1), 5), "the only one who can have acknowledged it lacks it"


# --- right after a promotion ------------------------------------------------------------------------------------------


class FirstCommits(threading.Thread):
    """A session that is there before the promotion and commits as soon as it can, gate or no gate."""

    def __init__(self, uri: str, row: int) -> None:
        super().__init__(daemon=True)
        self.uri, self.row = uri, row
        self.tried = self.acked = 0
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.is_set():
            # A standby that must be restarted to keep its promise drops its sessions.
            with contextlib.suppress(psycopg.Error):
                self._commit()
            self.ended.wait(0.02)

    def _commit(self) -> None:
        with psycopg.connect(self.uri, autocommit=True, application_name="promised") as connection:
            connection.execute("set default_transaction_read_only = off")
            while not self.ended.is_set():
                if connection.execute("select pg_is_in_recovery()").fetchone() == (False,):
                    self.tried += 1
                    connection.execute("insert into promised values (%s)", (self.row + self.tried,))
                    self.acked += 1


def promoted_without_a_standby(cut: Cut) -> tuple[LocalNode, list[FirstCommits], list[int]]:
    """(the new primary, sessions on both candidates, checkpointers held): nobody can stream from the new primary."""
    world = cut.world
    old = cut.begin()
    candidates = [node for node in world.nodes if node is not old]
    world.settles(lambda: all(_has_table(world, node) for node in candidates), "the table is everywhere")
    sessions = [FirstCommits(world.node_uri(node), 1000 * (n + 1)) for n, node in enumerate(candidates)]
    # A reload is seen by the checkpointer when it gets to run, however late: here as late as can be.
    held = [_checkpointer(node) for node in candidates]
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    cut.refuse(*cut.names)
    old.kill_all()
    world.settles(lambda: any(times_logged(node, "postgres.promoted") for node in candidates), "a promotion")
    (new,) = [node for node in candidates if times_logged(node, "postgres.promoted")]
    return new, sessions, held


def _has_table(world: World, node: LocalNode) -> bool:
    return bool(world.query(node, "select 1 from pg_class where relname = 'promised'"))


def _checkpointer(node: LocalNode) -> int:
    postmaster = node.pid_of("postmaster")
    for pid, process in processes().items():
        if process.parent == postmaster and b"checkpointer" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError(f"{node.name} has no checkpointer")


def _release(held: list[int]) -> None:
    for pid in held:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_the_first_commits_after_a_promotion_wait_for_a_standby(cut: Cut) -> None:
    world = cut.world
    new, sessions, held = promoted_without_a_standby(cut)
    try:
        asked = "select count(*) from pg_stat_activity where application_name = 'promised' and wait_event = 'SyncRep'"
        world.settles(lambda: world.query(new, asked)[0][0] == 1, "the first commit waits")
        until_ns = now_ns() + 2 * SECOND
        world.settles(lambda: now_ns() > until_ns, "two seconds")
        assert [(s.tried, s.acked) for s in sessions if s.tried] == [(1, 0)], "nobody but this node has it"
        assert new.get("/primary")[0] == 503, "the gate is closed: no record of this epoch is on another node"
    finally:
        _release(held)
        for session in sessions:
            session.ended.set()
    cut.allow(*cut.names)
    world.settles(lambda: any(s.acked for s in sessions), "acknowledged once a standby has it")
    (row,) = [s.row + 1 for s in sessions if s.acked]
    world.wait_writable(standbys=1)
    for node in world.nodes:
        if node.alive():
            world.settles(lambda node=node: has_row(world, node, row), f"the row on {node.name}")  # type: ignore[misc]  # bound now


@pytest.mark.slow
def test_control_with_no_names_before_the_promotion_commits_pass_unacknowledged(cut: Cut) -> None:
    for node in cut.world.nodes:
        mutate(cut.world, node, NO_IDLE_NAMES)
    _, sessions, held = promoted_without_a_standby(cut)
    try:
        cut.world.settles(lambda: any(s.acked for s in sessions), "a commit that nobody else has", seconds=20)
    finally:
        _release(held)
        for session in sessions:
            session.ended.set()
