"""What a reward sweep measured: `sweep.json`, and the numbers on `sweep.html`.

The truth is the reward of examinations, on which no variant trains unless it is a variant itself, or success in
episodes. Variants are compared item by item, or episode by episode, and training seed by training seed. Beside the
comparisons stands what the detectors of reward hacking say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

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
from rl_lab.errors import UserError
from rl_lab.records.rollouts import RolloutStore
from rl_lab.reports.budgets import curves
from rl_lab.reports.estimates import Estimate, in_scope, mean_estimate, pass_threshold, scoped_items, scopes
from rl_lab.reports.examinations import LearningCurve
from rl_lab.reports.numbers import OVERALL, Row, percent
from rl_lab.reports.paired import Results, Unit, num_episodes, power
from rl_lab.reports.run import BASE, LoadedRun, PairSet
from rl_lab.reports.sweep_verdict import judge_variant
from rl_lab.stats import Interval, Spread, mean_interval

LAST_STEPS = 3
"""Of each training, the steps whose rollouts tell which part of the reward still varies."""
LEAST_PAIRS = 20
"""Fewer pairs whose chunks led to different progress raise no alarm about being wrong."""
Z = 1.96
"""The share of right pairs must lie so many standard errors of chance below one half."""
MOST_DISAGREEMENT = 0.5
"""Share of states on which members disagree above which an ensemble knows too little."""


@dataclass(frozen=True)
class Truth(Results):
    """What variants are judged by."""

    unit: str
    """Plural, in words."""
    threshold: float
    """From which on a unit counts as solved."""
    scopes: Mapping[str, Sequence[Unit]]
    """Units of each scope, overall first."""

    def mean(self, variant: str, units: Sequence[Unit]) -> Estimate | None:
        """Over these units and all training seeds."""
        return mean_estimate(self.table(variant, self.seeds(variant), units))


def _answer_truth(run: LoadedRun) -> Truth:
    """Mean reward of the answers to each held-out item."""
    values: dict[str, dict[int, dict[Unit, float]]] = {}
    for one in run.examinations:
        values.setdefault(one.scheme, {})[one.replicate] = {item.item: item.reward for item in one.items}
    return Truth(values, "items", pass_threshold(run), scoped_items(run))


def _episode_truth(run: LoadedRun) -> Truth:
    """Success, 1 or 0, in each held-out episode; tasks and variants of the scene are scopes where there are several."""
    evaluations = [one for one in run.evaluations if one.method in (BASE, *variant_names(run.config))]
    values: dict[str, dict[int, dict[Unit, float]]] = {}
    for one in evaluations:
        values.setdefault(one.method, {})[one.round] = {e.key: float(e.success) for e in one.episodes}
    episodes = {episode.key: episode for one in evaluations for episode in one.episodes}
    found = {name: [k for k, episode in episodes.items() if in_scope(name, episode)] for name in scopes(evaluations)}
    several = {name: keys for name, keys in found.items() if name == OVERALL or len(keys) < len(episodes)}
    return Truth(values, "episodes", 0.5, several)


def ranks_actions(config: Row) -> bool:
    """Whether the variants of a sweep are rewards of actions."""
    return bool((config.get("sweep") or {}).get("rankings"))


def variant_settings(config: Row) -> dict[str, Row]:
    """The section that each variant replaces, by name."""
    return config["sweep"].get("rankings") or config["sweep"]["variants"]


def variant_names(config: Row) -> list[str]:
    """The baseline and the other variants."""
    baseline = config["sweep"]["baseline"]
    return [baseline, *(name for name in variant_settings(config) if name != baseline)]


def truth_of(run: LoadedRun) -> Truth:
    """What the run's variants are judged by."""
    return _episode_truth(run) if ranks_actions(run.config) else _answer_truth(run)


def is_sweep(run: LoadedRun) -> bool:
    """Whether the run compares rewards."""
    return bool(run.config.get("sweep"))


def sweep_summary(run: LoadedRun) -> Row:
    """Baseline, what was detectable, and every variant with its verdict, categories, flips and alarms."""
    names, truth = variant_names(run.config), truth_of(run)
    return {
        "name": run.name,
        "seed": run.seed,
        "baseline": names[0],
        "unit": f"held-out {truth.unit} nested in training seeds",
        "replicates": run.config.get("replicates", 1),
        "expected": expected_power(run.config),
        "curves": curve_rows(run),
        "variants": [_variant(run, truth, name, names[0], len(names) - 1) for name in names],
    }


def curve_rows(run: LoadedRun) -> dict[str, list[Row]]:
    """The truth while training by variant, mean over items and seeds with its 95 % interval; of actions its ends."""
    shown = success_points(run) if ranks_actions(run.config) else {c.scheme: c.points for c in curves(run, "steps")}
    return {name: [{"step": step} | vars(mean) for step, mean in points] for name, points in shown.items()}


def success_points(run: LoadedRun) -> dict[str, list[tuple[float, Interval]]]:
    """Success of every variant before and after its training, with 95 % intervals; {} without an evaluation of both."""
    truth, steps = truth_of(run), run.config["optimise"]["steps"]
    units = truth.scopes.get(OVERALL, [])
    base = truth.table(BASE, truth.seeds(BASE), units)
    found = {}
    for name in variant_names(run.config):
        ends = ((0, base), (steps, truth.table(name, truth.seeds(name), units)))
        if all(table.size and (~np.isnan(table)).any(0).all() for _, table in ends):
            found[name] = [(step, mean_interval(table)) for step, table in ends]
    return found


