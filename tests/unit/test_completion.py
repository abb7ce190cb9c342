"""Completion as the shells ask for it: words by the protocol that the installed scripts speak."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor import cli, clioptions
from tests.unit.test_cli import ROOT, Node, data, no_environment, well  # noqa: F401  (fixtures)

PROGRAM = "import sys; from supervisor.cli import main; sys.exit(main())"
SHELLS = ("bash", "zsh", "fish")


@pytest.fixture
def node(data: Path) -> Iterator[Node]:  # noqa: F811
    made = Node(data, well)
    yield made
    made.close()


Ask = Callable[..., str]
Words = Callable[..., list[str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """What ``pgr`` prints when a shell asks it."""

    def ask(instruction: str, **env: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in (env | {"_PGR_COMPLETE": instruction}).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                cli.main([])
        out, err = capsys.readouterr()
        assert (end.value.code, err) == (0, "")
        return out

    return ask


@pytest.fixture
def words(asked: Ask) -> Words:
    """Offered at the end of a line."""

    def offered(shell: str, line: str, **env: str) -> list[str]:
        match shell:
            case "bash":
                at = str(len(line.split(" ")) - 1)
                return asked("complete_bash", COMP_WORDS=line, COMP_CWORD=at, **env).split()
            case "zsh":
                return asked("complete_zsh", _TYPER_COMPLETE_ARGS=line, **env).split('"')[1::2]
            case _:
                out = asked("complete_fish", _TYPER_COMPLETE_ARGS=line, _TYPER_COMPLETE_FISH_ACTION="get-args", **env)
                return [offer.split("\t")[0] for offer in out.splitlines()]

    return offered


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_options_and_members(shell: str, words: Words, node: Node, data: Path) -> None:  # noqa: F811
    assert any(w.startswith("switchover") for w in words(shell, "pgr switch"))
    found = words(shell, f"pgr reinit --data {data} ")
    assert [w.split(":")[0] for w in found] == ["a", "b", "c"]


def test_members_wherever_a_member_is_named(words: Words, node: Node, data: Path) -> None:  # noqa: F811
    where = {"PGR_DATA": str(data)}
    for line in (
        "pgr switchover --to ", "pgr failover --to ", "pgr member remove ", "pgr member replace ", "pgr fence ",
        "pgr member replace b --by ", "pgr restart ", "pgr reload ", "pgr reinit c --from ", "pgr member add ",
    ):  # fmt: skip
        assert words("bash", line, **where) == ["a", "b", "c"], line
    assert words("bash", "pgr fence b", **where) == ["b"]
    assert words("bash", f"pgr --data {data} unfence ") == ["a", "b", "c"], "named before the command"
    assert words("bash", "pgr failover --acc", **where) == ["--accept-data-loss"]


def test_nobody_waits_for_a_node_that_does_not_answer(words: Words, data: Path) -> None:  # noqa: F811
    assert words("bash", "pgr fence ") == [], "no node is named"
    assert words("bash", f"pgr fence --data {data} ") == [], "none runs"
    silent = Node(data, lambda _: [])
    try:
        assert words("bash", f"pgr fence --data {data} ") == []
    finally:
        silent.close()
    assert clioptions.COMPLETE_MS <= 1000


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_for_a_shell(shell: str, asked: Ask) -> None:
    script = asked(f"source_{shell}")
    assert f"_PGR_COMPLETE=complete_{shell}" in script
    assert "pgr" in script


def test_bash_completes_with_the_script(asked: Ask, node: Node, data: Path, tmp_path: Path) -> None:  # noqa: F811
    """The whole way round: bash runs the function that the script defines."""
    program = tmp_path / "pgr"
    program.write_text(f"#!/bin/sh\ncd {ROOT} && exec {sys.executable} -c '{PROGRAM}' \"$@\"\n", encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "script").write_text(asked("source_bash"), encoding="utf-8")
    line = (
        f'. {tmp_path}/script; COMP_WORDS=(pgr switchover --to ""); COMP_CWORD=3; _pgr_completion {program}; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {n: v for n, v in os.environ.items() if not n.startswith(("PGR_", "_PGR"))} | {"PGR_DATA": str(data)}
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60, env=env
    )  # fmt: skip
    assert done.stdout.split() == ["a", "b", "c"]
