"""`study.html`: factor by factor what each method adds to the control, over training seeds, and the data behind it."""

from __future__ import annotations

import json
from typing import Any

from rl_lab.files import write_whole
from rl_lab.reports.estimates import text_table
from rl_lab.reports.numbers import Row, p_text, percent, points
from rl_lab.reports.pages.charts import Axis, Series, chart, colours
from rl_lab.reports.pages.markup import Markup, document, macros, minus, parts, typeset
from rl_lab.reports.run import BASE, LoadedRun, label
from rl_lab.reports.study import ERROR, Comparison, power_text, written

STUDY = macros("study_parts")
NARROW = 0.12
"""Points of the methods at one value of a factor stand so far apart."""


def write_study(run: LoadedRun, summary: Row) -> None:
    """Write `study.json` and `study.html` of a run, each whole or not at all."""
    write_whole(run.path / "study.json", json.dumps(written(summary), indent=1) + "\n")
    write_whole(run.path / "study.html", build_study(summary))


def study_link() -> Markup:
    """Where the map is; the verdicts stand at the top of the main page."""
    return STUDY.link()


def build_study(summary: Row) -> str:
    """The page as HTML."""
    factors = list(dict.fromkeys(row["factor"] for row in summary["rows"]))
    return document(
        "study",
        summary=summary,
        control=label(summary["control"]),
        verdict=map(typeset, summary["verdict"]),
        power=power_text(summary["expected"]),
        error=percent(ERROR),
        maps=[_map(summary, factor) for factor in factors],
        data=_data(summary),
    )


def _map(summary: Row, factor: str | None) -> tuple[str, Markup, list[str], list[list[Any]]]:
    """Title, chart, and head and rows of the table of a factor."""
    rows = [row for row in summary["rows"] if row["factor"] == factor]
    names = [name for name in summary["methods"] if name != summary["control"]]
    head = ["" if factor is None else factor, label(BASE), label(summary["control"]), *map(label, names)]
    body = [
        [
            "as the file has it" if factor is None else json.dumps(row["value"]),
            *(_percent(row["levels"][name]) for name in ("base", "control")),
            *map(_difference, row["methods"]),
        ]
        for row in rows
    ]
    return factor or "The experiment", _chart(rows, names, factor), head, body


def _chart(rows: list[Row], names: list[str], factor: str | None) -> Markup:
    """The differences with their intervals by value of the factor; methods side by side."""
    css = colours(names)
    series = []
    for number, name in enumerate(names):
        shift = NARROW * (number - (len(names) - 1) / 2)
        compared = [(place + shift, row["methods"][number].difference) for place, row in enumerate(rows)]
        found = [(place, difference) for place, difference in compared if difference is not None]
        series.append(Series.through(label(name), found, css[name], scale=100))
    ticks = [(place, "" if factor is None else json.dumps(row["value"])[:14]) for place, row in enumerate(rows)]
    axis = Axis(factor or "", (-0.5, len(rows) - 0.5), ticks)
    return chart("Difference in success to the control", series, axis, Axis("percentage points"))


def _percent(share: float | None) -> str:
    return "" if share is None else percent(share)


def _difference(one: Comparison) -> Markup | str:
    """With its interval; coloured where it is decided."""
    if one.difference is None or one.p is None or one.corrected_p is None:
        return "no result" if not one.seeds else "one seed"
    low, high = points(one.difference.low), points(one.difference.high)
    standing = one.difference.standing if one.is_decided else "open"
    title = (
        f"{one.seeds} training seeds of {one.n} episodes, p {p_text(one.p)}, after correction {p_text(one.corrected_p)}"
    )
    return parts.estimate(minus(points(one.difference.value)), minus(f" {low} to {high}"), standing, title)


def _data(summary: Row) -> list[list[Any]]:
    """World, method and success by training seed."""
    return [
        [world, label(method), *(_percent(by_seed.get(seed)) for seed in range(1, summary["seeds"] + 1))]
        for world, methods in summary["successes"].items()
        for method, by_seed in methods.items()
    ]


def study_lines(summary: Row) -> list[str]:
    """The map for the terminal."""
    names = [name for name in summary["methods"] if name != summary["control"]]
    rows = [
        [
            "" if row["factor"] is None else f"{row['factor']} {json.dumps(row['value'])}",
            _percent(row["levels"]["control"]),
            *(_plain(one) for one in row["methods"]),
        ]
        for row in summary["rows"]
    ]
    return [text_table(["", label(summary["control"]), *(f"{label(name)} over it" for name in names)], rows)]


def _plain(one: Comparison) -> str:
    if one.difference is None:
        return ""
    low, high = points(one.difference.low), points(one.difference.high)
    return f"{points(one.difference.value)} ({low} to {high}){'*' if one.is_decided else ''}"
