"""Requests that came by SQL, as files: what may be in one, what becomes of it, and what is answered. Pure.

A request is written by `pg_replica._request` (sqlcatalog.py) and by nobody else that may be heard: the directory is
open to this user alone, so whoever else writes there could do anything to this node. It is checked all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from supervisor.addresses import BadValue, parse_name
from supervisor.sqlcatalog import BY_NAME, TIMEOUT_MAX_S, Action

REQUEST_BYTES_MAX: Final = 4096
PROGRESS_MAX: Final = 100
"""Lines of an answer that are kept; a function shows each once."""
NAME: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.json")
_KEYS: Final = {"format": int, "action": str, "arguments": dict, "timeout_ms": int, "until_ms": int, "role": str,
                "address": str}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Malformed(Exception):
    """This is no request; ``reason`` for the log and for whoever waits."""

    reason: str
    hint: str = "use the functions of this version of pgr"


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asked for, as a request of the admin protocol."""

    name: str
    body: Mapping[str, Any]
    until_ms: int
    """By /proc/uptime: not begun after this, as the session that asked has given up."""
    timeout_ms: int


def read(data: bytes) -> Request:
    """The content of a request: one line as COPY writes it, which doubles backslashes. Raises Malformed."""
    if len(data) > REQUEST_BYTES_MAX:
        raise Malformed(f"it is longer than {REQUEST_BYTES_MAX} bytes")
    try:
        line = data.decode()
        if not line.endswith("\n") or "\n" in line[:-1]:
            raise Malformed("it is not one line")
        body = json.loads(line.replace("\\\\", "\\"))
    except (ValueError, RecursionError) as error:
        raise Malformed("it is no JSON") from error
    if not isinstance(body, dict) or {key: type(value) for key, value in body.items()} != _KEYS or body["format"] != 1:
        raise Malformed("it is of another form")
    action = BY_NAME.get(body["action"])
    if action is None:
        raise Malformed("there is no such action", f"actions: {', '.join(BY_NAME)}")
    if not 0 < body["timeout_ms"] <= TIMEOUT_MAX_S * 1000:
        raise Malformed("its timeout is out of range")
    asked = arguments(action, body["arguments"])
    asked |= {"by": f"{body['role']}@{body['address']} (SQL)", "timeout_ms": body["timeout_ms"]}
    return Request(action.name, asked, body["until_ms"], body["timeout_ms"])


def arguments(action: Action, given: Mapping[str, Any]) -> dict[str, Any]:
    """Each has its type, and text is the name of a member."""
    if set(given) != {a.name for a in action.arguments}:
        raise Malformed(f"{action.name} takes other arguments")
    found: dict[str, Any] = {}
    for argument in action.arguments:
        value = given[argument.name]
        if value is None and argument.optional:
            found[argument.field] = None
            continue
        if type(value) is not argument.type:
            raise Malformed(f"{argument.name} has to be given", f"{argument.name} is the name of a member")
        if isinstance(value, str):
            try:
                value = parse_name(value)
            except BadValue as error:
                raise Malformed(f"{argument.name} is not the name of a member", error.hint) from error
        found[argument.field] = [value] if argument.many else value
    return found


@dataclass(slots=True)
class Answer:
    """What the function of one request reads, over and over until it is done."""

    progress: tuple[str, ...] = ()
    end: Mapping[str, Any] | None = None

    def add(self, text: str) -> None:
        if text and len(self.progress) < PROGRESS_MAX:
            self.progress = (*self.progress, text)

    def done(self, result: Mapping[str, Any], warnings: list[str]) -> None:
        self.end = {"ok": True, "result": dict(result), "warnings": warnings}

    def failed(self, code: int, error: str, hint: str, warnings: tuple[str, ...] = ()) -> None:
        """``code``: an exit code of interfaces.md; SQLSTATE is PGR and this."""
        self.end = {"ok": False, "code": f"{code:02d}", "error": error, "hint": hint, "warnings": list(warnings)}

    def document(self) -> bytes:
        state = "taken" if self.end is None else "done"
        return dump({"state": state, "progress": list(self.progress)} | dict(self.end or {}))


def moved_away(node: str, event: str, fields: Mapping[str, Any]) -> bool:
    """Is the primary being moved away from this very node? Then the session that asked ends with it, and has to be told
    before."""
    return event == "accepted" and fields.get("from") == node


def dump(body: Mapping[str, Any]) -> bytes:
    """JSON in ASCII, whatever the encoding of the database that reads it; without what no text there may have."""
    return json.dumps(_clean(body), separators=(",", ":")).encode("ascii")


def _clean(value: Any) -> Any:
    """NUL and the halves of characters (of file names that are no UTF-8) are `?`."""
    match value:
        case str():
            return value.replace("\0", "?").encode(errors="replace").decode()
        case Mapping():
            return {_clean(key): _clean(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_clean(inner) for inner in value]
        case _:
            return value
