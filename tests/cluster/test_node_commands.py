"""`pgr fence`, `unfence`, `reinit`: one node is taken out, brought back, copied anew; writes go on meanwhile."""

from __future__ import annotations

import pytest

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode
from tests.cluster.world import World

pytestmark = pytest.mark.cluster


def started(node: LocalNode, event: str = "postgres.starting") -> int:
    return sum(e["event"] == event for e in node.events())


@pytest.mark.slow
def test_one_node_is_fenced_restarted_let_go_and_copied_anew(world: World) -> None:
    primary = world.wait_writable()
    standby, other = world.standbys()
    with world.writing() as writer:
        # -- a standby, over a restart
        done = world.pgr("fence", standby.name, node=other)
        assert (done.returncode, done.stdout) == (0, f"{standby.name}: fenced, its Postgres is down\n"), done.stderr
        assert not standby.pid_of("postmaster")
        before = started(standby)
        standby.kill_all()
        standby.start()
        world.settles(lambda: (s := standby.status()) is not None and s.leader == primary.name, "it is back")
        shown = world.asked_status(standby)
        (row,) = [m for m in shown["members"] if m["name"] == standby.name]
        assert row["fenced"] is True
        assert started(standby) == before, "its Postgres was not started, not even for a moment"
        refused = world.pgr("fence", other.name)
        assert refused.returncode == 78, "the last standby is needed"
        assert "hint: " in refused.stderr
        assert world.pgr("reinit", standby.name).returncode == 75
        assert world.pgr("unfence", standby.name, node=standby).returncode == 0
        world.wait_streaming(standby)

        # -- a new copy, of a standby only
        assert world.pgr("reinit", primary.name).returncode == 78
        copies = started(standby, "clone.end")
        done = world.pgr("reinit", standby.name, node=other, timeout_s=120)
        assert (done.returncode, done.stdout) == (0, f"{standby.name}: has its new copy\n"), done.stderr
        assert started(standby, "clone.end") == copies + 1
        assert any(p.name.endswith("pgdata-replaced") for p in (standby.data / "salvage").iterdir()), "moved aside"
        world.wait_streaming(standby)

        # -- the primary hands over first
        at_ns = now_ns()
        done = world.pgr("fence", primary.name, node=other)
        assert done.returncode == 0, done.stderr
        world.writes_again(writer, at_ns)
        world.settles(lambda: world.primary() not in (None, primary), "another is primary")
        assert not primary.pid_of("postmaster")
    history = {(e["kind"], e["node"]) for e in world.asked_status()["history"]}
    done_to = (("fenced", standby), ("unfenced", standby), ("reinit", standby), ("fenced", primary))
    assert history >= {(kind, node.name) for kind, node in done_to}
    assert world.pgr("unfence", primary.name).returncode == 0
    world.wait_streaming(primary)
    assert started(standby, "clone.end") == copies + 1, "and not once more"
    world.check_no_loss(writer, everywhere=True)


@pytest.mark.slow
def test_all_may_be_fenced_by_force_only_and_explain_tells_the_way_back(world: World) -> None:
    primary = world.wait_writable()
    for standby in world.standbys():
        assert world.pgr("fence", standby.name, "--force").returncode == 0
    refused = world.pgr("fence", primary.name)
    assert refused.returncode == 78
    assert f"{primary.name} is the primary, and nobody can take over: " in refused.stderr
    assert "--force" in refused.stderr
    assert world.primary() is primary
    done = world.pgr("fence", primary.name, "--force")
    assert done.returncode == 0, done.stderr
    world.settles(lambda: world.primary() is None, "there is none")
    assert not any(node.pid_of("postmaster") for node in world.nodes)
    reasons = [e["reason"] for e in world.asked_status()["history"] if e["kind"] == "failed"]
    assert reasons == ["a person keeps its Postgres down"]
    world.settles(lambda: "hint: `pgr unfence " in world.pgr("explain").stdout, "it tells how to go on")
    for node in world.nodes:
        assert world.pgr("unfence", node.name, timeout_s=120).returncode == 0
    world.wait_whole()
