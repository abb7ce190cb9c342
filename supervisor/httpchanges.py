"""Changes over HTTP, in Patroni's words: a request becomes one of the admin protocol, and its end an answer. Pure.

| request | body | answer |
| --- | --- | --- |
| `POST /switchover` | `{"leader": NAME, "candidate": NAME or absent}` | 200 when done, 400 wrong, 412 not possible, 503 not done in time |
| | the same with `"scheduled_at": TIME`, ISO 8601 with a zone | 202 when the log has it, 409 something is scheduled already, 422 no such time |
| `POST /failover` | `{"candidate": NAME, "accept_data_loss": BOOL or absent}`; with `leader` a switchover | the same |
| `DELETE /switchover` | none | 200 it is not scheduled any more, 404 none was |
| `POST /restart` | of the node that is asked: `{"restart_pending": BOOL, "role": "primary" or "replica", "postgres_version": "18.6", "timeout": SECONDS}`, each of them or none | 200 when it is back, 400 wrong, 503 it is not, or a condition does not hold |
| | `{"schedule": TIME, "restart_pending": BOOL, "timeout": SECONDS}` | 202, 409, 422 as above |
| `DELETE /restart` | none | 200 it is not scheduled any more, 404 none was |
| `POST /reload` | none | 202 when its Postgres has read its files again, 503 it has not |
| `POST /reinitialize` | `{}` or none, of the node that is asked; it always copies from the primary | 200 when begun, 503 refused |
| `PATCH /config` | what is to be other than `GET /config` says; null: back to the default; no hooks | 200 with the new `GET /config`, 400 wrong, 403 hooks, 412 not safe, 503 nobody to decide, or another change came first |
| `PUT /config` | all that is to be other than the default; what is not named, or null, goes back to it. What `GET /config` says may be there as it is, and changes nothing: of profile and timings what is in force, of hooks what is set, which stays anyway | the same |
"""  # noqa: E501  (a table)

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from consensus.clusterwide import HBA, IDENT, PARAMETERS, SLOTS
from consensus.operations import VERSION, parts
from supervisor.addresses import BadValue, parse_name
from supervisor.health import PATHS
from supervisor.health import answer as document
from supervisor.httpwire import READS, TEXT, Answer, Request, error
from supervisor.status import Snapshot

MOVE_TIMEOUT_MS: Final = 30_000
CONFIG_TIMEOUT_MS: Final = 10_000
RESTART_TIMEOUT_S: Final = 300
RESTART_TIMEOUT_MAX_S: Final = 3_600
QUEUE_MS: Final = 60_000
"""Beyond the time a restart may take: until it is its turn."""
RELOAD_TIMEOUT_MS: Final = 30_000
TIME_MAX: Final = 64
COPY_TIMEOUT_MS: Final = 3_600_000
"""Nobody waits for it here: the answer goes out when it begins."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of the admin protocol (admin.py)."""

    name: str
    body: dict[str, Any]
    timeout_ms: int
    done: Callable[[Mapping[str, Any], Snapshot, int], Answer]
    """What its result is over HTTP; of the newest snapshot, now."""
    refused: Mapping[int, int]
    """By exit code, before it was accepted; anything else, and everything afterwards: 503."""
    begun: Answer | None = None
    """Answered as soon as it is accepted."""


class BadBody(ValueError):
    """Answered with 400, or 411 where a body is missing."""

    def __init__(self, why: str, status: int = 400) -> None:
        super().__init__(why)
        self.status = status


def translate(request: Request, snapshot: Snapshot, by: str) -> Ask | Answer:
    """``by``: who asks, for the history."""
    known = {method: path for path, method in _CHANGES if path == request.path}
    if request.method not in known:
        if known or request.path in PATHS:
            allow = ", ".join([*(READS if request.path in PATHS else ()), *known])
            refusal = error(405, f"{request.method} {request.path} is not known", f"known is: {allow}")
            return refusal._replace(headers=(("Allow", allow),))
        return error(404, f"nothing can be changed at {request.path}", f"known are: {' '.join(sorted(_PATHS))}")
    try:
        return _CHANGES[request.path, request.method](request, snapshot, by)
    except BadBody as bad:
        return error(bad.status, str(bad))


