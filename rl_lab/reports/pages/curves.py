"""Learning curves: what `metrics.jsonl` holds, node after node of a method, with a line where a round begins.

Of training on questions the schemes stand beside each other, then what each one's rewards, bands and time are made of.
A line is the mean over the replicates that logged the step; the area behind it runs from the lowest to the highest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import cycle, product

import numpy as np

from algos.curriculum.items import BANDS
from rl_lab.common.files import Record
from rl_lab.reports.metrics import HEADER, curve, define, is_finite
from rl_lab.reports.pages.charts import COLOURS, Axis, Series, band_columns, band_legend, chart, colours
from rl_lab.reports.pages.markup import Cell, Markup, macros, parts
from rl_lab.reports.run import LoadedRun, label

CURVES = macros("curves")
AUXILIARY = ("flow/probe", "flow/code", "flow/global")
GROUPS = {
    "Loss and its parts": ("loss", "loss/preference", "loss/proximal", "loss/sft", "flow/loss", *AUXILIARY),
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
    **dict(zip(AUXILIARY, ("c1", "c2", "c3"), strict=True)),
    "winner": "cw",
    "loser": "cl",
    "identical": "cg",
    "preference": "c1",
    "proximal": "c2",
    "sft": "c3",
}
"""Metric, or the last part of its name, -> CSS class; winner and loser keep their colours on the whole page."""
COMPARED = {
    "Reward of sampled answers": ("reward", ("reward/mean",)),
    "Entropy": ("nats", ("entropy",)),
    "Share of sampled groups with signal": ("share", ("rollouts/signal",)),
    "Groups refilled": ("groups", ("rollouts/refilled",)),
    "Completion tokens of a step": ("tokens", ("rollouts/tokens",)),
    "Length of an answer": ("tokens", ("rollouts/length",)),
    "Share of answers cut off": ("share", ("rollouts/truncated",)),
    "Staleness": ("weight versions", ("rollouts/staleness",)),
    "Mismatch of trainer and engine": ("nats", ("mismatch/mean",)),
    "Share of clipped tokens, dashed: low side": ("share", ("clip/high", "clip/low")),
}
"""Chart title -> unit and metrics; one line a scheme, further metrics dashed."""
SPLIT = {
    "Reward by part": ("reward", "reward/", ("reward/mean",)),
    "Reward by category": ("reward", "reward_category/", ()),
    "Reward by type": ("reward", "reward_type/", ()),
    "Held-out reward by category": ("reward", "held_out_category/", ()),
    "Seconds of each phase": ("seconds", "seconds/", ()),
    "Idle share of each kind of worker": ("share", "idle/", ()),
}
"""Chart title -> unit, first part of the metrics' names, and those that it leaves out; one chart a scheme."""
BY_SOURCE = ("source/", "validation/")
"""Metrics that `rl_lab.reports.pages.imitation` draws."""
FAMILIES = ("pool/", "pool_flow/", "reward_failures/", *(family for _, family, _ in SPLIT.values()))


def _css(name: str) -> str:
    return CSS.get(name) or CSS.get(name.split("/")[-1].removesuffix("_reference"), "c0")


