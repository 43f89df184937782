"""`sweep.html`: which reward to train on, and how sure one can be.

Of variants over rankings of actions success is measured before and after training, over episodes and training seeds.
Between them there are only the metrics of the training: a mean over training seeds with Student's interval; one seed
has none.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_lab.files import read_json_lines, write_whole
from rl_lab.reports.budgets import REFERENCE
from rl_lab.reports.estimates import cell, of_scheme, plain, text_table
from rl_lab.reports.examinations import EXAMINATIONS
from rl_lab.reports.metrics import curve
from rl_lab.reports.numbers import Row, reward, share
from rl_lab.reports.pages.actions import filmed
from rl_lab.reports.pages.charts import Axis, Points, Series, chart, colours, thin
from rl_lab.reports.pages.curves import glossary
from rl_lab.reports.pages.held_out import reward_charts
from rl_lab.reports.pages.markup import ImageBudget, Markup, document, macros, minus, parts
from rl_lab.reports.paired import EFFECT
from rl_lab.reports.run import LoadedRun, label, parse_node
from rl_lab.reports.sweep import ranks_actions, success_points, variant_names
from rl_lab.reports.sweep_verdict import Standing, corrected
from rl_lab.stats import Array, Interval, student_interval

if TYPE_CHECKING:
    from rl_lab.records.item_files import ItemFile

BLOCKS = 40
"""Points of a curve at most; each is the mean of equally many steps."""
SHOWN = {
    "reward/margin": "implicit reward",
    "reward/accuracy": "share",
    "flow/winner": "flow-matching loss",
    "flow/identical": "flow-matching loss",
}
"""Metric of the training -> its unit."""


def seeds_interval(values: Array) -> list[Interval]:
    """Mean over training seeds of each of G values, [R, G], with its interval; of one seed the ends are the mean."""
    if len(values) == 1:
        return [Interval(value, value, value) for value in values[0].tolist()]
    return [student_interval(column) for column in values.T]


def _points(run: LoadedRun, variant: str, metric: str) -> Points:
    """A metric of a variant at the steps at which all its trainings that logged it did."""
    nodes = [stage.name for stage in run.stages if stage.kind == "optimise" and stage.method == variant]
    found = (dict(zip(*curve(run.metrics, node, metric), strict=True)) for node in nodes)
    curves = [values for values in found if values]
    steps = sorted(set(curves[0]).intersection(*curves)) if curves else []
    if not steps:
        return []
    values = [thin(steps, [one[step] for step in steps], min(BLOCKS, len(steps))) for one in curves]
    means = seeds_interval(np.array([y for _, y in values]))
    if SHOWN[metric] == "share":
        means = [replace(mean, low=max(mean.low, 0.0), high=min(mean.high, 1.0)) for mean in means]
    return list(zip(values[0][0], means, strict=True))


def training_charts(run: LoadedRun) -> Markup:
    """Success before and after training, and metrics of the training between; nothing without any."""
    css, ends = colours(variant_names(run.config), REFERENCE), success_points(run)
    series = [Series.through(label(name), points, css[name]) for name, points in ends.items()]
    charts = [chart("Success before and after", series, Axis("optimiser step"), Axis("share"))]
    for metric, unit in SHOWN.items():
        lines = [
            Series.through(label(name), _points(run, name, metric), css[name], area=True)
            for name in variant_names(run.config)
        ]
        charts.append(chart(metric, lines, Axis("optimiser step"), Axis(unit)))
    return parts.charts(charts) + glossary(list(SHOWN)) if any(charts) else Markup("")


SWEEP = macros("sweep_parts")
FLIPS = 3
"""Shown of each direction and variant."""
IMAGE_BUDGET_BYTES = 1_000_000
ANSWER_LETTERS = 160
STANDINGS = {"better": "above", "worse": "below", "not distinguishable": "open"}


def write_sweep(run: LoadedRun, summary: Row) -> None:
    """Write `sweep.json` and `sweep.html` of a run, each whole or not at all."""
    write_whole(run.path / "sweep.json", json.dumps(plain(summary), indent=1) + "\n")
    write_whole(run.path / "sweep.html", build_sweep(run, summary))


def sweep_link() -> Markup:
    """Where the rest of the sweep is; the verdicts stand at the top of the main page."""
    return SWEEP.link()


def build_sweep(run: LoadedRun, summary: Row) -> str:
    """The page as HTML."""
    names, means = categories(summary)
    return document(
        "sweep",
        run=run,
        summary=summary,
        verdicts=verdicts(summary),
        power=power_text(summary["expected"]),
        scores=scores(summary),
        effect=f"{EFFECT:g}",
        on_actions=ranks_actions(run.config),
        curves=training_charts(run) if ranks_actions(run.config) else reward_charts(run),
        categories=names,
        means=means,
        alarms=alarms(summary),
        flips=flips_section(run, summary),
        rewards=[[row["variant"], json.dumps(row["rewards"])] for row in summary["variants"]],
    )


def verdicts(summary: Row) -> list[tuple[str, str | None]]:
    """A line a variant with its CSS class."""
    lines = []
    for row in summary["variants"]:
        if row["variant"] != summary["baseline"]:
            standing = (row["verdict"] or {}).get("standing", "")
            lines.append((minus(row["sentence"]), STANDINGS.get(standing)))
    return lines


def power_text(expected: Row | None) -> str:
    """What was known before the start."""
    if expected is None:
        return (
            "How much training seeds differ was not known before the start: name an earlier sweep.json in "
            "sweep.spread, and this line says what difference the sweep can find."
        )
    needed = expected["seeds_needed"]
    more = f"{needed} training seeds" if needed else "more held-out items"
    return (
        f"Known before the start ({expected['source']}): training seeds differ by {expected['seeds_sd']:.3f} (standard "
        f"deviation), so with {expected['n']} items and {expected['replicates']} of them a difference of "
        f"{expected['detectable']:.3f} is found in 4 of 5 sweeps; "
        f"{expected['effect']:g} needs {more}."
    )


def scores(summary: Row) -> list[list[Any]]:
    """Truth of every variant, and its difference to the baseline."""
    rows = []
    for row in summary["variants"]:
        mean, verdict = row["reward"], row.get("verdict")
        seeds = "" if mean is None else mean.replicates
        cells = [row["variant"], seeds, mean]
        if verdict is None:
            rows.append([*cells, "baseline" if row["variant"] == summary["baseline"] else "no result", "", "", ""])
            continue
        difference = corrected(verdict, summary["baseline"])
        detectable = "" if verdict["detectable"] is None else reward(verdict["detectable"])
        rows.append([*cells, difference, holds_for(verdict), detectable, verdict["seeds_needed"] or ""])
    return rows


def holds_for(verdict: Row) -> str:
    """Whom a difference holds for; nothing where none was shown."""
    return "" if verdict["standing"] == Standing.OPEN else verdict["scope"]


def sweep_lines(sweep: Row) -> list[str]:
    """Truth of every variant, and its difference to the baseline at the level that the sweep keeps."""
    rows = []
    for row in sweep["variants"]:
        verdict = row.get("verdict")
        difference = verdict and cell(corrected(verdict, sweep["baseline"]), reward)
        over = ["", ""] if verdict is None else [difference, holds_for(verdict)]
        rows.append([row["variant"], row["reward"] and row["reward"].replicates, row["reward"], *over])
    head = ["trained on", "seeds", "held-out truth", f"over {sweep['baseline']}", "holds for"]
    return [text_table(head, rows)]


def categories(summary: Row) -> tuple[list[str], list[list[Any]]]:
    """Names of the categories, the baseline's truth in each, and what each variant adds to it."""
    base, *others = summary["variants"]
    names = [name for name in base["means"] if any(row["categories"].get(name) for row in others)]
    body = [[base["variant"], *(base["means"][name] for name in names)]]
    for row in others:
        found = row["categories"]
        body.append([f"{row['variant']}, over it", *(found.get(name) for name in names)])
    return names, body


