"""The files of `pg_replica` without a Postgres: this test writes what a backend would, and answers as the node does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from fencing import wire
from fencing.clock import now_ns, uptime_ms
from fencing.lease import MS
from fencing.logs import Log
from supervisor import sqldesk
from supervisor.admin import answer, progress
from supervisor.errors import RefusedError
from supervisor.localcluster import wait_for
from supervisor.sqlcatalog import ANSWERS, CONFIG, REQUESTS, STATUS
from supervisor.sqldesk import OPEN_MAX, Desk
from supervisor.sqldocuments import Document
from tests.pgbare import own_directory

SECONDS = 20.0


def request(**changes: Any) -> bytes:
    body = {
        "format": 1, "action": "switchover", "arguments": {"to": "b", "dry_run": False}, "timeout_ms": 60_000,
        "until_ms": uptime_ms() + 5_000, "role": "ann", "address": "local",
    } | changes  # fmt: skip
    return (json.dumps(body) + "\n").encode()


class Room:
    """A desk, the directory it works in, and a stand-in for the node's admin socket."""

    def __init__(self) -> None:
        self.home = own_directory("pgr-desk-")
        self.place = self.home / "sql"
        self.log_path = self.home / "log"
        self.log_fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.admin = self.zmq.socket(zmq.ROUTER)
        self.admin.bind(f"ipc://{self.home}/admin.sock")
        self.desks: list[Desk] = []
        self.source = object()

    def start(self, taken_ns: int = 0) -> Desk:
        log = Log("json", "a", "", fd=self.log_fd)
        self.desks.append(Desk(self.place, "a", self.home / "admin.sock", log))
        self.publish(taken_ns=taken_ns)
        self.until((self.place / STATUS).exists, "the status is written")
        return self.desks[-1]

    def publish(self, key: object = 1, taken_ns: int = 0, **status: Any) -> None:
        shown = (
            Document(CONFIG, lambda: {"settings": []}, self.source),
            Document(STATUS, lambda: {"node": "a"} | status),
        )
        self.desks[-1].publish(shown, key, taken_ns or now_ns())

    def close(self) -> None:
        for desk in self.desks:
            desk.close()
        self.zmq.destroy(linger=0)
        os.close(self.log_fd)
        shutil.rmtree(self.home)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        assert wait_for(condition, SECONDS, 0.005), f"not within {SECONDS} s: {what}; {self.log_path.read_text()}"

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.place / STATUS).read_bytes())
        return found

    def ask(self, **changes: Any) -> str:
        return self.drop(request(**changes))

    def drop(self, data: bytes, name: str = "") -> str:
        name = name or f"{uuid.uuid4()}.json"
        (self.place / REQUESTS / name).write_bytes(data)
        return name

    def asked(self) -> tuple[bytes, wire.Frame]:
        """The next request that reaches the node."""
        assert self.admin.poll(int(SECONDS * 1000)), self.log_path.read_text()
        client, data = self.admin.recv_multipart()
        return client, wire.decode(data)

    def nothing_was_asked(self) -> None:
        """Whatever was dropped before has been looked at, as a request after it was."""
        marker = self.ask(action="reinit", arguments={"node": "marker"})
        assert self.asked()[1].id == marker
        self.admin.poll(0)

    def told(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.place / ANSWERS / name).read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def ends(self, name: str) -> dict[str, Any]:
        self.until(lambda: self.told(name).get("state") == "done", f"{name} is answered")
        return self.told(name)

    def waiting(self) -> list[str]:
        return os.listdir(self.place / REQUESTS)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [e["fields"] for e in map(json.loads, self.log_path.read_text().splitlines()) if e["event"] == name]


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    room.start()
    yield room
    room.close()


def test_a_request_is_taken_passed_on_and_answered(room: Room) -> None:
    name = room.ask()
    client, frame = room.asked()
    assert frame == ("switchover", name, {"to": "b", "dry_run": False, "by": "ann@local (SQL)", "timeout_ms": 60_000})
    assert room.told(name) == {"state": "taken", "progress": []}, "said before it is begun"
    assert room.waiting() == []
    room.admin.send_multipart([client, progress(name, "accepted", "from b to c", {"from": "b", "to": "c"})])
    room.until(lambda: room.told(name)["progress"] == ["from b to c"], "a step is shown")
    room.admin.send_multipart([client, answer(name, {"to": "c"}, warnings=("mind",))])
    done = room.ends(name)
    assert (done["ok"], done["result"], done["warnings"]) == (True, {"to": "c"}, ["mind"])
    assert [e["by"] for e in room.events("sql.request")] == ["ann@local (SQL)"]


def test_a_refusal_keeps_its_code_and_hint(room: Room) -> None:
    name = room.ask()
    client, _ = room.asked()
    room.admin.send_multipart([client, answer(name, error=RefusedError("no", "wait"))])
    done = room.ends(name)
    assert (done["ok"], done["code"], done["error"], done["hint"]) == (False, "78", "no", "wait")


