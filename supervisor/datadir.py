"""PGDATA as it is found: whose it is, what the Raft child must know of it, and a Postgres left running in it."""

from __future__ import annotations

import os
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any

from fencing.clock import now_ns
from fencing.kill import end, fence
from fencing.lease import MS
from fencing.logs import Log
from supervisor import adopt, controldata, files, member, preflight, waldir
from supervisor.config import Config
from supervisor.context import Context
from supervisor.errors import MissingError, RefusedError
from supervisor.postgres import OccupiedError, Postgres
from supervisor.rebuild import NEW_SUFFIX, put_mark_back, read_mark
from supervisor.roles import Data, is_founder
from supervisor.settings import REPLICATION_ROLE
from supervisor.tasks import TaskTimeout, run_blocking

LOOK_MS = 5_000
"""How long the loop may stand still for pg_controldata: no Postgres runs yet."""
LOOK_AGAIN_MS = 1_000


def look(c: Context) -> None:
    """What PGDATA is, once the log, this node's record and its incarnation are known; a foreign one stops it (78).

    The Raft child tells the first two by itself, maybe before it has answered the hello that tells the third.
    """
    pgdata = c.config.pgdata
    known = c.view.alive and c.view.cluster is not None and c.view.incarnation > 0
    if c.local.data is not Data.UNKNOWN or not known or now_ns() < c.look_again_ns:
        return
    c.look_again_ns = 0
    expected, mark = c.cluster.system_identifier, read_mark(pgdata)
    if not preflight.has_postgres(pgdata):
        c.change(data=Data.ABSENT)
        return
    if not expected:
        # Either this node is creating it (or bringing it in), or the log here is behind and will say.
        mine = not mark or (mark["nonce"], mark["incarnation"]) == (c.cluster.nonce, c.view.incarnation)
        if mine and is_founder(c.view, c.local) and not c.record.history:
            c.change(data=Data.ABSENT)
        return
    if c.record.marker:
        c.change(data=Data.BROKEN)
        return
    try:
        control = run_blocking(controldata.read(c.binaries, pgdata, c.children), now_ns() + LOOK_MS * MS)
    except TaskTimeout:  # a slow disk, not a damaged one
        c.look_again_ns = now_ns() + LOOK_AGAIN_MS * MS
        c.log.warning("data.slow", after_ms=LOOK_MS, hint="pg_controldata does not answer; it is asked again")
        return
    except controldata.ControlDataError as error:
        hint = "it is moved aside and cloned again once there is a primary"
        c.log.error("data.broken", error=str(error), hint=hint)
        c.change(data=Data.BROKEN)
        return
    if str(control.system_identifier) != expected:
        raise RefusedError(
            f"{pgdata} belongs to another cluster: its system identifier is {control.system_identifier}, "
            f"this cluster's is {expected}",
            f"move it away ({pgdata}); the node then clones from the primary",
        )
    if not mark:
        raise RefusedError(
            f"{pgdata} is a copy of this cluster that this node did not make: nobody knows what it has promised",
            f"move it away ({pgdata}); the node then clones from the primary",
        )
    if mark and mark["incarnation"] != c.view.incarnation:
        # Nobody knows what that life has promised: never started, whatever the log says (safety.md, "Identity").
        hint = "it is moved aside once this node has a new copy"
        c.log.warning("data.of_another_life", incarnation=mark["incarnation"], mine=c.view.incarnation, hint=hint)
        c.change(data=Data.BROKEN)
        return
    if not c.record.history and is_founder(c.view, c.local) and mark.get("nonce") == c.cluster.nonce:
        # Created or brought in, and accepted by the log; only the history was not written yet: create() goes on.
        c.change(data=Data.BROKEN if c.cluster.grants else Data.ABSENT)
        return
    c.change(data=Data.READY if c.record.history else Data.BROKEN, rebuilt=int(mark.get("rebuilt", 0)))


def look_again(c: Context) -> None:
    """Each turn of the loop: what could not be looked at is, once it is due."""
    if c.look_again_ns:
        look(c)


