"""Configuration that leads away from PGDATA, mount points, WAL on a disk of its own: found, and what is done then."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor import jobs, preflight, waldir
from supervisor.datadir import refuse_config_elsewhere
from supervisor.errors import MissingError
from supervisor.postgres import StartFailed, StopMode
from tests.pgbare import template
from tests.process.dropped import dropped
from tests.process.test_postgres import do, nodes, soon
from tests.process.test_refused_starts import Candidate, node

pytestmark = pytest.mark.slow

__all__ = ["node"]


def append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@dropped
def test_a_data_directory_in_postgresql_conf_leads_nobody_elsewhere() -> None:
    """Debian's has one, and so has every copy of it: here that of another cluster, which is down at the moment."""
    with nodes("a", "b", "other") as (a, b, other):
        other.found()
        untouched = content(other.pgdata)
        elsewhere = f"data_directory = '{other.pgdata}'"
        do(jobs.initdb(a.binaries, a.pgdata, a.table, extra=["--no-sync"]))
        append(a.pgdata / "postgresql.conf", elsewhere)
        do(jobs.single_user(a.binaries, a.pgdata, jobs.roles_sql("swordfish", bytes(16)), a.table))
        a.start()
        assert a.one("SHOW data_directory") == str(a.pgdata)
        a.promote()
        a.ask("CREATE TABLE public.t (i int)")
        b.clone_of(a)
        b.follow(a)
        b.start(2)
        b.until("SELECT count(*) FROM pg_class WHERE relname = 't'", "1")
        assert b.one("SHOW data_directory") == str(b.pgdata)
        # Promoted, while the other one goes on, and then dies: an unclean target, which the tool recovers first.
        b.promote()
        b.ask("CHECKPOINT")
        a.ask("INSERT INTO public.t VALUES (1)")
        a.stop(StopMode.IMMEDIATE)
        do(jobs.rewind(a.binaries, b.conninfo_for_others(), a.pgdata, a.table, scratch=a.home))
        a.follow(b)
        a.start(3)
        a.until("SELECT count(*) FROM public.t", "0")
        assert content(other.pgdata) == untouched


@dropped
def test_a_trigger_file_of_an_older_postgres_is_named() -> None:
    """From 16 on Postgres knows no such setting; pgr keeps its hands off postgresql.conf, which is a person's."""
    with nodes("a") as (a,):
        a.found()
        if a.binaries.major < 16:
            pytest.skip("this Postgres knows it still, and looks for a file that is not there")
        append(a.pgdata / "postgresql.conf", "promote_trigger_file = '/tmp/promote'")
        a.postgres.prepare(*a.texts(), 1)
        postmaster = a.postgres.start()
        with pytest.raises(StartFailed, match=r'"promote_trigger_file" in file ".*postgresql\.conf" line'):
            do(a.postgres.wait_ready(postmaster, soon()))
        postmaster.close()
        a.processes[-1].returncode = 1


def test_configuration_outside_pgdata_is_refused_with_what_to_copy_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pgdata = tmp_path / "main"
    pgdata.mkdir()
    (tmp_path / "other.conf").write_text("data_directory = '/elsewhere'\n", encoding="utf-8")
    with pytest.raises(MissingError, match=r"has no postgresql\.conf") as caught:
        refuse_config_elsewhere(pgdata)
    assert caught.value.hint.startswith(f"copy postgresql.conf and what it includes to {pgdata}")
    (tmp_path / "own.conf").write_text(f"data_directory = '{pgdata}'\t# use data in another directory\n")
    monkeypatch.setattr("supervisor.datadir.DEBIAN", str(tmp_path / "*.conf"))
    with pytest.raises(MissingError) as caught:
        refuse_config_elsewhere(pgdata)
    assert f"copy {tmp_path / 'own.conf'} and" in caught.value.hint
    (pgdata / "postgresql.conf").touch()
    refuse_config_elsewhere(pgdata)


def brought(node: Candidate) -> Path:
    """The data of a cluster that somebody brings along."""
    pgdata = node.data / "pgdata"
    node.mkdir(node.data)
    subprocess.run(["cp", "-a", template(), pgdata], check=True)
    return pgdata


def test_a_cluster_that_keeps_its_configuration_elsewhere_is_not_adopted(node: Candidate) -> None:
    pgdata = brought(node)
    (pgdata / "postgresql.conf").unlink()
    before = content(pgdata)
    node.refused(69, f"{pgdata} has no postgresql.conf", "where copies do not get it")
    assert content(pgdata) == before


