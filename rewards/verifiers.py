"""The reward of an answer against its ground truth, by the item's `reward_type`, and of the reply's outer form.

Coordinates are 0..1000 per axis, distances in image diagonals, 1000 sqrt 2: an image that is not square is measured as
if stretched to a square, since its sides are not part of an answer. Masks are run lengths: {"size": [h, w], "counts":
[..]}, row by row from the top left, the first run being zeros.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from envs.options import suggestion
from rewards.answers import (
    COORDINATE_MAX,
    OWN_TRUTH,
    REWARD_TYPES,
    answer_text,
    decode_truth,
    parse_choice,
    parse_count,
    parse_groups,
    parse_number,
    parse_ordering,
    parse_yes_no,
    shown,
    true_boxes,
    true_coordinates,
    true_count,
    true_number,
    true_ordering,
    true_word,
)
from rewards.config import BoxesConfig, CountConfig, DistanceConfig, NumberConfig, RewardConfig, TrajectoryConfig

DIAGONAL = COORDINATE_MAX * math.sqrt(2)
"""Of the image, in which distances are measured."""


def verifier_reward(text: str, answer: Any, reward_type: str, config: RewardConfig) -> float | None:
    """Reward of a completion's text by the formula of its type; None for `open`. An answer that does not parse gets 0.

    ValueError for an unknown type and for a ground truth that does not fit it, also if the answer does not parse.
    """
    check_reward_type(reward_type)
    if reward_type in ("open", OWN_TRUTH):
        return None
    return VERIFIERS[reward_type](answer_text(text) or "", decode_truth(answer, reward_type), config)


def check_reward_type(reward_type: Any) -> None:
    """ValueError with the nearest known type for an unknown one."""
    if reward_type not in (*REWARD_TYPES, OWN_TRUTH):
        raise ValueError(f"unknown reward type {reward_type!r}{suggestion(str(reward_type), REWARD_TYPES)}")


VERIFIERS: dict[str, Callable[[str, Any, RewardConfig], float]] = {
    "box": lambda answer, truth, config: box_reward(answer, truth),
    "boxes": lambda answer, truth, config: boxes_reward(answer, truth, config.boxes),
    "point": lambda answer, truth, config: point_reward(answer, truth, config.point),
    "points": lambda answer, truth, config: points_reward(answer, truth, config.points),
    "trajectory": lambda answer, truth, config: trajectory_reward(answer, truth, config.trajectory),
    "number": lambda answer, truth, config: number_reward(answer, truth, config.number),
    "count": lambda answer, truth, config: count_reward(answer, truth, config.count),
    "choice": lambda answer, truth, config: choice_reward(answer, truth),
    "yes_no": lambda answer, truth, config: yes_no_reward(answer, truth),
    "ordering": lambda answer, truth, config: ordering_reward(answer, truth),
}
"""Formula of every reward type but `open`: of the answer's text ("" without one), the ground truth, the constants."""


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair, [N, M], of boxes [N, 4] and [M, 4]; 0 for a box without area."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = np.prod(np.maximum(high - low, 0.0), axis=-1)
    area, other_area = (np.prod(np.maximum(b[:, 2:] - b[:, :2], 0.0), axis=-1) for b in (boxes, others))
    union = area[:, None] + other_area[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=(overlap > 0) & (union > 0))


def box_reward(answer: str, truth: Any) -> float:
    """`box`: IoU of the one box of the answer with the true [xmin, ymin, xmax, ymax]; 0 unless it has exactly one."""
    target = true_boxes([truth])
    found = parse_groups(answer, 4)
    return float(box_iou(np.array(found), target)[0, 0]) if found and len(found) == 1 else 0.0


def boxes_reward(answer: str, truth: Any, config: BoxesConfig) -> float:
    """`boxes`: sum of IoU over the best matching / (K + missing_penalty * missing + extra_penalty * extra).

    One-to-one; K = min(answered, true) pairs; `missing` true and `extra` answered boxes are left over. With both
    penalties 1 the denominator is max(answered, true).
    """
    target = true_boxes(truth)
    found = parse_groups(answer, 4)
    if not found:
        return 0.0
    iou = box_iou(np.array(found), target)
    matched = float(iou[best_assignment(iou)].sum())
    missing, extra = max(len(target) - len(found), 0), max(len(found) - len(target), 0)
    pairs = min(len(found), len(target))
    return min(matched / (pairs + config.missing_penalty * missing + config.extra_penalty * extra), 1.0)


