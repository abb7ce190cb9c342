"""The local bus: one JSON frame ``{"v": 1, "name": str, "id": str, "body": object}`` between processes of one node.

Pure. A client DEALER sends ``[frame]``, a ROUTER receives ``[identity, frame]``. Anything unexpected is refused
here, so that whoever handles a frame may rely on its outer shape; the body is the receiver's to check.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple, NoReturn

VERSION = 1
FRAME_BYTES_MAX = 1 << 20


class WireError(ValueError):
    """The frame cannot be sent, or what arrived is no frame of ours: log it and drop it."""


class Frame(NamedTuple):
    """One message. ``id`` ties an answer to its question ("" where nobody waits for one)."""

    name: str
    id: str
    body: dict[str, Any]


def encode(name: str, body: dict[str, Any], id: str = "") -> bytes:
    """The frame as bytes; WireError for what JSON cannot carry (NaN included), a name of "", or more than 1 MiB."""
    if not name:
        raise WireError("a frame needs a name")
    try:
        text = json.dumps({"v": VERSION, "name": name, "id": id, "body": body}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"frame {name!r} is not JSON: {error}") from error
    if len(text) > FRAME_BYTES_MAX:
        raise WireError(f"frame {name!r} has {len(text)} bytes, at most {FRAME_BYTES_MAX} are allowed")
    return text.encode("ascii")


def decode(data: bytes) -> Frame:
    """The frame in ``data``; WireError for anything malformed."""
    if len(data) > FRAME_BYTES_MAX:
        raise WireError(f"frame of {len(data)} bytes, at most {FRAME_BYTES_MAX} are allowed")
    try:
        whole = json.loads(
            data.decode("utf-8"), parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_without_duplicates
        )
    except (ValueError, RecursionError) as error:
        raise WireError(f"frame is not JSON: {error}") from error
    if type(whole) is not dict:
        raise WireError(f"frame is a JSON {type(whole).__name__}, not an object")
    if set(whole) != {"v", "name", "id", "body"}:
        raise WireError(f"frame has the keys {sorted(whole)}, not body, id, name, v")
    if type(whole["v"]) is not int or whole["v"] != VERSION:
        raise WireError(f"frame has version {whole['v']!r}, this process speaks {VERSION}")
    name, id, body = whole["name"], whole["id"], whole["body"]
    if type(name) is not str or not name:
        raise WireError("frame has no name")
    if type(id) is not str:
        raise WireError(f"frame {name!r} has an id that is no string")
    if type(body) is not dict:
        raise WireError(f"frame {name!r} has a body that is no object")
    return Frame(name, id, body)


def _refuse(constant: str) -> NoReturn:
    raise WireError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise WireError(f"{text} is no finite number")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError("an object names the same key twice")
    return found
