"""The configuration: precedence, defaults and every refusal, each with its source and a hint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.addresses import BadValue, default_name, parse_address, parse_name, parse_peers
from supervisor.config import Address, Config, Facts, Peer, load, run_directory, socket_excess_bytes
from supervisor.errors import UsageError
from supervisor.options import OPTIONS, find_file

FACTS = Facts(hostname="DB-1.example", cwd="/here")
FILE = Path("/etc/pgr/node.toml")


def config(
    flags: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    file: str | None = None,
    facts: Facts = FACTS,
) -> Config:
    return load({"data": "/srv/a"} | dict(flags or {}), env or {}, file, FILE, facts)


def refused(
    flags: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None, file: str | None = None
) -> UsageError:
    with pytest.raises(UsageError) as caught:
        config(flags, env, file)
    assert caught.value.exit_code == 64
    assert caught.value.hint
    return caught.value


def test_data_alone_is_enough_for_one_node() -> None:
    c = config()
    assert c.data == Path("/srv/a")
    assert c.pgdata == Path("/srv/a/pgdata")
    assert c.name == "db_1_example"
    assert c.listen == c.advertise == Address("127.0.0.1", 7400)
    assert (c.pg_listen, c.pg_port, c.pg_advertise) == ("127.0.0.1", 5432, Address("127.0.0.1", 5432))
    assert c.http == c.http_advertise == Address("127.0.0.1", 8008)
    assert c.run == Path("/srv/a/run")
    assert c.peers == (Peer("db_1_example", c.listen),)
    assert (c.profile, c.commit, c.log_format, c.cluster_key) == ("default", "quorum", "json", None)
    assert c.key_file == Path("/srv/a/cluster.key")
    assert c.warnings == ()


def test_without_data_there_is_nothing_to_start() -> None:
    with pytest.raises(UsageError, match="no data directory"):
        load({}, {}, None, None, FACTS)


def test_flag_beats_environment_beats_file_beats_default() -> None:
    file, env = "pg-port = 5001\n", {"PGR_PG_PORT": "5002"}
    assert config().pg_port == 5432
    assert config(file=file).pg_port == 5001
    assert config(env=env, file=file).pg_port == 5002
    top = config({"pg_port": "5003"}, env, file)
    assert (top.pg_port, top.sources["pg_port"]) == (5003, "flag --pg-port")
    assert config(env=env).sources["pg_port"] == "environment variable PGR_PG_PORT"
    assert config(file=file).sources["pg_port"] == f"key pg_port in {FILE}"
    assert config().sources["pg_port"] == "default"


def test_a_broken_value_that_is_overridden_does_not_matter_and_an_empty_variable_is_unset() -> None:
    assert config({"pg_port": "1"}, {"PGR_PG_PORT": "x"}).pg_port == 1
    assert config(env={"PGR_PG_PORT": "", "PGR_JOIN": ""}).pg_port == 5432


@pytest.mark.parametrize(
    ("flags", "env", "file", "words"),
    [
        ({"pg_port": "70000"}, {}, None, "--pg-port: '70000' is not a port (flag --pg-port)"),
        ({}, {"PGR_LISTEN": "7400"}, None, "(environment variable PGR_LISTEN)"),
        ({}, {}, "listen = 'a:b:c'", f"(key listen in {FILE})"),
        ({"profile": "fats"}, {}, None, "is not one of fast, default, cloud"),
        ({"commit": "all"}, {}, None, "is not one of quorum, async"),
        ({"name": "Node-1"}, {}, None, "is not a node name"),
        ({}, {}, "listen = 5", "'5' is not HOST:PORT"),
        ({}, {}, "listen = [5]", "has the wrong type"),
        ({}, {}, "listen = ", "is not valid TOML"),
        ({"witness": "true"}, {}, None, "a witness alone (flag --witness)"),
        ({}, {"PGR_WITNESS": "1"}, None, "a witness alone (environment variable PGR_WITNESS)"),
        ({"join": "10.0.0.1"}, {}, None, "is not HOST:PORT"),
        ({"join": "10.0.0.1:7400"}, {}, None, "can't reach 127.0.0.1:7400 (default)"),
        ({"join": "127.0.0.1:7400"}, {}, None, "is this node itself"),
        ({"join": "127.0.0.1:1", "peers": "a=h:1"}, {}, None, "--peers (flag --peers) exclude each other"),
        ({}, {"PGR_JOIN": "127.0.0.1:1", "PGR_PEERS": "a=h:1"}, None, "(environment variable PGR_PEERS) exclude each"),
        ({"data": "/a\nb"}, {}, None, "is not a path"),
        ({"pg_port": "7400"}, {}, None, "both want port 7400"),
    ],
)
def test_refusals_name_the_source(flags: dict[str, str], env: dict[str, str], file: str | None, words: str) -> None:
    assert words in refused(flags, env, file).message


def test_unknown_keys_get_the_nearest_known_one() -> None:
    assert refused(file="pg_prot = 1").hint == "did you mean pg_port?"
    assert refused(file="[postgres]\nhbaa = []").hint == "did you mean hba?"
    assert "pgr config" in refused(file="zzz = 1").hint
    assert refused({"profile": "fats"}).hint == "did you mean fast?"


def test_a_node_that_joins_names_one_member_and_founds_nothing() -> None:
    assert config().join is None
    found = config({"join": "127.0.0.1:7401"})
    assert (found.join, [peer.name for peer in found.peers]) == (Address("127.0.0.1", 7401), [found.name])
    elsewhere = config({"join": "10.0.0.1:7400", "advertise": "10.0.0.4:7400"})  # by a tunnel, for instance
    assert elsewhere.join == Address("10.0.0.1", 7400)
    assert config({"join": "127.0.0.1:7401", "witness": "true"}).witness


def test_of_join_and_peers_the_one_closer_to_the_command_line_counts() -> None:
    """A fourth terminal in which the founding members are still exported, say."""
    three = {"PGR_PEERS": "a=127.0.0.1:1,b=127.0.0.1:2,c=127.0.0.1:3"}
    found = config({"join": "127.0.0.1:1", "name": "d"}, three)
    assert (found.join, len(found.peers)) == (Address("127.0.0.1", 1), 1)
    assert config({"peers": "a=127.0.0.1:7400", "name": "a"}, {"PGR_JOIN": "127.0.0.1:1"}).join is None
    assert config({"name": "a"}, three, 'join = "127.0.0.1:1"').join is None


def test_unknown_variables_warn() -> None:
    assert "did you mean PGR_LISTEN?" in config(env={"PGR_LISTENN": "x"}).warnings[0]
    assert config(env={"PGR_DEBUG": "1", "PGR_COMPLETELY_ELSE_ENTIRELY": "x", "HOME": "/"}).warnings == ()
    assert "POSTGRES_HOST_AUTH_METHOD" in config(env={"POSTGRES_HOST_AUTH_METHOD": "trust"}).warnings[0]


def test_peers() -> None:
    three = "a=127.0.0.1:1,b=127.0.0.1:2,c=[::1]:3"
    c = config({"peers": three, "name": "b"})
    assert c.peers[2] == Peer("c", Address("::1", 3))
    assert str(c.peers[2].address) == "[::1]:3"
    assert c.warnings == ()
    same = config({"name": "b"}, file='[peers]\na="127.0.0.1:1"\nb="127.0.0.1:2"\nc="[::1]:3"')
    assert same.peers == c.peers
    assert config({"name": "b"}, file='peers=["a=127.0.0.1:1","b=127.0.0.1:2","c=[::1]:3"]').peers == c.peers
    wrong = refused({"peers": three, "name": "d"})
    assert "names only a, b, c" in wrong.message
    assert "is there twice" in refused({"peers": "a=h:1,a=h:2", "name": "a"}).message
    assert "same address" in refused({"peers": "a=h:1,b=h:1", "name": "a"}).message
    assert "is not NAME=HOST:PORT" in refused({"peers": "h:1", "name": "a"}).message
    assert "nobody can dial" in refused({"peers": "a=0.0.0.0:1", "name": "a"}).message
    assert "odd number" in config({"peers": "a=127.0.0.1:1,b=127.0.0.1:2", "name": "a"}).warnings[0]
    assert "not fail over" in config({"peers": "a=127.0.0.1:1", "name": "a"}).warnings[0]


@pytest.mark.parametrize("listen", ["10.0.0.1:7400", "0.0.0.0:7400", "*:7400", "[::]:7400", "db1:7400"])
def test_off_loopback_a_cluster_key_is_required(listen: str) -> None:
    more = {"listen": listen, "advertise": "db1"}
    assert "no cluster key" in refused(more).message
    c = config(more | {"cluster_key": "k"})
    assert c.key_file == Path("/here/k")
    assert c.advertise == Address("db1", 7400)


@pytest.mark.parametrize("listen", ["127.0.0.1:7400", "127.9.9.9:7400", "localhost:7400", "[::1]:7400"])
def test_on_loopback_it_is_not(listen: str) -> None:
    assert config({"listen": listen}).cluster_key is None


def test_a_wildcard_needs_something_to_dial() -> None:
    flags = {"listen": "0.0.0.0:7400", "cluster_key": "/k", "pg_listen": "*", "http": "[::]:8008", "name": "a"}
    assert "--advertise" in refused(flags).hint
    c = config(flags | {"peers": "a=db1:7400,b=db2:7400,c=db3:7400"})
    assert (c.advertise, c.pg_advertise) == (Address("db1", 7400), Address("db1", 5432))
    assert c.http_advertise == Address("db1", 8008)
    assert "nobody can dial" in refused(flags | {"advertise": "0.0.0.0:7400"}).message
    given_all = config(flags | {"advertise": "x:1", "pg_advertise": "y", "http_advertise": "[fd00::1]:3"})
    assert given_all.pg_advertise == Address("y", 5432)
    assert given_all.http_advertise == Address("fd00::1", 3)


def test_a_loopback_postgres_among_machines_warns() -> None:
    flags = {
        "listen": "10.0.0.1:7400",
        "cluster_key": "/k",
        "name": "a",
        "peers": "a=10.0.0.1:7400,b=10.0.0.2:7400,c=c:1",
    }
    assert "cannot reach from another machine" in config(flags).warnings[0]
    assert config(flags | {"pg_listen": "10.0.0.1"}).warnings == ()


@pytest.mark.parametrize("off", ["off", "false", "OFF"])
def test_http_can_be_off(off: str) -> None:
    assert config({"http": off}).http is None
    assert config({"http": off}).http_advertise is None
    assert config(file="http = false").http is None


def test_paths_in_the_file_are_meant_from_the_file() -> None:
    c = config(file="pgdata = 'pg'\ncluster_key = '../k'", env={"PGR_PG_BIN": "bin/../x"})
    assert (c.pgdata, c.cluster_key, c.pg_bin) == (Path("/etc/pgr/pg"), Path("/etc/k"), Path("/here/x"))


def test_run_directory_falls_back_to_short_places() -> None:
    deep = Path("/srv") / ("x" * 100)
    assert run_directory(Path("/srv/a"), None, 5432, ()) == Path("/srv/a/run")
    short = run_directory(deep, None, 5432, ("/run/pgr", "/run/user/1/pgr"))
    assert short.parent == Path("/run/pgr")
    assert len(short.name) == 12
    assert short == run_directory(deep, None, 5432, ("/run/pgr",))
    assert short != run_directory(deep / "b", None, 5432, ("/run/pgr",))
    with pytest.raises(UsageError, match="no shorter place"):
        run_directory(deep, None, 5432, ())
    with pytest.raises(UsageError, match="socket paths longer than the kernel allows"):
        run_directory(Path("/srv/a"), deep, 5432, ("/run/pgr",))


def test_the_limit_is_exactly_107_bytes() -> None:
    tail = len("/pg/.s.PGSQL.5432")
    fits = Path("/" + "é" * ((107 - tail - 1) // 2) + "a" * ((107 - tail - 1) % 2))
    assert socket_excess_bytes(fits, 5432) == 0
    assert socket_excess_bytes(fits, 54321) == 1


def test_where_the_file_is_looked_for() -> None:
    assert find_file({"data": "d"}, {}, FACTS) == (Path("/here/d/pgr.toml"), False)
    assert find_file({"data": "d"}, {"PGR_CONFIG": "x.toml"}, FACTS) == (Path("/here/x.toml"), True)
    assert find_file({}, {}, FACTS) is None


def test_founding_from_the_file() -> None:
    c = config(
        file="""
        [postgres]
        hba = ["host all all 10.0.0.0/8 scram-sha-256"]
        ident = ["admins alice postgres"]
        initdb = ["--locale=C"]
        init_sql = "sql"
        superuser_password_file = "pw"
        [postgres.parameters]
        Work_Mem = "64MB"
        max_connections = 50
        fsync = true
        "auto_explain.log_min_duration" = "1s"
        pg_stat_statements.max = 1000
        """
    )
    f = c.founding
    assert f.hba == ("host all all 10.0.0.0/8 scram-sha-256",)
    assert f.ident == ("admins alice postgres",)
    assert f.initdb == ("--locale=C",)
    assert (f.init_sql, f.password_file) == (Path("/etc/pgr/sql"), Path("/etc/pgr/pw"))
    assert f.parameters == {
        "work_mem": "64MB",
        "max_connections": "50",
        "fsync": "on",
        "auto_explain.log_min_duration": "1s",
        "pg_stat_statements.max": "1000",
    }
    assert config(file='initdb = ["-k"]\ninit_sql = "x"').founding.initdb == ("-k",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('hba = ["all all"]', "not a line of pg_hba.conf"),
        ('ident = ["alice"]', "not a line of pg_ident.conf"),
        ('ident = ["pgr alice postgres"]', "own map"),
        ('ident = ["m /( postgres"]', "regular expression"),
        ('hba = "host all all all trust"', "list of strings"),
        ('initdb = ["-D", "x"]', "decided by pgr"),
        ('initdb = ["--username=me"]', "decided by pgr"),
        ('parameters = {"a b" = 1}', "not the name of a setting"),
        ("parameters = {work_mem = [1]}", "wrong type"),
        ('parameters = {work_mem = "1\\n2"}', "line break"),
        ("parameters = 1", "must be a table"),
        ("init_sql = 1", "must be a string"),
    ],
)
def test_founding_refusals(text: str, words: str) -> None:
    assert words in refused(file="[postgres]\n" + text).message


def test_more_rules_than_a_state_can_carry_are_refused_before_there_is_a_cluster() -> None:
    rules = ["host all all 10.0.0.1/32 scram-sha-256"] * 700
    found = refused(file=f"[postgres]\nhba = {json.dumps(rules)}")
    assert (found.message, "pgr config set" in found.hint) == (
        "hba, ident and parameters in [postgres] in /etc/pgr/node.toml take more than 25000 characters", True
    )  # fmt: skip


def test_the_official_images_variables() -> None:
    env = {"POSTGRES_USER": "app", "POSTGRES_PASSWORD": "s3cret", "POSTGRES_INITDB_ARGS": "--locale=C '-k'"}
    c = config(env=env, facts=FACTS._replace(image_initdb_dir=True))
    f = c.founding
    assert (f.superuser, f.database, f.password, f.initdb) == ("app", "app", "s3cret", ("--locale=C", "-k"))
    assert f.init_sql == Path("/docker-entrypoint-initdb.d")
    assert "s3cret" not in repr(c)
    assert config(env={"POSTGRES_DB": "d"}).founding.database == "d"
    both = {"POSTGRES_PASSWORD": "x", "POSTGRES_PASSWORD_FILE": "/f"}
    assert "both set" in refused(env=both).message
    first = config(env={"PGR_SUPERUSER_PASSWORD_FILE": "/p", "POSTGRES_PASSWORD_FILE": "/f"}).founding
    assert (first.password_file, first.password) == (Path("/p"), None)


@given(st.text(max_size=80))
def test_default_names_are_names(hostname: str) -> None:
    assert parse_name(default_name(hostname))


@given(st.text(alphabet="abz019.:[]*-_ ,=", max_size=30))
def test_addresses_parse_or_explain(text: str) -> None:
    try:
        address = parse_address(text)
    except BadValue:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":1", "h:", "h:0", "h:65536", "::1:5", "[::1]", "[h]:1", "1.2.3:4", "h h:1", "h:１"]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(BadValue):
        parse_address(text)
    with pytest.raises(BadValue):
        parse_peers(f"a={text}")


def test_flags_and_variables_are_those_of_the_interface() -> None:
    assert {option.flag: option.env for option in OPTIONS} == {
        "--data": "PGR_DATA",
        "--pgdata": "PGR_PGDATA",
        "--name": "PGR_NAME",
        "--listen": "PGR_LISTEN",
        "--advertise": "PGR_ADVERTISE",
        "--pg-advertise": "PGR_PG_ADVERTISE",
        "--http-advertise": "PGR_HTTP_ADVERTISE",
        "--run": "PGR_RUN",
        "--peers": "PGR_PEERS",
        "--join": "PGR_JOIN",
        "--pg-listen": "PGR_PG_LISTEN",
        "--pg-port": "PGR_PG_PORT",
        "--pg-bin": "PGR_PG_BIN",
        "--http": "PGR_HTTP",
        "--http-token-file": "PGR_HTTP_TOKEN_FILE",
        "--http-tls-cert": "PGR_HTTP_TLS_CERT",
        "--http-tls-key": "PGR_HTTP_TLS_KEY",
        "--http-tls-client-ca": "PGR_HTTP_TLS_CLIENT_CA",
        "--http-tls-verify": "PGR_HTTP_TLS_VERIFY",
        "--tags": "PGR_TAGS",
        "--cluster-key": "PGR_CLUSTER_KEY_FILE",
        "--witness": "PGR_WITNESS",
        "--watchdog": "PGR_WATCHDOG",
        "--watchdog-device": "PGR_WATCHDOG_DEVICE",
        "--profile": "PGR_PROFILE",
        "--commit": "PGR_COMMIT",
        "--config": "PGR_CONFIG",
        "--user": "PGR_USER",
        "--log-format": "PGR_LOG_FORMAT",
    }
