from __future__ import annotations

import errno
import json
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import health, healthserver
from supervisor.health import answer, parse_bytes
from supervisor.healthserver import Current, HealthServer
from supervisor.httpwire import Request, parse_request
from supervisor.status import Snapshot
from tests.unit.snapshots import NOW, A, B, snapshot


def b(state: str = "streaming", **changes: Any) -> Snapshot:
    """Seen from the standby b, whose own row changes."""
    return snapshot("b", state=state, members=(A, replace(B, state=state, **changes)))


def post(path: str, headers: dict[str, str], length: int, content: bytes) -> Request:
    return Request("POST", path, "", headers, length, content)


PRIMARY, REPLICA = snapshot(), b()
LATE = replace(PRIMARY, lease_until_ns=NOW)
CLOSED = replace(PRIMARY, opened=False)


@pytest.mark.parametrize(
    ("view", "target", "status"),
    [
        *[(PRIMARY, path, 200) for path in ("/", "/primary", "/read-write", "/leader", "/master", "/read-only")],
        *[(PRIMARY, path, 200) for path in ("/read-only-sync", "/read-only-quorum", "/health", "/readiness")],
        *[(PRIMARY, path, 503) for path in ("/replica", "/sync", "/async", "/quorum")],
        *[(view, path, 503) for view in (LATE, CLOSED) for path in ("/", "/primary", "/read-only", "/readiness")],
        *[(replace(PRIMARY, role=role), "/primary", 503) for role in ("promoting", "demoting", "replica", "waiting")],
        *[(LATE, path, 200) for path in ("/health", "/liveness")],
        *[(REPLICA, path, 200) for path in ("/replica", "/read-only", "/quorum", "/read-only-quorum", "/readiness")],
        *[(REPLICA, path, 503) for path in ("/", "/primary", "/leader", "/sync", "/read-only-sync", "/async")],
        (b(sync="sync"), "/sync", 200),
        (b(sync="sync"), "/quorum", 200),
        (b(sync=""), "/async", 200),
        (b(sync=""), "/quorum", 503),
        (b("stopped"), "/replica", 503),
        (b("stopped"), "/health", 503),
        (b("stopped"), "/liveness", 200),
        (b("running"), "/replica", 200),
        (b("running"), "/replica?replication_state=streaming", 503),
        (b("running"), "/readiness", 503),
        (REPLICA, "/replica?replication_state=streaming", 200),
        (REPLICA, "/replica?lag=232", 200),
        (REPLICA, "/replica?lag=231", 503),
        (REPLICA, "/replica?lag=10MB", 200),
        (REPLICA, "/replica?lag=ten", 400),
        (REPLICA, "/replica?lag=%zz", 400),
        (b(lag_bytes=None), "/replica?lag=10MB", 503),
        (b(lag_bytes=None), "/replica", 200),
        (b(tags={"noloadbalance": True}), "/replica", 503),
        (REPLICA, "/replica?tag_zone=x&tag_nofailover=true", 200),
        (REPLICA, "/replica?tag_zone=y", 503),
        (REPLICA, "/replica?tag_other=x", 503),
        *[(PRIMARY, f"/{path}?tag_zone=x", 200) for path in ("", "primary", "leader", "read-write")],
        *[(PRIMARY, f"/{path}?tag_zone=x", 503) for path in ("read-only", "read-only-sync", "health")],
        *[(PRIMARY, f"/{path}?tag_zone=x", 200) for path in ("liveness", "readiness")],
        (b(tags={"zone": "X", "big": True, "n": 3}), "/replica?tag_zone=X&tag_big=true&tag_n=3", 200),
        (b(tags={"zone": "X"}), "/replica?tag_zone=x", 503),
        (REPLICA, "/replica?tag_zone=", 200),
        (REPLICA, "/replica?lag=&replication_state=&tag_x=", 200),
        (REPLICA, "/replica?lag=231&lag=10MB", 503),
        (REPLICA, "/read-only?tag_zone=x", 200),
        (b(tags={"noloadbalance": True}), "/read-only", 503),
        (b(tags={"noloadbalance": True}), "/readiness", 200),
        *[(view, path, 503) for view in (PRIMARY, REPLICA) for path in ("/standby-leader", "/standby_leader")],
        (b(sync="sync"), "/read-only-synchronous", 200),
        (b(lag_bytes=2 << 20), "/readiness", 503),
        (b(lag_bytes=2 << 20), "/readiness?lag=2MB", 200),
        (b(lag_bytes=2 << 20), "/readiness?mode=write", 200),
        (b(lsn=0), "/readiness?mode=write", 503),
        (REPLICA, "/readiness?mode=both", 400),
        *[(Snapshot("x"), path, 503) for path in ("/", "/replica", "/read-only", "/health", "/readiness")],
        *[
            (Snapshot("x"), path, 200)
            for path in ("/patroni", "/status", "/cluster", "/history", "/config", "/metrics")
        ],
        (PRIMARY, "/nope", 503),
        (PRIMARY, "/primary/x", 503),
    ],
)
def test_codes(view: Snapshot, target: str, status: int) -> None:
    path, _, query = target.partition("?")
    assert answer(view, path, query, NOW).status == status


