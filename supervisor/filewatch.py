"""A node's own files (pgr.toml, tokens, certificates) as they change: what a SIGHUP would take is taken by itself.

Directories are watched, not files: an editor, a package and Kubernetes put another file in the place of the old one.
What counts is the content: events only say when to look, a moment after the last one, as a certificate and its key are
two files. The observer has threads of its own, which do nothing but ring.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from consensus.digest import blake2b
from fencing.lease import MS
from fencing.logs import Log
from supervisor.config import Config
from supervisor.reread import reread

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent
    from watchdog.observers.api import BaseObserver

    from supervisor.context import Context
    from supervisor.httpgate import Http

CALM_MS = 300
"""After the last event it is looked at what the files hold."""
LATEST_MS = 3_000
"""And this long after the first, however many follow: something else may be busy in that directory."""
CLOSE_S = 2.0
BYTES_MAX = 1 << 20
"""Of a file, for the comparison."""


def watched(config: Config) -> tuple[Path, ...]:
    """The files of a configuration whose content a running node can take; also one that may come to be. Pure."""
    found = (
        config.config_file or config.data / "pgr.toml", config.http_token_file, config.http_tls_cert,
        config.http_tls_key, config.http_tls_client_ca,
    )  # fmt: skip
    return tuple(dict.fromkeys(path for path in found if path is not None))


def digest(paths: Iterable[Path]) -> str:
    """Of their content; a file that can't be read counts as what keeps it from being read."""
    found = blake2b(digest_size=16)
    for path in paths:
        try:
            with path.open("rb") as file:
                content = file.read(BYTES_MAX)
        except OSError as error:
            content = f"\0{error.errno}".encode()
        found.update(len(content).to_bytes(8, "big") + content)
    return found.hexdigest()


class Files:
    """Of one node. ``fileno`` is readable when something may have changed; `changed` says whether it has."""

    def __init__(self, config: Config, log: Log) -> None:
        self.log = log
        self.paths = watched(config)
        self.seen = digest(self.paths)
        self._look_at_ns = self._latest_ns = 0
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._guard = threading.Lock()
        self._observer: BaseObserver | None = None
        self._watch()

    def fileno(self) -> int:
        return self._bell

    def _ring(self) -> None:
        with self._guard:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def _watch(self) -> None:
        places = sorted({path.parent for path in self.paths if path.parent.is_dir()})
        self._observer = watch(places, self._ring, self.log, event="config.no_inotify")

    def deadline_ns(self) -> int | None:
        """When it is looked at what the files hold; None: nothing has happened."""
        return self._look_at_ns or None

    def changed(self, now: int) -> bool:
        """Does one of them hold something else than when it was last looked at? Each turn of the loop."""
        try:
            os.eventfd_read(self._bell)
            if not self._look_at_ns:
                self._latest_ns = now + LATEST_MS * MS
            self._look_at_ns = min(now + CALM_MS * MS, self._latest_ns)
        except BlockingIOError:
            pass
        if not self._look_at_ns or now < self._look_at_ns:
            return False
        self._look_at_ns = 0
        found = digest(self.paths)
        before, self.seen = self.seen, found
        return found != before

    def follow(self, config: Config) -> None:
        """The configuration may name other files by now."""
        paths = watched(config)
        if paths != self.paths:
            self.paths, self.seen = paths, ""  # what changed before they were watched is not missed
            self._end()
            self._watch()
            self._ring()

    def _end(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(CLOSE_S)
            self._observer = None

    def close(self) -> None:
        self._end()
        with self._guard:
            bell, self._bell = self._bell, -1
        os.close(bell)


def take(c: Context, https: Http | None, files: Files, why: str) -> None:
    """What the files hold now, as far as a running node can take it. A bad one changes nothing, and says so in the
    status until it is mended."""
    c.config, problem = reread(c.config, c.log)
    if https is not None and not problem:
        problem = https.reload(c.config)
    c.facts = replace(c.facts, config_problem=problem)
    files.follow(c.config)
    c.log.info("node.reloaded", why=why)


def watch(
    places: Collection[Path], ring: Callable[[], None], log: Log, *, event: str, only: Collection[str] = ()
) -> BaseObserver:
    """Rings when something in one of these directories has changed; ``only``: events of these kinds. Where the kernel
    gives no more watches, it is looked at once a second, and ``event`` says so."""
    from watchdog import events, observers
    from watchdog.observers.polling import PollingObserver

    class Bell(events.FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            ring()

    kinds = [getattr(events, kind) for kind in only or EVENTS]
    observer: BaseObserver = observers.Observer()
    for place in places:
        observer.schedule(Bell(), str(place), event_filter=kinds)
    try:
        observer.start()
    except OSError as error:
        hint = "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches (sysctl)"
        log.warning(event, error=str(error), hint=hint)
        observer = PollingObserver(timeout=1.0)
        for place in places:
            observer.schedule(Bell(), str(place))
        observer.start()
    return observer


EVENTS = (
    "FileClosedEvent", "FileMovedEvent", "FileCreatedEvent", "FileDeletedEvent", "DirMovedEvent", "DirCreatedEvent",
)  # fmt: skip
"""Not those of mere reading: that would ring at each look."""
