"""What the commands of `pgr` share: options, the node to talk to, stdout and stderr. Only parts of cli.py import it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from supervisor.admin import Admin, open_channel
from supervisor.errors import PgrError

COMPLETE_MS = 1_000
"""Whoever pressed TAB waits."""


def members_of(ctx: typer.Context, incomplete: str) -> list[str]:
    """For completion: the members that the node which is pointed at knows; none where it does not answer at once."""
    given = {name: value for one in (ctx.parent, ctx) if one is not None for name, value in one.params.items() if value}
    try:
        with Admin(open_channel(given.get("data"), given.get("node", ""), given.get("key"))) as admin:
            rows = admin.request("status", {}, idle_ms=COMPLETE_MS)["members"]
        return [str(row["name"]) for row in rows if str(row["name"]).startswith(incomplete)]
    except (PgrError, OSError, KeyError, TypeError):
        return []


DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="PGR_DATA", metavar="DIR", help="Home of a node of this machine.")
]
NodeOption = Annotated[str, typer.Option("--node", metavar="HOST:PORT", help="Consensus address of any member.")]
KeyOption = Annotated[
    Path | None,
    typer.Option("--cluster-key", envvar="PGR_CLUSTER_KEY_FILE", metavar="FILE", help="Cluster key, for `--node`."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=1, help="Give up waiting after this; what was begun goes on."),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Of the member.", show_default=False, autocompletion=members_of)
]
MEMBER_TIMEOUT_S = 600.0


@dataclass(slots=True)
class Where:
    """Which node to talk to, from the options before the command and those after it (which win)."""

    data: Path | None = None
    node: str = ""
    key: Path | None = None


def admin_of(ctx: typer.Context, data: Path | None, node: str, key: Path | None) -> Admin:
    where: Where = ctx.obj
    # An explicit --data of the command beats a --node before it, but the environment does not.
    chosen = node or ("" if data and data != where.data else where.node)
    return Admin(open_channel(data or where.data, chosen, key or where.key), lambda text: talk(f"warning: {text}"))


class ReaderGone(Exception):
    """Whoever read our stdout has left (``pgr history | head``). No OSError: typer would make EPIPE exit code 1."""


def put(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Or the interpreter would fail at its own last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise ReaderGone from None


def talk(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def on_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"
