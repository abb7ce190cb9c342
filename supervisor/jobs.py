"""Postgres's one-shot programs as cancellable tasks: initdb, postgres --single, pg_basebackup, pg_rewind, any other.

A job is a session of its own, so that ending it ends its helpers too. Exit statuses come from the ChildTable. No
secret is ever in an argument: passwords travel in passfiles, or as SCRAM verifiers on standard input.
"""

from __future__ import annotations

import base64
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fencing.clock import now_ns
from supervisor import files
from supervisor.binaries import Binaries
from supervisor.children import UNKNOWN, ChildTable
from supervisor.settings import REPLICATION_ROLE, ROLE
from supervisor.tasks import Task, Wait

TAIL_LINES = 20
_TERM_MS, _KILL_MS = 200, 2000
_PROGRESS = re.compile(r"^\s*(\d+)/(\d+) kB ")
CONFIG = "postgresql.conf"
REWIND_FUNCTIONS = (
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)
"""What the documentation of pg_rewind says that its role needs EXECUTE on."""
_KEPT_THROUGH_REWIND = (CONFIG, "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf")


@dataclass(frozen=True, slots=True)
class JobResult:
    """A program that ended with 0."""

    tool: str
    output: str
    tail: tuple[str, ...]
    """The last lines of its stderr."""
    took_ms: int


class JobFailed(Exception):
    """A program ended otherwise; ``tail`` has its last lines of stderr."""

    def __init__(self, tool: str, code: int, tail: tuple[str, ...]) -> None:
        how = f"was ended by signal {-code}" if UNKNOWN < code < 0 else f"ended with {code}"
        super().__init__(f"{tool} {how}: {' | '.join(tail[-5:]) or 'it said nothing'}")
        self.tool, self.code, self.tail = tool, code, tail


def clean_env(env: Mapping[str, str]) -> dict[str, str]:
    """What Postgres may inherit: nothing of pgr's, libpq's or systemd's (hazard 5), messages in English."""
    kept = {
        name: value
        for name, value in env.items()
        if not name.startswith(("PGR_", "PG", "LC_", "POSTGRES_")) and name not in ("NOTIFY_SOCKET", "LANGUAGE")
    }
    return kept | {"LANG": "C", "LC_MESSAGES": "C"}


