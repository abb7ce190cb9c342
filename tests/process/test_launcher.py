"""The fork server, with real processes: a parent in a process of its own, driven line by line."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

PARENT = """
import fcntl, json, os, signal, sys
from supervisor import init
from supervisor.errors import exit_for
from supervisor.launcher import Kind, Launcher
from fencing.logs import Log
init.adopt_orphans()
lock = open(sys.argv[1] + "/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
os.set_inheritable(lock.fileno(), True)
kinds = {
    "mortal": Kind("launcher_targets:report", "pgr-mortal", signal.SIGKILL),
    "survivor": Kind("launcher_targets:report", "pgr-survivor"),
}
launcher = Launcher.start(kinds, Log("json", "a", "parent"), timeout_s=float(sys.argv[2]))
for line in sys.stdin:
    name, args = json.loads(line)
    try:
        match name:
            case "spawn": answer = launcher.spawn(args.pop("kind"), **args)
            case "pid": answer = launcher.pid
            case "restart": launcher.restart(); answer = launcher.pid
            case "reap": answer = [(p, os.waitstatus_to_exitcode(s)) for p, s in init.reap()]
            case "load": import psycopg, tempfile; answer = None
        print(json.dumps({"ok": answer}), flush=True)
    except Exception as exc:
        print(json.dumps({"error": type(exc).__name__, "exit": list(exit_for(exc))}), flush=True)
"""


class Parent:
    """A parent process and what the tests ask of it."""

    def __init__(self, home: Path, timeout_s: float = 5.0) -> None:
        self.home = home
        self.errors = (home / "stderr").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", PARENT, str(home), str(timeout_s)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "PGR_DATA": "x", "POSTGRES_PASSWORD": "hidden"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.started: list[int] = []
        self.count = 0

    def ask(self, name: str, **args: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, args]) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def pid(self) -> int:
        return int(self.ask("pid")["ok"])

    def spawn(self, kind: str, **args: Any) -> int:
        answer = self.ask("spawn", kind=kind, **args)
        assert "ok" in answer, answer
        self.started.append(answer["ok"])
        return int(answer["ok"])

    def report(self, kind: str, **args: Any) -> dict[str, Any]:
        """Spawn a reporting child and return what it says of itself."""
        self.count += 1
        path = self.home / f"report{self.count}"
        pid = self.spawn(kind, path=str(path), **args)
        until(path.exists, f"{kind} reports")
        told: dict[str, Any] = json.loads(path.read_text())
        assert told["pid"] == pid
        return told

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pid in self.started:
            if (info := stat(pid)) and info[1] != os.getpid():
                os.kill(pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    made = Parent(tmp_path)
    yield made
    made.close()


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def stat(pid: int) -> tuple[str, int] | None:
    """(state, parent pid), None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1])


def gone(pid: int) -> bool:
    info = stat(pid)
    return info is None or info[0] in "ZX"


def test_a_child_is_ours_clean_and_named(parent: Parent) -> None:
    told = parent.report("mortal", more=[1, {"a": None}])
    assert told["ppid"] == parent.process.pid
    assert (told["comm"], told["cmdline"]) == ("pgr-mortal", "pgr-mortal")
    assert told["args"]["more"] == [1, {"a": None}]
    assert told["sid"] == told["pid"], "Ctrl-C in the parent's terminal must not reach it"
    assert (told["blocked"], told["threads"]) == ("0" * 16, 1)
    assert int(told["ignored"], 16) == 1 << (signal.SIGPIPE - 1)
    assert int(told["caught"], 16) == 0
    assert told["fds"]["0"] == "/dev/null"
    assert not [place for fd, place in told["fds"].items() if int(fd) > 2 and "/proc/" not in place], told["fds"]
    assert "zmq" not in told["modules"], "this test's targets import none, and the launcher itself needs none"
    assert "psycopg" not in told["modules"]


def test_the_launcher_keeps_nothing_of_the_parents(parent: Parent) -> None:
    parent.report("mortal")  # it answers, so it is through its start
    pid = parent.pid()

    def extra() -> list[str]:
        found = []
        for fd in (fd for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2):
            with contextlib.suppress(FileNotFoundError):  # closed since
                found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        return found

    # Its answer comes a moment before it closes its end of the pipes to that child.
    until(lambda: not any(place.startswith("pipe:") for place in extra()), "the pipes are closed")
    (place,) = extra()
    assert place.startswith("socket:"), "the lock on the data directory above all is not here"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


