"""What a summary showed, in words: it claims no more than the intervals do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rl_lab.reports.rundir import BASE, label

Row = dict[str, Any]
OVERALL = "overall"
"""Scope of a row over all episodes."""


def find(rows: Sequence[Row], **values: Any) -> Row | None:
    """The first row with these values."""
    return next((row for row in rows if all(row.get(k) == v for k, v in values.items())), None)


def final_round(summary: Row, method: str | None) -> int:
    """Last evaluated round of a method, 0 for none."""
    return max((row["round"] for row in summary["scores"] if row["method"] == method), default=0)


def points(value: float) -> str:
    """A difference of rates in percentage points, signed."""
    return f"{100 * value:+.0f}" if abs(value) >= 0.005 else "0"


def _standing(row: Row) -> str:
    """What a paired interval says, in words."""
    if row["low"] > 0:
        return "the interval lies above 0"
    return "the interval lies below 0" if row["high"] < 0 else "the interval includes 0, no difference is shown"


def _gain_sentence(row: Row, over: str) -> str:
    return (
        f"Paired gain over {over}: {points(row['difference'])} points, 95 % interval {points(row['low'])} to "
        f"{points(row['high'])} (n = {row['n']}, {row['wins']} episodes won, {row['losses']} lost, "
        f"p {p_text(row['p'])}); {_standing(row)}."
    )


def _speed_sentence(row: Row) -> str:
    steps = row["steps_where_both_succeed"]
    span = f"95 % interval {steps['low']:+.1f} to {steps['high']:+.1f}"
    return f"On the {steps['n']} episodes that both solve, control steps change by {steps['value']:+.1f} ({span})."


def p_text(p: float) -> str:
    """A p-value for reading, with its relation sign."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _rate_text(row: Row) -> str:
    return (
        f"{row['successes']} of {row['n']} ({100 * row['rate']:.0f} %, 95 % interval {100 * row['low']:.0f} to "
        f"{100 * row['high']:.0f})"
    )


def verdict(summary: Row) -> list[str]:
    """What the run showed, as sentences with numbers; it claims no more than the intervals do."""
    base = find(summary["scores"], scope=OVERALL, method=BASE)
    method = summary["method"]
    if method is None:
        return [f"The base policy solves {_rate_text(base)}." if base else "No policy was evaluated."]
    last = final_round(summary, method)
    final = find(summary["scores"], scope=OVERALL, method=method, round=last)
    assert final is not None, "a method of the summary has a score"
    before = f", the base policy {_rate_text(base)}" if base else ""
    sentences = [f"After {last} round{'s' * (last != 1)} {label(method)} solves {_rate_text(final)}{before}."]
    names = {BASE: "the base policy"}
    if summary["control"]:
        names[summary["control"]] = f"{label(summary['control'])} after the same round"
    for over, name in names.items():
        row = find(summary["gains"], scope=OVERALL, method=method, round=last, over=over)
        if row is not None:
            sentences.append(
                f"No paired gain over {name}: {row['refused']}." if "refused" in row else _gain_sentence(row, name)
            )
    over_base = find(summary["gains"], scope=OVERALL, method=method, round=last, over=BASE)
    if over_base is not None and over_base.get("steps_where_both_succeed"):
        sentences.insert(2, _speed_sentence(over_base))
    if summary["control"] is None:
        sentences.append("No control was run: the gain over the base policy does not say what caused it.")
    return sentences
