"""A stand-alone Postgres is brought in (`--pgdata`): looked at before the founding, made the cluster's after it.

Before the founding nothing is changed, and what can be seen from outside is refused there. After it, on the founder:
crash recovery if it was not shut down cleanly, one look inside, pgr's roles; a refusal then is no loss either, since
the data directory gets its mark last, and plain Postgres still starts in it. The rules are in adopting.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from consensus import clusterwide
from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import adopting, controldata, files, firstrun, jobs, settings
from supervisor.context import Context
from supervisor.controldata import ControlData, ControlDataError
from supervisor.errors import MissingError, PgrError, RefusedError
from supervisor.tasks import Task, TaskTimeout, run_blocking

LOOK_MS = 5_000


def before_founding(c: Context) -> tuple[str, str, tuple[int, str, str] | None]:
    """For the Raft child: system identifier, what comes with the data (`founding.Greeting.brings`), and why it can't be
    brought in (exit code, reason, hint), which it says if there is no cluster yet. Of a member's data it is no matter:
    `datadir.look` judges that. Raises RefusedError (78) for what is damaged.
    """
    pgdata = c.config.pgdata
    until_ns = now_ns() + LOOK_MS * MS
    try:
        control = run_blocking(controldata.read(c.binaries, pgdata, c.children), until_ns)
    except (ControlDataError, TaskTimeout) as error:
        hint = f"repair it, or move {pgdata} away"
        raise RefusedError(f"{pgdata} cannot be brought into a cluster: {error}", hint) from error
    if not os.access(pgdata.parent, os.W_OK | os.X_OK):
        text = f"{pgdata.parent} is not ours to write to: a copy that replaces {pgdata.name} one day is made beside it"
        c.log.warning("config.warning", text=f"{text}; chown it to this user")
    identifier = str(control.system_identifier)
    try:
        return identifier, _what_comes_along(c, control, until_ns), None
    except PgrError as error:
        return identifier, "{}", (int(error.exit_code), error.message, error.hint)


def _what_comes_along(c: Context, control: ControlData, until_ns: int) -> str:
    """Raises RefusedError (78), MissingError (69)."""
    pgdata, founding = c.config.pgdata, c.config.founding
    _refuse_unfit(pgdata, control)
    hba = list(founding.hba) or _rules(c, clusterwide.HBA, until_ns)
    ident = list(founding.ident)
    if not ident and adopting.uses_maps(hba):
        ident = _rules(c, clusterwide.IDENT, until_ns)
    return adopting.brings(hba, ident, control.wal_level, founding.parameters)


def _refuse_unfit(pgdata: Path, control: ControlData) -> None:
    signals = [name for name in adopting.SIGNALS if (pgdata / name).exists()]
    _refuse(adopting.refusal(str(pgdata), control.state, signals))
    _check_mode(pgdata)


def _refuse(refusal: adopting.Refusal | None) -> None:
    if refusal is not None:
        raise RefusedError(refusal.why, refusal.hint)


def _check_mode(pgdata: Path) -> None:
    """Postgres itself would not start, but only after the founding."""
    mode = pgdata.stat().st_mode & 0o777
    if mode & 0o027:
        raise MissingError(
            f"{pgdata} can be read or written by others (mode {mode:04o}), so Postgres does not start in it",
            f"chmod 0700 {pgdata} (or 0750)",
        )


def _rules(c: Context, setting: str, until_ns: int) -> list[str]:
    """Of the pg_hba.conf or pg_ident.conf that its configuration names; none: there is no such file."""
    key, example = setting.removeprefix("postgres."), clusterwide.EXAMPLES[setting]
    maps = settings.ident(c.os_user, c.config.founding.superuser).splitlines()
    own = maps if setting == clusterwide.IDENT else ()
    path = Path(_configured(c, f"{key}_file", until_ns))
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MissingError(
            f"the client rules in {path} can't be read: {error.strerror}",
            f"let this user read it, or give [postgres] {key}",
        ) from error
    try:
        return adopting.rules_in(text, setting, own)
    except adopting.BadRules as error:
        raise RefusedError(
            f"the client rules in {path} can't be taken over: {error}",
            f"say in {c.config.data}/pgr.toml who may log in, as in: [postgres] "
            f'{key} = ["{example}"]; pgr then leaves that file alone',
        ) from error


def _configured(c: Context, name: str, until_ns: int) -> str:
    """What the configuration files of the data directory say, as Postgres reads them, without starting it."""
    place = ["-D", str(c.config.pgdata), "-c", f"data_directory={c.config.pgdata}"]
    try:
        done = run_blocking(jobs.run_job([c.binaries.path("postgres"), "-C", name, *place], c.children), until_ns)
    except (jobs.JobFailed, TaskTimeout) as error:
        raise MissingError(
            f"Postgres can't read the configuration of {c.config.pgdata}: {error}",
            f"mend it until this prints a file: {c.binaries.path('postgres')} -C {name} -D {c.config.pgdata}",
        ) from error
    return done.output.strip()


def refuse_another(c: Context, there: str) -> None:
    """Where the cluster was founded to take over data: nothing else does. ``there``: system identifier of what this
    node has; empty: nothing. Raises RefusedError (78)."""
    expected, pgdata = str(c.founding().get("adopts", "")), c.config.pgdata
    if expected and there != expected:
        what = f"{pgdata} is another one ({there})" if there else f"{pgdata} is empty"
        raise RefusedError(
            f"the cluster was founded to take over the data directory with system identifier {expected}, and {what}",
            "name that data directory with --pgdata, at every start",
        )


def take_over(c: Context) -> Task[str]:
    """Make it the cluster's first copy; the caller writes the mark. Returns a sentence for the history.

    Raises RefusedError (78): then it is as plain Postgres would have left it after a start and a stop.
    """
    pgdata = c.config.pgdata
    control = yield from controldata.read(c.binaries, pgdata, c.children)
    refuse_another(c, str(control.system_identifier))
    _refuse_unfit(pgdata, control)  # the founding may have taken days
    if not control.clean:
        c.log.info(
            "data.recovering", state=control.state, hint="it was not shut down cleanly: its WAL is replayed first"
        )
    owned = settings.owned_settings(_as_it_will_be(c))
    in_force = {"wal_level": owned["wal_level"], "wal_log_hints": "on", "fsync": "on", "full_page_writes": "on"}
    try:
        look = yield from jobs.single_user(
            c.binaries, pgdata, [adopting.look_sql(owned)], c.children, settings=in_force
        )
    except jobs.JobFailed as error:
        raise RefusedError(
            f"Postgres does not start in {pgdata}: {error}",
            "pgr needs it to start, with a database postgres in it: try it without pgr, mend what it says, stop it, "
            "then start pgr-supervise again",
        ) from error
    found = adopting.found(look.output)
    if found.strangers:
        _refuse(adopting.strangers_refused(found.strangers, str(pgdata)))
    # Whatever is set for this database must not stand between.
    statements = ["SET default_transaction_read_only = off", "SET search_path = pg_catalog"]
    statements += jobs.roles_sql(c.cluster.replication_password, os.urandom(16))
    yield from jobs.single_user(c.binaries, pgdata, statements, c.children, settings=in_force)
    # Init scripts are for new clusters, as in the official image.
    files.write_atomically(pgdata / firstrun.DONE_MARK, b"")
    return _tell(c, control, found, owned)


def _as_it_will_be(c: Context) -> settings.NodeSettings:
    return settings.NodeSettings(
        c.config.pg_listen, c.config.pg_port, str(c.postgres.socket_dir), str(c.postgres.hba_file),
        str(c.postgres.ident_file), c.config.name, parameters=clusterwide.parameters(c.cluster.config),
    )  # fmt: skip


def _tell(c: Context, control: ControlData, found: adopting.Found, owned: dict[str, str]) -> str:
    rules = len(c.cluster.setting(clusterwide.HBA))
    overruled = adopting.overruled(found.settings, owned)
    hints_only = not control.checksums
    sentences = adopting.report(rules, overruled, found.slots, hints_only=hints_only)
    c.log.warning(
        "data.adopted", pgdata=c.config.pgdata, text="; ".join(sentences), client_rules=rules, overruled=overruled,
        slots=[name for name, _ in found.slots],
    )  # fmt: skip
    return "; ".join([f"brought in the data directory {c.config.pgdata}", *sentences])
