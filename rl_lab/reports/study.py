"""What a study measured: `study.json`, and the numbers on `study.html`.

The unit is the training seed. A method's success after its last round minus the control's, of the same world and seed
(same demonstrations, base policy, first pairs and scenes), is one difference; its interval over the R seeds is
Student's, and p-values of the test that it is 0 are corrected for all comparisons of the study (Holm). Of a study of
all combinations a factor's value stands for the worlds that have it: their differences are averaged seed by seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rl_lab.config.study import StudyConfig
from rl_lab.reports.numbers import Row, p_text, points
from rl_lab.reports.run import BASE, LoadedRun, label
from rl_lab.stats import Interval, Spread, holm, student_interval, student_p

ERROR = 0.05
"""Chance that a study of methods which do not differ calls any comparison decided."""
EFFECT = 0.05
"""A difference that is worth finding: 5 points."""
Successes = Mapping[str, Mapping[str, Mapping[int, float]]]
"""By world, method and training seed (1, 2, ...) the share of evaluation episodes that the last round's policy solves;
that of the policy before any round under `BASE`."""


def is_study(run: LoadedRun) -> bool:
    """Whether the run compares worlds, methods and training seeds."""
    return bool(run.config.get("study"))


def settings(run: LoadedRun) -> StudyConfig:
    """The section `study`. ValueError for a file that holds none."""
    return StudyConfig.model_validate_json(json.dumps(run.config["study"]))


def successes(run: LoadedRun) -> Successes:
    """See `Successes`."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for one in sorted(run.evaluations, key=lambda one: one.round):
        world, seed, rest = one.node.split(".", 2)
        method = BASE if rest.startswith(f"{BASE}.") else one.method
        share = sum(episode.success for episode in one.episodes) / len(one.episodes)
        found.setdefault(world, {}).setdefault(method, {})[int(seed)] = share
    return found


@dataclass(frozen=True)
class Comparison:
    """A method against the control, in one world or over those that share a factor's value."""

    method: str
    differences: dict[int, float]
    """By training seed."""
    mean: float | None = None
    """Success of the method itself."""
    difference: Interval | None = None
    """None with fewer than two seeds."""
    p: float | None = None
    corrected_p: float | None = None
    detectable: float | None = None
    """Smallest difference that so many seeds find in 4 of 5 studies, uncorrected, by their own spread."""

    @property
    def is_decided(self) -> bool:
        """Whether the difference is told from 0, all comparisons of the study considered."""
        return self.corrected_p is not None and self.corrected_p < ERROR


def compare(found: Successes, worlds: Sequence[str], method: str, control: str) -> Comparison:
    """Seeds that both have in all of these worlds, each the mean over them."""
    sides = [[found.get(world, {}).get(name, {}) for world in worlds] for name in (method, control)]
    seeds = sorted(set.intersection(*(set(one) for side in sides for one in side)))
    means = [{seed: float(np.mean([one[seed] for one in side])) for seed in seeds} for side in sides]
    differences = {seed: means[0][seed] - means[1][seed] for seed in seeds}
    if len(seeds) < 2:
        return Comparison(method, differences, means[0][seeds[0]] if seeds else None)
    values = list(differences.values())
    spread = Spread(0.0, float(np.std(values, ddof=1)), 0.0)
    return Comparison(
        method,
        differences,
        float(np.mean(list(means[0].values()))),
        student_interval(values),
        student_p(values),
        detectable=spread.detectable(1, len(seeds)),
    )


def correct(rows: Iterable[list[Comparison]]) -> list[list[Comparison]]:
    """The same with p-values that hold together over all of them."""
    rows = list(rows)
    tested = [one for row in rows for one in row if one.p is not None]
    ps = iter(holm([one.p for one in tested if one.p is not None]))
    return [
        [one if one.p is None else Comparison(**{**vars(one), "corrected_p": next(ps)}) for one in row] for row in rows
    ]


def study_summary(run: LoadedRun) -> Row:
    """What each method adds to the control at every factor's values, or in the one world, and what could be found."""
    study, found = settings(run), successes(run)
    names = [world.name for world in study.worlds()]
    places: list[tuple[str | None, Any, list[str]]] = [
        (key, value, worlds) for key in study.factors for value, worlds in study.at(key)
    ]
    places = places or [(None, None, names)]
    compared = correct([compare(found, at, name, study.control) for name in study.others] for _, _, at in places)
    rows = [
        {"factor": key, "value": value, "worlds": at, "levels": _levels(found, at, study), "methods": methods}
        for (key, value, at), methods in zip(places, compared, strict=True)
    ]
    return {
        "name": run.name,
        "seed": run.seed,
        "control": study.control,
        "methods": list(study.methods),
        "seeds": study.seeds,
        "privileged": is_privileged(run),
        "expected": expected_power(run.config),
        "spread": _spread(compared),
        "rows": rows,
        "successes": {world: {name: dict(by) for name, by in methods.items()} for world, methods in found.items()},
        "verdict": _sentences(rows, study),
    }


