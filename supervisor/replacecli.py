"""``pgr member replace``: another machine takes the place of a member, under its name or another one. cli.py makes a
command of `member_replace`.

The node's part is `member.replace` and `member.add`; what is here waits for the new machine and says how to start it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from consensus.membership import VOTER, WITNESS
from fencing.clock import now_ns
from supervisor import render
from supervisor.admin import ACTION_IDLE_MS, Admin, Progress
from supervisor.clioptions import (
    MEMBER_TIMEOUT_S,
    DataOption,
    JsonOption,
    KeyOption,
    NodeOption,
    TimeoutOption,
    admin_of,
    members_of,
    put,
    talk,
)
from supervisor.errors import TryAgainError, UsageError

SECOND = 1_000_000_000
Status = dict[str, Any]


def member_replace(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="OLD", help="The member that is to go.", show_default=False, autocompletion=members_of),
    ],
    *,
    by: Annotated[
        str,
        typer.Option("--by", metavar="NEW", help="Name of the new machine's node; default: that of the old one.",
                     show_default=False, autocompletion=members_of),
    ] = "",
    timeout: TimeoutOption = MEMBER_TIMEOUT_S,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Another machine takes the place of a member: waits for it, and until it has its copy, its vote and its seat.

    Says how the new node is to be started; it may run already. Without `--by` it has the name of the old one, which
    must be down then. The old one goes last: there is never a vote or a copy less than before.
    """  # fmt: skip
    new, until_ns = by or name, now_ns() + int(timeout * SECOND)
    with admin_of(ctx, data, node, key) as admin:
        before = admin.request("status", {})
        old = row_of(before, name)
        if old is None:
            names = ", ".join(row["name"] for row in before["members"])
            raise UsageError(f"no member is named {name}", f"members: {names}")
        life = old["incarnation"] if new == name else ""
        if life and old["connected"]:
            hint = "stop it first, or give the new node another name (`--by NEW`); if it is the new one, it is let in"
            raise TryAgainError(f"{name} is up: nobody can take its place under its own name", hint)
        if not _is_here(before, new, life):
            talk(f"start the new node, with an empty data directory: {start_of(before, new, old['member'])}")
            _wait(admin, new, life, until_ns)
        left_ms = max(1000, (until_ns - now_ns()) // 1_000_000)
        if new == name:  # its life of before gave way as it was let in
            role = WITNESS if old["member"] == WITNESS else VOTER
            result = _ask(admin, "member.add", {"name": name, "role": role, "timeout_ms": left_ms})
        else:
            result = _ask(admin, "member.replace", {"name": name, "by": new, "timeout_ms": left_ms})
    shown = render.member_changed("member.replace", result) if new != name else f"{name}: replaced\n"
    put(json.dumps(result, indent=2) + "\n" if as_json else shown)


def row_of(status: Status, name: str) -> dict[str, Any] | None:
    return next((row for row in status["members"] if row["name"] == name), None)


def start_of(status: Status, name: str, role: str) -> str:
    """The command, with what is the same on every machine of this cluster."""
    up = [row for row in status["members"] if row["connected"] and row["name"] != name]
    first = next((row for row in up if row["role"] == "primary"), up[0] if up else None)
    join = first["raft"] if first is not None else "HOST:PORT"
    witness = " --witness" if role == WITNESS else ""
    return f"pgr-supervise --data DIR --name {name}{witness} --listen HOST:PORT --join {join} --cluster-key FILE"


def _is_here(status: Status, name: str, life: str) -> bool:
    """Is there a member of this name, in another life than ``life``?"""
    row = row_of(status, name)
    return row is not None and row["incarnation"] != life


def _wait(admin: Admin, name: str, life: str, until_ns: int) -> None:
    for status in admin.watch():
        if _is_here(status, name, life):
            talk(f"{name} is let in")
            return
        if now_ns() >= until_ns:
            break
    raise TryAgainError(f"{name} has not asked to be let in", "look at its log; then ask again: nothing was changed")


def _ask(admin: Admin, request: str, body: dict[str, Any]) -> dict[str, Any]:
    def say(step: Progress) -> None:
        talk(step.text or step.event)

    return admin.request(request, body, idle_ms=ACTION_IDLE_MS, on_progress=say)
