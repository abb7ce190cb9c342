"""What ALTER SYSTEM changes: an emptied list of names, and what is known of it when something rests on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor import promote, regroup
from supervisor.context import Context
from supervisor.promote import Promotion
from supervisor.regroup import Regroup
from supervisor.roles import Plan, Step
from supervisor.steps import Steps
from supervisor.tasks import Task, run_blocking
from supervisor.watch import Watcher
from tests.unit.test_regroup_rules import WANTED
from tests.unit.test_settings_applied import Node


class Session:
    """Of a Postgres whose files and whose memory say what the test says."""

    def __init__(self, node: Node, found: dict[str, str] | None = None) -> None:
        self.node, self.found, self.said = node, found, list[str]()
        self.meanwhile: Any = lambda: None
        self.in_force = list[str]()

    def query(self, text: str, *_: object, **__: object) -> Task[Any]:
        self.said.append(text)
        if "pg_file_settings" in text:
            found = self.found if self.found is not None else self.node.owned
            rows = [(name, value.encode().hex()) for name, value in found.items()]
            self.meanwhile()
            return rows
        if "current_setting" in text:
            return [(self.in_force.pop(0) if self.in_force else self.node.conf["names"],)]
        if "backend_start" in text:
            return [] if "walsender" in text else [("2026-01-01",)]
        return [("x",)]
        yield

    def take_notices(self) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class Tampered(Node):
    commits_wait = True

    def own_conninfo(self) -> str:
        return ""

    def need_postmaster(self) -> Any:
        return self.postmaster

    def primary_names(self, _: int) -> str:
        return 'ANY 1 ("c.00000007.5")'

    @property
    def record(self) -> Any:
        return self.view.record


def node_with_names() -> Tampered:
    node = Tampered()
    node.log = SimpleNamespace(info=lambda *_, **__: None, warning=lambda *_, **__: None, error=lambda *_, **__: None)
    node.log.once_per = lambda *_: node.log
    node.written.clear()
    node.apply_settings()
    return node


def emptied(node: Node) -> dict[str, str]:
    return {**node.owned, "synchronous_standby_names": ""}


def connecting(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    def connect(*_: object) -> Task[Any]:
        return session
        yield

    for module in (regroup, promote):
        monkeypatch.setattr(module.sql, "connect", connect)


def regrouping(node: Tampered, session: Session) -> Regroup:
    def kept() -> Task[Any]:
        return session
        yield

    return Regroup(cast(Context, node), cast(Steps, SimpleNamespace(until_logged=lambda *_: iter(()), session=kept)))


@pytest.mark.parametrize(("in_force", "checkpoints"), [('ANY 1 ("b.00000007.5")', 0), ("", 1)])
def test_who_is_found_empty_by_a_regroup_gets_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, in_force: str, checkpoints: int
) -> None:
    """Nobody else has looked yet."""
    node = node_with_names()
    session = Session(node)
    session.in_force.append(in_force)
    connecting(monkeypatch, session)
    run_blocking(regrouping(node, session).regroup(WANTED))
    assert session.said.count("CHECKPOINT") == checkpoints


def test_who_was_emptied_right_before_a_regroup_gets_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """ALTER SYSTEM and a reload; the watcher asks for the files, and the regroup writes them while it waits."""
    node = node_with_names()
    session = Session(node, emptied(node))
    connecting(monkeypatch, session)
    step = regrouping(node, session)
    session.meanwhile = lambda: step._write_names(WANTED)
    watcher = Watcher.__new__(Watcher)
    watcher.c, watcher.loaded, watcher.altered = cast(Context, node), "before", ()
    run_blocking(watcher._overrule(cast(Any, session), "after"))
    session.found = None
    run_blocking(watcher._overrule(cast(Any, session), "after the regroup's own"))
    run_blocking(step.regroup(WANTED))
    assert "CHECKPOINT" in session.said, "the flag may be down: the proof of the new group is none"


def test_an_epoch_is_proven_after_a_checkpoint_where_the_names_were_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were emptied on the standby, it was seen and put back; then it was promoted."""
    node = node_with_names()
    session = Session(node, emptied(node))
    connecting(monkeypatch, session)
    watcher = Watcher.__new__(Watcher)
    watcher.c, watcher.loaded, watcher.altered = cast(Context, node), "before", ()
    run_blocking(watcher._overrule(cast(Any, session), "after"))
    assert (node.altered, node.commits_wait) == (True, False)
    node.apply_settings()
    monkeypatch.setattr(promote, "first_run", lambda c: iter(()))
    steps = SimpleNamespace(until_logged=lambda *_: iter(()))
    run_blocking(Promotion(cast(Context, node), cast(Steps, steps)).prove(Plan(Step.OPEN, 5)))
    emitted = next(n for n, text in enumerate(session.said) if "opened" in text)
    assert "CHECKPOINT" in session.said[:emitted], "nobody but the checkpointer makes commits wait (safety.md, 4)"


def test_a_sighup_is_not_forgotten_for_a_look_that_finds_nothing() -> None:
    node = node_with_names()
    session = Session(node)
    watcher = Watcher.__new__(Watcher)
    watcher.c, watcher.loaded, watcher.altered = cast(Context, node), "before", ()
    node.altered = True  # `Daemon._signal`, in the turn in which the answer comes
    run_blocking(watcher._overrule(cast(Any, session), "after"))
    assert node.altered


def test_what_is_in_the_files_is_compared_as_bytes_whatever_the_encoding_of_the_database() -> None:
    """Else each look would write and load them anew, after which there is another look."""
    node = node_with_names()
    node.owned = {**node.owned, "cluster_name": "größe"}
    watcher = Watcher.__new__(Watcher)
    watcher.c, watcher.loaded, watcher.altered = cast(Context, node), "before", ()
    run_blocking(watcher._overrule(cast(Any, Session(node)), "after"))
    assert not node.altered


def test_a_full_disk_where_settings_are_put_back_does_not_end_the_parent() -> None:
    """Not in a task: nothing catches it, the loop ends, and with it a primary that was well."""
    node = node_with_names()
    writes = node.postgres.write_settings

    def full(*_: object) -> tuple[str, ...]:
        raise OSError(28, "No space left on device")

    node.postgres.write_settings = full
    node.altered = True
    before = node.reloads
    assert (node.turn(), node.altered) == (before, True)
    node.postgres.write_settings = writes
    assert node.turn() == before, "not at every turn"
    node.write_again_ns = 0
    assert node.turn() == before + 1
