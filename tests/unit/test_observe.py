"""What a node says of itself, and the picture made of what all of them said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from consensus.cluster import ClusterState, Grant, canonical, seat_of, sync_group
from consensus.history import HistoryEvent
from consensus.membership import Member
from consensus.record import EpochStart, NodeRecord, Position
from fencing.lease import MS, PROFILES
from supervisor import observe
from supervisor.observe import STALE_AFTER_MS, Facts, observation, role_of, snapshot, state_of
from supervisor.roles import Data, Local, Server, Step, View
from supervisor.status import Snapshot, serves_writes

TIMINGS = PROFILES["default"]
NOW = 1_000_000 * MS
FIRST = EpochStart(0, 0, 1)
ANCESTRY = (FIRST, EpochStart(5, 100, 2))
GRANT = Grant(5, "a", Position(0, 100), 2, ANCESTRY, opened=True)


def agreed(names: str = "abc", **changes: Any) -> ClusterState:
    members = tuple(Member(n, 0x1122334455667788, f"{n}:1", f"{n}.example:5432", f"{n}:8008") for n in names)
    group = sync_group((seat_of(m) for m in members), "quorum")
    state = ClusterState("1" * 32, members, group=group, founder="a", nonce="n", system_identifier="7", grants=(GRANT,))
    return replace(state, **changes)


ONE_OF_THREE = agreed().group._replace(k=1)


def primary(**changes: Any) -> Local:
    return replace(Local("a", Data.READY, Server.PRIMARY, epoch=5, gate_open=True), **changes)


def standby(**changes: Any) -> Local:
    return replace(Local("b", Data.READY, Server.STANDBY, upstream=5), **changes)


# The words


@pytest.mark.parametrize(
    ("local", "word"),
    [
        (primary(), "primary"),
        (primary(server=Server.PROMOTING), "promoting"),
        (primary(server=Server.STOPPING), "demoting"),
        (primary(server=Server.DOWN), "waiting"),
        (standby(), "replica"),
        (standby(server=Server.STOPPING), "replica"),
        (standby(server=Server.STARTING), "starting"),
        (standby(server=Server.DOWN), "waiting"),
    ],
)
def test_the_word_for_the_role(local: Local, word: str) -> None:
    assert role_of(local) == word


@pytest.mark.parametrize(
    ("local", "facts", "running", "word"),
    [
        (primary(), Facts(), Step.WAIT, "running"),
        (primary(server=Server.PROMOTING), Facts(), Step.PROMOTE, "running"),
        (primary(server=Server.STOPPING), Facts(), Step.HAND_OVER, "stopping"),
        (primary(server=Server.DOWN), Facts(), Step.WAIT, "stopped"),
        (standby(), Facts(streaming=True), Step.WAIT, "streaming"),
        (standby(), Facts(), Step.WAIT, "running"),
        (standby(upstream=0), Facts(streaming=True), Step.FREEZE, "running"),
        (standby(server=Server.STARTING), Facts(), Step.START, "starting"),
        (standby(server=Server.DOWN), Facts(problem="FATAL"), Step.WAIT, "quarantined"),
        (standby(server=Server.STARTING), Facts(problem="FATAL"), Step.START, "quarantined"),
        (standby(server=Server.DOWN, clean=False), Facts(), Step.FENCE, "not fenced"),
        (standby(server=Server.DOWN, clean=False), Facts(problem="FATAL"), Step.FENCE, "not fenced"),
        (standby(server=Server.DOWN), Facts(problem="FATAL"), Step.CLONE, "cloning"),
        (standby(server=Server.DOWN, data=Data.ABSENT), Facts(), Step.WAIT, "no data"),
        (standby(server=Server.DOWN, data=Data.BROKEN), Facts(), Step.WAIT, "no data"),
        (standby(server=Server.DOWN, data=Data.ABSENT), Facts(), Step.CLONE, "cloning"),
        (standby(), Facts(streaming=True), Step.CLONE, "cloning"),
        (standby(server=Server.DOWN), Facts(), Step.REWIND, "rewinding"),
        (standby(server=Server.DOWN, data=Data.ABSENT), Facts(), Step.CREATE, "creating"),
    ],
)
def test_the_word_for_what_postgres_does(local: Local, facts: Facts, running: Step, word: str) -> None:
    assert state_of(local, facts, running) == word


def test_every_server_and_every_step_has_a_word() -> None:
    for server in Server:
        for data in Data:
            for step in Step:
                local = standby(server=server, data=data)
                assert role_of(local)
                assert state_of(local, Facts(), step)


# What a node says of itself


def say(local: Local, facts: Facts, reason: str = "") -> dict[str, Any]:
    return observation(View(True, record=NodeRecord(5, ANCESTRY)), local, facts, Step.WAIT, reason, "0.1.0")


def test_a_primary_says_the_epoch_it_writes() -> None:
    said = say(primary(), Facts(lsn=90, checkpointed=5))
    expected = {"role": "primary", "epoch": 5, "timeline": 2, "lsn": 90, "checkpointed": 5}
    assert {key: said[key] for key in expected} == expected


@pytest.mark.parametrize(("lsn", "epoch", "timeline"), [(0, -1, 0), (99, 0, 1), (100, 0, 1), (101, 5, 2)])
def test_a_standby_says_the_newest_epoch_it_holds_a_byte_of(lsn: int, epoch: int, timeline: int) -> None:
    said = say(standby(), Facts(lsn=lsn))
    assert (said["epoch"], said["timeline"], said["epoch_of_upstream"]) == (epoch, timeline, 5)


def test_progress_goes_before_the_sentence_of_the_plan() -> None:
    assert say(standby(), Facts(progress="cloning, 1 of 2 MB"), reason="standby")["reason"] == "cloning, 1 of 2 MB"
    assert say(standby(), Facts(), reason="standby")["reason"] == "standby"


def test_a_copy_is_proven_once_it_has_replayed_past_its_proof() -> None:
    def proven(replayed: int, proof: Position | None) -> object:
        view = View(True, 7, record=NodeRecord(5, ANCESTRY, proof))
        facts = Facts(lsn=max(200, replayed), replay_lsn=replayed)
        return observation(view, standby(), facts, Step.WAIT, "", "0.1.0")["proven"]

    assert [proven(n, Position(5, 180)) for n in (150, 179, 180, 190)] == [False, False, True, True]
    assert proven(0, None) is True
    assert proven(190, Position(6, 10)) is False, "of a newer epoch"


def test_it_travels_as_json() -> None:
    assert canonical(say(standby(), Facts(1, 2, True, 3, "18.6")))


# The picture


def told(name: str, age_ms: int = 0, **changes: Any) -> dict[str, Any]:
    """What the leader passes on of one member: streaming, and as far as the primary."""
    local = primary() if name == "a" else standby(me=name)
    return {"seen": say(local, Facts(1000, 1000, name != "a", version="18.6")) | changes, "age_ms": age_ms}


def picture(
    local: Local | None = None,
    cluster: ClusterState | None = None,
    members: Mapping[str, Mapping[str, Any]] | None = None,
    **seen: Any,
) -> Snapshot:
    everyone = {name: told(name) for name in "abc"} if members is None else members
    view = View(True, 7, 5, "a", cluster=cluster or agreed(), lease_term=5, lease_until_ns=NOW + 700 * MS)
    return snapshot(
        replace(view, **seen), local or primary(), Facts(), everyone, TIMINGS, state="running", sentence="fine",
        now_ns=NOW, scheduling={"raft": "SCHED_RR 10"}, pgr_version="0.1.0",
    )  # fmt: skip


def test_all_is_well() -> None:
    made = picture()
    assert [(m.name, m.role, m.state, m.lag_bytes, m.sync) for m in made.members] == [
        ("a", "primary", "running", 0, ""),
        ("b", "replica", "streaming", 0, "quorum"),
        ("c", "replica", "streaming", 0, "quorum"),
    ]
    assert made.warnings == ()
    assert not made.unprotected
    assert made.primary is not None
    assert (made.primary.name, made.primary.term, made.primary.timeline, made.primary.opened) == ("a", 5, 2, True)
    assert serves_writes(made, NOW)
    first = made.members[0]
    assert (first.host, first.pg_port, first.http, first.incarnation) == ("a.example", 5432, "a:8008", "55667788")


@pytest.mark.parametrize(
    ("local", "seen"),
    [(standby(), {}), (primary(), {"lease_term": 4}), (primary(server=Server.STOPPING), {}), (primary(epoch=4), {})],
)
def test_only_the_primary_of_the_lease_shows_a_lease(local: Local, seen: dict[str, Any]) -> None:
    made = picture(local, **seen)
    assert made.lease_until_ns == 0
    assert not serves_writes(made, NOW)


def test_a_closed_gate_serves_no_writes() -> None:
    assert not serves_writes(picture(primary(gate_open=False)), NOW)


def test_a_grant_that_has_failed_names_no_primary() -> None:
    made = picture(standby(), agreed(grants=(GRANT._replace(failed="killed"),)))
    assert made.primary is None
    assert picture(standby(), agreed(grants=())).primary is None


def test_before_anything_is_known() -> None:
    made = snapshot(
        View(), Local("a"), Facts(), {}, TIMINGS, state="no data", sentence="waiting for b", now_ns=NOW, scheduling={},
        pgr_version="",
    )  # fmt: skip
    assert (made.members, made.primary, made.explanation, made.role) == ((), None, "waiting for b", "waiting")


@pytest.mark.parametrize(
    ("age_ms", "state"), [(0, "streaming"), (STALE_AFTER_MS - 1, "streaming"), (STALE_AFTER_MS, "unreachable")]
)
def test_what_is_stale_counts_as_unreachable(age_ms: int, state: str) -> None:
    row = picture(members={"a": told("a"), "b": told("b", age_ms, reason="standby"), "c": told("c")}).member("b")
    assert row is not None
    assert (row.state, row.connected, row.age_ms) == (state, state == "streaming", age_ms)
    assert row.lsn == 1000, "the last known is better than nothing, and its age is told"
    assert row.reason == ("standby" if row.connected else "not heard of; its last words: standby")


def test_the_last_primary_is_not_shown_as_one_when_the_log_names_another() -> None:
    later = agreed(grants=(GRANT, GRANT._replace(term=6, node="b", timeline=3)))
    row = picture(cluster=later, members={"a": told("a", age_ms=300), "b": told("b"), "c": told("c")}).member("a")
    assert row is not None
    assert (row.role, row.state) == ("replica", "unreachable")
    assert "was the primary before b" in row.reason


def test_a_member_never_heard_of_has_no_numbers() -> None:
    row = picture(members={"a": told("a")}).member("c")
    assert row is not None
    assert (row.role, row.state, row.epoch) == ("", "unreachable", -1)
    assert (row.lsn, row.replay_lsn, row.lag_bytes, row.age_ms) == (None, None, None, None)


def test_this_node_is_never_unreachable_to_itself() -> None:
    row = picture(standby(), members={"a": told("a"), "b": told("b", 10 * STALE_AFTER_MS)}).member("b")
    assert row is not None
    assert (row.state, row.connected) == ("streaming", True)


def test_lag_is_that_of_replay_behind_the_newest_wal_heard_of() -> None:
    b, c = told("b", lsn=4000, replay_lsn=3000), told("c", lsn=4500, replay_lsn=0)
    members = {"a": told("a", lsn=5000), "b": b, "c": c}
    assert [m.lag_bytes for m in picture(members=members).members] == [0, 2000, 500]
    assert [m.replay_lsn for m in picture(members=members).members] == [1000, 3000, None]


def test_what_waits_for_a_restart_is_told_with_what_is_in_force_and_what_is_set() -> None:
    running = {"max_connections": "100", "max_wal_senders": "10"}
    cluster = agreed(config=canonical({"postgres.parameters.max_connections": "120"}))
    row = picture(cluster=cluster, members={"a": told("a"), "b": told("b", pending=running)}).member("b")
    assert row is not None
    assert row.pending_restart
    assert row.pending == "max_connections is 100, set to 120; max_wal_senders is 10, set to its default"
    assert row.pending_settings == {
        "max_connections": {"old_value": "100", "new_value": "120"},
        "max_wal_senders": {"old_value": "10", "new_value": ""},
    }


# The warnings


@pytest.mark.parametrize(
    ("cluster", "missing", "warning"),
    [
        (agreed("a"), "", "a single node: nothing takes over when it fails"),
        (agreed("abcd"), "", "4 voters survive no more failures than 3 would"),
        (agreed(group=ONE_OF_THREE._replace(asynchronous=True)), "", "asynchronous: a failover may lose"),
        (agreed(), "c", "unreachable: c"),
        (agreed(), "c", "no spare standby: writes wait if one more node is lost"),
        (agreed(), "bc", "unreachable: b, c"),
        (agreed(), "bc", "writes wait: 2 of the sync group must flush them, 1 can, not b, c"),
        (agreed("abcde"), "cde", "writes wait: 3 of the sync group must flush them, 2 can, not c, d, e"),
    ],
)
def test_what_is_warned_of(cluster: ClusterState, missing: str, warning: str) -> None:
    names = [m.name for m in cluster.members]
    members = {name: told(name, 10 * STALE_AFTER_MS if name in missing else 0) for name in names}
    assert any(text.startswith(warning) for text in picture(cluster=cluster, members=members).warnings)


def test_a_primary_that_is_to_be_removed_is_warned_of() -> None:
    """A failover came between: it stays until it is moved, and then it goes."""
    at_rest = agreed()
    for name, warned in (("a", True), ("b", False)):
        members = tuple(m._replace(aim="gone") if m.name == name else m for m in at_rest.members)
        found = picture(cluster=replace(at_rest, members=members)).warnings
        assert any(text.startswith(f"{name} is to be removed and has become the primary") for text in found) is warned


def test_a_standby_that_does_not_stream_flushes_nothing() -> None:
    members = {"a": told("a"), "b": told("b", state="running"), "c": told("c", state="rewinding")}
    assert picture(members=members).warnings == ("writes wait: 2 of the sync group must flush them, 1 can, not b, c",)


def test_without_a_primary_nobody_waits_for_writes() -> None:
    made = picture(standby(), agreed(grants=()), {"b": told("b")})
    assert made.warnings == ("unreachable: a, c",)


@pytest.mark.parametrize(
    ("cluster", "unprotected"),
    [(agreed(), False), (agreed("ab"), True), (agreed("a"), True), (agreed(group=ONE_OF_THREE), True)],
)
def test_what_is_unprotected(cluster: ClusterState, unprotected: bool) -> None:
    assert picture(cluster=cluster).unprotected is unprotected


# The history


def test_events_get_the_timeline_and_its_beginning_from_their_grant() -> None:
    events = (
        HistoryEvent("t0", "founding", 0, "a", "is chosen", "{}"),
        HistoryEvent("t1", "opened", 5, "a", "is open to clients", canonical({"gap_ms": 640})),
        HistoryEvent("t2", "rewound", 5, "c", "was rewound", canonical({"bytes_salvaged": 4096})),
    )
    first, opened, rewound = picture(cluster=agreed(history=events)).history
    assert (first.timeline, first.lsn) == (0, None)
    assert (opened.kind, opened.timeline, opened.lsn, opened.gap_ms) == ("opened", 2, 100, 640)
    assert (rewound.bytes_salvaged, rewound.node, rewound.reason) == (4096, "c", "was rewound")


def test_a_hook_that_a_node_can_not_execute_is_warned_of() -> None:
    members = {name: told(name) for name in "abc"}
    assert not any("execute" in w for w in picture(members=members).warnings)
    members["b"]["seen"]["missing_hooks"] = ["hooks.pre_promote: /etc/pgr/fence"]
    assert "b can't execute hooks.pre_promote: /etc/pgr/fence" in picture(members=members).warnings


def test_a_lease_that_is_over_has_nothing_left() -> None:
    assert observe.lease_left_ms(View(lease_until_ns=NOW + 5 * MS), NOW) == 5
    assert observe.lease_left_ms(View(lease_until_ns=NOW), NOW + 1) == 0


def state(**changes: Any) -> dict[str, Any]:
    """As the Raft child tells it (consensus/node.py)."""
    record: dict[str, Any] = {"history": [], "proof": None, "marker": ""}
    body: dict[str, Any] = {
        "boot": 1, "term": 7, "role": "follower", "leader": "", "current": False, "wanted": 0, "promised": 5,
        "granted": 0, "hand_over": None, "sentence": "", "record": record, "pre_promote": [0, 0],
        "old_primary": [0, 0],
    }  # fmt: skip
    return body | changes


def test_a_leader_is_met_once_this_node_has_caught_up_with_it() -> None:
    """Its name comes with the first frame, what it has agreed on with a later one."""
    view = observe.view_of(View(), state(leader="b"))
    assert (view.alive, view.leader, view.met) == (True, "b", False)
    view = observe.view_of(view, state(leader="b", current=True))
    assert view.met
    assert observe.view_of(view, state(term=8)).met, "while a new leader is sought it knows no less"
