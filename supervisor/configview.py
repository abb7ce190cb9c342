"""Cluster-wide settings as people and programs see them: rows, one document, TOML and back. Pure."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from consensus import clusterwide
from consensus.cluster import ClusterState
from consensus.clusterwide import HOOKS, PARAMETERS, PROFILE, SETTINGS, SLOTS, TIMINGS, Value, shown
from fencing.lease import PROFILES, Timings
from supervisor.errors import UsageError
from supervisor.render import table


def document(config: str) -> dict[str, Any]:
    """What `GET /config` adds to commit, profile and timings; every setting that can be set, defaults included."""
    apart = ("commit", PROFILE, *TIMINGS)
    values = {s.name: clusterwide.value_of(config, s.name) for s in SETTINGS if s.name not in apart}
    rules = {name.removeprefix("postgres."): values.pop(name) for name in clusterwide.RULES}
    hooks = {n.removeprefix(HOOKS): values.pop(n) for n in list(values) if n.startswith(HOOKS)}
    postgres = {"parameters": clusterwide.parameters(config)} | rules
    return values | {"hooks": hooks, "slots": _slots(config), "postgres": postgres}


def _slots(config: str) -> dict[str, dict[str, str]]:
    """As Patroni writes them."""
    names = ("type", "database", "plugin")
    return {name: dict(zip(names, slot, strict=False)) for name, slot in sorted(clusterwide.slots(config).items())}


def rows(cluster: ClusterState, timings: Timings) -> list[dict[str, Any]]:
    """One for each setting, each of Postgres's that is set, and each slot: name, value, default, source, needs, unit,
    sentence. ``source``: default, founding, profile (of the timings: what is in force, whatever is wanted) or
    set."""
    config = clusterwide.read(cluster.config)
    founded = clusterwide.founded("quorum", json.loads(cluster.settings))
    found: list[dict[str, Any]] = []
    named = (clusterwide.setting_of(n) for n in sorted(config) if n.startswith((PARAMETERS, SLOTS)))
    for setting in [*SETTINGS, *named]:
        name, value, default = setting.name, config.get(setting.name), setting.default
        source = "default" if name not in config else "founding" if founded.get(name) == value else "set"
        if name == PROFILE:
            default = cluster.profile
            value, source = (value, source) if name in config else (default, "founding")
        elif name in TIMINGS:
            default = getattr(PROFILES[str(config.get(PROFILE, cluster.profile))], name)
            value, source = (value, source) if name in config else (getattr(timings, name), "profile")
        elif name not in config:
            value = default
        found.append({
            "name": name, "value": value, "default": default, "source": source, "needs": setting.needs,
            "unit": setting.unit, "sentence": setting.sentence,
        })  # fmt: skip
    return found


def page(found: list[dict[str, Any]]) -> str:
    """The page of `pgr config show`."""
    cells = [
        [str(row["name"]), _value(row, "value"), _value(row, "default"), str(row["source"]), str(row["needs"])]
        for row in found
    ]
    return "\n".join(table(["NAME", "VALUE", "DEFAULT", "FROM", "A CHANGE NEEDS"], cells)) + "\n"


def _value(row: Mapping[str, Any], which: str) -> str:
    value = row[which]
    unit = f" {row['unit']}" if row["unit"] and isinstance(value, int) else ""
    if value is None:
        return "majority" if row["name"] == "sync_acks" else ""
    return shown(value) + unit


def diff(changes: Mapping[str, list[Value]]) -> list[str]:
    """What a change changes: two lines a setting."""
    found = []
    for name, (old, new) in changes.items():
        found += [f"- {name} = {shown(old)}", f"+ {name} = {shown(new)}"]
    return found


def toml(found: list[dict[str, Any]]) -> str:
    """For `pgr config edit`: what is set; the rest as comments with their defaults."""
    head = ["# Cluster-wide settings. Save to apply, leave the file as it is to change nothing.", ""]
    plain = [row for row in found if not row["name"].startswith(("postgres.", HOOKS, SLOTS))]
    for row in plain:
        head += [f"# {row['sentence']}", _line(row, str(row["name"])), ""]
    head += ["[hooks]"]
    for row in found:
        if row["name"].startswith(HOOKS):
            head += [f"# {row['sentence']}", _line(row, str(row["name"]).removeprefix(HOOKS)), ""]
    head += ["[slots]", '# permanent slots: NAME = "physical", or ["logical", DATABASE, PLUGIN]']
    head += [_line(row, str(row["name"]).removeprefix(SLOTS)) for row in found if row["name"].startswith(SLOTS)]
    head += ["", "[postgres]"]
    head += [_line(row, str(row["name"]).partition(".")[2]) for row in found if row["name"] in clusterwide.RULES]
    head += ["", "[postgres.parameters]"]
    for row in found:
        if row["name"].startswith(PARAMETERS):
            head.append(_line(row, str(row["name"]).removeprefix(PARAMETERS)))
    return "\n".join(head) + "\n"


def _line(row: Mapping[str, Any], key: str) -> str:
    key = json.dumps(key) if "." in key else key
    if row["source"] in ("default", "profile"):
        return f"#{key} = {'' if row['default'] is None else json.dumps(row['default'])}"
    return f"{key} = {json.dumps(row['value'], ensure_ascii=False)}"


def from_toml(text: str) -> dict[str, Any]:
    """Names to values. Raises UsageError if it is no TOML, or not of this shape."""
    try:
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"this is no TOML: {error}", "`pgr config edit` again; text goes in quotes") from None
    found = {name: value for name, value in body.items() if name not in ("postgres", "hooks", "slots")}
    postgres, hooks, slots = body.get("postgres", {}), body.get("hooks", {}), body.get("slots", {})
    if not isinstance(slots, dict):
        raise UsageError("slots is a table", "write [slots] on its own line")
    found |= {f"{SLOTS}{name}": value for name, value in slots.items()}
    if not isinstance(hooks, dict):
        raise UsageError("hooks is a table", "write [hooks] on its own line")
    found |= {f"{HOOKS}{name}": value for name, value in hooks.items()}
    if not isinstance(postgres, dict) or not isinstance(postgres.get("parameters", {}), dict):
        raise UsageError("postgres and postgres.parameters are tables", "write [postgres.parameters] on its own line")
    found |= {f"postgres.{name}": value for name, value in postgres.items() if name != "parameters"}
    return found | {f"{PARAMETERS}{name}": value for name, value in _flat(postgres.get("parameters", {})).items()}


def _flat(table_: Mapping[str, Any]) -> dict[str, Any]:
    """An unquoted dotted key is a table to TOML: auto_explain.log_min_duration means what it says."""
    found: dict[str, Any] = {}
    for name, value in table_.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": what for inner, what in _flat(value).items()}
        else:
            found[name.lower()] = value
    return found


def edited(before: list[dict[str, Any]], after: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What an edit sets and unsets."""
    was = {row["name"]: row["value"] for row in before if row["source"] in ("set", "founding")}
    wanted = {name: value for name, value in after.items() if name not in was or was[name] != value}
    return wanted, sorted(name for name in was if name not in after)
