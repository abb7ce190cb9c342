"""Shows where outputs and code differ, or writes down what there is: ``python -m tests.unit.outputs [--rewrite]``.

Read the difference before it is committed: a script that is rewritten agrees with any bug.
"""

from __future__ import annotations

import sys

from tests.unit.outputs.runner import play, rewrite, scripts
from tests.unit.scripts.runner import difference


def main(arguments: list[str]) -> int:
    if arguments == ["--rewrite"]:
        print("\n".join(rewrite()) or "nothing has changed")
        return 0
    if arguments:
        print(__doc__)
        return 64
    found = [difference(p.name, text, play(text)) for p in scripts() for text in (p.read_text(encoding="utf-8"),)]
    print("\n".join(filter(None, found)) or "all as written")
    return 1 if any(found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