def failed(ask: Ask, code: int, why: str, hint: str, *, accepted: bool) -> Answer:
    return error(503 if accepted else ask.refused.get(code, 503), why, hint)


# -- bodies ------------------------------------------------------------------------------------------------------------


def _body(request: Request, *, optional: bool = False) -> dict[str, Any]:
    if not request.length:
        if optional:
            return {}
        raise BadBody("a JSON object is needed", 400 if "content-length" in request.headers else 411)
    try:
        found = json.loads(request.body, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as bad:  # includes UnicodeDecodeError
        raise BadBody(f"the body is no JSON object: {bad}") from None
    if not isinstance(found, dict):
        raise BadBody("the body is no JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number


def _known(body: Mapping[str, Any], *names: str) -> None:
    for name in body:
        if name not in names:
            raise BadBody(f"{name!r} is not known here; known are: {', '.join(names)}")


def _name(body: Mapping[str, Any], key: str) -> str:
    """A member's name, or an empty string."""
    value = body.get(key)
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise BadBody(f"{key} is the name of a member, not {value!r}")
    try:
        return parse_name(value)
    except BadValue as bad:
        raise BadBody(f"{key}: {bad.why}") from None


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise BadBody(f"{key} is true or false, not {value!r}")
    return value


# -- the changes -------------------------------------------------------------------------------------------------------


def _move(request: Request, snapshot: Snapshot, by: str) -> Ask | Answer:
    action = request.path.removeprefix("/")
    body = _body(request)
    _known(body, "leader", "candidate", "member", "scheduled_at", "accept_data_loss")
    leader, candidate = _name(body, "leader"), _name(body, "candidate") or _name(body, "member")
    accept_loss = _flag(body, "accept_data_loss")
    if action == "switchover" and not leader:
        raise BadBody("a switchover names the leader: it says from whom")
    if action == "failover" and not candidate:
        raise BadBody("a failover names the candidate: it says to whom")
    if leader:
        action = "switchover"
    if accept_loss and action == "switchover":
        raise BadBody("a switchover loses nothing: accept_data_loss is for a failover")
    at = _time(body, "scheduled_at")
    if at and action == "failover":
        raise BadBody("a failover can't be scheduled: whoever needs one needs it now")
    if leader and leader == candidate:
        raise BadBody("leader and candidate are the same")
    primary = snapshot.primary.name if snapshot.primary is not None else ""
    if leader and leader != primary:
        return error(412, f"{leader} is not the primary", f"it is {primary}" if primary else "there is none")
    asked: dict[str, Any] = {"to": candidate or None, "by": by, "timeout_ms": MOVE_TIMEOUT_MS}
    if at:
        return _scheduled(snapshot) or Ask(action, asked | {"at": at}, MOVE_TIMEOUT_MS, _later, LATER)
    if accept_loss:
        asked["accept_data_loss"] = True

    def done(result: Mapping[str, Any], _snapshot: Snapshot, _now_ns: int) -> Answer:
        to = str(result.get("to", ""))
        over = f"{action.removesuffix('over')}ed over"
        if candidate in ("", to):
            return _text(200, f'Successfully {over} to "{to}"')
        return _text(200, f'{over.capitalize()} to "{to}" instead of "{candidate}"')

    return Ask(action, asked, MOVE_TIMEOUT_MS, done, {64: 412, 75: 412, 78: 412})


LATER: Final = {64: 422, 75: 503, 78: 412}


def _time(body: Mapping[str, Any], key: str) -> str:
    """As it was given, or an empty string; what it means is for the leader to say, by its clock."""
    value = body.get(key)
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or len(value) > TIME_MAX:
        raise BadBody(f"{key} is a time, such as 2030-01-31T02:00:00+00:00, not {value!r:.60}")
    return value


def _scheduled(snapshot: Snapshot) -> Answer | None:
    """One at a time."""
    planned = snapshot.scheduled
    if planned is None:
        return None
    return error(409, f"a {planned['what']} is scheduled already, for {planned['at']}", f"DELETE /{planned['what']}")


def _later(result: Mapping[str, Any], _snapshot: Snapshot, _now_ns: int) -> Answer:
    return _text(202, f"{str(result['scheduled']).capitalize()} scheduled for {result['at']}")


def _unschedule(request: Request, snapshot: Snapshot, by: str) -> Ask | Answer:
    what = request.path.removeprefix("/")
    if snapshot.scheduled is None or snapshot.scheduled["what"] != what:
        return _text(404, f"no {what} is scheduled")

    def done(_result: Mapping[str, Any], _snapshot: Snapshot, _now_ns: int) -> Answer:
        return _text(200, f"scheduled {what} deleted")

    asked = {"what": what, "by": by, "timeout_ms": CONFIG_TIMEOUT_MS}
    return Ask("schedule.cancel", asked, CONFIG_TIMEOUT_MS, done, {64: 404})


def _restart(request: Request, snapshot: Snapshot, by: str) -> Ask | Answer:
    """Of this node; conditions are looked at here and now, but for what a restart at its time looks at then."""
    body = _body(request, optional=True)
    _known(body, "schedule", "restart_pending", "role", "postgres_version", "timeout")
    at, pending, timeout_s = _time(body, "schedule"), _flag(body, "restart_pending"), _seconds(body, "timeout")
    unmet = _unmet(body, snapshot)
    if at and ("role" in body or "postgres_version" in body):
        raise BadBody("role and postgres_version are looked at now: they do not go with schedule")
    asked = {
        "nodes": [snapshot.node], "pending": pending, "force": False, "timeout_s": timeout_s, "by": by,
        "timeout_ms": CONFIG_TIMEOUT_MS,
    }  # fmt: skip
    if at:
        return _scheduled(snapshot) or Ask("restart", asked | {"at": at}, CONFIG_TIMEOUT_MS, _later, LATER)
    if pending and not snapshot.own.pending_restart:
        unmet = "nothing waits for a restart"
    if unmet:
        return error(503, f"restart conditions are not satisfied: {unmet}", "see GET /patroni of this node")

    def done(result: Mapping[str, Any], _snapshot: Snapshot, _now_ns: int) -> Answer:
        if snapshot.node in result["restarted"]:
            return _text(200, "restarted successfully")
        return error(503, "restart conditions are not satisfied: nothing waits for a restart", "see GET /patroni")

    timeout_ms = timeout_s * 1000 + QUEUE_MS
    return Ask("restart", asked | {"timeout_ms": timeout_ms}, timeout_ms, done, {64: 400})


def _seconds(body: Mapping[str, Any], key: str) -> int:
    """Patroni's clients send a number, or text that is one."""
    value = body.get(key)
    if value is None:
        return RESTART_TIMEOUT_S
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9 else value
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= RESTART_TIMEOUT_MAX_S:
        raise BadBody(f"{key} is a number of seconds, 1 to {RESTART_TIMEOUT_MAX_S}, not {value!r:.60}")
    return number


def _unmet(body: Mapping[str, Any], snapshot: Snapshot) -> str:
    """Which condition does not hold; empty: all do."""
    role, version = body.get("role"), body.get("postgres_version")
    if role is not None:
        if role not in ("primary", "master", "replica"):
            raise BadBody(f"role is primary or replica, not {role!r:.60}")
        if (snapshot.role == "primary") is (role == "replica"):
            return f"{snapshot.node} is a {snapshot.role}"
    if version is not None:
        if not isinstance(version, str) or not re.fullmatch(VERSION, version):
            raise BadBody(f"postgres_version is a version such as 18.6, not {version!r:.60}")
        if parts(snapshot.own.version) >= parts(version):
            return f"it runs {snapshot.own.version or 'an unknown version'}"
    return ""


def _reload(request: Request, snapshot: Snapshot, by: str) -> Ask:
    _known(_body(request, optional=True))

    def done(result: Mapping[str, Any], _snapshot: Snapshot, _now_ns: int) -> Answer:
        waits = str(result["nodes"][snapshot.node])
        if waits.startswith("not reloaded"):
            return error(503, waits, "see GET /patroni of this node")
        return _text(202, f"reloaded; {waits}" if waits else "reloaded")

    asked = {"nodes": [snapshot.node], "by": by, "timeout_ms": RELOAD_TIMEOUT_MS}
    return Ask("reload", asked, RELOAD_TIMEOUT_MS, done, {})


def _reinitialize(request: Request, snapshot: Snapshot, by: str) -> Ask:
    body = _body(request, optional=True)
    _known(body, "force", "from_leader", "from-leader")
    for name in body:
        _flag(body, name)
    asked = {"name": snapshot.node, "by": by, "timeout_ms": COPY_TIMEOUT_MS}
    begun = _text(200, "reinitialize started")
    return Ask("reinit", asked, COPY_TIMEOUT_MS, lambda *_: begun, {}, begun)


def _patch(request: Request, _snapshot: Snapshot, by: str) -> Ask:
    wanted, unset = patched(_body(request))
    if not wanted and not unset:
        raise BadBody("nothing is to be changed")
    return _config(wanted, unset, by)


def _put(request: Request, snapshot: Snapshot, by: str) -> Ask:
    """A null is as good as nothing: the default."""
    body = _body(request)
    if "hooks" in body and body["hooks"] == json.loads(document(snapshot, "/config", "", 0).body).get("hooks"):
        del body["hooks"]  # as they were shown
    return _config(patched(body)[0], None, by)


def _config(wanted: dict[str, Any], unset: list[str] | None, by: str) -> Ask:
    if any(name.partition(".")[0] == "hooks" for name in (*wanted, *(unset or ()))):
        raise BadBody("hooks are commands that every node runs: `pgr config set` changes them, HTTP does not", 403)

    def done(_result: Mapping[str, Any], snapshot: Snapshot, now_ns: int) -> Answer:
        return document(snapshot, "/config", "", now_ns)

    asked = {"set": wanted, "unset": unset, "by": by, "timeout_ms": CONFIG_TIMEOUT_MS}
    return Ask("config.set", asked, CONFIG_TIMEOUT_MS, done, {64: 400, 78: 412, 75: 503})


_RULES: Final = {"hba": HBA, "pg_hba": HBA, "ident": IDENT, "pg_ident": IDENT}


def patched(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``(set, unset)`` of a patch of `GET /config`; Patroni's `postgresql`, `pg_hba` and `pg_ident` mean
    our `postgres`, `hba` and `ident`.

    Raises BadBody. What the names and values may be is for the leader to say (clusterwide.py).
    """
    found: dict[str, Any] = {}
    for name, value in body.items():
        if name in ("postgres", "postgresql"):
            if not isinstance(value, dict):
                raise BadBody(f"{name} is an object with parameters, hba and ident")
            _known(value, "parameters", *_RULES)
            for inner, what in value.items():
                found |= _parameters(what) if inner == "parameters" else {_RULES[inner]: what}
        elif name == "slots":
            if not isinstance(value, dict):
                raise BadBody("slots is an object; a slot is removed with null")
            found |= {f"{SLOTS}{slot}": what for slot, what in value.items()}
        else:
            found[name] = value
    return {n: v for n, v in found.items() if v is not None}, sorted(n for n, v in found.items() if v is None)


def _parameters(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadBody("postgres.parameters is an object; a parameter goes back to its default with null")
    return {f"{PARAMETERS}{name}": what for name, what in value.items()}


def _text(status: int, text: str) -> Answer:
    return Answer(status, TEXT, text.encode() + b"\n")


_CHANGES: dict[tuple[str, str], Callable[[Request, Snapshot, str], Ask | Answer]] = {
    ("/switchover", "POST"): _move,
    ("/switchover", "DELETE"): _unschedule,
    ("/failover", "POST"): _move,
    ("/restart", "POST"): _restart,
    ("/restart", "DELETE"): _unschedule,
    ("/reload", "POST"): _reload,
    ("/reinitialize", "POST"): _reinitialize,
    ("/config", "PATCH"): _patch,
    ("/config", "PUT"): _put,
}
_PATHS = {path for path, _ in _CHANGES}
