"""Hooks as real processes: what they are given, in which order, how they are ended, and that nobody waits for them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consensus.cluster import ClusterState, Grant, canonical
from consensus.record import Position
from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import hooks as module
from supervisor.children import ChildTable
from supervisor.context import Context
from supervisor.errors import MissingError
from supervisor.hooks import HOLD_MS, Hooks
from supervisor.launcher import Launcher
from supervisor.observe import Facts
from supervisor.roles import Local, Server, Step, View
from supervisor.tasks import Runner

SECOND = 1_000 * MS
GRANT = Grant(5, "a", Position(0, 0), 2, (), opened=True)
PRIMARY = {"server": Server.PRIMARY, "gate_open": True}


class Programs:
    """Stands for the launcher: a program in a session of its own (tests/process/test_launcher.py has the real one)."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def spawn(
        self, kind: str, *, argv: Sequence[str], env: Mapping[str, str], cwd: str, log_path: str, stdin_path: str,
        death_signal: int,
    ) -> int:  # fmt: skip
        assert (kind, cwd, death_signal) == ("postgres", "/", signal.SIGKILL)
        with Path(stdin_path).open("rb") as stdin, Path(log_path).open("ab") as log:
            try:
                made = subprocess.Popen(
                    argv, stdin=stdin, stdout=log, stderr=log, env=dict(env), cwd=cwd, start_new_session=True
                )
            except OSError as error:
                raise MissingError(f"{argv[0]} can't be started: {error.strerror}", "") from error
        made.returncode = 0  # somebody else reaps it
        self.started.append(made)
        return made.pid