def point_reward(answer: str, truth: Any, config: DistanceConfig) -> float:
    """`point`: exp(-d / scale), d from the one point of the answer to the target in diagonals; so 1 inside a mask.

    `truth` is {"point": [x, y]} and/or {"mask": run lengths}, or [x, y]. The target is the
    mask's pixels and the point together: the nearest counts. 0 unless the answer has exactly one point.
    """
    target = truth if isinstance(truth, Mapping) else {"point": truth}
    distances = []
    found = parse_groups(answer, 2)
    x, y = found[0] if found and len(found) == 1 else (math.nan, math.nan)
    if target.get("point") is not None:
        true_x, true_y = true_coordinates([target["point"]], 2)[0]
        distances.append(math.hypot(x - true_x, y - true_y))
    if target.get("mask") is not None:
        distances.append(distance_to_mask(decode_mask(target["mask"]), x, y))
    if not distances:
        raise ValueError(f"the ground truth {shown(truth)} has neither a point nor a mask")
    return 0.0 if math.isnan(x) else math.exp(-min(distances) / DIAGONAL / config.scale)


def points_reward(answer: str, truth: Any, config: DistanceConfig) -> float:
    """`points`: n m exp(-C / scale), Chamfer distance C = (mean_a min_t d(a, t) + mean_t min_a d(a, t)) / 2.

    n = min(answered, true) / max(answered, true); m: see `spread`, of the pairs of the best one-to-one matching. Else a
    grid would be near every target, one centre or a few copies of it near two, and a crowd would weigh as one point.
    """
    target = true_coordinates(truth, 2)
    found = parse_groups(answer, 2)
    if not found:
        return 0.0
    points = np.array(found)
    ours, theirs = best_assignment(-np.linalg.norm(points[:, None] - target[None], axis=-1))
    number = min(len(points), len(target)) / max(len(points), len(target))
    closeness = math.exp(-chamfer(points, target) / DIAGONAL / config.scale)
    return number * spread(points[ours], target[theirs]) * closeness


def spread(points: np.ndarray, target: np.ndarray) -> float:
    """min(1, 2 e(points) / e(target)), e the diagonal of the box around points [N, 2]; 1 for targets in one place.

    Points in one place, which is near all of a small target, earn nothing; half as far apart is far enough.
    """
    extent, needed = (float(np.linalg.norm(np.ptp(one, axis=0))) for one in (points, target))
    return min(2 * extent / needed, 1.0) if needed else 1.0


def chamfer(points: np.ndarray, others: np.ndarray) -> float:
    """Mean of both directed mean nearest-neighbour distances of point sets [N, 2] and [M, 2]."""
    distance = np.linalg.norm(points[:, None] - others[None], axis=-1)
    return 0.5 * float(distance.min(axis=1).mean() + distance.min(axis=0).mean())


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


def number_reward(answer: str, truth: Any, config: NumberConfig) -> float:
    """`number`: exp(-rate * e), e = |answered - true| / max(|true|, floor).

    The unit is the question's; one written behind the number is not read. 0 unless the answer has exactly one number.
    """
    target = true_number(truth)
    value = parse_number(answer)
    if value is None:
        return 0.0
    return math.exp(-config.rate * (abs(value - target) / max(abs(target), config.floor)))


def count_reward(answer: str, truth: Any, config: CountConfig) -> float:
    """`count`: 1 if equal, else partial_credit * max(0, 1 - |answered - true| / max(true, 1))."""
    target = true_count(truth)
    value = parse_count(answer)
    if value is None:
        return 0.0
    return 1.0 if value == target else config.partial_credit * max(0.0, 1.0 - abs(value - target) / max(target, 1))


def choice_reward(answer: str, truth: Any) -> float:
    """`choice`: 1 for the letter of the right option, else 0."""
    return float(parse_choice(answer) == true_word(truth, tuple(string.ascii_uppercase), str.upper))


def yes_no_reward(answer: str, truth: Any) -> float:
    """`yes_no`: 1 for the right word and not the other one, else 0."""
    return float(parse_yes_no(answer) == true_word(truth, ("yes", "no"), str.lower))


