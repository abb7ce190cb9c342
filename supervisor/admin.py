"""The admin protocol and its client: how ``pgr`` talks to a node.

Over ``RUN/admin.sock`` (ipc; the parent binds a ROUTER) or, from elsewhere, over the consensus port with CURVE and the
magic ``PGRA`` before each frame. Frames are those of fencing/wire.py; every request has a random id that all its
answers repeat.

| request | body | result of the answer |
| --- | --- | --- |
| ``status`` | ``{}`` | status.to_json |
| ``status`` | ``{"watch": true}`` | none; a progress ``status.changed`` with status.to_json as ``fields`` at once and upon each change. Asked again under the same id (every 5 s): the same at once. Who has not asked for 15 s is forgotten |
| ``history`` | ``{}`` | ``{"history": [status.event_json, ...]}`` oldest first |
| ``events`` | ``{"since": str, "last": int or null}`` | ``{"node", "members": {name: address}, "key_file"}``, after progresses ``events`` with ``{"node", "events": [events.py, ...]}`` as ``fields`` |
| ``events`` | ``{"follow": true, ...}`` | none; after what is there each new one. Asked again (every 5 s) with ``{"follow": true, "after": seq}``: those after that number; forgotten like a watcher |
| ``uri`` | ``{"dbname": str, "user": str}`` | status.uris |
| ``explain`` | ``{}`` | explain.to_json: why the cluster is in this state, and what would come of an election |
| ``doctor`` | ``{}`` | doctorfacts.to_json of this node, measured now (within 9 s), with the names of all ``members`` and ``voters`` |
| ``clock`` | ``{}`` | ``{"realtime_ns", "boottime_ns"}`` of this node, at once |
| ``switchover`` | ``{"to": str or null, "by": str}`` | ``{"from", "to", "term", "timeline", "gap_ms"}`` |
| ``failover`` | ``{"to": str or null, "by": str, "accept_data_loss": bool}`` | the same |
| ``recover`` | ``{"confirm": the cluster's name, "survivors": [name], "by": str}`` | the same, once the new cluster is open |
| ``recover`` | with ``{"dry_run": true}`` | ``{"from", "to", "refusal", "outlook": consensus.recovery.plain}`` |
| either | with ``{"dry_run": true}`` | ``{"from", "to", "refusal": null or {"code", "error", "hint"}, "forecast"}`` |
| ``member.add`` | ``{"name": str, "role": str, "timeout_ms": int}`` | ``{"name", "role"}`` once it has that role and, a voter, its seat in the sync group |
| ``config.show`` | ``{}`` | ``{"index": int, "settings": [configview.rows, ...]}``; index: of the newest change |
| ``config.set`` | ``{"set": {name: value}, "unset": [name] or null (all else that is set, but hooks), "by": str, "after": int or null, "dry_run": bool}`` | ``{"changes": {name: [old, new]}, "notes": [str], "after": int, "index": int}`` once this node has it; ``after`` refuses if the newest change is another one |
| ``member.remove`` | ``{"name": str, "timeout_ms": int}`` | the same, role ``gone`` |
| ``member.replace`` | ``{"name": str, "by": str, "timeout_ms": int}`` | the same, role ``gone`` |
| ``fence`` | ``{"name": str, "force": bool, "by": str, "timeout_ms": int}`` | ``{"name"}`` once the log has it and its Postgres is down |
| ``pause``, ``resume`` | ``{"by": str, "wait": bool, "timeout_ms": int}`` | ``{"paused": bool, "changed": bool}`` once this node has it; with ``wait``, once every member that is up has it |
| ``restart`` | ``{"nodes": [name] or null (all), "pending": bool, "role": "primary", "replica" or null, "pg_version": str (only where it is older) or null, "force": bool, "timeout_s": int (for each node), "by": str, "timeout_ms": int}`` | ``{"restarted": [name]}`` in the order of their return; the steps come as progress |
| ``reload`` | ``{"nodes": [name] or null (all), "by": str, "timeout_ms": int}`` | ``{"nodes": {name: str}}``: what waits for a restart there or why it was not reloaded, else empty |
| ``switchover``, ``restart`` | with ``{"at": str}``: ISO 8601 with a zone, or ``+5m`` | ``{"scheduled": str, "at": str}`` once this node has it |
| ``schedule.cancel`` | ``{"what": "switchover" or "restart", "by": str}`` | ``{"cancelled": str}``; of a restart also one that is under way, after the node whose turn it is. Nothing there: refused with 64 |
| ``unfence`` | ``{"name": str, "by": str}`` | ``{"name"}`` once the log has it |
| ``reinit`` | ``{"name": str, "from": str (may be absent: the primary), "by": str, "timeout_ms": int}`` | ``{"name"}`` once its new copy is made, proven and streams |

Answers: any number of ``admin.progress {event, text, fields}``, then one ``admin.answer {ok, code, error, hint,
result}`` with ``code`` an exit code of interfaces.md; ``warnings``, if there are any, are shown with whatever was asked.
"""  # noqa: E501  (a table)

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import zmq

