"""What a study shows of each world beside its comparisons: what training on questions took, categories, episodes or
questions that flip, and what the detectors of reward hacking say.

Detectors look at how every training went (`algos.alarms`), and at the pairs that rankings of chunks made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from algos.alarms import (
    FAILED_CALL,
    disagreement_alarm,
    dominance_alarm,
    format_alarm,
    length_alarm,
    proxy_alarm,
    variance_alarm,
)
from algos.curriculum.items import BANDS
from rl_lab.common.errors import UserError
from rl_lab.config.study import Study
from rl_lab.records.rollouts import RolloutStore
from rl_lab.reports.budgets import curves, tokens_needed
from rl_lab.reports.estimates import in_scope, mean_estimate, pass_threshold, scoped_items, scopes
from rl_lab.reports.examinations import LearningCurve
from rl_lab.reports.numbers import OVERALL, Row, find, percent
from rl_lab.reports.run import LoadedRun, PairSet, in_world
from rl_lab.reports.study import REWARD, SUCCESS, Results, Unit, compare, results, settings

LAST_STEPS = 3
"""Of each training, the steps whose rollouts tell which part of the reward still varies."""
LEAST_PAIRS = 20
"""Fewer pairs whose chunks led to different progress raise no alarm about being wrong."""
Z = 1.96
"""The share of right pairs must lie so many standard errors of chance below one half."""
MOST_DISAGREEMENT = 0.5
"""Share of states on which members disagree above which an ensemble knows too little."""


def has_details(study: Study) -> bool:
    """Whether a study shows them: of rewards, rankings and curricula."""
    return study.compared not in ("method", "eval.join", "joint.arms", "variants")


def details(run: LoadedRun) -> list[Row]:
    """Of each world: held-out reward while training by method, what differs by category, flips and alarms."""
    study = settings(run)
    return [_details(run, study, world.name) for world in study.worlds()] if has_details(study) else []


def _details(run: LoadedRun, study: Study, world: str) -> Row:
    here = in_world(run, world)
    found = judged(here, study)
    shown = {curve.scheme: curve.points for curve in curves(here, "steps")}
    return {
        "world": world,
        "curves": {name: [{"step": step} | vars(mean) for step, mean in points] for name, points in shown.items()},
        "spent": spent(here, study),
        "categories": _categories(here, study, found),
        "flips": {name: flips(found, name, study.control, _threshold(here, study)) for name in study.others},
        "alarms": {name: list(_alarms(here, study, name)) for name in study.names},
    }


def spent(here: LoadedRun, study: Study) -> list[Row]:
    """What each method's trainings on questions took, means over training seeds: completion `tokens`, `questions` of
    the pool that were ever asked, and the share of sampled groups with a `signal`; None where the run did not log it.
    And what `tokens_needed` says."""
    needed = tokens_needed(here, study.control)
    rows: list[Row] = []
    for name in study.names:
        own = [training for training in here.trainings if training.scheme == name and len(training.steps)]
        if own:
            asked, signal = zip(*(_asked(here, training) for training in own), strict=True)
            means = {"tokens": [training.tokens[-1] for training in own], "questions": asked, "signal": signal}
            row = {key: float(np.mean(values)) if None not in values else None for key, values in means.items()}
            rows.append({"method": name} | row | (find(needed, method=name) or {}))
    return rows


def _asked(here: LoadedRun, training: LearningCurve) -> tuple[float | None, float | None]:
    """Distinct questions that a training asked, and the share of its groups with a signal."""
    steps = [line for line in here.metrics if line.get("node") == training.node and "rollouts/groups" in line]
    if not steps:
        return None, None
    pool = {band: steps[-1].get(f"pool/{band}", 0) for band in BANDS}
    groups = [step["rollouts/groups"] for step in steps]
    return sum(pool.values()) - pool["unseen"], np.average([step["rollouts/signal"] for step in steps], weights=groups)


def judged(here: LoadedRun, study: Study) -> Results:
    """Success in every episode, or the reward of every question, of the methods in one world."""
    return next(iter(results(here, REWARD if study.on_questions else SUCCESS).values()), Results({}))


def _threshold(run: LoadedRun, study: Study) -> float:
    """From which on an episode or a question counts as solved, on average over training seeds."""
    return pass_threshold(run) if study.on_questions else 0.5


def _categories(here: LoadedRun, study: Study, found: Results) -> list[Row]:
    """By category, or task and variant where there are several, what each method adds; not corrected for many."""
    if study.on_questions:
        groups: dict[str, list[Unit]] = {**scoped_items(here)}
    else:
        keys = {episode.key: episode for one in here.evaluations for episode in one.episodes}
        groups = {
            scope: [key for key, one in keys.items() if in_scope(scope, one)] for scope in scopes(here.evaluations)
        }
    whole = groups.pop(OVERALL, [])
    rows = []
    for scope, units in groups.items():
        if len(units) < len(whole):
            part = {scope: found.numbered(units)}
            rows.append(
                {"category": scope, "methods": [compare(part, [scope], name, study.control) for name in study.others]}
            )
    return rows


def flips(found: Results, method: str, control: str, threshold: float) -> list[Row]:
    """What passes under one and not under the other, averaged over the shared training seeds, widest first."""
    seeds = sorted({*found.seeds(method)} & {*found.seeds(control)})
    turned = []
    for unit in found.units if seeds else ():
        own, other = (_mean([found.values[name][seed].get(unit) for seed in seeds]) for name in (method, control))
        if (own >= threshold) != (other >= threshold):
            turned.append({"item": unit, "method": own, "control": other})
    return sorted(turned, key=lambda row: -abs(row["method"] - row["control"]))


def _mean(values: Sequence[float | None]) -> float:
    """Of those that are known, 0 without any."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else 0.0


