"""What destroys, or gives something up, is confirmed by its name: typed on a terminal, or by `--yes` in a script."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from supervisor.admin import Admin
from supervisor.clioptions import talk
from supervisor.errors import UsageError

NAME_DIGITS = 8
"""So much of its id is a cluster's name, as `pgr status` shows it."""

YesOption = Annotated[
    str,
    typer.Option("--yes", metavar="NAME", help="The name that is to be typed on a terminal.", show_default=False),
]


def confirm(what: str, name: str, given: str, *, always: bool = False) -> None:
    """``what`` is about to happen; ``given``: `--yes`. Without a terminal only what is ``always`` to be confirmed needs
    `--yes`: a script that names a node has said which. UsageError: not confirmed."""
    if not given and not _asks():
        if always:
            raise UsageError(f"{what}: this has to be confirmed", f"on a terminal, or with `--yes {name}`")
        return
    if not given:
        talk(what)
        sys.stderr.write(f"type {name} to go on: ")
        sys.stderr.flush()
        given = sys.stdin.readline().strip()
    if given != name:
        raise UsageError(f"not confirmed: `{given}` is not {name}", "nothing was done")


def confirm_loss(admin: Admin, given: str) -> None:
    """`pgr failover --accept-data-loss`, by the name of the cluster. UsageError: not confirmed."""
    if given or _asks():
        name = str(admin.request("status", {})["cluster_id"])[:NAME_DIGITS]
        confirm("commits that were acknowledged may be lost (`--dry-run` shows how much is known of)", name, given)


def _asks() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
