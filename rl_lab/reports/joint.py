"""Joint training in a report: what its arms left, and what training together costs or gives each skill."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl_lab.reports.estimates import REWARD, SUCCESS, Estimate, cell
from rl_lab.reports.examinations import SKILLS, Arm
from rl_lab.reports.numbers import OVERALL, Row, find, points
from rl_lab.reports.run import BASE
from rl_lab.stats import mean_interval, wilson

ALONE = {"language": "grpo_alone", "actions": "rpro_alone"}
"""The control in which only the skill's own objective trains."""
MEASURED = {
    "language": (REWARD, "Reward on held-out questions"),
    "actions": (SUCCESS, "Success in held-out episodes"),
}
STANDINGS = {"above": "better", "below": "worse", "open": "no difference is shown"}
GROUPS = ("vision", "vlm", "expert")
WORKERS = ("learner", "engines", "simulators")


def exam_rows(arm: Arm) -> list[Row]:
    """Both skills at each examination: turn, version, batches, steps, and mean, low, high, n of each skill."""
    return [
        {key: exam.get(key) for key in ("turn", "version", "batches", "steps")}
        | {skill: score(skill, exam["scores"][skill]) for skill in SKILLS}
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
    found = (line for line in reversed(arm.lines) if "drift/vlm" in line)
    return {group: line[f"drift/{group}"] for line in list(found)[:1] for group in GROUPS}


def cosine_rows(arm: Arm) -> list[Row]:
    """Mean cosine of both gradients by group, over the times that it was measured, and how often it was negative."""
    rows = []
    for group in ("vision", "vlm", "shared"):
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
        "guard": {arm.name: arm.events for arm in arms if arm.name == "together"},
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
    size = cell(found, "{:+.3f}".format)
    if found.how == SUCCESS:
        size = cell(found, points).replace(" ", " points ", 1)
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
