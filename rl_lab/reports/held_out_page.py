"""The section of a report with results on held-out questions: scores, paired differences, categories."""

from __future__ import annotations

from collections.abc import Sequence

from rl_lab.reports.estimates import BLANK, CONSTANT, NAMES
from rl_lab.reports.markup import Markup, Tile, macros, parts
from rl_lab.reports.overview import standing
from rl_lab.reports.plots import interval_bar
from rl_lab.reports.rundir import BASE, label
from rl_lab.reports.verdict import OVERALL, Row, find, reward, signed

LANGUAGE = macros("language")
COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6")


def minus(text: str) -> str:
    """With a real minus sign."""
    return text.replace("-", "\u2212")


def scheme_colours(schemes: Sequence[str]) -> dict[str, str]:
    """Scheme -> CSS class; plain uniform sampling is grey, the base dark."""
    others = [scheme for scheme in schemes if scheme != "uniform"]
    found = {scheme: COLOURS[i % len(COLOURS)] for i, scheme in enumerate(others)}
    return {scheme: found.get(scheme, "cg") for scheme in schemes} | {BASE: "cb"}


def over_name(over: str) -> str:
    """What a difference is taken to, as a table's heading."""
    return {BASE: "base", BLANK: "grey pictures", CONSTANT: "constant answer"}.get(over, label(over))


def mean_text(row: Row | None) -> Markup | str:
    """A mean reward with its interval."""
    if row is None:
        return ""
    ends = f" {reward(row['low'])} to {reward(row['high'])}"
    return parts.estimate(minus(reward(row["value"])), minus(ends))


def difference_text(row: Row | None) -> Markup | str:
    """A paired difference with its interval; coloured where the interval excludes 0."""
    if row is None:
        return ""
    ends = minus(f" {signed(row['low'])} to {signed(row['high'])}")
    title = f"{row['n']} items, {row['replicates']} replicates"
    return parts.estimate(minus(signed(row["value"])), ends, standing(row), title)


def held_out_tiles(summary: Row) -> list[Tile]:
    """Base, the scheme under test, and what it gained over base, grey pictures and constant answers."""
    scheme = next(iter(summary["schemes"]), BASE)
    shown = []
    for name in dict.fromkeys((BASE, scheme)):
        row = find(summary["held_out"], scope=OVERALL, scheme=name)
        if row is not None and row["reward"] is not None:
            mean = row["reward"]
            span = f"mean reward, 95 % interval {reward(mean['low'])} to {reward(mean['high'])}"
            shown.append(Tile(label(name).capitalize(), reward(mean["value"]), minus(span)))
    for over in (BASE, BLANK, CONSTANT):
        row = find(summary["held_out_differences"], scope=OVERALL, scheme=scheme, over=over)
        if row is not None:
            span = f"paired 95 % interval {signed(row['low'])} to {signed(row['high'])}"
            title = f"Over {NAMES[over]}"
            shown.append(Tile(title, minus(signed(row["value"])), minus(span), standing(row)))
    return shown


def score_table(summary: Row) -> Markup:
    """One row a model: rewards, passes, and how well one does without looking."""
    k = summary["samples"]
    head = ["Model", "Replicates", "Items", "Reward", "", *(["pass@1", f"pass@{k}"] if k > 1 else ["pass@1"])]
    scored = [row for row in summary["held_out"] if row["scope"] == OVERALL and row["reward"] is not None]
    if not scored:
        return parts.note("No answer could be scored.")
    low, high = min(row["reward"]["low"] for row in scored), max(row["reward"]["high"] for row in scored)
    bounds = low, max(high, low + 0.01)
    rows = []
    for row in scored:
        mean = row["reward"]
        bar = interval_bar(mean["value"], mean["low"], mean["high"], bounds)
        passes = [mean_text(row[name]) for name in dict.fromkeys(("pass@1", f"pass@{k}"))]
        blind = [mean_text(row[BLANK]), mean_text(row[CONSTANT])]
        rows.append([label(row["scheme"]), mean["replicates"], mean["n"], mean_text(mean), bar, *passes, *blind])
    return parts.table([*head, "Grey pictures", "Constant answer"], rows, css="numbers stacked")


def difference_table(summary: Row) -> Markup:
    """One row a model, one column for everything that it is held against."""
    rows = [row for row in summary["held_out_differences"] if row["scope"] == OVERALL]
    if not rows:
        return Markup("")
    others = [] if "pipeline" in summary else summary["schemes"]  # a chain is compared in its own section
    overs = [over for over in (BASE, BLANK, CONSTANT, *others) if any(r["over"] == over for r in rows)]
    body = [
        [label(scheme), *(difference_text(find(rows, scheme=scheme, over=over)) for over in overs)]
        for scheme in dict.fromkeys(row["scheme"] for row in rows)
    ]
    head = ["Model", *(f"Over {over_name(over)}" for over in overs)]
    return parts.table(head, body, "Paired differences of reward", "numbers stacked")


def category_tables(summary: Row) -> Markup:
    """Reward in each category, and what each scheme gained over the base there."""
    scored = [row for row in summary["held_out"] if row["scope"] != OVERALL and row["reward"]]
    scopes = list(dict.fromkeys(row["scope"] for row in scored))
    schemes = list(dict.fromkeys(row["scheme"] for row in summary["held_out"]))
    if len(scopes) < 2:
        return Markup("")

    def count(scope: str) -> str:
        return f"{scope} ({max(row['reward']['n'] for row in scored if row['scope'] == scope)})"

    rewards = [[find(summary["held_out"], scope=scope, scheme=scheme) for scope in scopes] for scheme in schemes]
    body = [
        [label(scheme), *(mean_text(row["reward"]) if row else "" for row in rows)]
        for scheme, rows in zip(schemes, rewards, strict=True)
    ]
    gains = [
        [label(scheme), *(difference_text(_gain(summary, scope, scheme)) for scope in scopes)]
        for scheme in schemes
        if scheme != BASE
    ]
    return LANGUAGE.categories(["Model", *map(count, scopes)], body, ["Model", *scopes], gains)


def _gain(summary: Row, scope: str, scheme: str) -> Row | None:
    return find(summary["held_out_differences"], scope=scope, scheme=scheme, over=BASE)


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
        return LANGUAGE.no_held_out()
    return LANGUAGE.held_out(
        scores=score_table(summary),
        samples=summary["samples"],
        threshold=f"{summary['pass_threshold']:g}",
        left_out=_left_out(summary),
        differences=difference_table(summary),
        categories=category_tables(summary),
        methods=summary["held_out_intervals"],
    )
