"""``pgr pause``, ``resume``, ``restart``, ``reload``, ``reinit``, ``fence``, ``unfence``, and what is scheduled. cli.py
makes commands of these functions.

cli.py imports this, so its parts are reached when a command runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from supervisor.admin import ACTION_IDLE_MS, Admin, Progress, who
from supervisor.clioptions import (
    MEMBER_TIMEOUT_S,
    DataOption,
    JsonOption,
    KeyOption,
    NameArgument,
    NodeOption,
    TimeoutOption,
    admin_of,
    members_of,
    put,
    talk,
)
from supervisor.confirm import YesOption, confirm
from supervisor.errors import TryAgainError, UsageError

PAUSE_TIMEOUT_S = 60.0
RESTART_TIMEOUT_S = 300
A_DAY_MS = 86_400_000
"""A restart ends by the limits that the leader keeps, node by node."""
NOT_RELOADED = "not reloaded"


class RoleOfNode(StrEnum):
    """As `pgr status` shows it."""

    PRIMARY = "primary"
    REPLICA = "replica"


WaitOption = Annotated[
    bool, typer.Option("--wait", "-w", help="Wait until every member that is up has taken note, not only one.")
]
AtOption = Annotated[
    str, typer.Option("--at", metavar="TIME", help="Do it then: ISO 8601 with a zone, or `+5m`, `+1h30m` from now.")
]
FromOption = Annotated[
    str,
    typer.Option("--from", metavar="NAME", help="Whom to copy: a standby that streams; default: the primary.",
                 show_default=False, autocompletion=members_of),
]  # fmt: skip
CancelOption = Annotated[bool, typer.Option("--cancel", help="Forget what is scheduled.")]


def _say(step: Progress) -> None:
    talk(step.text or step.event)


def _ask(admin: Admin, name: str, body: Mapping[str, Any], timeout_ms: float) -> dict[str, Any]:
    asked = {"by": who(), "timeout_ms": int(timeout_ms), **body}
    return admin.request(name, asked, idle_ms=ACTION_IDLE_MS, on_progress=_say)


def _print(result: Mapping[str, Any], as_json: bool, text: str) -> None:
    put(json.dumps(result, indent=2) + "\n" if as_json else text)


def pause(
    ctx: typer.Context,
    *,
    wait: WaitOption = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Give up waiting after this.")
    ] = PAUSE_TIMEOUT_S,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """No automatic action until `pgr resume`: nobody is promoted, restarted or copied anew unless a person asks.

    What a person asks for (switchover, failover, restart, reinit) is done. The lease stays in force: a primary that
    loses the majority is fenced in pause too, and gets its place back once it has the majority again.
    """
    with admin_of(ctx, data, node, key) as admin:
        result = _ask(admin, "pause", {"wait": wait}, timeout * 1000)
    _print(result, as_json, "paused\n" if result["changed"] else "paused already\n")


def resume(
    ctx: typer.Context,
    *,
    wait: WaitOption = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Give up waiting after this.")
    ] = PAUSE_TIMEOUT_S,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """End a pause: what has to be done is done by itself again."""
    with admin_of(ctx, data, node, key) as admin:
        result = _ask(admin, "resume", {"wait": wait}, timeout * 1000)
    _print(result, as_json, "resumed\n" if result["changed"] else "not paused\n")


def restart(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Whose Postgres.", show_default=False, autocompletion=members_of),
    ] = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="All of them: standbys first, one at a time, the primary last.")
    ] = False,
    pending: Annotated[
        bool, typer.Option("--pending", help="Only where a setting waits for a restart; without a NAME of all.")
    ] = False,
    role: Annotated[
        RoleOfNode | None,
        typer.Option("--role", help="Only the primary, or only replicas; without a NAME of all.", show_default=False),
    ] = None,
    pg_version: Annotated[
        str,
        typer.Option("--pg-version", metavar="VERSION", help="Only where Postgres is older; without a NAME of all."),
    ] = "",
    at: AtOption = "",
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Forget what is scheduled; one under way stops after the node it is at.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also if writes then wait for the node that is away.")] = False,
    timeout: Annotated[
        int, typer.Option("--timeout", metavar="SECONDS", min=1, help="For each node to be back.")
    ] = RESTART_TIMEOUT_S,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Restart Postgres on one node, or on several, one after the other; stops at the first that does not come back.

    The primary named alone is restarted in place: stopped cleanly, and promoted again. Among several it comes last and
    hands over to a standby that is back: the shorter gap.
    """
    if cancel:
        with admin_of(ctx, data, node, key) as admin:
            cancelled(admin, "restart", as_json)
        return
    chosen = pending or role is not None or bool(pg_version)
    if bool(names) == every and (every or not chosen):
        both = "`--all` and names exclude each other" if every else "whose Postgres is to be restarted?"
        raise UsageError(both, "name a node, or `--all`, or `--pending` for those that wait for it")
    body: dict[str, Any] = {"nodes": names or None, "pending": pending, "force": force, "timeout_s": timeout}
    conditions = {"at": at, "role": role.value if role else "", "pg_version": pg_version}
    body |= {key: value for key, value in conditions.items() if value}
    with admin_of(ctx, data, node, key) as admin:
        result = _ask(admin, "restart", body, A_DAY_MS)
    if "scheduled" in result:
        scheduled(result, as_json)
    else:
        names_back = ", ".join(result["restarted"])
        nothing = "no node is such, none was restarted" if role or pg_version else "nothing waits for a restart"
        _print(result, as_json, f"restarted: {names_back}\n" if names_back else f"{nothing}\n")