def _alarms(here: LoadedRun, study: Study, name: str) -> Iterator[str]:
    """What the detectors say of a method, which of its stages failed, and what its trainings said of reward calls that
    failed, each text once."""
    for training in (training for training in here.trainings if training.scheme == name):
        own = study.rewards[name] if name in study.rewards else here.config.get("rewards") or {}
        weights = own.get("weights") or {"answer": 1.0}
        yield from (f"seed {training.replicate}: {text}" for text in course_alarms(_course(here, training), weights))
    for pairs in (pairs for pairs in ranked_sets(here) if pairs.method == name):
        yield from (f"seed {pairs.replicate}: {text}" for text in ranking_alarms(pairs))
    stages = [stage for stage in here.stages if stage.method == name]
    yield from (f"{stage.name} failed" for stage in stages if stage.status == "failed")
    nodes = {stage.name for stage in stages}
    said = [line["alarm"] for line in here.metrics if line.get("node") in nodes and "alarm" in line]
    yield from dict.fromkeys(text for text in said if text.startswith(FAILED_CALL))


def _course(run: LoadedRun, training: LearningCurve) -> Course:
    """How a training went, as the detectors read it."""
    lines = [line for line in run.metrics if line.get("node") == training.node]

    def series(key: str) -> list[float]:
        return [float(line[key]) for line in lines if line.get(key) is not None]

    rewards = training.rewards
    change = mean_estimate((rewards[-1] - rewards[0])[:, None]) if len(rewards) > 1 else None
    return Course(
        reward=series("reward/mean"),
        truth_high=None if change is None else change.high,
        length=series("rollouts/length"),
        format=series("reward/format"),
        spread=series("rollouts/spread"),
        disagreement=_disagreement(lines),
        parts=_last_parts(training),
    )


def _disagreement(lines: Sequence[Row]) -> list[float]:
    """Of the members of reward models, mean over the models where there are several."""
    family = "reward/disagreement/"
    steps = [[float(value) for name, value in line.items() if name.startswith(family)] for line in lines]
    return [sum(values) / len(values) for values in steps if values]


def _last_parts(training: LearningCurve) -> dict[str, list[float]]:
    """Rewards by part of the answers of the last steps; {} where they cannot be read."""
    store = RolloutStore(training.folder)
    try:
        rows = list(store.read(steps=store.steps()[-LAST_STEPS:]))
    except (OSError, ValueError, UserError):
        return {}
    names = sorted({name for row in rows for name in row["rewards"]})
    return {
        name: [np.nan if row["rewards"].get(name) is None else row["rewards"][name] for row in rows] for name in names
    }


def ranked_sets(run: LoadedRun) -> list[PairSet]:
    """The sets of pairs that were made of ranked chunks."""
    return [pairs for pairs in run.pairs if "agreement" in pairs.counts]


def ranking_alarms(pairs: PairSet) -> Iterator[str]:
    """What is wrong with a set of pairs: a reward that points away from progress, or members that disagree."""
    agreement, states = pairs.counts["agreement"], pairs.counts["states"]
    right, different = agreement["chosen_right"], agreement["chosen_different"]
    if different >= LEAST_PAIRS and not right + Z / (2 * math.sqrt(different)) >= 0.5:
        yield (
            f"of {different} chosen pairs whose chunks led to different progress only {percent(right)} "
            "prefer the one that led further: the reward points away from the task"
        )
    disagreed = pairs.counts.get("abstained/disagreement", 0)
    if disagreed > MOST_DISAGREEMENT * states:
        yield f"members disagree in {disagreed} of {states} states: the models know too little"


@dataclass(frozen=True)
class Course:
    """Series of one training, a value a step; [] where the run did not log it."""

    reward: Sequence[float]
    """What was trained on."""
    truth_high: float | None
    """Upper end of the 95 % interval of the held-out truth's paired change; None without two examinations."""
    length: Sequence[float] = ()
    """Tokens of an answer."""
    format: Sequence[float] = ()
    """Share of answers in the asked format."""
    spread: Sequence[float] = ()
    """Standard deviation of rewards in a group, mean over groups."""
    disagreement: Sequence[float] = ()
    """Of an ensemble of reward models."""
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Rewards by part of the answers of the last steps."""


def course_alarms(course: Course, weights: Mapping[str, float]) -> list[str]:
    """What the detectors say about a training whose reward has these weights."""
    on_truth = []
    if course.truth_high is not None:
        on_truth = [proxy_alarm(course.reward, course.truth_high), length_alarm(course.length, course.truth_high)]
    found = [
        *on_truth,
        dominance_alarm(course.parts, weights),
        format_alarm(course.format),
        variance_alarm(course.spread, course.reward),
        disagreement_alarm(course.disagreement),
    ]
    return [text for text in found if text is not None]
