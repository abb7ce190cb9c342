"""Steps that make or replace the data directory: create, clone, rewind.

Nothing that may be the only copy is destroyed (invariant 5): what is replaced is moved aside into DIR/salvage, never
deleted; WAL that a rewind would drop is copied there first; a marker on disk says that a rewind or clone is under way.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from consensus.cluster import Grant
from consensus.record import EpochStart, Position
from fencing.clock import now_ns
from fencing.lease import MS
from fencing.logs import utc_now
from supervisor import (
    adopt,
    controldata,
    files,
    jobs,
    preflight,
    salvage,
    sql,
    tablespaces,
    timelines,
    upstream,
    waldir,
)
from supervisor.context import CLONE, Context, StepFailed
from supervisor.errors import RefusedError
from supervisor.roles import Data, Plan, Server, copy_asked_for
from supervisor.steps import Steps
from supervisor.tasks import Task, sleep

MARK = preflight.MARK
"""In PGDATA: whose copy this is. Both tools copy the source's, so it is written again before the copy is used."""
MARK_KEPT = "rewinding.json"
"""In DIR, while pg_rewind runs: it empties our mark and writes the source's over it, and may be killed in between."""
SALVAGE_MANY = 4
"""From so many data directories in DIR/salvage on, each further one is warned of."""
NEW_SUFFIX = ".new"


def read_mark(pgdata: Path) -> dict[str, Any]:
    """{incarnation, nonce, rebuilt, fresh}; empty if this directory was never a node's of pgr."""
    data = files.read_optional(pgdata / MARK)
    if data is None:
        return {}
    try:
        body: dict[str, Any] = json.loads(data)
    except ValueError as error:
        hint = f"restore {pgdata / MARK}, or move {pgdata} away: the node then clones from the primary"
        raise RefusedError(f"{pgdata / MARK} is damaged: {error}", hint) from error
    return body


def is_copy_of(place: Path, incarnation: int) -> bool:
    """Did this life of this node finish the copy there? One that was cut short has the source's mark, or part of it."""
    try:
        return read_mark(place).get("incarnation") == incarnation
    except RefusedError:
        return False


def put_mark_back(home: Path, pgdata: Path) -> None:
    """After a rewind that ended with its supervisor: whose directory it is stays known, and that it is half done the
    marker in the Raft store says. Before anybody looks, once no pg_rewind is left."""
    kept = files.read_optional(home / MARK_KEPT)
    if kept is None:
        return
    # A mark of this life that is whole is the newer one: it may say `fresh` by now, or be of a copy made since.
    if preflight.has_postgres(pgdata) and not is_copy_of(pgdata, json.loads(kept)["incarnation"]):
        files.write_atomically(pgdata / MARK, kept)
    (home / MARK_KEPT).unlink()
    files.sync_directory(home)


def write_mark(pgdata: Path, incarnation: int, nonce: str, rebuilt: int = 0, *, fresh: bool = False) -> None:
    """``rebuilt``: index of the `reinit/1` that this copy was made for; ``fresh``: it was never started yet, so that a
    backup_label in it is its own."""
    body = {"incarnation": incarnation, "nonce": nonce, "rebuilt": rebuilt, "fresh": fresh}
    files.write_atomically(pgdata / MARK, json.dumps(body).encode())


def _refuse_mount_point(pgdata: Path) -> None:
    """Nothing can be renamed over it, and nothing in it may be deleted."""
    if preflight.is_mount_point(pgdata):
        raise StepFailed(_mount_point(pgdata))


def _mount_point(pgdata: Path) -> str:
    return f"{pgdata} is a mount point, so no new copy can be put in its place: {preflight.MOUNT_ABOVE}"


def note_first_start(pgdata: Path, *, done: bool) -> None:
    """Postgres has become consistent in it, and with that has taken its backup_label; or, not ``done``, it has a new
    one (pg_rewind makes one too)."""
    mark = read_mark(pgdata)
    if mark and bool(mark.get("fresh")) is done:
        files.write_atomically(pgdata / MARK, json.dumps(mark | {"fresh": not done}).encode())


