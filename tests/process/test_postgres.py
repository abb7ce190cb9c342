"""Each operation on a real Postgres. What these assert of Postgres itself are facts that the procedures rely on."""

from __future__ import annotations

import os
import pwd
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from consensus.record import EpochStart
from fencing.clock import now_ns
from supervisor import controldata, jobs
from supervisor.binaries import Binaries, NoBinariesError, find
from supervisor.children import ChildTable
from supervisor.init import default_signals
from supervisor.jobs import JobFailed, run_job
from supervisor.postgres import OccupiedError, Postgres, Postmaster, StartFailed, StopMode
from supervisor.settings import NodeSettings, conninfo, hba, ident, own_conninfo, owned_settings, with_floors
from supervisor.sql import Row, SqlConnectionLost, query_once
from supervisor.tasks import Runner, Task, run_blocking, sleep
from supervisor.timelines import burned_text, history_name, install_list, parse_history, parse_lsn
from tests.pgbare import free_port, pg_bin
from tests.process.dropped import dropped, home

S = 1_000_000_000
PASSWORD = "swordfish"
STARTUP_WAITS_FOR = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'"
RECEIVER = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'"
T = TypeVar("T")


def soon(seconds: float = 45) -> int:
    return now_ns() + int(seconds * S)


def do(task: Task[T]) -> T:
    return run_blocking(task, soon())


