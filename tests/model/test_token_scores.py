"""Log-probabilities of chosen tokens: against full logits, with shared pictures, in parts, and through adapters."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algos.auxiliary import GlobalFeature, NextCode, SeeingText, fit_components
from algos.batch import FlowBatch, ObservationBatch, TokenBatch
from algos.cross_entropy import CrossEntropy
from algos.flow_matching import FlowMatching
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


def heads(hidden: int, patch_size: int) -> list[NextCode | GlobalFeature]:
    draw = torch.Generator().manual_seed(0)
    components = fit_components(torch.rand(9, 3 * 16 * 16, generator=draw))
    torch.manual_seed(0)
    return [NextCode(hidden, torch.rand(5, 3 * patch_size**2, generator=draw), 0.5), GlobalFeature(hidden, *components)]


def test_text_has_the_auxiliary_losses_that_actions_have_on_the_same_pictures() -> None:
    policy = make_policy(visual_segment_isolation=True).eval()
    vlm = vlm_from_policy(policy)
    own = heads(vlm.config.vlm_sizes.hidden, vlm.config.vision_sizes.patch_size)
    batch = make_batch(vlm)
    square = batch.select(torch.tensor([0, 1, 3]))
    views = torch.from_numpy(PICTURES[0]).movedim(-1, 0).expand(2, 3, -1, -1, -1)
    observation = ObservationBatch(views, torch.zeros(2, 20), torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3) > 0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        chunks = FlowBatch(observation, torch.zeros(2, policy.chunk_size, 20))
        _, flow = FlowMatching(heads=own).loss(policy, chunks, draw)
        total, text = SeeingText(CrossEntropy(), own).loss(vlm, square, draw)
    for head in own:
        torch.testing.assert_close(text[f"vision/{head.name}"], flow[f"flow/{head.name}"], **CLOSE)
    expected = text["text/cross_entropy"] + 0.5 * text["vision/code"] + text["vision/global"]
    assert total == pytest.approx(float(expected)) and square.num_pictures == 2


def test_pictures_of_several_sizes_are_seen_as_they_were_cut_and_parts_add_up(vlm: Vlm) -> None:
    batch = make_batch(vlm)
    objective = SeeingText(CrossEntropy(), heads(vlm.config.vlm_sizes.hidden, vlm.config.vision_sizes.patch_size))
    with torch.no_grad():
        seen = vlm.token_logprobs(batch, pictures=True).pictures
        found = [vlm.token_logprobs(batch.select(torch.tensor([row])), pictures=True).pictures for row in range(4)]
        whole, _ = objective.loss(vlm, batch, torch.Generator())
        counts = objective.denominator(batch)
        some = [batch.select(torch.tensor(rows)) for rows in ([0, 2], [1], [3])]
        parts = [objective.loss(vlm, part, torch.Generator(), counts) for part in some]
    shown = {tuple(one.images.shape): one for one in seen}
    cut = [torch.from_numpy(image).movedim(-1, 0) / 255 for image in PICTURES]
    assert counts[1] == 4 and shown.keys() == {(3, 3, 64, 64), (1, 3, 64, 32), (0, 3, 32, 96)}
    torch.testing.assert_close(shown[3, 3, 64, 64].images, cut[0].expand(3, -1, -1, -1))
    torch.testing.assert_close(shown[1, 3, 64, 32].images[0], cut[2])
    torch.testing.assert_close(shown[3, 3, 64, 64].vision[2:], found[2][0].vision, **CLOSE)
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), rel=1e-5)
    assert not any(name.startswith("vision/") for name in parts[2][1]), "a row of text alone has nothing to tell"


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
