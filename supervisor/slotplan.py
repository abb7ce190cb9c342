"""Replication slots of a node: what is there, what belongs there, and what to do about it. Pure.

| slot | on the primary | on a standby |
| --- | --- | --- |
| of a member, `pgr_NAME` | made; of one that streams from a standby moved on with what it has | made, moved on with the replay |
| permanent and physical (`slots.NAME`) | made; its consumer moves it | made, moved on as that of the primary moves |
| permanent and logical, Postgres 17 and newer | made with `failover` | copied by Postgres (`sync_replication_slots`) |
| permanent and logical, Postgres 15 and 16 | made; the next primary makes it anew | dropped: Postgres can't carry it over |
| permanent before, wanted no longer | dropped once it is not in use | likewise; a copy goes with the primary's |
| anybody else's | left alone; told of if it holds WAL and nobody uses it | likewise |

A slot that is there already and is what the setting wants becomes permanent, and pgr's, with it.
None holds WAL without bound (`max_slot_wal_keep_size`): one that has lost it is made anew for a member, and told of else,
as whoever reads it has to know.
"""  # noqa: E501  (a table)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consensus.cluster import ClusterState
from supervisor.timelines import parse_lsn
from supervisor.upstream import HEARD_MS

OURS = "pgr_"
FAILOVER_MAJOR = 17
"""From here on Postgres copies logical slots to standbys."""
LOST = "lost"

QUERY = (
    "SELECT slot_name, slot_type, active, coalesce(wal_status, ''), coalesce(restart_lsn, '0/0'),"
    " coalesce(active_pid::text, ''), coalesce(plugin, ''), coalesce(database, ''),"
    " coalesce(to_jsonb(s)->>'failover', 'false'), coalesce(to_jsonb(s)->>'synced', 'false')"
    " FROM pg_replication_slots s WHERE NOT temporary"
)
"""Columns of newer versions by way of JSON: older ones do not have them."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A row of pg_replication_slots."""

    name: str
    kind: str
    active: bool = False
    wal_status: str = "reserved"
    restart_lsn: int = 0
    pid: str = ""
    plugin: str = ""
    database: str = ""
    failover: bool = False
    synced: bool = False

    @property
    def definition(self) -> list[str]:
        """As `slots.NAME` has it."""
        return [self.kind, self.database, self.plugin] if self.kind == "logical" else [self.kind]


