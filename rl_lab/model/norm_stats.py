"""Statistics that normalise states and chunks: fitted here, or read from a released checkpoint.

Released ones are a pickle of numpy arrays, which is written for the released code, and read without running anything in
it. A pickle is a program: it may name any function of any module and call it. Here the few names that a pickle of plain
arrays holds stand for recorders of ours, every other name is refused, and the arrays are made afterwards from the
recorded bytes. So not even numpy sees data that was not checked.

Letters: N samples, H commands of a chunk, C action tokens of the model (H, or 2 H with an absolute half), E numbers of
an encoded state, D of an encoded command (`envs.types.Layout`).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from envs.types import Layout
from rl_lab.common.moments import Moments

STATS_FILE = "norm_stats.safetensors"

RELEASED_STATS_FILE = "norm_stats.pkl"

STATE_STD_MIN, ACTION_STD_MIN = 1e-4, 1e-5
"""Below these a released statistic counts as constant and its std is replaced by 1."""

READ_STD_MIN = 1e-8
"""No std read from a released file is below this; the released loader has the same floor."""


@dataclass(frozen=True)
class ActionStats:
    """Mean and std of states and chunks, under the released names."""

    qpos_mean: np.ndarray
    """Of encoded states, [E]; 20 of two arms."""
    qpos_std: np.ndarray
    """[E]."""
    action_mean: np.ndarray
    """Of chunks relative to their start, per chunk slot, [H, D]."""
    action_std: np.ndarray
    """[H, D]."""
    action_mean_abs: np.ndarray | None = None
    """Of absolute chunks, [H, D]: the model predicts both kinds, the relative chunk first. None: relative only."""
    action_std_abs: np.ndarray | None = None
    """[H, D]."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            like, num_axes = ("qpos_mean", 1) if name.startswith("qpos") else ("action_mean", 2)
            expected = given[like].shape
            if value.ndim != num_axes or value.shape != expected:
                axes = str(expected) if len(expected) == num_axes else f"{num_axes} axes"
                raise ValueError(f"statistic {name} has shape {value.shape}; expected {axes}")
            _check_numbers(name, value)
        if (self.action_mean_abs is None) != (self.action_std_abs is None):
            raise ValueError("statistics of absolute chunks need both action_mean_abs and action_std_abs")

    @property
    def has_absolute(self) -> bool:
        """Whether chunks have an absolute half."""
        return self.action_mean_abs is not None

    def fit(self, layout: Layout) -> bool:
        """Whether they are of states and commands of a layout."""
        return (len(self.qpos_mean), self.action_mean.shape[1]) == (layout.encoded_state_dim, layout.encoded_action_dim)

    @property
    def num_tokens(self) -> int:
        """Action tokens C that these statistics are for."""
        return len(self.action_mean) * (2 if self.has_absolute else 1)

    @property
    def token_mean(self) -> np.ndarray:
        """Mean of each action token, [C, D]."""
        return self._tokens(self.action_mean, self.action_mean_abs)

    @property
    def token_std(self) -> np.ndarray:
        """Std of each action token, [C, D]."""
        return self._tokens(self.action_std, self.action_std_abs)

    def relative_only(self) -> Self:
        """The same without the absolute half."""
        return replace(self, action_mean_abs=None, action_std_abs=None)

    @staticmethod
    def _tokens(relative: np.ndarray, absolute: np.ndarray | None) -> np.ndarray:
        return relative if absolute is None else np.concatenate([relative, absolute])

    @classmethod
    def from_moments(
        cls, state: Moments, relative: Moments, absolute: Moments | None = None, std_floor: float = 0.0
    ) -> Self:
        """Statistics of encoded states [E], relative chunks [H, D] and, if the model predicts them too, encoded
        absolute chunks [H, D], of which these are the moments.

        With `std_floor` 0 the released rule applies (nearly constant numbers get std 1); else no std is below the
        floor, which keeps numbers that hardly vary from being blown up to the size of real motion.
        """
        found = {
            "qpos_mean": state.mean,
            "qpos_std": _std(state, STATE_STD_MIN, std_floor),
            "action_mean": relative.mean,
            "action_std": _std(relative, ACTION_STD_MIN, std_floor),
        }
        if absolute is not None:
            found["action_mean_abs"] = absolute.mean
            found["action_std_abs"] = _std(absolute, ACTION_STD_MIN, std_floor)
        return cls(**found)

    def save(self, path: Path) -> None:
        """Write as safetensors, or as the pickle that the released code's deployment looks for (`.pkl`)."""
        found = {name: np.ascontiguousarray(value) for name, value in vars(self).items() if value is not None}
        if path.suffix == ".pkl":
            save_arrays(path, found | {"first_frame": None})
        else:
            save_file(found, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote, or a released `norm_stats.pkl` (arrays only, see `load_arrays`).

        ValueError for a file that is neither, or that lacks a statistic or has one of another shape, one that is not
        finite, or a width that is not positive.
        """
        released = path.suffix == ".pkl"
        arrays = load_arrays(path) if released else _load_tensors(path)
        known = {name: arrays[name] for name in (item.name for item in fields(cls)) if name in arrays}
        missing = sorted({"qpos_mean", "qpos_std", "action_mean", "action_std"} - known.keys())
        if missing:
            raise ValueError(f"{path} lacks the statistics {', '.join(missing)}")
        if released:  # its constant numbers may have a width of 0, but none has a negative one
            known = {key: _floored(value) if "_std" in key else value for key, value in known.items()}
        try:
            return cls(**known)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """The statistics of a checkpoint folder, in our file or in the released one; None if it has neither."""
        paths = [path for name in (STATS_FILE, RELEASED_STATS_FILE) if (path := Path(folder) / name).is_file()]
        return cls.load(paths[0]) if paths else None


def _std(moments: Moments, least: float, floor: float) -> np.ndarray:
    return np.maximum(moments.std, floor) if floor else np.where(moments.std < least, 1.0, moments.std)


def _floored(std: np.ndarray) -> np.ndarray:
    return np.where((std >= 0) & (std < READ_STD_MIN), READ_STD_MIN, std).astype(std.dtype)


def _load_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError, KeyError, TypeError) as error:  # the last two: types that numpy lacks
        raise ValueError(f"{path} is damaged: {error}; copy it again") from error
    for name, value in arrays.items():
        if value.dtype.kind != "f":
            raise ValueError(f"{path}: statistic {name} is of type {value.dtype}; expected floats")
    return arrays


def _check_numbers(name: str, values: np.ndarray) -> None:
    """ValueError, naming the first of them, for numbers that are not finite, and for widths that are not positive."""
    bad = ~np.isfinite(values) if "_mean" in name else ~(np.isfinite(values) & (values > 0))
    if bad.any():
        place = tuple(np.argwhere(bad)[0].tolist())
        wanted = "a finite number" if "_mean" in name else "a finite number above 0, by which states are divided"
        raise ValueError(
            f"statistic {name} is {values[place]} at {list(place)} ({bad.sum()} such); expected {wanted}; fit the "
            "statistics again, or copy the file again"
        )


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
