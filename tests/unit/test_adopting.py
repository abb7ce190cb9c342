"""What of a stand-alone Postgres is refused, taken over and overruled when it is brought into a cluster."""

from __future__ import annotations

import json

import pytest

from supervisor.adopting import (
    RULES_BYTES_MAX,
    BadRules,
    brings,
    found,
    look_sql,
    overruled,
    refusal,
    report,
    rules_in,
    strangers_refused,
    uses_maps,
)
from supervisor.jobs import roles_sql
from supervisor.settings import OWN_ROLE, NodeSettings, ident, owned_settings
from supervisor.sqlcatalog import ROLES

PLACE = "/var/lib/postgresql/17/main"
OWNED = owned_settings(NodeSettings("127.0.0.1", 5432, "/run/pg", "/run/hba", "/run/ident", "a"))


@pytest.mark.parametrize("state", ["shut down", "in production", "in crash recovery", "shutting down"])
def test_a_primary_that_is_down_is_taken_however_it_went_down(state: str) -> None:
    assert refusal(PLACE, state, []) is None


@pytest.mark.parametrize(
    ("state", "signals", "sign"),
    [
        ("shut down in recovery", [], "pg_control says 'shut down in recovery'"),
        ("in archive recovery", [], "pg_control says 'in archive recovery'"),
        ("shut down", ["standby.signal"], "it has a standby.signal"),
        ("in production", ["recovery.signal"], "it has a recovery.signal"),
    ],
)
def test_a_standby_is_not(state: str, signals: list[str], sign: str) -> None:
    refused = refusal(PLACE, state, signals)
    assert refused is not None
    assert sign in refused.why
    assert f"pg_ctl -D {PLACE} promote" in refused.hint


def test_what_was_never_whole_is_not() -> None:
    refused = refusal(PLACE, "starting up", [])
    assert refused is not None
    assert "'starting up'" in refused.why


HBA = """
# TYPE  DATABASE        USER            ADDRESS                 METHOD
local   all             postgres                                peer
host\tall  "a # b"  127.0.0.1/32 \\
    scram-sha-256   # of the application
  hostssl all all 10.0.0.0/8 cert clientcert=verify-full
"""


def test_rules_are_taken_over_as_one_line_each() -> None:
    assert rules_in(HBA, "postgres.hba") == [
        "local all postgres peer",
        'host all "a # b" 127.0.0.1/32 scram-sha-256',
        "hostssl all all 10.0.0.0/8 cert clientcert=verify-full",
    ]
    assert rules_in("# nothing\n", "postgres.hba") == []


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("include_dir hba.d", "names another file"),
        ("include more.conf", "names another file"),
        ("host @databases all all scram-sha-256", "names another file"),
        ("host all bob,@admins all scram-sha-256", "names another file"),
        ("host all", "is not a line of pg_hba.conf"),
        ("tcp all all all trust", "is not a line of pg_hba.conf"),
        ("# " + "x" * RULES_BYTES_MAX, "more than"),
    ],
)
def test_rules_that_no_other_node_could_have_are_named(rule: str, why: str) -> None:
    with pytest.raises(BadRules, match=why):
        rules_in(f"local all all peer\n{rule}\n", "postgres.hba")


def test_maps_are_taken_over_where_a_rule_needs_them() -> None:
    assert not uses_maps(rules_in(HBA, "postgres.hba"))
    assert uses_maps(["local all all peer", 'local all all peer "map=omap"'])
    text = "# MAP SYSTEM ROLE\nomap  alice\tpostgres # the boss\n# a\x0cm mallory postgres\nomap a.b@x.org b\n"
    assert rules_in(text, "postgres.ident") == ["omap alice postgres", "omap a.b@x.org b"]
    for line, why in (("include more", "names another file"), ("omap @staff x", "names another file"),
                      ("omap alice", "not a line of pg_ident.conf"), ("pgr x y", "own map"),
                      ("m /( postgres", "regular expression"), ("m a,b c", "not a line")):  # fmt: skip
        with pytest.raises(BadRules, match=why):
            rules_in(f"{line}\n", "postgres.ident")


def test_the_map_that_pgr_has_left_behind_is_not_taken_for_a_map_of_users() -> None:
    own = ident("carl", "boss").splitlines()
    text = "".join(f"{line}\n" for line in (*own, "omap alice postgres"))
    assert rules_in(text, "postgres.ident", own) == ["omap alice postgres"]
    for other in (ident("mallory", "boss"), ident("carl", "mallory")):
        with pytest.raises(BadRules, match="not a line"):
            rules_in(other.splitlines()[-1], "postgres.ident", own)


def test_logical_slots_need_their_wal_level_and_a_person_has_the_last_word() -> None:
    assert json.loads(brings([], [], "replica", {"work_mem": "1MB"})) == {
        "hba": [], "ident": [], "parameters": {"work_mem": "1MB"},
    }  # fmt: skip
    assert json.loads(brings([], [], "logical", {}))["parameters"] == {"wal_level": "logical"}
    assert json.loads(brings(["x"], ["y"], "logical", {"wal_level": "replica"})) == {
        "hba": ["x"], "ident": ["y"], "parameters": {"wal_level": "replica"},
    }  # fmt: skip


def printed(**body: object) -> str:
    whole = json.dumps({"strangers": [], "settings": [], "slots": []} | body)
    return f'backend> \t 1: ?column? = "pgr_found:{whole}"\t(typeid = 25, len = -1)\n'


def test_what_single_user_mode_prints_is_read() -> None:
    seen = found(printed(strangers=["pgr"], slots=[["old", "physical"]], settings=[["port", "1", "f:1"]]))
    assert (seen.strangers, seen.slots, seen.settings) == (("pgr",), (("old", "physical"),), (("port", "1", "f:1"),))
    with pytest.raises(ValueError, match="no usable answer"):
        found("FATAL: what")


def test_what_no_longer_has_an_effect_is_named_once_with_its_place_and_without_its_value() -> None:
    lines = [["port", "1", "f:1"], ["port", "5433", "g:9"], ["fsync", "true", "f:2"], ["wal_level", "'replica'", "f:3"]]
    lines += [["primary_conninfo", "password=secret", "f:4"], ["work_mem", "1MB", "f:5"]]
    named = overruled(found(printed(settings=lines)).settings, OWNED)
    assert named == ["port (g:9)", "primary_conninfo (f:4)"]
    text = "; ".join(report(2, named, [("s", "logical")], hints_only=True))
    assert "postgres.hba (2)" in text
    assert "port (g:9), primary_conninfo (f:4)" in text
    assert "s (logical)" in text
    assert "wal_log_hints" in text
    assert "secret" not in text
    (alone,) = report(0, [], [], hints_only=False)
    assert "pgr's defaults" in alone


def test_roles_of_pgr_are_known_by_their_comment() -> None:
    """Whoever makes one says so in the same statement, or it would be a stranger after a crash in between."""
    made = [statement for statement in [*roles_sql("x", bytes(16)), *ROLES.split(";\n")] if "CREATE ROLE" in statement]
    assert len(made) == 4
    assert all(f"IS '{OWN_ROLE}'" in statement for statement in made)
    refused = strangers_refused(("pgr", "pgr_admin"), PLACE)
    assert "pgr, pgr_admin" in refused.why
    assert "ALTER ROLE pgr RENAME TO" in refused.hint
    assert "'port', 'primary_conninfo'" in look_sql(["primary_conninfo", "port"])
