"""The fence and the watchdog child, against a real PostgreSQL and real processes."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
import zmq

from fencing import kill
from fencing.clock import now_ns
from fencing.kill import ProcessId, fence, members, process_id, verify
from fencing.lease import MS, PROFILES
from fencing.timer import Alarm, ClockWatch
from fencing.wire import Frame, decode, encode
from tests.machineclock import set_on
from tests.pgbare import BarePostgres, as_postgres, own_directory

ROOT = Path(__file__).resolve().parents[2]
L = PROFILES["default"].lease_ms * MS
F = PROFILES["default"].kill_bound_ms * MS
PATIENCE_S = 20.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
LONG = "SELECT count(*) FROM generate_series(1, 100000000000)"


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; the deadline only bounds a failing test."""
    give_up_ns = now_ns() + int(PATIENCE_S * 1e9)
    while not (found := condition()):
        assert now_ns() < give_up_ns, f"waited in vain for: {what}"
        time.sleep(0.005)
    return found


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[BarePostgres]:
    with BarePostgres(tmp_path) as running:
        yield running


class Load:
    """Sessions that make killing hard: half of them in endless queries, half idle in a transaction."""

    def __init__(self, postgres: BarePostgres, sessions: int) -> None:
        self.connections = [psycopg.connect(postgres.conninfo) for _ in range(sessions)]
        for connection in self.connections[: sessions // 2]:
            connection.pgconn.send_query(LONG.encode())
        for connection in self.connections[sessions // 2 :]:
            connection.execute("SELECT txid_current()")

    def close(self) -> None:
        for connection in self.connections:
            connection.close()


@pytest.fixture
def load(postgres: BarePostgres) -> Iterator[Load]:
    sessions = Load(postgres, 20)
    yield sessions
    postgres.kill()
    sessions.close()


# kill.py


def test_a_fence_leaves_nothing_of_20_busy_backends_within_the_kill_bound(postgres: BarePostgres, load: Load) -> None:
    who = process_id(postgres.pid)
    before = members(postgres.pgdata, who)
    assert len(before) > 25
    assert any("shared memory" in line for line in verify(postgres.pgdata, who)), "verify sees what runs"
    report = fence(postgres.pgdata, who, now_ns() + F)
    assert report.survivors == ()
    assert report.killed >= len(before)
    assert report.took_ns < F
    assert postgres.pids() == []
    assert members(postgres.pgdata, who) == frozenset()
    assert not any(kill.alive(process) for process in before)
    assert postgres.wait() == -signal.SIGKILL


def test_killing_the_postmaster_alone_leaves_backends_alive(postgres: BarePostgres, load: Load) -> None:
    """The negative control: why all the rest is done. What is left is found without the postmaster's help."""
    who = process_id(postgres.pid)
    os.kill(postgres.pid, signal.SIGKILL)
    postgres.wait()
    left = until(lambda: (found := members(postgres.pgdata, who)) and len(found) <= 10 and found, "idle backends leave")
    time.sleep(0.3)  # no condition to wait for: the claim is that nothing happens
    assert members(postgres.pgdata, who) == left
    assert len(left) == 10
    assert verify(postgres.pgdata, None)
    report = fence(postgres.pgdata, who, now_ns() + F)
    assert report.survivors == ()
    assert postgres.pids() == []


def test_a_backend_that_left_pgdata_and_lost_its_parent_is_found_by_its_shared_memory(
    postgres: BarePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an untrusted procedural language can do with chdir; here the working directory is made unknown instead."""
    session = postgres.connect()
    backend = session.info.backend_pid
    session.pgconn.send_query(LONG.encode())
    os.kill(postgres.pid, signal.SIGKILL)
    postgres.wait()
    until(lambda: postgres.pids() == [backend], "only the busy backend is left")
    monkeypatch.setattr(kill, "_working_directory", lambda pid: "")
    assert members(postgres.pgdata, None) == {process_id(backend)}
    assert fence(postgres.pgdata, None, now_ns() + F).survivors == ()
    assert postgres.pids() == []
    session.close()


def test_a_stopped_postmaster_and_stopped_backends_die_too(postgres: BarePostgres, load: Load) -> None:
    who = process_id(postgres.pid)
    for pid in postgres.pids():
        os.kill(pid, signal.SIGSTOP)
    assert fence(postgres.pgdata, who, now_ns() + F).survivors == ()
    assert postgres.pids() == []


def test_a_postmaster_that_nobody_told_of_is_stopped_before_its_children_die(
    postgres: BarePostgres, load: Load
) -> None:
    """One that sees a child die runs on: it would start others, or clean up as if it had ended well."""
    assert fence(postgres.pgdata, None, now_ns() + F).survivors == ()
    assert postgres.wait() == -signal.SIGKILL
    assert "was terminated by signal" not in postgres.log.read_text(encoding="utf-8", errors="replace")


def test_a_fence_that_comes_too_late_still_does_a_whole_round(postgres: BarePostgres) -> None:
    fence(postgres.pgdata, process_id(postgres.pid), now_ns() - F)
    until(lambda: postgres.pids() == [], "everything is gone")


def test_only_this_cluster_dies(postgres: BarePostgres, tmp_path: Path) -> None:
    """Another Postgres, a bystander, and a process whose pid the postmaster once had."""
    bystander = subprocess.Popen(["sleep", "1000"], cwd="/")
    try:
        with BarePostgres(tmp_path) as other:
            session = other.connect()
            recycled = ProcessId(bystander.pid, process_id(bystander.pid).start_ticks - 1)
            report = fence(postgres.pgdata, recycled, now_ns() + F)
            assert report.survivors == ()
            assert postgres.pids() == []
            assert session.execute("SELECT 1").fetchall() == [(1,)]
            session.close()
            assert other.alive()
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_neither_we_nor_our_ancestors_are_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    child = subprocess.Popen(["sleep", "1000"])
    try:
        assert {process.pid for process in members(tmp_path, None)} == {child.pid}
        assert fence(tmp_path, None, now_ns() + F).killed == 1
        assert child.wait(PATIENCE_S) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


def test_a_zombie_is_no_survivor(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"], cwd=tmp_path)
    until(lambda: not kill.alive(ProcessId(child.pid, kill.process_id(child.pid).start_ticks)), "it has ended")
    assert verify(tmp_path, process_id(child.pid)) == ()
    child.wait()


def test_what_cannot_be_verified_counts_as_left(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").mkdir()
    report = fence(tmp_path, None, now_ns() + 30 * MS)
    assert "cannot be known" in report.survivors[0]


def test_there_is_no_identity_without_a_process() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(ProcessLookupError):
        process_id(child.pid)


# The watchdog child


class Bus:
    """A DEALER on the watchdog's socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path, identity: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity.encode())
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"ipc://{path}")
        self.count = 0

    def send(self, name: str, **body: Any) -> str:
        self.count += 1
        self.socket.send(encode(name, body, str(self.count)))
        return str(self.count)

    def hear(self, name: str) -> Frame:
        while self.socket.poll(int(PATIENCE_S * 1000)):
            frame = decode(self.socket.recv())
            if frame.name == name:
                return frame
        raise AssertionError(f"no {name} from the watchdog")

    def ask(self, name: str, answer: str, **body: Any) -> dict[str, Any]:
        id = self.send(name, **body)
        frame = self.hear(answer)
        assert frame.id == id
        return frame.body


class Watched:
    """A watchdog process, with the parent and the raft child played by the test. The parent process is a `sleep`."""

    program: Sequence[str] = ("-m", "fencing.process")
    more: Sequence[str] = ()

    def __init__(self, postgres: BarePostgres) -> None:
        self.postgres = postgres
        self.run_dir = own_directory("pgr-run-")
        self.parent = subprocess.Popen(["sleep", "1000"], cwd="/")
        self.log = self.run_dir / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, *self.program, "--run", self.run_dir, "--pgdata", postgres.pgdata,
                    "--parent", str(self.parent.pid), "--profile", "default", *self.more,
                ],
                stderr=log, cwd=ROOT, env=ENVIRONMENT, **as_postgres(),
            )  # fmt: skip
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        path = self.run_dir / "watchdog.sock"
        self.as_parent, self.as_raft = Bus(self.context, path, "parent"), Bus(self.context, path, "raft")
        self.as_parent.send("deadman.query")
        self.ready = self.as_parent.hear("child.ready").body
        self.as_parent.hear("deadman.state")
        self.who = process_id(postgres.pid)

    def arm(self, term: int = 5, until_ns: int = 0) -> dict[str, Any]:
        return self.as_parent.ask(
            "deadman.arm", "deadman.armed",
            term=term, pid=self.who.pid, start_ticks=self.who.start_ticks, until_ns=until_ns,
        )  # fmt: skip

    def lease(self, term: int, until_ns: Any) -> None:
        """Told and processed: the query that follows on the same socket has been answered."""
        self.as_raft.send("lease.changed", term=term, until_ns=until_ns)
        self.as_raft.ask("deadman.query", "deadman.state")

    def armed(self, left_ns: int = L - 50 * MS) -> int:
        """Armed in term 5 by the raft child's word; the deadline."""
        until_ns = now_ns() + left_ns
        self.lease(5, until_ns)
        assert self.arm() == {"ok": True, "until_ns": until_ns, "reason": ""}
        return until_ns

    def state(self) -> dict[str, Any]:
        return self.as_parent.ask("deadman.query", "deadman.state")

    def killed(self) -> dict[str, Any]:
        body = self.as_parent.hear("deadman.killed").body
        assert body["survivors"] == 0, body
        assert self.postgres.pids() == []
        return body

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def close(self) -> None:
        self.as_parent.socket.close()
        self.as_raft.socket.close()
        self.context.term()
        for process in (self.process, self.parent):
            process.kill()
            process.wait()
        shutil.rmtree(self.run_dir)


