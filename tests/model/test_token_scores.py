"""Log-probabilities of chosen tokens: against full logits, with shared pictures, in parts, and through adapters."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algos.batch import TokenBatch
from rl_lab.model import backbone as scores_module
from rl_lab.model.backbone import Pictures
from rl_lab.model.checkpoint import vlm_processor
from rl_lab.model.lora import Adapted
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration as Vlm
from tests.support.models import make_policy, picture, vlm_from_policy

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture
def vlm() -> Vlm:
    return vlm_from_policy(make_policy()).eval()


PICTURES = [picture(64, 64, 0), picture(32, 96, 1), picture(64, 32, 2)]
SHOWN = ((0,), (0,), (2, 0), ())


def prompts(vlm: Vlm) -> tuple[Any, list[list[int]]]:
    """Image processor, and prompts with the patch tokens of the pictures in `SHOWN`."""
    processor = vlm_processor(make_policy().config, load_tokenizer())
    processor.image_processor.max_pixels = 4 * processor.image_processor.max_pixels
    rows = []
    for shown in SHOWN:
        content: list[Any] = [{"type": "image", "image": PICTURES[index]} for index in shown]
        chat: list[Any] = [{"role": "user", "content": [*content, {"type": "text", "text": "where is the red cup"}]}]
        made: Any = processor.apply_chat_template([chat], tokenize=True, return_dict=True, add_generation_prompt=True)
        rows.append(made["input_ids"][0].tolist())
    return processor.image_processor, rows


def make_batch(vlm: Vlm, side: str = "right") -> TokenBatch:
    """Four rows with answers of different lengths; pictures are shared by rows."""
    processor, rows = prompts(vlm)
    answers = [list(range(200, 200 + count)) for count in (5, 3, 4, 7)]
    width = max(len(row) + len(answer) for row, answer in zip(rows, answers, strict=True))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    valid, learned = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        start = 0 if side == "right" else width - len(row) - len(answer)
        middle, end = start + len(row), start + len(row) + len(answer)
        ids[index, start:end] = torch.tensor(row + answer)
        valid[index, start:end], learned[index, middle:end] = True, True
    return TokenBatch(
        input_ids=ids,
        attention_mask=valid,
        completion_mask=learned,
        visual=Pictures.of_images(PICTURES, SHOWN, processor),
    )


def by_full_logits(vlm: Vlm, batch: TokenBatch) -> Tensor:
    """Logits [B, S, V] of the token before each, with every row's pictures given to it."""
    parts = batch.visual.pixels.split([np.prod(grid) for grid in batch.visual.grids])
    order = [index for row in batch.visual.shown for index in row]
    logits = vlm(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=torch.cat([parts[index] for index in order]),
        image_grid_thw=torch.tensor([batch.visual.grids[index] for index in order]),
    ).logits
    return logits.roll(1, dims=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_log_probabilities_and_entropies_are_those_of_the_full_logits(vlm: Vlm, side: str) -> None:
    batch = make_batch(vlm, side)
    with torch.no_grad():
        found = vlm.token_logprobs(batch, entropy=True)
        full = by_full_logits(vlm, batch).log_softmax(-1)
    expected = full.gather(2, batch.input_ids[..., None])[..., 0] * batch.completion_mask
    torch.testing.assert_close(found.logprobs, expected, **CLOSE)
    assert found.entropy is not None
    torch.testing.assert_close(found.entropy, -(full.exp() * full).sum(-1) * batch.completion_mask, **CLOSE)
    assert found.logprobs[batch.completion_mask].lt(0).all()


def test_a_temperature_gives_the_distribution_that_the_engine_samples_from(vlm: Vlm) -> None:
    batch = make_batch(vlm)
    with torch.no_grad():
        found = vlm.token_logprobs(batch, temperature=0.7).logprobs
        logits = by_full_logits(vlm, batch) / 0.7
    ids = vlm.config.special_token_ids
    logits[..., [ids["image"], ids["video"]]] = -torch.inf
    expected = logits.log_softmax(-1).gather(2, batch.input_ids[..., None])[..., 0]
    torch.testing.assert_close(found[batch.completion_mask], expected[batch.completion_mask], **CLOSE)


def test_selected_rows_keep_their_own_pictures(vlm: Vlm) -> None:
    batch = make_batch(vlm)
    with torch.no_grad():
        whole = vlm.token_logprobs(batch).logprobs
        for rows in ([2], [3], [1, 0], [2, 3]):
            part = batch.select(torch.tensor(rows))
            torch.testing.assert_close(vlm.token_logprobs(part).logprobs, whole[rows], **CLOSE)
    assert len(batch.select(torch.tensor([1, 0])).visual.grids) == 1


def gradients(vlm: Vlm, batch: TokenBatch) -> dict[str, Tensor]:
    vlm.zero_grad()
    vlm.token_logprobs(batch, temperature=1.0, entropy=True).logprobs.sum().backward()
    return {name: value.grad.clone() for name, value in vlm.named_parameters() if value.grad is not None}


def test_logits_made_in_parts_give_the_same_gradients(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(vlm)
    whole = gradients(vlm, batch)
    monkeypatch.setattr(scores_module, "LOGITS_AT_ONCE", 3 * vlm.config.vlm_sizes.vocab)
    parts = gradients(vlm, batch)
    assert whole.keys() == parts.keys()
    assert any("visual" in name for name in whole)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-4, rtol=1e-3)


def test_the_policy_scores_text_with_the_same_weights(vlm: Vlm) -> None:
    batch = make_batch(vlm)
    policy = make_policy().eval()
    with torch.no_grad():
        torch.testing.assert_close(policy.token_logprobs(batch).logprobs, vlm.token_logprobs(batch).logprobs, **CLOSE)


def test_adapters_start_as_the_reference_and_leave_it_alone(vlm: Vlm) -> None:
    batch = make_batch(vlm)
    adapted = Adapted(vlm, ("vlm",), rank=2, alpha=4.0, targets=("attention",))
    before = adapted.reference.token_logprobs(batch).logprobs
    torch.testing.assert_close(adapted.token_logprobs(batch).logprobs, before)
    with torch.no_grad():
        for _, parameter in adapted.named_parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(adapted.reference.token_logprobs(batch).logprobs, before)
    assert not torch.allclose(adapted.token_logprobs(batch).logprobs, before)


def test_marking_a_token_that_nothing_predicts_is_an_error(vlm: Vlm) -> None:
    batch = make_batch(vlm)
    batch.completion_mask[0, 0] = True
    with pytest.raises(ValueError, match="first token of a row"):
        vlm.token_logprobs(batch)
    batch = make_batch(vlm)
    batch.completion_mask[:, -1] = True
    with pytest.raises(ValueError, match="marks padding"):
        vlm.token_logprobs(batch)
