"""What every command prints, as it is written beside this file; and that the runner notices what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.outputs.runner import commands, play, rewrite, scripts
from tests.unit.scripts.runner import difference

SMALL = """\
# A comment.
$ pgr member add b
----
exit 0
> b: voter
! member: b is to be a voter
"""
ELSEWHERE = {
    "pgr demo": "starts three nodes", "pgr key new": "is random: test_cli.py", "pgr doctor": "looks at machines",
    "pgr leave": "works on a data directory: test_adopt.py",
}  # fmt: skip
"""Commands whose output is no script."""
GROUPS = {"pgr", "pgr member", "pgr key", "pgr config"}


@pytest.mark.parametrize("path", scripts(), ids=lambda p: p.stem)
def test_output(path: Path) -> None:
    written = path.read_text(encoding="utf-8")
    found = difference(path.name, written, play(written))
    assert not found, f"\n{found}\n(python -m tests.unit.outputs --rewrite writes down what there is)"


def asked(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("$ ")]


def test_every_command_has_its_help_and_its_output() -> None:
    every = [line for path in scripts() for line in asked(path)]
    helped = {line.removeprefix("$ ").removesuffix(" --help") for line in every if "--help" in line}
    assert helped == set(commands()), "python -m tests.unit.outputs --rewrite adds the help of a new command"
    shown = [line.partition("pgr")[2] for path in scripts() if path.stem != "help" for line in asked(path)]
    for name in sorted({*commands()} - GROUPS - set(ELSEWHERE)):
        words = name.removeprefix("pgr")
        found = [line for line in shown if f"{line} ".startswith(f"{words} ")]
        assert found, f"`{name}` has no output script: add `$ {name} ...` to one of tests/unit/outputs/*.txt"


def test_nothing_of_the_help_is_wider_than_a_terminal() -> None:
    text = next(path for path in scripts() if path.stem == "help").read_text(encoding="utf-8")
    wide = [line for line in text.splitlines() if line.startswith("> ") and len(line) > 82]
    assert wide == []


def test_colour_only_where_there_is_a_terminal_that_wants_it() -> None:
    blocks = [block for path in scripts() for block in path.read_text(encoding="utf-8").split("\n\n")]
    coloured = [block for block in blocks if "\\e[" in block]
    assert coloured
    for block in coloured:
        assert "@ terminal" in block or "--watch" in block
        assert "NO_COLOR" not in block
        assert "TERM=dumb" not in block


def test_a_wrong_line_is_a_difference() -> None:
    assert play(SMALL) == SMALL
    wrongs = (("exit 0", "exit 1"), ("> b: voter", "> c: voter"), ("! member: b", "! member: c"), ("> b", "! b"))
    for right, wrong in wrongs:
        found = difference("small.txt", SMALL.replace(right, wrong), play(SMALL.replace(right, wrong)))
        assert f"+{right}" in found
    assert "no such line: pgr status" in play("pgr status\n----\n")


def test_a_script_is_rewritten_to_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "right.txt").write_text(SMALL, encoding="utf-8")
    (tmp_path / "wrong.txt").write_text(SMALL.replace("voter", "boss"), encoding="utf-8")
    assert rewrite(tmp_path) == ["wrong.txt"]
    assert (tmp_path / "wrong.txt").read_text(encoding="utf-8") == SMALL
