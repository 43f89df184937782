"""Curves of training on language: schemes beside each other, and what each one's rewards, bands and time are made of.

A line is the mean over the replicates that logged the step; the area behind it runs from the lowest to the highest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from algos.curriculum.items import BANDS
from rl_lab.reports.metrics import curve, define
from rl_lab.reports.pages.charts import Axis, Series, band_columns, band_legend, chart
from rl_lab.reports.pages.curves import CURVES, chain, glossary, logged_values, training_nodes
from rl_lab.reports.pages.held_out import COLOURS, scheme_colours
from rl_lab.reports.pages.markup import Cell, Markup, parts
from rl_lab.reports.run import LoadedRun, label

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
FAMILIES = ("pool/", "pool_flow/", "reward_failures/", *(family for _, family, _ in SPLIT.values()))


def _nodes(run: LoadedRun, scheme: str) -> list[str]:
    return [training.node for training in run.trainings if training.scheme == scheme]


def over_replicates(run: LoadedRun, nodes: Sequence[str], name: str) -> dict[int, list[float]]:
    """Values of a metric by step, one of each replicate that logged it there."""
    found: dict[int, list[float]] = {}
    for node in nodes:
        for step, value in zip(*curve(run.metrics, node, name), strict=True):
            found.setdefault(int(step), []).append(value)
    return dict(sorted(found.items()))


def _series(run: LoadedRun, nodes: Sequence[str], name: str, title: str, css: str, dashed: bool = False) -> Series:
    values = over_replicates(run, nodes, name)
    x, y = list(values), [float(np.mean(v)) for v in values.values()]
    band = ([min(v) for v in values.values()], [max(v) for v in values.values()])
    return Series(title, x, y, css, dashed, band=band if len(nodes) > 1 and not dashed else ((), ()))


def _axis(unit: str) -> Axis:
    return Axis(unit, (0, 1) if unit == "share" else None)


def compared(run: LoadedRun) -> Markup:
    """One chart a quantity, one line a scheme."""
    css, charts = scheme_colours(run.schemes), []
    for title, (unit, names) in COMPARED.items():
        series = [
            _series(run, _nodes(run, scheme), name, label(scheme), css[scheme], dashed=place > 0)
            for place, name in enumerate(names)
            for scheme in run.schemes
        ]
        texts = {label(scheme): define(names[0]) or "" for scheme in run.schemes}
        small = Axis(
            unit, (0, max([0.05, *(v for s in series for v in (*s.y, *s.band[1]))])) if unit == "share" else None
        )
        charts.append(chart(title, series, Axis("optimiser step"), small, definitions=texts))
    return parts.charts(charts)


def _split(run: LoadedRun, nodes: Sequence[str], title: str, known: Sequence[str]) -> Markup:
    """The members of one family of metrics as lines of one chart."""
    unit, family, without = SPLIT[title]
    names = [name for name in known if name.startswith(family) and name not in without]
    series = [
        _series(run, nodes, name, name.removeprefix(family), COLOURS[i % len(COLOURS)]) for i, name in enumerate(names)
    ]
    texts = {name.removeprefix(family): define(name) or "" for name in names}
    return chart(title, series, Axis("optimiser step"), _axis(unit), definitions=texts)


def bands_over_time(run: LoadedRun, nodes: Sequence[str]) -> Markup:
    """Observed items by band at each step, mean over replicates."""
    found = {name: over_replicates(run, nodes, f"pool/{name}") for name in BANDS}
    steps = sorted({step for values in found.values() for step in values})
    if not steps:
        return Markup("")
    counts = [{name: float(np.mean(found[name].get(step, [0.0]))) for name in BANDS} for step in steps]
    return band_legend() + band_columns(steps, counts)


def flow(run: LoadedRun, nodes: Sequence[str]) -> Markup:
    """Moves between bands over the whole run, mean over replicates: rows are where an item was."""
    moves: Counter[tuple[str, str]] = Counter()
    for record in run.metrics:
        if record.get("node") in nodes:
            for name, value in record.items():
                if name.startswith("pool_flow/"):
                    before, _, after = name.removeprefix("pool_flow/").partition(">")
                    moves[before, after] += value
    if not moves:
        return Markup("")
    most = max(moves.values())
    rows = [[before, *(_moved(moves[before, after], most, len(nodes)) for after in BANDS[1:])] for before in BANDS]
    return parts.table(["From", *(f"to {name}" for name in BANDS[1:])], rows, "Moves between bands", "numbers")


def _moved(count: float, most: float, replicates: int) -> Cell:
    text = f"{count / replicates:,.0f}" if count else ""
    return Cell(parts.heat(text, count / most), "heatcell")


def failed_calls(run: LoadedRun) -> Markup:
    """Reward calls that failed while training, by part and reason."""
    counts: dict[str, Counter[str]] = {scheme: Counter() for scheme in run.schemes}
    schemes = {training.node: training.scheme for training in run.trainings}
    for record in run.metrics:
        for name, value in record.items():
            if name.startswith("reward_failures/") and record.get("node") in schemes:
                counts[schemes[record["node"]]][name.removeprefix("reward_failures/")] += value
    names = sorted(set().union(*counts.values()))
    if not names:
        return parts.note("No reward call failed while training.")
    rows = [[name.replace("/", ": "), *(f"{count[name]:g}" for count in counts.values())] for name in names]
    head = ["Failed reward calls while training", *map(label, counts)]
    return parts.table(head, rows, css="numbers")


def _rest(run: LoadedRun, nodes: Sequence[str], known: Sequence[str]) -> list[Markup]:
    """Every other logged value of a scheme, each in a chart of its own."""
    drawn = {name for _, names in COMPARED.values() for name in names}
    names = [name for name in known if name not in drawn and not name.startswith(FAMILIES)]
    return [chart(n, [_series(run, nodes, n, n, "c0")], Axis("optimiser step"), Axis("")) for n in names]


def scheme_block(run: LoadedRun, scheme: str, open_: bool) -> Markup:
    """What one scheme's rewards, bands and seconds are made of."""
    nodes = _nodes(run, scheme)
    known = logged_values(run.metrics, nodes)
    if not known:
        return Markup("")
    charts = [_split(run, nodes, title, known) for title in SPLIT]
    return CURVES.scheme(
        label(scheme), open_, charts, bands_over_time(run, nodes), flow(run, nodes), _rest(run, nodes, known)
    )


def language_curves(run: LoadedRun) -> Markup:
    """Curves of every scheme and of the cold start, and the definition of every logged value."""
    others = training_nodes(run)
    nodes = [training.node for training in run.trainings]
    known = logged_values(run.metrics, [*nodes, *(node for chained in others.values() for node in chained)])
    if not known:
        return parts.missing("training", "Learning curves", "metrics.jsonl has no training step.")
    trained = bool(logged_values(run.metrics, nodes))
    return CURVES.language_curves(
        compared=compared(run) if trained else "",
        failed=failed_calls(run) if trained else "",
        schemes=[scheme_block(run, scheme, place == 0) for place, scheme in enumerate(run.schemes) if trained],
        chains=[(name.replace("_", " "), chain(run, name, chained)) for name, chained in others.items()],
        glossary=glossary(known),
    )
