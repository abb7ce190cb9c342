"""`pgr leave`: the data directory of a cluster of one, stopped, becomes that of a plain Postgres again.

Of one, because only then nobody else can have been primary since: what the log here says last is what was. Postgres's
files are written first, pgr's mark goes last, so what was interrupted is simply done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from consensus import clusterwide
from consensus.cluster import ClusterState, apply, found
from consensus.clustertext import load
from consensus.storage import StorageError, open_store
from supervisor import adopting, binaries, controldata, files, firstrun, jobs, preflight, privileges, settings
from supervisor.children import ChildTable
from supervisor.config import Config
from supervisor.errors import RefusedError, UsageError
from supervisor.rebuild import read_mark
from supervisor.tasks import Task, run_blocking

T = TypeVar("T")
KEPT = ("listen_addresses", "port")
"""Of pgr's settings: clients find it where it was."""
ALONE = "synchronous_standby_names = ''"
"""The data directory's own files may name some, from before pgr: nobody is left who would answer, and commits hang."""
BEFORE = ".before_pgr_left"
"""Behind the name of a file that was there and is replaced."""
_OURS = ", ".join(f"'{name}'" for name in adopting.ROLES)
FOUND = (
    "SELECT 'pgr_found:' || json_build_object('databases',"  # noqa: S608  # names of roles, all of them ours
    " (SELECT json_agg(datname ORDER BY datname <> 'postgres' DESC, datname) FROM pg_database"
    " WHERE datallowconn AND datconnlimit <> -2), 'grants',"
    " (SELECT coalesce(json_agg(DISTINCT format('GRANT %I TO %I', r.rolname, m.rolname)"
    " || CASE WHEN g.admin_option THEN ' WITH ADMIN OPTION' ELSE '' END), '[]')"
    " FROM pg_auth_members g JOIN pg_authid r ON r.oid = g.roleid JOIN pg_authid m ON m.oid = g.member"
    f" WHERE r.rolname IN ({_OURS}) AND m.rolname NOT IN ({_OURS})"
    f" AND shobj_description(r.oid, 'pg_authid') = '{settings.OWN_ROLE}'))"
)
SLOTS = (
    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
    " WHERE slot_type = 'physical' AND slot_name LIKE 'pgr\\_%'"
)
# Without CASCADE: what people have built upon it is theirs, and keeps it.
SCHEMA = (
    "DO $$DECLARE f text; BEGIN"
    " IF to_regnamespace('pg_replica') IS NULL THEN RETURN; END IF;"
    " SELECT string_agg(oid::regprocedure::text, ', ') INTO f FROM pg_proc"
    " WHERE pronamespace = 'pg_replica'::regnamespace;"
    " IF f IS NOT NULL THEN EXECUTE 'DROP FUNCTION ' || f; END IF;"
    " DROP SCHEMA pg_replica; END$$"
)
ROLE = (
    "DO $$BEGIN IF EXISTS (SELECT FROM pg_authid WHERE rolname = '{0}'"
    f" AND shobj_description(oid, 'pg_authid') = '{settings.OWN_ROLE}') THEN DROP ROLE {{0}}; END IF; END$$"
)


@dataclass(frozen=True, slots=True)
class Left:
    """What was done, and what a person has to look after."""

    pgdata: str
    done: tuple[str, ...]
    kept: tuple[str, ...]
    start: str
    """The command that starts it."""
    grants: tuple[str, ...] = ()
    """SQL: who was granted pgr's roles, for when pgr is used again."""


