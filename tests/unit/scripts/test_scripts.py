"""The cluster scripts beside this file, and that the runner notices what is not as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.scripts.runner import COMMANDS, difference, play, rewrite, scripts

SMALL = """\
# Three nodes.
add-nodes a b c
campaign a
settle
----
a follower of 0 -> precandidate of 0
a precandidate of 0 -> candidate of 1
b follower of 0 -> follower of 1
c follower of 0 -> follower of 1
a candidate of 1 -> leader of 1
a commits 1@1 noop
b commits 1@1 noop
c commits 1@1 noop

log a
----
a: 1@1 noop
"""


@pytest.mark.parametrize("path", scripts(), ids=lambda p: p.stem)
def test_script(path: Path) -> None:
    written = path.read_text(encoding="utf-8")
    found = difference(path.name, written, play(written))
    assert not found, f"\n{found}\n(python -m tests.unit.scripts --rewrite writes down what happened)"


def test_there_are_scripts_and_every_command_is_used() -> None:
    texts = [p.read_text(encoding="utf-8") for p in scripts()]
    assert len(texts) >= 12
    used = {line.split()[0] for text in texts for line in text.splitlines() if line}
    assert set(COMMANDS) - used == {"trace"}, "which is for whoever writes one"
    errors = [line for text in texts for line in text.splitlines() if line.startswith("error: ")]
    assert [line for line in errors if " stops: " not in line] == []


def test_a_wrong_line_is_a_difference() -> None:
    assert play(SMALL) == SMALL
    wrong = SMALL.replace("a commits 1@1 noop", "a commits 2@1 noop")
    found = difference("small.txt", wrong, play(wrong)).splitlines()
    assert found[:2] == ["--- small.txt as written", "+++ small.txt as it happened"]
    assert [line for line in found if line.startswith(("-a", "+a"))] == ["-a commits 2@1 noop", "+a commits 1@1 noop"]
    missing = SMALL.replace("c commits 1@1 noop\n", "")
    assert "+c commits 1@1 noop" in difference("small.txt", missing, play(missing))
    assert difference("small.txt", SMALL, play(SMALL)) == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dance a", "error: there is no command dance; there are: add-nodes"),
        ("campaign x", "error: there is no node x"), ("add-nodes d voters=a,b", "error: d is no voter"),
        ("release", "error: release: IndexError"), ("crash a\npropose a x", "error: a is down"),
        ("member a voters=a", "error: a stops: Membership(voters=('a', 'b', 'c'), learners=()) cannot become"),
    ],
    ids=["command", "node", "voter", "words", "down", "bug"],
)  # fmt: skip
def test_what_can_not_be_is_said(line: str, said: str) -> None:
    assert said in play(f"{SMALL}\n{line}\n----\n")


def test_a_script_is_rewritten_to_what_happened(tmp_path: Path) -> None:
    (tmp_path / "right.txt").write_text(SMALL, encoding="utf-8")
    (tmp_path / "wrong.txt").write_text(SMALL.replace("a: 1@1 noop", "a: nothing"), encoding="utf-8")
    assert rewrite(tmp_path) == ["wrong.txt"]
    assert (tmp_path / "wrong.txt").read_text(encoding="utf-8") == SMALL
    assert rewrite(tmp_path) == []


def test_two_leaders_of_a_term_are_noticed() -> None:
    """By the world the cores live in: here a vote is forgotten."""
    script = """\
add-nodes a b c
campaign a
settle
crash a
wipe b c
add-nodes b c voters=b,c
campaign b
settle
----
"""
    assert "error: two leaders of term 1: a and b" in play(script)
