"""What distillation was worth: the gap to the teacher, how much of it the student makes up, and for how many tokens.

Everything is paired on the held-out questions. `recovered` = (distilled - student) / (teacher - student); its interval
resamples the questions and repeats the whole quotient. Tokens are completion tokens that were learned from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rl_lab.common.stats import Array, first_reach, mean_interval, percentile_interval, plain_mean, resampled_means
from rl_lab.reports.budgets import Curve, finite, make_curve
from rl_lab.reports.estimates import REWARD, Estimate, cell
from rl_lab.reports.examinations import Examination, LearningCurve, read_training, reward_table
from rl_lab.reports.numbers import Row
from rl_lab.reports.pages.charts import Axis, Series, chart
from rl_lab.reports.pages.markup import Markup, macros, minus, parts
from rl_lab.reports.pages.pipeline import Chain
from rl_lab.reports.run import LoadedRun

TEACHER, DISTILL, IMITATE, STUDENT = "teacher", "distill", "imitate", "student"
NAMES = {
    STUDENT: "student, before",
    TEACHER: "teacher",
    DISTILL: "student, distilled",
    IMITATE: "student, imitating (control)",
}
COLOURS = {DISTILL: "c0", IMITATE: "c1"}
"""Of both ways to learn."""
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


def reward_curves(run: LoadedRun) -> list[Curve]:
    """Held-out reward over tokens of both ways to learn from the teacher, where there are short examinations."""
    found = [training for training in run.trainings if training.scheme == DISTILL and len(training.steps)]
    folder = run.path / "checkpoints" / IMITATE
    if (folder / "held_out.jsonl").is_file():
        found.append(LearningCurve(IMITATE, IMITATE, 1, folder, *read_training(folder / "held_out.jsonl")))
    return list(filter(None, (make_curve([training], "tokens") for training in found)))


def quotient(above: Array, below: Array) -> Estimate:
    """Of two paired differences [n, 1], with an interval; not finite where a division by 0 leaves no number."""
    ends = (resampled_means(above), resampled_means(below))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.divide(plain_mean(above), plain_mean(below)))
        interval = percentile_interval(value, ends[0] / ends[1])
    return Estimate(**vars(interval), n=len(above), how="share of the gap")


def token_rows(curves: Sequence[Curve], start: float, gap: float) -> list[Row]:
    """What each way to learn spent, and its tokens to each share of the gap above the student; None: never."""
    rows = []
    for curve in curves:
        targets = start + gap * np.array(TARGETS)
        places = first_reach(curve.places, np.repeat(curve.means[None, :], len(targets), axis=0), targets)
        reached = [{"share": s, "tokens": finite(place)} for s, place in zip(TARGETS, places.tolist(), strict=True)]
        rows.append({"model": curve.scheme, "spent": float(curve.places[-1]), "reached": reached})
    return rows


def stage_seconds(run: LoadedRun) -> dict[str, float]:
    """Seconds of the teacher's stages, the student's with distillation, and the control's, stored ones included."""
    sums = {TEACHER: 0.0, STUDENT: 0.0, IMITATE: 0.0, "questions": 0.0}
    for stage in run.own_stages:
        own = stage.method if stage.method in (TEACHER, IMITATE) else STUDENT
        sums["questions" if stage.kind == "questions" else own] += stage.seconds or 0.0
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
        "recovered": {name: quotient(rewards[name] - rewards[STUDENT], gap) for name in COLOURS if name in rewards},
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
    size = f"{cell(gap, lambda value: f'{100 * value:.1f}', ' points')}, n = {gap.n}"
    if not has_gap(row):
        return [
            f"There is no gap to recover: the teacher is ahead of the student by {size}; at least 15 are asked for."
        ]
    lines = [f"The teacher is ahead of the student by {size}."]
    for name, found in row["recovered"].items():
        lines.append(f"{name} recovers {cell(found, share_text, ' %')} of the gap.")
    return lines + _token_lines(row)


