"""Changes over HTTP, in Patroni's words: a request becomes one of the admin protocol, and its end an answer. Pure.

| request | body | answer |
| --- | --- | --- |
| `POST /switchover` | `{"leader": NAME, "candidate": NAME or absent}` | 200 when done, 400 wrong, 412 not possible, 503 not done in time |
| `POST /failover` | `{"candidate": NAME, "accept_data_loss": BOOL or absent}`; with `leader` a switchover | the same |
| `DELETE /switchover` | none | 404: nothing is scheduled |
| `POST /reinitialize` | `{}` or none, of the node that is asked; it always copies from the primary | 200 when begun, 503 refused |
| `PATCH /config` | what is to be other than `GET /config` says; null: back to the default; no hooks | 200 with the new `GET /config`, 400 wrong, 403 hooks, 412 not safe, 503 nobody to decide, or another change came first |
"""  # noqa: E501  (a table)

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from consensus.clusterwide import HBA, PARAMETERS
from supervisor.addresses import BadValue, parse_name
from supervisor.health import PATHS
from supervisor.health import answer as document
from supervisor.httpwire import READS, TEXT, Answer, Request, error
from supervisor.status import Snapshot

MOVE_TIMEOUT_MS: Final = 30_000
CONFIG_TIMEOUT_MS: Final = 10_000
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
    if body.get("scheduled_at"):
        raise BadBody(f"a {action} can't be scheduled over HTTP")
    if leader and leader == candidate:
        raise BadBody("leader and candidate are the same")
    primary = snapshot.primary.name if snapshot.primary is not None else ""
    if leader and leader != primary:
        return error(412, f"{leader} is not the primary", f"it is {primary}" if primary else "there is none")
    asked: dict[str, Any] = {"to": candidate or None, "by": by, "timeout_ms": MOVE_TIMEOUT_MS}
    if accept_loss:
        asked["accept_data_loss"] = True

    def done(result: Mapping[str, Any], _snapshot: Snapshot, _now_ns: int) -> Answer:
        to = str(result.get("to", ""))
        over = f"{action.removesuffix('over')}ed over"
        if candidate in ("", to):
            return _text(200, f'Successfully {over} to "{to}"')
        return _text(200, f'{over.capitalize()} to "{to}" instead of "{candidate}"')

    return Ask(action, asked, MOVE_TIMEOUT_MS, done, {64: 412, 75: 412, 78: 412})


def _unschedule(request: Request, _snapshot: Snapshot, _by: str) -> Answer:
    return _text(404, "no switchover is scheduled")


def _reinitialize(request: Request, snapshot: Snapshot, by: str) -> Ask:
    body = _body(request, optional=True)
    _known(body, "force", "from_leader", "from-leader")
    for name in body:
        _flag(body, name)
    asked = {"name": snapshot.node, "by": by, "timeout_ms": COPY_TIMEOUT_MS}
    begun = _text(200, "reinitialize started")
    return Ask("reinit", asked, COPY_TIMEOUT_MS, lambda *_: begun, {}, begun)


def _patch(request: Request, _snapshot: Snapshot, by: str) -> Ask:
    body = _body(request)
    wanted, unset = patched(body)
    if any(name.partition(".")[0] == "hooks" for name in (*wanted, *unset)):
        raise BadBody("hooks are commands that every node runs: `pgr config set` changes them, HTTP does not", 403)
    if not wanted and not unset:
        raise BadBody("nothing is to be changed")

    def done(_result: Mapping[str, Any], snapshot: Snapshot, now_ns: int) -> Answer:
        return document(snapshot, "/config", "", now_ns)

    asked = {"set": wanted, "unset": unset, "by": by, "timeout_ms": CONFIG_TIMEOUT_MS}
    return Ask("config.set", asked, CONFIG_TIMEOUT_MS, done, {64: 400, 78: 412, 75: 503})


def patched(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``(set, unset)`` of a patch of `GET /config`; Patroni's `postgresql` and `pg_hba` mean our `postgres` and `hba`.

    Raises BadBody. What the names and values may be is for the leader to say (clusterwide.py).
    """
    found: dict[str, Any] = {}
    for name, value in body.items():
        if name in ("postgres", "postgresql"):
            if not isinstance(value, dict):
                raise BadBody(f"{name} is an object with parameters and hba")
            _known(value, "parameters", "hba", "pg_hba")
            for inner, what in value.items():
                found |= _parameters(what) if inner == "parameters" else {HBA: what}
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
    ("/reinitialize", "POST"): _reinitialize,
    ("/config", "PATCH"): _patch,
}
_PATHS = {path for path, _ in _CHANGES}
