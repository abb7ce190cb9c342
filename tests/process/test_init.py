"""Signals as data, orphans reaped: in processes of our own, and as PID 1 of a namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PREAMBLE = "import os, select, signal, sys, time\nfrom supervisor import init\n"


def python(code: str, *prefix: str, timeout_s: float = 40) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter, perhaps below another program."""
    return subprocess.run(
        [*prefix, sys.executable, "-P", "-c", PREAMBLE + code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def in_namespace() -> list[str]:
    """A prefix that runs a program as PID 1, or a skip with the reason."""
    if os.geteuid() != 0:
        pytest.skip("needs root: unshare --pid")
    prefix = ["unshare", "--pid", "--fork", "--mount-proc"]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no pid namespace here: {probe.stderr.strip()}")
    return prefix


ORPHANS = """
init.adopt_orphans()
assert init.adopts_orphans()
signals = init.Signals()
count = 1000
left = set()
r, w = os.pipe()
middle = os.fork()
if middle == 0:
    signal.set_wakeup_fd(-1)
    for _ in range(count):
        if os.fork() == 0:
            os.write(w, b"%10d" % os.getpid())
            os._exit(7)
    os._exit(0)
statuses = {}
poller = select.poll()
poller.register(signals, select.POLLIN)
deadline = time.monotonic() + 30
while len(statuses) < count + 1 and time.monotonic() < deadline:
    poller.poll(1000)
    signals.read()
    statuses.update(init.reap())
assert len(statuses) == count + 1, len(statuses)
assert sorted(set(map(os.waitstatus_to_exitcode, statuses.values()))) == [0, 7]
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[:2]
    except OSError:
        continue  # somebody else's, just gone
    assert state != ["Z", str(os.getpid())], pid
assert init.reap() == []
print("pid", os.getpid())
"""


def test_a_thousand_orphans_leave_no_zombie_below_a_subreaper() -> None:
    done = python(ORPHANS)
    assert done.returncode == 0, done.stderr


def test_a_thousand_orphans_leave_no_zombie_as_pid_1() -> None:
    done = python(ORPHANS.replace("init.adopt_orphans()\n", "", 1), *in_namespace())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "pid 1\n"


def test_without_being_asked_nobody_adopts_orphans() -> None:
    assert python("print(init.adopts_orphans())").stdout == "False\n"


SIGNALS = """
import json
init.hold_signals()
signals = init.Signals()
print("ready", os.getpid(), flush=True)
poller = select.poll()
poller.register(signals, select.POLLIN)
while True:
    assert poller.poll(20_000), "no signal"
    got = signals.read()
    print(*(s.name for s in got), flush=True)
    if signal.SIGQUIT in got:
        break
assert signals.read() == []
"""


@pytest.mark.parametrize("as_pid_1", [False, True])
def test_signals_arrive_as_data(as_pid_1: bool) -> None:
    prefix = in_namespace() if as_pid_1 else []
    child = subprocess.Popen(
        [*prefix, sys.executable, "-P", "-c", PREAMBLE + SIGNALS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline().startswith("ready")
        pid = child.pid
        if as_pid_1:
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0])
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGCHLD):
            os.kill(pid, signum)
            assert child.stdout.readline() == f"{signum.name}\n"
        os.kill(pid, signal.SIGQUIT)
        assert child.stdout.readline() == "SIGQUIT\n"
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_as_pid_1_without_a_handler_term_would_be_ignored_and_held_signals_are_not_lost() -> None:
    code = """
os.kill(1, signal.SIGTERM)   # ignored: PID 1 without a handler
init.hold_signals()
os.kill(1, signal.SIGTERM)
os.kill(1, signal.SIGTERM)
signals = init.Signals()
print(*(s.name for s in signals.read()))
"""
    done = python(code, *in_namespace())
    assert (done.returncode, done.stdout) == (0, "SIGTERM\n"), done.stderr


def test_many_signals_are_read_once_and_in_order() -> None:
    code = """
signals = init.Signals()
for _ in range(100):
    os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.SIGTERM)
print(*(s.name for s in signals.read()))
print(signals.read())
signal.set_wakeup_fd(-1)
"""
    assert python(code).stdout == "SIGHUP SIGTERM\n[]\n"


def test_programs_we_start_find_default_signals() -> None:
    code = """
signals = init.Signals()
import subprocess
status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
print(*(line for line in status.splitlines() if line.startswith(("SigB", "SigI", "SigC"))))
"""
    out = python(code).stdout.split()
    assert out == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16, "SigCgt:", "0" * 16]


def test_title_and_default_signals() -> None:
    code = """
import threading
signals = init.Signals()
init.default_signals(keep_ignored=[signal.SIGPIPE])
init.set_title("pgr-test-title-long")
print(open("/proc/self/comm").read().strip(), open("/proc/self/cmdline").read().split(chr(0))[0])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["SigIgn"], 16) == 1 << (signal.SIGPIPE - 1), int(status["SigCgt"], 16), int(status["SigBlk"], 16))
"""
    done = python(code)
    assert done.stdout == "pgr-test-title- pgr-test-title-long\nTrue 0 0\n", done.stderr


def test_death_signal() -> None:
    code = """
r, w = os.pipe()
middle = os.fork()
if middle == 0:
    ready_r, ready_w = os.pipe()
    if os.fork() == 0:
        os.close(r)
        ok = init.die_with_parent(os.getppid(), signal.SIGKILL)
        assert ok and not init.die_with_parent(1 << 22, signal.SIGKILL)
        os.write(ready_w, b"x")
        time.sleep(60)
        os.write(w, b"alive")
        os._exit(0)
    os.read(ready_r, 1)
    os._exit(0)
os.close(w)
os.waitpid(middle, 0)
assert os.read(r, 9) == b""
print("gone")
"""
    assert python(code).stdout == "gone\n"
