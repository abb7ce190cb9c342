"""Cluster-wide settings as people see them: rows, page, TOML there and back; and in the picture of the cluster."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from consensus.cluster import ClusterState, Seat, SyncGroup, canonical
from consensus.clusterwide import check
from fencing.lease import PROFILES
from supervisor import configview, metrics, render
from supervisor.errors import UsageError
from supervisor.health import answer
from tests.unit.test_observe import NOW, agreed, picture, primary, told

SET = {
    "sync_acks": 1, "strict": False, "postgres.parameters.work_mem": "8MB", "postgres.parameters.x.y": "a\"b",
    "postgres.hba": ["local all all peer"], "slots.archive": ["physical"], "slots.cdc": ["logical", "app", "pgoutput"],
}  # fmt: skip


def cluster(**changes: Any) -> ClusterState:
    settings = canonical({"parameters": {"work_mem": "8MB"}, "hba": []})
    return agreed(config=canonical(SET), settings=settings, **changes)


def rows(state: ClusterState) -> list[dict[str, Any]]:
    return configview.rows(state, PROFILES["default"])


def test_every_value_says_where_it_comes_from() -> None:
    found = {row["name"]: (row["value"], row["default"], row["source"]) for row in rows(cluster())}
    assert found["commit"] == ("quorum", "quorum", "default")
    assert found["sync_acks"] == (1, None, "set")
    assert found["strict"] == (False, True, "set")
    assert found["postgres.parameters.work_mem"] == ("8MB", None, "founding")
    assert found["postgres.parameters.x.y"] == ('a"b', None, "set")
    assert found["lease_ms"] == (700, 700, "profile")
    assert found["election_ms"] == (1000, 1000, "profile")
    assert json.loads(json.dumps(rows(cluster()))) == rows(cluster())


def test_slots_in_the_words_of_patroni() -> None:
    found = configview.document(cluster().config)["slots"]
    assert found == {"archive": {"type": "physical"},
                     "cdc": {"type": "logical", "database": "app", "plugin": "pgoutput"}}  # fmt: skip
    assert configview.from_toml('[slots]\nx = "physical"\n') == {"slots.x": "physical"}
    with pytest.raises(UsageError, match="slots is a table"):
        configview.from_toml("slots = 1")


def test_the_page() -> None:
    lines = configview.page(rows(cluster())).splitlines()
    assert lines[0].split() == ["NAME", "VALUE", "DEFAULT", "FROM", "A", "CHANGE", "NEEDS"]
    cells = {line.split()[0]: line.split() for line in lines[1:]}
    assert cells["sync_acks"] == ["sync_acks", "1", "majority", "set", "nothing"]
    assert cells["maximum_lag_on_failover"][1:3] == ["1048576", "bytes"]
    assert cells["lease_ms"] == ["lease_ms", "700", "ms", "700", "ms", "profile", "every", "voter"]
    assert cells["strict"] == ["strict", "false", "true", "set", "nothing"]


def test_toml_there_and_back_changes_nothing() -> None:
    for state in (cluster(), agreed()):
        before = rows(state)
        assert configview.edited(before, configview.from_toml(configview.toml(before))) == ({}, [])


def test_an_edit_sets_and_unsets() -> None:
    before = rows(cluster())
    text = configview.toml(before)
    text = text.replace("sync_acks = 1", "").replace('"8MB"', '"16MB"').replace("#maximum_lag", "maximum_lag")
    wanted, unset = configview.edited(before, configview.from_toml(text + 'auto_explain.log = "1s"\n'))
    assert unset == ["sync_acks"]
    assert wanted == {
        "postgres.parameters.work_mem": "16MB", "maximum_lag_on_failover": 1 << 20,
        "postgres.parameters.auto_explain.log": "1s",
    }  # fmt: skip
    assert all(check(name, value) is not None for name, value in wanted.items())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("strict = ", "this is no TOML"),
        ("postgres = 1", "are tables"),
        ("[postgres]\nparameters = 1", "are tables"),
    ],
)
def test_what_is_no_toml_of_settings(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        configview.from_toml(text)
    assert refused.value.hint


def test_a_diff_has_the_old_and_the_new_line() -> None:
    assert configview.diff({"strict": [True, False], "sync_acks": [None, 2]}) == [
        "- strict = true", "+ strict = false", "- sync_acks = default", "+ sync_acks = 2",
    ]  # fmt: skip


# -- in the picture of the cluster


def test_get_config_has_every_setting_defaults_included() -> None:
    found = json.loads(answer(picture(cluster=cluster()), "/config", "", NOW).body)
    assert (found["commit"], found["sync_acks"], found["strict"], found["lease_ms"]) == ("quorum", 1, False, 700)
    assert found["maximum_lag_on_failover"] == 1 << 20
    parameters = {"work_mem": "8MB", "x.y": 'a"b'}
    assert found["postgres"] == {"parameters": parameters, "hba": ["local all all peer"], "ident": []}


ALONE = SyncGroup((Seat("a", 0x1122334455667788),), 1)


def test_degraded_is_shown_everywhere() -> None:
    made = picture(cluster=cluster(group=ALONE))
    words = "degraded: 1 of a acknowledges a commit, and 2 are wanted; only a can be primary until the others are back"
    assert made.degraded == words
    assert made.warnings[0] == words
    assert f"warning: {words}" in render.status(made, 0)
    assert "\npgr_degraded 1\n" in metrics.render(made, NOW)
    assert "\npgr_degraded 0\n" in metrics.render(picture(cluster=cluster()), NOW)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (agreed(), ""),
        (agreed(config='{"sync_acks":2}'), "degraded: 2 of a, b, c acknowledge a commit, and 3 are wanted"),
        (agreed(commit_mode="async", group=ALONE._replace(asynchronous=True)), ""),
        (agreed(commit_mode="async"), ""),
        (agreed(group=ALONE._replace(asynchronous=True)), ""),  # on the way to quorum commit
        (agreed("a"), ""),
    ],
)
def test_what_is_degraded(state: ClusterState, words: str) -> None:
    assert picture(cluster=state).degraded == words


def test_asynchronous_is_what_is_in_force_and_not_what_is_wanted() -> None:
    assert picture(cluster=agreed(commit_mode="async")).commit == "quorum"
    in_force = agreed().group._replace(k=1, asynchronous=True)
    assert picture(cluster=agreed(group=in_force)).commit == "async"


def test_what_waits_for_a_restart_is_shown_with_its_reason() -> None:
    state = agreed(config=canonical({"postgres.parameters.max_connections": "200"}))
    members = {name: told(name) for name in "abc"}
    for name, waits in (("a", {"max_connections": "100"}), ("b", {"max_connections": "100", "jit": "off"})):
        members[name]["seen"]["pending"] = waits
    made = picture(primary(), state, members)
    rows_ = {m.name: (m.pending_restart, m.pending) for m in made.members}
    assert rows_["a"] == (True, "max_connections is 100, set to 200 (restart the standbys first)")
    assert rows_["b"] == (True, "jit is off, set to its default; max_connections is 100, set to 200")
    assert rows_["c"] == (False, "")
    assert "a: waits for a restart: max_connections is 100" in render.status(made, 0)


def test_synchronous_commit_set_lower_is_warned_of() -> None:
    members = {name: told(name) for name in "abc"}
    assert not any("synchronous_commit" in w for w in picture(members=members).warnings)
    members["a"]["seen"]["overrides"] = ["role app: off", "database x: local"]
    (found,) = [w for w in picture(members=members).warnings if "synchronous_commit" in w]
    assert found.startswith("synchronous_commit is set lower: role app: off, database x: local; ")
    assert not any("lower" in w for w in picture(cluster=replace(agreed(), grants=()), members=members).warnings)
