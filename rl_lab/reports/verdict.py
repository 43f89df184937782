"""Rows of numbers, and how each kind of number is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Row = dict[str, Any]
T = TypeVar("T")
OVERALL = "overall"
"""Scope of a row over all episodes or questions."""


def find(rows: Sequence[T], **values: Any) -> T | None:
    """The first row, or estimate, with these values."""
    return next((row for row in rows if all(_fields(row).get(k) == v for k, v in values.items())), None)


def _fields(row: Any) -> Mapping[str, Any]:
    return row if isinstance(row, dict) else vars(row)


def final_round(summary: Row, method: str | None) -> int:
    """Last evaluated round of a method, 0 for none."""
    return max((row["round"] for row in summary["scores"] if row["method"] == method), default=0)


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
