"""Interleavings 3 and 9: what a promise of a standby stops, and what is missing when the one who has it all is away."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode
from tests.cluster.test_quorum_promises import mutate
from tests.net.mutants import NO_FENCE, NUMBERS_COME_BACK, ONE_PROMISE_IS_ENOUGH, PROMISES_AND_GOES_ON
from tests.net.network import CONSENSUS, POSTGRES, between, both
from tests.net.sampler import shared_timelines
from tests.net.test_partition import ends_within_the_lease
from tests.net.world import NetWorld, Workload

pytestmark = pytest.mark.cluster


# --- 3: a promise while the old primary still reaches it --------------------------------------------------------------


@contextlib.contextmanager
def a_recovery_conflict(world: NetWorld, primary: LocalNode) -> Iterator[None]:
    """On every standby replay waits for a reader that still sees what the primary has vacuumed away."""
    with contextlib.ExitStack() as open_:
        with psycopg.connect(world.node_uri(primary), autocommit=True) as session:
            session.execute("create table seen as select generate_series(1, 1000) as n")
            world.settles(lambda: all(has_seen(world, node) for node in world.others(primary)), "the table is there")
            for node in world.others(primary):
                reader = open_.enter_context(contextlib.closing(psycopg.connect(world.node_uri(node))))
                reader.execute("set transaction isolation level repeatable read")
                reader.execute("select count(*) from seen")
            session.execute("delete from seen")
            session.execute("vacuum seen")
        world.settles(lambda: all(conflicts(world, node) for node in world.others(primary)), "replay waits everywhere")
        yield


def has_seen(world: NetWorld, node: LocalNode) -> bool:
    return bool(world.query(node, "select 1 from pg_class where relname = 'seen'"))


def conflicts(world: NetWorld, node: LocalNode) -> bool:
    asked = "select wait_event from pg_stat_activity where backend_type = 'startup'"
    return "RecoveryConflict" in str(world.query(node, asked))


@contextlib.contextmanager
def paused_replay(world: NetWorld, primary: LocalNode) -> Iterator[None]:
    for node in world.others(primary):
        world.query(node, "select pg_wal_replay_pause()")
    asked = "select pg_get_wal_replay_pause_state()"
    world.settles(lambda: all("paused" in str(world.query(n, asked)) for n in world.others(primary)), "replay paused")
    yield


@pytest.mark.parametrize("trouble", [paused_replay, a_recovery_conflict])
def test_a_promise_stops_the_old_primary_though_replay_stands_still(
    net: NetWorld, trouble: Callable[[NetWorld, LocalNode], contextlib.AbstractContextManager[None]]
) -> None:
    """The old one is cut off from the votes alone; its WAL still reaches the standbys, which have not replayed it."""
    world, old = net, net.wait_writable()
    with world.working(writers=4) as load:
        timeline = world.timeline(load)
        with trouble(world, old):
            cut = world.isolate(old, port=CONSENSUS)
            world.moves_on(load, timeline)
        world.heal()
        world.wait_whole()
    ends_within_the_lease(world, load, old, timeline, cut)
    world.check(load)


@pytest.mark.slow
def test_control_a_promise_that_goes_on_receiving_loses_what_was_acknowledged(
    make_net: Callable[..., NetWorld],
) -> None:
    world = make_net()
    for node in world.nodes:
        mutate(world, node, NO_FENCE + PROMISES_AND_GOES_ON)
    old = world.begin()
    with world.working(writers=8, pause_s=0) as load:
        timeline = world.timeline(load)
        world.isolate(old, port=CONSENSUS)
        world.moves_on(load, timeline)
        old.kill_all()
        world.heal()
    world.wait_whole()
    assert world.tally(load).lost


# --- 9: the only one who has everything is away -----------------------------------------------------------------------


def only_one_has_all(world: NetWorld, load: Workload) -> tuple[LocalNode, LocalNode, LocalNode]:
    """(old primary, empty and up again; who has all, switched off; who lags, up)."""
    old = world.wait_writable()
    full, behind = world.others(old)
    cut = world.cut(between([behind.name], [old.name, full.name], POSTGRES))
    world.settles(lambda: load.acked_since(cut.end_ns) > 100, "commits that the one behind does not have")
    world.power_cut(full)
    world.power_cut(old)
    world.heal()
    shutil.move(old.data / "pgdata", world.home / "lost-disk")
    old.start()
    return old, full, behind


def test_without_the_only_full_copy_there_is_no_primary_and_the_reason_is_shown(net: NetWorld) -> None:
    world = net
    with world.working() as load:
        timeline = world.timeline(load)
        old, full, behind = only_one_has_all(world, load)
        up_ns = now_ns()

        def says_whose_promise_is_missing() -> bool:
            assert world.primary() is None
            seen = [node.status() for node in (old, behind)]
            return any(full.name in each.explanation.split() for each in seen if each and each.leader == each.node)

        world.settles(says_whose_promise_is_missing, f"the leader says that {full.name} is missing", world.describe)
        world.settles(lambda: now_ns() - up_ns > 8 * SECOND, "eight seconds: several elections")
        assert world.primary() is None
        assert world.timeline(load) == timeline
        full.start()
        world.moves_on(load, timeline)
        world.wait_whole()
    world.check(load)


@pytest.mark.slow
def test_control_where_one_promise_is_enough_the_one_behind_is_promoted_and_rows_are_lost(
    make_net: Callable[..., NetWorld],
) -> None:
    world = make_net()
    for node in world.nodes:
        mutate(world, node, ONE_PROMISE_IS_ENOUGH)
    world.begin()
    with world.working() as load:
        only_one_has_all(world, load)
        world.settles(lambda: world.primary() is not None, "a primary", world.describe)
    assert world.tally(load).lost


# --- 6: two promotions from one point ---------------------------------------------------------------------------------


def promoted_twice(world: NetWorld, load: Workload) -> None:
    """The first one's WAL reaches nobody: the second begins where it began, and its Postgres knows of no other."""
    old, timeline = world.wait_writable(), world.timeline(load)
    left, right = world.others(old)
    world.cut(both(left.name, right.name, POSTGRES))
    world.power_cut(old)
    world.settles(lambda: any(s.timeline > timeline for s in load.sampler.accepted()), "writes that wait for nobody")
    first = world[next(s.node for s in load.sampler.accepted() if s.timeline > timeline)]
    world.isolate(first)
    old.start()
    second = [node.name for node in world.others(first)]
    world.settles(
        lambda: any(s.timeline > timeline and s.node in second for s in load.sampler.accepted()),
        "the second promotion",
    )


def test_two_promotions_from_one_point_do_not_share_a_timeline(net: NetWorld) -> None:
    world = net
    with world.working() as load:
        promoted_twice(world, load)
        world.heal()
        world.wait_whole()
        world.goes_on(load, now_ns())
    world.check(load)


@pytest.mark.slow
def test_control_where_a_number_comes_back_two_nodes_write_on_one_timeline(make_net: Callable[..., NetWorld]) -> None:
    world = make_net()
    for node in world.nodes:
        mutate(world, node, NUMBERS_COME_BACK)
    world.begin()
    with world.working() as load:
        promoted_twice(world, load)
    assert shared_timelines(load.sampler.accepted())