def body(view: Snapshot, path: str) -> Any:
    return json.loads(answer(view, path, "", NOW).body)


def test_cluster_speaks_patroni() -> None:
    found = body(PRIMARY, "/cluster")
    assert found["scope"] == PRIMARY.cluster_id
    first, second, third = found["members"]
    assert (first["role"], first["state"], first["api_url"]) == ("leader", "running", "http://10.0.0.1:8008/patroni")
    assert "lag" not in first
    assert (second["role"], second["lag"], second["receive_lag"], second["port"]) == ("quorum_standby", 232, 0, 5432)
    assert (third["lag"], third["state"], "api_url" in third) == ("unknown", "unreachable", False)


def test_what_is_only_said_when_it_holds() -> None:
    lone = body(replace(PRIMARY, primary=None, paused=True, role="waiting", state="stopped"), "/patroni")
    assert (lone["cluster_unlocked"], lone["pause"]) == (True, True)
    assert (lone["role"], lone["state"]) == ("replica", "stopped")
    assert not {"xlog", "timeline", "server_version", "tags", "pending_restart", "pending_restart_reason"} & set(lone)
    one = body(b(started="2026-11-22 20:00:00.5+00:00", replayed_at="2026-11-22 21:00:00.5+00:00"), "/patroni")
    assert one["postmaster_start_time"] == "2026-11-22 20:00:00.5+00:00"
    assert one["xlog"]["replayed_timestamp"] == "2026-11-22 21:00:00.5+00:00"
    assert body(b("cloning"), "/patroni")["state"] == "creating replica"


def test_what_waits_for_a_restart_is_said_as_patroni_does() -> None:
    waits = {"max_connections": {"old_value": "100", "new_value": "120"}}
    view = b(pending_restart=True, pending_settings=waits)
    assert body(view, "/patroni")["pending_restart_reason"] == waits
    rows = {row["name"]: row for row in body(view, "/cluster")["members"]}
    assert rows["b"]["pending_restart_reason"] == waits
    assert "pending_restart_reason" not in rows["a"]


def test_the_scheme_of_a_member_is_its_own() -> None:
    rows = body(snapshot(members=(A, replace(B, https=True))), "/cluster")["members"]
    assert [row["api_url"].partition(":")[0] for row in rows] == ["http", "https"]


