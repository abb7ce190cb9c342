"""README.md is run as it is written; only places, ports and addresses are replaced by free ones of this machine.

A command that is added there fails `test_every_command_has_a_test` until a test runs it and says so in `RUN_BY`.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from consensus.changes import DEGRADE_MS
from consensus.node import PARENT_SILENT_MS
from fencing.lease import PROFILES, RHO_PERCENT
from supervisor.cli import app
from supervisor.entry import parser
from supervisor.localcluster import LocalNode, free_ports, node_environment, own
from supervisor.localwriter import Writer
from supervisor.options import BY_KEY, OPTIONS
from supervisor.preflight import SUPPORTED_MAJORS
from tests.cluster.world import World

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BY_HAND, HOSTS, MEMBERS = "Three nodes by hand, on one machine", "Three hosts", "Adding and removing nodes"
RUN_BY = {
    "bin/demo": "test_the_demo",
    "bin/test": "test_what_bin_test_and_bin_bench_are_given",
    "bin/bench": "test_what_bin_test_and_bin_bench_are_given",
    "mkdir": BY_HAND, "echo": BY_HAND, "export": BY_HAND, "curl": BY_HAND, "bin/pgr-supervise": BY_HAND,
    "bin/pgr status": BY_HAND, "bin/pgr uri": BY_HAND, "bin/pgr switchover": BY_HAND,
    "pgr status": BY_HAND, "pgr uri": BY_HAND, "kill": BY_HAND,
    "pgr key": HOSTS, "pgr-supervise": HOSTS,
    "bin/pgr history": "test_hooks.py", "bin/pgr events": "test_hooks.py",
    "bin/pgr member": MEMBERS, "pgr member": MEMBERS,
    "bin/pgr config": "test_config.py", "pgr config": "test_config.py",
    "pgr failover": "test_explain.py", "pgr explain": "test_explain.py", "pgr switchover": "test_explain.py",
    "pgr history": "test_switchover.py", "pgr fence": "test_node_commands.py", "pgr unfence": "test_node_commands.py",
    "pgr reinit": "test_node_commands.py", "pgr restart": "test_restart.py", "pgr reload": "test_restart.py",
    "pgr doctor": "test_doctor.py", "pgr leave": "test_adopt.py", "pgr pause": "test_pause.py",
    "pgr resume": "test_pause.py",
    "pgr recover": "test_recover.py", "bin/pgr recover": "test_recover.py",
    "pgr --install-completion": "test_completion.py",
    "make": "test_what_is_made",
    "uv tool": "test_wheel.py", "uv build": "test_packaging.py",
}  # fmt: skip
PROGRAMS = ("pgr", "pgr-supervise", "uv", "curl", "kill", "make")
UV_FLAGS = {"--wheel"}


# -- reading it ------------------------------------------------------------------------------------------------------


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no section {title!r}"
    return found[1]


def fenced(text: str, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """One string each, continuation lines joined; comments stay, the shell knows what they are."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def spans() -> list[str]:
    """`code` in the text that is a command, and not a name or a flag."""
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    codes = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    return [code for code in codes if " " in code and (code.split()[0] in PROGRAMS or code.startswith("bin/"))]


def every_command() -> list[list[str]]:
    lines = [command for block in fenced(README) for command in commands(block)]
    return [shlex.split(line, comments=True) for line in [*lines, *spans()]]


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


# -- running it ------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """A shell in the checkout, with the interpreter of these tests and nothing else of them."""
    env = node_environment() | {"PGR_PYTHON": sys.executable, "PATH": f"{ROOT / 'bin'}:{os.environ['PATH']}"}
    env.pop("PYTHONPATH", None)
    return env


def shell(script: str, seconds: float = 60, exit_code: int = 0) -> str:
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
        timeout=seconds,
    )  # fmt: skip
    assert done.returncode == exit_code, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


class Terminal(LocalNode):
    """A terminal in which one command of README.md has been typed."""

    def __init__(self, home: Path, name: str, ports: Sequence[int], typed: str, host: str = "127.0.0.1") -> None:
        super().__init__(home, name, ports)
        self.typed, self.host = typed, host
        self.env |= {key: value for key, value in environment().items() if key.startswith("PGR_") or key == "PATH"}
        self.env["PYTHONPATH"] = ""

    def command(self) -> list[str]:
        return ["bash", "-c", f"cd {shlex.quote(str(ROOT))}\n{self.typed}"]

    def get(self, path: str, timeout_s: float = 1.0) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()


