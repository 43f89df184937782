"""A packed batch through the language tower: every token through its own weights, attention without a stored mask.

Letters: B rows, S tokens of a row, T packed tokens, Tv of them patches, Tt of them text, D hidden, H heads, G key/value
heads, d head size, K cached tokens.

Rows are causal. The rows of visual segments (`rl_lab.model.packing`) are then computed again by full attention inside
their own segment: they see nothing else, so the first result is replaced, and no S x S mask is ever made. Only a
continuation of a cache uses a mask, of its new tokens by all cached ones; it hides the padding on the left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from rl_lab.model.mot import DecoderLayer, Route, Tower, rotary
from rl_lab.model.packing import Layout

Rope = tuple[Tensor, Tensor]


@dataclass
class Past:
    """Keys and values to write to and, if they hold anything, to read from."""

    cache: Cache
    length: int
    """Tokens of a row that are cached before this call."""
    mask: Tensor | None = None
    """bool [B, 1, S, K], which of all cached tokens each new one sees; None: all of them."""


def continuation_mask(attention_mask: Tensor | None, new: int, cached: int, device: torch.device) -> Tensor | None:
    """Which of `cached` tokens (the new ones are the last of them) the `new` ones see: valid, and not later ones.

    `attention_mask` is [B, K] or None without padding. A padded token sees itself, so that no row is empty.
    """
    if attention_mask is None and new == 1:
        return None
    own = torch.arange(cached - new, cached, device=device)[:, None]
    column = torch.arange(cached, device=device)
    mask = (column <= own)[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, None, :]
    return mask | (column == own)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention [B, S, H * d] of q [B, S, H, d] over k and v [B, G, K, d]."""
    if q.shape[1] == 1:
        # One query: the heads of a group become its queries, so that no kernel has to repeat keys.
        folded = q.unflatten(2, (k.shape[1], -1)).squeeze(1)
        return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask).flatten(1).unsqueeze(1)
    attended = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=mask, is_causal=causal, enable_gqa=True
    )
    return attended.transpose(1, 2).flatten(2)


def attend_segments(attended: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Packed attention [T, H * d] with the tokens of visual segments attending to their own segment alone."""
    if not layout.segments:
        return attended
    results = []
    for members in layout.segments:
        taken = (x.index_select(0, members.flatten()).unflatten(0, members.shape) for x in (q, k, v))
        queries, keys, values = taken
        results.append(attend(queries, keys.transpose(1, 2), values.transpose(1, 2)).flatten(0, 1))
    everyone = torch.cat([members.flatten() for members in layout.segments])
    return attended.index_copy(0, everyone, torch.cat(results))


def attend_packed(q: Tensor, k: Tensor, v: Tensor, layout: Layout, index: int, past: Past | None) -> Tensor:
    """Attention [T, H * d] of layer `index` over packed q [T, H, d], k and v [T, G, d] and the past, if any."""
    if past is not None:
        keys, values = (layout.source.spread(x).transpose(1, 2) for x in (k, v))
        cached = past.cache.update(keys, values, index)
    if past is not None and past.length:
        attended = layout.source.collect(attend(layout.source.spread(q), *cached, mask=past.mask))
    else:
        queries, keys, values = (layout.causal.spread(x) for x in (q, k, v))
        rows = attend(queries, keys.transpose(1, 2), values.transpose(1, 2), causal=True)
        attended = layout.causal.collect(rows)
    return attend_segments(attended, q, k, v, layout)


def _routes(vision: Tensor, text: Tensor) -> list[tuple[Tensor, Route]]:
    """Both routes, without an empty one unless gradients are on: ranks of a sharded model must agree on who has one."""
    parts: list[tuple[Tensor, Route]] = [(vision, "vision"), (text, "text")]
    return [(x, route) for x, route in parts if len(x) or torch.is_grad_enabled()]


def packed_layer(
    layer: DecoderLayer, vision: Tensor, text: Tensor, index: int, layout: Layout, rope: Rope, past: Past | None
) -> tuple[Tensor, Tensor]:
    """One layer over patches [Tv, D] and text [Tt, D]."""
    parts = _routes(vision, text)
    heads = [layer.project(x, route) for x, route in parts]
    q, k, v = (group[0] if len(group) == 1 else torch.cat(group) for group in zip(*heads, strict=True))
    attn = layer.self_attn
    attended = attend_packed(attn.queries(q, rope), attn.keys(k, rope), v, layout, index, past)
    split = attended.split([len(x) for x, _ in parts])
    done = {route: layer.finish(x, own, route) for (x, route), own in zip(parts, split, strict=True)}
    return done.get("vision", vision), done.get("text", text)


def run_packed(
    tower: Tower,
    vision: Tensor,
    text: Tensor,
    layout: Layout,
    past: Past | None = None,
    record: list[Tensor] | None = None,
) -> Tensor:
    """Residual stream [T, D] after the last layer, packed and not normed, from patches [Tv, D] and text [Tt, D].

    `record` receives the residual stream before the first layer and after each.
    """
    cos, sin = rotary(layout.positions[None], tower.sizes.head_dim, tower.sizes.rope_base)
    rope = cos[0], sin[0]
    for index, layer in enumerate(tower):
        if record is not None:
            record.append(torch.cat([vision, text]))
        vision, text = layer(packed_layer, vision, text, index, layout, rope, past)
    hidden = torch.cat([vision, text]) if len(vision) else text
    if record is not None:
        record.append(hidden)
    return hidden
