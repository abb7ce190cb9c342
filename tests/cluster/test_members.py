"""Members come and go while clients write: a copy first, then the vote, then the seat; and backwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import SECOND, LocalNode, free_ports, wait_for
from tests.bench.figures import memory_kb
from tests.cluster.world import World, postgres_pids

pytestmark = pytest.mark.cluster

SLOT = "select 1 from pg_replication_slots where slot_name = 'pgr_{}'"


@pytest.fixture
def calm(make_world: Callable[..., World]) -> World:
    """Three nodes whose lease stands a busy machine: here a failed write is an error, not an accident."""
    world = make_world(profile="cloud")
    world.start()
    world.wait_writable(standbys=2)
    return world


def changed(world: World, *words: str, node: LocalNode | None = None, timeout_s: float = 120) -> str:
    """`pgr member ...`, which must succeed; what it said on the way."""
    done = world.pgr("member", *words, node=node, timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr
    return done.stderr


def refused(world: World, code: int, *words: str, node: LocalNode | None = None) -> str:
    done = world.pgr("member", *words, node=node)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "hint: " in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_a_fourth_node_joins_and_leaves_under_load(calm: World) -> None:
    world, node = calm, calm.add("d")
    with world.writing() as writer:
        node.start()
        world.wait_members("a b c d", "3 of a b c d")
        for other in world.nodes:
            if other is not node:
                world.settles(lambda other=other: bool(world.query(other, SLOT.format("d"))), f"a slot on {other.name}")  # type: ignore[misc]  # bound now
        joined_ns = now_ns()
        world.settles(lambda: writer.acked_since(joined_ns) > 20, "three of four acknowledge")
        said = changed(world, "remove", "d")
        assert "is to be removed" in said
        assert "is no member any more" in said
        assert node.wait(30) == 0, "an end as asked for"
        world.wait_members("a b c", "2 of a b c")
        primary = world.wait_writable()
        world.settles(lambda: not world.query(primary, SLOT.format("d")), "its slot holds no WAL")
        code, stderr = world.run_node(node)
        assert code == 78, stderr
        assert "d was removed" in stderr
        assert "hint" in stderr
    assert not writer.failures
    world.check_no_loss(writer, everywhere=True)


def test_who_is_needed_for_every_commit_is_not_removed_while_the_other_does_not_stream(world: World) -> None:
    """It is up, and its Postgres flushes nothing (frozen here; being copied anew, or in a long recovery): without the
    one that is to go every commit would wait."""
    (one, two), primary = world.standbys(), world.wait_writable()
    with world.writing() as writer:
        frozen = postgres_pids(one)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            world.settles(lambda: not world.streams(one), f"{one.name} does not stream")
            assert "holds a copy that is needed" in refused(world, 78, "remove", two.name, node=primary)
            asked_ns = now_ns()
            world.settles(lambda: writer.acked_since(asked_ns) > 20, "writes go on")
        finally:
            for pid in frozen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        world.wait_streaming(one)
        changed(world, "remove", two.name, node=primary)
    world.check_no_loss(writer)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_to_five_to_three_with_a_killed_primary_at_each_step(world: World) -> None:
    more = [world.add(name) for name in "de"]  # so that the writer knows their addresses
    with world.writing() as writer:

        def lose_the_primary() -> None:
            # One lost copy is what a group of three promises to stand: the last one has to be back.
            world.settles(lambda: group_is_whole(world), "the sync group is whole", seconds=120)
            primary = world.wait_writable()
            killed_ns, _ = primary.kill_all()
            world.writes_again(writer, killed_ns)
            primary.start()

        for node in more:
            node.start()
            world.settles(lambda node=node: listed(world, node.name) is not None, f"{node.name} is let in")  # type: ignore[misc]  # bound now
            lose_the_primary()
        world.wait_members("a b c d e", "3 of a b c d e")
        lose_the_primary()
        for name in "ab":
            world.wait_members(*{"a": ("a b c d e", "3 of a b c d e"), "b": ("b c d e", "3 of b c d e")}[name])
            primary = world.wait_writable()
            if primary.name == name:
                assert world.pgr("switchover", node=primary).returncode == 0
                world.wait_whole()
            world.wait_streaming(world[name])  # one that was away while it went would end with 78
            other = next(node for node in world.standbys() if node.alive() and node.name != name)

            def accepted(name: str = name, other: LocalNode = other) -> bool:
                asked = world.pgr("member", "remove", name, "--timeout", "1", "--json", node=other)
                return asked.returncode == 0 or "it goes on by itself" in asked.stderr

            world.settles(accepted, f"{name} is to be removed")
            lose_the_primary()
            assert world[name].wait(60) == 0
        world.wait_members("c d e", "2 of c d e")
        lose_the_primary()
        world.wait_whole()
    world.check_no_loss(writer, everywhere=True)


def group_is_whole(world: World) -> bool:
    primary = world.primary()
    seen = primary.status() if primary is not None else None
    if seen is None:
        return False
    states = {m.name: m.state for m in seen.members if m.name in seen.sync_group.members and m.role != "primary"}
    return set(states.values()) == {"streaming"}


def listed(world: World, name: str) -> str | None:
    """The role of a member, as the primary knows it."""
    primary = world.primary()
    seen = primary.status() if primary is not None else None
    row = seen.member(name) if seen is not None else None
    return row.member if row is not None else None


@pytest.mark.slow
def test_a_node_that_lost_its_raft_state_comes_back_as_a_new_one(calm: World) -> None:
    """It has no vote and no seat until it has a new copy; what it had is kept, and never started."""
    world, node, before = calm, calm.standbys()[0], calm.asked_status()
    with world.writing() as writer:
        assert node.stop(60) == 0
        shutil.rmtree(node.data / "raft")
        node.start()
        world.settles(lambda: incarnation(world, node.name) not in ("", incarnation_in(before, node.name)), "let in")
        world.wait_members("a b c", "2 of a b c")
        world.wait_streaming(node)
    starts = [e["event"] for e in world.logged(node, "") if e["event"] in ("postgres.starting", "clone.end")]
    assert starts[-2:] == ["clone.end", "postgres.starting"]
    assert world.logged(node, "data.of_another_life")
    assert any(p.name.endswith("pgdata-replaced") for p in (node.data / "salvage").iterdir()), "moved aside, kept"
    assert not writer.failures
    world.check_no_loss(writer, everywhere=True)


def incarnation(world: World, name: str) -> str:
    seen = world.status()
    row = seen.member(name) if seen is not None else None
    return row.incarnation if row is not None else ""


def incarnation_in(status: dict[str, object], name: str) -> str:
    members = status["members"]
    assert isinstance(members, list)
    return next(str(m["incarnation"]) for m in members if m["name"] == name)


@pytest.mark.slow
def test_what_the_cluster_can_not_do_without_is_not_removed(world: World) -> None:
    primary = world.wait_writable()
    dead, left = world.standbys()
    assert "is the primary" in refused(world, 75, "remove", primary.name, node=left)
    assert "no member is named x" in refused(world, 64, "remove", "x")
    assert "can't become a witness" in refused(world, 78, "add", left.name, "--role", "witness")
    dead.kill_all()
    silent = wait_for(lambda: not connected(world, primary, dead.name), 20)
    assert silent, f"{dead.name} still counts as connected"
    said = refused(world, 78, "remove", left.name, node=primary)
    assert f"without {left.name} 1 of 2 voters are up, 2 are needed" in said
    rows = json.loads(world.pgr("member", "list", "--json", node=primary).stdout)
    assert [(row["name"], row["role"], row["aim"], row["seat"]) for row in rows] == [
        (name, "voter", "", True) for name in "abc"
    ]
    world.wait_streaming(left)


def connected(world: World, asked: LocalNode, name: str) -> bool:
    seen = asked.status()
    row = seen.member(name) if seen is not None else None
    return row is not None and row.connected


@pytest.mark.slow
def test_a_learner_reads_and_never_counts(world: World) -> None:
    node = world.add("d")
    node.start()
    world.settles(lambda: listed(world, "d") is not None, "d is let in")
    changed(world, "add", "d", "--role", "learner")
    world.wait_members("a b c d:learner", "2 of a b c")
    world.settles(lambda: node.get("/replica?lag=16MB")[0] == 200, "a load balancer may send reads here")
    assert [node.get(path)[0] for path in ("/async", "/asynchronous", "/quorum", "/sync")] == [200, 200, 503, 503]
    assert world.pgr("switchover", "--to", "d").returncode == 64
    with world.writing() as writer:
        for standby in world.standbys():
            if standby is not node:
                standby.kill_all()
        alone_ns = now_ns()
        world.settles(lambda: now_ns() - alone_ns > 3 * SECOND, "three seconds")
        assert writer.acked_since(alone_ns + SECOND) == 0, "what only a primary and a learner have is lost"
        for standby in world.nodes:
            if not standby.alive():
                standby.start()
        world.writes_again(writer, alone_ns)
        changed(world, "add", "d", "--role", "voter")
        world.wait_members("a b c d", "3 of a b c d")
    world.check_no_loss(writer, everywhere=True)


@pytest.mark.slow
def test_a_witness_votes_and_is_never_primary(make_world: Callable[..., World]) -> None:
    """Two nodes with data and a witness: with the primary lost the other one is promoted, by the witness's vote."""
    world = make_world()
    witness = world["c"]
    witness.flags["witness"] = ""
    witness.env["PGR_PG_BIN"] = "/nonexistent"
    world.start()
    primary = world.wait_writable(standbys=1)
    world.wait_members("a b c:witness", "2 of a b")
    assert not (witness.data / "pgdata").exists()
    assert [witness.get(path)[0] for path in ("/liveness", "/metrics", "/replica", "/primary")] == [200, 200, 503, 503]
    small = sum(memory_kb(pid)[0] for pid in witness.pids())
    assert small < 20_000, f"{small} kB PSS in all"
    with world.writing() as writer:
        other = next(node for node in world.standbys() if node is not witness)
        killed_ns, _ = primary.kill_all()

        def promoted() -> bool:
            seen = witness.status()
            return seen is not None and seen.primary is not None and seen.primary.name == other.name

        world.settles(promoted, f"{other.name} is promoted")
        assert writer.acked_since(killed_ns) == 0, "two of two have to have it"
        primary.start()
        world.writes_again(writer, killed_ns)
    world.check_no_loss(writer)
    events = json.loads(world.pgr("history", "--json", node=witness).stdout)
    assert {event["node"] for event in events if event["kind"] == "promoted"} == {"a", "b"}
    assert witness.stop(30) == 0
    del witness.flags["witness"]
    del witness.env["PGR_PG_BIN"]
    code, stderr = world.run_node(witness)
    assert code == 78, stderr
    assert "c is a witness" in stderr
    assert "hint: start it with --witness" in stderr