from fencing.clock import now_ns
from fencing.lease import MS
from fencing.wire import Frame, WireError, decode, encode
from supervisor.addresses import BadValue, parse_address
from supervisor.errors import BugError, DiskError, MissingError, PgrError, RefusedError, TryAgainError, UsageError

RENEW_MS = 5_000
"""A watcher asks again this often ..."""
FORGET_MS = 15_000
"""... and is forgotten by the node after this much; a node that is silent for as long is given up by the watcher."""
STATUS_IDLE_MS = 5_000
ACTION_IDLE_MS = 30_000

_ERRORS: dict[int, type[PgrError]] = {
    c.exit_code: c for c in (UsageError, MissingError, BugError, DiskError, TryAgainError, RefusedError)
}


class Progress(NamedTuple):
    """A step of something under way: ``event`` for programs, ``text`` for people."""

    event: str
    text: str
    fields: dict[str, Any]


def progress(id: str, event: str, text: str, fields: dict[str, Any] | None = None) -> bytes:
    """The frame a node sends for a step of request ``id``."""
    return encode("admin.progress", {"event": event, "text": text, "fields": fields or {}}, id)


def answer(
    id: str, result: dict[str, Any] | None = None, error: PgrError | None = None, warnings: tuple[str, ...] = ()
) -> bytes:
    """The frame that ends request ``id``: its result, or why not and what to do."""
    code = int(error.exit_code) if error else 0
    message, hint = (error.message, error.hint) if error else ("", "")
    body = {"ok": error is None, "code": code, "error": message, "hint": hint, "result": result or {}}
    return encode("admin.answer", body | ({"warnings": list(warnings)} if warnings else {}), id)


class SilenceError(Exception):
    """Nothing came in time; the text says as much as is known."""


class Channel(Protocol):
    """Carries frames to one node and back."""

    def ask(self, frame: bytes, idle_ms: int) -> Iterator[bytes]:
        """Send ``frame`` and yield whatever comes, without end; SilenceError after ``idle_ms`` without anything."""

    def close(self) -> None: ...


class NotRunningError(MissingError):
    """No node runs there."""


