"""Joint training in a report: what its arms left, and what training together costs or gives each skill.

Interference, both skills over time, cosines, drift, time, the guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from rl_lab.common.stats import mean_interval, wilson
from rl_lab.reports.estimates import REWARD, SUCCESS, Estimate, cell
from rl_lab.reports.examinations import SKILLS, Arm
from rl_lab.reports.metrics import curve
from rl_lab.reports.numbers import OVERALL, Row, duration, find, find_all, percent, points
from rl_lab.reports.pages.charts import COLOURS, Axis, Series, chart, number
from rl_lab.reports.pages.markup import Markup, macros, minus, parts
from rl_lab.reports.run import BASE, label

ALONE = {"language": "grpo_alone", "actions": "rpro_alone"}
"""The control in which only the skill's own objective trains."""
MEASURED = {
    "language": (REWARD, "Reward on held-out questions"),
    "actions": (SUCCESS, "Success in held-out episodes"),
}
STANDINGS = {"above": "better", "below": "worse", "open": "no difference is shown"}
GROUPS = ("vision", "vlm", "expert")
SHARED = ("vision", "vlm", "shared")
"""Of what both objectives train: its parts, and all of it."""
WORKERS = ("learner", "engines", "simulators")
SKILL_TITLES = {"language": "Reward on development questions", "actions": "Success on development episodes (%)"}
SIGNALS = {
    "grpo/reward/mean": ("Reward of sampled answers", "reward"),
    "grpo/rollouts/staleness": ("Staleness of sampled answers", "weight versions"),
    "grpo/entropy": ("Entropy", "nats"),
    "grpo/mismatch/mean": ("Mismatch of trainer and engine", "nats"),
    "rpro/reward/margin": ("RPRO's margin of implicit rewards", "reward"),
    "rpro/flow/winner": ("Flow-matching loss of winners", "loss"),
}
"""What each objective sees of itself: metric -> title and unit."""


def exam_rows(arm: Arm) -> list[Row]:
    """Both skills at each examination: turn, version, batches, steps, and the mean of each skill."""
    return [
        {"turn": exam.turn, "version": exam.version, "batches": exam.batches, "steps": exam.steps}
        | {skill: score(skill, exam.scores[skill]) for skill in SKILLS}
        for exam in arm.exams
    ]


