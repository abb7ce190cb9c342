"""What is run once, on the founder, before clients are ever let in: the asked-for database and the init scripts.

No standby exists yet, so these commit with synchronous_commit=local; whatever they wrote is in the first base backup.
"""

from __future__ import annotations

from pathlib import Path

from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import files, jobs, settings, sql
from supervisor.context import Context, StepFailed
from supervisor.tasks import Task

DONE_MARK = "pgr_initialised"
"""In PGDATA: the scripts ended well; they are not run again if the founder starts anew before it first opened."""


def first_run(c: Context) -> Task[None]:
    """Raises StepFailed, with the script's own words, if one fails: the cluster then stays closed and says why."""
    founding = c.config.founding
    mark = c.config.pgdata / DONE_MARK
    if c.cluster.was_opened or mark.exists():
        return
    if founding.database != "postgres":
        yield from _create_database(c, founding.database, founding.superuser)
    for script in _scripts(c, founding.init_sql):
        yield from _run(c, script, founding.database, founding.superuser)
    files.write_atomically(mark, b"")


def _create_database(c: Context, name: str, owner: str) -> Task[None]:
    session = yield from sql.connect(c.own_conninfo(), now_ns() + 5_000 * MS)
    try:
        yield from session.query("SET synchronous_commit = local")
        there = yield from session.query("SELECT 1 FROM pg_database WHERE datname = $1", (name,))
        if not there:
            yield from session.query(f"CREATE DATABASE {_identifier(name)} OWNER {_identifier(owner)}")
    finally:
        session.close()


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _scripts(c: Context, place: Path | None) -> list[Path]:
    """One file, or those of a directory in the order of their names."""
    if place is None or not place.exists():
        return []
    if place.is_file():
        return [place]
    found: list[Path] = []
    for path in sorted(place.iterdir()):
        if path.suffix == ".sql":
            found.append(path)
        else:
            c.log.warning("init_sql.skipped", file=str(path), hint="only .sql files are run")
    return found


def _run(c: Context, script: Path, database: str, superuser: str) -> Task[None]:
    """By psql, as the superuser, past the gate."""
    if not c.binaries.has("psql"):
        raise StepFailed(f"{script} needs psql, which {c.binaries.bin_dir} does not have")
    conninfo = settings.conninfo(
        host=str(c.postgres.socket_dir),
        port=c.config.pg_port,
        user=settings.ROLE,
        dbname=database,
        application_name="pgr_init",
        options=f"-c role={superuser} -c default_transaction_read_only=off -c synchronous_commit=local",
    )
    c.log.info("init_sql.begin", file=str(script))
    try:
        result = yield from jobs.run_job(
            [c.binaries.path("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", conninfo, "-f", str(script)],
            c.children,
        )
    except jobs.JobFailed as error:
        raise StepFailed(f"init script {script} failed: {error}") from error
    c.log.info("init_sql.end", file=str(script), took_ms=result.took_ms)
