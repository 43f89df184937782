"""What distillation was worth: the gap to the teacher, how much of it the student makes up, and for how many tokens.

Everything is paired on the held-out questions. `recovered` = (distilled - student) / (teacher - student); its interval
resamples the questions and repeats the whole quotient. Tokens are completion tokens that were learned from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rl_lab.reports.budgets import Curve, make_curve
from rl_lab.reports.estimates import REWARD, Estimate, cell
from rl_lab.reports.examinations import Examination, LearningCurve, read_training, reward_table
from rl_lab.reports.numbers import Row
from rl_lab.reports.pipeline import Chain
from rl_lab.reports.run import LoadedRun
from rl_lab.stats import (
    Array,
    first_reach,
    mean_interval,
    percentile_interval,
    plain_mean,
    resampled_means,
)

TEACHER, DISTILL, IMITATE, STUDENT = "teacher", "distill", "imitate", "student"
LEAST_GAP = 0.15
"""Points that a teacher must be ahead by, for its student to have something to learn."""
WANTED_SHARE = 0.8
"""Of the gap, to be recovered."""
TARGETS = (0.5, 0.8, 0.9)
"""Shares of the gap whose tokens are compared."""
METHOD = (
    "rewards are means over the sampled answers to a held-out question; differences are paired on questions; 95 % "
    "intervals by bootstrap over questions (2,000 resamples), the quotient of two differences included. Tokens to a "
    "share of the gap: first passage of the curve of short examinations (one answer a question), linear between them"
)


def student_of(run: LoadedRun) -> Examination | None:
    """The examination of the model that distillation starts from, which a gate may have chosen."""
    chain = Chain(run)
    student = chain.model_of(chain.inputs(DISTILL).get("policy"))
    return next((e for e in run.examinations if e.scheme == student), None)


def examined(run: LoadedRun) -> dict[str, Examination]:
    """The examinations of student, teacher, distilled and imitating model, of those that there are."""
    named = {e.scheme: e for e in run.examinations if e.scheme in (TEACHER, DISTILL, IMITATE)}
    student = student_of(run)
    return named if student is None else {STUDENT: student} | named


def trainings(run: LoadedRun) -> list[LearningCurve]:
    """Short examinations of both ways to learn from the teacher."""
    found = [t for t in run.trainings if t.scheme == DISTILL and len(t.steps)]
    folder = run.path / "checkpoints" / IMITATE
    if (folder / "held_out.jsonl").is_file():
        found.append(LearningCurve(IMITATE, IMITATE, 1, folder, *read_training(folder / "held_out.jsonl")))
    return found


def reward_curves(run: LoadedRun) -> list[Curve]:
    """Held-out reward over tokens of both."""
    made = [make_curve([training], "tokens") for training in trainings(run)]
    return [curve for curve in made if curve is not None]


def quotient(above: Array, below: Array) -> Estimate:
    """Of two paired differences [n, 1], with an interval; not finite where a division by 0 leaves no number."""
    ends = (resampled_means(above), resampled_means(below))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.divide(plain_mean(above), plain_mean(below)))
        interval = percentile_interval(value, ends[0] / ends[1])
    return Estimate(**vars(interval), n=len(above), how="share of the gap")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def tokens_to(curve: Curve, start: float, gap: float, share: float) -> float | None:
    """Tokens at which a curve has this share of the gap above the student; None: never."""
    target = np.array([start + share * gap])
    return _finite(float(first_reach(curve.places, curve.means[None, :], target)[0]))


def token_rows(curves: Sequence[Curve], start: float, gap: float) -> list[Row]:
    """Tokens to each target of each way to learn, and what each spent."""
    return [
        {"model": curve.scheme, "spent": float(curve.places[-1])}
        | {"reached": [{"share": share, "tokens": tokens_to(curve, start, gap, share)} for share in TARGETS]}
        for curve in curves
    ]


def stage_seconds(run: LoadedRun) -> dict[str, float]:
    """Seconds of the teacher's stages, the student's with distillation, and the control's, stored ones included."""
    sums = {TEACHER: 0.0, STUDENT: 0.0, IMITATE: 0.0, "questions": 0.0}
    for stage in run.stages:
        method, kind = stage.get("method"), stage.get("kind")
        owner = "questions" if kind == "questions" else method if method in (TEACHER, IMITATE) else STUDENT
        if kind != "report":
            sums[owner] += stage.get("seconds") or 0.0
    return sums


