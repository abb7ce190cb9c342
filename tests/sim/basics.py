"""What the steps of a parent share: questions to its Postgres, the log, and a server's end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from fencing import deadman as machine
from fencing.lease import MS
from supervisor import timelines
from supervisor.roles import Server
from supervisor.steps import (
    QUERY_MS,
)
from supervisor.tasks import Task, Wait
from tests.sim import tasks
from tests.sim.postgres import Postgres, State
from tests.sim.tasks import Lost, StepFailed, until

if TYPE_CHECKING:
    from tests.sim.parent import Parent

T = TypeVar("T")
OFTEN_MS, RARELY_MS = 300, 30


class Basics:
    def __init__(self, parent: Parent) -> None:
        self.p, self.host, self.world = parent, parent.host, parent.world

    @property
    def pid(self) -> int:
        return self.need_server().pid

    def sleep(self, ms: float) -> Task[None]:
        yield from tasks.sleep(self.p, int(ms * MS))

    def pause(self, began: int) -> Task[None]:
        """Between two looks at what is soon so: 3 ms as in the shipped steps. Once it takes long they are fewer, here
        only: thousands of them were a quarter of the time of all runs."""
        yield from self.sleep(3 if self.p.now - began < OFTEN_MS * MS else RARELY_MS)

    def need_server(self) -> Postgres:
        if self.p.server is None:
            raise StepFailed("Postgres is not running")
        return self.p.server

    def query(self, ask: Callable[[Postgres], T], within_ms: float = QUERY_MS) -> Task[T]:
        """One question in a session of ours."""
        p, server, cell = self.p, self.need_server(), list[T]()

        def answer() -> None:
            if server.state not in (State.STARTING, State.STOPPING):
                cell.append(ask(server))
            p.process.post(self.world.between(50, 600), p.soon)

        server.process.post(self.world.between(50, 600), answer)
        yield from until(
            p, lambda: bool(cell) or server.state in (State.GONE, State.STARTING, State.STOPPING), int(within_ms)
        )
        if not cell:
            raise Lost("the session was lost")
        return cell[0]

    def until_logged(self, kind: str, body: dict[str, Any], done: Callable[[], bool]) -> Task[None]:
        while not done():
            self.p.tell_raft("node.propose", {"kind": kind, "body": body | {"at": "-"}})
            yield Wait(until_ns=self.p.now + 1_000 * MS, ready=done)

    def have_checkpoint(self, within_ms: int) -> Task[None]:
        done: list[bool] = []
        server = self.need_server()
        yield from self.query(lambda pg: pg.checkpoint(lambda: done.append(True)))
        until_ns = self.p.now + within_ms * MS
        while not done:
            if server.state is State.GONE or self.p.now > until_ns:
                raise Lost("no checkpoint")
            yield Wait(until_ns=self.p.now + 20 * MS)

    def _switch_lsn(self, timeline: int) -> int | None:
        directory = self.host.directory
        text = directory.histories.get(timelines.history_name(timeline)) if directory is not None else None
        switches = timelines.parse_history(text) if text is not None else ()
        return switches[-1].lsn if switches else None

    def bury(self, crashed: str) -> None:
        p = self.p
        if p.server is not None:
            p.server.end()
            p.server = None
        p.tell_watchdog(machine.Disarm())
        p.facts = replace(p.facts, streaming=False, checkpointed=0)
        p.freeze_failing_ns = 0
        writable = p.local.epoch > 0
        p.change(
            server=Server.DOWN, clean=True, upstream=0, frozen=0, gate_open=False, unguarded_since_ns=0,
            crashed=(crashed or "stopped") if writable else "",
        )  # fmt: skip

    def _reloaded(self, server: Postgres, until_ns: int) -> Task[None]:
        """Until a session of ours sees what was written."""
        while not (yield from self.query(lambda pg: pg.seen == server.conf, self._left_ms(until_ns))):
            yield from self.sleep(1)

    def _left_ms(self, until_ns: int) -> int:
        return max(0, (until_ns - self.p.now) // MS)
