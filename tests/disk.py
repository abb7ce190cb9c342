"""A simulated disk: files in memory that get lost, torn, full, rotten on demand, for SQLite (through apsw) and for us.

What a process writes can be read at once but is on disk only after a sync; a power cut lets any part of the rest
survive. Directory entries likewise: a new file needs a sync of its directory, a deletion too. `Disk.open_store` gives a
`Store` as `consensus.storage.open_store` would, on this disk instead of a real one.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import apsw

from consensus.storage import TALLY_SUFFIX, Store, refuse_orphaned_log
from consensus.tally import Tally

SECTOR_BYTES = 512
_SIMULATED = "simulated: "
MAIN, LOG, NOTE = "raft.sqlite", "raft.sqlite-wal", "raft.sqlite" + TALLY_SUFFIX


@dataclass(frozen=True, slots=True)
class Piece:
    """The smallest thing that survives a power cut or not: (a part of) one sector, a new length, a directory entry."""

    order: int
    """Of issue, over all files of the disk."""
    name: str
    kind: str
    """``write``, ``truncate``, or ``name`` (a file was made or deleted)."""
    inode: int
    offset: int = 0
    """``write``: where; ``truncate``: the new length; ``name``: 1 made, 0 deleted."""
    data: bytes = b""

    def torn(self, length: int) -> Piece:
        """Only its first ``length`` bytes arrived."""
        return replace(self, data=self.data[:length])


Survivors = Callable[[Sequence[Piece]], Iterable[Piece]]
"""From all pieces that no sync has covered, in order of issue, to those that are on disk after the power cut."""


def nothing(pieces: Sequence[Piece]) -> list[Piece]:
    return list(pieces[:0])


def everything(pieces: Sequence[Piece]) -> list[Piece]:
    return list(pieces)


def only_last(pieces: Sequence[Piece]) -> list[Piece]:
    return list(pieces[-1:])


def all_but_last(pieces: Sequence[Piece]) -> list[Piece]:
    return list(pieces[:-1])


def all_but_first(pieces: Sequence[Piece]) -> list[Piece]:
    return list(pieces[1:])


def every_second(pieces: Sequence[Piece]) -> list[Piece]:
    return list(pieces[::2])


def torn_last(pieces: Sequence[Piece]) -> list[Piece]:
    """Everything, the last write cut in the middle of its sector."""
    return [*pieces[:-1], *(piece.torn(len(piece.data) * 2 // 3) for piece in pieces[-1:])]


def only_names(pieces: Sequence[Piece]) -> list[Piece]:
    """The directory, but not a byte of what is in the files: a journaling file system likes to do this."""
    return [piece for piece in pieces if piece.kind == "name"]


def only_in(suffix: str) -> Survivors:
    return lambda pieces: [piece for piece in pieces if piece.name.endswith(suffix)]


def at_random(seed: int) -> Survivors:
    """Any subset; the last of them may be torn at any byte."""

    def choose(pieces: Sequence[Piece]) -> list[Piece]:
        dice = random.Random(seed)
        share = dice.choice((0.1, 0.5, 0.9))
        kept = [piece for piece in pieces if dice.random() < share]
        if kept and kept[-1].data and dice.random() < 0.5:
            kept[-1] = kept[-1].torn(dice.randrange(len(kept[-1].data)))
        return kept

    return choose


class _Inode:
    """One file: what can be read, what is on disk, and what lies between."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.content = bytearray()
        self.durable = bytearray()
        self.pending: list[Piece] = []

    def copy(self) -> _Inode:
        other = _Inode(self.number)
        other.content, other.durable, other.pending = self.content[:], self.durable[:], self.pending[:]
        return other


def _apply(data: bytearray, piece: Piece) -> None:
    if piece.kind == "truncate":
        del data[piece.offset :]
        data.extend(bytes(piece.offset - len(data)))
        return
    end = piece.offset + len(piece.data)
    data.extend(bytes(max(0, end - len(data))))
    data[piece.offset : end] = piece.data


def _sectors(piece: Piece) -> Iterable[Piece]:
    """A write as what a disk makes of it; anything else as it is."""
    if piece.kind != "write":
        yield piece
        return
    at, end = piece.offset, piece.offset + len(piece.data)
    while at < end:
        until = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield replace(piece, offset=at, data=piece.data[at - piece.offset : until - piece.offset])
        at = until


_numbers = itertools.count(1)
_disks: weakref.WeakValueDictionary[int, Disk] = weakref.WeakValueDictionary()


