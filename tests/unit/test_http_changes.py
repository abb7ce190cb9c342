"""Changes over HTTP: who may, what a request means, and the way to the admin server and back; over real sockets."""

from __future__ import annotations

import json
import select
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fencing import wire
from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import health, healthserver
from supervisor.adminserver import GAP_TOLD_MS
from supervisor.errors import MissingError, UsageError
from supervisor.healthserver import Current, HealthServer
from supervisor.httpaccess import Access, Peer, admit, read_tokens
from supervisor.httpchanges import Ask, failed, patched, translate
from supervisor.httpgate import Gate
from supervisor.httpwire import Answer, Request
from supervisor.status import Primary
from tests.unit.snapshots import NOW, snapshot
from tests.unit.test_member_surfaces import FOUR, Asked, asked, picture  # noqa: F401  # asked: a fixture

TOKEN = b"0123456789abcdef"
SEEN = snapshot()


def request(method: str, path: str, body: object = None, **headers: str) -> Request:
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    known = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        known["content-length"] = str(len(content))
    return Request(method, path, "", known, len(content), content)


# -- what a request means

RESTART = {"nodes": ["a"], "pending": False, "force": False, "timeout_s": 300}


@pytest.mark.parametrize(
    ("asked_for", "name", "body"),
    [
        (("POST", "/switchover", {"leader": "a"}), "switchover", {"to": None}),
        (("POST", "/switchover", {"leader": "a", "candidate": "b"}), "switchover", {"to": "b"}),
        (("POST", "/switchover", {"leader": "a", "member": "b", "scheduled_at": None}), "switchover", {"to": "b"}),
        (("POST", "/failover", {"candidate": "b"}), "failover", {"to": "b"}),
        (("POST", "/failover", {"candidate": "b", "leader": "a"}), "switchover", {"to": "b"}),
        (("POST", "/failover", {"candidate": "b", "accept_data_loss": True}), "failover",
         {"to": "b", "accept_data_loss": True}),
        (("POST", "/reinitialize", None), "reinit", {"name": "a"}),
        (("POST", "/reinitialize", {"force": True, "from_leader": False}), "reinit", {"name": "a"}),
        (("PATCH", "/config", {"strict": False, "commit": None}), "config.set",
         {"set": {"strict": False}, "unset": ["commit"]}),
        (("PUT", "/config", {}), "config.set", {"set": {}, "unset": None}),
        (("PUT", "/config", {"strict": False, "commit": None, "postgresql": {"pg_ident": ["m x y"]}}), "config.set",
         {"set": {"strict": False, "postgres.ident": ["m x y"]}, "unset": None}),
        (("POST", "/switchover", {"leader": "a", "scheduled_at": "2030-01-01T00:00+00:00"}), "switchover",
         {"to": None, "at": "2030-01-01T00:00+00:00"}),
        (("POST", "/restart", None), "restart", RESTART),
        (("POST", "/restart", {}), "restart", RESTART),
        (("POST", "/restart", {"role": "primary", "postgres_version": "99", "timeout": "7"}), "restart",
         RESTART | {"timeout_s": 7}),
        (("POST", "/restart", {"schedule": "+5m", "restart_pending": True}), "restart",
         RESTART | {"at": "+5m", "pending": True}),
        (("POST", "/reload", None), "reload", {"nodes": ["a"]}),
    ],
)  # fmt: skip
def test_what_is_asked_of_the_cluster(asked_for: Any, name: str, body: dict[str, Any]) -> None:
    found = translate(request(*asked_for), SEEN, "ann@10.0.0.9 over HTTP")
    assert isinstance(found, Ask)
    assert found.name == name
    extra = {"by": "ann@10.0.0.9 over HTTP", "timeout_ms": found.timeout_ms}
    assert found.body == body | extra


