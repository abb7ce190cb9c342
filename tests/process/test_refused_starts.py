"""What keeps a node from starting, seen as a person sees it: the real command, its exit code, its words, its hint.

The rules themselves have their tests in test_preflight.py, test_postgres.py and test_config.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.keys import new_key
from supervisor.localcluster import free_ports, node_environment, own, private_home, run_user, write_secret
from tests.pgbare import pg_bin

pytestmark = pytest.mark.timeout(120)

TOOLS = ("postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_ctl")


class Candidate:
    """A node that has not been started yet: ``flags`` are those of one that would start."""

    def __init__(self, home: Path) -> None:
        self.home, self.data = home, home / "a"
        raft, pg, http = free_ports(3)
        self.flags = {
            "data": str(self.data), "name": "a", "listen": f"127.0.0.1:{raft}", "pg-port": str(pg),
            "http": f"127.0.0.1:{http}", "log-format": "json",
        }  # fmt: skip
        if user := run_user():
            self.flags["user"] = user.pw_name
        self.env: dict[str, str] = {}
        self.python = sys.executable

    def command(self) -> list[str]:
        words = [word for name, value in self.flags.items() for word in (f"--{name}", value)]
        return [self.python, "-P", "-m", "pgr_supervise", *words]

    def run(self) -> tuple[int, str]:
        """Exit code and stderr of a start that ends by itself."""
        done = subprocess.run(
            self.command(), env=node_environment() | self.env, capture_output=True, text=True, check=False, timeout=60,
            cwd="/", start_new_session=True,
        )  # fmt: skip
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    def refused(self, code: int, *words: str) -> None:
        """It ends with this code and says all of these words, and what to do."""
        ended, said = self.run()
        assert ended == code, said
        for word in words:
            assert word in said
        assert "\nhint: " in said

    def says(self, *words: str) -> str:
        """It starts and says all of these words; then it is stopped."""
        process = subprocess.Popen(
            self.command(), env=node_environment() | self.env, stderr=subprocess.PIPE, text=True, cwd="/",
            start_new_session=True,
        )  # fmt: skip
        late = threading.Timer(60, process.kill)
        late.start()
        said = ""
        try:
            assert process.stderr is not None
            while not all(word in said for word in words):
                line = process.stderr.readline()
                assert line, f"it ended without saying {words}: {said}"
                said += line
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            assert process.returncode == 0
        finally:
            late.cancel()
            process.kill()
            process.communicate()
        return said

    def mkdir(self, path: Path) -> Path:
        """As the node's user would have made it."""
        path.mkdir(parents=True)
        for each in (path, *path.parents):
            if each.is_relative_to(self.home):
                own(each)
        return path


@pytest.fixture
def node() -> Iterator[Candidate]:
    home = private_home("pgr-refused-")
    home.chmod(0o755)
    try:
        yield Candidate(home)
    finally:
        shutil.rmtree(home)


# --- the data directory -----------------------------------------------------------------------------------------------


def test_pgdata_with_something_else_in_it(node: Candidate) -> None:
    photos = node.mkdir(node.data / "pgdata" / "photos")
    node.refused(78, "is not empty and holds no Postgres cluster", str(node.data / "pgdata"), "move its content away")
    assert photos.is_dir(), "nothing is deleted"


@pytest.mark.parametrize("which", ["data", "pgdata"])
def test_a_file_where_a_directory_should_be(node: Candidate, which: str) -> None:
    file = node.data if which == "data" else node.mkdir(node.data) / "pgdata"
    file.write_text("precious", encoding="utf-8")
    node.refused(64, f"{file} is there and is not a directory", "move it away")
    assert file.read_text(encoding="utf-8") == "precious"


@pytest.mark.root
def test_pgdata_of_another_user(node: Candidate) -> None:
    pgdata = node.mkdir(node.data / "pgdata")
    (pgdata / "PG_VERSION").write_text("18\n", encoding="ascii")
    os.chown(pgdata, 12345, 12345)
    node.refused(78, f"{pgdata} belongs to 12345", "chown")
    assert pgdata.stat().st_uid == 12345


def test_a_second_supervisor_names_the_first(node: Candidate) -> None:
    first = subprocess.Popen(
        node.command(), env=node_environment(), stderr=subprocess.PIPE, text=True, cwd="/", start_new_session=True
    )
    try:
        assert first.stderr is not None
        while "node.starting" not in first.stderr.readline():
            assert first.poll() is None
        other = Candidate(node.home)
        other.refused(78, f"another supervisor (pid {first.pid}) has {node.data}", f"kill {first.pid}")
        assert first.poll() is None, "and the first one goes on"
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=30)
    assert first.returncode == 0


def test_data_of_another_major_version(node: Candidate) -> None:
    pgdata = node.mkdir(node.data / "pgdata")
    (pgdata / "PG_VERSION").write_text("16\n", encoding="ascii")
    own(pgdata / "PG_VERSION")
    node.refused(69, "was made by Postgres 16", "install Postgres 16")


# --- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["pg-port", "http"])
def test_a_taken_port(node: Candidate, flag: str) -> None:
    with socket.create_server(("127.0.0.1", int(node.flags[flag].rpartition(":")[2]))):
        node.refused(69, f"--{flag}", f"{node.flags[flag]} is in use", "ss -ltnp")


