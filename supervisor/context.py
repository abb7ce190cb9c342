"""What the daemon and its steps share: the node's picture of the world and the handles to act on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from consensus import clusterwide, upstreams
from consensus.cluster import ClusterState, Grant
from consensus.membership import Member
from consensus.record import EpochStart, NodeRecord, Position
from fencing.clock import now_ns
from fencing.kill import ProcessId
from fencing.lease import MS, Timings
from fencing.logs import Log
from supervisor import settings
from supervisor.binaries import Binaries
from supervisor.children import ChildTable
from supervisor.config import Config
from supervisor.links import Link
from supervisor.observe import Facts, proven
from supervisor.postgres import Postgres, Postmaster
from supervisor.roles import Local, Server, View, followable
from supervisor.slotplan import guards
from supervisor.sql import Session
from supervisor.tasks import Task
from supervisor.upstream import Choice

RECORD_TIMEOUT_MS = 5_000
WRITE_AGAIN_MS = 1_000
CLONE = "pgr_clone_"
"""Begins the application_name of a base backup."""


class StepFailed(Exception):
    """A step could not be carried out now. The daemon logs it and tries again after a pause."""


@dataclass(slots=True)
class Context:
    """Mutable on purpose, in one place: everything the loop knows."""

    config: Config
    log: Log
    os_user: str
    binaries: Binaries
    children: ChildTable
    raft: Link
    watchdog: Link
    postgres: Postgres
    timings: Timings
    view: View
    local: Local
    facts: Facts = field(default_factory=Facts)
    postmaster: Postmaster | None = None
    process: ProcessId | None = None
    """The postmaster's identity, for the fence; kept after its end until the fence is verified."""
    session: Session | None = None
    wal_segment_bytes: int = 16 << 20
    floors: dict[str, int] = field(default_factory=dict)
    conf: dict[str, Any] = field(default_factory=dict)
    """What the running server's changing settings are: conninfo, slot, names, gate."""
    owned: Mapping[str, str] = field(default_factory=dict)
    """What pgr's block in its postgresql.auto.conf is."""
    altered: bool = False
    """Somebody has changed that, or may have: it is to be written and loaded again."""
    applied: str = ""
    """The cluster-wide settings that the running server's files were last written from."""
    reloaded: int = 0
    """Index of the newest `reload/1` that the running server's files were written and reloaded for."""
    look_again_ns: int = 0
    """PGDATA could not be looked at: it is tried again at this instant; 0: nothing to try."""
    commits_wait: bool = False
    """Postgres's "standbys defined" flag is known to be set; without it no commit waits, whatever the names say."""
    write_again_ns: int = 0
    """Settings could not be written: they are tried again at this instant."""
    copy_again_ns: int = 0
    """Not before this instant is a copy that is of no use made again."""
    freeze_failing_ns: int = 0
    """Since when this Postgres can give no promise, as it does not answer; 0: it answered last."""
    start_failures: int = 0
    """In a row, since Postgres last became ready."""
    attach_offset: int = 0
    """Size of Postgres's log when the upstream was last set: what it says of it comes later."""
    clone_progress: tuple[int, int] = (0, 0)
    seen: Mapping[str, Any] = field(default_factory=dict)
    """What the members last said of themselves (`raft.members`)."""
    choice: Choice = field(default_factory=Choice)
    delay_ms: int = 0
    """recovery_min_apply_delay in the running server's files."""
    guards: tuple[str, ...] = ()
    """Members whose slots logical consumers wait for, as in the running server's files."""
    no_copy_from: frozenset[str] = frozenset()
    """Standbys of which a copy failed, since one was last made."""
    closed: tuple[int, int] = (0, 0)
    """The newest epoch under which Postgres here was writable, and when it ceased to take writes."""

    def change(self, **facts: Any) -> None:
        """Set facts about this node."""
        before, self.local = self.local, replace(self.local, **facts)
        if before.server is Server.PRIMARY and self.local.server is not Server.PRIMARY:
            self.closed = (before.epoch, now_ns())

    def closed_ms(self, epoch: int) -> dict[str, int]:
        """``{closed_ms}`` for `node.fenced`: so long ago Postgres here ceased to take writes; empty: not known."""
        return {"closed_ms": (now_ns() - self.closed[1]) // MS} if self.closed[0] == epoch > 0 else {}

    @property
    def cloning(self) -> str:
        """How far the copy that is being made has come, in words; empty: none is."""
        done, total = self.clone_progress
        return f"cloning, {done >> 20} of {total >> 20} MB" if total else ""

    @property
    def cluster(self) -> ClusterState:
        if self.view.cluster is None:
            raise StepFailed("the cluster state is not known yet")
        return self.view.cluster

    @property
    def record(self) -> NodeRecord:
        return self.view.record

    @property
    def followed(self) -> Grant | None:
        """The grant of another node that this one may follow now."""
        return followable(self.view, self.local)

    def need_postmaster(self) -> Postmaster:
        if self.postmaster is None:
            raise StepFailed("Postgres is not running")
        return self.postmaster

    def started(self) -> None:
        """Or replaced by another copy: what was wrong with the starts before is no matter any more."""
        self.start_failures = 0
        self.facts = replace(self.facts, problem="")

    def save_record(
        self,
        history: tuple[EpochStart, ...] | None = None,
        *,
        proof: Position | str | None = "",
        marker: str | None = None,
    ) -> Task[None]:
        """Have the Raft child write the node's record; on disk when this returns. ``proof`` "": unchanged."""
        old = self.record
        new = old._replace(
            history=old.history if history is None else history,
            proof=old.proof if isinstance(proof, str) else proof,
            marker=old.marker if marker is None else marker,
        )
        if new == old:
            return
        body = {
            "history": [list(e) for e in new.history],
            "proof": list(new.proof) if new.proof is not None else None,
            "marker": new.marker,
        }
        yield from self.raft.ask("node.record", body, RECORD_TIMEOUT_MS)
        self.view = replace(self.view, record=new._replace(promised=self.view.record.promised))

    @property
    def members(self) -> tuple[Member, ...]:
        """As the log here says; nobody while that is not known."""
        return self.view.cluster.members if self.view.cluster is not None else ()

    def slots(self) -> list[str]:
        """The replication slots that belong here: one for every other member with a Postgres."""
        return [f"pgr_{m.name}" for m in self.members if m.has_data and m.name != self.local.me]

    # -- settings ------------------------------------------------------------------------------------------------

    def founding(self) -> dict[str, Any]:
        """The founding settings in the log; of parameters and hba the newest are in ``cluster.config``."""
        body: dict[str, Any] = json.loads(self.cluster.settings)
        return body

    def write_settings(self, *, conninfo: str = "", slot: str = "", names: str, gate: bool = True) -> dict[str, str]:
        """Render pgr's settings for the server; returns them (the caller writes or prepares)."""
        self.conf = {"conninfo": conninfo, "slot": slot, "names": names, "gate": gate}
        self.applied, self.delay_ms, self.guards = self.cluster.config, self.apply_delay_ms(), self.wanted_guards()
        if not names:
            self.commits_wait = False
        node = settings.NodeSettings(
            listen=self.config.pg_listen,
            port=self.config.pg_port,
            socket_dir=str(self.postgres.socket_dir),
            hba_file=str(self.postgres.hba_file),
            ident_file=str(self.postgres.ident_file),
            cluster_name=self.config.name,
            primary_conninfo=conninfo,
            primary_slot_name=slot,
            standby_names=names,
            gate=gate,
            syncs_slots=self.syncs_slots() and not self.choice.node,  # Postgres copies none from a standby
            apply_delay_ms=self.delay_ms,
            guards=tuple(f"pgr_{name}" for name in self.guards),
            parameters=clusterwide.parameters(self.cluster.config),
        )
        owned, raised = settings.with_floors(settings.owned_settings(node), self.floors)
        if raised:
            self.log.once_per("settings.raised", 3600).info("settings.raised", values=raised)
        self.owned, self.altered = owned, False
        return owned

    def apply_settings(self) -> None:
        """The cluster-wide settings have changed, what pgr decides was altered, or a person wants the files read again:
        written anew, with what else is in force, and reloaded. No `yield`, and the names stay as they are. The caller
        has looked at the authority: who is losing it touches nothing."""
        asked = self.cluster.ops.reload_of(self.local.me)
        same = (self.applied, self.delay_ms, self.guards) == (
            self.cluster.config, self.apply_delay_ms(), self.wanted_guards(),
        ) and asked <= self.reloaded and not self.altered  # fmt: skip
        if same or not self.conf or self.postmaster is None or now_ns() < self.write_again_ns:
            return
        owned = self.write_settings(**self.conf)
        try:
            removed = self.postgres.write_settings(owned, self.hba(), self.ident())
        except OSError as error:  # what was in force stays so
            self.altered, self.write_again_ns = True, now_ns() + WRITE_AGAIN_MS * MS
            hint = f"make room in {self.config.pgdata}, or mend its disk; until then the settings before stay in force"
            self.log.once_per("settings.failed", 60).error("settings.failed", error=str(error), hint=hint)
            return
        self.postmaster.reload()
        self.reloaded = max(asked, self.reloaded)
        self.log.info("settings.applied", index=self.cluster.config_index, removed_lines=list(removed))

    def wanted_guards(self) -> tuple[str, ...]:
        """Whose slots logical consumers of this primary wait for."""
        if self.local.server is not Server.PRIMARY or not self.syncs_slots():
            return ()
        return guards(self.guards, self.cluster, self.local.me, self.seen)

    def syncs_slots(self) -> bool:
        return settings.syncs_slots(clusterwide.parameters(self.cluster.config), self.binaries.major)

    def apply_delay_ms(self) -> int:
        """Not before a new copy has passed its proof: until then it is not known to be one."""
        return upstreams.apply_delay_ms(self.cluster, self.local.me) if proven(self.record, self.facts) else 0

    def followed_conninfo(self, grant: Grant, node: str) -> str:
        """primary_conninfo; with a database where slots are copied, which is done by SQL."""
        return self.upstream(grant, dbname="postgres" if self.syncs_slots() else None, node=node)

    def hba(self) -> str:
        rules = self.cluster.setting(clusterwide.HBA)
        return settings.hba(rules, self.os_user, self.founding().get("superuser", "postgres"))

    def ident(self) -> str:
        lines = self.cluster.setting(clusterwide.IDENT)
        return settings.ident(self.os_user, self.founding().get("superuser", "postgres"), lines)

    def idle_names(self) -> str:
        """synchronous_standby_names of a server that is not primary: never empty, as the group may grow while it runs
        and a list that was empty at its start is not in force before a checkpoint (safety.md, Promotion 4). Also of an
        asynchronous cluster, which may be one no longer when it is promoted."""
        return settings.PLACEHOLDER_NAMES

    def primary_names(self, term: int) -> str:
        """synchronous_standby_names of this node as primary of ``term``: the others of S, stamped with its epoch."""
        group = self.cluster.wanted_group
        others = [(seat.name, seat.incarnation) for seat in group.members if seat.name != self.local.me]
        return settings.standby_names(term, group.k, others)

    def upstream(
        self, grant: Grant, dbname: str | None = None, application: str | None = None, node: str = ""
    ) -> str:  # fmt: skip
        """How to reach the primary of ``grant`` (``node``: a standby of it) for replication, rewind or a question."""
        member = self.cluster.member(node or grant.node)
        if member is None:
            raise StepFailed(f"{node or grant.node} is not a member")
        host, _, port = member.postgres.rpartition(":")
        stamp = settings.stamp(self.local.me, self.view.incarnation, grant.term)
        return settings.conninfo(
            host=host.strip("[]"),
            port=int(port),
            user=settings.REPLICATION_ROLE,
            dbname=dbname,
            passfile=str(self.config.run / "pgpass"),
            application_name=application or stamp,
            connect_timeout=3,
            keepalives_idle=3,
            keepalives_interval=1,
            keepalives_count=3,
            tcp_user_timeout=3000,
        )

    def own_conninfo(self) -> str:
        return settings.own_conninfo(str(self.postgres.socket_dir), self.config.pg_port)
