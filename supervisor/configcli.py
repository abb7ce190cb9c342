"""``pgr config``: cluster-wide settings. A change is shown before it is asked for, and void if another came before.

cli.py imports this, so its parts are reached when a command runs.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from consensus.clusterwide import PARAMETERS
from supervisor import configview
from supervisor.admin import ACTION_IDLE_MS, Admin, who
from supervisor.clioptions import (
    DataOption,
    JsonOption,
    KeyOption,
    NodeOption,
    admin_of,
    put,
    talk,
)
from supervisor.errors import MissingError, UsageError
from supervisor.render import table
from supervisor.status import event_from_json

config_app = typer.Typer(
    help="Cluster-wide settings: kept in the log, the same on every node.", no_args_is_help=True, rich_markup_mode=None
)
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check it and show what would change, no more.")]


@config_app.command("show")
def show(
    ctx: typer.Context,
    *,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Every setting with its value, its default, where the value comes from and what a change needs."""
    with admin_of(ctx, data, node, key) as admin:
        found = admin.request("config.show", {})["settings"]
    put(json.dumps(found, indent=2) + "\n" if as_json else configview.page(found))


@config_app.command("get")
def get(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="KEY", help="As `pgr config show` lists it.", show_default=False)],
    *,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """The value of one setting, alone on stdout; of a part (`postgres.parameters`) each with its name."""
    with admin_of(ctx, data, node, key) as admin:
        found = admin.request("config.show", {})["settings"]
    row = next((row for row in found if row["name"] == name), None)
    if row is not None:
        value = row["value"]
        put(json.dumps(value) + "\n" if as_json or isinstance(value, list) else f"{_plain(value)}\n")
        return
    below = {str(r["name"]): r["value"] for r in found if str(r["name"]).startswith(f"{name}.")}
    if not below and f"{name}." != PARAMETERS:
        from consensus.clusterwide import BadSetting, setting_of

        try:
            setting_of(name)
        except BadSetting as bad:
            raise UsageError(bad.reason, bad.hint) from None
    if not below:
        talk(f"{name} is not set")
    lines = "".join(f"{n} = {_plain(v)}\n" for n, v in below.items())
    put(json.dumps(below, indent=2) + "\n" if as_json else lines)


def _plain(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


@config_app.command("set")
def set_(
    ctx: typer.Context,
    pairs: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="For example strict=false.", show_default=False)
    ],
    *,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Set settings, all or none; `postgres.parameters.NAME=VALUE` for one of Postgres's own."""
    wanted: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{pair!r} is no KEY=VALUE", "for example `pgr config set strict=false`")
        if name.strip() in wanted:
            raise UsageError(f"{name.strip()} is given twice", "name it once")
        wanted[name.strip()] = value
    with admin_of(ctx, data, node, key) as admin:
        _change(admin, wanted, [], dry_run=dry_run, as_json=as_json)


@config_app.command("unset")
def unset(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="KEY...", help="Back to its default.", show_default=False)],
    *,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Bring settings back to their defaults, all or none."""
    with admin_of(ctx, data, node, key) as admin:
        _change(admin, {}, names, dry_run=dry_run, as_json=as_json)


def _change(
    admin: Admin, wanted: Mapping[str, Any], names: list[str], *, dry_run: bool, as_json: bool, after: int | None = None
) -> None:
    """Shown first; then asked for, if nothing else has changed since."""
    body = {"set": dict(wanted), "unset": list(names), "by": who(), "after": after}
    planned = admin.request("config.set", body | {"dry_run": True}, idle_ms=ACTION_IDLE_MS)
    shown = configview.diff(planned["changes"])
    if dry_run or not shown:
        if not as_json:
            put("".join(f"{line}\n" for line in shown) or "nothing to change\n")
        _say(planned)
        result = planned
    else:
        if not as_json:
            talk("\n".join(shown))
        result = admin.request("config.set", body | {"after": planned["after"]}, idle_ms=ACTION_IDLE_MS)
        _say(result)
        if not as_json:
            put("".join(f"{name} = {_plain(new)}\n" for name, (_, new) in result["changes"].items()))
    if as_json:
        put(json.dumps(result, indent=2) + "\n")


def _say(result: Mapping[str, Any]) -> None:
    for note in result["notes"]:
        talk(f"note: {note}")


@config_app.command("edit")
def edit(
    ctx: typer.Context,
    *,
    dry_run: DryRunOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Edit what is set as TOML, in $VISUAL or $EDITOR."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    if not editor:
        raise MissingError("neither VISUAL nor EDITOR is set", "for example `EDITOR=vi pgr config edit`")
    with admin_of(ctx, data, node, key) as admin:
        found = admin.request("config.show", {})
        before = configview.toml(found["settings"])
        with tempfile.TemporaryDirectory(prefix="pgr-config-") as place:
            path = Path(place) / "settings.toml"
            path.write_text(before, encoding="utf-8")
            try:
                code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
            except OSError as error:
                raise MissingError(f"{editor}: {error.strerror}", "set EDITOR to one that is there") from None
            if code:
                hint = "save and leave it without an error"
                raise UsageError(f"{editor} ended with {code}: nothing is changed", hint)
            text = path.read_text(encoding="utf-8")
        wanted, names = configview.edited(found["settings"], configview.from_toml(text))
        if text == before or not (wanted or names):
            put("nothing to change\n")
            return
        _change(admin, wanted, names, dry_run=dry_run, as_json=False, after=int(found["index"]))


@config_app.command("history")
def history(
    ctx: typer.Context,
    *,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Changes of settings: when, by whom and what; newest last."""
    with admin_of(ctx, data, node, key) as admin:
        events = [event for event in admin.request("history", {})["history"] if event["kind"] == "config"]
    if as_json:
        rows = [dict(zip(("at", "by", "change"), _row(event), strict=True)) for event in events]
        put(json.dumps(rows, indent=2) + "\n")
        return
    lines = table(["AT", "BY", "CHANGE"], [_row(event) for event in events])
    put("\n".join(lines) + "\n" if events else "no setting was changed since the founding\n")


def _row(event: dict[str, Any]) -> list[str]:
    made = event_from_json(event)
    by, _, change = made.reason.partition(": ")
    return [made.at, by, change]
