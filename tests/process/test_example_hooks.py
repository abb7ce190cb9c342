"""The examples in deploy/hooks: an address that moves in a network of namespaces, a POST that arrives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fencing.clock import now_ns

HOOKS = Path(__file__).resolve().parents[2] / "deploy" / "hooks"
ADDRESS = "10.99.7.100"
NOBODY = ("setpriv", "--reuid", "65534", "--clear-groups")
CAPABLE = ("--inh-caps", "+net_admin,+net_raw", "--ambient-caps", "+net_admin,+net_raw")


def run(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(w) for w in words], input=stdin, capture_output=True, text=True, check=False, timeout=60)


# -- a virtual address


class Network:
    """Two nodes and a client on one wire, each in a namespace of its own."""

    def __init__(self, name: str) -> None:
        self.spaces = {who: f"{name}-{who}" for who in ("wire", "a", "b", "client")}

    def __enter__(self) -> Network:
        for space in self.spaces.values():
            self.ip("netns", "add", space)
        self.inside("wire", "ip", "link", "add", "br0", "type", "bridge")
        self.inside("wire", "ip", "link", "set", "br0", "up")
        for number, who in enumerate(("a", "b", "client"), 1):
            self.ip("link", "add", "eth0", "netns", self.spaces[who], "type", "veth", "peer", "name", f"to-{who}",
                    "netns", self.spaces["wire"])  # fmt: skip
            self.inside("wire", "ip", "link", "set", f"to-{who}", "master", "br0", "up")
            self.inside(who, "ip", "address", "add", f"10.99.7.{number}/24", "dev", "eth0")
            self.inside(who, "ip", "link", "set", "eth0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for space in self.spaces.values():
            run("ip", "netns", "del", space)

    def ip(self, *words: str) -> None:
        done = run("ip", *words)
        assert done.returncode == 0, (words, done.stderr)

    def inside(self, who: str, *words: str | Path, fails: bool = False) -> str:
        done = run("ip", "netns", "exec", self.spaces[who], *words)
        assert (done.returncode != 0) == fails, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def vip(self, who: str, role: str) -> str:
        return self.inside(who, HOOKS / "vip", f"{ADDRESS}/24", "eth0", "on_role_change", role, "c0ffee")

    def mac(self, who: str) -> str:
        return str(json.loads(self.inside(who, "ip", "-json", "link", "show", "eth0"))[0]["address"])

    def known_mac(self) -> str:
        """Whom the client takes for the owner of the address."""
        found = json.loads(self.inside("client", "ip", "-json", "neigh", "show", ADDRESS, "dev", "eth0") or "[]")
        return str(found[0].get("lladdr", "")) if found else ""

    def reaches(self) -> bool:
        """Does anything answer at the address? A refused connection is an answer of whoever has it."""
        program = f"import socket; s = socket.socket(); s.settimeout(2); print(s.connect_ex(('{ADDRESS}', 9)))"
        return self.inside("client", "python3", "-c", program).strip() == "111"

    def settles(self, what: Any) -> None:
        give_up_ns = now_ns() + 20_000_000_000
        while not what():
            assert now_ns() < give_up_ns


@pytest.mark.root
@pytest.mark.slow
def test_the_address_moves_with_the_primary_and_the_network_is_told() -> None:
    with Network(f"pgrvip{os.getpid()}") as net:
        assert net.vip("a", "replica") == "", "nothing to do"
        assert net.vip("a", "primary") == f"{ADDRESS}/24 is on eth0\n"
        net.settles(net.reaches)
        assert net.known_mac() == net.mac("a")
        assert net.vip("a", "primary") == f"{ADDRESS}/24 is on eth0\n", "told anew"
        # The old node is dead and told nobody: the new one alone has to turn the network round.
        net.inside("a", "ip", "link", "set", "eth0", "down")
        assert net.vip("b", "primary") == f"{ADDRESS}/24 is on eth0\n"
        net.settles(lambda: net.known_mac() == net.mac("b"))
        assert net.reaches()
        assert net.vip("b", "replica") == f"{ADDRESS}/24 is off eth0\n"
        assert not net.reaches()
        # As the user of Postgres with the two capabilities that README.md names, and without.
        reach_any_user = Path(tempfile.mkdtemp())
        try:
            reach_any_user.chmod(0o755)
            script = shutil.copy2(HOOKS / "vip", reach_any_user)
            words = [script, f"{ADDRESS}/24", "eth0", "on_role_change", "primary", "c0ffee"]
            assert "Operation not permitted" in net.inside("b", *NOBODY, *words, fails=True)
            net.inside("b", *NOBODY, *CAPABLE, *words)
            net.settles(net.reaches)
        finally:
            shutil.rmtree(reach_any_user)
        said = net.inside("b", HOOKS / "vip", f"{ADDRESS}/24", "eth9", "on_role_change", "primary", "c", fails=True)
        assert "eth9" in said


def test_vip_says_how_it_is_called() -> None:
    for words in ([], ["10.0.0.1", "eth0", "on_role_change", "primary", "c"]):
        done = run(HOOKS / "vip", *words)
        assert (done.returncode, done.stderr) == (1, "usage: vip ADDRESS/PREFIX DEVICE on_role_change ROLE CLUSTER\n")


# -- a web hook


@contextmanager
def server(status: int = 204) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    taken: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((dict(self.headers), body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:  # nobody reads it
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}/pgr", taken
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def test_an_event_is_posted_as_it_is(tmp_path: Path) -> None:
    body = json.dumps({"hook": "on_event", "event": {"event": "gate.open", "text": "is open"}})
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer s3cret\n\n")
    with server() as (url, taken):
        done = run(HOOKS / "webhook", url, headers, stdin=body)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{url}: 204\n", "")
    ((sent, posted),) = taken
    assert posted.decode() == body
    assert sent["Content-Type"] == "application/json"
    assert sent["Authorization"] == "Bearer s3cret"


def test_what_is_not_taken_ends_with_1_and_says_why() -> None:
    with server(500) as (url, _):
        done = run(HOOKS / "webhook", url, stdin="{}")
        assert (done.returncode, done.stderr) == (1, f"{url}: 500 Internal Server Error\n")
    done = run(HOOKS / "webhook", url, stdin="{}")
    assert done.returncode == 1
    assert "refused" in done.stderr
    done = run(HOOKS / "webhook", "ftp://x", stdin="{}")
    assert (done.returncode, done.stderr) == (1, "usage: webhook URL [HEADER-FILE]\n")
