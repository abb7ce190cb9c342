"""What is read once, when the cluster is founded: `[postgres]` of the file and the official image's variables. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from consensus.clusterwide import CHARS_MAX, HBA_TYPES, IDENT, BadSetting, has_expression
from consensus.clusterwide import lines as rules_of
from supervisor.errors import UsageError
from supervisor.options import Facts, make_path

SETTINGS_CHARS_MAX: Final = CHARS_MAX // 2
"""They stay in the log twice: as founded, and as set."""


@dataclass(frozen=True, slots=True)
class Founding:
    """Read once, when the cluster is created; later `pgr config`."""

    hba: tuple[str, ...] = ()
    ident: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    initdb: tuple[str, ...] = ()
    init_sql: Path | None = None
    """A file or a directory."""
    superuser: str = "postgres"
    database: str = "postgres"
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None


def load_founding(section: Mapping[str, Any], env: Mapping[str, str], file_path: Path | None, facts: Facts) -> Founding:
    where = f"[postgres] in {file_path}"
    base = str(file_path.parent) if file_path else facts.cwd
    password_file: Path | None = None
    for name, text, directory in (
        ("PGR_SUPERUSER_PASSWORD_FILE", env.get("PGR_SUPERUSER_PASSWORD_FILE"), facts.cwd),
        (
            "superuser_password_file",
            _string(section.get("superuser_password_file"), "superuser_password_file", where),
            base,
        ),
        ("POSTGRES_PASSWORD_FILE", env.get("POSTGRES_PASSWORD_FILE"), facts.cwd),
    ):
        if text and password_file is None:
            password_file = make_path(text, directory, name)
    if env.get("POSTGRES_PASSWORD") and env.get("POSTGRES_PASSWORD_FILE"):
        raise UsageError(
            "POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are both set", "keep one of them; the file is safer"
        )
    init_sql = _string(section.get("init_sql"), "init_sql", where)
    superuser = env.get("POSTGRES_USER") or "postgres"
    initdb = _strings(section.get("initdb", []), "initdb", where)
    if not initdb and env.get("POSTGRES_INITDB_ARGS"):
        import shlex

        try:
            initdb = tuple(shlex.split(env["POSTGRES_INITDB_ARGS"]))
        except ValueError as exc:
            raise UsageError(f"POSTGRES_INITDB_ARGS: {exc}", "close the quotes") from None
    _initdb_arguments(initdb)
    hba = _hba(_strings(section.get("hba", []), "hba", where), where)
    ident = _ident(_strings(section.get("ident", []), "ident", where), where)
    parameters = _parameters(section.get("parameters", {}), where)
    if len(json.dumps([hba, ident, parameters])) > SETTINGS_CHARS_MAX:
        raise UsageError(
            f"hba, ident and parameters in {where} take more than {SETTINGS_CHARS_MAX} characters",
            "found the cluster with fewer lines; `pgr config set` takes twice as many later",
        )
    return Founding(
        hba=hba,
        ident=ident,
        parameters=parameters,
        initdb=initdb,
        init_sql=make_path(init_sql, base, "init_sql")
        if init_sql
        else Path("/docker-entrypoint-initdb.d")
        if facts.image_initdb_dir
        else None,
        superuser=superuser,
        database=env.get("POSTGRES_DB") or superuser,
        password=None if password_file else env.get("POSTGRES_PASSWORD") or None,
        password_file=password_file,
    )


def _string(value: object, key: str, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise UsageError(f"{key} in {where} must be a string", f'write {key} = "..."')


def _strings(value: object, key: str, where: str) -> tuple[str, ...]:
    if isinstance(value, list) and all(
        isinstance(entry, str) and "\n" not in entry and "\0" not in entry for entry in value
    ):
        return tuple(value)
    raise UsageError(f"{key} in {where} must be a list of strings, one line each", f'write {key} = ["...", "..."]')


def _hba(lines: tuple[str, ...], where: str) -> tuple[str, ...]:
    for line in lines:
        words = line.split()
        if not words or words[0] not in HBA_TYPES or len(words) < (4 if words[0] == "local" else 5):
            raise UsageError(
                f"hba in {where}: {line!r} is not a line of pg_hba.conf",
                'for example "host all all 10.0.0.0/8 scram-sha-256"',
            )
    return lines


def _ident(lines: tuple[str, ...], where: str) -> tuple[str, ...]:
    """None that only a running Postgres can judge: pgr itself logs in by this file."""
    for line in lines:
        try:
            rules_of(IDENT, [line])
        except BadSetting as bad:
            raise UsageError(f"ident in {where}: {bad.reason}", bad.hint) from None
        if has_expression(line):
            raise UsageError(
                f"ident in {where}: {line!r} has a regular expression, which is checked by a primary's Postgres",
                "found the cluster without it; then `pgr config set postgres.ident=...`",
            )
    return lines


_OURS: Final = {
    "-D": "--data or --pgdata",
    "--pgdata": "--data or --pgdata",
    "-U": "POSTGRES_USER",
    "--username": "POSTGRES_USER",
    "--pwfile": "PGR_SUPERUSER_PASSWORD_FILE",
    "-W": "PGR_SUPERUSER_PASSWORD_FILE",
    "--pwprompt": "PGR_SUPERUSER_PASSWORD_FILE",
}


def _initdb_arguments(arguments: Sequence[str]) -> None:
    for argument in arguments:
        name = argument.partition("=")[0] if argument.startswith("--") else argument[:2]
        if name in _OURS:
            raise UsageError(f"initdb: {argument!r} is decided by pgr", f"use {_OURS[name]} instead")


def _parameters(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise UsageError(f"parameters in {where} must be a table", "write [postgres.parameters] on a line of its own")
    found: dict[str, str] = {}
    for name, setting in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?", name):
            raise UsageError(
                f"parameters in {where}: {name!r} is not the name of a setting",
                "names with a dot need quotes, as in \"auto_explain.log_min_duration\" = '1s'",
            )
        match setting:
            case bool():
                text = "on" if setting else "off"
            case int() | float() | str():
                text = str(setting)
            case dict():
                # An unquoted dotted key is a table to TOML: pg_stat_statements.max = 1000 means what it says.
                for inner, inner_text in _parameters(setting, where).items():
                    found[f"{name}.{inner}".lower()] = inner_text
                continue
            case _:
                raise UsageError(
                    f"parameters in {where}: {name} = {setting!r} has the wrong type", "write it in quotes"
                )
        if "\n" in text or "\0" in text:
            raise UsageError(f"parameters in {where}: {name} has a line break in it", "write it on one line")
        found[name.lower()] = text
    return found
