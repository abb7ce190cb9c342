"""`pgr doctor` of real clusters: what is well, a member that is dead, one that hangs, and what people have changed."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fencing.clock import now_ns
from fencing.lease import MS
from supervisor.localcluster import LocalNode
from tests.cluster.world import World

pytestmark = pytest.mark.cluster

WHOLE_MS = 30_000
"""A safety bound: the command's own are some seconds, on a machine that does nothing else."""


def doctor(world: World, node: LocalNode | None = None) -> tuple[int, dict[str, Any]]:
    began = now_ns()
    done = world.pgr("doctor", "--json", node=node)
    assert now_ns() - began < WHOLE_MS * MS
    assert done.stdout, done.stderr
    body: dict[str, Any] = json.loads(done.stdout)
    assert body["exit_code"] == done.returncode
    assert body["when"] == "after"
    return done.returncode, body


def said(body: dict[str, Any], check: str, severity: str = "") -> list[str]:
    return [
        f"{f['node']}: {f['what']}"
        for f in body["findings"]
        if f["check"] == check and severity in ("", f["severity"])
    ]  # fmt: skip


def change(world: World, node: LocalNode, sql: str) -> None:
    with psycopg.connect(world.node_uri(node), autocommit=True) as connection:
        connection.execute(sql.encode())


def errors(body: dict[str, Any]) -> list[str]:
    return [f"{f['check']}: {f['node']}: {f['what']}" for f in body["findings"] if f["severity"] == "error"]


@pytest.mark.slow
def test_a_cluster_with_an_override_and_then_with_a_dead_member(world: World) -> None:
    primary = world.wait_writable()
    change(world, primary, "ALTER ROLE postgres SET synchronous_commit = off")
    world.settles(lambda: "role postgres: off" in str(world.status()), "the node has seen it")
    code, body = doctor(world)
    assert (code, errors(body)) == (0, []), body
    names = ["a", "b", "c"]
    for plane in ("control_plane_ms", "data_plane_ms"):
        assert sorted(body[plane]) == names
        for name in names:
            others = body[plane][name]
            assert sorted(others) == [n for n in names if n != name]
            assert all(isinstance(ms, float) and ms > 0 for ms in others.values()), body[plane]
    for check in ("postgres", "rewind", "sessions", "control plane", "data plane", "lease", "limits", "collation"):
        assert {text.partition(":")[0] for text in said(body, check)} == set(names), check
    assert len(said(body, "disk")) >= 9
    assert "replication and rewind are let in by" in said(body, "sessions")[0]
    assert said(body, "clocks", "ok"), "the nodes of one machine have one clock"
    assert [world.logged(n, "peer.rejected") for n in world.nodes] == [[], [], []], "nobody takes it for a stranger"
    (override,) = said(body, "commits", "warning")
    assert override.startswith(f"{primary.name}: synchronous_commit is set lower (role postgres: off)")

    dead = world.standbys()[0]
    dead.kill_all()
    page = world.pgr("doctor", node=primary)
    assert page.returncode == 75
    text = " ".join(page.stdout.partition("why:")[0].split())
    assert text.startswith(f"error: members: {dead.name}: nobody reaches it: no answer from")
    for node in world.nodes:
        assert node is dead or f"{node.name}: nobody listens there" in text, "with what each of the others sees"
    assert "  hint: start it" in page.stdout
    assert re.search(rf"^{dead.name}  .*\?", page.stdout, re.M), "whom it reaches is not known"


@pytest.mark.slow
def test_a_member_that_hangs_and_a_postgres_that_is_kept_down(world: World) -> None:
    """The same port answers, and nobody behind it does."""
    primary = world.wait_writable()
    other, hung = world.standbys()
    hung.send(signal.SIGSTOP)
    code, body = doctor(world, node=other)
    assert code == 75
    named = [e for e in errors(body) if e.startswith(f"members: {hung.name}: nobody reaches it")]
    assert len(named) == 1, errors(body)
    hung.send(signal.SIGCONT)
    world.wait_streaming(hung)

    assert world.pgr("fence", other.name, node=primary).returncode == 0
    code, body = doctor(world, node=other)
    assert errors(body) == []
    assert any(t.startswith(f"{other.name}: Postgres does not run") for t in said(body, "postgres", "warning"))
    kept = [text for text in said(body, "data plane", "warning") if "can't be reached" in text]
    assert sorted(kept) == sorted(
        f"{n.name}: Postgres of {other.name} can't be reached, as it is stopped" for n in (primary, hung)
    )


@pytest.mark.slow
def test_rules_and_roles_that_people_have_changed(world: World) -> None:
    """A rule that trusts everybody; a role that may not do what a rewind needs."""
    primary = world.wait_writable()
    rules = json.dumps(["local all postgres peer map=pgr_owner", "host all all all trust"])
    done = world.pgr("config", "set", f"postgres.hba={rules}", node=primary)
    assert done.returncode == 0, done.stderr
    change(world, primary, "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) FROM pgr_replication")
    found: dict[str, Any] = {}

    def told() -> bool:
        found.update(doctor(world)[1])
        wanted = said(found, "hba", "warning"), said(found, "sessions", "error")
        return (len(wanted[0]), len(wanted[1])) == (3, 6)

    world.settles(told, "each node tells of it, and each of each other", lambda: str(found), 60)
    assert "host from all trust" in said(found, "hba", "warning")[0]
    assert "does not take rewind sessions: the role lacks EXECUTE on pg_read_binary_file(text)" in str(
        said(found, "sessions", "error")
    )
    assert found["exit_code"] == 69


@pytest.mark.slow
def test_the_question_comes_by_network_too_and_before_the_founding(make_world: Callable[..., World]) -> None:
    """One of three is up: it waits for the others, and says who. The third one is a witness, and measures as well."""
    world = make_world()
    world["c"].flags["witness"] = ""
    first = world.nodes[0]
    first.start()
    world.settles(lambda: first.status() is not None, "it answers")
    code, body = doctor(world, node=first)
    assert code == 75
    assert sorted(e.partition(": nobody")[0] for e in errors(body) if e.startswith("members")) == [
        "members: b", "members: c",
    ]  # fmt: skip
    for node in world.nodes[1:]:
        node.start()
    world.wait_writable(standbys=1)
    done = world.pgr(
        "doctor", "--json", "--node", f"127.0.0.1:{world['c'].listen_port}", "--cluster-key",
        first.flags["cluster-key"],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    body = json.loads(done.stdout)
    for name, others in {"a": "bc", "b": "ac", "c": "ab"}.items():
        assert all(body["control_plane_ms"][name][other] > 0 for other in others)
    assert body["data_plane_ms"]["c"] == {"a": None, "b": None}, "it has no session of its own to open"
    assert {text.partition(":")[0] for text in said(body, "sessions", "ok")} == {"a", "b"}
    assert {text.partition(":")[0] for text in said(body, "disk")} == {"a", "b", "c"}
