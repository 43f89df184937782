"""Named sizes: three that train from scratch with our tokenizer, with their starting values, and the released one.

A model with random weights is to learn to see and to name numbers in minutes. With the default start, the visual tokens
of different pictures are nearly the same vector (in the nano preset their spread over pictures is a tenth of their
size), and the 1001 number tokens have nothing in common with their neighbours, so that each must be learned from its
own few examples. Only values are set here; a checkpoint looks as always.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rl_lab.model.backbone import VisionLanguageModel
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.tokenizer import NUMBERS, load_tokenizer, special_token_ids
from rl_lab.model.vision import Run

_SMALL_MODELS = {
    "prediction": "action",
    "time_density": "uniform",
    "loss_weight_clip": 0.3,
    "visual_segment_isolation": True,
}
"""What small models learn much faster with (a prototype: 56 % of episodes against 18 % with the velocity)."""

_SIZES = {
    "nano": (8, 64, 28, (96, 2, 3, 384, 4), (128, 256), (128, 256, 3, 4, 2, 32), 0.05),
    "small": (16, 128, 32, (192, 4, 6, 768, 8), (192, 512), (256, 640, 4, 4, 2, 64), 0.04),
    "mini": (20, 224, 64, (384, 6, 6, 1536, 14), (256, 640), (512, 1024, 6, 8, 2, 64), 0.03),
}
"""Commands of a chunk, side of the images, tokens of an instruction; width, depth, heads, MLP and position grid of the
vision tower; width and MLP of the expert; the arguments of `_language`; standard deviation of the starting weights."""


def _small_model(name: str) -> dict[str, Any]:
    chunk, side, length, (width, depth, heads, mlp, grid), expert, language, std = _SIZES[name]
    return {
        **_SMALL_MODELS,
        "chunk_size": chunk,
        "resize_imgs_with_padding": [side, side],
        "tokenizer_max_length": length,
        "vision_width": width,
        "vision_depth": depth,
        "vision_heads": heads,
        "vision_mlp": mlp,
        "vision_position_grid": grid,
        "proj_width": expert[0],
        "expert_intermediate_size": expert[1],
        "vlm_config_dict": _language(*language, **_own_tokenizer(std)),
    }


def _language(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int, **rest: Any
) -> dict:
    return {
        "model_type": "hunyuan_vl_mot",
        "text_config": {
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "dynamic", "alpha": 1000.0},
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            **rest,
        },
    }


def _own_tokenizer(initializer_range: float) -> dict[str, Any]:
    tokenizer = load_tokenizer()
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": initializer_range,
    }


def _mot_2b() -> dict[str, Any]:
    """Released sizes; every field not given here has its released value as the default."""
    vocabulary = {"vocab_size": 120818, "bos_token_id": 120000, "eos_token_id": 120020, "pad_token_id": 120002}
    return {
        "chunk_size": 50,
        "vlm_config_dict": _language(2048, 6144, 32, 16, 4, 128, initializer_range=0.02, **vocabulary),
        "special_token_ids": {
            "bos": 120000,
            "user": 120006,
            "vision_start": 120684,
            "vision_end": 120685,
            "row_end": 120689,
            "image": 120687,
            "video": 120688,
            "latent": 120690,
            "pad": 120002,
            "eos": 120020,
        },
    }


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: partial(_small_model, name) for name in _SIZES},
    "mot-2b": _mot_2b,
}


def preset_config(name: str, **overrides: Any) -> HyVLAConfig:
    """Config of a preset with fields replaced; `chunk_size` sets `n_action_steps` as well.

    ValueError for an unknown name or field.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown model preset {name!r}; choose one of {', '.join(PRESETS)}")
    unknown = sorted(overrides.keys() - {item.name for item in dataclasses.fields(HyVLAConfig)})
    if unknown:
        raise ValueError(f"unknown model options {unknown}; see rl_lab.model.config.HyVLAConfig for the fields")
    fields = PRESETS[name]() | overrides
    fields.setdefault("n_action_steps", fields["chunk_size"])
    if "special_token_ids" not in fields:
        fields["special_token_ids"] = special_token_ids(load_tokenizer())
    return HyVLAConfig(**fields)


POSITION_STD = 0.3
"""Of the position embedding, beside patch embeddings of standard deviation 1."""

TOKEN_STD = 0.3
"""Of visual tokens over pictures and places."""

SPREAD_FLOOR = 1e-6
"""Standard deviation below which outputs count as equal."""

SMOOTHING = (10.0, 40.0, 160.0)
"""Widths over which the embeddings of numbers change, as standard deviations of Gaussians."""


@torch.no_grad()
def calibrate_vision(model: VisionLanguageModel, pixels: Tensor, grid: tuple[int, int]) -> None:
    """Layer-sequential unit variance (arXiv:1511.06422) of patch embedding and merger, on pictures of one size.

    `pixels` [N, 3 * p * p] holds the patches of the pictures as the processor cuts them, `grid` their height and width
    in patches. Afterwards patch embeddings have mean 0 and standard deviation 1 in every dimension, and visual tokens
    mean 0 and `TOKEN_STD` (before the GELU of the merger: 1).
    """
    tower, merger = model.visual.vision_tower, model.visual.merger
    _standardise(tower.patch_embed.proj, pixels, 1.0)
    tower.pos_embed.mul_(POSITION_STD / tower.pos_embed.std())
    features = tower(pixels, [Run(len(pixels) // (grid[0] * grid[1]), *grid)])
    _standardise(merger.proj1, features, 1.0)
    inside: list[Tensor] = []
    handle = merger.proj2.register_forward_pre_hook(lambda layer, inputs: inside.append(inputs[0]))
    merger(features)
    handle.remove()
    _standardise(merger.proj2, inside[0], TOKEN_STD)


def _standardise(layer: nn.Linear | nn.Conv2d, inputs: Tensor, std: float) -> None:
    """Scale and shift a layer: every output gets mean 0 and this standard deviation on the inputs [N, features].

    Outputs that do not differ over the inputs, as of a single patch or of blank pictures, are only shifted.
    """
    weight = layer.weight.flatten(1)
    outputs = (inputs - inputs.mean(0)) @ weight.T
    spread = outputs.std(0) if len(outputs) > 1 else outputs[0]
    scale = torch.where(spread > SPREAD_FLOOR, std / spread, 1.0)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    cast(Tensor, layer.bias).copy_(-(layer.weight.flatten(1) @ inputs.mean(0)))


@torch.no_grad()
def smooth_numbers(
    embedding: nn.Embedding, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator | None = None
) -> None:
    """Embeddings of the number tokens 0..1000 as smooth random functions of the number, of the size they had.

    e(n) = s sum_w g_w(n) / std(g_w), g_w white noise over the numbers convolved with a Gaussian of width w. A tokenizer
    without these tokens changes nothing.
    """
    vocabulary = tokenizer.get_vocab()
    ids: Sequence[int] = [vocabulary[number] for number in NUMBERS if number in vocabulary]
    if len(ids) < len(NUMBERS):
        return
    numbers = torch.arange(float(len(NUMBERS)))
    distance = numbers[:, None] - numbers
    total = torch.zeros(len(NUMBERS), embedding.embedding_dim)
    for width in SMOOTHING:
        smooth = torch.exp(-0.5 * (distance / width) ** 2) @ torch.randn(total.shape, generator=generator)
        total += smooth / smooth.std()
    embedding.weight[ids] = (total / total.std() * embedding.weight.std()).to(embedding.weight)
