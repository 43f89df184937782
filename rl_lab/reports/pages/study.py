"""`study.html`: factor by factor what each method adds to the control, over training seeds, and the data behind it.

Of rewards, rankings and curricula also, world by world, how they trained, what differs by category, what the detectors
of reward hacking say, and which questions and episodes flip.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import groupby
from operator import itemgetter
from statistics import fmean
from typing import Any

from rl_lab.common.files import write_whole
from rl_lab.common.stats import Interval
from rl_lab.config.study import STUDY_FILE
from rl_lab.reports.estimates import text_table
from rl_lab.reports.experience import TAKEN
from rl_lab.reports.numbers import Row, percent
from rl_lab.reports.pages.charts import Axis, Series, chart, colours
from rl_lab.reports.pages.markup import Markup, document, macros, typeset
from rl_lab.reports.pages.study_details import difference, world_sections
from rl_lab.reports.run import BASE, LoadedRun, in_world, label
from rl_lab.reports.study import ALL_WORLDS, MEASURES, Comparison, Measure, written
from rl_lab.reports.study_power import ERROR, power_text

STUDY = macros("study_parts")
STUDY_PAGE = "study.html"
WORLDS = "worlds"
"""Heads the table of worlds that are no values of one factor."""
NARROW = 0.12
"""Points of the methods at one value of a factor stand so far apart."""


def write_study(run: LoadedRun, summary: Row) -> None:
    """Write `study.json` and `study.html` of a run, each whole or not at all."""
    write_whole(run.path / STUDY_FILE, json.dumps(written(summary), indent=1) + "\n")
    write_whole(run.path / STUDY_PAGE, build_study(run, summary))


def study_link() -> Markup:
    """Where the map is; the verdicts stand at the top of the main page."""
    return STUDY.link()


def build_study(run: LoadedRun, summary: Row) -> str:
    """The page as HTML."""
    return document(
        "study",
        summary=summary,
        control=label(summary["control"]),
        verdict=map(typeset, summary["verdict"]),
        power=power_text(summary["expected"]),
        error=percent(ERROR),
        maps=[_map(summary, *part) for part in _parts(summary)],
        data=[(name, _data(summary, MEASURES[name], found)) for name, found in _means(summary).items()],
        units=summary["expected"]["units"],
        has_base=_has_base(summary, summary["rows"]),
        compare=summary["compare"],
        details=[
            (one["world"], world_sections(in_world(run, one["world"]), summary, one)) for one in summary["details"]
        ],
        costs=_costs(summary),
        experience=_experience(summary),
        settings=[[name, json.dumps(one)] for name, one in summary["settings"].items()],
    )


def _means(summary: Row) -> dict[str, Row]:
    """By measure, world, method and training seed."""
    return {summary["measure"]: summary["means"]} | {name: part["means"] for name, part in summary["measures"].items()}


def _parts(summary: Row) -> list[tuple[str, str | None, list[Row]]]:
    """Measure, factor and rows of each table. What has one row, such as the mean over all worlds, shares a table."""
    tables = {summary["measure"]: summary} | summary["measures"]
    parts = []
    for name, table in tables.items():
        rows = table["rows"] + table["over_all"]
        counts = Counter(row["factor"] for row in rows)
        alone = [factor for factor, count in counts.items() if count == 1]
        shared = alone if len(alone) > 1 else []
        own = [factor for factor in counts if factor not in shared]
        parts += [(name, factor, [row for row in rows if row["factor"] == factor]) for factor in own]
        parts += [(name, WORLDS, [row for row in rows if row["factor"] in shared])] if shared else []
    return parts


def _has_base(summary: Row, rows: list[Row]) -> bool:
    """Whether there was a model before the methods, which is not the control; neither variants have one nor ways to
    execute chunks."""
    if summary["compare"] == "eval.join" or summary["control"] == BASE:
        return False
    return any(row["levels"]["base"] is not None for row in rows)


def _map(
    summary: Row, name: str, factor: str | None, rows: list[Row]
) -> tuple[str, Markup, list[str], list[list[Any]]]:
    """Title, chart, and head and rows of a table."""
    measure = MEASURES[name]
    others = [name for name in summary["methods"] if name != summary["control"]]
    levels = ({"base": BASE} if _has_base(summary, rows) else {}) | {"control": summary["control"]}
    head = ["" if factor in (None, WORLDS) else factor, *map(label, levels.values()), *map(label, others)]
    body = [
        [
            f"{number}. {_place(row)}" if factor == WORLDS else row["at"],
            *(_level(row["levels"][level], measure) for level in levels),
            *(difference(one, measure) for one in row["methods"]),
        ]
        for number, row in enumerate(rows, start=1)
    ]
    title = (factor or "The experiment").capitalize() if factor in (None, WORLDS) else factor
    return title if name == summary["measure"] else f"{title}: {name}", _chart(rows, others, factor, name), head, body


def _place(row: Row) -> str:
    """Where a row's methods are compared, in full."""
    if row["factor"] is None:
        return ""
    return f"{row['at']} worlds" if row["factor"] == ALL_WORLDS else f"{row['factor']} {row['at']}"


