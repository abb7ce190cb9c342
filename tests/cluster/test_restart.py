"""`pgr restart`, `pgr reload`, and what is scheduled, under write load: nothing that was acknowledged is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable

import psycopg
import pytest

from fencing.clock import now_ns
from tests.cluster.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
RAISED = "postgres.parameters.max_connections=120"


def max_connections(world: World) -> set[str]:
    return {world.query(node, "SHOW max_connections")[0][0] for node in world.nodes}


@pytest.fixture
def world(shared_world: World) -> World:
    """Whole, and without what the writers of the tests before have left."""
    primary = shared_world.wait_whole()
    with psycopg.connect(shared_world.node_uri(primary), autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS pgr_writes")
    return shared_world


def happened(world: World, since: int, kind: str) -> list[tuple[str, str]]:
    return [(e["node"], e["reason"]) for e in world.asked_status()["history"][since:] if e["kind"] == kind]


def test_a_raised_setting_takes_a_rolling_restart_and_nothing_is_lost(world: World) -> None:
    primary, since = world.wait_writable(), len(world.asked_status()["history"])
    before = {node.name: node.pid_of("postmaster") for node in world.nodes}
    with world.writing() as writer:
        assert world.pgr("config", "set", RAISED).returncode == 0
        done = world.pgr("reload")
        assert done.returncode == 0, done.stderr
        waits = "reloaded; waits for a restart: max_connections is 100, set to 120"
        shown = {line.partition(": ")[0]: line.partition(": ")[2] for line in done.stdout.splitlines()}
        assert shown == {n.name: waits + " (restart the standbys first)" * (n is primary) for n in world.nodes}
        refused = world.pgr("restart", primary.name)
        assert refused.returncode == 78
        assert "max_connections" in refused.stderr
        done = world.pgr("restart", "--pending", node=world.standbys()[0], timeout_s=120)
        assert done.returncode == 0, done.stderr
        *first, last = done.stdout.removeprefix("restarted: ").strip().split(", ")
        assert (sorted([*first, last]), last) == (["a", "b", "c"], primary.name), "the primary last"
        at_ns = now_ns()
        world.writes_again(writer, at_ns)
        assert max_connections(world) == {"120"}
        world.settles(lambda: not any(m["pending_restart"] for m in world.asked_status()["members"]), "nothing waits")
        assert world.pgr("restart", "--pending").stdout == "nothing waits for a restart\n"
        moved = world.wait_writable()
        assert moved is not primary, "by switchover"
    assert all(node.pid_of("postmaster") != before[node.name] for node in world.nodes)
    assert happened(world, since, "failed") == []
    world.check_no_loss(writer, everywhere=True)


def test_the_primary_alone_is_restarted_in_place_and_stays_what_it_is(world: World) -> None:
    primary, since = world.wait_writable(), len(world.asked_status()["history"])
    standby, _ = world.standbys()
    with world.writing() as writer:
        for words in ([primary.name], ["--role", "primary"], [primary.name, "--pg-version", "99"]):
            pid, at_ns = primary.pid_of("postmaster"), now_ns()
            done = world.pgr("restart", *words, node=standby, timeout_s=60)
            assert (done.returncode, done.stdout) == (0, f"restarted: {primary.name}\n"), done.stderr
            assert world.primary() is primary
            assert primary.pid_of("postmaster") not in (0, pid)
            world.writes_again(writer, at_ns)
        for words in (["--all", "--pg-version", "15"], [primary.name, "--role", "replica"]):
            assert world.pgr("restart", *words).stdout == "no node is such, none was restarted\n"
        assert world.pgr("restart", "--role", "chief").returncode == 64
        assert world.pgr("restart", "--all", "--pg-version", "x").returncode == 64
    assert [node for node, _ in happened(world, since, "promoted")] == [primary.name] * 3
    assert happened(world, since, "failed") == []
    world.wait_whole()
    world.check_no_loss(writer, everywhere=True)


def test_one_node_alone_is_restarted_too(make_world: Callable[..., World]) -> None:
    world = make_world(nodes=1)
    sockets = world.home / "sockets"
    raft = f"localhost:{world.nodes[0].listen_port}"
    advertised = {"advertise": raft, "http-advertise": "db.example:80", "pg-advertise": "pg.example:6432"}
    world.nodes[0].flags |= {"run": str(sockets), "log-format": "text", **advertised}
    world.start()
    only = world.wait_writable()
    (row,) = world.asked_status()["members"]
    assert (row["raft"], row["http"], row["host"], row["pg_port"]) == (raft, "db.example:80", "pg.example", 6432)
    assert " gate.open " in only.log.read_text(encoding="utf-8")
    assert "@pg.example:6432/" in world.pgr("uri", "--user", "me", "--read-only").stdout
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert any(path.is_socket() for path in sockets.iterdir())
    with world.writing() as writer:
        pid = only.pid_of("postmaster")
        done = world.pgr("restart", "--all", timeout_s=60)
        assert (done.returncode, done.stdout) == (0, "restarted: a\n"), done.stderr
        assert only.pid_of("postmaster") not in (0, pid)
        world.writes_again(writer, now_ns())
    only.send(signal.SIGQUIT)
    assert only.wait(30) == 128 + signal.SIGQUIT
    assert only.pids() == []
    only.start()
    world.wait_writable()
    world.check_no_loss(writer)


def test_a_standby_that_does_not_start_ends_the_restart_with_what_to_do(world: World) -> None:
    primary = world.wait_writable()
    first, second = sorted(world.standbys(), key=lambda node: node.name)
    pids = {node: node.pid_of("postmaster") for node in (primary, second)}
    bad = first.data / "pgdata" / "postgresql.conf"
    text = bad.read_text(encoding="utf-8")
    bad.write_text(text + "\nthis is no setting\n", encoding="utf-8")
    with world.writing() as writer:
        done = world.pgr("restart", "--all", timeout_s=120)
        assert done.returncode == 75
        # That it is copied again, once, is what becomes of every standby that does not start.
        said = (f"{first.name} does not start: ", f"{first.name} did not start, and is copied again")
        assert any(f"the restart stops: {words}" in done.stderr for words in said), done.stderr
        assert "restarted: none; left as they are: a, b, c" in done.stderr
        assert "hint: " in done.stderr
        assert {node: node.pid_of("postmaster") for node in pids} == pids, "the others were left alone"
        world.wait_streaming(first)
    world.check_no_loss(writer, everywhere=True)


def test_what_is_scheduled_survives_a_change_of_leader_and_is_done_once(world: World) -> None:
    primary, since = world.wait_writable(), len(world.asked_status()["history"])
    target, third = world.standbys()
    assert world.pgr("switchover", "--to", primary.name, "--at", "+1h").returncode == 64, "it is the primary already"
    done = world.pgr("restart", third.name, "--at", "+9s", node=target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("scheduled: restart at ")
    assert world.pgr("switchover", "--at", "+1h").returncode == 75, "one at a time"
    assert f"scheduled: restart of {third.name} at " in world.pgr("status", node=third).stdout
    assert world.pgr("switchover", "--to", target.name).returncode == 0
    world.wait_whole()
    pid = third.pid_of("postmaster")
    with world.writing() as writer:
        world.settles(lambda: third.pid_of("postmaster") not in (0, pid), "its Postgres was restarted")
        world.wait_streaming(third)
    assert world.asked_status()["scheduled"] is None
    assert sum(text.endswith(" begins") for _, text in happened(world, since, "schedule")) == 1
    assert [node for node, text in happened(world, since, "restart") if text == "is restarted now"] == [third.name]
    cancel = world.pgr("switchover", "--cancel")
    assert (cancel.returncode, "no switchover is scheduled" in cancel.stderr) == (64, True)
    assert world.pgr("switchover", "--at", "+1h", node=third).returncode == 0
    done = world.pgr("switchover", "--cancel", node=target)
    assert done.stdout.startswith("cancelled: the switchover scheduled for "), done.stderr
    world.check_no_loss(writer, everywhere=True)
