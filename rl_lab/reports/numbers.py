"""Rows of numbers, and how each kind of number is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

Row = dict[str, Any]
T = TypeVar("T")
OVERALL = "overall"
"""Scope of a row over all episodes or questions."""


def find_all(rows: Iterable[T], **values: Any) -> list[T]:
    """The rows, or estimates, with these values."""
    return [row for row in rows if all(_fields(row).get(k) == v for k, v in values.items())]


def find(rows: Iterable[T], **values: Any) -> T | None:
    """The first of them."""
    return next(iter(find_all(rows, **values)), None)


def _fields(row: Any) -> Mapping[str, Any]:
    return row if isinstance(row, dict) else vars(row)


def rate(value: float) -> str:
    """A rate in percent, without the sign."""
    return f"{100 * value:.0f}"


def percent(value: float) -> str:
    """A rate as whole percent."""
    return f"{rate(value)} %"


def points(value: float) -> str:
    """A difference of rates in percentage points, signed."""
    return f"{100 * value:+.0f}" if abs(value) >= 0.005 else "0"


def p_text(p: float) -> str:
    """A p-value for reading, with its relation sign."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def reward(value: float) -> str:
    """A reward in [0, 1]."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """A difference of rewards."""
    return f"{value:+.3f}" if abs(value) >= 0.0005 else "0"


def share(value: float | None) -> str:
    """A share of tokens as percent; None is one that was never reached."""
    return "never" if value is None else percent(value)


def duration(seconds: float) -> str:
    """Seconds as `12 s`, `3 min 05 s` or `2 h 04 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` evenly spaced indices below `count`, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int)).tolist()
