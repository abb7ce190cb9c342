"""What travels between nodes: a fixed header, then one JSON object ``{"type": .., "body": {..}}``.

Pure. Every message class of consensus/messages.py is encoded by its field names and checked by its field types, so
that whoever gets an Envelope may rely on every value in it. Header, network order: magic, version u8, cluster id
16 bytes, src incarnation, src boot, dst incarnation, term, round (u64 each), then src and dst (length u8, ASCII).
"""

from __future__ import annotations

import json
import re
import struct
import types
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from consensus.messages import Hello, PeerMessage, type_names, upper_type_names

MAGIC = b"PGR1"
VERSION = 1
FRAME_BYTES_MAX = 4 << 20
"""Of one whole frame; a sender splits entries accordingly, and a snapshot has to fit."""
NO_CLUSTER = "0" * 32
"""The cluster id of a node before its founding: allowed for a Hello only (safety.md, "Founding")."""
INT_MAX = (1 << 63) - 1

_FIXED = struct.Struct("!4sB16sQQQQQ")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}", re.ASCII)
_MESSAGES: dict[str, type[PeerMessage]] = {each.__name__: each for each in (*type_names, *upper_type_names)}
_MINIMUM = {("PromiseResp", "epoch"): -1}
"""Fields that may be lower than 0."""

T = TypeVar("T")


class PeerWireError(ValueError):
    """The frame cannot be sent, or what arrived is no frame of a peer we understand: log it and drop it."""


class Envelope(NamedTuple):
    """One message with its two ends. Header term and round are those of the message (round 0 where it has none)."""

    cluster_id: str
    """32 lower-case hex digits; NO_CLUSTER before the founding."""
    src: str
    src_incarnation: int
    src_boot: int
    """Random for each life of the sending process."""
    dst: str
    """"" if the sender knows an address only."""
    dst_incarnation: int
    """0: unknown to the sender."""
    message: PeerMessage


def encode(envelope: Envelope) -> bytes:
    """The frame as bytes; PeerWireError for a value out of range, a wrong type, or more than FRAME_BYTES_MAX."""
    message = envelope.message
    if _MESSAGES.get(type(message).__name__) is not type(message):
        raise PeerWireError(f"{type(message).__name__} is no message between peers")
    body = to_plain(message)
    from_plain(type(message), body)
    header = _header(envelope)
    text = json.dumps({"type": type(message).__name__, "body": body}, separators=(",", ":"))
    data = header + text.encode("ascii")
    if len(data) > FRAME_BYTES_MAX:
        raise PeerWireError(f"{type(message).__name__} of {len(data)} bytes, at most {FRAME_BYTES_MAX} are allowed")
    return data


def decode(data: bytes) -> Envelope:
    """The envelope in ``data``; PeerWireError for anything malformed, unknown, or of a version we do not speak."""
    if len(data) > FRAME_BYTES_MAX:
        raise PeerWireError(f"frame of {len(data)} bytes, at most {FRAME_BYTES_MAX} are allowed")
    if len(data) < _FIXED.size:
        raise PeerWireError(f"frame of {len(data)} bytes is shorter than a header")
    magic, version, cluster, src_incarnation, src_boot, dst_incarnation, term, round_ = _FIXED.unpack_from(data)
    if magic != MAGIC:
        raise PeerWireError(f"frame begins with {magic!r}, not {MAGIC!r}")
    _check_version(version)
    src, at = _take_name(data, _FIXED.size)
    dst, at = _take_name(data, at)
    message = _decode_message(data[at:])
    envelope = Envelope(cluster.hex(), src, src_incarnation, src_boot, dst, dst_incarnation, message)
    if (term, round_) != (message.term, _round(message)):
        raise PeerWireError(f"header of term {term}, round {round_} does not belong to {type(message).__name__}")
    _header(envelope)
    return envelope


def to_plain(value: Any) -> Any:
    """NamedTuples as JSON objects, tuples as lists, everything else as it is."""
    if isinstance(value, tuple):
        fields: tuple[str, ...] | None = getattr(value, "_fields", None)
        if fields is None:
            return [to_plain(each) for each in value]
        return {name: to_plain(each) for name, each in zip(fields, value, strict=True)}
    return value


def from_plain(kind: type[T], plain: Any) -> T:
    """The NamedTuple ``kind`` in ``plain``, the inverse of to_plain; PeerWireError unless all fields are right."""
    return cast(T, _builder(kind, kind.__name__, 0)(plain))


