"""Results on held-out questions: scores, paired differences, categories, and rewards while training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rl_lab.reports.budgets import curves
from rl_lab.reports.estimates import BLANK, CONSTANT, LOW, NAMES, REWARD, Estimate, cell, text_table
from rl_lab.reports.numbers import OVERALL, Row, find, find_all, reward, signed
from rl_lab.reports.pages.charts import Axis, Series, bounds_of, chart, colours, interval_bar
from rl_lab.reports.pages.markup import Markup, Tile, macros, parts, tile
from rl_lab.reports.run import BASE, LoadedRun, label

LANGUAGE = macros("language")
OPENINGS = {
    "above": "Better than (interval above 0)",
    "below": "Worse than (interval below 0)",
    "open": "No difference shown to (interval around 0)",
}


def held_out_verdict(table: Sequence[Estimate], low_temperature: float | None) -> list[str]:
    """A paragraph for the base, then for each scheme: what it is better than, paired, and whether it has grown better
    or only sharper."""
    rewards = find_all(table, how=REWARD, scope=OVERALL)
    paragraphs = []
    for mean in find_all(rewards, over=None):
        gains = [one for one in rewards if one.model == mean.model and one.over is not None]
        low = find(table, how=LOW, scope=OVERALL, model=mean.model, over=BASE)
        sharper = [] if low is None else [_sharpness(find(gains, over=BASE), low, low_temperature)]
        paragraphs.append(" ".join([_reward_sentence(mean), *_comparisons(gains), *sharper]))
    return paragraphs or ["No model was examined."]


def _reward_sentence(mean: Estimate) -> str:
    name = label(mean.model)
    seeds = f", {mean.replicates} replicates" if mean.replicates != 1 else ""
    span = f"95 % interval {mean.ends()}, {mean.n} items{seeds}"
    return f"{name[0].upper()}{name[1:]}: held-out reward {reward(mean.value)} ({span})."


def _comparisons(gains: Sequence[Estimate]) -> Iterator[str]:
    """One sentence for each side of 0 on which intervals of paired differences lie."""
    for standing, opening in OPENINGS.items():
        found = [one for one in gains if one.standing == standing]
        texts = [f"{NAMES.get(one.over or '', label(one.over or ''))} {signed(one.value)}" for one in found]
        if texts:
            yield f"{opening}: {', '.join(texts)}."


def _sharpness(gain: Estimate | None, low: Estimate, temperature: float | None) -> str:
    """What a model gains over the base at a low temperature, and what that says of its gain."""
    said = f"At temperature {temperature:g} {signed(low.value)} over the base ({low.ends()})"
    if gain is None or gain.standing != "above":
        return f"{said}."
    if low.standing == "above":
        return f"{said}: it answers better, not only sharper."
    return f"{said}: its gain is not told apart from sharper answers, for which a base needs no training."


def held_out_lines(summary: Row) -> list[str]:
    """The table of a run on language: rewards, passes, and what the models are held against."""
    over = {REWARD: "over base"} | ({LOW: f"over base {_at(summary)}"} if summary["low_temperature"] else {})
    names = list(dict.fromkeys((REWARD, "pass@1", f"pass@{summary['samples']}", BLANK, CONSTANT)))
    table = find_all(summary["estimates"], scope=OVERALL)
    rows = []
    for mean in find_all(table, how=REWARD, over=None):
        own = find_all(table, model=mean.model)
        means = [find(own, how=name, over=None) for name in names[1:]]
        rest = ["" if one is None else reward(one.value) for one in means]
        overs = [cell(find(own, how=how, over=BASE), reward) for how in over]
        rows.append([label(mean.model), mean.replicates, mean.n, mean, *rest, *overs])
    head = ["model", "replicates", "items", *names, *over.values()]
    return [text_table(head, rows)] if rows else []


def held_out_tiles(summary: Row) -> list[Tile]:
    """Base, the scheme under test, and what it gained over base, grey pictures and constant answers."""
    scheme = next(iter(summary["schemes"]), BASE)
    rewards = find_all(summary["estimates"], how=REWARD, scope=OVERALL)
    shown = []
    for name in dict.fromkeys((BASE, scheme)):
        for mean in find_all(rewards, model=name, over=None):
            shown.append(tile(label(name).capitalize(), mean, "mean reward, 95 % interval"))
    for over in (BASE, BLANK, CONSTANT):
        for gain in find_all(rewards, model=scheme, over=over):
            shown.append(tile(f"Over {NAMES[over]}", gain, "paired 95 % interval"))
    return shown


def score_table(summary: Row) -> Markup:
    """One row a model: rewards, passes, and how well one does without looking."""
    k = summary["samples"]
    passes = {name: name for name in ("pass@1", f"pass@{k}")}
    low = {LOW: _at(summary).capitalize()} if summary["low_temperature"] else {}
    columns = passes | low | {BLANK: "Grey pictures", CONSTANT: "Constant answer"}
    table = find_all(summary["estimates"], scope=OVERALL, over=None)
    means = find_all(table, how=REWARD)
    if not means:
        return parts.note("No answer could be scored.")
    rows = []
    for mean in means:
        own = find_all(table, model=mean.model)
        cells = [mean.replicates, mean.n, mean, interval_bar(mean, bounds_of(means))]
        cells += [find(own, how=how) for how in columns]
        rows.append([label(mean.model), *cells])
    head = ["Model", "Replicates", "Items", "Reward", "", *columns.values()]
    return parts.table(head, rows, css="numbers stacked")


def _at(summary: Row) -> str:
    """The low temperature in words; empty where there was none."""
    return f"at temperature {summary['low_temperature']:g}" if summary["low_temperature"] else ""


def difference_table(summary: Row) -> Markup:
    """One row a model, one column for everything that it is held against."""
    found = [one for one in find_all(summary["estimates"], scope=OVERALL) if one.over is not None]
    gains, low = find_all(found, how=REWARD), find_all(found, how=LOW, over=BASE)
    if not gains:
        return Markup("")
    others = [] if "pipeline" in summary else summary["schemes"]  # a chain is compared in its own section
    overs = [over for over in (BASE, BLANK, CONSTANT, *others) if find(gains, over=over)]
    body = []
    for model in dict.fromkeys(one.model for one in gains):
        own = [find(gains, model=model, over=over) for over in overs]
        body.append([label(model), *own, *([find(low, model=model)] if low else [])])
    names = {BASE: "base", BLANK: "grey pictures", CONSTANT: "constant answer"}
    head = ["Model", *(f"Over {names.get(over, label(over))}" for over in overs)]
    head += [f"Over base {_at(summary)}"] if low else []
    return parts.table(head, body, "Paired differences of reward", "numbers stacked")


def category_tables(summary: Row) -> Markup:
    """Reward in each category, and what each scheme gained over the base there."""
    rewards = [one for one in find_all(summary["estimates"], how=REWARD) if one.scope != OVERALL]
    scopes = list(dict.fromkeys(one.scope for one in find_all(rewards, over=None)))
    schemes = list(dict.fromkeys(row["scheme"] for row in summary["held_out"]))
    if len(scopes) < 2:
        return Markup("")

    def count(scope: str) -> str:
        return f"{scope} ({max(one.n for one in find_all(rewards, scope=scope, over=None))})"

    def row(scheme: str, over: str | None) -> list[Estimate | str | None]:
        own = find_all(rewards, model=scheme, over=over)
        return [label(scheme), *(find(own, scope=scope) for scope in scopes)]

    means, gains = [row(scheme, None) for scheme in schemes], [row(name, BASE) for name in schemes if name != BASE]
    return LANGUAGE.categories(["Model", *map(count, scopes)], means, ["Model", *scopes], gains)


def _left_out(summary: Row) -> str:
    """Failed reward calls and what they left out."""
    rows = [row for row in summary["held_out"] if row["scope"] == OVERALL]
    failed, unscored = (sum(row[name] for row in rows) for name in ("failed_calls", "unscored"))
    if not failed:
        return "No reward call failed."
    gone = f", and {unscored} questions of some model had none left" if unscored else ""
    return f"{failed} reward calls failed; their answers are left out{gone}."


def held_out_section(summary: Row) -> Markup:
    """Everything that was measured on held-out questions."""
    if not summary["held_out"]:
        return parts.missing("held-out", "Held-out questions", "No model was examined yet.")
    return LANGUAGE.held_out(
        scores=score_table(summary),
        samples=summary["samples"],
        threshold=f"{summary['pass_threshold']:g}",
        left_out=_left_out(summary),
        differences=difference_table(summary),
        categories=category_tables(summary),
        methods=summary["held_out_intervals"],
    )


def reward_charts(run: LoadedRun) -> Markup:
    """Held-out reward against steps and against tokens."""
    css, charts = colours(run.schemes, run.reference), []
    for axis, name in (("steps", "optimiser step"), ("tokens", "completion tokens generated for training")):
        series = [Series.through(label(c.scheme), c.points, css[c.scheme], area=True) for c in curves(run, axis)]
        charts.append(chart(f"Held-out reward over {axis}", series, Axis(name), Axis("reward")))
    return parts.charts(charts) if any(charts) else Markup("")


def schemes_section(run: LoadedRun) -> Markup:
    """Held-out reward while training, or nothing."""
    charts = reward_charts(run)
    return LANGUAGE.schemes(charts) if charts else Markup("")
