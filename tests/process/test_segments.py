"""A killed Postgres leaves a shared memory segment; whoever removes its data directory removes that too."""

from __future__ import annotations

from pathlib import Path

from supervisor import segments
from supervisor.localcluster import wait_for
from tests.pgbare import BarePostgres


def there() -> set[str]:
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text(encoding="ascii").splitlines()[1:]}


def test_a_killed_postgres_leaves_a_segment_that_goes_with_its_directory(tmp_path: Path) -> None:
    with BarePostgres(tmp_path) as postgres:
        (mine,) = {(postgres.pgdata / "postmaster.pid").read_text(encoding="utf-8").splitlines()[6].split()[1]}
        segments.remove(postgres.pgdata.parent)
        assert mine in there(), "it is in use"
        postgres.kill()
        assert mine in there()

        def is_gone() -> bool:  # the last of its processes may be still ending
            segments.remove(postgres.pgdata.parent)
            return mine not in there()

        assert wait_for(is_gone, 10)