def typed(exports: list[str], command: str) -> str:
    return "\n".join([*exports, f"exec {command}"])


@contextmanager
def writing_through(world: World, uri: str) -> Iterator[Writer]:
    writer = Writer(uri)
    world.writers.append(writer)
    writer.start()
    world.settles(lambda: bool(writer.acked), "the first write acknowledged", lambda: str(writer.failures[-1:]))
    try:
        yield writer
    finally:
        writer.stop(30)


def lose_the_primary_and_start_it_again(world: World, uri: str) -> Writer:
    """`kill -9` and the same command again."""
    with writing_through(world, uri) as writer:
        primary = world.wait_whole()
        killed_ns, names = primary.kill_all()
        assert {"pgr-supervise", "pgr-raft", "pgr-launcher"} <= set(names)
        world.writes_again(writer, killed_ns)
        assert world.primary() is not primary
        primary.start()
        world.wait_streaming(primary)
    audit = writer.audit()
    assert audit.acknowledged > 0
    assert not audit.lost
    assert not audit.phantoms
    return writer


class ByHand:
    """The cluster of that section, started as it is written."""

    def __init__(self, world: World) -> None:
        self.world, self.place = world, world.home / "pgr"
        extra = LocalNode(world.home, "d", free_ports(3))
        self.plain = [*world.nodes, extra]
        setup, *starts, self.asked = fenced(self.here(section(BY_HAND)))
        shell(setup)
        self.exports = [command for command in commands(setup) if command.startswith("export ")]
        assert len(self.exports) == 2
        world.password = (self.place / "password").read_text().strip()
        world.nodes = [self.terminal(node, start) for node, start in zip(self.plain, starts, strict=False)]
        world.start()
        world.wait_writable(standbys=2)

    def here(self, text: str) -> str:
        text = text.replace("/tmp/pgr", str(self.place))
        for number, node in enumerate(self.plain):
            for written, port in ((7401, node.listen_port), (5441, node.pg_port), (8001, node.http_port)):
                text = text.replace(str(written + number), str(port))
        return text

    def terminal(self, node: LocalNode, start: str) -> Terminal:
        ports = (node.listen_port, node.pg_port, node.http_port)
        return Terminal(self.place, node.name, ports, typed(self.exports, start.strip()))


@pytest.mark.cluster
@pytest.mark.slow
def test_adding_and_removing_nodes(make_world: Callable[..., World]) -> None:
    world = make_world()
    by_hand = ByHand(world)
    start, asked = fenced(by_hand.here(section(MEMBERS)))
    fourth = by_hand.terminal(by_hand.plain[3], start)
    world.nodes.append(fourth)
    fourth.start()
    world.wait_members("a b c d", "3 of a b c d")
    listing, *changes = commands(asked)
    assert [line.split()[:2] for line in shell(listing).splitlines()[1:]] == [[name, "voter"] for name in "abcd"]
    for command, members in zip(changes, ("a b c d:learner", "a b c d", "a b c"), strict=True):
        shell("\n".join([*by_hand.exports, command]), seconds=120)
        world.wait_members(members)
    assert fourth.wait(30) == 0


@pytest.mark.cluster
def test_three_nodes_by_hand(make_world: Callable[..., World]) -> None:
    world = make_world()
    by_hand = ByHand(world)
    exports, asked = by_hand.exports, by_hand.asked
    said: dict[str, str] = {}
    for command in commands(asked):
        words = shlex.split(command, comments=True)
        if words[0] == "curl":
            code = world.nodes[0].get("/primary")[0]
            if shutil.which("curl"):
                assert shell("\n".join([*exports, command])).startswith(f"HTTP/1.1 {code} ")
            codes = sorted(node.get("/primary")[0] for node in world.nodes)
            assert codes == [200, 503, 503]
            continue
        before = world.primary()
        said[words[1]] = shell("\n".join([*exports, command]))
        if words[1] == "switchover":
            assert world.wait_whole() is not before
    assert list(said) == ["status", "uri", "switchover"]
    rows = [line.split() for line in said["status"].splitlines()]
    assert all(any(node.name in row for row in rows) for node in world.nodes), said["status"]
    assert "lag" in said["status"].lower()
    a = next(row for row in rows if row[:1] == ["a"])
    assert ("LEASE" in said["status"]) is (a[1] == "primary"), "it tells of its own alone"
    read_write, read_only = said["uri"].split()
    with psycopg.connect(make_conninfo(read_only, password=world.password)) as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
    writer = lose_the_primary_and_start_it_again(world, make_conninfo(read_write, password=world.password))
    world.check_no_loss(writer, everywhere=True)
    for last in [*world.standbys(), world.primary()]:
        assert last is not None
        assert last.stop(60, signal.SIGTERM) == 0
        assert last.pids() == []