def find_socket(data: Path) -> Path:
    """The admin socket of the node that lives in ``data``: in ``DIR/run``, else where ``DIR/run.path`` points.

    NotRunningError if there is none, or nobody listens, MissingError if it is not ours to open; with what to do.
    """
    start = f"start the node: `pgr-supervise --data {data}`"
    path = data / "run" / "admin.sock"
    try:
        if not data.is_dir():
            hint = "give the directory that `pgr-supervise --data` was started with"
            raise NotRunningError(f"no such directory: `{data}`", hint)
        pointer = data / "run.path"
        if not path.exists() and pointer.is_file():
            path = Path(pointer.read_text().strip()) / "admin.sock"
        if not path.exists():
            raise NotRunningError(f"no node runs in `{data}`", start)
        # ZeroMQ would retry in silence what a plain connect tells at once.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(str(path))
    except PermissionError as error:
        hint = f"run this as the user that owns the node: `sudo -u {_owner(data)} pgr ...`"
        raise MissingError(f"not allowed to open `{error.filename or data}`", hint) from None
    except BlockingIOError:
        pass  # its queue is full: somebody listens
    except (ConnectionRefusedError, FileNotFoundError):
        raise NotRunningError(f"no node runs in `{data}`: nobody answers on its admin socket", start) from None
    except OSError as error:
        why = error.strerror or str(error)
        raise MissingError(f"the admin socket of `{data}` cannot be opened: {why}", start) from error
    return path


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (OSError, KeyError):
        return "OWNER"


class LocalChannel:
    """ipc to a node of this machine."""

    def __init__(self, path: Path) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._ends = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._ends.linger = 0
        self._socket.connect(f"ipc://{path}")

    def ask(self, frame: bytes, idle_ms: int) -> Iterator[bytes]:
        self._socket.send(frame)
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._ends, zmq.POLLIN)
        while ready := dict(poller.poll(idle_ms)):
            if self._socket in ready:  # first: its last word came before its end
                yield self._socket.recv_multipart()[-1]
            else:
                self._ends.recv_multipart()
                raise SilenceError("the node has ended meanwhile")
        raise SilenceError(f"the node has not answered for {idle_ms / 1000:g} s")

    def close(self) -> None:
        self._socket.disable_monitor()
        self._ends.close()
        self._socket.close()
        self._context.term()


class RemoteChannel:
    """CURVE to the consensus port of any member, with the key all members share."""

    def __init__(self, node: str, key_file: Path) -> None:
        from consensus.keys import KeyFileError, read_key
        from consensus.transport import AdminClient, AdminError

        try:
            host, port = parse_address(node)
        except BadValue as error:
            raise UsageError(f"`--node`: {error.why}", error.hint) from error
        self._error = AdminError
        try:
            self._client = AdminClient((host, port), read_key(key_file))
        except KeyFileError as error:
            hint = "`--cluster-key` takes the key file that all members share, readable by this user alone"
            raise _ERRORS.get(error.exit_code, UsageError)(str(error), hint) from error
        except AdminError as error:
            raise MissingError(str(error), "write `--node HOST:PORT` with the address of `--listen`") from error

    def ask(self, frame: bytes, idle_ms: int) -> Iterator[bytes]:
        try:
            yield from self._client.stream(frame, idle_ms)
        except self._error as error:
            raise SilenceError(str(error)) from error

    def close(self) -> None:
        self._client.close()


def open_channel(data: Path | None, node: str, key_file: Path | None) -> Channel:
    """The channel that ``--data``, or ``--node`` and ``--cluster-key``, ask for. UsageError if neither is given."""
    if node:
        if key_file is None:
            hint = "give the key file that all members share, for example `--cluster-key DIR/cluster.key`"
            raise UsageError("`--node` needs `--cluster-key`", hint)
        return RemoteChannel(node, key_file)
    if data is None:
        hint = "add `--data DIR` or set PGR_DATA; from another machine: `--node HOST:PORT --cluster-key FILE`"
        raise UsageError("which node? neither `--data` nor `--node` is given", hint)
    return LocalChannel(find_socket(data.absolute()))


