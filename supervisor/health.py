"""HTTP for load balancers and people: Patroni's paths and codes, answered from the current Snapshot alone. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from consensus.membership import WITNESS
from consensus.tags import NOLOADBALANCE
from supervisor import metrics
from supervisor.httpwire import Answer, as_json, error
from supervisor.status import Member, Snapshot, lsn_text, receive_lag_bytes, serves_writes, to_json

DEFAULT_LAG_BYTES = 1 << 20
"""Of /readiness, unless ``lag`` or ``maximum_lag_on_failover`` says otherwise (Patroni's default)."""

PATRONI = "4.0.0"
"""Whose words these are: clients (check_patroni, for one) go by it when they read the rest. Ours is `pgr_version`."""


class BadQuery(ValueError):
    """A query that would otherwise be ignored without a word; answered with 400."""


Check = Callable[[Snapshot, Mapping[str, str], int], bool]

# What each path asks of the node.


def _running(snapshot: Snapshot) -> bool:
    return snapshot.state in ("running", "streaming")


def _tags_match(snapshot: Snapshot, query: Mapping[str, str]) -> bool:
    """Text as it is written, true and false in lower case, as Patroni compares them."""
    tags = snapshot.own.tags
    wanted = {name[4:]: value for name, value in query.items() if name.startswith("tag_")}
    return all(name in tags and _tag_text(tags[name]) == value for name, value in wanted.items())


def _tag_text(value: str | int | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _lag_ok(lag_bytes: int | None, limit_bytes: int | None) -> bool:
    """An unknown lag satisfies no limit."""
    return limit_bytes is None or (lag_bytes is not None and lag_bytes <= limit_bytes)


def _lag_limit(query: Mapping[str, str]) -> int | None:
    return parse_bytes(query["lag"]) if "lag" in query else None


def _primary(snapshot: Snapshot, _query: Mapping[str, str], now_ns: int) -> bool:
    """Whatever its tags, as with Patroni: there is one, and a check that misses it stops all writes."""
    return serves_writes(snapshot, now_ns)


def _either(check: Check) -> Check:
    """The primary, if its tags match, or what ``check`` says."""
    return lambda s, q, n: (_primary(s, q, n) and _tags_match(s, q)) or check(s, q, n)


def _never(_snapshot: Snapshot, _query: Mapping[str, str], _now_ns: int) -> bool:
    return False


_REPLICAS = ("replica", "learner")
"""A learner serves reads like any other: what it does not do is vote."""


def _replica(snapshot: Snapshot, query: Mapping[str, str], _now_ns: int) -> bool:
    state = query.get("replication_state", snapshot.state)
    return (
        snapshot.role in _REPLICAS
        and _running(snapshot)
        and state == snapshot.state
        and snapshot.own.tags.get(NOLOADBALANCE) is not True
        and _lag_ok(snapshot.own.lag_bytes, _lag_limit(query))
        and _tags_match(snapshot, query)
    )


def _sync(snapshot: Snapshot, query: Mapping[str, str], now_ns: int) -> bool:
    return snapshot.own.sync == "sync" and _replica(snapshot, query, now_ns)


def _quorum(snapshot: Snapshot, query: Mapping[str, str], now_ns: int) -> bool:
    return snapshot.own.sync != "" and _replica(snapshot, query, now_ns)


def _async(snapshot: Snapshot, query: Mapping[str, str], now_ns: int) -> bool:
    return snapshot.own.sync == "" and _replica(snapshot, query, now_ns)


def _readiness(snapshot: Snapshot, query: Mapping[str, str], now_ns: int) -> bool:
    mode = query.get("mode", "apply")
    if mode not in ("apply", "write"):
        raise BadQuery(f"mode must be apply or write, not {mode!r}")
    limit = _lag_limit(query)
    if limit is None:
        limit = int(snapshot.config.get("maximum_lag_on_failover", DEFAULT_LAG_BYTES))
    lag = snapshot.own.lag_bytes if mode == "apply" else receive_lag_bytes(snapshot, snapshot.own)
    streams = snapshot.role in _REPLICAS and snapshot.state == "streaming" and _lag_ok(lag, limit)
    return serves_writes(snapshot, now_ns) or streams


CHECKS: tuple[tuple[tuple[str, ...], Check, str], ...] = (
    (("/", "/primary", "/read-write", "/leader", "/master"), _primary, "the primary, its gate open and its lease live, "
     "whatever its tags"),
    (("/standby-leader", "/standby_leader"), _never, "never: pgr has no standby clusters"),
    (("/replica",), _replica, "a running replica without the tag `noloadbalance`; `?lag=10MB`: replayed up to that, "
     "`&replication_state=streaming`, `&tag_NAME=VALUE`"),
    (("/read-only",), _either(_replica), "`/primary` or `/replica`; `&tag_NAME=VALUE` is asked of both"),
    (("/sync", "/synchronous"), _sync, "`/replica`, and every commit waits for this node"),
    (("/quorum",), _quorum, "`/replica`, and this node counts towards the commit quorum"),
    (("/async", "/asynchronous"), _async, "`/replica`, and no commit waits for this node"),
    (("/read-only-sync", "/read-only-synchronous"), _either(_sync), "`/primary` or `/sync`"),
    (("/read-only-quorum",), _either(_quorum), "`/primary` or `/quorum`"),
    (("/health",), lambda s, q, _n: _running(s) and _tags_match(s, q), "Postgres is running"),
    (("/liveness",), lambda _s, _q, _n: True, "always: the supervisor's loop gave this answer"),
    (("/readiness",), _readiness, "the primary, or a streaming replica not further behind than `?lag=` "
     "(default `maximum_lag_on_failover`); `&mode=apply` (default) counts replay, `write` what is flushed"),
)  # fmt: skip
"""Paths, test, and the sentence for REFERENCE.md: 200 when it holds, else 503. Queries that make no sense: 400."""


# The documents, always 200.


def _patroni(snapshot: Snapshot, now_ns: int) -> dict[str, Any]:
    """Patroni's ``GET /patroni``; what pgr does not know in that form is left out, and, as there, what is only of note
    when it holds: pause, pending_restart, cluster_unlocked, tags."""
    own = snapshot.own
    primary = snapshot.role == "primary"
    out: dict[str, Any] = {"state": _state(snapshot.state), "role": _role(snapshot.role)}
    if _running(snapshot):
        out |= {"server_version": _version_number(own.version), "timeline": own.timeline}
        out["xlog"] = {"location": own.lsn or 0} if primary else {
            "received_location": own.lsn or 0, "replayed_location": own.replay_lsn or 0,
            "replayed_timestamp": own.replayed_at or None, "paused": own.replay_paused,
        }  # fmt: skip
        if own.started:
            out["postmaster_start_time"] = own.started
    if not primary and snapshot.state == "streaming":
        out["replication_state"] = "streaming"
    planned = snapshot.scheduled
    if planned is not None and planned["what"] == "restart" and own.name in (planned["nodes"] or [own.name]):
        only = {"restart_pending": True} if planned["pending"] else {}
        out["scheduled_restart"] = {"schedule": planned["at"]} | only
    if own.sync:
        out["sync_standby" if own.sync == "sync" else "quorum_standby"] = True
    if serves_writes(snapshot, now_ns):
        out["replication"] = [
            {
                "usename": "pgr_replication", "application_name": m.name, "client_addr": m.host, "state": m.state,
                "sync_state": m.sync or "async", "sync_priority": int(bool(m.sync)),
            }
            for m in snapshot.members
            if m.role in _REPLICAS and m.state == "streaming" and not m.upstream
        ]  # fmt: skip
    noted = {
        "pending_restart": own.pending_restart, "pending_restart_reason": _reasons(own),
        "cluster_unlocked": snapshot.primary is None, "pause": snapshot.paused, "tags": dict(own.tags),
    }  # fmt: skip
    out |= {name: value for name, value in noted.items() if value}
    if snapshot.system_identifier:
        out["database_system_identifier"] = snapshot.system_identifier
    return out | {"patroni": {"version": PATRONI, "scope": snapshot.cluster_id, "name": snapshot.node}}


_STATES = {
    "streaming": "running", "cloning": "creating replica", "creating": "initializing new cluster",
    "quarantined": "start failed", "no data": "stopped", "rewinding": "stopped",
}  # fmt: skip
"""Where Patroni has another word."""


def _state(state: str) -> str:
    return _STATES.get(state, state)


def _reasons(member: Member) -> dict[str, dict[str, str]]:
    return {name: dict(values) for name, values in member.pending_settings.items()}


def _role(role: str) -> str:
    """Patroni knows a primary and replicas; whatever is on its way from one to the other is not what clients want."""
    return role if role in ("primary", WITNESS) else "replica"


def _version_number(version: str) -> int:
    """``18.6`` as 180006, as ``server_version_num`` has it; 0 if unknown."""
    major, _, minor = version.partition(".")
    digits = minor[: len(minor) - len(minor.lstrip("0123456789"))]
    return int(major) * 10000 + int(digits or 0) if major.isdigit() else 0


def _status(snapshot: Snapshot, now_ns: int) -> dict[str, Any]:
    own = to_json(snapshot, now_ns)
    del own["history"]
    return _patroni(snapshot, now_ns) | {"pgr": own}


def _cluster(snapshot: Snapshot, _now_ns: int) -> dict[str, Any]:
    """Patroni's ``GET /cluster``: the primary's role is ``leader``, an unknown lag is ``"unknown"``. A witness has no
    Postgres: clients of Patroni, which take a member for a place to connect to, find it apart."""
    rows = []
    for m in sorted((m for m in snapshot.members if m.member != WITNESS), key=lambda m: m.name):
        leads = m.role == "primary"
        standby = {"sync": "sync_standby", "quorum": "quorum_standby"}.get(m.sync, "replica")
        state = m.state if m.state == "streaming" else _state(m.state or "unknown")
        row: dict[str, Any] = {"name": m.name, "role": "leader" if leads else standby, "state": state}
        if m.http:
            row["api_url"] = f"{'https' if m.https else 'http'}://{m.http}/patroni"
        row |= {"host": m.host, "port": m.pg_port, "timeline": m.timeline, "lsn": lsn_text(m.lsn) or "unknown"}
        if not leads:
            receive = receive_lag_bytes(snapshot, m)
            lag = "unknown" if m.lag_bytes is None else m.lag_bytes
            row |= {"receive_lsn": lsn_text(m.lsn) or "unknown", "replay_lsn": lsn_text(m.replay_lsn) or "unknown"}
            row |= {"receive_lag": "unknown" if receive is None else receive, "replay_lag": lag, "lag": lag}
        if m.pending_restart:
            row |= {"pending_restart": True, "pending_restart_reason": _reasons(m)}
        if m.tags:
            row["tags"] = dict(m.tags)
        rows.append(row)
    found: dict[str, Any] = {"members": rows, "scope": snapshot.cluster_id}
    witnesses = sorted(m.name for m in snapshot.members if m.member == WITNESS)
    if witnesses:
        found["witnesses"] = witnesses
    if snapshot.paused:
        found["pause"] = True
    planned = snapshot.scheduled
    if planned is not None and planned["what"] == "switchover":
        leader = {"from": snapshot.primary.name} if snapshot.primary else {}
        to = {"to": planned["to"]} if planned["to"] else {}
        found["scheduled_switchover"] = {"at": planned["at"]} | leader | to
    return found


def _history(snapshot: Snapshot, _now_ns: int) -> list[list[Any]]:
    """Patroni's ``GET /history``: ``[timeline that ended, its end, reason, when, new leader]``, oldest first."""
    rows: list[list[Any]] = []
    timeline = 0
    for event in snapshot.history:
        if event.timeline > timeline:
            if timeline:
                rows.append([timeline, event.lsn or 0, event.reason, event.at, event.node])
            timeline = event.timeline
    return rows


def _config(snapshot: Snapshot, _now_ns: int) -> dict[str, Any]:
    t = snapshot.timings
    timings = {"heartbeat_ms": t.heartbeat_ms, "lease_ms": t.lease_ms, "election_ms": t.election_ms}
    out = {"commit": snapshot.commit, "profile": snapshot.profile} | timings | {"kill_bound_ms": t.kill_bound_ms}
    return out | dict(snapshot.config)


DOCUMENTS: tuple[tuple[tuple[str, ...], Callable[[Snapshot, int], Any], str], ...] = (
    (("/patroni", "/status"), _status, "this node in Patroni's words; `pgr` holds what `pgr status --json` shows"),
    (("/cluster",), _cluster, "members with role, state, timeline, positions and lags"),
    (("/history",), _history, "`[timeline that ended, LSN in bytes, reason, when, new primary]`, oldest first"),
    (("/config",), _config, "cluster-wide settings, defaults included; `postgres` holds `parameters` and `hba`"),
)

_CHECK = {path: check for paths, check, _ in CHECKS for path in paths}
_DOCUMENT = {path: document for paths, document, _ in DOCUMENTS for path in paths}
PATHS = frozenset((*_CHECK, *_DOCUMENT, "/metrics"))


def answer(snapshot: Snapshot, path: str, query: str, now_ns: int) -> Answer:
    """What a GET of ``path?query`` gets. Never raises; looks at nothing but its arguments."""
    if document := _DOCUMENT.get(path):
        return as_json(200, document(snapshot, now_ns))
    if path == "/metrics":
        return Answer(200, metrics.CONTENT_TYPE, metrics.render(snapshot, now_ns).encode())
    if not (check := _CHECK.get(path)):
        # Not 404, as that is what HAProxy may be told to take for a server that is only to get no new connections.
        return error(503, f"no such path: {path}", "see the section HTTP of REFERENCE.md")
    try:
        status = 200 if check(snapshot, parse_query(query), now_ns) else 503
    except BadQuery as bad:
        return error(400, str(bad))
    return as_json(status, _patroni(snapshot, now_ns))


_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}


def parse_bytes(text: str) -> int:
    """``10MB``, ``64kB``, ``1.5GB`` or plain bytes, units as in postgresql.conf but in any case. BadQuery otherwise."""
    number = text.strip().rstrip("bBkKmMgGtT ")
    unit = text.strip()[len(number) :].strip().lower()
    whole, _, part = number.partition(".")
    if unit not in _UNITS or not (whole + part).isascii() or not (whole + part).isdigit() or len(number) > 20:
        raise BadQuery(f"not a size: {text!r}; write 1048576, 64kB, 10MB or 1GB")
    return int(float(number) * _UNITS[unit])


def parse_query(query: str) -> dict[str, str]:
    """``a=1&b=2`` decoded; of a repeated name the first counts, one without a value does not, as with Patroni.

    BadQuery if a percent sequence is broken."""
    found: dict[str, str] = {}
    for name, _, value in (part.partition("=") for part in query.split("&")):
        if value:
            found.setdefault(_unquote(name), _unquote(value))
    return found


def _unquote(text: str) -> str:
    head, *rest = text.replace("+", " ").split("%")
    try:
        return head + b"".join(bytes.fromhex(p[:2]) + p[2:].encode() for p in rest).decode() if rest else head
    except ValueError:  # includes UnicodeDecodeError
        raise BadQuery(f"broken percent sequence in {text!r}") from None
