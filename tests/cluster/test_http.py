"""HTTP of real nodes: every path, tags, changes with a token, clients that are slow on purpose, TLS, check_patroni."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fencing.clock import now_ns
from supervisor import metrics
from supervisor.localcluster import SECOND, LocalNode, own, wait_for, write_secret
from tests.cluster.world import START_S, World
from tests.pypi import installed

pytestmark = pytest.mark.cluster

TOKEN = "0123456789abcdef0123456789abcdef"


def configured(world: World, node: LocalNode, toml: str) -> Path:
    """Gives the node a file, which may be written again."""
    path = world.home / f"{node.name}.toml"
    path.write_text(toml, encoding="utf-8")
    own(path)
    node.flags["config"] = str(path)
    return path


def tokens(world: World) -> None:
    path = write_secret(world.home / "tokens", TOKEN)
    for node in world.nodes:
        node.flags["http-token-file"] = str(path)


def ask(node: LocalNode, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str]:
    """Status and body; with the token, if no other Authorization is given."""
    connection = http.client.HTTPConnection(node.host, node.http_port, timeout=40)
    try:
        known = {"Authorization": f"Bearer {TOKEN}"} | headers
        connection.request(method, path, None if body is None else json.dumps(body), known)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


PRIMARY = ("/", "/primary", "/read-write", "/leader", "/read-only-sync")
REPLICA = ("/replica", "/quorum", "/replica?lag=16MB", "/replica?replication_state=streaming")
BOTH = ("/health", "/liveness", "/readiness", "/readiness?lag=64kB&mode=write", "/read-only?lag=1GB")
NEITHER = ("/standby-leader", "/sync", "/async", "/replica?tag_x=y", "/nope", "/replica?replication_state=no")


@pytest.mark.slow
def test_reads_and_changes(make_world: Callable[..., World]) -> None:
    world = make_world()
    tokens(world)
    tags = configured(world, world["c"], '[tags]\nzone = "x"\nbig = true\n')
    world.start()
    a = world.wait_writable(standbys=2)
    b = next(node for node in world.standbys() if node.name != "c")
    c = world["c"] if a.name != "c" else b
    codes = dict.fromkeys(PRIMARY, (200, 503)) | dict.fromkeys(REPLICA, (503, 200))
    codes |= dict.fromkeys((*BOTH, "/read-only", "/read-only-quorum"), (200, 200)) | dict.fromkeys(NEITHER, (503, 503))
    for path, expected in codes.items():
        for node, code in zip((a, b), expected, strict=True):
            found = [ask(node, method, path)[0] for method in ("GET", "HEAD", "OPTIONS")]
            assert found == [code] * 3, (node.name, path)
            assert (ask(node, "HEAD", path)[1], ask(node, "OPTIONS", path)[1]) == ("", "")
    for path in ("/patroni", "/status", "/cluster", "/history", "/config"):
        assert isinstance(json.loads(ask(b, "GET", path)[1]), dict | list)
    for path in ("/replica?lag=much", "/readiness?mode=no", "/sync?lag=%zz"):
        assert ask(b, "GET", path)[0] == 400
    said_by_patroni(a, b)
    assert {m.name for m in metrics.METRICS} - {"pgr_last_write_gap_seconds", "pgr_member_replay_lag_seconds"} <= {
        line.split()[2] for line in ask(b, "GET", "/metrics")[1].splitlines() if line.startswith("# TYPE")
    }

    # Tags: of this node at once, of all in the log; read again at HUP; a bad file changes nothing.
    world.settles(lambda: ask(world["c"], "GET", "/health?tag_zone=x&tag_big=true")[0] == 200, "c knows its tags")
    assert ask(world["c"], "GET", "/health?tag_zone=y")[0] == 503
    tags.write_text('[tags]\nzone = "x"\nnofailover = true\nnoloadbalance = true\n', encoding="utf-8")
    world["c"].send(signal.SIGHUP)
    expected_tags = {"zone": "x", "nofailover": True, "noloadbalance": True}
    world.settles(lambda: row(b, "c").get("tags") == expected_tags, "b knows the tags of c")
    if a.name != "c":
        assert [ask(c, "GET", path)[0] for path in ("/replica", "/read-only", "/health")] == [503, 503, 200]
    tags.write_text("[tags]\nnofailover = 7\n", encoding="utf-8")
    world["c"].send(signal.SIGHUP)
    world.settles(lambda: bool(world.logged(world["c"], "config.not_reloaded")), "the bad file is told of")
    assert row(a, "c")["tags"] == expected_tags
    old = "c goes on with its old configuration"
    world.settles(lambda: any(w.startswith(old) for w in world.asked_status()["warnings"]), "the status says so, too")

    # Changes.
    assert ask(b, "POST", "/switchover", {"leader": a.name}, Authorization="Bearer no")[0] == 401
    assert ask(b, "POST", "/switchover", {"leader": b.name})[0] == 412
    if a.name != "c":
        status, text = ask(b, "POST", "/switchover", {"leader": a.name, "candidate": "c"})
        assert (status, "nofailover" in text) == (412, True)
    assert ask(b, "POST", "/failover", {})[0] == 400
    assert ask(b, "POST", "/failover", {"candidate": "nobody"})[0] == 412
    assert ask(b, "POST", "/restart", {"role": "chief"})[0] == 400
    assert ask(b, "POST", "/reinitialize", {"force": "yes"})[0] == 400
    assert ask(a, "POST", "/reinitialize")[0] == 503, "of a primary there is no other copy"
    assert ask(b, "PATCH", "/config", {"strict": "perhaps"})[0] == 400
    assert ask(b, "PATCH", "/config", {"postgres": {"parameters": {"work_mem": "much"}}})[0] == 400
    assert ask(b, "PATCH", "/config", {"lease_ms": 3000})[0] == 412
    status, text = ask(b, "PATCH", "/config", {"postgres": {"parameters": {"work_mem": "8MB"}}})
    assert (status, json.loads(text)["postgres"]["parameters"]["work_mem"]) == (200, "8MB")
    world.settles(lambda: world.query(b, "SHOW work_mem") == [("8MB",)], "it is in force")
    assert ask(b, "PATCH", "/config", {"sync_acks": 2})[0] == 200
    every = ("/sync", "/synchronous", "/read-only-sync")
    world.settles(lambda: [ask(b, "GET", path)[0] for path in every] == [200] * 3, "every commit waits for b")
    assert [ask(a, "GET", path)[0] for path in every] == [503, 503, 200]
    status, text = ask(b, "PATCH", "/config", {"sync_acks": None})
    assert (status, json.loads(text)["sync_acks"]) == (200, None)
    world.settles(lambda: ask(b, "GET", "/sync")[0] == 503, "one of two will do again")
    shown = json.loads(ask(b, "GET", "/config")[1])
    history = world.pgr("config", "history").stdout
    assert ask(b, "PUT", "/config", shown | {"strict": "perhaps"})[0] == 400
    assert ask(b, "PUT", "/config", {"postgres": {"parameters": {"work_mem": "much"}}})[0] == 400
    assert ask(b, "PUT", "/config", shown | {"lease_ms": 3000})[0] == 412
    status, text = ask(b, "PUT", "/config", shown)
    assert (status, json.loads(text)) == (200, shown)
    assert world.pgr("config", "history").stdout == history, "what was shown changes nothing"
    status, text = ask(b, "PUT", "/config", {"salvage_keep": 7})
    bare = {"salvage_keep": 7, "postgres": {"parameters": {}, "hba": [], "ident": []}}
    assert (status, json.loads(text)) == (200, shown | bare)
    world.settles(lambda: world.query(b, "SHOW work_mem") == [("4MB",)], "what it does not name is the default again")
    user = {"Authorization": "Basic " + b64encode(f"ann:{TOKEN}".encode()).decode()}
    with world.writing() as writer:
        status, text = ask(b, "POST", "/switchover", {"leader": a.name, "candidate": b.name}, **user)
        assert (status, text) == (200, f'Successfully switched over to "{b.name}"\n')
        world.settles(lambda: ask(b, "GET", "/primary")[0] == 200, "its gate is open")
        world.writes_again(writer, now_ns())
        world.wait_streaming(a)
        operated(world, b, a)
    world.check_no_loss(writer)
    assert "ann@127.0.0.1 over HTTP" in world.pgr("history", "--json", node=a).stdout


def operated(world: World, primary: LocalNode, standby: LocalNode) -> None:
    """Restart, reload and a schedule, as Patroni's clients ask for them."""
    started = json.loads(ask(standby, "GET", "/patroni")[1])["postmaster_start_time"]
    assert ask(standby, "POST", "/restart", {"role": "primary"})[0] == 503
    assert ask(standby, "POST", "/restart", {"restart_pending": True})[0] == 503
    assert ask(standby, "POST", "/restart", {"role": "replica", "timeout": 60}) == (200, "restarted successfully\n")
    assert json.loads(ask(standby, "GET", "/patroni")[1])["postmaster_start_time"] != started
    assert ask(standby, "POST", "/reload")[0] == 202
    at = "2001-01-31T02:00:00+00:00"
    assert ask(primary, "POST", "/switchover", {"leader": primary.name, "scheduled_at": at})[0] == 422
    later = {"leader": primary.name, "candidate": standby.name, "scheduled_at": "+1h"}
    status, text = ask(standby, "POST", "/switchover", later)
    assert (status, text.startswith("Switchover scheduled for ")) == (202, True)

    def planned(node: LocalNode) -> str:
        return str(json.loads(ask(node, "GET", "/cluster")[1]).get("scheduled_switchover", {}).get("to", ""))

    world.settles(lambda: planned(primary) == planned(standby) == standby.name, "everybody knows")
    assert ask(primary, "POST", "/switchover", later)[0] == 409
    assert ask(primary, "POST", "/restart", {"schedule": "+2h"})[0] == 409
    assert ask(primary, "DELETE", "/restart")[0] == 404
    assert ask(primary, "DELETE", "/switchover") == (200, "scheduled switchover deleted\n")
    world.settles(lambda: planned(primary) == "", "it is gone")
    assert ask(primary, "DELETE", "/switchover") == (404, "no switchover is scheduled\n")
    assert ask(standby, "POST", "/restart", {"schedule": "+2h"})[0] == 202
    world.settles(lambda: "scheduled_restart" in json.loads(ask(standby, "GET", "/patroni")[1]), "it is shown")
    assert ask(standby, "DELETE", "/restart") == (200, "scheduled restart deleted\n")
    done = ask(primary, "POST", "/failover", {"candidate": standby.name})
    assert done == (200, f'Successfully failed over to "{standby.name}"\n')
    world.settles(lambda: ask(standby, "GET", "/primary")[0] == 200, "its gate is open")
    world.wait_streaming(primary)
    copies = len(world.logged(primary, "clone.end"))
    assert ask(primary, "POST", "/reinitialize") == (200, "reinitialize started\n")
    world.settles(lambda: len(world.logged(primary, "clone.end")) > copies, "it has a new copy")
    world.wait_streaming(primary)


