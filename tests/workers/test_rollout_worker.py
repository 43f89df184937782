"""The rollout worker around a fake engine: when it starts one, copies weights, empties caches, and gives up."""

import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from rl_lab.common.errors import UserError
from rl_lab.model.checkpoint import Snapshot, digest
from rl_lab.records.types import Prompt, Sampling
from rl_lab.workers import engine as rollout_worker
from rl_lab.workers.engine import EngineOptions, Rollouter, RolloutUnit
from rl_lab.workers.pool import BrokenWorkerError

UNIT = RolloutUnit((Prompt([1], seed=3),), Sampling(max_tokens=4))


@dataclass
class FakeEngine:
    """Notes what it is asked."""

    calls: list[Any] = field(default_factory=list)
    error: Exception | None = None
    has_failed: bool = False

    def from_snapshot(self, snapshot, options):
        self.calls.append(("start", snapshot.version, options.max_model_len))
        return self

    def update(self, snapshot):
        self.calls.append(("update", snapshot.version))

    def reset_caches(self):
        self.calls.append("reset")

    def generate(self, prompts, sampling):
        self.calls.append("generate")
        if self.error:
            raise self.error
        return [[] for _ in prompts]


@pytest.fixture
def engine(monkeypatch):
    fake = FakeEngine()
    monkeypatch.setattr(rollout_worker, "RolloutEngine", fake)
    return fake


@pytest.fixture
def worker():
    return Rollouter(EngineOptions(max_model_len=77))


def snapshot(version: int, checksum: str = "") -> Snapshot:
    return Snapshot(version, checksum, {})


def test_the_engine_starts_with_the_first_weights_and_takes_only_new_ones(engine, worker):
    for weights in (snapshot(1), snapshot(1), snapshot(2), snapshot(2), snapshot(2, "other run")):
        assert worker.generate(UNIT, weights).completions == [[]]
    answer = ["reset", "generate"]
    expected = [("start", 1, 77), *answer, *answer, ("update", 2), *answer, *answer, ("update", 2), *answer]
    assert engine.calls == expected


def test_a_worker_says_how_long_it_was_busy(engine, worker):
    first, second = worker.generate(UNIT, snapshot(1)), worker.generate(UNIT, snapshot(1))
    assert first.start_s > second.start_s >= 0
    assert second.busy_s == second.generate_s + second.update_s + second.start_s > 0


def test_answers_without_a_seed_are_refused_unless_they_are_not_drawn(engine, worker):
    prompts = (Prompt([1]),)
    with pytest.raises(ValueError, match="a prompt has no seed"):
        worker.generate(RolloutUnit(prompts, Sampling(max_tokens=4)), snapshot(1))
    worker.generate(RolloutUnit(prompts, Sampling(max_tokens=4, temperature=0.0)), snapshot(1))


def test_an_engine_that_failed_ends_the_worker_and_a_refused_prompt_does_not(engine, worker):
    engine.error = ValueError("too long")
    with pytest.raises(ValueError, match="^too long$"):
        worker.generate(UNIT, snapshot(1))
    engine.error, engine.has_failed = RuntimeError("out of blocks"), True
    with pytest.raises(BrokenWorkerError, match=r"has an engine that failed \(out of blocks\)"):
        worker.generate(UNIT, snapshot(1))


def test_without_vllm_the_user_is_told(worker, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"\./setup\.sh cpu, or \./setup\.sh gpu"):
        worker.generate(UNIT, snapshot(1, digest({})))