def leave(config: Config) -> Left:
    """Raises PgrError: then the data directory is pgr's still."""
    pgdata = config.pgdata
    _refuse_strangers_hands(pgdata)
    if not read_mark(pgdata):
        raise RefusedError(
            f"{pgdata} is not a data directory of pgr", "name the node's home with --data, and --pgdata if it has one"
        )
    lock = preflight.lock_data(config.data)
    try:
        pid = (files.read_optional(pgdata / "postmaster.pid") or b"0").split(b"\n", 1)[0]
        if preflight.works_in(abs(int(pid)), pgdata):
            raise RefusedError(f"Postgres still runs in {pgdata}, process {int(pid)}", "wait until it is down")
        cluster, name = _last_known(config)
        others = [member.name for member in cluster.members if member.name != name]
        if others:
            raise RefusedError(
                f"the cluster has other members, of which one may have been primary since: {', '.join(others)}",
                f"start this node, {name}, again, let it be primary (pgr switchover --to {name}), take the others out "
                f"(pgr member remove {others[0]}), stop it, and then: pgr leave",
            )
        return _leave(config, cluster)
    finally:
        lock.release()


def _refuse_strangers_hands(pgdata: Path) -> None:
    """What root writes, Postgres could not read."""
    try:
        owner = pgdata.stat().st_uid
    except FileNotFoundError:
        raise UsageError(f"{pgdata} is not there", "name the node's home with --data, its data with --pgdata") from None
    if owner != os.geteuid():
        raise UsageError(
            f"{pgdata} belongs to user id {owner}, and this is {os.geteuid()}", f"sudo -u '#{owner}' pgr leave ..."
        )


def _last_known(config: Config) -> tuple[ClusterState, str]:
    """The cluster as the log here has it, and this node's name."""
    try:
        store = open_store(config.raft_dir / "raft.sqlite")
        try:
            stored = store.load()
        finally:
            store.close()
    except StorageError as error:
        raise RefusedError(
            f"the Raft state of this node can't be read: {error}",
            "without it nobody knows who was primary last: mend that first",
        ) from error
    identity, snapshot = stored.identity, stored.snapshot
    if identity is None or not identity.cluster_id:
        raise RefusedError(f"{config.raft_dir} knows no cluster", "name the node's home with --data")
    cluster = load(snapshot.data) if snapshot else found(identity.charter, identity.cluster_id)
    for entry in stored.entries:
        # The commit index on disk is only a hint (raft.py), and members count from the moment they are appended.
        if entry.index <= stored.hard.commit or entry.kind == "members/1":
            cluster = apply(cluster, entry)
    return cluster, identity.name


def _leave(config: Config, cluster: ClusterState) -> Left:
    pgdata, children = config.pgdata, ChildTable()
    programs = binaries.find(config.pg_bin)
    preflight.check_major(pgdata, programs.major, programs.bin_dir)
    control = _run(children, controldata.read(programs, pgdata, children))
    if control.state != "shut down":
        raise RefusedError(
            f"Postgres was not shut down as a primary: pg_control says {control.state!r}",
            "start pgr-supervise again, wait until it is primary (pgr status), and stop it with SIGTERM",
        )
    (pgdata / "standby.signal").unlink(missing_ok=True)
    done = [_write_settings(pgdata, clusterwide.parameters(cluster.config))]
    done.append(_write_rules(programs, pgdata, children, cluster))
    kept, grants = _clean(programs, pgdata, children)
    for name in (preflight.MARK, firstrun.DONE_MARK):
        (pgdata / name).unlink(missing_ok=True)
    files.sync_directory(pgdata)
    return Left(str(pgdata), tuple(done), tuple(kept), f"{programs.path('pg_ctl')} -D {pgdata} start", tuple(grants))


def _run(children: ChildTable, task: Task[T]) -> T:
    return run_blocking(task, turn=children.reap_all)


def _write_settings(pgdata: Path, parameters: Mapping[str, str]) -> str:
    """postgresql.auto.conf without pgr's block; what people have set by `pgr config` stays, as if by ALTER SYSTEM."""
    path = pgdata / "postgresql.auto.conf"
    text = (files.read_optional(path) or b"").decode(errors="surrogateescape")
    block = text.partition(settings.BEGIN)[2].splitlines()
    lines = [line for line in block if line.partition(" = ")[0] in KEPT] + [ALONE]
    lines += [f"{name} = {settings.quote(value)}" for name, value in parameters.items()]
    if block:
        foreign, _ = settings.auto_conf(text, {})
        bare = foreign.removesuffix(f"{settings.BEGIN}\n{settings.END}\n")
        files.write_atomically(path, (bare + "".join(f"{line}\n" for line in lines)).encode(errors="surrogateescape"))
    names = ", ".join(sorted({*KEPT, *parameters}))
    return f"pgr's settings are out of {path}; of those it had, these stay: {names}; no standby is waited for ({ALONE})"


