"""A new session in place of an old one: a refusal is an answer, a hung postmaster gives none (supervisor/watch.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from supervisor import sql
from supervisor.tasks import Task, run_blocking
from supervisor.watch import Watcher


class Old:
    open = True

    def close(self) -> None:
        self.open = False


def renewed(monkeypatch: pytest.MonkeyPatch, old: Any, outcome: Any) -> Any:
    def connect(*_: object) -> Task[Any]:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
        yield

    monkeypatch.setattr(sql, "connect", connect)
    context: Any = SimpleNamespace(own_conninfo=str)
    return run_blocking(Watcher(context)._renewed(old))


def test_too_many_clients_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a primary whose connections are all taken would be held to hang, and be fenced."""
    old = Old()
    assert renewed(monkeypatch, old, sql.SqlConnectionLost("FATAL: sorry, too many clients already")) is old
    assert old.open


def test_a_new_one_takes_its_place_and_no_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Old(), Old()
    assert renewed(monkeypatch, old, new) is new
    assert not old.open
    with pytest.raises(sql.SqlTimeout):
        renewed(monkeypatch, new, sql.SqlTimeout("no answer from Postgres in time"))
