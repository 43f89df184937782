"""A teacher in engines that reads a student's answers: what it finds likely at each of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rl_lab.config.language import EngineConfig
from rl_lab.language.model import checkpoint_dtype
from rl_lab.learning.checkpoint import published
from rl_lab.records.types import Prompt, RolloutGroup, TopScores
from rl_lab.runner.stage_context import StageContext
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.rollout import EngineOptions
from rl_lab.workers.rollout_worker import ScoreUnit

TOKENS, LOGPROBS = "teacher_tokens", "teacher_logprobs"
"""Columns of the rollout store: the teacher's top-k at every token of an answer, one after the other."""


class TeacherEngines:
    """Engines with the teacher's weights that read answers; see `rl_lab.language.online_steps.TeacherReads`."""

    names: Sequence[str] = (TOKENS, LOGPROBS)

    def __init__(self, engines: WorkerPool, teacher: Path, top_k: int, prompts_per_call: int) -> None:
        self.engines, self.top_k, self.prompts_per_call = engines, top_k, prompts_per_call
        self.weights = ray.put(published(teacher))

    def columns(self, groups: Sequence[RolloutGroup], check_stop: Callable[[], None]) -> dict[str, list[Any]]:
        """What the teacher finds likely at each answer's tokens, for the store."""
        read = list(self._read(groups, check_stop))
        return {TOKENS: [row.tokens.ravel() for row in read], LOGPROBS: [row.logprobs.ravel() for row in read]}

    def _read(self, groups: Sequence[RolloutGroup], check_stop: Callable[[], None]) -> Iterator[TopScores]:
        """In the order of the answers; as many together as were answered together."""
        asked = [
            (Prompt(answer.prompt_tokens + answer.tokens, group.prompt.images), len(answer.tokens))
            for group in groups
            for answer in group.completions
        ]
        size = self.prompts_per_call * groups[0].size
        parts = [asked[start : start + size] for start in range(0, len(asked), size)]
        units = [
            ScoreUnit(tuple(prompt for prompt, _ in part), tuple(number for _, number in part), self.top_k)
            for part in parts
        ]
        batch = self.engines.submit(lambda actor, unit: actor.score.remote(unit, self.weights), units)
        yield from chain.from_iterable(self.engines.results(batch, check_stop))

    def scores(self, rows: Sequence[dict[str, Any]]) -> list[TopScores]:
        """What the store has of answers."""
        shape = (-1, self.top_k)
        return [
            TopScores(
                np.array(row[TOKENS], np.int32).reshape(shape), np.array(row[LOGPROBS], np.float32).reshape(shape)
            )
            for row in rows
        ]


@contextmanager
def teacher_engines(cluster: Cluster, context: StageContext, teacher: Path, top_k: int) -> Iterator[TeacherEngines]:
    """Engines beside the student's, set up for the teacher, until the stage ends."""
    engine: EngineConfig = context.config.engine
    settings = engine.model_dump(exclude={"prompts_per_call"})
    if engine.dtype == "auto":
        settings["dtype"] = checkpoint_dtype(teacher)
    # vLLM writes a token behind what it reads, so the longest answer needs room for one more.
    settings |= {"max_logprobs": max(20, top_k), "max_model_len": engine.max_model_len + 1}
    with cluster.teacher_pool(EngineOptions(**settings), context.say) as pool:
        yield TeacherEngines(pool, teacher, top_k, engine.prompts_per_call)
