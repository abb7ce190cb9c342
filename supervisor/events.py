"""What happened, as `pgr events` tells it: which lines of the log count, what they mean, in which order. Pure.

A *record* is a flat dict, one line of DIR/log/events.jsonl and the JSON that a hook gets:

| field | what |
| --- | --- |
| `seq` | number in the store of the node that recorded it, rising |
| `at` | ISO 8601, UTC, by the wall clock of whoever it happened to |
| `node` | the node it is about |
| `by` | the node that recorded it |
| `scope` | `node`: it happened there; `cluster`: it stands in the log, and every node records it |
| `event` | its name |
| `level` | `info`, `warning` or `error` |
| `text` | one sentence |
| `fields` | what the log line or the entry has beside that |
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from supervisor.status import HistoryEvent, lsn_text

Record = dict[str, Any]

TEXTS: Mapping[str, str] = {
    "node.started": "pgr-supervise {version} is running",
    "node.stopping": "was asked to stop ({signal})",
    "node.reloaded": "has read its files again: {why}",
    "node.removed": "is no member any more: {reason}",
    "node.cannot_go_on": "can't go on: its {child} process ended with {exit_code}",
    "child.ended": "its {child} process ended with {code}; it is started again",
    "child.killed": "its {child} process did not end in time and was killed",
    "launcher.ended": "its launcher ended; it is started again",
    "raft.silent": "its raft process says nothing; it is killed and started again",
    "watchdog.silent": "its watchdog answers nothing; it is killed and started again",
    "watchdog.not_rearmed": "its new watchdog could not be armed yet",
    "watchdog.killed_postgres": "its watchdog killed Postgres",
    "raft.role": "{role} of term {term}; the leader is {leader}",
    "promotion.state": "{text}",
    "promise.given": "promised to term {term}: epoch {epoch} up to {lsn} {reason}",
    "freeze.slow": "its WAL receiver did not stop in time: Postgres is restarted ({error})",
    "fence.begin": "stops Postgres at once: {rule}",
    "fence.end": "Postgres is gone, verified, after {took_ms} ms",
    "fence.immediate_stop_slow": "Postgres did not stop within {after_ms} ms: it is killed",
    "fence.survivors": "processes of Postgres that can't be killed: {survivors}",
    "postgres.started": "Postgres is up, process {pid}",
    "postgres.stopping": "stops Postgres ({mode})",
    "postgres.stop_slow": "Postgres did not stop within {after_ms} ms: it is killed",
    "postgres.exited": "Postgres has ended: {reason}",
    "postgres.hung": "Postgres answers nothing: it is killed and started again",
    "postgres.promoted": "Postgres was promoted to timeline {timeline} at {lsn}, in {took_ms} ms",
    "postgres.promoted_by_a_stranger": "somebody else promoted Postgres: it is stopped",
    "postgres.insufficient": "Postgres is restarted: its primary was restarted with more",
    "postgres.quarantined": "Postgres does not start: {reason}",
    "promotion.failed": "was not primary {after_ms} ms after it was chosen",
    "gate.open": "is open to clients",
    "handover.no_checkpoint": "stops without a checkpoint: {error}",
    "stop.hand_over_slow": "nobody took over within {after_ms} ms",
    "stop.no_successor": "nobody takes over: {reason}",
    "follow.attached": "streams from {upstream}",
    "follow.moved": "is to stream from {upstream}, which is another or elsewhere",
    "follow.standby_lacks": "{upstream} lacks WAL that it needs: {hint}",
    "follow.diverged": "has {lost_bytes} bytes of WAL from {at} on that the primary has not: {reason}",
    "follow.no_position": "can't say how far its WAL goes, and is copied: {reason}",
    "follow.wal_gone": "the primary no longer has the WAL it needs: {hint}",
    "follow.other_history": "has another history than its primary",
    "start.inconsistent": "its copy is of no use: {reason}",
    "clone.begin": "copies {source}",
    "clone.end": "has copied {source}, in {took_ms} ms",
    "rewind.begin": "rewinds to {source}; {saved_bytes} bytes of WAL were saved",
    "rewind.end": "is rewound, in {took_ms} ms",
    "rewind.failed": "could not be rewound, and is copied: {error}",
    "data.moved_aside": "its old data was moved to {target}",
    "data.broken": "its data can't be used: {error}",
    "data.of_another_life": "its data is of another life of this node: {hint}",
    "salvage.saved": "saved {bytes} bytes of WAL to {place}",
    "salvage.removed": "removed the oldest saved WAL, {place}",
    "salvage.grows": "{kept} is kept in salvage, {free_mb} MB are free: {hint}",
    "salvage.untold": "saved WAL to {place}, and no leader took that into the log",
    "settings.applied": "wrote the settings of Postgres anew",
    "settings.failed": "can't write its settings: {error}",
    "settings.altered": "somebody has changed what pgr decides, and it is put back: {lines}",
    "settings.removed": "lines of postgresql.auto.conf were removed: {lines}",
    "settings.raised": "settings were raised, a standby would not start with less: {values}",
    "data.recovering": "replays the WAL of the data directory that it brings in: {state}",
    "data.adopted": "brought in the data directory {pgdata}: {text}",
    "cluster.created": "created the data of the cluster",
    "slot.created": "made the replication slot {slot}",
    "slot.dropped": "dropped the replication slot {slot}",
    "hook.end": "{hook} ended with {code} after {took_ms} ms",
    "hook.failed": "{hook} ended with {code} after {took_ms} ms: {said}",
    "hook.killed": "{hook} was killed after {after_ms} ms",
    "hook.not_killed": "{hook} can't be killed, process {pid}: {hint}",
    "hook.not_started": "{hook} can't be started: {error}",
    "hook.lost": "{hook}: {lost} calls were given up, too many were waiting",
    "warning.raised": "{text}",
    "warning.cleared": "no longer: {text}",
}
"""Lines of this node's log that count as events, and their sentences."""
_UNEXPECTED_ONLY = ("child.ended", "node.removed")
_BAD = ("failed", "vetoed", "recovered", "superseded", "rival")