def loads(data: bytes | str) -> Any:
    """JSON without floats, NaN or doubled keys; PeerWireError otherwise."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return json.loads(text, parse_constant=_refuse, parse_float=_refuse, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise PeerWireError(f"not JSON as we write it: {error}") from error


def _check_version(version: int) -> None:
    """The one place that knows which versions this code speaks: its own (there is no earlier one yet)."""
    if version != VERSION:
        raise PeerWireError(f"frame has version {version}, this node speaks {VERSION}: upgrade the older of the two")


def _header(envelope: Envelope) -> bytes:
    """Checks every part of the header, for both directions."""
    cluster_id = envelope.cluster_id
    if type(cluster_id) is not str or not re.fullmatch(r"[0-9a-f]{32}", cluster_id):
        raise PeerWireError(f"cluster id {cluster_id!r} is not 32 lower-case hex digits")
    if cluster_id == NO_CLUSTER and not isinstance(envelope.message, Hello):
        raise PeerWireError(f"{type(envelope.message).__name__} without a cluster id: only a Hello may do that")
    numbers = (envelope.src_incarnation, envelope.src_boot, envelope.dst_incarnation)
    for number in numbers:
        if type(number) is not int or not 0 <= number <= INT_MAX:
            raise PeerWireError(f"{number!r} is no incarnation or boot id")
    names = b""
    for name, may_be_empty in ((envelope.src, False), (envelope.dst, True)):
        if type(name) is not str or not (_NAME.fullmatch(name) or (may_be_empty and not name)):
            raise PeerWireError(f"{name!r} is no node name")
        names += bytes((len(name),)) + name.encode("ascii")
    message = envelope.message
    return _FIXED.pack(MAGIC, VERSION, bytes.fromhex(cluster_id), *numbers, message.term, _round(message)) + names


def _round(message: PeerMessage) -> int:
    return cast(int, getattr(message, "round", 0))


def _take_name(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + data[at] if at < len(data) else len(data) + 1
    if end > len(data):
        raise PeerWireError("frame ends within its header")
    return data[at + 1 : end].decode("ascii", "replace"), end


def _decode_message(data: bytes) -> PeerMessage:
    whole = loads(data)
    if type(whole) is not dict or set(whole) != {"type", "body"}:
        raise PeerWireError("frame is no object of type and body")
    name = whole["type"]
    kind = _MESSAGES.get(name) if type(name) is str else None
    if kind is None:
        raise PeerWireError(f"message type {str(name)[:60]!r} is unknown to this version")
    return from_plain(kind, whole["body"])


# Builders: one function per type, made once, that checks a JSON value and makes the Python value of it.

_Builder = Callable[[Any], Any]
_builders: dict[tuple[Any, int], _Builder] = {}


def _builder(kind: Any, where: str, minimum: int) -> _Builder:
    found = _builders.get((kind, minimum))
    if found is None:
        found = _builders[kind, minimum] = _make_builder(kind, where, minimum)
    return found


def _make_builder(kind: Any, where: str, minimum: int) -> _Builder:
    if kind is int:
        return lambda value: _integer(value, minimum)
    if kind is str:
        return _string
    if kind is bool:
        return _boolean
    if get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,):
        inner = _builder(get_args(kind)[0], where, 0)
        return lambda value: tuple(inner(each) for each in _of_type(list, value))
    if get_origin(kind) in {Union, types.UnionType} and get_args(kind)[1:] == (type(None),):
        optional = _builder(get_args(kind)[0], where, 0)
        return lambda value: None if value is None else optional(value)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _make_record_builder(kind)
    raise TypeError(f"{where}: fields of type {kind} cannot travel")


def _make_record_builder(kind: Any) -> _Builder:
    hints = get_type_hints(kind)
    name = kind.__name__
    fields = [
        (field, _builder(hints[field], f"{name}.{field}", _MINIMUM.get((name, field), 0))) for field in kind._fields
    ]
    wanted = set(kind._fields)

    def build(value: Any) -> Any:
        if type(value) is not dict or set(value) != wanted:
            raise PeerWireError(f"{name} needs an object of exactly {', '.join(kind._fields)}")
        made = []
        for field, make in fields:
            try:
                made.append(make(value[field]))
            except PeerWireError as error:
                raise PeerWireError(f"{name}.{field}: {error}") from None
        return kind(*made)

    return build


def _integer(value: Any, minimum: int) -> int:
    if type(value) is not int or not minimum <= value <= INT_MAX:
        raise PeerWireError(f"needs an integer from {minimum} to 2**63 - 1")
    return value


def _string(value: Any) -> str:
    text: str = _of_type(str, value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PeerWireError("a lone surrogate is no text") from error
    return text


def _boolean(value: Any) -> bool:
    return cast(bool, _of_type(bool, value))


def _of_type(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise PeerWireError(f"needs a {kind.__name__}, not a {type(value).__name__}")
    return value


def _refuse(text: str) -> NoReturn:
    raise PeerWireError(f"{text[:40]} does not belong here")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise PeerWireError("an object names the same key twice")
    return found


for _kind in _MESSAGES.values():
    _builder(_kind, _kind.__name__, 0)