def score(skill: str, values: Sequence[float | None]) -> Estimate | None:
    """Mean with its 95 % interval: Wilson's for episodes, bootstrap over items for rewards; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    found = wilson(int(sum(known)), len(known)) if skill == "actions" else mean_interval(np.array(known)[:, None])
    return Estimate(**vars(found), n=len(known), how=MEASURED[skill][0])


def times(arm: Arm) -> Row:
    """Turns and steps of each part, and where the time went; examinations are no part of turns."""
    turns = [line for line in arm.lines if line.get("seconds/turn") is not None]
    seconds = sum(line["seconds/turn"] for line in turns)
    idle = {
        worker: sum(line["seconds/turn"] * line[f"idle/{worker}"] for line in turns) / seconds if seconds else None
        for worker in WORKERS
    }
    return {
        "arm": arm.name,
        "batches": sum(line.get("part") == "grpo" for line in turns),
        "blocks": sum(line.get("part") == "rpro" for line in turns),
        "steps": max((line.get("rpro/steps") or 0 for line in turns), default=0),
        "seconds": seconds,
        "examining_seconds": sum(line.get("seconds/examine") or 0 for line in arm.lines),
        "idle": idle,
    }


def last_drift(arm: Arm) -> dict[str, float]:
    """How far each group came from the start."""
    line = next((line for line in reversed(arm.lines) if "drift/vlm" in line), None)
    return {} if line is None else {group: line[f"drift/{group}"] for group in GROUPS}


def cosine_rows(arm: Arm) -> list[Row]:
    """Mean cosine of both gradients by group, over the times that it was measured, and how often it was negative."""
    rows = []
    for group in SHARED:
        values = [line[f"cosine/{group}"] for line in arm.lines if f"cosine/{group}" in line]
        if values:
            negative = sum(value < 0 for value in values)
            rows.append({"group": group, "n": len(values), "mean": sum(values) / len(values), "negative": negative})
    return rows


def joint_summary(arms: Sequence[Arm], summary: Row) -> Row:
    """The `joint` part of `summary.json`; `summary` has the held-out results of both skills."""
    names = [BASE, *(arm.name for arm in arms)]
    pairs = [_pair(summary, name, over) for name in names[1:] for over in names]
    return {
        "arms": names[1:],
        "interference": [row for row in pairs if row is not None],
        "exams": {arm.name: exam_rows(arm) for arm in arms},
        "guard": {arm.name: list(map(vars, arm.events)) for arm in arms if arm.name == "together"},
        "times": [times(arm) for arm in arms],
        "drift": {arm.name: last_drift(arm) for arm in arms},
        "cosines": {arm.name: found for arm in arms if (found := cosine_rows(arm))},
    }


def _pair(summary: Row, name: str, over: str) -> Row | None:
    """Paired differences of both held-out skills, an arm over another or over the base; None where there is neither."""
    if name == over:
        return None
    language = find(summary.get("held_out_differences", []), scope=OVERALL, scheme=name, over=over)
    actions = find(summary.get("gains", []), scope=OVERALL, method=name, over=over)
    if language is None and actions is None:
        return None
    return {"arm": name, "over": over, "language": language, "actions": actions}


def _sentence(found: Estimate | None) -> str:
    """A paired difference in words."""
    if found is None or found.refused is not None:
        return ""
    size = cell(found, points, " points") if found.how == SUCCESS else cell(found, "{:+.3f}".format)
    return f"{size} (n = {found.n}): {STANDINGS[found.standing]}"


def joint_verdict(joint: Row, table: Sequence[Estimate]) -> list[str]:
    """What training together did to each skill, as sentences that claim no more than the intervals do."""
    sentences = []
    if "together" in joint["arms"]:
        for skill, alone in ALONE.items():
            how, words = MEASURED[skill]
            for over, name in ((BASE, "the base policy"), (alone, "its own objective alone"), ("sequence", "sequence")):
                text = _sentence(find(table, how=how, scope=OVERALL, model="together", over=over))
                if text and over in (BASE, *joint["arms"]):
                    sentences.append(f"{words}, together over {name}: {text}.")
        events = joint["guard"].get("together", [])
        acted = [event for event in events if event["action"] != "none"]
        sentences.append(
            f"The guard acted {len(acted)} time{'s' * (len(acted) != 1)}." if acted else "The guard had nothing to do."
        )
    return [*sentences, "One training seed: intervals cover questions and episodes, not seeds."]


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
        signals=[_compared(arms, metric, title, "turn", unit) for metric, (title, unit) in SIGNALS.items()],
    )


def interference_table(summary: Row, joint: Row) -> Markup:
    """One row a model: both held-out skills, and paired differences to the base, to the skill alone, to sequence."""
    head = ["Model", "Reward", "over base", "over GRPO alone", "over sequence"]
    head += ["Success", "over base", "over RPRO alone", "over sequence"]
    names, table = (BASE, *joint["arms"]), find_all(summary["estimates"], scope=OVERALL)
    rows = []
    for name in names:
        cells: list[str | Estimate | None] = [label(name)]
        for skill, (how, _) in MEASURED.items():
            own = find_all(table, how=how, model=name)
            overs = (BASE, ALONE[skill], "sequence")
            gains = [find(own, over=over) if over in names else None for over in overs]
            cells += [find(own, over=None), *gains]
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
        series = []
        for arm, css in zip(arms, cycle(COLOURS), strict=False):
            means = [(row["turn"], row[skill]) for row in exam_rows(arm) if row[skill] is not None]
            texts = [f"{label(arm.name)}, turn {turn}: {one.value:.3f} (n = {one.n})" for turn, one in means]
            scale = 100 if skill == "actions" else 1
            series.append(Series.through(label(arm.name), means, css, scale, labels=texts))
        charts.append(chart(title, series, Axis("turn of the learner"), Axis(skill)))
    return parts.charts(charts)


def _series(arm: Arm, metric: str, name: str, css: str) -> Series:
    return Series(name, *curve(arm.lines, arm.node, metric), css)


def _compared(arms: Sequence[Arm], metric: str, title: str, x: str, unit: str) -> Markup:
    """A metric of all arms."""
    lines = [_series(arm, metric, label(arm.name), css) for arm, css in zip(arms, cycle(COLOURS), strict=False)]
    return chart(title, lines, Axis(x), Axis(unit))


def cosine_charts(arms: Sequence[Arm]) -> list[Markup]:
    """Cosine of both objectives' gradients on what they share, of the arms in which both have one."""
    charts = []
    for arm in arms:
        lines = [_series(arm, f"cosine/{part}", part, css) for part, css in zip(SHARED, COLOURS, strict=False)]
        title = f"Cosine of GRPO's and RPRO's gradient, {label(arm.name)}"
        charts.append(chart(title, lines, Axis("turn of the learner"), Axis("cosine")))
    return [drawn for drawn in charts if drawn]


def drift_charts(arms: Sequence[Arm]) -> list[Markup]:
    """How far each group of parameters is from the start."""
    x, y = "turn of the learner", "relative distance"
    return [_compared(arms, f"drift/{group}", f"Drift from the start: {group}", x, y) for group in GROUPS]


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
    head = ["Arm", "GRPO batches", "RPRO steps", "Turns took", *(f"{worker} idle" for worker in WORKERS)]
    head += ["Examinations", *(f"Drift: {group}" for group in GROUPS)]
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
