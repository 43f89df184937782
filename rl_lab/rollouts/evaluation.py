"""A policy's episodes on the evaluation seeds: the same for every policy, so that results can be paired."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray

from rl_lab.common.files import read_json_lines, write_json_lines
from rl_lab.rollouts.collect import kept
from rl_lab.rollouts.simulator_errors import ErrorWatch
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.simulation import REJECTED, Unit, evaluation_groups

ResultRow = dict[str, Any]


@dataclass
class EvaluationResult:
    """What came of it."""

    rows: list[ResultRow] = field(default_factory=list)
    """Labels of the episodes (see `envs.types.Episode`) and the step limit, by task, variant and seed."""
    rejected: list[ResultRow] = field(default_factory=list)
    """Task, variant and seed of those that RoboTwin refused on the way, with its reason as `rejected`."""


def evaluate_policy(
    pool: WorkerPool,
    weights: ray.ObjectRef,
    config: Any,
    seed: int,
    scratch: Path,
    *,
    check_stop: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvaluationResult:
    """Episodes of a published policy by the `env` and `eval` sections; finished units are kept in `scratch`.

    RuntimeError with RoboTwin's last reason where it rejects too many seeds, RunError where nothing but errors come.
    """
    groups = evaluation_groups(config, seed)
    result, total = EvaluationResult(), sum(wanted for _, wanted in groups)

    def submit(actor: Any, unit: Unit) -> ray.ObjectRef:
        return actor.evaluate.remote(unit, weights, config.eval)

    run = partial(pool.map, submit, check_stop=check_stop)
    for number, (units, wanted) in enumerate(groups):
        rows: list[ResultRow] = []
        watch = ErrorWatch(f"{units[0].env.task} {units[0].env.variant}")
        for found in kept(scratch / f"group-{number:03d}", units, run, _write_rows, _read_rows):
            for row in found:
                watch.see(_error(row))
            rows += [row for row in found if REJECTED not in row]
            result.rejected += [row for row in found if REJECTED in row]
            progress(len(result.rows) + min(len(rows), wanted), total)
            if len(rows) >= wanted:
                break
        if len(rows) < wanted:
            spec, last = units[0].env, result.rejected[-1][REJECTED]
            raise RuntimeError(
                f"RoboTwin accepted {len(rows)} of {len(units)} seeds of {spec.task} {spec.variant}; last: {last}"
            )
        watch.end()
        result.rows += rows[:wanted]
    return result


def _error(row: ResultRow) -> str | None:
    """What the simulator raised on a seed."""
    if REJECTED in row:
        return row[REJECTED] if row.get("is_error") else None
    return row.get("extra", {}).get("error")


def _write_rows(folder: Path, result: Iterable[ResultRow]) -> None:
    write_json_lines(folder / "results.jsonl", result)


def _read_rows(folder: Path) -> list[ResultRow]:
    return read_json_lines(folder / "results.jsonl")
