"""Reward of a path in the image: discrete Frechet and DTW similarity plus agreement of the end points.

Distances in image diagonals, as in `rewards.grounding`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rewards.answers import parse_groups
from rewards.config import TrajectoryConfig
from rewards.grounding import DIAGONAL, spread
from rewards.truth import true_coordinates


def trajectory_reward(answer: str, truth: Any, config: TrajectoryConfig) -> float:
    """`trajectory`: m (w_f exp(-F/scale) + w_d exp(-D/scale) + w_e exp(-E/endpoint_scale)) / (w_f + w_d + w_e).

    F, D: discrete Frechet and DTW distance of both paths, each resampled to `waypoints` points evenly along its length;
    E: distance of the last points; m: see `spread`. Direction counts. 0 for an answer without points.
    """
    target = true_coordinates(truth, 2)
    found = parse_groups(answer, 2)
    if not found:
        return 0.0
    path = np.array(found)
    distance = path_distances(resample(path, config.waypoints), resample(target, config.waypoints))
    similarity = config.endpoint_weight * math.exp(-float(distance[-1, -1]) / config.endpoint_scale)
    similarity += config.frechet_weight * math.exp(-discrete_frechet(distance) / config.scale)
    similarity += config.dtw_weight * math.exp(-dtw(distance) / config.scale)
    weights = config.frechet_weight + config.dtw_weight + config.endpoint_weight
    return spread(path, target) * min(similarity / weights, 1.0)


def path_distances(path: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distance of each pair of waypoints in image diagonals, [N, M], of paths [N, 2] and [M, 2]."""
    return np.linalg.norm(path[:, None] - other[None], axis=-1) / DIAGONAL


def resample(path: np.ndarray, num_points: int) -> np.ndarray:
    """`num_points` points evenly along the length of a polyline [N, 2], both ends kept; [num_points, 2]."""
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    moved = np.concatenate([[True], steps > 0])
    length = np.concatenate([[0.0], np.cumsum(steps)])
    places = np.linspace(0.0, length[-1], num_points)
    return np.stack([np.interp(places, length[moved], path[moved, axis]) for axis in range(2)], axis=1)


def discrete_frechet(distance: np.ndarray) -> float:
    """Discrete Frechet distance (Eiter and Mannila 1994) from pairwise distances [N, M].

    c[i, j] = max(d[i, j], min(c[i-1, j], c[i, j-1], c[i-1, j-1])): the longest leash of the best joint walk.
    """
    return _warp(distance, lambda here, before: max(here, before))


def dtw(distance: np.ndarray) -> float:
    """Dynamic time warping from pairwise distances [N, M], over max(N, M) so that it is a distance of a waypoint.

    c[i, j] = d[i, j] + min(c[i-1, j], c[i, j-1], c[i-1, j-1]). At most the mean distance of waypoints with one index.
    """
    return _warp(distance, lambda here, before: here + before) / max(distance.shape)


def _warp(distance: np.ndarray, combine: Any) -> float:
    previous: list[float] = []
    for number, row in enumerate(distance.tolist()):
        current: list[float] = []
        for j, here in enumerate(row):
            options = ([previous[j]] if number else []) + ([current[j - 1]] if j else [])
            options += [previous[j - 1]] if number and j else []
            current.append(combine(here, min(options)) if options else here)
        previous = current
    return previous[-1]