@pytest.fixture
def watched(postgres: BarePostgres) -> Iterator[Watched]:
    watchdog = Watched(postgres)
    yield watchdog
    watchdog.close()


def test_renewals_keep_postgres_alive_and_their_end_ends_it(watched: Watched, load: Load) -> None:
    first_ns = until_ns = watched.armed(L - 20 * MS)
    for _ in range(12):
        select.poll().poll(100)  # the heartbeat's own pace: time is what this test is about
        until_ns = now_ns() + L
        watched.lease(5, until_ns)
    assert until_ns > first_ns + L
    assert watched.postgres.alive()
    assert watched.state()["until_ns"] == until_ns
    body = watched.killed()
    gone_ns = now_ns()
    assert (body["term"], body["reason"], body["left"]) == (5, "the lease has ended", [])
    assert until_ns <= gone_ns <= until_ns + F, f"{(gone_ns - until_ns) / 1e6:.0f} ms after the deadline"
    assert body["took_ms"] <= F // MS
    assert watched.process.poll() is None, "the watchdog stays"
    refused = watched.arm(5, now_ns() + L - 1)
    assert not refused["ok"]
    assert "killed in this term" in refused["reason"]


def test_a_frozen_raft_child_ends_postgres(watched: Watched) -> None:
    """The sender is a process of its own, and it is stopped, not ended: nothing tells the watchdog but the clock."""
    program = (
        "import sys, time, zmq; from fencing.clock import now_ns; from fencing.wire import encode\n"
        "socket = zmq.Context().socket(zmq.DEALER)\n"
        "socket.setsockopt(zmq.IDENTITY, b'raft')\n"
        "socket.connect(sys.argv[1])\n"
        "while True:\n"
        f"    socket.send(encode('lease.changed', {{'term': 5, 'until_ns': now_ns() + {L}}}))\n"
        "    time.sleep(0.1)\n"
    )
    watched.as_raft.socket.close()
    address = f"ipc://{watched.run_dir / 'watchdog.sock'}"
    raft = subprocess.Popen([sys.executable, "-c", program, address], cwd=ROOT, env=ENVIRONMENT)
    try:
        until(lambda: watched.state()["lease_term"] == 5, "the first lease")
        assert watched.arm()["ok"]
        first_ns = watched.state()["until_ns"]
        until(lambda: watched.state()["until_ns"] > first_ns + 2 * L, "renewals well beyond the first lease")
        assert watched.postgres.alive()
        raft.send_signal(signal.SIGSTOP)
        assert watched.killed()["reason"] == "the lease has ended"
    finally:
        raft.kill()
        raft.wait()


