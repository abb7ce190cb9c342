"""`pgr recover`: the quorum is lost for good. The cluster goes on around a node that is left, and what comes back of
the others does not disturb it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from consensus.recovery import TERM_GAP, TIMELINE_GAP
from fencing.clock import now_ns
from supervisor.localcluster import LocalNode, free_ports
from tests.cluster.world import World, postgres_pids, rare

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]


FILL = "SELECT count(pg_logical_emit_message(false, 'fill', repeat('x', 1000000))) FROM generate_series(1, 60)"


def foreseen(world: World, node: LocalNode) -> dict[str, Any]:
    """What a dry run says, whatever it says."""
    done = world.pgr("recover", "--dry-run", "--json", node=node)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (found["refusal"]["code"] if found["refusal"] else 0), done.stderr
    return found


def recover(world: World, node: LocalNode) -> str:
    """Done, once nothing is in its way; the name of the cluster that ended."""
    world.settles(
        lambda: foreseen(world, node)["refusal"] is None, "nothing is in its way", lambda: str(foreseen(world, node))
    )
    name = str(foreseen(world, node)["outlook"]["cluster"])
    done = world.pgr("recover", "--yes", name, node=node, timeout_s=120)
    assert done.returncode == 0, done.stderr
    return name


def cluster_of(node: LocalNode) -> str:
    seen = node.status()
    return seen.cluster_id if seen is not None else ""


def reign(world: World, node: LocalNode) -> tuple[int, int]:
    """Term and timeline of the newest grant that this node knows of."""
    promoted = [e for e in world.asked_status(node)["history"] if e["kind"] == "promoted"]
    return int(promoted[-1]["term"]), int(promoted[-1]["timeline"])


def kinds(world: World, node: LocalNode) -> list[tuple[str, str]]:
    return [(e["kind"], e["node"]) for e in world.asked_status(node)["history"]]


def test_one_of_three_is_left(world: World) -> None:
    primary = world.wait_writable()
    survivor, other = world.standbys()
    with world.writing() as writer:
        pass
    world.wait_replayed(survivor)
    before, old = cluster_of(survivor), reign(world, survivor)
    assert "has a leader" in foreseen(world, survivor)["refusal"]["error"]
    for node in (primary, other):
        node.kill_all()
    page = world.pgr("recover", "--dry-run", node=survivor)
    assert "acknowledged commits may be lost: 2 of a, b, c acknowledged each" in page.stdout
    unconfirmed = world.pgr("recover", node=survivor)
    assert unconfirmed.returncode in (64, 75), unconfirmed.stderr
    assert cluster_of(survivor) == before, "nothing was done"
    assert recover(world, survivor) == before[:8]
    world.settles(lambda: world.primary() is survivor, "it is primary")
    world.check_no_loss(writer)
    assert cluster_of(survivor) not in ("", before)
    term, timeline = reign(world, survivor)
    assert term > old[0] + TERM_GAP
    assert timeline > old[1] + TIMELINE_GAP
    assert world.query(survivor, "select timeline_id from pg_control_checkpoint()")[0][0] in (old[1], timeline)

    with psycopg.connect(world.node_uri(survivor), autocommit=True) as connection:
        connection.execute("DROP TABLE pgr_writes")  # the next writer counts from the beginning
    added = world.add("d", at=survivor)
    with world.writing() as writer:
        added.start()
        world.wait_members(f"{survivor.name} d", f"2 of {survivor.name} d")
        # A majority of what was: together, and with the data and the state they had.
        for node in (primary, other):
            node.start()
        for node in (primary, other):
            # 0: it had met a leader of its own by then, and was a member.
            assert node.wait(60) in (0, 78), node.name
            assert f"has rebuilt it as {cluster_of(survivor)[:8]}" in node.log.read_text(encoding="utf-8")
            assert (node.data / "pgdata" / "PG_VERSION").exists(), "untouched"
            assert not world.logged(node, "gate.open")[1:], f"{node.name} was not open once more"
        back_ns = now_ns()
        world.settles(lambda: writer.acked_since(back_ns) > 20, "writes go on")
        assert ("recovered", survivor.name) in kinds(world, survivor)
        world.settles(
            lambda: {("superseded", n.name) for n in (primary, other)} <= set(kinds(world, survivor)), "it is told of"
        )

        # The documented way back.
        shutil.move(other.data / "raft", other.data / "raft.old")
        other.start()
        names = " ".join(sorted((survivor.name, other.name, "d")))
        world.wait_members(names, f"2 of {names}")
    assert not writer.failures
    world.check_no_loss(writer, everywhere=True)
    assert any(p.name.endswith("pgdata-replaced") for p in (other.data / "salvage").iterdir()), "what it had is kept"


def test_a_stopped_one_is_left_and_the_others_come_back_first(world: World) -> None:
    """The control is in it: nobody tells the old majority while the new cluster is down, and it goes on as what it was.
    It can't be kept from that, only from going on beside the new one."""
    primary = world.wait_writable()
    survivor, other = world.standbys()
    before = cluster_of(survivor)
    for node in world.nodes:
        node.kill_all()
    assert recover(world, survivor) == before[:8]
    for node in (primary, other):
        node.start()
    old = world.wait_writable(standbys=1)
    assert cluster_of(old) == before
    assert old in (primary, other)
    there = reign(world, old)
    survivor.start()
    for node in (primary, other):
        assert node.wait(60) == 0, f"{node.name}: it was a member until then"
    assert world.wait_writable() is survivor
    here = reign(world, survivor)
    assert here[0] > there[0]
    assert here[1] != there[1], "no two promotions share a number"
    world.settles(lambda: ("superseded", old.name) in kinds(world, survivor), "it is told of")
    assert world.query(survivor, "select 1") == [(1,)]


