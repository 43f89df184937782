"""What learning took of a run whose methods explore: environment steps, corrections and time, round by round.

Of a study means over training seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rl_lab.common.stats import Interval, student_interval
from rl_lab.reports.numbers import Row
from rl_lab.reports.run import BASE, LoadedRun, in_world, study_place

LEARNING = ("collect", "explore", "rank", "optimise")
"""Kinds of stages that a method learns by."""
STEPS = ("policy_steps", "corrector_steps")
"""Of collections and explorations: control steps of the environment."""
TAKEN = ("environment_steps", "corrections", "seconds")


def experience(run: LoadedRun) -> list[Row]:
    """Of each method after each of its rounds, what it took so far; [] for runs without a method that explores."""
    return list(_rows(run)) if run.explorations else []


def _rows(run: LoadedRun, seed: int | None = None) -> Iterator[Row]:
    """`seed`: of training, in a study."""

    def is_of_seed(node: str) -> bool:
        return seed is None or study_place(node)[1] == seed

    collected = [one for one in [*run.pairs, *run.explorations] if is_of_seed(one.node)]
    learned = [one for one in run.stages if one.kind in LEARNING and is_of_seed(one.name)]
    for method in run.methods:
        steps = corrections = 0
        seconds = 0.0
        for number in range(1, run.last_round(method) + 1):
            counts = [one.counts for one in collected if (one.method, one.round) == (method, number)]
            steps += sum(one.get(key) or 0 for one in counts for key in STEPS)
            corrections += sum(one.get("interventions") or 0 for one in counts)
            stages = [one for one in learned if (one.method, one.round) == (method, number)]
            seconds += sum(stage.seconds or 0 for stage in stages)
            yield {
                "method": method,
                "round": number,
                "environment_steps": steps,
                "corrections": corrections,
                "seconds": round(seconds, 1),
            }


def study_experience(run: LoadedRun, worlds: Sequence[str]) -> list[Row]:
    """Of each world, method and round of a study the means over the training seeds that have its evaluation: success
    with Student's interval over them, and what it took; first the base. [] for studies without a method that explores.
    """
    return [row for world in worlds for row in _of_world(in_world(run, world), world)] if run.explorations else []


def _of_world(here: LoadedRun, world: str) -> Iterator[Row]:
    rates: dict[tuple[str, int], dict[int, float]] = {}
    for one in (one for one in here.evaluations if one.episodes):
        rate = float(np.mean([episode.success for episode in one.episodes]))
        rates.setdefault((one.method, one.round), {})[study_place(one.node)[1]] = rate
    seeds = sorted({seed for by_seed in rates.values() for seed in by_seed})
    took = {(seed, row["method"], row["round"]): row for seed in seeds for row in _rows(here, seed)}
    for (method, number), by_seed in sorted(rates.items(), key=lambda one: (one[0][0] != BASE, one[0])):
        rows = [took.get((seed, method, number), dict.fromkeys(TAKEN, 0)) for seed in by_seed]
        means = {key: float(np.mean([row[key] for row in rows])) for key in TAKEN}
        values = list(by_seed.values())
        success = student_interval(values) if len(values) > 1 else Interval(values[0], np.nan, np.nan)
        yield (
            {"world": world, "method": method, "round": number, "seeds": len(values)}
            | means
            | {"success": vars(success)}
        )