@pytest.mark.cluster
@pytest.mark.slow
def test_three_hosts(make_world: Callable[..., World]) -> None:
    world = make_world()
    raft, pg, http_port = free_ports(3)
    etc = world.home / "etc"

    def here(text: str, name: str = "a") -> str:
        text = re.sub(r"\b10\.0\.0\.(\d)", r"127.0.0.\1", text)
        text = text.replace(":7400", f":{raft}").replace(":8008", f":{http_port}")
        return text.replace("/etc/pgr", str(etc)).replace("/var/lib/pgr", str(world.home / name))

    (block,) = fenced(section(HOSTS))
    *prepare, start = commands(block)
    shell("\n".join(here(command) for command in prepare))
    key = etc / "cluster.key"
    assert key.stat().st_mode & 0o777 == 0o600
    own(key)
    (toml,) = fenced(section(HOSTS), "toml")
    assert tomllib.loads(toml)["postgres"]["hba"]
    exports = [f"export PGR_SUPERUSER_PASSWORD_FILE={world.home / 'password'} PGR_PG_PORT={pg}"]
    world.nodes = []
    for number, name in enumerate("abc", 1):
        (world.home / name).mkdir()
        (world.home / name / "pgr.toml").write_text(here(toml, name))
        own(world.home / name)
        line, replaced = re.subn(r"(--(?:pg-)?listen|--http) 10\.0\.0\.1", rf"\1 10.0.0.{number}", start)
        assert replaced == 3
        line = line.replace("--name a", f"--name {name}")
        host = f"127.0.0.{number}"
        world.nodes.append(Terminal(world.home, name, (raft, pg, http_port), typed(exports, here(line, name)), host))
    a, b, c = world.nodes
    a.start()
    b.start()
    world.settles(
        lambda: any(event["fields"]["silent"] == ["c"] for event in world.logged(a, "founding.waiting")), "c is named"
    )
    assert world.primary() is None
    c.start()
    primary = world.wait_writable(standbys=2)
    read_write, read_only = shell(f"pgr uri --user postgres --data {b.data}").split()
    assert all(f"127.0.0.{number}:{pg}" in read_write and f"127.0.0.{number}:{pg}" in read_only for number in (1, 2, 3))
    uri = make_conninfo(read_write, password=world.password)
    with psycopg.connect(uri) as connection:
        rules = connection.execute("SELECT address, netmask, auth_method FROM pg_hba_file_rules").fetchall()
        assert ("127.0.0.0", "255.0.0.0", "scram-sha-256") in rules, "what pgr.toml says is what holds"
        listen = connection.execute("SELECT inet_server_addr()::text").fetchone()
        assert isinstance(primary, Terminal)
        assert listen == (f"{primary.host}/32",)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(make_conninfo(read_write, password="wrong"))
    shown = json.loads(shell(f"pgr status --json --node 127.0.0.3:{raft} --cluster-key {key}"))
    assert sorted(member["name"] for member in shown["members"]) == ["a", "b", "c"]
    lose_the_primary_and_start_it_again(world, uri)


@pytest.mark.cluster
@pytest.mark.slow
def test_the_demo() -> None:
    """As `bin/demo` where its environment is the one that runs these tests (bin/test), else without making one."""
    made = shell(f"root={shlex.quote(str(ROOT))}; . bin/env.sh; env_dir").strip()
    same = Path(made).resolve() == Path(sys.prefix).resolve()
    said = shell("bin/demo --once" if same else "bin/pgr demo --once", seconds=200)
    assert re.search(r"^acknowledged (\d+), present \1, lost 0$", said, re.MULTILINE), said


# -- what it says ----------------------------------------------------------------------------------------------------


def test_every_command_has_a_test() -> None:
    found: set[str] = set()
    for words in every_command():
        sub = words[0].rpartition("/")[2] in ("pgr", "uv")
        found.add(" ".join(words[: 2 if sub else 1]))
    assert found == set(RUN_BY)


def test_every_word_for_a_node_is_understood() -> None:
    for words in every_command():
        if words[0].endswith("pgr-supervise"):
            parser().parse_args(words[1:])


