"""The section of a report on joint training: interference, both skills over time, cosines, drift, time, the guard."""

from __future__ import annotations

from collections.abc import Sequence

from rl_lab.reports.estimates import REWARD, SUCCESS, Estimate
from rl_lab.reports.examinations import Arm
from rl_lab.reports.joint import ALONE, GROUPS, MEASURED, WORKERS, exam_rows
from rl_lab.reports.numbers import OVERALL, Row, duration, find, find_all, percent
from rl_lab.reports.pages.charts import Axis, Series, chart, number
from rl_lab.reports.pages.markup import Markup, estimate_text, macros, minus, parts
from rl_lab.reports.run import BASE, label

COLOURS = ("c0", "c1", "c2", "c3")
SKILL_TITLES = {"language": "Reward on development questions", "actions": "Success on development episodes (%)"}


def joint_section(arms: Sequence[Arm], summary: Row) -> Markup:
    """Everything that was measured of joint training; or nothing without an arm."""
    if not arms:
        return Markup("")
    joint = summary["joint"]
    return macros("joint").joint(
        interference=interference_table(summary, joint),
        skills=skill_charts(arms),
        guard=joint["guard"].get("together"),
        guarded=guard_rows(joint),
        gradients=[*cosine_charts(arms), *drift_charts(arms)],
        cosines=cosine_table(joint),
        times=times_table(joint),
        signals=signal_charts(arms),
    )


def _css(arms: Sequence[Arm]) -> dict[str, str]:
    return {arm.name: COLOURS[place % len(COLOURS)] for place, arm in enumerate(arms)}


def interference_table(summary: Row, joint: Row) -> Markup:
    """One row a model: both held-out skills, and paired differences to the base, to the skill alone, to sequence."""
    head = ["Model", "Reward", "over base", "over GRPO alone", "over sequence"]
    head += ["Success", "over base", "over RPRO alone", "over sequence"]
    names, table = (BASE, *joint["arms"]), find_all(summary["estimates"], scope=OVERALL)
    rows = []
    for name in names:
        cells = [label(name)]
        for skill, (how, _) in MEASURED.items():
            own = find_all(table, how=how, model=name)
            overs = (BASE, ALONE[skill], "sequence")
            gains = [find(own, over=over) if over in names else None for over in overs]
            cells += [estimate_text(one) for one in (find(own, over=None), *gains)]
        rows.append(cells)
    return parts.table(head, rows, f"Interference ({_counts(table)})", "numbers stacked")


def _counts(table: Sequence[Estimate]) -> str:
    """How many questions and episodes the table rests on."""
    units = {"questions": find(table, how=REWARD, over=None), "episodes": find(table, how=SUCCESS, over=None)}
    return ", ".join(f"{one.n} {unit}" for unit, one in units.items() if one) or "nothing was measured yet"


def skill_charts(arms: Sequence[Arm]) -> Markup:
    """Both skills over the turns of each arm, with 95 % intervals."""
    charts = []
    for skill, title in SKILL_TITLES.items():
        scale = 100 if skill == "actions" else 1
        series = []
        for arm, css in zip(arms, _css(arms).values(), strict=True):
            rows = [(row["turn"], row[skill]) for row in exam_rows(arm) if row[skill] is not None]
            columns = {key: [scale * getattr(one, key) for _, one in rows] for key in ("value", "low", "high")}
            texts = [f"{label(arm.name)}, turn {turn}: {one.value:.3f} (n = {one.n})" for turn, one in rows]
            series.append(
                Series(
                    label(arm.name),
                    [turn for turn, _ in rows],
                    columns["value"],
                    css,
                    low=columns["low"],
                    high=columns["high"],
                    labels=texts,
                )
            )
        charts.append(chart(title, series, Axis("turn of the learner"), Axis(skill)))
    return parts.charts(charts)


def _series(arm: Arm, metric: str, name: str, css: str) -> Series:
    found = [(line["step"], line[metric]) for line in arm.lines if line.get(metric) is not None]
    return Series(name, [step for step, _ in found], [value for _, value in found], css)


def cosine_charts(arms: Sequence[Arm]) -> list[Markup]:
    """Cosine of both objectives' gradients on what they share, of the arms in which both have one."""
    charts = []
    for arm in arms:
        lines = [
            _series(arm, f"cosine/{group}", group, css)
            for group, css in zip(("vision", "vlm", "shared"), COLOURS, strict=False)
        ]
        title = f"Cosine of GRPO's and RPRO's gradient, {label(arm.name)}"
        charts.append(chart(title, lines, Axis("turn of the learner"), Axis("cosine")))
    return [drawn for drawn in charts if drawn]


def drift_charts(arms: Sequence[Arm]) -> list[Markup]:
    """How far each group of parameters is from the start."""
    css = _css(arms)
    return [
        chart(
            f"Drift from the start: {group}",
            [_series(arm, f"drift/{group}", label(arm.name), css[arm.name]) for arm in arms],
            Axis("turn of the learner"),
            Axis("relative distance"),
        )
        for group in GROUPS
    ]


def signal_charts(arms: Sequence[Arm]) -> list[Markup]:
    """What each objective sees of itself."""
    css = _css(arms)
    shown = {
        "grpo/reward/mean": ("Reward of sampled answers", "reward"),
        "grpo/rollouts/staleness": ("Staleness of sampled answers", "weight versions"),
        "grpo/entropy": ("Entropy", "nats"),
        "grpo/mismatch/mean": ("Mismatch of trainer and engine", "nats"),
        "rpro/reward/margin": ("RPRO's margin of implicit rewards", "reward"),
        "rpro/flow/winner": ("Flow-matching loss of winners", "loss"),
    }
    return [
        chart(title, [_series(arm, name, label(arm.name), css[arm.name]) for arm in arms], Axis("turn"), Axis(unit))
        for name, (title, unit) in shown.items()
    ]


def cosine_table(joint: Row) -> Markup:
    """Mean cosines, and how often the objectives pulled against each other."""
    rows = [
        [f"{label(arm)}: {row['group']}", row["n"], minus(f"{row['mean']:+.3f}"), f"{row['negative']} of {row['n']}"]
        for arm, found in joint["cosines"].items()
        for row in found
    ]
    return parts.table(["Gradient cosine", "Times", "Mean", "Below 0"], rows, css="numbers") if rows else Markup("")


def times_table(joint: Row) -> Markup:
    """Steps of each part, and the share of the turns in which each kind of worker had nothing to do."""
    head = [
        "Arm",
        "GRPO batches",
        "RPRO steps",
        "Turns took",
        *(f"{worker} idle" for worker in WORKERS),
        "Examinations",
    ]
    head += [f"Drift: {group}" for group in GROUPS]
    rows = []
    for row in joint["times"]:
        idle = ["" if row["idle"][worker] is None else percent(row["idle"][worker]) for worker in WORKERS]
        far = [number(joint["drift"][row["arm"]].get(group, 0.0)) for group in GROUPS]
        took = [duration(row["seconds"]), *idle, duration(row["examining_seconds"])]
        rows.append([label(row["arm"]), row["batches"], f"{row['steps']:.0f}", *took, *far])
    return parts.table(head, rows, "Time and drift", "numbers")


def guard_rows(joint: Row) -> list[list[str]]:
    """What the guard found and did."""
    return [
        [
            f"turn {event['turn']}",
            event["skill"],
            minus(f"{event['difference']:+.3f} (at least {event['bound']:+.3f}, n = {event['n']})"),
            minus(f"{event['given_back']:+.3f}"),
            event["objective"],
            event["action"].replace("_", " "),
        ]
        for event in joint["guard"].get("together") or ()
    ]
