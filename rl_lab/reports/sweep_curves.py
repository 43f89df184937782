"""What variants of a sweep over rankings of actions look like while they train, each with its interval.

Success is measured before and after training, over episodes and training seeds. Between them there are only the metrics
of the training: a mean over R training seeds with Student's interval, mean +- t_{0.975, R - 1} s / sqrt(R); one seed
has none.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import t

from rl_lab.reports.curves import glossary
from rl_lab.reports.held_out_page import scheme_colours
from rl_lab.reports.markup import Markup, parts
from rl_lab.reports.metrics import curve
from rl_lab.reports.plots import Axis, Series, chart, thin
from rl_lab.reports.rundir import RunFolder, label
from rl_lab.reports.sweep import success_rows, variant_names
from rl_lab.stats import Array

BLOCKS = 40
"""Points of a curve at most; each is the mean of equally many steps."""

SHOWN = {
    "reward/margin": "implicit reward",
    "reward/accuracy": "share",
    "flow/winner": "flow-matching loss",
    "flow/identical": "flow-matching loss",
}
"""Metric of the training -> its unit."""


def seeds_interval(values: Array) -> tuple[Array, Array, Array]:
    """Mean over training seeds and the ends of its interval, [G] each, of values [R, G]; of one seed the ends are the
    mean."""
    count, mean = len(values), values.mean(0)
    if count == 1:
        return mean, mean, mean
    half = t(count - 1).ppf(0.975) * values.std(0, ddof=1) / math.sqrt(count)
    return mean, mean - half, mean + half


def _series(run: RunFolder, variant: str, metric: str, css: str) -> Series | None:
    """A metric of a variant at the steps at which all its trainings that logged it did."""
    nodes = [s["name"] for s in run.stages if s.get("kind") == "optimise" and s.get("method") == variant]
    found = (dict(zip(*curve(run.metrics, node, metric), strict=True)) for node in nodes)
    curves = [values for values in found if values]
    steps = sorted(set(curves[0]).intersection(*curves)) if curves else []
    if not steps:
        return None
    limit = min(BLOCKS, len(steps))
    values = [thin(steps, [one[step] for step in steps], limit) for one in curves]
    mean, low, high = seeds_interval(np.array([y for _, y in values]))
    if SHOWN[metric] == "share":
        low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    return Series(label(variant), values[0][0], mean.tolist(), css, band=(low.tolist(), high.tolist()))


def _success_chart(run: RunFolder, css: dict[str, str]) -> Markup:
    series = []
    for name, points in success_rows(run).items():
        steps, values, low, high = ([point[key] for point in points] for key in ("step", "value", "low", "high"))
        series.append(Series(label(name), steps, values, css[name], low=low, high=high))
    return chart("Success before and after", series, Axis("optimiser step"), Axis("share"))


def training_charts(run: RunFolder) -> Markup:
    """Success before and after training, and metrics of the training between; nothing without any."""
    names = variant_names(run.config)
    css = scheme_colours(names)
    charts = [_success_chart(run, css)]
    for metric, unit in SHOWN.items():
        lines = [line for name in names if (line := _series(run, name, metric, css[name]))]
        charts.append(chart(metric, lines, Axis("optimiser step"), Axis(unit)))
    return parts.charts(charts) + glossary(list(SHOWN)) if any(charts) else Markup("")