class Rebuild:
    """The steps, each a task."""

    def __init__(self, context: Context, steps: Steps) -> None:
        self.c, self.steps = context, steps

    @property
    def new(self) -> Path:
        """Where a new data directory is made, beside the one it replaces (same file system: the swap is a rename)."""
        pgdata = self.c.config.pgdata
        return pgdata.with_name(pgdata.name + NEW_SUFFIX)

    # -- create --------------------------------------------------------------------------------------------------

    def create(self, _: Plan) -> Task[None]:
        """The founder's: initdb once per cluster; used only after the log has accepted its system identifier."""
        c, pgdata = self.c, self.c.config.pgdata
        cluster = c.cluster
        adopted = (pgdata / "PG_VERSION").exists()
        place = pgdata if adopted else self.new
        if not adopted:
            adopt.refuse_another(c, "")
        if not adopted and read_mark(place).get("nonce") != cluster.nonce:
            if cluster.system_identifier:
                raise StepFailed("the data directory this node created is gone, and the cluster was never opened")
            yield from self._initdb(place)
        brought = ""
        if adopted and not read_mark(place):
            brought = yield from adopt.take_over(c)
            write_mark(place, c.view.incarnation, cluster.nonce)
        control = yield from controldata.read(c.binaries, place, c.children)
        body = {
            "node": c.local.me, "nonce": cluster.nonce, "system_identifier": str(control.system_identifier),
            "timeline": control.timeline,
        }  # fmt: skip
        yield from self.steps.until_logged("initialized/1", body, lambda: bool(c.cluster.system_identifier))
        if c.cluster.system_identifier != str(control.system_identifier):
            raise StepFailed("the log has accepted another data directory")
        if not c.record.history:
            yield from c.save_record((EpochStart(0, 0, c.cluster.initial_timeline),), proof=None, marker="")
        if not adopted:
            place.rename(pgdata)
            files.sync_directory(pgdata.parent)
        c.change(data=Data.READY)
        c.log.info("cluster.created", system_identifier=c.cluster.system_identifier)
        if brought:
            self._remember("adopted", brought, {})

    def _initdb(self, place: Path) -> Task[None]:
        c = self.c
        self._aside(place, "unused")
        c.log.info("postgres.initdb", target=str(place))
        founding = c.config.founding
        password = preflight.superuser_password(founding)
        pwfile = c.config.run / "superuser_password" if password else None
        try:
            if pwfile is not None and password:
                files.write_atomically(pwfile, password.encode())
            result = yield from jobs.initdb(
                c.binaries, place, c.children, superuser=founding.superuser, pwfile=pwfile, extra=founding.initdb
            )
        finally:
            if pwfile is not None:
                pwfile.unlink(missing_ok=True)
        c.log.info("postgres.initdb_done", took_ms=result.took_ms)
        yield from self._roles(place)
        write_mark(place, c.view.incarnation, c.cluster.nonce)

    def _roles(self, place: Path) -> Task[None]:
        c = self.c
        statements = jobs.roles_sql(c.cluster.replication_password, os.urandom(16))
        yield from jobs.single_user(c.binaries, place, statements, c.children)

    # -- clone ---------------------------------------------------------------------------------------------------

    def clone(self, plan: Plan) -> Task[None]:
        """A copy of the primary, or of a standby of it that is tagged for that, made beside, swapped in when complete,
        believed only once it has passed its proof, which is the primary's."""
        c = self.c
        grant, asked = self._followed(plan.term), copy_asked_for(c.view, c.local)
        source = self._source(grant, asked)
        if c.local.server is not Server.DOWN:
            yield from self.steps.stop(plan)
        _refuse_mount_point(c.config.pgdata)
        wal = waldir.place_of(c.config.pgdata) or waldir.place_of(self.new)
        if wal is not None and waldir.new_in(wal).exists():  # likewise of a copy that did not end
            yield from jobs.run_job(["rm", "-rf", str(waldir.new_in(wal))], c.children)
        places = yield from self._tablespaces(grant, source)
        if self.new.exists() and not is_copy_of(self.new, c.view.incarnation):  # cut short: nobody's data
            yield from jobs.run_job(["rm", "-rf", str(self.new)], c.children)
        self._aside(self.new, "unused")
        c.log.info("clone.begin", source=source)

        def progress(done: int, total: int) -> None:
            c.clone_progress = (done, total)
            c.log.info("clone.progress", bytes=done, total=total)

        try:
            result = yield from jobs.basebackup(
                c.binaries, c.upstream(grant, application=f"{CLONE}{c.local.me}", node=source), self.new, c.children,
                slot=None, on_progress=progress, tablespaces=tablespaces.mappings(places.values()),
                waldir=waldir.new_in(wal) if wal is not None else None,
            )  # fmt: skip
            proof = yield from self._end_of_primary(grant)
        except (jobs.JobFailed, sql.SqlFailure) as error:
            self._of_no_use(source, grant)
            raise StepFailed(f"the clone from {source} failed: {error}") from error
        control = yield from controldata.read(c.binaries, self.new, c.children)
        if str(control.system_identifier) != c.cluster.system_identifier:
            self._of_no_use(source, grant)
            raise StepFailed(f"{source} has the foreign system identifier {control.system_identifier}")
        if source != grant.node and control.min_recovery_timeline != grant.timeline:
            # Whose WAL goes on on the timeline of the grant has a part of what its primary wrote, and nothing else.
            self._of_no_use(source, grant)
            told = f"{source} was on timeline {control.min_recovery_timeline}, and {grant.node} is on {grant.timeline}"
            raise StepFailed(f"the clone from {source} is of no use: {told}")
        write_mark(self.new, c.view.incarnation, c.cluster.nonce, asked or c.local.rebuilt, fresh=True)
        self._install_histories(self.new, grant)
        # From here until the history is written the directory is not what the record says.
        yield from c.save_record(marker="clone")
        c.change(data=Data.BROKEN)
        replaced = self._aside(c.config.pgdata, "replaced")
        tablespaces.put_in_place(self.new, places, replaced, salvage.stamp())
        if wal is not None:
            waldir.put_in_place(self.new, wal, replaced, salvage.stamp())
        self.new.rename(c.config.pgdata)
        files.sync_directory(c.config.pgdata.parent)
        yield from c.save_record(grant.ancestry, proof=proof, marker="")
        c.clone_progress, c.no_copy_from = (0, 0), frozenset()
        c.started()
        c.change(data=Data.READY, needs_clone=0, diverged=0, rebuilt=asked or c.local.rebuilt)
        c.log.info("clone.end", took_ms=result.took_ms, source=source)
        self._tell_of_salvage()
        kept = f"; the directory before is {replaced}" if replaced is not None else ""
        self._remember("cloned", f"was cloned from {source}{kept}", {"moved_to": str(replaced or "")})

    def _source(self, grant: Grant, asked: int) -> str:
        """Whom to copy: who was named, else a fit standby that is tagged for it, else the primary. What a standby of
        this very primary has is a part of what the primary has."""
        c = self.c
        named = c.cluster.reinit_of(c.local.me) if asked else None
        member = c.cluster.member(named.source) if named is not None and named.source not in c.no_copy_from else None
        if member is not None and member.has_data:
            return member.name
        return upstream.copy_sources(c.cluster, grant, c.local.me, c.seen, c.no_copy_from)[0]

    def _of_no_use(self, source: str, grant: Grant) -> None:
        """The next attempt is made elsewhere; the primary is always asked again."""
        if source != grant.node:
            self.c.no_copy_from |= {source}

    def _tablespaces(self, grant: Grant, source: str) -> Task[dict[str, str]]:
        """Place by OID; what an earlier copy has left half done there is nobody's data."""
        c = self.c
        try:
            rows = yield from sql.query_once(
                c.upstream(grant, dbname="postgres", application=f"pgr_clone_{c.local.me}", node=source),
                tablespaces.QUERY, until_ns=now_ns() + 5_000 * MS,
            )  # fmt: skip
            places = {str(oid): str(place) for oid, place in rows}
            tablespaces.refuse_if_occupied(places, (c.config.pgdata, self.new))
        except (sql.SqlFailure, tablespaces.OccupiedPlaceError) as error:
            self._of_no_use(source, grant)
            raise StepFailed(f"the clone from {source} cannot begin: {error}") from error
        for left in tablespaces.mappings(places.values()).values():
            if Path(left).exists():
                yield from jobs.run_job(["rm", "-rf", left], c.children)
        return places

    def _followed(self, term: int) -> Grant:
        grant = self.c.cluster.grant
        if grant is None or grant.term != term or not grant.ancestry:
            raise StepFailed("there is a newer grant")
        return grant

    def _end_of_primary(self, grant: Grant) -> Task[Position]:
        """An LSN read on the primary of the newest grant after the copy began: past it, the copy has all this node
        ever had."""
        rows = yield from sql.query_once(
            self.c.upstream(grant, dbname="postgres", application=f"pgr_proof_{self.c.local.me}"),
            "SELECT pg_current_wal_flush_lsn(), pg_is_in_recovery()",
            until_ns=now_ns() + 5_000 * MS,
        )
        lsn, recovering = rows[0]
        if recovering != "f" or lsn is None:
            raise StepFailed(f"{grant.node} is not a primary")
        return Position(grant.term, timelines.parse_lsn(lsn))

    def _install_histories(self, pgdata: Path, grant: Grant) -> None:
        """A copy has only the newest history file, and receivers ask for every number in between."""
        for epoch in grant.ancestry[1:]:
            path = pgdata / "pg_wal" / timelines.history_name(epoch.timeline)
            if not path.exists():
                files.write_atomically(path, timelines.history_text(grant.ancestry, epoch.timeline).encode())

    def _aside(self, directory: Path, why: str) -> Path | None:
        """Moved away, never deleted; where to. An empty one is nobody's copy."""
        if not directory.exists():
            return None
        if not any(directory.iterdir()):
            directory.rmdir()
            return None
        target = salvage.place(self.c, f"{directory.name}-{why}")
        try:
            directory.rename(target)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise StepFailed(_mount_point(directory)) from error
            if error.errno != errno.EXDEV:
                raise
            target = directory.with_name(target.name)  # on another file system than DIR/salvage: beside it, then
            directory.rename(target)
        files.sync_directory(directory.parent)
        self.c.log.info("data.moved_aside", source=str(directory), target=str(target))
        return target

    # -- rewind --------------------------------------------------------------------------------------------------

    def rewind(self, plan: Plan) -> Task[None]:
        """Back to where the histories part, then forward with the primary's; the WAL that goes is saved first."""
        c = self.c
        grant = self._followed(plan.term)
        yield from self._until_checkpointed(grant)
        if c.local.server is not Server.DOWN:
            yield from self.steps.stop(plan)
        saved = yield from salvage.save_wal(c, grant.ancestry, grant.node)
        yield from salvage.tell(c, saved)
        # Before anything says that a rewind has begun: on a full disk none begins.
        files.write_atomically(c.config.data / MARK_KEPT, (c.config.pgdata / MARK).read_bytes())
        yield from c.save_record(marker="rewind")
        c.change(rebuilding=plan.term)
        began = now_ns()
        c.log.info("rewind.begin", source=grant.node, saved_bytes=saved.bytes_salvaged)
        done = False
        try:
            result = yield from jobs.rewind(
                c.binaries, c.upstream(grant, dbname="postgres", application=f"pgr_rewind_{c.local.me}"),
                c.config.pgdata, c.children, scratch=c.config.run,
            )  # fmt: skip
            put_mark_back(c.config.data, c.config.pgdata)
            proof = yield from self._end_of_primary(grant)
            self._install_histories(c.config.pgdata, grant)
            note_first_start(c.config.pgdata, done=False)
            yield from c.save_record(grant.ancestry, proof=proof, marker="")
            done = True
        except (jobs.JobFailed, sql.SqlFailure) as error:
            c.log.warning("rewind.failed", error=str(error))
            return
        finally:
            # Failed or cancelled: the marker stays, and the directory is only good for being cloned over.
            c.change(data=Data.READY if done else Data.BROKEN, diverged=0, rebuilding=0)
            put_mark_back(c.config.data, c.config.pgdata)
        c.log.info("rewind.end", took_ms=(now_ns() - began) // MS, said=list(result.tail[-2:]))
        self._tell_of_salvage()
        self._remember("rewound", f"was rewound to {grant.node}", {"saved_in": saved.place})

    def _until_checkpointed(self, grant: Grant) -> Task[None]:
        """pg_rewind reads the source's timeline from pg_control: before a checkpoint it is the old one (hazard 56)."""
        c = self.c
        conninfo = c.upstream(grant, dbname="postgres", application=f"pgr_rewind_{c.local.me}")
        until_ns = now_ns() + 30_000 * MS
        while True:
            try:
                rows = yield from sql.query_once(
                    conninfo, "SELECT timeline_id FROM pg_control_checkpoint()", until_ns=now_ns() + 5_000 * MS
                )
            except sql.SqlFailure as error:
                raise StepFailed(f"{grant.node} cannot be asked for its checkpoint: {error}") from error
            if rows[0][0] == str(grant.timeline):
                return
            if now_ns() >= until_ns:
                raise StepFailed(f"{grant.node} has not checkpointed since its promotion")
            yield from sleep(20 * MS)

    def _tell_of_salvage(self) -> None:
        """Data directories are never removed there: a person has to, before the disk is full."""
        place = self.c.config.salvage_dir
        kept = sum(not name.endswith(salvage.WAL) for name in os.listdir(place)) if place.exists() else 0
        if kept >= SALVAGE_MANY:
            free_mb = shutil.disk_usage(place).free >> 20
            hint = f"look through {place} and remove what nobody needs any more"
            self.c.log.warning("salvage.grows", kept=kept, free_mb=free_mb, hint=hint)

    def _remember(self, kind: str, text: str, fields: dict[str, Any]) -> None:
        c = self.c
        body = {"kind": kind, "term": c.view.term, "node": c.local.me, "text": text, "fields": fields, "at": utc_now()}
        c.raft.tell("node.propose", {"kind": "event/1", "body": body})
