"""Who may change something over HTTP: nobody by default, else who has a token, a client certificate, or both.

Reads are for everybody who reaches the port, unless a client certificate is asked for everything. What is set is all
asked for: with tokens and a client CA a change needs both.
"""

from __future__ import annotations

import binascii
import os
import stat
from _operator import _compare_digest  # hmac.compare_digest, without hmac, which maps OpenSSL
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from supervisor.errors import MissingError, UsageError
from supervisor.httpwire import Answer, error

TOKEN_MIN: Final = 16
_FILE_BYTES_MAX: Final = 65_536
OFF: Final = "changes over HTTP are off here"
OFF_HINT: Final = "set http_token_file or http_tls_client_ca in pgr.toml, or use `pgr`"


@dataclass(frozen=True, slots=True)
class Access:
    """``tokens``: any of them will do; ``certificate``: a client certificate is asked for."""

    tokens: tuple[bytes, ...] = ()
    certificate: bool = False

    @property
    def allowed(self) -> bool:
        return bool(self.tokens) or self.certificate


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection."""

    address: str
    subject: str = ""
    """Common name of its verified certificate."""
    verified: bool = False


def admit(access: Access, headers: Mapping[str, str], peer: Peer) -> str | Answer:
    """Who asks, for the history; or why not."""
    if not access.allowed:
        return error(403, OFF, OFF_HINT)
    if "origin" in headers:
        # A browser adds credentials and certificates of its own accord, whatever page asks it to send something here.
        return error(403, "requests of web pages are not taken", "use a program: curl, `pgr`")
    if access.certificate and not peer.verified:
        return error(403, "a client certificate is required", "send one that http_tls_client_ca has signed")
    if not access.tokens:
        return f"{peer.subject or 'certificate'}@{peer.address} over HTTP"
    given, user = _credentials(headers.get("authorization", ""))
    # All of them are compared, whatever comes out: how long it takes tells nothing of any.
    if not any([_compare_digest(given, token) for token in access.tokens]):  # noqa: C419  # a generator would stop
        refusal = error(401, "not authenticated" if given else "no token", "Authorization: Bearer TOKEN")
        return refusal._replace(headers=(("WWW-Authenticate", 'Basic realm="pgr", Bearer realm="pgr"'),))
    return f"{user or peer.subject or 'token'}@{peer.address} over HTTP"


def _credentials(header: str) -> tuple[bytes, str]:
    """``Bearer TOKEN``, or ``Basic``, whose password is the token and whose user is who asks."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1"), ""
    if scheme.lower() != "basic":
        return b"", ""
    try:
        user, _, password = b64decode(value.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return b"", ""
    name = "".join(ch for ch in user.decode("utf-8", "replace") if ch.isprintable())
    return password, name[:40]


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """One token a line; empty lines and those that begin with # do not count. Raises UsageError, MissingError.

    A file of root's may be readable by a group (as Kubernetes mounts secrets); nobody else's may.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_FILE_BYTES_MAX)
    except OSError as failure:
        raise MissingError(
            f"--http-token-file {path}: {failure.strerror}", "make it, readable by the user of this node alone"
        ) from None
    mounted = status.st_uid == 0 and os.geteuid() != 0
    if stat.S_IMODE(status.st_mode) & (0o037 if mounted else 0o077):
        mode = stat.S_IMODE(status.st_mode)
        raise UsageError(f"--http-token-file {path} is open to others (mode {mode:04o})", f"chmod 600 {path}")
    lines = (line.strip() for line in content.splitlines())
    tokens = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not tokens or any(len(token) < TOKEN_MIN or b" " in token for token in tokens):
        raise UsageError(
            f"--http-token-file {path} holds no token of {TOKEN_MIN} or more characters without blanks on each line",
            f"for example: openssl rand -hex 32 > {path}",
        )
    return tokens
