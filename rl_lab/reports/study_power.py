"""What difference a study can find, before it starts."""

from __future__ import annotations

import json
import math

from rl_lab.common.stats import SuccessSpread
from rl_lab.config.study import SpreadConfig, Study
from rl_lab.reports.numbers import Row

ERROR = 0.05
"""Chance that any comparison of a study between equals is called decided."""
EFFECT = 0.05
"""A difference that is worth finding: 5 points."""


def expected_power(config: Row) -> Row:
    """What difference the study can find, before its start; without a known spread by the episodes alone."""
    study = Study.model_validate_json(json.dumps(config["study"]))
    comparisons = len(study.others) * len({place.first for place in study.places(config)})
    known = study.spread
    if study.on_questions:
        n, units = config["questions"]["held_out"], "questions"
    else:
        n, units = config["eval"]["episodes"] * len(config["env"]["tasks"]) * len(config["env"]["variants"]), "episodes"
    if isinstance(known, SpreadConfig):
        found = SuccessSpread(known.items, known.seeds, known.rest)
    else:
        found = SuccessSpread(0.0, 0.0, math.sqrt(0.5)) if known is None else SuccessSpread(0.0, known, 0.0)
    expected = {
        "worlds": len(study.worlds()),
        "comparisons": comparisons,
        "units": units,
        "n": n,
        "seeds": study.seeds,
        "spread": math.sqrt(found.seeds**2 + found.rest**2 / n),
        "is_known": known is not None,
    }
    if study.seeds == 1:
        return expected
    level = 1 - ERROR / comparisons
    return expected | {
        "detectable": found.detectable(n, study.seeds),
        "detectable_together": found.detectable(n, study.seeds, level),
        "effect": EFFECT,
        "seeds_needed": found.seeds_needed(EFFECT, n, level),
    }


def power_text(expected: Row) -> str:
    """The same in words."""
    worlds, seeds = expected["worlds"], expected["seeds"]
    count = expected["comparisons"]
    size = f"{worlds} world{'s' * (worlds != 1)}, {count} comparison{'s' * (count != 1)}, {seeds} training seeds"
    if seeds == 1:
        return f"{size}: one training seed makes no interval; give at least 2 in study.seeds"
    needed, spread = expected["seeds_needed"], f"{_points(expected['spread'])} between training seeds"
    of = f"differences vary by {spread}"
    if not expected["is_known"]:
        of = (
            f"the {expected['n']} {expected['units']} alone, half of them solved, make differences vary by {spread}; "
            "how training itself varies comes on top, and study.spread could say it"
        )
    return (
        f"{size}: {of}; 4 of 5 times a difference of {_points(expected['detectable'])} is found in one comparison, of "
        f"{_points(expected['detectable_together'])} in all together; {_points(expected['effect'])} need "
        f"{needed or 'over 1000'} training seeds"
    )


def _points(difference: float) -> str:
    """A difference of success rates, or of rewards, in points of a hundred."""
    return f"{100 * difference:.1f} points" if difference <= 1 else "more than 100 points"
