"""Users' own Postgres settings: what is refused and why, judged by rows as `pg_settings` has them (18.6)."""

from __future__ import annotations

import pytest

from consensus.clusterwide import BadSetting
from supervisor import settings
from supervisor.parameters import OWNED_BECAUSE, Known, lowers, needs, note, owned, parsed, refuse

ROWS = [
    Known("work_mem", "integer", "kB", "64", "2147483647", ("",), "user", "4096", "4096"),
    Known("shared_buffers", "integer", "8kB", "16", "1073741823", ("",), "postmaster", "16384", "16384"),
    Known("checkpoint_timeout", "integer", "s", "30", "86400", ("",), "sighup", "300", "300"),
    Known("random_page_cost", "real", "", "0", "1.79769e+308", ("",), "user", "4", "4"),
    Known("vacuum_cost_delay", "real", "ms", "0", "100", ("",), "user", "0", "0"),
    Known("jit", "bool", "", "", "", ("",), "user", "on", "on"),
    Known("wal_level", "enum", "", "", "", ("minimal", "replica", "logical"), "postmaster", "replica", "replica"),
    Known("timezone", "string", "", "", "", ("",), "user", "UTC", "GMT"),
    Known("block_size", "integer", "", "8192", "8192", ("",), "internal", "8192", "8192"),
    Known("log_connections", "string", "", "", "", ("",), "superuser-backend", "", ""),
    Known("max_connections", "integer", "", "1", "262143", ("",), "postmaster", "100", "100"),
    Known("max_worker_processes", "integer", "", "0", "262143", ("",), "postmaster", "16", "8"),
    Known("max_wal_senders", "integer", "", "0", "262143", ("",), "postmaster", "20", "10"),
    Known("max_replication_slots", "integer", "", "0", "262143", ("",), "postmaster", "20", "10"),
    Known("synchronous_commit", "enum", "", "", "", ("local", "on", "off"), "user", "on", "on"),
]
KNOWN = {row.name: row for row in ROWS}


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("work_mem", "64", 64),
        ("work_mem", "8MB", 8192),
        ("work_mem", " 1.5 MB ", 1536),
        ("work_mem", "0x100", 256),
        ("work_mem", "1e3kB", 1000),
        ("shared_buffers", "128MB", 16384),
        ("shared_buffers", "16", 16),
        ("checkpoint_timeout", "5min", 300),
        ("checkpoint_timeout", "1h", 3600),
        ("checkpoint_timeout", "45000ms", 45),
        ("random_page_cost", "1.1", 1.1),
        ("random_page_cost", ".5", 0.5),
        ("vacuum_cost_delay", "500us", 0.5),
        ("max_connections", "200", 200),
        *(("jit", word, None) for word in ("on", "off", "ON", "t", "fal", "yes", "N", "1", "of")),
        ("wal_level", "Logical", None),
        ("timezone", "Europe/Berlin", None),
    ],
)
def test_values_that_postgres_takes(name: str, value: str, number: float | None) -> None:
    refuse(KNOWN, name, value)
    assert parsed(KNOWN[name], value) == (None if number is None else pytest.approx(number))