@pytest.mark.parametrize(
    ("offset_ns", "reason"),
    [
        (None, "given up"),
        ("zero", "given up"),
        ("text", "given up"),
        (-L, "backwards"),
        (3600 * 1000 * MS, "further away"),
    ],
)
def test_a_deadline_that_is_zero_unreadable_old_or_too_far_kills_at_once(
    watched: Watched, offset_ns: Any, reason: str
) -> None:
    until_ns = watched.armed()
    words = {"zero": 0, "text": "soon", None: None}
    told = words[offset_ns] if offset_ns in words else until_ns + offset_ns
    watched.as_raft.send("lease.changed", term=5, until_ns=told)
    assert reason in watched.killed()["reason"]
    assert now_ns() < until_ns + F


def test_a_late_deadline_does_not_lengthen_anything(watched: Watched) -> None:
    """Nor does one of an older or a newer term: Postgres dies at the armed instant, neither sooner nor later."""
    until_ns = watched.armed(400 * MS)
    watched.lease(4, now_ns() + L)
    watched.lease(6, now_ns() + L)
    watched.lease(5, now_ns() + L)
    assert watched.state()["until_ns"] == until_ns
    watched.killed()
    assert until_ns <= now_ns() <= until_ns + F


def told_bounds(watched: Watched, profile: str) -> dict[str, Any]:
    """`deadman.bounds` of the parent, and the state after it."""
    timings = PROFILES[profile]
    watched.as_parent.send("deadman.bounds", lease_ms=timings.lease_ms, kill_bound_ms=timings.kill_bound_ms, at=7)
    state = watched.state()
    assert (state["lease_ms"], state["kill_bound_ms"], state["at"]) == (timings.lease_ms, timings.kill_bound_ms, 7)
    return state


