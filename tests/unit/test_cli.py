"""``pgr`` against a real ROUTER that speaks the admin protocol: exit code, stdout and stderr, whole."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from consensus.keys import ClusterKey, new_key, read_key
from consensus.transport import ADMIN_MAGIC
from fencing.wire import Frame, decode
from supervisor import admin, cli, reference
from supervisor.errors import RefusedError, TryAgainError
from supervisor.status import event_json, to_json, uris
from tests.unit.snapshots import HISTORY, NOW, snapshot

ROOT = Path(__file__).resolve().parents[2]

Handler = Callable[[Frame], list[bytes]]


class Node:
    """A ROUTER on DIR/run/admin.sock in a thread; ``handler`` turns a request into frames."""

    def __init__(self, data: Path, handler: Handler, run: Path | None = None, key: ClusterKey | None = None) -> None:
        self.requests: list[Frame] = []
        self._handler = handler
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context = context
        self._stop: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._stopped: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._stop.bind(f"inproc://stop.{id(self)}")
        self._stopped.connect(f"inproc://stop.{id(self)}")
        self._router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._magic = ADMIN_MAGIC if key else b""
        self.port = 0
        if key:
            self._router.curve_server = 1
            self._router.curve_secretkey, self._router.curve_publickey = key.secret, key.public
            self.port = self._router.bind_to_random_port("tcp://127.0.0.1")
        else:
            run = run or data / "run"
            run.mkdir(mode=0o700, exist_ok=True)
            self._router.bind(f"ipc://{run}/admin.sock")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._stopped, zmq.POLLIN)
        while self._stopped not in (ready := dict(poller.poll())):
            if self._router in ready:
                identity, data = self._router.recv_multipart()
                assert data.startswith(self._magic)
                frame = decode(data[len(self._magic) :])
                self.requests.append(frame)
                for answer in self._handler(frame):
                    self._router.send_multipart([identity, self._magic + answer])

    def close(self) -> None:
        self._stop.send(b"")
        self._thread.join(10)
        self._context.destroy(linger=0)  # and wait: closing alone leaves it to another thread to stop listening


def well(frame: Frame) -> list[bytes]:
    s, id = snapshot(), frame.id
    match frame.name:
        case "status" if frame.body.get("watch"):
            later = to_json(snapshot("a", term=8), NOW)
            return [
                admin.progress(id, "status.changed", "", to_json(s, NOW)),
                admin.progress("other", "status.changed", "", {}),
                admin.progress(id, "status.changed", "", later),
                admin.answer(id, error=TryAgainError("the node is stopping", "watch another member")),
            ]
        case "status":
            return [admin.answer(id, to_json(s, NOW))]
        case "history":
            return [admin.answer(id, {"history": [event_json(e) for e in HISTORY]})]
        case "uri":
            return [admin.answer(id, dict(uris(s, frame.body["dbname"], frame.body["user"])))]
        case "switchover" | "failover" if frame.body["to"] == "c":
            return [
                admin.answer(id, error=RefusedError("c is not in the sync group", "wait until `pgr status` shows it"))
            ]
        case _:
            result = {"from": "a", "to": "b", "term": 8, "timeline": 3, "gap_ms": 212}
            return [
                admin.progress(id, "switchover.demoting", "a: stopping Postgres"),
                admin.progress(id, "switchover.promoting", "b: promoting"),
                admin.answer(id, result),
            ]


@pytest.fixture
def data() -> Iterator[Path]:
    # Not tmp_path: its name may be too long for a socket.
    made = Path(tempfile.mkdtemp(prefix="pgr-cli-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def node(data: Path) -> Iterator[Node]:
    made = Node(data, well)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGR_DATA", "PGR_CLUSTER_KEY_FILE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pgr(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> tuple[int, str, str]:
        code = cli.main(argv)
        return code, *capsys.readouterr()

    return run


STATUS = """\
cluster 3f2a9c01   term 7   leader a   commit quorum 2 of a, b, c   profile default