def _chart(rows: list[Row], names: list[str], factor: str | None, measured: str) -> Markup:
    """The differences with their intervals; methods side by side. A line joins values of one factor, not worlds."""
    measure = MEASURES[measured]
    css = colours(names)
    series = []
    for number, name in enumerate(names):
        shift = NARROW * (number - (len(names) - 1) / 2)
        compared = [(place + shift, row["methods"][number].difference) for place, row in enumerate(rows)]
        found = [(place, difference) for place, difference in compared if difference is not None]
        lines = [[point] for point in found] if factor == WORLDS else [found]
        series += [Series.through(label(name), line, css[name], scale=measure.scale) for line in lines]
    texts = [
        "" if factor is None else str(place + 1) if factor == WORLDS else row["at"][:14]
        for place, row in enumerate(rows)
    ]
    axis = Axis("" if factor is None else factor, (-0.5, len(rows) - 0.5), list(enumerate(texts)))
    return chart(f"Difference in {measured} to the control", series, axis, Axis(measure.axis))


def _level(mean: float | None, measure: Measure) -> str:
    return "" if mean is None else measure.level(mean)


def _data(summary: Row, measure: Measure, found: Row) -> list[list[Any]]:
    """World, method and mean by training seed."""
    return [
        [world, label(method), *(_level(by_seed.get(seed), measure) for seed in range(1, summary["seeds"] + 1))]
        for world, methods in found.items()
        for method, by_seed in methods.items()
    ]


def _costs(summary: Row) -> list[list[str]]:
    """World, variant, CPU seconds of its training, mean over training seeds, and their share of the control's."""
    rows = []
    for world, variants in summary["training_cpu_s"].items():
        means = {name: fmean(by_seed.values()) for name, by_seed in variants.items()}
        whole = means.get(summary["control"], math.nan)
        rows += [
            [world, label(name), f"{own:,.0f}", "" if math.isnan(whole) else percent(own / whole)]
            for name, own in means.items()
        ]
    return rows


TOOK = ("Environment steps", "Corrections", "Seconds of collecting and learning")


def _experience(summary: Row) -> list[tuple[str, Markup, list[str], list[list[Any]]]]:
    """Of each world in which methods explore: its name, success over environment steps, and head and rows of the table
    of what learning took."""
    css, shown = colours(summary["methods"]), []
    x, y = Axis("environment steps (thousands)"), Axis("success (%)", (0, 100))
    for world, found in groupby(summary["experience"], itemgetter("world")):
        rows = list(found)
        means = [(row["environment_steps"] / 1000, Interval(**row["success"])) for row in rows]
        lines = []
        for name in summary["methods"]:
            own = [
                [mean for row, mean in zip(rows, means, strict=True) if row["method"] == one] for one in (BASE, name)
            ]
            lines.append(Series.through(label(name), own[0] + own[1], css[name], 100, bare=len(own[0])))
        table = [
            [
                label(row["method"], row["round"]),
                row["seeds"],
                *(f"{row[key]:,.0f}" for key in TAKEN),
                percent(row["success"]["value"]),
            ]
            for row in rows
        ]
        shown.append(
            (world, chart("Success over environment steps", lines, x, y), ["After", "Seeds", *TOOK, "Success"], table)
        )
    return shown


def study_lines(summary: Row) -> list[str]:
    """The map for the terminal."""
    names = [label(name) for name in summary["methods"] if name != summary["control"]]
    tables = []
    for measured, parts in groupby(_parts(summary), itemgetter(0)):
        measure = MEASURES[measured]
        lines = [
            [_place(row), _level(row["levels"]["control"], measure), *(_plain(one, measure) for one in row["methods"])]
            for _, _, rows in parts
            for row in rows
        ]
        title = "" if measured == summary["measure"] else measured
        tables.append(text_table([title, label(summary["control"]), *(f"{name} over it" for name in names)], lines))
    return tables


def _plain(one: Comparison, measure: Measure) -> str:
    if one.difference is None:
        return ""
    value, low, high = map(measure.difference, (one.difference.value, one.difference.low, one.difference.high))
    return f"{value} ({low} to {high}){'*' if one.is_decided else ''}"
