"""What a node must never forget, in one SQLite file: identity, term and vote, log, snapshot, promise, term history.

Everything one save says is one transaction, on disk when ``save`` returns: hashicorp/raft once wrote term and vote in
two and voted twice after a crash between them (research/raft.md). WAL journal with synchronous=FULL;
locking_mode=EXCLUSIVE keeps a second process out and needs no mapped -shm file, which would kill the process (SIGBUS)
when the disk is full.

SQLite checks the shape of its pages but not what is in them, and takes a broken write-ahead log for a shorter one.
So each row carries a hash, each save a number and a seal over everything, and `tally.py` notes the number in a second
file. What is damaged is refused, at every start anew. Not noticed: a complete old copy of the directory, and what
`tally.py` names.

After a million entries of 300 bytes, compacted as node.py does, the store is below 8 MiB, nearly all of it write-ahead
log, and a start takes less than a second.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from consensus.digest import blake2b
from consensus.messages import Entry, HardState, Snapshot
from consensus.peerwire import PeerWireError, from_plain, loads, to_plain
from consensus.record import Identity, NodeRecord
from consensus.tally import PlainFile, Tally, sync_directory
from consensus.write import Stored, Write

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x50475231
_LOCK_WAIT_S = 0.2
_PAGES_BYTES = 3 * 4096
"""What one changed fact may cost in the write-ahead log, its text not counted: pages are logged whole."""
_ROW_BYTES = 160
"""What an entry costs, its data not counted: itself, and its deletion later on."""
FOLD_AFTER_BYTES = 4 << 20
"""The write-ahead log is folded into the file before a save once about this much was saved since; by hand, because
SQLite says nothing of errors when it does so by itself."""
TALLY_SUFFIX = "-saves"
"""Named like SQLite's own ``-wal``, so that ``raft.sqlite*`` is all that belongs together."""
WAY_BACK = (
    "The way back: move the Raft directory away and start this node again. It is then let in as a new one, whose vote "
    "and copy begin anew"
)
_SCHEMA = (
    # The hash before the text: a snapshot fills many pages, and the seal needs the hashes only.
    "CREATE TABLE facts (name TEXT PRIMARY KEY, hash BLOB NOT NULL, json TEXT NOT NULL) WITHOUT ROWID",
    'CREATE TABLE log ("index" INTEGER PRIMARY KEY, term INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL,'
    " hash BLOB NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_SAVES = "saves"
_SCHEMA_FACT = "schema"
"""Whatever later versions change, this row stays what it is: by it an older one knows that a file is newer."""
T = TypeVar("T", HardState, Snapshot, NodeRecord, Identity)


class Cursor(Protocol):
    """What `Store` needs of a cursor of sqlite3 or apsw."""

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """What `Store` needs of a connection: one of sqlite3 with ``isolation_level=None``, or one of apsw."""

    @property
    def in_transaction(self) -> bool: ...

    def execute(self, sql: str, parameters: tuple[str | int | bytes, ...] = ..., /) -> Cursor: ...

    def close(self) -> None: ...


class StorageError(Exception):
    """The disk failed; what was being saved may or may not be there, so this process must end (``exit_code``)."""

    exit_code = 74


class StorageFullError(StorageError):
    """No room. Nothing was saved and the same may be tried again (after a restart it may turn out to be there)."""


class StorageCorruptError(StorageError):
    """The file cannot be trusted: this node must not vote on what is left of it."""


class StorageBusyError(StorageError):
    """Another process has the file open."""

    exit_code = 78


class StorageNewerError(StorageError):
    """A newer version of pgr has written the file."""

    exit_code = 78


class Store:
    """Owner of the connection and of the tally, both closed by `close`. One thread."""

    def __init__(self, connection: Connection, tally: Tally) -> None:
        """Takes the lock, creates the schema if the file is empty, asks the tally.
        StorageBusyError, StorageNewerError, StorageCorruptError, StorageFullError, StorageError."""
        self._connection, self._tally = connection, tally
        self._path = "the store"
        self._failed = ""
        self._saves = 0
        self._unfolded_bytes = 0
        self._settled = False
        with self._translated():
            execute = connection.execute
            self._path = str(execute("PRAGMA database_list").fetchone()[2] or self._path)
            # The lock mode first: it is what makes WAL work without shared memory.
            execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            execute("PRAGMA synchronous = FULL").fetchall()
            # Here and wherever something is done: fetchall, since only the last step tells of an error.
            [(mode,)] = execute("PRAGMA journal_mode = WAL").fetchall()
            if mode != "wal":
                raise StorageError(f"{self._path}: SQLite offers no write-ahead log here (journal mode {mode})")
            execute("PRAGMA wal_autocheckpoint = 0").fetchall()
            execute(f"PRAGMA journal_size_limit = {FOLD_AFTER_BYTES}").fetchall()
            execute("PRAGMA cell_size_check = ON").fetchall()
            with self._transaction():
                fresh = self._create_or_check()
            if fresh:
                self._settle()

    def load(self) -> Stored:
        """Everything, and from now on it is on disk (what a process killed before its fsync has left need not be).

        StorageCorruptError, with nothing written, if pages, hashes, JSON, or the order of the log are not as saved;
        StorageFullError, StorageError.
        """
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
            stored = Stored(self._fact("identity", Identity), hard, snapshot, entries, record)
            if not self._settled:
                self._settle()
            return stored

    def save(self, write: Write) -> None:
        """Durable when it returns; else StorageFullError (may be tried again) or StorageError (exit).

        ValueError, with nothing saved, for what no correct Raft core asks for: a gap in the log, a committed entry
        taken back, a lower term, a second vote in a term, a lower promise.
        """
        if self._failed:
            raise StorageError(f"{self._path}: not used any more after an earlier failure: {self._failed}")
        with self._translated():
            if not self._settled:
                self._settle()
            if self._unfolded_bytes >= FOLD_AFTER_BYTES:
                self._fold("PASSIVE")  # before the save, so that an error says: nothing was saved
                self._tally.sync()
            with self._numbered():
                self._save_log(write)
                if write.hard is not None:
                    self._check_hard(write.hard)
                    self._set_fact("hard", write.hard)
                if write.record is not None:
                    self._check_record(write.record)
                    self._set_fact("record", write.record)
                if write.identity is not None:
                    self._set_fact("identity", write.identity)

    def close(self) -> None:
        """Gives the lock back; the write-ahead log is folded into the file."""
        with self._translated():
            try:
                self._connection.close()
            finally:
                self._tally.close()

    def _settle(self) -> None:
        """What can be read is on disk, and no older log can come back.

        A process that was killed before its fsync leaves pages that are only in the kernel's memory. This node will
        speak of them as saved, so they are copied into the file, which is synced. (In a fresh store, the schema: else a
        copy without the log would look like a new one.) Then the log begins anew, synced too: else a power cut could
        bring the old one back without what a failed fsync has lost of it, and its pages would hide those in the file.
        """
        self._fold("TRUNCATE")
        with self._numbered():
            pass
        self._tally.sync()
        self._settled = True

    def _create_or_check(self) -> bool:
        """True: it was created."""
        execute = self._connection.execute
        (application,) = execute("PRAGMA application_id").fetchone()
        (version,) = execute("PRAGMA user_version").fetchone()
        (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
        noted = self._tally.newest()
        if not tables and not application:
            if noted:
                raise self._corrupt(f"it is empty, though {noted} saves were made")
            # On disk before anything is saved, so that its absence always means that it was taken away.
            self._tally.note(0)
            self._tally.sync()
            for statement in _SCHEMA:
                execute(statement).fetchall()
            self._saves = 1
            self._put(_SCHEMA_FACT, str(SCHEMA_VERSION))
            self._put(_SAVES, self._seal(1))
            return True
        if application != _APPLICATION_ID:
            raise self._corrupt("it is a database of some other program")
        if version != SCHEMA_VERSION:
            if self._text(_SCHEMA_FACT) != str(version):  # the header has no checksum, this has
                raise self._corrupt(f"its header says schema {version}, which nobody wrote")
            raise StorageNewerError(
                f"{self._path}: written by a newer pgr (schema {version}, this one knows {SCHEMA_VERSION}): "
                "start that version"
            )
        self._saves = self._count()
        if noted is None:
            raise self._corrupt(f"{self._path}{TALLY_SUFFIX} is missing or empty: an incomplete copy?")
        if self._saves < noted:
            raise self._corrupt(
                f"it ends at save {self._saves} of {noted}: its write-ahead log {self._path}-wal is lost or damaged"
            )
        if self._text(_SAVES) != self._seal(self._saves):
            raise self._corrupt(f"it is not what save {self._saves} left")
        return False

    def _count(self) -> int:
        """The number of the newest save, the first part of its seal."""
        text = self._text(_SAVES)
        if text is None:
            raise self._corrupt("it does not say how often it was saved")
        return int(text.split()[0])

    def _seal(self, saves: int) -> str:
        """Over all that is stored now but the insides of the log: finds a row that is gone, a page of an older time."""
        (last,) = self._connection.execute('SELECT max("index") FROM log').fetchone()
        rows = self._connection.execute("SELECT name, hex(hash) FROM facts WHERE name <> ? ORDER BY name", (_SAVES,))
        text = "\n".join(f"{name} {digest}" for name, digest in rows)
        return f"{saves} {last or 0} {_hash(_SAVES, text).hex()}"

    def _fold(self, mode: str) -> None:
        """Copies the write-ahead log into the file, which is synced; the log begins anew."""
        [(busy, *_)] = self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        if busy:
            raise StorageError(f"{self._path}: its write-ahead log cannot be folded into it")
        self._unfolded_bytes = 0

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
            self._unfolded_bytes += len(entry.data) + _ROW_BYTES

    def _check_hard(self, hard: HardState) -> None:
        before = self._fact("hard", HardState) or HardState()
        if hard.term < before.term or hard.released < before.released:
            raise ValueError(f"{before} cannot become {hard}: terms only grow")
        if hard.term == before.term and before.vote not in {"", hard.vote}:
            raise ValueError(f"{before} cannot become {hard}: one vote a term")
        (last,) = self._connection.execute('SELECT max("index") FROM log').fetchone()
        if hard.commit > (self._snapshot_index() if last is None else last):
            raise ValueError(f"commit index {hard.commit} lies beyond the log")

    def _check_record(self, record: NodeRecord) -> None:
        before = self._fact("record", NodeRecord) or NodeRecord()
        if record.promised < before.promised:
            raise ValueError(f"promise {before.promised} cannot become {record.promised}")

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
        row = (name, _hash(name, text), text)
        self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", row).fetchall()
        self._unfolded_bytes += _PAGES_BYTES + len(text)

    @contextlib.contextmanager
    def _numbered(self) -> Iterator[None]:
        """A transaction that ends with the next number and its seal; noted once it is on disk."""
        with self._transaction():
            yield
            self._put(_SAVES, self._seal(self._saves + 1))
        self._saves += 1
        try:
            self._tally.note(self._saves)
        except OSError as error:
            self._failed = f"{self._path}{TALLY_SUFFIX}: {error.strerror}"
            raise StorageError(f"{self._failed}: look for a failing disk or a read-only file system") from error

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
        except UnicodeDecodeError as error:  # apsw's word for text that is not UTF-8
            raise self._corrupt(str(error)) from error
        except (StorageError, ValueError):
            raise
        except OSError as error:  # of the tally
            raise self._os_failure(error) from error
        except Exception as error:
            code = getattr(error, "sqlite_errorcode", getattr(error, "extendedresult", None))
            if code is None and isinstance(error, sqlite3.OperationalError):  # that of the standard library
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
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}:
            # ERROR: our statements never change, so the tables are not those that were made.
            return self._corrupt(str(error))
        return StorageError(
            f"{self._path}: {error}: look for a failing disk, a quota, a file size limit or a read-only file system"
        )

    def _os_failure(self, error: OSError) -> StorageError:
        self._failed = str(error)
        return _os_failure(error, self._path)

    def _corrupt(self, what: str) -> StorageCorruptError:
        self._failed = what
        return _damaged(self._path, what)


def open_store(path: Path) -> Store:
    """The store at ``path`` (``DIR/raft/raft.sqlite``), made if missing: directory 0700, file 0600. Errors as Store."""
    tally = Tally(PlainFile(path.with_name(path.name + TALLY_SUFFIX)))
    try:
        _prepare(path)
        connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
    except OSError as error:
        raise _os_failure(error, str(path)) from error
    except sqlite3.Error as error:
        raise StorageError(f"{path}: {error}: user {os.geteuid()} must be able to read and write it") from error
    try:
        return Store(connection, tally)
    except BaseException:
        connection.close()
        tally.close()
        raise


def refuse_orphaned_log(path: str, file_bytes: int, *, log_exists: bool) -> None:
    """SQLite deletes a write-ahead log whose file is empty (``file_bytes`` 0: or missing), and with it the last trace
    of what was saved. No crash leaves one: the file has its first page before the log is made. StorageCorruptError."""
    if log_exists and not file_bytes:
        raise _damaged(path, "it is empty or missing, but its write-ahead log is there")


def _damaged(path: str, what: str) -> StorageCorruptError:
    return StorageCorruptError(
        f"{path} is damaged ({what}). Do not repair it or put an old copy in its place, it holds votes and promises: "
        f"check the disk and keep this node stopped; the others go on without it. {WAY_BACK}"
    )


def _os_failure(error: OSError, path: str) -> StorageError:
    where = error.filename or path
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFullError(f"{where}: no room on this file system: make some, then start this node again")
    if error.errno in {errno.EROFS, errno.EIO}:
        return StorageError(f"{where}: {error.strerror}: look for a failing disk or a read-only file system")
    return StorageError(f"{where}: {error.strerror}: user {os.geteuid()} must own it")


def _prepare(path: Path) -> None:
    """Never opens an existing file: closing any descriptor of it would drop SQLite's lock (POSIX)."""
    directory = path.parent
    made = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in {directory.parent, *(each.parent for each in made)}:  # also if an earlier start died before it
        sync_directory(each)
    if stat.S_IMODE(directory.stat().st_mode) & 0o077:
        directory.chmod(0o700)
    log_exists = path.with_name(path.name + "-wal").exists()  # first: another process may just be making both
    refuse_orphaned_log(str(path), path.stat().st_size if path.exists() else 0, log_exists=log_exists)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    sync_directory(directory)


def _hash(name: str, plain: Any) -> bytes:
    text = plain if isinstance(plain, str) else json.dumps(plain, separators=(",", ":"), sort_keys=True)
    return blake2b(f"{name}\n{text}".encode(), digest_size=16).digest()
