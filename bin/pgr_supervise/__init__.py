"""The launcher of both commands; everything else lives in supervisor, consensus and fencing.

In a wheel those three lie in `app/` beside this file, where no other distribution's `supervisor` can meet them; in a
checkout they lie at its root. This adds the right place to the path and imports nothing that a node does not need.
"""

from __future__ import annotations

import os
import sys

_here = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib costs memory and time before the fork
_app = os.path.join(_here, "app")
_root = _app if os.path.isdir(_app) else os.path.dirname(os.path.dirname(_here))  # noqa: PTH112, PTH120 - the same
if _root not in sys.path:
    sys.path.insert(0, _root)


def main() -> int:
    """pgr-supervise: run a node."""
    from supervisor.entry import main as run

    return run()


def admin() -> int:
    """pgr: look at and steer a cluster."""
    from supervisor.cli import main as run

    return run()
