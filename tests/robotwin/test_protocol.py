"""Messages cross unchanged, and what is no message is refused."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from envs.robotwin import protocol

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda key: not key.startswith("__")), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from("abc"), PLAIN))
def test_plain_values_cross_unchanged(message):
    assert protocol.loads(protocol.encode(message)) == message


@given(arrays.arrays(st.sampled_from(["u1", "<i8", ">f4", "f8", "?"]), arrays.array_shapes(min_dims=0, min_side=0)))
def test_arrays_cross_unchanged_in_any_byte_order(array):
    got = protocol.loads(protocol.encode({"x": array}))["x"]
    assert got.shape == array.shape
    np.testing.assert_array_equal(got, array)


def test_tuples_and_random_states_cross_unchanged():
    state = np.random.RandomState(3).get_state()
    got = protocol.loads(protocol.encode({"x": state}))["x"]
    other = np.random.RandomState(0)
    other.set_state(got)
    assert isinstance(got, tuple) and other.randint(1000) == np.random.RandomState(3).randint(1000)


def test_messages_are_read_from_a_stream_that_gives_few_bytes_at_a_time():
    frame = protocol.encode({"x": np.arange(10), "y": b"abc"})
    stream = io.BytesIO(frame * 2)
    for _ in range(2):
        assert protocol.read(lambda size: stream.read(min(size, 3)))["y"] == b"abc"
    with pytest.raises(EOFError):
        protocol.read(stream.read)


@pytest.mark.parametrize("value", [object(), {1: 2}, {"__array__": 1}, np.array(["a"]), np.array([object()])])
def test_what_cannot_be_sent_is_refused_by_the_sender(value):
    with pytest.raises(TypeError):
        protocol.encode({"x": value})


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"x": {"__array__": ["|O", [1], 0]}}',
        b'{"x": {"__array__": ["<f8", [2], 0]}}',
        b'{"x": {"__array__": ["<f8", [-1], 0]}}',
        b'{"x": {"__bytes__": [0, 9]}}',
        b'{"x": {"__bytes__": [-1, 1]}}',
        b'{"x": {"__array__": ["<f8", [0, 1180591620717411303424], 0]}}',
        b'{"x": {"__array__": ["|u1", ["8"], 0]}}',
        b"[" * 100_000,
        b'{"x": ' * 100_000,
        b'{"x": [{"__bytes__": [0, 8]}, {"__bytes__": [0, 8]}]}',
    ],
)
def test_a_header_that_lies_about_its_body_is_refused(header):
    with pytest.raises(protocol.ProtocolError):
        protocol.decode(header, b"12345678")


def test_frames_of_something_else_or_cut_short_are_refused():
    frame = protocol.encode({"x": 1})
    for bad in (b"HTTP" + frame[4:], frame[:-1], frame[:5], protocol.FRAME.pack(b"RLRT", 1 << 31, 0) + b"{}"):
        with pytest.raises(protocol.ProtocolError):
            protocol.loads(bad)
