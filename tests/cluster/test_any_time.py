"""A node is stopped or killed in the middle of whatever it does: the next start goes on from there.

TERM is for the parent alone, as a service manager sends it; a kill takes every process of the node at once. Each moment
is one that the node's own log tells of.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from supervisor.localcluster import LocalNode, binaries, wait_for
from tests.cluster.world import World, rare

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

WAYS = pytest.mark.parametrize("way", ["term", "kill"])
ALONE = "SELECT count(pg_logical_emit_message(true, 'alone', repeat('x', 10000))) FROM generate_series(1, 100)"


def seen(world: World, node: LocalNode, event: str) -> int:
    return len(world.logged(node, event))


def until(world: World, node: LocalNode, event: str, after: int = 0) -> None:
    """Looked at often: what begins may be over soon."""
    assert wait_for(lambda: seen(world, node, event) > after, 90, 0.002), f"{node.name} tells of no {event}"


def end(node: LocalNode, way: str) -> None:
    if way == "term":
        assert node.stop(90) == 0
    else:
        node.kill_all()
    assert node.pids() == []


def run(world: World, node: LocalNode, *statements: str) -> None:
    with psycopg.connect(world.node_uri(node), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@WAYS
@pytest.mark.parametrize("event", ["postgres.initdb", "cluster.created", "postgres.promoting", "postgres.promoted"])
def test_the_founder_is_ended_while_it_creates_the_cluster(
    make_world: Callable[..., World], event: str, way: str
) -> None:
    world = make_world()
    for node in world.nodes:
        node.start()
    founder = world.nodes[0]
    until(world, founder, event)
    end(founder, way)
    founder.start()
    world.wait_whole()
    with world.writing() as writer:
        pass
    world.check_no_loss(writer, everywhere=True)


@WAYS
@pytest.mark.parametrize("event", ["clone.begin", "clone.progress", "clone.end"])
def test_a_node_is_ended_while_it_copies(make_world: Callable[..., World], event: str, way: str) -> None:
    """What a copy left half done is nobody's, and is no reason not to make another."""
    world = make_world(nodes=1)
    world.start()
    primary = world.wait_writable()
    run(world, primary, "CREATE TABLE big AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 100000)")
    with world.writing() as writer:
        newcomer = world.add("b")
        newcomer.start()
        until(world, newcomer, event)
        end(newcomer, way)
        half = newcomer.data / "pgdata.new"
        if half.exists():  # the instant in which the source's mark is being written
            (half / "pgr_node.json").write_bytes(b"")
        newcomer.start()
        world.wait_members("a b", "2 of a b")
    assert not [p.name for p in (newcomer.data / "salvage").glob("*unused*")], "nor is it kept"
    world.check_no_loss(writer, everywhere=True)


@pytest.mark.parametrize("way", [pytest.param("term", marks=rare), "kill"])
def test_the_source_of_a_copy_is_ended(make_world: Callable[..., World], way: str) -> None:
    world = make_world()
    world.start()
    world.wait_whole()
    primary = world.wait_writable()
    run(world, primary, "CREATE TABLE big AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 100000)")
    with world.writing() as writer:
        newcomer = world.add("d", at=world.standbys()[0])
        newcomer.start()
        until(world, newcomer, "clone.progress")
        end(primary, way)
        primary.start()
        world.wait_members("a b c d", "3 of a b c d")
        world.wait_whole()
    world.check_no_loss(writer, everywhere=True)


@WAYS
@pytest.mark.parametrize("event", ["rewind.begin", "rewind.end"])
def test_a_deposed_primary_is_ended_while_it_is_rewound(world: World, event: str, way: str) -> None:
    """Between the two its PGDATA is neither what it was nor what it is to be: a mark on disk says so."""
    primary = world.wait_writable()
    with world.writing() as writer:
        for standby in world.standbys():
            standby.kill_all()
        run(world, primary, "SET synchronous_commit = local", ALONE)
        primary.kill_all()
        for standby in [n for n in world.nodes if n is not primary]:
            standby.start()
        world.settles(lambda: world.primary() is not None, "a new primary")
        primary.start()
        until(world, primary, event)
        end(primary, way)
        primary.start()
        world.wait_whole()
        world.wait_streaming(primary)
    assert any(p.name.endswith("-wal") for p in (primary.data / "salvage").iterdir())
    world.check_no_loss(writer, everywhere=True)