class Node:
    """A Postgres under the operations, with nothing that decides."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name = home / name, name
        (self.home / "run").mkdir(parents=True)
        self.table = ChildTable()
        self.port = free_port()
        self.binaries = find(pg_bin())
        self.processes: list[subprocess.Popen[bytes]] = []
        self.upstream = ""
        self.gate = False
        self.parameters = {"shared_buffers": "8MB", "max_connections": "20", "lc_messages": "C"}
        self.postgres = Postgres(
            self.binaries, self.home / "pgdata", self.home / "run", self.home / "postgres.log", self.spawn, self.table
        )
        self.postmaster: Postmaster | None = None

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], log_path: Path) -> int:
        with log_path.open("ab") as log:
            # As the launcher does: whoever runs the tests in the background of a script ignores SIGQUIT; so would this.
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd="/",
                preexec_fn=default_signals,  # noqa: PLW1509  # there are no threads
            )  # fmt: skip
        self.processes.append(process)
        self.table.expect(process.pid)
        return process.pid

    @property
    def pgdata(self) -> Path:
        return self.postgres.pgdata

    @property
    def running(self) -> Postmaster:
        assert self.postmaster is not None
        return self.postmaster

    def found(self) -> None:
        do(jobs.initdb(self.binaries, self.pgdata, self.table, extra=["--no-sync"]))
        do(jobs.single_user(self.binaries, self.pgdata, jobs.roles_sql(PASSWORD, os.urandom(16)), self.table))

    def control(self) -> controldata.ControlData:
        return do(controldata.read(self.binaries, self.pgdata, self.table))

    def texts(self) -> tuple[dict[str, str], str, str]:
        user = pwd.getpwuid(os.getuid()).pw_name
        node = NodeSettings(
            "127.0.0.1", self.port, str(self.postgres.socket_dir), str(self.postgres.hba_file),
            str(self.postgres.ident_file), "pgr test", primary_conninfo=self.upstream, standby_names="",
            gate=self.gate, parameters=self.parameters,
        )  # fmt: skip
        settings, _ = with_floors(owned_settings(node), self.control().floors)
        return settings, hba((), user), ident(user)

    def start(self, newest_timeline: int = 1) -> None:
        self.postgres.prepare(*self.texts(), newest_timeline)
        self.postmaster = self.postgres.start()
        assert do(self.postgres.wait_ready(self.postmaster, soon())) == "ready"

    def reload(self) -> None:
        self.postgres.write_settings(*self.texts())
        assert self.running.reload()

    def stop(self, mode: StopMode = StopMode.FAST) -> int | None:
        if self.postmaster is None:
            return None
        self.postmaster.stop(mode)
        code = do(self.postgres.wait_gone(self.postmaster, soon()))
        self.postmaster.close()
        self.postmaster = None
        for process in self.processes:
            process.returncode = 0  # reaped by the table
        return code

    def ask(self, sql: str) -> list[Row]:
        return do(query_once(own_conninfo(str(self.postgres.socket_dir), self.port), sql, until_ns=soon()))

    def one(self, sql: str) -> str | None:
        return self.ask(sql)[0][0]

    def until(self, sql: str, wanted: str) -> None:
        """Ask until the answer is the wanted one."""

        def asking() -> Task[None]:
            while (got := self.one(sql)) != wanted:
                assert now_ns() < deadline, f"{sql}: {got}"
                yield from sleep(5_000_000)

        deadline = soon()
        do(asking())

    def promote(self) -> None:
        assert self.one("SELECT pg_promote(false)") == "t"
        self.until("SELECT pg_is_in_recovery()", "f")

    def conninfo_for_others(self, dbname: str = "postgres") -> str:
        passfile = self.home.parent / "passfile"
        passfile.write_text(f"*:*:*:pgr_replication:{PASSWORD}\n")
        passfile.chmod(0o600)
        return conninfo(host="127.0.0.1", port=self.port, user="pgr_replication", dbname=dbname, passfile=str(passfile))

    def clone_of(self, source: Node, **options: object) -> None:
        do(jobs.basebackup(self.binaries, source.conninfo_for_others(), self.pgdata, self.table, **options))  # type: ignore[arg-type]

    def follow(self, source: Node) -> None:
        self.upstream = source.conninfo_for_others()

    def timeline(self) -> int:
        name = self.one("SELECT pg_walfile_name(pg_current_wal_lsn())")
        assert name is not None
        return int(name[:8], 16)

    def log(self) -> str:
        return self.postgres.log_path.read_text(errors="replace")


@contextmanager
def nodes(*names: str) -> Iterator[list[Node]]:
    """Everything that runs in it is ended."""
    made = [Node(home(), name) for name in names]
    try:
        yield made
    except BaseException as error:
        for node in made:
            if node.postgres.log_path.exists():
                error.add_note(f"--- log of {node.name}\n{node.log()[-3000:]}")
        raise
    finally:
        for node in made:
            node.stop(StopMode.IMMEDIATE)


@dropped
def test_founding_start_as_a_standby_promotion_and_clean_stop() -> None:
    with nodes("a") as (a,):
        a.found()
        before = a.control()
        assert before.clean
        assert before.was_primary
        assert before.checksums
        a.start()
        # A fresh cluster is consistent as a standby without upstream, and says that it waits for WAL from nowhere.
        assert a.one("SELECT pg_is_in_recovery()") == "t"
        a.until(
            "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'", "RecoveryRetrieveRetryInterval"
        )
        assert a.one("SELECT pg_last_wal_receive_lsn()") is None
        replayed = a.one("SELECT pg_last_wal_replay_lsn()")
        assert parse_lsn(replayed or "") == do(
            controldata.end_of_shutdown_checkpoint(a.binaries, a.pgdata, before, a.table)
        )
        assert a.one("SELECT datcollate || ' ' || pg_encoding_to_char(encoding) FROM pg_database LIMIT 1") is not None
        a.promote()
        assert a.timeline() == 2
        a.ask("CREATE TABLE public.t (i int)")
        assert a.stop() == 0
        after = a.control()
        assert (after.clean, after.was_primary, after.timeline) == (True, True, 2)
        assert after.system_identifier == before.system_identifier
        end = do(controldata.end_of_shutdown_checkpoint(a.binaries, a.pgdata, after, a.table))
        without_waldump = controldata.record_end(after.checkpoint_lsn, 114, after.wal_segment_bytes)
        a.start(2)
        assert parse_lsn(a.one("SELECT pg_last_wal_replay_lsn()") or "") == end == without_waldump
        # The gate steers: closed for everyone but the supervisor's own sessions.
        a.gate = True
        a.promote()
        a.reload()
        asked = own_conninfo(str(a.postgres.socket_dir), a.port).replace("-c default_transaction_read_only=off", "")

        def gate() -> Task[None]:
            while (yield from query_once(asked, "SHOW default_transaction_read_only", until_ns=soon())) != [("on",)]:
                yield from sleep(5_000_000)

        do(gate())
        assert a.one("SHOW default_transaction_read_only") == "off"


@dropped
def test_burned_numbers_are_skipped_and_their_owner_is_refused_then_rewound() -> None:
    with nodes("a", "b", "c") as (a, b, c):
        a.found()
        a.start()
        a.promote()  # timeline 2
        a.ask("CREATE TABLE public.t (i int); CHECKPOINT")
        progress: list[tuple[int, int]] = []
        b.clone_of(a, on_progress=lambda done, total: progress.append((done, total)))
        assert progress
        assert progress[-1][0] >= progress[-1][1] * 0.9
        c.clone_of(a, slot="")
        for node in (b, c):
            node.follow(a)
            node.start(2)
            node.until("SELECT status FROM pg_stat_wal_receiver UNION ALL SELECT ''", "streaming")
        a.ask("INSERT INTO public.t VALUES (1)")
        for node in (b, c):
            node.until("SELECT count(*)::text FROM public.t", "1")
        a.stop()
        # b is promoted to 3 by itself; nobody ever hears of it, so 3 is burned, and c becomes primary on 5.
        b.upstream = ""
        b.stop()
        b.start(2)
        b.promote()
        assert b.timeline() == 3
        b.ask("INSERT INTO public.t VALUES (666); CHECKPOINT")
        c.upstream = ""
        c.stop()
        c.start(2)
        switch = parse_lsn(c.one("SELECT pg_last_wal_replay_lsn()") or "")
        base = (
            EpochStart(0, 0, 1),
            EpochStart(1, parse_history((a.pgdata / "pg_wal/00000002.history").read_text())[0].lsn, 2),
        )
        texts = install_list(base, own=2, new=5)
        assert sorted(texts) == [history_name(n) for n in (2, 3, 4)]
        c.postgres.install_histories(texts)
        assert c.one("SELECT pg_is_in_recovery()") == "t"
        c.promote()
        assert c.timeline() == 5
        real = parse_history((c.pgdata / "pg_wal" / history_name(5)).read_text())
        assert [line.timeline for line in real] == [1, 2]
        assert real[-1].lsn >= switch
        c.ask("INSERT INTO public.t VALUES (2); CHECKPOINT")
        # The owner of 3 is refused ...
        b.follow(c)
        b.stop()
        b.start(3)
        refusal = "requested timeline 3 is not in this server's history"

        def refused() -> Task[None]:
            while refusal not in b.log() + c.log():
                yield from sleep(20_000_000)

        do(refused())
        # ... and rewound, keeping its configuration; a standby of timeline 2 just goes on.
        b.stop()
        mine = (b.pgdata / "postgresql.auto.conf").read_bytes()
        do(jobs.rewind(b.binaries, c.conninfo_for_others(), b.pgdata, b.table, scratch=b.home))
        assert (b.pgdata / "postgresql.auto.conf").read_bytes() == mine
        a.follow(c)
        for node in (b, a):
            node.start(5)
            node.until("SELECT string_agg(i::text, ',' ORDER BY i) FROM public.t", "1,2")
        # A file above the newest timeline is FATAL at a start, so prepare removes it.
        a.stop()
        (a.pgdata / "pg_wal" / history_name(6)).write_text("# burned\n")
        prepared = a.postgres.prepare(*a.texts(), 5)
        assert prepared.removed_histories == (6,)
        a.start(5)
        a.until("SELECT status FROM pg_stat_wal_receiver UNION ALL SELECT ''", "streaming")


@dropped
def test_a_burned_history_left_in_place_keeps_a_node_from_starting() -> None:
    """The negative control of prepare's removal: it waits for ever for WAL of that timeline."""
    with nodes("a") as (a,):
        a.found()
        a.postgres.prepare(*a.texts(), 1)
        (a.pgdata / "pg_wal" / history_name(2)).write_text(burned_text(2))
        a.postmaster = a.postgres.start()
        with pytest.raises(TimeoutError, match="still starting"):
            do(a.postgres.wait_ready(a.postmaster, soon(3)))
        a.stop(StopMode.IMMEDIATE)
        a.start(1)