def alarms(summary: Row) -> list[tuple[str, str]]:
    """Variant and text of what the detectors of reward hacking found."""
    return [
        (row["variant"], text)
        for row in summary["variants"]
        for text in [*row["alarms"], *(f"{name} failed" for name in row["failed"]), *row["failures"]]
    ]


def flips_section(run: LoadedRun, summary: Row) -> Markup:
    """Held-out questions that pass under a variant and not under the baseline, and the reverse."""
    questions = _questions(run)
    if questions is None:
        return _episode_flips(run, summary)
    pictures, blocks = ImageBudget(IMAGE_BUDGET_BYTES), []
    for row in summary["variants"]:
        found = row.get("flips") or []
        for title, chosen in (
            ("gained", [flip for flip in found if flip["variant"] > flip["baseline"]]),
            ("lost", [flip for flip in found if flip["variant"] < flip["baseline"]]),
        ):
            shown = [_flip(run, questions, pictures, row["variant"], summary["baseline"], f) for f in chosen[:FLIPS]]
            if shown:
                blocks.append((f"{row['variant']}: {len(chosen)} {title}", shown))
    return SWEEP.question_flips(blocks, pictures.problems()) if blocks else Markup("")


def _episode_flips(run: LoadedRun, summary: Row) -> Markup:
    """Episodes that most training seeds solve under a variant and not under the baseline, and the reverse."""
    blocks, known = [], len(run.problems)
    films = filmed(run)
    for row in summary["variants"]:
        found = [flip for flip in row.get("flips") or [] if isinstance(flip["item"], tuple)]
        rows = [[" ".join(map(str, flip["item"])), share(flip["variant"]), share(flip["baseline"])] for flip in found]
        if rows:
            gained = sum(flip["variant"] > flip["baseline"] for flip in found)
            title = f"{row['variant']}: {gained} gained, {len(rows) - gained} lost"
            own = [film for folder, film in films if parse_node(folder)[0] == row["variant"]]
            blocks.append((title, own, ["Episode", row["variant"], summary["baseline"]], rows))
    return SWEEP.episode_flips(blocks, run.problems[known:]) if blocks else Markup("")