def test_other_timings_leave_an_armed_deadline_alone_and_judge_the_next(watched: Watched) -> None:
    until_ns = watched.armed()
    assert told_bounds(watched, "cloud")["until_ns"] == until_ns
    longer_ns = now_ns() + 2 * L - 50 * MS
    watched.lease(5, longer_ns)
    state = told_bounds(watched, "fast")
    assert (state["armed"], state["until_ns"]) == (True, longer_ns), "also where it lies further away than the new L"
    assert watched.postgres.alive()
    watched.as_raft.send("lease.changed", term=5, until_ns=longer_ns + MS)
    assert "further away" in watched.killed()["reason"]
    assert [e["lease_ms"] for e in watched.events() if e["event"] == "watchdog.bounds"] == [1400, 300]


@pytest.mark.parametrize("profile", ["fast", "cloud"])
def test_other_timings_neither_lengthen_nor_shorten_the_lease_that_runs(watched: Watched, profile: str) -> None:
    until_ns = watched.armed()
    bound_ns = max(F, told_bounds(watched, profile)["kill_bound_ms"] * MS)
    assert watched.killed()["reason"] == "the lease has ended"
    assert until_ns <= now_ns() <= until_ns + bound_ns


@pytest.mark.parametrize(
    ("as_raft", "body", "reason"),
    [
        (True, {"lease_ms": 1400, "kill_bound_ms": 500, "at": 7}, "deadman.bounds may come from parent alone"),
        (False, {"lease_ms": 0, "kill_bound_ms": 500}, "lease_ms must be more than 0"),
        (False, {"lease_ms": 1400, "kill_bound_ms": 1 << 40}, "kill_bound_ms must be more than 0 and at most"),
        (False, {"lease_ms": "1400"}, "lease_ms must be a whole number"),
        (False, {"lease_ms": 1400, "kill_bound_ms": 500}, "at must be a whole number"),
    ],
)
def test_bounds_of_somebody_else_or_without_sense_are_dropped(
    watched: Watched, as_raft: bool, body: dict[str, Any], reason: str
) -> None:
    """The Raft child gives the leases: it must not also say how long one may be."""
    until_ns = watched.armed()
    (watched.as_raft if as_raft else watched.as_parent).send("deadman.bounds", **body)
    state = (watched.as_raft if as_raft else watched.as_parent).ask("deadman.query", "deadman.state")
    assert (state["lease_ms"], state["kill_bound_ms"], state["until_ns"]) == (L // MS, F // MS, until_ns)
    [dropped] = [event for event in watched.events() if event["event"] == "watchdog.dropped"]
    assert reason in dropped["reason"]
    watched.as_raft.send("lease.changed", term=5, until_ns=until_ns + L)
    assert "further away" in watched.killed()["reason"], "the bounds are what they were"


def test_arming_without_a_lease_is_refused(watched: Watched) -> None:
    assert "no lease" in watched.arm()["reason"]
    watched.lease(4, now_ns() + L - MS)
    assert "no lease" in watched.arm()["reason"]
    watched.lease(5, now_ns() + F // 2)
    assert "kill bound" in watched.arm()["reason"]
    assert not watched.state()["armed"]
    assert watched.postgres.alive()


def test_the_lease_may_come_by_way_of_the_parent(watched: Watched) -> None:
    until_ns = now_ns() + L - 50 * MS
    assert watched.arm(5, until_ns) == {"ok": True, "until_ns": until_ns, "reason": ""}
    watched.killed()


@pytest.mark.parametrize("how", ["unknown", "watched", "armed"])
def test_without_its_parent_nothing_of_postgres_is_left_and_the_watchdog_goes(watched: Watched, how: str) -> None:
    if how == "watched":
        body = watched.as_parent.ask(
            "deadman.watch", "deadman.watching", pid=watched.who.pid, start_ticks=watched.who.start_ticks
        )
        assert body["ok"]
    elif how == "armed":
        watched.armed()
    watched.parent.kill()
    watched.parent.wait()
    assert watched.process.wait(PATIENCE_S) == 0
    assert watched.postgres.pids() == []
    assert not (watched.run_dir / "watchdog.sock").exists()


def test_a_parent_that_was_gone_before_the_start_counts_as_gone(postgres: BarePostgres) -> None:
    parent = subprocess.Popen(["true"])
    parent.wait()
    run_dir = own_directory("pgr-run-")
    done = subprocess.run(
        [
            sys.executable, "-m", "fencing.process", "--run", run_dir, "--pgdata", postgres.pgdata,
            "--parent", str(parent.pid),
        ],
        cwd=ROOT, env=ENVIRONMENT, timeout=PATIENCE_S, check=False, **as_postgres(),
    )  # fmt: skip
    shutil.rmtree(run_dir)
    assert done.returncode == 0
    assert postgres.pids() == []


def test_an_unarmed_postgres_outlives_any_lease(watched: Watched) -> None:
    watched.armed(400 * MS)
    assert watched.as_parent.ask("deadman.disarm", "deadman.disarmed") == {"ok": True, "reason": ""}
    watched.lease(5, 0)
    select.poll().poll(600)  # beyond the deadline: the claim is that nothing happens
    assert watched.postgres.alive()
    assert watched.state()["phase"] == "watching"


def test_it_goes_when_the_parent_says_so_and_not_while_armed(watched: Watched) -> None:
    watched.armed()
    assert not watched.as_parent.ask("deadman.exit", "deadman.exiting")["ok"]
    watched.as_parent.ask("deadman.disarm", "deadman.disarmed")
    assert watched.as_parent.ask("deadman.exit", "deadman.exiting") == {"ok": True, "reason": ""}
    assert watched.process.wait(PATIENCE_S) == 0
    assert watched.postgres.alive()


def test_garbage_and_strangers_are_logged_and_dropped(watched: Watched) -> None:
    until_ns = watched.armed()
    watched.as_parent.socket.send(b"garbage")
    watched.as_parent.socket.send(b"")
    watched.as_parent.socket.send_multipart([b"two", b"parts"])
    watched.as_parent.send("no.such.thing")
    watched.as_parent.send("lease.changed", term=5, until_ns=0)
    watched.as_raft.send("deadman.disarm")
    watched.as_raft.send("lease.changed", term="5", until_ns=1)
    watched.as_parent.send("deadman.arm", term=5)
    watched.as_raft.ask("deadman.query", "deadman.state")
    state = watched.state()
    assert (state["armed"], state["until_ns"]) == (True, until_ns)
    dropped = [event for event in watched.events() if event["event"] == "watchdog.dropped"]
    assert len(dropped) == 8
    assert all(event["reason"] for event in dropped)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP])