def test_what_the_parent_loads_later_is_not_in_its_children(parent: Parent) -> None:
    parent.ask("load")
    assert "psycopg" not in parent.report("mortal")["modules"]


def test_the_parent_reaps_the_child_and_nobody_else_is_left(parent: Parent) -> None:
    pid = parent.report("mortal", exit=42)["pid"]
    until(lambda: gone(pid), "the child has ended")
    assert [pid, 42] in parent.ask("reap")["ok"]
    assert stat(pid) is None
    children = Path(f"/proc/{parent.pid()}/task/{parent.pid()}/children").read_text(encoding="ascii")
    assert children == "", "the launcher keeps no zombie"


def test_a_child_that_fails_says_why(parent: Parent) -> None:
    pid = parent.report("mortal", **{"raise": "broken on purpose"})["pid"]
    until(lambda: gone(pid), "the child has ended")
    assert [pid, 70] in parent.ask("reap")["ok"]
    parent.errors.seek(0)
    text = parent.errors.read()
    assert "broken on purpose" in text
    assert "hint: this is a bug" in text


def test_death_of_the_parent(parent: Parent, tmp_path: Path) -> None:
    mortal, survivor = parent.report("mortal")["pid"], parent.report("survivor")["pid"]
    log = tmp_path / "pg.log"
    code = "trap 'echo quit; exit' QUIT; echo up; while :; do sleep 0.05; done"
    postgres = parent.spawn("postgres", argv=["/bin/sh", "-c", code], log_path=str(log))
    until(lambda: log.exists() and "up" in log.read_text(), "the program runs")
    launcher = parent.pid()
    parent.kill()
    until(lambda: gone(mortal) and gone(launcher) and gone(postgres), "all that must die with the parent")
    assert log.read_text() == "up\nquit\n", "Postgres gets SIGQUIT"
    assert not gone(survivor), "the watchdog must outlive the parent to fence"
    lock = (tmp_path / "lock").open("r+")
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no child keeps the data directory's lock
    lock.close()


def test_a_program_may_be_given_input_a_pipe_for_its_output_and_another_death_signal(
    parent: Parent, tmp_path: Path
) -> None:
    """As a hook is (supervisor/hooks.py)."""
    stdin, pipe = tmp_path / "stdin", tmp_path / "pipe"
    stdin.write_text("told\n")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    code = "trap 'echo quit' QUIT; cat; while :; do sleep 0.05; done"
    pid = parent.spawn(
        "postgres", argv=["/bin/sh", "-c", code], log_path=str(pipe), stdin_path=str(stdin), death_signal=signal.SIGKILL
    )
    assert select.select([reader], [], [], 20)[0], "it says something"
    parent.kill()
    until(lambda: gone(pid), "dead with the parent")
    assert os.read(reader, 100) == b"told\n", "no SIGQUIT came"
    os.close(reader)


def test_a_program_starts_clean(parent: Parent, tmp_path: Path) -> None:
    log = tmp_path / "pg.log"
    log.write_text("before\n")
    code = (
        "import os, resource, sys; s = dict(l.split(':\\t', 1) for l in open('/proc/self/status'));"
        "print(int(s['SigBlk'], 16), int(s['SigIgn'], 16), int(s['SigCgt'], 16), oct(os.umask(0)), os.getppid());"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1], os.readlink('/proc/self/fd/0'), flush=True);"
        "print(os.getcwd(), 'PGR_DATA' in os.environ, 'POSTGRES_PASSWORD' in os.environ, os.getsid(0) == os.getpid());"
        "print(resource.getrlimit(resource.RLIMIT_RTPRIO), open('/proc/self/oom_score_adj').read());"
        "sys.stderr.write('end\\n')"
    )
    # -I and a C locale without coercion, so that Python itself changes nothing; it ignores SIGPIPE and SIGXFSZ
    argv = [sys.executable, "-I", "-c", code]
    pid = parent.spawn("postgres", argv=argv, log_path=str(log), cwd=str(tmp_path))
    until(lambda: gone(pid), "the program has ended")
    out = log.read_text().splitlines()
    ignored_by_python = (1 << (signal.SIGPIPE - 1)) | (1 << (signal.SIGXFSZ - 1))
    sigint = 1 << (signal.SIGINT - 1)
    assert sorted(out) == sorted(
        [
            "before",
            f"0 {ignored_by_python} {sigint} 0o77 {parent.process.pid}",
            "[0, 1, 2] /dev/null",
            f"{tmp_path} False False True",
            "(0, 0) 0",
            "",
            "end",
        ]
    )


