"""What a study measured: `study.json`, and the numbers on `study.html`.

A method's success after its last round minus the control's, of the same world, seed and episode (same demonstrations,
base policy, first pairs and scenes), is one difference, [n episodes, R training seeds]. Its interval and p speak of
other seeds and of other episodes (`rl_lab.common.stats.success_difference`); p-values are corrected for all comparisons
of the study (Holm). Of a study of all combinations a factor's value stands for the worlds that have it: their
differences are averaged, episode by episode and seed by seed. So are those of all worlds, whose comparisons are
corrected among themselves. On questions the same is done with the reward of the
answers to each held-out question, by what examinations score, whatever a method trained on; and again with the reward
after equal tokens in place of equal steps, and with that at a low temperature.

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

from rl_lab.common.stats import Array, Interval, SuccessSpread, crossed_difference, holm, spread, success_difference
from rl_lab.config.study import Study
from rl_lab.reports.budgets import at_equal_tokens
from rl_lab.reports.estimates import low_temperature
from rl_lab.reports.experience import study_experience
from rl_lab.reports.numbers import Row, p_text, percent, points, reward, signed
from rl_lab.reports.run import BASE, LoadedRun, in_world, label, study_place
from rl_lab.reports.study_power import ERROR, expected_power

ALL_WORLDS = "all worlds"
"""In place of a factor where the mean over them is compared."""
Unit = Any
"""What one row of a table is about: the id of a question, (task, variant, seed) of an episode, or its number."""


@dataclass(frozen=True)
class Results:
    """A value for each of n units under each of R training seeds."""

    values: Mapping[str, Mapping[int, Mapping[Unit, float]]]
    """By method, training seed and unit."""

    def seeds(self, method: str) -> list[int]:
        """Training seeds with a result."""
        return sorted(self.values.get(method, {}))

    @property
    def units(self) -> list[Unit]:
        """All of them, sorted."""
        return sorted({unit for by_seed in self.values.values() for found in by_seed.values() for unit in found})

    def numbered(self, units: Sequence[Unit]) -> Results:
        """The same of these units alone, by their numbers."""
        return Results(
            {
                method: {
                    seed: {n: found.get(unit, math.nan) for n, unit in enumerate(units)} for seed, found in by.items()
                }
                for method, by in self.values.items()
            }
        )

    def table(self, method: str, seeds: Sequence[int], units: Sequence[Unit]) -> Array:
        """Values of a method, [n, R]; NaN where one is missing."""
        columns = [self.values[method][seed] for seed in seeds]
        rows = [[column.get(unit, math.nan) for column in columns] for unit in units]
        return np.array(rows, dtype=np.float64).reshape(len(units), len(seeds))


Worlds = Mapping[str, Results]
"""By world a measure of every method's last round (of the model before any under `BASE`), by training seed (1, 2, ...)
and by episode or question."""


@dataclass(frozen=True)
class Measure:
    """What an episode, or the answers to a question, are measured by, and how means and differences are written."""

    of: Callable[[Any], float]
    """NaN where it is not known."""
    axis: str
    """Unit of differences."""
    scale: float = 1
    """Of numbers on the axis."""
    level: Callable[[float], str] = "{:.3g}".format
    difference: Callable[[float], str] = "{:+.3g}".format
    unit: str = ""
    """Behind a difference."""
    is_gain: bool = False
    """Whether more is better."""
    is_share: bool = False
    """Whether values lie between 0 and 1."""


SUCCESS, REWARD, AT_EQUAL_TOKENS = "success", "reward", "reward at equal tokens"
AT_LOW_TEMPERATURE, SEEN = "reward at low temperature", "gain over grey pictures"
MEASURES = {
    SUCCESS: Measure(lambda one: float(one.success), "percentage points", 100, percent, points, " points", True, True),
    REWARD: Measure(lambda one: one.reward, "reward", 1, reward, signed, "", True, True),
    AT_EQUAL_TOKENS: Measure(float, "reward", 1, reward, signed, "", True, True),
    AT_LOW_TEMPERATURE: Measure(lambda one: one.low_reward, "reward", 1, reward, signed, "", True, True),
    SEEN: Measure(lambda one: one.reward - one.blank_reward, "reward", 1, signed, signed, "", True),
    "steps": Measure(lambda one: one.capped_steps, "control steps"),
    "jerk": Measure(lambda one: one.extra.get("jerk", math.nan), "m/s3"),
    "stalled steps": Measure(lambda one: one.extra.get("stalled_steps", 0), "control steps"),
}
"""By name: success and reward decide. Reward at equal tokens is that of one answer on the way, that at a low
temperature tells better answers from sharper ones. What pictures give is beside the reward of variants; what follows,
of which less is better, beside ways to execute chunks."""


def is_study(run: LoadedRun) -> bool:
    """Whether the run compares worlds, methods and training seeds."""
    return bool(run.config.get("study"))


def settings(run: LoadedRun) -> Study:
    """The section `study`. ValueError for a file that holds none."""
    return Study.model_validate_json(json.dumps(run.config["study"]))


def results(run: LoadedRun, measured: str) -> Worlds:
    """See `Worlds`; an evaluation of which the measure is not known is left out."""
    measure = MEASURES[measured]
    found: dict[str, dict[str, dict[int, dict[Unit, float]]]] = {}
    sides: list[tuple[str, str, dict[Unit, float]]]
    if measured in (REWARD, AT_LOW_TEMPERATURE, SEEN):
        sides = [
            (one.node, one.scheme, {item.item: measure.of(item) for item in one.items}) for one in run.examinations
        ]
    elif measured == AT_EQUAL_TOKENS:
        sides = [
            (one.node, one.scheme, dict(enumerate(rewards.tolist())))
            for world in settings(run).worlds()
            for one, rewards in at_equal_tokens(in_world(run, world.name))
        ]
    else:
        evaluations = sorted(run.evaluations, key=lambda one: one.round)
        sides = [(one.node, one.method, {each.key: measure.of(each) for each in one.episodes}) for one in evaluations]
    for node, method, values in sides:
        world, seed, _ = study_place(node)
        known = [not math.isnan(value) for value in values.values()]
        if all(known) or measure.is_gain and any(known):
            found.setdefault(world, {}).setdefault(method, {})[seed] = values
    return {world: Results(methods) for world, methods in found.items()}


@dataclass(frozen=True)
class Comparison:
    """A method against the control, in one world or over those that share a factor's value."""

    method: str
    n: int
    """Evaluation episodes, or held-out questions, that all training seeds have a value of."""
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
    def is_decided(self) -> bool:
        """Whether the difference is told from 0, all comparisons of the study considered."""
        return self.corrected_p is not None and self.corrected_p < ERROR


