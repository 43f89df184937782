"""Learning curves: what `metrics.jsonl` holds, node after node of a method, with a line where a round begins."""

from __future__ import annotations

from collections.abc import Sequence

from rl_lab.files import Record
from rl_lab.reports.metrics import HEADER, curve, define, is_finite
from rl_lab.reports.pages.charts import Axis, Series, chart
from rl_lab.reports.pages.markup import Markup, macros, parts
from rl_lab.reports.run import LoadedRun, label

CURVES = macros("curves")
GROUPS = {
    "Loss and its parts": ("loss", "loss/preference", "loss/proximal", "loss/sft", "flow/loss", "flow/probe"),
    "Flow-matching losses, dashed: frozen reference": (
        *("flow/winner", "flow/winner_reference", "flow/loser", "flow/loser_reference"),
        *("flow/identical", "flow/identical_reference"),
    ),
    "Share of each term in the gradient": (
        *("gradient_share/preference", "gradient_share/proximal", "gradient_share/sft"),
    ),
    "Share of pairs whose loss is no longer pulled down": ("capped/winner", "capped/identical"),
}
"""Chart title -> metrics drawn in it."""
REWARDS = ("reward/winner", "reward/loser", "reward/identical")
CSS = {
    "loss": "c0",
    "loss/preference": "c1",
    "loss/proximal": "c2",
    "loss/sft": "c3",
    "flow/loss": "c4",
    "flow/probe": "c1",
    "winner": "cw",
    "loser": "cl",
    "identical": "cg",
    "preference": "c1",
    "proximal": "c2",
    "sft": "c3",
}
"""Metric, or the last part of its name, -> CSS class; winner and loser keep their colours on the whole page."""


def _css(name: str) -> str:
    return CSS.get(name) or CSS.get(name.split("/")[-1].removesuffix("_reference"), "c0")


def training_nodes(run: LoadedRun) -> dict[str, list[str]]:
    """Method (or the node's name outside the rounds) -> nodes that logged values, in order of their rounds.

    Trainings with replicates are no rounds of one another; see `language_curves`. Of a sweep over rankings of actions
    those of training seed 1.
    """
    found: dict[str, dict[str, int]] = {}
    replicates = {training.node for training in run.trainings} | {arm.node for arm in run.joint}
    for record in run.metrics:
        node = record.get("node")
        if (record.get("replicate") or 1) > 1:
            continue
        if node and node not in replicates and "alarm" not in record and record.get("step") is not None:
            found.setdefault(record.get("method") or node, {})[node] = record.get("round") or 0
    return {method: sorted(nodes, key=nodes.__getitem__) for method, nodes in found.items()}


def logged_values(records: Sequence[Record], nodes: Sequence[str]) -> list[str]:
    """Names of the finite values that these nodes logged, in order of appearance."""
    rows = (record for record in records if record.get("node") in nodes and "alarm" not in record)
    return list(dict.fromkeys(k for row in rows for k, v in row.items() if k not in HEADER and is_finite(v)))


def offsets(run: LoadedRun, nodes: Sequence[str]) -> dict[str, float]:
    """Optimiser steps of all earlier nodes, by node."""
    found, total = {}, 0.0
    for node in nodes:
        found[node] = total
        total += max((r["step"] for r in run.metrics if r.get("node") == node and is_finite(r.get("step"))), default=0)
    return found


def _series(run: LoadedRun, nodes: Sequence[str], name: str) -> list[Series]:
    """One metric against the steps since the first node began, a line of its own for each node."""
    found = []
    for node, offset in offsets(run, nodes).items():
        x, y = curve(run.metrics, node, name)
        found.append(Series(name, [offset + step for step in x], y, _css(name), dashed=name.endswith("_reference")))
    return found


def metric_chart(run: LoadedRun, title: str, nodes: Sequence[str], names: Sequence[str], y_label: str) -> Markup:
    """A chart of some metrics of a chain of nodes; nothing if none of them was logged."""
    series = [line for name in names for line in _series(run, nodes, name)]
    starts = list(offsets(run, nodes).items())
    separators = [(start, f"round {i}") for i, (_, start) in enumerate(starts, start=1)] if len(starts) > 1 else []
    definitions = {name: text for name in names if (text := define(name))}
    share = y_label == "share"
    y_axis = Axis(y_label, (0, 1) if share else None, may_be_log=not share and y_label != "implicit reward")
    return chart(title, series, Axis("optimiser step"), y_axis, separators=separators, definitions=definitions)


def _grouped(run: LoadedRun, nodes: Sequence[str]) -> list[Markup]:
    """The charts of `GROUPS` that have something to draw."""
    known = logged_values(run.metrics, nodes)
    if "flow/probe" not in known:  # then `flow/loss` is `loss`
        known = [name for name in known if name != "flow/loss"]
    units = {title: "share" if title.startswith("Share") else "loss" for title in GROUPS}
    charts = [
        metric_chart(run, title, nodes, [n for n in names if n in known], units[title])
        for title, names in GROUPS.items()
    ]
    return [drawn for drawn in charts if drawn]


def _rest(run: LoadedRun, nodes: Sequence[str]) -> list[Markup]:
    """Every other logged value, each in a chart of its own."""
    drawn = {name for names in GROUPS.values() for name in names} | set(REWARDS)
    names = [name for name in logged_values(run.metrics, nodes) if name not in drawn]
    return [metric_chart(run, name, nodes, [name], name) for name in names]


def rewards(run: LoadedRun) -> Markup:
    """Implicit rewards of winner and loser of every method that has them."""
    charts = []
    for method, nodes in training_nodes(run).items():
        names = [name for name in REWARDS if name in logged_values(run.metrics, nodes)]
        charts.append(metric_chart(run, label(method), nodes, names, "implicit reward"))
    if not any(charts):
        return parts.missing("rewards", "Implicit rewards", "No method of this run logged implicit rewards.")
    return CURVES.rewards(charts)


def chain(run: LoadedRun, method: str, nodes: Sequence[str]) -> Markup:
    """All charts of a chain of nodes; a single one takes half the width."""
    return CURVES.chain(label(method), _grouped(run, nodes), _rest(run, nodes))


def glossary(names: Sequence[str]) -> Markup:
    """What logged values mean, behind a heading."""
    return CURVES.glossary([(parts.code(name), define(name) or "not defined") for name in names])


def learning_curves(run: LoadedRun) -> Markup:
    """Losses of SFT and of every method, and the definition of every logged value."""
    chains = training_nodes(run)
    if not chains:
        return parts.missing("curves", "Learning curves", "metrics.jsonl has no training step.")
    names = logged_values(run.metrics, [node for nodes in chains.values() for node in nodes])
    return CURVES.learning_curves([chain(run, method, nodes) for method, nodes in chains.items()], glossary(names))