def test_patroni_and_history() -> None:
    found = body(REPLICA, "/patroni")
    assert (found["state"], found["role"], found["server_version"]) == ("running", "replica", 180006)
    assert found["pending_restart"] is True
    assert found["tags"] == {"zone": "x", "nofailover": True}
    assert not {"pause", "cluster_unlocked"} & set(found), "Patroni has these only while they hold"
    assert found["xlog"]["paused"] is False
    assert found["xlog"]["replayed_timestamp"] is None
    assert found["replication_state"] == "streaming"
    assert found["xlog"]["replayed_location"] == 0x3000060
    assert found["pgr"]["explanation"]
    assert body(PRIMARY, "/patroni")["replication"][0]["application_name"] == "b"
    assert body(PRIMARY, "/history") == [[1, 0x3000000, "b was lost", "2026-11-22T20:00:00Z", "a"]]
    assert body(PRIMARY, "/config")["commit"] == "quorum"


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("12", 12), ("64kB", 65536), ("10MB", 10 << 20), ("1.5 gb", 3 << 29), ("1TB", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e3", "1XB", "1 0", "1kBkB", "٣", "1..2", "9" * 30])
def test_no_sizes(text: str) -> None:
    with pytest.raises(health.BadQuery):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Request("GET", "/", "")),
        (b"GET /replica/?lag=1 HTTP/1.0\n\n", Request("GET", "/replica", "lag=1")),
        (b"GET / HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n", Request("GET", "/", "")),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", Request("OPTIONS", "*", "")),
        (b"GET / HTTP/1.1\r\nHost", None),
        (b"GE", None),
        (b"GET /\r\n", 400),
        (b"\x16\x03\x01\x02\x00\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n", 400),
        (b"POST /switchover HTTP/1.1\r\n\r\n{}", Request("POST", "/switchover", "")),
        (b"POST /x HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET /", post("/x", {"content-length": "2"}, 2, b"{}")),
        (b"POST /x HTTP/1.1\nContent-Length:\t 2\n\n{", post("/x", {"content-length": "2"}, 2, b"{")),
        (b"POST /x HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", 413),
        (b"POST /x HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n", 413),
        (b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n{", 400),
        (b"POST /x HTTP/1.1\r\nAuthorization: a\r\nauthorization: b\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", 411),
        (b"POST /x HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 8192, 431),
        (b"x" * 8192, 431),
    ],
)
def test_parse(data: bytes, expected: object) -> None:
    assert parse_request(data) == expected


@given(st.binary(max_size=300) | st.from_regex(rb"[A-Z]{1,8} [ -~]{1,40} HTTP/1\.[01]\r\n([ -~]{0,20}\r\n)*\r\n"))
def test_any_bytes_get_an_answer_or_more_time(data: bytes) -> None:
    request = parse_request(data)
    if request is not None:
        head = healthserver.respond(PRIMARY, request, NOW)
        assert head.startswith(b"HTTP/1.1 ")
        assert b"\r\n\r\n" in head


@given(st.text(max_size=60), st.text(max_size=60))
def test_answer_never_raises(path: str, query: str) -> None:
    for known in (path, "/replica", "/readiness"):
        assert answer(REPLICA, known, query, NOW).status in (200, 400, 404, 503)


# The server, on real sockets; the test plays the parent's loop.


@pytest.fixture
def server() -> Iterator[HealthServer]:
    made = HealthServer(Current(PRIMARY), "127.0.0.1", 0)
    yield made
    made.close()


def turn(server: HealthServer, at_ns: int = NOW) -> None:
    while select.select([server.fileno()], [], [], 0.02)[0]:
        server.handle(at_ns)


def dial(server: HealthServer, stack: ExitStack) -> socket.socket:
    client = stack.enter_context(socket.create_connection(server.address, timeout=5))
    client.setblocking(False)
    return client


def read(server: HealthServer, client: socket.socket, at_ns: int = NOW) -> bytes:
    """Everything until the server ends the connection."""
    data, until_ns = b"", now_ns() + 5_000 * MS
    while now_ns() < until_ns:
        if select.select([server.fileno()], [], [], 0)[0]:
            server.handle(at_ns)
        if select.select([client], [], [], 0.02)[0]:
            more = client.recv(65536)
            if not more:
                return data
            data += more
    raise AssertionError(f"the server did not end the connection after {data!r}")


def ask(server: HealthServer, request: bytes, at_ns: int = NOW) -> bytes:
    with ExitStack() as stack:
        client = dial(server, stack)
        client.sendall(request)
        return read(server, client, at_ns)


def test_the_poll_set_of_the_parent_wakes_for_us(server: HealthServer) -> None:
    import zmq

    poller = zmq.Poller()
    poller.register(server.fileno(), zmq.POLLIN)
    assert poller.poll(0) == []
    with ExitStack() as stack:
        dial(server, stack)
        assert poller.poll(5000) == [(server.fileno(), zmq.POLLIN)]


def test_get_head_options(server: HealthServer) -> None:
    got = ask(server, b"GET /primary HTTP/1.1\r\n\r\n")
    head, _, content = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(content)}".encode() in head
    assert json.loads(content)["role"] == "primary"
    assert ask(server, b"HEAD /primary HTTP/1.1\r\n\r\n") == head + b"\r\n\r\n"
    assert ask(server, b"OPTIONS /replica HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


def test_the_lease_is_judged_at_the_instant_of_the_answer(server: HealthServer) -> None:
    request = b"HEAD /primary HTTP/1.1\r\n\r\n"
    assert ask(server, request, NOW + 622 * MS).startswith(b"HTTP/1.1 200")
    assert ask(server, request, NOW + 623 * MS).startswith(b"HTTP/1.1 503")


def test_a_new_snapshot_counts_at_once(server: HealthServer) -> None:
    server._current.snapshot = REPLICA
    assert ask(server, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503")


def test_pieces_and_pipelines(server: HealthServer) -> None:
    with ExitStack() as stack:
        client = dial(server, stack)
        for byte in b"GET / HTTP/1.1\r\nHost: x\r\n\r\n":
            client.send(bytes([byte]))
            turn(server)
        assert read(server, client).startswith(b"HTTP/1.1 200")
    assert ask(server, b"GET / HTTP/1.1\r\n\r\n" * 40).count(b"HTTP/1.1 ") == 1


def test_unread_input_does_not_reset_the_answer_away(server: HealthServer) -> None:
    with ExitStack() as stack:
        client = dial(server, stack)
        client.sendall(b"POST /config HTTP/1.1\r\nContent-Length: 60000\r\n\r\n" + b"x" * 30000)
        turn(server)
        client.sendall(b"x" * 30000)
        assert read_after_eof(server, client).startswith(b"HTTP/1.1 405")


def read_after_eof(server: HealthServer, client: socket.socket) -> bytes:
    turn(server)
    return read(server, client)


def test_slow_clients_keep_no_check_out(server: HealthServer) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            dial(server, stack).send(b"GET /")
            turn(server)
        assert len(server) == healthserver.MAX_CONNECTIONS
        assert ask(server, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_deadlines_end_what_is_slow(server: HealthServer) -> None:
    with ExitStack() as stack:
        client = dial(server, stack)
        turn(server)
        assert server.deadline_ns() == NOW + 5_000 * MS
        client.send(b"GET / HTTP/1.1\r\n")
        turn(server, NOW + 4_999 * MS)
        assert len(server) == 1
        server.handle(NOW + 5_000 * MS)
        assert len(server) == 0
        assert server.deadline_ns() is None
        assert client.recv(1) == b""


def test_a_client_that_does_not_read_costs_a_connection_until_its_deadline(server: HealthServer) -> None:
    server._current.snapshot = replace(PRIMARY, explanation="x" * 8_000_000)
    with ExitStack() as stack:
        client = dial(server, stack)
        client.sendall(b"GET /status HTTP/1.1\r\n\r\n")
        turn(server)
        assert len(server) == 1
        assert ask(server, b"HEAD / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert len(read(server, client)) > 8_000_000


def test_out_of_descriptors_is_no_busy_loop(server: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Starved:
        def __init__(self, real: socket.socket) -> None:
            self.real = real

        def accept(self) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    with ExitStack() as stack:
        client = dial(server, stack)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        real = server._listener
        monkeypatch.setattr(server, "_listener", Starved(real))
        turn(server)  # would never return
        assert server.deadline_ns() == NOW + 100 * MS
        monkeypatch.setattr(server, "_listener", real)
        server.handle(NOW + 100 * MS)
        assert read(server, client).startswith(b"HTTP/1.1 200")


def test_an_address_in_use_is_an_error(server: HealthServer) -> None:
    with pytest.raises(OSError, match="in use"):
        HealthServer(Current(PRIMARY), *server.address)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=64) | st.just(b"\r\n") | st.just(b"GET / HTTP/1.1\r\n"), max_size=6))
def test_garbage_in_any_pieces_leaves_the_server_well(pieces: list[bytes]) -> None:
    server = HealthServer(Current(PRIMARY), "127.0.0.1", 0)
    try:
        with ExitStack() as stack:
            client = dial(server, stack)
            for piece in pieces:
                try:
                    client.send(piece)
                except OSError:
                    break
                if select.select([server.fileno()], [], [], 0)[0]:
                    server.handle(NOW)
        assert ask(server, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")
        server.handle(NOW + 10_000 * MS)
        assert len(server) == 0
    finally:
        server.close()
