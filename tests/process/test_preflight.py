"""What is checked before a node starts, and how root is dropped: real files, ports, users and processes."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from consensus.keys import derived_key_text, founding_seed, new_key
from supervisor import preflight
from supervisor.config import Address, Config, Facts, load
from supervisor.entry import main
from supervisor.errors import MissingError, PgrError, RefusedError, UsageError
from supervisor.privileges import check_reachable, choose_account, current

ROOT = Path(__file__).resolve().parents[2]


def config(data: Path, **flags: str) -> Config:
    return load({"data": str(data)} | flags, {}, None, None, Facts("host", "/"))


def fails(error: type[PgrError], words: str) -> pytest.RaisesExc[PgrError]:
    return pytest.raises(error, match=words, check=lambda exc: bool(exc.hint))


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_what_http_needs_can_be_read(tmp_path: Path) -> None:
    tokens, cert = tmp_path / "tokens", tmp_path / "cert.pem"
    asked = config(tmp_path, http_token_file=str(tokens))
    with fails(MissingError, "--http-token-file"):
        preflight.check_files(asked)
    tokens.write_text("0123456789abcdef")
    tokens.chmod(0o644)
    with fails(UsageError, "open to others"):
        preflight.check_files(asked)
    tokens.chmod(0o600)
    preflight.check_files(asked)
    with fails(MissingError, "--http-tls-cert"):
        preflight.check_files(config(tmp_path, http_tls_cert=str(cert)))
    preflight.check_files(config(tmp_path, http_tls_cert=str(cert), http="off"))
    cert.touch()
    preflight.check_files(config(tmp_path, http_tls_cert=str(cert)))


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that other users can enter too (pytest's own cannot be)."""
    path = Path(tempfile.mkdtemp(prefix="pgr-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def nobody() -> pwd.struct_passwd:
    if os.geteuid() != 0:
        pytest.skip("needs root: becomes another user")
    return pwd.getpwnam("nobody")


# --- PGDATA -----------------------------------------------------------------------------------------------------------


def test_pgdata_that_is_missing_or_empty_is_fine(tmp_path: Path) -> None:
    preflight.check_pgdata(tmp_path / "none", os.geteuid())
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".keep").touch()
    preflight.check_pgdata(tmp_path, os.geteuid())


def test_pgdata_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with fails(RefusedError, "holds no Postgres cluster"):
        preflight.check_pgdata(tmp_path, os.geteuid())
    (tmp_path / "PG_VERSION").write_text("18\n")
    preflight.check_pgdata(tmp_path, os.geteuid())


def test_pgdata_of_another_user_is_refused(tmp_path: Path) -> None:
    with fails(RefusedError, "belongs to"):
        preflight.check_pgdata(tmp_path, os.geteuid() + 1)


def test_pgdata_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with fails(UsageError, "not a directory"):
        preflight.check_pgdata(tmp_path / "file", os.geteuid())


def test_major_versions(tmp_path: Path) -> None:
    preflight.check_major(tmp_path, 18, Path("/bin"))
    (tmp_path / "PG_VERSION").write_text("16\n")
    preflight.check_major(tmp_path, 16, Path("/bin"))
    with fails(MissingError, "made by Postgres 16, and the programs in /b are Postgres 18"):
        preflight.check_major(tmp_path, 18, Path("/b"))
    with fails(MissingError, "not supported"):
        preflight.check_major(tmp_path, 14, Path("/b"))
    (tmp_path / "PG_VERSION").write_text("9.6\n")
    with fails(RefusedError, "PG_VERSION"):
        preflight.pgdata_major(tmp_path)


# --- the lock ---------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from supervisor.preflight import lock_data
lock = lock_data(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_supervisor_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with fails(RefusedError, f"pid {first.pid}") as caught:
            preflight.lock_data(tmp_path)
        assert caught.value.exit_code == 78
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    preflight.lock_data(tmp_path).release()


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    with fails(MissingError, "can't be opened"):
        preflight.lock_data(tmp_path / "none")


# --- ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "*", "localhost"])
def test_a_taken_port_is_named(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with fails(MissingError, f"--pg-port: .*:{port} is in use") as caught:
            preflight.check_port(Address(host, port), "--pg-port")
        assert "ss -ltnp" in caught.value.hint
    preflight.check_port(Address(host, port), "--pg-port")


def test_a_port_in_time_wait_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            accepted.close()  # this side closes first: it is left in TIME_WAIT
            client.recv(1)
    preflight.check_port(Address("127.0.0.1", port), "--pg-port")


def test_addresses_that_are_not_ours() -> None:
    with fails(MissingError, "no address 192.0.2.1"):
        preflight.check_port(Address("192.0.2.1", 5432), "--http")
    with fails(MissingError, "--http"):
        preflight.check_port(Address("no-such-host.invalid", 5432), "--http")


def test_kernel_is_new_enough() -> None:
    preflight.check_kernel()


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_that_are_named_must_be_there(tmp_path: Path) -> None:
    with fails(MissingError, "--cluster-key"):
        preflight.check_files(config(tmp_path, cluster_key=str(tmp_path / "none")))
    env = {"PGR_SUPERUSER_PASSWORD_FILE": str(tmp_path / "pw")}
    asked = load({"data": str(tmp_path)}, env, None, None, Facts("h", "/"))
    with fails(MissingError, "password file"):
        preflight.check_files(asked)
    (tmp_path / "pw").write_text("secret\n")
    preflight.check_files(asked)
    assert preflight.superuser_password(asked.founding) == "secret"
    (tmp_path / "pw").write_text("two\nlines\n")
    with fails(UsageError, "one line"):
        preflight.superuser_password(asked.founding)


def test_who_joins_has_the_key_of_the_cluster(tmp_path: Path) -> None:
    asked = config(tmp_path, join="127.0.0.1:7401")
    with fails(UsageError, "--join needs the cluster's key"):
        preflight.check_files(asked)
    text = derived_key_text(founding_seed("abc"))
    (tmp_path / "cluster.key").write_text(text)  # copied there by hand, say
    preflight.check_files(asked)
    (tmp_path / "key").write_text(text)
    preflight.check_files(config(tmp_path, join="127.0.0.1:7401", cluster_key=str(tmp_path / "key")))


def test_a_key_that_anybody_can_derive_is_for_loopback_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(derived_key_text(founding_seed("abc")))
    outside = config(tmp_path, listen="10.0.0.1:7400", cluster_key=str(path))
    with fails(UsageError, "anybody can derive it"):
        preflight.check_files(outside)
    path.write_text(new_key())
    preflight.check_files(outside)


def test_another_name_later() -> None:
    error = preflight.name_changed("a", "b", "flag --name")
    assert (error.exit_code, "'a'" in error.message, "--name a" in error.hint) == (78, True, True)


# --- root -------------------------------------------------------------------------------------------------------------

BECOME = """
import json, os, sys
from supervisor.config import Facts, load
from supervisor.errors import PgrError
from supervisor.privileges import become_user
sys.path[:] = [p for p in sys.path if p]
os.umask(0o077)
flags = json.loads(sys.argv[1])
os.chdir(sys.argv[2] if len(sys.argv) > 2 else "/")
try:
    account = become_user(load(flags, {}, None, None, Facts("h", "/", run_roots=("/run/pgr",))))
except PgrError as exc:
    print(json.dumps({"exit": exc.exit_code, "message": exc.message, "hint": exc.hint}))
else:
    import resource
    print(json.dumps({
        "name": account.name, "ids": [*os.getresuid(), *os.getresgid()], "groups": os.getgroups(), "cwd": os.getcwd(),
        "home": os.environ["HOME"], "oom": int(open("/proc/self/oom_score_adj").read()),
        "own_proc": os.stat("/proc/self/stat").st_uid, "rtprio": resource.getrlimit(resource.RLIMIT_RTPRIO)[0]}))
    try:
        os.setuid(0); print("root again")
    except PermissionError:
        pass
"""


def become(flags: dict[str, str], *more: str) -> dict[str, object]:
    done = run(BECOME, json.dumps(flags), *more)
    assert done.stdout, done.stderr
    first, *rest = done.stdout.splitlines()
    assert not rest
    told: dict[str, object] = json.loads(first)
    return told


def test_root_becomes_the_named_user_for_good(open_dir: Path, nobody: pwd.struct_passwd) -> None:
    data = open_dir / "deep" / "a"
    told = become({"data": str(data), "user": "nobody"}, "/root")
    assert told["ids"] == [nobody.pw_uid] * 3 + [nobody.pw_gid] * 3
    assert told["groups"] == os.getgrouplist("nobody", nobody.pw_gid)
    assert told["own_proc"] == nobody.pw_uid, "the watchdog must be able to look at us"
    assert told["home"] == nobody.pw_dir
    assert told["cwd"] == ("/" if stat.S_IMODE(Path("/root").stat().st_mode) & 0o011 == 0 else "/root")
    for path in (data, data / "raft", data / "run", data / "run" / "pg", data / "log", data / "salvage"):
        info = path.stat()
        assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (nobody.pw_uid, 0o700), path
    assert not (data / "pgdata").exists(), "whoever fills it makes it"
    assert stat.S_IMODE(data.parent.stat().st_mode) == 0o755, "the way to it stays open"


def test_root_becomes_the_owner_of_the_data(open_dir: Path, nobody: pwd.struct_passwd) -> None:
    (open_dir / "pgdata").mkdir()
    os.chown(open_dir / "pgdata", nobody.pw_uid, nobody.pw_gid)
    assert become({"data": str(open_dir)})["name"] == "nobody"
    assert choose_account(config(open_dir)).name == "nobody"


def test_users_that_cannot_be(open_dir: Path, nobody: pwd.struct_passwd) -> None:
    assert "no user 'no_such_user'" in str(become({"data": str(open_dir), "user": "no_such_user"})["message"])
    root = become({"data": str(open_dir), "user": "root"})
    assert (root["exit"], "refuses to run as root" in str(root["message"])) == (64, True)
    (open_dir / "pgdata").mkdir()
    (open_dir / "pgdata" / "PG_VERSION").write_text("18\n")
    os.chown(open_dir / "pgdata", 12345, 12345)
    other = become({"data": str(open_dir), "user": "nobody"})
    assert (other["exit"], "belongs to 12345" in str(other["message"])) == (78, True)
    assert (open_dir / "pgdata").stat().st_uid == 12345, "what has content is never taken over"


def test_a_directory_that_the_user_cannot_enter_is_named(open_dir: Path, nobody: pwd.struct_passwd) -> None:
    closed = open_dir / "closed"
    (closed / "bin").mkdir(parents=True)
    closed.chmod(0o700)
    told = become({"data": str(open_dir / "a"), "user": "nobody", "pg_bin": str(closed / "bin")})
    assert told["exit"] == 69
    assert f"can't enter {closed}" in str(told["message"])
    assert f"chmod o+x {closed}" in str(told["hint"])
    told = become({"data": str(closed / "a"), "user": "nobody"})
    assert f"can't enter {closed}" in str(told["message"])


def test_a_run_directory_elsewhere_is_found_from_data(open_dir: Path, nobody: pwd.struct_passwd) -> None:
    data, elsewhere = open_dir / "a", open_dir / "s"
    for _ in range(2):
        become({"data": str(data), "user": "nobody", "run": str(elsewhere)})
        assert (data / "run").is_symlink()
        assert (data / "run" / "pg").stat().st_uid == nobody.pw_uid
        assert (data / "run").resolve() == elsewhere


def test_an_ordinary_user_stays_and_can_become_nobody_else(open_dir: Path, nobody: pwd.struct_passwd) -> None:
    code = f"import os; os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})\n" + BECOME
    os.chown(open_dir, nobody.pw_uid, nobody.pw_gid)

    def as_nobody(**flags: str) -> dict[str, object]:
        told: dict[str, object] = json.loads(run(code, json.dumps(flags)).stdout)
        return told

    assert as_nobody(data=str(open_dir / "a"))["name"] == "nobody"
    refused = as_nobody(data=str(open_dir / "b"), user="postgres")
    assert (refused["exit"], "only root" in str(refused["message"])) == (64, True)
    closed = as_nobody(data="/proc/pgr-test")
    assert (closed["exit"], "can't be made" in str(closed["message"])) == (69, True)
    (open_dir / "roots").mkdir()
    (open_dir / "roots" / "PG_VERSION").touch()
    foreign = as_nobody(data=str(open_dir / "c"), pgdata=str(open_dir / "roots"))
    assert (foreign["exit"], "belongs to root" in str(foreign["message"])) == (78, True)


def test_reachable_paths_are_fine() -> None:
    check_reachable(current(), [Path(sys.executable), Path("/usr/bin"), Path("/usr/no/such")])


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clean_env(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PGR_", "POSTGRES_"))]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean_env")
@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 64, "no data directory"),
        (["--dta", "x"], 64, "unrecognized arguments"),
        (["--data"], 64, "expected one argument"),
        (["--data", "/x", "--witness"], 64, "a witness alone"),
        (["--data", "/x", "--join", "a:1"], 64, "the cluster at a:1"),
        (["--data", "/x", "--config", "/no/such.toml"], 64, "is not there"),
        (["--data", "/x", "--listen", "0.0.0.0:1"], 64, "no cluster key"),
        (["--data", "/x", "--run", "/" + "x" * 107], 64, "socket paths longer than the kernel allows"),
    ],
)
def test_wrong_usage(argv: Sequence[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert "\n\nhint: " in err


@pytest.mark.usefixtures("clean_env")
def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "--pg-advertise" in out
    assert "PGR_CLUSTER_KEY_FILE" in out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pgr-supervise ")


def test_nothing_heavy_is_imported_before_the_fork() -> None:
    code = (
        "import sys; sys.path.insert(0, 'bin'); import pgr_supervise, supervisor.entry, supervisor.privileges, "
        "supervisor.preflight, supervisor.launcher; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"zmq", "psycopg", "typer", "http.server", "asyncio", "tomllib", "difflib", "importlib.metadata", "sqlite3"}
    assert loaded & heavy == set()


def test_python_m_and_a_foreign_directory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pgr_supervise", "--version"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "bin"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout[:14]) == (0, "pgr-supervise "), done.stderr
