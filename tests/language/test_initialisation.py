"""Random weights fitted to pictures and numbers: what they are like afterwards."""

import numpy as np
import pytest
import torch

from rl_lab.config.section import ModelConfig
from rl_lab.model.checkpoint import LanguageModel, initial_language_model
from rl_lab.model.presets import TOKEN_STD, smooth_numbers
from rl_lab.model.tokenizer import NUMBERS, load_tokenizer
from rl_lab.model.vision import Run
from tests.support.questions import make_item


def images(count: int, side: int = 64) -> list[np.ndarray]:
    """Pictures with large and small structures."""
    found = []
    for seed in range(count):
        draw = np.random.default_rng(seed)
        coarse = draw.integers(0, 200, (side // 16, side // 16, 3)).repeat(16, 0).repeat(16, 1)
        found.append((coarse + draw.integers(0, 56, (side, side, 3))).astype(np.uint8))
    return found


def calibrated(pictures: list[np.ndarray], dtype: str | None = None) -> LanguageModel:
    found = initial_language_model(ModelConfig(dtype=dtype), seed=0)
    found.calibrate(pictures)
    return found


@torch.no_grad()
def test_patches_have_unit_variance_and_visual_tokens_the_size_of_words():
    pictures = images(24)
    found = calibrated(pictures)
    cut = [found.processor.image_processor(picture) for picture in pictures]
    pixels, (_, height, width) = torch.from_numpy(np.concatenate([patches for patches, _ in cut])), cut[0][1]
    visual = found.model.model.visual
    patches = (
        pixels @ visual.vision_tower.patch_embed.proj.weight.flatten(1).T + visual.vision_tower.patch_embed.proj.bias
    )
    torch.testing.assert_close(patches.mean(0), torch.zeros(patches.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(patches.std(0), torch.ones(patches.shape[1]), atol=1e-3, rtol=0)
    tokens = visual.merger(visual.vision_tower(pixels, [Run(len(pictures), height, width)]))
    torch.testing.assert_close(tokens.mean(0), torch.zeros(tokens.shape[-1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.std(0), torch.full((tokens.shape[-1],), TOKEN_STD), atol=1e-3, rtol=0)


def test_neighbouring_numbers_are_more_alike_than_far_ones():
    found = calibrated([])
    table = found.model.model.language_model.model.embed_tokens.weight
    vocabulary = found.processor.tokenizer.get_vocab()
    numbers = torch.nn.functional.normalize(table[[vocabulary[number] for number in NUMBERS]].detach(), dim=1)
    alike = [(numbers[:-gap] * numbers[gap:]).sum(1).mean().item() for gap in (1, 5, 20, 80, 400)]
    assert alike == sorted(alike, reverse=True) and alike[0] > 0.95 and abs(alike[-1]) < 0.3


def test_only_numbers_change_and_they_keep_the_size_of_the_table():
    embedding = torch.nn.Embedding(6000, 32)
    before, tokenizer = embedding.weight.detach().clone(), load_tokenizer()
    smooth_numbers(embedding, tokenizer, torch.Generator().manual_seed(0))
    vocabulary = tokenizer.get_vocab()
    ids = {vocabulary[number] for number in NUMBERS}
    assert set((embedding.weight != before).any(1).nonzero().flatten().tolist()) == ids
    assert embedding.weight[sorted(ids)].std().item() == pytest.approx(before.std().item(), rel=0.05)


def test_a_tokenizer_without_number_tokens_changes_nothing():
    class Words:
        def get_vocab(self):
            return {"a": 0, "1": 1, "1000": 2}

    embedding = torch.nn.Embedding(3, 4)
    before = embedding.weight.detach().clone()
    smooth_numbers(embedding, Words())
    assert torch.equal(embedding.weight, before)


def test_the_same_seed_and_pictures_give_the_same_weights():
    one, again = (calibrated(images(4)).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)


@pytest.mark.parametrize("pictures", [[], [np.full((64, 64, 3), 128, np.uint8)] * 2, [make_item(0).images[0]]])
def test_few_or_blank_pictures_leave_finite_weights(pictures):
    assert all(value.isfinite().all() for value in calibrated(pictures).model.state_dict().values())


def test_pictures_of_several_sizes_are_fitted_by_the_commonest():
    pictures = images(4) + [picture[:32] for picture in images(2)]
    one, other = calibrated(pictures).model.state_dict(), calibrated(images(4)).model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_bfloat16_weights_are_fitted_as_exactly_as_they_can_be():
    one = calibrated(images(8)).model.model.visual.merger.proj2.weight
    half = calibrated(images(8), "bfloat16").model.model.visual.merger.proj2.weight
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), one, rtol=0.1, atol=0.01)