def distillation_summary(run: LoadedRun) -> Row | None:
    """Numbers and verdict; None without examinations of a student and its teacher."""
    found = examined(run)
    if not {STUDENT, TEACHER} <= found.keys():
        return None
    items = [item.item for item in found[STUDENT].items]
    rewards = {name: reward_table([e], items, lambda item: item.reward) for name, e in found.items()}
    gap = rewards[TEACHER] - rewards[STUDENT]
    row: Row = {
        "rewards": {name: _mean(values) for name, values in rewards.items()},
        "gap": _mean(gap),
        "recovered": {
            name: quotient(rewards[name] - rewards[STUDENT], gap) for name in (DISTILL, IMITATE) if name in rewards
        },
        "seconds": stage_seconds(run),
        "method": METHOD,
    }
    if {DISTILL, IMITATE} <= rewards.keys():
        row["distill_over_imitate"] = _mean(rewards[DISTILL] - rewards[IMITATE])
    start, height = plain_mean(rewards[STUDENT]), plain_mean(gap)
    row["tokens"] = token_rows(reward_curves(run), start, height)
    return row | {"verdict": distillation_verdict(row)}


def _mean(rewards: Array) -> Estimate:
    """Of rewards, or differences, [n, 1]."""
    return Estimate(**vars(mean_interval(rewards)), n=len(rewards), how=REWARD)


def has_gap(row: Row) -> bool:
    """Whether the teacher is ahead by enough, and surely."""
    return row["gap"].value >= LEAST_GAP and row["gap"].low > 0


def distillation_verdict(row: Row) -> list[str]:
    """Sentences: the gap, what was recovered, and at how many tokens."""
    gap = row["gap"]
    size = f"{cell(gap, lambda value: f'{100 * value:.1f}').replace(' ', ' points ', 1)}, n = {gap.n}"
    if not has_gap(row):
        return [
            f"There is no gap to recover: the teacher is ahead of the student by {size}; at least 15 are asked for."
        ]
    lines = [f"The teacher is ahead of the student by {size}."]
    for name, found in row["recovered"].items():
        lines.append(f"{name} recovers {cell(found, share_text).replace(' ', ' % ', 1)} of the gap.")
    return lines + _token_lines(row)


def share_text(value: float) -> str:
    """A share of the gap in percent, or one end of its interval."""
    return f"{100 * value:.0f}" if math.isfinite(value) else "unbounded"


def _token_lines(row: Row) -> list[str]:
    """Tokens of both to 80 % of the gap, where both were examined."""
    reached = {
        entry["model"]: next(point["tokens"] for point in entry["reached"] if point["share"] == WANTED_SHARE)
        for entry in row["tokens"]
    }
    spent = {entry["model"]: entry["spent"] for entry in row["tokens"]}
    if not {DISTILL, IMITATE} <= reached.keys():
        return []
    own, other = reached[DISTILL], reached[IMITATE]
    share = f"{100 * WANTED_SHARE:.0f} % of the gap"
    if own is None:
        return [f"distill does not reach {share} within its {spent[DISTILL]:,.0f} tokens."]
    if other is None:
        return [f"distill reaches {share} after {own:,.0f} tokens, imitate not within {spent[IMITATE]:,.0f}."]
    return [f"distill reaches {share} after {own:,.0f} tokens, {100 * own / other:.0f} % of imitate's {other:,.0f}."]
