"""`pgr doctor` before the start: the checks of the start itself, each for itself; nothing is started or changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fencing.clock import now_ns
from fencing.lease import MS, PROFILES
from supervisor import preflight
from supervisor.addresses import Address, is_loopback
from supervisor.config import Config
from supervisor.doctorfacts import Failure, Node, Programs, read
from supervisor.errors import ExitCode, PgrError, RefusedError

CONTROL_MS = 5_000


def user() -> str:
    from supervisor.privileges import current

    return current().name


def _checks(config: Config) -> Iterator[tuple[str, Callable[[], object]]]:
    """The name of the check, and what raises PgrError if it does not hold."""
    yield "kernel", preflight.check_kernel
    yield "data directory", lambda: check_unused(config)
    if not config.witness:
        yield "data directory", lambda: preflight.check_pgdata(config.pgdata, os.geteuid())
        yield "data directory", lambda: preflight.check_mount(config.pgdata)
        yield "data directory", lambda: _check_config_place(config)
    yield "files", lambda: preflight.check_key(config)
    yield "files", lambda: preflight.check_files(config)
    yield "ports", lambda: preflight.check_port(config.listen, "--listen")
    if not config.witness:
        yield "ports", lambda: preflight.check_port(Address(config.pg_listen, config.pg_port), "--pg-port")
    if config.http is not None:
        http = config.http
        yield "ports", lambda: preflight.check_port(http, "--http")


def failures_of(config: Config) -> list[Failure]:
    """One check that fails does not hide the others; what two of them say is said once."""
    found: list[Failure] = []
    for name, check in _checks(config):
        try:
            check()
        except PgrError as error:
            failure = Failure(name, error.message, error.hint, int(error.exit_code))
        except OSError as error:
            hint = "let the user that pgr runs as look there"
            failure = Failure(name, str(error), hint, int(ExitCode.MISSING))
        else:
            continue
        if failure not in found:
            found.append(failure)
    return found


def check_unused(config: Config) -> None:
    """Nobody has the lock, and no Postgres runs there. Asked without taking the lock: a node may be about to start."""
    lock = config.data / "lock"
    if lock.exists() and is_locked(lock):
        holder = lock.read_text(errors="replace").strip() or "unknown"
        hint = f"it starts, stops or hangs: look at its log, or end it (kill {holder})"
        raise RefusedError(f"a supervisor (pid {holder}) has {config.data}, and does not answer", hint)
    pid = postmaster(config.pgdata)
    if pid and not config.witness:
        hint = f"stop it (pg_ctl stop -D {config.pgdata}), and whatever starts it at boot: pgr starts Postgres itself"
        raise RefusedError(f"Postgres (pid {pid}) runs in {config.pgdata}", hint)


def is_locked(path: Path) -> bool:
    """By /proc/locks, which names inodes."""
    found = path.stat()
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    lines = Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines()
    return any("FLOCK" in line and wanted in line.split() for line in lines)


def postmaster(pgdata: Path) -> int:
    """The pid of a Postgres that runs there; 0: none does."""
    try:
        pid = int((pgdata / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
        there = Path(f"/proc/{pid}/cwd").readlink()
    except (OSError, ValueError):
        return 0
    return pid if there == pgdata.resolve() else 0


def _check_config_place(config: Config) -> None:
    """Of a cluster that is to be taken over."""
    from supervisor.datadir import refuse_config_elsewhere
    from supervisor.rebuild import read_mark

    if preflight.has_postgres(config.pgdata) and not read_mark(config.pgdata):
        refuse_config_elsewhere(config.pgdata)


def order(config: Config) -> dict[str, Any]:
    """What is to be measured (`doctorprobes.measure`)."""
    peers = {peer.name: {"raft": str(peer.address)} for peer in config.peers if peer.name != config.name}
    if config.join is not None:
        peers["the cluster to join"] = {"raft": str(config.join)}
    asked: dict[str, Any] = {
        "places": {"raft": str(config.raft_dir)}, "peers": peers, "realtime": True,
        "key_file": str(config.key_file) if os.access(config.key_file, os.R_OK) else "",
    }  # fmt: skip
    if not config.witness:
        asked["places"] |= {"pg_wal": str(config.pgdata / "pg_wal"), "pgdata": str(config.pgdata)}
        asked["pg_bin"] = str(config.pg_bin) if config.pg_bin is not None else None
    return asked


def node(config: Config, measured: Mapping[str, Any], failures: list[Failure]) -> Node:
    """All of it."""
    programs = read(Programs, measured["programs"]) if measured.get("programs") else None
    more: dict[str, Any] = {}
    if not config.witness and preflight.has_postgres(config.pgdata):
        more["has_data"] = True
        if programs is not None:
            failures = failures + _major(config, programs)
            more |= _control(config, programs)
    listens = [config.listen, *([] if config.witness else [Address(config.pg_listen, config.pg_port)])]
    known = {
        "name": config.name, "running": False, "witness": config.witness, "watchdog_mode": config.watchdog,
        "loopback": config.pg_advertise.is_loopback and is_loopback(config.pg_listen), "warnings": config.warnings,
        "addresses": tuple(str(a) for a in (*listens, *([config.http] if config.http is not None else []))),
        "hba_given": config.founding.hba,
    }  # fmt: skip
    found = read(Node, {**measured, **known, **more})
    return replace(found, timings=PROFILES[config.profile], failures=tuple(failures))


def _major(config: Config, programs: Programs) -> list[Failure]:
    try:
        preflight.check_major(config.pgdata, programs.major, Path(programs.bin_dir))
    except PgrError as error:
        return [Failure("data directory", error.message, error.hint, int(error.exit_code))]
    return []


def _control(config: Config, programs: Programs) -> dict[str, Any]:
    """What pg_control says of a cluster that is there."""
    from supervisor import controldata
    from supervisor.binaries import Binaries
    from supervisor.children import ChildTable
    from supervisor.tasks import TaskTimeout, run_blocking

    binaries = Binaries(Path(programs.bin_dir), programs.major, programs.version)
    try:
        reading = controldata.read(binaries, config.pgdata, ChildTable())
        control = run_blocking(reading, now_ns() + CONTROL_MS * MS)
    except (controldata.ControlDataError, TaskTimeout, OSError) as error:
        return {"rewind_problem": f"what pg_control of {config.pgdata} says can't be read: {error}"}
    on = [word for word, there in (("checksums", control.checksums), ("wal_log_hints", control.wal_log_hints)) if there]
    clean = f"a cluster of Postgres {programs.major}, {control.state}, system identifier {control.system_identifier}"
    return {"rewindable": tuple(on), "clean": clean, "system_identifier": str(control.system_identifier)}