def row(node: LocalNode, name: str) -> dict[str, Any]:
    rows = json.loads(ask(node, "GET", "/cluster")[1])["members"]
    return next((found for found in rows if found["name"] == name), {})


def said_by_patroni(a: LocalNode, b: LocalNode) -> None:
    """What checks that were written for Patroni look at; its documentation has these examples."""
    primary, replica = (json.loads(ask(node, "GET", "/patroni")[1]) for node in (a, b))
    assert (primary["role"], primary["state"], replica["role"], replica["state"]) == (
        "primary", "running", "replica", "running",
    )  # fmt: skip
    assert primary["xlog"]["location"] > 0
    assert replica["xlog"]["received_location"] >= replica["xlog"]["replayed_location"] > 0
    assert replica["replication_state"] == "streaming"
    assert {found["application_name"] for found in primary["replication"]} >= {b.name}
    assert primary["timeline"] == replica["timeline"] > 0
    assert primary["server_version"] >= 150000
    assert primary["postmaster_start_time"].endswith("+00:00")
    assert primary["database_system_identifier"] == replica["database_system_identifier"]
    assert primary["patroni"] == {"version": "4.0.0", "scope": primary["pgr"]["cluster_id"], "name": a.name}
    assert not {"pause", "cluster_unlocked", "pending_restart"} & set(primary)
    cluster = json.loads(ask(b, "GET", "/cluster")[1])
    assert [m["role"] for m in cluster["members"]].count("leader") == 1
    for member in cluster["members"]:
        assert member["state"] in ("running", "streaming")
        assert {"name", "api_url", "host", "port", "timeline"} <= set(member)
        assert ("lag" in member) == (member["role"] != "leader")


