"""Charts as inline SVG, coloured by CSS so that they follow light and dark mode; a mark tells each line without colour.

Lines with optional error bars; and bands of the curriculum over time, one column a step, its height split by band.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from algos.curriculum.items import BANDS
from rl_lab.common.stats import Interval
from rl_lab.reports.numbers import spread
from rl_lab.reports.pages.markup import Markup, macros
from rl_lab.reports.run import BASE

CHARTS = macros("charts")
WIDTH, HEIGHT = 520, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 42
MAX_POINTS = 240
Points = Sequence[tuple[float, Interval]]
"""Estimates at places of the horizontal axis."""
LOG_RATIO = 40.0
"""A positive quantity that spans a larger ratio is drawn on a logarithmic axis."""


COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6")
"""Classes of the style sheet, told apart with any vision; charts.html.jinja has a mark for each."""
MARKS = 5
"""On a line of many points."""


def colours(names: Iterable[str], grey: str | None = None) -> dict[str, str]:
    """Name -> CSS class; what the others are held against is grey and behind them, the base dark and last."""
    known = [name for name in names if name != BASE]
    found = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(name for name in known if name != grey)}
    return found | {name: "cg" for name in known if name == grey} | {BASE: "cb"}


@dataclass(frozen=True)
class Series:
    """One line of a chart; an empty name keeps it out of the legend.

    `low` and `high` are ends of error bars; `css` names a colour of the style sheet.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    css: str = "c0"
    dashed: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    labels: Sequence[str] = ()
    """Text shown when the pointer rests on a point."""
    bare: int = 0
    """The line begins with this many points that belong to another series and are drawn there."""
    band: tuple[Sequence[float], Sequence[float]] = ((), ())
    """Lower and upper edge of an area behind the line."""

    @classmethod
    def through(
        cls, name: str, points: Points, css: str = "c0", scale: float = 1, area: bool = False, **rest: Any
    ) -> Series:
        """A line through estimates times `scale`; their intervals, where all have one, as error bars or as an area."""
        x, value = [x for x, _ in points], [scale * one.value for _, one in points]
        known = [] if any(math.isnan(one.low) for _, one in points) else points
        low, high = [scale * one.low for _, one in known], [scale * one.high for _, one in known]
        drawn: dict[str, Any] = {"band": (low, high)} if area else {"low": low, "high": high}
        return cls(name, x, value, css, **drawn, **rest)

    def line(self, x: Scale, y: Scale) -> str:
        """Pixels of the line."""
        return _pixels(zip(*thin(self.x, self.y), strict=True), x, y)

    def marks(self, x: Scale, y: Scale, shift: float) -> list[tuple[float, float]]:
        """Pixels of some evenly spaced points, moved along the line by a share of their distance."""
        points = list(zip(*thin(self.x, self.y), strict=True))
        places = {int((number + shift) * len(points) / MARKS) for number in range(MARKS)}
        return [(x(points[place][0]), y(points[place][1])) for place in sorted(places)]

    def area(self, x: Scale, y: Scale) -> str:
        """Pixels around the band."""
        low, high = (list(zip(*thin(self.x, edge), strict=True)) for edge in self.band)
        return _pixels([*low, *reversed(high)], x, y)


@dataclass(frozen=True)
class Axis:
    """A label with its unit, optional fixed range and ticks as (value, text)."""

    label: str
    range: tuple[float, float] | None = None
    ticks: Sequence[tuple[float, str]] = ()
    may_be_log: bool = False


@dataclass(frozen=True)
class Scale:
    """Value -> pixel, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: Sequence[tuple[float, str]] = field(default=())

    def __call__(self, value: float) -> float:
        """Pixel of a value; on a logarithmic axis values at or below 0 sit at the lower end."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, self.low)), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high]."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [step * k for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A short decimal number with a real minus sign."""
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "\u2212")


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them on a short axis, inside [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    multiples = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    return [m * 10.0**p for p in powers for m in multiples if low <= m * 10.0**p <= high]


def make_scale(values: Sequence[float], axis: Axis, start: float, end: float, pad: float = 0.06) -> Scale:
    """A scale that holds all values with a margin and has readable ticks."""
    low, high = axis.range or (min(values), max(values))
    high = 1.0 if low == high == 0 else high
    log = axis.may_be_log and low > 0 and high / low > LOG_RATIO
    if axis.range is None and log:
        low, high = low / 1.15, high * 1.15
    elif axis.range is None:
        alike = high - low <= 1e-9 * abs(high)  # means of equal numbers differ in their last digits
        margin = (0.05 * abs(high) or 1.0) if alike else pad * (high - low)
        low, high = (0.0 if 0 <= low < 0.4 * high and pad else low - margin), high + margin
    marks = axis.ticks or [(t, number(t)) for t in (log_ticks(low, high) if log else nice_ticks(low, high))]
    return Scale(low, high, start, end, log, [mark for mark in marks if low <= mark[0] <= high])


def thin(x: Sequence[float], y: Sequence[float], limit: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """At most `limit` points: means of equal runs of neighbours."""
    size = -(-len(x) // limit)
    if size <= 1:
        return list(x), list(y)
    blocks = [slice(i, i + size) for i in range(0, len(x), size)]
    return [math.fsum(x[b]) / len(x[b]) for b in blocks], [math.fsum(y[b]) / len(y[b]) for b in blocks]


def _pixels(points: Iterable[tuple[float, float]], x: Scale, y: Scale) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)


def chart(
    title: str,
    series: Sequence[Series],
    x_axis: Axis,
    y_axis: Axis,
    *,
    separators: Sequence[tuple[float, str]] = (),
    definitions: dict[str, str] | None = None,
) -> Markup:
    """A figure with title, legend and lines; series with `low` also get error bars. Nothing without a point."""
    series = [one for one in series if len(one.x)]
    if not series:
        return Markup("")
    x = make_scale([v for s in series for v in s.x], x_axis, LEFT, WIDTH - RIGHT, pad=0.0)
    values = [v for s in series for values in (s.y, s.low, s.high, *s.band) for v in values]
    y = make_scale(values, y_axis, HEIGHT - BOTTOM, TOP)
    first = {one.name: one for one in reversed(series) if one.name}
    texts = definitions or {}
    keys = [{"name": n, "css": one.css, "dashed": one.dashed, "definition": texts.get(n)} for n, one in first.items()]
    places = {name: place / len(first) for place, name in enumerate(first)}
    marks = [
        (one.css, one.marks(x, y, places[one.name]))
        for one in series
        if one.name and not one.low and not one.labels and (len(first) > 1 or len(one.x) == 1)
    ]
    labels = x_axis.label, y_axis.label
    return CHARTS.chart(title, series, marks, x, y, *labels, separators, keys[::-1], (WIDTH, HEIGHT))


def bounds_of(means: Sequence[Interval]) -> tuple[float, float]:
    """What pictures of these intervals span."""
    low, high = min((mean.low for mean in means), default=0.0), max((mean.high for mean in means), default=1.0)
    return low, max(high, low + 0.01)


def interval_bar(one: Interval, bounds: tuple[float, float]) -> Markup:
    """A small picture of an estimate with its interval for table cells."""
    return CHARTS.interval_bar(one.value, one.low, one.high, Scale(*bounds, 2, 98))


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