@dataclass(eq=False)
class Disk:
    """One directory of one node. Faults are attributes that may be set and reset at any time."""

    cut_at: int | None = None
    """The power goes at this write boundary (counted by ``boundaries``); call `power_cut` afterwards."""
    on_boundary: Callable[[Disk], None] | None = None
    """Called at each write boundary, when a write has been issued or just before a sync takes effect."""
    full_after_bytes: int | None = None
    """So many bytes are left for files to grow; None: plenty. Overwriting costs nothing, truncating gives back."""
    read_only: bool = False
    lies: bool = False
    """Syncs are reported as done and are not."""
    failing_syncs: list[str] = field(default_factory=list)
    """The next sync of a file whose name ends so fails once, and what it should have synced never gets to disk, as on
    Linux; what was written can still be read."""
    boundaries: int = 0
    syncs: int = 0
    off: bool = False

    def __post_init__(self) -> None:
        self.number = next(_numbers)
        self.life = 0
        self._inodes: dict[int, _Inode] = {}
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._pending_names: list[Piece] = []
        self._order = 0
        self._locks: dict[int, dict[int, int]] = {}
        _disks[self.number] = self
        _vfs()

    # -- for tests -----------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        return f"/{self.number}/{MAIN}"

    def open_store(self) -> Store:
        """As `consensus.storage.open_store`, errors included."""
        main = self._names.get(MAIN)
        refuse_orphaned_log(self.path, len(main.content) if main else 0, log_exists=LOG in self._names)
        if main is None:
            self.make(MAIN)
            self.sync_directory()
        connection = apsw.Connection(self.path, vfs=_vfs().name)
        try:
            return Store(connection, Tally(Note(self)))
        except BaseException:
            with contextlib.suppress(apsw.Error):  # the disk may fail this, too
                connection.close()
            raise

    def kill(self) -> None:
        """The process dies: its locks are gone, its handles dead; what it wrote can be read."""
        self.life += 1
        self._locks.clear()

    def power_cut(self, choose: Survivors) -> None:
        """The machine dies. What no sync covered survives as ``choose`` says."""
        kept: dict[int, list[Piece]] = {}
        for piece in choose(self.unsynced()):
            kept.setdefault(0 if piece.kind == "name" else piece.inode, []).append(piece)
        names = dict(self._durable_names)
        for piece in kept.get(0, []):
            if piece.offset:
                names[piece.name] = self._inodes[piece.inode]
            else:
                names.pop(piece.name, None)
        for inode in self._inodes.values():
            for piece in kept.get(inode.number, []):
                _apply(inode.durable, piece)
            inode.content, inode.pending = inode.durable[:], []
        self._names = names
        self._settle_names()
        self.kill()
        self.off, self.cut_at = False, None

    def unsynced(self) -> list[Piece]:
        """All that a power cut may take, in order of issue."""
        writes = [each for inode in self._inodes.values() for piece in inode.pending for each in _sectors(piece)]
        return sorted([*self._pending_names, *writes], key=lambda piece: (piece.order, piece.offset))

    def unsynced_in(self, name: str) -> int:
        """Bytes written to that file since its last sync."""
        inode = self._names.get(name)
        return sum(len(piece.data) for piece in inode.pending) if inode else 0

    def copy(self) -> Disk:
        """Another disk with the same files, synced and not, and no faults."""
        other = Disk()
        inodes = other._inodes = {number: inode.copy() for number, inode in self._inodes.items()}
        other._names = {name: inodes[inode.number] for name, inode in self._names.items()}
        other._durable_names = {name: inodes[inode.number] for name, inode in self._durable_names.items()}
        other._pending_names, other._order = self._pending_names[:], self._order
        return other

    def files(self) -> dict[str, bytes]:
        """What can be read."""
        return {name: bytes(inode.content) for name, inode in sorted(self._names.items())}

    def put(self, name: str, data: bytes | None) -> None:
        """A person puts a file there (or takes it away: None), and it is on disk."""
        self._names.pop(name, None)
        if data is not None:
            inode = self._new(name)
            inode.content, inode.durable = bytearray(data), bytearray(data)
        self._settle_names()

    def corrupt(self, name: str, offset: int, mask: int = 0xFF) -> None:
        """Bits of one byte flip, in what can be read and on the disk."""
        inode = self._names[name]
        for data in (inode.content, inode.durable):
            if offset < len(data):
                data[offset] ^= mask

    # -- the file system -----------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str) -> bytes | None:
        return bytes(self._names[name].content) if name in self._names else None

    def make(self, name: str) -> _Inode:
        inode = self._new(name)
        self._pending_names.append(Piece(self._next(), name, "name", inode.number, 1))
        self._boundary()
        return inode

    def delete(self, name: str) -> None:
        inode = self._names.pop(name)
        self._pending_names.append(Piece(self._next(), name, "name", inode.number, 0))
        self._boundary()

    def sync_directory(self) -> None:
        if not self.lies:
            self._settle_names()

    def _settle_names(self) -> None:
        self._durable_names, self._pending_names = dict(self._names), []
        self._inodes = {inode.number: inode for inode in self._names.values()}

    def _new(self, name: str) -> _Inode:
        inode = self._names[name] = _Inode(next(_numbers))
        self._inodes[inode.number] = inode
        return inode

    def inode(self, name: str) -> _Inode | None:
        return self._names.get(name)

    def write(self, name: str, inode: _Inode, data: bytes, offset: int) -> None:
        """`apsw.FullError` after writing what fits."""
        growth = max(0, offset + len(data) - len(inode.content))
        full = self.full_after_bytes is not None and growth > self.full_after_bytes
        if full:
            assert self.full_after_bytes is not None
            data = data[: max(0, len(data) - (growth - self.full_after_bytes))]
            growth = self.full_after_bytes
        if self.full_after_bytes is not None:
            self.full_after_bytes -= growth
        if data:
            self._change(inode, Piece(self._next(), name, "write", inode.number, offset, data))
        if full:
            raise _error(apsw.SQLITE_FULL)

    def truncate(self, name: str, inode: _Inode, size: int) -> None:
        if self.full_after_bytes is not None:
            self.full_after_bytes += max(0, len(inode.content) - size)
        self._change(inode, Piece(self._next(), name, "truncate", inode.number, size))

    def sync(self, name: str, inode: _Inode, *, directory: bool) -> None:
        self._boundary()
        self.syncs += 1
        failing = next((suffix for suffix in self.failing_syncs if name.endswith(suffix)), None)
        if failing is not None:
            self.failing_syncs.remove(failing)
            inode.pending.clear()
            raise _error(apsw.SQLITE_IOERR_FSYNC)
        if self.lies:
            return
        for piece in inode.pending:
            _apply(inode.durable, piece)
        inode.pending.clear()
        if directory:
            self.sync_directory()

    def lock(self, inode: _Inode, handle: int, level: int) -> None:
        """Levels of SQLite: 1 shared, 2 reserved, 3 pending, 4 exclusive."""
        held = self._locks.setdefault(inode.number, {})
        others = [other for who, other in held.items() if who != handle]
        if level == 1:
            free = all(other < 3 for other in others)
        else:
            free = all(other < (2 if level < 4 else 1) for other in others)
        if not free:
            raise _error(apsw.SQLITE_BUSY)
        held[handle] = level

    def unlock(self, inode: _Inode, handle: int, level: int) -> None:
        held = self._locks.get(inode.number, {})
        held.pop(handle, None)
        if level:
            held[handle] = level

    def reserved(self, inode: _Inode) -> bool:
        return any(level >= 2 for level in self._locks.get(inode.number, {}).values())

    def _change(self, inode: _Inode, piece: Piece) -> None:
        inode.pending.append(piece)
        _apply(inode.content, piece)
        self._boundary()

    def _next(self) -> int:
        self._order += 1
        return self._order

    def _boundary(self) -> None:
        self.boundaries += 1
        if self.on_boundary is not None:
            self.on_boundary(self)
        if self.cut_at is not None and self.boundaries >= self.cut_at:
            self.off = True
            raise _error(apsw.SQLITE_IOERR)


