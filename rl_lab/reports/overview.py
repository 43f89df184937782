"""The head of a report: what stood in for what, what is missing, the verdict, and the numbers that matter most."""

from __future__ import annotations

import re
from typing import Any

from rl_lab.reports.estimates import SUCCESS, Estimate
from rl_lab.reports.markup import Tile, minus
from rl_lab.reports.numbers import OVERALL, Row, duration, find, find_all, percent, points
from rl_lab.reports.rundir import BASE, RunFolder, label


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


def _score_tile(title: str, one: Estimate | None) -> list[Tile]:
    if one is None:
        return []
    span = f"{one.successes} of {one.n} episodes, 95 % interval {one.ends(percent)}"
    return [Tile(title, percent(one.value), span)]


def _gain_tile(title: str, gain: Estimate | None) -> list[Tile]:
    if gain is None or gain.refused is not None:
        return []
    span = minus(f"points, paired 95 % interval {gain.ends()}")
    return [Tile(title, minus(points(gain.value)), span, gain.standing)]


def tiles(run: RunFolder, summary: Row) -> list[Tile]:
    """The four numbers of a run: base, final, and the paired gains over base and control."""
    success, last = find_all(summary["estimates"], how=SUCCESS, scope=OVERALL), run.last_round(run.method)
    final = find_all(success, model=run.method, round=last)
    shown = _score_tile("Base policy", find(success, model=BASE))
    if run.method is not None:
        shown += _score_tile(label(run.method, last), find(final, over=None))
        shown += _gain_tile("Gain over the base policy", find(final, over=BASE))
    if run.control:
        shown += _gain_tile(f"Gain over {label(run.control)}", find(final, over=run.control))
    return shown
