"""TLS of the HTTP server: certificates of both ends, changed while it runs; clients that never finish a handshake."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from fencing.clock import now_ns
from fencing.lease import MS
from fencing.logs import Log
from supervisor.config import Config, Facts, load
from supervisor.errors import MissingError, PgrError, UsageError
from supervisor.healthserver import MAX_CONNECTIONS, Current, HealthServer
from supervisor.httpgate import Http, make
from supervisor.httptls import TlsFiles, common_name, make_context
from supervisor.reread import taken
from tests.unit.snapshots import snapshot
from tests.unit.test_http_changes import TOKEN, http, token_file
from tests.unit.test_member_surfaces import Asked, asked  # noqa: F401  # the second is a fixture


class Authority:
    """Certificates for a test, in files."""

    def __init__(self, home: Path) -> None:
        self.home, self.ca = home, trustme.CA()
        self.server = self.issue("server", "127.0.0.1")
        self.client = self.issue("client", "ops@example.org", common_name="ops")
        self.roots = home / "ca.pem"
        self.ca.cert_pem.write_to_path(self.roots)

    def issue(self, name: str, *identities: str, common_name: str | None = None) -> tuple[Path, Path]:
        made = self.ca.issue_cert(*identities, common_name=common_name)
        cert, key = self.home / f"{name}.pem", self.home / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        return cert, key

    def files(self, **more: Any) -> TlsFiles:
        return TlsFiles(*self.server, **more)

    def trusting(self, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.roots)
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        if client is not None:
            context.load_cert_chain(*client)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


class Loop:
    """Turns the server, as the parent's loop does, while a client of the test waits."""

    def __init__(self, server: HealthServer) -> None:
        self.server, self.over, self.longest_ms = server, threading.Event(), 0.0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.over.is_set():
            select.select([self.server.fileno()], [], [], 0.02)
            began = now_ns()
            self.server.handle(began)
            self.longest_ms = max(self.longest_ms, (now_ns() - began) / MS)

    def end(self) -> None:
        self.over.set()
        self.thread.join()
        self.server.close()


@pytest.fixture
def loops() -> Iterator[list[Loop]]:
    made: list[Loop] = []
    yield made
    for loop in made:
        loop.end()


def serve(loops: list[Loop], tls: ssl.SSLContext | None) -> HealthServer:
    server = HealthServer(Current(snapshot()), "127.0.0.1", 0, tls)
    server._current.snapshot = replace(snapshot(), lease_until_ns=now_ns() + 600_000 * MS)
    loops.append(Loop(server))
    return server


