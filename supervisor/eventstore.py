"""Events of this node on disk: DIR/log/events.jsonl, a line each, and one older file; never more than 2 x MAX_BYTES.

They outlive the process, not a power cut: nothing is decided by them, so nothing is synced. What can't be written is
counted and said in the log of the node, once there is room again in the store too.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

from fencing.lease import MS
from fencing.logs import Log
from supervisor.events import Record

MAX_BYTES = 1 << 20
WAITING_MAX = 1_000
RECORD_BYTES_MAX = 4_000
"""A longer one loses its fields and the end of its text, so that a hundred fit into a frame and that into another."""
TEXT_MAX = 1_000
AGAIN_MS = 1_000
"""After a write that failed."""
_TEXTS = ("at", "node", "by", "scope", "event", "level", "text")


class EventStore:
    def __init__(self, path: Path, log: Log) -> None:
        self.path, self.older, self._log = path, path.with_name(f"{path.stem}.1{path.suffix}"), log
        self._waiting: list[Record] = []
        self._again_ns = 0
        self.lost = 0
        self.seq = max((int(r["seq"]) for r in self._read(0, "")), default=0)
        self.written = self.seq

    def add(self, record: Record) -> Record:
        """Give it its number; it is written by the next `flush`."""
        self.seq += 1
        numbered: Record = {"seq": 0} | record | {"seq": self.seq}
        if len(_line(numbered)) > RECORD_BYTES_MAX:
            numbered |= {"text": str(record["text"])[:TEXT_MAX], "fields": {}}
        self._waiting.append(numbered)
        if len(self._waiting) > WAITING_MAX:
            del self._waiting[0]
            self.lost += 1
        return numbered

    def flush(self, now_ns: int) -> list[Record]:
        """What was added since and is written now; nothing while the disk is full."""
        if not self._waiting or now_ns < self._again_ns:
            return []
        data = b"".join(map(_line, self._waiting))
        try:
            self._append(data)
        except OSError as error:
            self._again_ns = now_ns + AGAIN_MS * MS
            self._log.once_per("events.unwritten", 60).warning(
                "events.unwritten", path=str(self.path), error=str(error), waiting=len(self._waiting), lost=self.lost
            )
            return []
        if self.lost:
            self._log.warning("events.lost", count=self.lost)
            self.lost = 0
        written, self._waiting, self.written = self._waiting, [], self.seq
        return written

    def _append(self, data: bytes) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and size + len(data) > MAX_BYTES:
                os.close(fd)
                fd = -1
                self.path.replace(self.older)
                fd, size = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), 0
            if size and os.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data  # the line before was cut off
            written = os.write(fd, data)
            if written < len(data):
                os.ftruncate(fd, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            if fd >= 0:
                os.close(fd)

    def read(self, after: int = 0, since: str = "") -> Iterator[Record]:
        """Oldest first: with a higher number than ``after``, not older than ``since``. Lines that are none are left
        out."""
        if after < self.written:
            yield from self._read(after, since)
        yield from (r for r in self._waiting if r["seq"] > after and r["at"] >= since)

    def _read(self, after: int, since: str) -> Iterator[Record]:
        for path in (self.older, self.path):
            try:
                with path.open("rb") as file:
                    for line in file:
                        record = _record(line)
                        if record is not None and int(record["seq"]) > after and str(record["at"]) >= since:
                            yield record
            except OSError:
                continue  # not there, or not to be read: what can be told is told


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _record(line: bytes) -> Record | None:
    try:
        body = json.loads(line)
    except ValueError:  # cut off
        return None
    # Somebody may have edited the file: a number that is none must not keep the node from starting.
    if not isinstance(body, dict) or type(body.get("seq")) is not int:
        return None
    return body if all(isinstance(body.get(name), str) for name in _TEXTS) else None
