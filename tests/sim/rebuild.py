"""Steps that make or replace the data directory: a port of supervisor/rebuild.py onto modelled directories."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from consensus.cluster import Grant
from consensus.record import EpochStart, Position
from fencing.lease import MS
from supervisor import timelines
from supervisor.roles import Data, Plan, Server
from supervisor.tasks import Task
from tests.sim.pgdata import UNIT, Directory
from tests.sim.postgres import Postgres
from tests.sim.tasks import StepFailed

if TYPE_CHECKING:
    from tests.sim.parent import Parent
    from tests.sim.steps import Steps

INITDB_RECORDS = 5


class Rebuild:
    def __init__(self, parent: Parent, steps: Steps) -> None:
        self.p, self.host, self.world, self.steps = parent, parent.host, parent.world, steps

    def create(self, _: Plan) -> Task[None]:
        p, host = self.p, self.host
        cluster = p.cluster
        place = host.new_directory
        adopted = host.directory is not None
        if adopted:
            place = host.directory
        elif place is None or place.mark is None or place.mark[1] != cluster.nonce:
            if cluster.system_identifier:
                raise StepFailed("the data directory this node created is gone, and the cluster was never opened")
            host.new_directory = None
            yield from self.steps.sleep(self.world.dice.randrange(200, 900))
            place = host.new_directory = Directory(f"{self.world.dice.getrandbits(60)}")
            place.append([self.world.checks.old_record() for _ in range(INITDB_RECORDS)], 1)
            place.flushed = place.checkpoint = place.end
            place.mark = (p.view.incarnation, cluster.nonce)
        assert place is not None
        body = {
            "node": p.local.me, "nonce": cluster.nonce, "system_identifier": place.system_identifier, "timeline": 1,
        }  # fmt: skip
        yield from self.steps.until_logged("initialized/1", body, lambda: bool(p.cluster.system_identifier))
        if p.cluster.system_identifier != place.system_identifier:
            raise StepFailed("the log has accepted another data directory")
        if not p.view.record.history:
            yield from p.save_record((EpochStart(0, 0, p.cluster.initial_timeline),), proof=None, marker="")
        host.directory, host.new_directory = place, None
        p.change(data=Data.READY)

    def clone(self, plan: Plan) -> Task[None]:
        p, host = self.p, self.host
        grant = self._followed(plan.term)
        if p.local.server is not Server.DOWN:
            yield from self.steps.stop(plan)
        host.new_directory = None
        self._have_room()
        self.world.note(host.name, f"clone from {grant.node} begins")
        source = yield from self._busy_with(grant, self.world.dice.randrange(100, 3_000))
        copy = source.directory.copy()
        proof = self._end_of_primary(source, grant)
        copy.mark = (p.view.incarnation, p.cluster.nonce)
        self._install_histories(copy, grant)
        host.new_directory = copy
        yield from p.save_record(marker="clone")
        p.change(data=Data.BROKEN)
        host.directory, host.new_directory = copy, None
        yield from p.save_record(grant.ancestry, proof=proof, marker="")
        p.start_failures = 0
        p.change(data=Data.READY, needs_clone=0, diverged=0)
        self.world.note(host.name, f"clone from {grant.node} done")
        self.world.counts["clones"] += 1
        self._remember("cloned")

    def _have_room(self) -> None:
        if self.host.room is not None:
            self.world.counts["copy stopped by a full PGDATA"] += 1
            raise StepFailed("the tool failed: no room")

    def _followed(self, term: int) -> Grant:
        grant = self.p.cluster.grant
        if grant is None or grant.term != term or not grant.ancestry:
            raise StepFailed("there is a newer grant")
        return grant

    def _busy_with(self, grant: Grant, ms: int) -> Task[Postgres]:
        """A tool that reads from the primary all this time."""
        source = self.host.primary_elsewhere(grant.node)
        until_ns = self.p.now + ms * MS
        while True:
            if source is None or self.host.primary_elsewhere(grant.node) is not source:
                raise StepFailed(f"the tool failed: {grant.node} cannot be reached")
            if self.p.now >= until_ns:
                return source
            yield from self.steps.sleep(min(50, (until_ns - self.p.now) // MS + 1))

    def _end_of_primary(self, source: Postgres, grant: Grant) -> Position:
        return Position(grant.term, source.directory.flushed * UNIT)

    def _install_histories(self, directory: Directory, grant: Grant) -> None:
        for epoch in grant.ancestry[1:]:
            name = timelines.history_name(epoch.timeline)
            if name not in directory.histories:
                directory.histories[name] = timelines.history_text(grant.ancestry, epoch.timeline)

    def rewind(self, plan: Plan) -> Task[None]:
        p, host = self.p, self.host
        grant = self._followed(plan.term)
        yield from self._until_checkpointed(grant)
        if p.local.server is not Server.DOWN:
            yield from self.steps.stop(plan)
        yield from p.save_record(marker="rewind")
        p.change(rebuilding=plan.term)
        self.world.note(host.name, f"rewind to {grant.node} begins")
        done = False
        directory = host.directory
        assert directory is not None
        try:
            source = yield from self._busy_with(grant, self.world.dice.randrange(10, 60))
            directory.whole = False
            copied = source.directory.copy()
            self._have_room()
            source = yield from self._busy_with(grant, self.world.dice.randrange(50, 1_500))
            copied.mark, copied.consistent_at = directory.mark, source.directory.flushed
            copied.system_identifier = directory.system_identifier
            proof = self._end_of_primary(source, grant)
            self._install_histories(copied, grant)
            host.directory = copied
            yield from p.save_record(grant.ancestry, proof=proof, marker="")
            done = True
        except StepFailed as error:
            self.world.note(host.name, f"rewind failed: {error}")
            return
        finally:
            p.change(data=Data.READY if done else Data.BROKEN, diverged=0, rebuilding=0)
        self.world.note(host.name, f"rewind to {grant.node} done")
        self.world.counts["rewinds"] += 1
        self._remember("rewound")

    def _until_checkpointed(self, grant: Grant) -> Task[None]:
        until_ns = self.p.now + 30_000 * MS
        while True:
            source = self.host.primary_elsewhere(grant.node)
            if source is None:
                raise StepFailed(f"{grant.node} cannot be asked for its checkpoint")
            if source.directory.control_timeline == grant.timeline:
                return
            if self.p.now >= until_ns:
                raise StepFailed(f"{grant.node} has not checkpointed since its promotion")
            yield from self.steps.sleep(20)

    def _remember(self, kind: str) -> None:
        p = self.p
        body: dict[str, Any] = {
            "kind": kind,
            "term": p.view.term,
            "node": p.local.me,
            "text": kind,
            "fields": {},
            "at": "-",
        }
        p.tell_raft("node.propose", {"kind": "event/1", "body": body})
        p.facts = replace(p.facts)
