"""The head of a report: what stood in for what, what is missing, the verdict, and the numbers that matter most."""

from __future__ import annotations

import re
from typing import Any

from rl_lab.reports.markup import Tile
from rl_lab.reports.rundir import BASE, RunFolder, label
from rl_lab.reports.verdict import OVERALL, Row, final_round, find, points


def percent(value: float) -> str:
    """A rate as whole percent."""
    return f"{100 * value:.0f} %"


def signed_points(value: float) -> str:
    """A difference of rates in percentage points, with a real minus sign."""
    return points(value).replace("-", "\u2212")


def standing(row: Row) -> str:
    """CSS class of a paired difference: its interval lies above 0, below 0, or leaves it open."""
    return "above" if row["low"] > 0 else "below" if row["high"] < 0 else "open"


def duration(seconds: float) -> str:
    """Seconds as `12 s`, `3 min 05 s` or `2 h 04 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def facts(run: RunFolder, summary: Row) -> list[str]:
    """Method, seed, commit and time."""
    commit = run.environment.get("commit")
    said = [
        f"arms {', '.join(map(label, summary['joint']['arms']))}" if "joint" in summary else "",
        f"method {label(summary['method'])}" if summary.get("method") and "joint" not in summary else "",
        f"curriculum {', '.join(map(label, summary['schemes']))}"
        if summary.get("schemes") and not {"pipeline", "joint"} & summary.keys()
        else "",
        f"training seed {run.seed}",
        f"commit {str(commit)[:12]}" if commit else "",
        f"stages add up to {duration(summary['computed_seconds'])}",
    ]
    return [fact for fact in said if fact]


def incomplete(run: RunFolder) -> list[str]:
    """Unfinished stages and unusable files."""
    return [*([f"Not finished: {', '.join(run.unfinished)}."] if run.unfinished else []), *run.problems]


def typeset(sentence: str) -> str:
    """A sentence of `verdict` with real minus signs and unbroken p-values."""
    return re.sub(r"p ([<=]) ", "p\u00a0\\1\u00a0", re.sub(r"(?<=[ (])-(?=\d)", "\u2212", sentence))


def substitutions(run: RunFolder) -> list[Any] | None:
    """What stood in for what, from `environment.json`; None if it does not say."""
    rows = run.environment.get("substitutions")
    return rows if isinstance(rows, list) else None


def _score_tile(title: str, row: Row | None) -> list[Tile]:
    if row is None:
        return []
    span = f"{row['successes']} of {row['n']} episodes, 95 % interval {percent(row['low'])} to {percent(row['high'])}"
    return [Tile(title, percent(row["rate"]), span)]


def _gain_tile(title: str, row: Row | None) -> list[Tile]:
    if row is None or "refused" in row:
        return []
    low, high = (signed_points(row[end]) for end in ("low", "high"))
    value = signed_points(row["difference"])
    return [Tile(title, value, f"points, paired 95 % interval {low} to {high}", standing(row))]


def tiles(summary: Row) -> list[Tile]:
    """The four numbers of a run: base, final, and the paired gains over base and control."""
    method, last = summary["method"], final_round(summary, summary["method"])
    final = {"scope": OVERALL, "method": method, "round": last}
    shown = _score_tile("Base policy", find(summary["scores"], scope=OVERALL, method=BASE))
    if method is not None:
        shown += _score_tile(label(method, last), find(summary["scores"], **final))
        shown += _gain_tile("Gain over the base policy", find(summary["gains"], **final, over=BASE))
    if summary["control"]:
        title = f"Gain over {label(summary['control'])}"
        shown += _gain_tile(title, find(summary["gains"], **final, over=summary["control"]))
    return shown
