"""Language rollouts in a Ray actor: a fixed batch of prompts and published weights in, completions out.

A unit's completions depend on its prompts, its sampling and the weights, and on nothing else: the batch is what the
engine computes together, every prompt has its seed, and the engine's caches are emptied before each unit. On CPU that
holds to the bit, whichever worker answers, whatever it did before and however it came by the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rl_lab.records.types import Completion, Prompt, Sampling, TopScores
from rl_lab.workers.pool import BrokenWorkerError
from rl_lab.workers.rollout import EngineOptions, RolloutEngine
from rl_lab.workers.weights import Snapshot

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RolloutUnit:
    """Prompts that are answered together. The batch is part of a result's bits, so its size is no worker's business."""

    prompts: tuple[Prompt, ...]
    sampling: Sampling


@dataclass(frozen=True)
class ScoreUnit:
    """Prompts with answers behind them that are read together, as fixed as a `RolloutUnit`."""

    prompts: tuple[Prompt, ...]
    num_tokens: tuple[int, ...]
    """Of each answer."""
    top_k: int


@dataclass(frozen=True)
class Rollouts:
    """The answers to a unit, and what they took."""

    completions: list[list[Completion]]
    """`num_generations` for each prompt, in the order of the prompts."""
    generate_s: float
    update_s: float
    """Copying new weights into the engine; 0 where it had them."""
    start_s: float
    """Starting the engine; 0 but for the first unit of a worker."""

    @property
    def busy_s(self) -> float:
        """Seconds in which the worker was not idle."""
        return self.generate_s + self.update_s + self.start_s


class Rollout:
    """The actor. It holds an engine with the weights it was asked for last, and nothing that matters."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._engine: RolloutEngine | None = None
        self._weights: tuple[int, str] | None = None

    def generate(self, unit: RolloutUnit, snapshot: Snapshot) -> Rollouts:
        """Answer a unit with these weights: start an engine with them, or copy them into it where they are new.

        UserError without vLLM. ValueError for prompts that cannot be answered and for weights that do not fit,
        RuntimeError for weights that arrived damaged, BrokenWorkerError where the engine failed and is of no more use.
        """
        if unit.sampling.temperature > 0 and any(prompt.seed is None for prompt in unit.prompts):
            raise ValueError("a prompt has no seed; without one its answers would depend on the worker")
        began = time.perf_counter()
        engine = self._start(snapshot)
        started = time.perf_counter()
        self._update(engine, snapshot)
        updated = time.perf_counter()
        completions = self._answer(engine, unit)
        generated = time.perf_counter()
        return Rollouts(completions, generated - updated, updated - started, started - began)

    def score(self, unit: ScoreUnit, snapshot: Snapshot) -> list[TopScores]:
        """What these weights find likely at the tokens of answers; errors as `generate`."""
        engine = self._start(snapshot)
        self._update(engine, snapshot)
        return self._call(engine, lambda: engine.score(unit.prompts, unit.num_tokens, unit.top_k))

    def _start(self, snapshot: Snapshot) -> RolloutEngine:
        if self._engine is None:
            self._engine = RolloutEngine.from_snapshot(snapshot, self._options)
            self._weights = snapshot.version, snapshot.digest
        return self._engine

    def _update(self, engine: RolloutEngine, snapshot: Snapshot) -> None:
        if self._weights != (snapshot.version, snapshot.digest):
            engine.update(snapshot)
            self._weights = snapshot.version, snapshot.digest

    def _answer(self, engine: RolloutEngine, unit: RolloutUnit) -> list[list[Completion]]:
        return self._call(engine, lambda: engine.generate(unit.prompts, unit.sampling))

    def _call(self, engine: RolloutEngine, call: Callable[[], Answer]) -> Answer:
        """The engine's answer with nothing left of calls before."""
        try:
            engine.reset_caches()
            return call()
        except Exception as error:
            if engine.has_failed:
                raise BrokenWorkerError(f"has an engine that failed ({error})") from error
            # vLLM's own classes could not be read where it is not installed.
            raise ValueError(str(error)) from error
