"""``pgr``, the admin command. Data on stdout, talk on stderr; every refusal says why and ends with a hint.

Nothing but this, its parts (*cli.py), clioptions.py and confirm.py imports typer. Help texts end up in REFERENCE.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from fencing.clock import now_ns
from supervisor import doctorcli, eventscli, leavecli, operating, opscli, recovercli, render, replacecli
from supervisor.admin import ACTION_IDLE_MS, Admin, Progress, error_of, who, write_private
from supervisor.clioptions import (
    MEMBER_TIMEOUT_S,
    DataOption,
    JsonOption,
    KeyOption,
    NameArgument,
    NodeOption,
    ReaderGone,
    TimeoutOption,
    Where,
    admin_of,
    members_of,
    on_terminal,
    put,
    talk,
)
from supervisor.configcli import config_app
from supervisor.confirm import YesOption, confirm, confirm_loss
from supervisor.errors import PgrError, TryAgainError, UsageError, exit_for
from supervisor.errors import explain as error_text
from supervisor.status import Snapshot, from_json, lease_left_ms, member_rows

app = typer.Typer(
    name="pgr",
    help="Look at and steer a PostgreSQL cluster run by pgr-supervise.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
member_app = typer.Typer(
    help="Members: who votes, who has a copy, who comes and who goes.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(member_app, name="member")
key_app = typer.Typer(help="Cluster keys.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(key_app, name="key")
app.add_typer(config_app, name="config")
app.command()(eventscli.history)
app.command()(eventscli.events)
app.command()(recovercli.recover)


DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say who would win and what would be lost; change nothing.")
]
ToOption = Annotated[
    str | None,
    typer.Option("--to", metavar="NAME", help="The next primary; default: the best.", autocompletion=members_of),
]


@app.callback()
def root(ctx: typer.Context, data: DataOption = None, node: NodeOption = "", key: KeyOption = None) -> None:
    ctx.obj = Where(data, node, key)


@app.command()
def status(
    ctx: typer.Context,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again whenever something changes.")] = False,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Members with role, state, timeline, LSN, lag and sync; then warnings and why it is so.

    What is left of its lease the primary alone can tell: it is shown when that one is asked.
    """
    with admin_of(ctx, data, node, key) as admin:
        if not watch:
            _show_status(admin.request("status", {}), as_json)
            return
        for body in admin.watch():
            if not as_json and on_terminal():
                put("\x1b[H\x1b[J")
            _show_status(body, as_json, line=True)


def _show_status(body: dict[str, Any], as_json: bool, line: bool = False) -> None:
    """A status as it came, as JSON (one ``line`` each when watching) or as a page."""
    if as_json:
        put(json.dumps(body, indent=None if line else 2) + "\n")
        return
    now = now_ns()
    snapshot = _snapshot(body, now)
    colour = on_terminal() and not os.environ.get("NO_COLOR")
    put(render.status(snapshot, lease_left_ms(snapshot, now), colour))
    if line and not on_terminal():
        put("\n")


def _snapshot(body: dict[str, Any], now: int) -> Snapshot:
    try:
        return from_json(body, now)
    except (KeyError, TypeError, ValueError) as error:
        hint = "is `pgr` as new as the node? compare with `pgr version`; `--json` shows it as it came"
        raise TryAgainError(f"the node sent a status that this pgr can't read: {error}", hint) from error


