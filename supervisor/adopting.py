"""A stand-alone Postgres that is brought into a cluster: what is refused, what is taken over, what pgr overrules. Pure.

The data directory becomes the cluster's first copy as it is. Its client rules (pg_hba.conf) go into the log, since pgr
writes that file on every node; its postgresql.conf stays in force, and copies get it, but for the settings pgr owns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consensus.clusterwide import IDENT, BadSetting, check, has_expression
from supervisor.settings import OWN_ROLE, REPLICATION_ROLE, ROLE, unquote

SIGNALS = ("standby.signal", "recovery.signal")
ROLES = (ROLE, REPLICATION_ROLE, "pgr_monitor", "pgr_admin")
RULES_BYTES_MAX = 100_000
_FOUND = re.compile(r'"pgr_found:(\{.*\})"\s+\(typeid = ')


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why this data directory is not taken, and the way out."""

    why: str
    hint: str


def refusal(pgdata: str, state: str, signals: Sequence[str]) -> Refusal | None:
    """``state``: "Database cluster state" of pg_control; ``signals``: those of SIGNALS that are there.

    A standby has a primary that may have more than it, and may still be running: as the cluster's only copy it would
    be a second primary. What waits for the end of a recovery is no whole cluster either.
    """
    if state in ("shut down in recovery", "in archive recovery") or signals:
        sign = f"it has a {signals[0]}" if signals else f"pg_control says {state!r}"
        return Refusal(
            f"{pgdata} is the data of a standby, or of a recovery that has not ended ({sign})",
            "bring in the primary's data directory instead, and move this one away: this node then copies it. If there "
            f"is no primary any more, start this one without pgr, run pg_ctl -D {pgdata} promote, stop it, and start "
            "pgr-supervise again",
        )
    if state not in ("shut down", "in production", "in crash recovery", "shutting down"):
        return Refusal(
            f"{pgdata} was never started to its end: pg_control says {state!r}",
            "start and stop it once without pgr, or name another data directory (--pgdata)",
        )
    return None


class BadRules(Exception):
    """Rules that cannot be the cluster's: which, and why."""


def rules_in(text: str, setting: str, own: Collection[str] = ()) -> list[str]:
    """The rules of a pg_hba.conf or pg_ident.conf as ``setting`` (`postgres.hba`, `postgres.ident`) has them: one line
    each, no comments. ``own``: what pgr writes there itself, and has left behind (`pgr leave`): passed over.

    Raises BadRules for what needs a second file (that no other node has), or what is no rule.
    """
    if len(text.encode(errors="replace")) > RULES_BYTES_MAX:
        raise BadRules(f"it has more than {RULES_BYTES_MAX} bytes")
    found: list[str] = []
    for line in text.replace("\\\n", " ").split("\n"):  # as Postgres does: no other character ends a line
        rule = re.sub(r"\s+", " ", _without_comment(line)).strip()
        if not rule or rule in own:
            continue
        words = rule.split()
        if words[0].startswith("include") or any(part.startswith("@") for word in words for part in word.split(",")):
            raise BadRules(f"{rule!r} names another file")
        try:
            check(setting, [rule])
        except BadSetting as error:
            raise BadRules(error.reason) from None
        if setting == IDENT and has_expression(rule):
            raise BadRules(f"{rule!r} has a regular expression, which only a primary's Postgres can check")
        found.append(rule)
    return found


def uses_maps(hba: Iterable[str]) -> bool:
    """Does any of these rules need a pg_ident.conf?"""
    return any(word.replace('"', "").startswith("map=") for rule in hba for word in rule.split())


def _without_comment(line: str) -> str:
    """A # in quotes is none."""
    quoted = False
    for at, letter in enumerate(line):
        if letter == '"':
            quoted = not quoted
        elif letter == "#" and not quoted:
            return line[:at]
    return line


def brings(hba: Iterable[str], ident: Iterable[str], wal_level: str, parameters: Mapping[str, str]) -> str:
    """JSON for `founding.Greeting`. ``parameters``: those of the founding. Logical slots, which Postgres refuses to
    start with if there is less, must not keep it from starting."""
    level = {"wal_level": "logical"} if wal_level == "logical" else {}
    return json.dumps({"hba": list(hba), "ident": list(ident), "parameters": level | dict(parameters)})