def run_job(
    argv: Sequence[str],
    children: ChildTable,
    *,
    stdin: bytes = b"",
    on_line: Callable[[str], None] | None = None,
) -> Task[JobResult]:
    """Run a program to its end; ``on_line`` gets every line of stderr. Raises JobFailed, OSError if it can't start.

    ``stdin`` goes by a pipe and must fit into one (64 KiB). A cancelled job gets SIGTERM, then SIGKILL with all of
    its session; this blocks for 200 ms at most, unless the kernel holds it.
    """
    began = now_ns()
    if len(stdin) > 65536:
        raise ValueError("standard input of a job must fit into a pipe")
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=clean_env(os.environ),
        start_new_session=True,
    )
    children.expect(process.pid)
    code: int | None = None
    with ExitStack() as stack:
        pipes = [pipe for pipe in (process.stdin, process.stdout, process.stderr) if pipe is not None]
        for pipe in pipes:
            stack.callback(pipe.close)
        pidfd = os.pidfd_open(process.pid)
        stack.callback(os.close, pidfd)
        try:
            collected = yield from _collect(process, pidfd, stdin, on_line)
            while (code := children.poll(process.pid)) is None:
                yield Wait(pidfd, read=True)
        finally:
            if code is None:
                code = _end(process.pid, pidfd, children)
            process.returncode = code  # Popen must not wait for it
            children.forget(process.pid)
    tool = Path(argv[0]).name
    output, errors = collected
    tail = tuple(errors[-TAIL_LINES:])
    if code != 0:
        raise JobFailed(tool, code, tail)
    return JobResult(tool, output, tail, (now_ns() - began) // 1_000_000)


def _collect(
    process: subprocess.Popen[bytes], pidfd: int, stdin: bytes, on_line: Callable[[str], None] | None
) -> Task[tuple[str, list[str]]]:
    """Feed and read until the program has ended; a helper that holds its pipes longer is not waited for."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.fileno(), process.stderr.fileno()
    try:
        process.stdin.write(stdin)
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended before it read: its exit status says why
    output, lines, partial = bytearray(), list[str](), b""
    with select.epoll() as several:
        for fd in (out, err, pidfd):
            several.register(fd, select.EPOLLIN)
        for fd in (out, err):
            os.set_blocking(fd, False)
        ended = False
        while not ended:
            yield Wait(several.fileno(), read=True)
            ready = {fd for fd, _ in several.poll(0)}
            ended = pidfd in ready
            for fd in (out, err):
                if not ended and fd not in ready:
                    continue
                while data := _read(fd):
                    if fd == out:
                        output += data
                        continue
                    *whole, partial = re.split(rb"[\r\n]", partial + data)
                    for raw in whole:
                        _line(raw, lines, on_line)
                if data is not None and not ended:
                    several.unregister(fd)  # its end: readable for ever
        _line(partial, lines, on_line)
    return output.decode(errors="replace"), lines


def _read(fd: int) -> bytes | None:
    """b"" at the end of the stream, None if there is nothing now."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return None


def _line(raw: bytes, lines: list[str], on_line: Callable[[str], None] | None) -> None:
    line = raw.decode(errors="replace").rstrip()
    if line:
        lines.append(line)
        del lines[: -10 * TAIL_LINES]
        if on_line is not None:
            on_line(line)


def _end(pid: int, pidfd: int, children: ChildTable) -> int:
    """TERM, then KILL, to the whole session; the return code, UNKNOWN if the kernel does not let it go."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    for signum, patience_ms in ((signal.SIGTERM, _TERM_MS), (signal.SIGKILL, _KILL_MS)):
        try:
            os.killpg(pid, signum)
        except ProcessLookupError:
            pass  # all of them ended
        if signum == signal.SIGKILL or poller.poll(patience_ms):
            poller.poll(patience_ms)
            code = children.poll(pid)
            if code is not None:
                # Helpers may outlive the leader of the session: the group's number is still theirs.
                _kill_rest(pid)
                return code
    return UNKNOWN


def _kill_rest(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nobody is left


def initdb(
    binaries: Binaries,
    target: Path,
    children: ChildTable,
    *,
    superuser: str = "postgres",
    pwfile: Path | None = None,
    extra: Sequence[str] = (),
) -> Task[JobResult]:
    """A new cluster in ``target``, which must be empty or absent; the caller moves it into place.

    UTF8, checksums, C.UTF-8 from the built-in provider (17 on; before that the C library's, if it has it) unless
    ``extra`` says otherwise; sockets by peer, hosts by scram.
    """
    argv = [
        binaries.path("initdb"),
        "-D",
        str(target),
        "-U",
        superuser,
        "--auth-local=peer",
        "--auth-host=scram-sha-256",
    ]
    argv += ["--data-checksums", "--no-instructions", *_locale_args(binaries.major, extra)]
    if pwfile is not None:
        argv.append(f"--pwfile={pwfile}")
    return (yield from run_job([*argv, *extra], children))


def _locale_args(major: int, extra: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    if not any(arg.startswith(("-E", "--encoding")) for arg in extra):
        chosen.append("--encoding=UTF8")
    if any(arg.startswith(("--locale", "--no-locale", "--lc-", "--icu-", "--builtin-locale")) for arg in extra):
        return chosen
    if major >= 17:
        return [*chosen, "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    return [*chosen, "--locale=C.UTF-8" if _has_locale("C.UTF-8") else "--locale=C"]


def _has_locale(name: str) -> bool:
    import locale

    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    return True


def single_user(
    binaries: Binaries, pgdata: Path, statements: Sequence[str], children: ChildTable, dbname: str = "postgres"
) -> Task[JobResult]:
    """Run SQL in a Postgres without network and without other sessions: at the founding and at an adoption, before the
    first grant (it writes WAL under none). Crash recovery happens first if it must; a clean shutdown follows.

    One statement per element; a failing one ends it (JobFailed). standby.signal is set aside for the time. Never on a
    node of a running cluster.
    """
    options = {
        "exit_on_error": "on",
        "synchronous_standby_names": "",  # nobody could acknowledge
        "default_transaction_read_only": "off",
        "restore_command": "",
        "log_statement": "none",
        "log_min_error_statement": "panic",
        "log_min_duration_statement": "-1",
        "logging_collector": "off",
        "log_destination": "stderr",
    }
    argv = [binaries.path("postgres"), "--single", "-D", str(pgdata), "-c", f"data_directory={pgdata}"]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    # Without -j each line is a statement of its own.
    script = "".join(" ".join(statement.split("\n")) + "\n" for statement in statements)
    with _signals_aside(pgdata):
        return (yield from run_job([*argv, dbname], children, stdin=script.encode()))


def roles_sql(replication_password: str, salt: bytes) -> list[str]:
    """The statements that make pgr's two roles, whatever was there before. ``salt``: 16 random bytes."""
    verifier = scram_verifier(replication_password, salt)
    missing = (
        "DO $$BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{0}') THEN CREATE ROLE {0}; END IF; END$$"
    )
    return [
        missing.format(ROLE),
        f"ALTER ROLE {ROLE} SUPERUSER LOGIN CONNECTION LIMIT -1 VALID UNTIL 'infinity' PASSWORD NULL",
        missing.format(REPLICATION_ROLE),
        f"ALTER ROLE {REPLICATION_ROLE} NOSUPERUSER NOCREATEDB NOCREATEROLE LOGIN REPLICATION CONNECTION LIMIT -1 "
        f"VALID UNTIL 'infinity' PASSWORD '{verifier}'",
        *(f"GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {REPLICATION_ROLE}" for function in REWIND_FUNCTIONS),
    ]


def scram_verifier(password: str, salt: bytes, iterations: int = 4096) -> str:
    """What Postgres stores for a scram-sha-256 password (RFC 5802), so that the password itself goes nowhere.

    ASCII passwords only: others would need SASLprep.
    """
    import hashlib  # this maps OpenSSL, so only where a cluster is made
    import hmac

    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return "SCRAM-SHA-256${}:{}${}:{}".format(
        iterations, *(base64.b64encode(part).decode() for part in (salt, stored, server))
    )


def basebackup(
    binaries: Binaries,
    conninfo: str,
    target: Path,
    children: ChildTable,
    *,
    slot: str | None = None,
    tablespaces: Mapping[str, str] | None = None,
    waldir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Task[JobResult]:
    """Copy a running cluster into ``target`` (absent or empty) with the WAL it needs, checkpoint at once.

    ``conninfo`` names a passfile, never a password. ``slot``: an existing one; None: a temporary one, so that the
    source keeps the WAL while the copy lasts; "": none. ``tablespaces``: where those of the source go to, if it is not
    the same place. ``waldir``: where pg_wal is to be a symlink to (absent or empty).
    ``on_progress(bytes_done, bytes_total)`` about once a second.
    pg_basebackup removes what it made if it fails by itself; after a cancellation the caller does.
    """

    def line(text: str) -> None:
        if on_progress is not None and (match := _PROGRESS.match(text)):
            on_progress(int(match[1]) * 1024, int(match[2]) * 1024)

    argv = [
        binaries.path("pg_basebackup"),
        "-D",
        str(target),
        "-d",
        conninfo,
        "-X",
        "stream",
        "--checkpoint=fast",
        "-w",
    ]
    for old, new in (tablespaces or {}).items():
        argv.append("--tablespace-mapping={}={}".format(*(place.replace("=", "\\=") for place in (old, new))))
    if waldir is not None:
        argv.append(f"--waldir={waldir}")
    if slot is not None:
        argv += ["--no-slot"] if slot == "" else ["-S", slot]
    if on_progress is not None:
        argv.append("-P")
    return (yield from run_job(argv, children, on_line=line))


def rewind(binaries: Binaries, conninfo: str, pgdata: Path, children: ChildTable, *, scratch: Path) -> Task[JobResult]:
    """Make a stopped, diverged cluster a copy of the one at ``conninfo`` (dbname and a passfile in it) up to its
    divergence; the next start must be as a standby of it.

    The source must have checkpointed since its promotion (hazard 56), else the tool says "no rewind required". An
    unclean target is recovered first; its configuration for that is made in ``scratch``, a directory, since with a
    data_directory in postgresql.conf the tool would recover another one. The configuration of this node survives,
    also if it fails; all other files that lie around become the source's. If it fails or is cancelled once it has
    begun to write, ``pgdata`` can't be used: that is what the caller's marker is for.
    """
    kept = {name: files.read_optional(pgdata / name) for name in _KEPT_THROUGH_REWIND}
    config = scratch / "rewind.conf"
    files.write_atomically(config, f"include {_quoted(pgdata / CONFIG)}\ndata_directory = {_quoted(pgdata)}\n".encode())
    argv = [binaries.path("pg_rewind"), "-D", str(pgdata), f"--source-server={conninfo}", f"--config-file={config}"]
    try:
        with _signals_aside(pgdata):
            return (yield from run_job(argv, children))
    finally:
        for name, data in kept.items():
            if data is None:
                (pgdata / name).unlink(missing_ok=True)
            else:
                files.write_atomically(pgdata / name, data)


def _quoted(path: Path) -> str:
    """For a configuration file."""
    return "'{}'".format(str(path).replace("'", "''"))


def _signals_aside(pgdata: Path) -> ExitStack:
    """standby.signal out of the way: a single-user Postgres (pg_rewind runs one too) refuses to start with it."""
    stack = ExitStack()
    signal_file = pgdata / "standby.signal"
    if signal_file.exists():
        signal_file.unlink()
        stack.callback(files.write_atomically, signal_file, b"")
    return stack