class Admin:
    """One conversation at a time with one node; closes its channel as a context manager."""

    def __init__(self, channel: Channel, warn: Callable[[str], object] = lambda _: None) -> None:
        self._channel, self._warn = channel, warn

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def request(
        self,
        name: str,
        body: dict[str, Any],
        *,
        idle_ms: int = STATUS_IDLE_MS,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> dict[str, Any]:
        """The result. Raises the PgrError the node answered with, or TryAgainError after ``idle_ms`` without a word."""
        id, last = os.urandom(8).hex(), ""
        try:
            for frame in self._frames(id, encode(name, body, id), idle_ms):
                if frame.name == "admin.answer":
                    for text in frame.body.get("warnings", ()):
                        self._warn(str(text))
                    return _result(frame)
                step = _progress(frame)
                last = step.text or last
                on_progress(step)
        except SilenceError as error:
            hint = "try again; its log may tell why"
            reads = ("status", "history", "events", "uri", "explain", "config.show", "doctor")
            if name not in reads and not body.get("dry_run"):
                hint = "look at `pgr status`, of any node, before trying again: the request may have been carried out"
            known = f"; the last that is known: {last}" if last else ""
            raise TryAgainError(f"{error}{known}", hint) from error
        raise AssertionError("a channel ends only by an error")

    def watch(self) -> Iterator[dict[str, Any]]:
        """The status at once, upon each change and every RENEW_MS, until the node stops; TryAgainError if silent."""
        return self.stream("status", lambda: {"watch": True}, "status.changed")

    def stream(self, name: str, body: Callable[[], dict[str, Any]], event: str) -> Iterator[dict[str, Any]]:
        """The fields of every such ``event``, until the node stops; asked again every RENEW_MS with what ``body`` then
        gives. TryAgainError if nothing comes for FORGET_MS."""
        id = os.urandom(8).hex()
        heard_ns = now_ns()
        while True:
            asked_ns = now_ns()
            try:
                for frame in self._frames(id, encode(name, body(), id), RENEW_MS):
                    heard_ns = now_ns()
                    if frame.name == "admin.answer":
                        _result(frame)
                        return
                    step = _progress(frame)
                    if step.event == event:
                        yield step.fields
                    if now_ns() - asked_ns >= RENEW_MS * MS:
                        break
            except SilenceError as error:
                if now_ns() - heard_ns >= FORGET_MS * MS:
                    raise TryAgainError(str(error), "see the log of the node, or try again") from error

    def _frames(self, id: str, ask: bytes, idle_ms: int) -> Iterator[Frame]:
        """What answers ``id``; late answers to others are of no use."""
        for data in self._channel.ask(ask, idle_ms):
            try:
                frame = decode(data)
            except WireError as error:
                raise BugError(f"the node sent something unreadable: {error}", _SAME) from error
            if frame.id == id and frame.name in ("admin.progress", "admin.answer"):
                yield frame


_SAME = "is `pgr` as new as the node? compare with `pgr version`"


def _progress(frame: Frame) -> Progress:
    match frame.body:
        case {"event": str(event), "text": str(text), "fields": dict(fields)}:
            return Progress(event, text, fields)
        case _:
            raise BugError("the node sent a progress of an unknown form", _SAME)


def _result(frame: Frame) -> dict[str, Any]:
    match frame.body:
        case {"ok": True, "result": dict(result)}:
            return result
        case {"ok": False, "code": int(code), "error": str(error), "hint": str(hint)}:
            raise _ERRORS.get(code, BugError)(error, hint)
        case _:
            raise BugError("the node sent an answer of an unknown form", _SAME)


def error_of(refusal: dict[str, Any]) -> PgrError:
    """What a request would have been refused with."""
    return _ERRORS.get(int(refusal["code"]), BugError)(str(refusal["error"]), str(refusal["hint"]))


def who() -> str:
    """``user@host`` of this process, for the history: the best this machine knows, proven by nothing."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    behind = os.environ.get("SUDO_USER", "")
    return f"{behind or name}@{socket.gethostname()}"


def write_private(path: Path, text: str) -> None:
    """A new file that only its owner may read. UsageError if it exists: a key is never overwritten."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"`{path}` exists", "choose another name, or remove it first if no cluster uses it") from None
    except OSError as error:
        hint = f"make the directory `{path.parent}` first, where this user may write"
        raise UsageError(f"`{path}` cannot be written: {error.strerror}", hint) from None
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