@app.command()
def switchover(
    ctx: typer.Context,
    *,
    to: ToOption = None,
    at: opscli.AtOption = "",
    cancel: opscli.CancelOption = False,
    dry_run: DryRunOption = False,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Hand the primary role over in an orderly way; no acknowledged write is lost."""
    with admin_of(ctx, data, node, key) as admin:
        if cancel:
            opscli.cancelled(admin, "switchover", as_json)
        elif at and not dry_run:
            opscli.switch_later(admin, to, at, as_json)
        else:
            _change(admin, "switchover", {"to": to, "timeout_ms": int(timeout * 1000)}, as_json, dry_run)


@app.command()
def failover(
    ctx: typer.Context,
    *,
    to: ToOption = None,
    accept_data_loss: Annotated[
        bool, typer.Option("--accept-data-loss", help="Go on even if acknowledged writes may be lost.")
    ] = False,
    yes: YesOption = "",
    dry_run: DryRunOption = False,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Make another member primary although the present one does not help, as far as safety allows."""
    with admin_of(ctx, data, node, key) as admin:
        if accept_data_loss and not dry_run:
            confirm_loss(admin, yes)
        body = {"to": to, "accept_data_loss": accept_data_loss, "timeout_ms": int(timeout * 1000)}
        _change(admin, "failover", body, as_json, dry_run)


def _change(admin: Admin, name: str, body: dict[str, Any], as_json: bool, dry_run: bool) -> None:
    def say(step: Progress) -> None:
        talk(step.text or step.event)

    body |= {"by": who()}
    if dry_run:
        found = admin.request(name, body | {"dry_run": True})
        put(json.dumps(found, indent=2) + "\n" if as_json else render.dry_run(name, found))
        if found["refusal"] is not None:
            raise error_of(found["refusal"])
        return
    result = admin.request(name, body, idle_ms=ACTION_IDLE_MS, on_progress=say)
    put(json.dumps(result, indent=2) + "\n" if as_json else render.change(result))


@app.command()
def explain(
    ctx: typer.Context,
    *,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Why the cluster is as it is; who would win an election now, why not the others, what would be lost, what to do.

    Any node answers by what it knows, also without a leader or a primary.
    """
    with admin_of(ctx, data, node, key) as admin:
        found = admin.request("explain", {})
    put(json.dumps(found, indent=2) + "\n" if as_json else render.explanation(found))


@app.command()
def uri(
    ctx: typer.Context,
    *,
    dbname: Annotated[str, typer.Option("--dbname", "-d", metavar="NAME", help="Database.")] = "postgres",
    user: Annotated[str, typer.Option("--user", "-U", metavar="NAME", help="Role; default: left to the client.")] = "",
    read_only: Annotated[bool, typer.Option("--read-only", help="Only the read-only one.")] = False,
    read_write: Annotated[bool, typer.Option("--read-write", help="Only the read-write one.")] = False,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Connection strings that find the primary, or a standby, by themselves."""
    if read_only and read_write:
        raise UsageError("`--read-only` and `--read-write` exclude each other", "leave both out to get both")
    with admin_of(ctx, data, node, key) as admin:
        found = admin.request("uri", {"dbname": dbname, "user": user})
    wanted = ["read_only"] if read_only else ["read_write"] if read_write else ["read_write", "read_only"]
    if as_json:
        put(json.dumps({name: found[name] for name in wanted}, indent=2) + "\n")
        return
    for name in wanted:
        if len(wanted) > 1:
            talk(f"{name.replace('_', '-')}:")
        put(f"{found[name]}\n")


# -- members ---------------------------------------------------------------------------------------------------------



class MemberRole(StrEnum):
    """What `pgr member add` may ask for."""

    VOTER = "voter"
    LEARNER = "learner"
    WITNESS = "witness"


@member_app.command("list")
def member_list(
    ctx: typer.Context,
    *,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Every member with its role, what it is to become, its seat in the sync group and its addresses."""
    with admin_of(ctx, data, node, key) as admin:
        snapshot = _snapshot(admin.request("status", {}), now_ns())
    for text in operating.urgent(snapshot):  # `pgr status` itself shows it on its page
        talk(f"warning: {text}")
    rows = member_rows(snapshot)
    put(json.dumps(rows, indent=2) + "\n" if as_json else render.members(rows))


@member_app.command("add")
def member_add(
    ctx: typer.Context,
    name: NameArgument,
    *,
    role: Annotated[MemberRole, typer.Option("--role", help="What it is to be.")] = MemberRole.VOTER,
    timeout: TimeoutOption = MEMBER_TIMEOUT_S,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Say what a node that has joined (`pgr-supervise --join`) is to be, and wait until it is that."""
    with admin_of(ctx, data, node, key) as admin:
        _change_member(admin, "member.add", {"name": name, "role": role.value}, timeout, as_json)


@member_app.command("remove")
def member_remove(
    ctx: typer.Context,
    name: NameArgument,
    *,
    yes: YesOption = "",
    timeout: TimeoutOption = MEMBER_TIMEOUT_S,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Take a member out for good: its seat, its vote, its slot; the node then stops by itself."""
    with admin_of(ctx, data, node, key) as admin:
        confirm(f"{name} leaves the cluster for good, and comes back only with an empty data directory", name, yes)
        _change_member(admin, "member.remove", {"name": name}, timeout, as_json)


member_app.command("replace")(replacecli.member_replace)


def _change_member(admin: Admin, name: str, body: dict[str, Any], timeout_s: float, as_json: bool) -> None:
    def say(step: Progress) -> None:
        talk(step.text or step.event)

    asker = {} if name.startswith("member.") else {"by": who()}  # there it is the successor
    body |= asker | {"timeout_ms": int(timeout_s * 1000)}
    result = admin.request(name, body, idle_ms=ACTION_IDLE_MS, on_progress=say)
    put(json.dumps(result, indent=2) + "\n" if as_json else render.member_changed(name, result))


for command in (*opscli.COMMANDS, leavecli.leave):
    app.command()(command)
app.command(context_settings=doctorcli.SETTINGS)(doctorcli.doctor)


@key_app.command("new")
def key_new(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it there, mode 0600, never over a file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a cluster key, the secret that all members of a cluster share."""
    from consensus.keys import new_key

    text = new_key()
    if out is not None:
        write_private(out, text)
        talk(f"wrote {out}; give every member a copy and start it with --cluster-key")
        if as_json:
            put(json.dumps({"file": str(out)}) + "\n")
        return
    put(json.dumps({"key": text.strip()}) + "\n" if as_json else text)


@app.command()
def version(
    ctx: typer.Context,
    *,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="And those of the members: pgr, Postgres.")] = False,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """The version of this command."""
    found: dict[str, Any] = {"version": installed_version()}
    if everywhere:
        with admin_of(ctx, data, node, key) as admin:
            members = _snapshot(admin.request("status", {}), now_ns()).members
        found["members"] = [{"name": m.name, "pgr": m.pgr_version, "postgres": m.version} for m in members]
    if as_json:
        put(json.dumps(found) + "\n")
        return
    put(f"pgr {found['version']}\n")
    if everywhere:
        rows = [list(row.values()) for row in found["members"]]
        put("\n" + "\n".join(render.table(["NAME", "PGR", "POSTGRES"], rows)) + "\n")


def installed_version() -> str:
    """Of the installed distribution; ``unknown`` in a bare checkout."""
    try:
        return metadata.version("pgr-supervise")
    except metadata.PackageNotFoundError:
        return "unknown"


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Kill the primary once, report, stop everything, exit.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the data directories behind.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Where the three nodes live; default: a temporary one.")
    ] = None,
    profile: Annotated[str, typer.Option("--profile", help="Timings: fast, default or cloud.")] = "default",
) -> None:
    """Three nodes on this machine, load, a killed primary, the measured gap; stays up until Ctrl-C."""
    from supervisor.demo import run

    raise typer.Exit(run(once=once, keep=keep, data=data, profile=profile))


# typer 0.29 carries its own click, older ones use the installed one: reach its classes through typer either way.
_Usage: type[Exception] = typer.BadParameter.__mro__[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pgr`` with ``argv`` (default: the process's) and return the exit code of interfaces.md."""
    try:
        code = app(args=None if argv is None else list(argv), prog_name="pgr", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except ReaderGone:
        return 141
    except _Usage as error:
        text = str(getattr(error, "message", "")) or str(error)
        if "help" not in type(error).__name__.lower():
            found = getattr(error, "ctx", None)
            command = found.command_path if found else "pgr"
            sys.stderr.write(error_text(text.rstrip("."), f"`{command} --help` shows what it takes"))
        else:
            sys.stderr.write(f"{text}\n")
        return UsageError.exit_code
    except PgrError as error:
        sys.stderr.write(error_text(error.message, error.hint))
        return error.exit_code
    except Exception as error:  # the last resort: explained, with its traceback for our bugs only
        code, message, hint = exit_for(error)
        if code == 70:
            import traceback

            traceback.print_exc()
        sys.stderr.write(error_text(message, hint))
        return code


if __name__ == "__main__":
    sys.exit(main())