def hold_rewind(world: World, node: LocalNode) -> None:
    """From its next start on, ``node`` has a pg_rewind that writes a part and then waits: so far it has emptied a file
    that it is to copy from the source, the mark that says whose directory this is."""
    place, real = world.home / "bin", Path(binaries())
    place.mkdir()
    place.chmod(0o755)
    for program in real.iterdir():
        (place / program.name).symlink_to(program)
    (place / "pg_rewind").unlink()
    part = 'while [ "$1" != -D ]; do shift; done; >"$2/pgr_node.json"; echo half >"$2/base/1/PG_VERSION"'
    (place / "pg_rewind").write_text(f"#!/bin/sh\n{part}\nexec sleep 600\n", encoding="utf-8")
    (place / "pg_rewind").chmod(0o755)
    node.env["PGR_PG_BIN"] = str(place)


@WAYS
def test_what_a_rewind_has_left_half_done_is_never_started(world: World, way: str) -> None:
    primary = world.wait_writable()
    with world.writing() as writer:
        for standby in world.standbys():
            standby.kill_all()
        run(world, primary, "SET synchronous_commit = local", ALONE)
        primary.kill_all()
        for standby in [n for n in world.nodes if n is not primary]:
            standby.start()
        world.settles(lambda: world.primary() is not None, "a new primary")
        hold_rewind(world, primary)
        primary.start()
        half = primary.data / "pgdata" / "base" / "1" / "PG_VERSION"
        world.settles(lambda: half.read_text(encoding="utf-8") == "half\n", "the rewind is half done")
        end(primary, way)
        starts, clones = seen(world, primary, "postgres.starting"), seen(world, primary, "clone.end")
        primary.start()
        until(world, primary, "clone.end", clones)
        assert seen(world, primary, "postgres.starting") == starts
        world.wait_streaming(primary)
    assert any(p.name.endswith("-wal") for p in (primary.data / "salvage").iterdir())
    world.check_no_loss(writer, everywhere=True)


@WAYS
@pytest.mark.parametrize("event", ["postgres.promoting", "postgres.promoted", "epoch.proven"])
def test_the_next_primary_is_ended_while_it_is_promoted(world: World, event: str, way: str) -> None:
    primary, standbys = world.wait_writable(), world.standbys()
    before = {node.name: seen(world, node, event) for node in standbys}

    def who() -> list[LocalNode]:
        return [node for node in standbys if seen(world, node, event) > before[node.name]]

    with world.writing() as writer:
        primary.kill_all()
        assert wait_for(lambda: bool(who()), 60, 0.002), "nobody is promoted"
        chosen = who()[0]
        end(chosen, way)
        for node in (chosen, primary):
            node.start()
        world.wait_whole()
    world.check_no_loss(writer, everywhere=True)


@WAYS
@pytest.mark.parametrize("who", ["from", "to"])
def test_a_node_is_ended_during_a_switchover(world: World, who: str, way: str) -> None:
    primary, (target, third) = world.wait_writable(), world.standbys()
    before = seen(world, target, "postgres.promoting")
    stops = seen(world, primary, "plan")
    with world.writing() as writer:
        asked = threading.Thread(target=lambda: world.pgr("switchover", "--to", target.name, node=third, timeout_s=120))
        asked.start()
        if who == "from":
            assert wait_for(lambda: _hands_over(world, primary, stops), 60, 0.002), "no hand-over begins"
            end(primary, way)
            primary.start()
        else:
            until(world, target, "postgres.promoting", before)
            end(target, way)
            target.start()
        asked.join(120)
        world.wait_whole()
    world.check_no_loss(writer, everywhere=True)


def _hands_over(world: World, node: LocalNode, before: int) -> bool:
    return any(e["fields"]["rule"] == "hand-over" for e in world.logged(node, "plan")[before:])