# -- what a look into it says ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """What was in it before pgr changed anything."""

    strangers: tuple[str, ...]
    """Roles that are called like pgr's and are somebody else's."""
    settings: tuple[tuple[str, str, str], ...]
    """Of its configuration files: name, value, ``file:line``; of each name the one in force."""
    slots: tuple[tuple[str, str], ...]
    """Name, and physical or logical."""


def look_sql(owned: Iterable[str]) -> str:
    """One query for `postgres --single`; ``owned``: names of settings. Its answer is for `found`."""
    names = ", ".join(f"'{name}'" for name in sorted(owned))
    roles = ", ".join(f"'{name}'" for name in ROLES)
    return (
        "SELECT 'pgr_found:' || json_build_object("  # noqa: S608  # names of settings and roles, all of them ours
        "'strangers', (SELECT coalesce(json_agg(rolname ORDER BY rolname), '[]') FROM pg_authid"
        f" WHERE rolname IN ({roles}) AND coalesce(shobj_description(oid, 'pg_authid'), '') <> '{OWN_ROLE}'),"
        " 'settings', (SELECT coalesce(json_agg(json_build_array(name, setting, sourcefile || ':' || sourceline)"
        f" ORDER BY seqno), '[]') FROM pg_file_settings WHERE name IN ({names})),"
        " 'slots', (SELECT coalesce(json_agg(json_build_array(slot_name, slot_type) ORDER BY slot_name), '[]')"
        " FROM pg_replication_slots))"
    )


def answer(output: str) -> dict[str, Any]:
    """The JSON after ``pgr_found:`` in what `postgres --single` printed. Raises ValueError."""
    match = _FOUND.search(output)
    if match is None:
        raise ValueError("postgres --single gave no usable answer")
    body: dict[str, Any] = json.loads(match[1])
    return body


def found(output: str) -> Found:
    """From what it printed for `look_sql`. Raises ValueError."""
    body = answer(output)
    last = {str(name): (str(value), str(place)) for name, value, place in body["settings"]}
    return Found(
        tuple(body["strangers"]),
        tuple((name, *rest) for name, rest in last.items()),
        tuple((str(name), str(kind)) for name, kind in body["slots"]),
    )


def strangers_refused(strangers: Sequence[str], pgdata: str) -> Refusal:
    one = strangers[0]
    return Refusal(
        f"{pgdata} has roles that pgr makes for itself, and that are somebody else's: {', '.join(strangers)} "
        f"(pgr would make a superuser of {ROLE})",
        f"start it once more without pgr and rename them (ALTER ROLE {one} RENAME TO {one}_old), stop it, then start "
        "pgr-supervise again",
    )


def overruled(settings: Iterable[tuple[str, str, str]], owned: Mapping[str, str]) -> list[str]:
    """``name (file:line)`` of what its files say and pgr says otherwise. No values: some are secrets."""
    different = (n for n in settings if n[0] in owned and not _same(n[1], owned[n[0]]))
    return [f"{name} ({place})" for name, _, place in different]


def _same(one: str, other: str) -> bool:
    words = {"on": "true", "yes": "true", "1": "true", "off": "false", "no": "false", "0": "false"}
    first, second = (words.get(unquote(text).lower(), unquote(text).lower()) for text in (one, other))
    return first == second


def report(rules: int, overruled: Sequence[str], slots: Sequence[tuple[str, str]], *, hints_only: bool) -> list[str]:
    """Sentences for people, about what is not what it was. ``rules``: how many; ``hints_only``: no checksums."""
    whose = f"those of pgr config get postgres.hba ({rules})" if rules else "pgr's defaults"
    found = [f"client rules are {whose} from now on; edits of its pg_hba.conf have no effect any more"]
    if overruled:
        found.append(f"settings of its files that have no effect any more, pgr owns them: {', '.join(overruled)}")
    if slots:
        names = ", ".join(f"{name} ({kind})" for name, kind in slots)
        found.append(f"replication slots it had, which hold WAL until they are used or dropped: {names}")
    if hints_only:
        found.append(
            "it has no data checksums; so that pg_rewind works, pgr sets wal_log_hints = on (pg_checksums --enable, "
            "with Postgres stopped, would be better)"
        )
    return found
