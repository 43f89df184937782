"""The head of a report: what stood in for what, what is missing, the verdict, and the numbers that matter most."""

from __future__ import annotations

import re

from rl_lab.reports.markup import Markup, note, table, tag
from rl_lab.reports.rundir import BASE, RunFolder, label
from rl_lab.reports.verdict import OVERALL, Row, final_round, find, points


def percent(value: float) -> str:
    """A rate as whole percent."""
    return f"{100 * value:.0f} %"


def signed_points(value: float) -> str:
    """A difference of rates in percentage points, with a real minus sign."""
    return points(value).replace("-", "\u2212")


def standing(row: Row) -> str:
    """CSS class of a paired difference: its interval lies above 0, below 0, or leaves it open."""
    return "above" if row["low"] > 0 else "below" if row["high"] < 0 else "open"


def duration(seconds: float) -> str:
    """Seconds as `12 s`, `3 min 05 s` or `2 h 04 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def header(run: RunFolder, summary: Row) -> Markup:
    """Name, method, seed, commit, time, and a link to the alarms if there are any."""
    commit = run.environment.get("commit")
    facts = [
        f"arms {', '.join(map(label, summary['joint']['arms']))}" if "joint" in summary else "",
        f"method {label(summary['method'])}" if summary.get("method") and "joint" not in summary else "",
        f"curriculum {', '.join(map(label, summary['schemes']))}"
        if summary.get("schemes") and not {"pipeline", "joint"} & summary.keys()
        else "",
        f"training seed {run.seed}",
        f"commit {str(commit)[:12]}" if commit else "",
        f"stages add up to {duration(summary['computed_seconds'])}",
    ]
    count = summary["alarms"]
    alarm = tag("a", f"{count} alarm{'s' * (count > 1)} raised", href="#alarms", css="alarm") if count else ""
    line = tag("p", " \u00b7 ".join(fact for fact in facts if fact), " \u00b7 " if count else "", alarm, css="facts")
    return tag("header", tag("div", "rl-lab run report", css="eyebrow"), tag("h1", run.name), line)


def incomplete(run: RunFolder) -> Markup:
    """Unfinished stages and unusable files."""
    lines = [f"Not finished: {', '.join(run.unfinished)}."] if run.unfinished else []
    lines += run.problems
    if not lines:
        return Markup("")
    listing = tag("ul", *(tag("li", line) for line in lines))
    return tag("div", tag("b", "This report is incomplete."), listing, css="callout")


def verdict_box(summary: Row) -> Markup:
    """The sentences of `verdict`, with real minus signs and unbroken p-values."""
    typeset = (re.sub(r"(?<=[ (])-(?=\d)", "\u2212", sentence) for sentence in summary["verdict"])
    return tag("div", *(tag("p", re.sub(r"p ([<=]) ", "p\u00a0\\1\u00a0", text)) for text in typeset), css="verdict")


def substitutions(run: RunFolder) -> Markup:
    """What stood in for what, from `environment.json`."""
    rows = run.environment.get("substitutions")
    if not isinstance(rows, list):
        return note("This run folder does not say what stood in for what (no substitutions in environment.json).")
    if not rows:
        return note("Nothing stood in for anything else in this run.")
    head = ("Used", "In place of", "Note")
    body = [(row.get("used"), row.get("wanted"), row.get("why")) for row in rows if isinstance(row, dict)]
    return tag("div", table(head, body, "What stood in for what"), css="standins")


def tile(title: str, value: str, detail: str, css: str = "") -> Markup:
    """One number with what it is and how sure it is."""
    return tag(
        "div",
        tag("div", title, css="tile-title"),
        tag("div", value, css=f"tile-value {css}"),
        tag("div", detail, css="tile-detail"),
        css="tile",
    )


def _score_tile(title: str, row: Row | None) -> Markup:
    if row is None:
        return Markup("")
    span = f"{row['successes']} of {row['n']} episodes, 95 % interval {percent(row['low'])} to {percent(row['high'])}"
    return tile(title, percent(row["rate"]), span)


def _gain_tile(title: str, row: Row | None) -> Markup:
    if row is None or "refused" in row:
        return Markup("")
    low, high = (signed_points(row[end]) for end in ("low", "high"))
    value = signed_points(row["difference"])
    return tile(title, value, f"points, paired 95 % interval {low} to {high}", standing(row))


def tiles(summary: Row) -> Markup:
    """The four numbers of a run: base, final, and the paired gains over base and control."""
    method, last = summary["method"], final_round(summary, summary["method"])
    final = {"scope": OVERALL, "method": method, "round": last}
    shown = [_score_tile("Base policy", find(summary["scores"], scope=OVERALL, method=BASE))]
    if method is not None:
        shown.append(_score_tile(label(method, last), find(summary["scores"], **final)))
        shown.append(_gain_tile("Gain over the base policy", find(summary["gains"], **final, over=BASE)))
    if summary["control"]:
        title = f"Gain over {label(summary['control'])}"
        shown.append(_gain_tile(title, find(summary["gains"], **final, over=summary["control"])))
    return tag("div", *shown, css="tiles")
