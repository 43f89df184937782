"""`sweep.html`: which reward to train on, and how sure one can be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl_lab.files import write_whole
from rl_lab.json_lines import read_json_lines
from rl_lab.reports.document import document
from rl_lab.reports.estimates import of_scheme
from rl_lab.reports.examinations import EXAMINATIONS
from rl_lab.reports.held_out_page import difference_text, mean_text, minus
from rl_lab.reports.markup import Markup, details, join, note, section, table, tag
from rl_lab.reports.pictures import Pictures
from rl_lab.reports.rundir import RunFolder, parse_node
from rl_lab.reports.schemes_page import reward_charts
from rl_lab.reports.sweep_curves import training_charts
from rl_lab.reports.sweep_truth import ranks_actions
from rl_lab.reports.sweep_verdict import EFFECT
from rl_lab.reports.verdict import Row, reward, share
from rl_lab.reports.videos import filmed

if TYPE_CHECKING:
    from rl_lab.language.item_files import ItemFile

FLIPS = 3
"""Shown of each direction and variant."""
IMAGE_BUDGET_BYTES = 1_000_000
ANSWER_LETTERS = 160
STANDINGS = {"better": "above", "worse": "below", "not distinguishable": "open"}


def write_sweep(run: RunFolder, summary: Row) -> None:
    """Write `sweep.json` and `sweep.html` of a run, each whole or not at all."""
    write_whole(run.path / "sweep.json", json.dumps(summary, indent=1) + "\n")
    write_whole(run.path / "sweep.html", build_sweep(run, summary))


def sweep_link() -> Markup:
    """Where the rest of the sweep is; the verdicts stand at the top of the main page."""
    text = "Curves, categories, flips and alarms of all variants are on "
    link = tag("a", "the page of the sweep", href="sweep.html")
    return section("sweep", "Variants of the sweep", tag("p", text, link, "."))


def build_sweep(run: RunFolder, summary: Row) -> str:
    """The page as HTML."""
    body = [
        tag("h1", f"{run.name}: which reward?"),
        tag("p", f"Every variant trains on its own reward and is judged by one truth. {_basis(summary)}", css="lead"),
        verdicts(summary),
        scores(summary),
        curves(run),
        categories(summary),
        alarms(summary),
        flips_section(run, summary),
        settings(summary),
    ]
    return document(f"{run.name}: sweep", body, styles=["browser.css"])


def _basis(summary: Row) -> str:
    seeds = summary["replicates"]
    return f"Unit of analysis: {summary['unit']}, {seeds} training seed{'s' if seeds > 1 else ''} a variant."


def verdicts(summary: Row) -> Markup:
    """A line a variant, and what the sweep could be expected to show."""
    lines = []
    for row in summary["variants"]:
        if row["variant"] == summary["baseline"]:
            continue
        standing = (row["verdict"] or {}).get("standing", "")
        lines.append(tag("li", minus(row["sentence"]), css=STANDINGS.get(standing) or None))
    return section("verdicts", "Verdicts", tag("ul", *lines), note(power_text(summary["expected"])))


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


def scores(summary: Row) -> Markup:
    """Truth of every variant, and its difference to the baseline."""
    rows = []
    for row in summary["variants"]:
        mean, verdict = row["reward"], row.get("verdict")
        seeds = "" if mean is None else mean["replicates"]
        cells = [row["variant"], seeds, mean_text(mean)]
        if verdict is None:
            rows.append([*cells, "baseline" if row["variant"] == summary["baseline"] else "no result", "", "", ""])
            continue
        difference = verdict["difference"] | {"n": verdict["n"], "replicates": verdict["seeds"]}
        detectable = "" if verdict["detectable"] is None else reward(verdict["detectable"])
        rows.append([*cells, difference_text(difference), verdict["scope"], detectable, verdict["seeds_needed"] or ""])
    head = [
        "Trained on",
        "Seeds",
        "Held-out truth",
        f"Over {summary['baseline']}",
        "Holds for",
        "Detectable",
        f"Seeds for {EFFECT:g}",
    ]
    reading = (
        "Held-out truth: 95 % interval. Over the baseline: paired by item and training seed, at a level at which all "
        "intervals of the sweep hold together in 95 of 100 sweeps (Bonferroni). Holds for: what the difference's "
        "interval covers. Detectable: the difference that such a sweep finds in 4 of 5 cases."
    )
    return section("scores", "Held-out truth", table(head, rows, css="numbers stacked"), note(reading))


def curves(run: RunFolder) -> Markup:
    """The truth while training; of actions before and after it, with the training's own metrics between."""
    if ranks_actions(run.config):
        charts = training_charts(run)
        text = (
            "Success: held-out episodes, 95 % interval over episodes and training seeds. The others: mean over "
            "training seeds, on the batches of each variant's own pairs; area: Student's 95 % interval."
        )
        return section("curves", "Before, while and after training", charts, note(text)) if charts else Markup("")
    charts = reward_charts(run)
    text = "Mean over training seeds of one sampled answer to each held-out question; area: 95 % interval."
    return section("curves", "Held-out truth while training", charts, note(text)) if charts else Markup("")


