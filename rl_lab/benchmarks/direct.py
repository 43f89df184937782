"""The models as an equation says them, to compare with: both branches of every layer for every token, one mask for all.

Same weights and building blocks as the model, tokens in the order of the sequence, nothing left out because nobody
reads it; instructions are padded to the config's `tokenizer_max_length`, as the released code pads them. What happens
after the prefix of a policy (state and action tokens) is the model's own code in both.
Letters: B rows, S tokens, D hidden, G key/value heads, d head size, K cached tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from algos.batch import ObservationBatch
from rl_lab.model.action_expert import Prefix
from rl_lab.model.layout import Layout, let_padding_see_itself, position_ids, prefix_layout, prefix_mask, prefix_valid
from rl_lab.model.mot import DecoderLayer, LayerCache, Route, Tower, attend, attention_bias, rotary
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration

ROUTES: tuple[Route, Route] = ("vision", "text")


def padded(observation: ObservationBatch, length: int, token: int = 0) -> ObservationBatch:
    """The observation with `token` behind its instructions up to `length`, as the released code pads them."""
    missing = length - observation.tokens.shape[1]
    tokens = F.pad(observation.tokens, (0, missing), value=token)
    return replace(observation, tokens=tokens, token_mask=F.pad(observation.token_mask, (0, missing)))


def direct_layer(
    layer: DecoderLayer,
    x: Tensor,
    is_patch: Tensor,
    rope: tuple[Tensor, Tensor],
    bias: Tensor,
    past: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B, S, D] of a layer, and its keys and values [B, G, K + S, d]; `is_patch` is bool [B, S, 1]."""
    attn = layer.self_attn
    routed = zip(*(layer.project(x, route) for route in ROUTES), strict=True)
    q, k, v = (torch.where(is_patch[..., None], vision, text) for vision, text in routed)
    keys, values = attn.keys(k, rope).transpose(1, 2), v.transpose(1, 2)
    if past is not None:
        keys, values = (torch.cat(pair, dim=2) for pair in zip(past, (keys, values), strict=True))
    attended = attend(attn.queries(q, rope), keys, values, bias)
    vision, text = (layer.finish(x, attended, route) for route in ROUTES)
    return torch.where(is_patch, vision, text), keys, values


def direct_tower(
    tower: Tower, x: Tensor, is_patch: Tensor, positions: Tensor, mask: Tensor, past: LayerCache | None = None
) -> tuple[Tensor, LayerCache]:
    """Residual stream [B, S, D] after the last layer, and keys and values; `mask` is bool [B, S, K + S]."""
    rope = rotary(positions, tower.sizes.head_dim, tower.sizes.rope_base)
    bias = attention_bias(mask, x.dtype)
    cache = LayerCache([], [])
    for index, layer in enumerate(tower):
        before = None if past is None else (past.keys[index], past.values[index])
        x, keys, values = direct_layer(layer, x, is_patch[..., None], rope, bias, before)
        cache.keys.append(keys)
        cache.values.append(values)
    return x, cache


class DirectPolicy:
    """A policy that computes its prefix directly; all else is the policy's own."""

    def __init__(self, policy: HyVLAPolicy) -> None:
        self.policy = policy
        self.flow_losses, self.sample_actions = policy.flow_losses, policy.sample_actions
        self.sample_noise, self.sample_time = policy.sample_noise, policy.sample_time
        self.chunk_size, self.action_dim = policy.chunk_size, policy.action_dim

    def encode(self, observation: ObservationBatch) -> Prefix:
        """As `HyVLAPolicy.encode`, with the tokens in the order of the sequence."""
        policy, num_language = self.policy, self.policy.config.tokenizer_max_length
        observation = padded(observation, num_language)
        layout = prefix_layout(policy.config.num_cameras, policy.config.token_grid, num_language, policy.device)
        stored = torch.cat([policy.embed_images(observation.images), policy.embed_text(layout, observation.tokens)], 1)
        valid = prefix_valid(layout, observation.token_mask, observation.images.shape[1])
        mask = let_padding_see_itself(prefix_mask(layout, valid, policy.config.visual_segment_isolation))
        order, valid = layout.stored, valid[:, layout.stored]
        tower = policy.model.vlm.language_model.model
        is_patch = (order < layout.num_patches).expand(len(stored), -1)
        _, cache = direct_tower(tower, stored[:, order], is_patch, position_ids(valid), mask[:, order][:, :, order])
        return Prefix(*cache.stacked(), valid, observation.state)


def segment_mask(spans: Sequence[Sequence[tuple[int, int]]], length: int, device: torch.device) -> Tensor:
    """Who sees whom in rows without padding, bool [B, S, S]: causal, but segments see themselves and nothing else."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril().repeat(len(spans), 1, 1)
    for row, segments in zip(mask, spans, strict=True):
        for start, end in segments:
            row[start:end] = False
            row[start:end, start:end] = True
    return mask


class DirectVLM:
    """Logits of a language model over rows of equal length without padding."""

    def __init__(self, model: HunYuanVLMoTForConditionalGeneration) -> None:
        self.model = model

    def prefill(self, input_ids: Tensor, layout: Layout, pixels: Tensor, mask: Tensor) -> tuple[Tensor, LayerCache]:
        """Residual stream [B, S, D] and cache of token ids [B, S] with the patches [N, 3 * p * p] of their images."""
        vlm = self.model.model
        is_patch = input_ids == self.model.config.special_token_ids["image"]
        tower, positions = vlm.language_model.model, torch.arange(input_ids.shape[1], device=input_ids.device)
        x = tower.embed_tokens(input_ids)
        x = x.masked_scatter(is_patch[..., None], vlm.visual.encode_patches(pixels.to(x.dtype), layout.grids))
        return direct_tower(tower, x, is_patch, positions.expand(len(x), -1), mask)

    def decode(self, token: Tensor, past: LayerCache) -> tuple[Tensor, LayerCache]:
        """The same for one more token [B, 1] of every row."""
        tower, length = self.model.model.language_model.model, past.keys[0].shape[2]
        is_patch = torch.zeros_like(token, dtype=torch.bool)
        mask = token.new_ones(len(token), 1, length + 1, dtype=torch.bool)
        return direct_tower(tower, tower.embed_tokens(token), is_patch, torch.full_like(token, length), mask, past)