@pytest.mark.slow
def test_a_witness_joins_and_replaces_another(calm: World) -> None:
    world = calm
    node = world.add("w", witness="")
    node.start()
    world.wait_members("a b c w:witness", "2 of a b c")
    other = world.add("x", witness="")
    other.start()
    world.settles(lambda: listed(world, "x") is not None, "x is let in")
    changed(world, "replace", "w", "--by", "x")
    world.wait_members("a b c x:witness", "2 of a b c")
    assert node.wait(30) == 0


@pytest.mark.slow
def test_a_member_moves_to_other_ports(calm: World) -> None:
    """Also all of them at once, with nobody left where the log says."""
    world = calm
    node, away = world.standbys()
    primary = world.wait_writable()
    with world.writing() as writer:
        assert node.stop(60) == 0
        move(node)
        node.start()
        world.settles(lambda: addresses(world, node) == told(node), "the log has the new addresses")
        world.wait_streaming(node)
    assert not writer.failures
    # All three move while they are down, so that nobody knows where anybody is; the one that was away longest too.
    assert away.stop(60) == 0
    move(away)
    for one in (primary, node):
        assert one.stop(60, signal.SIGINT) == 0
        move(one)
    rules = {event["fields"]["rule"] for event in world.logged(primary, "plan")}
    assert "hand-over" not in rules, "INT does not ask for that"
    for one in world.nodes:
        one.flags["peers"] = ",".join(f"{n.name}=127.0.0.1:{n.listen_port}" for n in world.nodes)
        one.start()
    world.wait_whole()
    for one in world.nodes:
        world.settles(lambda one=one: addresses(world, one) == told(one), f"the new addresses of {one.name}")  # type: ignore[misc]  # bound now
    world.wait_whole()
    writer.uri = world.uri()
    world.check_no_loss(writer, everywhere=True)


def move(node: LocalNode) -> None:
    """Other ports from its next start on."""
    node.listen_port, node.pg_port, node.http_port = free_ports(3)
    node.flags |= {
        "listen": f"127.0.0.1:{node.listen_port}", "pg-port": str(node.pg_port),
        "http": f"127.0.0.1:{node.http_port}",
    }  # fmt: skip


def told(node: LocalNode) -> tuple[str, str]:
    return f"127.0.0.1:{node.listen_port}", f"127.0.0.1:{node.pg_port}"


def addresses(world: World, node: LocalNode) -> tuple[str, str]:
    """Consensus and Postgres, as the primary has them from the log."""
    primary = world.primary()
    seen = primary.status() if primary is not None else None
    row = seen.member(node.name) if seen is not None else None
    return (row.raft, f"{row.host}:{row.pg_port}") if row is not None else ("", "")
