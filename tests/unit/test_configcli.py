"""`pgr config` against a node that answers as one does: exit code, stdout and stderr; and the node's side of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consensus.cluster import canonical
from fencing.lease import PROFILES
from fencing.wire import Frame
from supervisor import admin, configview
from supervisor.errors import RefusedError, TryAgainError
from tests.unit.test_cli import Node, Run, data, no_environment, pgr  # noqa: F401  (fixtures)
from tests.unit.test_member_surfaces import FOUR, Asked, asked, ended, picture  # noqa: F401  (fixtures)
from tests.unit.test_observe import agreed

STATE = agreed(config=canonical({"strict": False, "postgres.parameters.work_mem": "8MB", "postgres.hba": []}))
EVENTS = [
    {"at": "t1", "kind": "opened", "reason": "is open"},
    {"at": "t2", "kind": "config", "reason": "eve@host: strict: true -> false"},
]


def handler(frame: Frame) -> list[bytes]:
    body, id = frame.body, frame.id
    match frame.name:
        case "config.show":
            found = configview.rows(STATE, PROFILES["default"])
            return [admin.answer(id, {"index": 12, "settings": found}, warnings=("degraded: by one",))]
        case "history":
            return [admin.answer(id, {"history": EVENTS})]
        case _ if "lease_ms" in body["set"]:
            return [admin.answer(id, error=RefusedError("lease_ms can't be changed", "found anew"))]
        case _:
            index = 12 if body.get("dry_run") else 13
            changes = {} if "commit" in body["set"] else {"strict": [False, True]}
            return [admin.answer(id, {"changes": changes, "notes": ["mind"], "after": 12, "index": index})]


@pytest.fixture
def node(data: Path) -> Iterator[Node]:  # noqa: F811
    made = Node(data, handler)
    yield made
    made.close()


WARNING = "warning: degraded: by one\n"


def test_show_and_get(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    code, out, err = pgr("config", "show", "--data", str(data))
    assert (code, err) == (0, WARNING)
    assert out == configview.page(configview.rows(STATE, PROFILES["default"]))
    assert json.loads(pgr("config", "show", "--json", "--data", str(data))[1])[0]["name"] == "commit"
    for key, shown in (
        ("strict", "false\n"), ("sync_acks", "\n"), ("postgres.hba", "[]\n"), ("postgres.parameters.work_mem", "8MB\n"),
        ("postgres.parameters", "postgres.parameters.work_mem = 8MB\n"), ("lease_ms", "700\n"),
    ):  # fmt: skip
        assert pgr("config", "get", key, "--data", str(data)) == (0, shown, WARNING), key
    assert pgr("config", "get", "strict", "--json", "--data", str(data))[1] == "false\n"
    assert json.loads(pgr("config", "get", "postgres.parameters", "--json", "--data", str(data))[1]) == {
        "postgres.parameters.work_mem": "8MB"
    }


def test_get_of_what_is_not_there(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    refusal = f"{WARNING}error: there is no setting strcit\n\nhint: did you mean strict?\n"
    assert pgr("config", "get", "strcit", "--data", str(data)) == (64, "", refusal)
    unset = "postgres.parameters.jit"
    assert pgr("config", "get", unset, "--data", str(data)) == (0, "", f"{WARNING}{unset} is not set\n")


def test_set_shows_the_difference_first_and_asks_for_no_other(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    answer = pgr("config", "set", "strict=true", "postgres.parameters.search_path=a=b", "--data", str(data))
    assert answer == (0, "strict = true\n", "- strict = false\n+ strict = true\nnote: mind\n")
    first, second = (frame.body for frame in node.requests)
    assert first["set"] == {"strict": "true", "postgres.parameters.search_path": "a=b"}
    assert (first["dry_run"], first["after"]) == (True, None)
    assert ("dry_run" in second, second["after"], second["unset"]) == (False, 12, [])
    assert "@" in second["by"]
    done = json.loads(pgr("config", "unset", "strict", "--json", "--data", str(data))[1])
    assert (done["index"], node.requests[-1].body["unset"]) == (13, ["strict"])


def test_a_dry_run_and_nothing_to_change_ask_for_nothing(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    shown = (0, "- strict = false\n+ strict = true\n", "note: mind\n")
    assert pgr("config", "set", "--dry-run", "strict=true", "--data", str(data)) == shown
    assert pgr("config", "set", "commit=quorum", "--data", str(data)) == (0, "nothing to change\n", "note: mind\n")
    assert len(node.requests) == 2


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["strict"], 64, "'strict' is no KEY=VALUE"),
        (["=true"], 64, "'=true' is no KEY=VALUE"),
        (["strict=true", "strict=false"], 64, "strict is given twice"),
        (["lease_ms=500"], 78, "lease_ms can't be changed"),
    ],
)
def test_refusals(
    pgr: Run, node: Node, data: Path, *, words: list[str], code: int, error: str  # noqa: F811
) -> None:  # fmt: skip
    found, out, err = pgr("config", "set", *words, "--data", str(data))
    assert (found, out) == (code, "")
    assert err.startswith(f"error: {error}")
    assert "\n\nhint: " in err


def test_the_history_of_settings(pgr: Run, node: Node, data: Path) -> None:  # noqa: F811
    code, out, _ = pgr("config", "history", "--data", str(data))
    assert (code, [line.split() for line in out.splitlines()]) == (
        0, [["AT", "BY", "CHANGE"], ["t2", "eve@host", "strict:", "true", "->", "false"]],
    )  # fmt: skip
    rows = json.loads(pgr("config", "history", "--json", "--data", str(data))[1])
    assert rows == [{"at": "t2", "by": "eve@host", "change": "strict: true -> false"}]


def editor(place: Path, program: str) -> str:
    script = place / "editor.py"
    script.write_text(f"import sys, pathlib\np = pathlib.Path(sys.argv[1])\n{program}\n")
    return f"{sys.executable} {script}"


@pytest.mark.parametrize(
    ("program", "code", "out", "err"),
    [
        ("p.write_text(p.read_text().replace('strict = false', 'strict = true'))", 0, "strict = true\n", "+ strict"),
        ("pass", 0, "nothing to change\n", ""),
        ("p.write_text(p.read_text() + '# a comment')", 0, "nothing to change\n", ""),
        ("p.write_text('strict = ')", 64, "", "error: this is no TOML"),
        ("sys.exit(3)", 64, "", "ended with 3: nothing is changed"),
    ],
)
def test_edit(
    pgr: Run, node: Node, data: Path, monkeypatch: pytest.MonkeyPatch, *,  # noqa: F811
    program: str, code: int, out: str, err: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("EDITOR", editor(data, program))
    found = pgr("config", "edit", "--data", str(data))
    assert found[:2] == (code, out)
    assert err in found[2]
    if out == "strict = true\n":
        assert node.requests[-1].body["set"] == {"strict": True}
        assert node.requests[-1].body["after"] == 12


def test_edit_without_an_editor(pgr: Run, node: Node, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    assert pgr("config", "edit", "--data", str(data))[0] == 69
    monkeypatch.setenv("EDITOR", "/no/such/editor")
    assert pgr("config", "edit", "--data", str(data))[0] == 69


# -- the node's side


CHANGED = {"changes": {"strict": [True, False]}, "notes": ["mind"], "after": 0, "index": 7}


def test_done_is_when_the_log_here_has_it(asked: Asked) -> None:  # noqa: F811
    asked.ask("config.set", set={"strict": False}, unset=[])
    assert [o.name for o in asked.c.raft.orders] == ["admin.request"]
    asked.agrees(**CHANGED)
    asked.log(FOUR)
    assert "answer" not in dict(asked.said())
    asked.log(replace(FOUR, config='{"strict":false}', config_index=7))
    assert ended(asked.said())["result"] == CHANGED


def test_a_dry_run_is_done_at_once(asked: Asked) -> None:  # noqa: F811
    asked.ask("config.set", set={"strict": False}, unset=[], dry_run=True)
    asked.agrees(**(CHANGED | {"index": 0}))
    assert ended(asked.said())["result"]["index"] == 0


def test_another_change_that_came_first_makes_it_void(asked: Asked) -> None:  # noqa: F811
    asked.ask("config.set", set={"strict": False}, unset=[])
    asked.agrees(**CHANGED)
    asked.log(replace(FOUR, config_index=6))
    found = ended(asked.said())
    assert (found["ok"], found["code"]) == (False, TryAgainError.exit_code)


def test_the_settings_are_told_from_the_log(asked: Asked) -> None:  # noqa: F811
    asked.ask("config.show")
    found = ended(asked.said())["result"]
    assert (found["index"], found["settings"][0]["name"]) == (0, "commit")
    asked.c.view = replace(asked.c.view, cluster=None)
    asked.ask("config.show")
    assert ended(asked.said())["code"] == 75


def test_whoever_asks_for_anything_hears_that_it_is_degraded(asked: Asked) -> None:  # noqa: F811
    def warnings(*request: Any, **body: Any) -> list[str]:
        asked.ask(*request, **body)
        return list(ended(asked.said()).get("warnings", []))

    assert warnings("history") == []
    asked.log(replace(FOUR, group=FOUR.group._replace(members=FOUR.group.members[:1], k=1)))
    assert asked.said() == []
    for request in ("history", "uri", "config.show"):
        assert warnings(request, dbname="d", user="")[0].startswith("degraded: 1 of a acknowledges"), request
    assert warnings("status") == [], "the status says it itself"
    asked.ask("member.remove", name="a")
    asked.server.answered(Frame("admin.answer", "r1", {"ok": False, "code": 75, "error": "no", "hint": "h"}))
    assert ended(asked.said())["warnings"][0].startswith("degraded")
