"""A whole cluster for one test: real processes, real Postgres, a real client, and the check that nothing was lost."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fencing.clock import now_ns
from supervisor import segments
from supervisor.localcluster import LocalCluster, LocalNode, Place, free_ports, node_environment, private_home, wait_for
from supervisor.localwriter import Audit, Writer

rare = pytest.mark.skipif(os.environ.get("PGR_TEST_LEVEL") != "all", reason="long, and rare: bin/test --all")
START_S = 120.0
"""For anything that starts Postgres, on a machine that does other things as well."""
SETTLE_S = 60.0
TAIL_LINES = 60


def node_names(count: int) -> list[str]:
    return [chr(ord("a") + i) for i in range(count)]


class Gone(threading.Thread):
    """Notes when the last of some processes has ended."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.at_ns = 0
        self._left = [os.pidfd_open(pid) for pid in pids]
        self.start()

    def run(self) -> None:
        poll = select.poll()
        for fd in self._left:
            poll.register(fd, select.POLLIN)
        while self._left:
            for fd, _ in poll.poll():
                poll.unregister(fd)
                os.close(fd)
                self._left.remove(fd)
        self.at_ns = now_ns()


def postgres_pids(node: LocalNode) -> list[int]:
    """The postmaster and everything that works in PGDATA."""
    found = []
    for pid in node.pids():
        try:
            if os.readlink(f"/proc/{pid}/cwd") == str(node.data / "pgdata"):
                found.append(pid)
        except FileNotFoundError:
            continue
    assert node.pid_of("postmaster") in found
    return found


