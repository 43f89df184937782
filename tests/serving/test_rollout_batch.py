"""From the engine to the objective: the trainer gives answers the probabilities that the engine drew them with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from algos.grpo import GRPO, GRPOOptions, group_advantages
from rl_lab.records.token_batches import rollout_batch
from rl_lab.records.types import Prompt, Sampling
from rl_lab.workers.engine import RolloutEngine
from tests.support.models import VLM, Drawer, image_prompt, make_processor
from tests.support.rollouts import learned_groups


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_grpo_sees_no_mismatch_between_engine_and_trainer(engine: RolloutEngine, vlm: VLM, temperature: float) -> None:
    ids, drawer = vlm.config.special_token_ids, Drawer()
    sizes: list[list[tuple[int, int]]] = [[], [(64, 64)], [(64, 96), (32, 32)]]
    prompts = [
        Prompt(
            [ids["bos"], *image_prompt(ids) * len(shown), *drawer.words(4)],
            [drawer.picture(*size) for size in shown],
            seed=1,
        )
        for shown in sizes
    ]
    answers = engine.generate(prompts, Sampling(max_tokens=9, temperature=temperature, num_generations=3))
    advantages = group_advantages(torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 0.0], [0.2, 0.2, 0.2]]))
    batch = rollout_batch(learned_groups(prompts, answers, advantages), make_processor(vlm).image_processor)
    options = GRPOOptions(num_generations=3, temperature=temperature)
    with torch.no_grad():
        _, metrics = GRPO(options).loss(vlm, batch, torch.Generator())
    found: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
    assert found["mismatch/max"] < 1e-4
    assert found["importance/mean"] == pytest.approx(1.0, abs=1e-3)
    assert found["text/tokens"] == sum(len(answer.tokens) for row in answers for answer in row)
    assert found["groups/with_signal"] == pytest.approx(2 / 3)
