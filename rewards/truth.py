"""Checks of ground truths. A wrong one is the data's fault: ValueError, so that the sample is masked."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from rewards.answers import COORDINATE_MAX, MAX_OBJECTS, has_separator, normalise_entry

_PLAIN_TEXT = ("choice", "yes_no", "open")
_SHOWN_CHARS = 80


def decode_truth(answer: Any, reward_type: str) -> Any:
    """The ground truth, from JSON text where the structure is not text: a table column holds one type only."""
    if not isinstance(answer, str) or reward_type in _PLAIN_TEXT:
        return answer
    try:
        return json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the ground truth of a {reward_type} is text but not JSON: {shown(answer)}") from error


def true_coordinates(value: Any, size: int) -> np.ndarray:
    """1 to `MAX_OBJECTS` rows of `size` coordinates in 0..1000, float64 [N, size]."""
    try:
        rows = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the ground truth {shown(value)} is not a list of {size} numbers each") from error
    if rows.ndim != 2 or rows.shape[1] != size or not 1 <= len(rows) <= MAX_OBJECTS:
        raise ValueError(f"the ground truth {shown(value)} is not 1 to {MAX_OBJECTS} rows of {size} coordinates")
    if not np.all((rows >= 0) & (rows <= COORDINATE_MAX)):
        raise ValueError(f"the ground truth {shown(value)} leaves the range 0..{COORDINATE_MAX:.0f}")
    return rows


def true_boxes(value: Any) -> np.ndarray:
    """Boxes [xmin, ymin, xmax, ymax] with an area, float64 [N, 4]."""
    boxes = true_coordinates(value, 4)
    if not np.all(boxes[:, 2:] > boxes[:, :2]):
        raise ValueError(f"the ground truth {shown(value)} has a box without area; write [xmin, ymin, xmax, ymax]")
    return boxes


def true_number(value: Any) -> float:
    """A number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"the ground truth {shown(value)} is not a finite number")
    return float(value)


def true_count(value: Any) -> int:
    """A whole number >= 0."""
    number = true_number(value)
    if number < 0 or not number.is_integer():
        raise ValueError(f"the ground truth {shown(value)} is not a count; give a whole number >= 0")
    return int(number)


def true_word(value: Any, known: tuple[str, ...], case: Any) -> str:
    """One of the known words, quotes and spaces stripped, in the case that `case` (str.upper, str.lower) gives."""
    word = case(value.strip(" \"'")) if isinstance(value, str) else None
    if word not in known:
        raise ValueError(f"the ground truth {shown(value)} is not one of {', '.join(known)}")
    return word


def true_ordering(value: Any) -> list[str]:
    """1 to `MAX_OBJECTS` entries, normalised, none empty and none that a list in text would cut in two."""
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_OBJECTS:
        raise ValueError(f"the ground truth {shown(value)} is not a list of 1 to {MAX_OBJECTS} texts")
    for entry in value:
        if not isinstance(entry, str) or not normalise_entry(entry) or has_separator(entry):
            raise ValueError(f"the entry {shown(entry)} of an ordering is empty, no text, or has one of , ; > in it")
    return [normalise_entry(entry) for entry in value]


def shown(value: Any) -> str:
    """A value for an error message, cut to one short line."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}.."