def test_signals_for_everybody_do_not_end_the_watchdog(watched: Watched, number: signal.Signals) -> None:
    watched.process.send_signal(number)
    assert not watched.state()["armed"]
    assert watched.process.poll() is None


def test_it_says_who_and_how_it_is(watched: Watched) -> None:
    assert Path(f"/proc/{watched.process.pid}/comm").read_text() == "pgr-watchdog\n"
    assert watched.ready["scheduling"] == watched.state()["scheduling"]
    assert watched.ready["scheduling"] == "SCHED_RR" or watched.ready["scheduling"].startswith(("nice -", "normal"))
    assert (watched.run_dir / "watchdog.sock").stat().st_mode & 0o077 == 0


def test_it_loads_next_to_nothing() -> None:
    program = "import sys, fencing.process; print({'psycopg', 'psutil', 'asyncio', 'ssl'} & set(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout == "set()\n"


def test_a_bug_fences_everything_and_ends_with_70(postgres: BarePostgres) -> None:
    program = (
        "import sys; from fencing import deadman, process\n"
        "deadman.step = lambda *args: 1 / 0\n"
        "sys.exit(process.main(sys.argv[1:]))\n"
    )
    run_dir = own_directory("pgr-run-")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    watchdog = subprocess.Popen(
        [sys.executable, "-c", program, "--run", run_dir, "--pgdata", postgres.pgdata, "--parent", str(os.getpid())],
        cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, **as_postgres(),
    )  # fmt: skip
    try:
        raft = Bus(context, run_dir / "watchdog.sock", "raft")
        raft.send("lease.changed", term=1, until_ns=1)
        _, err = watchdog.communicate(timeout=PATIENCE_S)
        assert watchdog.returncode == 70
        assert b"ZeroDivisionError" in err
        assert postgres.pids() == []
    finally:
        watchdog.kill()
        watchdog.wait()
        raft.socket.close()
        context.term()
        shutil.rmtree(run_dir)