@pytest.mark.parametrize(
    ("asked_for", "status", "words"),
    [
        (("POST", "/switchover", {"candidate": "b"}), 400, "names the leader"),
        (("POST", "/switchover", {"leader": "b"}), 412, "b is not the primary"),
        (("POST", "/switchover", {"leader": "a", "candidate": "a"}), 400, "the same"),
        (("POST", "/switchover", {"leader": "a", "candidate": "../x"}), 400, "candidate"),
        (("POST", "/switchover", {"leader": ["a"]}), 400, "leader is the name"),
        (("POST", "/switchover", {"leader": "a", "scheduled_at": 5}), 400, "scheduled_at is a time"),
        (("POST", "/failover", {"candidate": "b", "scheduled_at": "2030-01-01T00:00+00"}), 400, "scheduled"),
        (("POST", "/restart", {"member": "b"}), 400, "not known"),
        (("POST", "/restart", {"role": "boss"}), 400, "primary or replica"),
        (("POST", "/restart", {"role": "replica"}), 503, "conditions are not satisfied: a is a primary"),
        (("POST", "/restart", {"postgres_version": "18.x"}), 400, "version such as"),
        (("POST", "/restart", {"postgres_version": "9.5"}), 503, "conditions are not satisfied: it runs"),
        (("POST", "/restart", {"restart_pending": True}), 503, "nothing waits for a restart"),
        (("POST", "/restart", {"restart_pending": "yes"}), 400, "true or false"),
        (("POST", "/restart", {"timeout": 0}), 400, "number of seconds"),
        (("POST", "/restart", {"timeout": True}), 400, "number of seconds"),
        (("POST", "/restart", {"schedule": "+5m", "role": "primary"}), 400, "do not go with schedule"),
        (("DELETE", "/restart", None), 404, "no restart is scheduled"),
        (("POST", "/reload", {"x": 1}), 400, "not known"),
        (("POST", "/switchover", {"leader": "a", "to": "b"}), 400, "'to' is not known"),
        (("POST", "/switchover", {"leader": "a", "accept_data_loss": True}), 400, "loses nothing"),
        (("POST", "/switchover", b"{}"), 400, "names the leader"),
        (("POST", "/switchover", None), 411, "a JSON object is needed"),
        (("POST", "/switchover", b""), 400, "a JSON object is needed"),
        (("POST", "/switchover", b"leader=a"), 400, "no JSON object"),
        (("POST", "/switchover", b"[1]"), 400, "no JSON object"),
        (("POST", "/switchover", b'{"leader":"a","leader":"b"}'), 400, "twice"),
        (("POST", "/switchover", b'{"leader":NaN}'), 400, "NaN"),
        (("POST", "/switchover", b"\xff"), 400, "no JSON object"),
        (("POST", "/switchover", b"[" * 50_000), 400, "no JSON object"),
        (("POST", "/failover", {}), 400, "names the candidate"),
        (("POST", "/failover", {"candidate": "b", "accept_data_loss": "yes"}), 400, "true or false"),
        (("POST", "/reinitialize", {"force": 1}), 400, "force is true or false"),
        (("POST", "/reinitialize", {"member": "b"}), 400, "not known"),
        (("PATCH", "/config", {}), 400, "nothing is to be changed"),
        (("PATCH", "/config", {"postgres": {"x": 1}}), 400, "'x' is not known"),
        (("PATCH", "/config", {"postgres": None}), 400, "postgres is an object"),
        (("PATCH", "/config", {"slots": None}), 400, "slots is an object"),
        (("PATCH", "/config", {"postgres": {"parameters": None}}), 400, "parameters is an object"),
        (("DELETE", "/switchover", None), 404, "no switchover is scheduled"),
        (("PUT", "/config", None), 411, "a JSON object is needed"),
        (("PUT", "/config", b"[]"), 400, "no JSON object"),
        (("PUT", "/config", {"postgres": {"x": 1}}), 400, "'x' is not known"),
        (("DELETE", "/config", None), 405, "GET, HEAD, OPTIONS, PATCH, PUT"),
        (("DELETE", "/failover", None), 405, "POST"),
        (("POST", "/replica", {}), 405, "GET"),
        (("POST", "/sigterm", {}), 404, "nothing can be changed at /sigterm"),
    ],
)
def test_what_is_refused_before_anybody_is_asked(asked_for: Any, status: int, words: str) -> None:
    found = translate(request(*asked_for), SEEN, "ann")
    assert isinstance(found, Answer)
    assert (found.status, words in found.body.decode()) == (status, True), found.body


