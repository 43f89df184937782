"""What a study measured: `study.json`, and the numbers on `study.html`.

A method's success after its last round minus the control's, of the same world, seed and episode (same demonstrations,
base policy, first pairs and scenes), is one difference, [n episodes, R training seeds]. Its interval and p speak of
other seeds and of other episodes (`rl_lab.stats.success_difference`); p-values are corrected for all comparisons of the
study (Holm). Of a study of all combinations a factor's value stands for the worlds that have it: their differences are
averaged, episode by episode and seed by seed.

Where ways to execute chunks are compared, the same is done with the steps, the jerk and the stalls of the episodes,
each corrected for its own comparisons.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rl_lab.config.spread import SpreadConfig
from rl_lab.config.study import StudyConfig
from rl_lab.reports.numbers import Row, p_text, percent, points
from rl_lab.reports.paired import ERROR, Results, num_episodes, power
from rl_lab.reports.run import BASE, EpisodeResult, LoadedRun, label
from rl_lab.stats import Array, Interval, SuccessSpread, crossed_difference, holm, spread, success_difference

Worlds = Mapping[str, Results]
"""By world a measure of every method's last round (of the policy before any under `BASE`), by training seed (1, 2, ...)
and by number of the evaluation episode."""


@dataclass(frozen=True)
class Measure:
    """What an episode is measured by, and how means and differences are written."""

    of: Callable[[EpisodeResult], float]
    """NaN where it is not known."""
    axis: str
    """Unit of differences."""
    scale: float = 1
    """Of numbers on the axis."""
    level: Callable[[float], str] = "{:.3g}".format
    difference: Callable[[float], str] = "{:+.3g}".format


SUCCESS = "success"
MEASURES = {
    SUCCESS: Measure(lambda episode: float(episode.success), "percentage points", 100, percent, points),
    "steps": Measure(lambda episode: episode.capped_steps, "control steps"),
    "jerk": Measure(lambda episode: episode.extra.get("jerk", math.nan), "m/s3"),
    "stalled steps": Measure(lambda episode: episode.extra.get("stalled_steps", 0), "control steps"),
}
"""By name, of all but success the less the better; of methods of training success alone is reported."""


def is_study(run: LoadedRun) -> bool:
    """Whether the run compares worlds, methods and training seeds."""
    return bool(run.config.get("study"))


def settings(run: LoadedRun) -> StudyConfig:
    """The section `study`. ValueError for a file that holds none."""
    return StudyConfig.model_validate_json(json.dumps(run.config["study"]))


def results(run: LoadedRun, measure: Measure) -> Worlds:
    """See `Worlds`; an evaluation of which the measure is not known is left out."""
    found: dict[str, dict[str, dict[int, dict[Any, float]]]] = {}
    for one in sorted(run.evaluations, key=lambda one: one.round):
        world, seed, rest = one.node.split(".", 2)
        method = BASE if rest.startswith(f"{BASE}.") else one.method
        episodes = enumerate(sorted(one.episodes, key=lambda episode: episode.key))
        values = {number: measure.of(episode) for number, episode in episodes}
        if not any(map(math.isnan, values.values())):
            found.setdefault(world, {}).setdefault(method, {})[int(seed)] = values
    return {world: Results(methods) for world, methods in found.items()}


@dataclass(frozen=True)
class Comparison:
    """A method against the control, in one world or over those that share a factor's value."""

    method: str
    n: int
    """Evaluation episodes."""
    differences: dict[int, float]
    """By training seed."""
    mean: float | None = None
    """Of the method itself."""
    difference: Interval | None = None
    """None with fewer than two seeds or episodes."""
    p: float | None = None
    corrected_p: float | None = None
    detectable: float | None = None
    """Smallest difference in success that so many seeds and episodes find in 4 of 5 studies, uncorrected, by their own
    spread."""
    spread: SuccessSpread | None = None

    @property
    def seeds(self) -> int:
        """Training seeds that both have."""
        return len(self.differences)

    @property
    def size(self) -> str:
        """Seeds and episodes in words."""
        return f"{self.seeds} training seeds of {self.n} episodes"

    @property
    def is_decided(self) -> bool:
        """Whether the difference is told from 0, all comparisons of the study considered."""
        return self.corrected_p is not None and self.corrected_p < ERROR


def compare(found: Worlds, worlds: Sequence[str], method: str, control: str, *, of_success: bool = True) -> Comparison:
    """Seeds that both have in all of these worlds, each the mean over them."""
    held = [found.get(world, Results({})) for world in worlds]
    seeds = sorted(set.intersection(*({*one.seeds(method)} & {*one.seeds(control)} for one in held)))
    if not seeds:
        return Comparison(method, 0, {})
    own, other = (_mean_over(held, name, seeds) for name in (method, control))
    difference = own - other
    by_seed = dict(zip(seeds, difference.mean(0).tolist(), strict=True))
    if min(difference.shape) < 2:
        return Comparison(method, len(own), by_seed, float(own.mean()))
    if not of_success:
        return Comparison(method, len(own), by_seed, float(own.mean()), *crossed_difference(difference))
    varies = SuccessSpread(**vars(spread(difference)))
    return Comparison(
        method,
        len(own),
        by_seed,
        float(own.mean()),
        *success_difference(difference),
        detectable=varies.detectable(*difference.shape),
        spread=varies,
    )


