"""The primary's part of a change of the sync group: a port of supervisor/regroup.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.cluster import Change
from fencing.lease import MS
from supervisor.regroup import IN_FORCE_MS, LOOK_EVERY_MS
from supervisor.roles import Plan, Situation, plan
from supervisor.tasks import Task, Wait
from tests.sim.postgres import Names, Postgres, State
from tests.sim.tasks import Lost, StepFailed

if TYPE_CHECKING:
    from tests.sim.steps import Steps


def regroup(steps: Steps, wanted: Plan) -> Task[None]:
    """Names of the new group in force, proven; everything acknowledged meets its rule; then `done/1`."""
    p, server = steps.p, steps.need_server()
    change = _change(steps, wanted)
    names = p.primary_names(p.local.epoch)
    if steps.world.mutant != "names-unproven":
        server.reload(server.changed(names=names, gate=False))
        yield from _prove(steps, server, names)
    _change(steps, wanted)
    steps.world.note(steps.host.name, f"the new group is proven: {change.new.k} of {', '.join(change.new.names)}")
    body = {"index": change.index, "node": p.local.me}
    yield from steps.until_logged(
        "done/1", body, lambda: p.cluster.change is None or p.cluster.change.index != change.index
    )
    if steps.world.mutant == "names-unproven":
        server.process.post(300 * MS, lambda: server.reload(server.changed(names=names, gate=False)))


def _change(steps: Steps, wanted: Plan) -> Change:
    p = steps.p
    change = p.cluster.change
    now, _ = plan(Situation(p.view, p.local, p.timings, p.now))
    if change is None or now != wanted:
        raise StepFailed("this node is no longer to change the sync group")
    return change


def _prove(steps: Steps, server: Postgres, names: Names) -> Task[None]:
    p, world = steps.p, steps.world
    until_ns = p.now + IN_FORCE_MS * MS
    while not (yield from steps.query(lambda pg: pg.seen.names == names)):
        if p.now > until_ns:
            raise StepFailed("the new names are not seen")
        yield from steps.sleep(LOOK_EVERY_MS)
    seen_at = world.now
    for stream in tuple(server.senders):
        if stream.began <= seen_at:
            server.process.post(world.between(100, 3_000), stream.end_source)
    while any(stream.began <= seen_at for stream in server.senders):
        yield from steps.sleep(5)
        if server.state is not State.PRIMARY:
            raise Lost("it is no primary any more")
    if names.needed and not p.commits_wait:
        yield from steps.have_checkpoint(60_000)
        p.commits_wait = True
    acknowledged: list[bool] = []
    server.process.post(world.between(500, 4_000), lambda: server.insert(None, lambda: acknowledged.append(True)))
    while not acknowledged:
        if server.state is not State.PRIMARY:
            raise Lost("the session was lost")
        yield Wait(until_ns=p.now + 20 * MS)
