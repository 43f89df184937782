"""Answers as HY-Embodied writes them: integers 0..1000 per axis, `<point>`, `<box>`, and the reply around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

HINTS = {
    "point": "Give <point>(x, y)</point>.",
    "points": "Give a list of <point>(x, y)</point>.",
    "box": "Give <box>[xmin, ymin, xmax, ymax]</box>.",
    "boxes": "Give a list of <box>[xmin, ymin, xmax, ymax]</box>.",
    "trajectory": "Give a list [(x, y), ..].",
    "number": "Give the number.",
    "count": "Give the number.",
    "choice": "Give the letter.",
    "yes_no": "Yes or no?",
    "ordering": "Give the list.",
}
"""How a question of each reward type ends."""


def integers(fractions: np.ndarray) -> list[int]:
    """Image fractions 0..1 as integers 0..1000."""
    return [int(value) for value in np.clip(np.rint(1000 * np.asarray(fractions)), 0, 1000)]


def pair(point: Sequence[int]) -> str:
    """`(x, y)`."""
    return f"({point[0]}, {point[1]})"


def point_text(point: Sequence[int]) -> str:
    """`<point>(x, y)</point>`."""
    return f"<point>{pair(point)}</point>"


def box_text(box: Sequence[int]) -> str:
    """`<box>[xmin, ymin, xmax, ymax]</box>`."""
    return f"<box>[{', '.join(str(value) for value in box)}]</box>"


def path_text(points: Iterable[Sequence[int]]) -> str:
    """`[(x, y), (x, y)]`."""
    return f"[{', '.join(pair(point) for point in points)}]"


def reply(thought: str, answer: str) -> str:
    """A whole reply; the thinking block stays, empty, when there is no thought, as in HY-Embodied's public data."""
    return f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"


def asked(question: str, reward_type: str, thinking: bool) -> str:
    """The prompt: question, how to answer, thinking suffix."""
    return f"{question} {HINTS[reward_type]}{' /think' if thinking else ' /no_think'}"


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """A bool [h, w] mask as {"size": [h, w], "counts": [..]}: row by row, the first run counts zeros."""
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0, append=flat.size).tolist()}
