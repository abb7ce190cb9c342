"""Settings on their way into the log: asked at any node, checked by the leader and its Postgres, applied by all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from consensus import peerwire
from consensus.changes import DEGRADE_MS
from consensus.clustertext import dump
from consensus.clusterwide import CHARS_MAX, TIMINGS
from consensus.messages import AppendReq, Entry
from consensus.node import Node
from consensus.peerwire import Envelope
from consensus.reconfigure import SLOTS_MAX, UNCHECKED_MAX
from consensus.retiming import profile_of
from fencing import wire
from fencing.lease import MS, PROFILES
from tests.unit.nodes import Cluster, T
from tests.unit.test_requests import opened, refusal

WORK_MEM = "postgres.parameters.work_mem"


def put(cluster: Cluster, at: str, unset: tuple[str, ...] = (), **values: Any) -> dict[str, Any]:
    body = {"set": {n.replace("__", "."): v for n, v in values.items()}, "unset": list(unset), "by": "eve@host"}
    return cluster.ask(at, "config.set", **body)


def config(cluster: Cluster, at: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.members[at].cluster["config"])
    return found


def test_a_setting_reaches_every_node_and_the_history() -> None:
    cluster = opened("a", "b", "c")
    answer = put(cluster, "b", strict="off", maximum_lag_on_failover="2MB")
    assert answer["ok"], answer
    assert answer["changes"] == {"maximum_lag_on_failover": [1 << 20, 2 << 20], "strict": [True, False]}
    assert answer["after"] == 0
    assert "not strict: with too few standbys writes go on" in answer["notes"][0]
    for name in "abc":
        cluster.until(lambda name=name: config(cluster, name) != {})  # type: ignore[misc]  # bound now
        assert config(cluster, name) == {"maximum_lag_on_failover": 2 << 20, "strict": False}
        assert cluster.members[name].cluster["config_index"] == answer["index"]
        last = cluster.members[name].cluster["history"][-1]
        assert last[1:5] == [
            "config", 1, "a", f"eve@host: maximum_lag_on_failover: {1 << 20} -> {2 << 20}; strict: true -> false",
        ]  # fmt: skip
        assert json.loads(last[5])["by"] == "eve@host"


def test_unset_brings_the_default_back() -> None:
    cluster = opened("a", "b", "c")
    put(cluster, "a", strict=False)
    cluster.until(lambda: config(cluster, "a") != {})
    assert put(cluster, "a", ("strict",))["changes"] == {"strict": [False, True]}
    cluster.until(lambda: config(cluster, "c") == {} and cluster.members["c"].cluster["config_index"] > 0)


def test_all_that_is_not_named_goes_back_to_its_default() -> None:
    cluster = opened("a", "b", "c")
    hooks = {"hooks.on_event": ["/usr/bin/true"]}
    assert cluster.ask("a", "config.set", set=hooks | {"salvage_keep": 3, "sync_acks": 2}, unset=[])["ok"]
    cluster.until(lambda: len(config(cluster, "b")) == 3)

    # What is a default already stays unset, what was set to what is the default stays set.
    named = {"strict": True, "maximum_lag_on_failover": 7, "sync_acks": 2, "commit": "quorum"}
    answer = cluster.ask("b", "config.set", set=named, unset=None, by="ann")
    assert answer["changes"] == {"maximum_lag_on_failover": [1 << 20, 7], "salvage_keep": [3, 10]}
    then = hooks | {"maximum_lag_on_failover": 7, "sync_acks": 2}
    cluster.until(lambda: all(config(cluster, name) == then for name in "abc"))
    again = cluster.ask("c", "config.set", set=named, unset=None)
    assert (again["changes"], again["index"]) == ({}, again["after"])

    # Checked as one that is named: nothing of it is done.
    assert refusal(cluster.ask("a", "config.set", set={"strcit": True}, unset=None)) == (
        64, "there is no setting strcit",
    )  # fmt: skip
    assert refusal(cluster.ask("a", "config.set", set={"sync_acks": 3}, unset=None))[0] == 78
    assert refusal(cluster.ask("a", "config.set", set={"lease_ms": 3_000}, unset=None))[0] == 78
    assert config(cluster, "a") == then
    assert cluster.ask("a", "config.set", set={}, unset=None)["ok"]
    cluster.until(lambda: all(config(cluster, name) == hooks for name in "abc"))


def test_timings_that_are_named_as_they_are_in_force_stay_as_they_were_asked_for() -> None:
    cluster = opened("a", "b", "c")

    def named() -> dict[str, Any]:
        timings = cluster.members["a"].node.cluster.pace.timings
        return {"profile": profile_of(timings)} | {name: getattr(timings, name) for name in TIMINGS}

    assert cluster.ask("a", "config.set", set=named(), unset=None)["changes"] == {}, "the founding's"
    longer = {"profile": "cloud", "heartbeat_ms": 150}
    assert cluster.ask("a", "config.set", set=longer, unset=[])["ok"]
    cluster.until(lambda: named()["election_ms"] == PROFILES["cloud"].election_ms, T.election_ms * 20)
    cluster.until(lambda: named()["heartbeat_ms"] == 150, T.election_ms * 20)
    assert named()["profile"] == "custom"
    assert cluster.ask("a", "config.set", set=named(), unset=None)["changes"] == {}, "what was asked for since"
    other = cluster.ask("a", "config.set", set={"profile": "cloud"}, unset=None)
    assert other["changes"] == {"heartbeat_ms": [150, None]}, "one that is not named is the profile's"


@pytest.mark.parametrize(
    "body", [{}, {"set": {}}, {"unset": []}, {"set": None, "unset": None}, {"set": ["strict"], "unset": []}]
)
def test_a_request_that_makes_no_sense_does_no_harm(body: dict[str, Any]) -> None:
    cluster = opened("a", "b", "c")
    assert refusal(cluster.ask("b", "config.set", **body)) == (64, "this is no request to set anything")


def test_nothing_to_change_and_a_dry_run_leave_no_entry() -> None:
    cluster = opened("a", "b", "c")
    before = cluster.members["a"].node.raft.log.last_index
    assert put(cluster, "a")["index"] == 0
    answer = cluster.ask("c", "config.set", set={"strict": False}, unset=[], dry_run=True)
    assert (answer["ok"], answer["changes"], answer["index"]) == (True, {"strict": [True, False]}, 0)
    assert cluster.members["a"].node.raft.log.last_index == before


@pytest.mark.parametrize(
    ("values", "unset", "code", "why"),
    [
        ({"strcit": True}, (), 64, "there is no setting strcit"),
        ({}, ("strcit",), 64, "there is no setting strcit"),
        ({"sync_acks": "many"}, (), 64, "sync_acks is a whole number"),
        ({"strict": False}, ("strict",), 64, "strict is to be set and unset at once"),
        ({"sync_acks": 3}, (), 78, "sync_acks = 3 needs 4 nodes in the sync group, there are 3: every write"),
    ],
)
def test_what_does_not_fit_never_enters_the_log(
    values: dict[str, Any], unset: tuple[str, ...], code: int, why: str
) -> None:
    cluster = opened("a", "b", "c")
    before = cluster.members["a"].node.raft.log.last_index
    found = refusal(put(cluster, "b", unset, **values))
    assert found[0] == code
    assert found[1].startswith(why)
    assert cluster.members["a"].node.raft.log.last_index == before


def test_more_acknowledgements_than_nodes_are_allowed_where_nobody_waits_for_them() -> None:
    cluster = opened("a", "b", "c")
    assert put(cluster, "a", sync_acks=3, strict=False)["ok"]
    cluster.until(lambda: config(cluster, "a") != {})
    assert refusal(put(cluster, "a", strict=True))[0] == 78
    assert put(cluster, "a", strict=True, commit="async")["ok"]


def test_few_acknowledgements_are_told_what_they_cost() -> None:
    cluster = opened(*"abcde")
    assert put(cluster, "a", sync_acks=1)["notes"] == ["a failover needs 4 of the 5 nodes of the sync group"]
    assert put(cluster, "a", sync_acks=2, commit="async")["notes"] == [
        "asynchronous: a failover may lose acknowledged commits"
    ]


def test_of_two_at_once_one_is_void() -> None:
    cluster = opened("a", "b", "c")
    first = put(cluster, "a", strict=False)
    cluster.until(lambda: config(cluster, "a") != {})
    body = {"set": {"strict": True}, "unset": [], "after": first["after"]}
    assert refusal(cluster.ask("a", "config.set", **body))[1] == "the settings have been changed meanwhile"
    late = {"set": {"strict": True}, "unset": [], "after": 0, "node": "b", "text": "late"}
    cluster.tell("a", "node.propose", {"kind": "config/1", "body": late})
    cluster.run(300)
    assert config(cluster, "b") == {"strict": False}
    assert cluster.ask("a", "config.set", **(body | {"after": first["index"]}))["ok"]


def test_sync_acks_goes_through_a_change_of_the_sync_group() -> None:
    cluster = opened("a", "b", "c")
    put(cluster, "b", sync_acks=2)
    cluster.until(lambda: cluster.seats("c") == "3 of a b c")
    kinds = [event[4] for event in cluster.members["c"].cluster["history"] if event[1] == "sync group"]
    assert kinds == ["is changed: 3 acknowledge a commit", "3 of a, b, c acknowledge a commit"]
    put(cluster, "b", ("sync_acks",))
    cluster.until(lambda: cluster.seats("c") == "2 of a b c")


def test_commit_is_in_force_once_the_sync_group_says_so() -> None:
    cluster = opened("a", "b", "c")
    cluster.holds_changes = True
    put(cluster, "a", commit="async")
    cluster.until(lambda: cluster.members["b"].cluster["change"] is not None)
    assert cluster.members["b"].cluster["group"][1:] == [2, False]
    cluster.holds_changes = False
    cluster.until(lambda: cluster.members["b"].cluster["group"][1:] == [1, True])
    put(cluster, "a", commit="quorum")
    cluster.until(lambda: cluster.members["b"].cluster["group"][1:] == [2, False])


def test_not_strict_shrinks_the_group_when_standbys_are_gone_and_grows_it_when_they_are_back() -> None:
    cluster = opened("a", "b", "c", "v", "w", witnesses="vw")
    put(cluster, "a", strict=False)
    cluster.run(300)
    assert cluster.seats("a") == "2 of a b c"
    for name in "bc":
        cluster.members[name].up = False
    gone = cluster.now
    cluster.until(lambda: cluster.seats("a") == "1 of a", 30_000)
    assert cluster.now - gone >= DEGRADE_MS * MS
    cluster.members["b"].up = True
    cluster.until(lambda: cluster.seats("a") == "2 of a b", 30_000)


def test_not_strict_lets_the_last_one_take_over_once_the_group_has_shrunk() -> None:
    """Two with a Postgres and a witness: a dies, and b could not open."""
    cluster = opened("a", "b", "w", witnesses="w")
    put(cluster, "b", strict=False)
    cluster.run(300)
    cluster.members["a"].up = False
    cluster.until(lambda: cluster.primary() == "b", 30_000)
    state = cluster.members["b"].cluster
    assert (state["change"][2][0], state["change"][2][1]) == ([["b", 1]], 1), "it has begun before the grant"
    assert any("is degraded: only b of a, b can flush" in event[4] for event in state["history"])
    cluster.open()
    cluster.until(lambda: cluster.seats("b") == "1 of b", 30_000)


# -- what concerns Postgres is shown to Postgres first


def asked(cluster: Cluster, at: str, **values: Any) -> str:
    """Asks, and returns the token under which the primary's parent is asked."""
    seen = len(cluster.members["a"].checks)
    cluster.tell(at, "admin.request", {"name": "config.set", "body": {"set": values, "unset": []}}, "q")
    cluster.until(lambda: len(cluster.members["a"].checks) > seen)
    return cluster.members["a"].checks[-1][0]


