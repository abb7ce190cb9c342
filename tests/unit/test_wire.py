"""The local bus frame: what is sent comes back, and nothing else is let in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencing.wire import FRAME_BYTES_MAX, Frame, WireError, decode, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=4), st.text())
def test_what_is_encoded_is_decoded(name: str, body: dict[str, object], id: str) -> None:
    assert decode(encode(name, body, id)) == Frame(name, id, body)


@given(st.binary())
def test_any_bytes_are_a_frame_or_a_wire_error(data: bytes) -> None:
    try:
        decode(data)
    except WireError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"nonsense",
        b"[]",
        b"null",
        b'"text"',
        b'{"v":1,"name":"a","id":""}',
        b'{"v":1,"name":"a","body":{}}',
        b'{"v":1,"id":"","body":{}}',
        b'{"name":"a","id":"","body":{}}',
        b'{"v":2,"name":"a","id":"","body":{}}',
        b'{"v":true,"name":"a","id":"","body":{}}',
        b'{"v":1.0,"name":"a","id":"","body":{}}',
        b'{"v":1,"name":"","id":"","body":{}}',
        b'{"v":1,"name":7,"id":"","body":{}}',
        b'{"v":1,"name":"a","id":null,"body":{}}',
        b'{"v":1,"name":"a","id":"","body":[]}',
        b'{"v":1,"name":"a","id":"","body":{},"more":1}',
        b'{"v":1,"name":"a","id":"","body":{"x":NaN}}',
        b'{"v":1,"name":"a","id":"","body":{"x":-Infinity}}',
        b'{"v":1,"name":"a","id":"","body":{"x":1e999}}',
        b'{"v":1,"name":"a","id":"","body":{"x":1,"x":2}}',
        b'{"v":1,"name":"a","id":"","body":{}} trailing',
        b'{"v":1,"name":"a","id":"","body":{"x":' + b"9" * 5000 + b"}}",
        b"[" * 100_000,
        b'{"v":1,"name":"a","id":"","body":{"x":"' + b"y" * FRAME_BYTES_MAX + b'"}}',
    ],
    ids=lambda data: data[:44],
)
def test_malformed_frames_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": float("inf")}, {"x": b""}, {"x": "y" * FRAME_BYTES_MAX}])
def test_what_cannot_be_carried_is_refused_by_the_sender(body: dict[str, object]) -> None:
    with pytest.raises(WireError):
        encode("a", body)


def test_a_frame_needs_a_name() -> None:
    with pytest.raises(WireError):
        encode("", {})
