"""Steps of a standby on a real Postgres and its real primary, driven by the daemon's own planning; nobody votes.

What the Raft child would say is set by hand, what it is told is kept.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from consensus.cluster import ClusterState, Grant, Seat, SyncGroup, canonical
from consensus.membership import Member
from consensus.record import EpochStart, NodeRecord, Position
from fencing import wire
from fencing.clock import now_ns
from fencing.lease import MS, PROFILES
from fencing.logs import Log
from supervisor import config as configuration
from supervisor import datadir, jobs, steps
from supervisor.context import Context
from supervisor.daemon import Daemon
from supervisor.links import Link
from supervisor.overdue import Overdue
from supervisor.postgres import Postgres
from supervisor.privileges import current
from supervisor.rebuild import write_mark
from supervisor.receivers import receivers
from supervisor.roles import Data, Local, Plan, Server, Step, View
from supervisor.starts import Start
from supervisor.steps import Steps
from supervisor.tasks import Runner, Task
from supervisor.timelines import history_name, parse_history
from supervisor.watch import EVERY_MS
from tests.pgbare import free_port
from tests.process.dropped import dropped, home
from tests.process.test_postgres import PASSWORD, Node, do, nodes, soon

TERM = 5
PATIENT_MS = 15_000
"""Instead of FREEZE_MS where no restart is expected: the machine may be busy with other tests."""


class Bus:
    """Takes everything; answers that a record was saved."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def tell(self, name: str, body: dict[str, Any], request_id: str = "") -> bool:
        self.told.append((name, body))
        return True

    def ask(self, name: str, body: dict[str, Any], timeout_ms: int) -> Task[wire.Frame]:
        self.told.append((name, body))
        return wire.Frame("record.saved", "", {})
        yield

    def facts(self) -> Iterator[wire.Frame]:
        return iter(())

    def frozen(self) -> list[dict[str, Any]]:
        return [body for name, body in self.told if name == "node.frozen"]