def say(cluster: Cluster, token: str, **body: Any) -> None:
    cluster.tell("a", "node.checked", {"ok": True, "notes": []} | body, token)


def test_parameters_and_rules_are_shown_to_the_primarys_postgres() -> None:
    cluster = opened("a", "b", "c")
    token = asked(cluster, "b", **{WORK_MEM: "8MB", "postgres.hba": ["local all all peer"], "strict": False})
    body = cluster.members["a"].checks[-1][1]
    assert body == {"parameters": {"work_mem": "8MB"}, "hba": ["local all all peer"], "ident": None}
    cluster.run(100)
    assert (config(cluster, "a"), cluster.members["b"].answers) == ({}, [])
    say(cluster, token, notes=["work_mem: reload"])
    cluster.until(lambda: bool(cluster.members["b"].answers))
    answer = cluster.members["b"].answers[-1]
    assert answer["notes"][-1] == "work_mem: reload"
    cluster.until(lambda: WORK_MEM in config(cluster, "c"))
    say(cluster, token)
    assert len(cluster.members["b"].answers) == 1, "an answer that came twice"


def test_what_postgres_refuses_never_enters_the_log() -> None:
    cluster = opened("a", "b", "c")
    token = asked(cluster, "a", **{WORK_MEM: "lots"})
    say(cluster, token, ok=False, code=64, error="work_mem: no", hint="write 8MB")
    assert refusal(cluster.members["a"].answers[-1]) == (64, "work_mem: no")
    cluster.run(100)
    assert config(cluster, "b") == {}