def test_without_a_primary_there_is_nothing_to_switch_over_from() -> None:
    found = translate(request("POST", "/switchover", {"leader": "a"}), replace(SEEN, primary=None), "ann")
    assert isinstance(found, Answer)
    assert found.status == 412


def test_what_is_scheduled_is_deleted_and_nothing_else_is_scheduled_beside_it() -> None:
    plan = {"what": "switchover", "at": "2030-01-01T00:00:00Z", "to": "b", "nodes": [], "pending": False, "by": ""}
    seen = replace(SEEN, scheduled=plan)
    found = translate(request("DELETE", "/switchover"), seen, "ann")
    assert isinstance(found, Ask)
    assert (found.name, found.body["what"]) == ("schedule.cancel", "switchover")
    assert found.done({"cancelled": "it"}, seen, NOW).status == 200
    assert failed(found, 64, "none", "see", accepted=False).status == 404, "it was carried out meanwhile"
    for asked_for in (("POST", "/restart", {"schedule": "+1m"}), ("DELETE", "/restart", None),
                      ("POST", "/switchover", {"leader": "a", "scheduled_at": "+1m"})):  # fmt: skip
        refused = translate(request(*asked_for), seen, "ann")
        assert isinstance(refused, Answer)
        assert refused.status == (404 if asked_for[0] == "DELETE" else 409)


def test_how_a_restart_a_reload_and_a_schedule_end() -> None:
    restart = translate(request("POST", "/restart"), SEEN, "ann")
    later = translate(request("POST", "/restart", {"schedule": "+5m"}), SEEN, "ann")
    reload = translate(request("POST", "/reload"), SEEN, "ann")
    assert isinstance(restart, Ask)
    assert isinstance(later, Ask)
    assert isinstance(reload, Ask)
    assert restart.done({"restarted": ["a"]}, SEEN, NOW).status == 200
    assert restart.done({"restarted": []}, SEEN, NOW).status == 503
    assert [failed(restart, code, "w", "h", accepted=False).status for code in (64, 75, 78)] == [400, 503, 503]
    assert restart.timeout_ms > 300_000, "longer than its Postgres may take"
    answer = later.done({"scheduled": "restart", "at": "2030-01-31T02:00:00Z"}, SEEN, NOW)
    assert (answer.status, answer.body) == (202, b"Restart scheduled for 2030-01-31T02:00:00Z\n")
    assert [failed(later, code, "w", "h", accepted=False).status for code in (64, 75, 78)] == [422, 503, 412]
    assert reload.done({"nodes": {"a": ""}}, SEEN, NOW) == Answer(202, "text/plain; charset=utf-8", b"reloaded\n")
    assert reload.done({"nodes": {"a": "waits for a restart: x"}}, SEEN, NOW).status == 202
    assert reload.done({"nodes": {"a": "not reloaded: it is starting"}}, SEEN, NOW).status == 503


def test_a_patch_in_the_words_of_patroni() -> None:
    body = {"postgresql": {"parameters": {"work_mem": "8MB", "x.y": None}, "pg_hba": ["local all all peer"]}}
    wanted = {"postgres.parameters.work_mem": "8MB", "postgres.hba": ["local all all peer"]}
    assert patched(body) == (wanted, ["postgres.parameters.x.y"])
    physical = {"type": "physical"}
    assert patched({"slots": {"x": physical, "y": None}}) == ({"slots.x": physical}, ["slots.y"])
    assert patched({"postgres": {"hba": None}, "sync_acks": 2}) == ({"sync_acks": 2}, ["postgres.hba"])