@dropped
def test_a_start_that_fails_says_why() -> None:
    with nodes("a") as (a,):
        a.found()
        settings, hba_text, ident_text = a.texts()
        a.postgres.prepare(settings | {"max_connections": "10"}, hba_text, ident_text, 1)
        postmaster = a.postgres.start()
        with pytest.raises(StartFailed, match="max_connections = 10 is a lower setting") as caught:
            do(a.postgres.wait_ready(postmaster, soon()))
        assert caught.value.code == 1
        assert len(caught.value.tail) > 3
        assert not postmaster.send(signal.SIGHUP)
        postmaster.close()
        a.processes[-1].returncode = 1


@dropped
def test_the_receiver_is_seen_in_proc_and_gone_after_reload_and_term() -> None:
    with nodes("a", "b") as (a, b):
        a.found()
        a.start()
        a.promote()
        b.clone_of(a)
        b.follow(a)
        b.start(2)
        b.until("SELECT status FROM pg_stat_wal_receiver UNION ALL SELECT ''", "streaming")

        def receivers() -> list[int]:
            return [child.pid for child in b.running.children() if child.receiver]

        seen = receivers()
        assert [str(pid) for pid in seen] == [
            b.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'")
        ]
        b.ask("SELECT pg_wal_replay_pause()")
        a.ask("CREATE TABLE public.t (i int)")
        b.until("SELECT pg_get_wal_replay_pause_state()", "paused")
        b.upstream = ""
        b.reload()
        # A new connection that sees the value: every child has been signalled. With replay paused it runs on.
        b.until("SHOW primary_conninfo", "")
        assert receivers() == seen
        os.kill(seen[0], signal.SIGTERM)

        def gone() -> Task[None]:
            while receivers():
                yield from sleep(1_000_000)

        do(gone())
        b.ask("SELECT pg_wal_replay_resume()")
        b.until(
            "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'", "RecoveryRetrieveRetryInterval"
        )
        assert receivers() == []


