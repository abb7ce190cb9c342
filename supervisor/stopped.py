"""A node that does not run, held so that it can't start meanwhile: `pgr recover` of one that is stopped.

The rules are in consensus/recovery.py. What a running node adds is what it heard of the others and how far its own WAL
goes; of a stopped one only its log and its term history are known.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from consensus import pacing, recovery
from consensus.changes import Refusal
from consensus.cluster import ClusterState, apply, canonical, found
from consensus.clustertext import load
from consensus.forecast import Report
from consensus.record import Identity, Position
from consensus.storage import StorageError, Store, open_store
from consensus.write import Stored
from fencing.logs import utc_now
from supervisor.errors import DiskError, MissingError, PgrError, RefusedError
from supervisor.preflight import DataLock, lock_data
from supervisor.rebuild import MARK

ANEW = (
    "its data can still be taken into a new cluster: copy PGDATA, remove {mark} from the copy, and start "
    "`pgr-supervise --data NEW --pgdata COPY`"
)


class StoppedNode:
    """Its lock and its store; `close` gives both back."""

    def __init__(self, data: Path) -> None:
        """RefusedError (78): it runs, it was never part of a cluster, or its Raft state is gone or damaged."""
        _become_owner(data)
        self.data = data
        self._lock: DataLock = lock_data(data)
        self._store: Store | None = None
        try:
            path = data / "raft" / "raft.sqlite"
            if not path.exists():
                raise RefusedError(f"{path} is gone: which cluster this was is not known", ANEW.format(mark=MARK))
            try:
                self._store = open_store(path)
                self.stored: Stored = self._store.load()
            except StorageError as error:
                raise _failure(error) from error
            self.identity, self.state = self._read(self.stored)
            self.timings = pacing.at_start(self.identity, self.stored)
            """In force here: for how long this node may be bound, above all."""
        except BaseException:
            self.close()
            raise

    def _read(self, stored: Stored) -> tuple[Identity, ClusterState]:
        """The state up to the last entry: any of them may have been committed by those who are gone."""
        identity = stored.identity
        if identity is None or not identity.cluster_id:
            raise RefusedError(f"{self.data} was never part of a cluster", "start it with `pgr-supervise`")
        snapshot = stored.snapshot
        state = load(snapshot.data) if snapshot is not None else found(identity.charter, identity.cluster_id)
        for entry in stored.entries:
            state = apply(state, entry)
        return identity, state

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
        self._lock.release()

    def look(self) -> tuple[recovery.Outlook, Refusal | None]:
        stored, me = self.stored, self.identity.name
        history = stored.record.history
        # Of a copy that has not passed its proof, and of data that is not seen here, nothing is known.
        known = bool(history) and stored.record.proof is None and bool(self._mark())
        position = Position(history[-1].epoch, 0) if known else None
        last = stored.entries[-1] if stored.entries else stored.snapshot
        end = (last.term, last.index) if last is not None else (0, 0)
        reports: dict[str, Report] = {}
        outlook = recovery.foresee(self.state, self.identity.cluster_id, me, reports, position, (), end)
        no = recovery.not_lost(self.state, me, "", frozenset()) or recovery.unfit(
            self.state, self.identity, stored.record
        )
        return outlook, no or self._unlike()

    def _unlike(self) -> Refusal | None:
        """The data directory, where it lies in the usual place, is that of this life of the node."""
        mark = self._mark()
        if not mark or mark.get("incarnation") == self.identity.incarnation:
            return None
        reason = f"the data in {self.data / 'pgdata'} is of another life of this node than its Raft state"
        return Refusal(78, reason, "run it on another member; " + ANEW.format(mark=MARK))

    def _mark(self) -> dict[str, Any]:
        mark: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # elsewhere, or damaged: the start will tell
            mark = json.loads((self.data / "pgdata" / MARK).read_text(encoding="utf-8"))
        return mark

    def recover(self, outlook: recovery.Outlook, by: str) -> None:
        """Waits until every lease that this node has acknowledged is over, then saves. RefusedError, DiskError."""
        _wait(self.timings.election_ms / 1000)
        stored = self.stored
        last = stored.entries[-1] if stored.entries else stored.snapshot
        if self._store is None or last is None:
            raise RefusedError("there is no log to go on from", "begin anew with empty data directories")
        write = recovery.rebuild(
            self.identity, stored.hard, stored.record, last.index, self.state, outlook,
            cluster_id=os.urandom(16).hex(), chance=int.from_bytes(os.urandom(4)), at=utc_now(), by=by,
        )  # fmt: skip
        try:
            self._store.save(write)
        except StorageError as error:
            raise _failure(error) from error


def _wait(seconds: float) -> None:
    """Nothing tells that a lease of others has ended, but time."""
    threading.Event().wait(seconds)


def _become_owner(data: Path) -> None:
    """What root wrote there the node could not read any more: from here on this process is the owner's."""
    owner = data.stat()
    if owner.st_uid == os.geteuid():
        return
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
        return
    name = str(owner.st_uid)
    with suppress(KeyError):
        name = data.owner()
    raise MissingError(f"`{data}` belongs to another user", f"run this as its owner: `sudo -u {name} pgr ...`")


def _failure(error: StorageError) -> PgrError:
    kind = DiskError if error.exit_code == DiskError.exit_code else RefusedError
    return kind(str(error), "look at the disk; if another member is left, run it there")


def plain(outlook: recovery.Outlook, refusal: Refusal | None) -> dict[str, Any]:
    """As the node that runs answers a dry run."""
    said = None if refusal is None else {"code": refusal.code, "error": refusal.reason, "hint": refusal.hint}
    body = {"from": "", "to": outlook.survivor, "refusal": said, "outlook": recovery.plain(outlook)}
    found: dict[str, Any] = json.loads(canonical(body))
    return found
