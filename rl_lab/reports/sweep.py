"""What a reward sweep measured: `sweep.json`, and the numbers on `sweep.html`.

The truth is the reward of examinations, on which no variant trains unless it is a variant itself. Variants are compared
item by item and training seed by training seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from rewards.ensemble import DISAGREEMENT
from rl_lab.errors import UserError
from rl_lab.language.rollout_store import RolloutStore
from rl_lab.reports.examinations import Training, reward_table
from rl_lab.reports.held_out import interval_row, of_scheme, pass_threshold, scoped_items
from rl_lab.reports.replicates import Array, mean_interval
from rl_lab.reports.rundir import RunFolder
from rl_lab.reports.spread import Spread
from rl_lab.reports.sweep_alarms import Course, course_alarms
from rl_lab.reports.sweep_verdict import EFFECT, judge_variant
from rl_lab.reports.verdict import OVERALL, Row

LAST_STEPS = 3
"""Of each training, the steps whose rollouts tell which part of the reward still varies."""


def is_sweep(run: RunFolder) -> bool:
    """Whether the run compares rewards."""
    return bool(run.config.get("sweep"))


def variant_names(run: RunFolder) -> list[str]:
    """The baseline and the other variants."""
    sweep = run.config["sweep"]
    return [sweep["baseline"], *(name for name in sweep["variants"] if name != sweep["baseline"])]


def paired(run: RunFolder, variant: str, baseline: str, items: Sequence[str]) -> Array:
    """Reward of a variant minus that of the baseline, [n, R], for the training seeds that both have."""
    own, theirs = ({e.replicate: e for e in of_scheme(run, name)} for name in (variant, baseline))
    shared = sorted(own.keys() & theirs.keys())
    sides = [reward_table([side[r] for r in shared], items, lambda item: item.reward) for side in (own, theirs)]
    return sides[0] - sides[1]


def sweep_summary(run: RunFolder) -> Row:
    """Baseline, what was detectable, and every variant with its verdict, categories, flips and alarms."""
    names = variant_names(run)
    return {
        "name": run.name,
        "seed": run.seed,
        "baseline": names[0],
        "unit": "held-out items nested in training seeds",
        "replicates": run.config.get("replicates", 1),
        "expected": expected_power(run.config),
        "variants": [_variant(run, name, names[0], len(names) - 1) for name in names],
    }


def expected_power(config: Row) -> Row | None:
    """Detectable difference and seeds needed, from a spread that was known before the sweep; None without one."""
    known = (config.get("sweep") or {}).get("spread")
    if not known:
        return None
    found = Spread(known["items"], known["seeds"], known["rest"])
    n, seeds = config["questions"]["held_out"], config["replicates"]
    level = 1 - 0.05 / (len(config["sweep"]["variants"]) - 1)
    return {
        "n": n,
        "replicates": seeds,
        "level": level,
        "detectable": found.detectable(n, seeds, level),
        "effect": EFFECT,
        "seeds_needed": found.seeds_needed(EFFECT, n, level),
        "seeds_sd": found.seeds,
        "source": known["source"],
    }


def _variant(run: RunFolder, name: str, baseline: str, compared: int) -> Row:
    items = scoped_items(run)
    row: Row = {
        "variant": name,
        "rewards": run.config["sweep"]["variants"][name],
        "failed": [
            stage["name"] for stage in run.stages if stage.get("method") == name and stage["status"] == "failed"
        ],
        "reward": interval_row(reward_table(of_scheme(run, name), items.get(OVERALL, []), lambda item: item.reward)),
        "alarms": variant_alarms(run, name),
    }
    if name == baseline:
        return row
    differences = {scope: paired(run, name, baseline, ids) for scope, ids in items.items()}
    overall = differences.get(OVERALL)
    if overall is None or not overall.size or np.isnan(overall).all():
        return row | {
            "verdict": None,
            "sentence": f"{name}: no result beside {baseline}'s",
            "categories": {},
            "flips": [],
        }
    verdict = judge_variant(overall, compared)
    return row | {
        "verdict": asdict(verdict),
        "sentence": verdict.sentence(name, baseline),
        "categories": {scope: interval_row(table) for scope, table in differences.items() if scope != OVERALL},
        "flips": flips(run, name, baseline),
    }


def flips(run: RunFolder, variant: str, baseline: str) -> list[Row]:
    """Items that pass under one and not under the other, averaged over the shared training seeds, widest first."""
    own, theirs = ({e.replicate: e for e in of_scheme(run, name)} for name in (variant, baseline))
    shared, threshold = sorted(own.keys() & theirs.keys()), pass_threshold(run)
    ids = scoped_items(run)[OVERALL]
    sides = [reward_table([side[r] for r in shared], ids, lambda item: item.reward) for side in (own, theirs)]
    means = [np.nanmean(np.where(np.isnan(side).all(1, keepdims=True), 0.0, side), axis=1) for side in sides]
    places = np.flatnonzero((means[0] >= threshold) != (means[1] >= threshold))
    order = places[np.argsort(-np.abs(means[0] - means[1])[places], kind="stable")]
    return [
        {"item": ids[place], "variant": float(means[0][place]), "baseline": float(means[1][place])}
        for place in order.tolist()
    ]


def variant_alarms(run: RunFolder, name: str) -> list[str]:
    """What the detectors of reward hacking say, with the training seed where there are several."""
    found = []
    for training in (training for training in run.trainings if training.scheme == name):
        seed = f"seed {training.replicate}: " if run.config.get("replicates", 1) > 1 else ""
        weights = run.config["sweep"]["variants"][name].get("weights") or {"answer": 1.0}
        found += [f"{seed}{text}" for text in course_alarms(_course(run, training), weights)]
    return found


def _course(run: RunFolder, training: Training) -> Course:
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
    prefix = f"reward/{DISAGREEMENT}/"
    steps = [[float(value) for name, value in line.items() if name.startswith(prefix)] for line in lines]
    return [sum(values) / len(values) for values in steps if values]


def _last_parts(training: Training) -> dict[str, list[float]]:
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
