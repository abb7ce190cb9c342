"""A cluster that has all it needs gets its primary: what a review found to be stuck for ever, or for much too long."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consensus.cluster import ClusterState, Grant
from consensus.promotion import LAST_PRIMARY_GRACE_MS, TakeGrant
from consensus.record import EpochStart, NodeRecord, Position
from supervisor import timelines
from supervisor.postgres import Postgres
from supervisor.steps import Steps
from supervisor.tasks import Task, run_blocking
from supervisor.watch import OTHER_HISTORY, WAL_GONE
from tests.unit.nodes import Cluster
from tests.unit.test_node import opened
from tests.unit.test_promotion import OPENED, ask, state


@pytest.mark.parametrize("failed", ["", "the promotion failed"])
def test_the_last_primary_that_is_granted_once_more_and_writes_nothing_still_has_everything(failed: str) -> None:
    """a is primary of 3; b and c are being copied anew. a restarts, is granted 4, and is killed before it writes."""
    again = state(grants=(OPENED, Grant(4, "a", Position(3, 50), 3, failed=failed)))
    alone: dict[str, tuple[int, int] | None] = {"a": (3, 50), "b": None, "c": None}
    assert isinstance(ask(alone, me="a", state=again, waited=10 * LAST_PRIMARY_GRACE_MS), TakeGrant)


def test_the_same_with_whole_nodes() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.open()
    for name in "bc":
        cluster.members[name].position = (-1, 0)  # both are being copied from a
    cluster.members["a"].up = False
    cluster.sleep(3000)
    cluster.restart("a")
    cluster.until(lambda: cluster.primary() == "a", 30_000)  # granted again: the last primary
    cluster.members["a"].up = False  # killed before a byte of that epoch is written
    cluster.sleep(3000)
    cluster.restart("a", boot=3)
    cluster.sleep(60_000)
    sentences = {m.state.get("sentence") for m in cluster.members.values()}
    assert cluster.primary() == "a", sentences


def test_a_killed_promotion_leaves_a_history_that_can_be_written_again(tmp_path: Path) -> None:
    """b attached to epoch 5 and received nothing of it; then it is promoted under 6 *before* the start of 5, and killed
    before that is in its record. Its next promotion has to write the history file of 6."""
    first, third, fifth = EpochStart(0, 0, 1), EpochStart(3, 100, 3), EpochStart(5, 210, 5)
    # By Postgres, which copies the history of the timeline that it heard of last (0/D2 = 210, 0/C8 = 200).
    (tmp_path / timelines.history_name(6)).write_text("1\t0/64\n3\t0/D2\n5\t0/C8\tno recovery target specified\n")
    grants = (Grant(5, "c", Position(3, 210), 5), Grant(6, "b", Position(3, 200), 6))
    c: Any = SimpleNamespace(
        record=NodeRecord(6, (first, third, fifth)), cluster=ClusterState(grants=grants),
        local=SimpleNamespace(me="b"), postgres=SimpleNamespace(wal_dir=tmp_path),
    )  # fmt: skip

    def save_record(history: tuple[EpochStart, ...]) -> Task[None]:
        c.record = c.record._replace(history=history)
        return
        yield

    c.save_record = save_record
    run_blocking(Steps(c)._complete_own_history(6))
    assert EpochStart(6, 200, 6) in c.record.history
    own = max(e.timeline for e in c.record.history)
    timelines.install_list(c.record.history, own, 7)  # promote._promote_now; a ValueError there ends the node


def test_a_history_that_claims_what_was_never_here_is_written_anew(tmp_path: Path) -> None:
    """As Postgres writes it after it only heard of a timeline: 1 left at 60, 2 at 50 (tests/process)."""
    ancestry = (EpochStart(0, 0, 1), EpochStart(7, 50, 3))
    path = tmp_path / timelines.history_name(3)
    (tmp_path / "PG_VERSION").touch()
    node = cast(Postgres, SimpleNamespace(wal_dir=tmp_path, pgdata=tmp_path))
    path.write_text("1\t0/3C\tno recovery target specified\n2\t0/32\tno recovery target specified\n")
    Postgres.correct_history(node, 3, ancestry)
    assert timelines.parse_history(path.read_text()) == ((1, 50),)
    true = "1\t0/32\tno recovery target specified\n2\t0/32\tno recovery target specified\n"
    path.write_text(true)
    Postgres.correct_history(node, 3, ancestry)
    assert path.read_text() == true, "an epoch without WAL is no lie, and who follows it may need its line"


def test_a_standby_that_postgres_does_not_let_onto_the_timeline_is_noticed() -> None:
    """What it logs each second (tests/process/test_heard_of_timeline.py), having been "rewound" without a rewind."""
    line = "LOG:  new timeline 3 forked off current database system timeline 1 before current recovery point 0/5006148"
    assert any(text in line for text in (WAL_GONE, *OTHER_HISTORY))


def test_a_change_is_turned_back_if_those_of_the_new_group_are_there_but_can_not_flush() -> None:
    """c is to be removed. a, the primary, comes back without its data: connected, and long in being copied."""
    cluster = opened("a", "b", "c")
    cluster.holds_changes = True
    assert cluster.ask("a", "member.remove", name="c")["ok"]
    cluster.until(lambda: all(m.node.cluster.change is not None for m in cluster.members.values()))
    lost = cluster.members["a"]
    lost.up = False
    cluster.sleep(50)
    lost.position, lost.seen = (-1, 0), {"state": "cloning", "epoch_of_upstream": 0, "proven": False, "incarnation": 1}
    cluster.streams = False
    cluster.restart("a")
    granted: list[int] = []
    for _ in range(120_000 // 100):
        cluster.sleep(100)
        name = cluster.primary()
        if not name:
            continue
        term = cluster.members[name].state["granted"]
        if not granted or granted[-1] != term:
            granted.append(term)
        change = cluster.members[name].node.cluster.change
        assert change is not None
        if change.new.names == ("a", "b", "c"):
            return  # b and c can flush, and it opens
        for other in "bc":  # they stream, a does not
            if other != name:
                cluster.members[other].seen = {
                    "state": "streaming", "epoch_of_upstream": term, "proven": True, "incarnation": 1,
                }  # fmt: skip
    raise AssertionError(f"in two minutes b was granted the terms {granted}, and none of them could open")


def test_a_leader_does_not_hand_over_for_ever_to_one_that_nobody_else_hears() -> None:
    """Five nodes, a is lost. b is ahead of c and d, and e, which reaches b alone, is ahead of b by what nobody needs.

    b, c, d are a majority that is connected, and a read quorum in which b holds everything.
    """
    cluster = Cluster("a", "b", "c", "d", "e")
    cluster.open()
    epoch, lsn = cluster.members["b"].position
    cluster.members["b"].position = (epoch, lsn + 1)
    cluster.members["e"].position = (epoch, lsn + 2)
    cluster.cut = {pair for x in "cd" for pair in ((x, "e"), ("e", x))}
    cluster.members["a"].up = False
    terms = set()
    for _ in range(120_000 // 10):
        cluster.sleep(10)
        if cluster.primary():
            return
        if cluster.leader():
            terms.add((cluster.leader(), cluster.members[cluster.leader()].state["term"]))
    raise AssertionError(f"no primary in two minutes, leaders: {sorted(terms, key=lambda x: x[1])}")


def test_in_asynchronous_mode_a_few_bytes_of_a_new_epoch_are_no_more_than_that() -> None:
    """a was promoted at 100, is open, writes 5 bytes and is lost; b and c have all up to 100, and 1 MB may be lost."""
    ancestry = (EpochStart(0, 0, 1), EpochStart(2, 50, 2), EpochStart(3, 100, 3))
    lost = state(k=1, mode="async", grants=(OPENED._replace(timeline=3, ancestry=ancestry),))
    decision = ask({"b": (2, 100), "c": (2, 100)}, state=lost, last_known=Position(3, 105))
    assert isinstance(decision, TakeGrant), decision