NAME  ROLE     STATE        TL        LSN            LAG  SYNC     LEASE  NOTES
a     primary  running       2  0/3000148              -  -       623 ms  -
b     replica  streaming     2  0/3000148  232 B, 250 ms  quorum       -  pending restart, zone=x, nofailover
c     -        unreachable   -          -              -  -            -  not heard of

c: c has not been heard of for 3 s

warning: one more failure stops all writes

a: a is primary of term 7
"""


def stable(text: str) -> str:
    """The lease runs while we print: to the millisecond it is nobody's business."""
    return re.sub(r"6[0-9][0-9] ms", "623 ms", text)


def test_status(pgr: Run, node: Node, data: Path) -> None:
    code, out, err = pgr("status", "--data", str(data))
    assert (code, stable(out), err) == (0, STATUS, "")


def test_status_json_is_what_the_node_said(pgr: Run, node: Node, data: Path) -> None:
    code, out, err = pgr("status", "--data", str(data), "--json")
    assert (code, json.loads(out), err) == (0, to_json(snapshot(), NOW), "")


def test_the_node_may_be_named_before_the_command_or_by_the_environment(
    pgr: Run, node: Node, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pgr("--data", str(data), "status")[0] == 0
    monkeypatch.setenv("PGR_DATA", str(data))
    assert pgr("status")[0] == 0


def test_watch_shows_each_change_until_the_node_stops(pgr: Run, node: Node, data: Path) -> None:
    code, out, err = pgr("status", "--watch", "--data", str(data))
    assert code == 75
    assert stable(out) == STATUS + "\n" + STATUS.replace("term 7 ", "term 8 ") + "\n"
    assert err == "error: the node is stopping\n\nhint: watch another member\n"


def test_watch_json_is_a_line_each(pgr: Run, node: Node, data: Path) -> None:
    _, out, _ = pgr("status", "-w", "--json", "--data", str(data))
    assert [json.loads(line)["term"] for line in out.splitlines()] == [7, 8]


def test_watch_asks_again_and_gives_up(data: Path, monkeypatch: pytest.MonkeyPatch, pgr: Run) -> None:
    monkeypatch.setattr(admin, "RENEW_MS", 50)
    monkeypatch.setattr(admin, "FORGET_MS", 300)
    made = Node(data, lambda _: [])
    try:
        code, out, err = pgr("status", "--watch", "--data", str(data))
        assert (code, out) == (75, "")
        assert err == "error: the node has not answered for 0.05 s\n\nhint: see the log of the node, or try again\n"
        assert len(made.requests) >= 2
        assert len({frame.id for frame in made.requests}) == 1
    finally:
        made.close()


def test_switchover_streams_its_steps(pgr: Run, node: Node, data: Path) -> None:
    assert pgr("switchover", "--to", "b", "--data", str(data)) == (
        0,
        "primary: a -> b, write gap: 212 ms\n",
        "a: stopping Postgres\nb: promoting\n",
    )
    assert node.requests[0].body == {"to": "b", "timeout_ms": 60_000, "by": admin.who()}
    code, out, err = pgr("switchover", "--json", "--data", str(data))
    assert (code, json.loads(out)["gap_ms"], err) == (0, 212, "a: stopping Postgres\nb: promoting\n")
    assert node.requests[1].body == {"to": None, "timeout_ms": 60_000, "by": admin.who()}


def test_failover_says_whether_loss_is_accepted(pgr: Run, node: Node, data: Path) -> None:
    pgr("failover", "--data", str(data))
    pgr("failover", "--to", "b", "--accept-data-loss", "--data", str(data))
    assert [frame.body for frame in node.requests] == [
        {"to": None, "accept_data_loss": False, "timeout_ms": 60_000, "by": admin.who()},
        {"to": "b", "accept_data_loss": True, "timeout_ms": 60_000, "by": admin.who()},
    ]


DRY = """\
failover would be refused; nothing was changed

as things are nobody would win an election: no primary: 1 more is needed
NAME  EPOCH:LSN  BEHIND  HEARD       VERDICT
b     3:0/5A       10 B  -           may lack commits that were acknowledged
c     -               -  12.0 s ago  is not heard of
"""


def dry_handler(frame: Frame) -> list[bytes]:
    """`switchover` would go well, `failover` would be refused."""
    rows = [
        {"name": "b", "wins": frame.name == "switchover", "why": "may lack commits that were acknowledged", "up": True,
         "age_ms": 10, "behind_bytes": 10, "position": {"epoch": 3, "lsn": "0/5A"}},
        {"name": "c", "wins": False, "why": "is not heard of", "up": False, "age_ms": 12_000, "behind_bytes": None,
         "position": None},
    ]  # fmt: skip
    found = {
        "winners": ["b"] if frame.name == "switchover" else [], "reason": "no primary: 1 more is needed", "missing": [],
        "candidates": rows, "lost_bytes": 0, "acknowledged": False, "voters_up": 2, "voters_needed": 2,
    }  # fmt: skip
    refusal = None if frame.name == "switchover" else {"code": 78, "error": "c is needed", "hint": "start c"}
    return [admin.answer(frame.id, {"from": "a", "to": "b", "refusal": refusal, "forecast": found})]


def test_a_dry_run_shows_what_would_come_and_ends_as_the_real_one_would(pgr: Run, data: Path) -> None:
    node = Node(data, dry_handler)
    try:
        code, out, err = pgr("switchover", "--dry-run", "--data", str(data))
        assert (code, err) == (0, "")
        assert out.startswith("switchover would move the primary from a to b; nothing was changed\n")
        code, out, err = pgr("failover", "--dry-run", "--accept-data-loss", "--data", str(data))
        assert (code, out, err) == (78, DRY, "error: c is needed\n\nhint: start c\n")
        code, out, err = pgr("failover", "--dry-run", "--json", "--data", str(data))
        assert (code, json.loads(out)["refusal"]["code"]) == (78, 78)
        assert [frame.body["dry_run"] for frame in node.requests] == [True] * 3
    finally:
        node.close()


EXPLAINED = {
    "node": "b", "leader": "", "term": 7, "state": "no leader", "headline": "no leader is known", "source": "as b knew",
    "explanation": "", "reign": None, "assumed_lost": "", "election": None, "overruled": None, "trouble": [],
    "warnings": ["a single node"], "hints": ["start a"],
}  # fmt: skip


def test_explain(pgr: Run, data: Path) -> None:
    node = Node(data, lambda frame: [admin.answer(frame.id, EXPLAINED)])
    try:
        page = "no leader is known\n(as b knew)\n\nwarning: a single node\n\nhint: start a\n"
        assert pgr("explain", "--data", str(data)) == (0, page, "")
        assert json.loads(pgr("explain", "--json", "--data", str(data))[1]) == EXPLAINED
        assert node.requests[0].name == "explain"
    finally:
        node.close()


def test_who_asks_is_told_as_well_as_this_machine_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    host = os.uname().nodename
    assert admin.who() == f"{pwd.getpwuid(os.getuid()).pw_name}@{host}"
    monkeypatch.setenv("SUDO_USER", "ann")
    assert admin.who() == f"ann@{host}"
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    assert admin.who() == f"54321@{host}"


def test_a_refusal_says_why_and_what_to_do(pgr: Run, node: Node, data: Path) -> None:
    assert pgr("switchover", "--to", "c", "--data", str(data)) == (
        78,
        "",
        "error: c is not in the sync group\n\nhint: wait until `pgr status` shows it\n",
    )


def member_handler(frame: Frame) -> list[bytes]:
    body, id = frame.body, frame.id
    if frame.name == "status":
        return well(frame)
    if body["name"] == "a":
        return [admin.answer(id, error=TryAgainError("a is the primary", "first move it: `pgr switchover`"))]
    role = body["role"] if frame.name == "member.add" else "gone"
    return [
        admin.progress(id, "member", f"member: {body['name']} is to be {role}"),
        admin.answer(id, {"name": body["name"], "role": role}),
    ]


@pytest.mark.parametrize(
    ("argv", "asked", "out"),
    [
        (["add", "b"], {"name": "b", "role": "voter"}, "b: voter\n"),
        (["add", "b", "--role", "learner"], {"name": "b", "role": "learner"}, "b: learner\n"),
        (["remove", "b"], {"name": "b"}, "b: no member any more\n"),
    ],
)
def test_members_are_changed(pgr: Run, data: Path, argv: list[str], asked: dict[str, str], out: str) -> None:
    node = Node(data, member_handler)
    try:
        role = "learner" if "learner" in argv else "voter" if argv[0] == "add" else "gone"
        said = f"member: b is to be {role}\n"
        assert pgr("member", *argv, "--data", str(data), "--timeout", "5") == (0, out, said)
        sent = asked | {"timeout_ms": 5000}
        assert (node.requests[0].name, node.requests[0].body) == (f"member.{argv[0]}", sent)
        code, shown, _ = pgr("member", *argv, "--json", "--data", str(data))
        assert (code, json.loads(shown)) == (0, {"name": "b", "role": role})
        assert node.requests[1].body["timeout_ms"] == 600_000
    finally:
        node.close()


@pytest.mark.parametrize(
    ("argv", "asked", "out"),
    [
        (["reinit", "b"], {"name": "b", "timeout_ms": 600_000}, "b: has its new copy\n"),
        (["fence", "b"], {"name": "b", "force": False, "timeout_ms": 60_000}, "b: fenced, its Postgres is down\n"),
        (["fence", "b", "--force"], {"name": "b", "force": True, "timeout_ms": 60_000},
         "b: fenced, its Postgres is down\n"),
        (["unfence", "b"], {"name": "b", "timeout_ms": 60_000}, "b: fenced no more\n"),
    ],
)  # fmt: skip
def test_one_node_is_asked_for(pgr: Run, data: Path, argv: list[str], asked: dict[str, Any], out: str) -> None:
    node = Node(data, lambda frame: [admin.answer(frame.id, {"name": frame.body["name"]})])
    try:
        assert pgr(*argv, "--data", str(data)) == (0, out, "")
        assert (node.requests[0].name, node.requests[0].body) == (argv[0], asked | {"by": admin.who()})
        assert json.loads(pgr(*argv, "--json", "--data", str(data))[1]) == {"name": "b"}
    finally:
        node.close()


def test_members_are_listed_and_refusals_explained(pgr: Run, data: Path) -> None:
    node = Node(data, member_handler)
    try:
        code, out, err = pgr("member", "list", "--data", str(data))
        assert (code, err) == (0, "")
        assert [line.split()[:2] for line in out.splitlines()[1:]] == [["a", "voter"], ["b", "voter"], ["c", "voter"]]
        rows = json.loads(pgr("member", "list", "--json", "--data", str(data))[1])
        assert [(row["name"], row["seat"]) for row in rows] == [("a", True), ("b", True), ("c", True)]
        refusal = (75, "", "error: a is the primary\n\nhint: first move it: `pgr switchover`\n")
        assert pgr("member", "remove", "a", "--data", str(data)) == refusal
    finally:
        node.close()


def test_no_answer_to_an_action_may_mean_it_was_done(data: Path, monkeypatch: pytest.MonkeyPatch, pgr: Run) -> None:
    monkeypatch.setattr(cli, "ACTION_IDLE_MS", 100)
    made = Node(data, lambda frame: [admin.progress(frame.id, "x", "asked a to stop")])
    try:
        assert pgr("switchover", "--data", str(data)) == (
            75,
            "",
            "asked a to stop\n"
            "error: the node has not answered for 0.1 s; the last that is known: asked a to stop\n\n"
            "hint: look at `pgr status`, of any node, before trying again: the request may have been carried out\n",
        )
    finally:
        made.close()


@pytest.mark.parametrize("junk", [b"", b"{}", b'{"v":2,"name":"x","id":"","body":{}}'])
def test_an_unreadable_node_is_told_apart(junk: bytes, data: Path, pgr: Run) -> None:
    made = Node(data, lambda _: [junk])
    try:
        code, out, err = pgr("status", "--data", str(data))
        assert (code, out) == (70, "")
        assert err.startswith("error: the node sent something unreadable: ")
        assert err.endswith("\n\nhint: is `pgr` as new as the node? compare with `pgr version`\n")
    finally:
        made.close()


def test_uri(pgr: Run, node: Node, data: Path) -> None:
    base = "postgresql://10.0.0.1:5432,10.0.0.2:5432/postgres?connect_timeout=3&target_session_attrs="
    assert pgr("uri", "--data", str(data)) == (
        0,
        f"{base}read-write\n{base}prefer-standby\n",
        "read-write:\nread-only:\n",
    )
    assert pgr("uri", "--read-only", "--data", str(data)) == (0, f"{base}prefer-standby\n", "")
    assert json.loads(pgr("uri", "--json", "--data", str(data))[1])["read_write"] == f"{base}read-write"
    assert pgr("uri", "--read-only", "--read-write", "--data", str(data))[0] == 64


def test_run_path_points_to_sockets_elsewhere(pgr: Run, data: Path) -> None:
    elsewhere = Path(tempfile.mkdtemp(prefix="pgr-run-"))
    made = Node(data, well, run=elsewhere)
    (data / "run.path").write_text(f"{elsewhere}\n")
    try:
        assert pgr("status", "--data", str(data))[0] == 0
    finally:
        made.close()
        shutil.rmtree(elsewhere)


def test_a_remote_node(pgr: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, wrong = data / "cluster.key", data / "other.key"
    for each in (file, wrong):
        each.touch(mode=0o600)
        each.write_text(new_key())
    made = Node(data, well, key=read_key(file))
    where = ("--node", f"127.0.0.1:{made.port}")
    try:
        code, out, err = pgr("status", *where, "--cluster-key", str(file))
        assert (code, stable(out), err) == (0, STATUS, "")
        assert pgr(*where, "--cluster-key", str(file), "switchover", "--to", "b")[:2] == (
            0,
            "primary: a -> b, write gap: 212 ms\n",
        )
        monkeypatch.setattr(admin.Admin.request, "__kwdefaults__", {"idle_ms": 500, "on_progress": lambda _: None})
        code, out, err = pgr("status", *where, "--cluster-key", str(wrong))
        assert (code, out) == (75, "")
        assert err.startswith(f"error: no answer from 127.0.0.1:{made.port}: ")
    finally:
        made.close()


def test_a_remote_node_needs_an_address_and_a_key(pgr: Run, data: Path) -> None:
    code, _, err = pgr("status", "--node", "nonsense", "--cluster-key", str(data / "none"))
    assert code == 64
    assert "HOST:PORT" in err
    code, _, err = pgr("status", "--node", "127.0.0.1:1", "--cluster-key", str(data / "none"))
    assert code == 69
    assert err.startswith(f"error: cluster key {data}/none does not exist")


def test_demo_hands_on_its_options_and_its_exit_code(pgr: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    fake = types.ModuleType("supervisor.demo")

    def run(**options: Any) -> int:
        seen.append(options)
        return 75

    vars(fake)["run"] = run
    monkeypatch.setitem(sys.modules, "supervisor.demo", fake)
    assert pgr("demo", "--once", "--data", str(data), "--profile", "fast") == (75, "", "")
    assert seen == [{"once": True, "keep": False, "data": data, "profile": "fast"}]


def test_what_is_missing_is_named(pgr: Run, data: Path) -> None:
    nowhere = data / "nowhere"
    assert pgr("status", "--data", str(nowhere)) == (
        69,
        "",
        f"error: no such directory: `{nowhere}`\n\n"
        "hint: give the directory that `pgr-supervise --data` was started with\n",
    )
    start = f"hint: start the node: `pgr-supervise --data {data}`\n"
    assert pgr("status", "--data", str(data)) == (69, "", f"error: no node runs in `{data}`\n\n{start}")
    made = Node(data, well)
    made.close()
    assert (data / "run" / "admin.sock").exists(), "it is left behind, as by a node that was killed"
    assert pgr("status", "--data", str(data)) == (
        69,
        "",
        f"error: no node runs in `{data}`: nobody answers on its admin socket\n\n{start}",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes another user")
def test_another_user_is_told_whom_to_be(node: Node, data: Path) -> None:
    data.chmod(0o755)
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from supervisor import cli
os.setuid({pwd.getpwnam("nobody").pw_uid})
sys.exit(cli.main(["status", "--data", {str(data)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == (
        f"error: not allowed to open `{data}/run/admin.sock`\n\n"
        "hint: run this as the user that owns the node: `sudo -u root pgr ...`\n"
    )


@pytest.mark.parametrize(
    ("argv", "error", "hint"),
    [
        (["bogus"], "No such command 'bogus'", "`pgr --help` shows what it takes"),
        (["status", "--bogus"], "No such option: --bogus", "`pgr status --help` shows what it takes"),
        (
            ["status"],
            "which node? neither `--data` nor `--node` is given",
            "add `--data DIR` or set PGR_DATA; from another machine: `--node HOST:PORT --cluster-key FILE`",
        ),
        (
            ["status", "--node", "h:1"],
            "`--node` needs `--cluster-key`",
            "give the key file that all members share, for example `--cluster-key DIR/cluster.key`",
        ),
    ],
)
def test_wrong_usage(pgr: Run, argv: list[str], error: str, hint: str) -> None:
    assert pgr(*argv) == (64, "", f"error: {error}\n\nhint: {hint}\n")


def test_too_many_arguments(pgr: Run) -> None:
    code, out, err = pgr("switchover", "b")
    assert (code, out) == (64, "")
    assert err.startswith("error: Got unexpected extra argument")


def test_help_alone_goes_to_stdout(pgr: Run) -> None:
    code, out, err = pgr("--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: pgr ")


def test_key_new(pgr: Run, data: Path) -> None:
    from consensus.keys import parse_key

    code, out, err = pgr("key", "new")
    assert (code, err) == (0, "")
    parse_key(out)
    file = data / "cluster.key"
    code, out, err = pgr("key", "new", "--out", str(file))
    assert (code, out) == (0, "")
    assert str(file) in err
    assert file.stat().st_mode & 0o777 == 0o600
    first = read_key(file)
    assert pgr("key", "new", "--out", str(file))[0] == 64
    code, _, err = pgr("key", "new", "--out", str(file.parent / "nowhere" / "key"))
    assert code == 64
    assert "hint: make the directory" in err
    assert read_key(file) == first


def test_version(pgr: Run) -> None:
    found = cli.installed_version()
    assert pgr("version") == (0, f"pgr {found}\n", "")
    assert json.loads(pgr("version", "--json")[1]) == {"version": found}


def test_the_versions_of_all(pgr: Run, node: Node, data: Path) -> None:
    code, out, err = pgr("version", "--all", "--data", str(data))
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()[2:]] == [
        ["NAME", "PGR", "POSTGRES"], ["a", "0.1.0", "18.6"], ["b", "0.1.0", "18.6"], ["c", "-", "-"],
    ]  # fmt: skip
    told = json.loads(pgr("version", "--all", "--json", "--data", str(data))[1])
    assert told["members"][1] == {"name": "b", "pgr": "0.1.0", "postgres": "18.6"}


def test_a_terminal_gets_colour_unless_it_declines(
    pgr: Run, node: Node, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "on_terminal", lambda: True)
    coloured = pgr("status", "--data", str(data))[1]
    assert "\x1b[" in coloured
    assert stable(re.sub(r"\x1b\[\d*m", "", coloured)) == STATUS, "colour carries no meaning of its own"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in pgr("status", "--data", str(data))[1]


def test_a_reader_that_leaves_is_no_crash(node: Node, data: Path) -> None:
    line = (
        f'"{sys.executable}" -m supervisor.cli status --watch --json --data "{data}" | true; echo "${{PIPESTATUS[0]}}"'
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.stderr == "" or "the node is stopping" in done.stderr
    assert done.stdout.strip() in ("141", "75")


def test_only_cli_imports_typer() -> None:
    script = "import sys, supervisor.status, supervisor.healthserver, supervisor.metrics, supervisor.admin\n"
    script += "import supervisor.render\n"
    script += "print(sorted({'typer', 'click', 'rich', 'http', 'psycopg', 'sqlite3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_the_reference_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference.FILE.read_text() == reference.text(), "run: python -m supervisor.reference"
