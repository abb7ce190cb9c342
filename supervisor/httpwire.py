"""HTTP/1 on the wire: what a request is, how an answer looks. Strict, small, bounded. Pure.

One request a connection: HTTP lets a server close after any answer that says so (RFC 9112, 9.6), and whoever sent more
behind it has to send that again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

MAX_REQUEST_BYTES = 8192
"""Request line and headers."""
MAX_BODY_BYTES = 65_536

READS = ("GET", "HEAD", "OPTIONS")
WRITES = ("POST", "PUT", "PATCH", "DELETE")

REASONS = {
    100: "Continue", 200: "OK", 202: "Accepted", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
    404: "Not Found", 405: "Method Not Allowed", 409: "Conflict", 411: "Length Required", 412: "Precondition Failed",
    413: "Content Too Large", 422: "Unprocessable Content", 431: "Request Header Fields Too Large",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
}  # fmt: skip

GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


class Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def as_json(status: int, value: Any) -> Answer:
    return Answer(status, JSON, json.dumps(value).encode() + b"\n")


def error(status: int, why: str, hint: str = "") -> Answer:
    return as_json(status, {"error": why} | ({"hint": hint} if hint else {}))


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of requests for a change alone, names in lower case; of a repeated one the first."""
    length: int = 0
    """Of the body, as announced."""
    body: bytes = b""
    """What has come of it."""

    @property
    def complete(self) -> bool:
        return len(self.body) >= self.length


def parse_request(data: bytes) -> Request | int | None:
    """The request at the head of ``data``; None: not complete yet; a number: refuse with that status.

    Of a request for a change the body may be missing still (`Request.complete`). Everything behind is ignored, and so
    is a body where none has a meaning.
    """
    ends = [(at, at + len(end)) for end in (b"\r\n\r\n", b"\n\n") if (at := data.find(end)) >= 0]
    if not ends:
        line, newline, _ = data.partition(b"\n")
        # Who does not speak HTTP is told at once instead of being given five seconds.
        if newline and _parse_line(line) is None:
            return 400
        return 431 if len(data) >= MAX_REQUEST_BYTES else None
    end, begin = min(ends)
    if end > MAX_REQUEST_BYTES:
        return 431
    head = data[:end]
    line, _, fields = head.partition(b"\n")
    request = _parse_line(line)
    if request is None or b"\x00" in head:
        return 400
    if request.method in READS:
        return request
    if request.method not in WRITES:
        return 501
    headers = _parse_headers(fields)
    if headers is None:
        return 400
    if "transfer-encoding" in headers:
        return 411  # a length is announced, or the request is not read
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return 400
    if len(length) > 9 or int(length) > MAX_BODY_BYTES:
        return 413
    return replace(request, headers=headers, length=int(length), body=data[begin : begin + int(length)])


def _parse_line(line: bytes) -> Request | None:
    """``METHOD TARGET HTTP/1.x``, printable ASCII, one space between; None if it is anything else."""
    parts = line.removesuffix(b"\r").split(b" ")
    printable = all(33 <= c < 127 for part in parts for c in part)
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.0", b"HTTP/1.1") or not printable:
        return None
    method, target = parts[0].decode(), parts[1].decode()
    if not method.isalpha() or not method.isupper() or not target.startswith(("/", "*")):
        return None
    path, _, query = target.partition("?")
    return Request(method, path if len(path) == 1 else path.rstrip("/") or "/", query)


_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _parse_headers(fields: bytes) -> dict[str, str] | None:
    """None if a line is none, is folded, or a length is given twice: no two programs may read it differently."""
    found: dict[str, str] = {}
    for raw in fields.split(b"\n"):
        line = raw.removesuffix(b"\r")
        if not line:
            continue
        name, colon, value = line.partition(b":")
        if not colon or not name or not _TOKEN.issuperset(name):
            return None
        key = name.decode("ascii").lower()
        if key in found and key in ("content-length", "transfer-encoding", "authorization"):
            return None
        found.setdefault(key, value.strip(b" \t").decode("latin-1"))
    return found


def wire(answer: Answer, method: str = "GET") -> bytes:
    """The whole answer. HEAD and OPTIONS: the status line and headers alone."""
    more = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
    if method == "OPTIONS":
        more += f"Allow: {', '.join(READS)}\r\n"
    length = 0 if method == "OPTIONS" else len(answer.body)
    head = (
        f"HTTP/1.1 {answer.status} {REASONS[answer.status]}\r\nServer: pgr\r\n{more}"
        f"Content-Type: {answer.content_type}\r\nContent-Length: {length}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1", "replace") + (b"" if method in ("HEAD", "OPTIONS") else answer.body)
