"""`World` with every node in a network namespace of its own: faults of the network, of processes and of whole machines,
many clients, and the check that follows every one of them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import psycopg

from fencing.clock import now_ns
from supervisor.localcluster import LocalNode, processes
from supervisor.localwriter import Writer
from tests.cluster.world import START_S, World, node_names
from tests.net.network import CLIENT, Instant, Link, Network, between
from tests.net.sampler import Double, Sampler, doubles, not_granted, shared_timelines

KEEPALIVES = "&keepalives_idle=1&keepalives_interval=1&keepalives_count=3&tcp_user_timeout=3000"
"""A host that vanished without a word must not hold a client for hours."""
CONFIG = """[postgres]
hba = ["host all all 10.0.0.0/8 scram-sha-256"]
"""
CONTROL = ("parent", "raft", "watchdog", "launcher")


class Workload(NamedTuple):
    """Clients that write while something is done to the cluster."""

    writers: tuple[Writer, ...]
    sampler: Sampler

    def acked_since(self, instant_ns: int) -> int:
        return sum(writer.acked_since(instant_ns) for writer in self.writers)

    def gap_ms(self, since_ns: int) -> float:
        """The longest time in which no client was told of a commit, of those that ended after ``since_ns``."""
        instants = sorted(ack.acked_ns for writer in self.writers for ack in list(writer.acked))
        gaps = [after - before for before, after in itertools.pairwise(instants) if after >= since_ns]
        return max(gaps, default=0) / 1e6


class Tally(NamedTuple):
    """What a check found; `lost`, `phantoms` and `doubles` are to be empty."""

    ok: int
    unknown: int
    lost: int
    phantoms: int
    doubles: list[Double]


class NetWorld(World):
    """Nodes ``a``, ``b``, ... at addresses of their own; the test is one more, `CLIENT`."""

    def __init__(
        self,
        *,
        nodes: int = 3,
        profile: str = "default",
        commit: str = "quorum",
        inside: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """``inside``: of a node, further words before its command."""
        names = node_names(nodes)
        self.network = Network(names)
        try:
            places = [self.network.place(name, (inside or {}).get(name, ())) for name in names]
            super().__init__(nodes=nodes, profile=profile, commit=commit, places=places)
        except BaseException:
            self.network.close()
            raise
        self.loads: list[Workload] = []
        config = self.home / "pgr.toml"
        config.write_text(CONFIG, encoding="utf-8")
        config.chmod(0o644)
        for node in self.nodes:
            node.flags["config"] = str(config)

    def begin(self) -> LocalNode:
        """Started, writable, every standby streaming; the primary."""
        self.start()
        return self.wait_whole()

    @property
    def data_nodes(self) -> list[LocalNode]:
        """Those with a Postgres: all but a witness."""
        return [node for node in self.nodes if "witness" not in node.flags]

    def wait_whole(self, seconds: float = START_S) -> LocalNode:
        return self.wait_writable(seconds, standbys=sum(node.alive() for node in self.data_nodes) - 1)

    # -- clients ---------------------------------------------------------------------------------------------------

    def uri(self, mode: str = "read-write", user: str = "postgres", *, hidden: bool = False, first: int = 0) -> str:
        """``first``: the node with this number is the first one that is tried."""
        nodes = self.data_nodes[first:] + self.data_nodes[:first]
        hosts = ",".join(f"{node.host}:{node.pg_port}" for node in nodes)
        who = user if hidden else f"{user}:{self.password}"
        return f"postgresql://{who}@{hosts}/postgres?target_session_attrs={mode}&connect_timeout=2{KEEPALIVES}"

    def node_uri(self, node: LocalNode) -> str:
        return super().node_uri(node) + KEEPALIVES

    @contextlib.contextmanager
    def working(self, writers: int = 2, pause_s: float = 0.005) -> Iterator[Workload]:
        """So many writers and the sampler, for as long as the block lasts; all of them ended after it."""
        primary = self.primary()
        assert primary is not None
        number = len(self.loads)
        sampler = Sampler({node.name: self.node_uri(node) for node in self.data_nodes}, f"pgr_sampled_{number}")
        with psycopg.connect(self.node_uri(primary), autocommit=True) as session:
            session.execute(f"create table {sampler.table} (id bigint primary key)".encode())
        made = [
            Writer(self.uri(first=n % len(self.data_nodes)), table=f"pgr_writes_{number}_{n}", pause_s=pause_s)
            for n in range(writers)
        ]
        self.writers += made
        load = Workload(tuple(made), sampler)
        self.loads.append(load)
        threads: list[Writer | Sampler] = [*made, sampler]
        for thread in threads:
            thread.start()
        self.settles(lambda: all(w.acked for w in made), "the first write of each", lambda: str(made[0].failures[-1:]))
        self.settles(lambda: bool(sampler.accepted(quorum=True)), "the sampler's first row")
        try:
            yield load
        finally:
            for one in threads:
                one.stop_soon()
            self.heal()
        for one in threads:
            one.stop(60)

    def moves_on(self, load: Workload, timeline: int) -> None:
        """Until a promised write was acknowledged on a newer timeline. (A client of a frozen machine hangs with it.)"""
        self.settles(
            lambda: any(sample.timeline > timeline for sample in load.sampler.accepted(quorum=True)),
            f"a write acknowledged on a timeline after {timeline}",
        )

    def goes_on(self, load: Workload, since_ns: int, seconds: float = 60) -> None:
        """Until every writer has had a row acknowledged that was sent after ``since_ns``."""
        self.settles(
            lambda: all(writer.acked_since(since_ns) for writer in load.writers),
            "a write of each client acknowledged",
            lambda: str([writer.failures[-1:] for writer in load.writers]),
            seconds,
        )

    # -- the network -----------------------------------------------------------------------------------------------

    def cut(self, links: Iterable[Link]) -> Instant:
        return self.network.cut(links)

    def others(self, *nodes: LocalNode) -> list[LocalNode]:
        return [node for node in self.nodes if node not in nodes]

    def isolate(self, *nodes: LocalNode, port: int = 0, client: bool = False) -> Instant:
        """These nodes reach each other and nobody else; ``client``: nor does the test reach them."""
        rest = [node.name for node in self.others(*nodes)] + ([CLIENT] if client else [])
        return self.cut(between([node.name for node in nodes], rest, port))

    def heal(self) -> Instant:
        return self.network.heal()

    # -- processes and machines ------------------------------------------------------------------------------------

    def freeze_control(self, node: LocalNode) -> int:
        """SIGSTOP for all of the control plane; Postgres runs on, and nobody is left who could fence it. ns."""
        # Found first, then stopped: one that runs on for a moment acts on the silence of the others.
        for pid in [node.pid_of(role) for role in CONTROL]:
            send(pid, signal.SIGSTOP)
        return now_ns()

    def freeze(self, node: LocalNode) -> int:
        """SIGSTOP for every process of the node, as if its machine stood still. When all of them stood, ns."""
        frozen: set[int] = set()
        while new := [pid for pid in node.pids() if pid not in frozen]:
            for pid in new:
                frozen.add(pid)
                send(pid, signal.SIGSTOP)
        return now_ns()

    def power_cut(self, *nodes: LocalNode) -> int:
        """Every process of these nodes is gone, as at one instant: all stand still before the first one dies. ns."""
        for node in nodes:
            self.freeze(node)
        return max(node.kill_all()[0] for node in nodes)

    def thaw(self, node: LocalNode, *, control: bool = True) -> int:
        """SIGCONT, Postgres first. ``control``: the control plane too; without it no watchdog and no supervisor has a
        say. The instant before the first one, ns."""
        at_ns = now_ns()
        table = processes()
        pids = node.pids()
        names = {f"pgr-{role}" for role in CONTROL}
        ours = {pid for pid in pids if pid == node.pid_of("parent") or (pid in table and table[pid].comm in names)}
        for pid in [pid for pid in pids if pid not in ours]:
            send(pid, signal.SIGCONT)
        for pid in ours if control else ():
            send(pid, signal.SIGCONT)
        return at_ns

    def close(self, failed: bool = False) -> None:
        for load in self.loads:
            load.sampler.stop_soon()
        with contextlib.suppress(RuntimeError):  # what matters is that the rest is ended
            self.heal()
        try:
            super().close(failed)
        finally:
            self.network.close()

    # -- the check -------------------------------------------------------------------------------------------------

    def timeline(self, load: Workload) -> int:
        """On which writes are accepted now."""
        return max(sample.timeline for sample in load.sampler.accepted())

    def granted(self, name: str) -> list[int]:
        """Timelines on which this node was told to be primary, as its log says; it says so before the act."""
        return [int(event["fields"]["timeline"]) for event in self.logged(self[name], "postgres.promoting")]

    def tally(self, load: Workload, uri: str = "") -> Tally:
        """What the clients were told against what is there, on the primary or over ``uri``. After the block."""
        with psycopg.connect(uri or self.uri(), autocommit=True) as session:
            there = {row[0] for row in session.execute(f"select id from {load.sampler.table}".encode())}
        audits = [writer.audit(uri) for writer in load.writers]
        acknowledged = load.sampler.acknowledged()
        return Tally(
            ok=sum(audit.acknowledged for audit in audits) + len(acknowledged),
            unknown=sum(audit.unknown for audit in audits),
            lost=sum(len(audit.lost) for audit in audits) + len(acknowledged - there),
            phantoms=sum(len(audit.phantoms) for audit in audits) + len(there - load.sampler.tried()),
            doubles=doubles(load.sampler.accepted()),
        )

    def check(self, load: Workload, *, promised_only: bool = False) -> Tally:
        """The final check of safety.md's invariants 1, 2 and 4: on every node, once all of them stream.

        ``promised_only``: where nobody was left who could fence, so only what waited for the sync group counts.
        """
        self.wait_whole()
        found = self.tally(load)
        accepted = load.sampler.accepted(quorum=True if promised_only else None)
        assert not doubles(accepted), f"two nodes accepted writes: {doubles(accepted)[:5]}"
        assert not shared_timelines(accepted), "one timeline, one node"
        assert not not_granted(accepted, self.granted), "a write on a node that was not to be primary"
        assert not found.lost, f"{found.lost} of {found.ok} acknowledged rows are lost"
        assert not found.phantoms, f"{found.phantoms} rows are there that were refused or never tried"
        there = self.rows(load, self.uri())
        for node in self.data_nodes:
            self.settles(lambda node=node: self._same(load, node, there), f"the same rows on {node.name}")  # type: ignore[misc]  # bound now
        return found

    def rows(self, load: Workload, uri: str) -> set[tuple[str, int]]:
        """Table and id of each row that these clients may have written."""
        tables = [load.sampler.table, *(writer.table for writer in load.writers)]
        with psycopg.connect(uri, autocommit=True) as session:
            return {(table, row[0]) for table in tables for row in session.execute(f"select id from {table}".encode())}

    def _same(self, load: Workload, node: LocalNode, there: set[tuple[str, int]]) -> bool:
        """A divergent node serves rows that nobody else has; one that is behind lacks some."""
        try:
            return self.rows(load, self.node_uri(node)) == there
        except psycopg.Error:
            return False


def send(pid: int, number: signal.Signals) -> None:
    if pid:  # 0 would be ourselves
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