def _error(code: int) -> Exception:
    error = apsw.exception_for(code)
    error.args = (f"{_SIMULATED}{apsw.mapping_extended_result_codes.get(code) or apsw.mapping_result_codes[code]}",)
    return error


class Note:
    """The file of the tally; speaks OSError, as a real one does."""

    def __init__(self, disk: Disk) -> None:
        self._disk, self._life = disk, disk.life

    def read(self) -> bytes | None:
        self._check(writing=False)
        return self._disk.read(NOTE)

    def write(self, data: bytes) -> None:
        self._check(writing=True)
        with _as_os_errors():
            self._disk.write(NOTE, self._disk.inode(NOTE) or self._disk.make(NOTE), data, 0)

    def sync(self) -> None:
        self._check(writing=True)
        inode = self._disk.inode(NOTE)
        assert inode is not None
        with _as_os_errors():
            self._disk.sync(NOTE, inode, directory=True)

    def close(self) -> None:
        pass

    def _check(self, *, writing: bool) -> None:
        if self._disk.off or self._life != self._disk.life:
            raise OSError(5, "Input/output error", NOTE)
        if writing and self._disk.read_only:
            raise OSError(30, "Read-only file system", NOTE)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except apsw.FullError as error:
        raise OSError(28, "No space left on device", NOTE) from error
    except apsw.Error as error:
        raise OSError(5, "Input/output error", NOTE) from error


