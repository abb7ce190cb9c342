"""The configuration file read again, after a change of it or at HUP. What a running node can take is taken, the rest is
named.

A bad file changes nothing."""

from __future__ import annotations

import os
import sys
from dataclasses import fields, replace

from fencing.logs import Log
from supervisor import entry
from supervisor.config import Config
from supervisor.errors import PgrError

TAKEN = ("tags", "http_token_file", "http_tls_cert", "http_tls_key", "http_tls_client_ca", "http_tls_verify")
"""What a running node can take; of HTTP only if it was on, and TLS stays what it was: on or off."""
_LATER = ("founding", "sources", "warnings")
"""Read once, at the founding, or not settings at all."""


def reread(old: Config, log: Log) -> tuple[Config, str]:
    """The configuration from here on: the old one, or it with what was taken; and why it is the old one, or an empty
    string."""
    try:
        given = vars(entry.parser().parse_args(sys.argv[1:]))
        given.pop("version")
        new = entry.read_config({key: value for key, value in given.items() if value is not None}, os.environ)
    except PgrError as bad:
        log.error("config.not_reloaded", message=bad.message, hint=bad.hint)
        return old, bad.message
    return taken(old, new, log), ""


def taken(old: Config, new: Config, log: Log) -> Config:
    names = (f.name for f in fields(Config) if f.name not in _LATER)
    different = [name for name in names if getattr(old, name) != getattr(new, name)]
    ours = [name for name in different if name in TAKEN]
    if "http_tls_cert" in ours and None in (old.http_tls_cert, new.http_tls_cert):
        # Whoever checks this node over HTTP was told its scheme at its start.
        ours = [name for name in ours if not name.startswith("http_tls")]
    left = [name for name in different if name not in ours]
    if left:
        log.warning("config.needs_restart", settings=left, hint="these are taken at the next start of the node")
    if ours:
        log.info("config.reloaded", settings=ours)
    return replace(old, **{name: getattr(new, name) for name in ours})
