"""Sampled answers in a run's report: the browser of rollouts, and counts and examples of traces for fine-tuning.

Rollouts are groups of answers to one question each, from all over the training. Of traces the page says how many were
kept, and why the others were not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from algos.rft import REASONS
from rl_lab.common.errors import UserError
from rl_lab.curriculum.view import PoolRow, PoolView
from rl_lab.records.rollouts import RolloutRow, RolloutStore, finite, rollout_data
from rl_lab.reports.examinations import LearningCurve
from rl_lab.reports.numbers import spread
from rl_lab.reports.pages.markup import ImageBudget, Markup, macros, parts
from rl_lab.reports.run import LoadedRun, label

GROUPS = 24
"""Groups in the page, over all schemes."""
ANSWERS = 6
"""Answers of a group, from the best to the worst."""
NEWEST = 3
"""Share of the groups that come from the newest step: one in so many; the others from evenly spaced earlier ones."""
ANSWER_LETTERS = 240
"""Of a right answer; the rest, such as the runs of a mask, tells a reader nothing."""
IMAGE_BUDGET_BYTES = 1_500_000
TOKEN_BUDGET = 60_000
"""Tokens in the page; groups beyond it are left out. A token takes about 25 bytes."""
EXAMPLES = 4
"""Of kept traces, and of dropped ones of each reason."""
TRACE_LETTERS = 240
SHOWN = ("item", "completion", "reward", "judge_score", "why_dropped")
Group = list[RolloutRow]


def first_trainings(run: LoadedRun) -> list[LearningCurve]:
    """The first replicate of every scheme that has rollouts."""
    found: dict[str, LearningCurve] = {}
    for training in run.trainings:
        if RolloutStore(training.folder).steps():
            found.setdefault(training.scheme, training)
    return list(found.values())


def group_mean(group: Group) -> float:
    """Mean reward of the answers that have one, 0 without any."""
    known = [row["reward"] for row in group if row["reward"] is not None]
    return sum(known) / len(known) if known else 0.0


def choose_groups(store: RolloutStore, count: int) -> tuple[list[Group], list[str]]:
    """About `count` groups, the newest first, spread over steps and within a step over mean rewards; and problems."""
    steps = store.steps()
    newest = max(count // NEWEST, 1)
    earlier = [steps[:-1][place] for place in spread(len(steps) - 1, count - newest)] if count > newest else []
    wanted = {steps[-1]: newest} | {
        step: (count - newest) // len(earlier) + (place < (count - newest) % len(earlier))
        for place, step in enumerate(reversed(earlier))
    }
    chosen, problems = [], []
    for turn, (step, number) in enumerate(wanted.items()):
        try:
            rows = store.read(steps=[step])
        except (OSError, ValueError) as error:
            problems.append(f"{store.path(step).name} cannot be read: {' '.join(str(error).split())}")
            continue
        groups: dict[int, Group] = {}
        for row in rows:
            groups.setdefault(row["group"], []).append(row)
        ordered = sorted(groups.values(), key=group_mean)
        places = spread(len(ordered), number) if number > 1 else [(turn * 5) % len(ordered)] if ordered else []
        chosen += [ordered[place] for place in places]
    return chosen, problems


def _answers(group: Group) -> Group:
    """Some answers of a group, the best first; masked ones last."""
    ordered = sorted(group, key=lambda row: -1.0 if row["reward"] is None else row["reward"], reverse=True)
    return [ordered[place] for place in spread(len(ordered), ANSWERS)]


def group_data(group: Group, scheme: str, item: PoolRow, images: list[str]) -> dict[str, Any]:
    """One group as the script reads it; `item` as the pool has it, empty without a pool."""
    rewards = [row["reward"] for row in group if row["reward"] is not None]
    answer = item.get("content", {}).get("answer", "")
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return {
        "id": f"{scheme}-{group[0]['step']}-{group[0]['group']}",
        "name": group[0]["item"],
        "scheme": label(scheme),
        "step": group[0]["step"],
        "version": group[0]["weight_version"],
        "category": item.get("category", ""),
        "task": item.get("task", ""),
        "prompt": group[0]["prompt"],
        "answer": _begin(text, ANSWER_LETTERS),
        "mean": finite(group_mean(group), 3),
        "kind": "mixed" if rewards and max(rewards) - min(rewards) > 1e-6 else "all alike",
        "of": len(group),
        "images": images,
        "samples": [rollout_data(row) for row in _answers(group)],
    }


def _scheme_groups(run: LoadedRun, training: LearningCurve, count: int, pictures: ImageBudget) -> list[dict[str, Any]]:
    groups, problems = choose_groups(RolloutStore(training.folder), count)
    run.problems += [f"{training.node}: {problem}" for problem in problems]
    try:
        with closing(PoolView(str(training.folder))) as view:
            found = []
            for group in groups:
                number = view.number(group[0]["item"])
                images = pictures.encode(view.images(number))
                found.append(group_data(group, training.scheme, view.item(number), images))
        return found
    except UserError as error:
        run.problems.append(str(error))
        return [group_data(group, training.scheme, {}, []) for group in groups]


def _within(groups: Sequence[dict[str, Any]], budget: int = TOKEN_BUDGET) -> list[dict[str, Any]]:
    """The first groups whose tokens fit."""
    kept, used = [], 0
    for group in groups:
        used += sum(len(sample["tokens"]) for sample in group["samples"])
        if used <= budget:
            kept.append(group)
    return kept


def rollouts_section(run: LoadedRun) -> Markup:
    """The browser; its scripts are `browser.js` and `rollouts_page.js`. Nothing for a run without rollouts."""
    trainings = first_trainings(run)
    if not trainings:
        return Markup("")
    pictures = ImageBudget(IMAGE_BUDGET_BYTES)
    shares = [GROUPS // len(trainings) + (place < GROUPS % len(trainings)) for place in range(len(trainings))]
    columns = [_scheme_groups(run, *pair, pictures) for pair in zip(trainings, shares, strict=True)]
    turns = [column[turn] for turn in range(max(shares)) for column in columns if turn < len(column)]
    groups = _within(turns)
    run.problems += pictures.problems()
    rows = [[g["name"], g["scheme"], g["step"], g["category"], f"{g['mean']:.3f}", g["prompt"]] for g in groups]
    return macros("language").rollouts({"groups": groups}, [training.node for training in trainings], ANSWERS, rows)


def traces_section(run: LoadedRun) -> Markup:
    """Counts of every stage of traces, and examples; nothing for a run without any."""
    done = [stage.name for stage in run.stages if stage.kind == "traces" and stage.status == "done"]
    lines = {line.get("node"): line for line in reversed(run.metrics) if "traces/candidates" in line}
    counts = {node: lines[node] for node in done if node in lines}
    if not counts:
        return Markup("")
    reasons = [reason for reason in REASONS if any(f"why_dropped/{reason}" in line for line in counts.values())]
    head = ["Traces of", "Sampled", "Kept", "Questions", "With a kept trace", *(r.replace("_", " ") for r in reasons)]
    names = [f"traces/{name}" for name in ("candidates", "kept", "items", "items_kept")]
    names += [f"why_dropped/{reason}" for reason in reasons]
    rows = [
        [label(node.removesuffix(".traces")), *(f"{line.get(name, 0):,.0f}" for name in names)]
        for node, line in counts.items()
    ]
    examples = [(label(node), _examples(run.path / "rft" / node)) for node in counts]
    return macros("language").traces(head, rows, examples)


def _examples(folder: Path) -> Markup:
    """The first kept traces, and the first dropped ones of each reason, of the last stored step."""
    store = RolloutStore(folder)
    steps = store.steps()
    try:
        rows = store.read(steps=steps[-1:], columns=SHOWN)
    except (OSError, ValueError) as error:
        return parts.note(f"The traces of {folder.name} cannot be read: {error}")
    shown: dict[str, list[list[str]]] = {}
    for row in rows:
        why, text = row["why_dropped"] or "kept", " ".join(row["completion"].split())
        scores = ("" if value is None else f"{value:.2f}" for value in (row["reward"], row["judge_score"]))
        shown.setdefault(why, []).append([why.replace("_", " "), row["item"], *scores, _begin(text, TRACE_LETTERS)])
    lines = [line for name in ("kept", *REASONS) for line in shown.get(name, [])[:EXAMPLES]]
    return parts.table(["", "Question", "Reward", "Judge", "Trace"], lines, f"Of step {steps[-1]}")


def _begin(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[:letters]} \u2026"
