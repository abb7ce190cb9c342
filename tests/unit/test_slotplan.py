"""Which slots a node keeps: of members, permanent ones, and what is left alone; what is there and what is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consensus.cluster import Change, ClusterState, Grant, Seat, SyncGroup
from consensus.record import Position
from supervisor import slots
from supervisor.context import Context
from supervisor.observe import Facts, observation
from supervisor.roles import Data, Local, Server, Step, View
from supervisor.slotplan import (
    Advance,
    Create,
    Drop,
    Forget,
    Problem,
    Remember,
    Situation,
    Slot,
    actions,
    guards,
    positions,
    slot_of,
)
from supervisor.slots import Slots, forget, made, remember
from supervisor.sql import SqlError
from supervisor.tasks import Task, run_blocking
from supervisor.upstream import HEARD_MS

CDC = ("logical", "app", "pgoutput")
PRIMARY = Situation(False, 18, False, {}, {}, {}, 0)
STANDBY = Situation(True, 18, False, {}, {}, {}, 900)
LOGICAL = Slot("cdc", "logical", restart_lsn=50, plugin="pgoutput", database="app", failover=True)
ARCHIVE = Slot("archive", "physical", restart_lsn=100)
MEMBER = Slot("pgr_b", "physical", restart_lsn=100)


def problems(found: list[Any]) -> str:
    return " ".join(action.text for action in found if isinstance(action, Problem))


def test_a_row() -> None:
    row = ("cdc", "logical", "t", "extended", "0/10", "77", "pgoutput", "app", "true", "false")
    assert slot_of(row) == Slot("cdc", "logical", True, "extended", 16, "77", "pgoutput", "app", True, False)
    assert slot_of(row).definition == list(CDC)
    assert ARCHIVE.definition == ["physical"]


# -- of members


def test_a_slot_for_each_member() -> None:
    both = replace(STANDBY, members={"pgr_b": 900, "pgr_c": 900})
    assert actions(both, [MEMBER]) == [Advance("pgr_b", 900), Create("pgr_c", ("physical",))]
    assert actions(both, [replace(MEMBER, active=True), replace(MEMBER, name="pgr_c", restart_lsn=900)]) == []
    lost = replace(MEMBER, wal_status="lost")
    assert actions(replace(PRIMARY, members={"pgr_b": 0}), [lost]) == [Drop("pgr_b"), Create("pgr_b", ("physical",))]
    assert actions(replace(PRIMARY, members={"pgr_b": 0}), [replace(lost, active=True)]) == []
    assert actions(replace(PRIMARY, members={"pgr_b": 0}), [MEMBER]) == [], "it may need all of it"


def test_former_members_hold_no_wal() -> None:
    assert actions(PRIMARY, [MEMBER]) == [Drop("pgr_b")]
    assert actions(PRIMARY, [replace(MEMBER, active=True, pid="7")]) == [Drop("pgr_b", "7")]
    assert actions(replace(PRIMARY, paused=True), [MEMBER]) == []
    assert actions(PRIMARY, [replace(LOGICAL, name="pgr_x")]) == [], "no member's: those are physical"


# -- permanent ones


def test_a_physical_one_is_on_every_node_and_moves_as_that_of_the_primary() -> None:
    wanted = {"archive": ["physical"]}
    for s in (replace(PRIMARY, permanent=wanted), replace(STANDBY, permanent=wanted)):
        assert actions(s, []) == [Create("archive", ("physical",), permanent=True)]
    ours = replace(STANDBY, permanent=wanted, made=frozenset({"archive"}))
    assert actions(ours, [ARCHIVE]) == [], "nothing is known of the primary's"
    assert actions(replace(ours, primarys={"archive": 400}), [ARCHIVE]) == [Advance("archive", 400)]
    assert actions(replace(ours, primarys={"archive": 4000}), [ARCHIVE]) == [Advance("archive", 900)], "not beyond"
    assert actions(replace(ours, primarys={"archive": 90}), [ARCHIVE]) == []
    assert actions(replace(ours, primarys={"archive": 400}), [replace(ARCHIVE, active=True)]) == []
    on_primary = replace(PRIMARY, permanent=wanted, made=frozenset({"archive"}), primarys={"archive": 400})
    assert actions(on_primary, [ARCHIVE]) == [], "its consumer moves it"


def test_a_logical_one_is_made_on_the_primary_and_copied_by_postgres() -> None:
    wanted = {"cdc": CDC}
    assert actions(replace(PRIMARY, permanent=wanted), []) == [Create("cdc", CDC, permanent=True)]
    assert actions(replace(STANDBY, permanent=wanted), []) == []
    copy = replace(LOGICAL, synced=True)
    assert actions(replace(STANDBY, permanent=wanted), [copy]) == [Remember("cdc")]
    ours = replace(PRIMARY, permanent=wanted, made=frozenset({"cdc"}))
    assert actions(ours, [LOGICAL]) == actions(ours, [copy]) == []
    former = replace(STANDBY, permanent=wanted, made=frozenset({"cdc"}))
    assert actions(former, [LOGICAL]) == [Drop("cdc")], "of its own time as primary: in the way of the copy"
    assert actions(replace(former, paused=True), [LOGICAL]) == []
    assert "without failover" in problems(actions(ours, [replace(LOGICAL, failover=False)]))


@pytest.mark.parametrize("major", [15, 16])
def test_what_older_versions_cannot_do_is_said(major: int) -> None:
    old = replace(LOGICAL, failover=False)
    primary = replace(PRIMARY, major=major, permanent={"cdc": CDC})
    found = actions(primary, [])
    assert f"Postgres {major}" in problems(found)
    assert Create("cdc", CDC, permanent=True) in found
    assert Remember("cdc") in actions(primary, [old])
    standby = replace(STANDBY, major=major, permanent={"cdc": CDC}, made=frozenset({"cdc"}))
    assert actions(standby, [old]) == [Drop("cdc")], "it would hold WAL, and be of no use"
    assert actions(replace(standby, made=frozenset()), [old]) == []
    assert actions(replace(standby, paused=True), [old]) == []
    assert actions(standby, []) == []


def test_another_slot_of_that_name_is_left_alone() -> None:
    found = actions(replace(PRIMARY, permanent={"archive": CDC}, made=frozenset({"archive"})), [ARCHIVE])
    assert "is another slot (physical) than the setting wants (logical app pgoutput)" in problems(found)
    assert len(found) == 1


def test_one_that_has_lost_its_wal_is_not_made_anew_without_a_word() -> None:
    ours = replace(PRIMARY, permanent={"cdc": CDC}, made=frozenset({"cdc"}))
    found = actions(ours, [replace(LOGICAL, wal_status="lost")])
    assert "has lost the WAL" in problems(found)
    assert len(found) == 1


def test_when_the_setting_is_removed_so_is_the_slot() -> None:
    ours = replace(PRIMARY, made=frozenset({"archive", "cdc", "gone"}))
    copied = replace(LOGICAL, synced=True)
    assert actions(ours, [ARCHIVE, copied]) == [Drop("archive"), Drop("cdc"), Forget("gone")]
    used = actions(ours, [replace(ARCHIVE, active=True)])
    assert "in use" in problems(used)
    assert Drop("archive") not in used
    assert Drop("archive") not in actions(replace(ours, paused=True), [ARCHIVE])
    on_standby = replace(STANDBY, made=frozenset({"archive", "cdc"}))
    assert actions(on_standby, [ARCHIVE, copied]) == [Drop("archive")], "a copy goes when the primary's is gone"


def test_nobody_elses_slot_is_touched() -> None:
    for s in (PRIMARY, STANDBY):
        assert actions(s, [ARCHIVE, replace(ARCHIVE, name="x", active=True, wal_status="extended")]) == []
        assert "holds WAL (extended)" in problems(actions(s, [replace(ARCHIVE, wal_status="extended")]))
    mine = replace(LOGICAL, name="mine")
    assert actions(PRIMARY, [mine]) == []
    assert actions(STANDBY, [mine]) == [Drop("mine")], "the copy of a failover slot needs its place, whoever made it"
    assert actions(STANDBY, [replace(mine, failover=False)]) == []
    assert actions(replace(STANDBY, copies=False), [mine]) == [], "nobody copies it"


def test_what_the_primary_tells() -> None:
    wanted = {"archive": ["physical"], "cdc": CDC}
    assert positions([ARCHIVE, LOGICAL, MEMBER], wanted) == {"archive": 100}
    assert positions([replace(ARCHIVE, wal_status="lost")], wanted) == {}


# -- whom logical consumers wait for


def group(names: str, k: int, *, asynchronous: bool = False) -> ClusterState:
    seats = tuple(Seat(name, 1) for name in names)
    return ClusterState(group=SyncGroup(seats, k, asynchronous), grants=(Grant(5, "a", Position(0, 0), 2),))


def streams(**changes: Any) -> dict[str, Any]:
    seen = {"state": "streaming", "epoch_of_upstream": 5, "upstream_node": "a"} | changes
    return {"seen": seen, "age_ms": 10}


def test_as_many_as_a_commit_waits_for() -> None:
    seen = {name: streams() for name in "bcde"}
    assert guards((), group("abc", 2), "a", seen) == ("b",)
    assert guards((), group("abcde", 3), "a", seen) == ("b", "c")
    assert guards((), group("abc", 1), "a", seen) == ()
    assert guards((), group("abc", 1, asynchronous=True), "a", seen) == ()
    assert guards((), replace(group("abc", 2), grants=()), "a", seen) == ()


def test_while_the_group_is_changed_consumers_wait_for_both() -> None:
    """From `done/1` on a read quorum of the new one alone decides, and what consumers have seen must be there."""
    old, new = group("ab", 2).group, group("ac", 2).group
    state = replace(group("ab", 2), change=Change(9, old, new))
    assert guards((), state, "a", {name: streams() for name in "bc"}) == ("b", "c")


def test_whoever_streams_stays_and_whoever_does_not_is_replaced() -> None:
    seen = {name: streams() for name in "bc"}
    three = group("abc", 2)
    assert guards(("c",), three, "a", seen) == ("c",), "no change without need"
    for gone in (streams(state="running"), streams(epoch_of_upstream=4), streams(upstream_node="b"),
                 streams() | {"age_ms": HEARD_MS}):  # fmt: skip
        assert guards(("c",), three, "a", seen | {"c": gone}) == ("b",)
    assert guards(("c",), three, "a", {}) == ("c",), "decoding waits as commits do"
    assert guards(("c",), group("ab", 2), "a", seen) == ("b",), "it has no seat any more"


# -- the shell


def test_what_is_pgrs_is_kept_on_disk(tmp_path: Path) -> None:
    assert made(tmp_path) == frozenset()
    remember(tmp_path, "b")
    remember(tmp_path, "a")
    remember(tmp_path, "a")
    forget(tmp_path, "x")
    assert made(tmp_path) == {"a", "b"}
    forget(tmp_path, "b")
    assert made(tmp_path) == {"a"}
    (tmp_path / slots.MADE).write_text("[", encoding="utf-8")
    assert made(tmp_path) == frozenset(), "then they are nobody's, and stay"


class Session:
    def __init__(self, rows: Sequence[tuple[str, ...]], refuses: str = "") -> None:
        self.rows, self.refuses, self.asked = rows, refuses, list[tuple[str, Any]]()

    def query(self, sql: str, values: Any = (), **_: Any) -> Task[Any]:
        self.asked.append((sql.partition("(")[0], values))
        if self.refuses and self.refuses in sql:
            raise SqlError("all replication slots are in use")
        return self.rows
        yield


def node(tmp_path: Path, server: Server = Server.PRIMARY, **changes: Any) -> Any:
    cluster = replace(
        group("abc", 2), config='{"slots.archive":["physical"]}', grants=(Grant(5, "a", Position(0, 0), 2),)
    )
    c: Any = SimpleNamespace(
        cluster=cluster, view=View(cluster=cluster), seen={"a": {"seen": {"epoch": 5, "slots": {"archive": 80}}}},
        slots=lambda: ["pgr_b"], binaries=SimpleNamespace(major=18), facts=Facts(replay_lsn=90, lsn=90),
        local=Local("a", Data.READY, server, epoch=5), config=SimpleNamespace(data=tmp_path),
        log=SimpleNamespace(info=lambda *_, **__: None), syncs_slots=lambda: False,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(c, name, value)
    return c


def test_a_round(tmp_path: Path) -> None:
    rows = [("pgr_b", "physical", "f", "reserved", "0/10", "", "", "", "false", "false")]
    c, session = node(tmp_path), Session(rows)
    made_slots = Slots(cast(Context, c))
    assert made_slots.wants() != made_slots.wanted
    run_blocking(made_slots.round(cast(Any, session)))
    assert session.asked[1:] == [("SELECT pg_create_physical_replication_slot", ("archive",))]
    assert made(tmp_path) == {"archive"}, "known as pgr's before it is there"
    assert (made_slots.wants() == made_slots.wanted, c.facts.slot_problems) == (True, ())


def test_what_is_refused_is_told_and_the_rest_is_done(tmp_path: Path) -> None:
    rows = [("archive", "physical", "f", "", "0/10", "", "", "", "false", "false")]
    c, session = node(tmp_path), Session(rows, "create")
    run_blocking(Slots(cast(Context, c)).round(cast(Any, session)))
    assert c.facts.slot_problems == ("pgr_b: all replication slots are in use",)
    assert c.facts.slots == {"archive": 16}
    told = observation(View(), c.local, c.facts, Step.WAIT, "", "1")
    assert (told["slots"], told["slot_problems"]) == ({"archive": 16}, ["pgr_b: all replication slots are in use"])


@pytest.mark.parametrize(("epoch", "moved"), [(5, True), (4, False)])
def test_a_standby_goes_by_what_the_primary_of_the_newest_grant_tells(tmp_path: Path, epoch: int, moved: bool) -> None:
    rows = [("archive", "physical", "f", "", "0/10", "", "", "", "false", "false"),
            ("pgr_b", "physical", "f", "", "0/5A", "", "", "", "false", "false")]  # fmt: skip
    seen = {"a": {"seen": {"epoch": epoch, "slots": {"archive": 80}}}}
    c, session = node(tmp_path, Server.STANDBY, seen=seen, local=Local("c", Data.READY, Server.STANDBY)), Session(rows)
    run_blocking(Slots(cast(Context, c)).round(cast(Any, session)))
    assert (("SELECT pg_replication_slot_advance", ("archive", "0/50")) in session.asked) is moved
