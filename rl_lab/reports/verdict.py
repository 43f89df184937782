"""Rows of numbers, and how each kind of number is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

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
    return "never" if value is None else f"{100 * value:.0f} %"