def compare(found: Worlds, worlds: Sequence[str], method: str, control: str, *, bounded: bool = True) -> Comparison:
    """Seeds that both have in all of these worlds, each the mean over them; units are matched by number. `bounded`:
    values lie between 0 and 1."""
    held = [one.numbered(one.units) for one in (found.get(world, Results({})) for world in worlds)]
    seeds = sorted(set.intersection(*({*one.seeds(method)} & {*one.seeds(control)} for one in held)))
    if not seeds:
        return Comparison(method, 0, {})
    tables = [_tables(held, name, seeds) for name in (method, control)]
    difference = _mean_known(tables[0] - tables[1])
    known = ~np.isnan(difference).any(1)
    own, difference = _mean_known(np.where(np.isnan(tables[1]), math.nan, tables[0]))[known], difference[known]
    if not len(own):
        return Comparison(method, 0, {})
    by_seed = dict(zip(seeds, difference.mean(0).tolist(), strict=True))
    if min(difference.shape) < 2:
        return Comparison(method, len(own), by_seed, float(own.mean()))
    if not bounded:
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


def _tables(worlds: Sequence[Results], method: str, seeds: Sequence[int]) -> Array:
    """By world, unit and seed, [W, n, R]; NaN where a value is missing."""
    n = max(len(found) for one in worlds for by_seed in one.values.values() for found in by_seed.values())
    return np.array([one.table(method, seeds, range(n)) for one in worlds])


def _mean_known(tables: Array) -> Array:
    """By unit and seed, mean over the worlds that have it, [W, n, R] -> [n, R]; NaN where none has."""
    known = ~np.isnan(tables)
    return np.where(known.any(0), np.where(known, tables, 0).sum(0) / np.maximum(known.sum(0), 1), math.nan)


def correct(rows: Iterable[list[Comparison]]) -> list[list[Comparison]]:
    """The same with p-values that hold together over all of them."""
    rows = list(rows)
    tested = [one for row in rows for one in row if one.p is not None]
    ps = iter(holm([one.p for one in tested if one.p is not None]))
    return [[one if one.p is None else replace(one, corrected_p=next(ps)) for one in row] for row in rows]


def study_summary(run: LoadedRun) -> Row:
    """What each method adds to the control at every factor's values, or in the one world, and what could be found."""
    study = settings(run)
    first = REWARD if study.on_questions else SUCCESS
    names = [first, *(name for name, one in MEASURES.items() if study.executes and not one.is_gain)]
    beside = SEEN if study.variants else AT_EQUAL_TOKENS
    names += [REWARD] if study.on_arms else [beside] if study.on_questions else []
    names += [AT_LOW_TEMPERATURE] if study.on_questions and low_temperature(run) else []
    found = {name: results(run, name) for name in names}
    rows = {name: _rows(one, study, run.config, bounded=MEASURES[name].is_share) for name, one in found.items()}
    over_all = {name: _over_all(one, study, rows[name], bounded=MEASURES[name].is_share) for name, one in found.items()}
    means = {name: {world: _means(one) for world, one in worlds.items()} for name, worlds in found.items()}
    return {
        "name": run.name,
        "seed": run.seed,
        "compare": study.compared,
        "control": study.control,
        "methods": list(study.names),
        "seeds": study.seeds,
        "privileged": is_privileged(run),
        "expected": expected_power(run.config),
        "measure": first,
        "spread": _spread([row["methods"] for row in rows[first]]),
        "rows": rows[first],
        "over_all": over_all[first],
        "means": means[first],
        "settings": study.rewards | study.rankings,
        "experience": study_experience(run, [world.name for world in study.worlds()]),
        "training_cpu_s": training_cpu_s(run) if study.variants else {},
        "measures": {
            name: {"rows": rows[name], "over_all": over_all[name], "means": means[name]}
            for name in names
            if name != first
        },
        "verdict": _sentences(rows[first], study) + _sentences(over_all[first], study),
    }