def test_what_get_says_can_be_put() -> None:
    """Whoever edits the whole of it leaves in it what HTTP does not change, and what the leader knows is in force."""
    set_ = {
        "strict": False, "sync_acks": None, "hooks": {"on_event": ["/usr/bin/true"], "on_event_timeout": 10},
        "slots": {"x": {"type": "physical"}},
        "postgres": {"parameters": {"work_mem": "8MB"}, "hba": ["local all all peer"], "ident": []},
    }  # fmt: skip
    seen = replace(SEEN, config=set_)
    shown = json.loads(health.answer(seen, "/config", "", NOW).body)
    found = translate(request("PUT", "/config", shown), seen, "ann")
    assert isinstance(found, Ask)
    assert found.body["unset"] is None
    timings = {name: shown[name] for name in ("profile", "heartbeat_ms", "lease_ms", "kill_bound_ms", "election_ms")}
    assert found.body["set"] == timings | {
        "commit": "quorum", "strict": False, "slots.x": {"type": "physical"}, "postgres.parameters.work_mem": "8MB",
        "postgres.hba": ["local all all peer"], "postgres.ident": [],
    }  # fmt: skip


def test_what_an_end_looks_like() -> None:
    move = translate(request("POST", "/switchover", {"leader": "a", "candidate": "b"}), SEEN, "ann")
    assert isinstance(move, Ask)
    assert move.done({"to": "b"}, SEEN, NOW).body == b'Successfully switched over to "b"\n'
    assert move.done({"to": "c"}, SEEN, NOW).body == b'Switched over to "c" instead of "b"\n'
    assert [failed(move, code, "w", "h", accepted=False).status for code in (64, 75, 78, 70)] == [412, 412, 412, 503]
    assert failed(move, 75, "not done", "look", accepted=True) == failed(move, 78, "not done", "look", accepted=True)
    assert failed(move, 75, "not done", "look", accepted=True).status == 503
    for method in ("PATCH", "PUT"):
        change = translate(request(method, "/config", {"strict": False}), SEEN, "ann")
        assert isinstance(change, Ask)
        assert json.loads(change.done({}, SEEN, NOW).body)["commit"] == "quorum"
        assert [failed(change, code, "w", "h", accepted=False).status for code in (64, 78, 75)] == [400, 412, 503]
    copy = translate(request("POST", "/reinitialize"), SEEN, "ann")
    assert isinstance(copy, Ask)
    assert (copy.begun or Answer(0, "", b"")).status == 200
    assert failed(copy, 78, "w", "h", accepted=False).status == 503


# -- who may

PEER = Peer("10.0.0.9")
SHOWN = Peer("10.0.0.9", "ops", True)


def basic(user: str, password: bytes) -> dict[str, str]:
    return {"authorization": "Basic " + b64encode(user.encode() + b":" + password).decode()}


BEARER = {"authorization": f"Bearer {TOKEN.decode()}"}
BOTH = Access((b"another-token-of-16", TOKEN), certificate=True)


@pytest.mark.parametrize(
    ("access", "headers", "peer", "expected"),
    [
        (Access(), BEARER, PEER, 403),
        (Access((TOKEN,)), {}, PEER, 401),
        (Access((TOKEN,)), {"authorization": "Bearer wrong"}, PEER, 401),
        (Access((TOKEN,)), {"authorization": f"Bearer {TOKEN.decode()}x"}, PEER, 401),
        (Access((TOKEN,)), {"authorization": f"Token {TOKEN.decode()}"}, PEER, 401),
        (Access((TOKEN,)), {"authorization": "Bearer \xff"}, PEER, 401),
        (Access((TOKEN,)), {"authorization": "Basic !"}, PEER, 401),
        (Access((TOKEN,)), {"authorization": "Basic"}, PEER, 401),
        (Access((TOKEN,)), basic("ann", b"wrong"), PEER, 401),
        (Access((TOKEN,)), BEARER, PEER, "token@10.0.0.9 over HTTP"),
        (Access((TOKEN,)), {"authorization": f"bearer  {TOKEN.decode()} "}, PEER, "token@10.0.0.9 over HTTP"),
        (Access((TOKEN,)), basic("ann", TOKEN), PEER, "ann@10.0.0.9 over HTTP"),
        (Access((TOKEN,)), basic("a\n" + "n" * 60, TOKEN), PEER, "a" + "n" * 39 + "@10.0.0.9 over HTTP"),
        (Access((TOKEN,)), BEARER | {"origin": "null"}, PEER, 403),
        (Access(certificate=True), {}, PEER, 403),
        (Access(certificate=True), {}, SHOWN, "ops@10.0.0.9 over HTTP"),
        (Access(certificate=True), {}, replace(SHOWN, subject=""), "certificate@10.0.0.9 over HTTP"),
        (Access(certificate=True), {"origin": "https://x"}, SHOWN, 403),
        (BOTH, BEARER, PEER, 403),
        (BOTH, {}, SHOWN, 401),
        (BOTH, BEARER, SHOWN, "ops@10.0.0.9 over HTTP"),
    ],
)  # fmt: skip
def test_admission(access: Access, headers: dict[str, str], peer: Peer, expected: int | str) -> None:
    found = admit(access, headers, peer)
    assert (found.status if isinstance(found, Answer) else found) == expected
    if expected == 401:
        assert isinstance(found, Answer)
        assert found.headers[0][0] == "WWW-Authenticate"


