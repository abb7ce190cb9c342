"""The wheel and supervisord in one environment: both install a package called supervisor, and both must go on working.

tests/process/test_packaging.py looks at the wheel's content without a network; here both are really installed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        os.environ.get("PGR_TEST_LEVEL", "quick") == "quick", reason="downloads supervisord: bin/test --ci or --all"
    ),
]

SUPERVISORD_CONF = """
[supervisord]
logfile={home}/supervisord.log
pidfile={home}/supervisord.pid
childlogdir={home}
[unix_http_server]
file={home}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{home}/supervisor.sock
[program:trivial]
command=/bin/sleep 600
startsecs=0
"""


class Environment:
    """A fresh virtual environment."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bin = home / "env" / "bin"
        venv.create(home / "env", with_pip=True)

    def run(self, program: str, *words: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PGR_"))}
        command = [str(self.bin / program), *words]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=False, timeout=seconds)

    def pip(self, *words: str) -> None:
        done = self.run("python", "-m", "pip", "--disable-pip-version-check", *words)
        assert done.returncode == 0, done.stdout + done.stderr

    def check_pgr(self) -> None:
        for program, word, beginning in (
            ("pgr", "version", "pgr "),
            ("pgr-supervise", "--version", "pgr-supervise "),
            ("pgr-supervise", "--help", "usage: "),
        ):
            done = self.run(program, word)
            assert (done.returncode, done.stdout.startswith(beginning)) == (0, True), done.stdout + done.stderr

    def check_supervisord(self) -> None:
        """A real one: it starts a program, tells so, restarts it, stops it, ends."""
        conf = self.home / "supervisord.conf"
        conf.write_text(SUPERVISORD_CONF.format(home=self.home), encoding="utf-8")
        daemon = subprocess.Popen([self.bin / "supervisord", "-n", "-c", conf], cwd="/", stdout=subprocess.DEVNULL)
        try:
            self.told(conf, "RUNNING")
            assert self.run("supervisorctl", "-c", str(conf), "restart", "trivial").returncode == 0
            self.told(conf, "RUNNING")
            self.check_pgr_if_there()
            assert self.run("supervisorctl", "-c", str(conf), "stop", "trivial").returncode == 0
            self.told(conf, "STOPPED")
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(20) == 0
        finally:
            daemon.kill()
            daemon.wait()

    def told(self, conf: Path, state: str) -> None:
        until = time.monotonic() + 30
        while state not in (said := self.run("supervisorctl", "-c", str(conf), "status").stdout):
            assert time.monotonic() < until, f"not {state}: {said}"
            time.sleep(0.1)

    def check_pgr_if_there(self) -> None:
        if (self.bin / "pgr").exists():
            self.check_pgr()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.parametrize("first", ["pgr-supervise", "supervisor"])
def test_next_to_a_running_supervisord_and_removed_in_either_order(wheel: Path, tmp_path: Path, first: str) -> None:
    env = Environment(tmp_path)
    # The one that comes last would win if they shared a name; supervisord 4.2 needs pkg_resources.
    order = [str(wheel), "supervisor"] if first == "supervisor" else ["supervisor", str(wheel)]
    for what in order:
        env.pip("install", "-q", what, "setuptools<81")
    assert env.run("supervisord", "--version").stdout.startswith("4.")
    env.check_pgr()
    env.check_supervisord()

    env.pip("uninstall", "-q", "-y", first)
    if first == "supervisor":
        env.check_pgr()
        env.pip("uninstall", "-q", "-y", "pgr-supervise")
    else:
        env.check_supervisord()
        env.pip("uninstall", "-q", "-y", "supervisor")
    left = sorted(path.name for path in (tmp_path / "env" / "lib").glob("python*/site-packages/*"))
    assert not [name for name in left if name.startswith(("supervisor", "pgr"))], left
