"""When a copy that never becomes consistent is made again (supervisor/starts.py)."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from consensus.cluster import ClusterState, Grant
from consensus.record import EpochStart, Position
from supervisor.context import Context
from supervisor.roles import Local, View
from supervisor.starts import Start
from supervisor.steps import Steps


class Node:
    """As much of a context as the rule looks at."""

    def __init__(self) -> None:
        quiet = SimpleNamespace(error=lambda *_, **__: None)
        log = SimpleNamespace(warning=lambda *_, **__: None, once_per=lambda *_: quiet)
        self.c = SimpleNamespace(local=Local("a"), log=log, copy_again_ns=0, change=self._change, followed=None)
        self.granted(5)

    def granted(self, term: int) -> None:
        grant = Grant(term, "b", Position(0, 0), 2, (EpochStart(term, 9, 2),))
        self.c.view = View(cluster=ClusterState(grants=(grant,)), met=True)
        self.c.followed = grant

    def _change(self, **facts: Any) -> None:
        self.c.local = replace(self.c.local, **facts)

    def ask(self) -> int:
        Start(cast(Context, self.c), Steps(cast(Context, self.c)))._copy_again("start.inconsistent", "it lacks WAL")
        return int(self.c.local.needs_clone)


def test_a_copy_that_was_not_made_before_the_next_grant_is_still_called_for() -> None:
    """Else the node would wait ten minutes for a copy that nobody makes; found by tests/sim, seed 121."""
    node = Node()
    assert node.ask() == 5
    node.granted(7)
    assert node.ask() == 7


def test_a_copy_that_was_made_and_is_of_no_use_is_not_made_again_at_once() -> None:
    node = Node()
    assert node.ask() == 5
    node.c.change(needs_clone=0)
    assert node.ask() == 0
