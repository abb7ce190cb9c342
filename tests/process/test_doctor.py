"""`pgr doctor` before the start, as a person runs it: what it says is what the start would say, and nothing is made."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from consensus.keys import new_key
from supervisor.localcluster import node_environment, own, private_home, run_user, write_secret
from tests.pgbare import as_postgres, pg_bin
from tests.process.test_refused_starts import Candidate

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def node() -> Iterator[Candidate]:
    home = private_home("pgr-doctor-")
    home.chmod(0o755)
    try:
        yield Candidate(home)
    finally:
        shutil.rmtree(home)


def doctor(node: Candidate, *words: str) -> subprocess.CompletedProcess[str]:
    flags = [word for name, value in node.flags.items() for word in (f"--{name}", value)]
    program = "import sys; from pgr_supervise import admin; sys.exit(admin())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "doctor", *flags, *words], env=node_environment() | node.env,
        capture_output=True, text=True, check=False, timeout=60, cwd="/",
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def findings(node: Candidate, severity: str, *words: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code, and by check those of this severity."""
    done = doctor(node, "--json", *words)
    body = json.loads(done.stdout)
    assert body["exit_code"] == done.returncode
    assert body["when"] == "before"
    found: dict[str, list[dict[str, Any]]] = {}
    for each in body["findings"]:
        if each["severity"] == severity:
            found.setdefault(each["check"], []).append(each)
            assert severity == "ok" or all(each[part] for part in ("what", "why", "hint")), each
    return done.returncode, found


def test_a_machine_that_is_ready_and_a_peer_that_is_not(node: Candidate) -> None:
    node.mkdir(node.data)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        silent = taken.getsockname()[1]
    peers = f"a={node.flags['listen']},b=127.0.0.1:{silent},c=no-such-host.invalid:7400"
    done = doctor(node, "--peers", peers)
    assert done.returncode == 75, done.stdout + done.stderr
    assert done.stdout.startswith("error: control plane: a: c at no-such-host.invalid:7400 is not reached"), done.stdout
    assert "b at 127.0.0.1" in done.stdout
    assert "nobody listens at that port yet" in " ".join(done.stdout.split())
    assert f"free: {node.flags['listen']}" in done.stdout
    assert "no node runs in" in done.stderr
    assert f"as user {run_user().pw_name}" in done.stderr if run_user() else True  # type: ignore[union-attr]  # just asked
    code, well = findings(node, "ok")
    assert code == 0
    assert {"account", "data directory", "ports", "binaries", "disk", "sync time", "lease", "limits"} <= well.keys()
    assert list(node.data.iterdir()) == [], "nothing is made"


def test_all_that_is_wrong_is_told_at_once_with_the_words_of_the_start(node: Candidate) -> None:
    node.mkdir(node.data / "pgdata" / "photos")
    node.flags["cluster-key"] = str(node.home / "key")
    node.env["PGR_PG_BIN"] = str(node.mkdir(node.home / "bin"))
    with ExitStack() as stack:
        for flag in ("listen", "pg-port", "http"):
            port = int(node.flags[flag].rpartition(":")[2])
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        code, wrong = findings(node, "error")
        assert len(wrong["ports"]) == 3
        assert code == 78
    assert {check: [f["code"] for f in found] for check, found in wrong.items()} == {
        "data directory": [78], "files": [69], "ports": [69, 69, 69], "binaries": [69],
    }  # fmt: skip
    ended, said = node.run()
    assert ended == code
    assert wrong["data directory"][0]["what"] in said
    shutil.rmtree(node.data / "pgdata")
    assert wrong["files"][0]["what"] in node.run()[1]
    write_secret(node.home / "key", new_key())
    assert wrong["binaries"][0]["what"] in node.run()[1]
    assert findings(node, "error")[0] == 69


def test_what_is_no_configuration_is_refused_as_the_start_refuses_it(node: Candidate) -> None:
    done = doctor(node, "--pg-prot", "1")
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("error: unrecognized arguments: --pg-prot 1")
    done = doctor(node, "--peers", "b=127.0.0.1:1,c=127.0.0.1:2")
    assert (done.returncode, done.stdout) == (64, "")
    assert "hint: add this node to --peers" in done.stderr
    del node.flags["data"]
    done = doctor(node)
    assert done.returncode == 64
    assert "no data directory given" in done.stderr


def test_a_supervisor_that_has_the_directory_and_does_not_answer(node: Candidate) -> None:
    node.mkdir(node.data)
    lock = node.data / "lock"
    lock.write_text(f"{os.getpid()}\n", encoding="ascii")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, wrong = findings(node, "error")
    assert code == 78
    assert f"a supervisor (pid {os.getpid()}) has {node.data}" in wrong["data directory"][0]["what"]


@pytest.mark.slow
def test_data_that_is_to_be_taken_over(node: Candidate) -> None:
    """Without checksums and hints; of another major version; damaged."""
    node.mkdir(node.data)
    pgdata = node.data / "pgdata"
    node.env["PGR_PG_BIN"] = str(pg_bin())
    off = ["--no-data-checksums"] if "18" in subprocess.getoutput(f"{pg_bin()}/initdb --version") else []
    made = [str(pg_bin() / "initdb"), "-D", str(pgdata), "-A", "trust", "--no-sync", *off]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL, **as_postgres())
    code, found = findings(node, "warning")
    assert code == 0
    assert "pg_checksums --enable" in found["rewind"][0]["hint"]
    assert "shut down, system identifier" in findings(node, "ok")[1]["data directory"][0]["what"]
    (pgdata / "global" / "pg_control").write_bytes(bytes(8192))
    own(pgdata / "global" / "pg_control")
    code, found = findings(node, "error")
    assert code == 78
    assert "pg_control" in found["rewind"][0]["what"]
    (pgdata / "PG_VERSION").write_text("16\n", encoding="ascii")
    assert "was made by Postgres 16" in findings(node, "error")[1]["data directory"][0]["what"]


@pytest.mark.root
def test_root_looks_with_the_eyes_of_the_user_who_will_run_it(node: Candidate) -> None:
    """And what belongs to somebody else is told, not taken."""
    node.mkdir(node.data)
    os.chown(node.data, 12345, 12345)
    node.data.chmod(0o700)
    code, wrong = findings(node, "error")
    assert code == 78
    assert f"{node.data} belongs to 12345" in wrong["account"][0]["what"]


@pytest.mark.root
def test_a_place_that_the_user_can_not_write_to(node: Candidate) -> None:
    node.home.chmod(0o755)
    os.chown(node.home, 0, 0)
    code, wrong = findings(node, "error")
    assert code == 69
    assert all("Permission denied" in each["what"] for each in wrong["disk"])


def test_a_witness_is_not_asked_for_a_postgres(node: Candidate) -> None:
    node.mkdir(node.data)
    node.env["PGR_PG_BIN"] = str(Path("/nowhere"))
    code, well = findings(node, "ok", "--witness", "--peers", f"a={node.flags['listen']},b=127.0.0.1:9")
    assert code == 0
    assert not {"binaries", "rewind", "hba", "shared memory"} & well.keys()
    assert len(well["disk"]) == 1, "it has a raft directory alone"
