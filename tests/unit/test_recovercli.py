"""`pgr recover` against nodes that answer as they do, and against a node that is stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consensus import pacing, recovery
from consensus.clustertext import dump, load
from consensus.history import HistoryEvent
from consensus.keys import new_key, read_key
from consensus.messages import Entry, HardState, Snapshot
from consensus.record import Identity, NodeRecord
from consensus.storage import open_store
from consensus.write import Write
from fencing.lease import PROFILES
from fencing.wire import Frame
from supervisor import admin, recovercli, stopped
from supervisor.errors import TryAgainError
from supervisor.preflight import lock_data
from supervisor.rebuild import MARK
from tests.unit.nodes import CLUSTER_ID
from tests.unit.test_cli import Node, Run, data, no_environment, pgr  # noqa: F401  (fixtures)
from tests.unit.test_member_surfaces import Asked, asked, ended  # noqa: F401  (a fixture)
from tests.unit.test_recovery import HISTORY, RECORD, foresee, state

RESULT = {"from": "", "to": "c", "term": 1_048_590, "timeline": 40, "gap_ms": 90}
NAME = CLUSTER_ID[:8]


def outlook(me: str = "c", position: tuple[int, int] | None = (7, 500), **at: str) -> dict[str, Any]:
    """``at``: where the others are."""
    s = state()
    members = tuple(
        m._replace(raft=at.get(m.name, "127.0.0.1:1"), postgres="127.0.0.1:1", http="127.0.0.1:1") for m in s.members
    )
    found = recovery.plain(foresee(replace(s, members=members), me=me))
    return found | {"position": list(position) if position else None}


def survivor(
    look: dict[str, Any], key_file: Path | None = None, refusal: dict[str, Any] | None = None
) -> Callable[[Frame], list[bytes]]:  # fmt: skip
    def handler(frame: Frame) -> list[bytes]:
        if frame.name == "events":
            return [admin.answer(frame.id, {"node": "c", "members": {}, "key_file": str(key_file or "/nowhere")})]
        if frame.body.get("dry_run"):
            return [admin.answer(frame.id, {"from": "", "to": "c", "refusal": refusal, "outlook": look})]
        step = admin.progress(frame.id, "recovered", "recovered: c has rebuilt the cluster")
        return [step, admin.answer(frame.id, RESULT)]

    return handler


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovercli, "OTHERS_IDLE_MS", 300)


@pytest.fixture
def serve(data: Path) -> Iterator[Callable[..., Node]]:  # noqa: F811
    made: list[Node] = []

    def start(*arguments: Any, **more: Any) -> Node:
        made.append(Node(*arguments, **more))
        return made[-1]

    yield start
    for node in made:
        node.close()


def requests(node: Node) -> list[dict[str, Any]]:
    return [dict(frame.body) for frame in node.requests if frame.name == "recover"]


def test_a_dry_run_says_what_may_be_lost(
    pgr: Run, data: Path, serve: Callable[..., Node]  # noqa: F811
) -> None:  # fmt: skip
    node = serve(data, survivor(outlook()))
    code, out, err = pgr("recover", "--dry-run", "--data", str(data))
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == [f"cluster {NAME} would be rebuilt around c", "given up: a (voter), b (voter)"]
    assert "- acknowledged commits may be lost" in out
    assert json.loads(pgr("recover", "--dry-run", "--json", "--data", str(data))[1])["outlook"]["survivor"] == "c"
    assert all(body["dry_run"] for body in requests(node))


def test_it_takes_the_name_of_the_cluster(
    pgr: Run, data: Path, serve: Callable[..., Node]  # noqa: F811
) -> None:  # fmt: skip
    node = serve(data, survivor(outlook()))
    for words in ([], ["--yes", "c"], ["--yes", CLUSTER_ID]):
        code, out, err = pgr("recover", *words, "--data", str(data))
        assert (code, out) == (64, ""), words
        assert "may be lost" in err, "what it is about is said before"
    assert all(body.get("dry_run") for body in requests(node)), "nothing was done"
    code, out, err = pgr("recover", "--yes", NAME, "--timeout", "9", "--data", str(data))
    assert (code, out) == (0, "primary: none -> c, write gap: 90 ms\n")
    assert "recovered: c has rebuilt the cluster\n" in err
    assert "a, b: whoever comes back is told to stop" in err
    done = requests(node)[-1]
    assert (done["confirm"], done["survivors"], done["timeout_ms"]) == (NAME, [], 9000)
    assert "@" in done["by"]


def test_a_refusal_comes_before_any_question(
    pgr: Run, data: Path, serve: Callable[..., Node]  # noqa: F811
) -> None:  # fmt: skip
    no = {"code": 75, "error": "2 of 3 voters are up", "hint": "see `pgr explain`"}
    serve(data, survivor(outlook(), refusal=no))
    said = "error: 2 of 3 voters are up\n\nhint: see `pgr explain`\n"
    assert pgr("recover", "--yes", NAME, "--data", str(data)) == (75, "", said)
    code, out, err = pgr("recover", "--dry-run", "--data", str(data))
    assert (code, out.splitlines()[0], err) == (75, f"cluster {NAME} would be refused", said)


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_what_answers_is_not_gone(
    pgr: Run, data: Path, serve: Callable[..., Node], listening: str  # noqa: F811
) -> None:  # fmt: skip
    look = outlook()
    look["given_up"][0]["postgres"] = listening
    node = serve(data, survivor(look))
    code, out, err = pgr("recover", "--yes", NAME, "--data", str(data))
    assert (code, out) == (78, "")
    assert f"a is not gone: something answers at {listening}" in err
    assert "--gone a" in err
    assert all(body.get("dry_run") for body in requests(node))
    assert pgr("recover", "--yes", NAME, "--gone", "b", "--data", str(data))[0] == 78, "another one"
    assert pgr("recover", "--yes", NAME, "--gone", "a", "--data", str(data))[0] == 0


@pytest.fixture
def key(tmp_path: Path) -> Path:
    admin.write_private(tmp_path / "key", new_key())
    return tmp_path / "key"


@pytest.mark.parametrize(
    ("theirs", "mine", "code", "error"),
    [
        ((7, 501), (7, 500), 78, "b has newer data, 1 bytes more"),
        ((8, 1), (7, 500), 78, "b has newer data, in epoch 8, here it is 7"),
        ((7, 0), None, 78, "b has newer data"),
        ((7, 500), (7, 500), 0, ""),
        (None, (7, 500), 75, "how far the data of b goes is not known"),
    ],
)
def test_of_several_that_are_left_the_one_with_the_newest_data_goes_on(
    pgr: Run, data: Path, serve: Callable[..., Node], key: Path, *,  # noqa: F811
    theirs: tuple[int, int] | None, mine: tuple[int, int] | None, code: int, error: str,
) -> None:  # fmt: skip
    other = serve(data, survivor(outlook("b", theirs)), key=read_key(key))
    node = serve(data, survivor(outlook("c", mine, b=f"127.0.0.1:{other.port}"), key))
    found, _, err = pgr("recover", "--yes", NAME, "--data", str(data))
    assert (found, error in err) == (code, True), err
    assert [body["survivors"] for body in requests(node) if "survivors" in body] == [["b"]] * (1 if code else 3)
    assert all(body == {"dry_run": True} for body in requests(other))
    if code == 78:
        assert "run it on b" in err


@pytest.mark.parametrize(("me", "witness"), [("c", "b"), ("b", "c")])
@pytest.mark.parametrize("position", [(7, 500), None])
def test_a_witness_that_is_left_has_no_data_to_compare(me: str, witness: str, position: tuple[int, int] | None) -> None:
    look = outlook(me, position)
    look["given_up"][1]["role"] = "witness"
    assert look["given_up"][1]["name"] == witness
    found = {"refusal": None, "outlook": look}
    recovercli.refuse_better(found, {witness: outlook(witness, None)})
    assert found["refusal"] is None


def test_of_those_who_have_the_same_data_only_the_last_by_name_goes_on() -> None:
    """Two people at two nodes would make two clusters of one."""

    def refused(me: str, other: str) -> dict[str, Any]:
        found: dict[str, Any] = {"refusal": None, "outlook": outlook(me)}
        recovercli.refuse_better(found, {other: outlook(other)})
        return dict(found["refusal"] or {})

    assert refused("c", "b") == {}
    no = refused("b", "c")
    assert (no["code"], no["error"]) == (78, "c has the same data, and of equals the last by name goes on")
    assert no["hint"] == "run it on c; to do without it stop it first"


def test_those_who_say_that_somebody_leads_have_lost_nothing(
    pgr: Run, data: Path, serve: Callable[..., Node], key: Path  # noqa: F811
) -> None:  # fmt: skip
    """This node hears nobody, as nobody reaches its consensus port; `pgr` on it reaches the others."""
    others = [serve(data, survivor(outlook(n) | {"leader": "a"}), key=read_key(key)) for n in ("a", "b")]
    a, b = (f"127.0.0.1:{node.port}" for node in others)
    node = serve(data, survivor(outlook("c", a=a, b=b), key))
    code, out, err = pgr("recover", "--yes", NAME, "--data", str(data))
    assert (code, out) == (75, "")
    # Whoever answers first is named.
    assert re.search(r"the cluster has a leader \((a|b) says that a leads\): no quorum is lost", err)
    assert "is its consensus port reached by the others?" in err
    assert all(body["dry_run"] for body in requests(node))


def test_one_of_another_cluster_is_no_survivor_of_this_one(
    pgr: Run, data: Path, serve: Callable[..., Node], key: Path  # noqa: F811
) -> None:  # fmt: skip
    """It would be counted for the quorum that is lost."""
    look = outlook("a") | {"cluster_id": "ef" * 16, "cluster": "efefefef"}
    a = serve(data, survivor(look), key=read_key(key))
    b = serve(data, survivor(outlook("b", (7, 400))), key=read_key(key))
    node = serve(data, survivor(outlook("c", a=f"127.0.0.1:{a.port}", b=f"127.0.0.1:{b.port}"), key))
    assert pgr("recover", "--yes", NAME, "--data", str(data))[0] == 78
    assert requests(node) == [{"dry_run": True}, {"dry_run": True, "survivors": ["b"]}]


def test_it_is_looked_again_when_a_person_has_confirmed(
    pgr: Run, data: Path, serve: Callable[..., Node], monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    answers: list[dict[str, str]] = [{}, {"a": "10.0.0.1:7400"}]
    monkeypatch.setattr(recovercli, "answering", lambda rows: answers.pop(0))
    node = serve(data, survivor(outlook()))
    code, out, err = pgr("recover", "--yes", NAME, "--data", str(data))
    assert (code, out, "a is not gone" in err) == (78, "", True), "a came back while the person thought"
    assert all(body["dry_run"] for body in requests(node)), "nothing was done"


def test_one_that_is_of_another_cluster_by_now_has_gone_on_already(
    pgr: Run, data: Path, serve: Callable[..., Node], key: Path  # noqa: F811
) -> None:  # fmt: skip
    look = outlook("b") | {"cluster_id": "ef" * 16, "cluster": "efefefef"}
    other = serve(data, survivor(look), key=read_key(key))
    serve(data, survivor(outlook("c", b=f"127.0.0.1:{other.port}"), key))
    code, _, err = pgr("recover", "--yes", NAME, "--data", str(data))
    assert (code, "b is of the cluster efefefef by now" in err) == (78, True)


def test_one_that_says_nothing_of_use_is_not_taken_for_gone(
    pgr: Run, data: Path, serve: Callable[..., Node], key: Path  # noqa: F811
) -> None:  # fmt: skip
    def failing(frame: Frame) -> list[bytes]:
        return [admin.answer(frame.id, error=TryAgainError("its control plane is being restarted", "try again"))]

    other = serve(data, failing, key=read_key(key))
    serve(data, survivor(outlook("c", b=f"127.0.0.1:{other.port}"), key))
    code, _, err = pgr("recover", "--yes", NAME, "--data", str(data))
    assert (code, "b is not gone" in err) == (78, True)


def test_an_address_that_is_none_answers_nothing() -> None:
    row = {"name": "w", "raft": "nowhere", "postgres": "", "http": ""}
    assert recovercli.answering([row]) == {}


# -- a node that is stopped --------------------------------------------------------------------------------------------


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The data directory of c, which was a member with a and b, and does not run."""
    made = Path(tempfile.mkdtemp(prefix="pgr-stopped-"))
    s = state()
    members = tuple(m._replace(raft="127.0.0.1:1", postgres="127.0.0.1:1", http="127.0.0.1:1") for m in s.members)
    store = open_store(made / "raft" / "raft.sqlite")
    snapshot = Snapshot(30, 7, dump(replace(s, members=members)))
    store.save(
        Write(
            hard=HardState(9, "a", 30, 0), snapshot=snapshot, record=RECORD,
            identity=Identity("c", 1, CLUSTER_ID, "{}"),
            entries=(Entry(31, 7, "noop/1", ""), Entry(32, 8, "promoted/1", PROMOTED)),
        )
    )  # fmt: skip
    store.close()
    (made / "pgdata").mkdir()
    (made / "pgdata" / MARK).write_text(json.dumps({"incarnation": 1}), encoding="utf-8")
    monkeypatch.setattr(pacing, "at_start", lambda *_: replace(PROFILES["default"], election_ms=1))
    yield made
    shutil.rmtree(made)


