"""What came by SQL as a file: read, refused, answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import adminserver
from supervisor.sqlcatalog import (
    ACTIONS,
    ADMIN,
    BY_NAME,
    FUNCTIONS,
    MARK,
    MONITOR,
    SCHEMA,
    VERSION,
    Action,
    Argument,
    install,
    is_current,
)
from supervisor.sqlrequests import NAME, REQUEST_BYTES_MAX, Answer, Malformed, arguments, dump, moved_away, read

ASKED: dict[str, Any] = {
    "format": 1, "action": "failover", "arguments": {"to": "b", "accept_data_loss": True, "dry_run": False},
    "timeout_ms": 60_000, "until_ms": 5_000, "role": "ann", "address": "10.0.0.9",
}  # fmt: skip


def line(**changes: Any) -> bytes:
    """As COPY writes it; a key that is None is left out."""
    body = {key: value for key, value in (ASKED | changes).items() if value is not None}
    return (json.dumps(body, ensure_ascii=False).replace("\\", "\\\\") + "\n").encode(errors="surrogateescape")


def test_a_request_is_one_of_the_admin_protocol() -> None:
    found = read(line())
    assert (found.name, found.until_ms, found.timeout_ms) == ("failover", 5_000, 60_000)
    assert found.body == {
        "to": "b", "accept_data_loss": True, "dry_run": False, "by": "ann@10.0.0.9 (SQL)", "timeout_ms": 60_000,
    }  # fmt: skip
    assert read(line(action="reinit", arguments={"node": "c"})).body["name"] == "c"
    assert read(line(action="switchover", arguments={"to": None, "dry_run": True})).body["to"] is None


def test_an_argument_of_one_may_be_a_list_of_one_in_the_protocol() -> None:
    assert read(line(action="restart", arguments={"node": "c"})).body["nodes"] == ["c"]
    assert read(line(action="pause", arguments={})).body.keys() == {"by", "timeout_ms"}
    action = Action("restart", (Argument("node", str, "nodes", "NULL", optional=True, many=True),), "")
    assert arguments(action, {"node": "b"}) == {"nodes": ["b"]}
    assert arguments(action, {"node": None}) == {"nodes": None}


def test_who_asks_may_have_any_name() -> None:
    role = "o'b\"b\\x\ny\tä"
    assert read(line(role=role)).body["by"] == f"{role}@10.0.0.9 (SQL)"


@pytest.mark.parametrize("data", [
    b"", b"\n", b"{}\n", b"[]\n", b"null\n", b"1\n", b"\xff\n", b"{", line()[:-1], line() + b"\n", line() * 2,
    line()[:40], line(format=2), line(format=True), line(format=None), line(more=1), line(action="status"),
    line(action="config.set"), line(action=1), line(arguments=[]), line(arguments={}), line(arguments={"to": "b"}),
    line(timeout_ms=0), line(timeout_ms=1e3), line(timeout_ms=86_400_001), line(until_ms="x"), line(role=1),
    line(address=None),
    line(arguments=ASKED["arguments"] | {"dry_run": "false"}), line(arguments=ASKED["arguments"] | {"dry_run": None}),
    line(arguments=ASKED["arguments"] | {"name": "c"}), line(arguments=ASKED["arguments"] | {"by": "someone"}),
    line(action="reinit", arguments={"node": None}), line(action="reinit", arguments={"node": ["a"]}),
    b"[" * 4000 + b"\n", line(role="x" * REQUEST_BYTES_MAX),
])  # fmt: skip
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        read(data)
    assert caught.value.reason
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "B", "a b", "a/b", "../a", "a\n", "a'", "ä", "a" * 42, "1a", "a\0"])
def test_text_is_the_name_of_a_member(name: str) -> None:
    with pytest.raises(Malformed, match="not the name of a member"):
        read(line(arguments=ASKED["arguments"] | {"to": name}))


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_bytes_of_any_kind_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(Malformed):
        read(data + b"\n")


@given(
    st.dictionaries(
        st.sampled_from(sorted(ASKED)), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.none())
    )
)
def test_a_request_of_any_values_is_one_or_is_refused_in_words(changes: dict[str, Any]) -> None:
    try:
        found = read(line(**changes))
    except Malformed:
        return
    assert found.name in BY_NAME
    assert set(found.body) >= {"by", "timeout_ms"}


@pytest.mark.parametrize(("name", "is_one"), [
    ("01234567-89ab-4def-8123-456789abcdef.json", True), ("01234567-89AB-4def-8123-456789abcdef.json", False),
    ("01234567-89ab-4def-8123-456789abcdef.json\n", False), ("../01234567-89ab-4def-8123-456789abcdef.json", False),
    ("01234567-89ab-4def-8123-456789abcdef", False), (".json", False),
])  # fmt: skip
def test_names_of_requests(name: str, is_one: bool) -> None:
    assert bool(NAME.fullmatch(name)) == is_one


def test_an_answer_grows_until_it_is_done() -> None:
    answer = Answer()
    assert json.loads(answer.document()) == {"state": "taken", "progress": []}
    answer.add("accepted")
    answer.add("")
    assert json.loads(answer.document())["progress"] == ["accepted"]
    answer.done({"to": "b"}, ["w"])
    assert json.loads(answer.document()) == {
        "state": "done", "progress": ["accepted"], "ok": True, "result": {"to": "b"}, "warnings": ["w"],
    }  # fmt: skip
    answer.failed(78, "no", "wait")
    assert json.loads(answer.document())["code"] == "78"
    for i in range(1000):
        answer.add(str(i))
    assert len(json.loads(answer.document())["progress"]) == 100


def test_what_is_written_can_be_read_in_every_database() -> None:
    data = dump({"a": "gr\0ö\udcffße \\u0000", "b": [("x", None, 1.5, True)], "c\0": {}})
    assert data.isascii()
    assert json.loads(data) == {"a": "gr?ö?ße \\u0000", "b": [["x", None, 1.5, True]], "c?": {}}


def test_the_node_that_is_moved_away_from_says_so_before() -> None:
    assert moved_away("a", "accepted", {"from": "a", "to": "b"})
    assert not moved_away("b", "accepted", {"from": "a", "to": "b"})
    assert not moved_away("a", "promoted", {"from": "a"})
    assert not moved_away("a", "accepted", {"name": "a"})


# -- the functions -----------------------------------------------------------------------------------------------------


def test_each_action_is_one_that_a_node_knows() -> None:
    assert {action.name for action in ACTIONS} <= set(adminserver.ACTIONS)


def test_each_function_of_the_contract_is_there() -> None:
    names = {f.name: f.grantee for f in FUNCTIONS if not f.name.startswith("_")}
    assert names == dict.fromkeys(("status", "primary", "history", "explain", "config"), MONITOR) | dict.fromkeys(
        ("switchover", "failover", "pause", "resume", "restart", "reinit"), ADMIN
    )


def test_what_runs_as_superuser_is_little_and_takes_nothing() -> None:
    definers = {f.name: f.arguments for f in FUNCTIONS if f.definer}
    assert definers == {
        "_uptime_ms": "", "_document": "", "_history": "", "_config": "",
        "_request": "action text, arguments jsonb, timeout interval",
    }  # fmt: skip
    assert [f.name for f in FUNCTIONS if "EXECUTE" in f.body] == ["_request"]
    assert [f.name for f in FUNCTIONS if "COPY" in f.body] == ["_request"]


def test_every_function_is_pinned_and_taken_from_the_public() -> None:
    text = install()
    for f in FUNCTIONS:
        assert "SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on\n" in f.definition
        for line_ in (
            f"REVOKE ALL ON FUNCTION {f.identity} FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION {f.identity} TO {f.grantee}",
            f"ALTER FUNCTION {f.identity} OWNER TO pgr",
        ):  # fmt: skip
            assert f"{line_};\n" in text
    assert "CASCADE" not in text
    assert "synchronous_commit = local" in text


def test_what_is_installed_is_looked_at_before_it_is_replaced() -> None:
    count = len(FUNCTIONS)
    newer, older = (f"pgr functions {v} 00" for v in (VERSION + 1, VERSION - 1))
    found = {m: is_current(m, count) for m in (None, "", "my own comment", "pgr functions x y", older, newer, MARK)}
    assert found == {None: False, "": False, "my own comment": False, "pgr functions x y": False, older: False,
                     newer: True, MARK: True}  # fmt: skip
    assert not is_current(MARK, count - 1)
    assert not is_current(f"pgr functions {VERSION} other", count)


def test_former_functions_go_and_the_others_stay_what_they_are() -> None:
    former = f'{SCHEMA}."primary"();{SCHEMA}.old(text)'
    assert [line for line in install(former).splitlines() if line.startswith("DROP")] == [
        f"DROP FUNCTION {SCHEMA}.old(text);"
    ]
    assert install(former, anew=True).count("DROP FUNCTION") == 2
