"""Network namespaces for the nodes of one test, joined by a bridge on which packets can be dropped. Root only.

The bridge lies in a namespace of its own (the hub), and so do the rules: whatever is cut, the machine's own network
knows nothing of it, and removing the namespaces removes everything. A rule drops packets from one address to another,
so a one-way cut is one rule, and any set of cuts begins in one transaction, at one instant.

    node a  --veth--  hub: bridge + nftables  --veth--  node b, c, ...  and the client (the namespace of the test)
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fencing.clock import now_ns
from supervisor.localcluster import Place

CLIENT = "client"
"""The test itself, wherever it runs: one more address on the bridge."""
CONSENSUS, POSTGRES, HTTP = PORTS = (7400, 5432, 8008)
"""The same on every node: each has a namespace to itself."""
ROOT = Path(__file__).resolve().parents[2]
_PREFIX = "pgrnet"
_TABLE = """
table bridge faults {
    set cut { type ipv4_addr . ipv4_addr; }
    set cut_port { type ipv4_addr . ipv4_addr . inet_service; }
    chain loss { }
    chain forward {
        type filter hook forward priority 0; policy accept;
        ip saddr . ip daddr @cut drop
        ip saddr . ip daddr . tcp dport @cut_port drop
        ip saddr . ip daddr . tcp sport @cut_port drop
        jump loss
    }
}
"""


class Link(NamedTuple):
    """One direction between two of us, as cables would have it: packets from ``source`` to ``target``."""

    source: str
    target: str
    port: int = 0
    """Only what belongs to connections with this TCP port; 0: everything."""


class Instant(NamedTuple):
    """Somewhere in between it happened; CLOCK_BOOTTIME, ns."""

    begin_ns: int
    end_ns: int


def both(left: str, right: str, port: int = 0) -> list[Link]:
    return [Link(left, right, port), Link(right, left, port)]


def between(left: Iterable[str], right: Iterable[str], port: int = 0) -> list[Link]:
    """Every direction between the two sides."""
    others = list(right)
    return [link for one in left for other in others for link in both(one, other, port)]


def missing() -> str:
    """Why there can be no such network here; empty: there can."""
    if os.geteuid() != 0:
        return "needs root: network namespaces"
    lacking = [program for program in ("ip", "nft", "nsenter") if shutil.which(program) is None]
    if lacking:
        return f"needs {', '.join(lacking)}: apt-get install iproute2 nftables util-linux"
    return ""


class Network:
    """The namespaces of some nodes. `close` removes all of it; what a killed test left is removed by the next one."""

    def __init__(self, names: Sequence[str]) -> None:
        sweep()
        self.names = list(names)
        self._claim, number = _claim_number()
        self._net = f"10.{128 + number // 256}.{number % 256}"
        self._run = f"{_PREFIX}-{os.getpid()}-{number}"
        self.addresses = {name: f"{self._net}.{n}" for n, name in enumerate(self.names, 1)} | {
            CLIENT: f"{self._net}.254"
        }
        self._device = f"pn{number}c"
        self._made: list[str] = []
        self._slow: dict[str, subprocess.Popen[str]] = {}
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for name in (*self.names, "hub"):
            _run("ip", "netns", "add", self.namespace(name))
            self._made.append(name)
        hub = self.namespace("hub")
        _batch(hub, ["link set lo up", "link add bridge type bridge", "link set bridge up"])
        for name in self.names:
            inside = self.namespace(name)
            _run(
                "ip", "link", "add", "eth0", "netns", inside, "type", "veth", "peer", "name", f"to-{name}", "netns", hub
            )
            _batch(inside, ["link set lo up", f"addr add {self.addresses[name]}/24 dev eth0", "link set eth0 up"])
        _run("ip", "link", "add", self._device, "type", "veth", "peer", "name", f"to-{CLIENT}", "netns", hub)
        _batch("", [f"addr add {self.addresses[CLIENT]}/24 dev {self._device}", f"link set {self._device} up"])
        ports = [f"to-{name}" for name in (*self.names, CLIENT)]
        _batch(hub, [f"link set {port} {what}" for port in ports for what in ("master bridge", "up")])
        self._nft(_TABLE)

    def namespace(self, name: str) -> str:
        return f"{self._run}-{name}"

    def enter(self, name: str) -> tuple[str, ...]:
        """Words before a command that is to run there. Unlike ``ip netns exec`` nothing else of the world changes."""
        return ("nsenter", f"--net=/run/netns/{self.namespace(name)}")

    def place(self, name: str, inside: tuple[str, ...] = ()) -> Place:
        """``inside``: further words before its command, once it is there."""
        return Place(self.addresses[name], PORTS, (*self.enter(name), *inside))

    def cut(self, links: Iterable[Link]) -> Instant:
        """From now on these packets are lost, all at one instant; connections are not told."""
        return self._nft("".join(f"add element bridge faults {self._element(link)}\n" for link in links))

    def mend(self, links: Iterable[Link]) -> Instant:
        return self._nft("".join(f"delete element bridge faults {self._element(link)}\n" for link in links))

    def lose(self, per_mille: int, links: Iterable[Link]) -> Instant:
        """So many of a thousand packets are lost, at random."""
        pairs = [(self.addresses[link.source], self.addresses[link.target]) for link in links]
        what = f"numgen random mod 1000 < {per_mille} drop"
        rules = [f"add rule bridge faults loss ip saddr {pair[0]} ip daddr {pair[1]} {what}\n" for pair in pairs]
        return self._nft("".join(rules))

    def delay(self, name: str, delay_ms: float, jitter_ms: float = 0) -> None:
        """From now on every frame from and to this node takes so much longer, each way."""
        self._hasten(name)
        words = [*self.enter("hub"), sys.executable, "-m", "tests.net.delay", f"to-{name}", f"slow-{name}"]
        slow = subprocess.Popen(
            [*words, str(delay_ms), str(jitter_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self._slow[name] = slow
        if slow.stdout is None or slow.stdout.readline() != "ready\n":
            self._hasten(name)
            raise RuntimeError(f"the frames of {name} cannot be delayed")

    def _hasten(self, name: str) -> None:
        if slow := self._slow.pop(name, None):
            slow.communicate()  # the end of its standard input is its own
            _batch(self.namespace("hub"), [f"link set to-{name} master bridge"])

    def heal(self) -> Instant:
        """No packet is lost or late any more."""
        for name in list(self._slow):
            self._hasten(name)
        return self._nft(
            "flush set bridge faults cut\nflush set bridge faults cut_port\nflush chain bridge faults loss\n"
        )

    def _element(self, link: Link) -> str:
        pair = f"{self.addresses[link.source]} . {self.addresses[link.target]}"
        return f"cut_port {{ {pair} . {link.port} }}" if link.port else f"cut {{ {pair} }}"

    def _nft(self, text: str) -> Instant:
        begin_ns = now_ns()
        if text:
            _run(*self.enter("hub"), "nft", "-f", "-", given=text)
        return Instant(begin_ns, now_ns())

    def close(self) -> None:
        """Idempotent. A process that still runs in one keeps only its own, which is connected to nothing then."""
        for slow in self._slow.values():
            slow.communicate()
        self._slow.clear()
        for name in reversed(self._made):  # the hub first: with it every cable is gone
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True, check=False)
        self._made.clear()
        self._claim.close()


def sweep() -> None:
    """Remove what was left by runs that are no more."""
    listed = json.loads(_run("ip", "-j", "netns", "list") or "[]")
    for name in (each["name"] for each in listed):
        head, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if head == _PREFIX and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _claim_number() -> tuple[socket.socket, int]:
    """A number nobody else on this machine uses for as long as the socket is open; it makes an unused 10.x.y.0/24."""
    routes = [
        ipaddress.ip_network(route["dst"])
        for route in json.loads(_run("ip", "-j", "-4", "route", "show") or "[]")
        if route["dst"] != "default"
    ]
    while True:
        number = secrets.randbelow(127 * 256)
        net = ipaddress.ip_network(f"10.{128 + number // 256}.{number % 256}.0/24")
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0{_PREFIX}-{number}")
        except OSError:
            claim.close()
            continue
        if not any(net.overlaps(route) for route in routes):
            return claim, number
        claim.close()


def _batch(namespace: str, lines: Sequence[str]) -> None:
    where = ["-n", namespace] if namespace else []
    _run("ip", *where, "-batch", "-", given="\n".join(lines))


def _run(*words: str, given: str = "") -> str:
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