def slot_of(row: Sequence[str | None]) -> Slot:
    """Of a row of `QUERY`."""
    name, kind, active, status, restart, pid, plugin, database, failover, synced = (cell or "" for cell in row)
    return Slot(
        name, kind, active == "t", status, parse_lsn(restart), pid, plugin, database, failover == "true",
        synced == "true",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drop:
    name: str
    pid: str = ""
    """Whose connection is ended first."""


@dataclass(frozen=True, slots=True)
class Create:
    name: str
    definition: tuple[str, ...]
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Advance:
    name: str
    lsn: int


@dataclass(frozen=True, slots=True)
class Remember:
    """It is there as the setting wants it, whoever made it: from now on it is pgr's."""

    name: str


@dataclass(frozen=True, slots=True)
class Forget:
    """It was pgr's, and is gone."""

    name: str


@dataclass(frozen=True, slots=True)
class Problem:
    """For the status."""

    text: str


Action = Drop | Create | Advance | Remember | Forget | Problem


@dataclass(frozen=True, slots=True)
class Situation:
    standby: bool
    major: int
    paused: bool
    members: Mapping[str, int]
    """Slot of each other member with a Postgres -> up to where it needs no WAL of here; 0: it may need all."""
    permanent: Mapping[str, Sequence[str]]
    """As the settings have them."""
    primarys: Mapping[str, int]
    """On a standby: restart_lsn of the primary's permanent slots, as it last told."""
    replayed: int
    """On a standby: nothing is moved beyond."""
    copies: bool = True
    """Standbys copy logical slots that are made for it (`settings.syncs_slots`)."""
    made: frozenset[str] = frozenset()
    """Permanent slots of this node that are pgr's."""


def actions(s: Situation, slots: Sequence[Slot]) -> list[Action]:
    """In order."""
    there = {slot.name: slot for slot in slots}
    found: list[Action] = []
    for slot in slots:
        if slot.name.startswith(OURS):
            found += _former(s, slot) if slot.kind == "physical" else []
        elif slot.name not in s.permanent:
            found += _unwanted(s, slot)
    found += [Forget(name) for name in sorted(s.made) if name not in there and name not in s.permanent]
    for name, upto in s.members.items():
        found += _of_member(name, upto, there.get(name))
    for name, definition in s.permanent.items():
        found += _permanent(s, name, tuple(definition), there.get(name))
    return found


def _former(s: Situation, slot: Slot) -> list[Action]:
    """Of a member that is none any more: it must not hold WAL, and without its slot it does not come back."""
    if slot.name in s.members or s.paused:
        return []
    return [Drop(slot.name, slot.pid if slot.active else "")]


def _of_member(name: str, upto: int, slot: Slot | None) -> list[Action]:
    if slot is None:
        return [Create(name, ("physical",))]
    if slot.wal_status == LOST and not slot.active:
        return [Drop(name), Create(name, ("physical",))]
    if not slot.active and slot.wal_status != LOST and 0 < slot.restart_lsn < upto:
        return [Advance(name, upto)]
    return []


def _unwanted(s: Situation, slot: Slot) -> list[Action]:
    if slot.synced and s.standby:
        return []  # Postgres drops it when the primary's is gone
    if s.standby and slot.kind == "logical" and slot.failover and not slot.active and s.copies:
        return [] if s.paused else [Drop(slot.name)]  # of its own time as primary: in the way of the copy
    if slot.name in s.made:
        if slot.active:
            return [Problem(f"{slot.name} is wanted no longer and in use: it is dropped once its consumer is gone")]
        return [] if s.paused else [Drop(slot.name)]
    if not slot.active and slot.wal_status not in ("reserved", ""):
        return [Problem(f"{slot.name}, which is not pgr's, is not in use and holds WAL ({slot.wal_status}): drop it?")]
    return []


def _permanent(s: Situation, name: str, definition: tuple[str, ...], slot: Slot | None) -> list[Action]:
    found: list[Action] = []
    logical = definition[0] == "logical"
    carried = logical and s.major >= FAILOVER_MAJOR
    if logical and not carried and not s.standby:
        found.append(Problem(
            f"{name} does not outlive a failover with Postgres {s.major} (17 and newer copy logical slots): "
            "the next primary makes it anew, and changes between are not in it"
        ))  # fmt: skip
    if slot is not None and s.standby and carried and slot.failover and not slot.synced and not slot.active:
        return [] if s.paused else [Drop(name)]
    if slot is None:
        if s.standby and logical:
            return found
        return [*found, Create(name, definition, permanent=True)]
    if slot.definition != list(definition):
        have, want = " ".join(slot.definition), " ".join(definition)
        return [*found, Problem(f"{name} is another slot ({have}) than the setting wants ({want}): it is left alone")]
    if s.standby and logical and not carried:
        mine = name in s.made and not slot.active and not s.paused
        return [Drop(name)] if mine else []
    if name not in s.made:
        found.append(Remember(name))
    if slot.wal_status == LOST:
        return [*found, Problem(f"{name} has lost the WAL that it needs: whoever reads it begins anew; drop it, and it "
                                "is made anew")]  # fmt: skip
    if carried and not s.standby and not slot.failover:
        return [*found, Problem(f"{name} was made without failover, so standbys do not copy it: drop it, and it is "
                                "made anew")]  # fmt: skip
    upto = min(s.primarys.get(name, 0), s.replayed)
    if s.standby and not logical and not slot.active and 0 < slot.restart_lsn < upto:
        found.append(Advance(name, upto))
    return found


def positions(slots: Sequence[Slot], permanent: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """What a primary tells: how far each permanent physical slot has come."""
    return {
        slot.name: slot.restart_lsn for slot in slots
        if slot.kind == "physical" and slot.name in permanent and slot.restart_lsn and slot.wal_status != LOST
    }  # fmt: skip


def guards(before: Sequence[str], state: ClusterState, me: str, seen: Mapping[str, Any]) -> tuple[str, ...]:
    """On the primary: members that must have flushed a change before a logical consumer gets it, so that every later
    primary has it too (`synchronized_standby_slots`).

    Any k - 1 of the sync group will do: with the primary they are k, and each read quorum has one of them. Postgres
    waits for all it is told, so it is told no more, and one that streams no longer is replaced. With too few that
    stream the others are named nevertheless: decoding then waits as commits do. Empty: no commit waits for anybody.
    """
    grant = state.grant
    if grant is None:
        return ()

    def streams(name: str) -> bool:
        known = seen.get(name, {"seen": {}, "age_ms": HEARD_MS})
        said = known["seen"] if int(known["age_ms"]) < HEARD_MS else {}
        direct = said.get("upstream_node", "") in ("", me)
        return said.get("state") == "streaming" and said.get("epoch_of_upstream") == grant.term and direct

    found: set[str] = set()
    for group in state.groups:  # of both while one is changed: from `done/1` on only the new one has to agree
        if not group.asynchronous:
            others = [name for name in group.names if name != me]
            best = sorted(others, key=lambda name: (not streams(name), name not in before, name))
            found |= {*best[: group.k - 1]}
    return tuple(sorted(found))