def test_what_is_set_while_postgres_is_asked_counts() -> None:
    cluster = opened("a", "b", "c")
    cluster.tell("a", "admin.request", {"name": "config.set", "body": {"set": {WORK_MEM: "8MB"}, "unset": [],
                                                                        "after": 0}}, "q")  # fmt: skip
    token = cluster.members["a"].checks[-1][0]
    put(cluster, "a", strict=False)
    say(cluster, token)
    assert refusal(cluster.members["a"].answers[-1])[0] == 75


def test_unset_parameters_are_shown_too() -> None:
    cluster = opened("a", "b", "c")
    say(cluster, asked(cluster, "a", **{WORK_MEM: "8MB"}))
    cluster.until(lambda: WORK_MEM in config(cluster, "a"))
    cluster.tell("a", "admin.request", {"name": "config.set", "body": {"set": {}, "unset": [WORK_MEM]}}, "q")
    assert cluster.members["a"].checks[-1][1] == {"parameters": {"work_mem": None}, "hba": None, "ident": None}


def test_without_a_primary_nobody_can_be_asked() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.until(lambda: cluster.leader() != "")
    leader = cluster.leader()
    answer = put(cluster, leader, postgres__parameters__work_mem="8MB")
    assert refusal(answer) == (75, "there is no primary whose Postgres could be asked")
    assert put(cluster, leader, strict=False)["ok"], "nor is it needed for this"


