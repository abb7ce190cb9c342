"""PGDATA as a node finds it: every answer of `look`, on a real data directory, and what is made of the rest of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import zmq

from consensus.cluster import ClusterState, Reinit, Seat
from consensus.membership import Member
from consensus.record import EpochStart, NodeRecord
from fencing.clock import now_ns
from fencing.kill import FenceReport
from fencing.lease import MS, PROFILES
from fencing.logs import Log
from supervisor import controldata, datadir
from supervisor.binaries import find
from supervisor.children import ChildTable
from supervisor.config import Facts, load
from supervisor.context import Context
from supervisor.daemon import Daemon
from supervisor.errors import RefusedError
from supervisor.links import Link
from supervisor.postgres import OccupiedError, Postgres
from supervisor.rebuild import MARK, write_mark
from supervisor.roles import Data, Local, View, copy_asked_for
from supervisor.tasks import sleep
from tests.pgbare import BarePostgres, own_directory, pg_bin, run, template

INCARNATION, NONCE = 41, "n0nce"
HISTORY = (EpochStart(0, 0, 1), EpochStart(3, 0x3000060, 2))
NOBODY = cast(Link, None)
"""Nothing here talks to the children."""
SPAWNS_NOTHING = cast(Any, None)


def system_identifier() -> str:
    lines = run("pg_controldata", "-D", template()).stdout.splitlines()
    return next(line.split()[-1] for line in lines if line.startswith("Database system identifier"))


class Found:
    """A node that has just been started on what lies in its directory."""

    def __init__(self, home: Path, *, flags: dict[str, str] | None = None) -> None:
        self.home = home
        peers = "a=127.0.0.1:7401,b=127.0.0.1:7402,c=127.0.0.1:7403"
        given = {"data": str(home), "name": "a", "listen": "127.0.0.1:7401", "peers": peers} | (flags or {})
        config = load(given, {}, None, None, Facts("host", "/"))
        self.read, self.write = os.pipe()
        self.log = Log("json", "a", "parent", fd=self.write)
        self.binaries, self.children = find(pg_bin()), ChildTable()
        postgres = Postgres(
            self.binaries, config.pgdata, config.run, config.postgres_log, SPAWNS_NOTHING, self.children
        )
        self.c = Context(
            config, self.log, "postgres", self.binaries, self.children, NOBODY, NOBODY, postgres, PROFILES["default"],
            View(), Local("a"),
        )  # fmt: skip
        self.pgdata = config.pgdata

    def initdb(self, *, mark: bool = True, nonce: str = NONCE, incarnation: int = INCARNATION) -> None:
        subprocess.run(["cp", "-a", template(), self.pgdata], check=True)
        if mark:
            write_mark(self.pgdata, incarnation, nonce)

    def knows(
        self, *, system: str | None = "", founder: str = "b", nonce: str = NONCE,
        history: tuple[EpochStart, ...] = HISTORY, marker: str = "", named: int = INCARNATION,
    ) -> None:  # fmt: skip
        """What log and record say; ``system`` None: the log has not been read yet; ``named``: the lives it knows."""
        cluster = None
        if system is not None:
            members = tuple(Member(name, named, f"{name}:1", f"{name}:2", "") for name in "abc")
            cluster = ClusterState(members=members, founder=founder, nonce=nonce, system_identifier=system)
        self.c.view = View(
            alive=True, incarnation=INCARNATION, record=NodeRecord(history=history, marker=marker), cluster=cluster
        )

    def looks(self) -> Data:
        datadir.look(self.c)
        return self.c.local.data

    def events(self) -> list[dict[str, Any]]:
        os.set_blocking(self.read, False)
        with open(self.read, "rb", buffering=0, closefd=False) as pipe:
            text = pipe.read() or b""
        return [json.loads(line) for line in io.BytesIO(text)]

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


@pytest.fixture
def home() -> Iterator[Path]:
    made = own_directory("pgr-d-")
    yield made
    shutil.rmtree(made)


@pytest.fixture
def found(home: Path) -> Iterator[Found]:
    node = Found(home)
    yield node
    node.close()


@pytest.fixture(scope="module")
def ours() -> str:
    return system_identifier()


# -- look ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True], ids=["empty", "whole"])
def test_nothing_is_said_before_both_the_log_and_the_record_are_known(found: Found, ours: str, there: bool) -> None:
    if there:
        found.initdb()
    assert found.looks() is Data.UNKNOWN, "neither"
    found.knows(system=None)
    assert found.looks() is Data.UNKNOWN, "the record (`raft.state`), not the log"
    found.knows(system=ours)
    record = found.c.view
    found.c.view = View(cluster=record.cluster)
    assert found.looks() is Data.UNKNOWN, "the log (`raft.cluster`), not the record"
    found.c.view = record
    assert found.looks() is (Data.READY if there else Data.ABSENT)


def test_what_was_seen_once_is_not_looked_at_again(found: Found, ours: str) -> None:
    """Later it is the steps that know: Postgres runs in it, or it is being replaced."""
    found.initdb()
    found.knows(system=ours)
    assert found.looks() is Data.READY
    found.knows(system=ours, marker="rewind")
    assert found.looks() is Data.READY


@pytest.mark.parametrize("marker", ["", "clone"])
def test_an_empty_directory_is_absent(found: Found, ours: str, marker: str) -> None:
    found.knows(system=ours, marker=marker)
    assert found.looks() is Data.ABSENT
    assert found.events() == []


@pytest.mark.parametrize("founder", ["a", "b"])
def test_a_log_that_is_behind_does_not_turn_a_healthy_node_into_an_absent_one(
    found: Found, ours: str, founder: str
) -> None:
    """It would be created anew or cloned over; this directory may hold what the others lack."""
    found.initdb()
    found.knows(system="", founder=founder)
    assert found.looks() is Data.UNKNOWN
    found.knows(system="", founder=founder, nonce="")
    assert found.looks() is Data.UNKNOWN, "still further behind"
    found.knows(system=ours, founder=founder)
    assert found.looks() is Data.READY, "once it has caught up"


@pytest.mark.parametrize("mark", [False, True], ids=["adopted", "begun"])
def test_the_founder_goes_on_with_what_it_creates(found: Found, mark: bool) -> None:
    found.initdb(mark=mark)
    found.knows(system="", founder="a", history=())
    assert found.looks() is Data.ABSENT


def test_the_founder_does_not_go_on_with_what_it_created_for_another_founding(found: Found) -> None:
    found.initdb(nonce="another")
    found.knows(system="", founder="a", history=())
    assert found.looks() is Data.UNKNOWN


def test_a_founder_that_the_log_has_not_confirmed_creates_nothing(found: Found) -> None:
    found.initdb(mark=False)
    found.knows(system="", founder="a", nonce="", history=())
    assert found.looks() is Data.UNKNOWN


def test_whose_data_it_is_is_not_asked_before_this_life_has_a_number(found: Found, ours: str) -> None:
    """State and log may come before the answer to the first hello: a good copy would pass for another life's."""
    found.initdb()
    found.knows(system=ours)
    known, found.c.view = found.c.view, replace(found.c.view, incarnation=0)
    assert found.looks() is Data.UNKNOWN
    assert found.events() == []
    found.c.view = known
    assert found.looks() is Data.READY


