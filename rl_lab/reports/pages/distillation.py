"""The section of a report about distillation: rewards, the gap, what is recovered of it, and curves over tokens."""

from __future__ import annotations

import math

from rl_lab.reports.distillation import (
    DISTILL,
    IMITATE,
    STUDENT,
    TEACHER,
    has_gap,
    reward_curves,
    share_text,
)
from rl_lab.reports.estimates import Estimate, cell
from rl_lab.reports.numbers import Row
from rl_lab.reports.pages.charts import Axis, Series, chart
from rl_lab.reports.pages.held_out import curve_series
from rl_lab.reports.pages.markup import Markup, estimate_text, macros, minus, parts
from rl_lab.reports.run import LoadedRun

NAMES = {
    STUDENT: "student, before",
    TEACHER: "teacher",
    DISTILL: "student, distilled",
    IMITATE: "student, imitating (control)",
}
COLOURS = {DISTILL: "c0", IMITATE: "c1"}


def _share(one: Estimate | None) -> Markup | str:
    """A share of the gap with its interval; an end without a number is unbounded."""
    if one is None or not math.isfinite(one.value):
        return ""
    return parts.estimate(minus(f"{share_text(one.value)} %"), minus(f" {one.ends(share_text)}"))


def _tokens(entry: Row | None, share: float) -> str:
    if entry is None:
        return ""
    tokens = next(point["tokens"] for point in entry["reached"] if point["share"] == share)
    return "not within its tokens" if tokens is None else f"{tokens:,.0f}"


def models_table(row: Row) -> Markup:
    """Reward of each model, share of the gap, tokens spent, and tokens to shares of the gap."""
    entries = {entry["model"]: entry for entry in row["tokens"]}
    shares = [point["share"] for entry in row["tokens"][:1] for point in entry["reached"]] if has_gap(row) else []
    head = ["Model", f"Reward, n = {row['gap'].n}", "Of the gap", "Tokens learned from"]
    head += [f"Tokens to {100 * share:.0f} %" for share in shares]
    rows = []
    for name, label in NAMES.items():
        if name not in row["rewards"]:
            continue
        entry = entries.get(name)
        spent = "" if entry is None else f"{entry['spent']:,.0f}"
        recovered = row["recovered"].get(name) if has_gap(row) else None
        cells = [label, estimate_text(row["rewards"][name]), _share(recovered), spent]
        rows.append([*cells, *(_tokens(entry, share) for share in shares)])
    return parts.table(head, rows, "Teacher, student, and both ways to learn", "numbers stacked")


def curves_chart(run: LoadedRun, row: Row) -> Markup:
    """Held-out reward of both over tokens, between the student's and the teacher's."""
    curves = reward_curves(run)
    if not curves:
        return Markup("")
    series = [curve_series(curve, COLOURS[curve.scheme], NAMES[curve.scheme]) for curve in curves]
    ends = [0.0, max(curve.places[-1] for curve in curves)]
    for name, css in ((STUDENT, "cb"), (TEACHER, "cg")):
        series.append(Series(NAMES[name], ends, [row["rewards"][name].value] * 2, css))
    return chart("Held-out reward over tokens", series, Axis("tokens learned from"), Axis("reward"))


def seconds_line(row: Row) -> str:
    """What each part took."""
    seconds = row["seconds"]
    parts = {"teacher": TEACHER, "student with distillation": STUDENT, "control": IMITATE, "questions": "questions"}
    return "Seconds of their stages: " + ", ".join(f"{name} {seconds[key]:,.0f}" for name, key in parts.items()) + "."


def distillation_section(run: LoadedRun, row: Row | None) -> Markup:
    """All of it, or nothing for a run without teacher and student."""
    if row is None:
        return Markup("")
    said = minus(f"The gap is {cell(row['gap'])}. {seconds_line(row)} {row['method']}.")
    return macros("language").distillation(map(minus, row["verdict"]), models_table(row), curves_chart(run, row), said)