def categories(summary: Row) -> Markup:
    """The baseline's truth by category, and what each variant adds to it."""
    base, *others = summary["variants"]
    names = [name for name in base["means"] if any(row["categories"].get(name) for row in others)]
    if not names:
        return Markup("")
    body = [[base["variant"], *(mean_text(base["means"][name]) for name in names)]]
    for row in others:
        found = row["categories"]
        body.append([f"{row['variant']}, over it", *(difference_text(found.get(name)) for name in names)])
    remark = (
        "First row: the baseline's mean. Not corrected for the number of categories: of twenty such intervals one "
        "excludes 0 by chance."
    )
    return section(
        "categories", "By category", table(["Trained on", *names], body, css="numbers stacked"), note(remark)
    )


def alarms(summary: Row) -> Markup:
    """What the detectors of reward hacking found."""
    lines = [
        tag("li", tag("b", row["variant"]), f": {text}")
        for row in summary["variants"]
        for text in [*row["alarms"], *(f"{name} failed" for name in row["failed"]), *row["failures"]]
    ]
    clean = note(
        "No detector of reward hacking fired (reward against truth, dominance, length, format, spread, disagreement), "
        "and no reward call failed."
    )
    return section("alarms", "Reward hacking and failed rewards", tag("ul", *lines) if lines else clean)


def flips_section(run: RunFolder, summary: Row) -> Markup:
    """Held-out questions that pass under a variant and not under the baseline, and the reverse."""
    questions = _questions(run)
    if questions is None:
        return _episode_flips(run, summary)
    pictures, parts = Pictures(IMAGE_BUDGET_BYTES), []
    for row in summary["variants"]:
        found = row.get("flips") or []
        for title, chosen in (
            ("gained", [flip for flip in found if flip["variant"] > flip["baseline"]]),
            ("lost", [flip for flip in found if flip["variant"] < flip["baseline"]]),
        ):
            shown = [_flip(run, questions, pictures, row["variant"], summary["baseline"], f) for f in chosen[:FLIPS]]
            if shown:
                parts.append(details(f"{row['variant']}: {len(chosen)} {title}", *shown))
    reading = (
        "Questions whose mean reward crosses the pass threshold, averaged over training seeds; of each side the answer "
        "whose reward is nearest to that mean."
    )
    return section("flips", "Questions that flip", note(reading, *pictures.problems()), *parts) if parts else Markup("")


def _episode_flips(run: RunFolder, summary: Row) -> Markup:
    """Episodes that most training seeds solve under a variant and not under the baseline, and the reverse."""
    parts, known = [], len(run.problems)
    films = filmed(run)
    for row in summary["variants"]:
        found = [flip for flip in row.get("flips") or [] if isinstance(flip["item"], tuple)]
        rows = [[" ".join(map(str, flip["item"])), share(flip["variant"]), share(flip["baseline"])] for flip in found]
        if rows:
            gained = sum(flip["variant"] > flip["baseline"] for flip in found)
            title = f"{row['variant']}: {gained} gained, {len(rows) - gained} lost"
            own = [film for folder, film in films if parse_node(folder)[0] == row["variant"]]
            every = table(["Episode", row["variant"], summary["baseline"]], rows, css="numbers")
            parts.append(details(title, tag("div", *own, css="videos"), details("Every one of them", every)))
    reading = "Episodes whose success, averaged over training seeds, crosses one half; films of two policies each."
    return section("flips", "Episodes that flip", note(reading, *run.problems[known:]), *parts) if parts else Markup("")


def _questions(run: RunFolder) -> ItemFile | None:
    from rl_lab.language.item_files import ItemFile  # here, because it imports the simulator

    path = run.path / "questions" / "questions" / "held_out.arrow"
    return ItemFile(path) if path.exists() else None


def _flip(run: RunFolder, questions: ItemFile, pictures: Pictures, variant: str, baseline: str, flip: Row) -> Markup:
    place = questions.rows_by_id()[flip["item"]]
    record = questions.record(place)
    images = [tag("img", src=uri, alt="the question's picture") for uri in pictures.encode(questions.pngs(place))]
    sides = [
        tag(
            "div",
            tag("b", f"{name} (mean {reward(flip[key])}): "),
            _shown(_typical(run, name, flip["item"], flip[key])),
        )
        for name, key in ((variant, "variant"), (baseline, "baseline"))
    ]
    truth = tag("p", tag("b", "truth: "), _truth(record["answer"]))
    return tag("article", *images, tag("div", tag("p", record["prompt"]), truth, *sides), css="flip")


def _truth(answer: object) -> str:
    """The true answer, in place of a mask's runs that there is one."""
    if isinstance(answer, dict) and answer.get("mask"):
        answer = {**answer, "mask": "..."}
    return json.dumps(answer)[:ANSWER_LETTERS]


def _typical(run: RunFolder, name: str, item: str, mean: float) -> str:
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


def _shown(answer: str) -> Markup | str:
    """An answer with its trace; of a long one the beginning, the whole behind it."""
    if len(answer) <= ANSWER_LETTERS:
        return answer
    return details(f"{answer[:ANSWER_LETTERS]} \u2026", tag("pre", answer))


def settings(summary: Row) -> Markup:
    """The reward section of every variant."""
    rows: Sequence[Sequence[str]] = [[row["variant"], json.dumps(row["rewards"])] for row in summary["variants"]]
    return join([details("The variants' rewards", table(["Variant", "rewards"], rows))])
