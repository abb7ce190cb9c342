"""The primary's Postgres is asked about settings that are to be set, before they enter the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consensus import clusterwide
from consensus.clusterwide import BadSetting
from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import files, parameters, settings, sql
from supervisor.context import Context, StepFailed
from supervisor.parameters import Known
from supervisor.tasks import Outcome, Task, TaskTimeout

QUERY_MS = 5_000
_ROWS = (
    "SELECT name, vartype, coalesce(unit, ''), coalesce(min_val, ''), coalesce(max_val, ''),"
    " coalesce(array_to_string(enumvals, ','), ''), context, coalesce(setting, ''), coalesce(boot_val, '')"
    " FROM pg_settings"
)
_PRELOADS = ("shared_preload_libraries", "session_preload_libraries", "local_preload_libraries")
NO_SUCH_FILE = "58P01"


def check(c: Context, token: str, body: Mapping[str, Any]) -> Task[None]:
    """Answers `config.check` with `node.checked`, whatever happens."""
    try:
        rules = {name: body.get(name.removeprefix("postgres.")) for name in clusterwide.RULES}
        notes = yield from _check(c, body["parameters"], rules)
        told: dict[str, Any] = {"ok": True, "notes": notes}
    except BadSetting as bad:
        told = {"ok": False, "code": bad.code, "error": bad.reason, "hint": bad.hint}
    except (sql.SqlFailure, StepFailed, TaskTimeout, OSError) as error:
        told = {"ok": False, "code": 75, "error": f"Postgres could not be asked: {error}", "hint": "try again"}
    c.raft.tell("node.checked", told, token)


def done(outcome: Outcome[None]) -> None:
    """A failure that is none of those above is a bug."""
    outcome.unwrap()


def _check(
    c: Context, wanted: Mapping[str, str | None], rules: Mapping[str, list[str] | None]
) -> Task[list[str]]:
    session = yield from sql.connect(c.own_conninfo(), now_ns() + QUERY_MS * MS)
    try:
        rows = yield from session.query(_ROWS, until_ns=now_ns() + QUERY_MS * MS)
        known = {str(row[0]).lower(): _known(row) for row in rows}
        notes = []
        for name, value in sorted(wanted.items()):
            parameters.refuse(known, name, value)
            row = known.get(name)
            if row is None:
                if value is not None:
                    notes.append(f"{name}: not known to this Postgres; right if it is of an extension or your own")
                continue
            if parameters.lowers(row, value):
                why = "a standby does not start with less than its primary had, and every start by pgr is a standby's"
                raise BadSetting(f"{name} is {row.setting} and can't become less: {why}", "leave it as it is", 78)
            if value is not None:
                yield from _try(session, row, value)
            notes.append(parameters.note(row))
        for name, lines in rules.items():
            if lines is not None:
                yield from _rules(c, session, name, lines)
        return notes
    finally:
        session.close()


def _known(row: sql.Row) -> Known:
    name, vartype, unit, low, high, choices, context, setting, boot = (cell or "" for cell in row)
    return Known(name, vartype, unit, low, high, tuple(choices.split(",")), context, setting, boot)


def _try(session: sql.Session, row: Known, value: str) -> Task[None]:
    """What Postgres itself can judge without keeping it: settings of a session, and libraries that must be there."""
    if row.context in ("user", "superuser"):
        try:
            query = "SELECT set_config($1, $2, true)"
            yield from session.query(query, (row.name, value), until_ns=now_ns() + QUERY_MS * MS)
        except sql.SqlError as error:
            hint = error.hint or error.detail or "give another value"
            raise BadSetting(f"{row.name}: {error.message}", hint) from error
    libraries = value.split(",") if row.name in _PRELOADS else []
    for library in (name.strip().strip("\"'") for name in libraries):
        if not library:
            continue
        try:
            quoted = "'" + library.replace("'", "''") + "'"
            yield from session.query(f"LOAD {quoted}", until_ns=now_ns() + QUERY_MS * MS)
        except sql.SqlError as error:
            if error.sqlstate == NO_SUCH_FILE:
                why = f"{row.name}: {error.message}: no node would start any more"
                raise BadSetting(why, "install the library on every node first") from error


def _rules(c: Context, session: sql.Session, name: str, rules: list[str]) -> Task[None]:
    """Postgres reads the file for this view only; what is in force changes with a reload, and this process alone asks
    for one. The old text is back before this returns."""
    superuser = c.founding().get("superuser", "postgres")
    if name == clusterwide.HBA:
        path, text = c.postgres.hba_file, settings.hba(rules, c.os_user, superuser)
        query = "SELECT line_number::text, error FROM pg_hba_file_rules WHERE error IS NOT NULL"
    else:
        path, text = c.postgres.ident_file, settings.ident(c.os_user, superuser, rules)
        query = "SELECT line_number::text, error FROM pg_ident_file_mappings WHERE error IS NOT NULL"
    before, tried = files.read_optional(path), text.encode(errors="surrogateescape")
    if before is None:
        raise StepFailed(f"there is no {path}")
    files.write_atomically(path, tried)
    try:
        rows = yield from session.query(query, until_ns=now_ns() + QUERY_MS * MS)
        if files.read_optional(path) != tried:
            raise StepFailed(f"{path} was written meanwhile")
    finally:
        if files.read_optional(path) == tried:
            files.write_atomically(path, before)
    if rows:
        at, told = int(rows[0][0] or 1) - 1, text.splitlines()
        line = told[at] if at < len(told) else "a file that it names"
        hint = f"see the chapter on {path.name} in Postgres's manual"
        raise BadSetting(f"{name}: {line!r}: {rows[0][1]}", hint)