def is_privileged(run: LoadedRun) -> bool:
    """Whether the policy reads the simulator's truth."""
    return (run.config.get("model") or {}).get("preset") == "state"


def _levels(found: Successes, worlds: Sequence[str], study: StudyConfig) -> Row:
    """Success of the base and of the control, mean over worlds and seeds; None where there is no result."""

    def mean(name: str) -> float | None:
        values = [share for world in worlds for share in found.get(world, {}).get(name, {}).values()]
        return float(np.mean(values)) if values else None

    return {"base": mean(BASE), "control": mean(study.control)}


def _spread(compared: Sequence[Sequence[Comparison]]) -> float | None:
    """Root mean square over all comparisons of the deviation over seeds; None where that is not known, or 0."""
    deviations = [
        float(np.std(list(one.differences.values()), ddof=1))
        for row in compared
        for one in row
        if one.difference is not None
    ]
    return math.sqrt(float(np.mean(np.square(deviations)))) or None if deviations else None


def _sentences(rows: Sequence[Row], study: StudyConfig) -> list[str]:
    """One of each comparison that is decided, one of how many are not, and one of how many are still to come."""
    said, open_, to_come = [], [], 0
    for row in rows:
        where = "" if row["factor"] is None else f" at {row['factor']} {json.dumps(row['value'])}"
        for one in row["methods"]:
            if not one.differences:
                to_come += 1
                continue
            if not one.is_decided:
                open_.append(one)
                continue
            ends = f"{points(one.difference.low)} to {points(one.difference.high)}"
            said.append(
                f"{label(one.method)} over {label(study.control)}{where}: {points(one.difference.value)} points "
                f"({ends}, {len(one.differences)} training seeds), p {p_text(one.corrected_p)} after correction."
            )
    total = len(said) + len(open_) + to_come
    if open_:
        known = [one.detectable for one in open_ if one.detectable is not None]
        found = f"; such a comparison finds {points(max(known))[1:]} points or more" if known and max(known) else ""
        count = f"{len(open_)} of {total} comparisons"
        said.append(f"Not told apart from {label(study.control)}: {count}{found}.")
    if to_come:
        said.append(f"Still to be measured: {to_come} of {total} comparisons.")
    return said


def expected_power(config: Row) -> Row:
    """What difference the study can find, before its start; without a known spread by the episodes alone."""
    study = StudyConfig.model_validate_json(json.dumps(config["study"]))
    comparisons = len(study.others) * max(1, sum(len(values) for values in study.factors.values()))
    episodes = config["eval"]["episodes"] * len(config["env"]["tasks"]) * len(config["env"]["variants"])
    spread = study.spread or math.sqrt(0.5 / episodes)
    level = 1 - ERROR / comparisons
    found = Spread(0.0, spread, 0.0)
    return {
        "worlds": len(study.worlds()),
        "comparisons": comparisons,
        "episodes": episodes,
        "seeds": study.seeds,
        "spread": spread,
        "is_known": study.spread is not None,
        "detectable": found.detectable(1, study.seeds),
        "detectable_together": found.detectable(1, study.seeds, level),
        "effect": EFFECT,
        "seeds_needed": found.seeds_needed(EFFECT, 1, level),
    }


def power_text(expected: Row) -> str:
    """The same in words."""
    episodes, needed = expected["episodes"], expected["seeds_needed"]
    spread = f"{_points(expected['spread'])} between training seeds"
    of = f"differences vary by {spread}"
    if not expected["is_known"]:
        of = (
            f"the {episodes} episodes alone, half of them solved, make differences vary by {spread}; how training "
            "itself varies comes on top, and study.spread could say it"
        )
    size = f"{expected['worlds']} worlds, {expected['comparisons']} comparisons, {expected['seeds']} training seeds"
    return (
        f"{size}: {of}; 4 of 5 times a difference of {_points(expected['detectable'])} is found in one comparison, of "
        f"{_points(expected['detectable_together'])} in all together; {_points(expected['effect'])} need "
        f"{needed or 'over 1000'} training seeds"
    )


def _points(difference: float) -> str:
    """A difference of success rates in percentage points."""
    return f"{100 * difference:.1f} points" if difference <= 1 else "more than 100 points"


def written(summary: Row) -> Row:
    """What `study.json` holds."""

    def plain(value: Any) -> Any:
        return asdict(value) if isinstance(value, Comparison) else value

    rows = [row | {"methods": [plain(one) for one in row["methods"]]} for row in summary["rows"]]
    return summary | {"rows": rows}
