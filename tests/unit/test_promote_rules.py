"""What the steps from a grant to an open primary may touch once the authority may be gone (supervisor/promote.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from consensus.cluster import ClusterState, Grant
from consensus.record import Position
from fencing.clock import now_ns
from fencing.lease import MS
from supervisor.context import Context
from supervisor.promote import Promotion
from supervisor.roles import Local, Plan, Step, View
from supervisor.steps import Steps
from supervisor.tasks import Task, run_blocking


class Opening:
    """A primary about to open; as soon as its first question is asked, others elect another one and change S."""

    def __init__(self) -> None:
        self.conf = {"names": 'ANY 1 ("b.7.5", "c.7.5")'}
        self.log_says = self.conf["names"]
        self.written: list[str] = []
        self.opened = False
        self.asked = 0
        self.log = SimpleNamespace(info=lambda *_, **__: None)
        self.told: list[dict[str, Any]] = []
        self.raft = SimpleNamespace(tell=lambda _, body: self.told.append(body["body"]))
        old, new = (Grant(term, node, Position(0, 0), term, (), opened=True) for term, node in ((3, "b"), (5, "a")))
        self.cluster, self.local, self.closed = ClusterState(grants=(old, new)), Local("a"), (0, 0)
        self.view = View(old_primary=(3, now_ns() - 640 * MS))
        self.postgres = SimpleNamespace(write_settings=lambda owned, *_: self.written.append(owned))

    def primary_names(self, _: int) -> str:
        return self.log_says

    def write_settings(self, *, names: str, gate: bool) -> str:
        assert not gate
        return names

    def hba(self) -> None: ...

    ident = hba

    def need_postmaster(self) -> Any:
        return SimpleNamespace(reload=lambda: None)

    def change(self, *, gate_open: bool) -> None:
        self.opened = gate_open

    def session(self) -> Task[Any]:
        return cast(Any, self)
        yield

    def query(self, *_: Any, **__: Any) -> Task[Any]:
        self.asked += 1
        self.log_says = 'ANY 1 ("c.7.5", "d.7.5")'
        return [[str(self.asked)]]
        yield


def test_the_gate_is_opened_with_the_names_that_are_in_force() -> None:
    """Frozen while it waits, and thawed: the names that the log has by now are those of a group that elected another.
    Who is losing its authority never touches its names (found by a review)."""
    a = Opening()
    step = Promotion(cast(Context, a), cast(Steps, a)).open_gate(Plan(Step.OPEN_GATE, 5, "open-gate"))
    run_blocking(step)
    assert a.opened
    assert a.written == [a.conf["names"]]
    (told,) = a.told
    assert (told["kind"], told["node"], told["term"]) == ("gap", "a", 5)
    assert told["fields"]["gap_ms"] >= 640, "from the last that was heard of the old primary to the open gate"