def test_a_restarted_raft_child_is_heard_at_once(watched: Watched) -> None:
    watched.armed()
    second = Bus(watched.context, watched.run_dir / "watchdog.sock", "raft")
    until_ns = now_ns() + L
    second.send("lease.changed", term=5, until_ns=until_ns)
    assert second.ask("deadman.query", "deadman.state")["until_ns"] == until_ns
    second.socket.close()


def test_the_alarm_rings_at_its_instant_and_stays_readable_until_set_anew() -> None:
    alarm = Alarm()
    try:
        poller = select.poll()
        poller.register(alarm.fd, select.POLLIN)
        alarm.set(at_ns := now_ns() + 30 * MS)
        assert poller.poll(int(PATIENCE_S * 1000))
        assert now_ns() >= at_ns
        assert poller.poll(0)
        alarm.set(None)
        assert not poller.poll(0)
        alarm.set(0)
        assert poller.poll(int(PATIENCE_S * 1000)), "an instant in the past rings at once"
    finally:
        alarm.close()


def test_clocks_that_nobody_set_have_not_jumped() -> None:
    clocks = ClockWatch()
    try:
        poller = select.poll()
        poller.register(clocks.fd, select.POLLIN)
        assert not poller.poll(0)
        assert abs(clocks.jumped_ns()) < 100 * MS
    finally:
        clocks.close()