def reload(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Whose Postgres; default: all.", show_default=False,
                       autocompletion=members_of),
    ] = None,
    *,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Give up waiting after this.")
    ] = PAUSE_TIMEOUT_S,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Have Postgres read its files again, on one node or on all, and see what then waits for a restart."""
    with admin_of(ctx, data, node, key) as admin:
        result = _ask(admin, "reload", {"nodes": names or None}, timeout * 1000)
    found: dict[str, str] = result["nodes"]
    lines = [f"{n}: {text if text.startswith(NOT_RELOADED) else f'reloaded; {text}' if text else 'reloaded'}\n"
             for n, text in found.items()]  # fmt: skip
    _print(result, as_json, "".join(lines))
    left = [n for n, text in found.items() if text.startswith(NOT_RELOADED)]
    if left:
        raise TryAgainError(f"{', '.join(left)}: {NOT_RELOADED}", "see `pgr status`; a start reads the files anyway")


def switch_later(admin: Admin, to: str | None, at: str, as_json: bool) -> None:
    """`pgr switchover --at`."""
    scheduled(_ask(admin, "switchover", {"to": to, "at": at}, PAUSE_TIMEOUT_S * 1000), as_json)


def scheduled(result: Mapping[str, Any], as_json: bool) -> None:
    _print(result, as_json, f"scheduled: {result['scheduled']} at {result['at']}\n")


def cancelled(admin: Admin, what: str, as_json: bool) -> None:
    result = _ask(admin, "schedule.cancel", {"what": what}, PAUSE_TIMEOUT_S * 1000)
    _print(result, as_json, f"cancelled: {result['cancelled']}\n")


# -- one node's Postgres ---------------------------------------------------------------------------------------------


def reinit(
    ctx: typer.Context,
    name: NameArgument,
    *,
    source: FromOption = "",
    yes: YesOption = "",
    timeout: TimeoutOption = MEMBER_TIMEOUT_S,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Rebuild one standby: a new copy, swapped in when complete; the old one is moved to DIR/salvage."""
    with admin_of(ctx, data, node, key) as admin:
        confirm(f"{name} gets a new copy; what it has now is moved to its DIR/salvage", name, yes)
        body = {"name": name} | ({"from": source} if source else {})
        _change_member(admin, "reinit", body, timeout, as_json)


def fence(
    ctx: typer.Context,
    name: NameArgument,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also if nobody can take over, or writes then wait for the others.")
    ] = False,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Keep a node's Postgres down until told otherwise, over restarts; a primary hands over first. It still votes."""
    with admin_of(ctx, data, node, key) as admin:
        _change_member(admin, "fence", {"name": name, "force": force}, timeout, as_json)


def unfence(
    ctx: typer.Context,
    name: NameArgument,
    *,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Let a fenced node's Postgres run again."""
    with admin_of(ctx, data, node, key) as admin:
        _change_member(admin, "unfence", {"name": name}, 60.0, as_json)


def _change_member(admin: Admin, name: str, body: dict[str, Any], timeout_s: float, as_json: bool) -> None:
    from supervisor import cli

    cli._change_member(admin, name, body, timeout_s, as_json)


COMMANDS = (pause, resume, restart, reload, reinit, fence, unfence)
