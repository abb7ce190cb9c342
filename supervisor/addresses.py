"""Hosts, ports, names and member lists as people write them. Pure; a name is never looked up."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

NAME_PATTERN: Final = "[a-z][a-z0-9_]{0,40}"


class Address(NamedTuple):
    """A host (name, IPv4, IPv6 without brackets, or `*`) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def zmq(self) -> str:
        """As ZeroMQ writes it: `tcp://host:port`."""
        return f"tcp://{self}"

    @property
    def is_wildcard(self) -> bool:
        return is_wildcard(self.host)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


class Peer(NamedTuple):
    """A founding member and where its consensus port is dialled."""

    name: str
    address: Address


class BadValue(ValueError):
    """A value that does not parse: `why` in a sentence, `hint` how to write it."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.why, self.hint = why, hint


def is_wildcard(host: str) -> bool:
    """True for addresses that mean "every interface": nobody can dial them."""
    return host in ("*", "") or (_ip(host) or _LOOPBACK).is_unspecified


def is_loopback(host: str) -> bool:
    """True for 127.0.0.0/8, ::1 and localhost. A name is never looked up: it counts as reachable by others."""
    ip = _ip(host)
    return ip.is_loopback if ip is not None else host.lower() in ("localhost", "ip6-localhost", "ip6-loopback")


_LOOPBACK: Final = ipaddress.IPv4Address("127.0.0.1")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise BadValue(f"{text!r} is not a port", "a port is a number from 1 to 65535")
    return int(text)


def parse_host(text: str) -> str:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if bare == "*":
        return bare
    if ":" in bare:
        if not isinstance(_ip(bare), ipaddress.IPv6Address):
            raise BadValue(f"{bare!r} is not an IPv6 address", "write it as in [fd00::1]:7400")
    elif bare != text or not _HOST.fullmatch(bare) or (re.fullmatch(r"[0-9.]+", bare) and _ip(bare) is None):
        raise BadValue(f"{text!r} is not a host", "give a host name, an IPv4 address or an IPv6 address in brackets")
    return bare


def parse_address(text: str, default_port: int | None = None) -> Address:
    """`HOST:PORT`, with IPv6 in brackets; the port may be left out if `default_port` is given. Raises `BadValue`."""
    host, colon, port = text.rpartition(":")
    bracketed = text.startswith("[")
    if default_port is not None and (text.endswith("]") if bracketed else text.count(":") != 1):
        return Address(parse_host(text), default_port)
    if not colon or not host or (bracketed and not host.endswith("]")):
        raise BadValue(
            f"{text!r} is not HOST:PORT", "for example 10.0.0.1:7400, db1.example.org:7400 or [fd00::1]:7400"
        )
    if ":" in host and not bracketed:
        raise BadValue(f"{text!r} is ambiguous", "put the IPv6 address in brackets, as in [fd00::1]:7400")
    return Address(parse_host(host), parse_port(port))


def parse_name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise BadValue(
            f"{text!r} is not a node name",
            f"a name is {NAME_PATTERN}: small letters, digits and _, a letter first, at most 41 characters",
        )
    return text


def default_name(hostname: str) -> str:
    """The host name in small letters, everything else as `_`; a leading digit gets `node_` before it."""
    name = re.sub(r"[^a-z0-9_]", "_", hostname.lower())
    return (name if name[:1].isalpha() else f"node_{name.lstrip('_')}")[:41]


def parse_peers(text: str) -> tuple[Peer, ...]:
    """`a=H:P,b=H:P` in the order given. Raises `BadValue` for malformed entries, duplicate names or addresses."""
    peers: list[Peer] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, address = entry.partition("=")
        if not equals:
            raise BadValue(
                f"{entry!r} is not NAME=HOST:PORT", "for example a=10.0.0.1:7400,b=10.0.0.2:7400,c=10.0.0.3:7400"
            )
        peer = Peer(parse_name(name.strip()), parse_address(address.strip()))
        if peer.address.is_wildcard:
            raise BadValue(
                f"{entry!r}: nobody can dial {peer.address.host}", "give the address that the others can reach"
            )
        for other in peers:
            if other.name == peer.name:
                raise BadValue(f"the name {peer.name!r} is there twice", "every member needs a name of its own")
            if other.address == peer.address:
                raise BadValue(
                    f"{other.name} and {peer.name} have the same address {peer.address}",
                    "every member needs a host and port of its own",
                )
        peers.append(peer)
    if not peers:
        raise BadValue("no member is named", "leave it out for a node on its own")
    return tuple(peers)