class World(LocalCluster):
    """`LocalCluster` with what tests ask of it. Ends with `close`, which the fixture calls."""

    def __init__(
        self,
        *,
        nodes: int = 3,
        profile: str = "default",
        commit: str = "quorum",
        home: Path | None = None,
        places: Sequence[Place] = (),
    ) -> None:
        home = home or private_home(f"pgr-w{os.getpid()}-")
        super().__init__(home, node_names(nodes), profile=profile, commit=commit, places=places)
        self.writers: list[Writer] = []
        self.extra: list[LocalNode] = []
        """Nodes beyond the founding members, ended along with them."""

    def wait_writable(self, seconds: float = START_S, standbys: int = 0) -> LocalNode:
        return super().wait_writable(seconds, standbys)

    def add(self, name: str, *, at: LocalNode | None = None, **flags: str) -> LocalNode:
        """One more node, which asks the node ``at`` (the first one) to be let in; not started yet. ``flags`` as typed,
        with _ for -."""
        node = LocalNode(self.home, name, free_ports(3))
        shared = ("cluster-key", "user")
        node.flags |= {flag: value for flag, value in self.nodes[0].flags.items() if flag in shared}
        node.flags["join"] = f"127.0.0.1:{(at or self.nodes[0]).listen_port}"
        node.flags |= {flag.replace("_", "-"): value for flag, value in flags.items()}
        self.nodes.append(node)
        return node

    def wait_members(self, roles: str, group: str = "", seconds: float = START_S) -> None:
        """Until the members are these (``a b c:learner``; a voter without a word), the sync group is ``group`` (like
        ``2 of a b c``), nothing is open and nobody is to become anything else."""

        def reached() -> bool:
            seen = self.status()
            if seen is None or seen.next_group is not None or any(m.aim for m in seen.members):
                return False
            listed = " ".join(m.name if m.member == "voter" else f"{m.name}:{m.member}" for m in seen.members)
            return listed == roles and group in ("", f"{seen.sync_group.k} of {' '.join(seen.sync_group.members)}")

        self.settles(reached, f"members {roles}, sync group {group}", lambda: str(self.status()), seconds)

    def standbys(self) -> list[LocalNode]:
        """All others than the primary, which is waited for: on a loaded machine nobody may be for a moment."""
        primary = self.wait_writable()
        return [node for node in self.nodes if node is not primary]

    def asked_status(self, node: LocalNode | None = None) -> dict[str, Any]:
        """As `pgr status --json` prints it."""
        done = self.pgr("status", "--json", node=node)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @contextmanager
    def writing(self, pause_s: float = 0.001) -> Iterator[Writer]:
        """A client that writes over the multi-host URI for as long as the block lasts, once its first row is in."""
        writer = Writer(self.uri(), pause_s=pause_s)
        self.writers.append(writer)
        writer.start()
        self.settles(lambda: bool(writer.acked), "the first write acknowledged", lambda: str(writer.failures[-1:]))
        try:
            yield writer
        finally:
            writer.stop(30)

    def settles(
        self, condition: Callable[[], bool], what: str, why: Callable[[], str] | None = None, seconds: float = SETTLE_S
    ) -> None:
        if not wait_for(condition, seconds):
            raise AssertionError(f"not within {seconds} s: {what}; {why() if why else ''} {self.describe()}")

    def writes_again(self, writer: Writer, since_ns: int, seconds: float = SETTLE_S) -> None:
        self.settles(lambda: writer.acked_since(since_ns) > 0, "a write acknowledged", seconds=seconds)

    def streams(self, node: LocalNode) -> bool:
        """Does the primary have this node as a streaming replica, and does the node say so itself? (The primary goes on
        telling what it last heard of a node that has just been stopped, for a while.)"""
        primary = self.primary()
        told = [each.status() if each else None for each in (primary, node)]
        rows = [seen.member(node.name) if seen else None for seen in told]
        return all(row and row.role == "replica" and row.state == "streaming" for row in rows)

    def wait_streaming(self, *nodes: LocalNode, seconds: float = START_S) -> None:
        for node in nodes:
            self.settles(lambda node=node: self.streams(node), f"{node.name} streaming", seconds=seconds)  # type: ignore[misc]  # bound now

    def wait_replayed(self, node: LocalNode) -> None:
        """Until the primary knows that this node has replayed what it has by now."""
        primary = self.primary()
        assert primary is not None
        ((lsn,),) = self.query(primary, "select pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint")

        def has() -> bool:
            seen = primary.status()
            row = seen.member(node.name) if seen else None
            return row is not None and (row.replay_lsn or 0) >= lsn

        self.settles(has, f"{node.name} has replayed", lambda: str(self.status()))

    def wait_whole(self, seconds: float = START_S) -> LocalNode:
        """A primary and every other running node streaming from it, whoever that is."""
        return self.wait_writable(seconds, standbys=sum(node.alive() for node in self.nodes) - 1)

    def check_no_loss(self, writer: Writer, *, everywhere: bool = False) -> Audit:
        """Every acknowledged row is there, no refused one is; ``everywhere``: on each running node, in time."""
        audit = writer.audit()
        assert audit.acknowledged > 0
        assert not audit.lost, (
            f"{len(audit.lost)} of {audit.acknowledged} acknowledged rows are lost: {audit.lost[:20]}"
        )
        assert not audit.phantoms, f"rows that were refused are there: {audit.phantoms[:20]}"
        for node in self.nodes if everywhere else ():
            if node.alive():
                self.settles(lambda node=node: self._has_all(writer, node), f"every row on {node.name}")  # type: ignore[misc]  # bound now
        return audit

    def _has_all(self, writer: Writer, node: LocalNode) -> bool:
        try:
            return not writer.audit(self.node_uri(node)).lost
        except psycopg.OperationalError:
            return False

    def query(self, node: LocalNode, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.node_uri(node), autocommit=True) as connection:
            return connection.execute(sql.encode()).fetchall()

    def logged(self, node: LocalNode, name: str) -> list[dict[str, Any]]:
        """Events of a node whose name begins so."""
        return [event for event in node.events() if str(event["event"]).startswith(name)]

    def run_node(self, node: LocalNode, seconds: float = 60) -> tuple[int, str]:
        """Start a node that is expected to end by itself: exit code and stderr."""
        done = subprocess.run(
            node.command(), capture_output=True, text=True, check=False, timeout=seconds, cwd="/",
            env=node_environment() | node.env, start_new_session=True,
        )  # fmt: skip
        return done.returncode, done.stderr

    def close(self, failed: bool = False) -> None:
        for writer in self.writers:
            writer.stop_soon()
        if failed:
            self.print_logs()
        for node in [*self.nodes, *self.extra]:
            node.send(signal.SIGCONT)
            if node.process is not None:
                node.kill_all()
        if failed:
            print(f"kept: {self.home}", file=sys.stderr)
            segments.remove(self.home)
        else:
            self.remove()

    def print_logs(self) -> None:
        for node in [*self.nodes, *self.extra]:
            for log in (node.log, node.data / "log" / "postgres.log"):
                if log.exists():
                    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
                    print(f"\n== {log}", *lines, sep="\n", file=sys.stderr)