@pytest.fixture
def mounted(node: Candidate) -> Iterator[Path]:
    """PGDATA is a file system of its own, empty."""
    pgdata = node.mkdir(node.data / "pgdata")
    owner = pgdata.stat()
    options = f"size=200m,mode=700,uid={owner.st_uid},gid={owner.st_gid}"
    words: list[str | Path] = ["mount", "-t", "tmpfs", "-o", options, "pgr-test", pgdata]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield pgdata
    subprocess.run(["umount", pgdata], check=True)


@pytest.mark.root
def test_a_file_system_at_pgdata_itself_is_refused_while_it_is_empty(node: Candidate, mounted: Path) -> None:
    node.refused(64, f"{mounted} is a mount point", "mount that file system one directory higher")


@pytest.mark.root
def test_and_warned_of_when_there_is_a_cluster_in_it(node: Candidate, mounted: Path) -> None:
    subprocess.run(["cp", "-a", f"{template()}/.", mounted], check=True)
    assert "never be copied anew" in preflight.mount_warnings(mounted)[0]
    node.says("config.warning", f"{mounted} is a mount point", "gate.open")


@pytest.mark.root
def test_a_bind_mount_is_one_too(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "with blank"
    source.mkdir()
    place.mkdir()
    done = subprocess.run(["mount", "--bind", source, place], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        assert preflight.is_mount_point(place)
        assert preflight.is_mount_point(tmp_path / "source" / ".." / "with blank")
        assert not preflight.is_mount_point(source)
    finally:
        subprocess.run(["umount", place], check=True)
    assert not preflight.is_mount_point(place)


def test_elsewhere_nobody_is_warned(tmp_path: Path) -> None:
    assert preflight.mount_warnings(tmp_path) == ()
    preflight.check_mount(tmp_path / "absent")


# WAL on a disk of its own


class Copies:
    """A data directory, its WAL elsewhere, and a complete new copy of it."""

    def __init__(self, home: Path) -> None:
        self.old, self.new, self.place = home / "pgdata", home / "pgdata.new", home / "disk"
        for directory in (self.old, self.new, self.place / waldir.NEW):
            directory.mkdir(parents=True)
        (self.old / waldir.LINK).symlink_to(self.place)
        (self.new / waldir.LINK).symlink_to(self.place / waldir.NEW)
        (self.place / "lost+found").mkdir()
        (self.place / "000000010000000000000001").write_text("old", encoding="utf-8")
        (self.place / waldir.NEW / "000000010000000000000001").write_text("new", encoding="utf-8")
        (self.place / waldir.NEW / "archive_status").mkdir()

    def swap(self) -> Path:
        replaced = self.old.rename(self.old.with_name("replaced"))
        waldir.put_in_place(self.new, self.place, replaced, "1")
        return replaced


def test_the_old_wal_is_kept_and_the_new_wal_is_where_it_was(tmp_path: Path) -> None:
    made = Copies(tmp_path)
    assert waldir.place_of(made.old) == waldir.place_of(made.new) == made.place
    replaced = made.swap()
    assert (made.new / waldir.LINK).readlink() == made.place
    assert {p.name for p in made.place.iterdir()} == {
        "000000010000000000000001", "archive_status", "lost+found", "pgr.replaced-1",
    }  # fmt: skip
    assert (made.new / waldir.LINK / "000000010000000000000001").read_text(encoding="utf-8") == "new"
    assert (replaced / waldir.LINK / "000000010000000000000001").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("at", ["mkdir", "rename", "rmdir", "symlink_to"])
def test_a_swap_that_is_cut_off_leaves_the_way_to_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The copy is made anew then; it is to know where its WAL goes, and nothing old may be gone."""
    made = Copies(tmp_path)

    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    replaced = made.old.rename(made.old.with_name("replaced"))
    with monkeypatch.context() as patched:
        patched.setattr(Path, at, cut_off)
        with pytest.raises(KeyboardInterrupt):
            waldir.put_in_place(made.new, made.place, replaced, "1")
    assert waldir.place_of(made.new) == made.place
    assert any(path.read_text(encoding="utf-8") == "old" for path in made.place.rglob("0*1") if path.is_file())


def test_a_place_that_is_gone_is_said(tmp_path: Path) -> None:
    made = Copies(tmp_path)
    shutil.rmtree(made.place)
    with pytest.raises(FileNotFoundError, match="mount it, or make it anew, empty"):
        waldir.place_of(made.old)


def test_wal_within_the_data_directory_has_no_place(tmp_path: Path) -> None:
    (tmp_path / "pg_wal").mkdir()
    assert waldir.place_of(tmp_path) is None
    assert waldir.place_of(tmp_path / "absent") is None

