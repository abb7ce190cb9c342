"""The table of cluster-wide settings: what a value may be, what is refused and with which hint."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from consensus.clusterwide import (
    SETTINGS,
    TABLE,
    BadSetting,
    changed,
    check,
    founded,
    has_expression,
    merged,
    parameters,
    sentence,
    setting_of,
    shown,
    slots,
    value_of,
)


@pytest.mark.parametrize("name", ["postgres.hba", "hooks.on_event"])
def test_brackets_without_end_are_no_list(name: str) -> None:
    with pytest.raises(BadSetting):
        check(name, "[" * 100_000)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("commit", "async", "async"),
        ("sync_acks", 2, 2),
        ("sync_acks", " 2 ", 2),
        ("strict", False, False),
        ("strict", "On", True),
        ("strict", "no", False),
        ("maximum_lag_on_failover", "10MB", 10 << 20),
        ("maximum_lag_on_failover", "64 kB", 64 << 10),
        ("maximum_lag_on_failover", 0, 0),
        ("primary_start_timeout", "2min", 120),
        ("on_primary_crash", "failover", "failover"),
        ("on_primary_crash", "restart", "restart"),
        ("postgres.hba", ["local all all peer", "host all all 10.0.0.0/8 scram-sha-256"],
         ["local all all peer", "host all all 10.0.0.0/8 scram-sha-256"]),
        ("postgres.hba", "host all all all md5", ["host all all all md5"]),
        ("postgres.hba", '["host all all all md5"]', ["host all all all md5"]),
        ("postgres.hba", [], []),
        ("postgres.ident", "admins alice postgres", ["admins alice postgres"]),
        ("postgres.ident", ['m /^(.*)@x[.]org$ \\1'], ['m /^(.*)@x[.]org$ \\1']),
        ("postgres.parameters.work_mem", "8MB", "8MB"),
        ("postgres.parameters.max_connections", 200, "200"),
        ("postgres.parameters.random_page_cost", 1.5, "1.5"),
        ("postgres.parameters.jit", False, "off"),
        ("postgres.parameters.jit", True, "on"),
        ("postgres.parameters.auto_explain.log_min_duration", "1s", "1s"),
    ],
)  # fmt: skip
def test_values_as_json_and_as_people_write_them(name: str, given: Any, value: Any) -> None:
    found = check(name, given)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "given", "reason", "hint"),
    [
        ("strcit", True, "there is no setting strcit", "did you mean strict?"),
        ("xyz", 1, "there is no setting xyz", "`pgr config show` lists all"),
        ("postgres", {}, "there is no setting postgres", "did you mean postgres.hba?"),
        ("postgres.parameters", {}, "postgres.parameters is set one by one", "postgres.parameters.work_mem=8MB"),
        ("postgres.parameters.", "1", "postgres.parameters. is not the name", "postgres.parameters.work_mem"),
        ("postgres.parameters.a=b", "1", "is not the name", "work_mem"),
        ("postgres.parameters.work_mem", ["8MB"], "is text on one line, not ['8MB']", "in quotes"),
        ("postgres.parameters.work_mem", "8MB\nfsync=off", "is text on one line", "in quotes"),
        ("commit", "quorums", "commit can't be 'quorums'", "one of: quorum, async"),
        ("commit", ["async"], "commit can't be ['async']", "one of: quorum, async"),
        ("sync_acks", 0, "sync_acks can't be 0", "between 1 and 100"),
        ("sync_acks", True, "sync_acks is a whole number, not True", "write digits"),
        ("sync_acks", "2MB", "sync_acks is a whole number, not '2MB'", "write digits"),
        ("strict", 1, "strict is true or false, not 1", "for example strict=true"),
        ("strict", "maybe", "strict is true or false, not 'maybe'", "for example strict=true"),
        ("maximum_lag_on_failover", "-1", "is a number of bytes, not '-1'", "write digits, with or without B, kB,"),
        ("primary_start_timeout", "1", "primary_start_timeout can't be 1", "between 5 and 86400 s"),
        ("primary_start_timeout", 6.5, "is a number of s, not 6.5", "with or without s, min, h"),
        ("on_primary_crash", "wait", "on_primary_crash can't be 'wait'", "one of: failover, restart"),
        ("postgres.hba", 7, "postgres.hba is a list of lines", "host all all"),
        ("postgres.hba", ["a\nb"], "postgres.hba is a list of lines", "host all all"),
        ("postgres.hba", "hosts all all all md5", "'hosts all all all md5' is not a line of pg_hba.conf", "host all"),
        ("postgres.hba", ["host all all md5"], "is not a line of pg_hba.conf", "host all"),
        ("postgres.ident", 7, "postgres.ident is a list of lines", "admins alice"),
        ("postgres.ident", ["m alice"], "'m alice' is not a line of pg_ident.conf", "admins alice"),
        ("postgres.ident", "include_dir a b", "is not a line of pg_ident.conf", "admins alice"),
        ("postgres.ident", ["pgr nobody pgr"], "pgr's own map has this name", "another name"),
        *(
            ("postgres.ident", [line], "is not a line of pg_ident.conf as pgr takes it", "admins alice")
            for line in ('"pgr_owner" bob postgres', ",pgr a pgr", 'p"g"r a pgr', 'p""gr a pgr', '"include" /f #',
                         ",include /f #", "m @/file x", "m a b # c", "m a b\\", "m a /b\\", "m a b c", "m a,b c",
                         "m a", "m a #", "include a b")
        ),
        ("postgres.hba", [""], "'' is not a line of pg_hba.conf", "host all"),
        ("lease_ms", 299, "lease_ms can't be 299", "between 300 and 600000 ms"),
        ("kill_bound_ms", "179ms", "kill_bound_ms can't be", "between 180 and"),
        ("heartbeat_ms", 49, "heartbeat_ms can't be", "between 50 and"),
        ("election_ms", 499, "election_ms can't be", "between 500 and"),
        ("profile", "quick", "profile can't be 'quick'", "one of: fast, default, cloud"),
    ],
)
def test_refusals_say_why_and_what_to_do(name: str, given: Any, reason: str, hint: str) -> None:
    with pytest.raises(BadSetting) as refused:
        check(name, given)
    assert reason in refused.value.reason
    assert hint in refused.value.hint
    assert refused.value.code == (78 if "own map" in reason else 64)


def test_what_only_postgres_can_judge_of_a_map() -> None:
    assert has_expression(r"m /^(.*)@x[.]org$ \1")
    assert has_expression("m alice /^app")
    assert not has_expression("m a/b postgres")


def test_every_row_explains_itself_and_its_default_is_one_of_its_values() -> None:
    for setting in SETTINGS:
        assert setting.sentence
        assert setting.needs in ("nothing", "reload", "restart", "every voter")
        if setting.default is not None:
            assert check(setting.name, setting.default) == setting.default
    assert set(TABLE) >= {"commit", "sync_acks", "strict", "maximum_lag_on_failover", "lease_ms", "postgres.hba"}


def test_what_is_absent_has_its_default() -> None:
    assert [value_of("{}", n) for n in ("commit", "sync_acks", "strict")] == ["quorum", None, True]
    assert value_of('{"strict":false}', "strict") is False
    assert parameters('{"postgres.parameters.work_mem":"8MB","strict":false}') == {"work_mem": "8MB"}
    assert setting_of("postgres.parameters.work_mem").needs == "reload or restart"


def test_what_a_charter_sets() -> None:
    assert founded("quorum", {"parameters": {}, "hba": []}) == {}
    assert founded("quorum", {}) == {}
    assert founded("async", {"parameters": {"jit": "off"}, "hba": ["local all all peer"], "ident": ["m a b"]}) == {
        "commit": "async", "postgres.parameters.jit": "off", "postgres.hba": ["local all all peer"],
        "postgres.ident": ["m a b"],
    }  # fmt: skip


def test_what_a_change_would_change() -> None:
    config = '{"commit":"async","postgres.parameters.jit":"off"}'
    found = changed(config, {"strict": False, "commit": "async"}, ["postgres.parameters.jit", "sync_acks"])
    assert found == {"postgres.parameters.jit": ("off", None), "strict": (True, False)}
    assert sentence(found) == "postgres.parameters.jit: off -> default; strict: true -> false"
    assert changed("{}", {"strict": True}, []) == {"strict": (True, True)}, "set on purpose, to what it is"
    assert changed(config, {}, ["commit"]) == {"commit": ("async", "quorum")}
    assert merged(config, {"strict": False}, ["commit"]) == {"postgres.parameters.jit": "off", "strict": False}
    assert shown(["a b"]) == '["a b"]'


def test_names_of_the_table_can_be_written_in_toml() -> None:
    assert all(re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", name) for name in TABLE)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("/etc/pgr/hook", ["/etc/pgr/hook"]),
        (' ["/bin/sh", "-c", "a b"]', ["/bin/sh", "-c", "a b"]),
        (["/etc/pgr/a b", ""], ["/etc/pgr/a b", ""]),
    ],
)
def test_a_hook_is_a_path_or_a_list_of_arguments(given: Any, value: list[str]) -> None:
    assert check("hooks.on_event", given) == value


@pytest.mark.parametrize(
    ("given", "reason", "hint"),
    [
        ("/etc/pgr/hook --now", "no shell splits it into words", '["/etc/pgr/hook", "--now"]'),
        ("hook", "begins with 'hook', and every node has to find it", "the whole path"),
        ('["/bin/sh"', "is a path, or a list", "for example"),
        ([], "is a path, or a list", "for example"),
        ("", "is a path, or a list", "for example"),
        (["/bin/sh", 1], "is a path, or a list", "for example"),
        (["/bin/sh", "a\nb"], "is a path, or a list", "for example"),
        ({"a": 1}, "is a path, or a list", "for example"),
        (["/x"] * 65, "is longer than 64 arguments", "into a script"),
        (["/" + "x" * 4096], "and 4096 characters", "into a script"),
    ],
)
def test_what_is_no_hook(given: Any, reason: str, hint: str) -> None:
    with pytest.raises(BadSetting) as refused:
        check("hooks.pre_promote", given)
    assert reason in refused.value.reason
    assert hint in refused.value.hint


# -- permanent slots


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("physical", ["physical"]), ("logical app pgoutput", ["logical", "app", "pgoutput"]),
        ('["logical", "my db", "pgoutput"]', ["logical", "my db", "pgoutput"]),
        ({"type": "logical", "database": "app", "plugin": "pgoutput"}, ["logical", "app", "pgoutput"]),
        ('{"type": "physical"}', ["physical"]),
    ],
)  # fmt: skip
def test_a_slot_in_our_words_and_in_those_of_patroni(given: Any, value: list[str]) -> None:
    assert check("slots.cdc", given) == value
    assert slots(json.dumps({"slots.cdc": value, "strict": True})) == {"cdc": value}


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("slots.cdc", "logical", "a database and a plugin"), ("slots.cdc", "logical app", "a database and a plugin"),
        ("slots.cdc", "", "a database and a plugin"), ("slots.cdc", ["physical", "app"], "a database and a plugin"),
        ("slots.cdc", ["logical", "", "x"], "a database and a plugin"), ("slots.cdc", 5, "a database and a plugin"),
        ("slots.cdc", ["logical", "a\n", "x"], "a database and a plugin"), ("slots.cdc", "{", "no JSON"),
        ("slots.cdc", {"type": "physical", "slot_type": "x"}, "slot_type is not known"),
        ("slots.pgr_b", "physical", "can't be the name"), ("slots.CDC", "physical", "can't be the name"),
        ("slots.", "physical", "can't be the name"), (f"slots.{'a' * 64}", "physical", "can't be the name"),
        ("slots.pg_conflict_detection", "physical", "can't be the name"), ("slots", "physical", "one by one"),
    ],
)
def test_what_is_no_permanent_slot(name: str, given: Any, reason: str) -> None:
    with pytest.raises(BadSetting) as found:
        check(name, given)
    assert reason in found.value.reason
    assert found.value.hint
