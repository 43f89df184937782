"""Messages between the lab and a RoboTwin server: framed JSON with arrays beside it. No pickle.

A message is MAGIC, uint32 length of the header, uint64 length of the body (both big-endian), the header (UTF-8 JSON)
and the body. An array stands in the header as {"__array__": [dtype, shape, offset]}, bytes as {"__bytes__": [offset,
length]}; their data lies in the body at that offset, arrays in C order and little-endian.

The lab asks one thing at a time: {"id": n, "method": name, "params": {...}}. The server answers {"id": n, "result":
{...}} or {"id": n, "error": {"kind": one of ERROR_KINDS, "message": str, "detail": traceback or ""}}. The first request
is `hello` with the client's VERSION; a server of another version refuses it. `METHODS` in server.py lists the others.

Read by both interpreters: numpy and the standard library only, Python 3.10 or newer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

VERSION = 2
MAGIC = b"RLRT"
FRAME = struct.Struct(">4sIQ")
MAX_HEADER = 64 << 20
MAX_BODY = 4 << 30
DTYPES = ("|b1", "|u1", "|i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8")
ERROR_KINDS = {
    "protocol": "not a message of this version",
    "bad_request": "the caller's mistake: a wrong name, shape or number",
    "no_episode": "asked before `reset`",
    "rejected_seed": "RoboTwin refuses this seed: unstable scene, or its expert fails on it",
    "raising_seed": "RoboTwin raises an error on this seed, before its episode has begun",
    "unsupported": "RoboTwin cannot do this here",
    "robotwin": "RoboTwin raised something else; see the detail",
}
"""What went wrong, by kind."""


class ProtocolError(RuntimeError):
    """What arrived is no message of this protocol."""


def encode(message: dict) -> bytes:
    """A whole frame; TypeError for values other than JSON's, tuples, bytes and arrays of `DTYPES`."""
    chunks: list[bytes] = []
    size = 0

    def keep(data: bytes) -> int:
        nonlocal size
        chunks.append(data)
        size += len(data)
        return size - len(data)

    header = json.dumps(_pack(message, keep), separators=(",", ":")).encode()
    return b"".join([FRAME.pack(MAGIC, len(header), size), header, *chunks])


def decode(header: bytes, body: bytes) -> dict:
    """The message of a frame's two parts. A message takes no more memory than its body: no two values share a part."""
    try:
        message = _unpack(json.loads(header), _Body(body))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"message cannot be read: {error}") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"message is a {type(message).__name__}, not an object")
    return message


def loads(frame: bytes) -> dict:
    """The message of one whole frame in memory."""
    if len(frame) < FRAME.size:
        raise ProtocolError(f"frame has {len(frame)} bytes, less than its {FRAME.size}-byte head")
    header_size, body_size = _sizes(frame[: FRAME.size])
    if len(frame) != FRAME.size + header_size + body_size:
        raise ProtocolError(f"frame has {len(frame)} of {FRAME.size + header_size + body_size} bytes")
    return decode(frame[FRAME.size : FRAME.size + header_size], frame[FRAME.size + header_size :])


def read(receive: Callable[[int], bytes], max_header: int = MAX_HEADER, max_body: int = MAX_BODY) -> dict:
    """The next message; `receive(n)` returns 1 to n bytes, or none at the end of the stream (EOFError)."""
    header_size, body_size = _sizes(_exactly(receive, FRAME.size), max_header, max_body)
    header = _exactly(receive, header_size)
    return decode(header, _exactly(receive, body_size))


def _sizes(head: bytes, max_header: int = MAX_HEADER, max_body: int = MAX_BODY) -> tuple[int, int]:
    magic, header_size, body_size = FRAME.unpack(head)
    if magic != MAGIC:
        raise ProtocolError(f"frame starts with {magic!r} instead of {MAGIC!r}")
    if header_size > max_header or body_size > max_body:
        raise ProtocolError(f"frame of {header_size} + {body_size} bytes is over {max_header} + {max_body}")
    return header_size, body_size


def _exactly(receive: Callable[[int], bytes], size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = receive(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError(f"the stream ended after {len(data)} of {size} bytes")
        data += part
    return bytes(data)


def _pack(value: Any, keep: Callable[[bytes], int]) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        if array.dtype.str not in DTYPES:
            raise TypeError(f"arrays of {array.dtype} are not sent; use one of {', '.join(DTYPES)}")
        return {"__array__": [array.dtype.str, list(array.shape), keep(array.tobytes())]}
    if isinstance(value, (bytes, bytearray)):
        return {"__bytes__": [keep(bytes(value)), len(value)]}
    if isinstance(value, dict):
        if not all(isinstance(key, str) and not key.startswith("__") for key in value):
            raise TypeError(f"keys must be strings without leading __: {list(value)}")
        return {key: _pack(item, keep) for key, item in value.items()}
    if isinstance(value, tuple):
        return {"__tuple__": [_pack(item, keep) for item in value]}
    if isinstance(value, list):
        return [_pack(item, keep) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} is not sent; use plain values and arrays")


class _Body:
    """The bytes beside a header, each of which may be taken once."""

    def __init__(self, data: bytes) -> None:
        self.data, self.left = data, len(data)

    def part(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > len(self.data):
            raise ValueError(f"bytes {offset} to {offset + length} of a body of {len(self.data)}")
        self.left -= length
        if self.left < 0:
            raise ValueError(f"more values than a body of {len(self.data)} bytes has")
        return self.data[offset : offset + length]


def _unpack(value: Any, body: _Body) -> Any:
    if isinstance(value, list):
        return [_unpack(item, body) for item in value]
    if not isinstance(value, dict):
        return value
    if "__array__" in value:
        dtype, shape, offset = value["__array__"]
        if dtype not in DTYPES:
            raise ValueError(f"array of {dtype!r}")
        if any(n < 0 for n in shape) or offset < 0:
            raise ValueError("array with a negative size")
        count = 1
        for n in shape:
            count *= n
        data = body.part(offset, count * np.dtype(dtype).itemsize)
        array = np.frombuffer(data, dtype=dtype).reshape(shape).copy()
        return array if shape else array[()]
    if "__bytes__" in value:
        return body.part(*value["__bytes__"])
    if "__tuple__" in value:
        return tuple(_unpack(item, body) for item in value["__tuple__"])
    return {key: _unpack(item, body) for key, item in value.items()}