def test_whose_session_ends_with_it_is_told_when_it_is_accepted(room: Room) -> None:
    name = room.ask()
    client, _ = room.asked()
    room.admin.send_multipart([client, progress(name, "accepted", "", {"from": "a", "to": "b"})])
    assert room.ends(name)["result"] == {"from": "a", "to": "b", "accepted": True}


def test_who_has_given_up_is_not_served(room: Room) -> None:
    """A switchover must not come minutes later, when this process was frozen meanwhile."""
    name = room.ask(until_ms=uptime_ms() - 10)
    done = room.ends(name)
    assert (done["ok"], done["code"]) == (False, "75")
    assert "nothing was done" in done["error"]
    room.nothing_was_asked()


def test_what_could_not_be_said_to_be_taken_is_not_begun(room: Room) -> None:
    """Else a session would hear that nothing was done."""
    (room.place / ANSWERS).rename(room.home / "elsewhere")
    room.ask()
    room.until(lambda: room.waiting() == [], "it is removed")
    (room.home / "elsewhere").rename(room.place / ANSWERS)
    room.nothing_was_asked()
    assert room.events("sql.disk")


JUNK: dict[str, Callable[[Path, Path], object]] = {
    "an empty file": lambda path, _: path.touch(),
    "a link to a request": lambda path, other: path.symlink_to(other),
    "a link to nowhere": lambda path, _: path.symlink_to("/nonexistent"),
    "a hard link": lambda path, other: path.hardlink_to(other),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a socket": lambda path, _: socket.socket(socket.AF_UNIX).bind(str(path)),
    "binary": lambda path, _: path.write_bytes(os.urandom(300)),
    "large": lambda path, _: path.write_bytes(b"{" * 5_000_000),
}


@pytest.mark.filterwarnings("ignore:unclosed <socket")
@pytest.mark.parametrize("named", ["like a request", "otherwise"])
def test_junk_does_nothing_and_goes(room: Room, named: str) -> None:
    others = []
    names = []
    for i, (what, make) in enumerate(JUNK.items()):
        names.append(f"{uuid.uuid4()}.json" if named == "like a request" else f".{what}{i}.json")
        others.append(room.home / f"request{i}")
        others[-1].write_bytes(request(until_ms=uptime_ms() + 60_000))
        make(room.place / REQUESTS / names[-1], others[-1])
    (room.place / REQUESTS / "directory").mkdir()
    room.nothing_was_asked()
    room.until(lambda: room.waiting() == ["directory"], "only a directory is left for a person")
    assert all(other.read_bytes().endswith(b"\n") for other in others), "what a link points to is left alone"
    for name in names:
        assert room.told(name).get("ok") in (None, False)
    room.nothing_was_asked()


@pytest.mark.parametrize("name", ["x.json", ".{}.new", "{}.tmp", "x{}", "{}~"])
def test_a_request_of_another_name_is_none(room: Room, name: str) -> None:
    room.drop(request(), name.format(f"{uuid.uuid4()}.json"))
    room.nothing_was_asked()
    room.until(lambda: room.waiting() == [], "it is removed")
    room.nothing_was_asked()


def test_a_file_that_grows_is_waited_for(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqldesk, "SETTLE_MS", 3_600_000)
    name = f"{uuid.uuid4()}.json"
    whole = request()
    with (room.place / REQUESTS / name).open("wb") as file:
        file.write(whole[:50])
        file.flush()
        for _ in range(2):  # the second time, the first look at all of them has ended
            room.nothing_was_asked()
        assert name in room.waiting()
        file.write(whole[50:])
    assert room.asked()[1].id == name


def test_a_flood_is_bounded(room: Room) -> None:
    names = [room.ask() for _ in range(OPEN_MAX + 40)]
    reached = {room.asked()[1].id for _ in range(OPEN_MAX)}
    refused = [name for name in names if name not in reached]
    for name in refused:
        done = room.ends(name)
        assert (done["code"], done["hint"]) == ("75", "ask again in a moment")
    assert not room.admin.poll(0)


def test_of_many_answers_the_newest_are_kept(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqldesk, "KEEP_MAX", 3)
    names = [room.ask(until_ms=0) for _ in range(20)]
    room.until(lambda: room.waiting() == [] and len(os.listdir(room.place / ANSWERS)) == 3, "three are left")
    assert set(os.listdir(room.place / ANSWERS)) < set(names)