def ordering_reward(answer: str, truth: Any) -> float:
    """`ordering`: LCS(answered, true) / max(number answered, number true), longest common subsequence of entries."""
    target = true_ordering(truth)
    found = parse_ordering(answer)
    return longest_common_subsequence(found, target) / max(len(found), len(target)) if found else 0.0


def longest_common_subsequence(entries: Sequence[str], others: Sequence[str]) -> int:
    """Length of the longest sequence that both contain in order, gaps allowed."""
    lengths = [0] * (len(others) + 1)
    for entry in entries:
        diagonal = 0
        for j, other in enumerate(others, start=1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if entry == other else max(lengths[j], lengths[j - 1])
    return lengths[-1]


TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(text: str) -> float:
    """1 for `<think>..</think><answer>..</answer>` with each tag at most once and nothing outside, else 0.

    Off by default (weight 0): no format reward is reported for HY-Embodied-0.5.
    White space may stand between and around. The start of the thinking block may be in the prompt, so `<think>` may be
    absent; so may the whole block, as behind a prompt that asks for no thinking. The answer is not empty.
    """
    if any(text.count(tag) > 1 for tag in TAGS):
        return 0.0
    before, opened, rest = text.partition("<answer>")
    answer, closed, after = rest.partition("</answer>")
    thought, ended, between = before.strip().partition("</think>")
    outside = after.strip() or (between.strip() if ended else thought)
    stray = "<think>" in thought.removeprefix("<think>") or "think>" in answer
    return float(bool(opened and closed and answer.strip()) and not outside and not stray)


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


def distance_to_mask(pixels: np.ndarray, x: float, y: float) -> float:
    """From a point to the nearest set pixel of a bool [h, w], all in 0..1000; 0 inside. A pixel is a closed square."""
    rows, columns = np.nonzero(pixels)
    above, right = (_outside(y, rows, pixels.shape[0]), _outside(x, columns, pixels.shape[1]))
    return float(np.sqrt((above**2 + right**2).min()))


def _outside(value: float, cells: np.ndarray, num_cells: int) -> np.ndarray:
    """How far a coordinate lies outside each cell of its axis."""
    side = COORDINATE_MAX / num_cells
    return np.maximum(np.maximum(cells * side - value, value - (cells + 1) * side), 0.0)


def best_assignment(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, int64 [min(N, M)] each, of the matching with the largest sum of `score` [N, M], finite.

    Every row (or column, if there are fewer) gets a partner. The Hungarian method with potentials (Kuhn 1955; Jonker
    and Volgenant 1987), O(n^2 m): one shortest augmenting path for each row.
    """
    if score.shape[0] > score.shape[1]:
        columns, rows = best_assignment(score.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    num_rows, num_columns = score.shape
    # Number 0 stands for "none" in rows and columns; the potentials keep cost - row - column >= 0.
    row_potential, column_potential = np.zeros(num_rows + 1), np.zeros(num_columns + 1)
    partner = np.zeros(num_columns + 1, dtype=np.int64)
    for row in range(1, num_rows + 1):
        partner[0] = row
        column, previous = _augmenting_path(-score, row_potential, column_potential, partner)
        while column:
            partner[column] = partner[previous[column]]
            column = previous[column]
    columns = np.flatnonzero(partner[1:])
    order = np.argsort(partner[1:][columns])
    return np.arange(num_rows), columns[order]


def _augmenting_path(
    cost: np.ndarray, row_potential: np.ndarray, column_potential: np.ndarray, partner: np.ndarray
) -> tuple[int, np.ndarray]:
    """The free column that ends the shortest path from `partner[0]`, and the column before each; moves potentials."""
    slack = np.full(len(partner), np.inf)
    previous = np.zeros(len(partner), dtype=np.int64)
    visited = np.zeros(len(partner), dtype=bool)
    column = 0
    while column == 0 or partner[column]:
        visited[column] = True
        row = partner[column]
        reduced = np.concatenate([[np.inf], cost[row - 1] - row_potential[row] - column_potential[1:]])
        shorter = ~visited & (reduced < slack)
        slack[shorter], previous[shorter] = reduced[shorter], column
        column = int(np.argmin(np.where(visited, np.inf, slack)))
        step = slack[column]
        row_potential[partner[visited]] += step
        column_potential[visited] -= step
        slack[~visited] -= step
    return column, previous