def share_text(value: float) -> str:
    """A share of the gap in percent, or one end of its interval."""
    return f"{100 * value:.0f}" if math.isfinite(value) else "unbounded"


def _reached(row: Row) -> dict[str, dict[float, float | None]]:
    """Tokens of each way to learn to each share of the gap."""
    return {entry["model"]: {at["share"]: at["tokens"] for at in entry["reached"]} for entry in row["tokens"]}


def _token_lines(row: Row) -> list[str]:
    """Tokens of both to 80 % of the gap, where both were examined."""
    reached, spent = _reached(row), {entry["model"]: entry["spent"] for entry in row["tokens"]}
    if not {DISTILL, IMITATE} <= reached.keys():
        return []
    own, other = reached[DISTILL][WANTED_SHARE], reached[IMITATE][WANTED_SHARE]
    share = f"{100 * WANTED_SHARE:.0f} % of the gap"
    if own is None:
        return [f"distill does not reach {share} within its {spent[DISTILL]:,.0f} tokens."]
    if other is None:
        return [f"distill reaches {share} after {own:,.0f} tokens, imitate not within {spent[IMITATE]:,.0f}."]
    return [f"distill reaches {share} after {own:,.0f} tokens, {100 * own / other:.0f} % of imitate's {other:,.0f}."]


def _share(one: Estimate | None) -> Markup | str:
    """A share of the gap with its interval; an end without a number is unbounded."""
    if one is None or not math.isfinite(one.value):
        return ""
    return parts.estimate(minus(f"{share_text(one.value)} %"), minus(f" {one.ends(share_text)}"))


def models_table(row: Row) -> Markup:
    """Reward of each model, share of the gap, tokens spent, and tokens to shares of the gap."""
    reached, spent = _reached(row), {entry["model"]: f"{entry['spent']:,.0f}" for entry in row["tokens"]}
    shares = TARGETS if reached and has_gap(row) else ()
    head = ["Model", f"Reward, n = {row['gap'].n}", "Of the gap", "Tokens learned from"]
    rows = []
    for name in (name for name in NAMES if name in row["rewards"]):
        recovered = row["recovered"].get(name) if has_gap(row) else None
        tokens = [reached[name][share] for share in shares] if name in reached else []
        texts = ["not within its tokens" if number is None else f"{number:,.0f}" for number in tokens]
        start = [NAMES[name], row["rewards"][name], _share(recovered), spent.get(name)]
        rows.append([*start, *(texts or [""] * len(shares))])
    head += [f"Tokens to {100 * share:.0f} %" for share in shares]
    return parts.table(head, rows, "Teacher, student, and both ways to learn", "numbers stacked")


def curves_chart(run: LoadedRun, row: Row) -> Markup:
    """Held-out reward of both over tokens, between the student's and the teacher's."""
    curves = reward_curves(run)
    if not curves:
        return Markup("")
    series = [Series.through(NAMES[one.scheme], one.points, COLOURS[one.scheme], area=True) for one in curves]
    ends = [0.0, max(curve.places[-1] for curve in curves)]
    for name, css in ((STUDENT, "cb"), (TEACHER, "cg")):
        series.append(Series(NAMES[name], ends, [row["rewards"][name].value] * 2, css))
    return chart("Held-out reward over tokens", series, Axis("tokens learned from"), Axis("reward"))


def distillation_section(run: LoadedRun, row: Row | None) -> Markup:
    """All of it, or nothing for a run without teacher and student."""
    if row is None:
        return Markup("")
    shown = {"teacher": TEACHER, "student with distillation": STUDENT, "control": IMITATE, "questions": "questions"}
    took = ", ".join(f"{name} {row['seconds'][key]:,.0f}" for name, key in shown.items())
    said = minus(f"The gap is {cell(row['gap'])}. Seconds of their stages: {took}. {row['method']}.")
    return macros("language").distillation(map(minus, row["verdict"]), models_table(row), curves_chart(run, row), said)
