"""The cluster state as text, for snapshots and for the bus, and back; also from the text of older versions. Pure."""

from __future__ import annotations

import json
from typing import Any

from consensus import clusterwide, operations, retiming
from consensus.cluster import (
    FEATURE_LEVEL,
    Change,
    ClusterState,
    Grant,
    Reinit,
    Seat,
    UnknownEntryError,
    Veto,
    canonical,
    group_from,
)
from consensus.former import Former, Left
from consensus.history import HistoryEvent
from consensus.membership import Member
from consensus.record import EpochStart, Position
from consensus.tags import Tagged


def dump(state: ClusterState) -> str:
    """Canonical JSON, for snapshots and for the bus."""
    plain = {name: getattr(state, name) for name in ClusterState.__slots__}
    return canonical(plain | {"pace": retiming.plain(state.pace), "level": FEATURE_LEVEL})


def load(data: str) -> ClusterState:
    """Inverse of `dump`. Raises `UnknownEntryError` for a state of a newer version."""
    body: dict[str, Any] = json.loads(data)
    if body.pop("level") > FEATURE_LEVEL:
        raise UnknownEntryError("the cluster state was written by a newer version")
    body["members"] = tuple(Member(*m) for m in body["members"])
    mode, change = body["commit_mode"], body["change"]
    body["group"] = group_from(body["group"], mode)
    if change is not None:
        body["change"] = Change(change[0], group_from(change[1], mode), group_from(change[2], mode))
    if "config" not in body:  # a snapshot of level 1
        body["config"] = canonical(clusterwide.founded(mode, json.loads(body["settings"])))
    body["removed"] = tuple(Seat(*seat) for seat in body["removed"])
    body["fenced"] = tuple(body.get("fenced", ()))
    body["reinits"] = tuple(Reinit(Seat(*seat), *rest) for seat, *rest in body.get("reinits", ()))
    body["vetoes"] = tuple(Veto(Seat(*seat), *rest) for seat, *rest in body.get("vetoes", ()))
    body["tagged"] = tuple(Tagged(Seat(*seat), text) for seat, text in body.get("tagged", ()))
    body["former"] = tuple(Former(f[0], tuple(Left(*one) for one in f[1]), *f[2:]) for f in body.get("former", ()))
    body["pace"] = retiming.load(body.get("pace"), str(body["profile"]))
    body["ops"] = operations.load(body.get("ops"))
    body["grants"] = tuple(
        Grant(g[0], g[1], Position(*g[2]), g[3], tuple(EpochStart(*e) for e in g[4]), *g[5:])
        for g in body["grants"]
    )
    body["history"] = tuple(HistoryEvent(*h) for h in body["history"])
    return ClusterState(**body)