@dropped
def test_roles_and_rules() -> None:
    with nodes("a") as (a,):
        a.found()
        a.start()
        assert a.one("SELECT current_user || ' ' || usesuper FROM pg_user WHERE usename = current_user") == "pgr true"
        by_tcp = a.conninfo_for_others()
        assert do(query_once(by_tcp, "SELECT length(pg_read_binary_file('PG_VERSION')) > 0", until_ns=soon())) == [
            ("t",)
        ]
        assert do(query_once(f"{by_tcp} replication=true", "IDENTIFY_SYSTEM", until_ns=soon()))
        wrong = {
            "password authentication failed": by_tcp.replace("passfile=", "password='wrong' passfile="),
            "rejects connection": by_tcp.replace("dbname='postgres'", "dbname='template1'"),
            'user "pgr"': by_tcp.replace("pgr_replication", "pgr"),
        }
        for message, text in wrong.items():
            with pytest.raises(SqlConnectionLost, match=message):
                do(query_once(text, "SELECT 1", until_ns=soon()))
        assert PASSWORD not in a.log()
        owner = conninfo(host=str(a.postgres.socket_dir), port=a.port, user="postgres", dbname="postgres")
        assert do(query_once(owner, "SELECT 1", until_ns=soon())) == [("1",)]
        assert (a.postgres.socket_dir.stat().st_mode & 0o777) == 0o700
        # Stopped, an adopted cluster with roles of these names is put right; a bad statement is an error.
        a.stop()
        (a.pgdata / "standby.signal").touch()
        do(jobs.single_user(a.binaries, a.pgdata, jobs.roles_sql("other", b"s" * 16), a.table))
        assert (a.pgdata / "standby.signal").exists()
        with pytest.raises(JobFailed, match="syntax error"):
            do(jobs.single_user(a.binaries, a.pgdata, ["NONSENSE"], a.table))
        assert a.control().clean


