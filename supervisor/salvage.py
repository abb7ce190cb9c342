"""WAL that a rewind would drop: what of it, kept where, read how. Saved first, with a line in the history.

What is saved lies in ``DIR/salvage/TIME-wal/``: the segments, and ``salvage.json`` that says what they are. It is made
under another name and renamed when it is complete and on disk; a second attempt at the same rewind finds it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from consensus import clusterwide
from consensus.positions import Ancestry
from fencing.clock import now_ns
from fencing.lease import MS
from fencing.logs import utc_now
from supervisor import files, jobs, timelines
from supervisor.context import Context
from supervisor.tasks import Task, Wait

WAL, PART = "-wal", ".part"
MANIFEST = "salvage.json"
TELL_MS = 5_000
"""The line in the history is waited for no longer than this: what counts is on this disk."""
ANEW_MS = 1_000


class Piece(NamedTuple):
    """WAL of one timeline that the primary does not have."""

    timeline: int
    start_lsn: int
    end_lsn: int


@dataclass(frozen=True, slots=True)
class Salvage:
    """What was saved. LSNs as text, ``X/Y``."""

    node: str
    at: str
    primary: str
    """Whose history does not have it."""
    bytes_salvaged: int
    """Of WAL that goes, not of the files that hold it."""
    first: str
    last: str
    timelines: tuple[int, ...]
    place: str
    command: str
    """Shows it."""

    @property
    def text(self) -> str:
        """The line of the history."""
        number = ", ".join(map(str, self.timelines))
        what = f"{self.bytes_salvaged} bytes of WAL that {self.primary} does not have, {self.first} to {self.last}"
        return f"saved {what} on timeline {number or '?'}, before they go; read them with: {self.command}"


# -- pure --------------------------------------------------------------------------------------------------------------


def fork(ancestry: Ancestry, history: Ancestry) -> tuple[int, int]:
    """``(lsn, timeline)``: up to where, and on which timeline, this node's WAL is that of the primary; (0, 0): nowhere.

    The least of the later starts on either side: an epoch that never wrote a byte may begin after the one that
    replaced it.
    """
    common = [e for e in history if e in ancestry]
    if not common:
        return 0, 0
    last = common[-1]
    later = [*ancestry[ancestry.index(last) + 1 :], *history[history.index(last) + 1 :]]
    return min((e.start_lsn for e in later), default=last.start_lsn), last.timeline


def pieces(ancestry: Ancestry, history: Ancestry, end_lsn: int) -> tuple[Piece, ...]:
    """The WAL up to ``end_lsn`` of a node with this term history that is not in ``ancestry``, oldest first."""
    at, _ = fork(ancestry, history)
    found = []
    for i, epoch in enumerate(history):
        end = min([end_lsn, *(e.start_lsn for e in history[i + 1 :])])
        start = max(epoch.start_lsn, at)
        if start < end:
            found.append(Piece(epoch.timeline, start, end))
    return tuple(found)


def to_keep(names: Sequence[str], at: int, timeline: int, segment_bytes: int) -> list[str]:
    """Of the files of pg_wal the segments that hold anything from ``at`` on, of ``timeline`` or a later one."""
    found = []
    for name in sorted(names):
        try:
            start = timelines.segment_start(name, segment_bytes)
        except ValueError:
            continue
        if int(name[:8], 16) >= timeline and start + segment_bytes > at:
            found.append(name)
    return found


def command(place: Path, parts: Sequence[Piece]) -> str:
    """What shows this WAL, for a shell."""
    shown = [
        f"pg_waldump --path={shlex.quote(str(place))} --timeline={p.timeline}"
        f" --start={timelines.format_lsn(p.start_lsn)} --end={timelines.format_lsn(p.end_lsn)}"
        for p in parts
    ]
    return " && ".join(shown) or f"pg_waldump --path={shlex.quote(str(place))} and a segment of it"


def describe(node: str, at: str, primary: str, place: Path, parts: tuple[Piece, ...]) -> Salvage:
    first, last = (parts[0].start_lsn, parts[-1].end_lsn) if parts else (0, 0)
    return Salvage(
        node, at, primary, sum(p.end_lsn - p.start_lsn for p in parts), timelines.format_lsn(first),
        timelines.format_lsn(last), tuple(p.timeline for p in parts), str(place), command(place, parts),
    )  # fmt: skip


def too_many(names: Sequence[str], keep: int) -> list[str]:
    """The oldest of the complete ones beyond ``keep``: names begin with the time. Data directories that
    were moved aside are not counted and never removed."""
    complete = sorted(name for name in names if name.endswith(WAL))
    return complete[: max(0, len(complete) - keep)]


# -- on this node ------------------------------------------------------------------------------------------------------


def place(c: Context, what: str) -> Path:
    """A new path in DIR/salvage, named by the time."""
    salvage = c.config.salvage_dir
    salvage.mkdir(mode=0o700, exist_ok=True)
    return salvage / f"{stamp()}-{what}"


def stamp() -> str:
    """The time, as names here begin: they sort by it."""
    return utc_now().replace(":", "").replace("-", "").replace(".", "")


def save_wal(c: Context, ancestry: Ancestry, primary: str) -> Task[Salvage]:
    """Save the WAL that a rewind to ``ancestry`` would drop; Postgres is down. OSError: it is not saved, so nothing may
    be dropped."""
    parts = pieces(ancestry, c.record.history, c.facts.lsn)
    target = place(c, WAL[1:])
    yield from _clear(c)
    earlier = _saved_before(c, parts)
    if earlier is not None:
        return earlier
    found = describe(c.local.me, utc_now(), primary, target, parts)
    part = target.with_name(target.name + PART)
    part.mkdir(mode=0o700)
    for name in to_keep(os.listdir(c.postgres.wal_dir), *fork(ancestry, c.record.history), c.wal_segment_bytes):
        shutil.copy2(c.postgres.wal_dir / name, part / name)
        files.sync_file(part / name)
        yield Wait(until_ns=now_ns())  # the loop has other things to do between two files
    files.write_atomically(part / MANIFEST, json.dumps(asdict(found) | {"pieces": parts}, indent=2).encode())
    part.rename(target)
    files.sync_directory(target.parent)
    c.log.info("salvage.saved", place=str(target), bytes=found.bytes_salvaged, command=found.command)
    keep = int(c.cluster.setting(clusterwide.SALVAGE_KEEP))
    # Not this one, whatever its name says: a clock may have stepped back, and the rewind is still to come.
    for name in too_many([n for n in os.listdir(target.parent) if n != target.name], keep - 1):
        c.log.warning("salvage.removed", expected=True, place=str(target.parent / name), kept=keep)
        yield from jobs.run_job(["rm", "-rf", str(target.parent / name)], c.children)
    return found


def _clear(c: Context) -> Task[None]:
    """What an attempt left that did not end: a copy of WAL that is still in PGDATA."""
    for path in c.config.salvage_dir.glob(f"*{WAL}{PART}"):
        yield from jobs.run_job(["rm", "-rf", str(path)], c.children)


def _saved_before(c: Context, parts: tuple[Piece, ...]) -> Salvage | None:
    """By an attempt that did not come to the rewind."""
    for path in sorted(c.config.salvage_dir.glob(f"*{WAL}")):
        try:
            body: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
            if parts and tuple(Piece(*p) for p in body.pop("pieces")) == parts:
                return Salvage(**body | {"timelines": tuple(body["timelines"])})
        except (OSError, ValueError, TypeError, KeyError):
            continue  # of an earlier version, or somebody else's
    return None


def tell(c: Context, saved: Salvage) -> Task[None]:
    """The line in the history, once. Without a leader's answer the rewind goes on: what counts is on disk."""

    def told() -> bool:
        return any(e.kind == "salvaged" and json.loads(e.fields).get("place") == saved.place for e in c.cluster.history)

    shown = ("bytes_salvaged", "first", "last", "timelines", "place", "command")
    fields = {name: getattr(saved, name) for name in shown}
    body = {
        "kind": "salvaged", "term": c.view.term, "node": saved.node, "text": saved.text, "fields": fields,
        "at": saved.at,
    }  # fmt: skip
    until_ns = now_ns() + TELL_MS * MS
    while not told() and now_ns() < until_ns:
        c.raft.tell("node.propose", {"kind": "event/1", "body": body})
        yield Wait(until_ns=min(until_ns, now_ns() + ANEW_MS * MS), ready=told)
    if not told():
        c.log.warning("salvage.untold", place=saved.place)