def test_a_later_life_of_the_founder_creates_nothing(found: Found) -> None:
    """It was let in again and reads the log from its beginning: for a moment that says "to be created by a"."""
    found.initdb(mark=False)
    found.knows(system="", founder="a", history=(), named=INCARNATION - 1)
    assert found.looks() is Data.UNKNOWN


@pytest.mark.parametrize("history", [HISTORY, ()], ids=["recorded", "fresh"])
def test_the_data_of_another_life_is_never_used(found: Found, ours: str, history: tuple[EpochStart, ...]) -> None:
    """Nobody knows what that one has promised: it is only good for being moved aside."""
    found.initdb(incarnation=INCARNATION - 1)
    found.knows(system="", founder="a", history=())
    assert found.looks() is Data.UNKNOWN, "also by the founder"
    found.knows(system=ours, history=history)
    assert found.looks() is Data.BROKEN
    (said,) = [event for event in found.events() if event["event"] == "data.of_another_life"]
    assert said["fields"]["incarnation"] == INCARNATION - 1


def test_nobody_else_creates_anything(found: Found) -> None:
    found.initdb()
    found.knows(system="", founder="b", history=())
    assert found.looks() is Data.UNKNOWN


@pytest.mark.parametrize("marker", ["rewind", "clone"])
def test_an_interrupted_rewind_or_clone_is_broken(found: Found, ours: str, marker: str) -> None:
    found.initdb()
    found.knows(system=ours, marker=marker)
    assert found.looks() is Data.BROKEN


def test_a_copy_without_a_recorded_history_is_broken(found: Found, ours: str) -> None:
    """Nobody could say which epochs its WAL belongs to, so it has no position and can't vote for one."""
    found.initdb()
    found.knows(system=ours, history=())
    assert found.looks() is Data.BROKEN


