"""What callers of transformers expect of the models: a call, and what it gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from torch import Tensor

from rl_lab.model.backbone import VisionLanguageModel
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration as Vlm
from rl_lab.model.vlm_config import HyVLMConfig
from tests.model.test_vlm import CLOSE, Batch, batch_of, chats
from tests.support.models import make_observations, make_policy, make_vlm

IDS = torch.arange(20, 30)[None]


@pytest.fixture(scope="module")
def batch(processor: HunYuanVLMoTProcessor) -> Batch:
    return batch_of(processor, chats())


@pytest.fixture(scope="module")
def folder(vlm: Vlm, processor: HunYuanVLMoTProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with weights of a variant, in a folder inside another."""
    outer = tmp_path_factory.mktemp("conventions")
    vlm.save_pretrained(outer / "inner", variant="fp32")
    processor.save_pretrained(outer / "inner")
    return outer


LOADED: dict[str, Callable[[Any], object]] = {
    "pretrained_model_name_or_path": lambda model: isinstance(model, Vlm),
    "dtype": lambda model: model.dtype == torch.bfloat16,
    "config": lambda model: isinstance(model.config, HyVLMConfig),
    "use_cache": lambda model: model(IDS).past_key_values.get_seq_length() == IDS.shape[1],
    "output_attentions": lambda model: len(model(IDS).attentions) == model.config.text.num_hidden_layers,
    "output_loading_info": lambda loaded: isinstance(loaded[0], Vlm) and not loaded[1]["missing_keys"],
    "attn_implementation": lambda model: model.config._attn_implementation == "sdpa",
}
VALUES = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}


@pytest.mark.parametrize("option", LOADED)
def test_an_option_of_loading(folder: Path, option: str) -> None:
    options = {"pretrained_model_name_or_path": folder, "subfolder": "inner", "variant": "fp32"}
    value = folder / "inner" if option == "config" else VALUES.get(option, True)
    if option != "pretrained_model_name_or_path":
        options[option] = value
    assert LOADED[option](Vlm.from_pretrained(**options))


def test_weights_of_another_variant_are_named_as_missing(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.fp16\.safetensors is missing"):
        Vlm.from_pretrained(folder, subfolder="inner", variant="fp16")


@pytest.mark.parametrize("part", ["vlm", "base"])
@pytest.mark.parametrize(
    ("option", "shape"),
    [
        ("output_hidden_states", lambda rows, length, sizes: (rows, length, sizes.hidden)),
        ("output_attentions", lambda rows, length, sizes: (rows, sizes.num_heads, length, length)),
    ],
)
def test_what_is_asked_for_is_given_of_every_layer(
    vlm: Vlm, batch: Batch, part: str, option: str, shape: Callable[..., tuple[int, ...]]
) -> None:
    model: Any = vlm if part == "vlm" else vlm.model
    given = model(**batch, **{option: True})
    found, sizes = given[option.removeprefix("output_")], vlm.config.vlm_sizes
    assert len(found) == sizes.num_layers + (option == "output_hidden_states")
    assert {tuple(layer.shape) for layer in found} == {shape(*batch["input_ids"].shape, sizes)}
    assert isinstance(model(**batch, return_dict=False), tuple)
    plain = model(**batch)
    assert getattr(plain, option.removeprefix("output_")) is None and torch.equal(plain[0], given[0])
    if part == "vlm":
        vlm.config._attn_implementation = "eager"
        setattr(vlm.config, option, True)
        assert len(vlm(**batch)[option.removeprefix("output_")]) == len(found)
        setattr(vlm.config, option, False)


def test_attention_weights_are_those_of_the_pass(vlm: Vlm, batch: Batch) -> None:
    """They sum to 1 over what a token sees: itself and before, or its own picture; after a cache likewise."""
    valid = batch["attention_mask"].bool()
    for layer in vlm(**batch, output_attentions=True).attentions:
        torch.testing.assert_close(
            layer.sum(-1)[valid[:, None].expand(layer.shape[:3])],
            torch.ones(()).expand(int(valid.sum()) * layer.shape[1]),
        )
    grids = batch["image_grid_thw"], batch["video_grid_thw"]
    spans = vlm.model.layout(batch["input_ids"], batch["attention_mask"], *grids).spans
    first = vlm(**batch, output_attentions=True).attentions[0]
    ((start, end),) = spans[1]
    inside = first[1, :, start:end]
    assert (inside[..., start:end] > 0).all() and not inside[..., :start].any() and not inside[..., end:].any()
    whole = vlm(IDS, output_attentions=True).attentions
    past = vlm(IDS[:, :6], use_cache=True).past_key_values
    later = vlm(IDS[:, 6:], past_key_values=past, output_attentions=True).attentions
    for one, other in zip(whole, later, strict=True):
        torch.testing.assert_close(one[:, :, 6:], other, **CLOSE)


def test_embeddings_do_as_ids(vlm: Vlm, batch: Batch) -> None:
    embedded = {name: value for name, value in batch.items() if name != "input_ids"}
    embedded["inputs_embeds"] = vlm.get_input_embeddings()(batch["input_ids"])
    expected = vlm(**batch).logits
    assert torch.equal(vlm(**embedded).logits, expected)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 3, "eos_token_id": None}
    generate: Any = vlm.generate
    assert torch.equal(generate(**embedded, **options), generate(**batch, **options)[:, -3:])
    for wrong in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": embedded["inputs_embeds"]}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            vlm(**wrong)


