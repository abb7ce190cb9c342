"""The cluster-wide settings: one table, and what a value of each may be. Pure.

What is set stands in the log as `config/1 {set, unset}`; an absent name means the default, so a log written before a
setting existed still reads. Validated here before an entry is proposed; `postgres.parameters.*` and `postgres.hba` are
also shown to the primary's Postgres first (supervisor/configcheck.py).

Values are JSON: bool, int, str or a list of str. People write text; `parse` makes values of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fencing.lease import PROFILES

Value = bool | int | str | list[str] | None
"""None: not set, and no default but what the cluster's size or profile says."""

PARAMETERS = "postgres.parameters."
SLOTS = "slots."
HBA, IDENT, SALVAGE_KEEP = "postgres.hba", "postgres.ident", "salvage_keep"
RULES = (HBA, IDENT)
"""Whole files of Postgres, line by line; a primary is asked whether it takes them."""
OUR_MAPS = ("pgr", "pgr_owner")
EXAMPLES = {HBA: "host all all 10.0.0.0/8 scram-sha-256", IDENT: "admins alice postgres"}
HOOKS = "hooks."
PRE_PROMOTE, ON_ROLE_CHANGE, ON_EVENT = "hooks.pre_promote", "hooks.on_role_change", "hooks.on_event"
PROFILE = "profile"
TIMINGS = ("heartbeat_ms", "lease_ms", "kill_bound_ms", "election_ms")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row. `sentence` is what `pgr config show` and REFERENCE.md say."""

    name: str
    kind: str
    """bool, int, choice, lines, command, slot or text."""
    default: Value
    sentence: str
    needs: str = "nothing"
    """What has to happen for it to take effect: nothing, reload, restart or a new lease."""
    unit: str = ""
    """bytes, s, ms or empty."""
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "commit", "choice", "quorum",
        "quorum: a commit is acknowledged once sync_acks standbys of the sync group have flushed it; async: at once, "
        "and a failover may lose it", choices=("quorum", "async"),
    ),
    Setting(
        "sync_acks", "int", None,
        "standbys that must flush a commit before it is acknowledged (k of the sync group is one more); not set: a "
        "majority of the sync group, the primary included", low=1, high=100,
    ),
    Setting(
        "strict", "bool", True,
        "true: writes wait while too few of the sync group stream; false: after 5 s the sync group shrinks to those "
        "that do, and grows again when the others are back",
    ),
    Setting(
        "pause", "bool", False,
        "true: no automatic action (`pgr pause`, `pgr resume`): nobody is promoted, restarted or rebuilt unless a "
        "person asks; lease, watchdog and fence stay in force",
    ),
    Setting(
        "maximum_lag_on_failover", "int", 1 << 20,
        "asynchronous commit: no node further behind the last primary than this is promoted", unit="bytes",
        high=1 << 50,
    ),
    Setting(
        "primary_start_timeout", "int", 30,
        "a granted node that has not become primary within this gives up and hands over, and so does one that is "
        "started again in place", unit="s", low=5, high=86_400,
    ),
    Setting(
        "on_primary_crash", "choice", "failover",
        "when Postgres alone crashes on the primary: failover hands over at once; restart starts it again in place and "
        "promotes it anew, and hands over if that takes longer than primary_start_timeout or fails three times",
        choices=("failover", "restart"),
    ),
    Setting(
        PRE_PROMOTE, "command", None,
        "run by a node before it becomes primary; if it does not end with 0 in time another node is tried",
    ),
    Setting(
        f"{PRE_PROMOTE}_timeout", "int", 30, "it is killed after this, which counts as a no", unit="s", low=1,
        high=3600,
    ),
    Setting(ON_ROLE_CHANGE, "command", None, "run by each node when it becomes primary or is no longer"),
    Setting(f"{ON_ROLE_CHANGE}_timeout", "int", 30, "it is killed after this", unit="s", low=1, high=3600),
    Setting(ON_EVENT, "command", None, "run by each node for each of its events, with JSON on standard input"),
    Setting(f"{ON_EVENT}_timeout", "int", 10, "it is killed after this", unit="s", low=1, high=3600),
    Setting(
        SALVAGE_KEEP, "int", 10,
        "each node keeps so many pieces of WAL that a rewind would have dropped (`salvage/`); the oldest goes when one "
        "more is complete", low=1, high=10_000,
    ),
    Setting(HBA, "lines", [], "client rules of pg_hba.conf; pgr puts its own before them", needs="reload"),
    Setting(
        IDENT, "lines", [], "lines of pg_ident.conf, `MAP SYSTEM-USER ROLE`, for `map=MAP` in a client rule",
        needs="reload",
    ),
    Setting(
        PROFILE, "choice", None,
        "a set of timings that fit together; changed in steps, the first of which every voter has to hear of; not set: "
        "that of the founding", needs="every voter", choices=tuple(PROFILES),
    ),
    *(
        Setting(
            name, "int", None, f"{sentence}; not set: that of the profile", "every voter", "ms",
            getattr(PROFILES["fast"], name), 600_000,
        )
        for name, sentence in zip(
            TIMINGS,
            (
                "between two heartbeats of the leader", "how long an acknowledged heartbeat lets the primary write",
                "from the end of a lease until Postgres is gone for sure",
                "how long an acknowledged heartbeat binds a voter",
            ), strict=True,
        )
    ),
)  # fmt: skip
TABLE = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class BadSetting(Exception):
    """A name or a value that is refused: why, and what to do."""

    reason: str
    hint: str
    code: int = 64
    """64: written wrongly; 78: refused for safety."""


def setting_of(name: str) -> Setting:
    """The row of ``name``; one is made for each `postgres.parameters.NAME`. Raises BadSetting for any other name."""
    if name.startswith(PARAMETERS):
        if not re.fullmatch(r"[a-z_][a-z0-9_$]*(\.[a-z_][a-z0-9_$]*)?", name.removeprefix(PARAMETERS)):
            raise BadSetting(f"{name} is not the name of a Postgres setting", f"for example {PARAMETERS}work_mem")
        return Setting(name, "text", None, "a setting of Postgres, on every node", needs="reload or restart")
    if name.startswith(SLOTS):
        slot = name.removeprefix(SLOTS)
        if not re.fullmatch(r"[a-z0-9_]{1,63}", slot) or slot.startswith(OUR_SLOTS) or slot in TAKEN_SLOTS:
            hint = f"a-z, 0-9 and _, 63 at most, and not beginning with {OUR_SLOTS}, as the members' own do"
            raise BadSetting(f"{slot!r} can't be the name of a permanent slot", hint)
        return Setting(name, "slot", None, "a permanent replication slot")
    if f"{name}." in (PARAMETERS, SLOTS):
        example = f"{PARAMETERS}work_mem=8MB" if f"{name}." == PARAMETERS else f'{SLOTS}cdc="logical app pgoutput"'
        raise BadSetting(f"{name} is set one by one", f"for example {example}")
    if name not in TABLE:
        raise BadSetting(f"there is no setting {name}", hint_for(name, TABLE))
    return TABLE[name]


def hint_for(name: str, names: Iterable[str]) -> str:
    """The nearest of ``names``, or where all of them are listed."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(names), 1)
    return f"did you mean {near[0]}?" if near else "`pgr config show` lists all"