def test_every_token_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from supervisor import httpaccess

    compared: list[bytes] = []

    def digest(given: bytes, token: bytes) -> bool:
        compared.append(token)
        return given == token

    monkeypatch.setattr(httpaccess, "_compare_digest", digest)
    admit(replace(BOTH, certificate=False), {"authorization": "Bearer another-token-of-16"}, PEER)
    assert compared == list(BOTH.tokens)


def token_file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_file_of_tokens(tmp_path: Path) -> None:
    path = token_file(tmp_path / "t", b"# two of them\n" + TOKEN + b"\n\n  another-token-of-16\r\n")
    assert read_tokens(path) == (TOKEN, b"another-token-of-16")


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"", 0o600, "no token"), (b"# nothing\n", 0o600, "no token"), (b"short\n", 0o600, "no token"),
        (TOKEN + b"\n" + b"short\n", 0o600, "no token"), (b"words of sixteen letters\n", 0o600, "no token"),
        (TOKEN, 0o644, "mode 0644"), (TOKEN, 0o660, "mode 0660"),
    ],
)  # fmt: skip
def test_a_file_that_will_not_do(tmp_path: Path, content: bytes, mode: int, words: str) -> None:
    with pytest.raises(UsageError, match=words) as found:
        read_tokens(token_file(tmp_path / "t", content, mode))
    assert found.value.hint
    assert TOKEN.decode() not in f"{found.value.message}{found.value.hint}"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        read_tokens(tmp_path / "t")


# -- the whole way: a socket, the gate, the admin server, a log that the test writes


class Door:
    """An HTTP server in front of an admin server."""

    def __init__(self, asked: Asked, access: Access) -> None:  # noqa: F811
        self.asked = asked
        asked.server.snapshot = picture(FOUR, "b")
        asked.server.snapshot = replace(asked.server.snapshot, primary=Primary("a", 5, 2, True))
        self.gate = Gate(asked.server, access, asked.c.log)
        self.server = HealthServer(Current(asked.server.snapshot), "127.0.0.1", 0, changes=self.gate)

    def turn(self) -> None:
        self.server.handle(self.asked.now)
        while select.select([self.server.fileno()], [], [], 0.02)[0]:
            self.server.handle(self.asked.now)

    def dial(self, stack: ExitStack, data: bytes = b"") -> socket.socket:
        client = stack.enter_context(socket.create_connection(self.server.address, timeout=5))
        client.setblocking(False)
        client.sendall(data)
        self.turn()
        return client

    def read(self, client: socket.socket) -> tuple[int, bytes]:
        """Status and body of the answer that ends the connection."""
        data, until_ns = b"", now_ns() + 5_000 * MS
        while now_ns() < until_ns:
            self.turn()
            if select.select([client], [], [], 0.02)[0]:
                more = client.recv(65536)
                if not more:
                    head, _, content = data.partition(b"\r\n\r\n")
                    return int(head.split()[1]), content
                data += more
        raise AssertionError(f"no end after {data!r}")

    def orders(self) -> list[wire.Frame]:
        orders, self.asked.c.raft.orders = self.asked.c.raft.orders, []
        return [order for order in orders if order.name == "admin.request"]

    def answers(self, order: wire.Frame, **body: Any) -> None:
        assert self.asked.server.answered(wire.Frame("admin.answer", order.id, {"ok": True} | body))


