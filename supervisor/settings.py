"""The configuration pgr gives its Postgres: settings, hba and ident as text (pure).

Owned settings are a marked block at the end of ``postgresql.auto.conf``, the file Postgres reads last, rewritten before
every start and reload. Lines elsewhere in that file for names pgr owns (ALTER SYSTEM) are removed and reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

BEGIN = "# pgr: begin. Rewritten before every start and reload; edits are lost. Use: pgr config"
END = "# pgr: end"
ROLE = "pgr"
"""Superuser of the supervisor, reachable by socket from pgr's own system user only."""
REPLICATION_ROLE = "pgr_replication"
OWN_ROLE = "made by pgr"
"""The comment on each role that pgr makes: a role of such a name without it is somebody else's."""
PLACEHOLDER_NAMES = 'ANY 1 ("pgr.nobody")'
"""For standbys: not empty, so that the "standbys defined" flag is up long before a promotion (safety.md, Promotion 4),
and matching nobody, as stamps have two dots."""

RECOVERY_TARGETS = (
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
)
FLOORED = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
"""Settings that may not be lower than pg_control says when a standby starts, else FATAL (hazard 76), and their names
in pg_controldata. Every start of ours is a standby's, so a former primary is no exception (seen)."""
_NAME_BYTES = 63
_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_$.]*)\s*(?:=|\s)\s*('(?:[^'\\\n]|\\.|'')*'|[^\s#']+)")


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What differs from node to node and from moment to moment."""

    listen: str
    """listen_addresses: hosts, comma separated."""
    port: int
    socket_dir: str
    hba_file: str
    ident_file: str
    cluster_name: str
    primary_conninfo: str = ""
    primary_slot_name: str = ""
    standby_names: str = PLACEHOLDER_NAMES
    """synchronous_standby_names; empty only for a group of k = 1."""
    gate: bool = True
    """default_transaction_read_only: closed until the epoch is open."""
    wal_keep_mb: int = 256
    max_slot_wal_keep_mb: int = 4096
    replication_timeout_ms: int = 3000
    apply_delay_ms: int = 0
    """recovery_min_apply_delay; only of a standby that nobody waits for."""
    guards: tuple[str, ...] = ()
    """Slots that logical consumers wait for (slotplan.guards)."""
    syncs_slots: bool = False
    """Logical failover slots are kept on standbys too, see ``syncs_slots``."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """The users' own (``postgres.parameters``); they lose against owned names, see ``conflicts``."""


def owned_settings(node: NodeSettings) -> dict[str, str]:
    """Every line of pgr's block, users' parameters first, values unquoted."""
    owned = {
        "listen_addresses": node.listen,
        "port": str(node.port),
        "unix_socket_directories": node.socket_dir,
        "hba_file": node.hba_file,
        "ident_file": node.ident_file,
        "cluster_name": node.cluster_name,
        "primary_conninfo": node.primary_conninfo,
        "primary_slot_name": node.primary_slot_name,
        "synchronous_standby_names": node.standby_names,
        "default_transaction_read_only": "on" if node.gate else "off",
        "wal_keep_size": f"{node.wal_keep_mb}MB",
        "max_slot_wal_keep_size": f"{node.max_slot_wal_keep_mb}MB",
        "wal_sender_timeout": f"{node.replication_timeout_ms}ms",
        "wal_receiver_timeout": f"{node.replication_timeout_ms}ms",
        **_CONSTANT,
        "recovery_min_apply_delay": f"{node.apply_delay_ms}ms" if node.apply_delay_ms else "0",
    }
    given = {name: value for key, value in node.parameters.items() if (name := key.lower()) not in owned}
    if _logical(node.parameters):
        owned["wal_level"] = "logical"
    if node.syncs_slots:
        owned |= {"sync_replication_slots": "on", "hot_standby_feedback": "on"}
        owned["synchronized_standby_slots"] = ", ".join(node.guards)
    for name, floor in _AT_LEAST.items():
        try:
            given[name] = str(max(floor, int(given.get(name, "0"))))
        except ValueError:  # not a number: Postgres would refuse it too
            given[name] = str(floor)
    return given | owned