@cache
def help_of(*words: str) -> str:
    """What `pgr WORDS --help` prints."""
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0, shown.output
    return shown.output


def test_every_flag_exists() -> None:
    known = {option.flag for option in OPTIONS} | UV_FLAGS
    for words in ([], ["status"], ["switchover"], ["failover"], ["history"], ["uri"], ["key", "new"], ["demo"],
                  ["restart"], ["events"], ["reinit"], ["recover"], ["leave"],
                  *(["member", what] for what in ("list", "add", "remove", "replace")),
                  *(["config", what] for what in ("show", "get", "set", "unset", "edit", "history"))):
        known |= flags_in(help_of(*words))
    assert flags_in(README) - known == set()
    for words in every_command():
        if words[0].rpartition("/")[2] == "pgr":
            command = words[1:3] if words[1] in ("key", "member", "config") else words[1:2]
            for word in words:
                known_there = re.search(rf"(?<![\w-]){word}\b", help_of(*command))
                assert not word.startswith("-") or known_there, f"{words}: no {word}"


def test_what_is_made() -> None:
    """Each is one line that runs a script, mostly of the same name; that it runs to its end is for CI to show."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [words[1] for words in every_command() if words[0] == "make"]
    assert targets == ["model", "sim", "net"]
    for target in targets:
        script = {"net": "test"}.get(target, target)
        assert re.search(rf"^{target}: .*\n\t.*bin/{script}\b", makefile, re.MULTILINE)
        helped = shell(f"bin/{script} --help")
        assert "usage:" in helped or f"bin/{script}" in helped


def test_what_bin_test_and_bin_bench_are_given() -> None:
    for words in every_command():
        if words[0] == "bin/test":
            stages = words[1 : words.index("--")] if "--" in words else words[1:]
            shell(shlex.join(["bin/test", *stages, "--help"]))
    shell("bin/test nosuch --help", exit_code=64)
    named = re.search(r"`bin/bench (\w+)`.*?\(((?:`\w+`(?:, )?)+) likewise\)", section("Working on it"), re.DOTALL)
    assert named
    listed = shell(f"{sys.executable} -m tests.bench --help")
    for bench in [named[1], *re.findall(r"`(\w+)`", named[2])]:
        assert re.search(rf"^  {bench} ", listed, re.MULTILINE), bench
    for folder in set(re.findall(r"`tests/(\w+)`", README)):
        assert list((ROOT / "tests" / folder).glob("test_*.py"))


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert len(targets) >= 3
    assert [target for target in targets if not (ROOT / target).exists()] == []


def says(sentence: str) -> bool:
    return " ".join(sentence.split()) in " ".join(README.split())


def test_numbers_are_those_of_the_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert says(f"clocks run at the same rate within {RHO_PERCENT} %")
    assert says(f"PostgreSQL {SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]}")
    assert says(f"Python {project['requires-python'].removeprefix('>=')} or newer")
    extra = re.search(r"uv tool install '([\w-]+)\[(\w+)\]'", README)
    assert extra
    assert extra[1] == project["name"]
    assert extra[2] in project["optional-dependencies"]
    assert "under 10 minutes on 2 cores" in (ROOT / "bin" / "test").read_text(encoding="utf-8")
    assert says("under 10 minutes on 2 cores")
    assert BY_KEY["name"].env == "PGR_NAME"


def test_how_long_a_primary_without_control_plane_can_last() -> None:
    """From the last round that was acknowledged; a parent that hangs has to be noticed first.
    With the watchdog hung as well the Raft child acts, as soon as both are true: lease over, parent silent."""
    down_ms = {name: timings.lease_ms + timings.kill_bound_ms for name, timings in PROFILES.items()}
    assert says("the primary is down within a second")
    assert says("Within four if it is the parent that hangs, alone or with one other,")
    assert says("and with `--profile cloud` one more")
    assert down_ms["fast"] <= down_ms["default"] <= 1_000
    assert down_ms["default"] + PARENT_SILENT_MS <= 4_000
    assert down_ms["cloud"] <= 2_000
    assert down_ms["cloud"] + PARENT_SILENT_MS <= 5_000
    assert says("another takes over in about a second")
    assert PROFILES["default"].election_ms == 1_000


def test_how_long_writes_wait_where_the_cluster_is_not_strict() -> None:
    assert says("five seconds after that was noticed they go on with those that are")
    assert DEGRADE_MS == 5_000