def test_requests_that_nobody_answers_do_not_pile_up() -> None:
    cluster = opened("a", "b", "c")
    for _ in range(UNCHECKED_MAX + 5):
        asked(cluster, "a", **{WORK_MEM: "8MB"})
    assert len(cluster.members["a"].node.unchecked) == UNCHECKED_MAX


def test_a_leader_of_yesterday_proposes_nothing() -> None:
    cluster = opened("a", "b", "c")
    token = asked(cluster, "a", **{WORK_MEM: "8MB"})
    for name in "bc":
        cluster.members[name].up = False
    cluster.sleep(3 * T.election_ms)
    say(cluster, token)
    assert refusal(cluster.members["a"].answers[-1]) == (75, "this node leads no more")


def test_the_settings_survive_a_snapshot() -> None:
    cluster = opened("a", "b", "c")
    put(cluster, "a", strict=False)
    cluster.members["c"].up = False
    for n in range(300):
        cluster.note("a", str(n))
        cluster.run(2)
    assert cluster.members["a"].node.raft.log.snapshot.index > 0
    cluster.members["c"].up = True
    cluster.until(lambda: config(cluster, "c") == {"strict": False})


def test_a_node_that_is_restarted_knows_the_newest_settings_at_once() -> None:
    """Its disk says that they are committed: Postgres must not be started with those of before."""
    cluster = opened("a", "b", "c")
    index = put(cluster, "a", strict=False)["index"]
    cluster.until(lambda: config(cluster, "b") != {})
    assert cluster.members["b"].disk.hard.commit >= index