def write_passfile(c: Context) -> None:
    """What libpq reads the replication password from: never in a connection string, never in an argument."""
    if not c.cluster.replication_password:
        return
    line = f"*:*:*:{REPLICATION_ROLE}:{c.cluster.replication_password}\n".encode()
    path = c.config.run / "pgpass"
    if files.read_optional(path) != line:
        files.write_atomically(path, line)


def raft_arguments(c: Context) -> dict[str, Any]:
    """What the Raft child is told at its start (consensus/process.py `RaftChild`)."""
    config = c.config
    mark = read_mark(config.pgdata) if config.pgdata.exists() else {}
    if preflight.has_postgres(config.pgdata) and not mark:
        refuse_config_elsewhere(config.pgdata)
        return member.raft_arguments(config, mark, *adopt.before_founding(c))
    return member.raft_arguments(config, mark, "")


DEBIAN = "/etc/postgresql/*/*/postgresql.conf"


def refuse_config_elsewhere(pgdata: Path) -> None:
    """Configuration outside PGDATA (Debian keeps it in /etc/postgresql): base backups do not have it, so no copy of
    this cluster could start. Raises MissingError."""
    if (pgdata / "postgresql.conf").exists():
        return
    source = command = "postgresql.conf"
    for path in sorted(glob(DEBIAN), reverse=True):
        with suppress(OSError):  # not for us to read: then it is not named
            if f"data_directory = '{pgdata}'" in Path(path).read_text(encoding="utf-8", errors="replace"):
                source, command = path, f"{path} {Path(path).with_name('conf.d')}"
    raise MissingError(
        f"{pgdata} has no postgresql.conf: the cluster keeps its configuration elsewhere, where copies do not get it",
        f"copy {source} and what it includes to {pgdata} (as its owner: cp -a {command} {pgdata}/); from then on that "
        "copy counts. The client rules are taken over from the pg_hba.conf that it names",
    )


_WRITERS = ("initdb", "pg_basebackup", "pg_rewind", "rm")
"""What `rebuild` lets write into PGDATA, or the directory that is to replace it."""
END_JOBS_MS = 5_000


def clear_up(config: Config, log: Log) -> None:
    """What a supervisor has left that was killed while it made a copy; before anybody looks at PGDATA."""
    end_jobs(config, log)
    put_mark_back(config.data, config.pgdata)


def end_jobs(config: Config, log: Log) -> None:
    """Those of a parent that was killed: they work by path, and would go on writing into what is made anew there.

    pg_basebackup's second process outlives the first one even when that is killed (seen). Raises RefusedError if one
    does not end.
    """
    places = {os.path.realpath(p) for p in (config.pgdata, config.pgdata.with_name(config.pgdata.name + NEW_SUFFIX))}
    places.add(os.path.realpath(waldir.new_in(config.pgdata / waldir.LINK)))
    found = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _writes_to(int(entry), places)]
    if not found:
        return
    left = end(found, END_JOBS_MS)
    log.warning("jobs.leftover_ended", expected=False, pids=found, left=left)
    if left:
        raise RefusedError(
            f"processes of an earlier pgr-supervise still write to {config.pgdata}: {left}",
            "wait until they are gone, or end them by hand",
        )


def _writes_to(pid: int, places: set[str]) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        mine = Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
    except OSError:
        return False  # it has ended
    named = os.path.basename(words[0]) in _WRITERS  # noqa: PTH119  # a word, not a path
    return mine and named and any(os.path.realpath(w) in places for w in words[1:] if w.startswith("/"))


def end_leftover(config: Config, postgres: Postgres, log: Log) -> None:
    """Our own, left by a parent that died with its watchdog: nobody guards it, so it must not go on (the data
    directory's lock is ours, so no other supervisor lives)."""
    if not read_mark(config.pgdata):
        raise OccupiedError(
            f"a Postgres runs in {config.pgdata} that pgr did not start",
            f"stop it first: pg_ctl -D {config.pgdata} stop",
        )
    report = fence(config.pgdata, None, now_ns() + 5_000 * MS)
    survivors = list(report.survivors)
    log.warning("postgres.leftover_ended", expected=False, killed=report.killed, survivors=survivors)
    postgres.refuse_if_occupied()
