"""Masks as run lengths: {"size": [h, w], "counts": [..]}, row by row from the top left, the first run being zeros."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewards.answers import COORDINATE_MAX
from rewards.truth import shown

MAX_PIXELS = 1 << 24
"""A larger mask is an error in the data."""


def decode_mask(mask: Any) -> np.ndarray:
    """bool [h, w] with at least one pixel set. ValueError if the runs do not fill the size or set nothing."""
    try:
        height, width = (int(side) for side in mask["size"])
        counts = np.asarray(mask["counts"], dtype=np.int64)
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f'the mask {shown(mask)} is not {{"size": [h, w], "counts": [..]}}') from error
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"the mask is {height} x {width} pixels; it must have 1 to {MAX_PIXELS}")
    if counts.ndim != 1 or np.any(counts < 0) or np.any(counts > MAX_PIXELS) or counts.sum() != height * width:
        raise ValueError(f"the runs of the mask do not add up to its {height} x {width} pixels: {shown(mask)}")
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    if not pixels.any():
        raise ValueError(f"the mask of {height} x {width} pixels is empty, so no point can hit it")
    return pixels


def encode_mask(pixels: np.ndarray) -> dict[str, list[int]]:
    """Run lengths of a bool [h, w] mask, for writing ground truths."""
    flat = np.asarray(pixels, dtype=bool).ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return {"size": [int(side) for side in pixels.shape], "counts": counts.tolist()}


def distance_to_mask(pixels: np.ndarray, x: float, y: float) -> float:
    """From a point to the nearest set pixel of a bool [h, w], all in 0..1000; 0 inside. A pixel is a closed square."""
    rows, columns = np.nonzero(pixels)
    above, right = (_outside(y, rows, pixels.shape[0]), _outside(x, columns, pixels.shape[1]))
    return float(np.sqrt((above**2 + right**2).min()))


def _outside(value: float, cells: np.ndarray, num_cells: int) -> np.ndarray:
    """How far a coordinate lies outside each cell of its axis."""
    side = COORDINATE_MAX / num_cells
    return np.maximum(np.maximum(cells * side - value, value - (cells + 1) * side), 0.0)
