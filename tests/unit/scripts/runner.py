"""Cluster scripts: commands, ``----``, what is said to them; in the manner of the data-driven tests of CockroachDB.

A script is a sequence of blocks, divided by empty lines. A block is comments (``# ...``), commands, a line ``----`` and
the expected output. `play` runs the commands and returns the script with the output there really was.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from tests.unit.scripts.world import (
    Beat,
    Campaign,
    Compact,
    Entry,
    HardState,
    Log,
    Mail,
    Propose,
    Release,
    ScriptError,
    Snapshot,
    StepDown,
    World,
    kind_of,
    members_data,
)

FOLDER = Path(__file__).parent

Command = Callable[[World, list[str], dict[str, str]], None]


def _log(terms: str) -> Log:
    """``1,1,4``: three entries of these terms; ``5@2:3``: a snapshot at 5 of term 2, then an entry of term 3."""
    base, _, rest = terms.rpartition(":")
    index, _, term = base.partition("@")
    snapshot = Snapshot(int(index), int(term), "") if base else Snapshot(0, 0, "")
    each = enumerate(filter(None, rest.split(",")), snapshot.index + 1)
    return Log(snapshot, tuple(Entry(index, int(t), "x/1", "") for index, t in each))


def _add_nodes(world: World, names: list[str], options: dict[str, str]) -> None:
    """NAME ... [voters=a,b,c] [log=1,1,2] [term=N] [vote=NAME] [commit=N] [joins]: nodes as they start."""
    joins = "joins" in names
    names = [n for n in names if n != "joins"]
    voters = tuple(options["voters"].split(",")) if "voters" in options else tuple(sorted(names))
    log = _log(options.get("log", ""))
    hard = HardState(
        int(options.get("term", log.last_term)), options.get("vote", ""), int(options.get("commit", 0))
    )  # fmt: skip
    for name in names:
        if name not in voters and not joins:
            raise ScriptError(f"{name} is no voter; `joins` if it is to be let in")
        world.add(name, voters, log, hard, fresh=hard == HardState())


def _wanted(words: list[str]) -> Callable[[Mail], bool]:
    """``a->b``, ``a->*``, ``*->b``, a kind of message, or any of several; nothing: everything."""

    def is_wanted(mail: Mail) -> bool:
        routes = [w.split("->") for w in words if "->" in w]
        kinds = [w for w in words if "->" not in w]
        on_route = any(src in (mail.src, "*") and dst in (mail.dst, "*") for src, dst in routes)
        return (not routes or on_route) and (not kinds or kind_of(mail.message) in kinds)

    return is_wanted


def _deliver(world: World, words: list[str], _: dict[str, str]) -> None:
    """[SRC->DST] [KIND]: once what is on its way, message by message."""
    if not world.deliver(_wanted(words), show=True):
        world.say("nothing is on its way")


def _drop(world: World, words: list[str], _: dict[str, str]) -> None:
    """[SRC->DST] [KIND]: lose it; with nothing said, all there is, and how much is enough to know."""
    wanted = _wanted(words)
    lost = [f"lost: {mail}" for mail in world.mail if wanted(mail)]
    world.said += lost if words else [f"lost: {len(lost)} messages"]
    world.mail = [m for m in world.mail if not wanted(m)]


def _keep(world: World, words: list[str], _: dict[str, str]) -> None:
    """[SRC->DST] [KIND]: set it aside; it arrives later."""
    wanted = _wanted(words)
    world.kept += [m for m in world.mail if wanted(m)]
    world.said += [f"kept: {mail}" for mail in world.mail if wanted(mail)]
    world.mail = [m for m in world.mail if not wanted(m)]


def _arrive(world: World, _: list[str], __: dict[str, str]) -> None:
    """What was kept arrives now, before everything else."""
    late, world.kept, others, world.mail = world.kept, [], world.mail, []
    world.mail = late
    world.deliver(lambda _: True, show=True)
    world.mail = others + world.mail


def _partition(world: World, words: list[str], _: dict[str, str]) -> None:
    """a | b c: nothing passes between these groups any more."""
    groups = [group.split() for group in " ".join(words).split("|")]
    side = {name: n for n, group in enumerate(groups) for name in group}
    world.cut = {(a, b) for a in side for b in side if side[a] != side[b]}


def _cut(world: World, words: list[str], _: dict[str, str]) -> None:
    """SRC->DST ...: nothing passes this way any more."""
    world.cut |= {(src, dst) for src, _, dst in (w.partition("->") for w in words)}


def _heal(world: World, _: list[str], __: dict[str, str]) -> None:
    world.cut = set()


def _propose(world: World, words: list[str], _: dict[str, str]) -> None:
    """NAME TEXT."""
    if not world.step(words[0], Propose("x/1", " ".join(words[1:]))).proposed:
        world.say(f"{words[0]} takes no proposals")


def _member(world: World, words: list[str], options: dict[str, str]) -> None:
    """NAME voters=a,b,c [learners=d]: propose these members."""
    data = members_data(options["voters"].split(","), filter(None, options.get("learners", "").split(",")))
    if not world.step(words[0], Propose("members/1", data)).proposed:
        world.say(f"{words[0]} does not change the members now")


def _each(do: Callable[[World, str], object]) -> Command:
    def command(world: World, words: list[str], _: dict[str, str]) -> None:
        for name in words:
            do(world, name)

    return command


def _status(world: World, words: list[str], _: dict[str, str]) -> None:
    world.status(words or sorted(world.machines))


def _batch(world: World, words: list[str], _: dict[str, str]) -> None:
    """N: so many entries at most in one message."""
    world.batch = int(words[0])


def _wait(world: World, words: list[str], _: dict[str, str]) -> None:
    world.now += int(words[0])


def _trace(world: World, words: list[str], _: dict[str, str]) -> None:
    world.trace = words != ["off"]


COMMANDS: dict[str, Command] = {
    "add-nodes": _add_nodes,
    "campaign": _each(lambda w, n: w.step(n, Campaign())),
    "beat": _each(lambda w, n: w.step(n, Beat())),
    "step-down": _each(lambda w, n: w.step(n, StepDown())),
    "release": lambda w, words, _: void(w.step(words[0], Release(words[1] if len(words) > 1 else ""))),
    "propose": _propose,
    "member": _member,
    "compact": lambda w, words, _: void(w.step(words[0], Compact(int(words[1]), ""))),
    "crash": _each(World.crash),
    "restart": _each(World.restart),
    "resume": _each(lambda w, n: w.restart(n, resume=True)),
    "wipe": _each(lambda w, n: w.restart(n, wipe=True)),
    "deliver": _deliver,
    "drop": _drop,
    "keep": _keep,
    "arrive": _arrive,
    "partition": _partition,
    "cut": _cut,
    "heal": _heal,
    "settle": lambda w, _, __: w.settle(),
    "run": lambda w, words, _: w.run(int(words[0]), deliver=True),
    "batch": _batch,
    "wait": _wait,
    "pass": lambda w, words, _: w.run(int(words[0]), deliver=False),
    "status": _status,
    "log": _each(World.log_of),
    "trace": _trace,
}
"""``run``: time passes, messages take a millisecond. ``pass``: time passes, nothing arrives. ``wait``: nor does
anybody wake up. ``settle``: messages arrive until there are no more, in no time."""


def void(_: object) -> None:
    """So that a lambda is a command."""


def carry_out(world: World, line: str) -> None:
    name, *words = line.split()
    command = COMMANDS.get(name)
    if command is None:
        raise ScriptError(f"there is no command {name}; there are: {', '.join(sorted(COMMANDS))}")
    options = dict(w.split("=", 1) for w in words if "=" in w)
    command(world, [w for w in words if "=" not in w], options)


def play(script: str) -> str:
    """The script with the output that there really was. An error ends the block, and is said in it."""
    world = World()
    return "\n\n".join(_play_block(world, block) for block in script.strip().split("\n\n")) + "\n"


def _play_block(world: World, block: str) -> str:
    asked, divider, _ = block.partition("\n----")
    commands = [line for line in asked.splitlines() if line and not line.startswith("#")]
    if not divider and not commands:
        return block  # a comment of its own
    world.said = []
    for line in commands:
        try:
            carry_out(world, line)
        except ScriptError as error:
            world.say(f"error: {error}")
            break
        except (IndexError, KeyError, ValueError) as error:
            world.say(f"error: {line}: {error!r}")
            break
    return "\n".join([asked, "----", *(world.said or ["ok"])])


def difference(name: str, expected: str, actual: str) -> str:
    """Empty if there is none."""
    lines = difflib.unified_diff(
        expected.splitlines(), actual.splitlines(), f"{name} as written", f"{name} as it happened", lineterm="", n=6
    )  # fmt: skip
    return "\n".join(lines)


def scripts(folder: Path = FOLDER) -> list[Path]:
    return sorted(folder.glob("*.txt"))


def rewrite(folder: Path = FOLDER) -> list[str]:
    """Names of the scripts whose output was not what was written."""
    changed = []
    for path in scripts(folder):
        text = path.read_text(encoding="utf-8")
        actual = play(text)
        if actual != text:
            path.write_text(actual, encoding="utf-8")
            changed.append(path.name)
    return changed
