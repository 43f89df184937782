"""Where the objects of a still life stand: one function a layout, footprints never overlapping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

X_M, Y_M = (-0.26, 0.24), (-0.19, 0.22)
"""The part of the table that the head camera sees well, m."""
GAP_M = 0.015
"""Least distance between two footprints."""
PER_ROW = 4
TRIES = 60
HOME_REGION = np.array([[X_M[0], Y_M[0]], [X_M[1], Y_M[1]]])


def scatter(rng: np.random.Generator, number: int) -> np.ndarray:
    """Anywhere."""
    return rng.uniform(HOME_REGION[0], HOME_REGION[1], (number, 2))


def row(rng: np.random.Generator, number: int) -> np.ndarray:
    """One line along the table, or two behind each other, a little uneven."""
    num_rows = -(-number // PER_ROW)
    per_row = -(-number // num_rows)
    x = np.tile(np.linspace(*X_M, per_row), num_rows)[:number]
    y = np.repeat(rng.uniform(-0.12, 0.0) + 0.16 * np.arange(num_rows), per_row)[:number]
    return np.stack([x, y], axis=1)[rng.permutation(number)] + rng.uniform(-0.025, 0.025, (number, 2))


def cluster(rng: np.random.Generator, number: int) -> np.ndarray:
    """Around one place."""
    centre = rng.uniform([-0.12, -0.06], [0.12, 0.1])
    return centre + rng.normal(scale=0.1, size=(number, 2))


def ring(rng: np.random.Generator, number: int) -> np.ndarray:
    """On a circle at even angles."""
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * rng.permutation(number) / number
    radius = rng.uniform(0.12, 0.19)
    centre = rng.uniform([-0.05, -0.01], [0.05, 0.04])
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def diagonal(rng: np.random.Generator, number: int) -> np.ndarray:
    """From one corner of the table to the opposite one, a little uneven."""
    along = np.linspace(-1.0, 1.0, number)[rng.permutation(number)]
    side = rng.choice([-1.0, 1.0])
    line = np.stack([0.24 * along, 0.015 + 0.19 * side * along], axis=1)
    return line + rng.uniform(-0.03, 0.03, (number, 2))


LAYOUTS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    function.__name__: function for function in (scatter, row, cluster, ring, diagonal)
}


def place(rng: np.random.Generator, layout: str, radii_m: Sequence[float], keep_clear: np.ndarray) -> np.ndarray | None:
    """Centres [N, 2] of N footprints apart from each other and from circles [M, 3] (x, y, radius); None if crowded.

    An object that does not fit where the layout puts it is drawn again alone, with the layout's other places kept.
    """
    placed = keep_clear.reshape(-1, 3)
    wanted = LAYOUTS[layout](rng, len(radii_m))
    for number, radius in enumerate(radii_m):
        for _ in range(TRIES):
            if _fits(wanted[number], radius, placed):
                break
            wanted[number] = LAYOUTS[layout](rng, len(radii_m))[number]
        else:
            return None
        placed = np.concatenate([placed, [[*wanted[number], radius]]])
    return wanted


def _fits(xy: np.ndarray, radius: float, placed: np.ndarray) -> bool:
    inside = (xy >= HOME_REGION[0] - 0.02).all() and (xy <= HOME_REGION[1] + 0.02).all()
    distance = np.linalg.norm(placed[:, :2] - xy, axis=1)
    return bool(inside and (distance > placed[:, 2] + radius + GAP_M).all())