def test_a_taken_consensus_port(node: Candidate) -> None:
    port = int(node.flags["listen"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        code, said = node.run()
    assert code == 69, said
    assert f"{port} is in use by another process" in said
    assert "choose another port with --listen" in said
    assert not (node.data / "pgdata").exists()


def test_no_postgres_programs(node: Candidate) -> None:
    empty = node.mkdir(node.home / "bin")
    node.env["PGR_PG_BIN"] = str(empty)
    node.refused(69, f"{empty} lacks postgres", "--pg-bin")


def test_programs_of_an_unsupported_version(node: Candidate) -> None:
    programs = node.mkdir(node.home / "bin")
    for tool in TOOLS:
        (programs / tool).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n", encoding="ascii")
        (programs / tool).chmod(0o755)
    node.env["PGR_PG_BIN"] = str(programs)
    node.refused(69, f"{programs} has PostgreSQL 14.9", "--pg-bin")


@pytest.mark.root
def test_root_without_a_user_becomes_postgres_or_the_owner(node: Candidate) -> None:
    if (user := run_user()) is None or user.pw_name != "postgres":
        pytest.skip("there is no user postgres")
    del node.flags["user"]
    assert '"user":"postgres"' in node.says("node.starting", "raft.started")
    assert node.data.stat().st_uid == user.pw_uid
    node.flags["user"] = "root"
    node.refused(64, "refuses to run as root", "--user")
    node.flags["user"] = "no_such_user"
    node.refused(69, "no user 'no_such_user'")


@pytest.mark.root
def test_programs_where_postgres_cannot_enter_are_named(node: Candidate) -> None:
    closed = node.home / "closed"
    closed.mkdir(mode=0o700)
    (closed / "bin").symlink_to(pg_bin())
    node.env["PGR_PG_BIN"] = str(closed / "bin")
    node.refused(69, f"can't enter {closed}", f"chmod o+x {closed}")


@pytest.mark.root
def test_an_interpreter_where_postgres_cannot_enter_is_named(node: Candidate) -> None:
    closed = node.home / "closed"
    closed.mkdir(mode=0o700)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", closed / "env"], check=True)
    node.python = str(closed / "env" / "bin" / "python")
    node.refused(69, f"can't enter {closed}", f"chmod o+x {closed}", "/var/cache/pgr")


@pytest.mark.root
def test_no_room_below_raft_at_the_first_start(node: Candidate) -> None:
    raft = node.mkdir(node.data / "raft")
    mount = ["mount", "-t", "tmpfs", "-o", f"size=64k,mode=700,uid={raft.stat().st_uid}", "pgr-test", str(raft)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    try:
        with pytest.raises(OSError, match="No space"):
            (raft / "ballast").write_bytes(bytes(1 << 20))
        code, said = node.run()
        assert code == 74, said
        assert str(raft) in said
        assert "hint" in said
        (raft / "ballast").unlink()
        node.says("raft.started")
    finally:
        subprocess.run(["umount", str(raft)], check=True)


# --- the configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ({"peers": "b=127.0.0.1:1,c=127.0.0.1:2,d=127.0.0.1:3"}, 64, "--peers names only b, c, d"),
        ({"peers": "a=127.0.0.1:1,a=127.0.0.1:2,c=127.0.0.1:3"}, 64, "is there twice"),
        ({"peers": "a=127.0.0.1:1,b,c=127.0.0.1:3"}, 64, "is not NAME=HOST:PORT"),
        ({"listen": "127.0.0.1:port"}, 64, "--listen"),
        ({"listen": "one:two:3"}, 64, "--listen"),
        ({"listen": "0.0.0.0:7400", "advertise": "127.0.0.1"}, 64, "pgr key new"),
        ({"run": "/" + "x" * 107}, 64, "socket paths longer than the kernel allows"),
        ({"cluster-key": "/no/such/key"}, 69, "/no/such/key is not there"),
        ({"config": "/no/such.toml"}, 64, "/no/such.toml is not there"),
        ({"profile": "fats"}, 64, "did you mean fast?"),
    ],
)
def test_wrong_words(node: Candidate, flags: dict[str, str], code: int, words: str) -> None:
    node.flags |= flags
    node.refused(code, words)
    assert not (node.data / "pgdata").exists()


def test_an_unknown_key_and_the_nearest_known_one(node: Candidate) -> None:
    file = node.home / "pgr.toml"
    file.write_text("pg_prot = 5433\n", encoding="utf-8")
    node.flags["config"] = str(file)
    node.refused(64, "pg_prot", "hint: did you mean pg_port?")


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [(new_key(), 0o644, "chmod 600"), ("not a key", 0o600, "pgr key new")],
    ids=["open to others", "no key"],
)
def test_a_cluster_key_that_cannot_be_used(node: Candidate, text: str, mode: int, words: str) -> None:
    key = write_secret(node.home / "cluster.key", text)
    key.chmod(mode)
    node.flags["cluster-key"] = str(key)
    code, said = node.run()
    assert code in (64, 69), said
    assert str(key) in said
    assert words in said


@pytest.mark.parametrize(
    ("peers", "words"),
    [("a=127.0.0.1:{own},b=127.0.0.1:1", "an odd number is better"), ("a=127.0.0.1:{own}", "it will not fail over")],
    ids=["even", "single"],
)
def test_a_list_of_peers_that_survives_little_warns(node: Candidate, peers: str, words: str) -> None:
    node.flags["peers"] = peers.format(own=node.flags["listen"].rpartition(":")[2])
    assert "config.warning" in node.says(words)
