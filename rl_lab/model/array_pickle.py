"""Pickles of numpy arrays: written for the released code, and read without running anything in them.

A pickle is a program: it may name any function of any module and call it. Here the few names that a pickle of plain
arrays holds stand for recorders of ours, every other name is refused, and the arrays are made afterwards from the
recorded bytes. So not even numpy sees data that was not checked.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_NUMBER_KINDS = "fiu"
_FAULTS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What unpickling a damaged or hostile file may raise."""


class _Recorder:
    """Stands for a name in a pickle. The class itself takes no state, so a pickle cannot change it either."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state for something that is not an array")


class _ArrayType(_Recorder):
    """numpy.ndarray, which is named only to be passed on."""

    def __init__(self) -> None:
        raise pickle.UnpicklingError("an array without its bytes")


class _Type(_Recorder):
    """numpy.dtype(name, False, True), whose state is (version, byte order, ...)."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name: Any = name
        self.order: Any = "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def real(self) -> np.dtype:
        """The type; UnpicklingError for anything but plain numbers."""
        if not isinstance(self.name, str):
            raise pickle.UnpicklingError("an array without a type")
        found = np.dtype(self.name).newbyteorder(self.order)
        if found.kind not in _NUMBER_KINDS:
            raise pickle.UnpicklingError(f"an array of {found}")
        return found


class _Array(_Recorder):
    """numpy's _reconstruct(ndarray, (0,), b"b"), whose state is (version, shape, dtype, is_fortran, bytes)."""

    def __init__(self, *_: Any) -> None:
        self.content: tuple[Any, Any, Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, raw = state
        self.content = (raw, kind, shape, "F" if is_fortran else "C")

    def real(self) -> np.ndarray:
        """A copy of the array."""
        if self.content is None:
            raise pickle.UnpicklingError("an array without its bytes")
        raw, kind, shape, order = self.content
        if not isinstance(kind, _Type) or not isinstance(raw, bytes | bytearray):
            raise pickle.UnpicklingError("an array that is not plain numbers")
        return np.frombuffer(bytes(raw), kind.real()).reshape(shape, order=order).copy()


class _Buffer(_Array):
    """numpy's _frombuffer(bytes, dtype, shape, order), which protocol 5 uses."""

    def __init__(self, raw: Any, kind: Any, shape: Any, order: Any) -> None:
        self.content = (raw, kind, shape, order)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state for a complete array")


class _Latin1(bytes):
    """_codecs.encode(text, "latin1"), how the oldest protocols write bytes."""

    def __new__(cls, text: str, _: str) -> _Latin1:
        return super().__new__(cls, text.encode("latin1"))

    __setstate__ = _Recorder.__setstate__


_KNOWN = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Latin1,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Buffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of numbers of a pickled dictionary, by name; entries that are None are left out.

    ValueError, in one line, for a file that is damaged or holds, names or calls anything else. Nothing of it was run.
    """
    try:
        with path.open("rb") as file:
            entries = _ArrayUnpickler(file).load()
        if not all(isinstance(name, str) for name in entries):
            raise pickle.UnpicklingError("an entry without a name")
        return {name: value.real() for name, value in entries.items() if value is not None}
    except _FAULTS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"refused to unpickle {path}: only numpy arrays of numbers are read ({reason})") from error


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray | None]) -> None:
    """Write a pickled dictionary of arrays that numpy 1 reads as well: the released code runs there.

    Protocol 3 is the last in which names stand as plain text, so the module that numpy 2 renamed can be put back.
    """
    owned = {name: value if value is None else value.copy() for name, value in arrays.items()}
    written = pickle.dumps(owned, protocol=3)
    path.write_bytes(written.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