class Node:
    """A loop with hooks in it, and everything it logs and tells."""

    def __init__(self, home: Path) -> None:
        self.home, self.programs, self.runner = home, Programs(), Runner()
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.told: list[dict[str, Any]] = []
        log: Any = SimpleNamespace(info=self._log, warning=self._log)
        (home / "run").mkdir(exist_ok=True)
        config = SimpleNamespace(run=home / "run", data=home, pg_advertise="127.0.0.1:5432")
        self.settings: dict[str, Any] = {}
        self.c = cast(Context, SimpleNamespace(
            config=config, log=log, os_user="nobody", children=ChildTable(), local=Local("a"),
            view=View(alive=True, leader="a"), cluster=ClusterState(), facts=Facts(),
            raft=SimpleNamespace(tell=lambda name, body: self.told.append({"name": name} | body)),
        ))  # fmt: skip
        self.hooks = Hooks(self.c, cast(Launcher, self.programs), self.runner)
        self.step = Step.WAIT

    def _log(self, event: str, **fields: Any) -> None:
        self.logged.append((event, fields))

    def set(self, **values: Any) -> None:
        """Cluster-wide settings; __ for the dot."""
        self.settings |= {f"hooks.{name}": value for name, value in values.items()}
        state = ClusterState(cluster_id="c0ffee", grants=(GRANT,), config=canonical(self.settings))
        object.__setattr__(self.c, "cluster", state)
        self.view(cluster=state)

    def view(self, **changes: Any) -> None:
        self.c.view = replace(self.c.view, **changes)

    def change(self, **facts: Any) -> None:
        self.c.local = replace(self.c.local, **facts)
        self.turn(0)

    def turn(self, wait_ms: int = 20) -> None:
        """As the daemon's: also its reaping of everything that ends."""
        fds, until_ns = self.runner.wait_for()
        poller = select.poll()
        for fd in fds:
            poller.register(fd, select.POLLIN)
        poller.poll(max(0, min(wait_ms, (until_ns - now_ns()) // MS)))
        self.c.children.reap_all()
        self.runner.run(dict.fromkeys(fds, 1), now_ns())
        self.hooks.turn(self.step, now_ns())

    def until(self, what: Callable[[], object], seconds: float = 30) -> None:
        give_up_ns = now_ns() + int(seconds * SECOND)
        while not what():
            assert now_ns() < give_up_ns, (self.logged, self.told)
            self.turn()

    def script(self, text: str, name: str = "hook") -> list[str]:
        path = self.home / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return [str(path)]

    def lines(self, name: str) -> list[str]:
        path = self.home / name
        return path.read_text().splitlines() if path.exists() else []

    def events(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.logged if event == name]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.hooks.close()
    for process in made.programs.started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended
    made.c.children.reap_all()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


ROLE = 'printf "%s %s %s|%s|" "$1" "$2" "$3" "$PGR_PREVIOUS_ROLE" >> "$PGR_DATA/out"; cat >> "$PGR_DATA/out"'


def test_a_role_is_told_as_arguments_environment_and_json(node: Node) -> None:
    node.set(on_role_change=[*node.script(ROLE + '; env | sort > "$PGR_DATA/env"; pwd'), "two words"])
    node.until(lambda: node.events("hook.end"))
    (line,) = node.lines("out")
    arguments, previous, body = line.split("|", 2)
    assert (arguments, previous) == ("two words on_role_change replica", ""), "the setting's arguments, then Patroni's"
    told = json.loads(body)
    assert told | {"at": "t"} == {
        "hook": "on_role_change", "at": "t", "member": "a", "cluster": "c0ffee", "term": 5, "primary": "a",
        "role": "replica", "previous_role": "", "postgres": "127.0.0.1:5432",
    }  # fmt: skip
    names = {line.partition("=")[0] for line in node.lines("env")} - {"PWD", "OLDPWD", "SHLVL", "_"}
    assert names == {
        "PATH", "HOME", "USER", "LOGNAME", "LANG", "PGR_HOOK", "PGR_MEMBER", "PGR_CLUSTER", "PGR_TERM", "PGR_ROLE",
        "PGR_PREVIOUS_ROLE", "PGR_DATA",
    }, "nothing is inherited"  # fmt: skip
    assert node.events("hook.says") == [{"hook": "on_role_change", "text": "/"}]


def test_every_change_is_told_in_order_one_at_a_time(node: Node) -> None:
    node.set(on_role_change=node.script('echo "begin $2" >> "$PGR_DATA/out"; sleep 0.1; echo end >> "$PGR_DATA/out"'))
    node.turn()
    for _ in range(3):
        node.change(**PRIMARY)
        node.change(server=Server.STOPPING, gate_open=False)
    node.until(lambda: len(node.lines("out")) == 14)
    roles = ["replica", *["primary", "replica"] * 3]
    assert node.lines("out") == [line for role in roles for line in (f"begin {role}", "end")]
    assert not node.hooks.owed


def test_the_role_is_told_anew_when_the_hook_changes(node: Node) -> None:
    node.change(**PRIMARY)
    node.turn()
    node.set(on_role_change=node.script(ROLE, "one"))
    node.until(lambda: len(node.lines("out")) == 1)
    node.set(on_role_change=node.script(ROLE, "two"))
    node.until(lambda: len(node.lines("out")) == 2)
    assert [line.split("|")[:2] for line in node.lines("out")] == [["on_role_change primary c0ffee", ""]] * 2
    node.set(on_role_change=None)
    node.change(server=Server.DOWN, gate_open=False)
    node.turn()
    assert not node.hooks.role_change.waiting, "nobody is to be told"


def test_one_that_hangs_is_killed_with_its_children_and_the_next_is_run(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KILL_MS", 100)
    hangs = """echo $2 >> "$PGR_DATA/out"; [ $2 = replica ] && exit 0
    trap "" TERM; sleep 999 & echo $! >> "$PGR_DATA/pid"; echo stuck; wait; sleep 999"""
    node.set(on_role_change=node.script(hangs), on_role_change_timeout=1)
    node.until(lambda: node.lines("out") == ["replica"])
    node.change(**PRIMARY)
    node.change(server=Server.STOPPING, gate_open=False)
    node.until(lambda: len(node.lines("out")) == 3)
    assert node.events("hook.killed") == [{"hook": "on_role_change", "after_ms": 1000, "said": "stuck"}]
    (child,) = node.lines("pid")
    node.until(lambda: not alive(int(child)))
    assert node.lines("out") == ["replica", "primary", "replica"]


def test_one_lane_does_not_wait_for_another(node: Node) -> None:
    node.set(on_event=node.script("sleep 999", "hang"), on_role_change=node.script(ROLE))
    node.hooks.record(record())
    node.until(lambda: node.hooks.event.running)
    node.until(lambda: node.lines("out"))
    assert node.hooks.event.running


def record(**more: Any) -> dict[str, Any]:
    return {"event": "gate.open", "scope": "node", "text": "is open", "fields": {}} | more


def test_an_event_is_json_and_one_of_the_log_is_told_by_the_leader_alone(node: Node) -> None:
    node.set(on_event=node.script('cat >> "$PGR_DATA/out"'))
    node.hooks.record(record(scope="cluster", event="opened"))
    node.hooks.record(record(fields={"hook": "on_event"}))
    node.view(leader="b")
    node.hooks.record(record(scope="cluster", event="opened"))
    node.hooks.record(record())
    node.until(lambda: len(node.lines("out")) == 2 and node.hooks.event.idle)
    told = [json.loads(line) for line in node.lines("out")]
    assert [t["event"]["event"] for t in told] == ["opened", "gate.open"]
    assert told[0]["hook"] == "on_event"


def test_too_many_that_wait_cost_the_oldest_and_it_is_said(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 2)
    node.set(on_event=node.script('cat >> "$PGR_DATA/out"'))
    for text in "abcd":
        node.hooks.record(record(text=text))
    node.until(lambda: len(node.lines("out")) == 2)
    assert [json.loads(line)["event"]["text"] for line in node.lines("out")] == ["c", "d"]
    assert node.events("hook.lost") == [{"hook": "on_event", "lost": 2}]


def test_none_is_started_while_postgres_is_stopped_or_promoted_but_not_for_ever(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.set(on_role_change=node.script(ROLE))
    node.until(lambda: node.events("hook.end"))
    node.step = Step.FENCE
    node.change(**PRIMARY)
    for _ in range(20):
        node.turn()
    assert len(node.programs.started) == 1
    assert node.hooks.owed
    node.step = Step.WAIT
    node.until(lambda: len(node.lines("out")) == 2)
    monkeypatch.setattr(module, "HOLD_MS", 50)
    node.step = Step.FENCE
    node.change(server=Server.DOWN, gate_open=False)
    node.until(lambda: len(node.lines("out")) == 3)
    assert HOLD_MS == 3_000


# -- pre_promote


def verdict(node: Node, run: tuple[int, int]) -> dict[str, Any]:
    node.view(pre_promote=run)
    node.told.clear()
    node.until(lambda: node.told)
    return node.told[0]


@pytest.mark.parametrize(
    ("text", "ok", "reason"),
    [
        ("cat > /dev/null; echo fine", True, "ended with 0: fine"),
        ("echo no device >&2; exit 3", False, "ended with 3: no device"),
        ("kill -KILL $$", False, "signal 9"),
        ("echo busy; sleep 999", False, "killed after 1 s, it had said: busy"),
    ],
)
def test_how_pre_promote_ends_is_the_answer(node: Node, text: str, ok: bool, reason: str) -> None:
    node.set(pre_promote=node.script(text), pre_promote_timeout=1)
    told = verdict(node, (7, 1))
    assert told == {"name": "node.hooked", "run": [7, 1], "ok": ok, "reason": reason}


def test_a_hook_that_is_not_there_says_no(node: Node) -> None:
    node.set(pre_promote=[str(node.home / "nothing")])
    told = verdict(node, (7, 1))
    assert (told["ok"], told["reason"]) == (
        False, f"it can't be started: {node.home}/nothing can't be started: No such file or directory",
    )  # fmt: skip
    assert node.events("hook.not_started")


def test_what_can_not_be_executed_is_known_before_it_is_needed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_MS", 10)
    (path,) = node.script("exit 0")
    Path(path).chmod(0o600)
    node.set(pre_promote=[path], on_event=["/bin/true"])
    node.until(lambda: node.c.facts.missing_hooks == (f"hooks.pre_promote: {path}",))
    Path(path).chmod(0o700)
    node.until(lambda: node.c.facts.missing_hooks == ())


def test_an_answer_is_said_again_while_it_is_wanted_and_each_run_is_run_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAY_AGAIN_MS", 10)
    node.set(pre_promote=node.script('echo x >> "$PGR_DATA/out"'))
    verdict(node, (7, 1))
    node.until(lambda: len(node.told) >= 3)
    assert node.lines("out") == ["x"]
    verdict(node, (7, 2))
    assert node.lines("out") == ["x", "x"]
    node.view(pre_promote=(0, 0))
    node.turn()
    node.told.clear()
    for _ in range(5):
        node.turn()
    assert node.told == []


@pytest.mark.parametrize("why", ["no longer wanted", "the Raft child is gone", "another run"])
def test_a_run_that_nobody_wants_any_more_is_killed(node: Node, why: str) -> None:
    node.set(pre_promote=node.script('sleep 999 & echo $$ $! > "$PGR_DATA/pid"; wait'), pre_promote_timeout=600)
    node.view(pre_promote=(7, 1))
    node.until(lambda: node.lines("pid"))
    pids = [int(word) for word in node.lines("pid")[0].split()]
    match why:
        case "no longer wanted":
            node.view(pre_promote=(0, 0))
        case "the Raft child is gone":
            node.view(alive=False)
        case _:
            node.view(pre_promote=(7, 2))
    node.until(lambda: not any(map(alive, pids)))
    assert [t for t in node.told if t["run"] == [7, 1]] == []


# -- what is left


def test_a_loud_hook_does_not_fill_the_log(node: Node) -> None:
    program = "import sys\nfor i in range(50_000): print('x' * 50)\nsys.stdout.write('y' * 100_000)"
    node.set(on_role_change=[sys.executable, "-c", program])
    node.until(lambda: node.events("hook.end"))
    assert len(node.events("hook.says")) == 200
    assert node.events("hook.says_more")[0]["lines"] > 40_000
    assert max(len(f["text"]) for f in node.events("hook.says")) <= 2_000


def test_what_a_killed_supervisor_left_is_ended_and_a_daemon_is_not(node: Node) -> None:
    text = 'sleep 999 & echo $! > "$PGR_DATA/pid"; setsid sleep 998 & echo $! > "$PGR_DATA/daemon"; wait'
    node.set(on_role_change=node.script(text))
    node.until(lambda: node.lines("pid") and node.lines("daemon"))
    left, daemon = int(node.lines("pid")[0]), int(node.lines("daemon")[0])
    leader = node.programs.started[0].pid
    node.until(lambda: os.getsid(daemon) == daemon)
    os.kill(leader, signal.SIGKILL)  # the death signal of the real launcher
    node.until(lambda: not alive(leader))
    mark = node.home / "run" / "hook-on_role_change.pid"
    mark.write_text(str(leader))
    again = Node(node.home)
    try:
        node.until(lambda: not alive(left))
        assert alive(daemon)
        assert again.events("hook.leftover_ended") == [{"hook": "on_role_change", "pids": [left]}]
        assert not mark.exists()
    finally:
        os.kill(daemon, signal.SIGKILL)
        again.hooks.close()
