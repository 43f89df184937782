"""The section of a report on traces that were sampled for fine-tuning: how many were kept, why the others were not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from algos.rft import REASONS
from rl_lab.records.rollouts import RolloutStore
from rl_lab.reports.markup import Markup, macros, parts
from rl_lab.reports.rundir import RunFolder, label

FOLDER = "rft"
"""Folder of a run with one folder for each node that sampled traces."""
EXAMPLES = 4
"""Of kept traces, and of dropped ones of each reason."""
LETTERS = 240
SHOWN = ("item", "completion", "reward", "judge_score", "why_dropped")


def rft_section(run: RunFolder) -> Markup:
    """Counts of every stage of traces, and examples; nothing for a run without any."""
    nodes = [stage for stage in run.stages if stage.get("kind") == "traces" and stage.get("status") == "done"]
    counts = {node["name"]: found for node in nodes if (found := _counts(run, node["name"]))}
    if not counts:
        return Markup("")
    reasons = [reason for reason in REASONS if any(f"why_dropped/{reason}" in line for line in counts.values())]
    head = ["Traces of", "Sampled", "Kept", "Questions", "With a kept trace", *(r.replace("_", " ") for r in reasons)]
    names = ("candidates", "kept", "items", "items_kept")
    rows = [
        [
            label(node.removesuffix(".traces")),
            *(_whole(line[f"traces/{name}"]) for name in names),
            *(_whole(line.get(f"why_dropped/{reason}", 0)) for reason in reasons),
        ]
        for node, line in counts.items()
    ]
    examples = [(label(node), _examples(run.path / FOLDER / node)) for node in counts]
    return macros("language").traces(head, rows, examples)


def _counts(run: RunFolder, node: str) -> dict[str, Any]:
    """The line of the selection."""
    return next((line for line in run.metrics if line.get("node") == node and "traces/candidates" in line), {})


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _examples(folder: Path) -> Markup:
    """The first kept traces, and the first dropped ones of each reason, of the last stored step."""
    store = RolloutStore(folder)
    steps = store.steps()
    try:
        rows = store.read(steps=steps[-1:], columns=SHOWN)
    except (OSError, ValueError) as error:
        return parts.note(f"The traces of {folder.name} cannot be read: {error}")
    shown: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        group = shown.setdefault(row["why_dropped"] or "kept", [])
        if len(group) < EXAMPLES:
            group.append(row)
    order = [name for name in ("kept", *REASONS) if name in shown]
    lines = [
        [name.replace("_", " "), row["item"], _score(row["reward"]), _score(row["judge_score"]), _snippet(row)]
        for name in order
        for row in shown[name]
    ]
    return parts.table(["", "Question", "Reward", "Judge", "Trace"], lines, f"Of step {steps[-1]}")


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _snippet(row: dict[str, Any]) -> str:
    text = " ".join(row["completion"].split())
    return text if len(text) <= LETTERS else f"{text[:LETTERS]} \u2026"