@rare
def test_two_of_five_are_left_and_the_one_with_more_goes_on(make_world: Callable[..., World]) -> None:
    world = make_world(nodes=5)
    world.start()
    primary = world.wait_writable(standbys=4)
    left, behind, *lost = world.standbys()
    frozen = postgres_pids(behind)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        with world.writing() as writer:
            world.query(primary, FILL)  # more than sockets hold
        world.wait_replayed(left)
        for node in (primary, *lost):
            node.kill_all()
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def refused(node: LocalNode) -> str:
        found = foreseen(world, node)["refusal"]
        return str(found["error"]) if found else ""

    newer = f"{left.name} has newer data"
    world.settles(lambda: newer in refused(behind), "the other has more", lambda: refused(behind))
    recover(world, left)
    world.settles(lambda: world.primary() is left, "it is primary")
    assert behind.wait(60) == 0, "it is told to stop"
    world.check_no_loss(writer)
    shutil.move(behind.data / "raft", behind.data / "raft.old")
    behind.start()
    names = " ".join(sorted((left.name, behind.name)))
    world.wait_members(names, f"2 of {names}")
    world.check_no_loss(writer, everywhere=True)


@rare
def test_data_whose_raft_state_is_gone_goes_into_a_new_cluster(make_world: Callable[..., World]) -> None:
    """Nobody knows which cluster it was of; the refusal says the way, and that is gone here."""
    world = make_world(nodes=1)
    world.start()
    world.wait_writable()
    with world.writing() as writer:
        pass
    (node,) = world.nodes
    node.kill_all()
    shutil.rmtree(node.data / "raft")
    refused = world.pgr("recover", node=node)
    assert refused.returncode == 78
    for word in ("copy PGDATA", "remove pgr_node.json", "pgr-supervise --data NEW --pgdata COPY"):
        assert word in refused.stderr
    copy = world.home / "copy"
    subprocess.run(["cp", "-a", node.data / "pgdata", copy], check=True)
    (copy / "pgr_node.json").unlink()
    (copy / "postmaster.pid").unlink(missing_ok=True)
    new = LocalNode(world.home, "new", free_ports(3))
    new.flags |= {flag: node.flags[flag] for flag in ("cluster-key", "user") if flag in node.flags}
    new.flags["pgdata"] = str(copy)
    world.nodes.append(new)
    new.start()
    world.settles(new.is_primary, "its data is served again")
    assert not writer.audit(world.node_uri(new)).lost
