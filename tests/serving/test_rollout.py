"""The rollout engine: what it refuses, and the probabilities that the trainer gives what it drew."""

import dataclasses
from typing import Any

import pytest
import safetensors.torch
import torch

from algos.grpo import GRPO, GRPOOptions, group_advantages
from rl_lab.model.checkpoint import digest, publish
from rl_lab.records.token_batches import rollout_batch
from rl_lab.records.types import Prompt, Sampling
from rl_lab.workers.engine import RolloutEngine, one_token_per_image
from tests.support.models import VLM, Drawer, image_prompt, make_processor
from tests.support.rollouts import learned_groups

SAMPLING = Sampling(max_tokens=12, ignore_eos=True)


def test_rows_of_an_image_become_its_one_token_again():
    image, row_end = 9, 11
    tokens = [1, 6, 9, 9, 11, 9, 9, 11, 12, 7, 5, 11, 6, 9, 12, 7, 6, 9, 11, 12, 7]
    assert one_token_per_image(tokens, image, row_end) == [1, 6, 9, 12, 7, 5, 11, 6, 9, 12, 7, 6, 9, 12, 7]


def test_a_prompt_with_too_few_images_is_refused(engine, vlm):
    tokens = image_prompt(vlm.config.special_token_ids) * 2
    with pytest.raises(ValueError, match="2 image tokens but 1 images"):
        engine.generate([Prompt(tokens, [Drawer().picture(64, 64)])], SAMPLING)


def test_patch_tokens_are_never_sampled_and_eos_ends_an_answer(engine, vlm):
    ids = vlm.config.special_token_ids
    prompts = [Prompt([ids["bos"], *Drawer(seed).words(4)], seed=seed) for seed in range(64)]
    answers = engine.generate(prompts, Sampling(max_tokens=200, temperature=2.0))
    completions = [completion for row in answers for completion in row]
    assert not {ids["image"], ids["video"]} & {token for completion in completions for token in completion.tokens}
    assert any(completion.finished for completion in completions)
    assert all(completion.finished == (completion.tokens[-1] == ids["eos"]) for completion in completions)


@pytest.mark.parametrize("damage", ["missing", "shape", "unexpected"])
def test_weights_of_another_model_are_refused_and_the_engine_keeps_its_own(engine, vlm, folder, damage):
    prompts = [Prompt(Drawer().words(6), seed=1)]
    before = engine.generate(prompts, SAMPLING)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    name = "model.language_model.model.norm.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = torch.ones(7)
    else:
        tensors["model.language_model.model.more.weight"] = torch.ones(7)
    other = publish(folder, version=9)
    wrong = {"model.safetensors": safetensors.torch.save({key: -tensor for key, tensor in tensors.items()})}
    with pytest.raises(ValueError, match=r"1 tensors (missing|unexpected|of another shape): model\.language_model"):
        engine.update(_signed(other, wrong))
    assert engine.generate(prompts, SAMPLING)[0][0].tokens == before[0][0].tokens
    assert engine.weight_version == 0


def _signed(snapshot, files):
    """The snapshot with other files and the checksum of those."""
    return dataclasses.replace(snapshot, files=snapshot.files | files, digest=digest(snapshot.files | files))


def test_a_damaged_snapshot_is_refused(engine, folder):
    snapshot = publish(folder, version=3)
    damaged = dataclasses.replace(snapshot, files=snapshot.files | {"config.json": b"{ }"})
    with pytest.raises(RuntimeError, match="version 3 arrived damaged"):
        engine.update(damaged)
    assert engine.weight_version == 0


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