def _flip(control: Path) -> None:
    data = bytearray(control.read_bytes())
    data[20] ^= 0xFF
    control.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda control: control.write_bytes(b""),
    "cut off": lambda control: control.write_bytes(control.read_bytes()[:100]),
    "wrong CRC": _flip,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_an_unreadable_pg_control_is_broken_and_said(found: Found, ours: str, how: str) -> None:
    found.initdb()
    DAMAGE[how](found.pgdata / "global" / "pg_control")
    found.knows(system=ours)
    assert found.looks() is Data.BROKEN
    (event,) = found.events()
    assert event["event"] == "data.broken"
    assert "moved aside and cloned again" in event["fields"]["hint"]


@pytest.mark.parametrize("mark", [False, True], ids=["strange", "marked"])
def test_a_foreign_data_directory_stops_the_node(found: Found, ours: str, mark: bool) -> None:
    found.initdb(mark=mark)
    found.knows(system="7000000000000000001")
    with pytest.raises(RefusedError, match="belongs to another cluster") as caught:
        found.looks()
    assert caught.value.exit_code == 78
    assert ours in str(caught.value)
    assert str(found.pgdata) in caught.value.hint
    assert found.c.local.data is Data.UNKNOWN


def test_a_copy_that_this_node_did_not_make_stops_it(found: Found, ours: str) -> None:
    """A restored backup: no promise of this node covers what lies in it."""
    found.initdb(mark=False)
    found.knows(system=ours)
    with pytest.raises(RefusedError, match="did not make") as caught:
        found.looks()
    assert caught.value.exit_code == 78
    assert found.c.local.data is Data.UNKNOWN


