"""What destroys is confirmed by a name: typed where there is a terminal, said with `--yes` where there is none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from fencing.wire import Frame
from supervisor import admin, cli, confirm
from supervisor.errors import UsageError
from supervisor.status import to_json
from tests.unit.snapshots import NOW, snapshot
from tests.unit.test_cli import Node, Run, data, no_environment, pgr  # noqa: F401  (fixtures)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal; what is written here is what a person types."""
    line = io.StringIO()
    monkeypatch.setattr(confirm, "_asks", lambda: True)
    monkeypatch.setattr("sys.stdin", line)
    return line


def types(line: io.StringIO, text: str) -> None:
    line.write(text)
    line.seek(0)


def test_a_name_is_typed(typed: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    types(typed, "b\n")
    confirm.confirm("b goes", "b", "")
    assert capsys.readouterr() == ("", "b goes\ntype b to go on: ")


@pytest.mark.parametrize("text", ["", "\n", "c\n", "y\n", "yes\n"])
def test_anything_else_is_no(typed: io.StringIO, text: str) -> None:
    types(typed, text)
    with pytest.raises(UsageError, match="not confirmed"):
        confirm.confirm("b goes", "b", "")


def test_a_script_says_it_and_is_not_asked(typed: io.StringIO) -> None:
    confirm.confirm("b goes", "b", "b", always=True)
    with pytest.raises(UsageError, match="not confirmed: `c` is not b"):
        confirm.confirm("b goes", "b", "c")


def test_without_a_terminal_only_what_is_always_confirmed_needs_it() -> None:
    confirm.confirm("b goes", "b", "")
    with pytest.raises(UsageError) as found:
        confirm.confirm("b goes", "b", "", always=True)
    assert "--yes b" in found.value.hint


def answers(frame: Frame) -> list[bytes]:
    if frame.name == "status":
        return [admin.answer(frame.id, to_json(snapshot(), NOW))]
    if frame.name == "failover":
        return [admin.answer(frame.id, {"from": "", "to": "b", "term": 8, "timeline": 3, "gap_ms": 2})]
    return [admin.answer(frame.id, {"name": "b", "role": "gone"})]


@pytest.mark.parametrize(
    ("words", "name"),
    [("member remove b", "b"), ("reinit b", "b"), ("failover --accept-data-loss", "3f2a9c01")],
)
def test_what_gives_something_up_is_asked_about(
    data: Path, typed: io.StringIO, capsys: pytest.CaptureFixture[str], words: str, name: str,  # noqa: F811
) -> None:  # fmt: skip
    node = Node(data, answers)

    def run(*more: str) -> tuple[int, list[str]]:
        node.requests.clear()
        code = cli.main([*words.split(), *more, "--data", str(data)])
        capsys.readouterr()
        return code, [frame.name for frame in node.requests if frame.name != "status"]

    try:
        assert run() == (64, []), "nothing was typed"
        typed.seek(0)
        types(typed, f"{name}\n")
        assert run() == (0, [words.split(maxsplit=1)[0] if "member" not in words else "member.remove"])
        assert run("--yes", name)[0] == 0
        assert run("--yes", "nobody") == (64, [])
        assert run("--help") == (0, [])
    finally:
        node.close()


def test_a_script_that_names_a_node_needs_no_more(pgr: Run, data: Path) -> None:  # noqa: F811
    node = Node(data, answers)
    try:
        for words in ("member remove b", "reinit b", "failover --accept-data-loss"):
            assert pgr(*words.split(), "--data", str(data))[0] == 0, words
    finally:
        node.close()


def test_a_dry_run_loses_nothing_and_is_not_asked_about(data: Path, typed: io.StringIO) -> None:  # noqa: F811
    body: dict[str, object] = {"from": "", "to": "", "refusal": None, "forecast": {}}
    node = Node(data, lambda frame: [admin.answer(frame.id, body)])
    try:
        assert cli.main(["failover", "--accept-data-loss", "--dry-run", "--json", "--data", str(data)]) == 0
        assert [frame.name for frame in node.requests] == ["failover"]
    finally:
        node.close()
