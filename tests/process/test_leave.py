"""What `pgr leave` takes out of a data directory, and what it leaves because others built upon it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from consensus.cluster import ClusterState
from supervisor import binaries, jobs, leave, settings, sqlcatalog
from supervisor.children import ChildTable
from supervisor.tasks import Task, run_blocking
from tests.cluster.world import rare
from tests.pgbare import pg_bin, template
from tests.process.dropped import dropped, home

pytestmark = [rare, pytest.mark.timeout(120)]

CHILDREN = ChildTable()


def do(task: Task[jobs.JobResult]) -> str:
    return run_blocking(task, turn=CHILDREN.reap_all).output


def copy() -> tuple[binaries.Binaries, Path]:
    pgdata = home() / "main"
    subprocess.run(["cp", "-r", template(), pgdata], check=True)
    pgdata.chmod(0o700)
    return binaries.find(pg_bin()), pgdata


@dropped
def test_what_people_built_upon_the_functions_keeps_them() -> None:
    programs, pgdata = copy()

    def single(*statements: str, dbname: str = "postgres") -> str:
        return do(jobs.single_user(programs, pgdata, statements, CHILDREN, dbname=dbname))

    functions = ["SET allow_system_table_mods = on", "CREATE SCHEMA pg_replica AUTHORIZATION pgr"]
    functions += ["CREATE FUNCTION pg_replica.one() RETURNS int LANGUAGE sql AS 'SELECT 1'"]
    functions += ["CREATE FUNCTION pg_replica.two() RETURNS int BEGIN ATOMIC SELECT pg_replica.one(); END"]
    functions += [f"ALTER FUNCTION pg_replica.{name}() OWNER TO pgr" for name in ("one", "two")]
    functions += ["GRANT EXECUTE ON FUNCTION pg_replica.one() TO pgr_monitor"]
    roles = [*jobs.roles_sql("x", os.urandom(16)), *sqlcatalog.ROLES.strip().split("\n")]
    granted = ['CREATE ROLE "Ann"', 'GRANT pgr_monitor TO "Ann" WITH ADMIN OPTION', 'GRANT pgr_admin TO "Ann"']
    single(*roles, *functions, "CREATE DATABASE app", *granted)
    single(*functions, "CREATE VIEW public.theirs AS SELECT pg_replica.two()", dbname="app")
    single(*(f"SELECT pg_create_physical_replication_slot('{name}')" for name in ("pgr_b", "theirs")))

    kept, grants = leave._clean(programs, pgdata, CHILDREN)
    assert grants == ['GRANT pgr_admin TO "Ann"', 'GRANT pgr_monitor TO "Ann" WITH ADMIN OPTION']
    names = [what.partition(":")[0] for what in kept]
    assert names == ["schema pg_replica in database app", "role pgr_monitor", "role pgr"]
    assert "view theirs depends on" in kept[0] or "view public.theirs depends on" in kept[0]
    slots = single("SELECT slot_name FROM pg_replication_slots")
    assert "theirs" in slots
    assert "pgr_b" not in slots
    assert "theirs" in single("SELECT viewname FROM pg_views", dbname="app")
    single("DROP VIEW public.theirs", dbname="app")
    assert leave._clean(programs, pgdata, CHILDREN)[0] == [], "again, once it is gone"
    left = single("SELECT 'left: ' || count(*) FROM pg_roles WHERE rolname LIKE 'pgr%'")
    assert "left: 0" in left


@dropped
def test_a_role_that_pgr_did_not_make_is_not_its_to_drop() -> None:
    programs, pgdata = copy()
    theirs = ["CREATE ROLE pgr_admin LOGIN", "CREATE ROLE ann IN ROLE pgr_admin"]
    do(jobs.single_user(programs, pgdata, theirs, CHILDREN))
    assert leave._clean(programs, pgdata, CHILDREN) == ([], [])
    found = do(jobs.single_user(programs, pgdata, ["SELECT rolname FROM pg_roles WHERE rolcanlogin"], CHILDREN))
    assert "pgr_admin" in found


@dropped
def test_settings_of_people_stay_and_pgrs_go() -> None:
    _, pgdata = copy()
    path = pgdata / "postgresql.auto.conf"
    node = settings.NodeSettings("10.0.0.1", 5441, "/r", "/h", "/i", "a", standby_names="ANY 1 (x)")
    owned = settings.owned_settings(node)
    text, _ = settings.auto_conf("enable_seqscan = 'off'\n", owned | {"work_mem": "9MB"})
    path.write_text(text, encoding="utf-8")
    leave._write_settings(pgdata, {"work_mem": "9MB"})
    stay = ["listen_addresses = '10.0.0.1'", "port = '5441'"]
    lines = ["enable_seqscan = 'off'", *stay, leave.ALONE, "work_mem = '9MB'"]
    assert path.read_text(encoding="utf-8").splitlines() == lines
    leave._write_settings(pgdata, {"work_mem": "9MB"})
    assert path.read_text(encoding="utf-8").splitlines() == lines, "twice, after a crash"


@dropped
def test_rules_go_where_postgres_looks_and_nothing_is_overwritten_without_a_copy() -> None:
    programs, pgdata = copy()
    before = (pgdata / "pg_hba.conf").read_bytes()
    cluster = ClusterState("0f", config='{"postgres.hba":["local all all peer"],"postgres.ident":["m a b"]}')
    leave._write_rules(programs, pgdata, CHILDREN, cluster)
    leave._write_rules(programs, pgdata, CHILDREN, cluster)
    assert (pgdata / "pg_hba.conf").read_text(encoding="utf-8") == "local all all peer\n"
    assert (pgdata / f"pg_hba.conf{leave.BEFORE}").read_bytes() == before
    assert (pgdata / "pg_ident.conf").read_text(encoding="utf-8").splitlines() == ["m a b"], "what was there is no more"
    # None of the people's: those that pgr had, with the map that they name.
    leave._write_rules(programs, pgdata, CHILDREN, ClusterState("0f"))
    assert "map=pgr_owner" in (pgdata / "pg_hba.conf").read_text(encoding="utf-8")
    assert "pgr_owner " in (pgdata / "pg_ident.conf").read_text(encoding="utf-8")
    with (pgdata / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write("ident_file = '/etc/elsewhere/pg_ident.conf'\n")
    said = leave._write_rules(programs, pgdata, CHILDREN, cluster)
    assert "; /etc/elsewhere/pg_ident.conf, which postgresql.conf names, needs these user name maps: ['m a b']" in said
    assert "pgr_owner " in (pgdata / "pg_ident.conf").read_text(encoding="utf-8"), "that is not the one that counts"
    assert "user name maps" not in leave._write_rules(
        programs, pgdata, CHILDREN, ClusterState("0f", config='{"postgres.hba":["local all all peer"]}')
    )
    with (pgdata / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write("hba_file = '/etc/elsewhere/pg_hba.conf'\n")
    assert "/etc/elsewhere/pg_hba.conf" in leave._write_rules(programs, pgdata, CHILDREN, cluster)
