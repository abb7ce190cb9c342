"""What the node of an output script answers: one that is well, and others by name (``@ node NAME``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consensus import recovery
from consensus.cluster import canonical
from fencing.lease import PROFILES
from fencing.wire import Frame
from supervisor import admin, configview
from supervisor.errors import PgrError, RefusedError, TryAgainError
from supervisor.status import event_json, to_json, uris
from tests.unit.snapshots import HISTORY, NOW, snapshot
from tests.unit.test_cli import dry_handler
from tests.unit.test_events import record
from tests.unit.test_explain import ask
from tests.unit.test_observe import agreed
from tests.unit.test_recovery import foresee, state

Answer = dict[str, Any] | PgrError | list[bytes]

EVENTS = [
    record(1),
    record(2, node="b", scope="cluster", event="opened", text="is open to clients", at="2026-11-22T20:00:02.500Z"),
    record(3, event="fence.begin", level="warning", fields={"rule": "authority-lost"},
           text="stops Postgres at once: the lease or the grant of this primary is gone: stop Postgres at once"),
]  # fmt: skip
SETTINGS = agreed(config=canonical({"strict": False, "postgres.parameters.work_mem": "8MB", "postgres.hba": []}))
CHANGED = {"at": "2026-11-22T20:05:00Z", "kind": "config", "reason": "eve@host: strict: true -> false", "node": "a"}


def well(frame: Frame) -> list[bytes]:
    """A cluster of three; steps come before the results of what takes long."""
    id, body = frame.id, frame.body
    if frame.name == "status" and body.get("watch"):
        end = admin.answer(id, error=TryAgainError("this node is stopping", "watch another member"))
        return [admin.progress(id, "status.changed", "", to_json(snapshot(), NOW)), end]
    if frame.name == "events":
        told = admin.progress(id, "events", "", {"node": "a", "events": EVENTS})
        where = {"node": "a", "members": {"a": "127.0.0.1:1"}, "key_file": "/nowhere"}
        if body.get("follow"):
            return [told, admin.answer(id, error=TryAgainError("this node is stopping", "ask another member"))]
        return [told, admin.answer(id, where)] if body.get("last") != 0 else [admin.answer(id, where)]
    if frame.name in ("switchover", "failover") and body.get("dry_run"):
        return dry_handler(frame)
    found, steps = result(frame.name, body)
    error = found if isinstance(found, PgrError) else None
    told_steps = [admin.progress(id, "step", text) for text in steps]
    return [*told_steps, admin.answer(id, None if isinstance(found, PgrError) else found, error)]


def result(name: str, body: dict[str, Any]) -> tuple[dict[str, Any] | PgrError, tuple[str, ...]]:
    who = str(body.get("name", ""))
    moved = {"from": "a", "to": body.get("to") or "b", "term": 8, "timeline": 3, "gap_ms": 212}
    match name:
        case "status":
            return to_json(snapshot(), NOW), ()
        case "history":
            return {"history": [*(event_json(e) for e in HISTORY), CHANGED]}, ()
        case "uri":
            return dict(uris(snapshot(), body["dbname"], body["user"])), ()
        case "explain":
            from supervisor import explain

            return explain.to_json(ask()), ()
        case "config.show":
            return {"index": 12, "settings": configview.rows(SETTINGS, PROFILES["default"])}, ()
        case "config.set":
            changes = {"strict": [False, True]} if "strict" in (*body["set"], *body["unset"]) else {}
            return {"changes": changes, "notes": ["mind"] if changes else [], "after": 12, "index": 13}, ()
        case "switchover" | "restart" if body.get("at"):
            return {"scheduled": name, "at": "2030-01-01T00:05:00Z"}, ()
        case "switchover" | "failover":
            return moved, ("a: stopping Postgres", "b: promoting")
        case "schedule.cancel":
            return {"cancelled": body["what"]}, ()
        case "member.add":
            return {"name": who, "role": body["role"]}, (f"member: {who} is to be a {body['role']}",)
        case "member.remove" | "member.replace":
            return {"name": who, "role": "gone"}, (f"member: {who} is to be removed",)
        case "pause" | "resume":
            return {"paused": name == "pause", "changed": True}, ()
        case "restart":
            return {"restarted": ["b", "c", "a"]}, ("turn: b", "turn: c", "turn: a")
        case "reload":
            return {"nodes": {"a": "", "b": "max_connections waits for a restart"}}, ()
        case "fence" | "unfence" | "reinit":
            return {"name": who}, ()
        case "recover" if body.get("dry_run"):
            return {"from": "", "to": "c", "refusal": None, "outlook": recovery.plain(foresee(nowhere()))}, ()
        case _:  # recover
            return {"from": "", "to": "c", "term": 1_048_590, "timeline": 40, "gap_ms": 90}, ("recovered: by c",)


def nowhere() -> Any:
    """A cluster whose other members have addresses at which nobody answers."""
    found = state()
    closed = "127.0.0.1:1"
    from dataclasses import replace

    return replace(found, members=tuple(m._replace(raft=closed, postgres=closed, http=closed) for m in found.members))


def refusing(frame: Frame) -> list[bytes]:
    """Whatever is asked for."""
    return [admin.answer(frame.id, error=RefusedError("a standby is needed for that", "bring b back first"))]


def warning(frame: Frame) -> list[bytes]:
    """As `well`, and there is something that people should see whatever they ask for."""
    found, _ = result(frame.name, frame.body)
    assert not isinstance(found, PgrError)
    return [admin.answer(frame.id, found, warnings=("the cluster is paused",))]


NODES: dict[str, Callable[[Frame], list[bytes]]] = {"well": well, "refusing": refusing, "warning": warning}
