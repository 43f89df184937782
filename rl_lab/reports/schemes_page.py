"""The section of a report that holds schemes of the curriculum against each other at equal steps and equal tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl_lab.reports.budgets import REFERENCE, Curve, curves
from rl_lab.reports.held_out_page import scheme_colours
from rl_lab.reports.markup import Markup, estimate_text, macros, minus, parts
from rl_lab.reports.numbers import Row, find, reward, share
from rl_lab.reports.plots import Axis, Series, chart
from rl_lab.reports.rundir import RunFolder, label


def curve_series(curve: Curve, css: str, name: str | None = None) -> Series:
    """The mean with its 95 % band."""
    low, high = np.quantile(curve.resamples, [0.025, 0.975], axis=0)
    x, y = curve.places.tolist(), curve.means.tolist()
    return Series(name or label(curve.scheme), x, y, css, band=(low.tolist(), high.tolist()))


def reward_charts(run: RunFolder) -> Markup:
    """Held-out reward against steps and against tokens."""
    css, charts = scheme_colours(run.schemes), []
    for axis, name in (("steps", "optimiser step"), ("tokens", "completion tokens generated for training")):
        series = [curve_series(curve, css[curve.scheme]) for curve in curves(run, axis)]
        charts.append(chart(f"Held-out reward over {axis}", series, Axis(name), Axis("reward")))
    return parts.charts(charts) if any(charts) else Markup("")


def _equal(summary: Row, name: str, scheme: str) -> Sequence[Markup | str]:
    row = find(summary[name], scheme=scheme)
    if row is None:
        return "", ""
    return estimate_text(row["reward"]), "" if scheme == REFERENCE else estimate_text(row["over"])


def _needed(row: Row | None) -> Markup | str:
    if row is None:
        return ""
    ends = f" {share(row['low'])} to {share(row['high'])}"
    return parts.estimate(share(row["share"]), ends)


def budget_table(summary: Row) -> Markup:
    """Rewards at the steps and tokens that all schemes spent, and tokens to reach uniform's final reward."""
    if not summary["tokens_needed"]:
        return Markup("")
    step, tokens = (summary[name][0]["place"] for name in ("at_equal_steps", "at_equal_tokens"))
    head = ["Scheme", f"Reward at step {step:.0f}", "Over uniform", f"At {tokens:,.0f} tokens", "Over uniform"]
    head += ["Tokens to uniform's final reward", "Replicates that got there"]
    rows = []
    for row in summary["tokens_needed"]:
        scheme = row["scheme"]
        cells = [*_equal(summary, "at_equal_steps", scheme), *_equal(summary, "at_equal_tokens", scheme)]
        there = f"{row['replicates_reached']} of {row['replicates']}"
        rows.append([label(scheme), *cells, _needed(row), there])
    return parts.table(head, rows, "At equal budgets", "numbers stacked")


def schemes_section(run: RunFolder, summary: Row) -> Markup:
    """Held-out reward while training; with several schemes also what the same steps and tokens bought. Or nothing."""
    charts = reward_charts(run)
    if not charts:
        return Markup("")
    needed = summary["tokens_needed"]
    target = ""
    if needed:
        target = f"Uniform's final reward is {reward(needed[0]['target'])} after {needed[0]['tokens']:,.0f} tokens"
        target = minus(f"{target}; {summary['held_out_intervals']['tokens needed']}.")
    return macros("language").schemes(len(run.schemes) > 1, charts, budget_table(summary), target)