@dropped
def test_alter_system_does_not_outlive_a_start() -> None:
    with nodes("a") as (a,):
        a.found()
        a.start()
        a.promote()
        a.ask("ALTER SYSTEM SET restart_after_crash = on")
        a.ask("ALTER SYSTEM SET work_mem = '5MB'")
        a.stop()
        prepared = a.postgres.prepare(*a.texts(), 2)
        assert prepared.removed_lines == ("restart_after_crash = 'on'",)
        a.start(2)
        assert a.one("SHOW restart_after_crash") == "off"
        assert a.one("SHOW work_mem") == "5MB"
        assert a.one("SHOW max_connections") == "100"  # 20 was asked for; less than pg_control's is FATAL


@dropped
def test_a_live_postgres_is_refused_and_a_stale_file_is_not() -> None:
    with nodes("a") as (a,):
        a.found()
        a.start()
        with pytest.raises(OccupiedError, match="another Postgres"):
            a.postgres.prepare(*a.texts(), 1)
        a.stop(StopMode.IMMEDIATE)
        # A stale file whose number now belongs to a stranger who is alive and of the same user.
        with subprocess.Popen(["sleep", "1000"], cwd="/") as stranger:
            (a.pgdata / "postmaster.pid").write_text(f"{stranger.pid}\n{a.pgdata}\n1\n1\n\n\n\n")
            try:
                a.start()
            finally:
                stranger.kill()
        assert a.one("SELECT 1") == "1"


@dropped
def test_waiting_for_a_start_and_for_an_end_is_bounded() -> None:
    with nodes("a") as (a,):
        a.found()
        a.postgres.prepare(*a.texts(), 1)
        a.postmaster = a.postgres.start()
        os.kill(a.postmaster.pid, signal.SIGSTOP)
        (a.pgdata / "postmaster.pid").unlink(missing_ok=True)
        with pytest.raises(TimeoutError):
            do(a.postgres.wait_ready(a.postmaster, soon(0.1)))
        a.postmaster.stop(StopMode.IMMEDIATE)
        with pytest.raises(TimeoutError):
            do(a.postgres.wait_gone(a.postmaster, soon(0.1)))
        os.kill(a.postmaster.pid, signal.SIGCONT)


@dropped
def test_env_of_a_postmaster_is_clean() -> None:
    # Taken back: an ordinary user runs this in the process of all other tests.
    with nodes("a") as (a,), pytest.MonkeyPatch.context() as patch:
        a.found()
        given = {"PGR_CLUSTER_KEY_FILE": "/k", "NOTIFY_SOCKET": "/n", "PGDATA": "/x", "PGOPTIONS": "-c nonsense=1"}
        for name, value in given.items():
            patch.setenv(name, value)
        a.start()
        env = Path(f"/proc/{a.running.pid}/environ").read_text()
        assert not [word for word in ("PGR_", "NOTIFY_SOCKET", "PGDATA", "PGOPTIONS") if word in env]


@pytest.mark.parametrize(
    "script",
    [
        "trap '' TERM; sleep 1000 & echo $! >&2; wait; wait",
        """sh -c 'trap "" TERM; echo $$ >&2; exec sleep 1000' & sleep 1000""",  # only the helper is deaf
    ],
)
@dropped
def test_jobs_end_with_their_helpers_when_cancelled(script: str) -> None:
    table, lines, runner = ChildTable(), list[str](), Runner()
    handle = runner.start(run_job(["/bin/sh", "-c", script], table, on_line=lines.append), lambda _: None, "job")
    turn(runner, lambda: bool(lines))
    helper = os.pidfd_open(int(lines[0]))
    began = now_ns()
    handle.cancel()
    assert now_ns() - began < 5 * S
    poller = select.poll()
    poller.register(helper, select.POLLIN)
    assert poller.poll(10_000)
    os.close(helper)


