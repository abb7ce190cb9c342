"""One node's configuration: every flag, environment variable and TOML key, checked once, then frozen.

Pure: what the machine looks like comes in as `Facts`, the file as text; nothing is opened and nobody is asked. Every
complaint names where the value came from, because whoever typed it is the one who must act (`UsageError`, exit 64).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, cast

from consensus.digest import blake2b
from consensus.tags import REPLICATE_FROM, Tag
from supervisor.addresses import (
    Address,
    Peer,
    default_name,
    is_loopback,
    is_wildcard,
    parse_address,
    parse_host,
    parse_name,
    parse_peers,
    parse_port,
)
from supervisor.errors import UsageError
from supervisor.founding_options import Founding, load_founding
from supervisor.options import (
    BY_KEY,
    COMMITS,
    KEYS,
    LOG_FORMATS,
    PROFILES,
    VERIFY,
    WATCHDOG_DEVICE,
    WATCHDOG_MODES,
    Facts,
    Values,
    environment_warnings,
    parse_choice,
    parse_file,
    parse_tags,
    parse_truth,
)

__all__ = ["Address", "Config", "Facts", "Founding", "Peer", "load", "run_directory", "socket_excess_bytes"]

SOCKET_PATH_MAX_BYTES: Final = 107
"""sockaddr_un holds 108 bytes with the NUL at the end (unix(7)); Postgres and ZeroMQ both want that NUL."""


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration. Paths are absolute; `*advertise` are always dialable; `http` None means off."""

    data: Path
    pgdata: Path
    name: str
    listen: Address
    advertise: Address
    pg_advertise: Address
    http_advertise: Address | None
    run: Path
    peers: tuple[Peer, ...]
    """Founding members in the order given; this node alone if none were given (and it does not join a cluster)."""
    join: Address | None
    pg_listen: str
    pg_port: int
    pg_bin: Path | None
    http: Address | None
    http_token_file: Path | None
    http_tls_cert: Path | None
    http_tls_key: Path | None
    http_tls_client_ca: Path | None
    http_tls_verify: Literal["optional", "required"]
    tags: Mapping[str, Tag]
    cluster_key: Path | None
    """As given. None is possible on loopback only: the key then lies, or will lie, at `key_file`."""
    witness: bool
    watchdog: str
    """off, automatic: used where it can be; required: else this node does not start."""
    watchdog_device: Path
    profile: Literal["fast", "default", "cloud"]
    commit: Literal["quorum", "async"]
    config_file: Path | None
    user: str | None
    log_format: Literal["text", "json"]
    founding: Founding
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Where each value came from, in words: "flag --listen", "default", ..."""
    warnings: tuple[str, ...] = ()

    @property
    def key_file(self) -> Path:
        return self.cluster_key or self.data / "cluster.key"

    @property
    def raft_dir(self) -> Path:
        return self.data / "raft"

    @property
    def log_dir(self) -> Path:
        return self.data / "log"

    @property
    def salvage_dir(self) -> Path:
        return self.data / "salvage"

    @property
    def postgres_log(self) -> Path:
        return self.log_dir / "postgres.log"

    @property
    def pg_socket_dir(self) -> Path:
        return self.run / "pg"

    @property
    def watchdog_socket(self) -> Path:
        return self.run / "watchdog.sock"

    @property
    def raft_socket(self) -> Path:
        return self.run / "raft.sock"

    @property
    def admin_socket(self) -> Path:
        return self.run / "admin.sock"


def load(
    flags: Mapping[str, str], env: Mapping[str, str], file_text: str | None, file_path: Path | None, facts: Facts
) -> Config:
    """The configuration of this node.

    `flags` has only what was given, by key (`pg_port`, not `--pg-port`), as text; `file_text` is None without a file.
    Raises `UsageError`.
    """
    file = parse_file(file_text, file_path) if file_text is not None else {}
    values = Values(flags, env, file, file_path, facts.cwd)
    data = values.path("data")
    if data is None:
        raise UsageError("no data directory given", "say where this node keeps everything: --data DIR (or PGR_DATA)")
    warnings = environment_warnings(env)
    name = values.get("name", parse_name, default_name(facts.hostname))
    listen = values.get("listen", parse_address, Address("127.0.0.1", 7400))
    join = _joins(values, name, listen)
    peers = values.get("peers", parse_peers, ()) if join is None else ()
    if peers and name not in {peer.name for peer in peers}:
        raise UsageError(
            f"this node is called {name!r} ({values.source('name')}), and --peers names only "
            f"{', '.join(peer.name for peer in peers)} ({values.source('peers')})",
            "add this node to --peers, or give it one of those names with --name",
        )
    witness = values.get("witness", parse_truth, False)
    if witness and join is None and len(peers) < 2:
        raise UsageError(
            f"a witness alone ({values.source('witness')}) has nobody to vote for",
            "name the members with --peers, or a running cluster with --join",
        )
    cluster_key = values.path("cluster_key")
    if not listen.is_loopback and cluster_key is None:
        raise UsageError(
            f"--listen {listen} ({values.source('listen')}) can be reached by others, and there is no cluster key",
            "make one with `pgr key new FILE`, copy it to every member and pass --cluster-key FILE",
        )
    advertise, pg_advertise, http_advertise = _advertised(values, name, listen, peers)
    pg_port = values.get("pg_port", parse_port, 5432)
    http = values.get("http", _http, Address("127.0.0.1", 8008))
    postgres = None if witness else Address(values.get("pg_listen", parse_host, "127.0.0.1"), pg_port)
    _distinct_ports(listen, postgres, http)
    warnings += _peer_warnings(peers, name, listen, None if witness else pg_advertise)
    warnings += _http_warnings(values, http)
    return Config(
        data=data,
        pgdata=values.path("pgdata") or data / "pgdata",
        name=name,
        listen=listen,
        advertise=advertise,
        pg_advertise=pg_advertise,
        http_advertise=http_advertise,
        run=run_directory(data, values.path("run"), pg_port, facts.run_roots),
        peers=peers or (Peer(name, advertise),),
        join=join,
        pg_listen=values.get("pg_listen", parse_host, "127.0.0.1"),
        pg_port=pg_port,
        pg_bin=values.path("pg_bin"),
        http=http,
        http_token_file=values.path("http_token_file"),
        http_tls_cert=values.path("http_tls_cert"),
        http_tls_key=values.path("http_tls_key"),
        http_tls_client_ca=values.path("http_tls_client_ca"),
        http_tls_verify=cast(
            Literal["optional", "required"], values.get("http_tls_verify", parse_choice(VERIFY), "optional")
        ),
        tags=_tags(values, name),
        cluster_key=cluster_key,
        witness=witness,
        watchdog=values.get("watchdog", parse_choice(WATCHDOG_MODES), "automatic"),
        watchdog_device=values.path("watchdog_device") or Path(WATCHDOG_DEVICE),
        profile=cast(Literal["fast", "default", "cloud"], values.get("profile", parse_choice(PROFILES), "default")),
        commit=cast(Literal["quorum", "async"], values.get("commit", parse_choice(COMMITS), "quorum")),
        config_file=file_path if file_text is not None else None,
        user=values.get("user", str, "") or None,
        log_format=cast(
            Literal["text", "json"],
            values.get("log_format", parse_choice(LOG_FORMATS), "text" if facts.stderr_is_tty else "json"),
        ),
        founding=load_founding(file.get("postgres", {}), env, file_path, facts),
        sources={key: values.source(key) for key in KEYS},
        warnings=tuple(warnings),
    )


def _tags(values: Values, name: str) -> Mapping[str, Tag]:
    tags = values.get("tags", parse_tags, {})
    if tags.get(REPLICATE_FROM) == name:
        raise UsageError(
            f"the tag {REPLICATE_FROM} ({values.source('tags')}) names {name}, which is this node itself",
            "name another standby, or leave it out to stream from the primary",
        )
    return tags


def _joins(values: Values, name: str, listen: Address) -> Address | None:
    """Whom to ask to be let in; None: this node founds a cluster (or belongs to one already)."""
    join = values.get("join", parse_address, None)
    if join is None or values.beats("peers", "join"):
        return None
    if "peers" in values and not values.beats("join", "peers"):
        raise UsageError(
            f"--join ({values.source('join')}) and --peers ({values.source('peers')}) exclude each other",
            "--peers founds a new cluster, --join asks a running one to let this node in: leave one of them out",
        )
    if listen.is_loopback and "advertise" not in values and not join.is_loopback:
        raise UsageError(
            f"the cluster at {join} ({values.source('join')}) can't reach {listen} ({values.source('listen')})",
            "give --listen an address that the members can dial",
        )
    if join.is_wildcard or join == listen:
        raise UsageError(
            f"--join {join} ({values.source('join')}) is this node itself",
            f"name the consensus address of a member of the cluster that {name} is to join",
        )
    return join


def _http(text: str) -> Address | None:
    return None if text.lower() in ("off", "false", "no") else parse_address(text)


def _advertised(
    values: Values, name: str, listen: Address, peers: Sequence[Peer]
) -> tuple[Address, Address, Address | None]:
    """What others dial: the flag, else the listen host, else (that being a wildcard) the consensus host."""
    advertise = values.get("advertise", lambda text: parse_address(text, listen.port), listen)
    if "advertise" not in values and listen.is_wildcard:
        own = [peer.address for peer in peers if peer.name == name]
        if not own:
            raise UsageError(
                f"--listen {listen} ({values.source('listen')}) is every interface, which nobody can dial",
                "say how the others reach this node: --advertise HOST:PORT (or name it in --peers)",
            )
        advertise = own[0]
    pg_listen, pg_port = values.get("pg_listen", parse_host, "127.0.0.1"), values.get("pg_port", parse_port, 5432)
    postgres = Address(advertise.host if is_wildcard(pg_listen) else pg_listen, pg_port)
    postgres = values.get("pg_advertise", lambda text: parse_address(text, pg_port), postgres)
    http: Address | None = values.get("http", _http, Address("127.0.0.1", 8008))
    if http is not None:
        http_port = http.port
        http = Address(advertise.host, http_port) if http.is_wildcard else http
        http = values.get("http_advertise", lambda text: parse_address(text, http_port), http)
    for key, address in (("advertise", advertise), ("pg_advertise", postgres), ("http_advertise", http)):
        if address is not None and address.is_wildcard:
            flag = BY_KEY[key].flag
            raise UsageError(
                f"{flag} {address} ({values.source(key)}) is every interface, which nobody can dial",
                f"give {flag} an address that the others can reach",
            )
    return advertise, postgres, http


def _http_warnings(values: Values, http: Address | None) -> list[str]:
    """Raises `UsageError` where the settings of HTTP do not fit each other."""
    needs = (
        ("http_tls_key", "http_tls_cert", ""), ("http_tls_client_ca", "http_tls_cert", ""),
        ("http_tls_verify", "http_tls_client_ca", "required"),
    )  # fmt: skip
    for key, needed, value in needs:
        given = values.given.get(key)
        if given is not None and needed not in values and value in ("", given.text.strip()):
            flag = BY_KEY[needed].flag
            raise UsageError(f"{BY_KEY[key].flag} ({given.source}) does nothing without {flag}", f"give {flag} too")
    mine = [BY_KEY[key].flag for key in ("http_token_file", "http_tls_cert") if key in values]
    if http is None:
        return [f"{' and '.join(mine)}: there is no HTTP (--http off)"] if mine else []
    if "http_token_file" in values and "http_tls_cert" not in values and not http.is_loopback:
        return [f"tokens go over the network in the clear to {http}: give --http-tls-cert"]
    return []


def _distinct_ports(listen: Address, postgres: Address | None, http: Address | None) -> None:
    taken: list[tuple[str, Address]] = []
    for flag, address in (("--listen", listen), ("--pg-port", postgres), ("--http", http)):
        if address is None:
            continue
        for other_flag, other in taken:
            if other.port == address.port and (other.host == address.host or other.is_wildcard or address.is_wildcard):
                raise UsageError(f"{other_flag} and {flag} both want port {address.port}", f"give {flag} another port")
        taken.append((flag, address))


def _peer_warnings(peers: Sequence[Peer], name: str, listen: Address, postgres: Address | None) -> list[str]:
    found: list[str] = []
    if len(peers) == 1:
        found.append("--peers names this node alone: it will not fail over; three members survive the loss of one")
    elif peers and len(peers) % 2 == 0:
        found.append(
            f"--peers names {len(peers)} members: that survives the loss of {(len(peers) - 1) // 2}, "
            f"no more than {len(peers) - 1} would; an odd number is better"
        )
    elsewhere = [peer.name for peer in peers if peer.name != name and not peer.address.is_loopback]
    if elsewhere and postgres is not None and is_loopback(postgres.host):
        found.append(
            f"Postgres is advertised as {postgres}, which {', '.join(elsewhere)} cannot reach from another machine: "
            "give --pg-listen or --pg-advertise"
        )
    own = next((peer.address for peer in peers if peer.name == name), None)
    if own is not None and listen.is_loopback and not own.is_loopback and elsewhere:
        found.append(f"the others will dial {own} (--peers), and this node listens on {listen} only: give --listen")
    return found


def run_directory(data: Path, given: Path | None, pg_port: int, roots: Sequence[str]) -> Path:
    """Where the sockets lie: `given`, else DATA/run, else a short path under one of `roots` (by hash of DATA).

    Raises `UsageError` if every place makes socket paths longer than the kernel allows.
    """
    if given is not None:
        if socket_excess_bytes(given, pg_port) > 0:
            raise UsageError(
                f"--run {given}: socket paths longer than the kernel allows "
                f"(by {socket_excess_bytes(given, pg_port)} bytes; {SOCKET_PATH_MAX_BYTES} fit)",
                "choose a shorter directory, such as /run/pgr/a",
            )
        return given
    digest = blake2b(data.as_posix().encode(errors="surrogateescape"), digest_size=6).hexdigest()
    for place in (data / "run", *(Path(root) / digest for root in roots)):
        if socket_excess_bytes(place, pg_port) <= 0:
            return place
    raise UsageError(
        f"{data / 'run'}: socket paths longer than the kernel allows, and no shorter place is writable",
        "give a short directory with --run, or let root make /run/pgr for this user",
    )


def socket_excess_bytes(run: Path, pg_port: int) -> int:
    """By how much the longest socket path under `run` misses the kernel's limit; 0 or less fits."""
    longest = max(f"pg/.s.PGSQL.{pg_port}", "watchdog.sock", key=len)
    return len((run / longest).as_posix().encode(errors="surrogateescape")) - SOCKET_PATH_MAX_BYTES