class Standby:
    """Node b: its Postgres, and as much of a daemon as plans and runs steps."""

    def __init__(self, source: Node) -> None:
        self.bare = Node(home(), "b")  # spawns and reaps
        port = self.bare.port
        members = f"a=127.0.0.1:{free_port()},b=127.0.0.1:{free_port()}"
        listen = members.rpartition("=")[2]
        given = {"data": str(self.bare.home), "name": "b", "peers": members, "listen": listen, "pg_port": str(port)}
        config = configuration.load(given, {}, None, None, configuration.Facts("host", "/"))
        config.postgres_log.parent.mkdir(exist_ok=True)
        self.log_read, self.log_write = os.pipe()
        postgres = Postgres(
            self.bare.binaries, config.pgdata, config.run, config.postgres_log, self.bare.spawn, self.bare.table
        )
        settings = {"parameters": self.bare.parameters, "hba": [], "superuser": "postgres"}
        switch = parse_history((source.postgres.wal_dir / history_name(2)).read_text())[-1].lsn
        history = (EpochStart(0, 0, 1), EpochStart(TERM, switch, 2))
        grant = Grant(TERM, "a", Position(0, switch), 2, history, opened=True)
        cluster = ClusterState(
            "1" * 32, (Member("a", 7, "", f"127.0.0.1:{source.port}", ""), Member("b", 8, "", f"127.0.0.1:{port}", "")),
            group=SyncGroup((Seat("a", 7), Seat("b", 8)), 2), founder="a", nonce="n", replication_password=PASSWORD,
            system_identifier=str(source.control().system_identifier), grants=(grant,), settings=canonical(settings),
        )  # fmt: skip
        record = NodeRecord(promised=TERM, history=history)
        view = View(True, 8, TERM, "a", wanted=TERM, record=record, cluster=cluster, met=True)
        self.raft = Bus()
        self.c = Context(
            config, Log("json", "b", "parent", fd=self.log_write), current().name, self.bare.binaries, self.bare.table,
            cast(Link, self.raft), cast(Link, Bus()), postgres, PROFILES["default"], view, Local("b"),
        )  # fmt: skip
        datadir.write_passfile(self.c)
        do(jobs.basebackup(self.bare.binaries, self.c.upstream(grant), config.pgdata, self.bare.table))
        write_mark(config.pgdata, 8, "", fresh=True)  # or its backup_label would be somebody else's
        self.c.change(data=Data.READY)
        source.ask("SELECT pg_create_physical_replication_slot('pgr_b', true)")
        self.daemon = self._daemon()

    def _daemon(self) -> Daemon:
        daemon = Daemon.__new__(Daemon)
        daemon.c, daemon.log, daemon.config = self.c, self.c.log, self.c.config
        daemon.steps, daemon.runner = Steps(self.c), Runner()
        daemon.actions = {
            Step.START: Start(self.c, daemon.steps).start, Step.FREEZE: daemon.steps.freeze,
            Step.FOLLOW: daemon.steps.follow, Step.DETACH: daemon.steps.detach, Step.FENCE: daemon.steps.fence,
        }  # fmt: skip
        daemon.plan, daemon.sentence, daemon.task, daemon.failures = Plan(Step.WAIT), "", None, {}
        daemon.watcher, daemon.snapshot_at_ns, daemon.stop_asked_ns = None, 0, 0
        daemon.overdue, daemon.checkpointing = Overdue(), 0
        return daemon

    @property
    def local(self) -> Local:
        return self.c.local

    def sees(self, **changes: Any) -> None:
        """What the Raft child says next."""
        self.c.view = replace(self.c.view, **changes)

    def until(self, condition: Callable[[], bool], seconds: float = 45) -> None:
        """Turns of the daemon's loop until it is so."""
        deadline, runner = soon(seconds), self.daemon.runner
        while not condition():
            assert now_ns() < deadline, f"{self.daemon.plan} {self.local} {self.log()}"
            if self.c.postmaster is not None and not self.c.postmaster.alive():
                self.daemon.steps.postmaster_ended("it ended")
            self.daemon._replan()
            fds, until_ns = runner.wait_for()
            poller = select.poll()
            for fd, events in fds.items():
                poller.register(fd, select.POLLIN * bool(events & 1) | select.POLLOUT * bool(events & 2))
            ready = poller.poll(max(0, min(20, (until_ns - now_ns()) // MS + 1)))
            runner.run({fd: 1 * bool(e & ~select.POLLOUT) | 2 * bool(e & ~select.POLLIN) for fd, e in ready}, now_ns())

    def streams(self) -> None:
        self.until(lambda: self.daemon.plan.rule == "streaming" and bool(self.c.facts.streaming))

    def log(self) -> str:
        os.set_blocking(self.log_read, False)
        try:
            return os.read(self.log_read, 1 << 16).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        self.daemon.runner.cancel_all()
        if self.c.postmaster is not None:
            self.daemon.steps.postmaster_ended("the test ends")
        for process in self.bare.processes:
            process.wait(30)
        os.close(self.log_read)
        os.close(self.log_write)


@contextmanager
def standby() -> Iterator[tuple[Node, Standby]]:
    with nodes("a") as (a,):
        a.found()
        a.start()
        a.promote()
        b = Standby(a)
        try:
            yield a, b
        finally:
            b.close()


RESUMED = "SELECT pg_get_wal_replay_pause_state()"
CONNINFO = "SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'"


@dropped
def test_a_promise_forbids_the_upstream_until_no_receiver_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """With replay paused the reload alone leaves the receiver running: a step that ended half way would show."""
    monkeypatch.setattr(steps, "FREEZE_MS", PATIENT_MS)
    with standby() as (a, b):
        b.streams()
        b.bare.ask("SELECT pg_wal_replay_pause()")
        a.ask("CREATE TABLE public.t (i int)")
        b.bare.until(RESUMED, "paused")
        seen, postmaster = receivers(b.c), b.c.postmaster
        assert len(seen) == 1
        b.c.change(vowed=TERM + 1)
        b.until(lambda: b.daemon.plan.rule == "waiting")
        assert receivers(b.c) == []
        assert (b.local.upstream, b.local.may_receive) == (0, False)
        assert b.bare.one(CONNINFO) == ""
        assert b.bare.one(RESUMED) == "not paused"
        assert b.c.postmaster is postmaster, "without a restart"


@dropped
def test_a_step_that_was_cut_off_half_way_is_finished() -> None:
    """A promise that is wanted no longer has emptied `upstream` already; what it began must not stay like that."""
    with standby() as (_, b):
        b.c.freeze_failing_ns = 1
        b.streams()
        assert b.c.freeze_failing_ns == 0, "a promise that failed long ago makes nobody hung"
        b.c.change(vowed=TERM + 1)
        b.daemon._replan()
        assert b.daemon.plan.step is Step.DETACH
        assert b.daemon.task is not None
        b.daemon.task.cancel()
        b.daemon.task = None
        assert (b.local.upstream, b.local.may_receive) == (0, True)
        b.until(lambda: b.daemon.plan.rule == "waiting")
        assert (receivers(b.c), b.local.may_receive) == ([], False)


@dropped
@pytest.mark.slow
def test_what_pgr_decides_is_put_back_when_somebody_has_changed_it() -> None:
    with standby() as (_, b):
        b.streams()
        assert "settings.altered" not in b.log()
        assert b.c.commits_wait
        owned = ("synchronous_standby_names", "restart_after_crash", "wal_sender_timeout")
        before = [b.bare.one(f"SHOW {name}") for name in owned]
        for change in ("SET synchronous_standby_names = ''", "RESET restart_after_crash", "SET work_mem = '5MB'"):
            b.bare.ask(f"ALTER SYSTEM {change}")
        b.bare.ask("SELECT pg_reload_conf()")
        b.until(lambda: [b.bare.one(f"SHOW {name}") for name in owned] == before)
        said = b.log()
        assert said.count('"settings.altered"') == 1
        assert '"lines":["synchronous_standby_names = \'\'","restart_after_crash is gone"]' in said
        assert b.bare.one("SHOW work_mem") == "5MB", "that is theirs"
        assert not b.c.commits_wait, "whether the flag is set again is not known"
        b.bare.ask("ALTER SYSTEM RESET ALL")
        b.bare.ask("SELECT pg_reload_conf()")
        b.bare.until("SHOW wal_sender_timeout", "1min")
        b.until(lambda: [b.bare.one(f"SHOW {name}") for name in owned] == before)
        loaded = b.bare.one("SELECT pg_conf_load_time()")
        looked = b.c.facts.answered_ns
        b.until(lambda: b.c.facts.answered_ns > looked + 2 * EVERY_MS * MS)
        assert b.bare.one("SELECT pg_conf_load_time()") == loaded, "and that is all"


@dropped
def test_a_hung_postgres_is_killed_while_a_promise_is_wanted() -> None:
    """Stopped, it never ends by itself, answers nothing, and takes the place of one that could promise."""
    with standby() as (_, b):
        b.streams()
        hung = [b.c.postmaster.pid, *receivers(b.c)] if b.c.postmaster else []
        children = [child.pid for child in b.c.postmaster.children()] if b.c.postmaster else []
        for pid in (*hung, *children):
            os.kill(pid, signal.SIGSTOP)
        b.sees(wanted=TERM + 1, term=TERM + 1)
        b.until(lambda: b.local.server is Server.DOWN and b.local.clean, 20)
        assert b.c.freeze_failing_ns == 0, "the next one has all of its time"
        assert "postgres.hung" in b.log()
        said = b.raft.frozen()
        assert [body["epoch"] for body in said] == [-1], "nobody need wait for it meanwhile"
        assert "does not answer" in said[0]["reason"]
        b.until(lambda: b.local.frozen == TERM + 1)
        assert b.raft.frozen()[-1]["epoch"] == TERM, "the next one promises"


@dropped
def test_a_hung_postgres_does_not_keep_an_upstream_that_a_promise_forbids() -> None:
    """The postmaster takes no connection; the receiver is well and would go on acknowledging."""
    with standby() as (_, b):
        b.streams()
        assert b.c.postmaster is not None
        assert b.c.session is not None
        b.c.session.close()
        os.kill(b.c.postmaster.pid, signal.SIGSTOP)
        b.c.change(vowed=TERM + 1)
        b.until(lambda: b.local.server is Server.DOWN and b.local.clean, 20)
        b.until(lambda: b.daemon.plan.rule == "waiting")
        assert receivers(b.c) == []


@dropped
def test_clients_that_say_nothing_do_not_make_a_promise_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend gets its title when its client has said who it is; so long it looks like any child just forked."""
    monkeypatch.setattr(steps, "FREEZE_MS", PATIENT_MS)
    with standby() as (_, b):
        b.streams()
        postmaster = b.c.postmaster
        assert postmaster is not None
        path = f"{b.c.postgres.socket_dir}/.s.PGSQL.{b.c.config.pg_port}"
        with socket.create_connection(("127.0.0.1", b.c.config.pg_port)), socket.socket(socket.AF_UNIX) as local:
            local.connect(path)
            b.until(lambda: sum(not child.title for child in postmaster.children()) == 2)
            b.sees(wanted=TERM + 1, term=TERM + 1)
            b.until(lambda: b.local.frozen == TERM + 1)
            assert "freeze.slow" not in b.log()
            assert b.c.postmaster is postmaster