def test_a_slow_disk_is_not_a_damaged_one(found: Found, ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found.initdb()
    found.knows(system=ours)
    monkeypatch.setattr(datadir, "LOOK_MS", 1)
    monkeypatch.setattr(datadir, "LOOK_AGAIN_MS", 60_000)
    with monkeypatch.context() as slow:
        slow.setattr(controldata, "read", lambda *_: sleep(60_000 * MS))
        assert found.looks() is Data.UNKNOWN
    monkeypatch.setattr(datadir, "LOOK_MS", 60_000)
    assert found.looks() is Data.UNKNOWN, "the loop does not stand still for it all the time"
    assert [event["event"] for event in found.events()] == ["data.slow"]
    found.c.look_again_ns = now_ns()
    datadir.look_again(found.c)
    assert found.c.local.data is Data.READY
    assert found.c.look_again_ns == 0, "looked at, for good"


# -- write_passfile --------------------------------------------------------------------------------------------------


def test_the_passfile_is_private_current_and_not_written_in_vain(found: Found) -> None:
    path = found.c.config.run / "pgpass"
    path.parent.mkdir()
    found.c.view = View(cluster=ClusterState())
    datadir.write_passfile(found.c)
    assert not path.exists(), "before the founding there is no password"
    found.c.view = View(cluster=ClusterState(replication_password="one"))
    datadir.write_passfile(found.c)
    assert path.read_text() == "*:*:*:pgr_replication:one\n"
    assert path.stat().st_mode & 0o777 == 0o600, "else libpq ignores it"
    inode = path.stat().st_ino
    datadir.write_passfile(found.c)
    assert path.stat().st_ino == inode
    found.c.view = View(cluster=ClusterState(replication_password="two"))
    datadir.write_passfile(found.c)
    assert path.read_text() == "*:*:*:pgr_replication:two\n"


# -- raft_arguments --------------------------------------------------------------------------------------------------


def test_the_raft_child_is_told_of_an_empty_node(found: Found) -> None:
    told = datadir.raft_arguments(found.c)
    json.dumps(told)  # it goes through a pipe
    assert (told["data_incarnation"], told["adopts"], told["salvage"]) == (0, "", False)
    assert told["peers"] == {name: ["127.0.0.1", port] for name, port in (("a", 7401), ("b", 7402), ("c", 7403))}
    assert (told["name"], told["listen"], told["raft_address"]) == ("a", ["127.0.0.1", 7401], "127.0.0.1:7401")
    assert (told["postgres_address"], told["http_address"]) == ("127.0.0.1:5432", "127.0.0.1:8008")
    assert (told["raft_dir"], told["run_dir"]) == (str(found.home / "raft"), str(found.home / "run"))
    assert (told["key_file"], told["profile"], told["commit"]) == ("", "default", "quorum")
    assert json.loads(told["settings"]) == {
        "hba": [], "ident": [], "parameters": {}, "superuser": "postgres",
    }  # fmt: skip


def test_http_off_is_an_empty_address(home: Path) -> None:
    node = Found(home, flags={"http": "off"})
    assert datadir.raft_arguments(node.c)["http_address"] == ""
    node.close()


def test_a_data_directory_of_ours_tells_whose_it_is_and_one_of_a_stranger_is_adopted(found: Found, ours: str) -> None:
    found.initdb(mark=False)
    told = datadir.raft_arguments(found.c)
    assert (told["data_incarnation"], told["adopts"], told["unfit"]) == (0, ours, None)
    assert "local all all" in told["brings"], "the client rules come along"
    write_mark(found.pgdata, INCARNATION, NONCE)
    told = datadir.raft_arguments(found.c)
    assert (told["data_incarnation"], told["adopts"]) == (INCARNATION, "")


def test_why_data_cannot_be_brought_in_is_for_the_founding_to_say(found: Found, ours: str) -> None:
    """Of a member's data, put there without a mark, `look` has something else to say."""
    found.initdb(mark=False)
    (found.pgdata / "standby.signal").touch()
    told = datadir.raft_arguments(found.c)
    json.dumps(told)
    assert told["adopts"] == ours
    code, why, hint = told["unfit"]
    assert (code, "is the data of a standby" in why, "bring in the primary's" in hint) == (78, True, True)


def test_a_copy_that_was_asked_for_is_not_made_twice(found: Found, ours: str) -> None:
    """The node went down between the end of the copy and the log's word that it is done."""
    found.initdb()
    write_mark(found.pgdata, INCARNATION, NONCE, rebuilt=9)
    found.knows(system=ours)
    cluster = found.c.cluster
    asked = tuple(Reinit(Seat("a", INCARNATION), index) for index in (9, 12))
    assert found.looks() is Data.READY
    views = [replace(found.c.view, cluster=replace(cluster, reinits=(one,))) for one in asked]
    assert [copy_asked_for(view, found.c.local) for view in views] == [0, 12]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_data_directory_of_a_stranger_is_not_adopted(found: Found, how: str) -> None:
    """gone: PG_VERSION still says that there is a cluster."""
    found.initdb(mark=False)
    DAMAGE[how](found.pgdata / "global" / "pg_control")
    with pytest.raises(RefusedError, match="cannot be brought into a cluster") as caught:
        datadir.raft_arguments(found.c)
    assert caught.value.exit_code == 78
    assert str(found.pgdata) in caught.value.hint


def test_the_raft_child_is_told_whether_anything_was_salvaged(found: Found) -> None:
    salvage = found.c.config.salvage_dir
    salvage.mkdir()
    assert datadir.raft_arguments(found.c)["salvage"] is False
    (salvage / "2026-01-01").mkdir()
    assert datadir.raft_arguments(found.c)["salvage"] is True


# -- end_jobs ---------------------------------------------------------------------------------------------------------


def writers_to(place: Path) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if str(place).encode() in line.split(b"\0"):
                found.append(int(entry))
    return found


def test_what_a_killed_parent_was_copying_with_is_ended(home: Path) -> None:
    """It works by path: it would write what the source was like then into the copy that the next parent makes there."""
    node = Found(home)
    new = node.pgdata.with_name("pgdata.new")
    with BarePostgres() as source:
        words = ["-D", str(new), "-d", source.conninfo, "-X", "stream", "--checkpoint=fast", "--max-rate=256"]
        job = subprocess.Popen(
            [pg_bin() / "pg_basebackup", *words], cwd="/", start_new_session=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        give_up_ns = now_ns() + 30_000 * MS
        while len(writers_to(new)) < 2 and now_ns() < give_up_ns:
            assert job.poll() is None
        job.kill()
        job.wait(30)
        try:
            assert len(writers_to(new)) == 1, "the one that streams WAL outlives the other"
            datadir.end_jobs(node.c.config, node.log)
            assert writers_to(new) == []
        finally:
            for pid in writers_to(new):
                os.kill(pid, signal.SIGKILL)
    (event,) = node.events()
    assert event["event"] == "jobs.leftover_ended"
    assert len(event["fields"]["pids"]) == 1
    node.close()


def a_process_that_names(place: Path) -> subprocess.Popen[bytes]:
    """Python by its name, with this path among its arguments; it ends by a signal alone."""
    words = [sys.executable, "-c", "import signal; signal.pause()", str(place)]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    while not writers_to(place):  # the kernel closes our pipe to it before its command line is there
        assert process.poll() is None
    return process


def test_only_what_writes_to_this_node_is_ended(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = a_process_that_names(found.pgdata)
    try:
        datadir.end_jobs(found.c.config, found.log)
        assert elsewhere.poll() is None
        assert found.events() == []
        monkeypatch.setattr(datadir, "_WRITERS", (Path(sys.executable).name,))
        datadir.end_jobs(found.c.config, found.log)
        assert elsewhere.wait(30) == -signal.SIGKILL, "the control: by its name alone it was spared"
    finally:
        elsewhere.kill()
        elsewhere.wait(30)


def test_what_writes_to_its_wal_on_another_disk_is_ended_too(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    found.pgdata.mkdir(parents=True, exist_ok=True)
    (found.pgdata / "pg_wal").symlink_to(disk)
    job = a_process_that_names(disk / "pgr.new")
    monkeypatch.setattr(datadir, "_WRITERS", (Path(sys.executable).name,))
    try:
        datadir.end_jobs(found.c.config, found.log)
        assert job.wait(30) == -signal.SIGKILL
    finally:
        job.kill()
        job.wait(30)


def test_a_node_that_starts_ends_them_first(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    job = a_process_that_names(found.pgdata)
    monkeypatch.setattr(datadir, "_WRITERS", (Path(sys.executable).name,))
    daemon = Daemon.__new__(Daemon)
    daemon.config, daemon.binaries, daemon.children, daemon.log = (
        found.c.config, found.binaries, found.children, found.log
    )  # fmt: skip
    daemon.zmq = zmq.Context()
    try:
        made = daemon._context()
        assert job.wait(30) == -signal.SIGKILL
        for link in (made.raft, made.watchdog):
            link.close()
    finally:
        daemon.zmq.destroy(linger=0)
        job.kill()
        job.wait(30)


def test_a_job_that_can_not_be_ended_stops_the_node(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datadir, "_writes_to", lambda pid, _: pid == 1)
    monkeypatch.setattr(datadir, "end", lambda pids, _: pids)
    with pytest.raises(RefusedError, match="still write") as caught:
        datadir.end_jobs(found.c.config, found.log)
    assert caught.value.exit_code == 78


# -- end_leftover ----------------------------------------------------------------------------------------------------


@pytest.fixture
def running(home: Path) -> Iterator[tuple[Found, BarePostgres]]:
    """A Postgres that nobody guards in the data directory of a node that starts."""
    with BarePostgres() as bare:
        node = Found(home, flags={"pgdata": str(bare.pgdata)})
        # As init does with orphans: a zombie still has its pid, and its pid file is there.
        reaper = threading.Thread(target=bare.wait, daemon=True)
        reaper.start()
        yield node, bare
        node.close()
        bare.kill()
        reaper.join(30)


def test_a_postgres_of_ours_that_nobody_guards_is_ended(running: tuple[Found, BarePostgres]) -> None:
    node, bare = running
    write_mark(node.pgdata, INCARNATION, NONCE)
    with bare.connect():
        assert len(bare.pids()) > 4
        datadir.end_leftover(node.c.config, node.c.postgres, node.log)
    assert bare.pids() == []
    assert (node.pgdata / "postmaster.pid").exists(), "killed, not asked: it may have lost its right to write long ago"
    (event,) = node.events()
    assert event["event"] == "postgres.leftover_ended"
    assert event["fields"]["killed"] > 0
    assert event["fields"]["survivors"] == []
    node.c.postgres.refuse_if_occupied()


def test_a_postgres_of_somebody_else_is_left_alone(running: tuple[Found, BarePostgres]) -> None:
    node, bare = running
    assert not (node.pgdata / MARK).exists()
    with pytest.raises(OccupiedError, match="that pgr did not start") as caught:
        datadir.end_leftover(node.c.config, node.c.postgres, node.log)
    assert caught.value.exit_code == 78
    assert "pg_ctl" in caught.value.hint
    with bare.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_what_can_not_be_ended_stops_the_node(
    running: tuple[Found, BarePostgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _ = running
    write_mark(node.pgdata, INCARNATION, NONCE)
    monkeypatch.setattr(datadir, "fence", lambda *_: FenceReport(0, 0, ("process 1 (postgres) is in state D",)))
    with pytest.raises(OccupiedError, match="another Postgres"):
        datadir.end_leftover(node.c.config, node.c.postgres, node.log)
    assert node.events()[0]["fields"]["survivors"] == ["process 1 (postgres) is in state D"]
