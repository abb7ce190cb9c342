"""The files between `pg_replica` and this node, in a thread of their own: what SQL reads is written here, what it asks
for is taken in and passed on by the admin protocol, and answered.

    RUN/sql/status.json history.json config.json    written when something changed, the status each second
    RUN/sql/requests/UUID.json                      written by a backend, watched, removed as soon as it is taken
    RUN/sql/answers/UUID.json                       written until the request is done, removed a minute later

A thread, as no disk may hold up the loop of the parent: it hands over a snapshot and goes on. Whatever goes wrong here
is logged and shown as a warning, and tried again; the node lives without SQL.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import zmq

from fencing import wire
from fencing.clock import now_ns, uptime_ms
from fencing.lease import MS
from fencing.logs import Log
from supervisor import files
from supervisor.filewatch import watch
from supervisor.sqlcatalog import ANSWERS, REQUESTS, STATUS
from supervisor.sqldocuments import Document
from supervisor.sqlrequests import NAME, REQUEST_BYTES_MAX, Answer, Malformed, Request, dump, moved_away, read

WRITE_EVERY_MS = 900
"""Once a second, as snapshots are made."""
OPEN_MAX = 8
"""Requests under way at once; more are turned away."""
SCAN_MAX = 256
"""Files looked at in one turn."""
SETTLE_MS = 2_000
"""A file that is no request may be one that is being written, for as long."""
KEEP_MS = 60_000
KEEP_MAX = 256
"""An answer that nobody has fetched by then is not waited for; of many, the newest are kept."""
SWEEP_MS = 30_000
LATE_MS = 10_000
"""Beyond the timeout of a request, for the node's own answer to come first."""
RETRY_MS = 5_000
CLOSE_S = 2.0
COMPLETE = ("FileClosedEvent", "FileMovedEvent")
"""Events of a request that is whole."""


class Told(NamedTuple):
    """What the loop last handed over."""

    documents: Sequence[Document]
    """Their content is asked for in the thread, so it rests on values that do not change."""
    key: object
    """Written at once if this is another."""
    taken_ns: int


@dataclass(slots=True)
class Open:
    """A request under way, or its answer that waits to be fetched."""

    answer: Answer = field(default_factory=Answer)
    until_ns: int = 0
    dirty: bool = False
    """The file does not say it yet."""
    done_ns: int = 0


class Desk:
    """``publish`` and ``close`` are the loop's; everything else runs in the thread."""

    def __init__(self, directory: Path, node: str, admin_socket: Path, log: Log) -> None:
        self.directory, self.node, self.admin_socket, self.log = directory, node, admin_socket, log
        self.problem = ""
        """Why there is nothing behind `pg_replica` here at the moment, for people."""
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self.told: Told | None = None
        """The newest, for the thread to read."""
        self._again_ns = 0
        self._stopping = False

    # -- the loop's side -----------------------------------------------------------------------------------------

    def publish(self, documents: Sequence[Document], key: object, taken_ns: int) -> None:
        """What SQL shows from now on: at once if ``key`` is another, else within a second. Never blocks."""
        before, self.told = self.told, Told(documents, key, taken_ns)
        if self._thread is not None and self._thread.is_alive():
            # After a pause of the whole process the thread may just have written what was old already.
            paused = before is not None and taken_ns - before.taken_ns > 2 * WRITE_EVERY_MS * MS
            if before is None or before.key != key or paused:
                self.ring()
        elif taken_ns >= self._again_ns:
            self._again_ns = taken_ns + RETRY_MS * MS
            self._thread = threading.Thread(target=self._run, name="sql", daemon=True)
            self._thread.start()

    def ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """The thread has ended, unless a disk holds it."""
        self._stopping = True
        if self._thread is not None:
            self.ring()
            self._thread.join(CLOSE_S)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            work = Work(self)
            try:
                self.problem = ""
                while not self._stopping:
                    work.turn()
            finally:
                work.close()
        except Exception as error:  # whatever it is: the node goes on, and says that it goes on without
            self.problem = f"{type(error).__name__}: {error}"
            self.log.error("sql.failed", error=self.problem, again_in_ms=RETRY_MS)


