"""The steps of a change of the sync group on a primary (safety.md "Changes of the sync group").

The pure half (consensus/changes.py) opens and closes changes in the log; what a primary does in between is modelled
here to the letter of the contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fencing.lease import MS
from supervisor.steps import QUERY_MS
from supervisor.tasks import Task
from tests.sim.postgres import Postgres, State
from tests.sim.tasks import Lost, StepFailed

if TYPE_CHECKING:
    from tests.sim.steps import Steps


def change_group(steps: Steps) -> Task[None]:
    """Names, proof that they are in force, then `done/1`."""
    p = steps.p
    change, server, term = p.cluster.change, steps.need_server(), p.local.epoch
    if change is None:
        return
    names = p.primary_names(term)
    if steps.world.mutant != "names-unproven":
        yield from _in_force(steps, server)
    if p.cluster.change != change or p.local.epoch != term or server.conf.names != names:
        raise StepFailed("it is another change by now")
    steps.world.note(steps.host.name, f"the new group is proven: {change.new.k} of {', '.join(change.new.names)}")
    body = {"index": change.index, "node": p.local.me}
    yield from steps.until_logged("done/1", body, lambda: p.cluster.change != change)


def _in_force(steps: Steps, server: Postgres) -> Task[None]:
    p, world = steps.p, steps.world
    names = p.primary_names(p.local.epoch)
    server.reload(server.changed(names=names))
    until_ns = p.now + QUERY_MS * MS
    while not (yield from steps.query(lambda pg: pg.seen.names == names)):
        if p.now > until_ns:
            raise StepFailed("the new names are not seen")
        yield from steps.sleep(2)
    seen_at = world.now
    for stream in tuple(server.senders):
        if stream.began <= seen_at:
            server.process.post(world.between(100, 3_000), stream.end_source)
    while any(stream.began <= seen_at for stream in server.senders):
        yield from steps.sleep(5)
        _still(server)
    yield from steps.have_checkpoint(60_000)
    at = server.directory.end
    while not _met(server, at):
        yield from steps.sleep(20)
        _still(server)


def _met(server: Postgres, index: int) -> bool:
    names = server.conf.names
    reached = sum(s.reported >= index for s in server.senders if s.stamp in names.stamps)
    return server.directory.flushed >= index and reached >= names.needed


def _still(server: Postgres) -> None:
    if server.state is not State.PRIMARY:
        raise Lost("it is no primary any more")
