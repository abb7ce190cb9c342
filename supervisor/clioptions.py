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
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=1, help="Give up waiting after this; what was begun goes on."),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the member.", show_default=False)]
MEMBER_TIMEOUT_S = 600.0