def training_nodes(run: LoadedRun) -> dict[str, list[str]]:
    """Method (or the node's name outside the rounds) -> nodes that logged values, in order of their rounds.

    Trainings with replicates are no rounds of one another; see `language_curves`. Of a study those of training seed 1.
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


def metric_chart(run: LoadedRun, title: str, nodes: Sequence[str], names: Sequence[str], y_label: str) -> Markup:
    """Some metrics of a chain of nodes against the steps since the first one began, a line of its own for each node;
    nothing if none of them was logged."""
    starts, series = offsets(run, nodes), []
    for name, (node, start) in product(names, starts.items()):
        x, y = curve(run.metrics, node, name)
        series.append(Series(name, [start + step for step in x], y, _css(name), dashed=name.endswith("_reference")))
    rounds = [(start, f"round {number}") for number, start in enumerate(starts.values(), start=1)]
    share = y_label == "share"
    return chart(
        title,
        series,
        Axis("optimiser step"),
        Axis(y_label, (0, 1) if share else None, may_be_log=not share and y_label != "implicit reward"),
        separators=rounds if len(rounds) > 1 else [],
        definitions={name: text for name in names if (text := define(name))},
    )


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
    """The charts of `GROUPS` that have something to draw, and every other logged value in a chart of its own."""
    known = logged_values(run.metrics, nodes)
    hidden = () if set(AUXILIARY) & set(known) else ("flow/loss",)  # without auxiliary losses it is `loss`
    grouped = [
        metric_chart(
            run,
            title,
            nodes,
            [name for name in names if name in known and name not in hidden],
            "share" if title.startswith("Share") else "loss",
        )
        for title, names in GROUPS.items()
    ]
    drawn = {*REWARDS, *(name for names in GROUPS.values() for name in names)}
    rest = [name for name in known if name not in drawn and not name.startswith(BY_SOURCE)]
    others = [metric_chart(run, name, nodes, [name], name) for name in rest]
    return CURVES.chain(label(method), [one for one in grouped if one], others)


def glossary(names: Sequence[str]) -> Markup:
    """What logged values mean, behind a heading."""
    return CURVES.glossary([(parts.code(name), define(name) or "not defined") for name in names])


def learning_curves(run: LoadedRun) -> Markup:
    """Losses of SFT and of every method, and the definition of every logged value."""
    chains = training_nodes(run)
    if not chains:
        return parts.missing("curves", "Learning curves of actions", "metrics.jsonl has no training step.")
    names = logged_values(run.metrics, [node for nodes in chains.values() for node in nodes])
    return CURVES.learning_curves([chain(run, method, nodes) for method, nodes in chains.items()], glossary(names))


def _nodes(run: LoadedRun, scheme: str) -> list[str]:
    return [training.node for training in run.trainings if training.scheme == scheme]


def over_replicates(run: LoadedRun, nodes: Sequence[str], name: str) -> dict[int, list[float]]:
    """Values of a metric by step, one of each replicate that logged it there."""
    found: dict[int, list[float]] = {}
    for node in nodes:
        for step, value in zip(*curve(run.metrics, node, name), strict=True):
            found.setdefault(int(step), []).append(value)
    return dict(sorted(found.items()))


def mean_series(run: LoadedRun, nodes: Sequence[str], name: str, title: str, css: str, dashed: bool = False) -> Series:
    """Over replicates, with the area between the lowest and the highest of several."""
    values = over_replicates(run, nodes, name)
    x, y = list(values), [float(np.mean(v)) for v in values.values()]
    band = ([min(v) for v in values.values()], [max(v) for v in values.values()])
    return Series(title, x, y, css, dashed, band=band if len(nodes) > 1 and not dashed else ((), ()))


def compared(run: LoadedRun) -> Markup:
    """One chart a quantity, one line a scheme."""
    css, charts = colours(run.schemes, run.reference), []
    for title, (unit, names) in COMPARED.items():
        series = [
            mean_series(run, _nodes(run, scheme), name, label(scheme), css[scheme], dashed=place > 0)
            for place, name in enumerate(names)
            for scheme in run.schemes
        ]
        texts = {label(scheme): define(names[0]) or "" for scheme in run.schemes}
        most = max([0.05, *(value for line in series for value in (*line.y, *line.band[1]))])
        axis = Axis(unit, (0, most) if unit == "share" else None)
        charts.append(chart(title, series, Axis("optimiser step"), axis, definitions=texts))
    return parts.charts(charts)


def _split(run: LoadedRun, nodes: Sequence[str], title: str, known: Sequence[str]) -> Markup:
    """The members of one family of metrics as lines of one chart."""
    unit, family, without = SPLIT[title]
    names = [name for name in known if name.startswith(family) and name not in without]
    series = [
        mean_series(run, nodes, name, name.removeprefix(family), css, dashed=place >= len(COLOURS))
        for place, (name, css) in enumerate(zip(names, cycle(COLOURS), strict=False))
    ]
    texts = {name.removeprefix(family): define(name) or "" for name in names}
    axis = Axis(unit, (0, 1) if unit == "share" else None)
    return chart(title, series, Axis("optimiser step"), axis, definitions=texts)


def bands_over_time(run: LoadedRun, nodes: Sequence[str]) -> Markup:
    """Observed items by band at each step, mean over replicates."""
    found = {name: over_replicates(run, nodes, f"pool/{name}") for name in BANDS}
    steps = sorted({step for values in found.values() for step in values})
    if not steps:
        return Markup("")
    counts = [{name: float(np.mean(found[name].get(step, [0.0]))) for name in BANDS} for step in steps]
    return band_legend() + band_columns(steps, counts)


def _totals(run: LoadedRun, nodes: Sequence[str], family: str) -> Counter[str]:
    """Sum over nodes and steps of each metric of a family, by the rest of its name."""
    totals: Counter[str] = Counter()
    for record in (record for record in run.metrics if record.get("node") in nodes):
        totals.update({k.removeprefix(family): value for k, value in record.items() if k.startswith(family)})
    return totals


def flow(run: LoadedRun, nodes: Sequence[str]) -> Markup:
    """Moves between bands over the whole run, mean over replicates: rows are where an item was."""
    moves, after = _totals(run, nodes, "pool_flow/"), BANDS[1:]
    if not moves:
        return Markup("")
    most = max(moves.values())

    def cell(count: float) -> Cell:
        return Cell(parts.heat(f"{count / len(nodes):,.0f}" if count else "", count / most), "heatcell")

    rows = [[before, *(cell(moves[f"{before}>{name}"]) for name in after)] for before in BANDS]
    return parts.table(["From", *(f"to {name}" for name in after)], rows, "Moves between bands", "numbers")


def failed_calls(run: LoadedRun) -> Markup:
    """Reward calls that failed while training, by part and reason."""
    counts = {scheme: _totals(run, _nodes(run, scheme), "reward_failures/") for scheme in run.schemes}
    names = sorted(set().union(*counts.values()))
    if not names:
        return parts.note("No reward call failed while training.")
    rows = [[name.replace("/", ": "), *(f"{count[name]:g}" for count in counts.values())] for name in names]
    return parts.table(["Failed reward calls while training", *map(label, counts)], rows, css="numbers")


def scheme_block(run: LoadedRun, scheme: str, open_: bool) -> Markup:
    """What one scheme's rewards, bands and seconds are made of, and every other logged value in a chart of its own."""
    nodes = _nodes(run, scheme)
    known = logged_values(run.metrics, nodes)
    if not known:
        return Markup("")
    charts = [_split(run, nodes, title, known) for title in SPLIT]
    drawn = {name for _, names in COMPARED.values() for name in names}
    rest = [name for name in known if name not in drawn and not name.startswith(FAMILIES)]
    others = [
        chart(name, [mean_series(run, nodes, name, name, "c0")], Axis("optimiser step"), Axis("")) for name in rest
    ]
    return CURVES.scheme(label(scheme), open_, charts, bands_over_time(run, nodes), flow(run, nodes), others)


def language_curves(run: LoadedRun) -> Markup:
    """Curves of every scheme and of the cold start, and the definition of every logged value."""
    others = training_nodes(run)
    nodes = [training.node for training in run.trainings]
    known = logged_values(run.metrics, [*nodes, *(node for chained in others.values() for node in chained)])
    if not known:
        return parts.missing("training", "Learning curves of answers", "metrics.jsonl has no training step.")
    trained = bool(logged_values(run.metrics, nodes))
    return CURVES.language_curves(
        compared=compared(run) if trained else "",
        failed=failed_calls(run) if trained else "",
        schemes=[scheme_block(run, scheme, place == 0) for place, scheme in enumerate(run.schemes) if trained],
        chains=[(name.replace("_", " "), chain(run, name, chained)) for name, chained in others.items()],
        glossary=glossary(known),
    )
