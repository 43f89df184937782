"""What `study.html` shows of one world of a study of rewards, rankings or curricula beside its comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rl_lab.common.files import read_json_lines
from rl_lab.reports.budgets import REACH_METHOD
from rl_lab.reports.estimates import of_scheme
from rl_lab.reports.examinations import EXAMINATIONS
from rl_lab.reports.numbers import Row, p_text, percent, reward, share
from rl_lab.reports.pages.actions import filmed
from rl_lab.reports.pages.charts import Axis, chart, colours
from rl_lab.reports.pages.curves import glossary, mean_series
from rl_lab.reports.pages.held_out import reward_charts
from rl_lab.reports.pages.markup import ImageBudget, Markup, macros, minus, parts
from rl_lab.reports.run import LoadedRun, label, study_place
from rl_lab.reports.study import MEASURES, Comparison, Measure

if TYPE_CHECKING:
    from rl_lab.records.item_files import ItemFile

STUDY = macros("study_parts")
SHOWN = {
    "reward/margin": "implicit reward",
    "reward/accuracy": "share",
    "flow/winner": "flow-matching loss",
    "flow/identical": "flow-matching loss",
}
"""Metric of a training on pairs -> its unit."""
FLIPS = 3
"""Shown of each direction and method."""
IMAGE_BUDGET_BYTES = 1_000_000
ANSWER_LETTERS = 160


def difference(one: Comparison, measure: Measure) -> Markup | str:
    """With its interval; coloured where it is decided."""
    if one.difference is None or one.p is None:
        return "no result" if not one.seeds else "one seed"
    low, high = measure.difference(one.difference.low), measure.difference(one.difference.high)
    standing = one.difference.standing if one.is_decided else "open"
    if not measure.is_gain:
        standing = {"above": "worse", "below": "better"}.get(standing, standing)
    after = "" if one.corrected_p is None else f", after correction {p_text(one.corrected_p)}"
    title = f"{one.seeds} training seeds, n {one.n}, p {p_text(one.p)}{after}"
    return parts.estimate(minus(measure.difference(one.difference.value)), minus(f" {low} to {high}"), standing, title)


def world_sections(here: LoadedRun, summary: Row, found: Row) -> Markup:
    """Curves, what training took, categories, alarms and flips of one world."""
    measure = MEASURES[summary["measure"]]
    others = [name for name in summary["methods"] if name != summary["control"]]
    return STUDY.details(
        curves=reward_charts(here) or training_charts(here, summary["methods"]),
        spent=spent_table(found["spent"], label(summary["control"])),
        head=["", *(f"{label(name)} over {label(summary['control'])}" for name in others)],
        categories=[
            [row["category"], *(difference(one, measure) for one in row["methods"])] for row in found["categories"]
        ],
        alarms=[(name, text) for name, texts in found["alarms"].items() for text in texts],
        flips=flips_section(here, summary["control"], found["flips"]),
    )


def spent_table(rows: list[Row], control: str) -> Markup:
    """Tokens, questions and groups with a signal of trainings on questions; nothing without any."""
    if not rows:
        return Markup("")
    head = ["", "Completion tokens", f"Tokens to {control}'s final reward", "Seeds that got there", "Questions asked"]
    body = [
        [
            label(row["method"]),
            f"{row['tokens']:,.0f}",
            *_reached(row),
            "" if row["questions"] is None else f"{row['questions']:,.0f}",
            "" if row["signal"] is None else percent(row["signal"]),
        ]
        for row in rows
    ]
    return STUDY.spent([*head, "Groups with a signal"], body, rows[0].get("target"), control, REACH_METHOD)


def _reached(row: Row) -> tuple[Markup | str, str]:
    """Share of the control's tokens to its final reward, and seeds that got there; empty where a curve is missing."""
    if "share" not in row:
        return "", ""
    ends = f" {share(row['low'])} to {share(row['high'])}"
    return parts.estimate(share(row["share"]), ends), f"{row['seeds_reached']} of {row['seeds']}"