def test_whoever_sets_a_hook_is_told_where_it_runs() -> None:
    cluster = opened("a", "b", "c")
    answer = put(cluster, "a", hooks__on_event='["/etc/pgr/hook", "x"]', hooks__on_event_timeout="2min")
    assert answer["ok"], answer
    (note,) = answer["notes"]
    assert note == "hooks.on_event: every node runs its own /etc/pgr/hook, as the user that its Postgres runs as"
    assert answer["changes"]["hooks.on_event"] == [None, ["/etc/pgr/hook", "x"]]
    assert put(cluster, "a", ("hooks.on_event",))["notes"] == []


def test_settings_that_no_frame_could_carry_are_refused() -> None:
    """Accepted, they would be in the log: no leader could send them, and no Raft child tell them to its parent."""
    cluster = opened("a", "b", "c")
    line = 'host "{}" all 0.0.0.0/0 reject'.format('"' * 400)  # the worst case: each of them is escaped
    fits = (CHARS_MAX - 100) // (2 * len(line))
    for count in (fits, fits - 1, fits):
        say(cluster, asked(cluster, "a", **{"postgres.hba": [line] * count}))
        cluster.until(lambda count=count: len(config(cluster, "c").get("postgres.hba", ())) == count)  # type: ignore[misc]  # bound now
    code, reason = refusal(put(cluster, "b", postgres__hba=[line] * (3 * fits)))
    assert (code, f"at most {CHARS_MAX} fit" in reason) == (64, True)
    node = cluster.members["a"].node
    longest = max(node.raft.log.entries, key=lambda e: len(e.data))
    assert len(longest.data) > CHARS_MAX, "old and new"
    assert len(peerwire.encode(Envelope(node.cluster.cluster_id, "a", 1, 1, "b", 1, entries_of(node, longest)))) > 0
    assert len(wire.encode("raft.cluster", {"state": dump(node.cluster)}, "")) < wire.FRAME_BYTES_MAX


def entries_of(node: Node, entry: Entry) -> AppendReq:
    return AppendReq(node.raft.term, 1, 1, entry.index - 1, node.raft.term, (entry,), 0)


# -- permanent slots


def test_a_logical_slot_needs_its_wal_level() -> None:
    cluster = opened("a", "b", "c")
    code, error = refusal(put(cluster, "a", (), **{"slots.cdc": "logical app pgoutput"}))
    assert (code, error) == (78, "the slot cdc is logical, and so wal_level has to be")
    token = asked(cluster, "a", **{"slots.cdc": "logical app pgoutput", "postgres.parameters.wal_level": "logical"})
    say(cluster, token, ok=True, notes=[])
    answer = cluster.members["a"].answers[-1]
    assert answer["ok"]
    assert any("Postgres 17" in note for note in answer["notes"])
    cluster.until(lambda: "slots.cdc" in config(cluster, "c"))
    seen = len(cluster.members["a"].checks)
    assert refusal(put(cluster, "a", (), **{"strict": "false", "postgres.parameters.wal_level": "replica"}))[0] == 78
    assert len(cluster.members["a"].checks) == seen, "refused before anybody is asked"
    assert put(cluster, "a", ("slots.cdc",))["ok"]
    cluster.until(lambda: "slots.cdc" not in config(cluster, "c"))


def test_there_is_an_end_of_slots() -> None:
    cluster = opened("a", "b", "c")
    many = {f"slots.s{n}": "physical" for n in range(SLOTS_MAX + 1)}
    assert refusal(put(cluster, "a", (), **many))[0] == 64
    assert put(cluster, "a", (), **dict(list(many.items())[1:]))["ok"]
