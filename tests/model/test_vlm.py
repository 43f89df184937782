"""The vision-language model on random weights: padding, packing, caches, gradients and generation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import vlm_processor
from rl_lab.model.layout import build_layout
from rl_lab.model.mot import attend, attention_bias, rotary
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration as Vlm
from tests.support.models import make_policy, picture, vlm_from_policy

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}
Batch = dict[str, Tensor]


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return vlm_from_policy(make_policy()).eval()


@pytest.fixture(scope="module")
def processor() -> HunYuanVLMoTProcessor:
    config = make_policy().config
    made = vlm_processor(config, load_tokenizer())
    made.image_processor.max_pixels = 4 * made.image_processor.max_pixels
    return made


def chats() -> list[list[dict[str, Any]]]:
    """Text alone; one image; two images of different size with text between; a video and an image."""
    image = [
        {"type": "image", "image": picture(*size, seed)} for seed, size in enumerate([(64, 64), (32, 96), (64, 32)])
    ]
    video = {"type": "video", "video": [picture(32, 64, seed) for seed in range(3)]}
    say = {"type": "text", "text": "where is the red cup"}
    contents: list[list[dict[str, Any]]] = [[say], [image[0], say], [image[1], say, image[2]], [video, say, image[0]]]
    return [[{"role": "user", "content": content}] for content in contents]


def batch_of(processor: HunYuanVLMoTProcessor, rows: list[Any], **options: Any) -> Batch:
    made: Any = processor.apply_chat_template(
        rows, tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs=options
    )
    return dict(made)


def generate(vlm: Any, batch: Batch, **options: Any) -> Tensor:
    """Token ids of prompts and answers."""
    return vlm.generate(**batch, **options)


def valid_logits(vlm: Vlm, batch: Batch) -> list[Tensor]:
    """Logits of the valid tokens of every row."""
    with torch.no_grad():
        logits = vlm(**batch).logits
    return [row[mask.bool()] for row, mask in zip(logits, batch["attention_mask"], strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_what_its_rows_give_one_by_one(
    vlm: Vlm, processor: HunYuanVLMoTProcessor, side: str
) -> None:
    together = valid_logits(vlm, batch_of(processor, chats(), padding_side=side))
    for row, logits in zip(chats(), together, strict=True):
        (alone,) = valid_logits(vlm, batch_of(processor, [row]))
        torch.testing.assert_close(logits, alone, **CLOSE)


def test_the_mask_formulation_gives_the_same(vlm: Vlm, processor: HunYuanVLMoTProcessor) -> None:
    batch = batch_of(processor, chats()[3:])
    ids = batch["input_ids"]
    grids = {name: batch[name] for name in ("image_grid_thw", "video_grid_thw")}
    layout = vlm.model.layout(ids, None, **grids)
    length = ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    assert len(layout.spans[0]) == 4, "three frames and an image"
    for start, end in layout.spans[0]:
        mask[start:end] = False
        mask[start:end, start:end] = True
    with torch.no_grad():
        expected = direct_logits(vlm, batch, mask)
        torch.testing.assert_close(vlm(**batch).logits, expected, **CLOSE)


def direct_logits(vlm: Vlm, batch: Batch, mask: Tensor) -> Tensor:
    """Logits [1, S, vocab] by both routes everywhere, a choice between them, and one mask [S, S]."""
    ids, tower = batch["input_ids"], vlm.model.language_model.model
    roles = vlm.config.special_token_ids
    is_image, is_video = ids[0] == roles["image"], ids[0] == roles["video"]
    visual, x = vlm.model.visual, tower.embed_tokens(ids)
    for where, kind, suffix in ((is_image, "image", ""), (is_video, "video", "_videos")):
        grids = [(h, w) for t, h, w in batch[f"{kind}_grid_thw"].tolist() for _ in range(t)]
        x[0, where] = visual.encode_patches(batch[f"pixel_values{suffix}"], grids)
    is_patch = (is_image | is_video)[None, :, None]
    rope = rotary(torch.arange(ids.shape[1])[None], tower.sizes.head_dim, tower.sizes.rope_base)
    bias = attention_bias(mask[None], x.dtype)
    for layer in tower:
        both = zip(layer.project(x, "vision"), layer.project(x, "text"), strict=True)
        q, k, v = (torch.where(is_patch[..., None], vision, text) for vision, text in both)
        attn = layer.self_attn
        out = attend(attn.queries(q, rope), attn.keys(k, rope).transpose(1, 2), v.transpose(1, 2), bias)
        x = torch.where(is_patch, layer.finish(x, out, "vision"), layer.finish(x, out, "text"))
    return vlm.model.language_model.lm_head(tower.norm(x))


def test_text_before_an_image_never_reaches_it_and_text_after_it_does_not_either(
    vlm: Vlm, processor: HunYuanVLMoTProcessor
) -> None:
    batch = batch_of(processor, chats()[1:2])
    with torch.no_grad():
        before = vlm(**batch, output_hidden_states=True).hidden_states[-1]
        changed = batch | {"input_ids": batch["input_ids"].clone()}
        changed["input_ids"][0, :1] = 300
        after = vlm(**changed, output_hidden_states=True).hidden_states[-1]
    ((start, end),) = vlm.model.layout(batch["input_ids"], None, batch["image_grid_thw"]).spans[0]
    torch.testing.assert_close(before[0, start:end], after[0, start:end], **CLOSE)
    assert (before[0, end:] - after[0, end:]).abs().max() > 1e-3


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_the_argmax_of_a_forward_pass_over_the_result(
    vlm: Vlm, processor: HunYuanVLMoTProcessor, use_cache: bool
) -> None:
    batch, new = batch_of(processor, chats()), 5
    result = generate(vlm, batch, do_sample=False, max_new_tokens=new, eos_token_id=None, use_cache=use_cache)
    mask = torch.cat([batch["attention_mask"], torch.ones(len(result), new, dtype=torch.long)], dim=1)
    with torch.no_grad():
        logits = vlm(**batch | {"input_ids": result, "attention_mask": mask}, logits_to_keep=new + 1).logits
    assert torch.equal(logits[:, :-1].argmax(-1), result[:, -new:])
    for row, chat in zip(result, chats(), strict=True):
        alone = generate(vlm, batch_of(processor, [chat]), do_sample=False, max_new_tokens=new, eos_token_id=None)
        assert torch.equal(alone[0, -new:], row[-new:])


def test_sampling_several_answers_repeats_each_rows_own_images(vlm: Vlm, processor: HunYuanVLMoTProcessor) -> None:
    batch = batch_of(processor, chats())
    options: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3}
    greedy = generate(vlm, batch, do_sample=False, **options)
    # With one choice left, sampling is greedy.
    sampled = generate(vlm, batch, do_sample=True, top_k=1, num_return_sequences=2, **options)
    assert torch.equal(sampled, greedy.repeat_interleave(2, dim=0))
    torch.manual_seed(0)
    free = generate(vlm, batch, do_sample=True, num_return_sequences=2, temperature=2.0, **options)
    assert not torch.equal(free, sampled)


def test_a_second_turn_with_an_image_continues_the_cache_also_after_padding(
    vlm: Vlm, processor: HunYuanVLMoTProcessor
) -> None:
    both = batch_of(processor, [chats()[1] * 2, chats()[2] * 2])
    ids, mask = both["input_ids"][:1], both["attention_mask"][:1]
    assert not mask.all(), "the first row is padded"
    pixels, grids = both["pixel_values"], both["image_grid_thw"]  # of two equal images for the first row
    count = int(grids[0].prod())
    turns = [{"pixel_values": pixels[i * count :][:count], "image_grid_thw": grids[i : i + 1]} for i in range(2)]
    cut = int((ids[0] == vlm.config.special_token_ids["user"]).nonzero()[-1])
    images = {"pixel_values": pixels[: 2 * count], "image_grid_thw": grids[:2]}
    with torch.no_grad():
        expected = vlm(ids, attention_mask=mask, **images).logits[0, cut:]
        past = vlm(ids[:, :cut], attention_mask=mask[:, :cut], use_cache=True, **turns[0]).past_key_values
        found = vlm(ids[:, cut:], attention_mask=mask, past_key_values=past, **turns[1]).logits[0]
    torch.testing.assert_close(found, expected, **CLOSE)


def test_labels_are_shifted_within_the_row(vlm: Vlm, processor: HunYuanVLMoTProcessor) -> None:
    batch = batch_of(processor, chats())
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :-6] = -100
    with torch.no_grad():
        out = vlm(**batch, labels=labels)
    logprobs = out.logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:, None].clamp(min=0))[..., 0]
    torch.testing.assert_close(out.loss, -logprobs[labels[:, 1:] >= 0].mean(), **CLOSE)


def test_a_layout_made_beforehand_changes_nothing(vlm: Vlm, processor: HunYuanVLMoTProcessor) -> None:
    batch = batch_of(processor, chats())
    layout = vlm.model.layout(
        batch["input_ids"], batch["attention_mask"], batch["image_grid_thw"], batch["video_grid_thw"]
    )
    pixels = {name: batch[name] for name in ("pixel_values", "pixel_values_videos")}
    with torch.no_grad():
        assert torch.equal(vlm(batch["input_ids"], layout=layout, **pixels).logits, vlm(**batch).logits)
        few = vlm(batch["input_ids"], layout=layout, logits_to_keep=torch.tensor([5, 9]), **pixels).logits
        assert torch.equal(few, vlm(**batch).logits[:, [5, 9]])


def train_once(processor: HunYuanVLMoTProcessor, rows: list[Any], checkpointing: bool = False) -> Vlm:
    """A model with the gradients of one step."""
    vlm = vlm_from_policy(make_policy()).train()
    if checkpointing:
        vlm.gradient_checkpointing_enable()
    batch = batch_of(processor, rows)
    vlm(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss.backward()
    return vlm


def test_gradients_reach_every_parameter_also_recomputed(processor: HunYuanVLMoTProcessor) -> None:
    plain, recomputed = (train_once(processor, chats(), checkpointing) for checkpointing in (False, True))
    last = f"layers.{plain.config.vlm_sizes.num_layers - 1}."
    for (name, parameter), (_, other) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None, name
        torch.testing.assert_close(other.grad, parameter.grad, **CLOSE)
        # Nothing reads a patch after the last layer: its own product and MLP there have no effect.
        unread = last in name and any(
            part in name for part in ("q_proj_v", "o_proj_v", "mlp_v", "attention_layernorm_v")
        )
        assert (parameter.grad.abs().max() > 0) or unread, name


def test_text_alone_gives_zero_and_not_missing_gradients_to_the_vision_weights(
    processor: HunYuanVLMoTProcessor,
) -> None:
    layer: Any = train_once(processor, chats()[:1]).model.language_model.model.layers[0]
    assert layer.mlp.up_proj.weight.grad.abs().max() > 0
    assert layer.mlp_v.up_proj.weight.grad.abs().max() == 0


def test_a_bfloat16_model_is_close(vlm: Vlm, processor: HunYuanVLMoTProcessor) -> None:
    batch = batch_of(processor, chats())
    rough = vlm_from_policy(make_policy().bfloat16()).eval()
    for exact, found in zip(valid_logits(vlm, batch), valid_logits(rough, batch), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


IDS = {"image": 1, "video": 2, "row_end": 3}


@pytest.mark.parametrize(
    ("tokens", "spans"),
    [
        ([9, 1, 1, 3, 1, 1, 3, 9], [(1, 7)]),  # rows and their separators
        ([1, 3, 9, 9, 1, 3], [(0, 2), (4, 6)]),  # at both ends
        ([9, 3, 1, 1, 3, 3, 9], [(2, 5)]),  # a separator belongs to the patches before it
        ([2, 3, 8, 7, 2, 3], [(0, 2), (4, 6)]),  # frames of a video
        ([9, 1, 1, 9], [(1, 3)]),  # no separator
        ([9, 9, 3], []),
    ],
)
def test_segments_run_from_the_first_patch_to_the_last_separator(
    tokens: list[int], spans: list[tuple[int, int]]
) -> None:
    images, videos = tokens.count(1), tokens.count(2)
    grids = [torch.tensor([[1, 2, 2 * count]]) if count else None for count in (images, videos)]
    ids = torch.tensor([tokens, tokens])
    twice = [None if grid is None else grid.repeat(2, 1) for grid in grids]
    layout = build_layout(ids, None, IDS, *twice)
    assert layout.spans == (tuple(spans), tuple(spans))


def test_a_batch_that_does_not_fit_its_images_is_refused() -> None:
    with pytest.raises(ValueError, match="the text holds 2 image patches but the images given need 1"):
        build_layout(torch.tensor([[1, 1, 3]]), None, IDS, torch.tensor([[1, 2, 2]]))
    with pytest.raises(ValueError, match="row 1 of the batch has no token"):
        build_layout(torch.tensor([[9], [9]]), torch.tensor([[1], [0]]), IDS)


@pytest.mark.parametrize("name", ["head_mask", "a_misspelt_option"])
def test_an_option_of_other_models_is_refused_by_name(vlm: Vlm, name: str) -> None:
    ids = torch.arange(20, 30)[None]
    for call in (vlm, vlm.model):
        with pytest.raises(ValueError, match=f"{name} is not an option here"):
            call(ids, **{name: ids})


def test_a_tuple_is_returned_where_one_is_asked_for(vlm: Vlm) -> None:
    ids = torch.arange(20, 30)[None]
    loss, logits = vlm(ids, labels=ids, return_dict=False)
    assert torch.equal(logits, vlm(ids).logits) and loss.ndim == 0


def test_a_resized_embedding_keeps_the_old_logits_and_survives_a_file(tmp_path: Path) -> None:
    policy = make_policy()
    vlm, ids = vlm_from_policy(policy).eval(), torch.arange(20, 30)[None]
    before = vlm(ids).logits
    vlm.resize_token_embeddings(before.shape[-1] + 16, mean_resizing=False)
    after = vlm(ids).logits
    assert torch.equal(after[..., :-16], before)
    assert vlm.get_output_embeddings().weight is vlm.get_input_embeddings().weight
    vlm.save_pretrained(tmp_path)
    assert torch.equal(Vlm.from_pretrained(tmp_path).eval()(ids).logits, after)
    assert vlm(ids, labels=ids).loss.isfinite()
    with pytest.raises(ValueError, match="a policy keeps the vocabulary of its checkpoint"):
        policy.resize_token_embeddings(10)
