"""Two runs beside each other: paired differences on what both were tested on, and what else is different.

Runs that differ in nothing but the training seed are repetitions: those are shown as mean and spread over seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_lab.common.errors import UserError
from rl_lab.common.files import write_whole
from rl_lab.common.stats import REWARD_METHOD
from rl_lab.common.terminal import columns
from rl_lab.reports.estimates import examined, gain, mean_estimate, of_scheme, score, shared_replicates, text_table
from rl_lab.reports.examinations import reward_table
from rl_lab.reports.numbers import Row, p_text, reward
from rl_lab.reports.pages.markup import Cell, document, parts
from rl_lab.reports.run import BASE, Evaluation, LoadedRun, label
from rl_lab.reports.study import is_study

REPEATED = ("seed", "name")
"""Config keys in which repetitions of one experiment may differ."""
SCENE = ("env.", "eval.", "questions.", "rewards.", "examine.")
"""Config keys that can make the same seed another scene, question or test."""


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def config_differences(run: LoadedRun, other: LoadedRun) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values; None where a run has no such key."""
    first, second = flatten(run.config), flatten(other.config)
    keys = dict.fromkeys([*first, *second])
    return [(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def stage_differences(run: LoadedRun, other: LoadedRun) -> list[tuple[str, str, Any, Any]]:
    """(name, how it differs, seconds, other's seconds) of every stage but the reports."""
    first, second = ({stage.name: stage for stage in one.own_stages} for one in (run, other))
    rows = []
    for name in dict.fromkeys([*first, *second]):
        a, b = first.get(name), second.get(name)
        if a is None or b is None:
            how = "only there" if a is None else "only here"
        else:
            how = "same result" if a.hash and a.hash == b.hash else "different"
        rows.append((name, how, a and a.seconds, b and b.seconds))
    return rows


def is_repetition(run: LoadedRun, other: LoadedRun) -> bool:
    """Whether runs on episodes differ in the training seed and in nothing else that matters."""
    keys = {key for key, _, _ in config_differences(run, other)}
    return bool(run.evaluations) and "seed" in keys and keys <= set(REPEATED)


def over_seeds(runs: Sequence[LoadedRun]) -> list[Row]:
    """Success of each method and round over training seeds: every value, mean and standard deviation (n - 1)."""
    rates: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        for one in run.evaluations:
            rates.setdefault((one.method, one.round), []).append(score(one.episodes)[0].value)
    return [
        {"policy": label(method, round_), "rates": values, "mean": statistics.fmean(values)}
        | {"sd": statistics.stdev(values) if len(values) > 1 else None}
        for (method, round_), values in rates.items()
    ]


def _warnings(run: LoadedRun, other: LoadedRun) -> list[str]:
    """What weakens the comparison."""
    keys = [key for key, _, _ in config_differences(run, other) if key.startswith(SCENE)]
    lines = [f"{', '.join(keys)} differ: the same seed may not be the same test."] if keys else []
    if len({str(r.environment.get("commit")) for r in (run, other)}) > 1:
        lines.append("The runs come from different commits.")
    if run.processors and other.processors and run.processors != other.processors:
        named = "; ".join(run.processors + other.processors)
        lines.append(f"The runs come from different processors ({named}), which round differently.")
    return lines


def _seed_cells(row: Row) -> list[str]:
    spread = "" if row["sd"] is None else f"{100 * row['sd']:.1f}"
    each = ", ".join(f"{100 * rate:.0f}" for rate in row["rates"])
    return [row["policy"], str(len(row["rates"])), each, f"{100 * row['mean']:.1f} %", spread]


SEED_HEAD = ("policy", "seeds", "success of each (%)", "mean", "SD (points)")
EPISODE_HEAD = ("here", "there", "n", "solved here", "solved there", "difference (points)", "p")
QUESTION_HEAD = ("here", "there", "items", "replicates", "reward here", "reward there", "difference")
CONFIG_HEAD = ("key", "here", "there")
STAGE_HEAD = ("stage", "", "seconds here", "seconds there")


def _stage_cells(row: tuple[str, str, Any, Any]) -> list[str]:
    name, how, *seconds = row
    return [name, how, *("" if value is None else f"{value:.0f}" for value in seconds)]


@dataclass(frozen=True)
class Pairing:
    """What two runs were both tested on: a table whose first two columns name the sides."""

    head: Sequence[str]
    rows: list[list[Any]]
    reading: str
    """How to read it."""


def matched_policies(run: LoadedRun, other: LoadedRun) -> list[tuple[Evaluation, Evaluation]]:
    """What is compared: the bases, each shared method after the last round both have, and the methods under test."""
    common = [method for method in [BASE, *run.methods] if method == BASE or method in other.methods]
    rounds = [min(run.last_round(method), other.last_round(method)) for method in common]
    wanted = [(method, last, method, last) for method, last in zip(common, rounds, strict=True)]
    if run.method and other.method and run.method != other.method:
        wanted.append((run.method, run.last_round(run.method), other.method, other.last_round(other.method)))
    found = [(run.evaluation(a, i), other.evaluation(b, j)) for a, i, b, j in wanted]
    return [(first, second) for first, second in found if first and second]


def _episode_rows(run: LoadedRun, other: LoadedRun) -> Iterator[list[Any]]:
    """Success on the shared episodes, and the paired difference, here minus there."""
    for first, second in matched_policies(run, other):
        keys = {e.key for e in first.episodes} & {e.key for e in second.episodes}
        if keys:
            sides = [[e for e in side.episodes if e.key in keys] for side in (first, second)]
            here, there = (label(side.method, side.round) for side in (first, second))
            difference, whole = gain(*sides, over=there)[0], max(len(first.episodes), len(second.episodes))
            n = str(len(keys)) if len(keys) == whole else f"{len(keys)} of {whole}"
            solved = [score(side)[0].successes for side in sides]
            yield [here, there, n, *solved, difference, p_text(difference.p).removeprefix("= ")]


def _matched_schemes(run: LoadedRun, other: LoadedRun) -> list[tuple[str, str]]:
    """The base and every shared scheme; the first schemes of both if they share none."""
    pairs = [(scheme, scheme) for scheme in examined(run) if scheme in examined(other)]
    if run.schemes and other.schemes and not set(run.schemes) & set(other.schemes):
        pairs.append((run.schemes[0], other.schemes[0]))
    return pairs


def _question_rows(run: LoadedRun, other: LoadedRun) -> Iterator[list[Any]]:
    """Final held-out reward on the shared questions and replicates, and the paired difference, here minus there."""
    for here, there in _matched_schemes(run, other):
        sides = shared_replicates(of_scheme(run, here), of_scheme(other, there))
        names = [{item.item for examination in side for item in examination.items} for side in sides]
        items = sorted(names[0] & names[1])
        tables = [reward_table(side, items, lambda item: item.reward) for side in sides]
        difference = mean_estimate(tables[0] - tables[1], over=there) if items else None
        if difference is not None:
            rewards = [reward(mean.value) for mean in map(mean_estimate, tables) if mean is not None]
            yield [label(here), label(there), difference.n, difference.replicates, *rewards, difference]


def find_pairing(run: LoadedRun, other: LoadedRun) -> Pairing:
    """What both runs were tested on. UserError if that is nothing."""
    if bool(run.examinations) != bool(other.examinations):
        first, second = (run, other) if run.examinations else (other, run)
        raise UserError(f"{first.path} was tested on questions, {second.path} was not; compare two runs of one kind")
    if run.examinations:
        head, rows = QUESTION_HEAD, list(_question_rows(run, other))
        lack = "examined question; examine both on the same held-out items"
        reading = f"Difference: here minus there on the same questions and replicates. Intervals: {REWARD_METHOD}."
    else:
        head, rows = EPISODE_HEAD, list(_episode_rows(run, other))
        lack = "evaluated (task, variant, seed); evaluate both on the same seeds"
        reading = (
            "Difference: here minus there on the episodes that both evaluated, with its paired 95 % interval. "
            "It speaks about these two trained policies; another training seed gives another policy."
        )
    if not rows:
        raise UserError(f"{run.path} and {other.path} share no {lack}")
    return Pairing(head, rows, reading)


def comparison_lines(run: LoadedRun, other: LoadedRun) -> str:
    """The comparison for the terminal. UserError for a study, which is one itself."""
    for one in (run, other):
        if is_study(one):
            raise UserError(f"{one.path} is a study, which compares its own worlds and methods; leave out --against")
    parts = [f"here: {run.path}\nthere: {other.path}", *_warnings(run, other)]
    pairing = find_pairing(run, other)
    parts.append(text_table(pairing.head, pairing.rows, left=2))
    if is_repetition(run, other):
        parts.append(columns(SEED_HEAD, [_seed_cells(row) for row in over_seeds([run, other])]))
    changes = [[str(value) for value in row] for row in config_differences(run, other)]
    parts.append(columns(CONFIG_HEAD, changes, left=3) if changes else "The configurations are equal.")
    stages = [_stage_cells(row) for row in stage_differences(run, other)]
    parts.append(columns(STAGE_HEAD, stages, left=2) if stages else "No stages.json to compare.")
    return "\n\n".join(parts)


def write_comparison(run: LoadedRun, other: LoadedRun) -> Path:
    """Write `compare-<other>.html` into the folder of `run`, whole or not at all. UserError if nothing is shared."""
    pairing = find_pairing(run, other)
    stages = [[name, Cell(how, "left"), *rest] for name, how, *rest in map(_stage_cells, stage_differences(run, other))]
    page = document(
        "against",
        title=f"{run.path.resolve().name} against {other.path.resolve().name}",
        run=run,
        other=other,
        warnings=_warnings(run, other),
        pairing=pairing,
        pairs=[[here, Cell(there, "left"), *cells] for here, there, *cells in pairing.rows],
        pairs_head=[pairing.head[0], Cell(pairing.head[1], "left"), *pairing.head[2:]],
        seeds_head=SEED_HEAD,
        seeds=[_seed_cells(row) for row in over_seeds([run, other])] if is_repetition(run, other) else [],
        config_head=CONFIG_HEAD,
        changes=[(parts.code(key), str(a), str(b)) for key, a, b in config_differences(run, other)],
        stages_head=STAGE_HEAD,
        stages=stages,
    )
    path = run.path / f"compare-{other.path.resolve().name}.html"
    write_whole(path, page)
    return path