def test_packed_rows_give_what_their_sequences_give(vlm: Vlm, processor: HunYuanVLMoTProcessor) -> None:
    alone = [batch_of(processor, [chat]) for chat in chats()[:3]]
    packed: Batch = {
        "input_ids": torch.cat([one["input_ids"] for one in alone], dim=1),
        "position_ids": torch.cat([torch.arange(one["input_ids"].shape[1]) for one in alone])[None],
        "pixel_values": torch.cat([one["pixel_values"] for one in alone[1:]]),
        "image_grid_thw": torch.cat([one["image_grid_thw"] for one in alone[1:]]),
    }
    expected = torch.cat([vlm(**one).logits for one in alone], dim=1)
    torch.testing.assert_close(vlm(**packed).logits, expected, **CLOSE)
    assert (vlm(**packed | {"position_ids": None}).logits - expected).abs().max() > 1e-3
    with pytest.raises(ValueError, match="pack several sequences into a row"):
        vlm(**packed, use_cache=True)
    with pytest.raises(ValueError, match=r"position_ids has shape \[3, 1, 10\]; expected \[rows, tokens\]"):
        vlm(IDS, position_ids=torch.zeros(3, 1, 10, dtype=torch.long))


def test_other_embeddings_take_the_place_of_ours() -> None:
    vlm = make_vlm()
    head = torch.nn.Linear(vlm.config.text.hidden_size, 7, bias=False)
    vlm.set_output_embeddings(head)
    assert vlm.get_output_embeddings() is head and vlm(IDS).logits.shape[-1] == 7


def action_losses(policy: HyVLAPolicy) -> Tensor:
    noise = torch.randn(2, policy.chunk_size, policy.action_dim, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([0.2, 0.9])
    return policy.flow_losses(policy.encode(make_observations(policy, 2)), noise[..., :20], noise, time)


def test_weights_that_wait_on_the_cpu_are_fetched_where_they_are_used(batch: Batch) -> None:
    """With accelerate's hooks a weight is there only while its own module is called."""
    vlm, policy = make_vlm(), make_policy()
    with torch.no_grad():
        expected = vlm(**batch).logits, action_losses(policy)
        for model in (vlm, policy):
            cpu_offload(model, execution_device=torch.device("cpu"))
            assert all(parameter.is_meta for parameter in model.parameters())
        found = vlm(**batch).logits, action_losses(policy)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["vlm", "policy"])
def test_adapters_on_every_linear_layer_take_part(batch: Batch, kind: str) -> None:
    model: Any = make_vlm() if kind == "vlm" else make_policy()
    expected = model(**batch).logits if kind == "vlm" else action_losses(model)
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    adapters = {name: value for name, value in adapted.named_parameters() if "lora_B" in name}
    language: VisionLanguageModel = model.vision_language_model
    assert any("predictor.0" in name for name in adapters) and language.visual.merger.pooler
    result = adapted(**batch).logits if kind == "vlm" else action_losses(model)
    torch.testing.assert_close(result, expected, **CLOSE)
    result.square().sum().backward()
    # Past the keys and values of the last language layer a policy reads nothing, and of patches neither does a VLM.
    last = f"language_model.model.layers.{model.config.vlm_sizes.num_layers - 1}."
    unread = ("lm_head", "expert", f"{last}") if kind == "policy" else (last,)
    idle = [name for name, value in adapters.items() if value.grad is None or not value.grad.any()]
    assert [name for name in idle if not any(part in name for part in unread)] == []
