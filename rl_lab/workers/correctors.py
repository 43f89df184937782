"""The corrector of a collection as plain data for the workers, built and checked from `collect.corrector`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from envs.correctors import Corrector, Place, recorded, scripted_expert, teacher
from envs.rollout import Act
from envs.types import EE_DIM
from rl_lab.action.buffers import INDEX_FILE, read_pairs
from rl_lab.config.action import CorrectorConfig
from rl_lab.errors import UserError
from rl_lab.formats.checks import command_problems
from rl_lab.learning.checkpoint import check_named, check_policy, published, snapshot_info
from rl_lab.reading import fit, parse_json, read_text
from rl_lab.workers.weights import Snapshot


@dataclass(frozen=True)
class CorrectorPlan:
    """Who corrects; crosses processes."""

    name: str = scripted_expert.name
    """Stands on every pair."""
    weights: Snapshot | None = None
    """A teacher policy's."""
    execute: int = 1
    """Commands of each of its chunks that are run."""
    corrections: dict[Place, np.ndarray] = field(default_factory=dict)
    """Recorded commands [T, 16]."""

    def build(self, policy: Callable[[Snapshot], Act]) -> Corrector:
        """The corrector itself; `policy` makes one act from its weights."""
        if self.weights is not None:
            return teacher(self.name, policy(self.weights), self.execute, snapshot_info(self.weights).memory)
        return recorded(self.name, self.corrections) if self.corrections else scripted_expert


def corrector_plan(settings: CorrectorConfig, execute: int) -> CorrectorPlan:
    """From the configuration. UserError for recorded corrections that cannot be read."""
    path = Path(settings.path or "")
    if settings.kind == "policy":
        weights = published(path)
        return CorrectorPlan(f"policy {path.name} ({weights.digest[:12]})", weights, execute)
    if settings.kind == "recorded":
        return CorrectorPlan(f"recorded {path.name}", corrections=read_corrections(path))
    return CorrectorPlan()


@dataclass(frozen=True)
class _Line:
    task: str
    variant: str
    seed: int
    step: int
    actions: list[Annotated[list[float], Field(min_length=EE_DIM, max_length=EE_DIM)]]


def read_corrections(path: Path) -> dict[Place, np.ndarray]:
    """Corrections of a file that `python -m rl_lab.correct` wrote, or the winners of a folder of pairs that a run left.

    A line is {"task": ..., "variant": ..., "seed": environment seed, "step": control step of the state in which the
    correction begins, "actions": [[16 numbers], ...]}, the actions as in `envs.types.Segment`. UserError, naming the
    line, for anything else.
    """
    if path.is_dir():
        if not (path / INDEX_FILE).is_file():
            raise UserError(f"collect.corrector.path: {path} is no folder of pairs: {INDEX_FILE} is missing")
        found = dict(_winners(path))
    else:
        found = dict(_lines(path))
    if not found:
        raise UserError(f"collect.corrector.path: {path} has no corrections")
    return found


def _winners(folder: Path) -> Iterator[tuple[Place, np.ndarray]]:
    try:
        for number, pair in enumerate(read_pairs(folder)):
            place = (pair.task, pair.variant, pair.seed, pair.start_step)
            yield place, _checked(f"{folder}, pair {number}", pair.winner.actions)
    except UserError as error:
        raise UserError(f"collect.corrector.path: {error}") from error


def _lines(path: Path) -> Iterator[tuple[Place, np.ndarray]]:
    try:
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if line.strip():
                where = f"{path}, line {number}"
                row = fit(parse_json(line, where), _Line, where)
                yield (row.task, row.variant, row.seed, row.step), _checked(where, np.array(row.actions))
    except UserError as error:
        raise UserError(f"collect.corrector.path: {error}") from error


def _checked(where: str, actions: np.ndarray) -> np.ndarray:
    """Commands [T, 16]; UserError for anything that no environment takes."""
    problems: Sequence[object] = command_problems(where, "action", actions)
    problems = problems if len(actions) else [f"{where}: there are no actions"]
    if problems:
        raise UserError(f"{problems[0]}; mend it or leave it out")
    return actions


def check_corrector(settings: CorrectorConfig, image_size: int, execute: int) -> None:
    """UserError, before a run begins, for a corrector that cannot act in it."""
    if settings.kind == "recorded":
        read_corrections(Path(settings.path or ""))
    if settings.kind == "policy":
        check_acting(Path(settings.path or ""), image_size, execute, "collect.corrector.path")


def check_acting(folder: Path, image_size: int, execute: int, where: str) -> None:
    """UserError, in the name of `where`, unless the folder holds a policy that can act in rounds of this size."""
    sizes, processor, _ = check_named(where, folder, check_policy)
    if not processor.has_stats:
        raise UserError(f"{where}: {folder} has no normalisation statistics: such a policy cannot act; train it first")
    if sizes.image_size != image_size:
        raise UserError(f"{where}: {folder} takes {sizes.image_size} pixels, but env.image_size is {image_size}")
    if execute > processor.num_commands:
        raise UserError(
            f"{where}: {folder} predicts {processor.num_commands} commands, but collect.execute is {execute}"
        )