def check(name: str, value: object) -> Value:
    """The value as it enters the log. ``value``: as JSON or as a person writes it. Raises BadSetting."""
    setting = setting_of(name)
    match setting.kind:
        case "bool":
            return _bool(name, value)
        case "int":
            return _int(setting, value)
        case "choice":
            if value not in setting.choices:
                raise BadSetting(f"{name} can't be {value!r}", f"one of: {', '.join(setting.choices)}")
            return str(value)
        case "lines":
            return lines(name, value)
        case "command":
            return _command(name, value)
        case "slot":
            return _slot(name, value)
        case _:
            return _text(name, value)


_WORDS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def _bool(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    raise BadSetting(f"{name} is true or false, not {value!r}", f"for example {name}=true")


_UNITS = {
    "bytes": {"": 1, "B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40},
    "s": {"": 1, "s": 1, "min": 60, "h": 3600},
    "ms": {"": 1, "ms": 1, "s": 1000},
    "": {"": 1},
}


def _int(setting: Setting, value: object) -> int:
    units = _UNITS[setting.unit]
    found = re.fullmatch(r"\s*(\d{1,18})\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if found is not None and found[2] in units:
        value = int(found[1]) * units[found[2]]
    if isinstance(value, bool) or not isinstance(value, int):
        takes = f"a number of {setting.unit}" if setting.unit else "a whole number"
        more = f", with or without {', '.join(u for u in units if u)}" if len(units) > 1 else ""
        raise BadSetting(f"{setting.name} is {takes}, not {value!r}", f"write digits{more}")
    if not setting.low <= value <= setting.high:
        hint = f"between {setting.low} and {setting.high}" + (f" {setting.unit}" if setting.unit else "")
        raise BadSetting(f"{setting.name} can't be {value}", hint)
    return value


CHARS_MAX = 50_000
"""Of all that is set, as canonical JSON. A change names it up to three times, and escaped three times it must fit into
a frame with the rest of the state (fencing/wire.py: 1 MiB)."""
HBA_TYPES = ("local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc")


_MAP, _WHO = r"(?!include)[A-Za-z0-9_]+", r"(?:(?:[A-Za-z0-9_]|\\1)[A-Za-z0-9_.@$+=-]*|/[^ ,\"#]+)"
"""Of pg_ident.conf what nobody can read in two ways: no quotes, commas, comments, files, continued lines. One line that
Postgres does not take puts all maps out of force, pgr's own too; only a regular expression (`/...`) can be such."""


def has_expression(line: str) -> bool:
    """Has this line of pg_ident.conf something that only Postgres can judge?"""
    return any(word.startswith("/") for word in line.split())


def lines(name: str, value: object) -> list[str]:
    """The rules of ``name``, one of `RULES`. Raises BadSetting."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = [value]  # one rule
    example = EXAMPLES[name]
    if not isinstance(value, list) or not all(isinstance(line, str) and line.isprintable() for line in value):
        raise BadSetting(f"{name} is a list of lines", f"for example {name}='[\"{example}\"]'")
    for line in value:
        words = line.split()
        if name == HBA and (not words or words[0] not in HBA_TYPES or len(words) < (4 if words[0] == "local" else 5)):
            raise BadSetting(f"{line!r} is not a line of pg_hba.conf", f'for example "{example}"')
        if name == IDENT and not re.fullmatch(rf"{_MAP} +{_WHO} +{_WHO}(?<!\\)", line):
            raise BadSetting(f"{line!r} is not a line of pg_ident.conf as pgr takes it", f'for example "{example}"')
        if name == IDENT and words[0] in OUR_MAPS:
            raise BadSetting(f"{line!r}: pgr's own map has this name", "give the map another name", 78)
    return value


COMMAND_WORDS_MAX, COMMAND_CHARACTERS_MAX = 64, 4096


def _command(name: str, value: object) -> list[str]:
    """An argument list, or text: the path of an executable. No shell reads it, so nothing in it needs quoting."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    elif isinstance(value, str):
        if " " in value.strip():
            split = json.dumps(value.split(), ensure_ascii=False)
            hint = f"an argument list: {name}='{split}'; a shell has to be named: [\"/bin/sh\", \"-c\", \"...\"]"
            raise BadSetting(f"{name} is the path of an executable, and no shell splits it into words", hint)
        value = [value.strip()]
    words = value if isinstance(value, list) else []
    if not words or not all(isinstance(word, str) and word.isprintable() for word in words) or not words[0]:
        raise BadSetting(f"{name} is a path, or a list of arguments", f"for example {name}=/etc/pgr/hook")
    if not words[0].startswith("/"):
        why = f"{name} begins with {words[0]!r}, and every node has to find it"
        raise BadSetting(why, "give the whole path, the same on every node")
    if len(words) > COMMAND_WORDS_MAX or sum(map(len, words)) > COMMAND_CHARACTERS_MAX:
        most = f"{COMMAND_WORDS_MAX} arguments and {COMMAND_CHARACTERS_MAX} characters"
        raise BadSetting(f"{name} is longer than {most}", "put it into a script")
    return [str(word) for word in words]


OUR_SLOTS = "pgr_"
TAKEN_SLOTS = ("pg_conflict_detection",)
"""Postgres's own."""


def _slot(name: str, value: object) -> list[str]:
    """``["physical"]`` or ``["logical", DATABASE, PLUGIN]``; as text the words, or what Patroni's `slots` has."""
    hint = f'{name}=physical, or {name}="logical DATABASE PLUGIN"'
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        text = value
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise BadSetting(f"{name}: {text[:60]!r} is no JSON", hint) from None
    elif isinstance(value, str):
        value = value.split()
    if isinstance(value, dict):
        given: dict[str, object] = value
        unknown = sorted(set(given) - {"type", "database", "plugin"})
        if unknown:
            raise BadSetting(f"{name}: {unknown[0]} is not known of a slot", hint)
        value = [given[key] for key in ("type", "database", "plugin") if key in given]
    words: list[Any] = value if isinstance(value, list) else []
    if not all(isinstance(word, str) and word.isprintable() for word in words):
        words = []
    if words == ["physical"]:
        return ["physical"]
    if len(words) == 3 and words[0] == "logical" and all(0 < len(word) <= 63 for word in words):
        return [str(word) for word in words]
    raise BadSetting(f"{name} is a physical slot, or a logical one of a database and a plugin", hint)


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str) or not value.isprintable():
        raise BadSetting(f"{name} is text on one line, not {value!r}", "write it in quotes")
    return value


@lru_cache(maxsize=8)
def read(config: str) -> Mapping[str, Any]:
    """What is set, by name; from the canonical JSON of the cluster's state. Not to be changed."""
    found: dict[str, Any] = json.loads(config)
    return found


def value_of(config: str, name: str) -> Any:
    """What is set, else the default of the table."""
    return read(config).get(name, TABLE[name].default)


def parameters(config: str) -> dict[str, str]:
    """`postgres.parameters`: name -> value."""
    return {n.removeprefix(PARAMETERS): v for n, v in read(config).items() if n.startswith(PARAMETERS)}


def slots(config: str) -> dict[str, list[str]]:
    """Permanent slots: name -> ``["physical"]`` or ``["logical", DATABASE, PLUGIN]``."""
    return {n.removeprefix(SLOTS): v for n, v in read(config).items() if n.startswith(SLOTS)}


def founded(commit: str, settings: Mapping[str, Any]) -> dict[str, Value]:
    """What a charter sets. ``settings``: its `parameters`, `hba` and `ident`."""
    found: dict[str, Value] = {f"{PARAMETERS}{n}": v for n, v in settings.get("parameters", {}).items()}
    if commit != TABLE["commit"].default:
        found["commit"] = commit
    for name in RULES:
        if given := settings.get(name.removeprefix("postgres.")):
            found[name] = list(given)
    return found


def merged(config: str, wanted: Mapping[str, Value], unset: Iterable[str]) -> dict[str, Value]:
    """What is set after a change."""
    return {n: v for n, v in (dict(read(config)) | dict(wanted)).items() if n not in unset}


def too_long(config: str) -> BadSetting | None:
    """``config``: canonical JSON of all that would be set. It travels whole, in every copy of the state."""
    if len(config) <= CHARS_MAX:
        return None
    hint = "write fewer lines: pg_hba.conf takes lists, names of groups (+role) and address ranges"
    return BadSetting(f"all settings together would take {len(config)} characters, at most {CHARS_MAX} fit", hint)


def changed(config: str, wanted: Mapping[str, Value], unset: Iterable[str]) -> dict[str, tuple[Value, Value]]:
    """Name -> (value now, value then) of all that would be different. A value that is not set shows its default."""
    now, then = read(config), merged(config, wanted, unset)
    names = sorted(n for n in {*now, *then} if now.get(n) != then.get(n) or (n in now) != (n in then))
    return {n: (now.get(n, _default(n)), then.get(n, _default(n))) for n in names}


def _default(name: str) -> Value:
    return TABLE[name].default if name in TABLE else None


def sentence(changes: Mapping[str, tuple[Value, Value]]) -> str:
    """For the history: ``strict: true -> false``."""
    return "; ".join(f"{name}: {shown(old)} -> {shown(new)}" for name, (old, new) in changes.items())


def shown(value: Value) -> str:
    """A value for people; nothing set shows as ``default``."""
    if value is None:
        return "default"
    return value if isinstance(value, str) else json.dumps(value)