AT_START = pacing.at_start
PROMOTED = json.dumps({"term": 8, "node": "b", "upper": [7, 500], "timeline": 4, "reason": "", "at": ""})


def test_a_stopped_node_is_recovered_from_its_log(pgr: Run, home: Path) -> None:  # noqa: F811
    code, out, err = pgr("recover", "--dry-run", "--data", str(home))
    assert (code, err) == (0, "")
    told = "the log of this node ends with entry 32 of term 8; the last primary it tells of is b, of term 8"
    assert told in " ".join(out.split())
    assert pgr("recover", "--data", str(home))[0] == 64
    code, out, err = pgr("recover", "--yes", NAME, "--data", str(home))
    assert (code, out) == (0, "recovered: start c now, as ever\n")
    store = open_store(home / "raft" / "raft.sqlite")
    stored = store.load()
    store.close()
    assert stored.identity is not None
    assert stored.identity.cluster_id != CLUSTER_ID
    assert stored.entries == ()
    assert stored.hard.term == 9 + recovery.TERM_GAP
    assert stored.snapshot is not None
    after = load(stored.snapshot.data)
    assert [m.name for m in after.members] == ["c"]
    assert after.next_timeline() > 4 + recovery.TIMELINE_GAP, "what was not committed counts too"
    assert stored.record == NodeRecord(6, HISTORY)
    code, _, err = pgr("recover", "--yes", stored.identity.cluster_id[:8], "--data", str(home))
    assert (code, "no quorum is lost" in err) == (75, True), "once is enough"


