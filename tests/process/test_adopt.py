"""A data directory that a person names with --pgdata: what keeps it from being taken, and one that is taken."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.localcluster import own
from tests.pgbare import BarePostgres, run, template
from tests.process.test_refused_starts import Candidate, node

__all__ = ["node"]

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def main(node: Candidate) -> Iterator[BarePostgres]:
    """A stand-alone Postgres, stopped, whose data directory ``node`` is to take over."""
    place = node.mkdir(node.home / "postgresql")
    postgres = BarePostgres(initdb=False)
    postgres.pgdata = place / "main"
    subprocess.run(["cp", "-a", template(), postgres.pgdata], check=True)
    node.flags["pgdata"] = str(postgres.pgdata)
    try:
        yield postgres
    finally:
        postgres.close()


def append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def ask(postgres: BarePostgres, statement: str) -> object:
    """The first row, if there is one."""
    with postgres.connect() as session:
        done = session.execute(statement.encode())
        return done.fetchone() if done.description else None


def standby(pgdata: Path) -> None:
    (pgdata / "standby.signal").touch()
    own(pgdata / "standby.signal")


def recovered_as_standby(pgdata: Path) -> None:
    """Somebody has removed the file: what pg_control says is left."""
    standby(pgdata)
    postgres = BarePostgres(initdb=False)
    postgres.pgdata = pgdata
    postgres.settings["max_connections"] = "100"  # as pg_control says
    postgres.start()
    postgres.stop()
    (pgdata / "standby.signal").unlink()
    postgres.close()


REFUSED: dict[str, tuple[Callable[[Path], object], int, str, str]] = {
    "standby": (standby, 78, "is the data of a standby", "bring in the primary's data directory instead"),
    "a standby's in disguise": (recovered_as_standby, 78, "'shut down in recovery'", "pg_ctl -D"),
    "open to others": (lambda pgdata: pgdata.chmod(0o755), 69, "mode 0755", "chmod 0700"),
    "bad configuration": (
        lambda pgdata: append(pgdata / "postgresql.conf", "nonsense"), 69, "can't read the configuration",
        "-C hba_file",
    ),
    "include that is not there": (
        lambda pgdata: append(pgdata / "postgresql.conf", "include_dir 'conf.d'"), 69, "conf.d", "mend it until",
    ),
    "rules in other files": (
        lambda pgdata: append(pgdata / "pg_hba.conf", "host @bases all all trust"), 78, "names another file",
        "[postgres] hba = ",
    ),
    "another major version": (
        lambda pgdata: (pgdata / "PG_VERSION").write_text("9\n"), 69, "was made by Postgres 9", "pg_upgrade",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_taken_is_left_as_it_is(node: Candidate, main: BarePostgres, case: str) -> None:
    spoil, code, why, hint = REFUSED[case]
    spoil(main.pgdata)
    before = {path: path.stat().st_mtime_ns for path in main.pgdata.rglob("*")}
    node.refused(code, why, hint)
    assert {path: path.stat().st_mtime_ns for path in main.pgdata.rglob("*")} == before


def test_one_that_runs_is_refused_before_its_port_is_missed(node: Candidate, main: BarePostgres) -> None:
    main.port = int(node.flags["pg-port"])
    main.start()
    node.refused(78, f"runs in {main.pgdata}, process {main.pid}", f"pg_ctl -D {main.pgdata} stop", "at boot")
    assert ask(main, "SELECT 1") == (1,)


def test_one_that_was_process_1_of_a_container_is_not_taken_for_dead(node: Candidate, main: BarePostgres) -> None:
    """Its number says nothing here, and Postgres itself would start beside it (seen)."""
    (main.pgdata / "postmaster.pid").write_text(f"1\n{main.pgdata}\n", encoding="ascii")
    node.refused(78, "process 1 of a container", "stop that container", f"remove {main.pgdata}/postmaster.pid")


@pytest.mark.root
def test_one_that_runs_under_another_number_is_found(node: Candidate, main: BarePostgres) -> None:
    """In a container on this machine: there it is process 4711, here another one."""
    main.start()
    pid = main.pid
    path = main.pgdata / "postmaster.pid"
    lines = path.read_text(encoding="ascii").splitlines()
    path.write_text("\n".join(["4711", *lines[1:]]) + "\n", encoding="ascii")
    node.refused(78, f"runs in {main.pgdata}, process {pid}")
    path.write_text("\n".join([str(pid), *lines[1:]]) + "\n", encoding="ascii")


@pytest.mark.slow
def test_a_role_of_somebody_else_is_made_nobodys_superuser(node: Candidate, main: BarePostgres) -> None:
    main.start()
    ask(main, "CREATE ROLE pgr LOGIN PASSWORD 'x'")
    main.stop()
    node.refused(78, "are somebody else's: pgr (pgr would make a superuser of pgr)", "ALTER ROLE pgr RENAME TO")
    # Started again without it, there is no initdb in its place.
    place = node.flags.pop("pgdata")
    node.refused(78, "was founded to take over the data directory", "is empty", "name that data directory")
    assert not list(node.data.glob("pgdata*"))
    node.flags["pgdata"] = place
    # As the hint says: it still is a plain Postgres.
    main.start()
    attributes = "SELECT rolsuper, rolpassword IS NOT NULL FROM pg_authid WHERE rolname = 'pgr'"
    assert ask(main, attributes) == (False, True)
    ask(main, "ALTER ROLE pgr RENAME TO pgr_old")
    main.stop()
    node.says("gate.open")


def test_one_that_crashed_with_settings_that_no_standby_could_start_with_is_taken(
    node: Candidate, main: BarePostgres
) -> None:
    """wal_level = minimal has Postgres refuse to be a standby, and every start by pgr is one."""
    for line in ("wal_level = minimal", "max_wal_senders = 0", "synchronous_standby_names = '*'", "port = 1"):
        append(main.pgdata / "postgresql.conf", line)
    # As pg_basebackup -R writes it; the standby was promoted since.
    append(main.pgdata / "postgresql.auto.conf", "primary_conninfo = 'host=x password=secret'")
    main.settings |= {"wal_level": "minimal", "max_wal_senders": "0", "synchronous_standby_names": ""}
    main.start()
    ask(main, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i")
    main.stop(signal.SIGQUIT)
    assert "in production" in run("pg_controldata", "-D", main.pgdata).stdout
    # What a new cluster would run once is not for this one.
    (node.mkdir(node.data) / "pgr.toml").write_text(f'init_sql = "{node.home}/init.sql"\n', encoding="utf-8")
    (node.home / "init.sql").write_text("CREATE TABLE anew (i int);\n", encoding="utf-8")
    said = node.says("cluster.created", "gate.open")
    assert "init_sql.begin" not in said
    assert "secret" not in said
    (line,) = [line for line in said.splitlines() if '"data.adopted"' in line]
    fields = json.loads(line)["fields"]
    named = [entry.split(" ")[0] for entry in fields["overruled"]]
    assert {"wal_level", "max_wal_senders", "synchronous_standby_names", "port", "primary_conninfo"} <= set(named)
    assert '"data.recovering"' in said
    assert re.search(r"cluster state:\s+shut down\n", run("pg_controldata", "-D", main.pgdata).stdout)


@pytest.mark.slow
def test_debians_layout_is_taken_once_its_configuration_is_where_copies_get_it(
    node: Candidate, main: BarePostgres
) -> None:
    """postgresql.conf and conf.d are copied, as the hint says; client rules come from where that file says."""
    etc = node.mkdir(node.home / "etc" / "17" / "main")
    (main.pgdata / "postgresql.conf").rename(etc / "postgresql.conf")
    (main.pgdata / "pg_hba.conf").unlink()
    (etc / "pg_hba.conf").write_text("local all postgres peer\nlocal all all peer\n", encoding="utf-8")
    (etc / "conf.d").mkdir()
    (etc / "conf.d" / "ours.conf").write_text("work_mem = 7MB\nport = 5439\n", encoding="utf-8")
    for line in (f"data_directory = '{main.pgdata}'", f"hba_file = '{etc}/pg_hba.conf'", "include_dir = 'conf.d'"):
        append(etc / "postgresql.conf", line)
    node.refused(69, "keeps its configuration elsewhere", "copy postgresql.conf and what it includes")
    subprocess.run(["cp", "-a", etc / "postgresql.conf", etc / "conf.d", main.pgdata], check=True)
    said = node.says("cluster.created", "gate.open")
    (line,) = [line for line in said.splitlines() if '"data.adopted"' in line]
    fields = json.loads(line)["fields"]
    assert fields["client_rules"] == 2
    assert any(word.startswith(f"port ({main.pgdata}/conf.d/ours.conf:2") for word in fields["overruled"])