# -- clients that are slow on purpose ----------------------------------------------------------------------------------


@contextmanager
def half_open(node: LocalNode, count: int, words: bytes) -> Iterator[list[socket.socket]]:
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            client = socket.create_connection((node.host, node.http_port), timeout=10)
            client.setblocking(False)
            held.append(client)
            if words:
                client.send(words)
        yield held
    finally:
        for client in held:
            client.close()


def dribble(held: list[socket.socket], word: bytes) -> None:
    """One more byte to each that has not been closed."""
    for client in held:
        try:
            client.send(word)
        except OSError:
            pass  # it was one of the oldest


@pytest.mark.slow
def test_slow_clients_keep_no_check_out_and_cost_no_write(world: World) -> None:
    primary = world.wait_writable()
    worst_s = 0.0
    with world.writing() as writer:
        began = len(writer.failures)
        posting = b"POST /switchover HTTP/1.1\r\nContent-Length: 9999\r\nX: "
        for words in (b"", b"GET /primary HTTP/1.1\r\nX: ", posting):
            with half_open(primary, 500, words) as held:
                for _ in range(20):
                    dribble(held, b"x")
                    asked_ns = now_ns()
                    assert primary.get("/primary", timeout_s=5)[0] == 200
                    worst_s = max(worst_s, (now_ns() - asked_ns) / SECOND)
        since_ns = now_ns()
        world.settles(lambda: writer.acked_since(since_ns) > 20, "writes go on")
        assert len(writer.failures) == began
    print(f"slowest of 60 checks beside 500 half-open connections: {worst_s * 1000:.0f} ms")
    assert worst_s < 5
    world.check_no_loss(writer)


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tls_of_a_whole_node(make_world: Callable[..., World], tmp_path: Path) -> None:
    import trustme

    world = make_world(nodes=1)
    node = world.nodes[0]
    authority, files = trustme.CA(), {}
    roots = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(roots)

    def issue(name: str) -> tuple[Path, Path]:
        """A certificate that the node's user may read, in place of what was there."""
        made = authority.issue_cert("127.0.0.1", common_name=name)
        cert, key = world.home / f"{name}.pem", world.home / f"{name}.key"
        for path, content in ((cert, made.cert_chain_pems[0].bytes()), (key, made.private_key_pem.bytes())):
            path.write_bytes(content)
            own(path)
        return cert, key

    files["server"], files["client"] = issue("server"), issue("client")
    ca = world.home / "client-ca.pem"
    ca.write_bytes(roots.read_bytes())
    own(ca)
    node.flags |= {
        "http-tls-cert": str(files["server"][0]), "http-tls-key": str(files["server"][1]),
        "http-tls-client-ca": str(ca),
    }  # fmt: skip
    node.start()

    def tls(method: str, path: str, *, shows: bool = False, body: str | None = None) -> tuple[int, str, int]:
        context = ssl.create_default_context(cafile=roots)
        if shows:
            context.load_cert_chain(*files["client"])
        connection = http.client.HTTPSConnection(node.host, node.http_port, timeout=10, context=context)
        try:
            connection.connect()
            assert isinstance(connection.sock, ssl.SSLSocket)
            serial = int((connection.sock.getpeercert() or {}).get("serialNumber", "0"), 16)  # type: ignore[arg-type]  # a str
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), serial
        finally:
            connection.close()

    def is_primary() -> bool:
        try:
            return tls("GET", "/primary")[0] == 200
        except OSError:
            return False

    assert wait_for(is_primary, START_S), list(node.events())[-5:]
    assert json.loads(tls("GET", "/cluster")[1])["members"][0]["api_url"].startswith("https://127.0.0.1:")
    assert node.get("/primary")[0] == 0, "there is nothing without TLS"
    change = json.dumps({"postgres": {"parameters": {"work_mem": "9MB"}}})
    assert tls("PATCH", "/config", body=change)[0] == 403
    assert tls("PATCH", "/config", body=change, shows=True)[0] == 200
    assert world.query(node, "SELECT 1") == [(1,)]
    before = tls("GET", "/primary")[2]
    issue("server")
    node.send(signal.SIGHUP)
    assert wait_for(lambda: tls("GET", "/primary")[2] != before, 10)
    files["server"][0].write_text("no certificate", encoding="utf-8")
    node.send(signal.SIGHUP)
    assert wait_for(lambda: bool(world.logged(node, "http.not_reloaded")), 10)
    assert tls("GET", "/primary")[0] == 200


