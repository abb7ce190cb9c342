"""Settings on a node: written from the log with what else is in force; who is losing its authority touches nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consensus.clusterwide import BadSetting
from fencing.clock import now_ns
from fencing.lease import MS
from supervisor import configcheck
from supervisor.context import Context
from supervisor.daemon import Daemon
from supervisor.roles import Server, Situation
from supervisor.settings import PLACEHOLDER_NAMES
from supervisor.sql import SqlError
from supervisor.tasks import Task, run_blocking
from supervisor.upstream import Choice
from tests.unit.test_regroup_rules import Primary

NEW = '{"postgres.parameters.work_mem":"8MB"}'


class Node(Primary):
    """With settings that it has not applied yet."""

    def __init__(self, **seen: Any) -> None:
        super().__init__(**seen)
        self.cluster = replace(self.cluster, config=NEW, config_index=12)
        self.owned: dict[str, str] = {}
        self.applied, self.floors, self.reloads, self.reloaded = "{}", dict[str, int](), 0, 0
        self.conf: dict[str, Any] = {"conninfo": "", "slot": "", "names": 'ANY 1 ("b.00000007.5")', "gate": False}
        self.config = SimpleNamespace(pg_listen="127.0.0.1", pg_port=5432, name="a", pgdata="/d")
        self.postgres = SimpleNamespace(
            socket_dir="/s", hba_file="/h", ident_file="/i", write_settings=self._write,
        )  # fmt: skip
        self.postmaster = SimpleNamespace(reload=self._reload)
        self.os_user, self.binaries = "postgres", SimpleNamespace(major=18)
        self.log = SimpleNamespace(info=lambda *_, **__: None)
        self.c = self

    def _write(self, *settings: Any) -> tuple[str, ...]:
        self.written.append(settings)
        return ()

    def _reload(self) -> None:
        self.reloads += 1

    altered, write_again_ns = False, 0
    delay_ms = wanted_delay_ms = 0
    guards: tuple[str, ...] = ()
    choice = Choice()

    def wanted_guards(self) -> tuple[str, ...]:
        return Context.wanted_guards(cast(Context, self))

    def apply_delay_ms(self) -> int:
        return self.wanted_delay_ms

    def syncs_slots(self) -> bool:
        return Context.syncs_slots(cast(Context, self))

    def apply_settings(self) -> None:
        Context.apply_settings(cast(Context, self))

    def write_settings(self, **conf: Any) -> dict[str, str]:
        return Context.write_settings(cast(Context, self), **conf)

    def founding(self) -> dict[str, Any]:
        return {}

    def hba(self) -> str:
        return Context.hba(cast(Context, self))

    def ident(self) -> str:
        return "i"

    def _situation(self, now: int) -> Situation:
        return Situation(self.view, self.local, self.timings, now)

    def turn(self) -> int:
        """As the loop does it; how often Postgres was reloaded by now."""
        Daemon._apply_settings(cast(Daemon, self), now_ns())
        return self.reloads


def test_new_settings_are_written_once_and_the_names_stay() -> None:
    a = Node()
    assert (a.turn(), a.turn()) == (1, 1)
    owned, rules, _ = a.written[0]
    assert owned["work_mem"] == "8MB"
    assert owned["synchronous_standby_names"] == 'ANY 1 ("b.00000007.5")'
    assert owned["default_transaction_read_only"] == "off"
    assert "host all all all scram-sha-256" in rules
    a.cluster = replace(a.cluster, config='{"postgres.hba":["local all all trust"]}')
    assert a.turn() == 2
    assert "local all all trust" in a.written[1][1]
    assert "work_mem" not in a.written[1][0]


def test_a_delay_that_is_in_force_or_no_longer_is_written() -> None:
    node = Node()
    node.local = replace(node.local, server=Server.STANDBY, epoch=0)
    assert node.turn() == 1
    assert node.written[0][0]["recovery_min_apply_delay"] == "0"
    node.wanted_delay_ms = 3_600_000
    assert (node.turn(), node.turn()) == (2, 2)
    assert node.written[1][0]["recovery_min_apply_delay"] == "3600000ms"
    node.wanted_delay_ms = 0
    assert node.turn() == 3
    assert node.written[2][0]["recovery_min_apply_delay"] == "0"


def test_what_somebody_has_altered_is_written_anew_once_and_the_names_stay() -> None:
    node = Node()
    assert node.turn() == 1
    node.altered = True
    assert (node.turn(), node.turn()) == (2, 2)
    assert node.written[1][0] == node.written[0][0] == node.owned


@pytest.mark.parametrize(
    "seen", [{"lease_until_ns": now_ns()}, {"lease_term": 4}, {"granted": 0}, {"granted": 0, "term": 6, "leader": "b"}]
)
def test_without_authority_a_primary_touches_nothing(seen: dict[str, Any]) -> None:
    node = Node(**seen)
    node.altered = True
    assert node.turn() == 0


@pytest.mark.parametrize(
    ("server", "reloads"),
    [(Server.STANDBY, 1), (Server.STARTING, 0), (Server.STOPPING, 0), (Server.PROMOTING, 0), (Server.DOWN, 0)],
)
def test_a_standby_needs_no_authority_and_what_is_between_waits(server: Server, reloads: int) -> None:
    node = Node(lease_until_ns=0)
    node.local = replace(node.local, server=server, epoch=0 if server is Server.STANDBY else 5)
    assert node.turn() == reloads


def test_a_standby_of_an_asynchronous_cluster_has_names_too() -> None:
    """It may be asynchronous no longer when this one is promoted, and only the checkpointer makes commits wait."""
    node = Node()
    node.cluster = replace(node.cluster, commit_mode="async")
    assert Context.idle_names(cast(Context, node)) == PLACEHOLDER_NAMES


# -- asking Postgres


class Session:
    """Answers as Postgres does."""

    def __init__(self, *errors: tuple[str, SqlError]) -> None:
        self.errors, self.asked = dict(errors), list[str]()

    def query(self, sql: str, params: Any = (), until_ns: int = 0) -> Task[list[Any]]:
        self.asked.append(f"{sql} {list(params)}" if params else sql)
        for text, error in self.errors.items():
            if text in self.asked[-1]:
                raise error
        return [("work_mem", "integer", "kB", "64", "2147483647", None, "user", "4096", "4096"),
                ("max_connections", "integer", None, "1", "262143", None, "postmaster", "100", "100"),
                ("shared_preload_libraries", "string", None, None, None, None, "postmaster", "", "")]  # fmt: skip
        yield

    def close(self) -> None:
        pass


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``told(session, parameters)``: what `node.checked` says."""

    def ask(session: Session, parameters: dict[str, str | None], alive: bool = True) -> dict[str, Any]:
        said: list[Any] = []

        def connect(_: str, until_ns: int) -> Task[Session]:
            if not alive:
                raise SqlError("the database system is shutting down")
            return session
            yield

        monkeypatch.setattr("supervisor.sql.connect", connect)
        raft = SimpleNamespace(tell=lambda name, body, token: said.append((name, body, token)))
        c = SimpleNamespace(own_conninfo=lambda: "", raft=raft)
        run_blocking(configcheck.check(cast(Context, c), "t", {"parameters": parameters, "hba": None}))
        ((name, body, token),) = said
        assert (name, token) == ("node.checked", "t")
        return cast(dict[str, Any], body)

    return ask


