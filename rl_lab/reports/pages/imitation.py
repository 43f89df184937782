"""SFT on several sources: what each gave and how its loss went, rows that were too long, and loss and accuracy on rows
that were never learned."""

from __future__ import annotations

from functools import partial
from itertools import cycle

import numpy as np

from rl_lab.common.reading import read_object
from rl_lab.records.types import SOURCES_FILE
from rl_lab.reports.metrics import curve, define
from rl_lab.reports.numbers import Row, percent
from rl_lab.reports.pages.charts import COLOURS, Axis, Series, chart
from rl_lab.reports.pages.markup import Cell, Markup, Tile, macros, parts
from rl_lab.reports.run import LoadedRun

ENDS = 10
"""Steps over which the first and the last losses are means."""


def imitations(run: LoadedRun) -> dict[str, Row]:
    """Of every stage that trained on sources, by node: their rows with losses, and what was measured."""
    found = {}
    for path in sorted((run.path / "checkpoints").glob(f"*/{SOURCES_FILE}")):
        try:
            found[path.parent.name] = _imitation(run, path.parent.name, read_object(path))
        except (KeyError, TypeError, ValueError) as error:
            run.problems.append(f"{path.relative_to(run.path)} cannot be read: {error}")
    return found


def _imitation(run: LoadedRun, node: str, record: Row) -> Row:
    read = partial(curve, run.metrics, node)
    steps = max(read("loss")[0], default=0)
    learned = [
        row | {"passes": steps * row["in_batch"] / row["rows"]} | _means(read(f"source/{row['name']}/loss"))
        for row in record["learned"]
    ]
    measured = [row | _ends(read, f"validation/{row['name']}") for row in record["measured"]]
    whole = _ends(read, "validation") | {"rows": sum(row["rows"] for row in measured)} if measured else None
    return {"max_length": record["max_length"], "learned": learned, "measured": measured, "validation": whole}


def _means(points: tuple[list[float], list[float]]) -> Row:
    """The first and the last losses of training; None without any."""
    losses = points[1]
    first, last = (float(np.mean(part)) if part else None for part in (losses[:ENDS], losses[-ENDS:]))
    return {"first_loss": first, "last_loss": last}


def _ends(read: partial[tuple[list[float], list[float]]], name: str) -> Row:
    """Loss and accuracy before and after training, and where the loss was lowest; None without any."""
    (steps, losses), (_, shares) = read(f"{name}/loss"), read(f"{name}/accuracy")
    if not losses or not shares:
        return dict.fromkeys(("loss_before", "loss", "accuracy_before", "accuracy", "lowest_loss", "lowest_step"))
    lowest = int(np.argmin(losses))
    return {
        "loss_before": losses[0],
        "loss": losses[-1],
        "accuracy_before": shares[0],
        "accuracy": shares[-1],
        "lowest_loss": losses[lowest],
        "lowest_step": int(steps[lowest]),
    }


def overlong(found: Row) -> int:
    """Rows of all sources that were left out."""
    return sum(row["overlong"] for row in (*found["learned"], *found["measured"]))


def imitation_verdict(found: dict[str, Row]) -> list[str]:
    """What validation says of each stage, and how many rows were left out."""
    sentences = []
    for node, row in found.items():
        said, whole = [], row["validation"]
        if whole and whole["loss"] is not None:
            said.append(
                f"{node}: on {whole['rows']:,} rows that were never learned, loss {whole['loss_before']:.3f} before "
                f"and {whole['loss']:.3f} after, token accuracy {percent(whole['accuracy_before'])} and "
                f"{percent(whole['accuracy'])}."
            )
            if whole["lowest_loss"] < whole["loss"]:
                said.append(f"It was lowest, {whole['lowest_loss']:.3f}, at step {whole['lowest_step']}.")
        if overlong(row):
            said.append(f"{overlong(row):,} rows were left out as longer than {row['max_length']:,} tokens.")
        sentences += [" ".join(said)] if said else []
    return sentences


def imitation_tiles(found: dict[str, Row]) -> list[Tile]:
    """Loss and accuracy of validation."""
    tiles = []
    for whole in (row["validation"] for row in found.values()):
        if whole and whole["loss"] is not None:
            rows = f"{whole['rows']:,} rows"
            tiles.append(Tile("Validation loss", f"{whole['loss']:.3f}", f"{whole['loss_before']:.3f} before, {rows}"))
            before = f"{percent(whole['accuracy_before'])} before, {rows}"
            tiles.append(Tile("Token accuracy", percent(whole["accuracy"]), before))
    return tiles


def imitation_section(run: LoadedRun, found: dict[str, Row]) -> Markup:
    """A part for every stage; nothing for a run without any."""
    if not found:
        return Markup("")
    return macros("language").imitation([(node, _tables(row), _charts(run, node, row)) for node, row in found.items()])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def _tables(found: Row) -> list[Markup]:
    """Sources that were learned, then those that were measured on."""
    learned = [
        [
            *_rows(row),
            f"{row['in_batch']:.3g}",
            f"{row['passes']:.1f}",
            *map(_number, (row["first_loss"], row["last_loss"])),
        ]
        for row in found["learned"]
    ]
    head = [Cell("Source", "left"), "Rows", "Too long", "Tokens a row"]
    more = ["Rows of a step", "Passes", "First losses", "Last losses"]
    tables = [parts.table([*head, *more], learned, "Learned", "numbers")]
    if found["measured"]:
        columns = (("loss_before", _number), ("loss", _number), ("accuracy_before", _share), ("accuracy", _share))
        named = [*found["measured"], {"name": "all", "overlong": "", "tokens": None} | found["validation"]]
        measured = [[*_rows(row), *(show(row[name]) for name, show in columns)] for row in named]
        head = [*head, "Loss before", "after", "Accuracy before", "after"]
        tables.append(parts.table(head, measured, "Validation, never learned", "numbers"))
    return tables


def _rows(row: Row) -> list[object]:
    tokens = "" if row["tokens"] is None else f"{row['tokens'] / row['rows']:.0f}"
    return [row["name"], f"{row['rows']:,}", row["overlong"], tokens]


def _charts(run: LoadedRun, node: str, found: Row) -> list[Markup]:
    """Loss by source, and the curves of validation."""
    learned, measured = ([row["name"] for row in found[part]] for part in ("learned", "measured"))
    wanted = (
        ("Training loss by source", "loss", [(name, f"source/{name}/loss") for name in learned]),
        ("Validation loss", "loss", [("all", "validation/loss"), *((n, f"validation/{n}/loss") for n in measured)]),
        (
            "Validation token accuracy",
            "share",
            [("all", "validation/accuracy"), *((n, f"validation/{n}/accuracy") for n in measured)],
        ),
    )
    names, charts = dict.fromkeys([*learned, *measured]), []
    css = dict(zip(names, cycle(COLOURS), strict=False)) | {"all": "cg"}
    for title, unit, lines in wanted:
        series = [Series(name, *curve(run.metrics, node, metric), css[name]) for name, metric in lines]
        texts = {name: define(metric) or "" for name, metric in lines}
        axis = Axis(unit, (0, 1) if unit == "share" else None)
        charts.append(chart(title, series, Axis("optimiser step"), axis, definitions=texts))
    return [one for one in charts if one]
