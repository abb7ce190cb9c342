"""Cluster-wide settings on real nodes: into the log, onto every Postgres, and what the cluster then does."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor.localcluster import LocalNode
from tests.cluster.test_readme import commands, fenced, section
from tests.cluster.world import World

pytestmark = pytest.mark.cluster


def config(world: World, *words: str, node: LocalNode | None = None) -> str:
    """`pgr config ...` that succeeds; its stdout."""
    done = world.pgr("config", *words, node=node)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(world: World, code: int, *words: str) -> str:
    """`pgr config ...` that does not; its stderr."""
    done = world.pgr("config", *words)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "hint: " in done.stderr
    return done.stderr


def everywhere(world: World, sql: str, value: str) -> None:
    def has(node: LocalNode) -> bool:
        try:
            return world.query(node, sql) == [(value,)]
        except psycopg.OperationalError:
            return False  # it is being restarted

    for node in world.nodes:
        world.settles(lambda node=node: has(node), f"{sql} is {value} on {node.name}")  # type: ignore[misc]  # bound now


def pending(world: World, name: str) -> str:
    seen = world[name].status()
    row = seen.member(name) if seen else None
    return row.pending if row and row.pending_restart else ""


@pytest.mark.slow
def test_settings_reach_every_node(world: World, tmp_path: Path) -> None:
    primary = world.wait_writable()
    a, (b, left_behind) = primary, world.standbys()

    for command in commands("".join(fenced(section("Settings")))):
        words = shlex.split(command, comments=True)
        assert words[:2] + words[-2:] == ["bin/pgr", "config", "--data", "/tmp/pgr/a"]
        assert config(world, *words[2:-2], node=b)

    # Postgres's own, asked for at a standby.
    done = world.pgr("config", "set", "postgres.parameters.work_mem=8MB", "maximum_lag_on_failover=2MB", node=b)
    assert done.returncode == 0, done.stderr
    assert "+ postgres.parameters.work_mem = 8MB" in done.stderr.splitlines(), "the diff comes first"
    assert "note: work_mem: takes effect with a reload" in done.stderr
    assert done.stdout == "maximum_lag_on_failover = 2097152\npostgres.parameters.work_mem = 8MB\n"
    everywhere(world, "SHOW work_mem", "8MB")
    assert config(world, "get", "postgres.parameters.work_mem") == "8MB\n"
    document: dict[str, Any] = json.loads(b.get("/config")[1])
    assert (document["maximum_lag_on_failover"], document["strict"], document["commit"]) == (2 << 20, True, "quorum")
    assert document["postgres"]["parameters"]["work_mem"] == "8MB"
    rows = {row["name"]: row for row in json.loads(config(world, "show", "--json"))}
    assert rows["maximum_lag_on_failover"]["source"] == "set"
    assert (rows["lease_ms"]["value"], rows["lease_ms"]["source"]) == (700, "profile")
    assert "postgres.parameters.work_mem" in config(world, "show")
    history = json.loads(config(world, "history", "--json", node=b))
    assert "postgres.parameters.work_mem: default -> 8MB" in history[-1]["change"]
    assert "@" in history[-1]["by"]

    # What Postgres or pgr would not have never enters the log.
    index = json.loads(world.pgr("config", "set", "--dry-run", "--json", "strict=true").stdout)["index"]
    assert "did you mean work_mem?" in refused(world, 64, "set", "postgres.parameters.work_men=8MB")
    assert "work_mem is a number" in refused(world, 64, "set", "postgres.parameters.work_mem=lots")
    assert "between 64 and" in refused(world, 64, "set", "postgres.parameters.work_mem=1kB")
    assert "decided by the sync group" in refused(world, 64, "set", "postgres.parameters.synchronous_commit=off")
    assert "invalid value" in refused(world, 64, "set", "postgres.parameters.timezone=Mars/Olympus")
    assert "no node would start" in refused(world, 64, "set", "postgres.parameters.shared_preload_libraries=no_such")
    assert "can't become less" in refused(world, 78, "set", "postgres.parameters.max_connections=20")
    assert "there are 3" in refused(world, 78, "set", "sync_acks=3")
    assert "do not fit under election_ms" in refused(world, 78, "set", "lease_ms=900")
    assert "authentication method" in refused(world, 64, "set", "postgres.hba=host all all all magic")
    assert "own map has this name" in refused(world, 78, "set", "postgres.ident=pgr nobody pgr")
    assert "invalid regular expression" in refused(world, 64, "set", "postgres.ident=m /( postgres")
    assert json.loads(world.pgr("config", "set", "--dry-run", "--json", "strict=true").stdout)["index"] == index

    # Rules for clients; pgr's own stay before them.
    rule = "host all all 127.0.0.1/32 scram-sha-256"
    config(world, "set", f"postgres.hba={json.dumps([rule, 'local all all peer'])}")
    rules = "SELECT count(*)::text FROM pg_hba_file_rules WHERE auth_method = 'peer' AND 'all' = ANY (user_name)"
    everywhere(world, rules, "1")
    config(world, "set", "postgres.ident=admins alice postgres")
    maps = "SELECT string_agg(map_name || ' ' || sys_name, ', ') FROM pg_ident_file_mappings WHERE map_name !~ '^pgr'"
    everywhere(world, maps, "admins alice")

    # A setting that takes a restart.
    config(world, "set", "postgres.parameters.max_connections=130")
    for node in world.nodes:
        world.settles(lambda node=node: "max_connections is 100, set to 130" in pending(world, node.name), "pending")  # type: ignore[misc]  # bound now
    assert "standbys first" in pending(world, a.name)
    assert "pending restart" in world.pgr("status").stdout
    assert b'pgr_pending_restart 1' in b.get("/metrics")[1]
    reason = {"max_connections": {"old_value": "100", "new_value": "130"}}
    assert json.loads(b.get("/patroni")[1])["pending_restart_reason"] == reason
    b.stop()
    b.start()
    world.wait_streaming(b)
    assert world.query(b, "SHOW max_connections") == [("130",)]
    world.settles(lambda: pending(world, b.name) == "", "nothing waits there")

    # Acknowledged by every standby.
    config(world, "set", "sync_acks=2")
    world.wait_members("a b c", "3 of a b c")
    assert world.query(a, "SHOW synchronous_standby_names")[0][0].startswith("ANY 2 (")

    # Set lower behind pgr's back.
    with psycopg.connect(world.node_uri(a), autocommit=True) as session:
        session.execute("ALTER ROLE postgres SET synchronous_commit = local")
    world.settles(
        lambda: any("set lower: role postgres: local" in w for w in world.asked_status(b)["warnings"]), "a warning"
    )
    with psycopg.connect(world.node_uri(a), autocommit=True) as session:
        session.execute("ALTER ROLE postgres RESET synchronous_commit")

    with psycopg.connect(world.node_uri(a), autocommit=True) as session:
        session.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        session.execute("SELECT pg_reload_conf()")
    world.settles(lambda: bool(world.logged(a, "settings.altered")), "it is seen")
    names = "SHOW synchronous_standby_names"
    world.settles(lambda: world.query(a, names)[0][0].startswith("ANY 2 ("), "it is put back")
    assert "synchronous_standby_names = ''" in world.pgr("events", node=a).stdout

    # As TOML, in an editor.
    editor = tmp_path / "editor.py"
    editor.write_text("import sys, pathlib; p = pathlib.Path(sys.argv[1]); t = p.read_text()\n"
                      "p.write_text(t.replace('sync_acks = 2', '').replace('\"8MB\"', '\"16MB\"'))\n")  # fmt: skip
    done = world.pgr("config", "edit", env={"EDITOR": f"{sys.executable} {editor}"})
    assert done.returncode == 0, done.stderr
    assert "- sync_acks = 2" in done.stderr
    everywhere(world, "SHOW work_mem", "16MB")
    world.wait_members("a b c", "2 of a b c")

    # The primary has more connections than a standby that was left behind: Postgres stops its replay there.
    done = world.pgr("switchover", "--to", b.name)
    assert done.returncode == 0, done.stderr
    everywhere(world, "SHOW max_connections", "130")
    assert world.logged(left_behind, "postgres.insufficient"), "it was restarted by itself"
    world.wait_whole()

    # Asynchronous and back, under load: from then on nothing is lost.
    with world.writing() as writer:
        config(world, "set", "commit=async")
        world.wait_members("a b c", "1 of a b c")
        assert world.query(b, "SHOW synchronous_standby_names") == [("",)]
        assert any("asynchronous" in w for w in world.asked_status()["warnings"])
        config(world, "set", "commit=quorum")
        world.wait_members("a b c", "2 of a b c")
        killed_ns, _ = b.kill_all()
        world.writes_again(writer, killed_ns)
    world.check_no_loss(writer)


def two_and_a_witness(make_world: Callable[..., World]) -> World:
    world = make_world()
    world["c"].flags["witness"] = ""
    world.start()
    world.wait_writable(standbys=1)
    world.wait_members("a b c:witness", "2 of a b")
    config(world, "set", "strict=false")
    return world


@pytest.mark.slow
def test_not_strict_goes_on_alone_and_says_so_everywhere(make_world: Callable[..., World]) -> None:
    world = two_and_a_witness(make_world)
    primary, witness = world.wait_writable(), world["c"]
    other = next(node for node in world.standbys() if node is not witness)
    with world.writing() as writer:
        killed_ns, _ = other.kill_all()
        world.writes_again(writer, killed_ns)
        degraded = f"degraded: 1 of {primary.name} acknowledges a commit, and 2 are wanted"
        world.settles(lambda: any(degraded in w for w in world.asked_status(witness)["warnings"]), "a warning")
        for words in (("history",), ("uri",), ("config", "show"), ("member", "list")):
            assert f"warning: {degraded}" in world.pgr(*words, node=witness).stderr, words
        assert b"pgr_degraded 1" in witness.get("/metrics")[1]
        other.start()
        world.wait_members("a b c:witness", "2 of a b")
        world.settles(lambda: b"pgr_degraded 0" in primary.get("/metrics")[1], "degraded no more")
        assert "degraded" not in world.pgr("history", node=primary).stderr
        killed_ns, _ = primary.kill_all()
        world.writes_again(writer, killed_ns)  # the group shrinks before the other one is promoted
        assert world.primary() is other
        world.wait_members("a b c:witness", f"1 of {other.name}")
        primary.start()
        world.wait_members("a b c:witness", "2 of a b")
    world.check_no_loss(writer)
