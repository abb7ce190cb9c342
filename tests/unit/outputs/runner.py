"""Output scripts: what `pgr` prints, whole, at 80 columns. A script is a sequence of blocks, divided by empty lines:

    # a comment
    @ terminal              stdout is one (colour); else it is none
    @ node refusing         of `answers.NODES`; else the one that is well; `none`: no node runs
    $ NO_COLOR=1 pgr status
    ----
    exit 0
    > a line of stdout
    ! a line of stderr

`play` runs the commands and returns the script with what there really was.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer.main

from supervisor import cli, recovercli
from supervisor.admin import who
from tests.unit.outputs.answers import NODES
from tests.unit.test_cli import Node

FOLDER = Path(__file__).parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def play(script: str) -> str:
    with _home() as home:
        return "\n\n".join(_play_block(block, home) for block in script.strip().split("\n\n")) + "\n"


def _play_block(block: str, home: Path) -> str:
    asked, divider, _ = block.partition("\n----")
    lines = [line for line in asked.splitlines() if line and not line.startswith("#")]
    if not divider and not lines:
        return block  # a comment of its own
    terminal, answers, said = False, "well", []
    for line in lines:
        match line.split():
            case ["@", "terminal"]:
                terminal = True
            case ["@", "node", name]:
                answers = name
            case ["$", *_]:
                said += run(shlex.split(line)[1:], home, answers, terminal=terminal)
            case _:
                said.append(f"no such line: {line}")
    return "\n".join([asked, "----", *said])


def run(words: list[str], home: Path, answers: str, *, terminal: bool) -> list[str]:
    """What it did: the exit code, and stdout and stderr line by line."""
    env = dict(w.split("=", 1) for w in words[: words.index("pgr")])
    node = Node(home, NODES[answers]) if answers != "none" else None
    out, err = Terminal() if terminal else io.StringIO(), io.StringIO()
    try:
        taken = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with _environment(env | {"PGR_DATA": str(home)}), taken[0], taken[1], patch.object(cli, "app", tree()):
            code = cli.main(words[words.index("pgr") + 1 :])
    finally:
        if node is not None:
            node.close()
    shown = [(">", out.getvalue()), ("!", err.getvalue())]
    return [f"exit {int(code)}", *(_line(mark, t) for mark, text in shown for t in stable(text, home).splitlines())]


def _line(mark: str, text: str) -> str:
    return f"{mark} {text}".rstrip()


def stable(text: str, home: Path) -> str:
    """Without what differs from machine to machine or from run to run."""
    text = text.replace(str(home), "DIR").replace(who(), "ann@db1")
    version = re.escape(cli.installed_version())
    text = re.sub(rf'(?m)^(pgr |{{"version": "){version}', r"\1VERSION", text)
    text = re.sub(r"6\d\d ms", "623 ms", text)  # the lease runs while we print
    text = re.sub(r'"(lease_left_ms|snapshot_age_ms)": \d+', r'"\1": 0', text)
    return text.replace("\x1b", "\\e")


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="pgr-out-"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


@contextlib.contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """UTC, 80 columns, and nothing of ours but ``more``."""
    before, idle_ms = dict(os.environ), recovercli.OTHERS_IDLE_MS
    for name in [n for n in os.environ if n.startswith(("PGR_", "PG", "_TYPER"))] + ["NO_COLOR", "FORCE_COLOR"]:
        os.environ.pop(name, None)
    os.environ.update({"COLUMNS": "80", "TZ": "UTC", "TERM": "xterm", "EDITOR": "true"} | more)
    time.tzset()
    recovercli.OTHERS_IDLE_MS = 200
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        time.tzset()
        recovercli.OTHERS_IDLE_MS = idle_ms


@cache
def tree() -> Any:
    """All commands, made once: typer makes them anew for each call."""
    return typer.main.get_command(cli.app)


def commands(command: Any = None, path: str = "pgr") -> Iterator[str]:
    """Every command there is, groups too."""
    command = command or tree()
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")


def scripts(folder: Path = FOLDER) -> list[Path]:
    return sorted(folder.glob("*.txt"))


def rewrite(folder: Path = FOLDER) -> list[str]:
    """Names of the scripts whose output was not what was written; a new command gets its help."""
    if folder == FOLDER:
        text = "".join(f"$ {name} --help\n----\n\n" for name in commands())
        if play(text) != (FOLDER / "help.txt").read_text(encoding="utf-8"):
            (FOLDER / "help.txt").write_text(text, encoding="utf-8")
    changed = []
    for path in scripts(folder):
        text = path.read_text(encoding="utf-8")
        actual = play(text)
        if actual != text:
            path.write_text(actual, encoding="utf-8")
            changed.append(path.name)
    return changed
