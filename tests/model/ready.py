"""A counterexample as a test that is ready to be committed: it fails as long as the story can happen.

The steps are told in words, as in the report: the numbers of labels mean something in one exploration only, and a
reader sees what happens. Where two steps are told by the same words, both are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial

from tests.model.explore import Outcome, State, ViolationError, World

Imports = set[tuple[str, str]]

TEMPLATE = '''"""{violation}

Found by tests/model within {bound}.
"""

{imports}

STORY = (
{steps}
)


def test_this_does_not_happen() -> None:
    world = {world}
    assert not replayed(world, STORY)
'''


def replayed(world: World, story: Sequence[str]) -> str:
    """What is wrong along this story; empty: nothing, or it can't happen (any more)."""
    states: list[State] = [world.start()]
    try:
        for step in (*story, ""):
            after: dict[State, None] = {}
            for state in states:
                world.inspect(state)
                after.update((move.to, None) for move in world.successors(state) if world.tell(move.label) == step)
            states = list(after)
    except ViolationError as error:
        return error.text
    return ""


def ready_test(make: Callable[[], World], outcome: Outcome, bound: str) -> str:
    """The source of a test module. ``make``: a partial that makes the world, of values that can be spelled."""
    imports: Imports = {(__name__, "replayed")}
    world = spelled_call(make, imports)
    by_module: dict[str, list[str]] = {}
    for module, name in sorted(imports):
        by_module.setdefault(module, []).append(name)
    return TEMPLATE.format(
        violation=outcome.violation, bound=bound, world=world,
        imports="\n".join(f"from {module} import {', '.join(names)}" for module, names in by_module.items()),
        steps="\n".join(f"    {_step(text)}," for text in outcome.story),
    )  # fmt: skip


def told(make: Callable[[], World], outcome: Outcome, bound: str) -> str:
    """The report; of a violation, the test too."""
    report = outcome.report(bound)
    return f"{report}\n\nAs a test:\n\n{ready_test(make, outcome, bound)}" if outcome.violation else report


def _step(text: str) -> str:
    first, *more = text.split("\n")
    return repr(first) if not more else "\n        ".join([f"({first!r}", *(repr("\n" + line) for line in more)]) + ")"


def spelled_call(make: Callable[[], object], imports: Imports) -> str:
    assert isinstance(make, partial), "what a world is made of can't be told"
    words = [spelled(value, imports) for value in make.args]
    words += [f"{name}={spelled(value, imports)}" for name, value in make.keywords.items()]
    return f"{spelled(make.func, imports)}({', '.join(words)})"


def spelled(value: object, imports: Imports) -> str:
    """An expression for it; what it needs goes to ``imports``. Fields that are as by default are left out."""
    if isinstance(value, type):
        imports.add((value.__module__, value.__qualname__))
        return value.__qualname__
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"({''.join(f'{spelled(one, imports)}, ' for one in value)})".replace(", )", ",)")
    if isinstance(value, tuple):
        defaults = getattr(value, "_field_defaults")  # noqa: B009
        pairs = [(name, getattr(value, name)) for name in getattr(value, "_fields")]  # noqa: B009
    elif is_dataclass(value):
        defaults = {f.name: f.default for f in fields(value)}
        pairs = [(f.name, getattr(value, f.name)) for f in fields(value)]
    else:
        return repr(value)
    said = [f"{name}={spelled(it, imports)}" for name, it in pairs if defaults.get(name, MISSING) != it]
    return f"{spelled(type(value), imports)}({', '.join(said)})"
