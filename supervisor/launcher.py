"""A small fork server: what it starts costs a fork of a lean image and ends up as a child of the *parent*.

The parent forks it early: everything the children need is imported, no ZeroMQ context was ever made, psycopg and the
rest are not there yet. Later children then start within milliseconds and share its pages. It is single-threaded:
receive a request, fork twice, report. The second fork makes the child an orphan, which the kernel hands to the parent
(a subreaper or PID 1): it is the parent that reaps it, and the parent's death that ends it.

    parent                     launcher                 child (grandchild of the launcher)
      | {"kind", "args"} -------> |
      |                           | fork, fork ----------> | waits
      | <------------ {"pid"}     | (reaped the middle)    |
      |                           | ---------------- go -> | death signal, getppid() checked, exec or call
      | <-- {"ok"} or {"errno"}   | <-- end or errno ----- |

A launcher that is gone, or silent for `timeout_s`, is killed and replaced by a fresh interpreter, and the request is
made once more. A child it may have half started is killed too, so no request is ever carried out twice.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from fencing.clock import now_ns
from fencing.logs import Log
from fencing.realtime import compact
from supervisor.errors import BugError, MissingError, PgrError, TryAgainError, exit_for, explain
from supervisor.init import adopts_orphans, default_signals, die_with_parent, set_title

POSTGRES: Final = "postgres"
_MESSAGE_BYTES: Final = 128 * 1024
_GO: Final = b"g"
_BOOT: Final = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from supervisor.launcher import _exec_main; _exec_main(*sys.argv[2:])"
)


class Kind(NamedTuple):
    """A child that runs in the forked image."""

    target: str
    """`module:function`, called with the arguments of `spawn` as one dict; what it returns is the exit code."""
    title: str
    death_signal: int = 0
    """What the kernel sends it when the parent dies; 0 for one that must outlive the parent."""


KINDS: Final[Mapping[str, Kind]] = {
    "raft": Kind("consensus.process:run", "pgr-raft", signal.SIGKILL),
    # No death signal: its work begins when the parent is gone.
    "watchdog": Kind("supervisor.forked:run_watchdog", "pgr-watchdog"),
}


class LauncherLostError(TryAgainError):
    """The launcher died or stopped answering, and its replacement did too."""


class Launcher:
    """The parent's handle. `pid` changes with `restart`; that pid is reaped by the parent like any other child."""

    def __init__(self, kinds: Mapping[str, Kind], log: Log | None, timeout_s: float) -> None:
        self.kinds = dict(kinds)
        self.pid = 0
        self.timeout_s = timeout_s
        self._log = log
        self._socket: socket.socket | None = None
        self._pidfd = -1

    @classmethod
    def start(cls, kinds: Mapping[str, Kind] = KINDS, log: Log | None = None, timeout_s: float = 2.0) -> Launcher:
        """Import what the children need and fork the launcher. Call before any context, thread or connection exists.

        Raises `BugError` if orphans would not become ours (`init.adopt_orphans` first), and what the imports raise.
        """
        if not adopts_orphans():
            raise BugError(
                "the launcher needs a parent that adopts orphans", "call supervisor.init.adopt_orphans() first"
            )
        _preload(kinds)
        launcher = cls(kinds, log, timeout_s)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent_pid = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        compact()
        gc.freeze()  # the collector would touch, and so copy, every page that is shared
        pid = os.fork()
        if pid == 0:
            _run_and_exit(lambda: _serve(theirs, parent_pid, launcher.kinds))
        theirs.close()
        launcher._took(pid, ours)
        return launcher

    def fileno(self) -> int:
        """A pidfd: readable once the launcher is dead (then `restart`); -1 if there is none."""
        return self._pidfd

    def spawn(self, kind: str, **args: Any) -> int:
        """Start a child and return its pid; it is our child and ours to reap.

        `postgres` or any program: `argv`, `log_path` (stdout and stderr are appended to it), optionally `env` (the
        whole environment), `cwd`, `stdin_path`, `death_signal` (what it gets when the parent dies); returns after exec.
        Other kinds: the JSON arguments of their target; returns when that is
        about to be called. Raises `MissingError` if a program can't be executed, `LauncherLostError`, and
        `BugError` for an unknown kind.
        """
        if kind != POSTGRES and kind not in self.kinds:
            raise BugError(f"the launcher knows no {kind!r}", f"known: {', '.join((POSTGRES, *self.kinds))}")
        request = json.dumps({"kind": kind, "args": args}).encode()
        if len(request) > _MESSAGE_BYTES:
            raise BugError(
                f"a request of {len(request)} bytes to the launcher",
                f"{_MESSAGE_BYTES} is the most",
            )
        try:
            return self._ask(request, args)
        except (OSError, EOFError, TimeoutError) as exc:
            self._warn("launcher.lost", pid=self.pid, reason=exc, kind=kind)
        self.restart()
        try:
            return self._ask(request, args)
        except (OSError, EOFError, TimeoutError) as exc:
            raise LauncherLostError(
                f"the launcher can't start {kind}: {exc}", "the machine may be out of memory"
            ) from exc

    def restart(self) -> None:
        """Kill the launcher, if it is there, and start another one in a fresh interpreter (slower, no shared pages)."""
        self.stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kinds = json.dumps({name: tuple(kind) for name, kind in self.kinds.items()})
        argv = [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid()), kinds]
        os.set_inheritable(theirs.fileno(), True)
        try:
            pid = os.posix_spawn(
                sys.executable,
                argv,
                os.environ,
                setsigmask=(),
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        except OSError as exc:
            ours.close()
            raise LauncherLostError(f"no new launcher: {exc}", "the machine may be out of memory or processes") from exc
        finally:
            theirs.close()
        self._took(pid, ours)
        self._warn("launcher.restarted", pid=pid)

    def stop(self) -> None:
        """Kill the launcher. Its children are not affected; its zombie is reaped with all others."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass  # that is what we wanted
            os.close(self._pidfd)
            self._pidfd = -1
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _took(self, pid: int, ours: socket.socket) -> None:
        self.pid, self._socket, self._pidfd = pid, ours, os.pidfd_open(pid)

    def _warn(self, event: str, **fields: object) -> None:
        if self._log is not None:
            self._log.warning(event, **fields)

    def _ask(self, request: bytes, args: Mapping[str, Any]) -> int:
        if self._socket is None:
            raise EOFError("it is gone")
        deadline_ns = now_ns() + int(self.timeout_s * 1_000_000_000)
        self._socket.settimeout(self.timeout_s)
        self._socket.sendall(request)
        answer = self._receive(deadline_ns)
        if "pid" not in answer:
            reason = os.strerror(int(answer["errno"]))
            raise TryAgainError(f"no child could be forked: {reason}", "free memory, or raise the limit of processes")
        pid = int(answer["pid"])
        try:
            result = self._receive(deadline_ns)
        except BaseException:
            _kill_child(pid)
            raise
        if "errno" not in result:
            return pid
        raise _exec_error(int(result["errno"]), str(result["what"]), args)

    def _receive(self, deadline_ns: int) -> dict[str, Any]:
        assert self._socket is not None
        left_ms = max(0, (deadline_ns - now_ns()) // 1_000_000)
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        if not poller.poll(left_ms):
            raise TimeoutError(f"no answer within {self.timeout_s:g} s")
        data = self._socket.recv(_MESSAGE_BYTES)
        if not data:
            raise EOFError("it is gone")
        answer: dict[str, Any] = json.loads(data)
        return answer


def _exec_error(code: int, what: str, args: Mapping[str, Any]) -> PgrError:
    argv: Sequence[str] = args.get("argv", ("?",))
    reason = os.strerror(code)
    match what:
        case "exec":
            if code == errno.ENOENT:
                hint = "install PostgreSQL 15 to 18, or say where its programs are: --pg-bin DIR"
            else:
                hint = f"make it executable for this user (ls -l {argv[0]}), or choose another --pg-bin"
            return MissingError(f"{argv[0]} can't be started: {reason}", hint)
        case "log":
            return MissingError(
                f"{args.get('log_path')} can't be written: {reason}", "give this user the directory log"
            )
        case "parent":
            return BugError("the child was not adopted by the parent", "is the parent still a subreaper?")
        case _:
            return TryAgainError(
                f"{argv[0]} can't be started ({what}): {reason}", "the machine may be out of resources"
            )


def _kill_child(pid: int) -> None:
    """Kill a child of ours that nobody has reaped (so its number is still its own)."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself


# --- in the launcher --------------------------------------------------------------------------------------------------


def _preload(kinds: Mapping[str, Kind]) -> None:
    for kind in kinds.values():
        importlib.import_module(kind.target.partition(":")[0])


def _exec_main(fd: str, parent_pid: str, kinds: str) -> None:
    """The launcher in a fresh interpreter."""
    table = {name: Kind(*fields) for name, fields in json.loads(kinds).items()}
    channel = socket.socket(fileno=int(fd))
    channel.set_inheritable(False)

    def run() -> None:
        if not die_with_parent(int(parent_pid), signal.SIGKILL):
            return
        _preload(table)
        compact()
        gc.freeze()
        _serve(channel, int(parent_pid), table)

    _run_and_exit(run)


def _run_and_exit(run: Any) -> NoReturn:
    """Run `run()` as if it were all of this process: nothing of the forked image is resumed or cleaned up."""
    code = 70
    try:
        result = run()
        code = result if isinstance(result, int) else 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    except BaseException as exc:
        code = _complain(exc)
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # nobody reads them any more
        os._exit(code)


def _complain(exc: BaseException) -> int:
    import traceback

    code, message, hint = exit_for(exc)
    if not isinstance(exc, PgrError):
        traceback.print_exception(exc)
    sys.stderr.write(explain(message, hint))
    return int(code)


def _serve(channel: socket.socket, parent_pid: int, kinds: Mapping[str, Kind]) -> None:
    """The launcher's life: until the parent closes its end or dies."""
    # A session of its own: Ctrl-C in the parent's terminal is for the parent alone to act on.
    os.setsid()
    default_signals(keep_ignored=(signal.SIGPIPE,))
    if not die_with_parent(parent_pid, signal.SIGKILL):
        return
    # The parent's lock on the data directory among others: a copy here would hold it beyond the parent's death.
    _close_descriptors(keep=(channel.fileno(),))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    set_title("pgr-launcher")
    channel.setblocking(True)
    while data := channel.recv(_MESSAGE_BYTES):
        request = json.loads(data)
        _launch(channel, parent_pid, request["kind"], kinds.get(request["kind"]), request["args"])


def _launch(channel: socket.socket, parent_pid: int, name: str, kind: Kind | None, args: dict[str, Any]) -> None:
    status_r, status_w = os.pipe2(os.O_CLOEXEC)
    go_r, go_w = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            middle = os.fork()
            if middle == 0:
                _run_and_exit(lambda: _middle(status_w, go_r, (parent_pid, name, kind, args)))
        finally:
            os.close(status_w)
            os.close(go_r)
        os.waitpid(middle, 0)  # from here on the child's parent is ours
        first = os.read(status_r, 64)
        if not first.startswith(b"pid "):
            _tell(channel, errno=int(first or errno.EAGAIN))
            return
        _tell(channel, pid=int(first[4:]))
        try:
            os.write(go_w, _GO)
        except BrokenPipeError:
            _tell(channel, what="start", errno=errno.ESRCH)  # killed before it ran
            return
        what, _, code = os.read(status_r, 64).decode().partition(" ")
        _tell(channel, **({"what": what, "errno": int(code)} if what else {"ok": True}))
    except BrokenPipeError:
        pass  # the parent is gone: the next recv ends us
    except OSError as exc:
        _tell(channel, errno=exc.errno or errno.EIO)
    finally:
        os.close(status_r)
        os.close(go_w)


def _tell(channel: socket.socket, **answer: object) -> None:
    channel.send(json.dumps(answer).encode())


def _middle(status_w: int, go_r: int, order: tuple[int, str, Kind | None, dict[str, Any]]) -> NoReturn:
    """Fork the child and vanish, so that it is an orphan."""
    try:
        child = os.fork()
    except OSError as exc:
        os.write(status_w, b"%d" % (exc.errno or errno.EAGAIN))
        os._exit(1)
    if child:
        os.write(status_w, b"pid %d" % child)
        os._exit(0)
    parent_pid, name, kind, args = order
    if name == POSTGRES:
        _become_program(status_w, go_r, parent_pid, args)
    assert kind is not None
    _become_function(status_w, go_r, parent_pid, kind, args)


def _born(status_w: int, go_r: int, parent_pid: int, death_signal: int) -> None:
    """What every child does first; a launcher or parent that died meanwhile ends it."""
    _close_descriptors(keep=(status_w, go_r))
    os.setsid()
    default_signals()
    if os.read(go_r, 1) != _GO:
        os._exit(1)
    os.close(go_r)
    if os.getppid() != parent_pid or (death_signal and not die_with_parent(parent_pid, death_signal)):
        _fail(status_w, "parent", OSError(errno.ESRCH, ""))


def _fail(status_w: int, what: str, exc: OSError) -> NoReturn:
    try:
        os.write(status_w, f"{what} {exc.errno or errno.EIO}".encode())
    except BrokenPipeError:
        pass  # nobody waits for it any more
    os._exit(1)


def _become_program(status_w: int, go_r: int, parent_pid: int, args: dict[str, Any]) -> NoReturn:
    what = "start"
    try:
        # SIGQUIT is Postgres's immediate shutdown; it survives exec, and covers all of us being killed at once.
        _born(status_w, go_r, parent_pid, args.get("death_signal", signal.SIGQUIT))
        os.umask(0o077)
        what = "log"
        log = os.open(args["log_path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        what = "start"
        stdin = os.open(args.get("stdin_path") or os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for source, target in ((stdin, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        if args.get("cwd"):
            os.chdir(args["cwd"])
        _ordinary_limits()
        what = "exec"
        argv = args["argv"]
        os.execvpe(argv[0], argv, _clean_environment() if args.get("env") is None else args["env"])  # noqa: S606  # no shell on purpose
    except OSError as exc:
        _fail(status_w, what, exc)
    os._exit(1)


def _clean_environment() -> dict[str, str]:
    """Ours without our settings and without the image's, among which there may be a password."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PGR_", "POSTGRES_"))}


def _ordinary_limits() -> None:
    """Neither our protection against the OOM killer nor our right to real-time scheduling is for Postgres."""
    import resource

    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)
    except OSError:
        pass  # only root may lower it, and then it was raised by whoever runs us: theirs to decide
    for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
        resource.setrlimit(limit, (0, 0))


def _become_function(status_w: int, go_r: int, parent_pid: int, kind: Kind, args: dict[str, Any]) -> NoReturn:
    def run() -> object:
        try:
            _born(status_w, go_r, parent_pid, kind.death_signal)
            set_title(kind.title)
        except OSError as exc:
            _fail(status_w, "start", exc)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        module_name, _, function_name = kind.target.partition(":")
        function = getattr(importlib.import_module(module_name), function_name)
        os.close(status_w)
        return function(args)

    _run_and_exit(run)


def _close_descriptors(keep: Sequence[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed the directory