class Work:
    """What the thread has open, and one turn of it. Raises OSError where it can't go on: its directory is gone."""

    def __init__(self, desk: Desk) -> None:
        self.log, self.node, self.bell = desk.log, desk.node, desk._bell
        self.directory = desk.directory
        self.requests, self.answers = self.directory / REQUESTS, self.directory / ANSWERS
        for place in (self.directory, self.requests, self.answers):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.desk = desk
        self.open: dict[str, Open] = {}
        self.unclear: dict[str, int] = {}
        """Files that are no requests (yet), and since when."""
        self.sources: dict[str, object] = {}
        """What each file rests on that was written."""
        self.written_key: object = None
        self.written_ns = self.written_taken_ns = self.sweep_ns = 0
        self.scan = True
        self._take_over()
        # The last that may fail: nothing has to be undone.
        self.observer = watch((self.requests,), desk.ring, desk.log, event="sql.no_inotify", only=COMPLETE)
        self.zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.socket = self.zmq.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"ipc://{desk.admin_socket}")
        self.poller = zmq.Poller()
        self.poller.register(self.socket, zmq.POLLIN)
        self.poller.register(self.bell, zmq.POLLIN)

    def _take_over(self) -> None:
        """What an earlier thread, or process, has left: nobody knows what became of a request that it had begun."""
        for path in self.answers.iterdir():
            if not NAME.fullmatch(path.name):
                self._remove(path)
                continue
            entry = self._begin(path.name)
            if b'"state":"done"' in (content(path) or b""):
                entry.answer.end, entry.done_ns = {}, now_ns()
            else:
                hint = "it may still be carried out: see pg_replica.history()"
                entry.answer.failed(75, "this node was interrupted meanwhile", hint)
                entry.dirty = True

    def close(self) -> None:
        self.observer.stop()
        self.observer.join(CLOSE_S)
        self.socket.close(0)
        self.zmq.term()
        (self.directory / STATUS).unlink(missing_ok=True)

    def turn(self) -> None:
        ready = dict(self.poller.poll(max(0, -(-(self._due_ns() - now_ns()) // MS))))
        if self.bell in ready:
            os.eventfd_read(self.bell)
            self.scan = True
        self._receive()
        if (told := self.desk.told) is not None:  # not before the wait: it may have been for this
            self._write(told)
        if self.scan or self.unclear or now_ns() >= self.sweep_ns:
            self._look_through()
        self._expire()

    def _due_ns(self) -> int:
        """Once a second, as long as there is something to tell."""
        return now_ns() if self.scan else min(self.written_ns + WRITE_EVERY_MS * MS, self.sweep_ns)

    # -- what SQL reads ------------------------------------------------------------------------------------------

    def _write(self, told: Told) -> None:
        now = now_ns()
        newer = told.taken_ns - self.written_taken_ns >= WRITE_EVERY_MS * MS
        if told.key == self.written_key and now - self.written_ns < WRITE_EVERY_MS * MS and not newer:
            return
        self.written_ns = now
        if told.taken_ns == self.written_taken_ns:
            return  # nothing new: what is there grows old, and says so
        uptime = uptime_ms() - (now - told.taken_ns) // MS
        try:
            for document in told.documents:
                if document.source is None or self.sources.get(document.name) is not document.source:
                    content = document.content() | ({"uptime_ms": uptime} if document.name == STATUS else {})
                    files.write_atomically(self.directory / document.name, dump(content), durable=False)
                    self.sources[document.name] = document.source
        except OSError as error:  # what is there grows old, and says so
            self._disk(error)
            return
        self.written_key, self.written_taken_ns, self.desk.problem = told.key, told.taken_ns, ""

    def _disk(self, error: OSError) -> None:
        self.desk.problem = f"its files can't be written: {error}"
        self.log.once_per("sql.disk", 60).error("sql.disk", error=str(error), hint="it is tried again")

    # -- what it asks for ----------------------------------------------------------------------------------------

    def _look_through(self) -> None:
        self.scan, self.sweep_ns = False, now_ns() + SWEEP_MS * MS
        with os.scandir(self.requests) as entries:
            plain = (entry.name for entry in entries if not self._is_directory(entry))
            names = list(islice(plain, SCAN_MAX))
        self.unclear = {name: since for name, since in self.unclear.items() if name in names}
        for name in names:
            self._look_at(name)
        self.scan = len(names) == SCAN_MAX and not self.unclear

    def _is_directory(self, entry: os.DirEntry[str]) -> bool:
        """It stays, with all that is in it."""
        found = entry.is_dir(follow_symlinks=False)
        if found:
            self.log.once_per("sql.directory", 3600).warning("sql.directory", path=entry.path, hint="remove it by hand")
        return found

    def _look_at(self, name: str) -> None:
        path = self.requests / name
        data = content(path) if NAME.fullmatch(name) else None
        if data is None:
            self.log.once_per("sql.junk", 60).warning("sql.junk", file=str(path), hint="it is no request: removed")
            self._remove(path)
            return
        try:
            request = read(data)
        except Malformed as error:
            if now_ns() - self.unclear.setdefault(name, now_ns()) > SETTLE_MS * MS:
                self.log.once_per("sql.malformed", 10).warning("sql.malformed", file=str(path), reason=error.reason)
                self._begin(name).answer.failed(64, f"the request is refused: {error.reason}", error.hint)
                self._save(name)
                self._remove(path)
            return
        self._take(name, path, request)

    def _take(self, name: str, path: Path, request: Request) -> None:
        """First it is said that it is taken, then it is begun: who has read nothing in time knows that nothing was."""
        under_way = sum(not entry.done_ns for entry in self.open.values())
        entry = self._begin(name)
        if under_way >= OPEN_MAX:
            entry.answer.failed(75, f"{under_way} requests are under way at this node", "ask again in a moment")
        entry.until_ns = now_ns() + (request.timeout_ms + LATE_MS) * MS
        self._save(name)
        self._remove(path)
        if entry.dirty:
            del self.open[name]  # not begun, as it could not be said
            return
        if entry.answer.end is None and uptime_ms() > request.until_ms:
            entry.answer.failed(75, "pgr-supervise came to it too late, nothing was done", "ask again")
            self._save(name)
        if entry.answer.end is not None:
            return
        self.log.info("sql.request", request=request.name, **{k: v for k, v in request.body.items() if v is not None})
        try:
            self.socket.send(wire.encode(request.name, dict(request.body), name), zmq.NOBLOCK)
        except zmq.Again:
            entry.answer.failed(75, "this node takes nothing more at the moment, nothing was done", "ask again")
            self._save(name)

    def _begin(self, name: str) -> Open:
        self.unclear.pop(name, None)
        self.open[name] = entry = Open()
        return entry

    def _receive(self) -> None:
        while self.socket.poll(0):
            frame = wire.decode(self.socket.recv_multipart()[-1])
            entry = self.open.get(frame.id)
            if entry is None or entry.done_ns:
                continue
            match frame:
                case wire.Frame("admin.progress", _, {"event": str(event), "text": str(text), "fields": dict(fields)}):
                    entry.answer.add(text)
                    if moved_away(self.node, event, fields):
                        entry.answer.done({**fields, "accepted": True}, [])
                case wire.Frame("admin.answer", _, {"ok": True, "result": dict(result), **rest}):
                    entry.answer.done(result, [str(text) for text in rest.get("warnings", ())])
                case wire.Frame("admin.answer", _, {"code": int(code), "error": str(error), "hint": str(hint), **rest}):
                    entry.answer.failed(code, error, hint, tuple(str(text) for text in rest.get("warnings", ())))
                case _:
                    self.log.warning("sql.unknown_answer", expected=False, name=frame.name)
            entry.dirty = True

    def _expire(self) -> None:
        now = now_ns()
        done = [name for name, entry in self.open.items() if entry.done_ns]
        for name in done[:-KEEP_MAX]:
            self.open[name].done_ns = 1  # long ago
        for name, entry in list(self.open.items()):
            if entry.done_ns and now - entry.done_ns > KEEP_MS * MS:
                self._remove(self.answers / name)
                del self.open[name]
            elif entry.answer.end is None and now > entry.until_ns:
                entry.answer.failed(75, "no word of it from this node in time", "see pg_replica.history()")
                entry.dirty = True
            if entry.dirty:
                self._save(name)

    def _save(self, name: str) -> None:
        entry = self.open[name]
        try:
            files.write_atomically(self.answers / name, entry.answer.document(), durable=False)
            entry.dirty = False
        except OSError as error:
            entry.dirty = True
            self._disk(error)
        if entry.answer.end is not None:
            entry.done_ns = entry.done_ns or now_ns()

    def _remove(self, path: Path) -> None:
        """Whatever it is, but no directory."""
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


def content(path: Path) -> bytes | None:
    """Of a plain file of this user, at most one byte more than a request may have; None: it is something else, a link
    for instance, which is not followed, or a pipe, which is not waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        plain = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
        return os.read(fd, REQUEST_BYTES_MAX + 1) if plain else None
    finally:
        os.close(fd)