def ask(server: HealthServer, context: ssl.SSLContext, request: bytes = b"GET /primary HTTP/1.1\r\n\r\n") -> bytes:
    raw = socket.create_connection(server.address, timeout=10)
    # A connection that ends without a word may have been cut off by somebody: here that is an error.
    with raw, context.wrap_socket(raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as client:
        client.sendall(request)
        data = b""
        while more := client.recv(65536):
            data += more
        return data


def test_a_check_over_tls(loops: list[Loop], authority: Authority) -> None:
    server = serve(loops, make_context(authority.files()))
    assert ask(server, authority.trusting()).startswith(b"HTTP/1.1 200 OK\r\n")
    head = ask(server, authority.trusting(), b"HEAD /replica HTTP/1.1\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert head.endswith(b"\r\n\r\n")


def test_a_large_page_and_its_end(loops: list[Loop], authority: Authority) -> None:
    server = serve(loops, make_context(authority.files()))
    server._current.snapshot = replace(server._current.snapshot, explanation="x" * 3_000_000)
    # No ragged end: the client is told that this was all.
    assert len(ask(server, authority.trusting(), b"GET /status HTTP/1.1\r\n\r\n")) > 3_000_000


def test_old_protocols_and_no_tls_are_turned_away(loops: list[Loop], authority: Authority) -> None:
    server = serve(loops, make_context(authority.files()))
    old = authority.trusting()
    with pytest.warns(DeprecationWarning, match="TLS"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError):  # noqa: PT011  # which one depends on OpenSSL
        ask(server, old)
    with socket.create_connection(server.address, timeout=10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        try:
            assert b"HTTP" not in raw.recv(100)
        except ConnectionResetError:
            pass  # told as plainly
    assert ask(server, authority.trusting()).startswith(b"HTTP/1.1 200")


def test_who_never_finishes_a_handshake_keeps_no_check_out(loops: list[Loop], authority: Authority) -> None:
    server = serve(loops, make_context(authority.files()))
    silent = [socket.create_connection(server.address, timeout=10) for _ in range(200)]
    try:
        for client in silent[::2]:
            client.sendall(b"\x16\x03\x01\x02\x00")  # the beginning of a hello
        for _ in range(5):
            assert ask(server, authority.trusting()).startswith(b"HTTP/1.1 200")
        assert len(server) <= MAX_CONNECTIONS
    finally:
        for client in silent:
            client.close()


def test_client_certificates(loops: list[Loop], authority: Authority, tmp_path: Path) -> None:
    known, unknown = authority.trusting(authority.client), Authority(tmp_path)
    stranger = authority.trusting(unknown.client)
    optional = serve(loops, make_context(authority.files(client_ca=authority.roots)))
    assert ask(optional, authority.trusting()).startswith(b"HTTP/1.1 200")
    assert ask(optional, known).startswith(b"HTTP/1.1 200")
    with pytest.raises(OSError):  # noqa: PT011
        ask(optional, stranger)
    required = serve(loops, make_context(authority.files(client_ca=authority.roots, verify=True)))
    with pytest.raises(OSError):  # noqa: PT011
        ask(required, authority.trusting())
    assert ask(required, known).startswith(b"HTTP/1.1 200")


def test_common_names() -> None:
    subject = ((("organizationName", "x"),), (("commonName", "ops\n"),))
    assert common_name({"subject": subject}) == "ops"
    assert [common_name(none) for none in (None, {}, {"subject": ()})] == ["", "", ""]


@pytest.mark.parametrize(
    ("cert", "key", "ca", "error"),
    [
        ("missing", "server.key", "", MissingError),
        ("server.pem", "missing", "", MissingError),
        ("server.pem", "client.key", "", UsageError),
        ("server.key", "server.key", "", UsageError),
        ("server.pem", "", "", UsageError),
        ("server.pem", "server.key", "missing", MissingError),
        ("server.pem", "server.key", "server.key", UsageError),
    ],
)
def test_files_that_will_not_do(authority: Authority, cert: str, key: str, ca: str, error: type[PgrError]) -> None:
    home = authority.home
    with pytest.raises(error) as found:
        make_context(TlsFiles(home / cert, home / key if key else None, home / ca if ca else None))
    assert found.value.hint


# -- as it is configured, and HUP


def config(home: Path, **flags: object) -> Config:
    given = {"data": str(home), "name": "b", "http": "127.0.0.1:0"} | {name: str(v) for name, v in flags.items()}
    return load(given | {"http": "127.0.0.1:1"}, {}, None, None, Facts("host", "/"))


@pytest.fixture
def node(asked: Asked, authority: Authority, tmp_path: Path) -> tuple[Http, Config]:  # noqa: F811
    cert, key = authority.server
    known = {"http_tls_cert": cert, "http_tls_key": key, "http_tls_client_ca": authority.roots}
    made = config(tmp_path, http_token_file=token_file(tmp_path / "tokens", TOKEN), **known)
    made = replace(made, http=made.http._replace(port=0) if made.http is not None else None)
    http_ = make(made, Current(asked.server.snapshot), asked.server, Log("json", "b", "parent", fd=2))
    assert http_ is not None
    return http_, made


CHANGE = http("DELETE", "/switchover")


def test_both_a_token_and_a_certificate(node: tuple[Http, Config], loops: list[Loop], authority: Authority) -> None:
    server = node[0].server
    loops.append(Loop(server))
    assert ask(server, authority.trusting(authority.client), CHANGE).startswith(b"HTTP/1.1 404 ")
    assert ask(server, authority.trusting(), CHANGE).startswith(b"HTTP/1.1 403 ")
    without = http("DELETE", "/switchover", token=b"")
    assert ask(server, authority.trusting(authority.client), without).startswith(b"HTTP/1.1 401 ")


def test_a_body_in_one_record(node: tuple[Http, Config], loops: list[Loop], authority: Authority) -> None:
    """More than is read at once, all of it decrypted at once: epoll knows nothing of the rest."""
    server = node[0].server
    loops.append(Loop(server))
    body = b'{"strict": ' + b" " * 12_000 + b'"x", "strict": 1}'
    answer = ask(server, authority.trusting(authority.client), http("PATCH", "/config", body))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"twice" in answer


def test_new_files_are_taken_and_bad_ones_change_nothing(
    node: tuple[Http, Config], loops: list[Loop], authority: Authority, tmp_path: Path
) -> None:
    running, made = node
    loops.append(Loop(running.server))
    another = Authority(tmp_path)
    cert, key = another.server
    new = replace(made, http_tls_cert=cert, http_tls_key=key)
    running.reload(replace(new, http_tls_key=tmp_path / "missing"))
    assert ask(running.server, authority.trusting(), b"HEAD / HTTP/1.1\r\n\r\n")
    assert made.http_token_file is not None
    made.http_token_file.write_bytes(b"another-token-of-16")
    running.reload(new)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(running.server, authority.trusting())
    trusting = another.trusting(authority.client)
    assert ask(running.server, trusting, CHANGE).startswith(b"HTTP/1.1 401 ")
    assert ask(running.server, trusting, http("DELETE", "/switchover", token=b"another-token-of-16")).startswith(
        b"HTTP/1.1 404 "
    )


def test_what_a_running_node_takes_and_what_it_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("json", "b", "parent", fd=2)
    old = config(tmp_path)
    new = config(tmp_path, tags="nofailover=true,zone=x", http_token_file=tmp_path / "t", pg_port=6000)
    found = taken(old, new, log)
    assert found.tags == {"nofailover": True, "zone": "x"}
    assert found.http_token_file == tmp_path / "t"
    assert found.pg_port == old.pg_port
    said = capfd.readouterr().err
    assert '"config.needs_restart"' in said
    assert "pg_port" in said
    tls = config(tmp_path, http_tls_cert=tmp_path / "c", http_tls_client_ca=tmp_path / "ca")
    assert taken(old, tls, log).http_tls_cert is None, "HTTP stays what the others were told it is"
    assert taken(tls, replace(tls, http_tls_cert=tmp_path / "d"), log).http_tls_cert == tmp_path / "d"
    assert taken(old, old, log) == old


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"http_tls_key": "/k"}, "--http-tls-key (flag --http-tls-key) does nothing without --http-tls-cert"),
        ({"http_tls_client_ca": "/c"}, "does nothing without --http-tls-cert"),
        ({"http_tls_cert": "/c", "http_tls_verify": "required"}, "does nothing without --http-tls-client-ca"),
        ({"http_tls_verify": "sometimes"}, "'sometimes' is not one of optional, required"),
        ({"tags": "nofailover"}, "'nofailover' is no NAME=VALUE"),
        ({"tags": "nofailover=yes"}, "nofailover = 'yes'"),
        ({"tags": "{1}"}, "is no JSON object"),
        ({"tags": "a=1,a=2"}, "is there twice"),
        ({"tags": "clone_from=b"}, "clone_from = 'b'"),
        ({"tags": "replicate_from=b", "name": "b"}, "which is this node itself"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, flags: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as found:
        config(tmp_path, **flags)
    assert words in found.value.message
    assert found.value.hint


def test_tags_as_flag_variable_and_table(tmp_path: Path) -> None:
    expected = {"big": True, "n": 3, "nosync": False, "zone": "a b"}
    facts = Facts("host", "/")
    flag = {"data": str(tmp_path), "tags": "zone=a b, big=true,nosync=FALSE,n=3,"}
    assert load(flag, {}, None, None, facts).tags == expected
    assert load({"data": "/d"}, {"PGR_TAGS": '{"zone": "a b", "big": true, "nosync": false, "n": 3}'}, None, None,
                facts).tags == expected  # fmt: skip
    file = '[tags]\nzone = "a b"\nbig = true\nnosync = false\nn = 3\n'
    assert load({"data": "/d"}, {}, file, tmp_path / "pgr.toml", facts).tags == expected
    with pytest.raises(UsageError, match="tags"):
        load({"data": "/d"}, {}, "[tags]\nzone = [1]\n", tmp_path / "pgr.toml", facts)


def test_tokens_in_the_clear_are_warned_of(tmp_path: Path) -> None:
    given = {"data": str(tmp_path), "http_token_file": "/t", "http": "10.0.0.1:8008"}
    found = load(given, {}, None, None, Facts("host", "/")).warnings
    assert any("in the clear" in text for text in found)
    assert not any("in the clear" in text for text in config(tmp_path, http_token_file="/t").warnings)
    off = load(given | {"http": "off"}, {}, None, None, Facts("host", "/")).warnings
    assert "--http-token-file: there is no HTTP (--http off)" in off


def test_the_file_of_the_readme_is_one(tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    text = readme.partition("## HTTP, tags, monitoring")[2].partition("```toml\n")[2].partition("```")[0]
    found = load({"data": "/d"}, {}, text, tmp_path / "pgr.toml", Facts("host", "/"))
    assert found.http_token_file == Path("/etc/pgr/tokens")
    assert found.tags == {"nofailover": True, "zone": "berlin"}
