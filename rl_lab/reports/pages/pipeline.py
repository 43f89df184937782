"""A pipeline's chain of models with the gates between them, and the traces that it was fine-tuned on.

Of sampled traces: how many were kept, and why the others were not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from algos.rft import REASONS
from rl_lab.records.rollouts import RolloutStore
from rl_lab.reports.numbers import Row, duration, reward
from rl_lab.reports.pages.charts import interval_bar
from rl_lab.reports.pages.held_out import bounds_of
from rl_lab.reports.pages.markup import Cell, Markup, Tile, estimate_text, macros, minus, parts
from rl_lab.reports.pipeline import last_model
from rl_lab.reports.run import BASE, LoadedRun, label

MADE = {
    "cold_start": "cold start",
    "grpo": "GRPO",
    "rft": "fine-tuning on kept traces",
    "distill": "on-policy distillation",
    "imitate": "imitation of the teacher",
    "teacher": "a given checkpoint",
}


def _origin(row: Row) -> str:
    """What a model was made from, in words."""
    parts = [f"from {row['from_model']}"] if row["from_model"] else []
    if row["traces_of"] and row["traces_of"] != row["from_model"]:
        parts.append(f"on traces of {row['traces_of']}")
    if row["taught_by"]:
        parts.append(f"towards {row['taught_by']}")
    return ", ".join([MADE[row["made_by"]], *parts])


def _outcome(row: Row) -> tuple[str, str]:
    """What the gate behind a model said in a word or two, and its CSS class."""
    if row["status"] == "skipped" or row["gate_status"] == "skipped":
        return "skipped", "skipped"
    if row["gate"] is None:
        return ("no gate" if row["gate_status"] is None else f"gate {row['gate_status']}"), ""
    if row["gate"]["passed"]:
        return "passed", "passed"
    otherwise = row["gate"]["otherwise"]
    if otherwise == "stop":
        return "not passed: stop", "held"
    goes = row["goes_on"] if otherwise == "previous" else ", ".join(otherwise)
    return f"not passed: {goes}", "held"


def chain_boxes(rows: list[Row]) -> list[Row]:
    """The models in order; controls have a dashed frame, skipped ones are faint."""
    last, boxes = last_model(rows), []
    for row in rows:
        word, css = _outcome(row)
        mean = "not examined" if row["held_out"] is None else reward(row["held_out"].value)
        classes = ("model", "beside" if row["beside"] else "", css, "final" if last and row is last else "")
        said = word if row["gate_status"] or css == "skipped" else MADE[row["made_by"]]
        boxes.append({"css": " ".join(filter(None, classes)), "model": row["model"], "reward": mean, "said": said})
    return boxes


def chain_table(rows: list[Row]) -> Markup:
    """One row a model."""
    bounds = bounds_of([row["held_out"] for row in rows if row["held_out"]])
    body = []
    for row in rows:
        mean = row["held_out"]
        bar = interval_bar(mean, bounds) if mean else ""
        name = parts.above(row["model"], _origin(row))
        tokens = row["tokens_sampled"] or row["tokens_imitated"]
        if row["status"] == "skipped":
            body.append([name, Cell("skipped", "left"), "", "", "", "", "", ""])
            continue
        seconds = f"{duration(row['seconds'])}{' (reused)' if row['reused'] else ''}"
        compared = [estimate_text(row["over_before"]), estimate_text(row["over_base"])]
        before = parts.above(compared[0], row["before"] or "") if row["over_before"] else ""
        cells = [estimate_text(mean), bar, before, compared[1]]
        body.append([name, *cells, f"{tokens:,}" if tokens else "", row["steps"], seconds])
    head = ["Model", "Held-out reward", "", "Over the one before", "Over the base", "Tokens", "Steps in all", "Time"]
    return parts.table(head, body, css="numbers stacked")


def gate_table(rows: list[Row]) -> Markup:
    """One row a gate: what it asked, what it found, what it took."""
    body = []
    for row in rows:
        if row["gate_status"] is None:
            continue
        found = row["gate"]
        if found is None:
            body.append([f"{row['model']}", *[""] * 5, Cell(row["gate_status"], "left")])
            continue
        ends = f" {found['low']:+.3f} to {found['high']:+.3f}"
        gain = parts.estimate(minus(f"{found['difference']:+.3f}"), minus(ends))
        asked = minus(f"above {found['rise']:g}")
        word, css = _outcome(row)
        goes = f"{row['goes_on']} goes on" if row["goes_on"] else ""
        taken = parts.above(parts.coloured(word, {"passed": "above", "held": "below"}.get(css, "")), goes)
        cells = [f"{found['before']:.3f}", f"{found['after']:.3f}", gain, asked, f"{100 * found['confidence']:g} %"]
        body.append([f"{row['model']} ({found['n']} questions)", *cells, Cell(taken, "left")])
    if not body:
        return Markup("")
    head = ["Gate behind", "Before", "After", "Paired gain", "Asked", "Interval", Cell("Decision", "left")]
    return parts.table(head, body, "Gates, on development questions", "numbers stacked")


def provenance_table(rows: list[Row]) -> Markup:
    """Where every model is and what it hangs on."""
    body = []
    for row in rows:
        parents = ", ".join(f"{role} {parent['node']}" for role, parent in row["parents"].items())
        how = row["status"] if row["status"] != "done" else "reused" if row["reused"] else "computed"
        version = "" if row["weight_version"] is None else row["weight_version"]
        digest = parts.code(str(row["hash"])[:12])
        body.append([row["model"], row["node"], digest, parents, version, row["steps"], how])
    return parts.table(["Model", "Node", "Hash", "Made from", "Weight version", "Steps", ""], body, css="small")


def pipeline_tiles(rows: list[Row]) -> list[Tile]:
    """Base, the model that the chain ends with, and what it gained."""
    last, shown = last_model(rows), []
    base = next((row for row in rows if row["model"] == BASE), None)
    for title, row in (("Base", base), (f"End of the chain: {last['model']}" if last else "", last)):
        if row is not None and row["held_out"] is not None:
            mean = row["held_out"]
            shown.append(Tile(title, reward(mean.value), f"95 % interval {mean.ends()}"))
    if last is not None and last["over_base"] is not None:
        gain = last["over_base"]
        span = minus(f"paired 95 % interval {gain.ends('{:+.3f}'.format)}")
        shown.append(Tile("Over the base", minus(f"{gain.value:+.3f}"), span, gain.standing))
    gates = [row["gate"] for row in rows if row["gate"]]
    if gates:
        passed = sum(gate["passed"] for gate in gates)
        shown.append(Tile("Gates passed", f"{passed} of {len(gates)}", "on development questions"))
    return shown


def pipeline_section(rows: list[Row]) -> Markup:
    """The chain, its gates and where every model is from."""
    return macros("language").pipeline(chain_boxes(rows), chain_table(rows), gate_table(rows), provenance_table(rows))


FOLDER = "rft"
"""Folder of a run with one folder for each node that sampled traces."""

EXAMPLES = 4
"""Of kept traces, and of dropped ones of each reason."""

LETTERS = 240

SHOWN = ("item", "completion", "reward", "judge_score", "why_dropped")


def rft_section(run: LoadedRun) -> Markup:
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


def _counts(run: LoadedRun, node: str) -> dict[str, Any]:
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