def test_postgres_is_asked_and_answers_with_notes(told: Any) -> None:
    session = Session()
    found = told(session, {"work_mem": "8MB", "max_connections": "200", "my.own": "x", "gone.one": None})
    assert found["ok"] is True
    assert [text.split(":")[0] for text in found["notes"]] == ["max_connections", "my.own", "work_mem"]
    assert "not known to this Postgres" in found["notes"][1]
    assert session.asked[-1] == "SELECT set_config($1, $2, true) ['work_mem', '8MB']"


@pytest.mark.parametrize(
    ("parameters", "code", "error"),
    [
        ({"work_mem": "x"}, 64, "work_mem is a number"),
        ({"work_mem": "8MB"}, 64, "work_mem: not today"),
        ({"max_connections": "50"}, 78, "max_connections is 100 and can't become less"),
        ({"shared_preload_libraries": "good, bad"}, 64, "no such file: no node would start any more"),
    ],
)
def test_what_postgres_refuses(told: Any, parameters: dict[str, str | None], code: int, error: str) -> None:
    session = Session(
        ("set_config", SqlError("not today", "22023")), ("LOAD 'bad'", SqlError("no such file", "58P01")),
        ("LOAD 'good'", SqlError("must be loaded via shared_preload_libraries", "55000")),
    )  # fmt: skip
    found = told(session, parameters)
    assert (found["ok"], found["code"]) == (False, code)
    assert error in found["error"]
    assert found["hint"]


def test_a_postgres_that_does_not_answer_refuses_for_now(told: Any) -> None:
    found = told(Session(), {"work_mem": "8MB"}, alive=False)
    assert (found["ok"], found["code"]) == (False, 75)


class Files(Session):
    """And a pg_hba.conf that it reads for the view."""

    def __init__(self, path: Any, error: bool) -> None:
        super().__init__()
        self.path, self.error, self.seen = path, error, ""

    def query(self, sql: str, params: Any = (), until_ns: int = 0) -> Task[list[Any]]:
        self.seen = self.path.read_text()
        lines = self.seen.splitlines()
        return [(str(1 + lines.index("host all all all magic")), "invalid method")] if self.error else []
        yield


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize(("name", "own"), [("hba", "pgr_replication"), ("ident", "pgr_owner")])
def test_rules_are_there_for_a_look_only(tmp_path: Any, name: str, own: str, error: bool) -> None:
    path = tmp_path / f"pg_{name}.conf"
    path.write_text("before")
    session = Files(path, error)
    postgres = SimpleNamespace(**{f"{name}_file": path})
    c = SimpleNamespace(postgres=postgres, os_user="postgres", founding=lambda: {"superuser": "boss"})
    task = configcheck._rules(cast(Context, c), cast(Any, session), f"postgres.{name}", ["host all all all magic"])
    if error:
        with pytest.raises(BadSetting, match="'host all all all magic': invalid method"):
            run_blocking(task, now_ns() + 5_000 * MS)
    else:
        run_blocking(task, now_ns() + 5_000 * MS)
    assert "host all all all magic" in session.seen
    assert session.seen.index(own) < session.seen.index("magic"), "pgr's own come first"
    assert path.read_text() == "before"
