"""Statistics that normalise states and chunks: fitted here, or read from a released checkpoint.

Letters: N samples, H commands of a chunk, C action tokens of the model (H, or 2 H with an absolute half).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rl_lab.model.array_pickle import load_arrays, save_arrays
from rl_lab.model.config import ENCODED_DIM
from rl_lab.stats import Moments

STATS_FILE = "norm_stats.safetensors"
RELEASED_STATS_FILE = "norm_stats.pkl"
STATE_STD_MIN, ACTION_STD_MIN = 1e-4, 1e-5
"""Below these a released statistic counts as constant and its std is replaced by 1."""
READ_STD_MIN = 1e-8
"""No std read from a released file is below this; the released loader has the same floor."""


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


@dataclass(frozen=True)
class ActionStats:
    """Mean and std of states and chunks, under the released names."""

    qpos_mean: np.ndarray
    """[20]."""
    qpos_std: np.ndarray
    """[20]."""
    action_mean: np.ndarray
    """Of chunks relative to their start, per chunk slot, [H, 20]."""
    action_std: np.ndarray
    """[H, 20]."""
    action_mean_abs: np.ndarray | None = None
    """Of absolute chunks, [H, 20]: the model predicts both kinds, the relative chunk first. None: relative only."""
    action_std_abs: np.ndarray | None = None
    """[H, 20]."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        num_slots = self.action_mean.shape[0] if self.action_mean.ndim else 0
        for name, value in given.items():
            expected = (ENCODED_DIM,) if name.startswith("qpos") else (num_slots, ENCODED_DIM)
            if value.shape != expected:
                raise ValueError(f"statistic {name} has shape {value.shape}; expected {expected}")
            _check_numbers(name, value)
        if (self.action_mean_abs is None) != (self.action_std_abs is None):
            raise ValueError("statistics of absolute chunks need both action_mean_abs and action_std_abs")

    @property
    def has_absolute(self) -> bool:
        """Whether chunks have an absolute half."""
        return self.action_mean_abs is not None

    @property
    def num_tokens(self) -> int:
        """Action tokens C that these statistics are for."""
        return len(self.action_mean) * (2 if self.has_absolute else 1)

    @property
    def token_mean(self) -> np.ndarray:
        """Mean of each action token, [C, 20]."""
        return self._tokens(self.action_mean, self.action_mean_abs)

    @property
    def token_std(self) -> np.ndarray:
        """Std of each action token, [C, 20]."""
        return self._tokens(self.action_std, self.action_std_abs)

    def relative_only(self) -> Self:
        """The same without the absolute half."""
        return replace(self, action_mean_abs=None, action_std_abs=None)

    @staticmethod
    def _tokens(relative: np.ndarray, absolute: np.ndarray | None) -> np.ndarray:
        return relative if absolute is None else np.concatenate([relative, absolute])

    @classmethod
    def fit(
        cls,
        states: np.ndarray,
        relative_chunks: np.ndarray,
        std_floor: float = 0.0,
        absolute_chunks: np.ndarray | None = None,
    ) -> Self:
        """Statistics of encoded states [N, 20], relative chunks [N, H, 20] and, if the model predicts them too,
        encoded absolute chunks [N, H, 20]; see `from_moments`.
        """
        arrays = (states, relative_chunks, absolute_chunks)
        state, relative, absolute = (None if rows is None else Moments(rows) for rows in arrays)
        assert state is not None and relative is not None
        return cls.from_moments(state, relative, absolute, std_floor)

    @classmethod
    def from_moments(
        cls, state: Moments, relative: Moments, absolute: Moments | None = None, std_floor: float = 0.0
    ) -> Self:
        """The same of rows that were counted in parts.

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
        """Read what `save` wrote, or a released `norm_stats.pkl` (arrays only, see `array_pickle`).

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
