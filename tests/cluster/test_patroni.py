"""Three nodes of a real Patroni (from PyPI, its own Raft as the store) become three of pgr, as deploy/ADOPT.md says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import yaml  # type: ignore[import-untyped]  # no stubs for the sake of one test

from supervisor.localcluster import free_ports, release_ports, wait_for, write_secret
from tests.cluster.world import World, rare
from tests.pgbare import as_postgres, own_directory, pg_bin, run
from tests.pypi import installed

pytestmark = [pytest.mark.cluster, rare, pytest.mark.timeout(600)]

VERSION = "patroni[raft]>=4,<5"
ROWS = "SELECT count(*) FROM kept"


class Member(NamedTuple):
    name: str
    rest: int
    raft: int
    postgres: int
    home: Path

    @property
    def pgdata(self) -> Path:
        return self.home / "main"

    @property
    def log(self) -> Path:
        return self.home / "patroni.log"

    def conninfo(self, user: str = "postgres") -> str:
        return f"host=127.0.0.1 port={self.postgres} user={user} password=secret dbname=postgres connect_timeout=2"


class Patroni:
    """Its processes, as people run them; ended by pid."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bin = Path()
        self.ports = free_ports(9)
        rest, raft, postgres = self.ports[:3], self.ports[3:6], self.ports[6:]
        self.members = [Member(f"p{n}", rest[n], raft[n], postgres[n], home / f"p{n}") for n in range(3)]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        for member in self.members:
            member.home.mkdir()
            subprocess.run(["chown", "--reference", self.home, member.home], check=True)
            config = member.home / "patroni.yml"
            config.write_text(yaml.safe_dump(self.config(member)), encoding="utf-8")
            with member.log.open("ab") as log:
                self.processes[member.name] = subprocess.Popen(
                    [self.bin / "patroni", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                    env={"PATH": f"{pg_bin()}:/usr/bin:/bin", "HOME": str(member.home)}, start_new_session=True,
                    **as_postgres(),
                )  # fmt: skip

    def config(self, member: Member) -> dict[str, Any]:
        return {
            "scope": "demo",
            "name": member.name,
            "restapi": {"listen": f"127.0.0.1:{member.rest}", "connect_address": f"127.0.0.1:{member.rest}"},
            "raft": {
                "data_dir": str(member.home / "raft"),
                "self_addr": f"127.0.0.1:{member.raft}",
                "partner_addrs": [f"127.0.0.1:{m.raft}" for m in self.members if m is not member],
            },
            "bootstrap": {
                "dcs": {
                    "ttl": 20, "loop_wait": 1, "retry_timeout": 3, "synchronous_mode": True,
                    "slots": {"analytics": {"type": "physical"}},
                    "postgresql": {"use_pg_rewind": True, "parameters": {"max_connections": 60, "work_mem": "6MB"}},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{member.postgres}", "connect_address": f"127.0.0.1:{member.postgres}",
                "data_dir": str(member.pgdata), "bin_dir": str(pg_bin()), "pgpass": str(member.home / "pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres", "password": "secret"},
                    "replication": {"username": "replicator", "password": "secret"},
                },
                "parameters": {"unix_socket_directories": str(member.home), "shared_buffers": "8MB"},
                "pg_hba": [
                    "local all all trust",
                    "host replication replicator 127.0.0.1/32 scram-sha-256",
                    "host all all 127.0.0.1/32 scram-sha-256",
                ],
            },
        }  # fmt: skip

    def members_now(self) -> list[dict[str, Any]]:
        for member in self.members:
            words = ["-sS", "-m", "2", f"http://127.0.0.1:{member.rest}/cluster"]
            done = subprocess.run(["curl", *words], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found: list[dict[str, Any]] = json.loads(done.stdout).get("members", [])
                return found
        return []

    def leader(self) -> Member | None:
        names = [m["name"] for m in self.members_now() if m["role"] == "leader" and m["state"] == "running"]
        return next((m for m in self.members if m.name in names), None)

    def whole(self) -> bool:
        seen = self.members_now()
        return len(seen) == 3 and [m["state"] for m in seen].count("streaming") == 2 and self.leader() is not None

    def sync_standbys(self) -> list[str]:
        """Who may take over in synchronous mode."""
        return [str(m["name"]) for m in self.members_now() if m["role"] == "sync_standby"]

    def ctl(self, *words: str) -> None:
        done = subprocess.run(
            [self.bin / "patronictl", "-c", self.members[0].home / "patroni.yml", *words],
            capture_output=True, text=True, check=False, timeout=120, cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(self.home)},
        )  # fmt: skip
        print(done.stdout, done.stderr)  # for whoever reads why it failed
        assert done.returncode == 0

    def logs(self) -> str:
        return "\n".join(m.log.read_text(errors="replace")[-1500:] for m in self.members)

    def end(self, how: signal.Signals) -> None:
        for process in self.processes.values():
            process.send_signal(how)
        for process in self.processes.values():
            process.wait(60)

    def close(self) -> None:
        self.end(signal.SIGKILL)
        for entry in os.listdir("/proc"):
            try:
                place = os.readlink(f"/proc/{entry}/cwd") if entry.isdigit() else ""
                if place.startswith(f"{self.home}/"):
                    os.kill(int(entry), signal.SIGKILL)
            except OSError:
                continue  # it has ended
        shutil.rmtree(self.home)
        release_ports(self.ports)


@pytest.fixture
def patroni() -> Iterator[Patroni]:
    found = Patroni(own_directory("pgr-patroni-"))
    try:
        found.bin = installed(found.home / "env", VERSION, "psycopg[binary]")
        found.start()
        yield found
    finally:
        found.close()


def test_a_patroni_cluster_is_taken_over(patroni: Patroni, make_world: Callable[..., World]) -> None:
    assert wait_for(patroni.whole, 120, 0.3), patroni.logs()
    first = patroni.leader()
    assert first is not None
    with psycopg.connect(first.conninfo(), autocommit=True) as session:
        session.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i")
    # A life of its own: another leader, a second timeline, a former leader that was rewound.
    assert wait_for(lambda: bool(patroni.sync_standbys()), 60, 0.3), patroni.members_now()
    patroni.ctl("switchover", "demo", "--candidate", patroni.sync_standbys()[0], "--force")
    moved = wait_for(lambda: patroni.whole() and patroni.leader() != first, 120, 0.3)
    assert moved, f"{first.name}: {patroni.members_now()}"
    leader = patroni.leader()
    assert leader is not None
    with psycopg.connect(leader.conninfo(), autocommit=True) as session:
        session.execute("INSERT INTO kept SELECT generate_series(1, 500)")

    # deploy/ADOPT.md: pause, stop Patroni, stop every Postgres; the leader's data directory is the one.
    patroni.ctl("pause", "demo", "--wait")
    patroni.end(signal.SIGTERM)
    assert all((m.pgdata / "postmaster.pid").exists() for m in patroni.members), "in pause it leaves them running"
    world = make_world()
    mine = dict(zip([leader, *(m for m in patroni.members if m is not leader)], world.nodes, strict=True))
    for member, node in mine.items():
        node.flags["pgdata"] = str(member.pgdata)
        node.flags["pg-port"] = str(member.postgres)
        node.pg_port = member.postgres
        node.env["PGR_SUPERUSER_PASSWORD_FILE"] = str(write_secret(world.home / "password", "secret"))
    world.password = "secret"
    code, said = world.run_node(mine[leader])
    assert (code, "runs in" in said) == (78, True), said
    for member in patroni.members:
        run("pg_ctl", "-D", member.pgdata, "-m", "fast", "-w", "stop")

    # What a replica has is refused, as long as it is in the way.
    replica = next(m for m in patroni.members if m is not leader)
    code, said = world.run_node(mine[replica])
    assert (code, "is the data of a standby" in said) == (78, True), said
    for member in patroni.members:
        if member is not leader:
            member.pgdata.rename(member.pgdata.with_name("main.patroni"))
    world.start()
    primary = world.wait_writable(standbys=2)
    assert primary is mine[leader]
    for node in world.nodes:
        world.settles(lambda node=node: world.query(node, ROWS) == [(1500,)], f"all of it on {node.name}")  # type: ignore[misc]  # bound now
        assert world.query(node, "SHOW work_mem") == [("6MB",)]
        assert world.query(node, "SHOW primary_slot_name")[0][0] in ("", f"pgr_{node.name}")
    (told,) = world.logged(primary, "data.adopted")
    assert told["fields"]["client_rules"] == 3
    assert "synchronous_standby_names" in told["fields"]["text"]
    assert "secret" not in json.dumps(told)

    # And it is a cluster of pgr's.
    with world.writing() as writer:
        killed_ns, _ = primary.kill_all()
        world.writes_again(writer, killed_ns)
        primary.start()
        world.wait_streaming(primary)
    world.check_no_loss(writer, everywhere=True)