@dropped
def test_jobs_report_output_errors_and_status() -> None:
    table = ChildTable()
    result = do(run_job(["/bin/sh", "-c", "cat; echo one >&2; printf 'two\\rthree' >&2"], table, stdin=b"hello"))
    assert (result.output, result.tail, result.tool) == ("hello", ("one", "two", "three"), "sh")
    with pytest.raises(JobFailed, match="ended with 3: why") as caught:
        do(run_job(["/bin/sh", "-c", "echo why >&2; exit 3"], table))
    assert caught.value.code == 3
    with pytest.raises(JobFailed, match="signal 9"):
        do(run_job(["/bin/sh", "-c", "kill -9 $$"], table))
    with pytest.raises(FileNotFoundError):
        do(run_job(["/nonexistent"], table))
    big = do(
        run_job(
            ["/bin/sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero | tr '\\0' '\\n' >&2"],
            table,
        )
    )
    assert len(big.output) == 1_000_000
    # The loop's own waitpid(-1) may come first.
    task = run_job(["/bin/true"], table)
    wait = next(task)
    while wait.fd >= 0:
        ended = table.reap_all()
        if ended:
            break
    assert run_blocking(resumed(task), soon()).tool == "true"


def resumed(task: Task[T]) -> Task[T]:
    from supervisor.tasks import Woken

    try:
        wait = task.send(Woken())
        while True:
            wait = task.send((yield wait))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def turn(runner: Runner, until: Callable[[], bool]) -> None:
    deadline = soon()
    while not until():
        fds, _ = runner.wait_for()
        poller = select.poll()
        for fd in fds:
            poller.register(fd, select.POLLIN)
        runner.run({fd: 1 for fd, _ in poller.poll(20)}, now_ns())
        assert now_ns() < deadline


@dropped
def test_a_failing_backup_leaves_a_reason() -> None:
    with nodes("a", "b") as (a, b):
        with pytest.raises(JobFailed, match="refused"):
            b.clone_of(a)
        assert not b.pgdata.exists()


@dropped
def test_control_data_of_what_is_none() -> None:
    with nodes("a") as (a,):
        with pytest.raises(controldata.ControlDataError):
            a.control()
        with pytest.raises(controldata.ControlDataError, match="no data directory"):
            controldata.major_of(a.pgdata)
        do(jobs.initdb(a.binaries, a.pgdata, a.table, extra=["--no-sync"]))
        assert controldata.major_of(a.pgdata) == a.binaries.major
        control = a.pgdata / "global/pg_control"
        data = bytearray(control.read_bytes())
        data[40] ^= 1
        control.write_bytes(data)
        with pytest.raises(controldata.ControlDataError, match="pg_control"):
            a.control()


@dropped
def test_finding_binaries() -> None:
    embedded = find(debian=Path("/nonexistent"), search_path="/nonexistent")
    assert embedded.major == 18
    assert embedded.bin_dir.parts[-2:] == ("pginstall", "bin")
    assert find(embedded.bin_dir) == embedded
    place = home() / "bin"
    for wrong in ("14.9", "19beta1"):
        fake(place, wrong)
        with pytest.raises(NoBinariesError, match=f"has PostgreSQL {wrong}"):
            find(place)
        # One that is only found is passed over.
        assert find(debian=Path("/nonexistent"), search_path=str(place)).major == 18
    fake(place, "17.2")
    assert find(place) == Binaries(place, 17, "17.2")
    (place / "pg_rewind").unlink()
    with pytest.raises(NoBinariesError, match="lacks pg_rewind"):
        find(place)
    fake(place / "9/bin", "16.1")
    fake(place / "10/bin", "17.1")
    assert find(debian=place, search_path="/nonexistent").version == "17.1"
    (place / "10").chmod(0o600)
    with pytest.raises(NoBinariesError, match=f"can't enter {place / '10'}") as caught:
        find(place / "10/bin")
    assert "chmod a+x" in caught.value.hint
    (place / "10").chmod(0o700)


def fake(directory: Path, version: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for tool in ("postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata"):
        path = directory / tool
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        path.chmod(0o755)
