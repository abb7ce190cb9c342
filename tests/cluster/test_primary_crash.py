"""Postgres alone crashes on the primary and is started again in place (`on_primary_crash = restart`).

That it is handed over at once otherwise: tests/cluster/test_failover.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode
from supervisor.localwriter import Writer
from tests.cluster.test_quorum_promises import Cut, mutate, times_logged
from tests.cluster.world import Gone, World, postgres_pids, rare

pytestmark = pytest.mark.cluster

HUNG_STARTS = """
import os
import signal
from pathlib import Path

from supervisor.postgres import Postgres

shipped = Postgres.start


def hung(self):
    postmaster = shipped(self)
    if Path({hold!r}).exists():
        os.kill(postmaster.pid, signal.SIGSTOP)
        Path({hold!r} + ".pid").write_text(str(postmaster.pid))
    return postmaster


Postgres.start = hung
"""
"""While the file ``hold`` is there, each Postgres is stopped the moment it is started: a recovery that gets nowhere."""


def wants(world: World, **settings: object) -> None:
    words = [f"{name}={value}" for name, value in settings.items()]
    done = world.pgr("config", "set", *words)
    assert done.returncode == 0, done.stderr


def crash(node: LocalNode) -> int:
    """SIGKILL for the postmaster; when the last of its backends was gone, which may acknowledge until then."""
    gone = Gone(postgres_pids(node))
    os.kill(node.pid_of("postmaster"), signal.SIGKILL)
    gone.join(30)
    assert gone.at_ns, "the orphaned backends are still there"
    return gone.at_ns


def timelines(world: World) -> list[int]:
    return [member["timeline"] for member in world.asked_status()["members"]]


def restarted_in_place(world: World, writer: Writer) -> LocalNode:
    """The primary, once it has come back from a crash and clients write there again."""
    primary = world.wait_writable()
    before = timelines(world)
    killed_ns = crash(primary)
    world.writes_again(writer, killed_ns)
    world.wait_whole()
    assert world.primary() is primary
    world.settles(lambda: min(timelines(world)) > max(before), "a promotion like any other: all on a new timeline")
    print(f"restarted in place: write gap {writer.gap(killed_ns).seconds:.2f} s, load {os.getloadavg()[0]:.1f}")
    return primary


def test_a_crashed_primary_is_started_again_in_place(world: World) -> None:
    wants(world, on_primary_crash="restart")
    with world.writing() as writer:
        primary = restarted_in_place(world, writer)
    world.check_no_loss(writer, everywhere=True)
    told = [event["reason"] for event in world.asked_status()["history"] if event["kind"] == "failed"]
    assert any("postmaster ended" in text for text in told), "people are told why it was promoted anew"
    assert not any(world.logged(node, "rewind.begin") for node in world.nodes), f"{primary.name} lost nothing"


@rare
def test_a_lost_backend_takes_the_same_way(world: World) -> None:
    """As after an out-of-memory kill: Postgres ends itself (`restart_after_crash = off`), what it left is killed."""
    wants(world, on_primary_crash="restart")
    primary = world.wait_writable()
    with world.writing() as writer, psycopg.connect(world.node_uri(primary), autocommit=True) as session:
        killed_ns = now_ns()
        os.kill(session.info.backend_pid, signal.SIGKILL)
        world.settles(lambda: times_logged(primary, "postgres.exited") == 1, "Postgres has ended")
        world.writes_again(writer, killed_ns)
        world.wait_whole()
        assert world.primary() is primary
    world.check_no_loss(writer, everywhere=True)


@pytest.fixture
def cut(make_world: Callable[..., World]) -> Iterator[Cut]:
    made = Cut(make_world())
    yield made
    for proxy in made.proxies.values():
        proxy.close()


@pytest.mark.slow
def test_it_stays_closed_until_enough_have_the_end_of_its_recovery(cut: Cut) -> None:
    world = cut.world
    primary = cut.begin()
    wants(world, on_primary_crash="restart")
    others = [node for node in world.nodes if node is not primary]
    with world.writing() as writer:
        cut.refuse(*(node.name for node in others))
        opened = times_logged(primary, "gate.open")
        promoted = times_logged(primary, "postgres.promoted")
        killed_ns = crash(primary)
        world.settles(lambda: times_logged(primary, "postgres.promoted") > promoted, "it is promoted")
        # Longer than the others take to follow where they can: see the gap that the test above prints.
        world.settles(lambda: now_ns() - killed_ns > 5_000_000_000, "five seconds")
        assert times_logged(primary, "gate.open") == opened
        assert not primary.is_primary()
        assert world.query(primary, "SHOW default_transaction_read_only") == [("on",)]
        assert not writer.acked_since(killed_ns)
        cut.allow(*(node.name for node in others))
        world.writes_again(writer, killed_ns)
        assert world.primary() is primary
        world.wait_whole()
    world.check_no_loss(writer, everywhere=True)


@pytest.mark.slow
def test_one_that_does_not_come_up_in_time_hands_over(make_world: Callable[..., World]) -> None:
    world = make_world()
    home = world.home / "held"
    home.mkdir()
    home.chmod(0o777)
    hold = home / "hold"
    for node in world.nodes:
        mutate(world, node, HUNG_STARTS.format(hold=str(hold)))
    world.start()
    primary = world.wait_writable(standbys=2)
    wants(world, on_primary_crash="restart", primary_start_timeout="5")
    with world.writing() as writer:
        hold.touch()
        killed_ns = crash(primary)
        world.settles(lambda: "is started again in place" in world.asked_status()["explanation"], "it is waited for")
        world.writes_again(writer, killed_ns)
        gap = writer.gap(killed_ns).seconds
        print(f"handed over after primary_start_timeout = 5 s: write gap {gap:.2f} s, load {os.getloadavg()[0]:.1f}")
        assert world.primary() is not primary
        assert gap > 5, "it had its time"
        hold.unlink()
        os.kill(int((home / "hold.pid").read_text(encoding="utf-8")), signal.SIGCONT)
        world.wait_streaming(primary)
    world.check_no_loss(writer, everywhere=True)


@rare
def test_one_that_cannot_start_hands_over_before_its_time_is_up(world: World) -> None:
    wants(world, on_primary_crash="restart", primary_start_timeout="10min")
    primary = world.wait_writable()
    conf = primary.data / "pgdata" / "postgresql.conf"
    before = conf.read_text(encoding="utf-8")
    with world.writing() as writer:
        conf.write_text(f"{before}\nshared_preload_libraries = 'no_such_library'\n", encoding="utf-8")
        killed_ns = crash(primary)
        world.writes_again(writer, killed_ns)
        assert world.primary() is not primary
        assert any("no_such_library" in str(e["fields"]) for e in world.logged(primary, "step.failed")), "it says why"
        conf.write_text(before, encoding="utf-8")
        world.wait_streaming(primary)
    world.check_no_loss(writer, everywhere=True)