@pytest.mark.parametrize(
    ("name", "value", "reason", "hint"),
    [
        ("work_men", "8MB", "this Postgres has no setting work_men", "did you mean work_mem?"),
        ("zzz", "1", "this Postgres has no setting zzz", "`pgr config show` lists all"),
        ("work_mem", "lots", "work_mem is a number, not 'lots'", "with or without B, kB, MB, GB, TB"),
        ("work_mem", "8mb", "work_mem is a number, not '8mb'", "with or without B, kB, MB, GB, TB"),
        ("work_mem", "8s", "work_mem is a number, not '8s'", "kB"),
        ("work_mem", "63", "work_mem can't be 63", "between 64 and 2147483647, in kB"),
        ("work_mem", "9999GB", "work_mem can't be 9999GB", "between 64 and"),
        ("max_connections", "20MB", "max_connections is a number, not '20MB'", "write digits"),
        ("max_connections", "", "max_connections is a number, not ''", "write digits"),
        ("checkpoint_timeout", "1s", "checkpoint_timeout can't be 1s", "between 30 and 86400, in s"),
        ("random_page_cost", "-1", "random_page_cost can't be -1", "between 0 and"),
        *(("jit", word, f"jit is on or off, not {word!r}", "jit=on") for word in ("o", "", " ", "2", "maybe")),
        ("wal_level", "archive", "wal_level can't be 'archive'", "one of: minimal, replica, logical"),
        ("wal_level", "minimal", "wal_level can't be minimal: no standby could follow", "replica or logical"),
        ("block_size", "8192", "block_size can't be set: it tells what Postgres was built", "leave it out"),
        ("max_wal_senders", "19", "max_wal_senders can't be 19", "pgr needs 20"),
        ("max_replication_slots", "5", "max_replication_slots can't be 5", "pgr needs 20"),
        ("synchronous_commit", "off", "decided by the sync group", "leave it out"),
        ("fsync", "off", "an acknowledged commit is a flushed one", "leave it out"),
        ("hot_standby", "off", "pgr sets it itself, on every node", "leave it out"),
        ("data_directory", "/x", "that of the node: `--data`", "leave it out"),
        ("transaction_read_only", "on", "it belongs to a session", "leave it out"),
    ],
)
def test_refusals_say_why_and_what_to_do(name: str, value: str, reason: str, hint: str) -> None:
    with pytest.raises(BadSetting) as refused:
        refuse(KNOWN, name, value)
    assert reason in refused.value.reason
    assert hint in refused.value.hint


def test_what_pgr_owns_is_refused_whatever_it_is() -> None:
    """Every line of the block that pgr writes, but those that may be raised."""
    written = settings.owned_settings(settings.NodeSettings("", 0, "", "", "", ""))
    for name in set(written) - {"wal_level", "max_wal_senders", "max_replication_slots"}:
        assert owned(name), name
    assert not owned("work_mem")
    for name in ("wal_level", "max_wal_senders", "max_replication_slots"):
        assert not owned(name)
    assert set(OWNED_BECAUSE) - set(written) == {
        "data_directory", "config_file", "sync_replication_slots", "synchronized_standby_slots",
    }, "each of them is owned or dangerous"


def test_a_name_with_a_dot_may_be_anybodys() -> None:
    refuse(KNOWN, "auto_explain.log_min_duration", "1s")
    refuse(KNOWN, "gone.extension", None)
    refuse(KNOWN, "work_men", None)  # nothing is lost by taking it out
    refuse(KNOWN, "synchronous_commit", None)
    refuse(KNOWN, "block_size", None)


def test_what_a_standby_must_not_have_less_of() -> None:
    assert lowers(KNOWN["max_connections"], "99")
    assert not lowers(KNOWN["max_connections"], "100")
    assert not lowers(KNOWN["max_connections"], "200")
    assert not lowers(KNOWN["max_connections"], None)
    assert lowers(KNOWN["max_worker_processes"], None), "its default is less than it is"
    assert not lowers(KNOWN["work_mem"], "64"), "of others nobody has to have as much"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("work_mem", "work_mem: takes effect with a reload"),
        ("checkpoint_timeout", "checkpoint_timeout: takes effect with a reload"),
        ("log_connections", "log_connections: takes effect with a reload, for new sessions"),
        ("shared_buffers", "shared_buffers: takes effect with a restart of each node: `pgr restart --pending`"),
        ("max_connections", "max_connections: takes effect with a restart of each node, standbys first: "
         "`pgr restart --pending`"),
    ],
)  # fmt: skip
def test_what_it_takes(name: str, what: str) -> None:
    assert note(KNOWN[name]) == what
    assert needs(KNOWN[name]).split(",", maxsplit=1)[0] in what
