"""The slots of the running Postgres, kept as `slotplan.py` says. Part of the watcher's round; decides nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from consensus import clusterwide
from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import files, settings, slotplan, sql, timelines
from supervisor.context import Context
from supervisor.roles import Server, is_paused
from supervisor.slotplan import Action, Advance, Create, Drop, Forget, Problem, Remember
from supervisor.tasks import Task

QUERY_MS = 2_000
LOGICAL_MS = 900
"""A logical slot waits for the transactions that began before it; then it is tried again: the round is waited for."""
MADE = "slots.json"


class Slots:
    """Of one watcher."""

    def __init__(self, context: Context) -> None:
        self.c = context
        self.wanted: object = None
        """As of the last round."""

    def wants(self) -> object:
        """What a round goes by: another value, another round at once."""
        c = self.c
        return c.slots(), clusterwide.slots(c.cluster.config), c.local.server

    def round(self, session: sql.Session) -> Task[None]:
        """Everything once. What can't be done is told, and tried again in the next round."""
        c = self.c
        self.wanted = self.wants()
        rows = yield from session.query(slotplan.QUERY, until_ns=now_ns() + QUERY_MS * MS)
        slots = [slotplan.slot_of(row) for row in rows]
        permanent = clusterwide.slots(c.cluster.config)
        problems: list[str] = []
        for action in slotplan.actions(self._situation(permanent), slots):
            try:
                yield from self._carry_out(session, action)
            except sql.SqlError as error:
                problems.append(f"{_name_of(action)}: {error.message}")
            if isinstance(action, Problem):
                problems.append(action.text)
        primary = c.local.server is Server.PRIMARY
        told = slotplan.positions(slots, permanent) if primary else {}
        c.facts = replace(c.facts, slots=told, slot_problems=tuple(problems))

    def _situation(self, permanent: dict[str, list[str]]) -> slotplan.Situation:
        c = self.c
        standby = c.local.server is Server.STANDBY
        primary = c.cluster.grant.node if c.cluster.grant is not None else ""
        said = c.seen.get(primary, {}).get("seen", {})
        current = standby and c.cluster.grant is not None and said.get("epoch") == c.cluster.grant.term
        return slotplan.Situation(
            standby=standby, major=c.binaries.major, paused=is_paused(c.view),
            members={name: self.needed_from(name.removeprefix(slotplan.OURS)) for name in c.slots()},
            permanent=permanent, primarys=dict(said.get("slots", {})) if current else {}, replayed=c.facts.replay_lsn,
            copies=c.syncs_slots(), made=made(c.config.data),
        )  # fmt: skip

    def needed_from(self, name: str) -> int:
        """How far the WAL here is not needed by this member; 0: it may need all."""
        c = self.c
        if c.local.server is Server.STANDBY:
            return c.facts.replay_lsn
        # It streams from a standby: what it has flushed it does not ask the primary for.
        known = c.seen.get(name, {}).get("seen", {})
        through = known.get("upstream_node", "") not in ("", c.local.me) and known.get("epoch") == c.local.epoch
        return min(int(known.get("lsn", 0)), c.facts.lsn) if through else 0

    def _carry_out(self, session: sql.Session, action: Action) -> Task[None]:
        c, until_ns = self.c, now_ns() + QUERY_MS * MS
        match action:
            case Drop(name, pid):
                if pid:
                    terminate = "SELECT pg_terminate_backend($1::integer, 1000)"
                    yield from session.query(terminate, (pid,), until_ns=until_ns)
                yield from session.query("SELECT pg_drop_replication_slot($1)", (name,), until_ns=until_ns)
                forget(c.config.data, name)
                c.log.info("slot.dropped", slot=name)
            case Create(name, definition, permanent):
                if permanent:
                    remember(c.config.data, name)  # before it is there: what is not known as ours is left alone
                if definition[0] == "physical":
                    create = "SELECT pg_create_physical_replication_slot($1, true)"
                    yield from session.query(create, (name,), until_ns=until_ns)
                else:
                    yield from self._create_logical(name, *definition[1:])
                c.log.info("slot.created", slot=name, definition=list(definition))
            case Advance(name, lsn):
                advance = "SELECT pg_replication_slot_advance($1, $2)"
                yield from session.query(advance, (name, timelines.format_lsn(lsn)), until_ns=until_ns)
            case Remember(name):
                remember(c.config.data, name)
            case Forget(name):
                forget(c.config.data, name)
            case Problem():
                pass

    def _create_logical(self, name: str, database: str, plugin: str) -> Task[None]:
        """In a session of its own: a slot belongs to a database."""
        c = self.c
        own = settings.own_conninfo(str(c.postgres.socket_dir), c.config.pg_port, dbname=database)
        try:
            session = yield from sql.connect(own, now_ns() + QUERY_MS * MS)
        except sql.SqlConnectionLost as error:  # most likely there is no such database
            raise sql.SqlError(error.message, error.sqlstate) from error
        try:
            yield from session.query(f"SET statement_timeout = {LOGICAL_MS}", until_ns=now_ns() + QUERY_MS * MS)
            create = "SELECT pg_create_logical_replication_slot($1, $2)"
            if c.binaries.major >= slotplan.FAILOVER_MAJOR:
                create = "SELECT pg_create_logical_replication_slot($1, $2, failover => true)"
            yield from session.query(create, (name, plugin), until_ns=now_ns() + QUERY_MS * MS)
        finally:
            session.close()


def _name_of(action: Action) -> str:
    return "" if isinstance(action, Problem) else action.name


def made(data: Path) -> frozenset[str]:
    """Permanent slots of this node that are pgr's: no others are ever dropped."""
    found = files.read_optional(data / MADE)
    try:
        return frozenset(str(name) for name in json.loads(found)["made"]) if found is not None else frozenset()
    except (ValueError, KeyError, TypeError):
        return frozenset()  # then they are nobody's, and stay


def remember(data: Path, name: str) -> None:
    _keep(data, made(data) | {name})


def forget(data: Path, name: str) -> None:
    if name in made(data):
        _keep(data, made(data) - {name})


def _keep(data: Path, names: frozenset[str]) -> None:
    if names != made(data):
        files.write_atomically(data / MADE, json.dumps({"made": sorted(names)}).encode())