def test_a_shell_finds_no_ignored_signal(parent: Parent, tmp_path: Path) -> None:
    log = tmp_path / "pg.log"
    pid = parent.spawn("postgres", argv=["/bin/grep", "SigIgn", "/proc/self/status"], log_path=str(log), env={"A": "b"})
    until(lambda: gone(pid), "the program has ended")
    assert log.read_text() == "SigIgn:\t" + "0" * 16 + "\n"
    assert (log.stat().st_mode & 0o777) == 0o600


@pytest.mark.parametrize(
    ("program", "mode", "reason"),
    [("none", 0, "No such file"), ("plain", 0o600, "Permission denied"), ("text", 0o700, "Exec format")],
)
def test_a_program_that_cannot_be_executed(
    parent: Parent, tmp_path: Path, program: str, mode: int, reason: str
) -> None:
    path = tmp_path / program
    if mode:
        path.write_text("neither ELF nor #!\n")
        path.chmod(mode)
    answer = parent.ask("spawn", kind="postgres", argv=[str(path)], log_path=str(tmp_path / "log"))
    assert answer["error"] == "MissingError"
    code, message, hint = answer["exit"]
    assert code == 69
    assert str(path) in message
    assert reason in message
    assert hint
    parent.report("mortal")  # and the launcher goes on


def test_a_log_that_cannot_be_written(parent: Parent, tmp_path: Path) -> None:
    answer = parent.ask("spawn", kind="postgres", argv=["/bin/true"], log_path=str(tmp_path / "no" / "log"))
    assert answer["exit"][0] == 69
    assert "can't be written" in answer["exit"][1]


def test_an_unknown_kind(parent: Parent) -> None:
    assert parent.ask("spawn", kind="other")["exit"][0] == 70


def test_a_dead_launcher_is_replaced_at_the_next_spawn(parent: Parent) -> None:
    before = parent.pid()
    survivor = parent.report("survivor")["pid"]
    os.kill(before, signal.SIGKILL)
    told = parent.report("mortal")
    assert told["ppid"] == parent.process.pid
    assert told["comm"] == "pgr-mortal"
    assert not [place for fd, place in told["fds"].items() if int(fd) > 2 and "/proc/" not in place], told["fds"]
    after = parent.pid()
    assert after != before
    assert not gone(survivor)
    assert Path(f"/proc/{after}/comm").read_text(encoding="ascii") == "pgr-launcher\n"
    assert [before, -signal.SIGKILL] in parent.ask("reap")["ok"]
    parent.kill()
    until(lambda: gone(after) and gone(told["pid"]), "the new launcher and its child die with the parent")


def test_a_frozen_launcher_is_replaced_and_nothing_is_started_twice(tmp_path: Path) -> None:
    parent = Parent(tmp_path, timeout_s=1.5)
    try:
        before = parent.pid()
        os.kill(before, signal.SIGSTOP)
        parent.report("mortal")
        assert parent.pid() != before
        until(lambda: gone(before), "the frozen one was killed")
        parent.errors.seek(0)
        assert [json.loads(line)["event"] for line in parent.errors.read().splitlines()] == [
            "launcher.lost",
            "launcher.restarted",
        ]
        children = Path(f"/proc/{parent.process.pid}/task/{parent.process.pid}/children").read_text(encoding="ascii")
        alive = [pid for pid in map(int, children.split()) if not gone(pid)]
        assert len(alive) == 2, "one launcher, one child"
    finally:
        parent.close()


def test_spawning_is_quick(parent: Parent) -> None:
    took_ms = []
    for _ in range(10):
        before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        took_ms.append((parent.report("survivor")["at_ns"] - before_ns) / 1e6)
        parent.ask("reap")
    took_ms.sort()
    print("spawn to first instruction, ms:", [round(ms, 1) for ms in took_ms])
    assert took_ms[0] < 100, took_ms