def expected_power(config: Row) -> Row | None:
    """Detectable difference and seeds needed, from a spread that was known before the sweep; None without one."""
    known = (config.get("sweep") or {}).get("spread")
    if not known:
        return None
    found = Spread(known["items"], known["seeds"], known["rest"])
    on_actions = ranks_actions(config)
    n = num_episodes(config) if on_actions else config["questions"]["held_out"]
    seeds, compared = config["replicates"], len(variant_settings(config)) - 1
    size = {"n": n, "replicates": seeds}
    return size | power(found, n, seeds, compared) | {"seeds_sd": found.seeds, "source": known["source"]}


def _variant(run: LoadedRun, truth: Truth, name: str, baseline: str, compared: int) -> Row:
    units = truth.scopes
    row: Row = {
        "variant": name,
        "rewards": variant_settings(run.config)[name],
        "failed": [stage.name for stage in run.stages if stage.method == name and stage.status == "failed"],
        "reward": truth.mean(name, units.get(OVERALL, [])),
        "means": {scope: truth.mean(name, ids) for scope, ids in units.items() if scope != OVERALL},
        "failures": failure_texts(run, name),
        "alarms": ranking_alarms(run, name) if ranks_actions(run.config) else variant_alarms(run, name),
    }
    if name == baseline:
        return row
    differences = {scope: np.subtract(*truth.sides(name, baseline, ids)) for scope, ids in units.items()}
    overall = differences.pop(OVERALL, np.empty((0, 0)))
    if not overall.size or np.isnan(overall).all():
        said = f"{name}: no result beside {baseline}'s"
        return row | {"verdict": None, "sentence": said, "categories": {}, "flips": []}
    verdict = judge_variant(overall, compared)
    return row | {
        "verdict": asdict(verdict) | {"scope": verdict.scope.replace("items", truth.unit)},
        "sentence": verdict.sentence(name, baseline, truth.unit),
        "categories": {scope: mean_estimate(table, over=baseline) for scope, table in differences.items()},
        "flips": flips(truth, name, baseline),
    }


def flips(truth: Truth, variant: str, baseline: str) -> list[Row]:
    """Items that pass under one and not under the other, averaged over the shared training seeds, widest first."""
    ids = truth.scopes[OVERALL]
    both = truth.sides(variant, baseline, ids)
    means = [np.nanmean(np.where(np.isnan(side).all(1, keepdims=True), 0.0, side), axis=1) for side in both]
    places = np.flatnonzero((means[0] >= truth.threshold) != (means[1] >= truth.threshold))
    order = places[np.argsort(-np.abs(means[0] - means[1])[places], kind="stable")]
    return [
        {"item": ids[place], "variant": float(means[0][place]), "baseline": float(means[1][place])}
        for place in order.tolist()
    ]


def failure_texts(run: LoadedRun, name: str) -> list[str]:
    """What the trainings of a variant said of reward calls that failed, each text once."""
    said = [line["alarm"] for line in run.metrics if line.get("method") == name and "alarm" in line]
    return list(dict.fromkeys(text for text in said if text.startswith(FAILED_CALL)))


def variant_alarms(run: LoadedRun, name: str) -> list[str]:
    """What the detectors of reward hacking say, with the training seed where there are several."""
    found = []
    for training in (training for training in run.trainings if training.scheme == name):
        seed = f"seed {training.replicate}: " if run.config.get("replicates", 1) > 1 else ""
        weights = run.config["sweep"]["variants"][name].get("weights") or {"answer": 1.0}
        found += [f"{seed}{text}" for text in course_alarms(_course(run, training), weights)]
    return found


def _course(run: LoadedRun, training: LearningCurve) -> Course:
    """How a training went, as the detectors read it."""
    lines = [line for line in run.metrics if line.get("node") == training.node]

    def series(key: str) -> list[float]:
        return [float(line[key]) for line in lines if line.get(key) is not None]

    rewards = training.rewards
    change = mean_interval((rewards[-1] - rewards[0])[:, None]) if len(rewards) > 1 else None
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


def ranking_alarms(run: LoadedRun, variant: str) -> list[str]:
    """What is wrong with a variant's pairs: a reward that points away from progress, or members that disagree."""
    found = []
    for pairs in (pairs for pairs in ranked_sets(run) if pairs.method == variant):
        agreement, states = pairs.counts["agreement"], pairs.counts["states"]
        right, different = agreement["chosen_right"], agreement["chosen_different"]
        where = f"seed {pairs.replicate}: " if pairs.replicate is not None else ""
        if different >= LEAST_PAIRS and not right + Z / (2 * math.sqrt(different)) >= 0.5:
            found.append(
                f"{where}of {different} chosen pairs whose chunks led to different progress only {percent(right)} "
                "prefer the one that led further: the reward points away from the task"
            )
        disagreed = pairs.counts.get("abstained/disagreement", 0)
        if disagreed > MOST_DISAGREEMENT * states:
            found.append(f"{where}members disagree in {disagreed} of {states} states: the models know too little")
    return found


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
