"""pg_wal as a symlink: WAL on a disk of its own. A copy made anew keeps it there; what was there is kept beside it.

As with tablespaces everything happens inside the place, which Postgres's user owns (its parent, often a mount point's,
it may not even be able to write to): `PLACE/pgr.new` while the copy is made, `PLACE/pgr.replaced-STAMP` for what was
there. Postgres looks at neither.
"""

from __future__ import annotations

from pathlib import Path

from supervisor import files

LINK = "pg_wal"
NEW = "pgr.new"
REPLACED = "pgr.replaced-"


def place_of(pgdata: Path) -> Path | None:
    """Where this copy's WAL lies, if not in it. A place that is gone (a disk that is not mounted) raises OSError: to
    put the WAL elsewhere is not for us to decide."""
    link = pgdata / LINK
    if not link.is_symlink():
        return None
    place = link.resolve()
    place = place.parent if place.name == NEW else place
    if not place.is_dir():
        raise FileNotFoundError(f"{link} leads to {place}, which is not there: mount it, or make it anew, empty")
    return place


def new_in(place: Path) -> Path:
    """Where the WAL of the copy that is being made goes."""
    return place / NEW


def put_in_place(new: Path, place: Path, replaced: Path | None, stamp: str) -> None:
    """Old WAL aside, the new WAL where it belongs, the links of both copies to match. ``new``: the complete copy;
    ``replaced``: the old one, as it was moved aside. Not atomic: the caller's marker says that the copy is not one yet.
    """
    aside = place / f"{REPLACED}{stamp}"
    stays = (NEW, "lost+found")  # the latter of a file system of which the place is all
    old = [entry for entry in place.iterdir() if entry.name not in stays and not entry.name.startswith(REPLACED)]
    if old:
        aside.mkdir(mode=0o700)
        for entry in old:
            entry.rename(aside / entry.name)
    for entry in (place / NEW).iterdir():
        entry.rename(place / entry.name)
    (place / NEW).rmdir()
    files.relink(new / LINK, str(place))
    if old and replaced is not None and (replaced / LINK).is_symlink():
        files.relink(replaced / LINK, str(aside))
    files.sync_directory(place)
