"""Success and completion steps of every policy: tables with intervals and paired gains, charts round by round."""

from __future__ import annotations

from collections.abc import Sequence

from rl_lab.reports.benchmark import episodes_text, has_several_cells, table_text
from rl_lab.reports.markup import Markup, macros, parts
from rl_lab.reports.overview import percent, signed_points, standing
from rl_lab.reports.plots import Axis, Series, chart, interval_bar
from rl_lab.reports.rundir import BASE, label
from rl_lab.reports.verdict import OVERALL, Row, final_round, find, p_text
from rl_lab.stats import EPISODE_METHODS

ACTIONS = macros("actions")
COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6")
GREY = "cg"


def colours(summary: Row) -> dict[str, str]:
    """Method -> CSS class: the method under test first, its control grey, the rest as they come."""
    methods = list(dict.fromkeys(row["method"] for row in summary["scores"] if row["method"] != BASE))
    methods.sort(key=lambda m: m != summary["method"])
    coloured = [m for m in methods if m != summary["control"]]
    found = {m: COLOURS[i % len(COLOURS)] for i, m in enumerate(coloured)}
    return found | {m: GREY for m in methods if m not in found} | {BASE: "cb"}


def _steps(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def gain_text(row: Row | None) -> Markup | str:
    """A paired difference in points with its interval; empty where there is none."""
    if row is None:
        return ""
    if "refused" in row:
        return parts.titled("not paired", row["refused"])
    low, high = (signed_points(row[end]) for end in ("low", "high"))
    text = f"{row['wins']} episodes won, {row['losses']} lost, p {p_text(row['p'])}"
    return parts.estimate(signed_points(row["difference"]), f" {low} to {high}", standing(row), text)


def score_table(summary: Row, scope: str, caption: str | None = None) -> Markup:
    """One row a policy: n, success with interval, paired differences, completion steps."""
    control = summary["control"]
    head = [
        "Policy",
        "n",
        "Success",
        "",
        "95 % interval",
        "Over base",
        *([f"Over {label(control)}"] if control else []),
    ]
    head += ["Steps, successes", "Steps, capped"]
    rows = []
    for row in (r for r in summary["scores"] if r["scope"] == scope):
        key = {"scope": scope, "method": row["method"], "round": row["round"]}
        cells = [label(row["method"], row["round"]), row["n"], parts.bold(percent(row["rate"]))]
        cells.append(interval_bar(row["rate"], row["low"], row["high"], (0.0, 1.0)))
        cells.append(f"{100 * row['low']:.0f} to {percent(row['high'])}")
        overs = [BASE, *([control] if control else [])]
        cells += [gain_text(find(summary["gains"], **key, over=over)) for over in overs]
        rows.append([*cells, _steps(row["steps_over_successes"]), _steps(row["capped_steps"])])
    return parts.table(head, rows, caption, "numbers")


def _round_axis(rows: Sequence[Row]) -> Axis:
    last = max(row["round"] for row in rows)
    ticks = [(0, "base"), *((k, f"round {k}") for k in range(1, last + 1))]
    return Axis("evaluated after", (-0.3, last + 0.3), ticks)


def _lines(summary: Row, scope: str) -> list[tuple[str, list[Row], list[float]]]:
    """The base policy and every method with its rows and their places on the round axis; methods start at the base."""
    rows = [row for row in summary["scores"] if row["scope"] == scope]
    base = [row for row in rows if row["method"] == BASE]
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != BASE))
    found = []
    for number, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        shift = 0.07 * (number - (len(methods) - 1) / 2)
        found.append((method, base + own, [0.0] * len(base) + [row["round"] + shift for row in own]))
    return [*found, (BASE, base, [0.0] * len(base))]


def _legend_name(method: str) -> str:
    """The base policy is a point that the axis names."""
    return "" if method == BASE else label(method)


def success_chart(summary: Row, scope: str, title: str) -> Markup:
    """Success before and after each round with Wilson intervals."""
    series = []
    for method, rows, x in _lines(summary, scope):
        texts = [f"{label(r['method'], r['round'])}: {r['successes']} of {r['n']}" for r in rows]
        low, high, rate = ([100 * r[key] for r in rows] for key in ("low", "high", "rate"))
        bare = sum(r["method"] != method for r in rows)
        series.append(Series(_legend_name(method), x, rate, colours(summary)[method], False, low, high, texts, bare))
    rows = [row for row in summary["scores"] if row["scope"] == scope]
    return chart(title, series, _round_axis(rows), Axis("success (%)", (0, 100)))


def steps_chart(summary: Row, scope: str, title: str) -> Markup:
    """Completion steps before and after each round: over successes, and with failures at the limit (dashed)."""
    series = []
    for name, key in (("successes", "steps_over_successes"), ("capped", "capped_steps")):
        for method, rows, places in _lines(summary, scope):
            known = [(row, x) for row, x in zip(rows, places, strict=True) if row[key] is not None]
            texts = [f"{label(r['method'], r['round'])}, {name}: {r[key]:.0f} steps" for r, _ in known]
            x, y = [x for _, x in known], [row[key] for row, _ in known]
            bare = sum(row["method"] != method for row, _ in known)
            css, dashed = colours(summary)[method], key == "capped_steps"
            series.append(Series(_legend_name(method), x, y, css, dashed, labels=texts, bare=bare))
    rows = [row for row in summary["scores"] if row["scope"] == scope]
    return chart(title, series, _round_axis(rows), Axis("control steps"))


def _pairwise(summary: Row) -> Markup:
    """Final rounds, every method against every other; only with at least three methods."""
    methods = list(colours(summary))[:-1]
    if len(methods) < 3:
        return Markup("")
    rows = []
    for method in methods:
        last = final_round(summary, method)
        found = [find(summary["gains"], scope=OVERALL, method=method, round=last, over=m) for m in methods]
        rows.append([label(method, last), *(gain_text(row) for row in found)])
    count = len(methods) * (len(methods) - 1) // 2
    return ACTIONS.pairwise(["", *map(label, methods)], rows, count)


def _charts(summary: Row, scope: str) -> Markup:
    steps = "Completion steps (dashed: failures count as the limit)"
    return parts.charts([success_chart(summary, scope, "Success"), steps_chart(summary, scope, steps)])


def _benchmark(summary: Row) -> Markup:
    """The table of the papers, where it has more than one cell."""
    tables = summary["benchmark"]
    if not tables or not has_several_cells(tables[0]):
        return Markup("")
    head, rows = table_text([(label(row["method"], row["round"]), row) for row in tables])
    return parts.table(head, rows, f"Success (%) by task and task config, {episodes_text(tables[0])}", "numbers")


def results(summary: Row) -> Markup:
    """Tables and charts of success and steps: overall, and for each task and variant where there are several."""
    scopes = list(dict.fromkeys(row["scope"] for row in summary["scores"] if row["scope"] != OVERALL))
    if not scopes:
        return ACTIONS.no_results()
    several = len(scopes) > 1
    return ACTIONS.results(
        table=score_table(summary, OVERALL, "All tasks" if several else scopes[0]),
        charts=_charts(summary, OVERALL),
        benchmark=_benchmark(summary),
        scopes=[(scope, score_table(summary, scope), _charts(summary, scope)) for scope in scopes if several],
        pairwise=_pairwise(summary),
        overlap=summary["seed_overlap"],
        split=str(summary["evaluation_seeds"] or "unnamed").replace("_", " "),
        pairs=sum(row.get("pairs") or 0 for row in summary["collection"]),
        methods="; ".join(f"{k}: {v}" for k, v in EPISODE_METHODS.items()),
    )
