"""Tablespaces of a copy: made beside what is there, put in its place when the copy is complete.

Their places are the same on every node and lie outside PGDATA, so the old copy's files are in the way of the new one's.
Everything happens inside the place itself, which Postgres's user owns (its parent it may not even be able to write to):
`PLACE/pgr.new` while the copy is made, `PLACE/pgr.replaced-STAMP` for what was there. Postgres looks at neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from supervisor import files

QUERY = (
    "SELECT oid::text, pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%'"
)
"""On the source. In-place ones lie inside PGDATA."""
NEW = "pgr.new"
REPLACED = "pgr.replaced-"
LINKS = "pg_tblspc"


class OccupiedPlaceError(Exception):
    """A place holds files that are no part of this node's copy."""


def mappings(places: Iterable[str]) -> dict[str, str]:
    """For pg_basebackup: where each place is copied to."""
    return {place: str(Path(place) / NEW) for place in places}


def links(pgdata: Path) -> dict[str, str]:
    """Place by OID, as this copy has them; empty if there is no copy."""
    try:
        entries = [entry for entry in os.scandir(pgdata / LINKS) if entry.is_symlink()]
    except FileNotFoundError:
        return {}
    return {entry.name: str(Path(entry.path).readlink()) for entry in entries}


def refuse_if_occupied(places: Mapping[str, str], copies: Iterable[Path]) -> None:
    """Raise OccupiedPlaceError if what is in a place belongs to another Postgres, or to a copy that is gone.

    ``copies``: this node's; one that was being put in place when the node went down counts.
    """
    mine = {target.removesuffix(f"/{NEW}") for copy in copies for target in links(copy).values()}
    for place in places.values():
        if place not in mine and _content(Path(place)):
            raise OccupiedPlaceError(
                f"the tablespace directory {place} holds files that are no part of this node's data: move them away, "
                "or give this node a file system of its own there"
            )


def put_in_place(new: Path, places: Mapping[str, str], replaced: Path | None, stamp: str) -> None:
    """Old files aside, the new ones where they belong, links of both copies to match. ``replaced``: the old copy, as it
    was moved aside. Not atomic: the caller's marker says that the copy is not one yet."""
    for oid, place in places.items():
        home, aside = Path(place), Path(place) / f"{REPLACED}{stamp}"
        old = _content(home)
        if old:
            aside.mkdir(mode=0o700)
            for entry in old:
                entry.rename(aside / entry.name)
        for entry in _content(home / NEW):
            entry.rename(home / entry.name)
        (home / NEW).rmdir()
        files.relink(new / LINKS / oid, place)
        if old and replaced is not None and (replaced / LINKS / oid).is_symlink():
            files.relink(replaced / LINKS / oid, str(aside))
        files.sync_directory(home)


def _content(place: Path) -> list[Path]:
    """What Postgres has there: one directory for each version."""
    return [entry for entry in place.glob("PG_*") if entry.is_dir()]

