"""What the parent and its steps share: what is known of the node, and its ends of the local bus."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from consensus.cluster import ClusterState, Grant
from consensus.membership import WITNESS
from consensus.record import EpochStart, Position
from fencing import deadman as machine
from fencing.lease import PROFILES
from supervisor import settings
from supervisor.observe import Facts
from supervisor.roles import Local, View, followable
from supervisor.tasks import Task
from tests.sim.postgres import Names, Postgres, Upstream
from tests.sim.tasks import Lost, StepFailed, until

if TYPE_CHECKING:
    from tests.sim.host import Host

PLACEHOLDER = Names(1, ("pgr.nobody",))


class Context:
    def __init__(self, host: Host) -> None:
        self.host, self.world, self.process = host, host.world, host.parent_process
        self._clock = host.clock
        self.view, self.local, self.facts = View(), Local(host.name, witness=host.role == WITNESS), Facts()
        self.timings = PROFILES[self.world.profile]
        self.server: Postgres | None = None
        self.saves: dict[str, bool] = {}
        """By number of the request: has the Raft child saved it?"""
        self.numbers = 0
        self.commits_wait = False
        self.start_failures = self.copy_again_ns = self.freeze_failing_ns = 0
        self.turn_due = False
        self.wake_at = 0

    def _turn(self) -> None:
        raise NotImplementedError

    def soon(self) -> None:
        if not self.turn_due:
            self.turn_due = True
            self.process.post(20_000, self._turn)

    @property
    def now(self) -> int:
        return self._clock.local(self.world.now)

    def change(self, **facts: Any) -> None:
        self.local = replace(self.local, **facts)

    @property
    def cluster(self) -> ClusterState:
        if self.view.cluster is None:
            raise StepFailed("the cluster state is not known yet")
        return self.view.cluster

    @property
    def followed(self) -> Grant | None:
        return followable(self.view, self.local)

    def idle_names(self) -> Names:
        return PLACEHOLDER

    def primary_names(self, term: int) -> Names:
        group = self.cluster.wanted_group
        others = [s for s in group.members if s.name != self.host.name]
        if group.k <= 1:
            self.commits_wait = False  # from here on they are empty, as in Context.write_settings
            return Names(0)
        if len(others) < group.k - 1:
            raise StepFailed("the group needs more standbys than it has")
        return Names(group.k - 1, tuple(self.stamp(s.name, s.incarnation, term) for s in others))

    def stamp(self, name: str, incarnation: int, term: int) -> str:
        return settings.stamp(name, incarnation, 0 if self.world.mutant == "names-without-epoch" else term)

    def upstream(self, grant: Grant) -> Upstream:
        return Upstream(grant.node, self.stamp(self.host.name, self.view.incarnation, grant.term))

    def save_record(
        self,
        history: tuple[EpochStart, ...] | None = None,
        *,
        proof: Position | str | None = "",
        marker: str | None = None,
    ) -> Task[None]:
        old = self.view.record
        new = old._replace(
            history=old.history if history is None else history,
            proof=old.proof if isinstance(proof, str) else proof, marker=old.marker if marker is None else marker,
        )  # fmt: skip
        if new == old:
            return
        body = {
            "history": [list(e) for e in new.history], "proof": list(new.proof) if new.proof is not None else None,
            "marker": new.marker,
        }  # fmt: skip
        self.numbers += 1
        number = f"p{self.numbers}"
        self.saves[number] = False
        self.tell_raft("node.record", body, number)
        yield from until(self, lambda: self.saves.get(number, True), 5_000)
        if not self.saves.pop(number, False):
            raise Lost("the Raft child is gone")
        self.view = replace(self.view, record=new._replace(promised=self.view.record.promised))

    def tell_raft(self, name: str, body: dict[str, Any], request_id: str = "") -> None:
        host = self.host
        host.bus(host.raft_process, "parent-raft", lambda: host.raft.order(name, request_id, body))

    def ask_watchdog(self, event: machine.Event, within_ms: int) -> Task[bool]:
        """Arm: was it taken?"""
        cell: list[bool] = []
        host, life = self.host, self.host.watchdog_process.life

        def ask() -> None:
            actions = host.watchdog.feed(event)
            ok = any(getattr(a, "ok", False) for a in actions)
            host.bus(self.process, "watchdog-parent", partial(self._answered, cell, ok))

        host.bus(host.watchdog_process, "parent-watchdog", ask)
        yield from until(self, lambda: bool(cell) or host.watchdog_process.life != life, within_ms)
        if not cell:
            raise Lost("the watchdog has died")
        return cell[0]

    def _answered(self, cell: list[bool], ok: bool) -> None:
        cell.append(ok)
        self.soon()

    def tell_watchdog(self, event: machine.Event) -> None:
        host = self.host
        host.bus(host.watchdog_process, "parent-watchdog", lambda: host.watchdog.hear(event))
