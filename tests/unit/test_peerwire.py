"""The codec between nodes: every message survives the trip, nothing else gets in."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import peerwire
from consensus.messages import AppendReq, Entry, Hello, PeerMessage, PromiseResp, TimeoutNow, VoteReq, VoteResp
from consensus.peerwire import Envelope, PeerWireError, decode, encode
from consensus.record import EpochStart, NodeRecord, Position

NUMBERS = st.integers(0, peerwire.INT_MAX)
TEXTS = st.text(max_size=20)
NAMES = st.from_regex(r"\A[a-z][a-z0-9_]{0,40}\Z")
CLUSTERS = st.from_regex(r"\A[0-9a-f]{32}\Z").filter(lambda each: each != peerwire.NO_CLUSTER)
MESSAGES = st.one_of(
    *(
        st.builds(kind, **{"epoch": st.integers(-1, peerwire.INT_MAX)} if kind is PromiseResp else {})
        for kind in get_args(PeerMessage)
    )
)
for _kind, _strategy in ((int, NUMBERS), (str, TEXTS)):
    st.register_type_strategy(_kind, _strategy)
ENVELOPES = st.builds(Envelope, CLUSTERS, NAMES, NUMBERS, NUMBERS, st.just("") | NAMES, NUMBERS, MESSAGES)

ID = "ab" * 16


SEVEN = TimeoutNow(7)


def envelope(message: Any = SEVEN, **changes: Any) -> Envelope:
    return Envelope(ID, "a", 1, 2, "b", 3, message)._replace(**changes)


def with_body(body: Any, kind: str = "TimeoutNow") -> bytes:
    """A frame whose header is right for TimeoutNow(7)."""
    whole = encode(envelope())
    return whole[: whole.index(b"{")] + json.dumps({"type": kind, "body": body}).encode()


@given(ENVELOPES)
def test_round_trip(sent: Envelope) -> None:
    got = decode(encode(sent))
    assert got == sent
    assert type(got.message) is type(sent.message)


def test_every_message_class_is_known() -> None:
    assert set(get_args(PeerMessage)) == set(peerwire._MESSAGES.values())


def test_nested_values_have_their_classes() -> None:
    request = AppendReq(3, 1, 9, 4, 2, (Entry(5, 3, "noop/1", "{}"),), 4)
    assert type(decode(encode(envelope(request))).message.entries[0]) is Entry  # type: ignore[union-attr]


@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(PeerWireError):
        decode(data)


@given(st.binary(max_size=200))
def test_random_bytes_after_a_good_beginning(data: bytes) -> None:
    with pytest.raises(PeerWireError):
        decode(encode(envelope())[:74] + data + b"!")


@given(ENVELOPES, st.data())
def test_truncations_and_flipped_bits(sent: Envelope, data: st.DataObject) -> None:
    whole = encode(sent)
    with pytest.raises(PeerWireError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << (bit % 8)
    try:
        got = decode(bytes(flipped))
    except PeerWireError:
        return
    assert decode(encode(got)) == got  # another valid frame; CURVE is what protects content


@pytest.mark.parametrize(
    "body",
    [
        {"term": True}, {"term": 7.0}, {"term": "7"}, {"term": None}, {"term": -1}, {"term": 1 << 63}, {}, [7], 7, None,
        {"term": 7, "more": 1}, {"term": 8},
    ],
)  # fmt: skip
def test_wrong_bodies(body: Any) -> None:
    assert decode(with_body({"term": 7})) == envelope()
    with pytest.raises(PeerWireError):
        decode(with_body(body))


@pytest.mark.parametrize(
    "text",
    [
        b'{"type":"TimeoutNow","body":{"term":7,"term":7}}', b'{"type":"TimeoutNow","body":{"term":NaN}}',
        b'{"type":"TimeoutNow","body":{"term":7},"x":1}', b'{"type":["TimeoutNow"],"body":{"term":7}}',
        b"[" * 100_000, b'{"type":"TimeoutNow","body":{"term":' + b"9" * 10_000 + b"}}", b"\xff\xfe",
    ],
)  # fmt: skip
def test_wrong_json(text: bytes) -> None:
    whole = encode(envelope())
    with pytest.raises(PeerWireError):
        decode(whole[: whole.index(b"{")] + text)


def test_unknown_type_and_version() -> None:
    with pytest.raises(PeerWireError, match="unknown"):
        decode(with_body({"term": 7}, "Teleport"))
    whole = bytearray(encode(envelope()))
    whole[4] += 1
    with pytest.raises(PeerWireError, match="version 2"):
        decode(bytes(whole))


def test_without_a_cluster_only_hello() -> None:
    hello = envelope(Hello(0, "{}"), cluster_id=peerwire.NO_CLUSTER)
    assert decode(encode(hello)) == hello
    with pytest.raises(PeerWireError, match="only a Hello"):
        encode(envelope(cluster_id=peerwire.NO_CLUSTER))
    whole = encode(envelope())
    with pytest.raises(PeerWireError, match="only a Hello"):
        decode(whole[:5] + bytes(16) + whole[21:])


@pytest.mark.parametrize(
    "wrong",
    [
        envelope(cluster_id="AB" * 16), envelope(cluster_id="ab"), envelope(src=""), envelope(src="A"),
        envelope(dst="a" * 42),
        envelope(dst="a\n"), envelope(src_incarnation=-1), envelope(src_boot=1 << 63), envelope(dst_incarnation=True),
        envelope(TimeoutNow(True)), envelope(TimeoutNow(-1)), envelope(VoteReq(1, 2, 3, "\ud800", 4)),
        envelope(Entry(1, 1, "", "")), envelope(Hello(0, "x" * peerwire.FRAME_BYTES_MAX)),
        envelope(AppendReq(3, 1, 9, 4, 2, (Hello(1, ""),), 4)),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_the_sender_is_checked_too(wrong: Envelope) -> None:
    with pytest.raises(PeerWireError):
        encode(wrong)


@pytest.mark.parametrize("cut", [10, 61, 62, 63, 64])
def test_a_frame_that_ends_within_its_header(cut: int) -> None:
    whole = encode(envelope())
    assert whole[61:65] == b"\1a\1b", "where the names are"
    with pytest.raises(PeerWireError, match="shorter than a header" if cut < 61 else "ends within its header"):
        decode(whole[:cut])


def test_too_long() -> None:
    with pytest.raises(PeerWireError, match="at most"):
        decode(bytes(peerwire.FRAME_BYTES_MAX + 1))


@given(st.builds(NodeRecord))
def test_optional_fields_and_lists(record: NodeRecord) -> None:
    assert peerwire.from_plain(NodeRecord, json.loads(json.dumps(peerwire.to_plain(record)))) == record


def test_optional_fields_keep_their_class() -> None:
    record = NodeRecord(1, (EpochStart(0, 0, 1),), Position(0, 5))
    got = peerwire.from_plain(NodeRecord, peerwire.to_plain(record))
    assert type(got.proof) is Position
    assert type(got.history[0]) is EpochStart


@pytest.mark.parametrize(
    ("kind", "plain", "why"),
    [
        (VoteResp, {"term": 1, "granted": 1}, "granted: needs a bool, not a int"),
        (Hello, {"term": 1, "data": None}, "data: needs a str, not a NoneType"),
        (NodeRecord, {"promised": 1, "history": {}, "proof": None, "marker": ""}, "history: needs a list, not a dict"),
    ],
    ids=["bool", "str", "list"],
)
def test_a_field_of_another_type(kind: type[tuple[Any, ...]], plain: dict[str, Any], why: str) -> None:
    with pytest.raises(PeerWireError, match=why):
        peerwire.from_plain(kind, plain)


def test_a_message_class_with_a_field_that_can_not_travel_is_noticed_at_import() -> None:
    with pytest.raises(TypeError, match=r"Hello\.data: fields of type .*float.* cannot travel"):
        peerwire._make_builder(float, "Hello.data", 0)