def test_what_is_not_removed_holds_up_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory is left to a person, however many there are."""
    monkeypatch.setattr(sqldesk, "SCAN_MAX", 4)
    for i in range(40):
        (room.place / REQUESTS / f"d{i}").mkdir()
    turns: list[int] = []
    look = sqldesk.Work._look_through

    def counted(work: sqldesk.Work) -> None:
        turns.append(1)
        look(work)

    monkeypatch.setattr(sqldesk.Work, "_look_through", counted)
    names = {room.ask() for _ in range(6)}
    assert {room.asked()[1].id for _ in names} == names
    before = len(turns)
    for n in range(3):
        room.publish(key=f"again {n}", n=n)
        room.until(lambda n=n: room.status().get("n") == n, "it goes on")  # type: ignore[misc]  # bound now
    assert len(turns) <= before + 10, "nor does it spin"


def test_answers_are_removed_and_late_words_are_of_no_use(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqldesk, "KEEP_MS", 0)
    name = room.ask()
    client, _ = room.asked()
    room.admin.send_multipart([client, answer(name, {})])
    room.until(lambda: os.listdir(room.place / ANSWERS) == [], "it is removed")
    room.admin.send_multipart([client, answer(name, {})])
    room.nothing_was_asked()


def test_no_word_of_the_node_is_an_answer_as_well(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqldesk, "LATE_MS", 0)
    name = room.ask(timeout_ms=1)
    room.asked()
    assert "no word" in room.ends(name)["error"]


def test_the_next_process_ends_what_the_last_one_had_begun(room: Room) -> None:
    name = room.ask()
    room.asked()
    room.desks[0].close()
    assert not (room.place / STATUS).exists(), "whoever asks hears that nobody is there"
    (room.place / ANSWERS / "junk").touch()
    room.start()
    done = room.ends(name)
    assert (done["ok"], done["error"]) == (False, "this node was interrupted meanwhile")
    assert os.listdir(room.place / ANSWERS) == [name]


def test_the_status_is_written_once_a_second_or_at_once_if_it_matters(room: Room) -> None:
    written = room.status()["uptime_ms"]
    assert uptime_ms() - written < SECONDS * 1000
    room.publish(key="another", n=1)
    room.until(lambda: room.status().get("n") == 1, "at once")
    config = (room.place / CONFIG).stat().st_ino
    room.publish(key="another", n=2)
    room.until(lambda: room.status().get("n") == 2, "a second later")
    assert (room.place / CONFIG).stat().st_ino == config, "what has not changed is not written"
    room.source = object()
    room.publish(key="yet another", n=3)
    room.until(lambda: room.status().get("n") == 3, "at once")
    assert (room.place / CONFIG).stat().st_ino != config


def test_after_a_pause_of_the_process_what_is_new_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread may have come first, and have written what the loop had told before the pause."""
    monkeypatch.setattr(sqldesk, "WRITE_EVERY_MS", 60_000)
    room = Room()
    try:
        room.start(taken_ns=now_ns() - 200_000 * MS)
        room.publish(n=1)
        room.until(lambda: room.status().get("n") == 1, "it is written")
    finally:
        room.close()


def test_what_matters_does_not_wait_for_the_next_second(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqldesk, "WRITE_EVERY_MS", 3_600_000)
    for n in range(3):
        room.publish(key=f"new {n}", n=n)
        room.until(lambda n=n: room.status().get("n") == n, "at once")  # type: ignore[misc]  # bound now


def test_an_old_snapshot_is_never_passed_off_as_a_new_one(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop hangs, this thread does not: the file must grow old."""
    age_ms = 30_000
    room.desks[-1].publish([Document(STATUS, lambda: {"node": "a", "n": 3})], "key", now_ns() - age_ms * MS)
    room.until(lambda: room.status().get("n") == 3, "it is written")
    assert uptime_ms() - room.status()["uptime_ms"] >= age_ms
    before = room.status()["uptime_ms"], (room.place / STATUS).stat().st_ino
    monkeypatch.setattr(sqldesk, "WRITE_EVERY_MS", 1)
    for _ in range(5):  # turns of the thread, each long after the last
        room.nothing_was_asked()
    assert (room.status()["uptime_ms"], (room.place / STATUS).stat().st_ino) == before


def test_a_lost_directory_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqldesk, "RETRY_MS", 0)
    room = Room()
    try:
        desk = room.start()
        shutil.rmtree(room.place)
        desk.ring()
        room.until(lambda: bool(desk.problem), "it is told")
        assert room.events("sql.failed")

        def mended() -> bool:
            room.publish()
            return desk.problem == "" and (room.place / STATUS).exists()

        room.until(mended, "it goes on")
        room.nothing_was_asked()
    finally:
        room.close()


@contextmanager
def no_inotify(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from watchdog import observers

    class Refused(observers.Observer):  # type: ignore[misc,valid-type]  # a class chosen by the platform
        def start(self) -> None:
            raise OSError(24, "inotify instance limit reached")

    with monkeypatch.context() as changed:
        changed.setattr(observers, "Observer", Refused)
        yield


def test_without_inotify_it_looks_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_inotify(monkeypatch):
        room = Room()
        try:
            room.start()
            room.until(lambda: bool(room.events("sql.no_inotify")), "it is told")
            name = room.ask()
            assert room.asked()[1].id == name
        finally:
            room.close()


def test_the_clock_that_sql_can_read_runs_like_ours() -> None:
    """An uptime of a container's own may begin elsewhere."""
    before = now_ns(), uptime_ms()
    after = now_ns(), uptime_ms()
    assert wait_for(lambda: uptime_ms() >= before[1] + 100, SECONDS, 0.005)
    assert now_ns() - before[0] >= 80 * MS
    assert 0 <= after[1] - before[1] <= (now_ns() - before[0]) // MS + 20
