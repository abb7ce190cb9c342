"""Events on stderr: a name and fields, as text for terminals or one JSON object per line.

Writing never blocks and never raises: a reader that is gone (EPIPE) or stuck (a full pipe, a terminal under ^S) costs
lines, which are counted and reported, but never a heartbeat. Secrets never reach the file descriptor (`scrub`).
"""

from __future__ import annotations

import enum
import json
import math
import os
import re
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from fencing.clock import now_ns

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

Listener = Callable[[Level, str, Mapping[str, object]], None]
"""Must not raise."""

_PIECE_BYTES = 4096
"""PIPE_BUF: a pipe that polls as writable takes this much without blocking."""
_MAX_LINE_BYTES = 64 * 1024
_MAX_KEYS = 1024

_ASSIGNED = re.compile(
    r"""(?i)\b((?:[a-z0-9_]*_)?(?:password|passwd|pgpassword|passphrase|secret|token)["']?\s*[=:]\s*)"""
    r"""('(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*"|[^\s,;&'"}\])]+)"""
)
_SQL = re.compile(r"""(?i)\b(password\s+)('(?:[^']|'')*'|"[^"]*")""")
_URI = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s@/]+(@)")
_SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:password|passwd|pgpassword|passphrase|secret|token)$")
_PLAIN = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f]+")


def scrub(text: str) -> str:
    """`text` with the values of password=..., PASSWORD '...' and scheme://user:...@ replaced by ***."""
    text = _ASSIGNED.sub(r"\1***", text)
    text = _SQL.sub(r"\1***", text)
    return _URI.sub(r"\1***\2", text)


def _clean(name: str, value: object) -> object:
    """`value` as something JSON can carry, without secrets."""
    if value is not None and _SECRET_NAME.search(name):
        return "***"
    match value:
        case enum.Enum():
            return _clean(name, value.value)
        case None | bool() | int():
            return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): _clean(str(key), inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
            return [_clean("", inner) for inner in items]
        case bytes():
            return scrub(value.decode("utf-8", "backslashreplace"))
        case BaseException():
            return scrub(str(value) or type(value).__name__)
        case _:
            return scrub(str(value))


def cleaned(fields: Mapping[str, object]) -> dict[str, object]:
    """`fields` as JSON can carry them, without secrets."""
    return {name: _clean(name, value) for name, value in fields.items()}


def _word(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case str() if _PLAIN.fullmatch(value):
            return value
        case int() | float():
            return str(value)
        case _:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def render(
    fmt: Format, event: str, fields: Mapping[str, object], *, ts_ns: int, level: Level, node: str, process: str
) -> str:
    """One line without its newline; `ts_ns` is CLOCK_REALTIME. Text shows local time, JSON shows UTC."""
    seconds, ms = ts_ns // 1_000_000_000, ts_ns // 1_000_000 % 1000
    clean = cleaned(fields)
    if fmt == "json":
        line: dict[str, object] = {
            "ts": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03d}Z",
            "level": level,
            "node": node,
            "process": process,
            "event": event,
            "fields": clean,
        }
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    who = node if process in ("", "parent") else f"{node}/{process}"
    mark = "" if level == "info" else f"{level.upper()} "
    words = " ".join(f"{name}={_word(value)}" for name, value in clean.items())
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{ms:03d} {who}  {mark}{event}" + (
        f"  {words}" if words else ""
    )