class _Handle(apsw.VFSFile):
    """An open file. Answers to nobody after its process has died."""

    def __init__(self, disk: Disk, name: str, inode: _Inode, *, read_only: bool, syncs_directory: bool) -> None:
        self._disk, self._name, self._inode, self._life = disk, name, inode, disk.life
        self._read_only, self._syncs_directory = read_only, syncs_directory

    def _alive(self, code: int, *, writing: bool = False) -> None:
        if self._disk.off or self._life != self._disk.life or (writing and (self._read_only or self._disk.read_only)):
            raise _error(code)

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self._inode.content[offset : offset + amount])

    def xWrite(self, data: object, offset: int) -> None:
        self._alive(apsw.SQLITE_IOERR_WRITE, writing=True)
        self._disk.write(self._name, self._inode, bytes(data), offset)  # type: ignore[call-overload]  # a Buffer

    def xTruncate(self, newsize: int) -> None:
        self._alive(apsw.SQLITE_IOERR_TRUNCATE, writing=True)
        self._disk.truncate(self._name, self._inode, newsize)

    def xSync(self, flags: int) -> None:
        self._alive(apsw.SQLITE_IOERR_FSYNC)
        self._disk.sync(self._name, self._inode, directory=self._syncs_directory)
        self._syncs_directory = False

    def xFileSize(self) -> int:
        return len(self._inode.content)

    def xLock(self, level: int) -> None:
        self._alive(apsw.SQLITE_IOERR_LOCK)
        self._disk.lock(self._inode, id(self), level)

    def xUnlock(self, level: int) -> None:
        if self._life == self._disk.life:
            self._disk.unlock(self._inode, id(self), level)

    def xCheckReservedLock(self) -> bool:
        return self._disk.reserved(self._inode)

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE  # what SQLite assumes of every file on Linux

    def xClose(self) -> None:
        self.xUnlock(0)


class _Vfs(apsw.VFS):
    """One for all disks; the path says which."""

    def __init__(self) -> None:
        self.name = "pgr-simulated-disk"
        super().__init__(self.name, "")

    def xFullPathname(self, name: str) -> str:
        return name

    def xAccess(self, pathname: str, flags: int) -> bool:
        disk, name = _locate(pathname)
        return disk.exists(name) and not (flags == apsw.SQLITE_ACCESS_READWRITE and disk.read_only)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        disk, name = _locate(filename)
        if disk.off or disk.read_only:
            raise _error(apsw.SQLITE_IOERR_DELETE)
        if not disk.exists(name):
            raise _error(apsw.SQLITE_IOERR_DELETE_NOENT)
        disk.delete(name)
        if syncdir:
            disk.sync_directory()

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _Handle:
        assert name is not None, "SQLite wants a temporary file, which the simulated disk does not have"
        disk, file = _locate(name if isinstance(name, str) else name.filename())
        if disk.off:
            raise _error(apsw.SQLITE_CANTOPEN)
        inode, new = disk.inode(file), False
        if inode is None:
            if disk.read_only or not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise _error(apsw.SQLITE_CANTOPEN)
            inode, new = disk.make(file), True
        flags[1] = flags[0]
        if disk.read_only:
            flags[1] = flags[0] & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) | apsw.SQLITE_OPEN_READONLY
        journal = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
        # unixOpen: the first sync of a journal that it has made syncs the directory too.
        return _Handle(disk, file, inode, read_only=disk.read_only, syncs_directory=new and bool(flags[0] & journal))


def _locate(path: str) -> tuple[Disk, str]:
    _, number, name = path.split("/")
    return _disks[int(number)], name


@functools.cache
def _vfs() -> _Vfs:
    sys.unraisablehook = functools.partial(_report, sys.unraisablehook)
    return _Vfs()


def _report(otherwise: Callable[[sys.UnraisableHookArgs], object], args: sys.UnraisableHookArgs) -> None:
    """A second error on the way out (SQLite rolls back, on a disk that is gone) is reported by apsw as unraisable."""
    if not (isinstance(args.exc_value, apsw.Error) and str(args.exc_value).startswith(_SIMULATED)):
        otherwise(args)