def _mean_over(worlds: Sequence[Results], method: str, seeds: Sequence[int]) -> Array:
    """By episode and seed, mean over the worlds that have the episode, [n, R]."""
    n = max(len(one.values[method][seed]) for one in worlds for seed in seeds)
    return np.nanmean([one.table(method, seeds, range(n)) for one in worlds], axis=0)


def correct(rows: Iterable[list[Comparison]]) -> list[list[Comparison]]:
    """The same with p-values that hold together over all of them."""
    rows = list(rows)
    tested = [one for row in rows for one in row if one.p is not None]
    ps = iter(holm([one.p for one in tested if one.p is not None]))
    return [[one if one.p is None else replace(one, corrected_p=next(ps)) for one in row] for row in rows]


def study_summary(run: LoadedRun) -> Row:
    """What each method adds to the control at every factor's values, or in the one world, and what could be found."""
    study = settings(run)
    found = {name: results(run, MEASURES[name]) for name in (MEASURES if study.executes else [SUCCESS])}
    rows = {name: _rows(one, study, of_success=name == SUCCESS) for name, one in found.items()}
    means = {name: {world: _means(one) for world, one in worlds.items()} for name, worlds in found.items()}
    return {
        "name": run.name,
        "seed": run.seed,
        "control": study.control,
        "methods": list(study.methods),
        "seeds": study.seeds,
        "privileged": is_privileged(run),
        "expected": expected_power(run.config),
        "spread": _spread([row["methods"] for row in rows[SUCCESS]]),
        "rows": rows[SUCCESS],
        "successes": means[SUCCESS],
        "measures": {name: {"rows": rows[name], "means": means[name]} for name in found if name != SUCCESS},
        "verdict": _sentences(rows[SUCCESS], study),
    }


def _rows(found: Worlds, study: StudyConfig, *, of_success: bool) -> list[Row]:
    """The comparisons of a measure at every factor's values, or in the one world."""
    places: list[tuple[str | None, Any, list[str]]] = [
        (key, value, worlds) for key in study.factors for value, worlds in study.at(key)
    ]
    places = places or [(None, None, [world.name for world in study.worlds()])]
    compared = correct(
        [compare(found, at, name, study.control, of_success=of_success) for name in study.others] for _, _, at in places
    )
    return [
        {"factor": key, "value": value, "worlds": at, "levels": _levels(found, at, study), "methods": methods}
        for (key, value, at), methods in zip(places, compared, strict=True)
    ]


def is_privileged(run: LoadedRun) -> bool:
    """Whether the policy reads the simulator's truth."""
    return (run.config.get("model") or {}).get("preset") == "state"


def _means(one: Results) -> dict[str, dict[int, float]]:
    """By method and training seed."""
    return {
        method: {seed: float(np.mean(list(values.values()))) for seed, values in by.items()}
        for method, by in one.values.items()
    }


def _levels(found: Worlds, worlds: Sequence[str], study: StudyConfig) -> Row:
    """Of the base and of the control, mean over worlds and seeds; None where there is no result."""
    means = [_means(found[world]) for world in worlds if world in found]

    def mean(name: str) -> float | None:
        values = [value for one in means for value in one.get(name, {}).values()]
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
            if not one.seeds:
                to_come += 1
                continue
            if not one.is_decided:
                open_.append(one)
                continue
            ends = f"{points(one.difference.low)} to {points(one.difference.high)}"
            said.append(
                f"{label(one.method)} over {label(study.control)}{where}: {points(one.difference.value)} points "
                f"({ends}, {one.size}), p {p_text(one.corrected_p)} after correction."
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
    episodes, known = num_episodes(config), study.spread
    if isinstance(known, SpreadConfig):
        found = SuccessSpread(known.items, known.seeds, known.rest)
    else:
        found = SuccessSpread(0.0, 0.0, math.sqrt(0.5)) if known is None else SuccessSpread(0.0, known, 0.0)
    together = power(found, episodes, study.seeds, comparisons)
    return {
        "worlds": len(study.worlds()),
        "comparisons": comparisons,
        "episodes": episodes,
        "seeds": study.seeds,
        "spread": math.sqrt(found.seeds**2 + found.rest**2 / episodes),
        "is_known": known is not None,
        "detectable": found.detectable(episodes, study.seeds),
        "detectable_together": together["detectable"],
        "effect": together["effect"],
        "seeds_needed": together["seeds_needed"],
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
        return asdict(value) | {"seeds": value.seeds} if isinstance(value, Comparison) else value

    def part(whole: Row) -> Row:
        return whole | {"rows": [row | {"methods": [plain(one) for one in row["methods"]]} for row in whole["rows"]]}

    return part(summary) | {"measures": {name: part(one) for name, one in summary["measures"].items()}}
