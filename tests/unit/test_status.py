from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencing.lease import MS
from supervisor import render
from supervisor.status import (
    Primary,
    SyncGroup,
    age_ms,
    from_json,
    lease_left_ms,
    lsn_int,
    lsn_text,
    receive_lag_bytes,
    serves_writes,
    to_json,
    uris,
)
from tests.unit.snapshots import NOW, A, B, C, snapshot


@pytest.mark.parametrize("node", ["a", "b"])
def test_json_there_and_back(node: str) -> None:
    original = snapshot(node)
    text = json.dumps(to_json(original, NOW), allow_nan=False)
    assert from_json(json.loads(text), NOW) == original


def test_instants_never_leave_the_host() -> None:
    out = to_json(snapshot(), NOW + 23 * MS)
    assert not [name for name in out if name.endswith("_ns")]
    assert (out["lease_left_ms"], out["writable"]) == (600, True)
    # Read on a host whose clock shows something else: the duration holds.
    assert lease_left_ms(from_json(out, 5 * MS), 5 * MS) == 600


def test_a_newer_node_may_say_more_and_an_older_one_less() -> None:
    out = to_json(snapshot(), NOW)
    out["members"][0]["future"] = out["future"] = 1
    del out["scheduling"], out["members"][1]["tags"]
    read = from_json(out, NOW)
    assert read.scheduling == {}
    assert read.members == (A, replace(B, tags={}), C)


@pytest.mark.parametrize(
    "junk", [{}, {"node": "a", "members": [{}]}, {"node": "a", "members": [{"name": "a", "lsn": "x"}]}]
)
def test_what_is_no_status_is_refused(junk: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json(junk)


@pytest.mark.parametrize(
    ("changes", "at_ms", "expected"),
    [
        ({}, 0, True),
        ({}, 622, True),
        ({}, 623, False),  # the instant itself is too late
        ({"opened": False}, 0, False),
        ({"role": "promoting"}, 0, False),
        ({"role": "demoting"}, 0, False),
        ({"lease_until_ns": 0}, 0, False),
    ],
)
def test_serves_writes_needs_role_gate_and_lease(changes: dict[str, Any], at_ms: int, expected: bool) -> None:
    assert serves_writes(snapshot(**changes), NOW + at_ms * MS) is expected


def test_lease_left_is_never_negative() -> None:
    assert lease_left_ms(snapshot(), NOW + 10**12) == 0
    assert lease_left_ms(snapshot(lease_until_ns=0), NOW) == 0


@given(st.integers(0, 2**64 - 1))
def test_lsn_text_there_and_back(lsn: int) -> None:
    text = lsn_text(lsn)
    assert text is not None
    assert lsn_int(text) == lsn


def test_sync_mark() -> None:
    assert [SyncGroup(("a", "b", "c"), 2).mark(n, "a") for n in "abcd"] == ["", "quorum", "quorum", ""]
    assert [SyncGroup(("a", "b"), 2).mark(n, "a") for n in "ab"] == ["", "sync"]
    assert SyncGroup(("a", "b"), 1).mark("b", "a") == ""


def test_lags_are_unknown_rather_than_guessed() -> None:
    s = snapshot()
    assert receive_lag_bytes(s, B) == 0
    assert receive_lag_bytes(s, C) is None
    assert receive_lag_bytes(replace(s, primary=None), B) is None
    assert receive_lag_bytes(s, replace(B, lsn=0x3000148 + 5)) == 0


def test_age_grows_with_the_snapshot() -> None:
    s = snapshot()
    assert [age_ms(s, m, NOW + 100 * MS) for m in s.members] == [0, 140, 3100]


def test_uris_name_every_data_member_primary_first() -> None:
    s = snapshot(primary=Primary("b", 8, 3), members=(A, B, C, replace(A, name="d", host="fd00::4", pg_port=5433)))
    hosts = "10.0.0.2:5432,10.0.0.1:5432,[fd00::4]:5433"
    assert uris(s, "my db", "jo@x") == {
        "read_write": f"postgresql://jo%40x@{hosts}/my%20db?connect_timeout=3&target_session_attrs=read-write",
        "read_only": f"postgresql://jo%40x@{hosts}/my%20db?connect_timeout=3&target_session_attrs=prefer-standby",
    }
    with pytest.raises(ValueError, match="no member"):
        uris(snapshot(members=()))


def test_libpq_reads_our_uris() -> None:
    psycopg = pytest.importorskip("psycopg")
    found = psycopg.conninfo.conninfo_to_dict(uris(snapshot(), "my db", "jo@x")["read_write"])
    assert (found["user"], found["dbname"], found["host"], found["port"]) == (
        "jo@x",
        "my db",
        "10.0.0.1,10.0.0.2",
        "5432,5432",
    )


@pytest.mark.parametrize(
    ("state", "shown"),
    [("/dev/watchdog, 1 s, armed", True), ("off", False), ("not used: /dev/watchdog can not be opened: x", False)],
)
def test_a_hardware_watchdog_is_shown_where_there_is_one(state: str, shown: bool) -> None:
    page = render.status(snapshot(scheduling={"hardware watchdog": state}), 0)
    assert ("a: hardware watchdog /dev/watchdog, 1 s, armed" in page) is shown
    assert ("hardware" in page) is shown


def test_the_lease_is_told_by_the_primary_itself_and_by_nobody_else() -> None:
    pages = render.status(snapshot(), 600), render.status(snapshot("b"), 0)
    told, other = ([line.split() for line in p.splitlines() if line.startswith(("NAME", "a "))] for p in pages)
    plain = ["NAME", "ROLE", "STATE", "TL", "LSN", "LAG", "SYNC", "NOTES"]
    row = ["a", "primary", "running", "2", "0/3000148", "-", "-", "-"]
    assert other == [plain, row]
    assert told == [[*plain[:-1], "LEASE", "NOTES"], [*row[:-1], "600", "ms", "-"]]
    assert not [m for m in to_json(snapshot("b"), NOW)["members"] if "lease_left_ms" in m]


def test_what_the_node_says_of_itself_is_not_said_twice() -> None:
    b = replace(snapshot().members[1], reason="standby of the primary")
    page = render.status(snapshot(node="b", members=(b,), explanation="standby of the primary"), 0)
    assert page.count("standby of the primary") == 1
    assert "\nb: standby of the primary\n" in page
    assert "\na: waits for a majority\n" in render.status(snapshot(explanation="waits for a majority"), 0)