# -- check_patroni -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_check_patroni(world: World, tmp_path: Path) -> None:
    """The Nagios plugin for Patroni, from PyPI."""
    program = installed(tmp_path / "env", "check_patroni>=2,<3") / "check_patroni"
    primary = world.wait_writable()
    standby = world.standbys()[0]

    def check(node: LocalNode, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [program, "-e", f"http://{node.host}:{node.http_port}", *words],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    timeline = str(json.loads(ask(primary, "GET", "/patroni")[1])["timeline"])
    good = [
        (primary, "cluster_has_leader"), (primary, "cluster_has_replica --warning @1 --critical @0"),
        (primary, "cluster_node_count --critical 3:"), (primary, "cluster_is_in_maintenance"),
        (primary, "cluster_has_scheduled_action"), (primary, "node_is_alive"), (primary, "node_is_primary"),
        (primary, "node_is_leader"), (primary, "node_is_pending_restart"), (standby, "node_is_replica"),
        (primary, f"node_tl_has_changed --timeline {timeline}"), (standby, "node_is_replica --max-lag 16MB"),
        (standby, "node_is_replica --is-sync --sync-type quorum"),
    ]  # fmt: skip
    for node, words in good:
        code, said = check(node, *words.split())
        assert code == 0, f"{words} on {node.name}: {said}"
    for node, word in ((standby, "node_is_primary"), (standby, "node_is_leader"), (primary, "node_is_replica")):
        code, said = check(node, word)
        assert code == 2, f"{word} on {node.name}: {said}"
    standby.kill_all()
    world.settles(lambda: check(primary, "cluster_node_count", "--healthy-critical", "3:")[0] == 2, "a node is missing")
    assert check(standby, "node_is_alive")[0] != 0