_CONSTANT = {
    "unix_socket_permissions": "0777",  # the directory is 0700: that is the rule of access
    "hot_standby": "on",
    "wal_level": "replica",
    "wal_log_hints": "on",
    "fsync": "on",  # an acknowledged commit is a flushed one
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "restart_after_crash": "off",
    "restore_command": "",
    "recovery_target_timeline": "latest",
    "recovery_min_apply_delay": "0",
    **dict.fromkeys(RECOVERY_TARGETS, ""),
    "recovery_end_command": "",
    "archive_cleanup_command": "",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "1s",  # without upstream every look at pg_wal is a line in the log
    "wal_receiver_create_temp_slot": "off",
    "max_standby_streaming_delay": "30s",
    "max_standby_archive_delay": "30s",
    "password_encryption": "scram-sha-256",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "update_process_title": "on",  # how a walreceiver is told from other children without asking Postgres
    "log_destination": "stderr",
    "logging_collector": "off",
}
_GONE = {"promote_trigger_file", "trigger_file", "standby_mode"}
"""Of older versions: a line for one of these, and Postgres does not start."""
_AT_LEAST = {"max_wal_senders": 20, "max_replication_slots": 20}
_RAISABLE = {*_AT_LEAST, "wal_level"}


def syncs_slots(parameters: Mapping[str, str], major: int) -> bool:
    """Can logical slots outlive a failover (``failover = true``, Postgres 17 and newer)? Standbys then keep copies."""
    return _logical(parameters) and major >= 17


def _logical(parameters: Mapping[str, str]) -> bool:
    return any(key.lower() == "wal_level" and value == "logical" for key, value in parameters.items())


def conflicts(parameters: Mapping[str, str]) -> tuple[str, ...]:
    """Names among users' parameters that pgr owns: refused when the configuration is set, ignored here.

    wal_level (logical) and the numbers of senders and slots may be raised.
    """
    owned = owned_settings(NodeSettings("", 0, "", "", "", ""))
    return tuple(sorted(name for name in parameters if name.lower() in owned and name.lower() not in _RAISABLE))


def with_floors(settings: Mapping[str, str], floors: Mapping[str, int]) -> tuple[dict[str, str], dict[str, int]]:
    """Raise what is lower than ``pg_control`` demands of a standby (hazard 76).

    ``floors`` by setting name, as in ControlData. A name that ``settings`` does not give is set as well, since what
    postgresql.conf says is not known here. Returns the settings and what was raised or pinned.
    """
    result, raised = dict(settings), dict[str, int]()
    for name, floor in floors.items():
        value = result.get(name, "")
        if not value.isdigit() or int(value) < floor:
            result[name] = str(floor)
            raised[name] = floor
    return result, raised