def _questions(run: LoadedRun) -> ItemFile | None:
    from rl_lab.records.item_files import ItemFile  # here, because it imports the simulator

    path = run.path / "questions" / "questions" / "held_out.arrow"
    return ItemFile(path) if path.exists() else None


def _flip(run: LoadedRun, questions: ItemFile, pictures: ImageBudget, variant: str, baseline: str, flip: Row) -> Markup:
    place = questions.rows_by_id()[flip["item"]]
    record = questions.record(place)
    sides = [
        (name, reward(flip[key]), _typical(run, name, flip["item"], flip[key]))
        for name, key in ((variant, "variant"), (baseline, "baseline"))
    ]
    images = pictures.encode(questions.pngs(place))
    return SWEEP.flip(images, record["prompt"], _truth(record["answer"]), sides, ANSWER_LETTERS)


def _truth(answer: object) -> str:
    """The true answer, in place of a mask's runs that there is one."""
    if isinstance(answer, dict) and answer.get("mask"):
        answer = {**answer, "mask": "..."}
    return json.dumps(answer)[:ANSWER_LETTERS]


def _typical(run: LoadedRun, name: str, item: str, mean: float) -> str:
    """Of all training seeds the answer whose reward is nearest to their mean."""
    answers = [
        (abs(reward - mean), str(answer))
        for examination in of_scheme(run, name)
        for row in read_json_lines(run.path / EXAMINATIONS / Path(examination.node) / "results.jsonl")
        if row["item"] == item
        for reward, answer in zip(row["rewards"], row["answers"], strict=True)
        if reward is not None
    ]
    return min(answers, key=lambda pair: pair[0], default=(0.0, ""))[1]