def test_as_json(pgr: Run, home: Path) -> None:  # noqa: F811
    assert json.loads(pgr("recover", "--dry-run", "--json", "--data", str(home))[1])["refusal"] is None
    assert json.loads(pgr("recover", "--yes", NAME, "--json", "--data", str(home))[1]) == {"recovered": "c"}


def test_what_answers_is_not_gone_for_a_stopped_node_either(
    pgr: Run, home: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(recovercli, "answering", lambda rows: {"a": "10.0.0.1:7400"})
    code, _, err = pgr("recover", "--yes", NAME, "--data", str(home))
    assert (code, "a is not gone" in err) == (78, True)


def test_of_a_stopped_node_too_it_is_looked_again_when_a_person_has_confirmed(
    pgr: Run, home: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    answers: list[dict[str, str]] = [{}, {"a": "10.0.0.1:7400"}, {}, {}]
    monkeypatch.setattr(recovercli, "answering", lambda rows: answers.pop(0))
    code, out, err = pgr("recover", "--yes", NAME, "--data", str(home))
    assert (code, out, "a is not gone" in err) == (78, "", True)
    assert pgr("recover", "--yes", NAME, "--data", str(home))[0] == 0, "nothing was done before"


UNKNOWN = "the Postgres of c can't say how far its WAL goes"


def seen_of(home: Path) -> tuple[str, bool]:
    """What is said of a stopped node first, and whether every acknowledged commit is said to be kept."""
    node = stopped.StoppedNode(home)
    try:
        look, no = node.look()
    finally:
        node.close()
    assert no is None
    return look.sentences[0], look.kept


def in_store(home: Path, write: Write) -> None:
    store = open_store(home / "raft" / "raft.sqlite")
    store.save(write)
    store.close()


def test_of_a_stopped_copy_without_proof_nothing_is_claimed(home: Path) -> None:
    """Each of the three acknowledged, so a proven copy here would have all; the control is the last line."""
    in_store(home, Write(snapshot=Snapshot(33, 8, dump(state(k=3))), hard=HardState(9, "a", 33, 0)))
    said, kept = seen_of(home)
    assert (said.startswith(UNKNOWN), kept) == (True, False)
    in_store(home, Write(record=RECORD._replace(proof=None)))
    said, kept = seen_of(home)
    assert ("no acknowledged commit is lost" in said, kept) == (True, True)


def test_of_a_stopped_node_whose_data_is_not_in_its_place_nothing_is_claimed(home: Path) -> None:
    in_store(home, Write(record=RECORD._replace(proof=None)))
    assert not seen_of(home)[0].startswith(UNKNOWN)
    shutil.rmtree(home / "pgdata")
    said, kept = seen_of(home)
    assert (said.startswith(UNKNOWN), kept) == (True, False)


def test_a_node_that_runs_is_not_taken_for_stopped(pgr: Run, home: Path) -> None:  # noqa: F811
    lock = lock_data(home)
    try:
        code, _, err = pgr("recover", "--yes", NAME, "--data", str(home))
        assert (code, "another supervisor" in err) == (78, True)
    finally:
        lock.release()


def test_what_is_of_no_use_is_refused(pgr: Run, home: Path) -> None:  # noqa: F811
    def refused(code: int = 78) -> str:
        found, out, err = pgr("recover", "--yes", NAME, "--data", str(home))
        assert (found, out) == (code, "")
        assert "hint: " in err
        return err

    (home / "pgdata" / MARK).write_text(json.dumps({"incarnation": 77}), encoding="utf-8")
    assert "is of another life" in refused()
    (home / "pgdata" / MARK).unlink()
    path = home / "raft" / "raft.sqlite"
    path.write_bytes(b"SQLite format 3" + os.urandom(5000))
    assert "damaged" in refused(74)
    shutil.rmtree(home / "raft")
    assert "is gone: which cluster this was is not known" in refused()
    open_store(path).close()
    assert "was never part of a cluster" in refused()


def test_whoever_does_not_own_it_is_told_who_does(
    pgr: Run, home: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    code, _, err = pgr("recover", "--yes", NAME, "--data", str(home))
    assert (code, "sudo -u" in err) == (69, True)


def test_a_directory_that_is_not_there(pgr: Run, tmp_path: Path) -> None:  # noqa: F811
    assert pgr("recover", "--data", str(tmp_path / "nothing"))[0] == 69
    assert pgr("recover", "--node", "127.0.0.1:1", "--cluster-key", str(tmp_path / "no"))[0] != 0


def test_a_stopped_node_waits_until_its_word_binds_nobody_any_more(
    pgr: Run, home: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    seen: list[tuple[float, str]] = []

    def wait(seconds: float) -> None:
        seen.append((seconds, (home / "raft" / "raft.sqlite-saves").read_bytes().hex()))

    monkeypatch.setattr(pacing, "at_start", AT_START)
    monkeypatch.setattr(stopped, "_wait", wait)
    assert pgr("recover", "--yes", NAME, "--data", str(home))[0] == 0
    ((seconds, before),) = seen
    assert seconds >= PROFILES["default"].election_ms / 1000
    assert before != (home / "raft" / "raft.sqlite-saves").read_bytes().hex(), "only then it was saved"


# -- the node's side ---------------------------------------------------------------------------------------------------


def test_a_dry_run_passes_on_what_the_raft_child_says(asked: Asked) -> None:  # noqa: F811
    asked.ask("recover", dry_run=True)
    asked.said()
    asked.agrees(dry_run=True, to="c", refusal=None, outlook={"kept": False}, **{"from": ""})
    result = ended(asked.said())["result"]
    assert result == {"from": "", "to": "c", "refusal": None, "outlook": {"kept": False}}


def test_it_is_done_when_the_new_cluster_is_open(asked: Asked) -> None:  # noqa: F811
    """The Raft child never answers: it saves, and ends. What its next life tells is the answer."""
    asked.ask("recover", confirm=NAME)
    asked.said()
    before = asked.c.view.cluster
    assert before is not None
    assert before.grant is not None
    asked.c.view = replace(asked.c.view, alive=False)
    told = HistoryEvent("t", "recovered", 9, "b", "has rebuilt the cluster", "{}")
    grown = replace(before, cluster_id="ef" * 16, history=(*before.history, told))
    asked.log(grown)
    assert ("recovered", "recovered: b has rebuilt the cluster") in asked.said()
    new = before.grant._replace(term=before.grant.term + 9, node="b", opened=False, failed="")
    asked.log(replace(grown, grants=(*before.grants, new)))
    assert not [said for said in asked.said() if said[0] == "answer"]
    opened = replace(grown, grants=(*before.grants, new._replace(opened=True)))
    asked.log(opened)
    asked.log(opened, later_ms=600)  # the gap may be told late
    assert ended(asked.said())["result"]["to"] == "b"


def test_root_becomes_the_owner_before_it_writes_anything(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[str, object]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda who, name=name: became.append((name, who)))
    real = Path.stat

    def owned(path: Path, **more: Any) -> Any:
        found = real(path, **more)
        return found if path != home else os.stat_result((*found[:4], 4001, 4002, *found[6:]))

    monkeypatch.setattr(Path, "stat", owned)
    stopped.StoppedNode(home).close()
    assert became == [("setgroups", []), ("setgid", 4002), ("setuid", 4001)]