@pytest.fixture
def door(asked: Asked) -> Iterator[Door]:  # noqa: F811
    made = Door(asked, Access((TOKEN,)))
    yield made
    made.server.close()


def http(method: str, path: str, body: bytes = b"", *headers: str, token: bytes = TOKEN) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    lines += [f"Authorization: Bearer {token.decode()}"] * bool(token)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


MOVED: dict[str, Any] = {"from": "a", "to": "b", "term": 5}
SWITCHOVER = http("POST", "/switchover", b'{"leader":"a","candidate":"b"}')


def test_a_switchover_is_answered_when_the_log_has_it(door: Door) -> None:
    with ExitStack() as stack:
        client = door.dial(stack, SWITCHOVER)
        (order,) = door.orders()
        assert order.body["name"] == "switchover"
        assert order.body["body"]["by"] == "token@127.0.0.1 over HTTP"
        door.answers(order, **MOVED)
        door.asked.now += 2 * healthserver.DEADLINE_NS
        door.turn()
        assert not select.select([client], [], [], 0)[0], "it is not done yet, and is waited for"
        grant = FOUR.grants[-1]
        moved = replace(FOUR, grants=(grant, grant._replace(term=6, node="b")))
        door.asked.log(moved, 800)
        door.asked.log(moved, 800 + GAP_TOLD_MS)
        assert door.server.deadline_ns() == 1, "the loop comes back at once"
        assert door.read(client) == (200, b'Successfully switched over to "b"\n')
        assert not door.asked.server.inside


def test_what_the_leader_refuses_and_what_takes_too_long(door: Door) -> None:
    with ExitStack() as stack:
        client = door.dial(stack, SWITCHOVER)
        (order,) = door.orders()
        door.answers(order, ok=False, code=78, error="b is fenced", hint="pgr unfence b")
        status, content = door.read(client)
        assert (status, json.loads(content)) == (412, {"error": "b is fenced", "hint": "pgr unfence b"})
        client = door.dial(stack, SWITCHOVER)
        (order,) = door.orders()
        door.answers(order, **MOVED)
        door.asked.log(FOUR, 30_001)
        status, content = door.read(client)
        assert status == 503
        assert "not done after 30 s" in json.loads(content)["error"]


def test_a_copy_is_answered_when_it_begins_and_the_setting_when_it_is_set(door: Door) -> None:
    with ExitStack() as stack:
        client = door.dial(stack, http("POST", "/reinitialize"))
        (order,) = door.orders()
        assert order.body["body"]["name"] == "b"
        door.answers(order, name="b", term=5)
        assert door.read(client) == (200, b"reinitialize started\n")
        client = door.dial(stack, http("PATCH", "/config", b'{"strict": false}'))
        (order,) = door.orders()
        assert order.body["body"]["set"] == {"strict": False}
        door.answers(order, changes={"strict": [True, False]}, notes=[], after=0, index=9)
        door.asked.log(replace(FOUR, config='{"strict":false}', config_index=9))
        status, content = door.read(client)
        assert (status, json.loads(content)["strict"]) == (200, False)


def test_without_a_token_nothing_is_read_and_nobody_asked(door: Door) -> None:
    with ExitStack() as stack:
        head = b"POST /switchover HTTP/1.1\r\nContent-Length: 60000\r\nExpect: 100-continue\r\n\r\n"
        assert door.read(door.dial(stack, head))[0] == 401
        assert door.read(door.dial(stack, http("POST", "/switchover", b"{}", token=b"x" * 16)))[0] == 401
        door.gate.access = Access()
        status, content = door.read(door.dial(stack, SWITCHOVER))
        assert status == 403
        assert "http_token_file" in json.loads(content)["hint"]
    assert door.orders() == []


