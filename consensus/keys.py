"""The secret all members share: one CURVE key pair for the whole cluster, kept as one line in one file.

The line is ``pgr1:`` and the Z85 text (40 characters) of 32 random bytes, the secret half; the public half follows.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from consensus.digest import blake2b

PREFIX = "pgr1:"
LOOPBACK_PREFIX = "pgr1-loopback:"
"""Of a derived key in a file, so that nobody takes it for a secret."""
_FILE_BYTES_MAX = 4096


class KeyFileError(Exception):
    """The cluster key cannot be used; the text says what to do. ``exit_code`` is that of interfaces.md."""

    def __init__(self, text: str, exit_code: int = 64) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """Both halves in Z85, as zmq takes them."""

    secret: bytes = field(repr=False)
    public: bytes


def new_key() -> str:
    """The content of a new key file, newline included."""
    return f"{PREFIX}{_z85(os.urandom(32)).decode('ascii')}\n"


def parse_key(text: str) -> ClusterKey:
    """The key in the content of a key file; KeyFileError (which never quotes it) if it is none."""
    prefix, colon, secret = text.strip().partition(":")
    if prefix + colon not in (PREFIX, LOOPBACK_PREFIX) or len(secret) != 40:
        raise KeyFileError(f"no cluster key: not one line of {PREFIX} and 40 characters; `pgr key new` makes one")
    try:
        return _from_bytes(z85.decode(secret.encode("ascii")))
    except (KeyError, UnicodeEncodeError, struct.error, zmq.ZMQError):
        raise KeyFileError("no cluster key: it has characters that are not Z85; `pgr key new` makes one") from None


def read_key(path: Path) -> ClusterKey:
    """The key in the file; KeyFileError if it is missing, readable by others, or malformed.

    Like Postgres with its ssl_key_file, a file of root's may be readable by a group (that is how Kubernetes mounts a
    secret for a process that is not root); nobody else's may.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _check_mode(path, status)
            content = file.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        raise KeyFileError(
            f"cluster key {path} does not exist: copy it from another member, or make one with `pgr key new`", 69
        ) from None
    except OSError as error:
        raise KeyFileError(
            f"cluster key {path} cannot be read by user {os.geteuid()}: {error.strerror}; let that user own it", 69
        ) from error
    try:
        return parse_key(content.decode("ascii"))
    except UnicodeDecodeError:
        raise KeyFileError(f"cluster key {path} is not text; `pgr key new` makes one") from None
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}", error.exit_code) from None


def founding_seed(names: Iterable[str]) -> str:
    """What the founding members with these names derive their key from."""
    return json.dumps(sorted(names), separators=(",", ":"))


def derived_key_text(seed: str) -> str:
    """The content of a key file, for a node that joins later."""
    return f"{LOOPBACK_PREFIX}{derived_key(seed).secret.decode('ascii')}\n"


def derived_key(seed: str) -> ClusterKey:
    """A key for members that all listen on loopback and were given no key file. NOT a secret: anyone can derive it.

    What keeps strangers out there is the machine; what keeps clusters apart is the random cluster id and the
    incarnations in every frame.
    """
    return _from_bytes(blake2b(seed.encode("utf-8"), digest_size=32, person=b"pgr loopback").digest())


def _check_mode(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"cluster key {path} is not a file")
    mounted = status.st_uid == 0 and os.geteuid() != 0
    if stat.S_IMODE(status.st_mode) & (0o037 if mounted else 0o077):
        mode = stat.S_IMODE(status.st_mode)
        raise KeyFileError(f"cluster key {path} is open to others (mode {mode:04o}): run  chmod 600 {path}")


def _from_bytes(secret: bytes) -> ClusterKey:
    text = _z85(secret)
    return ClusterKey(text, zmq.curve_public(text))


def _z85(data: bytes) -> bytes:
    return bytes(z85.encode(data))