def training_charts(here: LoadedRun, methods: list[str]) -> Markup:
    """Metrics of the last round of training on pairs, a line a method; nothing without any."""
    css, charts = colours(methods, here.reference), []
    last = max((stage.round or 0 for stage in here.stages if stage.kind == "optimise"), default=0)
    nodes = {
        name: [one.name for one in here.stages if (one.kind, one.method, one.round) == ("optimise", name, last)]
        for name in methods
    }
    for metric, unit in SHOWN.items():
        lines = [mean_series(here, nodes[name], metric, label(name), css[name]) for name in methods]
        charts.append(chart(metric, lines, Axis("optimiser step"), Axis(unit)))
    return parts.charts(charts) + glossary(list(SHOWN)) if any(charts) else Markup("")


def flips_section(here: LoadedRun, control: str, flips: dict[str, list[Row]]) -> Markup:
    """Held-out questions that pass under a method and not under the control, and the reverse."""
    questions = _questions(here)
    if questions is None:
        return _episode_flips(here, control, flips)
    pictures, blocks = ImageBudget(IMAGE_BUDGET_BYTES), []
    for name, found in flips.items():
        for title, chosen in (
            ("gained", [flip for flip in found if flip["method"] > flip["control"]]),
            ("lost", [flip for flip in found if flip["method"] < flip["control"]]),
        ):
            shown = [_flip(here, questions, pictures, name, control, flip) for flip in chosen[:FLIPS]]
            if shown:
                blocks.append((f"{name}: {len(chosen)} {title}", shown))
    return STUDY.question_flips(blocks, pictures.problems()) if blocks else Markup("")


def _episode_flips(here: LoadedRun, control: str, flips: dict[str, list[Row]]) -> Markup:
    """Episodes that most training seeds solve under a method and not under the control, and the reverse."""
    blocks, known, films = [], len(here.problems), filmed(here)
    for name, found in flips.items():
        rows = [
            [" ".join(map(str, flip["item"])), share(flip["method"]), share(flip["control"])]
            for flip in found
            if isinstance(flip["item"], tuple)
        ]
        if rows:
            gained = sum(flip["method"] > flip["control"] for flip in found)
            own = [film for folder, film in films if study_place(folder)[2].partition(".")[0] == name]
            title = f"{name}: {gained} gained, {len(rows) - gained} lost"
            blocks.append((title, own, ["Episode", name, control], rows))
    return STUDY.episode_flips(blocks, here.problems[known:]) if blocks else Markup("")


def _questions(here: LoadedRun) -> ItemFile | None:
    """The held-out questions of the world, or of another that it shares them with."""
    from rl_lab.records.item_files import ItemFile  # here, because it imports the simulator

    own = {stage.name for stage in here.stages}
    paths = sorted(here.path.glob("questions/*/held_out.arrow"), key=lambda path: path.parent.name not in own)
    return ItemFile(paths[0]) if paths else None


def _flip(here: LoadedRun, questions: ItemFile, pictures: ImageBudget, method: str, control: str, flip: Row) -> Markup:
    place = questions.rows_by_id()[flip["item"]]
    record = questions.record(place)
    sides = [
        (name, reward(flip[key]), _typical(here, name, flip["item"], flip[key]))
        for name, key in ((method, "method"), (control, "control"))
    ]
    images = pictures.encode(questions.pngs(place))
    return STUDY.flip(images, record["prompt"], _truth(record["answer"]), sides, ANSWER_LETTERS)


def _truth(answer: object) -> str:
    """The true answer, in place of a mask's runs that there is one."""
    if isinstance(answer, dict) and answer.get("mask"):
        answer = {**answer, "mask": "..."}
    return json.dumps(answer)[:ANSWER_LETTERS]


def _typical(here: LoadedRun, name: str, item: str, mean: float) -> str:
    """Of all training seeds the answer whose reward is nearest to their mean."""
    answers = [
        (abs(reward - mean), str(answer))
        for examination in of_scheme(here, name)
        for row in read_json_lines(here.path / EXAMINATIONS / Path(examination.node) / "results.jsonl")
        if row["item"] == item
        for reward, answer in zip(row["rewards"], row["answers"], strict=True)
        if reward is not None
    ]
    return min(answers, key=lambda pair: pair[0], default=(0.0, ""))[1]
