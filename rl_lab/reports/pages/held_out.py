"""Results on held-out questions: scores, paired differences, categories; schemes at equal steps and equal tokens."""

from __future__ import annotations

from collections.abc import Sequence

from rl_lab.reports.budgets import REFERENCE, curves
from rl_lab.reports.estimates import BLANK, CONSTANT, NAMES, REWARD, Estimate
from rl_lab.reports.numbers import OVERALL, Row, find, find_all, reward, share, signed
from rl_lab.reports.pages.charts import Axis, Series, bounds_of, chart, colours, interval_bar
from rl_lab.reports.pages.markup import Markup, Tile, macros, minus, parts
from rl_lab.reports.run import BASE, LoadedRun, label

LANGUAGE = macros("language")


def over_name(over: str) -> str:
    """What a difference is taken to, as a table's heading."""
    return {BASE: "base", BLANK: "grey pictures", CONSTANT: "constant answer"}.get(over, label(over))


def held_out_tiles(summary: Row) -> list[Tile]:
    """Base, the scheme under test, and what it gained over base, grey pictures and constant answers."""
    scheme = next(iter(summary["schemes"]), BASE)
    rewards = find_all(summary["estimates"], how=REWARD, scope=OVERALL)
    shown = []
    for name in dict.fromkeys((BASE, scheme)):
        for mean in find_all(rewards, model=name, over=None):
            span = f"mean reward, 95 % interval {mean.ends()}"
            shown.append(Tile(label(name).capitalize(), reward(mean.value), minus(span)))
    for over in (BASE, BLANK, CONSTANT):
        for gain in find_all(rewards, model=scheme, over=over):
            span = f"paired 95 % interval {gain.ends()}"
            shown.append(Tile(f"Over {NAMES[over]}", minus(signed(gain.value)), minus(span), gain.standing))
    return shown


def score_table(summary: Row) -> Markup:
    """One row a model: rewards, passes, and how well one does without looking."""
    k = summary["samples"]
    passes = list(dict.fromkeys(("pass@1", f"pass@{k}")))
    table = find_all(summary["estimates"], scope=OVERALL, over=None)
    means = find_all(table, how=REWARD)
    if not means:
        return parts.note("No answer could be scored.")
    rows = []
    for mean in means:
        own = find_all(table, model=mean.model)
        cells = [mean.replicates, mean.n, mean, interval_bar(mean, bounds_of(means))]
        cells += [find(own, how=how) for how in (*passes, BLANK, CONSTANT)]
        rows.append([label(mean.model), *cells])
    head = ["Model", "Replicates", "Items", "Reward", "", *passes, "Grey pictures", "Constant answer"]
    return parts.table(head, rows, css="numbers stacked")


def difference_table(summary: Row) -> Markup:
    """One row a model, one column for everything that it is held against."""
    gains = [one for one in find_all(summary["estimates"], how=REWARD, scope=OVERALL) if one.over is not None]
    if not gains:
        return Markup("")
    others = [] if "pipeline" in summary else summary["schemes"]  # a chain is compared in its own section
    overs = [over for over in (BASE, BLANK, CONSTANT, *others) if find(gains, over=over)]
    body = [
        [label(model), *(find(gains, model=model, over=over) for over in overs)]
        for model in dict.fromkeys(one.model for one in gains)
    ]
    head = ["Model", *(f"Over {over_name(over)}" for over in overs)]
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
    css, charts = colours(run.schemes, REFERENCE), []
    for axis, name in (("steps", "optimiser step"), ("tokens", "completion tokens generated for training")):
        series = [Series.through(label(c.scheme), c.points, css[c.scheme], area=True) for c in curves(run, axis)]
        charts.append(chart(f"Held-out reward over {axis}", series, Axis(name), Axis("reward")))
    return parts.charts(charts) if any(charts) else Markup("")


def _equal(summary: Row, name: str, scheme: str) -> Sequence[Estimate | None]:
    row = find(summary[name], scheme=scheme)
    return (None, None) if row is None else (row["reward"], None if scheme == REFERENCE else row["over"])


def _needed(row: Row | None) -> Markup | str:
    if row is None:
        return ""
    ends = f" {share(row['low'])} to {share(row['high'])}"
    return parts.estimate(share(row["share"]), ends)


def budget_table(summary: Row) -> Markup:
    """Rewards at the steps and tokens that all schemes spent, and tokens to reach uniform's final reward."""
    if not summary["tokens_needed"]:
        return Markup("")
    step, tokens = (summary[name][0]["place"] for name in ("at_equal_steps", "at_equal_tokens"))
    head = ["Scheme", f"Reward at step {step:.0f}", "Over uniform", f"At {tokens:,.0f} tokens", "Over uniform"]
    head += ["Tokens to uniform's final reward", "Replicates that got there"]
    rows = []
    for row in summary["tokens_needed"]:
        scheme = row["scheme"]
        cells = [*_equal(summary, "at_equal_steps", scheme), *_equal(summary, "at_equal_tokens", scheme)]
        there = f"{row['replicates_reached']} of {row['replicates']}"
        rows.append([label(scheme), *cells, _needed(row), there])
    return parts.table(head, rows, "At equal budgets", "numbers stacked")


def schemes_section(run: LoadedRun, summary: Row) -> Markup:
    """Held-out reward while training; with several schemes also what the same steps and tokens bought. Or nothing."""
    charts = reward_charts(run)
    if not charts:
        return Markup("")
    needed = summary["tokens_needed"]
    target = ""
    if needed:
        target = f"Uniform's final reward is {reward(needed[0]['target'])} after {needed[0]['tokens']:,.0f} tokens"
        target = minus(f"{target}; {summary['held_out_intervals']['tokens needed']}.")
    return macros("language").schemes(len(run.schemes) > 1, charts, budget_table(summary), target)