@dataclass(slots=True)
class _Sink:
    """The file descriptor and what could not be written to it."""

    fd: int
    dropped: int = 0
    torn: bool = False
    """A line was cut short: the next one starts on a fresh line."""
    last_ns: dict[str, int] = field(default_factory=dict)
    suppressed: dict[str, int] = field(default_factory=dict)
    listener: Listener | None = None

    def write(self, line: str) -> bool:
        data = line.encode("utf-8", "backslashreplace")[:_MAX_LINE_BYTES] + b"\n"
        if self.torn:
            data = b"\n" + data
        view, written = memoryview(data), 0
        try:
            # poll() first: stderr is shared with other programs, so it is not ours to make non-blocking.
            poller = select.poll()
            poller.register(self.fd, select.POLLOUT)
            while written < len(view):
                if not poller.poll(0):
                    break
                written += os.write(self.fd, view[written : written + _PIECE_BYTES])
        except OSError:
            pass  # EPIPE, EAGAIN, EBADF, EIO: counted below, and told once someone can read again
        if written == len(view):
            self.torn = False
            return True
        self.torn = self.torn or written > 0
        self.dropped += 1
        return False


def as_format(text: str) -> Format:
    """`text` as a format; anything unknown is json, which every program can read."""
    return "text" if text == "text" else "json"


class Log:
    """`log.info("role.changed", role="primary", term=3)`; `debug` writes only if PGR_DEBUG is set."""

    __slots__ = ("_debug", "_extra", "_mute", "_sink", "fmt", "node", "process")

    def __init__(self, fmt: Format, node: str, process: str, *, fd: int = 2, debug: bool | None = None) -> None:
        self.fmt: Format = fmt
        self.node = node
        self.process = process
        self._sink = _Sink(fd)
        self._debug = bool(os.environ.get("PGR_DEBUG")) if debug is None else debug
        self._mute = False
        self._extra: dict[str, object] = {}

    def listen(self, listener: Listener) -> None:
        """Have every event that is written told to somebody in this process too, whatever becomes of the line."""
        self._sink.listener = listener

    def _copy(self, process: str, *, mute: bool, extra: dict[str, object]) -> Log:
        other = Log(self.fmt, self.node, process, debug=self._debug)
        other._sink, other._mute, other._extra = self._sink, mute, extra
        return other

    def named(self, process: str) -> Log:
        """The same log under the name of another process (a child, after the fork)."""
        return self._copy(process, mute=False, extra={})

    def debug(self, event: str, /, **fields: object) -> None:
        if self._debug:
            self._emit("debug", event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self._emit("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._emit("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        self._emit("error", event, fields)

    def once_per(self, key: str, seconds: float) -> Log:
        """For retry loops: a log that writes at most one event per `seconds` for `key` and is silent in between.

        What it writes after a silence carries `suppressed=n`. Use at once: `log.once_per(k, 10).warning(...)`.
        """
        now, sink = now_ns(), self._sink
        last = sink.last_ns.get(key)
        if last is not None and now - last < seconds * 1_000_000_000:
            sink.suppressed[key] = sink.suppressed.get(key, 0) + 1
            return self._copy(self.process, mute=True, extra={})
        if last is None and len(sink.last_ns) >= _MAX_KEYS:
            oldest = min(sink.last_ns, key=sink.last_ns.__getitem__)
            del sink.last_ns[oldest]
            sink.suppressed.pop(oldest, None)
        sink.last_ns[key] = now
        count = sink.suppressed.pop(key, 0)
        return self._copy(self.process, mute=False, extra={"suppressed": count} if count else {})

    def _emit(self, level: Level, event: str, fields: dict[str, object]) -> None:
        if self._mute:
            return
        sink, ts_ns = self._sink, time.time_ns()
        if sink.listener is not None:
            sink.listener(level, event, fields)
        if sink.dropped:
            lost, sink.dropped = sink.dropped, 0
            if not sink.write(self._render(ts_ns, "warning", "log.dropped", {"lines": lost})):
                sink.dropped += lost
                return
        sink.write(self._render(ts_ns, level, event, fields | self._extra))

    def _render(self, ts_ns: int, level: Level, event: str, fields: Mapping[str, object]) -> str:
        return render(self.fmt, event, fields, ts_ns=ts_ns, level=level, node=self.node, process=self.process)


def utc_now() -> str:
    """The wall clock, ISO 8601 with milliseconds: for people; nothing is decided by it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
