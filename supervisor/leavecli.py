"""`pgr leave`: what a person types when the cluster has served its time."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from supervisor import leave as leaving
from supervisor.clioptions import DataOption, JsonOption, Where, put, talk
from supervisor.entry import read_config
from supervisor.errors import UsageError


def leave(
    ctx: typer.Context,
    *,
    pgdata: Annotated[
        Path | None, typer.Option("--pgdata", metavar="DIR", help="As given to pgr-supervise, if it was.")
    ] = None,
    pg_bin: Annotated[
        Path | None, typer.Option("--pg-bin", metavar="DIR", help="As given to pgr-supervise, if it was.")
    ] = None,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Make a plain Postgres again of the last member of a cluster, which is stopped.

    Its data directory loses pgr's settings, slots, roles and functions, and keeps what `pgr config` has set and the
    client rules. Run it on that host, as the user who owns the data directory.
    """
    where: Where = ctx.obj
    home = data or where.data
    if home is None:
        raise UsageError("which node?", "name its home: pgr leave --data DIR (or PGR_DATA)")
    given = {"data": home, "pgdata": pgdata, "pg_bin": pg_bin}
    left = leaving.leave(read_config({key: str(path) for key, path in given.items() if path}, os.environ))
    if as_json:
        put(json.dumps(asdict(left), indent=2) + "\n")
        return
    for sentence in left.done:
        talk(sentence)
    for what in left.kept:
        talk(f"warning: kept, as something of yours depends on it: {what}")
    if left.grants:
        talk(f"gone with pgr's roles; should pgr be used again: {'; '.join(left.grants)};")
    talk(f"{left.pgdata} is a plain Postgres's again; the rest of {home} can be removed. Start it with:")
    put(f"{left.start}\n")
