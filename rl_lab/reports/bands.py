"""Bands of the curriculum over time as a figure: one column a step, its height split by band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from algos.curriculum.items import BANDS
from rl_lab.reports.markup import Markup
from rl_lab.reports.numbers import spread
from rl_lab.reports.plots import CHARTS

STEPS = 60
"""Columns at most; of more steps evenly spaced ones are shown."""
OBSERVED = tuple(name for name in BANDS if name != "unseen")


def band_legend() -> Markup:
    """The colours of the bands."""
    return CHARTS.band_legend(OBSERVED)


def band_columns(steps: Sequence[int], counts: Sequence[Mapping[str, float]]) -> Markup:
    """Observed items by band at each step, and the largest number of them; `counts` by name of band."""
    chosen = spread(len(steps), STEPS)
    highest = max(sum(counts[i].get(name, 0) for name in OBSERVED) for i in chosen) or 1
    columns = []
    for i in chosen:
        text = ", ".join(f"{name} {counts[i].get(name, 0):g}" for name in BANDS)
        columns.append((steps[i], text, [(name, 100 * counts[i].get(name, 0) / highest) for name in OBSERVED]))
    return CHARTS.band_columns(columns, highest)