def _rows(found: Worlds, study: Study, config: Row, *, bounded: bool) -> list[Row]:
    """The comparisons of a measure at every factor's values, or in the one world."""
    places = study.places(config)
    firsts = list(dict.fromkeys(place.first for place in places))
    compared = correct(
        [compare(found, at, name, study.control, bounded=bounded) for name in study.others] for at in firsts
    )
    methods = dict(zip(firsts, compared, strict=True))
    return [
        {
            "factor": place.factor,
            "value": place.value,
            "at": "as the file has it" if place.factor is None else json.dumps(place.value),
            "worlds": list(place.worlds),
            "levels": _levels(found, place.worlds, study),
            "methods": methods[place.first],
            "repeats": place.first != place.worlds,
        }
        for place in places
    ]


def _over_all(found: Worlds, study: Study, rows: Sequence[Row], *, bounded: bool) -> list[Row]:
    """The comparisons of the mean over all worlds that differ, corrected among themselves; [] where a row is about
    these worlds already, or while no method has a training seed in all of them."""
    worlds = list(dict.fromkeys(world for row in rows if not row["repeats"] for world in row["worlds"]))
    if any(set(row["worlds"]) == set(worlds) for row in rows):
        return []
    (methods,) = correct([[compare(found, worlds, name, study.control, bounded=bounded) for name in study.others]])
    if not any(one.seeds for one in methods):
        return []
    at = f"mean of {len(worlds)}"
    own = {"factor": ALL_WORLDS, "value": at, "at": at, "worlds": worlds, "repeats": False}
    return [own | {"levels": _levels(found, worlds, study), "methods": methods}]


def training_cpu_s(run: LoadedRun) -> dict[str, dict[str, dict[int, float]]]:
    """CPU seconds of the learner by world, variant and training seed; of trainings on a data set, which log them."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for line in run.metrics:
        if "seconds/cpu" in line:
            world, seed, rest = study_place(line["node"])
            by_seed = found.setdefault(world, {}).setdefault(rest.partition(".")[0], {})
            by_seed[seed] = by_seed.get(seed, 0.0) + line["seconds/cpu"]
    return found


def is_privileged(run: LoadedRun) -> bool:
    """Whether the policy reads the simulator's truth."""
    return (run.config.get("model") or {}).get("preset") == "state"


def _means(one: Results) -> dict[str, dict[int, float]]:
    """By method and training seed."""
    return {
        method: {seed: float(np.nanmean(list(values.values()))) for seed, values in by.items()}
        for method, by in one.values.items()
    }


def _levels(found: Worlds, worlds: Iterable[str], study: Study) -> Row:
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


def _sentences(rows: Sequence[Row], study: Study) -> list[str]:
    """One of each comparison that is decided, one of how many are not, and one of how many are still to come.

    The file's own world speaks once.
    """
    measure, units = (MEASURES[REWARD], "questions") if study.on_questions else (MEASURES[SUCCESS], "episodes")
    said, open_, to_come, where = [], [], 0, ""
    for row in (row for row in rows if not row["repeats"]):
        is_mean = row["factor"] == ALL_WORLDS
        where = f" in the {row['at']} worlds" if is_mean else ""
        place = f" at {row['factor']} {row['at']}" if row["factor"] and not is_mean else where
        for one in row["methods"]:
            if not one.seeds:
                to_come += 1
                continue
            if not one.is_decided:
                open_.append(one)
                continue
            value, low, high = map(measure.difference, vars(one.difference).values())
            said.append(
                f"{label(one.method)} over {label(study.control)}{place}: {value}{measure.unit} ({low} to {high}, "
                f"{one.seeds} training seeds of {one.n} {units}), p {p_text(one.corrected_p)} after correction."
            )
    total = len(said) + len(open_) + to_come
    if open_:
        known = [one.detectable for one in open_ if one.detectable is not None and one.detectable <= 1]
        ends = dict.fromkeys(measure.difference(end)[1:] for end in (min(known), max(known))) if any(known) else {}
        found = f"; such a comparison finds {' to '.join(ends)}{measure.unit} or more" if ends else ""
        count = f"{len(open_)} of {total} comparisons"
        said.append(f"Not told apart from {label(study.control)}{where}: {count}{found}.")
    if to_come and not where:
        said.append(f"Still to be measured: {to_come} of {total} comparisons.")
    return said


def written(summary: Row) -> Row:
    """What `study.json` holds."""

    def plain(value: Any) -> Any:
        if isinstance(value, Comparison):
            return asdict(value) | {"seeds": value.seeds}
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return [plain(one) for one in value] if isinstance(value, list) else value

    return plain(summary)