class Canceled:
    """A libc that answers as after the clock was set: it is set and the call fails (timerfd_create(2), Notes)."""

    def __init__(self, libc: ctypes.CDLL, code: int) -> None:
        self.libc, self.code, self.calls = libc, code, 0

    def timerfd_settime(self, *arguments: Any) -> int:
        self.calls += 1
        assert self.libc.timerfd_settime(*arguments) == 0
        ctypes.set_errno(self.code)
        return -1


def test_the_answer_to_a_clock_that_was_set_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, libc = ClockWatch(), ctypes.CDLL(None, use_errno=True)
    try:
        canceled = Canceled(libc, errno.ECANCELED)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: canceled)
        assert abs(clocks.jumped_ns()) < 100 * MS
        assert canceled.calls == 1
        canceled.code = errno.EBADF
        with pytest.raises(OSError, match="timerfd_settime"):
            clocks.jumped_ns()
    finally:
        clocks.close()


@pytest.mark.root
@pytest.mark.skipif(os.environ.get("PGR_TEST_LEVEL") != "all", reason="sets this machine's clock: bin/test --all")
def test_a_watchdog_survives_that_the_clock_is_set(watched: Watched) -> None:
    """By a microsecond and back: too little to mean anything, and the kernel tells of it as of an hour."""
    watched.armed()
    clocks = ClockWatch()
    try:
        poller = select.poll()
        poller.register(clocks.fd, select.POLLIN)
        try:
            set_on(1)
        except OSError as error:
            pytest.skip(f"the clock may not be set here: {error}")
        set_on(-1)
        assert poller.poll(int(PATIENCE_S * 1000)), "the kernel has told"
        assert abs(clocks.jumped_ns()) < 100 * MS
        assert not poller.poll(0), "and will tell again"
    finally:
        clocks.close()
    watched.as_parent.ask("deadman.query", "deadman.state")
    assert watched.process.poll() is None
    assert "watchdog.bug" not in watched.log.read_text()


@pytest.mark.root
@pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK) or os.geteuid() != 0, reason="needs root and cgroup v2")
def test_a_cgroup_of_its_own_is_killed_by_the_kernel(postgres: BarePostgres, load: Load) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"]
    if not mounts:
        pytest.skip("no cgroup v2 is mounted here")
    group = Path(mounts[0]) / f"pgr-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a cgroup: {error}")
    try:
        if not (group / "cgroup.kill").exists():
            pytest.skip("this kernel has no cgroup.kill")
        for pid in postgres.pids():
            (group / "cgroup.procs").write_text(str(pid))
        kill._kill_cgroup(group)
        until(lambda: postgres.pids() == [], "the kernel has killed the group")
        assert fence(postgres.pgdata, None, now_ns() + F, group).survivors == ()
        (group / "cgroup.procs").write_text(str(os.getpid()))
        kill._kill_cgroup(group)  # with us inside it is left alone, or this test would not end
    finally:
        (Path(mounts[0]) / "cgroup.procs").write_text(str(os.getpid()))
        until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()
