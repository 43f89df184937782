"""The policy as one attention over [prefix; suffix] in sequence order: the direct formulation, for comparison.

Same weights and building blocks as the model, but no cache, no stored order, and the mask and positions of the whole
sequence.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from algos.batch import ObservationBatch
from rl_lab.model.layout import (
    PrefixLayout,
    let_padding_see_itself,
    position_ids,
    prefix_layout,
    prefix_mask,
    prefix_valid,
)
from rl_lab.model.mot import attend, attention_bias, rotary
from rl_lab.model.policy import HyVLAPolicy


@dataclass
class JointForward:
    """Everything the golden set records of one forward pass, in sequence order."""

    layout: PrefixLayout
    valid: Tensor
    mask: Tensor
    positions: Tensor
    prefix_embs: Tensor
    suffix_embs: Tensor
    prefix_hidden: list[Tensor]
    suffix_hidden: list[Tensor]
    normed_actions: Tensor
    velocity: Tensor


def joint_mask(layout: PrefixLayout, valid: Tensor, isolation: bool, num_actions: int) -> Tensor:
    """The mask of the whole policy in sequence order, [prefix; state; actions], bool [B, P+1+C, P+1+C].

    Three kinds of block: a prefix token, the state, all actions; a block sees itself and earlier blocks.
    """
    prefix = prefix_mask(layout, valid, isolation)[:, layout.stored][:, :, layout.stored]
    batch, length = valid.shape
    size = length + 1 + num_actions
    mask = torch.zeros(batch, size, size, dtype=torch.bool, device=valid.device)
    mask[:, :length, :length] = prefix
    mask[:, length:, :length] = valid[:, layout.stored][:, None, :]
    mask[:, length:, length] = True
    mask[:, length + 1 :, length + 1 :] = True
    return mask


def joint_forward(policy: HyVLAPolicy, batch: ObservationBatch, x_t: Tensor, time: Tensor) -> JointForward:
    """Velocity of noisy chunks, one row per observation, with every intermediate result."""
    model, config = policy.model, policy.config
    language, expert = model.vlm.language_model.model, model.expert
    layout = prefix_layout(config.num_cameras, config.token_grid, batch.tokens.shape[1], policy.device)
    valid = prefix_valid(layout, batch.token_mask, batch.images.shape[1])
    mask = joint_mask(layout, valid, config.visual_segment_isolation, x_t.shape[1])
    sequence_valid = F.pad(valid[:, layout.stored], (0, 1 + x_t.shape[1]), value=True)
    positions = position_ids(sequence_valid)
    rope = rotary(positions, language.sizes.head_dim, language.sizes.rope_base)
    bias = attention_bias(let_padding_see_itself(mask), torch.float32)

    stored = torch.cat([policy.embed_images(batch.images), policy.embed_text(layout, batch.tokens)], dim=1)
    prefix = stored[:, layout.stored]
    suffix = torch.cat([model.embed_state(batch.state), model.embed_actions(x_t, time)], dim=1)
    embeddings = prefix, suffix
    is_patch = (layout.stored < layout.num_patches)[:, None]
    prefix_hidden: list[Tensor] = []
    suffix_hidden: list[Tensor] = []
    for vlm_layer, expert_layer in zip(language, expert, strict=True):
        both = [vlm_layer.project(prefix, route) for route in ("vision", "text")]
        heads = [torch.where(is_patch[..., None], vision, text) for vision, text in zip(*both, strict=True)]
        joined = zip(heads, expert_layer.project(suffix, "vision"), strict=True)
        q, k, v = (torch.cat(pair, dim=1) for pair in joined)
        attn = vlm_layer.self_attn
        out = attend(attn.queries(q, rope), attn.keys(k, rope).transpose(1, 2), v.transpose(1, 2), bias)
        before, after = out.split([prefix.shape[1], suffix.shape[1]], dim=1)
        routed = [vlm_layer.finish(prefix, before, route) for route in ("vision", "text")]
        prefix = torch.where(is_patch, routed[0], routed[1])
        suffix = expert_layer.finish(suffix, after, "vision")
        prefix_hidden.append(prefix)
        suffix_hidden.append(suffix)
    normed = expert.norm(suffix[:, 1:])
    return JointForward(
        layout=layout,
        valid=valid[:, layout.stored],
        mask=mask,
        positions=positions,
        prefix_embs=embeddings[0],
        suffix_embs=embeddings[1],
        prefix_hidden=prefix_hidden,
        suffix_hidden=suffix_hidden,
        normed_actions=normed,
        velocity=model.action_out_proj(normed),
    )
