"""The cases of the golden set for the vision-language model, at the tolerances stated there."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rl_lab.benchmarks.golden import (
    HIDDEN,
    LANGUAGE,
    LOSS,
    golden_path,
    language_inputs,
    language_tensors,
    load_language_model,
    valid_tokens,
)
from rl_lab.model.backbone import join_pixels
from rl_lab.model.layout import frame_grids

PADDED = LANGUAGE[-1]


def having(key: str) -> list[str]:
    """Cases that hold a tensor; at least one."""
    found = [name for name in LANGUAGE if key in language_tensors(name)]
    assert found, key
    return found


def assert_valid_close(actual: Tensor, expected: Tensor, where: Tensor) -> None:
    torch.testing.assert_close(actual[where], expected[where], **HIDDEN)


@pytest.mark.parametrize("name", LANGUAGE)
def test_segments_are_the_reference_segments(name: str) -> None:
    given = language_inputs(language_tensors(name))
    grids = {key: given.get(key) for key in ("image_grid_thw", "video_grid_thw")}
    layout = load_language_model().model.layout(given["input_ids"], given.get("attention_mask"), **grids)
    for row, spans in enumerate(layout.spans):
        assert [list(span) for span in spans] == language_tensors(name)[f"out.visual_segments.{row}"].tolist()


@pytest.mark.parametrize("name", having("out.visual_features.0"))
def test_visual_features_agree(name: str) -> None:
    given, case = language_inputs(language_tensors(name)), language_tensors(name)
    pixels = join_pixels(given.get("pixel_values"), given.get("pixel_values_videos"))
    assert pixels is not None
    grids = frame_grids(given.get("image_grid_thw"), given.get("video_grid_thw"))
    expected = [case[f"out.visual_features.{index}"] for index in range(len(grids))]
    found = load_language_model().model.visual.encode_patches(pixels, grids)
    torch.testing.assert_close(found, torch.cat(expected), **HIDDEN)


@pytest.mark.parametrize("name", LANGUAGE)
def test_embeddings_hidden_states_and_logits_agree(name: str) -> None:
    case = language_tensors(name)
    out = load_language_model()(**language_inputs(case), output_hidden_states=True)
    where, states = valid_tokens(case), out.hidden_states
    last = len(states) - 1
    layers = {f"out.hidden_layer{index}": states[index + 1] for index in range(last - 1)}
    named = {"out.embeds": states[0], **layers, "out.last_hidden_normed": states[last], "out.logits": out.logits}
    for key in named.keys() & case.keys():
        assert_valid_close(named[key], case[key], where)
    if "out.logits_last4" in case:
        kept = load_language_model()(**language_inputs(case), logits_to_keep=4).logits
        assert_valid_close(kept, case["out.logits_last4"], where[:, -4:])
    assert {"out.logits", "out.logits_last4"} & case.keys()


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_last_layer_agrees_before_the_norm(name: str) -> None:
    case, given = language_tensors(name), language_inputs(language_tensors(name))
    key = f"out.hidden_layer{load_language_model().config.vlm_sizes.num_layers - 1}"
    layout = load_language_model().model.layout(
        given["input_ids"], given.get("attention_mask"), given.get("image_grid_thw"), given.get("video_grid_thw")
    )
    pixels = join_pixels(given.get("pixel_values"), given.get("pixel_values_videos"))
    hidden = load_language_model().model.run(given["input_ids"], layout, pixels)
    assert_valid_close(layout.source.scatter(hidden), case[key], valid_tokens(case))


def released_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of the released code, labels [B, S] are first reduced to the valid ones (>= 0) and shifted then.

    So a row's first label is never predicted, and answers are chained across gaps and rows. Train with the loss of
    `HunYuanVLMoTForConditionalGeneration`, which shifts within the row.
    """
    valid = labels.flatten() >= 0
    kept, targets = logits.flatten(0, 1)[valid], labels.flatten()[valid]
    return F.cross_entropy(kept[:-1].float(), targets[1:])


@pytest.mark.parametrize("name", having("in.labels"))
def test_the_released_loss_is_reproduced(name: str) -> None:
    case = language_tensors(name)
    loss = released_loss(load_language_model()(**language_inputs(case)).logits, case["in.labels"])
    torch.testing.assert_close(loss.reshape(-1), case["out.loss"].reshape(-1), **LOSS)


@pytest.mark.parametrize("name", having("out.decode_ids"))
def test_greedy_generation_with_a_cache_gives_the_reference_tokens_and_logits(name: str) -> None:
    case = language_tensors(name)
    expected = case["out.decode_ids"]
    prompt = language_inputs(case)
    length = expected.shape[1]
    vlm: Any = load_language_model()
    out = vlm.generate(
        **prompt,
        do_sample=False,
        max_new_tokens=length + 1,
        min_new_tokens=length + 1,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new = out.sequences[:, prompt["input_ids"].shape[1] :]
    assert torch.equal(new[:, :length], expected)
    torch.testing.assert_close(torch.stack(out.logits[1:], dim=1), case["out.decode_logits"], **HIDDEN)


def test_decoding_a_padded_batch_gives_the_right_logits_and_not_the_reference_ones() -> None:
    case = language_tensors(PADDED)
    given, fed = language_inputs(case), case["in.decode_ids"]
    out = load_language_model()(**given, use_cache=True)
    found = []
    mask = given["attention_mask"]
    for step in range(fed.shape[1]):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        out = load_language_model()(fed[:, step : step + 1], attention_mask=mask, past_key_values=out.past_key_values)
        found.append(out.logits)
    logits = torch.cat(found, dim=1)
    torch.testing.assert_close(logits, case["out.decode_logits"], **HIDDEN)
    wrong = case["out.decode_logits_reference_cached"]
    assert not torch.allclose(logits[1], wrong[1], **HIDDEN), "the reference lets padding dilute the softmax"


def test_the_config_says_what_the_tokenizer_and_the_tensors_say() -> None:
    about = json.loads(golden_path("meta.json").read_text())
    ids, dims = about["special_token_ids"], about["dims"]
    config = load_language_model().config
    assert config.special_token_ids["row_end"] == ids["nl"] and config.video_token_id == ids["vid"]
    assert (config.vision_sizes.mlp, config.vision_sizes.position_grid) == (
        load_language_model().model.visual.vision_tower.blocks[0].mlp.fc1.out_features,
        dims["pos"],
    )
