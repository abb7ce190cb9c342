"""What a node must never forget, in one SQLite file: identity, term and vote, log, snapshot, promise, term history.

Everything one save says is one transaction, on disk when ``save`` returns: hashicorp/raft once wrote term and vote in
two and voted twice after a crash between them (research/raft.md). WAL journal with synchronous=FULL;
locking_mode=EXCLUSIVE keeps a second process out and needs no mapped -shm file, which would kill the process (SIGBUS)
when the disk is full. Rows carry a hash, since SQLite checks the shape of its pages but not what is in them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from consensus.digest import blake2b
from consensus.messages import Entry, HardState, Snapshot
from consensus.peerwire import PeerWireError, from_plain, loads, to_plain
from consensus.record import Identity, NodeRecord
from consensus.write import Stored, Write

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x50475231
_LOCK_WAIT_S = 0.2
_SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, json TEXT NOT NULL, hash BLOB NOT NULL) WITHOUT ROWID",
    'CREATE TABLE log ("index" INTEGER PRIMARY KEY, term INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL,'
    " hash BLOB NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
T = TypeVar("T", HardState, Snapshot, NodeRecord, Identity)


class StorageError(Exception):
    """The disk failed; what was being saved may or may not be there, so this process must end (``exit_code``)."""

    exit_code = 74


class StorageFullError(StorageError):
    """No room. The store still has its old state."""


class StorageCorruptError(StorageError):
    """The file cannot be trusted: this node must not vote on what is left of it."""


class StorageBusyError(StorageError):
    """Another process has the file open."""

    exit_code = 78


class StorageNewerError(StorageError):
    """A newer version of pgr has written the file."""

    exit_code = 78


class Store:
    """Owner of the connection, which must be in autocommit mode (``isolation_level=None``). One thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Takes the lock, creates the schema if the file is empty. StorageBusyError, StorageNewerError,
        StorageCorruptError, StorageError."""
        self._connection = connection
        self._path = "the store"
        self._failed = ""
        with self._translated():
            execute = connection.execute
            self._path = str(execute("PRAGMA database_list").fetchone()[2] or "memory")
            # The lock mode first: it is what makes WAL work without shared memory.
            execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            (mode,) = execute("PRAGMA journal_mode = WAL").fetchone()
            if mode not in {"wal", "memory"}:
                raise StorageError(f"{self._path}: SQLite offers no write-ahead log here (journal mode {mode})")
            execute("PRAGMA synchronous = FULL").fetchall()
            execute("PRAGMA journal_size_limit = 4194304").fetchall()
            execute("PRAGMA cell_size_check = ON").fetchall()
            with self._transaction():
                self._create_or_check()

    def load(self) -> Stored:
        """Everything; StorageCorruptError if pages, hashes, JSON, or the order of the log are not as saved."""
        with self._translated():
            problems = self._connection.execute("PRAGMA integrity_check(1)").fetchall()
            if [tuple(row) for row in problems] != [("ok",)]:
                raise self._corrupt(f"integrity check: {problems[0][0]}")
            snapshot = self._fact("snapshot", Snapshot)
            hard = self._fact("hard", HardState) or HardState()
            if self._snapshot_index() != (snapshot.index if snapshot else 0):
                raise self._corrupt("the snapshot is not the one it should be")
            entries = tuple(self._entries(snapshot))
            last = entries[-1].index if entries else snapshot.index if snapshot else 0
            if hard.commit > last:
                raise self._corrupt(f"the log ends at {last}, before the commit index {hard.commit}")
            record = self._fact("record", NodeRecord) or NodeRecord()
            return Stored(self._fact("identity", Identity), hard, snapshot, entries, record)

    def save(self, write: Write) -> None:
        """Durable when it returns; else StorageFullError (old state, may be tried again) or StorageError (exit).

        ValueError, with nothing saved, for what no correct Raft core asks for: a gap in the log, a committed entry
        taken back, a lower term, a second vote in a term, a lower promise.
        """
        if self._failed:
            raise StorageError(f"{self._path}: not used any more after an earlier failure: {self._failed}")
        with self._translated(), self._transaction():
            self._save_log(write)
            if write.hard is not None:
                self._check_hard(write.hard)
                self._set_fact("hard", write.hard)
            if write.record is not None:
                before = self._fact("record", NodeRecord) or NodeRecord()
                if write.record.promised < before.promised and write.identity is None:
                    raise ValueError(f"promise {before.promised} cannot become {write.record.promised}")
                self._set_fact("record", write.record)
            if write.identity is not None:
                self._set_fact("identity", write.identity)

    def close(self) -> None:
        """Gives the lock back; the write-ahead log is folded into the file."""
        with self._translated():
            self._connection.close()

    def _create_or_check(self) -> None:
        execute = self._connection.execute
        (application,) = execute("PRAGMA application_id").fetchone()
        (version,) = execute("PRAGMA user_version").fetchone()
        (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables and not application:
            for statement in _SCHEMA:
                execute(statement).fetchall()
        elif application != _APPLICATION_ID:
            raise self._corrupt("it is a database of some other program")
        elif version > SCHEMA_VERSION:
            raise StorageNewerError(
                f"{self._path}: written by a newer pgr (schema {version}, this one knows {SCHEMA_VERSION}): "
                "start that version"
            )

    def _save_log(self, write: Write) -> None:
        execute = self._connection.execute
        if write.truncate_from is not None:
            hard = self._fact("hard", HardState) or HardState()
            if write.truncate_from <= max(hard.commit, self._snapshot_index()):
                raise ValueError(f"committed entries cannot be taken back from {write.truncate_from} on")
            execute('DELETE FROM log WHERE "index" >= ?', (write.truncate_from,)).fetchall()
        if write.snapshot is not None:
            if write.snapshot.index < self._snapshot_index():
                raise ValueError(f"snapshot {write.snapshot.index} is older than the one stored")
            self._set_fact("snapshot", write.snapshot)
            execute('DELETE FROM log WHERE "index" <= ?', (write.snapshot.index,)).fetchall()
        if write.entries or write.snapshot is not None:
            self._append([each for each in write.entries if not write.snapshot or each.index > write.snapshot.index])

    def _append(self, entries: Sequence[Entry]) -> None:
        base = self._snapshot_index()
        (first, last) = self._connection.execute('SELECT min("index"), max("index") FROM log').fetchone()
        if first is not None and first != base + 1:
            raise ValueError(f"the log would begin at {first} after a snapshot at {base}")
        after = base if last is None else last
        for index, entry in enumerate(entries, after + 1):
            if entry.index != index:
                raise ValueError(f"entry {entry.index} does not follow {index - 1}")
            row = (*from_plain(Entry, to_plain(entry)), _hash("entry", to_plain(entry)))
            self._connection.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?)", row).fetchall()

    def _check_hard(self, hard: HardState) -> None:
        before = self._fact("hard", HardState) or HardState()
        if hard.term < before.term or hard.released < before.released:
            raise ValueError(f"{before} cannot become {hard}: terms only grow")
        if hard.term == before.term and before.vote not in {"", hard.vote}:
            raise ValueError(f"{before} cannot become {hard}: one vote a term")
        (last,) = self._connection.execute('SELECT max("index") FROM log').fetchone()
        if hard.commit > (self._snapshot_index() if last is None else last):
            raise ValueError(f"commit index {hard.commit} lies beyond the log")

    def _snapshot_index(self) -> int:
        """Kept beside the snapshot, so that a save need not parse a megabyte to learn one number."""
        text = self._text("snapshot.index")
        return int(text) if text is not None else 0

    def _entries(self, snapshot: Snapshot | None) -> Iterator[Entry]:
        index, term = (snapshot.index, snapshot.term) if snapshot else (0, 0)
        rows = self._connection.execute('SELECT "index", term, kind, data, hash FROM log ORDER BY "index"')
        for *values, digest in rows:
            try:
                entry = from_plain(Entry, dict(zip(Entry._fields, values, strict=True)))
            except PeerWireError as error:
                raise self._corrupt(f"log entry {values[0]}: {error}") from error
            if entry.index != index + 1:
                raise self._corrupt(f"the log goes from {index} to {entry.index}")
            if digest != _hash("entry", to_plain(entry)):
                raise self._corrupt(f"log entry {entry.index} is not what was saved")
            if entry.term < term:
                raise self._corrupt(f"log entry {entry.index} has a lower term than the one before it")
            index, term = entry.index, entry.term
            yield entry

    def _fact(self, name: str, kind: type[T]) -> T | None:
        text = self._text(name)
        try:
            return None if text is None else from_plain(kind, loads(text))
        except PeerWireError as error:
            raise self._corrupt(f"{name}: {error}") from error

    def _text(self, name: str) -> str | None:
        row = self._connection.execute("SELECT json, hash FROM facts WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        text, digest = row
        if type(text) is not str or digest != _hash(name, text):
            raise self._corrupt(f"{name} is not what was saved")
        return text

    def _set_fact(self, name: str, value: HardState | Snapshot | NodeRecord | Identity) -> None:
        plain = to_plain(value)
        from_plain(type(value), plain)
        self._put(name, json.dumps(plain, separators=(",", ":")))
        if isinstance(value, Snapshot):
            self._put("snapshot.index", str(value.index))

    def _put(self, name: str, text: str) -> None:
        row = (name, text, _hash(name, text))
        self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", row).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE").fetchall()
        try:
            yield
            self._connection.execute("COMMIT").fetchall()
        except BaseException:
            if self._connection.in_transaction:  # SQLite has already rolled back after some errors
                self._connection.execute("ROLLBACK").fetchall()
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of SQLite (of the standard library or apsw) as ours. After any but "full" nothing is saved again:
        once an fsync has failed, the kernel may report success for data that is lost."""
        try:
            yield
        except (StorageError, ValueError):
            raise
        except Exception as error:
            code = getattr(error, "sqlite_errorcode", getattr(error, "extendedresult", None))
            if code is None and isinstance(error, sqlite3.OperationalError):  # such as text that is not UTF-8
                raise self._corrupt(str(error)) from error
            if code is None:
                raise
            raise self._failure(code & 0xFF, error) from error

    def _failure(self, code: int, error: Exception) -> StorageError:
        if code == sqlite3.SQLITE_FULL:
            return StorageFullError(f"{self._path}: no room on this file system: make some, then start this node again")
        self._failed = str(error)
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return StorageBusyError(
                f"{self._path} is in use by another process: is a second pgr-supervise running on this data directory? "
                "Stop one of them"
            )
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return self._corrupt(str(error))
        return StorageError(
            f"{self._path}: {error}: look for a failing disk, a quota, a file size limit or a read-only file system"
        )

    def _corrupt(self, what: str) -> StorageCorruptError:
        return StorageCorruptError(
            f"{self._path} is damaged ({what}). Do not repair it or put an old copy in its place, it holds votes and "
            "promises: check the disk and keep this node stopped; the others go on without it"
        )


def open_store(path: Path) -> Store:
    """The store at ``path`` (``DIR/raft/raft.sqlite``), made if missing: directory 0700, file 0600. Errors as Store."""
    try:
        _prepare(path)
        connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
    except OSError as error:
        raise StorageError(f"{error.filename or path}: {error.strerror}: user {os.geteuid()} must own it") from error
    except sqlite3.Error as error:
        raise StorageError(f"{path}: {error}: user {os.geteuid()} must be able to read and write it") from error
    try:
        return Store(connection)
    except BaseException:
        connection.close()
        raise


def _prepare(path: Path) -> None:
    """Never opens an existing file: closing any descriptor of it would drop SQLite's lock (POSIX)."""
    directory = path.parent
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True)
        _sync_directory(directory.parent)
    if stat.S_IMODE(directory.stat().st_mode) & 0o077:
        directory.chmod(0o700)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(name: str, plain: Any) -> bytes:
    text = plain if isinstance(plain, str) else json.dumps(plain, separators=(",", ":"), sort_keys=True)
    return blake2b(f"{name}\n{text}".encode(), digest_size=16).digest()
