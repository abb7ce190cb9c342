"""Users' own Postgres settings (`postgres.parameters`): which are refused and why, and what Postgres would take. Pure.

Checked against rows of the primary's `pg_settings`, before anything enters the log; what only Postgres itself can judge
(text values, rules of pg_hba.conf) is asked of it in configcheck.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from consensus.clusterwide import BadSetting, hint_for
from supervisor.settings import FLOORED, RECOVERY_TARGETS, conflicts

SENDERS_MIN = 20
"""Of max_wal_senders and max_replication_slots (settings.py raises what is less)."""

_COMMIT = "what counts as acknowledged is decided by the sync group: `pgr config set commit=... sync_acks=...`"
_FOLLOW = "whom a node follows, and how far, is decided by the log of the cluster"
_ADDRESS = "the address is that of the node: `--pg-listen`, `--pg-port`"
_SLOTS = "pgr sets it with wal_level = logical, from Postgres 17 on"
_RULES = "client rules are a setting of their own: `pgr config set postgres.hba=...`"
OWNED_BECAUSE: Mapping[str, str] = {
    "synchronous_commit": _COMMIT,
    "synchronous_standby_names": _COMMIT,
    "fsync": "an acknowledged commit is a flushed one",
    "full_page_writes": "an acknowledged commit survives a torn page",
    "listen_addresses": _ADDRESS,
    "port": _ADDRESS,
    "unix_socket_directories": _ADDRESS,
    "hba_file": _RULES,
    "ident_file": _RULES,
    "default_transaction_read_only": "it is the gate that keeps clients out until a new primary is proven",
    "restart_after_crash": "who is primary after a crash is decided by the cluster",
    "wal_log_hints": "a former primary is rewound by them",
    "primary_conninfo": _FOLLOW,
    "primary_slot_name": _FOLLOW,
    "restore_command": _FOLLOW,
    "recovery_min_apply_delay": "it is of one node: the tag `recovery_min_apply_delay` in its pgr.toml",
    "sync_replication_slots": _SLOTS,
    "synchronized_standby_slots": _SLOTS,
    "recovery_target_timeline": _FOLLOW,
    **dict.fromkeys(RECOVERY_TARGETS, _FOLLOW),
    "data_directory": "the data directory is that of the node: `--data`, `--pgdata`",
    "config_file": "the data directory is that of the node: `--data`, `--pgdata`",
}
_PER_SESSION = ("transaction_isolation", "transaction_read_only", "transaction_deferrable", "seed", "role")


@dataclass(frozen=True, slots=True)
class Known:
    """A row of pg_settings."""

    name: str
    vartype: str
    unit: str
    low: str
    high: str
    choices: tuple[str, ...]
    context: str
    setting: str
    """Now, in ``unit``."""
    boot: str


def owned(name: str) -> str:
    """Why pgr keeps this to itself; empty: it does not."""
    if name in OWNED_BECAUSE:
        return OWNED_BECAUSE[name]
    if conflicts({name: ""}):
        return "pgr sets it itself, on every node"
    return "it belongs to a session, not to a configuration file" if name in _PER_SESSION else ""


def refuse(known: Mapping[str, Known], name: str, value: str | None) -> None:
    """Of a value, or of the removal of one (None). ``known``: all of pg_settings, by name. Raises BadSetting."""
    because = owned(name)
    if because and value is not None:
        raise BadSetting(f"{name} can't be set: {because}", "leave it out")
    row = known.get(name)
    if row is None:
        if value is not None and "." not in name:
            raise BadSetting(f"this Postgres has no setting {name}", hint_for(name, known))
        return  # a dotted name: of an extension that is not loaded (yet), or of the users' own
    if row.context == "internal" and value is not None:
        raise BadSetting(f"{name} can't be set: it tells what Postgres was built or set up with", "leave it out")
    if value is not None:
        number = parsed(row, value)
        if name in ("max_wal_senders", "max_replication_slots") and number is not None and number < SENDERS_MIN:
            raise BadSetting(f"{name} can't be {value}", f"pgr needs {SENDERS_MIN}, for every member and its copies")
        if name == "wal_level" and value.lower() == "minimal":
            raise BadSetting("wal_level can't be minimal: no standby could follow", "replica or logical")


def lowers(row: Known, value: str | None) -> bool:
    """Would it be lower than it is, where a standby must not have less than its primary?

    Postgres takes less only in a start as a primary, and every start by pgr is a standby's: it would never take effect.
    """
    then = parsed(row, row.boot if value is None else value)
    return row.name in FLOORED and then is not None and then < float(row.setting)


def needs(row: Known) -> str:
    """What has to happen on each node: ``restart``, or ``reload`` (and new sessions)."""
    if row.context == "postmaster":
        return "restart"
    return "reload, for new sessions" if row.context in ("backend", "superuser-backend") else "reload"


def note(row: Known) -> str:
    """For whoever has just set it."""
    first = ", standbys first" if row.name in FLOORED else ""
    how = f" of each node{first}: `pgr restart --pending`" if row.context == "postmaster" else ""
    return f"{row.name}: takes effect with a {needs(row)}{how}"


_MEMORY = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_TIME = {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_NUMBER = re.compile(r"\s*([+-]?(?:0x[0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?))\s*([A-Za-z]*)\s*")


def parsed(row: Known, value: str) -> float | None:
    """The number that ``value`` stands for, in the unit of the row; None: it is no number. Raises BadSetting."""
    match row.vartype:
        case "bool":
            words = ("true", "false", "yes", "no", "on", "off", "1", "0")
            hits = [word for word in words if value and word.startswith(value.strip().lower())]
            if not value.strip() or not hits or value.strip().lower() == "o":
                raise BadSetting(f"{row.name} is on or off, not {value!r}", f"for example {row.name}=on")
            return None
        case "enum":
            if value.lower() not in (choice.lower() for choice in row.choices):
                raise BadSetting(f"{row.name} can't be {value!r}", f"one of: {', '.join(row.choices)}")
            return None
        case "integer" | "real":
            return _number(row, value)
        case _:
            return None


def _number(row: Known, value: str) -> float:
    size, unit = _base(row.unit)
    units = {} if not unit else _MEMORY if unit in _MEMORY else _TIME
    found = _NUMBER.fullmatch(value)
    if found is None or (found[2] and found[2] not in units):
        takes = f", with or without {', '.join(units)}" if units else ""
        raise BadSetting(f"{row.name} is a number, not {value!r}", f"write digits{takes}")
    number = float(int(found[1], 16)) if "x" in found[1].lower() else float(found[1])
    if found[2]:
        number = number * units[found[2]] / (size * units[unit])
    if row.vartype == "integer":
        number = float(round(number))
    if not float(row.low) <= number <= float(row.high):
        between = f"between {row.low} and {row.high}" + (f", in {row.unit}" if row.unit else "")
        raise BadSetting(f"{row.name} can't be {value}", between)
    return number


def _base(unit: str) -> tuple[int, str]:
    """``8kB`` is (8, kB); ``ms`` is (1, ms)."""
    digits = unit[: len(unit) - len(unit.lstrip("0123456789"))]
    return int(digits or 1), unit[len(digits) :]