def auto_conf(existing_text: str, owned: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """postgresql.auto.conf with pgr's block at its end, and the foreign lines that had to go.

    Not reported: lines that say what the block says, as ALTER SYSTEM rewrites the file without its comments and so
    leaves our own lines outside any marks.
    """
    names = {name.lower() for name in owned} | _GONE
    kept: list[str] = []
    removed: list[str] = []
    lines = existing_text.splitlines()
    inside = False
    for number, line in enumerate(lines):
        if line.startswith("# pgr: begin"):
            inside = END in lines[number:]
        elif line == END:
            inside = False
        elif not inside:
            match = _LINE.match(line)
            name = match[1].lower() if match else ""
            if name not in names:
                kept.append(line)
            elif match is not None and unquote(match[2]) != owned.get(name):
                # A conninfo may hold a password.
                removed.append(f"{name} = ..." if name == "primary_conninfo" else line.strip())
    block = [BEGIN, *(f"{name} = {quote(value)}" for name, value in owned.items()), END]
    return "\n".join([*kept, *block]) + "\n", tuple(removed)


def altered(found: Mapping[str, str | None], owned: Mapping[str, str]) -> tuple[str, ...]:
    """What the configuration files say otherwise than pgr wrote, in words. ``found``: by name in lower case; what is
    empty may as well be missing."""
    return tuple(
        f"{name} = {'...' if name == 'primary_conninfo' else quote(found[name] or '')}" if name in found
        else f"{name} is gone"
        for name, value in owned.items()
        if (found.get(name) or "") != value
    )  # fmt: skip


def quote(value: str) -> str:
    """A value for a Postgres configuration file."""
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
    return f"'{escaped}'"


def unquote(text: str) -> str:
    """The value that a configuration line's right side stands for."""
    if not text.startswith("'"):
        return text
    return re.sub(r"''|\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]) if match[1] else "'", text[1:-1])


def conninfo(**options: str | int | None) -> str:
    """A libpq connection string in keyword form; options that are None are left out."""
    return " ".join(
        "{}='{}'".format(name, str(value).replace("\\", "\\\\").replace("'", "\\'"))
        for name, value in options.items()
        if value is not None
    )


def own_conninfo(socket_dir: str, port: int, dbname: str = "postgres", application_name: str = "pgr") -> str:
    """How the supervisor reaches its own Postgres: by socket as ``pgr``, past the gate, with a safe search path, and
    with commits that wait: a proof that k have a record is none if somebody has set synchronous_commit lower."""
    options = (
        "-c search_path=pg_catalog -c default_transaction_read_only=off -c synchronous_commit=on -c statement_timeout=0"
        " -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 -c lock_timeout=0"
    )
    return conninfo(
        host=socket_dir,
        port=port,
        user=ROLE,
        dbname=dbname,
        application_name=application_name,
        options=options,
        sslmode="disable",
        gssencmode="disable",
    )


def stamp(name: str, incarnation: int, epoch: int) -> str:
    """application_name of a standby of one life and one epoch: ``name.incarnation.epoch``, 8 hex digits of incarnation.

    Fits Postgres's 63 bytes for names of 41 and epochs below 10^12.
    """
    text = f"{name}.{incarnation & 0xFFFF_FFFF:08x}.{epoch}"
    if len(text.encode()) > _NAME_BYTES:
        raise ValueError(f"application_name {text} is longer than {_NAME_BYTES} bytes, Postgres would cut it")
    return text


application_name = stamp


def standby_names(epoch: int, k: int, others: Iterable[tuple[str, int]]) -> str:
    """synchronous_standby_names of a primary; ``others``: S minus itself as (name, incarnation). "" for k = 1."""
    names = [f'"{stamp(name, incarnation, epoch)}"' for name, incarnation in others]
    if k <= 1:
        return ""
    if len(names) < k - 1:
        raise ValueError(f"k = {k} needs {k - 1} standbys in the group, there are {len(names)}")
    return f"ANY {k - 1} ({', '.join(names)})"


def hba(user_rules: Sequence[str] = (), os_user: str = "postgres", superuser: str = "postgres") -> str:
    """pg_hba.conf. pgr's rules come first, so that no rule of the users can shut it out, or let its roles in else."""
    rules = user_rules or (
        f"local all {_hba_word(superuser)} peer map=pgr_owner",
        "local all all scram-sha-256",
        "host all all all scram-sha-256",
    )
    return "\n".join(
        [
            f"# Written by pgr (as {os_user}) before every start and reload; the rules below the line are yours.",
            f"local all,replication {ROLE} peer map=pgr",
            f"host all,replication {ROLE} all reject",
            f"host postgres,replication {REPLICATION_ROLE} all scram-sha-256",
            f"host all {REPLICATION_ROLE} all reject",
            f"local all,replication {REPLICATION_ROLE} reject",
            "# ---",
            *rules,
            "",
        ]
    )


def ident(os_user: str, superuser: str = "postgres", lines: Sequence[str] = ()) -> str:
    """pg_ident.conf: which system user may be which role. ``lines``: `postgres.ident`."""
    user = _hba_word(os_user)
    own = f"# Written by pgr.\npgr {user} {ROLE}\npgr_owner {user} {_hba_word(superuser)}\n"
    return own + "".join(f"{line}\n" for line in lines)


def _hba_word(word: str) -> str:
    """Quoted, so that no name is taken for a keyword, a pattern or two words."""
    return '"{}"'.format(word.replace('"', '""'))
