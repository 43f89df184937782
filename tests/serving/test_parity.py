"""The engine's log-probabilities are the training model's: text, images, cached prefixes, new weights, bfloat16.

The bound is 1e-4 in float32 (the differences measured are about 1e-6).
"""

import numpy as np
import pytest
import torch

from rl_lab.model.checkpoint import publish
from rl_lab.records.types import Prompt, Sampling
from tests.support.models import Drawer, differences, image_prompt, make_vlm, save_policy_of, save_vlm

pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")

TOLERANCE = 1e-4
MEAN_BFLOAT16 = 0.02
SAMPLING = Sampling(max_tokens=24, ignore_eos=True)
PICTURES = {
    "text": [],
    "one image": [(64, 64)],
    "two images of different size": [(32, 64), (96, 64)],
    "three images and odd sizes": [(64, 64), (50, 70), (31, 33)],
}


def make_prompt(ids, sizes, seed):
    """Words, and after some of them pictures."""
    drawer = Drawer(seed)
    tokens, images = [ids["bos"], ids["user"], *drawer.words(7 + seed)], []
    for size in sizes:
        tokens += image_prompt(ids) + drawer.words(5)
        images.append(drawer.picture(*size))
    return Prompt(tokens, images, seed=seed)


def worst(model, prompts, answers, temperature=1.0):
    """Largest difference over all answers to all prompts."""
    return max(
        float(differences(model, completion, prompt.images, temperature).max())
        for prompt, completions in zip(prompts, answers, strict=True)
        for completion in completions
    )


@pytest.mark.parametrize("sizes", PICTURES.values(), ids=PICTURES)
def test_the_engine_gives_the_training_models_log_probabilities(engine, vlm, sizes):
    prompts = [make_prompt(vlm.config.special_token_ids, sizes, seed) for seed in range(4)]
    answers = engine.generate(prompts, SAMPLING)
    assert worst(vlm, prompts, answers) <= TOLERANCE


def test_a_batch_of_every_kind_that_needs_several_steps_gives_the_same(engine, vlm):
    kinds = list(PICTURES.values()) * 4
    prompts = [make_prompt(vlm.config.special_token_ids, sizes, seed) for seed, sizes in enumerate(kinds)]
    answers = engine.generate(prompts, SAMPLING)
    assert worst(vlm, prompts, answers) <= TOLERANCE
    alone = engine.generate(prompts[3:4], SAMPLING)
    assert alone[0][0].tokens == answers[3][0].tokens


def test_log_probabilities_are_those_of_the_distribution_that_was_sampled(engine, vlm):
    prompts = [make_prompt(vlm.config.special_token_ids, [(64, 64)], 1)]
    answers = engine.generate(prompts, Sampling(max_tokens=16, temperature=0.7, num_generations=3, ignore_eos=True))
    assert len({completion.tokens for completion in answers[0]}) == 3
    assert worst(vlm, prompts, answers, temperature=0.7) <= TOLERANCE


def test_a_chat_of_many_turns_with_a_new_image_each_reads_its_past_from_the_cache(engine, vlm):
    ids = vlm.config.special_token_ids
    chats = [(Drawer(seed), [ids["bos"]], []) for seed in range(4)]
    largest, cached = 0.0, 0
    for _ in range(4):
        prompts = []
        for drawer, tokens, images in chats:
            tokens += [ids["user"], *image_prompt(ids), *drawer.words(9)]
            images.append(drawer.picture(64, 96))
            prompts.append(Prompt(list(tokens), list(images)))
        answers = engine.generate(prompts, SAMPLING)
        largest = max(largest, worst(vlm, prompts, answers))
        cached += sum(completion.num_cached_tokens for (completion,) in answers)
        for (_, tokens, _), (completion,) in zip(chats, answers, strict=True):
            tokens[:] = completion.prompt_tokens + completion.tokens
    assert largest <= TOLERANCE
    assert cached > 500


@pytest.mark.parametrize("words", range(20, 36, 3))
def test_a_cached_prefix_that_ends_within_an_image_is_cut_back_to_before_it(engine, vlm, words):
    ids = vlm.config.special_token_ids
    drawer = Drawer(words)
    start, image = [ids["bos"], *drawer.words(words), *image_prompt(ids)], drawer.picture(96, 128)
    prompts = [Prompt([*start, *drawer.words(3 + 8 * turn)], [image]) for turn in range(3)]
    answers = [engine.generate([prompt], SAMPLING)[0] for prompt in prompts]
    assert worst(vlm, prompts, answers) <= TOLERANCE


def test_new_weights_are_used_for_everything_and_the_old_come_back(engine, vlm, folder, tmp_path):
    ids = vlm.config.special_token_ids
    prompts = [make_prompt(ids, sizes, seed) for seed, sizes in enumerate(PICTURES.values())]
    before = engine.generate(prompts, SAMPLING)
    other = make_vlm(seed=1)
    engine.update(publish(save_vlm(other, tmp_path), version=5))
    answers = engine.generate(prompts, SAMPLING)
    assert worst(other, prompts, answers) <= TOLERANCE
    assert worst(vlm, prompts, answers) > 0.1
    assert {completion.weight_version for row in answers for completion in row} == {5}
    engine.update(publish(folder, version=0))
    again = engine.generate(prompts, SAMPLING)
    assert [row[0].tokens for row in again] == [row[0].tokens for row in before]


@pytest.mark.parametrize("preset", ["small", "mini"])
def test_the_language_side_of_a_policy_is_served(engines, preset, tmp_path):
    model = make_vlm(preset)
    engine = engines.get(save_policy_of(model, preset, tmp_path))
    prompts = [make_prompt(model.config.special_token_ids, sizes, seed) for seed, sizes in enumerate(PICTURES.values())]
    assert worst(model, prompts, engine.generate(prompts, SAMPLING)) <= TOLERANCE


def test_in_bfloat16_the_mean_difference_is_small(engines, folder, vlm, record_property):
    engine = engines.get(folder, dtype="bfloat16")
    prompts = [make_prompt(vlm.config.special_token_ids, sizes, seed) for seed, sizes in enumerate(PICTURES.values())]
    answers = engine.generate(prompts, SAMPLING)
    trained = type(vlm).from_pretrained(folder, dtype=torch.bfloat16).eval().requires_grad_(False)
    found = [differences(trained, row[0], prompt.images).numpy() for prompt, row in zip(prompts, answers, strict=True)]
    mean = float(np.concatenate(found).mean())
    record_property("mean_abs_difference", mean)
    print(f"bfloat16: mean absolute difference {mean:.4f}, largest {np.concatenate(found).max():.4f}")
    assert mean <= MEAN_BFLOAT16