def test_a_body_in_pieces_and_one_that_waits_to_be_asked_for(door: Door) -> None:
    with ExitStack() as stack:
        head, _, content = SWITCHOVER.partition(b"\r\n\r\n")
        client = door.dial(stack, head + b"\r\nExpect: 100-Continue\r\n\r\n")
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for byte in content:
            assert door.orders() == []
            client.send(bytes([byte]))
            door.turn()
        (order,) = door.orders()
        assert order.body["body"]["to"] == "b"


def test_a_body_that_does_not_come_has_five_seconds(door: Door) -> None:
    with ExitStack() as stack:
        client = door.dial(stack, SWITCHOVER[:-1])
        door.asked.now += healthserver.DEADLINE_NS
        assert door.orders() == []
        door.turn()
        assert client.recv(1) == b""


def test_a_few_at_a_time_and_checks_go_on(door: Door) -> None:
    with ExitStack() as stack:
        waiting = [door.dial(stack, SWITCHOVER) for _ in range(healthserver.MAX_WAITING)]
        assert len(door.orders()) == len(waiting)
        assert door.read(door.dial(stack, SWITCHOVER))[0] == 503
        for _ in range(200):
            door.dial(stack, b"GET /")
        assert len(door.server) == healthserver.MAX_CONNECTIONS + len(waiting), "who waits does not give way"
        assert door.read(door.dial(stack, b"HEAD /liveness HTTP/1.1\r\n\r\n"))[0] == 200


def test_a_number_beyond_all_numbers_is_no_json() -> None:
    refusal = translate(request("PATCH", "/config", b'{"maximum_lag_on_failover": 1e400}'), snapshot(), "me")
    assert isinstance(refusal, Answer)
    assert refusal.status == 400


@pytest.mark.parametrize("name", ["hooks", "hooks.on_event"])
@pytest.mark.parametrize(
    ("method", "value"), [("PATCH", "/bin/sh"), ("PATCH", None), ("PUT", "/bin/sh"), ("PUT", {"on_event": ["/bin/sh"]})]
)
def test_a_token_does_not_run_commands(name: str, method: str, value: object) -> None:
    seen = replace(snapshot(), config={"hooks": {"on_event": ["/usr/bin/true"]}})
    refusal = translate(request(method, "/config", {"strict": True, name: value}), seen, "me")
    assert isinstance(refusal, Answer)
    assert refusal.status == 403
    assert b"`pgr config set`" in refusal.body


def test_whoever_leaves_leaves_what_was_begun(door: Door) -> None:
    with ExitStack() as stack:
        client = door.dial(stack, SWITCHOVER)
        (order,) = door.orders()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()  # a reset
        door.turn()
        assert len(door.server) == 0
        door.answers(order, **MOVED)
        grant = FOUR.grants[-1]
        moved = replace(FOUR, grants=(grant, grant._replace(term=6, node="b")))
        door.asked.log(moved, 800)
        door.asked.log(moved, 800 + GAP_TOLD_MS)
        door.turn()
        assert door.server.deadline_ns() is None
        assert not door.asked.server.inside


def test_a_control_plane_that_is_away_is_said_at_once(door: Door) -> None:
    door.asked.c.view = replace(door.asked.c.view, alive=False)
    with ExitStack() as stack:
        status, content = door.read(door.dial(stack, SWITCHOVER))
        assert status == 412
        assert "being restarted" in json.loads(content)["error"]


def test_the_rest_of_a_pipeline_is_not_read(door: Door) -> None:
    with ExitStack() as stack:
        status, content = door.read(door.dial(stack, http("DELETE", "/switchover") + SWITCHOVER * 3))
        assert (status, content) == (404, b"no switchover is scheduled\n")
        assert door.orders() == []


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "PUT"])
@pytest.mark.parametrize("path", ["/switchover", "/config", "/nope", "/"])
def test_where_nothing_is_changed_every_change_is_405(method: str, path: str) -> None:
    refusal = healthserver.NoChanges().refuse(request(method, path), PEER)
    assert refusal is not None
    assert refusal.status == 405
