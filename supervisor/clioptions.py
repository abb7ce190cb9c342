"""Options that commands of `pgr` share: which node to talk to, and JSON. Only what is part of `cli.py` imports this."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="PGR_DATA", metavar="DIR", help="Home of a node of this machine.")
]
NodeOption = Annotated[str, typer.Option("--node", metavar="HOST:PORT", help="Consensus address of any member.")]
KeyOption = Annotated[
    Path | None,
    typer.Option("--cluster-key", envvar="PGR_CLUSTER_KEY_FILE", metavar="FILE", help="Cluster key, for `--node`."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