def of_log(event: str, fields: Mapping[str, object]) -> str | None:
    """The sentence of a line of the log; None: it is no event."""
    form = TEXTS.get(event)
    if form is None or (event in _UNEXPECTED_ONLY and fields.get("expected") is True):
        return None
    if event == "raft.role" and not fields.get("leader"):
        return f"knows no leader, term {fields.get('term')}"
    words = {name: _word(name, value) for name, value in fields.items()}
    return " ".join(form.format_map(_Missing(words)).split())


class _Missing(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _word(name: str, value: object) -> str:
    match value:
        case None:
            return ""
        case int() if name == "lsn":
            return str(lsn_text(value))
        case list():
            return ", ".join(map(str, value))
        case dict():
            return ", ".join(f"{key} = {inner}" for key, inner in value.items())
        case _:
            return str(value)


def of_history(event: HistoryEvent) -> Record:
    """An entry of the replicated log as a record, without `seq` and `by`."""
    level = "warning" if event.kind in _BAD else "info"
    fields = {"term": event.term, **dict(event.details)}
    fields |= {"gap_ms": event.gap_ms} if event.gap_ms is not None else {}
    fields |= {"bytes_salvaged": event.bytes_salvaged} if event.bytes_salvaged else {}
    return {
        "at": event.at, "node": event.node, "scope": "cluster", "event": event.kind, "level": level,
        "text": event.reason, "fields": fields,
    }  # fmt: skip


def identity(record: Record) -> tuple[str, str, str, str]:
    """The same for the same entry of the log, whoever recorded it."""
    return str(record["at"]), str(record["event"]), str(record["node"]), str(record["text"])


def merged(records: Iterable[Record]) -> list[Record]:
    """Of several nodes, by their clocks; an entry of the replicated log once."""
    seen: set[tuple[str, str, str, str]] = set()
    found = []
    for record in sorted(records, key=lambda r: (str(r["at"]), str(r["by"]), int(r["seq"]))):
        if record["scope"] == "cluster":
            if identity(record) in seen:
                continue
            seen.add(identity(record))
        found.append(record)
    return found


_SPAN = re.compile(r"(\d+)\s*(s|min|m|h|d)")
_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def since(text: str, now: datetime) -> str:
    """``10min``, ``2h``, ``1d``, or an ISO 8601 time (of this machine's zone if it names none), as UTC. ValueError."""
    span = _SPAN.fullmatch(text.strip())
    if span is not None:
        at = now - timedelta(seconds=int(span[1]) * _SECONDS[span[2]])
    else:
        at = datetime.fromisoformat(text.strip())
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


AT_WIDTH = 24


def lines(records: Sequence[Record], width: int = 0, name_width: int = 0) -> list[str]:
    """For people: when, which node, what. ``width``: of the terminal; 0: nothing is wrapped."""
    name_width = max([name_width, *(len(str(r["node"])) for r in records)])
    found = []
    for record in records:
        mark = "" if record["level"] == "info" else f"{str(record['level']).upper()}: "
        head = f"{record['at']!s:<{AT_WIDTH}}  {record['node']!s:<{name_width}}  "
        text = f"{mark}{record['event']}: {record['text']}" if record["text"] else f"{mark}{record['event']}"
        if width <= len(head) + 20:
            found.append(head + text)
            continue
        found += textwrap.wrap(
            text, width, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
    return found
