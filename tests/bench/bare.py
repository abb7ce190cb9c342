"""Bare PostgreSQL with the same synchronous_standby_names, and an oracle in place of a supervisor: the floor."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
from typing import Any

import psycopg

from fencing.clock import now_ns
from supervisor.localcluster import wait_for
from tests.pgbare import BarePostgres, run

SETTINGS = {
    # As initdb leaves them; the defaults of BarePostgres are for tests that want no disk.
    "fsync": "on", "shared_buffers": "128MB", "max_connections": "100", "synchronous_commit": "on",
    "wal_log_hints": "on", "max_wal_senders": "10", "wal_keep_size": "256MB", "max_replication_slots": "10",
    "wal_retrieve_retry_interval": "500ms",
}  # fmt: skip
NAMES = ("a", "b", "c")


class BareCluster:
    """A primary and two standbys, ANY 1 of the others must have each commit. Ports and directories stay the same."""

    def __init__(self) -> None:
        self.nodes: dict[str, BarePostgres] = {}
        self.primary = "a"

    def __enter__(self) -> BareCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        for node in self.nodes.values():
            node.close()

    def create(self) -> None:
        """initdb, a primary, two base backups side by side, both streaming."""
        for name in NAMES:
            others = ", ".join(other for other in NAMES if other != name)
            settings = SETTINGS | {"cluster_name": name, "synchronous_standby_names": f"ANY 1 ({others})"}
            self.nodes[name] = BarePostgres(settings=settings, initdb=False)
        first = self.nodes[self.primary]
        choices = [
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-instructions",
            "--data-checksums",
        ]
        run("initdb", "-D", first.pgdata, *choices)
        first.start()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(self.clone, self.others()))
        self.wait_streaming()

    def others(self) -> list[str]:
        return [name for name in NAMES if name != self.primary]

    def conninfo(self, name: str) -> str:
        return f"host=127.0.0.1 port={self.nodes[name].port} user=postgres"

    def clone(self, name: str) -> None:
        node = self.nodes[name]
        shutil.rmtree(node.pgdata, ignore_errors=True)
        run("pg_basebackup", "-D", node.pgdata, "-d", self.conninfo(self.primary), "-c", "fast", "-X", "stream")
        self.follow(name)

    def follow(self, name: str) -> None:
        """Start a stopped node as a standby of the present primary."""
        node = self.nodes[name]
        (node.pgdata / "standby.signal").touch()
        # Not on the command line, which would win over the ALTER SYSTEM of `repoint`.
        auto = node.pgdata / "postgresql.auto.conf"
        auto.write_text(
            f"primary_conninfo = '{self.conninfo(self.primary)} application_name={name}'\n", encoding="utf-8"
        )
        node.start()

    def rejoin(self, name: str) -> None:
        """A killed former primary: rewound, and cloned if that is impossible."""
        source = f"{self.conninfo(self.primary)} dbname=postgres"
        done = run("pg_rewind", "-D", self.nodes[name].pgdata, "--source-server", source, check=False)
        if done.returncode == 0:
            self.follow(name)
        else:
            self.clone(name)

    def streaming(self) -> int:
        with self.connect(self.primary) as connection:
            row = connection.execute("select count(*) from pg_stat_replication where state = 'streaming'").fetchone()
        return int(row[0]) if row else 0

    def wait_streaming(self, seconds: float = 60) -> None:
        if not wait_for(lambda: self.streaming() == 2, seconds, 0.005):
            raise RuntimeError("bare Postgres: the standbys don't stream")

    def connect(self, name: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo(name) + " dbname=postgres", autocommit=True)

    def uri(self) -> str:
        hosts = ",".join(f"127.0.0.1:{self.nodes[name].port}" for name in NAMES)
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write&connect_timeout=2"

    def lose_primary(self) -> int:
        """SIGKILL the primary; the oracle, already connected, promotes at once. Returns when it was killed."""
        chosen, other = self.others()
        old, self.primary = self.nodes[self.primary], chosen
        with self.connect(chosen) as ready, self.connect(other) as bystander:
            pids = old.pids()
            os.kill(old.pid, signal.SIGSTOP)
            killed_ns = now_ns()
            old.kill()
            assert pids
            # The better one of the two: what the writer was told is on at least one of them.
            received = "select coalesce(pg_last_wal_receive_lsn(), '0/0') - '0/0'::pg_lsn"
            here, there = (connection.execute(received).fetchone() for connection in (ready, bystander))
            assert here
            assert there
            if there[0] > here[0]:
                self.primary = other
                bystander.execute("select pg_promote(false)")
                self.repoint(ready, chosen)
            else:
                ready.execute("select pg_promote(false)")
                self.repoint(bystander, other)
        return killed_ns

    def repoint(self, connection: psycopg.Connection[Any], name: str) -> None:
        """A running standby to the present primary."""
        settings = f"{self.conninfo(self.primary)} application_name={name}"
        connection.execute(f"alter system set primary_conninfo = '{settings}'".encode())
        connection.execute("select pg_reload_conf()")

    def switch_over(self) -> int:
        """Fast stop, promote, re-point, start the old one as a standby. Returns when it began."""
        chosen, other = self.others()
        old_name, self.primary = self.primary, chosen
        with self.connect(chosen) as ready, self.connect(other) as bystander:
            began_ns = now_ns()
            self.nodes[old_name].stop(signal.SIGINT)
            ready.execute("select pg_promote(false)")
            self.repoint(bystander, other)
        self.follow(old_name)
        return began_ns
