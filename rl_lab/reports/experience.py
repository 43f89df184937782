"""What learning took of a run whose methods explore: environment steps, corrections and time, round by round."""

from __future__ import annotations

from collections.abc import Iterator

from rl_lab.reports.numbers import Row
from rl_lab.reports.run import LoadedRun

LEARNING = ("collect", "explore", "rank", "optimise")
"""Kinds of stages that a method learns by."""
STEPS = ("policy_steps", "corrector_steps")
"""Of collections and explorations: control steps of the environment."""


def experience(run: LoadedRun) -> list[Row]:
    """Of each method after each of its rounds, what it took so far; [] for runs without a method that explores."""
    return list(_rows(run)) if run.explorations else []


def _rows(run: LoadedRun) -> Iterator[Row]:
    collected = [*run.pairs, *run.explorations]
    for method in run.methods:
        steps = corrections = 0
        seconds = 0.0
        for number in range(1, run.last_round(method) + 1):
            counts = [one.counts for one in collected if (one.method, one.round) == (method, number)]
            steps += sum(one.get(key) or 0 for one in counts for key in STEPS)
            corrections += sum(one.get("interventions") or 0 for one in counts)
            stages = [s for s in run.stages if (s.method, s.round) == (method, number) and s.kind in LEARNING]
            seconds += sum(stage.seconds or 0 for stage in stages)
            yield {
                "method": method,
                "round": number,
                "environment_steps": steps,
                "corrections": corrections,
                "seconds": round(seconds, 1),
            }
