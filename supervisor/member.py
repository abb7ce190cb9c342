"""What this node is to the cluster: what its Raft child is told, whether the log agrees, the key for those who join."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from consensus.cluster import canonical
from consensus.keys import derived_key_text, founding_seed
from consensus.membership import VOTER, WITNESS
from consensus.tags import of
from fencing.logs import utc_now
from supervisor import files, preflight
from supervisor.config import Config
from supervisor.errors import RefusedError
from supervisor.roles import Local, View


def raft_arguments(
    config: Config, mark: Mapping[str, Any], adopts: str, brings: str = "{}", unfit: tuple[int, str, str] | None = None
) -> dict[str, Any]:
    """The fields of `RaftChild` (consensus/process.py). ``mark``: of PGDATA (rebuild.read_mark); ``adopts``: the system
    identifier of one that is to be brought in, ``brings``: what comes with it,
    ``unfit``: why it cannot be."""
    founding = config.founding
    rules = {"hba": list(founding.hba), "ident": list(founding.ident)}
    settings = {"parameters": dict(founding.parameters), "superuser": founding.superuser} | rules
    return {
        "raft_dir": str(config.raft_dir), "run_dir": str(config.run), "name": config.name,
        "listen": list(config.listen), "raft_address": str(config.advertise),
        "postgres_address": "" if config.witness else str(config.pg_advertise),
        "http_address": str(config.http_advertise or ""),
        "peers": {p.name: list(p.address) for p in config.peers},
        "join": list(config.join) if config.join is not None else None,
        "role": WITNESS if config.witness else VOTER,
        "key_file": str(config.cluster_key or (config.key_file if config.key_file.exists() else "")),
        "profile": config.profile, "commit": config.commit,
        "settings": canonical(settings), "pgdata": str(config.pgdata),
        "data_incarnation": int(mark.get("incarnation", 0)), "adopts": adopts, "brings": brings,
        "unfit": list(unfit) if unfit is not None else None,
        "salvage": config.salvage_dir.exists() and any(config.salvage_dir.iterdir()),
        "log_format": config.log_format,
    }  # fmt: skip


def keep_derived_key(config: Config) -> None:
    """Founded on loopback without a key file: whoever joins later needs the key, and can't know the names."""
    if config.cluster_key is None and not config.key_file.exists():
        text = derived_key_text(founding_seed(peer.name for peer in config.peers))
        files.write_atomically(config.key_file, text.encode())


def is_member(view: View, local: Local) -> bool:
    """Does a leader that this process has met know this life of this node? As far as the log here goes."""
    own = view.cluster.member(local.me) if view.cluster is not None else None
    return view.met and own is not None and own.incarnation == view.incarnation


def announce_tags(view: View, config: Config, tell: Callable[[str, dict[str, Any]], object]) -> None:
    """Into the log, until they are there: a leader may be lost with what it was told."""
    cluster, tags = view.cluster, dict(config.tags)
    own = cluster.member(config.name) if cluster is not None else None
    if cluster is None or own is None or own.incarnation != view.incarnation or _same(of(cluster, own.name), tags):
        return
    body = {"node": own.name, "incarnation": own.incarnation, "tags": tags, "at": utc_now()}
    tell("node.propose", {"kind": "tags/1", "body": body})


def _same(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """To Python ``1 == True``, to whoever asks for ``tag_x=true`` not."""
    return canonical(dict(there)) == canonical(dict(here))


def refuse_another_role(view: View, local: Local) -> None:
    """A witness stays one, and so does a node with a Postgres: the others count on it. Raises RefusedError (78)."""
    own = view.cluster.member(local.me) if view.cluster is not None else None
    if own is None or own.incarnation != view.incarnation or own.has_data is not local.witness:
        return
    anew = f"or remove it (pgr member remove {own.name}) and let it join anew, with an empty data directory"
    if local.witness:
        raise RefusedError(f"{own.name} has a Postgres: it is no witness", f"start it without --witness; {anew}")
    raise RefusedError(f"{own.name} is a witness: it has no Postgres", f"start it with --witness; {anew}")


def refuse_data(config: Config) -> None:
    """Of a witness. Raises RefusedError (78)."""
    if preflight.has_postgres(config.pgdata):
        raise RefusedError(
            f"{config.pgdata} holds a Postgres, and a witness has none",
            f"start it without --witness, or move {config.pgdata} away",
        )
