"""A run's curriculum pool as one self-contained HTML page: bands over time, and a browser of items with rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from algos.curriculum.items import BANDS, UNSEEN, Array
from rl_lab.common.errors import UserError
from rl_lab.common.files import write_whole
from rl_lab.curriculum.show import HEAD, content_texts, item_cells, state_text
from rl_lab.curriculum.view import REASONS, PoolRow, PoolView
from rl_lab.curriculum.why import posterior
from rl_lab.records.rollouts import RolloutRow, finite, rollout_data
from rl_lab.reports.pages.charts import CHARTS, band_columns, band_legend
from rl_lab.reports.pages.markup import Cell, ImageBudget, Markup, document, parts

IMAGE_BUDGET_BYTES = 16_000_000
"""Encoded pictures of the page; items beyond it are shown without."""
MOVES = 20
"""Newest groups of an item in the page."""


def _move(view: PoolView, row: PoolRow) -> list[Any]:
    """Step, version, rollouts, mean, spread, signal, posterior a and b, frontier probability, band before and after."""
    a, b = posterior(view, row)
    numbers = [finite(value, 3) for value in (row["mean"], row["spread"])]
    head = [row["step"], row["version"], row["rollouts"], *numbers, bool(row["signal"])]
    return [
        *head,
        round(a, 2),
        round(b, 2),
        finite(row["band_probability"], 3),
        BANDS[row["band_before"]],
        BANDS[row["band"]],
    ]


def item_data(view: PoolView, number: int, rollouts: list[RolloutRow], images: list[str]) -> dict[str, Any]:
    """One item as the script reads it."""
    item, state = view.item(number), view.state(number)
    names = ("id", "category", "task", "reward_type")
    picked = view.selections(number)
    return {name: item[name] for name in names} | {
        "band": state["band"],
        "state": state_text(state),
        "frontier": finite(state["band_probability"], 3),
        "rate": finite(state["rate"], 3),
        "last": finite(state["last_mean"], 3) if state["groups"] else None,
        "groups": state["groups"],
        "age": state["age"],
        "content": [[key.replace("_", " "), text] for key, text in content_texts(item["content"]).items()],
        "images": images,
        "moves": [_move(view, row) for row in view.observations(number)[-MOVES:]],
        "picked": [[row["step"], row["round"], REASONS[row["reason"]]] for row in picked[-MOVES:]],
        "numPicked": len(picked),
        "samples": [rollout_data(row) for row in rollouts],
    }


def _bands_now(view: PoolView) -> Markup:
    """Observed items by band, category by category."""
    counts, names = view.bands(), [*view.categories, "all"]
    rows = []
    for name, row in zip(names, [*counts, counts.sum(0)], strict=True):
        bands = [(band, count) for band, count in zip(BANDS, row.tolist(), strict=True) if band != "unseen"]
        bar = CHARTS.band_bar(bands, int(row.sum() - row[UNSEEN]) or 1)
        rows.append((name, Cell(bar, "metercell"), *row.tolist()))
    return parts.table(("Category", "Observed items by band", *BANDS), rows, css="numbers")


def _bands_over_time(view: PoolView) -> Markup:
    steps = view.steps()
    if not steps:
        return Markup("")
    counts = [dict(zip(BANDS, np.array(step["bands"]).sum(0).tolist(), strict=True)) for step in steps]
    return band_columns([step["step"] for step in steps], counts)


def _name(view: PoolView) -> str:
    """The run, and of a run with nodes the node."""
    run, folder = view.place.run.resolve(), view.place.folder
    return run.name if folder == view.place.run else f"{run.name}, {folder.absolute().name}"


def build_page(view: PoolView, numbers: Array, rollouts: int) -> tuple[str, list[str]]:
    """The page with these items, the newest `rollouts` of each, and lines that say what it lacks."""
    ids = [view.item(number)["id"] for number in numbers.tolist()]
    found, problems = view.rollouts.newest(ids, rollouts)
    pictures = ImageBudget(IMAGE_BUDGET_BYTES)
    items = [
        item_data(view, number, found[item], pictures.encode(view.images(number)))
        for number, item in zip(numbers.tolist(), ids, strict=True)
    ]
    problems += pictures.problems()
    if not any(found.values()):
        problems.append("no rollout of these items is under rollouts/")
    page = document(
        "pool",
        name=_name(view),
        view=view,
        problems=problems,
        legend=band_legend(),
        bands_now=_bands_now(view),
        bands_over_time=_bands_over_time(view),
        data={"items": items, "categories": view.categories, "bands": list(BANDS)},
        head=HEAD,
        listing=[item_cells(view, number) for number in numbers.tolist()],
    )
    return page, problems


def write_page(view: PoolView, numbers: Array, rollouts: int, path: Path) -> list[str]:
    """Write the page, whole or not at all; lines that say what it lacks. UserError if the file cannot be written."""
    page, problems = build_page(view, numbers, rollouts)
    try:
        write_whole(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give --out FILE in a writable folder") from error
    return problems