def _write_rules(programs: binaries.Binaries, pgdata: Path, children: ChildTable, cluster: ClusterState) -> str:
    """The client rules of the cluster into the pg_hba.conf that Postgres will read, if that one lies in PGDATA."""
    place = ["-D", str(pgdata), "-c", f"data_directory={pgdata}"]
    named = _run(children, jobs.run_job([programs.path("postgres"), "-C", "hba_file", *place], children))
    path = Path(named.output.strip())
    if path.parent != pgdata:
        return f"client rules are those of {path}, which postgresql.conf names; pgr has not touched it"
    superuser = json.loads(cluster.settings).get("superuser", "postgres")
    user = privileges.current().name
    rules = settings.hba(cluster.setting(clusterwide.HBA), user, superuser).partition("# ---\n")[2]
    _replace(path, rules)
    told = f"the client rules of the cluster are in {path}; what was there is beside it ({BEFORE})"
    own = next(line for line in settings.ident(user, superuser).splitlines() if line.startswith("pgr_owner "))
    maps = [*cluster.setting(clusterwide.IDENT), *[own] * ("map=pgr_owner" in rules)]
    named = _run(children, jobs.run_job([programs.path("postgres"), "-C", "ident_file", *place], children))
    path = Path(named.output.strip())
    if path.parent != pgdata:
        more = f"; {path}, which postgresql.conf names, needs these user name maps: {maps}"
        return told + more * bool(maps)
    # Whole: a map that the cluster has taken away must not be in force again.
    _replace(path, "".join(f"{line}\n" for line in maps))
    return told


def _replace(path: Path, text: str) -> None:
    before = files.read_optional(path)
    if before == text.encode():
        return
    aside = path.with_name(path.name + BEFORE)
    if before is not None and not aside.exists():
        files.write_atomically(aside, before)
    files.write_atomically(path, text.encode())


def _clean(programs: binaries.Binaries, pgdata: Path, children: ChildTable) -> tuple[list[str], list[str]]:
    """Slots, functions and roles that pgr made; what could not be dropped, as something of others depends on it, and
    what was granted with the roles."""

    def single(*statements: str, dbname: str = "postgres") -> str:
        safe = ("SET search_path = pg_catalog", "SET allow_system_table_mods = on")
        task = jobs.single_user(programs, pgdata, [*safe, *statements], children, dbname=dbname)
        return _run(children, task).output

    kept, found = [], adopting.answer(single(SLOTS, FOUND))
    for name in found["databases"]:
        try:
            single(SCHEMA, dbname=name)
        except jobs.JobFailed as error:
            kept.append(f"schema pg_replica in database {name}: {_reason(error)}")
    revoke = [
        f"DO $$BEGIN IF to_regrole('{settings.REPLICATION_ROLE}') IS NOT NULL THEN"
        f" REVOKE EXECUTE ON FUNCTION {function} FROM {settings.REPLICATION_ROLE}; END IF; END$$"
        for function in jobs.REWIND_FUNCTIONS
    ]
    for role in reversed(adopting.ROLES):
        try:
            single(*revoke, ROLE.format(role))
        except jobs.JobFailed as error:
            kept.append(f"role {role}: {_reason(error)}")
    return kept, found["grants"]


def _reason(error: jobs.JobFailed) -> str:
    said = [line for line in error.tail if "ERROR:" in line or "DETAIL:" in line]
    return " ".join(line.partition("ERROR:")[2] or line.partition("DETAIL:")[2] for line in said).strip() or str(error)
